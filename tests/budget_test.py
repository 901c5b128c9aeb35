#!/usr/bin/env python3
"""The budget is a bound and not an estimate: a model several times as large runs inside a memory cgroup of the
budget plus 128 MiB, page cache included, and is never killed. Needs root and a cgroup to make one in; says that
it is skipped elsewhere."""
import json
import os
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

    def run(self, command):
        def enter():
            Cgroup.write(self.path, "cgroup.procs", os.getpid())
        return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=enter,
                              timeout=lighter.WAIT_SECONDS)

    def remove(self):
        if self.path is not None:
            os.rmdir(self.path)


def in_cgroup(budget, *arguments):
    """The finished process, or None where no cgroup can be made."""
    group = Cgroup(budget + BESIDE)
    if group.path is None:
        return None
    try:
        return group.run([lighter.PROGRAM, *map(str, arguments)])
    finally:
        group.remove()


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
        if done is None:
            raise lighter.Skipped("no memory cgroup can be made here")
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
        if done is None:
            raise lighter.Skipped("no memory cgroup can be made here")
        assert done.returncode == 0, (done.returncode, done.stderr.decode())
        report = json.loads(done.stdout)["report"]["offload"]
        assert set(report["homes"]) == {"host", "disk"}, report["homes"]
        assert report["memory"]["host_peak_bytes"] <= host, report["memory"]


if __name__ == "__main__":
    sys.exit(lighter.main(sys.modules[__name__]))
