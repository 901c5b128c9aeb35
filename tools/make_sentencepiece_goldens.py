#!/usr/bin/env python3
"""Makes tests/golden/text/sentencepiece: a small tokenizer.model, and what transformers' LlamaTokenizer and
sentencepiece itself make of the corpus with it.

    make_sentencepiece_goldens.py             expectations anew, from the model that is there
    make_sentencepiece_goldens.py --train     trains the model anew first, on the project's documents

Needs the PyPI packages transformers, sentencepiece and protobuf (made with 5.24.0, 0.2.3 and 7.36.2).
"""
import argparse
import glob
import json
import os
import shutil
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"
import sentencepiece
from transformers import LlamaTokenizer

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
TEXTS = os.path.join(ROOT, "tests", "golden", "text")
FOLDER = os.path.join(TEXTS, "sentencepiece")
MODEL = os.path.join(FOLDER, "tokenizer.model")


def token(content, special=True, **flags):
    return {"content": content, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False,
            "special": special, **flags}


# What else the folder has: of each file its name and content.
CASES = {
    "alone": {},
    "first": {"tokenizer_config.json": {"legacy": False, "add_bos_token": True, "add_eos_token": True, "bos_token": "<s>",
                                        "eos_token": {"__type": "AddedToken", **token("</s>")}}},
    "bare": {"tokenizer_config.json": {"legacy": False, "add_bos_token": True, "add_prefix_space": False}},
    "chat": {"tokenizer_config.json": {"legacy": False, "add_bos_token": False, "added_tokens_decoder": {
        "0": token("<unk>"), "1": token("<s>"), "2": token("</s>", rstrip=True),
        "700": token("<|user|>", rstrip=True), "701": token("<|end|>"), "702": token("<tool>", special=False)}}},
    "old": {"tokenizer_config.json": {"legacy": False, "add_bos_token": False},
            "added_tokens.json": {"<|user|>": 700, "<|end|>": 701}},
}
CHATS = ["<|user|>\nHello there<|end|>\n", "<s><|user|> a <tool>b</s>  c", "x<|end|> <|user|>", "</s> \n y"]


def train():
    with tempfile.TemporaryDirectory() as folder:
        text = os.path.join(folder, "text")
        with open(text, "w", encoding="utf-8") as out:
            for path in sorted(glob.glob(os.path.join(ROOT, "docs", "*.md"))):
                with open(path, encoding="utf-8") as file:
                    out.write(file.read())
        sentencepiece.SentencePieceTrainer.train(
            input=text, model_prefix=os.path.join(folder, "m"), model_type="bpe", vocab_size=700,
            character_coverage=0.999, byte_fallback=True, normalization_rule_name="identity",
            remove_extra_whitespaces=False, allow_whitespace_only_pieces=True, split_digits=True,
            user_defined_symbols=["<mask>", "\n\n"], num_threads=1, minloglevel=2)
        os.makedirs(FOLDER, exist_ok=True)
        shutil.copy(os.path.join(folder, "m.model"), MODEL)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", action="store_true")
    if parser.parse_args().train:
        train()
    with open(os.path.join(TEXTS, "corpus.json"), encoding="utf-8") as file:
        texts = [text for text in json.load(file)["texts"] if isinstance(text, str) and "\x00" not in text] + CHATS
    plain = sentencepiece.SentencePieceProcessor(model_file=MODEL)
    expected = {"texts": texts, "cases": []}
    for name, files in CASES.items():
        with tempfile.TemporaryDirectory() as folder:
            shutil.copy(MODEL, folder)
            for file_name, content in files.items():
                with open(os.path.join(folder, file_name), "w", encoding="utf-8") as file:
                    json.dump(content, file)
            tokenizer = LlamaTokenizer.from_pretrained(folder)
            ids = [tokenizer.encode(text) for text in texts]
            expected["cases"].append({"name": name, "files": files, "encode": ids,
                                      "decode": [tokenizer.decode(one) for one in ids]})
    # "legacy" is SentencePiece's own way, but for tokens that transformers finds in any text before all else.
    own = [text for text in texts if not any(one in text for one in ("<s>", "</s>", "<unk>", "<mask>", "\n\n"))]
    ids = plain.encode(own)
    expected["sentencepiece"] = {"texts": own, "encode": ids, "decode": plain.decode(ids)}
    with open(os.path.join(FOLDER, "expected.json"), "w", encoding="utf-8") as file:
        json.dump(expected, file, ensure_ascii=True, separators=(",", ":"))
        file.write("\n")


if __name__ == "__main__":
    main()
