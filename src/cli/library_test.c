/* cli/library_test.c - liblighter as a C program outside of this project sees it: no header but
 * lighter.h is included, and the demo model answers. */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "lighter.h"

#define COUNT_OF(list) (sizeof(list) / sizeof((list)[0]))
#define QUESTION "Where is the capital of France?"

static const struct lighter_option model_options[] = {
    { "model", "models/demo" },     { "threads", "1" },
    { "context-length", "256" },    { "chunked-prefill-size", "32" },
    { "max-running-requests", "4" },
};
static const struct lighter_option greedy[] = { { "temperature", "0" },
                                                { "max-new-tokens", "32" } };

static struct lighter *open_demo(void)
{
    struct lighter *lighter = NULL;
    char error[LIGHTER_ERROR_SIZE] = "";

    if (lighter_open(model_options, COUNT_OF(model_options), &lighter, error) != LIGHTER_OK)
        fail_msg("%s", error);
    return lighter;
}

struct heard {
    char text[1024];
    size_t text_size, id_count, call_count;
    size_t call_count_max; /* then it says stop; 0: never */
};

static int listen(void *user, const char *text, size_t text_size, const int32_t *ids,
                  size_t id_count)
{
    struct heard *heard = user;

    assert_true(heard->text_size + text_size < sizeof(heard->text));
    assert_true(id_count == 0 || ids != NULL);
    memcpy(heard->text + heard->text_size, text, text_size);
    heard->text_size += text_size;
    heard->id_count += id_count;
    heard->call_count++;
    return heard->call_count == heard->call_count_max;
}

static void the_answer_comes_whole_and_in_pieces(void **state)
{
    struct lighter *lighter = open_demo();
    struct heard heard = { .text_size = 0 };
    struct lighter_request request = { .prompt = QUESTION,
                                       .sampling = greedy,
                                       .sampling_count = COUNT_OF(greedy) };
    struct lighter_answer whole, pieces;
    char error[LIGHTER_ERROR_SIZE] = "";

    (void)state;
    assert_int_equal(lighter_generate(lighter, &request, &whole, error), LIGHTER_OK);
    assert_non_null(strstr(whole.text, "Paris"));
    assert_int_equal(strlen(whole.text), whole.text_size);
    assert_string_equal(whole.finish_reason, "stop");
    assert_false(whole.garbage);
    assert_true(whole.id_count > 1 && whole.prompt_token_count > 1);

    request.on_piece = listen;
    request.user = &heard;
    assert_int_equal(lighter_generate(lighter, &request, &pieces, error), LIGHTER_OK);
    assert_string_equal(pieces.text, whole.text);
    assert_int_equal(heard.text_size, whole.text_size);
    assert_memory_equal(heard.text, whole.text, whole.text_size);
    assert_int_equal(heard.id_count, whole.id_count);
    assert_true(heard.call_count >= 1);
    lighter_answer_deinit(&whole);
    lighter_answer_deinit(&pieces);
    lighter_close(lighter);
}

static void ids_ask_the_same_as_text(void **state)
{
    struct lighter *lighter = open_demo();
    struct lighter_request request = { .sampling = greedy, .sampling_count = COUNT_OF(greedy) };
    struct lighter_answer answer;
    int32_t *ids = NULL;
    size_t id_count = 0;
    char error[LIGHTER_ERROR_SIZE] = "";

    (void)state;
    assert_int_equal(lighter_tokenize(lighter, QUESTION, strlen(QUESTION), &ids, &id_count, error),
                     LIGHTER_OK);
    request.prompt_ids = ids;
    request.prompt_id_count = id_count;
    assert_int_equal(lighter_generate(lighter, &request, &answer, error), LIGHTER_OK);
    assert_non_null(strstr(answer.text, "Paris"));
    assert_int_equal(answer.prompt_token_count, id_count);
    free(ids);
    lighter_answer_deinit(&answer);
    lighter_close(lighter);
}

static void a_listener_can_end_the_answer(void **state)
{
    static const struct lighter_option endless[] = { { "temperature", "0" },
                                                     { "ignore-eos", "true" },
                                                     { "max-new-tokens", "200" } };
    struct lighter *lighter = open_demo();
    struct heard heard = { .call_count_max = 1 };
    struct lighter_request request = { .prompt = QUESTION,
                                       .sampling = endless,
                                       .sampling_count = COUNT_OF(endless),
                                       .on_piece = listen,
                                       .user = &heard };
    struct lighter_answer answer;
    char error[LIGHTER_ERROR_SIZE] = "";

    (void)state;
    assert_int_equal(lighter_generate(lighter, &request, &answer, error), LIGHTER_OK);
    assert_int_equal(heard.call_count, 1);
    assert_string_equal(answer.finish_reason, "abort");
    lighter_answer_deinit(&answer);
    lighter_close(lighter);
}

struct asker {
    struct lighter *lighter;
    const char *prompt, *wanted;
    int good;
};

static void *ask(void *user)
{
    struct asker *asker = user;
    const struct lighter_request request = { .prompt = asker->prompt,
                                             .sampling = greedy,
                                             .sampling_count = COUNT_OF(greedy) };
    struct lighter_answer answer;

    if (lighter_generate(asker->lighter, &request, &answer, NULL) == LIGHTER_OK) {
        asker->good = strstr(answer.text, asker->wanted) != NULL;
        lighter_answer_deinit(&answer);
    }
    return NULL;
}

static void threads_ask_at_once(void **state)
{
    struct lighter *lighter = open_demo();
    struct asker askers[] = {
        { .lighter = lighter, .prompt = "The capital of Japan is", .wanted = "Tokyo" },
        { .lighter = lighter, .prompt = QUESTION, .wanted = "Paris" },
        { .lighter = lighter, .prompt = "Where is the capital of Italy?", .wanted = "Rome" },
    };
    pthread_t threads[COUNT_OF(askers)];
    char *report;

    (void)state;
    for (size_t i = 0; i < COUNT_OF(askers); i++)
        assert_int_equal(pthread_create(&threads[i], NULL, ask, &askers[i]), 0);
    for (size_t i = 0; i < COUNT_OF(askers); i++)
        assert_int_equal(pthread_join(threads[i], NULL), 0);
    for (size_t i = 0; i < COUNT_OF(askers); i++)
        assert_true(askers[i].good);
    report = lighter_report_json(lighter);
    assert_non_null(report);
    assert_non_null(strstr(report, "\"bytes_moved\""));
    free(report);
    lighter_close(lighter);
}

static void refuses_open(const struct lighter_option *options, size_t count,
                         enum lighter_status wanted, const char *word)
{
    struct lighter *lighter = NULL;
    char error[LIGHTER_ERROR_SIZE] = "";

    assert_int_equal(lighter_open(options, count, &lighter, error), wanted);
    assert_null(lighter);
    if (strstr(error, word) == NULL)
        fail_msg("\"%s\" lacks '%s'", error, word);
}

static void bad_options_are_refused_in_a_sentence(void **state)
{
    const struct lighter_option unknown[] = { { "model", "models/demo" }, { "thread", "1" } };
    const struct lighter_option missing[] = { { "model", "no/such/model" } };
    const struct lighter_option none[] = { { "threads", "1" } };
    const struct lighter_option empty[] = { { "model", NULL } };
    const struct lighter_option tiny[] = { { "model", "models/demo" },
                                           { "memory-budget", "4KiB" } };

    (void)state;
    refuses_open(unknown, COUNT_OF(unknown), LIGHTER_BAD_INPUT, "--threads");
    refuses_open(missing, COUNT_OF(missing), LIGHTER_UNAVAILABLE, "no/such/model");
    refuses_open(none, COUNT_OF(none), LIGHTER_BAD_INPUT, "--model");
    refuses_open(empty, COUNT_OF(empty), LIGHTER_BAD_INPUT, "value");
    refuses_open(tiny, COUNT_OF(tiny), LIGHTER_NO_MEMORY, "budget");
    assert_int_not_equal(lighter_open(missing, 1, &(struct lighter *){ NULL }, NULL), LIGHTER_OK);
    lighter_close(NULL);
}

static void bad_requests_are_refused_and_the_next_one_is_answered(void **state)
{
    const struct lighter_option hot[] = { { "temperature", "-1" } };
    const int32_t outside[] = { 1, 1 << 30 };
    struct lighter *lighter = open_demo();
    struct lighter_request request = { .prompt = QUESTION, .sampling = hot, .sampling_count = 1 };
    struct lighter_answer answer;
    char error[LIGHTER_ERROR_SIZE] = "";

    (void)state;
    assert_int_equal(lighter_generate(lighter, &request, &answer, error), LIGHTER_BAD_INPUT);
    assert_non_null(strstr(error, "--temperature"));
    request = (struct lighter_request){ .prompt = NULL };
    assert_int_equal(lighter_generate(lighter, &request, &answer, error), LIGHTER_BAD_INPUT);
    request = (struct lighter_request){ .prompt_ids = outside, .prompt_id_count = 2 };
    assert_int_equal(lighter_generate(lighter, &request, &answer, error), LIGHTER_BAD_INPUT);
    assert_non_null(strstr(error, "1073741824"));
    request = (struct lighter_request){ .prompt = QUESTION, .sampling = greedy,
                                        .sampling_count = COUNT_OF(greedy) };
    assert_int_equal(lighter_generate(lighter, &request, &answer, error), LIGHTER_OK);
    assert_non_null(strstr(answer.text, "Paris"));
    lighter_answer_deinit(&answer);
    lighter_close(lighter);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_answer_comes_whole_and_in_pieces),
        cmocka_unit_test(ids_ask_the_same_as_text),
        cmocka_unit_test(a_listener_can_end_the_answer),
        cmocka_unit_test(threads_ask_at_once),
        cmocka_unit_test(bad_options_are_refused_in_a_sentence),
        cmocka_unit_test(bad_requests_are_refused_and_the_next_one_is_answered),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
