/* cli/session.c - see session.h. */
#include "cli/session.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/file.h"
#include "base/heap.h"
#include "base/memory_left.h"
#include "base/size.h"
#include "checkpoint/gguf/tokenizer.h"
#include "checkpoint/vocab/sentencepiece.h"
#include "cli/devices.h"
#include "cli/measure.h"
#include "offload/disk/cache_file.h"

#define PROMPT_BYTES_MAX (64 * MIB)
#define READ_BYTES 65536
#define HEAP_GRANULE_BYTES MIB       /* that two runs' heaps differ by, at most */
#define HOST_MARGIN_SHARE 8          /* of free host memory, one part in so many stays free */
#define HOST_RANK_BYTES (128 * MIB)  /* that each further rank of a node takes for itself */
#define MADE_TOKENIZER_BYTES_MAX (64 * MIB)

enum status cli_open_tokenizer(const char *path, struct tokenizer **tokenizer_out,
                               struct err *err)
{
    const bool is_gguf = gguf_is_file(path);
    struct buf json, config;
    enum status st;

    if (!is_gguf && !sentencepiece_is_alone(path))
        return tokenizer_open(path, tokenizer_out, err);
    buf_init(&json, MADE_TOKENIZER_BYTES_MAX);
    buf_init(&config, MADE_TOKENIZER_BYTES_MAX);
    st = is_gguf ? gguf_tokenizer_read(path, &json, &config, err)
                 : sentencepiece_read(path, &json, &config, err);
    if (st == STATUS_OK)
        st = tokenizer_open_json(json.data, json.size, config.data, config.size, path,
                                 tokenizer_out, err);
    buf_deinit(&json);
    buf_deinit(&config);
    return st;
}

enum status cli_session_open_tokenizer(struct cli_session *session,
                                       const struct cli_options *options, const struct log *log,
                                       struct err *err)
{
    const char *path = options->tokenizer_path != NULL ? options->tokenizer_path : options->model;
    struct err why;
    enum status st;

    if (options->skip_tokenizer_init)
        return STATUS_OK;
    st = cli_open_tokenizer(path, &session->tokenizer, &why);
    if (st == STATUS_OK)
        return STATUS_OK;
    if (st != STATUS_UNAVAILABLE || options->tokenizer_path != NULL)
        return err_set(err, st, "%s", why.message);
    log_line(log, LOG_WARN, "%s", why.message);
    return STATUS_OK;
}

static enum status open_chat(struct cli_session *session, const struct cli_options *options,
                             struct err *err)
{
    const char *path = options->tokenizer_path != NULL ? options->tokenizer_path : options->model;
    struct buf json, config;
    enum status st;

    if (!gguf_is_file(path))
        return chat_open(session->tokenizer, path, options->chat_template, &session->chat, err);
    buf_init(&json, MADE_TOKENIZER_BYTES_MAX);
    buf_init(&config, MADE_TOKENIZER_BYTES_MAX);
    st = gguf_tokenizer_read(path, &json, &config, err);
    if (st == STATUS_OK)
        st = chat_open_json(session->tokenizer, config.data, config.size, path,
                            options->chat_template, &session->chat, err);
    buf_deinit(&json);
    buf_deinit(&config);
    return st;
}

enum status cli_session_open_chat(struct cli_session *session, const struct cli_options *options,
                                  const struct log *log, struct err *err)
{
    enum status st;

    if (session->tokenizer == NULL)
        st = err_set(&session->why_no_chat, STATUS_UNAVAILABLE, "the model has no tokenizer, so "
                     "there are no conversations");
    else
        st = open_chat(session, options, &session->why_no_chat);
    if (st == STATUS_OK)
        return STATUS_OK;
    if (options->chat_template != NULL)
        return err_set(err, st, "%s", session->why_no_chat.message);
    if (st != STATUS_UNAVAILABLE)
        log_line(log, LOG_WARN, "no conversations: %s", session->why_no_chat.message);
    return STATUS_OK;
}

/* What may be taken of this machine's memory when nobody has said: what is free, less a margin; of
 * several ranks each has its part of what was free before the first of them loaded. */
static uint64_t free_memory_bytes(const struct cli_options *options)
{
    const uint64_t left_bytes =
        options->free_memory_bytes > 0 ? options->free_memory_bytes : memory_left_bytes();

    return left_bytes - left_bytes / HOST_MARGIN_SHARE;
}

static enum status open_device(struct cli_session *session, const struct cli_options *options,
                               const struct log *log, struct err *err)
{
    struct device_options wanted = {
        .thread_count = (uint32_t)options->threads,
        .memory_budget_bytes = options->memory_budget_bytes,
        .host_budget_bytes = options->host_memory_budget_bytes,
        .free_memory_bytes = free_memory_bytes(options),
        .cpu_kernels = options->cpu_kernels,
    };
    enum status st;

    cli_device_warn(options, log);
    if (options->mem_fraction_static > 0 && options->memory_budget_bytes > 0) {
        log_line(log, LOG_WARN, "--mem-fraction-static has no effect: --memory-budget is given");
    } else if (options->mem_fraction_static > 0) {
        /* A fraction of what is only known once the device is open: look, and open it again. */
        st = cli_device_open(options, &wanted, &session->device, err);
        if (st != STATUS_OK)
            goto fail;
        wanted.memory_budget_bytes = (uint64_t)((double)device_info(session->device)->memory_bytes *
                                                options->mem_fraction_static);
        device_close(session->device);
        session->device = NULL;
        if (wanted.memory_budget_bytes == 0)
            wanted.memory_budget_bytes = 1;
    }
    st = cli_device_open(options, &wanted, &session->device, err);
fail:
    session->bad_usage = st == STATUS_BAD_INPUT;
    return st;
}

static void set_offload(struct offload_options *offload, const struct cli_options *options)
{
    offload->cpu_offload_bytes = (uint64_t)(options->cpu_offload_gb * (double)GIB);
    offload->group_size = options->offload_group_size > 0 ? options->offload_group_size : 0;
    offload->num_in_group = options->offload_num_in_group;
    offload->prefetch_step = options->offload_prefetch_step;
    offload->params_glob = options->offload_params;
    offload->slot_count = options->offload_slots;
    offload->disk = options->offload_disk;
    offload->experts = options->offload_experts;
    offload->expert_slot_count = options->offload_expert_slots;
    offload->automatic = strcmp(cli_options_offload_mode(options), "auto") == 0;
}

/* Whether a forecast is wanted, and anybody will see it: measuring for it takes a while. */
static bool is_forecast_seen(const struct cli_options *options, const struct cli_demand *demand)
{
    return demand->forecast && (options->json || cli_options_log_level(options) <= LOG_INFO);
}

/* Options of the disk and of forecasts, where there is neither, must not look as if they did
 * something. */
static void warn_of_idle(const struct cli_options *options, const struct cli_demand *demand,
                         const struct log *log)
{
    const char *mode = cli_options_offload_mode(options);
    const bool is_auto = strcmp(mode, "auto") == 0;
    const bool may_move = is_auto || options->cpu_offload_gb > 0 ||
                          options->offload_group_size > 0 || options->offload_experts;
    const struct {
        const char *name, *value, *where;
        bool is_idle;
    } all[] = {
        { "offload-disk", options->offload_disk, "--offload-mode disk or auto",
          !is_auto && strcmp(mode, "disk") != 0 },
        { "offload-cache-dir", options->offload_cache_dir, "--offload-mode disk or auto",
          !is_auto && strcmp(mode, "disk") != 0 },
        { "assume", options->assume, "the forecast that 'plan' makes, and 'serve', 'generate' "
          "and 'chat' where something moves",
          !demand->plan_only && !is_auto && !(is_forecast_seen(options, demand) && may_move) },
    };

    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++)
        if (all[i].value != NULL && all[i].is_idle)
            log_line(log, LOG_WARN, "--%s has no effect here: it is for %s", all[i].name,
                     all[i].where);
}

/* Rows and requests in a step, and tokens in the cache: what the options say, else the demand, else
 * what suits the device, else the model's defaults. */
static void set_sizes(struct model_options *model, struct engine_options *engine,
                      const struct cli_options *options, const struct cli_demand *demand,
                      const struct device_info *device, uint32_t context_length)
{
    const uint64_t tokens_each =
        demand->tokens_each < context_length ? demand->tokens_each : context_length;
    const int64_t chunk = options->chunk > 0 ? options->chunk : options->chunked_prefill_size;
    uint64_t rows = device->step_row_count > 0 ? device->step_row_count
                                               : model->step_row_count_max;
    uint64_t running = device->step_sequence_count > 0 ? device->step_sequence_count
                                                       : model->step_sequence_count_max;

    if (options->max_running_requests > 0)
        running = (uint64_t)options->max_running_requests;
    else if (demand->sequence_count > 0)
        running = demand->sequence_count;
    if (chunk > 0)
        rows = (uint64_t)chunk;
    else if (chunk < 0)
        rows = context_length; /* whole prompts */
    else if (demand->sequence_count > 0 && rows > demand->sequence_count * tokens_each)
        rows = demand->sequence_count * tokens_each;
    if (rows > context_length * running)
        rows = context_length * running;
    engine->prefill_chunk = (uint32_t)rows;
    if (rows < running)
        rows = running; /* a token each, at least */

    engine->step_row_count_max = (uint32_t)rows;
    engine->weight_version = options->weight_version;
    engine->has_random_seed = options->random_seed >= 0;
    engine->random_seed = (uint64_t)options->random_seed;
    engine->running_count_max = (uint32_t)running;
    if (options->max_queued_requests > 0)
        engine->queue_count_max = (uint32_t)options->max_queued_requests;
    else if (engine->queue_count_max < running + 1)
        engine->queue_count_max = (uint32_t)running + 1;
    model->step_row_count_max = engine->step_row_count_max;
    model->step_sequence_count_max = engine->running_count_max;
    if (options->page_size > 0)
        model->kv_page_size = (uint32_t)options->page_size;
    if (options->max_total_tokens > 0)
        model->kv_token_count = (uint64_t)options->max_total_tokens;
    else if (demand->sequence_count > 0)
        model->kv_token_count = (tokens_each + model->kv_page_size - 1) / model->kv_page_size *
                                model->kv_page_size * demand->sequence_count;
}

/* A text ends where it did when the server started, whatever newer weights say of themselves. */
static void keep_ends(struct engine_options *engine, const struct model_info *served)
{
    if (served == NULL)
        return;
    engine->has_eos = true;
    engine->eos_count = served->eos_count;
    memcpy(engine->eos_ids, served->eos_ids, sizeof(engine->eos_ids));
}

static enum status open_trace(struct cli_session *session, const struct cli_options *options,
                              struct err *err)
{
    const struct trace_options wanted = { .rank = options->trace_rank };
    enum status st;

    if (options->trace == NULL)
        return STATUS_OK;
    st = trace_check_path(options->trace, err);
    if (st == STATUS_OK)
        st = trace_create(&wanted, &session->trace, err);
    return st == STATUS_OK ? st : err_prefix(err, st, "--trace");
}

enum status cli_session_trace_write(struct cli_session *session, const struct cli_options *options,
                                    const struct log *log, enum status st, struct err *err)
{
    struct err own;
    enum status st_own;

    if (session->trace == NULL)
        return st;
    engine_destroy(session->engine);
    session->engine = NULL;
    st_own = trace_write(session->trace, options->trace, &own);
    if (st_own == STATUS_OK)
        log_line(log, LOG_INFO, "trace: %zu spans in %s; %" PRIu64 " older ones were dropped",
                 trace_span_count(session->trace), options->trace,
                 trace_dropped_count(session->trace));
    if (st != STATUS_OK || st_own == STATUS_OK)
        return st;
    return err_set(err, st_own, "--trace: %s", own.message);
}

/* What is taken already, for tokenizer, checkpoint and all else, and what the engine will take: the
 * logits of all that runs, and a sampler's, a step's and the requests' arrays. */
static uint64_t engine_bytes(const struct engine_options *engine, const struct model_info *info)
{
    const uint64_t running = engine->running_count_max, context = info->context_length;

    return size_align_up(heap_used_bytes(), HEAP_GRANULE_BYTES) +
           (running + 4) * info->vocab_size * sizeof(float) +
           (uint64_t)engine->step_row_count_max * 8 * sizeof(int32_t) +
           running * context * 2 * sizeof(int32_t) + HEAP_GRANULE_BYTES;
}

/* The least that any rank of this node has found. */
static enum status agree_on(struct cluster *cluster, uint64_t *bytes, struct err *err)
{
    uint64_t all[CLUSTER_RANK_COUNT_MAX];
    enum status st;

    if (cluster == NULL || cluster_place(cluster)->node_size == 1)
        return STATUS_OK;
    st = cluster_allgather(cluster, CLUSTER_NODE, bytes, sizeof(*bytes), all, CLUSTER_WAIT_LOAD_S,
                           err);
    for (uint32_t i = 0; st == STATUS_OK && i < cluster_place(cluster)->node_size; i++)
        *bytes = all[i] < *bytes ? all[i] : *bytes;
    return st;
}

/* What auto may take of host memory when nobody has said: what is free now, less a margin. */
static enum status find_host_budget(const struct cli_session *session, const struct log *log,
                                    uint64_t *bytes_out, struct err *err)
{
    const struct device_info *info = device_info(session->device);
    const uint64_t ranks =
        session->cluster == NULL ? 1 : cluster_place(session->cluster)->node_size;
    uint64_t left_bytes = memory_left_bytes(), taken_bytes = (ranks - 1) * HOST_RANK_BYTES;
    struct device_memory_report memory;
    char left[24], may[24];
    enum status st;

    device_memory_report(session->device, &memory);
    if (info->memory_is_host || memory.host_budget_bytes > 0)
        return STATUS_OK;
    st = agree_on(session->cluster, &left_bytes, err);
    if (st != STATUS_OK)
        return st;
    if (info->memory_takes_host)
        taken_bytes += ranks * (memory.budget_bytes - memory.used_bytes);
    taken_bytes += left_bytes / HOST_MARGIN_SHARE;
    *bytes_out = left_bytes > taken_bytes ? left_bytes - taken_bytes : 0;
    log_line(log, LOG_INFO,
             "host memory: %s free; at most %s of it are taken, as no --host-memory-budget says "
             "otherwise", size_format(left_bytes, left, sizeof(left)),
             size_format(*bytes_out, may, sizeof(may)));
    return STATUS_OK;
}

static enum status open_checkpoint(struct cli_session *session, const struct cli_options *options,
                                   struct err *err)
{
    const uint64_t wanted = session->stamp;
    const enum status st = ckpt_open(options->model, &session->ckpt, err);

    if (st != STATUS_OK)
        return st;
    session->stamp = ckpt_stamp(session->ckpt);
    if (wanted == 0 || session->stamp == wanted)
        return STATUS_OK;
    return err_set(err, STATUS_UNAVAILABLE,
                   "%s: its files have changed since this rank loaded them before, and others may "
                   "still answer with what they were; update all ranks to a folder of new ones "
                   "(/update_weights_from_disk), or start the server again", options->model);
}

/* What model_options.measure needs. */
struct measuring {
    const struct cli_options *options;
    const struct log *log;
    const struct cli_session *session;
    bool quickly;  /* the plan is neither all that is asked for nor the program's own */
};

static void measure(void *user, const struct offload_traffic *traffic, struct model_rates *rates,
                    struct disk_measured *disk_out)
{
    const struct measuring *measuring = user;
    const struct cli_options *options = measuring->options;
    const struct cli_measure what = {
        .device = measuring->session->device, .ckpt = measuring->session->ckpt,
        .offload_disk = options->offload_disk, .disk = traffic->disk_bytes > 0,
        .disk_read_bytes =
            traffic->disk_reads > 0 ? (uint64_t)(traffic->disk_bytes / traffic->disk_reads) : 0,
        .disk_reads = traffic->slot_count > 1 ? traffic->slot_count - 1 : 1,
        .link = traffic->link_bytes + traffic->peer_bytes > 0,
        .copy_bytes =
            traffic->own_bytes > 0 ? (uint64_t)(traffic->own_bytes / traffic->onloads) : 0,
        .quickly = measuring->quickly, .log = measuring->log,
    };

    cli_measure(&what, rates, disk_out);
}

enum status cli_session_start(struct cli_session *session, const struct cli_options *options,
                              const struct cli_demand *demand, const struct log *log,
                              const struct progress *progress, struct err *err)
{
    struct measuring measuring = {
        .options = options, .log = log, .session = session,
        .quickly = !demand->plan_only && strcmp(cli_options_offload_mode(options), "auto") != 0,
    };
    struct model_options model;
    struct engine_options engine;
    struct model_info info;
    bool runs;
    enum status st;

    st = open_trace(session, options, err);
    if (st == STATUS_OK)
        st = open_device(session, options, log, err);
    if (st != STATUS_OK)
        return st;
    st = open_checkpoint(session, options, err);
    if (st != STATUS_OK)
        return st;
    heap_trim(); /* what reading tokenizer and checkpoint took */
    runs = model_inspect(session->ckpt, &info, NULL) == STATUS_OK;
    if (info.context_length == 0 ||
        (options->context_length > 0 && options->context_length < info.context_length))
        info.context_length = (uint32_t)options->context_length;

    model_options_init(&model);
    engine_options_init(&engine);
    set_offload(&model.offload, options);
    warn_of_idle(options, demand, log);
    if (cache_folder(options->offload_cache_dir, getenv("XDG_CACHE_HOME"), getenv("HOME"),
                     &session->cache_dir, NULL) == STATUS_OK)
        model.offload.cache_dir = session->cache_dir;
    model.offload.cluster = session->cluster;
    if (demand->loads_all)
        model.offload.late_bytes_min = UINT64_MAX;
    model.offload.inherited = session->inherited;
    model.offload.trace = engine.trace = session->trace;
    model.dtype = options->dtype;
    (void)dtype_parse(options->kv_cache_dtype, &model.kv_dtype); /* "auto" leaves it as it is */
    model.budget_is_host = device_info(session->device)->memory_is_host &&
                           options->memory_budget_bytes == 0 && options->mem_fraction_static == 0;
    model.context_length = (uint32_t)options->context_length;
    if (model.offload.automatic) {
        model.offload.home = OFFLOAD_HOME_DISK;
        st = find_host_budget(session, log, &model.host_budget_bytes, err);
    } else {
        st = offload_mode_parse(cli_options_offload_mode(options), &model.offload.home, err);
    }
    if (st == STATUS_OK)
        st = cli_assume(options->assume, &session->rates, err);
    if ((demand->plan_only || is_forecast_seen(options, demand) || model.offload.automatic) &&
        !demand->forecast_is_made)
        model.measure = measure;
    model.measure_user = &measuring;
    model.rates = &session->rates;
    model.forecast_prompt_tokens = demand->prompt_tokens;
    model.plan_only = demand->plan_only;
    if (st == STATUS_OK) {
        set_sizes(&model, &engine, options, demand, device_info(session->device),
                  info.context_length);
        keep_ends(&engine, session->served);
        model.host_reserve_bytes = engine_bytes(&engine, &info);
        session->host_reserve_bytes = model.host_reserve_bytes;
        st = model_create(session->device, session->ckpt, &model, log, progress, &session->model,
                          err);
    }
    if (st == STATUS_OK && !demand->plan_only) {
        st = device_host_charge(session->device, model.host_reserve_bytes, err);
        session->charged_bytes = st == STATUS_OK ? model.host_reserve_bytes : 0;
    }
    if (st == STATUS_OK && !demand->plan_only)
        st = engine_create(session->model, session->tokenizer, &engine, log, &session->engine,
                           err);
    /* A checkpoint that runs was asked for something that cannot be. */
    session->bad_usage = runs && st == STATUS_BAD_INPUT;
    return st;
}

void cli_session_leave(struct cli_session *session)
{
    engine_destroy(session->engine);
    session->engine = NULL;
    offload_peers_close(model_offload(session->model));
}

void cli_session_close(struct cli_session *session)
{
    engine_destroy(session->engine);
    model_destroy(session->model);
    ckpt_close(session->ckpt);
    if (session->charged_bytes > 0)
        device_host_discharge(session->device, session->charged_bytes);
    device_close(session->device);
    chat_close(session->chat);
    tokenizer_close(session->tokenizer);
    trace_destroy(session->trace);
    free(session->cache_dir);
    *session = (struct cli_session){ 0 };
}

enum status cli_text_read(const char *path, struct buf *out, struct err *err)
{
    enum status st;

    if (strcmp(path, "-") != 0)
        return file_read_all(path, out, err);
    for (;;) {
        ssize_t got;

        st = buf_reserve(out, out->size + READ_BYTES, err);
        if (st != STATUS_OK)
            return err_prefix(err, st, "standard input");
        got = read(STDIN_FILENO, out->data + out->size, READ_BYTES);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return err_set(err, STATUS_IO, "standard input: %s", strerror(errno));
        out->size += (size_t)got;
        out->data[out->size] = '\0';
        if (got == 0)
            return STATUS_OK;
    }
}

enum status cli_session_prompt(struct cli_session *session, const struct cli_options *options,
                               struct token_ids *ids_out, struct err *err)
{
    const char *text = options->prompt;
    size_t text_size = text != NULL ? strlen(text) : 0;
    struct buf file;
    enum status st = STATUS_OK;

    for (size_t i = 0; i < options->input_ids.count && st == STATUS_OK; i++)
        st = token_ids_push(ids_out, options->input_ids.ids[i], err);
    if (st != STATUS_OK || options->input_ids.count > 0)
        return st;
    if (session->tokenizer == NULL) {
        session->bad_usage = true;
        return err_set(err, STATUS_BAD_INPUT,
                       "%s has no tokenizer; give --tokenizer-path PATH, or the prompt as "
                       "--input-ids 1,2,3",
                       options->model);
    }
    buf_init(&file, PROMPT_BYTES_MAX);
    if (text == NULL) {
        st = cli_text_read(options->prompt_file, &file, err);
        text = file.data != NULL ? file.data : "";
        text_size = file.size;
    }
    if (st == STATUS_OK)
        st = tokenizer_encode(session->tokenizer, text, text_size, !options->no_special, ids_out,
                              err);
    buf_deinit(&file);
    if (st == STATUS_OK && ids_out->count == 0) {
        session->bad_usage = true;
        st = err_set(err, STATUS_BAD_INPUT, "the prompt has no tokens");
    }
    return st;
}
