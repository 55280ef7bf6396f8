"""`krbrefresh show`: a token for people."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from krbrefresh import ccache
from krbrefresh.ccache import Principal
from tests.processes import REPOSITORY
from tests.support import ETL, ccache_bytes, ticket
from tests.tokens import Signed

LONG = Principal.parse("postgres/" + "a-host-with-a-name-that-is-long." * 3 + "example.com@EXAMPLE.COM")


@pytest.fixture
def signed(tmp_path: Path) -> Signed:
    return Signed(tmp_path)


def show(signed: Signed, *words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "krbrefresh", "show", str(signed.path), *map(str, words)],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": REPOSITORY}, capture_output=True, text=True, timeout=30,
    )  # fmt: skip


def test_it_tells_all_that_there_is(signed: Signed) -> None:
    now = int(time.time())
    body = ccache_bytes(
        ticket(authtime=now, endtime=now + 36000, renew_till=now + 700000, flags=0x40C00000),
        ticket(server=Principal.parse("HTTP/web.example.com@EXAMPLE.COM"), endtime=now + 1800),
        ticket(server=LONG, endtime=now - 5),
        kdc_offset=(-90, 0),
    )
    signed.publish(signed.seal(body, generation=1234567890))
    said = show(signed)
    assert (said.returncode, said.stderr) == (0, "")
    lines = said.stdout.splitlines()
    assert lines[:2] == ["etl@EXAMPLE.COM", str(signed.path)]
    for pattern in (
        r"  valid, 10h 1m left", r"  generation +1234567890", r"  published +\S+ by here",
        rf"  signed +with the key {signed.key_id}", r"  flags +forwardable, renewable, initial",
        r"  KDC's clock +-90s from this machine's", r"  renewable +until \d{4}-\S+Z", r"  3 tickets",
        r"    krbtgt/EXAMPLE\.COM@EXAMPLE\.COM +10h 1m left", r"    HTTP/web\.example\.com@EXAMPLE\.COM +31m \d+s left",
        re.escape(f"    {LONG}"), r" +1m \d+s left",
    ):  # fmt: skip
        assert any(re.fullmatch(pattern, line) for line in lines), (pattern, said.stdout)
    assert said.stdout.isascii()  # piped: plain
    assert "\x1b" not in said.stdout
    names = (str(LONG), str(signed.path))
    assert max(len(line) for line in lines if not any(name in line for name in names)) <= 80


def test_the_bar_is_what_is_left(signed: Signed) -> None:
    now = int(time.time())
    signed.publish(ccache_bytes(ticket(authtime=now - 1500, endtime=now + 4500)))
    (bar,) = (line.strip() for line in show(signed).stdout.splitlines() if "###" in line)
    assert bar in (f"{'.' * gone}{'#' * (60 - gone)}" for gone in (15, 16))
    # The window opens 2,400 seconds after the token's start and ends at 3,600.
    signed.publish()
    said = show(signed).stdout.splitlines()
    (mark,) = (line for line in said if "expiry window" in line)
    assert mark.index("^") == 2 + 40


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("--min-remaining", "2h"), "expiring"),
        (("--principal", "other@EXAMPLE.COM"), "wrong_principal"),
        ((), None),
    ],
)
def test_it_shows_a_token_that_does_not_pass_too(signed: Signed, words: tuple[str, ...], reason: str | None) -> None:
    signed.publish()
    said = show(signed, *words)
    assert said.returncode == (1 if reason else 0)
    assert said.stderr.partition(":")[0] == (reason or "")
    assert "krbtgt/EXAMPLE.COM@EXAMPLE.COM" in said.stdout
    assert ("valid," in said.stdout) == (reason is None)


def test_what_cannot_be_read(signed: Signed) -> None:
    said = show(signed)
    assert (said.returncode, said.stdout.strip()) == (1, str(signed.path))
    assert said.stderr.startswith("missing: ")
    for data, reason in ((b"", "corrupt"), (ccache_bytes(), "no_ticket"), (signed.seal()[:-1], "corrupt")):
        signed.publish(data)
        said = show(signed)
        assert said.returncode == 1
        assert said.stderr.startswith(f"{reason}: ")
    assert show(signed, "--min-remaining", "x").returncode == 2


def test_names_cannot_steer_the_terminal(signed: Signed) -> None:
    evil = Principal(b"EXAMPLE.COM", (b"HTTP", b"\x1b]0;owned\x07"))
    signed.publish(ccache_bytes(ticket(), ticket(server=evil)))
    assert "\x1b" not in show(signed).stdout
    assert "owned" in show(signed).stdout


def test_as_json_it_is_what_check_says(signed: Signed) -> None:
    signed.publish()
    said = show(signed, "--json")
    checked = subprocess.run(
        [sys.executable, "-m", "krbrefresh", "check", "--json", str(signed.path)],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": REPOSITORY}, capture_output=True, text=True,
    )  # fmt: skip
    strip = re.compile(r'"remaining_seconds": \d+')
    assert strip.sub("", said.stdout) == strip.sub("", checked.stdout) != ""


@pytest.mark.parametrize("no_color", [False, True])
def test_on_a_terminal_it_has_colours(signed: Signed, no_color: bool) -> None:
    signed.publish(signed.seal(ccache_bytes(ticket(), ticket(ETL, ccache.Principal.parse("a/b@EXAMPLE.COM")))))
    pid, terminal = pty.fork()
    if not pid:
        env = {"PYTHONPATH": REPOSITORY, "PYTHONUTF8": "1", **({"NO_COLOR": ""} if no_color else {})}
        os.execve(sys.executable, [sys.executable, "-m", "krbrefresh", "show", str(signed.path)], env)
    output = b""
    with contextlib.suppress(OSError):  # the terminal's end, once nobody has it open
        while True:
            output += os.read(terminal, 4096)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    text = output.decode()
    assert ("\x1b[32mvalid\x1b[0m" in text) == (not no_color)
    assert "█" * 60 in text
