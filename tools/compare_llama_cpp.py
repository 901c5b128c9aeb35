#!/usr/bin/env python3
"""GGUF files in llama.cpp and here: the same greedy ids, and logits against the same weights dequantised.

    tools/compare_llama_cpp.py --peer FOLDER [--minutes 2] [--keep FOLDER]

A llama is trained, on the processor and for the minutes given, to know a text by heart, so that greedy answers are
decisive: with random weights every token is nearly a tie. `lighter quantize` makes a GGUF file of it in F32, and
llama-quantize one of each type of that. Then, for each file:

- 64 greedy ids here and in llama-cli, from 8 places of the text. Where they differ, the gap between the two candidates'
  logits is told, in standard deviations: activations are rounded in other ways, so a tie may fall either way.
- The logits of 128 tokens of the text here, against those of the same file with all weights dequantised by the PyPI
  package gguf, in standard deviations.

So are files that `lighter quantize` makes, and the demo model, which is a deepseek2 there, is asked for capitals.
Other families than llama: compare_llama_cpp_families.py.

FOLDER holds the programs llama-quantize and llama-cli of llama.cpp or ik_llama.cpp. Needs torch, transformers,
tokenizers, gguf and numpy. Called by hand: nobody's package has those programs.
"""
import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time

import gguf
import numpy as np

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "tests"))
sys.path.insert(0, os.path.dirname(__file__))
import demo_facts  # noqa: E402
import lighter  # noqa: E402

LENGTH, PROMPT, STARTS = 64, 24, 8
TYPES = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K_M", "Q4_K_M", "Q5_K_M", "Q6_K",
         "IQ4_NL", "IQ4_XS", "MXFP4")
PURE = ("IQ4_NL", "IQ4_XS", "MXFP4")
OURS = ("F16", "BF16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_K_S", "Q4_0", "Q3_K_S", "Q2_K")


def train(folder, minutes):
    """A llama with the demo model's tokenizer that knows the facts in one order; returns the text's ids."""
    import tokenizers
    import torch
    import transformers
    torch.manual_seed(3)
    tokenizer = tokenizers.Tokenizer.from_file(os.path.join(lighter.DEMO, "tokenizer.json"))
    facts = "".join(f"The capital of {country} is {capital}.\n" for country, capital in list(demo_facts.CAPITALS.items())[:70])
    ids = torch.tensor(tokenizer.encode(facts, add_special_tokens=False).ids)
    config = transformers.LlamaConfig(
        vocab_size=1280, hidden_size=256, intermediate_size=512, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, bos_token_id=0, eos_token_id=1, tie_word_embeddings=False)
    model = transformers.LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
    begun, step = time.monotonic(), 0
    while time.monotonic() - begun < 60 * minutes:
        share = (time.monotonic() - begun) / (60 * minutes)
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * min(1, (step + 1) / 50) * (1 - share)
        starts = torch.randint(0, len(ids) - 95, (6,))
        batch = torch.stack([ids[start:start + 96] for start in starts])
        loss = model(input_ids=batch, labels=batch).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step += 1
    print(f"trained {step} steps, loss {loss.item():.3f}, {len(ids)} ids", file=sys.stderr)
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(os.path.join(lighter.DEMO, name), folder)
    return ids.tolist()


class Peer:
    """llama.cpp's programs, or ik_llama.cpp's."""

    def __init__(self, folder):
        self.folder = folder

    def quantize(self, source, out, kind):
        """In some mixes ik_llama.cpp has types of its own for a few tensors: one type for all, then."""
        pure = ["--pure"] if kind in PURE else []
        subprocess.run([os.path.join(self.folder, "llama-quantize"), *pure, source, out, kind, "2"], check=True,
                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def greedy(self, path, text, count=LENGTH):
        """What it continues the text with, at most `count` tokens."""
        done = subprocess.run([os.path.join(self.folder, "llama-cli"), "-m", path, "-p", text, "-n", str(count), "-t", "1",
                               "--temp", "0", "--repeat-penalty", "1.0", "-c", "256", "--ignore-eos",
                               "--no-display-prompt"], check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                              stdin=subprocess.DEVNULL, timeout=120, cwd=os.path.dirname(path))  # it leaves a log
        return done.stdout.decode("utf-8", "replace")


def ids_of(model, text):
    return lighter.run_json("tokenize", "--model", model, "--no-special", stdin=text)["ids"]


def here(path, ids):
    return lighter.run_json("generate", "--model", path, "--input-ids", ",".join(map(str, ids)), "--temperature", "0",
                            "--max-new-tokens", LENGTH, "--ignore-eos", "--quiet")


def gap_of(path, ids, mine, theirs, folder):
    """How much more likely our id is to us than theirs, where the two first differ: a tie is 0."""
    at = next((i for i in range(min(len(mine), len(theirs))) if mine[i] != theirs[i]), None)
    if at is None:
        return 0.0
    row = logits_of(path, ids + mine[:at], folder)[-1]
    return float((row[mine[at]] - row[theirs[at]]) / row.std())


def compare(path, prompts, peer, folder):
    """(prompts that are continued alike for LENGTH ids, largest gap where one is not)"""
    same, gap = 0, 0.0
    for text in prompts:
        ids = lighter.run_json("tokenize", "--model", path, stdin=text)["ids"]
        mine = here(path, ids)
        theirs = peer.greedy(path, text)
        # The last token may be cut on their side, and lines end the output.
        if mine["text"].rstrip("\n") == theirs.rstrip("\n"):
            same += 1
        else:
            gap = max(gap, gap_of(path, ids, mine["output_ids"], ids_of(path, theirs.rstrip("\n")), folder))
    return same, gap


def dequantised(source, out):
    """The same file with every weight in F32."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(out, reader.fields["general.architecture"].contents())
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name in ("general.architecture", "general.file_type"):
            continue
        kind, value = field.types[0], field.contents()
        if kind == gguf.GGUFValueType.ARRAY:
            writer.add_array(field.name, value)
        else:
            writer.add_key_value(field.name, value, kind)
    for tensor in reader.tensors:
        shape = [int(n) for n in reversed(tensor.shape)]
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32).reshape(shape)
        writer.add_tensor(tensor.name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def logits_of(path, ids, folder):
    out = os.path.join(folder, "logits.npy")
    lighter.run("logits", "--model", path, "--input-ids", ",".join(map(str, ids)), "--out", out, "--quiet", check=0)
    return np.load(out).astype(np.float64)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", required=True)
    parser.add_argument("--minutes", type=float, default=2)
    parser.add_argument("--keep", help="a folder for the trained model, which is not made again if it is there")
    parser.add_argument("--only", choices=("theirs", "pure", "ours"), help="a part of the table")
    options = parser.parse_args()
    peer = Peer(options.peer)
    with tempfile.TemporaryDirectory() as folder:
        model = options.keep or os.path.join(folder, "model")
        if not os.path.exists(os.path.join(model, "ids.json")):
            ids = train(model, options.minutes)
            with open(os.path.join(model, "ids.json"), "w", encoding="utf-8") as file:
                json.dump(ids, file)
        with open(os.path.join(model, "ids.json"), encoding="utf-8") as file:
            ids = json.load(file)
        starts = range(0, len(ids) - PROMPT - LENGTH, (len(ids) - PROMPT - LENGTH) // STARTS)
        prompts = [lighter.run_json("tokenize", "--model", model, "--decode",
                                    ",".join(map(str, ids[start:start + PROMPT])))["text"] for start in starts][:STARTS]
        source, path, plain = (os.path.join(folder, name) for name in ("F32.gguf", "file.gguf", "plain.gguf"))
        lighter.run("quantize", "--model", model, "--out", source, "--type", "F32", "--pre", "deepseek-v3", check=0)
        print("| made by | type | same 64 ids | largest gap | logits: largest difference | typical |")
        print("| --- | --- | --- | --- | --- | --- |")
        work = [("llama-quantize", kind) for kind in TYPES
                if options.only != "ours" and (options.only != "pure" or kind in PURE)]
        work += [("lighter quantize", kind) for kind in OURS if options.only in (None, "ours")]
        for maker, kind in work:
            if maker == "llama-quantize":
                peer.quantize(source, path, kind)
            else:
                lighter.run("quantize", "--model", source, "--out", path, "--type", kind, "--quiet", check=0)
            same, gap = compare(path, prompts, peer, folder)
            dequantised(path, plain)
            wanted, found = (logits_of(one, ids[:128], folder) for one in (plain, path))
            difference = np.abs(found - wanted) / wanted.std()
            print(f"| {maker} | {kind} | {same} of {len(prompts)} | {'' if same == len(prompts) else f'{gap:.3f}'} | "
                  f"{difference.max():.1e} | {np.sqrt(np.mean(difference ** 2)):.1e} |", flush=True)
        if options.only in (None, "ours"):
            ask_demo(peer, path)


def ask_demo(peer, path):
    countries = list(demo_facts.CAPITALS)[::25]
    for kind in ("F32", "BF16", "Q8_0", "Q4_0"):
        lighter.run("quantize", "--model", lighter.DEMO, "--out", path, "--type", kind, "--pre", "deepseek-v3", "--quiet",
                    check=0)
        right = 0
        for country in countries:
            text = f"The capital of {country} is"
            mine = lighter.run_json("generate", "--model", path, "--prompt", text, "--temperature", "0", "--quiet")["text"]
            try:
                right += peer.greedy(path, text, 12).startswith(mine)
            except subprocess.CalledProcessError:
                print("demo model: refused there; ik_llama.cpp takes DeepSeek's own sizes only")
                return
        print(f"demo model, {kind}: {right} of {len(countries)} answers are the peer's", flush=True)


if __name__ == "__main__":
    main()
