/* engine/engine_test.c - answers of the engine: what they must not depend on, and what limits them.
 *
 * Method: what an answer must not depend on is changed, and the ids must stay the same; every
 * limit is passed by one. engine_text_test.c is about how answers end, engine_life_test.c about
 * what happens meanwhile: cancelling, full queues, failures. */
#include "engine/test_harness.h"

#define REQUESTS 6
#define VOCAB 64
#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

static struct harness harness;

static int open_harness(void **state)
{
    (void)state;
    harness_open(&harness, HARNESS_TINY, "cpu", 8 * 512);
    return 0;
}

static int close_harness(void **state)
{
    (void)state;
    harness_close(&harness);
    return 0;
}

/* A prompt of `count` ids, some way through the vocabulary. */
static void make_prompt(uint32_t seed, int32_t *ids, size_t count)
{
    for (size_t i = 0; i < count; i++)
        ids[i] = (int32_t)((seed * 7919 + i * i * 31 + i * 17 + 5) % VOCAB);
}

static struct sampling_params greedy(int64_t max_new_tokens)
{
    struct sampling_params params;

    sampling_params_init(&params);
    params.temperature = 0;
    params.max_new_tokens = max_new_tokens;
    params.ignore_eos = true;
    return params;
}

/* -- what an answer must not depend on --------------------------------------------------------- */

static const size_t prompt_counts[REQUESTS] = { 1, 7, 64, 23, 90, 40 };

static struct sampling_params params_of(size_t index)
{
    struct sampling_params params = greedy(12);

    params.has_seed = true;
    params.seed = 1000 + index;
    switch (index) {
    case 0: break;
    case 1: params.temperature = 1; break;
    case 2: params.temperature = 1.5; params.top_k = 40; break;
    case 3: params.temperature = 0.8; params.top_p = 0.9; params.min_p = 0.01; break;
    case 4: params.temperature = 1; params.repetition_penalty = 1.3; break;
    default:
        params.temperature = 2;
        params.frequency_penalty = 0.5;
        params.presence_penalty = 0.5;
        params.max_new_tokens = 30;
        break;
    }
    return params;
}

/* All at once, or one after the other. */
static void run_all(struct harness *on, const struct engine_options *options, bool at_once,
                    struct client *clients)
{
    harness_start(on, options);
    for (size_t i = 0; i < REQUESTS; i++) {
        const struct sampling_params params = params_of(i);
        int32_t prompt[90];
        struct err err;

        make_prompt((uint32_t)i, prompt, prompt_counts[i]);
        client_init(&clients[i]);
        harness_check(client_submit(&clients[i], on->engine, prompt, prompt_counts[i],
                                    &params, i % 2 == 0, &err), &err);
        if (!at_once)
            client_wait(&clients[i]);
    }
    engine_drain(on->engine);
    for (size_t i = 0; i < REQUESTS; i++) {
        assert_int_equal(clients[i].last_count, 1);
        assert_int_equal(clients[i].last.finish, FINISH_LENGTH);
        client_deinit(&clients[i]);
    }
    assert_int_equal(harness_report(on->engine, "kv", "pages_free"),
                     harness_report(on->engine, "kv", "pages"));
}

static void check_same(const struct client *clients, const struct client *others)
{
    for (size_t i = 0; i < REQUESTS; i++) {
        assert_int_equal(clients[i].id_count, others[i].id_count);
        assert_memory_equal(clients[i].ids, others[i].ids,
                            others[i].id_count * sizeof(others[i].ids[0]));
        assert_string_equal(clients[i].text, others[i].text);
    }
}

#define CASE(rows, chunk, running)                                                              \
    {                                                                                           \
        .step_row_count_max = (rows), .prefill_chunk = (chunk), .running_count_max = (running), \
        .queue_count_max = 100                                                                  \
    }

static void answers_do_not_depend_on_the_batch(void **state)
{
    static const struct engine_options cases[] = {
        CASE(0, 0, 0), CASE(0, 1, 0), CASE(0, 3, 0), CASE(0, 16, 2),
        CASE(7, 0, 0), CASE(64, 50, 3), CASE(1, 0, 0),
    };
    static struct client alone[REQUESTS], together[REQUESTS];
    uint32_t different = 0;

    (void)state;
    run_all(&harness, NULL, false, alone);
    for (size_t i = 0; i < COUNT(cases); i++) {
        run_all(&harness, &cases[i], true, together);
        check_same(together, alone);
    }
    /* The requests do differ, and sampling is at work. */
    for (size_t j = 1; j < REQUESTS; j++)
        different += memcmp(alone[j].ids, alone[j - 1].ids, 12 * sizeof(alone[j].ids[0])) != 0;
    assert_int_equal(different, REQUESTS - 1);
}

/* On a device of its own memory, with weights that come and go; sim computes as cpu does. */
static void answers_do_not_depend_on_the_weights_home(void **state)
{
    static struct client here[REQUESTS], away[REQUESTS];
    struct offload_options offload;
    struct harness sim;

    (void)state;
    run_all(&harness, NULL, true, here);
    offload_options_init(&offload);
    offload.group_size = 1;
    offload.num_in_group = 1;
    offload.prefetch_step = 1;
    offload.home = OFFLOAD_HOME_HOST;
    harness_open_offloaded(&sim, HARNESS_TINY, "sim:memory=64MiB,link=4GB/s", 8 * 512, &offload);
    run_all(&sim, NULL, true, away);
    check_same(away, here);
    assert_true(harness_report(sim.engine, "offload", "bytes_moved") > 0);
    assert_false(away[0].last.garbage);
    harness_close(&sim);

    offload.home = OFFLOAD_HOME_META;
    harness_open_offloaded(&sim, HARNESS_TINY, "sim:memory=64MiB", 8 * 512, &offload);
    run_all(&sim, NULL, true, away);
    assert_true(away[0].last.garbage);
    harness_close(&sim);
}

/* Every layer of one has a window, of the other the second. */
static const char *const windowed[] = { "tests/golden/models/mistral_window",
                                        "tests/golden/models/qwen2_window" };

static void windows_do_not_depend_on_the_batch(void **state)
{
    static const struct engine_options cases[] = {
        CASE(0, 0, 0), CASE(0, 1, 0), CASE(0, 3, 0), CASE(7, 0, 0), CASE(64, 50, 3),
    };
    static struct client alone[REQUESTS], together[REQUESTS];

    (void)state;
    for (size_t m = 0; m < COUNT(windowed); m++) {
        struct harness on;

        harness_open(&on, windowed[m], "cpu", 8 * 512);
        run_all(&on, NULL, false, alone);
        /* a window of 7 or 8 and a step of 64 rows are alive in 19 pages of 4, of 8 sequences */
        assert_int_equal(harness_report(on.engine, "kv", "window_pages"), 8 * 19);
        for (size_t i = 0; i < COUNT(cases); i++) {
            run_all(&on, &cases[i], true, together);
            check_same(together, alone);
            assert_int_equal(harness_report(on.engine, "kv", "window_pages_free"), 8 * 19);
        }
        harness_close(&on);
    }
}

/* Where no layer keeps all, a sequence may be longer than what is kept, and those that wait for
 * pages of windows are answered as if alone. */
static void windows_are_what_is_waited_for(void **state)
{
    static struct client alone[REQUESTS], together[REQUESTS];
    const struct sampling_params params = greedy(400);
    static struct client client;
    struct harness large, small;
    int32_t prompt[90];

    (void)state;
    make_prompt(3, prompt, COUNT(prompt));
    harness_open(&large, windowed[0], "cpu", 8 * 512);
    run_all(&large, NULL, true, alone);
    harness_open(&small, windowed[0], "cpu", 25 * 4);
    run_all(&small, NULL, true, together);
    check_same(together, alone);
    assert_int_equal(harness_report(small.engine, "kv", "window_pages"), 25);
    harness_start(&small, NULL);
    client_run(&client, small.engine, prompt, 90, &params, true);
    assert_int_equal(client.id_count, 400);
    assert_int_equal(harness_report(small.engine, "kv", "window_pages_free"), 25);
    client_deinit(&client);
    harness_close(&small);
    harness_close(&large);
}

/* Fewer pages than a sequence may use in turn: then they bound its length. */
static void a_window_s_pages_are_limits_too(void **state)
{
    struct sampling_params params = greedy(30);
    static struct client client;
    struct harness small;
    int32_t prompt[90];
    struct err err;

    (void)state;
    make_prompt(4, prompt, COUNT(prompt));
    harness_open(&small, windowed[0], "cpu", 10 * 4);
    harness_start(&small, NULL);
    client_init(&client);
    assert_int_equal(client_submit(&client, small.engine, prompt, 40, &params, true, &err),
                     STATUS_BAD_INPUT);
    assert_non_null(strstr(err.message, "need 18 pages of 4 tokens in the KV cache, which has 10"));
    client_deinit(&client);
    params.max_new_tokens = SAMPLING_NEW_TOKENS_ALL;
    client_run(&client, small.engine, prompt, 5, &params, false);
    assert_int_equal(client.id_count, 36);
    client_deinit(&client);
    harness_close(&small);
}

/* Together they take far fewer steps than one after the other: they do share steps. */
static void requests_share_steps(void **state)
{
    static struct client clients[REQUESTS];
    int64_t steps_alone, steps_together;

    (void)state;
    run_all(&harness, NULL, false, clients);
    steps_alone = harness_report(harness.engine, NULL, "steps");
    assert_int_equal(harness_report(harness.engine, NULL, "completion_tokens"), 5 * 12 + 30);
    run_all(&harness, NULL, true, clients);
    steps_together = harness_report(harness.engine, NULL, "steps");
    assert_true(steps_alone >= 5 * 12 + 30);
    assert_true(steps_together < steps_alone * 2 / 3);
}

static void seeds_decide(void **state)
{
    struct sampling_params params = greedy(20);
    static struct client clients[4];
    int32_t prompt[5];

    (void)state;
    harness_start(&harness, NULL);
    make_prompt(3, prompt, 5);
    params.temperature = 5;
    for (size_t i = 0; i < 4; i++) {
        params.has_seed = i < 3;
        params.seed = i == 1 ? 78 : 77;
        client_run(&clients[i], harness.engine, prompt, 5, &params, false);
        client_deinit(&clients[i]);
    }
    assert_memory_equal(clients[0].ids, clients[2].ids, 20 * sizeof(int32_t));
    assert_memory_not_equal(clients[0].ids, clients[1].ids, 20 * sizeof(int32_t));
    assert_memory_not_equal(clients[0].ids, clients[3].ids, 20 * sizeof(int32_t));
}

static void the_random_seed_stands_in_for_missing_ones(void **state)
{
    const uint64_t random_seeds[] = { 5, 5, 6 };
    struct sampling_params params = greedy(20);
    static struct client clients[3][2];
    int32_t prompt[5];

    (void)state;
    make_prompt(3, prompt, 5);
    params.temperature = 5;
    for (size_t i = 0; i < 3; i++) {
        const struct engine_options options = { .queue_count_max = 10,
                                                .has_random_seed = true,
                                                .random_seed = random_seeds[i] };
        harness_start(&harness, &options);
        for (size_t j = 0; j < 2; j++) {
            client_run(&clients[i][j], harness.engine, prompt, 5, &params, false);
            client_deinit(&clients[i][j]);
        }
    }
    for (size_t j = 0; j < 2; j++) {
        assert_memory_equal(clients[0][j].ids, clients[1][j].ids, 20 * sizeof(int32_t));
        assert_memory_not_equal(clients[0][j].ids, clients[2][j].ids, 20 * sizeof(int32_t));
    }
    assert_memory_not_equal(clients[0][0].ids, clients[0][1].ids, 20 * sizeof(int32_t));
}

/* -- logits ------------------------------------------------------------------------------------ */

static void logits_are_those_that_serving_samples(void **state)
{
    enum { PROMPT = 50, NEW = 10 };
    static float whole[(PROMPT + NEW) * VOCAB], cut[(PROMPT + NEW) * VOCAB];
    const struct sampling_params params = greedy(NEW), long_params = greedy(100);
    static struct client client, other;
    int32_t ids[PROMPT + NEW];
    struct err err;

    (void)state;
    harness_start(&harness, NULL);
    assert_int_equal(engine_model_info(harness.engine)->vocab_size, VOCAB);
    make_prompt(9, ids, PROMPT);
    client_run(&client, harness.engine, ids, PROMPT, &params, false);
    memcpy(ids + PROMPT, client.ids, NEW * sizeof(ids[0]));
    harness_check(engine_logits(harness.engine, ids, PROMPT + NEW, 0, whole, &err), &err);
    for (size_t i = 0; i < NEW; i++) {
        const float *row = whole + (PROMPT - 1 + i) * VOCAB;
        for (size_t j = 0; j < VOCAB; j++)
            assert_true(row[j] <= row[client.ids[i]]);
    }
    /* The same while another request is served, in small chunks. */
    client_init(&other);
    harness_check(client_submit(&other, harness.engine, ids, PROMPT, &long_params, true, &err),
                  &err);
    harness_check(engine_logits(harness.engine, ids, PROMPT + NEW, 7, cut, &err), &err);
    assert_memory_equal(whole, cut, sizeof(whole));
    client_wait(&other);
    assert_memory_equal(other.ids, client.ids, NEW * sizeof(ids[0]));
    client_deinit(&client);
    client_deinit(&other);

    assert_int_equal(engine_logits(harness.engine, ids, 0, 0, cut, &err), STATUS_BAD_INPUT);
    assert_int_equal(engine_logits(harness.engine, ids, 513, 0, cut, &err), STATUS_BAD_INPUT);
    assert_int_equal(engine_logits(harness.engine, ids, 5, 65, cut, &err), STATUS_BAD_INPUT);
    ids[2] = VOCAB;
    assert_int_equal(engine_logits(harness.engine, ids, 5, 0, cut, &err), STATUS_BAD_INPUT);
    ids[2] = -1;
    assert_int_equal(engine_logits(harness.engine, ids, 5, 0, cut, &err), STATUS_BAD_INPUT);
}

/* -- limits ------------------------------------------------------------------------------------ */

static void limits_hold(void **state)
{
    struct sampling_params params = greedy(0);
    static struct client client;
    int32_t prompt[600];
    struct err err;

    (void)state;
    harness_start(&harness, NULL);
    make_prompt(1, prompt, COUNT(prompt));
    client_run(&client, harness.engine, prompt, 100, &params, true);
    assert_int_equal(client.last.finish, FINISH_LENGTH);
    assert_int_equal(client.id_count, 0);
    assert_int_equal(client.call_count, 1);
    client_deinit(&client);

    params.max_new_tokens = 100000; /* clamped to what the context has left */
    client_run(&client, harness.engine, prompt, 500, &params, true);
    assert_int_equal(client.last.finish, FINISH_LENGTH);
    assert_int_equal(client.id_count, 12);
    client_deinit(&client);
    params.max_new_tokens = SAMPLING_NEW_TOKENS_ALL;
    client_run(&client, harness.engine, prompt, 511, &params, true);
    assert_int_equal(client.id_count, 1);
    client_deinit(&client);

    client_init(&client);
    assert_int_equal(client_submit(&client, harness.engine, prompt, 512, &params, true, &err),
                     STATUS_BAD_INPUT);
    assert_non_null(strstr(err.message, "512"));
    assert_int_equal(client_submit(&client, harness.engine, prompt, 0, &params, true, &err),
                     STATUS_BAD_INPUT);
    prompt[3] = VOCAB;
    assert_int_equal(client_submit(&client, harness.engine, prompt, 5, &params, true, &err),
                     STATUS_BAD_INPUT);
    assert_non_null(strstr(err.message, "id 64"));
    prompt[3] = -7;
    assert_int_equal(client_submit(&client, harness.engine, prompt, 5, &params, true, &err),
                     STATUS_BAD_INPUT);
    params.top_p = 0;
    assert_int_equal(client_submit(&client, harness.engine, prompt, 2, &params, true, &err),
                     STATUS_BAD_INPUT);
    assert_int_equal(client.call_count, 0);
    client_deinit(&client);
}

/* A cache of 10 pages of 4 tokens. */
static void a_small_cache_is_shared_and_never_passed(void **state)
{
    struct harness small;
    struct sampling_params params = greedy(30);
    static struct client clients[12];
    static struct client client;
    int32_t prompt[60];
    float logits[1];
    struct err err;

    (void)state;
    make_prompt(2, prompt, COUNT(prompt));
    harness_open(&small, HARNESS_TINY, "cpu", 40);
    harness_start(&small, NULL);
    assert_int_equal(harness_report(small.engine, "kv", "pages"), 10);
    client_init(&client);
    params.max_new_tokens = 37;
    assert_int_equal(client_submit(&client, small.engine, prompt, 5, &params, true, &err),
                     STATUS_BAD_INPUT);
    assert_non_null(strstr(err.message, "need 11 pages"));
    assert_int_equal(engine_logits(small.engine, prompt, 41, 0, logits, &err), STATUS_BAD_INPUT);
    client_deinit(&client);
    params.max_new_tokens = 36; /* 5 + 36 - 1 = 40: the last id is never computed */
    client_run(&client, small.engine, prompt, 5, &params, false);
    assert_int_equal(client.id_count, 36);
    client_deinit(&client);
    params.max_new_tokens = SAMPLING_NEW_TOKENS_ALL;
    client_run(&client, small.engine, prompt, 5, &params, false);
    assert_int_equal(client.id_count, 36);
    client_deinit(&client);

    /* More than fit at once: each waits for its pages, and all are answered as if alone. */
    for (size_t i = 0; i < COUNT(clients); i++) {
        params.max_new_tokens = 3 + (int64_t)i * 2;
        client_init(&clients[i]);
        harness_check(client_submit(&clients[i], small.engine, prompt, 1 + i, &params, true,
                                    &err), &err);
    }
    engine_drain(small.engine);
    assert_int_equal(harness_report(small.engine, "kv", "pages_free"), 10);
    harness_start(&harness, NULL);
    for (size_t i = 0; i < COUNT(clients); i++) {
        params.max_new_tokens = 3 + (int64_t)i * 2;
        client_run(&client, harness.engine, prompt, 1 + i, &params, true);
        assert_int_equal(clients[i].last.finish, FINISH_LENGTH);
        assert_int_equal(clients[i].id_count, params.max_new_tokens);
        assert_memory_equal(clients[i].ids, client.ids, client.id_count * sizeof(int32_t));
        client_deinit(&clients[i]);
        client_deinit(&client);
    }
    harness_close(&small);
}

static void options_outside_the_model_are_refused(void **state)
{
    static const struct {
        struct engine_options options;
        const char *said;
    } cases[] = {
        { { .step_row_count_max = 65, .queue_count_max = 10 },
          "step_row_count_max is 65" },
        { { .running_count_max = 9, .queue_count_max = 10 },
          "running_count_max is 9" },
        { { .queue_count_max = 0 }, "queue_count_max is 0" },
        { { .queue_count_max = UINT32_MAX }, "queue_count_max" },
    };

    (void)state;
    for (size_t i = 0; i < COUNT(cases); i++) {
        struct engine *engine;
        struct err err;

        assert_int_equal(engine_create(harness.model, NULL, &cases[i].options, NULL, &engine,
                                       &err), STATUS_BAD_INPUT);
        assert_non_null(strstr(err.message, cases[i].said));
    }
}

static void without_a_tokenizer_there_are_ids_only(void **state)
{
    struct sampling_params params = greedy(5);
    static struct client client;
    struct engine_options options;
    struct engine *engine;
    int32_t prompt[4];
    struct err err;

    (void)state;
    engine_options_init(&options);
    engine_destroy(harness.engine); /* one engine at a time owns the model */
    harness.engine = NULL;
    harness_check(engine_create(harness.model, NULL, &options, NULL, &engine, &err), &err);
    make_prompt(1, prompt, 4);
    client_run(&client, engine, prompt, 4, &params, true);
    assert_int_equal(client.id_count, 5);
    assert_int_equal(client.text_size, 0);
    params.stop[params.stop_count++] = "x";
    assert_int_equal(client_submit(&client, engine, prompt, 4, &params, true, &err),
                     STATUS_BAD_INPUT);
    assert_non_null(strstr(err.message, "tokenizer"));
    client_deinit(&client);
    engine_destroy(engine);
}

/* The model's configuration has the ids 2 and 3, the tokenizer's has 1. */
static void every_eos_id_ends_an_answer(void **state)
{
    struct sampling_params params = greedy(300);
    bool has_ended_at[4] = { false };
    static struct client client;
    int32_t prompt[4];

    (void)state;
    harness_start(&harness, NULL);
    make_prompt(4, prompt, 4);
    params.temperature = 5;
    params.ignore_eos = false;
    params.has_seed = true;
    for (params.seed = 0; params.seed < 20; params.seed++) {
        client_run(&client, harness.engine, prompt, 4, &params, false);
        client_deinit(&client);
        assert_int_equal(client.last.finish, FINISH_EOS);
        assert_in_range(client.last.matched_id, 1, 3);
        has_ended_at[client.last.matched_id] = true;
        for (size_t i = 0; i + 1 < client.id_count; i++)
            assert_false(client.ids[i] >= 1 && client.ids[i] <= 3);
    }
    assert_true(has_ended_at[1] && has_ended_at[2] && has_ended_at[3]);
}

static void the_report_counts(void **state)
{
    struct sampling_params params = greedy(5);
    static struct client client;
    int32_t prompt[4];
    json_t *report;

    (void)state;
    harness_start(&harness, NULL);
    make_prompt(1, prompt, 4);
    client_run(&client, harness.engine, prompt, 4, &params, true);
    client_deinit(&client);
    engine_drain(harness.engine);
    report = engine_report_json(harness.engine);
    assert_int_equal(json_integer_value(json_object_get(report, "steps")), 5);
    assert_int_equal(json_integer_value(json_object_get(report, "rows")), 8);
    assert_int_equal(json_integer_value(json_object_get(report, "prompt_tokens")), 4);
    assert_int_equal(json_integer_value(json_object_get(report, "completion_tokens")), 5);
    assert_int_equal(json_integer_value(json_object_get(report, "finished")), 1);
    assert_true(json_is_object(json_object_get(report, "offload")));
    assert_true(json_is_array(json_object_get(report, "manifest")));
    json_decref(report);
    harness_start(&harness, NULL);
    client_run(&client, harness.engine, prompt, 4, &params, true);
    client_deinit(&client);
    engine_report_reset(harness.engine);
    assert_int_equal(harness_report(harness.engine, NULL, "steps"), 0);
    assert_int_equal(harness_report(harness.engine, "offload", "passes"), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(answers_do_not_depend_on_the_batch),
        cmocka_unit_test(answers_do_not_depend_on_the_weights_home),
        cmocka_unit_test(windows_do_not_depend_on_the_batch),
        cmocka_unit_test(windows_are_what_is_waited_for),
        cmocka_unit_test(a_window_s_pages_are_limits_too),
        cmocka_unit_test(requests_share_steps),
        cmocka_unit_test(seeds_decide),
        cmocka_unit_test(the_random_seed_stands_in_for_missing_ones),
        cmocka_unit_test(logits_are_those_that_serving_samples),
        cmocka_unit_test(limits_hold),
        cmocka_unit_test(a_small_cache_is_shared_and_never_passed),
        cmocka_unit_test(options_outside_the_model_are_refused),
        cmocka_unit_test(without_a_tokenizer_there_are_ids_only),
        cmocka_unit_test(every_eos_id_ends_an_answer),
        cmocka_unit_test(the_report_counts),
    };

    return cmocka_run_group_tests_name("engine answers", tests, open_harness, close_harness);
}
