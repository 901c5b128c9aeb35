#!/usr/bin/env python3
"""Makes src/text/template/unicode_tables.c: what Python's str methods know of characters.

Templates call upper(), title(), isalpha() and the like, and their output shall be Python's. Python
asks its own Unicode data, so every code point is asked here, and runs are written down.
"""
import os
import sys
import unicodedata

TARGET = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))),
                      "src", "text", "template", "unicode_tables.c")
POINTS = [p for p in range(0x110000) if not 0xD800 <= p < 0xE000]

CLASSES = {
    "printable": str.isprintable,
    "alpha": str.isalpha,
    "alnum": str.isalnum,
    "upper": str.isupper,
    "lower": str.islower,
    "cased": lambda c: c.isupper() or c.islower() or c.istitle(),
    "decimal": str.isdecimal,
    "digit": str.isdigit,
    "numeric": str.isnumeric,
    # str.lower() of a sigma looks at what is around it: Unicode 14, section 3.13, Final_Sigma.
    "case_ignorable": lambda c: (("A" + c + "\u03a3").lower()[-1] == "\u03c2" and
                                 (c + "\u03a3").lower()[-1] == "\u03c3"),
}
MAPPINGS = {"upper": str.upper, "lower": str.lower, "title": str.title}


def ranges(test):
    """[first, last, step]"""
    out = []
    for point in POINTS:
        if not test(chr(point)):
            continue
        last = out[-1] if out else None
        if last and ((last[0] == last[1] and point - last[1] <= 2) or
                     (last[0] != last[1] and point - last[1] == last[2])):
            last[2] = point - last[1]
            last[1] = point
        else:
            out.append([point, point, 1])
    return out


def runs(mapping):
    """(first, last, step, added), and the characters that become several."""
    simple, several = [], []
    for point in POINTS:
        text = mapping(chr(point))
        if text == chr(point):
            continue
        if len(text) > 1:
            several.append((point, text))
            continue
        added = ord(text) - point
        last = simple[-1] if simple else None
        if last and last[3] == added and (
                (last[0] == last[1] and point - last[1] <= 2) or
                (last[0] != last[1] and point - last[1] == last[2])):
            last[2] = point - last[1]
            last[1] = point
        else:
            simple.append([point, point, 1, added])
    return simple, several


def lines_of(items):
    line, out = "   ", []
    for item in items:
        if len(line) + len(item) + 2 > 100:
            out.append(line)
            line = "   "
        line += " " + item + ","
    return "\n".join(out + [line])


def main():
    parts = [f"""/* text/template/unicode_tables.c - made by tools/make_python_unicode.py.
 *
 * What Python {sys.version_info.major}.{sys.version_info.minor}'s str methods know of characters (Unicode {unicodedata.unidata_version}). */
#include "text/template/unicode.h"
"""]
    for name, test in CLASSES.items():
        found = ranges(test)
        items = [f"{{{first:#x}, {last:#x}, {step}}}" for first, last, step in found]
        parts.append(f"const struct tpl_range tpl__{name}_ranges[] = {{\n{lines_of(items)}\n}};\n"
                     f"const size_t tpl__{name}_range_count = {len(found)};\n")
    for name, mapping in MAPPINGS.items():
        simple, several = runs(mapping)
        items = [f"{{{f:#x}, {l:#x}, {s}, {a}}}" for f, l, s, a in simple]
        parts.append(f"const struct tpl_case_run tpl__{name}_runs[] = {{\n{lines_of(items)}\n}};\n"
                     f"const size_t tpl__{name}_run_count = {len(simple)};\n")
        items = ["{%#x, {%s}}" % (p, ", ".join(f"{ord(c):#x}" for c in t)) for p, t in several]
        parts.append(f"const struct tpl_case_several tpl__{name}_several[] = {{\n"
                     f"{lines_of(items)}\n}};\n"
                     f"const size_t tpl__{name}_several_count = {len(several)};\n")
    with open(TARGET, "w", encoding="utf-8") as file:
        file.write("\n".join(parts))


if __name__ == "__main__":
    main()
