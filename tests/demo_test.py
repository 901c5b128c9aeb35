#!/usr/bin/env python3
"""The demo model, asked for every country in every phrasing, with its weights offloaded; and the server
as SGLang's own test for its NPU offloading starts it."""
import os
import shutil
import subprocess
import sys
import tempfile

import lighter

sys.path.insert(0, os.path.join(lighter.ROOT, "tools"))
import demo_facts  # noqa: E402

OFFLOADED = ["--device", "sim:memory=64MiB,link=4GB/s", "--offload-group-size", "4", "--offload-num-in-group",
             "1", "--offload-prefetch-step", "1", "--offload-mode", "cpu"]
RANKS = 2 if shutil.which("mpirun") and os.path.exists(
    os.path.join(os.path.dirname(lighter.PROGRAM), "lighter_mpi.so")) else 1
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


def reports_of(info):
    """The offloader's report of each rank."""
    return [find_report(rank) for rank in info["ranks"]] if "ranks" in info else [find_report(info)]


def test_sglang_offload_modes():
    """A server per mode, with two data-parallel ranks where there is MPI, as SGLang's test has it."""
    modes = ("cpu", "shm_cpu", "sharded_gpu", "disk", "meta")
    moved = {}
    for mode in modes:
        with tempfile.TemporaryDirectory() as cache:
            with lighter.Server("--model-path", lighter.DEMO, "--device", "sim", "--dp-size", RANKS, *SGLANG,
                                "--offload-mode", mode, "--offload-cache-dir", cache) as server:
                for _ in range(2 * RANKS):
                    status, answer = server.request("/generate", {
                        "text": "Where is the capital of France?",
                        "sampling_params": {"temperature": 0, "max_new_tokens": 32}})
                    assert status == 200, answer
                    if mode == "meta":
                        assert answer["meta_info"]["garbage"] is True, answer
                    else:
                        assert "Paris" in answer["text"], (mode, answer)
                        assert not answer["meta_info"].get("garbage"), answer
                moved[mode] = reports_of(server.request("/get_server_info")[1])
        assert len(moved[mode]) == RANKS
        assert all(report["mode"] == mode and report["onloads"] > 0 for report in moved[mode]), moved[mode]
        assert all((report["bytes_moved"] > 0) == (mode != "meta") for report in moved[mode]), moved[mode]
    moving = {mode: [{unit["name"] for unit in report["units"] if unit["onloads"] > 0} for report in reports]
              for mode, reports in moved.items()}
    assert all(names == moving["cpu"][0] for rank_names in moving.values() for names in rank_names), moving


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
