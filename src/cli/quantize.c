/* cli/quantize.c - `lighter quantize`: a model becomes a GGUF file, its weights in other types.
 *
 * The work is checkpoint/convert/convert.h's. Here the options are read, and what the new file says
 * is checked before its data is made: that the model in it would run, that it is of the same size,
 * and that its tokenizer cuts a text that has something of everything into the same ids. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/size.h"
#include "base/thread_pool.h"
#include "checkpoint/checkpoint.h"
#include "checkpoint/convert/convert.h"
#include "cli/command.h"
#include "cli/session.h"
#include "model/model.h"
#include "text/tokenizer/tokenizer.h"

#define SAVE_INTERVAL_MS 250

static const char probe[] =
    "Hello, World!  It's 3.14159 or 1234567 (they'LL see):\n\n\tif (x == \"y\") { return a; }\r\n"
    "   Gr\xc3\xbc\xc3\x9f" "e, \xd0\x9f\xd1\x80\xd0\xb8\xd0\xb2\xd0\xb5\xd1\x82, "
    "\xe4\xbd\xa0\xe5\xa5\xbd\xe3\x81\x93\xe3\x82\x93\xe3\x81\xab\xe3\x81\xa1\xe3\x81\xaf "
    "\xec\x95\x88\xeb\x85\x95 \xd9\x85\xd8\xb1\xd8\xad\xd8\xa8\xd8\xa7 "
    "\xf0\x9f\x9a\xa2\xf0\x9f\x9a\xa2 "
    "e\xcc\x81 snake_case CamelCase http://a.b/c?d=e&f   \n  trailing  ";

/* "GLOB=TYPE" */
static enum status read_rule(const char *text, struct convert_rule *rule_out, char *glob,
                             size_t glob_size, struct err *err)
{
    const char *const equals = strrchr(text, '=');

    if (equals == NULL || equals == text || (size_t)(equals - text) >= glob_size)
        return err_set(err, STATUS_BAD_INPUT, "--tensor-type: '%.64s' is not of the form "
                       "GLOB=TYPE, such as '*.ffn_down.weight=Q6_K'", text);
    if (!dtype_parse(equals + 1, &rule_out->dtype) || !dtype_is_target(rule_out->dtype))
        return err_set(err, STATUS_BAD_INPUT, "--tensor-type: there is no type '%.32s'; F32, F16, "
                       "BF16, Q8_0, Q4_0, Q2_K, Q3_K, Q4_K, Q5_K and Q6_K are written", equals + 1);
    (void)snprintf(glob, glob_size, "%.*s", (int)(equals - text), text);
    rule_out->glob = glob;
    return STATUS_OK;
}

struct wanted {
    struct convert_options convert;
    char globs[CONVERT_RULES_MAX][128];
};

static enum status read_options(const struct cli_options *options, struct wanted *wanted,
                                struct err *err)
{
    enum status st = STATUS_OK;

    wanted->convert = (struct convert_options){
        .out = options->out, .type = options->type, .pre = options->pre,
        .thread_count = options->threads > 0 ? (uint32_t)options->threads
                                             : thread_count_available(),
        .split_max_bytes = options->split_max_bytes,
        .memory_budget_bytes = options->memory_budget_bytes,
        .save_interval_ms = SAVE_INTERVAL_MS,
    };
    if (!convert_has_type(options->type))
        return err_set(err, STATUS_BAD_INPUT, "--type: there is no '%.32s'; %s are written",
                       options->type, convert_type_names());
    for (size_t i = 0; st == STATUS_OK && i < options->tensor_types.count; i++)
        st = read_rule(options->tensor_types.items[i], &wanted->convert.rules[i],
                       wanted->globs[i], sizeof(wanted->globs[i]), err);
    wanted->convert.rule_count = options->tensor_types.count;
    return st;
}

/* Both tokenizers cut the probe into the same ids. A difference is told, not refused: --pre may
 * have asked for it. */
static enum status compare_tokenizers(const char *source, const char *part, const struct log *log,
                                      struct err *err)
{
    struct tokenizer *one = NULL, *other = NULL;
    struct token_ids ids[2] = { { 0 }, { 0 } };
    struct err unused;
    enum status st;

    if (cli_open_tokenizer(source, &one, &unused) != STATUS_OK)
        return STATUS_OK; /* the source's is of no use here either */
    st = cli_open_tokenizer(part, &other, err);
    if (st == STATUS_OK)
        st = tokenizer_encode(one, probe, sizeof(probe) - 1, true, &ids[0], err);
    if (st == STATUS_OK)
        st = tokenizer_encode(other, probe, sizeof(probe) - 1, true, &ids[1], err);
    if (st == STATUS_OK && (ids[0].count != ids[1].count ||
                            memcmp(ids[0].ids, ids[1].ids, ids[0].count * sizeof(int32_t)) != 0))
        log_line(log, LOG_WARN, "the file's tokenizer differs from the model's: of one text with "
                 "something of everything it makes %zu ids and not %zu, or others",
                 ids[1].count, ids[0].count);
    for (size_t i = 0; i < 2; i++)
        token_ids_deinit(&ids[i]);
    tokenizer_close(one);
    tokenizer_close(other);
    return st;
}

/* Whether the header, which is all that the file has as yet, says what the model is. */
static enum status check_part(const struct cli_options *options, const struct convert *convert,
                              const struct model_info *source, const struct log *log,
                              struct err *err)
{
    const char *const path = convert_part_path(convert);
    struct model_info info;
    struct ckpt *part = NULL;
    enum status st = ckpt_open(path, &part, err);

    if (st == STATUS_OK)
        st = model_inspect(part, &info, err);
    if (st != STATUS_OK)
        (void)err_prefix(err, st, "%s: a GGUF file of it would not run here", options->model);
    if (st == STATUS_OK &&
        (info.layer_count != source->layer_count || info.hidden_size != source->hidden_size ||
         info.vocab_size != source->vocab_size || info.expert_count != source->expert_count ||
         info.expert_top_k != source->expert_top_k ||
         info.context_length != source->context_length ||
         info.kv_bytes_per_token != source->kv_bytes_per_token))
        st = err_set(err, STATUS_BAD_INPUT, "%s: a GGUF file would not say the same of this model",
                     options->model);
    ckpt_close(part);
    if (st == STATUS_OK && convert_summary(convert)->has_tokenizer)
        st = compare_tokenizers(options->model, path, log, err);
    else if (st == STATUS_OK)
        log_line(log, LOG_WARN, "%s: it has no tokenizer, and so will the file have none",
                 options->model);
    return st;
}

static void tell_plan(const struct convert_summary *summary, const struct log *log)
{
    char from[32], to[32], memory[32];

    log_line(log, LOG_INFO, "%zu tensors, %.3g weights: %s become %s; %" PRIu32
             " threads, %s of memory", summary->tensor_count, (double)summary->weight_count,
             size_format(summary->source_bytes, from, sizeof(from)),
             size_format(summary->out_bytes, to, sizeof(to)), summary->thread_count,
             size_format(summary->memory_bytes, memory, sizeof(memory)));
    if (summary->requantises)
        log_line(log, LOG_WARN, "weights that are quantised already lose more than once; a file "
                 "made from the original ones is better");
    if (summary->resumed_bytes > 0)
        log_line(log, LOG_INFO, "going on where an earlier run was interrupted, behind %s",
                 size_format(summary->resumed_bytes, to, sizeof(to)));
}

static enum status tell_end(const struct cli_options *options, const struct convert *convert,
                            struct err *err)
{
    const struct convert_summary *const summary = convert_summary(convert);
    const char *const out = convert_out_path(convert);
    const double bits = 8.0 * (double)summary->out_bytes / (double)summary->weight_count;
    char size[32];

    if (options->json)
        return cli_print_json(
            json_pack("{s:o, s:I, s:s, s:I, s:I, s:I, s:I, s:I, s:f, s:I, s:I}", "out",
                      cli_text_json(out, strlen(out)), "file_count",
                      (json_int_t)summary->file_count, "type", options->type, "tensor_count",
                      (json_int_t)summary->tensor_count, "weight_count",
                      (json_int_t)summary->weight_count, "source_bytes",
                      (json_int_t)summary->source_bytes, "out_bytes",
                      (json_int_t)summary->out_bytes, "resumed_bytes",
                      (json_int_t)summary->resumed_bytes, "bits_per_weight", bits, "threads",
                      (json_int_t)summary->thread_count, "memory_bytes",
                      (json_int_t)summary->memory_bytes),
            err);
    if (summary->file_count > 1)
        printf("%s and %zu more: ", out, summary->file_count - 1);
    else
        printf("%s: ", out);
    printf("%s, %.2f bits for each weight\n", size_format(summary->out_bytes, size, sizeof(size)),
           bits);
    return cli_stdout_flush(err);
}

static enum status convert(struct cli_context *context, const struct ckpt *ckpt,
                           const struct wanted *wanted, struct err *err)
{
    const struct cli_options *const options = context->options;
    const struct log *const log = &context->console->log;
    struct model_info info;
    struct convert *convert = NULL;
    enum status st = model_inspect(ckpt, &info, err);

    if (st == STATUS_OK)
        st = convert_open(ckpt, &wanted->convert, &convert, err);
    if (st == STATUS_OK) {
        tell_plan(convert_summary(convert), log);
        st = check_part(options, convert, &info, log, err);
    }
    if (st == STATUS_OK)
        st = convert_run(convert, &context->console->progress, err);
    if (st == STATUS_OK)
        st = tell_end(options, convert, err);
    convert_close(convert);
    return st;
}

enum status cli_quantize(struct cli_context *context, struct err *err)
{
    const struct cli_options *const options = context->options;
    struct wanted wanted;
    struct ckpt *ckpt = NULL;
    enum status st = read_options(options, &wanted, err);

    context->bad_usage = st != STATUS_OK;
    if (st == STATUS_OK)
        st = ckpt_open(options->model, &ckpt, err);
    if (st == STATUS_OK)
        st = convert(context, ckpt, &wanted, err);
    ckpt_close(ckpt);
    return st;
}
