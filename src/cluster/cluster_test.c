/* cluster/cluster_test.c - collectives end: with what was wanted, or with a sentence.
 *
 * Method: a module of plain functions in MPI's place, which answers at once, late, never, or with
 * an error; the "peer" is a child process that the test kills. tests/ranks_test.py has real MPI. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "cluster/internal.h"

static struct fake {
    int tests_until_done; /* -1: never */
    int tests_left;
    bool fails, closed;
    pid_t peer;
    struct cluster_call call;
} fake;

static int fake_open(struct cluster_place *place_out, char *why, size_t why_size)
{
    (void)why, (void)why_size;
    *place_out = (struct cluster_place){ .rank = 2, .size = 3, .node_rank = 1, .node_size = 2 };
    return 0;
}

static void fake_close(void)
{
    fake.closed = true;
}

/* Nothing of the fake's is ever under way. */
static void fake_abandon(void *in, void *out)
{
    free(in);
    free(out);
}

static int fake_begin(const struct cluster_call *call, char *why, size_t why_size)
{
    (void)why, (void)why_size;
    fake.call = *call;
    fake.tests_left = fake.tests_until_done;
    return 0;
}

/* The other ranks give the same as this one, but for the pids. */
static int fake_test(int *done_out, char *why, size_t why_size)
{
    const struct cluster_call *call = &fake.call;

    if (fake.fails) {
        (void)snprintf(why, why_size, "the wire is cut");
        return -1;
    }
    *done_out = fake.tests_left == 0;
    if (fake.tests_left > 0)
        fake.tests_left--;
    if (*done_out && call->op == CLUSTER_OP_ALLGATHER) {
        const uint32_t count = call->scope == CLUSTER_NODE ? 2 : 3;
        for (uint32_t i = 0; i < count; i++)
            memcpy((uint8_t *)call->out + i * call->size_bytes, call->in, call->size_bytes);
        if (call->scope == CLUSTER_NODE && call->size_bytes == sizeof(int64_t))
            *(int64_t *)call->out = fake.peer;
    }
    if (*done_out && call->op == CLUSTER_OP_BROADCAST)
        memset(call->out, (int)call->root + 7, call->size_bytes);
    return 0;
}

static const struct cluster_module module = {
    .version = CLUSTER_MODULE_VERSION, .open = fake_open, .close = fake_close,
    .abandon = fake_abandon,
    .begin = fake_begin, .test = fake_test,
};

static int open_fake(void **state)
{
    struct cluster *cluster = NULL;
    struct err err;
    pid_t peer = fork();

    if (peer == 0) {
        for (;;)
            (void)pause();
    }
    fake = (struct fake){ .peer = peer };
    if (cluster__open_module(&module, &cluster, &err) != STATUS_OK)
        return -1;
    *state = cluster;
    return 0;
}

static void kill_peer(void)
{
    (void)kill(fake.peer, SIGKILL);
    (void)waitpid(fake.peer, NULL, 0);
    fake.peer = 0;
}

static int close_fake(void **state)
{
    if (fake.peer > 0)
        kill_peer();
    cluster_close(*state);
    return 0;
}

static void one_rank_is_a_cluster(void **state)
{
    struct cluster *cluster = NULL;
    uint32_t out = 0, in = 42;
    struct err err;

    (void)state;
    assert_int_equal(cluster_open_one(3, &cluster, &err), STATUS_OK);
    assert_int_equal(cluster_place(cluster)->rank, 3);
    assert_int_equal(cluster_place(cluster)->size, 1);
    assert_int_equal(cluster_place(cluster)->node_rank, 0);
    assert_int_equal(cluster_place(cluster)->node_size, 1);
    assert_int_equal(cluster_barrier(cluster, CLUSTER_WORLD, 1, &err), STATUS_OK);
    assert_int_equal(cluster_allgather(cluster, CLUSTER_NODE, &in, sizeof(in), &out, 1, &err),
                     STATUS_OK);
    assert_int_equal(out, 42);
    assert_int_equal(cluster_broadcast(cluster, CLUSTER_WORLD, 0, &in, sizeof(in), 1, &err),
                     STATUS_OK);
    assert_int_equal(in, 42);
    cluster_close(cluster);
    cluster_close(NULL);
}

static void a_missing_module_is_a_sentence(void **state)
{
    struct cluster *cluster = NULL;
    struct err err;

    (void)state;
    assert_int_equal(cluster_open_mpi("/nowhere/lighter_mpi.so", NULL, &cluster, &err),
                     STATUS_UNAVAILABLE);
    assert_non_null(strstr(err.message, "Open MPI"));
    assert_null(cluster);
}

static void collectives_bring_what_was_given(void **state)
{
    struct cluster *cluster = *state;
    const char in[5] = "lamp";
    char all[3][5] = { "" };
    uint8_t sent[4] = { 0 };
    struct err err;

    fake.tests_until_done = 30; /* long enough to sleep in between */
    assert_int_equal(cluster_allgather(cluster, CLUSTER_WORLD, in, sizeof(in), all, 60, &err),
                     STATUS_OK);
    assert_string_equal(all[0], "lamp");
    assert_string_equal(all[2], "lamp");
    assert_int_equal(cluster_broadcast(cluster, CLUSTER_NODE, 1, sent, 4, 60, &err), STATUS_OK);
    assert_int_equal(sent[3], 8);
    assert_int_equal(cluster_barrier(cluster, CLUSTER_WORLD, CLUSTER_WAIT_LOAD_S, &err),
                     STATUS_OK);
    cluster_close(cluster);
    assert_true(fake.closed);
    *state = NULL;
}

static void a_dead_peer_is_an_error(void **state)
{
    struct cluster *cluster = *state;
    struct err err;

    fake.tests_until_done = -1;
    kill_peer();
    assert_int_equal(cluster_barrier(cluster, CLUSTER_WORLD, CLUSTER_WAIT_LOAD_S, &err),
                     STATUS_PEER);
    assert_non_null(strstr(err.message, "rank 0 of this node's 2"));
    /* Nothing works from here on, and leaving waits for nobody. */
    fake.tests_until_done = 0;
    assert_int_equal(cluster_barrier(cluster, CLUSTER_NODE, 60, &err), STATUS_PEER);
    assert_non_null(strstr(err.message, "rank 0 of this node's 2"));
    cluster_close(cluster);
    assert_false(fake.closed);
    *state = NULL;
}

static void a_peer_that_never_comes_is_an_error(void **state)
{
    struct err err;

    fake.tests_until_done = -1;
    assert_int_equal(cluster_barrier(*state, CLUSTER_WORLD, 1, &err), STATUS_PEER);
    assert_non_null(strstr(err.message, "1 seconds"));
}

static void an_error_of_the_module_is_passed_on(void **state)
{
    uint32_t value = 0;
    struct err err;

    fake.fails = true;
    assert_int_equal(cluster_broadcast(*state, CLUSTER_WORLD, 0, &value, sizeof(value), 60, &err),
                     STATUS_PEER);
    assert_string_equal(err.message, "the wire is cut");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(one_rank_is_a_cluster),
        cmocka_unit_test(a_missing_module_is_a_sentence),
        cmocka_unit_test_setup_teardown(collectives_bring_what_was_given, open_fake, close_fake),
        cmocka_unit_test_setup_teardown(a_dead_peer_is_an_error, open_fake, close_fake),
        cmocka_unit_test_setup_teardown(a_peer_that_never_comes_is_an_error, open_fake, close_fake),
        cmocka_unit_test_setup_teardown(an_error_of_the_module_is_passed_on, open_fake, close_fake),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
