/* offload/late_test.c - a table that is loaded last, while passes run.
 *
 * Method: the small model of testing_model.h with an embedding that lies in its file as it is used.
 * A fault (fault_late_waits) keeps the thread from loading it until somebody waits for it, so that
 * a test decides in which state passes run; testing_faults.h has reads of either side fail. Output
 * must be that of a model which was loaded as a whole, bit for bit. */
#include "offload/testing_faults.h"
#include "offload/testing_model.h"

#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/size.h"

#define OLD_SEED 31
#define NEW_SEED 32
#define WAIT_NS UINT64_C(20000000000)

/* The errors that were logged. */
struct told {
    struct log log;
    char line[1024]; /* the last */
    uint32_t count;
};

struct fixture {
    char *folder;
    struct ckpt *ckpt;
    struct offload_options options;
    struct model model;
    struct told told;
    float wanted[MODEL_OUT_COUNT];
};

static void tell(void *user, enum log_level level, const char *line)
{
    struct told *told = user;

    if (level != LOG_ERROR)
        return;
    (void)snprintf(told->line, sizeof(told->line), "%s", line);
    told->count++;
}

static void begin(struct fixture *fixture, bool waits)
{
    memset(fixture, 0, sizeof(*fixture));
    fixture->folder = model_write_as(OLD_SEED, SIZE_MAX, true);
    CHECK_OK(ckpt_open(fixture->folder, &fixture->ckpt, err));
    model_reference("cpu", OLD_SEED, fixture->wanted);
    offload_options_init(&fixture->options);
    fixture->options.ckpt = fixture->ckpt;
    fixture->options.late_bytes_min = 0;
    fixture->options.lookup_row_max = MODEL_ROWS;
    fixture->options.fault_late_waits = waits;
    fixture->told.log = (struct log){ .write = tell, .user = &fixture->told };
}

static void load(struct fixture *fixture)
{
    model_open(&fixture->model, "cpu");
    CHECK_OK(model_create(&fixture->model, &fixture->options, err));
    fixture->model.offload->log = &fixture->told.log;
    CHECK_OK(offload_load(fixture->model.offload, fixture->model.compute, fixture->ckpt, NULL,
                          err));
}

static void end(struct fixture *fixture)
{
    model_close(&fixture->model);
    ckpt_close(fixture->ckpt);
    ckpt_testing_remove(fixture->folder);
}

static bool is_late(struct fixture *fixture)
{
    return offload_is_looked_up(fixture->model.offload, 0);
}

static void check_pass(struct fixture *fixture, const float *wanted)
{
    float out[MODEL_OUT_COUNT];

    CHECK_OK(model_pass(&fixture->model, out, err));
    assert_memory_equal(out, wanted, sizeof(out));
    CHECK_OK(offload_report_check(fixture->model.offload, err));
}

static void check_failing_pass(struct fixture *fixture, const char *piece, bool stays)
{
    float out[MODEL_OUT_COUNT];
    struct err why;

    assert_int_equal(model_pass(&fixture->model, out, &why), STATUS_IO);
    assert_int_equal(strncmp(why.message, "embed: ", 7), 0);
    assert_non_null(strstr(why.message, piece));
    assert_int_equal(offload_pass_abort(fixture->model.offload, &why),
                     stays ? STATUS_IO : STATUS_OK);
}

static void check_table(struct fixture *fixture)
{
    void *expected = model_expected(OLD_SEED, 0);

    assert_false(is_late(fixture));
    assert_memory_equal(offload_tensor(fixture->model.offload, 0)->data, expected,
                        model_param_bytes(0));
    free(expected);
}

/* The whole of it counts from the start, and what is told of loading does without it. */
static void rows_that_are_read_by_themselves_give_the_same_bits(void **state)
{
    static const struct {
        int64_t group_size;
        enum offload_home home;
    } places[] = { { 0, OFFLOAD_HOME_HOST }, { 2, OFFLOAD_HOME_HOST }, { 2, OFFLOAD_HOME_DISK } };

    (void)state;
    for (size_t i = 0; i < sizeof(places) / sizeof(places[0]); i++) {
        struct device_memory_report late, whole;
        struct offload_sizes sizes;
        struct fixture fixture;

        begin(&fixture, true);
        fixture.options.group_size = places[i].group_size;
        fixture.options.home = places[i].home;
        load(&fixture);
        offload_sizes(fixture.model.offload, &sizes);
        device_memory_report(fixture.model.device, &late);
        assert_in_range(late.host_peak_bytes, 0, sizes.host_bytes);
        for (int pass = 0; pass < 3; pass++) {
            assert_true(is_late(&fixture));
            assert_null(offload_tensor(fixture.model.offload, 0)->data);
            check_pass(&fixture, fixture.wanted);
        }
        offload__late_settle(fixture.model.offload);
        check_table(&fixture);
        check_pass(&fixture, fixture.wanted);
        device_memory_report(fixture.model.device, &whole);
        assert_int_equal(whole.used_bytes, late.used_bytes);
        assert_int_equal(whole.host_used_bytes + MODEL_ROWS * MODEL_WIDTH * 2,
                         late.host_used_bytes);
        assert_int_equal(fixture.told.count, 0);
        end(&fixture);
    }
}

struct progress_told {
    uint64_t done_bytes, total_bytes;
};

static void tell_progress(void *user, const char *what, uint64_t done_bytes, uint64_t total_bytes)
{
    (void)what;
    *(struct progress_told *)user = (struct progress_told){ done_bytes, total_bytes };
}

static void loading_tells_of_what_it_has_loaded(void **state)
{
    struct progress_told told = { 0 };
    const struct progress progress = { .update = tell_progress, .user = &told };
    struct fixture fixture;
    uint64_t all_bytes = 0;

    (void)state;
    begin(&fixture, true);
    for (size_t p = 0; p < MODEL_PARAMS; p++)
        all_bytes += model_param_bytes(p);
    model_open(&fixture.model, "cpu");
    CHECK_OK(model_create(&fixture.model, &fixture.options, err));
    CHECK_OK(offload_load(fixture.model.offload, fixture.model.compute, fixture.ckpt, &progress,
                          err));
    assert_int_equal(told.done_bytes, all_bytes - model_param_bytes(0));
    assert_int_equal(told.total_bytes, told.done_bytes);
    end(&fixture);
}

/* Behind a pass, and when none comes. */
static void the_table_is_there_in_the_end(void **state)
{
    (void)state;
    for (int passes = 0; passes < 2; passes++) {
        const uint64_t began_ns = clock_now_ns();
        struct fixture fixture;

        begin(&fixture, false);
        load(&fixture);
        for (int i = 0; i < passes; i++)
            check_pass(&fixture, fixture.wanted);
        while (is_late(&fixture)) {
            const struct timespec nap = { .tv_nsec = 1000000 };

            assert_true(clock_now_ns() - began_ns < WAIT_NS);
            (void)nanosleep(&nap, NULL);
        }
        check_table(&fixture);
        check_pass(&fixture, fixture.wanted);
        end(&fixture);
    }
}

/* It is said once; passes go on, those whose own rows cannot be read fail, and an update helps. */
static void a_table_that_cannot_be_loaded_is_read_by_rows(void **state)
{
    struct offload_update *update = NULL;
    struct fixture fixture;
    float fresh_out[MODEL_OUT_COUNT];
    char *folder;
    struct ckpt *fresh = NULL;

    (void)state;
    model_reference("cpu", NEW_SEED, fresh_out);
    folder = model_write_as(NEW_SEED, SIZE_MAX, true);
    CHECK_OK(ckpt_open(folder, &fresh, err));
    begin(&fixture, true);
    load(&fixture);
    check_pass(&fixture, fixture.wanted);
    fault_arm(FAULT_READS, 1);
    offload__late_settle(fixture.model.offload);
    assert_false(fault_disarm());
    assert_int_equal(fixture.told.count, 1);
    assert_non_null(strstr(fixture.told.line, "embed: "));
    assert_non_null(strstr(fixture.told.line, "a fault put in by a test"));
    for (int pass = 0; pass < 2; pass++) {
        assert_true(is_late(&fixture));
        check_pass(&fixture, fixture.wanted);
        fault_arm(FAULT_READS, (uint64_t)pass + 1);
        check_failing_pass(&fixture, "a fault put in by a test", false);
        assert_false(fault_disarm());
    }
    CHECK_OK(offload_update_prepare(fixture.model.offload, fresh, &update, err));
    CHECK_OK(offload_update_commit(update, NULL, err));
    offload_update_destroy(update);
    assert_false(is_late(&fixture));
    check_pass(&fixture, fresh_out);
    end(&fixture);
    ckpt_close(fresh);
    ckpt_testing_remove(folder);
}

static void a_parameter_that_is_loaded_again_is_whole(void **state)
{
    (void)state;
    for (int fails = 0; fails < 2; fails++) {
        struct fixture fixture;

        begin(&fixture, true);
        load(&fixture);
        if (fails) {
            fault_arm(FAULT_READS, 1);
            offload__late_settle(fixture.model.offload);
            assert_false(fault_disarm());
            assert_true(is_late(&fixture));
        }
        CHECK_OK(offload_reload(fixture.model.offload, 0, fixture.ckpt, err));
        check_table(&fixture);
        check_pass(&fixture, fixture.wanted);
        end(&fixture);
    }
}

/* Cut, so that rows of the table are missing, or written to. */
static void files_that_change_meanwhile_fail_each_pass(void **state)
{
    (void)state;
    for (int cut = 0; cut < 2; cut++) {
        struct fixture fixture;
        struct stat about;
        uint64_t at_bytes;
        char path[512];

        begin(&fixture, true);
        load(&fixture);
        check_pass(&fixture, fixture.wanted);
        (void)snprintf(path, sizeof(path), "%s/model.safetensors", fixture.folder);
        assert_int_equal(stat(path, &about), 0);
        at_bytes = ckpt_find(fixture.ckpt, "embed")->offset_bytes;
        assert_int_equal(truncate(path, cut ? (off_t)at_bytes + 100 : about.st_size + 1), 0);
        check_failing_pass(&fixture, "written to since it was opened", true);
        offload__late_settle(fixture.model.offload);
        assert_int_equal(fixture.told.count, 1);
        assert_non_null(strstr(fixture.told.line, fixture.folder));
        assert_non_null(strstr(fixture.told.line,
                               cut ? "truncated" : "written to since it was opened"));
        check_failing_pass(&fixture, "written to since it was opened", true);
        end(&fixture);
    }
}

/* -- a large one ------------------------------------------------------------------------------- */

#define TABLE_ROWS 32768
#define TABLE_WIDTH 1024

/* A file of holes. */
static char *large_write(void)
{
    static const char header[] =
        "{\"embed\":{\"dtype\":\"BF16\",\"shape\":[32768,1024],\"data_offsets\":[0,67108864]}}";
    char *const folder = ckpt_testing_folder();
    uint8_t bytes[8 + sizeof(header) - 1] = { sizeof(header) - 1 };
    char path[512];

    memcpy(bytes + 8, header, sizeof(header) - 1);
    ckpt_testing_write_config(folder, "{}");
    ckpt_testing_write_file(folder, "model.safetensors", bytes, sizeof(bytes));
    (void)snprintf(path, sizeof(path), "%s/model.safetensors", folder);
    assert_int_equal(
        truncate(path, (off_t)(sizeof(bytes) + (uint64_t)TABLE_ROWS * TABLE_WIDTH * 2)), 0);
    return folder;
}

static void large_load(struct model *model, const struct ckpt *ckpt)
{
    struct offload_options options;
    struct offload_param_desc desc = {
        .name = "embed", .dtype = DTYPE_BF16, .rank = 2, .shape = { TABLE_ROWS, TABLE_WIDTH },
        .layer = OFFLOAD_NO_LAYER, .by_lookup = true,
    };

    offload_options_init(&options);
    options.ckpt = ckpt;
    options.lookup_row_max = MODEL_ROWS;
    CHECK_OK(loader_create(desc.dtype, (uint64_t)TABLE_ROWS * TABLE_WIDTH, &desc.loader, err));
    CHECK_OK(loader_add_whole(desc.loader, "embed", 2, desc.shape, 0, err));
    CHECK_OK(offload_create(model->device, &desc, 1, 0, &options, NULL, &model->offload, err));
    CHECK_OK(offload_load(model->offload, model->compute, ckpt, NULL, err));
    assert_true(offload_is_looked_up(model->offload, 0));
}

/* While it waits, while it loads, and when it has loaded. */
static void an_offload_may_end_while_the_table_is_loaded(void **state)
{
    char *const folder = large_write();
    struct ckpt *ckpt = NULL;

    (void)state;
    CHECK_OK(ckpt_open(folder, &ckpt, err));
    for (long ms = 0; ms < 48; ms += 3) {
        const struct timespec nap = { .tv_nsec = ms * 1000000 };
        struct model model;
        uint64_t began_ns;

        model_open(&model, "cpu");
        large_load(&model, ckpt);
        offload__late_pass_ended(model.offload);
        (void)nanosleep(&nap, NULL);
        began_ns = clock_now_ns();
        model_unload(&model);
        assert_true(clock_now_ns() - began_ns < WAIT_NS);
        model_close(&model);
    }
    ckpt_close(ckpt);
    ckpt_testing_remove(folder);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rows_that_are_read_by_themselves_give_the_same_bits),
        cmocka_unit_test(loading_tells_of_what_it_has_loaded),
        cmocka_unit_test(the_table_is_there_in_the_end),
        cmocka_unit_test(a_table_that_cannot_be_loaded_is_read_by_rows),
        cmocka_unit_test(a_parameter_that_is_loaded_again_is_whole),
        cmocka_unit_test(files_that_change_meanwhile_fail_each_pass),
        cmocka_unit_test(an_offload_may_end_while_the_table_is_loaded),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
