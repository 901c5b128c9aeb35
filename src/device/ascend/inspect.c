/* device/ascend/inspect.c - what was found of CANN, for someone who wonders why it does not run, or
 * how much of it can be trusted.
 *
 *   libraries         [{name, path, problem}]
 *   ascendcl_version, npu_count, soc                     null: CANN could not be asked
 *   memory            {free_bytes, total_bytes} of NPU 0, or null
 *   missing_required  [{symbol, library, since}]         without these nothing runs; of libraries
 *                                                        that were opened
 *   missing_optional  [{symbol, library, since, instead}]
 *   verified_on_hardware, verified_on_stand_in           sentences */
#include <stdio.h>
#include <string.h>

#include "device/ascend/internal.h"

#define VERIFIED_ON_HARDWARE                                                                       \
    "nothing yet: no part of this has run on an NPU; `lighter selftest --device ascend` checks "   \
    "every operator, layout and copy on yours in about a minute, and its report is welcome"
#define VERIFIED_ON_STAND_IN                                                                       \
    "everything: memory, streams, events, copies, operators, layouts and failures, on libraries "  \
    "with CANN's interface that were written from its documents"

/* What happens where an optional function is missing, by the begin of its name. */
static const struct {
    const char *prefix, *instead;
} fallbacks[] = {
    { "aclrtHostRegisterV2", "pinned memory comes from aclrtMallocHost; copies from memory that "
                             "ranks share (shm_cpu) go through a pinned buffer" },
    { "aclrtHostUnregister", "as without aclrtHostRegisterV2" },
    { "aclrtIpcMem", "--offload-mode sharded_gpu is refused" },
    { "aclrtCreateEventExWithFlag", "events of aclrtCreateEvent, as in ggml" },
    { "aclSetAclOpExecutorRepeatable", "each call of an operator goes through both phases" },
    { "aclSetTensorAddr", "as without aclSetAclOpExecutorRepeatable" },
    { "aclnnMatmulWeightNz", "weights stay in ND" },
    { "aclnnInplaceAdds", "norms whose weights are added to 1, and clamped gates, are refused" },
    { "aclnnTril", "attention with a sliding window is refused" },
    { "aclnnTanh", "soft caps are refused" },
    { "aclnnGeluV2", "GELU gates are refused" },
    { "aclnnClamp", "clamped gates are refused" },
    { "aclnnSigmoid", "clamped gates and scaled rows are refused" },
    { "aclnnNpuFormatCast", "selftest does not compare FRACTAL_NZ with CANN's own" },
};

static const char *instead_of(const char *name)
{
    for (size_t i = 0; i < sizeof(fallbacks) / sizeof(fallbacks[0]); i++)
        if (strncmp(name, fallbacks[i].prefix, strlen(fallbacks[i].prefix)) == 0)
            return fallbacks[i].instead;
    return "nothing calls it";
}

static json_t *libraries_json(void)
{
    json_t *list = json_array();

    for (int id = 0; id < ASCEND_LIBRARY_COUNT; id++) {
        const struct ascend_library *library = ascend__library((enum ascend_library_id)id);

        if (library->handle == NULL && library->problem[0] == '\0')
            continue; /* it was not looked for */
        json_array_append_new(
            list, json_pack("{s:s, s:s?, s:s?}", "name", library->name, "path",
                            library->handle != NULL ? library->path : NULL, "problem",
                            library->handle != NULL ? NULL : library->problem));
    }
    return list;
}

static json_t *missing_json(bool required)
{
    size_t count;
    const struct ascend_symbol *symbols = ascend__symbols(&count);
    json_t *list = json_array();

    for (size_t i = 0; i < count; i++) {
        json_t *symbol;

        if (symbols[i].required != required || ascend__symbol_is_there(&symbols[i]) ||
            !ascend__symbol_library_is_open(&symbols[i]))
            continue;
        symbol = json_pack("{s:s, s:s, s:s}", "symbol", symbols[i].name, "library",
                           ascend__symbol_library(&symbols[i]), "since", symbols[i].since);
        if (!required)
            json_object_set_new(symbol, "instead", json_string(instead_of(symbols[i].name)));
        json_array_append_new(list, symbol);
    }
    return list;
}

/* Asks CANN; what it does not answer stays null. */
static void ask(const struct ascend_cann *cann, json_t *report)
{
    int32_t major = 0, minor = 0, patch = 0;
    uint32_t count = 0;
    size_t free_bytes = 0, total_bytes = 0;
    const char *soc;
    char version[48];
    int code;

    if (cann->aclrtGetVersion(&major, &minor, &patch) == ACL_SUCCESS) {
        (void)snprintf(version, sizeof(version), "%d.%d.%d", (int)major, (int)minor, (int)patch);
        json_object_set_new(report, "ascendcl_version", json_string(version));
    }
    if (cann->aclrtGetDeviceCount(&count) != ACL_SUCCESS)
        return;
    json_object_set_new(report, "npu_count", json_integer((json_int_t)count));
    if (count == 0 || cann->aclrtSetDevice(0) != ACL_SUCCESS)
        return;
    soc = cann->aclrtGetSocName();
    json_object_set_new(report, "soc", soc != NULL ? json_string(soc) : json_null());
    code = cann->aclrtGetMemInfo(ACL_HBM_MEM, &free_bytes, &total_bytes);
    if (code == ACL_SUCCESS && total_bytes == 0)
        code = cann->aclrtGetMemInfo(ACL_DDR_MEM, &free_bytes, &total_bytes);
    if (code == ACL_SUCCESS)
        json_object_set_new(report, "memory",
                            json_pack("{s:I, s:I}", "free_bytes", (json_int_t)free_bytes,
                                      "total_bytes", (json_int_t)total_bytes));
    (void)cann->aclrtResetDevice(0);
}

json_t *ascend__inspect(const struct device_options *options)
{
    const struct ascend_cann *cann = NULL;
    json_t *report;
    enum status st;

    ascend__probe(options->library_path);
    report = json_pack("{s:o, s:n, s:n, s:n, s:n, s:o, s:o, s:s, s:s}", "libraries",
                       libraries_json(), "ascendcl_version", "npu_count", "soc", "memory",
                       "missing_required", missing_json(true), "missing_optional",
                       missing_json(false), "verified_on_hardware", VERIFIED_ON_HARDWARE,
                       "verified_on_stand_in", VERIFIED_ON_STAND_IN);
    st = ascend__load(options->library_path, &cann, NULL);
    if (report != NULL && st == STATUS_OK)
        ask(cann, report);
    return report;
}
