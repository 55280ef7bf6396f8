"""`/`, `/livez`, `/readyz` and `/metrics`, over HTTP/1.1, with TLS where it is asked for.

It lives in the service's loop: that it answers at all shows that the loop turns. Here are the sockets, the certificates
and what is said; `connection.py` has the protocol.
"""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import re
import socket
import ssl
import time
from collections.abc import Callable

import h11

from .._text import moment_text
from . import metrics, page
from .connection import REQUEST_WITHIN, TEXT, Answer, Connection
from .files import Files, identities
from .listen import Listen
from .log import event
from .status import Status

MOST_CONNECTIONS = 64
BACKLOG = 64
LOOK_EVERY = 10.0  # seconds at least between two looks for another certificate
RETRY_DELAYS = (1.0, 2.0, 4.0, 8.0, 16.0, 30.0)
_ACCEPT_AGAIN = 1.0  # seconds, where there are no descriptors left
_ABSOLUTE = re.compile(r"\Ahttps?://[^/?]*", re.IGNORECASE)  # RFC 9112, 3.2.2: a server takes this form, too
_NOT_HERE = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)  # an address of a family that this machine does not have

_READ_ONLY = Answer(405, TEXT, b"GET and HEAD only\n", (("Allow", "GET, HEAD"),))
_NOTHING = Answer(404, TEXT, b"nothing is here; see / /livez /readyz /metrics\n")
_DEFECT = Answer(500, TEXT, b"internal error: see the log\n")


class Health:
    """The server. `status` says how the refresher is; it is asked once for each request that needs it."""

    def __init__(self, status: Callable[[], Status]) -> None:
        self._pages: dict[str, Callable[[], Answer]] = {
            "/": lambda: _page(status()),
            "/livez": lambda: Answer(200, TEXT, b"ok\n"),
            "/readyz": lambda: _readyz(status()),
            "/metrics": lambda: Answer(200, metrics.CONTENT_TYPE, metrics.render(status())),
        }
        self._listen: Listen | None = None
        self._sockets: list[socket.socket] = []
        self._complaint = ""  # about connections that cannot be taken
        self._tls = _Tls()
        self._starting: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()  # one for each connection
        self._places: dict[Connection, asyncio.Task[None]] = {}  # those of them that have a place
        self._look: asyncio.Task[None] | None = None

    @property
    def port(self) -> int | None:
        """The port that it listens on, None while it does not."""
        return self._sockets[0].getsockname()[1] if self._sockets else None

    def start(self, listen: Listen) -> None:
        """Begins to listen, in a task. An address that is not to be had and files that TLS cannot work with are
        reported and tried again; plain text is never served where TLS was asked for."""
        self._listen = listen
        self._starting = asyncio.get_running_loop().create_task(self._open(listen))

    async def close(self) -> None:
        """Stops listening, and ends every connection."""
        own = [task for task in (self._starting, self._look) if task]
        for task in own:
            task.cancel()
        await asyncio.gather(*own, return_exceptions=True)
        self._starting = self._look = self._listen = None
        for each in self._sockets:
            asyncio.get_running_loop().remove_reader(each)
            each.close()
        self._sockets = []
        await asyncio.sleep(0)  # a task that has not begun would not close its socket
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.sleep(0)  # transports that were aborted close in the loop's next turn

    # --- listening ---

    async def _open(self, listen: Listen) -> None:
        """Listens as soon as it can be done."""
        told, failures = "", 0
        while True:
            try:
                tls = await asyncio.to_thread(_Tls.load, listen)
                sockets = await _bind(listen)
                break
            except (OSError, ValueError) as error:
                message = _words(error)
            except Exception as error:  # noqa: BLE001  (a task that nobody waits for: a defect must be heard of)
                message = f"{type(error).__name__}: {error}"
            if message != told:
                told = message
                hint = "health and metrics are not served until it works; it is tried again"
                event(logging.ERROR, "listen_failed", address=str(listen), message=message, hint=hint)
            await asyncio.sleep(RETRY_DELAYS[min(failures, len(RETRY_DELAYS) - 1)])
            failures += 1
        self._tls, self._sockets = tls, sockets
        for each in sockets:
            asyncio.get_running_loop().add_reader(each, self._accept, each)
        address = " ".join(str(Listen(*each.getsockname()[:2])) for each in sockets)
        event(logging.INFO, "listening", address=address, tls=bool(listen.files))

    def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        try:
            accepted, _ = listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):  # gone again
            return
        except OSError as error:  # no descriptors, no memory: those who wait in line are not lost
            if not self._complaint:
                self._complaint = _words(error)
                event(logging.ERROR, "accept_failed", address=str(self._listen), message=self._complaint)
            loop.remove_reader(listener)
            loop.call_later(_ACCEPT_AGAIN, self._accept_again, listener)
            return
        self._complaint = ""
        if len(self._places) >= MOST_CONNECTIONS:  # a probe must get through, whoever keeps connections for later
            self._places.pop(min(self._places, key=lambda each: each.claim)).cancel()
        accepted.setblocking(False)
        connection = Connection(self._answer)
        self._places[connection] = task = loop.create_task(self._converse(connection, accepted))
        self._tasks.add(task)
        task.add_done_callback(lambda task: self._forget(connection, task))
        self._look_at_files()

    def _forget(self, connection: Connection, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._places.pop(connection, None)

    def _accept_again(self, listener: socket.socket) -> None:
        if listener in self._sockets:
            asyncio.get_running_loop().add_reader(listener, self._accept, listener)

    async def _converse(self, connection: Connection, accepted: socket.socket) -> None:
        """One connection, until it is over."""
        tls = self._tls.context
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: connection, accepted, ssl=tls, ssl_handshake_timeout=REQUEST_WITHIN if tls else None
            )
            await connection.closed
        except (OSError, EOFError):  # who cannot agree on TLS is not served; it concerns nobody else
            pass
        finally:
            connection.abort()

    # --- certificates ---

    def _look_at_files(self) -> None:
        """Looks whether the certificate was rotated: when somebody asks, so that nobody wakes an idle server, and also
        when TLS fails, because the old one may be why."""
        if self._listen and self._listen.files and not self._look and self._tls.looked_at + LOOK_EVERY < _now():
            self._look = asyncio.get_running_loop().create_task(self._reload(self._listen))

    async def _reload(self, listen: Listen) -> None:
        before, address = self._tls, str(listen)
        try:
            after = await asyncio.to_thread(before.reload, listen)
        except Exception as error:  # noqa: BLE001  (a task that nobody waits for)
            before.looked_at = _now()
            if before.complaint != _words(error):
                before.complaint = _words(error)
                hint = "the former certificate is served; the files are looked at again when somebody asks"
                event(logging.ERROR, "certificate_refused", address=address, message=before.complaint, hint=hint)
        else:
            if after is not before:
                self._tls = after
                event(logging.INFO, "certificate_changed", address=address, path=" ".join(listen.files))
        finally:
            self._look = None

    # --- what is said ---

    def _answer(self, request: h11.Request) -> Answer:
        self._look_at_files()
        path = _ABSOLUTE.sub("", request.target.decode("latin-1")).partition("?")[0] or "/"
        if path not in self._pages:
            return _NOTHING
        if request.method not in (b"GET", b"HEAD"):
            return _READ_ONLY
        try:
            return self._pages[path]()
        except Exception as error:  # noqa: BLE001  (a defect in a page must not end the service)
            event(logging.ERROR, "internal", message=f"{path}: {type(error).__name__}: {error}")
            return _DEFECT


class _Tls:
    """A context, and the files that it was made from; no context for plain text."""

    def __init__(self, context: ssl.SSLContext | None = None, files: Files | None = None) -> None:
        self.context = context
        self.files = files or {}
        self.looked_at = _now()
        self.complaint = ""  # about the files that are there now

    @classmethod
    def load(cls, listen: Listen) -> _Tls:
        """Reads the files. Raises OSError or ValueError where they cannot be used."""
        if not listen.files:
            return cls()
        if not listen.certificate:
            raise ValueError("TLS was asked for, and there is no certificate")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.options |= ssl.OP_NO_RENEGOTIATION
        context.set_alpn_protocols(["http/1.1"])
        for path in listen.files:
            with open(path, "rb"):  # libssl does not say which file it cannot read
                pass
        files = identities(listen.files)  # before they are read: what changes in between is another change

        def no_passphrase() -> str:  # which would be asked for at the terminal
            raise ValueError(f"{listen.key}: the key has a passphrase, and nobody is here to enter it")

        try:
            context.load_cert_chain(listen.certificate, listen.key, password=no_passphrase)
        except ssl.SSLError as error:
            raise ValueError(f"{listen.certificate} and {listen.key}: no certificate and its key: {error}") from None
        if listen.client_ca:
            try:
                context.load_verify_locations(listen.client_ca)
            except ssl.SSLError as error:
                raise ValueError(f"{listen.client_ca}: no certificate in it: {error}") from None
            context.verify_mode = ssl.CERT_REQUIRED
        return cls(context, files)

    def reload(self, listen: Listen) -> _Tls:
        """Itself while the files are the same; otherwise as `load`."""
        if identities(listen.files) != self.files:
            return self.load(listen)
        self.looked_at, self.complaint = _now(), ""
        return self


async def _bind(listen: Listen) -> list[socket.socket]:
    """Sockets that listen, one for each of the host's addresses. Raises OSError."""
    found = await asyncio.get_running_loop().getaddrinfo(
        listen.host or None, listen.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    sockets: list[socket.socket] = []
    try:
        for family, _, _, _, address in dict.fromkeys(found):
            host, port, *rest = address
            if sockets and not port:
                port = sockets[0].getsockname()[1]  # one free port for all of them
            try:
                sockets.append(_listening(family, (host, port, *rest)))
            except OSError as error:
                if error.errno not in _NOT_HERE or (not sockets and address == found[-1][4]):
                    raise
        return sockets
    except BaseException:
        for each in sockets:
            each.close()
        raise


def _listening(family: int, address: tuple[object, ...]) -> socket.socket:
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        made.setblocking(False)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        made.bind(address)
        made.listen(BACKLOG)
    except BaseException:
        made.close()
        raise
    return made


def _page(status: Status) -> Answer:
    return Answer(200, page.CONTENT_TYPE, page.render(status).encode("utf-8", "backslashreplace"), page.HEADERS)


def _readyz(status: Status) -> Answer:
    body = {
        "ready": status.ready,
        "leader": status.leader,
        "refresher": status.refresher,
        "credentials": {
            credential.name: {
                "state": credential.state,
                "reason": credential.reason,
                "expires_at": _moment(credential.expires_at),
                "next_attempt_at": _moment(credential.next_attempt_at),
                "consecutive_failures": credential.failures,
                "generation": credential.generation,
            }
            for credential in status.credentials
        },
    }
    return Answer(200 if status.ready else 503, "application/json", json.dumps(body).encode() + b"\n")


def _moment(timestamp: float | None) -> str | None:
    return None if timestamp is None else moment_text(timestamp)


def _now() -> float:
    return time.monotonic()


def _words(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"
    return str(error)
