"""`krbrefresh exec` where it stays: signals, statuses, private copies, and what pid 1 inherits."""

from __future__ import annotations

import contextlib
import os
import pty
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.processes import REPOSITORY, children_of
from tests.support import ETL, ccache_bytes, eventually, program, ticket
from tests.tokens import Signed

SIGNALS = ["TERM", "INT", "HUP", "QUIT", "USR1", "USR2"]

# Writes a line for each signal it gets, and ends when told to.
LISTENER = """
    import os, signal, sys
    def say(*words):  # a handler may come between anything, and print() does not bear that
        os.write(1, (" ".join(map(str, words)) + "\\n").encode())
    def heard(number, frame):
        say(signal.Signals(number).name, open(os.environ["KRB5CCNAME"][5:], "rb").read()[-300:].hex())
    for name in {names}:
        signal.signal(getattr(signal, "SIG" + name), heard)
    say("ready", os.getppid(), os.environ["KRB5CCNAME"])
    sys.exit(int(sys.stdin.readline() or 0))
"""


@pytest.fixture
def signed(place: Path) -> Signed:
    directory = place / "volume"
    directory.mkdir(mode=0o755)
    signed = Signed(directory)
    signed.publish(signed.seal(lasting(30), generation=1))
    return signed


def lasting(seconds: int, mark: bytes = b"\x61") -> bytes:
    return ccache_bytes(ticket(endtime=int(time.time()) + seconds, ticket=mark * 300))


def command(signed: Signed, *words: object) -> list[str]:
    return [sys.executable, "-m", "krbrefresh", "exec", "--ccache", str(signed.path), "--min-remaining", "1s",
            *map(str, words)]  # fmt: skip


def env(place: Path) -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "PYTHONPATH": REPOSITORY, "TMPDIR": str(place)}


def ended(signed: Signed, place: Path, *words: object, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(signed, *words), env=env(place), capture_output=True, text=True, timeout=30, **options
    )


class Running:
    def __init__(self, signed: Signed, place: Path, *options: object, names: list[str] = SIGNALS) -> None:
        code = textwrap.dedent(LISTENER.format(names=names))
        self.process = subprocess.Popen(
            command(signed, *options, "--", sys.executable, "-c", code),
            env=env(place), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        word, parent, self.ccache = self.line().split()
        assert word == "ready"
        assert int(parent) == self.process.pid

    def line(self) -> str:
        assert self.process.stdout
        return self.process.stdout.readline()

    def end(self, status: int = 0) -> int:
        self.process.communicate(f"{status}\n", timeout=20)
        return self.process.returncode


@contextlib.contextmanager
def running(*args: Any, **kwargs: Any) -> Iterator[Running]:
    started = Running(*args, **kwargs)
    try:
        yield started
    finally:
        if started.process.poll() is None:
            for child in children_of(started.process.pid):
                os.kill(child, signal.SIGKILL)
            started.process.kill()
            started.process.communicate()


@pytest.mark.parametrize("options", [("--private",), ("--on-refresh", "USR1")], ids=lambda options: options[0])
def test_it_forwards_signals_and_passes_the_status_on(signed: Signed, place: Path, options: tuple[str, ...]) -> None:
    with running(signed, place, *options) as started:
        for name in SIGNALS:
            started.process.send_signal(getattr(signal, f"SIG{name}"))
            assert started.line().startswith(f"SIG{name} ")
        assert started.end(42) == 42


@pytest.mark.parametrize("name", ["TERM", "KILL", "USR2", "SEGV"])
def test_a_command_that_a_signal_ended(signed: Signed, place: Path, name: str) -> None:
    said = ended(signed, place, "--private", "--", "sh", "-c", f"kill -{name} $$")
    assert said.returncode == 128 + getattr(signal, f"SIG{name}")
    assert said.stderr == ""


def test_the_command_has_the_signals_that_a_shell_would_give_it(signed: Signed, place: Path) -> None:
    for options in ([], ["--private"], ["--on-refresh", "HUP"]):
        ignoring = subprocess.run(  # as nohup and a shell's `&` do it
            ["sh", "-c", "trap '' HUP INT CHLD; exec \"$@\"", "sh",
             *command(signed, *options, "--", "cat", "/proc/self/status")],
            env=env(place), capture_output=True, text=True, timeout=30,
        )  # fmt: skip
        assert ignoring.returncode == 0
        ignored = next(line for line in ignoring.stdout.splitlines() if line.startswith("SigIgn"))
        assert int(ignored.split()[1], 16) & 3 == 3  # HUP is 1, INT is 2
        said = ended(signed, place, *options, "--", "cat", "/proc/self/status")
        masks = dict(line.split(":\t") for line in said.stdout.splitlines() if line.startswith(("SigBlk", "SigIgn")))
        # glibc's posix_spawn leaves two of its own, which no program can send, ignored (32 and 33, nptl(7)).
        assert {int(mask, 16) & ~(3 << 31) for mask in masks.values()} == {0}, (options, masks)


def test_each_new_generation_is_told_by_the_signal_once_the_copy_is_new(signed: Signed, place: Path) -> None:
    with running(signed, place, "--private", "--on-refresh", "HUP") as started:
        assert started.ccache.startswith(f"FILE:{place}/krbrefresh-private-")
        for generation, mark in ((2, b"\x62"), (3, b"\x63")):
            signed.publish(signed.seal(lasting(30, mark), generation=generation))
            assert started.line() == f"SIGHUP {(mark * 296 + bytes(4)).hex()}\n"
        assert started.end() == 0
    assert list(place.glob("krbrefresh-private-*")) == []


def test_each_new_generation_is_told_without_a_copy_too(signed: Signed, place: Path) -> None:
    with running(signed, place, "--on-refresh", "sigusr2") as started:
        assert started.ccache == f"FILE:{signed.path}"
        for generation in (2, 3):
            signed.publish(signed.seal(lasting(30), generation=generation))
            assert started.line().startswith("SIGUSR2 ")
        assert started.end() == 0


def test_with_a_public_key_the_command_gets_a_copy_of_what_was_verified(signed: Signed, place: Path) -> None:
    trusting = ("--principal", ETL, "--public-key", signed.public)
    with running(signed, place, *trusting) as started:
        assert started.ccache.startswith(f"FILE:{place}/krbrefresh-private-")
        assert started.end() == 0
    signed.publish(lasting(30))
    refused = ended(signed, place, *trusting, "--timeout", "0s", "--", "echo", "started")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr.startswith("untrusted: ")


@pytest.mark.parametrize("options", [(), ("--private",), ("--on-refresh", "HUP")], ids=str)
def test_commands_that_cannot_be_started(signed: Signed, place: Path, options: tuple[str, ...]) -> None:
    (place / "plain").write_text("no program")
    for word, status in (
        ("no-such-command", 127),
        (place / "nowhere" / "x", 127),
        (place / "plain", 126),
        (place, 126),
    ):
        said = ended(signed, place, *options, "--", word)
        assert said.returncode == status, word
        assert said.stderr.startswith(f"krbrefresh exec: {word}: ")
        assert len(said.stderr.splitlines()) == 1
    assert list(place.glob("krbrefresh-private-*")) == []


@pytest.mark.parametrize("options", [(), ("--private",), ("--on-refresh", "HUP")], ids=str)
def test_without_a_valid_token_nothing_is_started(signed: Signed, place: Path, options: tuple[str, ...]) -> None:
    signed.path.unlink()
    said = ended(signed, place, *options, "--timeout", "0s", "--", "echo", "started")
    assert (said.returncode, said.stdout) == (1, "")
    assert said.stderr.startswith("missing: ")


def test_without_anything_to_do_it_replaces_itself(signed: Signed, place: Path) -> None:
    process = subprocess.Popen(command(signed, "--", "sleep", "60"), env=env(place), stdout=subprocess.DEVNULL)
    try:
        there = Path(f"/proc/{process.pid}/comm")
        eventually(lambda: there.read_text() == "sleep\n", within=10)
        assert children_of(process.pid) == []
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("options", [(), ("--private",)], ids=str)
def test_term_ends_the_wait_for_a_token_also_as_pid_1(signed: Signed, place: Path, options: tuple[str, ...]) -> None:
    signed.path.unlink()
    words = command(signed, *options, "--", "true")
    if os.geteuid() == 0:
        words = [program("unshare"), "--pid", "--fork", "--kill-child", *words]
    process = subprocess.Popen(words, env=env(place), start_new_session=True, stderr=subprocess.DEVNULL)
    try:
        waiting = process.pid
        if os.geteuid() == 0:
            waiting = eventually(lambda: children_of(process.pid), within=10)[0]
        eventually(lambda: catches_term(waiting), within=10)
        began = time.monotonic()
        os.kill(waiting, signal.SIGTERM)
        assert process.wait(20) == 128 + signal.SIGTERM
        assert time.monotonic() - began < 15  # and not the 60 seconds that it would wait for a token
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def catches_term(pid: int) -> bool:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    caught = next(line for line in lines if line.startswith("SigCgt"))
    return bool(int(caught.split()[1], 16) >> (signal.SIGTERM - 1) & 1)


@pytest.mark.root
def test_as_pid_1_it_reaps_what_it_inherits(signed: Signed, place: Path) -> None:
    # Each of these ends as nobody's child: its parent has gone before.
    orphans = "for n in 1 2 3 4 5; do (sleep 0.2 & ) ; done; sleep 60"
    process = subprocess.Popen(
        [program("unshare"), "--pid", "--fork", "--kill-child",
         *command(signed, "--private", "--", "sh", "-c", orphans)],
        env=env(place),
    )  # fmt: skip
    try:
        first = eventually(lambda: children_of(process.pid), within=10)[0]
        eventually(lambda: len(children_of(first)) >= 5, within=10)  # they are its children now
        eventually(lambda: len(children_of(first)) == 1, within=20)  # none is left, not even as a zombie
    finally:
        process.kill()
        process.wait()


def test_an_interrupt_from_the_terminal_is_not_sent_twice(signed: Signed, place: Path) -> None:
    code = textwrap.dedent("""
        import signal, sys, time
        heard = []
        signal.signal(signal.SIGINT, lambda *_: heard.append(1))
        print("ready", flush=True)
        deadline = time.monotonic() + 10
        while not heard and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.5)  # for a second one, which must not come
        print("heard", len(heard), flush=True)
    """)
    pid, terminal = pty.fork()
    if not pid:
        words = command(signed, "--private", "--", sys.executable, "-c", code)
        os.execve(words[0], words, env(place))
    output = b""
    try:
        while b"ready" not in output:
            output += os.read(terminal, 1000)
        os.write(terminal, b"\x03")
        with contextlib.suppress(OSError):  # the terminal's end, once nobody has it open
            while True:
                output += os.read(terminal, 1000)
    finally:
        os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert b"heard 1" in output


def in_a_terminal(signed: Signed, place: Path, *words: object) -> tuple[int, int]:
    """The pid of an exec that leads the session of a new terminal, and our end of that."""
    pid, terminal = pty.fork()
    if not pid:
        argv = command(signed, *words)
        os.execve(argv[0], argv, env(place))
    return pid, terminal


def test_an_interrupt_reaches_a_command_in_a_group_of_its_own(signed: Signed, place: Path) -> None:
    # timeout(1) makes a group of its own, and the terminal's interrupt goes to the foreground group alone.
    words = ("sh", "-c", "echo ready; exec sleep 60")
    pid, terminal = in_a_terminal(signed, place, "--private", "--", "setsid", *words)
    try:
        output = b""
        while b"ready" not in output:
            output += os.read(terminal, 1000)
        os.write(terminal, b"\x03")
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 128 + signal.SIGINT
    finally:
        os.close(terminal)


def test_the_end_of_the_terminal_is_the_end_of_the_command(signed: Signed, place: Path) -> None:
    mark = place / "mark"
    words = ("sh", "-c", f"trap 'echo hangup > {mark}; exit 3' HUP; echo ready; while :; do sleep 0.1; done")
    pid, terminal = in_a_terminal(signed, place, "--private", "--", *words)
    output = b""
    while b"ready" not in output:
        output += os.read(terminal, 1000)
    os.close(terminal)  # the kernel tells the session's leader alone
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 3
    assert mark.read_text() == "hangup\n"


@pytest.mark.parametrize("options", [("--private",), ("--on-refresh", "HUP")], ids=str)
def test_where_the_end_of_children_is_ignored(signed: Signed, place: Path, options: tuple[str, ...]) -> None:
    said = subprocess.run(
        ["sh", "-c", "trap '' CHLD; exec \"$@\"", "sh", *command(signed, *options, "--", "sh", "-c", "exit 7")],
        env=env(place), capture_output=True, text=True, timeout=30,
    )  # fmt: skip
    assert (said.returncode, said.stderr) == (7, "")


def test_gssapi_in_the_command_uses_the_verified_copy(signed: Signed, place: Path) -> None:
    code = (
        "import os, gssapi, krbrefresh, krbrefresh.client as c; print(krbrefresh.credentials().name)\n"
        "print('FILE:' + c._usable(c.resolve()) == os.environ['KRB5CCNAME'], c._usable('/another'))"
    )
    trusting = ("--principal", ETL, "--public-key", signed.public)
    said = ended(signed, place, *trusting, "--", sys.executable, "-c", code)
    assert said.stdout == f"{ETL}\nTrue /another\n"


def test_where_no_copy_can_be_made(signed: Signed, place: Path) -> None:
    code = "import tempfile, sys, krbrefresh.cli as c; tempfile.tempdir = '/proc'; sys.exit(c.main(sys.argv[1:]))"
    words = command(signed, "--private", "--", "echo", "started")[3:]
    said = subprocess.run(
        [sys.executable, "-c", code, *words], env=env(place), capture_output=True, text=True, timeout=30
    )
    assert (said.returncode, said.stdout) == (1, "")
    assert said.stderr.startswith(f"copy: no private copy of {signed.path} can be made: ")


@pytest.mark.parametrize("word", ["NOSUCH", "99", "", "-1"])
def test_a_signal_that_there_is_not(signed: Signed, place: Path, word: str) -> None:
    said = ended(signed, place, "--on-refresh", word, "--", "true")
    assert said.returncode == 2
    assert "is not a signal" in said.stderr or "expected one argument" in said.stderr
