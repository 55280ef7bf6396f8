"""Every state that a file system may be in after a crash in the middle of a publication, by a model of POSIX.

The publication's calls are recorded as they are made. What POSIX promises is little: what fsync(2) of a file has
returned for, the file has kept, and fsync of a directory keeps its names. Of everything else any part may be there
after a crash: no write, half of it, as many zeros or all, and any of the names that were made, moved and removed. A
worker's reader looks at what is at the path then. A file system that promises as little as that is not known;
tests/chaos/power_cuts.py does the same to real ones.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

import krbrefresh
from krbrefresh.refresher import lock, publish
from krbrefresh.refresher.layout import Destination
from krbrefresh.refresher.lock import Lock
from tests.tokens import sealed

OLD, NEW = 1, 2
MISSING = 0
Name = tuple[int, str]  # a directory's inode, and a name in it


@dataclass(frozen=True)
class Call:
    """One that changes something. `inode` is the file's or the directory's that it is about."""

    what: str
    inode: int = 0
    name: Name = (0, "")
    before: Name = (0, "")
    data: bytes = b""


@dataclass
class Recorder:
    """What publish.py and lock.py take for `os`: it makes their calls, and writes down those that change something."""

    calls: list[Call] = field(default_factory=list)

    def __getattr__(self, name: str) -> Any:
        assert name not in ("pwrite", "writev", "ftruncate", "link", "replace", "chmod"), f"{name} is not in the model"
        return getattr(os, name)

    def _name(self, path: str, directory: int | None) -> Name:
        if directory is not None:
            return os.fstat(directory).st_ino, path
        return os.stat(os.path.dirname(path)).st_ino, os.path.basename(path)

    def open(self, path: str, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        there = os.path.lexists(path if dir_fd is None else f"/proc/self/fd/{dir_fd}/{path}")
        file = os.open(path, flags, mode, dir_fd=dir_fd)
        if flags & os.O_CREAT and not there:
            self.calls.append(Call("name", os.fstat(file).st_ino, self._name(path, dir_fd)))
        return file

    def write(self, file: int, data: bytes) -> int:
        written = os.write(file, data)
        self.calls.append(Call("write", os.fstat(file).st_ino, data=data[:written]))
        return written

    def mkdir(self, path: str, mode: int = 0o777) -> None:
        os.mkdir(path, mode)
        self.calls.append(Call("name", os.stat(path).st_ino, self._name(path, None)))

    def rename(self, before: str, after: str, *, src_dir_fd: int | None = None, dst_dir_fd: int | None = None) -> None:
        moved = Call("move", name=self._name(after, dst_dir_fd), before=self._name(before, src_dir_fd))
        os.rename(before, after, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)
        self.calls.append(moved)

    def unlink(self, path: str, *, dir_fd: int | None = None) -> None:
        os.unlink(path, dir_fd=dir_fd)
        self.calls.append(Call("remove", name=self._name(path, dir_fd)))

    def fchmod(self, file: int, mode: int) -> None:
        os.fchmod(file, mode)
        self.calls.append(Call("mode", os.fstat(file).st_ino))

    def fsync(self, file: int) -> None:
        os.fsync(file)
        self.calls.append(Call("sync", os.fstat(file).st_ino))


@dataclass
class Model:
    """A file system that was in order at first: names, and the files' content."""

    root: int
    names: dict[Name, int]
    content: dict[int, bytes]

    def after_crash(self, calls: list[Call], path: tuple[str, ...]) -> set[bytes | None]:
        """All that can be at the path when the power goes after these calls; None: nothing."""
        names, content = dict(self.names), dict(self.content)
        naming: list[tuple[Name | None, Name | None, int]] = []  # not synced: what goes, what comes, whose
        writing: dict[int, list[bytes]] = {}
        for call in calls:
            if call.what == "sync":
                content[call.inode] = content.get(call.inode, b"") + b"".join(writing.pop(call.inode, []))
                kept = [each for each in naming if any(name and name[0] == call.inode for name in each[:2])]
                _apply(names, kept)
                naming = [each for each in naming if each not in kept]
            elif call.what == "write":
                writing.setdefault(call.inode, []).append(call.data)
            elif call.what == "mode":
                pass  # that it comes before the sync is seen in the order of the calls
            elif call.what == "name":
                naming.append((None, call.name, call.inode))
            else:
                now = dict(names)
                _apply(now, naming)
                gone = call.name if call.what == "remove" else call.before
                naming.append((gone, None if call.what == "remove" else call.name, now.get(gone, 0)))
        found: set[bytes | None] = set()
        for count in range(len(naming) + 1):
            for some in itertools.combinations(naming, count):
                then = dict(names)
                _apply(then, list(some))
                found.update(self._at(path, then, content, writing))
        return found

    def _at(
        self, path: tuple[str, ...], names: dict[Name, int], content: dict[int, bytes], writing: dict[int, list[bytes]]
    ) -> Iterator[bytes | None]:
        inode = self.root
        for part in path:
            if (inode, part) not in names:
                yield None
                return
            inode = names[inode, part]
        kept, more = content.get(inode, b""), b"".join(writing.get(inode, []))
        yield from (kept, kept + more[: len(more) // 2], kept + bytes(len(more)), kept + more)


def _apply(names: dict[Name, int], changes: list[tuple[Name | None, Name | None, int]]) -> None:
    for gone, come, inode in changes:
        if gone:
            names.pop(gone, None)
        if come:
            names[come] = inode


def recorded(place: Path, *, tokens: list[bytes], deep: bool) -> tuple[Model, list[Call], tuple[str, ...]]:
    """The last of these tokens published, the others before it: how it was, what was called, and where it is."""
    directory = place / "a" / "token" if deep else place / "token"
    where = Destination(str(directory), "krb5cc", 0o440, None)
    ours = Lock()
    for data in tokens[:-1]:
        publish.publish(where, data, ours)
    names, content = {}, {}
    for above, directories, files in os.walk(place):
        for name in (*directories, *files):
            inode = os.stat(os.path.join(above, name)).st_ino
            names[os.stat(above).st_ino, name] = inode
            if name in files:
                content[inode] = Path(above, name).read_bytes()
    model = Model(os.stat(place).st_ino, names, content)
    recorder = Recorder()
    with mock.patch.object(publish, "os", recorder), mock.patch.object(lock, "os", recorder):
        publish.publish(where, tokens[-1], ours)
    ours.release()
    return model, recorder.calls, Path(where.path).relative_to(place).parts


def seen_by_a_reader(states: set[bytes | None], place: Path) -> set[int]:
    """The generations that a worker finds, MISSING where it finds none; what is torn is CorruptError."""
    found = set()
    for number, state in enumerate(states):
        path = place / f"state{number}"
        if state is not None:
            path.write_bytes(state)
        try:
            found.add(krbrefresh.load(path).generation or 0)
        except krbrefresh.MissingError:
            found.add(MISSING)
        path.unlink(missing_ok=True)
    return found


CASES = {"replaced": ([OLD, NEW], False), "the first": ([NEW], False), "the first, and a deep directory": ([NEW], True)}


@pytest.mark.parametrize("case", CASES)
def test_a_crash_at_any_moment_leaves_the_old_token_or_the_new_one(place: Path, case: str) -> None:
    generations, deep = CASES[case]
    before = {generations[0] if len(generations) > 1 else MISSING}
    model, calls, path = recorded(place, tokens=[sealed(each) for each in generations], deep=deep)
    moments = 0
    for moment in range(len(calls)):
        moments += len(states := model.after_crash(calls[:moment], path))
        assert seen_by_a_reader(states, place) <= {*before, NEW}, calls[:moment]
    assert seen_by_a_reader(model.after_crash(calls, path), place) == {NEW}  # it has said that it is done
    assert moments > len(calls)
    print(f"\n{case}: {len(calls)} calls, {moments} states")


def test_the_order_of_a_publications_calls(place: Path) -> None:
    _, calls, _ = recorded(place, tokens=[sealed(OLD), sealed(NEW)], deep=False)
    assert [call.what for call in calls] == ["name", "write", "mode", "sync", "move", "sync"]
    made, _, mode, synced, moved, last = calls
    assert mode.inode == made.inode
    assert synced.inode == made.inode
    assert moved.before == made.name
    assert moved.name[0] == last.inode == made.name[0]


@pytest.mark.parametrize("lacking", [0, 1])
def test_without_one_of_its_syncs_the_model_would_tell(place: Path, lacking: int) -> None:
    """The first is the file's, the second the directory's."""
    model, calls, path = recorded(place, tokens=[sealed(OLD), sealed(NEW)], deep=False)
    syncs = [index for index, call in enumerate(calls) if call.what == "sync"]
    del calls[syncs[lacking]]
    if lacking:
        assert seen_by_a_reader(model.after_crash(calls, path), place) == {OLD, NEW}
    else:
        with pytest.raises(krbrefresh.CorruptError):
            seen_by_a_reader(model.after_crash(calls, path), place)
