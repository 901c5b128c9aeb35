/* checkpoint/gguf/gguf_test.c - opening GGUF files: what is in them, and what is wrong with them.
 *
 * Method: files are written by testing.h, whole, and then spoilt byte by byte where the format has
 * a number. Every prefix of a file must be refused with a sentence, without a crash. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "checkpoint/checkpoint.h"
#include "checkpoint/testing.h"

#define PAIRS CKPT_TESTING_LLAMA_PAIR_COUNT

static const struct ckpt_testing_pair llama_pairs[] = { CKPT_TESTING_LLAMA_PAIRS };
static const float numbers[256];

static enum status open_file(const char *folder, const char *name, struct ckpt **ckpt_out,
                             struct err *err)
{
    char path[512];

    (void)snprintf(path, sizeof(path), "%s/%s", folder, name);
    return ckpt_open(path, ckpt_out, err);
}

static void expect_refusal(const char *folder, const char *name, const char *piece)
{
    struct ckpt *ckpt = NULL;
    struct err err = { .message = "" };
    const enum status st = open_file(folder, name, &ckpt, &err);

    ckpt_close(ckpt);
    if (st == STATUS_OK)
        fail_msg("opened, where this is wanted: %s", piece);
    if (strstr(err.message, piece) == NULL || strstr(err.message, folder) == NULL)
        fail_msg("neither '%s' nor the path in: %s", piece, err.message);
}

/* Writes llama's pairs with those in extra, and the tensors; expects the refusal. */
static void expect_pairs_refused(const struct ckpt_testing_pair *extra, size_t extra_count,
                                 const struct ckpt_testing_tensor *tensors, size_t tensor_count,
                                 const char *piece)
{
    char *const folder = ckpt_testing_folder();
    struct ckpt_testing_pair pairs[PAIRS + 8];

    assert_true(extra_count <= 8);
    memcpy(pairs, llama_pairs, sizeof(llama_pairs));
    if (extra_count > 0)
        memcpy(pairs + PAIRS, extra, extra_count * sizeof(*extra));
    ckpt_testing_write_gguf(folder, "m.gguf", pairs, PAIRS + extra_count, tensors, tensor_count);
    expect_refusal(folder, "m.gguf", piece);
    ckpt_testing_remove(folder);
}

static const struct ckpt_testing_tensor embed = { "token_embd.weight", DTYPE_F32, 2, { 4, 8 },
                                                  numbers };

static void a_file_is_what_a_folder_would_be(void **state)
{
    const struct ckpt_testing_tensor tensors[] = {
        embed,
        { "blk.0.attn_q.weight", DTYPE_F16, 2, { 3, 8 }, numbers },
        { "blk.0.ffn_gate_exps.weight", DTYPE_Q8_0, 3, { 2, 1, 32 }, numbers },
        { "blk.0.ffn_up.1.weight", DTYPE_BF16, 2, { 2, 2 }, numbers },
        { "v.patch.weight", DTYPE_F32, 1, { 1 }, numbers },
    };
    static const char *const names[] = {
        "model.embed_tokens.weight", "model.layers.0.self_attn.q_proj.weight",
        "model.layers.0.block_sparse_moe.experts.w1.weight",
        "model.layers.0.block_sparse_moe.experts.1.w3.weight", "v.patch.weight",
    };
    char *const folder = ckpt_testing_folder();
    const struct ckpt_tensor *tensor;
    const json_t *config;
    struct ckpt *ckpt;
    struct err err;

    (void)state;
    ckpt_testing_write_gguf(folder, "m.gguf", llama_pairs, PAIRS, tensors, 5);
    if (open_file(folder, "m.gguf", &ckpt, &err) != STATUS_OK)
        fail_msg("%s", err.message);
    assert_string_equal(ckpt_format_name(ckpt), "gguf");
    assert_int_equal(ckpt_tensor_count(ckpt), 5);
    for (size_t i = 0; i < 5; i++) {
        assert_non_null(ckpt_find(ckpt, names[i]));
        assert_string_equal(ckpt_tensor_at(ckpt, i)->name, names[i]);
    }
    tensor = ckpt_find(ckpt, names[2]);
    assert_int_equal(tensor->dtype, DTYPE_Q8_0);
    assert_int_equal(tensor->rank, 3);
    assert_int_equal(tensor->shape[0], 2);
    assert_int_equal(tensor->shape[2], 32);
    assert_int_equal(tensor->size_bytes, 68);
    assert_int_equal(tensor->offset_bytes % 32, 0);
    config = ckpt_config(ckpt);
    assert_int_equal(json_integer_value(json_object_get(config, "vocab_size")), 4);
    assert_int_equal(json_integer_value(json_object_get(config, "hidden_size")), 32);
    assert_true(json_is_true(json_object_get(config, "tie_word_embeddings")));
    assert_true(json_is_true(
        json_object_get(json_object_get(config, "gguf_rope"), "interleaved")));
    ckpt_close(ckpt);
    ckpt_testing_remove(folder);
}

static void every_prefix_is_refused(void **state)
{
    char *const folder = ckpt_testing_folder();
    size_t size;
    uint8_t *const bytes = ckpt_testing_gguf(llama_pairs, PAIRS, &embed, 1, &size);

    (void)state;
    for (size_t cut = 0; cut < size; cut += cut < 24 ? 1 : 7) {
        ckpt_testing_write_file(folder, "m.gguf", bytes, cut);
        expect_refusal(folder, "m.gguf", "truncated");
    }
    free(bytes);
    ckpt_testing_remove(folder);
}

/* The 8 bytes at `at` become value, if need be less of them. */
struct change {
    size_t at, size;
    uint64_t value;
    const char *piece;
};

static void wrong_numbers_are_refused(void **state)
{
    /* header: magic, version, tensor count, pair count; the first pair: key size, key (20 bytes),
     * type, string */
    static const struct change changes[] = {
        { 0, 4, 0x46475546, "does not begin with \"GGUF\"" },
        { 4, 4, 1, "GGUF version 1, 2 and 3 are read" },
        { 4, 4, 0x03000000, "big endian" },
        { 8, 8, UINT64_C(1) << 40, "announces 1099511627776 tensors" },
        { 16, 8, UINT64_C(1) << 40, "announces 1099511627776 metadata pairs" },
        { 24, 8, UINT64_MAX, "key 0 of the metadata has 18446744073709551615 bytes" },
        { 24, 8, 0, "key 0 of the metadata has 0 bytes" },
        { 32, 1, 7, "key 0 of the metadata has the byte 0x07" },
        { 52, 4, 13, "general.architecture has type 13" },
        { 56, 8, UINT64_C(1) << 50, "general.architecture is a string of 1125899906842624 bytes" },
        { 56, 8, 70000, "truncated: general.architecture" },
        { 52, 4, 9, "general.architecture" },
    };
    char *const folder = ckpt_testing_folder();
    size_t size;

    (void)state;
    for (size_t i = 0; i < sizeof(changes) / sizeof(changes[0]); i++) {
        uint8_t *const bytes = ckpt_testing_gguf(llama_pairs, PAIRS, &embed, 1, &size);
        for (size_t b = 0; b < changes[i].size; b++)
            bytes[changes[i].at + b] = (uint8_t)(changes[i].value >> (8 * b));
        ckpt_testing_write_file(folder, "m.gguf", bytes, size);
        expect_refusal(folder, "m.gguf", changes[i].piece);
        free(bytes);
    }
    ckpt_testing_remove(folder);
}

/* The entry of the only tensor ends where the padding begins: dimensions, type, offset. */
static void wrong_entries_are_refused(void **state)
{
    enum { NAME = 17 };
    static const struct change changes[] = { /* from the entry's beginning */
        { 0, 8, 300, "the name of tensor 0 has 300 bytes" },
        { 8, 1, 9, "has the control character 0x09" },
        { 8 + NAME, 4, 5, "tensor 'token_embd.weight' has 5 dimensions, at most 4" },
        { 12 + NAME, 8, 0, "has the empty shape [4, 0]" },
        { 12 + NAME, 8, UINT64_C(1) << 62, "tensor 'token_embd.weight', F32 [4, 46116860" },
        { 12 + NAME, 8, 9, "truncated: tensor 'token_embd.weight' has 144 bytes from 0 on" },
        { 28 + NAME, 4, 77, "has type 77, which is not known" },
        { 28 + NAME, 4, 2, "is Q4_0 [4, 8], whose rows of 8 elements are not whole blocks of 32" },
        { 32 + NAME, 8, 16, "begins at byte 16 of the data, which is not a multiple" },
        { 32 + NAME, 8, UINT64_C(1) << 63, "truncated: tensor 'token_embd.weight' has 128 bytes" },
    };
    char *const folder = ckpt_testing_folder();
    size_t size;

    (void)state;
    for (size_t i = 0; i < sizeof(changes) / sizeof(changes[0]); i++) {
        uint8_t *const bytes = ckpt_testing_gguf(llama_pairs, PAIRS, &embed, 1, &size);
        const uint8_t *const name = memmem(bytes, size, embed.name, NAME);
        const size_t entry = (size_t)(name - bytes) - 8;
        for (size_t b = 0; b < changes[i].size; b++)
            bytes[entry + changes[i].at + b] = (uint8_t)(changes[i].value >> (8 * b));
        ckpt_testing_write_file(folder, "m.gguf", bytes, size);
        expect_refusal(folder, "m.gguf", changes[i].piece);
        free(bytes);
    }
    ckpt_testing_remove(folder);
}

static void metadata_that_makes_no_model_is_refused(void **state)
{
    const struct ckpt_testing_tensor twice[] = { embed, embed };
    const struct ckpt_testing_tensor freqs[] = {
        embed, { "rope_freqs.weight", DTYPE_F32, 1, { 4 }, numbers },
    };
    const struct {
        struct ckpt_testing_pair pair;
        const char *piece;
    } pairs[] = {
        { { "llama.block_count", 4, NULL, 2 }, "the key llama.block_count is there twice" },
        { { "general.alignment", 4, NULL, 48 }, "general.alignment is 48, a power of two" },
        { { "general.alignment", 8, "x", 0 }, "general.alignment is of type string" },
        { { "llama.rope.freq_base", 8, "x", 0 }, "llama.rope.freq_base is of type string" },
        { { "llama.rope.scaling.type", 4, NULL, 1 }, "llama.rope.scaling.type is of type uint32" },
        { { "llama.rope.dimension_count", 4, NULL, 40 }, "but a head has only" },
        { { "llama.attention.value_length", 4, NULL, 4 }, "heads of two widths are not built" },
        { { "llama.expert_count", 4, NULL, 4 }, "llama.expert_used_count is missing" },
        { { "split.count", 4, NULL, 2 }, "split.no is missing" },
    };

    (void)state;
    for (size_t i = 0; i < sizeof(pairs) / sizeof(pairs[0]); i++)
        expect_pairs_refused(&pairs[i].pair, 1, &embed, 1, pairs[i].piece);
    expect_pairs_refused(NULL, 0, NULL, 0, "tensor 'token_embd.weight' is missing");
    expect_pairs_refused(NULL, 0, twice, 2, "tensor 'model.embed_tokens.weight' is there twice");
    expect_pairs_refused(NULL, 0, freqs, 2, "element 0 of tensor 'rope_freqs.weight' is 0");
}

static void write_split(const char *folder, const char *name, uint32_t number, uint32_t count,
                        uint32_t tensor_count, const struct ckpt_testing_tensor *tensor)
{
    struct ckpt_testing_pair pairs[PAIRS + 3];

    memcpy(pairs, llama_pairs, sizeof(llama_pairs));
    pairs[PAIRS] = (struct ckpt_testing_pair){ "split.no", 4, NULL, number };
    pairs[PAIRS + 1] = (struct ckpt_testing_pair){ "split.count", 4, NULL, count };
    pairs[PAIRS + 2] = (struct ckpt_testing_pair){ "split.tensors.count", 4, NULL, tensor_count };
    ckpt_testing_write_gguf(folder, name, pairs, PAIRS + 3, tensor, 1);
}

static void files_of_a_split_model_belong_together(void **state)
{
    const struct ckpt_testing_tensor norm = { "output_norm.weight", DTYPE_F32, 1, { 8 }, numbers };
    static const char first[] = "m-00001-of-00002.gguf", second[] = "m-00002-of-00002.gguf";
    char *const folder = ckpt_testing_folder();
    struct ckpt *ckpt;

    (void)state;
    write_split(folder, first, 0, 2, 2, &embed);
    expect_refusal(folder, first, "file 2 of 2, ");
    write_split(folder, second, 1, 2, 2, &norm);
    for (int i = 0; i < 2; i++) { /* either file may be given */
        assert_int_equal(open_file(folder, i == 0 ? first : second, &ckpt, NULL), STATUS_OK);
        assert_int_equal(ckpt_tensor_count(ckpt), 2);
        assert_int_equal(ckpt_find(ckpt, "model.norm.weight")->file_index, 1);
        ckpt_close(ckpt);
    }
    write_split(folder, second, 0, 2, 2, &norm);
    expect_refusal(folder, first, "split.no 0 and split.count 2, where 1 and 2 are wanted");
    write_split(folder, second, 1, 3, 2, &norm);
    expect_refusal(folder, first, "split.no 1 and split.count 3, where 1 and 2 are wanted");
    write_split(folder, second, 1, 2, 2, &embed);
    expect_refusal(folder, first, "'model.embed_tokens.weight' is there twice, also in");
    write_split(folder, second, 1, 2, 2, &norm);
    write_split(folder, first, 0, 2, 3, &embed);
    expect_refusal(folder, first, "split.tensors.count is 3, the 2 files have 2");
    write_split(folder, "m.gguf", 0, 2, 2, &embed);
    expect_refusal(folder, "m.gguf", "does not end in -00001-of-00002.gguf");
    ckpt_testing_remove(folder);
}

#define WINDOW_PAIRS(arch)                                                                         \
    { { "general.architecture", 8, arch, 0 }, { arch ".block_count", 4, NULL, 3 },                 \
      { arch ".embedding_length", 4, NULL, 32 }, { arch ".context_length", 4, NULL, 64 },          \
      { arch ".feed_forward_length", 4, NULL, 32 }, { arch ".attention.head_count", 4, NULL, 4 },  \
      { arch ".attention.layer_norm_rms_epsilon", 6, NULL, 1e-5 },                                 \
      { arch ".attention.sliding_window", 4, NULL, 16 },                                           \
      { arch ".expert_count", 4, NULL, 4 }, { arch ".expert_used_count", 4, NULL, 1 },             \
      { arch ".expert_feed_forward_length", 4, NULL, 32 },                                         \
      { arch ".interleave_moe_layer_step", 4, NULL, 1 },                                           \
      { arch ".attention.sliding_window_pattern", 9, "101", 0 } }
enum { WINDOW_PAIR_COUNT = 13 };

/* Newer files say of each layer whether it has a window. */
static void windows_of_single_layers_are_read(void **state)
{
    static struct ckpt_testing_pair pairs[][WINDOW_PAIR_COUNT] = {
        WINDOW_PAIRS("gemma2"), WINDOW_PAIRS("gemma3"), WINDOW_PAIRS("gpt-oss"),
        WINDOW_PAIRS("llama4"),
    };
    char *const folder = ckpt_testing_folder();

    (void)state;
    for (size_t i = 0; i < sizeof(pairs) / sizeof(pairs[0]); i++) {
        struct ckpt_testing_pair *const pattern = &pairs[i][WINDOW_PAIR_COUNT - 1];
        struct ckpt *ckpt = NULL;
        struct err err;
        ckpt_testing_write_gguf(folder, "m.gguf", pairs[i], WINDOW_PAIR_COUNT, &embed, 1);
        if (open_file(folder, "m.gguf", &ckpt, &err) != STATUS_OK)
            fail_msg("%s", err.message);
        for (size_t layer = 0; layer < 3; layer++) {
            const json_t *const types = json_object_get(ckpt_config(ckpt), "layer_types");
            assert_string_equal(json_string_value(json_array_get(types, layer)),
                                layer == 1 ? "full_attention"
                                : i == 3   ? "chunked_attention" : "sliding_attention");
        }
        ckpt_close(ckpt);
        pattern->string = "10";
        ckpt_testing_write_gguf(folder, "m.gguf", pairs[i], WINDOW_PAIR_COUNT, &embed, 1);
        expect_refusal(folder, "m.gguf", "sliding_window_pattern has 2 items, and the model 3");
    }
    ckpt_testing_remove(folder);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_file_is_what_a_folder_would_be),
        cmocka_unit_test(every_prefix_is_refused),
        cmocka_unit_test(wrong_numbers_are_refused),
        cmocka_unit_test(wrong_entries_are_refused),
        cmocka_unit_test(metadata_that_makes_no_model_is_refused),
        cmocka_unit_test(files_of_a_split_model_belong_together),
        cmocka_unit_test(windows_of_single_layers_are_read),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
