/* text/template/unicode.h - the tables of unicode_tables.c, for unicode.c alone. */
#ifndef LIGHTER_TEXT_TEMPLATE_UNICODE_H
#define LIGHTER_TEXT_TEMPLATE_UNICODE_H

#include <stddef.h>
#include <stdint.h>

/* first, first + step, ..., last. Sorted, apart. */
struct tpl_range {
    uint32_t first, last, step;
};

/* first, first + step, ..., last: the other letter is `added` further. */
struct tpl_case_run {
    uint32_t first, last, step;
    int32_t added;
};

/* A character that becomes several; unused places are 0. */
struct tpl_case_several {
    uint32_t code_point;
    uint32_t becomes[3];
};

#define TPL_RANGES(name)                                                                           \
    extern const struct tpl_range tpl__##name##_ranges[];                                          \
    extern const size_t tpl__##name##_range_count
#define TPL_CASES(name)                                                                            \
    extern const struct tpl_case_run tpl__##name##_runs[];                                         \
    extern const size_t tpl__##name##_run_count;                                                   \
    extern const struct tpl_case_several tpl__##name##_several[];                                  \
    extern const size_t tpl__##name##_several_count

TPL_RANGES(printable);
TPL_RANGES(alpha);
TPL_RANGES(alnum);
TPL_RANGES(upper);
TPL_RANGES(lower);
TPL_RANGES(cased);
TPL_RANGES(decimal);
TPL_RANGES(digit);
TPL_RANGES(numeric);
TPL_RANGES(case_ignorable);
TPL_CASES(upper);
TPL_CASES(lower);
TPL_CASES(title);

#endif
