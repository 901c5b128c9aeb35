/* base/testing_alloc.h - an allocation that fails, for tests: the n-th from now, on any thread.
 *
 * malloc and its kin are replaced by ones that count and, when armed, fail once. Include this in
 * one file of a test program. Sanitizers bring their own malloc: with them TESTING_ALLOC is not
 * defined, and the program has nothing to test. Jansson must be kept out (json_set_alloc_funcs
 * with __libc_malloc and __libc_free): 2.14 frees a string twice when an allocation of its own
 * fails. */
#ifndef LIGHTER_BASE_TESTING_ALLOC_H
#define LIGHTER_BASE_TESTING_ALLOC_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdlib.h>

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define TESTING_SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define TESTING_SANITIZED 1
#endif
#endif

#ifndef TESTING_SANITIZED
#define TESTING_ALLOC 1

void *__libc_malloc(size_t size);
void *__libc_calloc(size_t count, size_t size);
void *__libc_realloc(void *block, size_t size);
void *__libc_memalign(size_t alignment, size_t size);
void __libc_free(void *block);

/* How many more allocations go well; below 0: none fails. Any thread may count down. */
static atomic_long allocations_left = -1;
static atomic_long block_count; /* given out and not freed */

static bool allocation_fails(void)
{
    return atomic_load(&allocations_left) >= 0 && atomic_fetch_sub(&allocations_left, 1) == 0;
}

void *malloc(size_t size)
{
    void *const block = allocation_fails() ? NULL : __libc_malloc(size);

    atomic_fetch_add(&block_count, block != NULL);
    return block;
}

void *calloc(size_t count, size_t size)
{
    void *const block = allocation_fails() ? NULL : __libc_calloc(count, size);

    atomic_fetch_add(&block_count, block != NULL);
    return block;
}

void *realloc(void *old, size_t size)
{
    void *const block = allocation_fails() ? NULL : __libc_realloc(old, size);

    atomic_fetch_add(&block_count, block != NULL && old == NULL);
    return block;
}

void *aligned_alloc(size_t alignment, size_t size)
{
    void *const block = allocation_fails() ? NULL : __libc_memalign(alignment, size);

    atomic_fetch_add(&block_count, block != NULL);
    return block;
}

void free(void *block)
{
    atomic_fetch_sub(&block_count, block != NULL);
    __libc_free(block);
}

#endif
#endif
