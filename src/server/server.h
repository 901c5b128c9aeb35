/* server/server.h - HTTP in front of a fleet, in the shapes of SGLang's native interface.
 *
 *     POST /generate           a prompt, or a list of them; whole or as server-sent events
 *     GET  /health             200 while requests can be answered, else 503 and why: the server
 *                              drains, no rank is up, or the device has failed for good
 *     GET  /health_generate    200 after the model has generated one token
 *     GET  /get_model_info     what is served
 *     GET  /get_server_info    how it was started, and the engines' report
 *     GET  /metrics            the same for Prometheus
 *     POST /update_weights_from_disk    other weights of the same model (update.c)
 *     GET  /v1/models          OpenAI's: the one model that is served
 *     POST /v1/completions, /v1/chat/completions    OpenAI's (openai.c)
 *     GET  /                   these lines; for a browser, a page that shows the report live
 *
 * parse.c says what a request may hold. What is wrong with one is answered with 4xx and
 *
 *     {"error": {"message": "one sentence", "type": "bad input", "code": 400}}
 *
 * and below /v1 in OpenAI's shape, {"error": {"message", "type", "param", "code"}}.
 *
 * HTTP itself is GNU libmicrohttpd's: two threads for all connections. A connection whose answer is
 * not there yet is suspended; the engine's callback stores its piece and resumes it. A client that
 * goes away cancels what it asked for, also while it waits.
 *
 * Threads: any one may call these functions, one at a time. */
#ifndef LIGHTER_SERVER_SERVER_H
#define LIGHTER_SERVER_SERVER_H

#include <jansson.h>
#include <stddef.h>
#include <stdint.h>

#include "base/log.h"
#include "base/status.h"
#include "fleet/fleet.h"
#include "text/chat.h"
#include "text/tokenizer/tokenizer.h"

struct server;

struct server_options {
    const char *host;               /* "127.0.0.1"; a name or an IPv4 or IPv6 address. Copied */
    uint16_t port;                  /* 30000, SGLang's; 0: any free one, see server_port */
    const char *model_path;         /* as given to --model. Copied */
    const char *tokenizer_path;     /* NULL: model_path. Copied */
    const char *weight_version;     /* what /get_model_info calls the weights until an update says
                                       otherwise; NULL: "default". Copied */
    const char *served_model_name;  /* NULL: model_path. Copied */
    const struct chat *chat;        /* NULL: no conversations. Borrowed until server_destroy */
    const char *why_no_chat;        /* what is said then. Copied */
    const json_t *launch;           /* an object: the launch options and the version, shown by
                                       /get_server_info. Copied; NULL: none */
    size_t body_bytes_max;          /* 8 MiB; a longer body is refused with 413 */
    uint32_t connection_count_max;  /* 256; more are answered 503 */
    uint32_t prompt_count_max;      /* 256; prompts in one request */
    uint32_t idle_s_max;            /* 30; a client that neither sends nor takes a byte for so long,
                                       while it is its turn, is cut off */
    uint32_t request_s_max;         /* 60; past idle_s_max, for a request to arrive whole */
};
void server_options_init(struct server_options *options);

/* Listens, logs "listening on http://HOST:PORT", and serves. STATUS_UNAVAILABLE when the address
 * can't be had. fleet and tokenizer are borrowed until server_destroy; tokenizer may be NULL: then
 * only input_ids are taken and answers have no text. The caller owns *server_out. */
enum status server_create(struct fleet *fleet, const struct tokenizer *tokenizer,
                          const struct server_options *options, const struct log *log,
                          struct server **server_out, struct err *err);
/* Cancels what runs and closes every connection. NULL is fine. */
void server_destroy(struct server *server);

/* The port listened on. */
uint16_t server_port(const struct server *server);

/* Takes no new connections and no new requests, and returns when the running ones have been
 * answered and their answers sent. server_destroy comes next. */
void server_drain(struct server *server);

#endif
