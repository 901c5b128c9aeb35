/* cli/session.h - opens the rooms in their order, and closes them in the reverse one.
 *
 *     tokenizer -> device -> checkpoint -> model -> engine
 *
 * The tokenizer comes first, on its own, so that a text prompt's length is known before the KV
 * cache is sized. */
#ifndef LIGHTER_CLI_SESSION_H
#define LIGHTER_CLI_SESSION_H

#include <stdbool.h>
#include <stdint.h>

#include "base/log.h"
#include "base/progress.h"
#include "base/status.h"
#include "base/trace.h"
#include "checkpoint/checkpoint.h"
#include "cli/options.h"
#include "device/device.h"
#include "engine/engine.h"
#include "model/model.h"
#include "model/predict.h"
#include "text/chat.h"
#include "text/tokenizer/tokenizer.h"

/* Zero it before anything is opened. */
struct cli_session {
    struct chat *chat;           /* NULL: see cli_session_open_chat */
    struct err why_no_chat;
    struct tokenizer *tokenizer; /* NULL: the model has none, or --skip-tokenizer-init */
    struct device *device;
    struct ckpt *ckpt;
    struct model *model;
    struct engine *engine;
    struct trace *trace;         /* NULL: nothing is traced */
    char *cache_dir;             /* NULL: there is none */
    struct cluster *cluster;     /* borrowed, set before the start; NULL: one rank */
    const char *inherited;       /* likewise; as offload_options has it */
    const struct model_info *served; /* borrowed, set before the start: what others serve already
                                        and this is to be the same as; NULL: nothing */
    uint64_t stamp;              /* ckpt_stamp of ckpt. Set before the start: what it has to be; 0:
                                        anything */
    uint64_t charged_bytes;      /* of host memory, for the engine, and what was open
                                  before the model */
    uint64_t host_reserve_bytes; /* of host memory, for the same */
    struct model_rates rates;    /* assumed or measured, when a forecast was made */
    bool bad_usage;              /* what failed was an option's fault, not the checkpoint's */
};

/* What is going to be asked, where that is known: what the options leave open is sized by it. */
struct cli_demand {
    uint32_t sequence_count;     /* requests at once; 0: unknown */
    uint64_t tokens_each;        /* prompt and answer together; 0: unknown */
    uint32_t prompt_tokens;      /* for a forecast; 0: unknown */
    bool forecast;               /* of what moves; auto has one in any case, */
    bool forecast_is_made;       /* unless another rank makes it, or this one did before */
    bool loads_all;              /* before the start returns, so that loading disturbs no step */
    bool plan_only;              /* only device, checkpoint and model are opened, nothing loaded;
                                    with a forecast */
};

/* The tokenizer of a folder or a GGUF file. */
enum status cli_open_tokenizer(const char *path, struct tokenizer **tokenizer_out,
                               struct err *err);
/* The model's chat template, or --chat-template's. Without one, or with a broken one of the
 * model's, session->chat stays NULL and session->why_no_chat says why; what the option names must
 * be fine. After the tokenizer. */
enum status cli_session_open_chat(struct cli_session *session, const struct cli_options *options,
                                  const struct log *log, struct err *err);
/* A model without a tokenizer leaves it NULL, with a warning. */
enum status cli_session_open_tokenizer(struct cli_session *session,
                                       const struct cli_options *options, const struct log *log,
                                       struct err *err);
/* Opens the rest. After a failure cli_session_close is still due. */
enum status cli_session_start(struct cli_session *session, const struct cli_options *options,
                              const struct cli_demand *demand, const struct log *log,
                              const struct progress *progress, struct err *err);
/* Ends the engine and writes what was traced, where something is. Returns `st`, or what went wrong
 * when that is STATUS_OK. */
enum status cli_session_trace_write(struct cli_session *session, const struct cli_options *options,
                                    const struct log *log, enum status st, struct err *err);
/* Ends the engine and gives back what ranks share; cli_session_close frees the rest, once all of
 * the node's ranks have come so far. */
void cli_session_leave(struct cli_session *session);
/* Fine on a half-opened session. */
void cli_session_close(struct cli_session *session);

/* The prompt of --prompt, --prompt-file or --input-ids as ids, appended. */
enum status cli_session_prompt(struct cli_session *session, const struct cli_options *options,
                               struct token_ids *ids_out, struct err *err);

/* Standard input ("-") or a file, at most 64 MiB, appended. */
enum status cli_text_read(const char *path, struct buf *out, struct err *err);

#endif
