/* checkpoint/vocab/vocab.c - see vocab.h. */
#include "checkpoint/vocab/vocab.h"

#include <assert.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/json.h"

#define CUT_BYTES_MAX 1024u /* longer tokens are not made of merges */

enum status ckpt_vocab_no_memory(const struct ckpt_vocab *vocab, struct err *err)
{
    return err_set(err, STATUS_NO_MEMORY, "%s: no memory for its tokenizer", vocab->path);
}

enum status ckpt_vocab_init(struct ckpt_vocab *vocab, const char *path, struct err *err)
{
    *vocab = (struct ckpt_vocab){ .path = path, .merges = json_array() };
    if (vocab->merges == NULL)
        return ckpt_vocab_no_memory(vocab, err);
    return map_create(0, &vocab->ids, err);
}

void ckpt_vocab_deinit(struct ckpt_vocab *vocab)
{
    for (size_t i = 0; i < vocab->token_count; i++)
        free(vocab->tokens[i].text);
    free(vocab->tokens);
    map_destroy(vocab->ids);
    json_decref(vocab->merges);
    *vocab = (struct ckpt_vocab){ .path = vocab->path };
}

enum status ckpt_vocab_reserve(struct ckpt_vocab *vocab, size_t count, struct err *err)
{
    struct ckpt_vocab_token *grown;

    if (count > CKPT_VOCAB_TOKENS_MAX)
        return err_set(err, STATUS_BAD_INPUT, "%s: %zu tokens, at most %u are read", vocab->path,
                       count, CKPT_VOCAB_TOKENS_MAX);
    if (count <= vocab->capacity)
        return STATUS_OK;
    grown = reallocarray(vocab->tokens, count, sizeof(*grown));
    if (grown == NULL)
        return ckpt_vocab_no_memory(vocab, err);
    vocab->tokens = grown;
    vocab->capacity = count;
    return STATUS_OK;
}

enum status ckpt_vocab_add(struct ckpt_vocab *vocab, char *text, size_t size, struct err *err)
{
    const size_t id = vocab->token_count++;

    assert(id < vocab->capacity);
    vocab->tokens[id] =
        (struct ckpt_vocab_token){ .text = text, .size = size, .kind = CKPT_VOCAB_NORMAL };
    if (map_get(vocab->ids, text, size, NULL))
        return STATUS_OK;
    return map_set(vocab->ids, text, size, id, err);
}

const struct ckpt_vocab_token *ckpt_vocab_at(const struct ckpt_vocab *vocab, uint64_t id)
{
    return id < vocab->token_count ? &vocab->tokens[id] : NULL;
}

enum status ckpt_vocab_read_beside(const char *folder, const char *name, json_t **json_out,
                                   struct err *err)
{
    char path[PATH_MAX];

    *json_out = NULL;
    if ((size_t)snprintf(path, sizeof(path), "%s/%s", folder, name) >= sizeof(path) ||
        !file_exists(path))
        return STATUS_OK;
    return json_read_file(path, CKPT_VOCAB_FILE_BYTES_MAX, json_out, err);
}

/* --- merges ----------------------------------------------------------------------------------- */

struct merge {
    uint32_t id, left, right; /* of the tokens */
    float score;
};

struct merges {
    struct merge *items;
    size_t count, capacity;
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

static enum status push_merge(const struct ckpt_vocab *vocab, struct merges *merges,
                              struct merge merge, struct err *err)
{
    if (merges->count == merges->capacity) {
        const size_t wanted = merges->capacity == 0 ? 1024 : 2 * merges->capacity;
        struct merge *const grown = reallocarray(merges->items, wanted, sizeof(*grown));
        if (grown == NULL)
            return ckpt_vocab_no_memory(vocab, err);
        merges->items = grown;
        merges->capacity = wanted;
    }
    merges->items[merges->count++] = merge;
    return STATUS_OK;
}

/* All ways to cut a token at a character into two others. */
static enum status cut_token(const struct ckpt_vocab *vocab, uint32_t id, struct merges *merges,
                             struct err *err)
{
    const struct ckpt_vocab_token *const token = &vocab->tokens[id];
    enum status st = STATUS_OK;

    if (token->kind != CKPT_VOCAB_NORMAL || token->size > CUT_BYTES_MAX)
        return STATUS_OK;
    for (size_t at = 1; at < token->size && st == STATUS_OK; at++) {
        uint64_t left, right;
        if (((unsigned char)token->text[at] & 0xC0) != 0x80 &&
            map_get(vocab->ids, token->text, at, &left) &&
            map_get(vocab->ids, token->text + at, token->size - at, &right))
            st = push_merge(vocab, merges, (struct merge){ id, (uint32_t)left, (uint32_t)right,
                                                           token->score }, err);
    }
    return st;
}

enum status ckpt_vocab_make_merges(struct ckpt_vocab *vocab, struct err *err)
{
    struct merges merges = { 0 };
    enum status st = STATUS_OK;

    for (size_t i = 0; st == STATUS_OK && i < vocab->token_count; i++)
        st = cut_token(vocab, (uint32_t)i, &merges, err);
    if (merges.count > 0)
        qsort(merges.items, merges.count, sizeof(*merges.items), compare_merges);
    for (size_t i = 0; st == STATUS_OK && i < merges.count; i++) {
        const struct ckpt_vocab_token *const left = &vocab->tokens[merges.items[i].left];
        const struct ckpt_vocab_token *const right = &vocab->tokens[merges.items[i].right];
        if (json_array_append_new(vocab->merges,
                                  json_pack("[s%s%]", left->text, left->size, right->text,
                                            right->size)) != 0)
            st = err_set(err, STATUS_BAD_INPUT, "%s: token %" PRIu32 " is not UTF-8", vocab->path,
                         merges.items[i].id);
    }
    free(merges.items);
    return st;
}

/* --- writing ---------------------------------------------------------------------------------- */

static void add_special(const struct ckpt_vocab *vocab, const struct ckpt_vocab_token *token,
                        json_t *single, json_t *specials)
{
    (void)json_array_append_new(single, json_pack("{s:{s:s, s:i}}", "SpecialToken", "id",
                                                  token->text, "type_id", 0));
    (void)json_object_set_new(specials, token->text,
                              json_pack("{s:s, s:[I], s:[s]}", "id", token->text, "ids",
                                        (json_int_t)(token - vocab->tokens), "tokens",
                                        token->text));
}

/* Adds BOS and EOS as the frame asks for them. */
static json_t *post_processor(const struct ckpt_vocab *vocab, const struct ckpt_vocab_frame *frame)
{
    json_t *const single = json_array();
    json_t *const specials = json_object();

    if (frame->bos != NULL && frame->adds_bos)
        add_special(vocab, frame->bos, single, specials);
    (void)json_array_append_new(single, json_pack("{s:{s:s, s:i}}", "Sequence", "id", "A",
                                                  "type_id", 0));
    if (frame->eos != NULL && frame->adds_eos)
        add_special(vocab, frame->eos, single, specials);
    return json_pack("{s:s, s:o, s:o}", "type", "TemplateProcessing", "single", single,
                     "special_tokens", specials);
}

static json_t *added_tokens(const struct ckpt_vocab *vocab, json_t *more)
{
    json_t *const list = json_array();

    for (size_t i = 0; i < vocab->token_count; i++) {
        const struct ckpt_vocab_token *const token = &vocab->tokens[i];
        if (token->kind >= CKPT_VOCAB_UNKNOWN && token->kind <= CKPT_VOCAB_USER && token->size > 0)
            (void)json_array_append_new(
                list, json_pack("{s:i, s:s%, s:b, s:b, s:b, s:b, s:b}", "id", (int)i, "content",
                                token->text, token->size, "single_word", 0, "lstrip", 0, "rstrip",
                                0, "normalized", 0, "special", token->kind != CKPT_VOCAB_USER));
    }
    if (more != NULL)
        (void)json_array_extend(list, more);
    json_decref(more);
    return list;
}

static json_t *decoder(const struct ckpt_vocab_frame *frame)
{
    json_t *steps;

    if (!frame->is_spm)
        return json_pack("{s:s}", "type", "ByteLevel");
    steps = json_pack("[{s:s, s:{s:s}, s:s}, {s:s}, {s:s}]", "type", "Replace", "pattern",
                      "String", CKPT_VOCAB_SPACE, "content", " ", "type", "ByteFallback", "type",
                      "Fuse");
    if (frame->strips_space)
        (void)json_array_append_new(steps, json_pack("{s:s, s:s, s:i, s:i}", "type", "Strip",
                                                     "content", " ", "start", 1, "stop", 0));
    return json_pack("{s:s, s:o}", "type", "Sequence", "decoders", steps);
}

json_t *ckpt_vocab_normalizer(bool adds_space)
{
    json_t *const steps = json_array();

    if (adds_space)
        (void)json_array_append_new(steps, json_pack("{s:s, s:s}", "type", "Prepend", "prepend",
                                                     CKPT_VOCAB_SPACE));
    (void)json_array_append_new(steps, json_pack("{s:s, s:{s:s}, s:s}", "type", "Replace",
                                                 "pattern", "String", " ", "content",
                                                 CKPT_VOCAB_SPACE));
    return json_pack("{s:s, s:o}", "type", "Sequence", "normalizers", steps);
}

static enum status write_ids(const struct ckpt_vocab *vocab, json_t *object, struct err *err)
{
    for (size_t i = 0; i < vocab->token_count; i++) {
        const struct ckpt_vocab_token *const token = &vocab->tokens[i];
        if (json_object_setn_new(object, token->text, token->size,
                                 json_integer((json_int_t)i)) != 0)
            return err_set(err, STATUS_BAD_INPUT, "%s: token %zu is not UTF-8", vocab->path, i);
    }
    return STATUS_OK;
}

enum status ckpt_vocab_append_json(const struct ckpt_vocab *vocab, const json_t *json,
                                   struct buf *out, struct err *err)
{
    char *const text = json == NULL ? NULL : json_dumps(json, JSON_COMPACT);
    enum status st;

    if (text == NULL)
        return ckpt_vocab_no_memory(vocab, err);
    st = buf_append(out, text, strlen(text), err);
    free(text);
    return st;
}

enum status ckpt_vocab_write(const struct ckpt_vocab *vocab, const struct ckpt_vocab_frame *frame,
                             struct buf *json_out, struct err *err)
{
    json_t *const ids = json_object();
    enum status st = write_ids(vocab, ids, err);
    json_t *const json = json_pack(
        "{s:s, s:o, s:o?, s:o?, s:o, s:o, s:{s:s, s:s?, s:b, s:b, s:b, s:o, s:O}}", "version",
        "1.0", "added_tokens", added_tokens(vocab, frame->more_added), "normalizer",
        frame->normalizer, "pre_tokenizer", frame->pre_tokenizer, "post_processor",
        post_processor(vocab, frame), "decoder", decoder(frame), "model", "type", "BPE",
        "unk_token", frame->is_spm && frame->unknown != NULL ? frame->unknown->text : NULL,
        "fuse_unk", (int)frame->is_spm, "byte_fallback", (int)frame->is_spm, "ignore_merges",
        (int)frame->ignores_merges, "vocab", ids, "merges", vocab->merges);

    if (st == STATUS_OK)
        st = ckpt_vocab_append_json(vocab, json, json_out, err);
    json_decref(json);
    return st;
}
