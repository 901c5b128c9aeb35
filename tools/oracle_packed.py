#!/usr/bin/env python3
"""Compares build/lighter with transformers on random checkpoints whose weights are quantised.

    HF_HUB_OFFLINE=1 python3 tools/oracle_packed.py [--lighter build/lighter] [--write] [NAME...]

Each case of tools/make_packed_goldens.py is made at twice the goldens' widths. The reference is
transformers in float32 with the weights that the tensors mean. Then

    decoded  `lighter logits --dtype float32`: within 1e-4 of the logits' standard deviation; and 64
             greedy ids, all the same
    packed   weights as they are: FP8 within the same bound where no matrix is cut through its
             blocks, else for the table
    moved    packed, on sim with every layer's FFN moved: bit for bit those of cpu

Exit status 1 when anything is outside its bound. --write puts the table into docs/fidelity.md."""
import argparse
import json
import os
import sys
import tempfile

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import numpy
import torch
import transformers

import make_packed_goldens as packed
from oracle_models import BOUND, DOCUMENT, END, run

SCALE = 2
BEGIN = "<!-- table: tools/oracle_packed.py -->"


def logits_of(lighter, folder, ids, *arguments):
    path = os.path.join(folder, "logits.npy")
    run(lighter, "logits", "--model", folder, "--input-ids", ids, "--out", path, *arguments)
    return numpy.load(path)


def greedy_of(lighter, folder, ids, count, *arguments):
    out = run(lighter, "generate", "--model", folder, "--input-ids", ids, "--max-new-tokens", str(count),
              "--temperature", "0", "--ignore-eos", "--json", *arguments)
    return json.loads(out)["output_ids"]


def compare(lighter, folder):
    """A row of the table, and whether it is within its bounds."""
    name = os.path.basename(folder)
    with open(os.path.join(folder, "expected.json"), encoding="utf-8") as file:
        expected = json.load(file)
    ids = ",".join(str(token) for token in expected["prompt"])
    wanted = numpy.fromfile(os.path.join(folder, "logits.f32"), "<f4")
    wanted = wanted.reshape(len(expected["prompt"]), -1)
    inspected = json.loads(run(lighter, "inspect", "--model", folder, "--json"))["dtypes"]
    held = max(inspected, key=lambda kind: inspected[kind]["elements"])
    plain = logits_of(lighter, folder, ids)
    found = [numpy.abs(logits - wanted) / wanted.std()
             for logits in (logits_of(lighter, folder, ids, "--dtype", "float32"), plain)]
    same = greedy_of(lighter, folder, ids, len(expected["greedy"]), "--dtype", "float32")
    moved = logits_of(lighter, folder, ids, "--device", "sim:memory=256MiB", "--offload-group-size", "1",
                      "--offload-num-in-group", "1", "--chunked-prefill-size", "7")
    exact = held.startswith("F8_E4M3") and not name.startswith("deepseek")
    good = found[0].max() <= BOUND and same == expected["greedy"] and \
        (not exact or found[1].max() <= BOUND) and (moved == plain).all()
    typical = numpy.sqrt((found[1] ** 2).mean())
    count = sum(a == b for a, b in zip(same, expected["greedy"]))
    return (f"| {name} | {held} | {found[0].max():.1e} | {count} of {len(same)} | {found[1].max():.1e} | "
            f"{typical:.1e} | {'same bits' if (moved == plain).all() else 'OTHER BITS'} |"), good


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--lighter", default="build/lighter")
    parser.add_argument("--write", action="store_true")
    parser.add_argument("names", nargs="*")
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    lines = ["| checkpoint | held as | decoded | greedy ids | packed | typical | moved |",
             "| --- | --- | --- | --- | --- | --- | --- |"]
    bad = 0
    with tempfile.TemporaryDirectory() as folder:
        for name in options.names or packed.CASES:
            packed.make(name, folder, SCALE)
            line, good = compare(options.lighter, os.path.join(folder, name))
            bad += not good
            lines.append(line)
            print(line if good else line + " OUTSIDE", flush=True)
    if options.write:
        with open(DOCUMENT, encoding="utf-8") as file:
            text = file.read()
        before, rest = text.split(BEGIN)
        after = rest.split(END, 1)[1]
        versions = f"transformers {transformers.__version__}, torch {torch.__version__}."
        with open(DOCUMENT, "w", encoding="utf-8") as file:
            file.write(before + BEGIN + "\n\n" + "\n".join(lines) + "\n\n" + versions + "\n\n" + END + after)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
