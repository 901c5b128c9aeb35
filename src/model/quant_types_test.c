/* model/quant_types_test.c - models in GGUF's quantised types, one type throughout or mixed.
 *
 * Method: files of random blocks are written; their logits must be near those of the same file with
 * all weights turned into F32, where x is not quantised; and the same to the last bit wherever the
 * weights live. */
#include "model/testing.h"

#include "checkpoint/testing.h"
#include "tensor/testing.h"

enum { HIDDEN = 256, FFN = 512, HEADS = 4, KV_HEADS = 2, HEAD_DIM = 64, VOCAB = 48, LAYERS = 2,
       EXPERTS = 4, PROMPT = 24, TENSORS_MAX = 64 };

/* Largest difference of a logit, in standard deviations: x is off by 0.5 % in each product. */
#define CLOSE 0.08

/* Of a layer's matrices: the file's own, and by layer where a list is longer than 1. */
struct types {
    enum dtype embed, q, k, v, o, gate, up, down, down_1, head;
};

struct model_file {
    char *folder;
    char path[512];
    struct ckpt_testing_tensor tensors[TENSORS_MAX];
    char names[TENSORS_MAX][64];
    size_t count;
    uint64_t random;
};

/* A tensor of random values. Norms are small, so that attention and SiLU stay where they are
 * smooth. */
static void add(struct model_file *file, enum dtype dtype, uint32_t rank, uint64_t experts,
                uint64_t rows, uint64_t cols, const char *name)
{
    const uint64_t elements = experts * rows * cols;
    struct ckpt_testing_tensor *tensor = &file->tensors[file->count];
    void *data = malloc(dtype_row_bytes(dtype, elements));

    assert_true(file->count < TENSORS_MAX);
    assert_non_null(data);
    if (quant_is_quantised(dtype))
        testing_blocks(data, dtype, elements, &file->random);
    for (uint64_t i = 0; dtype == DTYPE_F32 && i < elements; i++)
        ((float *)data)[i] = rank == 1
                                 ? 0.05f
                                 : (float)((int32_t)testing_bits(&file->random) * 0x1p-31);
    (void)snprintf(file->names[file->count], sizeof(file->names[0]), "%s", name);
    *tensor = (struct ckpt_testing_tensor){ .name = file->names[file->count], .dtype = dtype,
                                            .rank = rank, .data = data };
    tensor->shape[0] = rank == 3 ? experts : rank == 2 ? rows : cols;
    tensor->shape[1] = rank == 3 ? rows : cols;
    tensor->shape[2] = cols;
    file->count++;
}

static void add_layer(struct model_file *file, uint32_t layer, const struct types *types,
                      bool experts)
{
    const enum dtype down = layer == 0 ? types->down : types->down_1;
    const char *suffix = experts ? "_exps" : "";
    const uint32_t rank = experts ? 3 : 2, count = experts ? EXPERTS : 1;
    const struct {
        const char *name;
        enum dtype dtype;
        uint32_t rank;
        uint64_t count, rows, cols;
        const char *suffix;
    } all[] = {
        { "attn_norm", DTYPE_F32, 1, 1, 1, HIDDEN, "" },
        { "ffn_norm", DTYPE_F32, 1, 1, 1, HIDDEN, "" },
        { "attn_q", types->q, 2, 1, HEADS * HEAD_DIM, HIDDEN, "" },
        { "attn_k", types->k, 2, 1, KV_HEADS * HEAD_DIM, HIDDEN, "" },
        { "attn_v", types->v, 2, 1, KV_HEADS * HEAD_DIM, HIDDEN, "" },
        { "attn_output", types->o, 2, 1, HIDDEN, HEADS * HEAD_DIM, "" },
        { "ffn_gate", types->gate, rank, count, FFN, HIDDEN, suffix },
        { "ffn_up", types->up, rank, count, FFN, HIDDEN, suffix },
        { "ffn_down", down, rank, count, HIDDEN, FFN, suffix },
        { "ffn_gate_inp", DTYPE_F32, 2, 1, EXPERTS, HIDDEN, "" },
    };

    for (size_t i = 0; i < 9 + (size_t)experts; i++) {
        char name[64];
        (void)snprintf(name, sizeof(name), "blk.%u.%s%s.weight", layer, all[i].name,
                       all[i].suffix);
        add(file, all[i].dtype, all[i].rank, all[i].count, all[i].rows, all[i].cols, name);
    }
}

/* used_count 0: a dense model. */
static struct model_file file_make(const struct types *types, uint32_t used_count)
{
    const struct ckpt_testing_pair pairs[] = {
        { "general.architecture", 8, "llama", 0 },
        { "llama.block_count", 4, NULL, LAYERS },
        { "llama.embedding_length", 4, NULL, HIDDEN },
        { "llama.context_length", 4, NULL, 128 },
        { "llama.feed_forward_length", 4, NULL, FFN },
        { "llama.attention.head_count", 4, NULL, HEADS },
        { "llama.attention.head_count_kv", 4, NULL, KV_HEADS },
        { "llama.attention.layer_norm_rms_epsilon", 6, NULL, 1e-5 },
        { "llama.expert_count", 4, NULL, EXPERTS },
        { "llama.expert_used_count", 4, NULL, used_count },
    };
    struct model_file file = { .folder = ckpt_testing_folder(), .random = 88172645463325252u };

    add(&file, types->embed, 2, 1, VOCAB, HIDDEN, "token_embd.weight");
    for (uint32_t layer = 0; layer < LAYERS; layer++)
        add_layer(&file, layer, types, used_count > 0);
    add(&file, DTYPE_F32, 1, 1, 1, HIDDEN, "output_norm.weight");
    add(&file, types->head, 2, 1, VOCAB, HIDDEN, "output.weight");
    ckpt_testing_write_gguf(file.folder, "m.gguf", pairs, used_count > 0 ? 10 : 8, file.tensors,
                            file.count);
    (void)snprintf(file.path, sizeof(file.path), "%s/m.gguf", file.folder);
    for (size_t i = 0; i < file.count; i++)
        free((void *)file.tensors[i].data);
    return file;
}

static float *run(const struct model_file *file, const struct setting *setting, uint32_t chunk)
{
    const struct paging paging = { 0, 1 };
    struct loaded loaded = harness_open(file->path, setting);
    float *logits = logits_alloc(loaded.model, PROMPT);
    int32_t ids[PROMPT];
    struct err err;

    for (int32_t i = 0; i < PROMPT; i++)
        ids[i] = i * 7 % VOCAB;
    harness_run(loaded.model, ids, 0, PROMPT, chunk, &paging, logits);
    if (offload_report_check(model_offload(loaded.model), &err) != STATUS_OK)
        fail_msg("%s", err.message);
    harness_close(&loaded);
    return logits;
}

static void check_near_f32(const char *name, const struct model_file *file, const float *logits)
{
    const struct setting f32 = { .dtype = "float32" };
    float *wanted = run(file, &f32, 8);
    double sum = 0, squares = 0, deviation;

    for (size_t i = 0; i < PROMPT * VOCAB; i++) {
        sum += wanted[i];
        squares += (double)wanted[i] * wanted[i];
    }
    deviation = sqrt(squares / (PROMPT * VOCAB) - pow(sum / (PROMPT * VOCAB), 2));
    assert_true(deviation > 0);
    for (size_t i = 0; i < PROMPT * VOCAB; i++)
        if (!(fabs((double)logits[i] - wanted[i]) <= CLOSE * deviation))
            fail_msg("%s: logit %zu is %g, with weights in F32 %g; one deviation is %g", name, i,
                     logits[i], wanted[i], deviation);
    free(wanted);
}

/* Those from ONLY_EXPERTS on are for mixtures; of WITH_CACHE's stacks a cache file is made. */
enum { ONLY_EXPERTS = 9, WITH_CACHE = 13, PLACEMENTS = 15 };

static void check_placements(const char *name, const struct model_file *file, const float *wanted,
                             bool experts)
{
    static const struct setting dense[] = {
        { .thread_count = 3, .row_count_max = 7 },
        { .late = true },
        { .device = "sim:memory=64MiB,link=0", .group_size = 1, .num_in_group = 1 },
        { .device = "sim:memory=64MiB,link=0", .group_size = 1, .num_in_group = 1, .disk = true,
          .params_glob = "*_proj*" },
        { .device = "sim:memory=64MiB,link=0", .automatic = true, .budget_bytes = 1450000 },
        { .cpu_offload_bytes = 300000 },
        { .device = "cpu", .group_size = 1, .num_in_group = 1, .params_glob = "*",
          .home = OFFLOAD_HOME_SHM },
        { .device = "cpu", .automatic = true, .budget_bytes = 1450000 },
        { .device = "cpu", .automatic = true, .budget_bytes = 64 << 20 },
        { .device = "sim:memory=64MiB,link=0", .experts = true, .expert_slot_count = 4 },
        { .device = "cpu", .experts = true, .expert_slot_count = 4 },
        { .device = "cpu", .experts = true, .disk = true, .expert_slot_count = 5 },
        { .device = "cpu", .experts = true, .automatic = true, .budget_bytes = 2200000 },
        { .device = "cpu", .disk = true, .group_size = 1, .num_in_group = 1,
          .params_glob = "*w13*" },
        { .device = "sim:memory=64MiB,link=0", .experts = true, .disk = true,
          .expert_slot_count = 5 },
    };

    char cache[TESTING_FOLDER_BYTES];

    testing_folder_make(cache, "quantised");
    for (size_t i = 0; i < (experts ? PLACEMENTS : ONLY_EXPERTS); i++) {
        struct setting setting = dense[i];
        float *logits;
        if (experts && setting.automatic)
            setting.budget_bytes = 5100000;
        if (i == WITH_CACHE) {
            setting.cache_dir = cache;
        } else if (experts && setting.params_glob != NULL) { /* other stacks need one, too */
            setting.params_glob = NULL;
            setting.disk = false;
        }
        logits = run(file, &setting, i == 0 ? 5 : 24);
        if (memcmp((const void *)logits, (const void *)wanted, sizeof(float) * PROMPT * VOCAB) != 0)
            fail_msg("%s: setting %zu gives other bits", name, i);
        free(logits);
    }
    testing_folder_remove(cache);
}

static void every_type_is_near_its_own_values(void **state)
{
    const struct setting plain = { .device = "cpu" }, late = { .late = true };

    (void)state;
    for (int t = DTYPE_Q8_0; t <= DTYPE_IQ4_XS; t++) { /* all of a GGUF file's */
        const enum dtype dtype = (enum dtype)t;
        const struct types types = { dtype, dtype, dtype, dtype, dtype, dtype, dtype, dtype, dtype,
                                     dtype };
        struct model_file file = file_make(&types, 0);
        float *logits = run(&file, &plain, 8);
        float *again = run(&file, &late, 24);
        check_near_f32(dtype_info(dtype)->name, &file, logits);
        assert_memory_equal(logits, again, sizeof(float) * PROMPT * VOCAB);
        free(again);
        free(logits);
        ckpt_testing_remove(file.folder);
    }
}

/* Where the processor wants sixteen rows together, it has them of what is in memory: each layer's
 * q, k and v, o, gate and up, and down, and the head. What is read from the file is as it was. The
 * answer is the same, and again when all has been loaded anew. */
static void check_plain_rows_of_a_file(enum dtype t)
{
    enum { MATRICES = 4 * LAYERS + 1 };
    static const struct {
        struct setting setting;
        size_t woven;
    } all[] = {
        { { .device = "sim:memory=64MiB,link=0" }, 0 },
        { { .device = "cpu" }, MATRICES },
        { { .device = "cpu", .group_size = 1, .num_in_group = 1 }, MATRICES },
        { { .device = "cpu", .home = OFFLOAD_HOME_SHM, .group_size = 1, .num_in_group = 1,
            .params_glob = "*" }, MATRICES },
        { { .device = "cpu", .automatic = true, .budget_bytes = 64 << 20 }, MATRICES },
        { { .device = "cpu", .disk = true, .group_size = 1, .num_in_group = 1,
            .params_glob = "*" }, 1 },
        { { .device = "cpu", .disk = true, .group_size = 2, .num_in_group = 1,
            .params_glob = "*" }, MATRICES - 4 * (LAYERS / 2) },
    };
    const struct types types = { t, t, t, t, t, t, t, t, t, t };
    struct model_file file = file_make(&types, 0);
    float *wanted = run(&file, &all[0].setting, 24);

    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++) {
        const struct setting *setting = &all[i].setting;
        struct loaded loaded = harness_open(file.path, setting);
        const enum layout layout = device_weight_layout(loaded.device, DEVICE_WEIGHT_MATRIX, t);
        const struct paging paging = { 0, 1 };
        float *logits = logits_alloc(loaded.model, PROMPT);
        int32_t ids[PROMPT];

        for (int32_t j = 0; j < PROMPT; j++)
            ids[j] = j * 7 % VOCAB;
        assert_int_equal(harness_count_layout(loaded.model, LAYOUT_ROWS_16),
                         layout == LAYOUT_ROWS_16 ? all[i].woven : 0);
        for (int round = 0; round < 2; round++) {
            harness_run(loaded.model, ids, 0, PROMPT, 8, &paging, logits);
            assert_memory_equal(logits, wanted, sizeof(float) * PROMPT * VOCAB);
            assert_true(round == 1 || harness_update(loaded.model, file.path));
        }
        free(logits);
        harness_close(&loaded);
    }
    free(wanted);
    ckpt_testing_remove(file.folder);
}

/* Some processors want quantised rows together, those with AMX plain ones. */
static void what_stays_in_a_file_keeps_plain_rows(void **state)
{
    (void)state;
    check_plain_rows_of_a_file(DTYPE_Q4_0);
    check_plain_rows_of_a_file(DTYPE_BF16);
}

/* As llama-quantize mixes them, and worse. */
static void mixed_types_are_the_same_everywhere(void **state)
{
    static const struct types mixes[] = {
        { DTYPE_Q6_K, DTYPE_Q4_K, DTYPE_Q4_K, DTYPE_Q6_K, DTYPE_Q5_0, DTYPE_Q4_K, DTYPE_Q5_K,
          DTYPE_Q6_K, DTYPE_IQ4_XS, DTYPE_Q8_0 },
        { DTYPE_F32, DTYPE_MXFP4, DTYPE_F32, DTYPE_Q2_K, DTYPE_Q3_K, DTYPE_IQ4_NL, DTYPE_Q4_1,
          DTYPE_F32, DTYPE_Q5_1, DTYPE_Q4_0 },
    };
    const struct setting plain = { .device = "cpu" };

    (void)state;
    for (size_t i = 0; i < sizeof(mixes) / sizeof(mixes[0]); i++) {
        for (uint32_t used = 0; used <= EXPERTS; used += EXPERTS / 2) {
            const char *name = used == 0 ? "dense" : used == EXPERTS ? "all experts" : "experts";
            struct types types = mixes[i];
            struct model_file file;
            float *logits;
            if (used > 0)
                types.up = types.gate; /* one operator reads both */
            file = file_make(&types, used);
            logits = run(&file, &plain, 8);
            if (used != 2) /* else a router may be undecided */
                check_near_f32(name, &file, logits);
            check_placements(name, &file, logits, used > 0);
            free(logits);
            ckpt_testing_remove(file.folder);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_type_is_near_its_own_values),
        cmocka_unit_test(what_stays_in_a_file_keeps_plain_rows),
        cmocka_unit_test(mixed_types_are_the_same_everywhere),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
