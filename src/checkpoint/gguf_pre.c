/* checkpoint/gguf_pre.c - how text is cut before it is merged, by tokenizer.ggml.pre.
 *
 * The names are those that llama.cpp's converter gives (conversion/base.py) and its reader knows
 * (src/llama-vocab.cpp); the patterns are those of the models' own tokenizer.json, which llama.cpp
 * writes in its own way for its own expressions. Several names mean one kind: the converter tells
 * tokenizers apart by what they make of a text, not by how they are built. */
#include <string.h>

#include "checkpoint/gguf_pre.h"

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
      .patterns = { "\\p{N}{1,3}", "[\\x{4E00}-\\x{9FA5}\\x{3040}-\\x{30FF}]+",
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
