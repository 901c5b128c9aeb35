/* tests/cann/runtime_test.c - the stand-in's runtime is as strict as its README says: each rule has
 * a test that breaks it. Nothing here depends on time: where an order matters, streams are held. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "internal.h"

#define MIB ((size_t)1 << 20)
#define H2D ACL_MEMCPY_HOST_TO_DEVICE
#define D2H ACL_MEMCPY_DEVICE_TO_HOST
#define D2D ACL_MEMCPY_DEVICE_TO_DEVICE
#define CODE(expected, call) assert_int_equal((call), (expected))
#define OK(call) CODE(0, call)

static int open_device(void **state)
{
    (void)state;
    setenv("CANN_STANDIN_SILENT", "1", 1);
    cann_standin_reset();
    OK(aclInit(NULL));
    OK(aclrtSetDevice(0));
    return 0;
}

static int close_device(void **state)
{
    (void)state;
    cann_standin_reset();
    return 0;
}

static void *device_memory(size_t size)
{
    void *memory = NULL;
    OK(aclrtMalloc(&memory, size, ACL_MEM_MALLOC_HUGE_FIRST));
    return memory;
}

static uint8_t *pinned_memory(size_t size)
{
    void *memory = NULL;
    OK(aclrtMallocHost(&memory, size));
    return memory;
}

/* ---- process, devices, threads ---- */

static void initialization_happens_once(void **state)
{
    (void)state;
    CODE(E_REPEAT_INITIALIZE, aclInit(NULL));
    OK(aclFinalize());
    CODE(E_REPEAT_FINALIZE, aclFinalize());
}

static void nothing_works_before_it(void **state)
{
    uint32_t count;

    (void)state;
    cann_standin_reset();
    CODE(E_UNINITIALIZE, aclrtSetDevice(0));
    CODE(E_UNINITIALIZE, aclrtGetDeviceCount(&count));
    assert_null(aclrtGetSocName());
}

static void *calls_without_a_device(void *argument)
{
    void *memory;
    aclrtStream stream;

    (void)argument;
    if (aclrtMalloc(&memory, 64, ACL_MEM_MALLOC_HUGE_FIRST) != E_CONTEXT_NULL ||
        aclrtMallocHost(&memory, 64) != E_CONTEXT_NULL ||
        aclrtCreateStreamWithConfig(&stream, 0, 0) != E_CONTEXT_NULL ||
        aclGetRecentErrMsg() == NULL || aclGetRecentErrMsg() != NULL)
        return (void *)1;
    if (aclrtSetDevice(0) != 0 || aclrtMallocHost(&memory, 64) != 0)
        return (void *)1;
    return NULL;
}

static void each_thread_sets_its_device(void **state)
{
    pthread_t thread;
    void *result;

    (void)state;
    assert_int_equal(pthread_create(&thread, NULL, calls_without_a_device, NULL), 0);
    pthread_join(thread, &result);
    assert_null(result);
}

static void messages_are_read_once(void **state)
{
    void *memory;

    (void)state;
    assert_null(aclGetRecentErrMsg());
    CODE(E_PARAM, aclrtMalloc(&memory, 0, ACL_MEM_MALLOC_HUGE_FIRST));
    assert_non_null(strstr(aclGetRecentErrMsg(), "aclrtMalloc"));
    assert_null(aclGetRecentErrMsg());
}

static void devices_are_as_set(void **state)
{
    uint32_t count;
    size_t free_bytes, total_bytes;

    (void)state;
    setenv("CANN_STANDIN_DEVICES", "3", 1);
    setenv("CANN_STANDIN_SOC", "Ascend310P3", 1);
    setenv("CANN_STANDIN_MEMORY", "8MiB", 1);
    cann_standin_reset();
    OK(aclInit(NULL));
    OK(aclrtGetDeviceCount(&count));
    assert_int_equal(count, 3);
    assert_string_equal(aclrtGetSocName(), "Ascend310P3");
    CODE(E_DEVICE_ID, aclrtSetDevice(3));
    OK(aclrtSetDevice(2));
    OK(aclrtGetMemInfo(ACL_HBM_MEM, &free_bytes, &total_bytes));
    assert_int_equal(total_bytes, 0);
    OK(aclrtGetMemInfo(ACL_DDR_MEM, &free_bytes, &total_bytes));
    assert_int_equal(total_bytes, 8 * MIB);
    unsetenv("CANN_STANDIN_DEVICES");
    unsetenv("CANN_STANDIN_SOC");
    unsetenv("CANN_STANDIN_MEMORY");
    setenv("ASCEND_RT_VISIBLE_DEVICES", "1", 1);
    cann_standin_reset();
    OK(aclInit(NULL));
    OK(aclrtGetDeviceCount(&count));
    assert_int_equal(count, 1);
    assert_int_equal(standin_physical_id(0), 1);
    unsetenv("ASCEND_RT_VISIBLE_DEVICES");
}

/* ---- memory ---- */

static void device_memory_faults_when_touched(void **state)
{
    volatile uint8_t *memory = device_memory(4096);
    pid_t child;
    int status;

    (void)state;
    for (int writes = 0; writes < 2; writes++) {
        child = fork();
        assert_true(child >= 0);
        if (child == 0) {
            signal(SIGSEGV, SIG_DFL);
            if (writes)
                memory[0] = 1;
            _exit(memory[1]);
        }
        waitpid(child, &status, 0);
        assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV);
    }
}

static void fresh_memory_is_not_zero(void **state)
{
    uint8_t *pinned = pinned_memory(64), bytes[64];
    void *memory = device_memory(64);

    (void)state;
    OK(aclrtMemcpy(bytes, 64, memory, 64, D2H));
    for (int i = 0; i < 64; i++) {
        assert_int_equal(bytes[i], 0xA5);
        assert_int_equal(pinned[i], 0xA5);
    }
}

static void memory_has_an_end(void **state)
{
    void *memory, *all[8];
    size_t free_bytes, total_bytes;

    (void)state;
    setenv("CANN_STANDIN_MEMORY", "8MiB", 1);
    setenv("CANN_STANDIN_PINNED", "1MiB", 1);
    cann_standin_reset();
    unsetenv("CANN_STANDIN_MEMORY");
    unsetenv("CANN_STANDIN_PINNED");
    OK(aclInit(NULL));
    OK(aclrtSetDevice(0));
    CODE(E_MEMORY, aclrtMalloc(&memory, 9 * MIB, ACL_MEM_MALLOC_HUGE_FIRST));
    CODE(E_MEMORY, aclrtMallocHost(&memory, 2 * MIB));
    /* 32 bytes behind each block count too, so the eighth MiB does not fit. */
    for (int i = 0; i < 7; i++)
        OK(aclrtMalloc(&all[i], MIB, ACL_MEM_MALLOC_HUGE_FIRST));
    CODE(E_MEMORY, aclrtMalloc(&all[7], MIB, ACL_MEM_MALLOC_HUGE_FIRST));
    OK(aclrtGetMemInfo(ACL_HBM_MEM, &free_bytes, &total_bytes));
    assert_int_equal(free_bytes, MIB - (size_t)7 * 32);
    OK(aclrtFree(all[3]));
    OK(aclrtMalloc(&all[3], MIB, ACL_MEM_MALLOC_HUGE_FIRST));
}

static void addresses_come_back_late_but_come_back(void **state)
{
    void *first = device_memory(MIB), *memory;

    (void)state;
    OK(aclrtFree(first));
    memory = device_memory(MIB);
    assert_ptr_not_equal(first, memory);
    CODE(E_PARAM, aclrtFree(first));
    OK(aclrtFree(memory));
    setenv("CANN_STANDIN_MEMORY", "1MiB", 1);
    open_device(NULL);
    unsetenv("CANN_STANDIN_MEMORY");
    for (int i = 0; i < 200; i++) { /* more than the window holds */
        memory = device_memory(MIB / 2);
        OK(aclrtFree(memory));
    }
}

static void odd_frees_are_refused(void **state)
{
    uint8_t *memory = device_memory(256), *pinned = pinned_memory(256);

    (void)state;
    CODE(E_PARAM, aclrtFree(NULL));
    CODE(E_PARAM, aclrtFree(memory + 64));
    CODE(E_PARAM, aclrtFree(pinned));
    OK(aclrtFree(memory));
    CODE(E_PARAM, aclrtFree(memory));
    CODE(E_PARAM, aclrtFreeHost(NULL));
    CODE(E_PARAM, aclrtFreeHost(pinned + 64));
    OK(aclrtFreeHost(pinned));
    CODE(E_PARAM, aclrtFreeHost(pinned));
}

static void alignment_is_as_promised_and_no_more(void **state)
{
    void *memory;

    (void)state;
    assert_int_equal((uintptr_t)device_memory(100) % 128, 64);
    assert_int_equal((uintptr_t)pinned_memory(100) % 128, 64);
    OK(aclrtMalloc(&memory, 2 * MIB, ACL_MEM_MALLOC_HUGE_ONLY));
    assert_int_equal((uintptr_t)memory % (2 * MIB), 0);
}

/* ---- copies ---- */

static void copies_are_checked(void **state)
{
    uint8_t *memory = device_memory(256), *other = device_memory(256), host[256] = { 0 };
    uint8_t *pinned = pinned_memory(256);

    (void)state;
    OK(aclrtMemcpy(memory, 256, host, 256, H2D));
    CODE(E_PARAM, aclrtMemcpy(memory, 255, host, 256, H2D));
    CODE(E_PARAM, aclrtMemcpy(memory, 256, host, 0, H2D));
    CODE(E_PARAM, aclrtMemcpy(memory, 256, NULL, 256, H2D));
    CODE(E_PARAM, aclrtMemcpy(memory + 1, 256, host, 256, H2D));  /* past the end */
    CODE(E_PARAM, aclrtMemcpy(memory - 64, 256, host, 128, H2D)); /* before it */
    CODE(E_PARAM, aclrtMemcpy(memory, 256, host, 256, D2D));
    CODE(E_PARAM, aclrtMemcpy(memory, 256, host, 256, D2H));
    CODE(E_PARAM, aclrtMemcpy(memory, 256, host, 256, ACL_MEMCPY_DEFAULT));
    OK(aclrtMemcpy(other, 256, memory, 256, D2D));
    OK(aclrtMemcpy(pinned, 256, other, 256, D2H));
    assert_memory_equal(pinned, host, 256);
    OK(aclrtMemset(memory, 256, 0x107, 256));
    CODE(E_PARAM, aclrtMemset(memory, 255, 7, 256));
    CODE(E_PARAM, aclrtMemset(host, 256, 7, 256));
    OK(aclrtMemcpy(host, 256, memory, 256, D2H));
    assert_int_equal(host[0], 7);
    assert_int_equal(host[255], 7);
    assert_int_equal(cann_standin_counter("sync_copies"), 4);
}

static void rows_are_copied_with_their_pitch(void **state)
{
    uint8_t *memory = device_memory(64), host[16], back[64];

    (void)state;
    for (int i = 0; i < 16; i++)
        host[i] = (uint8_t)i;
    OK(aclrtMemcpy2d(memory, 16, host, 4, 4, 4, H2D));
    OK(aclrtMemcpy(back, 64, memory, 64, D2H));
    for (int i = 0; i < 16; i++) {
        assert_int_equal(back[i / 4 * 16 + i % 4], i);
        assert_int_equal(back[i / 4 * 16 + 4 + i % 4], 0xA5);
    }
    CODE(E_PARAM, aclrtMemcpy2d(memory, 3, host, 4, 4, 4, H2D));
}

static aclrtStream new_stream(void)
{
    aclrtStream stream;
    OK(aclrtCreateStreamWithConfig(&stream, 0, ACL_STREAM_FAST_LAUNCH | ACL_STREAM_FAST_SYNC));
    return stream;
}

static void pinned_copies_run_late(void **state)
{
    uint8_t *memory = device_memory(64), *pinned = pinned_memory(64), host[64];
    const aclrtStream stream = new_stream();

    (void)state;
    cann_standin_hold(true);
    memset(pinned, 1, 64);
    OK(aclrtMemcpyAsync(memory, 64, pinned, 64, H2D, stream));
    memset(pinned, 2, 64); /* too early: this is what arrives */
    cann_standin_hold(false);
    OK(aclrtSynchronizeStream(stream));
    OK(aclrtMemcpy(host, 64, memory, 64, D2H));
    assert_int_equal(host[0], 2);
    assert_int_equal(cann_standin_counter("pageable_copies"), 0);
}

static void synchronous_copies_wait_for_no_stream(void **state)
{
    uint8_t *memory = device_memory(64), *pinned = pinned_memory(64), host[64];
    const aclrtStream stream = new_stream();

    (void)state;
    memset(pinned, 1, 64);
    cann_standin_hold(true);
    OK(aclrtMemcpyAsync(memory, 64, pinned, 64, H2D, stream));
    OK(aclrtMemcpy(host, 64, memory, 64, D2H));
    assert_int_equal(host[0], 0xA5);
    cann_standin_hold(false);
    OK(aclrtSynchronizeStream(stream));
}

static void pageable_memory_is_no_source_of_asynchronous_copies(void **state)
{
    uint8_t *memory = device_memory(64), host[64] = { 3 };
    aclrtStream stream = new_stream();

    (void)state;
    CODE(E_PARAM, aclrtMemcpyAsync(memory, 64, host, 64, H2D, stream));
    CODE(E_NOT_SUPPORT, aclrtMemcpyAsync(host, 64, host, 64, ACL_MEMCPY_HOST_TO_HOST, stream));
    setenv("CANN_STANDIN_PAGEABLE", "wait", 1);
    open_device(NULL);
    unsetenv("CANN_STANDIN_PAGEABLE");
    memory = device_memory(64);
    stream = new_stream();
    OK(aclrtMemcpyAsync(memory, 64, host, 64, H2D, stream));
    host[0] = 4;
    OK(aclrtMemcpy(host, 64, memory, 64, D2H)); /* done: no synchronize is needed */
    assert_int_equal(host[0], 3);
    assert_int_equal(cann_standin_counter("pageable_copies"), 1);
}

static void registered_memory_is_pinned(void **state)
{
    static uint8_t host[4096];
    uint8_t *memory = device_memory(64), *pinned = pinned_memory(64);
    const aclrtStream stream = new_stream();

    (void)state;
    CODE(E_PARAM, aclrtHostRegisterV2(host, 4096, 0));
    OK(aclrtHostRegisterV2(host, 4096, ACL_HOST_REG_PINNED));
    CODE(E_HOST_REGISTERED, aclrtHostRegisterV2(host + 64, 64, ACL_HOST_REG_PINNED));
    CODE(E_HOST_REGISTERED, aclrtHostRegisterV2(pinned, 64, ACL_HOST_REG_PINNED));
    OK(aclrtMemcpyAsync(memory, 64, host, 64, H2D, stream));
    CODE(E_PARAM, aclrtMemcpyAsync(memory, 64, host + 4090, 64, H2D, stream)); /* half pinned */
    OK(aclrtSynchronizeStream(stream));
    OK(aclrtHostUnregister(host));
    CODE(E_HOST_NOT_REGISTERED, aclrtHostUnregister(host));
    CODE(E_PARAM, aclrtMemcpyAsync(memory, 64, host, 64, H2D, stream));
}

static void memory_that_is_freed_too_early_is_a_fault(void **state)
{
    uint8_t *memory = device_memory(64), *pinned = pinned_memory(64);
    const aclrtStream stream = new_stream();

    (void)state;
    cann_standin_hold(true);
    OK(aclrtMemcpyAsync(memory, 64, pinned, 64, H2D, stream));
    OK(aclrtFree(memory));
    cann_standin_hold(false);
    CODE(E_DRIVER, aclrtSynchronizeStream(stream));
    assert_int_equal(cann_standin_counter("faults"), 1);
    assert_non_null(strstr(cann_standin_fault(), "freed"));
    CODE(E_DRIVER, aclrtSynchronizeStream(stream)); /* it stays */

    open_device(NULL);
    memory = device_memory(64);
    pinned = pinned_memory(64);
    cann_standin_hold(true);
    OK(aclrtMemcpyAsync(memory, 64, pinned, 64, H2D, NULL));
    OK(aclrtFreeHost(pinned));
    cann_standin_hold(false);
    CODE(E_DRIVER, aclrtSynchronizeStream(NULL));
}

/* ---- devices among themselves ---- */

static void peers_must_be_enabled_both_ways(void **state)
{
    uint8_t *a = device_memory(64), *b, host[64];
    int32_t can = 0;
    aclrtStream stream;

    (void)state;
    OK(aclrtDeviceCanAccessPeer(&can, 0, 1));
    assert_int_equal(can, 1);
    CODE(E_DEVICE_ID, aclrtDeviceCanAccessPeer(&can, 1, 1));
    OK(aclrtSetDevice(1));
    b = device_memory(64);
    stream = new_stream();
    CODE(E_PARAM, aclrtMemcpy(host, 64, a, 64, D2H)); /* not the current device's */
    OK(aclrtMemset(b, 64, 9, 64));
    CODE(E_DRIVER, aclrtMemcpyAsync(a, 64, b, 64, D2D, stream));
    OK(aclrtDeviceEnablePeerAccess(0, 0));
    CODE(E_DRIVER, aclrtMemcpyAsync(a, 64, b, 64, D2D, stream));
    OK(aclrtSetDevice(0));
    OK(aclrtDeviceEnablePeerAccess(1, 0));
    CODE(E_STREAM_CONTEXT, aclrtMemcpyAsync(a, 64, b, 64, D2D, stream));
    CODE(E_STREAM_CONTEXT, aclrtSynchronizeStream(stream));
    CODE(E_STREAM_CONTEXT, aclrtDestroyStream(stream));
    OK(aclrtMemcpyAsync(a, 64, b, 64, D2D, NULL));
    OK(aclrtSynchronizeStream(NULL));
    OK(aclrtMemcpy(host, 64, a, 64, D2H));
    assert_int_equal(host[63], 9);
}

static void contexts_keep_apart(void **state)
{
    aclrtContext first, second, now;
    const aclrtStream stream = new_stream();
    aclrtEvent event;

    (void)state;
    OK(aclrtCreateEvent(&event));
    OK(aclrtGetCurrentContext(&first));
    OK(aclrtCreateContext(&second, 0));
    OK(aclrtGetCurrentContext(&now));
    assert_ptr_equal(now, second);
    CODE(E_STREAM_CONTEXT, aclrtSynchronizeStream(stream));
    CODE(E_STREAM_CONTEXT, aclrtRecordEvent(event, NULL));
    OK(aclrtDestroyContext(second));
    CODE(E_CONTEXT_NULL, aclrtSynchronizeStream(stream));
    CODE(E_PARAM, aclrtSetCurrentContext(second));
    OK(aclrtSetCurrentContext(first));
    OK(aclrtSynchronizeStream(stream));
}

/* ---- leaks, failures ---- */

static void what_is_left_is_reported(void **state)
{
    aclrtEvent event;

    (void)state;
    (void)device_memory(64);
    (void)pinned_memory(64);
    (void)new_stream();
    OK(aclrtCreateEvent(&event));
    assert_int_equal(cann_standin_counter("live_blocks"), 1);
    OK(aclFinalize());
    assert_int_equal(cann_standin_counter("leaks"), 4);
}

static void what_is_freed_is_not(void **state)
{
    void *memory = device_memory(64), *pinned = pinned_memory(64);
    const aclrtStream stream = new_stream();
    aclrtEvent event;

    (void)state;
    OK(aclrtCreateEvent(&event));
    OK(aclrtRecordEvent(event, stream));
    OK(aclrtDestroyEvent(event));
    OK(aclrtDestroyStream(stream));
    OK(aclrtFree(memory));
    OK(aclrtFreeHost(pinned));
    OK(aclrtResetDevice(0));
    CODE(E_DEVICE_ID, aclrtResetDevice(0));
    OK(aclFinalize());
    assert_int_equal(cann_standin_counter("leaks"), 0);
    assert_int_equal(cann_standin_counter("faults"), 0);
}

static void the_last_reset_frees_the_device(void **state)
{
    void *memory = device_memory(64);

    (void)state;
    OK(aclrtSetDevice(0)); /* counted */
    OK(aclrtResetDevice(0));
    OK(aclrtMemset(memory, 64, 0, 64));
    OK(aclrtResetDevice(0));
    CODE(E_CONTEXT_NULL, aclrtMemset(memory, 64, 0, 64));
    assert_int_equal(cann_standin_counter("leaks"), 1);
}

static void the_nth_call_fails_as_told(void **state)
{
    void *memory;

    (void)state;
    cann_standin_fail("aclrtMalloc", 2, E_MEMORY);
    memory = device_memory(64);
    CODE(E_MEMORY, aclrtMalloc(&memory, 64, ACL_MEM_MALLOC_HUGE_FIRST));
    assert_non_null(strstr(aclGetRecentErrMsg(), "injected"));
    OK(aclrtMalloc(&memory, 64, ACL_MEM_MALLOC_HUGE_FIRST));
    cann_standin_fail("*", 1, 507899);
    CODE(507899, aclrtFree(memory));
    setenv("CANN_STANDIN_FAIL", "aclrtMallocHost:1:207001,aclInit:1:500001", 1);
    cann_standin_reset();
    unsetenv("CANN_STANDIN_FAIL");
    CODE(500001, aclInit(NULL));
    OK(aclInit(NULL));
    OK(aclrtSetDevice(0));
    CODE(E_MEMORY, aclrtMallocHost(&memory, 64));
    OK(aclrtMallocHost(&memory, 64));
    assert_int_equal(cann_standin_counter("calls:aclrtMallocHost"), 2);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, open_device, close_device)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(initialization_happens_once),
        TEST(nothing_works_before_it),
        TEST(each_thread_sets_its_device),
        TEST(messages_are_read_once),
        TEST(devices_are_as_set),
        TEST(device_memory_faults_when_touched),
        TEST(fresh_memory_is_not_zero),
        TEST(memory_has_an_end),
        TEST(addresses_come_back_late_but_come_back),
        TEST(odd_frees_are_refused),
        TEST(alignment_is_as_promised_and_no_more),
        TEST(copies_are_checked),
        TEST(rows_are_copied_with_their_pitch),
        TEST(pinned_copies_run_late),
        TEST(synchronous_copies_wait_for_no_stream),
        TEST(pageable_memory_is_no_source_of_asynchronous_copies),
        TEST(registered_memory_is_pinned),
        TEST(memory_that_is_freed_too_early_is_a_fault),
        TEST(peers_must_be_enabled_both_ways),
        TEST(contexts_keep_apart),
        TEST(what_is_left_is_reported),
        TEST(what_is_freed_is_not),
        TEST(the_last_reset_frees_the_device),
        TEST(the_nth_call_fails_as_told),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
