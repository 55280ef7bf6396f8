"""A thousand credentials: one krbrefresh, and a thousand k5start."""

from __future__ import annotations

import time

from benchmarks.peers import KRBREFRESH, SAFE_K5START
from benchmarks.processes import Cost
from benchmarks.realm import Bench, all_valid
from benchmarks.records import Scale
from benchmarks.scenarios.fleet import Fleet
from krbrefresh.refresher.child import KEPT_FOR

LANE, ROOT = "quiet", False
PEERS = [KRBREFRESH.name, SAFE_K5START.name]
COUNT = 1000


def run(bench: Bench, scale: Scale) -> None:
    accounts = bench.accounts(scale.of(COUNT, 20))
    for index in range(scale.runs):
        began = time.perf_counter()
        fleet = Fleet(bench, accounts)
        running = fleet.start()
        all_valid(fleet.ccaches)
        bench.results.add(KRBREFRESH.name, index, "all first tokens", time.perf_counter() - began, "s")
        time.sleep(scale.of(KEPT_FOR + 2, 0))  # the children that wait for more work have ended
        scrapes = [fleet.get("metrics")[1] for _ in range(3)]
        _memory(bench, KRBREFRESH.name, index, running.tree())
        bench.results.add(KRBREFRESH.name, index, "one /metrics", min(scrapes), "ms")
        running.kill()

        began = time.perf_counter()
        fleet_of_k5start = [bench.start(SAFE_K5START, bench.case(*account)) for account in accounts]
        all_valid([each.case.ccache for each in fleet_of_k5start])
        bench.results.add(SAFE_K5START.name, index, "all first tokens", time.perf_counter() - began, "s")
        _memory(bench, SAFE_K5START.name, index, [each.pid for each in fleet_of_k5start])
        bench.stop_all()
    bench.results.extra = {"count": len(accounts)}


def _memory(bench: Bench, name: str, index: int, pids: list[int]) -> None:
    cost = Cost.of(pids)
    bench.results.add(name, index, "resident", cost.resident, "MiB")
    bench.results.add(name, index, "private", cost.private, "MiB")
    bench.results.add(name, index, "proportional", cost.share, "MiB")
    bench.results.add(name, index, "processes", len(pids), "")
