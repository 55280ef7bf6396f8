"""What has happened in the demo, as its processes tell it, and what that proves."""

from __future__ import annotations

import datetime
import json
import time
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from .staging import Cast

LEAST_REFRESHES = 3  # after the first token
LEAST_CONTEXTS = 10
FIRST_TOKEN_WITHIN = 15.0
TOKEN_MODE = 0o440  # what the refresher publishes with by default

MESSAGE = 1 << 16  # bytes; no GSSAPI token here is longer
COUNTS = ("samples", "invalid", "changed", "contexts", "failed")  # what the worker counts


class Claim(NamedTuple):
    """A line of the summary; `held` is None for what could not be shown."""

    name: str
    text: str
    held: bool | None


class Event(NamedTuple):
    """Something to tell: when, after the start; `news`, `bad` or neither; and what."""

    at: float
    style: str
    text: str


@dataclass
class Story:
    """What the refresher's log and the worker's reports say so far."""

    one_user: bool
    started: float = field(default_factory=time.monotonic)
    first_token: float | None = None
    refreshes: int = -1  # the first token is none
    expires_at: float = 0.0
    keytab: dict[str, Any] = field(default_factory=dict)
    token: dict[str, Any] = field(default_factory=dict)  # as the worker sees it
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(COUNTS, 0))
    ended: set[str] = field(default_factory=set)

    def over(self, seconds: float) -> bool:
        """Whether there is nothing more to come: time is up, there is no first token, or a process has ended."""
        since, most = (self.first_token, seconds) if self.first_token else (self.started, FIRST_TOKEN_WITHIN)
        return bool(self.ended) or time.monotonic() - since > most

    def hear(self, who: str, line: str | None) -> Event | None:
        """Takes in a line of what the refresher, the worker or the service says; the event that it is, if it is one."""
        at = time.monotonic() - self.started
        if line is None:
            self.ended.add(who)
            return None
        try:
            said = json.loads(line)
            name = said["event"]
        except (ValueError, TypeError, KeyError):  # a traceback's, for one
            return Event(at, "bad", f"{who}: {line.strip()}")
        self.counts.update(said.get("counts", {}))
        if name == "published":
            return Event(at, "news", self._published(said))
        if name == "token":
            self.token = said
        elif name == "keytab":
            self.keytab = said
            style = "bad" if not said["refused"] and not self.one_user else ""
            return Event(at, style, f"the worker tries to read the keytab: {said['message']}")
        elif name == "context":
            text = f"demo/localhost accepted {said['initiator']} in {said['ms']:.1f} ms"
            return Event(at, "", f"context {self.counts['contexts']}: {text}")
        elif name == "trouble" or said.get("level") in ("warning", "error"):
            words = [said[key] for key in ("reason", "message") if key in said]
            return Event(at, "bad", ": ".join([who, *([] if name == "trouble" else [name]), *words]))
        return None

    def _published(self, said: dict[str, Any]) -> str:
        left = self.expires_at - _timestamp(said["time"])
        self.expires_at = _timestamp(said["expires_at"])
        self.refreshes += 1
        if self.refreshes:
            return f"refresh {self.refreshes}: generation {said['generation']}, {left:.1f} s before expiry"
        self.first_token = time.monotonic()
        return f"first token: generation {said['generation']}, {said['principal']}"

    def claims(self, cast: Cast) -> list[Claim]:
        """What the demo is to show, and whether it did."""
        samples, invalid, changed, contexts, failed = (self.counts[key] for key in COUNTS)
        refreshes = max(self.refreshes, 0)
        enough = contexts >= LEAST_CONTEXTS and not failed
        mode = f"{TOKEN_MODE:04o} and group {cast.group} in every sample, {changed} others"
        refused = bool(self.keytab.get("refused"))
        keytab = f"{'' if refused else 'not '}refused to the worker ({self.keytab.get('message', 'it never tried')})"
        if self.one_user:
            keytab = "one user runs all three, and can read it"
        return [
            Claim("refreshes", f"{refreshes} (at least {LEAST_REFRESHES})", refreshes >= LEAST_REFRESHES),
            Claim("contexts", f"{contexts} (at least {LEAST_CONTEXTS}), {failed} failed", enough),
            Claim("samples", f"{samples} of the token, {invalid} invalid", samples > 0 and not invalid),
            Claim("permissions", mode, samples > 0 and not changed),
            Claim("keytab", keytab, None if self.one_user else refused),
        ]


def _timestamp(moment: str) -> float:
    return datetime.datetime.fromisoformat(moment.replace("Z", "+00:00")).timestamp()
