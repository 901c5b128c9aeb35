/* checkpoint/hf/packed.c - which tensors of a checkpoint are one module's quantised weights, and
 * whether they fit each other. How they are read is in packed_read.c. */
#include "checkpoint/hf/packed.h"

#include <assert.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/size.h"

#define WORD_BITS 32
#define MXFP4_SUFFIX "_blocks"

/* What is made of a checkpoint's tensors. */
struct composing {
    struct ckpt *ckpt;
    struct packed_config config;
    struct packed *packed;
    size_t packed_count, packed_capacity;
    bool *is_used;       /* [the checkpoint's tensor_count]: a part of one of them */
};

/* The module that is being composed. */
struct module {
    const struct ckpt_tensor *weight; /* its main tensor */
    char name[CKPT_NAME_BYTES_MAX + 1];
    const char *path;                 /* of the file that the weights are in */
};

static bool ends_with(const char *name, const char *suffix)
{
    const size_t size = strlen(name), suffix_size = strlen(suffix);

    return size > suffix_size && strcmp(name + size - suffix_size, suffix) == 0;
}

/* Whether the tensor is main to a module of this kind. */
static bool is_main(const struct packed_config *config, const struct ckpt_tensor *tensor,
                    enum packed_kind *kind_out, const char **suffix_out)
{
    const struct {
        bool wanted;
        const char *suffix, *dtype_name;
        enum packed_kind kind;
    } kinds[] = {
        { config->has_f8, ".weight", "F8_E4M3", PACKED_F8 },
        { config->has_int8, ".weight", "I8", PACKED_INT8 },
        { config->has_compressed, ".weight_packed", NULL, PACKED_COMPRESSED },
        { config->has_gptq, ".qweight", NULL, PACKED_GPTQ },
        { config->has_awq, ".qweight", NULL, PACKED_AWQ },
        { config->has_mxfp4, MXFP4_SUFFIX, "U8", PACKED_MXFP4 },
    };

    for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++) {
        if (!kinds[i].wanted || !ends_with(tensor->name, kinds[i].suffix) ||
            (kinds[i].dtype_name != NULL && strcmp(tensor->dtype_name, kinds[i].dtype_name) != 0))
            continue;
        *kind_out = kinds[i].kind;
        *suffix_out = kinds[i].suffix;
        return true;
    }
    return false;
}

/* The module's tensor with this suffix, or NULL. */
static const struct ckpt_tensor *find_part(const struct composing *composing,
                                           const struct module *module, const char *suffix)
{
    char name[CKPT_NAME_BYTES_MAX + 32];

    (void)snprintf(name, sizeof(name), "%s%s", module->name, suffix);
    return ckpt_find(composing->ckpt, name);
}

static enum status refuse_shape(const struct composing *composing,
                                const struct ckpt_tensor *tensor, const struct module *module,
                                const char *wanted, struct err *err)
{
    char seen[96], weight[96];

    return err_set(err, STATUS_BAD_INPUT,
                   "%s: tensor '%s' is %s %s; with '%s' %s %s, it must be %s",
                   ckpt_file_path(composing->ckpt, tensor->file_index), tensor->name,
                   tensor->dtype_name,
                   tensor_shape_format(tensor->rank, tensor->shape, seen, sizeof(seen)),
                   module->weight->name, module->weight->dtype_name,
                   tensor_shape_format(module->weight->rank, module->weight->shape, weight,
                                       sizeof(weight)),
                   wanted);
}

static enum status check_matrix(const struct composing *composing, const struct module *module,
                                const struct ckpt_tensor *tensor, uint64_t rows, uint64_t columns,
                                bool is_scale, struct err *err)
{
    const uint64_t shape[2] = { rows, columns };
    char wanted[128], text[96];

    if (tensor->rank == 2 && tensor->shape[0] == rows && tensor->shape[1] == columns &&
        (is_scale ? tensor->dtype == DTYPE_F16 || tensor->dtype == DTYPE_BF16 ||
                        tensor->dtype == DTYPE_F32
                  : tensor->dtype == DTYPE_I32))
        return STATUS_OK;
    (void)snprintf(wanted, sizeof(wanted), "%s %s", is_scale ? "F16, BF16 or F32" : "I32",
                   tensor_shape_format(2, shape, text, sizeof(text)));
    return refuse_shape(composing, tensor, module, wanted, err);
}

/* Finds the module's tensor, which must be there, and copies it but for its name. */
static enum status need_part(const struct composing *composing, const struct module *module,
                             const char *suffix, struct ckpt_tensor *out, struct err *err)
{
    const struct ckpt_tensor *tensor = find_part(composing, module, suffix);

    if (tensor == NULL)
        return err_set(err, STATUS_BAD_INPUT,
                       "%s: tensor '%s' is quantised, and there is no '%s%s'", module->path,
                       module->weight->name, module->name, suffix);
    *out = *tensor;
    return STATUS_OK;
}

/* How many numbers an I32 has. */
static uint64_t per_word(const struct packed *packed)
{
    return WORD_BITS / packed->bits;
}

static enum status check_columns(const struct module *module, const struct packed *packed,
                                 struct err *err)
{
    const uint32_t unit = dtype_info(packed->dtype)->block_elements;

    if (packed->column_count == 0 || packed->column_count % unit != 0)
        return err_set(err, STATUS_BAD_INPUT,
                       "%s: '%s' has rows of %" PRIu64 " weights; multiples of %u are read",
                       module->path, module->weight->name, packed->column_count, unit);
    if (packed->column_count > PACKED_COLUMNS_MAX)
        return err_set(err, STATUS_BAD_INPUT,
                       "%s: '%s' has rows of %" PRIu64 " weights; at most %" PRIu64 " are read",
                       module->path, module->weight->name, packed->column_count,
                       PACKED_COLUMNS_MAX);
    return STATUS_OK;
}

/* The columns that share a scale, when each row has `count` of them: whole blocks each. */
static enum status divide_columns(const struct module *module, uint64_t count,
                                  struct packed *packed, struct err *err)
{
    const uint32_t unit = dtype_info(packed->dtype)->block_elements;
    const enum status st = check_columns(module, packed, err);

    if (st != STATUS_OK)
        return st;
    if (count == 0 || packed->column_count % count != 0 ||
        packed->column_count / count % unit != 0)
        return err_set(err, STATUS_BAD_INPUT,
                       "%s: '%s' has %" PRIu64 " scales for the %" PRIu64 " weights of a row; "
                       "groups of equal size, a multiple of %u, are read",
                       module->path, module->weight->name, count, packed->column_count, unit);
    packed->scale_columns = packed->column_count / count;
    return STATUS_OK;
}

/* --- FP8 and INT8: a grid of scales ----------------------------------------------------------- */

/* Which weights have a scale in common, by the scales' shape. */
static enum status divide_scaled(const struct composing *composing, const struct module *module,
                                 struct packed *packed, struct err *err)
{
    const struct packed_config *config = &composing->config;
    const struct ckpt_tensor *scales = &packed->scales;
    const uint64_t rows = packed->row_count, columns = packed->column_count;
    const bool by_block = packed->kind == PACKED_F8 && config->block_rows != 0;
    uint64_t count = 1;

    (void)tensor_element_count(scales->rank, scales->shape, &count);
    packed->scale_rows = 1;
    if (scales->dtype != DTYPE_F16 && scales->dtype != DTYPE_BF16 && scales->dtype != DTYPE_F32)
        return refuse_shape(composing, scales, module, "F16, BF16 or F32", err);
    if (count == 1 && scales->rank <= 2) {
        packed->scale_rows = rows;
        return divide_columns(module, 1, packed, err);
    }
    if (scales->rank == 2 && by_block &&
        scales->shape[0] == (rows - 1) / config->block_rows + 1 &&
        scales->shape[1] == (columns - 1) / config->block_columns + 1) {
        packed->scale_rows = config->block_rows;
        packed->scale_columns = config->block_columns;
        return STATUS_OK;
    }
    if (scales->rank >= 1 && scales->rank <= 2 && scales->shape[0] == rows && !by_block)
        return divide_columns(module, scales->rank == 2 ? scales->shape[1] : 1, packed, err);
    return refuse_shape(composing, scales, module, by_block ? "a scale for each block, or one"
                                                            : "a scale for each row, or one", err);
}

static enum status compose_scaled(const struct composing *composing, const struct module *module,
                                  struct packed *packed, struct err *err)
{
    const bool inverse = find_part(composing, module, ".weight_scale_inv") != NULL;
    const struct ckpt_tensor *zeros = find_part(composing, module, ".weight_zero_point");
    enum status st;

    packed->dtype = packed->kind == PACKED_F8 ? DTYPE_F8_E4M3 : DTYPE_Q8_0;
    if (packed->weight.rank != 2 || packed->weight.shape[0] == 0 || packed->weight.shape[1] == 0)
        return refuse_shape(composing, module->weight, module, "a matrix", err);
    if (zeros != NULL)
        return err_set(err, STATUS_BAD_INPUT,
                       "%s: tensor '%s': weights of 8 bits with zero points are not read",
                       ckpt_file_path(composing->ckpt, zeros->file_index), zeros->name);
    packed->row_count = packed->weight.shape[0];
    packed->column_count = packed->weight.shape[1];
    if (packed->dtype == DTYPE_F8_E4M3 && packed->column_count % QUANT_F8_ELEMENTS != 0)
        packed->dtype = packed->column_count % QUANT_F8_SHORT_ELEMENTS == 0 ? DTYPE_F8_E4M3_16
                                                                            : DTYPE_F16;
    st = check_columns(module, packed, err);
    if (st == STATUS_OK)
        st = need_part(composing, module, inverse ? ".weight_scale_inv" : ".weight_scale",
                       &packed->scales, err);
    return st == STATUS_OK ? divide_scaled(composing, module, packed, err) : st;
}

/* --- words ------------------------------------------------------------------------------------ */

/* Whether N is a number of I32 words. */
static enum status check_words(const struct module *module, const struct packed *packed,
                               struct err *err)
{
    const uint64_t each = per_word(packed);

    return packed->row_count % each == 0
               ? STATUS_OK
               : err_set(err, STATUS_BAD_INPUT,
                         "%s: '%s' has %" PRIu64 " rows; multiples of %" PRIu64 " are read",
                         module->path, module->weight->name, packed->row_count, each);
}

static enum status check_order_shape(const struct composing *composing,
                                     const struct module *module, const char *suffix,
                                     struct packed *packed, struct err *err)
{
    const struct ckpt_tensor *order = find_part(composing, module, suffix);
    char wanted[64];

    if (order == NULL)
        return STATUS_OK;
    packed->order = *order;
    if (order->rank == 1 && order->shape[0] == packed->column_count && order->dtype == DTYPE_I32)
        return STATUS_OK;
    (void)snprintf(wanted, sizeof(wanted), "I32 [%" PRIu64 "]", packed->column_count);
    return refuse_shape(composing, order, module, wanted, err);
}

/* X.weight_shape, if it is there, says what the packed numbers' shape says. */
static enum status check_said_shape(const struct composing *composing, const struct module *module,
                                    struct packed *packed, struct err *err)
{
    const struct ckpt_tensor *shape = find_part(composing, module, ".weight_shape");
    int64_t sides[2];
    enum status st;

    if (shape == NULL)
        return STATUS_OK;
    packed->shape = *shape;
    if (shape->size_bytes != sizeof(sides) || strcmp(shape->dtype_name, "I64") != 0)
        return refuse_shape(composing, shape, module, "I64 [2]", err);
    st = file_read_at(&composing->ckpt->files[shape->file_index], shape->offset_bytes, sides,
                      sizeof(sides), err);
    if (st == STATUS_OK && (sides[0] != (int64_t)packed->row_count ||
                            sides[1] != (int64_t)packed->column_count))
        st = err_set(err, STATUS_BAD_INPUT,
                     "%s: tensor '%s' says [%" PRId64 ", %" PRId64 "], '%s' has [%" PRIu64
                     ", %" PRIu64 "]", ckpt_file_path(composing->ckpt, shape->file_index),
                     shape->name, sides[0], sides[1], module->weight->name, packed->row_count,
                     packed->column_count);
    return st;
}

static enum status compose_compressed(const struct composing *composing,
                                      const struct module *module, struct packed *packed,
                                      struct err *err)
{
    const struct ckpt_tensor *zeros = find_part(composing, module, ".weight_zero_point");
    uint64_t groups;
    enum status st;

    if (packed->weight.rank != 2 || packed->weight.dtype != DTYPE_I32 ||
        packed->weight.shape[0] == 0 || packed->weight.shape[1] > PACKED_COLUMNS_MAX)
        return refuse_shape(composing, module->weight, module, "I32, a matrix", err);
    packed->row_count = packed->weight.shape[0];
    packed->bits = 4;
    packed->column_count = packed->weight.shape[1] * per_word(packed);
    packed->dtype = zeros != NULL ? DTYPE_INT4 : DTYPE_Q4_0;
    packed->scale_rows = 1;
    st = need_part(composing, module, ".weight_scale", &packed->scales, err);
    if (st != STATUS_OK)
        return st;
    groups = packed->scales.rank == 2 ? packed->scales.shape[1] : 1;
    st = divide_columns(module, groups, packed, err);
    if (st == STATUS_OK)
        st = check_matrix(composing, module, &packed->scales, packed->row_count, groups, true, err);
    if (st == STATUS_OK && zeros != NULL) {
        packed->zeros = *zeros;
        st = check_words(module, packed, err);
        if (st == STATUS_OK)
            st = check_matrix(composing, module, zeros, packed->row_count / per_word(packed),
                              groups, false, err);
    }
    if (st == STATUS_OK)
        st = check_order_shape(composing, module, ".weight_g_idx", packed, err);
    return st == STATUS_OK ? check_said_shape(composing, module, packed, err) : st;
}

/* GPTQ packs along the columns of a row, AWQ along the rows; both are transposed. */
static enum status compose_transposed(const struct composing *composing,
                                      const struct module *module, struct packed *packed,
                                      struct err *err)
{
    const struct packed_config *config = &composing->config;
    const bool is_gptq = packed->kind == PACKED_GPTQ;
    uint64_t groups;
    enum status st;

    if (packed->weight.rank != 2 || packed->weight.dtype != DTYPE_I32 ||
        packed->weight.shape[0] > PACKED_COLUMNS_MAX || packed->weight.shape[1] == 0 ||
        packed->weight.shape[1] > UINT32_MAX)
        return refuse_shape(composing, module->weight, module, "I32, a matrix", err);
    packed->bits = config->bits;
    packed->column_count = packed->weight.shape[0] * (is_gptq ? per_word(packed) : 1);
    packed->row_count = packed->weight.shape[1] * (is_gptq ? 1 : per_word(packed));
    packed->dtype = is_gptq && config->symmetric ? DTYPE_Q4_0 : DTYPE_INT4;
    if (config->bits == 8)
        packed->dtype = DTYPE_Q8_0;
    packed->scale_rows = 1;
    packed->zeros_less_one = config->zeros_less_one;
    groups = config->group_size == 0 ? 1 : (packed->column_count - 1) / config->group_size + 1;
    if (config->group_size != 0 && packed->column_count % config->group_size != 0)
        return err_set(err, STATUS_BAD_INPUT,
                       "%s: '%s' has rows of %" PRIu64 " weights, not whole groups of %" PRIu64,
                       module->path, module->weight->name, packed->column_count,
                       config->group_size);
    st = divide_columns(module, groups, packed, err);
    if (st == STATUS_OK)
        st = check_words(module, packed, err);
    if (st == STATUS_OK)
        st = need_part(composing, module, ".scales", &packed->scales, err);
    if (st == STATUS_OK)
        st = check_matrix(composing, module, &packed->scales, groups, packed->row_count, true, err);
    if (st == STATUS_OK)
        st = need_part(composing, module, ".qzeros", &packed->zeros, err);
    if (st == STATUS_OK)
        st = check_matrix(composing, module, &packed->zeros, groups,
                          packed->row_count / per_word(packed), false, err);
    return st == STATUS_OK ? check_order_shape(composing, module, ".g_idx", packed, err) : st;
}

/* MXFP4: a byte of scale for each 32 columns, and 16 of weights. */
static enum status compose_mxfp4(const struct composing *composing, const struct module *module,
                                 struct packed *packed, struct err *err)
{
    const uint64_t *shape = packed->weight.shape;
    const struct ckpt_tensor *scales = &packed->scales;
    char wanted[128], text[96];
    enum status st;

    if (packed->weight.rank != 4 || shape[3] != PACKED_GROUP / 2 ||
        packed->weight.size_bytes == 0 || shape[2] > PACKED_COLUMNS_MAX / PACKED_GROUP)
        return refuse_shape(composing, module->weight, module, "matrices in blocks of 16 bytes",
                            err);
    packed->dtype = DTYPE_MXFP4;
    packed->matrix_count = shape[0];
    packed->row_count = shape[0] * shape[1]; /* the file holds them: no overflow */
    packed->column_count = shape[2] * PACKED_GROUP;
    packed->scale_rows = 1;
    packed->scale_columns = PACKED_GROUP;
    st = need_part(composing, module, "_scales", &packed->scales, err);
    if (st != STATUS_OK || (scales->rank == 3 && strcmp(scales->dtype_name, "U8") == 0 &&
                            memcmp(scales->shape, shape, 3 * sizeof(*shape)) == 0))
        return st;
    (void)snprintf(wanted, sizeof(wanted), "U8 %s",
                   tensor_shape_format(3, shape, text, sizeof(text)));
    return refuse_shape(composing, scales, module, wanted, err);
}

/* --- all of them ------------------------------------------------------------------------------ */

static enum status no_memory(const struct composing *composing, struct err *err)
{
    return err_set(err, STATUS_NO_MEMORY, "%s: no memory to put quantised weights together",
                   ckpt_path(composing->ckpt));
}

/* Marks a part as used and gives the copy a name of its own. */
static enum status take_part(struct composing *composing, struct ckpt_tensor *part, struct err *err)
{
    const struct ckpt_tensor *tensor = part->name == NULL ? NULL
                                                          : ckpt_find(composing->ckpt, part->name);

    if (tensor == NULL)
        return STATUS_OK;
    composing->is_used[tensor - composing->ckpt->tensors] = true;
    part->name = strdup(tensor->name);
    return part->name != NULL ? STATUS_OK : no_memory(composing, err);
}

static enum status take_parts(struct composing *composing, struct packed *packed, struct err *err)
{
    struct ckpt_tensor *const parts[] = { &packed->weight, &packed->scales, &packed->zeros,
                                          &packed->order, &packed->shape };
    enum status st = STATUS_OK;

    for (size_t i = 0; i < sizeof(parts) / sizeof(parts[0]); i++) {
        if (st == STATUS_OK)
            st = take_part(composing, parts[i], err);
        else
            parts[i]->name = NULL; /* still the checkpoint's */
    }
    return st;
}

static bool grow(struct composing *composing)
{
    const size_t capacity = composing->packed_capacity == 0 ? 64 : 2 * composing->packed_capacity;
    struct packed *packed;

    if (composing->packed_count < composing->packed_capacity)
        return true;
    packed = reallocarray(composing->packed, capacity, sizeof(*packed));
    if (packed == NULL)
        return false;
    composing->packed = packed;
    composing->packed_capacity = capacity;
    return true;
}

/* Adds it to the list, which owns it then. */
static enum status add_packed(struct composing *composing, struct packed *packed, struct err *err)
{
    enum status st;

    if (!grow(composing))
        return no_memory(composing, err);
    st = take_parts(composing, packed, err);
    composing->packed[composing->packed_count++] = *packed;
    return st;
}

/* Where columns lie in another order, that becomes a tensor of its own. */
static enum status compose_order(struct composing *composing, const struct module *module,
                                 struct packed *packed, struct err *err)
{
    struct packed order = { .kind = PACKED_ORDER, .weight = packed->order, .dtype = DTYPE_F32,
                            .row_count = 1, .column_count = packed->column_count };
    enum status st;

    if (packed->order.name == NULL)
        return STATUS_OK;
    order.place = (size_t)(ckpt_find(composing->ckpt, packed->order.name) -
                           composing->ckpt->tensors);
    st = packed__read_order(composing->ckpt, packed, &order.columns, err);
    if (st != STATUS_OK || order.columns == NULL)
        return st;
    if (packed->kind != PACKED_GPTQ || packed->column_count > PACKED_ORDERED_MAX)
        st = err_set(err, STATUS_BAD_INPUT,
                     "%s: tensor '%s' has columns in another order; that is read in GPTQ's, of at "
                     "most %d columns", module->path, packed->order.name, PACKED_ORDERED_MAX);
    if (st == STATUS_OK && !grow(composing))
        st = no_memory(composing, err);
    if (st != STATUS_OK) {
        free(order.columns);
        return st;
    }
    packed->columns = order.columns;
    return add_packed(composing, &order, err);
}

static enum status compose_module(struct composing *composing, size_t place, enum packed_kind kind,
                                  const char *suffix, struct err *err)
{
    const struct ckpt_tensor *weight = &composing->ckpt->tensors[place];
    struct module module = { .weight = weight,
                             .path = ckpt_file_path(composing->ckpt, weight->file_index) };
    struct packed packed = { .kind = kind, .weight = *weight, .place = place };
    enum status st;

    memcpy(module.name, weight->name, strlen(weight->name) - strlen(suffix));
    if (kind == PACKED_F8 || kind == PACKED_INT8)
        st = compose_scaled(composing, &module, &packed, err);
    else if (kind == PACKED_MXFP4)
        st = compose_mxfp4(composing, &module, &packed, err);
    else if (kind == PACKED_COMPRESSED)
        st = compose_compressed(composing, &module, &packed, err);
    else
        st = compose_transposed(composing, &module, &packed, err);
    if (st == STATUS_OK)
        st = compose_order(composing, &module, &packed, err);
    return st == STATUS_OK ? add_packed(composing, &packed, err) : st;
}

static int compare_places(const void *a, const void *b)
{
    const struct packed *const x = a;
    const struct packed *const y = b;

    return x->place < y->place ? -1 : x->place > y->place;
}

/* The tensor that a module is listed as; its name is new. */
static enum status describe(const struct composing *composing, const struct packed *packed,
                            struct ckpt_tensor *out, struct err *err)
{
    const char *main_name = packed->weight.name;
    const bool is_stack = packed->kind == PACKED_MXFP4, is_order = packed->kind == PACKED_ORDER;
    const size_t size = is_stack ? strlen(main_name) - strlen(MXFP4_SUFFIX)
                                 : (size_t)(strrchr(main_name, '.') - main_name);
    struct ckpt_tensor tensor = { .dtype = packed->dtype,
                                  .dtype_name = dtype_info(packed->dtype)->name, .rank = 2,
                                  .shape = { packed->row_count, packed->column_count, 1, 1 },
                                  .file_index = packed->weight.file_index,
                                  .offset_bytes = packed->weight.offset_bytes,
                                  .packed = packed };
    uint64_t elements = 0;
    char *name;

    if (is_stack) {
        tensor.rank = 3;
        tensor.shape[0] = packed->matrix_count;
        tensor.shape[1] = packed->weight.shape[1];
        tensor.shape[2] = packed->column_count;
    }
    if (!size_mul(packed->row_count, packed->column_count, &elements) ||
        !dtype_bytes(packed->dtype, elements, &tensor.size_bytes))
        return err_set(err, STATUS_BAD_INPUT, "%s: the size of tensor '%s' overflows",
                       ckpt_file_path(composing->ckpt, tensor.file_index), main_name);
    if (is_order) {
        tensor.rank = 1;
        tensor.shape[0] = packed->column_count;
        tensor.shape[1] = 1;
    }
    if (asprintf(&name, "%.*s%s", (int)size, main_name,
                 is_stack ? "" : is_order ? ".order" : ".weight") < 0)
        return no_memory(composing, err);
    tensor.name = name;
    *out = tensor;
    return STATUS_OK;
}

/* The new list of tensors and the map of their names, in place of the old ones. */
static enum status replace(struct composing *composing, struct err *err)
{
    struct ckpt *ckpt = composing->ckpt;
    struct ckpt_tensor *tensors = calloc(ckpt->tensor_count, sizeof(*tensors));
    bool *is_new = calloc(ckpt->tensor_count, sizeof(*is_new));
    struct map *by_name = NULL;
    size_t count = 0, next = 0;
    enum status st = tensors == NULL || is_new == NULL ? no_memory(composing, err) : STATUS_OK;

    if (st == STATUS_OK)
        st = map_create(ckpt->tensor_count, &by_name, err);
    for (size_t i = 0; i < ckpt->tensor_count && st == STATUS_OK; i++) {
        const bool is_place = next < composing->packed_count &&
                              composing->packed[next].place == i;
        if (is_place)
            st = describe(composing, &composing->packed[next++], &tensors[count], err);
        else if (composing->is_used[i])
            continue;
        else
            tensors[count] = ckpt->tensors[i];
        if (st != STATUS_OK)
            break;
        is_new[count] = is_place;
        if (map_get(by_name, tensors[count].name, strlen(tensors[count].name), NULL))
            st = err_set(err, STATUS_BAD_INPUT, "%s: tensor '%s' is there twice, quantised and not",
                         ckpt_file_path(ckpt, tensors[count].file_index), tensors[count].name);
        else
            st = map_set(by_name, tensors[count].name, strlen(tensors[count].name), count, err);
        count++;
    }
    if (st != STATUS_OK) {
        for (size_t i = 0; i < count; i++)
            if (is_new[i])
                free((char *)tensors[i].name);
        map_destroy(by_name);
        free(is_new);
        free(tensors);
        return st;
    }
    for (size_t i = 0; i < ckpt->tensor_count; i++)
        if (composing->is_used[i])
            free((char *)ckpt->tensors[i].name);
    map_destroy(ckpt->tensor_by_name);
    free(ckpt->tensors);
    free(is_new);
    ckpt->tensors = tensors;
    ckpt->tensor_capacity = ckpt->tensor_count;
    ckpt->tensor_count = count;
    ckpt->tensor_by_name = by_name;
    ckpt->packed = composing->packed;
    ckpt->packed_count = composing->packed_count;
    ckpt->packing = composing->packed_count > 0 ? composing->config.name : NULL;
    composing->packed = NULL;
    composing->packed_count = 0;
    return STATUS_OK;
}

enum status packed__compose(struct ckpt *ckpt, const char *config_path, struct err *err)
{
    struct composing composing = { .ckpt = ckpt };
    enum status st = packed__config_read(ckpt->config, config_path, &composing.config, err);

    if (st != STATUS_OK || !composing.config.quantised || ckpt->tensor_count == 0)
        return st;
    composing.is_used = calloc(ckpt->tensor_count, sizeof(*composing.is_used));
    if (composing.is_used == NULL)
        return no_memory(&composing, err);
    for (size_t i = 0; i < ckpt->tensor_count && st == STATUS_OK; i++) {
        enum packed_kind kind;
        const char *suffix;
        if (is_main(&composing.config, &ckpt->tensors[i], &kind, &suffix))
            st = compose_module(&composing, i, kind, suffix, err);
    }
    if (composing.packed_count > 0)
        qsort(composing.packed, composing.packed_count, sizeof(*composing.packed), compare_places);
    if (st == STATUS_OK)
        st = replace(&composing, err);
    packed__destroy(composing.packed, composing.packed_count);
    free(composing.is_used);
    return st;
}

bool ckpt_is_order(const struct ckpt_tensor *tensor)
{
    return tensor->packed != NULL && tensor->packed->kind == PACKED_ORDER;
}

bool ckpt_is_unused_scale(const char *name)
{
    static const char *const suffixes[] = { ".input_scale", ".output_scale", ".q_scale", ".k_scale",
                                            ".v_scale" };

    for (size_t i = 0; i < sizeof(suffixes) / sizeof(suffixes[0]); i++)
        if (ends_with(name, suffixes[i]))
            return true;
    return false;
}

void packed__destroy(struct packed *packed, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        free((char *)packed[i].weight.name);
        free((char *)packed[i].scales.name);
        free((char *)packed[i].zeros.name);
        free((char *)packed[i].order.name);
        free((char *)packed[i].shape.name);
        if (packed[i].kind == PACKED_ORDER)
            free(packed[i].columns);
    }
    free(packed);
}
