/* device/cuda/graph.c - operators that come again and again are queued as one.
 *
 * A stream keeps the operators of few rows that it is given until something else is queued on it
 * (a copy, an event, a wait), or RUN_OPS of them are there: a run. A run that came before is
 * captured into a graph, and from then on queued by one call instead of one for each operator.
 *
 *     the first time     launched one by one; its hash is noted
 *     the second time    captured, instantiated, launched
 *     from then on       launched
 *
 * What a graph does is what its operators' descriptions say, so these are its key, every byte of
 * them: a run of other operands is another run. What changes from step to step (ids, positions,
 * pages, routers' choices, lists of experts) lies in device memory and is read when kernels run;
 * weights lie in slots, of which there are few. Bytes between a description's fields may differ
 * too: then a run is launched one by one.
 *
 * Copies are not in graphs. Those that run beside computing belong to the next step as often as to
 * this one, so a graph that had to join them would end late; and the times at which they and the
 * computing meet are what the report is made of. They are few and large.
 *
 * Graphs are kept until GRAPHS_MAX are there; then the one that was not used for longest goes,
 * unless all are in use: a model that has more runs in a step than that launches the others one by
 * one. If CUDA refuses to capture, everything is launched one by one from then on, and
 * device_replays says why. */
#include <assert.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "device/cuda/internal.h"
#include "device/operands.h"

#define RUN_OPS 64       /* at most */
#define RUN_OPS_MIN 3    /* fewer are not worth a graph */
#define ROWS_MAX 64      /* of an operator: prompts keep a GPU busy by themselves */
#define GRAPHS_MAX 256
#define SEEN 1024        /* hashes of runs that came once; a power of two */
#define RUNS_IN_USE 1024 /* a graph that was launched in so many runs is not given up */

struct graph {
    void *handle;        /* NULL: none */
    uint64_t hash, used; /* the run that used it last */
    struct op *ops;
    uint32_t op_count;
};

struct cuda_graphs {
    struct op ops[RUN_OPS]; /* the run at hand */
    uint32_t op_count;
    uint64_t run_count;
    uint64_t seen[SEEN];    /* by hash; 0: none */
    struct graph graphs[GRAPHS_MAX];
};

/* Bytes of what the kind has in the union; of a kind that is not listed all of it, where what lies
 * behind may keep a run from being known again, and nothing else. */
static size_t op_bytes(enum op_kind kind)
{
    static const size_t bytes[OP_KIND_COUNT] = {
        [OP_EMBED] = sizeof(struct op_embed),
        [OP_RMS_NORM] = sizeof(struct op_rms_norm),
        [OP_MATMUL] = sizeof(struct op_matmul),
        [OP_ROPE_TABLE] = sizeof(struct op_rope_table),
        [OP_ROPE] = sizeof(struct op_rope),
        [OP_KV_WRITE] = sizeof(struct op_kv_write),
        [OP_ATTENTION] = sizeof(struct op_attention),
        [OP_SILU_MUL] = sizeof(struct op_silu_mul),
        [OP_SCALE] = sizeof(struct op_scale),
        [OP_ROUTE] = sizeof(struct op_route),
        [OP_MOE] = sizeof(struct op_moe),
        [OP_GATHER_ROWS] = sizeof(struct op_gather_rows),
        [OP_GATHER_COLUMNS] = sizeof(struct op_gather_columns),
        [OP_SOFT_CAP] = sizeof(struct op_soft_cap),
    };

    return bytes[kind] > 0 ? bytes[kind] : sizeof(struct op) - offsetof(struct op, embed);
}

/* Without what no kernel looks at: the rest of the union, and host memory. */
static void keep(struct op *to, const struct op *op)
{
    memset(to, 0, sizeof(*to));
    to->kind = op->kind;
    memcpy((char *)to + offsetof(struct op, embed), (const char *)op + offsetof(struct op, embed),
           op_bytes(op->kind));
    if (op->kind == OP_ATTENTION)
        to->attention.host_sequences = to->attention.host_positions = NULL;
}

/* Not 0. */
static uint64_t hash_of(const struct op *ops, uint32_t op_count)
{
    const unsigned char *bytes = (const unsigned char *)ops;
    uint64_t hash = op_count;

    static_assert(sizeof(struct op) % sizeof(uint64_t) == 0, "it is hashed by words");
    for (size_t i = 0; i < op_count * sizeof(*ops); i += sizeof(uint64_t)) {
        uint64_t word;

        memcpy(&word, bytes + i, sizeof(word));
        hash = (hash ^ word) * UINT64_C(0x9e3779b97f4a7c15); /* 2^64 / the golden ratio */
        hash ^= hash >> 29;
    }
    return hash == 0 ? 1 : hash;
}

static struct graph *find(struct cuda_graphs *graphs, uint64_t hash)
{
    for (size_t i = 0; i < GRAPHS_MAX; i++) {
        struct graph *graph = &graphs->graphs[i];

        if (graph->handle != NULL && graph->hash == hash && graph->op_count == graphs->op_count &&
            memcmp((const void *)graph->ops, (const void *)graphs->ops,
                   graphs->op_count * sizeof(*graphs->ops)) == 0)
            return graph;
    }
    return NULL;
}

static void drop(const struct cuda_device *device, struct graph *graph)
{
    if (graph->handle != NULL)
        (void)device->module->graph_destroy(graph->handle);
    free(graph->ops);
    *graph = (struct graph){ 0 };
}

/* A place for another graph; NULL: all are in use. */
static struct graph *place(const struct cuda_device *device, struct cuda_graphs *graphs)
{
    struct graph *oldest = &graphs->graphs[0];

    for (size_t i = 0; i < GRAPHS_MAX && oldest->handle != NULL; i++)
        if (graphs->graphs[i].handle == NULL || graphs->graphs[i].used < oldest->used)
            oldest = &graphs->graphs[i];
    if (oldest->handle != NULL && graphs->run_count - oldest->used < RUNS_IN_USE)
        return NULL;
    drop(device, oldest);
    return oldest;
}

/* From now on everything is launched one by one. */
static void stop(struct cuda_device *device, int code, const char *what)
{
    (void)cuda__fail(device->module, device->base.info.name, code, &device->graphs_why,
                     "operators are queued one by one from now on: %s", what);
    atomic_store_explicit(&device->graphs_stopped, true, memory_order_release);
}

/* The run as a graph; NULL: there is none. */
static void *capture(struct cuda_device *device, const struct cuda_stream *stream)
{
    const struct cuda_graphs *graphs = stream->graphs;
    const struct cuda_module *module = device->module;
    const char *what = "cudaStreamBeginCapture";
    void *handle = NULL;
    int code = module->graph_begin(stream->handle);

    if (code == 0) {
        int end;

        what = "a launch that was captured";
        for (uint32_t i = 0; i < graphs->op_count && code == 0; i++)
            code = module->launch(stream->handle, &graphs->ops[i], &stream->room);
        end = module->graph_end(stream->handle, code == 0 ? &handle : NULL);
        if (code == 0 && end != 0) {
            what = "capturing them";
            code = end;
        }
    }
    if (code != 0)
        stop(device, code, what);
    return handle;
}

/* A graph of a run that came before; NULL: there is none. */
static struct graph *make(struct cuda_device *device, const struct cuda_stream *stream,
                          uint64_t hash)
{
    struct cuda_graphs *graphs = stream->graphs;
    struct graph *graph = place(device, graphs);
    const size_t size = graphs->op_count * sizeof(*graphs->ops);

    if (graph == NULL)
        return NULL;
    graph->ops = malloc(size);
    if (graph->ops == NULL)
        return NULL;
    memcpy(graph->ops, graphs->ops, size);
    graph->op_count = graphs->op_count;
    graph->hash = hash;
    graph->handle = capture(device, stream);
    if (graph->handle == NULL) {
        drop(device, graph);
        return NULL;
    }
    (void)atomic_fetch_add_explicit(&device->graph_count, 1, memory_order_relaxed);
    return graph;
}

/* The graph that does the run at hand; NULL: its operators are to be launched. */
static struct graph *graph_for(struct cuda_device *device, const struct cuda_stream *stream)
{
    struct cuda_graphs *graphs = stream->graphs;
    struct graph *graph;
    uint64_t hash, *seen;

    if (graphs->op_count < RUN_OPS_MIN ||
        atomic_load_explicit(&device->graphs_stopped, memory_order_relaxed))
        return NULL;
    hash = hash_of(graphs->ops, graphs->op_count);
    graph = find(graphs, hash);
    seen = &graphs->seen[hash % SEEN];
    if (graph == NULL && *seen == hash)
        graph = make(device, stream, hash);
    *seen = hash;
    if (graph != NULL)
        graph->used = graphs->run_count;
    return graph;
}

enum status cuda__graphs_flush(struct cuda_stream *stream, struct err *err)
{
    struct cuda_graphs *graphs = stream->graphs;
    struct cuda_device *device = (struct cuda_device *)stream->base.device;
    const uint32_t op_count = graphs == NULL ? 0 : graphs->op_count;
    const struct graph *graph;
    int code = 0;

    if (op_count == 0)
        return STATUS_OK;
    graphs->run_count++;
    graph = graph_for(device, stream);
    graphs->op_count = 0;
    if (graph != NULL) {
        code = device->module->graph_launch(stream->handle, graph->handle);
        if (code != 0)
            return cuda__stream_break(stream, code, "cudaGraphLaunch", err);
        (void)atomic_fetch_add_explicit(&device->replayed_count, op_count, memory_order_relaxed);
        return STATUS_OK;
    }
    for (uint32_t i = 0; i < op_count; i++) {
        code = device->module->launch(stream->handle, &graphs->ops[i], &stream->room);
        if (code != 0)
            return cuda__stream_break(stream, code, op_kind_name(graphs->ops[i].kind), err);
    }
    return STATUS_OK;
}

bool cuda__graphs_keep(const struct cuda_stream *stream, const struct op *op)
{
    struct cuda_graphs *graphs = stream->graphs;

    if (graphs == NULL || op_row_count(op) > ROWS_MAX)
        return false;
    assert(graphs->op_count < RUN_OPS);
    keep(&graphs->ops[graphs->op_count++], op);
    return true;
}

bool cuda__graphs_are_full(const struct cuda_stream *stream)
{
    return stream->graphs != NULL && stream->graphs->op_count == RUN_OPS;
}

enum status cuda__graphs_create(const struct cuda_device *device, struct cuda_graphs **graphs_out,
                                struct err *err)
{
    *graphs_out = calloc(1, sizeof(**graphs_out));
    return *graphs_out != NULL ? STATUS_OK
                               : err_set(err, STATUS_NO_MEMORY, "%s: no memory for graphs",
                                         device->base.info.name);
}

void cuda__graphs_destroy(const struct cuda_device *device, struct cuda_graphs *graphs)
{
    for (size_t i = 0; graphs != NULL && i < GRAPHS_MAX; i++)
        drop(device, &graphs->graphs[i]);
    free(graphs);
}

void cuda__replays(const struct device *base, struct device_replays *replays_out)
{
    const struct cuda_device *device = (const struct cuda_device *)base;
    const bool stopped = atomic_load_explicit(&device->graphs_stopped, memory_order_acquire);

    replays_out->op_count = atomic_load_explicit(&device->op_count, memory_order_relaxed);
    replays_out->replayed_count =
        atomic_load_explicit(&device->replayed_count, memory_order_relaxed);
    replays_out->graph_count = atomic_load_explicit(&device->graph_count, memory_order_relaxed);
    replays_out->stopped = stopped ? device->graphs_why.message : NULL;
}
