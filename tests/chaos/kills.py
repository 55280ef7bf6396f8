#!/usr/bin/env python3
"""SIGKILL at random moments, with readers that never rest: of a process that publishes, and of the whole refresher.

    .venv/bin/python tests/chaos/kills.py [--kills 1000] [--whole 20] [--seed N]

`--kills`: a process does what a refresher does at its start (prepare: the lock, the sweep) and then publishes one
generation after the other (publish.py), until it is killed, at a moment that is drawn from the length of some
publications. Half of them publish to a disk, half to memory (tmpfs), where no call is longer than the others. One in
ten finds no token directory and has to make it; nobody reads there.
`--whole`: `krbrefresh run` with thirty credentials, its child processes, and a KDC.

After each kill: what is at the path is whole, and what was published, or the one that was begun; no older generation
than at the last look; one leftover at the most, which the next start sweeps; the lock can be had at once.
"""

from __future__ import annotations

import argparse
import contextlib
import mmap
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from krbrefresh.demo.realm import throwaway_realm
from krbrefresh.refresher import publish
from krbrefresh.refresher.layout import Destination
from krbrefresh.refresher.lock import LOCK_NAME, Lock
from krbrefresh.token import Token
from tests.chaos.observer import Observers
from tests.faults import ended
from tests.processes import Runner, children_of, refresher, toml
from tests.support import ETL, Realm, eventually
from tests.tokens import sealed

READERS = 2  # for each of the two places
MAKES_DIRECTORY = 0.1  # of all kills
WARM_UP = 200  # publications, to know how long one takes
MOST = 3  # publications before a kill, about
CREDENTIALS = 30
LONGEST_LIFE = 3  # times what a whole refresher takes to its first token


class Place:
    """A volume, and what was found there after the last kill."""

    def __init__(self, volume: Path) -> None:
        self.where = Destination(str(volume / "token"), "krb5cc", 0o440, None)
        self.generation = 0
        self.length = 0.0

    def measure(self) -> None:
        """How long a publication takes here, in seconds."""
        lock = Lock()
        assert publish.prepare(self.where, lock)
        began = time.monotonic()
        for _ in range(WARM_UP):
            self.generation += 1
            publish.publish(self.where, sealed(self.generation), lock)
        self.length = (time.monotonic() - began) / WARM_UP
        lock.release()

    def begin_anew(self) -> None:
        shutil.rmtree(self.where.directory, ignore_errors=True)
        self.generation = 0


class Board:
    """What a publisher tells before it is killed: the generations that it has begun and done."""

    def __init__(self) -> None:
        self._shared = memoryview(mmap.mmap(-1, 4096)).cast("q")

    begun = property(lambda self: self._shared[0], lambda self, value: self._shared.__setitem__(0, value))
    done = property(lambda self: self._shared[1], lambda self, value: self._shared.__setitem__(1, value))
    ready = property(lambda self: self._shared[2], lambda self, value: self._shared.__setitem__(2, value))


def publish_for_ever(where: Destination, board: Board) -> None:
    """The life of a publisher."""
    lock = Lock()
    board.ready = 1
    if os.path.exists(where.directory):  # else the publication makes it
        assert publish.prepare(where, lock), "another one holds the lock"
        assert sorted(os.listdir(where.directory)) in ([LOCK_NAME], sorted((LOCK_NAME, where.name))), "not swept"
    generation = board.done
    while True:
        generation += 1
        data = sealed(generation)
        board.begun = generation
        publish.publish(where, data, lock)
        board.done = generation


def kill_one(place: Place, board: Board, after: float) -> None:
    """Starts a publisher, and kills it so many seconds after it has begun."""
    board.begun = board.done = place.generation
    board.ready = 0
    pid = os.fork()
    if not pid:
        try:
            publish_for_ever(place.where, board)
        except BaseException as error:
            print(f"publisher: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        finally:
            os._exit(1)
    deadline = time.monotonic() + 10
    while not board.ready and time.monotonic() < deadline:
        time.sleep(0)
    until = time.monotonic() + after
    while (left := until - time.monotonic()) > 0:
        time.sleep(left if left > 0.0005 else 0)
    os.kill(pid, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert status == -signal.SIGKILL, f"the publisher ended with status {status}"


def check(place: Place, board: Board, seen: Counter[str]) -> None:
    where = place.where
    beside = [name for name in os.listdir(os.path.dirname(where.directory)) if name != "token"]
    assert len(beside) <= 1, beside
    seen["directories that were half made"] += len(beside)
    for name in beside:  # a minute later
        path = os.path.join(os.path.dirname(where.directory), name)
        os.utime(path, (time.time() - 3600,) * 2)
    publish.sweep_beside(os.path.dirname(where.directory))
    assert not any(os.path.exists(os.path.join(os.path.dirname(where.directory), name)) for name in beside), beside
    left = listed(where.path) - {LOCK_NAME, where.name}
    assert len(left) <= 1, left
    seen["temporary files left"] += len(left)
    try:
        data = Path(where.path).read_bytes()
    except FileNotFoundError:
        assert not board.done, f"the token is missing, and generation {board.done} was published"
        seen["none yet"] += 1
        return
    token = Token.parse(data)
    found = token.generation or 0
    assert token.is_for(ETL)
    assert place.generation <= board.done <= found <= board.begun, (place.generation, board.done, found, board.begun)
    seen["the one that was begun" if found > board.done else "the last one"] += 1
    place.generation = found


def kill_publishers(count: int, dice: random.Random, directory: Path) -> None:
    began = time.monotonic()
    with (
        tempfile.TemporaryDirectory(prefix="krbrefresh-kills-") as on_disk,
        tempfile.TemporaryDirectory(prefix="krbrefresh-kills-", dir="/dev/shm") as in_memory,
    ):
        places = []
        for volume in (Path(on_disk), Path(in_memory)):
            for name in ("read", "made"):
                (volume / name).mkdir()
                places.append(Place(volume / name))
                places[-1].measure()
        board, seen = Board(), Counter[str]()
        observers = Observers({place.where.path: str(ETL) for place in places[::2]}, READERS, directory)
        try:
            for number in range(count):
                which = 2 * (number % 2) + (dice.random() < MAKES_DIRECTORY)
                place, made = places[which], which % 2
                if made:
                    place.begin_anew()
                after = dice.random() * place.length * (2 if made else MOST)
                try:
                    kill_one(place, board, after)
                    check(place, board, seen)
                except AssertionError as error:
                    raise AssertionError(f"kill {number}, {after:.6f} s, at {place.where.path}: {error}") from error
            seen["reads"], seen["generations"] = (lambda told: (told["reads"], told["generations"]))(
                observers.results()
            )
        finally:
            observers.close()
    took = time.monotonic() - began
    lengths = " and ".join(f"{place.length * 1000:.2f}" for place in places[::2])
    print(f"{count} publishers killed in {took:.0f} s; a publication takes {lengths} ms on the disk and in memory; "
          f"{figures(seen)}; none torn, none missing, none older", flush=True)  # fmt: skip


def listed(path: str) -> set[str]:
    """What is in the token directory of that ccache."""
    with contextlib.suppress(FileNotFoundError):
        return set(os.listdir(os.path.dirname(path)))
    return set()


def figures(seen: Counter[str]) -> str:
    return ", ".join(f"{word}: {number}" for word, number in sorted(seen.items()))


# --- the whole refresher ---


def kill_whole(count: int, dice: random.Random, directory: Path) -> None:
    began, seen = time.monotonic(), Counter[str]()
    with throwaway_realm() as kdc, contextlib.ExitStack() as stack:
        realm = Realm(kdc)
        keytab = directory / "keytab"
        names = [f"etl{index}" for index in range(CREDENTIALS)]
        for name in names:
            realm.keytab(keytab, name)
        paths = {str(directory / name / "krb5cc"): realm.principal(name) for name in names}
        config = directory / "krbrefresh.toml"
        sections = {
            f"credentials__{name}": {"principal": realm.principal(name), "keytab": keytab, "ccache": path}
            for name, path in zip(names, paths, strict=True)
        }
        config.write_text(toml(refresher={"log_format": "json"}, kerberos={"lifetime": "3s"}, **sections))
        observers = Observers(paths, READERS, directory, rest=0.005)
        stack.callback(observers.close)
        start = time.monotonic()
        with refresher(Runner(), config, realm.env) as running:
            running.logged("published", within=60)
            first = time.monotonic() - start
        for number in range(count):
            after = dice.uniform(0.5, LONGEST_LIFE) * first
            try:
                with refresher(Runner(), config, realm.env) as running:
                    time.sleep(after)
                    children = children_of(running.process.pid)
                    running.process.kill()
                    running.process.wait()
                    seen["published"] += len(running.named("published"))
                    # A ticket of three seconds can end on its way, where the machine is busy.
                    seen.update(f"failed: {reason}" for reason in running.reasons())
                seen["child processes that ended with it"] += len(children)
                for child in children:
                    assert ended(child, within=5), f"the child {child} lives"
                for path in paths:
                    left = listed(path) - {LOCK_NAME, "krb5cc"}
                    assert len(left) <= 1, left  # swept by each start
                    seen["temporary files left"] += len(left)
            except AssertionError as error:
                raise AssertionError(f"kill {number}, {after:.6f} s after the start: {error}") from error
        with refresher(Runner(), config, realm.env) as running:
            running.logged("published", within=60)
            eventually(lambda: all(listed(path) == {LOCK_NAME, "krb5cc"} for path in paths), within=10)
        seen += observers.results()
    print(f"{count} refreshers killed in {time.monotonic() - began:.0f} s; {figures(seen)}; none torn, none missing, "
          "none older", flush=True)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--whole", type=int, default=20)
    parser.add_argument("--seed", type=int, default=int(time.time()), help="another one each time, unless it is named")
    options = parser.parse_args()
    print(f"kills: seed {options.seed}", flush=True)
    dice = random.Random(options.seed)
    for count, kill in ((options.kills, kill_publishers), (options.whole, kill_whole)):
        with tempfile.TemporaryDirectory(prefix="krbrefresh-kills-") as name:
            if count:
                kill(count, dice, Path(name))


if __name__ == "__main__":
    main()
