/* text/tokenizer/tokenizer_fuzz.c - hostile tokenizer.json files and hostile texts.
 *
 * Input: a tokenizer.json, a NUL, a text. What opens must encode the text or refuse it, decode its
 * ids, and streamed one by one they must give the same, in whole characters. Without a NUL the text
 * is a fixed one. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/utf8.h"
#include "text/tokenizer/tokenizer.h"

#define TEXT_SIZE_MAX ((size_t)1 << 20)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void require(bool condition)
{
    if (!condition)
        abort();
}

static void stream_and_compare(const struct tokenizer *tokenizer, const struct token_ids *ids,
                               bool skip_special, const struct buf *all)
{
    struct tokenizer_stream *stream;
    struct buf text;
    struct err err;

    buf_init(&text, 64 * TEXT_SIZE_MAX);
    require(tokenizer_stream_create(tokenizer, skip_special, &stream, &err) == STATUS_OK);
    for (size_t i = 0; i < ids->count; i++) {
        require(tokenizer_stream_push(stream, ids->ids[i], &text, &err) == STATUS_OK);
        if (i % 64 == 0)
            require(text.data == NULL || utf8_is_valid(text.data, text.size));
    }
    require(tokenizer_stream_finish(stream, &text, &err) == STATUS_OK);
    require(text.size == all->size);
    require(text.size == 0 || memcmp(text.data, all->data, text.size) == 0);
    tokenizer_stream_destroy(stream);
    buf_deinit(&text);
}

static void run_text(const struct tokenizer *tokenizer, const char *text, size_t size)
{
    struct token_ids ids = { 0 };
    struct buf decoded;
    struct err err;

    buf_init(&decoded, 64 * TEXT_SIZE_MAX);
    if (tokenizer_encode(tokenizer, text, size, true, &ids, &err) == STATUS_OK) {
        for (int skip_special = 0; skip_special < 2; skip_special++) {
            buf_clear(&decoded);
            if (tokenizer_decode(tokenizer, ids.ids, ids.count, skip_special, &decoded, &err) ==
                STATUS_OK)
                stream_and_compare(tokenizer, &ids, skip_special, &decoded);
        }
    }
    token_ids_deinit(&ids);
    buf_deinit(&decoded);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char plain[] = "Hello world \xE4\xB8\xAD\xF0\x9F\x98\x80 12 <s>\xFF";
    const uint8_t *end = size == 0 ? NULL : memchr(data, 0, size);
    const size_t json_size = end == NULL ? size : (size_t)(end - data);
    struct tokenizer *tokenizer = NULL;
    struct err err;

    if (size > TEXT_SIZE_MAX || tokenizer_open_json((const char *)data, json_size, NULL, 0, "fuzz",
                                                    &tokenizer, &err) != STATUS_OK)
        return 0;
    if (end == NULL)
        run_text(tokenizer, plain, sizeof(plain) - 1);
    else
        run_text(tokenizer, (const char *)end + 1, size - json_size - 1);
    tokenizer_close(tokenizer);
    return 0;
}
