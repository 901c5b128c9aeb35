/* server/parse_test.c - the body of /generate, and what answers look like as text. No engine: bytes
 * in, a request or a sentence out; an engine's pieces in, JSON out. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "server/internal.h"

static const struct generate_limits limits = {
    .prompt_count_max = 4,
    .prompt_token_count_max = 8,
};

static struct generate_request parsed(const char *body)
{
    struct generate_request request;
    struct err err;
    const enum status st = server__generate_parse(body, strlen(body), &limits, &request, &err);

    if (st != STATUS_OK)
        fail_msg("%s: %s", body, err.message);
    return request;
}

static void a_prompt_of_text(void **state)
{
    struct generate_request request =
        parsed("{\"text\": \"a\\u0000b\", \"rid\": \"me\", \"sampling_params\":"
               " {\"temperature\": 0, \"max_new_tokens\": 5, \"stop\": [\"x\", \"y\"]}}");

    (void)state;
    assert_false(request.is_list);
    assert_false(request.stream);
    assert_int_equal(request.prompt_count, 1);
    assert_int_equal(request.prompts[0].text_size, 3);
    assert_memory_equal(request.prompts[0].text, "a\0b", 3);
    assert_string_equal(request.prompts[0].rid, "me");
    assert_true(request.prompts[0].params.temperature == 0);
    assert_int_equal(request.prompts[0].params.max_new_tokens, 5);
    assert_int_equal(request.prompts[0].params.stop_count, 2);
    assert_string_equal(request.prompts[0].params.stop[1], "y");
    server__generate_request_deinit(&request);
}

static void lists_of_prompts(void **state)
{
    struct generate_request request =
        parsed("{\"input_ids\": [[1, 2], [3]], \"stream\": true, \"rid\": \"r\","
               " \"sampling_params\": [{\"max_new_tokens\": 5}, null]}");

    (void)state;
    assert_true(request.is_list);
    assert_true(request.stream);
    assert_int_equal(request.prompt_count, 2);
    assert_null(request.prompts[0].text);
    assert_int_equal(request.prompts[0].id_count, 2);
    assert_int_equal(request.prompts[0].ids[1], 2);
    assert_int_equal(request.prompts[1].ids[0], 3);
    assert_string_equal(request.prompts[1].rid, "r_1");
    assert_int_equal(request.prompts[0].params.max_new_tokens, 5);
    assert_int_equal(request.prompts[1].params.max_new_tokens, 128);
    server__generate_request_deinit(&request);

    request = parsed("{\"text\": [\"a\", \"b\"], \"rid\": [\"x\", \"y\"], \"sampling_params\":"
                     " {\"max_new_tokens\": 7}}");
    assert_string_equal(request.prompts[1].rid, "y");
    assert_string_equal(request.prompts[1].text, "b");
    assert_int_equal(request.prompts[1].params.max_new_tokens, 7);
    server__generate_request_deinit(&request);

    /* A list of one is a list; names that are made up differ. */
    request = parsed("{\"text\": [\"a\"]}");
    assert_true(request.is_list);
    assert_int_equal(strlen(request.prompts[0].rid), 32);
    server__generate_request_deinit(&request);
    request = parsed("{\"text\": [\"a\", \"a\"]}");
    assert_string_not_equal(request.prompts[0].rid, request.prompts[1].rid);
    server__generate_request_deinit(&request);
}

static void what_changes_nothing_is_taken(void **state)
{
    struct generate_request request =
        parsed("{\"text\": \"a\", \"input_ids\": null, \"stream\": null, \"rid\": null,"
               " \"sampling_params\": null, \"return_logprob\": false, \"logprob_start_len\": -1,"
               " \"top_logprobs_num\": 0, \"lora_path\": [null], \"image_data\": [],"
               " \"log_metrics\": true, \"token_ids_logprob\": [[]], \"priority\": null}");

    (void)state;
    assert_int_equal(request.prompt_count, 1);
    server__generate_request_deinit(&request);
}

static void what_is_wrong_is_named(void **state)
{
    static const char *const cases[][2] = {
        { "", "no body" },
        { "{", "not valid JSON: line 1" },
        { "[]", "the body is an array" },
        { "3", "not valid JSON" },
        { "{\"text\": \"\xFF\"}", "not valid JSON" },
        { "{\"text\": \"\\ud800\"}", "not valid JSON" },
        { "{\"text\": \"a\", \"text\": \"b\"}", "not valid JSON" },
        { "{\"text\": \"a\"} x", "not valid JSON" },
        { "{}", "neither \"text\" nor \"input_ids\"" },
        { "{\"text\": \"a\", \"input_ids\": [1]}", "both \"text\" and \"input_ids\"" },
        { "{\"text\": 5}", "\"text\" is an integer" },
        { "{\"text\": []}", "\"text\" is an empty list" },
        { "{\"text\": [\"a\", 5]}", "\"text\"[1] is an integer" },
        { "{\"text\": [\"a\",\"a\",\"a\",\"a\",\"a\"]}", "holds 5 prompts, the limit is 4" },
        { "{\"input_ids\": \"a\"}", "\"input_ids\" is a string" },
        { "{\"input_ids\": []}", "\"input_ids\" is an empty list" },
        { "{\"input_ids\": [[]]}", "\"input_ids\"[0] is an empty list" },
        { "{\"input_ids\": [1, \"a\"]}", "\"input_ids\"[1] is a string" },
        { "{\"input_ids\": [1, [2]]}", "\"input_ids\"[1] is an array" },
        { "{\"input_ids\": [[1], 2]}", "\"input_ids\"[1] is an integer" },
        { "{\"input_ids\": [1.5]}", "\"input_ids\"[0] is a fraction" },
        { "{\"input_ids\": [-1]}", "\"input_ids\"[0] is -1" },
        { "{\"input_ids\": [4294967296]}", "\"input_ids\"[0] is 4294967296" },
        { "{\"input_ids\": [99999999999999999999]}", "not valid JSON" },
        { "{\"input_ids\": [1,1,1,1,1,1,1,1,1]}", "holds 9 tokens, the model's context 8" },
        { "{\"text\": \"a\", \"stream\": 1}", "\"stream\" is an integer" },
        { "{\"text\": \"a\", \"sampling_params\": 1}", "\"sampling_params\" is an integer" },
        { "{\"text\": \"a\", \"sampling_params\": []}", "there is a single prompt" },
        { "{\"text\": [\"a\", \"b\"], \"sampling_params\": [{}]}", "lists 1, there are 2" },
        { "{\"text\": [\"a\"], \"sampling_params\": [1]}", "\"sampling_params\"[0] is an integer" },
        { "{\"text\": [\"a\"], \"sampling_params\": [{\"top_p\": 2}]}", "prompt 0: " },
        { "{\"text\": \"a\", \"sampling_params\": {\"top_p\": 2}}", "top_p" },
        { "{\"text\": \"a\", \"sampling_params\": {\"tempratur\": 0}}", "temperature" },
        { "{\"text\": \"a\", \"temperature\": 0}", "belongs inside \"sampling_params\"" },
        { "{\"text\": \"a\", \"steam\": true}", "nearest known one is \"stream\"" },
        { "{\"text\": \"a\", \"return_logprob\": true}", "\"return_logprob\" is not supported" },
        { "{\"text\": \"a\", \"return_logprob\": [true]}", "\"return_logprob\" is not supported" },
        { "{\"text\": \"a\", \"image_data\": \"x\"}", "\"image_data\" is not supported" },
        { "{\"text\": \"a\", \"top_logprobs_num\": 1.5}", "\"top_logprobs_num\" is not" },
        { "{\"text\": \"a\", \"rid\": 5}", "\"rid\" is or holds an integer" },
        { "{\"text\": \"a\", \"rid\": \"\"}", "a \"rid\" has 0 bytes" },
        { "{\"text\": \"a\", \"rid\": \"a\\u0000\"}", "a \"rid\" has a NUL" },
        { "{\"text\": \"a\", \"rid\": [\"b\"]}", "there is a single prompt" },
        { "{\"text\": [\"a\"], \"rid\": [\"a\", \"b\"]}", "lists 2, there are 1" },
        { "{\"text\": [\"a\", \"b\"], \"rid\": [\"c\", \"c\"]}", "prompts 0 and 1 alike" },
    };

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct generate_request request;
        struct err err;
        const enum status st =
            server__generate_parse(cases[i][0], strlen(cases[i][0]), &limits, &request, &err);
        if (st != STATUS_BAD_INPUT || strstr(err.message, cases[i][1]) == NULL)
            fail_msg("%s: status %d, \"%s\" lacks \"%s\"", cases[i][0], st,
                     st == STATUS_OK ? "" : err.message, cases[i][1]);
    }
}

static void depth_has_a_limit(void **state)
{
    const size_t depth = 100000;
    char *body = malloc(depth + 16);
    struct generate_request request;
    struct err err;

    (void)state;
    assert_non_null(body);
    memset(body, '[', depth + 8);
    for (size_t i = 0; i < 8; i++)
        body[i] = "{\"text\":"[i];
    assert_int_equal(server__generate_parse(body, depth + 8, &limits, &request, &err),
                     STATUS_BAD_INPUT);
    free(body);
}

static void text_is_escaped(void **state)
{
    static const struct {
        const char *text;
        size_t size;
        const char *json;
    } cases[] = {
        { "", 0, "" },
        { "plain", 5, "plain" },
        { "a\"b\\c\nd", 7, "a\\\"b\\\\c\\nd" },
        { "\0\x1f\x7f", 3, "\\u0000\\u001f\x7f" },
        { "\xC3\xA9\xF0\x9F\x98\x80", 6, "\xC3\xA9\xF0\x9F\x98\x80" },
        { "a\xFF" "b\xE2\x82", 5, "a\xEF\xBF\xBD" "b\xEF\xBF\xBD" },
    };

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct buf out;
        buf_init(&out, 1000);
        assert_int_equal(server__json_escape(&out, cases[i].text, cases[i].size, NULL), STATUS_OK);
        assert_string_equal(out.data, cases[i].json);
        buf_deinit(&out);
    }
}

/* The answer after some pieces, parsed again. */
static json_t *written(struct answer *answer, const struct answer_style *style)
{
    struct buf out;
    json_t *json;

    buf_init(&out, MIB);
    assert_int_equal(server__answer_write(answer, style, &out, NULL), STATUS_OK);
    json = json_loadb(out.data, out.size, 0, NULL);
    if (json == NULL)
        fail_msg("not JSON: %s", out.data);
    buf_deinit(&out);
    return json;
}

static void answers_have_sglangs_shape(void **state)
{
    const struct answer_style style = { .has_text = true, .has_index = true };
    const int32_t ids[] = { 7, 8, 9 };
    struct answer answer = { .index = 3, .rid = "na\"me" };
    struct engine_output output = {
        .text = "Par\"", .text_size = 4, .ids = ids, .id_count = 2,
        .prompt_token_count = 5, .completion_token_count = 2, .matched_id = -1,
    };
    json_t *json, *wanted, *warning;

    (void)state;
    buf_init(&answer.text_json, MIB);
    buf_init(&answer.ids_json, MIB);
    buf_init(&answer.detail, MIB);
    json = written(&answer, &style);
    assert_string_equal(json_string_value(json_object_get(json, "text")), "");
    assert_int_equal(json_array_size(json_object_get(json, "output_ids")), 0);
    json_decref(json);

    assert_int_equal(server__answer_append(&answer, &output, NULL), STATUS_OK);
    json = written(&answer, &style);
    assert_string_equal(json_string_value(json_object_get(json, "text")), "Par\"");
    assert_int_equal(json_integer_value(json_object_get(json, "index")), 3);
    assert_true(json_is_null(
        json_object_get(json_object_get(json, "meta_info"), "finish_reason")));
    json_decref(json);

    output = (struct engine_output){
        .text = "is", .text_size = 2, .ids = ids + 2, .id_count = 1, .prompt_token_count = 5,
        .completion_token_count = 3, .finish = FINISH_STOP, .matched_text = "\n\n", .garbage = true,
        .e2e_s = 1.5, .queue_s = 0.5, .matched_id = -1, .dp_rank = 2,
    };
    assert_int_equal(server__answer_append(&answer, &output, NULL), STATUS_OK);
    json = written(&answer, &(struct answer_style){ .has_text = true });
    warning = json_object_get(json_object_get(json, "meta_info"), "warning");
    assert_true(json_string_length(warning) > 0);
    wanted = json_pack("{s:s, s:[i,i,i], s:{s:s, s:{s:s, s:s}, s:i, s:s, s:i, s:i, s:i, s:f, s:f,"
                       " s:b, s:O}}", "text", "Par\"is", "output_ids", 7, 8, 9, "meta_info",
                       "id", "na\"me", "finish_reason", "type", "stop", "matched", "\n\n",
                       "prompt_tokens", 5, "weight_version", "default", "completion_tokens", 3,
                       "cached_tokens", 0, "dp_rank", 2, "queue_time", 0.5, "e2e_latency", 1.5,
                       "garbage", 1, "warning", warning);
    assert_true(json_equal(json, wanted));
    json_decref(wanted);
    json_decref(json);
    /* Without a tokenizer there is no text. */
    json = written(&answer, &(struct answer_style){ 0 });
    assert_null(json_object_get(json, "text"));
    json_decref(json);
    buf_deinit(&answer.text_json);
    buf_deinit(&answer.ids_json);
    buf_deinit(&answer.detail);
}

static void every_ending_is_told(void **state)
{
    static const struct {
        struct engine_output output;
        const char *json;
    } cases[] = {
        { { .finish = FINISH_LENGTH, .completion_token_count = 4 },
          "{\"type\": \"length\", \"length\": 4}" },
        { { .finish = FINISH_EOS, .matched_id = 2 }, "{\"type\": \"stop\", \"matched\": 2}" },
        { { .finish = FINISH_ABORT, .status = STATUS_CANCELED, .message = "a \"b\"" },
          "{\"type\": \"abort\", \"message\": \"a \\\"b\\\"\", \"status_code\": 503}" },
        { { .finish = FINISH_ABORT, .status = STATUS_DEVICE, .message = "" },
          "{\"type\": \"abort\", \"message\": \"\", \"status_code\": 500}" },
    };

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct answer answer = { 0 };
        json_t *wanted = json_loads(cases[i].json, 0, NULL);
        json_t *json;
        buf_init(&answer.text_json, MIB);
        buf_init(&answer.ids_json, MIB);
        buf_init(&answer.detail, MIB);
        assert_int_equal(server__answer_append(&answer, &cases[i].output, NULL), STATUS_OK);
        json = written(&answer, &(struct answer_style){ 0 });
        assert_true(json_equal(
            wanted, json_object_get(json_object_get(json, "meta_info"), "finish_reason")));
        json_decref(json);
        json_decref(wanted);
        buf_deinit(&answer.detail);
    }
}

static void errors_are_json_whatever_they_say(void **state)
{
    struct buf out;
    json_t *whole, *json;

    (void)state;
    buf_init(&out, MIB);
    assert_int_equal(server__error_write(400, "bad input", "\"\xE2\x82\" \n", &out, NULL),
                     STATUS_OK);
    whole = json_loadb(out.data, out.size, 0, NULL);
    assert_non_null(whole);
    json = json_object_get(whole, "error");
    assert_string_equal(json_string_value(json_object_get(json, "message")),
                        "\"\xEF\xBF\xBD\" \n");
    assert_string_equal(json_string_value(json_object_get(json, "type")), "bad input");
    assert_int_equal(json_integer_value(json_object_get(json, "code")), 400);
    json_decref(whole);
    buf_deinit(&out);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_prompt_of_text),
        cmocka_unit_test(lists_of_prompts),
        cmocka_unit_test(what_changes_nothing_is_taken),
        cmocka_unit_test(what_is_wrong_is_named),
        cmocka_unit_test(depth_has_a_limit),
        cmocka_unit_test(text_is_escaped),
        cmocka_unit_test(answers_have_sglangs_shape),
        cmocka_unit_test(every_ending_is_told),
        cmocka_unit_test(errors_are_json_whatever_they_say),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
