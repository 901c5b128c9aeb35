#!/usr/bin/env python3
"""Compares build/tests/text/tokenizer/tokenizer_test with the `tokenizers` library on random text.

    oracle_tokenizers.py [--cases N] [--seed S] [--build DIR]

The golden tokenizers of tests/golden/text, and the same models behind random chains of
normalisers, pre-tokenisers and decoders, encode and decode the nasty corpus and random text. Ids,
decoded text and streamed text must be equal. Exits 1 on the first few differences. Needs the PyPI
package tokenizers.
"""
import argparse
import copy
import glob
import json
import os
import random
import subprocess
import sys
import tempfile

os.environ["RUST_BACKTRACE"] = "0"

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import make_tokenizer_goldens as goldens
from tokenizers import Tokenizer

DIFFERENCES_MAX = 10


class Ours:
    """The test program, answering one line for one line."""

    def __init__(self, program, json_text):
        self.file = tempfile.NamedTemporaryFile("w", suffix=".json", encoding="utf-8")
        self.file.write(json_text)
        self.file.flush()
        self.process = subprocess.Popen([program, "--cases", self.file.name], stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, text=True)

    def ask(self, line):
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the test program ended at {line[:200]!r}")
        return answer.rstrip("\n")

    def encode(self, text, add_special=True):
        data = text if isinstance(text, bytes) else text.encode("utf-8")
        answer = self.ask(("e " if add_special else "E ") + data.hex())
        return [int(i) for i in answer.split(",") if i] if not answer.startswith("!") else answer

    def decode(self, kind, ids):
        answer = self.ask(f"{kind} {','.join(map(str, ids))}")
        return bytes.fromhex(answer).decode("utf-8") if not answer.startswith("!") else answer

    def close(self):
        self.process.stdin.close()
        self.process.wait()
        self.file.close()


def is_panic(error):
    """The library panics on some chains: Strip of an empty token, added tokens that overlap."""
    return "panic" in type(error).__name__.lower()


class Comparison:
    def __init__(self):
        self.compared = 0
        self.differences = 0

    def check(self, name, what, given, wanted, got):
        self.compared += 1
        if wanted == got:
            return
        self.differences += 1
        print(f"{name}: {what} of {given!r:.300}")
        print(f"  library: {wanted!r:.300}\n  ours:    {got!r:.300}")
        if self.differences >= DIFFERENCES_MAX:
            sys.exit(1)

    def compare(self, name, json_text, texts, rng, program):
        library = Tokenizer.from_str(json_text)
        ours = Ours(program, json_text)
        limit = library.get_vocab_size(with_added_tokens=True)
        for text in texts:
            special = rng.random() < 0.7
            try:
                ids = library.encode(goldens.sane(text), add_special_tokens=special).ids
            except BaseException as error:
                if not is_panic(error):
                    raise
                continue
            self.check(name, "ids", text, ids, ours.encode(text, special))
            if rng.random() < 0.5:
                ids = [rng.randrange(limit) for _ in range(rng.randint(0, 12))]
                ids = [i for i in ids if library.id_to_token(i) is not None]
            skip = rng.random() < 0.5
            try:
                wanted = library.decode(ids, skip_special_tokens=skip)
            except BaseException as error:
                if not is_panic(error):
                    raise
                continue
            self.check(name, "text", ids, wanted, ours.decode("D" if skip else "d", ids))
            self.check(name, "stream", ids, wanted, ours.decode("S" if skip else "s", ids))
        ours.close()


NORMALIZERS = [
    {"type": "NFC"}, {"type": "NFD"}, {"type": "NFKC"}, {"type": "NFKD"}, {"type": "Lowercase"},
    {"type": "StripAccents"}, {"type": "Prepend", "prepend": "▁"}, {"type": "Prepend",
                                                                    "prepend": " x"},
    {"type": "Strip", "strip_left": True, "strip_right": False},
    {"type": "Strip", "strip_left": False, "strip_right": True},
    {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
    {"type": "Replace", "pattern": {"String": "aa"}, "content": "b"},
    {"type": "Replace", "pattern": {"Regex": "\\s+"}, "content": " "},
    {"type": "Replace", "pattern": {"Regex": "[aeiou]+"}, "content": "-"},
    {"type": "Replace", "pattern": {"Regex": "\\p{M}"}, "content": ""},
    {"type": "Replace", "pattern": {"Regex": "^\\s|(?<=l)l"}, "content": "<s>"},
]
BEHAVIORS = ["Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous"]
REGEXES = [goldens.LLAMA3_REGEX, goldens.TEKKEN_REGEX, *goldens.DEEPSEEK_V3_REGEXES,
           *goldens.DEEPSEEK_V2_REGEXES, "\\w+", "\\W", "\\b", "a*", "(?=[A-Z])",
           "[\\p{Lu}\\p{N}]", "\\p{Sc}|\\p{Han}|x{2,}",
           "[[:punct:]]+", "[[:alpha:]]", "\\d+", "\\X", "$", "^", "\\h", "."]


def random_split(rng):
    if rng.random() < 0.2:
        pattern = {"String": rng.choice([" ", "", "a", "ll", "▁", "\n", ".", "(", "é"])}
    else:
        pattern = {"Regex": rng.choice(REGEXES)}
    return {"type": "Split", "pattern": pattern, "behavior": rng.choice(BEHAVIORS),
            "invert": rng.random() < 0.3}


def random_metaspace(rng):
    return {"type": "Metaspace", "replacement": rng.choice("▁▁_"),
            "prepend_scheme": rng.choice(["always", "first", "never"]), "split": rng.random() < 0.5}


def random_pre_tokenizer(rng):
    kind = rng.randrange(9)
    if kind == 0:
        return {"type": "Whitespace"}
    if kind == 1:
        return {"type": "WhitespaceSplit"}
    if kind == 2:
        return {"type": "Punctuation", "behavior": rng.choice(BEHAVIORS)}
    if kind == 3:
        return {"type": "Digits", "individual_digits": rng.random() < 0.5}
    if kind == 4:
        return random_metaspace(rng)
    if kind == 5:
        return goldens.byte_level(rng.random() < 0.5, True, rng.random() < 0.5)
    return random_split(rng)


def random_decoder(rng):
    kind = rng.randrange(8)
    if kind == 0:
        return random_metaspace(rng)
    if kind == 1:
        return goldens.byte_level(True, True, True)
    if kind == 2:
        return {"type": "ByteFallback"}
    if kind == 3:
        return {"type": "Fuse"}
    if kind == 4:
        return {"type": "Strip", "content": rng.choice(" ▁a"), "start": rng.randrange(3),
                "stop": rng.randrange(3)}
    if kind == 5:
        return {"type": "Replace", "pattern": {"Regex": rng.choice(["\\s+", "[a-e]", "▁?",
                                                                    "l+o?"])},
                "content": rng.choice(["", " ", "xyz"])}
    return {"type": "Replace", "pattern": {"String": rng.choice(["▁", " ", "Ġ", "ll", "", "aab",
                                                                 "é", "��"])},
            "content": rng.choice(["", " ", "a", "ll"])}


def random_added(rng, content, model_vocab):
    return {"id": 0, **goldens.added(content, special=rng.random() < 0.5,
                                     normalized=rng.random() < 0.5,
                                     single_word=rng.random() < 0.3, lstrip=rng.random() < 0.3,
                                     rstrip=rng.random() < 0.3)}


def random_chain(rng, base):
    """A golden model behind another pipeline."""
    mixed = copy.deepcopy(base)
    mixed["normalizer"] = goldens.sequence("normalizers", rng.choices(NORMALIZERS,
                                                                      k=rng.randrange(4)))
    mixed["pre_tokenizer"] = goldens.sequence(
        "pretokenizers", [random_pre_tokenizer(rng) for _ in range(rng.randrange(4))])
    mixed["decoder"] = goldens.sequence("decoders",
                                        [random_decoder(rng) for _ in range(rng.randrange(5))])
    if rng.random() < 0.2:
        mixed["normalizer"] = rng.choice([None, rng.choice(NORMALIZERS)])
    if rng.random() < 0.2:
        mixed["pre_tokenizer"] = rng.choice([None, random_pre_tokenizer(rng)])
    if rng.random() < 0.2:
        mixed["decoder"] = None
    contents = rng.sample(goldens.SPECIALS + ["the", " ", "  ", "ll", "\n", "é", "A", "▁", "xx",
                                              "a b"], 8)
    mixed["added_tokens"] = [random_added(rng, c, mixed["model"]["vocab"]) for c in contents]
    model = mixed["model"]
    if model["vocab"].get("<unk>") is not None and rng.random() < 0.5:
        model["unk_token"] = "<unk>"
    model["fuse_unk"] = rng.random() < 0.5
    model["byte_fallback"] = rng.random() < 0.5
    model["ignore_merges"] = rng.random() < 0.3
    return mixed


def random_texts(rng, count):
    for _ in range(count):
        text = goldens.random_text(rng, rng.choice([1, 3, 10, 30, 100]))
        if rng.random() < 0.15:
            data = bytearray(text.encode("utf-8"))
            for _ in range(rng.randint(1, 4)):
                data[rng.randrange(len(data))] = rng.randrange(256)
            yield bytes(data)
        else:
            yield text


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cases", type=int, default=40000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--build", default="build")
    parser.add_argument("--only", help="one family")
    parser.add_argument("--chain", type=int, help="only the random chain of this number")
    args = parser.parse_args()
    program = os.path.join(args.build, "tests", "text", "tokenizer_test")
    if not os.path.exists(program):
        subprocess.run(["make", f"B={args.build}", program], check=True, stdout=sys.stderr)
    comparison = Comparison()
    rng = random.Random(args.seed)
    bases = {}
    for path in sorted(glob.glob(os.path.join(goldens.FOLDER, "*.tokenizer.json"))):
        with open(path, encoding="utf-8") as file:
            bases[os.path.basename(path).split(".")[0]] = json.load(file)
    per_family = args.cases // (2 * len(bases))
    for name, base in bases.items():
        if args.only in (None, name) and args.chain is None:
            texts = goldens.nasty_corpus() + list(random_texts(rng, per_family))
            comparison.compare(name, json.dumps(base), texts, rng, program)
    corpus = goldens.nasty_corpus()
    for index in range(args.cases // 2 // 60) if args.chain is None else [args.chain]:
        rng = random.Random(f"{args.seed} {index}")  # so that one chain can be had again
        name = rng.choice(list(bases))
        if args.only not in (None, name):
            continue
        chain = json.dumps(random_chain(rng, bases[name]))
        try:
            library = Tokenizer.from_str(chain)
        except BaseException:  # two added tokens with one normal form, and the like
            continue
        normalize = library.normalizer.normalize_str if library.normalizer else str
        forms = [normalize(t["content"]) for t in json.loads(chain)["added_tokens"]]
        if "" in forms or len(set(forms)) < len(forms):
            continue  # the library looks for the empty token, at times for ever; of equals for any
        texts = rng.sample(corpus, 20) + list(random_texts(rng, 40))
        before = comparison.differences
        comparison.compare(f"{name} behind chain {index}", chain, texts, rng, program)
        if comparison.differences > before:
            parts = json.loads(chain)
            print("  chain: " + json.dumps({k: v for k, v in parts.items() if k != "model"})[:3000])
    print(f"{comparison.compared} comparisons, {comparison.differences} differences")
    return comparison.differences > 0


if __name__ == "__main__":
    sys.exit(main())
