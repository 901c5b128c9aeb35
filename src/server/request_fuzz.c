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
    buf_clear(&out);
    check(server__openai_error_write(server__status_code(status), err->message, &out, NULL) ==
          STATUS_OK);
    json = json_loadb(out.data, out.size, 0, NULL);
    check(json_is_object(json_object_get(json, "error")));
    json_decref(json);
    buf_deinit(&out);
}

/* Letters and a template, opened once. */
static const struct openai_context *context(bool is_chat)
{
    static const char vocabulary[] =
        "{\"added_tokens\": [], \"normalizer\": null, \"pre_tokenizer\": null, \"decoder\": null,"
        " \"post_processor\": null, \"model\": {\"type\": \"BPE\", \"vocab\": {\"a\": 0, \"b\": 1,"
        " \":\": 2}, \"merges\": []}}";
    static const char config[] =
        "{\"chat_template\": \"{% for m in messages %}{{ m.role }}: {{ m.content }}{% endfor %}\"}";
    static struct openai_context made;
    static struct tokenizer *tokenizer;
    static struct chat *chat;
    struct err err;

    if (chat == NULL) {
        check(tokenizer_open_json(vocabulary, strlen(vocabulary), NULL, 0, "letters", &tokenizer,
                                  &err) == STATUS_OK);
        check(chat_open_json(tokenizer, config, strlen(config), "config", NULL, &chat, &err) ==
              STATUS_OK);
    }
    made = (struct openai_context){ .tokenizer = tokenizer, .chat = chat, .is_chat = is_chat };
    return &made;
}

static void check_openai(const uint8_t *data, size_t size, bool is_chat,
                         const struct generate_limits *limits)
{
    struct generate_request request;
    struct err err;
    enum status st = server__openai_parse((const char *)data, size, limits, context(is_chat),
                                          &request, &err);

    if (st != STATUS_OK) {
        check_refused(st, &err);
        return;
    }
    check(request.is_openai && request.prompt_count >= request.openai.choice_count);
    check(request.prompt_count <= limits->prompt_count_max);
    for (size_t i = 0; i < request.prompt_count; i++) {
        check((request.prompts[i].text != NULL) != (request.prompts[i].ids != NULL));
        check(sampling_params_check(&request.prompts[i].params, &err) == STATUS_OK);
    }
    server__generate_request_deinit(&request);
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
    check_openai(data, size, false, &limits);
    check_openai(data, size, true, &limits);
    return 0;
}
