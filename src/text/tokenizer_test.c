/* text/tokenizer_test.c - a tokenizer against what the `tokenizers` library gave.
 *
 * With arguments it is the other end of tools/oracle_tokenizers.py:
 *     tokenizer_test --cases TOKENIZER.json
 * answers each line on standard input with one line on standard output, bytes as hexadecimal:
 *     e HEX      the ids of the text, with special tokens        E HEX  without
 *     d 1,2,3    the text of the ids                              D 1,2  without special tokens
 *     s 1,2,3    the same, pushed one by one                      S 1,2  without special tokens
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "base/buf.h"
#include "base/file.h"
#include "base/json.h"
#include "base/size.h"
#include "base/utf8.h"
#include "text/tokenizer.h"

/* --- the other end of the oracle -------------------------------------------------------------- */

static size_t unhex(const char *hex, char *out)
{
    size_t size = 0;
    unsigned byte;

    while (sscanf(hex + 2 * size, "%2x", &byte) == 1)
        out[size++] = (char)byte;
    return size;
}

static void put_hex(const struct buf *text)
{
    for (size_t i = 0; i < text->size; i++)
        printf("%02x", (unsigned char)text->data[i]);
    printf("\n");
}

static enum status parse_ids(char *line, struct token_ids *ids, struct err *err)
{
    enum status st = STATUS_OK;

    for (char *at = line; *at != '\0' && *at != '\n' && st == STATUS_OK;) {
        st = token_ids_push(ids, (int32_t)strtol(at, &at, 10), err);
        if (*at == ',')
            at++;
    }
    return st;
}

/* Pushes one by one; pieces must be whole characters. */
static enum status stream_all(const struct tokenizer *tokenizer, const struct token_ids *ids,
                              bool skip_special, struct buf *out, struct err *err)
{
    struct tokenizer_stream *stream;
    enum status st = tokenizer_stream_create(tokenizer, skip_special, &stream, err);

    if (st != STATUS_OK)
        return st;
    for (size_t i = 0; i < ids->count && st == STATUS_OK; i++) {
        st = tokenizer_stream_push(stream, ids->ids[i], out, err);
        if (st == STATUS_OK && out->data != NULL && !utf8_is_valid(out->data, out->size))
            st = err_set(err, STATUS_BAD_INPUT, "a piece of the stream ends inside a character");
    }
    if (st == STATUS_OK)
        st = tokenizer_stream_finish(stream, out, err);
    tokenizer_stream_destroy(stream);
    return st;
}

static void answer(const struct tokenizer *tokenizer, char *line)
{
    struct token_ids ids = { 0 };
    struct buf text;
    struct err err;
    enum status st;

    buf_init(&text, GIB);
    if (line[0] == 'e' || line[0] == 'E') {
        char *bytes = malloc(strlen(line));
        const size_t size = unhex(line + 2, bytes);

        st = tokenizer_encode(tokenizer, bytes, size, line[0] == 'e', &ids, &err);
        free(bytes);
        for (size_t i = 0; i < ids.count && st == STATUS_OK; i++)
            printf("%s%d", i == 0 ? "" : ",", ids.ids[i]);
    } else {
        const bool skip_special = line[0] < 'a';

        st = parse_ids(line + 2, &ids, &err);
        if (st == STATUS_OK && (line[0] | 32) == 'd')
            st = tokenizer_decode(tokenizer, ids.ids, ids.count, skip_special, &text, &err);
        else if (st == STATUS_OK)
            st = stream_all(tokenizer, &ids, skip_special, &text, &err);
    }
    if (st != STATUS_OK)
        printf("! %s\n", err.message);
    else
        put_hex(&text);
    token_ids_deinit(&ids);
    buf_deinit(&text);
}

static int answer_cases(const char *path)
{
    struct tokenizer *tokenizer;
    struct buf json;
    struct err err;
    char *line = NULL;
    size_t capacity = 0;

    buf_init(&json, 256 * MIB);
    if (file_read_all(path, &json, &err) != STATUS_OK ||
        tokenizer_open_json(json.data, json.size, NULL, 0, path, &tokenizer, &err) != STATUS_OK) {
        fprintf(stderr, "%s\n", err.message);
        return 1;
    }
    buf_deinit(&json);
    while (getline(&line, &capacity, stdin) > 2) {
        answer(tokenizer, line);
        fflush(stdout);
    }
    free(line);
    tokenizer_close(tokenizer);
    return 0;
}

/* --- goldens ---------------------------------------------------------------------------------- */

static const char *const families[] = {
    "gpt2", "roberta", "llama3", "qwen2", "deepseek_v2", "deepseek_v3",
    "tekken", "llama2", "mistral", "words", "metaspace",
};

static json_t *read_golden(const char *name, const char *suffix)
{
    char path[256];
    struct err err;
    json_t *json;

    (void)snprintf(path, sizeof(path), "tests/golden/text/%s%s", name, suffix);
    if (json_read_file(path, 16 * MIB, &json, &err) != STATUS_OK)
        fail_msg("%s", err.message);
    return json;
}

static struct tokenizer *open_golden(const char *name)
{
    struct tokenizer *tokenizer;
    struct buf json;
    char path[256];
    struct err err;

    (void)snprintf(path, sizeof(path), "tests/golden/text/%s.tokenizer.json", name);
    buf_init(&json, 16 * MIB);
    if (file_read_all(path, &json, &err) != STATUS_OK ||
        tokenizer_open_json(json.data, json.size, NULL, 0, path, &tokenizer, &err) != STATUS_OK)
        fail_msg("%s", err.message);
    buf_deinit(&json);
    return tokenizer;
}

/* The bytes of a text of the corpus: a string, or {"hex": ...}. */
static void text_of(const json_t *json, struct buf *out)
{
    const json_t *hex = json_object_get(json, "hex");
    struct err err;

    buf_clear(out);
    if (hex == NULL) {
        assert_int_equal(buf_append(out, json_string_value(json), json_string_length(json), &err),
                         STATUS_OK);
        return;
    }
    assert_int_equal(buf_reserve(out, json_string_length(hex) / 2, &err), STATUS_OK);
    out->size = unhex(json_string_value(hex), out->data);
}

static void check_ids(const char *where, size_t index, const json_t *wanted,
                      const struct token_ids *got)
{
    size_t i;
    json_t *id;

    json_array_foreach((json_t *)wanted, i, id)
        if (i >= got->count || json_integer_value(id) != got->ids[i])
            fail_msg("%s: text %zu: id %zu is %d, not %d", where, index, i,
                     i < got->count ? got->ids[i] : -1, (int)json_integer_value(id));
    if (got->count != json_array_size(wanted))
        fail_msg("%s: text %zu: %zu ids, not %zu", where, index, got->count,
                 json_array_size(wanted));
}

/* All at once and one by one. */
static void check_decoding(const struct tokenizer *tokenizer, const char *where, size_t index,
                           const struct token_ids *ids, bool skip_special, const char *wanted,
                           size_t wanted_size)
{
    for (int streams = 0; streams < 2; streams++) {
        struct buf text;
        struct err err;
        enum status st;

        buf_init(&text, 16 * MIB);
        if (streams)
            st = stream_all(tokenizer, ids, skip_special, &text, &err);
        else
            st = tokenizer_decode(tokenizer, ids->ids, ids->count, skip_special, &text, &err);
        if (st != STATUS_OK)
            fail_msg("%s: %zu: %s", where, index, err.message);
        if (text.size != wanted_size ||
            memcmp(text.data != NULL ? text.data : "", wanted, wanted_size) != 0)
            fail_msg("%s: %zu: %s gives \"%.200s\", not \"%.200s\"", where, index,
                     streams ? "streaming" : "decoding", text.data, wanted);
        buf_deinit(&text);
    }
}

/* The text with U+FFFD for what is not UTF-8, as the library was given it. */
static void sanitise(const struct buf *text, struct buf *out)
{
    struct err err;

    buf_clear(out);
    assert_int_equal(buf_reserve(out, 1, &err), STATUS_OK);
    for (size_t i = 0; i < text->size;) {
        char bytes[4];
        uint32_t code_point;
        i += utf8_decode(text->data + i, text->size - i, &code_point, NULL);
        assert_int_equal(buf_append(out, bytes, utf8_encode(code_point, bytes), &err), STATUS_OK);
    }
}

static void check_corpus(const char *name, const struct tokenizer *tokenizer,
                         const json_t *expected, const json_t *texts)
{
    struct buf text;
    struct buf sane;
    size_t i;
    json_t *item;

    buf_init(&text, MIB);
    buf_init(&sane, MIB);
    assert_int_equal(json_array_size(json_object_get(expected, "encode")), json_array_size(texts));
    json_array_foreach((json_t *)texts, i, item) {
        const json_t *decoded = json_array_get(json_object_get(expected, "decode"), i);
        struct token_ids ids = { 0 };
        struct err err;

        text_of(item, &text);
        sanitise(&text, &sane);
        if (tokenizer_encode(tokenizer, text.data, text.size, true, &ids, &err) != STATUS_OK)
            fail_msg("%s: text %zu: %s", name, i, err.message);
        check_ids(name, i, json_array_get(json_object_get(expected, "encode"), i), &ids);
        for (size_t skip = 0; skip < 2; skip++) {
            const json_t *wanted = json_array_get(decoded, skip);
            const bool same = json_is_null(wanted);
            check_decoding(tokenizer, name, i, &ids, skip == 1,
                           same ? sane.data : json_string_value(wanted),
                           same ? sane.size : json_string_length(wanted));
        }
        token_ids_deinit(&ids);
    }
    buf_deinit(&text);
    buf_deinit(&sane);
}

static void check_random(const char *name, const struct tokenizer *tokenizer,
                         const json_t *expected)
{
    size_t i;
    json_t *item;

    json_array_foreach(json_object_get(expected, "random"), i, item) {
        struct token_ids ids = { 0 };
        struct err err;
        size_t k;
        json_t *id;

        json_array_foreach(json_array_get(item, 0), k, id)
            assert_int_equal(token_ids_push(&ids, (int32_t)json_integer_value(id), &err),
                             STATUS_OK);
        for (size_t skip = 0; skip < 2; skip++) {
            const json_t *wanted = json_array_get(item, 1 + skip);
            check_decoding(tokenizer, name, i, &ids, skip == 1, json_string_value(wanted),
                           json_string_length(wanted));
        }
        token_ids_deinit(&ids);
    }
}

static void the_library_gives_the_same(void **state)
{
    json_t *corpus = read_golden("corpus", ".json");

    (void)state;
    for (size_t i = 0; i < sizeof(families) / sizeof(families[0]); i++) {
        struct tokenizer *tokenizer = open_golden(families[i]);
        json_t *expected = read_golden(families[i], ".expected.json");
        struct token_ids ids = { 0 };
        struct err err;

        check_corpus(families[i], tokenizer, expected, json_object_get(corpus, "texts"));
        check_random(families[i], tokenizer, expected);
        assert_int_equal(tokenizer_encode(tokenizer, "Hello world", 11, false, &ids, &err),
                         STATUS_OK);
        check_ids(families[i], 0, json_object_get(expected, "bare"), &ids);
        token_ids_deinit(&ids);
        json_decref(expected);
        tokenizer_close(tokenizer);
    }
    json_decref(corpus);
}

/* A byte-level tokenizer that knows the letters a, b and space, and two merges. */
static const char tiny_json[] =
    "{\"model\":{\"type\":\"BPE\","
    "\"vocab\":{\"a\":0,\"b\":1,\"\\u0120\":2,\"ab\":3,\"\\u0120ab\":4},"
    "\"merges\":[\"a b\",[\"\\u0120\",\"ab\"]]},"
    "\"pre_tokenizer\":{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"use_regex\":true},"
    "\"decoder\":{\"type\":\"ByteLevel\"},"
    "\"added_tokens\":[{\"id\":5,\"content\":\"<s>\",\"special\":true,\"normalized\":false}]}";

static void merges_in_the_order_of_the_list(void **state)
{
    static const int32_t wanted[] = { 3, 4, 5, 0, 2, 1 };
    struct tokenizer *tokenizer;
    struct token_ids ids = { 0 };
    struct buf text;
    struct err err;

    (void)state;
    assert_int_equal(tokenizer_open_json(tiny_json, strlen(tiny_json), NULL, 0, "tiny",
                                         &tokenizer, &err), STATUS_OK);
    assert_int_equal(tokenizer_encode(tokenizer, "ab ab<s>a bx", 12, true, &ids, &err), STATUS_OK);
    assert_int_equal(ids.count, sizeof(wanted) / sizeof(wanted[0]));
    assert_memory_equal(ids.ids, wanted, sizeof(wanted));
    buf_init(&text, KIB);
    assert_int_equal(tokenizer_decode(tokenizer, ids.ids, ids.count, true, &text, &err), STATUS_OK);
    assert_string_equal(text.data, "ab aba b");
    assert_true(tokenizer_is_special(tokenizer, 5));
    assert_int_equal(tokenizer_id_limit(tokenizer), 6);
    buf_deinit(&text);
    token_ids_deinit(&ids);
    tokenizer_close(tokenizer);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_library_gives_the_same),
        cmocka_unit_test(merges_in_the_order_of_the_list),
    };

    if (argc == 3 && strcmp(argv[1], "--cases") == 0)
        return answer_cases(argv[2]);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
