"""The KDC freezes, for a quarter and for half of a ticket's life, at moments spread over a refresh interval.

Every peer refreshes at half of its tickets' life, as libgssapi and k5start do of themselves here; krbrefresh is there
with its default, the last third, too. One that ends is started again after a second.
"""

from __future__ import annotations

import json
import time

from benchmarks.instances import cases, start, tend_until
from benchmarks.peers import PEERS as ALL
from benchmarks.peers import Krbrefresh, Running, at_once
from benchmarks.realm import Bench
from benchmarks.records import Scale
from benchmarks.sampling import Sampler, invalid, spans

LANE, ROOT = "waiting", False
AT_HALF = Krbrefresh("krbrefresh, window 50%", expiry_window="50%")
MEASURED = [ALL[0], AT_HALF, *ALL[1:]]
PEERS = [peer.name for peer in MEASURED]
INSTANCES = 2  # for each run: where in its interval a freeze hits is what matters
LIFE, INTERVAL = 120, 60  # seconds; k5start cannot be told less than a minute


def run(bench: Bench, scale: Scale) -> None:
    # Seconds after the last start: healthy until the first; frozen from, to; frozen from, to; the end.
    settle, *marks = scale.of([10.0, 70, 100, 230, 290, 430], [2.0, 4, 5, 6, 8, 12])
    rows = cases(bench, MEASURED, INSTANCES * scale.runs, life=LIFE, interval=scale.of(INTERVAL, 3))
    with Sampler(case.ccache for row in rows for case in row) as sampler:
        started = start(bench, MEASURED, rows, at_once, over=scale.of(INTERVAL, 2))
        zero = time.monotonic() + settle
        tend_until(zero + marks[0], started)
        for frozen, thawed, then in ((marks[0], marks[1], marks[2]), (marks[2], marks[3], marks[4])):
            tend_until(zero + frozen, started)
            bench.freeze()
            tend_until(zero + thawed, started)
            bench.thaw()
            tend_until(zero + then, started)
    phases = {
        "healthy": (zero, zero + marks[0]),
        "short freeze": (zero + marks[0], zero + marks[2]),
        "long freeze": (zero + marks[2], zero + marks[4]),
    }
    timeline: dict[str, list[list[tuple[float, float, str]]]] = {}
    for index, running in started:
        changes, name = sampler.changes[running.case.ccache], running.peer.name
        for phase, (since, until) in phases.items():
            bench.results.add(name, index, f"invalid, {phase}", invalid(changes, since, until), "s")
        bench.results.add(name, index, "ended by itself", running.deaths, "")
        if name == "libgssapi":
            bench.results.add(name, index, "longest stall of the worker", longest_stall(running), "s")
        seen = spans(changes, zero, zero + marks[-1])
        timeline.setdefault(name, []).append(
            [(round(since - zero, 2), round(until - zero, 2), why) for since, until, why in seen]
        )
    bench.results.extra = {
        "life": LIFE,
        "interval": INTERVAL,
        "frozen": [[marks[0], marks[1]], [marks[2], marks[3]]],
        "until": marks[-1],
        "timeline": timeline,
        "longest_gap": round(sampler.longest_gap, 3),
    }


def longest_stall(running: Running) -> float:
    """For how long the worker that refreshes for itself could do nothing else."""
    lines = [line for line in running.log.read_text().splitlines() if line.startswith("{")]
    return max((json.loads(line)["took"] for line in lines), default=0.0)
