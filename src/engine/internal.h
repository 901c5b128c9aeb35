/* engine/internal.h - what the files of engine/ share: pages, schedule, sampler, output, request.
 *
 * Everything here belongs to the engine's thread, but for what says otherwise. */
#ifndef LIGHTER_ENGINE_INTERNAL_H
#define LIGHTER_ENGINE_INTERNAL_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/status.h"
#include "engine/engine.h"
#include "text/tokenizer/tokenizer.h"

/* -- pages.c: which pages of the KV cache are free ------------------------------------------- */

struct engine__pages {
    int32_t *free_ids;    /* [page_count], the first free_count are free; the last is taken next */
    bool *taken;          /* [page_count], to catch a page that is given back twice */
    uint32_t page_count, free_count;
};
enum status engine__pages_init(struct engine__pages *pages, uint32_t page_count, struct err *err);
void engine__pages_deinit(struct engine__pages *pages);
/* Takes `count` pages, or none: false when fewer are free. */
bool engine__pages_take(struct engine__pages *pages, uint32_t count, int32_t *ids_out);
void engine__pages_give(struct engine__pages *pages, const int32_t *ids, uint32_t count);

/* The pages of both kinds of layers. */
struct engine__cache {
    struct engine__pages all, window; /* window.page_count 0: no layer has one */
};
/* What a sequence holds of it. */
struct engine__places {
    struct engine_pages count;
    int32_t *all;             /* [count.all], its own while is_taken, as are ... */
    int32_t *window;          /* ... [count.window], used in turn */
    bool is_taken;
};
enum status engine__cache_init(struct engine__cache *cache, const struct engine_pages *count,
                               struct err *err);
void engine__cache_deinit(struct engine__cache *cache);
struct engine_pages engine__cache_free(const struct engine__cache *cache);
bool engine__pages_fit(const struct engine_pages *count, const struct engine_pages *room);
/* Memory for the lists only. */
enum status engine__places_init(struct engine__places *places, const struct engine_pages *count,
                                struct err *err);
void engine__places_deinit(struct engine__places *places);
/* The pages must be free. */
void engine__places_take(struct engine__places *places, struct engine__cache *cache);
/* Does nothing when they are not taken. */
void engine__places_give(struct engine__places *places, struct engine__cache *cache);

/* -- schedule.c: who gets rows in the next step ----------------------------------------------- */

struct engine__turn {
    uint32_t prompt_left; /* in: prompt tokens not yet computed; 0: the request is decoding */
    uint32_t row_count;   /* out: rows in this step */
};
/* Shares row_count_max rows among the requests, which stand in the order of their admission and are
 * at most row_count_max. Each decoding one gets one row; then prompts in order, each up to
 * prefill_chunk. Returns the rows given: at least 1 when there is a request. */
uint32_t engine__schedule(struct engine__turn *turns, uint32_t count, uint32_t row_count_max,
                          uint32_t prefill_chunk);

/* -- sampler.c: from logits to the next id ---------------------------------------------------- */

/* The ids that penalties look at: those of the prompt and those generated, with how often. */
struct engine__seen {
    struct engine__seen_id {
        int32_t id;              /* -1: an empty place */
        uint32_t output_count;   /* how often it was generated */
    } *table;                    /* [mask + 1], open addressing; NULL: no penalties */
    uint32_t mask, count, count_max;
};
/* Room for id_count_max distinct ids, filled with the prompt's when `params` penalise those. Takes
 * no memory, and engine__seen_add does nothing, when they have no penalties at all. */
enum status engine__seen_init(struct engine__seen *seen, const struct sampling_params *params,
                              const int32_t *prompt_ids, size_t prompt_count,
                              uint32_t id_count_max, struct err *err);
void engine__seen_deinit(struct engine__seen *seen);
/* Counts a generated id. */
void engine__seen_add(struct engine__seen *seen, int32_t id);

struct engine__sampler {
    float *weights;         /* [vocab_size], exp((logit - largest) / temperature) */
    float *untouched;       /* [vocab_size], logits as they came, for log probabilities */
    uint32_t vocab_size;
};
enum status engine__sampler_init(struct engine__sampler *sampler, uint32_t vocab_size,
                                 struct err *err);
void engine__sampler_deinit(struct engine__sampler *sampler);
/* Chooses an id. logits[vocab_size] are overwritten. `index` counts the request's generated ids:
 * the choice depends on logits, params, seen, seed and index, and on nothing else. */
int32_t engine__sample(struct engine__sampler *sampler, const struct sampling_params *params,
                       const struct engine__seen *seen, uint64_t seed, uint64_t index,
                       float *logits);
/* What the logits say of an id, and of the top_count likeliest. */
void engine__logprobs(const float *logits, uint32_t count, int32_t id, uint32_t top_count,
                      struct token_logprobs *out);
/* The steps of engine__sample. The penalties, in place: */
void engine__penalise(const struct sampling_params *params, const struct engine__seen *seen,
                      float *logits);
/* sampler->weights: what the ids' chances are proportional to, 0 for those that are cut off; their
 * sum is returned. best_id: the id of the largest logit, which is above minus infinity. */
double engine__weigh(struct engine__sampler *sampler, const struct sampling_params *params,
                     const float *logits, uint32_t best_id);
/* The index-th number of the stream of `seed`, evenly from [0, 1). */
double engine__random(uint64_t seed, uint64_t index);
/* The raw generator: Philox4x32-10. */
void engine__philox(const uint32_t counter[4], const uint32_t key[2], uint32_t out[4]);

/* -- output.c: from ids to text, up to a stop string ------------------------------------------ */

struct engine__stop {
    const char *text;       /* in engine__output.stop_memory, NUL-terminated */
    const uint16_t *border; /* [size]: of text[0..i], the longest proper prefix that is a suffix */
    uint32_t size;
    uint32_t matched;       /* bytes of `text` that end the text so far */
};

struct engine__output {
    struct tokenizer_stream *stream;   /* NULL: ids only */
    struct buf pending;     /* text that went through the stops; ends with what is held back */
    struct buf text;        /* text that may be told */
    struct engine__stop stops[ENGINE_STOP_STRINGS_MAX];
    size_t stop_count;
    void *stop_memory;
    int32_t id_limit;       /* of the tokenizer: ids at or above it have no text */
    bool keep_stop;         /* no_stop_trim */
    bool finished;
};
/* Copies the stop strings. tokenizer may be NULL when there are none. Needs no init
 * after failing. */
enum status engine__output_init(struct engine__output *output,
                                const struct sampling_params *params,
                                const struct tokenizer *tokenizer, struct err *err);
void engine__output_deinit(struct engine__output *output);
/* Takes the memory that pushing needs, so that a push seldom does. */
enum status engine__output_start(struct engine__output *output,
                                 const struct sampling_params *params,
                                 const struct tokenizer *tokenizer, bool token_by_token,
                                 struct err *err);
/* Decodes one id, appends to output->text what can't be the beginning of a stop string any more.
 * *stop_out: the stop string that is complete now, NULL: none. After one, nothing more
 * is pushed. */
enum status engine__output_push(struct engine__output *output, int32_t id, const char **stop_out,
                                struct err *err);
/* No more ids come: appends what was held back. Does nothing the second time. */
enum status engine__output_finish(struct engine__output *output, const char **stop_out,
                                  struct err *err);

/* -- request.c: one request from submit to its last piece -------------------------------------- */

/*     QUEUED --request_start--> RUNNING --finish set--> told for the last time, destroyed
 *        +------------------finish set-----------------------^                              */
struct engine__request {
    uint64_t id;
    struct engine__request *next;      /* in the queue; guarded by the engine's lock */
    bool canceled;                     /* guarded by the engine's lock */

    /* Set by create. */
    struct sampling_params params;     /* stop strings point into `output` */
    int32_t *prompt_ids;
    uint32_t prompt_count;
    uint32_t new_count_max;            /* max_new_tokens inside the context */
    struct engine_pages page_count;    /* pages it takes from start to end */
    uint64_t seed;
    void (*on_output)(void *user, const struct engine_output *output);
    void *user;
    bool token_by_token;
    uint64_t submit_ns;

    /* Set by start; owner from here on: the engine's thread. */
    uint64_t start_ns;                 /* 0: never started */
    struct engine__places places;
    int32_t *ids;                      /* [new_count_max], generated */
    struct token_logprobs *logprobs;   /* [logprob_capacity], of ids; NULL: not asked for */
    size_t logprob_capacity;
    uint32_t id_count, told_count;
    uint32_t cached_count;             /* tokens whose keys and values are in the cache */
    struct engine__seen seen;
    struct engine__output output;

    enum finish_reason finish;
    enum status status;
    char message[sizeof(((struct err *)0)->message)];
    int32_t matched_id;
    const char *matched_text;
};

/* What a model and its cache allow. */
struct engine__limits {
    uint32_t context_length, vocab_size;
    uint32_t page_size;
    struct engine_pages page_count;     /* of the cache */
    uint32_t window_pages_each;         /* a sequence takes at most so many of page_count.window */
    int32_t eos_ids[MODEL_EOS_MAX + 1]; /* the model's, and the tokenizer's */
    uint32_t eos_count;
};

/* Checks and copies; takes nothing from the cache. */
enum status engine__request_create(const struct engine_request *desc,
                                   const struct engine__limits *limits,
                                   const struct tokenizer *tokenizer,
                                   struct engine__request **request_out, struct err *err);
void engine__request_destroy(struct engine__request *request);
/* Takes all memory that running needs, so that a token seldom allocates, and its pages, which must
 * be free. */
enum status engine__request_start(struct engine__request *request,
                                  const struct engine__limits *limits,
                                  const struct tokenizer *tokenizer, struct engine__cache *cache,
                                  struct err *err);
/* The pages of a sequence of so many tokens. */
struct engine_pages engine__pages_for(const struct engine__limits *limits, uint64_t token_count);
/* Samples from the logits (overwritten) and takes the id in; sets `finish` when it was the last. */
void engine__request_advance(struct engine__request *request, struct engine__sampler *sampler,
                             const struct engine__limits *limits, float *logits);
/* Ends it without an id: FINISH_LENGTH. */
void engine__request_finish_length(struct engine__request *request);
void engine__request_abort(struct engine__request *request, enum status status,
                           const char *message);
/* Calls on_output with what is new, if that is due: after each id, or when finish is set. */
struct engine__weights {
    bool garbage;
    const char *version;
};
void engine__request_tell(struct engine__request *request, const struct engine__weights *weights);

/* -- batch.c: the arrays of one step ----------------------------------------------------------- */

enum engine__wanted { ENGINE__WANTED_NONE, ENGINE__WANTED_LAST, ENGINE__WANTED_ALL };

struct engine__batch {
    struct model_step step;   /* points into the arrays */
    uint32_t row_count_max, sequence_count_max, page_count_max, page_size;
    int32_t *token_ids, *positions, *sequences, *slots, *logits_rows; /* [row_count_max] */
    int32_t *pages;           /* [sequence_count_max][page_count_max] at most */
    int32_t *window_slots, *window_pages; /* the same of the layers with a window, if there are */
};
/* page_count_max: pages of one sequence. */
enum status engine__batch_init(struct engine__batch *batch, uint32_t row_count_max,
                               uint32_t sequence_count_max, uint32_t page_count_max,
                               uint32_t page_size, bool has_windows, struct err *err);
void engine__batch_deinit(struct engine__batch *batch);
/* Empties the batch. page_count: the most pages that a sequence of this step has. */
void engine__batch_begin(struct engine__batch *batch, uint32_t page_count);
/* Adds a sequence: ids[count] at the positions from `position`, its keys and values in `places`. */
void engine__batch_add(struct engine__batch *batch, const struct engine__places *places,
                       uint32_t position, const int32_t *ids, uint32_t count,
                       enum engine__wanted wanted);

/* -- engine.c and loop.c: the engine, and its thread ------------------------------------------- */

/* Something that the engine's thread does between two steps for a caller who waits. Lives on the
 * caller's stack. */
struct engine__job {
    enum status (*run)(struct engine *engine, struct engine__job *job, struct err *err);
    struct engine_pages page_count; /* that must be free for it */
    bool is_after_running;       /* it waits until nothing runs */
    struct model_update *update; /* of an update, with the next two */
    const struct engine_update *wanted;
    bool has_run;                /* the engine's thread has begun it */
    const int32_t *ids;          /* of a logits job */
    uint32_t count, chunk;
    float *logits_out;
    struct engine__job *next;    /* guarded by the engine's lock, as is what follows */
    bool is_done;
    enum status status;
    struct err err;
};

/* What steps are called in a trace. */
enum engine__trace_name {
    ENGINE__TRACE_PREFILL, /* there is a prompt among the rows */
    ENGINE__TRACE_DECODE,
    ENGINE__TRACE_SAMPLE,
    ENGINE__TRACE_NAME_COUNT
};

struct engine__counters {
    uint64_t steps, rows, prompt_tokens, completion_tokens, step_ns;
    uint64_t submitted, refused_busy, finished, aborted, failed_steps;
};

struct engine {
    /* Set once, before the thread starts. */
    struct model *model;
    const struct model_info *info;
    const struct tokenizer *tokenizer;
    struct engine_options options;
    struct engine__limits limits;
    const struct log *log;
    uint32_t trace_names[ENGINE__TRACE_NAME_COUNT];
    pthread_t thread;
    bool has_thread;

    /* Owner: the engine's thread. */
    struct engine__cache cache;
    struct engine__sampler sampler;
    struct engine__batch batch;
    struct engine__turn *turns;          /* [running_count_max] */
    float *logits;                       /* [running_count_max][vocab_size] */

    /* `running` and running_count are written by the engine's thread with the lock held, so that
     * thread reads them without, and others with it. */
    struct engine__request **running;    /* [running_count_max], in the order of admission */
    uint32_t running_count;

    /* `lock` guards all that follows. It is held for some list steps only: never in a callback, a
     * step or an allocation, and never with another lock. */
    pthread_mutex_t lock;
    pthread_cond_t wake;                 /* the engine's thread: there is something to do */
    pthread_cond_t changed;              /* others: a job is done, or nothing is left */
    struct engine__request *queue_head, *queue_tail;
    uint32_t waiting_count;
    uint64_t waiting_token_count;        /* in their prompts */
    uint32_t live_count;                 /* requests whose last piece has not been told */
    struct engine__job *job_head, *job_tail;
    struct engine_pages pages_free;      /* as of the last step */
    uint64_t last_id;
    struct engine__counters counters;
    struct err last_failure;             /* of a step; read when counters.failed_steps > 0 */
    struct err stopped;                  /* model_health, as of the last step */
    bool draining, stopping;
    bool updating;                       /* an update is under way */
    json_t *manifest;
    char weight_version[ENGINE_VERSION_BYTES_MAX]; /* written by the engine's thread, which reads it
                                                      without the lock */
};

/* The engine's thread. */
void *engine__loop(void *engine);
/* A job: computes the logits of job->ids. */
enum status engine__run_logits(struct engine *engine, struct engine__job *job, struct err *err);
/* A job: commits job->update; job->count: requests that were paused. */
enum status engine__run_update(struct engine *engine, struct engine__job *job, struct err *err);

#endif
