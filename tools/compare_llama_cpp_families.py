#!/usr/bin/env python3
"""Every family as GGUF, in llama.cpp and here: the same logits of the same file.

    HF_HUB_OFFLINE=1 python3 tools/compare_llama_cpp_families.py --llama-cpp FOLDER [--write] [NAME...]

Random checkpoints of each family (tools/make_model_goldens.py, four times the goldens' widths, weights in F32) become
GGUF files by llama.cpp's own conversion script, so that nothing of such a file is our idea of it, and by `lighter
quantize`. Logits are computed here and by llama.cpp's library, both in F32, and compared, in standard deviations:

    file     the script's file, here and there: does it mean the same to both?
    model    the script's file there, the folder here: is what the script makes of it the model that was meant?
    made     our file there, the folder here: does llama.cpp find in it what we meant?

and 64 greedy ids, of which the first that differs must be a tie: the gap between the two candidates is told. Exit
status 1 when a difference or a gap is above its bound. The script wants a tokenizer, and is told that there is none.

With --quantised the files are `lighter quantize`'s in Q8_0, Q4_0, Q4_K_M and Q6_K, of checkpoints whose matrices are
whole blocks of 256 and which are trained to know one text by heart, of which they are asked the second part: so
candidates are far apart. x is rounded to 8 bits here and there, and not to the same. Ids must be alike, or first differ
where the gap is below twice the largest difference of a logit, and our typical distance from the logits of the same
weights in F32 must be below twice llama.cpp's.

--write puts the table into docs/fidelity.md.

FOLDER is llama.cpp's source. Needs the package llama-cpp-python (its library may be another, with LLAMA_CPP_LIB_PATH),
transformers and torch. Called by hand: building that package takes long."""
import argparse
import contextlib
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "tests"))
import numpy as np

import lighter

SCALE = 4
PROMPT_TOKENS = 100
GREEDY_TOKENS = 64
CONTEXT = 256
BOUND = 2e-4
# What is computed in another way there: GELU is a table of F16 numbers, and for products with MXFP4 x is rounded to 8
# bits here and there, but not to the same.
BOUNDS = {"gemma2": 1e-2, "gemma3": 1e-2, "gemma3_sees": 1e-2, "gpt_oss_mxfp4": 5e-2,
          "deepseek_v2_lite": 1e-3}  # 27 layers
NAMES = ["llama_gqa_tied", "llama_biases_mha", "llama_llama3", "llama_linear", "llama_yarn", "mistral", "mixtral",
         "qwen2", "qwen2_tied_yarn", "qwen2_moe", "qwen3", "qwen3_moe", "olmoe", "glm4", "glm4_moe", "phi3",
         "phi3_long", "gemma2", "gemma3", "gemma3_sees", "granite", "granite_tied", "granite_moe",
         "granite_moe_shared", "llama4_plain", "gpt_oss", "gpt_oss_mxfp4", "deepseek_v2_lite", "deepseek_v3"]
# Where llama.cpp makes another model of the script's file than is meant: it does not look at YaRN's attention_factor
# under the key that the script gives it.
OTHERWISE = ("qwen2_tied_yarn",)
DOCUMENT = "docs/fidelity.md"
BEGIN, END = "<!-- table: tools/compare_llama_cpp_families.py -->", "<!-- end of table -->"
QUANTISED_BEGIN = "<!-- table: tools/compare_llama_cpp_families.py --quantised -->"
HEADS = ["model", "file", "model", "made", "same 64 ids; gap"]
QUANTISED_NAMES = ["llama_gqa_tied", "qwen2", "qwen3", "mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "glm4",
                   "glm4_moe", "phi3", "gemma2", "gemma3", "granite", "granite_moe", "granite_moe_shared",
                   "llama4_plain", "gpt_oss", "deepseek_v2_lite", "deepseek_v3"]
QUANTISED_TYPES = ["Q8_0", "Q4_0", "Q4_K_M", "Q6_K"]
QUANTISED_HEADS = ["model", *QUANTISED_TYPES, "known", "ours", "llama.cpp's"]
QUANTISED_SCALE = 8
BLOCK = 256  # of K types
STEPS, RATE, NOISE = 200, 1e-3, 0.1  # of training

CONVERT = """
import sys
source, folder, out = sys.argv[1:]
sys.path[:0] = [source + "/gguf-py", source]
import conversion.base, convert_hf_to_gguf
find = convert_hf_to_gguf.get_model_class
def below(one):
    yield one
    for other in one.__subclasses__():
        yield from below(other)
def set_vocab(self):
    self._set_vocab_none()
    self.gguf_writer.add_vocab_size(self.hparams["vocab_size"])
def without_vocabulary(*arguments, **more):
    found = find(*arguments, **more)
    for one in below(conversion.base.TextModel):
        one.set_vocab = set_vocab
    return found
convert_hf_to_gguf.get_model_class = without_vocabulary
sys.argv = ["convert", folder, "--outfile", out, "--outtype", "f32"]
convert_hf_to_gguf.main()
"""


def convert(source, folder, out, vocab):
    """llama.cpp's script, in a process of its own: its package gguf is not the one that is installed."""
    copy = folder + "_to_convert"
    shutil.copytree(folder, copy)
    with open(os.path.join(copy, "tokenizer.json"), "w", encoding="utf-8") as file:  # Gemma 3's tokens are counted
        json.dump({"model": {"vocab": {str(i): i for i in range(vocab)}}, "added_tokens": []}, file)
    done = subprocess.run([sys.executable, "-c", CONVERT, source, copy, out], capture_output=True, text=True)
    shutil.rmtree(copy)
    if done.returncode != 0:
        raise RuntimeError("the script: " + done.stderr.strip()[-600:])


class Peer:
    """A file in llama.cpp's library."""

    def __init__(self, path):
        import llama_cpp
        self.api = llama_cpp
        parameters = llama_cpp.llama_model_default_params()
        parameters.n_gpu_layers = 0
        parameters.use_extra_bufts = False  # AMX there crashes where the system does not allow tiles
        self.model = llama_cpp.llama_model_load_from_file(path.encode(), parameters)
        if not self.model:
            raise RuntimeError(f"llama.cpp refuses {path}")
        parameters = llama_cpp.llama_context_default_params()
        parameters.n_ctx = parameters.n_batch = parameters.n_ubatch = CONTEXT
        parameters.n_threads = parameters.n_threads_batch = 1
        parameters.type_k = parameters.type_v = llama_cpp.GGML_TYPE_F32
        parameters.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self.context = llama_cpp.llama_init_from_model(self.model, parameters)
        self.count = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))

    def decode(self, ids, first):
        """Logits of ids at the positions from `first` on."""
        batch = self.api.llama_batch_init(len(ids), 0, 1)
        batch.n_tokens = len(ids)
        for i, token in enumerate(ids):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, first + i, 1, 1
            batch.seq_id[i][0] = 0
        if self.api.llama_decode(self.context, batch) != 0:
            raise RuntimeError("llama_decode failed")
        rows = [np.ctypeslib.as_array(self.api.llama_get_logits_ith(self.context, i), (self.count,)).copy()
                for i in range(len(ids))]
        self.api.llama_batch_free(batch)
        return np.stack(rows)

    def close(self):
        self.api.llama_free(self.context)
        self.api.llama_model_free(self.model)


def theirs(path, ids, count=GREEDY_TOKENS):
    """Logits of the prompt, and the greedy continuation of `count` tokens."""
    peer = Peer(path)
    logits = peer.decode(ids, 0)
    last, found = logits[-1], []
    for i in range(count):
        found.append(int(last.argmax()))
        last = peer.decode(found[-1:], len(ids) + i)[0]
    peer.close()
    return logits, found


def logits_of(path, ids, folder):
    out = os.path.join(folder, "logits.npy")
    text = ",".join(map(str, ids))
    lighter.run("logits", "--model", path, "--input-ids", text, "--out", out, "--context-length", CONTEXT, "--quiet",
                check=0)
    return np.load(out)


def ours(path, ids, folder):
    greedy = lighter.run_json("generate", "--model", path, "--input-ids", ",".join(map(str, ids)), "--temperature", "0",
                              "--max-new-tokens", GREEDY_TOKENS, "--ignore-eos", "--context-length", CONTEXT, "--quiet")
    return logits_of(path, ids, folder), greedy["output_ids"]


def gap_of(path, ids, mine, other, folder):
    """How much more likely our id is to us than theirs, where the two first differ: a tie is 0."""
    at = next((i for i in range(GREEDY_TOKENS) if mine[i] != other[i]), None)
    if at is None:
        return 0.0
    row = logits_of(path, ids + mine[:at], folder)[-1]
    return float((row[mine[at]] - row[other[at]]) / row.std())


def whole_ramp(values):
    """llama.cpp ends YaRN's ramp at whole pairs, gpt-oss does not: a theta with which both are the same."""
    rope = values["rope_parameters"]
    turns = math.log(rope["original_max_position_embeddings"] / (2 * math.pi))
    rope["rope_theta"] = math.exp(values["head_dim"] * turns / (2 * 2.9999999))
    return values


def every_sixth(values):
    """Gemma 3's layers as published: five with a window, one without. The script knows no others."""
    kinds = ["sliding_attention"] * 5 + ["full_attention"]
    return values | {"num_hidden_layers": len(kinds), "layer_types": kinds}


def as_many_as_lite(values):
    """By its layers llama.cpp knows the model without q_lora_rank."""
    return values | {"num_hidden_layers": 27}


CHANGES = {"gpt_oss": whole_ramp, "gpt_oss_mxfp4": whole_ramp, "gemma3": every_sixth, "gemma3_sees": every_sixth,
           "deepseek_v2_lite": as_many_as_lite}


def whole_blocks(values):
    """Sizes with which every matrix has whole blocks of each type."""
    names = [name for name in values if "intermediate_size" in name or name in ("q_lora_rank", "kv_lora_rank")]
    values = values | {name: -(-values[name] // BLOCK) * BLOCK for name in names if values[name]}
    for name in ("head_dim", "query_pre_attn_scalar", "v_head_dim"):
        if name in values:
            values = values | {name: -(-values[name] // 64) * 64}
    return values


@contextlib.contextmanager
def disturbed(matrices):
    """With about the noise that 4 bits bring: what is learnt under it survives them."""
    import torch
    noises = [torch.randn_like(one) * one.square().mean().sqrt() * NOISE for one in matrices]
    for one, noise in zip(matrices, noises):
        one += noise
    yield
    for one, noise in zip(matrices, noises):
        one -= noise


def teach(text):
    """What fills a model with weights that know the text by heart."""
    def prepare(model, seed):
        import torch
        import make_model_goldens as goldens
        goldens.randomise(model, seed)
        torch.manual_seed(seed)
        ids = torch.tensor([text])
        matrices = [one.data for one in model.parameters() if one.dim() > 1]
        optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.01)
        for step in range(STEPS):
            for group in optimizer.param_groups:
                group["lr"] = RATE * min(1, (step + 1) / 20, (STEPS - step) / 50)
            optimizer.zero_grad()
            with disturbed(matrices):
                loss = model(input_ids=ids, labels=ids).loss
                loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        print(f"trained to a loss of {loss.item():.3f}", file=sys.stderr)
    return prepare


def make(name, folder):
    """The checkpoint; returns its vocabulary's size."""
    import make_model_goldens as goldens
    import make_packed_goldens as packed
    change = CHANGES.get(name, lambda values: values)
    if name == "gpt_oss_mxfp4":
        family, config_of, how, settings = packed.CASES[name]
        packed.CASES[name] = (family, lambda scale: change(config_of(scale)), how, settings)
        packed.make(name, os.path.dirname(folder), SCALE)
        os.rename(os.path.join(os.path.dirname(folder), name), folder)
        return goldens.VOCAB
    goldens.make_checkpoint(case_of(name, change), SCALE, "float32", folder)
    name_scoring(name, folder)
    return goldens.VOCAB


def case_of(name, change):
    """The goldens' case with its configuration changed, in one file, without what llama.cpp does not read."""
    import make_model_goldens as goldens
    case = next(case for case in goldens.CASES if case[0] == name)
    how = tuple(one for one in case[4] if one not in ("mtp", "fused", "shards"))
    return (name, case[1], lambda scale: change(case[2](scale)), None, how)


def name_scoring(name, folder):
    """DeepSeek-V3's configuration in full."""
    if name == "deepseek_v3":  # as published; transformers takes it for granted, the script does not
        path = os.path.join(folder, "config.json")
        with open(path, encoding="utf-8") as file:
            config = json.load(file)
        with open(path, "w", encoding="utf-8") as file:
            json.dump(config | {"scoring_func": "sigmoid"}, file)


def compare(name, source, folder):
    """The table's row, and whether all is within its bound."""
    import make_model_goldens as goldens
    model, path, made = (os.path.join(folder, one) for one in ("model", "theirs.gguf", "ours.gguf"))
    ids = goldens.make_prompt(PROMPT_TOKENS)
    convert(source, model, path, make(name, model))
    lighter.run("quantize", "--model", model, "--out", made, "--type", "F32", "--quiet", check=0)
    there, mine = theirs(path, ids), ours(model, ids, folder)
    pairs = [(path, ours(path, ids, folder), there), (model, mine, there), (model, mine, theirs(made, ids))]
    differences = [abs(a[0] - b[0]).max() / b[0].std() for _, a, b in pairs]
    gaps = [gap_of(where, ids, a[1], b[1], folder) for where, a, b in pairs]
    fine = all(max(differences[i], gaps[i]) <= BOUNDS.get(name, BOUND)
               for i in range(2 if name in OTHERWISE else 0, 3))
    same = sum(a[1] == b[1] for _, a, b in pairs)
    cells = [f"{one:.1e}" for one in differences] + [f"{same} of 3" + (f"; {max(gaps):.1e}" if same < 3 else "")]
    return (name, *cells), fine


def compare_type(path, plain, ids, folder):
    """A quantised file here and there: the table's cell, the mean squares of ours and of theirs from the same weights
    in F32 (`plain`), whether all is explained, and their answer."""
    mine, there = ours(path, ids, folder)[1], theirs(path, ids)[1]
    whole = ids + mine[:-1]
    all_three = logits_of(path, whole, folder), theirs(path, whole, 0)[0], logits_of(plain, whole, folder)
    here, other, exact = (one / all_three[2].std() for one in all_three)
    worst = abs(here - other).max(axis=1)
    squares = [float(((one - exact) ** 2).mean()) for one in (here, other)]
    at = next((i for i in range(GREEDY_TOKENS) if mine[i] != there[i]), GREEDY_TOKENS)
    if at == GREEDY_TOKENS:
        return f"{at}; {worst.max():.1e}", squares, True, there
    row = len(ids) - 1 + at
    gap = here[row, mine[at]] - here[row, there[at]]
    return f"{at} (gap {gap:.1e}); {worst.max():.1e}", squares, gap <= 2 * np.delete(worst, row).max(), there


def compare_quantised(name, folder):
    """The table's row, and whether all is explained."""
    import compare_llama_cpp
    import make_model_goldens as goldens
    model, path, plain = (os.path.join(folder, one) for one in ("model", "quantised.gguf", "plain.gguf"))
    text = goldens.make_prompt(PROMPT_TOKENS + GREEDY_TOKENS)
    ids, answer = text[:PROMPT_TOKENS], text[PROMPT_TOKENS:]
    change = CHANGES.get(name, lambda values: values)
    case = case_of(name, lambda values: change(whole_blocks(values)))
    goldens.make_checkpoint(case, QUANTISED_SCALE, "float32", model, prepare=teach(text))
    name_scoring(name, model)
    cells, noise, known, fine = [], [], [], True
    for kind in QUANTISED_TYPES:
        lighter.run("quantize", "--model", model, "--out", path, "--type", kind, "--quiet", check=0)
        compare_llama_cpp.dequantised(path, plain)
        cell, squares, explained, found = compare_type(path, plain, ids, folder)
        fine = fine and explained
        cells.append(cell)
        noise.append(squares)
        known.append(sum(a == b for a, b in zip(found, answer)))
        os.remove(path)
        os.remove(plain)
    typical = np.sqrt(np.mean(noise, axis=0))
    row = (name, *cells, str(min(known)), *(f"{one:.1e}" for one in typical))
    return row, fine and typical[0] <= 2 * typical[1]


def write_table(rows, begin, heads):
    lines = [begin, "", "| " + " | ".join(heads) + " |", "| --- " * len(heads) + "|"]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    with open(DOCUMENT, encoding="utf-8") as file:
        head, rest = file.read().split(begin)
    with open(DOCUMENT, "w", encoding="utf-8") as file:
        file.write(head + "\n".join([*lines, "", END]) + rest.split(END, 1)[1])


def main():
    import torch
    import transformers
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llama-cpp", required=True)
    parser.add_argument("--write", action="store_true", help=f"put the table into {DOCUMENT}")
    parser.add_argument("--quantised", action="store_true", help="compare quantised files")
    parser.add_argument("names", nargs="*")
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)
    rows, failed = [], 0
    for name in options.names or (QUANTISED_NAMES if options.quantised else NAMES):
        with tempfile.TemporaryDirectory() as folder:
            try:
                row, fine = compare_quantised(name, folder) if options.quantised else \
                    compare(name, options.llama_cpp, folder)
            except (RuntimeError, AssertionError) as error:
                row, fine = (name, str(error)), False
        rows.append(row)
        failed += not fine
        print(f"{'ok  ' if fine else 'FAIL'} " + "  ".join(row), flush=True)
    if options.write and not options.names:
        write_table(rows, *((QUANTISED_BEGIN, QUANTISED_HEADS) if options.quantised else (BEGIN, HEADS)))
    return failed > 0


if __name__ == "__main__":
    sys.exit(main())
