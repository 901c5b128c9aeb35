/* offload/experts/routing_file_fuzz.c - a file of routers' choices from anywhere: its hash is made
 * right first, so that what comes behind it is reached. */
#include <stdlib.h>
#include <string.h>

#include "offload/experts/routing_file.h"

#define HASH_AT 48

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
    struct routing_data data;
    struct cache_hash fingerprint, hash;
    struct err err;
    uint8_t *copy;

    if (size > 1 << 20 || routing_data_init(&data, 3, 8, 2, &err) != STATUS_OK)
        return 0;
    copy = malloc(size + 1);
    if (copy == NULL)
        abort();
    memcpy(copy, bytes, size);
    memset(&fingerprint, 0, sizeof(fingerprint));
    if (size >= HASH_AT + sizeof(hash)) {
        memcpy(&fingerprint, copy + HASH_AT - sizeof(fingerprint), sizeof(fingerprint));
        memset(copy + HASH_AT, 0, sizeof(hash));
        hash = cache_hash_of(copy, size);
        memcpy(copy + HASH_AT, &hash, sizeof(hash));
    }
    if (routing_parse(copy, size, &fingerprint, &data, &err) == STATUS_OK) {
        for (uint32_t i = 0; i < data.trace_count; i++) {
            if (routing_data_token(&data, i)[0] >= data.expert_count)
                abort();
        }
    }
    free(copy);
    routing_data_deinit(&data);
    return 0;
}
