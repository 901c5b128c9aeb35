#!/usr/bin/env python3
"""Weights that the ranks of a node share (--offload-mode shm_cpu and sharded_gpu): the same answers, the
bytes once per node, and what happens when a rank is killed or there is no memory to share."""
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile

import lighter
from lighter import WAIT_SECONDS, alive, wait_until

MODULE = os.path.join(os.path.dirname(lighter.PROGRAM), "lighter_mpi.so")
HAS_MPI = shutil.which("mpirun") is not None and os.path.exists(MODULE)
SHARED = ("shm_cpu", "sharded_gpu")
DEVICES = ("cpu", "sim:memory=64MiB")
GREEDY = {"temperature": 0, "max_new_tokens": 8}
QUESTION = {"text": "The capital of France is", "sampling_params": GREEDY}
SLOW = "sim:memory=64MiB,link=100MB/s,peer=100MB/s"


def serve(*arguments):
    return lighter.Server("--model", lighter.DEMO, "--offload-group-size", 1, *arguments)


def ranks(server):
    return server.request("/get_server_info")[1]["ranks"]


def segments(pid):
    """The shared segments that a process has mapped: their names and sizes, and its share of the bytes."""
    found, pss, inside = {}, 0, False
    with open(f"/proc/{pid}/smaps", encoding="ascii") as file:
        for line in file:
            words = line.split()
            if "-" in words[0]:
                inside = len(words) > 5 and words[5].startswith("/memfd:lighter-")
            elif inside and words[0] == "Size:":
                size = int(words[1])
            elif inside and words[0] == "Rss:":
                found[len(found)] = size
            elif inside and words[0] == "Pss:":
                pss += int(words[1])
    return sorted(found.values()), pss


def left_behind():
    return [name for name in os.listdir("/dev/shm") if "lighter" in name] + os.listdir(os.environ["TMPDIR"])


def test_one_rank_answers_as_with_everything_resident():
    ask = ("generate", "--model", lighter.DEMO, "--prompt", QUESTION["text"], "--temperature", 0,
           "--max-new-tokens", 8)
    wanted = lighter.run_json(*ask)["output_ids"]
    for mode in SHARED:
        for device in DEVICES:
            answer = lighter.run_json(*ask, "--device", device, "--offload-group-size", 2, "--offload-mode", mode)
            report = answer["report"]["offload"]
            assert answer["output_ids"] == wanted and "Paris" in answer["text"], answer
            assert report["mode"] == mode and report["bytes_moved"] == report["bytes_planned"], report
            assert report["sharing"]["ranks"] == 1 and report["sharing"]["bytes_moved_peers"] == 0, report
            home = "shm" if mode == "shm_cpu" else "sharded"
            assert {unit["home"] for unit in report["units"]} == {home}, report
            assert report["bytes_moved_from"][home] == report["bytes_moved"], report
    by_size = lighter.run_json(*ask, "--cpu-offload-gb", 0.002, "--offload-mode", "shm_cpu")
    assert by_size["output_ids"] == wanted
    code, _, err = lighter.run(*ask, "--cpu-offload-gb", 1, "--offload-mode", "sharded_gpu")
    assert code == 2 and "shm_cpu" in err and "--offload-group-size" in err, err


def test_no_memory_to_share_is_one_sentence():
    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))

    for mode in SHARED:
        done = subprocess.run([lighter.PROGRAM, "generate", "--model", lighter.DEMO, "--prompt", "a",
                               "--offload-group-size", "1", "--offload-mode", mode, "--quiet"],
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=limit,
                              timeout=WAIT_SECONDS)
        err = done.stderr.decode()
        assert done.returncode == 1 and err.count("\n") == 1 and "shared memory" in err, (mode, err)


def test_a_budget_counts_the_shards():
    ask = ("generate", "--model", lighter.DEMO, "--prompt", "a", "--max-new-tokens", 1, "--max-total-tokens", 64,
           "--device", "sim:memory=64MiB", "--offload-group-size", 1, "--offload-mode", "sharded_gpu")
    code, _, err = lighter.run(*ask, "--memory-budget", "2MiB")
    assert code == 1 and "this rank's shards" in err, err
    smallest = err.split("the smallest budget that would do is ")[1].split()[0]
    lighter.run(*ask, "--memory-budget", smallest, check=0)
    code, _, err = lighter.run(*ask, "--memory-budget", int(smallest) - 1)
    assert code == 1 and smallest in err, err


def test_experts_one_by_one_from_shards_keep_the_budget():
    ask = ("generate", "--model", lighter.DEMO, "--prompt", QUESTION["text"], "--temperature", 0,
           "--max-new-tokens", 8, "--max-total-tokens", 64, "--device", "sim:memory=64MiB", "--offload-experts",
           "--memory-budget", "8MiB")
    seen = [lighter.run_json(*ask, "--offload-mode", mode) for mode in ("cpu", *SHARED)]
    assert all(answer["output_ids"] == seen[0]["output_ids"] for answer in seen), seen
    assert all("Paris" in answer["text"] for answer in seen), seen


def test_two_ranks_hold_the_bytes_once():
    if not HAS_MPI:
        return
    for device in DEVICES:
        for mode in SHARED:
            with serve("--dp-size", 2, "--device", device, "--offload-mode", mode) as server:
                answers = [server.generate(**QUESTION) for _ in range(4)]
                assert {answer["meta_info"]["dp_rank"] for answer in answers} == {0, 1}
                assert all("Paris" in answer["text"] for answer in answers), (mode, answers)
                reports = [rank["report"]["offload"] for rank in ranks(server)]
                moving = sum(unit["bytes"] for unit in reports[0]["units"])
                seen = [segments(rank["pid"]) for rank in ranks(server)]
                for report in reports:
                    sharing = report["sharing"]
                    assert sharing["ranks"] == 2 and report["bytes_moved"] == report["bytes_planned"], report
                    if mode == "sharded_gpu":
                        assert sharing["bytes_moved_own"] + sharing["bytes_moved_peers"] == report["bytes_moved"] > 0
                        assert abs(sharing["bytes_moved_own"] / report["bytes_moved"] - 0.5) < 0.001, report
                pages = (moving + 4095) // 4096 * 4
                sizes, shares = [size for size, _ in seen], sum(share for _, share in seen)
                if mode == "shm_cpu":
                    assert sizes[0] == sizes[1] and len(sizes[0]) == 1, sizes  # the same segment
                    assert pages <= sizes[0][0] <= pages + 4, (sizes, pages)
                else:
                    assert sum(sizes[0]) <= pages + 4 and sizes[0] == sizes[1], sizes
                assert shares <= pages + 4, (mode, device, shares, pages)
    wait_until("nothing is left", lambda: not left_behind())


def test_a_rank_is_killed_in_each_mode():
    """The other rank's answers stay right while it is away, and nothing is left when all have ended."""
    if not HAS_MPI:
        return
    for mode in SHARED:
        for victim in (0, 1):
            with serve("--dp-size", 2, "--device", SLOW, "--offload-mode", mode) as server:
                before = ranks(server)
                os.kill(before[victim]["pid"], signal.SIGKILL)
                wait_until("it is noticed", lambda: ranks(server)[victim]["pid"] != before[victim]["pid"]
                           or ranks(server)[victim]["state"] != "up")
                answer = server.generate(**QUESTION)
                assert "Paris" in answer["text"], answer
                wait_until("it is back", lambda: all(rank["state"] == "up" for rank in ranks(server)))
                answers = [server.generate(**QUESTION) for _ in range(4)]
                assert all("Paris" in answer["text"] for answer in answers), answers
                assert {answer["meta_info"]["dp_rank"] for answer in answers} == {0, 1}
                if mode == "shm_cpu":  # the successor has no copy of its own
                    seen = [segments(rank["pid"]) for rank in ranks(server)]
                    assert seen[0][0] == seen[1][0], seen
                    assert sum(share for _, share in seen) <= sum(seen[0][0]) + 4, seen
        wait_until("nothing is left", lambda: not left_behind())


def test_a_front_end_that_is_killed_leaves_no_segment():
    if not HAS_MPI:
        return
    server = serve("--dp-size", 2, "--offload-mode", "shm_cpu")
    server.__enter__()
    pids = [rank["pid"] for rank in ranks(server)]
    server.process.kill()
    server.process.wait(WAIT_SECONDS)
    wait_until("the ranks end", lambda: not any(map(alive, pids)))
    wait_until("nothing is left", lambda: not left_behind())
    server.process.stderr.close()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TMPDIR"] = folder
        code = lighter.main(sys.modules[__name__])
    sys.exit(code)
