/* base/clock.h - one monotonic clock for schedules, counters and traces. */
#ifndef LIGHTER_BASE_CLOCK_H
#define LIGHTER_BASE_CLOCK_H

#include <stdint.h>

/* Nanoseconds on CLOCK_MONOTONIC; never goes back. */
uint64_t clock_now_ns(void);

/* Returns once clock_now_ns() >= deadline_ns: sleeps, and spins through the last 60 microseconds,
 * because a sleep alone wakes late by about as much. */
void clock_sleep_until_ns(uint64_t deadline_ns);

#endif
