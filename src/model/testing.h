/* model/testing.h - what the tests of models share: opening a golden model in some setting,
 * and running prompts through it as an engine would.
 *
 * Only *_test.c files include this. A failure inside asserts through cmocka. */
#ifndef LIGHTER_MODEL_TESTING_H
#define LIGHTER_MODEL_TESTING_H

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "base/file.h"
#include "base/json.h"
#include "base/testing_folder.h"
#include "device/testing_libraries.h"
#include "model/model.h"

#define GOLDEN_FOLDER "tests/golden/models"
#define GOLDEN_IDS_MAX 256

static const char *const golden_names[] = {
    "llama_gqa_tied",     "llama_biases_mha",   "llama_llama3",        "llama_linear",
    "llama_yarn",         "mistral",            "qwen2",               "qwen2_tied_yarn",
    "qwen3",              "qwen3_biases",       "deepseek_v2_lite",    "deepseek_v2_groups",
    "deepseek_v2_biases", "deepseek_v3",        "deepseek_v3_one_group", "deepseek_v3_plain",
    "qwen3_moe",          "qwen3_moe_mixed",    "mixtral",             "mixtral_fused",
    "qwen2_moe",          "qwen2_moe_mixed",    "olmoe",               "glm4",
    "glm4_moe",           "phi3",               "phi3_long",           "granite",
    "granite_moe",        "granite_moe_shared", "mistral_window",      "qwen2_window",
    "gemma2",             "gemma3",             "gemma3_sees",
    "llama4",             "llama4_images",      "llama4_plain",
    "gpt_oss",            "gpt_oss_plain",
};
#define GOLDEN_COUNT (sizeof(golden_names) / sizeof(golden_names[0]))

/* Where and how a model runs. Zeroes mean: cpu, its best kernels, one thread, everything
 * resident. */
struct setting {
    const char *device;
    const char *cpu_kernels;
    uint32_t thread_count;
    uint64_t budget_bytes;
    uint64_t cpu_offload_bytes;
    int64_t group_size, num_in_group, prefetch_step; /* prefetch_step 0: 1 */
    const char *params_glob;
    bool meta;
    bool disk;               /* instead of the host */
    bool late;               /* rows of an embedding that is not tied are read by themselves */
    bool automatic;
    const char *cache_dir;
    const char *disk_settings; /* as --offload-disk; borrowed until the model is made */
    bool experts;            /* are units */
    int64_t expert_slot_count;
    enum offload_home home;  /* 0, which is the device: on the host */
    uint32_t row_count_max;  /* 0: 32 */
    uint32_t page_size;      /* 0: 4 */
    uint64_t kv_token_count; /* 0: 256 */
    bool kv_auto;            /* as many tokens as fit */
    enum dtype kv_dtype;
    uint32_t context_length;
    const char *dtype;
};

struct loaded {
    struct device *device;
    struct ckpt *ckpt;
    struct model *model;
};

struct golden {
    int32_t prompt[GOLDEN_IDS_MAX], greedy[GOLDEN_IDS_MAX];
    uint32_t prompt_count, greedy_count;
    float *logits; /* [prompt_count][vocab]; owned */
};

static inline struct model_options harness_options(const struct setting *setting)
{
    struct model_options options;

    model_options_init(&options);
    options.step_row_count_max = setting->row_count_max == 0 ? 32 : setting->row_count_max;
    options.step_sequence_count_max = 4;
    options.kv_page_size = setting->page_size == 0 ? 4 : setting->page_size;
    if (!setting->kv_auto)
        options.kv_token_count = setting->kv_token_count == 0 ? 256 : setting->kv_token_count;
    options.kv_dtype = setting->kv_dtype;
    options.context_length = setting->context_length;
    options.dtype = setting->dtype;
    options.offload.cpu_offload_bytes = setting->cpu_offload_bytes;
    options.offload.group_size = setting->group_size;
    options.offload.num_in_group = setting->num_in_group;
    options.offload.prefetch_step = setting->prefetch_step == 0 ? 1 : setting->prefetch_step;
    options.offload.params_glob = setting->params_glob;
    options.offload.home = setting->meta        ? OFFLOAD_HOME_META
                           : setting->home != 0 ? setting->home
                                                : OFFLOAD_HOME_HOST;
    if (setting->disk || setting->automatic)
        options.offload.home = OFFLOAD_HOME_DISK;
    options.offload.late_bytes_min = setting->late ? 0 : UINT64_MAX;
    options.offload.fault_late_waits = setting->late;
    options.offload.automatic = setting->automatic;
    options.offload.disk = setting->disk_settings;
    options.offload.cache_dir = setting->cache_dir;
    options.offload.experts = setting->experts;
    options.offload.expert_slot_count = setting->expert_slot_count;
    options.offload.poison = true;
    return options;
}

static inline void harness_close(struct loaded *loaded)
{
    model_destroy(loaded->model);
    ckpt_close(loaded->ckpt);
    device_close(loaded->device);
    memset(loaded, 0, sizeof(*loaded));
}

/* Opens and creates with options that need not be setting's; on failure everything is closed again,
 * *loaded_out is empty and err says why. */
static inline enum status harness_try_with(const char *folder, const struct setting *setting,
                                           const struct model_options *options,
                                           const struct log *log, struct loaded *loaded_out,
                                           struct err *err)
{
    const struct device_options device_options = {
        .thread_count = setting->thread_count == 0 ? 1 : setting->thread_count,
        .memory_budget_bytes = setting->budget_bytes, .cpu_kernels = setting->cpu_kernels,
        .library_path = testing_library_path(),
    };
    enum status st;

    memset(loaded_out, 0, sizeof(*loaded_out));
    st = device_open(setting->device == NULL ? "cpu" : setting->device, &device_options,
                     &loaded_out->device, err);
    if (st == STATUS_OK)
        st = ckpt_open(folder, &loaded_out->ckpt, err);
    if (st == STATUS_OK)
        st = model_create(loaded_out->device, loaded_out->ckpt, options, log, NULL,
                          &loaded_out->model, err);
    if (st != STATUS_OK)
        harness_close(loaded_out);
    return st;
}

static inline enum status harness_try(const char *folder, const struct setting *setting,
                                      const struct log *log, struct loaded *loaded_out,
                                      struct err *err)
{
    const struct model_options options = harness_options(setting);

    return harness_try_with(folder, setting, &options, log, loaded_out, err);
}

static inline struct loaded harness_open(const char *folder, const struct setting *setting)
{
    struct loaded loaded;
    struct err err;

    if (harness_try(folder, setting, NULL, &loaded, &err) != STATUS_OK)
        fail_msg("%s on %s: %s", folder, setting->device == NULL ? "cpu" : setting->device,
                 err.message);
    return loaded;
}

static inline char *golden_path(const char *name, char *out, size_t out_size)
{
    (void)snprintf(out, out_size, GOLDEN_FOLDER "/%s", name);
    return out;
}

static inline struct loaded harness_open_golden(const char *name, const struct setting *setting)
{
    char path[256];

    return harness_open(golden_path(name, path, sizeof(path)), setting);
}

static inline uint32_t read_ids(const json_t *list, int32_t *out)
{
    assert_true(json_array_size(list) > 0 && json_array_size(list) <= GOLDEN_IDS_MAX);
    for (size_t i = 0; i < json_array_size(list); i++)
        out[i] = (int32_t)json_integer_value(json_array_get(list, i));
    return (uint32_t)json_array_size(list);
}

static inline struct golden golden_read(const char *name)
{
    struct golden golden;
    char path[256];
    json_t *json = NULL;
    struct buf logits;
    struct err err;

    (void)snprintf(path, sizeof(path), GOLDEN_FOLDER "/%s/expected.json", name);
    if (json_read_file(path, 1 << 20, &json, &err) != STATUS_OK)
        fail_msg("%s", err.message);
    golden.prompt_count = read_ids(json_object_get(json, "prompt"), golden.prompt);
    golden.greedy_count = read_ids(json_object_get(json, "greedy"), golden.greedy);
    json_decref(json);
    (void)snprintf(path, sizeof(path), GOLDEN_FOLDER "/%s/logits.f32", name);
    buf_init(&logits, 1 << 24);
    if (file_read_all(path, &logits, &err) != STATUS_OK)
        fail_msg("%s", err.message);
    golden.logits = malloc(logits.size);
    assert_non_null(golden.logits);
    memcpy(golden.logits, logits.data, logits.size);
    buf_deinit(&logits);
    return golden;
}

/* Which pages a sequence uses: page i of it is (first + i * step) modulo the cache's pages. */
struct paging {
    uint32_t first, step; /* step 0: 1; must not share a factor with the number of pages */
};

static inline void paging_fill(const struct model_info *info, const struct paging *paging,
                               int32_t *pages, uint32_t width)
{
    for (uint32_t i = 0; i < width; i++)
        pages[i] = (int32_t)((paging->first + i * (paging->step == 0 ? 1 : paging->step)) %
                             info->kv_page_count);
}

/* The same in layers with a window, where page i is one of those that a sequence uses in turn. */
static inline void window_paging_fill(const struct model_info *info, const struct paging *paging,
                                      int32_t *pages, uint32_t width)
{
    const uint32_t count = info->kv_window_page_count;
    const uint32_t each = info->kv_window_pages_each < count ? info->kv_window_pages_each : count;

    for (uint32_t i = 0; count > 0 && i < width; i++)
        pages[i] = (int32_t)((paging->first + i % each) % count);
}

static inline int32_t slot_of(const struct model_info *info, const int32_t *pages,
                              uint32_t position)
{
    return pages[position / info->kv_page_size] * (int32_t)info->kv_page_size +
           (int32_t)(position % info->kv_page_size);
}

#define HARNESS_PAGES_MAX 2048

/* Runs ids at positions first ... in chunks; logits_out[count][vocab]. */
static inline void harness_run(struct model *model, const int32_t *ids, uint32_t first,
                               uint32_t count, uint32_t chunk, const struct paging *paging,
                               float *logits_out)
{
    const struct model_info *info = model_info(model);
    int32_t positions[GOLDEN_IDS_MAX], slots[GOLDEN_IDS_MAX], rows[GOLDEN_IDS_MAX];
    int32_t sequences[GOLDEN_IDS_MAX] = { 0 };
    int32_t pages[HARNESS_PAGES_MAX] = { 0 }, window_pages[HARNESS_PAGES_MAX] = { 0 };
    int32_t window_slots[GOLDEN_IDS_MAX];
    struct err err;

    assert_true(info->kv_page_count <= HARNESS_PAGES_MAX);
    paging_fill(info, paging, pages, info->kv_page_count);
    window_paging_fill(info, paging, window_pages, info->kv_page_count);
    for (uint32_t done = 0; done < count; done += chunk) {
        struct model_step step = { .sequence_count = 1, .page_count_max = info->kv_page_count,
                                   .token_ids = ids + done, .positions = positions,
                                   .sequences = sequences, .slots = slots, .pages = pages,
                                   .logits_rows = rows, .window_slots = window_slots,
                                   .window_pages = window_pages };

        step.row_count = count - done < chunk ? count - done : chunk;
        step.logits_row_count = step.row_count;
        for (uint32_t i = 0; i < step.row_count; i++) {
            positions[i] = (int32_t)(first + done + i);
            slots[i] = slot_of(info, pages, first + done + i);
            window_slots[i] = slot_of(info, window_pages, first + done + i);
            rows[i] = (int32_t)i;
        }
        if (model_forward(model, &step, logits_out + (uint64_t)done * info->vocab_size, &err) !=
            STATUS_OK)
            fail_msg("%s", err.message);
    }
}

static inline float *logits_alloc(const struct model *model, uint32_t count)
{
    float *logits = malloc((size_t)count * model_info(model)->vocab_size * sizeof(float));

    assert_non_null(logits);
    return logits;
}

/* Runs ids through the model of a folder, in chunks; logits[count][vocab], which the caller frees.
 * vocab_out: NULL or the vocabulary's size. */
static inline float *harness_logits(const char *folder, const struct setting *setting,
                                    const int32_t *ids, uint32_t count, uint32_t chunk,
                                    uint32_t *vocab_out)
{
    const struct paging paging = { 0, 1 };
    struct loaded loaded = harness_open(folder, setting);
    float *logits = logits_alloc(loaded.model, count);
    struct err err;

    harness_run(loaded.model, ids, 0, count, chunk, &paging, logits);
    if (offload_report_check(model_offload(loaded.model), &err) != STATUS_OK)
        fail_msg("%s: %s", folder, err.message);
    if (vocab_out != NULL)
        *vocab_out = model_info(loaded.model)->vocab_size;
    harness_close(&loaded);
    return logits;
}

/* How far logits are off, of their own length. */
static inline double logits_distance(const float *got, const float *wanted, size_t count)
{
    double off = 0, length = 0;

    for (size_t i = 0; i < count; i++) {
        off += ((double)got[i] - wanted[i]) * ((double)got[i] - wanted[i]);
        length += (double)wanted[i] * wanted[i];
    }
    return sqrt(off / length);
}

/* How many parameters are in the layout. */
static inline size_t harness_count_layout(struct model *model, enum layout layout)
{
    const struct offload *offload = model_offload(model);
    size_t count = 0;

    for (size_t i = 0; i < offload_param_count(offload); i++)
        count += offload_tensor(offload, i)->layout == layout;
    return count;
}

/* All weights anew, from a folder. */
static inline bool harness_update(struct model *model, const char *folder)
{
    struct model_update *fresh = NULL;
    struct err err;
    bool done = model_update_prepare(model, folder, false, &fresh, &err) == STATUS_OK &&
                model_update_commit(fresh, NULL, &err) == STATUS_OK;

    model_update_destroy(fresh);
    return done;
}

static inline int32_t best_of(const float *logits, uint32_t count)
{
    uint32_t best = 0;

    for (uint32_t i = 1; i < count; i++)
        best = logits[i] > logits[best] ? i : best;
    return (int32_t)best;
}

/* -- the demo model on an accelerator ---------------------------------------------------------- */

#define DEMO "models/demo"

enum { DEMO_PROMPT = 12 };

static inline void demo_prompt(int32_t ids[DEMO_PROMPT], int32_t seed)
{
    for (int32_t i = 0; i < DEMO_PROMPT; i++)
        ids[i] = 260 + (seed * 977 + i * i * 31 + i * 7) % 1000;
}

/* Prompt and decoding give the same bits wherever weights can be; budget_bytes is one of the device
 * in which they don't all fit; after_each looks at what is left each time. */
static inline void demo_check_homes(const char *device, uint64_t budget_bytes,
                                    void (*after_each)(const char *after))
{
    const struct setting all[] = {
        { .group_size = 4, .num_in_group = 1 },
        { .group_size = 1, .num_in_group = 1, .params_glob = "*", .prefetch_step = 2 },
        { .cpu_offload_bytes = 1500000 },
        { .group_size = 2, .num_in_group = 1, .home = OFFLOAD_HOME_SHM },
        { .group_size = 2, .num_in_group = 1, .home = OFFLOAD_HOME_SHARDED },
        { .group_size = 2, .num_in_group = 1, .disk = true },
        { .automatic = true, .budget_bytes = budget_bytes },
        { .experts = true, .expert_slot_count = 4 },
        { .experts = true, .expert_slot_count = 5, .disk = true },
    };
    const struct setting plain = { .device = device };
    char cache[TESTING_FOLDER_BYTES];
    int32_t prompt[DEMO_PROMPT];
    uint32_t vocab;
    float *wanted;

    demo_prompt(prompt, 1);
    testing_folder_make(cache, "homes");
    wanted = harness_logits(DEMO, &plain, prompt, DEMO_PROMPT, 5, &vocab);
    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++) {
        struct setting setting = all[i];
        float *got;

        setting.device = device;
        setting.cache_dir = cache;
        got = harness_logits(DEMO, &setting, prompt, DEMO_PROMPT, 5, NULL);
        if (memcmp(got, wanted, (size_t)DEMO_PROMPT * vocab * sizeof(float)) != 0)
            fail_msg("setting %zu: other bits", i);
        free(got);
        after_each("a home");
    }
    free(wanted);
    testing_folder_remove(cache);
}

#endif
