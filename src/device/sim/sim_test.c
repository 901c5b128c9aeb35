/* device/sim/sim_test.c - the software accelerator orders what it must and nothing else.
 *
 * Method: no test depends on how fast anything runs. A closed gate is one of the device's own
 * locks, held by the test: while `execute_lock` is held no op runs, while a link's lock is held no
 * copy starts. What must not wait for the gate is synced while it is closed; an order that is too
 * strict hangs (and `alarm` ends it), one that is too loose shows as wrong bytes. The link's pacing
 * is tested on its own clock, with invented times. */
#include "device/test_harness.h"

#include <unistd.h>

#include "base/clock.h"
#include "base/size.h"
#include "device/sim/internal.h"

#define HANG_SECONDS 60
#define LOOSE_NS UINT64_C(5000000) /* lets a wait that does not wait go on before the gate opens */

struct rig {
    struct device *device;
    struct sim_device *sim;
    struct stream *a, *b, *c;
    struct event *event, *gate_event;
    uint8_t *memory;           /* device, RIG_BYTES */
    uint8_t *host;             /* RIG_BYTES */
};
#define RIG_BYTES (64 * 1024)

static void rig_open(struct rig *rig, const char *spec)
{
    const struct device_options options = { .thread_count = 1 };
    struct err err;
    void *memory;

    alarm(HANG_SECONDS);
    memset(rig, 0, sizeof(*rig));
    must(device_open(spec, &options, &rig->device, &err), &err);
    rig->sim = (struct sim_device *)rig->device;
    must(stream_create(rig->device, STREAM_COMPUTE, &rig->a, &err), &err);
    must(stream_create(rig->device, STREAM_COPY, &rig->b, &err), &err);
    must(stream_create(rig->device, STREAM_COPY, &rig->c, &err), &err);
    must(event_create(rig->device, &rig->event, &err), &err);
    must(event_create(rig->device, &rig->gate_event, &err), &err);
    must(device_alloc(rig->device, DEVICE_USE_SCRATCH, RIG_BYTES, &memory, &err), &err);
    rig->memory = memory;
    must(device_host_alloc(rig->device, RIG_BYTES, &memory, &err), &err);
    rig->host = memory;
    must(device_fill(rig->a, rig->memory, 0, RIG_BYTES, &err), &err);
    must(stream_sync(rig->a, &err), &err);
}

static void rig_close(struct rig *rig)
{
    stream_destroy(rig->a);
    stream_destroy(rig->b);
    stream_destroy(rig->c);
    event_destroy(rig->event);
    event_destroy(rig->gate_event);
    device_free(rig->device, DEVICE_USE_SCRATCH, rig->memory, RIG_BYTES);
    device_host_free(rig->device, rig->host, RIG_BYTES);
    device_close(rig->device);
    alarm(0);
}

/* An op that copies 4 floats from memory + 1024 to memory, once the gate lets it. */
static enum status launch_gather(struct rig *rig, struct stream *stream, struct err *err)
{
    struct op op = { .kind = OP_GATHER_ROWS };

    op.gather_rows = (struct op_gather_rows){
        .out = (float *)(void *)rig->memory,
        .x = (const float *)(const void *)(rig->memory + 1024),
        .rows = (const int32_t *)(const void *)(rig->memory + 2048), /* zeros */
        .row_count = 1, .width = 4, .x_row_count = 1, .out_row_stride = 4, .x_row_stride = 4,
    };
    return device_launch(stream, &op, err);
}

static void copies_run_beside_an_op_that_is_stuck(void **state)
{
    struct rig rig;
    struct err err;

    (void)state;
    rig_open(&rig, "sim:memory=1MiB");
    memset(rig.host, 7, RIG_BYTES);
    pthread_mutex_lock(&rig.sim->execute_lock);
    must(launch_gather(&rig, rig.a, &err), &err);
    must(event_record(rig.a, rig.event, &err), &err);
    must(device_copy_in(rig.b, rig.memory + 4096, rig.host, 4096, &err), &err);
    must(stream_sync(rig.b, &err), &err); /* hangs if streams share anything */
    assert_int_equal(rig.memory[5000], 7);
    assert_false(event_is_done(rig.event));
    pthread_mutex_unlock(&rig.sim->execute_lock);
    must(event_sync(rig.event, &err), &err);
    assert_true(event_is_done(rig.event));
    assert_true(event_time_ns(rig.event) <= clock_now_ns());
    rig_close(&rig);
}

static void a_wait_holds_back_what_follows(void **state)
{
    struct rig rig;
    struct err err;

    (void)state;
    rig_open(&rig, "sim:memory=1MiB");
    must(device_fill(rig.a, rig.memory + 1024, 9, 16, &err), &err);
    must(stream_sync(rig.a, &err), &err);
    pthread_mutex_lock(&rig.sim->execute_lock);
    must(launch_gather(&rig, rig.a, &err), &err);
    must(event_record(rig.a, rig.event, &err), &err);
    must(stream_wait(rig.b, rig.event, &err), &err);
    must(device_copy_out(rig.b, rig.host, rig.memory, 16, &err), &err);
    clock_sleep_until_ns(clock_now_ns() + LOOSE_NS);
    pthread_mutex_unlock(&rig.sim->execute_lock);
    must(stream_sync(rig.b, &err), &err);
    assert_int_equal(rig.host[0], 9);
    assert_int_equal(rig.host[15], 9);
    rig_close(&rig);
}

static void a_wait_is_for_the_record_before_it(void **state)
{
    struct rig rig;
    struct err err;

    (void)state;
    rig_open(&rig, "sim:memory=1MiB");
    must(stream_wait(rig.b, rig.event, &err), &err); /* never recorded: no wait */
    must(stream_sync(rig.b, &err), &err);
    assert_true(event_is_done(rig.event));
    /* c is stuck at the link; a goes on to its second half after that. */
    pthread_mutex_lock(&rig.sim->link_in.lock);
    must(device_copy_in(rig.c, rig.memory + 8192, rig.host, 16, &err), &err);
    must(event_record(rig.c, rig.gate_event, &err), &err);
    must(device_fill(rig.a, rig.memory, 1, 16, &err), &err);
    must(event_record(rig.a, rig.event, &err), &err);
    must(stream_wait(rig.b, rig.event, &err), &err);
    must(stream_wait(rig.a, rig.gate_event, &err), &err);
    must(device_fill(rig.a, rig.memory, 2, 16, &err), &err);
    must(event_record(rig.a, rig.event, &err), &err);
    must(device_copy_out(rig.b, rig.host + 64, rig.memory, 16, &err), &err);
    must(stream_sync(rig.b, &err), &err); /* hangs if it waits for the second record */
    assert_int_equal(rig.host[64], 1);
    assert_false(event_is_done(rig.event));
    must(stream_wait(rig.b, rig.event, &err), &err);
    must(device_copy_out(rig.b, rig.host + 64, rig.memory, 16, &err), &err);
    clock_sleep_until_ns(clock_now_ns() + LOOSE_NS);
    pthread_mutex_unlock(&rig.sim->link_in.lock);
    must(stream_sync(rig.b, &err), &err);
    assert_int_equal(rig.host[64], 2);
    rig_close(&rig);
}

static void an_event_may_be_recorded_on_another_stream(void **state)
{
    struct rig rig;
    struct err err;

    (void)state;
    rig_open(&rig, "sim:memory=1MiB");
    pthread_mutex_lock(&rig.sim->execute_lock);
    must(launch_gather(&rig, rig.a, &err), &err);
    must(event_record(rig.a, rig.event, &err), &err);
    must(stream_wait(rig.c, rig.event, &err), &err);   /* for a's record */
    must(event_record(rig.b, rig.event, &err), &err);  /* b has nothing to do */
    must(event_record(rig.c, rig.gate_event, &err), &err);
    clock_sleep_until_ns(clock_now_ns() + LOOSE_NS);
    assert_false(event_is_done(rig.gate_event));       /* a's record is not reached by b's */
    pthread_mutex_unlock(&rig.sim->execute_lock);
    must(event_sync(rig.gate_event, &err), &err);
    must(event_sync(rig.event, &err), &err);
    rig_close(&rig);
}

static void a_full_queue_makes_the_caller_wait(void **state)
{
    struct rig rig;
    struct err err;

    (void)state;
    rig_open(&rig, "sim:memory=1MiB");
    for (uint32_t i = 0; i < 5000; i++) { /* more than the ring holds; in order */
        must(device_fill(rig.a, rig.memory, (uint8_t)i, 4096, &err), &err);
        if (i % 1000 == 999)
            must(device_copy_out(rig.a, rig.host + i / 1000, rig.memory + 4095, 1, &err), &err);
    }
    must(stream_sync(rig.a, &err), &err);
    for (uint32_t i = 0; i < 5; i++)
        assert_int_equal(rig.host[i], (uint8_t)(i * 1000 + 999));
    rig_close(&rig);
}

static void destroying_waits_for_what_is_queued(void **state)
{
    struct rig rig;
    struct stream *stream;
    struct event *event;
    struct err err;

    (void)state;
    rig_open(&rig, "sim:memory=1MiB");
    for (int round = 0; round < 20; round++) {
        must(stream_create(rig.device, STREAM_COPY, &stream, &err), &err);
        must(event_create(rig.device, &event, &err), &err);
        for (int i = 0; i < 50; i++)
            must(device_fill(stream, rig.memory, (uint8_t)(round + i), RIG_BYTES, &err), &err);
        must(event_record(stream, event, &err), &err);
        must(stream_wait(rig.a, event, &err), &err);
        event_destroy(event);
        stream_destroy(stream);
        assert_int_equal(rig.memory[RIG_BYTES - 1], round + 49);
    }
    rig_close(&rig);
}

static void errors_stay_and_nobody_hangs(void **state)
{
    struct rig rig;
    struct err err;

    (void)state;
    rig_open(&rig, "sim:memory=1MiB,fail_launch=2");
    must(launch_gather(&rig, rig.a, &err), &err);
    must(stream_sync(rig.a, &err), &err);
    must(launch_gather(&rig, rig.a, &err), &err); /* fails later, as on a real device */
    must(event_record(rig.a, rig.event, &err), &err);
    must(stream_wait(rig.b, rig.event, &err), &err);
    assert_int_equal(stream_sync(rig.a, &err), STATUS_DEVICE);
    assert_non_null(strstr(err.message, "gather_rows"));
    assert_int_equal(event_sync(rig.event, &err), STATUS_DEVICE);
    must(stream_sync(rig.b, &err), &err); /* another stream is whole, and was let through */
    assert_int_equal(launch_gather(&rig, rig.a, &err), STATUS_DEVICE);
    assert_int_equal(device_fill(rig.a, rig.memory, 5, 16, &err), STATUS_DEVICE);
    assert_int_equal(device_copy_in(rig.a, rig.memory, rig.host, 16, &err), STATUS_DEVICE);
    assert_int_equal(stream_sync(rig.a, &err), STATUS_DEVICE);
    must(device_fill(rig.b, rig.memory, 6, 16, &err), &err);
    must(stream_sync(rig.b, &err), &err);
    assert_int_equal(rig.memory[0], 6);
    rig_close(&rig);
}

static void every_copy_can_fail(void **state)
{
    (void)state;
    for (int n = 1; n <= 4; n++) {
        struct rig rig;
        struct err err;
        char spec[64];
        enum status st = STATUS_OK;
        (void)snprintf(spec, sizeof(spec), "sim:memory=1MiB,fail_copy=%d", n);
        rig_open(&rig, spec);
        for (int i = 1; i <= 4; i++) {
            memset(rig.host, i, 16);
            st = device_copy_in(rig.b, rig.memory, rig.host, 16, &err);
            assert_int_equal(st, i <= n ? STATUS_OK : STATUS_DEVICE);
            st = stream_sync(rig.b, &err);
            assert_int_equal(st, i < n ? STATUS_OK : STATUS_DEVICE);
        }
        assert_int_equal(rig.memory[0], n - 1); /* nothing was copied from the n-th on */
        rig_close(&rig);
    }
}

static void stray_pointers_are_named(void **state)
{
    struct rig rig;
    struct err err;
    struct op op = { .kind = OP_EMBED };

    (void)state;
    rig_open(&rig, "sim:memory=1MiB");
    op.embed = (struct op_embed){
        .out = (float *)(void *)rig.memory, .table = rig.host, .table_dtype = DTYPE_F32,
        .ids = (const int32_t *)(const void *)(rig.memory + 2048),
        .row_count = 1, .width = 4, .table_row_count = 1, .out_row_stride = 4,
    };
    assert_int_equal(device_launch(rig.a, &op, &err), STATUS_DEVICE);
    assert_non_null(strstr(err.message, "embed: table at"));
    assert_int_equal(stream_sync(rig.a, &err), STATUS_DEVICE); /* and it stays */
    assert_int_equal(device_copy_in(rig.b, rig.memory, rig.memory + 64, 16, &err), STATUS_DEVICE);
    assert_non_null(strstr(err.message, "copy_in: src"));
    assert_int_equal(device_copy_out(rig.c, rig.host, rig.memory + 2 * MIB, 16, &err),
                     STATUS_DEVICE);
    assert_non_null(strstr(err.message, "copy_out: src"));
    rig_close(&rig);
}

/* A list of experts lies in device memory itself, so it is checked when the op runs. */
static void stray_experts_are_named(void **state)
{
    struct rig rig;
    struct err err;
    struct op_moe_expert list = { .id = 0 };
    struct op op = { .kind = OP_MOE };

    (void)state;
    rig_open(&rig, "sim:memory=1MiB");
    list.gate = list.up = rig.memory;
    list.down = rig.host;
    memcpy(rig.host, &list, sizeof(list));
    must(device_copy_in(rig.a, rig.memory + 256, rig.host, sizeof(list), &err), &err);
    op.moe = (struct op_moe){
        .out = (float *)(void *)rig.memory, .x = (const float *)(const void *)rig.memory,
        .ids = (const int32_t *)(const void *)(rig.memory + 512),
        .weights = (const float *)(const void *)rig.memory,
        .experts = (const struct op_moe_expert *)(const void *)(rig.memory + 256),
        .expert_list_count = 1, .weight_dtype = DTYPE_F32, .down_dtype = DTYPE_F32,
        .scratch = rig.memory + 1024,
        .row_count = 1, .top_k = 1, .expert_count = 1, .width = 4, .ffn_width = 4,
        .out_row_stride = 4, .x_row_stride = 4,
    };
    must(device_launch(rig.a, &op, &err), &err);
    assert_int_equal(stream_sync(rig.a, &err), STATUS_DEVICE);
    assert_non_null(strstr(err.message, "moe: expert 0"));
    rig_close(&rig);
}

static void the_link_loses_nothing_between_copies(void **state)
{
    struct sim_link link;
    struct sim_slice slice;

    (void)state;
    sim__link_init(&link, 2000000000, 10000); /* 2 bytes per ns, 10 us */
    slice = sim__link_enter(&link, 1000000, 4000000);
    assert_int_equal(slice.start_ns, 1000000);
    assert_int_equal(slice.end_ns, 1000000 + 10000 + 2000000);
    slice = sim__link_enter(&link, 1500000, 4000); /* ready while the link is busy */
    assert_int_equal(slice.start_ns, 3010000);
    assert_int_equal(slice.end_ns, 3010000 + 10000 + 2000);
    slice = sim__link_enter(&link, 9000000, 2); /* the link was idle */
    assert_int_equal(slice.start_ns, 9000000);
    assert_int_equal(slice.end_ns, 9010001);
    sim__link_deinit(&link);
    sim__link_init(&link, 0, 0);
    slice = sim__link_enter(&link, 50, UINT64_C(1) << 40);
    assert_int_equal(slice.end_ns, 50);
    sim__link_deinit(&link);
}

static void copies_are_never_faster_than_the_link(void **state)
{
    enum { COPIES = 8 };
    struct rig rig;
    struct err err;
    uint64_t start_ns, link_ns;

    (void)state;
    rig_open(&rig, "sim:memory=1MiB,link=100MB/s,latency=50us");
    link_ns = rig.sim->link_in.free_ns;
    assert_int_equal(link_ns, 0);
    start_ns = clock_now_ns();
    for (int i = 0; i < COPIES; i++)
        must(device_copy_in(rig.b, rig.memory, rig.host, RIG_BYTES, &err), &err);
    must(event_record(rig.b, rig.event, &err), &err);
    must(event_sync(rig.event, &err), &err);
    link_ns = rig.sim->link_in.free_ns; /* synced: nobody else writes it */
    assert_true(event_time_ns(rig.event) >= link_ns);
    /* All were queued before the first could end, so the link's clock ran without a gap. */
    assert_true(link_ns >= start_ns + COPIES * (50000 + (uint64_t)RIG_BYTES * 10));
    assert_int_equal(rig.sim->link_out.free_ns, 0); /* the other direction is another link */
    rig_close(&rig);
}

static uint64_t alignment_of(uint32_t piece)
{
    return piece % 3 == 0 ? 4096 : DEVICE_ALIGNMENT;
}

static void memory_is_never_given_twice(void **state)
{
    enum { PIECES = 64 };
    struct sim_arena *arena;
    struct harness random = { .random = 12345 };
    struct err err;
    void *pieces[PIECES] = { NULL }, *all;
    uint64_t sizes[PIECES] = { 0 };

    (void)state;
    must(sim__arena_create(1 * MIB, &arena, &err), &err);
    for (int round = 0; round < 4000; round++) {
        const uint32_t i = (uint32_t)(random_bits(&random) % PIECES);
        if (pieces[i] != NULL) {
            const uint8_t *bytes = pieces[i];
            assert_true(bytes[0] == (uint8_t)i && bytes[sizes[i] - 1] == (uint8_t)i);
            sim__arena_free(arena, pieces[i], sizes[i], alignment_of(i));
            pieces[i] = NULL;
            continue;
        }
        sizes[i] = 1 + random_bits(&random) % 40000;
        if (sim__arena_alloc(arena, sizes[i], alignment_of(i), &pieces[i], &err) == STATUS_OK) {
            assert_int_equal((uintptr_t)pieces[i] % alignment_of(i), 0);
            assert_true(sim__arena_holds(arena, pieces[i], sizes[i]));
            memset(pieces[i], (int)i, sizes[i]);
        } else {
            assert_non_null(strstr(err.message, "largest piece"));
            pieces[i] = NULL;
        }
    }
    for (uint32_t i = 0; i < PIECES; i++) {
        if (pieces[i] != NULL)
            sim__arena_free(arena, pieces[i], sizes[i], alignment_of(i));
    }
    /* All free pieces are joined. */
    must(sim__arena_alloc(arena, 1 * MIB, DEVICE_ALIGNMENT, &all, &err), &err);
    assert_int_equal(sim__arena_alloc(arena, 1, 4096, &pieces[0], &err), STATUS_NO_MEMORY);
    assert_int_equal(sim__arena_alloc(arena, UINT64_MAX, DEVICE_ALIGNMENT, &pieces[0], &err),
                     STATUS_NO_MEMORY);
    assert_false(sim__arena_holds(arena, (char *)all + 1, 1 * MIB));
    assert_false(sim__arena_holds(arena, (char *)all - 1, 2));
    assert_true(sim__arena_touches(arena, (char *)all - 1, 2));
    sim__arena_free(arena, all, 1 * MIB, DEVICE_ALIGNMENT);
    sim__arena_destroy(arena);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(copies_run_beside_an_op_that_is_stuck),
        cmocka_unit_test(a_wait_holds_back_what_follows),
        cmocka_unit_test(a_wait_is_for_the_record_before_it),
        cmocka_unit_test(an_event_may_be_recorded_on_another_stream),
        cmocka_unit_test(a_full_queue_makes_the_caller_wait),
        cmocka_unit_test(destroying_waits_for_what_is_queued),
        cmocka_unit_test(errors_stay_and_nobody_hangs),
        cmocka_unit_test(every_copy_can_fail),
        cmocka_unit_test(stray_pointers_are_named),
        cmocka_unit_test(stray_experts_are_named),
        cmocka_unit_test(the_link_loses_nothing_between_copies),
        cmocka_unit_test(copies_are_never_faster_than_the_link),
        cmocka_unit_test(memory_is_never_given_twice),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
