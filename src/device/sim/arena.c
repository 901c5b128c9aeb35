/* device/sim/arena.c - the software accelerator's memory: a capped range, first fit.
 *
 * Free pieces are kept in a list outside the range, in the order of their addresses; neighbours are
 * joined, so a list of one piece means that all is free. Each allocation sets a note aside, so that
 * freeing needs none. Sizes are rounded up to the alignment. With AddressSanitizer what is free,
 * and the rest of a rounded piece, is poisoned: an op that reads past an operand is caught as it
 * would be with malloc.
 *
 * Threads: the caller's; workers only ask sim__arena_holds, which reads what never changes. */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/size.h"
#include "device/sim/internal.h"

#if defined(__SANITIZE_ADDRESS__)
#define ARENA_POISONS 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define ARENA_POISONS 1
#endif
#endif
#ifdef ARENA_POISONS
#include <sanitizer/asan_interface.h>
#define POISON(memory, size) ASAN_POISON_MEMORY_REGION(memory, size)
#define UNPOISON(memory, size) ASAN_UNPOISON_MEMORY_REGION(memory, size)
#else
#define POISON(memory, size) ((void)(memory), (void)(size))
#define UNPOISON(memory, size) ((void)(memory), (void)(size))
#endif

/* Of what was never handed out, this much is poisoned, at the front, where first fit begins: for
 * all of 4 GiB the sanitizer would write 512 MiB for each device that is opened, and again to close
 * it. */
#define POISONED_AT_START_MAX (64 * MIB)

struct piece { /* of free memory */
    struct piece *next;
    uint64_t offset, size;
};

struct sim_arena {
    char *base;
    uint64_t size;
    uint64_t poisoned_end; /* nothing behind is poisoned */
    struct piece *pieces;
    struct piece *spares; /* one for each allocation, for when it is freed */
};

enum status sim__arena_create(uint64_t size_bytes, struct sim_arena **arena_out, struct err *err)
{
    struct sim_arena *arena = calloc(1, sizeof(*arena));
    struct piece *whole = calloc(1, sizeof(*whole));
    char text[24];

    if (arena == NULL || whole == NULL) {
        free(arena);
        free(whole);
        return err_set(err, STATUS_NO_MEMORY, "sim: no memory for an arena");
    }
    arena->size = size_bytes / DEVICE_ALIGNMENT * DEVICE_ALIGNMENT;
    arena->base = mmap(NULL, arena->size, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0); /* page-aligned */
    if (arena->base == MAP_FAILED) {
        free(arena);
        free(whole);
        return err_set(err, STATUS_NO_MEMORY, "sim: no range of %s for its memory: %s",
                       size_format(size_bytes, text, sizeof(text)), strerror(errno));
    }
    (void)madvise(arena->base, arena->size, MADV_HUGEPAGE);
    whole->size = arena->size;
    arena->pieces = whole;
    arena->poisoned_end = arena->size < POISONED_AT_START_MAX ? arena->size : POISONED_AT_START_MAX;
    POISON(arena->base, arena->poisoned_end);
    *arena_out = arena;
    return STATUS_OK;
}

void sim__arena_destroy(struct sim_arena *arena)
{
    if (arena == NULL)
        return;
    assert(arena->pieces != NULL && arena->pieces->size == arena->size);
    assert(arena->spares == NULL);
    UNPOISON(arena->base, arena->poisoned_end);
    (void)munmap(arena->base, arena->size);
    free(arena->pieces);
    free(arena);
}

static enum status refuse(const struct sim_arena *arena, uint64_t size, struct err *err)
{
    uint64_t largest = 0, all = 0;
    char wanted[24], piece[24], sum[24];

    for (const struct piece *p = arena->pieces; p != NULL; p = p->next) {
        largest = p->size > largest ? p->size : largest;
        all += p->size;
    }
    return err_set(err, STATUS_NO_MEMORY,
                   "sim: no free piece of %s; %s are free, the largest piece has %s",
                   size_format(size, wanted, sizeof(wanted)), size_format(all, sum, sizeof(sum)),
                   size_format(largest, piece, sizeof(piece)));
}

/* The bytes before the first aligned offset in the piece. */
static uint64_t padding_of(const struct sim_arena *arena, const struct piece *piece,
                           uint64_t alignment)
{
    const uintptr_t address = (uintptr_t)arena->base + piece->offset;

    return size_align_up(address, alignment) - address;
}

/* Cuts the first `padding` bytes off *link's piece, which goes on behind them. */
static struct piece **cut_padding(struct piece **link, struct piece *front, uint64_t padding)
{
    struct piece *piece = *link;

    *front = (struct piece){ piece, piece->offset, padding };
    piece->offset += padding;
    piece->size -= padding;
    *link = front;
    return &front->next;
}

enum status sim__arena_alloc(struct sim_arena *arena, uint64_t size_bytes, uint64_t alignment,
                             void **memory_out, struct err *err)
{
    struct piece **link = &arena->pieces;
    struct piece *piece, *spare, *front = NULL;
    uint64_t size, padding = 0;

    if (size_bytes > arena->size)
        return refuse(arena, size_bytes, err);
    size = size_align_up(size_bytes, alignment);
    for (piece = *link; piece != NULL; piece = *link) {
        padding = padding_of(arena, piece, alignment);
        if (padding <= piece->size && size <= piece->size - padding)
            break;
        link = &piece->next;
    }
    if (piece == NULL)
        return refuse(arena, size, err);
    spare = calloc(1, sizeof(*spare));
    if (padding > 0)
        front = calloc(1, sizeof(*front));
    if (spare == NULL || (padding > 0 && front == NULL)) {
        free(spare);
        free(front);
        return err_set(err, STATUS_NO_MEMORY, "sim: no host memory to note an allocation");
    }
    if (padding > 0)
        link = cut_padding(link, front, padding);
    spare->next = arena->spares;
    arena->spares = spare;
    *memory_out = arena->base + piece->offset;
    UNPOISON(*memory_out, size_bytes);
    piece->offset += size;
    piece->size -= size;
    if (piece->offset > arena->poisoned_end) /* it will be, when it is free again */
        arena->poisoned_end = piece->offset;
    if (piece->size == 0) {
        *link = piece->next;
        free(piece);
    }
    return STATUS_OK;
}

/* Joins a piece with the next one when they touch. */
static void join_next(struct piece *piece)
{
    struct piece *next = piece->next;

    if (next == NULL || piece->offset + piece->size != next->offset)
        return;
    piece->size += next->size;
    piece->next = next->next;
    free(next);
}

void sim__arena_free(struct sim_arena *arena, void *memory, uint64_t size_bytes,
                     uint64_t alignment)
{
    const uint64_t offset = (uint64_t)((char *)memory - arena->base);
    const uint64_t size = size_align_up(size_bytes, alignment);
    struct piece *before = NULL, *after = arena->pieces;
    struct piece *piece = arena->spares;

    assert(piece != NULL);
    assert(offset + size <= arena->size);
    POISON(memory, size);
    while (after != NULL && after->offset < offset) {
        before = after;
        after = after->next;
    }
    assert(before == NULL || before->offset + before->size <= offset); /* not freed twice */
    assert(after == NULL || offset + size <= after->offset);
    arena->spares = piece->next;
    if (before != NULL && before->offset + before->size == offset) {
        before->size += size;
        join_next(before);
        free(piece);
        return;
    }
    *piece = (struct piece){ after, offset, size };
    if (before == NULL)
        arena->pieces = piece;
    else
        before->next = piece;
    join_next(piece);
}

bool sim__arena_holds(const struct sim_arena *arena, const void *pointer, uint64_t size_bytes)
{
    const uint64_t offset = (uintptr_t)pointer - (uintptr_t)arena->base; /* wraps when below */

    return offset <= arena->size && size_bytes <= arena->size - offset;
}

bool sim__arena_touches(const struct sim_arena *arena, const void *pointer, uint64_t size_bytes)
{
    const uintptr_t first = (uintptr_t)pointer, base = (uintptr_t)arena->base;

    return first < base + arena->size && first + size_bytes > base;
}
