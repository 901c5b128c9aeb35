/* base/clock.c - see clock.h. */
#include "base/clock.h"

#include <time.h>

#define NS_PER_S UINT64_C(1000000000)
#define SPIN_NS UINT64_C(60000)

uint64_t clock_now_ns(void)
{
    struct timespec now;

    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * NS_PER_S + (uint64_t)now.tv_nsec;
}

void clock_sleep_until_ns(uint64_t deadline_ns)
{
    while (clock_now_ns() + SPIN_NS < deadline_ns) {
        const uint64_t wake_ns = deadline_ns - SPIN_NS;
        const struct timespec wake = {
            .tv_sec = (time_t)(wake_ns / NS_PER_S),
            .tv_nsec = (long)(wake_ns % NS_PER_S),
        };
        (void)clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &wake, NULL);
    }
    while (clock_now_ns() < deadline_ns)
        ; /* the last microseconds */
}
