#!/usr/bin/env python3
"""Logits of a random model against transformers on the same GPU: is Lighter nearer to F32 than BF16 is?

    tools/compare_torch_logits.py --model DIR --program build/lighter [--device cuda:0] [--torch-device cuda]
                                  [--tokens 128]

DIR: a folder of tools/make_random_model.py in BF16, so that F32 holds its weights exactly. Distances are those from what
transformers computes in F32, as shares of its logits' length; BF16's own is what computing in that type costs. One
JSON object. Needs torch and transformers.
"""
import argparse
import json
import os
import subprocess
import sys
import tempfile

import numpy
import torch
from transformers import AutoModelForCausalLM


def theirs(options, ids, dtype):
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=dtype).to(options.torch_device)
    with torch.inference_mode():
        return model(input_ids=torch.tensor([ids], device=options.torch_device)).logits[0].float().cpu().numpy()


def ours(options, ids):
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "logits.npy")
        subprocess.run([options.program, "logits", "--model", options.model, "--device", options.device, "--input-ids",
                        ",".join(map(str, ids)), "--out", path, "--max-total-tokens", str(2 * len(ids))], check=True,
                       stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        return numpy.load(path)


def distance(got, wanted):
    return float(numpy.linalg.norm(got - wanted) / numpy.linalg.norm(wanted))


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", required=True)
    p.add_argument("--program", required=True)
    p.add_argument("--device", default="cuda:0")
    p.add_argument("--torch-device", default="cuda")
    p.add_argument("--tokens", type=int, default=128)
    options = p.parse_args()
    ids = [100 + i * 7 % 211 for i in range(options.tokens)]
    got = ours(options, ids)
    torch.backends.cuda.matmul.allow_tf32 = False
    wanted = theirs(options, ids, torch.float32)
    print(json.dumps({"ours": distance(got, wanted), "bf16": distance(theirs(options, ids, torch.bfloat16), wanted),
                      "same_best": float((got.argmax(-1) == wanted.argmax(-1)).mean())}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
