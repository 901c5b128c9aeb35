/* model/cuda_test.c - every architecture on a GPU, as far as the same kernels on the processor go
 * (tests/cuda): the processor's answers to F32's accuracy, the same bits whatever the weights' home
 * and however a prompt is cut, and nothing left behind when CUDA fails. */
#include <dlfcn.h>
#include <ftw.h>
#include <unistd.h>

#include "model/testing.h"

#define GPU "cuda:0"
#define DEMO "models/demo"
#define CUDA_ERROR_ILLEGAL_ADDRESS 700

enum { DEMO_PROMPT = 12 };

/* -- the stand-in ------------------------------------------------------------------------------ */

/* BUILD/tests/cuda of BUILD/tests/model/cuda_test. */
static const char *module_folder(void)
{
    static char folder[4096];
    const ssize_t size = readlink("/proc/self/exe", folder, sizeof(folder) - 32);
    char *end;

    assert_true(size > 0);
    folder[size] = '\0';
    end = strstr(folder, "/tests/model/");
    assert_non_null(end);
    (void)snprintf(end, 32, "/tests/cuda");
    return folder;
}

/* A function of the stand-in's own, which is opened already or will be; false where a GPU's own
 * module has been put in its place. */
static bool find(const char *name, void *function_out)
{
    char path[4200];
    void *module, *symbol;

    (void)snprintf(path, sizeof(path), "%s/lighter_cuda.so", module_folder());
    module = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    assert_non_null(module);
    symbol = dlsym(module, name);
    memcpy(function_out, &symbol, sizeof(symbol));
    return symbol != NULL;
}

static uint64_t counter(const char *name)
{
    uint64_t (*function)(const char *);

    return find("cuda_standin_counter", &function) ? function(name) : 0;
}

static bool fail_call(const char *name, uint64_t nth)
{
    void (*function)(const char *, uint64_t, int);

    if (!find("cuda_standin_fail", &function))
        return false;
    function(name, nth, CUDA_ERROR_ILLEGAL_ADDRESS);
    return true;
}

static void nothing_is_left(const char *after)
{
    static const char *const counters[] = { "live_blocks", "live_pinned", "live_streams",
                                            "live_events", "live_peers", "pageable_in" };

    for (size_t i = 0; i < sizeof(counters) / sizeof(counters[0]); i++)
        if (counter(counters[i]) != 0)
            fail_msg("%s: %s is %llu", after, counters[i],
                     (unsigned long long)counter(counters[i]));
}

/* -- models ------------------------------------------------------------------------------------ */

static enum status try_open(const char *folder, const struct setting *setting,
                            const char *cache_dir, struct loaded *loaded, struct err *err)
{
    const struct device_options device = { .thread_count = 1, .library_path = module_folder(),
                                           .memory_budget_bytes = setting->budget_bytes };
    struct model_options options = harness_options(setting);
    enum status st;

    memset(loaded, 0, sizeof(*loaded));
    options.offload.cache_dir = cache_dir;
    st = device_open(setting->device, &device, &loaded->device, err);
    if (st == STATUS_OK)
        st = ckpt_open(folder, &loaded->ckpt, err);
    if (st == STATUS_OK)
        st = model_create(loaded->device, loaded->ckpt, &options, NULL, NULL, &loaded->model, err);
    return st;
}

static float *run(const char *folder, const struct setting *setting, const char *cache_dir,
                  const int32_t *ids, uint32_t count, uint32_t chunk, uint32_t *vocab_out)
{
    const struct paging paging = { 0, 1 };
    struct loaded loaded;
    float *logits;
    struct err err;

    if (try_open(folder, setting, cache_dir, &loaded, &err) != STATUS_OK)
        fail_msg("%s on %s: %s", folder, setting->device, err.message);
    logits = logits_alloc(loaded.model, count);
    harness_run(loaded.model, ids, 0, count, chunk, &paging, logits);
    if (offload_report_check(model_offload(loaded.model), &err) != STATUS_OK)
        fail_msg("%s on %s: %s", folder, setting->device, err.message);
    if (vocab_out != NULL)
        *vocab_out = model_info(loaded.model)->vocab_size;
    harness_close(&loaded);
    return logits;
}

/* How far logits are off, of their own length. */
static double distance(const float *got, const float *wanted, size_t count)
{
    double off = 0, length = 0;

    for (size_t i = 0; i < count; i++) {
        off += ((double)got[i] - wanted[i]) * ((double)got[i] - wanted[i]);
        length += (double)wanted[i] * wanted[i];
    }
    return sqrt(off / length);
}

/* Both compute in F32 with exact weights, whatever their type: what differs is the order of sums,
 * some 2^-24 each, over two layers with some eight products behind each other. */
#define BOUND 2e-5

static void every_architecture_agrees_with_the_processor(void **state)
{
    static const char *const dtypes[] = { "bfloat16", "float16", "float32" };

    (void)state;
    for (size_t i = 0; i < GOLDEN_COUNT; i++) {
        const char *name = golden_names[i];
        struct setting setting = { .device = "cpu", .dtype = dtypes[i % 3] };
        struct golden golden = golden_read(name);
        float *wanted, *got, *chunked;
        uint32_t vocab;
        size_t count;
        char path[256];

        (void)golden_path(name, path, sizeof(path));
        wanted = run(path, &setting, NULL, golden.prompt, golden.prompt_count, 32, &vocab);
        setting.device = GPU;
        got = run(path, &setting, NULL, golden.prompt, golden.prompt_count, 32, NULL);
        chunked = run(path, &setting, NULL, golden.prompt, golden.prompt_count, 5, NULL);
        count = (size_t)golden.prompt_count * vocab;
        if (!(distance(got, wanted, count) <= BOUND))
            fail_msg("%s, %s: logits are off by %g of their length", name, setting.dtype,
                     distance(got, wanted, count));
        if (memcmp(got, chunked, count * sizeof(float)) != 0)
            fail_msg("%s, %s: other bits when the prompt is cut", name, setting.dtype);
        free(chunked);
        free(got);
        free(wanted);
        free(golden.logits);
        nothing_is_left(name);
    }
}

/* -- the demo model ---------------------------------------------------------------------------- */

/* A folder for cache files. */
static void cache_make(char path[32])
{
    (void)snprintf(path, 32, "/tmp/lighter_cuda_XXXXXX");
    assert_non_null(mkdtemp(path));
}

static int remove_one(const char *path, const struct stat *status, int type, struct FTW *place)
{
    (void)status;
    (void)type;
    (void)place;
    return remove(path);
}

static void cache_remove(const char *path)
{
    assert_int_equal(nftw(path, remove_one, 8, FTW_DEPTH | FTW_PHYS), 0);
}

static void demo_prompt(int32_t ids[DEMO_PROMPT], int32_t seed)
{
    for (int32_t i = 0; i < DEMO_PROMPT; i++)
        ids[i] = 260 + (seed * 977 + i * i * 31 + i * 7) % 1000;
}

/* Prompt and decoding, weights everywhere they can be. */
static void every_home_gives_the_same_bits(void **state)
{
    static const struct setting all[] = {
        { .device = GPU, .group_size = 4, .num_in_group = 1 },
        { .device = GPU, .group_size = 1, .num_in_group = 1, .params_glob = "*",
          .prefetch_step = 2 },
        { .device = GPU, .cpu_offload_bytes = 1500000 },
        { .device = GPU, .group_size = 2, .num_in_group = 1, .home = OFFLOAD_HOME_SHM },
        { .device = GPU, .group_size = 2, .num_in_group = 1, .home = OFFLOAD_HOME_SHARDED },
        { .device = GPU, .group_size = 2, .num_in_group = 1, .disk = true },
        { .device = GPU, .automatic = true, .budget_bytes = 5 << 20 },
        { .device = GPU, .experts = true, .expert_slot_count = 4 },
        { .device = GPU, .experts = true, .expert_slot_count = 5, .disk = true },
    };
    const struct setting plain = { .device = GPU };
    int32_t prompt[DEMO_PROMPT];
    uint32_t vocab;
    float *wanted;
    char cache[32];

    (void)state;
    demo_prompt(prompt, 1);
    cache_make(cache);
    wanted = run(DEMO, &plain, cache, prompt, DEMO_PROMPT, 5, &vocab);
    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++) {
        float *got = run(DEMO, &all[i], cache, prompt, DEMO_PROMPT, 5, NULL);

        if (memcmp(got, wanted, (size_t)DEMO_PROMPT * vocab * sizeof(float)) != 0)
            fail_msg("setting %zu: other bits", i);
        free(got);
        nothing_is_left("a home");
    }
    free(wanted);
    cache_remove(cache);
}

/* -- failures ---------------------------------------------------------------------------------- */

/* Opens the model and computes one step; says how that went. */
static enum status open_and_compute(const struct setting *setting, struct err *err)
{
    const struct paging paging = { 0, 1 };
    const int32_t id = 300, position = 0, sequence = 0, row = 0;
    int32_t pages[HARNESS_PAGES_MAX] = { 0 };
    struct loaded loaded;
    enum status st = try_open(DEMO, setting, NULL, &loaded, err);

    if (st == STATUS_OK) {
        const struct model_info *info = model_info(loaded.model);
        const struct model_step step = { .row_count = 1, .sequence_count = 1,
                                         .page_count_max = info->kv_page_count,
                                         .logits_row_count = 1, .token_ids = &id,
                                         .positions = &position, .sequences = &sequence,
                                         .slots = &row, .pages = pages, .logits_rows = &row };
        float *logits = logits_alloc(loaded.model, 1);

        paging_fill(info, &paging, pages, info->kv_page_count);
        st = model_forward(loaded.model, &step, logits, err);
        free(logits);
    }
    harness_close(&loaded);
    return st;
}

static void a_call_that_fails_is_told_and_leaves_nothing(void **state)
{
    static const char *const functions[] = {
        "cudaMalloc", "cudaHostRegister", "cudaStreamCreateWithFlags", "cudaEventCreateWithFlags",
        "cudaEventRecord", "cudaStreamWaitEvent", "cudaMemcpyAsync", "launch",
        "cudaStreamSynchronize",
    };
    const struct setting setting = { .device = GPU, .group_size = 2, .num_in_group = 1 };

    (void)state;
    if (!fail_call("cudaMalloc", 0))
        skip(); /* a GPU does not fail on purpose */
    for (size_t i = 0; i < sizeof(functions) / sizeof(functions[0]); i++) {
        uint32_t failures = 0;

        for (uint64_t nth = 1; nth < 200; nth = nth * 2 + 1) {
            struct err err = { .message = "" };

            (void)fail_call(functions[i], nth);
            if (open_and_compute(&setting, &err) != STATUS_OK) {
                failures++;
                if (strstr(err.message, "cudaErrorIllegalAddress") == NULL)
                    fail_msg("%s, call %u: \"%s\"", functions[i], (unsigned)nth, err.message);
            }
            (void)fail_call(functions[i], 0);
            nothing_is_left(functions[i]);
        }
        if (failures == 0)
            fail_msg("%s never failed", functions[i]);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_architecture_agrees_with_the_processor),
        cmocka_unit_test(every_home_gives_the_same_bits),
        cmocka_unit_test(a_call_that_fails_is_told_and_leaves_nothing),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
