/* checkpoint/gguf/pre.h - the kinds of pre-tokenizer that GGUF files name. */
#ifndef LIGHTER_CHECKPOINT_GGUF_PRE_H
#define LIGHTER_CHECKPOINT_GGUF_PRE_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>

#define GGUF_PRE_NAMES_MAX 6
#define GGUF_PRE_PATTERNS_MAX 6

struct gguf_pre {
    const char *names[GGUF_PRE_NAMES_MAX];       /* of tokenizer.ggml.pre; NULL after the last */
    bool byte_level_cuts; /* by GPT-2's own pattern, after the others */
    bool whole_words;     /* a word that is a token is not merged */
    bool nfc;
    bool adds_bos;        /* where the file does not say */
    const char *patterns[GGUF_PRE_PATTERNS_MAX]; /* one after the other; NULL after the last */
};

/* NULL: not known. */
const struct gguf_pre *gguf__find_pre(const char *name);
/* As a tokenizer.json has it. NULL when out of memory. */
json_t *gguf__pre_tokenizer(const struct gguf_pre *pre);

/* The name of the kind that a tokenizer.json cuts text by; NULL: it is none of them. */
const char *gguf__pre_of(const json_t *tokenizer);
/* All kinds, for messages, into out; returns out. */
const char *gguf__pre_names(char *out, size_t out_size);

#endif
