/* engine/sampler_test.c - the sampler against exact probabilities.
 *
 * Methods: known answers of the random generator; the set of kept ids against a plain
 * implementation that sorts, in double; draws against the exact probabilities with a chi-square
 * test whose seeds are fixed, so that it passes or fails always; weights against PyTorch's and
 * transformers' in tests/golden/sampling (tools/oracle_sampling.py). */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "base/json.h"
#include "engine/internal.h"

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))
#define VOCAB_MAX 2500

static const struct engine__seen nothing_seen;

static struct sampling_params default_params(void)
{
    struct sampling_params params;

    sampling_params_init(&params);
    return params;
}

static struct engine__sampler new_sampler(uint32_t vocab_size)
{
    struct engine__sampler sampler;
    struct err err;

    assert_int_equal(engine__sampler_init(&sampler, vocab_size, &err), STATUS_OK);
    return sampler;
}

/* -- random numbers ---------------------------------------------------------------------------- */

/* Random123 1.09, tests/kat_vectors, "philox4x32 10". */
static void philox_gives_the_known_answers(void **state)
{
    static const struct {
        uint32_t counter[4], key[2], out[4];
    } cases[] = {
        { { 0, 0, 0, 0 }, { 0, 0 }, { 0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8 } },
        { { 0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff }, { 0xffffffff, 0xffffffff },
          { 0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd } },
        { { 0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344 }, { 0xa4093822, 0x299f31d0 },
          { 0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1 } },
    };

    (void)state;
    for (size_t i = 0; i < COUNT(cases); i++) {
        uint32_t out[4];
        engine__philox(cases[i].counter, cases[i].key, out);
        assert_memory_equal(out, cases[i].out, sizeof(out));
    }
}

static void random_numbers_are_even_and_differ(void **state)
{
    double sum = 0, products = 0, before = 0.5;

    (void)state;
    for (uint64_t i = 0; i < 20000; i++) {
        const double x = engine__random(42, i);
        assert_true(x >= 0 && x < 1);
        assert_true(x != engine__random(43, i) && x != engine__random(42, i + 1));
        sum += x;
        products += (x - 0.5) * (before - 0.5);
        before = x;
    }
    /* Standard errors: 1 / sqrt(12 n) = 0.002 and 1 / (12 sqrt(n)) = 0.0006. */
    assert_true(fabs(sum / 20000 - 0.5) < 0.008);
    assert_true(fabs(products / 20000) < 0.0024);
    assert_true(engine__random(UINT64_MAX, UINT64_MAX) >= 0);
}

/* -- greedy ------------------------------------------------------------------------------------ */

static void greedy_takes_the_lowest_of_the_best(void **state)
{
    const float inf = INFINITY;
    const struct {
        float logits[5];
        int32_t id;
    } cases[] = {
        { { 1, 3, 2, 3, 0 }, 1 },        { { NAN, -5, NAN, -4, NAN }, 3 },
        { { NAN, NAN, NAN, NAN, NAN }, 0 }, { { -inf, -inf, -inf, -inf, -inf }, 0 },
        { { 0, inf, NAN, inf, 1 }, 1 },  { { -inf, NAN, -1e30f, -inf, -inf }, 2 },
        { { -0.0f, 0, 0, 0, 0 }, 0 },
    };
    struct engine__sampler sampler = new_sampler(5);

    (void)state;
    for (size_t i = 0; i < COUNT(cases); i++) {
        struct sampling_params params = default_params();
        float logits[5];

        params.temperature = 0;
        memcpy(logits, cases[i].logits, sizeof(logits));
        assert_int_equal(engine__sample(&sampler, &params, &nothing_seen, 1, 0, logits),
                         cases[i].id);
        params.temperature = 1;
        params.top_k = 1;
        memcpy(logits, cases[i].logits, sizeof(logits));
        assert_int_equal(engine__sample(&sampler, &params, &nothing_seen, 1, 0, logits),
                         cases[i].id);
    }
    engine__sampler_deinit(&sampler);
}

/* Whatever stands in the logits, an id of the vocabulary comes out, and never one with a NaN while
 * there is another. */
static void garbage_gives_a_valid_id(void **state)
{
    static const float odd[] = { NAN, -NAN, INFINITY, -INFINITY, 3.4e38f, -3.4e38f, 1e-45f, 0, 1 };
    const size_t odd_count = COUNT(odd);
    struct engine__sampler sampler = new_sampler(8);

    (void)state;
    for (uint64_t round = 0; round < 20000; round++) {
        struct sampling_params params = default_params();
        float logits[8], before[8];
        bool has_number = false;
        int32_t id;

        for (size_t i = 0; i < 8; i++) {
            logits[i] = odd[(size_t)(engine__random(round, i) * (double)odd_count)];
            has_number |= logits[i] > -INFINITY;
        }
        params.temperature = round % 3 == 0 ? 1e-5 : round % 3 == 1 ? 1 : 1e300;
        params.top_p = round % 2 == 0 ? 1 : 1e-300;
        params.top_k = round % 5 == 0 ? -1 : (int64_t)(round % 5);
        params.min_p = round % 7 == 0 ? 1 : 0;
        memcpy(before, logits, sizeof(before));
        id = engine__sample(&sampler, &params, &nothing_seen, round, 8, logits);
        assert_in_range(id, 0, 7);
        if (has_number)
            assert_true(before[id] > -INFINITY);
        else
            assert_int_equal(id, 0);
    }
    engine__sampler_deinit(&sampler);
}

/* Logarithms of the softmax, the likeliest first, whatever stands among them. */
static void logprobs_are_the_softmax(void **state)
{
    static const float logits[] = { 1, 3, -INFINITY, 2, 3, NAN };
    const double total = exp(1.0) + 2 * exp(3.0) + exp(2.0);
    struct token_logprobs found;

    (void)state;
    engine__logprobs(logits, 6, 3, 4, &found);
    assert_true(fabs((double)found.logprob - (2 - log(total))) < 1e-6);
    assert_int_equal(found.top_count, 4);
    assert_int_equal(found.top[0].id, 1);
    assert_int_equal(found.top[1].id, 4);
    assert_int_equal(found.top[2].id, 3);
    assert_int_equal(found.top[3].id, 0);
    assert_true(fabs((double)found.top[3].logprob - (1 - log(total))) < 1e-6);
    engine__logprobs(logits, 6, 0, 0, &found);
    assert_int_equal(found.top_count, 0);
    engine__logprobs(logits, 2, 0, 5, &found);
    assert_int_equal(found.top_count, 2);
}

/* -- what is kept ------------------------------------------------------------------------------ */

struct ranked {
    double weight;
    uint32_t id;
};

static int by_rank(const void *a, const void *b)
{
    const struct ranked *x = a, *y = b;

    if (x->weight != y->weight)
        return x->weight < y->weight ? 1 : -1;
    return x->id < y->id ? -1 : 1;
}

/* The definition in sampler.c, step 4, over the sorted weights. */
static void expect_kept(const float *weights, uint32_t count, const struct sampling_params *params,
                        bool *kept_out)
{
    static struct ranked ranked[VOCAB_MAX];
    double total = 0, before = 0;

    for (uint32_t i = 0; i < count; i++) {
        ranked[i] = (struct ranked){ .weight = (double)weights[i], .id = i };
        total += (double)weights[i];
    }
    qsort(ranked, count, sizeof(ranked[0]), by_rank);
    for (uint32_t i = 0; i < count; i++) {
        kept_out[ranked[i].id] = (params->top_k == -1 || (int64_t)i < params->top_k) &&
                                 (params->top_p == 1 || before <= params->top_p * total) &&
                                 ranked[i].weight >= params->min_p * ranked[0].weight;
        before += ranked[i].weight;
    }
}

static void check_kept(struct engine__sampler *sampler, const float *logits, uint32_t best_id,
                       const struct sampling_params *params)
{
    static float weights[VOCAB_MAX];
    static bool kept[VOCAB_MAX];
    const struct sampling_params all = { .temperature = params->temperature, .top_p = 1,
                                         .top_k = -1 };
    double total, sum = 0;

    engine__weigh(sampler, &all, logits, best_id);
    memcpy(weights, sampler->weights, sampler->vocab_size * sizeof(weights[0]));
    assert_true(weights[best_id] == 1);
    expect_kept(weights, sampler->vocab_size, params, kept);
    total = engine__weigh(sampler, params, logits, best_id);
    for (uint32_t i = 0; i < sampler->vocab_size; i++) {
        const float wanted = kept[i] ? weights[i] : 0;
        if (sampler->weights[i] != wanted)
            fail_msg("vocabulary %u, top_k %d, top_p %g, min_p %g: weight %u is %g, not %g",
                     sampler->vocab_size, (int)params->top_k, params->top_p, params->min_p, i,
                     (double)sampler->weights[i], (double)wanted);
        sum += (double)wanted;
    }
    assert_true(total == sum);
}

/* kind 0: smooth; 1: many equal ones; 2: all equal; 3: a few large ones; 4: many underflow. */
static uint32_t make_logits(int kind, uint64_t seed, uint32_t count, float *logits)
{
    uint32_t best = 0;

    for (uint32_t i = 0; i < count; i++) {
        const double x = engine__random(seed, i);

        switch (kind) {
        case 0: logits[i] = (float)(8 * x); break;
        case 1: logits[i] = (float)floor(6 * x); break;
        case 2: logits[i] = 2; break;
        case 3: logits[i] = x < 0.01 ? 20 : (float)x; break;
        default: logits[i] = (float)(-400 * x); break;
        }
        if (logits[i] > logits[best])
            best = i;
    }
    return best;
}

static void the_kept_are_those_that_sorting_keeps(void **state)
{
    static const uint32_t sizes[] = { 1, 2, 7, 100, VOCAB_MAX };
    static const int64_t top_ks[] = { -1, 2, 3, 50, 1000, VOCAB_MAX + 1 };
    static const double top_ps[] = { 1, 1e-9, 0.1, 0.5, 0.9, 0.999999 };
    static const double min_ps[] = { 0, 0.01, 0.3, 1 };
    static float logits[VOCAB_MAX];

    (void)state;
    for (size_t size = 0; size < COUNT(sizes); size++) {
        struct engine__sampler sampler = new_sampler(sizes[size]);
        for (int kind = 0; kind < 5; kind++) {
            const uint32_t best = make_logits(kind, 100 + size, sizes[size], logits);
            for (size_t i = 0; i < COUNT(top_ks) * COUNT(top_ps) * COUNT(min_ps); i++) {
                struct sampling_params params = default_params();

                params.top_k = top_ks[i % COUNT(top_ks)];
                params.top_p = top_ps[i / COUNT(top_ks) % COUNT(top_ps)];
                params.min_p = min_ps[i / COUNT(top_ks) / COUNT(top_ps)];
                params.temperature = i % 2 == 0 ? 1 : 0.7;
                check_kept(&sampler, logits, best, &params);
            }
        }
        engine__sampler_deinit(&sampler);
    }
}

/* -- draws ------------------------------------------------------------------------------------- */

/* The statistic's mean is `degrees`, its standard deviation sqrt(2 * degrees); at five of these a
 * right sampler would fail one seed in some ten thousand, and these seeds pass. */
static void check_draws(const struct sampling_params *params, uint64_t seed)
{
    enum { VOCAB = 20, DRAWS = 40000 };
    struct engine__sampler sampler = new_sampler(VOCAB);
    uint32_t drawn[VOCAB] = { 0 };
    float logits[VOCAB];
    double expected[VOCAB], total, statistic = 0, degrees = -1;
    const uint32_t best = make_logits(0, seed, VOCAB, logits);

    total = engine__weigh(&sampler, params, logits, best);
    for (size_t i = 0; i < VOCAB; i++)
        expected[i] = (double)sampler.weights[i] / total * DRAWS;
    for (uint64_t i = 0; i < DRAWS; i++) {
        float copy[VOCAB];
        int32_t id;

        memcpy(copy, logits, sizeof(copy));
        id = engine__sample(&sampler, params, &nothing_seen, seed, i, copy);
        assert_in_range(id, 0, VOCAB - 1);
        drawn[id]++;
    }
    for (size_t i = 0; i < VOCAB; i++) {
        if (expected[i] == 0) {
            assert_int_equal(drawn[i], 0);
            continue;
        }
        assert_true(expected[i] > 5); /* what chi-square needs; else choose other logits */
        statistic += (drawn[i] - expected[i]) * (drawn[i] - expected[i]) / expected[i];
        degrees += 1;
    }
    if (fabs(statistic - degrees) > 5 * sqrt(2 * degrees))
        fail_msg("chi-square is %g with %g degrees of freedom", statistic, degrees);
    engine__sampler_deinit(&sampler);
}

static void draws_follow_the_probabilities(void **state)
{
    struct sampling_params params = default_params();

    (void)state;
    check_draws(&params, 1);
    params.temperature = 2.5;
    check_draws(&params, 2);
    params.top_k = 6;
    check_draws(&params, 3);
    params.top_k = -1;
    params.top_p = 0.8;
    check_draws(&params, 4);
    params.top_p = 1;
    params.min_p = 0.2;
    check_draws(&params, 5);
    params.top_p = 0.95;
    params.top_k = 12;
    check_draws(&params, UINT64_MAX);
}

static void a_choice_depends_on_seed_and_index_alone(void **state)
{
    enum { VOCAB = 1000 };
    struct engine__sampler sampler = new_sampler(VOCAB), other = new_sampler(VOCAB);
    const struct sampling_params params = default_params();
    static float logits[VOCAB], copy[VOCAB];
    uint32_t same = 0;

    (void)state;
    make_logits(0, 9, VOCAB, logits);
    for (uint64_t i = 0; i < 200; i++) {
        int32_t first, again, seeded;

        memcpy(copy, logits, sizeof(copy));
        first = engine__sample(&sampler, &params, &nothing_seen, 5, i, copy);
        memcpy(copy, logits, sizeof(copy));
        seeded = engine__sample(&other, &params, &nothing_seen, 6, i, copy);
        memcpy(copy, logits, sizeof(copy));
        again = engine__sample(&other, &params, &nothing_seen, 5, i, copy);
        assert_int_equal(first, again);
        same += first == seeded;
    }
    assert_true(same < 10);
    engine__sampler_deinit(&sampler);
    engine__sampler_deinit(&other);
}

/* -- goldens ----------------------------------------------------------------------------------- */

static double number_of(const json_t *object, const char *key, double otherwise)
{
    const json_t *value = json_object_get(object, key);

    return value == NULL ? otherwise : json_number_value(value);
}

static size_t read_ids(const json_t *array, int32_t *ids, size_t count_max)
{
    const size_t count = json_array_size(array);

    assert_true(count <= count_max);
    for (size_t i = 0; i < count; i++)
        ids[i] = (int32_t)json_integer_value(json_array_get(array, i));
    return count;
}

/* One case: after penalties, temperature and cutting, each id's probability is the reference's. */
static void check_golden(const json_t *logits_json, const json_t *golden, double tolerance)
{
    enum { VOCAB = 64, IDS_MAX = 64 };
    struct engine__sampler sampler = new_sampler(VOCAB);
    const json_t *wanted = json_object_get(golden, "probabilities");
    struct sampling_params params = default_params();
    int32_t prompt[IDS_MAX], output[IDS_MAX];
    float logits[VOCAB];
    uint32_t best = 0;
    size_t prompt_count, output_count;
    struct engine__seen seen;
    double total;
    struct err err;

    assert_int_equal(sampling_params_read(&params, json_object_get(golden, "params"), &err),
                     STATUS_OK);
    for (size_t i = 0; i < VOCAB; i++)
        logits[i] = (float)json_number_value(json_array_get(logits_json, i));
    prompt_count = read_ids(json_object_get(golden, "prompt_ids"), prompt, IDS_MAX);
    output_count = read_ids(json_object_get(golden, "output_ids"), output, IDS_MAX);
    assert_int_equal(engine__seen_init(&seen, &params, prompt, prompt_count, VOCAB, &err),
                     STATUS_OK);
    for (size_t i = 0; i < output_count; i++)
        engine__seen_add(&seen, output[i]);
    engine__penalise(&params, &seen, logits);
    for (uint32_t i = 0; i < VOCAB; i++)
        best = logits[i] > logits[best] ? i : best;
    total = engine__weigh(&sampler, &params, logits, best);
    for (size_t i = 0; i < VOCAB; i++) {
        const double p = (double)sampler.weights[i] / total;
        const double want = json_number_value(json_array_get(wanted, i));
        if (!(fabs(p - want) <= tolerance) || (p == 0) != (want == 0))
            fail_msg("%s: id %zu has probability %.9g, the reference %.9g",
                     json_string_value(json_object_get(golden, "name")), i, p, want);
    }
    engine__seen_deinit(&seen);
    engine__sampler_deinit(&sampler);
}

static void probabilities_are_the_references(void **state)
{
    json_t *golden;
    const json_t *cases;
    struct err err;

    (void)state;
    assert_int_equal(json_read_file("tests/golden/sampling/sampling.json", 1 << 20, &golden, &err),
                     STATUS_OK);
    cases = json_object_get(golden, "cases");
    assert_true(json_array_size(cases) >= 20);
    for (size_t i = 0; i < json_array_size(cases); i++)
        check_golden(json_object_get(golden, "logits"), json_array_get(cases, i),
                     number_of(golden, "tolerance", 0));
    json_decref(golden);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(philox_gives_the_known_answers),
        cmocka_unit_test(random_numbers_are_even_and_differ),
        cmocka_unit_test(greedy_takes_the_lowest_of_the_best),
        cmocka_unit_test(garbage_gives_a_valid_id),
        cmocka_unit_test(logprobs_are_the_softmax),
        cmocka_unit_test(the_kept_are_those_that_sorting_keeps),
        cmocka_unit_test(draws_follow_the_probabilities),
        cmocka_unit_test(a_choice_depends_on_seed_and_index_alone),
        cmocka_unit_test(probabilities_are_the_references),
    };

    return cmocka_run_group_tests_name("engine sampler", tests, NULL, NULL);
}
