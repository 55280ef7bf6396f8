"""The disk that the token is on fills up, what fills it (a log, say) goes on, and the peer refreshes a few times: is
there still a good token?"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

from benchmarks.instances import Started, tend_until
from benchmarks.peers import LIBGSSAPI, kubelet
from benchmarks.peers import PEERS as ALL
from benchmarks.realm import Bench, state
from benchmarks.records import Scale
from tests.faults import fill, tmpfs

LANE, ROOT = "busy", True
PEERS = [peer.name for peer in ALL]
INTERVAL = 4  # seconds, for those that cannot be asked to refresh


def run(bench: Bench, scale: Scale) -> None:
    with contextlib.ExitStack() as mounts:
        started: Started = []
        for peer in sorted(ALL, key=lambda peer: peer is LIBGSSAPI):  # last, and soon looked at
            for _, running in started:
                bench.first_token(running)
            for index in range(scale.runs):
                # libgssapi refreshes at half of the life; it still has a part of the other half when it is looked at.
                [account] = bench.accounts(1, life="24 seconds" if peer is LIBGSSAPI else "10 hours")
                disk = bench.place / f"disk-{index}-{peer.name.replace(' ', '')}"
                mounts.enter_context(tmpfs(disk, os.geteuid(), size="64k"))
                (disk / "token").mkdir()
                running = bench.start(peer, bench.case(*account, INTERVAL, directory=disk / "token"))
                running.restart_after = kubelet
                started.append((index, running))
        for _, running in started:
            bench.first_token(running)
        with _filled([running.case.token_directory.parent for _, running in started]):
            for _ in range(scale.of(7, 2)):
                for _, running in started:
                    running.refresh()
                tend_until(time.monotonic() + 2, started)
            for index, running in started:
                name = running.peer.name
                found = state(running.case.ccache)
                bench.results.add(name, index, "token still good", 100 * (found == "valid"), "% of runs")
                if found != "valid":
                    bench.results.add(name, index, f"instead: {found}", 1, "")
                bench.results.add(name, index, "ended by itself", running.deaths, "")
        bench.stop_all()


@contextlib.contextmanager
def _filled(disks: list[Path]) -> Iterator[None]:
    """These file systems are full, and whoever filled them takes at once what becomes free."""
    for disk in disks:
        fill(disk / "filler")
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=_go_on, args=(disks, theirs))
    process.start()
    try:
        yield
    finally:
        ours.send(None)
        process.join()


def _go_on(disks: list[Path], end: Connection) -> None:
    with contextlib.ExitStack() as files:
        fillers = [files.enter_context(open(disk / "filler", "ab", buffering=0)) for disk in disks]
        while not end.poll():
            for filler in fillers:
                with contextlib.suppress(OSError):
                    filler.write(b"\0" * 4096)
