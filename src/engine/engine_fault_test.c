/* engine/engine_fault_test.c - the n-th allocation of an engine fails, for every n.
 *
 * Method: an engine is made, asked and destroyed with the fault one allocation later each time,
 * until it gets through without meeting it. Wherever it strikes, somebody is told that memory is
 * short, nothing leaks, and the engine, if there is one, gives the right answer to the next
 * request. */
#include "engine/test_harness.h"

#include "base/testing_alloc.h"

#ifdef TESTING_ALLOC

static struct harness harness;
static const int32_t prompt[5] = { 5, 6, 7, 60, 1 };

static int open_harness(void **state)
{
    (void)state;
    json_set_alloc_funcs(__libc_malloc, __libc_free);
    harness_open(&harness, HARNESS_TINY, "cpu", 512);
    return 0;
}

static int close_harness(void **state)
{
    (void)state;
    harness_close(&harness);
    return 0;
}

/* One that takes everything a request can take: stop strings, penalties, text. */
static struct sampling_params demanding(void)
{
    struct sampling_params params;

    sampling_params_init(&params);
    params.max_new_tokens = 20;
    params.repetition_penalty = 1.1;
    params.presence_penalty = 0.5;
    params.has_seed = true;
    params.ignore_eos = true;
    params.stop[params.stop_count++] = "not to be found";
    params.stop[params.stop_count++] = "nor this";
    return params;
}

/* Makes an engine and asks it once; what failed first. *client keeps the answer, if there is
 * one. */
static enum status run(struct client *client, bool token_by_token)
{
    const struct sampling_params params = demanding();
    struct engine_options options;
    struct err err;
    enum status st;

    engine_options_init(&options);
    client_init(client);
    st = engine_create(harness.model, harness.tokenizer, &options, NULL, &harness.engine, &err);
    if (st != STATUS_OK) {
        harness.engine = NULL;
        return st;
    }
    st = client_submit(client, harness.engine, prompt, 5, &params, token_by_token, &err);
    if (st != STATUS_OK)
        return st;
    client_wait(client);
    assert_int_equal(client->last_count, 1);
    return client->last.finish == FINISH_ABORT ? client->last.status : STATUS_OK;
}

static void ask_again(const struct client *reference)
{
    const struct sampling_params params = demanding();
    static struct client client;

    client_run(&client, harness.engine, prompt, 5, &params, false);
    assert_int_equal(client.last.finish, FINISH_LENGTH);
    assert_int_equal(client.id_count, reference->id_count);
    assert_memory_equal(client.ids, reference->ids, client.id_count * sizeof(client.ids[0]));
    assert_string_equal(client.text, reference->text);
    client_deinit(&client);
}

static void every_allocation_may_fail(void **state)
{
    static struct client reference, client;
    long n = 0, failed_count = 0;

    (void)state;
    assert_int_equal(run(&reference, false), STATUS_OK); /* what libraries keep, they have now */
    engine_destroy(harness.engine);
    for (;; n++) {
        const long before_count = atomic_load(&block_count);
        enum status st;
        bool met;

        atomic_store(&allocations_left, n);
        st = run(&client, n % 2 == 0);
        met = atomic_load(&allocations_left) < 0;
        atomic_store(&allocations_left, -1);
        if (st != STATUS_OK)
            assert_int_equal(st, STATUS_NO_MEMORY);
        failed_count += st != STATUS_OK;
        if (harness.engine != NULL)
            ask_again(&reference);
        engine_destroy(harness.engine);
        harness.engine = NULL;
        client_deinit(&client);
        assert_int_equal(atomic_load(&block_count), before_count);
        if (!met) {
            assert_int_equal(st, STATUS_OK);
            break;
        }
    }
    assert_in_range(n, 20, 1000);
    assert_true(failed_count >= 20);
    client_deinit(&reference);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_allocation_may_fail),
    };

    return cmocka_run_group_tests_name("engine faults", tests, open_harness, close_harness);
}

#else

int main(void)
{
    return 0;
}

#endif
