/* cluster/cluster.h - the ranks: who there is, and small things that all of them do together.
 *
 * A rank is one process with one device that serves whole requests (data parallel). Ranks meet when
 * they start, to agree who loads what and to hand each other handles (a pid and an fd, an offset, a
 * size); while they serve they need nothing of each other here. So these are small collectives
 * with one rule: a peer that is dead or never comes is an error, and never a hang.
 *
 * One rank is a cluster too, and works without MPI. Several are MPI's (Open MPI), which is a module
 * that is opened at run time (build/lighter_mpi.so): the program itself needs no MPI.
 *
 *     CLUSTER_WORLD   all ranks                   rank  in [0, size)
 *     CLUSTER_NODE    the ranks of this machine   node_rank in [0, node_size)
 *
 * All ranks of the scope must make the same calls in the same order. After a failure the ranks no
 * longer agree on where they are: every later call fails with the same sentence.
 *
 * A rank that is started in the place of one that died is `alone`: MPI takes nobody back. It has
 * the number it replaces, and the scopes have itself alone: size 1, node_size 1.
 *
 * Threads: any one may call, one at a time; a lock sees to it. */
#ifndef LIGHTER_CLUSTER_CLUSTER_H
#define LIGHTER_CLUSTER_CLUSTER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/log.h"
#include "base/status.h"

struct cluster;

#define CLUSTER_RANK_COUNT_MAX 64
#define CLUSTER_BLOB_BYTES_MAX 4096  /* of one rank's part in one call */
#define CLUSTER_WAIT_S 60            /* a good timeout_s where nobody has work to do first */
#define CLUSTER_WAIT_LOAD_S 0        /* no bound: somebody loads first. The death of a peer on the
                                        same node is noticed within a second all the same */

struct cluster_place {
    uint32_t rank, size;
    uint32_t node_rank, node_size;
};

enum cluster_scope { CLUSTER_WORLD, CLUSTER_NODE };

/* One rank, without MPI. `rank` is what it is called: 0 but for a replacement. The caller
 * owns *cluster_out. */
enum status cluster_open_one(uint32_t rank, struct cluster **cluster_out, struct err *err);
/* Joins the ranks that mpirun has started this process among. module_path: lighter_mpi.so.
 * STATUS_UNAVAILABLE when the module or Open MPI is not there. Once in a process's life. */
enum status cluster_open_mpi(const char *module_path, const struct log *log,
                             struct cluster **cluster_out, struct err *err);
/* Leaves. MPI's leaving waits for the other ranks, so it is skipped after a failure. NULL is
 * fine. */
void cluster_close(struct cluster *cluster);

const struct cluster_place *cluster_place(const struct cluster *cluster);
/* Whether another rank of the node, by its node_rank, is the process that joined, and lives. False,
 * too, where that can't be seen. Any thread. */
bool cluster_node_rank_lives(const struct cluster *cluster, uint32_t node_rank);

/* Returns when all ranks of the scope have come here. STATUS_PEER: not within timeout_s (0: any
 * time), or a rank of this node has died. */
enum status cluster_barrier(struct cluster *cluster, enum cluster_scope scope, uint32_t timeout_s,
                            struct err *err);
/* Every rank gives size_bytes (all the same, 1 to CLUSTER_BLOB_BYTES_MAX); all_out[scope's
 * size][size_bytes] has them in the order of ranks. */
enum status cluster_allgather(struct cluster *cluster, enum cluster_scope scope, const void *blob,
                              size_t size_bytes, void *all_out, uint32_t timeout_s,
                              struct err *err);
/* The scope's rank `root` gives size_bytes; all others get them. */
enum status cluster_broadcast(struct cluster *cluster, enum cluster_scope scope, uint32_t root,
                              void *blob, size_t size_bytes, uint32_t timeout_s, struct err *err);

#endif
