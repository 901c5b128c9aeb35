/* base/log.h - lines for the person who runs the program.
 *
 * A log is a function that somebody above passes down; rooms never print. A NULL log is silent. The
 * function may be called from any thread and must not block for long. */
#ifndef LIGHTER_BASE_LOG_H
#define LIGHTER_BASE_LOG_H

enum log_level { LOG_DEBUG, LOG_INFO, LOG_WARN, LOG_ERROR };

struct log {
    void (*write)(void *user, enum log_level level, const char *line); /* line has no newline */
    void *user;                                                        /* borrowed */
};

/* Formats one line (cut at 1 KiB) and hands it to the log. */
void log_line(const struct log *log, enum log_level level, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

#endif
