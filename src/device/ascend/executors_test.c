/* device/ascend/executors_test.c - which calls are taken for one that was made before.
 *
 * Method: a table of one set, so that every key meets every other, and a CANN of four functions
 * that count. A call that differs in whatever an operator may depend on must not be found; one that
 * differs in addresses alone must be. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include "device/ascend/op_call.h"

enum { SET = 4 }; /* keys that one set has room for */

static struct {
    int tensors, executors;    /* destroyed */
    int aimed;
    aclnnStatus repeatable, aim;
    void *address;
} cann_saw;

static aclnnStatus destroy_tensor(const aclTensor *tensor)
{
    cann_saw.tensors += tensor != NULL;
    return 0;
}

static aclnnStatus destroy_executor(aclOpExecutor *executor)
{
    cann_saw.executors += executor != NULL;
    return 0;
}

static aclnnStatus set_repeatable(aclOpExecutor *executor)
{
    assert_non_null(executor);
    return cann_saw.repeatable;
}

static aclnnStatus set_address(aclOpExecutor *executor, const size_t index, aclTensor *tensor,
                               void *address)
{
    assert_non_null(executor);
    assert_non_null(tensor);
    assert_in_range(index, 0, 1);
    cann_saw.aimed++;
    cann_saw.address = address;
    return cann_saw.aim;
}

static const struct ascend_cann cann = {
    .aclDestroyTensor = destroy_tensor,
    .aclDestroyAclOpExecutor = destroy_executor,
    .aclSetAclOpExecutorRepeatable = set_repeatable,
    .aclSetTensorAddr = set_address,
};

static char memory[64]; /* addresses, and objects that nobody looks into */

static struct ascend_made call_of(const char *name)
{
    struct ascend_made made = { .name = name, .number = 2, .view_count = 2 };

    for (uint32_t i = 0; i < 2; i++)
        made.views[i] = ascend__rows(memory + i, ACL_FLOAT, 3, 16, 32);
    return made;
}

static bool keep(struct ascend_executors *executors, const struct ascend_made *call)
{
    struct ascend_made made = *call;

    made.tensors[0] = (aclTensor *)(void *)memory;
    made.tensors[1] = (aclTensor *)(void *)(memory + 1);
    made.executor = (aclOpExecutor *)(void *)memory;
    return ascend__executors_keep(&cann, executors, &made);
}

static struct ascend_executors *executors_of(uint64_t count)
{
    struct ascend_executors *executors;
    struct err err;

    memset(&cann_saw, 0, sizeof(cann_saw));
    assert_int_equal(ascend__executors_create(count, &executors, &err), STATUS_OK);
    return executors;
}

/* ---- tests ---- */

static void only_what_agrees_is_found(void **state)
{
    struct ascend_executors *executors = executors_of(SET);
    const struct ascend_made call = call_of("aclnnMul");

    (void)state;
    assert_true(keep(executors, &call));
    assert_non_null(ascend__executors_find(executors, &call));
    for (int i = 0; i < 9; i++) {
        struct ascend_made other = call;

        switch (i) {
        case 0: other.name = "aclnnAdd"; break;
        case 1: other.number = -2; break;
        case 2: other.view_count = 1; break;
        case 3: other.views[1].dtype = ACL_BF16; break;
        case 4: other.views[1].rank = 1; break;
        case 5: other.views[0].dims[1] = 15; break;
        case 6: other.views[0].strides[0] = 16; break;
        case 7: other.views[1].is_nz = true; break;
        default: other.views[1].data = other.views[0].data; break; /* in place */
        }
        if (ascend__executors_find(executors, &other) != NULL)
            fail_msg("change %d was not seen", i);
    }
    ascend__executors_destroy(&cann, executors);
    assert_int_equal(cann_saw.executors, 1);
    assert_int_equal(cann_saw.tensors, 2);
}

static void addresses_are_set_where_they_differ(void **state)
{
    struct ascend_executors *executors = executors_of(SET);
    struct ascend_made call = call_of("aclnnMul"), *kept;

    (void)state;
    assert_true(keep(executors, &call));
    call.views[1].data = memory + 7;
    kept = ascend__executors_find(executors, &call);
    assert_non_null(kept);
    assert_true(ascend__executors_aim(&cann, kept, &call));
    assert_int_equal(cann_saw.aimed, 1);
    assert_ptr_equal(cann_saw.address, memory + 7);
    assert_true(ascend__executors_aim(&cann, kept, &call)); /* there already */
    assert_int_equal(cann_saw.aimed, 1);
    call.views[0].data = memory + 9;
    cann_saw.aim = ACLNN_ERR_PARAM_INVALID;
    assert_false(ascend__executors_aim(&cann, kept, &call));
    ascend__executors_destroy(&cann, executors);
}

static void what_was_used_longest_ago_makes_room(void **state)
{
    static const char *const names[] = { "a", "b", "c", "d", "e" };
    struct ascend_executors *executors = executors_of(SET);

    (void)state;
    for (int i = 0; i < SET; i++) {
        const struct ascend_made call = call_of(names[i]);

        assert_true(keep(executors, &call));
    }
    for (int i = 0; i < SET; i++) { /* all but "c" are used again */
        const struct ascend_made call = call_of(names[i]);

        if (i != 2)
            assert_non_null(ascend__executors_find(executors, &call));
    }
    for (int i = SET; i >= 0; i--) {
        const struct ascend_made call = call_of(names[i]);

        if (i == SET)
            assert_true(keep(executors, &call));
        assert_int_equal(ascend__executors_find(executors, &call) == NULL, i == 2);
    }
    assert_int_equal(cann_saw.executors, 1);
    ascend__executors_destroy(&cann, executors);
    assert_int_equal(cann_saw.executors, SET + 1);
    assert_int_equal(cann_saw.tensors, 2 * (SET + 1));
}

static void what_cann_refuses_is_noted_and_stays_the_callers(void **state)
{
    struct ascend_executors *executors = executors_of(SET);
    const struct ascend_made call = call_of("aclnnInplaceCopy");
    const struct ascend_made *kept;

    (void)state;
    cann_saw.repeatable = ACLNN_ERR_INNER;
    assert_false(keep(executors, &call));
    kept = ascend__executors_find(executors, &call);
    assert_non_null(kept);
    assert_null(kept->executor);
    ascend__executors_destroy(&cann, executors);
    assert_int_equal(cann_saw.executors + cann_saw.tensors, 0);
}

static void none_are_kept_where_there_is_no_room_or_no_function(void **state)
{
    const struct ascend_cann old = { .aclDestroyTensor = destroy_tensor };
    struct ascend_executors *executors = executors_of(0);
    struct ascend_made call = call_of("aclnnMul");

    (void)state;
    assert_false(keep(executors, &call));
    assert_null(ascend__executors_find(executors, &call));
    ascend__executors_destroy(&cann, executors);
    executors = executors_of(SET);
    assert_false(ascend__executors_keep(&old, executors, &call));
    assert_null(ascend__executors_find(executors, &call));
    ascend__executors_destroy(&cann, executors);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(only_what_agrees_is_found),
        cmocka_unit_test(addresses_are_set_where_they_differ),
        cmocka_unit_test(what_was_used_longest_ago_makes_room),
        cmocka_unit_test(what_cann_refuses_is_noted_and_stays_the_callers),
        cmocka_unit_test(none_are_kept_where_there_is_no_room_or_no_function),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
