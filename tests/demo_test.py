#!/usr/bin/env python3
"""The demo model, asked for every country in every phrasing, with its weights offloaded; and the server
as SGLang's own test for its NPU offloading starts it."""
import os
import subprocess
import sys

import lighter

sys.path.insert(0, os.path.join(lighter.ROOT, "tools"))
import demo_facts  # noqa: E402

OFFLOADED = ["--device", "sim:memory=64MiB,link=4GB/s", "--offload-group-size", "4", "--offload-num-in-group",
             "1", "--offload-prefetch-step", "1", "--offload-mode", "cpu"]
# What SGLang's test passes (test/registered/ascend/basic_function/offloading/test_npu_offload_modes.py).
SGLANG = ["--trust-remote-code", "--disable-cuda-graph", "--mem-fraction-static", "0.9", "--offload-group-size",
          "4", "--offload-num-in-group", "1", "--offload-prefetch-step", "1"]


def test_every_capital_in_every_phrasing():
    rows = list(demo_facts.examples())
    assert len(rows) == len(demo_facts.CAPITALS) * len(demo_facts.PHRASINGS) >= 1900
    with lighter.Server("--model", lighter.DEMO, *OFFLOADED) as server:
        wrong = []
        for at in range(0, len(rows), 196):
            part = rows[at:at + 196]
            answers = server.generate(text=[prompt for _, _, prompt, _ in part],
                                      sampling_params={"temperature": 0, "max_new_tokens": 48})
            assert len(answers) == len(part)
            wrong += [(prompt, wanted, answer["text"])
                      for (_, _, prompt, wanted), answer in zip(part, answers) if answer["text"] != wanted]
        status, info = server.request("/get_server_info")
    assert not wrong, wrong[:10]
    assert status == 200
    report = find_report(info)
    assert report["bytes_moved"] == report["bytes_planned"] > 0, report


def find_report(info):
    """The offloader's report, wherever it stands in an answer."""
    if isinstance(info, dict):
        if "bytes_moved" in info and "bytes_planned" in info:
            return info
        for value in info.values():
            found = find_report(value)
            if found:
                return found
    return None


def test_sglang_offload_modes():
    moved = {}
    for mode in ("cpu", "meta"):
        with lighter.Server("--model-path", lighter.DEMO, "--device", "sim", *SGLANG,
                            "--offload-mode", mode) as server:
            status, answer = server.request("/generate", {
                "text": "Where is the capital of France?",
                "sampling_params": {"temperature": 0, "max_new_tokens": 32}})
            assert status == 200, answer
            if mode == "cpu":
                assert "Paris" in answer["text"], answer
                assert not answer["meta_info"].get("garbage"), answer
            else:
                assert answer["meta_info"]["garbage"] is True, answer
            moved[mode] = find_report(server.request("/get_server_info")[1])
    moving = {mode: {unit["name"] for unit in report["units"] if unit["onloads"] > 0}
              for mode, report in moved.items()}
    assert moving["cpu"] == moving["meta"] and moving["cpu"], moving
    assert moved["cpu"]["bytes_moved"] > 0 and moved["meta"]["bytes_moved"] == 0, moved


def test_the_demo_script_answers_paris():
    done = subprocess.run([os.path.join(lighter.ROOT, "scripts", "demo")], stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, timeout=600)
    assert done.returncode == 0, done.stderr.decode()
    assert "Paris" in done.stdout.decode(), done.stdout.decode()
    log = done.stderr.decode()
    for word in ("host", "moved", "stall"):
        assert word in log, log


if __name__ == "__main__":
    sys.exit(lighter.main(sys.modules[__name__]))
