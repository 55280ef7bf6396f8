"""A proxy in front of a KDC, on UDP and TCP, that loses, spoils, repeats and reorders what passes, and lies.

What it does to each request is drawn by whoever uses it; it knows of nothing but packets. It keeps which AS requests it
was asked, and when: that is the measure of whether a client asks more than it may.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import random
import socket
import struct
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.chaos import messages
from tests.chaos.messages import Request

ANSWERS_WITHIN = 1.0  # seconds; a KDC that is asked in vain says nothing

# What may be done to one request and its answer. A client has to come through with a ticket, if it has the time:
HARMLESS = ("nothing", "delay", "repeat the request", "repeat the answer", "answer is too big", "drip")
# These cost it a packet, or spoil one:
HARMFUL = (
    "lose the request",
    "lose the answer",
    "cut the request",
    "cut the answer",
    "spoil the request",
    "spoil the answer",
    "answer of before",
    "answer of another",
    "answer of before first",
    "garbage",
    "no bytes",
    "many bytes",
    "close",
    "reset",
    "close in the middle",
    "length too long",
    "length too short",
    "length of nothing",
    "length of all",
    "hang in the middle",
)
# These are what only somebody who means it does:
LIES = ("an error", "another time", "another clock", "a refusal")

# After these libkrb5 may have a reason to ask once more in the same exchange: it was told something.
MISLEADING = frozenset(
    (*LIES, "answer of before", "answer of before first", "answer of another", "spoil the answer", "spoil the request")
)

# RFC 4120, 7.5.9. Of those that say something of the account, a single one stops its client for minutes.
REFUSALS = (1, 6, 9, 10, 12, 13, 18, 21, 23, 24, 31)
ERRORS = (7, 14, 25, 29, 32, 34, 37, 41, 44, 52, 60, 61, 68, 91)
TIMES = (-86400.0, -7200.0, -310.0, 290.0, 3600.0, 10 * 365 * 86400.0)  # seconds


@dataclass(frozen=True)
class Deed:
    """What is done to one request. `dice` is for its details."""

    name: str
    dice: random.Random


@dataclass
class Asked:
    """An AS request that has come in. `digest` tells its bytes apart: libkrb5 repeats the same ones when it hears
    nothing, and that is one attempt."""

    at: float
    client: str
    proves: bool
    digest: bytes
    deed: str = "nothing"  # what is done to it


@dataclass
class Proxy:
    """Serves on 127.0.0.1, on a port of its own, in the running loop. `kdcs` are the ports of the KDC and of others of
    the same realm, which have other clocks; `draw` says what to do to a request. A context manager."""

    realm: str
    kdcs: list[int]
    draw: Callable[[Request | None], Deed]
    asked: list[Asked] = field(default_factory=list)
    done: Counter[str] = field(default_factory=Counter)
    port: int = 0
    _answers: dict[str, bytes] = field(default_factory=dict)  # the last one for each client
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    async def __aenter__(self) -> Proxy:
        loop = asyncio.get_running_loop()
        self._server = await asyncio.start_server(self._serve_tcp, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        self._udp, _ = await loop.create_datagram_endpoint(lambda: _Udp(self), ("127.0.0.1", self.port))
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        self._udp.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def take_udp(self, data: bytes, send: Callable[[bytes], None]) -> None:
        task = asyncio.get_running_loop().create_task(self._serve_udp(data, send))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve_udp(self, data: bytes, send: Callable[[bytes], None]) -> None:
        deed, before, answer = await self._answer(data, tcp=False)
        if answer is None:
            return
        if deed.name == "answer of before first" and before:
            send(before)
        send(answer)
        if deed.name == "repeat the answer":
            send(answer)

    async def _serve_tcp(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            size = int.from_bytes(await reader.readexactly(4), "big")
            data = await reader.readexactly(min(size, 1 << 16))
            deed, before, answer = await self._answer(data, tcp=True)
            if answer is None or deed.name == "hang in the middle":
                if answer is not None:
                    writer.write(struct.pack(">I", len(answer)) + answer[: len(answer) // 2])
                await asyncio.wait_for(reader.read(1), 30)  # until the client gives up
            else:
                await self._send_tcp(writer, deed, answer, before)
        with contextlib.suppress(OSError, asyncio.TimeoutError):
            if not writer.is_closing():
                writer.close()

    async def _send_tcp(self, writer: asyncio.StreamWriter, deed: Deed, answer: bytes, before: bytes | None) -> None:
        length, name, dice = len(answer), deed.name, deed.dice
        if name == "reset":  # no goodbye
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
            return
        if name == "close":
            return
        if name == "close in the middle":
            writer.write((struct.pack(">I", length) + answer)[: dice.randrange(1, length + 4)])
            await writer.drain()
            return
        lengths = {
            "length too long": length + dice.randrange(1, 1000),
            "length too short": dice.randrange(max(1, length)),
            "length of nothing": 0,
            "length of all": dice.choice([0xFFFFFFFF, 0x80000000, 0x7FFFFFFF]),
        }
        if name == "answer of before first" and before:
            writer.write(struct.pack(">I", len(before)) + before)
        framed = struct.pack(">I", lengths.get(name, length)) + answer
        if name == "drip":
            step = max(1, len(framed) // 8)
            for at in range(0, len(framed), step):
                writer.write(framed[at : at + step])
                await asyncio.sleep(0.005)
        else:
            writer.write(framed * (2 if name == "repeat the answer" else 1))
        await writer.drain()

    async def _answer(self, data: bytes, *, tcp: bool) -> tuple[Deed, bytes | None, bytes | None]:
        """What is done to a request, the answer to its client's last one, and its own: None where it gets none."""
        request = messages.request(data)
        client = request.client if request else ""
        deed = self.draw(request)
        if request:
            digest = hashlib.sha256(data).digest()
            self.asked.append(Asked(time.monotonic(), client, request.proves, digest, deed.name))
        name, dice = deed.name, deed.dice
        self.done[name] += 1
        before = self._answers.get(client)
        if name == "lose the request":
            return deed, before, None
        if name == "delay":
            await asyncio.sleep(dice.expovariate(1 / 0.1))
        if name == "cut the request":
            data = data[: dice.randrange(len(data))]
        if name == "spoil the request":
            data = spoiled(data, dice)
        port = self.kdcs[0] if name != "another clock" else dice.choice(self.kdcs[1:] or self.kdcs)
        answer = await ask(port, data)
        if name == "repeat the request":
            await ask(port, data)
        if answer is not None:
            self._answers[client] = answer
        return deed, before, self._changed(deed, client, answer, before, tcp=tcp)

    def _changed(
        self, deed: Deed, client: str, answer: bytes | None, before: bytes | None, *, tcp: bool
    ) -> bytes | None:
        name, dice = deed.name, deed.dice
        if name == "lose the answer":
            return None
        if name == "garbage":
            return dice.randbytes(dice.randrange(1, 2000))
        if name == "many bytes":
            return dice.randbytes(1) * dice.randrange(5_000, 60_000)
        if name == "no bytes":
            return b""
        if name == "an error":
            return messages.error(dice.choice(ERRORS), self.realm, dice.choice((0.0, *TIMES)))
        if name == "a refusal":
            return messages.error(dice.choice(REFUSALS), self.realm)
        if name == "answer is too big":
            return answer if tcp else messages.error(messages.RESPONSE_TOO_BIG, self.realm)
        if answer is None:
            return None
        if name == "cut the answer":
            return answer[: dice.randrange(len(answer))]
        if name == "spoil the answer":
            return spoiled(answer, dice)
        if name == "another time":
            return messages.with_time(answer, dice.choice(TIMES))
        if name == "answer of before":
            return before or answer
        if name == "answer of another":
            others = [each for other, each in self._answers.items() if other != client]
            return dice.choice(others) if others else answer
        return answer


class _Udp(asyncio.DatagramProtocol):
    def __init__(self, proxy: Proxy) -> None:
        self._proxy = proxy

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, address: tuple[str, int]) -> None:
        def send(answer: bytes) -> None:
            if not self._transport.is_closing():
                self._transport.sendto(answer, address)  # type: ignore[attr-defined]

        self._proxy.take_udp(data, send)

    def error_received(self, error: Exception) -> None:
        pass  # the client has gone


class _Answer(asyncio.DatagramProtocol):
    def __init__(self) -> None:
        self.answer: asyncio.Future[bytes | None] = asyncio.get_running_loop().create_future()

    def datagram_received(self, data: bytes, address: tuple[str, int]) -> None:
        if not self.answer.done():
            self.answer.set_result(data)

    def error_received(self, error: Exception) -> None:
        if not self.answer.done():
            self.answer.set_result(None)


async def ask(port: int, data: bytes) -> bytes | None:
    """What the KDC on that port of loopback answers, over UDP; None where it says nothing."""
    loop = asyncio.get_running_loop()
    transport, waiting = await loop.create_datagram_endpoint(_Answer, remote_addr=("127.0.0.1", port))
    try:
        transport.sendto(data)
        return await asyncio.wait_for(waiting.answer, ANSWERS_WITHIN)
    except asyncio.TimeoutError:
        return None
    finally:
        transport.close()


def spoiled(data: bytes, dice: random.Random) -> bytes:
    """The same with some bytes changed."""
    changed = bytearray(data)
    for _ in range(dice.choice([1, 1, 2, 8])):
        changed[dice.randrange(len(changed))] ^= 1 << dice.randrange(8)
    return bytes(changed)
