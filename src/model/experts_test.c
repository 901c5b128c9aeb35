/* model/experts_test.c - the ways in which checkpoints lay a layer's experts, and that what else is
 * in a step changes no bit of what the experts answer.
 *
 * Method: a golden checkpoint, which has its experts apart, is written again with the experts of a
 * layer stacked in one tensor for each matrix, as GGUF has them, or with gate and up fused as well,
 * as transformers 5 holds them. The logits must have the same bits. What is missing or of another
 * shape must be named.
 *
 * In a step an expert computes all rows that chose it together. How many these are follows from
 * the chunk and from the other sequences, so the goldens' prompts with their answers are run in
 * every chunk size that the kernels treat differently, alone and in company. */
#include "checkpoint/testing.h"
#include "model/testing.h"

#define TENSORS_MAX 256

/* A golden, and what its family calls the matrices. */
struct family {
    const char *golden, *block;
    const char *matrices[3]; /* gate, up, down */
};

static const struct family families[] = {
    { "deepseek_v2_groups", "mlp", { "gate_proj", "up_proj", "down_proj" } },
    { "deepseek_v3_plain", "mlp", { "gate_proj", "up_proj", "down_proj" } },
    { "qwen3_moe", "mlp", { "gate_proj", "up_proj", "down_proj" } },
    { "mixtral", "block_sparse_moe", { "w1", "w3", "w2" } },
};
#define FAMILY_COUNT (sizeof(families) / sizeof(families[0]))

/* The tensors of a checkpoint to be written; names and data are owned. */
struct tensors {
    struct ckpt_testing_tensor all[TENSORS_MAX];
    size_t count;
};

static struct ckpt_testing_tensor *tensors_add(struct tensors *tensors, const char *name)
{
    struct ckpt_testing_tensor *added = &tensors->all[tensors->count++];

    assert_true(tensors->count <= TENSORS_MAX);
    added->name = strdup(name);
    assert_non_null(added->name);
    return added;
}

static void tensors_free(struct tensors *tensors)
{
    for (size_t i = 0; i < tensors->count; i++) {
        free((char *)tensors->all[i].name);
        free((void *)tensors->all[i].data);
    }
    tensors->count = 0;
}

static void *read_bytes(const struct ckpt *ckpt, const struct ckpt_tensor *tensor, void *dst)
{
    struct err err;

    dst = dst != NULL ? dst : malloc(tensor->size_bytes);
    assert_non_null(dst);
    if (ckpt_read(ckpt, tensor, 0, dst, tensor->size_bytes, &err) != STATUS_OK)
        fail_msg("%s", err.message);
    return dst;
}

/* Adds "model.layers.L.NAME": of each expert the matrices `first` to `last`, on top of each other.
 * Nothing for a layer without experts. */
static void stack(const struct ckpt *ckpt, const struct family *family, unsigned layer,
                  const char *name, size_t first, size_t last, struct tensors *out)
{
    struct ckpt_testing_tensor *added = NULL;
    uint64_t used = 0;
    char full[128];

    for (unsigned expert = 0; expert < 1024; expert++) {
        for (size_t m = first; m <= last; m++) {
            const struct ckpt_tensor *source;

            (void)snprintf(full, sizeof(full), "model.layers.%u.%s.experts.%u.%s.weight", layer,
                           family->block, expert, family->matrices[m]);
            source = ckpt_find(ckpt, full);
            if (source == NULL)
                return;
            if (added == NULL) {
                (void)snprintf(full, sizeof(full), "model.layers.%u.%s", layer, name);
                added = tensors_add(out, full);
                added->dtype = source->dtype;
                added->rank = 3;
                added->shape[1] = source->shape[0] * (last - first + 1);
                added->shape[2] = source->shape[1];
                added->data = malloc(1024 * 2 * source->size_bytes);
                assert_non_null(added->data);
            }
            (void)read_bytes(ckpt, source, (char *)added->data + used);
            used += source->size_bytes;
            added->shape[0] = expert + 1;
        }
    }
}

/* All but the experts, with the router where the layout has it. */
static void copy_others(const struct ckpt *ckpt, const struct family *family, bool fused,
                        struct tensors *out)
{
    char router[64];

    (void)snprintf(router, sizeof(router), ".%s.gate.weight", family->block);
    for (size_t i = 0; i < ckpt_tensor_count(ckpt); i++) {
        const struct ckpt_tensor *source = ckpt_tensor_at(ckpt, i);
        const char *at = strstr(source->name, router);
        struct ckpt_testing_tensor *added;
        char name[128];

        if (strstr(source->name, ".experts.") != NULL)
            continue;
        (void)snprintf(name, sizeof(name), "%s", source->name);
        if (at != NULL && fused)
            (void)snprintf(name, sizeof(name), "%.*s.mlp.gate.weight", (int)(at - source->name),
                           source->name);
        added = tensors_add(out, name);
        added->dtype = source->dtype;
        added->rank = source->rank;
        memcpy(added->shape, source->shape, sizeof(added->shape));
        added->data = read_bytes(ckpt, source, NULL);
    }
}

/* A folder with the family's golden, its experts stacked or fused. */
static char *restack(const struct family *family, bool fused, struct tensors *tensors)
{
    char *folder = ckpt_testing_folder();
    struct ckpt *ckpt = NULL;
    char path[256];
    struct err err;
    char *config;

    (void)golden_path(family->golden, path, sizeof(path));
    if (ckpt_open(path, &ckpt, &err) != STATUS_OK)
        fail_msg("%s", err.message);
    config = json_dumps(ckpt_config(ckpt), 0);
    assert_non_null(config);
    ckpt_testing_write_config(folder, config);
    free(config);
    copy_others(ckpt, family, fused, tensors);
    for (unsigned layer = 0; layer < 4; layer++) {
        if (fused) {
            stack(ckpt, family, layer, "mlp.experts.gate_up_proj", 0, 1, tensors);
            stack(ckpt, family, layer, "mlp.experts.down_proj", 2, 2, tensors);
            continue;
        }
        for (size_t m = 0; m < 3; m++) {
            char name[64];

            (void)snprintf(name, sizeof(name), "%s.experts.%s.weight", family->block,
                           family->matrices[m]);
            stack(ckpt, family, layer, name, m, m, tensors);
        }
    }
    ckpt_close(ckpt);
    ckpt_testing_write_tensors(folder, "model.safetensors", tensors->all, tensors->count);
    return folder;
}

static float *run(const char *folder, const struct setting *setting, const struct golden *golden,
                  size_t *size_bytes_out)
{
    struct loaded loaded = harness_open(folder, setting);
    const struct paging paging = { 0, 1 };
    float *logits = logits_alloc(loaded.model, golden->prompt_count);

    *size_bytes_out = sizeof(float) * golden->prompt_count * model_info(loaded.model)->vocab_size;
    harness_run(loaded.model, golden->prompt, 0, golden->prompt_count, 32, &paging, logits);
    harness_close(&loaded);
    return logits;
}

static void every_layout_gives_the_same_bits(void **state)
{
    static const struct setting settings[] = {
        { .device = "cpu" },
        { .device = "sim", .group_size = 1, .num_in_group = 1 },
    };

    (void)state;
    for (size_t i = 0; i < FAMILY_COUNT; i++) {
        struct golden golden = golden_read(families[i].golden);
        char path[256];
        size_t size;
        float *wanted = run(golden_path(families[i].golden, path, sizeof(path)), &settings[0],
                            &golden, &size);

        for (int way = 0; way < 4; way++) {
            struct tensors tensors = { .count = 0 };
            char *folder = restack(&families[i], way / 2 == 1, &tensors);
            float *logits = run(folder, &settings[way % 2], &golden, &size);

            assert_memory_equal(logits, wanted, size);
            free(logits);
            tensors_free(&tensors);
            ckpt_testing_remove(folder);
        }
        free(wanted);
        free(golden.logits);
    }
}

/* Writes the folder again with one tensor renamed, or with another shape of as many elements. */
struct damage {
    bool fused;
    const char *tensor, *renamed; /* renamed NULL: the shape is turned around */
    const char *said[2];
};

static const struct damage damages[] = {
    { false, "model.layers.1.mlp.experts.up_proj.weight", "model.layers.1.mlp.experts.up",
      { "model.layers.1.mlp.experts.up_proj.weight is missing", "w13_weight" } },
    { false, "model.layers.1.mlp.experts.down_proj.weight", "model.layers.1.mlp.experts.down",
      { "model.layers.1.mlp.experts.down_proj.weight is missing", "w2_weight" } },
    { true, "model.layers.1.mlp.experts.down_proj", "model.layers.1.mlp.experts.down",
      { "model.layers.1.mlp.experts.down_proj is missing", "w2_weight" } },
    { false, "model.layers.1.mlp.experts.gate_proj.weight", "model.layers.1.mlp.experts.gate",
      { "model.layers.1.mlp.experts.0.gate_proj.weight is missing", "w13_weight" } },
    { false, "model.layers.1.mlp.experts.gate_proj.weight", NULL,
      { "model.layers.1.mlp.experts.gate_proj.weight", "[8, 12, 32]" } },
    { true, "model.layers.1.mlp.experts.gate_up_proj", NULL,
      { "model.layers.1.mlp.experts.gate_up_proj", "[8, 24, 32]" } },
    { false, "model.layers.1.mlp.gate.weight", "model.layers.1.mlp.experts.0.gate_proj.weight",
      { "model.layers.1.mlp.gate.weight is missing", "" } },
};

static void what_does_not_fit_is_named(void **state)
{
    const struct setting setting = { .device = "cpu" };

    (void)state;
    for (size_t i = 0; i < sizeof(damages) / sizeof(damages[0]); i++) {
        struct tensors tensors = { .count = 0 };
        char *folder = restack(&families[0], damages[i].fused, &tensors);
        struct loaded loaded;
        struct err err;

        for (size_t t = 0; t < tensors.count; t++) {
            struct ckpt_testing_tensor *tensor = &tensors.all[t];

            if (strcmp(tensor->name, damages[i].tensor) != 0)
                continue;
            if (damages[i].renamed != NULL) {
                free((char *)tensor->name);
                tensor->name = strdup(damages[i].renamed);
            } else {
                const uint64_t last = tensor->shape[2];

                tensor->shape[2] = tensor->shape[1];
                tensor->shape[1] = last;
            }
        }
        ckpt_testing_write_tensors(folder, "model.safetensors", tensors.all, tensors.count);
        assert_int_equal(harness_try(folder, &setting, NULL, &loaded, &err), STATUS_BAD_INPUT);
        for (size_t k = 0; k < 2; k++)
            if (strstr(err.message, damages[i].said[k]) == NULL)
                fail_msg("damage %zu: \"%s\" does not say \"%s\"", i, err.message,
                         damages[i].said[k]);
        tensors_free(&tensors);
        ckpt_testing_remove(folder);
    }
}

static const struct setting crowd_devices[] = {
    { .device = "cpu", .cpu_kernels = "scalar", .row_count_max = 96, .kv_token_count = 512 },
    { .device = "cpu", .thread_count = 2, .row_count_max = 96, .kv_token_count = 512 },
    { .device = "sim", .thread_count = 2, .row_count_max = 96, .kv_token_count = 512,
      .group_size = 2, .num_in_group = 1 },
};
#define CROWD_DEVICES (sizeof(crowd_devices) / sizeof(crowd_devices[0]))
#define CROWD_TOKENS 84
#ifdef LIGHTER_DEBUG
#define CROWD_FAMILIES 1 /* sanitizers slow this down twentyfold */
#else
#define CROWD_FAMILIES FAMILY_COUNT
#endif

/* The golden's prompt and its answer, which make a longer prompt. */
static uint32_t long_prompt(const char *name, int32_t ids[GOLDEN_IDS_MAX])
{
    struct golden golden = golden_read(name);
    const uint32_t count = golden.prompt_count + golden.greedy_count;

    assert_int_equal(count, CROWD_TOKENS);
    memcpy(ids, golden.prompt, golden.prompt_count * sizeof(ids[0]));
    memcpy(ids + golden.prompt_count, golden.greedy, golden.greedy_count * sizeof(ids[0]));
    free(golden.logits);
    return count;
}

static void chunks_change_no_bit(void **state)
{
    static const uint32_t chunks[] = { 3, 13, 50 };
    const struct paging paging = { 0, 1 };

    (void)state;
    for (size_t i = 0; i < CROWD_DEVICES * CROWD_FAMILIES; i++) {
        const char *name = families[i % CROWD_FAMILIES].golden;
        struct loaded loaded = harness_open_golden(name, &crowd_devices[i / CROWD_FAMILIES]);
        int32_t ids[GOLDEN_IDS_MAX];
        const uint32_t count = long_prompt(name, ids);
        float *wanted = logits_alloc(loaded.model, count);
        float *logits = logits_alloc(loaded.model, count);
        const size_t size = sizeof(float) * count * model_info(loaded.model)->vocab_size;

        harness_run(loaded.model, ids, 0, count, count, &paging, wanted);
        for (size_t k = 0; k < sizeof(chunks) / sizeof(chunks[0]); k++) {
            memset(logits, 0, size);
            harness_run(loaded.model, ids, 0, count, chunks[k], &paging, logits);
            if (memcmp(logits, wanted, size) != 0)
                fail_msg("%s: chunks of %u give other bits", name, chunks[k]);
        }
        free(wanted);
        free(logits);
        harness_close(&loaded);
    }
}

#define CROWD_SEQUENCES 4
#define CROWD_PAGES (CROWD_TOKENS / 4)

/* Sequences of the same tokens, of which the s-th begins s tokens later, each with `take[s]` rows
 * in a step. Sequence 0 answers into logits_out; the others are company. */
static void run_in_company(struct model *model, const int32_t *ids, const uint32_t *take,
                           float *logits_out)
{
    const struct model_info *info = model_info(model);
    int32_t tokens[96], positions[96], sequences[96], slots[96], rows[96];
    int32_t pages[CROWD_SEQUENCES][CROWD_PAGES];
    uint32_t done[CROWD_SEQUENCES] = { 0 };
    struct err err;

    for (int32_t s = 0; s < CROWD_SEQUENCES; s++)
        for (int32_t i = 0; i < CROWD_PAGES; i++)
            pages[s][i] = i * CROWD_SEQUENCES + s;
    while (done[0] < CROWD_TOKENS) {
        const uint32_t first = done[0];
        struct model_step step = {
            .sequence_count = CROWD_SEQUENCES, .page_count_max = CROWD_PAGES, .token_ids = tokens,
            .positions = positions, .sequences = sequences, .slots = slots, .pages = pages[0],
            .logits_rows = rows,
        };
        uint32_t r = 0;

        for (uint32_t k = 1; k <= CROWD_SEQUENCES; k++) { /* sequence 0 comes last */
            const uint32_t s = k % CROWD_SEQUENCES;

            for (uint32_t i = 0; i < take[s] && done[s] + s < CROWD_TOKENS; i++, r++) {
                tokens[r] = ids[done[s] + s];
                positions[r] = (int32_t)done[s];
                sequences[r] = (int32_t)s;
                slots[r] = slot_of(info, pages[s], done[s]);
                if (s == 0)
                    rows[step.logits_row_count++] = (int32_t)r;
                done[s]++;
            }
        }
        step.row_count = r;
        if (model_forward(model, &step, logits_out + (size_t)first * info->vocab_size, &err) !=
            STATUS_OK)
            fail_msg("%s", err.message);
    }
}

static void company_changes_no_bit(void **state)
{
    static const uint32_t takes[][CROWD_SEQUENCES] = { { 2, 30, 30, 30 }, { 5, 3, 2, 1 },
                                                       { 40, 20, 20, 1 } };
    const struct paging paging = { 0, 1 };

    (void)state;
    for (size_t i = 0; i < CROWD_DEVICES * CROWD_FAMILIES; i++) {
        const char *name = families[i % CROWD_FAMILIES].golden;
        struct loaded loaded = harness_open_golden(name, &crowd_devices[i / CROWD_FAMILIES]);
        int32_t ids[GOLDEN_IDS_MAX];
        const uint32_t count = long_prompt(name, ids);
        float *wanted = logits_alloc(loaded.model, count);
        float *logits = logits_alloc(loaded.model, count);
        const size_t size = sizeof(float) * count * model_info(loaded.model)->vocab_size;

        harness_run(loaded.model, ids, 0, count, count, &paging, wanted);
        for (size_t k = 0; k < sizeof(takes) / sizeof(takes[0]); k++) {
            memset(logits, 0, size);
            run_in_company(loaded.model, ids, takes[k], logits);
            if (memcmp(logits, wanted, size) != 0)
                fail_msg("%s: company %zu gives other bits", name, k);
        }
        free(wanted);
        free(logits);
        harness_close(&loaded);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_layout_gives_the_same_bits),
        cmocka_unit_test(what_does_not_fit_is_named),
        cmocka_unit_test(chunks_change_no_bit),
        cmocka_unit_test(company_changes_no_bit),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
