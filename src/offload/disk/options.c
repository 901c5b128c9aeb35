/* offload/disk/options.c - reading the reader's options from one string. */
#include <assert.h>
#include <ctype.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/nearest.h"
#include "base/size.h"
#include "offload/disk/reader.h"

#define WORD_LENGTH_MAX 64
#define STALL_NS_MAX (UINT64_C(3600) * 1000000000)

/* What a value is read into, and how it is named in messages. */
struct value {
    const char *what; /* the option */
    const char *name;
    const char *text;
};

static enum status read_count(const struct value *value, uint64_t max, uint64_t *out,
                              struct err *err)
{
    const size_t digits = strspn(value->text, "0123456789");
    uint64_t number;

    if (digits == 0 || digits > 18 || value->text[digits] != '\0')
        return err_set(err, STATUS_BAD_INPUT, "%s: %s: '%s' is not a count", value->what,
                       value->name, value->text);
    number = strtoull(value->text, NULL, 10);
    if (number < 1 || number > max)
        return err_set(err, STATUS_BAD_INPUT,
                       "%s: %s is %" PRIu64 ", it must be from 1 to %" PRIu64, value->what,
                       value->name, number, max);
    *out = number;
    return STATUS_OK;
}

static enum status read_count32(const struct value *value, uint32_t max, uint32_t *out,
                                struct err *err)
{
    uint64_t number = 0;
    const enum status st = read_count(value, max, &number, err);

    if (st == STATUS_OK)
        *out = (uint32_t)number;
    return st;
}

static enum status read_use(const struct value *value, enum disk_use *out, struct err *err)
{
    static const char *const names[] = { "auto", "on", "off" };

    for (int i = 0; i < 3; i++) {
        if (strcmp(value->text, names[i]) == 0) {
            *out = (enum disk_use)i;
            return STATUS_OK;
        }
    }
    return err_set(err, STATUS_BAD_INPUT, "%s: %s is on, off or auto, not '%s'", value->what,
                   value->name, value->text);
}

static enum status read_piece(const struct value *value, uint64_t *out, struct err *err)
{
    uint64_t bytes = 0;
    const enum status st = size_parse(value->text, value->what, &bytes, err);

    if (st != STATUS_OK)
        return st;
    if (bytes < DISK_PIECE_BYTES_MIN || bytes > DISK_PIECE_BYTES_MAX || bytes % DISK_ALIGN != 0)
        return err_set(err, STATUS_BAD_INPUT, "%s: piece is %" PRIu64 " bytes; it must be from "
                       "%" PRIu64 " to %" PRIu64 ", and a multiple of %d", value->what, bytes,
                       DISK_PIECE_BYTES_MIN, DISK_PIECE_BYTES_MAX, DISK_ALIGN);
    *out = bytes;
    return STATUS_OK;
}

/* "3s", "250ms" */
static enum status read_time(const struct value *value, uint64_t *out, struct err *err)
{
    const size_t digits = strspn(value->text, "0123456789");
    const char *const unit = value->text + digits;
    uint64_t number, scale = 0;

    if (strcmp(unit, "ms") == 0)
        scale = 1000000;
    else if (strcmp(unit, "s") == 0)
        scale = 1000000000;
    if (digits == 0 || digits > 9 || scale == 0)
        return err_set(err, STATUS_BAD_INPUT, "%s: %s: '%s' is not a time such as 3s or 250ms",
                       value->what, value->name, value->text);
    number = strtoull(value->text, NULL, 10);
    if (number > STALL_NS_MAX / scale)
        return err_set(err, STATUS_BAD_INPUT, "%s: %s: '%s' is more than an hour", value->what,
                       value->name, value->text);
    *out = number * scale;
    return STATUS_OK;
}

/* "N" or "N:REST": the rest goes to *rest_out, NULL if there is none. */
static enum status read_fault(struct value *value, char *text, uint64_t *piece_out,
                              const char **rest_out, struct err *err)
{
    char *const colon = strchr(text, ':');

    *rest_out = NULL;
    if (colon != NULL) {
        *colon = '\0';
        *rest_out = colon + 1;
    }
    value->text = text;
    return read_count(value, UINT64_C(1) << 62, piece_out, err);
}

static enum status read_eio(struct value *value, char *text, struct disk_faults *faults,
                            struct err *err)
{
    const char *times;
    const enum status st = read_fault(value, text, &faults->eio_piece, &times, err);

    faults->eio_count = 1;
    if (st != STATUS_OK || times == NULL)
        return st;
    value->text = times;
    return read_count32(value, 1000000, &faults->eio_count, err);
}

static enum status read_stall(struct value *value, char *text, struct disk_faults *faults,
                              struct err *err)
{
    const char *time;
    const enum status st = read_fault(value, text, &faults->stall_piece, &time, err);

    if (st != STATUS_OK)
        return st;
    if (time == NULL)
        return err_set(err, STATUS_BAD_INPUT, "%s: stall needs a piece and a time, such as "
                       "stall=5:3s", value->what);
    value->text = time;
    return read_time(value, &faults->stall_ns, err);
}

enum setting { DEPTH, GUESS_DEPTH, PIECE, DIRECT, URING, EIO_, SHORT, END, STALL, SETTING_COUNT };
static const char *const setting_names[SETTING_COUNT] = {
    "depth", "guess-depth", "piece", "direct", "uring", "eio", "short", "end", "stall",
};

static enum status read_setting(enum setting setting, struct value *value, char *text,
                                struct disk_reader_options *options, struct err *err)
{

    value->text = text;
    switch (setting) {
    case DEPTH: return read_count32(value, DISK_DEPTH_MAX, &options->depth, err);
    case GUESS_DEPTH: return read_count32(value, DISK_DEPTH_MAX, &options->guess_depth, err);
    case PIECE: return read_piece(value, &options->piece_bytes, err);
    case DIRECT: return read_use(value, &options->direct, err);
    case URING: return read_use(value, &options->uring, err);
    case EIO_: return read_eio(value, text, &options->faults, err);
    case STALL: return read_stall(value, text, &options->faults, err);
    case SHORT: return read_count(value, UINT64_C(1) << 62, &options->faults.short_piece, err);
    case END: return read_count(value, UINT64_C(1) << 62, &options->faults.end_piece, err);
    case SETTING_COUNT: break;
    }
    assert(!"a setting without a case");
    return STATUS_OK;
}

/* One "name=value", in `word`, which is changed. */
static enum status read_word(char *word, const char *what, bool *seen,
                             struct disk_reader_options *options, struct err *err)
{
    char *const equals = strchr(word, '=');
    struct value value = { .what = what, .name = word };

    if (equals != NULL)
        *equals = '\0';
    for (int i = 0; i < SETTING_COUNT; i++) {
        if (strcmp(word, setting_names[i]) != 0)
            continue;
        if (equals == NULL)
            return err_set(err, STATUS_BAD_INPUT, "%s: %s needs a value: %s=...", what, word, word);
        if (seen[i])
            return err_set(err, STATUS_BAD_INPUT, "%s: %s is given twice", what, word);
        seen[i] = true;
        return read_setting((enum setting)i, &value, equals + 1, options, err);
    }
    return err_set(err, STATUS_BAD_INPUT, "%s: no setting '%s'; the nearest is '%s'", what, word,
                   nearest_name(word, setting_names, SETTING_COUNT));
}

enum status disk_reader_options_parse(const char *text, const char *what,
                                      struct disk_reader_options *options, struct err *err)
{
    struct disk_reader_options read = *options;
    bool seen[SETTING_COUNT] = { false };

    while (text != NULL && *text != '\0') {
        const size_t length = strcspn(text, ",");
        char word[WORD_LENGTH_MAX + 1];
        enum status st;

        if (length == 0 || length > WORD_LENGTH_MAX)
            return err_set(err, STATUS_BAD_INPUT, "%s: '%.80s' does not begin with NAME=VALUE",
                           what, text);
        memcpy(word, text, length);
        word[length] = '\0';
        st = read_word(word, what, seen, &read, err);
        if (st != STATUS_OK)
            return st;
        text += length + (text[length] == ',');
    }
    *options = read;
    return STATUS_OK;
}
