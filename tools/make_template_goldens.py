#!/usr/bin/env python3
"""Makes the goldens of chat templates: what Python's jinja2 renders, with Hugging Face's settings.

    tools/make_template_goldens.py [--check] [--templates FOLDER]

- tests/golden/templates.json: small templates, each with its output, or that it fails;
- tests/golden/chats.json: conversations, and for each template in FOLDER (real ones, which are not
  part of the project) size and FNV-1a hash of every conversation's rendering, or that it fails.

--check compares with the files there. Made with transformers 5.23.0 and jinja2 3.1.6.
"""
import argparse
import datetime
import glob
import json
import os
import sys

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TZ"] = "UTC"
from transformers.utils import chat_template_utils

from template_cases import CASES, CONVERSATIONS, VARIABLES

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
NOW = 1700000000


class Clock(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return datetime.datetime.fromtimestamp(NOW, datetime.timezone.utc).replace(tzinfo=None)


def render_case(template):
    """[template, output], or [template, None, what Python says]"""
    try:
        text = chat_template_utils._compile_jinja_template(template).render(**VARIABLES)
        text.encode()
    except Exception as error:
        return [template, None, str(error)[:100]]
    if " at 0x" in text:
        raise ValueError(f"{template}: an address is no golden")
    return [template, text]


def fnv(data):
    value = 0xcbf29ce484222325
    for byte in data:
        value = (value ^ byte) * 0x100000001b3 % (1 << 64)
    return f"{value:016x}"


def render_chat(template, chat):
    """As PreTrainedTokenizerBase.apply_chat_template does it."""
    messages = [{k: v for k, v in m.items() if v is not None} for m in chat["messages"]]
    try:
        texts, _ = chat_template_utils.render_jinja_template(
            [messages], tools=chat.get("tools"), documents=chat.get("documents"),
            chat_template=template, add_generation_prompt=chat.get("add_generation_prompt", True),
            continue_final_message=chat.get("continue_final_message", False),
            bos_token="<s>", eos_token="</s>", **chat.get("chat_template_kwargs", {}))
        return texts[0].encode()
    except Exception as error:
        return error


def compare(path, text, check):
    if not check:
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
        return True
    with open(path, encoding="utf-8") as file:
        same = file.read() == text
    if not same:
        print(f"{path}: not what Python renders now")
    return same


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--templates", default=os.path.join(ROOT, "../shared/data/chat_templates"))
    args = parser.parse_args()
    chat_template_utils.datetime = Clock
    golden = os.path.join(ROOT, "tests", "golden")

    cases = ",\n".join(json.dumps(render_case(case), ensure_ascii=False) for case in CASES)
    variables = json.dumps(VARIABLES, ensure_ascii=False)
    ok = compare(os.path.join(golden, "templates.json"),
                 f'{{"variables": {variables},\n"cases": [\n{cases}\n]}}\n', args.check)
    results = {}
    for path in sorted(glob.glob(os.path.join(args.templates, "*.jinja"))):
        with open(path, encoding="utf-8", newline="") as file:
            template = file.read()
        rendered = [render_chat(template, chat) for chat in CONVERSATIONS]
        results[os.path.basename(path)] = {
            "template": f"{len(template.encode())} {fnv(template.encode())}",
            "renders": [f"{len(r)} {fnv(r)}" if isinstance(r, bytes) else None for r in rendered]}
    if results:
        chats = ",\n".join(json.dumps(chat, ensure_ascii=False) for chat in CONVERSATIONS)
        hashes = ",\n".join(f"{json.dumps(name)}: {json.dumps(result)}"
                            for name, result in results.items())
        ok &= compare(os.path.join(golden, "chats.json"),
                      f'{{"chats": [\n{chats}\n],\n"templates": {{\n{hashes}\n}}}}\n', args.check)
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
