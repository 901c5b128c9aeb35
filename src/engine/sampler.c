/* engine/sampler.c - from logits to the next id.
 *
 * The steps, in this order:
 *
 *   1. repetition_penalty r, for ids of the prompt and of the answer so far: a logit above 0 is
 *      divided by r, another multiplied (Keskar et al. 2019, arXiv 1909.05858, section 4.1; which
 *      ids count is Hugging Face transformers' choice, SGLang takes those of the answer alone).
 *   2. frequency_penalty times how often the answer has the id, and presence_penalty if it has it
 *      at all, are subtracted (OpenAI's API reference; SGLang's penaltylib).
 *   3. temperature: below 1e-6, or with top_k 1, the largest logit is the answer, ties to the
 *      lower id. Else logits are divided by it, and softmax makes them probabilities.
 *   4. Of the ids by falling probability, ties by rising id, these are kept: the first top_k;
 *      those before which at most top_p has been gathered; those with at least min_p times the
 *      largest probability. All three look at the same probabilities, those of step 3, as in
 *      SGLang's top_k_top_p_min_p_sampling_from_probs_torch (layers/sampler.py).
 *   5. One of the kept is drawn by its share, with the random number of (seed, index).
 *
 * A NaN counts as minus infinity; if nothing else is there, the answer is id 0.
 *
 * The kept ids always are a beginning of that order, so they are found without sorting: the bits
 * of a positive float rise with its value, and three passes of a radix selection over 10 or 11 of
 * these bits each, with counts and masses per bucket, find the smallest weight kept and how many
 * of its equals are kept with it. That costs some passes over the vocabulary, however flat the
 * distribution is: of 128 Ki ids 1.0 ms without top_k and top_p, 1.5 to 2.4 ms with them, 0.2 ms
 * greedily (one core of a 2.0 GHz Xeon; a step that makes so many logits reads 128 Ki rows of the
 * output matrix, which takes some tens of milliseconds).
 *
 * Per token: no allocation, no system call, no lock. */
#include "engine/internal.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define GREEDY_TEMPERATURE 1e-6 /* SGLang's _SAMPLING_EPS */
#define EXP_UNDERFLOW (-104.0f) /* expf of less is 0 */

/* -- random numbers ---------------------------------------------------------------------------- */

void engine__philox(const uint32_t counter[4], const uint32_t key[2], uint32_t out[4])
{
    /* Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3", section 3.3, table 2. */
    uint32_t c0 = counter[0], c1 = counter[1], c2 = counter[2], c3 = counter[3];
    uint32_t k0 = key[0], k1 = key[1];

    for (int round = 0; round < 10; round++) {
        const uint64_t a = UINT64_C(0xD2511F53) * c0, b = UINT64_C(0xCD9E8D57) * c2;
        c0 = (uint32_t)(b >> 32) ^ c1 ^ k0;
        c1 = (uint32_t)b;
        c2 = (uint32_t)(a >> 32) ^ c3 ^ k1;
        c3 = (uint32_t)a;
        k0 += UINT32_C(0x9E3779B9);
        k1 += UINT32_C(0xBB67AE85);
    }
    out[0] = c0;
    out[1] = c1;
    out[2] = c2;
    out[3] = c3;
}

double engine__random(uint64_t seed, uint64_t index)
{
    const uint32_t counter[4] = { (uint32_t)index, (uint32_t)(index >> 32), 0, 0 };
    const uint32_t key[2] = { (uint32_t)seed, (uint32_t)(seed >> 32) };
    uint32_t bits[4];

    engine__philox(counter, key, bits);
    return (double)((uint64_t)bits[0] << 21 | bits[1] >> 11) * 0x1p-53;
}

/* -- penalties --------------------------------------------------------------------------------- */

static bool penalises_output(const struct sampling_params *params)
{
    return params->frequency_penalty != 0 || params->presence_penalty != 0;
}

/* The place of `id`, or the empty place where it belongs. The table is at most half full. */
static struct engine__seen_id *seen_find(const struct engine__seen *seen, int32_t id)
{
    uint32_t place = (uint32_t)id * UINT32_C(0x9E3779B1);

    place ^= place >> 15;
    for (;; place++) {
        struct engine__seen_id *entry = &seen->table[place & seen->mask];
        if (entry->id == id || entry->id < 0)
            return entry;
    }
}

static struct engine__seen_id *seen_find_or_add(struct engine__seen *seen, int32_t id)
{
    struct engine__seen_id *entry = seen_find(seen, id);

    if (entry->id < 0) {
        assert(seen->count < seen->count_max);
        entry->id = id;
        seen->count++;
    }
    return entry;
}

enum status engine__seen_init(struct engine__seen *seen, const struct sampling_params *params,
                              const int32_t *prompt_ids, size_t prompt_count,
                              uint32_t id_count_max, struct err *err)
{
    uint32_t size = 16;

    *seen = (struct engine__seen){ 0 };
    if (params->repetition_penalty == 1 && !penalises_output(params))
        return STATUS_OK;
    assert(id_count_max <= INT32_MAX / 4);
    while (size < 2 * id_count_max)
        size *= 2;
    seen->table = malloc(size * sizeof(*seen->table));
    if (seen->table == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for the penalties of %u ids",
                       id_count_max);
    for (uint32_t i = 0; i < size; i++)
        seen->table[i] = (struct engine__seen_id){ .id = -1 };
    seen->mask = size - 1;
    seen->count_max = id_count_max;
    if (params->repetition_penalty != 1)
        for (size_t i = 0; i < prompt_count; i++)
            seen_find_or_add(seen, prompt_ids[i]);
    return STATUS_OK;
}

void engine__seen_deinit(struct engine__seen *seen)
{
    free(seen->table);
    *seen = (struct engine__seen){ 0 };
}

void engine__seen_add(struct engine__seen *seen, int32_t id)
{
    if (seen->table != NULL)
        seen_find_or_add(seen, id)->output_count++;
}

void engine__penalise(const struct sampling_params *params, const struct engine__seen *seen,
                      float *logits)
{
    const float repetition = (float)params->repetition_penalty;

    if (seen->table == NULL)
        return;
    for (uint32_t i = 0; i <= seen->mask; i++) {
        const struct engine__seen_id *entry = &seen->table[i];
        float logit;

        if (entry->id < 0)
            continue;
        logit = logits[entry->id];
        logit = logit > 0 ? logit / repetition : logit * repetition;
        logit -= (float)(params->frequency_penalty * entry->output_count);
        if (entry->output_count > 0)
            logit -= (float)params->presence_penalty;
        logits[entry->id] = logit;
    }
}

/* -- choosing ---------------------------------------------------------------------------------- */

enum status engine__sampler_init(struct engine__sampler *sampler, uint32_t vocab_size,
                                 struct err *err)
{
    assert(vocab_size > 0 && vocab_size <= INT32_MAX);
    *sampler = (struct engine__sampler){ .vocab_size = vocab_size };
    sampler->weights = calloc(vocab_size, sizeof(*sampler->weights));
    sampler->untouched = calloc(vocab_size, sizeof(*sampler->untouched));
    if (sampler->weights == NULL || sampler->untouched == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory to sample from %u ids", vocab_size);
    return STATUS_OK;
}

void engine__sampler_deinit(struct engine__sampler *sampler)
{
    free(sampler->weights);
    free(sampler->untouched);
    *sampler = (struct engine__sampler){ 0 };
}

/* The id of the largest logit, the lowest of equals; 0 when none is above minus infinity. */
static uint32_t argmax(const float *logits, uint32_t count)
{
    float best = -INFINITY;
    uint32_t best_id = 0;

    for (uint32_t i = 0; i < count; i++) {
        if (logits[i] > best) { /* false for NaN */
            best = logits[i];
            best_id = i;
        }
    }
    return best_id;
}

/* weights[i] = exp((logits[i] - best) / temperature): 1 for the best, 0 for NaN. */
static void weigh(const float *logits, uint32_t count, float best, float temperature,
                  float *weights)
{
    for (uint32_t i = 0; i < count; i++) {
        const float x = logits[i] == best ? 0.0f : (logits[i] - best) / temperature;
        weights[i] = x > EXP_UNDERFLOW ? expf(x) : 0.0f; /* false for NaN */
    }
}

static uint32_t float_bits(float value)
{
    uint32_t bits;

    memcpy(&bits, &value, sizeof(bits));
    return bits;
}

/* What is kept: every weight with bits above `bits`, and the first `tie_count` that equal it. */
struct border {
    uint32_t bits;
    uint32_t tie_count;
};

#define BUCKETS 1024 /* a weight is at most 1.0, so its upper 11 bits are at most 0x3F8 */

/* One level of the selection: buckets by `bits >> shift` of the weights whose bits above those are
 * `prefix`. */
struct level {
    uint32_t counts[BUCKETS];
    double masses[BUCKETS];
};

static void count_level(const float *weights, uint32_t count, uint32_t prefix, uint32_t shift,
                        struct level *level)
{
    memset(level, 0, sizeof(*level));
    for (uint32_t i = 0; i < count; i++) {
        const uint32_t bits = float_bits(weights[i]);
        const uint32_t key = bits >> shift;

        if (bits == 0 || key / BUCKETS != prefix)
            continue;
        level->counts[key % BUCKETS]++;
        level->masses[key % BUCKETS] += (double)weights[i];
    }
}

/* How many of `count` equal weights are kept when `taken` ids with mass `taken_mass`
 * come before. */
static uint32_t kept_ties(float weight, uint32_t count, uint32_t taken, double taken_mass,
                          uint32_t top_k, double mass_max)
{
    uint32_t kept = 0;

    while (kept < count && kept < top_k - taken &&
           taken_mass + (double)kept * (double)weight <= mass_max)
        kept++;
    return kept;
}

/* The border that top_k and top_p draw; mass_max is top_p of the whole mass. */
static struct border find_border(const float *weights, uint32_t count, uint32_t top_k,
                                 double mass_max)
{
    static const uint32_t shifts[] = { 20, 10, 0 };
    struct level level;
    uint32_t taken = 0, prefix = 0;
    double taken_mass = 0;
    float weight;

    for (int i = 0; i < 3; i++) {
        uint32_t bucket = BUCKETS;

        count_level(weights, count, prefix, shifts[i], &level);
        while (bucket-- > 0) {
            /* A bucket that passes neither limit is kept whole. */
            if (level.counts[bucket] > top_k - taken ||
                taken_mass + level.masses[bucket] > mass_max)
                break;
            taken += level.counts[bucket];
            taken_mass += level.masses[bucket];
        }
        if (bucket == UINT32_MAX) /* none passes it, so all of this prefix are kept, and no more */
            return (struct border){ .bits = i == 0 ? 1 : prefix << (shifts[i] + 10),
                                    .tie_count = count };
        prefix = prefix * BUCKETS + bucket;
    }
    memcpy(&weight, &prefix, sizeof(weight)); /* by now the bits of one weight */
    return (struct border){ .bits = prefix,
                            .tie_count = kept_ties(weight, level.counts[prefix % BUCKETS], taken,
                                                   taken_mass, top_k, mass_max) };
}

/* Sets to 0 what is not kept. */
static void cut(float *weights, uint32_t count, struct border border, double min_p)
{
    for (uint32_t i = 0; i < count; i++) {
        const uint32_t bits = float_bits(weights[i]);

        if (bits < border.bits || (double)weights[i] < min_p)
            weights[i] = 0;
        else if (bits == border.bits) {
            if (border.tie_count == 0)
                weights[i] = 0;
            else
                border.tie_count--;
        }
    }
}

static double sum(const float *weights, uint32_t count)
{
    double total = 0;

    for (uint32_t i = 0; i < count; i++)
        total += (double)weights[i];
    return total;
}

/* The first id at which the running sum passes `target`; the last with a weight when rounding hides
 * it. */
static uint32_t draw(const float *weights, uint32_t count, double target)
{
    double total = 0;
    uint32_t last = 0;

    for (uint32_t i = 0; i < count; i++) {
        if (weights[i] == 0)
            continue;
        total += (double)weights[i];
        last = i;
        if (total > target)
            break;
    }
    return last;
}

double engine__weigh(struct engine__sampler *sampler, const struct sampling_params *params,
                     const float *logits, uint32_t best_id)
{
    const uint32_t count = sampler->vocab_size;
    const bool limits_k = params->top_k > 0 && params->top_k < (int64_t)count;
    const bool limits_p = params->top_p < 1;
    struct border border = { .bits = 0, .tie_count = count };
    float *weights = sampler->weights;
    double total;

    weigh(logits, count, logits[best_id], (float)params->temperature, weights);
    total = sum(weights, count);
    if (!limits_k && !limits_p && params->min_p == 0)
        return total;
    if (limits_k || limits_p)
        border = find_border(weights, count, limits_k ? (uint32_t)params->top_k : count,
                             limits_p ? params->top_p * total : INFINITY);
    cut(weights, count, border, params->min_p);
    return sum(weights, count);
}

int32_t engine__sample(struct engine__sampler *sampler, const struct sampling_params *params,
                       const struct engine__seen *seen, uint64_t seed, uint64_t index,
                       float *logits)
{
    const uint32_t count = sampler->vocab_size;
    uint32_t best_id;
    double total;

    engine__penalise(params, seen, logits);
    best_id = argmax(logits, count);
    if (params->temperature < GREEDY_TEMPERATURE || params->top_k == 1 ||
        !(logits[best_id] > -INFINITY))
        return (int32_t)best_id;
    total = engine__weigh(sampler, params, logits, best_id);
    return (int32_t)draw(sampler->weights, count, engine__random(seed, index) * total);
}

/* Keeps the likeliest in order; of equal ones the smaller id. */
static void keep_top(struct token_logprobs *out, uint32_t top_count, int32_t id, float logit)
{
    uint32_t at = out->top_count;

    if (at == top_count && (at == 0 || !(logit > out->top[at - 1].logprob)))
        return;
    if (at < top_count)
        out->top_count++;
    else
        at--;
    for (; at > 0 && logit > out->top[at - 1].logprob; at--)
        out->top[at] = out->top[at - 1];
    out->top[at].id = id;
    out->top[at].logprob = logit;
}

void engine__logprobs(const float *logits, uint32_t count, int32_t id, uint32_t top_count,
                      struct token_logprobs *out)
{
    const float best = logits[argmax(logits, count)];
    double total = 0;
    double log_total;

    *out = (struct token_logprobs){ 0 };
    for (uint32_t i = 0; i < count; i++) {
        if (logits[i] > -INFINITY) /* false for NaN */
            total += exp((double)logits[i] - (double)best);
        keep_top(out, top_count, (int32_t)i, logits[i]);
    }
    log_total = (double)best + (total > 0 ? log(total) : 0); /* 0: nothing but garbage */
    out->logprob = (float)((double)logits[id] - log_total);
    for (uint32_t i = 0; i < out->top_count; i++)
        out->top[i].logprob = (float)((double)out->top[i].logprob - log_total);
}
