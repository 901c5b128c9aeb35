/* text/template/methods.c - methods of text, lists, dicts, loops; the global functions.
 *
 * What changes a list or a dict in place (append, pop, update, ...) is not there: the sandbox is
 * the immutable one. */
#include <string.h>
#include <time.h>

#include "text/template/internal.h"

#define RANGE_MAX 100000

static struct value of(struct str *str)
{
    return tpl__of_str(str);
}

static int64_t count_of(struct value value)
{
    return value.kind == V_INT ? value.integer : -1;
}

/* --- text ------------------------------------------------------------------------------------- */

static struct value str_strip(struct run *run, struct value self, struct value *args)
{
    return of(tpl__strip(run, self.str, args[0], 3));
}

static struct value str_lstrip(struct run *run, struct value self, struct value *args)
{
    return of(tpl__strip(run, self.str, args[0], 1));
}

static struct value str_rstrip(struct run *run, struct value self, struct value *args)
{
    return of(tpl__strip(run, self.str, args[0], 2));
}

static struct value str_split(struct run *run, struct value self, struct value *args)
{
    tpl__arg_int(run, args[1], -1, "maxsplit");
    return tpl__split(run, self.str, args[0], count_of(args[1]), false);
}

static struct value str_rsplit(struct run *run, struct value self, struct value *args)
{
    tpl__arg_int(run, args[1], -1, "maxsplit");
    return tpl__split(run, self.str, args[0], count_of(args[1]), true);
}

static struct value str_splitlines(struct run *run, struct value self, struct value *args)
{
    return tpl__splitlines(run, self.str, tpl__arg_bool(run, args[0], false));
}

/* Byte offsets of the characters start to end, as slices mean them. */
static struct str *part_of(struct run *run, struct str *str, struct value start, struct value end,
                           size_t *start_out)
{
    int64_t count = (int64_t)tpl__str_count(&run->job, str);
    int64_t from = tpl__arg_int(run, start, 0, "start");
    int64_t to = tpl__arg_int(run, end, count, "end");

    from = from < 0 ? from + count : from;
    to = to < 0 ? to + count : to;
    from = from < 0 ? 0 : from;
    to = to < 0 ? 0 : to > count ? count : to;
    *start_out = (size_t)from;
    if (from > count || from > to)
        return NULL;
    return tpl__sub(&run->job, str, tpl__str_offset(&run->job, str, (size_t)from),
                    tpl__str_offset(&run->job, str, (size_t)to));
}

static bool has_affix(struct run *run, const struct str *str, struct value affix, bool at_end)
{
    const struct str *text;

    if (affix.kind == V_TUPLE) {
        for (size_t i = 0; i < affix.seq->count; i++) {
            if (affix.seq->items[i].kind == V_TUPLE)
                tpl__fail(&run->job, "a tuple for startswith must only contain str");
            if (has_affix(run, str, affix.seq->items[i], at_end))
                return true;
        }
        return false;
    }
    text = tpl__arg_str(run, affix, "prefix");
    return text->size <= str->size &&
           (text->size == 0 || memcmp(at_end ? str->bytes + str->size - text->size : str->bytes,
                                      text->bytes, text->size) == 0);
}

static struct value str_startswith(struct run *run, struct value self, struct value *args)
{
    size_t start;
    struct str *part = part_of(run, self.str, args[1], args[2], &start);

    return tpl__bool(part != NULL && has_affix(run, part, args[0], false));
}

static struct value str_endswith(struct run *run, struct value self, struct value *args)
{
    size_t start;
    struct str *part = part_of(run, self.str, args[1], args[2], &start);

    return tpl__bool(part != NULL && has_affix(run, part, args[0], true));
}

static struct value str_replace(struct run *run, struct value self, struct value *args)
{
    struct str *to = tpl__arg_str(run, args[1], "new");

    if (self.str->markup)
        to = tpl__escape(&run->job, to);
    return of(tpl__replace(run, self.str, tpl__arg_str(run, args[0], "old"), to,
                           tpl__arg_int(run, args[2], -1, "count")));
}

static struct value str_upper(struct run *run, struct value self, struct value *args)
{
    (void)args;
    return of(tpl__upper(&run->job, self.str));
}

static struct value str_lower(struct run *run, struct value self, struct value *args)
{
    (void)args;
    return of(tpl__lower(&run->job, self.str));
}

static struct value str_title(struct run *run, struct value self, struct value *args)
{
    (void)args;
    return of(tpl__title(&run->job, self.str));
}

static struct value str_capitalize(struct run *run, struct value self, struct value *args)
{
    (void)args;
    return of(tpl__capitalize(&run->job, self.str));
}

static struct value str_swapcase(struct run *run, struct value self, struct value *args)
{
    (void)args;
    return of(tpl__swapcase(&run->job, self.str));
}

static struct value str_join(struct run *run, struct value self, struct value *args)
{
    const struct seq *items;
    struct builder out;
    struct str *joined;

    if (args[0].kind == V_UNDEFINED)
        return of(tpl__str_c(&run->job, ""));
    items = tpl__iterate(&run->job, args[0]);
    tpl__builder_init(&out, &run->job);
    for (size_t i = 0; i < items->count; i++) {
        tpl__charge(&run->job, 1);
        if (items->items[i].kind != V_STR)
            tpl__fail(&run->job, "sequence item %zu: expected str instance, %s found", i,
                      tpl__type_name(items->items[i]));
        if (i > 0)
            tpl__put_str(&out, self.str);
        tpl__put_str(&out, self.str->markup ? tpl__escape(&run->job, items->items[i].str)
                                            : items->items[i].str);
    }
    joined = tpl__built(&out);
    joined->markup = self.str->markup;
    return of(joined);
}

/* The character at which args[0] is found; -1: nowhere. */
static int64_t find(struct run *run, struct value self, struct value *args, bool last)
{
    size_t start;
    struct str *part = part_of(run, self.str, args[1], args[2], &start);
    struct str *what = tpl__arg_str(run, args[0], "sub");
    size_t at;

    if (part == NULL)
        return -1;
    at = last ? tpl__str_rfind(&run->job, part, what, part->size)
              : tpl__str_find(&run->job, part, what, 0);
    if (at == SIZE_MAX)
        return -1;
    return (int64_t)(start + tpl__str_count(&run->job, tpl__sub(&run->job, part, 0, at)));
}

static struct value str_find(struct run *run, struct value self, struct value *args)
{
    return tpl__int(find(run, self, args, false));
}

static struct value str_rfind(struct run *run, struct value self, struct value *args)
{
    return tpl__int(find(run, self, args, true));
}

static struct value str_index(struct run *run, struct value self, struct value *args)
{
    int64_t at = find(run, self, args, false);

    if (at < 0)
        tpl__fail(&run->job, "substring not found");
    return tpl__int(at);
}

static struct value str_rindex(struct run *run, struct value self, struct value *args)
{
    int64_t at = find(run, self, args, true);

    if (at < 0)
        tpl__fail(&run->job, "substring not found");
    return tpl__int(at);
}

static struct value str_count(struct run *run, struct value self, struct value *args)
{
    size_t start;
    struct str *part = part_of(run, self.str, args[1], args[2], &start);
    struct str *what = tpl__arg_str(run, args[0], "sub");
    int64_t count = 0;

    if (part == NULL)
        return tpl__int(0);
    if (what->size == 0)
        return tpl__int((int64_t)tpl__str_count(&run->job, part) + 1);
    for (size_t at = 0; (at = tpl__str_find(&run->job, part, what, at)) != SIZE_MAX;
         at += what->size)
        count++;
    return tpl__int(count);
}

static struct value str_format(struct run *run, struct value self, const struct args *args)
{
    return of(tpl__format(run, self.str, args));
}

static struct value all_are(struct value self, bool (*test)(uint32_t c))
{
    for (size_t at = 0; at < self.str->size;) {
        uint32_t c;

        at += tpl__character(self.str, at, &c);
        if (!test(c))
            return tpl__bool(false);
    }
    return tpl__bool(self.str->size > 0);
}

static bool is_alnum(uint32_t c)
{
    return c != '_' && tpl__is_word(c);
}

#define IS_METHOD(name, test)                                                                      \
    static struct value str_##name(struct run *run, struct value self, struct value *args)         \
    {                                                                                              \
        (void)args;                                                                                \
        tpl__charge_bytes(&run->job, self.str->size * 8);                                          \
        return all_are(self, test);                                                                \
    }
IS_METHOD(isalpha, tpl__is_alpha)
IS_METHOD(isdigit, tpl__is_digit)
IS_METHOD(isdecimal, tpl__is_decimal)
IS_METHOD(isnumeric, tpl__is_numeric)
IS_METHOD(isalnum, is_alnum)
IS_METHOD(isspace, tpl__is_space)
IS_METHOD(isprintable, tpl__is_printable)

/* At least one cased character, and none of the other case. */
static bool has_case(struct run *run, const struct str *str, bool upper)
{
    bool found = false;

    tpl__charge_bytes(&run->job, str->size * 8);
    for (size_t at = 0; at < str->size;) {
        uint32_t c;

        at += tpl__character(str, at, &c);
        if (upper ? tpl__is_upper(c) : tpl__is_lower(c))
            found = true;
        else if (tpl__is_cased(c))
            return false;
    }
    return found;
}

static struct value str_isupper(struct run *run, struct value self, struct value *args)
{
    (void)args;
    return tpl__bool(has_case(run, self.str, true));
}

static struct value str_islower(struct run *run, struct value self, struct value *args)
{
    (void)args;
    return tpl__bool(has_case(run, self.str, false));
}

static struct value str_isascii(struct run *run, struct value self, struct value *args)
{
    (void)args;
    return tpl__bool(tpl__str_count(&run->job, self.str) == self.str->size);
}

static struct value str_center(struct run *run, struct value self, struct value *args)
{
    return of(tpl__pad(run, self.str, tpl__arg_int(run, args[0], 0, "width"), args[1], 0));
}

static struct value str_ljust(struct run *run, struct value self, struct value *args)
{
    return of(tpl__pad(run, self.str, tpl__arg_int(run, args[0], 0, "width"), args[1], 1));
}

static struct value str_rjust(struct run *run, struct value self, struct value *args)
{
    return of(tpl__pad(run, self.str, tpl__arg_int(run, args[0], 0, "width"), args[1], 2));
}

static struct value str_zfill(struct run *run, struct value self, struct value *args)
{
    int64_t width = tpl__arg_int(run, args[0], 0, "width");
    struct value zero = tpl__of_text(&run->job, "0");
    struct str *str = self.str;
    struct builder out;

    if (str->size == 0 || (str->bytes[0] != '-' && str->bytes[0] != '+'))
        return of(tpl__pad(run, str, width, zero, 2));
    tpl__builder_init(&out, &run->job);
    tpl__put_part(&out, str, 0, 1);
    tpl__put_str(&out, tpl__pad(run, tpl__sub(&run->job, str, 1, str->size), width - 1, zero, 2));
    return of(tpl__built(&out));
}

static struct value partition(struct run *run, struct value self, struct value separator,
                              bool last)
{
    struct str *text = tpl__arg_str(run, separator, "sep");
    struct str *empty = tpl__str_c(&run->job, "");
    struct value parts = tpl__seq(&run->job, V_TUPLE, 3);
    size_t at;

    if (text->size == 0)
        tpl__fail(&run->job, "empty separator");
    at = last ? tpl__str_rfind(&run->job, self.str, text, self.str->size)
              : tpl__str_find(&run->job, self.str, text, 0);
    if (at == SIZE_MAX) {
        tpl__push(&run->job, parts.seq, last ? of(empty) : self);
        tpl__push(&run->job, parts.seq, of(empty));
        tpl__push(&run->job, parts.seq, last ? self : of(empty));
        return parts;
    }
    tpl__push(&run->job, parts.seq, of(tpl__sub(&run->job, self.str, 0, at)));
    tpl__push(&run->job, parts.seq, of(tpl__sub(&run->job, self.str, at, at + text->size)));
    tpl__push(&run->job, parts.seq,
              of(tpl__sub(&run->job, self.str, at + text->size, self.str->size)));
    return parts;
}

static struct value str_partition(struct run *run, struct value self, struct value *args)
{
    return partition(run, self, args[0], false);
}

static struct value str_rpartition(struct run *run, struct value self, struct value *args)
{
    return partition(run, self, args[0], true);
}

static struct value str_removeprefix(struct run *run, struct value self, struct value *args)
{
    struct str *text = tpl__arg_str(run, args[0], "prefix");

    if (!has_affix(run, self.str, args[0], false))
        return self;
    return of(tpl__sub(&run->job, self.str, text->size, self.str->size));
}

static struct value str_removesuffix(struct run *run, struct value self, struct value *args)
{
    struct str *text = tpl__arg_str(run, args[0], "suffix");

    if (!has_affix(run, self.str, args[0], true))
        return self;
    return of(tpl__sub(&run->job, self.str, 0, self.str->size - text->size));
}

static const struct function_row str_rows[] = {
    { "strip", "chars?", str_strip },
    { "lstrip", "chars?", str_lstrip },
    { "rstrip", "chars?", str_rstrip },
    { "split", "sep?,maxsplit?", str_split },
    { "rsplit", "sep?,maxsplit?", str_rsplit },
    { "splitlines", "keepends?", str_splitlines },
    { "startswith", "prefix,start?,end?", str_startswith },
    { "endswith", "suffix,start?,end?", str_endswith },
    { "replace", "old,new,count?", str_replace },
    { "upper", "", str_upper },
    { "lower", "", str_lower },
    { "casefold", "", str_lower },
    { "title", "", str_title },
    { "capitalize", "", str_capitalize },
    { "swapcase", "", str_swapcase },
    { "join", "iterable", str_join },
    { "find", "sub,start?,end?", str_find },
    { "rfind", "sub,start?,end?", str_rfind },
    { "index", "sub,start?,end?", str_index },
    { "rindex", "sub,start?,end?", str_rindex },
    { "count", "sub,start?,end?", str_count },
    { "isalpha", "", str_isalpha },
    { "isdigit", "", str_isdigit },
    { "isdecimal", "", str_isdecimal },
    { "isnumeric", "", str_isnumeric },
    { "isalnum", "", str_isalnum },
    { "isspace", "", str_isspace },
    { "isprintable", "", str_isprintable },
    { "isupper", "", str_isupper },
    { "islower", "", str_islower },
    { "isascii", "", str_isascii },
    { "center", "width,fillchar?", str_center },
    { "ljust", "width,fillchar?", str_ljust },
    { "rjust", "width,fillchar?", str_rjust },
    { "zfill", "width", str_zfill },
    { "partition", "sep", str_partition },
    { "rpartition", "sep", str_rpartition },
    { "removeprefix", "prefix", str_removeprefix },
    { "removesuffix", "suffix", str_removesuffix },
};

static struct value raw_function(struct run *run, const char *name, tpl_call call,
                                 struct value self)
{
    struct value value = { .kind = V_FUNCTION };

    value.function = tpl__alloc(&run->job, sizeof(*value.function));
    value.function->name = name;
    value.function->call = call;
    value.function->self = self;
    return value;
}

struct value tpl__bound_row(struct run *run, const struct function_row *rows, size_t count,
                            struct value self, const struct str *name)
{
    for (size_t i = 0; i < count; i++) {
        if (tpl__str_is(name, rows[i].name)) {
            struct value value = raw_function(run, rows[i].name, NULL, self);

            value.function->spec = rows[i].spec;
            value.function->bound = rows[i].call;
            return value;
        }
    }
    return (struct value){ .kind = V_MISSING };
}

struct value tpl__str_method(struct run *run, struct value self, const struct str *name)
{
    if (tpl__str_is(name, "format"))
        return raw_function(run, "format", str_format, self);
    return tpl__bound_row(run, str_rows, sizeof(str_rows) / sizeof(str_rows[0]), self, name);
}

/* --- dicts and lists -------------------------------------------------------------------------- */

static struct value view(struct run *run, const struct dict *dict, const char *label)
{
    struct value list = tpl__seq(&run->job, V_VIEW, dict->count);

    tpl__charge(&run->job, dict->count / 4);
    list.seq->label = label;
    for (size_t i = 0; i < dict->count; i++) {
        struct value pair;

        if (label[5] == 'k') { /* dict_keys */
            tpl__push(&run->job, list.seq, dict->entries[i].key);
        } else if (label[5] == 'v') {
            tpl__push(&run->job, list.seq, dict->entries[i].value);
        } else {
            pair = tpl__seq(&run->job, V_TUPLE, 2);
            tpl__push(&run->job, pair.seq, dict->entries[i].key);
            tpl__push(&run->job, pair.seq, dict->entries[i].value);
            tpl__push(&run->job, list.seq, pair);
        }
    }
    return list;
}

static struct value dict_items(struct run *run, struct value self, struct value *args)
{
    (void)args;
    return view(run, self.dict, "dict_items");
}

static struct value dict_keys(struct run *run, struct value self, struct value *args)
{
    (void)args;
    return view(run, self.dict, "dict_keys");
}

static struct value dict_values(struct run *run, struct value self, struct value *args)
{
    (void)args;
    return view(run, self.dict, "dict_values");
}

static struct value dict_get(struct run *run, struct value self, struct value *args)
{
    const struct value *found = tpl__dict_find(&run->job, self.dict, args[0]);

    if (found != NULL)
        return *found;
    return args[1].kind == V_MISSING ? tpl__none() : args[1];
}

static struct value dict_copy(struct run *run, struct value self, struct value *args)
{
    (void)run;
    (void)args;
    return self; /* nothing changes a dict */
}

static const struct function_row dict_rows[] = {
    { "items", "", dict_items }, { "keys", "", dict_keys }, { "values", "", dict_values },
    { "get", "key,default?", dict_get }, { "copy", "", dict_copy },
};

struct value tpl__dict_method(struct run *run, struct value self, const struct str *name)
{
    return tpl__bound_row(run, dict_rows, sizeof(dict_rows) / sizeof(dict_rows[0]), self, name);
}

static struct value seq_index(struct run *run, struct value self, struct value *args)
{
    int64_t count = (int64_t)self.seq->count;
    int64_t from = tpl__arg_int(run, args[1], 0, "start");
    int64_t to = tpl__arg_int(run, args[2], count, "stop");

    from = from < 0 ? from + count : from;
    to = to < 0 ? to + count : to;
    for (int64_t i = from < 0 ? 0 : from; i < to && i < count; i++) {
        tpl__charge(&run->job, 1);
        if (tpl__equal(&run->job, self.seq->items[i], args[0]))
            return tpl__int(i);
    }
    tpl__fail(&run->job, "the value is not in the list");
}

static struct value seq_count(struct run *run, struct value self, struct value *args)
{
    int64_t count = 0;

    for (size_t i = 0; i < self.seq->count; i++) {
        tpl__charge(&run->job, 1);
        count += tpl__equal(&run->job, self.seq->items[i], args[0]);
    }
    return tpl__int(count);
}

static const struct function_row seq_rows[] = {
    { "index", "value,start?,stop?", seq_index },
    { "count", "value", seq_count },
    { "copy", "", dict_copy },
};

struct value tpl__seq_method(struct run *run, struct value self, const struct str *name)
{
    size_t count = self.kind == V_LIST ? 3 : self.kind == V_TUPLE || self.kind == V_RANGE ? 2 : 0;

    return tpl__bound_row(run, seq_rows, count, self, name);
}

/* --- loop.* ----------------------------------------------------------------------------------- */

static struct value cycle(struct run *run, struct value self, const struct args *args)
{
    if (args->count == 0)
        tpl__fail(&run->job, "no items for cycling given");
    return args->items[self.loop->index % args->count];
}

static struct value changed(struct run *run, struct value self, const struct args *args)
{
    struct value now = tpl__seq(&run->job, V_TUPLE, args->count);
    struct loop *loop = self.loop;

    for (size_t i = 0; i < args->count; i++)
        tpl__push(&run->job, now.seq, args->items[i]);
    if (loop->changed.kind != V_MISSING && tpl__equal(&run->job, loop->changed, now))
        return tpl__bool(false);
    loop->changed = now;
    return tpl__bool(true);
}

struct value tpl__loop_attr(struct run *run, struct value self, const struct str *name)
{
    const struct loop *loop = self.loop;
    int64_t index = (int64_t)loop->index;
    int64_t count = (int64_t)loop->items->count;
    const struct {
        const char *name;
        struct value value;
    } numbers[] = {
        { "index", tpl__int(index + 1) }, { "index0", tpl__int(index) },
        { "revindex", tpl__int(count - index) }, { "revindex0", tpl__int(count - index - 1) },
        { "first", tpl__bool(index == 0) }, { "last", tpl__bool(index + 1 == count) },
        { "length", tpl__int(count) }, { "depth", tpl__int(loop->depth0 + 1) },
        { "depth0", tpl__int(loop->depth0) },
    };

    for (size_t i = 0; i < sizeof(numbers) / sizeof(numbers[0]); i++) {
        if (tpl__str_is(name, numbers[i].name))
            return numbers[i].value;
    }
    if (tpl__str_is(name, "previtem"))
        return index == 0 ? tpl__undefined(&run->job, name, NULL) : loop->items->items[index - 1];
    if (tpl__str_is(name, "nextitem"))
        return index + 1 == count ? tpl__undefined(&run->job, name, NULL)
                                  : loop->items->items[index + 1];
    if (tpl__str_is(name, "cycle"))
        return raw_function(run, "cycle", cycle, self);
    if (tpl__str_is(name, "changed"))
        return raw_function(run, "changed", changed, self);
    return tpl__undefined(&run->job, name, "LoopContext");
}

/* --- global functions ------------------------------------------------------------------------- */

static struct value cycler_next(struct run *run, struct value self, struct value *args)
{
    struct cycler *cycler = self.cycler;
    struct value value = cycler->items->items[cycler->next];

    (void)run;
    (void)args;
    cycler->next = (cycler->next + 1) % cycler->items->count;
    return value;
}

static struct value cycler_reset(struct run *run, struct value self, struct value *args)
{
    (void)run;
    (void)args;
    self.cycler->next = 0;
    return tpl__none();
}

static const struct function_row cycler_rows[] = {
    { "next", "", cycler_next }, { "reset", "", cycler_reset },
};

struct value tpl__cycler_attr(struct run *run, struct value self, const struct str *name)
{
    if (tpl__str_is(name, "current"))
        return self.cycler->items->items[self.cycler->next];
    return tpl__bound_row(run, cycler_rows, 2, self, name);
}

static struct value make_cycler(struct run *run, struct value self, const struct args *args)
{
    struct value value = { .kind = V_CYCLER };

    (void)self;
    if (args->count == 0)
        tpl__fail(&run->job, "at least one item has to be provided");
    value.cycler = tpl__alloc(&run->job, sizeof(*value.cycler));
    value.cycler->items = tpl__seq(&run->job, V_LIST, args->count).seq;
    for (size_t i = 0; i < args->count; i++)
        tpl__push(&run->job, value.cycler->items, args->items[i]);
    return value;
}

static struct value make_joiner(struct run *run, struct value self, struct value *args)
{
    struct value value = { .kind = V_JOINER };

    (void)self;
    value.cycler = tpl__alloc(&run->job, sizeof(*value.cycler));
    value.cycler->text = args[0].kind == V_MISSING ? tpl__str_c(&run->job, ", ")
                                                   : tpl__arg_str(run, args[0], "sep");
    return value;
}

static struct value make_range(struct run *run, struct value self, struct value *args)
{
    bool one = args[1].kind == V_MISSING;
    int64_t start = one ? 0 : tpl__arg_int(run, args[0], 0, "start");
    int64_t stop = tpl__arg_int(run, one ? args[0] : args[1], 0, "stop");
    int64_t step = tpl__arg_int(run, args[2], 1, "step");
    uint64_t count = 0;
    struct value value;

    (void)self;
    if (step == 0)
        tpl__fail(&run->job, "range() arg 3 must not be zero");
    if (step > 0 && stop > start)
        count = ((uint64_t)stop - (uint64_t)start - 1) / (uint64_t)step + 1;
    else if (step < 0 && stop < start)
        count = ((uint64_t)start - (uint64_t)stop - 1) / (-(uint64_t)step) + 1;
    if (count > RANGE_MAX)
        tpl__fail(&run->job, "Range too big. The sandbox blocks ranges larger than %d.",
                  RANGE_MAX);
    tpl__charge(&run->job, count / 4);
    value = tpl__seq(&run->job, V_RANGE, (size_t)count + 3);
    for (uint64_t i = 0; i < count; i++)
        tpl__push(&run->job, value.seq, tpl__int(start + (int64_t)i * step));
    tpl__push(&run->job, value.seq, tpl__int(start)); /* behind the items: for print.c */
    tpl__push(&run->job, value.seq, tpl__int(stop));
    tpl__push(&run->job, value.seq, tpl__int(step));
    value.seq->count -= 3;
    return value;
}

/* dict(pairs or mapping, name=value) and namespace(the same) */
static struct dict *make_mapping(struct run *run, const struct args *args)
{
    struct dict *dict = tpl__dict(&run->job).dict;

    if (args->count > 1)
        tpl__fail(&run->job, "dict expected at most 1 argument, got %zu", args->count);
    if (args->count == 1 && args->items[0].kind == V_DICT) {
        const struct dict *from = args->items[0].dict;

        for (size_t i = 0; i < from->count; i++)
            tpl__dict_set(&run->job, dict, from->entries[i].key, from->entries[i].value);
    } else if (args->count == 1) {
        const struct seq *pairs = tpl__iterate(&run->job, args->items[0]);

        for (size_t i = 0; i < pairs->count; i++) {
            const struct seq *pair = tpl__iterate(&run->job, pairs->items[i]);

            if (pair->count != 2)
                tpl__fail(&run->job, "dictionary update sequence element #%zu has length %zu; "
                          "2 is required", i, pair->count);
            tpl__dict_set(&run->job, dict, pair->items[0], pair->items[1]);
        }
    }
    for (size_t i = 0; i < args->named.count; i++)
        tpl__dict_set(&run->job, dict, args->named.entries[i].key, args->named.entries[i].value);
    return dict;
}

static struct value make_dict(struct run *run, struct value self, const struct args *args)
{
    (void)self;
    return (struct value){ .kind = V_DICT, .dict = make_mapping(run, args) };
}

static struct value make_namespace(struct run *run, struct value self, const struct args *args)
{
    struct dict *dict = make_mapping(run, args);

    (void)self;
    for (size_t i = 0; i < dict->count; i++) {
        const struct value *key = &dict->entries[i].key;

        if (key->kind == V_STR && key->str->size > 0 && key->str->bytes[0] == '_')
            tpl__fail(&run->job, "Chat templates cannot store underscore-prefixed attributes on "
                      "a namespace");
    }
    return (struct value){ .kind = V_NAMESPACE, .dict = dict };
}

static struct value raise_exception(struct run *run, struct value self, struct value *args)
{
    struct str *message = tpl__to_str(&run->job, args[0]);

    (void)self;
    tpl__fail(&run->job, "%.*s", (int)(message->size > 400 ? 400 : message->size),
              message->bytes);
}

static struct value strftime_now(struct run *run, struct value self, struct value *args)
{
    struct str *format = tpl__arg_str(run, args[0], "format");
    char *pattern = tpl__alloc(&run->job, format->size * 6 + 2);
    char text[4096];
    char *out = pattern;
    struct tm tm;

    (void)self;
    localtime_r(&run->now, &tm);
    /* datetime's own: %f, and no time zone. A blank first tells "nothing" from "no room". */
    *out++ = ' ';
    for (size_t i = 0; i < format->size; i++) {
        char c = format->bytes[i];
        char behind = i + 1 < format->size ? format->bytes[i + 1] : '\0';

        if (c == '%' && behind == 'f') {
            memcpy(out, "000000", 6);
            out += 6;
            i++;
        } else if (c == '%' && (behind == 'z' || behind == 'Z')) {
            i++;
        } else if (c != '\0') {
            *out++ = c;
            if (c == '%' && behind != '\0') {
                *out++ = behind;
                i++;
            }
        }
    }
    *out = '\0';
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
    if (format->size > 256 || strftime(text, sizeof(text), pattern, &tm) == 0)
        tpl__fail(&run->job, "strftime_now: the format is too long");
#pragma GCC diagnostic pop
    out = tpl__alloc(&run->job, strlen(text));
    memcpy(out, text + 1, strlen(text + 1));
    return of(tpl__str(&run->job, out, strlen(text + 1), format->origin));
}

static const struct function_row global_rows[] = {
    { "range", "start,stop?,step?", make_range },
    { "joiner", "sep?", make_joiner },
    { "raise_exception", "message", raise_exception },
    { "strftime_now", "format", strftime_now },
};

static const struct {
    const char *name;
    tpl_call call;
} raw_globals[] = {
    { "namespace", make_namespace }, { "dict", make_dict }, { "cycler", make_cycler },
};

struct value tpl__global(struct run *run, const struct str *name)
{
    for (size_t i = 0; i < sizeof(raw_globals) / sizeof(raw_globals[0]); i++) {
        if (tpl__str_is(name, raw_globals[i].name))
            return raw_function(run, raw_globals[i].name, raw_globals[i].call, tpl__none());
    }
    return tpl__bound_row(run, global_rows, sizeof(global_rows) / sizeof(global_rows[0]),
                          tpl__none(), name);
}
