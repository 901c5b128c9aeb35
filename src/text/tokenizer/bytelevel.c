/* text/tokenizer/bytelevel.c - GPT-2's printable characters for the 256 bytes.
 *
 * The bytes that Latin-1 prints (0x21-0x7E, 0xA1-0xAC, 0xAE-0xFF) stand for themselves; the other
 * 68, in order, are U+0100 to U+0143. Source: bytes_to_unicode in OpenAI's gpt-2, src/encoder.py.
 * */
#include "text/tokenizer/internal.h"

#include "base/utf8.h"

#define STAND_INS_START 0x100
#define STAND_INS_COUNT 68

static bool stands_for_itself(uint32_t byte)
{
    return (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xFF && byte != 0xAD);
}

static uint32_t character_of(unsigned char byte)
{
    if (stands_for_itself(byte))
        return byte;
    if (byte <= 0x20)
        return STAND_INS_START + byte;
    if (byte <= 0xA0) /* 0x7F to 0xA0 follow the 33 from 0x00 to 0x20 */
        return STAND_INS_START + 33 + (byte - 0x7Fu);
    return STAND_INS_START + 67; /* 0xAD */
}

int byte_level_byte(uint32_t code_point)
{
    const uint32_t index = code_point - STAND_INS_START;

    if (code_point < STAND_INS_START)
        return stands_for_itself(code_point) ? (int)code_point : -1;
    if (index >= STAND_INS_COUNT)
        return -1;
    if (index < 33)
        return (int)index;
    return index < 67 ? (int)(index - 33 + 0x7F) : 0xAD;
}

enum status byte_level_encode(const char *bytes, size_t size, struct buf *out, struct err *err)
{
    enum status st = buf_reserve(out, out->size + 2 * size, err);

    if (st != STATUS_OK)
        return st;
    for (size_t i = 0; i < size; i++)
        out->size += utf8_encode(character_of((unsigned char)bytes[i]), out->data + out->size);
    out->data[out->size] = '\0';
    return STATUS_OK;
}
