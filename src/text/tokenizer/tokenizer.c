/* text/tokenizer/tokenizer.c - opening a tokenizer, and the way of a text through its parts.
 *
 * "truncation" and "padding" of the file are not asked: they are for training batches, and what
 * serves a model turns them off. */
#include "text/tokenizer/internal.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/json.h"
#include "base/utf8.h"

#define CONFIG_BYTES_MAX ((size_t)16 << 20)
#define PATH_BYTES_MAX 4096

/* --- opening ---------------------------------------------------------------------------------- */

/* "bos_token": "<s>", or {"content": "<s>", ...}; -1 when it is not said or not known. */
static int32_t token_of_config(const struct tokenizer *tokenizer, const json_t *config,
                               const char *key)
{
    const json_t *value = json_object_get(config, key);

    if (json_is_object(value))
        value = json_object_get(value, "content");
    return json_is_string(value) ? tokenizer_find(tokenizer, json_string_value(value)) : -1;
}


/* A template's ids go into the model unseen, so each must be a token's. */
static enum status check_template(const struct tokenizer *tokenizer, const int32_t *ids,
                                  size_t count, struct err *err)
{
    for (size_t i = 0; i < count; i++) {
        size_t size;
        if (tokenizer_token(tokenizer, ids[i], &size) == NULL)
            return err_set(err, STATUS_BAD_INPUT,
                           "post_processor: it adds the id %d, which no token has", ids[i]);
    }
    return STATUS_OK;
}

static enum status init_parts(struct tokenizer *tokenizer, const json_t *json, struct err *err)
{
    enum status st;

    st = bpe_init(&tokenizer->bpe, json_object_get(json, "model"), "model", err);
    if (st == STATUS_OK)
        st = normalizers_init(&tokenizer->normalizers, json_object_get(json, "normalizer"),
                              "normalizer", err);
    if (st == STATUS_OK)
        st = pretokenizers_init(&tokenizer->pretokenizers, json_object_get(json, "pre_tokenizer"),
                                "pre_tokenizer", err);
    if (st == STATUS_OK)
        st = postprocessor_init(&tokenizer->postprocessor,
                                json_object_get(json, "post_processor"), "post_processor", err);
    if (st == STATUS_OK)
        st = decoders_init(&tokenizer->decoders, json_object_get(json, "decoder"), "decoder", err);
    if (st == STATUS_OK)
        st = added_init(&tokenizer->added, json_object_get(json, "added_tokens"), &tokenizer->bpe,
                        &tokenizer->normalizers, "added_tokens", err);
    if (st == STATUS_OK)
        st = check_template(tokenizer, tokenizer->postprocessor.before,
                            tokenizer->postprocessor.before_count, err);
    if (st == STATUS_OK)
        st = check_template(tokenizer, tokenizer->postprocessor.after,
                            tokenizer->postprocessor.after_count, err);
    if (st != STATUS_OK)
        return err_prefix(err, st, "%s", tokenizer->what);
    tokenizer->id_limit = tokenizer->bpe.vocab.id_limit;
    if (tokenizer->added.id_limit > tokenizer->id_limit)
        tokenizer->id_limit = tokenizer->added.id_limit;
    return STATUS_OK;
}

static enum status open_config(struct tokenizer *tokenizer, const char *text, size_t size,
                               struct err *err)
{
    json_t *config;
    enum status st = json_read(text, size, "tokenizer_config.json", &config, err);

    if (st != STATUS_OK)
        return err_prefix(err, st, "beside %s", tokenizer->what);
    tokenizer->bos_id = token_of_config(tokenizer, config, "bos_token");
    tokenizer->eos_id = token_of_config(tokenizer, config, "eos_token");
    json_decref(config);
    return STATUS_OK;
}

enum status tokenizer_open_json(const char *text, size_t text_size, const char *config_text,
                                size_t config_size, const char *what,
                                struct tokenizer **tokenizer_out, struct err *err)
{
    struct tokenizer *tokenizer = NULL;
    json_t *json = NULL;
    enum status st;

    if (text_size > TOKENIZER_FILE_BYTES_MAX)
        return err_set(err, STATUS_BAD_INPUT, "%s: %zu bytes, at most %zu are read", what,
                       text_size, TOKENIZER_FILE_BYTES_MAX);
    st = json_read(text, text_size, what, &json, err);
    if (st != STATUS_OK)
        return st;
    tokenizer = calloc(1, sizeof(*tokenizer));
    if (tokenizer == NULL || (tokenizer->what = strdup(what)) == NULL) {
        st = err_set(err, STATUS_NO_MEMORY, "%s: no memory for a tokenizer", what);
        goto fail;
    }
    tokenizer->bos_id = -1;
    tokenizer->eos_id = -1;
    st = init_parts(tokenizer, json, err);
    if (st == STATUS_OK && config_text != NULL)
        st = open_config(tokenizer, config_text, config_size, err);
    if (st != STATUS_OK)
        goto fail;
    json_decref(json);
    *tokenizer_out = tokenizer;
    return STATUS_OK;
fail:
    json_decref(json);
    tokenizer_close(tokenizer);
    return st;
}

enum status tokenizer_open(const char *model_path, struct tokenizer **tokenizer_out,
                           struct err *err)
{
    char path[PATH_BYTES_MAX];
    char config_path[PATH_BYTES_MAX];
    struct buf text;
    struct buf config;
    enum status st = STATUS_OK;

    if (snprintf(path, sizeof(path), "%s/tokenizer.json", model_path) >= (int)sizeof(path) ||
        snprintf(config_path, sizeof(config_path), "%s/tokenizer_config.json", model_path) >=
            (int)sizeof(config_path))
        return err_set(err, STATUS_BAD_INPUT, "%.64s...: the path is too long", model_path);
    if (!file_exists(path))
        return err_set(err, STATUS_UNAVAILABLE, "%s: there is no such file, so text cannot be "
                       "turned into token ids", path);
    buf_init(&text, TOKENIZER_FILE_BYTES_MAX);
    buf_init(&config, CONFIG_BYTES_MAX);
    st = file_read_all(path, &text, err);
    if (st == STATUS_OK && file_exists(config_path))
        st = file_read_all(config_path, &config, err);
    if (st == STATUS_OK)
        st = tokenizer_open_json(text.data != NULL ? text.data : "", text.size, config.data,
                                 config.size, path, tokenizer_out, err);
    buf_deinit(&text);
    buf_deinit(&config);
    return st;
}

void tokenizer_close(struct tokenizer *tokenizer)
{
    if (tokenizer == NULL)
        return;
    added_deinit(&tokenizer->added);
    decoders_deinit(&tokenizer->decoders);
    pretokenizers_deinit(&tokenizer->pretokenizers);
    normalizers_deinit(&tokenizer->normalizers);
    bpe_deinit(&tokenizer->bpe);
    free(tokenizer->what);
    free(tokenizer);
}

/* --- ids -------------------------------------------------------------------------------------- */

void token_ids_deinit(struct token_ids *ids)
{
    free(ids->ids);
    *ids = (struct token_ids){ NULL, 0, 0 };
}

enum status token_ids_push(struct token_ids *ids, int32_t id, struct err *err)
{
    if (ids->count == ids->capacity) {
        const size_t capacity = ids->capacity == 0 ? 64 : 2 * ids->capacity;
        int32_t *grown = realloc(ids->ids, capacity * sizeof(*grown));

        if (grown == NULL)
            return err_set(err, STATUS_NO_MEMORY, "no memory for %zu token ids", capacity);
        ids->ids = grown;
        ids->capacity = capacity;
    }
    ids->ids[ids->count++] = id;
    return STATUS_OK;
}

uint32_t tokenizer_id_limit(const struct tokenizer *tokenizer)
{
    return tokenizer->id_limit;
}

int32_t tokenizer_find(const struct tokenizer *tokenizer, const char *content)
{
    const struct added_token *token = added_find(&tokenizer->added, content, strlen(content));

    return token != NULL ? token->id : vocab_find(&tokenizer->bpe.vocab, content, strlen(content));
}

bool tokenizer_is_special(const struct tokenizer *tokenizer, int32_t id)
{
    const struct added_token *token = added_by_id(&tokenizer->added, id);

    return token != NULL && token->special;
}

int32_t tokenizer_bos_id(const struct tokenizer *tokenizer)
{
    return tokenizer->bos_id;
}

int32_t tokenizer_eos_id(const struct tokenizer *tokenizer)
{
    return tokenizer->eos_id;
}

const char *tokenizer_added_content(const struct tokenizer *tokenizer, int32_t id,
                                    size_t *size_out)
{
    const struct added_token *token = added_by_id(&tokenizer->added, id);

    if (token == NULL)
        return NULL;
    *size_out = token->content.size;
    return token->content.bytes;
}

const char *tokenizer_token(const struct tokenizer *tokenizer, int32_t id, size_t *size_out)
{
    const struct added_token *token = added_by_id(&tokenizer->added, id);

    if (token == NULL)
        return vocab_string(&tokenizer->bpe.vocab, id, size_out);
    if (token->normalized.bytes != NULL) {
        *size_out = token->normalized.size;
        return token->normalized.bytes;
    }
    *size_out = token->content.size;
    return token->content.bytes;
}

/* --- encoding --------------------------------------------------------------------------------- */

/* Appends the text with U+FFFD for each maximal part that is not UTF-8. */
static enum status sanitise(const char *text, size_t size, struct buf *out, struct err *err)
{
    enum status st = buf_reserve(out, size, err);

    for (size_t i = 0; i < size && st == STATUS_OK;) {
        uint32_t code_point;
        bool valid;
        const size_t length = utf8_decode(text + i, size - i, &code_point, &valid);

        st = buf_append(out, valid ? text + i : "\xEF\xBF\xBD", valid ? length : 3, err);
        i += length;
    }
    return st;
}

/* Merges that end in a control token, of text that is somebody's input. */
static enum status check_ids(const struct encoder *encoder, size_t from, struct err *err)
{
    const struct token_ids *out = encoder->out;

    for (size_t i = from; i < out->count; i++) {
        if (encoder->controls[out->ids[i]] && out->ids[i] != encoder->tokenizer->bpe.unk_id)
            return err_set(err, STATUS_BAD_INPUT, "the tokenizer makes the control token %d of "
                           "plain text", out->ids[i]);
    }
    return STATUS_OK;
}

static enum status encode_piece(struct encoder *encoder, const struct added_scan *scan, size_t end,
                                size_t lead, struct err *err)
{
    const size_t before = encoder->out->count;
    const size_t size = end - scan->done;
    enum status st = pretokenizers_run(encoder, scan->text + scan->done, size,
                                       lead > scan->done ? lead - scan->done : 0, err);

    if (st == STATUS_OK && scan->marks != NULL && memchr(scan->marks + scan->done, 1, size) != NULL)
        st = check_ids(encoder, before, err);
    return st;
}

/* Text between added tokens, already normalised; marks may be NULL. */
static enum status encode_normalized(struct encoder *encoder, const uint8_t *marks, size_t lead,
                                     struct err *err)
{
    const struct added *added = &encoder->tokenizer->added;
    const struct buf *text = &encoder->normalized;
    struct added_scan scan = { .added = added, .trie = &added->normalized, .text = text->data,
                               .size = text->size, .marks = marks,
                               .controls = encoder->controls };
    const struct added_token *token;
    size_t start;
    size_t end;
    enum status st = STATUS_OK;

    while (st == STATUS_OK && added_scan_next(&scan, &token, &start, &end)) {
        if (scan.done < start)
            st = encode_piece(encoder, &scan, start, lead, err);
        if (st == STATUS_OK)
            st = token_ids_push(encoder->out, token->id, err);
        scan.done = end;
    }
    if (st == STATUS_OK && scan.done < text->size)
        st = encode_piece(encoder, &scan, text->size, lead, err);
    return st;
}

static enum status normalize(struct encoder *encoder, const char *text, size_t size, bool is_first,
                             size_t *lead_out, struct err *err)
{
    uint32_t code_point;
    enum status st;

    *lead_out = is_first ? utf8_decode(text, size, &code_point, NULL) : 0;
    buf_clear(&encoder->normalized);
    st = buf_append(&encoder->normalized, text, size, err);
    if (st == STATUS_OK)
        st = normalizers_run(&encoder->tokenizer->normalizers, &encoder->normalized, lead_out,
                             &encoder->scratch, err);
    return st;
}

/* Whether a control token is found in the normalised text by its looks. */
static bool has_control(const struct encoder *encoder)
{
    const struct added *added = &encoder->tokenizer->added;
    struct added_scan scan = { .added = added, .trie = &added->normalized,
                               .text = encoder->normalized.data,
                               .size = encoder->normalized.size };
    const struct added_token *token;
    size_t start;
    size_t end;

    while (added_scan_next(&scan, &token, &start, &end)) {
        if (encoder->controls[token->id])
            return true;
        scan.done = end;
    }
    return false;
}

/* Marks for the normalised text where all bytes have the same: in encoder->marks. */
static enum status same_marks(struct encoder *encoder, uint8_t mark, struct err *err)
{
    const size_t size = encoder->normalized.size;
    enum status st;

    buf_clear(&encoder->marks);
    st = buf_reserve(&encoder->marks, size, err);
    if (st == STATUS_OK && size > 0)
        memset(encoder->marks.data, mark, size);
    return st;
}

/* Text between added tokens, as it came, with its marks or NULL. is_first: it starts where the
 * input starts.
 *
 * Marks are known for the text as it came. Where normalising leaves it alone, or all of it has one
 * mark, they are known for the normalised text too. Else they matter only when the normalised text
 * has what looks like a control token: then the hands' shares are normalised each on their own. */
static enum status encode_stretch(struct encoder *encoder, const char *text, const uint8_t *marks,
                                  size_t size, bool is_first, struct err *err)
{
    size_t lead;
    size_t same = 1;
    enum status st = normalize(encoder, text, size, is_first, &lead, err);

    if (st != STATUS_OK || marks == NULL)
        return st == STATUS_OK ? encode_normalized(encoder, NULL, lead, err) : st;
    if (encoder->normalized.size == size && memcmp(encoder->normalized.data, text, size) == 0)
        return encode_normalized(encoder, marks, lead, err);
    while (same < size && marks[same] == marks[0])
        same++;
    if (same == size || !has_control(encoder)) {
        st = same_marks(encoder, same == size ? marks[0] : 1, err);
        return st == STATUS_OK
                   ? encode_normalized(encoder, (const uint8_t *)encoder->marks.data, lead, err)
                   : st;
    }
    for (size_t from = 0; from < size && st == STATUS_OK; from = same) {
        for (same = from + 1; same < size && marks[same] == marks[from];)
            same++;
        st = encode_stretch(encoder, text + from, marks + from, same - from,
                            is_first && from == 0, err);
    }
    return st;
}

static enum status encode_text(struct encoder *encoder, const char *text, const uint8_t *marks,
                               size_t size, struct err *err)
{
    const struct added *added = &encoder->tokenizer->added;
    struct added_scan scan = { .added = added, .trie = &added->plain, .text = text, .size = size,
                               .marks = marks, .controls = encoder->controls };
    const struct added_token *token;
    size_t start;
    size_t end;
    enum status st = STATUS_OK;

    while (st == STATUS_OK && added_scan_next(&scan, &token, &start, &end)) {
        if (scan.done < start)
            st = encode_stretch(encoder, text + scan.done,
                                marks != NULL ? marks + scan.done : NULL, start - scan.done,
                                scan.done == 0, err);
        if (st == STATUS_OK)
            st = token_ids_push(encoder->out, token->id, err);
        scan.done = end;
    }
    if (st == STATUS_OK && scan.done < size)
        st = encode_stretch(encoder, text + scan.done, marks != NULL ? marks + scan.done : NULL,
                            size - scan.done, scan.done == 0, err);
    return st;
}

static struct encoder *encoder_create(const struct tokenizer *tokenizer, size_t text_size,
                                      struct token_ids *out)
{
    struct encoder *encoder = calloc(1, sizeof(*encoder));
    size_t normalized_max = TEXT_GROWTH_BASE + TEXT_GROWTH_MAX * text_size;

    if (encoder == NULL)
        return NULL;
    encoder->tokenizer = tokenizer;
    encoder->out = out;
    if (normalized_max > TEXT_NORMALIZED_MAX)
        normalized_max = TEXT_NORMALIZED_MAX;
    buf_init(&encoder->normalized, normalized_max);
    buf_init(&encoder->scratch, normalized_max);
    buf_init(&encoder->marks, normalized_max);
    buf_init(&encoder->bpe.decorated, 4 * CONTENT_BYTES_MAX);
    for (size_t i = 0; i < STEPS_MAX; i++) { /* several of Metaspace and ByteLevel may follow */
        buf_init(&encoder->step_text[i], 4 * TEXT_NORMALIZED_MAX);
        buf_init(&encoder->step_mapped[i], 4 * TEXT_NORMALIZED_MAX);
    }
    return encoder;
}

static void encoder_destroy(struct encoder *encoder)
{
    buf_deinit(&encoder->normalized);
    buf_deinit(&encoder->scratch);
    buf_deinit(&encoder->marks);
    for (size_t i = 0; i < STEPS_MAX; i++) {
        buf_deinit(&encoder->step_text[i]);
        buf_deinit(&encoder->step_mapped[i]);
        pattern_scratch_deinit(&encoder->step_search[i]);
    }
    bpe_scratch_deinit(&encoder->bpe);
    free(encoder);
}

static enum status push_all(struct token_ids *out, const int32_t *ids, size_t count,
                            struct err *err)
{
    enum status st = STATUS_OK;

    for (size_t i = 0; i < count && st == STATUS_OK; i++)
        st = token_ids_push(out, ids[i], err);
    return st;
}

enum status tokenizer_encode(const struct tokenizer *tokenizer, const char *text, size_t size,
                             bool add_special, struct token_ids *ids_out, struct err *err)
{
    const struct postprocessor *postprocessor = &tokenizer->postprocessor;
    const size_t count_before = ids_out->count;
    struct encoder *encoder;
    struct buf sane;
    enum status st = STATUS_OK;

    if (size > TEXT_BYTES_MAX)
        return err_set(err, STATUS_BAD_INPUT, "a text of %zu bytes, at most %zu are tokenized",
                       size, TEXT_BYTES_MAX);
    encoder = encoder_create(tokenizer, size, ids_out);
    if (encoder == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory to tokenize");
    buf_init(&sane, 3 * TEXT_BYTES_MAX);
    if (!utf8_is_valid(text, size)) {
        st = sanitise(text, size, &sane, err);
        text = sane.data;
        size = sane.size;
    }
    if (st == STATUS_OK && add_special)
        st = push_all(ids_out, postprocessor->before, postprocessor->before_count, err);
    if (st == STATUS_OK && !postprocessor->drops_text)
        st = encode_text(encoder, text, NULL, size, err);
    if (st == STATUS_OK && add_special)
        st = push_all(ids_out, postprocessor->after, postprocessor->after_count, err);
    if (st != STATUS_OK)
        ids_out->count = count_before;
    buf_deinit(&sane);
    encoder_destroy(encoder);
    return st;
}

enum status tokenizer_encode_marked(const struct tokenizer *tokenizer, const char *text,
                                    const uint8_t *marks, size_t size, const uint8_t *controls,
                                    struct token_ids *ids_out, struct err *err)
{
    const size_t count_before = ids_out->count;
    struct encoder *encoder;
    enum status st;

    if (size > TEXT_BYTES_MAX)
        return err_set(err, STATUS_BAD_INPUT, "a text of %zu bytes, at most %zu are tokenized",
                       size, TEXT_BYTES_MAX);
    if (!utf8_is_valid(text, size))
        return err_set(err, STATUS_BAD_INPUT, "the text is not UTF-8");
    encoder = encoder_create(tokenizer, size, ids_out);
    if (encoder == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory to tokenize");
    encoder->controls = controls;
    st = encode_text(encoder, text, marks, size, err);
    if (st != STATUS_OK)
        ids_out->count = count_before;
    encoder_destroy(encoder);
    return st;
}
