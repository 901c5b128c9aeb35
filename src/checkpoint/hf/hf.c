/* checkpoint/hf/hf.c - a Hugging Face folder: config.json and safetensors files.
 *
 *     config.json                      what the model is; handed on as it stands
 *     model.safetensors                the only file, or else
 *     model.safetensors.index.json     { "weight_map": { TENSOR: FILE, ... }, "metadata": ... }
 *     model-00001-of-00007.safetensors ...
 *
 * The order in which they are looked for is that of transformers. With an index, exactly the files
 * that it names are opened, and it and they must agree on every tensor. */
#include <assert.h>
#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/buf.h"
#include "base/json.h"
#include "base/map.h"
#include "checkpoint/internal.h"
#include "checkpoint/members.h"
#include "checkpoint/hf/packed.h"

#define CONFIG_NAME "config.json"
#define SINGLE_NAME "model.safetensors"
#define INDEX_NAME "model.safetensors.index.json"
#define SUFFIX ".safetensors"
#define INDEX_BYTES_MAX (256u << 20)      /* room for CKPT_TENSORS_MAX long names */
#define INDEX_MEMBER_BYTES_MAX (1u << 20) /* of what stands beside the weight map */

static enum status join(const char *folder, const char *name, char **path_out, struct err *err)
{
    if (asprintf(path_out, "%s/%s", folder, name) < 0)
        return err_set(err, STATUS_NO_MEMORY, "%s: no memory for a path", folder);
    return STATUS_OK;
}

static bool has_file(const char *folder, const char *name)
{
    char path[PATH_MAX];

    return (size_t)snprintf(path, sizeof(path), "%s/%s", folder, name) < sizeof(path) &&
           file_exists(path);
}

static bool ends_with(const char *text, const char *suffix)
{
    const size_t size = strlen(text);

    return size >= strlen(suffix) && strcmp(text + size - strlen(suffix), suffix) == 0;
}

static enum status read_config(struct ckpt *ckpt, struct err *err)
{
    char *path;
    enum status st;

    if (!has_file(ckpt->path, CONFIG_NAME))
        return err_set(err, STATUS_BAD_INPUT,
                       "%s: has no " CONFIG_NAME
                       "; a model is a Hugging Face folder with " CONFIG_NAME " and *" SUFFIX,
                       ckpt->path);
    st = join(ckpt->path, CONFIG_NAME, &path, err);
    if (st != STATUS_OK)
        return st;
    st = json_read_file(path, CKPT_CONFIG_BYTES_MAX, &ckpt->config, err);
    if (st == STATUS_OK && !json_is_object(ckpt->config))
        st = err_set(err, STATUS_BAD_INPUT, "%s: is %s, an object is wanted", path,
                     json_kind(ckpt->config));
    free(path);
    return st;
}

static enum status read_safetensors(struct ckpt *ckpt, const char *name, struct err *err)
{
    struct file file = { .fd = -1 };
    char *path;
    enum status st = join(ckpt->path, name, &path, err);

    if (st != STATUS_OK)
        return st;
    st = file_open(path, &file, err);
    free(path);
    if (st == STATUS_OK)
        st = ckpt__add_file(ckpt, &file, err);
    file_close(&file);
    return st == STATUS_OK ? safetensors__read(ckpt, ckpt->file_count - 1, err) : st;
}

/* --- the index -------------------------------------------------------------------------------- */

struct index {
    const char *path;       /* of the index itself, for messages */
    const char *map;        /* the weight map's text */
    size_t map_size;
    struct map *files;      /* file name -> its place in ckpt->files */
    char **names;           /* the files' names, sorted once all are known */
    uint32_t name_count;
};

/* A name that stays inside the folder and is a safetensors file. */
static enum status check_file_name(const char *index_path, const json_t *name, struct err *err)
{
    const char *const text = json_string_value(name);

    for (size_t i = 0; i < json_string_length(name); i++)
        if ((unsigned char)text[i] < 0x20 || text[i] == 0x7F)
            return err_set(err, STATUS_BAD_INPUT,
                           "%s: a file's name has the control character 0x%02X", index_path,
                           (unsigned char)text[i]);
    if (strlen(text) > 255 || strchr(text, '/') != NULL || text[0] == '.')
        return err_set(err, STATUS_BAD_INPUT,
                       "%s: '%.255s' is not the plain name of a file in the same folder",
                       index_path, text);
    if (!ends_with(text, SUFFIX))
        return err_set(err, STATUS_BAD_INPUT, "%s: '%s' is not a *" SUFFIX " file", index_path,
                       text);
    return STATUS_OK;
}

/* Calls visit(context, tensor's name, file's name) for each member of the weight map. */
static enum status for_each_mapped(struct index *index,
                                   enum status (*visit)(void *context, struct index *index,
                                                        const json_t *tensor, const json_t *file,
                                                        struct err *err),
                                   void *context, struct err *err)
{
    struct members members;
    char what[512];

    (void)snprintf(what, sizeof(what), "%s: weight_map", index->path);
    members_init(&members, index->map, index->map_size, what);
    for (;;) {
        struct member member;
        json_t *tensor = NULL;
        json_t *file = NULL;
        bool more;
        enum status st = members_next(&members, &member, &more, err);
        if (st != STATUS_OK || !more)
            return st;
        st = members_string(&members, member.key, member.key_size, &tensor, err);
        if (st == STATUS_OK)
            st = members_string(&members, member.value, member.value_size, &file, err);
        if (st == STATUS_OK)
            st = visit(context, index, tensor, file, err);
        json_decref(tensor);
        json_decref(file);
        if (st != STATUS_OK)
            return st;
    }
}

/* First visit: gathers the files' names. */
static enum status gather_file(void *context, struct index *index, const json_t *tensor,
                               const json_t *file, struct err *err)
{
    const char *const name = json_string_value(file);
    char **names;
    enum status st;

    (void)context;
    (void)tensor;
    if (map_get(index->files, name, json_string_length(file), NULL))
        return STATUS_OK;
    st = check_file_name(index->path, file, err);
    if (st != STATUS_OK)
        return st;
    if (index->name_count == CKPT_FILES_MAX)
        return err_set(err, STATUS_BAD_INPUT, "%s: names more than %d files", index->path,
                       CKPT_FILES_MAX);
    names = realloc(index->names, (index->name_count + 1) * sizeof(*names));
    if (names == NULL)
        return err_set(err, STATUS_NO_MEMORY, "%s: no memory for the files' names", index->path);
    index->names = names;
    names[index->name_count] = strdup(name);
    if (names[index->name_count] == NULL)
        return err_set(err, STATUS_NO_MEMORY, "%s: no memory for the files' names", index->path);
    index->name_count++;
    return map_set(index->files, name, strlen(name), 0, err);
}

struct mapping {
    const struct ckpt *ckpt;
    struct map *seen; /* tensors that the map names */
};

/* Second visit: each tensor must be in its file. */
static enum status check_mapping(void *context, struct index *index, const json_t *tensor,
                                 const json_t *file, struct err *err)
{
    struct mapping *const mapping = context;
    const char *const name = json_string_value(tensor);
    const struct ckpt_tensor *const found =
        strlen(name) == json_string_length(tensor) ? ckpt_find(mapping->ckpt, name) : NULL;
    uint64_t file_index;

    if (found == NULL)
        return err_set(err, STATUS_BAD_INPUT,
                       "%s: tensor '%.*s' is said to be in %s, which lacks it", index->path,
                       CKPT_NAME_BYTES_MAX, name, json_string_value(file));
    if (!map_get(index->files, json_string_value(file), json_string_length(file), &file_index) ||
        found->file_index != file_index)
        return err_set(err, STATUS_BAD_INPUT, "%s: tensor '%s' is said to be in %s, but is in %s",
                       index->path, name, json_string_value(file),
                       ckpt_file_path(mapping->ckpt, found->file_index));
    if (map_get(mapping->seen, name, strlen(name), NULL))
        return err_set(err, STATUS_BAD_INPUT, "%s: tensor '%s' is in the weight map twice",
                       index->path, name);
    return map_set(mapping->seen, name, strlen(name), 1, err);
}

static enum status check_mappings(struct ckpt *ckpt, struct index *index, struct err *err)
{
    struct mapping mapping = { .ckpt = ckpt };
    enum status st = map_create(ckpt->tensor_count, &mapping.seen, err);

    if (st == STATUS_OK)
        st = for_each_mapped(index, check_mapping, &mapping, err);
    for (size_t i = 0; st == STATUS_OK && i < ckpt->tensor_count; i++) {
        const struct ckpt_tensor *const tensor = &ckpt->tensors[i];
        if (!map_get(mapping.seen, tensor->name, strlen(tensor->name), NULL))
            st = err_set(err, STATUS_BAD_INPUT, "%s: lacks tensor '%s', which is in %s",
                         index->path, tensor->name, ckpt_file_path(ckpt, tensor->file_index));
    }
    map_destroy(mapping.seen);
    return st;
}

/* What stands beside the weight map is not used, but must be JSON. */
static enum status check_other_member(const struct index *index, const struct member *member,
                                      struct err *err)
{
    const int shown = member->key_size < 64 ? (int)member->key_size : 64;
    json_error_t error;
    json_t *value;

    if (member->value_size > INDEX_MEMBER_BYTES_MAX)
        return err_set(err, STATUS_BAD_INPUT, "%s: %.*s has %zu bytes, at most %u are read",
                       index->path, shown, member->key, member->value_size, INDEX_MEMBER_BYTES_MAX);
    value = json_loadb(member->value, member->value_size, JSON_DECODE_ANY | JSON_ALLOW_NUL, &error);
    if (value == NULL)
        return err_set(err, STATUS_BAD_INPUT, "%s: not valid JSON: %.*s: %s", index->path, shown,
                       member->key, error.text);
    json_decref(value);
    return STATUS_OK;
}

/* Finds the weight map in the index's text. */
static enum status find_weight_map(struct index *index, const struct buf *text, struct err *err)
{
    struct members members;

    members_init(&members, text->data, text->size, index->path);
    for (;;) {
        struct member member;
        json_t *key;
        bool more;
        bool is_map;
        enum status st = members_next(&members, &member, &more, err);
        if (st != STATUS_OK || !more)
            return st;
        st = members_string(&members, member.key, member.key_size, &key, err);
        if (st != STATUS_OK)
            return st;
        is_map = strcmp(json_string_value(key), "weight_map") == 0;
        json_decref(key);
        if (!is_map) {
            st = check_other_member(index, &member, err);
            if (st != STATUS_OK)
                return st;
            continue;
        }
        if (index->map != NULL)
            return err_set(err, STATUS_BAD_INPUT, "%s: \"weight_map\" is there twice", index->path);
        if (member.value[0] != '{')
            return err_set(err, STATUS_BAD_INPUT, "%s: \"weight_map\" is not an object",
                           index->path);
        index->map = member.value;
        index->map_size = member.value_size;
    }
}

static int compare_names(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

static enum status read_mapped_files(struct ckpt *ckpt, struct index *index, struct err *err)
{
    enum status st = for_each_mapped(index, gather_file, NULL, err);

    if (st == STATUS_OK && index->name_count == 0)
        st = err_set(err, STATUS_BAD_INPUT, "%s: \"weight_map\" is empty", index->path);
    if (st == STATUS_OK)
        qsort(index->names, index->name_count, sizeof(*index->names), compare_names);
    for (uint32_t i = 0; st == STATUS_OK && i < index->name_count; i++) {
        const char *const name = index->names[i];
        if (!has_file(ckpt->path, name))
            st = err_set(err, STATUS_BAD_INPUT, "%s: names %s, which is not there", index->path,
                         name);
        if (st == STATUS_OK)
            st = map_set(index->files, name, strlen(name), i, err);
        if (st == STATUS_OK)
            st = read_safetensors(ckpt, name, err);
    }
    return st == STATUS_OK ? check_mappings(ckpt, index, err) : st;
}

static enum status read_index(struct ckpt *ckpt, struct err *err)
{
    struct index index = { .name_count = 0 };
    struct buf text;
    char *path = NULL;
    enum status st = join(ckpt->path, INDEX_NAME, &path, err);

    if (st != STATUS_OK)
        return st;
    index.path = path;
    buf_init(&text, INDEX_BYTES_MAX);
    st = file_read_all(path, &text, err);
    if (st == STATUS_OK)
        st = find_weight_map(&index, &text, err);
    if (st == STATUS_OK && index.map == NULL)
        st = err_set(err, STATUS_BAD_INPUT, "%s: \"weight_map\" is missing", path);
    if (st == STATUS_OK)
        st = map_create(0, &index.files, err);
    if (st == STATUS_OK)
        st = read_mapped_files(ckpt, &index, err);
    for (uint32_t i = 0; i < index.name_count; i++)
        free(index.names[i]);
    free(index.names);
    map_destroy(index.files);
    buf_deinit(&text);
    free(path);
    return st;
}

/* --- the folder ------------------------------------------------------------------------------- */

/* What a folder without model.safetensors and index holds. */
struct listing {
    size_t safetensors_count, pickle_count;
    char safetensors_name[256]; /* one of them */
    char pickle_name[256];
};

static enum status list_folder(const char *path, struct listing *listing_out, struct err *err)
{
    struct listing listing = { .safetensors_count = 0 };
    const struct dirent *entry;
    DIR *const folder = opendir(path);

    if (folder == NULL)
        return err_set(err, STATUS_IO, "%s: %s", path, strerror(errno));
    while ((entry = readdir(folder)) != NULL) {
        if (entry->d_name[0] == '.')
            continue;
        if (ends_with(entry->d_name, SUFFIX)) {
            listing.safetensors_count++;
            (void)snprintf(listing.safetensors_name, sizeof(listing.safetensors_name), "%s",
                           entry->d_name);
        } else if (ends_with(entry->d_name, ".bin") || ends_with(entry->d_name, ".pth") ||
                   ends_with(entry->d_name, ".pt")) {
            listing.pickle_count++;
            (void)snprintf(listing.pickle_name, sizeof(listing.pickle_name), "%s", entry->d_name);
        }
    }
    (void)closedir(folder);
    *listing_out = listing;
    return STATUS_OK;
}

static enum status read_only_file(struct ckpt *ckpt, struct err *err)
{
    struct listing listing = { .safetensors_count = 0 };
    enum status st = list_folder(ckpt->path, &listing, err);

    if (st != STATUS_OK)
        return st;
    if (listing.safetensors_count == 1)
        return read_safetensors(ckpt, listing.safetensors_name, err);
    if (listing.safetensors_count > 1)
        return err_set(err, STATUS_BAD_INPUT,
                       "%s: has %zu *" SUFFIX " files and no " INDEX_NAME
                       " to say which belong together",
                       ckpt->path, listing.safetensors_count);
    if (listing.pickle_count > 0)
        return err_set(err, STATUS_BAD_INPUT,
                       "%s: has PyTorch files (%s) and no *" SUFFIX "; only *" SUFFIX " are read",
                       ckpt->path, listing.pickle_name);
    return err_set(err, STATUS_BAD_INPUT,
                   "%s: has no weights: neither " SINGLE_NAME " nor " INDEX_NAME, ckpt->path);
}

static enum status read_weights(struct ckpt *ckpt, struct err *err)
{
    if (has_file(ckpt->path, SINGLE_NAME))
        return read_safetensors(ckpt, SINGLE_NAME, err);
    if (has_file(ckpt->path, INDEX_NAME))
        return read_index(ckpt, err);
    return read_only_file(ckpt, err);
}

/* Quantised weights that cannot be used are told of to whoever wants to use them, so that what the
 * files hold can still be listed. */
static enum status compose(struct ckpt *ckpt, struct err *err)
{
    char *path = NULL;
    enum status st = join(ckpt->path, CONFIG_NAME, &path, err);
    struct err why;

    if (st != STATUS_OK)
        return st;
    st = packed__compose(ckpt, path, &why);
    free(path);
    if (st != STATUS_BAD_INPUT)
        return st == STATUS_OK ? st : err_set(err, st, "%s", why.message);
    ckpt->refusal = strdup(why.message);
    return ckpt->refusal != NULL
               ? STATUS_OK
               : err_set(err, STATUS_NO_MEMORY, "%s: no memory to open it", ckpt->path);
}

static enum status hf_open(struct ckpt *ckpt, struct err *err)
{
    enum status st = read_config(ckpt, err);

    if (st == STATUS_OK)
        st = read_weights(ckpt, err);
    return st == STATUS_OK ? compose(ckpt, err) : st;
}

const struct ckpt_format ckpt__format_hf = {
    .name = "safetensors",
    .what = "a Hugging Face folder with config.json and *.safetensors",
    .config_suffix = "/" CONFIG_NAME,
    .matches = file_is_directory,
    .open = hf_open,
};
