#!/usr/bin/env python3
"""Builds the variants, runs every test, and counts. Called by scripts/test.

A job is a command. Its tests are counted from what it prints: cmocka's lines, or a closing line
"N passed, N failed[, N skipped]"; a job that prints neither is one test, passed when it exits 0. A job
that fails without naming a failed test counts as one failed.

All jobs are in one queue, and the processors stay busy until it is empty:

    make release --> make tsan --> make asan --> make clang     each build's tests when it is done
                 \\-> make lint
                 \\-> whole programs, beside all of this

Who computes holds a token, of which there is one per processor; the compilers that make starts hold them
too, for the pipe with the tokens is GNU make's job server. Whole programs mostly wait: they need no token,
and what builds is nice to them, so that they find a processor at once.
"""
import concurrent.futures
import glob
import heapq
import itertools
import os
import re
import subprocess
import sys
import threading
import time

STEP = re.compile(r"(CC|CXX|NVCC|LD|AR|TIDY|CPPCHECK) ?\S*$")  # what make says it is about to do
CPUS = len(os.sched_getaffinity(0))
JOB_SECONDS_MAX = 600
PYTHON = os.environ.get("PYTHON", sys.executable)
CLOSING = re.compile(r"^(\d+) passed, (\d+) failed(?:, (\d+) skipped)?$", re.M)
NICE_BUILD, NICE_TEST = "19", "5"
URGENT, LATER = 0, 1  # tests that can run come before the next build


def count(output, code):
    """(passed, failed, skipped) of one job."""
    closing = CLOSING.findall(output)
    if closing:
        passed, failed, skipped = (int(n or 0) for n in closing[-1])
    else:
        passed = len(re.findall(r"^\[       OK \]", output, re.M))
        failed = len(set(re.findall(r"^\[  FAILED  \] (\w+)$", output, re.M)))
        skipped = len(set(re.findall(r"^\[  SKIPPED \] (\w+)$", output, re.M)))
        if passed + failed + skipped == 0 and code == 0:
            passed = 1
    if code != 0 and failed == 0:
        failed = 1
    return passed, failed, skipped


class Queue:
    """Jobs that run as soon as there is a processor for them."""

    def __init__(self):
        self.passed = self.failed = self.skipped = 0
        self.changed = threading.Condition()  # guards all below, and the counts
        self.waiting = []                     # a heap of (urgency, number, what `run` takes)
        self.unfinished = 0
        self.numbers = itertools.count()
        self.beside = concurrent.futures.ThreadPoolExecutor(CPUS)
        reader, self.give = os.pipe()
        # make sets its end of the pipe not to wait; an end that is opened anew has flags of its own.
        self.take = os.open(f"/proc/self/fd/{reader}", os.O_RDONLY)
        os.write(self.give, b"+" * CPUS)
        self.make_pipe = (reader, self.give)
        self.make_flags = f" -j{CPUS} --jobserver-auth={reader},{self.give}"

    def test(self, name, command, env=None):
        """Queues a test that computes."""
        self.queue(URGENT, name, ["nice", "-n", NICE_TEST, *command], env)

    def make(self, *arguments, then=None):
        """Queues a build; `then` is called with whether it has succeeded."""
        name = " ".join(("make", *arguments))
        command = ["nice", "-n", NICE_BUILD, "make", "--no-print-directory", *arguments]
        self.queue(LATER, name, command, {"MAKEFLAGS": self.make_flags}, then)

    def program(self, path):
        """Queues a test of whole programs."""
        with self.changed:
            self.unfinished += 1
        self.beside.submit(self.run, path, [PYTHON, path], None, None)

    def queue(self, urgency, *job):
        job += (None,) * (4 - len(job))
        with self.changed:
            self.unfinished += 1
            heapq.heappush(self.waiting, (urgency, next(self.numbers), job))
            self.changed.notify()

    def run(self, name, command, env, then):
        started = time.time()
        try:
            done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=JOB_SECONDS_MAX,
                                  stdin=subprocess.DEVNULL, env={**os.environ, **(env or {})},
                                  pass_fds=self.make_pipe if env and "MAKEFLAGS" in env else ())
            output, code = done.stdout.decode("utf-8", "replace"), done.returncode
        except subprocess.TimeoutExpired as late:
            output = (late.stdout or b"").decode("utf-8", "replace")
            output += f"\nstopped after {JOB_SECONDS_MAX} seconds\n"
            code = 124
        except OSError as error:
            output, code = f"{command}: {error}", 127
        passed, failed, skipped = count(output, code)
        if then is not None:
            then(failed == 0)
        with self.changed:
            self.passed += passed
            self.failed += failed
            self.skipped += skipped
            print(f"{'ok  ' if not failed else 'FAIL'} {name}: {passed} passed, {failed} failed"
                  + (f", {skipped} skipped" if skipped else "") + f" ({time.time() - started:.1f} s)", flush=True)
            if failed:
                told = [line for line in output.splitlines() if not STEP.match(line)]
                print("\n".join("    " + line for line in told[-60:]), flush=True)
            self.unfinished -= 1
            self.changed.notify()

    def run_with_token(self, token, job):
        try:
            self.run(*job)
        finally:
            os.write(self.give, token)

    def work(self):
        """Until nothing is left."""
        while True:
            with self.changed:
                self.changed.wait_for(lambda: self.waiting or not self.unfinished)
                if not self.waiting:
                    return
            token = os.read(self.take, 1)
            with self.changed:
                _, _, job = heapq.heappop(self.waiting)
            threading.Thread(target=self.run_with_token, args=(token, job)).start()


def unit_tests(build):
    return [(path, [path]) for path in sorted(glob.glob(f"{build}/tests/**/*_test", recursive=True))]


def races(build):
    """Unit tests that thread sanitizer can find something in: all but those of rooms without threads, and of
    what operators compute, on whatever thread calls them; those are many products, and slow under it."""
    alone = ("tests/text/", "tests/tensor/", "tests/device/cpu/quant_test", "tests/device/cpu/f8_test", "tests/device/op_",
             "tests/cli/vocab_test", "tests/cli/sentencepiece_test",
             "tests/device/selftest_test", "tests/model/ascend_test", "tests/model/cuda_test",
             "tests/model/layout_test", "tests/model/quant_types_test", "tests/cann/ops_test")
    return [test for test in unit_tests(build) if not test[0].startswith(tuple(f"{build}/{path}" for path in alone))]


def corpora(build):
    """Every fuzz target over its corpus: src/ROOM/NAME_fuzz.c over tests/corpus/ROOM_NAME, else NAME."""
    jobs = []
    for path in sorted(glob.glob(f"{build}/fuzz/**/*_fuzz", recursive=True)):
        name = os.path.basename(path)[:-len("_fuzz")]
        room = os.path.basename(os.path.dirname(path))
        for folder in (f"tests/corpus/{room}_{name}", f"tests/corpus/{name}"):
            if os.path.isdir(folder):
                jobs.append((f"{path} over its corpus", [path, folder]))
                break
        else:
            jobs.append((f"{path} has no corpus", ["false"]))
    return jobs


def everything(build):
    return unit_tests(build) + corpora(build)


def variant(queue, build, arguments, env, tests, then=None):
    """Queues a build, and behind it its tests and what comes then."""
    def after(good):
        if good:
            for name, command in tests(build):
                queue.test(name, command, env)
        if then is not None:
            then(good)
    queue.make(*arguments, "all", "tests", *(["fuzz"] if tests is everything else []), then=after)


def main():
    quick = sys.argv[1:] == ["quick"]
    if sys.argv[1:] and not quick:
        print("usage: scripts/test [quick]", file=sys.stderr)
        return 2
    started = time.time()
    queue = Queue()

    def thread_sanitizer(_):
        variant(queue, "build-tsan", ["VARIANT=tsan"], {"TSAN_OPTIONS": "halt_on_error=1"}, races, address_sanitizer)

    def address_sanitizer(_):
        variant(queue, "build-asan", ["VARIANT=asan"],
                {"ASAN_OPTIONS": "detect_leaks=1:allocator_may_return_null=1"}, everything, clang)

    def clang(_):
        variant(queue, "build-clang", ["CC=clang", "B=build-clang"], {}, everything)

    def after_release(good):
        for path in sorted(glob.glob("tests/*_test.py")) if good else []:
            queue.program(path)
        if not quick:
            thread_sanitizer(good)
            queue.make("-k", "lint")

    queue.test("scripts/check", ["scripts/check"])
    variant(queue, "build", [], {}, everything, after_release)
    queue.work()
    print(f"{time.time() - started:.0f} seconds")
    print(f"{queue.passed} passed, {queue.failed} failed" + (f", {queue.skipped} skipped" if queue.skipped else ""))
    return 0 if queue.failed == 0 and queue.passed > 0 else 1


if __name__ == "__main__":
    sys.exit(main())
