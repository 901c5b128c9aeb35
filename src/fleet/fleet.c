/* fleet/fleet.c - the functions of fleet.h: each asks the kind of fleet it is. */
#include "fleet/fleet.h"

#include "fleet/internal.h"

void fleet_destroy(struct fleet *fleet)
{
    if (fleet != NULL)
        fleet->ops->destroy(fleet);
}

enum status fleet_submit(struct fleet *fleet, const struct engine_request *request,
                         uint64_t *id_out, struct err *err)
{
    return fleet->ops->submit(fleet, request, id_out, err);
}

void fleet_cancel(struct fleet *fleet, uint64_t id)
{
    fleet->ops->cancel(fleet, id);
}

void fleet_drain(struct fleet *fleet)
{
    fleet->ops->drain(fleet);
}

const struct model_info *fleet_model_info(const struct fleet *fleet)
{
    return fleet->ops->model_info(fleet);
}

json_t *fleet_report_json(struct fleet *fleet)
{
    return fleet->ops->report_json(fleet);
}

enum status fleet_update(struct fleet *fleet, const struct engine_update *update,
                         uint32_t *paused_count_out, struct err *err)
{
    return fleet->ops->update(fleet, update, paused_count_out, err);
}

enum status fleet_health(struct fleet *fleet, struct err *err)
{
    return fleet->ops->health(fleet, err);
}
