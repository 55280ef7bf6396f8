"""How cost grows with the number of credentials in one process: at rest, beside a volume that is busy, when standing
by, and while all of them are refreshed in their windows and at once."""

from __future__ import annotations

import os
import re
import statistics
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.peers import Running
from benchmarks.processes import Cost, spent
from benchmarks.realm import SOON, Bench, all_valid
from benchmarks.records import Scale
from benchmarks.scenarios.fleet import Fleet
from benchmarks.scenarios.idle import ALONE
from krbrefresh.refresher.child import KEPT_FOR
from tests.support import eventually

LANE, ROOT = "quiet", False
RUNS = 1  # of ten minutes
# Those of a row are measured at the same time: what a few cost does not disturb.
COUNTS = ((1, 10, 100, 1000), (5000,))
MOST = 5  # in a trial, where all are measured at the same time
LIFE = 300  # seconds; half of it is the window, and its first 30 % the time in which all are refreshed
WINDOW = 0.5
PEERS = [f"{count:,}" for row in COUNTS for count in row]
_PREFIX = ALONE if os.geteuid() == 0 else []
_PER_CREDENTIAL = r'^krbrefresh_{}{{credential="([^"]+)"}} (\S+)$'


def run(bench: Bench, scale: Scale) -> None:
    rows = scale.of(COUNTS, [[count for row in COUNTS for count in row]])
    life = scale.of(LIFE, 20)
    accounts = bench.accounts(scale.of(max(count for row in rows for count in row), MOST))
    for index in range(min(scale.runs, RUNS)):
        for row in rows:
            each_of = [_Measured(bench, f"{count:,}", accounts[:count], life, index) for count in row]
            for each in each_of:
                each.begin(scale.of(KEPT_FOR + 1, 0.1))
            _measure(each_of, scale.of(20.0, 0.5))
            for each in each_of:
                each.answers()
            _wave(each_of)
            for each in each_of:
                each.all_at_once()
            bench.stop_all()


def _measure(each_of: list[_Measured], seconds: float) -> None:
    """What they cost while nothing is due: alone, with a stand-by beside each, and with a file a second that somebody
    makes in one of the token directories."""

    def cost(figure: str, pids: list[int], what: Callable[[], None] = lambda: None) -> None:
        before = [spent(pid) for pid in pids]
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            what()
            time.sleep(min(1.0, left))
        for each, pid, then in zip(each_of, pids, before, strict=True):
            each.add(figure, (spent(pid) - then) / seconds / 10, "% of a core")

    def touch() -> None:
        for each in each_of:
            (each.ccaches[0].parent / "somebody's").write_text("x")

    pids = [each.running.pid for each in each_of]
    cost("at rest", pids)
    cost("a file a second", pids, touch)
    standing_by = [each.stand_by() for each in each_of]
    cost("standing by", [each.pid for each in standing_by])
    for each in standing_by:
        each.kill()


def _wave(each_of: list[_Measured]) -> None:
    """All are refreshed in their windows, once."""
    last = max(each.plan() for each in each_of)
    time.sleep(max(0.0, last - time.time() + 1))
    for each in each_of:
        each.done()


class _Measured(Fleet):
    def __init__(self, bench: Bench, name: str, accounts: list[tuple[str, Path]], life: int, index: int) -> None:
        super().__init__(bench, accounts, lifetime=f"{life}s", expiry_window=f"{WINDOW:.0%}")
        self.name, self.index = name, index

    def add(self, figure: str, value: float, unit: str) -> None:
        self.bench.results.add(self.name, self.index, figure, value, unit)

    def begin(self, settle: float) -> None:
        began = time.monotonic()
        self.start(prefix=_PREFIX)
        all_valid(self.ccaches)
        self.add("all first tokens", time.monotonic() - began, "s")
        time.sleep(settle)
        self.add("private", Cost.of(self.running.tree()).private, "MiB")

    def stand_by(self) -> Running:
        """A second refresher with the same settings, which has found that another one leads."""
        before = self._logged("standing_by")
        other = self.bench.start(self.running.peer, self.case, prefix=_PREFIX)
        wanted = before + len(self.accounts)
        eventually(lambda: self._logged("standing_by") >= wanted, within=60, every=0.2, what="a stand-by")
        time.sleep(2)
        return other

    def answers(self) -> None:
        for path in ("metrics", "readyz", ""):
            answers = [self.get(path) for _ in range(5)]
            self.add(f"/{path}", statistics.median(took for _, took in answers), "ms")
            self.add(f"/{path} size", len(answers[0][0]) / 1024, "KiB")

    def _moments(self, name: str) -> dict[str, float]:
        text = self.get("metrics")[0].decode()
        return {which: float(value) for which, value in re.findall(_PER_CREDENTIAL.format(name), text, re.MULTILINE)}

    def plan(self) -> float:
        """Notes when each is due; when the last one is, as a Unix time."""
        self.planned = self._moments("next_refresh_timestamp_seconds")
        assert len(self.planned) == len(self.accounts)
        assert min(self.planned.values()) > time.time(), "the first is due before this is ready"
        self.spent, self.published = spent(self.running.pid), self._logged("published")
        return max(self.planned.values())

    def done(self) -> None:
        """How late after the moment that was planned each was published."""
        wanted = self.published + len(self.planned)
        eventually(lambda: self._logged("published") >= wanted, within=SOON, every=0.2, what="all published")
        busy, count = spent(self.running.pid) - self.spent, self._logged("published") - self.published
        done = self._moments("last_success_timestamp_seconds")
        late = sorted(done[name] - moment for name, moment in self.planned.items())
        self.add("late, median", statistics.median(late) * 1000, "ms")
        self.add("late, p99", late[int(len(late) * 0.99)] * 1000, "ms")
        self.add("processor per refresh", busy / count, "ms")

    def all_at_once(self) -> None:
        """USR1: the rate at which they can be refreshed at all."""
        before, began = self._logged("published"), time.monotonic()
        self.running.refresh()
        wanted = before + len(self.accounts)
        eventually(lambda: self._logged("published") >= wanted, within=SOON, every=0.02, what="all published")
        self.add("all at once", len(self.accounts) / (time.monotonic() - began), "a second")

    def _logged(self, event: str) -> int:
        """How often, by it and by one that stands by."""
        return self.running.log.read_bytes().count(f'"{event}"'.encode())
