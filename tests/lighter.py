"""What the whole-program tests share: running the program, a server of it, and a closing line."""
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import traceback
import urllib.error
import urllib.request

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PROGRAM = os.path.join(ROOT, os.environ.get("LIGHTER_BUILD", "build"), "lighter")
DEMO = os.path.join(ROOT, "models", "demo")
WAIT_SECONDS = 240  # only so that what hangs is a failure: a busy machine is slow


def run(*arguments, stdin="", check=None):
    """(exit status, stdout, stderr) of `lighter ARGUMENTS`; check: the exit status that is wanted."""
    done = subprocess.run([PROGRAM, *map(str, arguments)], input=stdin.encode(), stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, timeout=WAIT_SECONDS)
    out, err = done.stdout.decode(), done.stderr.decode()
    if check is not None:
        assert done.returncode == check, f"{arguments}: exit {done.returncode}, wanted {check}\n{err}"
    return done.returncode, out, err


def run_json(*arguments, stdin=""):
    """The one JSON object that `lighter ARGUMENTS --json` prints."""
    return json.loads(run(*arguments, "--json", stdin=stdin, check=0)[1])


def wait_until(what, condition):
    until = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < until, f"waited in vain: {what}"
        time.sleep(0.02)


def alive(pid):
    """Whether the process runs; one that nobody has waited for yet does not."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


class Server:
    """`lighter serve` on a free port. Use as a context; leaving it sends SIGTERM and wants exit 0."""

    def __init__(self, *arguments):
        self.process = self.start(self.command([str(argument) for argument in arguments]))
        self.log = []
        self.url = None
        self.up = threading.Event()
        self.reader = threading.Thread(target=self.read_log, daemon=True)
        self.reader.start()

    def start(self, command):
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)

    def command(self, arguments):
        return [PROGRAM, "serve", "--port", "0", *arguments]

    def read_log(self):
        for line in self.process.stderr:
            line = line.decode("utf-8", "replace").rstrip("\n")
            self.log.append(line)
            found = re.search(r"listening on (http://\S+)", line)
            if found:
                self.url = found.group(1)
                self.up.set()
        self.up.set()

    def __enter__(self):
        assert self.up.wait(WAIT_SECONDS) and self.url, "the server did not start:\n" + "\n".join(self.log)
        return self

    def __exit__(self, kind, value, trace):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(WAIT_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        self.reader.join(5)
        self.process.stderr.close()
        if kind is None:
            assert code == 0, f"the server ended with {code}:\n" + "\n".join(self.log)

    def request(self, path, body=None, timeout=WAIT_SECONDS):
        """(status, parsed JSON). body: an object to POST as JSON, bytes to POST as they are, or None."""
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data=data,
                                         headers={"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=timeout) as answer:
                return answer.status, json.loads(answer.read() or b"null")
        except urllib.error.HTTPError as error:
            with contextlib.closing(error):
                return error.code, json.loads(error.read() or b"null")

    def generate(self, **body):
        status, answer = self.request("/generate", body)
        assert status == 200, (status, answer)
        return answer


class Skipped(Exception):
    """Raised by a test that cannot run here; its text says why."""


def main(module):
    """Runs every function of the module whose name begins with test_, prints the closing line."""
    chosen = sys.argv[1:]
    passed = failed = skipped = 0
    for name, test in list(vars(module).items()):
        if not name.startswith("test_") or (chosen and name not in chosen):
            continue
        started = time.time()
        try:
            test()
            passed += 1
            print(f"ok   {name} ({time.time() - started:.1f} s)", flush=True)
        except Skipped as why:
            skipped += 1
            print(f"skip {name}: {why}", flush=True)
        except Exception:  # noqa: BLE001 - whatever a test raises is its failure
            failed += 1
            print(f"FAIL {name}\n{traceback.format_exc()}", flush=True)
    print(f"{passed} passed, {failed} failed" + (f", {skipped} skipped" if skipped else ""))
    return 1 if failed or not passed + skipped else 0
