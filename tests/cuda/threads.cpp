/* tests/cuda/threads.cpp - the threads of a kernel's blocks, as fibers of one thread.
 *
 * Blocks run one after another. A fiber runs until it has to wait for others at a barrier; then the
 * next one of its block goes on. What a warp does together (exchanges, products of matrices) is a
 * barrier of its lanes, where the last one to come does the work. Fibers stay from block to block;
 * each has a stack of its own, and a few instructions switch from one to the next.
 *
 * Stricter than a GPU: shared memory begins as NaN, what is copied to it asynchronously is there
 * only once its group has been waited for, and a barrier that not all can reach ends the program.
 * */
#include "standin.h"

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <vector>

#define STACK_BYTES (128 << 10)
#define THREADS_MAX 1024
#define LANES 32
#define PARTS 15
#define SHARED_BYTES_MAX (99 << 10) /* of the smallest GPUs: compute capability 8.6, 8.9 and 12.0 */
#define WAITS_MAX (64 * THREADS_MAX)

__thread struct standin_place threadIdx, blockIdx, gridDim;

/* ---- switching ---- */

/* Saves what a called function must keep on the stack, and the stack's place in *from; then goes on
 * where `to` was saved. A stack that has not begun yet looks as if it had been saved by a function
 * that returns to standin_fiber_main. */
extern "C" void standin_switch(void **from, void *to);
extern "C" void standin_fiber_main(void);

#if defined(__x86_64__)
#define SAVED_WORDS 6 /* rbp, rbx, r12 to r15: System V ABI, figure 3.4 */
asm(".text\n.hidden standin_switch\n.globl standin_switch\n.type standin_switch, @function\n"
    "standin_switch:\n"
    "push %rbp\npush %rbx\npush %r12\npush %r13\npush %r14\npush %r15\n"
    "mov %rsp, (%rdi)\nmov %rsi, %rsp\n"
    "pop %r15\npop %r14\npop %r13\npop %r12\npop %rbx\npop %rbp\nret\n"
    ".size standin_switch, .-standin_switch\n");
#elif defined(__aarch64__)
#define SAVED_WORDS 20 /* x19 to x30, d8 to d15: AAPCS64, section 6.1 */
asm(".text\n.hidden standin_switch\n.globl standin_switch\n.type standin_switch, %function\n"
    "standin_switch:\n"
    "sub sp, sp, #160\n"
    "stp x19, x20, [sp]\nstp x21, x22, [sp, #16]\nstp x23, x24, [sp, #32]\n"
    "stp x25, x26, [sp, #48]\nstp x27, x28, [sp, #64]\nstp x29, x30, [sp, #80]\n"
    "stp d8, d9, [sp, #96]\nstp d10, d11, [sp, #112]\nstp d12, d13, [sp, #128]\n"
    "stp d14, d15, [sp, #144]\n"
    "mov x2, sp\nstr x2, [x0]\nmov sp, x1\n"
    "ldp x19, x20, [sp]\nldp x21, x22, [sp, #16]\nldp x23, x24, [sp, #32]\n"
    "ldp x25, x26, [sp, #48]\nldp x27, x28, [sp, #64]\nldp x29, x30, [sp, #80]\n"
    "ldp d8, d9, [sp, #96]\nldp d10, d11, [sp, #112]\nldp d12, d13, [sp, #128]\n"
    "ldp d14, d15, [sp, #144]\n"
    "add sp, sp, #160\nret\n"
    ".size standin_switch, .-standin_switch\n");
#else
#error "the stand-in of CUDA switches stacks on x86-64 and arm64 alone"
#endif

namespace {

struct copy {
    void *to;
    const void *from;
};

struct fiber {
    std::unique_ptr<uint64_t[]> stack;
    void *at;                               /* where its stack was saved */
    bool has_ended;
    unsigned turn;                          /* of its warp's exchanges */
    std::vector<std::vector<copy>> groups;  /* the last one is open */
};

struct barrier {
    unsigned arrived;
    uint64_t generation;
};

struct warp {
    struct barrier barrier;
    uint64_t values[2][LANES];
    float *c[LANES];
    int32_t *sums[LANES];
    const uint32_t *a[LANES], *b[LANES];
};

struct pool {
    struct fiber fibers[THREADS_MAX];
    struct warp warps[THREADS_MAX / LANES];
    struct barrier block, parts[PARTS];
    bool any, any_before;                   /* of those that come to the block's barrier */
    void *scheduler;                        /* where the stream's own stack was saved */
    unsigned count, left, now;
    const std::function<void()> *kernel;
    alignas(16) unsigned char shared[SHARED_BYTES_MAX + 16];
};

__thread struct pool *pool;

void fail(const char *what)
{
    (void)fprintf(stderr, "the stand-in of CUDA: %s\n", what);
    abort();
}

void resume(void **from, unsigned index)
{
    pool->now = index;
    threadIdx = { index, 0, 0 };
    standin_switch(from, pool->fibers[index].at);
}

unsigned next_of(unsigned index)
{
    do
        index = index + 1 < pool->count ? index + 1 : 0;
    while (pool->fibers[index].has_ended);
    return index;
}

void let_others()
{
    const unsigned mine = pool->now, next = next_of(mine);

    if (next != mine)
        resume(&pool->fibers[mine].at, next);
}

void fiber_create(struct fiber *fiber)
{
    constexpr size_t words = STACK_BYTES / sizeof(uint64_t);
    uint64_t *top;

    fiber->stack.reset(new uint64_t[words]);
    top = fiber->stack.get() + words - 2;
    top -= (uintptr_t)top % 16 / sizeof(uint64_t);
#if defined(__x86_64__)
    top[-1] = 0; /* where it would return to; calls begin 8 below a multiple of 16 */
    top[-2] = (uint64_t)(uintptr_t)standin_fiber_main;
    fiber->at = top - 2 - SAVED_WORDS;
#else
    fiber->at = top - SAVED_WORDS;
    ((uint64_t *)fiber->at)[11] = (uint64_t)(uintptr_t)standin_fiber_main; /* x30 */
#endif
}

template <typename Work> void wait_at(struct barrier *barrier, unsigned wanted, Work work)
{
    const uint64_t generation = barrier->generation;

    if (++barrier->arrived == wanted) {
        work();
        barrier->arrived = 0;
        barrier->generation++;
        return;
    }
    for (unsigned waits = 0; barrier->generation == generation; waits++) {
        if (waits > WAITS_MAX)
            fail("threads wait at a barrier that others do not reach");
        let_others();
    }
}

struct warp *my_warp()
{
    return &pool->warps[pool->now / LANES];
}

template <typename Work> void wait_for_warp(Work work)
{
    wait_at(&my_warp()->barrier, LANES, work);
}

void run_block(size_t shared_bytes)
{
    std::memset(pool->shared, 0xff, shared_bytes + 16);
    pool->block = {};
    pool->any = false;
    for (struct barrier &part : pool->parts)
        part = {};
    for (unsigned i = 0; i < pool->count; i++) {
        struct fiber *fiber = &pool->fibers[i];

        if (fiber->stack == nullptr)
            fiber_create(fiber);
        fiber->has_ended = false;
        fiber->turn = 0;
        fiber->groups.assign(1, {});
        pool->warps[i / LANES].barrier = {};
    }
    pool->left = pool->count;
    resume(&pool->scheduler, 0);
}

} /* namespace */

/* A thread of one block after another. */
void standin_fiber_main(void)
{
    for (;;) {
        const unsigned mine = pool->now;
        struct fiber *fiber = &pool->fibers[mine];

        (*pool->kernel)();
        fiber->has_ended = true;
        if (--pool->left == 0)
            standin_switch(&fiber->at, pool->scheduler);
        else
            resume(&fiber->at, next_of(mine));
    }
}

void standin_run(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()> &kernel)
{
    if (pool == nullptr)
        pool = new struct pool();
    pool->count = block.x;
    pool->kernel = &kernel;
    gridDim = { grid.x, grid.y, grid.z };
    for (unsigned z = 0; z < grid.z; z++)
        for (unsigned y = 0; y < grid.y; y++)
            for (unsigned x = 0; x < grid.x; x++) {
                blockIdx = { x, y, z };
                run_block(shared_bytes);
            }
}

void standin_end_thread(void)
{
    delete pool;
    pool = nullptr;
}

bool standin_can_run(dim3 grid, dim3 block, size_t shared_bytes)
{
    return grid.x > 0 && grid.y > 0 && grid.z > 0 && grid.y < 65536 && grid.z < 65536 &&
           grid.x < 0x80000000u && block.x > 0 && block.x <= THREADS_MAX && block.y == 1 &&
           block.z == 1 && block.x % LANES == 0 && shared_bytes <= SHARED_BYTES_MAX;
}

void __syncthreads(void)
{
    wait_at(&pool->block, pool->left, [] {});
}

int __syncthreads_or(int value)
{
    pool->any = pool->any || value != 0;
    wait_at(&pool->block, pool->left, [] {
        pool->any_before = pool->any;
        pool->any = false;
    });
    return pool->any_before ? 1 : 0;
}

void standin_part_sync(unsigned part, unsigned threads)
{
    wait_at(&pool->parts[part], threads, [] {});
}

void __syncwarp(void)
{
    wait_for_warp([] {});
}

uint64_t standin_exchange(uint64_t bits, unsigned from_lane)
{
    struct warp *warp = my_warp();
    const unsigned turn = pool->fibers[pool->now].turn++ % 2;

    warp->values[turn][pool->now % LANES] = bits;
    wait_for_warp([] {});
    return warp->values[turn][from_lane];
}

unsigned char *standin_shared_memory(void)
{
    return pool->shared;
}

/* ---- asynchronous copies ---- */

void standin_copy_16(void *shared, const void *memory)
{
    if ((uintptr_t)shared % 16 != 0 || (uintptr_t)memory % 16 != 0)
        fail("cp.async of 16 bytes at an address that is no multiple of it");
    pool->fibers[pool->now].groups.back().push_back({ shared, memory });
}

void standin_copy_commit(void)
{
    pool->fibers[pool->now].groups.emplace_back();
}

void standin_copy_wait(int left)
{
    std::vector<std::vector<copy>> &groups = pool->fibers[pool->now].groups;

    while (groups.size() > (size_t)left + 1) {
        for (const copy &one : groups.front())
            std::memcpy(one.to, one.from, 16);
        groups.erase(groups.begin());
    }
}

/* ---- products of matrices ---- */

/* A row of a product. Said in vectors, since a compiler finds none in sums that have an order. */
typedef float eight_floats __attribute__((vector_size(32)));
typedef int32_t eight_integers __attribute__((vector_size(32)));

/* Where a lane has elements of a, b and the sums: PTX ISA, figures of mma.m16n8k16 and m16n8k32. */
static void multiply_bf16(const struct warp *warp)
{
    float a[16][16];
    eight_floats b[16], sums[16];

    for (unsigned lane = 0; lane < LANES; lane++) {
        const unsigned g = lane / 4, q = lane % 4;

        for (unsigned i = 0; i < 4; i++)
            for (unsigned j = 0; j < 2; j++)
                a[g + i % 2 * 8][2 * q + j + i / 2 * 8] =
                    __uint_as_float(warp->a[lane][i] >> 16 * j << 16);
        for (unsigned i = 0; i < 2; i++)
            for (unsigned j = 0; j < 2; j++)
                b[2 * q + j + i * 8][g] = __uint_as_float(warp->b[lane][i] >> 16 * j << 16);
    }
    for (unsigned row = 0; row < 16; row++) {
        sums[row] = eight_floats{};
        for (unsigned k = 0; k < 16; k++)
            sums[row] += a[row][k] * b[k];
    }
    for (unsigned lane = 0; lane < LANES; lane++)
        for (unsigned i = 0; i < 4; i++)
            warp->c[lane][i] += sums[lane / 4 + i / 2 * 8][lane % 4 * 2 + i % 2];
}

static void multiply_s8(const struct warp *warp, unsigned k_count)
{
    int8_t a[16][32];
    eight_integers b[32], sums[16];

    for (unsigned lane = 0; lane < LANES; lane++) {
        const unsigned g = lane / 4, q = lane % 4;

        for (unsigned i = 0; i < k_count / 8; i++)
            for (unsigned j = 0; j < 4; j++)
                a[g + i % 2 * 8][4 * q + j + i / 2 * 16] = (int8_t)(warp->a[lane][i] >> 8 * j);
        for (unsigned i = 0; i < k_count / 16; i++)
            for (unsigned j = 0; j < 4; j++)
                b[4 * q + j + i * 16][g] = (int8_t)(warp->b[lane][i] >> 8 * j);
    }
    for (unsigned row = 0; row < 16; row++) {
        sums[row] = eight_integers{};
        for (unsigned k = 0; k < k_count; k++)
            sums[row] += (int32_t)a[row][k] * b[k];
    }
    for (unsigned lane = 0; lane < LANES; lane++)
        for (unsigned i = 0; i < 4; i++)
            warp->sums[lane][i] = sums[lane / 4 + i / 2 * 8][lane % 4 * 2 + i % 2];
}

void standin_mma_bf16(float c[4], const uint32_t a[4], const uint32_t b[2])
{
    struct warp *warp = my_warp();
    const unsigned lane = pool->now % LANES;

    warp->c[lane] = c;
    warp->a[lane] = a;
    warp->b[lane] = b;
    wait_for_warp([warp] { multiply_bf16(warp); });
}

void standin_mma_s8(int32_t c[4], const uint32_t a[4], const uint32_t b[2], int k_count)
{
    struct warp *warp = my_warp();
    const unsigned lane = pool->now % LANES;

    warp->sums[lane] = c;
    warp->a[lane] = a;
    warp->b[lane] = b;
    wait_for_warp([warp, k_count] { multiply_s8(warp, (unsigned)k_count); });
}

/* IEEE 754 binary16: 5 bits of exponent, 10 of fraction. */
float standin_f16_to_f32(uint16_t bits)
{
    const uint32_t sign = (uint32_t)(bits >> 15) << 31, exponent = bits >> 10 & 31;
    const uint32_t fraction = bits & 1023;
    float value;

    if (exponent == 31)
        return __uint_as_float(sign | 0x7f800000u | fraction << 13);
    value = exponent == 0 ? std::ldexp((float)fraction, -24)
                          : std::ldexp((float)(fraction | 1024), (int)exponent - 25);
    return __uint_as_float(__float_as_uint(value) | sign);
}

/* Products of two BF16 are exact in F32; to nearest, ties to even. */
uint32_t standin_mul_bf16(uint32_t a, uint32_t b)
{
    uint32_t products = 0;

    for (unsigned shift = 0; shift < 32; shift += 16) {
        const float product = __uint_as_float(a >> shift << 16) * __uint_as_float(b >> shift << 16);
        const uint32_t bits = __float_as_uint(product);
        const uint32_t nearest = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;

        products |= (std::isnan(product) ? 0x7fff : nearest) << shift;
    }
    return products;
}
