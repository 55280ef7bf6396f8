"""The worker's commands as a shell meets them: exit statuses, standard error, JSON."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import krbrefresh
from krbrefresh.ccache import Principal
from krbrefresh.refresher.lock import Lock
from krbrefresh.refresher.publish import Destination, publish
from krbrefresh.token import seal
from tests.support import ETL, ccache_bytes, ticket

PACKAGE = str(Path(krbrefresh.__file__).parent.parent)
KEYS = ["valid", "reason", "hint", "path", "principal", "expires_at", "remaining_seconds", "services", "has_tgt",
        "generation", "modified"]  # fmt: skip


def krb(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "krbrefresh", *arguments],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": PACKAGE, **environ},
        capture_output=True,
        text=True,
        timeout=30,
    )


def sealed(seconds: int = 3600, generation: int = 7) -> bytes:
    return seal(
        ccache_bytes(ticket(endtime=int(time.time()) + seconds)),
        generation=generation,
        issued_at=1,
        window_opens_at=2,
        refresher="test",
        settings="test",
    )


@pytest.fixture
def good(tmp_path: Path) -> str:
    path = tmp_path / "krb5cc"
    path.write_bytes(sealed())
    return str(path)


def test_check_of_a_valid_token(good: str) -> None:
    ran = krb("check", good)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.startswith(f"valid: {good}: {ETL} until 20")
    assert ran.stdout.endswith("left), generation 7\n")


def test_the_path_comes_from_the_environment(good: str) -> None:
    assert krb("check", KRBREFRESH_CCACHE=good).returncode == 0
    assert krb("check", KRB5CCNAME=f"FILE:{good}").returncode == 0
    ran = krb("check", KRB5CCNAME="KCM:")
    assert (ran.returncode, ran.stderr.split(":")[:2]) == (1, ["missing", " /run/krbrefresh/default/krb5cc"])


def test_the_json_of_check_has_always_all_keys(good: str, tmp_path: Path) -> None:
    ran = krb("check", "--json", good)
    said = json.loads(ran.stdout)
    assert list(said) == KEYS
    assert said == {
        "valid": True,
        "reason": None,
        "hint": None,
        "path": good,
        "principal": "etl@EXAMPLE.COM",
        "expires_at": said["expires_at"],
        "remaining_seconds": said["remaining_seconds"],
        "services": [],
        "has_tgt": True,
        "generation": 7,
        "modified": False,
    }
    assert 3590 < said["remaining_seconds"] <= 3600
    ran = krb("check", "--json", str(tmp_path / "absent"))
    said = json.loads(ran.stdout)
    assert ran.returncode == 1
    assert list(said) == KEYS
    assert (said["valid"], said["reason"], said["principal"], said["has_tgt"]) == (False, "missing", None, None)


@pytest.mark.parametrize(
    ("seconds", "options", "reason"),
    [
        (-5, (), "expired"),
        (30, (), "expiring"),
        (30, ("--min-remaining", "10s"), None),
        (3600, ("--min-remaining", "2h"), "expiring"),
        (3600, ("--principal", "etl@EXAMPLE.COM"), None),
        (3600, ("--principal", "other@EXAMPLE.COM"), "wrong_principal"),
        (3600, ("--service", "HTTP/a@EXAMPLE.COM", "--service", "HTTP/b@EXAMPLE.COM"), None),
    ],
)
def test_the_first_word_on_standard_error_is_the_reason(
    tmp_path: Path, seconds: int, options: tuple[str, ...], reason: str | None
) -> None:
    path = tmp_path / "krb5cc"
    path.write_bytes(sealed(seconds))
    ran = krb("check", str(path), *options, "--json")
    assert ran.returncode == (1 if reason else 0)
    said = json.loads(ran.stdout)
    assert said["reason"] == reason
    assert said["principal"] == "etl@EXAMPLE.COM"
    if reason:
        first, hint = ran.stderr.splitlines()
        assert first.startswith(f"{reason}: {path}: ")
        assert hint == f"  {said['hint']}"


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("check", "KCM:"),
        ("check", "--min-remaining", "soon"),
        ("check", "--principal", "norealm"),
        ("check", "--nonsense"),
        ("wait", "--timeout", "forever"),
        ("wait", "DIR:/x"),
        ("exec", "--ccache", "MEMORY:x", "--", "true"),
        ("exec", "--timeout", "0"),
        ("nonsense",),
    ],
)
def test_usage_mistakes_exit_2(arguments: tuple[str, ...], good: str) -> None:
    ran = krb(*arguments, KRBREFRESH_CCACHE=good)
    assert ran.returncode == 2
    assert ran.stderr
    assert "Traceback" not in ran.stderr


def test_wait_returns_as_soon_as_the_token_is_there(tmp_path: Path) -> None:
    where = Destination(str(tmp_path / "token"), "krb5cc", 0o440, None)
    later = threading.Timer(1, publish, (where, sealed(), Lock()))
    later.start()
    started = time.monotonic()
    ran = krb("wait", where.path, "--timeout", "20s")
    assert ran.returncode == 0, ran.stderr
    assert 0.9 < time.monotonic() - started < 10
    assert ran.stdout.startswith("valid: ")


def test_wait_times_out_with_the_last_reason(tmp_path: Path) -> None:
    path = tmp_path / "krb5cc"
    path.write_bytes(sealed(-5))
    ran = krb("wait", str(path), "--timeout", "0.3")
    assert (ran.returncode, ran.stderr.split(":")[0]) == (1, "expired")


# --- exec ---


def test_exec_becomes_the_command_with_the_environment_set(good: str) -> None:
    show = "import os, sys, json; print(json.dumps([os.getpid(), dict(os.environ), sys.argv[1:]]))"
    process = subprocess.Popen(
        [sys.executable, "-m", "krbrefresh", "exec", "--ccache", good, "--", sys.executable, "-c", show, "--", "a b"],
        env={
            "PATH": os.environ["PATH"],
            "PYTHONPATH": PACKAGE,
            "KRB5_CLIENT_KTNAME": "/k",
            "KRB5_KTNAME": "/acceptor",
            "KRB5CCNAME": "FILE:/old",
        },
        stdout=subprocess.PIPE,
    )
    pid, environ, arguments = json.loads(process.communicate(timeout=20)[0])
    assert pid == process.pid  # it replaced itself
    assert environ["KRB5CCNAME"] == f"FILE:{good}"
    assert environ["KRBREFRESH_CCACHE"] == good
    assert environ["KRB5_KTNAME"] == "/acceptor"
    assert "KRB5_CLIENT_KTNAME" not in environ
    assert arguments == ["--", "a b"]


def test_exec_ends_with_the_commands_status(good: str, tmp_path: Path) -> None:
    assert krb("exec", "--ccache", good, "--", "sh", "-c", "exit 42").returncode == 42
    assert krb("exec", "--ccache", good, "sh", "-c", "kill -9 $$").returncode == -9
    assert krb("exec", "--ccache", good, "--", "no-such-command-here").returncode == 127
    (tmp_path / "plain").write_text("#!/bin/sh\n")
    ran = krb("exec", "--ccache", good, "--", str(tmp_path / "plain"))
    assert (ran.returncode, "Permission denied" in ran.stderr) == (126, True)
    assert krb("exec", "--ccache", good, "--", str(tmp_path)).returncode == 126


def test_exec_gives_the_command_the_signals_that_it_would_have_had(good: str) -> None:
    # Python ignores SIGPIPE and SIGXFSZ, and what is ignored stays so over an exec.
    ran = krb("exec", "--ccache", good, "--", "grep", "SigIgn", "/proc/self/status")
    ignored = int(ran.stdout.split()[1], 16)
    assert not ignored & (1 << signal.SIGPIPE - 1 | 1 << signal.SIGXFSZ - 1)


def test_exec_knows_a_command_that_is_not_there_from_one_that_cannot_be_run(good: str, tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o000)
    path = f"{tmp_path}/closed:{tmp_path}/plain:{os.environ['PATH']}"
    ran = krb("exec", "--ccache", good, "--", "no-such-command-here", PATH=path)
    assert ran.returncode == 127


def test_a_name_that_could_steer_a_terminal_is_escaped(tmp_path: Path) -> None:
    evil = Principal(b"EXAMPLE.COM", (b"a\x1b[31mred\x07",))
    path = tmp_path / "krb5cc"
    path.write_bytes(ccache_bytes(ticket(evil), principal=evil))
    for options in ((), ("--principal", "etl@EXAMPLE.COM")):
        ran = krb("check", str(path), *options)
        assert "\\x1b[31mred" in ran.stdout + ran.stderr
        assert "\x1b" not in ran.stdout + ran.stderr
    assert "generation" not in krb("check", str(path)).stdout  # a ccache of kinit's has none


def test_exec_does_not_start_the_command_without_a_valid_token(tmp_path: Path) -> None:
    ran = krb("exec", "--ccache", str(tmp_path / "absent"), "--timeout", "0", "--", "touch", str(tmp_path / "ran"))
    assert (ran.returncode, ran.stderr.split(":")[0]) == (1, "missing")
    assert not (tmp_path / "ran").exists()


def test_version_and_help() -> None:
    assert krb("--version").stdout == f"krbrefresh {krbrefresh.__version__}\n"
    text = krb("--help").stdout
    for command in ("run", "once", "check", "wait", "exec", "demo"):
        assert f"    {command} " in text


def test_each_command_is_known_by_its_name_alone() -> None:
    # Where a command is asked for, no other one's parser is made; the help and the mistakes are of all.
    listed = re.findall(r"^    (\w+) +\w", krb("--help").stdout, re.MULTILINE)
    assert listed[:3] == ["run", "once", "config"]
    for name in listed:
        shown = krb(name, "--help")
        assert shown.returncode == 0
        assert shown.stdout.startswith(f"usage: krbrefresh {name} ")
    wrong = krb("chekc")
    assert wrong.returncode == 2
    assert all(f"'{name}'" in wrong.stderr for name in listed)
    wide = krb("check", "--help", COLUMNS="200").stdout
    assert max(map(len, wide.splitlines())) > 100 >= 80 >= max(map(len, krb("check", "--help").stdout.splitlines()))


def test_check_imports_little(good: str) -> None:
    code = (
        "import sys\n"
        "sys.path.insert(0, sys.argv.pop(1))\n"
        "from krbrefresh.cli import main\n"
        "assert main(sys.argv[1:]) == 0\n"
        "print(*sys.modules)\n"
    )
    ran = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code, PACKAGE, "check", good], capture_output=True, text=True, check=True
    )
    assert not {"shutil", "datetime", "typing", "pathlib", "dataclasses", "logging"} & set(ran.stdout.split())
