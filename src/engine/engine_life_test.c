/* engine/engine_life_test.c - what happens to requests meanwhile: canceled, refused, drained,
 * failed.
 *
 * Method: a client's callback can stop the engine's thread at a gate, so that the test knows in
 * which state everything is when it acts; nothing waits for a time. The last test lets threads
 * submit and cancel as they come, for TSan and for the books: every accepted request ends exactly
 * once. */
#include "engine/test_harness.h"

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))
#define VOCAB 64

static struct harness harness;

static int open_harness(void **state)
{
    (void)state;
    harness_open(&harness, HARNESS_TINY, "cpu", 4 * 512);
    return 0;
}

static int close_harness(void **state)
{
    (void)state;
    harness_close(&harness);
    return 0;
}

static const int32_t prompt[400] = { 5, 6, 7, 60, 1 }; /* then zeros */

static struct sampling_params endless(int64_t max_new_tokens)
{
    struct sampling_params params;

    sampling_params_init(&params);
    params.temperature = 0;
    params.max_new_tokens = max_new_tokens;
    params.ignore_eos = true;
    return params;
}

static void submit(struct client *client, struct engine *engine, size_t prompt_count,
                   int64_t max_new_tokens)
{
    const struct sampling_params params = endless(max_new_tokens);
    struct err err;

    harness_check(client_submit(client, engine, prompt, prompt_count, &params, true, &err), &err);
}

/* Submits one whose first callback stops the engine's thread, and waits until it stands there. */
static void submit_to_gate(struct client *client, size_t prompt_count, int64_t max_new_tokens)
{
    client_init(client);
    client->gate_closed = true;
    submit(client, harness.engine, prompt_count, max_new_tokens);
    client_wait_at_gate(client);
}

static void check_canceled(const struct client *client)
{
    assert_int_equal(client->last_count, 1);
    assert_int_equal(client->last.finish, FINISH_ABORT);
    assert_int_equal(client->last.status, STATUS_CANCELED);
    assert_string_equal(finish_reason_name(client->last.finish), "abort");
    assert_true(strlen(client->message) > 0);
}

static void check_all_pages_free(void)
{
    engine_drain(harness.engine);
    assert_int_equal(harness_report(harness.engine, "kv", "pages_free"),
                     harness_report(harness.engine, "kv", "pages"));
    assert_int_equal(harness_report(harness.engine, NULL, "running"), 0);
    assert_int_equal(harness_report(harness.engine, NULL, "waiting"), 0);
}

/* -- cancelling -------------------------------------------------------------------------------- */

static void canceled_in_the_queue(void **state)
{
    const struct engine_options one = { .running_count_max = 1, .queue_count_max = 10 };
    static struct client first, second, third;

    (void)state;
    harness_start(&harness, &one);
    submit_to_gate(&first, 3, 20);
    client_init(&second);
    client_init(&third);
    submit(&second, harness.engine, 4, 20);
    submit(&third, harness.engine, 4, 20);
    assert_int_equal(harness_report(harness.engine, NULL, "waiting"), 2);
    engine_cancel(harness.engine, second.id);
    engine_cancel(harness.engine, second.id);
    engine_cancel(harness.engine, 123456);
    client_open_gate(&first);
    client_wait(&second);
    check_canceled(&second);
    assert_int_equal(second.id_count, 0);
    assert_int_equal(second.call_count, 1);
    client_wait(&first);
    client_wait(&third);
    assert_int_equal(first.id_count, 20);
    assert_int_equal(third.id_count, 20);
    engine_cancel(harness.engine, first.id); /* it has ended: nothing happens */
    check_all_pages_free();
    client_deinit(&first);
    client_deinit(&second);
    client_deinit(&third);
}

/* With one row per step, a prompt of 100 is far from done when the first has 5 ids. */
static void canceled_while_its_prompt_is_computed(void **state)
{
    const struct engine_options slow = { .prefill_chunk = 1, .queue_count_max = 10 };
    static struct client first, second;

    (void)state;
    harness_start(&harness, &slow);
    submit_to_gate(&first, 3, 40);
    client_init(&second);
    submit(&second, harness.engine, 100, 20);
    pthread_mutex_lock(&first.lock);
    first.cancel_engine = harness.engine;
    first.cancel_id = &second.id;
    first.cancel_after = 5;
    pthread_mutex_unlock(&first.lock);
    client_open_gate(&first);
    client_wait(&second);
    check_canceled(&second);
    assert_int_equal(second.id_count, 0);
    assert_true(second.last.prompt_token_count == 100);
    client_wait(&first);
    assert_int_equal(first.id_count, 40);
    check_all_pages_free();
    client_deinit(&first);
    client_deinit(&second);
}

/* From its own callback, so that the very next step must do without it. */
static void canceled_while_it_is_generating(void **state)
{
    static struct client first, second;

    (void)state;
    harness_start(&harness, NULL);
    client_init(&second);
    submit_to_gate(&first, 3, 500);
    submit(&second, harness.engine, 9, 50);
    pthread_mutex_lock(&first.lock);
    first.cancel_engine = harness.engine;
    first.cancel_id = &first.id;
    first.cancel_after = 7;
    pthread_mutex_unlock(&first.lock);
    client_open_gate(&first);
    client_wait(&first);
    check_canceled(&first);
    assert_int_equal(first.id_count, 7);
    assert_int_equal(first.last.completion_token_count, 7);
    client_wait(&second);
    assert_int_equal(second.id_count, 50);
    check_all_pages_free();
    client_deinit(&first);
    client_deinit(&second);
}

/* All text could begin the stop string, so it is held back; the last piece tells it all the
 * same. */
static void canceled_text_is_not_lost(void **state)
{
    struct sampling_params params = endless(30);
    static struct client whole, cut;
    struct err err;

    (void)state;
    harness_start(&harness, NULL);
    client_run(&whole, harness.engine, prompt, 3, &params, true);
    assert_in_range(whole.text_size, 7, ENGINE_STOP_STRING_BYTES_MAX - 2);
    whole.text[whole.text_size] = '~';
    whole.text[whole.text_size + 1] = '\0';
    params.stop[params.stop_count++] = whole.text;
    client_init(&cut);
    cut.gate_closed = true;
    harness_check(client_submit(&cut, harness.engine, prompt, 3, &params, true, &err), &err);
    client_wait_at_gate(&cut);
    engine_cancel(harness.engine, cut.id);
    assert_int_equal(cut.text_size, 0);
    client_open_gate(&cut);
    client_wait(&cut);
    check_canceled(&cut);
    assert_int_equal(cut.id_count, 1);
    assert_true(cut.text_size > 0);
    assert_memory_equal(cut.text, whole.text, cut.text_size);
    client_deinit(&whole);
    client_deinit(&cut);
}

/* -- refusing ---------------------------------------------------------------------------------- */

static void a_full_queue_is_busy(void **state)
{
    const struct engine_options one = { .running_count_max = 1, .queue_count_max = 2 };
    const struct sampling_params params = endless(5);
    static struct client clients[4];
    struct err err;

    (void)state;
    harness_start(&harness, &one);
    submit_to_gate(&clients[0], 3, 20);
    for (size_t i = 1; i < COUNT(clients); i++)
        client_init(&clients[i]);
    submit(&clients[1], harness.engine, 4, 5);
    submit(&clients[2], harness.engine, 4, 5);
    assert_int_equal(client_submit(&clients[3], harness.engine, prompt, 4, &params, true, &err),
                     STATUS_BUSY);
    assert_non_null(strstr(err.message, "2 requests"));
    client_open_gate(&clients[0]);
    client_wait(&clients[1]); /* so there is a place again */
    submit(&clients[3], harness.engine, 4, 5);
    check_all_pages_free();
    for (size_t i = 0; i < COUNT(clients); i++) {
        assert_int_equal(clients[i].last_count, 1);
        assert_int_equal(clients[i].last.finish, FINISH_LENGTH);
        client_deinit(&clients[i]);
    }
}

static void draining_finishes_what_is_there(void **state)
{
    const struct sampling_params params = endless(5);
    static struct client clients[6];
    float logits[VOCAB];
    struct err err;

    (void)state;
    harness_start(&harness, NULL);
    for (size_t i = 0; i < COUNT(clients); i++) {
        client_init(&clients[i]);
        submit(&clients[i], harness.engine, 10 + i, 30);
    }
    engine_drain(harness.engine);
    for (size_t i = 0; i < COUNT(clients); i++) {
        assert_int_equal(clients[i].last.finish, FINISH_LENGTH);
        assert_int_equal(clients[i].id_count, 30);
    }
    assert_int_equal(client_submit(&clients[0], harness.engine, prompt, 4, &params, true, &err),
                     STATUS_UNAVAILABLE);
    assert_int_equal(engine_logits(harness.engine, prompt, 1, 0, logits, &err),
                     STATUS_UNAVAILABLE);
    engine_report_reset(harness.engine);
    engine_drain(harness.engine);
    for (size_t i = 0; i < COUNT(clients); i++)
        client_deinit(&clients[i]);
}

static void destroying_cancels_what_is_there(void **state)
{
    const struct engine_options two = { .running_count_max = 2, .queue_count_max = 10 };
    static struct client clients[5];

    (void)state;
    harness_start(&harness, &two);
    for (size_t i = 0; i < COUNT(clients); i++) {
        client_init(&clients[i]);
        submit(&clients[i], harness.engine, 10, 400);
    }
    engine_destroy(harness.engine);
    harness.engine = NULL;
    for (size_t i = 0; i < COUNT(clients); i++) {
        check_canceled(&clients[i]);
        client_deinit(&clients[i]);
    }
}

/* -- failing ----------------------------------------------------------------------------------- */

/* A device that breaks in the middle: what runs is told why and gives its pages back, and so is
 * what comes after. */
static void a_failed_step_ends_its_requests(void **state)
{
    struct harness broken;
    static struct client clients[5];
    struct err err;
    json_t *report;

    (void)state;
    harness_open(&broken, HARNESS_TINY, "sim:memory=64MiB,fail_launch=300", 4 * 512);
    harness_start(&broken, NULL);
    assert_int_equal(engine_health(broken.engine, &err), STATUS_OK);
    for (size_t i = 0; i < COUNT(clients); i++) {
        client_init(&clients[i]);
        if (i < 4)
            submit(&clients[i], broken.engine, 5, 400);
    }
    for (size_t i = 0; i < 4; i++) {
        client_wait(&clients[i]);
        assert_int_equal(clients[i].last.finish, FINISH_ABORT);
        assert_int_equal(clients[i].last.status, STATUS_DEVICE);
        assert_non_null(strstr(clients[i].message, "on purpose"));
        assert_in_range(clients[i].id_count, 1, 399);
    }
    submit(&clients[4], broken.engine, 5, 10); /* the engine still answers */
    client_wait(&clients[4]);
    assert_int_equal(clients[4].last.finish, FINISH_ABORT);
    assert_int_equal(clients[4].last.status, STATUS_DEVICE);
    engine_drain(broken.engine);
    assert_int_equal(harness_report(broken.engine, "kv", "pages_free"),
                     harness_report(broken.engine, "kv", "pages"));
    assert_int_equal(harness_report(broken.engine, NULL, "aborted"), 5);
    assert_in_range(harness_report(broken.engine, NULL, "failed_steps"), 1, 5);
    report = engine_report_json(broken.engine);
    assert_non_null(strstr(json_string_value(json_object_get(report, "last_failure")), "purpose"));
    assert_non_null(json_object_get(report, "stopped")); /* a stream's error stays */
    json_decref(report);
    assert_int_equal(engine_health(broken.engine, &err), STATUS_DEVICE);
    for (size_t i = 0; i < COUNT(clients); i++)
        client_deinit(&clients[i]);
    harness_close(&broken);
}

/* -- many threads ------------------------------------------------------------------------------ */

#define THREADS 4
#define ROUNDS 40

struct hammer {
    pthread_t thread;
    uint64_t random;
    struct client clients[ROUNDS];
    bool accepted[ROUNDS];
    uint32_t busy_count;
};

static uint32_t pick(struct hammer *hammer, uint32_t limit)
{
    hammer->random = hammer->random * UINT64_C(6364136223846793005) + 1442695040888963407;
    return (uint32_t)(hammer->random >> 33) % limit;
}

static void *hammer_main(void *arg)
{
    struct hammer *hammer = arg;

    for (size_t i = 0; i < ROUNDS; i++) {
        const struct sampling_params params = endless((int64_t)pick(hammer, 30));
        struct client *client = &hammer->clients[i];
        struct err err;

        client_init(client);
        hammer->accepted[i] = client_submit(client, harness.engine, prompt, 1 + pick(hammer, 90),
                                            &params, pick(hammer, 2) == 0, &err) == STATUS_OK;
        if (!hammer->accepted[i]) {
            hammer->busy_count += err.status == STATUS_BUSY;
            continue;
        }
        if (pick(hammer, 3) == 0)
            engine_cancel(harness.engine, client->id);
        else if (pick(hammer, 2) == 0)
            client_wait(client);
        if (pick(hammer, 8) == 0) {
            static const int32_t ids[3] = { 1, 2, 3 };
            float logits[3 * VOCAB];
            (void)engine_logits(harness.engine, ids, 3, 2, logits, &err);
            json_decref(engine_report_json(harness.engine));
        }
        engine_cancel(harness.engine, 1 + pick(hammer, THREADS * ROUNDS));
    }
    return NULL;
}

static void threads_may_do_all_this_at_once(void **state)
{
    const struct engine_options options = { .prefill_chunk = 20, .running_count_max = 3,
                                            .queue_count_max = 4 };
    static struct hammer hammers[THREADS];
    uint32_t accepted = 0, busy = 0;

    (void)state;
    harness_start(&harness, &options);
    for (size_t i = 0; i < THREADS; i++) {
        hammers[i].random = i;
        assert_int_equal(pthread_create(&hammers[i].thread, NULL, hammer_main, &hammers[i]), 0);
    }
    for (size_t i = 0; i < THREADS; i++)
        pthread_join(hammers[i].thread, NULL);
    check_all_pages_free();
    for (size_t i = 0; i < THREADS; i++) {
        busy += hammers[i].busy_count;
        for (size_t j = 0; j < ROUNDS; j++) {
            accepted += hammers[i].accepted[j];
            assert_int_equal(hammers[i].clients[j].last_count, hammers[i].accepted[j]);
            client_deinit(&hammers[i].clients[j]);
        }
    }
    assert_int_equal(accepted + busy, THREADS * ROUNDS);
    assert_int_equal(harness_report(harness.engine, NULL, "submitted"), accepted);
    assert_int_equal(harness_report(harness.engine, NULL, "finished") +
                     harness_report(harness.engine, NULL, "aborted"), accepted);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(canceled_in_the_queue),
        cmocka_unit_test(canceled_while_its_prompt_is_computed),
        cmocka_unit_test(canceled_while_it_is_generating),
        cmocka_unit_test(canceled_text_is_not_lost),
        cmocka_unit_test(a_full_queue_is_busy),
        cmocka_unit_test(draining_finishes_what_is_there),
        cmocka_unit_test(destroying_cancels_what_is_there),
        cmocka_unit_test(a_failed_step_ends_its_requests),
        cmocka_unit_test(threads_may_do_all_this_at_once),
    };

    return cmocka_run_group_tests_name("engine life", tests, open_harness, close_harness);
}
