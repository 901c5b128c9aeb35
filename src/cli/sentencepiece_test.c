/* cli/sentencepiece_test.c - a folder's tokenizer.model against transformers and sentencepiece.
 *
 * Method: tools/make_sentencepiece_goldens.py trained a small model, and has written what
 * transformers' LlamaTokenizer makes of a corpus in folders with other files beside it, and what
 * sentencepiece itself makes of it, which is what "legacy" means. What is refused is written here,
 * field by field. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "base/file.h"
#include "base/json.h"
#include "base/size.h"
#include "base/testing_folder.h"
#include "checkpoint/vocab/sentencepiece.h"
#include "cli/session.h"
#include "text/tokenizer/tokenizer.h"

#define GOLDEN "tests/golden/text/sentencepiece"

static json_t *expected;

static int read_expected(void **state)
{
    struct err err;

    (void)state;
    if (json_read_file(GOLDEN "/expected.json", 16 * MIB, &expected, &err) != STATUS_OK)
        fail_msg("%s", err.message);
    return 0;
}

static int drop_expected(void **state)
{
    (void)state;
    json_decref(expected);
    return 0;
}

static void write_file(const char *folder, const char *name, const void *bytes, size_t size)
{
    char path[TESTING_FOLDER_BYTES + 32];
    FILE *file;

    (void)snprintf(path, sizeof(path), "%s/%s", folder, name);
    file = fopen(path, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(bytes, 1, size, file), size);
    assert_int_equal(fclose(file), 0);
}

/* The golden model in a folder of its own with the files beside it, opened. */
static struct tokenizer *open_with(const json_t *files)
{
    char folder[TESTING_FOLDER_BYTES];
    struct tokenizer *tokenizer = NULL;
    struct buf model;
    struct err err;
    const char *name;
    json_t *content;

    testing_folder_make(folder, "spm");
    buf_init(&model, MIB);
    assert_int_equal(file_read_all(GOLDEN "/tokenizer.model", &model, &err), STATUS_OK);
    write_file(folder, "tokenizer.model", model.data, model.size);
    json_object_foreach((json_t *)files, name, content)
    {
        char *const text = json_dumps(content, 0);
        write_file(folder, name, text, strlen(text));
        free(text);
    }
    if (cli_open_tokenizer(folder, &tokenizer, &err) != STATUS_OK)
        fail_msg("%s", err.message);
    buf_deinit(&model);
    testing_folder_remove(folder);
    return tokenizer;
}

static void check(const char *name, const struct tokenizer *tokenizer, bool add_special,
                  const json_t *text, const json_t *ids, const json_t *decoded)
{
    struct token_ids got = { 0 };
    struct buf back;
    struct err err;

    buf_init(&back, MIB);
    assert_int_equal(tokenizer_encode(tokenizer, json_string_value(text), json_string_length(text),
                                      add_special, &got, &err), STATUS_OK);
    for (size_t i = 0; i < got.count && i < json_array_size(ids); i++)
        if (got.ids[i] != json_integer_value(json_array_get(ids, i)))
            fail_msg("%s: id %zu of \"%s\" is %d", name, i, json_string_value(text), got.ids[i]);
    if (got.count != json_array_size(ids))
        fail_msg("%s: %zu ids of \"%s\"", name, got.count, json_string_value(text));
    assert_int_equal(tokenizer_decode(tokenizer, got.ids, got.count, false, &back, &err),
                     STATUS_OK);
    if (back.size != json_string_length(decoded) ||
        (back.size > 0 && memcmp(back.data, json_string_value(decoded), back.size) != 0))
        fail_msg("%s: \"%s\" comes back as \"%s\"", name, json_string_value(text), back.data);
    token_ids_deinit(&got);
    buf_deinit(&back);
}

static void check_all(const char *name, const json_t *files, bool add_special, const json_t *texts,
                      const json_t *told)
{
    struct tokenizer *const tokenizer = open_with(files);
    const json_t *const encoded = json_object_get(told, "encode");
    const json_t *const decoded = json_object_get(told, "decode");

    assert_true(json_array_size(texts) > 50 && json_array_size(texts) == json_array_size(encoded));
    for (size_t i = 0; i < json_array_size(texts); i++)
        check(name, tokenizer, add_special, json_array_get(texts, i), json_array_get(encoded, i),
              json_array_get(decoded, i));
    tokenizer_close(tokenizer);
}

/* Without a tokenizer_config.json transformers 5 adds nothing, where its older versions and this
 * program add BOS, with which all such models were trained. */
static void ids_are_those_of_transformers(void **state)
{
    const json_t *one;
    size_t i;

    (void)state;
    json_array_foreach(json_object_get(expected, "cases"), i, one)
    {
        const char *const name = json_string_value(json_object_get(one, "name"));
        check_all(name, json_object_get(one, "files"), strcmp(name, "alone") != 0,
                  json_object_get(expected, "texts"), one);
    }
    assert_int_equal(i, 5);
}

static void legacy_is_the_way_of_sentencepiece(void **state)
{
    const json_t *const told = json_object_get(expected, "sentencepiece");
    json_t *const files = json_pack("{s:{s:b, s:b}}", "tokenizer_config.json", "legacy", 1,
                                    "add_bos_token", 0);

    (void)state;
    check_all("legacy", files, true, json_object_get(told, "texts"), told);
    json_decref(files);
}

static void bos_is_added_unless_it_is_told_otherwise(void **state)
{
    struct tokenizer *const tokenizer = open_with(NULL);
    struct token_ids ids = { 0 };
    struct err err;

    (void)state;
    assert_int_equal(tokenizer_encode(tokenizer, "", 0, true, &ids, &err), STATUS_OK);
    assert_int_equal(ids.count, 1);
    assert_int_equal(ids.ids[0], 1);
    assert_int_equal(tokenizer_bos_id(tokenizer), 1);
    assert_int_equal(tokenizer_eos_id(tokenizer), 2);
    token_ids_deinit(&ids);
    tokenizer_close(tokenizer);
}

/* --- models written by hand ------------------------------------------------------------------- */

struct message {
    unsigned char bytes[512];
    size_t size;
};

static void put_number(struct message *message, unsigned number, unsigned value)
{
    assert_true(number < 16 * 128 && value < 128);
    if (number >= 16)
        message->bytes[message->size++] = (unsigned char)(0x80 | ((number << 3) & 0x7F));
    message->bytes[message->size++] =
        (unsigned char)(number >= 16 ? number >> 4 : number << 3);
    message->bytes[message->size++] = (unsigned char)value;
}

static void put_bytes(struct message *message, unsigned number, const void *bytes, size_t size)
{
    assert_true(number < 16 && size < 128 && message->size + size + 2 < sizeof(message->bytes));
    message->bytes[message->size++] = (unsigned char)(number << 3 | 2);
    message->bytes[message->size++] = (unsigned char)size;
    memcpy(message->bytes + message->size, bytes, size);
    message->size += size;
}

static void put_piece(struct message *model, const char *text, size_t size, unsigned kind)
{
    struct message piece = { .size = 0 };

    put_bytes(&piece, 1, text, size);
    put_number(&piece, 3, kind);
    put_bytes(model, 1, piece.bytes, piece.size);
}

/* Five pieces, and a trainer's and a normalizer's fields. */
static struct message make_model(const struct message *trainer, const struct message *normalizer)
{
    struct message model = { .size = 0 };

    put_piece(&model, "<unk>", 5, 2);
    put_piece(&model, "<s>", 3, 3);
    put_piece(&model, "</s>", 4, 3);
    put_piece(&model, "\xe2\x96\x81", 3, 1);
    put_piece(&model, "a", 1, 1);
    put_bytes(&model, 2, trainer->bytes, trainer->size);
    put_bytes(&model, 3, normalizer->bytes, normalizer->size);
    return model;
}

static enum status read_bytes(const struct message *model, size_t size, struct err *err)
{
    struct buf json, config;
    enum status st;

    buf_init(&json, MIB);
    buf_init(&config, MIB);
    st = sentencepiece_read_bytes(model->bytes, size, "tokenizer.model", &json, &config, err);
    buf_deinit(&json);
    buf_deinit(&config);
    return st;
}

static void what_is_not_built_is_named(void **state)
{
    static const struct {
        unsigned type, suffix, escapes; /* of the trainer, the trainer, the normalizer */
        const char *charsmap, *says;
    } models[] = {
        { 2, 0, 1, NULL, NULL },
        { 1, 0, 1, NULL, "of type unigram" },
        { 4, 0, 1, NULL, "of type char" },
        { 99, 0, 1, NULL, "of type unknown" },
        { 2, 1, 1, NULL, "spaces behind words" },
        { 2, 0, 0, NULL, "spaces as they are" },
        { 2, 0, 1, "table", "rewrites characters (nmt_nfkc)" },
    };

    (void)state;
    for (size_t i = 0; i < sizeof(models) / sizeof(models[0]); i++) {
        struct message trainer = { .size = 0 }, normalizer = { .size = 0 }, model;
        struct err err;
        put_number(&trainer, 3, models[i].type);
        put_number(&trainer, 24, models[i].suffix);
        put_number(&normalizer, 5, models[i].escapes);
        put_bytes(&normalizer, 1, "nmt_nfkc", 8);
        if (models[i].charsmap != NULL)
            put_bytes(&normalizer, 2, models[i].charsmap, strlen(models[i].charsmap));
        model = make_model(&trainer, &normalizer);
        assert_int_equal(read_bytes(&model, model.size, &err),
                         models[i].says == NULL ? STATUS_OK : STATUS_UNAVAILABLE);
        if (models[i].says != NULL && strstr(err.message, models[i].says) == NULL)
            fail_msg("'%s' does not say '%s'", err.message, models[i].says);
    }
}

/* Every begin of a file either is a smaller model or is refused, with where it is broken. */
static void broken_files_are_refused(void **state)
{
    struct message trainer = { .size = 0 }, normalizer = { .size = 0 }, model;
    struct message nul = { .size = 0 };
    size_t broken = 0;
    struct err err;

    (void)state;
    put_number(&trainer, 3, 2);
    model = make_model(&trainer, &normalizer);
    for (size_t size = 0; size < model.size; size++) {
        const enum status st = read_bytes(&model, size, &err);
        if (size == model.size - 2) { /* all but the empty normalizer */
            assert_int_equal(st, STATUS_OK);
            continue;
        }
        assert_true(st == STATUS_BAD_INPUT || st == STATUS_UNAVAILABLE);
        broken += strstr(err.message, "what stands at byte") != NULL;
    }
    assert_true(broken > model.size / 2);
    put_piece(&nul, "a\0b", 3, 1);
    assert_int_equal(read_bytes(&nul, nul.size, &err), STATUS_BAD_INPUT);
    assert_non_null(strstr(err.message, "piece 0 has a NUL"));
}

/* A model that asks for it has spaces at both ends of a text and all but one in a row dropped. */
static void extra_spaces_are_dropped(void **state)
{
    struct message trainer = { .size = 0 }, normalizer = { .size = 0 }, model;
    const char *const texts[] = { "a a", " a  a ", "   a a" };
    const int32_t wanted[] = { 3, 4, 3, 4 };
    struct tokenizer *tokenizer;
    struct buf json, config;
    struct err err;

    (void)state;
    put_number(&trainer, 3, 2);
    put_number(&normalizer, 4, 1);
    model = make_model(&trainer, &normalizer);
    buf_init(&json, MIB);
    buf_init(&config, MIB);
    assert_int_equal(sentencepiece_read_bytes(model.bytes, model.size, "tokenizer.model", &json,
                                              &config, &err), STATUS_OK);
    assert_int_equal(tokenizer_open_json(json.data, json.size, config.data, config.size, "it",
                                         &tokenizer, &err), STATUS_OK);
    for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
        struct token_ids ids = { 0 };
        assert_int_equal(tokenizer_encode(tokenizer, texts[i], strlen(texts[i]), false, &ids,
                                          &err), STATUS_OK);
        assert_int_equal(ids.count, 4);
        assert_memory_equal(ids.ids, wanted, sizeof(wanted));
        token_ids_deinit(&ids);
    }
    tokenizer_close(tokenizer);
    buf_deinit(&json);
    buf_deinit(&config);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ids_are_those_of_transformers),
        cmocka_unit_test(legacy_is_the_way_of_sentencepiece),
        cmocka_unit_test(bos_is_added_unless_it_is_told_otherwise),
        cmocka_unit_test(what_is_not_built_is_named),
        cmocka_unit_test(broken_files_are_refused),
        cmocka_unit_test(extra_spaces_are_dropped),
    };

    return cmocka_run_group_tests(tests, read_expected, drop_expected);
}
