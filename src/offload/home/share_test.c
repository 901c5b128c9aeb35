/* offload/home/share_test.c - weights that the ranks of a node share: whatever the home, the device
 * and the number of ranks, a pass is bit for bit what it is with everything on one device; a rank
 * that fails or is killed at any point gives the others an error and never a wrong answer or a
 * hang.
 *
 * Method: ranks are forked children (cluster/testing.h), each with a device of its own, a small
 * model and the same checkpoint. A child that hangs is ended by its alarm. */
#include "offload/testing_model.h"

#include <fcntl.h>
#include <sys/resource.h>

#include "base/size.h"
#include "cluster/testing.h"
#include "offload/home/shard.h"
#include "offload/home/share.h"

#define SIM "sim:memory=4MiB"
#define SEED 7
#define SEED_NEW 8
#define PASSES 3
#define RANKS_MAX CLUSTER_TESTING_RANKS_MAX

struct scene {
    const char *device;
    enum offload_home home;
    int64_t group_size, num_in_group, prefetch_step;
    const char *params_glob;
    uint32_t faulty_rank;          /* what follows is this rank's alone */
    const char *faulty_device;     /* NULL: `device` */
    uint64_t faulty_seed;          /* of its checkpoint; 0: as the others' */
    size_t faulty_skip;            /* the parameter its checkpoint lacks; 0: none */
    int64_t faulty_group_size;     /* 0: as the others' */
    uint64_t faulty_host_budget;   /* 0: none */
    bool faulty_dies_loading;
    enum offload__share_step faulty_step; /* of a reload, before which it dies */
    const char *says[2];           /* what the faulty rank's error says, and the others' */
};

static const struct scene plain = {
    .device = SIM, .home = OFFLOAD_HOME_SHM, .group_size = 2, .num_in_group = 1,
    .prefetch_step = 1, .faulty_rank = UINT32_MAX,
};

static uint32_t rank_of(struct cluster *cluster)
{
    return cluster_place(cluster)->node_rank;
}

static struct offload_options options_of(const struct scene *scene, struct cluster *cluster)
{
    struct offload_options options;

    offload_options_init(&options);
    options.cluster = cluster;
    options.home = scene->home;
    options.group_size = scene->group_size;
    options.num_in_group = scene->num_in_group;
    options.prefetch_step = scene->prefetch_step;
    options.params_glob = scene->params_glob;
    options.poison = true;
    if (rank_of(cluster) == scene->faulty_rank && scene->faulty_group_size != 0)
        options.group_size = scene->faulty_group_size;
    return options;
}

/* Opens the model on the rank's device, which may have a budget for host memory. */
static void rank_open(struct model *model, const struct scene *scene, struct cluster *cluster)
{
    const bool faulty = rank_of(cluster) == scene->faulty_rank;
    const char *device =
        faulty && scene->faulty_device != NULL ? scene->faulty_device : scene->device;
    const struct device_options options = {
        .thread_count = 1, .host_budget_bytes = faulty ? scene->faulty_host_budget : 0,
    };

    model_open(model, device);
    if (options.host_budget_bytes == 0)
        return;
    model_close(model);
    memset(model, 0, sizeof(*model));
    CHECK_OK(device_open(device, &options, &model->device, err));
    CHECK_OK(stream_create(model->device, STREAM_COMPUTE, &model->compute, err));
}

static void check_pass(struct model *model, const float *wanted)
{
    float out[MODEL_OUT_COUNT];

    CHECK_OK(model_pass(model, out, err));
    assert_memory_equal(out, wanted, sizeof(out));
}

/* -- the same answer -------------------------------------------------------------------------- */

static int64_t integer(const json_t *object, const char *key)
{
    const json_t *value = json_object_get(object, key);

    assert_true(json_is_integer(value));
    return json_integer_value(value);
}

/* What moved is what the schedule says, and from whom. */
static void check_report(const struct model *model, const struct scene *scene, uint32_t rank,
                         uint32_t count)
{
    const struct offload *offload = model->offload;
    json_t *report = offload_report_json(offload), *sharing;
    uint64_t moved = 0, own = 0, shards = 0;

    assert_non_null(report);
    for (size_t i = 0; i < offload->unit_count; i++) {
        const struct offload__unit *unit = &offload->units[i];
        const uint64_t part = offload__shard(unit->size_bytes, count, rank).size_bytes;

        moved += unit->size_bytes * offload->counters[i].onloads;
        own += part * offload->counters[i].onloads;
        shards += size_align_up(part, DEVICE_ALIGNMENT);
    }
    sharing = json_object_get(report, "sharing");
    assert_int_equal(integer(sharing, "rank"), rank);
    assert_int_equal(integer(sharing, "ranks"), count);
    if (scene->home == OFFLOAD_HOME_SHARDED) {
        assert_string_equal(json_string_value(json_object_get(report, "mode")), "sharded_gpu");
        assert_true(moved > 0);
        assert_int_equal(integer(sharing, "shard_bytes"), shards);
        assert_int_equal(integer(sharing, "bytes_moved_own"), own);
        assert_int_equal(integer(sharing, "bytes_moved_peers"), moved - own);
        assert_int_equal(
            integer(json_object_get(report, "bytes_moved_from"), "sharded"), moved);
    } else {
        assert_string_equal(json_string_value(json_object_get(report, "mode")), "shm_cpu");
        assert_int_equal(integer(sharing, "shard_bytes"), 0);
        assert_int_equal(integer(json_object_get(report, "bytes_moved_from"), "shm"), moved);
        assert_int_equal(moved == 0, offload->in_place);
    }
    json_decref(report);
    CHECK_OK(offload_report_check(offload, err));
}

/* A rank's own memory: what it is charged for, and no more. */
static void check_memory(const struct model *model, const struct scene *scene, uint32_t rank,
                         uint32_t count)
{
    struct device_memory_report memory;
    struct offload_sizes sizes;

    offload_sizes(model->offload, &sizes);
    device_memory_report(model->device, &memory);
    assert_int_equal(memory.used_by[DEVICE_USE_WEIGHTS], sizes.resident_bytes + sizes.shard_bytes);
    assert_int_equal(memory.used_by[DEVICE_USE_SLOTS], sizes.slot_count * sizes.slot_bytes);
    assert_int_equal(memory.host_used_bytes,
                     sizes.host_table_bytes +
                         (scene->home == OFFLOAD_HOME_SHM && rank == 0 ? sizes.moving_bytes : 0));
    if (scene->home == OFFLOAD_HOME_SHARDED)
        assert_true(sizes.shard_bytes <=
                    sizes.moving_bytes / count + sizes.unit_count * OFFLOAD_SHARD_GRAIN);
}

static void rank_answers(struct cluster *cluster, void *arg)
{
    const struct scene *scene = arg;
    const uint32_t rank = rank_of(cluster), count = cluster_place(cluster)->node_size;
    const struct offload_options options = options_of(scene, cluster);
    struct ckpt *ckpt = model_ckpt(SEED);
    float wanted[MODEL_OUT_COUNT];
    struct model model;

    model_reference(scene->device, SEED, wanted);
    rank_open(&model, scene, cluster);
    model_load(&model, &options, ckpt);
    for (int pass = 0; pass < PASSES; pass++)
        check_pass(&model, wanted);
    check_memory(&model, scene, rank, count);
    check_report(&model, scene, rank, count);
    assert_false(offload_is_garbage(model.offload));
    CHECK_OK(cluster_barrier(cluster, CLUSTER_NODE, CLUSTER_WAIT_S, err));
    model_close(&model);
    ckpt_close(ckpt);
}

static void check_ranks(struct scene *scene, uint32_t count,
                        void (*rank_main)(struct cluster *cluster, void *arg))
{
    int ended[RANKS_MAX];

    cluster_testing_run(count, rank_main, scene, ended);
    for (uint32_t rank = 0; rank < count; rank++) {
        if (ended[rank] != 0)
            fail_msg("%s, home %s: rank %u of %u ended with %d", scene->device,
                     offload_home_name(scene->home), rank, count, ended[rank]);
    }
}

static const enum offload_home homes[] = { OFFLOAD_HOME_SHM, OFFLOAD_HOME_SHARDED };
static const char *const devices[] = { "cpu", SIM };

static void every_rank_gives_the_same_answer(void **state)
{
    static const uint32_t counts[] = { 1, 2, 3, 7 };
    struct scene scene = plain;

    (void)state;
    for (size_t home = 0; home < 2; home++) {
        for (size_t device = 0; device < 2; device++) {
            for (size_t i = 0; i < 4; i++) {
                scene.home = homes[home];
                scene.device = devices[device];
                scene.group_size = 1 + (int64_t)(i % 2);
                scene.prefetch_step = 1 + (int64_t)(i % 3);
                check_ranks(&scene, counts[i], rank_answers);
            }
        }
    }
}

/* How many units have this home. */
static size_t units_at(const struct model *model, enum offload_home home)
{
    size_t count = 0;

    for (size_t i = 0; i < model->offload->unit_count; i++)
        count += model->offload->units[i].home == home;
    return count;
}

struct auto_scene {
    const char *folder;
    uint64_t host_budget_bytes;
};

/* Auto's home on the host is the node's: the first rank has made and filled it. */
static void rank_answers_auto(struct cluster *cluster, void *arg)
{
    const struct auto_scene *scene = arg;
    struct device_memory_report memory;
    struct offload_options options;
    struct offload_sizes sizes;
    float wanted[MODEL_OUT_COUNT];
    struct ckpt *ckpt = NULL;
    struct model model;

    model_reference(SIM, SEED, wanted);
    CHECK_OK(ckpt_open(scene->folder, &ckpt, err));
    offload_options_init(&options);
    options.cluster = cluster;
    options.automatic = true;
    options.home = OFFLOAD_HOME_DISK;
    options.ckpt = ckpt;
    options.tile_bytes = 2048;
    options.slot_count = 2;
    options.weight_budget_bytes = 40000;
    options.host_budget_bytes = scene->host_budget_bytes;
    options.poison = true;
    model_open(&model, SIM);
    model_load(&model, &options, ckpt);
    for (int pass = 0; pass < PASSES; pass++)
        check_pass(&model, wanted);
    offload_sizes(model.offload, &sizes);
    device_memory_report(model.device, &memory);
    assert_int_equal(units_at(&model, OFFLOAD_HOME_HOST), 0);
    assert_true(units_at(&model, OFFLOAD_HOME_SHM) > 0);
    assert_int_equal(units_at(&model, OFFLOAD_HOME_DISK) > 0, scene->host_budget_bytes < 12 * MIB);
    if (rank_of(cluster) == 0)
        assert_true(sizes.host_home_bytes > 0);
    else
        assert_int_equal(sizes.host_home_bytes, 0);
    assert_true(memory.host_used_bytes >= sizes.host_home_bytes);
    assert_true(memory.host_peak_bytes <= sizes.host_bytes);
    CHECK_OK(offload_report_check(model.offload, err));
    CHECK_OK(cluster_barrier(cluster, CLUSTER_NODE, CLUSTER_WAIT_S, err));
    model_close(&model);
    ckpt_close(ckpt);
}

static void ranks_share_what_auto_keeps_on_the_host(void **state)
{
    char *folder = model_write_as(SEED, SIZE_MAX, true);
    struct auto_scene scene = { .folder = folder };
    struct offload_options options;
    struct ckpt *ckpt = NULL;
    struct model model;

    (void)state;
    CHECK_OK(ckpt_open(folder, &ckpt, err));
    offload_options_init(&options); /* the least that mixes homes */
    options.automatic = true;
    options.home = OFFLOAD_HOME_DISK;
    options.ckpt = ckpt;
    options.tile_bytes = 2048;
    options.slot_count = 2;
    options.weight_budget_bytes = 40000;
    model_open(&model, SIM);
    for (options.host_budget_bytes = 8 * MIB; scene.host_budget_bytes == 0;
         options.host_budget_bytes += 1000) {
        assert_true(options.host_budget_bytes < 12 * MIB);
        CHECK_OK(model_create(&model, &options, err));
        if (units_at(&model, OFFLOAD_HOME_HOST) > 0 && units_at(&model, OFFLOAD_HOME_DISK) > 0)
            scene.host_budget_bytes = options.host_budget_bytes;
        model_unload(&model);
    }
    model_close(&model);
    ckpt_close(ckpt);
    for (int all = 0; all < 2; all++) {
        for (uint32_t count = 2; count <= 3; count++) {
            int ended[RANKS_MAX];

            cluster_testing_run(count, rank_answers_auto, &scene, ended);
            for (uint32_t rank = 0; rank < count; rank++)
                assert_int_equal(ended[rank], 0);
        }
        scene.host_budget_bytes = 64 * MIB;
    }
    ckpt_testing_remove(folder);
}

/* Records of one grain: most ranks have nothing to keep. */
static void records_may_be_smaller_than_the_ranks_are_many(void **state)
{
    struct scene scene = plain;

    (void)state;
    scene.home = OFFLOAD_HOME_SHARDED;
    scene.group_size = 1;
    scene.params_glob = "layers.*.attn.norm";
    for (size_t device = 0; device < 2; device++) {
        scene.device = devices[device];
        check_ranks(&scene, 3, rank_answers);
    }
}

/* -- the bytes exist once --------------------------------------------------------------------- */

/* Of the mapping of the segment in this process, in KiB: all, its proportional share, and what is
 * this process's alone. */
struct mapping {
    uint64_t size, pss, private_dirty;
    uint32_t count;
};

static struct mapping mapping_of_segments(void)
{
    FILE *file = fopen("/proc/self/smaps", "r");
    struct mapping mapping = { 0 };
    bool inside = false;
    char line[512];

    assert_non_null(file);
    while (fgets(line, sizeof(line), file) != NULL) {
        unsigned long long kib;

        if (strchr(line, '-') != NULL && strchr(line, '-') < strchr(line, ' ')) {
            inside = strstr(line, "memfd:lighter-") != NULL;
            mapping.count += inside;
        }
        if (inside && sscanf(line, "Size: %llu", &kib) == 1)
            mapping.size += kib;
        if (inside && sscanf(line, "Pss: %llu", &kib) == 1)
            mapping.pss += kib;
        if (inside && sscanf(line, "Private_Dirty: %llu", &kib) == 1)
            mapping.private_dirty += kib;
    }
    (void)fclose(file);
    return mapping;
}

static void rank_measures(struct cluster *cluster, void *arg)
{
    const struct scene *scene = arg;
    const struct offload_options options = options_of(scene, cluster);
    const uint32_t count = cluster_place(cluster)->node_size;
    struct ckpt *ckpt = model_ckpt(SEED);
    struct mapping own, all[RANKS_MAX];
    struct offload_sizes sizes;
    uint64_t pss = 0;
    struct model model;

    rank_open(&model, scene, cluster);
    model_load(&model, &options, ckpt);
    offload_sizes(model.offload, &sizes);
    CHECK_OK(cluster_barrier(cluster, CLUSTER_NODE, CLUSTER_WAIT_S, err));
    own = mapping_of_segments();
    CHECK_OK(cluster_allgather(cluster, CLUSTER_NODE, &own, sizeof(own), all, CLUSTER_WAIT_S,
                               err));
    for (uint32_t i = 0; i < count; i++) {
        assert_int_equal(all[i].count, 1);
        assert_int_equal(all[i].size, size_align_up(sizes.moving_bytes + 8, 4096) / 1024);
        assert_int_equal(all[i].private_dirty, 0);
        pss += all[i].pss;
    }
    assert_true(pss <= all[0].size);             /* once in all; each share is rounded down */
    assert_true(pss + count >= all[0].size);
    CHECK_OK(cluster_barrier(cluster, CLUSTER_NODE, CLUSTER_WAIT_S, err));
    model_close(&model);
    assert_int_equal(mapping_of_segments().count, 0);
    ckpt_close(ckpt);
}

static void shared_bytes_exist_once_per_node(void **state)
{
    struct scene scene = plain;

    (void)state;
    scene.group_size = 1;
    for (size_t device = 0; device < 2; device++) {
        scene.device = devices[device];
        for (uint32_t count = 2; count <= 3; count++)
            check_ranks(&scene, count, rank_measures);
    }
}

/* -- failures while loading ------------------------------------------------------------------- */

static void die(void *user, const char *what, uint64_t done_bytes, uint64_t total_bytes)
{
    (void)user, (void)what;
    if (done_bytes > total_bytes / 2)
        (void)kill(getpid(), SIGKILL);
}

static struct ckpt *scene_ckpt(const struct scene *scene, bool faulty, uint64_t seed)
{
    struct ckpt *ckpt = NULL;
    char *folder;

    if (!faulty || scene->faulty_skip == 0)
        return model_ckpt(seed);
    folder = model_write(seed, scene->faulty_skip);
    CHECK_OK(ckpt_open(folder, &ckpt, err));
    ckpt_testing_remove(folder);
    return ckpt;
}

/* Nobody can load; each rank has a sentence, and gives everything back. */
static void rank_fails(struct cluster *cluster, void *arg)
{
    const struct scene *scene = arg;
    const bool faulty = rank_of(cluster) == scene->faulty_rank;
    const struct offload_options options = options_of(scene, cluster);
    const struct progress deadly = { .update = die };
    struct ckpt *ckpt = scene_ckpt(scene, faulty, SEED);
    struct model model;
    struct err problem;
    enum status st;

    rank_open(&model, scene, cluster);
    CHECK_OK(model_create(&model, &options, err));
    st = offload_load(model.offload, model.compute, ckpt,
                      faulty && scene->faulty_dies_loading ? &deadly : NULL, &problem);
    if (st == STATUS_OK)
        fail_msg("rank %u could load", rank_of(cluster));
    if (strstr(problem.message, scene->says[faulty ? 0 : 1]) == NULL)
        fail_msg("rank %u: \"%s\" does not say \"%s\"", rank_of(cluster), problem.message,
                 scene->says[faulty ? 0 : 1]);
    model_close(&model);
    ckpt_close(ckpt);
}

static void check_fails(const struct scene *scene, uint32_t count)
{
    int ended[RANKS_MAX];

    cluster_testing_run(count, rank_fails, (void *)scene, ended);
    for (uint32_t rank = 0; rank < count; rank++) {
        const int wanted =
            rank == scene->faulty_rank && scene->faulty_dies_loading ? SIGKILL : 0;

        if (ended[rank] != wanted)
            fail_msg("%s, home %s, \"%s\": rank %u of %u ended with %d", scene->device,
                     offload_home_name(scene->home), scene->says[1], rank, count, ended[rank]);
    }
}

static void one_that_cannot_load_stops_all(void **state)
{
    struct scene scene;

    (void)state;
    for (size_t home = 0; home < 2; home++) {
        for (uint32_t rank = 0; rank < 3; rank += 2) {
            scene = plain;
            scene.home = homes[home];
            scene.faulty_rank = rank;
            scene.says[1] = rank == 0 ? "rank 0 of this node has failed" : "rank 2 of this node";
            scene.says[0] = "layers.3.ffn.up"; /* its checkpoint lacks a tensor */
            scene.faulty_skip = model_index(3, MODEL_UP);
            check_fails(&scene, 3);
            scene.faulty_skip = 0;
            scene.says[0] = "budget"; /* its device is too small */
            scene.faulty_device = "sim:memory=72KiB";
            check_fails(&scene, 3);
            scene.says[0] = "on purpose"; /* a copy fails while it loads */
            scene.faulty_device = "sim:memory=4MiB,fail_copy=2";
            check_fails(&scene, 3);
        }
    }
}

static void a_host_budget_that_is_too_small_is_the_first_ranks_error(void **state)
{
    struct scene scene = plain;

    (void)state;
    scene.faulty_rank = 0;
    scene.faulty_host_budget = 4096;
    scene.says[0] = "weights in shared memory: sim: ";
    scene.says[1] = "rank 0 of this node has failed: weights in shared memory: sim: ";
    check_fails(&scene, 2);
}

/* Ranks that would not read what the others wrote. */
static void other_options_are_found_out(void **state)
{
    struct scene scene;

    (void)state;
    for (size_t home = 0; home < 2; home++) {
        scene = plain;
        scene.home = homes[home];
        scene.faulty_rank = 1;
        scene.faulty_group_size = 3;
        scene.says[0] = scene.says[1] = "need the same model, offload options";
        check_fails(&scene, 2);
        scene.faulty_group_size = 0;
        scene.faulty_device = "cpu";
        scene.says[0] = scene.says[1] = "on 'cpu', rank 0 moves";
        check_fails(&scene, 2);
    }
}

static void one_that_is_killed_stops_all(void **state)
{
    struct scene scene = plain;

    (void)state;
    scene.faulty_dies_loading = true;
    scene.says[0] = "";
    scene.says[1] = "of this node's 3 has ended"; /* this one, or one that has failed after it */
    scene.faulty_rank = 0;
    check_fails(&scene, 3);
    scene.home = OFFLOAD_HOME_SHARDED;
    scene.faulty_rank = 1;
    check_fails(&scene, 3);
}

static void limit_files(void)
{
    const struct rlimit limit = { 4096, 4096 };

    assert_int_equal(setrlimit(RLIMIT_FSIZE, &limit), 0);
}

/* No shared memory left, for whoever has to make some. */
static void rank_has_none_left(struct cluster *cluster, void *arg)
{
    struct scene *scene = arg;
    const struct offload_options options = options_of(scene, cluster);
    const bool faulty = rank_of(cluster) == scene->faulty_rank;
    struct ckpt *ckpt = model_ckpt(SEED);
    struct model model;
    struct err problem;

    rank_open(&model, scene, cluster);
    CHECK_OK(model_create(&model, &options, err));
    if (faulty)
        limit_files();
    assert_int_equal(offload_load(model.offload, model.compute, ckpt, NULL, &problem),
                     faulty ? STATUS_NO_MEMORY : STATUS_PEER);
    assert_non_null(strstr(problem.message, "of shared memory are more than"));
    model_close(&model);
    ckpt_close(ckpt);
}

static void no_shared_memory_left_is_a_sentence(void **state)
{
    struct scene scene = plain;

    (void)state;
    scene.faulty_rank = 0;
    check_ranks(&scene, 2, rank_has_none_left);
    scene.home = OFFLOAD_HOME_SHARDED;
    scene.faulty_rank = 1;
    check_ranks(&scene, 2, rank_has_none_left);
}

/* -- death while serving ---------------------------------------------------------------------- */

/* The first rank is killed between passes: what the others have mapped stays, so they go on. */
static void rank_outlives(struct cluster *cluster, void *arg)
{
    const struct scene *scene = arg;
    const struct offload_options options = options_of(scene, cluster);
    struct ckpt *ckpt = model_ckpt(SEED), *other = model_ckpt(SEED_NEW);
    float wanted[MODEL_OUT_COUNT];
    struct model model;
    struct err problem;

    model_reference(scene->device, SEED, wanted);
    rank_open(&model, scene, cluster);
    model_load(&model, &options, ckpt);
    check_pass(&model, wanted);
    if (rank_of(cluster) == 0)
        (void)kill(getpid(), SIGKILL);
    assert_int_equal(cluster_barrier(cluster, CLUSTER_NODE, 0, &problem), STATUS_PEER);
    check_pass(&model, wanted);
    /* New weights are out of the question, since all would have to change theirs. */
    assert_int_equal(offload_reload(model.offload, model_index(1, MODEL_UP), other, &problem),
                     STATUS_PEER);
    assert_non_null(strstr(problem.message, "has ended"));
    for (int pass = 0; pass < PASSES; pass++)
        check_pass(&model, wanted);
    model_close(&model);
    ckpt_close(other);
    ckpt_close(ckpt);
}

static void the_others_go_on_when_one_is_killed(void **state)
{
    struct scene scene = plain;
    int ended[RANKS_MAX];

    (void)state;
    for (size_t home = 0; home < 2; home++) {
        for (size_t device = 0; device < 2; device++) {
            scene.home = homes[home];
            scene.device = devices[device];
            cluster_testing_run(3, rank_outlives, &scene, ended);
            assert_int_equal(ended[0], SIGKILL);
            assert_int_equal(ended[1], 0);
            assert_int_equal(ended[2], 0);
        }
    }
}

/* -- loading again ---------------------------------------------------------------------------- */


static void rank_reloads(struct cluster *cluster, void *arg)
{
    const struct scene *scene = arg;
    const struct offload_options options = options_of(scene, cluster);
    struct ckpt *old = model_ckpt(SEED), *new = model_ckpt(SEED_NEW);
    float before[MODEL_OUT_COUNT], after[MODEL_OUT_COUNT];
    struct model model;

    model_reference(scene->device, SEED, before);
    model_reference(scene->device, SEED_NEW, after);
    rank_open(&model, scene, cluster);
    model_load(&model, &options, old);
    check_pass(&model, before);
    for (size_t p = 0; p < MODEL_PARAMS; p++)
        CHECK_OK(offload_reload(model.offload, p, new, err));
    for (int pass = 0; pass < PASSES; pass++)
        check_pass(&model, after);
    CHECK_OK(offload_report_check(model.offload, err));
    CHECK_OK(cluster_barrier(cluster, CLUSTER_NODE, CLUSTER_WAIT_S, err));
    model_close(&model);
    ckpt_close(new);
    ckpt_close(old);
}

static void all_ranks_load_again_together(void **state)
{
    struct scene scene = plain;

    (void)state;
    for (size_t home = 0; home < 2; home++) {
        for (size_t device = 0; device < 2; device++) {
            scene.home = homes[home];
            scene.device = devices[device];
            for (uint32_t count = 1; count <= 3; count++)
                check_ranks(&scene, count, rank_reloads);
        }
    }
}

/* One rank's new checkpoint lacks what is asked for: nobody changes anything. */
static void rank_keeps_the_old(struct cluster *cluster, void *arg)
{
    const struct scene *scene = arg;
    const bool faulty = rank_of(cluster) == scene->faulty_rank;
    const struct offload_options options = options_of(scene, cluster);
    struct ckpt *old = model_ckpt(SEED), *new = scene_ckpt(scene, faulty, SEED_NEW);
    float before[MODEL_OUT_COUNT];
    struct model model;
    struct err problem;

    model_reference(scene->device, SEED, before);
    rank_open(&model, scene, cluster);
    model_load(&model, &options, old);
    check_pass(&model, before);
    assert_int_not_equal(offload_reload(model.offload, scene->faulty_skip, new, &problem),
                         STATUS_OK);
    assert_non_null(strstr(problem.message, "layers.3.ffn.up"));
    for (int pass = 0; pass < PASSES; pass++)
        check_pass(&model, before);
    CHECK_OK(cluster_barrier(cluster, CLUSTER_NODE, CLUSTER_WAIT_S, err));
    model_close(&model);
    ckpt_close(new);
    ckpt_close(old);
}

static void a_reload_that_fails_somewhere_changes_nothing(void **state)
{
    struct scene scene = plain;

    (void)state;
    scene.faulty_skip = model_index(3, MODEL_UP);
    for (size_t home = 0; home < 2; home++) {
        for (uint32_t rank = 0; rank < 2; rank++) {
            scene.home = homes[home];
            scene.faulty_rank = rank;
            check_ranks(&scene, 3, rank_keeps_the_old);
        }
    }
}

/* A device fails just when the shards change places: the others change theirs back. */
static void rank_changes_back(struct cluster *cluster, void *arg)
{
    const struct scene *scene = arg;
    const bool faulty = rank_of(cluster) == scene->faulty_rank;
    const struct offload_options options = options_of(scene, cluster);
    struct ckpt *old = model_ckpt(SEED), *new = model_ckpt(SEED_NEW);
    float before[MODEL_OUT_COUNT];
    struct model model;
    struct err problem;

    model_reference(scene->device, SEED, before);
    rank_open(&model, scene, cluster);
    model_load(&model, &options, old);
    check_pass(&model, before);
    if (faulty) /* the copy stream is broken from here on, so that changing back fails too */
        assert_int_equal(device_copy_peer(model.offload->copy, model.x, &problem, 16, &problem),
                         STATUS_DEVICE);
    assert_int_not_equal(
        offload_reload(model.offload, model_index(3, MODEL_UP), new, &problem), STATUS_OK);
    assert_non_null(strstr(problem.message, "neither in a peer's memory"));
    if (!faulty) {
        for (int pass = 0; pass < PASSES; pass++)
            check_pass(&model, before);
    }
    CHECK_OK(cluster_barrier(cluster, CLUSTER_NODE, CLUSTER_WAIT_S, err));
    model_close(&model);
    ckpt_close(new);
    ckpt_close(old);
}

static void a_device_that_fails_in_a_reload_stops_only_its_rank(void **state)
{
    struct scene scene = plain;

    (void)state;
    scene.faulty_rank = 1;
    for (size_t home = 0; home < 2; home++) {
        scene.home = homes[home];
        check_ranks(&scene, 2, rank_changes_back);
    }
}

/* A rank is killed just while the others change their bytes, or are about to: who can't know what
 * became of them doesn't compute with them, and says so. */
static void rank_is_torn(struct cluster *cluster, void *arg)
{
    const struct scene *scene = arg;
    const struct offload_options options = options_of(scene, cluster);
    struct ckpt *old = model_ckpt(SEED), *new = model_ckpt(SEED_NEW);
    enum offload__share_step step;
    float out[MODEL_OUT_COUNT];
    struct model model;
    struct err problem;

    rank_open(&model, scene, cluster);
    model_load(&model, &options, old);
    CHECK_OK(model_pass(&model, out, err));
    if (rank_of(cluster) == scene->faulty_rank) {
        CHECK_OK(offload__ring_sync(model.offload, err));
        for (step = OFFLOAD_SHARE_READY; step < scene->faulty_step; step++)
            CHECK_OK(offload__share_meet(model.offload, step, STATUS_OK, NULL, err));
        (void)kill(getpid(), SIGKILL);
    }
    assert_int_equal(offload_reload(model.offload, model_index(3, MODEL_UP), new, &problem),
                     STATUS_PEER);
    assert_non_null(strstr(problem.message, "has ended"));
    for (int again = 0; again < 2; again++) {
        assert_int_not_equal(model_pass(&model, out, &problem), STATUS_OK);
        assert_int_equal(offload_pass_abort(model.offload, &problem), STATUS_PEER);
        assert_non_null(strstr(problem.message, "must be started again"));
    }
    model_close(&model);
    ckpt_close(new);
    ckpt_close(old);
}

static void nobody_computes_with_half_of_a_change(void **state)
{
    struct scene scene = plain;
    int ended[RANKS_MAX];

    (void)state;
    for (size_t home = 0; home < 2; home++) {
        for (size_t device = 0; device < 2; device++) {
            scene.home = homes[home];
            scene.device = devices[device];
            scene.faulty_rank = (uint32_t)device;
            scene.faulty_step = home == device ? OFFLOAD_SHARE_AGREED : OFFLOAD_SHARE_CHANGED;
            cluster_testing_run(2, rank_is_torn, &scene, ended);
            assert_int_equal(ended[scene.faulty_rank], SIGKILL);
            assert_int_equal(ended[1 - scene.faulty_rank], 0);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_rank_gives_the_same_answer),
        cmocka_unit_test(ranks_share_what_auto_keeps_on_the_host),
        cmocka_unit_test(records_may_be_smaller_than_the_ranks_are_many),
        cmocka_unit_test(shared_bytes_exist_once_per_node),
        cmocka_unit_test(one_that_cannot_load_stops_all),
        cmocka_unit_test(a_host_budget_that_is_too_small_is_the_first_ranks_error),
        cmocka_unit_test(other_options_are_found_out),
        cmocka_unit_test(one_that_is_killed_stops_all),
        cmocka_unit_test(no_shared_memory_left_is_a_sentence),
        cmocka_unit_test(the_others_go_on_when_one_is_killed),
        cmocka_unit_test(all_ranks_load_again_together),
        cmocka_unit_test(a_reload_that_fails_somewhere_changes_nothing),
        cmocka_unit_test(nobody_computes_with_half_of_a_change),
        cmocka_unit_test(a_device_that_fails_in_a_reload_stops_only_its_rank),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
