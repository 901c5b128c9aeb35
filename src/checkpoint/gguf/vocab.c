/* checkpoint/gguf/vocab.c - a Hugging Face folder's tokenizer as a GGUF file's:
 * tokenizer.c read backwards.
 *
 *     tokenizer.json, BPE of bytes          gpt2: tokens, their kinds, merges; `pre` for the cuts
 *     tokenizer.json, BPE with <0x0A>       llama: tokens, their kinds, scores. A token's score is
 *                                           the place of the first merge that makes it, negated, so
 *                                           that the pairs come in the same order
 *     tokenizer.model, where it is alone    the same: it becomes a tokenizer.json first
 *     config.json, generation_config.json   the ids of BOS and EOS
 *     tokenizer_config.json, *.jinja        chat templates */
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/json.h"
#include "base/map.h"
#include "base/size.h"
#include "checkpoint/gguf/gguf.h"
#include "checkpoint/gguf/export.h"
#include "checkpoint/gguf/pre.h"
#include "checkpoint/vocab/sentencepiece.h"
#include "checkpoint/vocab/vocab.h"

#define KEY(name) "tokenizer.ggml." name
#define SCORE_NONE (-1e9f) /* of what no merge makes */
#define MERGES_MAX (1u << 24) /* a float counts up to it */

enum kind { KIND_NORMAL = 1, KIND_UNKNOWN, KIND_CONTROL, KIND_USER, KIND_UNUSED, KIND_BYTE };

struct token {
    const char *text;    /* borrowed; NULL: no token has this id */
    size_t size;
    int32_t kind;
    float score;
};

struct vocab {
    const struct ckpt *ckpt;
    char path[PATH_MAX];         /* of tokenizer.json or tokenizer.model */
    json_t *json, *config;       /* tokenizer.json and tokenizer_config.json; config may be NULL */
    const json_t *model;
    bool is_spm;
    struct token *tokens;
    uint64_t count;
    struct gguf_header *header;
};

static enum status fail(const struct vocab *vocab, const char *what)
{
    return err_set(vocab->header->err, STATUS_BAD_INPUT, "%s: %s", vocab->path, what);
}

/* --- tokens ----------------------------------------------------------------------------------- */

static enum status add_token(struct vocab *vocab, const char *text, size_t size, const json_t *id,
                             int32_t kind)
{
    const json_int_t index = json_integer_value(id);

    if (!json_is_integer(id) || index < 0 || (uint64_t)index >= vocab->count)
        return err_set(vocab->header->err, STATUS_BAD_INPUT,
                       "%s: token '%.40s' has the id %" JSON_INTEGER_FORMAT ", the model has %"
                       PRIu64 " of them", vocab->path, text, index, vocab->count);
    vocab->tokens[index] = (struct token){ text, size, kind, 0 };
    return STATUS_OK;
}

static int32_t kind_of(const struct vocab *vocab, const char *text, size_t size)
{
    const char *const unknown = json_string_value(json_object_get(vocab->model, "unk_token"));

    if (!vocab->is_spm)
        return KIND_NORMAL;
    if (unknown != NULL && strcmp(text, unknown) == 0)
        return KIND_UNKNOWN;
    return size == 6 && memcmp(text, "<0x", 3) == 0 && text[5] == '>' ? KIND_BYTE : KIND_NORMAL;
}

static enum status read_tokens(struct vocab *vocab)
{
    json_t *const ids = json_object_get(vocab->model, "vocab");
    const json_t *const added = json_object_get(vocab->json, "added_tokens");
    enum status st = STATUS_OK;
    const char *text;
    size_t size, i;
    json_t *value;

    if (!json_is_object(ids))
        return fail(vocab, "\"vocab\" is not an object");
    json_object_keylen_foreach(ids, text, size, value)
    {
        if (st == STATUS_OK)
            st = add_token(vocab, text, size, value, kind_of(vocab, text, size));
    }
    json_array_foreach(added, i, value)
    {
        const json_t *const content = json_object_get(value, "content");
        const bool special = json_is_true(json_object_get(value, "special"));
        if (st == STATUS_OK && !json_is_string(content))
            st = fail(vocab, "an added token has no \"content\"");
        if (st == STATUS_OK)
            st = add_token(vocab, json_string_value(content), json_string_length(content),
                           json_object_get(value, "id"),
                           kind_of(vocab, json_string_value(content),
                                   json_string_length(content)) == KIND_UNKNOWN
                               ? KIND_UNKNOWN : special ? KIND_CONTROL : KIND_USER);
    }
    return st;
}

struct sides {
    const char *left, *right;    /* borrowed */
    size_t left_size, right_size;
};

/* Of a merge, which is "a b" or ["a", "b"]; false when it is neither. */
static bool cut_merge(const json_t *merge, struct sides *out)
{
    const json_t *const first = json_array_get(merge, 0), *const second = json_array_get(merge, 1);
    const char *const text = json_string_value(merge);
    const char *const space = text != NULL ? strchr(text, ' ') : NULL;

    if (json_is_string(first) && json_is_string(second)) {
        *out = (struct sides){ json_string_value(first), json_string_value(second),
                               json_string_length(first), json_string_length(second) };
        return true;
    }
    if (space == NULL)
        return false;
    *out = (struct sides){ text, space + 1, (size_t)(space - text),
                           json_string_length(merge) - (size_t)(space - text) - 1 };
    return true;
}

/* Calls `visit` with each merge's two sides, and what is put between them. */
static enum status walk_merges(struct vocab *vocab,
                               enum status (*visit)(struct vocab *vocab, void *context, size_t rank,
                                                    const struct buf *joined),
                               void *context, const char *between)
{
    const json_t *const merges = json_object_get(vocab->model, "merges");
    struct err *const err = vocab->header->err;
    enum status st = STATUS_OK;
    const json_t *merge;
    struct buf joined;
    size_t rank;

    buf_init(&joined, GGUF_STRING_BYTES_MAX);
    json_array_foreach(merges, rank, merge)
    {
        struct sides sides = { 0 };
        if (st == STATUS_OK && !cut_merge(merge, &sides))
            st = fail(vocab, "a merge is neither \"a b\" nor [\"a\", \"b\"]");
        buf_clear(&joined);
        if (st == STATUS_OK)
            st = buf_append(&joined, sides.left, sides.left_size, err);
        if (st == STATUS_OK)
            st = buf_append(&joined, between, strlen(between), err);
        if (st == STATUS_OK)
            st = buf_append(&joined, sides.right, sides.right_size, err);
        if (st == STATUS_OK)
            st = visit(vocab, context, rank, &joined);
    }
    buf_deinit(&joined);
    return st;
}

static enum status score_merge(struct vocab *vocab, void *context, size_t rank,
                               const struct buf *joined)
{
    const struct map *const ids = context;
    uint64_t id;

    if (map_get(ids, joined->data, joined->size, &id) && vocab->tokens[id].score == SCORE_NONE)
        vocab->tokens[id].score = -(float)rank;
    return STATUS_OK;
}

static enum status find_scores(struct vocab *vocab)
{
    struct map *ids = NULL;
    enum status st = map_create((size_t)vocab->count, &ids, vocab->header->err);

    for (uint64_t i = 0; st == STATUS_OK && i < vocab->count; i++) {
        struct token *const token = &vocab->tokens[i];
        if (token->text == NULL || token->kind != KIND_NORMAL)
            continue;
        token->score = SCORE_NONE;
        st = map_set(ids, token->text, token->size, i, vocab->header->err);
    }
    if (st == STATUS_OK)
        st = walk_merges(vocab, score_merge, ids, "");
    map_destroy(ids);
    return st;
}

static enum status put_merge(struct vocab *vocab, void *context, size_t rank,
                             const struct buf *joined)
{
    (void)context;
    (void)rank;
    gguf__write_text_item(vocab->header, joined->data, joined->size);
    return vocab->header->status;
}

static void put_tokens(struct vocab *vocab)
{
    struct gguf_header *const header = vocab->header;

    gguf__write_array(header, KEY("tokens"), GGUF_STRING, vocab->count);
    for (uint64_t i = 0; i < vocab->count; i++) {
        struct token *const token = &vocab->tokens[i];
        char unused[32];
        if (token->text != NULL) {
            gguf__write_text_item(header, token->text, token->size);
            continue;
        }
        token->kind = KIND_UNUSED;
        (void)snprintf(unused, sizeof(unused), "[PAD%" PRIu64 "]", i);
        gguf__write_text_item(header, unused, strlen(unused));
    }
    gguf__write_array(header, KEY("token_type"), GGUF_INT32, vocab->count);
    for (uint64_t i = 0; i < vocab->count; i++)
        gguf__write_item(header, &vocab->tokens[i].kind, sizeof(vocab->tokens[i].kind));
    if (!vocab->is_spm)
        return;
    gguf__write_array(header, KEY("scores"), GGUF_FLOAT32, vocab->count);
    for (uint64_t i = 0; i < vocab->count; i++)
        gguf__write_item(header, &vocab->tokens[i].score, sizeof(vocab->tokens[i].score));
}

/* --- what stands around the text -------------------------------------------------------------- */

/* The template of one text, in a post-processor or in one of a sequence. */
static const json_t *find_single(const json_t *processor)
{
    const json_t *const list = json_object_get(processor, "processors");
    const json_t *single = json_object_get(processor, "single");
    const json_t *one;
    size_t i;

    json_array_foreach(list, i, one)
    {
        if (single == NULL)
            single = json_object_get(one, "single");
    }
    return single;
}

static void put_added(struct vocab *vocab)
{
    const json_t *const single = find_single(json_object_get(vocab->json, "post_processor"));
    const size_t count = json_array_size(single);

    gguf__write_bool(vocab->header, KEY("add_bos_token"),
                   count > 0 && json_object_get(json_array_get(single, 0), "SpecialToken") != NULL);
    gguf__write_bool(vocab->header, KEY("add_eos_token"),
                   count > 1 &&
                       json_object_get(json_array_get(single, count - 1), "SpecialToken") != NULL);
}

/* Whether a space comes before the text: by the normaliser of old files, or Metaspace. */
static bool adds_space(const json_t *json)
{
    const json_t *const steps =
        json_object_get(json_object_get(json, "normalizer"), "normalizers");
    const char *const scheme = json_string_value(
        json_object_get(json_object_get(json, "pre_tokenizer"), "prepend_scheme"));
    const json_t *step;
    size_t i;

    json_array_foreach(steps, i, step)
    {
        if (json_object_get(step, "prepend") != NULL)
            return true;
    }
    return scheme != NULL && strcmp(scheme, "never") != 0;
}

/* An id under the key, where the configuration has one. */
static void put_id(struct vocab *vocab, const char *key, const json_t *id)
{
    if (json_is_integer(id) && json_integer_value(id) >= 0 &&
        (uint64_t)json_integer_value(id) < vocab->count)
        gguf__write_count(vocab->header, key, (uint64_t)json_integer_value(id));
}

static enum status put_ids(struct vocab *vocab)
{
    static const char *const ends[] = { KEY("eos_token_id"), KEY("eot_token_id"),
                                        KEY("eom_token_id") };
    const json_t *const config = ckpt_config(vocab->ckpt);
    const json_t *eos = json_object_get(config, "eos_token_id");
    json_t *generation = NULL;
    enum status st = ckpt_vocab_read_beside(ckpt_path(vocab->ckpt), "generation_config.json",
                                            &generation, vocab->header->err);

    if (st != STATUS_OK)
        return st;
    if (json_object_get(generation, "eos_token_id") != NULL)
        eos = json_object_get(generation, "eos_token_id");
    put_id(vocab, KEY("bos_token_id"), json_object_get(config, "bos_token_id"));
    put_id(vocab, ends[0], eos);
    for (size_t i = 0; i < sizeof(ends) / sizeof(ends[0]); i++)
        put_id(vocab, ends[i], json_array_get(eos, i));
    put_id(vocab, KEY("padding_token_id"), json_object_get(config, "pad_token_id"));
    for (uint64_t i = 0; i < vocab->count; i++)
        if (vocab->is_spm && vocab->tokens[i].kind == KIND_UNKNOWN) {
            gguf__write_count(vocab->header, KEY("unknown_token_id"), i);
            break;
        }
    json_decref(generation);
    return STATUS_OK;
}

/* --- chat templates --------------------------------------------------------------------------- */

static void put_templates(struct vocab *vocab, const json_t *list)
{
    const json_t *one;
    size_t i;

    json_array_foreach(list, i, one)
    {
        const char *const name = json_string_value(json_object_get(one, "name"));
        const json_t *const text = json_object_get(one, "template");
        char key[128];
        if (name == NULL || !json_is_string(text))
            continue;
        (void)snprintf(key, sizeof(key), "tokenizer.chat_template%s%.64s",
                       strcmp(name, "default") == 0 ? "" : ".",
                       strcmp(name, "default") == 0 ? "" : name);
        gguf__write_string(vocab->header, key, json_string_value(text), json_string_length(text));
    }
}

static enum status put_chat(struct vocab *vocab)
{
    const json_t *const chat = json_object_get(vocab->config, "chat_template");
    char path[PATH_MAX];
    enum status st = STATUS_OK;
    struct buf text;

    buf_init(&text, GGUF_STRING_BYTES_MAX);
    if ((size_t)snprintf(path, sizeof(path), "%s/chat_template.jinja", ckpt_path(vocab->ckpt)) <
            sizeof(path) && file_exists(path)) {
        st = file_read_all(path, &text, vocab->header->err);
        if (st == STATUS_OK && text.size > 0)
            gguf__write_string(vocab->header, "tokenizer.chat_template", text.data, text.size);
    } else if (json_is_string(chat)) {
        gguf__write_string(vocab->header, "tokenizer.chat_template", json_string_value(chat),
                         json_string_length(chat));
    } else {
        put_templates(vocab, chat);
    }
    buf_deinit(&text);
    return st;
}

/* --- all of it -------------------------------------------------------------------------------- */

static enum status find_pre(const struct vocab *vocab, const char **pre)
{
    const char *const found = gguf__pre_of(vocab->json);
    char known[256];

    gguf__pre_names(known, sizeof(known));
    if (*pre != NULL && gguf__find_pre(*pre) == NULL)
        return err_set(vocab->header->err, STATUS_BAD_INPUT,
                       "--pre: '%.64s' is none of the ways to cut text that are known; those are "
                       "%s", *pre, known);
    if (*pre == NULL)
        *pre = found;
    if (*pre == NULL)
        return err_set(vocab->header->err, STATUS_BAD_INPUT,
                       "%s: it cuts text in a way that GGUF files have no name for; --pre NAME "
                       "takes the nearest of %s", vocab->path, known);
    return STATUS_OK;
}

static enum status put_all(struct vocab *vocab, const char *pre)
{
    struct gguf_header *const header = vocab->header;
    const char *const kind = vocab->is_spm ? "llama" : "gpt2";
    enum status st = read_tokens(vocab);

    if (st == STATUS_OK && vocab->is_spm)
        st = find_scores(vocab);
    else if (st == STATUS_OK)
        st = find_pre(vocab, &pre);
    if (st != STATUS_OK)
        return st;
    pre = vocab->is_spm ? "default" : pre;
    gguf__write_string(header, KEY("model"), kind, strlen(kind));
    gguf__write_string(header, KEY("pre"), pre, strlen(pre));
    put_tokens(vocab);
    if (!vocab->is_spm) {
        gguf__write_array(header, KEY("merges"), GGUF_STRING,
                        json_array_size(json_object_get(vocab->model, "merges")));
        st = walk_merges(vocab, put_merge, NULL, " ");
    } else {
        gguf__write_bool(header, KEY("add_space_prefix"), adds_space(vocab->json));
    }
    put_added(vocab);
    if (st == STATUS_OK)
        st = put_ids(vocab);
    if (st == STATUS_OK)
        st = put_chat(vocab);
    return st == STATUS_OK ? header->status : st;
}

/* tokenizer.json, or what stands for it. */
static enum status read_tokenizer(struct vocab *vocab)
{
    struct err *const err = vocab->header->err;
    struct buf json, config;
    enum status st;

    if (!sentencepiece_is_alone(ckpt_path(vocab->ckpt)))
        return json_read_file(vocab->path, CKPT_VOCAB_FILE_BYTES_MAX, &vocab->json, err);
    buf_init(&json, CKPT_VOCAB_FILE_BYTES_MAX);
    buf_init(&config, CKPT_VOCAB_FILE_BYTES_MAX);
    st = sentencepiece_read(ckpt_path(vocab->ckpt), &json, &config, err);
    if (st == STATUS_OK)
        st = json_read(json.data, json.size, vocab->path, &vocab->json, err);
    buf_deinit(&json);
    buf_deinit(&config);
    return st;
}

static enum status open_vocab(struct vocab *vocab)
{
    const char *type;
    enum status st = read_tokenizer(vocab);

    if (st == STATUS_OK)
        st = ckpt_vocab_read_beside(ckpt_path(vocab->ckpt), "tokenizer_config.json",
                                    &vocab->config, vocab->header->err);
    if (st != STATUS_OK)
        return st;
    vocab->model = json_object_get(vocab->json, "model");
    type = json_string_value(json_object_get(vocab->model, "type"));
    vocab->is_spm = json_is_true(json_object_get(vocab->model, "byte_fallback"));
    if (type != NULL && strcmp(type, "BPE") != 0)
        return err_set(vocab->header->err, STATUS_BAD_INPUT,
                       "%s: a tokenizer of kind \"%.32s\", BPE is written", vocab->path, type);
    if (json_array_size(json_object_get(vocab->model, "merges")) > MERGES_MAX)
        return fail(vocab, "more merges than are written");
    vocab->tokens = calloc((size_t)vocab->count + 1, sizeof(*vocab->tokens));
    if (vocab->tokens == NULL)
        return err_set(vocab->header->err, STATUS_NO_MEMORY, "%s: no memory for %" PRIu64
                       " tokens", vocab->path, vocab->count);
    return STATUS_OK;
}

enum status gguf__export_tokenizer(const struct ckpt *ckpt, const char *pre, uint64_t count,
                                   struct gguf_header *header)
{
    struct vocab vocab = { .ckpt = ckpt, .count = count, .header = header };
    const bool is_alone = sentencepiece_is_alone(ckpt_path(ckpt));
    enum status st;

    if ((size_t)snprintf(vocab.path, sizeof(vocab.path), "%s/tokenizer.%s", ckpt_path(ckpt),
                         is_alone ? "model" : "json") >= sizeof(vocab.path) ||
        !file_exists(vocab.path))
        return STATUS_OK;
    st = open_vocab(&vocab);
    if (st == STATUS_OK)
        st = put_all(&vocab, pre);
    free(vocab.tokens);
    json_decref(vocab.json);
    json_decref(vocab.config);
    return st;
}
