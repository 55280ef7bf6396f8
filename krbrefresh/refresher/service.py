"""The refresher: a loop over all credentials that makes each one's exchange when it is due and publishes the result.

A failure of one try, of whatever kind, never ends the loop and never touches a published token. One thread runs the
loop; exchanges are child processes, and publications, which wait for a disk, a thread's.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import threading
import time
from collections.abc import Callable

from .._text import moment_text, seconds_text
from ..client import load
from ..errors import RefreshError, TokenError
from ..token import Token, seal
from . import policy, publish
from .child import Exchanger
from .credential import Credential
from .log import event
from .publish import Destination
from .settings import Settings

_CLOCK_JUMP = 5.0  # seconds by which the wall clock may leave the monotonic one before every token is in doubt
_LAST_WORD = 0.7  # seconds after TERM; then this process ends, even if a disk does not answer


class Service:
    """All credentials of one refresher. The layout is judged and prepared at the start of `run` and `once`."""

    def __init__(self, settings: Settings, *, clock: Callable[[], float] = time.time) -> None:
        self._settings = settings
        self._clock = clock
        self._credentials = [
            Credential(credential, exchange_deadline=settings.refresher.exchange_deadline)
            for credential in settings.credentials
        ]
        self._stopping = asyncio.Event()
        self._wake = asyncio.Event()
        self._exchanger = Exchanger()
        self._running: dict[Credential, asyncio.Task[bool]] = {}
        self._clock_lead = self._clock() - time.monotonic()

    async def run(self) -> None:
        """Refreshes for ever; returns after TERM or INT. Raises LayoutError where the layout is refused at start."""
        self._prepare()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop, number)
        event(logging.INFO, "started", credentials=len(self._credentials), refresher=self._settings.refresher.name)
        for credential in self._credentials:
            token = self._read_published(credential)
            if token is not None and credential.adopt(token, self._clock()):
                event(logging.INFO, "adopted", **_facts(credential))
        looked_at = time.monotonic()
        while not self._stopping.is_set():
            if time.monotonic() >= looked_at + self._look_interval():
                self._look()
                looked_at = time.monotonic()
            now = self._clock()
            for credential in self._credentials:
                if credential.due(now) and credential not in self._running:
                    self._start(credential)
            await self._sleep(looked_at + self._look_interval())
        for task in self._running.values():
            task.cancel()
        await asyncio.gather(*self._running.values(), return_exceptions=True)
        event(logging.INFO, "stopped")

    async def once(self) -> bool:
        """One exchange and one publication for each credential; whether all of them were made. Raises LayoutError."""
        self._prepare()
        for credential in self._credentials:
            self._read_published(credential)
        return all(await asyncio.gather(*(self._refresh(credential) for credential in self._credentials)))

    def _prepare(self) -> None:
        destinations = [Destination.of(credential.settings) for credential in self._credentials]
        for destination in destinations:  # all of them, before anything is written
            publish.judge(destination)
        for destination in destinations:
            try:
                publish.prepare(destination)
            except OSError as error:
                event(logging.WARNING, "directory_not_ready", path=destination.directory, message=error.strerror)

    def _read_published(self, credential: Credential) -> Token | None:
        """The token that a former life published, if any: the next generation has to be more than its."""
        credential.changed_files()
        try:
            token = load(credential.settings.ccache)
        except TokenError:
            return None
        credential.generation = token.generation or 0
        return token

    def _start(self, credential: Credential) -> None:
        task = asyncio.get_running_loop().create_task(self._refresh(credential))
        self._running[credential] = task
        task.add_done_callback(lambda _: self._finish(credential))

    def _finish(self, credential: Credential) -> None:
        del self._running[credential]
        self._wake.set()

    async def _refresh(self, credential: Credential) -> bool:
        """One try: exchange, check, seal, publish. Says whether it worked; the credential knows the rest."""
        credential.changed_files()  # what changes from here on is a change
        settings = credential.settings
        try:
            body = await self._exchanger.exchange(settings, credential.deadline(self._clock()))
            token = _check(body, credential, self._clock())
            now = self._clock()
            window = policy.window(token.starts, token.expires, settings.expiry_window)
            data = seal(
                body,
                generation=credential.next_generation(now),
                issued_at=int(now),
                window_opens_at=max(0, int(window.opens_at)),
                refresher=self._settings.refresher.name,
                settings=settings.fingerprint,
            )
            await asyncio.to_thread(publish.publish, Destination.of(settings), data)
        except RefreshError as error:
            self._failed(credential, error)
            return False
        except Exception as error:  # noqa: BLE001  (nothing that happens while running ends the loop)
            self._failed(credential, RefreshError("internal", f"{type(error).__name__}: {error}"))
            return False
        first = credential.window is None
        credential.succeeded(Token.parse(data, settings.ccache))
        event(logging.INFO, "published", **_facts(credential))
        if first and window.clamped:
            event(
                logging.WARNING,
                "window_clamped",
                credential=settings.name,
                message=f"the window is more than half of the token's life; it is cut to {seconds_text(window.length)}",
            )
        return True

    def _failed(self, credential: Credential, error: RefreshError) -> None:
        now = self._clock()
        repeated = credential.error is not None and credential.error.reason == error.reason
        credential.failed(error, now)
        token = credential.token
        # A cause that stays is told at its start, then ever more rarely.
        if repeated and credential.failures & (credential.failures - 1):
            return
        event(
            logging.ERROR,
            "refresh_failed",
            credential=credential.settings.name,
            reason=error.reason,
            message=str(error),
            hint=error.hint,
            failures=credential.failures,
            next_attempt_at=moment_text(credential.due_at),
            token_expires_at=moment_text(token.expires) if token else None,
        )

    def _look(self) -> None:
        """What may have changed while nobody told us: the clock, a keytab, a volume."""
        lead = self._clock() - time.monotonic()
        jumped = abs(lead - self._clock_lead) > _CLOCK_JUMP
        if jumped:
            # The header's offset was measured with the old clock: it is wrong now, and so are all times.
            event(
                logging.WARNING, "clock_jumped", message=f"by {lead - self._clock_lead:+.0f} s; refreshing all tokens"
            )
        self._clock_lead = lead
        for credential in self._credentials:
            if credential in self._running:
                continue
            if changed := credential.changed_files():
                event(logging.INFO, "file_changed", credential=credential.settings.name, path=" ".join(changed))
                credential.start_over()
            elif jumped:
                credential.hurry()
            elif credential.token is not None and publish.published(Destination.of(credential.settings)) is None:
                event(logging.WARNING, "token_vanished", credential=credential.settings.name)
                credential.lost()

    def _look_interval(self) -> float:
        failing = any(credential.error is not None for credential in self._credentials)
        return policy.LOOK_EVERY if failing else policy.IDLE_LOOK_EVERY

    async def _sleep(self, next_look: float) -> None:
        """Until the next credential is due, the next look, or somebody's word."""
        waiting = [credential.due_at for credential in self._credentials if credential not in self._running]
        until_due = min(waiting, default=float("inf")) - self._clock()
        delay = min(until_due, next_look - time.monotonic())
        if delay > 0:
            try:
                await asyncio.wait_for(self._wake.wait(), delay)
            except asyncio.TimeoutError:
                pass
        self._wake.clear()

    def _stop(self, number: int) -> None:
        event(logging.INFO, "stopping", signal=signal.Signals(number).name)
        self._stopping.set()
        self._wake.set()
        # A disk that does not answer holds a publication's thread, and the interpreter would wait for it.
        last_word = threading.Timer(_LAST_WORD, os._exit, (0,))
        last_word.daemon = True
        last_word.start()


def _check(body: bytes, credential: Credential, now: float) -> Token:
    """What the exchange brought, read with the workers' own reader: the right principal, a TGT, time left to live."""
    try:
        token = Token.parse(body)
    except TokenError as error:
        raise RefreshError("internal", f"the exchange brought no ccache: {error}") from None
    if not credential.is_ours(token):
        raise RefreshError("internal", f"the exchange brought the token of {token.principal}")
    if not token.has_tgt:
        raise RefreshError("internal", f"the exchange brought no TGT of {token.realm}")
    if token.expires <= now:
        raise RefreshError(
            "clock_skew",
            f"the ticket of {token.principal} had ended when it arrived ({moment_text(token.expires)} by this clock)",
        )
    return token


def _facts(credential: Credential) -> dict[str, object]:
    token = credential.token
    assert token is not None
    return {
        "credential": credential.settings.name,
        "principal": token.principal,
        "generation": token.generation,
        "expires_at": moment_text(token.expires),
        "next_refresh_at": moment_text(credential.due_at),
        "clock_offset": f"{token.offset:+.0f}s" if abs(token.offset) >= 1 else None,
        "path": token.path,
    }
