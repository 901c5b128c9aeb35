/* cli/logits.c - `lighter logits`: the logits of every token of a prompt, as .npy or JSON. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/size.h"
#include "cli/command.h"
#include "cli/npy.h"
#include "cli/session.h"

/* One JSON object, printed as it goes: a tree of it would take ten times the memory. What is not a
 * finite number is null. Nine digits give back every float. */
static enum status print_logits(const struct token_ids *ids, const float *logits,
                                uint32_t vocab_size, struct err *err)
{
    printf("{\"input_ids\": [");
    for (size_t i = 0; i < ids->count; i++)
        printf("%s%d", i > 0 ? ", " : "", (int)ids->ids[i]);
    printf("], \"shape\": [%zu, %u], \"dtype\": \"float32\", \"logits\": [", ids->count,
           (unsigned)vocab_size);
    for (size_t t = 0; t < ids->count; t++) {
        printf("%s[", t > 0 ? ",\n " : "\n ");
        for (uint32_t v = 0; v < vocab_size; v++) {
            const float value = logits[t * vocab_size + v];
            if (isfinite(value))
                printf("%s%.9g", v > 0 ? ", " : "", (double)value);
            else
                printf("%snull", v > 0 ? ", " : "");
        }
        putchar(']');
    }
    printf("]}\n");
    return cli_stdout_flush(err);
}

static enum status write_logits(const struct cli_context *context, struct cli_session *session,
                                const struct token_ids *ids, const float *logits,
                                struct err *err)
{
    const struct cli_options *options = context->options;
    const uint32_t vocab_size = engine_model_info(session->engine)->vocab_size;
    enum status st;

    if (options->out == NULL)
        return print_logits(ids, logits, vocab_size, err);
    st = cli_npy_write(options->out, logits, ids->count, vocab_size, err);
    if (st != STATUS_OK || !options->json)
        return st;
    return cli_print_json(json_pack("{s:s, s:s, s:[I, I], s:o, s:o}", "out", options->out, "dtype",
                                    "float32", "shape", (json_int_t)ids->count,
                                    (json_int_t)vocab_size, "input_ids",
                                    cli_ids_json(ids->ids, ids->count), "report",
                                    engine_report_json(session->engine)),
                          err);
}

static enum status run(struct cli_context *context, struct cli_session *session,
                       const struct token_ids *ids, struct err *err)
{
    const uint32_t vocab_size = engine_model_info(session->engine)->vocab_size;
    uint64_t size_bytes = 0;
    float *logits;
    enum status st;

    if (!size_mul(ids->count, vocab_size, &size_bytes) ||
        !size_mul(size_bytes, sizeof(float), &size_bytes) || size_bytes > SIZE_MAX)
        return err_set(err, STATUS_NO_MEMORY, "logits of %zu tokens and %u words are too many",
                       ids->count, (unsigned)vocab_size);
    logits = malloc((size_t)size_bytes);
    if (logits == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for logits of %zu tokens and %u words",
                       ids->count, (unsigned)vocab_size);
    st = engine_logits(session->engine, ids->ids, ids->count, (uint32_t)context->options->chunk,
                       logits, err);
    context->bad_usage = st == STATUS_BAD_INPUT;
    if (st == STATUS_OK)
        st = write_logits(context, session, ids, logits, err);
    free(logits);
    return st;
}

enum status cli_logits(struct cli_context *context, struct err *err)
{
    const struct cli_options *options = context->options;
    const struct log *log = &context->console->log;
    struct cli_session session = { 0 };
    struct token_ids ids = { 0 };
    enum status st;

    st = cli_session_open_tokenizer(&session, options, log, err);
    if (st == STATUS_OK)
        st = cli_session_prompt(&session, options, &ids, err);
    if (st == STATUS_OK)
        st = cli_session_start(
            &session, options,
            &(struct cli_demand){ .sequence_count = 1, .tokens_each = ids.count }, log,
            &context->console->progress, err);
    context->bad_usage = session.bad_usage;
    if (st == STATUS_OK) {
        engine_report_reset(session.engine);
        st = run(context, &session, &ids, err);
    }
    if (st == STATUS_OK) {
        offload_report_log(model_offload(session.model), log);
        if (offload_is_garbage(model_offload(session.model)))
            log_line(log, LOG_WARN,
                     "these logits are garbage: with --offload-mode meta the weights have no "
                     "contents");
        st = offload_report_check(model_offload(session.model), err);
    }
    token_ids_deinit(&ids);
    cli_session_close(&session);
    return st;
}
