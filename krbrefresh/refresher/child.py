"""The parent's side of an exchange: children that are started when there is work, fed, and killed when they hang.

This process never imports krb5 and never opens a keytab: see exchange.py for who does.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import os
import sys
from typing import Any

from ..errors import REFRESH_REASONS, NotInstalledError, RefreshError
from .settings import CredentialSettings

MOST_CHILDREN = 8
START_WITHIN = 15.0  # seconds; it takes 40 ms on a machine at rest
REAP_WITHIN = 1.0
READY = b"ready\n"
_MAX_REPLY = 1 << 20

# -I -S: no user's site-packages, no PYTHONPATH, no .pth files; it starts in half the time, too. The directories stand
# behind the standard library's, so that nothing in them can shadow it.
_START = (
    "import sys; parent = int(sys.argv[1]); sys.path += sys.argv[2:]; "
    "from krbrefresh.refresher.exchange import main; main(parent)"
)


def _module_directories() -> list[str]:
    """Where the child finds this package and krb5. Raises NotInstalledError."""
    directories = [os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))]
    spec = importlib.util.find_spec("krb5")  # looks for it, and does not import it
    if spec is None or spec.origin is None:
        raise NotInstalledError("the package krb5 is not installed here")
    directories.append(os.path.dirname(os.path.dirname(os.path.abspath(spec.origin))))
    return list(dict.fromkeys(directories))


class Exchanger:
    """Makes exchanges, several at a time, each in a child process with a hard deadline.

    A child that is done takes the next request in line, so that many credentials that are due together share the cost
    of starting one; with nothing in line it ends.
    """

    def __init__(self) -> None:
        self._command = [sys.executable, "-I", "-S", "-c", _START, str(os.getpid()), *_module_directories()]
        self._slots = asyncio.Semaphore(MOST_CHILDREN)
        self._in_line = 0
        self._idle: list[asyncio.subprocess.Process] = []

    async def exchange(self, credential: CredentialSettings, deadline: float) -> bytes:
        """A whole ccache with the credential's new TGT, as exchange.exchange() makes it.

        Raises RefreshError; `kdc_timeout` once `deadline` seconds have passed since the child got the request.
        """
        request = {
            "principal": credential.principal,
            "keytab": credential.keytab,
            "lifetime": credential.lifetime,
            "renewable_lifetime": credential.renewable_lifetime,
            "forwardable": credential.forwardable,
        }
        self._in_line += 1
        try:
            await self._slots.acquire()
        finally:
            self._in_line -= 1
        child = None
        answered = False
        try:
            child = self._idle.pop() if self._idle else await self._start()
            reply, body = await asyncio.wait_for(_converse(child, request), deadline)
            answered = True
        except asyncio.TimeoutError:
            raise RefreshError(
                "kdc_timeout", f"{credential.principal}: the exchange had no end after {deadline:.3g} s"
            ) from None
        finally:
            if child is not None and answered and len(self._idle) < self._in_line:
                self._idle.append(child)
            elif child is not None:
                await _end(child)
            self._slots.release()
        if "size" in reply:
            return body
        if reply.get("reason") not in REFRESH_REASONS:
            raise RefreshError("internal", f"the exchange's child process replied {reply!r}")
        raise RefreshError(reply["reason"], reply["message"], hint=reply.get("hint"), code=reply.get("code"))

    async def _start(self) -> asyncio.subprocess.Process:
        """A child that is ready for requests: what it takes to start is no part of an exchange's deadline."""
        try:
            child = await asyncio.create_subprocess_exec(
                *self._command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, limit=_MAX_REPLY
            )
        except OSError as error:
            raise RefreshError(
                "internal",
                f"the exchange's child process cannot be started: {error.strerror}",
                hint="check the limits on processes, memory and open files",
            ) from None
        ready = b""
        try:
            assert child.stdout is not None
            ready = await asyncio.wait_for(child.stdout.readline(), START_WITHIN)
            if not ready:
                await asyncio.wait_for(child.wait(), START_WITHIN)
        except asyncio.TimeoutError:
            raise RefreshError(
                "internal",
                f"the exchange's child process was not ready after {START_WITHIN:.0f} s",
                hint="this machine is starved of processor, memory or disk",
            ) from None
        finally:
            if ready != READY:
                await _end(child)
        if ready != READY:
            raise _ended(child)
        return child


async def _converse(child: asyncio.subprocess.Process, request: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
    """What the child replies to a request, and the bytes that follow its reply."""
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        child.stdin.write(json.dumps(request).encode() + b"\n")
        await child.stdin.drain()
        reply: dict[str, Any] = json.loads(await child.stdout.readline())
        return reply, await child.stdout.readexactly(reply.get("size", 0))
    except (OSError, ValueError, asyncio.IncompleteReadError):
        await child.wait()
        raise _ended(child) from None


def _ended(child: asyncio.subprocess.Process) -> RefreshError:
    return RefreshError(
        "internal",
        f"the exchange's child process ended with status {child.returncode} and no reply",
        hint="its standard error, in this log, may say why; a negative status is the signal that ended it",
    )


async def _end(child: asyncio.subprocess.Process) -> None:
    """Kills the child, which holds nothing that would be worth a wait, and reaps it; one that even SIGKILL does not
    end at once, in a system call that cannot be interrupted, is reaped when it ends."""
    with contextlib.suppress(ProcessLookupError):
        child.kill()
    with contextlib.suppress(asyncio.TimeoutError):
        await asyncio.wait_for(child.wait(), REAP_WITHIN)
