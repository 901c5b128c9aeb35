/* text/template/value.c - values: made, looked into, walked. */
#include <math.h>
#include <string.h>

#include "text/template/internal.h"

struct value tpl__none(void)
{
    return (struct value){ .kind = V_NONE };
}

struct value tpl__bool(bool truth)
{
    return (struct value){ .kind = V_BOOL, .truth = truth };
}

struct value tpl__int(int64_t integer)
{
    return (struct value){ .kind = V_INT, .integer = integer };
}

struct value tpl__float(double real)
{
    return (struct value){ .kind = V_FLOAT, .real = real };
}

struct value tpl__undefined(struct job *job, const struct str *name, const char *owner)
{
    struct value value = { .kind = V_UNDEFINED };

    value.undefined = tpl__alloc(job, sizeof(*value.undefined));
    value.undefined->name = name;
    value.undefined->owner = owner;
    return value;
}

struct value tpl__seq(struct job *job, enum kind kind, size_t capacity)
{
    struct value value = { .kind = kind };

    value.seq = tpl__alloc(job, sizeof(*value.seq));
    if (capacity > 0) {
        if (capacity > job->memory_limit_bytes / sizeof(struct value))
            tpl__fail(job, "a list of %zu items is too long", capacity);
        value.seq->items = tpl__alloc(job, capacity * sizeof(struct value));
        value.seq->capacity = capacity;
    }
    return value;
}

void tpl__push(struct job *job, struct seq *seq, struct value value)
{
    seq->items = tpl__grow(job, seq->items, seq->count, &seq->capacity, sizeof(*seq->items));
    seq->items[seq->count++] = value;
}

struct value tpl__dict(struct job *job)
{
    struct value value = { .kind = V_DICT };

    value.dict = tpl__alloc(job, sizeof(*value.dict));
    return value;
}

bool tpl__hashable(struct value value)
{
    if (value.kind == V_TUPLE) {
        for (size_t i = 0; i < value.seq->count; i++) {
            if (!tpl__hashable(value.seq->items[i]))
                return false;
        }
        return true;
    }
    return value.kind != V_LIST && value.kind != V_DICT && value.kind != V_SLICE;
}

struct value *tpl__dict_find_str(struct job *job, const struct dict *dict, const struct str *key)
{
    tpl__charge(job, dict->count / 16);
    for (size_t i = 0; i < dict->count; i++) {
        const struct value *other = &dict->entries[i].key;

        if (other->kind == V_STR && tpl__str_equal(other->str, key))
            return &dict->entries[i].value;
    }
    return NULL;
}

struct value *tpl__dict_find(struct job *job, const struct dict *dict, struct value key)
{
    if (key.kind == V_STR)
        return tpl__dict_find_str(job, dict, key.str);
    if (!tpl__hashable(key))
        tpl__fail(job, "unhashable type: '%s'", tpl__type_name(key));
    tpl__charge(job, dict->count / 4);
    for (size_t i = 0; i < dict->count; i++) {
        if (tpl__equal(job, dict->entries[i].key, key))
            return &dict->entries[i].value;
    }
    return NULL;
}

static void dict_add(struct job *job, struct dict *dict, struct value key, struct value value)
{
    dict->entries = tpl__grow(job, dict->entries, dict->count, &dict->capacity,
                              sizeof(*dict->entries));
    dict->entries[dict->count].key = key;
    dict->entries[dict->count++].value = value;
}

void tpl__dict_set(struct job *job, struct dict *dict, struct value key, struct value value)
{
    struct value *found = tpl__dict_find(job, dict, key);

    if (found != NULL)
        *found = value;
    else
        dict_add(job, dict, key, value);
}

/* --- from JSON -------------------------------------------------------------------------------- */

/* Roles come with every message, are chosen by programs rather than typed, and are part of control
 * tokens in some templates ('<|' + role + '|>'). */
static bool is_usual_role(const struct str *text)
{
    static const char *const roles[] = { "system", "user", "assistant", "tool", "developer",
                                         "function", "ipython", "model", "tool_results",
                                         "tool_response", "observation", "critic", "documents" };

    for (size_t i = 0; i < sizeof(roles) / sizeof(roles[0]); i++) {
        if (tpl__str_is(text, roles[i]))
            return true;
    }
    return false;
}

static struct value object_from_json(struct job *job, const json_t *json, uint8_t origin)
{
    struct value value = tpl__dict(job);
    const char *key;
    json_t *item;

    /* json_object_foreach takes no const, and changes nothing. */
    json_object_foreach((json_t *)json, key, item) {
        struct str *name = tpl__str(job, key, strlen(key), origin);
        struct value converted = tpl__from_json(job, item, origin);

        if (converted.kind == V_STR && tpl__str_is(name, "role") && is_usual_role(converted.str))
            converted.str->origin = 0;
        dict_add(job, value.dict, tpl__of_str(name), converted);
    }
    return value;
}

struct value tpl__from_json(struct job *job, const json_t *json, uint8_t origin)
{
    struct value value;

    tpl__charge(job, 1);
    switch (json_typeof(json)) {
    case JSON_OBJECT:
    case JSON_ARRAY:
        tpl__enter(job);
        if (json_is_object(json)) {
            value = object_from_json(job, json, origin);
        } else {
            value = tpl__seq(job, V_LIST, json_array_size(json));
            for (size_t i = 0; i < json_array_size(json); i++)
                tpl__push(job, value.seq, tpl__from_json(job, json_array_get(json, i), origin));
        }
        tpl__leave(job);
        return value;
    case JSON_STRING:
        return tpl__of_str(tpl__str(job, json_string_value(json), json_string_length(json),
                                    origin));
    case JSON_INTEGER: return tpl__int(json_integer_value(json));
    case JSON_REAL: return tpl__float(json_real_value(json));
    case JSON_TRUE: return tpl__bool(true);
    case JSON_FALSE: return tpl__bool(false);
    case JSON_NULL: break;
    }
    return tpl__none();
}

/* --- what a value is -------------------------------------------------------------------------- */

const char *tpl__type_name(struct value value)
{
    switch (value.kind) {
    case V_UNDEFINED: return "Undefined";
    case V_NONE: return "NoneType";
    case V_BOOL: return "bool";
    case V_INT: return "int";
    case V_FLOAT: return "float";
    case V_STR: return value.str->markup ? "Markup" : "str";
    case V_LIST: return "list";
    case V_TUPLE: return "tuple";
    case V_RANGE: return "range";
    case V_VIEW: return value.seq->label;
    case V_ITERATOR: return "generator";
    case V_DICT: return "dict";
    case V_NAMESPACE: return "Namespace";
    case V_FUNCTION: return "function";
    case V_MACRO: return "Macro";
    case V_LOOP: return "LoopContext";
    case V_CYCLER: return "Cycler";
    case V_JOINER: return "Joiner";
    case V_SLICE: return "slice";
    case V_MISSING: break;
    }
    return "missing";
}

bool tpl__length(struct job *job, struct value value, size_t *length_out)
{
    switch (value.kind) {
    case V_UNDEFINED:
        *length_out = 0;
        return true;
    case V_STR:
        *length_out = tpl__str_count(job, value.str);
        return true;
    case V_LIST:
    case V_TUPLE:
    case V_RANGE:
    case V_VIEW:
        *length_out = value.seq->count;
        return true;
    case V_DICT:
        *length_out = value.dict->count;
        return true;
    case V_LOOP:
        *length_out = value.loop->items->count;
        return true;
    default:
        return false;
    }
}

bool tpl__is_true(struct job *job, struct value value)
{
    size_t length;

    switch (value.kind) {
    case V_UNDEFINED:
    case V_NONE:
        return false;
    case V_BOOL: return value.truth;
    case V_INT: return value.integer != 0;
    case V_FLOAT: return value.real != 0.0;
    case V_STR: return value.str->size > 0;
    default: return !tpl__length(job, value, &length) || length > 0;
    }
}

bool tpl__is_iterable(struct value value)
{
    switch (value.kind) {
    case V_UNDEFINED:
    case V_STR:
    case V_LIST:
    case V_TUPLE:
    case V_RANGE:
    case V_VIEW:
    case V_ITERATOR:
    case V_DICT:
    case V_LOOP:
        return true;
    default:
        return false;
    }
}

static struct seq *characters(struct job *job, struct str *str)
{
    struct value items = tpl__seq(job, V_LIST, tpl__str_count(job, str));

    tpl__charge(job, str->size / 4);
    for (size_t at = 0; at < str->size;) {
        uint32_t c;
        size_t size = tpl__character(str, at, &c);

        tpl__push(job, items.seq, tpl__of_str(tpl__sub(job, str, at, at + size)));
        at += size;
    }
    return items.seq;
}

struct seq *tpl__iterate(struct job *job, struct value value)
{
    struct value items;

    switch (value.kind) {
    case V_UNDEFINED:
        return tpl__seq(job, V_LIST, 0).seq;
    case V_STR:
        return characters(job, value.str);
    case V_LIST:
    case V_TUPLE:
    case V_RANGE:
    case V_VIEW:
        return value.seq;
    case V_ITERATOR:
        if (value.seq->label != NULL)
            tpl__fail(job, "%s", value.seq->label);
        items = tpl__seq(job, V_LIST, 0);
        if (value.seq->next == value.seq->count)
            return items.seq;
        items.seq->items = value.seq->items + value.seq->next;
        items.seq->count = value.seq->count - value.seq->next;
        items.seq->capacity = items.seq->count;
        value.seq->next = value.seq->count;
        return items.seq;
    case V_DICT:
        items = tpl__seq(job, V_LIST, value.dict->count);
        for (size_t i = 0; i < value.dict->count; i++)
            tpl__push(job, items.seq, value.dict->entries[i].key);
        return items.seq;
    default:
        tpl__fail(job, "'%s' object is not iterable", tpl__type_name(value));
    }
}

bool tpl__is_int(struct value value, int64_t *out)
{
    if (value.kind == V_INT)
        *out = value.integer;
    else if (value.kind == V_BOOL)
        *out = value.truth;
    return value.kind == V_INT || value.kind == V_BOOL;
}

bool tpl__is_number(struct value value, double *out)
{
    int64_t integer = 0;

    if (value.kind == V_FLOAT)
        *out = value.real;
    else if (tpl__is_int(value, &integer))
        *out = (double)integer;
    return value.kind == V_FLOAT || value.kind == V_INT || value.kind == V_BOOL;
}

/* --- names ------------------------------------------------------------------------------------ */

static size_t name_hash(const char *bytes, size_t size)
{
    uint64_t hash = UINT64_C(0xcbf29ce484222325); /* FNV-1a */

    for (size_t i = 0; i < size; i++)
        hash = (hash ^ (unsigned char)bytes[i]) * UINT64_C(0x100000001b3);
    return (size_t)(hash ^ hash >> 32);
}

static size_t name_slot(const struct names *names, const char *bytes, size_t size)
{
    size_t slot = name_hash(bytes, size) & (names->slot_count - 1);

    while (names->slots[slot] != 0) {
        const struct str *name = names->items[names->slots[slot] - 1];

        if (name->size == size && (size == 0 || memcmp(name->bytes, bytes, size) == 0))
            break;
        slot = (slot + 1) & (names->slot_count - 1);
    }
    return slot;
}

struct str *tpl__interned(const struct names *names, const char *bytes, size_t size)
{
    size_t slot;

    if (names->slot_count == 0)
        return NULL;
    slot = name_slot(names, bytes, size);
    return names->slots[slot] == 0 ? NULL : names->items[names->slots[slot] - 1];
}

struct str *tpl__intern(struct job *job, struct names *names, const char *bytes, size_t size)
{
    struct str *found = tpl__interned(names, bytes, size);
    char *copy;

    if (found != NULL)
        return found;
    copy = tpl__alloc(job, size + 1);
    if (size > 0)
        memcpy(copy, bytes, size);
    names->items = tpl__grow(job, names->items, names->count, &names->capacity,
                             sizeof(struct str *));
    names->items[names->count] = tpl__str(job, copy, size, 0);
    /* Counted now: threads that render share it, and write nothing. */
    tpl__str_count(job, names->items[names->count]);
    names->count++;
    if (names->count * 2 > names->slot_count) {
        names->slot_count = names->slot_count == 0 ? 64 : names->slot_count * 2;
        names->slots = tpl__alloc(job, names->slot_count * sizeof(*names->slots));
        for (size_t i = 0; i < names->count; i++)
            names->slots[name_slot(names, names->items[i]->bytes, names->items[i]->size)] = i + 1;
    } else {
        names->slots[name_slot(names, copy, size)] = names->count;
    }
    return names->items[names->count - 1];
}
