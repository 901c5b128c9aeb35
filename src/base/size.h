/* base/size.h - arithmetic on sizes that came from outside, and sizes as people write them. */
#ifndef LIGHTER_BASE_SIZE_H
#define LIGHTER_BASE_SIZE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

#define KIB (UINT64_C(1) << 10)
#define MIB (UINT64_C(1) << 20)
#define GIB (UINT64_C(1) << 30)

/* *out = a * b (a + b); false, with *out untouched, when that overflows 64 bits. */
bool size_mul(uint64_t a, uint64_t b, uint64_t *out);
bool size_add(uint64_t a, uint64_t b, uint64_t *out);

/* The next multiple of `alignment` (a power of two) at or above `size`; must not overflow. */
uint64_t size_align_up(uint64_t size, uint64_t alignment);

/* Reads "1024", "2GiB", "16GB", "1.5 MiB", "3G" (G, M, K alone mean GiB, MiB, KiB; GB is 10^9).
 * `what` names the option in the message. */
enum status size_parse(const char *text, const char *what, uint64_t *bytes_out, struct err *err);

/* "1.5 GiB", "640 MiB", "12 bytes", "1 byte" into out (at least 24 bytes); returns out. */
char *size_format(uint64_t bytes, char *out, size_t out_size);

#endif
