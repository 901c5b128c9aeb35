/* checkpoint/vocab/sentencepiece_fuzz.c - any bytes as a tokenizer.model. What is made of an
 * accepted one must be JSON. */
#include <stdint.h>
#include <stdlib.h>

#include "base/json.h"
#include "base/size.h"
#include "checkpoint/vocab/sentencepiece.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_json(const struct buf *text)
{
    json_t *json;
    struct err err;

    if (json_read(text->data, text->size, "it", &json, &err) != STATUS_OK)
        abort();
    json_decref(json);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct buf json, config;
    struct err err = { .message = "" };

    buf_init(&json, 64 * MIB);
    buf_init(&config, 64 * MIB);
    if (sentencepiece_read_bytes(data, size, "fuzz", &json, &config, &err) == STATUS_OK) {
        check_json(&json);
        check_json(&config);
    } else if (err.message[0] == '\0') {
        abort();
    }
    buf_deinit(&json);
    buf_deinit(&config);
    return 0;
}
