/* fleet/update_message.c - the messages of a live update; see message.h. */
#include <inttypes.h>
#include <string.h>

#include "base/json.h"
#include "fleet/message.h"

#define WHAT "a message between ranks"

static const char *const step_names[OFFLOAD_UPDATE_STEP_COUNT] = {
    [OFFLOAD_UPDATE_PREPARED] = "prepared", [OFFLOAD_UPDATE_HELD] = "held",
    [OFFLOAD_UPDATE_CHANGED] = "changed",   [OFFLOAD_UPDATE_RESTORED] = "restored",
    [OFFLOAD_UPDATE_ENDED] = "ended",
};

/* -- update ------------------------------------------------------------------------------------ */

json_t *fleet__update_json(uint64_t id, const struct engine_update *update)
{
    json_t *json = fleet__message_id(FLEET__UPDATE, id);

    if (json == NULL)
        return NULL;
    (void)json_object_set_new(json, "model_path", fleet__text_json(update->model_path,
                                                                   strlen(update->model_path)));
    if (update->weight_version != NULL)
        (void)json_object_set_new(json, "weight_version",
                                  fleet__text_json(update->weight_version,
                                                   strlen(update->weight_version)));
    (void)json_object_set_new(json, "pause", json_boolean(update->pause));
    (void)json_object_set_new(json, "abort_all", json_boolean(update->abort_all));
    return json;
}

enum status fleet__update_read(const json_t *json, uint64_t *id_out,
                               struct engine_update *update_out, struct err *err)
{
    struct engine_update update = { .model_path = NULL };
    enum status st = fleet__id_read(json, id_out, err);

    if (st == STATUS_OK)
        st = json_get_string(json, "model_path", WHAT, &update.model_path, err);
    if (st == STATUS_OK && update.model_path == NULL)
        st = err_set(err, STATUS_BAD_INPUT, WHAT ": an update without a \"model_path\"");
    if (st == STATUS_OK)
        st = json_get_string(json, "weight_version", WHAT, &update.weight_version, err);
    if (st == STATUS_OK)
        st = json_get_bool(json, "pause", WHAT, &update.pause, err);
    if (st == STATUS_OK)
        st = json_get_bool(json, "abort_all", WHAT, &update.abort_all, err);
    if (st == STATUS_OK)
        *update_out = update;
    return st;
}

/* -- its steps --------------------------------------------------------------------------------- */

const char *fleet__step_name(enum offload_update_step step)
{
    return step_names[step];
}

json_t *fleet__step_json(enum fleet__op op, const struct fleet__step *step)
{
    json_t *json = fleet__status_json(op, step->id, step->status,
                                      step->status == STATUS_OK ? "" : step->said.message);

    if (json == NULL)
        return NULL;
    (void)json_object_set_new(json, "step", json_string(step_names[step->step]));
    (void)json_object_set_new(json, "paused", json_integer(step->paused_count));
    return json;
}

enum status fleet__step_read(const json_t *json, struct fleet__step *step_out, struct err *err)
{
    struct fleet__step step = { .status = STATUS_OK };
    const char *name = "";
    int64_t paused_count = 0;
    int found = -1;
    enum status st = fleet__id_read(json, &step.id, err);

    if (st == STATUS_OK)
        st = fleet__status_read(json, &step.status, &step.said, err);
    if (st == STATUS_OK)
        st = json_get_string(json, "step", WHAT, &name, err);
    if (st == STATUS_OK)
        st = json_get_int_required(json, "paused", WHAT, 0, INT32_MAX, &paused_count, err);
    if (st != STATUS_OK)
        return st;
    for (int i = 0; i < OFFLOAD_UPDATE_STEP_COUNT && name != NULL; i++)
        if (strcmp(name, step_names[i]) == 0)
            found = i;
    if (found < 0)
        return err_set(err, STATUS_BAD_INPUT, WHAT ": an update has no step \"%.32s\"",
                       name == NULL ? "" : name);
    step.step = (enum offload_update_step)found;
    step.paused_count = (uint32_t)paused_count;
    *step_out = step;
    return STATUS_OK;
}
