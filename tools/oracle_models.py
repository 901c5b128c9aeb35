#!/usr/bin/env python3
"""Compares build/lighter with transformers on random checkpoints of every architecture.

    HF_HUB_OFFLINE=1 python3 tools/oracle_models.py [--lighter build/lighter] [--write] [NAME...]

Each case of tools/make_model_goldens.py is made at four times the goldens' widths and twice their
layers, with a longer prompt, and with weights in F32, BF16 and F16 (save_pretrained, in one or
several files, with the old or the new style of rope settings). Then

    logits   `lighter logits` on cpu, with the best and with the reference kernels, against
             transformers in float32 on the same weights: the largest difference may be 1e-4 of the
             reference logits' standard deviation
    greedy   `lighter generate`, temperature 0: 64 ids, all the same
    float64  how far both are from transformers in float64: for the table, no bound
    moved    logits on sim with every other layer's FFN moved, in chunks of 17: bit for bit those of
             sim with everything resident and the prompt in one piece

Exit status 1 when anything is outside its bound. --write puts the table into docs/fidelity.md."""
import argparse
import json
import os
import subprocess
import sys
import tempfile

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import numpy
import torch
import transformers

import make_model_goldens as goldens

SCALE = 4
PROMPT_TOKENS = 150
GREEDY_TOKENS = 64
BOUND = 1e-4
# Where a router's choice hangs on less than this, float32 may decide either way, and so may we:
# such a prompt is replaced by another.
ROUTE_GAP_MIN = 1e-4
PROMPTS_MAX = 20
DTYPES = ["float32", "bfloat16", "float16"]
DOCUMENT = "docs/fidelity.md"
BEGIN, END = "<!-- table: tools/oracle_models.py -->", "<!-- end of table -->"


def run(lighter, command, *arguments):
    done = subprocess.run([lighter, command, "--quiet", *arguments], capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{command}: {done.stderr.strip()[-400:]}")
    return done.stdout


def logits_of(lighter, folder, ids, *arguments):
    path = os.path.join(os.path.dirname(folder), "logits.npy")
    run(lighter, "logits", "--model", folder, "--input-ids", ids, "--out", path, *arguments)
    return numpy.load(path)


def compare(lighter, folder, prompt, expected, wide, greedy):
    """Largest differences in standard deviations, and whether ids and bits agree."""
    ids = ",".join(map(str, prompt))
    deviation = expected.std()
    logits = logits_of(lighter, folder, ids)
    best = abs(logits - expected).max() / deviation
    ours = abs(logits - wide).max() / deviation
    scalar = abs(logits_of(lighter, folder, ids, "--cpu-kernels", "scalar") - expected).max() / deviation
    out = run(lighter, "generate", "--model", folder, "--input-ids", ids, "--max-new-tokens",
              str(GREEDY_TOKENS), "--temperature", "0", "--ignore-eos", "--json")
    same_ids = json.loads(out)["output_ids"] == greedy
    resident = logits_of(lighter, folder, ids, "--device", "sim")
    moved = logits_of(lighter, folder, ids, "--device", "sim", "--chunk", "17",
                      "--offload-group-size", "2", "--offload-num-in-group", "1")
    return float(best), float(scalar), float(ours), same_ids, resident.tobytes() == moved.tobytes()


def check_case(case, lighter, folder):
    """The case's rows of the table, and whether all are within their bounds."""
    rows, good = [], True
    by_hand = "period" in case[4] or "nested" in case[4]
    for dtype in DTYPES:
        model = goldens.make_checkpoint(case, SCALE, dtype, folder)
        for attempt in range(PROMPTS_MAX):
            prompt = goldens.make_prompt(PROMPT_TOKENS, goldens.SEED + attempt)
            expected, greedy, gap, route_gap = goldens.reference(
                folder, prompt, GREEDY_TOKENS, model if by_hand else None)
            if route_gap >= ROUTE_GAP_MIN:
                break
        wide = expected if by_hand else goldens.reference_wide(folder, prompt)
        best, scalar, ours, same_ids, same_bits = compare(lighter, folder, prompt, expected, wide,
                                                          greedy)
        theirs = float(abs(expected - wide).max() / expected.std())
        fine = max(best, scalar) <= BOUND and same_ids and same_bits
        good &= fine
        rows.append((case[0], dtype, f"{best:.1e}", f"{scalar:.1e}",
                     "" if by_hand else f"{ours:.1e}", "" if by_hand else f"{theirs:.1e}",
                     f"{GREEDY_TOKENS} of {GREEDY_TOKENS}" if same_ids else "DIFFER",
                     "same bits" if same_bits else "DIFFER"))
        print(f"{'ok  ' if fine else 'FAIL'} " + "  ".join(f"{cell:10}" for cell in rows[-1]) +
              f"  std {expected.std():.2f}, gap {gap:.1e}, routers "
              f"{route_gap:.1e}", flush=True)
    return rows, good


def write_table(rows):
    lines = [BEGIN, "",
             "| model | weights | best kernels | reference kernels | to float64 | transformers to "
             "float64 | greedy ids | moved |",
             "| --- | --- | --- | --- | --- | --- | --- | --- |"]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    lines += ["", f"transformers {transformers.__version__}, torch {torch.__version__}.", "", END]
    with open(DOCUMENT) as file:
        text = file.read()
    head, rest = text.split(BEGIN)
    with open(DOCUMENT, "w") as file:
        file.write(head + "\n".join(lines) + rest.split(END, 1)[1])


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--lighter", default="build/lighter")
    parser.add_argument("--write", action="store_true", help=f"put the table into {DOCUMENT}")
    parser.add_argument("names", nargs="*")
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)
    rows, failed = [], 0
    with tempfile.TemporaryDirectory() as folder:
        for case in goldens.CASES:
            if options.names and case[0] not in options.names:
                continue
            added, good = check_case(case, options.lighter, os.path.join(folder, "model"))
            rows += added
            failed += not good
    print(f"{len(rows)} checkpoints, {failed} cases outside their bounds")
    if options.write and not options.names:
        write_table(rows)
    return failed > 0


if __name__ == "__main__":
    sys.exit(main())
