"""From the records of a scenario to what a table says of them."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

Values = Mapping[tuple[str, str], Sequence[float]]  # by peer and figure, one for each run

LEVEL = 0.05  # medians that differ by less than this share are called level


def values(result: Mapping[str, Any]) -> dict[tuple[str, str], list[float]]:
    found: dict[tuple[str, str], list[float]] = {}
    for record in result["records"]:
        found.setdefault((record["peer"], record["figure"]), []).append(record["value"])
    return found


def number(value: float, digits: int) -> str:
    """With thousands apart, and no minus before a zero."""
    text = f"{value:,.{digits}f}"
    return text.removeprefix("-") if float(text.replace(",", "")) == 0 else text


def spread(samples: Sequence[float], digits: int, *, mean: bool = False) -> str:
    """The median, and the range where there is one; the mean besides, for what happens in some runs only."""
    low, middle, high = (number(each, digits) for each in (min(samples), statistics.median(samples), max(samples)))
    if low == high:
        return middle
    text = f"{middle} ({low} to {high})"
    return f"{text}, mean {number(statistics.fmean(samples), max(digits, 1))}" if mean else text


def centre(samples: Sequence[float], *, mean: bool = False) -> float:
    """What peers are compared by."""
    return statistics.fmean(samples) if mean else statistics.median(samples)


def ratio(theirs: float, ours: float) -> str:
    """How many times ours theirs is, in two digits; nothing where ours is nothing."""
    if ours <= 0:
        return "-"
    times = theirs / ours
    return f"{times:,.0f}" if times >= 10 else f"{times:.1f}" if times >= 1 else f"{times:.2g}"


def compare(theirs: float, ours: float) -> int:
    """-1 where theirs is less, 0 where they are level, 1 where it is more."""
    if abs(theirs - ours) <= LEVEL * max(abs(theirs), abs(ours)):
        return 0
    return -1 if theirs < ours else 1
