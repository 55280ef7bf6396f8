"""When to refresh next: pure functions of times, failures and a random number.

Times are Unix seconds by this machine's clock, with tickets' times already corrected to it. `chance` is a random number
from 0 up to 1, passed in so that a schedule can be repeated.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import LOOK_AGAIN, REJECTED

FIRST_TRY_WITHIN = 0.3  # of the window: spreads the workers of one deployment, and leaves time for retries
MAX_WINDOW = 0.5  # of the life: a window of more would refresh a token that is younger than it is old
BACKOFF_CAP = 60.0
BACKOFF_CAP_SHARE = 0.08  # of the window: a KDC that is up for a tenth of it is met at least once
MIN_DELAY = 1.0
LEFT_PER_TRY = 0.25  # no wait is longer than this share of the time left: room for three tries, also slow ones
REJECTED_DELAYS = (300.0, 600.0, 1200.0, 2400.0, 3600.0)  # a lockout threshold is counted per half hour, often
LOOK_AGAIN_DELAY = 60.0  # a whole try, though no file changed: what was wrong may be elsewhere
LOOK_EVERY = 5.0  # while it fails: is there another keytab, another krb5.conf?
IDLE_LOOK_EVERY = 300.0  # while all is well, and events tell of changes
DEAF_LOOK_EVERY = 30.0  # while all is well, where no events can be had
CLOCK_LOOK_EVERY = 50.0  # how soon a clock that jumped is noticed
STANDBY_LOOK_EVERY = 1.0  # how soon a lock that is free is taken, where there are no more than a hundred
LOSSES_COUNT_FOR = 600.0  # how long a token that vanished is remembered
MOST_SWAPS = 2  # of a keytab that are tried at once while the KDC refuses ...
SWAPS_COUNT_FOR = 1800.0  # ... in this time, which a lockout threshold is counted for, often
GIVE_UP_SHARE = 0.25  # of the window, its end: then a token without some tickets is better than none
MAX_DEADLINE_SHARE = 0.25  # of the window, for one exchange
MIN_DEADLINE = 0.5  # an exchange takes milliseconds, but a machine under load takes its time with everything


@dataclass(frozen=True)
class Share:
    """How much of a token's life its expiry window is: a `fraction` of it, or `seconds`."""

    fraction: float = 1 / 3
    seconds: float | None = None


@dataclass(frozen=True)
class Window:
    """The last part of a token's life, in which it is refreshed. `clamped`: it was set to more than half of it."""

    opens_at: float
    expires_at: float
    clamped: bool

    @property
    def length(self) -> float:
        """Seconds."""
        return self.expires_at - self.opens_at


def window(starts_at: float, expires_at: float, share: Share) -> Window:
    """The expiry window of a token with this life: never more than half of it."""
    life = max(0.0, expires_at - starts_at)
    wanted = life * share.fraction if share.seconds is None else share.seconds
    most = life * MAX_WINDOW
    return Window(expires_at - min(wanted, most), expires_at, clamped=wanted > most)


def first_try(window: Window, asked: float, chance: float) -> float:
    """When to refresh a token for the first time: at random in the first 30 % of its window, and not within a second
    after it was `asked` for even if that has passed."""
    return max(asked + MIN_DELAY, window.opens_at + window.length * FIRST_TRY_WITHIN * chance)


def retry(now: float, *, kind: str, failures: int, rejections: int, window: Window | None, chance: float) -> float:
    """When to try again after a failure.

    `kind` is how the reason retries (errors.REFRESH_REASONS), `failures` the tries that failed in a row, this one
    included, `rejections` how many of them the KDC refused for a reason that repeating can make worse, and `window`
    that of the token that is published, None where there is none.

    Once the KDC has refused, every wait is that of the refusal, whatever fails after it: a network that comes and goes
    must not turn into a series of bad attempts that locks the account.
    """
    if kind == REJECTED or rejections:
        return now + REJECTED_DELAYS[min(max(rejections, 1), len(REJECTED_DELAYS)) - 1]
    cap = min(BACKOFF_CAP, 2.0 ** min(failures - 1, 10))
    most = BACKOFF_CAP
    if window is not None and window.expires_at > now:
        cap = min(cap, max(MIN_DELAY, window.length * BACKOFF_CAP_SHARE))
        most = (window.expires_at - now) * LEFT_PER_TRY
    delay = LOOK_AGAIN_DELAY if kind == LOOK_AGAIN else MIN_DELAY + (cap - MIN_DELAY) * chance
    return now + max(MIN_DELAY, min(delay, most))


def after_losses(now: float, losses: int) -> float:
    """When to make a token anew that has vanished, and has done so `losses` times before, lately: at once at first."""
    return now + min(BACKOFF_CAP, 2.0 ** min(losses, 10)) if losses else 0.0


def deadline(window: Window | None, now: float, configured: float) -> float:
    """How many seconds one exchange may take: what is configured, and no more than a quarter of the window while
    the published token lives, so that a KDC that hangs leaves time for three tries."""
    if window is None or window.expires_at <= now:
        return configured
    return min(configured, max(MIN_DEADLINE, window.length * MAX_DEADLINE_SHARE))
