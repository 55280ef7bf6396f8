"""Several instances of each peer at a time: a run each."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from benchmarks.peers import Case, Peer, Running
from benchmarks.realm import Bench, wait_until

Started = list[tuple[int, Running]]  # in which run


def cases(bench: Bench, peers: Sequence[Peer], runs: int, *, life: float, interval: float) -> list[list[Case]]:
    """A case for each peer in each run, made before anything starts, so that a sampler can know the paths."""
    accounts = iter(bench.accounts(len(peers) * runs, life=f"{life:g} seconds"))
    return [[bench.case(*next(accounts), interval) for _ in peers] for _ in range(runs)]


def start(
    bench: Bench,
    peers: Sequence[Peer],
    rows: list[list[Case]],
    restart_after: Callable[[int], float],
    *,
    over: float = 0,
) -> Started:
    """Starts the runs one after another, at even distances `over` so many seconds: what happens to all of them at one
    moment then finds each at another point of its interval. Returns when all have a token, and that time is over."""
    begun = time.monotonic()
    started: Started = []
    for index, row in enumerate(rows):
        tend_until(begun + over * index / len(rows), started)
        for peer, case in zip(peers, row, strict=True):
            running = bench.start(peer, case)
            running.restart_after = restart_after
            started.append((index, running))
    for _, running in started:
        bench.first_token(running)
    tend_until(begun + over, started)
    return started


def tend_until(moment: float, started: Started) -> None:
    """`moment` is a monotonic time."""
    while time.monotonic() < moment:
        for _, running in started:
            running.tend()
        wait_until(min(moment, time.monotonic() + 0.2))
