"""The refresher: makes each credential's exchange when it is due and publishes the result, for years.

A failure of one try, of whatever kind, never ends it and never touches a published token. One thread runs the loop;
exchanges are child processes, and whatever waits for a disk is done in a thread.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import logging
import math
import os
import resource
import signal
import threading
import time
from collections.abc import Callable, Collection, Coroutine, Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakValueDictionary

from .. import __version__
from .._text import moment_text
from ..client import wait
from ..errors import KrbrefreshError, LayoutError, RefreshError, TokenError
from ..token import Manifest, Token, seal
from . import layout, log, policy, publish
from .account import Account, NotAsked, Unbelieved
from .child import Exchanged, Exchanger
from .credential import Credential, summary
from .files import Identity, identity
from .layout import Destination
from .lock import LOCK_NAME, HeldElsewhere, Lock
from .log import event
from .looks import Round, Seen, find, look_at_each, published, see
from .notify import Notifier
from .settings import CredentialSettings, Settings
from .status import Status, Tally
from .watch import Watch

if TYPE_CHECKING:
    from ..signature import PrivateKey
    from .health import Health

T = TypeVar("T")

_CLOCK_JUMP = 5.0  # seconds by which the wall clock may leave the monotonic one before every token is in doubt
_LAST_WORD = 0.7  # seconds after TERM; then this process ends, even if a disk does not answer
_LOOKS_APART = 2.0  # seconds at least between looks at everything: a directory can be a busy place
_LOOKS_FOR_TOKENS_APART = 0.2  # seconds; they are in memory
_PATIENCE = 2.0  # seconds for a look at a credential's files before its file system is taken to hang
_AFTER_DEFECT = 5.0  # seconds
_SETTLE = 0.2  # seconds after an event: it has companions, often
_LOCKS_AT_ONCE = 100  # that one who stands by looks at every second; the leader of one is that of others, mostly
_OPEN_BESIDES = 512  # files: connections, children's pipes, files that are just being looked at
_THE_END = "stop_path"  # whom an event at that path concerns


class Service:
    """All credentials of one refresher. `reread` gives the settings anew, for HUP; it raises SettingsError."""

    def __init__(
        self,
        settings: Settings,
        *,
        clock: Callable[[], float] = time.time,
        reread: Callable[[], Settings] | None = None,
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._reread = reread or (lambda: settings)
        self._locks: dict[str, Lock] = {}  # by the real path of the token directory
        self._accounts: WeakValueDictionary[tuple[str | None, ...], Account] = WeakValueDictionary()
        self._credentials = [self._credential(each) for each in settings.credentials]
        self._exchanger = Exchanger()
        self._running: dict[Credential, asyncio.Task[None]] = {}
        self._timers: dict[Credential, asyncio.TimerHandle] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopping = asyncio.Event()
        self._wake = asyncio.Event()  # for the next look around
        self._wake_stand_by = asyncio.Event()
        self._heard_of: set[object] = set()
        self._heard_of_all = False
        self._stuck: set[Credential] = set()
        self._looked_at: set[Credential] = set()  # at this moment
        self._late: dict[Credential, asyncio.Future[Any]] = {}  # to prepare, and when that can go on
        self._looking_for_the_end: set[str] = set()
        self._ready = False
        self._status_is_due = False
        self._until_valid = False
        self._reloads = 0
        self._lead = self._clock_lead()
        self._tally = Tally()
        self._clock_offset: float | None = None
        self._notifier = Notifier(os.environ)
        self._watch: Watch | None = None
        self._health: Health | None = None

    async def run_until_valid(self) -> bool:
        """As `run`, with its waits between tries, until there is a valid token of each credential; serves nothing.
        Whether there is: after TERM or INT it may be missing."""
        self._until_valid = True
        await self.run()
        return self._all_valid()

    async def run(self) -> None:
        """Refreshes for ever; returns after TERM or INT, or when `stop_path` appears. Raises LayoutError where the
        layout is refused at start."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._end, number)
        loop.add_signal_handler(signal.SIGHUP, self._hang_up)
        loop.add_signal_handler(signal.SIGUSR1, self._refresh_all)
        self._give_each_a_thread(len(self._credentials))
        _let_open(len(self._credentials))
        self._watch = Watch(self._hear)
        await self._prepare(self._credentials)
        event(
            logging.INFO,
            "started",
            credentials=len(self._credentials),
            refresher=self._settings.refresher.name,
            version=__version__,
        )
        if os.geteuid() == 0 and any(each.settings.group is None for each in self._credentials):
            words = "this is root, and no group is set: only root's group can read the token"
            event(logging.WARNING, "no_group", message=words)
        self._listen()
        await self._begin(self._credentials)
        if self._until_valid:
            self._spawn(self._for_ever(self._wait_for_tokens))
        self._spawn(self._for_ever(self._look_around))
        self._spawn(self._for_ever(self._look_at_locks))
        self._spawn(self._for_ever(self._watch_the_clock))
        self._notifier.ready()
        self._say_status()
        self._ready = True
        if self._reloads:
            self._spawn(self._reload())
        await self._stopping.wait()
        self._notifier.stopping()
        for timer in self._timers.values():
            timer.cancel()
        tasks = [*self._tasks, *self._running.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._exchanger.close()
        if self._health:
            await self._health.close()
        await asyncio.to_thread(_drop, list(self._locks.values()))
        self._watch.close()
        event(logging.INFO, "stopped")

    def stop(self) -> None:
        """Makes `run` return."""
        self._stopping.set()

    async def once(self) -> bool:
        """One exchange and one publication for each credential; where another refresher leads, a look at what it has
        published. Whether there is a valid token of each. Raises LayoutError."""
        self._give_each_a_thread(len(self._credentials))
        _let_open(len(self._credentials))
        await self._prepare(self._credentials)
        for credential in self._late:
            self._failed(credential, _hangs(credential.settings.ccache, _PATIENCE))
        prepared = [credential for credential in self._credentials if credential not in self._late]
        await asyncio.gather(*(self._once(credential) for credential in prepared))
        await self._exchanger.close()
        return all(credential.error is None or credential.refused for credential in self._credentials)

    async def _once(self, credential: Credential) -> None:
        if not credential.standby:
            await self._refresh(credential)
        if credential.standby:  # the refresher that leads may have started a moment ago, and not have published yet
            timeout = self._settings.refresher.exchange_deadline
            try:
                token = await asyncio.to_thread(wait, credential.settings.ccache, timeout=timeout, min_remaining=0)
                if not credential.is_ours(token):
                    raise RefreshError("publish_failed", f"{token.path}: it is the token of {token.principal}")
            except KrbrefreshError as error:
                credential.error = RefreshError("publish_failed", f"another refresher leads, and {error}")
                event(logging.ERROR, "not_valid", credential=credential.settings.name, message=str(credential.error))
            else:
                event(logging.INFO, "valid", credential=credential.settings.name, expires_at=moment_text(token.expires))

    def _all_valid(self) -> bool:
        """Whether there is a valid token of each, and no try is due or under way: one that was found may not do."""
        now = self._clock()
        return all(
            each.begun
            and each.token is not None
            and each.token.expires > now
            and (each.standby or (each.due_at > now and each not in self._running))
            for each in self._credentials
        )

    async def _wait_for_tokens(self) -> None:
        while not self._all_valid():
            await asyncio.sleep(_LOOKS_FOR_TOKENS_APART)
        self._end()

    def status(self) -> Status:
        """How it is now."""
        now = self._clock()
        return Status(
            refresher=self._settings.refresher.name,
            version=__version__,
            now=now,
            leader=any(not credential.standby for credential in self._credentials),
            credentials=[credential.status(now) for credential in self._credentials],
            tally=self._tally,
            clock_offset=self._clock_offset,
        )

    # --- start, and a new start for some ---

    def _credential(self, credential: CredentialSettings) -> Credential:
        """With the accounts that it shares with others."""
        armour = None
        if credential.fast_keytab:
            key = ("armour", credential.fast_keytab, credential.fast_principal)
            armour = self._accounts.setdefault(key, Account(armour=True))
        return Credential(
            credential,
            exchange_deadline=self._settings.refresher.exchange_deadline,
            clock_lead=self._clock_lead(),
            account=self._accounts.setdefault((credential.principal, credential.keytab), Account()),
            armour=armour,
        )

    def _give_each_a_thread(self, credentials: int) -> None:
        """A thread that waits for a file system that hangs must not be one that another credential needs: such a one
        can hold two, for its publication and for a look. They are started when they are needed, and that is seldom
        more than a few."""
        threads = concurrent.futures.ThreadPoolExecutor(2 * credentials + 8)
        asyncio.get_running_loop().set_default_executor(threads)

    async def _prepare(self, credentials: list[Credential], beside: list[Credential] | None = None) -> None:
        """Judges the layout, prepares the directories, takes the locks; who gets none stands by. One whose file system
        hangs is `_late` and not waited for. `beside`: all that there will be, where they are not all that there are.

        Raises LayoutError: before anything is written, as far as can be seen.
        """
        judged, late = await look_at_each(_judge, credentials, _PATIENCE)
        for credential, (directory, _) in judged.items():
            credential.lock = self._locks.setdefault(directory, credential.lock)
        real = {lock: directory for directory, lock in self._locks.items()}
        directories = {}
        for credential in (*self._credentials, *credentials):
            name = Destination.of(credential.settings).directory
            directories[real.get(credential.lock, name)] = name
        _raise(refusal for _, refusal in judged.values())
        layout.refuse_shared(
            {
                each.settings.name: (real[each.lock], Destination.of(each.settings))
                for each in beside or self._credentials
                if each.lock in real
            }
        )

        keytabs: dict[str, Credential] = {}  # each of them is judged, and warned of, once
        for credential in judged:
            for path in filter(None, (credential.settings.keytab, credential.settings.fast_keytab)):
                keytabs.setdefault(path, credential)
        paths: dict[Credential, list[str]] = {}
        for path, credential in keytabs.items():
            paths.setdefault(credential, []).append(path)
        looked_at, more = await look_at_each(
            lambda credential: {
                path: _or_refusal(layout.judge_keytab, path, directories) for path in paths[credential]
            },
            list(paths),
            _PATIENCE,
        )
        late |= more
        _raise(word for words in looked_at.values() for word in words.values())
        for credential, words in looked_at.items():
            for path, word in words.items():
                if word:
                    name = credential.settings.name
                    event(logging.WARNING, "keytab_exposed", credential=name, path=path, message=str(word))

        signing = [credential for credential in judged if credential.settings.signing_key and credential not in late]
        tried, more = await look_at_each(
            lambda credential: _or_refusal(_judge_signing_key, credential, directories), signing, _PATIENCE
        )
        late |= more
        _raise(tried.values())

        rest = [credential for credential in credentials if credential not in late]
        parents = {os.path.dirname(real[credential.lock]): credential for credential in reversed(rest)}

        def prepare(credential: Credential) -> bool | LayoutError:
            parent = os.path.dirname(real[credential.lock])
            if parents[parent] is credential:  # once
                publish.sweep_beside(parent)
            return _prepare(credential)

        prepared, more = await look_at_each(prepare, rest, _PATIENCE)
        _raise(prepared.values())
        for credential, leads in prepared.items():
            if not leads:
                self._stand_by(credential)
        self._late |= late | more

    async def _take_over(self, credentials: list[Credential]) -> None:
        """Begins to refresh these; a token that a former life published and that will do is a reason not to ask."""
        tries = {credential: credential.tries for credential in credentials}
        late = {credential: self._late.pop(credential) for credential in credentials if credential in self._late}
        in_time = [credential for credential in credentials if credential not in late]
        all_found, more = await look_at_each(find, in_time, _PATIENCE)
        self._mind_the_clock()
        for credential, (files, there, looks_right) in all_found.items():
            if credential.tries != tries[credential]:  # it knows better by now
                continue
            credential.note_files(files)
            credential.clock_lead = self._clock_lead()
            if there:
                token, which = there
                adopted = credential.found(token, which, self._clock(), looks_right=looks_right)
                if adopted and not credential.standby:
                    event(logging.INFO, "adopted", **credential.facts())
            credential.begun = True
            if credential.again and not credential.standby:  # since USR1 came before this
                credential.start_over()
            credential.again = False
            self._plan(credential)
        for credential, until in (late | more).items():
            self._note_stuck(credential, until)
            if not credential.standby:  # one that stands by is looked at again with the others
                self._failed(credential, _hangs(credential.settings.ccache, _PATIENCE))
                self._spawn(self._catch_up(credential, until))

    async def _catch_up(self, credential: Credential, until: asyncio.Future[Any]) -> None:
        """Once its file system answers: what was to be done with a credential before it is refreshed."""
        await asyncio.wait({until})
        while not credential.gone:
            try:
                try:
                    await self._prepare([credential])
                    credential.answers()
                except LayoutError as error:  # no reason to end any more
                    self._failed(credential, RefreshError("publish_failed", str(error), hint=error.hint))
                await self._take_over([credential])
                break
            except Exception as error:  # noqa: BLE001  (no thread, say: a credential that has not begun never would)
                self._failed(credential, RefreshError("internal", f"{type(error).__name__}: {error}"))
                await asyncio.sleep(_AFTER_DEFECT)
        self._hear([credential])
        self._say_status()

    async def _begin(self, credentials: list[Credential]) -> None:
        """`_take_over`, for the first time: what it could not begin with is begun later."""
        try:
            await self._take_over(credentials)
        except Exception as error:  # noqa: BLE001
            event(logging.ERROR, "internal", message=f"{type(error).__name__}: {error}")
            for credential in credentials:
                if not credential.begun:
                    self._spawn(self._catch_up(credential, asyncio.ensure_future(asyncio.sleep(_AFTER_DEFECT))))

    def _listen(self) -> None:
        listen = self._settings.refresher.listen
        if listen and not self._until_valid:
            from .health import Health  # costs memory and time that who turns it off need not spend

            self._health = self._health or Health(self.status)
            self._health.start(listen)

    # --- one try ---

    def _plan(self, credential: Credential) -> None:
        """Sets the alarm for the next try; called whenever it has changed."""
        self._mind_the_clock()
        timer = self._timers.pop(credential, None)
        if timer:
            timer.cancel()
        if credential in self._running or credential.standby or credential.gone or not credential.begun:
            return
        if self._stopping.is_set():
            return
        delay = max(0.0, credential.due_at - self._clock())
        self._timers[credential] = asyncio.get_running_loop().call_later(delay, self._start, credential)

    def _start(self, credential: Credential) -> None:
        del self._timers[credential]
        credential.again = False
        task = asyncio.get_running_loop().create_task(self._refresh(credential))
        self._running[credential] = task
        task.add_done_callback(lambda _: self._finish(credential))

    def _finish(self, credential: Credential) -> None:
        del self._running[credential]
        if credential.again:
            credential.due_now()  # what the account was told in the meantime counts: USR1 came before that
        self._plan(credential)
        self._say_status()

    async def _refresh(self, credential: Credential) -> None:
        """One try: exchange, check, seal, publish. The credential knows what came of it."""
        lead, began = self._clock_lead(), time.monotonic()
        credential.tries += 1
        settings, name = credential.settings, credential.settings.name
        exchanged = signer = None
        try:
            if settings.signing_key:  # first: without it the KDC would be asked to no end
                signer = await self._patiently(credential, settings.signing_key, lambda: _signer(credential))
            exchanged = await self._ask(credential)
            changed = credential.note_files(exchanged.files)
            if settings.keytab in changed:
                credential.keytab_changed(self._clock(), changed)
            if exchanged.error:
                raise exchanged.error
            loss = credential.would_lose(exchanged.refused, self._clock())
            if loss:
                raise loss
            refused = _first(exchanged.refused)
            if refused and credential.has_as_much(exchanged.refused, self._clock()):
                self._failed(credential, refused, partly=True)
                return
            publish_it = functools.partial(self._publish, credential, exchanged, signer)
            token, which = await self._patiently(credential, settings.ccache, publish_it)
            if exchanged.method == "keytab":
                credential.clock_lead = lead
            self._mind_the_clock()
            after = credential.failures or None
            now = self._clock()
            credential.succeeded(
                token,
                now,
                method=exchanged.method,
                identity=which,
                refused=exchanged.refused,
                asked=now - (time.monotonic() - began),
            )
        except HeldElsewhere:
            self._stand_by(credential)
            return
        except RefreshError as error:
            if error.reason == "kdc_timeout" and not exchanged and not isinstance(error, NotAsked):
                credential.had_no_end()
            self._failed(credential, error)
            if exchanged:
                for account in credential.accounts:
                    account.refused(exchanged, credential.due_at - self._clock(), credential)
            return
        except Exception as error:  # noqa: BLE001  (nothing that happens while running ends the loop)
            self._failed(credential, RefreshError("internal", f"{type(error).__name__}: {error}"))
            return
        finally:
            self._tally.took(time.monotonic() - began)
        self._clock_offset = token.offset
        event(logging.INFO, "published", **credential.facts(), method=exchanged.method, after_failures=after)
        if refused:
            self._failed(credential, refused, partly=True)
        if exchanged.warning:
            event(logging.WARNING, "keytab_unusable", credential=name, message=exchanged.warning)
        clamped = credential.clamped()
        if clamped and sum(credential.refreshes.values()) == 1:
            event(logging.WARNING, "window_clamped", credential=name, message=clamped)

    async def _ask(self, credential: Credential) -> Exchanged:
        """The exchange, in its turn among those that share its armour's account, and then among those that share its
        own: always in this order, so that no two of them wait for each other."""
        patience = self._deadline(credential)

        async def ask() -> Exchanged:
            return await credential.account.ask(lambda: self._exchange(credential), patience, credential)

        return await (credential.armour.ask(ask, patience, credential) if credential.armour else ask())

    async def _exchange(self, credential: Credential) -> Exchanged:
        deadline = self._deadline(credential)
        without = credential.foreign_services if credential.at_home else ()
        exchanged = await self._exchanger.exchange(
            credential.settings, deadline, fresh=credential.fresh, without=without
        )
        credential.at_home = False
        words = "not asked for this time: the last exchange, which it was part of, had no end"
        exchanged.refused.update((name, RefreshError("kdc_timeout", f"{name}: {words}")) for name in without)
        return exchanged

    def _deadline(self, credential: Credential) -> float:
        return credential.deadline(self._clock())

    async def _patiently(self, credential: Credential, path: str, work: Callable[[], T]) -> T:
        """What `work` at `path` comes to, in a thread. One that a file system holds up is a failure as long as that
        lasts, and holds one thread: nothing else is begun for the credential meanwhile."""
        patience = self._settings.refresher.exchange_deadline
        working = asyncio.ensure_future(asyncio.to_thread(work))
        done, _ = await asyncio.wait({working}, timeout=patience)
        if not done:
            self._failed(credential, _hangs(path, patience))
            self._say_status()
        return await working

    def _publish(
        self, credential: Credential, exchanged: Exchanged, signer: PrivateKey | None
    ) -> tuple[Token, Identity]:
        """Seals and publishes what an exchange brought; runs in a thread, since it waits for a disk."""
        settings, now = credential.settings, self._clock()
        destination = Destination.of(settings)
        token = _check(exchanged, credential, now)
        data = seal(
            exchanged.ccache,
            generation=credential.next_generation(now, _generation(published(credential))),
            issued_at=int(now),
            window_opens_at=max(0, int(credential.window_of(token, now).opens_at)),
            refresher=self._settings.refresher.name,
            settings=settings.fingerprint,
            signer=signer,
        )
        token = Token.parse(data, settings.ccache)  # the workers' reader has to take it, manifest and all
        publish.publish(destination, data, credential.lock)
        self._listen_for(credential)  # its directory may be a new one
        return token, identity(settings.ccache)

    def _failed(self, credential: Credential, error: RefreshError, *, partly: bool = False) -> None:
        # It is kept, and would keep the frames that it came through: tickets, a signing key, and rings of garbage.
        error.__traceback__ = error.__context__ = None
        self._mind_the_clock()
        self._tally.failures[error.reason] += 1
        self._wake.set()  # one that fails is looked at more often
        news = credential.failed_partly(error, self._clock()) if partly else credential.failed(error, self._clock())
        if isinstance(error, NotAsked) and error.wait is not None:
            credential.due_at = self._clock() + error.wait
        elif isinstance(error, Unbelieved) and not credential.rejections:
            credential.due_at = min(credential.due_at, self._clock() + error.wait)
        if news:
            event(
                logging.ERROR,
                "refresh_failed",
                credential=credential.settings.name,
                reason=error.reason,
                message=str(error),
                hint=error.hint,
                failures=credential.failures,
                next_attempt_at=moment_text(credential.due_at),
                token_expires_at=moment_text(credential.token.expires) if credential.token else None,
            )

    # --- what changes while nobody tells us ---

    async def _watch_the_clock(self) -> None:
        while True:
            await asyncio.sleep(min(policy.CLOCK_LOOK_EVERY, self._notifier.watchdog_interval or math.inf))
            self._notifier.watchdog()
            self._mind_the_clock()
            lead = self._clock_lead()
            for credential in self._credentials:
                jump = lead - credential.clock_lead
                if abs(jump) > _CLOCK_JUMP and credential not in self._running:
                    # The header's offset was measured with the old clock: it is wrong now, and so are all times.
                    name = credential.settings.name
                    event(logging.WARNING, "clock_jumped", credential=name, message=f"by {jump:+.0f} s")
                    credential.distrust(lead)
                    self._plan(credential)

    def _mind_the_clock(self) -> None:
        """Moves what waits by as much as the wall clock was moved: done before any wait is reckoned anew, so that none
        is cut short, and none is moved that was reckoned by the new clock."""
        step = self._clock_lead() - self._lead
        if abs(step) > _CLOCK_JUMP:
            self._lead += step
            for credential in self._credentials:
                credential.clock_moved(step)

    def _clock_lead(self) -> float:
        """By how much the wall clock leads the monotonic one: changes only when the wall clock is set."""
        return self._clock() - time.monotonic()

    async def _look_around(self) -> None:
        """Looks at the files: at those that an event concerns, now and then at all of them without one, and every few
        seconds at those of a credential that fails."""
        assert self._watch is not None
        idle = policy.IDLE_LOOK_EVERY if self._watch.works else policy.DEAF_LOOK_EVERY
        all_at = heard_at = some_at = -math.inf
        while True:
            now = time.monotonic()
            look_at: list[Credential] | None = None
            may_hear = now >= heard_at + _LOOKS_APART
            if now >= all_at + idle or (self._heard_of_all and may_hear):
                look_at = self._credentials
                all_at = heard_at = some_at = now
                self._heard_of_all = False
                self._heard_of.clear()
            elif self._heard_of and may_hear:
                look_at = [credential for credential in self._credentials if credential in self._heard_of]
                heard_at = now
                self._heard_of.clear()
            elif self._impatient() and now >= some_at + policy.LOOK_EVERY:
                look_at = [credential for credential in self._credentials if credential.error]
                some_at = now
            if look_at is not None:
                self._look_for_the_end()
                self._spawn(self._look(look_at))
            self._wake.clear()
            until = all_at + idle
            if self._heard_of_all or self._heard_of:
                until = min(until, heard_at + _LOOKS_APART)
            if self._impatient():
                until = min(until, some_at + policy.LOOK_EVERY)
            # No wait_for: before Python 3.12 it loses a cancellation that comes together with what it waits for.
            alarm = asyncio.get_running_loop().call_later(max(0.0, until - time.monotonic()), self._wake.set)
            try:
                await self._wake.wait()
            finally:
                alarm.cancel()

    def _impatient(self) -> bool:
        stop_path = self._settings.refresher.stop_path
        return bool(stop_path) or any(credential.error for credential in self._credentials)

    def _look_for_the_end(self) -> None:
        stop_path = self._settings.refresher.stop_path
        if stop_path and stop_path not in self._looking_for_the_end:  # its file system may hang
            self._looking_for_the_end.add(stop_path)
            self._spawn(self._look_at_stop_path(stop_path))

    async def _look_at_stop_path(self, stop_path: str) -> None:
        def there() -> bool:
            assert self._watch is not None
            self._watch.add(_THE_END, [stop_path])
            return os.path.lexists(stop_path)

        try:
            found = await asyncio.to_thread(there)
        finally:
            self._looking_for_the_end.discard(stop_path)
        if found and stop_path == self._settings.refresher.stop_path:
            event(logging.INFO, "stop_path_found", path=stop_path)
            self._end()

    def _hear(self, who: Collection[object] | None = None) -> None:
        """Something happened to a file of theirs, or of whoever it may be; it has companions, often."""
        if who is None:
            self._heard_of_all = True
        else:
            self._heard_of.update(who)
        asyncio.get_running_loop().call_later(_SETTLE, self._wake.set)

    async def _look(self, credentials: list[Credential]) -> None:
        """What may have changed: a keytab, krb5.conf, the token, the lock. They are looked at in a thread, and a file
        system that hangs holds up the look at its own credential alone."""
        left = [each for each in reversed(credentials) if each.begun and each not in self._stuck]
        while left:
            looking = Round(left)
            task = asyncio.ensure_future(asyncio.to_thread(self._see_all, looking))
            try:
                await asyncio.wait({task}, timeout=_PATIENCE)
            finally:
                looking.over = True
            for seen in looking.seen:
                credential = seen.credential
                # One that is at work, or has been since, has looked itself, and what is seen here may be older.
                if credential.tries == seen.tries and credential not in self._running and not credential.standby:
                    self._react(credential, seen)
            if looking.passed:
                self._hear(looking.passed)
            if task.done():
                task.result()
            elif looking.at:
                self._note_stuck(looking.at, task)
            else:  # no thread is free: later
                return

    def _note_stuck(self, credential: Credential, until: asyncio.Future[Any]) -> None:
        """Its file system hangs: nobody looks at it until that is over, and then somebody has to."""

        def over(_: asyncio.Future[Any]) -> None:
            self._stuck.discard(credential)
            self._hear([credential])

        self._stuck.add(credential)
        until.add_done_callback(over)

    def _listen_for(self, credential: Credential) -> None:
        """For a thread. One that has gone in the meantime is not kept for it."""
        if self._watch:
            ccache = credential.settings.ccache
            lock = os.path.join(os.path.dirname(ccache), LOCK_NAME)
            self._watch.add(credential, [*credential.paths, ccache, lock])
            if credential.gone:
                self._watch.forget([credential])

    def _see_all(self, looking: Round) -> None:
        while looking.left and not looking.over:
            credential = looking.left.pop()
            if credential in self._looked_at:  # by another look, which may have been too early; or it hangs
                looking.passed.append(credential)
                continue
            looking.at = credential
            self._looked_at.add(credential)
            try:
                tries = -1 if credential in self._running else credential.tries
                self._listen_for(credential)
                seen = see(credential, tries, credential.lock)
            finally:
                self._looked_at.discard(credential)
            if not looking.over:
                looking.seen.append(seen)

    def _react(self, credential: Credential, seen: Seen) -> None:
        self._mind_the_clock()
        name, keytab = credential.settings.name, credential.settings.keytab
        changed = credential.note_files(seen.files)
        if changed:
            event(logging.INFO, "file_changed", credential=name, path=" ".join(changed))
            if keytab in changed or credential.settings.fast_keytab in changed:
                credential.keytab_changed(self._clock(), changed)
            elif credential.settings.signing_key in changed or credential.error:
                credential.hurry()  # else all is well without it: a krb5.conf rolled out to a fleet makes no storm
            if seen.exposed:
                event(logging.WARNING, "keytab_exposed", credential=name, path=keytab, message=seen.exposed)
        if seen.elsewhere:
            self._stand_by(credential)
        elif credential.token is not None and seen.identity != credential.identity and not seen.unknown:
            if seen.token is not None and _is_same(seen.token.manifest, credential.token.manifest):
                credential.identity = seen.identity  # a third party appended to it; what we published is there
            else:
                word = "token_vanished" if seen.missing else "token_replaced"
                event(logging.WARNING, word, credential=name, path=credential.settings.ccache)
                credential.lost(self._clock())
        self._plan(credential)

    # --- leadership ---

    def _stand_by(self, credential: Credential) -> None:
        if credential.gone:
            return
        if not credential.standby:
            event(logging.INFO, "standing_by", credential=credential.settings.name, path=credential.settings.ccache)
        credential.stand_by()
        self._plan(credential)
        self._wake_stand_by.set()

    async def _look_at_locks(self) -> None:
        """While another refresher leads: takes over when it has gone. Of many locks some are looked at every second, in
        turn; and once one is free, all of them at once."""
        found = False
        next_one = 0
        while True:
            await self._wake_stand_by.wait()
            if not any(credential.standby for credential in self._credentials):
                self._wake_stand_by.clear()
                continue
            await asyncio.sleep(0 if found else policy.STANDBY_LOOK_EVERY)
            waiting = [each for each in self._credentials if each.standby and each not in self._stuck]
            some = len(waiting) > _LOCKS_AT_ONCE and not found
            if some:
                next_one %= len(waiting)
                waiting = [*waiting[next_one:], *waiting[:next_one]][:_LOCKS_AT_ONCE]
                next_one += _LOCKS_AT_ONCE
            looking = Round(list(reversed(waiting)))
            task = asyncio.ensure_future(asyncio.to_thread(_try_locks, looking))
            try:
                await asyncio.wait({task}, timeout=_PATIENCE / 2)
            finally:
                looking.over = True
            if task.done():
                task.result()
            elif looking.at:
                self._note_stuck(looking.at, task)
                waiting = waiting[: waiting.index(looking.at)]  # the rest, in a second
            # One that the thread is still at may become free while this goes on: that is for the next round.
            at_hand = set(waiting)
            free = [credential for credential in looking.free if credential in at_hand]
            found = bool(free) and (some or not task.done())
            for credential in free:
                if credential.standby and not credential.gone:
                    event(logging.INFO, "leading", credential=credential.settings.name)
                    credential.lead()
            await self._take_over(waiting)
            self._say_status()

    # --- signals ---

    def _end(self, number: int | None = None) -> None:
        if self._stopping.is_set():
            return
        event(logging.INFO, "stopping", signal=signal.Signals(number).name if number else None)
        self.stop()
        # A disk that does not answer holds a thread, and the interpreter would wait for it.
        status = 1 if self._until_valid and not self._all_valid() else 0
        last_word = threading.Timer(_LAST_WORD, os._exit, (status,))
        last_word.daemon = True
        try:
            last_word.start()
        except RuntimeError:  # no more threads are to be had; then it ends without a last word
            pass

    def _refresh_all(self) -> None:
        """USR1. One that arrives while an exchange runs asks for one more after it; and before a credential has begun,
        for one as soon as it has."""
        event(logging.INFO, "refresh_requested", signal="SIGUSR1")
        for credential in self._credentials:
            if not credential.standby:
                credential.again = True
                credential.start_over()
                self._plan(credential)

    def _hang_up(self) -> None:
        """HUP. One that arrives while the settings are read asks for another reading; one at the start is heard after
        it."""
        self._reloads += 1
        if self._reloads == 1 and self._ready:
            self._spawn(self._reload())

    async def _reload(self) -> None:
        while self._reloads:
            asked = self._reloads
            self._notifier.reloading()
            try:
                await self._apply(await asyncio.to_thread(self._reread))
            except Exception as error:  # noqa: BLE001  (whatever it is, it is no reason to end or to hear no more)
                words = str(error) if isinstance(error, KrbrefreshError) else f"{type(error).__name__}: {error}"
                hint = getattr(error, "hint", None)
                event(logging.ERROR, "settings_refused", message=f"{words}; the old settings stand", hint=hint)
            finally:
                self._reloads -= asked
            ours = {credential.lock for credential in self._credentials}
            dropped = [directory for directory, lock in self._locks.items() if lock not in ours]
            self._spawn(asyncio.to_thread(_drop, [self._locks.pop(directory) for directory in dropped]))
            self._notifier.ready()
            self._say_status()

    async def _apply(self, new: Settings) -> None:
        """Takes over new settings. What has not changed goes on, without its wait if it fails; what is gone leaves its
        token where it is. Raises LayoutError, with the old settings still in force."""
        kept = {credential.settings: credential for credential in self._credentials}
        deadline = new.refresher.exchange_deadline
        credentials = [kept.get(each) or self._credential(each) for each in new.credentials]
        others = [credential for credential in credentials if credential.settings not in kept]
        self._give_each_a_thread(len(credentials))
        _let_open(len(credentials))
        await self._prepare(others, credentials)
        staying = set(credentials)
        gone = [credential for credential in self._credentials if credential not in staying]
        for credential in gone:
            credential.gone = True
            self._plan(credential)
        if self._watch:
            self._watch.forget(gone)
        running = [self._running[credential] for credential in gone if credential in self._running]
        if running:  # what it brings is published under the old settings; a disk that hangs is not waited for
            await asyncio.wait(running, timeout=2 * self._settings.refresher.exchange_deadline)
        forebears = {credential.settings.name: credential for credential in gone}
        before, self._settings, self._credentials = self._settings.refresher, new, credentials
        for credential in credentials:
            credential.exchange_deadline = deadline
            if credential.settings not in kept:
                credential.inherit(forebears.get(credential.settings.name))
            elif credential.error and credential not in self._running:
                credential.start_over()
                self._plan(credential)
        event(logging.INFO, "settings_read", credentials=len(credentials), changed=len(others), gone=len(gone))
        self._wake_stand_by.set()  # some of them may stand by, and nobody saw them before
        for credential in others:  # whoever has changed something wants to know whether it works
            for account in credential.accounts:
                account.forget()
        await self._begin(others)
        for credential in others:
            forebear = forebears.get(credential.settings.name)
            if forebear and _keys(forebear.settings) != _keys(credential.settings):
                credential.start_over()  # although the token is as good as before
                self._plan(credential)
        log.use(new.refresher.log_format)
        if new.refresher.listen != before.listen:
            if self._health:
                await self._health.close()
            self._listen()
        self._hear()

    # --- small things ---

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(self._survive(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(lambda _: work.close())  # of one that was cancelled before it began, no word

    async def _for_ever(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """A loop without end: a defect in it, or threads that are not to be had, must not be its end."""
        while not self._stopping.is_set():
            await self._survive(work())
            await asyncio.sleep(_AFTER_DEFECT)

    async def _survive(self, work: Coroutine[Any, Any, None]) -> None:
        """A task that nobody waits for: a defect in it must at least be heard of."""
        try:
            await work
        except Exception as error:  # noqa: BLE001
            event(logging.ERROR, "internal", message=f"{type(error).__name__}: {error}")

    def _say_status(self) -> None:
        """A little later, for all that happens until then: of many credentials one or another is always done."""
        if self._notifier.listens and not self._status_is_due:
            self._status_is_due = True
            asyncio.get_running_loop().call_later(_SETTLE, self._tell_status)

    def _tell_status(self) -> None:
        self._status_is_due = False
        if not self._stopping.is_set():
            self._notifier.status(summary(self._credentials, self._clock()))


def _let_open(credentials: int) -> None:
    """Raises this process's limit of open files to what so many locks need, besides all else, as far as it may."""
    needed = credentials + _OPEN_BESIDES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    if wanted < needed:
        words = f"{credentials} credentials may need {needed} open files, and the hard limit is {hard}: raise it"
        event(logging.WARNING, "few_descriptors", message=words)


def _keys(settings: CredentialSettings) -> tuple[str | None, ...]:
    """Where the keys of its exchanges come from."""
    return settings.keytab, settings.fast_keytab, settings.fast_ccache, settings.method


def _drop(locks: list[Lock]) -> None:
    for lock in locks:
        lock.drop()


def _try_locks(looking: Round) -> None:
    """Which of those that stand by have a lock that is ours now; for a thread."""
    while looking.left and not looking.over:
        credential = looking.at = looking.left.pop()
        destination = Destination.of(credential.settings)
        # To prepare is to write, which the leader would hear: only when it has gone.
        if publish.is_held_elsewhere(destination, credential.lock):
            continue
        try:
            free = publish.prepare(destination, credential.lock)
        except (OSError, LayoutError):  # nobody leads here: it is ours, and the publication will say what is wrong
            free = True
        if free:
            looking.free.append(credential)


def _or_refusal(judge: Callable[..., T], *arguments: Any) -> T | LayoutError:
    try:
        return judge(*arguments)
    except LayoutError as error:
        return error


def _raise(found: Iterable[object]) -> None:
    """The first refusal among these, if there is one."""
    for each in found:
        if isinstance(each, LayoutError):
            raise each


def _judge(credential: Credential) -> tuple[str, LayoutError | None]:
    """The real path of its token directory, and whether that is refused."""
    destination = Destination.of(credential.settings)
    try:
        refusal = _or_refusal(layout.judge, destination)
    except OSError as error:  # a file system that is going, say
        words = f"{destination.directory}: it cannot be looked at: {error.strerror}"
        refusal = LayoutError(words, hint="check the file system")
    return os.path.realpath(destination.directory), refusal


def _prepare(credential: Credential) -> bool | LayoutError:
    """Whether we lead there; a directory that is not to be had yet has no other leader that we know of."""
    destination = Destination.of(credential.settings)
    try:
        return _or_refusal(publish.prepare, destination, credential.lock)
    except OSError as error:
        event(logging.WARNING, "directory_not_ready", path=destination.directory, message=error.strerror)
        return True


def _hangs(path: str, patience: float) -> RefreshError:
    words = f"{path}: the file system has not answered for {patience:.0f} s"
    hint = "the disk or the server behind the token directory or the keytab hangs; the refresher waits for it"
    return RefreshError("publish_failed", words, hint=hint)


def _generation(token: Token | None) -> int:
    return (token.generation if token else None) or 0


def _is_same(one: Manifest | None, other: Manifest | None) -> bool:
    """Whether they are of one publication."""
    return one is not None and other is not None and (one.generation, one.sha256) == (other.generation, other.sha256)


def _first(refused: dict[str, RefreshError]) -> RefreshError | None:
    """The first of these errors, in whose words the others are counted."""
    for error in refused.values():
        more = f" (and {len(refused) - 1} more services)" if len(refused) > 1 else ""
        return RefreshError(error.reason, f"{error}{more}", hint=error.hint)
    return None


def _signer(credential: Credential) -> PrivateKey | None:
    """The key that signs, as it is in its file now. Raises RefreshError."""
    path = credential.settings.signing_key
    if not path:
        return None
    from ..signature import PrivateKey  # costs 5 MiB, which who signs nothing need not spend

    try:
        key = PrivateKey.load(path)
    except KrbrefreshError as error:
        raise RefreshError("publish_failed", f"the signing key: {error}", hint=error.hint) from None
    credential.verifier = key.public
    return key


def _judge_signing_key(credential: Credential, directories: Mapping[str, str]) -> None:
    """Whether the key that signs is to be had, and nobody else's. Raises LayoutError."""
    path = credential.settings.signing_key
    if not path:
        return
    warning = layout.judge_key(path, directories, "signing key")
    if warning:
        event(logging.WARNING, "signing_key_exposed", credential=credential.settings.name, path=path, message=warning)
    try:
        _signer(credential)
    except RefreshError as error:
        raise LayoutError(str(error), hint=error.hint) from None


def _check(exchanged: Exchanged, credential: Credential, now: float) -> Token:
    """What the exchange brought, read with the workers' own reader: the right principal, the tickets that were asked
    for, time left to live."""
    settings = credential.settings
    try:
        token = Token.parse(exchanged.ccache)
    except TokenError as error:
        raise RefreshError("internal", f"the exchange brought no ccache: {error}") from None
    if not (credential.settings.canonicalize or credential.is_ours(token)):
        raise RefreshError("internal", f"the exchange brought the token of {token.principal}")
    if token.has_tgt != settings.include_tgt:
        raise RefreshError("internal", f"the exchange brought {'a' if token.has_tgt else 'no'} TGT of {token.realm}")
    lacking = credential.services_lacking(token) - set(exchanged.refused)
    if lacking:
        raise RefreshError("internal", f"the exchange brought no ticket of {', '.join(sorted(lacking))}")
    if token.expires <= now:
        raise RefreshError(
            "clock_skew",
            f"the ticket of {token.principal} had ended when it arrived ({moment_text(token.expires)} by this clock)",
        )
    return token
