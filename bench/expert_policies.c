/* bench/expert_policies.c - how often each policy of the expert cache finds what the router chose.
 *
 * Replays traces of routing through the cache, as decoding one token at a time would: each expert
 * that a layer's router chose is demanded, arrives at once when it is missing, and is let go. No
 * model runs and no bytes move. The bound beside the policies is Belady's: whoever is used again the
 * latest goes, which needs to know the future (Belady 1966, "A study of replacement algorithms for
 * a virtual-storage computer").
 *
 *     make bench && build/bench/expert_policies [TRACE ...]
 *
 * A TRACE is a file with a line for each layer of each token in turn: the layer's index, then the
 * experts chosen. Without one, invented traces are replayed:
 *
 *     zipf     each layer has its own order of popularity, 1 / rank; with probability 0.4 a choice
 *              is one of the token before
 *     router   logits are normal, an expert's with standard deviation exp(0.5 n), n normal: rows of
 *              a random router of unequal lengths; from token to token they keep a correlation
 *     even     the same with rows of equal length
 *     shift    router, but every 64 tokens the lengths are dealt anew: another topic
 *
 * A line per trace and number of slots: trace, slots, slots as a share of all experts, the hit rate
 * of each policy, the bound's. */
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "offload/experts/cache.h"

#define LAYERS 24
#define EXPERTS 64
#define TOP_K 8
#define TOKENS 512
#define EXPERTS_MAX 1024
#define LAYERS_MAX 1024
#define NEVER UINT32_MAX

struct trace {
    const char *name;
    uint32_t layer_count, expert_count;
    uint32_t step_count, steps_capacity;    /* a step: one layer of one token */
    uint32_t *layers, *ends;                /* [step_count]; a step's choices end there */
    uint32_t *choices, choice_count, choices_capacity;
};

static void die(const char *what)
{
    (void)fprintf(stderr, "expert_policies: %s\n", what);
    exit(1);
}

static void *grown(void *array, uint32_t *capacity, uint32_t needed, size_t element_bytes)
{
    if (needed <= *capacity)
        return array;
    *capacity = needed * 2;
    array = realloc(array, *capacity * element_bytes);
    if (array == NULL)
        die("no memory for a trace");
    return array;
}

static void step_begin(struct trace *trace, uint32_t layer)
{
    const uint32_t capacity = trace->steps_capacity;
    uint32_t same = capacity;

    trace->layers = grown(trace->layers, &trace->steps_capacity, trace->step_count + 1, 4);
    trace->ends = grown(trace->ends, &same, trace->step_count + 1, 4);
    trace->layers[trace->step_count] = layer;
    trace->ends[trace->step_count++] = trace->choice_count;
    if (layer >= trace->layer_count)
        trace->layer_count = layer + 1;
}

static void choose(struct trace *trace, uint32_t expert)
{
    trace->choices = grown(trace->choices, &trace->choices_capacity, trace->choice_count + 1, 4);
    trace->choices[trace->choice_count++] = expert;
    trace->ends[trace->step_count - 1] = trace->choice_count;
    if (expert >= trace->expert_count)
        trace->expert_count = expert + 1;
}

static void trace_free(struct trace *trace)
{
    free(trace->layers);
    free(trace->ends);
    free(trace->choices);
}

static uint64_t random_state = 88172645463325252u;

static double uniform(void)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return (double)(random_state >> 11) * 0x1p-53;
}

static double normal(void)
{
    return sqrt(-2 * log(1 - uniform())) * cos(6.283185307179586 * uniform());
}

static void invent_zipf(struct trace *trace)
{
    static uint32_t order[LAYERS][EXPERTS], before[LAYERS][TOP_K];
    double sum = 0;

    for (uint32_t e = 0; e < EXPERTS; e++)
        sum += 1.0 / (e + 1);
    for (uint32_t l = 0; l < LAYERS; l++) {
        for (uint32_t e = 0; e < EXPERTS; e++) {
            const uint32_t other = (uint32_t)(uniform() * (e + 1));
            order[l][e] = order[l][other];
            order[l][other] = e;
        }
    }
    for (uint32_t t = 0; t < TOKENS; t++) {
        for (uint32_t l = 0; l < LAYERS; l++) {
            bool taken[EXPERTS] = { false };
            uint32_t chosen[TOP_K];

            step_begin(trace, l);
            for (uint32_t j = 0; j < TOP_K;) {
                double at = uniform() * sum;
                uint32_t rank = 0, e;

                while (rank + 1 < EXPERTS && (at -= 1.0 / (rank + 1)) > 0)
                    rank++;
                e = t > 0 && uniform() < 0.4 ? before[l][(uint32_t)(uniform() * TOP_K)]
                                             : order[l][rank];
                if (taken[e])
                    continue;
                taken[e] = true;
                chosen[j++] = e;
                choose(trace, e);
            }
            memcpy(before[l], chosen, sizeof(chosen));
        }
    }
}

static void invent_router(struct trace *trace, double skew, double correlation, uint32_t shift)
{
    static double length[LAYERS][EXPERTS], logit[LAYERS][EXPERTS];
    const double fresh = sqrt(1 - correlation * correlation);

    for (uint32_t t = 0; t < TOKENS; t++) {
        for (uint32_t l = 0; l < LAYERS; l++) {
            bool taken[EXPERTS] = { false };

            step_begin(trace, l);
            for (uint32_t e = 0; e < EXPERTS; e++) {
                if (t == 0 || (shift > 0 && t % shift == 0))
                    length[l][e] = exp(skew * normal());
                logit[l][e] = t == 0 ? normal() : correlation * logit[l][e] + fresh * normal();
            }
            for (uint32_t j = 0; j < TOP_K; j++) {
                uint32_t best = EXPERTS;

                for (uint32_t e = 0; e < EXPERTS; e++)
                    if (!taken[e] && (best == EXPERTS ||
                                      logit[l][e] * length[l][e] > logit[l][best] * length[l][best]))
                        best = e;
                taken[best] = true;
                choose(trace, best);
            }
        }
    }
}

static void read_trace(struct trace *trace, const char *path)
{
    static char line[1 << 16];
    FILE *file = fopen(path, "r");

    if (file == NULL)
        die(strerror(errno));
    while (fgets(line, sizeof(line), file) != NULL) {
        char *at = line, *end;
        unsigned long number = strtoul(at, &end, 10);

        if (end == at)
            continue;
        if (number >= LAYERS_MAX)
            die("a layer's index is out of range");
        step_begin(trace, (uint32_t)number);
        for (at = end; number = strtoul(at, &end, 10), end != at; at = end) {
            if (number >= EXPERTS_MAX)
                die("an expert's index is out of range");
            choose(trace, (uint32_t)number);
        }
    }
    (void)fclose(file);
    if (trace->choice_count == 0)
        die("the trace is empty");
}

static double hit_rate(const struct trace *trace, uint32_t slot_count, enum expert_policy policy)
{
    const struct expert_cache_desc desc = {
        .layer_count = trace->layer_count, .expert_count = trace->expert_count,
        .slot_count = slot_count, .reserve_count = 1, .stream_count = 1, .policy = policy,
    };
    struct expert_cache *cache;
    uint32_t hits = 0, at = 0;
    struct err err;

    if (expert_cache_create(&desc, &cache, &err) != STATUS_OK)
        die(err.message);
    for (uint32_t step = 0; step < trace->step_count; step++) {
        expert_cache_layer_begin(cache, trace->layers[step]);
        for (; at < trace->ends[step]; at++) {
            const struct expert_place place = expert_cache_demand(cache, trace->choices[at]);

            hits += place.answer == EXPERT_HIT;
            if (place.answer == EXPERT_MISS)
                expert_cache_arrived(cache, place.slot);
            expert_cache_unpin(cache, place.slot);
        }
    }
    expert_cache_destroy(cache);
    return (double)hits / trace->choice_count;
}

/* The best that any policy could do. */
static double hit_rate_bound(const struct trace *trace, uint32_t slot_count)
{
    const uint32_t key_count = trace->layer_count * trace->expert_count;
    uint32_t *keys = calloc(trace->choice_count, 4), *next = calloc(trace->choice_count, 4);
    uint32_t *seen = malloc(key_count * 4u), *slots = calloc(slot_count, 4);
    uint32_t *next_of = malloc(key_count * 4u);
    bool *there = calloc(key_count, sizeof(*there));
    uint32_t used = 0, hits = 0;

    if (keys == NULL || next == NULL || seen == NULL || slots == NULL || next_of == NULL ||
        there == NULL)
        die("no memory");
    for (uint32_t step = 0, at = 0; step < trace->step_count; step++)
        for (; at < trace->ends[step]; at++)
            keys[at] = trace->layers[step] * trace->expert_count + trace->choices[at];
    memset(seen, 0xff, key_count * 4u);
    for (uint32_t at = trace->choice_count; at-- > 0;) {
        next[at] = seen[keys[at]];
        seen[keys[at]] = at;
    }
    for (uint32_t at = 0; at < trace->choice_count; at++) {
        uint32_t slot = 0;

        next_of[keys[at]] = next[at];
        hits += there[keys[at]];
        if (there[keys[at]])
            continue;
        if (used < slot_count) {
            slot = used++;
        } else {
            for (uint32_t i = 1; i < slot_count; i++)
                if (next_of[slots[i]] > next_of[slots[slot]]) /* NEVER is the latest */
                    slot = i;
            there[slots[slot]] = false;
        }
        slots[slot] = keys[at];
        there[keys[at]] = true;
    }
    free(keys);
    free(next);
    free(seen);
    free(slots);
    free(next_of);
    free(there);
    return (double)hits / trace->choice_count;
}

static void replay(const struct trace *trace)
{
    static const uint32_t percents[] = { 5, 10, 20, 35, 50, 75 };

    for (size_t i = 0; i < sizeof(percents) / sizeof(percents[0]); i++) {
        const uint32_t all = trace->layer_count * trace->expert_count;
        const uint32_t slots = all * percents[i] / 100 > 0 ? all * percents[i] / 100 : 1;

        (void)printf("%s,%u,%u%%", trace->name, slots, percents[i]);
        for (int policy = 0; policy < EXPERT_POLICY_COUNT; policy++)
            (void)printf(",%.3f", hit_rate(trace, slots, (enum expert_policy)policy));
        (void)printf(",%.3f\n", hit_rate_bound(trace, slots));
        (void)fflush(stdout);
    }
}

int main(int argc, char **argv)
{
    (void)printf("trace,slots,share");
    for (int policy = 0; policy < EXPERT_POLICY_COUNT; policy++)
        (void)printf(",%s", expert_policy_name((enum expert_policy)policy));
    (void)printf(",bound\n");
    for (int i = 1; i < argc; i++) {
        struct trace trace = { .name = argv[i] };

        read_trace(&trace, argv[i]);
        replay(&trace);
        trace_free(&trace);
    }
    for (int kind = 0; argc == 1 && kind < 5; kind++) {
        static const char *const names[] = { "zipf", "router", "router0.9", "even", "shift" };
        struct trace trace = { .name = names[kind] };

        switch (kind) {
        case 0: invent_zipf(&trace); break;
        case 1: invent_router(&trace, 0.5, 0, 0); break;
        case 2: invent_router(&trace, 0.5, 0.9, 0); break;
        case 3: invent_router(&trace, 0, 0.5, 0); break;
        default: invent_router(&trace, 0.5, 0.5, 64); break;
        }
        replay(&trace);
        trace_free(&trace);
    }
    return 0;
}
