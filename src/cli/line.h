/* cli/line.h - lines from standard input, edited where a person types them. */
#ifndef LIGHTER_CLI_LINE_H
#define LIGHTER_CLI_LINE_H

#include <signal.h>
#include <stdbool.h>

#include "base/buf.h"
#include "base/status.h"

struct cli_line;

#define CLI_LINE_BYTES_MAX ((size_t)4 << 20)

enum cli_line_end {
    CLI_LINE_READ,        /* there is a line */
    CLI_LINE_INTERRUPTED, /* *interrupted was set meanwhile */
    CLI_LINE_OVER,        /* the end of the input */
};

/* On a terminal lines are edited, and the arrow keys bring back earlier ones, where the machine has
 * libedit; else lines are read as they come. `interrupted` is set by the caller's handler of
 * SIGINT, which must be installed without SA_RESTART. Borrowed until the close. */
enum status cli_line_open(volatile sig_atomic_t *interrupted, struct cli_line **line_out,
                          struct err *err);
void cli_line_close(struct cli_line *line);
/* Whether a person types: the prompt is shown then, else nothing is. */
bool cli_line_is_terminal(const struct cli_line *line);
/* The next line, without its newline, into *out; more: it goes on with the one before, and the
 * prompt says so. One of more than CLI_LINE_BYTES_MAX bytes is STATUS_BAD_INPUT. */
enum status cli_line_read(struct cli_line *line, bool more, struct buf *out,
                          enum cli_line_end *end_out, struct err *err);

#endif
