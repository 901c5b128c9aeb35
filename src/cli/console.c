/* cli/console.c - see console.h. */
#include "cli/console.h"

#include <stdio.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/size.h"

#define PERCENT_NONE UINT32_MAX
#define BAR_WIDTH 30

static void bar_clear(struct cli_console *console)
{
    if (console->bar_shown)
        fputs("\r\033[K", stderr);
    console->bar_shown = false;
}

static void write_line(void *user, enum log_level level, const char *line)
{
    struct cli_console *console = user;
    const char *prefix = level == LOG_ERROR ? "error: " : level == LOG_WARN ? "warning: " : "";

    if (level < console->level)
        return;
    flockfile(stderr);
    bar_clear(console);
    fprintf(stderr, "%s%s%s\n", console->prefix, prefix, line);
    funlockfile(stderr);
}

static void write_summary(const struct cli_console *console, const char *what,
                          uint64_t total_bytes)
{
    const double seconds = (double)(clock_now_ns() - console->started_ns) * 1e-9;
    char total[32];
    char rate[32];

    log_line(&console->log, LOG_INFO, "%s: %s in %.2f s (%s/s)", what,
             size_format(total_bytes, total, sizeof(total)), seconds,
             size_format((uint64_t)((double)total_bytes / (seconds > 1e-6 ? seconds : 1e-6)), rate,
                         sizeof(rate)));
}

static void update_progress(void *user, const char *what, uint64_t done_bytes,
                            uint64_t total_bytes)
{
    struct cli_console *console = user;
    const uint32_t percent =
        total_bytes > 0 ? (uint32_t)((double)done_bytes * 100.0 / (double)total_bytes) : 100;
    char done[32];
    char total[32];

    if (console->percent_shown == PERCENT_NONE)
        console->started_ns = clock_now_ns();
    if (percent == console->percent_shown)
        return;
    console->percent_shown = percent;
    if (console->terminal && console->level <= LOG_INFO) {
        const int filled = (int)(percent * BAR_WIDTH / 100);
        flockfile(stderr);
        fprintf(stderr, "\r%s [%.*s%*s] %3u %% %s of %s\033[K", what, filled,
                "##############################", BAR_WIDTH - filled, "", percent,
                size_format(done_bytes, done, sizeof(done)),
                size_format(total_bytes, total, sizeof(total)));
        fflush(stderr);
        console->bar_shown = true;
        funlockfile(stderr);
    }
    if (done_bytes >= total_bytes) {
        write_summary(console, what, total_bytes);
        console->percent_shown = PERCENT_NONE;
    }
}

void cli_console_init(struct cli_console *console, enum log_level level)
{
    *console = (struct cli_console){
        .log = { .write = write_line, .user = console },
        .progress = { .update = update_progress, .user = console },
        .level = level,
        .terminal = isatty(STDERR_FILENO) == 1,
        .percent_shown = PERCENT_NONE,
    };
}
