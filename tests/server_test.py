#!/usr/bin/env python3
"""`lighter serve` on the demo model, as clients see it: answers, streams, many at once, what is refused,
clients that leave, and SIGTERM. One server, on the processor with its weights in place, for most tests;
the demo's test starts servers with offloading."""
import concurrent.futures
import http.client
import json
import os
import re
import shutil
import signal
import socket
import sys
import tempfile
import urllib.parse
import urllib.request

import lighter
from lighter import WAIT_SECONDS, wait_until

PROMPTS = [f"The capital of {country} is" for country in (
    "France", "Japan", "Peru", "Kenya", "Norway", "Chad", "Cuba", "Fiji", "India", "Italy",
    "Iran", "Iraq", "Mali", "Malta", "Nepal", "Oman", "Qatar", "Spain", "Togo", "Yemen")]
GREEDY = {"temperature": 0, "max_new_tokens": 24}
LONG = {"temperature": 0, "max_new_tokens": 400, "ignore_eos": True}
# A step takes at least 60 ms, what the link needs for two units, so that what is asked for in the middle of
# an answer of 400 tokens comes in its middle.
SLOW = ["--device", "sim:memory=64MiB,link=20MB/s", "--offload-group-size", "4", "--offload-num-in-group", "1"]
server = None  # set below, before the tests run


def address(of=None):
    url = urllib.parse.urlsplit((of or server).url)
    return url.hostname, url.port


def connect(of=None):
    return http.client.HTTPConnection(*address(of), timeout=WAIT_SECONDS)


def post(body, of=None):
    """An open connection and its response, whose headers have come."""
    connection = connect(of)
    connection.request("POST", "/generate", json.dumps(body), {"Content-Type": "application/json"})
    return connection, connection.getresponse()


def events(response):
    """What a stream's events say, up to [DONE]."""
    buffered = b""
    while True:
        line = response.readline()
        assert line, "the stream ended without [DONE]"
        if line == b"\n":
            assert buffered.startswith(b"data: "), buffered
            if buffered == b"data: [DONE]":
                assert response.read() == b""
                return
            yield json.loads(buffered[6:])
            buffered = b""
        else:
            buffered += line.rstrip(b"\n")


def stream(**body):
    connection, response = post({**body, "stream": True})
    assert response.status == 200 and response.getheader("Content-Type").startswith("text/event-stream")
    said = list(events(response))
    connection.close()
    return said


def engine(of=None):
    return (of or server).request("/get_server_info")[1]["engine"]


def raw(text):
    """The bytes that come back until the server closes; the client closes its sending half."""
    with socket.create_connection(address(), timeout=WAIT_SECONDS) as plug:
        got = b""
        try:
            plug.sendall(text)
            plug.shutdown(socket.SHUT_WR)
            while True:
                piece = plug.recv(65536)
                if not piece:
                    break
                got += piece
        except TimeoutError:
            raise
        except OSError:
            pass  # the server has closed, maybe before all was sent
        return got


def test_metrics_are_what_prometheus_reads():
    """Version 0.0.4 of the text format: HELP and TYPE before a family's samples, which stand together."""
    connection = connect()
    connection.request("GET", "/metrics")
    response = connection.getresponse()
    text = response.read().decode()
    assert response.status == 200 and response.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    assert text.endswith("\n")
    types, seen, values = {}, [], {}
    for line in text.splitlines():
        found = re.fullmatch(r"# (HELP|TYPE) ([a-z_]+) (.+)", line)
        if found:
            if found.group(1) == "TYPE":
                assert found.group(2) not in types and found.group(3) in ("counter", "gauge"), line
                types[found.group(2)] = found.group(3)
            continue
        found = re.fullmatch(r'([a-z_]+)(\{[a-z_]+="[^"]*"(?:,[a-z_]+="[^"]*")*\})? (-?[0-9.e+-]+)', line)
        assert found, line
        name = found.group(1)
        assert types[name] == ("counter" if name.endswith("_total") else "gauge"), line
        if not seen or seen[-1] != name:
            assert name not in seen, f"{name}'s samples do not stand together"
            seen.append(name)
        values[name + (found.group(2) or "")] = float(found.group(3))
    assert set(seen) == set(types)
    for name in ("lighter_requests_running", "lighter_steps_total", "lighter_kv_pages_free",
                 'lighter_offload_stall_seconds_total{cause="link"}'):
        assert values[name] >= 0, name


def test_metrics_are_the_reports_numbers():
    """Of a server that offloads: every figure of the report by home, by cause and over the run is there."""
    with lighter.Server("--model", lighter.DEMO, "--device", "sim:memory=64MiB,link=200MB/s", "--offload-experts",
                        "--offload-mode", "disk", "--offload-expert-slots", "8") as own:
        own.generate(text=PROMPTS[0], sampling_params=GREEDY)
        report = engine(own)["offload"]
        with urllib.request.urlopen(own.url + "/metrics") as response:
            text = response.read().decode()
        values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    wanted = {"lighter_offload_run_seconds_total": report["run_s"],
              "lighter_offload_link_use_ratio": report["link"]["use_share_of_run"],
              "lighter_offload_bound_ratio": report["bound"]["share_of_run"]}
    for cause, seconds in report["stalls"].items():
        wanted['lighter_offload_stall_seconds_total{cause="%s"}' % cause] = seconds
    for name, key in (("moved_bytes", "bytes_moved"), ("demanded_bytes", "bytes_demanded"),
                      ("guessed_used_bytes", "bytes_guessed_used"), ("guessed_wasted_bytes", "bytes_guessed_wasted"),
                      ("reread_bytes", "bytes_reread"), ("cache_hits", "hits"), ("cache_misses", "misses")):
        for home, row in report["homes"].items():
            wanted['lighter_offload_%s_total{home="%s"}' % (name, home)] = row[key]
    assert report["homes"]["disk"]["misses"] > 0, report["homes"]
    for name, value in wanted.items():
        assert abs(float(values[name]) - value) <= 1e-6 * abs(value), (name, values.get(name), value)


def test_a_disk_that_stalls_delays_and_one_that_errs_ends_a_step():
    home = ("--offload-mode", "disk", "--offload-group-size", "1", "--offload-params", "*.self_attn.o_proj.weight")
    with lighter.Server("--model", lighter.DEMO, *home, "--offload-disk", "stall=20:3s") as own:
        for _ in range(3):
            assert "Paris" in own.generate(text=PROMPTS[0], sampling_params=GREEDY)["text"]
    with lighter.Server("--model", lighter.DEMO, *home, "--offload-disk", "eio=40:2") as own:
        answers = [own.request("/generate", {"text": PROMPTS[0], "sampling_params": GREEDY}) for _ in range(8)]
        failed = [answer for status, answer in answers if status != 200]
        assert len(failed) == 1 and "model.safetensors" in failed[0]["error"]["message"], answers
        assert all("Paris" in answer["text"] for status, answer in answers if status == 200), answers
        assert own.request("/health")[0] == 200


def test_health_says_when_the_device_has_failed_for_good():
    with lighter.Server("--model", lighter.DEMO, "--device", "sim:fail_launch=2000") as own:
        assert own.request("/health")[0] == 200
        while own.request("/generate", {"text": PROMPTS[0], "sampling_params": GREEDY})[0] == 200:
            pass
        lighter.wait_until("it is noticed", lambda: own.request("/health")[0] != 200)  # told behind the answers
        status, answer = own.request("/health")
        assert status == 503 and "on purpose" in answer["error"]["message"], (status, answer)
        assert "on purpose" in engine(own)["stopped"]


def test_health_and_answers_name_the_file_that_was_replaced():
    """The first failure's sentence is that of every later one, whatever moves."""
    for home in (("--offload-mode", "disk", "--offload-group-size", 1),
                 ("--offload-mode", "auto", "--memory-budget", "6600KiB", "--max-total-tokens", 64)):
        with tempfile.TemporaryDirectory() as folder:
            model = os.path.join(folder, "model")
            shutil.copytree(lighter.DEMO, model)
            file = os.path.join(model, "model.safetensors")
            with lighter.Server("--model", model, *home, "--offload-cache-dir", os.path.join(folder, "cache")) as own:
                shutil.copy(file, file + ".new")
                os.utime(file, ns=(1, 1))
                os.replace(file + ".new", file)
                told = []
                for _ in range(3):
                    status, answer = own.request("/generate", {"text": PROMPTS[0], "sampling_params": GREEDY})
                    assert status != 200, answer
                    told.append(answer["error"]["message"])
                status, answer = own.request("/health")
                assert status == 503, answer
                told.append(answer["error"]["message"])
                assert file in told[0] and set(told) == {told[0]}, told


def test_a_browser_gets_a_page_of_its_own():
    connection = connect()
    connection.request("GET", "/", headers={"Accept": "text/html,*/*"})
    response = connection.getresponse()
    page = response.read().decode()
    assert response.headers["Content-Type"].startswith("text/html")
    assert page.startswith("<!doctype html>") and "://" not in page, "the page needs nothing from elsewhere"


def test_an_answer_has_sglangs_shape():
    answer = server.generate(text=PROMPTS[0], sampling_params=GREEDY, rid="mine")
    assert set(answer) == {"text", "output_ids", "meta_info"}, answer
    assert "Paris" in answer["text"]
    meta = answer["meta_info"]
    assert meta["id"] == "mine" and meta["cached_tokens"] == 0 and meta["e2e_latency"] > 0, meta
    assert meta["completion_tokens"] == len(answer["output_ids"]) and meta["prompt_tokens"] > 0, meta
    assert meta["finish_reason"] == {"type": "stop", "matched": answer["output_ids"][-1]}, meta
    short = server.generate(text=PROMPTS[0], sampling_params={"temperature": 0, "max_new_tokens": 1})
    assert short["meta_info"]["finish_reason"] == {"type": "length", "length": 1}, short
    stopped = server.generate(text=PROMPTS[0], sampling_params={**GREEDY, "stop": ["ris"]})
    assert stopped["meta_info"]["finish_reason"] == {"type": "stop", "matched": "ris"}, stopped
    assert stopped["text"] == " Pa", stopped


def test_a_list_is_answered_as_its_prompts_alone():
    alone = [server.generate(text=prompt, sampling_params=GREEDY)["text"] for prompt in PROMPTS]
    assert len(set(alone)) == len(alone)
    together = server.generate(text=PROMPTS, sampling_params=GREEDY)
    assert [answer["text"] for answer in together] == alone
    one = server.generate(text=PROMPTS[:1], sampling_params=[GREEDY])
    assert isinstance(one, list) and one[0]["text"] == alone[0]


def test_ids_and_text_are_the_same_prompt():
    found = lighter.run_json("tokenize", "--model", lighter.DEMO, stdin=PROMPTS[0])
    by_ids = server.generate(input_ids=found["ids"], sampling_params=GREEDY)
    by_text = server.generate(text=PROMPTS[0], sampling_params=GREEDY)
    assert by_ids["text"] == by_text["text"] and by_ids["output_ids"] == by_text["output_ids"]
    lists = server.generate(input_ids=[found["ids"], found["ids"][:2]], sampling_params=GREEDY)
    assert lists[0]["output_ids"] == by_text["output_ids"]


def test_a_stream_says_what_the_answer_says():
    whole = server.generate(text=PROMPTS[1], sampling_params=GREEDY)
    said = stream(text=PROMPTS[1], sampling_params=GREEDY)
    assert all(later["text"].startswith(earlier["text"]) for earlier, later in zip(said, said[1:]))
    assert all(event["meta_info"]["finish_reason"] is None for event in said[:-1])
    assert said[-1]["text"] == whole["text"] and said[-1]["output_ids"] == whole["output_ids"]
    assert said[-1]["meta_info"]["finish_reason"] == whole["meta_info"]["finish_reason"]


def test_a_stream_of_a_list():
    wanted = [answer["text"] for answer in server.generate(text=PROMPTS[:3], sampling_params=GREEDY)]
    last = {}
    for event in stream(text=PROMPTS[:3], sampling_params=GREEDY):
        last[event["index"]] = event
    assert [last[at]["text"] for at in range(3)] == wanted


def test_a_stream_is_not_held_back():
    """Tokens come while later ones are still being made."""
    with lighter.Server("--model", lighter.DEMO, *SLOW) as slow:
        connection, response = post({"text": PROMPTS[0], "stream": True, "sampling_params": LONG}, slow)
        first = next(events(response))
        assert first["meta_info"]["completion_tokens"] < 400 and engine(slow)["running"] == 1, first
        connection.close()


def test_twenty_clients_get_what_they_get_alone():
    sampled = [{"temperature": 0.9, "top_p": 0.95, "max_new_tokens": 16, "sampling_seed": at} for at in range(20)]
    params = [GREEDY if at % 2 == 0 else sampled[at] for at in range(20)]

    def ask(at):
        if at % 3 == 0:
            return stream(text=PROMPTS[at], sampling_params=params[at])[-1]["output_ids"]
        return server.generate(text=PROMPTS[at], sampling_params=params[at])["output_ids"]

    alone = [ask(at) for at in range(20)]
    with concurrent.futures.ThreadPoolExecutor(20) as pool:
        together = list(pool.map(ask, range(20)))
    assert alone == together


def test_what_is_served():
    assert server.request("/health") == (200, None)
    assert server.request("/health_generate") == (200, None)
    status, info = server.request("/get_model_info")
    assert status == 200 and info["model_path"] == lighter.DEMO and info["is_generation"] is True, info
    assert info["architectures"] == ["DeepseekV3ForCausalLM"] and info["context_length"] > 0, info
    status, info = server.request("/get_server_info")
    assert status == 200 and info["model_path"] == lighter.DEMO and info["version"], info
    assert info["engine"]["manifest"] and info["engine"]["completion_tokens"] > 0, info
    status, info = server.request("/")
    assert status == 200 and "/generate" in info["endpoints"], info


def test_bad_requests_are_told_why():
    context = server.request("/get_model_info")[1]["context_length"]
    cases = [
        ({}, 400, "text"),
        ({"text": "a", "input_ids": [1]}, 400, "both"),
        ({"text": 5}, 400, "text"),
        ({"text": ["a", 5]}, 400, "[1]"),
        ({"input_ids": [10 ** 6]}, 400, str(10 ** 6)),
        ({"input_ids": [[1], [2, 10 ** 6]]}, 400, "prompt 1"),
        ({"input_ids": [-1]}, 400, "-1"),
        ({"input_ids": [1] * (context + 1)}, 400, str(context)),
        ({"text": "a " * 2000}, 400, str(context)),
        ({"text": "a", "stream": "yes"}, 400, "stream"),
        ({"text": "a", "sampling_params": 3}, 400, "sampling_params"),
        ({"text": "a", "sampling_params": {"temperature": -1}}, 400, "temperature"),
        ({"text": "a", "sampling_params": {"temperatur": 1}}, 400, "temperature"),
        ({"text": "a", "temperature": 1}, 400, "sampling_params"),
        ({"text": "a", "steam": True}, 400, "stream"),
        ({"text": "a", "return_logprob": True}, 400, "return_logprob"),
        ({"text": "a", "stream": True, "sampling_params": {"top_p": 2}}, 400, "top_p"),
        (b"", 400, "no body"),
        (b"{", 400, "JSON"),
        (b"[" * 100000, 400, "JSON"),
        (b'{"text": "\xff"}', 400, "JSON"),
        (b'{"text": "a", "text": "b"}', 400, "JSON"),
    ]
    for body, status, word in cases:
        got, answer = server.request("/generate", body)
        error = answer["error"]
        assert got == status and error["code"] == status and word in error["message"], (body, got, answer)
    assert server.request("/nothing")[0] == 404
    assert server.request("/generate")[0] == 405
    assert server.request("/health", {})[0] == 405


def test_too_large_a_body():
    status, answer = server.request("/generate", b" " * (8 * 2 ** 20 + 1))
    assert status == 413 and "8388608" in answer["error"]["message"], answer
    big = {"text": "a", "custom_labels": {"x": "y" * (2 * 2 ** 20)}, "sampling_params": GREEDY}
    assert server.request("/generate", big)[0] == 200
    endless = b"POST /generate HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n" + \
        (b"100000\r\n" + b" " * 2 ** 20 + b"\r\n") * 40
    raw(endless)
    got = raw(b"POST /generate HTTP/1.1\r\nHost: h\r\nContent-Length: 99999999999\r\n\r\n")
    assert b" 413 " in got.split(b"\r\n")[0], got
    assert server.request("/health")[0] == 200


def test_broken_http():
    for text in (b"\r\n\r\n", b"GET\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00", b"GET / HTTP/7.7\r\n\r\n",
                 b"GET / HTTP/1.1\r\n\r\n", b"POST /generate HTTP/1.1\r\nHost: h\r\nContent-Length: -5\r\n\r\n",
                 b"POST /generate HTTP/1.1\r\nHost: h\r\nContent-Length: 7x\r\n\r\n{}",
                 b"POST /generate HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
                 b"GET /health HTTP/1.1\r\nHost: h\r\n" + b"X: y\r\n" * 50000,
                 b"GET /" + b"a" * 10 ** 6 + b" HTTP/1.1\r\nHost: h\r\n\r\n"):
        got = raw(text)
        assert got == b"" or int(got.split()[1]) >= 400, (text[:80], got)
    # A body that is cut off is not a request.
    before = engine()["submitted"]
    raw(b"POST /generate HTTP/1.1\r\nHost: h\r\nContent-Length: 100\r\n\r\n{\"input_ids\": [5]}")
    assert engine()["submitted"] == before


def test_leaving_cancels_and_disturbs_nobody():
    short = {**LONG, "max_new_tokens": 20}
    with lighter.Server("--model", lighter.DEMO, *SLOW) as slow:
        wanted = server.generate(text=PROMPTS[2], sampling_params=short)["output_ids"]
        leaving = []
        for body in ({"text": PROMPTS[0]}, {"text": PROMPTS[:2]}, {"text": PROMPTS[0], "stream": True}):
            connection = connect(slow)
            connection.request("POST", "/generate", json.dumps({**body, "sampling_params": LONG}))
            leaving.append(connection)
        wait_until("four prompts run", lambda: engine(slow)["running"] == 4)
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            staying = pool.submit(slow.generate, text=PROMPTS[2], sampling_params=short)
            for connection in leaving:
                connection.sock.close()
            wait_until("four prompts are canceled", lambda: engine(slow)["aborted"] == 4)
            assert staying.result()["output_ids"] == wanted
        assert engine(slow)["running"] + engine(slow)["waiting"] == 0


def test_a_full_queue_says_busy():
    with lighter.Server("--model", lighter.DEMO, "--max-running-requests", "1",
                        "--max-queued-requests", "1") as small:
        status, answer = small.request("/generate", {"text": PROMPTS, "sampling_params": LONG})
        assert status == 503 and answer["error"]["code"] == 503, answer
        wait_until("what had found room is canceled", lambda: engine(small)["running"] + engine(small)["waiting"] == 0)
        assert small.generate(text=PROMPTS[0], sampling_params=GREEDY)["text"]


def test_without_a_tokenizer():
    with lighter.Server("--model", lighter.DEMO, "--skip-tokenizer-init") as bare:
        answer = bare.generate(input_ids=[5, 6, 7], sampling_params=GREEDY)
        assert "text" not in answer and answer["output_ids"], answer
        status, answer = bare.request("/generate", {"text": "a"})
        assert status == 400 and "input_ids" in answer["error"]["message"], answer


def test_sigterm_finishes_what_runs():
    params = {**LONG, "max_new_tokens": 25}
    with lighter.Server("--model", lighter.DEMO, *SLOW) as ending:
        connection, response = post({"text": PROMPTS[0], "stream": True, "sampling_params": params}, ending)
        reader = events(response)
        next(reader)
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            whole = pool.submit(ending.generate, text=PROMPTS[1], sampling_params=params)
            wait_until("both were submitted", lambda: engine(ending)["submitted"] == 2)
            ending.process.send_signal(signal.SIGTERM)
            last = list(reader)[-1]
            assert last["meta_info"]["completion_tokens"] == 25, last
            assert whole.result()["meta_info"]["completion_tokens"] == 25
        connection.close()
        assert ending.process.wait(WAIT_SECONDS) == 0
        try:
            connect(ending).connect()
            raise AssertionError("something still listens")
        except ConnectionRefusedError:
            pass


def test_one_that_nobody_asked_tells_no_shares_of_a_run():
    with lighter.Server("--model", lighter.DEMO, "--offload-mode", "disk", "--offload-group-size", "1") as idle:
        pass
    said = "\n".join(idle.log)
    assert "0 passes" in said and "% of the run" not in said, said


if __name__ == "__main__":
    with lighter.Server("--model", lighter.DEMO) as server:
        code = lighter.main(sys.modules[__name__])
    sys.exit(code)
