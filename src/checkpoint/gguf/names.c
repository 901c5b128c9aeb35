/* checkpoint/gguf/names.c - tensors' names: from those of GGUF files to those of Hugging Face's.
 *
 *     token_embd.weight            model.embed_tokens.weight
 *     blk.3.attn_q.weight          model.layers.3.self_attn.q_proj.weight
 *     blk.3.ffn_gate.5.weight      model.layers.3.mlp.experts.5.gate_proj.weight
 *     blk.3.ffn_gate_exps.weight   model.layers.3.mlp.experts.gate_proj.weight, all experts stacked
 *
 * GGUF's names are those of gguf-py 0.19, constants.py; the other side is what the architectures of
 * model/ ask for. A name that is not in the tables stays as it is, so that it is refused where
 * unknown tensors are, under its own name. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "checkpoint/gguf/gguf.h"

struct renaming {
    const char *from, *to;
};

static const struct renaming outside[] = {
    { "token_embd", "model.embed_tokens" },
    { "output_norm", "model.norm" },
    { "output", "lm_head" },
};

static const struct renaming inside[] = {
    { "attn_norm", "input_layernorm" },
    { "ffn_norm", "post_attention_layernorm" },
    { "attn_q", "self_attn.q_proj" },
    { "attn_k", "self_attn.k_proj" },
    { "attn_v", "self_attn.v_proj" },
    { "attn_output", "self_attn.o_proj" },
    { "attn_qkv", "self_attn.qkv_proj" },
    { "attn_q_norm", "self_attn.q_norm" },
    { "attn_k_norm", "self_attn.k_norm" },
    { "attn_q_a", "self_attn.q_a_proj" },
    { "attn_q_a_norm", "self_attn.q_a_layernorm" },
    { "attn_q_b", "self_attn.q_b_proj" },
    { "attn_kv_a_mqa", "self_attn.kv_a_proj_with_mqa" },
    { "attn_kv_a_norm", "self_attn.kv_a_layernorm" },
    { "attn_kv_b", "self_attn.kv_b_proj" },
    { "attn_k_b", "self_attn.k_b_proj" },
    { "attn_v_b", "self_attn.v_b_proj" },
    { "ffn_gate", "mlp.gate_proj" },
    { "ffn_up", "mlp.up_proj" },
    { "ffn_down", "mlp.down_proj" },
    { "ffn_gate_shexp", "mlp.shared_experts.gate_proj" },
    { "ffn_up_shexp", "mlp.shared_experts.up_proj" },
    { "ffn_down_shexp", "mlp.shared_experts.down_proj" },
    { "ffn_gate_inp", "mlp.gate" },
    { "ffn_gate_exps", "mlp.experts.gate_proj" },
    { "ffn_up_exps", "mlp.experts.up_proj" },
    { "ffn_down_exps", "mlp.experts.down_proj" },
};

/* Mixtral, which GGUF calls a llama, has names of its own for what only it has. */
static const struct renaming inside_mixtral[] = {
    { "ffn_gate_inp", "block_sparse_moe.gate" },
    { "ffn_gate_exps", "block_sparse_moe.experts.w1" },
    { "ffn_up_exps", "block_sparse_moe.experts.w3" },
    { "ffn_down_exps", "block_sparse_moe.experts.w2" },
};

/* Others have a few. */
static const struct renaming inside_qwen2moe[] = {
    { "ffn_gate_inp_shexp", "mlp.shared_expert_gate" },
    { "ffn_gate_shexp", "mlp.shared_expert.gate_proj" },
    { "ffn_up_shexp", "mlp.shared_expert.up_proj" },
    { "ffn_down_shexp", "mlp.shared_expert.down_proj" },
};
static const struct renaming inside_glm4[] = {
    { "post_attention_norm", "post_self_attn_layernorm" },
    { "post_ffw_norm", "post_mlp_layernorm" },
    { "ffn_up", "mlp.gate_up_proj" },
};
static const struct renaming inside_glm4moe[] = {
    { "post_attention_norm", "post_attention_layernorm" },
};
static const struct renaming inside_gemma[] = {
    { "post_attention_norm", "post_attention_layernorm" },
    { "ffn_norm", "pre_feedforward_layernorm" },
    { "post_ffw_norm", "post_feedforward_layernorm" },
};
static const struct renaming inside_llama4[] = {
    { "ffn_gate", "feed_forward.gate_proj" },
    { "ffn_up", "feed_forward.up_proj" },
    { "ffn_down", "feed_forward.down_proj" },
    { "ffn_gate_shexp", "feed_forward.shared_expert.gate_proj" },
    { "ffn_up_shexp", "feed_forward.shared_expert.up_proj" },
    { "ffn_down_shexp", "feed_forward.shared_expert.down_proj" },
    { "ffn_gate_inp", "feed_forward.router" },
    { "ffn_gate_exps", "feed_forward.experts.gate_proj" },
    { "ffn_up_exps", "feed_forward.experts.up_proj" },
    { "ffn_down_exps", "feed_forward.experts.down_proj" },
};
static const struct renaming inside_gpt_oss[] = {
    { "post_attention_norm", "post_attention_layernorm" },
    { "ffn_gate_inp", "mlp.router" },
};
static const struct renaming inside_phi3[] = {
    { "ffn_up", "mlp.gate_up_proj" },
};

/* One tensor for each expert, as files before 2024-04 have it: ffn_gate.5. */
static const struct renaming one_expert[] = {
    { "ffn_gate.", "gate_proj" }, { "ffn_up.", "up_proj" }, { "ffn_down.", "down_proj" },
};
static const struct renaming one_expert_mixtral[] = {
    { "ffn_gate.", "w1" }, { "ffn_up.", "w3" }, { "ffn_down.", "w2" },
};

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))
#define OWN(arch, array) { arch, array, COUNT(array) }

static const struct {
    const char *arch;
    const struct renaming *names;
    size_t count;
} own_names[] = {
    OWN("llama", inside_mixtral), OWN("qwen2moe", inside_qwen2moe), OWN("glm4", inside_glm4),
    OWN("glm4moe", inside_glm4moe), OWN("phi3", inside_phi3), OWN("gemma2", inside_gemma),
    OWN("gemma3", inside_gemma), OWN("llama4", inside_llama4), OWN("gpt-oss", inside_gpt_oss),
};

static const char *find(const struct renaming *table, size_t count, const char *from,
                        size_t from_size)
{
    for (size_t i = 0; i < count; i++)
        if (strlen(table[i].from) == from_size && memcmp(table[i].from, from, from_size) == 0)
            return table[i].to;
    return NULL;
}

/* The architecture's own name for it, else everybody's. */
static const char *find_inside(const char *arch, const char *from, size_t from_size)
{
    const char *to = NULL;

    for (size_t i = 0; to == NULL && i < COUNT(own_names); i++)
        if (strcmp(own_names[i].arch, arch) == 0)
            to = find(own_names[i].names, own_names[i].count, from, from_size);
    return to != NULL ? to : find(inside, COUNT(inside), from, from_size);
}

/* A decimal number at *text, which is moved behind it; no leading zeros, so that two names never
 * become one. */
static bool take_index(const char **text, uint64_t *index_out)
{
    const char *at = *text;
    uint64_t index = 0;

    if (*at < '0' || *at > '9' || (*at == '0' && at[1] >= '0' && at[1] <= '9'))
        return false;
    for (; *at >= '0' && *at <= '9'; at++) {
        if (index > 99999)
            return false;
        index = index * 10 + (uint64_t)(*at - '0');
    }
    *text = at;
    *index_out = index;
    return true;
}

/* "ffn_gate.5" and its suffix; false when the name is not of that kind. */
static bool rename_one_expert(bool is_mixtral, uint64_t layer, const char *base, char *out,
                              size_t out_size)
{
    for (size_t i = 0; i < COUNT(one_expert); i++) {
        const size_t size = strlen(one_expert[i].from);
        const char *at = base + size;
        uint64_t expert;

        if (strncmp(base, one_expert[i].from, size) != 0 || !take_index(&at, &expert) ||
            strcmp(at, ".weight") != 0)
            continue;
        (void)snprintf(out, out_size, "model.layers.%" PRIu64 ".%s.experts.%" PRIu64 ".%s.weight",
                       layer, is_mixtral ? "block_sparse_moe" : "mlp", expert,
                       is_mixtral ? one_expert_mixtral[i].to : one_expert[i].to);
        return true;
    }
    return false;
}

/* `base` is what follows "blk.N."; false when it is not known. */
static bool rename_inside(const char *arch, uint64_t layer, const char *base, char *out,
                          size_t out_size)
{
    const char *const suffix = strrchr(base, '.');
    const size_t size = suffix != NULL ? (size_t)(suffix - base) : 0;
    const char *to;

    if (suffix == NULL)
        return false;
    /* The correction of the router; some files lack the suffix. */
    if (strcmp(base, "exp_probs_b.bias") == 0 || strcmp(base, "exp_probs_b") == 0) {
        (void)snprintf(out, out_size, "model.layers.%" PRIu64 ".mlp.gate.e_score_correction_bias",
                       layer);
        return true;
    }
    if (strcmp(base, "attn_sinks.weight") == 0) {
        (void)snprintf(out, out_size, "model.layers.%" PRIu64 ".self_attn.sinks", layer);
        return true;
    }
    if (strcmp(suffix, ".weight") != 0 && strcmp(suffix, ".bias") != 0)
        return false;
    to = find_inside(arch, base, size);
    if (to == NULL)
        return rename_one_expert(strcmp(arch, "llama") == 0, layer, base, out, out_size);
    (void)snprintf(out, out_size, "model.layers.%" PRIu64 ".%s%s", layer, to, suffix);
    return true;
}

void gguf__tensor_name(const char *arch, uint64_t layer_count, const char *name, char *out,
                       size_t out_size)
{
    const char *const suffix = strrchr(name, '.');
    const char *at = name + 4;
    const char *to = NULL;
    uint64_t layer;

    if (strncmp(name, "blk.", 4) == 0 && take_index(&at, &layer) && *at == '.') {
        if (rename_inside(arch, layer, at + 1, out, out_size))
            return;
        /* Those of multi-token prediction are recognised by their layer. */
        if (layer >= layer_count) {
            (void)snprintf(out, out_size, "model.layers.%" PRIu64 "%s", layer, at);
            return;
        }
    } else if (suffix != NULL && strcmp(suffix, ".weight") == 0) {
        to = find(outside, COUNT(outside), name, (size_t)(suffix - name));
    }
    if (to != NULL)
        (void)snprintf(out, out_size, "%s%s", to, suffix);
    else
        (void)snprintf(out, out_size, "%s", name);
}

/* --- the other way ---------------------------------------------------------------------------- */

/* Whether the file's name means `name`; the tables are read in one direction only. */
static bool means(const char *arch, uint64_t layer_count, const char *from, const char *name)
{
    char to[CKPT_NAME_BYTES_MAX + 1];

    gguf__tensor_name(arch, layer_count, from, to, sizeof(to));
    return strcmp(to, name) == 0;
}

/* Of "model.layers.3.mlp.experts.5.gate_proj.weight" the 5. */
static bool expert_of(const char *rest, uint64_t *expert_out)
{
    static const char before[] = ".experts.";
    const char *at = strstr(rest, before);

    if (at == NULL)
        return false;
    at += sizeof(before) - 1;
    return take_index(&at, expert_out) && *at == '.';
}

struct searched {
    const char *arch;
    uint64_t layer_count, layer;
    const char *name;
};

/* One of the table's names. */
static bool origin_in(const struct renaming *table, size_t count, const struct searched *from,
                      const char *rest, char *out, size_t out_size)
{
    const char *const suffix = strrchr(rest, '.');

    for (size_t i = 0; suffix != NULL && i < count; i++) {
        (void)snprintf(out, out_size, "blk.%" PRIu64 ".%s%s", from->layer, table[i].from, suffix);
        if (means(from->arch, from->layer_count, out, from->name))
            return true;
    }
    return false;
}

/* `rest` is what follows "model.layers.N.". */
static bool origin_inside(const char *arch, uint64_t layer_count, uint64_t layer, const char *name,
                          const char *rest, char *out, size_t out_size, int64_t *expert_out)
{
    static const char *const whole[] = { "exp_probs_b.bias", "attn_sinks.weight" };
    const struct searched from = { arch, layer_count, layer, name };
    uint64_t expert;

    if (expert_of(rest, &expert))
        for (size_t i = 0; i < COUNT(one_expert); i++) {
            const size_t size = strlen(one_expert[i].from) - 1; /* without the dot */
            (void)snprintf(out, out_size, "blk.%" PRIu64 ".%s%" PRIu64 ".weight", layer,
                           one_expert[i].from, expert);
            if (!means(arch, layer_count, out, name))
                continue;
            (void)snprintf(out, out_size, "blk.%" PRIu64 ".%.*s_exps.weight", layer, (int)size,
                           one_expert[i].from);
            *expert_out = (int64_t)expert;
            return true;
        }
    for (size_t i = 0; i < COUNT(own_names); i++)
        if (strcmp(own_names[i].arch, arch) == 0 &&
            origin_in(own_names[i].names, own_names[i].count, &from, rest, out, out_size))
            return true;
    if (origin_in(inside, COUNT(inside), &from, rest, out, out_size))
        return true;
    for (size_t i = 0; i < COUNT(whole); i++) {
        (void)snprintf(out, out_size, "blk.%" PRIu64 ".%s", layer, whole[i]);
        if (means(arch, layer_count, out, name))
            return true;
    }
    /* A layer of multi-token prediction. */
    (void)snprintf(out, out_size, "blk.%" PRIu64 ".%s", layer, rest);
    return means(arch, layer_count, out, name);
}

void gguf__tensor_origin(const char *arch, uint64_t layer_count, const char *name, char *out,
                         size_t out_size, int64_t *expert_out)
{
    static const char before[] = "model.layers.";
    const char *at = name + sizeof(before) - 1;
    uint64_t layer;

    *expert_out = -1;
    if (strncmp(name, before, sizeof(before) - 1) == 0 && take_index(&at, &layer) && *at == '.') {
        if (origin_inside(arch, layer_count, layer, name, at + 1, out, out_size, expert_out))
            return;
    } else {
        for (size_t i = 0; i < COUNT(outside); i++) {
            (void)snprintf(out, out_size, "%s.weight", outside[i].from);
            if (means(arch, layer_count, out, name))
                return;
        }
    }
    (void)snprintf(out, out_size, "%s", name);
}
