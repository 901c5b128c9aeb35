/* offload/plan/globs.c - --offload-params: which parameters a list of globs selects.
 *
 * Globs are fnmatch's, separated by commas, each against the whole name, '*' crossing dots. Only
 * parameters of the layers that the grouping has chosen can be selected, and a glob that selects
 * none of those is refused: it would silently do nothing. The sentence then says why, as nearly as
 * can be told: the glob matches elsewhere, or would match with stars around it, or here is the
 * nearest name. */
#include <assert.h>
#include <fnmatch.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "offload/internal.h"

#define GLOB_BYTES_MAX 512 /* one glob; a name is compared in a table of this width */

static size_t min3(size_t a, size_t b, size_t c)
{
    const size_t ab = a < b ? a : b;

    return ab < c ? ab : c;
}

/* The edits that turn `pattern` into some part of `name` (Sellers 1980: the edit distance's table
 * with a free start and end in the name). */
static size_t distance_to_part(const char *pattern, const char *name)
{
    size_t column[GLOB_BYTES_MAX + 1];
    const size_t length = strlen(pattern);
    size_t best = length;

    assert(length <= GLOB_BYTES_MAX);
    for (size_t i = 0; i <= length; i++)
        column[i] = i;
    for (; *name != '\0'; name++) {
        size_t diagonal = column[0];

        for (size_t i = 1; i <= length; i++) {
            const size_t above = column[i];

            column[i] = min3(above + 1, column[i - 1] + 1,
                             diagonal + (pattern[i - 1] != *name));
            diagonal = above;
        }
        if (column[length] < best)
            best = column[length];
    }
    return best;
}

/* The eligible name with a part nearest to the glob's own letters; NULL when none is eligible. */
static const char *nearest_name(const char *glob, const struct offload__param *params,
                                size_t param_count, const bool *eligible)
{
    char letters[GLOB_BYTES_MAX + 1] = "";
    const char *nearest = NULL;
    size_t length = 0, distance_min = SIZE_MAX;

    for (const char *c = glob; *c != '\0'; c++) {
        if (strchr("*?[]!", *c) == NULL)
            letters[length++] = *c;
    }
    letters[length] = '\0';
    for (size_t i = 0; i < param_count; i++) {
        size_t distance;

        if (!eligible[i])
            continue;
        distance = distance_to_part(letters, params[i].name);
        if (distance < distance_min) {
            distance_min = distance;
            nearest = params[i].name;
        }
    }
    return nearest;
}

/* Says why a glob selected nothing. */
static enum status refuse(const char *glob, const struct offload__param *params, size_t param_count,
                          const bool *eligible, struct err *err)
{
    char wider[GLOB_BYTES_MAX + 3];

    for (size_t i = 0; i < param_count; i++) {
        if (fnmatch(glob, params[i].name, 0) != 0)
            continue;
        if (params[i].layer == OFFLOAD_NO_LAYER)
            return err_set(err, STATUS_BAD_INPUT,
                           "--offload-params: '%.200s' matches only what lies outside the layers, "
                           "such as %.200s, and that stays on the device; names that can move look "
                           "like %.200s", glob, params[i].name,
                           nearest_name(glob, params, param_count, eligible));
        return err_set(err, STATUS_BAD_INPUT,
                       "--offload-params: '%.200s' matches %.200s, but the grouping moves nothing "
                       "of layer %" PRId32 "; --offload-num-in-group equal to --offload-group-size "
                       "moves every layer", glob, params[i].name, params[i].layer);
    }
    (void)snprintf(wider, sizeof(wider), "*%s*", glob);
    for (size_t i = 0; i < param_count; i++) {
        if (eligible[i] && fnmatch(wider, params[i].name, 0) == 0)
            return err_set(err, STATUS_BAD_INPUT,
                           "--offload-params: '%.200s' matches no whole name; '%.202s' would match "
                           "%.200s", glob, wider, params[i].name);
    }
    return err_set(err, STATUS_BAD_INPUT,
                   "--offload-params: '%.200s' matches no parameter of the layers that the "
                   "grouping chooses; the nearest name there is %.200s", glob,
                   nearest_name(glob, params, param_count, eligible));
}

static enum status match_one(const char *glob, const struct offload__param *params,
                             size_t param_count, const bool *eligible, bool *selected,
                             struct err *err)
{
    bool any = false;

    for (size_t i = 0; i < param_count; i++) {
        if (eligible[i] && fnmatch(glob, params[i].name, 0) == 0) {
            selected[i] = true;
            any = true;
        }
    }
    return any ? STATUS_OK : refuse(glob, params, param_count, eligible, err);
}

enum status offload__globs_match(const char *globs, const struct offload__param *params,
                                 size_t param_count, const bool *eligible, bool *selected_out,
                                 struct err *err)
{
    const char *start = globs;
    char glob[GLOB_BYTES_MAX + 1];
    enum status st;

    memset(selected_out, 0, param_count * sizeof(*selected_out));
    for (;;) {
        const size_t length = strcspn(start, ",");

        if (length == 0)
            return err_set(err, STATUS_BAD_INPUT,
                           "--offload-params: '%.200s' has an empty glob; write GLOB or GLOB,GLOB",
                           globs);
        if (length > GLOB_BYTES_MAX)
            return err_set(err, STATUS_BAD_INPUT,
                           "--offload-params: a glob of %zu characters; at most %d", length,
                           GLOB_BYTES_MAX);
        memcpy(glob, start, length);
        glob[length] = '\0';
        st = match_one(glob, params, param_count, eligible, selected_out, err);
        if (st != STATUS_OK)
            return st;
        if (start[length] == '\0')
            return STATUS_OK;
        start += length + 1;
    }
}
