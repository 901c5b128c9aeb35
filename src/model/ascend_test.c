/* model/ascend_test.c - every architecture on an NPU, as far as a stand-in of CANN's libraries goes
 * (tests/cann): the processor's answers within what 16-bit products allow, the same bits whatever
 * the weights' home, first phases that are made once, sglang's three faults put back one at a time,
 * and nothing left behind when CANN fails. */
#include <dlfcn.h>
#include <sys/wait.h>
#include <unistd.h>

#include "model/testing.h"

#define NPU "ascend:0"
#define NPU_ND "ascend:0,layout=nd"

enum { DEMO_GREEDY = 20, DEMO_VOCAB = 1280 };

/* -- the stand-in ------------------------------------------------------------------------------ */

static uint64_t counter(const char *name)
{
    void *symbol = dlsym(RTLD_DEFAULT, "cann_standin_counter");
    uint64_t (*function)(const char *);

    assert_non_null(symbol);
    memcpy(&function, &symbol, sizeof(function));
    return function(name);
}

static void fail_call(const char *name, uint64_t nth)
{
    void *symbol = dlsym(RTLD_DEFAULT, "cann_standin_fail");
    void (*function)(const char *, uint64_t, int);

    assert_non_null(symbol);
    memcpy(&function, &symbol, sizeof(function));
    function(name, nth, 507899); /* ACL_ERROR_RT_DRV_INTERNAL_ERROR */
}

static void nothing_is_left(const char *after)
{
    static const char *const counters[] = { "live_blocks", "live_pinned", "live_streams",
                                            "live_events", "live_tensors", "live_executors",
                                            "faults", "pageable_copies" };

    for (size_t i = 0; i < sizeof(counters) / sizeof(counters[0]); i++)
        if (counter(counters[i]) != 0)
            fail_msg("%s: %s is %llu", after, counters[i],
                     (unsigned long long)counter(counters[i]));
}

/* -- models ------------------------------------------------------------------------------------ */

/* What of x, and of a product, is lost before and in each product: at most 2^-8 to BF16 and 2^-11
 * to F16, a third of that on the average. Of two layers with some eight products behind each other,
 * and norms that spread it, less than twelve such losses arrive. */
static const struct {
    const char *dtype;
    double bound;
} all_dtypes[] = { { "bfloat16", 12 * 0x1p-8 }, { "float16", 12 * 0x1p-11 }, { "float32", 2e-5 } };

/* A router may choose another expert where two are nearly equal; such rows are far off, and those
 * that attend to them somewhat. With 16 bits that is one row in four at most, but for mixtral in
 * BF16, whose router is of two minds more often; without experts, or in 32 bits, none. */
static uint32_t far_rows(const char *name, size_t dtype, uint32_t rows)
{
    const bool has_experts = strstr(name, "deepseek") != NULL || strstr(name, "moe") != NULL ||
                             strstr(name, "mixtral") != NULL;

    if (!has_experts || dtype == 2)
        return 0;
    return dtype == 0 && strcmp(name, "mixtral") == 0 ? rows * 3 / 4 : rows / 4;
}

static void check_rows(const char *name, const float *got, const float *wanted, uint32_t rows,
                       uint32_t vocab, size_t dtype)
{
    uint32_t far = 0;

    for (uint32_t i = 0; i < rows; i++)
        far += !(logits_distance(got + (size_t)i * vocab, wanted + (size_t)i * vocab, vocab) <=
                 all_dtypes[dtype].bound);
    if (far > far_rows(name, dtype, rows))
        fail_msg("%s, %s: %u of %u rows are off by more than %g", name, all_dtypes[dtype].dtype,
                 far, rows, all_dtypes[dtype].bound);
}

static void every_architecture_agrees_with_the_processor(void **state)
{
    static const char *const npus[] = { NPU, NPU_ND };

    (void)state;
    for (size_t i = 0; i < GOLDEN_COUNT * 3; i++) {
        const char *name = golden_names[i / 3];
        struct setting setting = { .device = "cpu", .dtype = all_dtypes[i % 3].dtype };
        struct golden golden = golden_read(name);
        float *wanted, *got[2];
        uint32_t vocab;
        char path[256];

        (void)golden_path(name, path, sizeof(path));
        wanted = harness_logits(path, &setting, golden.prompt, golden.prompt_count, 7, &vocab);
        for (size_t n = 0; n < 2; n++) {
            setting.device = npus[n];
            got[n] = harness_logits(path, &setting, golden.prompt, golden.prompt_count, 7, NULL);
            check_rows(name, got[n], wanted, golden.prompt_count, vocab, i % 3);
        }
        /* a stand-in sums in one order; hardware may not */
        assert_memory_equal(got[0], got[1],
                            (size_t)golden.prompt_count * vocab * sizeof(float));
        free(got[1]);
        free(got[0]);
        free(wanted);
        free(golden.logits);
    }
    nothing_is_left("architectures");
}

/* -- the demo model ---------------------------------------------------------------------------- */

/* The most likely tokens, one after the other. */
static void greedy(const char *device, const int32_t *prompt, int32_t out[DEMO_GREEDY])
{
    const struct setting setting = { .device = device };
    const struct paging paging = { 0, 1 };
    uint32_t position = DEMO_PROMPT, vocab;
    struct loaded loaded;
    float *logits;
    struct err err;

    if (harness_try(DEMO, &setting, NULL, &loaded, &err) != STATUS_OK)
        fail_msg("%s", err.message);
    vocab = model_info(loaded.model)->vocab_size;
    logits = logits_alloc(loaded.model, DEMO_PROMPT);
    harness_run(loaded.model, prompt, 0, DEMO_PROMPT, DEMO_PROMPT, &paging, logits);
    out[0] = best_of(logits + (DEMO_PROMPT - 1) * (size_t)vocab, vocab);
    for (uint32_t i = 1; i < DEMO_GREEDY; i++) {
        harness_run(loaded.model, &out[i - 1], position++, 1, 1, &paging, logits);
        out[i] = best_of(logits, vocab);
    }
    free(logits);
    harness_close(&loaded);
}

static void greedy_texts_are_the_processors(void **state)
{
    (void)state;
    for (int32_t seed = 0; seed < 3; seed++) {
        int32_t prompt[DEMO_PROMPT], wanted[DEMO_GREEDY], got[DEMO_GREEDY];

        demo_prompt(prompt, seed);
        greedy("cpu", prompt, wanted);
        greedy(NPU, prompt, got);
        for (size_t i = 0; i < DEMO_GREEDY; i++)
            if (got[i] != wanted[i])
                fail_msg("prompt %d: token %zu is %d, not %d", seed, i, got[i], wanted[i]);
    }
}

/* Nothing is converted while weights move. */
static void every_home_gives_the_same_bits(void **state)
{
    (void)state;
    demo_check_homes(NPU, 20 << 20, nothing_is_left); /* its workspace takes most of it */
    assert_int_equal(counter("format_casts"), 0);
}

/* Units without contents move like others, and have them after a live update, in their layout. */
static void what_is_in_meta_is_filled_by_an_update(void **state)
{
    static const struct setting all[] = {
        { .device = NPU, .group_size = 2, .num_in_group = 1, .meta = true },
        { .device = NPU, .experts = true, .expert_slot_count = 4, .meta = true },
    };
    const struct setting plain = { .device = NPU };
    const struct paging paging = { 0, 1 };
    int32_t prompt[DEMO_PROMPT];
    uint32_t vocab;
    float *wanted;

    (void)state;
    demo_prompt(prompt, 2);
    wanted = harness_logits(DEMO, &plain, prompt, DEMO_PROMPT, 5, &vocab);
    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++) {
        struct loaded loaded;
        float *got;
        struct err err;

        if (harness_try(DEMO, &all[i], NULL, &loaded, &err) != STATUS_OK)
            fail_msg("%s", err.message);
        got = logits_alloc(loaded.model, DEMO_PROMPT);
        harness_run(loaded.model, prompt, 0, DEMO_PROMPT, 5, &paging, got);
        assert_true(offload_is_garbage(model_offload(loaded.model)));
        assert_true(harness_update(loaded.model, DEMO));
        assert_false(offload_is_garbage(model_offload(loaded.model)));
        harness_run(loaded.model, prompt, 0, DEMO_PROMPT, 5, &paging, got);
        assert_memory_equal(got, wanted, (size_t)DEMO_PROMPT * vocab * sizeof(float));
        free(got);
        harness_close(&loaded);
        nothing_is_left("meta");
    }
    free(wanted);
}

/* What sglang's offloader did to weights on NPUs (sgl-project/sglang, PR 19541), put back. */
enum fault { FAULT_NONE, FAULT_LOADER_LOST, FAULT_META_CAST, FAULT_NOT_CONTIGUOUS, FAULT_COUNT };

/* Whether a model that starts in meta, or on the host, gives the wanted bits once it is loaded. */
static bool works_with(enum fault fault, bool in_meta, const int32_t prompt[DEMO_PROMPT],
                       const float *wanted)
{
    const struct setting setting = { .device = NPU, .group_size = 2, .num_in_group = 1,
                                     .meta = in_meta };
    const struct paging paging = { 0, 1 };
    struct model_options options = harness_options(&setting);
    struct loaded loaded;
    bool works;
    struct err err;

    options.offload.fault_meta_loses_loader = fault == FAULT_LOADER_LOST;
    options.offload.fault_meta_is_cast = fault == FAULT_META_CAST;
    options.offload.fault_skip_contiguous = fault == FAULT_NOT_CONTIGUOUS;
    works = harness_try_with(DEMO, &setting, &options, NULL, &loaded, &err) == STATUS_OK;
    if (works && in_meta)
        works = harness_update(loaded.model, DEMO);
    if (works) {
        const size_t vocab = model_info(loaded.model)->vocab_size;
        float *got = logits_alloc(loaded.model, DEMO_PROMPT);

        harness_run(loaded.model, prompt, 0, DEMO_PROMPT, 5, &paging, got);
        works = memcmp(got, wanted, DEMO_PROMPT * vocab * sizeof(float)) == 0;
        free(got);
    }
    harness_close(&loaded);
    return works;
}

static void each_fault_of_sglangs_shows(void **state)
{
    const struct setting plain = { .device = NPU };
    int32_t prompt[DEMO_PROMPT];
    float *wanted;

    (void)state;
    demo_prompt(prompt, 3);
    wanted = harness_logits(DEMO, &plain, prompt, DEMO_PROMPT, 5, NULL);
    for (enum fault fault = FAULT_NONE; fault < FAULT_COUNT; fault++) {
        const bool in_meta = fault == FAULT_LOADER_LOST || fault == FAULT_META_CAST;

        if (works_with(fault, in_meta, prompt, wanted) != (fault == FAULT_NONE) ||
            !works_with(FAULT_NONE, in_meta, prompt, wanted))
            fail_msg("fault %d", (int)fault);
        nothing_is_left("a fault");
    }
    free(wanted);
}

/* -- executors --------------------------------------------------------------------------------- */

static uint64_t first_phases(void)
{
    static const char *const names[] = { "Add", "InplaceAdd", "Sub", "Mul", "InplaceMuls",
                                         "InplaceCopy", "InplaceFillScalar", "Triu", "Mm",
                                         "BatchMatMul", "MatmulWeightNz", "RmsNorm", "SwiGlu",
                                         "Silu", "Softmax", "IndexSelect", "InplaceIndexCopy" };
    uint64_t count = 0;

    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        char name[64];

        (void)snprintf(name, sizeof(name), "calls:aclnn%sGetWorkspaceSize", names[i]);
        count += counter(name);
    }
    return count;
}

/* A prompt, and DECODED tokens one by one, whose logits are returned. What was counted during the
 * last one: first phases, and second ones. */
enum { DECODED = 6 };
static float *decode(const struct setting *setting, uint64_t *first_out, uint64_t *second_out)
{
    const struct paging paging = { 0, 1 };
    int32_t prompt[DEMO_PROMPT];
    struct loaded loaded;
    float *logits;
    uint32_t vocab;
    struct err err;

    demo_prompt(prompt, 4);
    if (harness_try(DEMO, setting, NULL, &loaded, &err) != STATUS_OK)
        fail_msg("%s", err.message);
    vocab = model_info(loaded.model)->vocab_size;
    logits = logits_alloc(loaded.model, DEMO_PROMPT + DECODED);
    harness_run(loaded.model, prompt, 0, DEMO_PROMPT, DEMO_PROMPT, &paging, logits);
    for (uint32_t i = 0; i < DECODED; i++) {
        float *row = logits + (size_t)(DEMO_PROMPT + i) * vocab;

        *first_out = first_phases();
        *second_out = counter("launches");
        harness_run(loaded.model, &prompt[i], DEMO_PROMPT + i, 1, 1, &paging, row);
        *first_out = first_phases() - *first_out;
        *second_out = counter("launches") - *second_out;
    }
    harness_close(&loaded);
    nothing_is_left("decoding");
    return logits;
}

/* Of a token, only what depends on the sequence's length: two products and a softmax. */
static void first_phases_are_made_once(void **state)
{
    static const char *const failing[] = { "aclSetAclOpExecutorRepeatable", "aclSetTensorAddr" };
    struct setting setting = { .device = NPU, .group_size = 2, .num_in_group = 1,
                               .page_size = 32 };
    const size_t bytes = (size_t)(DEMO_PROMPT + DECODED) * DEMO_VOCAB * sizeof(float);
    uint64_t first, second;
    float *wanted, *got;

    (void)state;
    got = decode(&setting, &first, &second);
    assert_true(second > 200);
    assert_in_range(first, 1, 3);
    setting.device = NPU ",executors=0";
    wanted = decode(&setting, &first, &second);
    assert_int_equal(first, second);
    assert_memory_equal(got, wanted, bytes);
    free(got);
    setting.device = NPU ",executors=4"; /* most are made again and again */
    got = decode(&setting, &first, &second);
    assert_in_range(first, 10, second - 1);
    assert_memory_equal(got, wanted, bytes);
    free(got);
    setting.device = NPU;
    for (size_t i = 0; i < 2; i++) { /* it can be done without */
        fail_call(failing[i], 9);
        got = decode(&setting, &first, &second);
        fail_call(failing[i], 0);
        assert_in_range(first, 1, 20);
        assert_memory_equal(got, wanted, bytes);
        free(got);
    }
    free(wanted);
}

/* Chips without BF16, without FLOAT in the matrix unit, and without the product that reads
 * FRACTAL_NZ. */
static void small_chips_compute_with_f16(void **state)
{
    static const char *const names[] = { "llama_gqa_tied", "deepseek_v3", "qwen3_moe" };
    const struct setting refused = { .device = NPU, .dtype = "bfloat16" };
    struct loaded loaded;
    struct err err;

    const pid_t child = fork(); /* libraries are opened once, with the chip of that moment */
    int status = 0;

    (void)state;
    if (child != 0) {
        assert_int_equal(waitpid(child, &status, 0), child);
        assert_int_equal(status, 0);
        return;
    }
    (void)setenv("CANN_STANDIN_SOC", "Ascend310P3", 1);
    assert_int_equal(harness_try(DEMO, &refused, NULL, &loaded, &err), STATUS_UNAVAILABLE);
    assert_non_null(strstr(err.message, "has no BF16; --dtype float16"));
    harness_close(&loaded);
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        struct setting setting = { .device = "cpu", .dtype = "float16" };
        struct golden golden = golden_read(names[i]);
        float *wanted, *got;
        uint32_t vocab;
        char path[256];

        (void)golden_path(names[i], path, sizeof(path));
        wanted = harness_logits(path, &setting, golden.prompt, golden.prompt_count, 7, &vocab);
        setting.device = NPU;
        got = harness_logits(path, &setting, golden.prompt, golden.prompt_count, 7, NULL);
        check_rows(names[i], got, wanted, golden.prompt_count, vocab, 1);
        free(got);
        free(wanted);
        free(golden.logits);
    }
    nothing_is_left("a small chip");
    _exit(0);
}

/* What needs operators that the installed CANN lacks is refused at the start, by name. */
static void what_lacks_an_operator_is_refused_at_the_start(void **state)
{
    static const struct {
        const char *name, *missing;
    } all[] = {
        { "qwen2_moe", "scaled rows that are added" },
        { "glm4", "scaled rows that are added" },
        { "granite", "scaled rows that are added" },
        { "granite_moe_shared", "scaled rows that are added" },
        { "mistral_window", "attention with a sliding window" },
        { "qwen2_window", "attention with a sliding window" },
    };
    const struct setting setting = { .device = NPU };
    const pid_t child = fork(); /* as above */
    int status = 0;

    (void)state;
    if (child != 0) {
        assert_int_equal(waitpid(child, &status, 0), child);
        assert_int_equal(status, 0);
        return;
    }
    (void)setenv("CANN_STANDIN_WITHOUT", "aclnnSigmoid,aclnnTril", 1);
    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++) {
        struct loaded loaded;
        char path[256];
        struct err err;

        (void)golden_path(all[i].name, path, sizeof(path));
        assert_int_equal(harness_try(path, &setting, NULL, &loaded, &err), STATUS_UNAVAILABLE);
        assert_non_null(strstr(err.message, "it has no operator for"));
        assert_non_null(strstr(err.message, all[i].missing));
        harness_close(&loaded);
    }
    nothing_is_left("a missing operator");
    _exit(0);
}

/* -- failures ---------------------------------------------------------------------------------- */

/* Opens, computes a step, closes. False, with a sentence, when CANN failed. */
static bool scenario(const char *folder, const struct setting *setting, struct err *err)
{
    static const int32_t zero[2], positions[2] = { 0, 1 }, ids[2] = { 3, 5 }, rows[1] = { 1 };
    const struct model_step step = { .row_count = 2, .sequence_count = 1, .logits_row_count = 1,
                                     .page_count_max = 1, .token_ids = ids,
                                     .positions = positions, .sequences = zero,
                                     .slots = positions, .pages = zero, .logits_rows = rows };
    struct loaded loaded;
    enum status st = harness_try(folder, setting, NULL, &loaded, err);
    float *logits;

    if (st == STATUS_OK) {
        logits = logits_alloc(loaded.model, 1);
        st = model_forward(loaded.model, &step, logits, err);
        free(logits);
    }
    harness_close(&loaded);
    return st == STATUS_OK;
}

/* Each function that a step calls fails, the first time and some later time. */
static void a_failure_is_a_sentence_and_leaves_nothing(void **state)
{
    static const char *const names[] = {
        "aclCreateTensor", "aclCreateScalar", "aclnnAdd", "aclnnInplaceAdd", "aclnnSub", "aclnnMul",
        "aclnnInplaceMuls", "aclnnInplaceCopy", "aclnnInplaceFillScalar", "aclnnTriu", "aclnnMm",
        "aclnnBatchMatMul", "aclnnMatmulWeightNz", "aclnnRmsNorm", "aclnnSwiGlu", "aclnnSilu",
        "aclnnSoftmax", "aclnnIndexSelect", "aclnnInplaceIndexCopy", "aclrtMemcpyAsync",
        "aclrtMalloc",
    };
    const struct setting setting = { .device = NPU, .group_size = 1, .num_in_group = 1,
                                     .params_glob = "*", .page_size = 4 };
    char path[256];
    struct err err;

    (void)state;
    (void)golden_path("deepseek_v3", path, sizeof(path));
    assert_true(scenario(path, &setting, &err));
    for (size_t i = 0; i < 2 * sizeof(names) / sizeof(names[0]); i++) {
        for (uint64_t nth = 1; nth <= 9; nth += 4) {
            char name[64];

            (void)snprintf(name, sizeof(name), "%s%s", names[i / 2],
                           i % 2 == 0 ? "" : "GetWorkspaceSize");
            if (i % 2 != 0 && strncmp(name, "aclnn", 5) != 0)
                continue;
            fail_call(name, nth);
            if (scenario(path, &setting, &err) && nth == 1)
                fail_msg("%s failed, and nobody saw it", name);
            fail_call(name, 0);
            nothing_is_left(name);
        }
    }
    assert_true(scenario(path, &setting, &err));
    (void)golden_path("qwen2_moe", path, sizeof(path)); /* scales rows by sigmoids */
    fail_call("aclnnSigmoid", 2);
    assert_false(scenario(path, &setting, &err));
    fail_call("aclnnSigmoid", 0);
    nothing_is_left("failures");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(small_chips_compute_with_f16), /* before the libraries are opened */
        cmocka_unit_test(what_lacks_an_operator_is_refused_at_the_start),
        cmocka_unit_test(every_architecture_agrees_with_the_processor),
        cmocka_unit_test(greedy_texts_are_the_processors),
        cmocka_unit_test(every_home_gives_the_same_bits),
        cmocka_unit_test(what_is_in_meta_is_filled_by_an_update),
        cmocka_unit_test(each_fault_of_sglangs_shows),
        cmocka_unit_test(first_phases_are_made_once),
        cmocka_unit_test(a_failure_is_a_sentence_and_leaves_nothing),
    };

    (void)setenv("CANN_STANDIN_DELAY_US", "0", 0);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
