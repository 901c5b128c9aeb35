/* checkpoint/loader.c - the description: its parts, and checking them against a checkpoint. How
 * they are carried out is in load.c. */
#include "checkpoint/loader.h"

#include <assert.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/size.h"
#include "checkpoint/chunk.h"
#include "checkpoint/cover.h"

struct loader {
    enum dtype dtype;
    uint64_t element_count;
    struct loader_part *parts; /* their tensors' names are owned */
    size_t part_count, part_capacity;
};

enum status loader_create(enum dtype dtype, uint64_t element_count, struct loader **loader_out,
                          struct err *err)
{
    struct loader *loader;
    uint64_t bytes;

    assert(element_count > 0 && dtype_bytes(dtype, element_count, &bytes));
    loader = calloc(1, sizeof(*loader));
    if (loader == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for a loader");
    loader->dtype = dtype;
    loader->element_count = element_count;
    *loader_out = loader;
    return STATUS_OK;
}

void loader_destroy(struct loader *loader)
{
    if (loader == NULL)
        return;
    for (size_t i = 0; i < loader->part_count; i++)
        free((char *)loader->parts[i].tensor);
    free(loader->parts);
    free(loader);
}

/* Elements that the part copies; 0 when that overflows. */
static uint64_t part_element_count(const struct loader_part *part)
{
    uint64_t count = 1;

    for (size_t d = 0; d < 3; d++)
        if (!size_mul(count, part->dims[d].count, &count))
            return 0;
    return count;
}

/* Whether both of the part's views lie inside their tensors. */
static bool part_fits(const struct loader_part *part, uint64_t src_count, uint64_t dst_count)
{
    uint64_t src_last = part->src_offset;
    uint64_t dst_last = part->dst_offset;

    if (part_element_count(part) == 0)
        return false;
    for (size_t d = 0; d < 3; d++) {
        uint64_t step;
        if (!size_mul(part->dims[d].count - 1, part->dims[d].src_stride, &step) ||
            !size_add(src_last, step, &src_last))
            return false;
        if (!size_mul(part->dims[d].count - 1, part->dims[d].dst_stride, &step) ||
            !size_add(dst_last, step, &dst_last))
            return false;
    }
    return src_last < src_count && dst_last < dst_count;
}

enum status loader_add(struct loader *loader, const struct loader_part *part, struct err *err)
{
    uint64_t src_count = 0;
    char *name;

    assert(part->tensor != NULL && part->rank <= TENSOR_RANK_MAX);
    assert(tensor_element_count(part->rank, part->shape, &src_count));
    assert(part_fits(part, src_count, loader->element_count));
    if (loader->part_count == loader->part_capacity) {
        const size_t capacity = loader->part_capacity == 0 ? 1 : loader->part_capacity * 2;
        struct loader_part *parts = realloc(loader->parts, capacity * sizeof(*parts));
        if (parts == NULL)
            return err_set(err, STATUS_NO_MEMORY, "no memory for %zu parts of a loader", capacity);
        loader->parts = parts;
        loader->part_capacity = capacity;
    }
    name = strdup(part->tensor);
    if (name == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for a tensor's name");
    loader->parts[loader->part_count] = *part;
    loader->parts[loader->part_count].tensor = name;
    loader->part_count++;
    return STATUS_OK;
}

enum status loader_add_whole(struct loader *loader, const char *tensor, uint32_t rank,
                             const uint64_t *shape, uint64_t dst_offset, struct err *err)
{
    struct loader_part part = { .tensor = tensor, .rank = rank, .dst_offset = dst_offset,
                                .dims = { { 1, 0, 0 }, { 1, 0, 0 }, { 1, 1, 1 } } };
    const bool fits = tensor_element_count(rank, shape, &part.dims[2].count);

    assert(rank <= TENSOR_RANK_MAX && fits);
    if (rank > 0)
        memcpy(part.shape, shape, rank * sizeof(*shape));
    return fits ? loader_add(loader, &part, err)
                : err_set(err, STATUS_BAD_INPUT, "tensor '%s': its size overflows", tensor);
}

enum dtype loader_dtype(const struct loader *loader)
{
    return loader->dtype;
}

uint64_t loader_size_bytes(const struct loader *loader)
{
    uint64_t bytes = 0;
    const bool fits = dtype_bytes(loader->dtype, loader->element_count, &bytes);

    assert(fits);
    (void)fits;
    return bytes;
}

size_t loader_part_count(const struct loader *loader)
{
    return loader->part_count;
}

const struct loader_part *loader_part_at(const struct loader *loader, size_t index)
{
    assert(index < loader->part_count);
    return &loader->parts[index];
}

uint64_t loader_source_bytes(const struct loader *loader, const struct ckpt *ckpt)
{
    uint64_t bytes = 0;

    for (size_t i = 0; i < loader->part_count; i++) {
        const struct ckpt_tensor *const tensor = ckpt_find(ckpt, loader->parts[i].tensor);
        assert(tensor != NULL);
        bytes += chunk_wanted_bytes(tensor->dtype, part_element_count(&loader->parts[i]));
    }
    return bytes;
}

/* Finds the element in the part: *src_out is its place in the tensor, *run_out how many adjacent
 * elements from it on are adjacent on both sides. False: it is not there, or not in a run. */
static bool find_in_part(const struct loader_part *part, uint64_t element, uint64_t *src_out,
                         uint64_t *run_out)
{
    struct loader_dim dims[3];
    uint64_t at, src = part->src_offset;

    if (element < part->dst_offset)
        return false;
    at = element - part->dst_offset;
    memcpy(dims, part->dims, sizeof(dims));
    chunk_normalise(dims);
    if (dims[2].count > 1 && (dims[2].src_stride != 1 || dims[2].dst_stride != 1))
        return false;
    if (dims[0].dst_stride < dims[1].dst_stride) {
        const struct loader_dim first = dims[0];

        dims[0] = dims[1];
        dims[1] = first;
    }
    for (size_t d = 0; d < 2; d++) {
        uint64_t index = 0;

        if (dims[d].count > 1 && dims[d].dst_stride > 0)
            index = at / dims[d].dst_stride;
        if (index >= dims[d].count)
            return false;
        at -= index * dims[d].dst_stride;
        src += index * dims[d].src_stride;
    }
    if (at >= dims[2].count)
        return false;
    *src_out = src + at;
    *run_out = dims[2].count - at;
    return true;
}

bool loader_extent(const struct loader *loader, const struct ckpt *ckpt, uint64_t offset_bytes,
                   struct loader_extent *extent_out)
{
    const struct dtype_info *const info = dtype_info(loader->dtype);
    const uint64_t element = offset_bytes / info->block_bytes * info->block_elements;

    if (offset_bytes % info->block_bytes != 0)
        return false;
    for (size_t i = 0; i < loader->part_count; i++) {
        const struct ckpt_tensor *tensor;
        uint64_t src, run, src_bytes;

        if (!find_in_part(&loader->parts[i], element, &src, &run))
            continue;
        tensor = ckpt_find(ckpt, loader->parts[i].tensor);
        assert(tensor != NULL);
        run -= run % info->block_elements;
        if (tensor->dtype != loader->dtype || tensor->packed != NULL || run == 0 ||
            !dtype_bytes(loader->dtype, src, &src_bytes) ||
            !dtype_bytes(loader->dtype, run, &extent_out->size_bytes))
            return false;
        extent_out->file_index = tensor->file_index;
        extent_out->file_offset_bytes = tensor->offset_bytes + src_bytes;
        return true;
    }
    return false;
}

bool loader_keeps_blocks(const struct loader_part *part, enum dtype dtype)
{
    return chunk_keeps_blocks(part, dtype_info(dtype)->block_elements);
}

/* Plain types become each other, blocks become any of those; nothing is quantised here. */
static bool can_become(enum dtype from, enum dtype to)
{
    return from == to || ((to == DTYPE_F32 || to == DTYPE_F16 || to == DTYPE_BF16) &&
                          from != DTYPE_I32 && from != DTYPE_COUNT);
}

/* The file's type is none that this program knows. */
static enum status refuse_type(const char *path, const struct ckpt_tensor *tensor,
                               const char *param_name, struct err *err)
{
    char known[256] = "";
    size_t used = 0;

    for (int i = 0; i < DTYPE_COUNT && used < sizeof(known); i++)
        if (i != DTYPE_I32)
            used += (size_t)snprintf(known + used, sizeof(known) - used, "%s%s",
                                     used == 0 ? "" : ", ", dtype_info((enum dtype)i)->name);
    return err_set(err, STATUS_BAD_INPUT, "%s: tensor '%s', which parameter '%s' needs, is of "
                   "type %s, which is not built; these are: %s", path, tensor->name, param_name,
                   tensor->dtype_name, known);
}

static enum status check_part(const struct loader_part *part, enum dtype dtype,
                              const struct ckpt *ckpt, const char *param_name, struct err *err)
{
    const struct ckpt_tensor *const tensor = ckpt_find(ckpt, part->tensor);
    const char *path;
    char seen[96];
    char wanted[96];

    if (tensor == NULL)
        return err_set(err, STATUS_BAD_INPUT,
                       "%s: there is no tensor '%s', which parameter '%s' needs", ckpt_path(ckpt),
                       part->tensor, param_name);
    path = ckpt_file_path(ckpt, tensor->file_index);
    if (tensor->rank != part->rank ||
        memcmp(tensor->shape, part->shape, part->rank * sizeof(part->shape[0])) != 0)
        return err_set(err, STATUS_BAD_INPUT,
                       "%s: tensor '%s' has shape %s, parameter '%s' needs it to be %s", path,
                       part->tensor,
                       tensor_shape_format(tensor->rank, tensor->shape, seen, sizeof(seen)),
                       param_name,
                       tensor_shape_format(part->rank, part->shape, wanted, sizeof(wanted)));
    if (tensor->dtype == DTYPE_COUNT)
        return refuse_type(path, tensor, param_name, err);
    if (!can_become(tensor->dtype, dtype))
        return err_set(err, STATUS_BAD_INPUT,
                       "%s: tensor '%s' is %s, which cannot become the %s of parameter '%s'", path,
                       part->tensor, tensor->dtype_name, dtype_info(dtype)->name, param_name);
    if (tensor->dtype == dtype && !loader_keeps_blocks(part, dtype))
        return err_set(err, STATUS_BAD_INPUT,
                       "%s: tensor '%s' is %s, of which parameter '%s', also %s, takes broken "
                       "blocks", path, part->tensor, tensor->dtype_name, param_name,
                       dtype_info(dtype)->name);
    return STATUS_OK;
}

static enum status check_filled(const struct loader *loader, const char *param_name,
                                struct err *err)
{
    struct cover_box *const boxes = calloc(loader->part_count + 1, sizeof(*boxes));
    enum cover_result result = COVER_EXACT;
    uint64_t element = 0;
    enum status st;

    if (boxes == NULL)
        return err_set(err, STATUS_NO_MEMORY, "parameter '%s': no memory to check its %zu parts",
                       param_name, loader->part_count);
    for (size_t i = 0; i < loader->part_count; i++) {
        boxes[i].offset = loader->parts[i].dst_offset;
        for (size_t d = 0; d < COVER_RANK; d++) {
            boxes[i].count[d] = loader->parts[i].dims[d].count;
            boxes[i].stride[d] = loader->parts[i].dims[d].dst_stride;
        }
    }
    st = cover_check(boxes, loader->part_count, loader->element_count, &result, &element, err);
    free(boxes);
    if (st == STATUS_OK && result != COVER_EXACT)
        st = err_set(err, STATUS_BAD_INPUT,
                     "parameter '%s': its loader fills element %" PRIu64 " of %" PRIu64 " %s",
                     param_name, element, loader->element_count,
                     result == COVER_HOLE ? "from no tensor" : "more than once");
    return st;
}

enum status loader_check(const struct loader *loader, const struct ckpt *ckpt,
                         const char *param_name, struct err *err)
{
    for (size_t i = 0; i < loader->part_count; i++) {
        const enum status st = check_part(&loader->parts[i], loader->dtype, ckpt, param_name, err);
        if (st != STATUS_OK)
            return st;
    }
    return check_filled(loader, param_name, err);
}
