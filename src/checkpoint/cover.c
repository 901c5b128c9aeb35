/* checkpoint/cover.c - see cover.h.
 *
 * Boxes are first brought to a normal form: dimensions of one element go, the others are sorted by
 * stride, and neighbours that continue each other become one. What fused, stacked and renamed
 * tensors fill is then a run of adjacent elements each; sorted by offset they must follow each
 * other. Other boxes (interleaved ones, columns) are marked in a bitmap that slides over the range,
 * run by run, so that its memory is bounded whatever the range. */
#include "checkpoint/cover.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

static uint64_t min_u64(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

/* After this, unused dimensions have one element and come first, the strides of the others fall,
 * and none of them continues the one behind it. */
static void normalise(struct cover_box *box)
{
    struct cover_box out = { .offset = box->offset, .count = { 1, 1, 1 } };
    size_t at = COVER_RANK;

    for (;;) { /* takes the dimensions by rising stride */
        size_t next = COVER_RANK;
        for (size_t d = 0; d < COVER_RANK; d++)
            if (box->count[d] > 1 && (next == COVER_RANK || box->stride[d] < box->stride[next]))
                next = d;
        if (next == COVER_RANK)
            break;
        if (at < COVER_RANK && box->stride[next] == out.stride[at] * out.count[at]) {
            out.count[at] *= box->count[next];
        } else {
            at--;
            out.count[at] = box->count[next];
            out.stride[at] = box->stride[next];
        }
        box->count[next] = 1;
    }
    *box = out;
}

/* Whether the last dimension's elements are adjacent. */
static bool is_dense(const struct cover_box *box)
{
    return box->count[2] == 1 || box->stride[2] == 1;
}

static bool is_run(const struct cover_box *box)
{
    return box->count[0] == 1 && box->count[1] == 1 && is_dense(box);
}

static int compare_boxes(const void *a, const void *b)
{
    const struct cover_box *const x = a;
    const struct cover_box *const y = b;

    return (x->offset > y->offset) - (x->offset < y->offset);
}

static enum cover_result check_runs(struct cover_box *boxes, size_t box_count,
                                    uint64_t element_count, uint64_t *element_out)
{
    uint64_t end = 0;

    if (box_count > 0)
        qsort(boxes, box_count, sizeof(*boxes), compare_boxes);
    for (size_t i = 0; i < box_count; i++) {
        if (boxes[i].offset != end) {
            *element_out = min_u64(boxes[i].offset, end);
            return boxes[i].offset > end ? COVER_HOLE : COVER_TWICE;
        }
        end += boxes[i].count[COVER_RANK - 1];
    }
    *element_out = end;
    return end == element_count ? COVER_EXACT : COVER_HOLE;
}

/* The part of a range that is being marked: bits[i] is element first + i. */
struct window {
    uint64_t first, end;
    uint64_t *bits;
};

/* Marks elements from..end; false, with *element_out, when one is marked already. */
static bool mark_run(struct window *window, uint64_t from, uint64_t end, uint64_t *element_out)
{
    if (from < window->first)
        from = window->first;
    end = min_u64(end, window->end);
    while (from < end) {
        const uint64_t at = from - window->first;
        const uint64_t run = min_u64(64 - at % 64, end - from);
        const uint64_t mask = (run == 64 ? UINT64_MAX : (UINT64_C(1) << run) - 1) << (at % 64);
        const uint64_t both = window->bits[at / 64] & mask;
        if (both != 0) {
            *element_out = window->first + (at & ~UINT64_C(63)) + (uint64_t)__builtin_ctzll(both);
            return false;
        }
        window->bits[at / 64] |= mask;
        from += run;
    }
    return true;
}

/* The indices [*from, *end) below count at which base + i * stride + (0 .. extent - 1) may touch
 * the window. */
static void clip(const struct window *window, uint64_t base, uint64_t count, uint64_t stride,
                 uint64_t extent, uint64_t *from, uint64_t *end)
{
    *from = 0;
    *end = count;
    if (stride == 0)
        return;
    if (base + extent <= window->first)
        *from = (window->first - base - extent) / stride + 1;
    *end = window->end <= base ? 0 : min_u64(count, (window->end - base - 1) / stride + 1);
}

static bool mark_box(struct window *window, const struct cover_box *box, uint64_t *element_out)
{
    const uint64_t row_extent = (box->count[2] - 1) * box->stride[2] + 1;
    const uint64_t plane_extent = (box->count[1] - 1) * box->stride[1] + row_extent;
    uint64_t i, i_end, j, j_end, k, k_end;

    clip(window, box->offset, box->count[0], box->stride[0], plane_extent, &i, &i_end);
    for (; i < i_end; i++) {
        const uint64_t plane = box->offset + i * box->stride[0];
        clip(window, plane, box->count[1], box->stride[1], row_extent, &j, &j_end);
        for (; j < j_end; j++) {
            const uint64_t row = plane + j * box->stride[1];
            if (is_dense(box)) {
                if (!mark_run(window, row, row + box->count[2], element_out))
                    return false;
                continue;
            }
            clip(window, row, box->count[2], box->stride[2], 1, &k, &k_end);
            for (; k < k_end; k++)
                if (!mark_run(window, row + k * box->stride[2], row + k * box->stride[2] + 1,
                              element_out))
                    return false;
        }
    }
    return true;
}

static bool is_full(const struct window *window, uint64_t *element_out)
{
    for (uint64_t at = 0; at < window->end - window->first; at++) {
        if (at % 64 == 0 && window->bits[at / 64] == UINT64_MAX)
            at += 63;
        else if ((window->bits[at / 64] >> (at % 64) & 1) == 0) {
            *element_out = window->first + at;
            return false;
        }
    }
    return true;
}

static enum cover_result check_bitmap(const struct cover_box *boxes, size_t box_count,
                                      uint64_t element_count, uint64_t *bits,
                                      uint64_t *element_out)
{
    struct window window = { .bits = bits };

    for (; window.first < element_count; window.first = window.end) {
        window.end = min_u64(element_count, window.first + COVER_WINDOW_ELEMENTS);
        memset(bits, 0, (window.end - window.first + 63) / 64 * sizeof(*bits));
        for (size_t i = 0; i < box_count; i++)
            if (!mark_box(&window, &boxes[i], element_out))
                return COVER_TWICE;
        if (!is_full(&window, element_out))
            return COVER_HOLE;
    }
    return COVER_EXACT;
}

enum status cover_check(struct cover_box *boxes, size_t box_count, uint64_t element_count,
                        enum cover_result *result_out, uint64_t *element_out, struct err *err)
{
    bool runs = true;
    uint64_t *bits;

    for (size_t i = 0; i < box_count; i++) {
        normalise(&boxes[i]);
        runs = runs && is_run(&boxes[i]);
    }
    if (runs) {
        *result_out = check_runs(boxes, box_count, element_count, element_out);
        return STATUS_OK;
    }
    bits = malloc((min_u64(element_count, COVER_WINDOW_ELEMENTS) + 63) / 64 * sizeof(*bits));
    if (bits == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory to check what a loader fills");
    *result_out = check_bitmap(boxes, box_count, element_count, bits, element_out);
    free(bits);
    return STATUS_OK;
}
