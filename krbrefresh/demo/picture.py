"""The picture that the demo draws."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections import deque
from typing import Any

from .story import Claim, Event, Story

BOLD, DIM, RED, GREEN, YELLOW, CYAN = "1", "2", "1;31", "32", "33", "1;36"  # ANSI's SGR numbers
_STYLES = {"": "", "news": CYAN, "bad": RED}
_ASCII = str.maketrans("█▒░▼└", "#=.v^")  # for an output that is not in UTF-8


class Picture:
    """What is seen: on a terminal a block that is drawn again and again in place, elsewhere a line for each event."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._live = sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"
        self._colour = self._live and not os.environ.get("NO_COLOR")
        self._unicode = "utf" in (sys.stdout.encoding or "").lower()
        self._events: deque[Event] = deque(maxlen=8)
        self._height = 0

    def __enter__(self) -> Picture:
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._write("\x1b[?25h")

    def say(self, text: str, style: str = "") -> None:
        """A line that stays."""
        self._write(self._paint(text, style) + "\n")

    def event(self, event: Event) -> None:
        """Something has happened."""
        self._events.append(event)
        if not self._live:
            self.say(f"{event.at:5.1f} s  {event.text}")

    def draw(self, story: Story, *, last: bool = False) -> None:
        """Draws the block over the former one; the last one stays, without the events, to make room."""
        if not self._live:
            return
        columns, rows = shutil.get_terminal_size()
        lines = self._token(story.token, min(columns, 100) - 1)
        lines += ["", self._clip(self._numbers(story), columns)]
        room = rows - len(lines) - 2
        events = [] if last or room < 1 else list(self._events)[-room:]
        lines += [""] * bool(events)
        for event in events:
            lines.append(self._paint(self._clip(f"  {event.at:5.1f} s  {event.text}", columns), _STYLES[event.style]))
        up = f"\x1b[{self._height}A" if self._height else "\x1b[?25l"
        self._write("\r" + up + "".join(f"{line}\x1b[K\n" for line in lines) + "\x1b[J")
        self._height = len(lines)

    def _token(self, token: dict[str, Any], columns: int) -> list[str]:
        """The token's name and its life: a bar from start to expiry, with now and the expiry window marked."""
        if not token:
            return ["  waiting for the first token", "", "", ""]
        width = columns - 4
        starts, opens_at, expires = token["life"]
        now = min(max(time.time(), starts), expires)
        scale = width / max(expires - starts, 1)
        elapsed, opens = round((now - starts) * scale), round((opens_at - starts) * scale)
        left = f"{expires - now:.1f} s left"
        here = max(elapsed - 1, 0)
        pointer = f"{left} ▼".rjust(here + 1) if here >= len(left) + 1 else " " * here + f"▼ {left}"
        bar = (
            self._paint("█" * min(elapsed, opens), GREEN)
            + self._paint("█" * (elapsed - opens), YELLOW)
            + self._paint("░" * (opens - elapsed), DIM)
            + self._paint("▒" * (width - max(elapsed, opens)), YELLOW)
        )
        return [
            "  " + self._paint(self._clip(f"{token['principal']}, generation {token['generation']}", width), BOLD),
            "   " + self._clip(pointer, width),
            f"  [{bar}]",
            self._paint(self._clip(" " * (opens + 3) + "└ expiry window", columns), YELLOW),
        ]

    def _numbers(self, story: Story) -> str:
        elapsed = time.monotonic() - (story.first_token or time.monotonic())
        return (
            f"  {min(elapsed, self._seconds):.0f} of {self._seconds:.0f} s    refreshes {max(story.refreshes, 0)}"
            "    contexts {contexts}, failed {failed}    samples {samples}, invalid {invalid}".format(**story.counts)
        )

    def summary(self, claims: list[Claim]) -> bool:
        """Each claim with its verdict, and whether none failed."""
        verdicts = {True: ("ok", GREEN), False: ("FAILED", RED), None: ("not shown", YELLOW)}
        self.say("")
        for claim in claims:
            verdict, style = verdicts[claim.held]
            self._write(f"  {claim.name:<12} {claim.text:<52} " + self._paint(verdict, style) + "\n")
        failed = [claim.name for claim in claims if claim.held is False]
        self.say("")
        self.say("FAILED: " + ", ".join(failed) if failed else "All of this held.", RED if failed else GREEN)
        return not failed

    def _clip(self, text: str, columns: int) -> str:
        return text[: max(columns - 1, 0)]

    def _paint(self, text: str, style: str) -> str:
        return f"\x1b[{style}m{text}\x1b[0m" if style and text and self._colour else text

    def _write(self, text: str) -> None:
        sys.stdout.write(text if self._unicode else text.translate(_ASCII))
        sys.stdout.flush()
