/* cli/serve.c - `lighter serve`: wires engine and server together and waits for a signal.
 *
 * SIGTERM and SIGINT are blocked before any thread starts, so in every thread, and one thread
 * takes them with sigwait: no handler runs, and nothing is shared with one. While the model is
 * still being loaded a signal ends the program as if nothing had been blocked. Later the first one
 * lets what runs be answered, and the program ends with 0; from then on a second one ends it at
 * once.
 *
 *     one rank         engine and server in this process
 *     --dp-size N      this process is the front end; it has mpirun start the ranks (ranks.h)
 *     mpirun -n N      rank 0's process is the front end, and its rank a child; the others keep
 *                      theirs (keeper.h) */
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "cli/command.h"
#include "cli/rank.h"
#include "cli/ranks.h"
#include "cli/session.h"
#include "lighter.h"
#include "server/server.h"

struct watch {
    pthread_t thread;
    sigset_t signals;      /* set once, before the thread starts */
    pthread_mutex_t lock;  /* guards what follows */
    pthread_cond_t came;
    bool serving;          /* a signal is to be waited for, not died of */
    bool closing;          /* the thread shall end: watch_stop */
    int number;            /* of the signal that came; 0: none yet */
};

static void *watch_run(void *user)
{
    struct watch *watch = user;
    int number = 0;
    bool die;

    (void)sigwait(&watch->signals, &number);
    (void)pthread_mutex_lock(&watch->lock);
    die = !watch->serving && !watch->closing;
    watch->number = number;
    (void)pthread_cond_signal(&watch->came);
    (void)pthread_mutex_unlock(&watch->lock);
    if (die) {
        (void)pthread_sigmask(SIG_UNBLOCK, &watch->signals, NULL);
        (void)raise(number); /* its default effect ends the program */
    }
    return NULL;
}

static enum status watch_start(struct watch *watch, struct err *err)
{
    *watch = (struct watch){ .number = 0 };
    (void)sigemptyset(&watch->signals);
    (void)sigaddset(&watch->signals, SIGTERM);
    (void)sigaddset(&watch->signals, SIGINT);
    (void)pthread_sigmask(SIG_BLOCK, &watch->signals, NULL);
    (void)signal(SIGPIPE, SIG_IGN); /* a client that goes away is no reason to end */
    (void)pthread_mutex_init(&watch->lock, NULL);
    (void)pthread_cond_init(&watch->came, NULL);
    if (pthread_create(&watch->thread, NULL, watch_run, watch) != 0)
        return err_set(err, STATUS_NO_MEMORY, "no thread to wait for signals");
    return STATUS_OK;
}

static void watch_stop(struct watch *watch)
{
    (void)pthread_mutex_lock(&watch->lock);
    watch->closing = true;
    (void)pthread_mutex_unlock(&watch->lock);
    (void)pthread_kill(watch->thread, SIGINT); /* wakes it, if it still waits */
    (void)pthread_join(watch->thread, NULL);
    (void)pthread_cond_destroy(&watch->came);
    (void)pthread_mutex_destroy(&watch->lock);
}

/* From now on a signal is for watch_wait. */
static void watch_serve(struct watch *watch)
{
    (void)pthread_mutex_lock(&watch->lock);
    watch->serving = true;
    (void)pthread_mutex_unlock(&watch->lock);
}

/* Returns the signal that asked the server to end; afterwards another one ends the program. */
static int watch_wait(struct watch *watch)
{
    int number;

    (void)pthread_mutex_lock(&watch->lock);
    while (watch->number == 0)
        (void)pthread_cond_wait(&watch->came, &watch->lock);
    number = watch->number;
    (void)pthread_mutex_unlock(&watch->lock);
    (void)pthread_sigmask(SIG_UNBLOCK, &watch->signals, NULL);
    return number;
}

/* What /get_server_info shows: the options of this program, by SGLang's names. */
static json_t *launch_json(const struct cli_options *options)
{
    json_t *json = cli_options_json(options, CLI_COMMAND_SERVE);

    if (json == NULL)
        return NULL;
    (void)json_object_set_new(json, "version", json_string(LIGHTER_VERSION));
    (void)json_object_set_new(json, "offload_mode",
                              json_string(cli_options_offload_mode(options)));
    return json;
}

static void make_server_options(const struct cli_options *options, const json_t *launch,
                                struct server_options *out)
{
    server_options_init(out);
    out->host = options->host;
    out->port = (uint16_t)options->port;
    out->model_path = options->model;
    out->tokenizer_path = options->tokenizer_path;
    out->weight_version = options->weight_version;
    out->served_model_name = options->served_model_name;
    out->launch = launch;
}

static enum status print_address(const struct cli_options *options, const struct server *server,
                                 struct err *err)
{
    const bool six = strchr(options->host, ':') != NULL;

    if (!options->json)
        return STATUS_OK;
    return cli_print_json(json_pack("{s:s, s:i, s:o}", "host", options->host, "port",
                                    (int)server_port(server), "url",
                                    json_sprintf("http://%s%s%s:%u", six ? "[" : "", options->host,
                                                 six ? "]" : "", (unsigned)server_port(server))),
                          err);
}

/* A server and all it stands on. */
struct serving {
    struct cli_context *context;
    struct watch *watch;
    const json_t *launch;
    uint32_t rank_count;         /* 1: the engine is in this process */
    struct cli_rank_zero *rank_zero; /* NULL: mpirun did not start this process */
    struct cli_session session;  /* with several ranks, the tokenizer alone */
    struct fleet *fleet;
    struct cli_ranks *ranks;
    struct server *server;
};

static enum status open_engine(struct serving *serving, struct err *err)
{
    const struct cli_demand demand = { .forecast = true };
    struct cli_session *session = &serving->session;
    struct cli_console *console = serving->context->console;
    enum status st = cli_session_start(session, serving->context->options, &demand, &console->log,
                                       &console->progress, err);

    serving->context->bad_usage = session->bad_usage;
    return st != STATUS_OK ? st : fleet_create_local(session->engine, &serving->fleet, err);
}

static enum status open_ranks(struct serving *serving, struct err *err)
{
    const struct cli_context *context = serving->context;
    const struct cli_options *options = context->options;
    const struct log *log = &context->console->log;
    struct fleet_remote_options remote;
    enum status st;

    fleet_remote_options_init(&remote);
    remote.rank_count = serving->rank_count;
    remote.every_address = serving->rank_zero != NULL && serving->rank_zero->several_nodes;
    remote.has_random_seed = options->random_seed >= 0;
    remote.random_seed = (uint64_t)options->random_seed;
    remote.needs_all = cli_ranks_need_all(options);
    if (options->max_queued_requests > 0)
        remote.queue_count_max = (uint32_t)options->max_queued_requests;
    st = fleet_create_remote(&remote, log, &serving->fleet, err);
    if (st == STATUS_OK && serving->rank_zero != NULL)
        st = cli_rank_zero_tell(serving->rank_zero, fleet_remote_front(serving->fleet), err);
    else if (st == STATUS_OK)
        st = cli_ranks_start(serving->fleet, serving->rank_count, context->args,
                             context->arg_count, log, &serving->ranks, err);
    if (st == STATUS_OK)
        st = fleet_remote_wait(serving->fleet, &serving->context->bad_usage, err);
    if (st == STATUS_OK && serving->ranks != NULL)
        cli_ranks_serving(serving->ranks);
    return st;
}

static enum status serving_close(struct serving *serving, enum status st, struct err *err)
{
    const struct cli_context *context = serving->context;
    const bool has_ranks = serving->rank_count > 1 && serving->fleet != NULL;
    enum status left = STATUS_OK;
    struct err why;

    server_destroy(serving->server);
    if (has_ranks)
        left = fleet_remote_leave(serving->fleet, &why);
    if (st == STATUS_OK && left != STATUS_OK)
        st = err_set(err, left, "%s", why.message);
    cli_ranks_stop(serving->ranks);
    fleet_destroy(serving->fleet);
    st = cli_session_trace_write(&serving->session, context->options, &context->console->log, st,
                                 err);
    cli_session_close(&serving->session);
    return st;
}

static enum status serve(struct serving *serving, struct err *err)
{
    struct cli_context *context = serving->context;
    const struct cli_options *options = context->options;
    const struct log *log = &context->console->log;
    struct server_options server_options;
    enum status st;

    st = cli_session_open_tokenizer(&serving->session, options, log, err);
    if (st == STATUS_OK)
        st = cli_session_open_chat(&serving->session, options, log, err);
    if (st == STATUS_OK)
        st = serving->rank_count > 1 ? open_ranks(serving, err) : open_engine(serving, err);
    if (st == STATUS_OK) {
        watch_serve(serving->watch);
        make_server_options(options, serving->launch, &server_options);
        server_options.chat = serving->session.chat;
        server_options.why_no_chat = serving->session.why_no_chat.message;
        st = server_create(serving->fleet, serving->session.tokenizer, &server_options, log,
                           &serving->server, err);
    }
    if (st == STATUS_OK)
        st = print_address(options, serving->server, err);
    if (st == STATUS_OK) {
        log_line(log, LOG_INFO, "signal %d: finishing what runs; a second one stops at once",
                 watch_wait(serving->watch));
        server_drain(serving->server);
        fleet_drain(serving->fleet);
        if (serving->session.model != NULL) {
            offload_report_log(model_offload(serving->session.model), log);
            st = offload_report_check(model_offload(serving->session.model), err);
        }
    }
    return serving_close(serving, st, err);
}

/* How many ranks there are: as many as mpirun has started, or as --dp-size says. */
static enum status count_ranks(struct cli_context *context, const struct cli_mpi_place *place,
                               uint32_t *count_out, struct err *err)
{
    const uint32_t wanted = (uint32_t)context->options->dp_size;

    *count_out = place->size > 1 ? place->size : wanted;
    if (place->size == 0 || wanted == 1 || wanted == place->size)
        return STATUS_OK;
    context->bad_usage = true;
    return err_set(err, STATUS_BAD_INPUT,
                   "--dp-size %u, but mpirun has started %u processes; leave one of them out",
                   wanted, place->size);
}

enum status cli_serve(struct cli_context *context, struct err *err)
{
    const struct cli_mpi_place place = cli_mpi_place();
    struct serving serving = { .context = context };
    struct cli_rank_zero rank_zero = { .fd = -1 };
    json_t *launch = NULL;
    struct watch watch;
    enum status st = count_ranks(context, &place, &serving.rank_count, err);

    if (st == STATUS_OK && place.size > 1 && place.rank > 0)
        exit(cli_rank_keep(context, ""));
    if (st == STATUS_OK && place.size > 1) { /* before any thread: it forks */
        st = cli_rank_zero_start(context, &place, &rank_zero, err);
        serving.rank_zero = &rank_zero;
    }
    if (st == STATUS_OK)
        st = watch_start(&watch, err);
    if (st == STATUS_OK) {
        launch = launch_json(context->options);
        serving.watch = &watch;
        serving.launch = launch;
        st = serve(&serving, err);
        watch_stop(&watch);
    }
    cli_rank_zero_stop(&rank_zero);
    json_decref(launch);
    return st;
}
