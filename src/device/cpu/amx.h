/* device/cpu/amx.h - what the AMX files share; include it only from files named *_amx.c.
 *
 * The tile registers are configured by a kernel when it begins and given back when it ends, so that
 * the system has nothing to save in between. (Intel, Architecture Instruction Set Extensions
 * Programming Reference, chapter 3.) */
#ifndef LIGHTER_DEVICE_CPU_AMX_H
#define LIGHTER_DEVICE_CPU_AMX_H

#include <assert.h>
#include <immintrin.h>
#include <stdint.h>

/* What LDTILECFG reads. */
struct amx_config {
    uint8_t palette, start_row, reserved[14];
    uint16_t column_bytes[16];
    uint8_t rows[16];
};
static_assert(sizeof(struct amx_config) == 64, "the memory operand of LDTILECFG");

/* gcc 12's _tile_loadconfig tells the compiler of 8 bytes that are read: all are stored before. */
static inline void amx_configure(const struct amx_config *config)
{
    __asm__ volatile("" : : "m"(*config));
    _tile_loadconfig(config);
}

#endif
