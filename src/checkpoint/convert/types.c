/* checkpoint/convert/types.c - which tensor gets which type.
 *
 * The mixes are those that people know from llama.cpp by these names (src/llama-quant.cpp): most
 * matrices have the type of the name; the output matrix, values, and the second matrix of an FFN,
 * to which errors matter more, have a better one, in all layers or in some. llama.cpp's exceptions
 * for single models are not there. */
#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "checkpoint/convert/plan.h"

/* In which layers a matrix has another type than most. */
enum layers { LAYERS_NONE, LAYERS_ALL, LAYERS_FIRST_4, LAYERS_FIRST_EIGHTH, LAYERS_MORE };

struct better {
    enum layers layers;
    enum dtype dtype;
};

static const struct mix {
    const char *name;
    uint32_t file_type;            /* of llama.cpp's enum llama_ftype */
    enum dtype most, output;
    struct better values, down, attention_output;
} mixes[] = {
    { "F32", 0, DTYPE_F32, DTYPE_F32, { 0 }, { 0 }, { 0 } },
    { "F16", 1, DTYPE_F16, DTYPE_F16, { 0 }, { 0 }, { 0 } },
    { "BF16", 32, DTYPE_BF16, DTYPE_BF16, { 0 }, { 0 }, { 0 } },
    { "Q8_0", 7, DTYPE_Q8_0, DTYPE_Q8_0, { 0 }, { 0 }, { 0 } },
    { "Q4_0", 2, DTYPE_Q4_0, DTYPE_Q6_K, { 0 }, { 0 }, { 0 } },
    { "Q6_K", 18, DTYPE_Q6_K, DTYPE_Q6_K, { 0 }, { 0 }, { 0 } },
    { "Q5_K_M", 17, DTYPE_Q5_K, DTYPE_Q6_K, { LAYERS_MORE, DTYPE_Q6_K },
      { LAYERS_MORE, DTYPE_Q6_K }, { 0 } },
    { "Q5_K_S", 16, DTYPE_Q5_K, DTYPE_Q6_K, { 0 }, { 0 }, { 0 } },
    { "Q4_K_M", 15, DTYPE_Q4_K, DTYPE_Q6_K, { LAYERS_MORE, DTYPE_Q6_K },
      { LAYERS_MORE, DTYPE_Q6_K }, { 0 } },
    { "Q4_K_S", 14, DTYPE_Q4_K, DTYPE_Q6_K, { LAYERS_FIRST_4, DTYPE_Q5_K },
      { LAYERS_FIRST_EIGHTH, DTYPE_Q5_K }, { 0 } },
    { "Q3_K_S", 11, DTYPE_Q3_K, DTYPE_Q6_K, { 0 }, { 0 }, { 0 } },
    { "Q2_K", 10, DTYPE_Q2_K, DTYPE_Q6_K, { LAYERS_ALL, DTYPE_Q4_K }, { LAYERS_ALL, DTYPE_Q3_K },
      { LAYERS_ALL, DTYPE_Q3_K } },
    /* what the names without a size stand for */
    { "Q5_K", 17, DTYPE_Q5_K, DTYPE_Q6_K, { LAYERS_MORE, DTYPE_Q6_K },
      { LAYERS_MORE, DTYPE_Q6_K }, { 0 } },
    { "Q4_K", 15, DTYPE_Q4_K, DTYPE_Q6_K, { LAYERS_MORE, DTYPE_Q6_K },
      { LAYERS_MORE, DTYPE_Q6_K }, { 0 } },
};
#define MIX_COUNT (sizeof(mixes) / sizeof(mixes[0]))

static const struct mix *find_mix(const char *name)
{
    for (size_t i = 0; i < MIX_COUNT; i++)
        if (strcasecmp(mixes[i].name, name) == 0)
            return &mixes[i];
    return NULL;
}

const char *convert_type_names(void)
{
    return "F32, F16, BF16, Q8_0, Q6_K, Q5_K_M, Q5_K_S, Q4_K_M, Q4_K_S, Q4_0, Q3_K_S and Q2_K";
}

bool convert_has_type(const char *name)
{
    return find_mix(name) != NULL;
}

uint32_t convert__file_type(const char *type)
{
    const struct mix *const mix = find_mix(type);

    assert(mix != NULL);
    return mix->file_type;
}

/* The first and the last eighth of the layers, and of those between every third. */
static bool is_one_of_more(uint64_t layer, uint64_t count)
{
    return layer < count / 8 || layer >= 7 * count / 8 || (layer - count / 8) % 3 == 2;
}

static bool is_in(enum layers layers, uint64_t layer, uint64_t count)
{
    switch (layers) {
    case LAYERS_NONE: return false;
    case LAYERS_ALL: return true;
    case LAYERS_FIRST_4: return layer < 4;
    case LAYERS_FIRST_EIGHTH: return layer < count / 8;
    case LAYERS_MORE: return is_one_of_more(layer, count);
    }
    return false;
}

static enum dtype choose(const struct mix *mix, const struct convert_place *place)
{
    const bool is_embedding = strcmp(place->name, "token_embd.weight") == 0;
    const struct better *better = NULL;
    uint64_t layer = 0;

    if (strncmp(place->name, "blk.", 4) == 0)
        layer = strtoull(place->name + 4, NULL, 10);
    if (strcmp(place->name, "output.weight") == 0 || (is_embedding && place->tied_embeddings))
        return mix->output;
    if (strstr(place->name, ".attn_v.weight") != NULL)
        better = &mix->values;
    else if (strstr(place->name, ".ffn_down") != NULL)
        better = &mix->down;
    else if (strstr(place->name, ".attn_output.weight") != NULL)
        better = &mix->attention_output;
    return better != NULL && is_in(better->layers, layer, place->layer_count) ? better->dtype
                                                                             : mix->most;
}

enum dtype convert__choose_type(const char *type, const struct convert_place *place)
{
    const struct mix *const mix = find_mix(type);

    assert(mix != NULL);
    /* Routers are small, and what they decide is all or nothing. */
    if (strstr(place->name, ".ffn_gate_inp") != NULL)
        return DTYPE_F32;
    return choose(mix, place);
}
