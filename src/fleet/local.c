/* fleet/local.c - a fleet of one engine in this process: every call is the engine's. */
#include <stdlib.h>

#include "fleet/internal.h"

struct local {
    struct fleet fleet;
    struct engine *engine; /* borrowed, set once */
};

static struct engine *engine_of(const struct fleet *fleet)
{
    return ((const struct local *)fleet)->engine;
}

static void local_destroy(struct fleet *fleet)
{
    free(fleet);
}

static enum status local_submit(struct fleet *fleet, const struct engine_request *request,
                                uint64_t *id_out, struct err *err)
{
    return engine_submit(engine_of(fleet), request, id_out, err);
}

static void local_cancel(struct fleet *fleet, uint64_t id)
{
    engine_cancel(engine_of(fleet), id);
}

static void local_drain(struct fleet *fleet)
{
    engine_drain(engine_of(fleet));
}

static const struct model_info *local_model_info(const struct fleet *fleet)
{
    return engine_model_info(engine_of(fleet));
}

static json_t *local_report_json(struct fleet *fleet)
{
    return json_pack("{s:o}", "engine", engine_report_json(engine_of(fleet)));
}

static enum status local_update(struct fleet *fleet, const struct engine_update *update,
                                uint32_t *paused_count_out, struct err *err)
{
    return engine_update(engine_of(fleet), update, paused_count_out, err);
}

static enum status local_health(struct fleet *fleet, struct err *err)
{
    return engine_health(engine_of(fleet), err);
}

static const struct fleet_ops local_ops = {
    .destroy = local_destroy,
    .submit = local_submit,
    .cancel = local_cancel,
    .drain = local_drain,
    .model_info = local_model_info,
    .report_json = local_report_json,
    .update = local_update,
    .health = local_health,
};

enum status fleet_create_local(struct engine *engine, struct fleet **fleet_out, struct err *err)
{
    struct local *local = calloc(1, sizeof(*local));

    if (local == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for a fleet");
    local->fleet.ops = &local_ops;
    local->engine = engine;
    *fleet_out = &local->fleet;
    return STATUS_OK;
}
