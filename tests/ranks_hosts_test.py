#!/usr/bin/env python3
"""Ranks under the user's own mpirun: on one host, and on two that are network namespaces.

A "host" is a network namespace with a host name of its own; a pair of virtual interfaces is the wire
between the two. mpirun reaches the other one through an agent in ssh's place, which enters it. Needs root
and iproute2; without them only the one host is tested.
"""
import concurrent.futures
import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import tempfile

import lighter
from lighter import wait_until
from ranks_test import MODULE, QUESTION, ends, tree

MPIRUN = ["mpirun", "--oversubscribe", "--bind-to", "none", "--quiet", "--mca", "btl", "self,tcp"]
if os.geteuid() == 0:
    MPIRUN.append("--allow-run-as-root")
NAMES = [f"lighter-{os.getpid()}-{side}" for side in "ab"]
INSIDE = "ip netns exec %s unshare --uts"
AGENT = """#!/bin/sh
while [ "${1#-}" != "$1" ]; do shift; done
host=$1
shift
[ "$host" = 10.77.0.2 ] || exit 1
exec ip netns exec %s unshare --uts sh -c "hostname other; $*"
"""


class Mpirun(lighter.Server):
    """The same as a Server, started by mpirun; `self.url` is the front end's, seen from its own host."""

    def __init__(self, count, *arguments, host=None, mpirun=()):
        self.host = host
        self.inside = INSIDE % host if host else ""
        self.mpirun = list(mpirun)
        self.client = concurrent.futures.ThreadPoolExecutor(1, initializer=self.enter)
        self.count = count
        super().__init__(*arguments)

    def command(self, arguments):
        return [*self.inside.split(), *MPIRUN, *self.mpirun, "-n", str(self.count), lighter.PROGRAM, "serve",
                "--port", "0", *arguments]

    def enter(self):
        """The client's thread goes to the front end's host."""
        if self.host:
            with open(f"/run/netns/{self.host}", "rb") as file:
                assert ctypes.CDLL(None, use_errno=True).setns(file.fileno(), 0) == 0, os.strerror(ctypes.get_errno())

    def ask(self, path, body=None):
        """What request answers, seen from the front end's host."""
        status, answer = self.client.submit(self.request, path, body).result(lighter.WAIT_SECONDS)
        assert status == 200, answer
        return answer

    def front(self):
        """The front end: the child of mpirun that listens."""
        pid = self.ask("/get_server_info")["pid"]
        assert pid in tree(self.process.pid)
        return pid

    def stop(self):
        """SIGTERM to the front end, which lets all others go; what mpirun ends with."""
        processes = tree(self.process.pid)
        os.kill(self.front(), signal.SIGTERM)
        code = self.process.wait(lighter.WAIT_SECONDS)
        ends(processes)
        return code


@contextlib.contextmanager
def two_hosts():
    """The name of the first, and mpirun's options for both."""
    run = lambda *words: subprocess.run(words, check=True, stderr=subprocess.PIPE)  # noqa: E731
    first, second = NAMES
    with tempfile.TemporaryDirectory() as folder:
        agent = os.path.join(folder, "agent")
        with open(agent, "w", encoding="ascii") as file:
            file.write(AGENT % second)
        os.chmod(agent, 0o755)
        try:
            run("ip", "netns", "add", first)
            run("ip", "netns", "add", second)
            run("ip", "link", "add", "wire", "netns", first, "type", "veth", "peer", "name", "wire", "netns", second)
            for number, name in enumerate(NAMES, 1):
                run("ip", "-n", name, "addr", "add", f"10.77.0.{number}/24", "dev", "wire")
                run("ip", "-n", name, "link", "set", "lo", "up")
                run("ip", "-n", name, "link", "set", "wire", "up")
            yield first, ["--host", "10.77.0.1:2,10.77.0.2:2", "--map-by", "node", "--mca", "plm_rsh_agent", agent]
        finally:
            for name in NAMES:
                subprocess.run(["ip", "netns", "del", name], stderr=subprocess.DEVNULL, check=False)


def check(server, count, hosts):
    """All ranks answer; one that dies comes back; the others never notice."""
    answers = [server.ask("/generate", QUESTION) for _ in range(2 * count)]
    assert all("Paris" in answer["text"] for answer in answers), answers
    assert {answer["meta_info"]["dp_rank"] for answer in answers} == set(range(count)), answers
    old = server.ask("/get_server_info")["ranks"]
    assert len({rank["host"] for rank in old}) == hosts, old
    victim = old[-1]
    os.kill(victim["pid"], signal.SIGKILL)
    wait_until("it is noticed", lambda: server.ask("/get_server_info")["ranks"][-1]["pid"] != victim["pid"])
    wait_until("it is back", lambda: server.ask("/get_server_info")["ranks"][-1]["state"] == "up")
    new = server.ask("/get_server_info")["ranks"]
    assert [rank["pid"] for rank in new[:-1]] == [rank["pid"] for rank in old[:-1]]
    assert new[-1]["restarts"] == 1 and new[-1]["host"] == victim["host"], new
    assert all("Paris" in server.ask("/generate", QUESTION)["text"] for _ in range(2 * count))


def test_mpirun_on_one_host():
    server = Mpirun(3, "--model", lighter.DEMO, "--offload-mode", "shm_cpu", "--offload-group-size", 1)
    assert server.up.wait(lighter.WAIT_SECONDS) and server.url, server.log
    check(server, 3, 1)
    server.stop()
    server.process.stderr.close()


def test_a_clean_end_is_a_clean_end():
    server = Mpirun(2, "--model", lighter.DEMO)
    assert server.up.wait(lighter.WAIT_SECONDS) and server.url, server.log
    assert "Paris" in server.ask("/generate", QUESTION)["text"]
    assert server.stop() == 0
    server.process.stderr.close()


def test_mpirun_and_dp_size_must_agree():
    done = subprocess.run([*MPIRUN, "-n", "2", lighter.PROGRAM, "serve", "--model", lighter.DEMO, "--dp-size", "3"],
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=lighter.WAIT_SECONDS, check=False)
    assert done.returncode != 0 and b"--dp-size 3, but mpirun has started 2" in done.stderr, done


def test_mpirun_on_two_hosts():
    with two_hosts() as (host, mpirun):
        for count in (2, 3, 4):
            server = Mpirun(count, "--model", lighter.DEMO, "--offload-mode", "shm_cpu", "--offload-group-size", 1,
                            host=host, mpirun=mpirun)
            assert server.up.wait(lighter.WAIT_SECONDS) and server.url, server.log
            check(server, count, 2)
            server.stop()
            server.process.stderr.close()


def test_every_home_and_an_update_on_two_hosts():
    with two_hosts() as (host, mpirun), tempfile.TemporaryDirectory() as folder:
        new = os.path.join(folder, "new")
        shutil.copytree(lighter.DEMO, new)
        for options in (["--offload-mode", "sharded_gpu", "--offload-group-size", 1, "--device", "sim:memory=64MiB"],
                        ["--memory-budget", "8MiB", "--max-total-tokens", 512, "--assume", "disk=1GB/s"]):
            server = Mpirun(4, "--model", lighter.DEMO, *options, host=host, mpirun=mpirun)
            assert server.up.wait(lighter.WAIT_SECONDS) and server.url, server.log
            for version in ("default", "2"):
                answers = [server.ask("/generate", QUESTION) for _ in range(8)]
                assert all("Paris" in answer["text"] for answer in answers), answers
                assert {answer["meta_info"]["dp_rank"] for answer in answers} == set(range(4)), answers
                assert {answer["meta_info"]["weight_version"] for answer in answers} == {version}, answers
                if version == "default":
                    server.ask("/update_weights_from_disk", {"model_path": new, "weight_version": "2"})
            assert len({rank["host"] for rank in server.ask("/get_server_info")["ranks"]}) == 2
            server.stop()
            server.process.stderr.close()


def can_make_hosts():
    if os.geteuid() != 0 or shutil.which("ip") is None:
        return False
    made = subprocess.run(["ip", "netns", "add", NAMES[0]], stderr=subprocess.DEVNULL, check=False).returncode == 0
    subprocess.run(["ip", "netns", "del", NAMES[0]], stderr=subprocess.DEVNULL, check=False)
    return made


if __name__ == "__main__":
    if shutil.which("mpirun") is None or not os.path.exists(MODULE):
        print("there is no Open MPI\n0 passed, 0 failed, 1 skipped")
        sys.exit(0)
    if not can_make_hosts():
        print("network namespaces need root and iproute2: two hosts are not tested")
        del test_mpirun_on_two_hosts, test_every_home_and_an_update_on_two_hosts
    sys.exit(lighter.main(sys.modules[__name__]))
