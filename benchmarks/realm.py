"""The realm that a scenario is played in, and what its KDC has heard."""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import itertools
import os
import re
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import krbrefresh
from benchmarks.peers import Case, Peer, Running
from benchmarks.records import Results
from krbrefresh.demo.realm import throwaway_realm
from tests.faults import kadmin_all
from tests.support import Realm, eventually

SOON = 240.0  # seconds: long for a first token, but many Airflows that start at once take their time


@dataclass(frozen=True)
class Request:
    """One AS request in the KDC's log, at a Unix time of whole seconds. `outcome` is ISSUE, NEEDED_PREAUTH ..."""

    at: int
    principal: str
    outcome: str


class Bench:
    """A realm whose principals need preauthentication, as Active Directory's do, and a place for the peers."""

    def __init__(self, kdc: Any, place: Path, results: Results) -> None:
        self.realm, self.place, self.results = Realm(kdc), place, results
        self._numbers = itertools.count()
        self._running: list[Running] = []

    def accounts(self, count: int, *, life: str = "10 hours") -> list[tuple[str, Path]]:
        """New principals whose tickets live that long at the most, each with its keytab."""
        made = []
        commands = []
        for _ in range(count):
            name = f"p{next(self._numbers)}@{self.realm.name}"
            keytab = self.place / f"{name}.keytab"
            commands.append(f'addprinc -randkey -maxlife "{life}" -maxrenewlife "7 days" {name}')
            commands.append(f"ktadd -norandkey -k {keytab} {name}")
            made.append((name, keytab))
        kadmin_all(self.realm, commands)
        return made

    def case(
        self,
        principal: str,
        keytab: Path,
        interval: float = 3600,
        *,
        directory: Path | None = None,
    ) -> Case:
        env = {name: value for name, value in self.realm.env.items() if name != "KRB5_KDC_PROFILE"}
        place = self.place / f"case{next(self._numbers)}"
        place.mkdir()
        return Case(place, principal, keytab, interval, env, directory)

    def start(self, peer: Peer, case: Case, **how: Any) -> Running:
        self.results.commands[peer.name] = peer.shown(case)
        running = peer.start(case, **how)
        self._running.append(running)
        return running

    def first_token(self, running: Running, *, within: float = SOON, every: float = 0.005) -> None:
        try:
            eventually(lambda: is_valid(running.case.ccache), within=within, every=every, what="a first token")
        except AssertionError as error:
            raise AssertionError(f"{running.peer.name}: {error}\n{running.log.read_text()[-2000:]}") from None

    def stop_all(self) -> None:
        for running in self._running:
            running.kill()
        self._running.clear()

    # --- the KDC ---

    @property
    def _kdc(self) -> int:
        return int(self.realm.kdc._kdc_proc.pid)

    def freeze(self) -> None:
        os.kill(self._kdc, signal.SIGSTOP)

    def thaw(self) -> None:
        os.kill(self._kdc, signal.SIGCONT)

    def requests(self) -> list[Request]:
        """All AS requests so far."""
        year = datetime.datetime.now().year
        found = []
        for month, day, clock, outcome, principal in _AS_REQ.findall(self.realm.log()):
            moment = datetime.datetime.strptime(f"{year} {month} {day} {clock}", "%Y %b %d %H:%M:%S")
            found.append(Request(int(moment.timestamp()), principal, outcome))
        return found


_AS_REQ = re.compile(r"^(\w{3}) +(\d+) ([\d:]{8}) .*AS_REQ \(.*?\}\) \S+ (\w+): (?:.*\}, )?(\S+) for ", re.MULTILINE)


@contextlib.contextmanager
def bench(results: Results) -> Iterator[Bench]:
    with contextlib.ExitStack() as stack:
        with _in_turn(), _in_memory():
            settings = {"max_renewable_life": "7d", "default_principal_flags": "+preauth"}
            kdc = stack.enter_context(throwaway_realm(kdc_conf=settings))
        name = stack.enter_context(tempfile.TemporaryDirectory(prefix="krbrefresh-bench-"))
        made = Bench(kdc, Path(name), results)
        kadmin_all(made.realm, [f'modprinc -maxrenewlife "7 days" krbtgt/{kdc.realm}'])
        try:
            yield made
        finally:
            made.thaw()
            made.stop_all()


@contextlib.contextmanager
def _in_turn() -> Iterator[None]:
    """One realm at a time is made: two that found the same ports free would answer for each other."""
    with open(Path(tempfile.gettempdir()) / "krbrefresh-bench.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _in_memory() -> Iterator[None]:
    """The KDC's database is not what is measured, and a thousand principals would wait for the disk two thousand times.
    What the peers write goes to the disk."""
    before, tempfile.tempdir = tempfile.tempdir, "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    try:
        yield
    finally:
        tempfile.tempdir = before


def state(path: Path) -> str:
    """`valid`, or the reason why it is not."""
    try:
        krbrefresh.validate(path, min_remaining=0)
    except krbrefresh.TokenError as error:
        return error.reason
    return "valid"


def is_valid(path: Path) -> bool:
    return state(path) == "valid"


def all_valid(ccaches: list[Path]) -> None:
    """Waits until each of them has been valid once."""
    left = list(ccaches)

    def none_left() -> bool:
        while left and is_valid(left[-1]):
            left.pop()
        return not left

    eventually(none_left, within=SOON, every=0.02, what="all first tokens")


def kinit(case: Case) -> None:
    command = ["kinit", "-k", "-t", str(case.keytab), "-c", f"FILE:{case.ccache}", case.principal]
    subprocess.run(command, env=case.env, check=True)


def identity(path: Path) -> tuple[int, ...]:
    """Another one when the file was rewritten or replaced."""
    try:
        found = os.stat(path)
    except OSError:
        return ()
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_ctime_ns, found.st_size


def wait_until(moment: float) -> None:
    """`moment` is a monotonic time."""
    while (left := moment - time.monotonic()) > 0:
        time.sleep(min(left, 1))
