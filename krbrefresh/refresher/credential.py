"""One credential's life: what it holds, how its last try went, when the next one is due.

No effects here: the service makes the exchange and the publication and says how they went. The clock and the random
numbers come from outside, so that a simulation can play weeks.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable

from ..ccache import Principal
from ..errors import REJECTED, RefreshError
from ..token import Token
from . import policy
from .settings import CredentialSettings

Identity = tuple[int, ...] | int
Files = dict[str, Identity]


class Credential:
    """The state of one credential. Times are Unix seconds by this machine's clock.

    `token` is the one that is published, None where there is none; `error` the last try's failure, None after a
    success; `failures` counts the tries that failed in a row, `rejections` those of them that the KDC refused for a
    reason that repeating makes worse; `due_at` is when to try next; `clock_lead` is by how much the wall clock led the
    monotonic one when the last try began: the KDC's time offset that it measured is as old. `tries` counts all of them.
    """

    def __init__(
        self,
        settings: CredentialSettings,
        *,
        exchange_deadline: float,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self.settings = settings
        self.token: Token | None = None
        self.window: policy.Window | None = None
        self.error: RefreshError | None = None
        self.failures = 0
        self.rejections = 0
        self.due_at = 0.0
        self.generation = 0
        self.clock_lead = 0.0
        self.tries = 0
        self._exchange_deadline = exchange_deadline
        self._chance = chance
        self._files: Files = {}

    def due(self, now: float) -> bool:
        """Whether it is time to try."""
        return self.due_at <= now

    def hurry(self) -> None:
        """Makes the next try due at once, unless the KDC has refused the last ones: those keep their pace."""
        if not self.rejections:
            self.due_at = 0.0

    def start_over(self) -> None:
        """Makes the next try due at once, whatever the last ones came to: what they had to work with has changed."""
        self.rejections = 0
        self.due_at = 0.0

    def clock_jumped(self, by: float) -> None:
        """The wall clock has moved by so many seconds: a token's times are in doubt, and a wait keeps its length."""
        self.clock_lead += by
        if self.rejections:
            self.due_at += by
        else:
            self.due_at = 0.0

    def deadline(self, now: float) -> float:
        """How many seconds the next exchange may take."""
        return policy.deadline(self.window, now, self._exchange_deadline)

    def adopt(self, token: Token, now: float) -> bool:
        """Takes over a token that was published in a former life, if there is nothing to gain from a new one: it is
        ours, made with these settings, and outside its expiry window. Says whether it did."""
        manifest = token.manifest
        if manifest is None or token.modified or manifest.settings != self.settings.fingerprint:
            return False
        if not self.is_ours(token) or token.empty:
            return False
        window = self.window_of(token, manifest.issued_at)
        if not token.starts <= now < window.opens_at:
            return False
        self._hold(token, window, now)
        return True

    def is_ours(self, token: Token) -> bool:
        """Whether a token is of this credential's principal; a principal without a realm stands for any realm's."""
        name = self.settings.principal
        try:
            return token.is_for(Principal.parse(name))
        except ValueError:  # it has no realm
            return token.is_for(Principal.parse(f"{name}@{token.realm}"))

    def window_of(self, token: Token, issued_at: float) -> policy.Window:
        """The expiry window of a token that was issued then. Its life is what was left of it: a clock that may not be
        corrected can make a ticket start in the past."""
        return policy.window(max(token.starts, issued_at), token.expires, self.settings.expiry_window)

    def next_generation(self, now: float, published: int) -> int:
        """The generation of the next publication: the clock's seconds, and always more than the last one of ours and
        than what is published."""
        return max(self.generation + 1, published + 1, int(now))

    def succeeded(self, token: Token, now: float) -> None:
        """A token was published."""
        self._hold(token, self.window_of(token, now), now)
        self.error = None
        self.failures = self.rejections = 0

    def lost(self) -> None:
        """The published token is gone from its path; its generation counts all the same."""
        self.token = self.window = None
        self.hurry()

    def failed(self, error: RefreshError, now: float) -> None:
        """A try failed; what is published stands."""
        self.error = error
        self.failures += 1
        self.rejections += error.retry == REJECTED
        self.due_at = policy.retry(
            now,
            kind=error.retry,
            failures=self.failures,
            rejections=self.rejections,
            window=self.window,
            chance=self._chance(),
        )

    def look_at_files(self) -> Files:
        """Which files the keytab and the krb5.conf are now. Opens none of them and changes nothing here, but may block
        as long as the file system does."""
        paths = [self.settings.keytab, *os.environ.get("KRB5_CONFIG", "/etc/krb5.conf").split(":")]
        return {path: _identity(path) for path in paths}

    def note_files(self, files: Files) -> list[str]:
        """Notes which files they are; those that are other ones than when this was called last."""
        before, self._files = self._files, files
        return [path for path, identity in files.items() if before.get(path) != identity]

    def _hold(self, token: Token, window: policy.Window, now: float) -> None:
        self.token = token
        self.window = window
        self.generation = token.generation or self.generation
        self.due_at = policy.first_try(window, now, self._chance())


def _identity(path: str) -> Identity:
    """What tells one file at a path from the next, or why there is none."""
    try:
        found = os.stat(path)  # through symlinks: Kubernetes swaps one to rotate a Secret
    except OSError as error:
        return error.errno or 0
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_ctime_ns, found.st_size
