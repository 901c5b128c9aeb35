/* checkpoint/gguf/teller.h - what the files that make GGUF metadata of a config.json share.
 *
 * export.c reads and writes values and what all architectures have, export_families.c
 * what is an architecture's own. Keys of the file are given without the architecture's name in
 * front of them. */
#ifndef LIGHTER_CHECKPOINT_GGUF_TELLER_H
#define LIGHTER_CHECKPOINT_GGUF_TELLER_H

#include <jansson.h>

#include "checkpoint/gguf/export.h"

/* Carries values over; after the first failure, which is the header's, the rest is skipped. */
struct teller {
    const struct ckpt *ckpt;
    const json_t *config;          /* the language model's */
    const json_t *rope;            /* rope_scaling or rope_parameters; NULL: neither */
    char what[512];                /* the config's path, for messages */
    struct gguf_model *model;
    struct gguf_header *header;
};

void teller__refuse(struct teller *teller, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

/* Values of the config.json, or of an object in it, which may be NULL. */
bool teller__has(const json_t *object, const char *key); /* there, and not null */
bool teller__is_null(const json_t *object, const char *key); /* there, and null */
uint64_t teller__count_of(struct teller *teller, const char *key);
uint64_t teller__count_or(struct teller *teller, const char *key, uint64_t missing);
bool teller__bool_or(struct teller *teller, const char *key, bool missing);
double teller__number_in(struct teller *teller, const json_t *object, const char *key,
                         double missing);
const char *teller__string_in(struct teller *teller, const json_t *object, const char *key,
                              const char *missing);

void teller__put_count(struct teller *teller, const char *key, uint64_t count);
void teller__put_number(struct teller *teller, const char *key, double number);
void teller__put_bool(struct teller *teller, const char *key, bool value);
/* The rope of heads of which `rotated` elements are. */
void teller__put_rope(struct teller *teller, uint64_t rotated, double theta_missing);

/* What stands for missing keys, as transformers has it; 0: the key must be there. */
struct teller_missing {
    uint64_t layer_count, vocab_size, hidden_size, head_count, ffn_width, context_length;
    double norm_epsilon;                  /* 0: 1e-6 */
    bool tied_embeddings;
    const char *ffn_key;                  /* of a dense FFN's width; NULL: "intermediate_size" */
};

struct teller_family {
    const char *model_type, *arch;        /* config.json's, and general.architecture */
    void (*tell)(struct teller *teller);  /* puts what is the architecture's own */
    const struct teller_missing *missing; /* NULL: nothing stands for anything */
    bool is_text_part;                    /* the configuration is "text_config" */
};
extern const struct teller_family teller__families[]; /* ended by one without a name */

#endif
