"""What a peer costs at rest, with one credential whose ticket lives for ten hours: memory of it and all that it has
started, wake-ups and processor time. libgssapi works in the worker's own process, and has none."""

from __future__ import annotations

import os
import time

from benchmarks.peers import AIRFLOW_KERBEROS, KINIT_LOOP, KRBREFRESH, SAFE_K5START, SIDECAR, Krbrefresh
from benchmarks.processes import Cost
from benchmarks.realm import Bench
from benchmarks.records import Scale

LANE, ROOT = "quiet", False
SILENT = Krbrefresh("krbrefresh, no HTTP", listen="")
MEASURED = [KRBREFRESH, SILENT, SAFE_K5START, KINIT_LOOP, SIDECAR, AIRFLOW_KERBEROS]
PEERS = [peer.name for peer in MEASURED]
# As a container has it: mounts of others, which krbrefresh hears of, are none of its business there.
ALONE = ["unshare", "--mount", "--propagation", "private"]


def run(bench: Bench, scale: Scale) -> None:
    settle, seconds = scale.of((8.0, 60.0), (0.5, 1.0))
    [account] = bench.accounts(1)
    alone = ALONE if os.geteuid() == 0 else []
    started = [
        (index, bench.start(peer, bench.case(*account), prefix=alone))
        for index in range(scale.runs)
        for peer in MEASURED
    ]
    for _, running in started:
        bench.first_token(running)
    time.sleep(settle)  # what follows the first token is over
    trees = [running.tree() for _, running in started]
    before = [Cost.of(tree) for tree in trees]
    time.sleep(seconds)
    for (index, running), tree, then in zip(started, trees, before, strict=True):
        now, name = Cost.of(tree), running.peer.name
        bench.results.add(name, index, "resident", now.resident, "MiB")
        bench.results.add(name, index, "private", now.private, "MiB")
        bench.results.add(name, index, "proportional", now.share, "MiB")
        bench.results.add(name, index, "wake-ups", (now.wakeups - then.wakeups) * 60 / seconds, "a minute")
        bench.results.add(name, index, "processor", (now.busy - then.busy) * 60 / seconds, "ms a minute")
    bench.results.extra = {"seconds": seconds}
