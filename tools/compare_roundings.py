#!/usr/bin/env python3
"""What rounding costs that a user may ask for, a KV cache in F16 or Q8_0, or activations in BF16
(`--device cpu:bf16-products=on`, where the processor has it): logits beside those of transformers in
float32, and what transformers makes of them in bfloat16.

    HF_HUB_OFFLINE=1 python3 tools/compare_roundings.py [--lighter build/lighter] [NAME...]

The demo model, whose weights were trained, and cases of tools/make_model_goldens.py at eight times
the goldens' widths (by default a llama, a qwen3 and a DeepSeek-V3), whose weights are random and
BF16. Each reads a prompt of 300 tokens in chunks of 32, so that most of what is attended to comes
from the cache. In standard deviations of transformers' logits: the root mean square of the
differences and the largest one; and at how many positions the likeliest token is the same one."""
import argparse
import os
import sys
import tempfile

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import numpy
import torch
import transformers

import make_model_goldens as goldens
from oracle_models import logits_of

SCALE = 8
PROMPT_TOKENS = 300
DEMO, DEMO_IDS = "models/demo", (260, 1260)
NAMES = ["llama_gqa_tied", "qwen3", "deepseek_v3"]


ROUNDINGS = {
    "cache f32": ["--kv-cache-dtype", "f32"], "cache f16": ["--kv-cache-dtype", "f16"],
    "cache q8_0": ["--kv-cache-dtype", "q8_0"],
    "activations bf16": ["--device", "cpu:bf16-products=on"],
}


def reference(folder, prompt, dtype):
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    with torch.no_grad():
        return model(torch.tensor([prompt])).logits[0].float().numpy()


def compare(name, lighter, folder, prompt, out):
    expected = reference(folder, prompt, torch.float32)

    def show(what, got):
        off = (got - expected) / expected.std()
        same = (got.argmax(axis=1) == expected.argmax(axis=1)).sum()
        print(f"| {name} | {what} | {numpy.sqrt((off ** 2).mean()):.1e} | {abs(off).max():.1e} | "
              f"{same} of {len(prompt)} |", flush=True)

    link = os.path.join(out, "model")
    if not os.path.exists(link):
        os.symlink(os.path.abspath(folder), link)
    for what, options in ROUNDINGS.items():
        try:
            show(what, logits_of(lighter, link, ",".join(map(str, prompt)), "--chunk", "32", *options))
        except RuntimeError as error:
            if "AVX-512 BF16" not in str(error):
                raise
            print(f"| {name} | {what}: not on this processor | | | |")
    show("transformers, bfloat16", reference(folder, prompt, torch.bfloat16))
    os.unlink(link)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--lighter", default="build/lighter")
    parser.add_argument("names", nargs="*", default=NAMES)
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)
    print("| model | rounded | RMS | largest | likeliest token |\n| --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as out:
        ids = numpy.random.default_rng(goldens.SEED).integers(*DEMO_IDS, PROMPT_TOKENS)
        compare("demo", options.lighter, DEMO, [int(i) for i in ids], out)
        for case in goldens.CASES:
            if case[0] in options.names:
                folder = os.path.join(out, "checkpoint")
                goldens.make_checkpoint(case, SCALE, "bfloat16", folder)
                compare(case[0], options.lighter, folder, goldens.make_prompt(PROMPT_TOKENS), out)
    print(f"\ntransformers {transformers.__version__}, torch {torch.__version__}.")


if __name__ == "__main__":
    sys.exit(main())
