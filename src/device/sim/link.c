/* device/sim/link.c - copies at a set speed: latency + size / bandwidth each, one after the other.
 *
 * A link has a clock of its own, free_ns: when the last copy that it let in ends. The next one
 * starts there, or when it was ready if that is later, so copies that wait for each other lose
 * nothing to late wake-ups of this thread: what is late is caught up. The bytes are really copied,
 * a piece at a time, spread over the copy's time as a DMA engine would, and the thread sleeps in
 * between.
 *
 *     start       + latency                              end
 *       |             | piece | piece | piece | piece     |
 *                             ^ done not before its share of the time
 *
 * A link that is set faster than this machine copies is as fast as the machine. */
#include <assert.h>
#include <string.h>
#include <time.h>

#include "base/clock.h"
#include "device/sim/internal.h"

#define NS_PER_S UINT64_C(1000000000)
#define PIECE_BYTES_MIN (UINT64_C(256) << 10)
#define PIECE_NS_MIN UINT64_C(500000) /* shorter sleeps cost more in wake-ups than they smooth */

void sim__link_init(struct sim_link *link, uint64_t bytes_per_s, uint64_t latency_ns)
{
    *link = (struct sim_link){ .bytes_per_s = bytes_per_s, .latency_ns = latency_ns };
    pthread_mutex_init(&link->lock, NULL);
}

void sim__link_deinit(struct sim_link *link)
{
    pthread_mutex_destroy(&link->lock);
}

static uint64_t transfer_ns(const struct sim_link *link, uint64_t size_bytes)
{
    if (link->bytes_per_s == 0)
        return 0;
    return (uint64_t)((double)size_bytes / (double)link->bytes_per_s * (double)NS_PER_S + 0.5);
}

struct sim_slice sim__link_enter(struct sim_link *link, uint64_t ready_ns, uint64_t size_bytes)
{
    struct sim_slice slice;

    pthread_mutex_lock(&link->lock);
    slice.start_ns = link->free_ns > ready_ns ? link->free_ns : ready_ns;
    slice.end_ns = slice.start_ns + link->latency_ns + transfer_ns(link, size_bytes);
    link->free_ns = slice.end_ns;
    pthread_mutex_unlock(&link->lock);
    return slice;
}

/* Wakes up to some tens of microseconds late, which the next piece catches up; never spins. */
static void sleep_until(uint64_t deadline_ns)
{
    const struct timespec wake = {
        .tv_sec = (time_t)(deadline_ns / NS_PER_S),
        .tv_nsec = (long)(deadline_ns % NS_PER_S),
    };

    if (clock_now_ns() < deadline_ns)
        (void)clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &wake, NULL);
}

static uint64_t piece_bytes(const struct sim_link *link, uint64_t size_bytes)
{
    uint64_t piece;

    if (link->bytes_per_s == 0)
        return size_bytes;
    piece = (uint64_t)((double)link->bytes_per_s * ((double)PIECE_NS_MIN / (double)NS_PER_S));
    return piece < PIECE_BYTES_MIN ? PIECE_BYTES_MIN : piece;
}

void sim__link_copy(const struct sim_link *link, struct sim_slice slice, void *dst,
                    const void *src, uint64_t size_bytes)
{
    const uint64_t piece = piece_bytes(link, size_bytes);
    uint64_t done = 0;

    while (done < size_bytes) {
        const uint64_t left = size_bytes - done;
        const uint64_t count = left < piece ? left : piece;
        if (link->bytes_per_s != 0)
            sleep_until(slice.start_ns + link->latency_ns + transfer_ns(link, done));
        memcpy((char *)dst + done, (const char *)src + done, count);
        done += count;
    }
    clock_sleep_until_ns(slice.end_ns);
}
