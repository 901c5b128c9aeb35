#!/usr/bin/env python3
"""Decoding with offloaded FFNs in PyTorch, for comparison: SGLang's V2 schedule, and accelerate's CPU offload.

    tools/bench_torch_offload.py --model DIR [--prompt-tokens 128] [--gen-tokens 16] [--group-size 1] [--num-in-group 1]
                                 [--prefetch-step 2]

DIR: a Llama-shaped folder of tools/make_random_model.py. V2 is python/sglang/srt/utils/offloader.py's algorithm, written
anew: of every group the last layers' FFN weights lie in pinned host memory; each is copied to the GPU on a stream of its
own, prefetch-step units ahead and wrapping around, into memory that is allocated for it; computing waits for the
copy's event, and the memory is given back after the layer. Everything else is plain PyTorch in BF16. One JSON object a
line. Needs torch and safetensors; accelerate and transformers for the second line.
"""
import argparse
import json
import os
import sys
import time

import torch
from safetensors import safe_open
from torch.nn import functional


def rms_norm(x, weight, epsilon):
    x32 = x.float()
    return (x32 * torch.rsqrt(x32.square().mean(-1, keepdim=True) + epsilon)).to(x.dtype) * weight


class Unit:
    """A layer's FFN: on the GPU, or at home on the host."""

    def __init__(self, weights, moved):
        self.home = [weight.pin_memory() if moved else None for weight in weights]
        self.here = None if moved else [weight.cuda() for weight in weights]
        self.copied = torch.cuda.Event()

    def onload(self, stream):
        with torch.cuda.stream(stream):
            self.here = [weight.to("cuda", non_blocking=True) for weight in self.home]
            self.copied.record(stream)

    def release(self):
        for weight in self.here:
            weight.record_stream(torch.cuda.current_stream())
        self.here = None


class Llama:
    def __init__(self, folder, options):
        with open(os.path.join(folder, "config.json"), encoding="utf-8") as file:
            self.config = json.load(file)
        self.file = safe_open(os.path.join(folder, "model.safetensors"), framework="pt")
        self.embedding = self.load("model.embed_tokens.weight").cuda()
        self.head = self.load("lm_head.weight").cuda()
        self.norm = self.load("model.norm.weight").cuda()
        self.step = options.prefetch_step
        self.stream = torch.cuda.Stream()
        self.layers, self.moving = [], []
        for layer in range(self.config["num_hidden_layers"]):
            moved = layer % options.group_size >= options.group_size - options.num_in_group
            self.layers.append(self.load_layer(f"model.layers.{layer}.", moved))
            if moved:
                self.moving.append(self.layers[-1]["unit"])
        heads = self.config["num_key_value_heads"] * self.config["head_dim"]
        length = options.prompt_tokens + options.gen_tokens + 1
        self.cache = [[torch.zeros(length, heads, dtype=torch.bfloat16, device="cuda") for _ in range(2)]
                      for _ in self.layers]
        half = self.config["head_dim"] // 2
        self.frequencies = self.config["rope_theta"] ** (-torch.arange(half, device="cuda") / half)
        for unit in self.moving[:self.step]:
            unit.onload(self.stream)

    def load(self, name):
        return self.file.get_tensor(name).to(torch.bfloat16)

    def load_layer(self, prefix, moved):
        names = ("input_layernorm", "post_attention_layernorm", "self_attn.q_proj", "self_attn.k_proj",
                 "self_attn.v_proj", "self_attn.o_proj")
        layer = {name.split(".")[-1]: self.load(f"{prefix}{name}.weight").cuda() for name in names}
        ffn = [torch.cat([self.load(f"{prefix}mlp.{name}.weight") for name in ("gate_proj", "up_proj")]),
               self.load(f"{prefix}mlp.down_proj.weight")]
        return {**layer, "unit": Unit(ffn, moved)}

    def rotate(self, x, position):
        angle = (position + torch.arange(x.shape[0], device="cuda"))[:, None] * self.frequencies
        cos, sin = angle.cos()[:, None].to(x.dtype), angle.sin()[:, None].to(x.dtype)
        a, b = x.chunk(2, -1)
        return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)

    def attention(self, layer, cache, x, position):
        width, count = self.config["head_dim"], x.shape[0]
        q = self.rotate((x @ layer["q_proj"].T).view(count, -1, width), position)
        k = self.rotate((x @ layer["k_proj"].T).view(count, -1, width), position)
        cache[0][position:position + count] = k.reshape(count, -1)
        cache[1][position:position + count] = x @ layer["v_proj"].T
        keys, values = (one[:position + count].view(position + count, -1, width).transpose(0, 1)[None] for one in cache)
        out = functional.scaled_dot_product_attention(q.transpose(0, 1)[None], keys, values, is_causal=count > 1,
                                                      enable_gqa=True)
        return out[0].transpose(0, 1).reshape(count, -1) @ layer["o_proj"].T

    def ffn(self, unit, x):
        moved = unit.home[0] is not None
        if moved:
            torch.cuda.current_stream().wait_event(unit.copied)
        gate, up = (x @ unit.here[0].T).chunk(2, -1)
        x = (functional.silu(gate) * up) @ unit.here[1].T
        if moved:
            unit.release()
            at = self.moving.index(unit)
            self.moving[(at + self.step) % len(self.moving)].onload(self.stream)
        return x

    def forward(self, ids, position):
        epsilon = self.config["rms_norm_eps"]
        x = self.embedding[ids]
        for layer, cache in zip(self.layers, self.cache):
            x = x + self.attention(layer, cache, rms_norm(x, layer["input_layernorm"], epsilon), position)
            x = x + self.ffn(layer["unit"], rms_norm(x, layer["post_attention_layernorm"], epsilon))
        return rms_norm(x[-1:], self.norm, epsilon) @ self.head.T


def tokens_per_s(step, options):
    """step(ids, position) -> logits. The first half of the tokens warms up."""
    position, ids = options.prompt_tokens, step(torch.arange(options.prompt_tokens, device="cuda") + 100, 0).argmax(-1)
    began = None
    for i in range(options.gen_tokens):
        if i == options.gen_tokens // 2:
            torch.cuda.synchronize()
            began, counted = time.perf_counter(), options.gen_tokens - i
        ids = step(ids, position).argmax(-1)
        ids.item()
        position += 1
    return counted / (time.perf_counter() - began)


def with_accelerate(options):
    """Hugging Face's cpu_offload of the whole model, as its users have it."""
    from accelerate import cpu_offload
    from transformers import AutoModelForCausalLM
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.bfloat16)
    cpu_offload(model, execution_device=0)
    state = {"past": None}

    def step(ids, position):
        out = model(input_ids=ids[None], past_key_values=state["past"], use_cache=True)
        state["past"] = out.past_key_values
        return out.logits[0, -1:]

    return tokens_per_s(step, options)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", required=True)
    p.add_argument("--prompt-tokens", type=int, default=128)
    p.add_argument("--gen-tokens", type=int, default=16)
    p.add_argument("--group-size", type=int, default=1)
    p.add_argument("--num-in-group", type=int, default=1)
    p.add_argument("--prefetch-step", type=int, default=2)
    options = p.parse_args()
    with torch.inference_mode():
        llama = Llama(options.model, options)
        print(json.dumps({"what": "SGLang's V2 in PyTorch", "decode_tokens_per_s": tokens_per_s(llama.forward, options)}),
              flush=True)
        del llama
        try:
            print(json.dumps({"what": "accelerate's CPU offload, the whole model",
                              "decode_tokens_per_s": with_accelerate(options)}))
        except ImportError as missing:
            print(f"accelerate is not measured: {missing}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
