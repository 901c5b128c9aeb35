/* device/cuda/link.c - the way between a GPU and its host, as NVML knows it.
 *
 * NVML (libnvidia-ml.so.1) comes with the driver. It is opened for a moment, when a device is; its
 * functions are declared here as its reference has them ("NVML API Reference Guide", device
 * queries), so that no header of NVIDIA's is needed. */
#include <dlfcn.h>
#include <string.h>

#include "device/cuda/internal.h"

struct nvml {
    void *library;
    int (*init)(void);
    int (*shutdown)(void);
    int (*by_bus_id)(const char *bus_id, void **device_out);
    int (*generation)(void *device, unsigned *out);
    int (*width)(void *device, unsigned *out);
    int (*generation_max)(void *device, unsigned *out);
    int (*width_max)(void *device, unsigned *out);
};

uint64_t cuda__link_bytes_per_s(unsigned generation, unsigned width)
{
    /* Of a lane: PCI Express Base Specification, 8b/10b below generation 3, 128b/130b up to 5, and
     * flits, of which 242 of 256 bytes are data, in 6. */
    static const double lane_bytes_per_s[] = { 0,
                                               2.5e9 * 8 / 10 / 8,
                                               5e9 * 8 / 10 / 8,
                                               8e9 * 128 / 130 / 8,
                                               16e9 * 128 / 130 / 8,
                                               32e9 * 128 / 130 / 8,
                                               64e9 * 242 / 256 / 8 };

    if (generation >= sizeof(lane_bytes_per_s) / sizeof(lane_bytes_per_s[0]))
        return 0;
    return (uint64_t)(lane_bytes_per_s[generation] * width);
}

static bool find(struct nvml *nvml, const char *name, void *function_out)
{
    void *symbol = dlsym(nvml->library, name);

    memcpy(function_out, &symbol, sizeof(symbol));
    return symbol != NULL;
}

static bool open_nvml(struct nvml *nvml)
{
    nvml->library = dlopen("libnvidia-ml.so.1", RTLD_NOW | RTLD_LOCAL);
    if (nvml->library == NULL)
        return false;
    if (find(nvml, "nvmlInit_v2", &nvml->init) && find(nvml, "nvmlShutdown", &nvml->shutdown) &&
        find(nvml, "nvmlDeviceGetHandleByPciBusId_v2", &nvml->by_bus_id) &&
        find(nvml, "nvmlDeviceGetCurrPcieLinkGeneration", &nvml->generation) &&
        find(nvml, "nvmlDeviceGetCurrPcieLinkWidth", &nvml->width) &&
        find(nvml, "nvmlDeviceGetMaxPcieLinkGeneration", &nvml->generation_max) &&
        find(nvml, "nvmlDeviceGetMaxPcieLinkWidth", &nvml->width_max) && nvml->init() == 0)
        return true;
    (void)dlclose(nvml->library);
    return false;
}

bool cuda__link_find(const char *bus_id, struct cuda_link *link_out)
{
    struct cuda_link link = { 0 };
    struct nvml nvml;
    void *device = NULL;
    bool found;

    if (!open_nvml(&nvml))
        return false;
    found = nvml.by_bus_id(bus_id, &device) == 0 &&
            nvml.generation(device, &link.generation) == 0 &&
            nvml.width(device, &link.width) == 0 &&
            nvml.generation_max(device, &link.generation_max) == 0 &&
            nvml.width_max(device, &link.width_max) == 0;
    (void)nvml.shutdown();
    (void)dlclose(nvml.library);
    if (!found)
        return false;
    link.bytes_per_s = cuda__link_bytes_per_s(link.generation_max, link.width_max);
    *link_out = link;
    return true;
}
