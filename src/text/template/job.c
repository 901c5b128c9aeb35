/* text/template/job.c - memory, limits and the way out of parsing and rendering; see internal.h. */
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "text/template/internal.h"

#define BLOCK_BYTES ((size_t)64 << 10)

struct job_block {
    struct job_block *next;
    size_t used, size;
    max_align_t bytes[];
};

void tpl__job_init(struct job *job, size_t memory_limit_bytes, unsigned depth_max,
                   const char *what, struct err *err)
{
    job->blocks = NULL;
    job->memory_bytes = 0;
    job->memory_limit_bytes = memory_limit_bytes;
    job->steps_left = TEMPLATE_STEPS_MAX;
    job->depth = 0;
    job->depth_max = depth_max;
    job->what = what;
    job->line = 0;
    job->err = err;
    job->status = STATUS_OK;
}

void tpl__job_deinit(struct job *job)
{
    struct job_block *block = job->blocks;

    while (block != NULL) {
        struct job_block *next = block->next;

        free(block);
        block = next;
    }
    job->blocks = NULL;
}

static struct job_block *block_add(struct job *job, size_t size)
{
    size_t block_size = size > BLOCK_BYTES / 4 ? size : BLOCK_BYTES;
    struct job_block *block;

    if (block_size > job->memory_limit_bytes - job->memory_bytes)
        tpl__fail(job, "it needs more than %zu bytes of memory", job->memory_limit_bytes);
    block = calloc(1, sizeof(*block) + block_size);
    if (block == NULL) {
        job->status = STATUS_NO_MEMORY;
        tpl__fail(job, "no memory for %zu bytes more", block_size);
    }
    block->size = block_size;
    job->memory_bytes += block_size;
    /* A large one goes behind the block that is being filled. */
    if (block_size != BLOCK_BYTES && job->blocks != NULL) {
        block->next = job->blocks->next;
        job->blocks->next = block;
    } else {
        block->next = job->blocks;
        job->blocks = block;
    }
    return block;
}

void *tpl__alloc(struct job *job, size_t size)
{
    struct job_block *block = job->blocks;
    void *bytes;

    if (size > job->memory_limit_bytes)
        tpl__fail(job, "it needs more than %zu bytes of memory", job->memory_limit_bytes);
    size = (size + sizeof(max_align_t) - 1) / sizeof(max_align_t) * sizeof(max_align_t);
    if (block == NULL || block->size - block->used < size)
        block = block_add(job, size);
    bytes = (char *)block->bytes + block->used;
    block->used += size;
    return bytes;
}

void *tpl__grow(struct job *job, void *items, size_t count, size_t *capacity, size_t item_size)
{
    size_t wanted;
    void *grown;

    if (count < *capacity)
        return items;
    wanted = *capacity < 4 ? 4 : *capacity * 2;
    if (wanted > SIZE_MAX / 2 / item_size)
        tpl__fail(job, "a list of %zu items is too long", wanted);
    grown = tpl__alloc(job, wanted * item_size);
    if (count > 0)
        memcpy(grown, items, count * item_size);
    *capacity = wanted;
    return grown;
}

void tpl__charge(struct job *job, uint64_t steps)
{
    if (steps > job->steps_left)
        tpl__fail(job, "it takes more than %" PRIu64 " steps", TEMPLATE_STEPS_MAX);
    job->steps_left -= steps;
}

void tpl__charge_bytes(struct job *job, size_t size)
{
    tpl__charge(job, size / 64);
}

void tpl__enter(struct job *job)
{
    if (job->depth >= job->depth_max)
        tpl__fail(job, "it nests deeper than %u levels", job->depth_max);
    job->depth++;
}

void tpl__leave(struct job *job)
{
    job->depth--;
}

void tpl__fail(struct job *job, const char *format, ...)
{
    char sentence[512];
    va_list args;

    va_start(args, format);
    vsnprintf(sentence, sizeof(sentence), format, args);
    va_end(args);
    if (job->status == STATUS_OK)
        job->status = STATUS_BAD_INPUT;
    if (job->line > 0)
        err_set(job->err, job->status, "%s: line %d: %s", job->what, job->line, sentence);
    else
        err_set(job->err, job->status, "%s: %s", job->what, sentence);
    longjmp(job->escape, 1);
}
