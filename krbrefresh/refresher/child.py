"""The parent's side of an exchange: children that are started when there is work, fed, and killed when they hang.

This process never imports krb5 and never opens a keytab: see exchange.py for who does.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import math
import os
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from dataclasses import dataclass, field
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from ..ccache import MAX_SIZE
from ..errors import REFRESH_REASONS, NotInstalledError, RefreshError
from .files import Files, worked_with
from .settings import CredentialSettings

MOST_CHILDREN = 8
SILENT_AFTER = 1.0  # seconds; a KDC that lives answers within milliseconds
START_WITHIN = 15.0  # seconds; it takes 40 ms on a machine at rest
REAP_WITHIN = 1.0
GONE_WITHIN = 0.2  # seconds between a child's last word and its end
KEPT_FOR = 5.0  # seconds for which a child waits for work, where another exchange ended that lately before its own
READY = b"ready\n"
MOST_REQUESTS = 1000  # that a child serves: what a library may lose at each of them is given back
_MAX_REPLY = 1 << 20
_MAX_WORDS = 2000

T = TypeVar("T")

# -I -S: no user's site-packages, no PYTHONPATH, no .pth files; it starts in half the time, too. The directories stand
# behind the standard library's, so that nothing in them can shadow it.
_START = (
    "import sys; parent = int(sys.argv[1]); sys.path += sys.argv[2:]; "
    "from krbrefresh.refresher.exchange import main; main(parent)"
)


# What the child has to know of a credential's settings.
_REQUEST = (
    "principal",
    "keytab",
    "ccache",
    "lifetime",
    "renewable_lifetime",
    "forwardable",
    "proxiable",
    "canonicalize",
    "addressless",
    "fast_keytab",
    "fast_principal",
    "fast_ccache",
    "services",
    "include_tgt",
    "method",
    "fingerprint",
)


@dataclass(frozen=True)
class Exchanged:
    """What an exchange came to: a whole ccache with the new tickets, how it was had, which services have none and why,
    and what will be wrong one day; or the error, and whether it is that of the FAST `armour`. `files` are those that
    the child worked with."""

    ccache: bytes = b""
    method: str = ""
    warning: str | None = None
    refused: dict[str, RefreshError] = field(default_factory=dict)
    error: RefreshError | None = None
    armour: bool = False
    files: Files = field(default_factory=dict)


def _module_directories() -> list[str]:
    """Where the child finds this package, krb5 and gssapi. Raises NotInstalledError."""
    directories = [os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))]
    spec = importlib.util.find_spec("krb5")  # looks for it, and does not import it
    if spec is None or spec.origin is None:
        raise NotInstalledError("the package krb5 is not installed here")
    found = [each.origin for each in (spec, importlib.util.find_spec("gssapi")) if each and each.origin]
    directories += [os.path.dirname(os.path.dirname(os.path.abspath(origin))) for origin in found]
    return list(dict.fromkeys(directories))


def _command() -> list[str]:
    return [sys.executable, "-I", "-S", "-c", _START, str(os.getpid()), *_module_directories()]


def look(requests: list[dict[str, Any]], deadline: float) -> list[dict[str, Any]]:
    """What a child says to requests that ask no KDC (exchange.py, `look_at`), in their order; one that cannot be
    answered has a `reason`, a `message` and perhaps a `hint`. For a caller without a loop; it waits.

    Raises NotInstalledError, and RefreshError where there is no child, or no answer within `deadline` seconds.
    """
    lines = b"".join(json.dumps(request).encode() + b"\n" for request in requests)
    late: list[bool] = []
    try:
        child = subprocess.Popen(_command(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    except OSError as error:
        raise _not_started(error) from None

    def end() -> None:
        late.append(True)
        child.kill()

    alarm = threading.Timer(deadline, end)
    alarm.start()
    try:
        output, errors = child.communicate(lines)
    finally:
        alarm.cancel()
    if late:
        raise RefreshError(
            "internal",
            f"the exchange's child process had no answer after {deadline:.3g} s",
            hint="a keytab or krb5.conf on a file system that does not answer, or a machine that is starved",
        )
    ready, _, replies = output.partition(READY)
    answers = [json.loads(line) for line in replies.splitlines()]
    if ready or len(answers) != len(requests):
        last = errors.decode("utf-8", "replace").strip().rpartition("\n")[2]
        raise RefreshError(
            "internal",
            f"the exchange's child process ended with status {child.returncode}: {last or 'it said nothing'}",
            hint="is libkrb5 there that the package krb5 was compiled against? A negative status is a signal",
        )
    return answers


class _Line:
    """Who may have a child now: eight at a time, and eight more for those whose KDC is known to keep them waiting.

    An exchange that is not answered within a second leaves its place to others, and its realm waits in the slow line
    until somebody in it is answered: a KDC that hangs must not hold up the credentials of another.
    """

    def __init__(self) -> None:
        self._quick = asyncio.Semaphore(MOST_CHILDREN)
        self._slow = asyncio.Semaphore(MOST_CHILDREN)
        self._silent: set[str] = set()
        self.waiting = 0

    @contextlib.asynccontextmanager
    async def place(self, realm: str) -> AsyncIterator[Callable[[], None]]:
        """A place in the line of that realm; what it gives is called when the KDC has answered."""
        self.waiting += 1
        try:
            line = await self._turn(realm)
        finally:
            self.waiting -= 1
        held = [line]
        patient = True

        def give_up() -> None:
            nonlocal patient
            patient = False
            self._silent.add(realm)
            if line is self._quick:
                held.pop().release()

        def answer() -> None:
            if patient:
                self._silent.discard(realm)

        patience = asyncio.get_running_loop().call_later(SILENT_AFTER, give_up)
        try:
            yield answer
        finally:
            patience.cancel()
            for each in held:
                each.release()

    async def _turn(self, realm: str) -> asyncio.Semaphore:
        while True:
            line = self._slow if realm in self._silent else self._quick
            await line.acquire()
            if line is self._slow or realm not in self._silent:
                return line
            line.release()  # it fell silent in the meantime


class Exchanger:
    """Makes exchanges, several at a time, each in a child process with a hard deadline.

    A child that is done takes the next request in line, so that many credentials that are due together share the cost
    of starting one. With nothing in line it ends: at once where exchanges are rare, and where one follows another, when
    there was no other for a few seconds.
    """

    def __init__(self) -> None:
        self._command = _command()
        self._line = _Line()
        self._idle: dict[asyncio.subprocess.Process, asyncio.TimerHandle] = {}
        self._served: WeakKeyDictionary[asyncio.subprocess.Process, int] = WeakKeyDictionary()
        self._last = -math.inf
        self._ending: set[asyncio.Task[None]] = set()

    async def exchange(
        self, credential: CredentialSettings, deadline: float, *, fresh: bool = False, without: Iterable[str] = ()
    ) -> Exchanged:
        """The credential's new tickets, as exchange.exchange() makes them, or why there are none; `fresh`: by keytab,
        whatever the method is; `without` these services.

        Raises RefreshError where the child did not answer: `kdc_timeout` once `deadline` seconds have passed since it
        got the request, or `internal`.
        """
        request = {name: getattr(credential, name) for name in _REQUEST}
        request["services"] = [service for service in credential.services if service not in without]
        if fresh:
            request["method"] = "keytab"
        realm = credential.realm
        async with self._line.place(realm) as answer:
            child = None
            reusable = False
            try:
                child = self._idle_one() or await self._start()
                reply, body = await _within(deadline, _converse(child, request))
                outcome = _outcome(reply, body, worked_with(credential.keytab, credential.fast_keytab))
                reusable = True  # one that talks nonsense gets nobody else's request
                answer()
            except asyncio.TimeoutError:
                raise RefreshError(
                    "kdc_timeout", f"{credential.principal}: the exchange had no end after {deadline:.3g} s"
                ) from None
            finally:
                if child is not None and not (reusable and self._keep(child)):
                    await _end(child)
        return outcome

    async def close(self) -> None:
        """Ends the children that have nothing to do."""
        while child := self._idle_one():
            self._end_aside(child)
        if self._ending:
            await asyncio.wait(self._ending)

    def _idle_one(self) -> asyncio.subprocess.Process | None:
        """The one that was at work last, which is in the processor's caches."""
        while self._idle:
            child, timer = self._idle.popitem()
            timer.cancel()
            if child.returncode is None:  # nobody has killed it
                return child
        return None

    def _keep(self, child: asyncio.subprocess.Process) -> bool:
        """Whether it stays for another request, or is not needed any more."""
        loop = asyncio.get_running_loop()
        before, self._last = self._last, loop.time()
        self._served[child] = self._served.get(child, 0) + 1
        frequent = self._last - before < KEPT_FOR and len(self._idle) < MOST_CHILDREN
        if self._served[child] >= MOST_REQUESTS or not (frequent or len(self._idle) < self._line.waiting):
            return False
        self._idle[child] = loop.call_later(KEPT_FOR, self._has_waited, child)
        return True

    def _has_waited(self, child: asyncio.subprocess.Process) -> None:
        del self._idle[child]
        self._end_aside(child)

    def _end_aside(self, child: asyncio.subprocess.Process) -> None:
        ending = asyncio.get_running_loop().create_task(_end(child))
        self._ending.add(ending)
        ending.add_done_callback(self._ending.discard)

    async def _start(self) -> asyncio.subprocess.Process:
        """A child that is ready for requests: what it takes to start is no part of an exchange's deadline."""
        try:
            child = await asyncio.create_subprocess_exec(
                *self._command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, limit=_MAX_REPLY
            )
        except OSError as error:
            raise _not_started(error) from None
        ready = b""
        try:
            assert child.stdout is not None
            ready = await _within(START_WITHIN, child.stdout.readline())
            if ready != READY:
                raise _nonsense(ready) if ready else await _gone(child)
        except asyncio.TimeoutError:
            raise RefreshError(
                "internal",
                f"the exchange's child process was not ready after {START_WITHIN:.0f} s",
                hint="this machine is starved of processor, memory or disk",
            ) from None
        finally:
            if ready != READY:
                await _end(child)
        return child


async def _within(seconds: float, work: Coroutine[Any, Any, T]) -> T:
    """What the work comes to; raises asyncio.TimeoutError where it takes longer. asyncio.wait_for, before Python 3.12,
    loses a cancellation that comes together with the result."""
    task = asyncio.ensure_future(work)
    task.add_done_callback(lambda task: task.cancelled() or task.exception())  # of a result that nobody takes, no word
    try:
        await asyncio.wait({task}, timeout=seconds)
        if not task.done():
            raise asyncio.TimeoutError
        return task.result()
    finally:
        task.cancel()


async def _converse(child: asyncio.subprocess.Process, request: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
    """What the child replies to a request, and the bytes that follow its reply: no more than a token may have, whatever
    the child, which speaks with the network, says of their number."""
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        child.stdin.write(json.dumps(request).encode() + b"\n")
        await child.stdin.drain()
        line = await child.stdout.readline()
        if not line.endswith(b"\n"):
            raise EOFError
        reply = json.loads(line)
        size = reply.get("size", 0) if isinstance(reply, dict) else None
        if not isinstance(size, int) or not 0 <= size <= MAX_SIZE:
            raise _nonsense(reply)
        return reply, await child.stdout.readexactly(size)
    except (OSError, EOFError):  # IncompleteReadError is one of the latter
        raise await _gone(child) from None
    except (ValueError, RecursionError):  # no JSON, or a line that is longer than the stream's limit
        raise _nonsense("no line of JSON") from None


def _outcome(reply: dict[str, Any], body: bytes, paths: Iterable[str]) -> Exchanged:
    """What a reply means, with the identities of the files at these paths. Raises RefreshError where it has no
    meaning."""
    try:
        told = reply.get("files", {})
        files = {path: tuple(told[path]) for path in paths if path in told}
        if "size" in reply:
            refused = {
                str(each["service"]): RefreshError(each["reason"], _words(each["message"])) for each in reply["refused"]
            }
            return Exchanged(body, reply["method"], reply.get("warning"), refused, files=files)
        if reply["reason"] not in REFRESH_REASONS:
            raise _nonsense(reply)
        hint, code = reply.get("hint"), reply.get("code")
        error = RefreshError(reply["reason"], _words(reply["message"]), hint=hint and _words(hint), code=code)
        return Exchanged(error=error, armour=bool(reply.get("armour")), files=files)
    except (AttributeError, KeyError, TypeError, ValueError):
        raise _nonsense(reply) from None


def _words(text: object) -> str:
    """A message, of which a KDC may have had a say, at a length for a log."""
    return str(text)[:_MAX_WORDS]


def _nonsense(reply: object) -> RefreshError:
    return RefreshError("internal", f"the exchange's child process replied {_words(repr(reply))}")


def _not_started(error: OSError) -> RefreshError:
    return RefreshError(
        "internal",
        f"the exchange's child process cannot be started: {error.strerror}",
        hint="check the limits on processes, memory and open files",
    )


async def _gone(child: asyncio.subprocess.Process) -> RefreshError:
    with contextlib.suppress(asyncio.TimeoutError):
        await _within(GONE_WITHIN, child.wait())
    how = "hung up" if child.returncode is None else f"ended with status {child.returncode}"
    return RefreshError(
        "internal",
        f"the exchange's child process {how} without a reply",
        hint="its standard error, in this log, may say why; a negative status is the signal that ended it",
    )


async def _end(child: asyncio.subprocess.Process) -> None:
    """Kills the child, which holds nothing that would be worth a wait, and reaps it; one that even SIGKILL does not
    end at once, in a system call that cannot be interrupted, is reaped when it ends."""
    with contextlib.suppress(ProcessLookupError):
        child.kill()
    with contextlib.suppress(asyncio.TimeoutError):
        await _within(REAP_WITHIN, child.wait())
