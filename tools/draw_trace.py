#!/usr/bin/env python3
"""Draws a part of a trace (--trace) as an SVG: docs/timeline.svg.

    draw_trace.py TRACE.json OUT.svg [--from-step N] [--steps N]

A row for each lane, a bar for each span; steps are counted from 0. A bar has its unit's name where there
is room, and in its tooltip always.
"""
import argparse
import html
import json

COLOURS = {"step": "#8893a5", "compute": "#2f7d4f", "stall": "#c2452d", "copy": "#2b6cb0", "disk": "#8a5a00"}
WIDTH, LEFT, ROW, GAP = 1100, 100, 26, 8


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("trace")
    parser.add_argument("out")
    parser.add_argument("--from-step", type=int, default=1)
    parser.add_argument("--steps", type=int, default=2)
    options = parser.parse_args()
    with open(options.trace, encoding="utf-8") as file:
        events = json.load(file)["traceEvents"]
    rows = {e["tid"]: e["args"]["name"] for e in events if e["ph"] == "M" and e["name"] == "thread_name"}
    spans = [e for e in events if e["ph"] == "X"]
    steps = [e for e in spans if e["cat"] == "step" and e["name"] != "sample"]
    steps = steps[options.from_step:options.from_step + options.steps]
    begin, end = steps[0]["ts"], steps[-1]["ts"] + steps[-1]["dur"]
    scale = (WIDTH - LEFT - 10) / (end - begin)
    tids = sorted({e["tid"] for e in spans if e["ts"] < end and e["ts"] + e["dur"] > begin})
    height = len(tids) * (ROW + GAP) + 40
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
           'font-family="sans-serif" font-size="11">', f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>']
    for place, tid in enumerate(tids):
        y = place * (ROW + GAP) + 10
        out.append(f'<text x="4" y="{y + 17}" fill="#222">{html.escape(rows[tid])}</text>')
        for span in spans:
            if span["tid"] != tid or span["ts"] >= end or span["ts"] + span["dur"] <= begin:
                continue
            left = max(span["ts"], begin)
            x, width = LEFT + (left - begin) * scale, (min(span["ts"] + span["dur"], end) - left) * scale
            name = html.escape(span["name"])
            out.append(f'<g><title>{name}, {span["dur"] / 1000:.3f} ms</title><rect x="{x:.1f}" y="{y}" '
                       f'width="{max(width, .5):.1f}" height="{ROW}" fill="{COLOURS[span["cat"]]}" stroke="#fff" '
                       'stroke-width=".4"/>')
            short = name.replace("layers.", "").replace("attention", "attn")
            if width > 6.5 * len(short):
                out.append(f'<text x="{x + 3:.1f}" y="{y + 17}" fill="#fff">{short}</text>')
            out.append("</g>")
    y = height - 10
    for tick in range(5):
        x = LEFT + tick * (WIDTH - LEFT - 10) / 4
        out.append(f'<text x="{x:.0f}" y="{y}" fill="#555" text-anchor="{"end" if tick == 4 else "start"}">'
                   f'{tick * (end - begin) / 4000:.1f} ms</text>')
    out.append("</svg>")
    with open(options.out, "w", encoding="utf-8") as file:
        file.write("\n".join(out) + "\n")


if __name__ == "__main__":
    main()
