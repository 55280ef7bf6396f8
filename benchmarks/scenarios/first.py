"""From the start of the program to its first valid token, in turn, each in a new directory."""

from __future__ import annotations

import time

from benchmarks.peers import PEERS as ALL
from benchmarks.realm import Bench
from benchmarks.records import Scale

LANE, ROOT = "quiet", False
PEERS = [peer.name for peer in ALL]


def run(bench: Bench, scale: Scale) -> None:
    [account] = bench.accounts(1)
    for index in range(scale.runs):
        for peer in ALL:
            case = bench.case(*account)
            began = time.perf_counter()
            running = bench.start(peer, case)
            bench.first_token(running, every=0.0005)
            bench.results.add(peer.name, index, "first token", (time.perf_counter() - began) * 1000, "ms")
            running.kill()
