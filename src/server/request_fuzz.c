/* server/request_fuzz.c - the body of POST /generate, from outside: never a crash, and what is
 * refused is refused with a sentence that makes a well-formed error. */
#include <assert.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "server/internal.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check(bool right)
{
    if (!right)
        abort();
}

static void check_accepted(const struct generate_request *request,
                           const struct generate_limits *limits)
{
    check(request->prompt_count >= 1 && request->prompt_count <= limits->prompt_count_max);
    check(request->is_list || request->prompt_count == 1);
    for (size_t i = 0; i < request->prompt_count; i++) {
        const struct generate_prompt *prompt = &request->prompts[i];
        check((prompt->text != NULL) != (prompt->ids != NULL));
        check(prompt->id_count <= limits->prompt_token_count_max);
        check(prompt->rid[0] != '\0' && strlen(prompt->rid) < sizeof(prompt->rid));
    }
}

static void check_refused(enum status status, const struct err *err)
{
    struct buf out;
    json_t *json;

    check(err->status == status && err->message[0] != '\0');
    buf_init(&out, MIB);
    check(server__error_write(server__status_code(status), status_name(status), err->message, &out,
                              NULL) == STATUS_OK);
    json = json_loadb(out.data, out.size, 0, NULL);
    check(json != NULL);
    json_decref(json);
    buf_deinit(&out);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const struct generate_limits limits = { .prompt_count_max = 4, .prompt_token_count_max = 16 };
    struct generate_request request;
    struct err err;
    enum status st;

    st = server__generate_parse((const char *)data, size, &limits, &request, &err);
    if (st == STATUS_OK) {
        check_accepted(&request, &limits);
        server__generate_request_deinit(&request);
    } else {
        check_refused(st, &err);
    }
    return 0;
}
