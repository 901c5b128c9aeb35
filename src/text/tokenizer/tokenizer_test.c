/* text/tokenizer/tokenizer_test.c - a tokenizer against what the `tokenizers` library gave.
 *
 * With arguments it is the other end of tools/oracle_tokenizers.py:
 *     tokenizer_test --cases TOKENIZER.json
 * answers each line on standard input with one line on standard output, bytes as hexadecimal:
 *     e HEX      the ids of the text, with special tokens        E HEX  without
 *     d 1,2,3    the text of the ids                              D 1,2  without special tokens
 *     s 1,2,3    the same, pushed one by one                      S 1,2  without special tokens
 */
#include <pthread.h>
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
#include "text/tokenizer/tokenizer.h"

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
        const size_t done = out->size;

        st = tokenizer_stream_push(stream, ids->ids[i], out, err);
        if (st == STATUS_OK && done < out->size &&
            !utf8_is_valid(out->data + done, out->size - done))
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
    "tekken", "llama2", "mistral", "words", "metaspace", "glm4", "gpt4o", "granite", "olmo",
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
    struct tokenizer *tokenizer = NULL;
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

    json_array_foreach((json_t *)wanted, i, id) {
        if (i >= got->count || json_integer_value(id) != got->ids[i])
            fail_msg("%s: text %zu: id %zu is %d, not %d", where, index, i,
                     i < got->count ? got->ids[i] : -1, (int)json_integer_value(id));
    }
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

        json_array_foreach(json_array_get(item, 0), k, id) {
            assert_int_equal(token_ids_push(&ids, (int32_t)json_integer_value(id), &err),
                             STATUS_OK);
        }
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

/* --- long runs -------------------------------------------------------------------------------- */

/* A sanitizer makes a run some twenty times slower and sees the same in a shorter one. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define RUN_BYTES ((size_t)1 << 16)
#else
#define RUN_BYTES ((size_t)1 << 20)
#endif

/* The unit again and again, then the end. */
static void fill(struct buf *text, const char *unit, const char *end)
{
    struct err err;

    buf_init(text, 2 * RUN_BYTES);
    while (text->size < RUN_BYTES)
        assert_int_equal(buf_append(text, unit, strlen(unit), &err), STATUS_OK);
    assert_int_equal(buf_append(text, end, strlen(end), &err), STATUS_OK);
}

/* Each takes days when something is quadratic in the length of a run. */
static void long_runs_take_linear_time(void **state)
{
    static const struct {
        const char *family, *unit, *end;
    } runs[] = {
        { "llama2", "a", "" },           { "llama2", "\xE5\x93\x88", "" },
        { "llama3", " ", "x" },          { "llama3", "\n", "" },
        { "deepseek_v2", " ", "x" },     { "deepseek_v3", "a", "" },
        { "metaspace", "\xCC\x81\xCC\x96", "" }, { "gpt2", "'", "" },
        { "mistral", "<", "" },
    };

    (void)state;
    for (size_t i = 0; i < sizeof(runs) / sizeof(runs[0]); i++) {
        struct tokenizer *tokenizer = open_golden(runs[i].family);
        struct token_ids ids = { 0 };
        struct buf text;
        struct err err;

        fill(&text, runs[i].unit, runs[i].end);
        if (tokenizer_encode(tokenizer, text.data, text.size, false, &ids, &err) != STATUS_OK)
            fail_msg("%s: %s", runs[i].family, err.message);
        assert_true(ids.count > 0);
        if (strcmp(runs[i].family, "metaspace") != 0) /* its marks are put in order */
            check_decoding(tokenizer, runs[i].family, i, &ids, false, text.data, text.size);
        token_ids_deinit(&ids);
        buf_deinit(&text);
        tokenizer_close(tokenizer);
    }
}

/* Merges that build on each other over the whole run: aa, aaaa, ... of one letter. */
static void a_run_of_one_letter_is_merged_throughout(void **state)
{
    static const char json[] =
        "{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"aa\":1,\"aaaa\":2,\"aaaaaaaa\":3},"
        "\"merges\":[\"a a\",\"aa aa\",\"aaaa aaaa\"]}}";
    struct tokenizer *tokenizer;
    struct token_ids ids = { 0 };
    struct buf text;
    struct err err;

    (void)state;
    fill(&text, "a", "aaa");
    assert_int_equal(tokenizer_open_json(json, strlen(json), NULL, 0, "run", &tokenizer, &err),
                     STATUS_OK);
    assert_int_equal(tokenizer_encode(tokenizer, text.data, text.size, true, &ids, &err),
                     STATUS_OK);
    assert_int_equal(ids.count, RUN_BYTES / 8 + 2);
    for (size_t i = 0; i < RUN_BYTES / 8; i++)
        assert_int_equal(ids.ids[i], 3);
    assert_int_equal(ids.ids[RUN_BYTES / 8], 1);
    assert_int_equal(ids.ids[RUN_BYTES / 8 + 1], 0);
    token_ids_deinit(&ids);
    buf_deinit(&text);
    tokenizer_close(tokenizer);
}

/* --- what is refused -------------------------------------------------------------------------- */

#define MODEL \
    "\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"b\":1,\"ab\":2},\"merges\":[\"a b\"]}"

static void bad_files_are_refused_by_name(void **state)
{
    static const struct {
        const char *json, *message;
    } cases[] = {
        { "", "not valid JSON" },
        { "[]", "model: nothing, an object is wanted" },
        { "{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0}", "not valid JSON: line 1" },
        { "{\"model\":{\"type\":\"Unigram\"}}", "model: the type \"Unigram\" is not supported" },
        { "{\"model\":{\"type\":\"BPE\"}}", "\"vocab\" is nothing, an object is wanted" },
        { "{\"model\":{\"vocab\":{\"a\":-1},\"merges\":[]}}", "the id of \"a\"" },
        { "{\"model\":{\"vocab\":{\"a\":99999999},\"merges\":[]}}", "the id of \"a\"" },
        { "{\"model\":{\"vocab\":{\"a\":\"0\"},\"merges\":[]}}", "the id of \"a\"" },
        { "{\"model\":{\"vocab\":{\"a\":0,\"a\":1},\"merges\":[]}}", "duplicate" },
        { "{\"model\":{\"vocab\":{\"a\":0}}}", "\"merges\" is nothing" },
        { "{\"model\":{\"vocab\":{\"a\":0},\"merges\":[\"a a a\"]}}", "merge 0 is neither" },
        { "{\"model\":{\"vocab\":{\"a\":0},\"merges\":[[\"a\"]]}}", "merge 0 is neither" },
        { "{\"model\":{\"vocab\":{\"a\":0},\"merges\":[\"a b\"]}}",
          "merge 0 is of \"b\", which the vocab lacks" },
        { "{\"model\":{\"vocab\":{\"a\":0},\"merges\":[\"a a\"]}}",
          "merge 0 makes \"aa\", which the vocab lacks" },
        { "{\"model\":{\"dropout\":0.1,\"vocab\":{},\"merges\":[]}}", "\"dropout\" is 0.1" },
        { "{" MODEL ",\"normalizer\":{\"type\":\"Nmt\"}}",
          "normalizer: the type \"Nmt\" is not supported" },
        { "{" MODEL ",\"normalizer\":{}}", "normalizer: \"type\" is missing" },
        { "{" MODEL ",\"normalizer\":[]}", "normalizer: an array, an object is wanted" },
        { "{" MODEL ",\"normalizer\":{\"type\":\"Prepend\"}}", "\"prepend\" is nothing" },
        { "{" MODEL ",\"normalizer\":{\"type\":\"Replace\",\"content\":\"\"}}",
          "\"pattern\" must be {\"String\": ...} or {\"Regex\": ...}" },
        { "{" MODEL ",\"normalizer\":{\"type\":\"Replace\",\"content\":\"\",\"pattern\":"
          "{\"Regex\":\"(\"}}}", "the regular expression \"(\" is not valid" },
        { "{" MODEL ",\"pre_tokenizer\":{\"type\":\"BertPreTokenizer\"}}",
          "pre_tokenizer: the type \"BertPreTokenizer\" is not supported" },
        { "{" MODEL ",\"pre_tokenizer\":{\"type\":\"Sequence\"}}", "lacks \"pretokenizers\"" },
        { "{" MODEL ",\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"String\":\"a\"}}}",
          "lacks \"behavior\"" },
        { "{" MODEL ",\"pre_tokenizer\":{\"type\":\"Punctuation\",\"behavior\":\"Odd\"}}",
          "the behavior \"Odd\" is not known" },
        { "{" MODEL ",\"pre_tokenizer\":{\"type\":\"Metaspace\",\"replacement\":\"ab\"}}",
          "\"replacement\" is not exactly one character" },
        { "{" MODEL ",\"pre_tokenizer\":{\"type\":\"Metaspace\",\"replacement\":\"_\","
          "\"add_prefix_space\":false,\"prepend_scheme\":\"first\"}}",
          "\"add_prefix_space\" is false" },
        { "{" MODEL ",\"post_processor\":{\"type\":\"TemplateProcessing\"}}",
          "\"single\" is nothing" },
        { "{" MODEL ",\"post_processor\":{\"type\":\"TemplateProcessing\",\"single\":"
          "[{\"SpecialToken\":{\"id\":\"<s>\"}}]}}", "names \"<s>\"" },
        { "{" MODEL ",\"post_processor\":{\"type\":\"TemplateProcessing\",\"single\":"
          "[{\"Sequence\":{\"id\":\"B\"}}]}}", "piece 0" },
        { "{" MODEL ",\"post_processor\":{\"type\":\"BertProcessing\",\"cls\":[\"a\",0],"
          "\"sep\":[\"c\",3]}}", "it adds the id 3, which no token has" },
        { "{" MODEL ",\"decoder\":{\"type\":\"WordPiece\"}}",
          "decoder: the type \"WordPiece\" is not supported" },
        { "{" MODEL ",\"decoder\":{\"type\":\"Strip\",\"content\":\" \"}}",
          "\"start\" is missing" },
        { "{" MODEL ",\"added_tokens\":{}}", "added_tokens: an object, an array is wanted" },
        { "{" MODEL ",\"added_tokens\":[{}]}", "\"content\" is nothing" },
    };

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct tokenizer *tokenizer = NULL;
        struct err err = { .message = "" };

        assert_int_equal(tokenizer_open_json(cases[i].json, strlen(cases[i].json), NULL, 0,
                                             "file.json", &tokenizer, &err), STATUS_BAD_INPUT);
        assert_null(tokenizer);
        if (strstr(err.message, cases[i].message) == NULL)
            fail_msg("%s: \"%s\" lacks \"%s\"", cases[i].json, err.message, cases[i].message);
        assert_non_null(strstr(err.message, "file.json"));
    }
}

/* Hostile patterns, growth, nesting, and texts that are too long. */
static void limits_hold(void **state)
{
    static const char slow[] = "{" MODEL ",\"pre_tokenizer\":{\"type\":\"Split\",\"behavior\":"
                               "\"Isolated\",\"pattern\":{\"Regex\":\"(a|aa|aaa)+[^a]\"}}}";
    static const char growing[] =
        "{" MODEL ",\"normalizer\":{\"type\":\"Sequence\",\"normalizers\":["
        "{\"type\":\"Replace\",\"pattern\":{\"String\":\"a\"},\"content\":\"aaaaaaaaaaaaaaaa\"},"
        "{\"type\":\"Replace\",\"pattern\":{\"String\":\"a\"},\"content\":\"aaaaaaaaaaaaaaaa\"},"
        "{\"type\":\"Replace\",\"pattern\":{\"String\":\"a\"},\"content\":\"aaaaaaaaaaaaaaaa\"}]}}";
    static const char *const files[] = { slow, growing };
    struct token_ids ids = { 0 };
    struct tokenizer *tokenizer;
    struct buf text;
    struct err err;

    (void)state;
    fill(&text, "a", "");
    for (size_t i = 0; i < 2; i++) {
        assert_int_equal(tokenizer_open_json(files[i], strlen(files[i]), NULL, 0, "x", &tokenizer,
                                             &err), STATUS_OK);
        assert_int_not_equal(tokenizer_encode(tokenizer, text.data, text.size, true, &ids, &err),
                             STATUS_OK);
        assert_int_equal(ids.count, 0);
        tokenizer_close(tokenizer);
    }
    assert_int_equal(tokenizer_open_json(tiny_json, strlen(tiny_json), NULL, 0, "x", &tokenizer,
                                         &err), STATUS_OK);
    assert_int_equal(tokenizer_encode(tokenizer, text.data, ((size_t)64 << 20) + 1, true, &ids,
                                      &err), STATUS_BAD_INPUT);
    assert_non_null(strstr(err.message, "at most 67108864"));
    tokenizer_close(tokenizer);
    token_ids_deinit(&ids);
    buf_deinit(&text);
}

static void deep_sequences_are_refused(void **state)
{
    struct tokenizer *tokenizer = NULL;
    struct buf json;
    struct err err;

    (void)state;
    buf_init(&json, MIB);
    assert_int_equal(buf_printf(&json, &err, "{" MODEL ",\"decoder\":"), STATUS_OK);
    for (int i = 0; i < 500; i++)
        assert_int_equal(buf_printf(&json, &err, "{\"type\":\"Sequence\",\"decoders\":["),
                         STATUS_OK);
    for (int i = 0; i < 500; i++)
        assert_int_equal(buf_printf(&json, &err, "]}"), STATUS_OK);
    assert_int_equal(buf_printf(&json, &err, "}"), STATUS_OK);
    assert_int_equal(tokenizer_open_json(json.data, json.size, NULL, 0, "x", &tokenizer, &err),
                     STATUS_BAD_INPUT);
    assert_non_null(strstr(err.message, "nested more than"));
    buf_deinit(&json);
}

/* --- the rest of the interface ---------------------------------------------------------------- */

static void the_config_names_bos_and_eos(void **state)
{
    static const char config[] = "{\"bos_token\":{\"content\":\"<s>\"},\"eos_token\":\"ab\"}";
    static const char other[] = "{\"bos_token\":null,\"eos_token\":\"unknown\"}";
    struct tokenizer *tokenizer;
    struct err err;

    (void)state;
    assert_int_equal(tokenizer_open_json(tiny_json, strlen(tiny_json), config, strlen(config),
                                         "x", &tokenizer, &err), STATUS_OK);
    assert_int_equal(tokenizer_bos_id(tokenizer), 5);
    assert_int_equal(tokenizer_eos_id(tokenizer), 3);
    assert_int_equal(tokenizer_find(tokenizer, "<s>"), 5);
    assert_int_equal(tokenizer_find(tokenizer, "b"), 1);
    assert_int_equal(tokenizer_find(tokenizer, "nothing"), -1);
    tokenizer_close(tokenizer);
    assert_int_equal(tokenizer_open_json(tiny_json, strlen(tiny_json), other, strlen(other), "x",
                                         &tokenizer, &err), STATUS_OK);
    assert_int_equal(tokenizer_bos_id(tokenizer), -1);
    assert_int_equal(tokenizer_eos_id(tokenizer), -1);
    tokenizer_close(tokenizer);
    assert_int_equal(tokenizer_open_json(tiny_json, strlen(tiny_json), "{", 1, "x", &tokenizer,
                                         &err), STATUS_BAD_INPUT);
    assert_non_null(strstr(err.message, "tokenizer_config.json"));
}

static void ids_that_no_token_has_are_refused(void **state)
{
    static const int32_t bad[] = { 6, -1, INT32_MAX, INT32_MIN };
    struct tokenizer *tokenizer;
    struct buf text;
    struct err err;

    (void)state;
    buf_init(&text, KIB);
    assert_int_equal(tokenizer_open_json(tiny_json, strlen(tiny_json), NULL, 0, "x", &tokenizer,
                                         &err), STATUS_OK);
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        const int32_t ids[] = { 0, bad[i] };
        assert_int_equal(tokenizer_decode(tokenizer, ids, 2, false, &text, &err),
                         STATUS_BAD_INPUT);
        assert_non_null(strstr(err.message, "no token with the id"));
        assert_int_equal(text.size, 0);
        assert_false(tokenizer_is_special(tokenizer, bad[i]));
    }
    buf_deinit(&text);
    tokenizer_close(tokenizer);
}

static void *encode_corpus(void *argument)
{
    const struct tokenizer *tokenizer = argument;
    json_t *corpus = read_golden("corpus", ".json");
    json_t *expected = read_golden("llama3", ".expected.json");

    check_corpus("llama3", tokenizer, expected, json_object_get(corpus, "texts"));
    json_decref(expected);
    json_decref(corpus);
    return NULL;
}

static void threads_share_a_tokenizer(void **state)
{
    struct tokenizer *tokenizer = open_golden("llama3");
    pthread_t threads[3];

    (void)state;
    for (size_t i = 0; i < 3; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, encode_corpus, tokenizer), 0);
    for (size_t i = 0; i < 3; i++)
        assert_int_equal(pthread_join(threads[i], NULL), 0);
    tokenizer_close(tokenizer);
}

static void a_folder_without_tokenizer_is_unavailable(void **state)
{
    struct tokenizer *tokenizer;
    struct err err;

    (void)state;
    assert_int_equal(tokenizer_open("tests/golden/text", &tokenizer, &err), STATUS_UNAVAILABLE);
    assert_non_null(strstr(err.message, "tests/golden/text/tokenizer.json"));
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_library_gives_the_same),
        cmocka_unit_test(merges_in_the_order_of_the_list),
        cmocka_unit_test(long_runs_take_linear_time),
        cmocka_unit_test(a_run_of_one_letter_is_merged_throughout),
        cmocka_unit_test(bad_files_are_refused_by_name),
        cmocka_unit_test(limits_hold),
        cmocka_unit_test(deep_sequences_are_refused),
        cmocka_unit_test(the_config_names_bos_and_eos),
        cmocka_unit_test(ids_that_no_token_has_are_refused),
        cmocka_unit_test(threads_share_a_tokenizer),
        cmocka_unit_test(a_folder_without_tokenizer_is_unavailable),
    };

    if (argc == 3 && strcmp(argv[1], "--cases") == 0)
        return answer_cases(argv[2]);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
