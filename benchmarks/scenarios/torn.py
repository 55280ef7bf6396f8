"""Readers that never rest while each peer rewrites its ccache as fast as it can be made to: those that hear a signal on
that signal, the others without a rest between two exchanges."""

from __future__ import annotations

import collections
import multiprocessing
import time
from multiprocessing.connection import Connection
from pathlib import Path

import krbrefresh
from benchmarks.peers import LIBGSSAPI, Running
from benchmarks.peers import PEERS as ALL
from benchmarks.realm import Bench, identity
from benchmarks.records import Scale

LANE, ROOT = "busy", False
PEERS = [peer.name for peer in ALL]
READERS = 2


def _read(path: Path, end: Connection) -> None:
    """Parses the file again and again; how often it could not, and why."""
    found: collections.Counter[str] = collections.Counter()
    while not end.poll():
        for _ in range(100):
            try:
                token = krbrefresh.load(path)
                found["whole" if token.has_tgt else "no_ticket"] += 1
            except krbrefresh.TokenError as error:
                found[error.reason] += 1
    end.send(found)


def run(bench: Bench, scale: Scale) -> None:
    for index in range(scale.runs):
        for peer in ALL:
            # libgssapi refreshes at half of the life, and cannot be told to do so sooner.
            [account] = bench.accounts(1, life="2 seconds" if peer is LIBGSSAPI else "10 hours")
            running = bench.start(peer, bench.case(*account, 0))
            bench.first_token(running)
            found, rewrites = _watch(running, scale.of(3.0, 0.5))
            running.kill()
            reads, whole = found.total(), found.pop("whole")
            bench.results.add(peer.name, index, "reads", reads, "")
            bench.results.add(peer.name, index, "bad reads", reads - whole, "")
            bench.results.add(peer.name, index, "share of bad reads", 100 * (reads - whole) / reads, "%")
            bench.results.add(peer.name, index, "rewrites", rewrites, "")
            for reason, count in found.items():
                bench.results.add(peer.name, index, f"bad: {reason}", count, "")


def _watch(running: Running, seconds: float) -> tuple[collections.Counter[str], int]:
    context = multiprocessing.get_context("fork")
    path = running.case.ccache
    readers = []
    for _ in range(READERS):
        ours, theirs = multiprocessing.Pipe()
        process = context.Process(target=_read, args=(path, theirs))
        process.start()
        readers.append((process, ours))
    end, rewrites, seen, asked_at = time.monotonic() + seconds, 0, identity(path), 0.0
    while (now := time.monotonic()) < end:
        which = identity(path)
        if which and which != seen:  # a lower bound: two rewrites between two looks are one
            seen, asked_at = which, 0.0
            rewrites += 1
        if now - asked_at > 0.05:
            asked_at = now
            running.refresh()
        time.sleep(0.001)
    found: collections.Counter[str] = collections.Counter()
    for process, ours in readers:
        ours.send(None)
        found += ours.recv()
        process.join()
    return found, rewrites
