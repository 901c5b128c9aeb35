/* cli/generate.c - `lighter generate`: one prompt, its answer as it comes, and what moved. */
#include <stdio.h>
#include <string.h>

#include "cli/ask.h"
#include "cli/command.h"
#include "cli/session.h"

/* The answer's text goes out as it comes; without a tokenizer, its ids. */
static bool print_piece(void *user, const char *text, size_t text_size, const int32_t *ids,
                        size_t id_count)
{
    const struct cli_session *session = user;

    if (session->tokenizer != NULL)
        (void)fwrite(text, 1, text_size, stdout);
    else
        for (size_t i = 0; i < id_count; i++)
            printf("%d ", (int)ids[i]);
    return fflush(stdout) == 0; /* nobody reads on: no more answer */
}

static enum status print_answer(const struct cli_context *context, struct cli_session *session,
                                const struct cli_answer *answer, struct err *err)
{
    if (context->options->json)
        return cli_print_json(
            json_pack("{s:o, s:o, s:o, s:o}", "text",
                      cli_text_json(answer->text.data != NULL ? answer->text.data : "",
                                    answer->text.size),
                      "output_ids", cli_ids_json(answer->ids.ids, answer->ids.count), "meta_info",
                      cli_answer_meta_json(answer), "report",
                      engine_report_json(session->engine)),
            err);
    fputc('\n', stdout);
    return cli_stdout_flush(err);
}

/* For people, on standard error, once the answer is out. */
static void tell_report(const struct cli_context *context, struct cli_session *session,
                        const struct cli_answer *answer)
{
    const struct log *log = &context->console->log;

    log_line(log, LOG_INFO, "%llu prompt tokens, %llu generated in %.3f s; ended by %s",
             (unsigned long long)answer->prompt_token_count,
             (unsigned long long)answer->completion_token_count, answer->e2e_s,
             finish_reason_name(answer->finish));
    offload_report_log(model_offload(session->model), log);
    if (answer->garbage)
        log_line(log, LOG_WARN,
                 "this answer is garbage: with --offload-mode meta the weights have no contents");
}

enum status cli_generate(struct cli_context *context, struct err *err)
{
    const struct cli_options *options = context->options;
    const struct log *log = &context->console->log;
    struct cli_session session = { 0 };
    struct token_ids ids = { 0 };
    struct sampling_params params;
    struct cli_answer answer;
    enum status st;

    st = cli_options_sampling(options, &params, err);
    context->bad_usage = st != STATUS_OK;
    if (st != STATUS_OK)
        return st;
    st = cli_session_open_tokenizer(&session, options, log, err);
    if (st == STATUS_OK)
        st = cli_session_prompt(&session, options, &ids, err);
    if (st == STATUS_OK)
        st = cli_session_start(&session, options,
                               &(struct cli_demand){
                                   .sequence_count = 1,
                                   .tokens_each = ids.count + (uint64_t)params.max_new_tokens,
                               },
                               log, &context->console->progress, err);
    context->bad_usage = session.bad_usage;
    if (st != STATUS_OK)
        goto done;
    engine_report_reset(session.engine);
    st = cli_ask(session.engine,
                 &(struct cli_ask){
                     .ids = ids.ids,
                     .count = ids.count,
                     .params = &params,
                     .on_piece = options->json ? NULL : print_piece,
                     .user = &session,
                 },
                 &answer, err);
    context->bad_usage = st == STATUS_BAD_INPUT;
    if (st == STATUS_OK) {
        st = print_answer(context, &session, &answer, err);
        tell_report(context, &session, &answer);
        cli_answer_deinit(&answer);
    }
    if (st == STATUS_OK)
        st = offload_report_check(model_offload(session.model), err);
done:
    token_ids_deinit(&ids);
    cli_session_close(&session);
    return st;
}
