/* engine/output_test.c - text from ids: stop strings across ids, characters across ids.
 *
 * Method: a tokenizer of some short tokens, among them single bytes of characters. Random texts
 * are cut into tokens in random ways; the answer must be what searching the whole text gives, and
 * at every id all the text must be told that no stop string can claim any more. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include "engine/internal.h"

/* Ids in order. U+00C3 and U+00A9 stand for the bytes C3 and A9 (ByteLevel), which make an e
 * acute. */
static const char *const tokens[] = { "a", "b", "ab", "ba", "aab", "bb", "c", "abc", "cab",
                                      "\xC3\x83", "\xC2\xA9", "\xC3\x83\xC2\xA9" };
static const char *const bytes_of[] = { "a", "b", "ab", "ba", "aab", "bb", "c", "abc", "cab",
                                        "\xC3", "\xA9", "\xC3\xA9" };
enum { TOKENS = sizeof(tokens) / sizeof(tokens[0]), ID_EOS = TOKENS, ID_HOLE = TOKENS + 1,
       ID_PAST = TOKENS + 50, ID_C3 = 9, ID_A9 = 10, LETTERS = 9 };

static struct tokenizer *open_tokenizer(void)
{
    struct tokenizer *tokenizer;
    struct buf json;
    struct err err;

    buf_init(&json, 1 << 16);
    assert_int_equal(buf_printf(&json, &err, "{\"added_tokens\":[{\"id\":%d,\"content\":\"<eos>\","
                                "\"single_word\":false,\"lstrip\":false,\"rstrip\":false,"
                                "\"normalized\":false,\"special\":true},{\"id\":%d,\"content\":"
                                "\"<far>\",\"single_word\":false,\"lstrip\":false,\"rstrip\":false,"
                                "\"normalized\":false,\"special\":true}],\"normalizer\":null,"
                                "\"pre_tokenizer\":null,\"post_processor\":null,"
                                "\"decoder\":{\"type\":\"ByteLevel\",\"add_prefix_space\":false,"
                                "\"trim_offsets\":false,\"use_regex\":false},"
                                "\"model\":{\"type\":\"BPE\",\"dropout\":null,\"unk_token\":null,"
                                "\"continuing_subword_prefix\":null,\"end_of_word_suffix\":null,"
                                "\"fuse_unk\":false,\"byte_fallback\":false,\"vocab\":{",
                                ID_EOS, ID_HOLE + 5), STATUS_OK);
    for (size_t i = 0; i < TOKENS; i++)
        assert_int_equal(buf_printf(&json, &err, "%s\"%s\":%zu", i == 0 ? "" : ",", tokens[i], i),
                         STATUS_OK);
    assert_int_equal(buf_printf(&json, &err, "},\"merges\":[]}}"), STATUS_OK);
    if (tokenizer_open_json(json.data, json.size, NULL, 0, "test", &tokenizer, &err) != STATUS_OK)
        fail_msg("%s", err.message);
    buf_deinit(&json);
    return tokenizer;
}

static void start(struct engine__output *output, struct sampling_params *params,
                  const struct tokenizer *tokenizer, const char *const *stops, size_t stop_count,
                  bool keep_stop)
{
    struct err err;

    sampling_params_init(params);
    params->no_stop_trim = keep_stop;
    for (size_t i = 0; i < stop_count; i++)
        params->stop[params->stop_count++] = stops[i];
    assert_int_equal(engine__output_init(output, params, tokenizer, &err), STATUS_OK);
    assert_int_equal(engine__output_start(output, params, tokenizer, true, &err), STATUS_OK);
}

/* Pushes ids and finishes; what was told stands in `text`, the stop string that matched is
 * returned. */
static const char *run(const struct tokenizer *tokenizer, const char *const *stops,
                       size_t stop_count, bool keep_stop, const int32_t *ids, size_t count,
                       char *text, size_t text_size)
{
    static char matched[64];
    struct sampling_params params;
    struct engine__output output;
    const char *stop = NULL;
    struct err err;

    start(&output, &params, tokenizer, stops, stop_count, keep_stop);
    for (size_t i = 0; i < count && stop == NULL; i++)
        assert_int_equal(engine__output_push(&output, ids[i], &stop, &err), STATUS_OK);
    if (stop == NULL)
        assert_int_equal(engine__output_finish(&output, &stop, &err), STATUS_OK);
    assert_true(output.text.size < text_size);
    memcpy(text, output.text.data, output.text.size + 1);
    if (stop != NULL)
        memcpy(matched, stop, strlen(stop) + 1);
    engine__output_deinit(&output);
    return stop == NULL ? NULL : matched;
}

static void stops_are_found_wherever_ids_end(void **state)
{
    static const struct {
        const char *stops[3];
        int32_t ids[8];
        size_t count;
        const char *text, *kept, *stop;
    } cases[] = {
        { { "abc" }, { 0, 1, 6 }, 3, "", "abc", "abc" },                 /* a b c */
        { { "abc" }, { 0, 2, 6 }, 3, "a", "aabc", "abc" },               /* a ab c */
        { { "abc" }, { 0, 1, 1 }, 3, "abb", "abb", NULL },
        { { "ab" }, { 6, 4, 5 }, 3, "ca", "caab", "ab" },                /* c aab bb */
        { { "bb", "abb" }, { 0, 5 }, 2, "", "abb", "abb" },              /* the longer of two */
        { { "abb", "b" }, { 0, 5 }, 2, "a", "abb", "b" },                /* the first to be whole */
        { { "aabaab" }, { 4, 4, 4 }, 3, "", "aabaab", "aabaab" },
        { { "aabaac" }, { 4, 4, 0, 6 }, 4, "aabaabac", "aabaabac", NULL },
        { { "\xC3\xA9" }, { 0, 9, 10, 1 }, 4, "a", "a\xC3\xA9", "\xC3\xA9" },
        { { "c", "b", "a" }, { 8 }, 1, "", "cab", "c" },
        { { "zzz" }, { 0 }, 0, "", "", NULL },
    };
    struct tokenizer *tokenizer = open_tokenizer();

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        size_t stop_count = 0;

        while (stop_count < 3 && cases[i].stops[stop_count] != NULL)
            stop_count++;
        for (int keep = 0; keep < 2; keep++) {
            char text[64];
            const char *stop = run(tokenizer, cases[i].stops, stop_count, keep == 1, cases[i].ids,
                                   cases[i].count, text, sizeof(text));
            assert_string_equal(text, keep == 1 ? cases[i].kept : cases[i].text);
            assert_int_equal(stop == NULL, cases[i].stop == NULL);
            if (stop != NULL)
                assert_string_equal(stop, cases[i].stop);
        }
    }
    tokenizer_close(tokenizer);
}

static void characters_are_never_split(void **state)
{
    const char *const stops[] = { "\xC3\xA9\xC3\xA9" };
    struct tokenizer *tokenizer = open_tokenizer();
    struct sampling_params params;
    struct engine__output output;
    const char *stop;
    struct err err;

    (void)state;
    for (size_t stop_count = 0; stop_count <= 1; stop_count++) {
        start(&output, &params, tokenizer, stops, stop_count, false);
        assert_int_equal(engine__output_push(&output, ID_C3, &stop, &err), STATUS_OK);
        assert_int_equal(output.text.size, 0);
        assert_int_equal(engine__output_push(&output, ID_A9, &stop, &err), STATUS_OK);
        assert_int_equal(output.text.size, stop_count == 0 ? 2 : 0); /* may begin the stop string */
        assert_int_equal(engine__output_push(&output, ID_C3, &stop, &err), STATUS_OK);
        assert_int_equal(engine__output_finish(&output, &stop, &err), STATUS_OK);
        assert_string_equal(output.text.data, "\xC3\xA9\xEF\xBF\xBD");
        assert_int_equal(engine__output_finish(&output, &stop, &err), STATUS_OK);
        assert_int_equal(output.text.size, 5);
        engine__output_deinit(&output);
    }
    tokenizer_close(tokenizer);
}

static void ids_without_text_are_nothing(void **state)
{
    const int32_t ids[] = { 0, ID_EOS, ID_HOLE, ID_PAST, INT32_MAX, 1 };
    const char *const stops[] = { "ab" };
    struct tokenizer *tokenizer = open_tokenizer();
    struct sampling_params params;
    struct engine__output output;
    const char *stop;
    struct err err;
    char text[16];

    (void)state;
    assert_null(run(tokenizer, NULL, 0, false, ids, 6, text, sizeof(text)));
    assert_string_equal(text, "ab");
    assert_string_equal(run(tokenizer, stops, 1, false, ids, 6, text, sizeof(text)), "ab");
    tokenizer_close(tokenizer);

    sampling_params_init(&params);
    assert_int_equal(engine__output_init(&output, &params, NULL, &err), STATUS_OK);
    assert_int_equal(engine__output_start(&output, &params, NULL, true, &err), STATUS_OK);
    assert_int_equal(engine__output_push(&output, 3, &stop, &err), STATUS_OK);
    assert_int_equal(engine__output_finish(&output, &stop, &err), STATUS_OK);
    assert_int_equal(output.text.size, 0);
    engine__output_deinit(&output);
    params.stop[params.stop_count++] = "x";
    assert_int_equal(engine__output_init(&output, &params, NULL, &err), STATUS_BAD_INPUT);
}

/* -- at random --------------------------------------------------------------------------------- */

static uint64_t next_random(uint64_t *state)
{
    *state = *state * UINT64_C(6364136223846793005) + 1442695040888963407;
    return *state >> 33;
}

/* The stop string that ends first in text[size], the longest of those; *end_out: where it ends. */
static const char *find_stop(const char *text, size_t size, const char *const *stops,
                             size_t stop_count, size_t *end_out)
{
    for (size_t end = 1; end <= size; end++) {
        const char *found = NULL;
        for (size_t i = 0; i < stop_count; i++) {
            const size_t length = strlen(stops[i]);
            if (length <= end && memcmp(text + end - length, stops[i], length) == 0 &&
                (found == NULL || length > strlen(found)))
                found = stops[i];
        }
        *end_out = end;
        if (found != NULL)
            return found;
    }
    return NULL;
}

/* How much of text[size] no stop string can claim: all but the longest end that begins one. */
static size_t tellable(const char *text, size_t size, const char *const *stops, size_t stop_count)
{
    for (size_t start = 0; start < size; start++)
        for (size_t i = 0; i < stop_count; i++)
            if (size - start < strlen(stops[i]) &&
                memcmp(text + start, stops[i], size - start) == 0)
                return start;
    return size;
}

static void random_text_is_told_as_soon_as_it_can_be(void **state)
{
    enum { IDS = 12, STOPS = 4 };
    struct tokenizer *tokenizer = open_tokenizer();
    uint64_t random = 3;
    uint32_t match_count = 0;

    (void)state;
    for (int round = 0; round < 4000; round++) {
        char text[IDS * 4 + 1] = "", words[STOPS][8] = { "" };
        const char *stops[STOPS], *stop = NULL;
        const size_t stop_count = 1 + next_random(&random) % STOPS;
        const bool keep_stop = next_random(&random) % 2 == 0;
        struct sampling_params params;
        struct engine__output output;
        size_t size = 0;
        struct err err;

        for (size_t i = 0; i < stop_count; i++) {
            const size_t length = 1 + next_random(&random) % 7;
            for (size_t j = 0; j < length; j++)
                words[i][j] = "aab"[next_random(&random) % 3];
            stops[i] = words[i];
        }
        start(&output, &params, tokenizer, stops, stop_count, keep_stop);
        for (int i = 0; i < IDS && stop == NULL; i++) {
            const int32_t id = (int32_t)(next_random(&random) % LETTERS);
            const char *expected;
            size_t end = 0, told;

            memcpy(text + size, bytes_of[id], strlen(bytes_of[id]) + 1);
            size += strlen(bytes_of[id]);
            assert_int_equal(engine__output_push(&output, id, &stop, &err), STATUS_OK);
            expected = find_stop(text, size, stops, stop_count, &end);
            assert_int_equal(stop == NULL, expected == NULL);
            if (stop != NULL) {
                assert_string_equal(stop, expected);
                told = keep_stop ? size : end - strlen(expected);
                match_count++;
            } else {
                told = tellable(text, size, stops, stop_count);
            }
            assert_int_equal(output.text.size, told);
            assert_memory_equal(output.text.data, text, told);
        }
        if (stop == NULL) {
            assert_int_equal(engine__output_finish(&output, &stop, &err), STATUS_OK);
            assert_string_equal(output.text.data, text);
        }
        engine__output_deinit(&output);
    }
    assert_in_range(match_count, 500, 3900); /* both ways were taken */
    tokenizer_close(tokenizer);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(stops_are_found_wherever_ids_end),
        cmocka_unit_test(characters_are_never_split),
        cmocka_unit_test(ids_without_text_are_nothing),
        cmocka_unit_test(random_text_is_told_as_soon_as_it_can_be),
    };

    return cmocka_run_group_tests_name("engine output", tests, NULL, NULL);
}
