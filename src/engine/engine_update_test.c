/* engine/engine_update_test.c - an engine that switches to other weights together with others.
 *
 * Method: the others are played by the meeting that the engine is given, which writes down what it
 * comes to and fails where it is told to. */
#include "engine/test_harness.h"

#define OTHER "tests/golden/models/deepseek_v3_plain" /* another configuration */

struct others {
    enum offload_update_step fail_at; /* OFFLOAD_UPDATE_STEP_COUNT: nowhere */
    char steps[OFFLOAD_UPDATE_STEP_COUNT + 1]; /* a letter each, small when this engine failed */
    uint32_t count;
};

static enum status meet(void *user, enum offload_update_step step, enum status own,
                        uint32_t paused_count, struct err *err)
{
    static const char letters[] = "PHCRE";
    struct others *others = user;

    assert_int_equal(paused_count, 0);
    assert_true(others->count < OFFLOAD_UPDATE_STEP_COUNT);
    others->steps[others->count++] = (char)(letters[step] + (own == STATUS_OK ? 0 : 'a' - 'A'));
    if (own == STATUS_OK && step == others->fail_at)
        return err_set(err, STATUS_PEER, "another has failed");
    return own;
}

static void check_version(struct engine *engine, const char *version)
{
    json_t *report = engine_report_json(engine);

    assert_string_equal(json_string_value(json_object_get(report, "weight_version")), version);
    json_decref(report);
}

static const int32_t prompt[] = { 3, 1, 4 };

/* A greedy answer; the caller deinits the client. */
static void answer(struct client *client, struct engine *engine)
{
    struct sampling_params params;

    sampling_params_init(&params);
    params.temperature = 0;
    params.max_new_tokens = 8;
    client_run(client, engine, prompt, 3, &params, false);
}

static void it_comes_to_every_step_and_does_what_all_agree_on(void **state)
{
    static const struct {
        enum offload_update_step fail_at;
        const char *steps;
    } cases[] = {
        { OFFLOAD_UPDATE_PREPARED, "PE" },  { OFFLOAD_UPDATE_HELD, "PHE" },
        { OFFLOAD_UPDATE_CHANGED, "PHCRE" }, { OFFLOAD_UPDATE_STEP_COUNT, "PHCE" },
    };
    struct offload_options offload;
    struct harness harness;
    struct client client;
    struct err err;

    (void)state;
    offload_options_init(&offload);
    offload.group_size = 1;
    harness_open_offloaded(&harness, HARNESS_TINY, "sim:memory=64MiB", 512, &offload);
    harness_start(&harness, NULL);
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct others others = { .fail_at = cases[i].fail_at };
        const struct engine_update update = {
            .model_path = HARNESS_TINY, .weight_version = "2", .meet = meet, .user = &others,
        };
        const bool well = cases[i].fail_at == OFFLOAD_UPDATE_STEP_COUNT;

        assert_int_equal(engine_update(harness.engine, &update, NULL, &err),
                         well ? STATUS_OK : STATUS_PEER);
        assert_string_equal(others.steps, cases[i].steps);
        check_version(harness.engine, well ? "2" : "default");
        answer(&client, harness.engine);
        assert_int_not_equal(client.last.finish, FINISH_ABORT);
        client_deinit(&client);
    }
    harness_close(&harness);
}

/* One that fails by itself comes to the meetings too: the others wait for it. */
static void it_tells_the_others_when_it_can_not(void **state)
{
    struct others others = { .fail_at = OFFLOAD_UPDATE_STEP_COUNT };
    struct engine_update update = { .model_path = OTHER, .meet = meet, .user = &others };
    char label[ENGINE_VERSION_BYTES_MAX + 1] = "";
    struct harness harness;
    struct err err;

    (void)state;
    harness_open(&harness, HARNESS_TINY, "cpu", 512);
    harness_start(&harness, NULL);
    assert_int_equal(engine_update(harness.engine, &update, NULL, &err), STATUS_BAD_INPUT);
    assert_string_equal(others.steps, "pE");
    others = (struct others){ .fail_at = OFFLOAD_UPDATE_STEP_COUNT };
    memset(label, 'x', ENGINE_VERSION_BYTES_MAX);
    update.model_path = HARNESS_TINY;
    update.weight_version = label;
    assert_int_equal(engine_update(harness.engine, &update, NULL, &err), STATUS_BAD_INPUT);
    assert_string_equal(others.steps, "pE");
    others = (struct others){ .fail_at = OFFLOAD_UPDATE_STEP_COUNT };
    update.weight_version = NULL;
    engine_drain(harness.engine);
    assert_int_equal(engine_update(harness.engine, &update, NULL, &err), STATUS_UNAVAILABLE);
    assert_string_equal(others.steps, "PhE");
    harness_close(&harness);
}

/* Where a text ends is the server's, whatever the weights say. */
static void ends_of_texts_can_be_given(void **state)
{
    struct engine_options options;
    struct harness harness;
    struct client client;

    (void)state;
    engine_options_init(&options);
    harness_open(&harness, HARNESS_TINY, "cpu", 512);
    harness_start(&harness, NULL);
    answer(&client, harness.engine);
    assert_int_equal(client.last.finish, FINISH_LENGTH);
    options.has_eos = true;
    options.eos_ids[0] = client.ids[0];
    options.eos_count = 1;
    client_deinit(&client);
    harness_start(&harness, &options);
    answer(&client, harness.engine);
    assert_int_equal(client.last.finish, FINISH_EOS);
    assert_int_equal(client.last.matched_id, options.eos_ids[0]);
    client_deinit(&client);
    harness_close(&harness);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(it_comes_to_every_step_and_does_what_all_agree_on),
        cmocka_unit_test(it_tells_the_others_when_it_can_not),
        cmocka_unit_test(ends_of_texts_can_be_given),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
