/* device/settings.c - see settings.h. */
#include "device/settings.h"

#include <assert.h>
#include <ctype.h>
#include <inttypes.h>
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "base/nearest.h"
#include "base/size.h"
#include "tensor/layout.h"

#define NAME_LENGTH_MAX 32
#define VALUE_LENGTH_MAX 64
#define SETTINGS_MAX 16

static enum status read_duration(const char *text, const char *what, uint64_t *ns_out,
                                 struct err *err)
{
    static const struct {
        const char *name;
        double ns;
    } units[] = { { "ns", 1 }, { "us", 1e3 }, { "ms", 1e6 }, { "s", 1e9 } };
    char *end = NULL;
    double number;

    if (!isdigit((unsigned char)text[0]) && text[0] != '.')
        return err_set(err, STATUS_BAD_INPUT, "%s: '%s' is not a time such as 10us or 1ms", what,
                       text);
    number = strtod(text, &end);
    for (size_t i = 0; i < sizeof(units) / sizeof(units[0]); i++) {
        if (strcasecmp(end, units[i].name) != 0)
            continue;
        number *= units[i].ns;
        if (!isfinite(number) || number >= 0x1p63)
            return err_set(err, STATUS_BAD_INPUT, "%s: '%s' is too long", what, text);
        *ns_out = (uint64_t)number;
        return STATUS_OK;
    }
    return err_set(err, STATUS_BAD_INPUT, "%s: '%s' needs a unit: ns, us, ms or s", what, text);
}

static enum status read_bandwidth(char *text, const char *what, uint64_t *out, struct err *err)
{
    const size_t length = strlen(text);

    if (length >= 2 && strcasecmp(text + length - 2, "/s") == 0)
        text[length - 2] = '\0';
    return size_parse(text, what, out, err);
}

static enum status read_count(const char *text, const char *what, uint64_t *out, struct err *err)
{
    const size_t digits = strspn(text, "0123456789");

    if (digits == 0 || digits > 18 || text[digits] != '\0')
        return err_set(err, STATUS_BAD_INPUT, "%s: '%s' is not a count", what, text);
    *out = strtoull(text, NULL, 10);
    return STATUS_OK;
}

static enum status read_layout(const char *text, const char *what, uint64_t *out, struct err *err)
{
    const bool is_nz = strcasecmp(text, "nz") == 0;

    if (!is_nz && strcasecmp(text, "nd") != 0)
        return err_set(err, STATUS_BAD_INPUT, "%s: '%s' is not a layout; nd and nz are", what,
                       text);
    *out = is_nz ? LAYOUT_FRACTAL_NZ : LAYOUT_ND;
    return STATUS_OK;
}

static enum status read_switch(const char *text, const char *what, uint64_t *out, struct err *err)
{
    const bool is_on = strcasecmp(text, "on") == 0;

    if (!is_on && strcasecmp(text, "off") != 0)
        return err_set(err, STATUS_BAD_INPUT, "%s: '%s' is neither on nor off", what, text);
    *out = is_on ? 1 : 0;
    return STATUS_OK;
}

static enum status read_value(const char *device_name, const struct setting *setting, char *text,
                              struct err *err)
{
    char what[NAME_LENGTH_MAX * 2 + 16];
    uint64_t value = 0;
    enum status st = STATUS_OK;

    (void)snprintf(what, sizeof(what), "--device %s: %s", device_name, setting->name);
    switch (setting->kind) {
    case SETTING_SIZE: st = size_parse(text, what, &value, err); break;
    case SETTING_BANDWIDTH: st = read_bandwidth(text, what, &value, err); break;
    case SETTING_DURATION: st = read_duration(text, what, &value, err); break;
    case SETTING_COUNT: st = read_count(text, what, &value, err); break;
    case SETTING_LAYOUT: st = read_layout(text, what, &value, err); break;
    case SETTING_SWITCH: st = read_switch(text, what, &value, err); break;
    }
    if (st != STATUS_OK)
        return st;
    if (setting->kind == SETTING_BANDWIDTH && value == 0) {
        *setting->value = 0;
        return STATUS_OK;
    }
    if (value < setting->value_min || value > setting->value_max)
        return err_set(err, STATUS_BAD_INPUT,
                       "%s: '%s' is %" PRIu64 ", it must be from %" PRIu64 " to %" PRIu64, what,
                       text, value, setting->value_min, setting->value_max);
    *setting->value = value;
    return STATUS_OK;
}

static enum status refuse_name(const char *device_name, const char *name,
                               const struct setting *settings, size_t setting_count,
                               struct err *err)
{
    const char *names[SETTINGS_MAX];

    if (setting_count == 0)
        return err_set(err, STATUS_BAD_INPUT, "--device %s takes no settings, '%s' was given",
                       device_name, name);
    for (size_t i = 0; i < setting_count; i++)
        names[i] = settings[i].name;
    return err_set(err, STATUS_BAD_INPUT, "--device %s has no setting '%s'; the nearest is '%s'",
                   device_name, name, nearest_name(name, names, setting_count));
}

enum status device__settings_read(const char *device_name, const char *text,
                                  const struct setting *settings, size_t setting_count,
                                  struct err *err)
{
    bool seen[SETTINGS_MAX] = { false };

    assert(setting_count <= SETTINGS_MAX);
    if (text == NULL)
        return STATUS_OK;
    while (*text != '\0') {
        const size_t length = strcspn(text, ",");
        char word[NAME_LENGTH_MAX + VALUE_LENGTH_MAX];
        char *value;
        size_t i = 0;
        enum status st;

        if (length >= sizeof(word))
            return err_set(err, STATUS_BAD_INPUT, "--device %s: the setting '%.32s...' is too long",
                           device_name, text);
        memcpy(word, text, length);
        word[length] = '\0';
        text += length + (text[length] == ',');
        value = strchr(word, '=');
        if (value != NULL)
            *value++ = '\0';
        while (i < setting_count && strcasecmp(settings[i].name, word) != 0)
            i++;
        if (i == setting_count)
            return refuse_name(device_name, word, settings, setting_count, err);
        if (value == NULL || *value == '\0')
            return err_set(err, STATUS_BAD_INPUT, "--device %s: %s needs a value: %s=...",
                           device_name, word, word);
        if (seen[i])
            return err_set(err, STATUS_BAD_INPUT, "--device %s: %s is given twice", device_name,
                           word);
        seen[i] = true;
        st = read_value(device_name, &settings[i], value, err);
        if (st != STATUS_OK)
            return st;
    }
    return STATUS_OK;
}
