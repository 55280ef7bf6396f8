"""The KDC gives shorter tickets than was asked for: 40 seconds where 120 were expected and the peers were set for that,
as when somebody lowers a principal's maximum life. Invalid time over a fixed run, the KDC up all the time."""

from __future__ import annotations

import time

from benchmarks.instances import cases, start, tend_until
from benchmarks.peers import PEERS as ALL
from benchmarks.peers import at_once
from benchmarks.realm import Bench
from benchmarks.records import Scale
from benchmarks.sampling import Sampler, invalid
from benchmarks.scenarios.outage import INTERVAL

LANE, ROOT = "waiting", False
PEERS = [peer.name for peer in ALL]
LIFE = 40  # seconds


def run(bench: Bench, scale: Scale) -> None:
    seconds = scale.of(240.0, 15.0)
    life = scale.of(LIFE, 4)
    rows = cases(bench, ALL, scale.runs, life=life, interval=INTERVAL)
    with Sampler(case.ccache for row in rows for case in row) as sampler:
        started = start(bench, ALL, rows, at_once)
        zero = time.monotonic()
        tend_until(zero + seconds, started)
    for index, running in started:
        share = invalid(sampler.changes[running.case.ccache], zero, zero + seconds) / seconds
        bench.results.add(running.peer.name, index, "invalid", 100 * share, "%")
    bench.results.extra = {"life": life, "interval": INTERVAL, "seconds": seconds}
