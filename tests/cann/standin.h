/* tests/cann/standin.h - what tests may ask of the stand-in of CANN's libraries, beyond CANN's ABI.
 *
 * All of these are exported by libascendcl.so; a program that has opened it with RTLD_GLOBAL finds
 * them with dlsym(RTLD_DEFAULT, ...). README.md lists the environment variables that do the same
 * for whole programs. */
#ifndef CANN_STANDIN_H
#define CANN_STANDIN_H

#include <stdbool.h>
#include <stdint.h>

#pragma GCC visibility push(default)

/* Forgets everything: frees memory, ends streams, drops errors, failures, and counters, and reads
 * the environment again, as if the process had just started. No other thread may be inside. */
void cann_standin_reset(void);

/* A counter by name; 0 for a name that never counted. README.md lists them. "calls:aclrtMalloc"
 * counts the calls of one function, "calls" those of all. */
uint64_t cann_standin_counter(const char *name);

/* Makes the nth call from now (1: the next one) of a function return `code`, or NULL where it
 * returns a pointer. function "*" counts the calls of all. nth 0 takes all failures back. */
void cann_standin_fail(const char *function, uint64_t nth, int code);

/* While held, no stream of any device begins another task. */
void cann_standin_hold(bool held);

/* The text of the first fault: an access by a device that hardware would not survive, or that it
 * would get wrong in silence. NULL when there was none. Valid until the next reset. */
const char *cann_standin_fault(void);

#pragma GCC visibility pop

#endif
