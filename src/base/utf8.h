/* base/utf8.h - UTF-8 (RFC 3629), strictly: no overlong forms, no surrogates, nothing past
 * U+10FFFF. */
#ifndef LIGHTER_BASE_UTF8_H
#define LIGHTER_BASE_UTF8_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define UTF8_REPLACEMENT UINT32_C(0xFFFD)

/* Decodes the character at the start of bytes[size]; size > 0. Returns the bytes it takes (1 to 4)
 * and the code point, or, when they are not a character, UTF8_REPLACEMENT and the length of the
 * maximal ill-formed prefix (Unicode 15, section 3.9, "substitution of maximal subparts", which is
 * what Rust's and Python's lossy decoders do); *valid_out tells which. valid_out may be NULL. */
size_t utf8_decode(const void *bytes, size_t size, uint32_t *code_point_out, bool *valid_out);

/* Writes 1 to 4 bytes to out[4]; returns how many. The code point must be a scalar value. */
size_t utf8_encode(uint32_t code_point, char *out);

bool utf8_is_valid(const void *bytes, size_t size);

/* How many bytes at the end of bytes[size] are the start of a character that more bytes could
 * still complete (0 to 3): what a stream must hold back. */
size_t utf8_incomplete_tail(const void *bytes, size_t size);

#endif
