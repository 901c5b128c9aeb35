/* offload/report/internal.h - what the files of the report share: the counters of one moment,
 * summed up by home, and by what belongs together. */
#ifndef LIGHTER_OFFLOAD_REPORT_INTERNAL_H
#define LIGHTER_OFFLOAD_REPORT_INTERNAL_H

#include "offload/internal.h"

/* Units of one part of one layer that are cut from it, tiles or experts; or one unit that is
 * whole. */
struct offload__group {
    size_t first, count;     /* the first, and how many units */
    char name[48];           /* "layers.3.ffn", "layers.3.experts" */
    enum offload_home home;
    uint64_t size_bytes;     /* of all records */
    struct offload__unit_counters sum;
    bool is_told;            /* log.c's */
};

struct offload__snapshot {
    struct offload__counters totals;
    struct offload__unit_counters sum;    /* over the units */
    struct offload__unit_counters homes[OFFLOAD_HOME_COUNT];
    uint64_t home_bytes[OFFLOAD_HOME_COUNT]; /* of the records */
    size_t home_units[OFFLOAD_HOME_COUNT];
    struct offload__unit_counters *units; /* [unit_count] */
    enum offload_home *unit_homes;        /* [unit_count] */
    struct offload__group *groups;        /* [group_count] */
    size_t group_count;
    uint64_t moved_own;                   /* of what came from shards, this rank's own */
    uint64_t disk_bytes, disk_busy_ns;    /* the reader's, since the reset */
    uint64_t disk_bytes_per_s;            /* measured; 0: not known */
    uint64_t link_bytes_per_s;            /* as set; 0: not known */
    struct device_replays replays;        /* the device's, since the reset */
};

/* NULL: no memory. Any thread. */
struct offload__snapshot *offload__snapshot_create(const struct offload *offload);
void offload__snapshot_destroy(struct offload__snapshot *snapshot);

static inline double offload__seconds(uint64_t ns)
{
    return (double)ns * 1e-9;
}

/* Over all causes. */
uint64_t offload__stall_ns(const struct offload__unit_counters *counters);
uint64_t offload__compute_ns(const struct offload__snapshot *snapshot);
/* Shares, of the whole run; below 0: not known. */
double offload__link_reached(const struct offload__snapshot *snapshot);
double offload__link_busy_share(const struct offload__snapshot *snapshot);
double offload__link_use_share(const struct offload__snapshot *snapshot);
double offload__disk_reached(const struct offload__snapshot *snapshot);
double offload__disk_busy_share(const struct offload__snapshot *snapshot);
double offload__disk_use_share(const struct offload__snapshot *snapshot);
/* What moved, at the rate of link and disk: no run that moves this can take less. 0: no rate is
 * known. */
double offload__bound_s(const struct offload__snapshot *snapshot);
/* Of what an expert cache was asked for; below 0: nothing was. */
double offload__hit_rate(const struct offload__unit_counters *counters);

#endif
