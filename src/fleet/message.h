/* fleet/message.h - what the front end and a rank say to each other, as bytes.
 *
 *     frame:    size, 4 bytes, little endian | that many bytes of JSON, an object
 *
 *     rank -> front end                       front end -> rank
 *     hello    token, rank, pid, host ...     welcome  token, weights, shares
 *     ready    info, running_max, shares
 *     failed   status, message, bad_usage
 *     beat                                    beat
 *     output   id, and struct engine_output   submit   id, and struct engine_request
 *                                             cancel   id
 *     report   id, report                     ask      id
 *                                             update   id, and struct engine_update
 *     updated  id, step, status, paused       agreed   id, step, status
 *                                             leave    finalize
 *
 * Every object names its kind in "op". Both sides take what they read for hostile: sizes are
 * bounded, types and ranges checked, and the answer to nonsense is to hang up.
 *
 * "text" is UTF-8; bytes that are not become U+FFFD on the way. Seeds are 64 bits, which JSON's
 * integers here hold as signed ones.
 *
 * An update's steps are offload.h's: at each a rank says that it has come, and how, and is told
 * what all agree on, but for the last. */
#ifndef LIGHTER_FLEET_MESSAGE_H
#define LIGHTER_FLEET_MESSAGE_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/size.h"
#include "engine/engine.h"
#include "fleet/rank.h"

#define FLEET__PROTOCOL 2
#define FLEET__FRAME_BYTES_MAX (64 * MIB)
#define FLEET__HELLO_BYTES_MAX 4096      /* of a frame from somebody who has not said who he is */
#define FLEET__SHARES_BYTES_MAX 256      /* with the NUL */
#define FLEET__TOKEN_HEX 32              /* characters; each side shows the other its own half */
#define FLEET__HOST_BYTES_MAX 256

enum fleet__op {
    FLEET__HELLO, FLEET__WELCOME, FLEET__READY, FLEET__FAILED, FLEET__BEAT, FLEET__SUBMIT,
    FLEET__CANCEL, FLEET__OUTPUT, FLEET__ASK, FLEET__REPORT, FLEET__UPDATE, FLEET__UPDATED,
    FLEET__AGREED, FLEET__LEAVE, FLEET__OP_COUNT
};

/* -- frames -- */

/* Appends a frame of the message to out; takes json, NULL being out of memory. */
enum status fleet__frame_write(json_t *json, struct buf *out, struct err *err);
/* Looks for a frame at the front of data. True when it is whole: *used_out bytes, header and all.
 * A size of 0 or above limit is STATUS_BAD_INPUT. */
enum status fleet__frame_find(const char *data, size_t size, size_t limit, bool *whole_out,
                              size_t *used_out, struct err *err);
/* The object of a whole frame, and its kind. The caller owns *json_out. */
enum status fleet__frame_read(const char *frame, size_t size, enum fleet__op *op_out,
                              json_t **json_out, struct err *err);

/* A JSON string, with U+FFFD for what is not UTF-8. NULL: no memory. */
json_t *fleet__text_json(const char *text, size_t size);
/* An object of this kind, {"op": ...}, to add to. NULL: no memory. */
json_t *fleet__message(enum fleet__op op);
json_t *fleet__message_id(enum fleet__op op, uint64_t id);
enum status fleet__id_read(const json_t *json, uint64_t *id_out, struct err *err);

/* -- hello -- */

struct fleet__hello {
    char token[FLEET__TOKEN_HEX + 1];
    uint32_t rank;
    int64_t pid;
    char host[FLEET__HOST_BYTES_MAX];    /* its name, for people */
    char machine[FLEET__HOST_BYTES_MAX]; /* fleet__machine */
};
json_t *fleet__hello_json(const struct fleet__hello *hello);
enum status fleet__hello_read(const json_t *json, struct fleet__hello *hello_out, struct err *err);

/* -- welcome -- */

/* weights: what a rank shall load when that is not what its command line says; NULL. shares: what
 * another rank of its machine has said when it was ready; NULL. */
json_t *fleet__welcome_json(const char *token, const struct fleet_rank_weights *weights,
                            const char *shares);
/* What it points to is borrowed from the json; *has_weights_out: whether there are any. */
enum status fleet__welcome_read(const json_t *json, const char **token_out, bool *has_weights_out,
                                struct fleet_rank_weights *weights_out, const char **shares_out,
                                struct err *err);

/* -- ready and failed -- */

/* shares: see fleet_rank_serve; NULL. Borrowed from the json where it is read. */
json_t *fleet__ready_json(const struct model_info *info, uint32_t running_max, const char *shares);
enum status fleet__ready_read(const json_t *json, struct model_info *info_out,
                              uint32_t *running_max_out, const char **shares_out,
                              struct err *err);
/* FAILED, before READY or after LEAVE: a status and its sentence. */
json_t *fleet__status_json(enum fleet__op op, uint64_t id, enum status status,
                           const char *message);
/* What the other side failed with becomes *status_out and a sentence in *said_out. */
enum status fleet__status_read(const json_t *json, enum status *status_out,
                               struct err *said_out, struct err *err);

/* -- update -- */

json_t *fleet__update_json(uint64_t id, const struct engine_update *update);
/* Strings are borrowed from the json. */
enum status fleet__update_read(const json_t *json, uint64_t *id_out,
                               struct engine_update *update_out, struct err *err);

const char *fleet__step_name(enum offload_update_step step);
/* UPDATED and AGREED. */
struct fleet__step {
    uint64_t id;
    enum offload_update_step step;
    enum status status;
    struct err said;             /* when status is a failure */
    uint32_t paused_count;       /* of UPDATED */
};
json_t *fleet__step_json(enum fleet__op op, const struct fleet__step *step);
enum status fleet__step_read(const json_t *json, struct fleet__step *step_out, struct err *err);

/* -- submit -- */

/* `params` is a copy whose strings are borrowed from the json; ids are owned. */
struct fleet__submit {
    uint64_t id;
    int32_t *ids;
    size_t id_count;
    struct sampling_params params;
    bool token_by_token;
};
json_t *fleet__submit_json(uint64_t id, const struct engine_request *request);
enum status fleet__submit_read(const json_t *json, struct fleet__submit *submit_out,
                               struct err *err);
void fleet__submit_deinit(struct fleet__submit *submit);

/* -- output -- */

/* `output` points into the json, and into `ids` and `logprobs`, which are owned. */
struct fleet__output {
    uint64_t id;
    struct engine_output output;
    int32_t *ids;
    struct token_logprobs *logprobs;
};
json_t *fleet__output_json(uint64_t id, const struct engine_output *output);
enum status fleet__output_read(const json_t *json, struct fleet__output *output_out,
                               struct err *err);
void fleet__output_deinit(struct fleet__output *output);

#endif
