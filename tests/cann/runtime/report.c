/* tests/cann/report.c - calls, counters, injected failures, errors, faults, and the report at exit.
 *
 * A function's first call links its entry into a list that is never shortened. Counters are made by
 * their first use. `lock` guards all of it and is a leaf. */
#include "internal.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define TEXT_BYTES 512
#define FAILURES_MAX 16

struct counter {
    const char *name;
    uint64_t value;
    struct counter *next;
};
struct failure {
    char function[64];
    uint64_t left; /* calls until it fails; 0: not in use */
    int code;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct standin_entry *entries;
static struct counter *counters;
static struct failure failures[FAILURES_MAX];
static uint64_t call_count;
static char fault_text[TEXT_BYTES];
static _Thread_local char message[TEXT_BYTES];
static _Thread_local char message_read[TEXT_BYTES];

int standin_enter(struct standin_entry *entry)
{
    int code = 0;

    pthread_mutex_lock(&lock);
    if (entry->calls == 0 && entry->next == NULL) {
        entry->next = entries != NULL ? entries : entry; /* the last one points at itself */
        entries = entry;
    }
    entry->calls++;
    call_count++;
    for (int i = 0; i < FAILURES_MAX; i++) {
        struct failure *f = &failures[i];
        if (f->left != 0 && (strcmp(f->function, "*") == 0 ||
                             strcmp(f->function, entry->name) == 0) && --f->left == 0)
            code = f->code;
    }
    pthread_mutex_unlock(&lock);
    if (code != 0)
        standin_error(code, "%s: failure %d injected by a test", entry->name, code);
    return code;
}

void cann_standin_fail(const char *function, uint64_t nth, int code)
{
    pthread_mutex_lock(&lock);
    for (int i = 0; i < FAILURES_MAX; i++) {
        struct failure *f = &failures[i];
        if (nth == 0) {
            f->left = 0;
        } else if (f->left == 0) {
            snprintf(f->function, sizeof(f->function), "%s", function);
            f->left = nth;
            f->code = code;
            break;
        }
    }
    pthread_mutex_unlock(&lock);
}

static struct counter *counter(const char *name, bool make)
{
    struct counter *c;

    for (c = counters; c != NULL; c = c->next) {
        if (strcmp(c->name, name) == 0)
            return c;
    }
    if (!make || (c = calloc(1, sizeof(*c))) == NULL)
        return NULL;
    c->name = name;
    c->next = counters;
    counters = c;
    return c;
}

static void count(const char *name, uint64_t by)
{
    struct counter *c;

    pthread_mutex_lock(&lock);
    c = counter(name, true);
    if (c != NULL)
        c->value += by;
    pthread_mutex_unlock(&lock);
}

void standin_count(const char *name, uint64_t by)
{
    count(name, by);
}

void standin_uncount(const char *name, uint64_t by)
{
    count(name, 0 - by);
}

uint64_t cann_standin_counter(const char *name)
{
    uint64_t value = 0;

    pthread_mutex_lock(&lock);
    if (strcmp(name, "calls") == 0) {
        value = call_count;
    } else if (strncmp(name, "calls:", 6) == 0) {
        for (const struct standin_entry *e = entries; e != NULL;
             e = e->next != e ? e->next : NULL) {
            if (strcmp(e->name, name + 6) == 0)
                value += e->calls;
        }
    } else {
        const struct counter *c = counter(name, false);
        value = c != NULL ? c->value : 0;
    }
    pthread_mutex_unlock(&lock);
    return value;
}

int standin_error(int code, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    vsnprintf(message, sizeof(message), format, args);
    va_end(args);
    return code;
}

const char *aclGetRecentErrMsg(void)
{
    if (message[0] == '\0')
        return NULL;
    memcpy(message_read, message, sizeof(message));
    message[0] = '\0';
    return message_read;
}

void standin_fault(const char *format, ...)
{
    char text[TEXT_BYTES];
    va_list args;

    va_start(args, format);
    vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    pthread_mutex_lock(&lock);
    if (fault_text[0] == '\0')
        memcpy(fault_text, text, sizeof(text));
    pthread_mutex_unlock(&lock);
    standin_count("faults", 1);
    if (!standin_settings.silent)
        fprintf(stderr, "cann stand-in: fault: %s\n", text);
}

const char *cann_standin_fault(void)
{
    return fault_text[0] != '\0' ? fault_text : NULL;
}

void standin_leak(const char *format, ...)
{
    va_list args;

    standin_count("leaks", 1);
    if (standin_settings.silent)
        return;
    va_start(args, format);
    fputs("cann stand-in: leak: ", stderr);
    vfprintf(stderr, format, args);
    fputc('\n', stderr);
    va_end(args);
}

void standin_report_reset(void)
{
    pthread_mutex_lock(&lock);
    for (struct standin_entry *e = entries; e != NULL; e = e->next != e ? e->next : NULL)
        e->calls = 0;
    for (struct counter *c = counters; c != NULL; c = c->next)
        c->value = 0;
    call_count = 0;
    fault_text[0] = '\0';
    pthread_mutex_unlock(&lock);
    message[0] = '\0';
}

/* Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators": SplitMix64. */
uint64_t standin_random(uint64_t *state)
{
    uint64_t z = *state += UINT64_C(0x9e3779b97f4a7c15);
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

/* CANN_STANDIN_REPORT=FILE: "name value" lines of this process so far, appended: when a device is
 * reset for the last time, and at its end, which a process that calls _exit does not reach. */
void standin_report_write(void)
{
    static const char *const always[] = { "faults", "leaks", "format_casts", "sync_copies",
                                          "async_copies", "pageable_copies", "executor_errors" };
    const char *path = getenv("CANN_STANDIN_REPORT");
    FILE *file;

    if (path == NULL || (file = fopen(path, "a")) == NULL)
        return;
    pthread_mutex_lock(&lock);
    fprintf(file, "process %d\ncalls %llu\n", (int)getpid(), (unsigned long long)call_count);
    for (size_t i = 0; i < sizeof(always) / sizeof(always[0]); i++)
        (void)counter(always[i], true);
    for (const struct counter *c = counters; c != NULL; c = c->next)
        fprintf(file, "%s %llu\n", c->name, (unsigned long long)c->value);
    for (const struct standin_entry *e = entries; e != NULL; e = e->next != e ? e->next : NULL)
        fprintf(file, "calls:%s %llu\n", e->name, (unsigned long long)e->calls);
    if (fault_text[0] != '\0')
        fprintf(file, "fault %s\n", fault_text);
    pthread_mutex_unlock(&lock);
    fclose(file);
}

__attribute__((destructor)) static void report_end(void)
{
    /* A process that ends without aclFinalize takes its memory with it, but has lost it. */
    if (standin_is_open() && cann_standin_counter("live_blocks") > 0)
        standin_leak("%llu blocks of device memory, and no aclFinalize",
                     (unsigned long long)cann_standin_counter("live_blocks"));
    standin_report_write();
}
