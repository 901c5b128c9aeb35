/* tests/cann/ops_test.c - tensors, executors, workspaces: how operators are called. What they
 * compute is held to NumPy by tests/cann_test.py. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "nn.h"

/* In case the backend does not list them. */
aclnnStatus aclnnSiluGetWorkspaceSize(const aclTensor *self, aclTensor *out, uint64_t *size,
                                      aclOpExecutor **executor);
aclnnStatus aclnnSilu(void *workspace, uint64_t size, aclOpExecutor *executor, aclrtStream stream);

#define H2D ACL_MEMCPY_HOST_TO_DEVICE
#define D2H ACL_MEMCPY_DEVICE_TO_HOST
#define CODE(expected, call) assert_int_equal((call), (expected))
#define OK(call) CODE(0, call)
#define COUNT 8

struct rig {
    aclrtStream stream;
    void *x, *y, *workspace;
    aclTensor *in, *out, *target;
    aclScalar *one;
    uint64_t workspace_bytes;
};

static aclTensor *tensor_of(void *memory, aclDataType dtype)
{
    const int64_t dims[] = { COUNT };
    return aclCreateTensor(dims, 1, dtype, NULL, 0, ACL_FORMAT_ND, dims, 1, memory);
}

static int rig_open(void **state)
{
    struct rig *rig = calloc(1, sizeof(*rig));
    float numbers[COUNT], one = 1;

    setenv("CANN_STANDIN_SILENT", "1", 1);
    cann_standin_reset();
    OK(aclInit(NULL));
    OK(aclrtSetDevice(0));
    OK(aclrtCreateStreamWithConfig(&rig->stream, 0, 0));
    OK(aclrtMalloc(&rig->x, sizeof(numbers), ACL_MEM_MALLOC_HUGE_FIRST));
    OK(aclrtMalloc(&rig->y, sizeof(numbers), ACL_MEM_MALLOC_HUGE_FIRST));
    OK(aclrtMalloc(&rig->workspace, 1 << 16, ACL_MEM_MALLOC_HUGE_FIRST));
    for (int i = 0; i < COUNT; i++)
        numbers[i] = (float)i;
    OK(aclrtMemcpy(rig->x, sizeof(numbers), numbers, sizeof(numbers), H2D));
    OK(aclrtMemcpy(rig->y, sizeof(numbers), numbers, sizeof(numbers), H2D));
    rig->in = tensor_of(rig->x, ACL_FLOAT);
    rig->out = tensor_of(rig->y, ACL_FLOAT);
    rig->target = tensor_of(rig->y, ACL_FLOAT);
    rig->one = aclCreateScalar(&one, ACL_FLOAT);
    assert_non_null(rig->in);
    assert_non_null(rig->one);
    rig->workspace_bytes = 1 << 16;
    *state = rig;
    return 0;
}

static int rig_close(void **state)
{
    struct rig *rig = *state;

    OK(aclDestroyTensor(rig->in));
    OK(aclDestroyTensor(rig->out));
    OK(aclDestroyTensor(rig->target));
    OK(aclDestroyScalar(rig->one));
    cann_standin_reset();
    free(rig);
    return 0;
}

/* target += in, which shows how often it ran. */
static aclOpExecutor *first_phase(struct rig *rig)
{
    aclOpExecutor *executor = NULL;
    uint64_t size = 0;

    OK(aclnnInplaceAddGetWorkspaceSize(rig->target, rig->in, rig->one, &size, &executor));
    assert_true(size > 0);
    assert_true(size <= rig->workspace_bytes);
    return executor;
}

static aclnnStatus second_phase(struct rig *rig, aclOpExecutor *executor)
{
    return aclnnInplaceAdd(rig->workspace, rig->workspace_bytes, executor, rig->stream);
}

static float result(struct rig *rig, int i)
{
    float numbers[COUNT];

    OK(aclrtSynchronizeStream(rig->stream));
    OK(aclrtMemcpy(numbers, sizeof(numbers), rig->y, sizeof(numbers), D2H));
    return numbers[i];
}

/* ---- executors ---- */

static void a_second_phase_consumes_the_executor(void **state)
{
    struct rig *rig = *state;
    aclOpExecutor *executor = first_phase(rig);

    assert_int_equal(cann_standin_counter("live_executors"), 1);
    OK(second_phase(rig, executor));
    assert_int_equal(cann_standin_counter("live_executors"), 0);
    CODE(E_NN_INVALID, second_phase(rig, executor));
    CODE(E_NN_INVALID, aclDestroyAclOpExecutor(executor));
    assert_int_equal(cann_standin_counter("executor_errors"), 1);
    assert_true(result(rig, 3) == 6.0f);
}

static void it_does_so_when_it_fails_too(void **state)
{
    struct rig *rig = *state;
    aclOpExecutor *executor = first_phase(rig);

    CODE(E_NN_INVALID, aclnnInplaceAdd(rig->workspace, 16, executor, rig->stream));
    CODE(E_NN_INVALID, second_phase(rig, executor));
    assert_int_equal(cann_standin_counter("live_executors"), 0);
    CODE(E_NN_NULL, second_phase(rig, NULL));
    assert_true(result(rig, 3) == 3.0f);
}

static void an_unused_executor_is_a_leak(void **state)
{
    struct rig *rig = *state;
    aclOpExecutor *unused = first_phase(rig), *undone = first_phase(rig);

    OK(aclDestroyAclOpExecutor(undone));
    assert_int_equal(cann_standin_counter("live_executors"), 1);
    OK(aclrtFree(rig->x));
    OK(aclrtFree(rig->y));
    OK(aclrtFree(rig->workspace));
    OK(aclrtDestroyStream(rig->stream));
    OK(aclFinalize());
    assert_int_equal(cann_standin_counter("leaks"), 2); /* the rig's tensors, and the executor */
    executor_free(unused);
}

static void an_executor_is_of_one_operator(void **state)
{
    struct rig *rig = *state;

    CODE(E_NN_INVALID, aclnnAdd(rig->workspace, rig->workspace_bytes, first_phase(rig),
                                rig->stream));
}

static void a_repeatable_executor_runs_again_elsewhere(void **state)
{
    struct rig *rig = *state;
    aclOpExecutor *executor = first_phase(rig);

    CODE(E_NN_INVALID, aclSetInputTensorAddr(executor, 0, rig->target, rig->x));
    OK(aclSetAclOpExecutorRepeatable(executor));
    OK(second_phase(rig, executor));
    OK(second_phase(rig, executor));
    assert_true(result(rig, 3) == 9.0f);
    /* inputs: target, in; outputs: target; all: target, in */
    OK(aclSetInputTensorAddr(executor, 1, rig->in, rig->y));
    OK(second_phase(rig, executor));
    assert_true(result(rig, 3) == 18.0f);
    OK(aclSetTensorAddr(executor, 0, rig->target, rig->x));
    OK(second_phase(rig, executor)); /* x = 3 + 18 */
    OK(aclSetOutputTensorAddr(executor, 0, rig->target, rig->y));
    OK(aclSetTensorAddr(executor, 1, rig->in, rig->x));
    OK(second_phase(rig, executor)); /* y = 18 + 21 */
    assert_true(result(rig, 3) == 39.0f);
    CODE(E_NN_INVALID, aclSetTensorAddr(executor, 1, rig->target, rig->x)); /* another tensor */
    CODE(E_NN_INVALID, aclSetTensorAddr(executor, 2, rig->in, rig->x));
    CODE(E_NN_INVALID, aclSetOutputTensorAddr(executor, 1, rig->in, rig->x));
    OK(aclDestroyAclOpExecutor(executor));
    CODE(E_NN_INVALID, second_phase(rig, executor));
}

static void tensors_may_go_once_phase_two_returned(void **state)
{
    struct rig *rig = *state;
    aclTensor *in = tensor_of(rig->x, ACL_FLOAT), *out = tensor_of(rig->y, ACL_FLOAT);
    aclOpExecutor *executor;
    uint64_t size;

    cann_standin_hold(true);
    OK(aclnnSiluGetWorkspaceSize(in, out, &size, &executor));
    OK(aclnnSilu(rig->workspace, size, executor, rig->stream));
    OK(aclDestroyTensor(in));
    OK(aclDestroyTensor(out));
    cann_standin_hold(false);
    assert_true(result(rig, 0) == 0.0f);
    assert_true(result(rig, 1) > 0.731f && result(rig, 1) < 0.732f);
}

/* ---- workspaces and memory ---- */

static void a_kernel_overwrites_its_workspace(void **state)
{
    struct rig *rig = *state;
    aclOpExecutor *executor = NULL;
    uint8_t bytes[64];
    uint64_t size;

    OK(aclnnInplaceAddGetWorkspaceSize(rig->target, rig->in, rig->one, &size, &executor));
    OK(aclnnInplaceAdd(rig->workspace, size, executor, rig->stream));
    OK(aclrtSynchronizeStream(rig->stream));
    OK(aclrtMemcpy(bytes, 64, (char *)rig->workspace + size - 64, 64, D2H));
    assert_int_equal(bytes[0], 0x5C);
    assert_int_equal(bytes[63], 0x5C);
    OK(aclrtMemcpy(bytes, 64, (char *)rig->workspace + size, 64, D2H));
    assert_int_equal(bytes[0], 0xA5);
}

static void workspaces_are_checked(void **state)
{
    struct rig *rig = *state;

    CODE(E_NN_INVALID, aclnnInplaceAdd(NULL, 1 << 16, first_phase(rig), rig->stream));
    CODE(E_NN_INVALID, aclnnInplaceAdd(rig->workspace, 100, first_phase(rig), rig->stream));
    CODE(E_NN_INVALID, aclnnInplaceAdd((char *)rig->workspace + 32, 1 << 15, first_phase(rig),
                                       rig->stream));
    cann_standin_hold(true);
    OK(second_phase(rig, first_phase(rig)));
    OK(aclrtFree(rig->workspace));
    cann_standin_hold(false);
    CODE(E_AICORE_EXCEPTION, aclrtSynchronizeStream(rig->stream));
    assert_non_null(strstr(cann_standin_fault(), "workspace"));
}

static void operands_must_be_in_this_devices_memory(void **state)
{
    struct rig *rig = *state;
    static float host[COUNT];
    aclTensor *here = tensor_of(host, ACL_FLOAT);
    aclOpExecutor *executor;
    uint64_t size;

    OK(aclnnSiluGetWorkspaceSize(here, rig->out, &size, &executor));
    OK(aclnnSilu(rig->workspace, size, executor, rig->stream));
    CODE(E_AICORE_EXCEPTION, aclrtSynchronizeStream(rig->stream));
    CODE(E_AICORE_EXCEPTION, aclrtSynchronizeDevice());
    OK(aclDestroyTensor(here));
}

static void operands_must_live_until_the_kernel_ran(void **state)
{
    struct rig *rig = *state;

    cann_standin_hold(true);
    OK(second_phase(rig, first_phase(rig)));
    OK(aclrtFree(rig->x));
    cann_standin_hold(false);
    CODE(E_AICORE_EXCEPTION, aclrtSynchronizeStream(rig->stream));
    assert_int_equal(cann_standin_counter("faults"), 1);
}

static void operands_must_fit_their_memory(void **state)
{
    struct rig *rig = *state;
    const int64_t dims[] = { COUNT + 1 };
    aclTensor *longer = aclCreateTensor(dims, 1, ACL_FLOAT, NULL, 0, ACL_FORMAT_ND, dims, 1,
                                        rig->x);
    aclTensor *result_of = aclCreateTensor(dims, 1, ACL_FLOAT, NULL, 0, ACL_FORMAT_ND, dims, 1,
                                           rig->workspace);
    aclOpExecutor *executor;
    uint64_t size;

    OK(aclnnSiluGetWorkspaceSize(longer, result_of, &size, &executor));
    OK(aclnnSilu(rig->workspace, size, executor, rig->stream));
    CODE(E_AICORE_EXCEPTION, aclrtSynchronizeStream(rig->stream));
    OK(aclDestroyTensor(longer));
    OK(aclDestroyTensor(result_of));
}

static void an_index_out_of_range_is_a_fault(void **state)
{
    struct rig *rig = *state;
    const int64_t dims[] = { 1 };
    const int32_t index = COUNT;
    aclTensor *which = aclCreateTensor(dims, 1, ACL_INT32, NULL, 0, ACL_FORMAT_ND, dims, 1,
                                       rig->workspace);
    aclTensor *one = aclCreateTensor(dims, 1, ACL_FLOAT, NULL, 0, ACL_FORMAT_ND, dims, 1, rig->y);
    aclOpExecutor *executor;
    void *workspace;
    uint64_t size;

    OK(aclrtMemcpy(rig->workspace, 4, &index, 4, H2D));
    OK(aclrtMalloc(&workspace, 1 << 16, ACL_MEM_MALLOC_HUGE_FIRST));
    OK(aclnnIndexSelectGetWorkspaceSize(rig->in, 0, which, one, &size, &executor));
    OK(aclnnIndexSelect(workspace, size, executor, rig->stream));
    OK(aclrtSynchronizeStream(rig->stream));
    assert_int_equal(cann_standin_counter("faults"), 1);
    OK(aclDestroyTensor(which));
    OK(aclDestroyTensor(one));
}

/* ---- tensors and lists ---- */

static void a_list_takes_its_tensors(void **state)
{
    struct rig *rig = *state;
    const uint64_t before = cann_standin_counter("live_tensors");
    const aclTensor *members[2];
    const aclTensorList *list;

    members[0] = tensor_of(rig->x, ACL_FLOAT);
    members[1] = tensor_of(rig->y, ACL_FLOAT);
    list = aclCreateTensorList(members, 2);
    assert_int_equal(cann_standin_counter("live_tensors"), before + 3);
    CODE(E_NN_INVALID, aclDestroyTensor(members[0]));
    OK(aclDestroyTensorList(list));
    assert_int_equal(cann_standin_counter("live_tensors"), before);
}

static void null_is_destroyed_gladly(void **state)
{
    (void)state;
    OK(aclDestroyTensor(NULL));
    OK(aclDestroyScalar(NULL));
    OK(aclDestroyIntArray(NULL));
    OK(aclDestroyTensorList(NULL));
}

static void odd_tensors_are_refused(void **state)
{
    struct rig *rig = *state;
    const int64_t nine[9] = { 1, 1, 1, 1, 1, 1, 1, 1, 1 }, negative[] = { -1 };
    aclTensor *odd, *typeless;
    aclOpExecutor *executor;
    uint64_t size;

    assert_null(aclCreateTensor(nine, 9, ACL_FLOAT, NULL, 0, ACL_FORMAT_ND, nine, 1, rig->x));
    assert_null(aclCreateTensor(negative, 1, ACL_FLOAT, NULL, 0, ACL_FORMAT_ND, nine, 1, rig->x));
    assert_null(aclCreateScalar(NULL, ACL_FLOAT));
    odd = tensor_of((char *)rig->x + 2, ACL_FLOAT);
    CODE(E_NN_INVALID, aclnnSiluGetWorkspaceSize(odd, rig->out, &size, &executor));
    typeless = tensor_of(rig->x, (aclDataType)77);
    CODE(E_NN_INVALID, aclnnSiluGetWorkspaceSize(typeless, rig->out, &size, &executor));
    CODE(E_NN_NULL, aclnnSiluGetWorkspaceSize(rig->in, rig->out, NULL, &executor));
    CODE(E_NN_NULL, aclnnSiluGetWorkspaceSize(rig->in, rig->out, &size, NULL));
    assert_int_equal(cann_standin_counter("live_executors"), 0);
    OK(aclDestroyTensor(odd));
    OK(aclDestroyTensor(typeless));
}

static void a_chip_without_bf16_refuses_it(void **state)
{
    struct rig *rig = *state;
    aclTensor *in = tensor_of(rig->x, ACL_BF16), *out = tensor_of(rig->y, ACL_BF16);
    aclOpExecutor *executor;
    uint64_t size;

    memcpy(standin_settings.soc, "Ascend310P3", 12);
    CODE(E_NN_INVALID, aclnnSiluGetWorkspaceSize(in, out, &size, &executor));
    memcpy(standin_settings.soc, "Ascend910B4", 12);
    OK(aclnnSiluGetWorkspaceSize(in, out, &size, &executor));
    OK(aclDestroyAclOpExecutor(executor));
    OK(aclDestroyTensor(in));
    OK(aclDestroyTensor(out));
}

static void phases_fail_as_told(void **state)
{
    struct rig *rig = *state;
    aclOpExecutor *executor;
    uint64_t size;

    cann_standin_fail("aclnnSiluGetWorkspaceSize", 1, E_NN_TILING);
    CODE(E_NN_TILING, aclnnSiluGetWorkspaceSize(rig->in, rig->out, &size, &executor));
    cann_standin_fail("aclCreateTensor", 1, 1);
    assert_null(tensor_of(rig->x, ACL_FLOAT));
    OK(aclnnSiluGetWorkspaceSize(rig->in, rig->out, &size, &executor));
    cann_standin_fail("aclnnSilu", 1, E_NN_RUNTIME);
    CODE(E_NN_RUNTIME, aclnnSilu(rig->workspace, size, executor, rig->stream));
    CODE(E_NN_INVALID, aclDestroyAclOpExecutor(executor)); /* consumed all the same */
    assert_int_equal(cann_standin_counter("live_executors"), 0);
}

/* ---- completeness ---- */

#define HAS(need, since, name, ...)                                                     \
    if (dlsym(RTLD_DEFAULT, "aclnn" #name) == NULL ||                                   \
        dlsym(RTLD_DEFAULT, "aclnn" #name "GetWorkspaceSize") == NULL)                  \
        fail_msg("aclnn%s is not there", #name);
#define HAS_FUNCTION(need, since, type, name, parameters) \
    if (dlsym(RTLD_DEFAULT, #name) == NULL)               \
        fail_msg("%s is not there", #name);

static void all_that_the_backend_looks_for_is_there(void **state)
{
    (void)state;
    CANN_ASCENDCL(HAS_FUNCTION)
    CANN_NNOPBASE(HAS_FUNCTION)
    CANN_OPAPI_FUNCTIONS(HAS_FUNCTION)
    CANN_OPERATORS(HAS)
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, rig_open, rig_close)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(a_second_phase_consumes_the_executor),
        TEST(it_does_so_when_it_fails_too),
        TEST(an_unused_executor_is_a_leak),
        TEST(an_executor_is_of_one_operator),
        TEST(a_repeatable_executor_runs_again_elsewhere),
        TEST(tensors_may_go_once_phase_two_returned),
        TEST(a_kernel_overwrites_its_workspace),
        TEST(workspaces_are_checked),
        TEST(operands_must_be_in_this_devices_memory),
        TEST(operands_must_live_until_the_kernel_ran),
        TEST(operands_must_fit_their_memory),
        TEST(an_index_out_of_range_is_a_fault),
        TEST(a_list_takes_its_tensors),
        TEST(null_is_destroyed_gladly),
        TEST(odd_tensors_are_refused),
        TEST(a_chip_without_bf16_refuses_it),
        TEST(phases_fail_as_told),
        TEST(all_that_the_backend_looks_for_is_there),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
