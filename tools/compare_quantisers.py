#!/usr/bin/env python3
"""How much is lost of weights, here and in ggml: the root mean square error of each quantised type.

    tools/compare_quantisers.py LIBGGML_BASE

LIBGGML_BASE is llama.cpp's libggml-base.so, whose quantisers are called without an importance matrix, as
llama-quantize calls them. Both sides are given the same values (normal ones; Student's t with 4 degrees of
freedom, whose outliers are like those of trained weights; and a trained matrix of models/demo), and the PyPI
package gguf turns both results back. Needs numpy and gguf."""
import argparse
import ctypes
import json
import os
import subprocess
import tempfile

import gguf
import numpy as np

TYPES = ("Q8_0", "Q4_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")
ROWS, COLS = 256, 4096


def demo_weights():
    """The demo model's embedding, whose rows are joined to make whole blocks."""
    path = os.path.join(os.path.dirname(__file__), "..", "models", "demo", "model.safetensors")
    with open(path, "rb") as file:
        data = file.read()
    head = int.from_bytes(data[:8], "little")
    header = json.loads(data[8:8 + head])
    begin, end = header["model.embed_tokens.weight"]["data_offsets"]
    half = np.frombuffer(data[8 + head + begin:8 + head + end], "<u2").astype(np.uint32)
    return (half << 16).view(np.float32)[:40 * COLS].reshape(40, COLS)


def ours(values, kind, folder):
    source, out = os.path.join(folder, "m.gguf"), os.path.join(folder, "o.gguf")
    writer = gguf.GGUFWriter(source, "llama")
    writer.add_block_count(1)
    writer.add_embedding_length(COLS)
    writer.add_context_length(64)
    writer.add_feed_forward_length(len(values))
    writer.add_head_count(32)
    writer.add_layer_norm_rms_eps(1e-5)
    zeros = np.zeros((COLS, COLS), np.float32)
    shapes = {"token_embd": (64, COLS), "output_norm": (COLS,), "blk.0.attn_norm": (COLS,), "blk.0.ffn_norm": (COLS,),
              "blk.0.ffn_gate": (len(values), COLS), "blk.0.ffn_down": (COLS, len(values))}
    for base in ("q", "k", "v", "output"):
        writer.add_tensor(f"blk.0.attn_{base}.weight", zeros, raw_dtype=gguf.GGMLQuantizationType.F32)
    for name, shape in shapes.items():
        writer.add_tensor(name + ".weight", np.zeros(shape, np.float32))
    writer.add_tensor("blk.0.ffn_up.weight", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    subprocess.run(["build/lighter", "quantize", "--model", source, "--out", out, "--type", "Q8_0", "--quiet",
                    "--tensor-type", f"blk.0.ffn_up.weight={kind}"], check=True, stdout=subprocess.DEVNULL)
    tensor = [one for one in gguf.GGUFReader(out).tensors if one.name == "blk.0.ffn_up.weight"][0]
    assert tensor.tensor_type.name == kind
    return gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(values.shape)


def ggmls(library, values, kind):
    number = gguf.GGMLQuantizationType[kind]
    elements, size = gguf.GGML_QUANT_SIZES[number]
    blocks = np.zeros((len(values), values.shape[1] // elements * size), np.uint8)
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    library.ggml_quantize_chunk(ctypes.c_int(number), values.ctypes.data_as(ctypes.c_void_p),
                                blocks.ctypes.data_as(ctypes.c_void_p), ctypes.c_int64(0),
                                ctypes.c_int64(len(values)), ctypes.c_int64(values.shape[1]), None)
    return gguf.quants.dequantize(blocks, number).reshape(values.shape)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("library")
    library = ctypes.CDLL(parser.parse_args().library)
    rng = np.random.default_rng(20260101)
    sources = {"normal": rng.standard_normal((ROWS, COLS)).astype(np.float32),
               "t4": rng.standard_t(4, (ROWS, COLS)).astype(np.float32), "demo": demo_weights()}
    print("| type | " + " | ".join(f"{name}: here | ggml | ratio" for name in sources) + " |")
    print("| --- |" + " --- |" * (3 * len(sources)))
    with tempfile.TemporaryDirectory() as folder:
        for kind in TYPES:
            cells = []
            for values in sources.values():
                size = np.sqrt(np.mean(np.square(values, dtype=np.float64)))
                losses = [np.sqrt(np.mean(np.square(back.astype(np.float64) - values))) / size
                          for back in (ours(values, kind, folder), ggmls(library, values, kind))]
                cells += [f"{losses[0]:.5f}", f"{losses[1]:.5f}", f"{losses[0] / losses[1]:.3f}"]
            print(f"| {kind} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
