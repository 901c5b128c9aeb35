/* fleet/remote_update_test.c - a live update across ranks: all switch, or none does, whoever
 * refuses, dies, says nothing or speaks out of turn, and whenever.
 *
 * Method: testing_ranks.h's played ranks come to the steps one by one, while a thread waits for the
 * update; and one test with real ranks. */
#include "fleet/testing_ranks.h"

#define RANKS 2
static const enum offload_update_step PREPARED = OFFLOAD_UPDATE_PREPARED,
                                      HELD = OFFLOAD_UPDATE_HELD,
                                      CHANGED = OFFLOAD_UPDATE_CHANGED,
                                      RESTORED = OFFLOAD_UPDATE_RESTORED,
                                      ENDED = OFFLOAD_UPDATE_ENDED;

/* An update that a thread waits for. */
struct updating {
    struct fleet *fleet;
    struct engine_update wanted;
    pthread_t thread;
    uint32_t paused_count;
    enum status status;
    struct err err;
};

static void *update_thread(void *user)
{
    struct updating *own = user;

    own->status = fleet_update(own->fleet, &own->wanted, &own->paused_count, &own->err);
    return NULL;
}

static void begin(struct updating *own, struct fleet *fleet, const char *path, const char *version)
{
    *own = (struct updating){
        .fleet = fleet, .wanted = { .model_path = path, .weight_version = version, .pause = true },
    };
    assert_int_equal(pthread_create(&own->thread, NULL, update_thread, own), 0);
}

static enum status result(struct updating *own)
{
    (void)pthread_join(own->thread, NULL);
    return own->status;
}

/* Until `done` of all these ranks, which play all the while. */
static void play_while(struct played *ranks, uint32_t count, bool (*done)(const struct played *))
{
    const uint64_t deadline_ns = clock_now_ns() + WAIT_S * UINT64_C(1000000000);
    bool all = false;

    while (!all) {
        assert_true(clock_now_ns() < deadline_ns);
        all = true;
        for (uint32_t i = 0; i < count; i++) {
            if (!ranks[i].closed)
                play(&ranks[i]);
            all = all && done(&ranks[i]);
        }
    }
}

static bool is_ordered(const struct played *rank)
{
    return rank->update_id != 0;
}

static bool is_welcome(const struct played *rank)
{
    return rank->is_welcome;
}

static bool is_closed(const struct played *rank)
{
    return rank->closed;
}

static bool has_request(const struct played *rank)
{
    return rank->count > 0;
}

static bool is_answered(const struct played *rank)
{
    return rank->agreed_count > 0;
}

/* Comes to a step, as well as `own` says. */
static void come(struct played *rank, enum offload_update_step step, enum status own)
{
    struct fleet__step words = {
        .id = rank->update_id, .step = step, .status = own, .paused_count = 3,
    };

    if (own != STATUS_OK)
        (void)err_set(&words.said, own, "no luck");
    rank->agreed_count = 0;
    (void)fleet__link_send(&rank->link, fleet__step_json(FLEET__UPDATED, &words), NULL);
}

/* All come to it, well, and are told `answer`. */
static void pass(struct played *ranks, uint32_t count, enum offload_update_step step,
                 enum status answer)
{
    for (uint32_t i = 0; i < count; i++)
        come(&ranks[i], step, STATUS_OK);
    play_while(ranks, count, is_answered);
    for (uint32_t i = 0; i < count; i++) {
        assert_int_equal(ranks[i].agreed_count, 1);
        assert_int_equal(ranks[i].agreed.step, step);
        assert_int_equal(ranks[i].agreed.status, answer);
    }
}

/* The rank's successor is told to load `model`, "" being what the command line says. */
static void check_successor(struct played *rank, struct fleet *fleet, uint32_t number,
                            const char *model, const char *version)
{
    play_hello(rank, fleet, number);
    play_while(rank, 1, is_welcome);
    assert_string_equal(rank->model, model);
    assert_string_equal(rank->version, version);
}

static void end_all(struct fleet *fleet, struct played *ranks)
{
    fleet_destroy(fleet);
    for (uint32_t i = 0; i < RANKS; i++)
        play_end(&ranks[i]);
}

static void all_switch_together(void **state)
{
    struct played ranks[RANKS];
    struct fleet *fleet = start(ranks, RANKS, 4);
    struct updating own;
    struct err err;

    (void)state;
    begin(&own, fleet, "models/new", "2");
    play_while(ranks, RANKS, is_ordered);
    assert_true(ranks[0].update.pause && !ranks[0].update.abort_all);
    assert_int_equal(ask(fleet, 0, 8, &err), STATUS_OK); /* served while all prepare */
    play_until(ranks, RANKS, 1);
    come(&ranks[0], PREPARED, STATUS_OK);
    for (int i = 0; i < 20; i++) /* nobody goes on before all have come */
        play(&ranks[0]);
    assert_int_equal(ranks[0].agreed_count, 0);
    come(&ranks[1], PREPARED, STATUS_OK);
    play_while(ranks, RANKS, is_answered);
    assert_int_equal(ask(fleet, 1, 8, &err), STATUS_OK); /* waits for the end */
    pass(ranks, RANKS, HELD, STATUS_OK);
    pass(ranks, RANKS, CHANGED, STATUS_OK);
    assert_int_equal(ranks[0].count + ranks[1].count, 1);
    come(&ranks[0], ENDED, STATUS_OK);
    come(&ranks[1], ENDED, STATUS_OK);
    play_until(ranks, RANKS, 2);
    assert_int_equal(result(&own), STATUS_OK);
    assert_int_equal(own.paused_count, 2 * 3);
    play_end(&ranks[1]);
    check_successor(&ranks[1], fleet, 1, "models/new", "2");
    play_end(&ranks[1]);

    begin(&own, fleet, "models/newer", NULL); /* by those who are there; the label stays */
    ranks[0].update_id = 0;
    play_while(ranks, 1, is_ordered);
    pass(ranks, 1, PREPARED, STATUS_OK);
    pass(ranks, 1, HELD, STATUS_OK);
    pass(ranks, 1, CHANGED, STATUS_OK);
    come(&ranks[0], ENDED, STATUS_OK);
    assert_int_equal(result(&own), STATUS_OK);
    check_successor(&ranks[1], fleet, 1, "models/newer", "2");
    end_all(fleet, ranks);
    assert_int_equal(wait_end(0).finish, FINISH_ABORT);
    assert_int_equal(wait_end(1).finish, FINISH_ABORT);
}

/* The way through the steps when one fails at `step`, by a status or by dying. */
static void check_failure(enum offload_update_step step, bool dies)
{
    struct played ranks[RANKS];
    struct fleet *fleet = start(ranks, RANKS, 4);
    const uint32_t left = dies ? 1 : 2;
    struct updating own;
    struct err err;

    begin(&own, fleet, "models/new", "2");
    play_while(ranks, RANKS, is_ordered);
    for (enum offload_update_step at = PREPARED; at < step; at++)
        pass(ranks, RANKS, at, STATUS_OK);
    come(&ranks[0], step, STATUS_OK);
    if (dies)
        play_end(&ranks[1]);
    else
        come(&ranks[1], step, STATUS_IO);
    play_while(ranks, left, is_answered);
    for (uint32_t i = 0; i < left; i++) {
        assert_int_equal(ranks[i].agreed.status, dies ? STATUS_PEER : STATUS_IO);
        assert_non_null(strstr(ranks[i].agreed.said.message, dies ? "rank 1 (process 1001"
                                                                  : "rank 1: no luck"));
    }
    if (step == CHANGED) /* all go back; whether everybody is well is told too */
        pass(ranks, left, RESTORED, dies ? STATUS_PEER : STATUS_OK);
    assert_int_equal(ask(fleet, 0, 8, &err), STATUS_OK);
    for (uint32_t i = 0; i < left; i++)
        come(&ranks[i], ENDED, STATUS_OK);
    assert_int_equal(result(&own), dies ? STATUS_PEER : STATUS_IO);
    assert_non_null(strstr(own.err.message, "rank 1"));
    play_until(ranks, left, 1); /* and they serve */
    if (!dies)
        play_end(&ranks[1]);
    check_successor(&ranks[1], fleet, 1, "", "");
    end_all(fleet, ranks);
    assert_int_equal(wait_end(0).finish, FINISH_ABORT);
}

static void one_that_fails_or_dies_leaves_the_old_to_all(void **state)
{
    (void)state;
    for (int i = 0; i < 6; i++)
        check_failure((enum offload_update_step)((int)PREPARED + i / 2), i % 2 == 0);
}

/* Up to CHANGED, where the second fails. */
static struct fleet *start_going_back(struct played *ranks, struct updating *own)
{
    struct fleet *fleet = start(ranks, RANKS, 4);

    begin(own, fleet, "models/new", "2");
    play_while(ranks, RANKS, is_ordered);
    pass(ranks, RANKS, PREPARED, STATUS_OK);
    pass(ranks, RANKS, HELD, STATUS_OK);
    come(&ranks[0], CHANGED, STATUS_OK);
    come(&ranks[1], CHANGED, STATUS_IO);
    play_while(ranks, RANKS, is_answered);
    return fleet;
}

/* One that can't go back, or dies on its way, is told of, and not kept. */
static void who_can_not_go_back_is_hung_up_on(void **state)
{
    for (int dies = 0; dies < 2; dies++) {
        struct played ranks[RANKS];
        struct updating own;
        struct fleet *fleet = start_going_back(ranks, &own);

        (void)state;
        if (dies)
            play_end(&ranks[1]);
        else
            come(&ranks[1], RESTORED, STATUS_IO);
        come(&ranks[0], RESTORED, STATUS_OK);
        play_while(ranks, dies ? 1 : 2, is_answered);
        assert_int_equal(ranks[0].agreed.status, STATUS_IO);
        if (!dies) {
            come(&ranks[1], ENDED, STATUS_IO);
            play_while(&ranks[1], 1, is_closed);
            play_end(&ranks[1]);
        }
        come(&ranks[0], ENDED, STATUS_OK);
        assert_int_equal(result(&own), STATUS_IO);
        check_successor(&ranks[1], fleet, 1, "", "");
        end_all(fleet, ranks);
    }
}

/* What is decided stays so: who dies then, or can't go on, is started again with the new. */
static void after_the_decision_the_new_ones_serve(void **state)
{
    for (int dies = 0; dies < 2; dies++) {
        struct played ranks[RANKS];
        struct fleet *fleet = start(ranks, RANKS, 4);
        struct updating own;

        (void)state;
        begin(&own, fleet, "models/new", "2");
        play_while(ranks, RANKS, is_ordered);
        for (enum offload_update_step at = PREPARED; at <= CHANGED; at++)
            pass(ranks, RANKS, at, STATUS_OK);
        if (!dies) {
            come(&ranks[1], ENDED, STATUS_DEVICE);
            play_while(&ranks[1], 1, is_closed);
        }
        play_end(&ranks[1]);
        check_successor(&ranks[1], fleet, 1, "models/new", "2");
        come(&ranks[0], ENDED, STATUS_OK);
        assert_int_equal(result(&own), STATUS_OK);
        play_end(&ranks[0]);
        check_successor(&ranks[0], fleet, 0, "models/new", "2");
        end_all(fleet, ranks);
    }
}

static void who_says_nothing_is_dead(void **state)
{
    struct played ranks[RANKS];
    struct fleet *fleet = start(ranks, RANKS, 4);
    struct updating own;

    (void)state;
    begin(&own, fleet, "models/new", "2");
    play_while(ranks, RANKS, is_ordered);
    pass(ranks, RANKS, PREPARED, STATUS_OK);
    come(&ranks[0], HELD, STATUS_OK);
    play_while(ranks, 1, is_answered); /* rank 1 says nothing any more */
    assert_int_equal(ranks[0].agreed.status, STATUS_PEER);
    come(&ranks[0], ENDED, STATUS_OK);
    assert_int_equal(result(&own), STATUS_PEER);
    assert_non_null(strstr(own.err.message, "silent"));
    end_all(fleet, ranks);
}

static void who_speaks_out_of_turn_is_hung_up_on(void **state)
{
    struct played ranks[RANKS];
    struct fleet *fleet = start(ranks, RANKS, 1);
    struct err err;

    (void)state;
    assert_int_equal(ask(fleet, 0, 8, &err), STATUS_OK);
    play_until(ranks, RANKS, 1);
    for (uint32_t i = 0; i < 5; i++) {
        struct updating own;

        if (i > 0) {
            begin(&own, fleet, "models/new", "2");
            ranks[0].update_id = 0;
            play_while(ranks, RANKS, is_ordered);
        }
        if (i < 2)
            come(&ranks[1], HELD, STATUS_OK); /* there is no update, or another step */
        if (i == 2) {
            ranks[1].update_id += 7; /* another update's */
            come(&ranks[1], PREPARED, STATUS_OK);
        }
        if (i == 3) {
            come(&ranks[1], PREPARED, STATUS_OK); /* twice */
            come(&ranks[1], PREPARED, STATUS_OK);
        }
        if (i == 4)
            assert_int_equal(fleet__link_send(&ranks[1].link,
                                              json_pack("{s:s, s:I, s:i, s:s, s:s, s:i}", "op",
                                                        "updated", "id",
                                                        (json_int_t)ranks[1].update_id,
                                                        "status", 0, "message", "", "step",
                                                        "dancing", "paused", 0), NULL), STATUS_OK);
        play_while(&ranks[1], 1, is_closed);
        play_end(&ranks[1]);
        if (i > 0) {
            pass(ranks, 1, PREPARED, STATUS_PEER);
            come(&ranks[0], ENDED, STATUS_OK);
            assert_int_equal(result(&own), STATUS_PEER);
        }
        check_successor(&ranks[1], fleet, 1, "", "");
        play_ready(&ranks[1], 1);
        assert_int_equal(ask(fleet, 1 + i, 8, &err), STATUS_OK); /* the other is full */
        play_while(ranks, RANKS, has_request);
    }
    end_all(fleet, ranks);
}

/* One that was loading meanwhile waits for the decision; what it has loaded may be history then. */
static void who_was_loading_meanwhile_is_not_taken_for_new(void **state)
{
    for (int fails = 0; fails < 2; fails++) {
        struct played ranks[RANKS];
        struct fleet *fleet = start(ranks, RANKS, 2);
        struct updating own;
        struct err err;

        (void)state;
        play_end(&ranks[1]);
        check_successor(&ranks[1], fleet, 1, "", "");
        begin(&own, fleet, "models/new", "2");
        play_while(ranks, 1, is_ordered);
        play_ready(&ranks[1], 4);
        assert_int_equal(ask(fleet, 0, 8, &err), STATUS_OK);
        assert_int_equal(ask(fleet, 1, 8, &err), STATUS_OK);
        play_until(ranks, RANKS, 2);
        assert_int_equal(ranks[1].count, 0);
        assert_int_equal(ranks[1].update_id, 0);
        pass(ranks, 1, PREPARED, STATUS_OK);
        pass(ranks, 1, HELD, STATUS_OK);
        if (fails) {
            come(&ranks[0], CHANGED, STATUS_IO);
            play_while(ranks, 1, is_answered);
            pass(ranks, 1, RESTORED, STATUS_OK);
        } else {
            pass(ranks, 1, CHANGED, STATUS_OK);
        }
        come(&ranks[0], ENDED, STATUS_OK);
        assert_int_equal(result(&own), fails ? STATUS_IO : STATUS_OK);
        if (!fails) { /* else it has the right ones */
            play_while(&ranks[1], 1, is_closed);
            play_end(&ranks[1]);
            check_successor(&ranks[1], fleet, 1, "models/new", "2");
            play_ready(&ranks[1], 4);
        }
        assert_int_equal(ask(fleet, 2, 8, &err), STATUS_OK); /* the other is full */
        play_until(&ranks[1], 1, 1);
        end_all(fleet, ranks);
        for (uint32_t i = 0; i < 3; i++)
            assert_int_equal(wait_end(i).finish, FINISH_ABORT);
    }
}

static void what_waits_is_aborted_when_that_is_wanted(void **state)
{
    struct played ranks[RANKS];
    struct fleet *fleet = start(ranks, RANKS, 1);
    struct updating own = { .fleet = fleet, .wanted = { .model_path = "m", .abort_all = true } };
    struct err err;

    (void)state;
    for (uint32_t i = 0; i < 4; i++)
        assert_int_equal(ask(fleet, i, 8, &err), STATUS_OK);
    play_until(ranks, RANKS, 2);
    assert_int_equal(pthread_create(&own.thread, NULL, update_thread, &own), 0);
    play_while(ranks, RANKS, is_ordered);
    assert_true(ranks[1].update.abort_all);
    pass(ranks, RANKS, PREPARED, STATUS_OK);
    for (uint32_t i = 2; i < 4; i++) {
        assert_int_equal(wait_end(i).status, STATUS_CANCELED);
        assert_non_null(strstr(told(i).message, "update"));
    }
    assert_int_equal(told(0).finish, FINISH_NONE); /* that is for its rank to say */
    for (enum offload_update_step at = HELD; at <= CHANGED; at++)
        pass(ranks, RANKS, at, STATUS_OK);
    come(&ranks[0], ENDED, STATUS_OK);
    come(&ranks[1], ENDED, STATUS_OK);
    assert_int_equal(result(&own), STATUS_OK);
    end_all(fleet, ranks);
    (void)wait_end(0);
    (void)wait_end(1);
}

static void what_can_not_begin_is_refused(void **state)
{
    char label[ENGINE_VERSION_BYTES_MAX + 1] = "";
    const struct engine_update wanted = { .model_path = "m" };
    const struct engine_update labelled = { .model_path = "m", .weight_version = label };
    struct played ranks[RANKS];
    struct fleet *fleet = start_as(ranks, RANKS, 4, true);
    struct updating own;
    struct err err;

    (void)state;
    memset(label, 'x', ENGINE_VERSION_BYTES_MAX);
    assert_int_equal(fleet_update(fleet, &labelled, NULL, &err), STATUS_BAD_INPUT);
    assert_non_null(strstr(err.message, "128 bytes, at most 127"));
    begin(&own, fleet, "models/new", "2");
    play_while(ranks, RANKS, is_ordered);
    assert_int_equal(fleet_update(fleet, &wanted, NULL, &err), STATUS_BUSY);
    assert_non_null(strstr(err.message, "under way"));
    play_end(&ranks[1]);
    pass(ranks, 1, PREPARED, STATUS_PEER);
    come(&ranks[0], ENDED, STATUS_OK);
    assert_int_equal(result(&own), STATUS_PEER);
    assert_int_equal(fleet_update(fleet, &wanted, NULL, &err), STATUS_UNAVAILABLE); /* needs all */
    assert_non_null(strstr(err.message, "rank 1 is not up"));
    play_hello(&ranks[1], fleet, 1);
    fleet_drain(fleet);
    assert_int_equal(fleet_update(fleet, &wanted, NULL, &err), STATUS_UNAVAILABLE);
    assert_non_null(strstr(err.message, "shutting down"));
    end_all(fleet, ranks);
}

static void real_ranks_come_to_every_step(void **state)
{
    static const struct {
        const char *path;
        enum status status;
        const char *says;
    } cases[] = {
        { "models/good", STATUS_OK, NULL }, { "models/bad", STATUS_BAD_INPUT, "this is no model" },
        { "models/torn", STATUS_IO, "half a model" }, { "models/good", STATUS_OK, NULL },
    };
    struct fleet *fleet = create(RANKS, 64, false);
    struct fleet_rank *rank[RANKS] = { NULL };
    bool is_gone = false, bad_usage = false;
    void *own[RANKS][2];
    pthread_t threads[RANKS];
    struct err err;

    (void)state;
    for (uint32_t i = 0; i < RANKS; i++) {
        const struct fleet_rank_options options = {
            .front = fleet_remote_front(fleet), .rank = i, .on_gone = gone, .user = &is_gone,
        };

        assert_int_equal(fleet_rank_connect(&options, &rank[i], &err), STATUS_OK);
        assert_null(fleet_rank_weights(rank[i]));
        own[i][0] = rank[i];
        own[i][1] = testing_engine_create(true);
        assert_int_equal(pthread_create(&threads[i], NULL, serve, own[i]), 0);
    }
    assert_int_equal(fleet_remote_wait(fleet, &bad_usage, &err), STATUS_OK);
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        const struct engine_update update = { .model_path = cases[i].path, .pause = true };
        uint32_t paused_count = 0;

        assert_int_equal(fleet_update(fleet, &update, &paused_count, &err), cases[i].status);
        assert_int_equal(paused_count, cases[i].status == STATUS_OK ? 2 * RANKS : 0);
        if (cases[i].says != NULL)
            assert_non_null(strstr(err.message, cases[i].says));
        assert_int_equal(ask(fleet, 0, 3, &err), STATUS_OK);
        assert_int_equal(wait_end(0).finish, FINISH_LENGTH);
    }
    fleet_drain(fleet);
    assert_int_equal(fleet_remote_leave(fleet, &err), STATUS_OK);
    for (uint32_t i = 0; i < RANKS; i++)
        (void)pthread_join(threads[i], NULL);
    fleet_destroy(fleet);
    assert_false(is_gone);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(all_switch_together),
        cmocka_unit_test(one_that_fails_or_dies_leaves_the_old_to_all),
        cmocka_unit_test(who_can_not_go_back_is_hung_up_on),
        cmocka_unit_test(after_the_decision_the_new_ones_serve),
        cmocka_unit_test(who_says_nothing_is_dead),
        cmocka_unit_test(who_speaks_out_of_turn_is_hung_up_on),
        cmocka_unit_test(who_was_loading_meanwhile_is_not_taken_for_new),
        cmocka_unit_test(what_waits_is_aborted_when_that_is_wanted),
        cmocka_unit_test(what_can_not_begin_is_refused),
        cmocka_unit_test(real_ranks_come_to_every_step),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
