/* text/template/string.c - text with marks: where each byte came from. */
#include <string.h>

#include "base/utf8.h"
#include "text/template/internal.h"

struct str *tpl__str(struct job *job, const char *bytes, size_t size, uint8_t origin)
{
    struct str *str = tpl__alloc(job, sizeof(*str));

    str->bytes = bytes;
    str->size = size;
    str->count = SIZE_MAX;
    str->origin = origin;
    return str;
}

struct str *tpl__str_c(struct job *job, const char *text)
{
    return tpl__str(job, text, strlen(text), 0);
}

struct value tpl__of_str(struct str *str)
{
    return (struct value){ .kind = V_STR, .str = str };
}

struct value tpl__of_text(struct job *job, const char *text)
{
    return tpl__of_str(tpl__str_c(job, text));
}

struct str *tpl__sub(struct job *job, const struct str *str, size_t from, size_t to)
{
    struct str *sub = tpl__str(job, str->bytes + from, to - from, str->origin);

    if (str->marks != NULL)
        sub->marks = str->marks + from;
    sub->markup = str->markup;
    return sub;
}

size_t tpl__str_count(struct job *job, const struct str *str)
{
    if (str->count == SIZE_MAX) {
        size_t count = 0;

        tpl__charge_bytes(job, str->size);
        for (size_t i = 0; i < str->size; i++)
            count += ((unsigned char)str->bytes[i] & 0xc0) != 0x80;
        ((struct str *)str)->count = count; /* what it would always have been */
    }
    return str->count;
}

size_t tpl__str_offset(struct job *job, const struct str *str, size_t index)
{
    size_t count = tpl__str_count(job, str);
    size_t at = 0;

    if (index >= count)
        return str->size;
    if (count == str->size)
        return index;
    tpl__charge_bytes(job, str->size);
    for (size_t seen = 0; seen < index; seen++) {
        at++;
        while (at < str->size && ((unsigned char)str->bytes[at] & 0xc0) == 0x80)
            at++;
    }
    return at;
}

bool tpl__str_equal(const struct str *a, const struct str *b)
{
    return a->size == b->size && (a->size == 0 || memcmp(a->bytes, b->bytes, a->size) == 0);
}

bool tpl__str_is(const struct str *a, const char *text)
{
    return a->size == strlen(text) && memcmp(a->bytes, text, a->size) == 0;
}

size_t tpl__str_find(struct job *job, const struct str *str, const struct str *part, size_t from)
{
    const char *found;

    if (from > str->size)
        return SIZE_MAX;
    if (part->size == 0)
        return from;
    found = memmem(str->bytes + from, str->size - from, part->bytes, part->size);
    tpl__charge_bytes(job, found != NULL ? (size_t)(found - (str->bytes + from))
                                         : str->size - from);
    return found == NULL ? SIZE_MAX : (size_t)(found - str->bytes);
}

size_t tpl__str_rfind(struct job *job, const struct str *str, const struct str *part, size_t to)
{
    if (part->size > to)
        return SIZE_MAX;
    for (size_t at = to - part->size;; at--) {
        if (part->size == 0 || memcmp(str->bytes + at, part->bytes, part->size) == 0) {
            tpl__charge(job, (to - at) / 8);
            return at;
        }
        if (at == 0)
            break;
    }
    tpl__charge(job, to / 8);
    return SIZE_MAX;
}

size_t tpl__character(const struct str *str, size_t at, uint32_t *code_point_out)
{
    return utf8_decode(str->bytes + at, str->size - at, code_point_out, NULL);
}

size_t tpl__character_before(const struct str *str, size_t to, uint32_t *code_point_out)
{
    size_t at = to - 1;

    while (at > 0 && to - at < 4 && ((unsigned char)str->bytes[at] & 0xc0) == 0x80)
        at--;
    utf8_decode(str->bytes + at, to - at, code_point_out, NULL);
    return to - at;
}

uint8_t tpl__origin_at(const struct str *str, size_t at)
{
    return str->marks != NULL ? str->marks[at] : str->origin;
}

/* --- building --------------------------------------------------------------------------------- */

void tpl__builder_init(struct builder *builder, struct job *job)
{
    memset(builder, 0, sizeof(*builder));
    builder->job = job;
    builder->size_limit = SIZE_MAX;
}

static void reserve(struct builder *builder, size_t more)
{
    struct job *job = builder->job;
    size_t capacity = builder->capacity;
    char *bytes;

    if (more > builder->size_limit - builder->size)
        tpl__fail(job, "its output is longer than %zu bytes", builder->size_limit);
    if (more <= capacity - builder->size)
        return;
    if (more > job->memory_limit_bytes)
        tpl__fail(job, "it needs more than %zu bytes of memory", job->memory_limit_bytes);
    capacity = capacity < 32 ? 64 : capacity * 2;
    if (capacity < builder->size + more)
        capacity = builder->size + more;
    bytes = tpl__alloc(job, capacity);
    if (builder->size > 0)
        memcpy(bytes, builder->bytes, builder->size);
    if (builder->marks != NULL) {
        uint8_t *marks = tpl__alloc(job, capacity);

        memcpy(marks, builder->marks, builder->size);
        builder->marks = marks;
    }
    builder->bytes = bytes;
    builder->capacity = capacity;
}

/* From one origin to several. */
static void mark_each(struct builder *builder)
{
    builder->marks = tpl__alloc(builder->job, builder->capacity);
    memset(builder->marks, builder->origin, builder->size);
}

void tpl__put(struct builder *builder, const char *bytes, size_t size, uint8_t origin)
{
    if (size == 0)
        return;
    tpl__charge_bytes(builder->job, size);
    reserve(builder, size);
    if (builder->size == 0 && builder->marks == NULL)
        builder->origin = origin;
    if (builder->marks == NULL && builder->origin != origin)
        mark_each(builder);
    if (builder->marks != NULL)
        memset(builder->marks + builder->size, origin, size);
    memcpy(builder->bytes + builder->size, bytes, size);
    builder->size += size;
}

void tpl__put_c(struct builder *builder, const char *text)
{
    tpl__put(builder, text, strlen(text), 0);
}

void tpl__put_part(struct builder *builder, const struct str *str, size_t from, size_t to)
{
    size_t size = to - from;

    if (str->marks == NULL || size == 0) {
        tpl__put(builder, str->bytes + from, size, str->origin);
        return;
    }
    tpl__charge_bytes(builder->job, size);
    reserve(builder, size);
    if (builder->marks == NULL)
        mark_each(builder);
    memcpy(builder->marks + builder->size, str->marks + from, size);
    memcpy(builder->bytes + builder->size, str->bytes + from, size);
    builder->size += size;
}

void tpl__put_str(struct builder *builder, const struct str *str)
{
    tpl__put_part(builder, str, 0, str->size);
}

void tpl__put_char(struct builder *builder, uint32_t code_point, uint8_t origin)
{
    char bytes[4];

    tpl__put(builder, bytes, utf8_encode(code_point, bytes), origin);
}

struct str *tpl__built(struct builder *builder)
{
    struct str *str = tpl__str(builder->job, builder->size > 0 ? builder->bytes : "",
                               builder->size, builder->origin);

    str->marks = builder->marks;
    return str;
}

struct str *tpl__escape(struct job *job, const struct str *str)
{
    struct builder out;
    struct str *escaped;

    if (str->markup)
        return tpl__sub(job, str, 0, str->size);
    tpl__builder_init(&out, job);
    for (size_t i = 0; i < str->size; i++) {
        const char *entity;

        switch (str->bytes[i]) {
        case '&': entity = "&amp;"; break;
        case '<': entity = "&lt;"; break;
        case '>': entity = "&gt;"; break;
        case '\'': entity = "&#39;"; break;
        case '"': entity = "&#34;"; break;
        default: entity = NULL; break;
        }
        if (entity != NULL)
            tpl__put(&out, entity, strlen(entity), tpl__origin_at(str, i));
        else
            tpl__put_part(&out, str, i, i + 1);
    }
    escaped = tpl__built(&out);
    escaped->markup = true;
    return escaped;
}
