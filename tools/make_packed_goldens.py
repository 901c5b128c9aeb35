#!/usr/bin/env python3
"""Makes tests/golden/packed/: tiny random checkpoints with quantised weights, in each of the ways that
src/checkpoint/hf/packed.h lists, with the logits that Hugging Face transformers computes in float32 for
what their weights mean.

    HF_HUB_OFFLINE=1 python3 tools/make_packed_goldens.py [--out DIR] [--scale N] [NAME...]

Weights are drawn and quantised here by rounding to nearest, stored as the formats' own tools store
them, and read back from the file by code of its own (dequantise), which knows nothing of how they were
made. Each folder has config.json, model.safetensors, and expected.json and logits.f32 as those of
tools/make_model_goldens.py. --scale makes them wider, to measure with."""
import argparse
import json
import os
import re
import shutil
import zlib

os.environ.setdefault("HF_HUB_OFFLINE", "1")
import torch
import transformers
from safetensors.torch import load_file, save_file

import make_model_goldens as goldens

AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]


def dense(scale, width, **more):
    """FP8's blocks are wide, so there the FFN is no wider than the rest."""
    ffn = width if width >= 128 else 2 * width
    return goldens.dense(1, hidden_size=width * scale, intermediate_size=ffn * scale, **more)


def deepseek(scale, width):
    wide = width * scale
    return goldens.deepseek(
        1, hidden_size=wide, intermediate_size=wide, moe_intermediate_size=wide, n_routed_experts=4,
        num_experts_per_tok=2, n_shared_experts=1, q_lora_rank=wide, kv_lora_rank=wide,
        qk_nope_head_dim=16, qk_rope_head_dim=8, v_head_dim=wide // 4, n_group=2, topk_group=1,
        routed_scaling_factor=2.5,
        rope_parameters=goldens.yarn(mscale=1.0, mscale_all_dim=1.0))


def qwen3_moe(scale, width):
    wide = width * scale
    return goldens.qwen3_moe(1) | dict(
        hidden_size=wide, intermediate_size=wide, moe_intermediate_size=wide, num_experts=4,
        num_experts_per_tok=2, head_dim=wide // 4)


def gpt_oss(scale, width):
    wide = width * scale
    return goldens.gpt_oss(1) | dict(hidden_size=wide, intermediate_size=wide, head_dim=wide // 4,
                                     num_local_experts=4, num_experts_per_tok=2)


# name: family, config of a scale, how, settings of it
CASES = {
    "deepseek_v3_fp8": ("DeepseekV3", lambda s: deepseek(s, 128), "fp8", dict(scales=torch.float32)),
    "qwen3_fp8": ("Qwen3", lambda s: dense(s, 128, head_dim=32 * s), "fp8",
                  dict(scales=torch.bfloat16)),
    "llama_fp8_short": ("Llama", lambda s: dense(s, 144) | dict(intermediate_size=176 * s), "fp8",
                        dict(scales=torch.bfloat16)),
    "llama_fp8_channel": ("Llama", lambda s: dense(s, 128), "float-quantized", dict(channel=True)),
    "llama_fp8_tensor": ("Llama", lambda s: dense(s, 128), "float-quantized", dict(channel=False)),
    "llama_gptq": ("Llama", lambda s: dense(s, 64), "gptq", dict(group=32, sym=True)),
    "qwen3_gptq_asym": ("Qwen3", lambda s: dense(s, 64, head_dim=16 * s), "gptq",
                        dict(group=64, sym=False, order=True)),
    "llama_gptq_v2": ("Llama", lambda s: dense(s, 64), "gptq", dict(group=-1, sym=False, v2=True)),
    "llama_gptq8": ("Llama", lambda s: dense(s, 64), "gptq", dict(group=32, sym=True, bits=8)),
    "llama_gptq_act": ("Llama", lambda s: dense(s, 64), "gptq", dict(group=32, sym=False, act=True)),
    "llama_gptq_apart": ("Llama", lambda s: dense(s, 64), "gptq", dict(group=32, sym=True, apart=True)),
    "deepseek_v3_gptq_apart": ("DeepseekV3", lambda s: deepseek(s, 64), "gptq",
                               dict(group=32, sym=True, apart=True)),
    "qwen3_moe_gptq": ("Qwen3Moe", lambda s: qwen3_moe(s, 64), "gptq", dict(group=32, sym=True)),
    "llama_awq": ("Llama", lambda s: dense(s, 64), "awq", dict(group=32)),
    "deepseek_v3_awq": ("DeepseekV3", lambda s: deepseek(s, 64), "awq", dict(group=64)),
    "llama_w8a8": ("Llama", lambda s: dense(s, 64), "int-quantized", dict()),
    "llama_w4a16": ("Llama", lambda s: dense(s, 64), "pack-quantized", dict(group=32, sym=True)),
    "qwen3_w4a16_asym": ("Qwen3", lambda s: dense(s, 64, head_dim=16 * s), "pack-quantized",
                         dict(group=64, sym=False)),
    "gpt_oss_mxfp4": ("GptOss", lambda s: gpt_oss(s, 64), "mxfp4", dict()),
}
LESS_ONE = {4: 0x11111111, 8: 0x01010101}
E2M1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])


def is_quantised(name, way):
    if way == "mxfp4":
        return name.endswith(("experts.gate_up_proj", "experts.down_proj"))
    return name.endswith("_proj.weight") or name.endswith("kv_a_proj_with_mqa.weight")


def pack(numbers, dim, order=range(8), bits=4):
    """Eight numbers of 4 bits, or four of 8, along dim in an int32, the order[i]-th in bits 4 i and up."""
    numbers = numbers.movedim(dim, -1).long()
    numbers = numbers.reshape(*numbers.shape[:-1], -1, 32 // bits)
    words = sum(numbers[..., place] << bits * i for i, place in enumerate(order[:32 // bits]))
    words = torch.where(words >= 2 ** 31, words - 2 ** 32, words)
    return words.movedim(-1, dim).to(torch.int32).contiguous()


def unpack(words, dim, order=range(8), bits=4):
    words = words.movedim(dim, -1).long() & 0xFFFFFFFF
    numbers = torch.empty(*words.shape, 32 // bits, dtype=torch.long)
    for i, place in enumerate(order[:32 // bits]):
        numbers[..., place] = words >> bits * i & 2 ** bits - 1
    return numbers.reshape(*words.shape[:-1], -1).movedim(-1, dim)


def round_to_groups(weight, group, sym, dtype, bits=4):
    """Numbers [N, K] of 0 to 15, or 255, scales and zero points [N, K / group]."""
    most = 2 ** bits - 1
    rows, columns = weight.shape
    group = columns if group == -1 else group
    parts = weight.reshape(rows, -1, group)
    if sym:
        scales = (parts.abs().amax(-1) / (most / 2)).to(dtype)
        zeros = torch.full(scales.shape, 2 ** (bits - 1))
    else:
        low, high = parts.amin(-1).clamp(max=0), parts.amax(-1).clamp(min=0)
        scales = ((high - low) / most).to(dtype)
        zeros = (-low / scales.float()).round().clamp(0, most).long()
    numbers = (parts / scales.float()[..., None]).round() + zeros[..., None]
    return numbers.clamp(0, most).long().reshape(rows, columns), scales, zeros


def blocks_of(scales, rows, columns, block=128):
    """A scale for each weight."""
    wide = scales.float().repeat_interleave(block, 0).repeat_interleave(block, 1)
    return wide[:rows, :columns]


def quantise_fp8(weight, settings):
    rows, columns = weight.shape
    padded = torch.zeros(-(-rows // 128) * 128, -(-columns // 128) * 128)
    padded[:rows, :columns] = weight
    parts = padded.reshape(-1, 128, padded.shape[1] // 128, 128)
    scales = (parts.abs().amax((1, 3)) / 448).to(settings["scales"])
    values = weight / blocks_of(scales, rows, columns)
    return {"weight": values.clamp(-448, 448).to(torch.float8_e4m3fn), "weight_scale_inv": scales}


def quantise_float(weight, settings):
    largest = weight.abs().amax(-1, keepdim=True) if settings["channel"] else weight.abs().amax()[None]
    scales = (largest / 448).to(torch.bfloat16)
    tensors = {"weight": (weight / scales.float()).clamp(-448, 448).to(torch.float8_e4m3fn),
               "weight_scale": scales}
    if not settings["channel"]:
        tensors["input_scale"] = torch.tensor([0.02], dtype=torch.bfloat16)
    return tensors


def quantise_int8(weight, _settings):
    scales = (weight.abs().amax(-1, keepdim=True) / 127.5).to(torch.bfloat16)
    return {"weight": (weight / scales.float()).round().clamp(-128, 127).to(torch.int8),
            "weight_scale": scales}


def quantise_packed(weight, settings):
    numbers, scales, zeros = round_to_groups(weight, settings["group"], settings["sym"],
                                             torch.bfloat16)
    tensors = {"weight_packed": pack(numbers, 1), "weight_scale": scales,
               "weight_shape": torch.tensor(weight.shape)}
    if not settings["sym"]:
        tensors["weight_zero_point"] = pack(zeros, 0)
    return tensors


def quantise_gptq(weight, settings):
    bits = settings.get("bits", 4)
    order = torch.arange(weight.shape[1])
    if settings.get("act"):  # as GPTQ takes the columns: what multiplies the same has the same order
        order = torch.randperm(len(order), generator=torch.Generator().manual_seed(len(order)))
    if settings.get("apart"):  # each has its own, but for gate and up of an expert
        key = settings["key"].replace("up_proj", "gate_proj") if ".experts." in settings["key"] else settings["key"]
        generator = torch.Generator().manual_seed(zlib.crc32(key.encode()))
        order = torch.randperm(len(order), generator=generator)
    weight = weight[:, order]
    numbers, scales, zeros = round_to_groups(weight, settings["group"], settings["sym"],
                                             torch.float16, bits)
    words = pack(zeros.T, 1, bits=bits)
    if not settings.get("v2"):  # GPTQModel, convert_gptq_v2_to_v1_format_module
        words = words - LESS_ONE[bits]
    group = weight.shape[1] // scales.shape[1]
    place = order.argsort()
    return {"qweight": pack(numbers[:, place].T, 0, bits=bits), "scales": scales.T.contiguous(), "qzeros": words,
            "g_idx": (place // group).to(torch.int32)}


def quantise_awq(weight, settings):
    numbers, scales, zeros = round_to_groups(weight, settings["group"], False, torch.float16)
    return {"qweight": pack(numbers.T, 1, AWQ_ORDER), "scales": scales.T.contiguous(),
            "qzeros": pack(zeros.T, 1, AWQ_ORDER)}


def quantise_mxfp4(weight, _settings):
    """A stack [experts, K, N], as transformers has it."""
    parts = weight.transpose(1, 2).unflatten(-1, (-1, 32))
    exponents = parts.abs().amax(-1).clamp(min=1e-20).log2().floor() - 2
    numbers = (parts / 2 ** exponents[..., None])[..., None].sub(E2M1).abs().argmin(-1)
    blocks = numbers[..., 0::2] | numbers[..., 1::2] << 4
    return {"_blocks": blocks.to(torch.uint8), "_scales": (exponents + 127).to(torch.uint8)}


WAYS = {"mxfp4": quantise_mxfp4, "fp8": quantise_fp8, "float-quantized": quantise_float, "int-quantized": quantise_int8,
        "pack-quantized": quantise_packed, "gptq": quantise_gptq, "awq": quantise_awq}


def config_of(way, settings):
    """What the formats' tools write into config.json."""
    if way == "mxfp4":
        return dict(quant_method="mxfp4", modules_to_not_convert=["model.layers.*.self_attn",
                                                                  "model.layers.*.mlp.router"])
    if way == "fp8":
        return dict(quant_method="fp8", fmt="e4m3", activation_scheme="dynamic",
                    weight_block_size=[128, 128])
    if way == "gptq":
        config = dict(quant_method="gptq", bits=settings.get("bits", 4), group_size=settings["group"], sym=settings["sym"],
                      desc_act=any(settings.get(key) for key in ("order", "act", "apart")))
        return config | (dict(checkpoint_format="gptq_v2") if settings.get("v2") else {})
    if way == "awq":
        return dict(quant_method="awq", bits=4, group_size=settings["group"], version="gemm",
                    zero_point=True, modules_to_not_convert=["lm_head"])
    weights = dict(num_bits=8, type="float" if way == "float-quantized" else "int", symmetric=True,
                   strategy="channel", dynamic=False)
    if way == "pack-quantized":
        weights |= dict(num_bits=4, strategy="group", group_size=settings["group"],
                        symmetric=settings["sym"])
    return dict(quant_method="compressed-tensors", format=way, quantization_status="compressed",
                ignore=["lm_head"], kv_cache_scheme=None,
                config_groups={"group_0": dict(targets=["Linear"], weights=weights,
                                               input_activations=None)})


def dequantise(folder):
    """The weights that the checkpoint's tensors mean, as float32, by what the formats' documents say."""
    with open(os.path.join(folder, "config.json")) as file:
        quantised = json.load(file)["quantization_config"]
    tensors = load_file(os.path.join(folder, "model.safetensors"))
    out = {}
    for name, tensor in tensors.items():
        module, _, kind = name.rpartition(".")
        part = lambda suffix, module=module: tensors.get(f"{module}.{suffix}")
        if kind == "qweight":
            order = AWQ_ORDER if quantised["quant_method"] == "awq" else range(8)
            scales = part("scales").float()
            words = part("qzeros").long()
            if quantised["quant_method"] == "gptq" and quantised.get("checkpoint_format") != "gptq_v2":
                words = words + LESS_ONE[quantised["bits"]]
            zeros = unpack(words, 1, order, quantised["bits"]).float()
            numbers = unpack(tensor, 1, order) if order is AWQ_ORDER else unpack(tensor, 0, bits=quantised["bits"])
            group = numbers.shape[0] // scales.shape[0]
            which = part("g_idx").long() if part("g_idx") is not None else \
                torch.arange(numbers.shape[0]) // group
            out[module + ".weight"] = ((numbers.float() - zeros[which]) * scales[which]).T.contiguous()
        elif kind.endswith("_proj_blocks"):
            halves = torch.stack([tensor & 15, tensor >> 4], -1).flatten(-2).long()
            exponents = part(kind.replace("_blocks", "_scales")).float() - 127
            values = E2M1[halves] * 2 ** exponents[..., None]
            out[name.removesuffix("_blocks")] = values.flatten(-2).transpose(1, 2).contiguous()
        elif kind == "weight_packed":
            numbers = unpack(tensor, 1).float()
            scales = part("weight_scale").float()
            zeros = part("weight_zero_point")
            zeros = unpack(zeros, 0).float() if zeros is not None else torch.full(scales.shape, 8.0)
            group = numbers.shape[1] // scales.shape[1]
            spread = lambda x, group=group: x.repeat_interleave(group, 1)
            out[module + ".weight"] = (numbers - spread(zeros)) * spread(scales)
        elif kind == "weight" and part("weight_scale_inv") is not None:
            out[name] = tensor.float() * blocks_of(part("weight_scale_inv"), *tensor.shape)
        elif kind == "weight" and part("weight_scale") is not None:
            out[name] = tensor.float() * part("weight_scale").float()
        elif kind in ("weight", "bias", "e_score_correction_bias", "sinks", "gate_up_proj_bias",
                      "down_proj_bias"):
            out[name] = tensor.float()
    return out


def save_plain(model, folder, tensors):
    """The same model as a float32 checkpoint, for transformers to read."""
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder)
    config = json.load(open(os.path.join(folder, "config.json")))
    with open(os.path.join(folder, "config.json"), "w") as file:
        json.dump(config | {"dtype": "float32"}, file)
    save_file(tensors, os.path.join(folder, "model.safetensors"), metadata={"format": "pt"})


def make(name, out, scale):
    family, config_at, way, settings = CASES[name]
    folder = os.path.join(out, name)
    config = getattr(transformers, family + "Config")(**config_at(scale))
    model = getattr(transformers, family + "ForCausalLM")(config)
    goldens.randomise(model, goldens.SEED)
    shutil.rmtree(folder, ignore_errors=True)
    model.to(torch.bfloat16).save_pretrained(folder)
    path = os.path.join(folder, "model.safetensors")
    tensors = {}
    for key, tensor in load_file(path).items():
        if not is_quantised(key, way):
            tensors[key] = tensor
            continue
        for kind, part in WAYS[way](tensor.float(), settings | dict(key=key)).items():
            tensors[key + kind if way == "mxfp4" else re.sub("weight$", kind, key)] = part
    if name == "llama_fp8_tensor":
        tensors["model.layers.0.self_attn.k_scale"] = torch.tensor([0.1], dtype=torch.bfloat16)
        tensors["model.layers.0.self_attn.v_scale"] = torch.tensor([0.1], dtype=torch.bfloat16)
    if name == "llama_gptq":  # as AutoGPTQ has written them
        tensors["model.layers.0.mlp.up_proj.bias"] = torch.zeros(config.intermediate_size,
                                                                 dtype=torch.float16)
    save_file(tensors, path, metadata={"format": "pt"})
    generation = os.path.join(folder, "generation_config.json")
    if os.path.exists(generation):
        os.remove(generation)
    with open(os.path.join(folder, "config.json")) as file:
        values = json.load(file)
    values["quantization_config"] = config_of(way, settings)
    with open(os.path.join(folder, "config.json"), "w") as file:
        json.dump(values, file, indent=2)
        file.write("\n")
    meant = dequantise(folder)
    meant.pop("model.layers.0.mlp.up_proj.bias", None)
    plain = os.path.join(out, name + ".plain")
    save_plain(model, plain, meant)
    prompt = goldens.make_prompt(goldens.PROMPT_TOKENS)
    logits, greedy, gap, route_gap = goldens.reference(plain, prompt, goldens.GREEDY_TOKENS)
    shutil.rmtree(plain)
    with open(os.path.join(folder, "logits.f32"), "wb") as file:
        file.write(logits.astype("<f4").tobytes())
    with open(os.path.join(folder, "expected.json"), "w") as file:
        json.dump(dict(prompt=prompt, greedy=greedy, seed=goldens.SEED, torch=torch.__version__,
                       transformers=transformers.__version__), file)
        file.write("\n")
    size = sum(os.path.getsize(os.path.join(folder, f)) for f in os.listdir(folder))
    print(f"{name:20} {size:8} bytes, std {logits.std():.3f}, smallest greedy gap {gap:.2e}, "
          f"router gap {route_gap:.2e}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", default="tests/golden/packed")
    parser.add_argument("--scale", type=int, default=1)
    parser.add_argument("names", nargs="*")
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)
    for name in options.names or CASES:
        make(name, options.out, options.scale)


if __name__ == "__main__":
    main()
