#!/usr/bin/env python3
"""The whole program on an NPU, or rather on the stand-in of CANN's libraries (tests/cann).

SGLang's own test of its offloader on an NPU, with our program and its flags; the same bits whatever lives
where; what happens when a call of CANN fails, or when CANN is old or absent.
"""
import contextlib
import json
import os
import re
import sys
import tempfile

import numpy as np

import lighter

STAND_IN = os.path.join(os.path.dirname(lighter.PROGRAM), "tests", "cann")
PROMPT = "The capital of France is"
GREEDY = {"temperature": 0, "max_new_tokens": 8}
# test/registered/ascend/basic_function/offloading/test_npu_offload_modes.py of SGLang
SGLANG = ("--attention-backend", "ascend", "--offload-group-size", 4, "--offload-num-in-group", 1,
          "--offload-prefetch-step", 1)
NPU = ("--device", "ascend")
SMALL = ("--max-total-tokens", 256)
ASK = ("generate", "--model", lighter.DEMO, "--prompt", PROMPT, "--temperature", 0, "--max-new-tokens", 4)

os.environ["ASCEND_HOME_PATH"] = STAND_IN
os.environ.pop("ASCEND_TOOLKIT_HOME", None)


@contextlib.contextmanager
def setting(**values):
    """Environment variables for a while: CANN_STANDIN_..."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextlib.contextmanager
def counted():
    """A dictionary that afterwards has what the stand-in counted in the one process that ran."""
    counters = {}
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "report")
        with setting(CANN_STANDIN_REPORT=path):
            yield counters
        with open(path, encoding="utf-8") as file:
            for line in file:
                name, value = line.rstrip("\n").split(" ", 1)
                counters[name] = value if name == "fault" else int(value)


def no_trace(counters, after):
    """Everything was given back, and nothing was done that hardware would not survive."""
    left = {name: value for name, value in counters.items()
            if (name.startswith("live_") or name in ("leaks", "faults", "fault", "pageable_copies",
                                                     "executor_errors")) and value != 0}
    assert not left, (after, left)


def logits(*options, **environment):
    with tempfile.TemporaryDirectory() as folder, setting(**environment):
        path = os.path.join(folder, "logits.npy")
        lighter.run("logits", "--model", lighter.DEMO, "--prompt", PROMPT, "--out", path, *SMALL, *options, check=0)
        return np.load(path)


def test_sglangs_npu_test_says_paris_in_every_mode():
    with tempfile.TemporaryDirectory() as cache:
        modes = {mode: (*SGLANG, "--offload-mode", mode)
                 for mode in ("cpu", "sharded_gpu", "shm_cpu", "disk", "meta")}
        modes["disk"] += ("--offload-cache-dir", cache)
        modes["auto"] = ("--attention-backend", "ascend", "--offload-mode", "auto", "--offload-cache-dir", cache,
                         "--memory-budget", "26MiB", "--assume", "link=1GB/s,disk=1GB/s")
        modes["V1"] = ("--attention-backend", "ascend", "--cpu-offload-gb", 0.002)
        for mode, options in modes.items():
            with lighter.Server("--model", lighter.DEMO, "--dp-size", 2, *SMALL, *options) as server:
                answers = [server.generate(text=PROMPT, sampling_params=GREEDY) for _ in range(4)]
                info = server.request("/get_server_info")[1]
            assert {answer["meta_info"]["dp_rank"] for answer in answers} == {0, 1}, (mode, answers)
            if mode == "meta":
                assert all(answer["meta_info"]["garbage"] for answer in answers), answers
            else:
                assert all("Paris" in answer["text"] for answer in answers), (mode, answers)
            moved = [rank["report"]["offload"]["onloads"] for rank in info["ranks"]]
            assert all(moved), (mode, moved)
            assert not [line for line in server.log if "cann stand-in" in line], server.log


def test_the_same_bits_wherever_weights_live():
    resident = logits(*NPU)
    with tempfile.TemporaryDirectory() as cache:
        homes = {
            "cpu": ("--offload-group-size", 1, "--offload-mode", "cpu"),
            "two ahead": ("--offload-group-size", 2, "--offload-num-in-group", 2, "--offload-prefetch-step", 2,
                          "--offload-mode", "cpu"),
            "shm_cpu": ("--offload-group-size", 1, "--offload-mode", "shm_cpu"),
            "sharded_gpu": ("--offload-group-size", 1, "--offload-mode", "sharded_gpu"),
            "disk": ("--offload-group-size", 1, "--offload-mode", "disk", "--offload-cache-dir", cache),
            "V1": ("--cpu-offload-gb", 0.002),
        }
        for home, options in homes.items():
            assert np.array_equal(logits(*NPU, *options).view(np.uint32), resident.view(np.uint32)), home


def test_it_agrees_with_the_cpu():
    """Products round x to the weights' dtype, else all is F32. The first token's state has a few elements that
    are much larger than the others, and with them its logits are off by more."""
    for dtype, bound, bound_first in (("float32", 1e-4, 1e-4), ("float16", 0.005, 0.02), ("bfloat16", 0.05, 1)):
        wanted = logits("--device", "cpu", "--dtype", dtype)
        for environment in ({}, {"LIGHTER_ASCEND_ND": "1"}, {"CANN_STANDIN_RELEASE": "8.1.RC1"}):
            got = logits(*NPU, "--dtype", dtype, **environment)
            off = np.abs(got - wanted).max(-1)
            assert off[0] < bound_first and off[1:].max() < bound, (dtype, environment, off)
            assert (got.argmax(-1) == wanted.argmax(-1)).all(), (dtype, environment)


def test_onloads_are_plain_copies_from_pinned_memory():
    with counted() as counters:
        report = lighter.run_json(*ASK, *NPU, *SMALL, "--offload-group-size", 1)
    assert "Paris" in report["text"]
    no_trace(counters, "an answer")
    assert counters["async_copies"] > 20 and counters.get("format_casts", 0) == 0, counters
    assert counters.get("sync_copies", 0) == 0, counters


def test_nz_can_be_turned_off():
    """And what is kept in ND is said once."""
    for options, environment, used in ((NPU, {}, True), (NPU, {"LIGHTER_ASCEND_ND": "0"}, True),
                                       (NPU, {"LIGHTER_ASCEND_ND": "1"}, False),
                                       (("--device", "ascend:0,layout=nd"), {}, False),
                                       (("--device", "ascend:0,layout=nz"), {"LIGHTER_ASCEND_ND": "1"}, True)):
        with counted() as counters, setting(**environment):
            _, _, err = lighter.run(*ASK, *options, *SMALL, "--offload-group-size", 1, check=0)
        assert (counters.get("calls:aclnnMatmulWeightNz", 0) > 0) == used, (options, environment)
        assert err.count("are kept in FRACTAL_NZ") == used, err


def failures(counters):
    """(function, n): a call of each operator, the first and the last call of whatever else matters."""
    harmless = re.compile("calls:(acl(Destroy|Init|Finalize|GetRecent)|aclrt(Destroy|Free|Reset|GetSoc|GetVersion|"
                          "EventElapsed|QueryEvent|SynchronizeDevice|HostUnregister|IpcMemClose))")
    for name, count in sorted(counters.items()):
        if name.startswith("calls:") and count > 0 and not harmless.match(name):
            yield from ((name[6:], n) for n in ({count // 2 + 1} if "aclnn" in name else {1, count}))


def test_each_failure_is_one_sentence_and_leaves_nothing():
    ask = (*ASK[:-1], 2, *NPU, *SMALL, "--offload-group-size", 2, "--quiet")
    with counted() as counters:
        lighter.run(*ask, check=0)
    tried = 0
    for function, n in failures(counters):
        with counted() as after, setting(CANN_STANDIN_FAIL=f"{function}:{n}:507899"):
            status, _, err = lighter.run(*ask)
        what = f"call {n} of {function}: exit {status}: {err}"
        no_trace(after, what)
        tried += 1
        if status == 0:  # nothing depended on it: a time, or the end; or this run had fewer calls
            assert (function in ("aclrtSynchronizeEvent", "aclrtSynchronizeStream",
                                 "aclSetAclOpExecutorRepeatable", "aclSetTensorAddr")
                    or after[f"calls:{function}"] < n), what
            continue
        lines = err.splitlines()
        # While it serves, the engine says which step it was, and then the program says why it ends.
        assert status == 1 and "ascend:0: " in lines[-1] and len(lines) <= 2, what
        assert all(line.endswith(lines[-1][len("error: "):]) for line in lines), what
        if function.startswith("aclCreate"):  # these return NULL for want of memory
            assert "memory" in err, what
        else:
            assert "507899 ACL_ERROR_RT_DRV_INTERNAL_ERROR" in err and "the runtime says: " in err, what
            assert function in err, what
    assert tried > 40, tried


def test_a_failure_at_the_start_ends_the_ranks_too():
    with setting(CANN_STANDIN_FAIL="aclrtMalloc:3:207001"):
        status, _, err = lighter.run("serve", "--model", lighter.DEMO, "--port", 0, "--dp-size", 2, *SMALL, *SGLANG)
    assert status == 1 and "207001 ACL_ERROR_RT_MEMORY_ALLOCATION" in err, err
    assert "leak" not in err, err


def test_an_old_release_does_without_what_it_lacks():
    with setting(CANN_STANDIN_RELEASE="8.1.RC1"):
        for mode in ("cpu", "shm_cpu"):
            with counted() as counters:
                assert "Paris" in lighter.run_json(*ASK, *NPU, *SMALL, "--offload-group-size", 1, "--offload-mode",
                                                   mode)["text"]
            no_trace(counters, mode)
        status, _, err = lighter.run(*ASK, *NPU, *SMALL, "--offload-group-size", 1, "--offload-mode", "sharded_gpu")
        assert status == 1 and "aclrtIpcMemGetExportKey" in err and "sharded_gpu" in err, err
        missing = lighter.run_json("inspect", *NPU)["device"]["details"]["missing_optional"]
        assert {"aclrtHostRegisterV2", "aclrtIpcMemClose"} <= {symbol["symbol"] for symbol in missing}
        assert all(symbol["instead"] for symbol in missing), missing


def test_a_new_release_has_its_operators_in_several_libraries():
    with tempfile.TemporaryDirectory() as folder:
        os.mkdir(os.path.join(folder, "lib64"))
        for name, target in (("ascendcl", "ascendcl"), ("nnopbase", "nnopbase"), ("opapi_math", "opapi"),
                             ("opapi_nn", "opapi")):
            os.symlink(os.path.abspath(os.path.join(STAND_IN, "lib64", f"lib{target}.so")),
                       os.path.join(folder, "lib64", f"lib{name}.so"))
        with setting(ASCEND_HOME_PATH=folder):
            details = lighter.run_json("inspect", *NPU)["device"]["details"]
            found = {library["name"] for library in details["libraries"] if library["path"]}
            assert found == {"libascendcl.so", "libnnopbase.so", "libopapi_math.so", "libopapi_nn.so"}, details
            assert details["missing_required"] == [] and details["missing_optional"] == [], details
            assert "Paris" in lighter.run_json(*ASK, *NPU, *SMALL)["text"]
            os.remove(os.path.join(folder, "lib64", "libopapi_nn.so"))
            assert "Paris" in lighter.run_json(*ASK, *NPU, *SMALL)["text"]    # the other has them as well
            os.remove(os.path.join(folder, "lib64", "libopapi_math.so"))
            status, _, err = lighter.run(*ASK, *NPU)
            assert status == 1 and "libopapi.so of CANN (8.1.RC1 or later) could not be opened" in err, err


def test_inspect_tells_what_there_is_and_what_not():
    device = lighter.run_json("inspect", *NPU)["device"]
    assert device["available"] and device["reason"] is None
    details = device["details"]
    assert details["soc"] == "Ascend910B4" and details["npu_count"] == 2, details
    assert details["missing_required"] == [] and details["memory"]["total_bytes"] == 4 << 30, details
    assert "nothing" in details["verified_on_hardware"]
    assert all(library["path"].startswith(STAND_IN) for library in details["libraries"]), details
    with setting(CANN_STANDIN_WITHOUT="aclrtMemcpyAsync,aclnnMm"):
        device = lighter.run_json("inspect", *NPU)["device"]
        assert not device["available"] and "aclnnMm (libopapi.so, in CANN 8.1.RC1)" in device["reason"], device
        assert {"symbol": "aclrtMemcpyAsync", "library": "libascendcl.so", "since": "8.1.RC1"} in (
            device["details"]["missing_required"])
    with setting(ASCEND_HOME_PATH="/nowhere"):
        status, out, _ = lighter.run("inspect", *NPU, "--model", lighter.DEMO)
        assert status == 0 and "available: false" in out and "it will run" in out, out
        status, _, err = lighter.run(*ASK, *NPU)
        assert status == 1 and "libascendcl.so" in err and "ASCEND_HOME_PATH" in err, err


def test_the_selftest_passes_and_sees_what_is_wrong():
    with counted() as counters:
        _, out, _ = lighter.run("selftest", *NPU, check=0)
    no_trace(counters, "selftest")
    passed = re.search(r"^(\d+) checks passed, 0 failed, 4 unsupported", out, re.M)  # KV caches in F16, Q8_0, by head
    assert passed and int(passed.group(1)) > 120 and "available: true" in out, out
    with setting(CANN_STANDIN_FAIL="aclnnMm:2:507015"):
        status, out, err = lighter.run("selftest", *NPU, "--json")
    last = json.loads(out)["selftest"]["checks"][-1]
    assert status == 1 and "1 checks of ascend failed" in err, err
    assert last["result"] == "failed" and "507015 ACL_ERROR_RT_AICORE_EXCEPTION" in last["reason"], last


def test_small_npus_get_small_steps():
    with setting(CANN_STANDIN_MEMORY="33Gi"):
        assert "NPU" in lighter.run_json("inspect", "--device", "npu:1")["device"]["description"]
    status, _, err = lighter.run(*ASK, *NPU, "--memory-budget", "5MiB")
    found = re.search(r"the smallest budget that would do is (\d+) bytes", err)
    assert status == 1 and found, err
    assert "Paris" in lighter.run_json(*ASK, *NPU, "--memory-budget", found.group(1))["text"]


if __name__ == "__main__":
    sys.exit(lighter.main(sys.modules[__name__]))
