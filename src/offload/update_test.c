/* offload/update_test.c - all weights anew while serving, or none.
 *
 * Method: the small model of testing_model.h is loaded from one checkpoint and updated to another,
 * in every home, on both kinds of device. Its output must be bit for bit that of a fresh start on
 * the new checkpoint, or, when something was made to fail, still that of the old one, and the
 * report must add up. Faults: checkpoints that do not fit, files that are cut, a disk that errs,
 * and (testing_faults.h) the n-th call of a prepare or a commit, for every n. */
#include "offload/testing_faults.h"
#include "offload/testing_model.h"

#include <inttypes.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/testing_folder.h"

#define SIM "sim:memory=64MiB"
#define CPU "cpu"
#define OLD_SEED 21
#define NEW_SEED 22
#define HEADER_SHIFT 264 /* moves tensors in their blocks, and keeps them aligned */

enum choice { RESIDENT, LATE, V1, V2, ALL, AUTO, AUTO_MIXED, CHOICE_COUNT };

static const struct place {
    enum choice choice;
    enum offload_home home;
    bool cached; /* the checkpoint has other bytes than are used */
} places[] = {
    { RESIDENT, OFFLOAD_HOME_HOST, false }, { V1, OFFLOAD_HOME_HOST, true },
    { V2, OFFLOAD_HOME_HOST, false },       { ALL, OFFLOAD_HOME_HOST, true },
    { V2, OFFLOAD_HOME_SHM, false },        { ALL, OFFLOAD_HOME_SHARDED, true },
    { V2, OFFLOAD_HOME_DISK, false },       { ALL, OFFLOAD_HOME_DISK, true },
    { AUTO, OFFLOAD_HOME_DISK, false },     { AUTO, OFFLOAD_HOME_DISK, true },
    { AUTO_MIXED, OFFLOAD_HOME_DISK, false }, { AUTO_MIXED, OFFLOAD_HOME_DISK, true },
    { V2, OFFLOAD_HOME_META, false },       { ALL, OFFLOAD_HOME_META, true },
    { LATE, OFFLOAD_HOME_HOST, false },
};
#define PLACE_COUNT (sizeof(places) / sizeof(places[0]))
static const char *const devices[] = { CPU, SIM };

/* A running model, the checkpoint that it was loaded from and another one. */
struct fixture {
    char cache[TESTING_FOLDER_BYTES];
    char *old_folder, *new_folder;
    struct ckpt *old, *fresh;
    struct offload_options options;
    struct model model;
    bool meta;
    float old_out[MODEL_OUT_COUNT], new_out[MODEL_OUT_COUNT];
};

static char *file_of(const char *folder, char *path, size_t size)
{
    (void)snprintf(path, size, "%s/model.safetensors", folder);
    return path;
}

/* Puts blanks behind the header, so that all tensors lie elsewhere in the file. */
static void shift(const char *folder)
{
    char path[512];
    uint64_t header_bytes;
    uint8_t *bytes;
    struct stat about;
    FILE *file = fopen(file_of(folder, path, sizeof(path)), "r+b");

    assert_non_null(file);
    assert_int_equal(fstat(fileno(file), &about), 0);
    bytes = malloc((size_t)about.st_size + HEADER_SHIFT);
    assert_non_null(bytes);
    assert_int_equal(fread(bytes, 1, (size_t)about.st_size, file), about.st_size);
    memcpy(&header_bytes, bytes, sizeof(header_bytes));
    memmove(bytes + 8 + header_bytes + HEADER_SHIFT, bytes + 8 + header_bytes,
            (size_t)about.st_size - 8 - header_bytes);
    memset(bytes + 8 + header_bytes, ' ', HEADER_SHIFT);
    header_bytes += HEADER_SHIFT;
    memcpy(bytes, &header_bytes, sizeof(header_bytes));
    rewind(file);
    assert_int_equal(fwrite(bytes, 1, (size_t)about.st_size + HEADER_SHIFT, file),
                     about.st_size + HEADER_SHIFT);
    assert_int_equal(fclose(file), 0);
    free(bytes);
}

static void set_options(struct fixture *fixture, const struct place *place)
{
    struct offload_options *options = &fixture->options;

    offload_options_init(options);
    options->home = place->home;
    options->ckpt = fixture->old;
    options->cache_dir = fixture->cache;
    options->poison = true;
    options->prefetch_step = 2;
    if (place->choice == LATE) { /* for good, unless an update waits for it */
        options->late_bytes_min = 0;
        options->lookup_row_max = MODEL_ROWS;
        options->fault_late_waits = true;
    }
    if (place->choice == V1)
        options->cpu_offload_bytes = 10000;
    if (place->choice == V2)
        options->group_size = 2;
    if (place->choice == ALL) {
        options->group_size = 1;
        options->params_glob = "*";
    }
    if (place->choice == AUTO || place->choice == AUTO_MIXED) {
        options->automatic = true;
        options->tile_bytes = 1024;
        options->slot_count = 3;
        options->weight_budget_bytes = 50000;
    }
    if (place->choice == AUTO_MIXED) { /* find_mixture says how much of the host */
        options->tile_bytes = 2048;
        options->slot_count = 2;
        options->weight_budget_bytes = 40000;
    }
    if (place->choice == RESIDENT)
        options->prefetch_step = 1;
}

static void check_bits(struct fixture *fixture, const float *wanted)
{
    float out[MODEL_OUT_COUNT];

    for (int pass = 0; pass < 2; pass++) {
        CHECK_OK(model_pass(&fixture->model, out, err));
        if (wanted != NULL)
            assert_memory_equal(out, wanted, sizeof(out));
        CHECK_OK(offload_report_check(fixture->model.offload, err));
    }
}

static void check_old(struct fixture *fixture)
{
    check_bits(fixture, fixture->meta ? NULL : fixture->old_out);
    assert_int_equal(offload_is_garbage(fixture->model.offload), fixture->meta);
}

/* The least host budget with which some of what moves is on the host and some on the disk. */
static void find_mixture(struct fixture *fixture)
{
    size_t count[OFFLOAD_HOME_COUNT] = { 0 };

    while (count[OFFLOAD_HOME_HOST] == 0 || count[OFFLOAD_HOME_DISK] == 0) {
        memset(count, 0, sizeof(count));
        fixture->options.host_budget_bytes += 1000;
        assert_true(fixture->options.host_budget_bytes < 16 << 20);
        CHECK_OK(model_create(&fixture->model, &fixture->options, err));
        for (size_t i = 0; fixture->model.offload != NULL &&
                           i < fixture->model.offload->unit_count; i++)
            count[fixture->model.offload->units[i].home]++;
        model_unload(&fixture->model);
    }
}

static void begin_on(struct fixture *fixture, const struct place *place, const char *device,
                     const char *disk)
{
    memset(fixture, 0, sizeof(*fixture));
    testing_folder_make(fixture->cache, "update");
    fixture->old_folder = model_write_as(OLD_SEED, SIZE_MAX, !place->cached);
    fixture->new_folder = model_write_as(NEW_SEED, SIZE_MAX, !place->cached);
    shift(fixture->new_folder);
    CHECK_OK(ckpt_open(fixture->old_folder, &fixture->old, err));
    CHECK_OK(ckpt_open(fixture->new_folder, &fixture->fresh, err));
    model_reference(device, OLD_SEED, fixture->old_out);
    model_reference(device, NEW_SEED, fixture->new_out);
    assert_memory_not_equal(fixture->old_out, fixture->new_out, sizeof(fixture->old_out));
    fixture->meta = place->home == OFFLOAD_HOME_META;
    set_options(fixture, place);
    fixture->options.disk = disk;
    model_open(&fixture->model, device);
    fixture->options.host_budget_bytes = 8 << 20;
    if (place->choice == AUTO_MIXED && !device_info(fixture->model.device)->memory_is_host)
        find_mixture(fixture);
    model_load(&fixture->model, &fixture->options, fixture->old);
    check_old(fixture);
}

static void begin(struct fixture *fixture, size_t place, size_t device)
{
    begin_on(fixture, &places[place], devices[device], NULL);
}

static void end(struct fixture *fixture)
{
    model_close(&fixture->model);
    ckpt_close(fixture->fresh);
    ckpt_close(fixture->old);
    ckpt_testing_remove(fixture->new_folder);
    ckpt_testing_remove(fixture->old_folder);
    testing_folder_remove(fixture->cache);
}

static enum status update(struct fixture *fixture, const struct ckpt *ckpt, struct err *err)
{
    struct offload_update *prepared = NULL;
    enum status st = offload_update_prepare(fixture->model.offload, ckpt, &prepared, err);

    if (st == STATUS_OK)
        st = offload_update_commit(prepared, NULL, err);
    offload_update_destroy(prepared);
    return st;
}

/* There, and back again, and there; with passes in between and without. */
static void an_updated_model_is_one_that_was_started_so(void **state)
{
    (void)state;
    for (size_t i = 0; i < 2 * PLACE_COUNT; i++) {
        struct fixture fixture;

        begin(&fixture, i / 2, i % 2);
        CHECK_OK(update(&fixture, fixture.fresh, err));
        assert_false(offload_is_garbage(fixture.model.offload));
        check_bits(&fixture, fixture.new_out);
        CHECK_OK(update(&fixture, fixture.old, err));
        CHECK_OK(update(&fixture, fixture.fresh, err));
        check_bits(&fixture, fixture.new_out);
        CHECK_OK(update(&fixture, fixture.old, err));
        check_bits(&fixture, fixture.old_out);
        end(&fixture);
    }
}

/* Between prepare and commit the old weights serve, and an update may be dropped. */
static void preparing_changes_nothing(void **state)
{
    (void)state;
    for (size_t i = 0; i < 2 * PLACE_COUNT; i++) {
        struct offload_update *prepared = NULL;
        struct fixture fixture;

        begin(&fixture, i / 2, i % 2);
        CHECK_OK(offload_update_prepare(fixture.model.offload, fixture.fresh, &prepared, err));
        check_old(&fixture);
        offload_update_destroy(prepared);
        check_old(&fixture);
        CHECK_OK(update(&fixture, fixture.fresh, err));
        check_bits(&fixture, fixture.new_out);
        end(&fixture);
    }
}

/* Exchanges the sides of layers.2.ffn.up in the header: as many bytes, another shape. */
static void spoil_shape(const char *folder)
{
    static const char wanted[] = "[16, 32]", other[] = "[32, 16]";
    char path[512], *at;
    char header[16384] = "";
    FILE *file = fopen(file_of(folder, path, sizeof(path)), "r+b");

    assert_non_null(file);
    assert_int_equal(fseek(file, 8, SEEK_SET), 0);
    assert_true(fread(header, 1, sizeof(header) - 1, file) > 0);
    at = strstr(header, "\"layers.2.ffn.up\"");
    assert_non_null(at);
    at = strstr(at, wanted);
    assert_non_null(at);
    assert_int_equal(fseek(file, 8 + (at - header), SEEK_SET), 0);
    assert_int_equal(fwrite(other, 1, strlen(other), file), strlen(other));
    assert_int_equal(fclose(file), 0);
}

static void a_checkpoint_that_does_not_fit_is_refused(void **state)
{
    (void)state;
    for (size_t i = 0; i < 4 * PLACE_COUNT; i++) {
        struct offload_update *prepared = NULL;
        struct fixture fixture;
        const size_t index = model_index(2, MODEL_UP);
        const bool lacks = i % 2 == 0;
        struct ckpt *bad = NULL;
        struct err why;
        char *folder;

        begin(&fixture, i / 4, i / 2 % 2);
        folder = model_write_as(NEW_SEED, lacks ? index : SIZE_MAX, !places[i / 4].cached);
        if (!lacks)
            spoil_shape(folder);
        CHECK_OK(ckpt_open(folder, &bad, err));
        assert_int_equal(offload_update_prepare(fixture.model.offload, bad, &prepared, &why),
                         STATUS_BAD_INPUT);
        assert_non_null(strstr(why.message, "layers.2.ffn.up"));
        check_old(&fixture);
        ckpt_close(bad);
        ckpt_testing_remove(folder);
        end(&fixture);
    }
}

/* The file is cut before an update, or when it has been prepared. */
static void a_file_that_is_cut_leaves_the_old_weights_serving(void **state)
{
    (void)state;
    for (size_t i = 0; i < 4 * PLACE_COUNT; i++) {
        const struct place *place = &places[i / 4];
        struct offload_update *prepared = NULL;
        struct fixture fixture;
        const bool early = i % 2 == 0;
        struct stat about;
        char path[512];
        struct err why;

        if (!early && place->home == OFFLOAD_HOME_DISK)
            continue; /* it is noticed in the next pass: see home_test.c */
        begin(&fixture, i / 4, i / 2 % 2);
        if (!early)
            CHECK_OK(offload_update_prepare(fixture.model.offload, fixture.fresh, &prepared, err));
        (void)file_of(fixture.new_folder, path, sizeof(path));
        assert_int_equal(stat(path, &about), 0);
        assert_int_equal(truncate(path, about.st_size - 100), 0); /* in the last layer's `down` */
        if (early)
            assert_int_not_equal(offload_update_prepare(fixture.model.offload, fixture.fresh,
                                                        &prepared, &why), STATUS_OK);
        else
            assert_int_equal(offload_update_commit(prepared, NULL, &why), STATUS_IO);
        assert_non_null(strstr(why.message, "model.safetensors"));
        offload_update_destroy(prepared);
        check_old(&fixture);
        end(&fixture);
    }
}

/* When neither checkpoint can be loaded, nothing is answered any more. */
static void without_the_old_files_a_failed_commit_stops_the_answers(void **state)
{
    struct offload_update *prepared = NULL;
    struct fixture fixture;
    float out[MODEL_OUT_COUNT];
    char path[512];
    struct err why;

    (void)state;
    begin(&fixture, 2, 1);
    CHECK_OK(offload_update_prepare(fixture.model.offload, fixture.fresh, &prepared, err));
    assert_int_equal(truncate(file_of(fixture.new_folder, path, sizeof(path)), 9000), 0);
    assert_int_equal(truncate(file_of(fixture.old_folder, path, sizeof(path)), 9000), 0);
    assert_int_equal(offload_update_commit(prepared, NULL, &why), STATUS_IO);
    offload_update_destroy(prepared);
    assert_int_not_equal(model_pass(&fixture.model, out, &why), STATUS_OK);
    assert_int_not_equal(offload_pass_abort(fixture.model.offload, &why), STATUS_OK);
    assert_non_null(strstr(why.message, "some may be new and some old"));
    end(&fixture);
}

/* A disk that errs while the new files are read: pieces are counted in a run without faults. */
static void a_disk_that_errs_leaves_the_old_weights_serving(void **state)
{
    static const size_t on_disk[] = { 6, 8 };

    (void)state;
    for (size_t i = 0; i < 4; i++) {
        const struct place *place = &places[on_disk[i / 2]];
        struct offload_update *prepared = NULL;
        struct disk_counters counters;
        struct fixture fixture;
        char disk[64];
        struct err why;

        begin_on(&fixture, place, devices[i % 2], "depth=4,piece=512KiB");
        CHECK_OK(offload_update_prepare(fixture.model.offload, fixture.fresh, &prepared, err));
        disk_reader_counters(offload__disk_reader(fixture.model.offload), &counters);
        offload_update_destroy(prepared); /* what it has read came behind what the ring has */
        end(&fixture);
        (void)snprintf(disk, sizeof(disk), "depth=4,piece=512KiB,eio=%" PRIu64 ":2",
                       counters.classes[DISK_DEMAND].piece_count +
                           counters.classes[DISK_GUESS].piece_count - 4);
        begin_on(&fixture, place, devices[i % 2], disk);
        assert_int_equal(offload_update_prepare(fixture.model.offload, fixture.fresh, &prepared,
                                                &why), STATUS_IO);
        assert_non_null(strstr(why.message, fixture.new_folder));
        check_old(&fixture);
        CHECK_OK(update(&fixture, fixture.fresh, err));
        check_bits(&fixture, fixture.new_out);
        end(&fixture);
    }
}

static void check_failures(size_t place, size_t device, enum fault_kind kind)
{
    struct device_memory_report before, after;
    struct fixture fixture;
    bool done = false, was_late;

    begin(&fixture, place, device);
    was_late = fixture.model.offload->late != NULL;
    device_memory_report(fixture.model.device, &before);
    for (uint64_t n = 1; !done; n++) {
        struct err why;
        enum status st;

        fault_arm(kind, n);
        st = update(&fixture, fixture.fresh, &why);
        done = fault_disarm();
        assert_true(st == STATUS_OK || !done);
        if (st == STATUS_OK)
            break; /* nothing failed, or what failed was not needed */
        device_memory_report(fixture.model.device, &after);
        if (was_late && fixture.model.offload->late == NULL) /* the rows have been given back */
            before.host_used_bytes -= MODEL_ROWS * MODEL_WIDTH * sizeof(uint16_t);
        was_late = fixture.model.offload->late != NULL;
        assert_int_equal(after.host_used_bytes, before.host_used_bytes);
        if (offload_pass_abort(fixture.model.offload, &why) != STATUS_OK)
            fail_msg("after fault %" PRIu64 ": %s", n, why.message);
        check_old(&fixture);
    }
    check_bits(&fixture, fixture.new_out);
    end(&fixture);
}

static void any_failure_leaves_the_old_weights_serving(void **state)
{
    (void)state;
    for (size_t i = 0; i < 2 * PLACE_COUNT; i++) {
        check_failures(i / 2, i % 2, FAULT_READS);
        check_failures(i / 2, i % 2, FAULT_CALLS);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(an_updated_model_is_one_that_was_started_so),
        cmocka_unit_test(preparing_changes_nothing),
        cmocka_unit_test(a_checkpoint_that_does_not_fit_is_refused),
        cmocka_unit_test(a_file_that_is_cut_leaves_the_old_weights_serving),
        cmocka_unit_test(without_the_old_files_a_failed_commit_stops_the_answers),
        cmocka_unit_test(a_disk_that_errs_leaves_the_old_weights_serving),
        cmocka_unit_test(any_failure_leaves_the_old_weights_serving),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
