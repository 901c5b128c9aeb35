/* fleet/message.c - frames, and the small messages; see message.h. request_message.c has the two
 * large ones, update_message.c those of a live update. */
#include "fleet/message.h"

#include <inttypes.h>
#include <string.h>

#include "base/json.h"
#include "base/utf8.h"

#define WHAT "a message between ranks"
#define HEADER_BYTES 4

static const char *const op_names[FLEET__OP_COUNT] = {
    [FLEET__HELLO] = "hello",   [FLEET__WELCOME] = "welcome", [FLEET__READY] = "ready",
    [FLEET__FAILED] = "failed", [FLEET__BEAT] = "beat",       [FLEET__SUBMIT] = "submit",
    [FLEET__CANCEL] = "cancel", [FLEET__OUTPUT] = "output",   [FLEET__ASK] = "ask",
    [FLEET__REPORT] = "report", [FLEET__UPDATE] = "update",   [FLEET__UPDATED] = "updated",
    [FLEET__AGREED] = "agreed", [FLEET__LEAVE] = "leave",
};

/* -- frames ------------------------------------------------------------------------------------ */

static int append_json(const char *bytes, size_t size, void *user)
{
    return buf_append(user, bytes, size, NULL) == STATUS_OK ? 0 : -1;
}

enum status fleet__frame_write(json_t *json, struct buf *out, struct err *err)
{
    const size_t begin = out->size;
    enum status st = buf_append(out, "\0\0\0", HEADER_BYTES, err);
    size_t size;

    if (st == STATUS_OK && (json == NULL || json_dump_callback(json, append_json, out,
                                                               JSON_COMPACT) != 0))
        st = err_set(err, STATUS_NO_MEMORY, "no memory for a message to another process");
    json_decref(json);
    size = out->size - begin;
    if (st == STATUS_OK && size - HEADER_BYTES > FLEET__FRAME_BYTES_MAX)
        st = err_set(err, STATUS_BAD_INPUT,
                     "a message to another process of %zu bytes; at most %zu are sent",
                     size - HEADER_BYTES, (size_t)FLEET__FRAME_BYTES_MAX);
    if (st != STATUS_OK) {
        out->size = begin;
        return st;
    }
    size -= HEADER_BYTES;
    for (int i = 0; i < HEADER_BYTES; i++)
        out->data[begin + (size_t)i] = (char)(size >> (8 * i) & 0xff);
    return STATUS_OK;
}

enum status fleet__frame_find(const char *data, size_t size, size_t limit, bool *whole_out,
                              size_t *used_out, struct err *err)
{
    size_t body = 0;

    *whole_out = false;
    if (size < HEADER_BYTES)
        return STATUS_OK;
    for (int i = 0; i < HEADER_BYTES; i++)
        body |= (size_t)(unsigned char)data[i] << (8 * i);
    if (body == 0 || body > limit)
        return err_set(err, STATUS_BAD_INPUT, WHAT " of %zu bytes; it may have 1 to %zu", body,
                       limit);
    *whole_out = size - HEADER_BYTES >= body;
    *used_out = HEADER_BYTES + body;
    return STATUS_OK;
}

enum status fleet__frame_read(const char *frame, size_t size, enum fleet__op *op_out,
                              json_t **json_out, struct err *err)
{
    const char *name = NULL;
    json_t *json = NULL;
    enum status st = json_read(frame + HEADER_BYTES, size - HEADER_BYTES, WHAT, &json, err);

    if (st != STATUS_OK)
        return st;
    if (json_is_object(json))
        st = json_get_string(json, "op", WHAT, &name, err);
    for (int i = 0; st == STATUS_OK && name != NULL && i < FLEET__OP_COUNT; i++) {
        if (strcmp(name, op_names[i]) == 0) {
            *op_out = (enum fleet__op)i;
            *json_out = json;
            return STATUS_OK;
        }
    }
    json_decref(json);
    return st != STATUS_OK ? st : err_set(err, STATUS_BAD_INPUT, WHAT " of an unknown kind");
}

json_t *fleet__text_json(const char *text, size_t size)
{
    json_t *json = json_stringn(text, size); /* NULL, too, when it is not UTF-8 */
    struct buf clean;
    enum status st = STATUS_OK;

    if (json != NULL)
        return json;
    buf_init(&clean, size * 3); /* of each byte at most a replacement character */
    for (size_t at = 0; at < size && st == STATUS_OK;) {
        uint32_t code_point = 0;
        char bytes[4];
        at += utf8_decode(text + at, size - at, &code_point, NULL);
        st = buf_append(&clean, bytes, utf8_encode(code_point, bytes), NULL);
    }
    if (st == STATUS_OK)
        json = json_stringn(clean.data, clean.size);
    buf_deinit(&clean);
    return json;
}

json_t *fleet__message(enum fleet__op op)
{
    return json_pack("{s:s}", "op", op_names[op]);
}

json_t *fleet__message_id(enum fleet__op op, uint64_t id)
{
    return json_pack("{s:s, s:I}", "op", op_names[op], "id", (json_int_t)id);
}

enum status fleet__id_read(const json_t *json, uint64_t *id_out, struct err *err)
{
    int64_t id = 0;
    enum status st = json_get_int_required(json, "id", WHAT, 0, INT64_MAX, &id, err);

    if (st == STATUS_OK)
        *id_out = (uint64_t)id;
    return st;
}

/* -- hello ------------------------------------------------------------------------------------- */

json_t *fleet__hello_json(const struct fleet__hello *hello)
{
    return json_pack("{s:s, s:i, s:s, s:I, s:I, s:o, s:o}", "op", op_names[FLEET__HELLO],
                     "protocol", FLEET__PROTOCOL, "token", hello->token, "rank",
                     (json_int_t)hello->rank,
                     "pid", (json_int_t)hello->pid, "host",
                     fleet__text_json(hello->host, strlen(hello->host)), "machine",
                     fleet__text_json(hello->machine, strlen(hello->machine)));
}

static enum status name_read(const json_t *json, const char *key, char *out, size_t out_size,
                             struct err *err)
{
    const char *text = "";
    enum status st = json_get_string(json, key, WHAT, &text, err);

    if (st == STATUS_OK && strlen(text) >= out_size)
        st = err_set(err, STATUS_BAD_INPUT, WHAT ": \"%s\" has %zu bytes, at most %zu fit", key,
                     strlen(text), out_size - 1);
    if (st == STATUS_OK)
        memcpy(out, text, strlen(text) + 1);
    return st;
}

enum status fleet__hello_read(const json_t *json, struct fleet__hello *hello_out, struct err *err)
{
    int64_t protocol = 0, rank = 0;
    enum status st;

    *hello_out = (struct fleet__hello){ 0 };
    st = json_get_int_required(json, "protocol", WHAT, 0, INT64_MAX, &protocol, err);
    if (st == STATUS_OK && protocol != FLEET__PROTOCOL)
        st = err_set(err, STATUS_BAD_INPUT,
                     "a rank speaks protocol %" PRId64 ", %d is wanted: the programs differ",
                     protocol, FLEET__PROTOCOL);
    if (st == STATUS_OK)
        st = name_read(json, "token", hello_out->token, sizeof(hello_out->token), err);
    if (st == STATUS_OK)
        st = name_read(json, "host", hello_out->host, sizeof(hello_out->host), err);
    if (st == STATUS_OK)
        st = name_read(json, "machine", hello_out->machine, sizeof(hello_out->machine), err);
    if (st == STATUS_OK)
        st = json_get_int_required(json, "rank", WHAT, 0, UINT16_MAX, &rank, err);
    if (st == STATUS_OK)
        st = json_get_int_required(json, "pid", WHAT, 1, INT32_MAX, &hello_out->pid, err);
    if (st == STATUS_OK && strlen(hello_out->token) != FLEET__TOKEN_HEX)
        st = err_set(err, STATUS_BAD_INPUT, WHAT ": \"token\" has %zu characters, not %d",
                     strlen(hello_out->token), FLEET__TOKEN_HEX);
    hello_out->rank = (uint32_t)rank;
    return st;
}

/* -- ready ------------------------------------------------------------------------------------- */

/* The numbers of struct model_info, by name. */
struct number {
    const char *key;
    size_t offset;
    bool is_64;
};
#define NUMBER(field) { #field, offsetof(struct model_info, field), \
                        sizeof(((struct model_info *)0)->field) == 8 }
static const struct number numbers[] = {
    NUMBER(layer_count),     NUMBER(vocab_size),         NUMBER(hidden_size),
    NUMBER(context_length),  NUMBER(parameter_count),    NUMBER(weight_bytes),
    NUMBER(kv_page_size),    NUMBER(kv_page_count),      NUMBER(kv_bytes_per_token),
    NUMBER(scratch_bytes),   NUMBER(step_row_count_max), NUMBER(step_sequence_count_max),
    NUMBER(sliding_window),  NUMBER(window_layer_count), NUMBER(kv_window_bytes_per_token),
    NUMBER(kv_window_page_count), NUMBER(kv_window_pages_each), NUMBER(kv_dtype),
};
#define NUMBER_COUNT (sizeof(numbers) / sizeof(numbers[0]))

static json_t *info_json(const struct model_info *info)
{
    json_t *eos = json_array();
    json_t *json;

    for (uint32_t i = 0; i < info->eos_count; i++)
        (void)json_array_append_new(eos, json_integer(info->eos_ids[i]));
    json = json_pack("{s:s, s:s, s:i, s:i, s:o}", "architecture", info->architecture, "model_type",
                     info->model_type, "weight_dtype", (int)info->weight_dtype, "bos_id",
                     (int)info->bos_id, "eos_ids", eos);
    for (size_t i = 0; json != NULL && i < NUMBER_COUNT; i++) {
        const char *at = (const char *)info + numbers[i].offset;
        uint32_t small = 0;
        uint64_t large = 0;

        memcpy(numbers[i].is_64 ? (void *)&large : (void *)&small, at, numbers[i].is_64 ? 8 : 4);
        (void)json_object_set_new(json, numbers[i].key,
                                  json_integer((json_int_t)(numbers[i].is_64 ? large : small)));
    }
    return json;
}

static enum status numbers_read(const json_t *json, struct model_info *info, struct err *err)
{
    enum status st = STATUS_OK;

    for (size_t i = 0; i < NUMBER_COUNT && st == STATUS_OK; i++) {
        char *at = (char *)info + numbers[i].offset;
        int64_t value = 0;
        uint32_t small;

        st = json_get_int_required(json, numbers[i].key, WHAT, 0,
                                   numbers[i].is_64 ? INT64_MAX : UINT32_MAX, &value, err);
        small = (uint32_t)value;
        memcpy(at, numbers[i].is_64 ? (void *)&value : (void *)&small, numbers[i].is_64 ? 8 : 4);
    }
    if (st == STATUS_OK && (info->context_length == 0 || info->vocab_size == 0 ||
                            info->kv_page_size == 0 || info->kv_page_count == 0 ||
                            info->kv_dtype >= DTYPE_COUNT))
        st = err_set(err, STATUS_BAD_INPUT, WHAT ": a model of no size");
    return st;
}

static enum status eos_read(const json_t *json, struct model_info *info, struct err *err)
{
    const json_t *ids = NULL;
    enum status st = json_get_array(json, "eos_ids", WHAT, &ids, err);

    if (st != STATUS_OK)
        return st;
    if (json_array_size(ids) > MODEL_EOS_MAX)
        return err_set(err, STATUS_BAD_INPUT, WHAT ": %zu end-of-text ids, at most %d fit",
                       json_array_size(ids), MODEL_EOS_MAX);
    for (size_t i = 0; i < json_array_size(ids); i++)
        info->eos_ids[i] = (int32_t)json_integer_value(json_array_get(ids, i));
    info->eos_count = (uint32_t)json_array_size(ids);
    return STATUS_OK;
}

static enum status info_read(const json_t *json, struct model_info *info_out, struct err *err)
{
    struct model_info info = { 0 };
    int64_t dtype = 0, bos = -1;
    enum status st = name_read(json, "architecture", info.architecture,
                               sizeof(info.architecture), err);

    if (st == STATUS_OK)
        st = name_read(json, "model_type", info.model_type, sizeof(info.model_type), err);
    if (st == STATUS_OK)
        st = json_get_int_required(json, "weight_dtype", WHAT, 0, DTYPE_COUNT - 1, &dtype, err);
    if (st == STATUS_OK)
        st = json_get_int_required(json, "bos_id", WHAT, -1, INT32_MAX, &bos, err);
    if (st == STATUS_OK)
        st = numbers_read(json, &info, err);
    if (st == STATUS_OK)
        st = eos_read(json, &info, err);
    if (st != STATUS_OK)
        return st;
    info.weight_dtype = (enum dtype)dtype;
    info.bos_id = (int32_t)bos;
    *info_out = info;
    return STATUS_OK;
}

/* NULL where there is none; *shares_out is borrowed from the json. */
static enum status shares_read(const json_t *json, const char **shares_out, struct err *err)
{
    const char *shares = NULL;
    enum status st = json_get_string(json, "shares", WHAT, &shares, err);

    if (st == STATUS_OK && shares != NULL && strlen(shares) >= FLEET__SHARES_BYTES_MAX)
        st = err_set(err, STATUS_BAD_INPUT, WHAT ": \"shares\" of %zu bytes, at most %d fit",
                     strlen(shares), FLEET__SHARES_BYTES_MAX - 1);
    if (st == STATUS_OK)
        *shares_out = shares;
    return st;
}

json_t *fleet__ready_json(const struct model_info *info, uint32_t running_max, const char *shares)
{
    json_t *json = info_json(info);

    if (json == NULL)
        return NULL;
    (void)json_object_set_new(json, "op", json_string(op_names[FLEET__READY]));
    (void)json_object_set_new(json, "running_max", json_integer(running_max));
    if (shares != NULL)
        (void)json_object_set_new(json, "shares", json_string(shares));
    return json;
}

enum status fleet__ready_read(const json_t *json, struct model_info *info_out,
                              uint32_t *running_max_out, const char **shares_out,
                              struct err *err)
{
    int64_t running_max = 0;
    enum status st = json_get_int_required(json, "running_max", WHAT, 1, UINT32_MAX, &running_max,
                                           err);

    if (st == STATUS_OK)
        st = info_read(json, info_out, err);
    if (st == STATUS_OK)
        st = shares_read(json, shares_out, err);
    if (st == STATUS_OK)
        *running_max_out = (uint32_t)running_max;
    return st;
}

/* -- welcome ----------------------------------------------------------------------------------- */

json_t *fleet__welcome_json(const char *token, const struct fleet_rank_weights *weights,
                            const char *shares)
{
    json_t *json = fleet__message(FLEET__WELCOME), *own;

    if (json == NULL)
        return NULL;
    (void)json_object_set_new(json, "token", json_string(token));
    if (shares != NULL)
        (void)json_object_set_new(json, "shares", json_string(shares));
    if (weights == NULL)
        return json;
    own = json_pack("{s:I, s:o, s:o*, s:o}", "serial", (json_int_t)weights->serial, "model_path",
                    fleet__text_json(weights->model_path, strlen(weights->model_path)),
                    "weight_version",
                    weights->weight_version == NULL
                        ? NULL
                        : fleet__text_json(weights->weight_version,
                                           strlen(weights->weight_version)),
                    "info", info_json(&weights->info));
    if (own == NULL || json_object_set_new(json, "weights", own) != 0) {
        json_decref(json); /* a rank that loaded others would be worse than none */
        return NULL;
    }
    return json;
}

enum status fleet__welcome_read(const json_t *json, const char **token_out, bool *has_weights_out,
                                struct fleet_rank_weights *weights_out, const char **shares_out,
                                struct err *err)
{
    const json_t *own = json_object_get(json, "weights");
    struct fleet_rank_weights weights = { .model_path = NULL };
    int64_t serial = 0;
    const char *token = NULL;
    enum status st = json_get_string(json, "token", WHAT, &token, err);

    if (st == STATUS_OK && (token == NULL || strlen(token) != FLEET__TOKEN_HEX))
        st = err_set(err, STATUS_BAD_INPUT, WHAT ": no token of %d characters", FLEET__TOKEN_HEX);
    if (st == STATUS_OK)
        st = shares_read(json, shares_out, err);
    if (st == STATUS_OK && own != NULL)
        st = json_get_string(own, "model_path", WHAT, &weights.model_path, err);
    if (st == STATUS_OK && own != NULL && weights.model_path == NULL)
        st = err_set(err, STATUS_BAD_INPUT, WHAT ": weights without a \"model_path\"");
    if (st == STATUS_OK && own != NULL)
        st = json_get_string(own, "weight_version", WHAT, &weights.weight_version, err);
    if (st == STATUS_OK && own != NULL)
        st = json_get_int_required(own, "serial", WHAT, 1, INT64_MAX, &serial, err);
    if (st == STATUS_OK && own != NULL)
        st = info_read(json_object_get(own, "info"), &weights.info, err);
    if (st != STATUS_OK)
        return st;
    *token_out = token;
    *has_weights_out = own != NULL;
    weights.serial = (uint64_t)serial;
    *weights_out = weights;
    return STATUS_OK;
}

/* -- a status ---------------------------------------------------------------------------------- */

json_t *fleet__status_json(enum fleet__op op, uint64_t id, enum status status,
                           const char *message)
{
    json_t *json = fleet__message_id(op, id);

    if (json == NULL)
        return NULL;
    (void)json_object_set_new(json, "status", json_integer(status));
    (void)json_object_set_new(json, "message", fleet__text_json(message, strlen(message)));
    return json;
}

enum status fleet__status_read(const json_t *json, enum status *status_out,
                               struct err *said_out, struct err *err)
{
    const char *message = "";
    int64_t status = 0;
    enum status st = json_get_int_required(json, "status", WHAT, STATUS_OK, STATUS_CANCELED,
                                           &status, err);

    if (st == STATUS_OK)
        st = json_get_string(json, "message", WHAT, &message, err);
    if (st != STATUS_OK)
        return st;
    *status_out = (enum status)status;
    if (status != STATUS_OK)
        (void)err_set(said_out, (enum status)status, "%s", message);
    return STATUS_OK;
}
