/* engine/engine_text_test.c - how answers end, and their text: on the demo model, which ends
 * them. */
#include "engine/test_harness.h"

static struct harness harness;

static int open_harness(void **state)
{
    (void)state;
    harness_open(&harness, HARNESS_DEMO, "cpu", 512);
    harness_start(&harness, NULL);
    return 0;
}

static int close_harness(void **state)
{
    (void)state;
    harness_close(&harness);
    return 0;
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

/* The ids of "The capital of France is". */
static size_t paris_prompt(struct token_ids *ids)
{
    static const char text[] = "The capital of France is";
    struct err err;

    *ids = (struct token_ids){ 0 };
    harness_check(tokenizer_encode(harness.tokenizer, text, strlen(text), true, ids, &err), &err);
    return ids->count;
}

static void run_paris(struct client *client, const struct sampling_params *params, bool by_token)
{
    struct token_ids ids;
    const size_t count = paris_prompt(&ids);

    client_run(client, harness.engine, ids.ids, count, params, by_token);
    assert_int_equal(client->last.prompt_token_count, count);
    assert_int_equal(client->last.completion_token_count, client->id_count);
    assert_int_equal(client->last_count, 1);
    assert_false(client->last.garbage);
    client_deinit(client);
    token_ids_deinit(&ids);
}

static void eos_ends_an_answer_unless_ignored(void **state)
{
    const int32_t eos = 1;
    struct sampling_params params = greedy(32);
    static struct client client, longer;

    (void)state;
    params.ignore_eos = false;
    run_paris(&client, &params, true);
    assert_int_equal(client.last.finish, FINISH_EOS);
    assert_string_equal(finish_reason_name(client.last.finish), "stop");
    assert_int_equal(client.last.matched_id, eos);
    assert_int_equal(client.ids[client.id_count - 1], eos);
    assert_int_equal(client.call_count, client.id_count);
    assert_non_null(strstr(client.text, "Paris"));
    assert_null(strstr(client.text, "<"));

    params.ignore_eos = true;
    run_paris(&longer, &params, false);
    assert_int_equal(longer.last.finish, FINISH_LENGTH);
    assert_int_equal(longer.last.matched_id, -1);
    assert_int_equal(longer.id_count, 32);
    assert_int_equal(longer.call_count, 1);
    assert_memory_equal(longer.ids, client.ids, client.id_count * sizeof(int32_t));

    params.ignore_eos = false;
    params.min_new_tokens = (int64_t)client.id_count + 3;
    run_paris(&longer, &params, false);
    assert_true(longer.id_count >= client.id_count + 3);
    for (size_t i = 0; i < client.id_count + 3; i++)
        assert_true(longer.ids[i] != eos || i + 1 == longer.id_count);
    assert_memory_equal(longer.ids, client.ids, (client.id_count - 1) * sizeof(int32_t));
}

static void stop_ids_and_strings_end_an_answer(void **state)
{
    struct sampling_params params = greedy(32);
    static struct client plain, stopped;

    (void)state;
    params.ignore_eos = false;
    run_paris(&plain, &params, false);

    params.stop[params.stop_count++] = "nowhere";
    params.stop[params.stop_count++] = "ari";
    run_paris(&stopped, &params, true);
    assert_int_equal(stopped.last.finish, FINISH_STOP);
    assert_string_equal(stopped.matched_text, "ari");
    assert_string_equal(finish_reason_name(stopped.last.finish), "stop");
    assert_memory_equal(stopped.text, plain.text, stopped.text_size);
    assert_int_equal(stopped.text_size, strstr(plain.text, "ari") - plain.text);
    params.no_stop_trim = true;
    run_paris(&stopped, &params, false);
    assert_non_null(strstr(stopped.text, "ari"));

    params = greedy(32);
    params.stop_ids[params.stop_id_count++] = 1279;
    params.stop_ids[params.stop_id_count++] = plain.ids[0];
    run_paris(&stopped, &params, false);
    assert_int_equal(stopped.last.finish, FINISH_EOS);
    assert_int_equal(stopped.last.matched_id, plain.ids[0]);
    assert_int_equal(stopped.id_count, 1);
    assert_int_equal(stopped.text_size, 0);
    params.no_stop_trim = true;
    run_paris(&stopped, &params, false);
    assert_true(stopped.text_size > 0);
}

/* The reason that says more wins when several come with the same id. */
static void stops_win_over_length(void **state)
{
    struct sampling_params params = greedy(1);
    static struct client plain, stopped;

    (void)state;
    run_paris(&plain, &params, false);
    assert_int_equal(plain.last.finish, FINISH_LENGTH);
    assert_true(plain.text_size > 0);
    params.stop[params.stop_count++] = plain.text;
    run_paris(&stopped, &params, false);
    assert_int_equal(stopped.last.finish, FINISH_STOP);
    params.stop_ids[params.stop_id_count++] = plain.ids[0];
    run_paris(&stopped, &params, false);
    assert_int_equal(stopped.last.finish, FINISH_EOS);
}

static void text_is_the_same_piece_by_piece(void **state)
{
    struct sampling_params params = greedy(60);
    static struct client whole, pieces;

    (void)state;
    params.temperature = 8; /* all kinds of tokens, broken characters among them */
    params.has_seed = true;
    params.skip_special_tokens = false;
    run_paris(&whole, &params, false);
    run_paris(&pieces, &params, true);
    assert_int_equal(pieces.call_count, 60);
    assert_int_equal(whole.call_count, 1);
    assert_string_equal(whole.text, pieces.text);
    assert_true(whole.text_size > 60);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(eos_ends_an_answer_unless_ignored),
        cmocka_unit_test(stop_ids_and_strings_end_an_answer),
        cmocka_unit_test(stops_win_over_length),
        cmocka_unit_test(text_is_the_same_piece_by_piece),
    };

    return cmocka_run_group_tests_name("engine text", tests, open_harness, close_harness);
}
