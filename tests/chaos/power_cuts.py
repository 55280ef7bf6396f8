#!/usr/bin/env python3
"""Power cuts at random moments of publications, on real file systems: what is found when the power is back.

    .venv/bin/python tests/chaos/power_cuts.py [--cuts 1000] [--seed N] [--without file|directory]

A publication is the refresher's own (publish.py), on a disk that forgets what was not flushed (disk.py), while another
program writes to it and syncs. After each cut the file system is mounted as the kernel finds it, and then

- a token that a publication had reported as done is there, or a newer one; whole, to the byte, with its mode;
- before the first publication was done there is that one, whole, or none;
- the next start sweeps what was left behind, and can publish.

`--without` takes a sync out of the publication, to show that the cuts would tell. Needs root, and Linux with FUSE.
"""

from __future__ import annotations

import argparse
import collections
import functools
import os
import random
import stat
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from krbrefresh.refresher import publish
from krbrefresh.refresher.layout import Destination
from krbrefresh.refresher.lock import LOCK_NAME, Lock
from krbrefresh.token import Token
from tests.chaos.disk import Disk, Flush, Loop, Medium, Note, Write, die_with_parent, private_mounts
from tests.tokens import sealed

SIZE = 16 << 20
PUBLICATIONS = 6  # in the life of a file system
CUTS = 150  # in it, at the most
MODE = 0o440
CHANGES = ("open", "write", "mkdir", "rename", "unlink", "fchmod", "fchown", "close")
# How it is mounted; the last two take away what ext4 does for programs that forget to sync.
EXT4 = ("", "commit=1", "noauto_da_alloc", "noauto_da_alloc,data=writeback")

Life = tuple[list[Write | Flush | Note], list[bytes]]


def destination(place: Path) -> Destination:
    return Destination(str(place / "volume" / "token"), "krb5cc", MODE, None)


class Interrupted:
    """What publish.py takes for `os`: before each of its calls another program may write to the file system and sync
    it, so that the journal is written at any moment between two calls. `without` the sync of a `file` or `directory`.
    """

    def __init__(self, other: Path, dice: random.Random, without: str | None) -> None:
        self._file = os.open(other, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC)
        self._dice, self._without = dice, without

    def end(self) -> None:
        os.close(self._file)

    def interrupt(self) -> None:
        if self._dice.random() < 0.3:
            os.write(self._file, self._dice.randbytes(self._dice.randrange(1, 20_000)))
        if self._dice.random() < 0.3:
            os.fsync(self._file)

    def fsync(self, descriptor: int) -> None:
        self.interrupt()
        kind = "directory" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file"
        if kind != self._without:
            os.fsync(descriptor)

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)
        if name not in CHANGES:
            return real

        def call(*arguments: Any, **keywords: Any) -> Any:
            self.interrupt()
            return real(*arguments, **keywords)

        return call


def live(blank: bytes, place: Path, options: str, dice: random.Random, without: str | None) -> Life:
    """The life of a file system: what its disk was told meanwhile, and the tokens that were published, by generation.
    One thread does it all, so that the same seed brings the same life, but for the kernel's own timers."""
    tokens = [b"", *(sealed(generation) for generation in range(1, PUBLICATIONS + 1))]
    there = place / "there"
    with Disk(blank, place / "disk") as disk, Loop(disk.path) as loop, loop.mounted(there, "ext4", options):
        lock, interrupted = Lock(), Interrupted(there / "other", dice, without)
        with mock.patch.object(publish, "os", interrupted):
            for generation in range(1, PUBLICATIONS + 1):
                disk.note("begun", generation)
                publish.publish(destination(there), tokens[generation], lock)
                disk.note("done", generation)
                interrupted.interrupt()
        interrupted.end()
        lock.release()
        log = list(disk.log)
    return log, tokens


def check(place: Path, begun: int, done: int, tokens: list[bytes]) -> str:
    """What is found after a power cut: a word for the figures. Raises AssertionError."""
    where = destination(place)
    left = []
    if not os.path.lexists(where.path):
        assert not done, f"the token is missing, and generation {done} was published"
        found = 0
    else:
        data = Path(where.path).read_bytes()
        assert data in tokens[1:], f"{len(data)} bytes that nobody published"
        found = tokens.index(data)
        assert done <= found <= begun, f"generation {found}, and {done} was published, {begun} begun"
        assert stat.S_IMODE(os.lstat(where.path).st_mode) == MODE
        left = [name for name in os.listdir(where.directory) if name not in (where.name, LOCK_NAME)]
    lock = Lock()
    try:
        assert publish.prepare(where, lock)
        publish.publish(where, tokens[-1], lock)
        assert sorted(os.listdir(where.directory)) == sorted((where.name, LOCK_NAME))
        assert Token.parse(Path(where.path).read_bytes()).generation == PUBLICATIONS
    finally:
        lock.release()
    word = "none yet" if not found else "the new one" if found > done else "the last one"
    return word + (", and a temporary file" if left else "")


def a_life(seed: int, cuts: int, only: int | None = None, without: str | None = None) -> collections.Counter[str]:
    """One file system, and all the power cuts in its life; `only` that one."""
    with tempfile.TemporaryDirectory(prefix="krbrefresh-power-", dir="/dev/shm") as name:
        return _a_life(seed, Path(name), cuts, only, without)


def _a_life(seed: int, place: Path, cuts: int, only: int | None, without: str | None) -> collections.Counter[str]:
    dice = random.Random(seed)
    image = place / "image"
    with open(image, "wb") as file:
        file.truncate(SIZE)
    command = ["mkfs.ext4", "-q", "-F", "-b", "4096", "-J", "size=4", "-E", "nodiscard", str(image)]
    subprocess.run(command, check=True)
    blank = image.read_bytes()
    options = EXT4[seed % len(EXT4)]
    log, tokens = live(blank, place, options, dice, without)
    medium, seen = Medium(blank, log), collections.Counter[str]()
    with Loop(image) as loop:
        for number, moment in enumerate(sorted(dice.choices(range(len(log) + 1), k=cuts))):
            medium.go_to(moment)
            after = medium.after_power_cut(dice)
            seen["blocks that could be lost"] += medium.unflushed
            if only not in (None, number):
                continue
            with open(image, "r+b") as file:
                file.write(after)
            try:
                with loop.mounted(place / "back", "ext4"):
                    word = check(place / "back", medium.notes.get("begun", 0), medium.notes.get("done", 0), tokens)
            except (AssertionError, OSError) as error:
                raise AssertionError(f"seed {seed}, cut {number}, ext4 {options or 'defaults'}: {error}") from error
            seen[word] += 1
            seen["cuts"] += 1
    return seen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cuts", type=int, default=600)
    parser.add_argument("--seed", type=int, default=int(time.time()), help="another one each time, unless it is named")
    parser.add_argument("--cut", type=int, help="this one alone, of that seed")
    parser.add_argument("--without", choices=("file", "directory"), help="the sync of this")
    options = parser.parse_args()
    try:
        private_mounts()
        for device in ("/dev/fuse", "/dev/loop-control"):
            os.close(os.open(device, os.O_RDWR))
    except (OSError, subprocess.CalledProcessError) as error:
        if os.environ.get("CI"):
            sys.exit(f"power cuts: this may not mount here, and in CI that is a failure: {error}")
        print(f"power cuts: left out, for this may not mount here: {error}")
        return
    began = time.monotonic()
    print(f"power cuts: seed {options.seed}", flush=True)
    lives = 1 if options.cut is not None else -(-options.cuts // CUTS)
    seen = collections.Counter[str]()
    with ProcessPoolExecutor(2, initializer=die_with_parent) as processes:
        for each in processes.map(
            functools.partial(a_life, cuts=min(options.cuts, CUTS), only=options.cut, without=options.without),
            range(options.seed, options.seed + lives),
        ):
            seen += each
    cuts, lost = seen.pop("cuts"), seen.pop("blocks that could be lost")
    words = ", ".join(f"{word}: {count}" for word, count in sorted(seen.items()))
    print(f"{cuts} power cuts in {time.monotonic() - began:.0f} s, with {lost / cuts:.1f} blocks each that could be "
          f"lost; found: {words}; none torn, none lost")  # fmt: skip


if __name__ == "__main__":
    main()
