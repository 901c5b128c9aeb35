/* server/internal.h - what the server's files share.
 *
 *     bytes of a body --parse.c--> struct generate_request --call.c--> engine
 *                                                                        | on_output, its thread
 *     connection <--http.c-- reply.c <------------- struct call <--------+
 *
 *     http.c    libmicrohttpd's callbacks: routes, bodies, suspended connections
 *     prepare.c bodies become calls; a thread of its own for large ones
 *     update.c  other weights while requests run, by a thread of its own
 *     watch.c   a thread that notices clients that have gone and those that dawdle
 *     server.c  the socket listened on, start and stop
 *
 * Threads: HTTP threads (libmicrohttpd's) own a connection and what hangs from it; the engine's
 * thread writes into a call's answers under the call's lock; the watcher reads the list of
 * connections under the server's. Locks: server, then call; libmicrohttpd's own after these. The
 * engine is never called with one held, because it calls back. */
#ifndef LIGHTER_SERVER_INTERNAL_H
#define LIGHTER_SERVER_INTERNAL_H

#include <microhttpd.h>
#include <pthread.h>
#include <stdbool.h>

#include "base/buf.h"
#include "base/size.h"
#include "server/server.h"
#include "text/chat.h"

#define SERVER_THREADS 2                    /* libmicrohttpd's */
#define SERVER_INLINE_BYTES (16 * KIB)      /* larger bodies are prepared by their own thread */
#define SERVER_TEXT_BYTES_PER_TOKEN_MAX 256 /* a text that needs more to fit is not tokenized */
#define SERVER_HEADER_BYTES_MAX (32 * KIB)  /* libmicrohttpd's memory for one connection */
#define SERVER_BODIES_BYTES_MAX (64 * MIB)  /* of all bodies that are being received */
#define SERVER_REFUSAL_CONNECTIONS 16       /* past connection_count_max, to say 503 on */
#define SERVER_ANSWER_BYTES_MAX (256 * MIB) /* the JSON of one answer, or of a list of them */
#define SERVER_STREAM_BLOCK_BYTES (16 * KIB)
#define SERVER_WATCH_MS 200                 /* how late a client that left may be noticed */
#define SERVER_RID_BYTES_MAX 128
#define SERVER_RETRY_AFTER_S "1"
#define SERVER_LOGPROB_LISTS 4              /* of a completion: tokens, ..., text_offset */

/* ---- parse.c: a body becomes a request ---- */

struct generate_limits {
    size_t prompt_count_max;
    size_t prompt_token_count_max;  /* of one prompt */
};

struct generate_prompt {
    const char *text;               /* borrowed from the request's json; NULL: there are ids */
    size_t text_size;
    int32_t *ids;                   /* owned; NULL: there is text */
    size_t id_count;
    bool ids_are_text;              /* the ids are those of text, not the client's */
    struct sampling_params params;  /* its strings are borrowed from the request's json */
    char rid[SERVER_RID_BYTES_MAX + 24];
};

/* What an answer in OpenAI's shape needs to know of its request. */
struct openai_style {
    bool is_chat;
    bool include_usage;             /* a stream ends with what was used */
    bool has_logprobs;
    bool echo;                      /* a completion's text begins with its prompt */
    size_t choice_count;            /* "n": choices of each prompt, one after the other */
    char id[48];
    int64_t created_s;              /* since 1970 */
};

struct generate_request {
    json_t *json;                   /* owned; keeps the strings alive */
    bool is_list;                   /* answer with a list */
    bool stream;
    size_t prompt_count;
    struct generate_prompt *prompts; /* owned */
    bool is_openai;
    struct openai_style openai;
};

/* Reads the body of POST /generate. What is wrong with it is STATUS_BAD_INPUT, with the field's
 * name. *request_out is filled on success only: generate_request_deinit. */
enum status server__generate_parse(const char *body, size_t size,
                                   const struct generate_limits *limits,
                                   struct generate_request *request_out, struct err *err);
void server__generate_request_deinit(struct generate_request *request);

/* A name that nobody else has. */
#define SERVER_NAME_HEX 32
void server__make_name(char out[SERVER_NAME_HEX + 1]);
/* The ids of a prompt's text. */
enum status server__tokenize(struct fleet *fleet, const struct tokenizer *tokenizer,
                             struct generate_prompt *prompt, struct err *err);

/* ---- openai.c: bodies of /v1/completions and /v1/chat/completions ---- */

/* The same for a body in OpenAI's shape; a conversation becomes ids here. chat is NULL when the
 * model has no chat template: why_no_chat says so. */
struct openai_context {
    const struct tokenizer *tokenizer;
    const struct chat *chat;
    const char *why_no_chat;
    bool is_chat;
};
enum status server__openai_parse(const char *body, size_t size,
                                 const struct generate_limits *limits,
                                 const struct openai_context *context,
                                 struct generate_request *request_out, struct err *err);

/* ---- reply.c: what is answered, as JSON text ---- */

/* What has been generated for one prompt so far. */
struct answer {
    struct call *call;              /* set once */
    size_t index;                   /* set once: the prompt's place in the list */
    char rid[SERVER_RID_BYTES_MAX + 24]; /* set once */
    /* The rest is guarded by call->lock. */
    uint64_t engine_id;
    bool submitted;                 /* engine_id is known */
    bool ended;                     /* the last piece is here */
    bool news;                      /* there is something that was not sent yet */
    struct buf text_json;           /* all the text so far, escaped for JSON */
    struct buf ids_json;            /* all the ids so far: "1, 2, 3" */
    struct buf logprobs_json[SERVER_LOGPROB_LISTS]; /* openai_reply.c: items with commas between */
    size_t logprobs_sent[SERVER_LOGPROB_LISTS];
    size_t text_offset;             /* characters of the tokens so far */
    size_t text_sent;               /* of text_json, in a stream */
    bool begun, closed;             /* in a stream: the first and the last chunk are written */
    uint64_t prompt_token_count, completion_token_count;
    enum finish_reason finish;
    enum status status;             /* of an abort */
    struct buf detail;              /* an abort's message, or the stop string that matched */
    int32_t matched_id;
    double queue_s, e2e_s;
    bool garbage;
    char weight_version[ENGINE_VERSION_BYTES_MAX]; /* of the piece that came last */
    uint32_t dp_rank;
};

struct answer_style {
    bool has_text;                  /* there is a tokenizer */
    bool has_index;                 /* SGLang numbers the events of a list, not its final answers */
};

/* Adds a piece. */
enum status server__answer_append(struct answer *answer, const struct engine_output *output,
                                  struct err *err);
/* Appends {"text": ..., "output_ids": ..., "meta_info": ...} to out. */
enum status server__answer_write(const struct answer *answer, const struct answer_style *style,
                                 struct buf *out, struct err *err);
/* Appends the characters of text, as they stand between quotes in JSON; what is not UTF-8 becomes
 * U+FFFD. */
enum status server__json_escape(struct buf *out, const char *text, size_t size, struct err *err);
/* Appends {"error": {"message": ..., "type": ..., "code": ...}} to out. */
enum status server__error_write(unsigned code, const char *type, const char *message,
                                struct buf *out, struct err *err);
/* 400, 503 or 500. */
unsigned server__status_code(enum status status);

/* ---- call.c: prompts on their way through the engine ---- */

enum call_kind { CALL_GENERATE, CALL_HEALTH, CALL_OPENAI };

struct call {
    pthread_mutex_t lock;
    struct fleet *fleet;            /* borrowed; used by HTTP threads only */
    enum call_kind kind;            /* the next five are set once */
    bool stream, is_list;
    struct answer_style style;
    struct openai_style openai;     /* of CALL_OPENAI */
    const struct tokenizer *tokenizer; /* borrowed */
    const char *model_name;         /* borrowed from the server; used by HTTP threads only */
    size_t answer_count;
    struct answer *answers;
    /* Guarded by lock. */
    size_t ref_count;               /* the connection, and each prompt that the engine still has */
    size_t ended_count;
    struct MHD_Connection *connection; /* NULL once it has let go */
    bool suspended;                 /* the connection waits for call_wake */
    bool gone;                      /* nobody wants the answer */
    enum status failure;            /* not OK: the answer could not be stored */
    /* The connection's HTTP thread's: the event being sent. */
    struct buf out;
    size_t out_sent;
    size_t next_answer;             /* where to look for news first, so that none starves */
    bool usage_written, done_written;
};

/* Tokenizes and submits all prompts of a request, whose strings are copied; `connection` waits for
 * them. The call may end before this returns. On failure what was submitted is canceled. The caller
 * (the connection) owns one reference: server__call_release. */
enum status server__call_create(struct fleet *fleet, const struct tokenizer *tokenizer,
                                const char *model_name, enum call_kind kind,
                                struct generate_request *request,
                                struct MHD_Connection *connection, struct call **call_out,
                                struct err *err);
/* Cancels what has not ended and gives the reference back. NULL is fine. */
void server__call_release(struct call *call);
/* Tells whether all answers are there (or one has failed); if not, and not gone, suspends the
 * connection until they are. */
enum call_wait { CALL_SUSPENDED, CALL_READY, CALL_GONE };
enum call_wait server__call_wait(struct call *call);
/* From any thread: nobody wants the answer any more; a suspended connection is resumed. */
void server__call_abandon(struct call *call);
void server__call_ref(struct call *call);
void server__call_unref(struct call *call);
/* What went wrong with a call that is CALL_READY: the first answer that was aborted. */
enum status server__call_failure(struct call *call, struct err *err);
/* All answers of a call that is CALL_READY, as one JSON value, appended to out. */
enum status server__call_write(struct call *call, struct buf *out, struct err *err);
/* The next bytes of the event stream into dst: how many, or 0 when the connection was suspended,
 * MHD_CONTENT_READER_END_OF_STREAM or MHD_CONTENT_READER_END_WITH_ERROR. */
ssize_t server__call_read(struct call *call, char *dst, size_t size);

/* ---- openai_reply.c: answers in OpenAI's shape; with call->lock held ---- */

/* Adds what a piece says of its ids' probabilities. */
enum status server__openai_append(struct answer *answer, const struct engine_output *output,
                                  struct err *err);
/* The whole answer. */
enum status server__openai_write(const struct call *call, struct buf *out, struct err *err);
/* The events for what is new of an answer. */
enum status server__openai_events(struct answer *answer, struct buf *out, struct err *err);
/* The event that says what was used. */
enum status server__openai_usage_event(const struct call *call, struct buf *out, struct err *err);
/* {"error": {"message", "type", "param", "code"}}; the param is found in the message, which quotes
 * it. */
enum status server__openai_error_write(unsigned code, const char *message, struct buf *out,
                                       struct err *err);

/* ---- http.c, prepare.c, watch.c ---- */

enum conn_phase {
    CONN_RECEIVING, /* the client's turn; also between requests */
    CONN_WAITING,   /* the engine's turn: a call is under way, streams included */
    CONN_SENDING,   /* the client's turn to take the answer */
};

/* One TCP connection. Lives from libmicrohttpd's "started" to its "closed". */
struct conn {
    struct server *server;
    struct conn *next, *prev;       /* guarded by server->lock, as are those to prepare_next */
    int fd;
    uint64_t serial;                /* tells it from a later one at the same address */
    enum conn_phase phase;
    uint64_t deadline_ns;           /* RECEIVING and SENDING end by then */
    struct call *call;
    bool hung_up;                   /* noticed already */
    enum api { API_SGLANG, API_COMPLETIONS, API_CHAT, API_OPENAI } api; /* of the request */
    bool preparing;                 /* in the queue or in hand; the connection is suspended */
    struct conn *prepare_next;
    /* The connection's HTTP thread's; while `preparing`, the preparing thread's. */
    struct MHD_Connection *connection;
    enum status prepare_status;     /* what came of it: an error, or `call` is set */
    struct err prepare_err;
    bool updating;                  /* it waits, or waited, for server->update */
    bool prepared;                  /* on_request has handed over a body and shall look here */
    struct buf body;
    size_t body_accounted_bytes;    /* of server->bodies_bytes */
    uint64_t body_seen_bytes;       /* kept or not */
    unsigned refusal;               /* an HTTP code, decided on while the body came in; 0: none */
};

enum server_update_state { SERVER_UPDATE_IDLE, SERVER_UPDATE_RUNNING, SERVER_UPDATE_DONE };

/* The one update of the weights that may be under way. */
struct server_update {
    enum server_update_state state; /* all guarded by server->lock */
    struct MHD_Connection *connection; /* suspended; NULL: nobody waits */
    pthread_t thread;
    bool has_thread;
    json_t *request;                /* owned; the thread's */
    unsigned code;
    json_t *reply;                  /* owned */
};

struct server {
    struct fleet *fleet;            /* these six are set once */
    const struct tokenizer *tokenizer;
    int64_t start_s;
    const struct log *log;
    struct server_options options;  /* strings and json are copies */
    uint16_t port;
    struct MHD_Daemon *daemon;
    int listen_fd;                  /* -1: none */
    pthread_t watcher;
    pthread_t preparer;
    bool watcher_started, preparer_started;
    int wake_fd;                    /* an eventfd: the watcher looks again */
    pthread_mutex_t lock;
    pthread_cond_t idle;            /* signaled when answering_count becomes 0 */
    pthread_cond_t prepare_wake;    /* signaled when the queue or `stopping` changes */
    /* Guarded by lock. */
    struct conn *conns;
    uint64_t next_serial;
    uint32_t conn_count;
    uint32_t answering_count;       /* connections WAITING or SENDING */
    uint64_t bodies_bytes;
    bool draining;                  /* refuse new requests */
    bool stopping;
    char *model_path, *weight_version; /* of what serves now; owned */
    struct server_update update;
    struct conn *prepare_first, *prepare_last; /* the queue */
};

/* Starts libmicrohttpd on server->listen_fd, or, when that is -1, without a thread, to be driven by
 * server__http_run: for tests that feed bytes in. */
enum status server__http_start(struct server *server, struct err *err);
void server__http_stop(struct server *server);
/* Hands a connected socket over (closed by the server). */
enum status server__http_add(struct server *server, int fd, struct err *err);
void server__http_run(struct server *server);
/* Moves a connection to a phase: sets its deadline and counts who is being answered. */
void server__conn_phase(struct conn *conn, enum conn_phase phase);

/* Frees the body. */
void server__conn_drop_body(struct conn *conn);
/* Gives the connection its call; one that nobody wants any more is abandoned. */
void server__conn_attach(struct conn *conn, struct call *call);

/* Makes a call of the connection's body: conn->prepare_status, and conn->call when that is OK. */
void server__prepare(struct conn *conn, struct MHD_Connection *connection);
/* The same, by the preparing thread; the connection is suspended until it is done. False when the
 * server is stopping. */
bool server__prepare_later(struct conn *conn, struct MHD_Connection *connection);
enum status server__prepare_start(struct server *server, struct err *err);
void server__prepare_stop(struct server *server);

/* update.c. Begins an update as the body says: true, and the connection is suspended until it is
 * done, when server__update_end has the answer; or false, with the answer. */
bool server__update_begin(struct server *server, struct MHD_Connection *connection,
                          const struct buf *body, unsigned *code_out, json_t **reply_out);
json_t *server__update_end(struct server *server, unsigned *code_out);
/* Stopping: a connection that waits is resumed; later, when no request runs any more, the thread is
 * waited for. */
void server__update_abandon(struct server *server);
void server__update_stop(struct server *server);
/* What a request says; its strings are borrowed from the JSON. */
enum status server__update_parse(const json_t *json, struct engine_update *update_out,
                                 struct err *err);

enum status server__watch_start(struct server *server, struct err *err);
void server__watch_stop(struct server *server);

/* server.c: everything but the listening socket and the threads. */
enum status server__create(struct fleet *fleet, const struct tokenizer *tokenizer,
                           const struct server_options *options, const struct log *log,
                           struct server **server_out, struct err *err);

/* metrics.c: the fleet's report (fleet_report_json) in Prometheus's text format, appended. */
enum status server__metrics_write(const json_t *fleet, struct buf *out, struct err *err);

/* page.c: the page at /, for browsers. */
extern const char server__page[];
extern const uint64_t server__page_size;

#endif
