/* text/chat.c - see chat.h. */
#include "text/chat.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/json.h"
#include "base/utf8.h"

#define CONFIG_BYTES_MAX ((size_t)16 << 20)
#define PATH_BYTES_MAX 4096
#define TEMPLATES_MAX 32
#define NAME_BYTES_MAX 64
#define CONTINUE_TAG "CONTINUE_FINAL_MESSAGE_TAG "
#define CONTINUE_TAG_BYTES (sizeof(CONTINUE_TAG) - 1)

struct named_template {
    char name[NAME_BYTES_MAX];
    struct template *template; /* owned */
    uint8_t *controls;         /* owned; [tokenizer_id_limit] */
};

struct chat {
    const struct tokenizer *tokenizer; /* borrowed */
    char *what;
    struct named_template templates[TEMPLATES_MAX];
    size_t template_count;
    json_t *tokens; /* owned: {"bos_token": "<s>", ...} */
    bool takes_parts;
};

/* --- opening ---------------------------------------------------------------------------------- */

static bool is_blank(const char *text, size_t size)
{
    for (size_t i = 0; i < size; i++) {
        if (strchr(" \t\n\r\v\f", text[i]) == NULL)
            return false;
    }
    return true;
}

/* Which tokens only the template may write. */
static enum status find_controls(const struct chat *chat, struct named_template *named,
                                 struct err *err)
{
    const uint32_t limit = chat->tokenizer != NULL ? tokenizer_id_limit(chat->tokenizer) : 0;

    named->controls = calloc((size_t)limit + 1, 1);
    if (named->controls == NULL)
        return err_set(err, STATUS_NO_MEMORY, "%s: no memory for %u tokens", chat->what, limit);
    for (uint32_t id = 0; id < limit; id++) {
        size_t size = 0;
        const char *content = tokenizer_added_content(chat->tokenizer, (int32_t)id, &size);

        if (content != NULL)
            named->controls[id] = tokenizer_is_special(chat->tokenizer, (int32_t)id) ||
                                  (!is_blank(content, size) &&
                                   template_mentions(named->template, content, size));
    }
    return STATUS_OK;
}

static enum status add_template(struct chat *chat, const char *name, const char *text, size_t size,
                                const char *what, struct err *err)
{
    struct named_template *named = &chat->templates[chat->template_count];
    enum status st;

    if (chat->template_count == TEMPLATES_MAX)
        return err_set(err, STATUS_BAD_INPUT, "%s: more than %d chat templates", chat->what,
                       TEMPLATES_MAX);
    if (strlen(name) >= sizeof(named->name))
        return err_set(err, STATUS_BAD_INPUT, "%s: a chat template's name of %zu bytes, at most "
                       "%zu", chat->what, strlen(name), sizeof(named->name) - 1);
    st = template_create(text, size, what, &named->template, err);
    if (st != STATUS_OK)
        return st;
    snprintf(named->name, sizeof(named->name), "%s", name);
    chat->template_count++;
    return find_controls(chat, named, err);
}

static enum status add_file(struct chat *chat, const char *name, const char *path, struct err *err)
{
    struct buf text;
    enum status st;

    buf_init(&text, TEMPLATE_BYTES_MAX);
    st = file_read_all(path, &text, err);
    if (st == STATUS_OK)
        st = add_template(chat, name, text.data != NULL ? text.data : "", text.size, path, err);
    buf_deinit(&text);
    return st;
}

/* additional_chat_templates/NAME.jinja */
static enum status add_folder(struct chat *chat, const char *folder, struct err *err)
{
    DIR *dir = opendir(folder);
    const struct dirent *entry;
    enum status st = STATUS_OK;

    if (dir == NULL)
        return STATUS_OK;
    while (st == STATUS_OK && (entry = readdir(dir)) != NULL) {
        const char *end = strrchr(entry->d_name, '.');
        char name[NAME_BYTES_MAX];
        char path[PATH_BYTES_MAX];

        if (end == NULL || strcmp(end, ".jinja") != 0 || end == entry->d_name)
            continue;
        if (snprintf(name, sizeof(name), "%.*s", (int)(end - entry->d_name), entry->d_name) >=
                (int)sizeof(name) ||
            snprintf(path, sizeof(path), "%s/%s", folder, entry->d_name) >= (int)sizeof(path))
            continue; /* no name that anybody asks for */
        st = add_file(chat, name, path, err);
    }
    closedir(dir);
    return st;
}

/* "chat_template" of a tokenizer_config.json */
static enum status add_config(struct chat *chat, const json_t *config, struct err *err)
{
    const json_t *value = json_object_get(config, "chat_template");
    const json_t *entry;
    size_t index;
    enum status st = STATUS_OK;

    if (value == NULL || json_is_null(value))
        return STATUS_OK;
    if (json_is_string(value))
        return add_template(chat, "default", json_string_value(value), json_string_length(value),
                            "the chat template", err);
    if (!json_is_array(value))
        return err_set(err, STATUS_BAD_INPUT, "%s: \"chat_template\" is %s, a string or an array "
                       "is wanted", chat->what, json_kind(value));
    json_array_foreach((json_t *)value, index, entry) {
        const json_t *text = json_object_get(entry, "template");
        const char *name = json_string_value(json_object_get(entry, "name"));

        if (name == NULL || !json_is_string(text))
            return err_set(err, STATUS_BAD_INPUT, "%s: \"chat_template\"[%zu] lacks a string "
                           "\"name\" or \"template\"", chat->what, index);
        st = add_template(chat, name, json_string_value(text), json_string_length(text),
                          "the chat template", err);
        if (st != STATUS_OK)
            return st;
    }
    return STATUS_OK;
}

/* The strings of the tokens that a template may ask for by name. */
static enum status read_tokens(struct chat *chat, const json_t *config, struct err *err)
{
    static const char *const names[] = { "bos_token", "eos_token", "unk_token", "sep_token",
                                         "pad_token", "cls_token", "mask_token" };

    chat->tokens = json_object();
    for (size_t i = 0; chat->tokens != NULL && i < sizeof(names) / sizeof(names[0]); i++) {
        json_t *value = json_object_get(config, names[i]);

        if (json_is_object(value))
            value = json_object_get(value, "content");
        if (json_is_string(value))
            (void)json_object_set(chat->tokens, names[i], value);
    }
    return chat->tokens != NULL ? STATUS_OK
                                : err_set(err, STATUS_NO_MEMORY, "no memory for a chat template");
}

static const struct named_template *find_template(const struct chat *chat, const char *name)
{
    for (size_t i = 0; i < chat->template_count; i++) {
        if (strcmp(chat->templates[i].name, name) == 0)
            return &chat->templates[i];
    }
    return NULL;
}

/* Asks the template: a content in parts either shows its text alone, or how lists are printed. */
static bool probe_parts(const struct chat *chat)
{
    json_t *messages = json_pack("[{s:s, s:[{s:s, s:s}]}]", "role", "user", "content", "type",
                                 "text", "text", "\x01probe\x01");
    struct chat_request request = { .messages = messages, .add_generation_prompt = true };
    struct template_output output;
    struct err err;
    bool takes = false;

    template_output_init(&output);
    if (messages != NULL && chat_render(chat, &request, &output, &err) == STATUS_OK &&
        output.text.size > 0)
        takes = strstr(output.text.data, "\x01probe\x01") != NULL;
    template_output_deinit(&output);
    json_decref(messages);
    return takes;
}

static enum status chat_new(const struct tokenizer *tokenizer, const char *what,
                            struct chat **chat_out, struct err *err)
{
    struct chat *chat = calloc(1, sizeof(*chat));

    if (chat == NULL || (chat->what = strdup(what)) == NULL) {
        free(chat);
        return err_set(err, STATUS_NO_MEMORY, "%s: no memory for a chat template", what);
    }
    chat->tokenizer = tokenizer;
    *chat_out = chat;
    return STATUS_OK;
}

static enum status chat_ready(struct chat *chat, enum status st, struct chat **chat_out,
                              struct err *err)
{
    if (st == STATUS_OK && chat->template_count == 0)
        st = err_set(err, STATUS_UNAVAILABLE, "%s: the model has no chat template; give one with "
                     "--chat-template FILE", chat->what);
    if (st != STATUS_OK) {
        chat_close(chat);
        return st;
    }
    chat->takes_parts = probe_parts(chat);
    *chat_out = chat;
    return STATUS_OK;
}

enum status chat_open_json(const struct tokenizer *tokenizer, const char *config_text,
                           size_t config_size, const char *what, const char *template_path,
                           struct chat **chat_out, struct err *err)
{
    struct chat *chat = NULL;
    json_t *config = NULL;
    enum status st = chat_new(tokenizer, what, &chat, err);

    if (st != STATUS_OK)
        return st;
    if (config_text != NULL)
        st = json_read(config_text, config_size, what, &config, err);
    if (st == STATUS_OK)
        st = read_tokens(chat, config, err);
    if (st == STATUS_OK)
        st = template_path != NULL ? add_file(chat, "default", template_path, err)
                                   : add_config(chat, config, err);
    json_decref(config);
    return chat_ready(chat, st, chat_out, err);
}

enum status chat_open(const struct tokenizer *tokenizer, const char *model_path,
                      const char *template_path, struct chat **chat_out, struct err *err)
{
    char path[PATH_BYTES_MAX];
    char config_path[PATH_BYTES_MAX];
    char folder[PATH_BYTES_MAX];
    struct chat *chat = NULL;
    json_t *config = NULL;
    enum status st = chat_new(tokenizer, model_path, &chat, err);

    if (st != STATUS_OK)
        return st;
    if (snprintf(path, sizeof(path), "%s/chat_template.jinja", model_path) >= (int)sizeof(path) ||
        snprintf(config_path, sizeof(config_path), "%s/tokenizer_config.json", model_path) >=
            (int)sizeof(config_path) ||
        snprintf(folder, sizeof(folder), "%s/additional_chat_templates", model_path) >=
            (int)sizeof(folder))
        st = err_set(err, STATUS_BAD_INPUT, "%.64s...: the path is too long", model_path);
    if (st == STATUS_OK && file_exists(config_path))
        st = json_read_file(config_path, CONFIG_BYTES_MAX, &config, err);
    if (st == STATUS_OK)
        st = read_tokens(chat, config, err);
    if (st == STATUS_OK && template_path != NULL) {
        st = add_file(chat, "default", template_path, err);
    } else if (st == STATUS_OK) {
        if (file_exists(path))
            st = add_file(chat, "default", path, err);
        else
            st = add_config(chat, config, err);
        if (st == STATUS_OK)
            st = add_folder(chat, folder, err);
    }
    json_decref(config);
    return chat_ready(chat, st, chat_out, err);
}

void chat_close(struct chat *chat)
{
    if (chat == NULL)
        return;
    for (size_t i = 0; i < chat->template_count; i++) {
        template_destroy(chat->templates[i].template);
        free(chat->templates[i].controls);
    }
    json_decref(chat->tokens);
    free(chat->what);
    free(chat);
}

bool chat_takes_parts(const struct chat *chat)
{
    return chat->takes_parts;
}

/* --- what the template sees ------------------------------------------------------------------- */

static enum status check_objects(const json_t *array, const char *what, struct err *err)
{
    const json_t *item;
    size_t index;

    if (!json_is_array(array))
        return err_set(err, STATUS_BAD_INPUT, "\"%s\" is %s, an array is wanted", what,
                       json_kind(array));
    json_array_foreach((json_t *)array, index, item) {
        if (!json_is_object(item))
            return err_set(err, STATUS_BAD_INPUT, "\"%s\"[%zu] is %s, an object is wanted", what,
                           index, json_kind(item));
    }
    return STATUS_OK;
}

/* A message without what is null. A thought goes by the names that templates know: any of
 * "reasoning_content", "thinking" and "reasoning" fills the first, and "thinking" where it is not
 * there. */
static json_t *seen_message(const json_t *message)
{
    static const char *const thoughts[] = { "reasoning_content", "thinking", "reasoning" };
    json_t *seen = json_object();
    json_t *thought = NULL;
    const char *key;
    json_t *value;

    for (size_t i = 0; i < 3 && thought == NULL; i++) {
        thought = json_object_get(message, thoughts[i]);
        if (json_is_null(thought))
            thought = NULL;
    }
    if (thought != NULL && json_object_get(message, "thinking") == NULL)
        (void)json_object_set(seen, "thinking", thought);
    json_object_foreach((json_t *)message, key, value) {
        if (!json_is_null(value))
            (void)json_object_set(seen, key, value);
    }
    if (thought != NULL)
        (void)json_object_set(seen, "reasoning_content", thought);
    return seen;
}

static json_t *tagged_text(const json_t *text, struct err *err)
{
    struct buf tagged;
    json_t *json = NULL;

    buf_init(&tagged, SIZE_MAX / 4);
    if (buf_append(&tagged, json_string_value(text), json_string_length(text), err) == STATUS_OK &&
        buf_append(&tagged, CONTINUE_TAG, CONTINUE_TAG_BYTES, err) == STATUS_OK)
        json = json_stringn(tagged.data, tagged.size);
    buf_deinit(&tagged);
    return json;
}

/* The text that the model shall go on with, a tag put behind it. *text_out is borrowed from the
 * request. */
static enum status tag_content(json_t *message, const json_t **text_out, struct err *err)
{
    const json_t *content = json_object_get(message, "content");
    json_t *tagged;

    if (json_is_string(content)) {
        *text_out = content;
        tagged = tagged_text(content, err);
        return tagged != NULL && json_object_set_new(message, "content", tagged) == 0
                   ? STATUS_OK
                   : err_set(err, STATUS_NO_MEMORY, "no memory for a message");
    }
    for (size_t i = json_array_size(content); i > 0; i--) {
        const json_t *text = json_object_get(json_array_get(content, i - 1), "text");
        json_t *parts;

        if (!json_is_string(text))
            continue;
        *text_out = text;
        tagged = tagged_text(text, err);
        parts = json_deep_copy(content);
        if (parts == NULL || tagged == NULL)
            return err_set(err, STATUS_NO_MEMORY, "no memory for a message");
        (void)json_object_set_new(json_array_get(parts, i - 1), "text", tagged);
        (void)json_object_set_new(message, "content", parts);
        return STATUS_OK;
    }
    return err_set(err, STATUS_BAD_INPUT, "the last message has no content to go on with");
}

static json_t *or_null(const json_t *value)
{
    return value != NULL ? json_incref((json_t *)value) : json_null();
}

static enum status make_variables(const struct chat_request *request, json_t **variables_out,
                                  const json_t **continued_out, struct err *err)
{
    json_t *variables = request->extra != NULL ? json_copy((json_t *)request->extra)
                                               : json_object();
    json_t *messages = json_array();
    const json_t *message;
    size_t index;
    enum status st = STATUS_OK;

    if (variables == NULL || messages == NULL)
        st = err_set(err, STATUS_NO_MEMORY, "no memory for a conversation");
    json_array_foreach((json_t *)request->messages, index, message) {
        if (st == STATUS_OK && json_array_append_new(messages, seen_message(message)) != 0)
            st = err_set(err, STATUS_NO_MEMORY, "no memory for a conversation");
    }
    if (st == STATUS_OK && request->continue_final_message)
        st = tag_content(json_array_get(messages, json_array_size(messages) - 1), continued_out,
                         err);
    if (st != STATUS_OK) {
        json_decref(variables);
        json_decref(messages);
        return st;
    }
    (void)json_object_set_new(variables, "messages", messages);
    (void)json_object_set_new(variables, "tools", or_null(request->tools));
    (void)json_object_set_new(variables, "documents", or_null(request->documents));
    (void)json_object_set_new(variables, "add_generation_prompt",
                              json_boolean(request->add_generation_prompt));
    *variables_out = variables;
    return STATUS_OK;
}

/* --- rendering -------------------------------------------------------------------------------- */

/* Python's strip(), of the white space that messages end with. */
static size_t stripped_end(const char *text, size_t size)
{
    while (size > 0) {
        size_t at = size - 1;
        uint32_t c;

        while (at > 0 && size - at < 4 && ((unsigned char)text[at] & 0xc0) == 0x80)
            at--;
        utf8_decode(text + at, size - at, &c, NULL);
        if (!((c >= 9 && c <= 13) || (c >= 28 && c <= 32) || c == 0x85 || c == 0xa0 ||
              c == 0x1680 || (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 ||
              c == 0x202f || c == 0x205f || c == 0x3000))
            break;
        size = at;
    }
    return size;
}

/* The last place of what; SIZE_MAX: none. */
static size_t find_last(const struct buf *text, const char *what, size_t size)
{
    for (size_t at = text->size >= size ? text->size - size + 1 : 0; at > 0; at--) {
        if (memcmp(text->data + at - 1, what, size) == 0)
            return at - 1;
    }
    return SIZE_MAX;
}

/* Cuts the text where the tag stands. */
static enum status cut_at_tag(const json_t *continued, struct template_output *output,
                              struct err *err)
{
    const char *text = json_string_value(continued);
    const size_t size = stripped_end(text, json_string_length(continued));
    size_t tag = find_last(&output->text, CONTINUE_TAG, CONTINUE_TAG_BYTES - 1);
    size_t first = 0;

    while (first < size && strchr(" \t\n\r", text[first]) != NULL)
        first++;
    if (tag == SIZE_MAX || (size > first && memmem(output->text.data, output->text.size,
                                                   text + first, size - first) == NULL))
        return err_set(err, STATUS_BAD_INPUT, "the chat template leaves out parts of the last "
                       "message, so that the model can't go on with it");
    if (output->text.size - tag < CONTINUE_TAG_BYTES ||
        memcmp(output->text.data + tag, CONTINUE_TAG, CONTINUE_TAG_BYTES) != 0)
        tag = stripped_end(output->text.data, tag);
    output->text.size = tag;
    output->text.data[tag] = '\0';
    output->marks.size = tag;
    return STATUS_OK;
}

static enum status check_request(const struct chat_request *request, struct err *err)
{
    enum status st = check_objects(request->messages, "messages", err);

    if (st == STATUS_OK && json_array_size(request->messages) == 0)
        st = err_set(err, STATUS_BAD_INPUT, "\"messages\" is empty");
    if (st == STATUS_OK && request->tools != NULL)
        st = check_objects(request->tools, "tools", err);
    if (st == STATUS_OK && request->documents != NULL)
        st = check_objects(request->documents, "documents", err);
    if (st == STATUS_OK && request->extra != NULL && !json_is_object(request->extra))
        st = err_set(err, STATUS_BAD_INPUT, "\"chat_template_kwargs\" is %s, an object is wanted",
                     json_kind(request->extra));
    if (st == STATUS_OK && request->add_generation_prompt && request->continue_final_message)
        st = err_set(err, STATUS_BAD_INPUT, "\"continue_final_message\" and "
                     "\"add_generation_prompt\" exclude each other");
    return st;
}

static enum status choose_template(const struct chat *chat, const struct chat_request *request,
                                   const struct named_template **named_out, struct err *err)
{
    const struct named_template *named = NULL;

    if (request->tools != NULL)
        named = find_template(chat, "tool_use");
    if (named == NULL)
        named = find_template(chat, "default");
    if (named == NULL)
        return err_set(err, STATUS_BAD_INPUT, "%s: none of its %zu chat templates is called "
                       "\"default\"", chat->what, chat->template_count);
    *named_out = named;
    return STATUS_OK;
}

enum status chat_render(const struct chat *chat, const struct chat_request *request,
                        struct template_output *output, struct err *err)
{
    const struct named_template *named = NULL;
    const json_t *continued = NULL;
    json_t *variables = NULL;
    struct template_input input = { .trusted = chat->tokens };
    enum status st = check_request(request, err);

    if (st == STATUS_OK)
        st = choose_template(chat, request, &named, err);
    if (st == STATUS_OK)
        st = make_variables(request, &variables, &continued, err);
    if (st != STATUS_OK)
        return st;
    input.variables = variables;
    input.now = request->now;
    st = template_render(named->template, &input, output, err);
    if (st == STATUS_OK && continued != NULL)
        st = cut_at_tag(continued, output, err);
    json_decref(variables);
    return st;
}

enum status chat_encode(const struct chat *chat, const struct chat_request *request,
                        struct token_ids *ids_out, struct err *err)
{
    const struct named_template *named = NULL;
    struct template_output output;
    enum status st;

    template_output_init(&output);
    st = chat_render(chat, request, &output, err);
    if (st == STATUS_OK)
        st = choose_template(chat, request, &named, err);
    if (st == STATUS_OK && output.text.size > 0)
        st = tokenizer_encode_marked(chat->tokenizer, output.text.data,
                                     (const uint8_t *)output.marks.data, output.text.size,
                                     named->controls, ids_out, err);
    template_output_deinit(&output);
    return st;
}
