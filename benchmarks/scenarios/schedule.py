"""What a KDC hears in two days of 1,000 tokens of ten hours that were all issued in the same minute. Reckoned, not
measured: for krbrefresh by its own policy with random numbers, for the peers by the schedules that their documentation
and their code have. `requests` measures the same with short tickets.

Where a peer's interval is the user's choice, it is the default or what is published with it: an hour for `kinit` loops
and sidecars and for `airflow kerberos` (reinit_frequency = 3600), ten minutes for k5start (-K 10, as its manual's
example).
"""

from __future__ import annotations

import collections
import itertools
import random
from collections.abc import Callable

from benchmarks.peers import AIRFLOW_KERBEROS, KINIT_LOOP, KRBREFRESH, LIBGSSAPI, SAFE_K5START, SIDECAR
from benchmarks.realm import Bench
from benchmarks.records import Scale
from krbrefresh.refresher import policy

LANE, ROOT = "waiting", False
LIFE, DAYS, TOKENS, WITHIN = 36000.0, 2 * 86400.0, 1000, 60.0  # seconds

Next = Callable[[float, random.Random], float]


def krbrefresh(issued: float, dice: random.Random) -> float:
    window = policy.window(issued, issued + LIFE, policy.Share())
    return policy.first_try(window, issued, dice.random())


def hourly(issued: float, dice: random.Random) -> float:
    return issued + 3600


def airflow(issued: float, dice: random.Random) -> float:
    return issued + 3600 + 1.5  # it sleeps that long between kinit and kinit -R, which is a TGS exchange


def k5start(issued: float, dice: random.Random) -> float:
    """Wakes up every ten minutes; refreshes if the ticket would end within two minutes of the next time."""
    return next(issued + wake for wake in itertools.count(600, 600) if LIFE - wake <= 600 + 120)


def libgssapi(issued: float, dice: random.Random) -> float:
    return issued + LIFE / 2  # with a worker that always has something to do


SCHEDULES: dict[str, Next] = {
    KRBREFRESH.name: krbrefresh,
    SAFE_K5START.name: k5start,
    KINIT_LOOP.name: hourly,
    SIDECAR.name: hourly,
    AIRFLOW_KERBEROS.name: airflow,
    LIBGSSAPI.name: libgssapi,
}
PEERS = list(SCHEDULES)


def run(bench: Bench, scale: Scale) -> None:
    for index in range(scale.runs):
        for name, schedule in SCHEDULES.items():
            dice = random.Random(index)
            seconds: collections.Counter[int] = collections.Counter()
            lived, tokens = 0.0, scale.of(TOKENS, 50)
            for _ in range(tokens):
                moment = issued = dice.uniform(0, WITHIN)
                while moment < DAYS:
                    moment = schedule(moment, dice)
                    seconds[int(moment)] += 1
                lived += moment - issued
            minutes: collections.Counter[int] = collections.Counter()
            for second, count in seconds.items():
                minutes[second // 60] += count
            bench.results.add(name, index, "exchanges", seconds.total() / lived * tokens * 3600, "an hour")
            bench.results.add(name, index, "largest burst in a second", max(seconds.values()), "")
            bench.results.add(name, index, "largest burst in a minute", max(minutes.values()), "")
