/* cli/gguf_tokenizer_test.c - tokenizers in GGUF files against the `tokenizers` library.
 *
 * Method: the vocabulary and merges of each tokenizer of tests/golden/text go into a GGUF file
 * under the name that llama.cpp's converter gives its kind; the ids of the corpus must be those
 * that the library gave for the tokenizer.json. Special tokens that the library puts around a text
 * are asked for by the file's keys; a GGUF file can only ask for one on each side. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

#include "base/json.h"
#include "base/size.h"
#include "base/utf8.h"
#include "cli/session.h"
#include "text/tokenizer/tokenizer.h"

enum { UINT32 = 4, INT32 = 5, BOOL = 7, STRING = 8, ARRAY = 9 };

static const struct {
    const char *name, *pre;
    const char *bos;  /* NULL: the library adds none */
    bool bare;        /* what the library adds cannot be said in a GGUF file: compare without */
} families[] = {
    { "gpt2", "gpt-2", NULL, false },
    { "olmo", "olmo", NULL, false },
    { "granite", "refact", NULL, false },
    { "granite", "starcoder", NULL, false },
    { "llama3", "llama-bpe", "<|begin_of_text|>", false },
    { "glm4", "glm4", NULL, true },
    { "glm4", "chatglm-bpe", NULL, true },
    { "qwen2", "qwen2", NULL, false },
    { "gpt4o", "gpt-4o", NULL, false },
    { "gpt4o", "llama4", NULL, false },
    { "tekken", "tekken", "<s>", false },
    { "deepseek_v2", "deepseek-llm", "<｜begin▁of▁sentence｜>", false },
    { "deepseek_v3", "deepseek-v3", "<｜begin▁of▁sentence｜>", false },
};

/* --- writing a file --------------------------------------------------------------------------- */

static void put_u32(FILE *file, uint32_t value)
{
    assert_int_equal(fwrite(&value, sizeof(value), 1, file), 1);
}

static void put_u64(FILE *file, uint64_t value)
{
    assert_int_equal(fwrite(&value, sizeof(value), 1, file), 1);
}

static void put_string(FILE *file, const char *text)
{
    put_u64(file, strlen(text));
    assert_int_equal(fwrite(text, 1, strlen(text), file), strlen(text));
}

static void put_key(FILE *file, const char *key, uint32_t type)
{
    put_string(file, key);
    put_u32(file, type);
}

static void put_text(FILE *file, const char *key, const char *text)
{
    put_key(file, key, STRING);
    put_string(file, text);
}

static void put_array(FILE *file, const char *key, uint32_t type, uint64_t count)
{
    put_key(file, key, ARRAY);
    put_u32(file, type);
    put_u64(file, count);
}

/* By id; the library's added tokens are in the vocabulary too, as they were trained with it. */
static const char **tokens_by_id(const json_t *vocab, size_t count)
{
    const char **tokens = calloc(count, sizeof(*tokens));
    const char *token;
    json_t *id;

    assert_non_null(tokens);
    json_object_foreach((json_t *)vocab, token, id)
    {
        assert_in_range(json_integer_value(id), 0, count - 1);
        tokens[json_integer_value(id)] = token;
    }
    return tokens;
}

static uint32_t type_of(const json_t *added, size_t id)
{
    const json_t *token;
    size_t i;

    json_array_foreach(added, i, token)
    {
        if ((size_t)json_integer_value(json_object_get(token, "id")) == id)
            return json_is_true(json_object_get(token, "special")) ? 3 : 4;
    }
    return 1;
}

static void put_tokens(FILE *file, const json_t *json, const char *bos)
{
    const json_t *vocab = json_object_get(json_object_get(json, "model"), "vocab");
    const json_t *added = json_object_get(json, "added_tokens");
    const size_t count = json_object_size(vocab);
    const char **tokens = tokens_by_id(vocab, count);

    put_array(file, "tokenizer.ggml.tokens", STRING, count);
    for (size_t i = 0; i < count; i++)
        put_string(file, tokens[i]);
    put_array(file, "tokenizer.ggml.token_type", INT32, count);
    for (size_t i = 0; i < count; i++)
        put_u32(file, type_of(added, i));
    put_key(file, "tokenizer.ggml.bos_token_id", UINT32);
    put_u32(file, bos != NULL ? (uint32_t)json_integer_value(json_object_get(vocab, bos)) : 0);
    put_key(file, "tokenizer.ggml.add_bos_token", BOOL);
    (void)fputc(bos != NULL ? 1 : 0, file);
    free(tokens);
}

/* Both spellings of a merge are in use in tokenizer.json. */
static void put_merges(FILE *file, const json_t *merges)
{
    const json_t *merge;
    char text[512];
    size_t i;

    put_array(file, "tokenizer.ggml.merges", STRING, json_array_size(merges));
    json_array_foreach(merges, i, merge)
    {
        if (json_is_array(merge))
            (void)snprintf(text, sizeof(text), "%s %s",
                           json_string_value(json_array_get(merge, 0)),
                           json_string_value(json_array_get(merge, 1)));
        else
            (void)snprintf(text, sizeof(text), "%s", json_string_value(merge));
        put_string(file, text);
    }
}

static void write_file(const char *path, const json_t *json, const char *pre, const char *bos)
{
    FILE *file = fopen(path, "wb");

    assert_non_null(file);
    assert_int_equal(fwrite("GGUF", 1, 4, file), 4);
    put_u32(file, 3);
    put_u64(file, 0); /* tensors */
    put_u64(file, 8); /* keys */
    put_text(file, "general.architecture", "llama");
    put_text(file, "tokenizer.ggml.model", "gpt2");
    put_text(file, "tokenizer.ggml.pre", pre);
    put_tokens(file, json, bos);
    put_merges(file, json_object_get(json_object_get(json, "model"), "merges"));
    assert_int_equal(fclose(file), 0);
}

/* --- comparing -------------------------------------------------------------------------------- */

static json_t *read_golden(const char *name, const char *suffix)
{
    char path[256];
    struct err err;
    json_t *json = NULL;

    (void)snprintf(path, sizeof(path), "tests/golden/text/%s%s", name, suffix);
    if (json_read_file(path, 16 * MIB, &json, &err) != STATUS_OK)
        fail_msg("%s", err.message);
    return json;
}

/* How many ids of the list the library has put in front of the text. */
static size_t ids_before(const json_t *expected)
{
    const json_t *empty = json_array_get(json_object_get(expected, "encode"), 0);

    return json_array_size(empty); /* the corpus begins with an empty text */
}

static void check_text(const char *pre, const struct tokenizer *tokenizer, const json_t *text,
                       const json_t *ids, size_t skip, bool add_special)
{
    struct token_ids got = { 0 };
    struct err err;

    assert_int_equal(tokenizer_encode(tokenizer, json_string_value(text), json_string_length(text),
                                      add_special, &got, &err), STATUS_OK);
    if (got.count != json_array_size(ids) - skip)
        fail_msg("%s: %zu ids of \"%s\", the library has %zu", pre, got.count,
                 json_string_value(text), json_array_size(ids) - skip);
    for (size_t i = 0; i < got.count; i++)
        if (got.ids[i] != json_integer_value(json_array_get(ids, i + skip)))
            fail_msg("%s: id %zu of \"%s\" is %d", pre, i, json_string_value(text), got.ids[i]);
    token_ids_deinit(&got);
}

static void ids_are_those_of_the_library(void **state)
{
    json_t *corpus = read_golden("corpus", ".json");
    const json_t *texts = json_object_get(corpus, "texts");
    char path[] = "/tmp/lighter_pre_XXXXXX.gguf";
    const int fd = mkstemps(path, 5);

    (void)state;
    assert_true(fd >= 0);
    (void)close(fd);
    for (size_t i = 0; i < sizeof(families) / sizeof(families[0]); i++) {
        json_t *json = read_golden(families[i].name, ".tokenizer.json");
        json_t *expected = read_golden(families[i].name, ".expected.json");
        const json_t *encoded = json_object_get(expected, "encode");
        struct tokenizer *tokenizer = NULL;
        struct err err;

        write_file(path, json, families[i].pre, families[i].bos);
        if (cli_open_tokenizer(path, &tokenizer, &err) != STATUS_OK)
            fail_msg("%s: %s", families[i].pre, err.message);
        for (size_t t = 0; t < json_array_size(texts); t++)
            if (json_is_string(json_array_get(texts, t))) /* the others are not UTF-8 */
                check_text(families[i].pre, tokenizer, json_array_get(texts, t),
                           json_array_get(encoded, t),
                           families[i].bare ? ids_before(expected) : 0, !families[i].bare);
        tokenizer_close(tokenizer);
        json_decref(expected);
        json_decref(json);
    }
    (void)unlink(path);
    json_decref(corpus);
}

static void an_unknown_kind_is_named(void **state)
{
    json_t *json = read_golden("gpt2", ".tokenizer.json");
    struct tokenizer *tokenizer = NULL;
    char path[] = "/tmp/lighter_pre_XXXXXX.gguf";
    const int fd = mkstemps(path, 5);
    struct err err;

    (void)state;
    assert_true(fd >= 0);
    (void)close(fd);
    write_file(path, json, "poro-chat", NULL);
    assert_int_equal(cli_open_tokenizer(path, &tokenizer, &err), STATUS_UNAVAILABLE);
    assert_non_null(strstr(err.message, "\"poro-chat\", is not built"));
    (void)unlink(path);
    json_decref(json);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ids_are_those_of_the_library),
        cmocka_unit_test(an_unknown_kind_is_named),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
