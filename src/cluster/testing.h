/* cluster/testing.h - several ranks on one node for tests of any room, without MPI: forked children
 * that meet in memory they share.
 *
 * A child that fails an assertion, crashes, or does not come to its end within a minute shows in
 * its wait status. Fork before anything has threads. Only tests include this. */
#ifndef LIGHTER_CLUSTER_TESTING_H
#define LIGHTER_CLUSTER_TESTING_H

#include <assert.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cluster/internal.h"

#define CLUSTER_TESTING_RANKS_MAX 9
#define CLUSTER_TESTING_CALLS_MAX 4096
#define CLUSTER_TESTING_SECONDS_MAX 60

/* Parts of two calls in turn: who begins the next has been through the last, so nobody still reads
 * the one before. */
struct cluster_testing_memory {
    atomic_uint arrived[CLUSTER_TESTING_CALLS_MAX];
    uint8_t parts[2][CLUSTER_TESTING_RANKS_MAX][CLUSTER_BLOB_BYTES_MAX];
};

static struct cluster_testing_state {
    struct cluster_testing_memory *memory;
    struct cluster_call call;
    uint32_t rank, count, call_count;
} cluster_testing;

static inline int cluster_testing_open(struct cluster_place *place_out, char *why, size_t why_size)
{
    const struct cluster_testing_state *t = &cluster_testing;

    (void)why, (void)why_size;
    *place_out = (struct cluster_place){ t->rank, t->count, t->rank, t->count };
    return 0;
}

static inline void cluster_testing_close(void)
{
}

static inline int cluster_testing_begin(const struct cluster_call *call, char *why,
                                        size_t why_size)
{
    struct cluster_testing_state *t = &cluster_testing;

    (void)why, (void)why_size;
    assert(t->call_count < CLUSTER_TESTING_CALLS_MAX);
    t->call = *call;
    if (call->op == CLUSTER_OP_ALLGATHER)
        memcpy(t->memory->parts[t->call_count % 2][t->rank], call->in, call->size_bytes);
    if (call->op == CLUSTER_OP_BROADCAST && call->root == t->rank)
        memcpy(t->memory->parts[t->call_count % 2][t->rank], call->out, call->size_bytes);
    (void)atomic_fetch_add(&t->memory->arrived[t->call_count], 1); /* publishes the part */
    return 0;
}

/* Nobody writes to another's buffers. */
static inline void cluster_testing_abandon(void *in, void *out)
{
    free(in);
    free(out);
}

static inline int cluster_testing_test(int *done_out, char *why, size_t why_size)
{
    struct cluster_testing_state *t = &cluster_testing;
    const struct cluster_call *call = &t->call;

    (void)why, (void)why_size;
    *done_out = atomic_load(&t->memory->arrived[t->call_count]) == t->count;
    if (!*done_out)
        return 0;
    for (uint32_t i = 0; i < t->count && call->op == CLUSTER_OP_ALLGATHER; i++)
        memcpy((uint8_t *)call->out + i * call->size_bytes,
               t->memory->parts[t->call_count % 2][i], call->size_bytes);
    if (call->op == CLUSTER_OP_BROADCAST)
        memcpy(call->out, t->memory->parts[t->call_count % 2][call->root], call->size_bytes);
    t->call_count++;
    return 0;
}

static const struct cluster_module cluster_testing_module = {
    .version = CLUSTER_MODULE_VERSION,
    .open = cluster_testing_open,
    .close = cluster_testing_close,
    .abandon = cluster_testing_abandon,
    .begin = cluster_testing_begin,
    .test = cluster_testing_test,
};

/* In the child; does not return. */
static inline void cluster_testing_child(void (*rank_main)(struct cluster *cluster, void *arg),
                                         void *arg)
{
    static const int caught[] = { SIGFPE, SIGILL, SIGSEGV, SIGBUS, SIGSYS, SIGABRT };
    struct cluster *cluster = NULL;
    struct err err;

    for (size_t i = 0; i < sizeof(caught) / sizeof(caught[0]); i++)
        (void)signal(caught[i], SIG_DFL);
    (void)setenv("CMOCKA_TEST_ABORT", "1", 1); /* else the child would go on as the parent */
    (void)alarm(CLUSTER_TESTING_SECONDS_MAX);
    if (cluster__open_module(&cluster_testing_module, &cluster, &err) != STATUS_OK) {
        (void)fprintf(stderr, "rank %u: %s\n", cluster_testing.rank, err.message);
        _exit(1);
    }
    rank_main(cluster, arg);
    cluster_close(cluster);
    _exit(0);
}

/* Runs rank_main in `count` children and waits for them. ended_out[count]: what waitpid said; 0 is
 * a child that has come to its end. */
static inline void cluster_testing_run(uint32_t count,
                                       void (*rank_main)(struct cluster *cluster, void *arg),
                                       void *arg, int *ended_out)
{
    struct cluster_testing_memory *memory =
        mmap(NULL, sizeof(*memory), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    pid_t children[CLUSTER_TESTING_RANKS_MAX];

    assert(memory != MAP_FAILED);
    assert(count >= 1 && count <= CLUSTER_TESTING_RANKS_MAX);
    (void)fflush(NULL);
    for (uint32_t rank = 0; rank < count; rank++) {
        cluster_testing = (struct cluster_testing_state){ memory, { 0 }, rank, count, 0 };
        children[rank] = fork();
        assert(children[rank] >= 0);
        if (children[rank] == 0)
            cluster_testing_child(rank_main, arg);
    }
    for (uint32_t rank = 0; rank < count; rank++) {
        ended_out[rank] = -1;
        (void)waitpid(children[rank], &ended_out[rank], 0);
    }
    (void)munmap(memory, sizeof(*memory));
}

#endif
