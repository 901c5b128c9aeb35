#!/usr/bin/env python3
"""Several ranks (lighter serve --dp-size N): they answer, share the work, die, and come back.

Everything here is counted or waited for, nothing is timed: a wait has a limit only so that a hang is
a failure.
"""
import concurrent.futures
import contextlib
import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse

import lighter
from lighter import WAIT_SECONDS, alive, wait_until

MODES = {
    "cpu": ("--offload-group-size", 1), "meta": ("--offload-group-size", 1),
    "shm_cpu": ("--offload-group-size", 1), "sharded_gpu": ("--offload-group-size", 1),
    "disk": ("--offload-group-size", 1, "--offload-params", "*.self_attn.o_proj.weight"),
    "auto": ("--memory-budget", "22MiB", "--max-total-tokens", 1024),
}
MODULE = os.path.join(os.path.dirname(lighter.PROGRAM), "lighter_mpi.so")
GREEDY = {"temperature": 0, "max_new_tokens": 8}
QUESTION = {"text": "The capital of France is", "sampling_params": GREEDY}
LONG = {"temperature": 0, "max_new_tokens": 160, "ignore_eos": True}  # 8 s: a kill comes in its middle
ENDLESS = {**LONG, "max_new_tokens": 1500}
SLOW = ("--device", "sim:link=100MB/s", "--offload-group-size", "1")  # some 50 ms a token


def ranks(server):
    return server.request("/get_server_info")[1]["ranks"]


def tree(pid):
    """The process and all its descendants."""
    found = [pid]
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError):
                with open(f"/proc/{name}/stat", encoding="ascii") as file:
                    parent = int(file.read().rsplit(")", 1)[1].split()[1])
                if parent == pid:
                    found += tree(int(name))
    return found


def left_behind():
    """What is in the servers' folder for temporary files, and Open MPI's in shared memory."""
    shared = [name for name in os.listdir("/dev/shm") if name.startswith(("vader", "ompi", "lighter"))]
    return shared + os.listdir(os.environ["TMPDIR"])


def ends(processes):
    wait_until("all processes end", lambda: not [pid for pid in processes if alive(pid)])


class Streaming:
    """One streamed answer in a thread: its events, and how it ended."""

    def __init__(self, server, params=None):
        self.events = []
        self.status = None
        address = urllib.parse.urlsplit(server.url)
        self.connection = http.client.HTTPConnection(address.hostname, address.port, timeout=WAIT_SECONDS)
        self.body = {"text": QUESTION["text"], "stream": True, "sampling_params": params or LONG}
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self):
        with contextlib.suppress(OSError, http.client.HTTPException):
            self.connection.request("POST", "/generate", json.dumps(self.body))
            answer = self.connection.getresponse()
            self.status = answer.status
            for line in answer:
                if line.startswith(b"data: {"):
                    self.events.append(json.loads(line[6:]))
        self.connection.close()

    def leave(self):
        """Goes away in the middle, which cancels the request."""
        self.connection.sock.shutdown(2)
        self.thread.join(WAIT_SECONDS)

    def rank(self):
        return self.events[0]["meta_info"]["dp_rank"]

    def ending(self):
        self.thread.join(WAIT_SECONDS)
        assert not self.thread.is_alive(), "an answer hangs"
        return self.events[-1]["meta_info"]["finish_reason"]


def test_ranks_answer_and_share_the_work():
    wanted = lighter.run_json("generate", "--model", lighter.DEMO, "--prompt", QUESTION["text"],
                              "--temperature", 0, "--max-new-tokens", 8)
    for count in (1, 2, 3, 4):
        with lighter.Server("--model", lighter.DEMO, "--dp-size", count, "--offload-group-size", 1) as server:
            with concurrent.futures.ThreadPoolExecutor(8) as pool:
                answers = list(pool.map(lambda _: server.generate(**QUESTION), range(4 * count)))
            assert {answer["text"] for answer in answers} == {wanted["text"]}, answers
            assert "Paris" in wanted["text"]
            assert {tuple(answer["output_ids"]) for answer in answers} == {tuple(wanted["output_ids"])}
            assert {answer["meta_info"]["dp_rank"] for answer in answers} == set(range(count)), answers
            info = server.request("/get_server_info")[1]
            assert info["dp_size"] == count and info["engine"]["finished"] == 4 * count, info
            if count > 1:
                assert [rank["dp_rank"] for rank in info["ranks"]] == list(range(count))
                assert all(rank["state"] == "up" and rank["report"]["finished"] >= 1 for rank in info["ranks"])
            processes = tree(server.process.pid)
        ends(processes)


def test_every_mode_answers_from_every_rank():
    for mode, options in MODES.items():
        with lighter.Server("--model", lighter.DEMO, "--dp-size", 2, "--offload-mode", mode, *options,
                            "--device", "sim:memory=1GiB") as server:
            answers = [server.generate(**QUESTION) for _ in range(4)]
            assert {answer["meta_info"]["dp_rank"] for answer in answers} == {0, 1}
            if mode != "meta":
                assert all("Paris" in answer["text"] for answer in answers), (mode, answers)
            else:
                assert all(answer["meta_info"]["garbage"] for answer in answers), answers


def test_one_rank_says_the_forecast():
    with lighter.Server("--model", lighter.DEMO, "--dp-size", 2, "--offload-group-size", 1, "--assume", "read=9GB/s",
                        "--device", "sim:memory=1GiB,link=4GB/s") as server:
        told = [line for line in server.log if "forecast: a token moves" in line]
        assert len(told) == 1 and "rank 0" in told[0], server.log
        assert not any("has no effect" in line for line in server.log), server.log


def test_shards_of_other_ranks_come_at_the_rate_between_devices():
    with lighter.Server("--model", lighter.DEMO, "--dp-size", 2, "--offload-mode", "sharded_gpu",
                        *MODES["sharded_gpu"], "--assume", "read=9GB/s",
                        "--device", "sim:memory=1GiB,link=4GB/s,peer=20MB/s") as server:
        told = [line for line in server.log if "forecast: a token moves" in line]
        found = re.search(r"moves (\S+) MiB \((\S+) MiB from own shards, (\S+) MiB from other ranks' shards\) in (\S+) s",
                          told[0])
        moved, own, peers, seconds = map(float, found.groups())
        assert abs(moved - own - peers) < 0.02 and abs(own - peers) < 0.02, told
        assert peers * 2**20 / 20e6 * 0.99 < seconds < peers * 2**20 / 20e6 * 1.2, told


def test_bad_requests_and_options_are_refused_by_the_front_end():
    with lighter.Server("--model", lighter.DEMO, "--dp-size", 2) as server:
        for body, word in (({"input_ids": [99999999]}, "vocabulary"),
                           ({"text": "a", "sampling_params": {"top_p": 7}}, "top_p"),
                           ({"input_ids": [5] * 100000}, "context")):
            status, answer = server.request("/generate", {**body, "stream": True})
            assert status == 400 and word in answer["error"]["message"], answer
        assert server.request("/health")[0] == 200 and server.request("/health_generate")[0] == 200
        assert server.request("/get_model_info")[1]["vocab_size"] > 0
    for command, arguments, word in (("serve", ["--dp-size", 2, "--model", "/nowhere"], "/nowhere"),
                                     ("serve", ["--dp-size", 2, "--model", lighter.DEMO, "--memory-budget", "1MiB"],
                                      "budget"),
                                     ("generate", ["--dp-size", 2, "--model", lighter.DEMO, "--prompt", "a"], "serve")):
        code, _, err = lighter.run(command, *arguments)
        assert code != 0 and word in err, err


def test_a_seed_gives_the_same_answers_from_any_number_of_ranks():
    body = {"text": "Once", "sampling_params": {"temperature": 1.5, "max_new_tokens": 12}}
    seen = []
    for count in (1, 3):
        with lighter.Server("--model", lighter.DEMO, "--dp-size", count, "--random-seed", 7) as server:
            seen.append([server.generate(**body)["output_ids"] for _ in range(6)])
    assert seen[0] == seen[1], seen


def test_a_rank_dies_and_comes_back():
    with lighter.Server("--model", lighter.DEMO, "--dp-size", 2, *SLOW) as server:
        streams = [Streaming(server) for _ in range(4)]
        wait_until("all stream", lambda: all(stream.events for stream in streams))
        assert {stream.rank() for stream in streams} == {0, 1}
        victim = ranks(server)[1]
        os.kill(victim["pid"], signal.SIGKILL)
        for stream in streams:
            reason = stream.ending()
            if stream.rank() == 1:
                assert reason["type"] == "abort" and "rank 1" in reason["message"], reason
                assert reason["status_code"] in (500, 503)
            else:
                assert reason["type"] == "length", reason
        assert "Paris" in server.generate(**QUESTION)["text"]
        wait_until("rank 1 is back", lambda: ranks(server)[1]["state"] == "up")
        again = ranks(server)[1]
        assert again["pid"] != victim["pid"] and again["restarts"] == 1, again
        answers = [server.generate(**QUESTION) for _ in range(4)]
        assert {answer["meta_info"]["dp_rank"] for answer in answers} == {0, 1}
        assert all("Paris" in answer["text"] for answer in answers)
        processes = tree(server.process.pid)
    ends(processes)
    wait_until("nothing is left", lambda: not left_behind())


def test_what_waits_goes_to_the_others():
    with lighter.Server("--model", lighter.DEMO, "--dp-size", 2, "--max-running-requests", 1, *SLOW) as server:
        running = [Streaming(server, ENDLESS) for _ in range(2)]
        wait_until("both ranks are busy", lambda: all(stream.events for stream in running))
        with concurrent.futures.ThreadPoolExecutor(3) as pool:
            waiting = [pool.submit(server.generate, **QUESTION) for _ in range(3)]
            wait_until("three wait", lambda: server.request("/get_server_info")[1]["engine"]["waiting"] == 3)
            os.kill(ranks(server)[0]["pid"], signal.SIGKILL)
            for answer in waiting:
                assert "Paris" in answer.result(WAIT_SECONDS)["text"]
        assert running[0].rank() != running[1].rank()
        running[0 if running[0].rank() == 1 else 1].leave()


def test_a_rank_dies_in_every_mode_that_shares():
    for mode in ("shm_cpu", "sharded_gpu", "disk"):
        with lighter.Server("--model", lighter.DEMO, "--dp-size", 3, "--offload-mode", mode, *MODES[mode],
                            "--device", "sim:memory=1GiB") as server:
            for victim in (0, 2):
                old = ranks(server)[victim]["pid"]
                os.kill(old, signal.SIGKILL)
                wait_until("it is noticed", lambda: ranks(server)[victim]["pid"] != old)
                wait_until("all are up", lambda: all(rank["state"] == "up" for rank in ranks(server)))
                answers = [server.generate(**QUESTION) for _ in range(6)]
                assert {answer["meta_info"]["dp_rank"] for answer in answers} == {0, 1, 2}
                assert all("Paris" in answer["text"] for answer in answers), (mode, answers)
        wait_until("nothing is left", lambda: not left_behind())


def test_ranks_that_start_again_do_not_measure_again():
    with lighter.Server("--model", lighter.DEMO, "--dp-size", 2, "--offload-mode", "sharded_gpu",
                        *MODES["sharded_gpu"], "--device", "sim:memory=1GiB") as server:
        old = {rank["pid"] for rank in ranks(server)}
        os.kill(max(old), signal.SIGKILL)
        wait_until("all are new", lambda: all(rank["state"] == "up" and rank["pid"] not in old
                                              for rank in ranks(server)))
        assert "Paris" in server.generate(**QUESTION)["text"]
        assert len([line for line in server.log if "forecast: a token moves" in line]) == 1, server.log


def test_a_rank_that_hangs_is_a_dead_one():
    with lighter.Server("--model", lighter.DEMO, "--dp-size", 2, *SLOW) as server:
        streams = [Streaming(server) for _ in range(2)]
        wait_until("both stream", lambda: all(stream.events for stream in streams))
        victim = ranks(server)[0]["pid"]
        os.kill(victim, signal.SIGSTOP)
        reason = next(stream for stream in streams if stream.rank() == 0).ending()
        assert reason["type"] == "abort" and "silent" in reason["message"], reason
        wait_until("it is gone", lambda: not alive(victim))
        wait_until("rank 0 is back", lambda: ranks(server)[0]["state"] == "up")
        assert next(stream for stream in streams if stream.rank() == 1).ending()["type"] == "length"


def test_a_busy_machine_is_no_death():
    with lighter.Server("--model", lighter.DEMO, "--dp-size", 2, *SLOW) as server:
        streams = [Streaming(server, ENDLESS) for _ in range(2)]
        wait_until("both stream", lambda: all(stream.events for stream in streams))
        others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(4 * os.cpu_count())]
        time.sleep(5)
        for other in others:
            other.kill()
            other.wait()
        assert [(rank["state"], rank["restarts"]) for rank in ranks(server)] == [("up", 0)] * 2, server.log
        for stream in streams:
            stream.leave()


def test_a_rank_whose_device_fails_is_started_again():
    """The error of a stream stays, so only a new process helps. Requests that ran hear the device's sentence."""
    with lighter.Server("--model", lighter.DEMO, "--dp-size", 2, "--device", "sim:fail_launch=3000") as server:
        answers = []
        while not any("on purpose" in json.dumps(answer) for answer in answers):
            answers.append(server.request("/generate", QUESTION)[1])
            assert len(answers) < 500, answers[-1]
        wait_until("it is back", lambda: any(rank["restarts"] == 1 and rank["state"] == "up"
                                             for rank in ranks(server)))
        wait_until("it answers", lambda: "Paris" in str(server.request("/generate", QUESTION)[1].get("text")))
        assert any("can't go on" in line for line in server.log), server.log


def test_a_rank_that_comes_back_to_other_files_is_refused():
    """The checkpoint is replaced while serving: a rank that is started again must not answer with other weights
    than the rest. An update of all ranks ends that."""
    with tempfile.TemporaryDirectory() as folder:
        model, new = os.path.join(folder, "model"), os.path.join(folder, "new")
        shutil.copytree(lighter.DEMO, model)
        shutil.copytree(lighter.DEMO, new)
        path = os.path.join(model, "model.safetensors")
        with lighter.Server("--model", model, "--dp-size", 2, "--offload-group-size", 1) as server:
            shutil.copy(path, path + ".new")
            os.replace(path + ".new", path)
            os.kill(ranks(server)[1]["pid"], signal.SIGKILL)
            wait_until("it is refused", lambda: any("its files have changed" in line for line in server.log))
            answers = [server.generate(**QUESTION) for _ in range(3)]
            assert all("Paris" in answer["text"] for answer in answers), answers
            assert {answer["meta_info"]["dp_rank"] for answer in answers} == {0}, answers
            assert server.request("/health")[0] == 200
            status, answer = server.request("/update_weights_from_disk", {"model_path": new})
            assert status == 200, answer
            wait_until("it is back", lambda: all(rank["state"] == "up" for rank in ranks(server)))
            for victim in (0, 1):  # whose files have not changed
                old = ranks(server)[victim]["pid"]
                os.kill(old, signal.SIGKILL)
                wait_until("it is new", lambda: ranks(server)[victim]["pid"] != old
                           and ranks(server)[victim]["state"] == "up")
            assert "Paris" in server.generate(**QUESTION)["text"]


def test_each_rank_writes_a_timeline():
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "trace.json")
        with lighter.Server("--model", lighter.DEMO, "--dp-size", 2, "--offload-mode", "disk", *MODES["disk"],
                            "--device", "sim:memory=64MiB", "--trace", path) as server:
            assert {server.generate(**QUESTION)["meta_info"]["dp_rank"] for _ in range(4)} == {0, 1}
        assert sorted(os.listdir(folder)) == ["trace.json.rank0", "trace.json.rank1"]
        for rank in (0, 1):
            with open(f"{path}.rank{rank}", encoding="utf-8") as file:
                spans = [event for event in json.load(file)["traceEvents"] if event["ph"] == "X"]
            assert {span["pid"] for span in spans} == {rank}, rank
            assert {"step", "compute", "copy", "disk"} <= {span["cat"] for span in spans}, {s["cat"] for s in spans}
            assert any(span["name"].endswith(".attention") and span["args"].get("bytes") for span in spans)


def test_all_ranks_die_and_come_back():
    with lighter.Server("--model", lighter.DEMO, "--dp-size", 2) as server:
        old = [rank["pid"] for rank in ranks(server)]
        keeper = int(open(f"/proc/{old[0]}/stat", encoding="ascii").read().rsplit(")", 1)[1].split()[1])
        os.kill(keeper, signal.SIGKILL)  # without one of its processes, mpirun ends the others
        wait_until("all are new", lambda: not {rank["pid"] for rank in ranks(server)} & set(old)
                   and all(rank["state"] == "up" for rank in ranks(server)))
        assert "Paris" in server.generate(**QUESTION)["text"]


def test_the_front_end_dies_and_leaves_nothing():
    server = lighter.Server("--model", lighter.DEMO, "--dp-size", 2, *SLOW)
    server.__enter__()
    stream = Streaming(server, ENDLESS)
    wait_until("it streams", lambda: stream.events)
    processes = tree(server.process.pid)
    assert len(processes) == 7, processes  # front end, guard, mpirun, two keepers, two ranks
    server.process.kill()
    server.process.wait(WAIT_SECONDS)
    ends(processes)
    wait_until("nothing is left", lambda: not left_behind())
    server.process.stderr.close()


def test_sigterm_finishes_what_runs():
    with lighter.Server("--model", lighter.DEMO, "--dp-size", 2, *SLOW) as server:
        streams = [Streaming(server) for _ in range(2)]
        wait_until("both stream", lambda: all(stream.events for stream in streams))
        processes = tree(server.process.pid)
        server.process.send_signal(signal.SIGTERM)
        assert [stream.ending()["type"] for stream in streams] == ["length", "length"]
        assert server.process.wait(WAIT_SECONDS) == 0
    ends(processes)


if __name__ == "__main__":
    if shutil.which("mpirun") is None or not os.path.exists(MODULE):
        print("there is no Open MPI\n0 passed, 0 failed, 1 skipped")
        sys.exit(0)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TMPDIR"] = folder
        code = lighter.main(sys.modules[__name__])
    sys.exit(code)
