/* text/tokenizer/internal.h - the parts of a tokenizer, for the files of this room.
 *
 *   text --sanitise--> UTF-8
 *        --added.c--> stretches of text, and added tokens found between them
 *        --normalize.c--> each stretch rewritten (NFC, Replace, ...), added tokens once more
 *        --pretokenize.c--> pieces ("words"), one after the other, never all of them at once
 *        --bpe.c--> ids of each piece
 *        --postprocess.c--> BOS and such
 *
 * Everything is filled while the tokenizer is opened and read-only afterwards. What changes while
 * encoding is in struct encoder, one per call; what changes while decoding is in the stream. */
#ifndef LIGHTER_TEXT_TOKENIZER_INTERNAL_H
#define LIGHTER_TEXT_TOKENIZER_INTERNAL_H

#include <jansson.h>

#include "base/map.h"
#include "text/tokenizer/tokenizer.h"

#define TEXT_BYTES_MAX ((size_t)64 << 20)        /* what encode takes */
#define TEXT_NORMALIZED_MAX ((size_t)256 << 20)  /* what normalising may make of it, ... */
#define TEXT_GROWTH_MAX ((size_t)16)             /* ... and by how much it may grow */
#define TEXT_GROWTH_BASE ((size_t)64 << 10)
#define TEXT_DECODED_MAX ((size_t)256 << 20)
#define TOKENIZER_FILE_BYTES_MAX ((size_t)64 << 20)
#define TOKEN_ID_MAX (INT32_C(1) << 23)
#define TOKEN_COUNT_MAX ((size_t)4 << 20)
#define MERGE_COUNT_MAX ((size_t)8 << 20)
#define TOKEN_BYTES_MAX ((size_t)64 << 10)       /* of one token's string */
#define PATTERN_BYTES_MAX ((size_t)16 << 10)     /* of one regular expression */
#define CONTENT_BYTES_MAX ((size_t)1024)         /* of the strings of Replace, Prepend, Split */
#define ADDED_BYTES_MAX ((size_t)256)            /* of an added token */
#define STEPS_MAX 32                             /* of one kind, Sequences flattened */
#define SEQUENCE_DEPTH_MAX 8
#define TEMPLATE_IDS_MAX 256

/* A string that may hold NULs; owned. */
struct text_string {
    char *bytes; /* NUL-terminated */
    size_t size;
};

/* --- vocab.c: the model's tokens, by string and by id ----------------------------------------- */

struct vocab_entry {
    uint32_t offset; /* into bytes */
    uint32_t size;
    int32_t id;
};

struct vocab {
    char *bytes; /* every token's string, one after the other */
    struct vocab_entry *entries;
    uint32_t entry_count;
    uint32_t *slots; /* entry index + 1, 0: empty; linear probing */
    uint32_t slot_mask;
    uint32_t *by_id; /* [id_limit] entry index + 1, 0: no token */
    uint32_t id_limit;
};

/* From the "vocab" object. */
enum status vocab_init(struct vocab *vocab, const json_t *object, const char *what,
                       struct err *err);
void vocab_deinit(struct vocab *vocab);
/* -1: not there. */
int32_t vocab_find(const struct vocab *vocab, const char *bytes, size_t size);
/* NULL: no such id. */
const char *vocab_string(const struct vocab *vocab, int32_t id, size_t *size_out);

/* --- pattern.c: what Split, Replace and ByteLevel look for ------------------------------------ */

struct pattern;

enum pattern_kind { PATTERN_STRING, PATTERN_REGEX };

enum status pattern_create(enum pattern_kind kind, const char *bytes, size_t size,
                           const char *what, struct pattern **pattern_out, struct err *err);
/* From {"String": "..."} or {"Regex": "..."}. */
enum status pattern_create_json(const json_t *json, const char *what, struct pattern **pattern_out,
                                struct err *err);
void pattern_destroy(struct pattern *pattern);
/* The string of a PATTERN_STRING, NULL for a regular expression. */
const char *pattern_literal(const struct pattern *pattern, size_t *size_out);

/* Memory for searching, kept from scan to scan; all zeros to begin with. One scan at a time. */
struct pattern_scratch {
    void *region;      /* OnigRegion */
    void *match_param; /* OnigMatchParam */
    struct buf stand_in;
};

void pattern_scratch_deinit(struct pattern_scratch *scratch);

/* Walks the matches in one text, from left to right, as rust-onig's find_iter does: the first empty
 * match after one that was not empty does not count, even where it is not next to it. */
struct pattern_scan {
    const struct pattern *pattern;
    const char *text;      /* borrowed; what is searched (a stand-in of the caller's text) */
    size_t size;
    size_t next;           /* where the search goes on; > size: done */
    bool skip_next_empty;  /* the last match was not empty */
    struct pattern_scratch *scratch; /* borrowed */
    uint64_t budget;       /* backtracking steps left */
};


enum status pattern_scan_begin(struct pattern_scan *scan, const struct pattern *pattern,
                               const char *text, size_t size,
                               struct pattern_scratch *scratch, struct err *err);
/* *found_out false: no further match. */
enum status pattern_scan_next(struct pattern_scan *scan, bool *found_out, size_t *start_out,
                              size_t *end_out, struct err *err);

/* --- unicode_tables.c, classes.c: characters by class, as the library's crates class them ----- */

struct unicode_range {
    uint32_t first, last;
};

struct unicode_mapping {
    uint32_t first, last;
    int32_t value;
};

extern const struct unicode_range unicode_word[], unicode_numeric[], unicode_punctuation[],
    unicode_mark[], unicode_untouched[];
extern const size_t unicode_word_count, unicode_numeric_count, unicode_punctuation_count,
    unicode_mark_count, unicode_untouched_count;
extern const struct unicode_mapping unicode_lower[], unicode_stand_in[];
extern const size_t unicode_lower_count, unicode_stand_in_count;

bool class_is_space(uint32_t code_point);
bool class_is_word(uint32_t code_point);
bool class_is_numeric(uint32_t code_point);
bool class_is_punctuation(uint32_t code_point);
bool class_is_mark(uint32_t code_point);
/* Younger than the library's normal forms, which leave it as it is. */
bool class_is_untouched(uint32_t code_point);
/* char::to_lowercase, but for U+0130, whose lower case is two characters. */
uint32_t class_to_lower(uint32_t code_point);
/* The code point that Oniguruma classes as a newer Oniguruma classes this one. */
uint32_t class_stand_in(uint32_t code_point);
/* The last code point of a non-empty UTF-8 text. */
uint32_t utf8_last(const char *text, size_t size, size_t *length_out);

/* --- bytelevel.c: GPT-2's characters for bytes ------------------------------------------------ */

/* Appends the characters for bytes[size]. */
enum status byte_level_encode(const char *bytes, size_t size, struct buf *out, struct err *err);
/* The byte of a character; -1: it stands for none. */
int byte_level_byte(uint32_t code_point);

/* --- normalize.c ------------------------------------------------------------------------------ */

enum normalizer_kind {
    NORMALIZER_PREPEND,
    NORMALIZER_REPLACE,
    NORMALIZER_NFC,
    NORMALIZER_NFD,
    NORMALIZER_NFKC,
    NORMALIZER_NFKD,
    NORMALIZER_LOWERCASE,
    NORMALIZER_STRIP,
    NORMALIZER_STRIP_ACCENTS,
};

struct normalizer {
    enum normalizer_kind kind;
    struct pattern *pattern;    /* Replace */
    struct text_string content; /* Replace, Prepend */
    bool left, right;           /* Strip */
};

struct normalizers {
    struct normalizer steps[STEPS_MAX];
    size_t count;
};

enum status normalizers_init(struct normalizers *normalizers, const json_t *json, const char *what,
                             struct err *err);
void normalizers_deinit(struct normalizers *normalizers);
/* Rewrites *text in place. *lead is how many bytes at its start come from the first character of
 * the whole input (0: the stretch is not at the input's start); Metaspace wants to know. `scratch`
 * lends memory. */
enum status normalizers_run(const struct normalizers *normalizers, struct buf *text, size_t *lead,
                            struct buf *scratch, struct err *err);

/* --- unicode_normal.c: the four normal forms -------------------------------------------------- */

/* Appends text[size] in the normal form of `kind` to *out. */
enum status unicode_normalize(enum normalizer_kind kind, const char *text, size_t size,
                              struct buf *out, struct err *err);

/* --- pretokenize.c ---------------------------------------------------------------------------- */

enum split_behavior {
    SPLIT_REMOVED,
    SPLIT_ISOLATED,
    SPLIT_MERGED_WITH_PREVIOUS,
    SPLIT_MERGED_WITH_NEXT,
    SPLIT_CONTIGUOUS,
};

enum pretokenizer_kind {
    PRETOKENIZER_BYTE_LEVEL,
    PRETOKENIZER_SPLIT,
    PRETOKENIZER_DIGITS,
    PRETOKENIZER_PUNCTUATION,
    PRETOKENIZER_WHITESPACE,
    PRETOKENIZER_WHITESPACE_SPLIT,
    PRETOKENIZER_METASPACE,
};

enum prepend_scheme { PREPEND_ALWAYS, PREPEND_FIRST, PREPEND_NEVER };

struct pretokenizer {
    enum pretokenizer_kind kind;
    struct pattern *pattern;      /* Split, ByteLevel with its regular expression */
    enum split_behavior behavior; /* Split, Punctuation, Digits */
    bool invert;                  /* Split */
    bool add_prefix_space;        /* ByteLevel */
    bool split;                   /* Metaspace */
    enum prepend_scheme scheme;   /* Metaspace */
    char replacement[4];          /* Metaspace: one character */
    size_t replacement_size;
};

struct pretokenizers {
    struct pretokenizer steps[STEPS_MAX];
    size_t count;
};

enum status pretokenizers_init(struct pretokenizers *pretokenizers, const json_t *json,
                               const char *what, struct err *err);
void pretokenizers_deinit(struct pretokenizers *pretokenizers);
/* The fields that Metaspace has as pre-tokenizer and as decoder. */
enum status metaspace_read(const json_t *json, const char *what, char replacement[4],
                           size_t *replacement_size, enum prepend_scheme *scheme, bool *split,
                           struct err *err);

/* --- bpe.c ------------------------------------------------------------------------------------ */

struct merge {
    uint64_t pair; /* left id << 32 | right id; MERGE_EMPTY: empty slot */
    uint32_t rank;
    int32_t id;
};

struct bpe {
    struct vocab vocab;
    struct merge *merges; /* open addressing */
    size_t merge_mask;
    int32_t *character_ids; /* [0x10000] ids of one-character tokens, -1: none */
    int32_t byte_ids[256];  /* of "<0x00>" to "<0xFF>" */
    bool byte_fallback, fuse_unk, ignore_merges;
    struct text_string unk_token; /* bytes NULL: none */
    int32_t unk_id;               /* -1: none, or not in the vocabulary */
    struct text_string prefix;    /* continuing_subword_prefix */
    struct text_string suffix;    /* end_of_word_suffix */
};

struct bpe_symbol {
    int32_t id;
    uint32_t previous, next; /* BPE_NONE at the ends */
};

/* Memory for merging, kept from piece to piece. */
struct bpe_scratch {
    struct bpe_symbol *symbols;
    size_t symbol_count, symbol_capacity;
    uint64_t *heap; /* rank << 32 | index of the left symbol */
    size_t heap_count, heap_capacity;
    struct buf decorated; /* a character with prefix and suffix */
};

enum status bpe_init(struct bpe *bpe, const json_t *json, const char *what, struct err *err);
void bpe_deinit(struct bpe *bpe);
enum status bpe_encode(const struct bpe *bpe, struct bpe_scratch *scratch, const char *text,
                       size_t size, struct token_ids *out, struct err *err);
void bpe_scratch_deinit(struct bpe_scratch *scratch);

/* --- added.c: added and special tokens -------------------------------------------------------- */

struct added_token {
    struct text_string content;
    struct text_string normalized; /* bytes NULL: the same as content */
    int32_t id;
    bool single_word, lstrip, rstrip, is_normalized, special;
    bool is_skipped; /* when special tokens are: its string is that of a special token */
};

struct added_node {
    uint32_t child, sibling; /* node indices, 0: none */
    uint32_t token;          /* index + 1 of the token that ends here, 0: none */
    unsigned char byte;
};

/* A trie over the tokens to look for. */
struct added_trie {
    struct added_node *nodes; /* [0] is the root */
    uint32_t node_count, node_capacity;
    uint32_t roots[256];
};

struct added {
    struct added_token *tokens;
    uint32_t count;
    struct map *by_content; /* index of the token */
    uint32_t *by_id;        /* [id_limit] index + 1, 0: none */
    uint32_t id_limit;      /* one past the highest id of an added token */
    struct added_trie plain;      /* looked for in the text as it came */
    struct added_trie normalized; /* looked for in the normalised text */
};

enum status added_init(struct added *added, const json_t *json, const struct bpe *bpe,
                       const struct normalizers *normalizers, const char *what, struct err *err);
void added_deinit(struct added *added);
/* NULL: no added token has this content (this id). */
const struct added_token *added_find(const struct added *added, const char *bytes, size_t size);
const struct added_token *added_by_id(const struct added *added, int32_t id);

/* The matches in a text, left to right. */
struct added_scan {
    const struct added *added;
    const struct added_trie *trie;
    const char *text;
    size_t size;
    size_t position; /* of the search */
    size_t done;     /* what has been handed out */
    const uint8_t *marks;    /* [size] or NULL: what is marked is no part of a control token */
    const uint8_t *controls; /* [id_limit] which tokens are control tokens */
    size_t spaces_start, spaces_end; /* a run of spaces that is known already */
};

/* The next token; the text between `done` and *start_out lies before it. False: none. */
bool added_scan_next(struct added_scan *scan, const struct added_token **token_out,
                     size_t *start_out, size_t *end_out);

/* --- postprocess.c ---------------------------------------------------------------------------- */

struct postprocessor {
    int32_t before[TEMPLATE_IDS_MAX];
    size_t before_count;
    int32_t after[TEMPLATE_IDS_MAX];
    size_t after_count;
    bool drops_text; /* a template without $A */
};

enum status postprocessor_init(struct postprocessor *postprocessor, const json_t *json,
                               const char *what, struct err *err);

/* --- decode.c --------------------------------------------------------------------------------- */

enum decoder_kind {
    DECODER_BYTE_LEVEL,
    DECODER_REPLACE,
    DECODER_BYTE_FALLBACK,
    DECODER_FUSE,
    DECODER_STRIP,
    DECODER_METASPACE,
    DECODER_JOIN_WITH_SPACES, /* what a tokenizer without decoder does */
};

struct decoder {
    enum decoder_kind kind;
    bool is_fused;              /* what comes in is one token that ends only at the end */
    struct pattern *pattern;    /* Replace */
    struct text_string content; /* Replace */
    char character[4];          /* Strip, Metaspace */
    size_t character_size;
    size_t strip_start, strip_stop; /* Strip */
    bool strips_first;              /* Metaspace */
};

struct decoders {
    struct decoder steps[STEPS_MAX];
    size_t count;
};

enum status decoders_init(struct decoders *decoders, const json_t *json, const char *what,
                          struct err *err);
void decoders_deinit(struct decoders *decoders);

/* --- tokenizer.c ------------------------------------------------------------------------------ */

struct tokenizer {
    char *what; /* the file's name, for messages */
    struct bpe bpe;
    struct added added;
    struct normalizers normalizers;
    struct pretokenizers pretokenizers;
    struct postprocessor postprocessor;
    struct decoders decoders;
    uint32_t id_limit;
    int32_t bos_id, eos_id;
};

/* One call of tokenizer_encode. */
struct encoder {
    const struct tokenizer *tokenizer;
    struct token_ids *out;
    const uint8_t *controls; /* of tokenizer_encode_marked, else NULL */
    struct bpe_scratch bpe;
    struct buf normalized, scratch;
    struct buf marks;                  /* of the normalised text */
    struct buf step_text[STEPS_MAX];   /* a piece with its prefix, spaces replaced */
    struct buf step_mapped[STEPS_MAX]; /* a piece as byte-level characters */
    struct pattern_scratch step_search[STEPS_MAX];
};

/* The string an id decodes to, from the added tokens or the model; NULL: no such id. */
const char *tokenizer_token(const struct tokenizer *tokenizer, int32_t id, size_t *size_out);

/* Cuts text[size] into pieces and appends their ids. */
enum status pretokenizers_run(struct encoder *encoder, const char *text, size_t size, size_t lead,
                              struct err *err);

/* --- read.c: the JSON of the components ------------------------------------------------------- */

/* Calls add(context, component, type, what) for each component: json itself, or, when it is a
 * Sequence, the members of its array `members_key`, and so on. A json of null has none. */
enum status components_walk(const json_t *json, const char *members_key, const char *what,
                            enum status (*add)(void *context, const json_t *component,
                                               const char *type, const char *what,
                                               struct err *err),
                            void *context, struct err *err);
/* A string of at most size_max bytes, copied; required. */
enum status string_read(const json_t *object, const char *key, const char *what, size_t size_max,
                        struct text_string *out, struct err *err);
enum status string_copy(const char *bytes, size_t size, struct text_string *out, struct err *err);
void string_deinit(struct text_string *string);
/* A string of exactly one character. */
enum status character_read(const json_t *object, const char *key, const char *what, char out[4],
                           size_t *size_out, struct err *err);
/* "what: ROLE TYPE is not supported". */
enum status component_unsupported(const char *what, const char *type, struct err *err);

#endif
