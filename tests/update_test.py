#!/usr/bin/env python3
"""POST /update_weights_from_disk, as clients see it: answers after an update are those of a server that was
started with the new weights, wherever these live; requests in flight finish first, are paused, or aborted; and
what does not fit leaves the old weights serving. The second version of the demo model is made here, by flipping
two bits of every weight's low byte."""
import concurrent.futures
import contextlib
import http.client
import json
import os
import shutil
import signal
import struct
import sys
import tempfile
import urllib.parse

import lighter
import ranks_test
from ranks_test import ranks, wait_until

PATH = "/update_weights_from_disk"
PROMPTS = [f"The capital of {country} is" for country in ("France", "Japan", "Peru")]
GREEDY = {"temperature": 0, "max_new_tokens": 12, "ignore_eos": True}
LONG_TOKENS = 120  # some 7 s: what is done to an answer comes in its middle
LONG = {"temperature": 0, "max_new_tokens": LONG_TOKENS, "ignore_eos": True}
SIM = ["--device", "sim:memory=64MiB"]
# A step takes at least 60 ms, what the link needs for two units.
SLOW = ["--device", "sim:memory=64MiB,link=20MB/s", "--offload-group-size", "4", "--offload-num-in-group", "1"]
V2 = ["--offload-group-size", "2", "--offload-num-in-group", "1"]
folder = other = None  # set below: a folder for all files, and in it the other version
reference = {}         # what servers started with either version answer


def make_version(name):
    """A copy of the demo model with other weights."""
    target = os.path.join(folder, name)
    shutil.copytree(lighter.DEMO, target)
    path = os.path.join(target, "model.safetensors")
    data = bytearray(open(path, "rb").read())
    first = 8 + struct.unpack("<Q", data[:8])[0]
    data[first::2] = bytes(byte ^ 0x60 for byte in data[first::2])
    os.chmod(path, 0o644)
    with open(path, "wb") as file:
        file.write(data)
    return target


def make_wider(name):
    """A copy of the other version whose BF16 weights are F32: the same numbers."""
    target = os.path.join(folder, name)
    shutil.copytree(other, target)
    path = os.path.join(target, "model.safetensors")
    data = open(path, "rb").read()
    first = 8 + struct.unpack("<Q", data[:8])[0]
    header, body = json.loads(data[8:first]), bytearray()
    for key, entry in header.items():
        if key == "__metadata__":
            continue
        begin, end = (first + offset for offset in entry["data_offsets"])
        piece = data[begin:end]
        if entry["dtype"] == "BF16":
            wide = bytearray(2 * len(piece))
            wide[2::4], wide[3::4] = piece[::2], piece[1::2]
            entry["dtype"], piece = "F32", bytes(wide)
        entry["data_offsets"] = [len(body), len(body) + len(piece)]
        body += piece
    text = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text + body)
    return target


def ids(server):
    return [server.generate(text=prompt, sampling_params=GREEDY)["output_ids"] for prompt in PROMPTS]


def update(server, path, **more):
    return server.request(PATH, {"model_path": path, **more})


def check_served(server, path, version):
    info = server.request("/get_model_info")[1]
    assert (info["model_path"], info["weight_version"]) == (path, version), info
    info = server.request("/get_server_info")[1]
    assert info["weight_version"] == info["engine"]["weight_version"] == version, info
    answer = server.generate(text=PROMPTS[0], sampling_params=GREEDY)
    assert answer["meta_info"]["weight_version"] == version, answer["meta_info"]


def test_every_home_serves_the_new_weights():
    cache = ["--offload-cache-dir", os.path.join(folder, "cache")]
    for options in ([], SIM, V2, SIM + V2, SIM + ["--cpu-offload-gb", "0.002"],
                    V2 + ["--offload-mode", "disk"] + cache, SIM + V2 + ["--offload-mode", "disk"] + cache,
                    ["--offload-mode", "auto", "--memory-budget", "8MiB", "--max-total-tokens", "512"] + cache,
                    SIM + ["--offload-experts"], ["--offload-experts", "--offload-mode", "disk"] + cache,
                    V2 + ["--offload-mode", "meta"], SIM + V2 + ["--offload-mode", "shm_cpu"]):
        meta = "meta" in options
        with lighter.Server("--model", lighter.DEMO, *options) as server:
            assert meta or ids(server) == reference["old"], options
            assert update(server, other, weight_version="2") == (
                200, {"success": True, "message": "Succeeded to update model weights.",
                      "num_paused_requests": 0}), options
            assert ids(server) == reference["new"], options
            check_served(server, other, "2")
            answer = server.generate(text=PROMPTS[0], sampling_params=GREEDY)
            assert "garbage" not in answer["meta_info"], options
            assert update(server, lighter.DEMO)[0] == 200, options
            assert ids(server) == reference["old"], options
            check_served(server, lighter.DEMO, "2")


def change_packed(source, name, dtype, mask):
    """A copy of a checkpoint in which every byte of the tensors of that dtype is another."""
    target = os.path.join(folder, name)
    shutil.copytree(source, target)
    path = os.path.join(target, "model.safetensors")
    data = bytearray(open(path, "rb").read())
    first = 8 + struct.unpack("<Q", data[:8])[0]
    for key, entry in json.loads(data[8:first]).items():
        if key == "__metadata__" or entry["dtype"] != dtype or key.endswith(("qzeros", "g_idx")):
            continue
        begin, end = (first + offset for offset in entry["data_offsets"])
        data[begin:end] = bytes(byte ^ mask for byte in data[begin:end])
    os.chmod(path, 0o644)
    with open(path, "wb") as file:
        file.write(data)
    return target


def packed_models():
    """By name: the old version, the new one, and the new one cut off."""
    golden = os.path.join(lighter.ROOT, "tests", "golden", "packed")
    fp8, gptq = (os.path.join(golden, name) for name in ("qwen3_fp8", "llama_gptq"))
    models = {"fp8": [fp8, change_packed(fp8, "fp8", "F8_E4M3", 0x80)],
              "gptq": [gptq, change_packed(gptq, "gptq", "I32", 0x11)], "q4_0": []}
    for name, source in (("old", lighter.DEMO), ("new", other)):
        models["q4_0"].append(os.path.join(folder, f"{name}-q4_0.gguf"))
        lighter.run("quantize", "--model", source, "--out", models["q4_0"][-1], "--type", "Q4_0", "--pre",
                    "deepseek-v3", "--quiet", check=0)
    for name, versions in models.items():
        cut = os.path.join(folder, os.path.basename(versions[1]).replace(name, name + "-cut"))
        if os.path.isdir(versions[1]):
            shutil.copytree(versions[1], cut)
            weights = os.path.join(cut, "model.safetensors")
        else:
            weights = shutil.copy(versions[1], cut)
        os.truncate(weights, os.path.getsize(weights) * 2 // 3)
        versions.append(cut)
    return models


def packed_ids(server):
    return [server.generate(input_ids=prompt, sampling_params=GREEDY)["output_ids"] for prompt in ([5, 9, 3], [1, 40])]


def test_packed_weights_are_updated():
    cache = ["--offload-cache-dir", os.path.join(folder, "cache-packed")]
    places = ([], SIM + V2, SIM + V2 + ["--offload-mode", "disk"] + cache)
    for name, (old, new, cut) in packed_models().items():
        wanted = []
        for version in (old, new):
            with lighter.Server("--model", version) as server:
                wanted.append(packed_ids(server))
        assert wanted[0] != wanted[1], name
        for options in places:
            with lighter.Server("--model", old, *options) as server:
                assert packed_ids(server) == wanted[0], (name, options)
                status, answer = update(server, cut, weight_version="cut")
                assert status == 400 and os.path.basename(cut) in answer["message"], (name, options, answer)
                assert packed_ids(server) == wanted[0], (name, options)
                assert server.request("/get_model_info")[1]["weight_version"] == "default"
                assert update(server, new, weight_version="2")[0] == 200, (name, options)
                assert packed_ids(server) == wanted[1], (name, options)
                info = server.request("/get_model_info")[1]
                assert (info["model_path"], info["weight_version"]) == (new, "2"), info


def test_what_does_not_fit_leaves_the_old_weights_serving():
    lacking = os.path.join(folder, "lacking")
    cut = os.path.join(folder, "cut")
    unlike = os.path.join(folder, "unlike")
    for path in (lacking, cut, unlike):
        shutil.copytree(other, path)
    with open(os.path.join(lacking, "model.safetensors"), "r+b") as file:
        head = file.read(1 << 16)
        at = head.index(b"layers.1.")
        file.seek(at)
        file.write(b"layers.9.")
    os.truncate(os.path.join(cut, "model.safetensors"), 3 << 20)
    config = json.load(open(os.path.join(unlike, "config.json"), encoding="utf-8"))
    with open(os.path.join(unlike, "config.json"), "w", encoding="utf-8") as file:
        json.dump({**config, "rope_theta": 12345.0, "rope_parameters": None}, file)
    with lighter.Server("--model", lighter.DEMO, "--weight-version", "first", *SIM, *V2) as server:
        for body, word in (({"model_path": lacking}, "layers"), ({"model_path": cut}, "model.safetensors"),
                           ({"model_path": unlike}, "configuration"),
                           ({"model_path": folder + "/none"}, "no such"),
                           ({"model_path": lighter.ROOT + "/tests/golden/models/deepseek_v3"}, ""),
                           ({}, "model_path"), ({"model_path": 3}, "model_path"), ([], "object"),
                           (b"{", "JSON"), ({"model_path": other, "nonsense": 1}, "nonsense"),
                           ({"model_path": other, "is_async": True}, "is_async"),
                           ({"model_path": other, "load_format": "npz"}, "load_format"),
                           ({"model_path": other, "in_flight": "drop"}, "in_flight"),
                           ({"model_path": other, "weight_version": "x" * 200}, "version")):
            status, answer = server.request(PATH, body)
            assert status == 400 and answer["success"] is False and word in answer["message"], (body, answer)
            assert answer["num_paused_requests"] == 0
        assert ids(server) == reference["old"]
        check_served(server, lighter.DEMO, "first")
        assert server.request(PATH)[0] == 405


@contextlib.contextmanager
def streams(server, count, version="default"):
    """Streams that have brought some tokens each, as iterators over their events."""
    with contextlib.ExitStack() as stack:
        opened = []
        for number in range(count):
            url = urllib.parse.urlsplit(server.url)
            connection = stack.enter_context(contextlib.closing(
                http.client.HTTPConnection(url.hostname, url.port, timeout=lighter.WAIT_SECONDS)))
            connection.request("POST", "/generate", json.dumps(
                {"text": PROMPTS[number % 3], "stream": True, "sampling_params": LONG}))
            lines = (line[6:] for line in connection.getresponse() if line.startswith(b"data: "))
            opened.append(json.loads(line) for line in lines if line.strip() != b"[DONE]")
        for events in opened:
            for _ in range(3):
                assert next(events)["meta_info"]["weight_version"] == version
        yield opened


def test_requests_in_flight_finish_are_paused_or_aborted():
    with lighter.Server("--model", lighter.DEMO, *SLOW) as server:
        with streams(server, 3) as opened:
            status, answer = update(server, other, weight_version="2", in_flight="pause")
            assert (status, answer["num_paused_requests"]) == (200, 3), answer
            for events in opened:
                last = list(events)[-1]
                assert last["meta_info"]["weight_version"] == "2", last
                assert last["meta_info"]["completion_tokens"] == LONG_TOKENS, last
        assert ids(server) == reference["new"]
    with lighter.Server("--model", lighter.DEMO, *SLOW) as server:
        whole = server.generate(text=PROMPTS[0], sampling_params=LONG)["output_ids"]
        with streams(server, 2) as opened, concurrent.futures.ThreadPoolExecutor(1) as pool:
            done = pool.submit(update, server, other, weight_version="2")
            lasts = [list(events)[-1] for events in opened]
            assert lasts[0]["output_ids"] == whole
            assert all(last["meta_info"]["weight_version"] == "default" for last in lasts), lasts
            assert done.result()[0] == 200
        assert ids(server) == reference["new"]
    with lighter.Server("--model", lighter.DEMO, *SLOW) as server:
        with streams(server, 2) as opened:
            assert update(server, other, weight_version="2", abort_all_requests=True)[0] == 200
            for events in opened:
                last = list(events)[-1]["meta_info"]
                assert last["finish_reason"]["type"] == "abort" and "update" in last["finish_reason"]["message"]
        assert ids(server) == reference["new"]


def test_one_update_at_a_time():
    with lighter.Server("--model", lighter.DEMO, *SLOW) as server:
        with streams(server, 1) as opened, concurrent.futures.ThreadPoolExecutor(4) as pool:
            done = [pool.submit(update, server, other) for _ in range(4)]
            list(opened[0])
            said = [future.result() for future in done]
        assert [status for status, _ in said].count(200) == 1, said
        assert all("under way" in answer["message"] for status, answer in said if status != 200), said
        assert ids(server) == reference["new"]


def needs_ranks():
    if shutil.which("mpirun") is None or not os.path.exists(ranks_test.MODULE):
        raise lighter.Skipped("there is no Open MPI")


def check_ranks(server, which, version):
    """Every rank answers with these weights, and says so."""
    wait_until("all ranks are up", lambda: all(rank["state"] == "up" for rank in ranks(server)))
    seen = set()
    for number in range(3):
        answer = server.generate(text=PROMPTS[number % 3], sampling_params=GREEDY)
        seen.add(answer["meta_info"]["dp_rank"])
        assert answer["meta_info"]["weight_version"] == version, answer["meta_info"]
        assert which is None or answer["output_ids"] == reference[which][number % 3], (which, answer)
    assert seen == {0, 1}, seen
    assert [rank["report"]["weight_version"] for rank in ranks(server)] == [version] * 2


def kill_rank(server, number):
    old = ranks(server)[number]["pid"]
    os.kill(old, signal.SIGKILL)
    wait_until("its end is noticed", lambda: ranks(server)[number]["pid"] != old)


def test_all_ranks_switch_together_in_every_mode():
    needs_ranks()
    modes = {"off": (), **{mode: ("--offload-mode", mode, *options) for mode, options in ranks_test.MODES.items()}}
    for number, (mode, options) in enumerate(modes.items()):
        cache = ["--offload-cache-dir", os.path.join(folder, "cache-ranks")]
        with lighter.Server("--model", lighter.DEMO, "--dp-size", 2, *options, *cache,
                            "--device", "sim:memory=1GiB,link=500MB/s") as server:
            check_ranks(server, None if mode == "meta" else "old", "default")
            with streams(server, 2) as opened, concurrent.futures.ThreadPoolExecutor(1) as pool:
                pause = number % 2 == 0
                done = pool.submit(update, server, other, weight_version="2",
                                   in_flight="pause" if pause else "finish")
                lasts = [list(events)[-1]["meta_info"] for events in opened]
                status, answer = done.result()
                assert status == 200 and answer["num_paused_requests"] <= (2 if pause else 0), (mode, answer)
                assert all(last["completion_tokens"] == LONG_TOKENS for last in lasts), (mode, lasts)
                assert pause or all(last["weight_version"] == "default" for last in lasts), (mode, lasts)
            check_ranks(server, "new", "2")
            check_served(server, other, "2")
            if mode in ("off", "shm_cpu", "sharded_gpu"):  # whoever is started again serves what serves now
                kill_rank(server, 1)
                check_ranks(server, "new", "2")


def test_ranks_pause_what_runs():
    needs_ranks()
    with lighter.Server("--model", lighter.DEMO, "--dp-size", 2, *SLOW) as server:
        with streams(server, 3) as opened:
            status, answer = update(server, other, weight_version="2", in_flight="pause")
            assert (status, answer["num_paused_requests"]) == (200, 3), answer
            for events in opened:
                last = list(events)[-1]["meta_info"]
                assert (last["weight_version"], last["completion_tokens"]) == ("2", LONG_TOKENS), last


def test_one_rank_that_fails_or_dies_leaves_the_old_weights_to_all():
    needs_ranks()
    cut = os.path.join(folder, "cut-ranks")
    shutil.copytree(other, cut)
    os.truncate(os.path.join(cut, "model.safetensors"), 3 << 20)
    with lighter.Server("--model", lighter.DEMO, "--dp-size", 2, "--weight-version", "7", *SLOW,
                        "--offload-mode", "shm_cpu") as server:
        status, answer = update(server, cut, weight_version="8")
        assert status == 400 and "rank" in answer["message"] and "model.safetensors" in answer["message"], answer
        status, answer = update(server, make_wider("wider"))  # a new rank would serve F32
        assert status == 400 and "--dtype" in answer["message"], answer
        check_ranks(server, "old", "7")
        with streams(server, 2, "7"), concurrent.futures.ThreadPoolExecutor(1) as pool:
            done = pool.submit(update, server, other, weight_version="8", in_flight="finish")
            wait_until("the update waits for the streams", lambda: done.done() or server.request(
                "/get_server_info")[1].get("update_waits_for") not in (None, "prepared"))
            os.kill(ranks(server)[1]["pid"], signal.SIGKILL)
            status, answer = done.result()
        assert status == 400 and "rank 1" in answer["message"], answer
        check_ranks(server, "old", "7")
        check_served(server, lighter.DEMO, "7")
        assert update(server, other, weight_version="8")[0] == 200  # the first rank of those that share still is
        check_ranks(server, "new", "8")
        kill_rank(server, 0)
        check_ranks(server, "new", "8")
        status, answer = update(server, lighter.DEMO, weight_version="9")
        assert status == 200, answer  # who came last fills what all of them share
        check_ranks(server, "old", "9")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="lighter-update-") as folder:
        other = make_version("other")
        for name, model in (("old", lighter.DEMO), ("new", other)):
            with lighter.Server("--model", model) as started:
                reference[name] = ids(started)
        assert reference["old"] != reference["new"]
        code = lighter.main(sys.modules[__name__])
    sys.exit(code)
