/* text/template/filters_list.c - filters of lists and dicts. */
#include <string.h>

#include "text/template/internal.h"

static struct value iterator(struct run *run)
{
    return tpl__seq(&run->job, V_ITERATOR, 0);
}

static struct value ignore_case(struct run *run, struct value value)
{
    return value.kind == V_STR ? tpl__of_str(tpl__lower(&run->job, value.str)) : value;
}

struct value tpl__attr_path(struct run *run, struct value object, struct value path,
                            struct value missing)
{
    size_t at = 0;

    if (!tpl__given(path))
        return object;
    if (path.kind != V_STR)
        return tpl__item(run, object, path);
    for (;;) {
        const char *dot = memchr(path.str->bytes + at, '.', path.str->size - at);
        size_t end = dot != NULL ? (size_t)(dot - path.str->bytes) : path.str->size;
        struct str *part = tpl__sub(&run->job, path.str, at, end);
        int64_t index;
        bool digits = part->size > 0;

        for (size_t i = 0; i < part->size; i++)
            digits = digits && part->bytes[i] >= '0' && part->bytes[i] <= '9';
        object = tpl__item(run, object, digits && tpl__parse_int(part, 10, &index)
                                            ? tpl__int(index) : tpl__of_str(part));
        if (object.kind == V_UNDEFINED && tpl__given(missing))
            object = missing;
        if (dot == NULL)
            return object;
        at = end + 1;
    }
}

static struct value filter_list(struct run *run, struct value self, struct value *args)
{
    const struct seq *items = tpl__iterate(&run->job, self);
    struct value list = tpl__seq(&run->job, V_LIST, items->count);

    (void)args;
    tpl__charge(&run->job, items->count / 4);
    for (size_t i = 0; i < items->count; i++)
        tpl__push(&run->job, list.seq, items->items[i]);
    return list;
}

static struct value filter_length(struct run *run, struct value self, struct value *args)
{
    size_t length;

    (void)args;
    if (!tpl__length(&run->job, self, &length))
        tpl__fail(&run->job, "object of type '%s' has no len()", tpl__type_name(self));
    return tpl__int((int64_t)length);
}

static struct value no_item(struct run *run, const char *what)
{
    return tpl__undefined(&run->job, tpl__str_c(&run->job, what), NULL);
}

static struct value filter_first(struct run *run, struct value self, struct value *args)
{
    const struct seq *items;

    (void)args;
    if (self.kind == V_ITERATOR && self.seq->next < self.seq->count)
        return self.seq->items[self.seq->next++];
    items = tpl__iterate(&run->job, self);
    return items->count > 0 ? items->items[0]
                            : no_item(run, "No first item, sequence was empty.");
}

static struct value filter_last(struct run *run, struct value self, struct value *args)
{
    const struct seq *items;

    (void)args;
    if (self.kind == V_ITERATOR || self.kind == V_LOOP || self.kind == V_UNDEFINED)
        tpl__fail(&run->job, "'%s' object is not reversible", tpl__type_name(self));
    items = tpl__iterate(&run->job, self);
    return items->count > 0 ? items->items[items->count - 1]
                            : no_item(run, "No last item, sequence was empty.");
}

static struct value filter_reverse(struct run *run, struct value self, struct value *args)
{
    const struct seq *items;
    struct value reversed;

    (void)args;
    if (self.kind == V_STR) {
        struct builder out;
        struct str *text;
        uint32_t c;

        tpl__builder_init(&out, &run->job);
        for (size_t at = self.str->size; at > 0;) {
            size_t size = tpl__character_before(self.str, at, &c);

            tpl__put_part(&out, self.str, at - size, at);
            at -= size;
        }
        text = tpl__built(&out);
        text->markup = self.str->markup;
        return tpl__of_str(text);
    }
    if (!tpl__is_iterable(self))
        tpl__fail(&run->job, "argument must be iterable");
    items = tpl__iterate(&run->job, self);
    reversed = tpl__seq(&run->job, self.kind == V_ITERATOR ? V_LIST : V_ITERATOR, items->count);
    tpl__charge(&run->job, items->count / 4);
    for (size_t i = items->count; i > 0; i--)
        tpl__push(&run->job, reversed.seq, items->items[i - 1]);
    return reversed;
}

static struct value filter_join(struct run *run, struct value self, struct value *args)
{
    const struct seq *items = tpl__iterate(&run->job, self);
    struct value none = tpl__none();
    struct str *between = args[0].kind == V_MISSING ? tpl__str_c(&run->job, "")
                                                    : tpl__to_str(&run->job, args[0]);
    struct builder out;

    tpl__builder_init(&out, &run->job);
    for (size_t i = 0; i < items->count; i++) {
        tpl__charge(&run->job, 1);
        if (i > 0)
            tpl__put_str(&out, between);
        tpl__put_value(&out, tpl__attr_path(run, items->items[i], args[1], none));
    }
    return tpl__of_str(tpl__built(&out));
}

static struct value filter_items(struct run *run, struct value self, struct value *args)
{
    struct value pairs = iterator(run);

    (void)args;
    if (self.kind == V_UNDEFINED)
        return pairs;
    if (self.kind != V_DICT) { /* the generator fails only when somebody walks it */
        pairs.seq->label = "Can only get item pairs from a mapping.";
        return pairs;
    }
    for (size_t i = 0; i < self.dict->count; i++) {
        struct value pair = tpl__seq(&run->job, V_TUPLE, 2);

        tpl__charge(&run->job, 1);
        tpl__push(&run->job, pair.seq, self.dict->entries[i].key);
        tpl__push(&run->job, pair.seq, self.dict->entries[i].value);
        tpl__push(&run->job, pairs.seq, pair);
    }
    return pairs;
}

/* --- map, select, reject ---------------------------------------------------------------------- */

static struct args rest_of(const struct args *args, size_t from)
{
    struct args rest = *args;

    rest.items += from;
    rest.count -= from;
    return rest;
}

static struct value argument_named(const struct args *args, const char *name)
{
    for (size_t i = 0; i < args->named.count; i++) {
        if (tpl__str_is(args->named.entries[i].key.str, name))
            return args->named.entries[i].value;
    }
    return (struct value){ .kind = V_MISSING };
}

static struct value filter_map(struct run *run, struct value self, const struct args *args)
{
    struct value out = iterator(run);
    struct value attribute = argument_named(args, "attribute");
    struct value missing = argument_named(args, "default");
    const struct seq *items;

    if (!tpl__is_true(&run->job, self))
        return out;
    if (args->count == 0 && attribute.kind == V_MISSING)
        tpl__fail(&run->job, "map requires a filter argument");
    if (args->count == 0 && args->named.count > 1u + (missing.kind != V_MISSING))
        tpl__fail(&run->job, "Unexpected keyword argument of map");
    items = tpl__iterate(&run->job, self);
    for (size_t i = 0; i < items->count; i++) {
        struct args rest;

        tpl__charge(&run->job, 1);
        if (args->count == 0) {
            tpl__push(&run->job, out.seq,
                      tpl__attr_path(run, items->items[i], attribute, missing));
            continue;
        }
        rest = rest_of(args, 1);
        tpl__push(&run->job, out.seq,
                  tpl__filter(run, tpl__arg_str(run, args->items[0], "a filter's name"),
                              items->items[i], &rest));
    }
    return out;
}

static struct value choose(struct run *run, struct value self, const struct args *args,
                           bool wanted, bool by_attribute)
{
    struct value out = iterator(run);
    struct args rest = *args;
    struct value attribute = tpl__none();
    const struct str *name = NULL;
    const struct seq *items;

    if (!tpl__is_true(&run->job, self))
        return out;
    if (by_attribute) {
        if (args->count == 0)
            tpl__fail(&run->job, "Missing parameter for attribute name");
        attribute = args->items[0];
        rest = rest_of(&rest, 1);
    }
    if (rest.count > 0) {
        name = tpl__arg_str(run, rest.items[0], "a test's name");
        rest = rest_of(&rest, 1);
    }
    items = tpl__iterate(&run->job, self);
    for (size_t i = 0; i < items->count; i++) {
        struct value tested = tpl__attr_path(run, items->items[i], attribute, tpl__none());
        bool passed = name != NULL ? tpl__test(run, name, tested, &rest)
                                   : tpl__is_true(&run->job, tested);

        tpl__charge(&run->job, 1);
        if (passed == wanted)
            tpl__push(&run->job, out.seq, items->items[i]);
    }
    return out;
}

static struct value filter_select(struct run *run, struct value self, const struct args *args)
{
    return choose(run, self, args, true, false);
}

static struct value filter_reject(struct run *run, struct value self, const struct args *args)
{
    return choose(run, self, args, false, false);
}

static struct value filter_selectattr(struct run *run, struct value self, const struct args *args)
{
    return choose(run, self, args, true, true);
}

static struct value filter_rejectattr(struct run *run, struct value self, const struct args *args)
{
    return choose(run, self, args, false, true);
}

/* --- sorting ---------------------------------------------------------------------------------- */

struct keyed {
    struct value key, item;
};

/* Stable, also when it is reversed. */
static void merge_sort(struct run *run, struct keyed *items, struct keyed *spare, size_t count,
                       bool reversed)
{
    size_t half = count / 2;
    size_t left = 0;
    size_t right = half;

    if (count < 2)
        return;
    merge_sort(run, items, spare, half, reversed);
    merge_sort(run, items + half, spare, count - half, reversed);
    memcpy(spare, items, count * sizeof(*items));
    for (size_t i = 0; i < count; i++) {
        bool take_right = left == half;

        tpl__charge(&run->job, 1);
        if (left < half && right < count)
            take_right = reversed
                             ? tpl__less(&run->job, spare[left].key, spare[right].key, "<")
                             : tpl__less(&run->job, spare[right].key, spare[left].key, "<");
        items[i] = take_right ? spare[right++] : spare[left++];
    }
}

/* The keys of a sort: a list for each item, of one member per attribute between commas. */
static struct value sort_key(struct run *run, struct value item, struct value attribute,
                             bool case_sensitive)
{
    struct value key = tpl__seq(&run->job, V_LIST, 1);
    struct value parts;

    if (attribute.kind != V_STR) {
        struct value part = tpl__attr_path(run, item, attribute, tpl__none());

        tpl__push(&run->job, key.seq, case_sensitive ? part : ignore_case(run, part));
        return key;
    }
    parts = tpl__split(run, attribute.str, tpl__of_text(&run->job, ","), -1, false);
    for (size_t i = 0; i < parts.seq->count; i++) {
        struct value part = tpl__attr_path(run, item, parts.seq->items[i], tpl__none());

        tpl__push(&run->job, key.seq, case_sensitive ? part : ignore_case(run, part));
    }
    return key;
}

static struct keyed *keyed_of(struct run *run, size_t count)
{
    if (count > run->job.memory_limit_bytes / sizeof(struct keyed))
        tpl__fail(&run->job, "a list of %zu items is too long", count);
    return tpl__alloc(&run->job, (count + 1) * sizeof(struct keyed));
}

static struct value unkeyed(struct run *run, const struct keyed *keyed, size_t count)
{
    struct value list = tpl__seq(&run->job, V_LIST, count);

    for (size_t i = 0; i < count; i++)
        tpl__push(&run->job, list.seq, keyed[i].item);
    return list;
}

static struct value filter_sort(struct run *run, struct value self, struct value *args)
{
    const struct seq *items = tpl__iterate(&run->job, self);
    struct keyed *keyed = keyed_of(run, items->count);

    for (size_t i = 0; i < items->count; i++) {
        tpl__charge(&run->job, 1);
        keyed[i].item = items->items[i];
        keyed[i].key = sort_key(run, items->items[i], args[2], tpl__arg_bool(run, args[1], false));
    }
    merge_sort(run, keyed, keyed_of(run, items->count), items->count,
               tpl__arg_bool(run, args[0], false));
    return unkeyed(run, keyed, items->count);
}

static struct value filter_dictsort(struct run *run, struct value self, struct value *args)
{
    bool by_value = false;
    struct keyed *keyed;

    if (self.kind != V_DICT)
        tpl__fail(&run->job, "'%s' object has no attribute 'items'", tpl__type_name(self));
    if (args[1].kind != V_MISSING) {
        const struct str *by = tpl__arg_str(run, args[1], "by");

        by_value = tpl__str_is(by, "value");
        if (!by_value && !tpl__str_is(by, "key"))
            tpl__fail(&run->job, "You can only sort by either \"key\" or \"value\"");
    }
    keyed = keyed_of(run, self.dict->count);
    for (size_t i = 0; i < self.dict->count; i++) {
        const struct entry *entry = &self.dict->entries[i];
        struct value key = by_value ? entry->value : entry->key;

        tpl__charge(&run->job, 1);
        keyed[i].item = tpl__seq(&run->job, V_TUPLE, 2);
        tpl__push(&run->job, keyed[i].item.seq, entry->key);
        tpl__push(&run->job, keyed[i].item.seq, entry->value);
        keyed[i].key = tpl__arg_bool(run, args[0], false) ? key : ignore_case(run, key);
    }
    merge_sort(run, keyed, keyed_of(run, self.dict->count), self.dict->count,
               tpl__arg_bool(run, args[2], false));
    return unkeyed(run, keyed, self.dict->count);
}

static struct value group(struct run *run, struct value grouper)
{
    struct value tuple = tpl__seq(&run->job, V_TUPLE, 2);

    tuple.seq->label = "group";
    tpl__push(&run->job, tuple.seq, grouper);
    tpl__push(&run->job, tuple.seq, tpl__seq(&run->job, V_LIST, 0));
    return tuple;
}

static struct value filter_groupby(struct run *run, struct value self, struct value *args)
{
    const struct seq *items = tpl__iterate(&run->job, self);
    struct keyed *keyed = keyed_of(run, items->count);
    struct value groups = tpl__seq(&run->job, V_LIST, 0);
    bool case_sensitive = tpl__arg_bool(run, args[2], false);

    for (size_t i = 0; i < items->count; i++) {
        struct value key = tpl__attr_path(run, items->items[i], args[0], args[1]);

        tpl__charge(&run->job, 1);
        keyed[i].item = items->items[i];
        keyed[i].key = case_sensitive ? key : ignore_case(run, key);
    }
    merge_sort(run, keyed, keyed_of(run, items->count), items->count, false);
    for (size_t i = 0; i < items->count; i++) {
        if (i == 0 || !tpl__equal(&run->job, keyed[i].key, keyed[i - 1].key))
            tpl__push(&run->job, groups.seq,
                      group(run, tpl__attr_path(run, keyed[i].item, args[0], args[1])));
        tpl__push(&run->job, groups.seq->items[groups.seq->count - 1].seq->items[1].seq,
                  keyed[i].item);
    }
    return groups;
}

static struct value filter_unique(struct run *run, struct value self, struct value *args)
{
    const struct seq *items = tpl__iterate(&run->job, self);
    struct value out = iterator(run);
    struct dict *seen = tpl__dict(&run->job).dict;

    for (size_t i = 0; i < items->count; i++) {
        struct value key = tpl__attr_path(run, items->items[i], args[1], tpl__none());

        tpl__charge(&run->job, 1);
        key = tpl__arg_bool(run, args[0], false) ? key : ignore_case(run, key);
        if (tpl__dict_find(&run->job, seen, key) == NULL) {
            tpl__dict_set(&run->job, seen, key, tpl__none());
            tpl__push(&run->job, out.seq, items->items[i]);
        }
    }
    return out;
}

static struct value extreme(struct run *run, struct value self, struct value *args, bool largest)
{
    const struct seq *items = tpl__iterate(&run->job, self);
    struct keyed best = { .key = tpl__none() };

    if (items->count == 0)
        return no_item(run, "No aggregated item, sequence was empty.");
    for (size_t i = 0; i < items->count; i++) {
        struct value key = tpl__attr_path(run, items->items[i], args[1], tpl__none());

        tpl__charge(&run->job, 1);
        key = tpl__arg_bool(run, args[0], false) ? key : ignore_case(run, key);
        if (i == 0 || (largest ? tpl__less(&run->job, best.key, key, ">")
                               : tpl__less(&run->job, key, best.key, "<")))
            best = (struct keyed){ .key = key, .item = items->items[i] };
    }
    return best.item;
}

static struct value filter_min(struct run *run, struct value self, struct value *args)
{
    return extreme(run, self, args, false);
}

static struct value filter_max(struct run *run, struct value self, struct value *args)
{
    return extreme(run, self, args, true);
}

static struct value filter_sum(struct run *run, struct value self, struct value *args)
{
    const struct seq *items = tpl__iterate(&run->job, self);
    struct value sum = args[1].kind == V_MISSING ? tpl__int(0) : args[1];

    if (sum.kind == V_STR)
        tpl__fail(&run->job, "sum() can't sum strings [use ''.join(seq) instead]");
    for (size_t i = 0; i < items->count; i++) {
        tpl__charge(&run->job, 1);
        sum = tpl__binary(&run->job, N_ADD, sum,
                          tpl__attr_path(run, items->items[i], args[0], tpl__none()));
    }
    return sum;
}

/* --- cutting ---------------------------------------------------------------------------------- */

static struct value filter_batch(struct run *run, struct value self, struct value *args)
{
    const struct seq *items = tpl__iterate(&run->job, self);
    int64_t size = tpl__arg_int(run, args[0], 0, "linecount");
    struct value out = iterator(run);
    struct value row = tpl__seq(&run->job, V_LIST, 0);

    for (size_t i = 0; i < items->count; i++) {
        tpl__charge(&run->job, 1);
        if (row.seq->count > 0 && (int64_t)row.seq->count == size) {
            tpl__push(&run->job, out.seq, row);
            row = tpl__seq(&run->job, V_LIST, 0);
        }
        tpl__push(&run->job, row.seq, items->items[i]);
    }
    if (row.seq->count == 0)
        return out;
    while (tpl__given(args[1]) && (int64_t)row.seq->count < size) {
        tpl__charge(&run->job, 1);
        tpl__push(&run->job, row.seq, args[1]);
    }
    tpl__push(&run->job, out.seq, row);
    return out;
}

static struct value filter_slice(struct run *run, struct value self, struct value *args)
{
    const struct seq *items = tpl__iterate(&run->job, self);
    int64_t slices = tpl__arg_int(run, args[0], 0, "slices");
    struct value out = iterator(run);
    int64_t offset = 0;
    int64_t each;
    int64_t extra;

    if (slices == 0)
        tpl__fail(&run->job, "integer division or modulo by zero");
    each = (int64_t)items->count / slices;
    extra = (int64_t)items->count % slices;
    for (int64_t i = 0; i < slices; i++) {
        struct value row = tpl__seq(&run->job, V_LIST, 0);
        int64_t start = offset + i * each;

        tpl__charge(&run->job, 1);
        offset += i < extra;
        for (int64_t k = start; k < offset + (i + 1) * each; k++)
            tpl__push(&run->job, row.seq, items->items[k]);
        if (tpl__given(args[1]) && i >= extra)
            tpl__push(&run->job, row.seq, args[1]);
        tpl__push(&run->job, out.seq, row);
    }
    return out;
}

const struct filter_row tpl__list_filters[] = {
    { .name = "list", .spec = "", .call = filter_list },
    { .name = "length", .spec = "", .call = filter_length },
    { .name = "count", .spec = "", .call = filter_length },
    { .name = "first", .spec = "", .call = filter_first },
    { .name = "last", .spec = "", .call = filter_last },
    { .name = "reverse", .spec = "", .call = filter_reverse },
    { .name = "join", .spec = "d?,attribute?", .call = filter_join },
    { .name = "items", .spec = "", .call = filter_items },
    { .name = "map", .call_raw = filter_map },
    { .name = "select", .call_raw = filter_select },
    { .name = "reject", .call_raw = filter_reject },
    { .name = "selectattr", .call_raw = filter_selectattr },
    { .name = "rejectattr", .call_raw = filter_rejectattr },
    { .name = "sort", .spec = "reverse?,case_sensitive?,attribute?", .call = filter_sort },
    { .name = "dictsort", .spec = "case_sensitive?,by?,reverse?", .call = filter_dictsort },
    { .name = "groupby", .spec = "attribute,default?,case_sensitive?", .call = filter_groupby },
    { .name = "unique", .spec = "case_sensitive?,attribute?", .call = filter_unique },
    { .name = "min", .spec = "case_sensitive?,attribute?", .call = filter_min },
    { .name = "max", .spec = "case_sensitive?,attribute?", .call = filter_max },
    { .name = "sum", .spec = "attribute?,start?", .call = filter_sum },
    { .name = "batch", .spec = "linecount,fill_with?", .call = filter_batch },
    { .name = "slice", .spec = "slices,fill_with?", .call = filter_slice },
};
const size_t tpl__list_filter_count = sizeof(tpl__list_filters) / sizeof(tpl__list_filters[0]);
