"""One module for each scenario. `run(bench, scale)` adds its figures to `bench.results`.

`LANE` says what may go on at the same time: `waiting` ones all run at once, since they wait nearly all the time; `busy`
ones run one after another beside them, since what they count does not depend on the speed; `quiet` ones have the
machine for themselves. `PEERS` are the names that figures are due for; `ROOT` is true where root is needed.
"""

from __future__ import annotations

import importlib
from typing import Any

NAMES = [
    "outage",
    "shortened",
    "rotation",
    "requests",
    "schedule",
    "term",
    "full",
    "kill",
    "torn",
    "first",
    "idle",
    "thousand",
    "scale",
    "client",
]


def scenario(name: str) -> Any:
    return importlib.import_module(f"benchmarks.scenarios.{name}")
