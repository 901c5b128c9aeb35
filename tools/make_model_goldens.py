#!/usr/bin/env python3
"""Makes tests/golden/models/: tiny random checkpoints of every architecture, with the logits and
the greedy continuation that Hugging Face transformers computes for them in float32.

    HF_HUB_OFFLINE=1 python3 tools/make_model_goldens.py [--out DIR] [NAME...]

Each folder holds what save_pretrained wrote (config.json, one or several safetensors files), and
    expected.json   prompt, greedy continuation, seed, versions
    logits.f32      float32 [prompt tokens][vocabulary], little endian

Weights are drawn wide enough that attention and routing matter, norms and biases are drawn too, and
everything is rounded to the checkpoint's dtype before the reference is computed. The reference
reads the folder back with from_pretrained, in float32, attn_implementation="eager".

Also rope.json: for each configuration in tests/corpus/model_config/ the frequencies of its rotary
embedding, the factor on cos and sin, and the softmax's scale, as transformers computes them.

tools/oracle_models.py uses the same cases at other sizes and dtypes."""
import argparse
import importlib
import json
import os
import shutil
import sys

os.environ.setdefault("HF_HUB_OFFLINE", "1")
import torch
import transformers

SEED = 20250607
PROMPT_TOKENS = 20
GREEDY_TOKENS = 64
VOCAB = 64


def layers(scale):
    return 2 if scale == 1 else 4


def dense(scale, **more):
    config = dict(vocab_size=VOCAB, hidden_size=32 * scale, intermediate_size=48 * scale,
                  num_hidden_layers=layers(scale), num_attention_heads=4, num_key_value_heads=2,
                  max_position_embeddings=512, rms_norm_eps=1e-5, bos_token_id=1, eos_token_id=2)
    config.update(more)
    return config


def deepseek(scale, **more):
    config = dict(vocab_size=VOCAB, hidden_size=32 * scale, intermediate_size=48 * scale,
                  moe_intermediate_size=12 * scale, num_hidden_layers=layers(scale),
                  num_attention_heads=4, num_key_value_heads=4, n_routed_experts=8,
                  num_experts_per_tok=3,
                  n_shared_experts=2, first_k_dense_replace=1, kv_lora_rank=16 * scale,
                  q_lora_rank=24 * scale, qk_nope_head_dim=8 * scale, qk_rope_head_dim=4 * scale,
                  v_head_dim=10 * scale, max_position_embeddings=512, rms_norm_eps=1e-5,
                  bos_token_id=1, eos_token_id=[2, 3])
    config.update(more)
    return config


def qwen3_moe(scale, **more):
    return dense(scale, head_dim=16 * scale, moe_intermediate_size=12 * scale, num_experts=8,
                 num_experts_per_tok=3, norm_topk_prob=True, **more)


def qwen2_moe(scale, **more):
    return dense(scale, num_key_value_heads=4, moe_intermediate_size=12 * scale,
                 shared_expert_intermediate_size=20 * scale, num_experts=8, num_experts_per_tok=3,
                 rms_norm_eps=1e-6, **more)


def olmoe(scale, **more):
    return dense(scale, intermediate_size=12 * scale, num_experts=8, num_experts_per_tok=3,
                 pad_token_id=0, **more)


def gemma2(scale, **more):
    return dense(scale, head_dim=12 * scale, query_pre_attn_scalar=12 * scale,
                 sliding_window=7 * scale, attn_logit_softcapping=4.0,
                 final_logit_softcapping=3.0, pad_token_id=0, **more)


def gemma3(scale, **more):
    """Windows of layers before the last one, whose rope is scaled."""
    config = dict(
        head_dim=12 * scale, query_pre_attn_scalar=12 * scale, sliding_window=7 * scale,
        pad_token_id=0, layer_types=["sliding_attention" if i % 3 != 1 else "full_attention"
                                     for i in range(layers(scale))],
        rope_parameters=dict(
            sliding_attention=rope("default") | {"rope_theta": 5000.0},
            full_attention=rope("linear", factor=8.0) | {"rope_theta": 1000000.0}))
    return dense(scale, **(config | more))


def glm4(scale, **more):
    return dense(scale, head_dim=16 * scale, pad_token_id=0, **more)


def glm4_moe(scale, **more):
    return dense(scale, head_dim=16 * scale, moe_intermediate_size=12 * scale, n_routed_experts=8,
                 num_experts_per_tok=3, n_shared_experts=1, first_k_dense_replace=1, **more)


def phi3(scale, **more):
    return dense(scale, pad_token_id=0, **more)


def longrope(pairs, original, **more):
    return rope("longrope", short_factor=[1.0 + 0.05 * i for i in range(pairs)],
                long_factor=[1.5 + 0.4 * i for i in range(pairs)],
                original_max_position_embeddings=original, **more)


def granite(scale, **more):
    return dense(scale, embedding_multiplier=6.0, residual_multiplier=0.4,
                 attention_multiplier=0.3 / scale, logits_scaling=3.0, **more)


def granite_moe(scale, **more):
    return granite(scale, intermediate_size=12 * scale, num_local_experts=8, num_experts_per_tok=3,
                   **more)


def llama4(scale, **more):
    return dense(scale, intermediate_size=12 * scale, intermediate_size_mlp=48 * scale, head_dim=8 * scale,
                 num_hidden_layers=4, num_local_experts=8, num_experts_per_tok=1, **more)


def gpt_oss(scale, **more):
    config = dict(intermediate_size=32 * scale, head_dim=8 * scale, sliding_window=7 * scale,
                  num_local_experts=8, num_experts_per_tok=3, rope_parameters=yarn(truncate=False))
    return dense(scale, **(config | more))


def mixtral(scale, **more):
    return dense(scale, intermediate_size=12 * scale, num_local_experts=8, **more)


def rope(kind, **more):
    return dict(rope_type=kind, rope_theta=10000.0, **more)


def yarn(**more):
    return rope("yarn", factor=16.0, original_max_position_embeddings=32, beta_fast=32,
                beta_slow=1, **more)


LLAMA3 = dict(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=64)

# name, class, config of a scale, dtype of the golden (None: none is kept), and how the folder is
# written: "old": rope_theta and rope_scaling in config.json instead of rope_parameters; "shards":
# several files; "mtp": with a layer that is not a part of the model; "period": with moe_layer_freq,
# which transformers does not know, so that the reference is a model changed by hand; "fused": with
# the experts as transformers holds them in memory
CASES = [
    ("llama_gqa_tied", "Llama", lambda s: dense(s, tie_word_embeddings=True), "bfloat16", ()),
    ("llama_biases_mha", "Llama", lambda s: dense(s, num_key_value_heads=4, attention_bias=True,
                                                  mlp_bias=True), "float16", ("old",)),
    ("llama_llama3", "Llama", lambda s: dense(s, head_dim=12 * s, rope_parameters=rope(
        "llama3", **LLAMA3) | {"rope_theta": 500000.0}), "bfloat16", ()),
    ("llama_linear", "Llama", lambda s: dense(s, rope_parameters=rope("linear", factor=4.0)),
     "bfloat16", ("old", "shards")),
    ("llama_yarn", "Llama", lambda s: dense(s, rope_parameters=yarn()), "bfloat16", ("old",)),
    ("llama_dynamic", "Llama", lambda s: dense(s, rope_parameters=rope("dynamic", factor=2.0)),
     None, ("old",)),
    ("mistral", "Mistral", lambda s: dense(s, sliding_window=None, head_dim=16 * s,
                                           rope_parameters=rope("default") | {
                                               "rope_theta": 1000000.0}), "bfloat16", ("old",)),
    ("mistral_window", "Mistral", lambda s: dense(s, sliding_window=7 * s), "bfloat16", ()),
    ("qwen2", "Qwen2", lambda s: dense(s, rms_norm_eps=1e-6), "bfloat16", ("shards",)),
    ("qwen2_tied_yarn", "Qwen2", lambda s: dense(s, tie_word_embeddings=True,
                                                 rope_parameters=yarn(attention_factor=1.25)),
     "float16", ("old",)),
    ("qwen2_window", "Qwen2", lambda s: dense(s, use_sliding_window=True, sliding_window=8 * s,
                                              max_window_layers=layers(s) - 1), "float16", ()),
    ("qwen2_moe_window", "Qwen2Moe", lambda s: qwen2_moe(
        s, use_sliding_window=True, sliding_window=9 * s), None, ()),
    ("qwen3", "Qwen3", lambda s: dense(s, head_dim=16 * s, tie_word_embeddings=True), "bfloat16",
     ()),
    ("qwen3_biases", "Qwen3", lambda s: dense(s, head_dim=8 * s, attention_bias=True), "bfloat16",
     ("shards",)),
    ("qwen3_moe", "Qwen3Moe", qwen3_moe, "bfloat16", ("old", "shards")),
    ("qwen3_moe_mixed", "Qwen3Moe", lambda s: qwen3_moe(
        s, mlp_only_layers=[0], attention_bias=True, tie_word_embeddings=True) | {
            "norm_topk_prob": False}, "float16", ()),
    ("qwen3_moe_step", "Qwen3Moe", lambda s: qwen3_moe(
        s, decoder_sparse_step=2, mlp_only_layers=[3]), None, ()),
    ("qwen3_moe_fused", "Qwen3Moe", qwen3_moe, None, ("fused",)),
    ("qwen2_moe", "Qwen2Moe", qwen2_moe, "bfloat16", ("old", "shards")),
    ("qwen2_moe_mixed", "Qwen2Moe", lambda s: qwen2_moe(
        s, mlp_only_layers=[0], norm_topk_prob=True, tie_word_embeddings=True), "float16", ()),
    ("qwen2_moe_fused", "Qwen2Moe", qwen2_moe, None, ("fused",)),
    ("olmoe", "Olmoe", lambda s: olmoe(s, num_key_value_heads=4), "bfloat16", ("old",)),
    ("olmoe_grouped", "Olmoe", lambda s: olmoe(s, attention_bias=True, norm_topk_prob=True), None,
     ()),
    ("glm4", "Glm4", glm4, "bfloat16", ("old",)),
    ("glm4_plain", "Glm4", lambda s: glm4(s, attention_bias=False, rope_parameters=rope(
        "default", partial_rotary_factor=0.25)), None, ()),
    ("glm4_moe", "Glm4Moe", lambda s: glm4_moe(s, use_qk_norm=True, attention_bias=True,
                                               routed_scaling_factor=1.5), "bfloat16",
     ("old", "mtp")),
    ("glm4_moe_plain", "Glm4Moe", lambda s: glm4_moe(
        s, norm_topk_prob=False, n_group=2, topk_group=1) | {
            "n_shared_experts": 2, "num_experts_per_tok": 2}, None, ("fused",)),
    ("phi3", "Phi3", phi3, "bfloat16", ("shards",)),
    ("phi3_long", "Phi3", lambda s: phi3(s, original_max_position_embeddings=16, rope_parameters=longrope(
        3 * s, 16, partial_rotary_factor=0.75)), "bfloat16", ("old",)),
    ("phi3_short", "Phi3", lambda s: phi3(s, original_max_position_embeddings=512, rope_parameters=longrope(
        4 * s, 512, attention_factor=1.2)), None, ()),
    ("granite", "Granite", lambda s: granite(s, attention_bias=True, mlp_bias=True), "bfloat16", ("old",)),
    ("granite_tied", "Granite", lambda s: granite(s, tie_word_embeddings=True), None, ()),
    ("granite_moe", "GraniteMoe", granite_moe, "float16", ("old",)),
    ("granite_moe_shared", "GraniteMoeShared", lambda s: granite_moe(
        s, shared_intermediate_size=20 * s), "bfloat16", ("shards",)),
    ("llama4", "Llama4Text", lambda s: llama4(s, attention_chunk_size=16, floor_scale=8, no_rope_layers=[1, 0, 1, 1],
                                          interleave_moe_layer_step=2), "bfloat16", ()),
    ("llama4_images", "Llama4Text", lambda s: llama4(s, attention_chunk_size=8, no_rope_layer_interval=2,
                                                 use_qk_norm=False, attn_temperature_tuning=False,
                                                 moe_layers=[0, 3]), "float16", ("nested",)),
    ("llama4_plain", "Llama4Text", llama4, "bfloat16", ("old",)),
    ("gpt_oss", "GptOss", gpt_oss, "bfloat16", ("old",)),
    ("gpt_oss_plain", "GptOss", lambda s: gpt_oss(
        s, attention_bias=False, head_dim=12 * s, intermediate_size=12 * s, num_experts_per_tok=2,
        layer_types=["full_attention"] + ["sliding_attention"] * (layers(s) - 1),
        rope_parameters=rope("default")), "float16", ("shards",)),
    ("mixtral", "Mixtral", mixtral, "bfloat16", ("old",)),
    ("mixtral_fused", "Mixtral", lambda s: mixtral(s, num_experts_per_tok=3, head_dim=12 * s),
     "float16", ("fused",)),
    ("gemma2", "Gemma2", gemma2, "bfloat16", ("old",)),
    ("gemma3", "Gemma3Text", gemma3, "bfloat16", ()),
    ("gemma3_old", "Gemma3Text", lambda s: gemma3(
        s, attn_logit_softcapping=20.0, final_logit_softcapping=10.0,
        query_pre_attn_scalar=10 * s), None,
     ("old_by_layer",)),
    ("gemma3_sees", "Gemma3", gemma3, "float16", ("text_part",)),
    ("gemma3_sees_new", "Gemma3", gemma3, None, ("text_part", "fused")),
    ("deepseek_v2_lite", "DeepseekV2", lambda s: deepseek(
        s, q_lora_rank=None, topk_method="greedy", n_group=1, topk_group=1,
        routed_scaling_factor=1.0, rope_parameters=yarn(mscale=0.707, mscale_all_dim=0.707)),
     "bfloat16", ("old",)),
    ("deepseek_v2_groups", "DeepseekV2", lambda s: deepseek(
        s, topk_method="group_limited_greedy", n_group=4, topk_group=2, num_experts_per_tok=3,
        routed_scaling_factor=1.6, rope_parameters=yarn(mscale=1.0, mscale_all_dim=0.5)),
     "float16", ("old", "shards")),
    ("deepseek_v2_biases", "DeepseekV2", lambda s: deepseek(
        s, topk_method="greedy", attention_bias=True, mlp_bias=True, norm_topk_prob=True,
        n_shared_experts=1, rms_norm_eps=1e-3), "bfloat16", ()),
    ("deepseek_v2_period", "DeepseekV2", lambda s: deepseek(
        s, topk_method="greedy", moe_layer_freq=2), None, ("period",)),
    ("deepseek_v3", "DeepseekV3", lambda s: deepseek(
        s, n_group=4, topk_group=2, n_shared_experts=1, routed_scaling_factor=2.5,
        rope_parameters=yarn(mscale=1.0, mscale_all_dim=1.0)), "bfloat16", ("old", "mtp")),
    ("deepseek_v3_one_group", "DeepseekV3", lambda s: deepseek(
        s, n_group=1, topk_group=1, norm_topk_prob=False, rms_norm_eps=1e-3,
        first_k_dense_replace=layers(s) // 2), "float16", ()),
    ("deepseek_v3_plain", "DeepseekV3", lambda s: deepseek(
        s, n_group=2, topk_group=1, q_lora_rank=None, rope_interleave=False,
        attention_bias=True, tie_word_embeddings=True), "float32", ("shards",)),
]


def randomise(model, seed):
    """Draws every weight so that nothing is idle: an untrained model's norms are ones, its biases
    zeros, and its attention nearly uniform."""
    generator = torch.Generator().manual_seed(seed)
    gemma = type(model).__name__.startswith("Gemma")  # scales embeddings, adds 1 to norms
    for name, tensor in sorted(list(model.named_parameters()) + list(model.named_buffers())):
        if "inv_freq" in name or "embed_scale" in name or tensor.dtype == torch.int64:
            continue
        noise = torch.randn(tensor.shape, generator=generator)
        with torch.no_grad():
            if "e_score_correction_bias" in name:
                tensor.copy_(0.2 * noise)
            elif name.endswith((".bias", "_bias")):
                tensor.copy_(0.3 * noise)
            elif tensor.dim() == 1:
                tensor.copy_((0 if gemma else 1) + 0.25 * noise)
            elif "embed_tokens" in name:
                tensor.copy_(0.7 * noise / (tensor.shape[-1] ** 0.5 if gemma else 1))
            else:
                tensor.copy_(1.6 * noise / tensor.shape[-1] ** 0.5)


def to_old_style(path):
    """Rope, and Qwen's number of experts, as files before transformers 5 have them."""
    with open(path) as file:
        config = json.load(file)
    parameters = config.pop("rope_parameters")
    config["rope_theta"] = parameters.pop("rope_theta")
    kind = parameters.pop("rope_type")
    config["rope_scaling"] = dict(type=kind, **parameters) if kind != "default" else None
    if "num_local_experts" in config and config["model_type"] in ("qwen2_moe", "qwen3_moe", "olmoe"):
        config["num_experts"] = config.pop("num_local_experts")
    with open(path, "w") as file:
        json.dump(config, file, indent=2)
        file.write("\n")


def add_predict_layer(folder, layer_count, dtype):
    """The layer for multi-token prediction that published DeepSeek-V3 files carry behind the last
    one; transformers does not load it."""
    from safetensors.torch import load_file, save_file
    path = os.path.join(folder, "model.safetensors")
    tensors = load_file(path)
    width = tensors["model.norm.weight"].shape[0]
    tensors[f"model.layers.{layer_count}.enorm.weight"] = torch.ones(width, dtype=dtype)
    tensors[f"model.layers.{layer_count}.eh_proj.weight"] = torch.ones(4, width, dtype=dtype)
    save_file(tensors, path, metadata={"format": "pt"})


def to_old_style_by_layer(path):
    """Gemma 3's ropes as its first files have them."""
    with open(path) as file:
        config = json.load(file)
    parameters = config.pop("rope_parameters")
    config["rope_theta"] = parameters["full_attention"].pop("rope_theta")
    config["rope_local_base_freq"] = parameters["sliding_attention"]["rope_theta"]
    config["rope_scaling"] = parameters["full_attention"]
    with open(path, "w") as file:
        json.dump(config, file, indent=2)
        file.write("\n")


TINY_VISION = dict(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
                   image_size=28, patch_size=14)


def make_model(family, values, how):
    if "text_part" in how:
        config = getattr(transformers, family + "Config")(
            text_config=values, vision_config=TINY_VISION, mm_tokens_per_image=4)
        return getattr(transformers, family + "ForConditionalGeneration")(config)
    config = getattr(transformers, family + "Config")(**values)
    return getattr(transformers, family.removesuffix("Text") + "ForCausalLM")(config)


def nest(folder):
    """What published Llama 4 files are: a language model beside one that sees."""
    from safetensors.torch import load_file, save_file
    path = os.path.join(folder, "model.safetensors")
    tensors = {"language_model." + name: tensor for name, tensor in load_file(path).items()}
    tensors["vision_model.class_embedding"] = torch.ones(4)
    save_file(tensors, path, metadata={"format": "pt"})
    path = os.path.join(folder, "config.json")
    with open(path) as file:
        config = json.load(file)
    with open(path, "w") as file:
        json.dump({"architectures": ["Llama4ForConditionalGeneration"], "model_type": "llama4",
                   "text_config": config, "vision_config": {"hidden_size": 4}}, file, indent=2)
        file.write("\n")


def make_checkpoint(case, scale, dtype, folder, seed=SEED, prepare=randomise):
    """prepare(model, seed) fills the new model with weights."""
    name, family, config_of, _, how = case
    model = make_model(family, config_of(scale), how)
    config = model.config
    if "period" in how:
        from transformers.models.deepseek_v2.modeling_deepseek_v2 import DeepseekV2MLP
        for index, layer in enumerate(model.model.layers):
            if index % config.moe_layer_freq != 0:
                layer.mlp = DeepseekV2MLP(config)
    prepare(model, seed)
    model = model.to(getattr(torch, dtype))
    shutil.rmtree(folder, ignore_errors=True)
    size = sum(t.numel() * t.element_size() for t in model.parameters())
    model.save_pretrained(folder, max_shard_size=size // 3 if "shards" in how else "5GB",
                          save_original_format="fused" not in how)
    if name != "deepseek_v3":  # one of them has a generation_config.json, the others don't
        os.remove(os.path.join(folder, "generation_config.json"))
    if "old" in how:
        to_old_style(os.path.join(folder, "config.json"))
    if "old_by_layer" in how:
        to_old_style_by_layer(os.path.join(folder, "config.json"))
    if "nested" in how:
        nest(folder)
    if "mtp" in how:
        add_predict_layer(folder, config.num_hidden_layers, getattr(torch, dtype))
    return model


SOFTMAX_ROUTERS = ("Qwen2MoeTopKRouter", "Qwen3MoeTopKRouter", "MixtralTopKRouter", "OlmoeTopKRouter",
                   "GptOssTopKRouter")


def watch_routers(model):
    """A list of one number: the smallest distance so far, in any router that chooses by its logits
    alone, between the last expert that was taken and the first that was not."""
    gaps = [float("inf")]

    def note(router, _inputs, outputs):
        top = torch.topk(outputs[0], router.top_k + 1).values
        gaps[0] = min(gaps[0], float((top[..., -2] - top[..., -1]).min()))
    for module in model.modules():
        if type(module).__name__ in SOFTMAX_ROUTERS:
            module.register_forward_hook(note)
    return gaps


def reference(folder, prompt, greedy_tokens, model=None):
    """Logits of the prompt and the greedy continuation, by transformers in float32, and the
    smallest distances on the way: between the two best logits, and at the border of a router's
    choice. `model`: instead of the folder's."""
    if model is None:
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager")
    else:  # .to(dtype) has rounded the frequencies too
        model.model.rotary_emb = type(model.model.rotary_emb)(model.config)
    model = model.float().eval()
    ids, route_gaps = list(prompt), watch_routers(model)
    with torch.no_grad():
        out = model(torch.tensor([ids]), use_cache=True)
        logits, cache = out.logits[0], out.past_key_values
        last = logits[-1]
        gap = float("inf")
        for _ in range(greedy_tokens):
            best = torch.topk(last, 2).values
            gap = min(gap, float(best[0] - best[1]))
            ids.append(int(last.argmax()))
            out = model(torch.tensor([ids[-1:]]), past_key_values=cache, use_cache=True)
            last, cache = out.logits[0, -1], out.past_key_values
    return logits.numpy(), ids[len(prompt):], gap, route_gaps[0]


def reference_wide(folder, prompt):
    """Logits of the prompt by transformers in float64, but for what it does in float32 always:
    norms, softmax, cos and sin, routers."""
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float64, attn_implementation="eager", experts_implementation="eager")
    with torch.no_grad():
        return model.eval()(torch.tensor([list(prompt)])).logits[0].numpy()


def make_prompt(count, seed=SEED):
    generator = torch.Generator().manual_seed(seed + 1)
    return torch.randint(0, VOCAB, (count,), generator=generator).tolist()


def rope_of(path):
    """What transformers makes of a configuration's rope."""
    with open(path) as file:
        values = json.load(file)
    config = transformers.AutoConfig.for_model(**values)
    module = importlib.import_module(
        type(config).__module__.replace("configuration_", "modeling_"))
    family = type(config).__name__.removesuffix("Config")
    rotary = getattr(module, family + "RotaryEmbedding")(config)
    width = getattr(config, "qk_head_dim", None) or getattr(config, "head_dim", None) or \
        config.hidden_size // config.num_attention_heads
    scale = width ** -0.5
    if hasattr(config, "kv_lora_rank"):
        from transformers.models.deepseek_v2.modeling_deepseek_v2 import yarn_apply_mscale
        scale = yarn_apply_mscale(config.rope_parameters, scale)
    return dict(frequencies=rotary.inv_freq.tolist(), factor=float(rotary.attention_scaling),
                softmax_scale=scale)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", default="tests/golden/models")
    parser.add_argument("names", nargs="*")
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)
    total = 0
    for case in CASES:
        name = case[0]
        if case[3] is None or options.names and name not in options.names:
            continue
        folder = os.path.join(options.out, name)
        model = make_checkpoint(case, 1, case[3], folder)
        prompt = make_prompt(PROMPT_TOKENS)
        logits, greedy, gap, route_gap = reference(folder, prompt, GREEDY_TOKENS,
                                                   model if "nested" in case[4] else None)
        with open(os.path.join(folder, "logits.f32"), "wb") as file:
            file.write(logits.astype("<f4").tobytes())
        expected = dict(prompt=prompt, greedy=greedy, seed=SEED, torch=torch.__version__,
                        transformers=transformers.__version__)
        with open(os.path.join(folder, "expected.json"), "w") as file:
            json.dump(expected, file)
            file.write("\n")
        size = sum(os.path.getsize(os.path.join(folder, f)) for f in os.listdir(folder))
        total += size
        print(f"{name:24} {case[3]:9} {size:7} bytes, std {logits.std():.3f}, "
              f"smallest greedy gap {gap:.2e}, router gap {route_gap:.2e}, "
              f"{len(set(greedy))} distinct ids")
    if not options.names:
        corpus = "tests/corpus/model_config"
        ropes = {name: rope_of(os.path.join(corpus, name)) for name in sorted(os.listdir(corpus))
                 if not name.startswith("bad-")}
        with open(os.path.join(options.out, "rope.json"), "w") as file:
            json.dump(ropes, file, indent=0)
            file.write("\n")
        total += os.path.getsize(os.path.join(options.out, "rope.json"))
    print(f"{total} bytes in all")


if __name__ == "__main__":
    sys.exit(main())
