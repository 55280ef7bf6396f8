"""What goes wrong during a soak: three rows of faults at random, side by side, each written down with its times."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.faults import kadmin_all, kdc_comes_back, kdc_dies, kdc_hangs
from tests.soak.judge import NO_KDC, NO_KEY, NO_LEADER, NO_SPACE, NO_TOKENS, Outage
from tests.soak.world import PAIR, Refresher, World

PAUSES = {"kdc": 22.0, "volume": 30.0, "calm": 8.0}  # seconds on average between two faults of a row


def _take_the_rest(path: Path) -> None:
    """A file that grows by all the space there is left on its file system."""
    with open(path, "ab", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"\0" * 4096)


class Disturber:
    """Makes faults until `stop`; `faults` is their log."""

    def __init__(self, world: World, seed: int) -> None:
        self.world = world
        self.faults: list[dict[str, Any]] = []
        self.outages: list[Outage] = []
        self.errors: list[str] = []
        self._stop = threading.Event()
        self._writing = threading.Lock()
        rows = {
            "kdc": [self.kdc_hangs, self.kdc_hangs, self.kdc_restarts],
            "volume": [self.leader_killed, self.leader_killed, self.leader_ended, self.volume_emptied,
                       *([self.disk_filled] * 2 if world.root else [])],
            "calm": [self.keytab_rotated, self.keytab_swapped, self.hang_up, self.refresh_all, self.slow_log,
                     self.hung_clients],
        }  # fmt: skip
        self._threads = [
            threading.Thread(
                target=self._row, args=(random.Random(f"{seed} {name}"), PAUSES[name], faults), daemon=True
            )
            for name, faults in rows.items()
        ]

    def __enter__(self) -> Disturber:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Ends it, with everything undone."""
        self._stop.set()
        for thread in self._threads:
            thread.join(60)

    def _row(self, rng: random.Random, pause: float, faults: list[Callable[[random.Random], None]]) -> None:
        while not self._stop.wait(rng.expovariate(1 / pause)):
            fault = rng.choice(faults)
            try:
                fault(rng)
            except Exception as error:
                self.errors.append(f"{fault.__name__}: {type(error).__name__}: {error}")

    def _note(self, name: str, began: float, kind: str = "", group: list[str] | None = None, **more: Any) -> None:
        with self._writing:
            number = len(self.faults)
            ended = time.time()
            self.faults.append({"fault": name, "began": began, "ended": ended, **more})
            if kind:
                names = self.world.names if group is None else group
                self.outages.append(Outage(kind, began, ended, frozenset(names), number))

    def _wait(self, seconds: float) -> None:
        self._stop.wait(seconds)

    # --- the KDC ---

    def _length(self, rng: random.Random) -> float:
        """Most are short: those the policy has to bridge."""
        low, high = rng.choices([(0.05, 0.8), (0.8, 4.0), (4.0, 12.0)], [6, 3, 1])[0]
        return rng.uniform(low, high)

    def kdc_hangs(self, rng: random.Random) -> None:
        began = time.time()
        kdc_hangs(self.world.realm)
        try:
            self._wait(self._length(rng))
        finally:
            os.kill(self.world.realm.kdc._kdc_proc.pid, signal.SIGCONT)
        self._note("KDC stopped and continued", began, NO_KDC)

    def kdc_restarts(self, rng: random.Random) -> None:
        began = time.time()
        kdc_dies(self.world.realm)
        try:
            self._wait(self._length(rng))
        finally:
            kdc_comes_back(self.world.realm)
        self._note("KDC killed and started", began, NO_KDC)

    # --- the volume, and who writes to it ---

    def volume_emptied(self, rng: random.Random) -> None:
        began = time.time()
        for entry in sorted(self.world.volume.iterdir()):
            shutil.rmtree(entry, ignore_errors=True)
        self._note("volume emptied", began, NO_TOKENS)

    def disk_filled(self, rng: random.Random) -> None:
        began = time.time()
        filler = self.world.volume / "fill"
        try:
            until = time.monotonic() + self._length(rng)
            while not self._stop.is_set() and time.monotonic() < until:
                _take_the_rest(filler)  # what is freed, too
                self._wait(0.05)
        finally:
            filler.unlink(missing_ok=True)
        self._note("disk filled", began, NO_SPACE)

    def _leader(self) -> Refresher | None:
        """Who leads of the pair, if the other one can take over."""
        if not all(self.world.refreshers[name].alive for name in PAIR):
            return None
        led = {name: self.world.leads(name) for name in PAIR}
        return self.world.refreshers[max(led, key=lambda name: led[name])] if max(led.values()) else None

    def leader_killed(self, rng: random.Random) -> None:
        leader = self._leader()
        if leader:
            began = time.time()
            leader.end(signal.SIGKILL)
            self._note("leader killed", began, NO_LEADER, self.world.pair_names, refresher=leader.name)
            self._back(leader, rng)

    def leader_ended(self, rng: random.Random) -> None:
        leader = self._leader()
        if leader:
            began = time.time()
            took = leader.end(signal.SIGTERM)
            self._note("leader ended (TERM)", began, NO_LEADER, self.world.pair_names, refresher=leader.name, took=took)
            self._back(leader, rng)

    def _back(self, leader: Refresher, rng: random.Random) -> None:
        self._wait(rng.uniform(0.0, 3.0))
        leader.start()
        self._wait(5)  # it stands by before another one may go

    # --- what nothing excuses ---

    def _replace_keytab(self, name: str, options: str) -> None:
        keytab = self.world.keytab(name)
        new = keytab.with_suffix(".new")
        new.unlink(missing_ok=True)
        kadmin_all(self.world.realm, [f"ktadd {options} -k {new} {name}"])
        new.chmod(0o400)
        if self.world.root:
            owner = keytab.stat()
            os.chown(new, owner.st_uid, owner.st_gid)
        new.rename(keytab)

    def keytab_swapped(self, rng: random.Random) -> None:
        name, began = rng.choice(self.world.names), time.time()
        self._replace_keytab(name, "-norandkey")
        self._note("keytab swapped for one with the same key", began, credential=name)

    def keytab_rotated(self, rng: random.Random) -> None:
        """With another key: there is a moment in which the KDC has the new one and the refresher the old."""
        name, began = rng.choice(self.world.names), time.time()
        self._replace_keytab(name, "")
        self._note("key changed and keytab swapped", began, NO_KEY, [name], credential=name)

    def _any(self, rng: random.Random) -> Refresher:
        return self.world.refreshers[rng.choice(sorted(self.world.refreshers))]

    def hang_up(self, rng: random.Random) -> None:
        """HUP, with a credential more for a while."""
        each, began = self._any(rng), time.time()
        each.configure(extra=True)
        each.signal(signal.SIGHUP)
        self._wait(rng.uniform(1, 6))
        each.configure()
        each.signal(signal.SIGHUP)
        self._note("HUP: a credential comes and goes", began, refresher=each.name)

    def refresh_all(self, rng: random.Random) -> None:
        each, began = self._any(rng), time.time()
        for _ in range(rng.randrange(1, 4)):
            each.signal(signal.SIGUSR1)
        self._note("USR1", began, refresher=each.name)

    def slow_log(self, rng: random.Random) -> None:
        each, began = self._any(rng), time.time()
        log = each.log
        log.reads.clear()
        self._wait(rng.uniform(3, 20))
        log.reads.set()
        self._note("log not read", began, refresher=each.name)

    def hung_clients(self, rng: random.Random) -> None:
        each, began = self._any(rng), time.time()
        with contextlib.ExitStack() as stack:
            for number in range(rng.randrange(10, 100)):
                with contextlib.suppress(OSError):
                    client = stack.enter_context(socket.create_connection(("127.0.0.1", each.port), timeout=1))
                    client.sendall([b"", b"GET /metr", b"GET / HTTP/1.1\r\nHost: x\r\n", b"\x16\x03\x01"][number % 4])
            self._wait(rng.uniform(1, 15))
        self._note("HTTP clients that hang", began, refresher=each.name)
