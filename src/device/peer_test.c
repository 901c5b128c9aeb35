/* device/peer_test.c - device memory that another process reads: the same promises for every device
 * that can share with its own kind on this machine.
 *
 * Method: a child opens a device, fills shared memory with a pattern, sends the handle and stays
 * until it is killed; the parent reads over device_copy_peer. Children are forked before the parent
 * opens a device, since threads don't survive a fork. */
#include "device/test_harness.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/size.h"

#define HANG_SECONDS 60
#define SIZE_BYTES (3 * 4096 + 512)
#define USE DEVICE_USE_WEIGHTS

static const char *const specs[] = { "cpu", "sim:memory=1MiB", "sim:memory=1MiB,peer=1GB/s",
                                     "ascend:0", "cuda:0" };
#define SPEC_COUNT (sizeof(specs) / sizeof(specs[0]))

static uint8_t pattern(size_t i)
{
    return (uint8_t)(i * 13 + (i >> 8));
}

struct peer {
    pid_t pid;
    struct device_handle handle;
};

/* In the child: returns only when something fails. */
static void peer_main(const char *spec, int channel)
{
    const struct device_options options = { .thread_count = 1 };
    static uint8_t bytes[SIZE_BYTES];
    struct device_handle handle;
    struct device *device;
    struct stream *stream;
    void *before, *memory;
    struct err err;

    for (size_t i = 0; i < SIZE_BYTES; i++)
        bytes[i] = pattern(i);
    if (harness_device_open(spec, options, &device, &err) == STATUS_OK &&
        device_alloc(device, USE, 1000, &before, &err) == STATUS_OK &&
        device_shared_alloc(device, USE, SIZE_BYTES, &memory, &handle, &err) == STATUS_OK &&
        stream_create(device, STREAM_COPY, &stream, &err) == STATUS_OK &&
        device_copy_in(stream, memory, bytes, SIZE_BYTES, &err) == STATUS_OK &&
        stream_sync(stream, &err) == STATUS_OK &&
        write(channel, &handle, sizeof(handle)) == (ssize_t)sizeof(handle)) {
        for (;;)
            (void)pause();
    }
}

static void peer_start(struct peer *peer, const char *spec)
{
    int channel[2];

    assert_int_equal(pipe(channel), 0);
    peer->pid = fork();
    assert_true(peer->pid >= 0);
    if (peer->pid == 0) {
        (void)alarm(HANG_SECONDS);
        peer_main(spec, channel[1]);
        _exit(1);
    }
    (void)close(channel[1]);
    assert_int_equal(read(channel[0], &peer->handle, sizeof(peer->handle)), sizeof(peer->handle));
    (void)close(channel[0]);
}

static void peer_kill(const struct peer *peer)
{
    int ended;

    assert_int_equal(kill(peer->pid, SIGKILL), 0);
    assert_int_equal(waitpid(peer->pid, &ended, 0), peer->pid);
    assert_true(WIFSIGNALED(ended));
}

/* Copies a part of the peer's memory into the device and looks at it. */
static void check_part(struct harness *h, const uint8_t *peer_memory, size_t offset, size_t size)
{
    static uint8_t out[SIZE_BYTES];
    uint8_t *const memory = harness_put(h, out, SIZE_BYTES);
    struct err err;

    must(device_fill(h->stream, memory, 0xEE, SIZE_BYTES, &err), &err);
    must(device_copy_peer(h->stream, memory + 256, peer_memory + offset, size, &err), &err);
    harness_get(h, out, memory, SIZE_BYTES);
    for (size_t i = 0; i < SIZE_BYTES; i++)
        assert_int_equal(out[i], i >= 256 && i < 256 + size ? pattern(offset + i - 256) : 0xEE);
}

/* Three parts of the peer's memory in other places, in one go. */
static void check_parts(struct harness *h, const uint8_t *peer_memory)
{
    enum { PARTS = 3, PART = 1000 };
    static uint8_t out[SIZE_BYTES];
    uint8_t *const memory = harness_put(h, out, SIZE_BYTES);
    struct device_copy copies[PARTS];
    struct err err;

    must(device_fill(h->stream, memory, 0xEE, SIZE_BYTES, &err), &err);
    for (size_t i = 0; i < PARTS; i++)
        copies[i] = (struct device_copy){ memory + i * PART, peer_memory + (PARTS - i) * PART,
                                          PART - i };
    must(device_copy_peers(h->stream, copies, PARTS, &err), &err);
    must(device_copy_peers(h->stream, NULL, 0, &err), &err);
    harness_get(h, out, memory, SIZE_BYTES);
    for (size_t i = 0; i < SIZE_BYTES; i++) {
        const size_t part = i / PART, at = i % PART;

        assert_int_equal(out[i], part < PARTS && at < PART - part
                                     ? pattern((PARTS - part) * PART + at)
                                     : 0xEE);
    }
}

static void a_peer_reads_what_the_other_has_allocated(void **state)
{
    (void)state;
    for (size_t i = 0; i < SPEC_COUNT; i++) {
        const struct harness_config config = { specs[i], NULL, 1, false, false };
        struct device_memory_report report;
        const void *memory, *again;
        struct peer peer;
        struct harness h;
        struct err err;

        peer_start(&peer, specs[i]);
        harness_open(&h, &config);
        must(device_peer_open(h.device, &peer.handle, SIZE_BYTES, &memory, &err), &err);
        must(device_peer_open(h.device, &peer.handle, SIZE_BYTES, &again, &err), &err);
        device_memory_report(h.device, &report);
        assert_int_equal(report.used_bytes, 0); /* it is the peer's */
        check_part(&h, memory, 0, SIZE_BYTES - 256);
        check_part(&h, again, 777, 1000);
        check_parts(&h, memory);
        must(device_copy_peer(h.stream, NULL, NULL, 0, &err), &err);
        peer_kill(&peer);
        check_part(&h, memory, SIZE_BYTES - 100, 100); /* what is open stays */
        device_peer_close(h.device, memory, SIZE_BYTES);
        device_peer_close(h.device, again, SIZE_BYTES);
        device_peer_close(h.device, NULL, 0);
        assert_int_equal(device_peer_open(h.device, &peer.handle, SIZE_BYTES, &memory, &err),
                         STATUS_PEER);
        assert_non_null(strstr(err.message, "is gone"));
        harness_close(&h);
    }
}

/* Shared memory is device memory like any other: counted, an operand of copies and ops, and a
 * source of copy_peer without a peer. */
static void shared_memory_is_the_devices_own(void **state)
{
    (void)state;
    for (size_t i = 0; i < SPEC_COUNT; i++) {
        const struct harness_config config = { specs[i], NULL, 1, false, false };
        struct device_memory_report report;
        struct device_handle handle;
        struct harness h;
        struct err err;
        float x[16], out[16];
        const void *peer_memory;
        void *memory;
        struct op op = { .kind = OP_SILU_MUL };

        harness_open(&h, &config);
        must(device_shared_alloc(h.device, USE, SIZE_BYTES, &memory, &handle, &err), &err);
        device_memory_report(h.device, &report);
        assert_int_equal(report.used_by[USE], SIZE_BYTES);
        for (int k = 0; k < 16; k++)
            x[k] = 1;
        must(device_copy_in(h.stream, memory, x, sizeof(x), &err), &err);
        op.silu_mul = (struct op_silu_mul){
            .out = (float *)memory + 64, .x = memory, .row_count = 1, .width = 8,
            .out_row_stride = 8, .x_row_stride = 16,
        };
        harness_run(&h, &op);
        must(device_copy_peer(h.stream, (float *)memory + 128, (float *)memory + 64, 32, &err),
             &err);
        harness_get(&h, out, (float *)memory + 128, 32);
        for (int k = 0; k < 8; k++)
            assert_true(out[k] > 0.731f && out[k] < 0.732f);
        device_shared_free(h.device, USE, memory, SIZE_BYTES);
        device_shared_free(h.device, USE, NULL, 0);
        assert_int_equal(device_peer_open(h.device, &handle, SIZE_BYTES, &peer_memory, &err),
                         STATUS_PEER);
        harness_close(&h); /* everything was given back */
    }
}

static void a_handle_that_does_not_fit_is_refused(void **state)
{
    const struct device_options options = { .thread_count = 1 };
    struct device_handle handle, wrong;
    struct device *sim, *cpu;
    const void *memory;
    struct err err;
    void *shared;

    (void)state;
    must(device_open("sim:memory=1MiB", &options, &sim, &err), &err);
    must(device_open("cpu", &options, &cpu, &err), &err);
    must(device_shared_alloc(sim, USE, SIZE_BYTES, &shared, &handle, &err), &err);
    assert_int_equal(device_peer_open(cpu, &handle, SIZE_BYTES, &memory, &err), STATUS_PEER);
    assert_non_null(strstr(err.message, "a 'sim' device's"));
    assert_int_equal(device_peer_open(sim, &handle, SIZE_BYTES * 2, &memory, &err), STATUS_PEER);
    assert_non_null(strstr(err.message, "12800 bytes, where 25600 are expected"));
    memset(&wrong, 0x7F, sizeof(wrong)); /* a name without an end */
    assert_int_equal(device_peer_open(sim, &wrong, SIZE_BYTES, &memory, &err), STATUS_PEER);
    wrong = handle;
    memset(wrong.opaque, 0xFF, sizeof(wrong.opaque));
    assert_int_equal(device_peer_open(sim, &wrong, SIZE_BYTES, &memory, &err), STATUS_PEER);
    device_shared_free(sim, USE, shared, SIZE_BYTES);
    device_close(cpu);
    device_close(sim);
}

static void failures_leave_no_trace(void **state)
{
    const struct device_options options = { .thread_count = 1, .memory_budget_bytes = 64 * KIB,
                                            .host_budget_bytes = 8 * KIB };
    struct device_memory_report report;
    struct device_handle handle;
    struct device *device;
    struct err err;
    void *memory;

    (void)state;
    must(device_open("sim:memory=64KiB,fail_alloc=1", &options, &device, &err), &err);
    assert_int_equal(device_shared_alloc(device, USE, 65 * KIB, &memory, &handle, &err),
                     STATUS_NO_MEMORY);
    assert_non_null(strstr(err.message, "budget of 64.0 KiB"));
    assert_int_equal(device_shared_alloc(device, USE, 100, &memory, &handle, &err),
                     STATUS_NO_MEMORY);
    assert_non_null(strstr(err.message, "fail_alloc"));
    must(device_shared_alloc(device, USE, 64 * KIB, &memory, &handle, &err), &err);
    device_shared_free(device, USE, memory, 64 * KIB);
    must(device_host_charge(device, 8 * KIB, &err), &err);
    assert_int_equal(device_host_charge(device, 1, &err), STATUS_NO_MEMORY);
    device_memory_report(device, &report);
    assert_int_equal(report.host_used_bytes, 8 * KIB);
    device_host_discharge(device, 8 * KIB);
    must(device_host_register(device, &report, sizeof(report), &err), &err);
    device_host_unregister(device, &report, sizeof(report));
    device_host_unregister(device, NULL, 0);
    device_close(device);
}

static void copies_from_elsewhere_are_refused(void **state)
{
    const struct harness_config config = { "sim:memory=1MiB", NULL, 1, false, false };
    static const uint8_t elsewhere[64];
    struct harness h;
    struct err err;
    void *memory;

    (void)state;
    harness_open(&h, &config);
    memory = harness_put(&h, elsewhere, 64);
    assert_int_equal(device_copy_peer(h.stream, memory, elsewhere, 64, &err), STATUS_DEVICE);
    assert_non_null(strstr(err.message, "neither in a peer's memory"));
    stream_destroy(h.stream); /* the error stays with it */
    must(stream_create(h.device, STREAM_COMPUTE, &h.stream, &err), &err);
    harness_close(&h);
}

static void the_peers_speed_is_the_links_unless_it_is_set(void **state)
{
    static const struct {
        const char *spec;
        uint64_t bytes_per_s;
    } cases[] = { { "sim", 0 }, { "sim:link=2GB/s", 2000000000 },
                  { "sim:link=2GB/s,peer=9GB/s", 9000000000 }, { "sim:link=2GB/s,peer=0", 0 } };
    const struct device_options options = { .thread_count = 1 };

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct device *device;
        struct err err;

        must(device_open(cases[i].spec, &options, &device, &err), &err);
        assert_int_equal(device_info(device)->peer_bytes_per_s, cases[i].bytes_per_s);
        device_close(device);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_peer_reads_what_the_other_has_allocated),
        cmocka_unit_test(shared_memory_is_the_devices_own),
        cmocka_unit_test(a_handle_that_does_not_fit_is_refused),
        cmocka_unit_test(failures_leave_no_trace),
        cmocka_unit_test(copies_from_elsewhere_are_refused),
        cmocka_unit_test(the_peers_speed_is_the_links_unless_it_is_set),
    };

    (void)alarm(HANG_SECONDS);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
