/* cli/rank.c - a rank process: finds the others and the front end, loads, answers, leaves.
 *
 *     first life        front end - MPI - device, model, engine - ready ... leave - MPI's end
 *     later lives       front end - alone - device, model, engine - ready ... leave
 *
 * A rank prints nothing on standard output. Its log lines say which it is; what all ranks say alike
 * (the plan, the manifest) is heard from rank 0 alone, unless --log-level debug asks for all. It
 * ends when the front end says so, or goes away. Under the user's own mpirun signals are not its
 * business: mpirun hands them to everybody, and the front end has answers to finish. */
#include "cli/rank.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/memory_left.h"
#include "base/thread_pool.h"
#include "cli/session.h"
#include "cluster/cluster.h"

/* What a rank's life needs, beside what it is given. */
struct self {
    const struct cli_context *context;
    const struct log *log;
    struct cli_options options;      /* a copy, with its share of threads */
    struct cli_mpi_place place;
    const struct cli_life *life;
    char front[CLI_FRONT_BYTES_MAX];
    char trace_path[4096];
    struct cluster *cluster;
    struct fleet_rank *rank;
    struct cli_session session;
    struct cli_files files;          /* what is served; the rank's thread's once it serves */
};

static uint32_t environment_number(const char *name)
{
    const char *text = getenv(name);
    char *end = NULL;
    unsigned long number;

    if (text == NULL || *text == '\0')
        return 0;
    number = strtoul(text, &end, 10);
    return *end == '\0' && number < UINT16_MAX ? (uint32_t)number : 0;
}

struct cli_mpi_place cli_mpi_place(void)
{
    return (struct cli_mpi_place){
        .rank = environment_number("OMPI_COMM_WORLD_RANK"),
        .size = environment_number("OMPI_COMM_WORLD_SIZE"),
        .node_size = environment_number("OMPI_COMM_WORLD_LOCAL_SIZE"),
        .node_rank = environment_number("OMPI_COMM_WORLD_LOCAL_RANK"),
    };
}

/* The module stands beside the program. */
static enum status open_mpi(struct self *self, struct err *err)
{
    static const char name[] = "lighter_mpi.so";
    char path[4096];
    const ssize_t size = readlink("/proc/self/exe", path, sizeof(path) - sizeof(name) - 1);
    char *slash;

    if (size <= 0)
        return err_set(err, STATUS_UNAVAILABLE, "/proc/self/exe: %s", strerror(errno));
    path[size] = '\0';
    slash = strrchr(path, '/');
    memcpy(slash + 1, name, sizeof(name));
    return cluster_open_mpi(path, self->log, &self->cluster, err);
}

/* Rank 0 tells all others where the front end is. */
static enum status learn_front(struct self *self, struct err *err)
{
    enum status st = cluster_broadcast(self->cluster, CLUSTER_WORLD, 0, self->front,
                                       sizeof(self->front), CLUSTER_WAIT_S, err);

    if (st == STATUS_OK) {
        self->front[sizeof(self->front) - 1] = '\0';
        cli_life_tell_front(self->life, self->front);
    }
    return st;
}

/* The front end has nothing to do with us any more, whatever we are doing. */
static void on_gone(void *user, const char *why)
{
    const struct self *self = user;

    log_line(self->log, LOG_DEBUG, "ending: %s", why);
    _exit(CLI_LIFE_ORPHAN);
}

/* A device whose error stays, or files that have changed: who comes next may do better. */
static void on_stopped(void *user, const char *why)
{
    const struct self *self = user;

    log_line(self->log, LOG_ERROR, "this rank can't go on and is started again: %s", why);
    _exit(1);
}

/* A successor has to load what all serve now. */
static void on_updated(void *user)
{
    struct self *self = user;

    self->files.serial++;
    self->files.stamp = model_update_stamp(self->session.model);
    cli_life_tell_files(self->life, &self->files);
}

static enum status connect_front(struct self *self, struct err *err)
{
    const struct fleet_rank_options options = {
        .front = self->front, .rank = self->place.rank, .on_gone = on_gone,
        .on_stopped = on_stopped, .on_updated = on_updated, .user = self,
    };

    return self->rank != NULL ? STATUS_OK : fleet_rank_connect(&options, &self->rank, err);
}

/* The front end comes first where it is known: it then sees a rank that hangs in MPI. */
static enum status meet(struct self *self, struct err *err)
{
    enum status st = STATUS_OK;

    memcpy(self->front, self->life->front, sizeof(self->front));
    if (self->front[0] != '\0')
        st = connect_front(self, err);
    if (st == STATUS_OK && !self->life->first)
        return cluster_open_one(self->place.rank, &self->cluster, err);
    if (st == STATUS_OK)
        st = open_mpi(self, err);
    if (st == STATUS_OK && getenv(CLI_RANK_FRONT) == NULL)
        st = learn_front(self, err);
    return st != STATUS_OK ? st : connect_front(self, err);
}

/* This node's processors and memory are divided among its ranks, and each has its own accelerator.
 */
static void share_node(struct self *self)
{
    const uint32_t count = thread_count_available();

    self->options = *self->context->options;
    self->options.node_rank = self->place.node_rank;
    self->options.free_memory_bytes =
        self->life->memory_left_bytes / (self->place.node_size > 0 ? self->place.node_size : 1);
    if (self->options.threads == 0 && self->place.node_size > 1)
        self->options.threads =
            count >= self->place.node_size ? count / self->place.node_size : 1;
}

/* Each rank writes a trace of its own. */
static void own_trace(struct self *self)
{
    self->options.trace_rank = self->place.rank;
    if (self->options.trace == NULL)
        return;
    (void)snprintf(self->trace_path, sizeof(self->trace_path), "%s.rank%u", self->options.trace,
                   self->place.rank);
    self->options.trace = self->trace_path;
}

/* The server's weights may have been updated since it started: then a rank is the same as the
 * others with those. */
static void take_weights(struct self *self)
{
    const struct fleet_rank_weights *weights = fleet_rank_weights(self->rank);
    struct cli_options *options = &self->options;

    self->files.serial = weights != NULL ? weights->serial : 0;
    if (self->life->files.serial == self->files.serial)
        self->session.stamp = self->life->files.stamp;
    if (weights == NULL)
        return;
    options->model = weights->model_path;
    if (weights->weight_version != NULL)
        options->weight_version = weights->weight_version;
    options->context_length = weights->info.context_length;
    self->session.served = &weights->info;
    log_line(self->log, LOG_DEBUG, "loading %s, which was updated to", options->model);
}

static enum status serve(struct self *self, bool *finalize_out, struct err *err)
{
    /* One rank's is all ranks', and who comes back is waited for. */
    const struct cli_demand demand = {
        .forecast = true,
        .forecast_is_made =
            self->place.rank > 0 || !self->life->first || getenv(CLI_RANK_AGAIN) != NULL,
    };
    struct cli_console *console = self->context->console;
    char text[OFFLOAD_SHARE_TEXT_BYTES];
    enum status st;
    bool shares;

    share_node(self);
    self->session.cluster = self->cluster;
    own_trace(self);
    st = cli_session_open_tokenizer(&self->session, &self->options, self->log, err);
    if (!self->life->first) /* else all load together */
        self->session.inherited = fleet_rank_shares(self->rank);
    take_weights(self); /* but not their tokenizer */
    if (st == STATUS_OK)
        st = cli_session_start(&self->session, &self->options, &demand, self->log,
                               &console->progress, err);
    if (st != STATUS_OK)
        return st;
    self->files.stamp = self->session.stamp;
    cli_life_tell_files(self->life, &self->files);
    cli_life_tell_ready(self->life);
    shares = offload_share_text(model_offload(self->session.model), text);
    return fleet_rank_serve(self->rank, self->session.engine, shares ? text : NULL, finalize_out,
                            err);
}

static int live(void *user, const struct cli_life *life)
{
    struct self self = { .context = user, .life = life };
    struct cli_console *console = self.context->console;
    bool finalize = false;
    struct err err;
    enum status st;

    (void)dup2(STDERR_FILENO, STDOUT_FILENO);
    self.log = &console->log;
    self.place = cli_mpi_place();
    (void)snprintf(console->prefix, sizeof(console->prefix), "rank %u: ", self.place.rank);
    console->terminal = false;
    if (self.place.rank > 0 && console->level == LOG_INFO)
        console->level = LOG_WARN;
    st = meet(&self, &err);
    if (st == STATUS_OK)
        st = serve(&self, &finalize, &err);
    if (st != STATUS_OK && self.rank != NULL)
        fleet_rank_fail(self.rank, st, err.message, self.session.bad_usage);
    else if (st != STATUS_OK && life->first)
        log_line(self.log, LOG_ERROR, "%s", err.message);
    if (st != STATUS_OK) /* whatever is half open ends with the process */
        return self.rank != NULL ? self.session.bad_usage ? 2 : 1 : life->first ? 1
                                                                                : CLI_LIFE_ORPHAN;
    st = offload_report_check(model_offload(self.session.model), &err);
    if (st != STATUS_OK) /* the front end's exit status tells of it */
        fleet_rank_fail(self.rank, st, err.message, false);
    if (cli_session_trace_write(&self.session, &self.options, self.log, STATUS_OK, &err) !=
        STATUS_OK)
        log_line(self.log, LOG_ERROR, "%s", err.message);
    if (finalize) { /* nobody frees what another still reads */
        cli_session_leave(&self.session);
        (void)cluster_barrier(self.cluster, CLUSTER_NODE, CLUSTER_WAIT_S, NULL);
    }
    cli_session_close(&self.session);
    fleet_rank_destroy(self.rank);
    if (finalize)
        cluster_close(self.cluster);
    return CLI_LIFE_LEFT;
}

bool cli_ranks_need_all(const struct cli_options *options)
{
    return strcmp(cli_options_offload_mode(options), "sharded_gpu") == 0;
}

int cli_rank_keep(const struct cli_context *context, const char *front)
{
    struct cli_keeper keeper = {
        .restart = !cli_ranks_need_all(context->options),
        .memory_left_bytes = memory_left_bytes(), /* all keepers are there before a rank loads */
        .live = live, .user = (void *)context,
    };

    if (getenv(CLI_RANK_FRONT) == NULL) { /* the user's own mpirun, who may be told to stop */
        (void)signal(SIGTERM, SIG_IGN);
        (void)signal(SIGINT, SIG_IGN);
        (void)signal(SIGHUP, SIG_IGN);
    }
    (void)signal(SIGPIPE, SIG_IGN);
    if (strlen(front) >= sizeof(keeper.front))
        return 2;
    memcpy(keeper.front, front, strlen(front) + 1);
    return cli_keep(&keeper);
}
