"""The demo, shortened, run for real in a process of its own; a directory stands in for /tmp, to see what is left."""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import io
import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import krbrefresh
from krbrefresh.demo.picture import Picture
from krbrefresh.demo.staging import Cast, Staging, StagingError, assign_users, stage
from krbrefresh.demo.story import Event, Story
from tests.processes import Runner
from tests.support import eventually

SOMEBODY = 64210  # nobody's uid, and none of the demo's
WHOLE = {"seconds": 18, "ticket_life": 6}  # three refreshes take 14 seconds at the most


class Play:
    """A demo in a process of its own, whose temporary directory is `place`/tmp."""

    def __init__(self, place: Path, *, prelude: str = "", seconds: int = 60, ticket_life: int = 5, **options: Any):
        self.tmp = place / "tmp"
        self.tmp.mkdir()
        self.tmp.chmod(0o1777)
        script = (
            "import sys, krbrefresh.demo as it, krbrefresh.demo.story as story\n"
            f"{prelude}\nsys.exit(it.demo({seconds}, {ticket_life}))"
        )
        environment = {"PATH": os.environ["PATH"], "TMPDIR": str(self.tmp), "PYTHONIOENCODING": "utf-8"}
        command = [*options.pop("command", []), options.pop("python", sys.executable), "-c", script]
        source = {"PYTHONPATH": os.path.dirname(os.path.dirname(krbrefresh.__file__))}
        self.process = subprocess.Popen(
            command,
            env={**environment, **source, **options.pop("env", {})},
            cwd="/",
            **{"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, **options},
        )

    def pid_of(self, who: str) -> int:
        """The pid that it tells of the refresher or the worker; what it said until then is read."""
        assert self.process.stdout
        for line in self.process.stdout:
            found = re.match(rf" +{who} .* pid (\d+):", line)
            if found:
                return int(found[1])
        raise AssertionError(f"it did not say who the {who} is")

    def lines(self) -> list[str]:
        """What it says until its end."""
        return self.process.communicate(timeout=60)[0].splitlines()

    def leaves_nothing(self) -> None:
        assert list(self.tmp.iterdir()) == []
        assert list(processes_that_know(self.tmp)) == []


def processes_that_know(path: Path) -> Iterator[str]:
    """The processes with that path in their arguments or their environment."""
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            command = (process / "cmdline").read_bytes()
            if os.fsencode(path) in command + (process / "environ").read_bytes():
                yield command.decode()


def verdicts(lines: list[str]) -> dict[str, str]:
    """The summary: each claim's name and the verdict on it."""
    found = [re.fullmatch(r"  (\w+) +\S.*  (ok|FAILED|not shown)", line) for line in lines]
    return {match[1]: match[2] for match in found if match}


HELD = dict.fromkeys(("refreshes", "contexts", "samples", "permissions", "keytab", "worker", "refresher"), "ok")


@pytest.fixture
def plays(place: Path) -> Iterator[list[Play]]:
    """What a test starts here is stopped at its end."""
    started: list[Play] = []
    yield started
    for play in started:
        if play.process.poll() is None:
            play.process.terminate()
        play.process.wait(timeout=30)
        if play.process.stdout:
            play.process.stdout.close()


@pytest.mark.root
@pytest.mark.slow
def test_two_users_and_one_user(runner: Runner, place: Path, plays: list[Play]) -> None:
    """Two whole demos side by side: root's, and that of a user who cannot become another one."""
    spec = importlib.util.find_spec("k5test")  # the realm's, which is in nobody else's need
    assert spec is not None
    assert spec.origin is not None
    shutil.copytree(os.path.dirname(spec.origin), place / "lib" / "k5test")
    somebody = {
        **runner.user(SOMEBODY),
        "python": runner.python,
        "env": {"PYTHONPATH": f"{runner.env['PYTHONPATH']}:{place}/lib"},
        "umask": 0,
    }
    options: dict[str, Any]
    for name, options in (("root", {"umask": 0o077}), ("one", somebody)):
        (place / name).mkdir()
        plays.append(Play(place / name, **WHOLE, **options))
    root, one = (play.lines() for play in plays)

    assert verdicts(root) == HELD, "\n".join(root)
    assert plays[0].process.returncode == 0
    uids = {int(uid) for line in root for uid in re.findall(r" uid (\d+)", line)}
    assert len(uids) == 3
    assert 0 in uids
    assert "Permission denied" in next(line for line in root if line.startswith("  keytab"))
    assert not [line for line in root if "One user" in line]

    assert verdicts(one) == {**HELD, "keytab": "not shown"}, "\n".join(one)
    assert plays[1].process.returncode == 0
    start = one[: one.index("")]
    assert "  One user runs all three: not started as root." in start
    assert f"  realm      uid {SOMEBODY}" in start[1]

    for lines, play in zip((root, one), plays, strict=True):
        assert "\x1b" not in "".join(lines)
        assert [line for line in lines if re.match(r" *\d+\.\d s  refresh 3: generation \d+, \d\.\d s before", line)]
        assert [line for line in lines if re.match(r" *\d+\.\d s  context 10: demo/localhost accepted etl@", line)]
        assert max(map(len, lines)) < 80
        play.leaves_nothing()


@pytest.mark.skipif(os.geteuid() == 0, reason="as root, test_two_users_and_one_user plays this beside root's")
@pytest.mark.slow
def test_one_user(place: Path, plays: list[Play]) -> None:
    plays.append(Play(place, **WHOLE))
    lines = plays[0].lines()
    assert verdicts(lines) == {**HELD, "keytab": "not shown"}
    assert "  One user runs all three: not started as root." in lines
    assert plays[0].process.returncode == 0
    plays[0].leaves_nothing()


def test_on_a_terminal_it_redraws_a_block_until_ctrl_c(place: Path, plays: list[Play]) -> None:
    terminal, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, b"\x18\0\x50\0\0\0\0\0")  # 24 rows, 80 columns
    ends = {"stdin": theirs, "stdout": theirs, "stderr": theirs, "text": False, "start_new_session": False}
    plays.append(
        Play(place, command=["env", "--default-signal=INT", "setsid", "--ctty"], env={"TERM": "xterm"}, **ends)
    )
    os.close(theirs)
    seen = Terminal(terminal)
    try:
        seen.until("context 2: demo/localhost accepted etl@")
        os.write(terminal, b"\x03")
        seen.until("SIGINT: all processes are stopped, all files removed")
        assert plays[0].process.wait(timeout=30) == 130
        seen.until("\x1b[?25h")
    finally:
        os.close(terminal)
    assert seen.text.count("\x1b[?25l") == 1
    assert len(re.findall(r"\r\x1b\[\d+A", seen.text)) > 10
    assert "\x1b[?1049" not in seen.text  # no alternate screen
    frames = [re.sub(r"\x1b\[[^A-Za-z]*[A-Za-z]", "", frame) for frame in re.split(r"\r\x1b\[\d+A", seen.text)]
    bars = [re.search(r"^  \[(█+)░*▒+\]\s*$", frame, re.MULTILINE) for frame in frames]
    lengths = [len(bar[1]) for bar in bars if bar]
    assert lengths == sorted(lengths)
    assert lengths[-1] > lengths[0]
    assert "└ expiry window" in frames[-1]
    assert max(len(line) for frame in frames for line in frame.splitlines()) < 80
    plays[0].leaves_nothing()


class Terminal:
    """What a program has written to a terminal so far."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.text = ""

    def until(self, wanted: str) -> None:
        deadline = time.monotonic() + 30
        while wanted not in self.text:
            ready, _, _ = select.select([self.descriptor], [], [], max(deadline - time.monotonic(), 0))
            assert ready, f"{wanted!r} did not come: {self.text!r}"
            self.text += os.read(self.descriptor, 1 << 16).decode(errors="replace")


@pytest.mark.parametrize("who", ["refresher", "worker"])
def test_a_process_that_is_killed_fails_its_claim(who: str, place: Path, plays: list[Play]) -> None:
    plays.append(Play(place))
    os.kill(plays[0].pid_of(who), signal.SIGKILL)
    lines = plays[0].lines()
    assert plays[0].process.returncode == 1
    assert verdicts(lines)[who] == "FAILED"
    assert "had ended by itself, with status -9" in next(line for line in lines if line.startswith(f"  {who}"))
    assert re.fullmatch(rf"FAILED: .*\b{who}\b.*", lines[-1])
    plays[0].leaves_nothing()


@pytest.mark.root
def test_a_keytab_that_the_worker_can_read_fails_the_demo(place: Path, plays: list[Play]) -> None:
    careless = """
import os
set_up = it.set_up
def careless(*arguments):
    scene = set_up(*arguments)
    os.chmod(os.path.dirname(scene.keytab), 0o755)
    os.chown(scene.keytab, -1, arguments[2].group)
    os.chmod(scene.keytab, 0o440)  # for all the refresher would refuse it
    return scene
it.set_up, story.LEAST_REFRESHES, story.LEAST_CONTEXTS = careless, 0, 1
"""
    plays.append(Play(place, prelude=careless, seconds=2))
    lines = plays[0].lines()
    assert plays[0].process.returncode == 1
    assert verdicts(lines) == {**HELD, "keytab": "FAILED"}
    assert lines[-1] == "FAILED: keytab"


def test_invalid_samples_and_failed_contexts_fail_the_demo(place: Path, plays: list[Play]) -> None:
    """A refresher that stands still lets the token end; the worker says so, and goes on."""
    plays.append(Play(place, prelude="story.LEAST_CONTEXTS = 1", seconds=8, ticket_life=3))
    refresher = plays[0].pid_of("refresher")
    assert plays[0].process.stdout
    assert any("first token" in line for line in plays[0].process.stdout)
    os.kill(refresher, signal.SIGSTOP)
    try:
        lines = []
        for line in plays[0].process.stdout:
            lines.append(line.rstrip("\n"))
            if "no context" in line:
                break
    finally:
        os.kill(refresher, signal.SIGCONT)
    lines += plays[0].lines()
    assert plays[0].process.returncode == 1
    assert [line for line in lines if re.search(r"worker: expired: .*krb5cc", line)]
    found = verdicts(lines)
    assert (found["samples"], found["contexts"], found["refresher"]) == ("FAILED", "FAILED", "ok")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_while_it_sets_up_leaves_nothing(number: signal.Signals, place: Path, plays: list[Play]) -> None:
    plays.append(Play(place))
    eventually(lambda: list(plays[0].tmp.iterdir()), within=20)
    plays[0].process.send_signal(number)
    lines = plays[0].lines()
    assert plays[0].process.returncode == 128 + number
    assert lines[-1] == f"{number.name}: all processes are stopped, all files removed"
    plays[0].leaves_nothing()


def test_a_reader_that_goes_away_ends_it(place: Path, plays: list[Play]) -> None:
    errors = place / "errors"
    with errors.open("w") as file:
        plays.append(Play(place, stderr=file))
    assert plays[0].process.stdout
    plays[0].process.stdout.readline()
    plays[0].process.stdout.close()
    assert plays[0].process.wait(timeout=30) == 1
    assert errors.read_text() == ""
    plays[0].leaves_nothing()


@pytest.mark.parametrize("module", ["krb5", "gssapi", "k5test"])
def test_a_package_that_is_missing_is_named(module: str, place: Path) -> None:
    """As the command does it: exit status 2, and what to install."""
    script = (
        f"import sys; sys.path.insert(0, {str(place)!r}); from krbrefresh.cli import main; sys.exit(main(['demo']))"
    )
    hide = f"""
import sys
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == {module!r}:
            raise ModuleNotFoundError(name=name)
sys.meta_path.insert(0, Hidden())
import importlib.util
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name: None if name == {module!r} else find_spec(name)
"""
    environment = {"PATH": os.environ["PATH"], "TMPDIR": str(place)}
    done = subprocess.run([sys.executable, "-c", hide + script], env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith(f"not_installed: the package {module} is not installed")
    assert "[demo]" in done.stderr
    assert list(place.iterdir()) == []


@pytest.mark.root
def test_staging_copies_what_the_other_user_cannot_reach(place: Path) -> None:
    """A clone that only root can enter, under a umask that lets nobody else read what root makes."""
    clone = place / "clone"
    shutil.copytree(os.path.dirname(krbrefresh.__file__), clone / "krbrefresh")
    clone.chmod(0o700)
    script = f"""
import dataclasses, json, krbrefresh.demo.staging as it
print(it.__file__)
print(json.dumps(dataclasses.asdict(it.stage({str(place)!r}, {SOMEBODY}, {SOMEBODY}))))
"""
    made = subprocess.run(
        [sys.executable, "-c", script],
        env={"PYTHONPATH": str(clone)},
        cwd="/",
        umask=0o077,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.splitlines()
    assert made[0].startswith(str(clone))
    staging = Staging(**json.loads(made[1]))
    assert staging.environment == {"PYTHONPATH": str(place / "lib")}
    # As the refresher starts its children: without PYTHONPATH, but with the places of the modules.
    script = (
        "import os, krb5, gssapi, krbrefresh.refresher.child as child; "
        "print(os.getuid(), krb5.__file__, child._module_directories())"
    )
    done = subprocess.run(
        [staging.python, "-c", script],
        env=staging.environment,
        cwd="/",
        user=SOMEBODY,
        group=SOMEBODY,
        extra_groups=[],
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout.split(maxsplit=2)[:2] == [str(SOMEBODY), str(place / "lib/krb5/__init__.py")]
    assert done.stdout.strip().endswith(f"['{place / 'lib'}']")


@pytest.mark.root
def test_staging_that_is_of_no_use_is_refused_and_the_demo_has_one_user(place: Path) -> None:
    closed = place / "closed"
    closed.mkdir(mode=0o700)
    with pytest.raises(StagingError, match="Permission denied"):
        stage(closed, SOMEBODY, SOMEBODY)
    shutil.rmtree(closed / "lib")
    cast = assign_users(str(closed))
    assert (cast.refresher, cast.worker, cast.group) == (0, 0, 0)
    assert "Permission denied" in cast.one_user
    assert cast.staging.python == sys.executable


class FakeTerminal(io.TextIOWrapper):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("encoding", "bar"), [("utf-8", r"█+░*▒*"), ("ascii", r"#+\.*=*")])
@pytest.mark.parametrize("columns", [20, 50, 80, 200])
def test_the_picture_fits_and_respects_no_color(
    encoding: str, bar: str, columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", FakeTerminal(written, encoding=encoding))
    for name, value in (("TERM", "xterm"), ("NO_COLOR", "1"), ("COLUMNS", str(columns)), ("LINES", "12")):
        monkeypatch.setenv(name, value)
    now = time.time()
    story = Story(one_user=False)
    with Picture(40) as picture:
        for age in (0, 1, 7, 9, 12, 13):
            story.token = {
                "principal": "etl@EXAMPLE.COM",
                "generation": 1,
                "life": (now - age, now - age + 8, now - age + 12),
            }
            picture.event(Event(1.0, "news", "context 1: " + "x" * 300))
            picture.draw(story)
    text = written.getvalue().decode(encoding)
    assert not re.search(r"\x1b\[[\d;]*m", text)
    frames = re.split(r"\x1b\[\d+A", text)
    assert len(frames) == 6
    for frame in frames:
        lines = re.sub(r"\x1b\[[^A-Za-z]*[A-Za-z]", "", frame).strip("\r\n").split("\n")
        assert max(map(len, lines)) < columns
        assert len(lines) < 12
        assert [line for line in lines[:4] if re.search(rf"\[({bar}|[░▒.=]+)\]", line)]


def test_what_is_no_report_is_shown_as_it_is() -> None:
    story = Story(one_user=False)
    event = story.hear("refresher", "Traceback (most recent call last):\n")
    assert event
    assert event.text == "refresher: Traceback (most recent call last):"
    failed = {"event": "refresh_failed", "level": "error", "reason": "kdc_unreachable", "message": "no answer"}
    event = story.hear("refresher", json.dumps(failed))
    assert event
    assert event.text == "refresher: refresh_failed: kdc_unreachable: no answer"
    assert story.hear("refresher", json.dumps({"event": "started", "level": "info"})) is None
    assert not story.over(1)
    assert story.hear("refresher", None) is None
    assert story.over(1)


def test_a_demo_without_a_token_keeps_no_claim() -> None:
    claims = Story(one_user=False).claims(Cast(refresher=1, worker=2, group=3, staging=Staging("", {})))
    assert [claim.held for claim in claims] == [False] * len(claims)
