#!/usr/bin/env python3
"""`lighter chat` on the demo model: turns from a pipe, commands, and a terminal with somebody who interrupts."""
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time

import lighter

TEMPLATE = os.path.join("tests", "golden", "openai", "chat.jinja")
ARGUMENTS = ["--model", lighter.DEMO, "--chat-template", TEMPLATE, "--temperature", "0"]
# A step takes at least 60 ms, what the link needs for two units: an answer can be caught in its middle.
SLOW = ["--device", "sim:memory=64MiB,link=20MB/s", "--offload-group-size", "4", "--offload-num-in-group", "1"]
QUESTION = "The capital of France is"
WAIT_SECONDS = lighter.WAIT_SECONDS


def chat(text, *arguments, check=0):
    return lighter.run("chat", *ARGUMENTS, *arguments, stdin=text, check=check)[1]


def messages(text, *arguments):
    return json.loads(chat(text, *arguments, "--json"))["messages"]


def test_turns_from_a_pipe():
    assert chat(QUESTION + "\n") == " Paris.\n"
    assert chat(QUESTION) == " Paris.\n"  # no newline at the end
    assert chat("") == ""
    assert chat(f"\n  \n{QUESTION}\n/exit\nunread\n") == " Paris.\n"


def test_a_conversation_goes_on():
    said = messages(f"{QUESTION}\n{QUESTION}\n", "--max-new-tokens", "3")
    assert [message["role"] for message in said] == ["user", "assistant"] * 2, said
    assert said[1]["content"] == " Paris.", said


def test_what_moves_is_forecast_before():
    moves = ["chat", *ARGUMENTS, *SLOW, "--max-new-tokens", "1"]
    assert "forecast: a token moves" in lighter.run(*moves, stdin=QUESTION, check=0)[2]
    assert "forecast" not in lighter.run(*moves, "--quiet", stdin=QUESTION, check=0)[2]


def test_lines_that_belong_together():
    assert messages('"""\nThe capital\nof "France"\nis"""\n', "--max-new-tokens", "1")[0]["content"] == \
        '\nThe capital\nof "France"\nis'
    assert messages("a \\\nb\\\nc\n", "--max-new-tokens", "1")[0]["content"] == "a \nb\nc"
    assert messages('"""open\nto the end', "--max-new-tokens", "1")[0]["content"].startswith("open\nto the end")
    assert messages("//usr is a folder\n", "--max-new-tokens", "1")[0]["content"] == "/usr is a folder"


def test_commands():
    short = ["--max-new-tokens", "4"]
    assert messages(f"{QUESTION}\n/reset\n", *short) == []
    assert messages(f"{QUESTION}\n/undo\n", *short) == []
    assert messages(f"{QUESTION}\n/retry\n", *short)[1]["content"] == " Paris."
    assert messages(f"{QUESTION}\n/system Be kind.\n", *short) == [{"role": "system", "content": "Be kind."}]
    begun = {"role": "system", "content": "Be brief."}
    assert messages("x\n/reset\n", "--system", "Be brief.", *short) == [begun]
    assert f"user: {QUESTION}\nassistant:  Paris.\n" in chat(f"{QUESTION}\n/history\n")
    assert "/reset" in chat("/help\n")
    code, _, err = lighter.run("chat", *ARGUMENTS, stdin="/nonsense\n/undo\n/retry\n")
    assert code == 0 and "/help" in err and "take back" in err and "no answer" in err, err


def test_what_does_not_fit_is_said_and_dropped():
    said = messages(f"{'word ' * 3000}\n{QUESTION}\n")
    assert [message["content"] for message in said] == [QUESTION, " Paris."], said


def test_without_a_template():
    code, _, err = lighter.run("chat", "--model", lighter.DEMO, stdin="x\n")
    assert code == 1 and "--chat-template" in err, (code, err)


class Terminal:
    """`lighter chat` on a terminal of its own."""

    def __init__(self, *arguments):
        self.main, other = pty.openpty()
        self.process = subprocess.Popen(
            [lighter.PROGRAM, "chat", *ARGUMENTS, *arguments], stdin=other, stdout=other, stderr=subprocess.DEVNULL,
            env={**os.environ, "TERM": "dumb"}, preexec_fn=self.own)
        os.close(other)
        self.text = ""

    @staticmethod
    def own():
        os.setsid()
        import fcntl
        import termios
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    def type(self, text):
        os.write(self.main, text.encode())

    def wait_for(self, pattern, again=None):
        """What was shown up to the pattern, which is forgotten. again: what to type every second meanwhile."""
        deadline = time.monotonic() + WAIT_SECONDS
        pressed = time.monotonic()
        while not (found := re.search(pattern, self.text, re.S)):
            if again and time.monotonic() > pressed + 1:
                self.type(again)
                pressed = time.monotonic()
            assert time.monotonic() < deadline, f"{pattern} is not in {self.text!r}"
            if select.select([self.main], [], [], 0.1)[0]:
                try:
                    self.text += os.read(self.main, 4096).decode("utf-8", "replace").replace("\r", "")
                except OSError:
                    assert re.search(pattern, self.text, re.S), self.text
        before = self.text[:found.start()]
        self.text = self.text[found.end():]
        return before

    def end(self):
        """The exit status after Ctrl-D, again and again: one that comes before the program reads is not heard."""
        deadline = time.monotonic() + WAIT_SECONDS
        try:
            while time.monotonic() < deadline:
                self.type("\x04")
                while select.select([self.main], [], [], 1)[0]:
                    os.read(self.main, 4096)
        except OSError:  # the program has closed its end
            pass
        code = self.process.wait(WAIT_SECONDS)
        os.close(self.main)
        return code


def test_a_terminal():
    terminal = Terminal()
    terminal.wait_for("/help lists.*>>> ")
    terminal.type(QUESTION + "\n")
    terminal.wait_for(r"Paris\.\n.*>>> ")
    terminal.type('"""\n')
    terminal.wait_for(r"\.\.\. ")
    terminal.type("\x03")  # drops what was begun; one that comes just before the program reads has no effect
    terminal.wait_for("Ctrl-D or /exit.*>>> ", again="\x03")
    terminal.type("/history\n")  # which a second interrupt, if it took one, can still drop
    assert '"""' not in terminal.wait_for(r"assistant:  Paris\..*>>> ", again="/history\n")
    assert terminal.end() == 0


def test_an_interrupted_answer():
    terminal = Terminal("--ignore-eos", *SLOW)
    terminal.wait_for(">>> ")
    terminal.type(QUESTION + "\n")
    terminal.wait_for("Paris")
    terminal.type("\x03")
    terminal.wait_for(r"\[interrupted\].*>>> ")
    terminal.type("/history\n")
    terminal.wait_for("assistant:  Paris.*>>> ")  # what came of it is kept
    assert terminal.end() == 0


def test_an_interrupt_where_nobody_types():
    process = subprocess.Popen([lighter.PROGRAM, "chat", *ARGUMENTS, "--ignore-eos", *SLOW], stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    process.stdin.write(f"{QUESTION}\n".encode())
    process.stdin.flush()
    assert b"P" in os.read(process.stdout.fileno(), 2)
    process.send_signal(signal.SIGINT)
    process.stdin.write(b"/history\n")
    process.stdin.close()
    text = process.stdout.read().decode()
    assert process.wait(WAIT_SECONDS) == 0 and "assistant:  P" in text, text
    process.stdout.close()


if __name__ == "__main__":
    sys.exit(lighter.main(sys.modules[__name__]))
