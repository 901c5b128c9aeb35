/* cli/generate.c - `lighter generate`: one prompt, its answer as it comes, and what moved. */
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "cli/ask.h"
#include "cli/command.h"
#include "cli/session.h"

struct pieces {
    const struct cli_session *session;
    bool print;
    uint64_t first_ns, last_ns; /* when the first and the last came; 0: none yet */
    uint64_t first_count, count; /* ids in the first, and in all */
};

/* The answer's text goes out as it comes; without a tokenizer, its ids. */
static bool take_piece(void *user, const char *text, size_t text_size, const int32_t *ids,
                       size_t id_count)
{
    struct pieces *pieces = user;

    pieces->last_ns = clock_now_ns();
    pieces->count += id_count;
    if (pieces->first_ns == 0 && id_count > 0) {
        pieces->first_ns = pieces->last_ns;
        pieces->first_count = id_count;
    }
    if (!pieces->print)
        return true;
    if (pieces->session->tokenizer != NULL)
        (void)fwrite(text, 1, text_size, stdout);
    else
        for (size_t i = 0; i < id_count; i++)
            printf("%d ", (int)ids[i]);
    return fflush(stdout) == 0; /* nobody reads on: no more answer */
}

/* Tokens per second after the first; 0: too few to tell. */
static double decode_rate(const struct pieces *pieces)
{
    const double seconds = (double)(pieces->last_ns - pieces->first_ns) * 1e-9;

    return pieces->count > pieces->first_count && seconds > 0
               ? (double)(pieces->count - pieces->first_count) / seconds : 0;
}

/* What was forecast and what came of it; null: no forecast was made. */
static json_t *forecast_json(const struct cli_session *session, const struct pieces *pieces)
{
    const struct model_forecast *forecast = model_forecast_made(session->model);
    json_t *json;

    if (forecast == NULL)
        return json_null();
    json = model_forecast_json(&session->rates, forecast);
    if (json != NULL && decode_rate(pieces) > 0)
        (void)json_object_set_new(json, "decode_tokens_per_s_measured",
                                  json_real(decode_rate(pieces)));
    return json;
}

static enum status print_answer(const struct cli_context *context, struct cli_session *session,
                                const struct cli_answer *answer, const struct pieces *pieces,
                                struct err *err)
{
    if (context->options->json)
        return cli_print_json(
            json_pack("{s:o, s:o, s:o, s:o, s:o}", "text",
                      cli_text_json(answer->text.data != NULL ? answer->text.data : "",
                                    answer->text.size),
                      "output_ids", cli_ids_json(answer->ids.ids, answer->ids.count), "meta_info",
                      cli_answer_meta_json(answer), "report",
                      engine_report_json(session->engine), "forecast",
                      forecast_json(session, pieces)),
            err);
    fputc('\n', stdout);
    return cli_stdout_flush(err);
}

/* For people, on standard error, once the answer is out. */
static void tell_report(const struct cli_context *context, struct cli_session *session,
                        const struct cli_answer *answer, const struct pieces *pieces)
{
    const struct log *log = &context->console->log;
    const struct model_forecast *forecast = model_forecast_made(session->model);
    const double rate = decode_rate(pieces);
    const bool compares = forecast != NULL && forecast->lacks == NULL && rate > 0;

    log_line(log, LOG_INFO, "%llu prompt tokens, %llu generated in %.3f s; ended by %s",
             (unsigned long long)answer->prompt_token_count,
             (unsigned long long)answer->completion_token_count, answer->e2e_s,
             finish_reason_name(answer->finish));
    offload_report_log(model_offload(session->model), log);
    if (compares &&
        forecast->decode_tokens_per_s_most > forecast->decode_tokens_per_s)
        log_line(log, LOG_INFO,
                 "generated %.3g tokens/s, where %.3g to %.3g were forecast, not knowing what "
                 "routers favour; the next start does", rate, forecast->decode_tokens_per_s,
                 forecast->decode_tokens_per_s_most);
    else if (compares)
        log_line(log, LOG_INFO,
                 "generated %.3g tokens/s, %.0f %% of the forecast and %.0f %% of the bound", rate,
                 100 * rate / forecast->decode_tokens_per_s,
                 100 * rate / forecast->decode_bound_tokens_per_s);
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
    struct pieces pieces = { .session = &session, .print = !options->json };
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
                                   .prompt_tokens = (uint32_t)ids.count,
                                   .forecast = true,
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
                     .on_piece = take_piece,
                     .user = &pieces,
                 },
                 &answer, err);
    context->bad_usage = st == STATUS_BAD_INPUT;
    if (st == STATUS_OK) {
        st = print_answer(context, &session, &answer, &pieces, err);
        tell_report(context, &session, &answer, &pieces);
        cli_answer_deinit(&answer);
    }
    if (st == STATUS_OK)
        st = offload_report_check(model_offload(session.model), err);
done:
    st = cli_session_trace_write(&session, options, log, st, err);
    token_ids_deinit(&ids);
    cli_session_close(&session);
    return st;
}
