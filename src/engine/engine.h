/* engine/engine.h - serves requests on one model: batches, pages, samples.
 *
 * The engine owns the model and one thread that runs it step by step. A step is made of every
 * running request's next token and chunks of prompts, up to a limit of rows (continuous batching,
 * Orca, OSDI 2022; chunked prefill, Sarathi-Serve, arXiv 2403.02310). Keys and values lie in pages
 * (vLLM, arXiv 2309.06180). A request is admitted when pages for its prompt and all it may
 * generate are free, so what was started can always be finished. In layers with a sliding window it
 * takes no more than the window and the largest step reach, and uses them in turn.
 *
 * Answers do not depend on what else is in the batch or how a prompt was cut (charter, invariant
 * 1): logits are the device's promise, and each request samples from a random stream of its own
 * that depends on its seed and the position alone.
 *
 * Threads: any thread may call these functions. Callbacks come from the engine's thread, one at a
 * time, must not block and must not call the engine, but for engine_cancel. */
#ifndef LIGHTER_ENGINE_ENGINE_H
#define LIGHTER_ENGINE_ENGINE_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/log.h"
#include "base/status.h"
#include "base/trace.h"
#include "model/model.h"
#include "text/tokenizer/tokenizer.h"

struct engine;

#define ENGINE_STOP_STRINGS_MAX 16
#define ENGINE_STOP_IDS_MAX 64
#define ENGINE_STOP_STRING_BYTES_MAX 1024
#define ENGINE_TOP_LOGPROBS_MAX 20
#define SAMPLING_NEW_TOKENS_ALL INT64_MAX /* as many as the context and the KV cache allow */

/* SGLang's names and defaults. */
struct sampling_params {
    int64_t max_new_tokens;      /* 128; >= 0; clamped to what the context has left */
    int64_t min_new_tokens;      /* 0; no stop id is chosen before; at most max_new_tokens */
    double temperature;          /* 1.0; 0: greedy */
    double top_p;                /* 1.0; (0, 1] */
    int64_t top_k;               /* -1: all */
    double min_p;                /* 0.0; [0, 1] */
    double frequency_penalty;    /* 0.0; [-2, 2] */
    double presence_penalty;     /* 0.0; [-2, 2] */
    double repetition_penalty;   /* 1.0; (0, 2] */
    bool ignore_eos;
    bool skip_special_tokens;    /* true */
    bool no_stop_trim;           /* keep the stop string in the text */
    bool wants_logprobs;         /* false; not among SGLang's: a caller's */
    uint32_t top_logprob_count;  /* 0; likeliest ids told with each; ENGINE_TOP_LOGPROBS_MAX */
    bool has_seed;
    uint64_t seed;
    const char *stop[ENGINE_STOP_STRINGS_MAX]; /* borrowed during submit, then copied */
    size_t stop_count;
    int32_t stop_ids[ENGINE_STOP_IDS_MAX];
    size_t stop_id_count;
};
void sampling_params_init(struct sampling_params *params);
/* Reads SGLang's "sampling_params" object over what is there: unknown keys and wrong types are
 * refused by name. json may be NULL. Strings in params are borrowed from json. */
enum status sampling_params_read(struct sampling_params *params, const json_t *json,
                                 struct err *err);
/* Checks ranges; names the field, the number and what it may be. */
enum status sampling_params_check(const struct sampling_params *params, struct err *err);

enum finish_reason {
    FINISH_NONE,     /* still running */
    FINISH_LENGTH,   /* max_new_tokens or the context's end */
    FINISH_EOS,      /* a stop token id; matched_id says which */
    FINISH_STOP,     /* a stop string; matched_text says which */
    FINISH_ABORT,    /* canceled, or the engine failed: `message` says why */
};
const char *finish_reason_name(enum finish_reason reason); /* SGLang's: "length", "stop", "abort" */

/* How likely a generated id was, and which were the likeliest: natural logarithms of the model's
 * own probabilities, before penalties, temperature and cuts. */
struct token_logprobs {
    float logprob;
    uint32_t top_count;
    struct {
        int32_t id;
        float logprob;
    } top[ENGINE_TOP_LOGPROBS_MAX];
};

/* One piece of an answer. Everything is borrowed during the callback. */
struct engine_output {
    const char *text;            /* new text since the last piece, never a part of a character */
    size_t text_size;
    const int32_t *ids;          /* new ids since the last piece */
    size_t id_count;
    const struct token_logprobs *logprobs; /* [id_count]; NULL: not asked for */
    uint64_t prompt_token_count, completion_token_count;
    enum finish_reason finish;   /* not FINISH_NONE: this is the last piece */
    enum status status;          /* of an abort: STATUS_CANCELED, STATUS_DEVICE, ... */
    const char *message;         /* of an abort; "" elsewhere */
    int32_t matched_id;          /* of FINISH_EOS; -1 elsewhere */
    const char *matched_text;    /* of FINISH_STOP; NULL elsewhere */
    double queue_s, e2e_s;       /* waited before the first step; since submit */
    bool garbage;                /* the weights have no contents (meta mode) */
    const char *weight_version;  /* that the last token was computed with; NULL: not known */
    uint32_t dp_rank;            /* which of a server's engines it was; 0 from the engine itself */
};

struct engine_request {
    const int32_t *prompt_ids;   /* copied by submit; 1 or more */
    size_t prompt_count;
    const struct sampling_params *params; /* copied */
    void (*on_output)(void *user, const struct engine_output *output);
    void *user;
    bool token_by_token;         /* a callback per token; else only the last, with everything */
};

struct engine_options {
    uint32_t step_row_count_max;     /* rows in one step; 0: as many as the model takes */
    uint32_t prefill_chunk;          /* prompt tokens of one request in one step; 0: no other limit
                                        than the step's rows */
    uint32_t running_count_max;      /* requests in one step, at most its rows; 0: as many as the
                                        model takes */
    uint32_t queue_count_max;        /* 1024; requests waiting; more are STATUS_BUSY */
    const char *weight_version;      /* a label; NULL: "default". Copied */
    bool has_eos;                    /* answers end at these ids, and not at the model's */
    int32_t eos_ids[MODEL_EOS_MAX];
    uint32_t eos_count;
    bool has_random_seed;            /* requests without a seed get one that follows from */
    uint64_t random_seed;            /* this and their number; else the system's random numbers */
    struct trace *trace;             /* borrowed until engine_destroy; NULL: nothing is traced */
};
void engine_options_init(struct engine_options *options);

/* Starts the engine's thread. tokenizer may be NULL (no text, no stop strings). model and
 * tokenizer are borrowed until engine_destroy. */
enum status engine_create(struct model *model, const struct tokenizer *tokenizer,
                          const struct engine_options *options, const struct log *log,
                          struct engine **engine_out, struct err *err);
/* Cancels what runs, then stops the thread. */
void engine_destroy(struct engine *engine);

/* Queues a request. On STATUS_OK on_output will be called, the last time with a finish reason,
 * also when it is canceled or fails; *id_out, which names it for engine_cancel, is written before
 * that. STATUS_BAD_INPUT, with the numbers: bad params, no prompt, ids outside the vocabulary, a
 * prompt as long as the context or longer, or more tokens than the whole KV cache has places for.
 * max_new_tokens is clamped to what the context has left, as in SGLang. A full queue is
 * STATUS_BUSY, an engine that drains STATUS_UNAVAILABLE. */
enum status engine_submit(struct engine *engine, const struct engine_request *request,
                          uint64_t *id_out, struct err *err);
/* Pages of the KV cache, in the layers that keep all positions and in those with a window. */
struct engine_pages {
    uint32_t all, window;
};
/* What engine_submit would say of the request itself, without an engine: for whoever passes
 * requests on to one in another process. *pages_out: what it will take of the KV cache. */
enum status engine_request_check(const struct engine_request *request,
                                 const struct model_info *info, struct engine_pages *pages_out,
                                 struct err *err);
/* The seed of the number-th request (from 1) of an engine with --random-seed `random_seed`. */
uint64_t engine_request_seed(uint64_t random_seed, uint64_t number);
/* Ends a request soon, with FINISH_ABORT; nothing when it has ended. */
void engine_cancel(struct engine *engine, uint64_t id);
/* Refuses new requests from now on, waits until those that run or wait are done. */
void engine_drain(struct engine *engine);

/* Logits of one prompt: F32[prompt_count][vocab_size] into logits_out, through the same steps as
 * serving, in chunks of `chunk` rows (0: the engine's). Blocks. */
enum status engine_logits(struct engine *engine, const int32_t *ids, size_t count, uint32_t chunk,
                          float *logits_out, struct err *err);

/* Live update: other weights of the same model while requests run. The checkpoint is opened,
 * checked and read once by the caller's thread; then, between two steps, the weights change places,
 * or, when anything fails, stay. Requests that run meanwhile finish first, while new ones wait; or
 * are paused, keep their KV cache and go on with the new weights; or are aborted first. */
#define ENGINE_VERSION_BYTES_MAX 128
struct engine_update {
    const char *model_path;
    const char *weight_version;  /* NULL: the label stays. Less than ENGINE_VERSION_BYTES_MAX bytes
                                    */
    bool pause;                  /* requests that run are paused; else they finish first */
    bool abort_all;              /* they, and those that wait, are aborted first */
    /* Of an engine that switches together with others: called at each of offload.h's steps, from
     * OFFLOAD_UPDATE_PREPARED to _ENDED, by the caller's thread or the engine's, with how this one
     * fares and how many requests it has paused. Waits for the others; returns what all agree on.
     * Weights must then be such that an engine that starts with them is the very same, dtypes too.
     * NULL: it is alone. */
    enum status (*meet)(void *user, enum offload_update_step step, enum status own,
                        uint32_t paused_count, struct err *err);
    void *user;
};
/* *paused_count_out (may be NULL): requests that were paused. Blocks. STATUS_BUSY while another
 * update is under way. */
enum status engine_update(struct engine *engine, const struct engine_update *update,
                          uint32_t *paused_count_out, struct err *err);

/* STATUS_OK while steps can succeed; else why none can any more: the sentence of the step that
 * found out. A live update may help. */
enum status engine_health(struct engine *engine, struct err *err);

/* A JSON object that the caller owns:
 *   weight_version                                      of the weights that serve now
 *   running, running_max, waiting, waiting_max          requests, now and at most
 *   submitted, finished, aborted, refused_busy          requests since the start or the last reset
 *   steps, rows, step_s, failed_steps, last_failure     what the model ran (absent: never failed)
 *   stopped                                             engine_health's sentence (absent: goes on)
 *   prompt_tokens, completion_tokens
 *   kv: {dtype, page_size, pages, pages_free, bytes_per_token, window_pages, window_pages_free}
 *                                                       the last two of the layers with a window
 *   offload, manifest                                   as in offload.h */
json_t *engine_report_json(struct engine *engine);
void engine_report_reset(struct engine *engine);
const struct model_info *engine_model_info(const struct engine *engine);

#endif
