/* offload/home/share_update_test.c - a live update of weights that the ranks of a node share: all
 * ranks switch, or all go on with the old ones, and who can't know what it reads doesn't compute.
 *
 * Method: ranks are forked children (cluster/testing.h), each with a device and a small model of
 * its own. Where they meet is played here: by the cluster while all live, and when one has died as
 * the front end does it: the answer is a failure, given once the others have come. A child that
 * hangs is ended by its alarm. */
#include "offload/testing_model.h"

#include "base/clock.h"
#include "cluster/testing.h"
#include "offload/home/share.h"

#define SIM "sim:memory=4MiB"
#define SEED 7
#define SEED_NEW 8
#define NOBODY UINT32_MAX

enum outcome { SERVES_NEW, SERVES_OLD, SERVES_NOTHING };

struct scene {
    const char *device;
    enum offload_home home;
    uint32_t faulty_rank;
    enum offload_update_step faulty_step; /* where it dies, or fails */
    bool dies;
    enum outcome outcome;                 /* of the others, and of one that only fails */
};

static const enum offload_home homes[] = { OFFLOAD_HOME_SHM, OFFLOAD_HOME_SHARDED };
static const char *const devices[] = { "cpu", SIM };

/* One rank's side of the meetings. */
struct side {
    struct cluster *cluster;
    const struct scene *scene;
    const struct offload *offload;
    enum offload_update_step next; /* that must come */
    enum status fit;
};

static uint32_t rank_of(struct cluster *cluster)
{
    return cluster_place(cluster)->node_rank;
}

/* Whether the first rank has the old weights back in shared memory, or is no more. */
static void wait_restored(const struct side *side)
{
    while (offload__shm_check_owner(side->offload, NULL) == STATUS_OK) {
        const uint64_t turn = offload__shm_turn(side->offload);

        if (side->offload->shm == NULL || turn == 0 || turn == 4)
            return;
        clock_sleep_until_ns(clock_now_ns() + 100000);
    }
}

static enum status meet(void *user, enum offload_update_step step, enum status own,
                        struct err *err)
{
    struct side *side = user;
    const struct scene *scene = side->scene;
    const bool faulty = rank_of(side->cluster) == scene->faulty_rank;
    uint32_t all[CLUSTER_TESTING_RANKS_MAX], words;
    struct err problem;
    enum status st;

    assert_int_equal(step, side->next);
    side->next = step + 1;
    if (step == OFFLOAD_UPDATE_ENDED) {
        side->fit = own;
        return own;
    }
    if (faulty && step == scene->faulty_step && scene->dies)
        (void)kill(getpid(), SIGKILL);
    if (faulty && step == scene->faulty_step)
        own = err_set(err, STATUS_IO, "on purpose");
    words = (uint32_t)own;
    st = cluster_allgather(side->cluster, CLUSTER_NODE, &words, sizeof(words), all,
                           CLUSTER_WAIT_S, &problem);
    if (st != STATUS_OK && step == OFFLOAD_UPDATE_RESTORED)
        wait_restored(side);
    for (uint32_t i = 0; st == STATUS_OK && i < cluster_place(side->cluster)->node_size; i++)
        st = all[i] == STATUS_OK ? st : STATUS_PEER;
    if (step == OFFLOAD_UPDATE_HELD && st != STATUS_OK)
        side->next = OFFLOAD_UPDATE_ENDED;
    if (step == OFFLOAD_UPDATE_CHANGED && st == STATUS_OK)
        side->next = OFFLOAD_UPDATE_ENDED;
    return st == STATUS_OK ? st : err_set(err, STATUS_PEER, "somebody has failed");
}

static void check_outcome(struct model *model, const struct scene *scene, const struct side *side)
{
    const enum outcome outcome = scene->outcome;
    float wanted[MODEL_OUT_COUNT], out[MODEL_OUT_COUNT];
    struct err problem;

    assert_int_equal(side->next, OFFLOAD_UPDATE_ENDED + 1);
    assert_int_equal(side->fit == STATUS_OK, outcome != SERVES_NOTHING);
    if (outcome == SERVES_NOTHING) {
        assert_int_not_equal(model_pass(model, out, &problem), STATUS_OK);
        assert_int_equal(offload_pass_abort(model->offload, &problem), STATUS_PEER);
        assert_non_null(strstr(problem.message, "must be started again"));
        return;
    }
    model_reference(scene->device, outcome == SERVES_NEW ? SEED_NEW : SEED, wanted);
    for (int pass = 0; pass < 3; pass++) {
        CHECK_OK(model_pass(model, out, err));
        assert_memory_equal(out, wanted, sizeof(out));
    }
    CHECK_OK(offload_report_check(model->offload, err));
}

static void rank_updates(struct cluster *cluster, void *arg)
{
    const struct scene *scene = arg;
    struct side side = { .cluster = cluster, .scene = scene, .next = OFFLOAD_UPDATE_HELD };
    const struct offload_meeting meeting = { .meet = meet, .user = &side };
    struct ckpt *old = model_ckpt(SEED), *fresh = model_ckpt(SEED_NEW);
    struct offload_update *update = NULL;
    struct offload_options options;
    float out[MODEL_OUT_COUNT];
    struct model model;
    struct err problem;

    offload_options_init(&options);
    options.cluster = cluster;
    options.ckpt = old;
    options.home = scene->home;
    options.group_size = 2;
    options.poison = true;
    model_open(&model, scene->device);
    model_load(&model, &options, old);
    side.offload = model.offload;
    CHECK_OK(model_pass(&model, out, err));
    CHECK_OK(offload_update_prepare(model.offload, fresh, &update, err));
    CHECK_OK(cluster_barrier(cluster, CLUSTER_NODE, CLUSTER_WAIT_S, err)); /* as PREPARED is */
    assert_int_equal(offload_update_commit(update, &meeting, &problem) == STATUS_OK,
                     scene->outcome == SERVES_NEW);
    check_outcome(&model, scene, &side);
    offload_update_destroy(update);
    if (!scene->dies)
        CHECK_OK(cluster_barrier(cluster, CLUSTER_NODE, CLUSTER_WAIT_S, err));
    model_close(&model);
    ckpt_close(fresh);
    ckpt_close(old);
}

static void check(const struct scene *scene, uint32_t count,
                  void (*rank_main)(struct cluster *cluster, void *arg))
{
    int ended[CLUSTER_TESTING_RANKS_MAX];

    cluster_testing_run(count, rank_main, (void *)scene, ended);
    for (uint32_t rank = 0; rank < count; rank++) {
        if (ended[rank] != (scene->dies && rank == scene->faulty_rank ? SIGKILL : 0))
            fail_msg("%s, home %s, rank %u fails at step %d: rank %u of %u ended with %d",
                     scene->device, offload_home_name(scene->home), scene->faulty_rank,
                     (int)scene->faulty_step, rank, count, ended[rank]);
    }
}

static void all_ranks_update_together(void **state)
{
    (void)state;
    for (size_t i = 0; i < 8; i++) {
        const struct scene scene = {
            .device = devices[i % 2], .home = homes[i / 2 % 2], .faulty_rank = NOBODY,
            .outcome = SERVES_NEW,
        };

        check(&scene, 2 + (uint32_t)(i / 4), rank_updates);
    }
}

/* Before anything has changed, or when all that was changed can be changed back. */
static void one_that_fails_leaves_the_old_weights_to_all(void **state)
{
    (void)state;
    for (size_t i = 0; i < 8; i++) {
        struct scene scene = {
            .device = devices[i % 2], .home = homes[i / 2 % 2], .faulty_rank = (uint32_t)(i % 3),
            .faulty_step = i / 4 == 0 ? OFFLOAD_UPDATE_HELD : OFFLOAD_UPDATE_CHANGED,
            .outcome = SERVES_OLD,
        };

        check(&scene, 3, rank_updates);
        scene.dies = scene.faulty_step == OFFLOAD_UPDATE_HELD;
        if (scene.dies)
            check(&scene, 3, rank_updates);
    }
}

/* The rank that fills shared memory has the old bytes back whatever becomes of a reader. */
static void a_reader_that_dies_leaves_the_old_weights_to_all(void **state)
{
    (void)state;
    for (size_t i = 0; i < 4; i++) {
        const struct scene scene = {
            .device = devices[i % 2], .home = OFFLOAD_HOME_SHM,
            .faulty_rank = 1 + (uint32_t)(i / 2), .faulty_step = OFFLOAD_UPDATE_CHANGED,
            .dies = true, .outcome = SERVES_OLD,
        };

        check(&scene, 3, rank_updates);
    }
}

/* Its own records are full of new bytes, and nobody else can change them back. */
static void nobody_reads_what_a_dead_rank_was_filling(void **state)
{
    (void)state;
    for (size_t i = 0; i < 4; i++) {
        const struct scene scene = {
            .device = devices[i % 2], .home = homes[i / 2 % 2], .faulty_rank = 0,
            .faulty_step = OFFLOAD_UPDATE_CHANGED, .dies = true, .outcome = SERVES_NOTHING,
        };

        check(&scene, 3, rank_updates);
    }
}

/* What the first rank has left behind is read on, and can't be updated. */
static void rank_is_orphaned(struct cluster *cluster, void *arg)
{
    const struct scene *scene = arg;
    struct ckpt *old = model_ckpt(SEED), *fresh = model_ckpt(SEED_NEW);
    struct offload_update *update = NULL;
    struct offload_options options;
    float wanted[MODEL_OUT_COUNT], out[MODEL_OUT_COUNT];
    struct model model;
    struct err problem;

    offload_options_init(&options);
    options.cluster = cluster;
    options.ckpt = old;
    options.home = scene->home;
    options.group_size = 2;
    model_reference(scene->device, SEED, wanted);
    model_open(&model, scene->device);
    model_load(&model, &options, old);
    if (rank_of(cluster) == 0)
        (void)kill(getpid(), SIGKILL);
    assert_int_equal(cluster_barrier(cluster, CLUSTER_NODE, 0, &problem), STATUS_PEER);
    assert_int_equal(offload_update_prepare(model.offload, fresh, &update, &problem),
                     STATUS_UNAVAILABLE);
    assert_non_null(strstr(problem.message, "others of this machine share has ended"));
    CHECK_OK(model_pass(&model, out, err));
    assert_memory_equal(out, wanted, sizeof(out));
    model_close(&model);
    ckpt_close(fresh);
    ckpt_close(old);
}

static void without_the_rank_that_fills_there_is_no_update(void **state)
{
    (void)state;
    for (size_t i = 0; i < 2; i++) {
        const struct scene scene = {
            .device = devices[i], .home = OFFLOAD_HOME_SHM, .faulty_rank = 0, .dies = true,
        };

        check(&scene, 3, rank_is_orphaned);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(all_ranks_update_together),
        cmocka_unit_test(one_that_fails_leaves_the_old_weights_to_all),
        cmocka_unit_test(a_reader_that_dies_leaves_the_old_weights_to_all),
        cmocka_unit_test(nobody_reads_what_a_dead_rank_was_filling),
        cmocka_unit_test(without_the_rank_that_fills_there_is_no_update),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
