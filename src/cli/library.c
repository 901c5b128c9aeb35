/* cli/library.c - liblighter's public interface (include/lighter.h), over the same options and the
 * same session as the program's. */
#include "lighter.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/ask.h"
#include "cli/options.h"
#include "cli/session.h"

struct lighter {
    struct cli_session session; /* does not change while the handle is open */
};

static_assert(LIGHTER_ERROR_SIZE == sizeof(((struct err *)0)->message), "an error fits");

static enum lighter_status fail(enum status status, const struct err *err, char *error)
{
    if (error != NULL)
        (void)snprintf(error, LIGHTER_ERROR_SIZE, "%s", err->message);
    switch (status) {
    case STATUS_OK: return LIGHTER_OK;
    case STATUS_BAD_INPUT: return LIGHTER_BAD_INPUT;
    case STATUS_NO_MEMORY: return LIGHTER_NO_MEMORY;
    case STATUS_UNAVAILABLE: return LIGHTER_UNAVAILABLE;
    case STATUS_BUSY: return LIGHTER_BUSY;
    case STATUS_IO:
    case STATUS_DEVICE:
    case STATUS_PEER:
    case STATUS_CANCELED: break;
    }
    return LIGHTER_FAILED;
}

static enum status set_all(struct cli_options *options, enum cli_command command,
                           const struct lighter_option *list, size_t count, struct err *err)
{
    enum status st = STATUS_OK;

    for (size_t i = 0; i < count && st == STATUS_OK; i++) {
        if (list[i].name == NULL || list[i].value == NULL)
            return err_set(err, STATUS_BAD_INPUT, "option %zu of %zu has no %s", i, count,
                           list[i].name == NULL ? "name" : "value");
        st = cli_options_set(options, command, list[i].name, list[i].value, err);
    }
    return st;
}

enum lighter_status lighter_open(const struct lighter_option *options, size_t option_count,
                                 struct lighter **lighter_out, char *error)
{
    const struct cli_demand demand = { 0 };
    struct lighter *lighter = calloc(1, sizeof(*lighter));
    struct cli_options parsed;
    struct err err;
    enum status st;

    assert(lighter_out != NULL);
    cli_options_init(&parsed);
    if (lighter == NULL)
        st = err_set(&err, STATUS_NO_MEMORY, "no memory for a handle");
    else
        st = set_all(&parsed, CLI_COMMAND_SERVE, options, option_count, &err);
    if (st == STATUS_OK)
        st = cli_options_check(&parsed, CLI_COMMAND_SERVE, &err);
    if (st == STATUS_OK)
        st = cli_session_open_tokenizer(&lighter->session, &parsed, NULL, &err);
    if (st == STATUS_OK)
        st = cli_session_start(&lighter->session, &parsed, &demand, NULL, NULL, &err);
    cli_options_deinit(&parsed);
    if (st != STATUS_OK) {
        lighter_close(lighter);
        return fail(st, &err, error);
    }
    *lighter_out = lighter;
    return LIGHTER_OK;
}

void lighter_close(struct lighter *lighter)
{
    if (lighter == NULL)
        return;
    cli_session_close(&lighter->session);
    free(lighter);
}

static bool hand_on(void *user, const char *text, size_t text_size, const int32_t *ids,
                    size_t id_count)
{
    const struct lighter_request *const *request = user;

    return (*request)->on_piece((*request)->user, text, text_size, ids, id_count) == 0;
}

/* The request's prompt as ids, appended. */
static enum status read_prompt(const struct lighter *lighter,
                               const struct lighter_request *request, struct token_ids *ids,
                               struct err *err)
{
    enum status st = STATUS_OK;

    if ((request->prompt != NULL) == (request->prompt_ids != NULL))
        return err_set(err, STATUS_BAD_INPUT, "a request has either a prompt or prompt_ids");
    if (request->prompt != NULL && lighter->session.tokenizer == NULL)
        return err_set(err, STATUS_BAD_INPUT, "the model has no tokenizer: give prompt_ids");
    if (request->prompt != NULL)
        return tokenizer_encode(lighter->session.tokenizer, request->prompt,
                                strlen(request->prompt), true, ids, err);
    for (size_t i = 0; i < request->prompt_id_count && st == STATUS_OK; i++)
        st = token_ids_push(ids, request->prompt_ids[i], err);
    return st;
}

/* Takes the answer's memory over. */
static enum status convert(struct cli_answer *from, struct lighter_answer *to, struct err *err)
{
    enum status st = buf_reserve(&from->text, from->text.size, err); /* a NUL, also when empty */

    if (st != STATUS_OK)
        return st;
    *to = (struct lighter_answer){
        .text = from->text.data,
        .text_size = from->text.size,
        .ids = from->ids.ids,
        .id_count = from->ids.count,
        .prompt_token_count = from->prompt_token_count,
        .finish_reason = finish_reason_name(from->finish),
        .garbage = from->garbage,
    };
    from->text.data = NULL;
    from->ids = (struct token_ids){ 0 };
    return STATUS_OK;
}

enum lighter_status lighter_generate(struct lighter *lighter,
                                     const struct lighter_request *request,
                                     struct lighter_answer *answer_out, char *error)
{
    struct cli_options parsed;
    struct sampling_params params;
    struct token_ids ids = { 0 };
    struct cli_answer answer;
    struct err err;
    enum status st;

    assert(lighter != NULL && request != NULL && answer_out != NULL);
    cli_options_init(&parsed);
    st = set_all(&parsed, CLI_COMMAND_GENERATE, request->sampling, request->sampling_count, &err);
    if (st == STATUS_OK)
        st = read_prompt(lighter, request, &ids, &err);
    if (st == STATUS_OK && ids.count == 0)
        st = err_set(&err, STATUS_BAD_INPUT, "the prompt has no tokens");
    if (st == STATUS_OK)
        st = cli_options_sampling(&parsed, &params, &err);
    if (st == STATUS_OK)
        st = cli_ask(lighter->session.engine,
                     &(struct cli_ask){
                         .ids = ids.ids,
                         .count = ids.count,
                         .params = &params,
                         .on_piece = request->on_piece != NULL ? hand_on : NULL,
                         .user = &request,
                     },
                     &answer, &err);
    if (st == STATUS_OK) {
        st = convert(&answer, answer_out, &err);
        cli_answer_deinit(&answer);
    }
    token_ids_deinit(&ids);
    cli_options_deinit(&parsed);
    return st == STATUS_OK ? LIGHTER_OK : fail(st, &err, error);
}

void lighter_answer_deinit(struct lighter_answer *answer)
{
    free(answer->text);
    free(answer->ids);
    *answer = (struct lighter_answer){ 0 };
}

enum lighter_status lighter_tokenize(struct lighter *lighter, const char *text, size_t text_size,
                                     int32_t **ids_out, size_t *count_out, char *error)
{
    struct token_ids ids = { 0 };
    struct err err;
    enum status st;

    assert(lighter != NULL && text != NULL && ids_out != NULL && count_out != NULL);
    if (lighter->session.tokenizer == NULL)
        st = err_set(&err, STATUS_UNAVAILABLE, "the model has no tokenizer");
    else
        st = tokenizer_encode(lighter->session.tokenizer, text, text_size, true, &ids, &err);
    if (st != STATUS_OK) {
        token_ids_deinit(&ids);
        return fail(st, &err, error);
    }
    *ids_out = ids.ids;
    *count_out = ids.count;
    return LIGHTER_OK;
}

char *lighter_report_json(struct lighter *lighter)
{
    json_t *report = engine_report_json(lighter->session.engine);
    char *text = report != NULL ? json_dumps(report, JSON_COMPACT) : NULL;

    json_decref(report);
    return text;
}
