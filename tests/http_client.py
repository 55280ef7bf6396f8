"""A `Health` with a loop and a thread of its own, and clients that speak to it, well or badly, by plain sockets."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

from krbrefresh.refresher.connection import Connection
from krbrefresh.refresher.health import Health
from krbrefresh.refresher.listen import Listen
from krbrefresh.refresher.log import logger
from krbrefresh.refresher.status import Status
from tests.support import eventually

T = TypeVar("T")
LOOPBACK = Listen("127.0.0.1", 0)


@dataclass
class Reply:
    """An answer. The names of its headers are in lower case."""

    version: str
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()


class GoneError(Exception):
    """The server has closed, or reset, before the answer was over."""


class Client:
    """One connection."""

    def __init__(
        self, address: tuple[str, int], tls: ssl.SSLContext | None = None, *, buffer: int | None = None
    ) -> None:
        family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self.socket = socket.socket(family)
        try:
            if buffer:
                self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
            self.socket.settimeout(10)
            self.socket.connect(address)
            if tls:
                self.socket = tls.wrap_socket(self.socket, server_hostname=address[0])
        except BaseException:
            self.socket.close()
            raise
        self._read = bytearray()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, *parts: str | bytes) -> None:
        self.socket.sendall(b"".join(part.encode() if isinstance(part, str) else part for part in parts))

    def half_close(self) -> None:
        self.socket.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """Goes as a process does that is killed with something unread."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def answer(self, method: str = "GET") -> Reply:
        """The next answer. Raises GoneError."""
        while b"\r\n\r\n" not in self._read:
            self._more()
        end = self._read.index(b"\r\n\r\n")
        head = self._take(end + 4)[:end]
        first, *lines = head.decode("ascii").split("\r\n")
        version, status, _ = first.split(" ", 2)
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        length = 0 if method == "HEAD" else int(headers["content-length"])
        while len(self._read) < length:
            self._more()
        return Reply(version, int(status), headers, self._take(length))

    def get(self, path: str = "/livez", *headers: str, method: str = "GET", version: str = "1.1") -> Reply:
        """Asks, and waits for the answer."""
        self.send(f"{method} {path} HTTP/{version}\r\n", *(f"{each}\r\n" for each in ("Host: x", *headers)), "\r\n")
        return self.answer(method)

    def ended(self) -> bool:
        """Whether the server ends the connection, with no byte more, while this waits for it."""
        try:
            return not self._read and not self.socket.recv(1)
        except ConnectionResetError:
            return True

    def everything(self) -> bytes:
        """All that comes until the server closes."""
        with contextlib.suppress(GoneError):
            while True:
                self._more()
        return self._take(len(self._read))

    def _take(self, length: int) -> bytes:
        taken = bytes(self._read[:length])
        del self._read[:length]
        return taken

    def _more(self) -> None:
        try:
            data = self.socket.recv(65536)
        except (ConnectionResetError, ssl.SSLEOFError) as error:
            raise GoneError from error
        if not data:
            raise GoneError
        self._read += data


class Server:
    """A running `Health`. Tests change `said`, or `status` for a function that does worse."""

    def __init__(self, said: Status) -> None:
        self.said = said
        self.status: Callable[[], Status] = lambda: self.said
        self.loop = asyncio.new_event_loop()
        self.wrong: list[str] = []  # what asyncio had to say
        self.loop.set_exception_handler(lambda _, context: self.wrong.append(repr(context)))
        self.health = Health(lambda: self.status())
        self._heard = _Heard()
        self._clients = contextlib.ExitStack()
        self._all: list[Client] = []
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()
        self.run(asyncio.sleep(0))
        self._before = descriptors()
        gc.freeze()  # so that to look for what is left behind is to look at what is new

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """In the loop."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(20)

    def begin(self, listen: Listen = LOOPBACK) -> None:
        """Starts, without waiting for it to be there."""

        async def start() -> None:
            self.health.start(listen)

        self.run(start())

    def listen(self, listen: Listen = LOOPBACK) -> Server:
        self.begin(listen)
        eventually(lambda: self.health.port, within=10, every=0.002, what="a port")
        return self

    @property
    def port(self) -> int:
        assert self.health.port
        return self.health.port

    @property
    def events(self) -> list[tuple[str, dict[str, Any]]]:
        return list(self._heard.events)

    def named(self, name: str) -> list[dict[str, Any]]:
        return [fields for each, fields in self.events if each == name]

    def heard(self, name: str, *, count: int = 1) -> list[dict[str, Any]]:
        """These events, once there are `count` of them."""
        return eventually(
            lambda: found if len(found := self.named(name)) >= count else [], within=10, what=f"{count} x {name}"
        )

    def forget(self) -> None:
        """The events so far."""
        self._heard.events.clear()

    def connect(self, host: str = "127.0.0.1", tls: ssl.SSLContext | None = None, **options: Any) -> Client:
        """A client that is closed at the end."""
        self._all.append(self._clients.enter_context(Client((host, self.port), tls, **options)))
        return self._all[-1]

    def get(self, path: str = "/livez", *headers: str, host: str = "127.0.0.1", tls: ssl.SSLContext | None = None,
            **request: Any) -> Reply:  # fmt: skip
        """One request, of a client of its own."""
        with Client((host, self.port), tls) as client:
            return client.get(path, *headers, **request)

    def connections(self) -> int:
        """How many there are, as the server sees it."""
        return len(self.health._tasks)

    def sending(self) -> int:
        """How many clients have not taken all of an answer."""
        return sum(each._sending for each in self.run(self._connections()))

    async def _connections(self) -> list[Connection]:
        coroutines: list[Any] = [task.get_coro() for task in self.health._tasks]
        known = [each.cr_frame.f_locals for each in coroutines if each.cr_frame]
        return [each["connection"] for each in known if "connection" in each]

    def settled(self) -> None:
        """Waits until the certificate is not being looked at; it will not be before somebody asks again."""
        eventually(lambda: self.health._look is None, within=5)

    def close(self) -> None:
        """Closes the server while its clients are there, and looks that nothing of it is left."""
        try:
            tasks = self.run(self._end())
            assert self.health.port is None
            assert self.connections() == 0
            assert tasks == set()
            self.run(self.loop.shutdown_default_executor())  # a thread may still be reading a certificate
            assert descriptors() - self._before - {each.socket.fileno() for each in self._all} == set()
        finally:
            self._clients.close()
            self.run(self.loop.shutdown_default_executor())
            self.loop.call_soon_threadsafe(self.loop.stop)
            self._thread.join(10)
            self.loop.close()
            self._heard.close()
        gc.collect()  # for what warns when it goes
        gc.unfreeze()
        assert self.wrong == []
        assert self._heard.asyncio == []

    async def _end(self) -> set[asyncio.Task[Any]]:
        """The tasks that are there when `close` returns, and not only a turn later."""
        await self.health.close()
        return {task for task in asyncio.all_tasks() if task is not asyncio.current_task()}


class _Heard(logging.Handler):
    """The events of this package, and every line of asyncio's."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.asyncio: list[str] = []
        self._before = logger.level
        logger.setLevel(logging.INFO)
        for each in (logger, logging.getLogger("asyncio")):
            each.addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        if record.name == "asyncio":
            if record.levelno > logging.DEBUG:
                self.asyncio.append(record.getMessage())
        else:
            self.events.append((record.getMessage(), record.__dict__.get("fields", {})))

    def close(self) -> None:
        for each in (logger, logging.getLogger("asyncio")):
            each.removeHandler(self)
        logger.setLevel(self._before)
        super().close()


def descriptors() -> set[int]:
    """Those that this process has open."""
    return {int(each) for each in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{each}")}
