"""How long a peer takes to end on TERM while the KDC hangs and an exchange is under way: as a process among others, and
as the first process of a container (pid 1), which a signal without a handler does not end. After a while (`PATIENCE`)
nobody waits any longer; a kubelet does not after 30 seconds. And how many of its children live on without it: a shell
that ends at once leaves its `kinit` waiting."""

from __future__ import annotations

import os
import select
import signal
import time
from pathlib import Path

from benchmarks.peers import AIRFLOW_KERBEROS, KINIT_LOOP, KRBREFRESH, LIBGSSAPI, SAFE_K5START, SIDECAR, Running
from benchmarks.realm import Bench, wait_until
from benchmarks.records import Scale
from tests.processes import children_of

LANE, ROOT = "waiting", False
MEASURED = [KRBREFRESH, SAFE_K5START, KINIT_LOOP, SIDECAR, AIRFLOW_KERBEROS, LIBGSSAPI]
PEERS = [peer.name for peer in MEASURED]
FIRST = ["unshare", "--pid", "--fork", "--kill-child"]  # needs root
PATIENCE = 120.0  # seconds
APART = 0.1  # seconds between two signals, so that those who end do not wait for each other's processor
LIFE = "1 hour"


def run(bench: Bench, scale: Scale) -> None:
    ways: dict[str, list[str]] = {"as a process": []} | ({"as pid 1": FIRST} if os.geteuid() == 0 else {})
    patience = scale.of(PATIENCE, 3.0)
    started: list[tuple[str, int, Running]] = []
    for way, prefix in ways.items():
        for peer in MEASURED:
            life = "6 seconds" if peer is LIBGSSAPI else LIFE
            for index, account in enumerate(bench.accounts(scale.runs, life=life)):
                # Seconds until the next exchange of those that cannot be asked for one.
                running = bench.start(peer, bench.case(*account, 2), prefix=prefix)
                started.append((way, index, running))
    for _, _, running in started:
        bench.first_token(running)
    pids = [_pid(running) for _, _, running in started]
    bench.freeze()
    for (_, _, running), pid in zip(started, pids, strict=True):
        if running.peer.refreshes_on:
            os.kill(pid, running.peer.refreshes_on)
    wait_until(time.monotonic() + 6)  # all of them ask by now, and none has given up
    begun: dict[int, float] = {}
    took: dict[int, float] = {}
    ends = select.poll()
    by_descriptor: dict[int, int] = {}
    children: dict[int, list[int]] = {}
    left: dict[int, int] = {}

    def look(until: float) -> None:
        while (by_descriptor or took.keys() - left.keys()) and (rest := until - time.monotonic()) > 0:
            for descriptor, _ in ends.poll(min(rest, 0.05) * 1000):
                pid = by_descriptor.pop(descriptor)
                took[pid] = time.monotonic() - begun[pid]
                ends.unregister(descriptor)
                os.close(descriptor)
            for pid in took.keys() - left.keys():  # what dies with it has had a moment to do so
                if time.monotonic() > begun[pid] + took[pid] + 0.05:
                    left[pid] = sum(map(_lives, children[pid]))

    for (_, _, running), pid in zip(started, pids, strict=True):
        descriptor = os.pidfd_open(running.pid)
        by_descriptor[descriptor] = running.pid
        ends.register(descriptor, select.POLLIN)
        children[running.pid] = children_of(pid)
        begun[running.pid] = time.monotonic()
        os.kill(pid, signal.SIGTERM)
        look(time.monotonic() + APART)
    look(time.monotonic() + patience)
    for way, index, running in started:
        bench.results.add(running.peer.name, index, f"to the end, {way}", took.get(running.pid, patience), "s")
        if running.pid in left and way == "as a process":
            bench.results.add(running.peer.name, index, "left behind", left[running.pid], "")
    bench.results.extra = {"patience": patience}


def _pid(running: Running) -> int:
    """Of the peer itself, behind `unshare` where that started it."""
    return children_of(running.pid)[0] if running.process.args[0] == FIRST[0] else running.pid  # type: ignore[index]


def _lives(pid: int) -> bool:
    """Whether that process is there and has not ended: who reaps it may be slow."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
