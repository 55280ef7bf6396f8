"""What the KDC hears of many tokens that were issued together, with tickets of two minutes: AS exchanges for each token
and life, and the most in one second once all are issued. The KDC's own log is counted."""

from __future__ import annotations

import collections
import time
from pathlib import Path

from benchmarks.peers import KINIT_LOOP, KRBREFRESH, SAFE_K5START
from benchmarks.realm import Bench, all_valid, wait_until
from benchmarks.records import Scale
from benchmarks.scenarios.fleet import Fleet

LANE, ROOT = "waiting", False
EACH = [SAFE_K5START, KINIT_LOOP]
PEERS = [KRBREFRESH.name, *(peer.name for peer in EACH)]
LIFE, INTERVAL = 120, 60


def run(bench: Bench, scale: Scale) -> None:
    count, seconds = scale.of(100, 10), scale.of(300.0, 5.0)
    life, interval = scale.of(LIFE, 4), scale.of(INTERVAL, 2)
    group: dict[str, tuple[str, int]] = {}  # of each principal: whose it is, and in which run
    paths: list[Path] = []
    for index in range(scale.runs):
        fleet = Fleet(bench, bench.accounts(count, life=f"{life} seconds"))
        group |= {principal: (KRBREFRESH.name, index) for principal, _ in fleet.accounts}
        fleet.start()
        paths += fleet.ccaches
        for peer in EACH:
            for principal, keytab in bench.accounts(count, life=f"{life} seconds"):
                group[principal] = (peer.name, index)
                paths.append(bench.start(peer, bench.case(principal, keytab, interval)).case.ccache)
    all_valid(paths)
    since = int(time.time()) + 2  # whole seconds, as the log has them
    wait_until(time.monotonic() + seconds + 3)
    asked: dict[tuple[str, int], collections.Counter[int]] = collections.defaultdict(collections.Counter)
    first: dict[tuple[str, int], int] = {}
    for request in bench.requests():
        if request.outcome == "ISSUE" and request.principal in group:
            which = group[request.principal]
            first.setdefault(which, request.at)
            asked[which][request.at] += 1
    for (name, index), counts in asked.items():
        later = [number for at, number in counts.items() if since <= at < since + seconds]
        bench.results.add(name, index, "exchanges per token and life", sum(later) / count * life / seconds, "")
        bench.results.add(name, index, "largest burst", max(later, default=0), "in 1 s")
    bench.results.extra = {
        "count": count,
        "life": life,
        "seconds": seconds,
        # Of the first run, for the plot: [second since its first token, exchanges].
        "per_second": {name: sorted((at - first[name, 0], n) for at, n in asked[name, 0].items()) for name in PEERS},
    }
