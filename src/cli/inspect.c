/* cli/inspect.c - `lighter inspect`: what a checkpoint holds, and whether it will run.
 *
 * With --device it tells what there is of a device, alone or besides.
 *
 * Exit status 0 whenever there is such a file, also when it will not run or is no checkpoint: what
 * was asked is answered then. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/devices.h"
#include "cli/session.h"
#include "base/size.h"
#include "checkpoint/checkpoint.h"
#include "cli/command.h"
#include "model/model.h"
#include "text/tokenizer/tokenizer.h"

static const char *text_or(const char *text, const char *otherwise)
{
    return text != NULL && text[0] != '\0' ? text : otherwise;
}

static json_t *tensor_json(const struct ckpt *ckpt, const struct ckpt_tensor *tensor)
{
    json_t *shape = json_array();

    for (uint32_t i = 0; i < tensor->rank; i++)
        json_array_append_new(shape, json_integer((json_int_t)tensor->shape[i]));
    return json_pack("{s:o, s:s, s:o, s:I, s:s}", "name",
                     cli_text_json(tensor->name, strlen(tensor->name)), "dtype",
                     tensor->dtype_name, "shape", shape, "bytes",
                     (json_int_t)tensor->size_bytes, "file",
                     ckpt_file_path(ckpt, tensor->file_index));
}

static void count(json_t *counts, const char *key, uint64_t add)
{
    const json_t *old = json_object_get(counts, key);

    json_object_set_new(counts, key, json_integer(json_integer_value(old) + (json_int_t)add));
}

/* {"BF16": {"tensors": n, "elements": n, "bytes": n}, ...}, and the sums over all of them. */
static json_t *dtypes_json(const struct ckpt *ckpt, uint64_t *elements_out, uint64_t *bytes_out)
{
    json_t *dtypes = json_object();

    *elements_out = 0;
    *bytes_out = 0;
    for (size_t i = 0; i < ckpt_tensor_count(ckpt); i++) {
        const struct ckpt_tensor *tensor = ckpt_tensor_at(ckpt, i);
        json_t *counts = json_object_get(dtypes, tensor->dtype_name);
        uint64_t elements = 0;

        (void)tensor_element_count(tensor->rank, tensor->shape, &elements);
        if (counts == NULL) {
            counts = json_object();
            json_object_set_new(dtypes, tensor->dtype_name, counts);
        }
        count(counts, "tensors", 1);
        count(counts, "elements", elements);
        count(counts, "bytes", tensor->size_bytes);
        *elements_out += elements;
        *bytes_out += tensor->size_bytes;
    }
    return dtypes;
}

static json_t *files_json(const struct ckpt *ckpt)
{
    json_t *files = json_array();
    const char *last = NULL;

    for (size_t i = 0; i < ckpt_tensor_count(ckpt); i++) {
        const char *path = ckpt_file_path(ckpt, ckpt_tensor_at(ckpt, i)->file_index);
        if (last == NULL || strcmp(path, last) != 0)
            json_array_append_new(files, cli_text_json(path, strlen(path)));
        last = path;
    }
    return files;
}

static json_t *tokenizer_json(const struct cli_options *options)
{
    const char *path = options->tokenizer_path != NULL ? options->tokenizer_path : options->model;
    struct tokenizer *tokenizer = NULL;
    struct err why;
    json_t *json;

    if (cli_open_tokenizer(path, &tokenizer, &why) != STATUS_OK)
        return json_pack("{s:b, s:o}", "usable", 0, "reason",
                         cli_text_json(why.message, strlen(why.message)));
    json = json_pack("{s:b, s:s, s:i, s:i, s:i}", "usable", 1, "kind", "BPE", "id_limit",
                     (int)tokenizer_id_limit(tokenizer), "bos_id",
                     (int)tokenizer_bos_id(tokenizer), "eos_id",
                     (int)tokenizer_eos_id(tokenizer));
    tokenizer_close(tokenizer);
    return json;
}

static json_t *inspect_json(const struct cli_options *options, const struct ckpt *ckpt)
{
    struct model_info info = { .bos_id = -1 };
    struct err why = { .message = "" };
    const bool runs = model_inspect(ckpt, &info, &why) == STATUS_OK;
    const json_t *architectures = json_object_get(ckpt_config(ckpt), "architectures");
    const char *architecture = json_string_value(json_array_get(architectures, 0));
    const char *model_type = json_string_value(json_object_get(ckpt_config(ckpt), "model_type"));
    uint64_t elements = 0;
    uint64_t bytes = 0;
    json_t *dtypes = dtypes_json(ckpt, &elements, &bytes);
    json_t *json = json_pack(
        "{s:o, s:s, s:s?, s:s?, s:b, s:o, s:I, s:I, s:I, s:o, s:o, s:o}", "path",
        cli_text_json(options->model, strlen(options->model)), "format", ckpt_format_name(ckpt),
        "architecture", runs ? info.architecture : architecture, "model_type",
        runs ? info.model_type : model_type, "will_run", runs, "reason",
        runs ? json_null() : cli_text_json(why.message, strlen(why.message)), "tensor_count",
        (json_int_t)ckpt_tensor_count(ckpt), "parameter_count", (json_int_t)elements,
        "weight_bytes", (json_int_t)bytes, "dtypes", dtypes, "files", files_json(ckpt),
        "tokenizer", tokenizer_json(options));

    if (runs) {
        json_t *sizes = json_pack(
            "{s:i, s:i, s:i, s:i, s:I, s:i, s:i, s:i, s:i, s:i}", "layer_count",
            (int)info.layer_count, "hidden_size", (int)info.hidden_size, "vocab_size",
            (int)info.vocab_size, "context_length", (int)info.context_length, "kv_bytes_per_token",
            (json_int_t)info.kv_bytes_per_token, "sliding_window", (int)info.sliding_window,
            "window_layer_count", (int)info.window_layer_count, "expert_count",
            (int)info.expert_count, "experts_per_token", (int)info.expert_top_k,
            "expert_layer_count", (int)info.expert_layer_count);

        (void)json_object_update(json, sizes);
        json_decref(sizes);
    }
    if (options->tensors) {
        json_t *list = json_array();
        for (size_t i = 0; i < ckpt_tensor_count(ckpt); i++)
            json_array_append_new(list, tensor_json(ckpt, ckpt_tensor_at(ckpt, i)));
        json_object_set_new(json, "tensors", list);
    }
    return json;
}

static void print_tensors(const json_t *tensors)
{
    const json_t *tensor;
    size_t i;

    json_array_foreach(tensors, i, tensor)
    {
        char *shape = json_dumps(json_object_get(tensor, "shape"), 0);
        printf("  %-60s %-8s %s\n", json_string_value(json_object_get(tensor, "name")),
               json_string_value(json_object_get(tensor, "dtype")), shape != NULL ? shape : "");
        free(shape);
    }
}

static enum status print_text(json_t *json, struct err *err)
{
    const json_t *tokenizer = json_object_get(json, "tokenizer");
    const json_int_t bytes = json_integer_value(json_object_get(json, "weight_bytes"));
    const char *key;
    const json_t *value;
    char size[32];

    printf("%s: %s, %s (%s)\n", json_string_value(json_object_get(json, "path")),
           text_or(json_string_value(json_object_get(json, "architecture")), "no architecture"),
           text_or(json_string_value(json_object_get(json, "model_type")), "no model type"),
           text_or(json_string_value(json_object_get(json, "format")), "no checkpoint"));
    printf("  %" JSON_INTEGER_FORMAT " tensors, %" JSON_INTEGER_FORMAT " parameters, %s\n",
           json_integer_value(json_object_get(json, "tensor_count")),
           json_integer_value(json_object_get(json, "parameter_count")),
           size_format((uint64_t)bytes, size, sizeof(size)));
    json_object_foreach(json_object_get(json, "dtypes"), key, value)
    {
        printf("  %s: %" JSON_INTEGER_FORMAT " tensors, %s\n", key,
               json_integer_value(json_object_get(value, "tensors")),
               size_format((uint64_t)json_integer_value(json_object_get(value, "bytes")), size,
                           sizeof(size)));
    }
    if (json_object_get(json, "layer_count") != NULL)
        printf("  %" JSON_INTEGER_FORMAT " layers, hidden size %" JSON_INTEGER_FORMAT
               ", vocabulary %" JSON_INTEGER_FORMAT ", context %" JSON_INTEGER_FORMAT
               ", KV cache %" JSON_INTEGER_FORMAT " bytes a token\n",
               json_integer_value(json_object_get(json, "layer_count")),
               json_integer_value(json_object_get(json, "hidden_size")),
               json_integer_value(json_object_get(json, "vocab_size")),
               json_integer_value(json_object_get(json, "context_length")),
               json_integer_value(json_object_get(json, "kv_bytes_per_token")));
    if (json_integer_value(json_object_get(json, "window_layer_count")) > 0)
        printf("  %" JSON_INTEGER_FORMAT " of the layers see a window of %" JSON_INTEGER_FORMAT
               " positions, and no more of it is kept\n",
               json_integer_value(json_object_get(json, "window_layer_count")),
               json_integer_value(json_object_get(json, "sliding_window")));
    if (json_integer_value(json_object_get(json, "expert_count")) > 0)
        printf("  %" JSON_INTEGER_FORMAT " experts, %" JSON_INTEGER_FORMAT
               " for each token, in %" JSON_INTEGER_FORMAT " of the layers\n",
               json_integer_value(json_object_get(json, "expert_count")),
               json_integer_value(json_object_get(json, "experts_per_token")),
               json_integer_value(json_object_get(json, "expert_layer_count")));
    if (json_is_true(json_object_get(tokenizer, "usable")))
        printf("  tokenizer: %s, %" JSON_INTEGER_FORMAT " ids\n",
               json_string_value(json_object_get(tokenizer, "kind")),
               json_integer_value(json_object_get(tokenizer, "id_limit")));
    else
        printf("  tokenizer: none that works: %s\n",
               json_string_value(json_object_get(tokenizer, "reason")));
    print_tensors(json_object_get(json, "tensors"));
    if (json_is_true(json_object_get(json, "will_run")))
        printf("  it will run\n");
    else
        printf("  it will not run: %s\n", json_string_value(json_object_get(json, "reason")));
    return cli_stdout_flush(err);
}

/* Of something that could not be opened as a checkpoint. */
static json_t *unopened_json(const struct cli_options *options, const struct err *why)
{
    return json_pack("{s:o, s:n, s:n, s:n, s:b, s:o, s:i, s:i, s:i, s:{}, s:[], s:o}", "path",
                     cli_text_json(options->model, strlen(options->model)), "format",
                     "architecture", "model_type", "will_run", 0, "reason",
                     cli_text_json(why->message, strlen(why->message)), "tensor_count", 0,
                     "parameter_count", 0, "weight_bytes", 0, "dtypes", "files", "tokenizer",
                     tokenizer_json(options));
}

static enum status inspect_model(const struct cli_options *options, json_t **json_out,
                                 struct err *err)
{
    struct ckpt *ckpt = NULL;
    struct err why;
    const enum status st = ckpt_open(options->model, &ckpt, &why);

    if (st != STATUS_OK && st != STATUS_BAD_INPUT)
        return err_set(err, st, "%s", why.message);
    *json_out = st == STATUS_OK ? inspect_json(options, ckpt) : unopened_json(options, &why);
    ckpt_close(ckpt);
    return *json_out != NULL ? STATUS_OK
                             : err_set(err, STATUS_NO_MEMORY, "no memory for the result");
}

enum status cli_inspect(struct cli_context *context, struct err *err)
{
    const struct cli_options *options = context->options;
    json_t *json = NULL, *device = NULL;
    enum status st = STATUS_OK;

    if (options->device != NULL)
        st = cli_device_inspect(options, &device, err);
    context->bad_usage = st == STATUS_BAD_INPUT;
    if (st == STATUS_OK && options->model != NULL)
        st = inspect_model(options, &json, err);
    if (st == STATUS_OK && options->json) {
        if (json == NULL)
            json = json_object();
        if (device != NULL)
            json_object_set(json, "device", device);
        st = cli_print_json(json, err);
        json = NULL;
    } else if (st == STATUS_OK) {
        if (device != NULL)
            cli_device_print(device);
        st = json != NULL ? print_text(json, err) : cli_stdout_flush(err);
    }
    json_decref(device);
    json_decref(json);
    return st;
}
