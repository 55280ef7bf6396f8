"""Refreshers and workers as processes of their own, under the users that a test names."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support import Realm, eventually

REPOSITORY = str(Path(__file__).resolve().parent.parent)
GROUP = 64990  # the workers' group
REFRESHER = 64991
WORKER = 64992
STRANGER = 64993

QUIET = {"KRBREFRESH__REFRESHER__LISTEN": ""}  # several refreshers at a time would want one port


@dataclass
class Runner:
    """How other users run this interpreter with this package."""

    python: str = sys.executable
    env: dict[str, str] = field(default_factory=lambda: {**QUIET, "PYTHONPATH": REPOSITORY})

    def user(self, uid: int | None, *groups: int) -> dict[str, Any]:
        """Arguments of subprocess.Popen: that uid, a group of the same number, and these groups."""
        return {} if uid is None else {"user": uid, "group": uid, "extra_groups": list(groups)}


def toml(**sections: dict[str, Any]) -> str:
    lines = []
    for name, keys in sections.items():
        lines.append(f"[{name.replace('__', '.')}]")
        lines += [
            f"{key} = {json.dumps(str(value) if isinstance(value, Path) else value)}" for key, value in keys.items()
        ]
    return "\n".join(lines) + "\n"


def crowded(place: Path, keytab: Path, principal: str, count: int) -> Path:
    """A configuration for so many credentials of one principal, each with a token directory of its own in `place`."""
    config = place / "crowded.toml"
    sections = {
        f"credentials__c{index}": {"principal": principal, "ccache": place / f"c{index}" / "krb5cc"}
        for index in range(count)
    }
    config.write_text(toml(refresher={"log_format": "json"}, kerberos={"keytab": keytab}, **sections))
    return config


class Refresher:
    """A running `krbrefresh run`, and what it has logged."""

    def __init__(
        self,
        runner: Runner,
        config: Path,
        env: dict[str, str],
        *,
        uid: int | None = None,
        groups: tuple[int, ...] = (),
        wrapper: tuple[str, ...] = (),
        command: tuple[str, ...] = ("run",),
    ) -> None:
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  (closed by close())
        self.process = subprocess.Popen(
            [*wrapper, runner.python, "-m", "krbrefresh", *command, "--config", str(config)],
            env={**runner.env, **env},
            stderr=self._log,
            stdout=self._log,
            cwd="/",
            **runner.user(uid, *groups),
        )

    @property
    def text(self) -> str:
        # By offset: the process writes through the same open file.
        return os.pread(self._log.fileno(), os.fstat(self._log.fileno()).st_size, 0).decode()

    @property
    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.text.splitlines() if line.startswith("{") and line.endswith("}")]

    def named(self, *names: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["event"] in names]

    def reasons(self) -> list[str]:
        return [event["reason"] for event in self.named("refresh_failed")]

    def logged(self, name: str, *, count: int = 1, within: float = 10) -> list[dict[str, Any]]:
        """These events, once there are `count` of them."""

        def enough() -> list[dict[str, Any]]:
            assert self.process.poll() is None, f"the refresher has ended: {self.text}"
            found = self.named(name)
            return found if len(found) >= count else []

        try:
            return eventually(enough, within=within, what=f"{count} x {name}")
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.text}") from None

    def stop(self, number: int = 15, *, within: float = 15) -> float:
        """Sends the signal and waits for the end; how long it took (`end`)."""
        return end(self.process, number, within=within)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self._log.close()


def end(process: subprocess.Popen[Any], number: int = 15, *, within: float = 15) -> float:
    """Sends the signal and waits for the end. How many seconds that took on a machine that has a processor for whoever
    wants one: what this process has waited for one in the meantime is taken off."""
    started = time.monotonic()
    process.send_signal(number)
    starved, now = 0.0, started
    while process.poll() is None:
        assert now < started + within, f"it has not ended within {within} s"
        time.sleep(0.005)
        before, now = now, time.monotonic()
        starved += max(0.0, now - before - 0.01)
    took = time.monotonic() - started
    print(f"\nended {took:.3f} s after signal {number}, {starved:.3f} s of them without a processor")
    return took - starved


@contextlib.contextmanager
def refresher(*args: Any, **kwargs: Any) -> Iterator[Refresher]:
    running = Refresher(*args, **kwargs)
    try:
        yield running
    finally:
        running.close()


def krbrefresh_command(
    command: str, runner: Runner, realm: Realm, config: Path | None = None, **environ: str
) -> subprocess.CompletedProcess[str]:
    """What `krbrefresh run` or `once` comes to, where it ends by itself."""
    return subprocess.run(
        [runner.python, "-m", "krbrefresh", command, *(["--config", str(config)] if config else [])],
        env={**runner.env, **realm.env, **environ},
        capture_output=True,
        text=True,
        timeout=60,
    )


def children_of(pid: int) -> list[int]:
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                stat = Path(f"/proc/{entry}/stat").read_text()
            except OSError:
                continue
            if int(stat.rpartition(")")[2].split()[1]) == pid:
                found.append(int(entry))
    return found


def libfaketime() -> str:
    found = sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))
    assert found, "the package faketime is not installed; tools/setup installs it"
    return str(found[0])


def faked_clock(shift: str) -> dict[str, str]:
    """The environment of a process whose wall clock is off by `shift` (`+2h`)."""
    return {"LD_PRELOAD": libfaketime(), "FAKETIME": shift, "FAKETIME_DONT_FAKE_MONOTONIC": "1", "NO_FAKE_STAT": "1"}
