/* device/cuda/inspect.c - what was found of CUDA, for someone who wonders why it does not run, or
 * how much of it can be trusted.
 *
 *   module          where lighter_cuda.so was opened, or null
 *   built_for       the GPUs that it has kernels for
 *   runtime, driver CUDA's versions, "13.0"; driver null: there is none
 *   gpus            [{index, name, bus_id, compute_capability, processors, numa_node, copy_engines,
 *                     batched_copies (whether its driver takes many copies in one call),
 *                     memory_bytes, free_bytes, memory_bytes_per_s, l2_bytes,
 *                     pcie {generation, width, generation_max, width_max, bytes_per_s} or null}]
 *   verified_on_hardware, verified_on_stand_in           sentences */
#include <stdio.h>

#include "device/cuda/internal.h"

#define VERIFIED_ON_HARDWARE                                                                       \
    "nothing yet: the kernels were compiled for these GPUs and have not run on one; `lighter "     \
    "selftest --device cuda` checks every operator and copy on yours, and its report is welcome"
#define VERIFIED_ON_STAND_IN                                                                       \
    "everything: the same kernels and the same calls, with the processor in the GPU's place"

static json_t *version_json(int version)
{
    char text[32];

    (void)snprintf(text, sizeof(text), "%d.%d", version / 1000, version % 1000 / 10);
    return version > 0 ? json_string(text) : json_null();
}

static json_t *link_json(const char *bus_id)
{
    struct cuda_link link;

    if (!cuda__link_find(bus_id, &link))
        return json_null();
    return json_pack("{s:i, s:i, s:i, s:i, s:I}", "generation", (int)link.generation, "width",
                     (int)link.width, "generation_max", (int)link.generation_max, "width_max",
                     (int)link.width_max, "bytes_per_s", (json_int_t)link.bytes_per_s);
}

static json_t *gpu_json(const struct cuda_module *module, int index)
{
    uint64_t free_bytes = 0, total_bytes = 0;
    struct cuda_facts facts;
    char capability[32];

    if (module->facts(index, &facts) != 0)
        return json_null();
    if (module->enter(index) == 0)
        (void)module->memory_info(&free_bytes, &total_bytes);
    (void)snprintf(capability, sizeof(capability), "%d.%d", facts.major, facts.minor);
    /* two transfers per cycle of the memory's clock */
    return json_pack(
        "{s:i, s:s, s:s, s:s, s:i, s:i, s:i, s:b, s:I, s:I, s:I, s:I, s:o}", "index", index,
        "name", facts.name, "bus_id", facts.bus_id, "compute_capability", capability,
        "processors", facts.processors, "numa_node", facts.numa_node, "copy_engines",
        facts.copy_engines, "batched_copies", facts.copy_batch != NULL, "memory_bytes",
        (json_int_t)total_bytes, "free_bytes", (json_int_t)free_bytes, "memory_bytes_per_s",
        (json_int_t)facts.memory_clock_khz * 1000 * 2 * (facts.memory_bus_bits / 8), "l2_bytes",
        (json_int_t)facts.l2_bytes, "pcie", link_json(facts.bus_id));
}

json_t *cuda__inspect(const struct device_options *options)
{
    const struct cuda_module *module = NULL;
    json_t *gpus = json_array();
    int count = 0, runtime = 0, driver = 0;

    if (cuda__load(options->library_path, &module, NULL) == STATUS_OK) {
        (void)module->versions(&runtime, &driver);
        if (module->device_count(&count) != 0)
            count = 0;
        for (int i = 0; i < count; i++)
            json_array_append_new(gpus, gpu_json(module, i));
    }
    return json_pack("{s:s?, s:s?, s:o, s:o, s:o, s:s, s:s}", "module", cuda__load_path(),
                     "built_for", module != NULL ? module->built_for : NULL, "runtime",
                     version_json(runtime), "driver", version_json(driver), "gpus", gpus,
                     "verified_on_hardware", VERIFIED_ON_HARDWARE, "verified_on_stand_in",
                     VERIFIED_ON_STAND_IN);
}
