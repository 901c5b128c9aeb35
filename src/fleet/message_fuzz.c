/* fleet/message_fuzz.c - bytes from another process: any of them may be sent, and none may be
 * believed. The input is a connection's bytes; what is accepted keeps the readers' promises, and
 * what was read is written and read again as the same. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "fleet/message.h"

#define LIMIT_BYTES (1 << 20)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check(bool good)
{
    if (!good)
        abort();
}

static void check_refused(enum status st, const struct err *err)
{
    check(st != STATUS_OK && err->status == st && err->message[0] != '\0');
}

static void check_submit(const json_t *json)
{
    struct fleet__submit submit, again;
    struct engine_request request = { 0 };
    struct err err;
    json_t *written;
    enum status st = fleet__submit_read(json, &submit, &err);

    if (st != STATUS_OK) {
        check_refused(st, &err);
        return;
    }
    request.prompt_ids = submit.ids;
    request.prompt_count = submit.id_count;
    request.params = &submit.params;
    request.token_by_token = submit.token_by_token;
    if (sampling_params_check(&submit.params, &err) == STATUS_OK) {
        written = fleet__submit_json(submit.id, &request);
        check(fleet__submit_read(written, &again, &err) == STATUS_OK);
        check(again.id == submit.id && again.id_count == submit.id_count);
        check(again.params.seed == submit.params.seed);
        check(again.params.max_new_tokens == submit.params.max_new_tokens);
        check(again.params.temperature == submit.params.temperature);
        check(again.params.stop_count == submit.params.stop_count);
        fleet__submit_deinit(&again);
        json_decref(written);
    }
    fleet__submit_deinit(&submit);
}

static void check_output(const json_t *json)
{
    struct fleet__output read, again;
    struct err err;
    json_t *written;
    enum status st = fleet__output_read(json, &read, &err);

    if (st != STATUS_OK) {
        check_refused(st, &err);
        return;
    }
    check(read.output.message != NULL && read.output.text != NULL);
    check(read.output.finish != FINISH_ABORT || read.output.status != STATUS_OK);
    written = fleet__output_json(read.id, &read.output);
    check(fleet__output_read(written, &again, &err) == STATUS_OK);
    check(again.output.text_size == read.output.text_size);
    check(memcmp(again.output.text, read.output.text, read.output.text_size) == 0);
    check(again.output.id_count == read.output.id_count);
    check(again.output.finish == read.output.finish);
    fleet__output_deinit(&again);
    json_decref(written);
    fleet__output_deinit(&read);
}

static void check_welcome(const json_t *json)
{
    struct fleet_rank_weights weights;
    const char *token = NULL, *shares = NULL;
    bool has_weights = false;
    struct err err;
    enum status st = fleet__welcome_read(json, &token, &has_weights, &weights, &shares, &err);

    if (st != STATUS_OK) {
        check_refused(st, &err);
        return;
    }
    check(strlen(token) == FLEET__TOKEN_HEX);
    check(shares == NULL || strlen(shares) < FLEET__SHARES_BYTES_MAX);
    check(!has_weights || (weights.model_path != NULL && weights.info.context_length > 0));
}

static void check_update(const json_t *json)
{
    struct engine_update update, again;
    uint64_t id = 0, id_again = 0;
    struct err err;
    json_t *written;
    enum status st = fleet__update_read(json, &id, &update, &err);

    if (st != STATUS_OK) {
        check_refused(st, &err);
        return;
    }
    written = fleet__update_json(id, &update);
    check(fleet__update_read(written, &id_again, &again, &err) == STATUS_OK && id == id_again);
    check(strcmp(update.model_path, again.model_path) == 0);
    check(update.pause == again.pause && update.abort_all == again.abort_all);
    json_decref(written);
}

static void check_step(enum fleet__op op, const json_t *json)
{
    struct fleet__step step, again;
    struct err err;
    json_t *written;
    enum status st = fleet__step_read(json, &step, &err);

    if (st != STATUS_OK) {
        check_refused(st, &err);
        return;
    }
    check(step.status == STATUS_OK || step.said.status == step.status);
    written = fleet__step_json(op, &step);
    check(fleet__step_read(written, &again, &err) == STATUS_OK);
    check(again.id == step.id && again.step == step.step && again.status == step.status);
    check(again.paused_count == step.paused_count);
    json_decref(written);
}

static void check_message(enum fleet__op op, const json_t *json)
{
    struct fleet__hello hello;
    struct model_info info;
    struct err err, said;
    enum status status = STATUS_OK;
    const char *shares = NULL;
    uint32_t running_max = 0;

    if (op == FLEET__SUBMIT)
        check_submit(json);
    else if (op == FLEET__OUTPUT)
        check_output(json);
    else if (op == FLEET__WELCOME)
        check_welcome(json);
    else if (op == FLEET__UPDATE)
        check_update(json);
    else if (op == FLEET__UPDATED || op == FLEET__AGREED)
        check_step(op, json);
    else if (op == FLEET__HELLO && fleet__hello_read(json, &hello, &err) == STATUS_OK)
        check(strlen(hello.token) == FLEET__TOKEN_HEX && hello.pid > 0);
    else if (op == FLEET__READY &&
             fleet__ready_read(json, &info, &running_max, &shares, &err) == STATUS_OK)
        check(running_max > 0 && info.kv_page_size > 0 && info.eos_count <= MODEL_EOS_MAX);
    else if (op == FLEET__FAILED && fleet__status_read(json, &status, &said, &err) == STATUS_OK)
        check(status == STATUS_OK || said.status == status);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const char *at = (const char *)data;

    while (size > 0) {
        enum fleet__op op = FLEET__BEAT;
        json_t *json = NULL;
        bool whole = false;
        size_t used = 0;
        struct err err;
        enum status st = fleet__frame_find(at, size, LIMIT_BYTES, &whole, &used, &err);

        if (st != STATUS_OK)
            check_refused(st, &err);
        if (st != STATUS_OK || !whole)
            break;
        st = fleet__frame_read(at, used, &op, &json, &err);
        if (st == STATUS_OK)
            check_message(op, json);
        else
            check_refused(st, &err);
        json_decref(json);
        at += used;
        size -= used;
    }
    return 0;
}
