"""Looks at many ccaches all the time, from a process of its own, with the worker's reader."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TypeVar

from benchmarks.realm import state

HERTZ = 50
Changes = list[tuple[float, str]]  # since when (monotonic) it is in which state

Key = TypeVar("Key")


def _sample(paths: list[Path], end: Connection) -> None:
    found: list[Changes] = [[] for _ in paths]
    longest, last = 0.0, time.monotonic()
    while not end.poll():
        began = time.monotonic()
        longest, last = max(longest, began - last), began
        for path, changes in zip(paths, found, strict=True):
            now = state(path)
            if not changes or changes[-1][1] != now:
                changes.append((time.monotonic(), now))
        time.sleep(max(0.0, began + 1 / HERTZ - time.monotonic()))
    end.send((found, longest))


class Sampler:
    """Between `with` and its end; then `changes` has what was seen of each path, and `longest_gap` how long it did not
    look, at the most, since the machine had no processor for it."""

    def __init__(self, paths: Iterable[Path]) -> None:
        self._paths = list(paths)
        self.changes: dict[Path, Changes] = {}
        self.longest_gap = 0.0

    def __enter__(self) -> Sampler:
        self._end, theirs = multiprocessing.Pipe()
        self._process = multiprocessing.get_context("fork").Process(target=_sample, args=(self._paths, theirs))
        self._process.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.send(None)
        found, self.longest_gap = self._end.recv()
        self._process.join()
        self.changes = dict(zip(self._paths, found, strict=True))


def spans(changes: Changes, begin: float, end: float) -> list[tuple[float, float, str]]:
    """From when to when, between these two moments, the token was not valid, and why."""
    found = []
    for index, (since, what) in enumerate(changes):
        until = changes[index + 1][0] if index + 1 < len(changes) else end
        if what != "valid" and until > begin and since < end:
            found.append((max(since, begin), min(until, end), what))
    return found


def invalid(changes: Changes, begin: float, end: float) -> float:
    """Seconds without a valid token between these two moments."""
    return sum(until - since for since, until, _ in spans(changes, begin, end))
