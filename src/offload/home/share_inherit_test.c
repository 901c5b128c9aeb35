/* offload/home/share_inherit_test.c - whoever starts in the place of a rank that died shares the
 * memory of those that live: the answer is the same, nothing is taken or loaded twice, and a plan
 * or a line that does not fit means a copy of one's own.
 *
 * Method: the ranks are models in one process, each with a device of its own, which counts the host
 * memory that is taken. */
#include "offload/testing_model.h"

#include <fcntl.h>
#include <unistd.h>

#include "offload/home/share.h"

#define SIM "sim:memory=4MiB"
#define SEED 7
#define SEED_NEW 8

static const char *const devices[] = { "cpu", SIM };

static struct offload_options options_for(const char *inherited)
{
    struct offload_options options;

    offload_options_init(&options);
    options.home = OFFLOAD_HOME_SHM;
    options.group_size = 2;
    options.poison = true;
    options.inherited = inherited;
    return options;
}

static uint64_t host_bytes(const struct model *model)
{
    struct device_memory_report memory;

    device_memory_report(model->device, &memory);
    return memory.host_used_bytes;
}

static void check_pass(struct model *model, const float *wanted)
{
    float out[MODEL_OUT_COUNT];

    CHECK_OK(model_pass(model, out, err));
    assert_memory_equal(out, wanted, sizeof(out));
}

/* Heirs of heirs: the first is gone when the last comes. */
static void heirs_take_nothing_and_answer_the_same(void **state)
{
    struct ckpt *ckpt = model_ckpt(SEED), *other = model_ckpt(SEED_NEW);

    (void)state;
    for (size_t i = 0; i < 2; i++) {
        char text[OFFLOAD_SHARE_TEXT_BYTES], again[OFFLOAD_SHARE_TEXT_BYTES];
        struct offload_options options = options_for(NULL);
        struct model first, second, third;
        struct offload_sizes sizes;
        struct offload_update *update = NULL;
        float wanted[MODEL_OUT_COUNT];
        uint64_t filler_bytes;
        struct err problem;
        int place;

        model_reference(devices[i], SEED, wanted);
        model_open(&first, devices[i]);
        model_load(&first, &options, ckpt);
        assert_false(offload__shm_is_inherited(first.offload));
        assert_true(offload_share_text(first.offload, text));

        model_open(&second, devices[i]);
        options = options_for(text);
        model_load(&second, &options, ckpt);
        assert_true(offload__shm_is_inherited(second.offload));
        check_pass(&second, wanted);
        offload_sizes(second.offload, &sizes);
        assert_true(sizes.moving_bytes > 0);
        filler_bytes = host_bytes(&first);
        assert_int_equal(host_bytes(&second), filler_bytes - sizes.moving_bytes);
        assert_true(offload_share_text(second.offload, again));
        assert_string_not_equal(again, text);
        CHECK_OK(offload_update_prepare(second.offload, other, &update, err));
        offload_update_destroy(update);
        model_close(&first);
        place = open("/dev/null", O_RDONLY); /* of the first's file, in this one process */
        assert_true(place >= 0);
        assert_int_equal(offload_update_prepare(second.offload, other, &update, &problem),
                         STATUS_UNAVAILABLE); /* nobody is left to fill it */
        assert_non_null(strstr(problem.message, "others of this machine share has ended"));

        model_open(&third, devices[i]);
        options = options_for(again);
        model_load(&third, &options, ckpt);
        assert_int_equal(host_bytes(&third), filler_bytes); /* counted where it is filled */
        check_pass(&third, wanted);
        check_pass(&second, wanted);
        model_close(&second);
        check_pass(&third, wanted); /* which fills now, as it has come last */
        CHECK_OK(offload_update_prepare(third.offload, other, &update, err));
        CHECK_OK(offload_update_commit(update, NULL, err));
        offload_update_destroy(update);
        model_reference(devices[i], SEED_NEW, wanted);
        check_pass(&third, wanted);
        CHECK_OK(offload_report_check(third.offload, err));
        model_close(&third);
        (void)close(place);
    }
    ckpt_close(other);
    ckpt_close(ckpt);
}

/* Another plan, nonsense, and somebody who is gone: each loads its own. */
static void what_does_not_fit_is_loaded_once_more(void **state)
{
    struct ckpt *ckpt = model_ckpt(SEED);
    struct offload_options options = options_for(NULL);
    char text[OFFLOAD_SHARE_TEXT_BYTES];
    float wanted[MODEL_OUT_COUNT];
    struct model first, own;

    (void)state;
    model_reference(SIM, SEED, wanted);
    model_open(&first, SIM);
    model_load(&first, &options, ckpt);
    assert_true(offload_share_text(first.offload, text));
    for (int i = 0; i < 5; i++) {
        options = options_for(i == 1 ? "" : i == 2 ? "shm 0 1 2 3 4 5 6" : i == 3 ? "sh" : text);
        options.group_size = i == 0 ? 3 : 2; /* other units */
        if (i == 4)
            model_close(&first);
        model_open(&own, SIM);
        model_load(&own, &options, ckpt);
        assert_false(offload__shm_is_inherited(own.offload));
        check_pass(&own, wanted);
        model_close(&own);
    }
    ckpt_close(ckpt);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(heirs_take_nothing_and_answer_the_same),
        cmocka_unit_test(what_does_not_fit_is_loaded_once_more),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
