#!/usr/bin/env python3
"""Makes src/text/tokenizer/unicode_tables.c: how the `tokenizers` library classes characters.

The library brings its own Unicode data, of several ages: Oniguruma 6.9.10 and Rust's crates have
Unicode 16 and 17, its normal forms an older one, its punctuation Unicode 8. Debian's libonig and
libutf8proc have others. Every code point is asked here, and what must be known to agree is written
down, in a form that stays right when Debian's libraries grow newer. Needs the PyPI package
tokenizers (made with 0.23.3), libonig.so.5 and libutf8proc.so.2; takes some minutes.
"""
import ctypes
import os
import sys

os.environ["HF_HUB_OFFLINE"] = "1"
import tokenizers
from tokenizers import Regex, normalizers, pre_tokenizers

TARGET = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))),
                      "src", "text", "unicode_tables.c")
POINTS = [p for p in range(0x110000) if not 0xD800 <= p < 0xE000]
ALL = "".join(map(chr, POINTS))
LIBC = ctypes.CDLL(None)
CATEGORIES = ("Lu Ll Lt Lm Lo Mn Mc Me Nd Nl No Pc Pd Ps Pe Pi Pf Po Sm Sc Sk So Zs Zl Zp Cc Cf Co "
              "Cn").split()
SCRIPTS = ("Han Hiragana Katakana Latin Greek Cyrillic Arabic Hebrew Hangul Thai Devanagari Common "
           "Inherited").split()
# [[:punct:]] itself means something else in Oniguruma 6.9.10 (see pattern.c), so it is not here.
# The most telling first: where no stand-in has all classes, one with the first so many will do.
CLASSES = ([rf"\p{{{c}}}" for c in CATEGORIES] +
           [r"\s", r"\w", r"\d", r"\h", "[[:graph:]]", "[[:print:]]", "[[:alpha:]]", "[[:upper:]]",
            "[[:lower:]]", r"\p{Emoji}", r"\p{Extended_Pictographic}"] +
           [rf"\p{{{c}}}" for c in SCRIPTS])
TELLING = (len(CLASSES), len(CLASSES) - len(SCRIPTS), len(CATEGORIES) + 6)


def utf8_size(point):
    return 1 if point < 0x80 else 2 if point < 0x800 else 3 if point < 0x10000 else 4


# --- what Oniguruma says, the library's and this machine's --------------------------------------

class Region(ctypes.Structure):
    _fields_ = [("allocated", ctypes.c_int), ("count", ctypes.c_int),
                ("begin", ctypes.POINTER(ctypes.c_int)), ("end", ctypes.POINTER(ctypes.c_int)),
                ("history", ctypes.c_void_p)]


def local_members(pattern, library, text, size, index_of_offset):
    """The indices of the code points that libonig.so matches."""
    source = ctypes.create_string_buffer((pattern + "+").encode())
    regex = ctypes.c_void_p()
    encoding = ctypes.addressof(ctypes.c_char.in_dll(library, "OnigEncodingUTF8"))
    syntax = ctypes.c_void_p.in_dll(library, "OnigDefaultSyntax").value
    pointer = ctypes.c_void_p
    code = library.onig_new(ctypes.byref(regex), source,
                            pointer(ctypes.addressof(source) + len(source.value)), 0,
                            pointer(encoding), pointer(syntax), None)
    if code != 0:
        raise ValueError(pattern)
    begin = ctypes.addressof(text)
    region, members, at = Region(), set(), 0
    while library.onig_search(regex, pointer(begin), pointer(begin + size), pointer(begin + at),
                              pointer(begin + size), ctypes.byref(region), 0) >= 0:
        at = region.end[0]
        members.update(range(index_of_offset[region.begin[0]], index_of_offset[at]))
    return members


def library_members(pattern):
    pieces = pre_tokenizers.Split(Regex(pattern + "+"), "removed",
                                  invert=True).pre_tokenize_str(ALL)
    return {i for _, (start, end) in pieces for i in range(start, end)}


def stand_ins():
    """(first, last, stand-in): for Oniguruma's classes the code points are as the stand-in is."""
    library = ctypes.CDLL("libonig.so.5")
    data = ALL.encode("utf-8")
    text = ctypes.create_string_buffer(data, len(data))
    index_of_offset, offset = {}, 0
    for i, point in enumerate(POINTS):
        index_of_offset[offset] = i
        offset += utf8_size(point)
    index_of_offset[offset] = len(POINTS)
    wanted, here = [0] * len(POINTS), [0] * len(POINTS)
    for bit, pattern in enumerate(CLASSES):
        for i in library_members(pattern):
            wanted[i] |= 1 << bit
        for i in local_members(pattern, library, text, len(data), index_of_offset):
            here[i] |= 1 << bit
    settled = {}
    for i, point in enumerate(POINTS):
        if wanted[i] == here[i]:
            for count in TELLING:
                signature = wanted[i] & ((1 << count) - 1)
                settled.setdefault((count, signature, utf8_size(point)), point)
    ranges, lost = [], []
    for i, point in enumerate(POINTS):
        if wanted[i] == here[i]:
            continue
        found = [settled.get((count, wanted[i] & ((1 << count) - 1), utf8_size(point)))
                 for count in TELLING]
        stand_in = next((f for f in found if f is not None), None)
        if stand_in is None:
            lost.append(point)
            continue
        if ranges and ranges[-1][1] == point - 1 and ranges[-1][2] == stand_in:
            ranges[-1][1] = point
        else:
            ranges.append([point, point, stand_in])
    print(f"{len(ranges)} ranges with a stand-in; none for " + " ".join(f"{p:04X}" for p in lost))
    return ranges


# --- classes, lower case, normal forms ----------------------------------------------------------

def ranges_of(points):
    ranges = []
    for point in sorted(points):
        if ranges and ranges[-1][1] == point - 1:
            ranges[-1][1] = point
        else:
            ranges.append([point, point])
    return ranges


def class_tables():
    word = pre_tokenizers.Whitespace()
    digits = pre_tokenizers.Digits(individual_digits=True)
    punctuation = pre_tokenizers.Punctuation()
    strip = normalizers.StripAccents()
    tables = {"word": [], "numeric": [], "punctuation": [], "mark": []}
    for point in POINTS:
        between = f"a{chr(point)}a"
        if len(word.pre_tokenize_str(between)) == 1:
            tables["word"].append(point)
        if len(digits.pre_tokenize_str(between)) != 1:
            tables["numeric"].append(point)
        if len(punctuation.pre_tokenize_str(between)) != 1:
            tables["punctuation"].append(point)
        if strip.normalize_str(chr(point)) == "":
            tables["mark"].append(point)
    return {name: ranges_of(points) for name, points in tables.items()}


def lower_case(utf8proc):
    """(first, last, lower - code point): where utf8proc's lower case is another."""
    lower = normalizers.Lowercase()
    ranges = []
    for point in POINTS:
        wanted = lower.normalize_str(chr(point))
        if point == 0x130 or ord(wanted) == utf8proc.utf8proc_tolower(point):
            continue
        delta = ord(wanted) - point
        if ranges and ranges[-1][1] == point - 1 and ranges[-1][2] == delta:
            ranges[-1][1] = point
        else:
            ranges.append([point, point, delta])
    return ranges


def local_form(utf8proc, text, options):
    data = text.encode("utf-8")
    out = ctypes.c_void_p()
    size = utf8proc.utf8proc_map(data, len(data), ctypes.byref(out), options)
    result = ctypes.string_at(out, size).decode("utf-8")
    LIBC.free(out)
    return result


def untouched(utf8proc):
    """The code points that the library's normal forms do not know: left alone, they agree."""
    stable, compose, decompose, compat = 1 << 1, 1 << 3, 1 << 4, 1 << 2
    forms = [(normalizers.NFC(), stable | compose), (normalizers.NFD(), stable | decompose),
             (normalizers.NFKC(), stable | compose | compat),
             (normalizers.NFKD(), stable | decompose | compat)]
    left_alone = set()
    pairs = []
    for point in POINTS:
        # Unassigned, private or an ideograph or syllable older than both: nothing to ask.
        if (point == 0 or utf8proc.utf8proc_category(point) in (0, 29) or
                0x3400 <= point <= 0x9FFF or 0x20000 <= point <= 0x2F7FF or
                0xAC00 < point < 0xD7A3):
            continue
        char = chr(point)
        # Marks of the lowest and of a high class, before and after, show the combining class.
        for text in (char, f"a{char}\u0334", f"a\u0315{char}", f"a\u0345{char}"):
            wanted = [form.normalize_str(text) for form, _ in forms]
            ours = [local_form(utf8proc, text, options) for _, options in forms]
            if wanted != ours:
                left_alone.add(point)
                if any(form.normalize_str(char) != char for form, _ in forms):
                    print(f"U+{point:04X}: the library has a normal form, and it is another")
                break
        parts = local_form(utf8proc, char, stable | decompose)
        if len(parts) == 2:
            pairs.append(parts)
    for parts in pairs:  # compositions that the library lacks
        wanted = forms[0][0].normalize_str(parts)
        if wanted != local_form(utf8proc, parts, stable | compose):
            left_alone.add(ord(parts[1]))
            if forms[0][0].normalize_str("a" + parts[1]) != "a" + parts[1]:
                print(f"U+{ord(parts[1]):04X} composes with something else")
    return ranges_of(left_alone)


# --- writing ------------------------------------------------------------------------------------

def c_table(kind, name, rows, comment):
    lines = [f"/* {comment} */", f"const struct {kind} {name}[] = {{"]
    line = "   "
    for row in rows:
        cells = [f"0x{v:04X}" if v >= 0 else str(v) for v in row]
        entry = " {" + ",".join(cells) + "},"
        if len(line) + len(entry) > 100:
            lines.append(line)
            line = "   "
        line += entry
    lines += [line, "};", f"const size_t {name}_count =\n    sizeof({name}) / sizeof({name}[0]);",
              ""]
    return "\n".join(lines)


def main():
    utf8proc = ctypes.CDLL("libutf8proc.so.2")
    utf8proc.utf8proc_map.restype = ctypes.c_ssize_t
    utf8proc.utf8proc_map.argtypes = [ctypes.c_char_p, ctypes.c_ssize_t, ctypes.c_void_p,
                                      ctypes.c_int]
    utf8proc.utf8proc_version.restype = ctypes.c_char_p
    parts = [f"""/* text/tokenizer/unicode_tables.c - how the `tokenizers` library classes characters.
 *
 * Made by tools/make_unicode_tables.py with tokenizers {tokenizers.__version__}; not edited by
 * hand. Sorted. */
#include "text/tokenizer/internal.h"
"""]
    comments = {"word": "Rust's \\w: added tokens with single_word, the Whitespace pre-tokenizer.",
                "numeric": "Rust's char::is_numeric: Digits.",
                "punctuation": "unicode_categories' punctuation and ASCII's: Punctuation.",
                "mark": "Combining marks: StripAccents."}
    for name, rows in class_tables().items():
        parts.append(c_table("unicode_range", f"unicode_{name}", rows, comments[name]))
    parts.append(c_table("unicode_mapping", "unicode_lower", lower_case(utf8proc),
                         "Lower case where older libraries lack it: what to add."))
    parts.append(c_table("unicode_range", "unicode_untouched", untouched(utf8proc),
                         "Younger than the library's normal forms: they leave these alone."))
    parts.append(c_table("unicode_mapping", "unicode_stand_in", stand_ins(),
                         "Classed by Oniguruma 6.9.10 as the third code point is."))
    with open(TARGET, "w", encoding="utf-8") as file:
        file.write("\n".join(parts))
    print(f"{os.path.getsize(TARGET)} bytes, {len(open(TARGET).readlines())} lines")


if __name__ == "__main__":
    sys.exit(main())
