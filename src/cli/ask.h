/* cli/ask.h - asks the engine one thing and waits for the answer, piece by piece.
 *
 * The engine's callback stores what comes; the caller's thread takes it out and hands it on, so
 * that whoever is slow to take the answer never holds up the engine. */
#ifndef LIGHTER_CLI_ASK_H
#define LIGHTER_CLI_ASK_H

#include <jansson.h>
#include <signal.h>
#include <stdbool.h>

#include "base/buf.h"
#include "base/status.h"
#include "engine/engine.h"

struct cli_answer {
    struct buf text;
    struct token_ids ids;
    uint64_t prompt_token_count, completion_token_count;
    enum finish_reason finish;
    int32_t matched_id;    /* -1: none */
    char *matched_text;    /* NULL: none */
    double queue_s, e2e_s;
    bool garbage;
};
void cli_answer_deinit(struct cli_answer *answer);

struct cli_ask {
    const int32_t *ids;
    size_t count;
    const struct sampling_params *params;
    /* New text and ids since the last call, on the caller's thread; false cancels the request.
     * NULL: nobody listens. Everything is borrowed during the call. */
    bool (*on_piece)(void *user, const char *text, size_t text_size, const int32_t *ids,
                     size_t id_count);
    void *user;
    const volatile sig_atomic_t *stop; /* looked at now and then: not 0 cancels the request too.
                                          NULL: nothing to look at */
};

/* Blocks until the answer is complete. A canceled one is STATUS_OK with FINISH_ABORT. Any thread;
 * several may ask at once. cli_answer_deinit is due only after STATUS_OK. */
enum status cli_ask(struct engine *engine, const struct cli_ask *ask,
                    struct cli_answer *answer_out, struct err *err);

/* {"type": "stop", "matched": ...}, {"type": "length", "length": N} or {"type": "abort"}; and
 * SGLang's meta_info. The caller owns them. */
json_t *cli_answer_finish_json(const struct cli_answer *answer);
json_t *cli_answer_meta_json(const struct cli_answer *answer);

#endif
