/* checkpoint/gguf/pre.c - how text is cut before it is merged, by tokenizer.ggml.pre.
 *
 * The names are those that llama.cpp's converter gives (conversion/base.py) and its reader knows
 * (src/llama-vocab.cpp); the patterns are those of the models' own tokenizer.json, which llama.cpp
 * writes in its own way for its own expressions. Several names mean one kind: the converter tells
 * tokenizers apart by what they make of a text, not by how they are built. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/utf8.h"
#include "checkpoint/gguf/pre.h"

static json_t *split(const char *pattern)
{
    return json_pack("{s:s, s:{s:s}, s:s, s:b}", "type", "Split", "pattern", "Regex", pattern,
                     "behavior", "Isolated", "invert", 0);
}

/* Letters that have a case, as deepseek-llm lists them. */
#define CASED_LETTERS                                                                              \
    "A-Za-z\\x{B5}\\x{C0}-\\x{D6}\\x{D8}-\\x{F6}\\x{F8}-\\x{1BA}\\x{1BC}-\\x{1BF}\\x{1C4}"         \
    "-\\x{293}\\x{295}-\\x{2AF}\\x{370}-\\x{373}\\x{376}\\x{377}\\x{37B}-\\x{37D}\\x{37F}"         \
    "\\x{386}\\x{388}-\\x{38A}\\x{38C}\\x{38E}-\\x{3A1}\\x{3A3}-\\x{3F5}\\x{3F7}-\\x{481}"         \
    "\\x{48A}-\\x{52F}\\x{531}-\\x{556}\\x{10A0}-\\x{10C5}\\x{13A0}-\\x{13F5}\\x{13F8}-"           \
    "\\x{13FD}\\x{1C90}-\\x{1CBA}\\x{1CBD}-\\x{1CBF}\\x{1D00}-\\x{1D2B}\\x{1D6B}-"                 \
    "\\x{1D77}\\x{1D79}-\\x{1D9A}\\x{1E00}-\\x{1F15}\\x{1F18}-\\x{1F1D}\\x{1F20}-"                 \
    "\\x{1F45}\\x{1F48}-\\x{1F4D}\\x{1F50}-\\x{1F57}\\x{1F59}\\x{1F5B}\\x{1F5D}\\x{1F5F}-"         \
    "\\x{1F7D}\\x{1F80}-\\x{1FB4}\\x{1FB6}-\\x{1FBC}\\x{1FBE}\\x{1FC2}-\\x{1FC4}\\x{1FC6}"         \
    "-\\x{1FCC}\\x{1FD0}-\\x{1FD3}\\x{1FD6}-\\x{1FDB}\\x{1FE0}-\\x{1FEC}\\x{1FF2}-"                \
    "\\x{1FF4}\\x{1FF6}-\\x{1FFC}\\x{2102}\\x{2107}\\x{210A}-\\x{2113}\\x{2115}\\x{2119}-"         \
    "\\x{211D}\\x{2124}\\x{2126}\\x{2128}\\x{212A}-\\x{212D}\\x{212F}-\\x{2134}\\x{2139}"          \
    "\\x{213C}-\\x{213F}\\x{2145}-\\x{2149}\\x{214E}\\x{2183}\\x{2184}\\x{2C00}-\\x{2C7B}"         \
    "\\x{2C7E}-\\x{2CE4}\\x{2CEB}-\\x{2CEE}\\x{2CF2}\\x{2CF3}\\x{A640}-\\x{A66D}\\x{A680}"         \
    "-\\x{A69B}\\x{A722}-\\x{A76F}\\x{A771}-\\x{A787}\\x{A78B}-\\x{A78E}\\x{AB70}-"                \
    "\\x{ABBF}\\x{FB00}-\\x{FB06}\\x{FB13}-\\x{FB17}\\x{FF21}-\\x{FF3A}\\x{FF41}-"                 \
    "\\x{FF5A}\\x{10400}-\\x{1044F}\\x{104B0}-\\x{104D3}\\x{104D8}-\\x{104FB}\\x{10C80}-"          \
    "\\x{10CB2}\\x{10CC0}-\\x{10CF2}\\x{118A0}-\\x{118DF}\\x{1E900}-\\x{1E943}"
#define LETTERS_OF_CHINA "[\\x{4E00}-\\x{9FA5}\\x{800}-\\x{4E00}\\x{AC00}-\\x{D7FF}]+"


/* What most have in common; they differ in how many digits stay together. */
#define CONTRACTIONS "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
#define WORDS CONTRACTIONS "|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|"
#define SPACES "|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
#define SIGNS " ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*"
#define LLAMA3 WORDS "\\p{N}{1,3}|" SIGNS SPACES
#define QWEN2 WORDS "\\p{N}|" SIGNS SPACES
/* Words that begin with capitals, and go on without. */
#define UPPER "[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]"
#define LOWER "[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]"
#define CASED(suffix)                                                                              \
    "[^\\r\\n\\p{L}\\p{N}]?" UPPER "*" LOWER "+" suffix "|"                                        \
    "[^\\r\\n\\p{L}\\p{N}]?" UPPER "+" LOWER "*" suffix "|"
#define SIGNS_AND_SLASHES " ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*"

static const struct gguf_pre kinds[] = {
    { .names = { "gpt-2", "phi-2", "granite-docling" }, .byte_level_cuts = true },
    { .names = { "olmo" }, .byte_level_cuts = true, .nfc = true },
    { .names = { "starcoder", "refact", "smollm" }, .byte_level_cuts = true,
      .patterns = { "\\p{N}" } },
    { .names = { "llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral" }, .whole_words = true,
      .adds_bos = true, .patterns = { LLAMA3 } },
    { .names = { "glm4", "chatglm-bpe", "dbrx", "smaug-bpe" }, .patterns = { LLAMA3 } },
    { .names = { "qwen2", "deepseek-r1-qwen", "megrez" }, .nfc = true, .patterns = { QWEN2 } },
    { .names = { "gpt-4o", "llama4" },
      .patterns = { CASED(CONTRACTIONS "?") "\\p{N}{1,3}|" SIGNS_AND_SLASHES SPACES } },
    { .names = { "tekken" }, .whole_words = true, .adds_bos = true,
      .patterns = { CASED("") "\\p{N}|" SIGNS_AND_SLASHES SPACES } },
    { .names = { "deepseek-llm" },
      .patterns = { "[\\r\\n]", "\\s?[" CASED_LETTERS "]+",
                    "\\s?[!-/:-~\\x{FF01}-\\x{FF0F}"
                    "\\x{FF1A}-\\x{FF5E}\\x{2018}-\\x{201F}\\x{3000}-\\x{3002}]+",
                    "\\s+$", LETTERS_OF_CHINA, "\\p{N}+" } },
    { .names = { "deepseek-coder" },
      .patterns = { "[\\r\\n]", "\\s?\\p{L}+", "\\s?\\p{P}+", LETTERS_OF_CHINA, "\\p{N}" } },
    { .names = { "deepseek-v3" },
      .patterns = { "\\p{N}{1,3}", "[\\x{4E00}-\\x{9FA5}\\x{3040}-\\x{309F}\\x{30A0}-\\x{30FF}]+",
                    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|"
                    "[^\\r\\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\\r\\n]*"
                    SPACES } },
};

const struct gguf_pre *gguf__find_pre(const char *name)
{
    for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++)
        for (size_t n = 0; n < GGUF_PRE_NAMES_MAX && kinds[i].names[n] != NULL; n++)
            if (strcmp(kinds[i].names[n], name) == 0)
                return &kinds[i];
    return NULL;
}

json_t *gguf__pre_tokenizer(const struct gguf_pre *pre)
{
    json_t *const steps = json_array();

    for (size_t i = 0; i < GGUF_PRE_PATTERNS_MAX && pre->patterns[i] != NULL; i++)
        (void)json_array_append_new(steps, split(pre->patterns[i]));
    (void)json_array_append_new(steps, json_pack("{s:s, s:b, s:b}", "type", "ByteLevel",
                                                 "add_prefix_space", 0, "use_regex",
                                                 (int)pre->byte_level_cuts));
    return json_pack("{s:s, s:o}", "type", "Sequence", "pretokenizers", steps);
}

/* --- the other way ---------------------------------------------------------------------------- */

/* The next character of a pattern, past which *at moves; 0 at the end. A line's end and a code
 * point are one character however they are written; other escapes are two. */
static uint32_t next_character(const char **at)
{
    uint32_t character = 0;

    if (strncmp(*at, "\\x{", 3) == 0) {
        char *end = NULL;
        character = (uint32_t)strtoul(*at + 3, &end, 16);
        *at = *end == '}' ? end + 1 : end;
    } else if ((*at)[0] == '\\' && ((*at)[1] == 'r' || (*at)[1] == 'n')) {
        character = (*at)[1] == 'r' ? '\r' : '\n';
        *at += 2;
    } else if (**at != '\0') {
        *at += utf8_decode(*at, strlen(*at), &character, NULL);
    }
    return character;
}

static bool same_pattern(const char *one, const char *other)
{
    uint32_t character;

    do {
        character = next_character(&one);
        if (character != next_character(&other))
            return false;
    } while (character != 0);
    return true;
}

/* Whether the step cuts by the pattern, leaving every piece. DeepSeek's digits one by one are a
 * run of digits by the name that files have for it: no token of that vocabulary has two. */
static bool is_split(const json_t *step, const char *pattern)
{
    const char *const type = json_string_value(json_object_get(step, "type"));
    const char *const behavior = json_string_value(json_object_get(step, "behavior"));
    const char *const regex =
        json_string_value(json_object_get(json_object_get(step, "pattern"), "Regex"));

    if (type != NULL && strcmp(type, "Digits") == 0)
        return json_is_true(json_object_get(step, "individual_digits")) &&
               (strcmp(pattern, "\\p{N}") == 0 || strcmp(pattern, "\\p{N}+") == 0);
    return type != NULL && strcmp(type, "Split") == 0 && behavior != NULL &&
           strcmp(behavior, "Isolated") == 0 && !json_is_true(json_object_get(step, "invert")) &&
           regex != NULL && same_pattern(regex, pattern);
}

static bool is_byte_level(const json_t *step, bool cuts)
{
    const char *const type = json_string_value(json_object_get(step, "type"));
    const json_t *const uses = json_object_get(step, "use_regex");

    return type != NULL && strcmp(type, "ByteLevel") == 0 &&
           !json_is_true(json_object_get(step, "add_prefix_space")) &&
           (uses == NULL || json_is_true(uses)) == cuts;
}

/* steps: those of the pre-tokenizer. */
static bool is_kind(const struct gguf_pre *pre, const json_t *steps, bool nfc, bool whole_words)
{
    const size_t count = json_array_size(steps);
    size_t i = 0;

    while (i < GGUF_PRE_PATTERNS_MAX && pre->patterns[i] != NULL && i < count &&
           is_split(json_array_get(steps, i), pre->patterns[i]))
        i++;
    if (i < GGUF_PRE_PATTERNS_MAX && pre->patterns[i] != NULL)
        return false;
    return i + 1 == count && pre->nfc == nfc && pre->whole_words == whole_words &&
           is_byte_level(json_array_get(steps, i), pre->byte_level_cuts);
}

const char *gguf__pre_of(const json_t *tokenizer)
{
    json_t *const pre = json_object_get(tokenizer, "pre_tokenizer");
    const json_t *const normalizer = json_object_get(tokenizer, "normalizer");
    const char *const normal = json_string_value(json_object_get(normalizer, "type"));
    const bool nfc = normal != NULL && strcmp(normal, "NFC") == 0;
    const bool none =
        normal == NULL || (strcmp(normal, "Sequence") == 0 &&
                           json_array_size(json_object_get(normalizer, "normalizers")) == 0);
    const bool whole_words =
        json_is_true(json_object_get(json_object_get(tokenizer, "model"), "ignore_merges"));
    json_t *steps = json_object_get(pre, "pretokenizers");
    const char *name = NULL;

    steps = steps != NULL ? json_incref(steps) : json_pack("[O]", pre);
    for (size_t i = 0; (nfc || none) && i < sizeof(kinds) / sizeof(kinds[0]); i++)
        if (name == NULL && is_kind(&kinds[i], steps, nfc, whole_words))
            name = kinds[i].names[0];
    json_decref(steps);
    return name;
}

const char *gguf__pre_names(char *out, size_t out_size)
{
    size_t used = 0;

    out[0] = '\0';
    for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]) && used < out_size; i++)
        used += (size_t)snprintf(out + used, out_size - used, "%s%s", i > 0 ? ", " : "",
                                 kinds[i].names[0]);
    return out;
}
