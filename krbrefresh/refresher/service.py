"""The refresher: a loop over all credentials that makes each one's exchange when it is due and publishes the result.

A failure of one try, of whatever kind, never ends the loop and never touches a published token. One thread runs the
loop; exchanges are child processes, and publications, which wait for a disk, a thread's.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
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
from .credential import Credential, Files
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

    async def run(self) -> None:
        """Refreshes for ever; returns after TERM or INT. Raises LayoutError where the layout is refused at start."""
        self._give_each_a_thread()
        self._prepare()
        event(logging.INFO, "started", credentials=len(self._credentials), refresher=self._settings.refresher.name)
        for credential in self._credentials:
            self._adopt(credential)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop, number)
        looking = loop.create_task(asyncio.sleep(0))
        looked_at = time.monotonic()
        while not self._stopping.is_set():
            if time.monotonic() >= looked_at + self._look_interval():
                self._look_at_the_clock()
                if looking.done():  # else a file system hangs; nothing but the next look waits for it
                    looking = loop.create_task(self._look())
                looked_at = time.monotonic()
            now = self._clock()
            for credential in self._credentials:
                if credential.due(now) and credential not in self._running:
                    self._start(credential)
            await self._sleep(looked_at + self._look_interval())
        tasks = [looking, *self._running.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        event(logging.INFO, "stopped")

    def stop(self) -> None:
        """Makes `run` return."""
        self._stopping.set()
        self._wake.set()

    async def once(self) -> bool:
        """One exchange and one publication for each credential; whether all of them were made. Raises LayoutError."""
        self._give_each_a_thread()
        self._prepare()
        return all(await asyncio.gather(*(self._refresh(credential) for credential in self._credentials)))

    def _give_each_a_thread(self) -> None:
        """A thread that waits for a file system that hangs must not be one that another credential needs. They are
        started when they are needed, and that is seldom more than one."""
        threads = concurrent.futures.ThreadPoolExecutor(len(self._credentials) + 1)
        asyncio.get_running_loop().set_default_executor(threads)

    def _prepare(self) -> None:
        destinations = [Destination.of(credential.settings) for credential in self._credentials]
        for destination in destinations:  # all of them, before anything is written
            publish.judge(destination)
        for destination in destinations:
            try:
                publish.prepare(destination)
            except OSError as error:
                event(logging.WARNING, "directory_not_ready", path=destination.directory, message=error.strerror)

    def _adopt(self, credential: Credential) -> None:
        """A token that a former life published and that will do is a reason not to ask a KDC."""
        credential.note_files(credential.look_at_files())
        credential.clock_lead = self._clock_lead()
        destination = Destination.of(credential.settings)
        try:
            token = load(destination.path)
        except TokenError:
            return
        credential.generation = token.generation or 0  # also of one that is not adopted, and may be gone by then
        if publish.looks_right(destination) and credential.adopt(token, self._clock()):
            event(logging.INFO, "adopted", **_facts(credential))

    def _start(self, credential: Credential) -> None:
        task = asyncio.get_running_loop().create_task(self._refresh(credential))
        self._running[credential] = task
        task.add_done_callback(lambda _: self._finish(credential))

    def _finish(self, credential: Credential) -> None:
        del self._running[credential]
        self._wake.set()

    async def _refresh(self, credential: Credential) -> bool:
        """One try: exchange, check, seal, publish. Says whether it worked; the credential knows the rest."""
        credential.clock_lead = self._clock_lead()
        credential.tries += 1
        first = credential.window is None
        try:
            # What changes from here on is a change; what has changed until here makes this the first try of its kind.
            changed = credential.note_files(await asyncio.to_thread(credential.look_at_files))
            if credential.settings.keytab in changed:
                credential.start_over()
            body = await self._exchanger.exchange(credential.settings, credential.deadline(self._clock()))
            token = await asyncio.to_thread(self._publish, credential, body)
            credential.succeeded(token, self._clock())
        except RefreshError as error:
            self._failed(credential, error)
            return False
        except Exception as error:  # noqa: BLE001  (nothing that happens while running ends the loop)
            self._failed(credential, RefreshError("internal", f"{type(error).__name__}: {error}"))
            return False
        event(logging.INFO, "published", **_facts(credential))
        if first and credential.window is not None and credential.window.clamped:
            event(
                logging.WARNING,
                "window_clamped",
                credential=credential.settings.name,
                message="the window is more than half of the token's life; it is cut to "
                + seconds_text(credential.window.length),
            )
        return True

    def _publish(self, credential: Credential, body: bytes) -> Token:
        """Seals and publishes what an exchange brought; runs in a thread, since it waits for a disk."""
        settings, now = credential.settings, self._clock()
        token = _check(body, credential, now)
        data = seal(
            body,
            generation=credential.next_generation(now, _published_generation(settings.ccache)),
            issued_at=int(now),
            window_opens_at=max(0, int(credential.window_of(token, now).opens_at)),
            refresher=self._settings.refresher.name,
            settings=settings.fingerprint,
        )
        token = Token.parse(data, settings.ccache)  # the workers' reader has to take it, manifest and all
        publish.publish(Destination.of(settings), data)
        return token

    def _failed(self, credential: Credential, error: RefreshError) -> None:
        repeated = credential.error is not None and credential.error.reason == error.reason
        credential.failed(error, self._clock())
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

    async def _look(self) -> None:
        """What may have changed while nobody told us: a keytab, krb5.conf, a volume. They are looked at in a thread: a
        file system that hangs must hold neither a signal nor a refresh."""
        seen = [(credential, credential.tries) for credential in self._credentials if credential not in self._running]
        found = await asyncio.to_thread(_look_at_files, [credential for credential, _ in seen])
        for (credential, tries), (files, there) in zip(seen, found, strict=True):
            if credential.tries != tries:  # it has looked itself since, and what was seen here may be older
                continue
            name = credential.settings.name
            changed = credential.note_files(files)
            if credential.settings.keytab in changed:
                event(logging.INFO, "file_changed", credential=name, path=credential.settings.keytab)
                credential.start_over()
            elif changed:
                event(logging.INFO, "file_changed", credential=name, path=" ".join(changed))
                credential.hurry()
            if credential.token is not None and not there:
                event(logging.WARNING, "token_vanished", credential=name, path=credential.settings.ccache)
                credential.lost()
        self._wake.set()

    def _look_at_the_clock(self) -> None:
        for credential in self._credentials:
            jump = self._clock_lead() - credential.clock_lead
            if abs(jump) > _CLOCK_JUMP and credential not in self._running:
                # The header's offset was measured with the old clock: it is wrong now, and so are all times.
                event(logging.WARNING, "clock_jumped", credential=credential.settings.name, message=f"by {jump:+.0f} s")
                credential.clock_jumped(jump)

    def _clock_lead(self) -> float:
        """By how much the wall clock leads the monotonic one: changes only when the wall clock is set."""
        return self._clock() - time.monotonic()

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
        self.stop()
        # A disk that does not answer holds a thread, and the interpreter would wait for it.
        last_word = threading.Timer(_LAST_WORD, os._exit, (0,))
        last_word.daemon = True
        try:
            last_word.start()
        except RuntimeError:  # no more threads are to be had; then it ends without a last word
            pass


def _look_at_files(credentials: list[Credential]) -> list[tuple[Files, bool]]:
    """Of each credential, which files it has to work with, and whether its token is at its path."""
    return [
        (credential.look_at_files(), publish.is_there(Destination.of(credential.settings)))
        for credential in credentials
    ]


def _published_generation(path: str) -> int:
    """The generation of what is at the path, by whomever it was published; 0 where that is not known."""
    try:
        return load(path).generation or 0
    except TokenError:
        return 0


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
