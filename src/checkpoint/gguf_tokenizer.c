/* checkpoint/gguf_tokenizer.c - a GGUF file's tokenizer as a tokenizer.json.
 *
 * Two kinds of vocabulary, tokenizer.ggml.model, become the same BPE:
 *
 *     gpt2    tokens and merges are in the file; tokenizer.ggml.pre names how text is cut before
 *     llama   SentencePiece's BPE: tokens and scores. Of two neighbours those are joined whose
 *             joint token has the highest score, so the merges are all ways to cut a token into two
 *             others, by falling score. Characters without a token become bytes (<0x0A>).
 *
 * gguf_pre.c has the patterns by which text is cut. Kinds of tokens (token_type): 1 normal,
 * 2 unknown, 3 control, 4 defined by the user, 5 unused, 6 byte. */
#include "checkpoint/gguf_tokenizer.h"

#include <assert.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "checkpoint/gguf.h"
#include "checkpoint/gguf_pre.h"

#define TOKENS_MAX (1u << 22)
#define SPACE "\xe2\x96\x81" /* U+2581, SentencePiece's space */
#define KEY(name) "tokenizer.ggml." name

enum { TYPE_UNKNOWN = 2, TYPE_CONTROL = 3, TYPE_USER = 4 };

struct token {
    char *text; /* owned */
    size_t size;
    float score;
    int32_t type;
};

struct vocab {
    const char *path;
    struct gguf_reader *reader;
    struct gguf_meta meta;
    struct token *tokens;
    size_t token_count;
    struct map *ids;
    json_t *merges;
};

static enum status no_memory(const struct vocab *vocab, struct err *err)
{
    return err_set(err, STATUS_NO_MEMORY, "%s: no memory for its tokenizer", vocab->path);
}

/* --- reading ---------------------------------------------------------------------------------- */

/* The array, which must have items of the type; `count` of them, unless that is 0. NULL and
 * STATUS_OK: there is none. */
static enum status find_array(const struct vocab *vocab, const char *key, enum gguf_type type,
                              uint64_t count, const struct gguf_value **value_out, struct err *err)
{
    const struct gguf_value *const value = gguf__find(&vocab->meta, key);

    *value_out = value;
    if (value == NULL)
        return STATUS_OK;
    if (value->type != GGUF_ARRAY || value->item_type != type)
        return err_set(err, STATUS_BAD_INPUT, "%s: %s is not an array of type %s", vocab->path,
                       key, gguf__type_name(type));
    if (count != 0 && value->item_count != count)
        return err_set(err, STATUS_BAD_INPUT, "%s: %s has %" PRIu64 " items, there are %" PRIu64
                       " tokens", vocab->path, key, value->item_count, count);
    if (value->item_count > TOKENS_MAX)
        return err_set(err, STATUS_BAD_INPUT, "%s: %s has %" PRIu64 " items, at most %u are read",
                       vocab->path, key, value->item_count, TOKENS_MAX);
    vocab->reader->at = value->items_at;
    return STATUS_OK;
}

/* The next string of an array; the caller owns *text_out. Its size was checked with the rest. */
static enum status take_text(const struct vocab *vocab, char **text_out, size_t *size_out,
                             struct err *err)
{
    uint64_t size = 0;
    enum status st = gguf__take_u64(vocab->reader, "a token", &size, err);
    char *text;

    if (st != STATUS_OK)
        return st;
    if (size > GGUF_STRING_BYTES_MAX)
        return err_set(err, STATUS_BAD_INPUT, "%s: a token of %" PRIu64 " bytes", vocab->path,
                       size);
    text = malloc((size_t)size + 1);
    if (text == NULL)
        return no_memory(vocab, err);
    text[size] = '\0';
    st = gguf__take(vocab->reader, text, size, "a token", err);
    if (st != STATUS_OK) {
        free(text);
        return st;
    }
    *text_out = text;
    *size_out = (size_t)size;
    return STATUS_OK;
}

static enum status read_tokens(struct vocab *vocab, struct err *err)
{
    const struct gguf_value *list;
    enum status st = find_array(vocab, KEY("tokens"), GGUF_STRING, 0, &list, err);

    if (st != STATUS_OK)
        return st;
    if (list == NULL || list->item_count == 0)
        return err_set(err, STATUS_UNAVAILABLE, "%s: it has no " KEY("tokens")
                       ", so text cannot be turned into token ids", vocab->path);
    vocab->tokens = calloc((size_t)list->item_count, sizeof(*vocab->tokens));
    if (vocab->tokens == NULL)
        return no_memory(vocab, err);
    for (uint64_t i = 0; st == STATUS_OK && i < list->item_count; i++) {
        struct token *const token = &vocab->tokens[i];
        token->type = 1;
        st = take_text(vocab, &token->text, &token->size, err);
        vocab->token_count += st == STATUS_OK;
        if (st == STATUS_OK && !map_get(vocab->ids, token->text, token->size, NULL))
            st = map_set(vocab->ids, token->text, token->size, i, err);
    }
    return st;
}

static enum status read_types(struct vocab *vocab, struct err *err)
{
    const struct gguf_value *list;
    enum status st = find_array(vocab, KEY("token_type"), GGUF_INT32, vocab->token_count, &list,
                                err);

    for (size_t i = 0; st == STATUS_OK && list != NULL && i < vocab->token_count; i++) {
        uint32_t type = 0;
        st = gguf__take_u32(vocab->reader, KEY("token_type"), &type, err);
        vocab->tokens[i].type = (int32_t)type;
    }
    return st;
}

static enum status read_scores(struct vocab *vocab, struct err *err)
{
    const struct gguf_value *list;
    enum status st = find_array(vocab, KEY("scores"), GGUF_FLOAT32, vocab->token_count, &list,
                                err);

    if (st == STATUS_OK && list == NULL)
        st = err_set(err, STATUS_BAD_INPUT, "%s: " KEY("scores") " is missing", vocab->path);
    for (size_t i = 0; st == STATUS_OK && i < vocab->token_count; i++) {
        uint32_t bits = 0;
        st = gguf__take_u32(vocab->reader, KEY("scores"), &bits, err);
        memcpy(&vocab->tokens[i].score, &bits, sizeof(bits));
    }
    return st;
}

static enum status read_merges(struct vocab *vocab, struct err *err)
{
    const struct gguf_value *list;
    enum status st = find_array(vocab, KEY("merges"), GGUF_STRING, 0, &list, err);

    if (st == STATUS_OK && list == NULL)
        st = err_set(err, STATUS_BAD_INPUT, "%s: " KEY("merges") " is missing", vocab->path);
    for (uint64_t i = 0; st == STATUS_OK && i < list->item_count; i++) {
        char *text = NULL;
        size_t size = 0;
        st = take_text(vocab, &text, &size, err);
        if (st == STATUS_OK && json_array_append_new(vocab->merges, json_stringn(text, size)) != 0)
            st = err_set(err, STATUS_BAD_INPUT, "%s: item %" PRIu64 " of " KEY("merges")
                         " is not UTF-8", vocab->path, i);
        free(text);
    }
    return st;
}

/* --- SentencePiece's merges ------------------------------------------------------------------- */

struct merge {
    uint32_t id, left, right; /* of the tokens */
    float score;
};

static int compare_merges(const void *a, const void *b)
{
    const struct merge *const x = a;
    const struct merge *const y = b;

    if (x->score != y->score)
        return x->score > y->score ? -1 : 1;
    if (x->id != y->id)
        return x->id < y->id ? -1 : 1;
    return x->left != y->left ? (x->left < y->left ? -1 : 1) : 0;
}

/* All ways to cut a token at a character into two others. */
static enum status cut_token(const struct vocab *vocab, uint32_t id, struct merge **merges,
                             size_t *count, size_t *capacity, struct err *err)
{
    const struct token *const token = &vocab->tokens[id];

    if (token->type != 1)
        return STATUS_OK;
    for (size_t at = 1; at < token->size && token->size <= GGUF_KEY_BYTES_MAX; at++) {
        uint64_t left, right;
        if (((unsigned char)token->text[at] & 0xC0) == 0x80 ||
            !map_get(vocab->ids, token->text, at, &left) ||
            !map_get(vocab->ids, token->text + at, token->size - at, &right))
            continue;
        if (*count == *capacity) {
            const size_t wanted = *capacity == 0 ? 1024 : 2 * *capacity;
            struct merge *const grown = reallocarray(*merges, wanted, sizeof(*grown));
            if (grown == NULL)
                return no_memory(vocab, err);
            *merges = grown;
            *capacity = wanted;
        }
        (*merges)[(*count)++] =
            (struct merge){ id, (uint32_t)left, (uint32_t)right, token->score };
    }
    return STATUS_OK;
}

static enum status make_merges(struct vocab *vocab, struct err *err)
{
    struct merge *merges = NULL;
    size_t count = 0, capacity = 0;
    enum status st = STATUS_OK;

    for (size_t i = 0; st == STATUS_OK && i < vocab->token_count; i++)
        st = cut_token(vocab, (uint32_t)i, &merges, &count, &capacity, err);
    if (count > 0)
        qsort(merges, count, sizeof(*merges), compare_merges);
    for (size_t i = 0; st == STATUS_OK && i < count; i++) {
        const struct token *const left = &vocab->tokens[merges[i].left];
        const struct token *const right = &vocab->tokens[merges[i].right];
        if (json_array_append_new(vocab->merges,
                                  json_pack("[s%s%]", left->text, left->size, right->text,
                                            right->size)) != 0)
            st = err_set(err, STATUS_BAD_INPUT, "%s: token %" PRIu32 " is not UTF-8", vocab->path,
                         merges[i].id);
    }
    free(merges);
    return st;
}

/* --- writing ---------------------------------------------------------------------------------- */

static bool flag(const struct vocab *vocab, const char *key, bool missing)
{
    const struct gguf_value *const value = gguf__find(&vocab->meta, key);

    return value == NULL || value->type != GGUF_BOOL ? missing : value->integer != 0;
}

/* The token by the id under the key, or NULL. */
static const struct token *token_of(const struct vocab *vocab, const char *key, uint64_t *id_out)
{
    *id_out = UINT64_MAX;
    if (gguf__get_count(&vocab->meta, vocab->path, key, UINT32_MAX, id_out, NULL) != STATUS_OK ||
        *id_out >= vocab->token_count)
        return NULL;
    return &vocab->tokens[*id_out];
}

/* Adds BOS and EOS as the file asks for them. */
static json_t *post_processor(const struct vocab *vocab, bool bos_missing)
{
    static const char *const keys[2][2] = { { KEY("add_bos_token"), KEY("bos_token_id") },
                                            { KEY("add_eos_token"), KEY("eos_token_id") } };
    json_t *const single = json_array();
    json_t *const specials = json_object();

    for (size_t i = 0; i < 2; i++) {
        uint64_t id;
        const struct token *const token = token_of(vocab, keys[i][1], &id);
        if (i == 1)
            (void)json_array_append_new(single, json_pack("{s:{s:s, s:i}}", "Sequence", "id", "A",
                                                          "type_id", 0));
        if (token == NULL || !flag(vocab, keys[i][0], i == 0 && bos_missing))
            continue;
        (void)json_array_append_new(single, json_pack("{s:{s:s, s:i}}", "SpecialToken", "id",
                                                      token->text, "type_id", 0));
        (void)json_object_set_new(specials, token->text,
                                  json_pack("{s:s, s:[I], s:[s]}", "id", token->text, "ids",
                                            (json_int_t)id, "tokens", token->text));
    }
    return json_pack("{s:s, s:o, s:o}", "type", "TemplateProcessing", "single", single,
                     "special_tokens", specials);
}

static json_t *added_tokens(const struct vocab *vocab)
{
    json_t *const list = json_array();

    for (size_t i = 0; i < vocab->token_count; i++) {
        const struct token *const token = &vocab->tokens[i];
        if (token->type >= TYPE_UNKNOWN && token->type <= TYPE_USER && token->size > 0)
            (void)json_array_append_new(
                list, json_pack("{s:i, s:s%, s:b, s:b, s:b, s:b, s:b}", "id", (int)i, "content",
                                token->text, token->size, "single_word", 0, "lstrip", 0, "rstrip",
                                0, "normalized", 0, "special", token->type != TYPE_USER));
    }
    return list;
}

static json_t *spm_normalizer(const struct vocab *vocab)
{
    json_t *const steps = json_array();

    if (flag(vocab, KEY("add_space_prefix"), true))
        (void)json_array_append_new(steps, json_pack("{s:s, s:s}", "type", "Prepend", "prepend",
                                                     SPACE));
    (void)json_array_append_new(steps, json_pack("{s:s, s:{s:s}, s:s}", "type", "Replace",
                                                 "pattern", "String", " ", "content", SPACE));
    return json_pack("{s:s, s:o}", "type", "Sequence", "normalizers", steps);
}

static json_t *spm_decoder(const struct vocab *vocab)
{
    json_t *const steps = json_pack(
        "[{s:s, s:{s:s}, s:s}, {s:s}, {s:s}]", "type", "Replace", "pattern", "String", SPACE,
        "content", " ", "type", "ByteFallback", "type", "Fuse");

    if (flag(vocab, KEY("add_space_prefix"), true))
        (void)json_array_append_new(steps, json_pack("{s:s, s:s, s:i, s:i}", "type", "Strip",
                                                     "content", " ", "start", 1, "stop", 0));
    return json_pack("{s:s, s:o}", "type", "Sequence", "decoders", steps);
}

static enum status write_vocab(const struct vocab *vocab, json_t *object, struct err *err)
{
    for (size_t i = 0; i < vocab->token_count; i++) {
        const struct token *const token = &vocab->tokens[i];
        if (json_object_setn_new(object, token->text, token->size,
                                 json_integer((json_int_t)i)) != 0)
            return err_set(err, STATUS_BAD_INPUT, "%s: token %zu is not UTF-8", vocab->path, i);
    }
    return STATUS_OK;
}

static enum status append_json(const struct vocab *vocab, const json_t *json, struct buf *out,
                               struct err *err)
{
    char *const text = json == NULL ? NULL : json_dumps(json, JSON_COMPACT);
    enum status st;

    if (text == NULL)
        return no_memory(vocab, err);
    st = buf_append(out, text, strlen(text), err);
    free(text);
    return st;
}

/* The chat template; where there are several with names, a list, as tokenizer_config.json has it.
 * Borrowed strings become the config's own. Of names there are those in use. */
static enum status add_chat_templates(struct vocab *vocab, json_t *config, struct err *err)
{
    static const char *const names[] = { "default", "tool_use", "rag" };
    static const char *const keys[] = { "tokenizer.chat_template",
                                        "tokenizer.chat_template.tool_use",
                                        "tokenizer.chat_template.rag" };
    json_t *list = json_array();
    enum status st = STATUS_OK;

    for (size_t i = 0; i < 3 && st == STATUS_OK; i++) {
        const struct gguf_value *value = gguf__find(&vocab->meta, keys[i]);
        const char *text = NULL;

        st = gguf__get_string(&vocab->meta, vocab->path, keys[i], &text, err);
        if (st == STATUS_OK && value != NULL && text != NULL &&
            json_array_append_new(list, json_pack("{s:s, s:s#}", "name", names[i], "template",
                                                  text, (int)value->string_size)) != 0)
            st = err_set(err, STATUS_BAD_INPUT, "%s: \"%s\" is not UTF-8", vocab->path, keys[i]);
    }
    if (st == STATUS_OK && json_array_size(list) == 1 &&
        gguf__find(&vocab->meta, keys[0]) != NULL)
        (void)json_object_set(config, "chat_template",
                              json_object_get(json_array_get(list, 0), "template"));
    else if (st == STATUS_OK && json_array_size(list) > 0)
        (void)json_object_set(config, "chat_template", list);
    json_decref(list);
    return st;
}

static enum status write_all(struct vocab *vocab, const struct gguf_pre *pre, struct buf *json_out,
                             struct buf *config_out, struct err *err)
{
    uint64_t id;
    const struct token *const unknown = token_of(vocab, KEY("unknown_token_id"), &id);
    const struct token *const bos = token_of(vocab, KEY("bos_token_id"), &id);
    const struct token *const eos = token_of(vocab, KEY("eos_token_id"), &id);
    const bool is_spm = pre == NULL;
    json_t *const ids = json_object();
    json_t *json, *config;
    enum status st = write_vocab(vocab, ids, err);

    json = json_pack(
        "{s:s, s:o, s:o?, s:o?, s:o, s:o, s:{s:s, s:s?, s:b, s:b, s:b, s:o, s:O}}", "version",
        "1.0", "added_tokens", added_tokens(vocab), "normalizer",
        is_spm ? spm_normalizer(vocab) : pre->nfc ? json_pack("{s:s}", "type", "NFC") : NULL,
        "pre_tokenizer", is_spm ? NULL : gguf__pre_tokenizer(pre), "post_processor",
        post_processor(vocab, is_spm || pre->adds_bos), "decoder",
        is_spm ? spm_decoder(vocab) : json_pack("{s:s}", "type", "ByteLevel"), "model", "type",
        "BPE", "unk_token", is_spm && unknown != NULL ? unknown->text : NULL, "fuse_unk",
        (int)is_spm, "byte_fallback", (int)is_spm, "ignore_merges",
        (int)(!is_spm && pre->whole_words), "vocab", ids, "merges", vocab->merges);
    config = json_pack("{s:s?, s:s?}", "bos_token", bos != NULL ? bos->text : NULL, "eos_token",
                       eos != NULL ? eos->text : NULL);
    if (st == STATUS_OK && config != NULL)
        st = add_chat_templates(vocab, config, err);
    if (st == STATUS_OK)
        st = append_json(vocab, json, json_out, err);
    if (st == STATUS_OK)
        st = append_json(vocab, config, config_out, err);
    json_decref(json);
    json_decref(config);
    return st;
}

static enum status convert(struct vocab *vocab, struct buf *json_out, struct buf *config_out,
                           struct err *err)
{
    const char *model = NULL, *pre_name = "default";
    const struct gguf_pre *pre = NULL;
    enum status st = gguf__get_string(&vocab->meta, vocab->path, KEY("model"), &model, err);

    if (st == STATUS_OK)
        st = gguf__get_string(&vocab->meta, vocab->path, KEY("pre"), &pre_name, err);
    if (st != STATUS_OK)
        return st;
    if (model != NULL && strcmp(model, "none") == 0)
        return err_set(err, STATUS_UNAVAILABLE, "%s: it has no tokenizer (" KEY("model")
                       " \"none\"), so text cannot be turned into token ids", vocab->path);
    if (model != NULL && strcmp(model, "gpt2") == 0)
        pre = gguf__find_pre(pre_name);
    if (model == NULL || (pre == NULL && strcmp(model, "llama") != 0))
        return err_set(err, STATUS_UNAVAILABLE, "%s: its tokenizer, " KEY("model")
                       " \"%.32s\" and " KEY("pre") " \"%.32s\", is not built, so text cannot be "
                       "turned into token ids", vocab->path, model != NULL ? model : "",
                       pre_name);
    st = read_tokens(vocab, err);
    if (st == STATUS_OK)
        st = read_types(vocab, err);
    if (st == STATUS_OK)
        st = pre != NULL ? read_merges(vocab, err) : read_scores(vocab, err);
    if (st == STATUS_OK && pre == NULL)
        st = make_merges(vocab, err);
    return st == STATUS_OK ? write_all(vocab, pre, json_out, config_out, err) : st;
}

enum status gguf_tokenizer_read(const char *path, struct buf *json_out, struct buf *config_out,
                                struct err *err)
{
    struct file file = { .fd = -1 };
    struct vocab vocab = { .path = path, .merges = json_array() };
    enum status st = file_open(path, &file, err);

    vocab.reader = malloc(sizeof(*vocab.reader));
    if (st == STATUS_OK && (vocab.reader == NULL || vocab.merges == NULL))
        st = no_memory(&vocab, err);
    if (st == STATUS_OK)
        st = map_create(0, &vocab.ids, err);
    if (st == STATUS_OK)
        st = gguf__open_meta(&file, vocab.reader, &vocab.meta, err);
    if (st == STATUS_OK)
        st = convert(&vocab, json_out, config_out, err);
    for (size_t i = 0; i < vocab.token_count; i++)
        free(vocab.tokens[i].text);
    free(vocab.tokens);
    map_destroy(vocab.ids);
    json_decref(vocab.merges);
    gguf__meta_deinit(&vocab.meta);
    free(vocab.reader);
    file_close(&file);
    return st;
}
