/* fleet/internal.h - what the kinds of fleet have in common. */
#ifndef LIGHTER_FLEET_INTERNAL_H
#define LIGHTER_FLEET_INTERNAL_H

#include "fleet/fleet.h"

/* The functions of fleet.h, one kind of fleet each. */
struct fleet_ops {
    void (*destroy)(struct fleet *fleet);
    enum status (*submit)(struct fleet *fleet, const struct engine_request *request,
                          uint64_t *id_out, struct err *err);
    void (*cancel)(struct fleet *fleet, uint64_t id);
    void (*drain)(struct fleet *fleet);
    const struct model_info *(*model_info)(const struct fleet *fleet);
    json_t *(*report_json)(struct fleet *fleet);
    enum status (*update)(struct fleet *fleet, const struct engine_update *update,
                          uint32_t *paused_count_out, struct err *err);
    enum status (*health)(struct fleet *fleet, struct err *err);
};

/* The first member of each kind's own struct. */
struct fleet {
    const struct fleet_ops *ops;
};

#endif
