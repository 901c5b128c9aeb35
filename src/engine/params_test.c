/* engine/params_test.c - sampling parameters as SGLang's clients send them, right and wrong. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include "base/json.h"
#include "engine/engine.h"

/* Reads `text` over the defaults and checks it. The strings in *params live as long as
 * *json_out. */
static enum status read_text(const char *text, struct sampling_params *params, json_t **json_out,
                             struct err *err)
{
    enum status st;

    sampling_params_init(params);
    assert_int_equal(json_read(text, strlen(text), "test", json_out, err), STATUS_OK);
    st = sampling_params_read(params, *json_out, err);
    return st == STATUS_OK ? sampling_params_check(params, err) : st;
}

static void every_field_is_read(void **state)
{
    struct sampling_params params;
    struct err err;
    json_t *json;

    (void)state;
    assert_int_equal(
        read_text("{\"max_new_tokens\": 7, \"min_new_tokens\": 2, \"temperature\": 0.5,"
                  "\"top_p\": 0.9, \"top_k\": 40, \"min_p\": 0.05, \"frequency_penalty\": 1,"
                  "\"presence_penalty\": -0.5, \"repetition_penalty\": 1.1,"
                  "\"stop\": [\"a\", \"bc\"], \"stop_token_ids\": [3, 9],"
                  "\"ignore_eos\": true, \"skip_special_tokens\": false,"
                  "\"spaces_between_special_tokens\": true, \"no_stop_trim\": true, \"n\": 1,"
                  "\"sampling_seed\": -1, \"regex\": null, \"logit_bias\": null}",
                  &params, &json, &err), STATUS_OK);
    assert_int_equal(params.max_new_tokens, 7);
    assert_int_equal(params.min_new_tokens, 2);
    assert_true(params.temperature == 0.5 && params.top_p == 0.9 && params.min_p == 0.05);
    assert_int_equal(params.top_k, 40);
    assert_true(params.frequency_penalty == 1 && params.presence_penalty == -0.5);
    assert_true(params.repetition_penalty == 1.1);
    assert_int_equal(params.stop_count, 2);
    assert_string_equal(params.stop[0], "a");
    assert_string_equal(params.stop[1], "bc");
    assert_int_equal(params.stop_id_count, 2);
    assert_int_equal(params.stop_ids[1], 9);
    assert_true(params.ignore_eos && !params.skip_special_tokens && params.no_stop_trim);
    assert_true(params.has_seed);
    assert_true(params.seed == UINT64_MAX);
    json_decref(json);
}

static void null_and_missing_are_the_defaults(void **state)
{
    static const char *const texts[] = {
        "{}",
        "{\"temperature\": null, \"top_p\": null, \"top_k\": null, \"stop\": null, \"n\": null,"
        "\"stop_token_ids\": null, \"ignore_eos\": null, \"seed\": null, \"custom_params\": null}",
    };

    (void)state;
    for (size_t i = 0; i < 2; i++) {
        struct sampling_params params;
        struct err err;
        json_t *json;

        assert_int_equal(read_text(texts[i], &params, &json, &err), STATUS_OK);
        assert_int_equal(params.max_new_tokens, 128);
        assert_true(params.temperature == 1 && params.top_p == 1 && params.min_p == 0);
        assert_int_equal(params.top_k, -1);
        assert_true(params.repetition_penalty == 1 && params.skip_special_tokens);
        assert_true(!params.ignore_eos && !params.has_seed && params.stop_count == 0);
        assert_int_equal(sampling_params_read(&params, NULL, &err), STATUS_OK);
        json_decref(json);
    }
}

static void some_values_mean_more(void **state)
{
    struct sampling_params params;
    struct err err;
    json_t *json;

    (void)state;
    assert_int_equal(read_text("{\"max_new_tokens\": null, \"stop\": \"one\"}", &params, &json,
                               &err), STATUS_OK);
    assert_true(params.max_new_tokens == SAMPLING_NEW_TOKENS_ALL);
    assert_int_equal(params.stop_count, 1);
    assert_string_equal(params.stop[0], "one");
    json_decref(json);
    assert_int_equal(read_text("{\"seed\": 5, \"sampling_seed\": 5, \"top_k\": 3.0}", &params,
                               &json, &err), STATUS_OK);
    assert_int_equal(params.seed, 5);
    assert_int_equal(params.top_k, 3);
    json_decref(json);
}

static void what_is_wrong_is_named(void **state)
{
    static const struct {
        const char *text, *said;
    } cases[] = {
        { "{\"temprature\": 1}", "\"temperature\"" },
        { "{\"max_tokens\": 1}", "\"max_new_tokens\"" },
        { "{\"\": 1}", "\"\"" },
        { "{\"regex\": \"a*\"}", "\"regex\" is not supported" },
        { "{\"json_schema\": {}}", "\"json_schema\" is not supported" },
        { "{\"ebnf\": \"\"}", "\"ebnf\" is not supported" },
        { "{\"logit_bias\": {\"1\": 2}}", "\"logit_bias\" is not supported" },
        { "{\"n\": 2}", "\"n\" is 2" },
        { "{\"temperature\": \"hot\"}", "\"temperature\" is a string" },
        { "{\"temperature\": -0.1}", "\"temperature\" is -0.1" },
        { "{\"temperature\": true}", "\"temperature\" is true" },
        { "{\"top_p\": 0}", "\"top_p\" is 0" },
        { "{\"top_p\": 1.01}", "\"top_p\" is 1.01" },
        { "{\"top_k\": 0}", "\"top_k\" is 0" },
        { "{\"top_k\": -2}", "\"top_k\" is -2" },
        { "{\"top_k\": 1.5}", "\"top_k\" is a fraction" },
        { "{\"min_p\": 2}", "\"min_p\" is 2" },
        { "{\"frequency_penalty\": 2.5}", "\"frequency_penalty\" is 2.5" },
        { "{\"presence_penalty\": -3}", "\"presence_penalty\" is -3" },
        { "{\"repetition_penalty\": 0}", "\"repetition_penalty\" is 0" },
        { "{\"max_new_tokens\": -1}", "\"max_new_tokens\" is -1" },
        { "{\"max_new_tokens\": 1e30}", "\"max_new_tokens\"" },
        { "{\"min_new_tokens\": 200}", "\"min_new_tokens\" is 200" },
        { "{\"stop\": 3}", "\"stop\" is an integer" },
        { "{\"stop\": \"\"}", "\"stop\"[0] has 0 bytes" },
        { "{\"stop\": [\"a\", null]}", "\"stop\"[1] is null" },
        { "{\"stop\": \"a\\u0000b\"}", "\"stop\"[0] has a NUL" },
        { "{\"stop\": [\"1\",\"1\",\"1\",\"1\",\"1\",\"1\",\"1\",\"1\",\"1\",\"1\",\"1\",\"1\","
          "\"1\",\"1\",\"1\",\"1\",\"1\"]}", "more than 16" },
        { "{\"stop_token_ids\": 5}", "\"stop_token_ids\" is an integer" },
        { "{\"stop_token_ids\": [1, -5]}", "\"stop_token_ids\"[1]" },
        { "{\"stop_token_ids\": [4294967296]}", "\"stop_token_ids\"[0]" },
        { "{\"ignore_eos\": 1}", "\"ignore_eos\" is an integer" },
        { "{\"seed\": 1, \"sampling_seed\": 2}", "differ" },
        { "{\"seed\": \"x\"}", "\"seed\" is a string" },
        { "[]", "an array" },
    };

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct sampling_params params;
        struct err err = { .message = "" };
        json_t *json;

        assert_int_equal(read_text(cases[i].text, &params, &json, &err), STATUS_BAD_INPUT);
        if (strstr(err.message, cases[i].said) == NULL)
            fail_msg("%s: said \"%s\"", cases[i].text, err.message);
        json_decref(json);
    }
}

/* A refused object changes nothing, and its message is valid UTF-8 however long its names are. */
static void a_refusal_changes_nothing(void **state)
{
    struct sampling_params params;
    json_t *json = json_object(), *message;
    char name[300];
    struct err err;

    (void)state;
    for (size_t i = 0; i + 2 < sizeof(name); i += 2)
        memcpy(name + i, "\xC3\xA9", 3);
    memmove(name + 1, name, sizeof(name) - 2);
    name[0] = 'x';
    name[sizeof(name) - 1] = '\0';
    sampling_params_init(&params);
    json_object_set_new(json, "temperature", json_real(0.25));
    json_object_set_new_nocheck(json, name, json_true());
    assert_int_equal(sampling_params_read(&params, json, &err), STATUS_BAD_INPUT);
    assert_true(params.temperature == 1);
    message = json_string(err.message);
    assert_non_null(message);
    json_decref(message);
    json_decref(json);
}

static void numbers_from_a_program_are_checked_too(void **state)
{
    char long_stop[ENGINE_STOP_STRING_BYTES_MAX + 2];
    struct sampling_params params;
    struct err err;

    (void)state;
    sampling_params_init(&params);
    params.temperature = NAN;
    assert_int_equal(sampling_params_check(&params, &err), STATUS_BAD_INPUT);
    params.temperature = INFINITY;
    assert_int_equal(sampling_params_check(&params, &err), STATUS_BAD_INPUT);
    sampling_params_init(&params);
    params.top_p = NAN;
    assert_int_equal(sampling_params_check(&params, &err), STATUS_BAD_INPUT);
    sampling_params_init(&params);
    params.stop[0] = "\xC3(";
    params.stop_count = 1;
    assert_int_equal(sampling_params_check(&params, &err), STATUS_BAD_INPUT);
    memset(long_stop, 'a', sizeof(long_stop));
    long_stop[sizeof(long_stop) - 1] = '\0';
    params.stop[0] = long_stop;
    assert_int_equal(sampling_params_check(&params, &err), STATUS_BAD_INPUT);
    long_stop[sizeof(long_stop) - 2] = '\0';
    assert_int_equal(sampling_params_check(&params, &err), STATUS_OK);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_field_is_read),
        cmocka_unit_test(null_and_missing_are_the_defaults),
        cmocka_unit_test(some_values_mean_more),
        cmocka_unit_test(what_is_wrong_is_named),
        cmocka_unit_test(a_refusal_changes_nothing),
        cmocka_unit_test(numbers_from_a_program_are_checked_too),
    };

    return cmocka_run_group_tests_name("sampling params", tests, NULL, NULL);
}
