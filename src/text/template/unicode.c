/* text/template/unicode.c - characters as Python's str methods see them. */
#include "text/template/unicode.h"

#include <string.h>

#include "base/utf8.h"
#include "text/template/internal.h"

static bool in_ranges(const struct tpl_range *ranges, size_t count, uint32_t code_point)
{
    size_t low = 0;
    size_t high = count;

    while (low < high) {
        size_t middle = (low + high) / 2;

        if (code_point > ranges[middle].last)
            low = middle + 1;
        else
            high = middle;
    }
    return low < count && code_point >= ranges[low].first &&
           (code_point - ranges[low].first) % ranges[low].step == 0;
}

#define IN(name, code_point)                                                                       \
    in_ranges(tpl__##name##_ranges, tpl__##name##_range_count, (code_point))

bool tpl__is_space(uint32_t c)
{
    return (c >= 0x09 && c <= 0x0d) || (c >= 0x1c && c <= 0x20) || c == 0x85 || c == 0xa0 ||
           c == 0x1680 || (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 ||
           c == 0x202f || c == 0x205f || c == 0x3000;
}

bool tpl__is_line_end(uint32_t c)
{
    return (c >= 0x0a && c <= 0x0d) || (c >= 0x1c && c <= 0x1e) || c == 0x85 || c == 0x2028 ||
           c == 0x2029;
}

bool tpl__is_word(uint32_t c)
{
    return c == '_' || IN(alnum, c);
}

bool tpl__is_printable(uint32_t c)
{
    return IN(printable, c);
}

bool tpl__is_alpha(uint32_t c)
{
    return IN(alpha, c);
}

bool tpl__is_digit(uint32_t c)
{
    return IN(digit, c);
}

bool tpl__is_decimal(uint32_t c)
{
    return IN(decimal, c);
}

bool tpl__is_numeric(uint32_t c)
{
    return IN(numeric, c);
}

bool tpl__is_upper(uint32_t c)
{
    return IN(upper, c);
}

bool tpl__is_lower(uint32_t c)
{
    return IN(lower, c);
}

bool tpl__is_cased(uint32_t c)
{
    return IN(cased, c);
}

/* --- letter case ------------------------------------------------------------------------------ */

struct case_table {
    const struct tpl_case_run *runs;
    size_t run_count;
    const struct tpl_case_several *several;
    size_t several_count;
};

enum { CASE_UPPER, CASE_LOWER, CASE_TITLE };

static void put_case(struct builder *out, int which, uint32_t c, uint8_t origin)
{
    const struct case_table tables[] = {
        { tpl__upper_runs, tpl__upper_run_count, tpl__upper_several, tpl__upper_several_count },
        { tpl__lower_runs, tpl__lower_run_count, tpl__lower_several, tpl__lower_several_count },
        { tpl__title_runs, tpl__title_run_count, tpl__title_several, tpl__title_several_count },
    };
    const struct case_table *table = &tables[which];
    size_t low = 0;
    size_t high = table->several_count;

    while (low < high) {
        size_t middle = (low + high) / 2;

        if (table->several[middle].code_point < c)
            low = middle + 1;
        else
            high = middle;
    }
    if (low < table->several_count && table->several[low].code_point == c) {
        for (int i = 0; i < 3 && table->several[low].becomes[i] != 0; i++)
            tpl__put_char(out, table->several[low].becomes[i], origin);
        return;
    }
    low = 0;
    high = table->run_count;
    while (low < high) {
        size_t middle = (low + high) / 2;

        if (table->runs[middle].last < c)
            low = middle + 1;
        else
            high = middle;
    }
    if (low < table->run_count && c >= table->runs[low].first &&
        (c - table->runs[low].first) % table->runs[low].step == 0)
        c = (uint32_t)((int64_t)c + table->runs[low].added);
    tpl__put_char(out, c, origin);
}

/* Whether the sigma at `at` ends a word: a cased letter before it and none after it, what is
 * ignorable passed over. */
static bool sigma_is_final(const struct str *str, size_t at, size_t size)
{
    uint32_t c = 0;
    size_t before = at;
    size_t after = at + size;
    bool cased = false;

    while (before > 0) {
        before -= tpl__character_before(str, before, &c);
        if (!IN(case_ignorable, c)) {
            cased = tpl__is_cased(c);
            break;
        }
    }
    if (!cased)
        return false;
    while (after < str->size) {
        after += tpl__character(str, after, &c);
        if (!IN(case_ignorable, c))
            return !tpl__is_cased(c);
    }
    return true;
}

static void put_lower(struct builder *out, const struct str *str, size_t at, size_t size,
                      uint32_t c)
{
    if (c == 0x3a3)
        tpl__put_char(out, sigma_is_final(str, at, size) ? 0x3c2 : 0x3c3, tpl__origin_at(str, at));
    else
        put_case(out, CASE_LOWER, c, tpl__origin_at(str, at));
}

/* What becomes of each character: the same for all, or one for the first and another later. */
enum case_rule { RULE_UPPER, RULE_LOWER, RULE_TITLE, RULE_CAPITALIZE, RULE_SWAP };

static struct str *map_case(struct job *job, const struct str *str, enum case_rule rule)
{
    struct builder out;
    struct str *built;
    bool after_cased = false;

    tpl__charge_bytes(job, str->size * 16);
    tpl__builder_init(&out, job);
    for (size_t at = 0; at < str->size;) {
        uint32_t c;
        size_t size = tpl__character(str, at, &c);
        bool first = rule == RULE_CAPITALIZE ? at == 0 : !after_cased;

        if (rule == RULE_UPPER || (rule == RULE_SWAP && tpl__is_lower(c)))
            put_case(&out, CASE_UPPER, c, tpl__origin_at(str, at));
        else if (rule == RULE_SWAP && !tpl__is_upper(c))
            tpl__put_part(&out, str, at, at + size);
        else if (first && (rule == RULE_TITLE || rule == RULE_CAPITALIZE))
            put_case(&out, CASE_TITLE, c, tpl__origin_at(str, at));
        else
            put_lower(&out, str, at, size, c);
        after_cased = tpl__is_cased(c);
        at += size;
    }
    built = tpl__built(&out);
    built->markup = str->markup;
    return built;
}

struct str *tpl__upper(struct job *job, const struct str *str)
{
    return map_case(job, str, RULE_UPPER);
}

struct str *tpl__lower(struct job *job, const struct str *str)
{
    return map_case(job, str, RULE_LOWER);
}

struct str *tpl__title(struct job *job, const struct str *str)
{
    return map_case(job, str, RULE_TITLE);
}

struct str *tpl__capitalize(struct job *job, const struct str *str)
{
    return map_case(job, str, RULE_CAPITALIZE);
}

struct str *tpl__swapcase(struct job *job, const struct str *str)
{
    return map_case(job, str, RULE_SWAP);
}
