/* cluster/mpi_module.c - lighter_mpi.so: the cluster's collectives on MPI. The one file that sees
 * mpi.h; built where pkg-config finds ompi-c, and opened at run time.
 *
 * Only MPI-3's non-blocking collectives are used, so that a dead peer can't hang a rank. They must
 * be tested for MPI to make progress; cluster.c does that. */
#include <mpi.h>
#include <stdio.h>

#include "cluster/module.h"

static struct mpi_state {
    MPI_Comm world, node;  /* copies of our own; errors come back as codes */
    MPI_Request request;
    void *kept_in, *kept_out; /* of a call that never ended; MPI has them for good */
} state = { .world = MPI_COMM_NULL, .node = MPI_COMM_NULL, .request = MPI_REQUEST_NULL };

static int fail(const char *what, int code, char *why, size_t why_size)
{
    char text[MPI_MAX_ERROR_STRING] = "";
    int length = 0;

    (void)MPI_Error_string(code, text, &length);
    (void)snprintf(why, why_size, "MPI: %s: %.*s", what, length, text);
    return -1;
}

static int mpi_open(struct cluster_place *place_out, char *why, size_t why_size)
{
    int provided = 0, rank = 0, size = 0, node_rank = 0, node_size = 0;
    int code = MPI_Init_thread(NULL, NULL, MPI_THREAD_SERIALIZED, &provided);

    if (code != MPI_SUCCESS)
        return fail("starting", code, why, why_size);
    if (provided < MPI_THREAD_SERIALIZED) {
        (void)snprintf(why, why_size, "MPI: this library was built without threads");
        return -1;
    }
    (void)MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
    code = MPI_Comm_dup(MPI_COMM_WORLD, &state.world);
    if (code == MPI_SUCCESS)
        code = MPI_Comm_split_type(state.world, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL,
                                   &state.node);
    if (code == MPI_SUCCESS)
        code = MPI_Comm_rank(state.world, &rank);
    if (code == MPI_SUCCESS)
        code = MPI_Comm_size(state.world, &size);
    if (code == MPI_SUCCESS)
        code = MPI_Comm_rank(state.node, &node_rank);
    if (code == MPI_SUCCESS)
        code = MPI_Comm_size(state.node, &node_size);
    if (code != MPI_SUCCESS)
        return fail("finding the ranks", code, why, why_size);
    (void)MPI_Comm_set_errhandler(state.world, MPI_ERRORS_RETURN);
    (void)MPI_Comm_set_errhandler(state.node, MPI_ERRORS_RETURN);
    *place_out = (struct cluster_place){
        .rank = (uint32_t)rank, .size = (uint32_t)size,
        .node_rank = (uint32_t)node_rank, .node_size = (uint32_t)node_size,
    };
    return 0;
}

static void mpi_close(void)
{
    (void)MPI_Comm_free(&state.node);
    (void)MPI_Comm_free(&state.world);
    (void)MPI_Finalize();
}

static void mpi_abandon(void *in, void *out)
{
    state.kept_in = in;
    state.kept_out = out;
}

static int mpi_begin(const struct cluster_call *call, char *why, size_t why_size)
{
    const MPI_Comm comm = call->scope == CLUSTER_NODE ? state.node : state.world;
    const int size = (int)call->size_bytes;
    int code = MPI_ERR_OTHER;

    switch (call->op) {
    case CLUSTER_OP_BARRIER: code = MPI_Ibarrier(comm, &state.request); break;
    case CLUSTER_OP_ALLGATHER:
        code = MPI_Iallgather(call->in, size, MPI_BYTE, call->out, size, MPI_BYTE, comm,
                              &state.request);
        break;
    case CLUSTER_OP_BROADCAST:
        code = MPI_Ibcast(call->out, size, MPI_BYTE, (int)call->root, comm, &state.request);
        break;
    }
    return code == MPI_SUCCESS ? 0 : fail("beginning a collective", code, why, why_size);
}

static int mpi_test(int *done_out, char *why, size_t why_size)
{
    const int code = MPI_Test(&state.request, done_out, MPI_STATUS_IGNORE);

    return code == MPI_SUCCESS ? 0 : fail("a collective", code, why, why_size);
}

extern const struct cluster_module lighter_cluster_module;
const struct cluster_module lighter_cluster_module = {
    .version = CLUSTER_MODULE_VERSION,
    .open = mpi_open,
    .close = mpi_close,
    .abandon = mpi_abandon,
    .begin = mpi_begin,
    .test = mpi_test,
};
