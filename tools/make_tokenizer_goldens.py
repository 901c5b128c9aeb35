#!/usr/bin/env python3
"""Makes tests/golden/text: small tokenizers in the configurations of real model families, a nasty
corpus, and what the `tokenizers` library makes of it.

    make_tokenizer_goldens.py                  expectations anew, from the tokenizers that are there
    make_tokenizer_goldens.py --train FILE...  trains the tokenizers anew first, on these text files
    ... --only NAME                            does that for one of them

Needs the PyPI package tokenizers (made with 0.23.3, which brings Oniguruma 6.9.10). The family
configurations are those of the published tokenizer.json files: regular expressions, normalisers and
decoders to the letter, vocabularies small.
"""
import argparse
import copy
import json
import os
import random
import sys
import unicodedata

os.environ["HF_HUB_OFFLINE"] = "1"
import tokenizers
from tokenizers import Tokenizer, models, trainers

FOLDER = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))),
                      "tests", "golden", "text")

# --- the families -------------------------------------------------------------------------------

LLAMA3_REGEX = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
                r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
QWEN2_REGEX = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|"
               r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
TEKKEN_REGEX = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|"
                r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|"
                r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")
GPT4O_WORD = r"[^\r\n\p{L}\p{N}]?"
GPT4O_SUFFIX = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
GPT4O_REGEX = (GPT4O_WORD + r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+" + GPT4O_SUFFIX +
               GPT4O_WORD + r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*" + GPT4O_SUFFIX +
               r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")
DEEPSEEK_V2_LETTERS = (  # some of the characters are not their own NFC, so escapes it is
    "\\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿ\u0386\u0388-\u038A\u038C\u038E-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-Ჺ"
    "Ჽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-\u1F15\u1F18-\u1F1D\u1F20-\u1F45\u1F48-\u1F4D\u1F50-\u1F57\u1F59\u1F5B\u1F5D"
    "\u1F5F-\u1F7D\u1F80-\u1FB4\u1FB6-\u1FBC\u1FBE\u1FC2-\u1FC4\u1FC6-\u1FCC\u1FD0-\u1FD3\u1FD6-\u1FDB"
    "\u1FE0-\u1FEC\u1FF2-\u1FF4\u1FF6-\u1FFCℂℇℊ-ℓℕℙ-ℝℤ\u2126ℨ\u212A-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳ"
    "Ꙁ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃]+")
DEEPSEEK_V2_REGEXES = ["[\r\n]", DEEPSEEK_V2_LETTERS, "\\s?[!-/:-~！-／：-～‘-‟　-。]+", "\\s+$",
                       "[一-龥ࠀ-一가-퟿]+"]
DEEPSEEK_V3_REGEXES = [
    r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+",
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|"
    "[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+|"
    " ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+"]


def added(content, special=True, normalized=False, **flags):
    return {"content": content, "single_word": False, "lstrip": False, "rstrip": False,
            "normalized": normalized, "special": special, **flags}


def split(regex, behavior="Isolated", invert=False):
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": behavior, "invert": invert}


def byte_level(prefix=False, trim=True, regex=False):
    return {"type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": trim,
            "use_regex": regex}


def sequence(kind, members):
    return {"type": "Sequence", kind: members}


def template(before, after=()):
    """Ids are filled in later; special_tokens maps the names."""
    def special(name):
        return {"SpecialToken": {"id": name, "type_id": 0}}
    a = {"Sequence": {"id": "A", "type_id": 0}}
    b = {"Sequence": {"id": "B", "type_id": 1}}
    single = [special(n) for n in before] + [a] + [special(n) for n in after]
    return {"type": "TemplateProcessing", "single": single,
            "pair": single + [special(n) for n in before] + [b],
            "special_tokens": {n: {"id": n, "ids": [n], "tokens": [n]} for n in (*before, *after)}}


SPM_DECODER = sequence("decoders", [
    {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
    {"type": "ByteFallback"}, {"type": "Fuse"},
    {"type": "Strip", "content": " ", "start": 1, "stop": 0}])
BYTE_LEVEL_DECODER = byte_level(True, True, True)


def families():
    """name -> the parts of the tokenizer.json, with what the model is trained with."""
    return {
        "gpt2": {"size": 700, "added": [added("<|endoftext|>", normalized=True)],
                 "pre_tokenizer": byte_level(False, True, True),
                 "post_processor": byte_level(True, False, True), "decoder": BYTE_LEVEL_DECODER},
        "roberta": {"size": 600, "added": [added("<s>", normalized=True), added("<pad>",
                                                                                normalized=True),
                                           added("</s>", normalized=True), added("<unk>",
                                                                                 normalized=True),
                                           added("<mask>", lstrip=True)],
                    "pre_tokenizer": byte_level(True, True, True),
                    "post_processor": {"type": "RobertaProcessing", "sep": ["</s>", "</s>"],
                                       "cls": ["<s>", "<s>"], "trim_offsets": True,
                                       "add_prefix_space": True},
                    "decoder": BYTE_LEVEL_DECODER},
        "llama3": {"size": 900, "added": [added("<|begin_of_text|>"), added("<|end_of_text|>"),
                                          added("<|eot_id|>"), added("<|start_header_id|>"),
                                          added("<|end_header_id|>")],
                   "pre_tokenizer": sequence("pretokenizers", [split(LLAMA3_REGEX), byte_level()]),
                   "post_processor": sequence("processors", [byte_level(True, False, True),
                                                             template(["<|begin_of_text|>"])]),
                   "decoder": BYTE_LEVEL_DECODER, "ignore_merges": True},
        "qwen2": {"size": 900, "added": [added("<|endoftext|>"), added("<|im_start|>"),
                                         added("<|im_end|>"), added("<tool_call>", special=False),
                                         added("<think>", special=False)],
                  "normalizer": {"type": "NFC"},
                  "pre_tokenizer": sequence("pretokenizers", [split(QWEN2_REGEX),
                                                              byte_level(False, False)]),
                  "post_processor": byte_level(False, False), "decoder": byte_level(False, False)},
        "deepseek_v2": {"size": 1000,
                        "added": [added("<｜begin▁of▁sentence｜>", normalized=True),
                                  added("<｜end▁of▁sentence｜>", normalized=True),
                                  added("<｜fim▁hole｜>", special=False, normalized=True)],
                        "normalizer": sequence("normalizers", []),
                        "pre_tokenizer": sequence(
                            "pretokenizers", [split(r) for r in DEEPSEEK_V2_REGEXES] +
                            [{"type": "Digits", "individual_digits": True}, byte_level(False,
                                                                                       True)]),
                        "post_processor": template(["<｜begin▁of▁sentence｜>"]),
                        "decoder": BYTE_LEVEL_DECODER},
        "deepseek_v3": {"size": 1100,
                        "added": [added("<｜begin▁of▁sentence｜>"), added("<｜end▁of▁sentence｜>"),
                                  added("<｜▁pad▁｜>"), added("<｜User｜>", special=False),
                                  added("<｜Assistant｜>", special=False),
                                  added("<|EOT|>", normalized=True)],
                        "normalizer": sequence("normalizers", []),
                        "pre_tokenizer": sequence(
                            "pretokenizers",
                            [split(r) for r in DEEPSEEK_V3_REGEXES] + [byte_level()]),
                        "post_processor": template(["<｜begin▁of▁sentence｜>"]),
                        "decoder": BYTE_LEVEL_DECODER},
        "tekken": {"size": 800, "added": [added("<unk>"), added("<s>"), added("</s>"),
                                          added("[INST]"),
                                          added("[/INST]")],
                   "pre_tokenizer": sequence("pretokenizers", [split(TEKKEN_REGEX), byte_level()]),
                   "post_processor": template(["<s>"]), "decoder": BYTE_LEVEL_DECODER,
                   "ignore_merges": True},
        "glm4": {"size": 500, "added": [added("<|endoftext|>"), added("[MASK]"), added("[gMASK]"),
                                        added("<sop>"), added("<|user|>"),
                                        added("<think>", special=False)],
                 "pre_tokenizer": sequence("pretokenizers", [split(LLAMA3_REGEX), byte_level()]),
                 "post_processor": sequence("processors", [byte_level(True, False, True),
                                                           template(["[gMASK]", "<sop>"])]),
                 "decoder": BYTE_LEVEL_DECODER},
        "gpt4o": {"size": 500, "added": [added("<|endoftext|>"), added("<|user|>"),
                                         added("<|assistant|>"), added("<|end|>")],
                  "pre_tokenizer": sequence("pretokenizers", [
                      split(GPT4O_REGEX, "Removed", True), byte_level()]),
                  "post_processor": byte_level(True, False, True), "decoder": BYTE_LEVEL_DECODER},
        "granite": {"size": 500, "added": [added("<|end_of_text|>"), added("<fim_prefix>"),
                                           added("<|start_of_role|>"), added("<|end_of_role|>"),
                                           added("<|tool_call|>")],
                    "pre_tokenizer": sequence("pretokenizers", [
                        {"type": "Digits", "individual_digits": True}, byte_level(False, True, True)]),
                    "post_processor": byte_level(True, False, True), "decoder": BYTE_LEVEL_DECODER},
        "olmo": {"size": 500, "added": [added("<|endoftext|>"), added("<|padding|>"),
                                        added("|||EMAIL_ADDRESS|||", special=False)],
                 "normalizer": {"type": "NFC"}, "pre_tokenizer": byte_level(False, True, True),
                 "post_processor": byte_level(False, True, True),
                 "decoder": byte_level(False, True, True)},
        "llama2": {"size": 1100, "spm": True,
                   "added": [added("<unk>", normalized=False), added("<s>"), added("</s>")],
                   "normalizer": sequence("normalizers", [
                       {"type": "Prepend", "prepend": "▁"},
                       {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]),
                   "post_processor": template(["<s>"]), "decoder": SPM_DECODER},
        "mistral": {"size": 1000, "spm": True,
                    "added": [added("<unk>"), added("<s>"), added("</s>"), added("[INST]"),
                              added("[/INST]"), added("[TOOL_CALLS]")],
                    "pre_tokenizer": {"type": "Metaspace", "replacement": "▁",
                                      "prepend_scheme": "first", "split": False},
                    "post_processor": template(["<s>"]), "decoder": SPM_DECODER},
        "words": {"size": 600, "unk_token": "[UNK]", "end_of_word_suffix": "</w>", "alphabet": 200,
                  "added": [added("[UNK]"), added("[PAD]"),
                            added("hello", special=False, normalized=True, single_word=True),
                            added("[L]", special=False, lstrip=True),
                            added("[R]", special=False, rstrip=True),
                            added("[LR]", lstrip=True, rstrip=True)],
                  "normalizer": sequence("normalizers", [
                      {"type": "NFKD"}, {"type": "StripAccents"}, {"type": "Lowercase"},
                      {"type": "Strip", "strip_left": True, "strip_right": True}]),
                  "pre_tokenizer": sequence("pretokenizers", [
                      {"type": "Whitespace"}, {"type": "Punctuation", "behavior": "Isolated"},
                      {"type": "Digits", "individual_digits": False}]),
                  "post_processor": template(["[PAD]"], ["[PAD]", "[UNK]"]), "decoder": None},
        "metaspace": {"size": 600, "unk_token": "<unk>", "alphabet": 300,
                      "added": [added("<unk>"), added("</s>")],
                      "normalizer": sequence("normalizers", [
                          {"type": "NFKC"},
                          {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}]),
                      "pre_tokenizer": {"type": "Metaspace", "replacement": "▁",
                                        "prepend_scheme": "always", "split": True},
                      "post_processor": template([], ["</s>"]),
                      "decoder": {"type": "Metaspace", "replacement": "▁",
                                  "prepend_scheme": "always", "split": True}},
    }


def parts_json(family, model, added_tokens):
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added_tokens,
            "normalizer": family.get("normalizer"), "pre_tokenizer": family.get("pre_tokenizer"),
            "post_processor": family.get("post_processor"), "decoder": family.get("decoder"),
            "model": model}


def fill_ids(post_processor, vocab):
    """Names in a post-processor become ids."""
    for part in post_processor.get("processors", [post_processor]) if post_processor else []:
        for token in part.get("special_tokens", {}).values():
            token["ids"] = [vocab[name] for name in token["ids"]]
        for key in ("sep", "cls"):
            if key in part:
                part[key][1] = vocab[part[key][1]]


def train(family, lines):
    """The tokenizer.json of a family, trained on lines of text."""
    family = copy.deepcopy(family)
    specials = [t["content"] for t in family["added"]]
    empty = {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
             "end_of_word_suffix": family.get("end_of_word_suffix"), "fuse_unk": False,
             "byte_fallback": False, "ignore_merges": False, "vocab": {}, "merges": []}
    for_training = {k: v for k, v in family.items() if k != "post_processor"}
    if family.get("spm"):  # cut at words for training only, as SentencePiece does
        for_training["normalizer"] = None
        for_training["pre_tokenizer"] = {"type": "Metaspace", "replacement": "▁",
                                         "prepend_scheme": "always", "split": True}
        specials += [f"<0x{b:02X}>" for b in range(256)]
    tokenizer = Tokenizer.from_str(json.dumps(parts_json(for_training, empty, [])))
    is_byte_level = "ByteLevel" in json.dumps(family.get("pre_tokenizer"))
    suffix = {k: family[k] for k in ("end_of_word_suffix",) if k in family}
    trainer = trainers.BpeTrainer(
        vocab_size=family["size"], special_tokens=specials, show_progress=False, **suffix,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet() if is_byte_level else [],
        limit_alphabet=256 if is_byte_level else family.get("alphabet", 300))
    tokenizer.train_from_iterator(lines, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    model["ignore_merges"] = family.get("ignore_merges", False)
    if family.get("spm"):
        model.update(byte_fallback=True, fuse_unk=True, unk_token="<unk>")
    if "unk_token" in family:
        model["unk_token"] = family["unk_token"]
    if len(family["added"]) % 2 == 0 and not any(" " in a + b for a, b in model["merges"]):
        model["merges"] = [" ".join(m) for m in model["merges"]]  # both spellings are in use
    fill_ids(family.get("post_processor"), model["vocab"])
    tokens = [{"id": model["vocab"][t["content"]], **t} for t in family["added"]]
    return parts_json(family, model, tokens)


def training_lines(paths):
    """Lines of the given files, and every script of Unicode a little."""
    lines = []
    for path in paths:
        with open(path, encoding="utf-8", errors="replace") as file:
            lines += file.read(400000).splitlines(keepends=True)
    rng = random.Random(1)
    for start in (0x00C0, 0x0370, 0x0410, 0x05D0, 0x0627, 0x0905, 0x0E01, 0x3041, 0x30A1, 0x4E00,
                  0xAC00, 0x1F600):
        for _ in range(40):
            words = ["".join(chr(start + int(rng.triangular(0, 40,
                                                            0))) for _ in range(rng.randint(1, 6)))
                     for _ in range(8)]
            lines.append(" ".join(words) + "\n")
    return lines


# --- the corpus ---------------------------------------------------------------------------------

def planes():
    """Characters from all over Unicode."""
    points = [0, 1, 9, 0x1F, 0x7F, 0x80, 0x85, 0xA0, 0xAD, 0xFF, 0x130, 0x149, 0x17F, 0x1C5, 0x1F0,
              0x300, 0x345, 0x378, 0x3A3, 0x3C2, 0x5D0, 0x600, 0x661, 0x6DD, 0x7FF, 0x800, 0x897,
              0x958, 0xCDD, 0xE33, 0xF73, 0x10A0, 0x1100, 0x115F, 0x1680, 0x1C89, 0x180E, 0x1E9E,
              0x2000,
              0x2007, 0x200B, 0x200C, 0x200D, 0x200E, 0x2028, 0x2029, 0x202F, 0x2060, 0x2070,
              0x20AC,
              0x2126, 0x212B, 0x2160, 0x2460, 0x2581, 0x2FFC, 0x3000, 0x3007, 0x3021, 0x3042,
              0x30FB, 0x3131,
              0x31EF, 0x3400, 0x4E00, 0x9FFF, 0xA7CB, 0xA7DC, 0xABF0, 0xAC00, 0xD7A3, 0xD7FF,
              0xE000, 0xF900,
              0xFB01, 0xFB1D, 0xFDFA, 0xFE0F, 0xFEFF, 0xFF10, 0xFF21, 0xFF9E, 0xFFFC, 0xFFFD,
              0xFFFE,
              0xFFFF, 0x10000, 0x10107, 0x10330, 0x10400, 0x105C0, 0x10D40, 0x11F00, 0x1109A,
              0x16D40, 0x1BC9E,
              0x1D15E, 0x1D400, 0x1D7CE, 0x1DF2A, 0x1E4D0, 0x1E900, 0x1EE00, 0x1F1E6, 0x1F468,
              0x1F600, 0x1FAE0, 0x1FBF0,
              0x1FFFF, 0x20000, 0x2A6DF, 0x2CEB0, 0x2EBF0, 0x2F800, 0x2FFFE, 0x30000, 0x31350,
              0x323AF,
              0x40000, 0xE0001, 0xE0100, 0xEFFFF, 0xF0000, 0x10FFFD, 0x10FFFF]
    return [chr(p) for p in points]


SPECIALS = ["<s>", "</s>", "<unk>", "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>",
            "<|begin_of_text|>", "<|eot_id|>", "<｜begin▁of▁sentence｜>", "<｜User｜>", "<|EOT|>",
            "[INST]", "[/INST]", "[UNK]", "[PAD]", "[L]", "[R]", "[LR]", "hello", "<mask>",
            "<0x41>",
            "<0xE2>"]


def nasty_corpus():
    """str or bytes; bytes are not UTF-8."""
    family = "\U0001F468\u200D\U0001F469\u200D\U0001F467\u200D\U0001F466"
    texts = ["", " ", "  ", "   ", "\n", "\r\n", "\t", "\x00", "a", "é", "▁", "▁▁", " ▁ ", "Ġ",
             "Ċ", "ĠĠĠ",
             "Hello world", " Hello  world ", "Hello, y'all! How are you 😁 ?",
             "I'm you're he'S WE'LL they'Ve I'D 'tis don't DON'T ''' 's's'S",
             "it\u2019s \u02BCs '\u017F 'ſ 'LL'll'Ll",
             "3 33 333 3333 33333 333333 3333333 0x1F 1e-9 1,234,567.89 ½ ² ٣٤ Ⅷ 一二三 １２３",
             "tabs\t\tand \t mixed\n\n\n  \r\n\r\n \n x  \n", "trailing   ", "   leading",
             " \u00A0\u3000\u2003\u202F\u1680x\u0085y\u2028z\u2029",
             "a\u00A0b\u3000c\u200Bd\uFEFFe",
             "def f(x):\n    return x**2  # squared\n\n\nclass A:\n\tpass\n",
             "for (int i = 0; i < n; ++i) { a[i] += \"\\n\" ? 1 : 0; } /* c */ // d",
             "<html><body class='x'>&amp;</body></html>", "https://example.org/a?b=c&d=%20#e",
             "{\"key\": [1, 2.5, null], \"k\\u00e9y\": true}",
             "snake_case camelCase SCREAMING_CASE kebab-case",
             "我在北京天安门广场。你好，世界！", "日本語のテキスト、カタカナとひらがな。ｶﾀｶﾅ", "한국어 텍스트 가나다",
             "\u1112\u1161\u11AB\u1100\u1173\u11AF", "العربية نص ١٢٣ مع تشكيل مُحَمَّد",
             "עברית שָׁלוֹם",
             "हिन्दी क्षत्रिय नमस्ते", "ภาษาไทย น้ำ", "Ελληνικά ΣΊΣΥΦΟΣ ς", "Русский текст Ёё Йй",
             "Tiếng Việt: phở, đường", "İstanbul ıI İi ẞß ŉ ǰ ﬁ ﬀ ﷺ Å Ω K",
             "cafe\u0301 café re\u0301sume\u0301 A\u030A Å \u212B",
             "q\u0307\u0323 q\u0323\u0307 \u0344 \u0958",
             "e" + "\u0301" * 20, "a" + "\u0315\u0300\u05AE\u0327" * 5, "\u0301start with a mark",
             family, family * 3, "👍🏽👍🏿👩🏻‍🚀🏳️‍🌈🏴‍☠️", "🇩🇪🇫🇷🇯🇵🇺", "1️⃣2️⃣#️⃣",
             "🏴\U000E0067\U000E0062\U000E0065\U000E006E\U000E0067\U000E007F",
             "ﷺ ㎏ ㌔ Ⅷ ① ﬃ ª º ¼", "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𝟘𝟙𝟚", "\U00020000\U0002A6D6 𠮷", "z̷̢̛a̶͇͝l̵̰͊g̴̙̈́o̸͎̒",
             "\u202Eright to left\u202C \u200Fx\u200E",
             "\uD7FF\uE000\uF8FF\uFFFD\uFFFE\uFFFF\U0010FFFF",
             "a" * 300, "=" * 100, " " * 200, " " * 50 + "x", "\n" * 60, "\t" * 30 + "x",
             "ab" * 120, "aB" * 60,
             "哈" * 80, "😀" * 40, "é" * 90, "9" * 64, "!" * 33, " a" * 60, "\r" * 10 + "\n" * 10,
             " \n" * 20,
             "'" * 20, "_" * 30, "a\n" * 20, "-" * 17 + ">" * 17, "\u3000" * 12 + "。" * 12,
             "The quick brown fox jumps over the lazy dog. " * 3,
             "Where is the capital of France? Paris.",
             "Hello hello HELLO hellohello hello! (hello)hello_",
             "x [L] y [L]z  [R]  a[R] b  [LR]  c[LR][LR] d[L][R][L]", "[L]", "  [L]  ", "[R]   ",
             " [LR] ",
             "<mask>  <mask> x <mask>", "< s > <s <s>> <<s>> <|im_start <|im_start|",
             "<|im_start|>user\nHi<|im_end|>\n",
             "<0x41><0xE2><0x96>", "<｜begin▁of▁sentence｜>", "<｜begin of sentence｜>",
             "[INST] a [/INST]b</s>[INST]c[/INST]"]
    texts += ["".join(SPECIALS), " ".join(SPECIALS), " x".join(SPECIALS), "y ".join(SPECIALS)]
    texts += ["".join(planes()), " ".join(planes()), "a".join(planes()),
              "".join(c * 2 + "1" for c in planes())]
    texts += [b"\xff", b"\xc3", b"a\xc3b", b"\xe2\x82", b"\xe2\x82x", b"\xf0\x9f\x98",
              b"ok\xf0\x9f\x98ok",
              b"\xed\xa0\x80", b"\xc0\xaf", b"\xf4\x90\x80\x80", b"\xf8\x88\x80\x80\x80",
              b"\x80\x81\x82",
              b"caf\xe9 latin1", b"\xe4\xb8\xad\xe6\x96", b"<s>\xff<s>",
              b"x \xe2\x96\x81\xe2\x96 y", bytes(range(256)),
              b"\xf0\x80\x80\x41", b"\xf0\x9f\xc3\xa9"]
    return texts


def random_text(rng, size):
    """Text from pieces that meet in nasty ways."""
    pieces = []
    chars = planes()
    while sum(map(len, pieces)) < size:
        kind = rng.randrange(12)
        if kind == 0:
            pieces.append(rng.choice(chars))
        elif kind == 1:
            point = rng.randrange(0x110000)
            pieces.append("?" if 0xD800 <= point < 0xE000 else chr(point))
        elif kind == 2:
            pieces.append(chr(rng.randrange(0x20, 0x7F)) * rng.randint(1, 4))
        elif kind == 3:
            pieces.append(rng.choice(" \t\n\r\u00A0\u3000▁") * rng.randint(1, 5))
        elif kind == 4:
            pieces.append(rng.choice(SPECIALS))
        elif kind == 5:
            pieces.append(rng.choice(["'s", "'LL", "'Re", "'", "’t", "...", "!?", "://", "\r\n"]))
        elif kind == 6:
            pieces.append(str(rng.randrange(10 ** rng.randint(1, 9))))
        elif kind == 7:
            pieces.append("".join(chr(rng.randrange(0x300, 0x370)) for _ in range(rng.randint(1,
                                                                                              4))))
        elif kind == 8:
            start = rng.choice([0x0410, 0x05D0, 0x0627, 0x0905, 0x0E01, 0x3041, 0x4E00, 0xAC00,
                                0x1100, 0x1F600])
            pieces.append("".join(chr(start + rng.randrange(80)) for _ in range(rng.randint(1, 5))))
        else:
            pieces.append(rng.choice(["the", " of", "Hello", " world", " return", "ing", "capital",
                                      "is ", "A", "é", "naïve"]))
    return "".join(pieces)


# --- expectations -------------------------------------------------------------------------------

def sane(text):
    """What reaches the library: bytes that are not UTF-8 are replaced before."""
    return text.decode("utf-8", errors="replace") if isinstance(text, bytes) else text


def expectations(tokenizer, corpus, rng):
    """encode: ids of each text; decode: [with special tokens, without], null: it is the text."""
    encoded, decoded = [], []
    for text in map(sane, corpus):
        ids = tokenizer.encode(text, add_special_tokens=True).ids
        encoded.append(ids)
        both = [tokenizer.decode(ids, skip_special_tokens=skip) for skip in (False, True)]
        decoded.append([None if t == text else t for t in both])
    limit = tokenizer.get_vocab_size(with_added_tokens=True)
    random_ids = []
    for _ in range(60):
        ids = [rng.randrange(limit) for _ in range(rng.randint(0, 20))]
        random_ids.append([ids, tokenizer.decode(ids, skip_special_tokens=False),
                           tokenizer.decode(ids, skip_special_tokens=True)])
    bare = tokenizer.encode("Hello world", add_special_tokens=False).ids
    return {"encode": encoded, "decode": decoded, "random": random_ids, "bare": bare}


def write_json(name, value):
    path = os.path.join(FOLDER, name)
    with open(path, "w", encoding="utf-8") as file:
        json.dump(value, file, ensure_ascii=True, separators=(",", ":"))
        file.write("\n")
    return os.path.getsize(path)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--train", nargs="+", metavar="FILE")
    parser.add_argument("--only", metavar="NAME")
    args = parser.parse_args()
    os.makedirs(FOLDER, exist_ok=True)
    total = 0
    chosen = {name: family for name, family in families().items() if args.only in (None, name)}
    if args.train:
        lines = training_lines(args.train)
        for name, family in chosen.items():
            total += write_json(f"{name}.tokenizer.json", train(family, lines))
    corpus = nasty_corpus()
    total += write_json("corpus.json", {
        "made_by": "tools/make_tokenizer_goldens.py", "tokenizers": tokenizers.__version__,
        "python": sys.version.split()[0], "unicode": unicodedata.unidata_version,
        "texts": [{"hex": t.hex()} if isinstance(t, bytes) else t for t in corpus]})
    for name in chosen:
        tokenizer = Tokenizer.from_file(os.path.join(FOLDER, f"{name}.tokenizer.json"))
        total += write_json(f"{name}.expected.json",
                            expectations(tokenizer, corpus, random.Random(name)))
    print(f"{len(corpus)} texts, {len(chosen)} tokenizers, {total} bytes written")


if __name__ == "__main__":
    main()
