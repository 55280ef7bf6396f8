"""One credential's life: what it holds, how its last try went, when the next one is due.

No effects here: the service makes the exchange and the publication and says how they went. The clock and the random
numbers come from outside, so that a simulation can play weeks.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

from .._text import moment_text, seconds_text
from ..ccache import Principal
from ..errors import LOOK_AGAIN, REJECTED, TRANSIENT, RefreshError
from ..token import Token
from . import policy, status
from .account import Account, NotAsked
from .files import Files, Identity, worked_with
from .lock import Lock
from .settings import CredentialSettings

if TYPE_CHECKING:
    from ..token import Verifier


_TOO_FAR = 10 * 366 * 86400.0  # seconds


class Credential:
    """The state of one credential. Times are Unix seconds by this machine's clock.

    `token` is the one that is published, None where there is none, and `identity` its file; `error` the last try's
    failure, None after a success; `failures` counts the tries that failed in a row, `rejections` those of them that the
    KDC refused for a reason that repeating makes worse; `due_at` is when to try next, but not while it is on `standby`,
    since another refresher leads, or `gone` from the settings. `fresh`: the next exchange has to be by keytab.
    `lock` is its token directory's, `account` its principal's with this keytab, `armour` that of the keytab of its FAST
    armour, if there is one; others may share them. `refused` are the services whose tickets were not to be had for the
    published token; `at_home`: the next exchange asks for none of another realm, since the last one had no end.
    `verifier` knows the public half of the key that signs, once that has been read, if one does. `clock_lead` is by how
    much the wall clock led the monotonic one when the KDC's time offset was measured. `tries` counts all of them;
    `again`: one more is wanted after the one that is running, or once it has `begun`: before that its directory is not
    known to be in order, and nothing is tried.
    """

    def __init__(
        self,
        settings: CredentialSettings,
        *,
        exchange_deadline: float,
        chance: Callable[[], float] = random.random,
        clock_lead: float = 0.0,
        lock: Lock | None = None,
        account: Account | None = None,
        armour: Account | None = None,
    ) -> None:
        self.settings = settings
        self.lock = lock or Lock()
        self.account = account or Account()
        self.armour = armour
        self.token: Token | None = None
        self.identity: Identity | None = None
        self.window: policy.Window | None = None
        self.error: RefreshError | None = None
        self.failures = 0
        self.rejections = 0
        self.due_at = 0.0
        self.standby = False
        self.gone = False
        self.begun = False
        self.fresh = False
        self.again = False
        self.refused: frozenset[str] = frozenset()
        self.verifier: Verifier | None = None
        self.at_home = False
        self.generation = 0
        self.clock_lead = clock_lead
        self.tries = 0
        self.last_success_at: float | None = None
        self.refreshes: dict[str, int] = {}
        self._told: set[str] = set()
        self._partly = 0  # tries in a row that brought a token, but not all of its tickets
        self._for_more = False  # the next try is made for these alone
        self._losses: list[float] = []
        self._former_rejections = 0  # by the keytabs before this one
        self.exchange_deadline = exchange_deadline
        self._chance = chance
        self._files: Files = {}

    @property
    def paths(self) -> list[str]:
        """What an exchange works with: another file at one of them is a reason to try at once."""
        signing_key = [self.settings.signing_key] if self.settings.signing_key else []
        return [*worked_with(self.settings.keytab, self.settings.fast_keytab), *signing_key]

    @property
    def accounts(self) -> list[Account]:
        """Those at the KDC that an exchange can count against."""
        return [self.armour, self.account] if self.armour else [self.account]

    def doubt(self) -> None:
        """Others may be about to try for the same cause: of those that share an account, one asks first."""
        for account in self.accounts:
            account.doubt()

    def due(self, now: float) -> bool:
        """Whether it is time to try."""
        return self.due_at <= now

    def inherit(self, other: Credential | None) -> None:
        """Takes over what is told of a credential of the same name, whose settings have changed."""
        if other is not None:
            self.generation, self.last_success_at = other.generation, other.last_success_at
            self.refreshes = other.refreshes

    def hurry(self) -> None:
        """Makes the next try due at once, unless the KDC has refused the last ones: those keep their pace."""
        if not self.rejections:
            self.due_at = 0.0
            self._for_more = False

    def start_over(self) -> None:
        """Makes the next try due at once, whatever the last ones came to: what they had to work with has changed."""
        for account in self.accounts:
            account.forget()
        self.due_now()

    def due_now(self) -> None:
        """Makes the next try due at once; its accounts have their own memory."""
        self.rejections = 0
        self.due_at = 0.0
        self._for_more = False

    def keytab_changed(self, now: float, changed: list[str]) -> None:
        """One of the keytabs, its own or its armour's, is among the files that have changed: tried at once. But what
        rewrites a keytab without mending it must not lock the account: while the KDC refuses, that goes until two new
        ones were refused in half an hour, and such a refusal counts as one more of the same row. A change that costs
        no refusal, on the way to a good one, is free."""
        if self.rejections or self._former_rejections:
            if self.account.swaps(now) >= policy.MOST_SWAPS:
                return
            self._former_rejections += self.rejections
        if self.settings.keytab in changed:
            self.account.forget(self._files.get(self.settings.keytab))
        if self.armour and self.settings.fast_keytab in changed:
            self.armour.forget(self._files.get(self.settings.fast_keytab or ""))
        self.due_now()

    def clock_moved(self, by: float) -> None:
        """The wall clock has been set forward by so many seconds: a wait keeps its length."""
        self.due_at += by

    def distrust(self, lead: float) -> None:
        """The wall clock leads the monotonic one by `lead` now, and not as when the KDC's time offset was measured:
        the token's times are in doubt, and a renewal would keep the offset."""
        self.clock_lead = lead
        self.fresh = True
        self.doubt()
        self.hurry()

    def deadline(self, now: float) -> float:
        """How many seconds the next exchange may take."""
        return policy.deadline(self.window, now, self.exchange_deadline)

    def found(self, token: Token, identity: Identity, now: float, *, looks_right: bool = True) -> bool:
        """A token is at the path that this process did not publish: what workers live on until the next refresh.

        Takes it over, with no try due, if there is nothing to gain from a new one: it is ours, made with these
        settings, outside its expiry window, and `looks_right` (mode and group). Says whether it did.
        """
        # Also of one that is not ours, and may go.
        self.generation = max(self.generation, _believable(token.generation or 0, now))
        if not self.is_ours(token) or token.has_tgt != self.settings.include_tgt:
            return False
        manifest = token.manifest
        self.token, self.identity = token, identity
        self.window = self.window_of(token, manifest.issued_at if manifest else token.starts)
        if (
            not looks_right
            or manifest is None
            or token.modified
            or manifest.settings != self.settings.fingerprint
            or self.services_lacking(token)
            or not token.starts <= now < self.window.opens_at
        ):
            return False
        self.due_at = policy.first_try(self.window, now, self._chance())
        return True

    def is_ours(self, token: Token) -> bool:
        """Whether a published token is of this credential's principal. A principal without a realm stands for any
        realm's; where the KDC may canonicalize it, a token that was made with these settings is ours by any name."""
        name = self.settings.principal
        if self.settings.canonicalize and token.manifest and token.manifest.settings == self.settings.fingerprint:
            return True
        try:
            return token.is_for(Principal.parse(name))
        except ValueError:  # it has no realm
            return token.is_for(Principal.parse(f"{name}@{token.realm}"))

    def window_of(self, token: Token, issued_at: float) -> policy.Window:
        """The expiry window of a token that was issued then, before the first of its tickets ends. Its life is what
        was left of it: a clock that may not be corrected can make a ticket start in the past."""
        return policy.window(max(token.starts, issued_at), token.first_end, self.settings.expiry_window)

    @property
    def foreign_services(self) -> tuple[str, ...]:
        """Those of another realm than the principal's."""
        realm = self.settings.realm
        return tuple(name for name in self.settings.services if realm and name.rpartition("@")[2] != realm)

    def had_no_end(self) -> None:
        """An exchange was given up: another realm's KDC may be why, and every other try does without it."""
        home = self.settings.include_tgt or set(self.settings.services) - set(self.foreign_services)
        self.at_home = not self.at_home and bool(self.foreign_services) and bool(home)

    def would_lose(self, refused: Mapping[str, RefreshError], now: float) -> RefreshError | None:
        """Why what an exchange has brought is not to replace the published token yet: that one has a ticket of a
        service whose KDC does not answer now. When it is about to end, the others count for more."""
        token, window = self.token, self.window
        if token is None or window is None or now >= window.expires_at - window.length * policy.GIVE_UP_SHARE:
            return None
        held = set(token.services)
        return next((error for name, error in refused.items() if error.retry == TRANSIENT and name in held), None)

    def services_lacking(self, token: Token) -> set[str]:
        """Those of the configured services whose tickets the token does not hold."""
        return set(self.settings.services) - set(token.services)

    def has_as_much(self, refused: Iterable[str], now: float) -> bool:
        """Whether a try was made for the tickets that are lacking, and has brought none of them: then the published
        token stays, unless it is time for a new one."""
        return (
            self._for_more and self.window is not None and now < self.window.opens_at and self.refused <= set(refused)
        )

    def next_generation(self, now: float, published: int) -> int:
        """The generation of the next publication: the clock's seconds, and always more than the last one of ours and
        than what is published."""
        return max(self.generation + 1, _believable(published, now) + 1, int(now))

    def succeeded(
        self,
        token: Token,
        now: float,
        *,
        method: str = "keytab",
        identity: Identity | None = None,
        refused: Iterable[str] = (),
        asked: float | None = None,
    ) -> None:
        """A token was published; without the tickets of these services, which the KDC has `refused`. It was `asked`
        for then, or now: a KDC that was held up gives what is left of the life that was asked for, and that can be so
        little that a second after its arrival would be too late."""
        self.token, self.identity = token, identity
        self.generation = token.generation or self.generation
        self.window = self.window_of(token, now)
        self.due_at = policy.first_try(self.window, now if asked is None else asked, self._chance())
        self.error = None
        self.failures = self.rejections = self._former_rejections = 0
        self.fresh = self._for_more = False
        self.refused = frozenset(refused)
        if not self.refused:
            self._partly = 0
        self.last_success_at = now
        self.refreshes[method] = self.refreshes.get(method, 0) + 1
        self._told.clear()

    def lost(self, now: float) -> None:
        """The published token is gone from its path; its generation counts all the same. A new one is due at once,
        but not again and again: whatever removes it may go on, and must not keep the KDC busy. A try that is due sooner
        stays due then: what has failed has its own pace."""
        self.token = self.window = self.identity = None
        self._for_more = False
        self.doubt()
        self._losses = [when for when in self._losses if 0 <= now - when < policy.LOSSES_COUNT_FOR]
        if not self.rejections:
            self.due_at = min(self.due_at, policy.after_losses(now, len(self._losses)))
        self._losses.append(now)

    def failed(self, error: RefreshError, now: float) -> bool:
        """A try failed; what is published stands. Says whether that is worth a line in the log: a cause that stays is
        told at its start, then ever more rarely."""
        self.error = error
        self.failures += 1
        if error.retry == REJECTED:
            if self._former_rejections and not isinstance(error, NotAsked):
                self.account.swapped(now)
            self.rejections += 1 + self._former_rejections
            self._former_rejections = 0
        self.due_at = policy.retry(
            now,
            kind=error.retry,
            failures=self.failures,
            rejections=self.rejections,
            window=self.window,
            chance=self._chance(),
        )
        news = error.reason not in self._told or not self.failures & (self.failures - 1)
        self._told.add(error.reason)
        return news

    def failed_partly(self, error: RefreshError, now: float) -> bool:
        """What is published lacks some service's ticket: told as a failure, and tried again at the pace of a refusal,
        since each try is a whole exchange; every minute where a KDC does not answer. Says whether that is worth a line
        in the log."""
        assert self.window is not None
        self._partly += 1
        self.error, self.failures = error, self._partly
        kind, rejections = (LOOK_AGAIN, 0) if error.retry == TRANSIENT else (REJECTED, self._partly)
        again = policy.retry(now, kind=kind, failures=self._partly, rejections=rejections, window=None, chance=0.0)
        self.due_at = min(policy.first_try(self.window, now, self._chance()), again)
        self._for_more = True
        return not self._partly & (self._partly - 1)

    def stand_by(self) -> None:
        """Another refresher leads."""
        self.standby = True
        self.again = False
        self.error = None
        self.failures = self.rejections = self._former_rejections = 0
        self.due_at = math.inf
        self._told.clear()

    def answers(self) -> None:
        """Its file system had held it up, and does so no more; nothing has been tried."""
        self.error = None
        self.failures = 0

    def lead(self) -> None:
        """The other one has gone: a try is due, unless what it left behind will do (`found`)."""
        self.standby = False
        self.due_at = 0.0

    def note_files(self, files: Files) -> list[str]:
        """Notes which files they are; those that are other ones than when this was called last."""
        before = dict(self._files)
        self._files.update(files)
        return [path for path, identity in files.items() if path in before and before[path] != identity]

    def state(self, now: float) -> str:
        """One of the words of status.py."""
        if self.standby:
            return status.STANDBY
        if self.token is None:
            return status.STARTING
        if self.token.expires <= now:
            return status.EXPIRED
        return status.DEGRADED if self.error else status.VALID

    def status(self, now: float) -> status.CredentialStatus:
        """What there is to say of it."""
        token, error = self.token, self.error
        return status.CredentialStatus(
            name=self.settings.name,
            principal=token.principal if token else self.settings.principal,
            path=self.settings.ccache,
            state=self.state(now),
            reason=error.reason if error else None,
            message=str(error) if error else None,
            hint=error.hint if error else None,
            failures=self.failures,
            starts_at=token.starts if token else None,
            window_opens_at=self.window.opens_at if self.window else None,
            expires_at=token.expires if token else None,
            renew_until=token.renew_until.timestamp() if token and token.renew_until else None,
            generation=token.generation if token else None,
            next_attempt_at=None if self.standby else max(self.due_at, now),
            last_success_at=self.last_success_at,
            refreshes=dict(self.refreshes),
        )

    def facts(self) -> dict[str, object]:
        """The published token, for the log."""
        token = self.token
        assert token is not None
        return {
            "credential": self.settings.name,
            "principal": token.principal,
            "generation": token.generation,
            "expires_at": moment_text(token.expires),
            "next_refresh_at": moment_text(self.due_at) if self.due_at else None,
            "clock_offset": f"{token.offset:+.0f}s" if abs(token.offset) >= 1 else None,
            "path": token.path,
        }

    def clamped(self) -> str | None:
        """That the window had to be cut, in words."""
        if self.window is None or not self.window.clamped:
            return None
        return f"the window is more than half of the token's life; it is cut to {seconds_text(self.window.length)}"


def _believable(generation: int, now: float) -> int:
    """A generation that was read from a file, or 0 where a clock cannot have made it: it would be the last one."""
    return generation if generation < now + _TOO_FAR else 0


def summary(credentials: Iterable[Credential], now: float) -> str:
    """All of them in a line."""
    count: dict[str, int] = {}
    for credential in credentials:
        state = credential.state(now)
        count[state] = count.get(state, 0) + 1
    return ", ".join(f"{number} {state}" for state, number in sorted(count.items()))
