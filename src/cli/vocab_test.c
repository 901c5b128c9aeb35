/* cli/vocab_test.c - tokenizers of real models, as GGUF files have them, against llama.cpp's ids.
 *
 * ../shared/data/vocab holds vocabularies without weights, NAME.gguf, with texts, NAME.inp, and
 * their ids, NAME.out, one line for each text (llama.cpp, models/ggml-vocab-*). Where the folder is
 * missing the tests say that they were skipped. */
#include <inttypes.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "base/file.h"
#include "base/size.h"
#include "base/utf8.h"
#include "cli/session.h"
#include "tensor/testing.h"
#include "text/tokenizer/tokenizer.h"

#define FOLDER "../shared/data/vocab"
#define BETWEEN "\n__ggml_vocab_test__\n"

static const char *const names[] = { "llama-spm", "gpt-2", "starcoder", "deepseek-llm" };
#define NAME_COUNT (sizeof(names) / sizeof(names[0]))

static struct tokenizer *open_tokenizer(const char *name)
{
    struct tokenizer *tokenizer = NULL;
    struct err err;
    char path[128];

    (void)snprintf(path, sizeof(path), FOLDER "/%s.gguf", name);
    if (!file_exists(path)) {
        print_message("%s is not there\n", path);
        skip();
    }
    if (cli_open_tokenizer(path, &tokenizer, &err) != STATUS_OK)
        fail_msg("%s", err.message);
    return tokenizer;
}

static struct buf read_file(const char *name, const char *suffix)
{
    struct buf bytes;
    struct err err;
    char path[128];

    (void)snprintf(path, sizeof(path), FOLDER "/%s.%s", name, suffix);
    buf_init(&bytes, 16 * MIB);
    if (file_read_all(path, &bytes, &err) != STATUS_OK)
        fail_msg("%s", err.message);
    return bytes;
}

/* Compares the ids of text[size] with the numbers of a line, behind which it returns. */
static const char *check_line(const char *name, const struct tokenizer *tokenizer,
                              const char *text, size_t size, const char *line)
{
    struct token_ids ids = { 0 };
    struct err err;
    size_t count = 0;

    if (tokenizer_encode(tokenizer, text, size, false, &ids, &err) != STATUS_OK)
        fail_msg("%s", err.message);
    for (;; count++) {
        char *end;
        long id;
        while (*line == ' ')
            line++;
        if (*line == '\n' || *line == '\0')
            break;
        id = strtol(line, &end, 10);
        assert_true(end > line);
        if (count >= ids.count || ids.ids[count] != id)
            fail_msg("%s: id %zu of '%.*s' is %" PRId32 ", %ld is wanted", name, count,
                     (int)size, text, count < ids.count ? ids.ids[count] : -1, id);
        line = end;
    }
    if (count != ids.count)
        fail_msg("%s: '%.*s' has %zu ids, %zu are wanted", name, (int)size, text, ids.count,
                 count);
    token_ids_deinit(&ids);
    return *line == '\n' ? line + 1 : line;
}

static void check_vocabulary(const char *name)
{
    struct tokenizer *const tokenizer = open_tokenizer(name);
    struct buf texts = read_file(name, "inp"), ids = read_file(name, "out");
    const char *line = ids.data, *at = texts.data;
    size_t count = 0;

    for (bool more = true; more; count++) {
        const char *const end = strstr(at, BETWEEN);
        const size_t size = end != NULL ? (size_t)(end - at) : strlen(at);
        more = end != NULL;
        if (!more && size > 0 && at[size - 1] == '\n' && *line == '\0')
            break; /* nothing but the end of the file */
        line = check_line(name, tokenizer, at, size, line);
        at += size + (more ? strlen(BETWEEN) : 0);
    }
    assert_string_equal(line, "");
    assert_true(count > 40);
    buf_deinit(&texts);
    buf_deinit(&ids);
    tokenizer_close(tokenizer);
}

static void ids_are_llama_cpps_llama_spm(void **state)
{
    (void)state;
    check_vocabulary(names[0]);
}

static void ids_are_llama_cpps_gpt_2(void **state)
{
    (void)state;
    check_vocabulary(names[1]);
}

static void ids_are_llama_cpps_starcoder(void **state)
{
    (void)state;
    check_vocabulary(names[2]);
}

static void ids_are_llama_cpps_deepseek_llm(void **state)
{
    (void)state;
    check_vocabulary(names[3]);
}

/* What tokenizer.h promises of bytes that are no characters: U+FFFD in their place. */
static void replace_broken(const uint8_t *bytes, size_t size, struct buf *out)
{
    for (size_t at = 0; at < size;) {
        uint32_t code_point = 0;
        char character[4];
        at += utf8_decode(bytes + at, size - at, &code_point, NULL);
        assert_int_equal(buf_append(out, character, utf8_encode(code_point, character), NULL),
                         STATUS_OK);
    }
}

/* Texts with some byte don't come back. StarCoder has no token for 0xF1. In deepseek-llm some
 * letters from U+00C0 on were added as tokens of their own, whose decoder, there and in Hugging
 * Face's library, takes a letter for the name of a byte. */
static void random_bytes_come_back(void **state)
{
    static const uint8_t lost[NAME_COUNT] = { 0, 0, 0xF1, 0xC3 };
    uint64_t random = 11;

    (void)state;
    for (size_t n = 0; n < NAME_COUNT; n++) {
        struct tokenizer *const tokenizer = open_tokenizer(names[n]);
        for (size_t round = 0; round < 400; round++) {
            uint8_t bytes[256];
            const size_t size = testing_bits(&random) % sizeof(bytes);
            /* of all bytes, of those below 128, of few */
            const uint8_t mask = round % 3 == 0 ? 0xFF : round % 3 == 1 ? 0x7F : 0x2F;
            struct token_ids ids = { 0 };
            struct buf wanted, found;
            struct err err;
            buf_init(&wanted, KIB * 4);
            buf_init(&found, KIB * 4);
            for (size_t i = 0; i < size; i++)
                bytes[i] = (uint8_t)(testing_bits(&random) >> 30) & mask;
            replace_broken(bytes, size, &wanted);
            if (wanted.size > 0 && lost[n] != 0 && memchr(wanted.data, lost[n], wanted.size)) {
                buf_deinit(&wanted);
                continue;
            }
            if (tokenizer_encode(tokenizer, (const char *)bytes, size, false, &ids, &err) !=
                    STATUS_OK ||
                tokenizer_decode(tokenizer, ids.ids, ids.count, false, &found, &err) != STATUS_OK)
                fail_msg("%s: %s", names[n], err.message);
            if (found.size != wanted.size ||
                (size > 0 && memcmp(found.data, wanted.data, wanted.size) != 0))
                fail_msg("%s: '%s' comes back as '%s'", names[n], wanted.data, found.data);
            token_ids_deinit(&ids);
            buf_deinit(&wanted);
            buf_deinit(&found);
        }
        tokenizer_close(tokenizer);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ids_are_llama_cpps_llama_spm),
        cmocka_unit_test(ids_are_llama_cpps_gpt_2),
        cmocka_unit_test(ids_are_llama_cpps_starcoder),
        cmocka_unit_test(ids_are_llama_cpps_deepseek_llm),
        cmocka_unit_test(random_bytes_come_back),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
