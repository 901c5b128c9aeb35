/* device/ascend/ascend_test.c - the Ascend device on the stand-in of CANN's libraries (tests/cann):
 * what it does where CANN lacks something, when CANN fails, and what it leaves behind.
 *
 * Method: one scenario uses everything but operators: memory, pinned and other host memory, streams
 * that chase each other, events, shared memory. It runs as it is, on an old release, and with each
 * call of each function failing once; the stand-in counts what is left. Tests that need other
 * libraries than this process has opened run in a child. Operators have op_test.c. */
#include "device/test_harness.h"

#include <dlfcn.h>
#include <pthread.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/size.h"
#include "device/ascend/internal.h"

#define HANG_SECONDS 120
#define COPY_BYTES (5 * MIB) /* more than half of the pinned buffer for other memory */
#define FAILING_CODE 507899  /* ACL_ERROR_RT_DRV_INTERNAL_ERROR */

/* ---- the stand-in ---- */

static void *stand_in(const char *name)
{
    void *symbol = dlsym(RTLD_DEFAULT, name);

    if (symbol == NULL)
        fail_msg("%s: this is not the stand-in", name);
    return symbol;
}

static uint64_t counter(const char *name)
{
    uint64_t (*function)(const char *);
    void *symbol = stand_in("cann_standin_counter");

    memcpy(&function, &symbol, sizeof(function));
    return function(name);
}

static void fail_call(const char *name, uint64_t nth)
{
    void (*function)(const char *, uint64_t, int);
    void *symbol = stand_in("cann_standin_fail");

    memcpy(&function, &symbol, sizeof(function));
    function(name, nth, FAILING_CODE);
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

/* ---- the scenario ---- */

struct scene {
    struct device *device;
    struct stream *compute, *copies;
    struct event *filled, *copied;
    void *memory, *shared, *pinned;
    uint8_t *pageable;
    bool is_registered;
    struct device_handle handle;
};

static enum status scene_open(struct scene *scene, struct err *err)
{
    const struct device_options options = { .thread_count = 1 };
    enum status st;

    memset(scene, 0, sizeof(*scene));
    scene->pageable = calloc(1, COPY_BYTES);
    assert_non_null(scene->pageable);
    st = harness_device_open("ascend:0", options, &scene->device, err);
    if (st == STATUS_OK)
        st = stream_create(scene->device, STREAM_COMPUTE, &scene->compute, err);
    if (st == STATUS_OK)
        st = stream_create(scene->device, STREAM_COPY, &scene->copies, err);
    if (st == STATUS_OK)
        st = event_create(scene->device, &scene->filled, err);
    if (st == STATUS_OK)
        st = event_create(scene->device, &scene->copied, err);
    if (st == STATUS_OK)
        st = device_alloc(scene->device, DEVICE_USE_SLOTS, COPY_BYTES, &scene->memory, err);
    if (st == STATUS_OK)
        st = device_host_alloc(scene->device, COPY_BYTES, &scene->pinned, err);
    if (st == STATUS_OK)
        st = device_host_register(scene->device, scene->pageable, COPY_BYTES, err);
    scene->is_registered = st == STATUS_OK;
    return st;
}

static void scene_close(struct scene *scene)
{
    stream_destroy(scene->compute);
    stream_destroy(scene->copies);
    event_destroy(scene->filled);
    event_destroy(scene->copied);
    if (scene->device != NULL) {
        device_free(scene->device, DEVICE_USE_SLOTS, scene->memory, COPY_BYTES);
        device_shared_free(scene->device, DEVICE_USE_WEIGHTS, scene->shared, 3 * MIB);
        device_host_free(scene->device, scene->pinned, COPY_BYTES);
        if (scene->is_registered)
            device_host_unregister(scene->device, scene->pageable, COPY_BYTES);
    }
    device_close(scene->device);
    free(scene->pageable);
}

/* Fills on one stream, copies out on the other, and back in from there. */
static enum status scene_round(struct scene *scene, uint8_t value, struct err *err)
{
    uint8_t *other = (uint8_t *)malloc(COPY_BYTES); /* not even registered */
    enum status st = stream_wait(scene->compute, scene->copied, err);

    assert_non_null(other);
    if (st == STATUS_OK)
        st = device_fill(scene->compute, scene->memory, value, COPY_BYTES, err);
    if (st == STATUS_OK)
        st = event_record(scene->compute, scene->filled, err);
    if (st == STATUS_OK)
        st = stream_wait(scene->copies, scene->filled, err);
    if (st == STATUS_OK)
        st = device_copy_out(scene->copies, scene->pinned, scene->memory, COPY_BYTES, err);
    if (st == STATUS_OK)
        st = device_copy_out(scene->copies, scene->pageable, scene->memory, COPY_BYTES, err);
    if (st == STATUS_OK)
        st = device_copy_in(scene->copies, scene->memory, scene->pageable, COPY_BYTES, err);
    if (st == STATUS_OK)
        st = device_copy_out(scene->copies, other, scene->memory, COPY_BYTES, err);
    if (st == STATUS_OK)
        st = device_copy_in(scene->copies, scene->memory, other, COPY_BYTES, err);
    if (st == STATUS_OK)
        st = event_record(scene->copies, scene->copied, err);
    if (st == STATUS_OK)
        st = event_sync(scene->copied, err);
    if (st == STATUS_OK)
        st = stream_sync(scene->copies, err);
    for (size_t i = 0; st == STATUS_OK && i < COPY_BYTES; i += 511) {
        assert_int_equal(((const uint8_t *)scene->pinned)[i], value);
        assert_int_equal(scene->pageable[i], value);
        assert_int_equal(other[i], value);
    }
    free(other);
    return st;
}

static enum status scene_play(struct scene *scene, struct err *err)
{
    enum status st = scene_round(scene, 0x11, err);

    if (st == STATUS_OK)
        st = scene_round(scene, 0x22, err);
    if (st == STATUS_OK) {
        assert_true(event_is_done(scene->filled) && event_is_done(scene->copied));
        assert_true(event_time_ns(scene->filled) <= event_time_ns(scene->copied));
        assert_true(event_time_ns(scene->copied) <= clock_now_ns());
        st = device_shared_alloc(scene->device, DEVICE_USE_WEIGHTS, 3 * MIB, &scene->shared,
                                 &scene->handle, err);
    }
    if (st == STATUS_OK)
        st = device_copy_peer(scene->copies, scene->memory, scene->shared, 1 * MIB, err);
    return st == STATUS_OK ? stream_sync(scene->copies, err) : st;
}

/* ---- tests ---- */

static void it_is_what_it_says(void **state)
{
    const struct device_options options = { .thread_count = 1 };
    struct device *device;
    struct err err;

    (void)state;
    must(harness_device_open("npu:1", options, &device, &err), &err);
    assert_string_equal(device_info(device)->name, "ascend:1");
    assert_non_null(strstr(device_info(device)->description, "Ascend910B4"));
    assert_non_null(strstr(device_info(device)->description, "4.00 GiB"));
    assert_false(device_info(device)->memory_is_host);
    assert_true(device_info(device)->memory_bytes < 4 * GIB);
    assert_true(device_info(device)->memory_bytes > 4 * GIB - 128 * MIB);
    device_close(device);
    assert_int_equal(harness_device_open("ascend:7", options, &device, &err), STATUS_UNAVAILABLE);
    assert_non_null(strstr(err.message, "this machine has 2 NPUs"));
    nothing_is_left("opening");
}

static void everything_works_and_nothing_is_left(void **state)
{
    struct scene scene;
    struct err err;

    (void)state;
    must(scene_open(&scene, &err), &err);
    must(scene_play(&scene, &err), &err);
    scene_close(&scene);
    nothing_is_left("the scenario");
}

/* The n-th call of a function fails, for every n until nothing fails any more. */
static void check_failing(const char *function)
{
    char wanted[64];

    (void)snprintf(wanted, sizeof(wanted), "%s", function);
    for (uint64_t nth = 1; nth < 100; nth++) {
        struct err err = { .status = STATUS_OK, .message = "" };
        struct scene scene;
        enum status st;
        uint64_t calls_before = counter("calls");

        fail_call(function, nth);
        st = scene_open(&scene, &err);
        if (st == STATUS_OK)
            st = scene_play(&scene, &err);
        fail_call(function, 0);
        assert_true(counter("calls") > calls_before);
        scene_close(&scene);
        nothing_is_left(function);
        if (st == STATUS_OK)
            return; /* it was not called so often, or what it did can be done without */
        if (strstr(err.message, "507899 ACL_ERROR_RT_DRV_INTERNAL_ERROR") == NULL ||
            strstr(err.message, "the runtime says: ") == NULL || strchr(err.message, '\n') != NULL)
            fail_msg("%s, call %llu: \"%s\"", function, (unsigned long long)nth, err.message);
    }
    fail_msg("%s fails for ever", function);
}

static void each_failure_is_a_sentence_and_leaves_nothing(void **state)
{
    static const char *const functions[] = {
        "aclrtGetDeviceCount", "aclrtSetDevice", "aclrtGetMemInfo", "aclrtMalloc",
        "aclrtMallocHost", "aclrtHostRegisterV2", "aclrtMemcpyAsync", "aclrtMemsetAsync",
        "aclrtCreateStreamWithConfig", "aclrtSynchronizeStream", "aclrtStreamWaitEvent",
        "aclrtCreateEventExWithFlag", "aclrtRecordEvent", "aclrtSynchronizeEvent",
        "aclrtIpcMemGetExportKey",
    };

    (void)state;
    for (size_t i = 0; i < sizeof(functions) / sizeof(functions[0]); i++)
        check_failing(functions[i]);
}

/* What answers nothing that matters may fail without anybody noticing. */
static void some_failures_do_not_matter(void **state)
{
    static const char *const functions[] = { "aclrtGetSocName", "aclrtQueryEventStatus",
                                             "aclrtSynchronizeDevice" };

    (void)state;
    for (size_t i = 0; i < sizeof(functions) / sizeof(functions[0]); i++) {
        struct scene scene;
        struct err err;

        fail_call(functions[i], 1);
        must(scene_open(&scene, &err), &err);
        must(scene_play(&scene, &err), &err);
        scene_close(&scene);
        fail_call(functions[i], 0);
        nothing_is_left(functions[i]);
    }
}

static void a_streams_error_stays(void **state)
{
    struct scene scene;
    struct err err, again;

    (void)state;
    must(scene_open(&scene, &err), &err);
    fail_call("aclrtMemsetAsync", 1);
    assert_int_equal(device_fill(scene.compute, scene.memory, 1, 100, &err), STATUS_DEVICE);
    fail_call("aclrtMemsetAsync", 0);
    assert_int_equal(device_fill(scene.compute, scene.memory, 1, 100, &again), STATUS_DEVICE);
    assert_string_equal(again.message, err.message);
    must(event_record(scene.compute, scene.filled, &err), &err); /* nobody hangs */
    must(stream_wait(scene.copies, scene.filled, &err), &err);
    assert_true(event_is_done(scene.filled));
    assert_int_equal(event_sync(scene.filled, &err), STATUS_DEVICE);
    assert_int_equal(stream_sync(scene.compute, &err), STATUS_DEVICE);
    must(stream_sync(scene.copies, &err), &err); /* the other stream is not touched */
    scene_close(&scene);
    nothing_is_left("a stream's error");
}

static void memory_that_is_used_up_is_a_sentence(void **state)
{
    struct scene scene;
    struct err err;
    void *memory, *more;
    uint64_t all_bytes;

    (void)state;
    must(scene_open(&scene, &err), &err);
    all_bytes = device_info(scene.device)->memory_bytes - COPY_BYTES;
    assert_int_equal(device_alloc(scene.device, DEVICE_USE_KV, all_bytes + 1, &memory, &err),
                     STATUS_NO_MEMORY);
    assert_non_null(strstr(err.message, "budget"));
    fail_call("aclrtMalloc", 1); /* as when somebody else has taken it */
    assert_int_not_equal(device_alloc(scene.device, DEVICE_USE_KV, 1 * MIB, &more, &err),
                         STATUS_OK);
    assert_non_null(strstr(err.message, "aclrtMalloc of 1.00 MiB"));
    fail_call("aclrtMalloc", 0);
    scene_close(&scene);
    nothing_is_left("too much memory");
}

/* What another thread opened, this one uses, and a third one closes. */
static void *play_in_thread(void *arg)
{
    struct err err;

    must(scene_play(arg, &err), &err);
    return NULL;
}

static void *close_in_thread(void *arg)
{
    scene_close(arg);
    return NULL;
}

static void threads_may_change(void **state)
{
    struct scene scene;
    pthread_t thread;
    struct err err;

    (void)state;
    must(scene_open(&scene, &err), &err);
    assert_int_equal(pthread_create(&thread, NULL, play_in_thread, &scene), 0);
    assert_int_equal(pthread_join(thread, NULL), 0);
    assert_int_equal(pthread_create(&thread, NULL, close_in_thread, &scene), 0);
    assert_int_equal(pthread_join(thread, NULL), 0);
    nothing_is_left("threads");
}

/* ---- tests in a child, which opens the libraries for itself ---- */

static void in_child(void (*test)(void), const char *name, const char *value)
{
    const pid_t pid = fork();
    int ended = 0;

    assert_true(pid >= 0);
    if (pid == 0) {
        (void)alarm(HANG_SECONDS);
        (void)setenv(name, value, 1);
        test();
        exit(0);
    }
    assert_int_equal(waitpid(pid, &ended, 0), pid);
    assert_true(WIFEXITED(ended));
    assert_int_equal(WEXITSTATUS(ended), 0);
}

#define CHILD_CHECK(condition)                                                                     \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            (void)fprintf(stderr, "line %d: %s: %s\n", __LINE__, #condition, err.message);         \
            _exit(1);                                                                              \
        }                                                                                          \
    } while (0)

static void play_old_release(void)
{
    struct err err = { .message = "" };
    struct device_handle handle;
    struct scene scene;
    void *memory;

    CHILD_CHECK(scene_open(&scene, &err) == STATUS_OK);
    CHILD_CHECK(((struct ascend_device *)scene.device)->cann->aclrtHostRegisterV2 == NULL);
    CHILD_CHECK(((struct ascend_device *)scene.device)->cann->aclrtCreateEventExWithFlag == NULL);
    CHILD_CHECK(scene_round(&scene, 0x33, &err) == STATUS_OK);
    CHILD_CHECK(scene_round(&scene, 0x44, &err) == STATUS_OK);
    CHILD_CHECK(event_time_ns(scene.filled) <= event_time_ns(scene.copied));
    CHILD_CHECK(device_shared_alloc(scene.device, DEVICE_USE_KV, 100, &memory, &handle, &err) ==
                STATUS_UNAVAILABLE);
    CHILD_CHECK(strstr(err.message, "sharded_gpu") != NULL);
    CHILD_CHECK(strstr(err.message, "aclrtIpcMemGetExportKey") != NULL);
    scene_close(&scene);
    CHILD_CHECK(counter("live_blocks") + counter("live_pinned") + counter("live_events") == 0);
    CHILD_CHECK(counter("pageable_copies") == 0);
}

static void play_without_a_symbol(void)
{
    const struct device_options options = { .thread_count = 1 };
    struct err err = { .message = "" };
    struct device *device;

    CHILD_CHECK(harness_device_open("ascend", options, &device, &err) == STATUS_UNAVAILABLE);
    CHILD_CHECK(strstr(err.message, "lacks 2 of the functions") != NULL);
    CHILD_CHECK(strstr(err.message, "aclrtMalloc (libascendcl.so, in CANN 8.1.RC1)") != NULL);
    CHILD_CHECK(strstr(err.message, "aclCreateTensor (libnnopbase.so, in CANN 8.1.RC1)") != NULL);
}

/* What an operator is needed for is refused without it; the rest works. */
static void play_without_operators(void)
{
    const struct device_options options = { .thread_count = 1 };
    struct err err = { .message = "" };
    struct device *device;

    CHILD_CHECK(harness_device_open("ascend", options, &device, &err) == STATUS_OK);
    CHILD_CHECK(device_info(device)->op_features ==
                (OP_FEATURES_ALL & ~(OP_FEATURE_SOFT_CAP | OP_FEATURE_GATE_CLAMPED |
                                     OP_FEATURE_KV_NARROW | OP_FEATURE_EXPERT_ORDER |
                                     OP_FEATURE_KV_BY_HEAD)));
    CHILD_CHECK(device_features_check(device, OP_FEATURE_SOFT_CAP, &err) == STATUS_UNAVAILABLE);
    CHILD_CHECK(strstr(err.message, "soft caps") != NULL);
    CHILD_CHECK(device_features_check(device, OP_FEATURE_WINDOW, &err) == STATUS_OK);
    device_close(device);
}

static void play_without_npus(void)
{
    const struct device_options options = { .thread_count = 1 };
    struct err err = { .message = "" };
    struct device *device;

    CHILD_CHECK(harness_device_open("ascend", options, &device, &err) == STATUS_UNAVAILABLE);
    CHILD_CHECK(strstr(err.message, "0 NPUs") != NULL || strstr(err.message, "207004") != NULL ||
                strstr(err.message, "no device") != NULL);
}

static void play_without_libraries(void)
{
    const struct device_options options = { .library_path = "/nowhere:relative" };
    struct err err = { .message = "" };
    struct device *device;

    CHILD_CHECK(device_open("ascend", &options, &device, &err) == STATUS_UNAVAILABLE);
    CHILD_CHECK(strstr(err.message, "libascendcl.so of CANN (8.1.RC1 or later)") != NULL);
    CHILD_CHECK(strstr(err.message, "ASCEND_HOME_PATH") != NULL);
}

static void check_steps(uint64_t budget_bytes, uint32_t rows, uint32_t sequences)
{
    const struct device_options options = { .thread_count = 1,
                                            .memory_budget_bytes = budget_bytes };
    struct err err = { .message = "" };
    struct device *device;

    CHILD_CHECK(harness_device_open("ascend", options, &device, &err) == STATUS_OK);
    CHILD_CHECK(device_info(device)->step_row_count == rows);
    CHILD_CHECK(device_info(device)->step_sequence_count == sequences);
    device_close(device);
}

static void play_small_npu(void)
{
    check_steps(0, 4096, 16);
    check_steps(4 * GIB, 0, 0);
}

static void play_large_npu(void)
{
    check_steps(0, 8192, 64);
    check_steps(20 * GIB, 4096, 16); /* as on a small one */
}

static void other_machines_are_answered(void **state)
{
    (void)state;
    in_child(play_old_release, "CANN_STANDIN_RELEASE", "8.1.RC1");
    in_child(play_without_a_symbol, "CANN_STANDIN_WITHOUT", "aclrtMalloc,aclCreateTensor");
    in_child(play_without_operators, "CANN_STANDIN_WITHOUT",
             "aclnnTanh,aclnnClampGetWorkspaceSize");
    in_child(play_without_npus, "CANN_STANDIN_DEVICES", "0");
    in_child(play_without_libraries, "LD_LIBRARY_PATH", "");
    in_child(play_small_npu, "CANN_STANDIN_MEMORY", "32Gi");
    in_child(play_large_npu, "CANN_STANDIN_MEMORY", "64Gi");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(other_machines_are_answered), /* before this process opens the libraries */
        cmocka_unit_test(it_is_what_it_says),
        cmocka_unit_test(everything_works_and_nothing_is_left),
        cmocka_unit_test(each_failure_is_a_sentence_and_leaves_nothing),
        cmocka_unit_test(some_failures_do_not_matter),
        cmocka_unit_test(a_streams_error_stays),
        cmocka_unit_test(memory_that_is_used_up_is_a_sentence),
        cmocka_unit_test(threads_may_change),
    };

    (void)alarm(HANG_SECONDS);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
