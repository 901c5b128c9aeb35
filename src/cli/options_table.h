/* cli/options_table.h - the rows that options are read and explained by; only for files in cli/. */
#ifndef LIGHTER_CLI_OPTIONS_TABLE_H
#define LIGHTER_CLI_OPTIONS_TABLE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "cli/options.h"

enum cli_option_kind {
    CLI_OPTION_FLAG,   /* bool */
    CLI_OPTION_TEXT,   /* const char * */
    CLI_OPTION_CHOICE, /* const char *, one of `choices` */
    CLI_OPTION_INT,    /* int64_t in [min, max] */
    CLI_OPTION_REAL,   /* double in [min, max], or (min, max] */
    CLI_OPTION_SIZE,   /* uint64_t, > 0: "2GiB" */
    CLI_OPTION_IDS,    /* struct token_ids: "1,2,3" */
    CLI_OPTION_TEXTS   /* struct cli_texts: may be given several times */
};

struct cli_option {
    const char *name;        /* without dashes */
    const char *alias;       /* NULL: none */
    const char *also;        /* further names: "a|b"; NULL: none */
    enum cli_option_kind kind;
    const char *value_name;  /* in the help: "N" */
    double min, max;         /* of CLI_OPTION_INT and CLI_OPTION_REAL */
    bool above_min;          /* min itself is not allowed */
    const char *choices;     /* of CLI_OPTION_CHOICE: "a|b|c" */
    const char *fallback;    /* the default, as it would be typed; NULL: not given */
    const char *help;
    const char *group;       /* heading in the help */
    uint32_t commands;       /* bit 1 << enum cli_command */
    size_t offset;           /* in struct cli_options */
};

extern const struct cli_option cli_option_table[];
extern const size_t cli_option_count;

/* SGLang's launch flags which are not options here. */
enum cli_arity { CLI_ARITY_NONE, CLI_ARITY_ONE, CLI_ARITY_MAYBE, CLI_ARITY_MANY };

struct cli_foreign_flag {
    const char *name;
    enum cli_arity arity;
    const char *honoured;  /* values that say what happens here anyway ("1", "auto|safetensors"):
                              fine without a word. NULL: there are none */
    bool refused;          /* other values are refused, since ignoring them would serve something
                              else; not refused: they have no effect, which is said */
    const char *why;
};

extern const struct cli_foreign_flag cli_foreign_flags[];
extern const size_t cli_foreign_flag_count;

/* True when `value` is one of "a|b|c". */
bool cli_choice_contains(const char *choices, const char *value);

#endif
