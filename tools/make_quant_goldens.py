#!/usr/bin/env python3
"""Makes tests/golden/quant/: blocks of GGUF's quantised types as the PyPI package gguf computes them.

    python3 tools/make_quant_goldens.py [--out DIR]

    values.f32        float32 [VALUE_BLOCKS][32]: random at many magnitudes, zeros, ties, extremes
    TYPE.blocks       Q8_0 and Q4_0: the values quantised, then RANDOM_BLOCKS blocks of random bits;
                      all others: blocks of random bits, RANDOM_ELEMENTS elements; scales finite
    TYPE.f32          float32: those blocks dequantised
    versions.json     of gguf and numpy, and the seed

All little endian."""
import argparse
import json
import os
from importlib.metadata import version

import gguf
import numpy as np

SEED = 20250607
VALUE_BLOCKS = 24
RANDOM_BLOCKS = 12
TYPES = ("Q8_0", "Q4_0")
RANDOM_ELEMENTS = 768
# type: where its blocks have F16 numbers
RANDOM_TYPES = {
    "Q4_1": (0, 2), "Q5_0": (0,), "Q5_1": (0, 2), "IQ4_NL": (0,), "MXFP4": (), "Q2_K": (80, 82),
    "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,), "IQ4_XS": (0,),
}


def make_values(rng):
    values = rng.standard_normal((VALUE_BLOCKS, 32)).astype(np.float32)
    values *= np.float32(2.0) ** (np.arange(VALUE_BLOCKS, dtype=np.float32) - 16)[:, None]
    values[1] = 0
    values[2] = np.arange(-16, 16)  # halves in both types
    values[3] = np.arange(32) - 15.5
    values[4] = -values[3]
    values[5] = np.where(np.arange(32) % 3 == 0, -2.0, 2.0)  # several as far from zero
    values[6] = np.float32(1e-9) * (np.arange(32) - 9)  # a scale that F16 rounds to zero
    values[7] = np.float32(3e-6) * (np.arange(32) - 9)  # ... and to a subnormal
    values[8] = np.arange(32) * np.float32(2.0**18)  # ... and, in one type, to infinity
    values[9, :] = 0
    values[9, 17] = -127
    values[10] = (np.arange(32) + 0.5) * 4 - 64
    values[10, 31] = 127
    return values


def random_blocks(rng, size_bytes):
    blocks = rng.integers(0, 256, (RANDOM_BLOCKS, size_bytes), dtype=np.uint8)
    scales = (rng.standard_normal(RANDOM_BLOCKS) * 10.0 ** rng.integers(-7, 4, RANDOM_BLOCKS)).astype("<f2")
    blocks[:, :2] = scales.view(np.uint8).reshape(RANDOM_BLOCKS, 2)
    return blocks


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="tests/golden/quant")
    out = parser.parse_args().out
    rng = np.random.default_rng(SEED)
    values = make_values(rng)
    os.makedirs(out, exist_ok=True)
    values.astype("<f4").tofile(os.path.join(out, "values.f32"))
    for name in TYPES:
        kind = gguf.GGMLQuantizationType[name]
        size_bytes = gguf.GGML_QUANT_SIZES[kind][1]
        with np.errstate(over="ignore"):
            blocks = gguf.quants.quantize(values, kind).reshape(VALUE_BLOCKS, size_bytes)
        blocks = np.concatenate([blocks, random_blocks(rng, size_bytes)])
        with np.errstate(invalid="ignore"):
            back = gguf.quants.dequantize(blocks, kind).astype("<f4")
        blocks.tofile(os.path.join(out, f"{name.lower()}.blocks"))
        back.tofile(os.path.join(out, f"{name.lower()}.f32"))
    for name, places in RANDOM_TYPES.items():
        kind = gguf.GGMLQuantizationType[name]
        elements, size_bytes = gguf.GGML_QUANT_SIZES[kind]
        count = RANDOM_ELEMENTS // elements
        blocks = rng.integers(0, 256, (count, size_bytes), dtype=np.uint8)
        for at in places:
            scales = rng.standard_normal(count) * 10.0 ** rng.integers(-7, 4, count)
            blocks[:, at:at + 2] = scales.astype("<f2").view(np.uint8).reshape(count, 2)
        if name == "MXFP4":
            blocks[:5, 0] = (0, 1, 2, 128, 255)
        with np.errstate(over="ignore"):
            back = gguf.quants.dequantize(blocks, kind).astype("<f4")
        blocks.tofile(os.path.join(out, f"{name.lower()}.blocks"))
        back.tofile(os.path.join(out, f"{name.lower()}.f32"))
    with open(os.path.join(out, "versions.json"), "w", encoding="utf-8") as file:
        json.dump({"gguf": version("gguf"), "numpy": np.__version__, "seed": SEED}, file, indent=1)
        file.write("\n")


if __name__ == "__main__":
    main()
