"""A principal with its keytab, which several credentials may share: what counts against one, counts against all. So it
does for the account of a FAST armour's keytab.

An account is locked after a few bad attempts, and ten credentials of it with a stale key would make ten at once. So one
of them asks first, and what the KDC refuses it, the others are refused without a question; the same where no KDC
answers it, for the one that answers at last may refuse. Once there was a ticket, all may ask at once, until there is a
doubt.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Coroutine
from typing import Any

from ..errors import RefreshError
from . import policy
from .child import Exchanged
from .files import Identity

# What the KDC says of the account and its key, and counts; other refusals are of one request's options.
_COUNTED = ("key_rejected", "client_revoked", "client_expired")
_SILENCE = ("kdc_unreachable", "kdc_timeout")  # what another one would be told, too
# KRB_AP_ERR_BAD_INTEGRITY (RFC 4120, section 7.5.9): libkrb5 says so of an answer that it cannot decrypt, and older
# KDCs of a preauthentication with another key.
_UNDECRYPTED = -1765328384 + 31
_MARGIN = 10.0  # seconds: waits follow the wall clock, which may be set by a little; nobody bars itself
_AFTER = 2.0  # seconds after the one that asks first


class NotAsked(RefreshError):  # noqa: N818  (it says what came of it)
    """Another credential of the account has failed for that reason. `wait` is for how many seconds to leave the account
    alone, where the KDC has refused; without one, the reason's own wait will do."""

    def __init__(self, error: RefreshError, wait: float | None = None) -> None:
        how = "was refused" if wait is not None else "waits in vain"
        words = f"not asked: another credential of this principal and keytab {how}: {error}"
        super().__init__(error.reason, words, hint=error.hint, code=error.code)
        self.wait = wait


class Unbelieved(RefreshError):  # noqa: N818
    """An answer that may have been somebody else's; asked again after `wait` seconds, which no backoff makes longer:
    the KDC is there."""

    wait = 5.0


class Account:
    """The exchanges of one principal with one keytab; `armour`: of one that is used for FAST. For one event loop."""

    def __init__(self, *, armour: bool = False) -> None:
        self._armour = armour
        self._good = False  # the last answer was a ticket: everybody may ask at once
        self._first: asyncio.Future[RefreshError | None] | None = None  # what it comes to concerns those who wait
        self._refusal: RefreshError | None = None
        self._until = 0.0
        self._silent = False  # the last try had no answer
        self._forgave = False  # an answer that could not be decrypted, since the last ticket
        self._by: object = None  # who was refused: it has its own wait, which follows the wall clock
        self._forgot_for: Identity | None = None
        self._swaps: list[float] = []

    def doubt(self) -> None:
        """Many may be about to ask: one asks first. What was refused stays refused."""
        self._good = False

    def forget(self, keytab: Identity | None = None) -> None:
        """The key may be another one now, or somebody wants it tried: one asks first, whatever the last was told. For
        a new `keytab` once: each credential sees it when it looks."""
        if keytab is None or keytab != self._forgot_for:
            self._good, self._refusal = False, None
        self._forgot_for = keytab or self._forgot_for

    def swapped(self, now: float) -> None:
        """A keytab was refused that came after another one that had been."""
        self._swaps.append(now)

    def swaps(self, now: float) -> int:
        """How many there were of these lately."""
        self._swaps = [when for when in self._swaps if 0 <= now - when < policy.SWAPS_COUNT_FOR]
        return len(self._swaps)

    def refused(self, exchanged: Exchanged, wait: float, by: object = None) -> None:
        """A try failed, and is repeated after so many seconds; after a refusal nobody else asks before."""
        error = exchanged.error
        if error and exchanged.armour == self._armour and error.reason in _COUNTED:
            self._good, self._refusal, self._by = False, error, by
            self._until = asyncio.get_running_loop().time() + wait - _MARGIN

    async def ask(
        self, exchange: Callable[[], Coroutine[Any, Any, Exchanged]], patience: float, by: object = None
    ) -> Exchanged:
        """The exchange; where another one asks first, after it. One at a time asks until there is a ticket. `patience`
        is for how many seconds to wait for the one before.

        Raises NotAsked, and what the exchange raises.
        """
        while self._first:
            done, _ = await asyncio.wait({self._first}, timeout=patience)
            if not done:
                raise NotAsked(RefreshError("kdc_timeout", f"there was no answer within {patience:.3g} s"))
            told = done.pop().result()
            if told:
                raise NotAsked(told)
        left = self._until - asyncio.get_running_loop().time()
        if self._refusal and left > 0 and (by is None or by is not self._by):
            raise NotAsked(self._refusal, left + _MARGIN + _AFTER)
        first = None if self._good else asyncio.get_running_loop().create_future()
        self._first = first
        error = None
        try:
            exchanged = self._understood(await exchange())
            error = exchanged.error
            if not error:
                if exchanged.method == "keytab":  # a renewal says nothing of the key
                    self._good, self._refusal = True, None
                    self._forgave = False
            elif exchanged.armour == self._armour:  # at once: those who wait go on before this one's try is over
                self._good = False
                self.refused(exchanged, _MARGIN + 1.0, by)
            return exchanged
        except RefreshError as raised:
            self._good, error = False, raised
            raise
        finally:
            self._silent = error is not None and error.reason in _SILENCE
            if first:
                self._first = None
                first.set_result(error if error and error.reason in _SILENCE else None)

    def _understood(self, exchanged: Exchanged) -> Exchanged:
        """A KDC that had hung answers those who have gone, too, and whoever has the port of one of them by then cannot
        decrypt that. So after a silence it is taken for no answer; once, until there is a ticket: it may be the KDC
        that has refused the key, and that counts."""
        error = exchanged.error
        if not error or error.code != _UNDECRYPTED or exchanged.armour != self._armour:
            return exchanged
        if self._forgave or not self._silent:
            return exchanged
        self._forgave = True
        words = f"{error}: after a silence that can be the answer to somebody else, and it is not believed this once"
        return dataclasses.replace(exchanged, error=Unbelieved("kdc_timeout", words, code=error.code))
