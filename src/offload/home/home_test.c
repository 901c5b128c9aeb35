/* offload/home/home_test.c - the answer does not depend on where weights live, and bytes are
 * counted.
 *
 * Method: the small model of testing_model.h over a checkpoint that holds final bytes, on both
 * kinds of device, with every way to choose what moves and homes on the host and on the disk. Each
 * output is compared bit for bit with everything resident, each report with what the plan
 * promised; then the disk is made to fail, stall and change underneath. */
#include "offload/testing_model.h"

#include <glob.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/file.h"
#include "base/size.h"
#include "base/testing_folder.h"

#define SIM "sim:memory=64MiB"
#define CPU "cpu"
#define PASSES 3
#define SEED 11

struct fixture {
    char *folder;
    struct ckpt *ckpt;
    float reference[MODEL_OUT_COUNT];
};

static void begin(struct fixture *fixture)
{
    memset(fixture, 0, sizeof(*fixture));
    fixture->folder = model_write_as(SEED, SIZE_MAX, true);
    CHECK_OK(ckpt_open(fixture->folder, &fixture->ckpt, err));
    model_reference(CPU, SEED, fixture->reference);
}

static void end(struct fixture *fixture)
{
    ckpt_close(fixture->ckpt);
    ckpt_testing_remove(fixture->folder);
}

static int64_t number(const json_t *object, const char *key)
{
    const json_t *value = json_object_get(object, key);

    if (!json_is_integer(value))
        fail_msg("no integer %s", key);
    return json_integer_value(value);
}

/* Runs some passes and compares; what moved must be what the plan says, and the same in the report
 * as the sum of its units. */
static void check(const struct fixture *fixture, const char *device,
                  const struct offload_options *wanted, bool must_move)
{
    struct offload_options options = *wanted;
    struct offload_sizes sizes;
    struct model model;
    float out[MODEL_OUT_COUNT];
    const void *const got = out, *const right = fixture->reference;
    json_t *report;

    options.ckpt = fixture->ckpt;
    options.poison = true;
    model_open(&model, device);
    model_load(&model, &options, fixture->ckpt);
    offload_sizes(model.offload, &sizes);
    for (int pass = 0; pass < PASSES; pass++) {
        CHECK_OK(model_pass(&model, out, err));
        if (memcmp(got, right, sizeof(out)) != 0)
            fail_msg("%s: pass %d differs from everything resident", device, pass);
    }
    CHECK_OK(offload_report_check(model.offload, err));
    report = offload_report_json(model.offload);
    if (must_move) {
        assert_true(sizes.unit_count > 0 && sizes.moving_bytes > 0);
        assert_true(number(report, "bytes_moved") >= PASSES * (int64_t)sizes.moving_bytes);
        assert_true(number(report, "bytes_moved") <= (PASSES + 1) * (int64_t)sizes.moving_bytes);
    }
    json_decref(report);
    model_close(&model);
}

static void every_choice_and_home_gives_the_same_bits(void **state)
{
    static const char *const devices[] = { CPU, SIM };
    static const enum offload_home homes[] = { OFFLOAD_HOME_HOST, OFFLOAD_HOME_DISK };
    struct fixture fixture;

    (void)state;
    begin(&fixture);
    for (size_t d = 0; d < 2; d++) {
        for (size_t h = 0; h < 2; h++) {
            const bool moves = homes[h] == OFFLOAD_HOME_DISK || d == 1;
            struct offload_options options;

            for (int64_t group = 1; group <= 3; group++) {
                for (int64_t step = 1; step <= 2; step++) {
                    offload_options_init(&options);
                    options.home = homes[h];
                    options.group_size = group;
                    options.prefetch_step = step;
                    options.slot_count = step == 2 ? 5 : 0;
                    options.params_glob = group == 2 ? "*.attn.proj,*.ffn.down" : NULL;
                    check(&fixture, devices[d], &options, moves);
                }
            }
            offload_options_init(&options);
            options.home = homes[h];
            options.cpu_offload_bytes = 10000;
            check(&fixture, devices[d], &options, moves);
        }
    }
    end(&fixture);
}

/* From the smallest budget that is accepted to one that holds everything. */
static void auto_fits_every_budget_that_it_accepts(void **state)
{
    static const char *const devices[] = { CPU, SIM };
    struct fixture fixture;
    uint64_t smallest = 0;

    (void)state;
    begin(&fixture);
    for (size_t d = 0; d < 2; d++) {
        for (uint64_t budget = 10000; budget < 200000; budget += 7000) {
            struct offload_options options;
            struct offload_sizes sizes;
            struct model model;
            struct err why;

            offload_options_init(&options);
            options.automatic = true;
            options.home = OFFLOAD_HOME_DISK;
            options.ckpt = fixture.ckpt;
            options.tile_bytes = 1024;
            options.slot_count = 3;
            options.weight_budget_bytes = budget;
            model_open(&model, devices[d]);
            if (model_create(&model, &options, &why) != STATUS_OK) {
                assert_int_equal(smallest, 0);
                assert_non_null(strstr(why.message, " more would do"));
                model_close(&model);
                continue;
            }
            offload_sizes(model.offload, &sizes);
            assert_true(sizes.resident_bytes + sizes.slot_count * sizes.slot_bytes <= budget);
            if (smallest == 0) {
                smallest = budget;
                assert_true(sizes.unit_count > 10);
            }
            model_close(&model);
            check(&fixture, devices[d], &options, false);
        }
        assert_true(smallest > 10000); /* some were refused */
        smallest = 0;
    }
    end(&fixture);
}

/* Bytes of the units at home there, as the manifest tells. */
static uint64_t home_bytes(const struct model *model, enum offload_home home)
{
    uint64_t bytes = 0;

    for (size_t i = 0; i < model->offload->unit_count; i++) {
        if (model->offload->units[i].home == home)
            bytes += model->offload->units[i].size_bytes;
    }
    return bytes;
}

/* Of what moves, no more is at home on the host than its budget has room for, and a larger one
 * never leaves more to the disk; the disk's share is spread over the pass. */
static void auto_mixes_homes_within_the_host_budget(void **state)
{
    struct fixture fixture;
    uint64_t before = UINT64_MAX, all = 0;
    bool was_mixed = false;

    (void)state;
    begin(&fixture);
    for (uint64_t budget = 0; budget < 10 * MIB; budget += budget < 9 * MIB ? 3 * MIB : 1500) {
        struct offload_options options;
        struct offload_sizes sizes;
        struct model model;
        uint64_t on_disk, on_host;

        offload_options_init(&options);
        options.automatic = true;
        options.home = OFFLOAD_HOME_DISK;
        options.ckpt = fixture.ckpt;
        options.tile_bytes = 2048;
        options.slot_count = 2;
        options.weight_budget_bytes = 40000;
        options.host_budget_bytes = budget;
        model_open(&model, SIM);
        CHECK_OK(model_create(&model, &options, err));
        offload_sizes(model.offload, &sizes);
        on_disk = home_bytes(&model, OFFLOAD_HOME_DISK);
        on_host = home_bytes(&model, OFFLOAD_HOME_HOST);
        assert_int_equal(on_host + on_disk, sizes.moving_bytes);
        assert_int_equal(on_host, sizes.host_home_bytes);
        assert_true(sizes.host_bytes <= budget || on_host == 0);
        assert_true(on_disk <= before);
        if (on_disk == before) {
            model_close(&model);
            continue;
        }
        before = on_disk;
        all = on_host;
        if (on_host > 0 && on_disk > 0) {
            size_t gap = 0, widest = 0, count = 0;

            was_mixed = true;
            for (size_t i = 0; i < model.offload->unit_count; i++) {
                const bool far = model.offload->units[i].home == OFFLOAD_HOME_DISK;

                gap = far ? 0 : gap + 1;
                widest = gap > widest ? gap : widest;
                count += far;
            }
            /* units differ in size by a factor of a few here */
            assert_true(count > 0 && widest <= 4 * (model.offload->unit_count / count + 1));
        }
        model_close(&model);
        check(&fixture, SIM, &options, true);
    }
    assert_int_equal(before, 0);
    assert_true(was_mixed && all > 0);
    end(&fixture);
}

/* The number in the refusal is the budget that works. */
static void a_budget_that_is_too_small_names_the_one_that_would_do(void **state)
{
    struct fixture fixture;
    struct offload_options options;
    struct model model;
    struct err why;
    const char *at;

    (void)state;
    begin(&fixture);
    offload_options_init(&options);
    options.automatic = true;
    options.home = OFFLOAD_HOME_DISK;
    options.ckpt = fixture.ckpt;
    options.tile_bytes = 1024;
    options.slot_count = 2;
    options.weight_budget_bytes = 1000;
    model_open(&model, CPU);
    assert_int_equal(model_create(&model, &options, &why), STATUS_NO_MEMORY);
    at = strstr(why.message, "takes ");
    assert_non_null(at);
    options.weight_budget_bytes = strtoull(at + strlen("takes "), NULL, 10);
    CHECK_OK(model_create(&model, &options, err));
    model_close(&model);
    check(&fixture, CPU, &options, true);
    check(&fixture, SIM, &options, true);
    end(&fixture);
}

static void v2_from_disk(struct offload_options *options, const struct fixture *fixture,
                         const char *disk)
{
    offload_options_init(options);
    options->home = OFFLOAD_HOME_DISK;
    options->group_size = 1;
    options->ckpt = fixture->ckpt;
    options->disk = disk;
    options->poison = true;
}

/* A read that fails ends its pass with a sentence, and the next pass is right again. */
static void a_disk_that_fails_ends_one_pass_and_no_more(void **state)
{
    static const char *const faults[] = { "eio=9:2", "end=9" };
    static const char *const devices[] = { CPU, SIM };
    struct fixture fixture;

    (void)state;
    begin(&fixture);
    for (size_t i = 0; i < 4; i++) {
        struct offload_options options;
        struct model model;
        float out[MODEL_OUT_COUNT];
        int failed = 0, right = 0;

        v2_from_disk(&options, &fixture, faults[i % 2]);
        model_open(&model, devices[i / 2]);
        model_load(&model, &options, fixture.ckpt);
        for (int pass = 0; pass < 5; pass++) {
            struct err why;

            if (model_pass(&model, out, &why) != STATUS_OK) {
                assert_non_null(strstr(why.message, "model.safetensors"));
                failed++;
                (void)stream_sync(model.compute, NULL);
                CHECK_OK(offload_pass_abort(model.offload, err));
                continue;
            }
            assert_memory_equal(out, fixture.reference, sizeof(out));
            right++;
        }
        assert_int_equal(failed, 1);
        assert_int_equal(right, 4);
        CHECK_OK(offload_report_check(model.offload, err));
        model_close(&model);
    }
    end(&fixture);
}

static void a_disk_that_stalls_or_reads_short_only_delays(void **state)
{
    struct fixture fixture;
    struct offload_options options;

    (void)state;
    begin(&fixture);
    v2_from_disk(&options, &fixture, "short=5,stall=9:100ms");
    check(&fixture, CPU, &options, true);
    check(&fixture, SIM, &options, true);
    v2_from_disk(&options, &fixture, "uring=off,direct=off,depth=2,piece=4KiB,stall=3:50ms");
    check(&fixture, CPU, &options, true);
    end(&fixture);
}

/* Old and new weights must not mix. */
static void a_checkpoint_that_changes_underneath_stops_the_answers(void **state)
{
    struct fixture fixture;
    struct offload_options options;
    struct model model;
    float out[MODEL_OUT_COUNT];
    char path[512];
    struct err why;
    FILE *file;

    (void)state;
    begin(&fixture);
    v2_from_disk(&options, &fixture, NULL);
    model_open(&model, CPU);
    model_load(&model, &options, fixture.ckpt);
    CHECK_OK(model_pass(&model, out, err));
    (void)snprintf(path, sizeof(path), "%s/model.safetensors", fixture.folder);
    file = fopen(path, "r+b");
    assert_non_null(file);
    assert_int_equal(fseek(file, -4, SEEK_END), 0);
    assert_int_equal(fwrite("\0\0\0\0", 1, 4, file), 4);
    assert_int_equal(fclose(file), 0);
    assert_int_not_equal(model_pass(&model, out, &why), STATUS_OK);
    assert_non_null(strstr(why.message, "model.safetensors"));
    model_close(&model);
    end(&fixture);
}

/* The only file in the folders below a cache folder; the caller frees. */
static char *only_cache_file(const char *folder)
{
    char pattern[600], *path;
    glob_t found;

    (void)snprintf(pattern, sizeof(pattern), "%s/*/*.units", folder);
    assert_int_equal(glob(pattern, 0, NULL, &found), 0);
    assert_int_equal(found.gl_pathc, 1);
    path = strdup(found.gl_pathv[0]);
    globfree(&found);
    return path;
}

/* Flips a bit in the middle of each block, so that every record is bad. */
static void spoil(const char *path)
{
    FILE *file = fopen(path, "r+b");
    long size;

    assert_non_null(file);
    assert_int_equal(fseek(file, 0, SEEK_END), 0);
    size = ftell(file);
    for (long at = 4096; at < size; at += 4096) {
        int byte;

        assert_int_equal(fseek(file, at + 8, SEEK_SET), 0);
        byte = fgetc(file);
        assert_int_equal(fseek(file, at + 8, SEEK_SET), 0);
        assert_int_not_equal(fputc(byte ^ 4, file), EOF);
    }
    assert_int_equal(fclose(file), 0);
}

/* What is converted on the way comes from a cache file: made once, made again when it is cut short,
 * and never believed when a bit of it has changed. */
static void converted_weights_come_from_a_cache_file(void **state)
{
    static const char *const devices[] = { CPU, SIM };
    struct fixture fixture = { .folder = model_write(SEED, SIZE_MAX) }; /* of F32 */
    char cache[TESTING_FOLDER_BYTES];
    char *path;

    (void)state;
    testing_folder_make(cache, "home");
    CHECK_OK(ckpt_open(fixture.folder, &fixture.ckpt, err));
    model_reference(CPU, SEED, fixture.reference);
    for (size_t i = 0; i < 8; i++) {
        struct offload_options options;

        offload_options_init(&options);
        options.home = OFFLOAD_HOME_DISK;
        options.cache_dir = cache;
        options.automatic = i / 4 == 1;
        options.group_size = i / 4 == 1 ? 0 : 1;
        options.slot_count = i / 4 == 1 ? 3 : 0;
        options.weight_budget_bytes = 50000;
        options.tile_bytes = 1024;
        check(&fixture, devices[i % 2], &options, true);
        if (i % 4 == 1) {
            path = only_cache_file(cache);
            spoil(path);
            free(path);
        } else if (i % 4 == 3) {
            testing_folder_remove(cache);
            assert_int_equal(mkdir(cache, 0700), 0);
        }
    }
    testing_folder_remove(cache);
    end(&fixture);
}

static void without_a_folder_for_it_a_cache_file_is_refused(void **state)
{
    struct offload_options options;
    struct ckpt *ckpt = model_ckpt(SEED); /* of F32 */
    struct model model;
    struct err why;

    (void)state;
    offload_options_init(&options);
    options.home = OFFLOAD_HOME_DISK;
    options.group_size = 1;
    options.ckpt = ckpt;
    model_open(&model, CPU);
    CHECK_OK(model_create(&model, &options, err));
    assert_int_equal(offload_load(model.offload, model.compute, ckpt, NULL, &why),
                     STATUS_BAD_INPUT);
    assert_non_null(strstr(why.message, "--offload-cache-dir"));
    model_close(&model);
    ckpt_close(ckpt);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_choice_and_home_gives_the_same_bits),
        cmocka_unit_test(auto_fits_every_budget_that_it_accepts),
        cmocka_unit_test(auto_mixes_homes_within_the_host_budget),
        cmocka_unit_test(a_budget_that_is_too_small_names_the_one_that_would_do),
        cmocka_unit_test(a_disk_that_fails_ends_one_pass_and_no_more),
        cmocka_unit_test(a_disk_that_stalls_or_reads_short_only_delays),
        cmocka_unit_test(a_checkpoint_that_changes_underneath_stops_the_answers),
        cmocka_unit_test(converted_weights_come_from_a_cache_file),
        cmocka_unit_test(without_a_folder_for_it_a_cache_file_is_refused),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
