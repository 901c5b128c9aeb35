#!/usr/bin/env python3
"""Makes tests/golden/gguf/: models of tests/golden/models/ as GGUF files.

    python3 tools/make_gguf_goldens.py [--out DIR]

Written with the PyPI package gguf, in the layout that llama.cpp's converter gives each architecture: a
llama's query and key rows permuted for adjacent pairs, Llama 3's frequencies as divisors, experts stacked
(or one by one, as old files have them), MLA's kv_b_proj whole (V2) or in two (V3), one model in several
files. The answers to expect are those beside the models."""
import argparse
import glob
import json
import math
import os
import re
from importlib.metadata import version

import gguf
import numpy as np
from safetensors.torch import load_file

MODELS = "tests/golden/models"
# name: GGUF's architecture, tensors in a file at most (0: one file)
GOLDENS = {
    "llama_llama3": ("llama", 0),
    "mixtral": ("llama", 0),
    "mixtral_apart": ("llama", 0),
    "qwen2_tied_yarn": ("qwen2", 0),
    "qwen2_moe": ("qwen2moe", 0),
    "qwen3_moe": ("qwen3moe", 15),
    "olmoe": ("olmoe", 0),
    "glm4": ("glm4", 0),
    "glm4_moe": ("glm4moe", 0),
    "phi3_long": ("phi3", 0),
    "gemma2": ("gemma2", 0),
    "gemma3": ("gemma3", 0),
    "granite": ("granite", 0),
    "llama4_plain": ("llama4", 0),
    "gpt_oss": ("gpt-oss", 0),
    "granite_moe": ("granitemoe", 0),
    "granite_moe_shared": ("granitemoe", 0),
    "deepseek_v2_lite": ("deepseek2", 0),
    "deepseek_v3": ("deepseek2", 20),
}
KINDS_OF = {"bfloat16": gguf.GGMLQuantizationType.BF16, "float16": gguf.GGMLQuantizationType.F16,
            "float32": gguf.GGMLQuantizationType.F32}
NAMES = {
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
    "self_attn.q_a_proj": "attn_q_a", "self_attn.q_a_layernorm": "attn_q_a_norm", "self_attn.q_b_proj": "attn_q_b",
    "self_attn.kv_a_proj_with_mqa": "attn_kv_a_mqa", "self_attn.kv_a_layernorm": "attn_kv_a_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    "mlp.shared_experts.gate_proj": "ffn_gate_shexp", "mlp.shared_experts.up_proj": "ffn_up_shexp",
    "mlp.shared_experts.down_proj": "ffn_down_shexp", "mlp.gate": "ffn_gate_inp",
    "block_sparse_moe.gate": "ffn_gate_inp", "block_sparse_moe.router.layer": "ffn_gate_inp",
    "block_sparse_moe.output_linear": "ffn_down_exps", "shared_mlp.output_linear": "ffn_down_shexp",
    "mlp.shared_expert.gate_proj": "ffn_gate_shexp", "mlp.shared_expert.up_proj": "ffn_up_shexp",
    "mlp.shared_expert.down_proj": "ffn_down_shexp", "mlp.shared_expert_gate": "ffn_gate_inp_shexp",
    "self_attn.qkv_proj": "attn_qkv", "mlp.gate_up_proj": "ffn_up",
    "feed_forward.gate_proj": "ffn_gate", "feed_forward.up_proj": "ffn_up", "feed_forward.down_proj": "ffn_down",
    "feed_forward.shared_expert.gate_proj": "ffn_gate_shexp", "feed_forward.shared_expert.up_proj": "ffn_up_shexp",
    "feed_forward.shared_expert.down_proj": "ffn_down_shexp", "feed_forward.router": "ffn_gate_inp",
    "mlp.router": "ffn_gate_inp",
    "post_self_attn_layernorm": "post_attention_norm", "post_mlp_layernorm": "post_ffw_norm",
}
# Norms whose names mean something else in some architectures.
GEMMA = {"post_attention_layernorm": "post_attention_norm", "pre_feedforward_layernorm": "ffn_norm",
         "post_feedforward_layernorm": "post_ffw_norm"}
NAMES_OF = {"glm4moe": {"post_attention_layernorm": "post_attention_norm"},
            "gpt-oss": {"post_attention_layernorm": "post_attention_norm"}, "gemma2": GEMMA, "gemma3": GEMMA}
# Tensors that hold gate above up.
HALVES = {"block_sparse_moe.input_linear": ("ffn_gate_exps", "ffn_up_exps"),
          "shared_mlp.input_linear": ("ffn_gate_shexp", "ffn_up_shexp")}
EXPERT = re.compile(r"(?:mlp|block_sparse_moe)\.experts\.(\d+)\.(\w+)\.weight")
KINDS = {"gate_proj": "gate", "up_proj": "up", "down_proj": "down", "w1": "gate", "w3": "up", "w2": "down"}


def read_model(name):
    folder = os.path.join(MODELS, name)
    with open(os.path.join(folder, "config.json"), encoding="utf-8") as file:
        config = json.load(file)
    tensors = {}
    for path in sorted(glob.glob(os.path.join(folder, "*.safetensors"))):
        tensors.update({key: value.float().numpy() for key, value in load_file(path).items()})
    if config["model_type"].startswith("gemma"):  # llama.cpp's converter adds the 1
        tensors = {key: value + 1 if key.endswith("norm.weight") else value for key, value in tensors.items()}
    return config, tensors


def add(writer, name, array):
    """Vectors and routers in F32, matrices in what the model is made of."""
    array = np.ascontiguousarray(array)
    if array.ndim == 1 or "ffn_gate_inp" in name or name.endswith(".bias"):
        writer.add_tensor(name, array)
    else:
        kind = writer.matrix_kind
        writer.add_tensor(name, gguf.quants.quantize(array, kind), raw_dtype=kind)


def permute(rows, head_count):
    """Of each head the rows i and i + half become neighbours."""
    halves = rows.reshape(head_count, 2, -1, *rows.shape[1:])
    return halves.swapaxes(1, 2).reshape(rows.shape)


def llama3_divisors(config, rope):
    dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    divisors = []
    for i in range(0, dim, 2):
        wavelength = 2 * math.pi * rope["rope_theta"] ** (i / dim)
        turns = rope["original_max_position_embeddings"] / wavelength
        low, high, factor = rope["low_freq_factor"], rope["high_freq_factor"], rope["factor"]
        smooth = min(max((turns - low) / (high - low), 0.0), 1.0)
        divisors.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(divisors, np.float32)


def add_rope(writer, config):
    rope = rope_of(config)
    rope = rope.get("full_attention", rope)
    writer.add_rope_freq_base(rope.get("rope_theta", config.get("rope_theta")))
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rope["factor"])
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
        if "mscale_all_dim" in rope:
            writer.add_rope_scaling_yarn_log_mul(0.1 * rope["mscale_all_dim"])
        for key, method in (("attention_factor", writer.add_rope_scaling_yarn_attn_factor),
                            ("beta_fast", writer.add_rope_scaling_yarn_beta_fast),
                            ("beta_slow", writer.add_rope_scaling_yarn_beta_slow)):
            if key in rope:
                method(rope[key])
    if kind == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    if kind == "longrope":
        original = rope["original_max_position_embeddings"]
        factor = config["max_position_embeddings"] / original
        writer.add_rope_scaling_orig_ctx_len(original)
        writer.add_rope_scaling_attn_factors(math.sqrt(1 + math.log(factor) / math.log(original)))
        for length in ("long", "short"):
            add(writer, f"rope_factors_{length}.weight", np.array(rope[f"{length}_factor"], np.float32))
    if kind == "llama3":
        add(writer, "rope_freqs.weight", llama3_divisors(config, {"rope_theta": config.get("rope_theta"), **rope}))


def add_metadata(writer, arch, config):
    heads = config["num_attention_heads"]
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"] + config.get("num_nextn_predict_layers", 0))
    writer.add_feed_forward_length(config.get("intermediate_size_mlp", config["intermediate_size"]))
    writer.add_head_count(heads)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    add_rope(writer, config)
    experts = config.get("n_routed_experts", config.get("num_experts", config.get("num_local_experts")))
    if experts:
        writer.add_expert_count(experts)
        writer.add_expert_used_count(config["num_experts_per_tok"])
    if "moe_intermediate_size" in config:
        writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
    if arch == "deepseek2":
        add_deepseek(writer, config, heads)
        return
    writer.add_head_count_kv(config["num_key_value_heads"])
    add_own(writer, arch, config, rope_of(config))
    if config.get("head_dim"):
        writer.add_key_length(config["head_dim"])
        writer.add_value_length(config["head_dim"])


def rope_of(config):
    return config.get("rope_parameters") or config.get("rope_scaling") or {}


def add_own(writer, arch, config, rope):
    """What only some architectures have."""
    head = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    if arch in ("glm4", "glm4moe", "phi3"):
        partial = rope.get("partial_rotary_factor", 1.0 if arch == "phi3" else 0.5)
        writer.add_rope_dimension_count(int(head * partial))
    if arch == "gpt-oss":
        writer.add_expert_feed_forward_length(config["intermediate_size"])
    if arch.startswith("gemma") or arch == "gpt-oss":
        writer.add_sliding_window(config["sliding_window"])
    if arch == "gemma3":
        writer.add_uint32("gemma3.attention.sliding_window_pattern", 2)
        writer.add_float32("gemma3.rope.freq_base_swa", config["rope_parameters"]["sliding_attention"]["rope_theta"])
    if arch == "gemma2":
        writer.add_attn_logit_softcapping(config["attn_logit_softcapping"])
        writer.add_final_logit_softcapping(config["final_logit_softcapping"])
    if arch == "qwen2moe":
        writer.add_expert_shared_feed_forward_length(config["shared_expert_intermediate_size"])
    if arch == "glm4moe":
        writer.add_expert_shared_count(config["n_shared_experts"])
        writer.add_leading_dense_block_count(config["first_k_dense_replace"])
        writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
        writer.add_expert_weights_scale(config["routed_scaling_factor"])
        writer.add_expert_weights_norm(config["norm_topk_prob"])
        writer.add_nextn_predict_layers(config["num_nextn_predict_layers"])
    if arch == "llama4":
        writer.add_interleave_moe_layer_step(config["interleave_moe_layer_step"])
        writer.add_expert_feed_forward_length(config["intermediate_size"])
    if arch.startswith("granite"):
        writer.add_attention_scale(config["attention_multiplier"])
        writer.add_embedding_scale(config["embedding_multiplier"])
        writer.add_residual_scale(config["residual_multiplier"])
        writer.add_logit_scale(config["logits_scaling"])
        if config.get("shared_intermediate_size"):
            writer.add_expert_shared_feed_forward_length(config["shared_intermediate_size"])


def add_deepseek(writer, config, heads):
    is_v3 = config["model_type"] == "deepseek_v3"
    rotated, latent = config["qk_rope_head_dim"], config["kv_lora_rank"]
    key = config["qk_nope_head_dim"] + rotated
    writer.add_head_count_kv(1 if is_v3 else heads)
    writer.add_key_length(latent + rotated if is_v3 else key)
    writer.add_value_length(latent if is_v3 else config["v_head_dim"])
    if is_v3:
        writer.add_key_length_mla(key)
        writer.add_value_length_mla(config["v_head_dim"])
        writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
        writer.add_expert_group_count(config["n_group"])
        writer.add_expert_group_used_count(config["topk_group"])
        writer.add_nextn_predict_layers(config["num_nextn_predict_layers"])
    writer.add_rope_dimension_count(rotated)
    writer.add_kv_lora_rank(latent)
    if config["q_lora_rank"]:
        writer.add_q_lora_rank(config["q_lora_rank"])
    writer.add_leading_dense_block_count(config["first_k_dense_replace"])
    writer.add_expert_shared_count(config["n_shared_experts"])
    writer.add_expert_weights_scale(config["routed_scaling_factor"])
    writer.add_expert_weights_norm(config["norm_topk_prob"])


def add_kv_b(writer, block, config, rows):
    if config["model_type"] == "deepseek_v2":
        add(writer, block + "attn_kv_b.weight", rows)
        return
    nope = config["qk_nope_head_dim"]
    heads = rows.reshape(config["num_attention_heads"], nope + config["v_head_dim"], -1)
    add(writer, block + "attn_k_b.weight", heads[:, :nope].swapaxes(1, 2))
    add(writer, block + "attn_v_b.weight", heads[:, nope:])


def add_layers(writer, arch, config, tensors, apart):
    stacks = {}
    for name, array in tensors.items():
        if not name.startswith("model.layers."):
            continue
        layer, rest = name[len("model.layers."):].split(".", 1)
        block = f"blk.{layer}."
        if int(layer) >= config["num_hidden_layers"]:
            add(writer, f"{block}nextn.{rest}"[:63], array)
            continue
        expert = EXPERT.fullmatch(rest)
        if expert and apart:
            add(writer, f"{block}ffn_{KINDS[expert[2]]}.{expert[1]}.weight", array)
        elif expert:
            stacks.setdefault(f"{block}ffn_{KINDS[expert[2]]}_exps.weight", {})[int(expert[1])] = array
        elif rest.endswith("e_score_correction_bias"):
            add(writer, block + "exp_probs_b.bias", array)
        elif rest == "self_attn.kv_b_proj.weight":
            add_kv_b(writer, block, config, array)
        else:
            base, suffix = rest.rsplit(".", 1)
            if suffix == "sinks":
                add(writer, block + "attn_sinks.weight", array)
                continue
            if base == "mlp.experts":  # gpt-oss's: gate and up take turns, matrices the other way round
                end = "bias" if suffix.endswith("_bias") else "weight"
                if suffix.startswith("gate_up"):
                    parts = {"gate": array[..., 0::2], "up": array[..., 1::2]}
                else:
                    parts = {"down": array}
                for kind, part in parts.items():
                    add(writer, f"{block}ffn_{kind}_exps.{end}", part if end == "bias" else part.swapaxes(1, 2))
                continue
            if base == "feed_forward.experts":  # Llama 4's, the other way round
                array = array.swapaxes(1, 2)
                kinds = ("gate", "up") if suffix == "gate_up_proj" else ("down",)
                for kind, part in zip(kinds, np.split(array, len(kinds), axis=1)):
                    add(writer, f"{block}ffn_{kind}_exps.weight", part)
                continue
            if base in HALVES:
                for half, part in zip(HALVES[base], np.split(array, 2, axis=-2)):
                    add(writer, f"{block}{half}.weight", part)
                continue
            if base == "mlp.shared_expert_gate":
                array = array[0]
            if arch in ("llama", "granite", "granitemoe") and base in ("self_attn.q_proj", "self_attn.k_proj"):
                array = permute(array, config["num_attention_heads" if base.endswith("q_proj")
                                              else "num_key_value_heads"])
            name = NAMES_OF.get(arch, {}).get(base, NAMES.get(base))
            add(writer, f"{block}{name}.{suffix}", array)
    for name, stack in stacks.items():
        add(writer, name, np.stack([stack[i] for i in range(len(stack))]))


def add_tokenizer(writer, count):
    """SentencePiece's kind, by hand: a byte, letters, and what they join to."""
    tokens = ["<unk>", "<s>", "</s>", "<0x0A>", "\u2581", "a", "b", "ab", "\u2581a", "\u2581ab"]
    types = [2, 3, 3, 6] + [1] * (count - 4)
    scores = [0.0] * 7 + [-1.0, -2.0, -3.0] + [-100.0] * (count - len(tokens))
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens + [f"unused{i}" for i in range(len(tokens), count)])
    writer.add_token_scores(scores)
    writer.add_token_types(types)
    writer.add_unk_token_id(0)
    writer.add_add_bos_token(True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="tests/golden/gguf")
    out = parser.parse_args().out
    os.makedirs(out, exist_ok=True)
    for name, (arch, split) in GOLDENS.items():
        config, tensors = read_model(name.removesuffix("_apart"))
        writer = gguf.GGUFWriter(os.path.join(out, name + ".gguf"), arch, split_max_tensors=split)
        writer.matrix_kind = KINDS_OF[config["dtype"]]
        add_metadata(writer, arch, config)
        if name == "llama_llama3":
            add_tokenizer(writer, config["vocab_size"])
        add(writer, "token_embd.weight", tensors["model.embed_tokens.weight"])
        add(writer, "output_norm.weight", tensors["model.norm.weight"])
        if "lm_head.weight" in tensors:
            add(writer, "output.weight", tensors["lm_head.weight"])
        add_layers(writer, arch, config, tensors, name.endswith("_apart"))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    with open(os.path.join(out, "versions.json"), "w", encoding="utf-8") as file:
        json.dump({package: version(package) for package in ("gguf", "numpy", "safetensors")}, file, indent=1)
        file.write("\n")


if __name__ == "__main__":
    main()
