"""What a soak's figures mean: which invalid samples are excused, and which slopes are a leak. Pure.

Times are Unix seconds. A sample that finds no valid token is excused only by an outage that lasted longer than the
refresher's policy can bridge:

- An outage is a fault that keeps the KDC, the volume's space, the tokens themselves or the leader away, from the moment
  before it was done to the moment after it was undone.
- It reaches on, for each credential, until the try that policy had planned when the outage ended: not a try longer.
  What was planned is read from the refresher's metrics, and may be no later than policy.py allows after so many
  failures. Where a leader was killed it reaches on for the standby's look at the lock, where the tokens were removed or
  a keytab was exchanged for a look at the files. To that comes ALLOWANCE, for an exchange and a publication.
- A KDC that is silent for more than a quarter of a second though nobody has stopped it, since its disk or its processor
  is not to be had, is such an outage, too: it is asked ten times a second by a process that has nothing to do with
  krbrefresh. It has a name of its own in the report.
- Outages of one credential that overlap are one outage.
- A token that has ended is excused by the outage that holds the sample, if that outage began before the token's first
  try, at the latest moment that policy may give it, was over. One that began later cannot have been the cause.
- A token that is missing is excused only where the outage that holds the sample has the removal of the tokens in it.
- Anything else is not excused: unreadable, corrupt, of another principal, older than one that was there before.

A machine that gives nobody a processor lets a token end, too. A process that has nothing to do with krbrefresh records
by how much it was late whenever it slept, and how long it takes to start what an exchange's child is. Where the
judgement above fails, it is made again with so much more allowance as that process was late in the seconds before; and
a token that has ended while such a start took longer than SLOW_START could not be had in time: with 50 tokens of 5
seconds, eight children at a time have 0.4 s for each. Either way the sample is `starved`, and counted apart; a run in
which there are more than a few says nothing, and its report says that.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

from krbrefresh.refresher import policy

ALLOWANCE = 1.0  # seconds: an exchange and its publication, one of dozens that are due at the same time; a sample's age
IN_FLIGHT = 2.0  # seconds in which a try that began before the end of an outage may still fail: libkrb5 asks again
#                  after one second
LOOK = 2.0 + 0.2  # seconds from an event to the look at the files (service.py, _LOOKS_APART and _SETTLE)
STARVED_BEFORE = 8.0  # seconds before a sample in which a late process counts: a token's life, and a few tries
SLOW_START = 0.4  # seconds
STARTS_BACK = 20  # of the starts: one follows the other
SHARE = policy.Share(fraction=0.5)  # the soak's expiry_window

BY_ITSELF = "kdc by itself"  # it was silent, and nobody had stopped it
NO_KDC, NO_SPACE, NO_TOKENS, NO_LEADER, NO_KEY = "kdc", "space", "tokens", "leader", "key"
EXCUSED, STARVED, UNEXCUSED = "excused", "starved", "unexcused"
OWN_WORK = ("copy", "context")  # what a worker itself makes of a valid token: nothing but starvation excuses it
OURS_TO_WAIT = (NO_KDC, BY_ITSELF, NO_SPACE)  # tries fail for as long as it lasts, and the next one is planned

Plan = tuple[int, float]  # failures in a row, and when the next try is due


@dataclass(frozen=True)
class Outage:
    """A fault that can keep a token from being refreshed; `group` are the credentials that it can touch."""

    kind: str
    began: float
    ended: float
    group: frozenset[str] = frozenset()
    fault: int = 0  # its number in the log of faults


@dataclass(frozen=True)
class Poll:
    """What the leaders' metrics said at a moment: of the credentials that fail, and which of the others have a token.
    One that is in neither was begun a moment ago, or its leader did not answer."""

    at: float
    failing: Mapping[str, Plan]
    well: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Last:
    """The last valid token that a worker has seen at a path, by its manifest and its file."""

    expires: float
    arrived: float

    @property
    def first_try(self) -> float:
        """The latest moment that policy may give its first refresh."""
        # A ticket's start has whole seconds and is no later than its arrival.
        window = policy.window(self.arrived, self.expires, SHARE)
        return policy.first_try(window, self.arrived, 1.0)


@dataclass(frozen=True)
class Reach:
    """An outage as one credential feels it."""

    outage: Outage
    until: float


def longest_wait(failures: int) -> float:
    """The longest wait that policy.retry gives after so many failures in a row of a transient reason."""
    return policy.retry(0.0, kind="transient", failures=failures, rejections=0, window=None, chance=1.0)


def planned(polls: Sequence[Poll], credential: str, ended: float) -> float:
    """Until when an outage that ended then holds up one credential: the end of the wait that was planned by then, or of
    the one that a try under way may still add."""
    start = bisect.bisect_left(polls, ended, key=lambda poll: poll.at)
    for poll in polls[start:]:
        if credential in poll.well:
            return poll.at
        failures, due = poll.failing.get(credential, (0, 0.0))
        if due > poll.at:
            return min(due, poll.at + longest_wait(failures))
        if poll.at > ended + IN_FLIGHT:  # a try has begun since, and has not succeeded
            break
    return ended + IN_FLIGHT


def reach(outage: Outage, credential: str, polls: Sequence[Poll]) -> Reach:
    """How long the outage holds this credential up, at the most."""
    if outage.kind in OURS_TO_WAIT:
        until = planned(polls, credential, outage.ended)
    elif outage.kind == NO_LEADER:
        until = outage.ended + policy.STANDBY_LOOK_EVERY
    else:
        until = outage.ended + LOOK
    return Reach(outage, until)


@dataclass(frozen=True)
class Stretch:
    """Outages of one credential that overlap, as one."""

    began: float
    until: float
    outages: tuple[Outage, ...]

    def has(self, kind: str) -> bool:
        return any(outage.kind == kind for outage in self.outages)


def stretches(reaches: Iterable[Reach], allowance: float = ALLOWANCE) -> list[Stretch]:
    """The outages of a credential in their order, those that overlap joined."""
    found: list[Stretch] = []
    for each in sorted(reaches, key=lambda each: each.outage.began):
        until = each.until + allowance
        if found and each.outage.began <= found[-1].until:
            last = found.pop()
            found.append(Stretch(last.began, max(last.until, until), (*last.outages, each.outage)))
        else:
            found.append(Stretch(each.outage.began, until, (each.outage,)))
    return found


def explain(at: float, reason: str, last: Last | None, excuses: Sequence[Stretch], allowance: float) -> Stretch | None:
    """The stretch that excuses a sample, or None."""
    holds = next((each for each in excuses if each.began <= at <= each.until), None)
    if holds is None:
        return None
    if reason == "missing":
        return holds if holds.has(NO_TOKENS) else None
    if reason != "expired":
        return None
    if last is None or holds.has(NO_TOKENS):
        return holds
    return holds if holds.began <= last.first_try + allowance else None


@dataclass
class Sleeper:
    """By how much a process that only sleeps was late, and how long its starts of another took: (when, seconds), in the
    order of time."""

    late: list[tuple[float, float]] = field(default_factory=list)
    starts: list[tuple[float, float]] = field(default_factory=list)

    def between(self, began: float, ended: float) -> float:
        """The seconds it was late in all."""
        return sum(seconds for _, seconds in _between(self.late, began, ended))

    def slowest(self, began: float, ended: float) -> float:
        """The longest of the starts that were under way then, in seconds."""
        under_way = self.starts[: bisect.bisect_right(self.starts, (ended, float("inf")))]
        return max((seconds for when, seconds in under_way[-STARTS_BACK:] if when + seconds >= began), default=0.0)


def _between(found: list[tuple[float, float]], began: float, ended: float) -> list[tuple[float, float]]:
    return found[bisect.bisect_left(found, (began, 0.0)) : bisect.bisect_right(found, (ended, float("inf")))]


@dataclass(frozen=True)
class Verdict:
    """What a sample came to, and by which outages."""

    word: str
    outages: tuple[Outage, ...] = ()


def judge(at: float, reason: str, last: Last | None, reaches: Sequence[Reach], sleeper: Sleeper) -> Verdict:
    """One sample that found no valid token."""
    found = explain(at, reason, last, stretches(reaches), ALLOWANCE)
    if found:
        return Verdict(EXCUSED, found.outages)
    late = sleeper.between(at - STARVED_BEFORE, at)
    slow = sleeper.slowest(at - STARVED_BEFORE, at) > SLOW_START
    if reason.startswith(OWN_WORK):
        return Verdict(STARVED if slow or late >= ALLOWANCE else UNEXCUSED)
    if reason == "expired" and slow:
        return Verdict(STARVED)
    if late:
        more = ALLOWANCE + late
        found = explain(at, reason, last, stretches(reaches, more), more)
        if found:
            return Verdict(STARVED, found.outages)
    return Verdict(UNEXCUSED)


def seconds(times: Sequence[float], most: float) -> float:
    """How long samples that follow each other no later than `most` seconds span; one alone counts as `most`."""
    total, before = 0.0, None
    for time in times:
        total += most if before is None or time - before > most else time - before
        before = time
    return total


# --- leaks ---


@dataclass(frozen=True)
class Series:
    """One figure of one process, over its life: (seconds since the soak began, value)."""

    points: tuple[tuple[float, float], ...]


def slope(series: Iterable[Series], apart: float) -> float | None:
    """The growth in an hour (Theil and Sen): the median of the slopes of all pairs of points of one process that are
    at least `apart` seconds from each other. None where there are none."""
    slopes = []
    for each in series:
        points = each.points
        for index, (when, value) in enumerate(points):
            slopes += [
                (other - value) / (later - when) for later, other in points[index + 1 :] if later - when >= apart
            ]
    return median(slopes) * 3600 if slopes else None


def growth(series: Sequence[Series], apart: float) -> float | None:
    """How much it grew over the longest of these lives, by the slope; None where none was long enough."""
    found = slope(series, apart)
    return None if found is None else found * longest(series) / 3600


def longest(series: Sequence[Series]) -> float:
    """Of these lives, in seconds."""
    return max((each.points[-1][0] - each.points[0][0] for each in series if each.points), default=0.0)
