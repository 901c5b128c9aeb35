/* cli/chat.c - `lighter chat`: a conversation in the terminal.
 *
 *     >>> a line                    a turn: rendered with all turns before it, answered as it comes
 *     >>> """                       lines up to the next """ are one turn
 *     >>> a line that ends in \     goes on in the next
 *     >>> /help                     what else there is
 *
 * Ctrl-C ends an answer, which keeps what came of it, and at the prompt drops the line; Ctrl-D ends
 * the conversation. Where no person types, each turn of standard input is answered the same way,
 * without prompts. With --json the conversation is printed at its end. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/ask.h"
#include "cli/command.h"
#include "cli/line.h"
#include "cli/session.h"

#define CHAT_TOKENS 8192 /* of the cache, where the options say nothing and the model has more */
#define BLOCK "\"\"\""

static volatile sig_atomic_t interrupted; /* a signal's handler has nothing else to write to */

static void on_interrupt(int number)
{
    (void)number;
    interrupted = 1;
}

struct talk {
    struct cli_context *context;
    struct cli_session session;
    struct sampling_params params;
    struct cli_line *line;
    json_t *messages; /* owned */
    bool over;
};

/* --- messages --------------------------------------------------------------------------------- */

static enum status add_message(struct talk *talk, const char *role, const char *text, size_t size,
                               struct err *err)
{
    json_t *content = cli_text_json(text, size);

    if (content == NULL || json_array_append_new(talk->messages, json_pack("{s:s, s:o}", "role",
                                                 role, "content", content)) != 0)
        return err_set(err, STATUS_NO_MEMORY, "no memory for a message");
    return STATUS_OK;
}

static const char *role_at(const struct talk *talk, size_t index)
{
    const char *role = json_string_value(json_object_get(json_array_get(talk->messages, index),
                                                         "role"));

    return role != NULL ? role : "";
}

static void drop_last(struct talk *talk)
{
    if (json_array_size(talk->messages) > 0)
        (void)json_array_remove(talk->messages, json_array_size(talk->messages) - 1);
}

/* A new conversation, under the same system message or another. */
static enum status restart(struct talk *talk, const char *system, struct err *err)
{
    json_t *kept = NULL;
    enum status st = STATUS_OK;

    if (system == NULL && strcmp(role_at(talk, 0), "system") == 0)
        kept = json_incref(json_array_get(talk->messages, 0));
    (void)json_array_clear(talk->messages);
    if (kept != NULL)
        (void)json_array_append_new(talk->messages, kept);
    else if (system != NULL && system[0] != '\0')
        st = add_message(talk, "system", system, strlen(system), err);
    return st;
}

/* --- answers ---------------------------------------------------------------------------------- */

static bool print_piece(void *user, const char *text, size_t text_size, const int32_t *ids,
                        size_t id_count)
{
    const struct talk *talk = user;

    (void)ids;
    (void)id_count;
    if (!talk->context->options->json) {
        (void)fwrite(text, 1, text_size, stdout);
        if (fflush(stdout) != 0)
            return false;
    }
    return interrupted == 0;
}

/* Tells what the answer could not be, and goes on: a conversation survives it. */
static void tell(const struct talk *talk, const char *message)
{
    log_line(&talk->context->console->log, LOG_ERROR, "%s", message);
}

static enum status end_answer(struct talk *talk, const struct cli_answer *answer, struct err *err)
{
    const bool shows = !talk->context->options->json;
    enum status st;

    if (shows)
        fputc('\n', stdout);
    if (shows && answer->finish == FINISH_ABORT && cli_line_is_terminal(talk->line))
        fputs("[interrupted]\n", stdout);
    if (answer->finish == FINISH_LENGTH)
        log_line(&talk->context->console->log, LOG_WARN,
                 "the answer ended at its limit of %llu tokens",
                 (unsigned long long)answer->completion_token_count);
    st = add_message(talk, "assistant", answer->text.size > 0 ? answer->text.data : "",
                     answer->text.size, err);
    return st == STATUS_OK ? cli_stdout_flush(err) : st;
}

/* Answers the last message, a user's; without an answer it is dropped. */
static enum status answer_last(struct talk *talk, struct err *err)
{
    const struct chat_request request = { .messages = talk->messages,
                                          .add_generation_prompt = true };
    struct token_ids ids = { 0 };
    struct cli_answer answer;
    struct err why;
    enum status st = chat_encode(talk->session.chat, &request, &ids, &why);

    interrupted = 0;
    if (st == STATUS_OK)
        st = cli_ask(talk->session.engine,
                     &(struct cli_ask){
                         .ids = ids.ids,
                         .count = ids.count,
                         .params = &talk->params,
                         .on_piece = print_piece,
                         .user = talk,
                         .stop = &interrupted,
                     },
                     &answer, &why);
    token_ids_deinit(&ids);
    if (st == STATUS_BAD_INPUT) {
        tell(talk, why.message);
        drop_last(talk);
        return STATUS_OK;
    }
    if (st != STATUS_OK)
        return err_set(err, st, "%s", why.message);
    st = end_answer(talk, &answer, err);
    cli_answer_deinit(&answer);
    interrupted = 0;
    return st;
}

/* --- commands --------------------------------------------------------------------------------- */

static void print_help(void)
{
    fputs("/reset          a new conversation, under the same system message\n"
          "/system TEXT    a new conversation under this system message\n"
          "/retry          another answer to your last message\n"
          "/undo           takes back your last message and its answer\n"
          "/history        the conversation so far\n"
          "/exit           ends; so does Ctrl-D\n"
          BLOCK "             begins a message of several lines, and ends it\n"
          "A line that ends in a backslash goes on in the next. Ctrl-C ends an answer.\n", stdout);
}

static void print_history(const struct talk *talk)
{
    const json_t *message;
    size_t index;

    json_array_foreach(talk->messages, index, message)
        printf("%s: %s\n", json_string_value(json_object_get(message, "role")),
               json_string_value(json_object_get(message, "content")));
}

/* Drops the last answer, and with `question` what it answered; false: there is none. */
static bool take_back(struct talk *talk, bool question)
{
    const size_t count = json_array_size(talk->messages);

    if (count < 2 || strcmp(role_at(talk, count - 1), "assistant") != 0)
        return false;
    drop_last(talk);
    if (question)
        drop_last(talk);
    return true;
}

static bool is_command(const char *text, const char *name, const char **rest_out)
{
    const size_t size = strlen(name);

    if (strncmp(text, name, size) != 0 || (text[size] != '\0' && text[size] != ' '))
        return false;
    *rest_out = text + size + strspn(text + size, " ");
    return true;
}

static enum status run_command(struct talk *talk, const char *text, struct err *err)
{
    const bool shows = !talk->context->options->json;
    const char *rest;

    if (is_command(text, "/exit", &rest) || is_command(text, "/quit", &rest) ||
        is_command(text, "/bye", &rest)) {
        talk->over = true;
    } else if (is_command(text, "/reset", &rest)) {
        return restart(talk, NULL, err);
    } else if (is_command(text, "/system", &rest)) {
        return restart(talk, rest, err);
    } else if (is_command(text, "/retry", &rest)) {
        if (take_back(talk, false))
            return answer_last(talk, err);
        tell(talk, "there is no answer yet");
    } else if (is_command(text, "/undo", &rest)) {
        if (!take_back(talk, true))
            tell(talk, "there is nothing to take back");
    } else if (is_command(text, "/history", &rest)) {
        if (shows)
            print_history(talk);
    } else if (is_command(text, "/help", &rest)) {
        if (shows)
            print_help();
    } else {
        tell(talk, "there is no such command; /help lists them, and // begins a message with /");
    }
    return STATUS_OK;
}

/* --- turns ------------------------------------------------------------------------------------ */

/* The lines up to the one that ends the block; what comes before """ on that line counts. */
static enum status read_block(struct talk *talk, struct buf *line, struct buf *turn,
                              enum cli_line_end *end_out, struct err *err)
{
    enum status st = STATUS_OK;

    for (;;) {
        const char *close = line->size > 0 ? strstr(line->data, BLOCK) : NULL;

        st = buf_append(turn, line->size > 0 ? line->data : "",
                        close != NULL ? (size_t)(close - line->data) : line->size, err);
        if (st != STATUS_OK || close != NULL)
            return st;
        st = buf_append(turn, "\n", 1, err);
        if (st == STATUS_OK)
            st = cli_line_read(talk->line, true, line, end_out, err);
        if (st != STATUS_OK || *end_out != CLI_LINE_READ)
            return st;
    }
}

/* One turn: a line, those that it goes on in, or a block. */
static enum status read_turn(struct talk *talk, struct buf *turn, enum cli_line_end *end_out,
                             struct err *err)
{
    struct buf line;
    enum status st;

    buf_init(&line, CLI_LINE_BYTES_MAX);
    buf_clear(turn);
    st = cli_line_read(talk->line, false, &line, end_out, err);
    if (st == STATUS_OK && *end_out == CLI_LINE_READ && line.size >= strlen(BLOCK) &&
        strncmp(line.data, BLOCK, strlen(BLOCK)) == 0) {
        memmove(line.data, line.data + strlen(BLOCK), line.size - strlen(BLOCK) + 1);
        line.size -= strlen(BLOCK);
        st = read_block(talk, &line, turn, end_out, err);
        if (*end_out == CLI_LINE_OVER)
            *end_out = CLI_LINE_READ; /* the block ends with the input */
        buf_deinit(&line);
        return st;
    }
    while (st == STATUS_OK && *end_out == CLI_LINE_READ && line.size > 0 &&
           line.data[line.size - 1] == '\\') {
        line.data[line.size - 1] = '\n';
        st = buf_append(turn, line.data, line.size, err);
        if (st == STATUS_OK)
            st = cli_line_read(talk->line, true, &line, end_out, err);
    }
    if (st == STATUS_OK && line.size > 0)
        st = buf_append(turn, line.data, line.size, err);
    if (*end_out == CLI_LINE_OVER && turn->size > 0)
        *end_out = CLI_LINE_READ;
    buf_deinit(&line);
    return st;
}

static enum status take_turn(struct talk *talk, const struct buf *turn, struct err *err)
{
    const char *text = turn->size > 0 ? turn->data : "";
    size_t size = turn->size;
    enum status st;

    if (strspn(text, " \t\n") == size)
        return STATUS_OK;
    if (text[0] == '/' && text[1] != '/')
        return run_command(talk, text, err);
    if (text[0] == '/') {
        text++;
        size--;
    }
    st = add_message(talk, "user", text, size, err);
    return st == STATUS_OK ? answer_last(talk, err) : st;
}

static enum status converse(struct talk *talk, struct err *err)
{
    struct buf turn;
    enum status st = STATUS_OK;

    buf_init(&turn, 2 * CLI_LINE_BYTES_MAX);
    while (st == STATUS_OK && !talk->over) {
        enum cli_line_end end = CLI_LINE_OVER;

        interrupted = 0;
        st = read_turn(talk, &turn, &end, err);
        if (st != STATUS_OK || end == CLI_LINE_OVER)
            break;
        if (end == CLI_LINE_READ)
            st = take_turn(talk, &turn, err);
        else if (cli_line_is_terminal(talk->line))
            fputs("\n(Ctrl-D or /exit ends the conversation)\n", stdout);
        else
            break; /* nobody is there to say more */
    }
    if (cli_line_is_terminal(talk->line) && !talk->over)
        fputc('\n', stdout);
    buf_deinit(&turn);
    return st;
}

/* --- begin and end ---------------------------------------------------------------------------- */

static enum status start(struct talk *talk, struct err *err)
{
    struct cli_context *context = talk->context;
    const struct cli_options *options = context->options;
    const struct log *log = &context->console->log;
    enum status st = cli_session_open_tokenizer(&talk->session, options, log, err);

    if (st == STATUS_OK)
        st = cli_session_open_chat(&talk->session, options, log, err);
    if (st == STATUS_OK && talk->session.chat == NULL)
        st = err_set(err, STATUS_BAD_INPUT, "%s", talk->session.why_no_chat.message);
    if (st == STATUS_OK) {
        st = cli_session_start(&talk->session, options,
                               &(struct cli_demand){
                                   .sequence_count = 1,
                                   .tokens_each = options->context_length > 0
                                                      ? (uint64_t)options->context_length
                                                      : CHAT_TOKENS,
                                   .forecast = cli_options_log_level(options) <= LOG_INFO,
                               },
                               log, &context->console->progress, err);
        context->bad_usage = talk->session.bad_usage;
    }
    return st;
}

enum status cli_chat(struct cli_context *context, struct err *err)
{
    const struct cli_options *options = context->options;
    const struct sigaction catching = { .sa_handler = on_interrupt }; /* no SA_RESTART */
    struct sigaction before;
    struct talk talk = { .context = context, .messages = json_array() };
    enum status st = cli_options_sampling(options, &talk.params, err);

    context->bad_usage = st != STATUS_OK;
    if (options->max_new_tokens < 0)
        talk.params.max_new_tokens = SAMPLING_NEW_TOKENS_ALL;
    if (st == STATUS_OK && options->system != NULL)
        st = add_message(&talk, "system", options->system, strlen(options->system), err);
    if (st == STATUS_OK)
        st = start(&talk, err);
    if (st == STATUS_OK)
        st = cli_line_open(&interrupted, &talk.line, err);
    if (st == STATUS_OK) {
        if (cli_line_is_terminal(talk.line))
            fputs("/help lists the commands.\n", stdout);
        (void)sigaction(SIGINT, &catching, &before);
        st = converse(&talk, err);
        (void)sigaction(SIGINT, &before, NULL);
    }
    if (st == STATUS_OK && options->json)
        st = cli_print_json(json_pack("{s:O, s:o}", "messages", talk.messages, "report",
                                      engine_report_json(talk.session.engine)), err);
    st = cli_session_trace_write(&talk.session, options, &context->console->log, st, err);
    cli_line_close(talk.line);
    cli_session_close(&talk.session);
    json_decref(talk.messages);
    return st;
}
