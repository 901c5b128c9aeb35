#!/usr/bin/env python3
"""Builds the variants, runs every test, and counts. Called by scripts/test.

A step is a command. Its tests are counted from what it prints: cmocka's lines, or a closing line
"N passed, N failed[, N skipped]"; a step that prints neither is one test, passed when it exits 0. A step
that fails without naming a failed test counts as one failed. Steps of one stage run side by side, one per
processor; a stage waits for the one before it.
"""
import concurrent.futures
import glob
import os
import re
import subprocess
import sys
import time

CPUS = len(os.sched_getaffinity(0))
STEP_SECONDS_MAX = 900
PYTHON = os.environ.get("PYTHON", sys.executable)
CLOSING = re.compile(r"^(\d+) passed, (\d+) failed(?:, (\d+) skipped)?$", re.M)


def count(output, code):
    """(passed, failed, skipped) of one step."""
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


class Runner:
    def __init__(self):
        self.passed = self.failed = self.skipped = 0

    def step(self, name, command, env=None):
        started = time.time()
        try:
            done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                  stdin=subprocess.DEVNULL, timeout=STEP_SECONDS_MAX,
                                  env={**os.environ, **(env or {})})
            output, code = done.stdout.decode("utf-8", "replace"), done.returncode
        except subprocess.TimeoutExpired as late:
            output = (late.stdout or b"").decode("utf-8", "replace")
            output += f"\nstopped after {STEP_SECONDS_MAX} seconds\n"
            code = 124
        return name, output, code, time.time() - started

    def stage(self, title, steps, side_by_side=True):
        """steps: (name, command[, env]). True when all passed."""
        print(f"== {title}", flush=True)
        good = True
        with concurrent.futures.ThreadPoolExecutor(CPUS if side_by_side else 1) as pool:
            futures = [pool.submit(self.step, *step) for step in steps]
            for future in concurrent.futures.as_completed(futures):
                name, output, code, seconds = future.result()
                passed, failed, skipped = count(output, code)
                self.passed += passed
                self.failed += failed
                self.skipped += skipped
                print(f"{'ok  ' if not failed else 'FAIL'} {name}: {passed} passed, {failed} failed"
                      + (f", {skipped} skipped" if skipped else "") + f" ({seconds:.1f} s)", flush=True)
                if failed:
                    good = False
                    print("\n".join("    " + line for line in output.splitlines()[-60:]), flush=True)
        return good


def make(*arguments):
    return ["make", f"-j{CPUS}", "--no-print-directory", *arguments]


def unit_tests(build):
    return [(path, [path]) for path in sorted(glob.glob(f"{build}/tests/**/*_test", recursive=True))]


def corpora(build):
    """Every fuzz target over its corpus: src/ROOM/NAME_fuzz.c over tests/corpus/ROOM_NAME, else NAME."""
    steps = []
    for path in sorted(glob.glob(f"{build}/fuzz/**/*_fuzz", recursive=True)):
        name = os.path.basename(path)[:-len("_fuzz")]
        room = os.path.basename(os.path.dirname(path))
        for folder in (f"tests/corpus/{room}_{name}", f"tests/corpus/{name}"):
            if os.path.isdir(folder):
                steps.append((f"{path} over its corpus", [path, folder]))
                break
        else:
            steps.append((f"{path} has no corpus", ["false"]))
    return steps


def programs():
    return [(path, [PYTHON, path]) for path in sorted(glob.glob("tests/*_test.py"))]


def variant(run, title, build, arguments, env=None):
    if run.stage(f"build: {title}", [(f"make {' '.join(arguments)}", make(*arguments, "all", "tests", "fuzz"))],
                 side_by_side=False):
        run.stage(f"unit tests: {title}", [(*step, env or {}) for step in unit_tests(build) + corpora(build)])


def main():
    quick = sys.argv[1:] == ["quick"]
    if sys.argv[1:] and not quick:
        print("usage: scripts/test [quick]", file=sys.stderr)
        return 2
    started = time.time()
    run = Runner()
    run.stage("checks of the source", [("scripts/check", ["scripts/check"])])
    variant(run, "release, gcc", "build", [])
    run.stage("whole programs", programs(), side_by_side=False)
    if not quick:
        variant(run, "address and undefined-behaviour sanitizers", "build-asan", ["VARIANT=asan"],
                {"ASAN_OPTIONS": "detect_leaks=1:allocator_may_return_null=1"})
        variant(run, "thread sanitizer", "build-tsan", ["VARIANT=tsan"],
                {"TSAN_OPTIONS": "halt_on_error=1"})
        variant(run, "release, clang", "build-clang", ["CC=clang", "B=build-clang"])
        run.stage("static analysis", [("scripts/lint", ["scripts/lint"])], side_by_side=False)
    print(f"{time.time() - started:.0f} seconds")
    print(f"{run.passed} passed, {run.failed} failed" + (f", {run.skipped} skipped" if run.skipped else ""))
    return 0 if run.failed == 0 and run.passed > 0 else 1


if __name__ == "__main__":
    sys.exit(main())
