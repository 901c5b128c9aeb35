/* cli/serve.c - `lighter serve`: wires engine and server together and waits for a signal.
 *
 * SIGTERM and SIGINT are blocked before any thread starts, so in every thread, and one thread
 * takes them with sigwait: no handler runs, and nothing is shared with one. While the model is
 * still being loaded a signal ends the program as if nothing had been blocked. Later the first one
 * lets what runs be answered, and the program ends with 0; from then on a second one ends it at
 * once. */
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <string.h>

#include "cli/command.h"
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

    if (json != NULL)
        (void)json_object_set_new(json, "version", json_string(LIGHTER_VERSION));
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

static enum status serve(struct cli_context *context, struct watch *watch, const json_t *launch,
                         struct err *err)
{
    const struct cli_options *options = context->options;
    const struct log *log = &context->console->log;
    const struct cli_demand demand = { 0 };
    struct cli_session session = { 0 };
    struct server_options server_options;
    struct server *server = NULL;
    struct fleet *fleet = NULL;
    enum status st;

    st = cli_session_open_tokenizer(&session, options, log, err);
    if (st == STATUS_OK)
        st = cli_session_start(&session, options, &demand, log, &context->console->progress, err);
    context->bad_usage = session.bad_usage;
    if (st == STATUS_OK)
        st = fleet_create_local(session.engine, &fleet, err);
    if (st == STATUS_OK) {
        watch_serve(watch);
        make_server_options(options, launch, &server_options);
        st = server_create(fleet, session.tokenizer, &server_options, log, &server, err);
    }
    if (st == STATUS_OK)
        st = print_address(options, server, err);
    if (st == STATUS_OK) {
        log_line(log, LOG_INFO, "signal %d: finishing what runs; a second one stops at once",
                 watch_wait(watch));
        server_drain(server);
        fleet_drain(fleet);
        offload_report_log(model_offload(session.model), log);
    }
    server_destroy(server);
    fleet_destroy(fleet);
    cli_session_close(&session);
    return st;
}

enum status cli_serve(struct cli_context *context, struct err *err)
{
    json_t *launch = launch_json(context->options);
    struct watch watch;
    enum status st = watch_start(&watch, err);

    if (st == STATUS_OK) {
        st = serve(context, &watch, launch, err);
        watch_stop(&watch);
    }
    json_decref(launch);
    return st;
}
