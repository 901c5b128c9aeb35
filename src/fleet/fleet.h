/* fleet/fleet.h - whoever answers a server's requests: an engine here, or others elsewhere.
 *
 * The server speaks to a fleet as it would to an engine (engine/engine.h): submit, cancel, drain,
 * report. A fleet of one engine in this process passes every call on and adds nothing.
 *
 * Threads: any thread may call these functions. A request's callback comes from one thread of the
 * fleet's at a time, must not block and must not call the fleet, but for fleet_cancel. */
#ifndef LIGHTER_FLEET_FLEET_H
#define LIGHTER_FLEET_FLEET_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"
#include "engine/engine.h"

struct fleet;

/* A fleet of one engine in this process, borrowed until fleet_destroy. */
enum status fleet_create_local(struct engine *engine, struct fleet **fleet_out, struct err *err);
/* Does not touch a local engine. NULL is fine. */
void fleet_destroy(struct fleet *fleet);

/* As engine_submit, engine_cancel and engine_drain. */
enum status fleet_submit(struct fleet *fleet, const struct engine_request *request,
                         uint64_t *id_out, struct err *err);
void fleet_cancel(struct fleet *fleet, uint64_t id);
void fleet_drain(struct fleet *fleet);

/* As engine_model_info: the same for all engines. */
const struct model_info *fleet_model_info(const struct fleet *fleet);
/* What /get_server_info shows beside the options, an object that the caller owns:
 *   engine      engine_report_json
 * and of several engines
 *   dp_size, ranks     one by one
 *   update_waits_for   the step of a live update that not all have come to; absent: none runs */
json_t *fleet_report_json(struct fleet *fleet);
/* As engine_update, by all engines or by none; update->meet must be NULL. */
enum status fleet_update(struct fleet *fleet, const struct engine_update *update,
                         uint32_t *paused_count_out, struct err *err);
/* STATUS_OK while somebody is there to answer; else a sentence. */
enum status fleet_health(struct fleet *fleet, struct err *err);

#endif
