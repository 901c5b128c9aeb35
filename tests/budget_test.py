#!/usr/bin/env python3
"""The budget is a bound and not an estimate: a model several times as large runs inside a memory cgroup of the
budget plus 128 MiB, page cache included, and is never killed. Needs root and a cgroup to make one in; says that
it is skipped elsewhere."""
import concurrent.futures
import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile

import lighter

MIB = 1 << 20
BESIDE = 128 * MIB  # for the program itself, beside the budget
GROUP = f"lighter-budget-test-{os.getpid()}"


class Cgroup:
    """A memory cgroup, of version 1 or 2; .path is None when none can be made."""

    def __init__(self, limit):
        self.path = None
        old = os.path.isdir("/sys/fs/cgroup/memory")
        path = os.path.join("/sys/fs/cgroup/memory" if old else "/sys/fs/cgroup", GROUP)
        try:
            os.mkdir(path)
        except OSError:
            return
        try:
            self.write(path, "memory.limit_in_bytes" if old else "memory.max", limit)
            if not old:
                self.write(path, "memory.swap.max", 0)
            self.path = path
        except OSError:
            os.rmdir(path)

    @staticmethod
    def write(path, name, value):
        with open(os.path.join(path, name), "w") as file:
            file.write(str(value))

    def enter(self):
        Cgroup.write(self.path, "cgroup.procs", os.getpid())

    def run(self, command):
        return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=self.enter,
                              timeout=lighter.WAIT_SECONDS)

    def remove(self):
        if self.path is not None:
            os.rmdir(self.path)


@contextlib.contextmanager
def cgroup(limit):
    group = Cgroup(limit)
    if group.path is None:
        raise lighter.Skipped("no memory cgroup can be made here")
    try:
        yield group
    finally:
        group.remove()


class ServerIn(lighter.Server):
    """A server whose processes are all in the cgroup."""

    def __init__(self, group, *arguments):
        self.group = group
        super().__init__(*arguments)

    def start(self, command):
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                                preexec_fn=self.group.enter)


def in_cgroup(budget, *arguments):
    """The finished process."""
    with cgroup(budget + BESIDE) as group:
        return group.run([lighter.PROGRAM, *map(str, arguments)])


def make(folder, preset, *more):
    path = os.path.join(folder, preset)
    subprocess.run(["/usr/bin/python3", os.path.join(lighter.ROOT, "tools/make_random_model.py"), "--preset", preset,
                    *more, path], check=True, stdout=subprocess.DEVNULL)
    return path


def test_a_dense_model_runs_inside_its_budget():
    with tempfile.TemporaryDirectory() as folder:
        model = make(folder, "llama-1b", "--layers", "5")
        size = os.path.getsize(os.path.join(model, "model.safetensors"))
        budget = 200 * MIB
        assert size > 3 * (budget + BESIDE) // 2
        done = in_cgroup(budget, "generate", "--model", model, "--input-ids", "1,2,3,4,5", "--max-new-tokens", "3",
                         "--ignore-eos", "--temperature", "0", "--offload-mode", "auto", "--memory-budget", budget,
                         "--json", "--quiet", "--skip-tokenizer-init")
        assert done.returncode == 0, (done.returncode, done.stderr.decode())


def test_host_memory_is_bounded_too():
    """On a device with a link and memory of its own, which for sim is the machine's: both budgets together."""
    with tempfile.TemporaryDirectory() as folder:
        model = make(folder, "llama-1b", "--layers", "5")
        device, host = 200 * MIB, 100 * MIB
        done = in_cgroup(device + host, "generate", "--model", model, "--input-ids", "1,2,3,4,5", "--max-new-tokens",
                         "3", "--ignore-eos", "--temperature", "0", "--device", "sim:memory=300MiB", "--offload-mode",
                         "auto", "--memory-budget", device, "--host-memory-budget", host, "--json", "--quiet",
                         "--skip-tokenizer-init")
        assert done.returncode == 0, (done.returncode, done.stderr.decode())
        report = json.loads(done.stdout)["report"]["offload"]
        assert set(report["homes"]) == {"host", "disk"}, report["homes"]
        assert report["memory"]["host_peak_bytes"] <= host, report["memory"]


def smallest(err):
    return int(re.search(r"that would do is (\d+) bytes", err).group(1))


def test_the_smallest_budget_that_is_named_works():
    """The first one, on both devices, of either memory, whatever the budget that was refused; and one byte less is
    refused with the same."""
    with tempfile.TemporaryDirectory() as folder:
        ask = ["generate", "--model", make(folder, "llama-100m"), "--input-ids", "1,2,3", "--max-new-tokens", "1",
               "--quiet", "--skip-tokenizer-init", "--offload-group-size", "1"]
        for option, refused, more in (
                ("--host-memory-budget", "1MiB", ["--device", "sim", "--offload-mode", "cpu"]),
                ("--host-memory-budget", "190MiB", ["--device", "sim", "--offload-mode", "cpu", "--dtype", "float32",
                                                    "--offload-prefetch-step", "2"]),
                ("--host-memory-budget", "1MiB", ["--device", "cpu", "--offload-mode", "disk"]),
                ("--memory-budget", "1MiB", ["--device", "cpu", "--offload-mode", "disk"])):
            code, _, err = lighter.run(*ask, *more, option, refused)
            assert code == 1, (more, err)
            named = smallest(err)
            lighter.run(*ask, *more, option, named, check=0)
            code, _, err = lighter.run(*ask, *more, option, named - 1)
            assert code == 1 and smallest(err) == named, (more, named, err)


def test_ranks_name_the_largest_need():
    """Of ranks that share a segment one has it, and any may be heard first."""
    if shutil.which("mpirun") is None or not os.path.exists(os.path.join(os.path.dirname(lighter.PROGRAM),
                                                                         "lighter_mpi.so")):
        raise lighter.Skipped("there is no Open MPI")
    ask = ["--model", lighter.DEMO, "--device", "sim:memory=64MiB", "--dp-size", 2, "--offload-mode", "shm_cpu",
           "--offload-group-size", 1, "--host-memory-budget"]
    named = set()
    for _ in range(3):
        code, _, err = lighter.run("serve", *ask, "1MiB", "--port", 0)
        assert code == 1, err
        named.add(smallest(err))
    assert len(named) == 1, named
    with lighter.Server(*ask, named.pop()) as server:
        ranks = server.request("/get_server_info")[1]["ranks"]
        assert [rank["restarts"] for rank in ranks] == [0, 0], ranks


def test_ranks_run_inside_their_budgets():
    """Two ranks, each with its budget and 128 MiB, front end and mpirun included."""
    if shutil.which("mpirun") is None or not os.path.exists(os.path.join(os.path.dirname(lighter.PROGRAM),
                                                                         "lighter_mpi.so")):
        raise lighter.Skipped("there is no Open MPI")
    with tempfile.TemporaryDirectory() as folder:
        model = make(folder, "llama-1b", "--layers", "7")
        budget = 280 * MIB
        with cgroup(2 * (budget + BESIDE)) as group:
            with ServerIn(group, "--model", model, "--dp-size", 2, "--offload-mode", "auto", "--memory-budget", budget,
                          "--skip-tokenizer-init") as server:
                body = {"input_ids": [1, 2, 3, 4], "sampling_params": {"max_new_tokens": 3, "ignore_eos": True,
                                                                       "temperature": 0}}
                with concurrent.futures.ThreadPoolExecutor(4) as pool:
                    answers = list(pool.map(lambda _: server.generate(**body), range(4)))
                assert {answer["meta_info"]["dp_rank"] for answer in answers} == {0, 1}, answers
                assert len({tuple(answer["output_ids"]) for answer in answers}) == 1, answers
                ranks = server.request("/get_server_info")[1]["ranks"]
                assert [rank["restarts"] for rank in ranks] == [0, 0], ranks
                for rank in ranks:
                    offload = rank["report"]["offload"]
                    assert offload["memory"]["peak_bytes"] <= budget and offload["bytes_moved"] > 0, offload


def test_without_a_budget_no_more_is_taken_than_is_free():
    """Neither weights that do not fit nor a cache for all contexts drive a machine out of memory."""
    with tempfile.TemporaryDirectory() as folder:
        model = make(folder, "llama-1b", "--layers", "5")
        with cgroup(400 * MIB) as group:
            done = group.run([lighter.PROGRAM, "generate", "--model", model, "--input-ids", "1,2", "--max-new-tokens",
                              "2", "--skip-tokenizer-init"])
            err = done.stderr.decode()
            assert done.returncode == 1 and "this machine has free" in err and "auto" in err, (done.returncode, err)
    limit = 100 * MIB
    with cgroup(limit) as group:
        with ServerIn(group, "--model", lighter.DEMO, "--max-running-requests", 64) as server:
            report = server.request("/get_server_info")[1]["engine"]
            memory, kv = report["offload"]["memory"], report["kv"]
            assert 32 * MIB < memory["used_bytes"] <= memory["budget_bytes"] < limit, memory
            assert kv["pages"] * kv["page_size"] * kv["bytes_per_token"] < limit, kv


if __name__ == "__main__":
    sys.exit(lighter.main(sys.modules[__name__]))
