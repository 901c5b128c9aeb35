/* fleet/remote_test.c - the front end and its ranks: who gets what, and what becomes of it when a
 * rank dies, hangs, or lies.
 *
 * Method: testing_ranks.h's played ranks; and one test with a real one. */
#include "fleet/testing_ranks.h"

#define SILENT_NS_MIN UINT64_C(1600000000) /* less may be the scheduler's doing */
#define SILENT_NS_MAX UINT64_C(2000000000) /* as was promised */
#define REPORT_NS_MAX UINT64_C(900000000)  /* less than what a rank has that does not answer */

static void work_is_spread_and_told(void **state)
{
    struct played ranks[3];
    struct fleet *fleet = start(ranks, 3, 4);
    struct err err;

    (void)state;
    assert_int_equal(fleet_model_info(fleet)->vocab_size, 1000);
    assert_int_equal(fleet_health(fleet, &err), STATUS_OK);
    for (uint32_t i = 0; i < 6; i++)
        assert_int_equal(ask(fleet, i, 8, &err), STATUS_OK);
    play_until(ranks, 3, 6);
    for (uint32_t i = 0; i < 3; i++) {
        assert_int_equal(ranks[i].count, 2);
        for (uint32_t j = 0; j < 2; j++) {
            play_output(&ranks[i], ranks[i].ids[j], "Pa", false);
            play_output(&ranks[i], ranks[i].ids[j], "ris", true);
        }
    }
    for (uint32_t i = 0; i < 6; i++) {
        const struct asked end = wait_end(i);
        assert_int_equal(end.finish, FINISH_LENGTH);
        assert_string_equal(end.text, "Paris");
        assert_int_equal(end.rank, i % 3);
    }
    fleet_destroy(fleet);
    for (uint32_t i = 0; i < 3; i++)
        play_end(&ranks[i]);
}

static void a_long_request_keeps_others_away(void **state)
{
    struct played ranks[2];
    struct fleet *fleet = start(ranks, 2, 8);
    struct err err;

    (void)state;
    assert_int_equal(ask(fleet, 0, 60, &err), STATUS_OK); /* 4 of 8 pages */
    for (uint32_t i = 1; i < 5; i++)
        assert_int_equal(ask(fleet, i, 8, &err), STATUS_OK); /* 1 page each */
    play_until(ranks, 2, 5);
    assert_int_equal(ranks[0].count, 1);
    assert_int_equal(ranks[1].count, 4);
    fleet_destroy(fleet);
    for (uint32_t i = 0; i < 5; i++)
        assert_int_equal(wait_end(i).finish, FINISH_ABORT);
    play_end(&ranks[0]);
    play_end(&ranks[1]);
}

static void a_death_ends_what_ran_and_nothing_else(void **state)
{
    struct played ranks[2];
    struct fleet *fleet = start(ranks, 2, 1);
    struct asked end;
    struct err err;

    (void)state;
    for (uint32_t i = 0; i < 3; i++)
        assert_int_equal(ask(fleet, i, 8, &err), STATUS_OK); /* the third waits */
    play_until(ranks, 2, 2);
    play_output(&ranks[0], ranks[0].ids[0], "Pa", false);
    play_end(&ranks[0]);
    end = wait_end(0);
    assert_int_equal(end.finish, FINISH_ABORT);
    assert_int_equal(end.status, STATUS_PEER);
    assert_string_equal(end.text, "Pa");
    assert_non_null(strstr(end.message, "rank 0 (process 1000 on stage) has died"));
    play_output(&ranks[1], ranks[1].ids[0], "x", true);
    assert_int_equal(wait_end(1).finish, FINISH_LENGTH);
    play_until(&ranks[1], 1, 2); /* what waited goes to the other */
    play_output(&ranks[1], ranks[1].ids[1], "y", true);
    assert_int_equal(wait_end(2).finish, FINISH_LENGTH);

    play_hello(&ranks[0], fleet, 0); /* its successor */
    play_ready(&ranks[0], 1);
    for (uint32_t i = 3; i < 5; i++)
        assert_int_equal(ask(fleet, i, 8, &err), STATUS_OK);
    do {
        play(&ranks[0]);
        play(&ranks[1]);
    } while (ranks[0].count == 0 || ranks[1].count < 3);
    fleet_destroy(fleet);
    play_end(&ranks[0]);
    play_end(&ranks[1]);
}

/* Nobody is sent to a rank that is about to end with another. */
static void ranks_that_need_all_wait_for_all(void **state)
{
    struct played ranks[2];
    struct fleet *fleet = start_as(ranks, 2, 4, true);
    struct err err;

    (void)state;
    assert_int_equal(ask(fleet, 0, 8, &err), STATUS_OK);
    assert_int_equal(ask(fleet, 1, 8, &err), STATUS_OK);
    play_until(ranks, 2, 2);
    play_end(&ranks[0]);
    assert_int_equal(wait_end(0).finish, FINISH_ABORT);
    assert_int_equal(ask(fleet, 2, 8, &err), STATUS_OK);
    play_output(&ranks[1], ranks[1].ids[0], "x", true); /* what it runs may still end well */
    assert_int_equal(wait_end(1).finish, FINISH_LENGTH);
    play_end(&ranks[1]);

    play_hello(&ranks[1], fleet, 1);
    play_ready(&ranks[1], 4);
    for (int i = 0; i < 20; i++) {
        nap();
        play(&ranks[1]);
    }
    assert_int_equal(ranks[1].count, 0);
    play_hello(&ranks[0], fleet, 0);
    play_ready(&ranks[0], 4);
    play_until(ranks, 2, 1);
    fleet_destroy(fleet);
    assert_int_equal(wait_end(2).finish, FINISH_ABORT);
    play_end(&ranks[0]);
    play_end(&ranks[1]);
}

/* A successor hears what a rank of its machine shares, which is up and is not itself. */
static void what_ranks_share_is_handed_on(void **state)
{
    struct played ranks[3];
    struct fleet *fleet = create(3, 16, false);
    bool bad_usage = false;
    struct err err;

    (void)state;
    for (uint32_t i = 0; i < 3; i++) {
        play_hello(&ranks[i], fleet, i);
        while (!ranks[i].is_welcome)
            play(&ranks[i]);
        assert_string_equal(ranks[i].given, ""); /* nobody is up */
    }
    for (uint32_t i = 0; i < 3; i++) {
        ranks[i].shares = i == 0 ? NULL : i == 1 ? "one" : "two";
        play_ready(&ranks[i], 1);
    }
    assert_int_equal(fleet_remote_wait(fleet, &bad_usage, &err), STATUS_OK);
    for (uint32_t i = 0; i < 3; i++) {
        play_end(&ranks[i]);
        play_hello(&ranks[i], fleet, i);
        while (!ranks[i].is_welcome)
            play(&ranks[i]);
        assert_string_equal(ranks[i].given, i == 0 ? "one" : i == 1 ? "two" : "");
    }
    fleet_destroy(fleet);
    for (uint32_t i = 0; i < 3; i++)
        play_end(&ranks[i]);
}

static void silence_is_death(void **state)
{
    struct played ranks[2];
    struct fleet *fleet = start(ranks, 2, 1);
    struct asked end;
    struct err err;
    uint64_t silent_ns;

    (void)state;
    assert_int_equal(ask(fleet, 0, 8, &err), STATUS_OK);
    assert_int_equal(ask(fleet, 1, 8, &err), STATUS_OK);
    play_until(ranks, 2, 2);
    fleet__link_send(&ranks[0].link, fleet__message(FLEET__BEAT), NULL);
    silent_ns = clock_now_ns();
    for (int i = 0; told(0).finish == FINISH_NONE && i < WAIT_S * 1000; i++)
        play(&ranks[1]); /* rank 0 says nothing any more */
    silent_ns = clock_now_ns() - silent_ns;
    end = wait_end(0);
    assert_non_null(strstr(end.message, "silent"));
    assert_in_range(silent_ns, SILENT_NS_MIN, SILENT_NS_MAX);
    assert_int_equal(told(1).finish, FINISH_NONE);
    fleet_destroy(fleet);
    play_end(&ranks[0]);
    play_end(&ranks[1]);
}

struct reported {
    struct fleet *fleet;
    uint64_t took_ns;
};

static void *report(void *user)
{
    struct reported *own = user;
    const uint64_t began_ns = clock_now_ns();

    json_decref(fleet_report_json(own->fleet));
    own->took_ns = clock_now_ns() - began_ns;
    return NULL;
}

/* Not for who got up after that, such as one's successor. */
static void a_report_waits_for_those_who_were_asked(void **state)
{
    struct played ranks[2];
    struct reported own = { .fleet = start(ranks, 2, 1) };
    pthread_t thread;
    json_t *answer;

    (void)state;
    assert_int_equal(pthread_create(&thread, NULL, report, &own), 0);
    while (ranks[0].asked == 0 || ranks[1].asked == 0) {
        play(&ranks[0]);
        play(&ranks[1]);
    }
    play_end(&ranks[1]);
    play_hello(&ranks[1], own.fleet, 1);
    play_ready(&ranks[1], 1);
    for (int i = 0; i < 100; i++) /* it is up by then */
        play(&ranks[1]);
    answer = fleet__message_id(FLEET__REPORT, ranks[0].asked);
    assert_int_equal(json_object_set_new(answer, "report", json_object()), 0);
    assert_int_equal(fleet__link_send(&ranks[0].link, answer, NULL), STATUS_OK);
    (void)pthread_join(thread, NULL);
    assert_in_range(own.took_ns, 0, REPORT_NS_MAX);
    fleet_destroy(own.fleet);
    play_end(&ranks[0]);
    play_end(&ranks[1]);
}

static void what_is_canceled_ends(void **state)
{
    struct played rank;
    struct fleet *fleet = start(&rank, 1, 1);
    struct err err;

    (void)state;
    assert_int_equal(ask(fleet, 0, 8, &err), STATUS_OK);
    assert_int_equal(ask(fleet, 1, 8, &err), STATUS_OK);
    play_until(&rank, 1, 1);
    fleet_cancel(fleet, asked[1].id); /* waits: ends at once */
    assert_int_equal(wait_end(1).status, STATUS_CANCELED);
    fleet_cancel(fleet, asked[0].id); /* runs: its rank is told */
    while (rank.canceled == 0)
        play(&rank);
    play_output(&rank, rank.ids[0], "", true);
    (void)wait_end(0);
    fleet_cancel(fleet, asked[0].id); /* has ended: nothing */
    fleet_destroy(fleet);
    play_end(&rank);
}

static void bad_and_too_many_requests_are_refused(void **state)
{
    struct played rank;
    struct fleet *fleet = start(&rank, 1, 1);
    struct err err;

    (void)state;
    assert_int_equal(ask(fleet, 0, -1, &err), STATUS_BAD_INPUT);
    assert_non_null(strstr(err.message, "max_new_tokens"));
    for (uint32_t i = 0; i < 17; i++)
        assert_int_equal(ask(fleet, i, 8, &err), STATUS_OK);
    assert_int_equal(ask(fleet, 17, 8, &err), STATUS_BUSY);
    assert_non_null(strstr(err.message, "16 requests"));
    fleet_destroy(fleet);
    for (uint32_t i = 0; i < 17; i++)
        assert_int_equal(wait_end(i).finish, FINISH_ABORT);
    play_end(&rank);
}

static void what_does_not_start_is_said(void **state)
{
    struct fleet *fleet = create(2, 4, false);
    struct played rank;
    bool bad_usage = false;
    json_t *json;
    struct err err;

    (void)state;
    play_hello(&rank, fleet, 1);
    json = fleet__status_json(FLEET__FAILED, 0, STATUS_NO_MEMORY, "the budget is too small");
    assert_int_equal(json_object_set_new(json, "bad_usage", json_true()), 0);
    assert_int_equal(fleet__link_send(&rank.link, json, NULL), STATUS_OK);
    assert_int_equal(fleet_remote_wait(fleet, &bad_usage, &err), STATUS_NO_MEMORY);
    assert_string_equal(err.message, "the budget is too small");
    assert_true(bad_usage);
    fleet_destroy(fleet);
    play_end(&rank);
}

static void nobody_waits_for_ranks_that_do_not_come(void **state)
{
    struct played rank;
    struct fleet *fleet = start(&rank, 1, 1);
    struct err err;

    (void)state;
    play_end(&rank);
    while (fleet_health(fleet, &err) == STATUS_OK)
        nap();
    fleet_remote_ended(fleet, "they have ended"); /* they were up: the next start may do */
    assert_int_equal(ask(fleet, 0, 8, &err), STATUS_OK);
    fleet_remote_ended(fleet, "they do not start");
    assert_int_equal(wait_end(0).status, STATUS_UNAVAILABLE);
    assert_int_equal(ask(fleet, 1, 8, &err), STATUS_UNAVAILABLE);
    play_hello(&rank, fleet, 0);
    play_ready(&rank, 1);
    while (fleet_health(fleet, &err) != STATUS_OK)
        nap();
    play_end(&rank);
    while (fleet_health(fleet, &err) == STATUS_OK)
        nap();
    assert_int_equal(ask(fleet, 0, 8, &err), STATUS_OK);
    play_hello(&rank, fleet, 0); /* one that dies each time it loads */
    play_end(&rank);
    assert_int_equal(wait_end(0).status, STATUS_UNAVAILABLE);
    assert_non_null(strstr(told(0).message, "while it was loading"));
    play_hello(&rank, fleet, 0);
    play_ready(&rank, 1);
    while (fleet_health(fleet, &err) != STATUS_OK)
        nap();
    assert_int_equal(ask(fleet, 1, 8, &err), STATUS_OK);
    play_until(&rank, 1, 1);
    fleet_destroy(fleet);
    play_end(&rank);
}

static void expect_hung_up(int fd)
{
    struct pollfd wait = { .fd = fd, .events = POLLIN };
    char sink[4096];
    ssize_t got = 1;

    while (got > 0 && poll(&wait, 1, WAIT_S * 1000) > 0)
        got = recv(fd, sink, sizeof(sink), 0);
    assert_true(got <= 0);
    (void)close(fd);
}

static void strangers_and_liars_are_hung_up_on(void **state)
{
    static const char huge[4] = { '\xff', '\xff', '\xff', '\x7f' };
    struct played ranks[2], liar;
    struct fleet *fleet = start(ranks, 1, 2);
    struct fleet__hello hello = { .rank = 0, .pid = 5, .host = "h", .machine = "m" };
    struct fleet__tokens tokens;
    struct err err;
    json_t *list[3];
    int fd;

    (void)state;
    fd = dial(fleet, &tokens); /* a wrong token */
    memset(hello.token, 'f', FLEET__TOKEN_HEX);
    fleet__link_init(&liar.link, fd, 4096);
    assert_int_equal(fleet__link_send(&liar.link, fleet__hello_json(&hello), NULL), STATUS_OK);
    expect_hung_up(dup(fd));
    play_end(&liar);
    fd = dial(fleet, &tokens); /* a frame without end */
    assert_int_equal(send(fd, huge, sizeof(huge), MSG_NOSIGNAL), sizeof(huge));
    expect_hung_up(fd);

    assert_int_equal(ask(fleet, 0, 8, &err), STATUS_OK);
    play_until(ranks, 1, 1);
    list[0] = json_pack("{s:s, s:i}", "op", "output", "id", 777777); /* nobody's */
    list[1] = json_pack("{s:s}", "op", "submit");                    /* out of turn */
    list[2] = json_pack("{s:s, s:s}", "op", "output", "id", "x");    /* nonsense */
    for (size_t i = 0; i < 3; i++) {
        assert_int_equal(fleet__link_send(&ranks[0].link, list[i], NULL), STATUS_OK);
        while (!ranks[0].closed)
            play(&ranks[0]);
        play_end(&ranks[0]);
        assert_int_equal(wait_end((uint32_t)i).status, STATUS_PEER);
        play_hello(&ranks[0], fleet, 0);
        play_ready(&ranks[0], 2);
        assert_int_equal(ask(fleet, (uint32_t)i + 1, 8, &err), STATUS_OK);
        play_until(ranks, 1, 1);
    }
    fleet_destroy(fleet);
    play_end(&ranks[0]);
}

struct leaver {
    struct fleet_rank *rank;
    struct engine *engine;
};

static void *serve_and_fail(void *user)
{
    const struct leaver *leaver = user;
    bool finalize = false;
    struct err err;

    assert_int_equal(fleet_rank_serve(leaver->rank, leaver->engine, NULL, &finalize, &err),
                     STATUS_OK);
    fleet_rank_fail(leaver->rank, STATUS_DEVICE, "7 bytes moved, 8 planned", false);
    testing_engine_destroy(leaver->engine);
    fleet_rank_destroy(leaver->rank);
    return NULL;
}

static void what_fails_as_a_rank_leaves_is_said(void **state)
{
    struct fleet *fleet = create(1, 64, false);
    struct leaver leaver = { .engine = testing_engine_create(true) };
    bool is_gone = false, bad_usage = false;
    const struct fleet_rank_options options = {
        .front = fleet_remote_front(fleet), .rank = 0, .on_gone = gone, .user = &is_gone,
    };
    pthread_t thread;
    struct err err;

    (void)state;
    assert_int_equal(fleet_rank_connect(&options, &leaver.rank, &err), STATUS_OK);
    assert_int_equal(pthread_create(&thread, NULL, serve_and_fail, &leaver), 0);
    assert_int_equal(fleet_remote_wait(fleet, &bad_usage, &err), STATUS_OK);
    assert_int_equal(fleet_remote_leave(fleet, &err), STATUS_DEVICE);
    assert_string_equal(err.message, "rank 0: 7 bytes moved, 8 planned");
    (void)pthread_join(thread, NULL);
    fleet_destroy(fleet);
    assert_false(is_gone);
}

static void a_real_rank_answers_drains_and_leaves(void **state)
{
    struct fleet *fleet = create(1, 64, false);
    struct engine *engine = testing_engine_create(true);
    struct fleet_rank *rank = NULL;
    bool is_gone = false, bad_usage = false;
    const struct fleet_rank_options options = {
        .front = fleet_remote_front(fleet), .rank = 0, .on_gone = gone, .user = &is_gone,
    };
    void *own[2];
    pthread_t thread;
    json_t *report;
    struct err err;

    (void)state;
    assert_int_equal(fleet_rank_connect(&options, &rank, &err), STATUS_OK);
    own[0] = rank;
    own[1] = engine;
    assert_int_equal(pthread_create(&thread, NULL, serve, own), 0);
    assert_int_equal(fleet_remote_wait(fleet, &bad_usage, &err), STATUS_OK);
    for (uint32_t i = 0; i < 40; i++)
        assert_int_equal(ask(fleet, i, 3, &err), STATUS_OK);
    for (uint32_t i = 0; i < 40; i++) {
        const struct asked end = wait_end(i);
        char wanted[64];
        (void)snprintf(wanted, sizeof(wanted), "<%u><%u><%u>", i + 11, i + 12, i + 13);
        assert_string_equal(end.text, wanted);
        assert_int_equal(end.piece_count, 3);
    }
    report = fleet_report_json(fleet);
    assert_int_equal(json_integer_value(json_object_get(report, "dp_size")), 1);
    assert_int_equal(json_integer_value(json_object_get(
                         json_array_get(json_object_get(report, "ranks"), 0), "sent")), 40);
    json_decref(report);
    testing_engine_set(engine, &engine->held, true);
    assert_int_equal(ask(fleet, 40, 3, &err), STATUS_OK);
    fleet_cancel(fleet, asked[40].id);
    assert_int_equal(wait_end(40).status, STATUS_CANCELED);
    fleet_drain(fleet);
    assert_int_equal(ask(fleet, 41, 3, &err), STATUS_UNAVAILABLE);
    assert_int_equal(fleet_remote_leave(fleet, &err), STATUS_OK);
    (void)pthread_join(thread, NULL);
    fleet_destroy(fleet);
    assert_false(is_gone);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(work_is_spread_and_told),
        cmocka_unit_test(a_long_request_keeps_others_away),
        cmocka_unit_test(a_death_ends_what_ran_and_nothing_else),
        cmocka_unit_test(ranks_that_need_all_wait_for_all),
        cmocka_unit_test(what_ranks_share_is_handed_on),
        cmocka_unit_test(silence_is_death),
        cmocka_unit_test(a_report_waits_for_those_who_were_asked),
        cmocka_unit_test(what_is_canceled_ends),
        cmocka_unit_test(bad_and_too_many_requests_are_refused),
        cmocka_unit_test(what_does_not_start_is_said),
        cmocka_unit_test(nobody_waits_for_ranks_that_do_not_come),
        cmocka_unit_test(strangers_and_liars_are_hung_up_on),
        cmocka_unit_test(what_fails_as_a_rank_leaves_is_said),
        cmocka_unit_test(a_real_rank_answers_drains_and_leaves),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
