#!/usr/bin/env python3
"""The program as its users see it: every subcommand, its help, its JSON, its exit status and its sentences."""
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import numpy

import lighter

COMMANDS = ("generate", "chat", "serve", "bench", "logits", "tokenize", "inspect")
SIM = ("--device", "sim:memory=64MiB,link=4GB/s", "--offload-group-size", "2", "--offload-num-in-group", "1",
       "--offload-prefetch-step", "1")
SMALL = ("--threads", "1", "--context-length", "256")
QUESTION = "Where is the capital of France?"
GREEDY = ("--temperature", "0", "--max-new-tokens", "32")


def one_object(text):
    """Parses text, which must be one JSON object and nothing else."""
    value, end = json.JSONDecoder().raw_decode(text)
    assert isinstance(value, dict) and text[end:].strip() == "", text[:200]
    return value


def fails(*arguments, code, words, stdin=""):
    """The program refuses: exit status, no output, and one sentence with every one of the words."""
    got, out, err = lighter.run(*arguments, stdin=stdin)
    assert got == code, (arguments, got, err)
    assert out == "", out
    last = err.strip().split("\n")[-1]
    assert last.startswith("error: "), err
    for word in words:
        assert word in last, (word, last)
    got, out, _ = lighter.run(*arguments, "--json", stdin=stdin)
    assert got == code and one_object(out)["error"]["message"] == last[len("error: "):], out


def make_model(folder, *arguments):
    subprocess.run([sys.executable, os.path.join(lighter.ROOT, "tools", "make_random_model.py"), *arguments, folder],
                   check=True, stdout=subprocess.DEVNULL)
    return folder


def find(value, key):
    """The first value that stands under the key, at any depth."""
    if isinstance(value, dict):
        if key in value:
            return value[key]
        for inner in value.values():
            found = find(inner, key)
            if found is not None:
                return found
    return None


def test_help_of_every_command():
    for flag in ("--help", "-h", "help"):
        _, out, err = lighter.run(flag, check=0)
        assert all(command in out for command in COMMANDS) and err == ""
    assert re.fullmatch(r"lighter \d+\.\d+\.\d+\n", lighter.run("--version", check=0)[1])
    for command in COMMANDS:
        _, out, err = lighter.run(command, "--help", check=0)
        assert f"lighter {command}" in out and "--model" in out and "--json" in out and err == ""
        assert max(map(len, out.split("\n"))) <= 100, command
        options = one_object(lighter.run(command, "--help", "--json", check=0)[1])["options"]
        assert all(f"--{option['name']}" in out for option in options) and len(options) >= 6


def test_bad_usage_exits_2_and_names_what_is_nearest():
    assert lighter.run()[0] == 2
    fails("sevre", code=2, words=["sevre", "'serve'"])
    fails("serve", code=2, words=["--model"])
    fails("serve", "--model", "m", "--prot", "1", code=2, words=["--prot", "--port"])
    fails("serve", "--model", "m", "--port=65536", code=2, words=["--port", "65535"])
    fails("generate", "--model", "m", code=2, words=["--prompt"])
    fails("generate", "--model", lighter.DEMO, "--prompt", "x", "--device", "smi", code=2, words=["sim"])
    fails("tokenize", "--model", "m", "--port", "1", code=2, words=["--port", "serve"])
    fails("serve", "--model", "m", "--tp-size", "2", code=2, words=["--tp-size", "only 1"])
    fails("generate", "--model", "m", "--prompt", "x", "--dp-size", "2", code=2, words=["--dp-size", "one rank"])
    fails("serve", "--model", "m", "--api-key", "secret", code=2, words=["--api-key"])


def test_failures_exit_1_and_name_the_file():
    for command in ("serve", "bench", "inspect"):
        fails(command, "--model", "no/such/folder", code=1, words=["no/such/folder"])
    fails("generate", "--model", "no/such/folder", "--input-ids", "1", code=1, words=["no/such/folder"])
    fails("tokenize", "--model", "no/such/folder", code=1, words=["no/such/folder"])
    fails("generate", "--model", lighter.DEMO, "--prompt-file", "no/such/file", code=1, words=["no/such/file"])
    fails("generate", "--model", lighter.DEMO, "--prompt", "x", "--memory-budget", "1MiB", code=1,
          words=["budget", "smallest"])
    fails("logits", "--model", lighter.DEMO, *SMALL, "--input-ids", "1", "--out", "/no/such/place.npy", code=1,
          words=["/no/such/place.npy"])


def test_requests_that_cannot_be_are_bad_usage():
    fails("generate", "--model", lighter.DEMO, *SMALL, "--input-ids", "1,999999", code=2, words=["999999"])
    fails("generate", "--model", lighter.DEMO, *SMALL, "--input-ids", ",".join(["5"] * 300), code=2, words=["256"])
    fails("generate", "--model", lighter.DEMO, "--context-length", "100000", "--prompt", "x", code=2,
          words=["100000"])
    fails("tokenize", "--model", lighter.DEMO, "--decode", "5,999999", code=2, words=["999999"])


def test_offload_settings_that_cannot_be_are_refused():
    ask = ("generate", "--model", lighter.DEMO, "--prompt", "x", "--device", "sim:memory=64MiB")
    fails(*ask, "--offload-mode", "auto", "--offload-group-size", "2", code=2, words=["auto", "--offload-group-size"])
    fails(*ask, "--offload-mode", "cpuu", code=2, words=["'cpu'"])
    fails(*ask, "--kv-cache-dtype", "fp8_e5m2", code=2, words=["--kv-cache-dtype", "q8_0"])
    fails(*ask, "--offload-group-size", "2", "--offload-num-in-group", "3", code=2, words=["2", "3"])
    fails(*ask, "--offload-group-size", "2", "--offload-prefetch-step", "0", code=2, words=["prefetch"])
    fails(*ask, "--offload-group-size", "2", "--cpu-offload-gb", "1", code=2, words=["cpu-offload-gb"])
    fails(*ask, "--offload-group-size", "2", "--offload-params", "*.no_such_thing", code=2,
          words=["*.no_such_thing"])


def test_plan_tells_what_would_live_where_and_loads_nothing():
    _, out, _ = lighter.run("plan", "--model", lighter.DEMO, "--memory-budget", "8MiB", "--offload-mode", "auto",
                            "--offload-disk", "depth=4", "--prompt-tokens", "32", "--gen-tokens", "32",
                            "--assume", "disk=100MB/s,read=10GB/s", "--max-total-tokens", "64", "--json", "--quiet",
                            check=0)
    plan = json.loads(out)
    assert plan["budget_bytes"] == 8 << 20 and plan["mode"] == "auto", plan
    taken = plan["offload"]["resident_bytes"] + plan["offload"]["slots"] * plan["offload"]["slot_bytes"]
    taken += plan["scratch_bytes"] + plan["kv_cache"]["tokens"] * plan["kv_cache"]["bytes_per_token"]
    assert taken <= plan["budget_bytes"], plan
    forecast = plan["forecast"]
    moved = forecast["decode"]["bytes_moved"]
    assert moved == plan["offload"]["moving_bytes"]
    assert abs(forecast["decode"]["move_s"] - moved / 100e6) < 1e-9
    assert forecast["decode_tokens_per_s"] > 0 and forecast["prefill_tokens_per_s"] > 0
    assert sum(plan["homes"].values()) > 6 << 20
    assert plan["kv_cache"]["dtype"] == "F32" and plan["kv_cache"]["bytes_per_token"] == 8 * 64 * 4
    for name, bytes_each in (("f16", 64 * 2), ("q8_0", 2 * 34)):
        _, out, _ = lighter.run("plan", "--model", lighter.DEMO, "--memory-budget", "8MiB", "--assume", "disk=100MB/s",
                                "--kv-cache-dtype", name, "--max-total-tokens", "64", "--json", "--quiet", check=0)
        narrow = json.loads(out)["kv_cache"]
        assert narrow["dtype"] == name.upper() and narrow["bytes_per_token"] == 8 * bytes_each, narrow
    fails("plan", "--model", lighter.DEMO, "--assume", "disc=1GB/s", code=2, words=["disk=RATE", "disc=1GB/s"])
    fails("plan", "--model", lighter.DEMO, "--assume", "disk=fast", code=2, words=["fast"])


def test_what_moves_is_forecast_before_it_is_loaded():
    """In every mode, with what came of it afterwards; nothing is measured for a model that stays."""
    ask = ("generate", "--model", lighter.DEMO, "--device", "sim:memory=64MiB,link=4GB/s", *SMALL, *GREEDY, "--prompt",
           QUESTION)
    for flags in (["--offload-group-size", "2"], ["--cpu-offload-gb", "0.002"],
                  ["--offload-mode", "auto", "--memory-budget", "5MiB", "--max-total-tokens", "64"],
                  ["--offload-group-size", "2", "--offload-params", "*.self_attn.o_proj.weight", "--offload-mode", "disk",
                   "--assume", "disk=1GB/s"]):
        err = lighter.run(*ask, *flags, check=0)[2]
        before = err[:err.find("prompt tokens, ")]
        assert 0 < before.find("rates: memory") < before.find("forecast: a token moves"), (flags, err)
        assert re.search("^generated .* forecast", err[len(before):], re.M), (flags, err)
        assert "has no effect" not in err, err
        answer = lighter.run_json(*ask, *flags)["forecast"]
        assert answer["decode_tokens_per_s"] > 0 and answer["lacks"] is None, answer
        assert answer["rates"]["link_bytes_per_s"] == 4e9 and answer["decode"]["bytes_moved"] > 0, answer
        assert answer["rates"]["disk_bytes_per_s"] == (1e9 if "--assume" in flags else None), answer
    for flags in ([], ["--offload-mode", "auto"]):
        assert "forecast" not in lighter.run(*ask, *flags, check=0)[2]
        assert lighter.run_json(*ask, *flags)["forecast"] is None
    for flags in (["--cpu-offload-gb", "0.002"], ["--offload-group-size", "2"]):  # used where it is: nothing moves
        assert lighter.run_json("generate", "--model", lighter.DEMO, *SMALL, *GREEDY, "--prompt", QUESTION,
                                *flags)["forecast"] is None
    err = lighter.run(*ask, "--offload-group-size", "2", "--offload-mode", "meta", check=0)[2]
    assert err.count("no forecast: weights at home in meta") == 1, err
    with lighter.Server("--model", lighter.DEMO, *SIM) as server:
        assert sum("forecast: a token moves" in line for line in server.log) == 1, server.log


def test_copies_of_own_shards_are_part_of_the_forecast():
    """They pass no link, but they take their time: beside computing, or the processors' own."""
    for device, together in (("sim:memory=64MiB,link=1GB/s", max), ("cpu", lambda a, b: a + b)):
        ask = ("plan", "--model", lighter.DEMO, "--device", device, "--offload-mode", "sharded_gpu",
               "--offload-group-size", "1", "--assume", "read=10GB/s")
        plan = lighter.run_json(*ask)
        rates, step = plan["forecast"]["rates"], plan["forecast"]["decode"]
        assert step["own_bytes"] == step["bytes_moved"] == plan["offload"]["moving_bytes"] > 0, step
        assert step["peer_bytes"] == step["link_bytes"] == 0, step
        assert rates["copy_bytes_per_s"] > 1e7, rates
        onloads_s = plan["offload"]["units"] * rates["costs"]["onload_s"]
        assert abs(step["move_s"] - onloads_s - step["own_bytes"] / rates["copy_bytes_per_s"]) < 1e-9, (rates, step)
        assert abs(step["step_s"] - together(step["compute_s"], step["move_s"])) < 1e-9, step
        err = lighter.run(*ask, check=0)[2]
        assert re.search(r"token moves (\S+ MiB) \(\1 from own shards\) in", err), err
        assert "copies within the device" in err, err


def test_a_rate_that_is_not_known_is_null():
    """A file of few reads is too small to measure its disk by."""
    ask = ("--model", os.path.join(lighter.ROOT, "tests", "golden", "models", "deepseek_v3"), "--offload-mode", "disk",
           "--offload-group-size", "1")
    forecast = lighter.run_json("plan", *ask)["forecast"]
    assert forecast["lacks"] == "disk" and forecast["rates"]["disk_bytes_per_s"] is None, forecast
    assert forecast["rates"]["read_bytes_per_s"] > 0 and forecast["decode"]["disk_bytes"] > 0, forecast
    for key in ("decode_tokens_per_s", "decode_bound_tokens_per_s", "prefill_tokens_per_s", "prompt_s"):
        assert forecast[key] is None and forecast["decode"]["step_s"] is None, forecast
    err = lighter.run("plan", *ask, check=0)[2]
    assert "disk not measured" in err and re.search("no forecast: a token moves .* the disk's rate", err), err


def test_a_small_model_is_tried_out():
    """And nothing is left of that; not where rates are given instead of measured."""
    with tempfile.TemporaryDirectory() as folder:
        ask = ("plan", "--model", lighter.DEMO, "--device", "sim:link=4GB/s", "--memory-budget", "8MiB",
               "--max-total-tokens", "320", "--offload-cache-dir", folder)
        forecast = lighter.run_json(*ask)["forecast"]
        assert forecast["decode"]["is_tried"] and forecast["prefill"]["is_tried"], forecast
        assert forecast["decode_tokens_per_s"] == forecast["decode_tokens_per_s_most"], forecast
        assert forecast["rates"]["costs"]["op_s"] > 0 and forecast["rates"]["costs"]["onload_s"] > 0, forecast
        assert "tokens/s, as tried out" in lighter.run(*ask, check=0)[2]
        assert not lighter.run_json(*ask, "--assume", "link=1GB/s")["forecast"]["decode"]["is_tried"]
        assert os.listdir(folder) == []


def test_offload_settings_without_an_effect_say_so():
    ask = ("generate", "--model", lighter.DEMO, "--prompt", "x", "--max-new-tokens", "1", "--max-total-tokens", "64")
    for flags in (["--offload-prefetch-step", "3"], ["--offload-slots", "4"], ["--offload-num-in-group", "2"],
                  ["--offload-disk", "depth=4"], ["--offload-cache-dir", "/nowhere"], ["--assume", "disk=1GB/s"],
                  ["--offload-prefetch-step", "3", "--offload-mode", "auto", "--assume", "disk=1GB/s"]):
        err = lighter.run(*ask, *flags, check=0)[2]
        assert re.findall(r"^warning: (--\S+) .*has no effect", err, re.M) == [flags[0]], (flags, err)


def test_rounding_that_would_do_nothing_is_refused():
    ask = ["generate", "--model", lighter.DEMO, "--prompt", "a", "--max-new-tokens", "2"]
    rounds = [*ask, "--device", "cpu:bf16-products=on"]
    if lighter.run(*rounds)[0] != 0:
        fails(*rounds, code=1, words=["AVX-512 BF16"])  # the processor has none, or needs no rounding
        return
    fails(*rounds, "--dtype", "float16", code=2, words=["no matrix is in BF16"])


def test_kernels_that_are_not_there_are_refused():
    ask = ["generate", "--model", lighter.DEMO, "--prompt", "a", "--max-new-tokens", "2", "--cpu-kernels"]
    fails(*ask, "sse", code=2, words=["scalar", "sse"])
    fails(*ask, "scalar", "--device", "cuda", code=2, words=["cpu and sim", "cuda"])
    fails("selftest", "--cpu-kernels", "scalar", "--device", "ascend", code=2, words=["cpu and sim", "ascend"])


def test_flags_without_an_effect_say_so_once():
    flags = ["--trust-remote-code", "--disable-cuda-graph", "--prefill-attention-backend", "ascend",
             "--cuda-graph-bs", "1", "2", "--trust-remote-code", "--tp-size", "1", "--load-format=auto"]
    _, out, err = lighter.run("inspect", "--model", lighter.DEMO, *flags, check=0)
    warnings = re.findall(r"^warning: (--\S+) has no effect here: .+$", err, re.M)
    assert sorted(warnings) == ["--cuda-graph-bs", "--disable-cuda-graph", "--prefill-attention-backend",
                                "--trust-remote-code"], err
    assert "it will run" in out
    assert lighter.run("inspect", "--model", lighter.DEMO, *flags, "--log-level", "error", check=0)[2] == ""


def test_generate_streams_text_and_reports_what_moved():
    _, out, err = lighter.run("generate", "--model", lighter.DEMO, *SIM, *SMALL, *GREEDY, "--prompt", QUESTION,
                              check=0)
    assert "Paris" in out and "moved" not in out
    for word in ("home", "host", "moved", "stall", "computing"):
        assert word in err, (word, err)
    quiet = lighter.run("generate", "--model", lighter.DEMO, *SIM, *SMALL, *GREEDY, "--prompt", QUESTION, "--quiet",
                        check=0)
    assert quiet[1] == out and quiet[2] == ""


def test_a_trace_is_written_whole_or_refused_before_the_run():
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "trace.json")
        _, _, err = lighter.run("generate", "--model", lighter.DEMO, *SIM, *SMALL, *GREEDY, "--prompt", QUESTION,
                                "--trace", path, check=0)
        assert path in err and os.listdir(folder) == ["trace.json"], (err, os.listdir(folder))
        with open(path, encoding="utf-8") as file:
            events = json.load(file)["traceEvents"]
        lanes = {event["cat"] for event in events if event["ph"] == "X"}
        assert {"step", "compute", "copy"} <= lanes, lanes
        assert {"prefill", "decode", "sample"} <= {event["name"] for event in events}
        for bad in (folder, os.path.join(folder, "none", "trace.json")):
            _, _, err = lighter.run("generate", "--model", lighter.DEMO, *SMALL, *GREEDY, "--prompt", QUESTION,
                                    "--trace", bad, check=1)
            assert "--trace" in err and bad in err, err


def test_generate_json_has_what_the_contract_says():
    answer = one_object(lighter.run("generate", "--model", lighter.DEMO, *SIM, *SMALL, *GREEDY, "--prompt", QUESTION,
                                    "--json", check=0)[1])
    assert "Paris" in answer["text"] and len(answer["output_ids"]) == answer["meta_info"]["completion_tokens"]
    assert answer["meta_info"]["finish_reason"]["type"] == "stop"
    assert find(answer["report"], "bytes_moved") == find(answer["report"], "bytes_planned") > 0
    ids = lighter.run_json("tokenize", "--model", lighter.DEMO, stdin=QUESTION)["ids"]
    again = lighter.run_json("generate", "--model", lighter.DEMO, *SMALL, *GREEDY, "--input-ids",
                             ",".join(map(str, ids)))
    assert again["output_ids"] == answer["output_ids"] and again["text"] == answer["text"]
    piped = lighter.run_json("generate", "--model", lighter.DEMO, *SMALL, *GREEDY, "--prompt-file", "-",
                             stdin=QUESTION)
    assert piped["output_ids"] == answer["output_ids"]


def test_generate_obeys_its_sampling_options():
    ask = ("generate", "--model", lighter.DEMO, *SMALL, "--prompt", QUESTION)
    short = lighter.run_json(*ask, "--temperature", "0", "--max-new-tokens", "2")
    assert len(short["output_ids"]) == 2 and short["meta_info"]["finish_reason"]["type"] == "length"
    none = lighter.run_json(*ask, "--max-new-tokens", "0")
    assert none["output_ids"] == [] and none["text"] == ""
    stopped = lighter.run_json(*ask, *GREEDY, "--stop", "Par")
    assert "Par" not in stopped["text"] and stopped["meta_info"]["finish_reason"]["matched"] == "Par"
    kept = lighter.run_json(*ask, *GREEDY, "--stop=Par", "--no-stop-trim")
    assert kept["text"].endswith("Par") or "Par" in kept["text"]
    on = lighter.run_json(*ask, *GREEDY, "--ignore-eos")
    assert len(on["output_ids"]) == 32
    by_id = lighter.run_json(*ask, *GREEDY, "--stop-token-ids", str(on["output_ids"][1]))
    assert len(by_id["output_ids"]) <= 2
    hot = ("--temperature", "5", "--max-new-tokens", "24", "--ignore-eos")
    for flag in ("--seed", "--random-seed"):
        first, again, other = (lighter.run_json(*ask, *hot, flag, seed)["output_ids"] for seed in (7, 7, 8))
        assert first == again != other, flag
    fails(*ask, "--stop-token-ids", ",".join(["5"] * 65), code=2, words=["65", "64"])


def test_meta_mode_marks_its_answers():
    _, out, err = lighter.run("generate", "--model", lighter.DEMO, *SIM, *SMALL, *GREEDY, "--offload-mode", "meta",
                              "--prompt", QUESTION, check=0)
    assert "garbage" in err.strip().split("\n")[-1], err
    answer = lighter.run_json("generate", "--model", lighter.DEMO, *SIM, *SMALL, *GREEDY, "--offload-mode", "meta",
                              "--prompt", QUESTION)
    assert answer["meta_info"]["garbage"] is True and find(answer["report"], "bytes_moved") == 0


def test_memory_fraction_is_a_budget():
    ask = ("generate", "--model", lighter.DEMO, "--device", "sim:memory=64MiB", *SMALL, "--input-ids", "5",
           "--max-new-tokens", "1")
    assert "budget 32.0 MiB" in lighter.run(*ask, "--mem-fraction-static", "0.5", check=0)[2]
    _, _, err = lighter.run(*ask, "--mem-fraction-static", "0.5", "--memory-budget", "16MiB", check=0)
    assert "budget 16.0 MiB" in err and "--mem-fraction-static has no effect" in err
    fails(*ask, "--mem-fraction-static", "0.01", code=1, words=["budget"])


def test_logits_as_npy_and_as_json_are_the_same():
    ask = ("logits", "--model", lighter.DEMO, *SMALL, "--prompt", QUESTION)
    plain = one_object(lighter.run(*ask, check=0)[1])
    tokens, vocabulary = plain["shape"]
    assert tokens == len(plain["input_ids"]) == 8 and vocabulary == 1280 and plain["dtype"] == "float32"
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "logits.npy")
        told = one_object(lighter.run(*ask, "--out", path, "--json", check=0)[1])
        assert told["out"] == path and told["shape"] == [tokens, vocabulary]
        logits = numpy.load(path)
        assert logits.dtype == numpy.float32 and logits.shape == (tokens, vocabulary)
        assert (logits == numpy.array(plain["logits"], dtype=numpy.float32)).all()
        for extra in (["--chunk", "3"], list(SIM), ["--threads", "2"]):
            assert lighter.run(*ask, *extra, "--out", path, check=0)[1] == ""
            assert numpy.array_equal(numpy.load(path), logits), extra
        assert os.listdir(folder) == ["logits.npy"]


def test_a_gguf_file_has_its_tokenizer_within():
    model = "tests/golden/gguf/llama_llama3.gguf"
    assert lighter.run_json("tokenize", "--model", model, stdin="ab b\n")["ids"] == [1, 9, 4, 6, 3]
    assert lighter.run_json("tokenize", "--model", model, "--decode", "9,4,6,3")["text"] == "ab b\n"
    report = lighter.run_json("generate", "--model", model, "--prompt", "ab", "--max-new-tokens", "3",
                              "--temperature", "0")
    assert report["meta_info"]["prompt_tokens"] == 2 and len(report["output_ids"]) == 3


def test_tokenize_there_and_back():
    text = "Où est Tōkyō? 🇫🇷\n\tcode(); "
    ids = lighter.run_json("tokenize", "--model", lighter.DEMO, stdin=text)["ids"]
    bare = lighter.run_json("tokenize", "--model", lighter.DEMO, "--no-special", stdin=text)
    assert bare["ids"] == ids[1:] and bare["count"] == len(ids) - 1
    printed = lighter.run("tokenize", "--model", lighter.DEMO, stdin=text, check=0)[1].strip()
    assert printed == ",".join(map(str, ids))
    assert lighter.run_json("tokenize", "--model", lighter.DEMO, "--decode", printed, "--skip-special")["text"] == text
    assert lighter.run_json("tokenize", "--model", lighter.DEMO, "--decode", printed)["text"] != text
    assert lighter.run_json("tokenize", "--model", lighter.DEMO, stdin="")["ids"] == ids[:1]


def test_inspect_tells_what_is_there_and_what_is_missing():
    told = one_object(lighter.run("inspect", "--model", lighter.DEMO, "--json", check=0)[1])
    assert told["architecture"] == "DeepseekV3ForCausalLM" and told["will_run"] is True and told["reason"] is None
    assert told["layer_count"] == 8 and told["tokenizer"]["usable"] is True
    assert sum(kind["tensors"] for kind in told["dtypes"].values()) == told["tensor_count"]
    listed = one_object(lighter.run("inspect", "--model", lighter.DEMO, "--tensors", "--json", check=0)[1])
    assert len(listed["tensors"]) == told["tensor_count"]
    with tempfile.TemporaryDirectory() as folder:
        make_model(folder, "--preset", "llama-tiny")
        told = lighter.run_json("inspect", "--model", folder)
        assert told["will_run"] is True and told["tokenizer"]["usable"] is False
        path = os.path.join(folder, "config.json")
        with open(path, encoding="utf-8") as file:
            config = json.load(file)
        for changes, word in (({"architectures": ["MambaForCausalLM"], "model_type": "mamba"}, "MambaForCausalLM"),
                              ({"num_hidden_layers": 5}, "model.layers.4"), ({"vocab_size": 321}, "321")):
            with open(path, "w", encoding="utf-8") as file:
                json.dump({**config, **changes}, file)
            told = lighter.run_json("inspect", "--model", folder)
            assert told["will_run"] is False and word in told["reason"], told
            assert "it will not run" in lighter.run("inspect", "--model", folder, check=0)[1]
        shutil.copy("tests/golden/gguf/granite.gguf", os.path.join(folder, "a.gguf"))
        told = lighter.run_json("inspect", os.path.join(folder, "a.gguf"))
        assert told["will_run"] is True and told["format"] == "gguf" and told["model_type"] == "granite"
        for name, content, word in (("b.gguf", b"ggjt" + bytes(64), "not a GGUF file"), ("c.gguf", None, "mamba-2")):
            path = os.path.join(folder, name)
            with open("tests/golden/gguf/granite.gguf", "rb") as file:  # its architecture becomes an unknown one
                content = content or file.read().replace(b"granite", b"mamba-2", 1)
            with open(path, "wb") as file:
                file.write(content)
            told = lighter.run_json("inspect", path)
            assert told["will_run"] is False and word in told["reason"], told
            assert "it will not run" in lighter.run("inspect", path, check=0)[1]
        assert lighter.run("inspect", os.path.join(folder, "none"), check=1)[2].count("no such file") == 1
        assert "belongs to no option" in lighter.run("generate", folder, check=2)[2]


def test_bench_measures_both_phases():
    with tempfile.TemporaryDirectory() as folder:
        make_model(folder, "--preset", "deepseek-tiny")
        told = one_object(lighter.run(
            "bench", "--model", folder, "--device", "sim:memory=64MiB,link=1GB/s", "--offload-group-size", "2",
            "--prompt-tokens", "48", "--gen-tokens", "9", "--batch", "3", "--repeat", "2", "--chunked-prefill-size",
            "32", "--json", check=0)[1])
        assert told["prefill_tokens_per_s"] > 0 and told["decode_tokens_per_s"] > 0
        for phase in ("prefill", "decode"):
            assert len(told[phase]["tokens_per_s"]) == 2
            offload = told[phase]["offload"]
            assert offload["bytes_moved"] > 0 and offload["passes"] > 0
        assert told["prefill"]["offload"]["passes"] == 5  # 3 x 48 rows, 32 at most in a step
        assert told["decode"]["offload"]["passes"] == 8   # the first token came with the prompt
        assert told["bytes"]["moved_per_decode_pass"] > 0 and told["bounds"]["link_bytes_per_s"] == 1000000000
        assert 0 < told["shares"]["decode_of_bound"] and 0 < told["shares"]["decode_of_link"] <= 1.05
        _, out, _ = lighter.run("bench", "--model", folder, "--prompt-tokens", "8", "--gen-tokens", "4", "--repeat",
                                "1", check=0)
        for word in ("prefill", "decode", "tokens/s", "bound"):
            assert word in out


def test_random_models_are_the_same_for_the_same_seed():
    with tempfile.TemporaryDirectory() as folder:
        bytes_of = {}
        for name, arguments in (("a", ()), ("b", ()), ("c", ("--seed", "2")), ("d", ("--dtype", "F32"))):
            made = make_model(os.path.join(folder, name), "--preset", "llama-tiny", *arguments)
            with open(os.path.join(made, "model.safetensors"), "rb") as file:
                bytes_of[name] = file.read()
        assert bytes_of["a"] == bytes_of["b"] != bytes_of["c"] and len(bytes_of["d"]) > len(bytes_of["a"])
        for preset in ("deepseek-tiny", "mixtral-tiny", "qwen3moe-tiny"):
            made = make_model(os.path.join(folder, preset), "--preset", preset, "--layers", "2")
            told = lighter.run_json("inspect", "--model", made)
            assert told["will_run"] is True and told["expert_count"] == 8 and told["experts_per_token"] == 2, told
            assert told["expert_layer_count"] == (1 if preset == "deepseek-tiny" else 2), told
            assert "8 experts, 2 for each token" in lighter.run("inspect", "--model", made, check=0)[1]


def test_serve_tells_its_address_and_ends_on_a_signal():
    command = [lighter.PROGRAM, "serve", "--model", lighter.DEMO, *SMALL, "--port", "0", "--json"]
    for number in (signal.SIGTERM, signal.SIGINT):
        server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        line = server.stdout.readline().decode()
        told = one_object(line)
        assert told["url"] == f"http://127.0.0.1:{told['port']}" and told["port"] > 0
        server.send_signal(number)
        out, err = server.communicate(timeout=lighter.WAIT_SECONDS)
        assert server.returncode == 0 and out == b"", (server.returncode, err)
        assert told["url"].encode() in err


def test_a_second_signal_stops_at_once():
    with lighter.Server("--model", lighter.DEMO, "--threads", "1", "--cpu-kernels", "scalar") as server:
        body = json.dumps({"text": ["The"] * 16, "sampling_params": {"ignore_eos": True, "max_new_tokens": 500,
                                                                     "temperature": 0}})
        asker = subprocess.Popen([sys.executable, "-c", "import sys, urllib.request\n"
                                  "urllib.request.urlopen(sys.argv[1], sys.argv[2].encode(), timeout=100).read()",
                                  server.url + "/generate", body], stderr=subprocess.DEVNULL)
        deadline = time.time() + lighter.WAIT_SECONDS
        while find(server.request("/get_server_info")[1], "running") == 0 and time.time() < deadline:
            time.sleep(0.01)
        server.process.send_signal(signal.SIGTERM)
        while not any("once" in line for line in server.log) and server.process.poll() is None:
            time.sleep(0.01)
        server.process.send_signal(signal.SIGTERM)
        code = server.process.wait(lighter.WAIT_SECONDS)
        asker.wait(lighter.WAIT_SECONDS)
        assert code in (0, -signal.SIGTERM), code  # 0: everything was answered before the second came
        server.process.returncode = 0


def test_output_that_cannot_be_written_is_a_failure():
    for arguments in (["--help"], ["inspect", "--model", lighter.DEMO], ["inspect", "--model", lighter.DEMO, "--json"]):
        with open("/dev/full", "wb") as full:
            done = subprocess.run([lighter.PROGRAM, *arguments], stdout=full, stderr=subprocess.PIPE)
        assert done.returncode == 1, arguments


if __name__ == "__main__":
    sys.exit(lighter.main(sys.modules[__name__]))
