/* checkpoint/vocab/sentencepiece.c - see sentencepiece.h.
 *
 * The file is a message of protocol buffers (https://protobuf.dev/programming-guides/encoding): a
 * row of fields, each a varint of 8 * number + wire type and then a varint (0), 8 bytes (1), a
 * varint's number of bytes (2) or 4 bytes (5). Of sentencepiece_model.proto are read:
 *
 *     1 pieces             1 piece, 2 score, 3 type
 *     2 trainer_spec       3 model_type, 24 treat_whitespace_as_suffix, 40 unk_id, 41 bos_id,
 *                          42 eos_id
 *     3 normalizer_spec    1 name, 2 precompiled_charsmap, 3 add_dummy_prefix,
 *                          4 remove_extra_whitespaces, 5 escape_whitespaces */
#include "checkpoint/vocab/sentencepiece.h"

#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/json.h"
#include "base/size.h"
#include "checkpoint/vocab/vocab.h"

#define VARINT_BYTES_MAX 10

enum wire { WIRE_VARINT, WIRE_8_BYTES, WIRE_BYTES, WIRE_4_BYTES = 5 };
enum model_type { MODEL_UNIGRAM = 1, MODEL_BPE, MODEL_WORD, MODEL_CHAR };

/* A message, or a part of one; positions are counted from the file's begin. */
struct message {
    const unsigned char *bytes;
    size_t at, end;
};

struct field {
    uint32_t number;
    enum wire wire;
    uint64_t value;       /* of all wires but WIRE_BYTES */
    struct message bytes; /* of WIRE_BYTES */
};

struct model {
    struct ckpt_vocab vocab;
    json_t *config;       /* tokenizer_config.json; NULL: there is none */
    json_t *more_added;   /* what files beside this one say of added tokens */
    uint64_t type;        /* enum model_type */
    uint64_t unk_id, bos_id, eos_id;
    uint64_t is_suffix, adds_prefix, removes_spaces, escapes_spaces;
    struct message normalizer_name, charsmap;
};

/* --- protocol buffers ------------------------------------------------------------------------- */

static enum status broken(const struct model *model, const struct message *message,
                          struct err *err)
{
    return err_set(err, STATUS_BAD_INPUT, "%s: what stands at byte %zu is no SentencePiece model",
                   model->vocab.path, message->at);
}

static bool take_varint(struct message *message, uint64_t *value_out)
{
    *value_out = 0;
    for (unsigned i = 0; i < VARINT_BYTES_MAX && message->at < message->end; i++) {
        const unsigned char byte = message->bytes[message->at++];
        *value_out |= (uint64_t)(byte & 0x7F) << (7 * i);
        if (byte < 0x80)
            return true;
    }
    return false;
}

static bool take_fixed(struct message *message, size_t size_bytes, uint64_t *value_out)
{
    *value_out = 0;
    if (message->end - message->at < size_bytes)
        return false;
    for (size_t i = 0; i < size_bytes; i++)
        *value_out |= (uint64_t)message->bytes[message->at++] << (8 * i);
    return true;
}

static bool take_bytes(struct message *message, struct message *bytes_out)
{
    uint64_t size_bytes;

    if (!take_varint(message, &size_bytes) || size_bytes > message->end - message->at)
        return false;
    *bytes_out = (struct message){ message->bytes, message->at, message->at + (size_t)size_bytes };
    message->at = bytes_out->end;
    return true;
}

/* The next field of the message, which has more. */
static enum status take_field(const struct model *model, struct message *message,
                              struct field *field, struct err *err)
{
    const struct message before = *message;
    uint64_t key;
    bool good = take_varint(message, &key) && key >> 3 <= UINT32_MAX;

    *field = (struct field){ 0 };
    if (!good)
        return broken(model, &before, err);
    field->number = (uint32_t)(key >> 3);
    field->wire = (enum wire)(key & 7);
    switch (field->wire) {
    case WIRE_VARINT: good = take_varint(message, &field->value); break;
    case WIRE_8_BYTES: good = take_fixed(message, 8, &field->value); break;
    case WIRE_4_BYTES: good = take_fixed(message, 4, &field->value); break;
    case WIRE_BYTES: good = take_bytes(message, &field->bytes); break;
    default: good = false;
    }
    return good ? STATUS_OK : broken(model, &before, err);
}

/* --- the model -------------------------------------------------------------------------------- */

static enum status read_piece(struct model *model, struct message message, struct err *err)
{
    struct message text = { message.bytes, message.at, message.at };
    uint64_t kind = CKPT_VOCAB_NORMAL;
    uint32_t score_bits = 0;
    struct ckpt_vocab_token *token;
    struct field field;
    enum status st = STATUS_OK;
    char *copy;

    while (st == STATUS_OK && message.at < message.end) {
        st = take_field(model, &message, &field, err);
        if (field.number == 1 && field.wire == WIRE_BYTES)
            text = field.bytes;
        else if (field.number == 2 && field.wire == WIRE_4_BYTES)
            score_bits = (uint32_t)field.value;
        else if (field.number == 3 && field.wire == WIRE_VARINT)
            kind = field.value;
    }
    if (st != STATUS_OK)
        return st;
    copy = strndup((const char *)text.bytes + text.at, text.end - text.at);
    if (copy == NULL)
        return ckpt_vocab_no_memory(&model->vocab, err);
    if (strlen(copy) != text.end - text.at || kind < CKPT_VOCAB_NORMAL || kind > CKPT_VOCAB_BYTE) {
        free(copy);
        return err_set(err, STATUS_BAD_INPUT, "%s: piece %zu has a NUL in it or is of no known "
                       "type", model->vocab.path, model->vocab.token_count);
    }
    st = ckpt_vocab_add(&model->vocab, copy, text.end - text.at, err);
    token = &model->vocab.tokens[model->vocab.token_count - 1];
    memcpy(&token->score, &score_bits, sizeof(token->score));
    token->kind = (int32_t)kind;
    return st;
}

static enum status read_trainer(struct model *model, struct message message, struct err *err)
{
    struct field field;
    enum status st = STATUS_OK;

    while (st == STATUS_OK && message.at < message.end) {
        st = take_field(model, &message, &field, err);
        if (st != STATUS_OK || field.wire != WIRE_VARINT)
            continue;
        switch (field.number) {
        case 3: model->type = field.value; break;
        case 24: model->is_suffix = field.value; break;
        case 40: model->unk_id = field.value; break;
        case 41: model->bos_id = field.value; break;
        case 42: model->eos_id = field.value; break;
        default: break;
        }
    }
    return st;
}

static enum status read_normalizer(struct model *model, struct message message, struct err *err)
{
    struct field field;
    enum status st = STATUS_OK;

    while (st == STATUS_OK && message.at < message.end) {
        st = take_field(model, &message, &field, err);
        if (st == STATUS_OK && field.wire == WIRE_BYTES && field.number == 1)
            model->normalizer_name = field.bytes;
        else if (st == STATUS_OK && field.wire == WIRE_BYTES && field.number == 2)
            model->charsmap = field.bytes;
        else if (st == STATUS_OK && field.wire == WIRE_VARINT && field.number == 3)
            model->adds_prefix = field.value;
        else if (st == STATUS_OK && field.wire == WIRE_VARINT && field.number == 4)
            model->removes_spaces = field.value;
        else if (st == STATUS_OK && field.wire == WIRE_VARINT && field.number == 5)
            model->escapes_spaces = field.value;
    }
    return st;
}

/* How many pieces there are is known once all fields have been seen. */
static enum status count_pieces(struct model *model, struct message message, struct err *err)
{
    struct field field;
    size_t count = 0;
    enum status st = STATUS_OK;

    while (st == STATUS_OK && message.at < message.end) {
        st = take_field(model, &message, &field, err);
        count += field.number == 1 && field.wire == WIRE_BYTES;
    }
    if (st == STATUS_OK && count == 0)
        st = err_set(err, STATUS_BAD_INPUT, "%s: a SentencePiece model without pieces",
                     model->vocab.path);
    return st == STATUS_OK ? ckpt_vocab_reserve(&model->vocab, count, err) : st;
}

static enum status check_kind(const struct model *model, struct err *err)
{
    static const char *const types[] = { "0", "unigram", "BPE", "word", "char" };
    const struct message *const name = &model->normalizer_name;
    const char *const rest = "is not built, so text cannot be turned into token ids";

    if (model->type != MODEL_BPE)
        return err_set(err, STATUS_UNAVAILABLE, "%s: a SentencePiece model of type %s %s",
                       model->vocab.path,
                       model->type <= MODEL_CHAR ? types[model->type] : "unknown", rest);
    if (model->charsmap.end > model->charsmap.at)
        return err_set(err, STATUS_UNAVAILABLE, "%s: a SentencePiece model that rewrites "
                       "characters (%.*s) %s", model->vocab.path,
                       (int)(name->end - name->at < 32 ? name->end - name->at : 32),
                       name->bytes != NULL ? (const char *)name->bytes + name->at : "", rest);
    if (model->is_suffix || !model->escapes_spaces)
        return err_set(err, STATUS_UNAVAILABLE, "%s: a SentencePiece model with spaces %s %s",
                       model->vocab.path, model->is_suffix ? "behind words" : "as they are", rest);
    return STATUS_OK;
}

static enum status read_model(struct model *model, const void *bytes, size_t size_bytes,
                              struct err *err)
{
    struct message message = { bytes, 0, size_bytes };
    struct field field;
    enum status st = count_pieces(model, message, err);

    model->type = MODEL_UNIGRAM; /* these are the format's defaults */
    model->bos_id = 1;
    model->eos_id = 2;
    model->adds_prefix = model->removes_spaces = model->escapes_spaces = true;
    while (st == STATUS_OK && message.at < message.end) {
        st = take_field(model, &message, &field, err);
        if (st != STATUS_OK || field.wire != WIRE_BYTES)
            continue;
        switch (field.number) {
        case 1: st = read_piece(model, field.bytes, err); break;
        case 2: st = read_trainer(model, field.bytes, err); break;
        case 3: st = read_normalizer(model, field.bytes, err); break;
        default: break;
        }
    }
    if (st == STATUS_OK)
        st = check_kind(model, err);
    return st == STATUS_OK ? ckpt_vocab_make_merges(&model->vocab, err) : st;
}

/* --- the files beside it ---------------------------------------------------------------------- */

/* A token that is told of with all that an item of "added_tokens" has. What the model says of the
 * same id is then no longer asked. */
static void add_told(struct model *model, json_int_t id, const json_t *told)
{
    json_t *const item = json_pack("{s:I, s:b, s:b, s:b, s:b, s:b}", "id", id, "single_word", 0,
                                   "lstrip", 0, "rstrip", 0, "normalized", 0, "special", 0);

    if (id >= 0 && (uint64_t)id < model->vocab.token_count)
        model->vocab.tokens[id].kind = CKPT_VOCAB_NORMAL;
    (void)json_object_update(item, (json_t *)told);
    (void)json_array_append_new(model->more_added, item);
}

/* "added_tokens_decoder": {"32000": {"content": "<|user|>", "special": true, ...}, ...} */
static enum status read_decoder(struct model *model, const json_t *decoder, struct err *err)
{
    const char *key;
    json_t *told;

    json_object_foreach((json_t *)decoder, key, told)
    {
        char *end;
        const long id = strtol(key, &end, 10);
        if (*key == '\0' || *end != '\0' || id < 0 || !json_is_object(told))
            return err_set(err, STATUS_BAD_INPUT, "beside %s: tokenizer_config.json: "
                           "added_tokens_decoder has '%.40s', which is no token",
                           model->vocab.path, key);
        add_told(model, id, told);
    }
    return STATUS_OK;
}

/* added_tokens.json: {"<|user|>": 32000, ...}, in folders from before added_tokens_decoder. */
static enum status read_added(struct model *model, const char *folder, struct err *err)
{
    json_t *added, *id;
    const char *content;
    enum status st = ckpt_vocab_read_beside(folder, "added_tokens.json", &added, err);

    json_object_foreach(added, content, id)
    {
        json_t *const told = json_pack("{s:s}", "content", content);
        add_told(model, json_integer_value(id), told);
        json_decref(told);
    }
    json_decref(added);
    return st;
}

static enum status read_files_beside(struct model *model, const char *folder, struct err *err)
{
    const json_t *decoder = NULL;
    enum status st = ckpt_vocab_read_beside(folder, "tokenizer_config.json",
                                            &model->config, err);

    if (st == STATUS_OK && model->config != NULL)
        st = json_get_object(model->config, "added_tokens_decoder", "tokenizer_config.json",
                             &decoder, err);
    if (st != STATUS_OK)
        return st;
    return decoder != NULL ? read_decoder(model, decoder, err) : read_added(model, folder, err);
}

/* --- writing ---------------------------------------------------------------------------------- */

/* The token that the configuration names, else the model's by its id; NULL: neither. */
static const struct ckpt_vocab_token *named_token(const struct model *model, const char *key,
                                                  uint64_t id)
{
    const json_t *name = json_object_get(model->config, key);
    uint64_t named;

    if (json_is_object(name))
        name = json_object_get(name, "content");
    if (json_is_string(name) && map_get(model->vocab.ids, json_string_value(name),
                                        json_string_length(name), &named))
        id = named;
    return ckpt_vocab_at(&model->vocab, id);
}

/* The configuration with the model's names of BOS and EOS where it has none. */
static enum status write_config(const struct model *model, const struct ckpt_vocab_frame *frame,
                                struct buf *out, struct err *err)
{
    json_t *const config = json_pack("{s:s?, s:s?}", "bos_token",
                                     frame->bos != NULL ? frame->bos->text : NULL, "eos_token",
                                     frame->eos != NULL ? frame->eos->text : NULL);
    enum status st;

    if (model->config != NULL)
        (void)json_object_update(config, model->config);
    st = ckpt_vocab_append_json(&model->vocab, config, out, err);
    json_decref(config);
    return st;
}

/* In front of `steps`: spaces at both ends go, and of several in a row one stays. */
static json_t *without_extra_spaces(json_t *normalizer)
{
    json_t *const steps = json_pack(
        "[{s:s, s:{s:s}, s:s}, {s:s, s:{s:s}, s:s}]", "type", "Replace", "pattern", "Regex",
        "\\A +| +\\z", "content", "", "type", "Replace", "pattern", "Regex", " {2,}", "content",
        " ");

    if (normalizer != NULL)
        (void)json_array_append_new(steps, normalizer);
    return json_pack("{s:s, s:o}", "type", "Sequence", "normalizers", steps);
}

/* A space in front of every stretch of text between added tokens ("legacy") is the normalizer's
 * doing, one in front of the whole text alone Metaspace's; which does nothing where what the text
 * began with was dropped. */
static enum status write_all(struct model *model, struct buf *json_out, struct buf *config_out,
                             struct err *err)
{
    struct ckpt_vocab_frame frame = {
        .unknown = named_token(model, "unk_token", model->unk_id),
        .bos = named_token(model, "bos_token", model->bos_id),
        .eos = named_token(model, "eos_token", model->eos_id),
        .adds_bos = true,
        .is_spm = true,
        .strips_space = model->adds_prefix != 0,
    };
    bool is_legacy = false;
    const struct {
        const char *key;
        bool *value;
    } flags[] = {
        { "add_bos_token", &frame.adds_bos },
        { "add_eos_token", &frame.adds_eos },
        { "add_prefix_space", &frame.strips_space },
        { "legacy", &is_legacy },
    };
    enum status st = STATUS_OK;

    for (size_t i = 0; i < sizeof(flags) / sizeof(flags[0]) && st == STATUS_OK; i++)
        st = model->config == NULL ? STATUS_OK
                                   : json_get_bool(model->config, flags[i].key,
                                                   "tokenizer_config.json", flags[i].value, err);
    if (st != STATUS_OK)
        return err_prefix(err, st, "beside %s", model->vocab.path);
    frame.more_added = json_incref(model->more_added);
    if (frame.strips_space && !is_legacy && !model->removes_spaces)
        frame.pre_tokenizer = json_pack("{s:s, s:s, s:s, s:b}", "type", "Metaspace", "replacement",
                                        CKPT_VOCAB_SPACE, "prepend_scheme", "first", "split", 0);
    else
        frame.normalizer = ckpt_vocab_normalizer(frame.strips_space);
    if (model->removes_spaces)
        frame.normalizer = without_extra_spaces(frame.normalizer);
    st = ckpt_vocab_write(&model->vocab, &frame, json_out, err);
    return st == STATUS_OK ? write_config(model, &frame, config_out, err) : st;
}

static enum status convert(const void *bytes, size_t size_bytes, const char *path,
                           const char *folder, struct buf *json_out, struct buf *config_out,
                           struct err *err)
{
    struct model model = { .more_added = json_array() };
    enum status st = ckpt_vocab_init(&model.vocab, path, err);

    if (st == STATUS_OK)
        st = read_model(&model, bytes, size_bytes, err);
    if (st == STATUS_OK && folder != NULL)
        st = read_files_beside(&model, folder, err);
    if (st == STATUS_OK)
        st = write_all(&model, json_out, config_out, err);
    ckpt_vocab_deinit(&model.vocab);
    json_decref(model.more_added);
    json_decref(model.config);
    return st;
}

enum status sentencepiece_read_bytes(const void *bytes, size_t size_bytes, const char *path,
                                     struct buf *json_out, struct buf *config_out,
                                     struct err *err)
{
    return convert(bytes, size_bytes, path, NULL, json_out, config_out, err);
}

enum status sentencepiece_read(const char *folder, struct buf *json_out, struct buf *config_out,
                               struct err *err)
{
    char path[PATH_MAX];
    struct buf bytes;
    enum status st;

    if ((size_t)snprintf(path, sizeof(path), "%s/tokenizer.model", folder) >= sizeof(path))
        return err_set(err, STATUS_BAD_INPUT, "%.64s...: the path is too long", folder);
    buf_init(&bytes, CKPT_VOCAB_FILE_BYTES_MAX);
    st = file_read_all(path, &bytes, err);
    if (st == STATUS_OK)
        st = convert(bytes.data, bytes.size, path, folder, json_out, config_out, err);
    buf_deinit(&bytes);
    return st;
}

bool sentencepiece_is_alone(const char *folder)
{
    char model[PATH_MAX], json[PATH_MAX];

    return (size_t)snprintf(model, sizeof(model), "%s/tokenizer.model", folder) < sizeof(model) &&
           (size_t)snprintf(json, sizeof(json), "%s/tokenizer.json", folder) < sizeof(json) &&
           file_exists(model) && !file_exists(json);
}
