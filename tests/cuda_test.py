#!/usr/bin/env python3
"""The whole program on a GPU, or rather on the stand-in of one (tests/cuda); what is said where there is no GPU,
no driver and no module; and, where nvcc is, that the module for real GPUs was built and has what they need."""
import contextlib
import ctypes
import os
import shutil
import subprocess
import sys
import tempfile

import numpy as np

import lighter

BUILD = os.path.dirname(lighter.PROGRAM)
STAND_IN = os.path.join(BUILD, "tests", "cuda")
MODULE = os.path.join(BUILD, "lighter_cuda.so")
PROMPT = "The capital of France is"
GREEDY = {"temperature": 0, "max_new_tokens": 8}
GPU = ("--device", "cuda")
SMALL = ("--max-total-tokens", 256)
ASK = ("generate", "--model", lighter.DEMO, "--prompt", PROMPT, "--temperature", 0, "--max-new-tokens", 4)


@contextlib.contextmanager
def setting(**values):
    """Environment variables for a while; None: unset."""
    before = {name: os.environ.get(name) for name in values}
    for name, value in values.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


@contextlib.contextmanager
def counted():
    """A dictionary that afterwards has what the stand-in counted in the one process that ran."""
    counters = {}
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "report")
        with setting(CUDA_STANDIN_REPORT=path):
            yield counters
        with open(path, encoding="utf-8") as file:
            counters.update((line.split()[0], int(line.split()[1])) for line in file)


def logits(*options):
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "logits.npy")
        lighter.run("logits", "--model", lighter.DEMO, "--prompt", PROMPT, "--out", path, *SMALL, *options, check=0)
        return np.load(path)


def test_paris_in_every_mode_from_two_ranks():
    """Of cuda:0 that both share; without a number each has its own."""
    with tempfile.TemporaryDirectory() as cache:
        modes = {mode: ("--offload-group-size", 4, "--offload-mode", mode)
                 for mode in ("cpu", "sharded_gpu", "shm_cpu", "disk", "meta")}
        modes["disk"] += ("--offload-cache-dir", cache)
        modes["V1"] = ("--cpu-offload-gb", 0.002)
        for mode, options in modes.items():
            device = "cuda" if mode == "shm_cpu" else "cuda:0"
            with lighter.Server("--model", lighter.DEMO, "--device", device, "--dp-size", 2, *SMALL,
                                *options) as server:
                answers = [server.generate(text=PROMPT, sampling_params=GREEDY) for _ in range(4)]
            assert {answer["meta_info"]["dp_rank"] for answer in answers} == {0, 1}, (mode, answers)
            if mode == "meta":
                assert all(answer["meta_info"]["garbage"] for answer in answers), answers
            else:
                assert all("Paris" in answer["text"] for answer in answers), (mode, answers)


def test_a_unit_of_two_shards_is_one_call():
    """Made to fail, as ranks' counters are not to be had."""
    with setting(CUDA_STANDIN_FAIL="cuMemcpyBatchAsync"):
        status, _, err = lighter.run("serve", "--model", lighter.DEMO, "--device", "cuda:0", "--dp-size", 2, "--port", 0,
                                     *SMALL, "--offload-group-size", 4, "--offload-mode", "sharded_gpu")
    assert status == 1 and "cuMemcpyBatchAsync of 2 copies failed with cudaErrorIllegalAddress" in err, err


def test_it_agrees_with_the_cpu_and_with_itself():
    resident = logits(*GPU)
    assert np.abs(resident - logits("--device", "cpu")).max() < 1e-4
    for options in (("--offload-group-size", 1), ("--offload-experts",), ("--chunked-prefill-size", 3)):
        assert np.array_equal(logits(*GPU, *options).view(np.uint32), resident.view(np.uint32)), options


def test_onloads_are_copies_from_registered_memory():
    with counted() as counters:
        report = lighter.run_json(*ASK, *GPU, *SMALL, "--offload-group-size", 1)
    assert "Paris" in report["text"]
    left = {name: value for name, value in counters.items() if name.startswith("live_") and value}
    assert not left and counters["launches"] > 100 and counters.get("pageable_in", 0) == 0, counters


def test_plan_measures_the_link():
    plan = lighter.run_json("plan", "--model", lighter.DEMO, *GPU, "--offload-mode", "auto", "--memory-budget", "26MiB")
    assert "link_bytes_per_s" in str(plan), plan


def refused(says, *options, **environment):
    with setting(**environment):
        status, _, err = lighter.run(*ASK, *options)
    assert status == 1 and says in err and len(err.splitlines()) == 1, err


def test_what_is_missing_is_said():
    with tempfile.TemporaryDirectory() as folder:
        program = os.path.join(folder, "lighter")
        shutil.copy(lighter.PROGRAM, program)
        done = subprocess.run([program, "selftest", *GPU], capture_output=True, text=True,
                              env={**os.environ, "LIGHTER_CUDA_FOLDER": ""}, check=False)
        assert done.returncode == 1 and "has no lighter_cuda.so beside the program" in done.stderr, done.stderr
        with open(os.path.join(folder, "lighter_cuda.so"), "w", encoding="ascii") as file:
            file.write("no library")
        refused("cannot be opened", *GPU, LIGHTER_CUDA_FOLDER=folder)
    refused("CUDA sees no GPU here", *GPU, CUDA_STANDIN_GPUS="0")
    refused("this machine has 2 GPUs that CUDA can see", "--device", "cuda:2")
    report = lighter.run_json("inspect", "--device", "cuda:7")["device"]
    assert not report["available"] and len(report["details"]["gpus"]) == 2, report


def test_the_module_for_gpus_is_built_and_opens():
    """With machine code for what docs/cuda.md lists. No driver is needed for that."""
    if not (shutil.which("nvcc") or os.path.exists("/usr/local/cuda/bin/nvcc")):
        raise lighter.Skipped("there is no nvcc here, so nothing is compiled for GPUs")
    ctypes.CDLL(MODULE)
    with setting(LIGHTER_CUDA_FOLDER=None):
        report = lighter.run_json("inspect", "--device", "cuda")["device"]
    assert report["details"]["module"] == os.path.realpath(MODULE), report
    assert "PTX" in report["details"]["built_for"] and "sm_90" in report["details"]["built_for"], report
    assert report["available"] or "driver" in report["reason"] or "GPU" in report["reason"], report


os.environ["LIGHTER_CUDA_FOLDER"] = STAND_IN

if __name__ == "__main__":
    sys.exit(lighter.main(sys.modules[__name__]))
