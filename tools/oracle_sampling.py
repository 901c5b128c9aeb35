#!/usr/bin/env python3
"""Probabilities after each sampling step, by reference implementations, for sampler_test.

    scripts/test_oracles        compares tests/golden/sampling/sampling.json with a new computation
    tools/oracle_sampling.py --write    writes it

Penalties: transformers' RepetitionPenaltyLogitsProcessor, then OpenAI's formula for frequency and
presence. Temperature: transformers' TemperatureLogitsWarper. A single one of top_k, top_p and min_p:
transformers' warpers too. Several together: PyTorch, by the definition in SGLang's
top_k_top_p_min_p_sampling_from_probs_torch, which looks at the probabilities before any cut.
"""
import json
import os
import sys

import torch
import transformers
from transformers import (LogitsProcessorList, MinPLogitsWarper, RepetitionPenaltyLogitsProcessor,
                          TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper)

VOCAB = 64
TOLERANCE = 1e-6
PATH = os.path.join(os.path.dirname(__file__), "..", "tests", "golden", "sampling", "sampling.json")

PROMPT = [1, 5, 5, 9, 20, 33, 63]
OUTPUT = [9, 2, 2, 2, 40, 0]

CASES = [
    {}, {"temperature": 0.3}, {"temperature": 3.0},
    {"top_k": 2}, {"top_k": 10}, {"top_k": 63}, {"top_k": 100},
    {"top_p": 0.05}, {"top_p": 0.5}, {"top_p": 0.9}, {"top_p": 0.999},
    {"min_p": 0.01}, {"min_p": 0.2}, {"min_p": 1.0},
    {"repetition_penalty": 1.3}, {"repetition_penalty": 0.8}, {"frequency_penalty": 0.7},
    {"frequency_penalty": -1.5}, {"presence_penalty": 1.1},
    {"repetition_penalty": 1.2, "frequency_penalty": 0.4, "presence_penalty": -0.3,
     "temperature": 0.8},
    {"top_k": 8, "top_p": 0.6}, {"top_k": 30, "top_p": 0.4, "min_p": 0.1},
    {"temperature": 1.7, "top_k": 20, "top_p": 0.9, "min_p": 0.05},
    {"repetition_penalty": 1.1, "presence_penalty": 0.5, "temperature": 0.6, "top_p": 0.8,
     "top_k": 12},
]


def penalised(logits, params):
    processors = LogitsProcessorList()
    if "repetition_penalty" in params:
        processors.append(RepetitionPenaltyLogitsProcessor(params["repetition_penalty"]))
    scores = processors(torch.tensor([PROMPT + OUTPUT]), logits.clone()[None])[0]
    counts = torch.bincount(torch.tensor(OUTPUT), minlength=VOCAB).to(scores)
    scores = scores - params.get("frequency_penalty", 0.0) * counts
    return scores - params.get("presence_penalty", 0.0) * (counts > 0)


def by_transformers(scores, params):
    warpers = LogitsProcessorList()
    if "temperature" in params:
        warpers.append(TemperatureLogitsWarper(params["temperature"]))
    if "top_k" in params:
        warpers.append(TopKLogitsWarper(params["top_k"]))
    if "top_p" in params:
        warpers.append(TopPLogitsWarper(params["top_p"]))
    if "min_p" in params:
        warpers.append(MinPLogitsWarper(params["min_p"]))
    return torch.softmax(warpers(torch.tensor([PROMPT]), scores[None])[0], -1)


def by_definition(scores, params):
    probs = torch.softmax(scores / params.get("temperature", 1.0), -1)
    order = torch.sort(probs, descending=True, stable=True)
    before = torch.cumsum(order.values, -1) - order.values
    keep = torch.arange(VOCAB) < params.get("top_k", VOCAB)
    keep &= before <= params.get("top_p", 1.0)
    keep &= order.values >= params.get("min_p", 0.0) * order.values[0]
    kept = torch.zeros(VOCAB, dtype=torch.bool)
    kept[order.indices] = keep
    probs = torch.where(kept, probs, torch.zeros_like(probs))
    return probs / probs.sum()


def compute():
    torch.manual_seed(20)
    logits = (torch.randn(VOCAB, dtype=torch.float64) * 2.5).to(torch.float32).to(torch.float64)
    cases = []
    for params in CASES:
        scores = penalised(logits, params)
        cuts = [name for name in ("top_k", "top_p", "min_p") if name in params]
        probs = by_definition(scores, params)
        if len(cuts) <= 1:
            other = by_transformers(scores, params)
            assert torch.equal(other == 0, probs == 0) and torch.allclose(other, probs), params
            probs = other
        cases.append({"name": json.dumps(params), "params": params, "prompt_ids": PROMPT,
                      "output_ids": OUTPUT, "probabilities": [float(f"{p:.9g}") for p in probs]})
    return {"made_by": "tools/oracle_sampling.py", "torch": torch.__version__,
            "transformers": transformers.__version__, "tolerance": TOLERANCE,
            "logits": [float(x) for x in logits], "cases": cases}


def differences(old, new):
    for a, b in zip(old["cases"], new["cases"], strict=True):
        worst = max(abs(p - q) for p, q in zip(a["probabilities"], b["probabilities"]))
        if a["params"] != b["params"] or worst > TOLERANCE / 10:
            yield f"{a['name']}: differs by {worst:g}"


def main():
    new = compute()
    if "--write" in sys.argv[1:]:
        os.makedirs(os.path.dirname(PATH), exist_ok=True)
        with open(PATH, "w", encoding="utf-8") as file:
            json.dump(new, file, separators=(",", ":"))
            file.write("\n")
        return 0
    with open(PATH, encoding="utf-8") as file:
        found = list(differences(json.load(file), new))
    print("\n".join(found) if found else f"{len(new['cases'])} cases as before")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
