/* cluster/module.h - what lighter_mpi.so gives the program: MPI behind a table of plain functions.
 *
 * Collectives are begun and then tested, so that whoever waits can watch a clock and the peers'
 * lives; one is under way at a time. The module knows nothing of the program and calls nothing in
 * it. Errors are 0 or -1 with a sentence in `why`. MPI is a thing of the whole process, so the
 * module has no handle: it is opened once. */
#ifndef LIGHTER_CLUSTER_MODULE_H
#define LIGHTER_CLUSTER_MODULE_H

#include <stddef.h>
#include <stdint.h>

#include "cluster/cluster.h"

#define CLUSTER_MODULE_VERSION 2
#define CLUSTER_MODULE_SYMBOL "lighter_cluster_module"

enum cluster_op { CLUSTER_OP_BARRIER, CLUSTER_OP_ALLGATHER, CLUSTER_OP_BROADCAST };

struct cluster_call {
    enum cluster_op op;
    enum cluster_scope scope;
    uint32_t root;               /* of a broadcast */
    const void *in;              /* of an allgather */
    void *out;                   /* of an allgather or broadcast */
    size_t size_bytes;           /* of one rank's part */
};

struct cluster_module {
    uint32_t version;            /* CLUSTER_MODULE_VERSION */
    int (*open)(struct cluster_place *place_out, char *why, size_t why_size);
    void (*close)(void);
    /* Instead of close, after a call that never got to its end: takes its buffers, which whatever
     * is still under way may write to. */
    void (*abandon)(void *in, void *out);
    /* Buffers stay put until `test` says done. */
    int (*begin)(const struct cluster_call *call, char *why, size_t why_size);
    int (*test)(int *done_out, char *why, size_t why_size);
};

#endif
