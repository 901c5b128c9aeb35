#!/usr/bin/python3
"""Writes a model with random weights, in a known model's shapes: for benchmarks and tests, not for answers.

    tools/make_random_model.py --preset llama-1b /tmp/llama-1b
    tools/make_random_model.py --preset deepseek-tiny --dtype F32 --layers 4 --seed 7 /tmp/tiny

A Hugging Face folder: config.json and model.safetensors, and no tokenizer. Weights are written a piece at a
time, so memory stays small whatever the model's size. The same preset, dtype, layers and seed give the same
bytes, and every dtype holds the same numbers. Needs NumPy only.
"""
import argparse
import json
import os
import struct
import sys

import numpy

PIECE_ELEMENTS = 1 << 22
ELEMENT_BYTES = {"F32": 4, "F16": 2, "BF16": 2}
TORCH_NAMES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}

LLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "attention_bias": False,
    "mlp_bias": False, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": False,
    "initializer_range": 0.02, "bos_token_id": 1, "eos_token_id": 2,
}
DEEPSEEK = {
    "architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3", "hidden_act": "silu",
    "attention_bias": False, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "rope_interleave": True,
    "tie_word_embeddings": False, "initializer_range": 0.02, "scoring_func": "sigmoid", "topk_method": "noaux_tc",
    "norm_topk_prob": True, "num_nextn_predict_layers": 0, "bos_token_id": 0, "eos_token_id": 1,
}
QWEN3_MOE = {
    "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "hidden_act": "silu",
    "attention_bias": False, "rms_norm_eps": 1e-6, "rope_theta": 500000.0, "tie_word_embeddings": False,
    "initializer_range": 0.02, "norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": [],
    "use_sliding_window": False, "sliding_window": None, "bos_token_id": 1, "eos_token_id": 2,
}
MIXTRAL = {
    "architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "hidden_act": "silu", "rms_norm_eps": 1e-5,
    "rope_theta": 1000000.0, "tie_word_embeddings": False, "initializer_range": 0.02, "sliding_window": None,
    "bos_token_id": 1, "eos_token_id": 2,
}
PRESETS = {
    # The shapes of Llama 3.2 1B's layers, with Llama 2's vocabulary and heads of their own.
    "llama-1b": {**LLAMA, "num_hidden_layers": 16, "hidden_size": 2048, "intermediate_size": 8192,
                 "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64, "vocab_size": 32000,
                 "max_position_embeddings": 4096},
    # Llama 3 8B, and Qwen3 30B-A3B: for GPUs, with --layers.
    "llama-8b": {**LLAMA, "num_hidden_layers": 32, "hidden_size": 4096, "intermediate_size": 14336,
                 "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 128256,
                 "rope_theta": 500000.0, "max_position_embeddings": 8192},
    "qwen3-30b-a3b": {**QWEN3_MOE, "num_hidden_layers": 48, "hidden_size": 2048, "intermediate_size": 6144,
                      "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128, "vocab_size": 151936,
                      "moe_intermediate_size": 768, "num_experts": 128, "num_experts_per_tok": 8,
                      "max_position_embeddings": 8192},
    "llama-100m": {**LLAMA, "num_hidden_layers": 12, "hidden_size": 768, "intermediate_size": 2048,
                   "num_attention_heads": 12, "num_key_value_heads": 4, "head_dim": 64, "vocab_size": 32000,
                   "max_position_embeddings": 4096},
    "llama-tiny": {**LLAMA, "num_hidden_layers": 4, "hidden_size": 64, "intermediate_size": 160,
                   "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 320,
                   "max_position_embeddings": 512},
    # Large enough for homes to be mixed under a budget, small enough for a test.
    "llama-small": {**LLAMA, "num_hidden_layers": 6, "hidden_size": 384, "intermediate_size": 1024,
                    "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 64, "vocab_size": 1024,
                    "max_position_embeddings": 512},
    "qwen3moe-small": {**QWEN3_MOE, "num_hidden_layers": 6, "hidden_size": 256, "intermediate_size": 512,
                       "moe_intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2,
                       "head_dim": 64, "num_experts": 64, "num_experts_per_tok": 4, "vocab_size": 1024,
                       "max_position_embeddings": 1024},
    "deepseek-tiny": {**DEEPSEEK, "num_hidden_layers": 4, "hidden_size": 64, "intermediate_size": 128,
                      "moe_intermediate_size": 32, "num_attention_heads": 4, "num_key_value_heads": 4,
                      "q_lora_rank": 32, "kv_lora_rank": 16, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8,
                      "v_head_dim": 16, "n_routed_experts": 8, "num_experts_per_tok": 2, "n_shared_experts": 1,
                      "n_group": 2, "topk_group": 1, "routed_scaling_factor": 1.5, "first_k_dense_replace": 1,
                      "vocab_size": 320, "max_position_embeddings": 512},
    "qwen3moe-tiny": {**QWEN3_MOE, "num_hidden_layers": 4, "hidden_size": 64, "intermediate_size": 160,
                      "moe_intermediate_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2,
                      "head_dim": 16, "num_experts": 8, "num_experts_per_tok": 2, "vocab_size": 320,
                      "max_position_embeddings": 512},
    # 10 billion parameters, of which a token uses 1.6; 20 GB in BF16. Fewer --layers make the same layers.
    "moe-10b-a1b": {**QWEN3_MOE, "num_hidden_layers": 24, "hidden_size": 2048, "intermediate_size": 6144,
                    "moe_intermediate_size": 1024, "num_attention_heads": 32, "num_key_value_heads": 4,
                    "head_dim": 64, "num_experts": 64, "num_experts_per_tok": 8, "vocab_size": 32000,
                    "max_position_embeddings": 8192},
    "mixtral-tiny": {**MIXTRAL, "num_hidden_layers": 4, "hidden_size": 64, "intermediate_size": 96,
                     "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "num_local_experts": 8,
                     "num_experts_per_tok": 2, "vocab_size": 320, "max_position_embeddings": 512},
}


def ffn(prefix, hidden, width):
    return [(prefix + "gate_proj.weight", (width, hidden)), (prefix + "up_proj.weight", (width, hidden)),
            (prefix + "down_proj.weight", (hidden, width))]


def attention(config, prefix):
    hidden, head_dim = config["hidden_size"], config["head_dim"]
    q, kv = config["num_attention_heads"] * head_dim, config["num_key_value_heads"] * head_dim
    return [(prefix + "self_attn.q_proj.weight", (q, hidden)), (prefix + "self_attn.k_proj.weight", (kv, hidden)),
            (prefix + "self_attn.v_proj.weight", (kv, hidden)), (prefix + "self_attn.o_proj.weight", (hidden, q))]


def llama_layer(config, prefix, _layer):
    return attention(config, prefix) + ffn(prefix + "mlp.", config["hidden_size"], config["intermediate_size"])


def qwen3_moe_layer(config, prefix, _layer):
    hidden, head_dim = config["hidden_size"], config["head_dim"]
    tensors = attention(config, prefix)
    tensors += [(prefix + "self_attn.q_norm.weight", (head_dim,)), (prefix + "self_attn.k_norm.weight", (head_dim,)),
                (prefix + "mlp.gate.weight", (config["num_experts"], hidden))]
    for expert in range(config["num_experts"]):
        tensors += ffn(f"{prefix}mlp.experts.{expert}.", hidden, config["moe_intermediate_size"])
    return tensors


def mixtral_layer(config, prefix, _layer):
    hidden, width = config["hidden_size"], config["intermediate_size"]
    tensors = attention(config, prefix)
    tensors += [(prefix + "block_sparse_moe.gate.weight", (config["num_local_experts"], hidden))]
    for expert in range(config["num_local_experts"]):
        one = f"{prefix}block_sparse_moe.experts.{expert}."
        tensors += [(one + "w1.weight", (width, hidden)), (one + "w3.weight", (width, hidden)),
                    (one + "w2.weight", (hidden, width))]
    return tensors


def deepseek_layer(config, prefix, layer):
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    nope, rope, value = config["qk_nope_head_dim"], config["qk_rope_head_dim"], config["v_head_dim"]
    q_rank, kv_rank = config["q_lora_rank"], config["kv_lora_rank"]
    attention = prefix + "self_attn."
    tensors = [(attention + "q_a_proj.weight", (q_rank, hidden)),
               (attention + "q_a_layernorm.weight", (q_rank,)),
               (attention + "q_b_proj.weight", (heads * (nope + rope), q_rank)),
               (attention + "kv_a_proj_with_mqa.weight", (kv_rank + rope, hidden)),
               (attention + "kv_a_layernorm.weight", (kv_rank,)),
               (attention + "kv_b_proj.weight", (heads * (nope + value), kv_rank)),
               (attention + "o_proj.weight", (hidden, heads * value))]
    if layer < config["first_k_dense_replace"]:
        return tensors + ffn(prefix + "mlp.", hidden, config["intermediate_size"])
    width = config["moe_intermediate_size"]
    tensors += [(prefix + "mlp.gate.weight", (config["n_routed_experts"], hidden)),
                (prefix + "mlp.gate.e_score_correction_bias", (config["n_routed_experts"],))]
    for expert in range(config["n_routed_experts"]):
        tensors += ffn(f"{prefix}mlp.experts.{expert}.", hidden, width)
    return tensors + ffn(prefix + "mlp.shared_experts.", hidden, width * config["n_shared_experts"])


LAYERS = {"llama": llama_layer, "qwen3_moe": qwen3_moe_layer, "mixtral": mixtral_layer, "deepseek_v3": deepseek_layer}


def tensors_of(config):
    """(name, shape) of every tensor."""
    hidden, vocabulary = config["hidden_size"], config["vocab_size"]
    tensors = [("model.embed_tokens.weight", (vocabulary, hidden))]
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        tensors += [(prefix + "input_layernorm.weight", (hidden,)),
                    (prefix + "post_attention_layernorm.weight", (hidden,)),
                    *LAYERS[config["model_type"]](config, prefix, layer)]
    return tensors + [("model.norm.weight", (hidden,)), ("lm_head.weight", (vocabulary, hidden))]


def random_bits(random, size):
    """BF16 numbers as their bits, +-[1/64, 1/32): random signs and fractions, a fixed exponent. Every dtype
    holds them exactly, and making them takes a tenth of what a normal distribution would."""
    bits = random.integers(0, 1 << 16, size, dtype=numpy.uint16)
    bits &= numpy.uint16(0x807F)
    bits |= numpy.uint16(0x3C80)
    return bits


def as_bytes(bits, dtype):
    """BF16 bits as dtype's bytes, little endian."""
    if dtype == "BF16":
        return bits.astype("<u2", copy=False).tobytes()
    values = (bits.astype(numpy.uint32) << 16).view(numpy.float32)
    return values.astype("<f4" if dtype == "F32" else "<f2").tobytes()


def write_router(file, shape, dtype, random, skew):
    """A router with favourites: its rows differ in length, by a log-normal factor."""
    bits = random_bits(random, int(numpy.prod(shape)))
    values = (bits.astype(numpy.uint32) << 16).view(numpy.float32).reshape(shape)
    values = values * numpy.exp(skew * random.standard_normal((shape[0], 1))).astype(numpy.float32)
    file.write(as_bytes((values.view(numpy.uint32) >> 16).astype(numpy.uint16).ravel(), dtype))


def write_tensor(file, name, count, dtype, random):
    for at in range(0, count, PIECE_ELEMENTS):
        bits = random_bits(random, min(PIECE_ELEMENTS, count - at))
        if name.endswith("norm.weight"):
            bits = 0x3F80 | (bits & 0x1F)  # [1, 1.25)
        file.write(as_bytes(bits, dtype))


def write_weights(path, tensors, dtype, seed, skew):
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name, shape in tensors:
        kind = "F32" if name.endswith("e_score_correction_bias") else dtype
        size = int(numpy.prod(shape)) * ELEMENT_BYTES[kind]
        header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for index, (name, shape) in enumerate(tensors):
            random = numpy.random.Generator(numpy.random.PCG64([seed, index]))
            if skew > 0 and name.endswith(".gate.weight"):
                write_router(file, shape, header[name]["dtype"], random, skew)
                continue
            write_tensor(file, name, int(numpy.prod(shape)), header[name]["dtype"], random)
    return offset


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", help="made when it is not there")
    parser.add_argument("--preset", choices=sorted(PRESETS), default="llama-1b")
    parser.add_argument("--dtype", choices=sorted(ELEMENT_BYTES), default="BF16")
    parser.add_argument("--layers", type=int, help="instead of the preset's")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--router-skew", type=float, default=0,
                        help="how much routers prefer some experts; 0: not at all; 0.5: as in real models")
    options = parser.parse_args()
    config = {**PRESETS[options.preset], "torch_dtype": TORCH_NAMES[options.dtype]}
    if options.layers is not None:
        config["num_hidden_layers"] = options.layers
    tensors = tensors_of(config)
    os.makedirs(options.folder, exist_ok=True)
    size = write_weights(os.path.join(options.folder, "model.safetensors"), tensors, options.dtype, options.seed,
                         options.router_skew)
    with open(os.path.join(options.folder, "config.json"), "w", encoding="utf-8") as file:
        json.dump(config, file, indent=2, sort_keys=True)
        file.write("\n")
    print(f"{options.folder}: {options.preset}, {len(tensors)} tensors, {size / 1e6:.1f} MB of weights")
    return 0


if __name__ == "__main__":
    sys.exit(main())
