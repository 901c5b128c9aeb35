/* checkpoint/gguf/tokenizer.c - a GGUF file's tokenizer as a tokenizer.json.
 *
 * Two kinds of vocabulary, tokenizer.ggml.model, become the same BPE:
 *
 *     gpt2    tokens and merges are in the file; tokenizer.ggml.pre names how text is cut before
 *     llama   SentencePiece's BPE: tokens and scores
 *
 * pre.c has the patterns by which text is cut; kinds of tokens (token_type) are vocab.h's. */
#include "checkpoint/gguf/tokenizer.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "checkpoint/gguf/gguf.h"
#include "checkpoint/gguf/pre.h"
#include "checkpoint/vocab/vocab.h"

#define KEY(name) "tokenizer.ggml." name

struct source {
    struct gguf_reader *reader;
    struct gguf_meta meta;
    struct ckpt_vocab vocab;
};

/* --- reading ---------------------------------------------------------------------------------- */

/* The array, which must have items of the type; `count` of them, unless that is 0. NULL and
 * STATUS_OK: there is none. */
static enum status find_array(const struct source *source, const char *key, enum gguf_type type,
                              uint64_t count, const struct gguf_value **value_out, struct err *err)
{
    const struct gguf_value *const value = gguf__find(&source->meta, key);
    const char *const path = source->vocab.path;

    *value_out = value;
    if (value == NULL)
        return STATUS_OK;
    if (value->type != GGUF_ARRAY || value->item_type != type)
        return err_set(err, STATUS_BAD_INPUT, "%s: %s is not an array of type %s", path, key,
                       gguf__type_name(type));
    if (count != 0 && value->item_count != count)
        return err_set(err, STATUS_BAD_INPUT, "%s: %s has %" PRIu64 " items, there are %" PRIu64
                       " tokens", path, key, value->item_count, count);
    if (value->item_count > CKPT_VOCAB_TOKENS_MAX)
        return err_set(err, STATUS_BAD_INPUT, "%s: %s has %" PRIu64 " items, at most %u are read",
                       path, key, value->item_count, CKPT_VOCAB_TOKENS_MAX);
    source->reader->at = value->items_at;
    return STATUS_OK;
}

/* The next string of an array; the caller owns *text_out. Its size was checked with the rest. */
static enum status take_text(const struct source *source, char **text_out, size_t *size_out,
                             struct err *err)
{
    uint64_t size = 0;
    enum status st = gguf__take_u64(source->reader, "a token", &size, err);
    char *text;

    if (st != STATUS_OK)
        return st;
    if (size > GGUF_STRING_BYTES_MAX)
        return err_set(err, STATUS_BAD_INPUT, "%s: a token of %" PRIu64 " bytes",
                       source->vocab.path, size);
    text = malloc((size_t)size + 1);
    if (text == NULL)
        return ckpt_vocab_no_memory(&source->vocab, err);
    text[size] = '\0';
    st = gguf__take(source->reader, text, size, "a token", err);
    if (st != STATUS_OK) {
        free(text);
        return st;
    }
    *text_out = text;
    *size_out = (size_t)size;
    return STATUS_OK;
}

static enum status read_tokens(struct source *source, struct err *err)
{
    const struct gguf_value *list;
    enum status st = find_array(source, KEY("tokens"), GGUF_STRING, 0, &list, err);

    if (st != STATUS_OK)
        return st;
    if (list == NULL || list->item_count == 0)
        return err_set(err, STATUS_UNAVAILABLE, "%s: it has no " KEY("tokens")
                       ", so text cannot be turned into token ids", source->vocab.path);
    st = ckpt_vocab_reserve(&source->vocab, (size_t)list->item_count, err);
    for (uint64_t i = 0; st == STATUS_OK && i < list->item_count; i++) {
        char *text = NULL;
        size_t size = 0;
        st = take_text(source, &text, &size, err);
        if (st == STATUS_OK)
            st = ckpt_vocab_add(&source->vocab, text, size, err);
    }
    return st;
}

static enum status read_types(struct source *source, struct err *err)
{
    const struct gguf_value *list;
    enum status st = find_array(source, KEY("token_type"), GGUF_INT32, source->vocab.token_count,
                                &list, err);

    for (size_t i = 0; st == STATUS_OK && list != NULL && i < source->vocab.token_count; i++) {
        uint32_t type = 0;
        st = gguf__take_u32(source->reader, KEY("token_type"), &type, err);
        source->vocab.tokens[i].kind = (int32_t)type;
    }
    return st;
}

static enum status read_scores(struct source *source, struct err *err)
{
    const struct gguf_value *list;
    enum status st = find_array(source, KEY("scores"), GGUF_FLOAT32, source->vocab.token_count,
                                &list, err);

    if (st == STATUS_OK && list == NULL)
        st = err_set(err, STATUS_BAD_INPUT, "%s: " KEY("scores") " is missing",
                     source->vocab.path);
    for (size_t i = 0; st == STATUS_OK && i < source->vocab.token_count; i++) {
        uint32_t bits = 0;
        st = gguf__take_u32(source->reader, KEY("scores"), &bits, err);
        memcpy(&source->vocab.tokens[i].score, &bits, sizeof(bits));
    }
    return st;
}

static enum status read_merges(struct source *source, struct err *err)
{
    const struct gguf_value *list;
    enum status st = find_array(source, KEY("merges"), GGUF_STRING, 0, &list, err);

    if (st == STATUS_OK && list == NULL)
        st = err_set(err, STATUS_BAD_INPUT, "%s: " KEY("merges") " is missing",
                     source->vocab.path);
    for (uint64_t i = 0; st == STATUS_OK && i < list->item_count; i++) {
        char *text = NULL;
        size_t size = 0;
        st = take_text(source, &text, &size, err);
        if (st == STATUS_OK &&
            json_array_append_new(source->vocab.merges, json_stringn(text, size)) != 0)
            st = err_set(err, STATUS_BAD_INPUT, "%s: item %" PRIu64 " of " KEY("merges")
                         " is not UTF-8", source->vocab.path, i);
        free(text);
    }
    return st;
}

/* --- writing ---------------------------------------------------------------------------------- */

static bool flag(const struct source *source, const char *key, bool missing)
{
    const struct gguf_value *const value = gguf__find(&source->meta, key);

    return value == NULL || value->type != GGUF_BOOL ? missing : value->integer != 0;
}

/* The token by the id under the key, or NULL. */
static const struct ckpt_vocab_token *token_of(const struct source *source, const char *key)
{
    uint64_t id = UINT64_MAX;

    if (gguf__get_count(&source->meta, source->vocab.path, key, UINT32_MAX, &id, NULL) !=
        STATUS_OK)
        return NULL;
    return ckpt_vocab_at(&source->vocab, id);
}

/* The chat template; where there are several with names, a list, as tokenizer_config.json has it.
 * Borrowed strings become the config's own. Of names there are those in use. */
static enum status add_chat_templates(struct source *source, json_t *config, struct err *err)
{
    static const char *const names[] = { "default", "tool_use", "rag" };
    static const char *const keys[] = { "tokenizer.chat_template",
                                        "tokenizer.chat_template.tool_use",
                                        "tokenizer.chat_template.rag" };
    const char *const path = source->vocab.path;
    json_t *list = json_array();
    enum status st = STATUS_OK;

    for (size_t i = 0; i < 3 && st == STATUS_OK; i++) {
        const struct gguf_value *value = gguf__find(&source->meta, keys[i]);
        const char *text = NULL;

        st = gguf__get_string(&source->meta, path, keys[i], &text, err);
        if (st == STATUS_OK && value != NULL && text != NULL &&
            json_array_append_new(list, json_pack("{s:s, s:s#}", "name", names[i], "template",
                                                  text, (int)value->string_size)) != 0)
            st = err_set(err, STATUS_BAD_INPUT, "%s: \"%s\" is not UTF-8", path, keys[i]);
    }
    if (st == STATUS_OK && json_array_size(list) == 1 &&
        gguf__find(&source->meta, keys[0]) != NULL)
        (void)json_object_set(config, "chat_template",
                              json_object_get(json_array_get(list, 0), "template"));
    else if (st == STATUS_OK && json_array_size(list) > 0)
        (void)json_object_set(config, "chat_template", list);
    json_decref(list);
    return st;
}

/* `pre` NULL: SentencePiece's. */
static enum status write_all(struct source *source, const struct gguf_pre *pre,
                             struct buf *json_out, struct buf *config_out, struct err *err)
{
    const bool is_spm = pre == NULL;
    const bool adds_space = is_spm && flag(source, KEY("add_space_prefix"), true);
    const struct ckpt_vocab_frame frame = {
        .unknown = token_of(source, KEY("unknown_token_id")),
        .bos = token_of(source, KEY("bos_token_id")),
        .eos = token_of(source, KEY("eos_token_id")),
        .adds_bos = flag(source, KEY("add_bos_token"), is_spm || pre->adds_bos),
        .adds_eos = flag(source, KEY("add_eos_token"), false),
        .is_spm = is_spm,
        .ignores_merges = !is_spm && pre->whole_words,
        .strips_space = adds_space,
        .normalizer = is_spm ? ckpt_vocab_normalizer(adds_space)
                             : pre->nfc ? json_pack("{s:s}", "type", "NFC") : NULL,
        .pre_tokenizer = is_spm ? NULL : gguf__pre_tokenizer(pre),
    };
    json_t *const config =
        json_pack("{s:s?, s:s?}", "bos_token", frame.bos != NULL ? frame.bos->text : NULL,
                  "eos_token", frame.eos != NULL ? frame.eos->text : NULL);
    enum status st = ckpt_vocab_write(&source->vocab, &frame, json_out, err);

    if (st == STATUS_OK && config != NULL)
        st = add_chat_templates(source, config, err);
    if (st == STATUS_OK)
        st = ckpt_vocab_append_json(&source->vocab, config, config_out, err);
    json_decref(config);
    return st;
}

static enum status convert(struct source *source, struct buf *json_out, struct buf *config_out,
                           struct err *err)
{
    const char *const path = source->vocab.path;
    const char *model = NULL, *pre_name = "default";
    const struct gguf_pre *pre = NULL;
    enum status st = gguf__get_string(&source->meta, path, KEY("model"), &model, err);

    if (st == STATUS_OK)
        st = gguf__get_string(&source->meta, path, KEY("pre"), &pre_name, err);
    if (st != STATUS_OK)
        return st;
    if (model != NULL && strcmp(model, "none") == 0)
        return err_set(err, STATUS_UNAVAILABLE, "%s: it has no tokenizer (" KEY("model")
                       " \"none\"), so text cannot be turned into token ids", path);
    if (model != NULL && strcmp(model, "gpt2") == 0)
        pre = gguf__find_pre(pre_name);
    if (model == NULL || (pre == NULL && strcmp(model, "llama") != 0))
        return err_set(err, STATUS_UNAVAILABLE, "%s: its tokenizer, " KEY("model")
                       " \"%.32s\" and " KEY("pre") " \"%.32s\", is not built, so text cannot be "
                       "turned into token ids", path, model != NULL ? model : "", pre_name);
    st = read_tokens(source, err);
    if (st == STATUS_OK)
        st = read_types(source, err);
    if (st == STATUS_OK)
        st = pre != NULL ? read_merges(source, err) : read_scores(source, err);
    if (st == STATUS_OK && pre == NULL)
        st = ckpt_vocab_make_merges(&source->vocab, err);
    return st == STATUS_OK ? write_all(source, pre, json_out, config_out, err) : st;
}

enum status gguf_tokenizer_read(const char *path, struct buf *json_out, struct buf *config_out,
                                struct err *err)
{
    struct file file = { .fd = -1 };
    struct source source = { .reader = malloc(sizeof(*source.reader)) };
    enum status st = ckpt_vocab_init(&source.vocab, path, err);

    if (st == STATUS_OK && source.reader == NULL)
        st = ckpt_vocab_no_memory(&source.vocab, err);
    if (st == STATUS_OK)
        st = gguf__open_first(path, &file, err);
    if (st == STATUS_OK)
        st = gguf__open_meta(&file, source.reader, &source.meta, err);
    if (st == STATUS_OK)
        st = convert(&source, json_out, config_out, err);
    ckpt_vocab_deinit(&source.vocab);
    gguf__meta_deinit(&source.meta);
    free(source.reader);
    file_close(&file);
    return st;
}
