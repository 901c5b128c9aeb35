/* base/status.h - how a function says that the world did not do what was asked.
 *
 * A function that can fail for reasons outside the program returns an `enum status` and, when that
 * is not STATUS_OK, has written one sentence into the caller's `struct err`: the object, the
 * number seen, the number wanted, and where it helps what to do. Whoever first knows which error
 * it is writes the sentence; callers pass it on, or put a place before it with err_prefix. Outputs
 * are written on success only. Our own mistakes are asserted, never returned. */
#ifndef LIGHTER_BASE_STATUS_H
#define LIGHTER_BASE_STATUS_H

enum status {
    STATUS_OK = 0,
    STATUS_BAD_INPUT,   /* a file, flag or request says something that cannot be; ask differently */
    STATUS_NO_MEMORY,   /* a budget or the machine has too little memory; ask for less */
    STATUS_UNAVAILABLE, /* a device, file or feature is not here; go on without it */
    STATUS_IO,          /* reading or writing failed */
    STATUS_DEVICE,      /* an accelerator reported an error */
    STATUS_PEER,        /* another process or host did not answer as it should */
    STATUS_BUSY,        /* a queue or a limit is full; try again later */
    STATUS_CANCELED,    /* somebody asked for this to stop */
};

/* The caller's storage for one sentence. Needs no init: it is read only after a failure. */
struct err {
    enum status status;
    char message[768];
};

/* Writes the sentence and returns `status`, so that failing is one line: return err_set(err, ...).
 * `err` may be NULL when the caller does not want the sentence. `status` must not be STATUS_OK. */
enum status err_set(struct err *err, enum status status, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* Puts "PREFIX: " before the sentence that is already there; returns err->status. */
enum status err_prefix(struct err *err, enum status status, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* clang's analyzer does not look into status.c: what it must know is that a failure is never OK. */
#ifdef __clang_analyzer__
#define err_set(err, status, ...) (err_set((err), (status), __VA_ARGS__), (status))
#define err_prefix(err, status, ...) (err_prefix((err), (status), __VA_ARGS__), (status))
#endif

/* "bad input", "no memory", ...: for logs and for JSON errors. Never NULL. */
const char *status_name(enum status status);

#endif
