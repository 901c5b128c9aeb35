/* checkpoint/gguf/maker.h - what the files that make a config.json of GGUF metadata share.
 *
 * config.c reads values and writes what all architectures have, families.c what is an
 * architecture's own. Keys are given without the architecture's name in front of them. */
#ifndef LIGHTER_CHECKPOINT_GGUF_MAKER_H
#define LIGHTER_CHECKPOINT_GGUF_MAKER_H

#include "checkpoint/gguf/gguf.h"

/* Carries values over; after the first failure the rest is skipped. */
struct maker {
    const struct ckpt *ckpt;
    const struct gguf_meta *meta;
    const char *path, *arch;
    json_t *config;
    enum status status;
    struct err *err;
};

void gguf__refuse(struct maker *maker, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

bool gguf__has(const struct maker *maker, const char *key);
/* An integer, or an array with one for each layer when they are all the same. `missing` where there
 * is none. */
uint64_t gguf__count_or(struct maker *maker, const char *key, uint64_t missing);
/* One that must be there. */
uint64_t gguf__count_of(struct maker *maker, const char *key);
double gguf__number_or(struct maker *maker, const char *key, double missing);
bool gguf__bool_or(struct maker *maker, const char *key, bool missing);
/* Whether the key is there and is an array. */
bool gguf__is_array(const struct maker *maker, const char *key);
/* "layer_types" of an array of booleans (or of integers, 0 and others), one for each layer, in
 * which true is `windowed` and false "full_attention". */
void gguf__put_layer_types(struct maker *maker, const char *key, const char *windowed);
/* By the name that Hugging Face's checkpoints give it. */
bool gguf__has_tensor(const struct maker *maker, const char *name);

/* Takes the value. */
void gguf__put(struct maker *maker, json_t *object, const char *key, json_t *value);
void gguf__put_count(struct maker *maker, const char *key, uint64_t count);
void gguf__put_number(struct maker *maker, const char *key, double number);
void gguf__put_bool(struct maker *maker, const char *key, bool value);
void gguf__put_names(struct maker *maker, const char *architecture, const char *model_type);
/* The rope of heads of `head_dim` elements. interleaved: the rotated pairs are adjacent. */
void gguf__put_rope(struct maker *maker, uint64_t head_dim, bool interleaved);
/* Grouped-query attention's heads, and their rope. */
void gguf__put_heads(struct maker *maker, bool interleaved);

struct gguf_family {
    const char *arch;                   /* general.architecture */
    void (*make)(struct maker *maker);  /* puts what is the architecture's own */
};
extern const struct gguf_family gguf__families[]; /* ended by one without a name */

#endif
