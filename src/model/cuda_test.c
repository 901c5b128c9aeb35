/* model/cuda_test.c - every architecture on a GPU, as far as the same kernels on the processor go
 * (tests/cuda): the processor's answers to F32's accuracy, the same bits whatever the weights' home
 * and however a prompt is cut, and nothing left behind when CUDA fails. */
#include "device/cuda/testing.h"
#include "model/testing.h"

#define GPU "cuda:0"

static void nothing_is_left(const char *after)
{
    static const char *const counters[] = { "live_blocks", "live_pinned", "live_streams",
                                            "live_events", "live_peers", "live_graphs",
                                            "pageable_in" };

    for (size_t i = 0; i < sizeof(counters) / sizeof(counters[0]); i++)
        if (standin_counter(counters[i]) != 0)
            fail_msg("%s: %s is %llu", after, counters[i],
                     (unsigned long long)standin_counter(counters[i]));
}

/* -- models ------------------------------------------------------------------------------------ */

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
        wanted = harness_logits(path, &setting, golden.prompt, golden.prompt_count, 32, &vocab);
        setting.device = GPU;
        got = harness_logits(path, &setting, golden.prompt, golden.prompt_count, 32, NULL);
        chunked = harness_logits(path, &setting, golden.prompt, golden.prompt_count, 5, NULL);
        count = (size_t)golden.prompt_count * vocab;
        if (!(logits_distance(got, wanted, count) <= BOUND))
            fail_msg("%s, %s: logits are off by %g of their length", name, setting.dtype,
                     logits_distance(got, wanted, count));
        if (memcmp(got, chunked, count * sizeof(float)) != 0)
            fail_msg("%s, %s: other bits when the prompt is cut", name, setting.dtype);
        free(chunked);
        free(got);
        free(wanted);
        free(golden.logits);
        nothing_is_left(name);
    }
}

/* Packed types: E4M3 is as exact on both. Where x is rounded to 8 bits a last bit of it may be
 * rounded the other way, which is 2^-8 of a block's largest element, in a few of many. */
#define BOUND_INTEGERS 1e-2

static void packed_checkpoints_agree_too(void **state)
{
    static const struct {
        const char *name;
        double bound;
    } cases[] = {
        { "qwen3_fp8", BOUND },       { "deepseek_v3_fp8", BOUND }, { "llama_fp8_channel", BOUND },
        { "llama_awq", BOUND_INTEGERS }, { "deepseek_v3_awq", BOUND_INTEGERS },
        { "llama_w8a8", BOUND_INTEGERS },
    };

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct setting setting = { .device = "cpu" };
        struct golden golden;
        char path[256], name[128];
        float *wanted, *got, *moved;
        uint32_t vocab;
        size_t count;
        double off;

        (void)snprintf(path, sizeof(path), "tests/golden/packed/%s", cases[i].name);
        (void)snprintf(name, sizeof(name), "../packed/%s", cases[i].name);
        golden = golden_read(name);
        wanted = harness_logits(path, &setting, golden.prompt, golden.prompt_count, 32, &vocab);
        setting.device = GPU;
        got = harness_logits(path, &setting, golden.prompt, golden.prompt_count, 40, NULL);
        setting.group_size = setting.num_in_group = 1;
        moved = harness_logits(path, &setting, golden.prompt, golden.prompt_count, 5, NULL);
        count = (size_t)golden.prompt_count * vocab;
        off = logits_distance(got, wanted, count);
        if (!(off <= cases[i].bound))
            fail_msg("%s: logits are off by %g of their length", cases[i].name, off);
        if (memcmp(got, moved, count * sizeof(float)) != 0)
            fail_msg("%s: other bits when weights move and the prompt is cut", cases[i].name);
        free(moved);
        free(got);
        free(wanted);
        free(golden.logits);
        nothing_is_left(name);
    }
}

static void every_home_gives_the_same_bits(void **state)
{
    (void)state;
    demo_check_homes(GPU, 5 << 20, nothing_is_left);
}

/* -- graphs ------------------------------------------------------------------------------------ */

static float *demo_logits(const struct setting *setting, uint32_t chunk)
{
    int32_t prompt[DEMO_PROMPT];

    demo_prompt(prompt, 1);
    return harness_logits(DEMO, setting, prompt, DEMO_PROMPT, chunk, NULL);
}

static size_t demo_logits_bytes(void)
{
    const struct setting setting = { .device = "cpu" };
    struct loaded loaded = harness_open(DEMO, &setting);
    const size_t bytes = sizeof(float) * DEMO_PROMPT * model_info(loaded.model)->vocab_size;

    harness_close(&loaded);
    return bytes;
}

/* One token at a time, most of what is queued comes again, also in slots that take turns. */
static void graphs_change_no_bit(void **state)
{
    const struct setting all[] = {
        { .device = GPU },
        { .device = GPU, .group_size = 1, .num_in_group = 1, .params_glob = "*",
          .prefetch_step = 2 },
        { .device = GPU, .experts = true, .expert_slot_count = 4 },
    };
    const struct setting without = { .device = GPU ",graphs=off" };
    const size_t bytes = demo_logits_bytes();
    const uint64_t before = standin_counter("graph_launches");
    float *wanted = demo_logits(&without, 5);

    (void)state;
    assert_int_equal(standin_counter("graph_launches"), before);
    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++) {
        const uint64_t launches = standin_counter("graph_launches");
        float *got = demo_logits(&all[i], 1);

        if (memcmp((const void *)got, (const void *)wanted, bytes) != 0)
            fail_msg("setting %zu gives other bits", i);
        if (standin_is_there() && standin_counter("graph_launches") == launches)
            fail_msg("setting %zu has launched no graph", i);
        free(got);
        nothing_is_left("graphs");
    }
    free(wanted);
}

static void count_warnings(void *user, enum log_level level, const char *line)
{
    if (level == LOG_WARN && strstr(line, "one by one from now on") != NULL)
        ++*(uint32_t *)user;
}

/* As demo_logits; says how often it was warned that nothing is captured. */
static float *demo_logits_warned(const struct setting *setting, uint32_t chunk, uint32_t *warnings)
{
    const struct paging paging = { 0, 1 };
    const struct log log = { .write = count_warnings, .user = warnings };
    int32_t prompt[DEMO_PROMPT];
    struct loaded loaded;
    struct err err;
    float *logits;

    demo_prompt(prompt, 1);
    if (harness_try(DEMO, setting, &log, &loaded, &err) != STATUS_OK)
        fail_msg("%s", err.message);
    logits = logits_alloc(loaded.model, DEMO_PROMPT);
    harness_run(loaded.model, prompt, 0, DEMO_PROMPT, chunk, &paging, logits);
    harness_close(&loaded);
    return logits;
}

static void without_captures_operators_are_launched(void **state)
{
    static const char *const functions[] = { "cudaStreamBeginCapture", "cudaStreamEndCapture",
                                             "cudaGraphInstantiateWithFlags" };
    const struct setting setting = { .device = GPU };
    const size_t bytes = demo_logits_bytes();
    float *wanted = demo_logits(&setting, 5);

    (void)state;
    for (size_t i = 0; standin_is_there() && i < sizeof(functions) / sizeof(functions[0]); i++) {
        const uint64_t launches = standin_counter("graph_launches");
        uint32_t warnings = 0;
        float *got;

        (void)standin_fail(functions[i], 1, CUDA_ERROR_ILLEGAL_ADDRESS);
        got = demo_logits_warned(&setting, 1, &warnings);
        (void)standin_fail(functions[i], 0, CUDA_ERROR_ILLEGAL_ADDRESS);
        assert_int_equal(warnings, 1);
        if (memcmp((const void *)got, (const void *)wanted, bytes) != 0)
            fail_msg("other bits after %s has failed", functions[i]);
        assert_int_equal(standin_counter("graph_launches"), launches);
        free(got);
        nothing_is_left(functions[i]);
    }
    free(wanted);
}

/* -- failures ---------------------------------------------------------------------------------- */

/* Opens the model and computes the same step some times; says how that went. */
static enum status open_and_compute(const struct setting *setting, uint32_t step_count,
                                    struct err *err)
{
    const struct paging paging = { 0, 1 };
    const int32_t id = 300, position = 0, sequence = 0, row = 0;
    int32_t pages[HARNESS_PAGES_MAX] = { 0 };
    struct loaded loaded;
    enum status st = harness_try(DEMO, setting, NULL, &loaded, err);

    if (st == STATUS_OK) {
        const struct model_info *info = model_info(loaded.model);
        const struct model_step step = { .row_count = 1, .sequence_count = 1,
                                         .page_count_max = info->kv_page_count,
                                         .logits_row_count = 1, .token_ids = &id,
                                         .positions = &position, .sequences = &sequence,
                                         .slots = &row, .pages = pages, .logits_rows = &row };
        float *logits = logits_alloc(loaded.model, 1);

        paging_fill(info, &paging, pages, info->kv_page_count);
        for (uint32_t i = 0; st == STATUS_OK && i < step_count; i++)
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
        "cudaStreamSynchronize", "cudaGraphLaunch",
    };
    const struct setting setting = { .device = GPU, .group_size = 2, .num_in_group = 1 };

    (void)state;
    if (!standin_fail("cudaMalloc", 0, CUDA_ERROR_ILLEGAL_ADDRESS))
        skip(); /* a GPU does not fail on purpose */
    for (size_t i = 0; i < sizeof(functions) / sizeof(functions[0]); i++) {
        const uint32_t step_count = strcmp(functions[i], "cudaGraphLaunch") == 0 ? 3 : 1;
        uint32_t failures = 0;

        for (uint64_t nth = 1; nth < 200; nth = nth * 2 + 1) {
            struct err err = { .message = "" };

            (void)standin_fail(functions[i], nth, CUDA_ERROR_ILLEGAL_ADDRESS);
            if (open_and_compute(&setting, step_count, &err) != STATUS_OK) {
                failures++;
                if (strstr(err.message, "cudaErrorIllegalAddress") == NULL)
                    fail_msg("%s, call %u: \"%s\"", functions[i], (unsigned)nth, err.message);
            }
            (void)standin_fail(functions[i], 0, CUDA_ERROR_ILLEGAL_ADDRESS);
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
        cmocka_unit_test(packed_checkpoints_agree_too),
        cmocka_unit_test(every_home_gives_the_same_bits),
        cmocka_unit_test(graphs_change_no_bit),
        cmocka_unit_test(without_captures_operators_are_launched),
        cmocka_unit_test(a_call_that_fails_is_told_and_leaves_nothing),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
