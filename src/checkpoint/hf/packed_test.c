/* checkpoint/hf/packed_test.c - quantised weights of several tensors: what is put together, in
 * which pieces it may be read, and what is refused.
 *
 * Method: folders with tensors of known numbers are written, and each weight is worked out from its
 * place in them. What whole models make of such files model/packed_test.c compares with
 * transformers. */
#include <inttypes.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "base/buf.h"
#include "checkpoint/checkpoint.h"
#include "checkpoint/testing.h"
#include "tensor/quant.h"

#define FOLDER_TENSORS_MAX 8

/* A tensor of a dtype that safetensors has and tensor/dtype.h has not. */
struct raw {
    const char *name, *dtype_name;
    uint32_t rank;     /* 3: two matrices of half the rows, 4: in blocks of 16 columns */
    uint64_t shape[2];
    uint64_t element_bytes;
    void *data; /* owned */
};

struct model {
    char *folder;
    const char *config;
    struct raw tensors[FOLDER_TENSORS_MAX];
    size_t count;
};

static void *add(struct model *model, const char *name, const char *dtype_name,
                 uint64_t element_bytes, uint32_t rank, uint64_t rows, uint64_t columns)
{
    struct raw *raw = &model->tensors[model->count++];

    assert_true(model->count <= FOLDER_TENSORS_MAX);
    *raw = (struct raw){ name, dtype_name, rank, { rows, columns }, element_bytes,
                         calloc(2 * rows * columns, element_bytes) }; /* a shape may grow */
    assert_non_null(raw->data);
    return raw->data;
}

static struct raw *tensor_of(struct model *model, const char *name)
{
    for (size_t i = 0; i < model->count; i++)
        if (strcmp(model->tensors[i].name, name) == 0)
            return &model->tensors[i];
    fail_msg("there is no %s", name);
    return NULL;
}

static uint64_t bytes_of(const struct raw *raw)
{
    return raw->shape[0] * raw->shape[1] * raw->element_bytes;
}

static void write_model(struct model *model)
{
    struct buf out;
    struct err err;
    uint64_t at = 0;

    buf_init(&out, SIZE_MAX / 2);
    assert_int_equal(buf_append(&out, "\0\0\0\0\0\0\0\0{", 9, &err), STATUS_OK);
    for (size_t i = 0; i < model->count; i++) {
        const struct raw *raw = &model->tensors[i];
        char shape[64] = "";
        if (raw->rank == 1)
            (void)snprintf(shape, sizeof(shape), "%" PRIu64, raw->shape[0] * raw->shape[1]);
        else if (raw->rank == 2)
            (void)snprintf(shape, sizeof(shape), "%" PRIu64 ",%" PRIu64, raw->shape[0],
                           raw->shape[1]);
        else if (raw->rank > 2)
            (void)snprintf(shape, sizeof(shape), "2,%" PRIu64 ",%" PRIu64 "%s", raw->shape[0] / 2,
                           raw->rank == 3 ? raw->shape[1] : raw->shape[1] / 16,
                           raw->rank == 3 ? "" : ",16");
        assert_int_equal(buf_printf(&out, &err, "%s\"%s\":{\"dtype\":\"%s\",\"shape\":[%s],"
                                    "\"data_offsets\":[%" PRIu64 ",%" PRIu64 "]}",
                                    i == 0 ? "" : ",", raw->name, raw->dtype_name, shape, at,
                                    at + bytes_of(raw)), STATUS_OK);
        at += bytes_of(raw);
    }
    assert_int_equal(buf_append(&out, "}", 1, &err), STATUS_OK);
    for (size_t i = 0; i < 8; i++)
        out.data[i] = (char)((out.size - 8) >> 8 * i);
    for (size_t i = 0; i < model->count; i++)
        assert_int_equal(buf_append(&out, model->tensors[i].data, bytes_of(&model->tensors[i]),
                                    &err), STATUS_OK);
    if (model->folder == NULL)
        model->folder = ckpt_testing_folder();
    ckpt_testing_write_config(model->folder, model->config);
    ckpt_testing_write_file(model->folder, "model.safetensors", out.data, out.size);
    buf_deinit(&out);
}

static void model_remove(struct model *model)
{
    for (size_t i = 0; i < model->count; i++)
        free(model->tensors[i].data);
    ckpt_testing_remove(model->folder);
}

/* --- numbers that follow from their places ---------------------------------------------------- */

static uint32_t number_at(uint64_t row, uint64_t column)
{
    return (uint32_t)((row * 7 + column * 5 + row * column) % 16);
}

static uint32_t zero_at(uint64_t row, uint64_t group, bool symmetric)
{
    return symmetric ? 8 : (uint32_t)((row * 3 + group * 11 + 1) % 16);
}

static float scale_at(uint64_t row, uint64_t group)
{
    return (float)(1 + (row * 3 + group) % 61) / 64; /* F16 and BF16 hold it */
}

static void put_number(uint32_t *words, uint64_t word, uint32_t place, uint32_t number)
{
    words[word] |= number << 4 * place;
}

enum way {
    F8, INT8, COMPRESSED, COMPRESSED_ZEROS, GPTQ, GPTQ_ASYM, GPTQ_V2, AWQ, MXFP4, GPTQ8, F8_SHORT,
    F8_ODD, WAYS
};

#define FP8_CONFIG                                                                                 \
    "{\"quantization_config\":{\"quant_method\":\"fp8\",\"weight_block_size\":[128,128]}}"
#define COMPRESSED_CONFIG(format, bits)                                                            \
    "{\"quantization_config\":{\"quant_method\":\"compressed-tensors\",\"format\":\"" format       \
    "\",\"config_groups\":{\"group_0\":{\"weights\":{\"type\":\"int\",\"num_bits\":" #bits "}}}}}"
#define GROUP_CONFIG(method, more) \
    "{\"quantization_config\":{\"quant_method\":\"" method \
    "\",\"bits\":4,\"group_size\":64" more "}}"

static const char *const configs[WAYS] = {
    [F8] = FP8_CONFIG,
    [INT8] = COMPRESSED_CONFIG("int-quantized", 8),
    [COMPRESSED] = COMPRESSED_CONFIG("pack-quantized", 4),
    [COMPRESSED_ZEROS] = COMPRESSED_CONFIG("pack-quantized", 4),
    [GPTQ] = GROUP_CONFIG("gptq", ",\"sym\":true"),
    [GPTQ_ASYM] = GROUP_CONFIG("gptq", ",\"sym\":false"),
    [GPTQ_V2] = GROUP_CONFIG("gptq", ",\"sym\":false,\"checkpoint_format\":\"gptq_v2\""),
    [AWQ] = GROUP_CONFIG("awq", ""),
    [MXFP4] = "{\"quantization_config\":{\"quant_method\":\"mxfp4\"}}",
    [GPTQ8] = ("{\"quantization_config\":{\"quant_method\":\"gptq\",\"bits\":8,\"group_size\":64,"
               "\"sym\":true}}"),
    [F8_SHORT] = FP8_CONFIG,
    [F8_ODD] = FP8_CONFIG,
};

static bool is_f8(enum way way)
{
    return way == F8 || way == F8_SHORT || way == F8_ODD;
}

/* How much a row's last block is short of: what is left is whole blocks of 16, or not even that. */
static uint64_t short_of(enum way way)
{
    return way == F8_SHORT ? 48 : way == F8_ODD ? 24 : 0;
}

static uint64_t group_columns(enum way way)
{
    return is_f8(way) ? 128 : 64;
}

static bool is_symmetric(enum way way)
{
    return way == COMPRESSED || way == GPTQ;
}

/* Byte of an FP8 or INT8 weight; no NaN. */
static uint8_t byte_at(uint64_t row, uint64_t column)
{
    const uint8_t byte = (uint8_t)(row * 37 + column * 101);

    return (byte & 0x7F) == 0x7F ? 0 : byte;
}

static void add_scales(struct model *model, const char *name, uint64_t rows, uint64_t groups,
                       bool transposed)
{
    uint16_t *scales = add(model, name, transposed ? "F16" : "BF16", 2, 2,
                           transposed ? groups : rows, transposed ? rows : groups);

    for (uint64_t i = 0; i < rows * groups; i++) {
        const float scale =
            transposed ? scale_at(i % rows, i / rows) : scale_at(i / groups, i % groups);
        scales[i] = transposed ? f32_to_f16(scale) : f32_to_bf16(scale);
    }
}

static void make_bytes(struct model *model, enum way way, uint64_t rows, uint64_t columns)
{
    uint8_t *weight = add(model, "x.weight", is_f8(way) ? "F8_E4M3" : "I8", 1, 2, rows, columns);

    for (uint64_t i = 0; i < rows * columns; i++)
        weight[i] = byte_at(i / columns, i % columns);
    if (is_f8(way))
        add_scales(model, "x.weight_scale_inv", (rows + 127) / 128, (columns + 127) / 128, false);
    else
        add_scales(model, "x.weight_scale", rows, columns / 64, false);
}

static void make_compressed(struct model *model, enum way way, uint64_t rows, uint64_t columns)
{
    const uint64_t groups = columns / 64;
    uint32_t *weight = add(model, "x.weight_packed", "I32", 4, 2, rows, columns / 8), *zeros;
    int64_t *shape = add(model, "x.weight_shape", "I64", 8, 1, 1, 2);

    shape[0] = (int64_t)rows;
    shape[1] = (int64_t)columns;
    for (uint64_t i = 0; i < rows * columns; i++)
        put_number(weight, i / 8, i % 8, number_at(i / columns, i % columns));
    add_scales(model, "x.weight_scale", rows, groups, false);
    if (way == COMPRESSED)
        return;
    zeros = add(model, "x.weight_zero_point", "I32", 4, 2, rows / 8, groups);
    for (uint64_t i = 0; i < rows * groups; i++)
        put_number(zeros, i / groups / 8 * groups + i % groups, (uint32_t)(i / groups % 8),
                   zero_at(i / groups, i % groups, false));
}

static void make_transposed(struct model *model, enum way way, uint64_t rows, uint64_t columns)
{
    static const uint32_t awq_places[] = { 0, 4, 1, 5, 2, 6, 3, 7 };
    const uint64_t groups = columns / 64;
    uint32_t *weight = way == AWQ ? add(model, "x.qweight", "I32", 4, 2, columns, rows / 8)
                                  : add(model, "x.qweight", "I32", 4, 2, columns / 8, rows);
    uint32_t *zeros = add(model, "x.qzeros", "I32", 4, 2, groups, rows / 8);
    int32_t *order;

    for (uint64_t row = 0; row < rows; row++) {
        const uint32_t place = way == AWQ ? awq_places[row % 8] : (uint32_t)(row % 8);
        for (uint64_t k = 0; k < columns; k++) {
            if (way == AWQ)
                put_number(weight, k * (rows / 8) + row / 8, place, number_at(row, k));
            else
                put_number(weight, k / 8 * rows + row, (uint32_t)(k % 8), number_at(row, k));
        }
        for (uint64_t g = 0; g < groups; g++)
            put_number(zeros, g * (rows / 8) + row / 8, place,
                       zero_at(row, g, is_symmetric(way)));
    }
    for (uint64_t i = 0; (way == GPTQ || way == GPTQ_ASYM) && i < groups * rows / 8; i++)
        zeros[i] -= 0x11111111;
    add_scales(model, "x.scales", rows, groups, true);
    if (way == AWQ)
        return;
    order = add(model, "x.g_idx", "I32", 4, 1, 1, columns);
    for (uint64_t k = 0; k < columns; k++)
        order[k] = (int32_t)(k / 64);
}

static uint32_t byte_of(uint64_t row, uint64_t column)
{
    return (uint32_t)(row * 37 + column * 101 + row * column) & 255;
}

static void make_gptq8(struct model *model, uint64_t rows, uint64_t columns)
{
    const uint64_t groups = columns / 64;
    uint32_t *weight = add(model, "x.qweight", "I32", 4, 2, columns / 4, rows);
    uint32_t *zeros = add(model, "x.qzeros", "I32", 4, 2, groups, rows / 4);

    for (uint64_t row = 0; row < rows; row++)
        for (uint64_t k = 0; k < columns; k++)
            weight[k / 4 * rows + row] |= byte_of(row, k) << k % 4 * 8;
    for (uint64_t i = 0; i < groups * rows / 4; i++)
        zeros[i] = 0x7F7F7F7F; /* 128, less 1 */
    add_scales(model, "x.scales", rows, groups, true);
}

static uint8_t exponent_at(uint64_t row, uint64_t group)
{
    return (uint8_t)(120 + (row * 3 + group) % 16);
}

static void make_mxfp4(struct model *model, uint64_t rows, uint64_t columns)
{
    uint8_t *weight = add(model, "x_blocks", "U8", 1, 4, rows, columns / 2);
    uint8_t *scales = add(model, "x_scales", "U8", 1, 3, rows, columns / 32);

    for (uint64_t i = 0; i < rows * columns; i++)
        weight[i / 2] |= (uint8_t)(number_at(i / columns, i % columns) << i % 2 * 4);
    for (uint64_t i = 0; i < rows * columns / 32; i++)
        scales[i] = exponent_at(i / (columns / 32), i % (columns / 32));
}

static struct model make(enum way way, uint64_t rows, uint64_t columns)
{
    struct model model = { .config = configs[way] };
    float *norm = add(&model, "norm.weight", "F32", 4, 1, 1, 2);

    norm[0] = 1;
    if (is_f8(way) || way == INT8)
        make_bytes(&model, way, rows, columns - short_of(way));
    else if (way == GPTQ8)
        make_gptq8(&model, rows, columns);
    else if (way == MXFP4)
        make_mxfp4(&model, rows, columns);
    else if (way == COMPRESSED || way == COMPRESSED_ZEROS)
        make_compressed(&model, way, rows, columns);
    else
        make_transposed(&model, way, rows, columns);
    write_model(&model);
    return model;
}

static float e4m3(uint8_t byte)
{
    const int exponent = byte >> 3 & 15, mantissa = byte & 7;
    const float magnitude = exponent == 0 ? ldexpf((float)mantissa, -9)
                                          : ldexpf((float)(8 + mantissa), exponent - 10);

    return (byte & 0x80) != 0 ? -magnitude : magnitude;
}

static float wanted(enum way way, uint64_t row, uint64_t column)
{
    static const float e2m1[] = { 0, 0.5f, 1, 1.5f, 2, 3, 4, 6, 0, -0.5f, -1, -1.5f, -2, -3, -4,
                                  -6 };
    const uint64_t group = column / group_columns(way);

    if (way == MXFP4)
        return ldexpf(e2m1[number_at(row, column)], exponent_at(row, column / 32) - 127);
    if (way == GPTQ8)
        return ((float)byte_of(row, column) - 128) * scale_at(row, group);
    if (is_f8(way)) {
        const float value = e4m3(byte_at(row, column)) * scale_at(row / 128, group);
        return way == F8 ? value : f16_to_f32(f32_to_f16(value));
    }
    if (way == INT8)
        return (float)(int8_t)byte_at(row, column) * scale_at(row, group);
    return ((float)number_at(row, column) - (float)zero_at(row, group, is_symmetric(way))) *
           scale_at(row, group);
}

static struct ckpt *open_model(const struct model *model)
{
    struct ckpt *ckpt = NULL;
    struct err err;

    if (ckpt_open(model->folder, &ckpt, &err) != STATUS_OK)
        fail_msg("%s", err.message);
    return ckpt;
}

static const struct ckpt_tensor *packed_of(const struct ckpt *ckpt)
{
    const struct ckpt_tensor *tensor = ckpt_find(ckpt, "x.weight");

    tensor = tensor != NULL ? tensor : ckpt_find(ckpt, "x"); /* MXFP4 */
    if (ckpt_refusal(ckpt) != NULL)
        fail_msg("%s", ckpt_refusal(ckpt));
    assert_non_null(tensor);
    assert_non_null(tensor->packed);
    return tensor;
}

/* --- what is put together --------------------------------------------------------------------- */

static uint8_t *read_whole(const struct ckpt *ckpt, const struct ckpt_tensor *tensor)
{
    uint8_t *bytes = malloc(tensor->size_bytes);
    struct err err;

    assert_non_null(bytes);
    if (ckpt_read(ckpt, tensor, 0, bytes, tensor->size_bytes, &err) != STATUS_OK)
        fail_msg("%s", err.message);
    return bytes;
}

/* Sizes at which weights, scales and rectangles come in one piece and in several. */
static const uint64_t sizes[][2] = { { 8, 128 }, { 136, 256 }, { 1032, 1152 }, { 24, 66048 } };

static void weights_are_what_the_tensors_mean(void **state)
{
    static const enum dtype dtypes[WAYS] = {
        DTYPE_F8_E4M3, DTYPE_Q8_0, DTYPE_Q4_0, DTYPE_INT4,
        DTYPE_Q4_0, DTYPE_INT4, DTYPE_INT4, DTYPE_INT4, DTYPE_MXFP4, DTYPE_Q8_0,
        DTYPE_F8_E4M3_16, DTYPE_F16,
    };

    (void)state;
    for (int i = 0; i < WAYS * 4; i++) {
        const enum way way = (enum way)(i % WAYS);
        const uint64_t rows = sizes[i / WAYS][0];
        const uint64_t columns = sizes[i / WAYS][1] - short_of(way);
        struct model model = make(way, rows, sizes[i / WAYS][1]);
        struct ckpt *ckpt = open_model(&model);
        const struct ckpt_tensor *tensor = packed_of(ckpt);
        uint8_t *bytes = read_whole(ckpt, tensor);
        float *values = malloc(rows * columns * sizeof(*values));

        assert_non_null(values);
        assert_int_equal(tensor->dtype, dtypes[way]);
        assert_int_equal(ckpt_tensor_count(ckpt), 2);
        assert_int_equal(tensor->rank, way == MXFP4 ? 3 : 2);
        assert_int_equal(tensor->shape[tensor->rank - 2], way == MXFP4 ? rows / 2 : rows);
        assert_int_equal(tensor->shape[tensor->rank - 1], columns);
        dtype_convert(values, DTYPE_F32, bytes, tensor->dtype, rows * columns);
        for (uint64_t k = 0; k < rows * columns; k++)
            if (values[k] != wanted(way, k / columns, k % columns))
                fail_msg("way %d, %" PRIu64 " x %" PRIu64 ": weight %" PRIu64 ", %" PRIu64
                         " is %g, not %g", way, rows, columns, k / columns, k % columns,
                         (double)values[k], (double)wanted(way, k / columns, k % columns));
        free(values);
        free(bytes);
        ckpt_close(ckpt);
        model_remove(&model);
    }
}

static void any_blocks_can_be_read(void **state)
{
    (void)state;
    for (int way = 0; way < WAYS; way++) {
        struct model model = make((enum way)way, 40, 384);
        struct ckpt *ckpt = open_model(&model);
        const struct ckpt_tensor *tensor = packed_of(ckpt);
        const uint64_t block = dtype_info(tensor->dtype)->block_bytes;
        const uint64_t count = tensor->size_bytes / block;
        uint8_t *whole = read_whole(ckpt, tensor);
        uint8_t *part = malloc(tensor->size_bytes + 1);
        struct err err;

        assert_non_null(part);
        for (uint64_t first = 0; first < count; first += 1 + first / 5) {
            for (uint64_t some = 0; some <= count - first; some += 1 + some / 3) {
                part[some * block] = 0xA5;
                if (ckpt_read(ckpt, tensor, first * block, part, some * block, &err) != STATUS_OK)
                    fail_msg("%s", err.message);
                assert_memory_equal(part, whole + first * block, some * block);
                assert_int_equal(part[some * block], 0xA5);
            }
        }
        free(part);
        free(whole);
        ckpt_close(ckpt);
        model_remove(&model);
    }
}

/* --- what is refused -------------------------------------------------------------------------- */

static void check_refused(const struct model *model, const char *word)
{
    struct ckpt *ckpt = open_model(model);
    const char *refusal = ckpt_refusal(ckpt);

    if (refusal == NULL || strstr(refusal, word) == NULL)
        fail_msg("'%s' was to be refused with %s, and it says: %s", model->config, word,
                 refusal == NULL ? "nothing" : refusal);
    for (size_t i = 0; i < ckpt_tensor_count(ckpt); i++) /* as they were */
        assert_null(ckpt_tensor_at(ckpt, i)->packed);
    assert_int_equal(ckpt_tensor_count(ckpt), model->count);
    ckpt_close(ckpt);
}

static void unknown_configurations_are_refused(void **state)
{
    static const char *const cases[][2] = {
        { "{\"quantization_config\":1}", "an object is wanted" },
        { "{\"quantization_config\":{}}", "\"quant_method\" is missing" },
        { "{\"compression_config\":{\"quant_method\":5}}", "quant_method" },
        { "{\"quantization_config\":{\"quant_method\":\"bitsandbytes\"}}", "\"bitsandbytes\"" },
        { "{\"quantization_config\":{\"quant_method\":\"fp8\",\"fmt\":\"e5m2\"}}", "e5m2" },
        { "{\"quantization_config\":{\"quant_method\":\"fp8\",\"weight_block_size\":[128]}}",
          "two numbers" },
        { "{\"quantization_config\":{\"quant_method\":\"fp8\",\"weight_block_size\":[128,64]}}",
          "64 columns" },
        { "{\"quantization_config\":{\"quant_method\":\"fp8\",\"weight_block_size\":[-1,128]}}",
          "[0] is not a size" },
        { "{\"quantization_config\":{\"quant_method\":\"gptq\",\"bits\":3}}", "3 bits" },
        { "{\"quantization_config\":{\"quant_method\":\"gptq\",\"bits\":8,\"sym\":false}}",
          "all zero points are 128" },
        { "{\"quantization_config\":{\"quant_method\":\"gptq\",\"group_size\":48}}", "48 columns" },
        { "{\"quantization_config\":{\"quant_method\":\"gptq\",\"checkpoint_format\":\"marlin\"}}",
          "\"marlin\"" },
        { "{\"quantization_config\":{\"quant_method\":\"gptq\",\"is_marlin_format\":true}}",
          "\"marlin\"" },
        { "{\"quantization_config\":{\"quant_method\":\"awq\",\"version\":\"gemv\"}}", "gemv" },
        { "{\"quantization_config\":{\"quant_method\":\"awq\",\"w_bit\":8}}", "8 bits" },
        { "{\"quantization_config\":{\"quant_method\":\"compressed-tensors\"}}", "config_groups" },
        { "{\"quantization_config\":{\"quant_method\":\"compressed-tensors\","
          "\"config_groups\":{\"a\":1}}}", "\"a\"" },
        { COMPRESSED_CONFIG("pack-quantized", 8), "packed weights of 8 bits" },
        { COMPRESSED_CONFIG("pack-quantized", 2), "2 bits" },
        { COMPRESSED_CONFIG("marlin-24", 4), "marlin-24" },
        { "{\"quantization_config\":{\"quant_method\":\"compressed-tensors\",\"config_groups\":{},"
          "\"sparsity_config\":{\"format\":\"sparse-24-bitmask\"}}}", "sparse-24-bitmask" },
    };

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct model model = make(F8, 8, 128);
        model.config = cases[i][0];
        write_model(&model);
        check_refused(&model, cases[i][1]);
        model_remove(&model);
    }
}

/* One tensor is given another name, shape, or dtype. */
static void tensors_that_do_not_fit_are_refused(void **state)
{
    static const struct {
        enum way way;
        const char *tensor, *name, *dtype_name;
        uint32_t rank;
        uint64_t rows, columns; /* 0: as it is */
        const char *word;
    } cases[] = {
        { F8, "x.weight_scale_inv", "y.weight_scale_inv", NULL, 0, 0, 0, "no 'x.weight_scale'" },
        { F8, "x.weight_scale_inv", NULL, NULL, 0, 3, 2, "a scale for each block" },
        { F8, "x.weight_scale_inv", NULL, "I16", 0, 0, 0, "F16, BF16 or F32" },
        { F8, "x.weight", NULL, NULL, 0, 272, 128, "a scale for each block" },
        { F8, "x.weight", NULL, NULL, 0, 544, 64, "a scale for each block" },
        { F8_SHORT, "x.weight_scale_inv", NULL, NULL, 0, 2, 1, "a scale for each block" },
        { GPTQ8, "x.qzeros", NULL, NULL, 0, 4, 17, "[4, 34]" },
        { GPTQ8, "x.qweight", NULL, NULL, 0, 32, 136, "[2, 136]" },
        { F8, "x.weight", NULL, NULL, 1, 0, 0, "a matrix" },
        { INT8, "x.weight_scale", NULL, NULL, 0, 16, 34, "a scale for each row" },
        { INT8, "norm.weight", "x.weight_zero_point", NULL, 0, 0, 0, "with zero points" },
        { COMPRESSED, "x.weight_scale", NULL, NULL, 0, 68, 8, "BF16 or F32 [136, 8]" },
        { COMPRESSED, "x.weight_scale", "y", NULL, 0, 0, 0, "no 'x.weight_scale'" },
        { COMPRESSED, "x.weight_packed", NULL, "U32", 0, 0, 0, "a matrix" },
        { COMPRESSED, "x.weight_shape", NULL, "F64", 0, 0, 0, "I64 [2]" },
        { COMPRESSED_ZEROS, "x.weight_zero_point", NULL, NULL, 0, 34, 2, "I32 [17, 4]" },
        { GPTQ, "x.scales", NULL, NULL, 0, 8, 68, "[4, 136]" },
        { GPTQ, "x.scales", "y.scales", NULL, 0, 0, 0, "no 'x.scales'" },
        { GPTQ, "x.qzeros", NULL, NULL, 0, 2, 34, "[4, 17]" },
        { GPTQ, "x.qzeros", "y.qzeros", NULL, 0, 0, 0, "no 'x.qzeros'" },
        { GPTQ, "x.g_idx", NULL, "F32", 0, 0, 0, "I32 [256]" },
        { GPTQ, "x.qweight", NULL, NULL, 0, 34, 128, "not whole groups of 64" },
        { GPTQ, "norm.weight", "x.weight", NULL, 0, 0, 0, "there twice" },
        { AWQ, "x.qweight", NULL, NULL, 0, 128, 34, "[2, 272]" },
        { MXFP4, "x_blocks", NULL, NULL, 2, 0, 0, "matrices in blocks of 16 bytes" },
        { MXFP4, "x_blocks", NULL, NULL, 3, 0, 0, "matrices in blocks of 16 bytes" },
        { MXFP4, "x_scales", "y_scales", NULL, 0, 0, 0, "no 'x_scales'" },
        { MXFP4, "x_scales", NULL, NULL, 0, 68, 16, "U8 [2, 68, 8]" },
        { MXFP4, "x_scales", NULL, "I8", 0, 0, 0, "U8 [2, 68, 8]" },
        { MXFP4, "norm.weight", "x", NULL, 0, 0, 0, "there twice" },
    };

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct model model = make(cases[i].way, 136, 256);
        struct raw *raw = tensor_of(&model, cases[i].tensor);
        raw->name = cases[i].name != NULL ? cases[i].name : raw->name;
        raw->dtype_name = cases[i].dtype_name != NULL ? cases[i].dtype_name : raw->dtype_name;
        raw->rank = cases[i].rank != 0 ? cases[i].rank : raw->rank;
        raw->shape[0] = cases[i].rows != 0 ? cases[i].rows : raw->shape[0];
        raw->shape[1] = cases[i].columns != 0 ? cases[i].columns : raw->shape[1];
        write_model(&model);
        check_refused(&model, cases[i].word);
        model_remove(&model);
    }
}

/* A number of the data is wrong: opening does not see it, reading does. */
static void numbers_that_cannot_be_are_refused(void **state)
{
    static const uint8_t nan_byte[] = { 0xFF }, infinite[] = { 0x80, 0x7F }, large[] = { 0, 0x7C };
    static const uint8_t zeros[] = { 0x76 };
    static const struct {
        enum way way;
        const char *tensor;
        uint64_t at_bytes;
        const uint8_t *bytes;
        size_t count;
        const char *word;
    } cases[] = {
        { F8, "x.weight", 3 * 256 + 130, nan_byte, 1, "row 3, column 130 is not a number" },
        { INT8, "x.weight_scale", 4 * 5 * 2, infinite, 2, "row 5, group 0 is inf" },
        { AWQ, "x.scales", (136 + 7) * 2, large, 2, "row 7, group 1 is inf" },
        { GPTQ, "x.qzeros", 0, zeros, 1, "row 0, group 0 is 7" },
    };

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct model model = make(cases[i].way, 136, 256);
        struct ckpt *ckpt;
        uint8_t *bytes;
        struct err err;
        memcpy((uint8_t *)tensor_of(&model, cases[i].tensor)->data + cases[i].at_bytes,
               cases[i].bytes, cases[i].count);
        write_model(&model);
        ckpt = open_model(&model);
        bytes = malloc(packed_of(ckpt)->size_bytes);
        assert_non_null(bytes);
        assert_int_equal(ckpt_read(ckpt, packed_of(ckpt), 0, bytes, packed_of(ckpt)->size_bytes,
                                   &err), STATUS_BAD_INPUT);
        if (strstr(err.message, cases[i].word) == NULL ||
            strstr(err.message, cases[i].tensor) == NULL)
            fail_msg("not '%s': %s", cases[i].word, err.message);
        free(bytes);
        ckpt_close(ckpt);
        model_remove(&model);
    }
}

/* What "desc_act" announces is looked at at once. */
/* --- columns in another order ----------------------------------------------------------------- */

/* Groups take turns: column k is in group k modulo their number. */
static void columns_lie_by_group(void **state)
{
    static const enum way ways[] = { GPTQ, GPTQ_ASYM, GPTQ_V2 };

    (void)state;
    for (size_t i = 0; i < 3 * 3; i++) {
        const enum way way = ways[i % 3];
        const uint64_t rows = sizes[i / 3][0], columns = sizes[i / 3][1], groups = columns / 64;
        struct model model = make(way, rows, columns);
        const struct ckpt_tensor *tensor, *order;
        struct ckpt *ckpt;
        uint8_t *bytes, *order_bytes;
        float *values = malloc(rows * columns * sizeof(*values));

        assert_non_null(values);
        for (uint64_t k = 0; k < columns; k++)
            ((int32_t *)tensor_of(&model, "x.g_idx")->data)[k] = (int32_t)(k % groups);
        write_model(&model);
        ckpt = open_model(&model);
        tensor = packed_of(ckpt);
        order = ckpt_find(ckpt, "x.order");
        assert_non_null(order);
        assert_true(ckpt_is_order(order) && !ckpt_is_order(tensor));
        assert_int_equal(order->dtype, DTYPE_F32);
        assert_int_equal(ckpt_tensor_count(ckpt), 3);
        bytes = read_whole(ckpt, tensor);
        order_bytes = read_whole(ckpt, order);
        dtype_convert(values, DTYPE_F32, bytes, tensor->dtype, rows * columns);
        for (uint64_t k = 0; k < rows * columns; k++) {
            const uint64_t row = k / columns, group = k % columns / 64;
            const uint64_t column = k % 64 * groups + group;
            const float value = ((float)number_at(row, column) -
                                 (float)zero_at(row, group, is_symmetric(way))) *
                                scale_at(row, group);
            assert_true(((float *)(void *)order_bytes)[k % columns] == (float)column);
            if (values[k] != value)
                fail_msg("weight %" PRIu64 ", %" PRIu64 " is %g, not %g", row, k % columns,
                         (double)values[k], (double)value);
        }
        free(order_bytes);
        free(bytes);
        free(values);
        ckpt_close(ckpt);
        model_remove(&model);
    }
}

static void groups_of_other_sizes_are_refused(void **state)
{
    static const struct {
        int32_t group;
        const char *words;
    } cases[] = { { 1, "column 127 is in group 1" }, { 2, "column 3 is in group 2" },
                  { -1, "column 3 is in group -1" } };

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct model model = make(GPTQ, 8, 128);
        ((int32_t *)tensor_of(&model, "x.g_idx")->data)[3] = cases[i].group;
        write_model(&model);
        check_refused(&model, cases[i].words);
        model_remove(&model);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(weights_are_what_the_tensors_mean),
        cmocka_unit_test(any_blocks_can_be_read),
        cmocka_unit_test(unknown_configurations_are_refused),
        cmocka_unit_test(tensors_that_do_not_fit_are_refused),
        cmocka_unit_test(numbers_that_cannot_be_are_refused),
        cmocka_unit_test(columns_lie_by_group),
        cmocka_unit_test(groups_of_other_sizes_are_refused),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
