/* text/tokenizer/postprocess.c - the ids that go before and after a text: BOS, EOS and such.
 *
 * Whatever the file says comes down to a list before and a list after. ByteLevel changes only
 * offsets, which nobody here asks for. */
#include "text/tokenizer/internal.h"

#include <string.h>

#include "base/json.h"

static enum status add_id(struct postprocessor *postprocessor, bool is_before, int64_t id,
                          const char *what, struct err *err)
{
    size_t *count = is_before ? &postprocessor->before_count : &postprocessor->after_count;
    int32_t *ids = is_before ? postprocessor->before : postprocessor->after;

    if (*count == TEMPLATE_IDS_MAX)
        return err_set(err, STATUS_BAD_INPUT, "%s: the template adds more than %d ids", what,
                       TEMPLATE_IDS_MAX);
    ids[(*count)++] = (int32_t)id;
    return STATUS_OK;
}

/* The ids of special_tokens[name]. */
static enum status add_special(struct postprocessor *postprocessor, bool is_before,
                               const json_t *special_tokens, const char *name, const char *what,
                               struct err *err)
{
    const json_t *token = json_object_get(special_tokens, name);
    const json_t *ids = json_object_get(token, "ids");
    size_t i;
    json_t *id;

    if (!json_is_array(ids))
        return err_set(err, STATUS_BAD_INPUT,
                       "%s: the template names \"%.64s\", which special_tokens has no ids for",
                       what, name);
    json_array_foreach((json_t *)ids, i, id) {
        enum status st;

        if (!json_is_integer(id) || json_integer_value(id) < 0 ||
            json_integer_value(id) > TOKEN_ID_MAX)
            return err_set(err, STATUS_BAD_INPUT, "%s: an id of \"%.64s\" is not from 0 to %d",
                           what, name, TOKEN_ID_MAX);
        st = add_id(postprocessor, is_before, json_integer_value(id), what, err);
        if (st != STATUS_OK)
            return st;
    }
    return STATUS_OK;
}

static enum status read_template(struct postprocessor *postprocessor, const json_t *json,
                                 const char *what, struct err *err)
{
    const json_t *special_tokens = json_object_get(json, "special_tokens");
    const json_t *single = json_object_get(json, "single");
    bool seen_text = false;
    size_t i;
    json_t *piece;

    if (!json_is_array(single))
        return err_set(err, STATUS_BAD_INPUT,
                       "%s: TemplateProcessing: \"single\" is %s, an array is wanted", what,
                       json_kind(single));
    json_array_foreach((json_t *)single, i, piece) {
        const char *sequence = json_string_value(
            json_object_get(json_object_get(piece, "Sequence"), "id"));
        const char *special = json_string_value(
            json_object_get(json_object_get(piece, "SpecialToken"), "id"));
        enum status st;

        if (sequence != NULL && strcmp(sequence, "A") == 0 && !seen_text) {
            seen_text = true;
            continue;
        }
        if (special == NULL)
            return err_set(err, STATUS_BAD_INPUT,
                           "%s: TemplateProcessing: piece %zu of \"single\" is neither a special "
                           "token nor the only Sequence A", what, i);
        st = add_special(postprocessor, !seen_text, special_tokens, special, what, err);
        if (st != STATUS_OK)
            return st;
    }
    postprocessor->drops_text = !seen_text;
    return STATUS_OK;
}

/* "cls": ["[CLS]", 101] */
static enum status read_pair(struct postprocessor *postprocessor, bool is_before,
                             const json_t *json, const char *key, const char *what,
                             struct err *err)
{
    const json_t *id = json_array_get(json_object_get(json, key), 1);

    if (!json_is_integer(id) || json_integer_value(id) < 0 ||
        json_integer_value(id) > TOKEN_ID_MAX)
        return err_set(err, STATUS_BAD_INPUT, "%s: \"%s\" must be [\"TOKEN\", ID]", what, key);
    return add_id(postprocessor, is_before, json_integer_value(id), what, err);
}

static enum status add_postprocessor(void *context, const json_t *json, const char *type,
                                     const char *what, struct err *err)
{
    struct postprocessor *postprocessor = context;
    enum status st;

    if (strcmp(type, "ByteLevel") == 0)
        return STATUS_OK;
    if (strcmp(type, "TemplateProcessing") != 0 && strcmp(type, "BertProcessing") != 0 &&
        strcmp(type, "RobertaProcessing") != 0)
        return component_unsupported(what, type, err);
    if (postprocessor->before_count > 0 || postprocessor->after_count > 0 ||
        postprocessor->drops_text)
        return err_set(err, STATUS_BAD_INPUT,
                       "%s: two steps that add tokens, only one is supported", what);
    if (strcmp(type, "TemplateProcessing") == 0)
        return read_template(postprocessor, json, what, err);
    st = read_pair(postprocessor, true, json, "cls", what, err);
    return st == STATUS_OK ? read_pair(postprocessor, false, json, "sep", what, err) : st;
}

enum status postprocessor_init(struct postprocessor *postprocessor, const json_t *json,
                               const char *what, struct err *err)
{
    return components_walk(json, "processors", what, add_postprocessor, postprocessor, err);
}
