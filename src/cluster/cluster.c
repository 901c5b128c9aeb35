/* cluster/cluster.c - see cluster.h. The module begins a collective; this waits for it, with one
 * eye on the clock and one on the lives of the node's other ranks.
 *
 * MPI notices a peer's death late or not at all, so the ranks of a node exchange their pids when
 * they open, and each keeps a pidfd of every other: that is readable when the process ends, and
 * can't mean a later process by the same number. Ranks in another pid namespace can't be watched
 * so; for them, and for other nodes, there is the time limit, and the front end that notices a
 * closed socket and stops all.
 *
 * A collective that failed can't be taken back, and MPI may still write to its buffers: they are
 * ours, and kept until the process ends. */
#include "cluster/cluster.h"

#include <assert.h>
#include <dlfcn.h>
#include <poll.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/clock.h"
#include "cluster/internal.h"

#define TEST_EAGER_NS UINT64_C(2000000)   /* how long to look without sleeping in between */
#define TEST_SLEEP_NS UINT64_C(500000)
#define PEERS_LOOK_NS UINT64_C(100000000) /* how often the peers' lives are looked at */

struct cluster {
    struct cluster_place place;          /* set once, as is the next */
    const struct cluster_module *module; /* NULL: one rank */
    struct pollfd *peers;                /* [node_size], fd -1: not watched. Set by open */
    pthread_mutex_t lock;                /* guards what follows; held through a whole call */
    uint8_t *in, *out;                   /* what MPI reads and writes */
    bool has_failed;
    struct err failure;                  /* of the first call that failed */
};

static uint32_t scope_size(const struct cluster *cluster, enum cluster_scope scope)
{
    return scope == CLUSTER_NODE ? cluster->place.node_size : cluster->place.size;
}

/* -- waiting ----------------------------------------------------------------------------------- */

static enum status check_peers(struct cluster *cluster, struct err *err)
{
    if (poll(cluster->peers, cluster->place.node_size, 0) <= 0)
        return STATUS_OK;
    for (uint32_t i = 0; i < cluster->place.node_size; i++) {
        if (cluster->peers[i].fd >= 0 && cluster->peers[i].revents != 0)
            return err_set(err, STATUS_PEER, "rank %u of this node's %u has ended", i,
                           cluster->place.node_size);
    }
    return STATUS_OK;
}

static enum status wait_done(struct cluster *cluster, uint32_t timeout_s, struct err *err)
{
    const uint64_t begin_ns = clock_now_ns();
    uint64_t look_ns = begin_ns + PEERS_LOOK_NS;
    char why[256] = "";
    enum status st;

    for (;;) {
        uint64_t now_ns;
        int done = 0;

        if (cluster->module->test(&done, why, sizeof(why)) != 0)
            return err_set(err, STATUS_PEER, "%s", why);
        if (done)
            return STATUS_OK;
        now_ns = clock_now_ns();
        if (now_ns >= look_ns) {
            st = check_peers(cluster, err);
            /* Who has come through here may end at once: then it is done for us too. */
            if (st != STATUS_OK && cluster->module->test(&done, why, sizeof(why)) == 0 && done)
                return STATUS_OK;
            if (st != STATUS_OK)
                return st;
            look_ns = now_ns + PEERS_LOOK_NS;
        }
        if (timeout_s > 0 && now_ns - begin_ns > timeout_s * UINT64_C(1000000000))
            return err_set(err, STATUS_PEER, "waited %u seconds for the other ranks", timeout_s);
        if (now_ns - begin_ns > TEST_EAGER_NS)
            clock_sleep_until_ns(now_ns + TEST_SLEEP_NS);
    }
}

/* With the lock held. `in` and `out` are the caller's; MPI sees copies. */
static enum status run(struct cluster *cluster, struct cluster_call *call, const void *in,
                       void *out, uint32_t timeout_s, struct err *err)
{
    const size_t out_bytes = call->op == CLUSTER_OP_ALLGATHER
                                 ? call->size_bytes * scope_size(cluster, call->scope)
                                 : call->size_bytes;
    char why[256] = "";
    enum status st;

    if (cluster->has_failed)
        return err_set(err, cluster->failure.status, "%s", cluster->failure.message);
    if (in != NULL)
        memcpy(cluster->in, in, call->size_bytes);
    if (call->op == CLUSTER_OP_BROADCAST)
        memcpy(cluster->out, out, call->size_bytes);
    call->in = cluster->in;
    call->out = cluster->out;
    if (cluster->module->begin(call, why, sizeof(why)) != 0)
        st = err_set(&cluster->failure, STATUS_PEER, "%s", why);
    else
        st = wait_done(cluster, timeout_s, &cluster->failure);
    if (st != STATUS_OK) {
        cluster->has_failed = true;
        return err_set(err, st, "%s", cluster->failure.message);
    }
    if (out != NULL)
        memcpy(out, cluster->out, out_bytes);
    return STATUS_OK;
}

static enum status call_module(struct cluster *cluster, struct cluster_call call, const void *in,
                               void *out, uint32_t timeout_s, struct err *err)
{
    enum status st;

    pthread_mutex_lock(&cluster->lock);
    st = run(cluster, &call, in, out, timeout_s, err);
    pthread_mutex_unlock(&cluster->lock);
    return st;
}

/* -- the calls --------------------------------------------------------------------------------- */

const struct cluster_place *cluster_place(const struct cluster *cluster)
{
    return &cluster->place;
}

bool cluster_node_rank_lives(const struct cluster *cluster, uint32_t node_rank)
{
    struct pollfd peer;

    assert(node_rank < cluster->place.node_size);
    if (node_rank == cluster->place.node_rank)
        return true;
    peer = cluster->peers[node_rank];
    return peer.fd >= 0 && poll(&peer, 1, 0) == 0;
}

enum status cluster_barrier(struct cluster *cluster, enum cluster_scope scope, uint32_t timeout_s,
                            struct err *err)
{
    if (cluster->module == NULL)
        return STATUS_OK;
    return call_module(cluster, (struct cluster_call){ .op = CLUSTER_OP_BARRIER, .scope = scope },
                       NULL, NULL, timeout_s, err);
}

enum status cluster_allgather(struct cluster *cluster, enum cluster_scope scope, const void *blob,
                              size_t size_bytes, void *all_out, uint32_t timeout_s,
                              struct err *err)
{
    const struct cluster_call call = {
        .op = CLUSTER_OP_ALLGATHER, .scope = scope, .size_bytes = size_bytes,
    };

    assert(size_bytes > 0 && size_bytes <= CLUSTER_BLOB_BYTES_MAX);
    if (cluster->module == NULL) {
        memcpy(all_out, blob, size_bytes);
        return STATUS_OK;
    }
    return call_module(cluster, call, blob, all_out, timeout_s, err);
}

enum status cluster_broadcast(struct cluster *cluster, enum cluster_scope scope, uint32_t root,
                              void *blob, size_t size_bytes, uint32_t timeout_s, struct err *err)
{
    const struct cluster_call call = {
        .op = CLUSTER_OP_BROADCAST, .scope = scope, .root = root, .size_bytes = size_bytes,
    };

    assert(size_bytes > 0 && size_bytes <= CLUSTER_BLOB_BYTES_MAX);
    assert(root < scope_size(cluster, scope));
    if (cluster->module == NULL)
        return STATUS_OK;
    return call_module(cluster, call, NULL, blob, timeout_s, err);
}

/* -- open and close ---------------------------------------------------------------------------- */

static enum status cluster_new(struct cluster **cluster_out, struct err *err)
{
    struct cluster *cluster = calloc(1, sizeof(*cluster));

    if (cluster == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for a cluster");
    pthread_mutex_init(&cluster->lock, NULL);
    *cluster_out = cluster;
    return STATUS_OK;
}

static void cluster_free(struct cluster *cluster)
{
    for (uint32_t i = 0; cluster->peers != NULL && i < cluster->place.node_size; i++)
        if (cluster->peers[i].fd >= 0)
            (void)close(cluster->peers[i].fd);
    free(cluster->peers);
    if (cluster->module != NULL && cluster->has_failed) { /* MPI may still write there */
        cluster->module->abandon(cluster->in, cluster->out);
    } else {
        free(cluster->in);
        free(cluster->out);
    }
    pthread_mutex_destroy(&cluster->lock);
    free(cluster);
}

enum status cluster_open_one(uint32_t rank, struct cluster **cluster_out, struct err *err)
{
    enum status st = cluster_new(cluster_out, err);

    if (st == STATUS_OK)
        (*cluster_out)->place = (struct cluster_place){ .rank = rank, .size = 1, .node_size = 1 };
    return st;
}

static enum status watch_peers(struct cluster *cluster, struct err *err)
{
    const uint32_t count = cluster->place.node_size;
    const int64_t own = getpid();
    int64_t *pids = calloc(count, sizeof(*pids));
    enum status st = STATUS_OK;

    cluster->peers = calloc(count, sizeof(*cluster->peers));
    if (pids == NULL || cluster->peers == NULL)
        st = err_set(err, STATUS_NO_MEMORY, "no memory for %u ranks", count);
    for (uint32_t i = 0; i < count && cluster->peers != NULL; i++)
        cluster->peers[i] = (struct pollfd){ .fd = -1, .events = POLLIN };
    if (st == STATUS_OK)
        st = cluster_allgather(cluster, CLUSTER_NODE, &own, sizeof(own), pids, CLUSTER_WAIT_S,
                               err);
    for (uint32_t i = 0; i < count && st == STATUS_OK; i++)
        if (i != cluster->place.node_rank)
            cluster->peers[i].fd = (int)syscall(SYS_pidfd_open, (pid_t)pids[i], 0);
    free(pids);
    /* A barrier that nobody can leave before all have opened what they watch. */
    if (st == STATUS_OK)
        st = cluster_barrier(cluster, CLUSTER_NODE, CLUSTER_WAIT_S, err);
    return st;
}

enum status cluster__open_module(const struct cluster_module *module,
                                 struct cluster **cluster_out, struct err *err)
{
    struct cluster *cluster = NULL;
    char why[512] = "";
    enum status st = cluster_new(&cluster, err);

    if (st != STATUS_OK)
        return st;
    if (module->open(&cluster->place, why, sizeof(why)) != 0) {
        cluster_free(cluster);
        return err_set(err, STATUS_PEER, "%s", why);
    }
    cluster->module = module;
    cluster->in = malloc(CLUSTER_BLOB_BYTES_MAX);
    cluster->out = malloc((size_t)CLUSTER_BLOB_BYTES_MAX * cluster->place.size);
    if (cluster->place.size > CLUSTER_RANK_COUNT_MAX)
        st = err_set(err, STATUS_BAD_INPUT, "%u ranks; at most %d are possible",
                     cluster->place.size, CLUSTER_RANK_COUNT_MAX);
    else if (cluster->in == NULL || cluster->out == NULL)
        st = err_set(err, STATUS_NO_MEMORY, "no memory for %u ranks", cluster->place.size);
    else
        st = watch_peers(cluster, err);
    if (st != STATUS_OK) {
        cluster_free(cluster);
        return st;
    }
    *cluster_out = cluster;
    return STATUS_OK;
}

enum status cluster_open_mpi(const char *module_path, const struct log *log,
                             struct cluster **cluster_out, struct err *err)
{
    /* Global: Open MPI's own plugins look for its symbols there. Never closed again: MPI leaves
     * threads and exit handlers behind. */
    void *library = dlopen(module_path, RTLD_NOW | RTLD_GLOBAL);
    const struct cluster_module *module;
    enum status st;

    if (library == NULL)
        return err_set(err, STATUS_UNAVAILABLE,
                       "several ranks need Open MPI: %s (Debian: libopenmpi-dev and openmpi-bin, "
                       "then build again)", dlerror());
    module = dlsym(library, CLUSTER_MODULE_SYMBOL);
    if (module == NULL || module->version != CLUSTER_MODULE_VERSION)
        return err_set(err, STATUS_UNAVAILABLE, "%s is not of this program's version", module_path);
    st = cluster__open_module(module, cluster_out, err);
    if (st == STATUS_OK)
        log_line(log, LOG_DEBUG, "rank %u of %u; on this node %u of %u", (*cluster_out)->place.rank,
                 (*cluster_out)->place.size, (*cluster_out)->place.node_rank,
                 (*cluster_out)->place.node_size);
    return st;
}

void cluster_close(struct cluster *cluster)
{
    if (cluster == NULL)
        return;
    if (cluster->module != NULL && !cluster->has_failed)
        cluster->module->close();
    cluster_free(cluster);
}
