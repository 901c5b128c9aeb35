/* device/cpu/kernels.c - chooses a table of kernels for this processor. */
#include "device/cpu/kernels.h"

#include <stdio.h>
#include <string.h>

#if defined(__aarch64__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#define ARCH_REQ_XCOMP_PERM 0x1023 /* asm/prctl.h since Linux 5.16 */
#define XFEATURE_TILE_DATA 18

/* AVX2, FMA and F16C came together with Haswell in 2013, but a hypervisor can hide each.
 * __builtin_cpu_supports also asks whether the system saves the registers; it knows no F16C in
 * clang 14, so that bit is read here (Intel SDM, volume 2, CPUID, leaf 1). */
static bool has_avx2_fma_f16c(void)
{
    unsigned eax, ebx, ecx, edx;

    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
           __get_cpuid(1, &eax, &ebx, &ecx, &edx) && (ecx & bit_F16C) != 0;
}

/* Leaf 7, sub-leaf 1, EAX bit 4. */
static bool has_avx_vnni(void)
{
    unsigned eax, ebx, ecx, edx;

    return __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) && (eax >> 4 & 1) != 0;
}

static bool has_avx512_vnni(void)
{
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vnni");
}

/* Leaf 7, sub-leaf 1, EAX bit 5. */
static bool has_avx512_bf16(void)
{
    unsigned eax, ebx, ecx, edx;

    return has_avx512_vnni() && __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) &&
           (eax >> 5 & 1) != 0;
}

/* Leaf 7, EDX bits 22 to 25: AMX-BF16, AVX-512 FP16, tiles, AMX-INT8. No processor has tiles
 * without the others and AVX-512 BF16, but a hypervisor can hide each.
 *
 * Linux gives the registers to processes that ask, before or after their threads have started, and
 * asking again changes nothing (Documentation/arch/x86/xstate.rst). */
static bool has_amx(void)
{
    const unsigned wanted = 0xFu << 22;
    unsigned eax, ebx, ecx, edx;

    if (!has_avx512_bf16() || !__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) ||
        (edx & wanted) != wanted)
        return false;
    return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_TILE_DATA) == 0;
}
#endif

uint32_t cpu_kernels_list(const struct cpu_kernels *tables[CPU_KERNELS_MAX])
{
    uint32_t count = 0;

    tables[count++] = &cpu_kernels_scalar;
#if defined(__x86_64__)
    if (has_avx2_fma_f16c()) {
        tables[count++] = &cpu_kernels_avx2;
        if (has_avx_vnni())
            tables[count++] = &cpu_kernels_vnni;
        if (has_avx512_vnni())
            tables[count++] = &cpu_kernels_avx512;
        if (has_amx())
            tables[count++] = &cpu_kernels_amx;
    }
#endif
#if defined(__aarch64__) /* NEON is a part of the architecture, what came later is told by Linux */
    tables[count++] = &cpu_kernels_neon;
    if ((getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0) {
        tables[count++] = &cpu_kernels_dotprod;
        if ((getauxval(AT_HWCAP2) & HWCAP2_I8MM) != 0)
            tables[count++] = &cpu_kernels_i8mm;
    }
#endif
    return count;
}

enum status cpu_kernels_select(const char *id, const struct cpu_kernels **kernels_out,
                               struct err *err)
{
    const struct cpu_kernels *tables[CPU_KERNELS_MAX];
    const uint32_t count = cpu_kernels_list(tables);
    char known[CPU_KERNELS_MAX * 16] = "";
    size_t length = 0;

    *kernels_out = tables[count - 1];
    for (uint32_t i = 0; id != NULL && i < count; i++) {
        *kernels_out = tables[i];
        if (strcmp(tables[i]->id, id) == 0)
            return STATUS_OK;
        length += (size_t)snprintf(known + length, sizeof(known) - length, "%s%s",
                                   i == 0 ? "" : ", ", tables[i]->id);
    }
    if (id == NULL)
        return STATUS_OK;
    return err_set(err, STATUS_BAD_INPUT, "--cpu-kernels: this processor runs %s, not '%s'", known,
                   id);
}

/* Quantised rows that are woven are one stream of memory. Zen 4 fetches one at memory's rate; what
 * Intel's processors fetch is a fifth less than of the sixteen that plain rows are
 * (docs/benchmarks.md, "Woven weights, on Intel"). */
static bool fetches_one_stream_best(void)
{
#if defined(__x86_64__)
    return !__builtin_cpu_is("intel");
#else
    return false;
#endif
}

enum layout cpu_kernels_layout(const struct cpu_kernels *kernels, enum dtype weight_dtype)
{
    const bool woven = weight_dtype == DTYPE_F16 || weight_dtype == DTYPE_BF16
                           ? kernels->woven_half
                           : cpu_is_quantised(weight_dtype) && kernels->woven_quant &&
                                 fetches_one_stream_best();

    return woven ? LAYOUT_ROWS_16 : LAYOUT_ND;
}

const struct cpu_kernels *cpu_kernels_select_bf16(void)
{
#if defined(__x86_64__)
    if (has_avx2_fma_f16c() && has_avx512_bf16() && !has_amx())
        return &cpu_kernels_bf16;
#endif
    return NULL;
}
