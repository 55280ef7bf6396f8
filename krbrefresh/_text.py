"""How lengths of time and moments are written for people, and read from them."""

from __future__ import annotations

import time

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def seconds_text(seconds: float) -> str:
    """A length of time in its two largest units: `45s`, `9h 58m`, `6d 3h`; a negative one as its absolute value."""
    if abs(seconds) == float("inf"):
        return "for ever"
    left = int(abs(seconds))
    parts = []
    for unit in ("d", "h", "m", "s"):
        count, left = divmod(left, _UNITS[unit])
        if count:
            parts.append(f"{count}{unit}")
        elif parts:
            break
    return " ".join(parts[:2]) or "0s"


def printable(text: str) -> str:
    """A text for a terminal or a log: what could steer it, in a name from a file, is written as an escape."""
    return text if text.isprintable() else text.encode("unicode_escape").decode("ascii")


def moment_text(timestamp: float) -> str:
    """A Unix time as RFC 3339 in UTC, to the second."""
    try:
        return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(timestamp))
    except (OverflowError, ValueError, OSError):  # a time that no calendar of this machine reaches
        return str(timestamp)


def parse_duration(text: str) -> float:
    """`90s`, `10m`, `8h`, `7d` or a number of seconds, as seconds. Raises ValueError for anything else."""
    text = text.strip()
    unit = _UNITS.get(text[-1:])
    number = text if unit is None else text[:-1]
    if not number.isascii() or not number.replace(".", "", 1).isdigit():
        raise ValueError(f"{text!r} is not a duration: write 90s, 10m, 8h, 7d or a number of seconds")
    seconds = float(number) * (unit or 1)
    if seconds == float("inf"):
        raise ValueError("a duration has an end")
    return seconds
