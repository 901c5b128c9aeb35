/* cli/line.c - see line.h.
 *
 * libedit (https://thrysoee.dk/editline/, BSD licence) is opened at run time: a program that serves
 * on machines without a person should not need it, and without it the terminal's own line editing
 * does. Its interface is what histedit.h of version 3.1 says. */
#include "cli/line.h"

#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define LIBRARY "libedit.so.2"
#define HISTORY_LINES 500

/* histedit.h's numbers */
enum {
    EDIT_PROMPT = 0,
    EDIT_EDITOR = 2,
    EDIT_SIGNAL = 3,
    EDIT_HISTORY = 10,
    EDIT_PREPARE_TERMINAL = 16
};
enum { HISTORY_SET_SIZE = 1, HISTORY_ENTER = 10 };

struct edit;
struct history;
struct history_event {
    int number;
    const char *text;
};

struct edit_calls {
    struct edit *(*init)(const char *program, FILE *in, FILE *out, FILE *error);
    void (*end)(struct edit *edit);
    const char *(*gets)(struct edit *edit, int *count);
    int (*set)(struct edit *edit, int what, ...);
    struct history *(*history_init)(void);
    void (*history_end)(struct history *history);
    int (*history)(struct history *history, struct history_event *event, int what, ...);
};

struct cli_line {
    volatile sig_atomic_t *interrupted;
    bool is_terminal;
    void *library;        /* NULL: lines are read plainly */
    struct edit_calls calls;
    struct edit *edit;
    struct history *history;
    struct buf rest;      /* read beyond the last line, plainly */
    bool over;
};

#define FIRST_PROMPT ">>> "
#define MORE_PROMPT "... "

/* libedit asks a function for its prompt. */
static const char *give_first(struct edit *edit)
{
    (void)edit;
    return FIRST_PROMPT;
}

static const char *give_more(struct edit *edit)
{
    (void)edit;
    return MORE_PROMPT;
}

static bool find(void *library, const char *name, void *call_out)
{
    void *symbol = dlsym(library, name);

    memcpy(call_out, &symbol, sizeof(symbol)); /* ISO C has no cast between the two */
    return symbol != NULL;
}

static bool find_all(void *library, struct edit_calls *calls)
{
    return find(library, "el_init", &calls->init) && find(library, "el_end", &calls->end) &&
           find(library, "el_gets", &calls->gets) && find(library, "el_set", &calls->set) &&
           find(library, "history_init", &calls->history_init) &&
           find(library, "history_end", &calls->history_end) &&
           find(library, "history", &calls->history);
}

static void open_editor(struct cli_line *line)
{
    struct history_event event;

    line->library = dlopen(LIBRARY, RTLD_NOW | RTLD_LOCAL);
    if (line->library == NULL)
        return;
    if (find_all(line->library, &line->calls))
        line->edit = line->calls.init("lighter", stdin, stdout, stderr);
    if (line->edit == NULL)
        return;
    (void)line->calls.set(line->edit, EDIT_EDITOR, "emacs");
    (void)line->calls.set(line->edit, EDIT_SIGNAL, 1);
    line->history = line->calls.history_init();
    if (line->history == NULL)
        return;
    (void)line->calls.history(line->history, &event, HISTORY_SET_SIZE, HISTORY_LINES);
    (void)line->calls.set(line->edit, EDIT_HISTORY, line->calls.history, line->history);
}

enum status cli_line_open(volatile sig_atomic_t *interrupted, struct cli_line **line_out,
                          struct err *err)
{
    struct cli_line *line = calloc(1, sizeof(*line));

    if (line == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory to read lines");
    line->interrupted = interrupted;
    line->is_terminal = isatty(STDIN_FILENO) && isatty(STDOUT_FILENO);
    buf_init(&line->rest, CLI_LINE_BYTES_MAX);
    if (line->is_terminal)
        open_editor(line);
    *line_out = line;
    return STATUS_OK;
}

void cli_line_close(struct cli_line *line)
{
    if (line == NULL)
        return;
    if (line->history != NULL)
        line->calls.history_end(line->history);
    if (line->edit != NULL)
        line->calls.end(line->edit);
    if (line->library != NULL)
        (void)dlclose(line->library);
    buf_deinit(&line->rest);
    free(line);
}

bool cli_line_is_terminal(const struct cli_line *line)
{
    return line->is_terminal;
}

static enum status read_edited(struct cli_line *line, struct buf *out, enum cli_line_end *end_out,
                               struct err *err)
{
    struct history_event event;
    int count = 0;
    const char *text;

    /* Else libedit does this only after its prompt, and a Ctrl-D that answers the prompt at once is
     * taken by the terminal, which leaves a zero byte of it. */
    (void)line->calls.set(line->edit, EDIT_PREPARE_TERMINAL, 1);
    text = line->calls.gets(line->edit, &count);
    if (*line->interrupted) {
        *end_out = CLI_LINE_INTERRUPTED;
        return STATUS_OK;
    }
    *end_out = CLI_LINE_OVER;
    if (text == NULL || count <= 0)
        return STATUS_OK;
    *end_out = CLI_LINE_READ;
    if (line->history != NULL && text[0] != '\n')
        (void)line->calls.history(line->history, &event, HISTORY_ENTER, text);
    return buf_append(out, text, strcspn(text, "\n"), err);
}

/* Takes a line out of what has been read. */
static bool take_line(struct cli_line *line, struct buf *out, enum status *st_out, struct err *err)
{
    const char *end = line->rest.size > 0 ? memchr(line->rest.data, '\n', line->rest.size) : NULL;
    size_t size = end != NULL ? (size_t)(end - line->rest.data) : line->rest.size;

    if (end == NULL && (!line->over || size == 0))
        return false;
    *st_out = buf_append(out, line->rest.data, size, err);
    size += end != NULL;
    memmove(line->rest.data, line->rest.data + size, line->rest.size - size);
    line->rest.size -= size;
    return true;
}

static enum status read_plain(struct cli_line *line, struct buf *out, enum cli_line_end *end_out,
                              struct err *err)
{
    enum status st = STATUS_OK;

    *end_out = CLI_LINE_READ;
    while (!take_line(line, out, &st, err)) {
        char bytes[4096];
        ssize_t got;

        if (line->over) {
            *end_out = CLI_LINE_OVER;
            return STATUS_OK;
        }
        got = read(STDIN_FILENO, bytes, sizeof(bytes));
        if (got < 0 && errno == EINTR) {
            if (!*line->interrupted)
                continue;
            *end_out = CLI_LINE_INTERRUPTED;
            return STATUS_OK;
        }
        if (got < 0)
            return err_set(err, STATUS_IO, "standard input: %s", strerror(errno));
        line->over = got == 0;
        if (buf_append(&line->rest, bytes, (size_t)got, NULL) != STATUS_OK)
            return err_set(err, STATUS_BAD_INPUT, "standard input: a line of more than %zu bytes",
                           CLI_LINE_BYTES_MAX);
    }
    if (st == STATUS_OK && out->size > 0 && out->data[out->size - 1] == '\r')
        out->data[--out->size] = '\0';
    return st;
}

enum status cli_line_read(struct cli_line *line, bool more, struct buf *out,
                          enum cli_line_end *end_out, struct err *err)
{
    buf_clear(out);
    if (line->edit != NULL) {
        (void)line->calls.set(line->edit, EDIT_PROMPT, more ? give_more : give_first);
        return read_edited(line, out, end_out, err);
    }
    if (line->is_terminal) {
        fputs(more ? MORE_PROMPT : FIRST_PROMPT, stdout);
        (void)fflush(stdout);
    }
    return read_plain(line, out, end_out, err);
}
