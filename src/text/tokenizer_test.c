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

/* --- the other end of the oracle ------------------------------------------------------------------------- */

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

/* A byte-level tokenizer that knows the letters a, b and space, and two merges. */
static const char tiny_json[] =
    "{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"b\":1,\"\\u0120\":2,\"ab\":3,\"\\u0120ab\":4},"
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
        cmocka_unit_test(merges_in_the_order_of_the_list),
    };

    if (argc == 3 && strcmp(argv[1], "--cases") == 0)
        return answer_cases(argv[2]);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
