"""How the refresher is, at one moment: what health, metrics and the page for people are made from.

Values only. The service makes a `Status` in its loop; whoever renders one needs nothing else.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ..errors import REFRESH_REASONS

STARTING = "starting"  # no token of this credential is published yet
VALID = "valid"
DEGRADED = "degraded"  # the published token is valid, and the last try to refresh it failed
EXPIRED = "expired"
STANDBY = "standby"  # another refresher leads

# Seconds. An exchange takes milliseconds on a good day, and the deadline is 15 s by default.
DURATION_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 15.0, 30.0)


@dataclass
class Tally:
    """What has been counted since the start. `buckets[i]` counts the tries that took no longer than
    `DURATION_BUCKETS[i]` and longer than the one before; the last one, those that took longer than all."""

    failures: dict[str, int] = field(default_factory=lambda: dict.fromkeys(REFRESH_REASONS, 0))
    buckets: list[int] = field(default_factory=lambda: [0] * (len(DURATION_BUCKETS) + 1))
    seconds: float = 0.0

    def took(self, seconds: float) -> None:
        """A try, successful or not, took this long."""
        self.buckets[bisect_left(DURATION_BUCKETS, seconds)] += 1
        self.seconds += seconds


@dataclass(frozen=True)
class CredentialStatus:
    """One credential. Times are Unix seconds by this machine's clock; None is what is not known.

    `reason`, `message` and `hint` are the last try's, None after a success. `starts_at` to `generation` are those of
    the published token. `refreshes` counts the publications since the start by method.
    """

    name: str
    principal: str
    path: str
    state: str
    reason: str | None = None
    message: str | None = None
    hint: str | None = None
    failures: int = 0
    starts_at: float | None = None
    window_opens_at: float | None = None
    expires_at: float | None = None
    renew_until: float | None = None
    generation: int | None = None
    next_attempt_at: float | None = None
    last_success_at: float | None = None
    refreshes: Mapping[str, int] = field(default_factory=dict)

    @property
    def ready(self) -> bool:
        """Whether workers have a valid token, or another refresher is in charge of that."""
        return self.state in (VALID, DEGRADED, STANDBY)


@dataclass(frozen=True)
class Status:
    """The whole refresher. `leader`: it publishes at least one of its credentials. `clock_offset` is the KDC's clock
    less this machine's, in seconds, as the last exchange measured it."""

    refresher: str
    version: str
    now: float
    leader: bool
    credentials: Sequence[CredentialStatus]
    tally: Tally
    clock_offset: float | None = None

    @property
    def ready(self) -> bool:
        """What /readyz says."""
        return all(credential.ready for credential in self.credentials)
