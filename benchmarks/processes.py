"""What processes cost, from /proc."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Cost:
    """Of several processes together. Memory in MiB: `private` is what would be free if they ended (USS), `share` has
    their part of what they share with others besides (PSS). `wakeups`: how often a thread of them has been woken up."""

    resident: float
    private: float
    share: float
    wakeups: int
    busy: float  # milliseconds of processor time

    @classmethod
    def of(cls, pids: Iterable[int]) -> Cost:
        total = cls(0, 0, 0, 0, 0)
        for pid in pids:
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
                total = total + cls._of_one(pid)
        return total

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.resident + other.resident,
            self.private + other.private,
            self.share + other.share,
            self.wakeups + other.wakeups,
            self.busy + other.busy,
        )

    @classmethod
    def _of_one(cls, pid: int) -> Cost:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
        sizes = {name: int(size) / 1024 for name, size in re.findall(r"^(\w+):\s+(\d+) kB", text, re.MULTILINE)}
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return cls(
            sizes["Rss"],
            sizes["Private_Clean"] + sizes["Private_Dirty"],
            sizes["Pss"],
            sum(map(_voluntary_switches, Path(f"/proc/{pid}/task").iterdir())),
            (int(fields[11]) + int(fields[12])) * 1000 / os.sysconf("SC_CLK_TCK"),
        )


def spent(pid: int) -> float:
    """Milliseconds of processor time of a process and of its children, those that have ended included."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    own = sum(map(int, fields[11:15])) * 1000 / os.sysconf("SC_CLK_TCK")
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return own + sum(_or_nothing(int(child)) for child in children)


def _or_nothing(pid: int) -> float:
    try:
        return spent(pid)
    except (FileNotFoundError, ProcessLookupError):  # it has just ended, and counts as its parent's
        return 0.0


def _voluntary_switches(task: Path) -> int:
    return int(re.findall(r"^voluntary_ctxt_switches:\s+(\d+)", (task / "status").read_text(), re.MULTILINE)[0])
