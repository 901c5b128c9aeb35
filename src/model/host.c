/* model/host.c - what a model takes of host memory, and whether its budget has room for it.
 *
 *     taken before | homes | staging | tables | loading | a step's metadata | the caller's
 *
 * The offload says what its part comes to (offload_sizes); the caller, which is the engine, says
 * how much it will take (host_reserve_bytes). Auto is told before it plans what they leave. */
#include <inttypes.h>

#include "base/size.h"
#include "cluster/cluster.h"
#include "model/internal.h"

#define STAGING_BYTES_MIN (64 * KIB) /* also holds every table of frequencies */

uint64_t model__staging_bytes(const struct model_sizes *sizes)
{
    return sizes->metadata_bytes > STAGING_BYTES_MIN ? sizes->metadata_bytes : STAGING_BYTES_MIN;
}

uint64_t model__host_leave(const struct model_config *config, const struct model_options *options,
                           const struct device *device)
{
    const uint64_t pages = config->context_length / options->kv_page_size + 1;
    const uint64_t kinds = config->sliding_window == 0 ? 1 : 2;
    const struct model_sizes most = {
        .metadata_bytes = (model__numbers_per_row(config, kinds) * options->step_row_count_max +
                           kinds * options->step_sequence_count_max * pages) * sizeof(int32_t),
    };
    const uint64_t own_bytes = model__staging_bytes(&most) + options->host_reserve_bytes;
    struct device_memory_report memory;
    uint64_t bytes = options->host_budget_bytes;

    device_memory_report(device, &memory);
    if (memory.host_budget_bytes > 0)
        bytes = memory.host_budget_bytes - memory.host_used_bytes;
    return bytes > own_bytes ? bytes - own_bytes : 0;
}

/* What one rank takes. */
struct host_need {
    uint64_t home_bytes, staging_bytes, table_bytes, load_bytes, own_bytes;
};

static uint64_t need_bytes(const struct host_need *need)
{
    return need->home_bytes + need->staging_bytes + need->table_bytes + need->load_bytes +
           need->own_bytes;
}

/* The largest that any rank of this node has. */
static enum status find_largest(struct cluster *cluster, struct host_need *need, struct err *err)
{
    struct host_need all[CLUSTER_RANK_COUNT_MAX];
    enum status st;

    if (cluster == NULL || cluster_place(cluster)->node_size == 1)
        return STATUS_OK;
    st = cluster_allgather(cluster, CLUSTER_NODE, need, sizeof(*need), all, CLUSTER_WAIT_LOAD_S,
                           err);
    for (uint32_t i = 0; st == STATUS_OK && i < cluster_place(cluster)->node_size; i++)
        if (need_bytes(&all[i]) > need_bytes(need))
            *need = all[i];
    return st;
}

enum status model__host_check(const struct model_options *options,
                              const struct offload_sizes *weights,
                              const struct model_sizes *sizes, const struct device *device,
                              struct err *err)
{
    struct device_memory_report memory;
    struct host_need need = {
        weights->host_home_bytes, weights->host_staging_bytes, weights->host_table_bytes,
        weights->host_load_bytes, model__staging_bytes(sizes) + options->host_reserve_bytes,
    };
    uint64_t smallest_bytes;
    char text[7][32];
    enum status st;

    device_memory_report(device, &memory);
    need.own_bytes += memory.host_used_bytes;
    st = find_largest(options->offload.cluster, &need, err);
    if (st != STATUS_OK)
        return st;
    smallest_bytes = need_bytes(&need);
    if (memory.host_budget_bytes == 0 || smallest_bytes <= memory.host_budget_bytes)
        return STATUS_OK;
    return err_set(err, STATUS_NO_MEMORY,
                   "the host memory budget of %s is too small: homes take %s, reading from the "
                   "disk %s, tables %s, loading %s, the program and its requests %s; the smallest "
                   "--host-memory-budget that would do is %" PRIu64 " bytes (%s)",
                   size_format(memory.host_budget_bytes, text[0], sizeof(text[0])),
                   size_format(need.home_bytes, text[1], sizeof(text[1])),
                   size_format(need.staging_bytes, text[2], sizeof(text[2])),
                   size_format(need.table_bytes, text[3], sizeof(text[3])),
                   size_format(need.load_bytes, text[4], sizeof(text[4])),
                   size_format(need.own_bytes, text[5], sizeof(text[5])), smallest_bytes,
                   size_format(smallest_bytes, text[6], sizeof(text[6])));
}
