"""The account's key changes at the KDC, and the new keytab comes a while later. One that ends is started again as a
kubelet would: after 10, 20, 40 ... seconds."""

from __future__ import annotations

import os
import time

from benchmarks.instances import cases, start, tend_until
from benchmarks.peers import PEERS as ALL
from benchmarks.peers import kubelet
from benchmarks.realm import Bench, Request
from benchmarks.records import Scale
from benchmarks.sampling import Sampler, invalid
from benchmarks.scenarios.outage import INTERVAL, LIFE
from tests.faults import kadmin_all

LANE, ROOT = "waiting", False
PEERS = [peer.name for peer in ALL]


def run(bench: Bench, scale: Scale) -> None:
    settle, stale, after = scale.of((20.0, 180.0, 150.0), (2.0, 8.0, 12.0))
    rows = cases(bench, ALL, scale.runs, life=LIFE, interval=scale.of(INTERVAL, 3))
    with Sampler(case.ccache for row in rows for case in row) as sampler:
        started = start(bench, ALL, rows, kubelet, over=scale.of(INTERVAL, 2))
        tend_until(time.monotonic() + settle, started)
        # Random new keys, in keytabs that are not where the peers look.
        kadmin_all(bench.realm, [f"ktadd -k {case.keytab}.new {case.principal}" for row in rows for case in row])
        changed_at = time.time()
        tend_until(time.monotonic() + stale, started)
        for _, running in started:
            os.rename(f"{running.case.keytab}.new", running.case.keytab)
        delivered, delivered_at = time.monotonic(), time.time()
        tend_until(delivered + after, started)
    requests = bench.requests()
    for index, running in started:
        case, name = running.case, running.peer.name
        refused = attempts(requests, case.principal, changed_at, delivered_at)
        bench.results.add(name, index, "attempts refused", refused, "")
        without = invalid(sampler.changes[case.ccache], delivered, delivered + after)
        bench.results.add(name, index, "invalid after the new keytab", without, "s")
    bench.results.extra = {"stale": stale, "after": after, "life": LIFE, "interval": INTERVAL}


def attempts(requests: list[Request], principal: str, begin: float, end: float) -> int:
    """How often the KDC refused this principal's key between these two times."""
    return sum(
        request.principal == principal and request.outcome == "PREAUTH_FAILED" and begin - 1 <= request.at <= end
        for request in requests
    )
