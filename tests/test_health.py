"""The HTTP server: what it says, whom it puts up with, and that nothing of it is left behind.

`tests/http_client.py` looks after each test that no task, no descriptor and no complaint of asyncio's remains.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import datetime
import itertools
import json
import os
import random
import re
import select
import signal
import socket
import ssl
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from krbrefresh.refresher import connection, health, metrics, page
from krbrefresh.refresher.files import Files, identities
from krbrefresh.refresher.listen import Listen
from krbrefresh.refresher.status import DEGRADED, EXPIRED, STANDBY, STARTING, VALID, Status
from tests.certificates import Authority, replace, serial_of
from tests.http_client import LOOPBACK, Client, GoneError, Reply, Server, descriptors
from tests.processes import REPOSITORY, Runner, refresher, toml
from tests.statuses import credential, many, status
from tests.support import Realm, eventually, program

PATHS = ("/", "/livez", "/readyz", "/metrics")
LARGE = 2**25  # bytes: more than the kernel takes of one answer whose client does not read


@pytest.fixture
def idle() -> Iterator[Server]:
    """A server that does not listen yet."""
    made = Server(status(credential()))
    yield made
    made.close()


@pytest.fixture
def server(idle: Server) -> Server:
    return idle.listen()


def defect() -> Status:
    raise RuntimeError("a defect")


# --- what it says ---


def test_livez(server: Server) -> None:
    reply = server.get("/livez")
    assert (reply.status, reply.body) == (200, b"ok\n")
    assert reply.headers["content-type"] == "text/plain; charset=utf-8"
    server.said = status(credential(state=EXPIRED))
    assert server.get("/livez").status == 200


def test_livez_does_not_ask_how_it_is(server: Server) -> None:
    server.status = defect
    assert server.get("/livez").status == 200


CREDENTIAL = {
    "state": "valid",
    "reason": None,
    "expires_at": "2027-01-15T16:00:00Z",
    "next_attempt_at": "2027-01-15T12:00:00Z",
    "consecutive_failures": 0,
    "generation": 7,
}


@pytest.mark.parametrize(
    ("state", "code", "said"),
    [
        (VALID, 200, {}),
        (DEGRADED, 200, {"reason": "kdc_timeout", "consecutive_failures": 4}),
        (STANDBY, 200, {"next_attempt_at": None}),
        (STARTING, 503, {"expires_at": None, "generation": None}),
        (EXPIRED, 503, {"expires_at": "2027-01-15T07:00:00Z", "reason": "kdc_timeout", "consecutive_failures": 4}),
    ],
)
def test_readyz(server: Server, state: str, code: int, said: dict[str, Any]) -> None:
    server.said = status(credential(state=state))
    reply = server.get("/readyz")
    assert reply.status == code
    assert reply.headers["content-type"] == "application/json"
    assert json.loads(reply.body) == {
        "ready": code == 200,
        "leader": True,
        "refresher": "node1",
        "credentials": {"etl": {**CREDENTIAL, "state": state, **said}},
    }


def test_readyz_is_not_ready_while_one_is_not(server: Server) -> None:
    server.said = status(credential("a"), credential("b", DEGRADED), credential("c", EXPIRED), leader=False)
    reply = server.get("/readyz")
    said = json.loads(reply.body)
    assert (reply.status, said["ready"], said["leader"]) == (503, False, False)
    assert {name: each["state"] for name, each in said["credentials"].items()} == {
        "a": "valid",
        "b": "degraded",
        "c": "expired",
    }
    server.said = status(credential("a"), credential("b", DEGRADED))
    assert server.get("/readyz").status == 200
    server.said = status()
    assert server.get("/readyz").status == 200


def test_readyz_with_names_that_are_no_text(server: Server) -> None:
    name = 'a"\udce9\n<b>'
    server.said = status(credential(name), refresher=name)
    said = json.loads(server.get("/readyz").body)
    assert list(said["credentials"]) == [said["refresher"]] == [name]


def test_metrics(server: Server) -> None:
    reply = server.get("/metrics")
    assert reply.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert (reply.status, reply.body) == (200, metrics.render(server.said))


def test_the_page(server: Server) -> None:
    reply = server.get("/")
    assert reply.headers["content-type"] == "text/html; charset=utf-8"
    assert (reply.status, reply.text) == (200, page.render(server.said))
    for name, value in page.HEADERS:
        assert reply.headers[name.lower()] == value
    server.said = status(credential("\udce9"))
    assert "\\udce9" in server.get("/").text


@pytest.mark.parametrize("path", [*PATHS, "/nowhere"])
def test_what_every_answer_has(server: Server, path: str) -> None:
    reply = server.get(path)
    assert reply.version == "HTTP/1.1"
    assert reply.headers["cache-control"] == "no-store"
    assert reply.headers["x-content-type-options"] == "nosniff"
    assert "connection" not in reply.headers
    assert "server" not in reply.headers
    sent = datetime.datetime.strptime(reply.headers["date"], "%a, %d %b %Y %H:%M:%S GMT")
    assert abs(sent - datetime.datetime.now(datetime.timezone.utc).replace(tzinfo=None)) < datetime.timedelta(seconds=5)


@pytest.mark.parametrize(
    "path", ["/nowhere", "/livez/", "/LIVEZ", "//livez", "/%6civez", "/../livez", "/metrics.txt", "/favicon.ico", "*"]
)
def test_any_other_path_is_404(server: Server, path: str) -> None:
    for method in ("GET", "POST", "OPTIONS"):
        reply = server.get(path, method=method)
        assert reply.status == 404
        assert "/readyz" in reply.text


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "TRACE", "PATCH", "BREW", "get"])
def test_any_other_method_is_405(server: Server, path: str, method: str) -> None:
    reply = server.get(path, method=method)
    assert (reply.status, reply.headers["allow"]) == (405, "GET, HEAD")


@pytest.mark.parametrize("path", [*PATHS, "/nowhere"])
def test_head_is_get_without_the_body(server: Server, path: str) -> None:
    client = server.connect()
    full, head = client.get(path), client.get(path, method="HEAD")
    for reply in (full, head):
        del reply.headers["date"]
    assert (head.status, head.headers) == (full.status, full.headers)
    assert client.get("/livez").body == b"ok\n"  # nothing of a body is on the way


@pytest.mark.parametrize(
    ("target", "like"),
    [
        ("/livez?verbose", "/livez"),
        ("/livez?", "/livez"),
        ("/?a=/metrics", "/"),
        ("http://x/livez", "/livez"),
        ("HTTPS://[::1]:9464/livez?a#b", "/livez"),
        ("http://x", "/"),
        ("http://x?a=/metrics", "/"),
        ("http://x/nowhere", "/nowhere"),
    ],
)
def test_forms_of_a_target(server: Server, target: str, like: str) -> None:
    client = server.connect()
    asked, meant = client.get(target), client.get(like)
    assert (asked.status, asked.body) == (meant.status, meant.body)


def test_a_status_that_raises(server: Server) -> None:
    server.status = defect
    client = server.connect()
    for path in ("/", "/readyz", "/metrics"):
        reply = client.get(path)
        assert (reply.status, reply.text) == (500, "internal error: see the log\n")
    assert [each["message"] for each in server.named("internal")] == [
        f"{path}: RuntimeError: a defect" for path in ("/", "/readyz", "/metrics")
    ]
    server.status = lambda: server.said
    assert client.get("/readyz").status == 200


# --- the protocol ---


def test_many_requests_on_one_connection(server: Server) -> None:
    client = server.connect()
    for path in PATHS * 25:
        assert client.get(path).status == 200
    assert server.connections() == 1


def test_http_1_0(server: Server) -> None:
    client = server.connect()
    client.send("GET /livez HTTP/1.0\r\n\r\n")
    reply = client.answer()
    assert (reply.status, reply.headers["connection"]) == (200, "close")
    assert client.ended()


def test_connection_close(server: Server) -> None:
    client = server.connect()
    reply = client.get("/readyz", "Connection: close")
    assert (reply.status, reply.headers["connection"]) == (200, "close")
    assert client.ended()


def test_an_upgrade_is_not_wanted(server: Server) -> None:
    # As curl --http2 asks on plain text.
    headers = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABk")
    assert server.get("/livez", *headers).status == 200
    assert server.get("x:443", method="CONNECT").status == 404


def test_pipelining(server: Server) -> None:
    client = server.connect()
    paths = ["/livez", "/readyz", "/nowhere", "/metrics", "/"] * 20
    client.send(*(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n" for path in paths), "GET /livez HT")
    for path in paths:
        assert client.answer().status == (404 if path == "/nowhere" else 200), path
    client.send("TP/1.1\r\nHost: x\r\n\r\n")
    assert client.answer().body == b"ok\n"


def test_pipelining_past_what_a_read_takes(server: Server) -> None:
    client, count = server.connect(), 8_000
    sending = threading.Thread(target=client.send, args=("GET /livez HTTP/1.1\r\nHost: x\r\n\r\n" * count,))
    sending.start()
    for _ in range(count):
        assert client.answer().status == 200
    sending.join()


def test_a_request_byte_by_byte(server: Server) -> None:
    client = server.connect()
    client.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for letter in "GET /livez HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nab":
        client.send(letter)
    assert client.answer().status == 200


@pytest.mark.parametrize(
    "framed",
    ["Content-Length: 5\r\n\r\nhello", "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nTrailer: x\r\n\r\n"],
)
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
def test_a_body_is_read_and_thrown_away(server: Server, framed: str, method: str) -> None:
    client = server.connect()
    for _ in range(3):
        client.send(f"{method} /livez HTTP/1.1\r\nHost: x\r\n{framed}")
        assert client.answer(method).status == (405 if method == "POST" else 200)


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT"])
def test_who_asks_before_it_sends_a_body_need_not_send_it(server: Server, method: str) -> None:
    client = server.connect()
    reply = client.get("/livez", "Expect: 100-continue", "Content-Length: 1000000", method=method)
    assert (reply.status, reply.headers["connection"]) == (405 if method == "PUT" else 200, "close")
    assert client.ended()


def test_another_expectation_is_passed_over(server: Server) -> None:
    assert server.get("/livez", "Expect: miracles").status == 200


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_that_is_too_large(server: Server, method: str, chunked: bool) -> None:
    # It goes on sending before it reads: it gets its answer, and not a reset (RFC 9112, 9.6).
    client, size = server.connect(), 4 * 2**20
    client.send(f"{method} /livez HTTP/1.1\r\nHost: x\r\n")
    client.send(f"Transfer-Encoding: chunked\r\n\r\n{size:x}\r\n" if chunked else f"Content-Length: {size}\r\n\r\n")
    client.send(b"x" * size)
    reply = client.answer(method)
    assert (reply.status, reply.headers["connection"]) == (413, "close")
    assert client.ended()


def test_a_body_that_is_just_not_too_large(server: Server) -> None:
    client = server.connect()
    client.send(f"GET /livez HTTP/1.1\r\nHost: x\r\nContent-Length: {connection.MOST_BODY_BYTES}\r\n\r\n")
    client.send(b"x" * connection.MOST_BODY_BYTES)
    assert client.answer().status == 200
    assert client.get().status == 200


@pytest.mark.parametrize(
    "start",
    [
        "GET /livez HTTP/1.1\r\nHost: x\r\nLong: ",
        "GET /",
        "GET /livez HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5;",
    ],
    ids=["header", "target", "chunk"],
)
def test_a_head_that_does_not_end(server: Server, start: str) -> None:
    client = server.connect()
    client.send(start, "a" * (connection.MOST_HEADER_BYTES + 1))
    reply = client.answer()
    assert (reply.status, reply.headers["connection"]) == (431, "close")
    assert client.ended()


GARBAGE = {
    "tls": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64),
    "http0.9": b"GET /livez\r\n\r\n",
    "no host": b"GET /livez HTTP/1.1\r\n\r\n",
    "two hosts": b"GET /livez HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
    "space in a name": b"GET /livez HTTP/1.1\r\nHost: x\r\nA B: c\r\n\r\n",
    "space before the colon": b"GET /livez HTTP/1.1\r\nHost: x\r\nContent-Length : 5\r\n\r\nhello",
    "nul in a value": b"GET /livez HTTP/1.1\r\nHost: x\r\nA: b\0c\r\n\r\n",
    "target that is no ascii": b"GET /\xff HTTP/1.1\r\nHost: x\r\n\r\n",
    "two lengths": b"POST /livez HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\na",
    "length that is no number": b"POST /livez HTTP/1.1\r\nHost: x\r\nContent-Length: +1\r\n\r\na",
    "chunk that is no number": b"POST /livez HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    "chunk of a HEAD": b"HEAD /livez HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    "chunk that does not end": b"HEAD / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nabc\r\n",
    "coding": b"POST /livez HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n",
    "random": random.Random(1).randbytes(100) + b"\r\n\r\n",
}


@pytest.mark.parametrize("sent", GARBAGE.values(), ids=GARBAGE)
def test_garbage(server: Server, sent: bytes) -> None:
    client = server.connect()
    client.send(sent)
    reply = client.answer("HEAD" if sent.startswith(b"HEAD") else "GET")
    assert reply.status == (501 if b"gzip" in sent else 400)
    assert reply.headers["connection"] == "close"
    assert client.ended()
    # And after a good request.
    client = server.connect()
    client.send("GET /livez HTTP/1.1\r\nHost: x\r\n\r\n", sent)
    assert client.answer().status == 200
    assert client.answer("HEAD" if sent.startswith(b"HEAD") else "GET").status >= 400
    assert client.ended()


def test_http_2_is_not_spoken(server: Server) -> None:
    client = server.connect()
    client.send("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
    assert [client.answer().status, client.answer().status] == [404, 400]
    assert client.ended()


@contextlib.contextmanager
def steady() -> Iterator[Server]:
    made = Server(status(credential())).listen()
    try:
        yield made
    finally:
        made.close()


LINES = st.sampled_from(
    [b"GET / HTTP/1.1\r\n", b"HEAD /livez HTTP/1.1\r\n", b"POST /readyz HTTP/1.1\r\n", b"GET /metrics HTTP/1.0\r\n",
     b"OPTIONS * HTTP/1.1\r\n", b"CONNECT a:1 HTTP/1.1\r\n", b"Host: x\r\n", b"Expect: 100-continue\r\n",
     b"Connection: close\r\n", b"Connection: upgrade\r\n", b"Upgrade: x\r\n", b"Content-Length: 3\r\n",
     b"Transfer-Encoding: chunked\r\n", b"\r\n", b"\r\n", b"abc", b"3\r\nabc\r\n", b"0\r\n\r\n", b"\n", b"\r", b" "]
)  # fmt: skip


def test_whatever_is_sent_is_answered_or_refused() -> None:
    with steady() as server:

        @settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
        @example([b"HEAD /livez HTTP/1.1\r\n", b"Host: x\r\n", b"Transfer-Encoding: chunked\r\n", b"\r\n", b"abc"])
        @given(st.lists(LINES | st.binary(max_size=20), max_size=30))
        def check(parts: list[bytes]) -> None:
            with Client(("127.0.0.1", server.port)) as client:
                # What the server does not want to hear, it may close on.
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    client.send(*parts)
                    client.half_close()
                answer = client.everything()
            assert answer == b"" or answer.startswith(b"HTTP/1.1 ")
            assert server.wrong == []

        check()
        assert server.get().status == 200
        assert server.named("internal") == []


def test_many_clients_at_once(server: Server) -> None:
    wrong: list[object] = []

    def ask() -> None:
        try:
            with Client(("127.0.0.1", server.port)) as client:
                for path in PATHS * 10:
                    assert client.get(path).status == 200
        except BaseException as error:
            wrong.append(error)

    clients = [threading.Thread(target=ask) for _ in range(40)]
    for each in clients:
        each.start()
    for each in clients:
        each.join()
    assert wrong == []


# --- clients that go ---


@pytest.mark.parametrize("sent", ["GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n", "GET /metrics HTTP/1.0\r\n\r\n"])
def test_a_client_that_has_said_all_it_wants_to_say(server: Server, sent: str) -> None:
    client = server.connect()
    client.send(sent)
    client.half_close()
    assert client.answer().body == metrics.render(server.said)
    assert client.ended()
    eventually(lambda: server.connections() == 0, within=1)


def test_a_client_that_has_said_all_it_wants_to_say_and_reads_late(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "render", lambda _: b"x" * LARGE)
    client = server.connect()
    client.send("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n", "GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
    client.half_close()
    eventually(server.sending, within=5)
    assert client.answer().body == b"x" * LARGE
    assert client.answer().body == b"ok\n"
    assert client.ended()


def test_a_client_that_says_half_and_no_more(server: Server) -> None:
    client = server.connect()
    client.send("GET /livez HTTP/1.1\r\nHo")
    client.half_close()
    assert client.answer().status == 400
    assert client.ended()
    client = server.connect()
    client.half_close()
    assert client.ended()


@pytest.mark.parametrize(
    "sent",
    ["", "GET /me", "GET /livez HTTP/1.1\r\nHost: x\r\n\r\n", "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n" * 50],
    ids=["nothing", "half", "one", "many"],
)
def test_a_client_that_resets(server: Server, sent: str) -> None:
    server.said = many(200)
    for _ in range(20):
        with Client(("127.0.0.1", server.port)) as client:
            client.send(sent)
            client.reset()
    assert server.get().status == 200
    eventually(lambda: server.connections() == 0, within=5)


def test_a_client_that_resets_in_the_middle_of_an_answer(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "render", lambda _: b"x" * LARGE)
    client = server.connect()
    client.send("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
    eventually(server.sending, within=5)
    client.reset()
    assert server.get().status == 200
    eventually(lambda: server.connections() == 0, within=5)


def test_the_next_request_after_the_last_one_is_not_answered(server: Server) -> None:
    client = server.connect()
    client.send("GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n" * 2)
    assert client.answer().status == 200
    assert client.ended()


# --- clients that do not go ---


def took(wait: Callable[[], object]) -> float:
    began = time.monotonic()
    assert wait()
    return time.monotonic() - began


SHORT, LENIENT, OTHERS = 0.3, 15.0, 60.0  # seconds; a machine under load takes its time to encrypt a long answer
TIMES = ("REQUEST_WITHIN", "ANSWER_WITHIN", "LINGER_FOR", "IDLE_FOR")


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Makes one of the server's times so short that a test can wait for it, and the others so long that it cannot have
    been them."""
    made: set[str] = set()

    def shorten(name: str) -> None:
        made.add(name)
        for each in TIMES:
            for module in (connection, health):
                if hasattr(module, each):
                    monkeypatch.setattr(module, each, SHORT if each in made else OTHERS)

    return shorten


def ends_in_time(wait: Callable[[], object]) -> bool:
    """Whether it was ended by the time that is short, and not by another."""
    return SHORT - 0.1 < took(wait) < LENIENT


def nobody(server: Server) -> bool:
    """Once there are no connections any more."""
    return eventually(lambda: server.connections() == 0, within=LENIENT)


Short = Callable[[str], None]


@pytest.mark.parametrize(
    "sent",
    ["", "GET", "GET /livez HTTP/1.1\r\nHost: x\r\n", "GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nhalf"],
    ids=["nothing", "a word", "half a head", "half a body"],
)
def test_a_client_that_goes_silent(server: Server, short: Short, sent: str) -> None:
    short("REQUEST_WITHIN")
    client = server.connect()
    client.send(sent)
    assert ends_in_time(client.ended)
    if sent:
        client = server.connect()
        client.get()
        client.send(sent)
        assert ends_in_time(client.ended)


def test_a_client_that_sends_a_byte_now_and_then(server: Server, short: Short) -> None:
    short("REQUEST_WITHIN")
    client = server.connect()

    def drip() -> bool:
        with contextlib.suppress(ConnectionResetError, BrokenPipeError):
            for letter in "GET /livez HTTP/1.1\r\nHost: x\r\n" + "a" * 100:
                client.send(letter)
                if select.select([client.socket], [], [], 0.05)[0]:
                    break
        return client.ended()

    assert ends_in_time(drip)


def test_a_client_that_stays_for_nothing(server: Server, short: Short) -> None:
    short("IDLE_FOR")
    client = server.connect()
    client.get()
    assert ends_in_time(client.ended)


def test_a_client_that_comes_back_in_time_stays(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "IDLE_FOR", 1.0)
    client, began = server.connect(), time.monotonic()
    while time.monotonic() - began < 1.2:
        assert client.get().status == 200
        assert not select.select([client.socket], [], [], 0.3)[0]


def test_a_client_that_does_not_close_after_the_last_answer(server: Server, short: Short) -> None:
    short("LINGER_FOR")
    client = server.connect()
    client.get("/livez", "Connection: close")
    assert client.ended()  # its half
    assert ends_in_time(lambda: nobody(server))


def test_a_client_that_goes_on_sending_after_the_last_answer(server: Server, short: Short) -> None:
    short("LINGER_FOR")
    client = server.connect()

    def send_on() -> bool:
        with contextlib.suppress(ConnectionResetError, BrokenPipeError):
            while True:
                client.send("GET /livez HTTP/1.0\r\n\r\n")
                select.select([], [], [], 0.02)
        return True

    assert ends_in_time(send_on)


def test_a_client_that_takes_its_last_answer_late_and_does_not_close(
    server: Server, short: Short, monkeypatch: pytest.MonkeyPatch
) -> None:
    short("LINGER_FOR")
    monkeypatch.setattr(metrics, "render", lambda _: b"x" * LARGE)
    client = server.connect()
    client.send("GET /metrics HTTP/1.0\r\n\r\n")
    eventually(server.sending, within=5)
    assert not select.select([], [], [], 2 * SHORT)[0]  # the time in which it has to close does not run yet
    assert len(client.answer().body) == LARGE
    assert took(lambda: nobody(server)) < LENIENT  # it runs since the kernel has taken the rest


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_a_client_that_never_reads(server: Server, short: Short, monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    short("ANSWER_WITHIN")
    monkeypatch.setattr(metrics, "render", lambda _: b"x" * LARGE)
    client = server.connect()
    client.send(f"GET /metrics HTTP/{version}\r\nHost: x\r\n\r\n")
    eventually(server.sending, within=5, every=0.005)
    assert server.get().status == 200
    assert ends_in_time(lambda: nobody(server))


def test_a_client_that_asks_and_asks_and_never_reads(server: Server, short: Short) -> None:
    server.said = many(1000)
    short("ANSWER_WITHIN")
    client = server.connect(buffer=4096)
    client.send("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n" * 40)
    eventually(server.sending, within=10, every=0.005)
    server.said = status(credential())
    assert server.get().status == 200
    assert ends_in_time(lambda: nobody(server))


def test_a_client_that_does_not_read_is_not_listened_to(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "render", lambda _: b"x" * LARGE)
    client = server.connect()
    client.send("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
    eventually(server.sending, within=5)
    client.socket.settimeout(0.5)
    with pytest.raises(TimeoutError):
        client.send(b"x" * LARGE)
    client.socket.settimeout(10)
    assert client.answer().body == b"x" * LARGE
    assert client.answer().status == 431


def test_more_than_there_may_be(server: Server) -> None:
    """Whoever keeps connections for later shuts nobody out: the one that has been idle for longest goes."""
    asks = server.connect()
    asks.send("GET /li")
    clients = [server.connect() for _ in range(health.MOST_CONNECTIONS - 1)]
    assert all(each.get().status == 200 for each in clients)
    assert clients[0].get().status == 200  # not the one that came first, but that was heard of first
    eventually(lambda: server.connections() == health.MOST_CONNECTIONS, within=5)
    for gone in (1, 2, 3):
        clients.append(server.connect())
        assert clients[-1].get().status == 200
        assert clients[gone].ended()
    eventually(lambda: server.connections() == health.MOST_CONNECTIONS, within=5)
    assert all(each.get().status == 200 for each in (clients[0], *clients[4:]))
    asks.send("vez HTTP/1.1\r\nHost: x\r\n\r\n")
    assert asks.answer().status == 200
    clients.pop().reset()
    eventually(lambda: server.connections() == health.MOST_CONNECTIONS - 1, within=5)


def test_nobody_is_shut_out_by_clients_that_begin_and_never_ask(server: Server) -> None:
    clients = [server.connect() for _ in range(health.MOST_CONNECTIONS)]
    for each in clients:
        each.send("GET /li")
    eventually(lambda: server.connections() == health.MOST_CONNECTIONS, within=5)
    for _ in range(3):
        assert server.get().status == 200


# --- the end ---


def in_every_state(server: Server, tls: ssl.SSLContext | None = None) -> None:
    """Clients in each state that a connection has."""
    eventually(lambda: server.connections() == 0, within=5)
    server.connect()  # with TLS, one that has not begun with it
    server.connect(tls=tls)
    for sent in ("GET /li", "GET /livez HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n"):
        server.connect(tls=tls).send(sent)
    server.connect(tls=tls).get()
    server.connect(tls=tls).get("/livez", "Connection: close")
    for version in ("1.0", "1.1"):
        server.connect(tls=tls).send(f"GET /metrics HTTP/{version}\r\nHost: x\r\n\r\n" * 2)
    # TLS keeps to itself how much of the first answer has been taken (it does not before Python 3.11).
    eventually(lambda: server.sending() >= (1 if tls else 2), within=5)


@pytest.mark.parametrize("times", range(2))
def test_close_with_clients_in_every_state(server: Server, monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    monkeypatch.setattr(metrics, "render", lambda _: b"x" * LARGE)
    in_every_state(server)
    began = time.monotonic()
    server.run(server.health.close())
    assert time.monotonic() - began < 1.5  # and not the 2 seconds that a client has to close
    assert server.connections() == 0


def test_close_and_clients_that_come_in_the_same_moment(idle: Server) -> None:
    for _ in range(20):
        idle.listen()
        address = ("127.0.0.1", idle.port)
        made = []
        for _ in range(5):
            made.append(Client(address))
            made[-1].send("GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        idle.run(idle.health.close())
        for each in made:
            with contextlib.suppress(GoneError):
                each.everything()
            each.socket.close()
        assert idle.connections() == 0


def test_close_before_it_listens(idle: Server) -> None:
    async def start_and_close(turns: int) -> None:
        idle.health.start(LOOPBACK)
        for _ in range(turns):
            await asyncio.sleep(0)
        await idle.health.close()

    idle.run(idle.health.close())
    for turns in range(10):
        idle.run(start_and_close(turns))
        assert idle.health.port is None
    idle.listen()
    assert idle.get().status == 200


def test_it_listens_elsewhere_after_close(server: Server) -> None:
    client, before = server.connect(), server.port
    client.get()
    server.run(server.health.close())
    assert client.ended()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", before))
    server.listen()
    assert server.get().status == 200
    assert len(server.named("listening")) == 2


# --- addresses ---


def test_the_address_is_in_the_log(server: Server) -> None:
    assert server.events == [("listening", {"address": f"127.0.0.1:{server.port}", "tls": False})]


def needs_ipv6() -> None:
    try:
        with socket.socket(socket.AF_INET6) as made:
            made.bind(("::1", 0))
    except OSError as error:
        pytest.skip(f"no IPv6 on this machine: {error.strerror}")


def test_ipv6(idle: Server) -> None:
    needs_ipv6()
    idle.listen(Listen.parse("[::1]:0"))
    assert idle.get("/readyz", host="::1").status == 200
    assert idle.named("listening") == [{"address": f"[::1]:{idle.port}", "tls": False}]
    with pytest.raises(ConnectionRefusedError):
        idle.get(host="127.0.0.1")


def test_all_addresses_have_one_port(idle: Server) -> None:
    needs_ipv6()
    idle.listen(Listen.parse(":0"))
    for host in ("127.0.0.1", "127.0.0.2", "::1"):
        assert idle.get(host=host).status == 200
    (said,) = idle.named("listening")
    assert sorted(said["address"].split()) == sorted([f"0.0.0.0:{idle.port}", f"[::]:{idle.port}"])


def test_a_family_that_this_machine_does_not_have(idle: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    really = health._listening

    def without(family: int, address: tuple[object, ...]) -> socket.socket:
        if family == socket.AF_INET6:
            raise OSError(97, "Address family not supported by protocol")
        return really(family, address)

    monkeypatch.setattr(health, "_listening", without)
    idle.listen(Listen.parse(":0"))
    assert idle.named("listening") == [{"address": f"0.0.0.0:{idle.port}", "tls": False}]


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Retries at once; the moments of the tries."""
    tries: list[float] = []
    really = health._bind

    async def counted(listen: Listen) -> list[socket.socket]:
        tries.append(time.monotonic())
        return await really(listen)

    monkeypatch.setattr(health, "_bind", counted)
    monkeypatch.setattr(health, "RETRY_DELAYS", (0.01,))
    return tries


def test_an_address_in_use(idle: Server, impatient: list[float]) -> None:
    with socket.socket() as blocker:
        blocker.bind(("127.0.0.1", 0))
        blocker.listen()
        port = blocker.getsockname()[1]
        idle.begin(Listen("127.0.0.1", port))
        eventually(lambda: len(impatient) > 3, within=5)
        (said,) = idle.named("listen_failed")
        assert (said["address"], said["message"]) == (f"127.0.0.1:{port}", "Address already in use")
        assert said["hint"]
        assert idle.health.port is None
    eventually(lambda: idle.health.port, within=5)
    assert idle.port == port
    assert idle.get().status == 200
    assert [name for name, _ in idle.events] == ["listen_failed", "listening"]


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    ("address", "message"),
    [("192.0.2.1:0", "Cannot assign requested address"), ("no-such-host.invalid:1", "Name or service|resolution")],
)
def test_an_address_that_is_not_ours(idle: Server, address: str, message: str) -> None:
    idle.begin(Listen.parse(address))
    (said,) = idle.heard("listen_failed")
    assert said["address"] == address
    assert re.search(message, said["message"])


def test_a_defect_at_the_start_is_heard_of(idle: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "_bind", lambda _: 1 / 0)
    idle.begin()
    (said,) = idle.heard("listen_failed")
    assert said["message"] == "ZeroDivisionError: division by zero"


def test_retries_come_later_and_later() -> None:
    assert list(health.RETRY_DELAYS) == sorted(health.RETRY_DELAYS)
    assert health.RETRY_DELAYS[0] >= 1
    assert health.RETRY_DELAYS[-1] <= 60


# --- no descriptors left ---

STARVED = """
import asyncio, json, logging, os, resource, sys
from krbrefresh.refresher import health
from krbrefresh.refresher.files import Files, identities
from krbrefresh.refresher.listen import Listen
from tests.statuses import credential, status

health._ACCEPT_AGAIN = 0.1

class Says(logging.Handler):
    def emit(self, record):
        say({"event": record.getMessage(), **record.fields})

def say(what):
    print(json.dumps(what), flush=True)

async def main():
    server, taken, done = health.Health(lambda: status(credential())), [], asyncio.Event()
    def hear():
        word = os.read(0, 100).decode().strip()
        if word == "take":
            try:
                while True:
                    taken.append(os.open("/dev/null", os.O_RDONLY))
            except OSError:
                pass
        elif word == "free":
            while taken:
                os.close(taken.pop())
        elif not word:
            done.set()
        usage = resource.getrusage(resource.RUSAGE_SELF)
        say({"event": word, "cpu": usage.ru_utime + usage.ru_stime, "connections": len(server._tasks)})
    asyncio.get_running_loop().add_reader(0, hear)
    server.start(Listen("127.0.0.1", 0))
    await done.wait()
    await server.close()

resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
log = logging.getLogger("krbrefresh")
log.addHandler(Says())
log.setLevel("INFO")
asyncio.run(main(), debug=False)
"""


class Starved:
    """A server in a process that can run out of descriptors."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", STARVED],
            env={**os.environ, "PYTHONPATH": REPOSITORY},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def next(self) -> dict[str, Any]:
        """The next thing that it says."""
        assert self.process.stdout
        line = self.process.stdout.readline()
        assert line, self.process.communicate()[1]
        return dict(json.loads(line))

    def tell(self, word: str) -> dict[str, Any]:
        assert self.process.stdin
        self.process.stdin.write(word + "\n")
        self.process.stdin.flush()
        said = self.next()
        assert said["event"] == word, said
        return said

    def end(self) -> None:
        _, complaints = self.process.communicate(timeout=10)
        assert (self.process.returncode, complaints) == (0, "")


def test_no_descriptors_left() -> None:
    starved = Starved()
    try:
        address = ("127.0.0.1", int(starved.next()["address"].rpartition(":")[2]))
        with Client(address) as client:
            for path in PATHS:
                client.get(path)
        for _ in range(2):
            eventually(lambda: not starved.tell("look")["connections"], within=5)
            before = starved.tell("take")["cpu"]
            with Client(address) as first, Client(address) as second:
                first.send("GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
                said = starved.next()
                assert (said["event"], said["message"]) == ("accept_failed", "Too many open files")
                # It is tried again several times, and said once; nothing spins.
                assert starved.process.stdout
                assert not select.select([first.socket.fileno(), starved.process.stdout.fileno()], [], [], 0.5)[0]
                assert starved.tell("free")["cpu"] - before < 0.3
                assert first.answer().status == 200
                assert second.get().status == 200
        starved.end()
    finally:
        starved.process.kill()
        starved.process.wait()
        for stream in (starved.process.stdin, starved.process.stdout, starved.process.stderr):
            assert stream
            with contextlib.suppress(BrokenPipeError):
                stream.close()


# --- TLS ---

# With which alert, asyncio often does not say before it closes.
NOT_SERVED = (ssl.SSLError, ConnectionResetError, GoneError)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    made = Authority(tmp_path)
    made.issue("server")
    return made


@pytest.fixture
def secure(idle: Server, authority: Authority) -> Server:
    return idle.listen(authority.listen())


def served_with(server: Server, tls: ssl.SSLContext) -> int:
    """The serial number of the certificate that a new client sees."""
    with Client(("127.0.0.1", server.port), tls) as client:
        assert client.get().status == 200
        assert isinstance(client.socket, ssl.SSLSocket)
        seen = client.socket.getpeercert()
        assert seen
        return int(str(seen["serialNumber"]), 16)


def test_tls(secure: Server, authority: Authority) -> None:
    assert secure.named("listening") == [{"address": f"127.0.0.1:{secure.port}", "tls": True}]
    client = secure.connect(tls=authority.client())
    for path in PATHS * 3:
        assert client.get(path).status == 200
    assert client.get("/readyz", method="HEAD").status == 200
    reply = client.get("/metrics", "Connection: close")
    assert reply.body == metrics.render(secure.said)
    assert client.ended()


@pytest.mark.parametrize("newest", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=lambda each: each.name)
def test_versions_of_tls_that_are_spoken(secure: Server, authority: Authority, newest: ssl.TLSVersion) -> None:
    client = secure.connect(tls=authority.client(newest=newest))
    assert isinstance(client.socket, ssl.SSLSocket)
    assert client.socket.version() == newest.name.replace("_", ".")
    assert client.get().status == 200


@pytest.mark.parametrize("newest", [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1], ids=lambda each: each.name)
def test_versions_of_tls_that_are_not_spoken(secure: Server, authority: Authority, newest: ssl.TLSVersion) -> None:
    with pytest.raises(NOT_SERVED):
        secure.get(tls=authority.client(newest=newest))
    assert secure.get(tls=authority.client()).status == 200


def test_tls_names_the_protocol(secure: Server, authority: Authority) -> None:
    context = authority.client()
    context.set_alpn_protocols(["h2", "http/1.1"])
    client = secure.connect(tls=context)
    assert isinstance(client.socket, ssl.SSLSocket)
    assert client.socket.selected_alpn_protocol() == "http/1.1"


def test_plain_text_where_there_is_tls(secure: Server) -> None:
    client = secure.connect()
    client.send("GET /livez HTTP/1.0\r\n\r\n")
    assert b"HTTP" not in client.everything()


def test_tls_with_many_answers_at_once(secure: Server, authority: Authority) -> None:
    secure.said = many(1000)
    client, expected = secure.connect(tls=authority.client()), metrics.render(secure.said)
    client.send("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n" * 10, "GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
    for _ in range(10):
        assert client.answer().body == expected
    assert client.answer().body == b"ok\n"


def test_tls_with_a_last_answer_that_is_large(
    secure: Server, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "render", lambda _: b"x" * LARGE)
    client = secure.connect(tls=authority.client())
    assert len(client.get("/metrics", "Connection: close").body) == LARGE
    assert client.ended()


@pytest.mark.parametrize("headers", [[], ["Connection: close"]], ids=["more", "last"])
def test_a_client_that_never_reads_with_tls(
    secure: Server, authority: Authority, short: Short, monkeypatch: pytest.MonkeyPatch, headers: list[str]
) -> None:
    short("ANSWER_WITHIN")
    monkeypatch.setattr(metrics, "render", lambda _: b"x" * LARGE)
    client = secure.connect(tls=authority.client())
    request = "".join(f"{each}\r\n" for each in ("GET /metrics HTTP/1.1", "Host: x", *headers, ""))
    client.send(request * 3)
    assert ends_in_time(lambda: nobody(secure))


def test_a_client_that_takes_its_last_answer_late_with_tls(
    secure: Server, authority: Authority, short: Short, monkeypatch: pytest.MonkeyPatch
) -> None:
    short("LINGER_FOR")
    monkeypatch.setattr(metrics, "render", lambda _: b"x" * LARGE)
    client = secure.connect(tls=authority.client())
    client.send("GET /metrics HTTP/1.0\r\n\r\n")
    assert not select.select([], [], [], 2 * SHORT)[0]  # the time in which it has to close does not run yet
    assert len(client.answer().body) == LARGE
    assert client.ended()


@pytest.mark.parametrize("sent", [b"", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"], ids=["nothing", "half"])
def test_a_client_that_goes_silent_before_there_is_tls(secure: Server, short: Short, sent: bytes) -> None:
    short("REQUEST_WITHIN")
    client = secure.connect()
    client.send(sent)
    assert ends_in_time(client.ended)
    assert nobody(secure)


@pytest.mark.parametrize("sent", [b"", b"\x16\x03\x01\x02\x00", b"\x16\x03\x01\x00\x02\x01\x00", bytes(300)])
def test_a_client_that_resets_before_there_is_tls(secure: Server, authority: Authority, sent: bytes) -> None:
    for _ in range(10):
        with Client(("127.0.0.1", secure.port)) as client:
            client.send(sent)
            client.reset()
    assert secure.get(tls=authority.client()).status == 200
    eventually(lambda: secure.connections() == 0, within=5)


@pytest.mark.parametrize(
    ("sent", "name"),
    [("", "REQUEST_WITHIN"), ("GET /li", "REQUEST_WITHIN"), ("GET /livez HTTP/1.1\r\nHost: x\r\n\r\n", "IDLE_FOR")],
    ids=["nothing", "half", "one"],
)
@pytest.mark.parametrize("newest", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=lambda each: each.name)
def test_a_client_that_goes_silent_with_tls(
    secure: Server, authority: Authority, short: Short, sent: str, name: str, newest: ssl.TLSVersion
) -> None:
    short(name)
    client = secure.connect(tls=authority.client(newest=newest))
    client.send(sent)
    assert ends_in_time(lambda: client.everything().endswith(b"ok\n") == (name == "IDLE_FOR"))
    assert nobody(secure)


def test_a_client_that_says_goodbye_with_tls(secure: Server, authority: Authority) -> None:
    client = secure.connect(tls=authority.client())
    assert client.get().status == 200
    assert isinstance(client.socket, ssl.SSLSocket)
    with contextlib.suppress(ssl.SSLEOFError):  # before Python 3.11, asyncio does not say goodbye
        client.socket = client.socket.unwrap()
        assert client.ended()
    eventually(lambda: secure.connections() == 0, within=1)


@pytest.mark.parametrize("times", range(2))
def test_close_with_clients_in_every_state_of_tls(
    secure: Server, authority: Authority, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    monkeypatch.setattr(metrics, "render", lambda _: b"x" * LARGE)
    in_every_state(secure, authority.client())
    began = time.monotonic()
    secure.run(secure.health.close())
    assert time.monotonic() - began < 1.5  # and not the 2 seconds that a client has to close
    assert secure.connections() == 0


def test_close_when_a_handshake_is_just_over(
    idle: Server, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    really = connection.Connection.connection_made

    def made_and_closed(self: connection.Connection, transport: asyncio.BaseTransport) -> None:
        really(self, transport)
        for task in idle.health._tasks:  # as close() does, in the one turn before the task hears of it
            task.cancel()

    monkeypatch.setattr(connection.Connection, "connection_made", made_and_closed)
    idle.listen(authority.listen())
    before = descriptors()
    with contextlib.suppress(OSError):
        idle.connect(tls=authority.client()).ended()
    eventually(lambda: idle.connections() == 0, within=5)
    idle.run(idle.health.close())
    assert len(descriptors() - before) <= 1  # the client's own


def test_close_in_any_turn_of_a_handshake(idle: Server, authority: Authority) -> None:
    context = authority.client()

    async def close_after(turns: int) -> None:
        for _ in range(turns):
            await asyncio.sleep(0)
        await idle.health.close()

    def ask(port: int) -> None:
        with contextlib.suppress(OSError, GoneError), Client(("127.0.0.1", port), context) as client:
            client.get()

    before = descriptors()
    for turns in range(0, 60, 2):
        idle.listen(authority.listen())
        asking = threading.Thread(target=ask, args=(idle.port,))
        asking.start()
        eventually(lambda asking=asking: idle.connections() or not asking.is_alive(), within=5, every=0.0005)
        idle.run(close_after(turns))
        asking.join(10)
        assert descriptors() - before == set(), turns


# --- certificates of clients ---


@pytest.fixture
def mutual(idle: Server, authority: Authority) -> Server:
    return idle.listen(authority.listen(client_ca=authority.path))


@pytest.mark.parametrize("newest", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=lambda each: each.name)
def test_who_has_no_certificate_is_not_served(mutual: Server, authority: Authority, newest: ssl.TLSVersion) -> None:
    with pytest.raises(NOT_SERVED):
        mutual.get(tls=authority.client(newest=newest))


def test_who_has_one_is_served(mutual: Server, authority: Authority) -> None:
    context = authority.client(authority.issue("prometheus"))
    for path in PATHS:
        assert mutual.get(path, tls=context).status == 200


def test_who_has_one_of_another_authority_is_not_served(mutual: Server, authority: Authority, tmp_path: Path) -> None:
    other = Authority(tmp_path, "other")
    with pytest.raises(NOT_SERVED):
        mutual.get(tls=authority.client(other.issue("stranger")))
    assert mutual.get(tls=authority.client(authority.issue("prometheus"))).status == 200


# --- rotation ---


@pytest.fixture
def watchful(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks for another certificate whenever somebody asks."""
    monkeypatch.setattr(health, "LOOK_EVERY", 0.0)


@pytest.mark.usefixtures("watchful")
def test_a_new_certificate_is_served_without_a_restart(secure: Server, authority: Authority) -> None:
    context = authority.client()
    stays = secure.connect(tls=context)
    before = served_with(secure, context)
    secure.settled()
    certificate, key = authority.issue("server")
    eventually(lambda: served_with(secure, context) == serial_of(certificate), within=5)
    assert served_with(secure, context) != before
    (said,) = secure.heard("certificate_changed")
    assert said == {"address": "127.0.0.1:0", "path": f"{certificate} {key}"}
    assert stays.get().status == 200
    assert secure.named("certificate_refused") == []


@pytest.mark.usefixtures("watchful")
def test_a_certificate_that_kubernetes_rotates(idle: Server, authority: Authority, tmp_path: Path) -> None:
    mounted = tmp_path / "mounted"
    mounted.mkdir()

    def publish(version: str) -> Path:
        (mounted / version).mkdir()
        for each in authority.issue("server"):
            os.rename(each, mounted / version / each.name)
        (mounted / "..new").symlink_to(version)
        os.rename(mounted / "..new", mounted / "..data")
        return mounted / version / "server.crt"

    publish("..1")
    for name in ("server.crt", "server.key"):
        (mounted / name).symlink_to(f"..data/{name}")
    context = authority.client()
    idle.listen(Listen("127.0.0.1", 0, str(mounted / "server.crt"), str(mounted / "server.key")))
    serial = serial_of(publish("..2"))
    eventually(lambda: served_with(idle, context) == serial, within=5)
    assert [name for name, _ in idle.events] == ["listening", "certificate_changed"]


@pytest.mark.usefixtures("watchful")
def test_one_connection_alone_has_the_certificate_looked_at(secure: Server, authority: Authority) -> None:
    # As a Prometheus that keeps its connection.
    client = secure.connect(tls=authority.client())
    client.get()
    secure.settled()
    authority.issue("server")
    eventually(lambda: client.get().status == 200 and secure.named("certificate_changed"), within=5)


@pytest.mark.usefixtures("watchful")
def test_clients_that_do_not_trust_it_any_more_have_the_certificate_looked_at(
    secure: Server, authority: Authority, tmp_path: Path
) -> None:
    other = Authority(tmp_path, "other")
    context = other.client()
    with pytest.raises(ssl.SSLCertVerificationError):
        secure.get(tls=context)
    secure.settled()
    other.issue("server")

    def trusted() -> bool:
        with contextlib.suppress(*NOT_SERVED):
            return secure.get(tls=context).status == 200
        return False

    eventually(trusted, within=5)


@pytest.mark.usefixtures("watchful")
@pytest.mark.parametrize("broken", ["garbage", "nothing", "missing", "the key of another"])
def test_a_new_certificate_that_is_broken(secure: Server, authority: Authority, tmp_path: Path, broken: str) -> None:
    context = authority.client()
    before = served_with(secure, context)
    certificate = tmp_path / "server.crt"
    if broken == "missing":
        certificate.unlink()
    elif broken == "the key of another":
        replace(tmp_path / "server.key", authority.issue("another")[1].read_bytes())
    else:
        replace(certificate, b"garbage" if broken == "garbage" else b"")
    (said,) = secure_until(secure, context, "certificate_refused")
    for _ in range(10):
        assert served_with(secure, context) == before
    assert len(secure.named("certificate_refused")) == 1
    assert said["hint"]
    assert str(certificate) in said["message"], said
    secure.settled()
    certificate, _ = authority.issue("server")
    eventually(lambda: served_with(secure, context) == serial_of(certificate), within=5)
    assert [name for name, _ in secure.events] == ["listening", "certificate_refused", "certificate_changed"]


def secure_until(server: Server, tls: ssl.SSLContext, name: str) -> list[dict[str, Any]]:
    """These events, once somebody has asked often enough."""
    return eventually(lambda: (server.get(tls=tls).status == 200 and server.named(name)) or [], within=5)


@pytest.mark.usefixtures("watchful")
def test_the_former_files_again_after_broken_ones(secure: Server, authority: Authority, tmp_path: Path) -> None:
    context, certificate = authority.client(), tmp_path / "server.crt"
    certificate.rename(tmp_path / "kept")
    secure_until(secure, context, "certificate_refused")
    good = (tmp_path / "kept").read_bytes()
    replace(certificate, good)
    secure_until(secure, context, "certificate_changed")
    certificate.unlink()
    eventually(lambda: server_heard(secure, context, "certificate_refused") == 2, within=5)


def server_heard(server: Server, tls: ssl.SSLContext, name: str) -> int:
    assert server.get(tls=tls).status == 200
    return len(server.named(name))


@pytest.mark.usefixtures("watchful")
def test_another_authority_for_clients(idle: Server, authority: Authority, tmp_path: Path) -> None:
    other, clients = Authority(tmp_path, "other"), tmp_path / "clients.pem"
    replace(clients, authority.path.read_bytes())
    idle.listen(authority.listen(client_ca=clients))
    former, next_one = authority.client(authority.issue("former")), authority.client(other.issue("next"))
    assert idle.get(tls=former).status == 200
    replace(clients, other.path.read_bytes())

    def served(tls: ssl.SSLContext) -> bool:
        with contextlib.suppress(*NOT_SERVED):
            return idle.get(tls=tls).status == 200
        return False

    eventually(lambda: served(next_one), within=5)
    assert not served(former)


def test_certificates_are_not_looked_at_all_the_time(
    secure: Server, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[float] = []

    def noted(paths: Iterable[str]) -> Files:
        looks.append(time.monotonic())
        return identities(paths)

    monkeypatch.setattr(health, "identities", noted)
    monkeypatch.setattr(health, "LOOK_EVERY", 0.3)
    client, requests = secure.connect(tls=authority.client()), 0

    def looked() -> bool:
        nonlocal requests
        requests += 1
        client.get()
        return len(looks) == 4

    eventually(looked, within=20, every=0.001)
    assert requests > 2 * len(looks)
    assert min(after - before for before, after in itertools.pairwise(looks)) > 0.29


def test_without_tls_there_is_nothing_to_look_at(
    server: Server, watchful: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "identities", lambda _: 1 / 0)
    for _ in range(3):
        assert server.get().status == 200
    assert [name for name, _ in server.events] == ["listening"]


# --- TLS that cannot be had ---


def never_plain(server: Server, listen: Listen, tries: Callable[[], bool]) -> str:
    """That nobody is served, and why, in the log's words."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    server.begin(dataclasses.replace(listen, port=port))
    (said,) = server.heard("listen_failed")
    eventually(tries, within=5)
    assert len(server.named("listen_failed")) == 1
    assert server.health.port is None
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))
    return str(said["message"])


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> Callable[[], bool]:
    """Whether it has been tried several times to read the files, without a pause."""
    tries: list[float] = []
    really = health._Tls.load

    def counted(listen: Listen) -> health._Tls:
        tries.append(time.monotonic())
        return really(listen)

    monkeypatch.setattr(health._Tls, "load", counted)
    monkeypatch.setattr(health, "RETRY_DELAYS", (0.01,))
    return lambda: len(tries) > 3


def test_no_certificate(idle: Server, tmp_path: Path, loads: Callable[[], bool]) -> None:
    authority = Authority(tmp_path)
    message = never_plain(idle, authority.listen(), loads)
    assert message == f"{tmp_path / 'server.crt'}: No such file or directory"
    authority.issue("server")
    eventually(lambda: idle.health.port, within=5)
    assert idle.get(tls=authority.client()).status == 200
    assert b"HTTP" not in asked_plainly(idle)


def asked_plainly(server: Server) -> bytes:
    client = server.connect()
    client.send("GET /livez HTTP/1.0\r\n\r\n")
    return client.everything()


def test_half_of_what_tls_needs(idle: Server, authority: Authority, loads: Callable[[], bool]) -> None:
    for missing in ("server.key", "server.crt"):
        os.rename(authority.directory / missing, authority.directory / "kept")
        message = never_plain(idle, authority.listen(), loads)
        assert message == f"{authority.directory / missing}: No such file or directory"
        os.rename(authority.directory / "kept", authority.directory / missing)
        idle.run(idle.health.close())
        idle.forget()


def test_a_key_without_a_certificate(idle: Server, authority: Authority, loads: Callable[[], bool]) -> None:
    listen = dataclasses.replace(authority.listen(), certificate=None)
    assert "no certificate" in never_plain(idle, listen, loads)
    idle.run(idle.health.close())
    idle.forget()
    listen = dataclasses.replace(authority.listen(client_ca=authority.path), certificate=None, key=None)
    assert "no certificate" in never_plain(idle, listen, loads)


def test_a_key_with_a_passphrase(idle: Server, authority: Authority, loads: Callable[[], bool]) -> None:
    authority.issue("server", passphrase="secret")
    message = never_plain(idle, authority.listen(), loads)
    assert "the key has a passphrase" in message
    assert str(authority.directory / "server.key") in message
    authority.issue("server")
    eventually(lambda: idle.health.port, within=5)


@pytest.mark.parametrize("name", ["server.crt", "server.key", "authority.pem"])
def test_a_file_that_is_not_what_it_should_be(
    idle: Server, authority: Authority, loads: Callable[[], bool], name: str
) -> None:
    replace(authority.directory / name, b"not a PEM file\n")
    message = never_plain(idle, authority.listen(client_ca=authority.path), loads)
    assert str(authority.directory / name) in message


def test_no_client_ca_is_not_no_clients_certificates(
    idle: Server, authority: Authority, loads: Callable[[], bool]
) -> None:
    missing = authority.directory / "missing.pem"
    assert str(missing) in never_plain(idle, authority.listen(client_ca=missing), loads)


# --- figures ---


@pytest.mark.parametrize("path", ["/", "/readyz", "/metrics"])
def test_a_thousand_credentials(server: Server, path: str, record_property: Callable[[str, object], None]) -> None:
    server.said = many(1000)
    client, each = server.connect(), []
    for _ in range(5):
        began = time.monotonic()
        reply = client.get(path)
        each.append(time.monotonic() - began)
        assert reply.status == (503 if path == "/readyz" else 200)
        assert reply.text.count("credential0999") >= 1
    figures = f"{path} {len(reply.body) / 1000:.0f} kB in {statistics.median(each) * 1000:.0f} ms"
    print(f"\n{figures}")
    record_property("figures", figures)


# --- the service with all of it ---


def test_the_service_over_tls(runner: Runner, realm: Realm, place: Path) -> None:
    authority = Authority(place)
    for each in authority.issue("server"):
        each.chmod(0o644)
    plain = {"log_format": "json", "listen": "127.0.0.1:0"}
    tls = {
        "tls_certificate": place / "server.crt",
        "tls_key": place / "server.key",
        "tls_client_ca": authority.path,
    }
    config = place / "krbrefresh.toml"
    keys = {"keytab": realm.keytab(place / "k", "etl"), "ccache": place / "token" / "krb5cc"}
    etl = {"principal": realm.principal("etl"), **keys}
    config.write_text(toml(refresher={**plain, **tls}, kerberos=etl))
    with refresher(runner, config, {**realm.env, "KRBREFRESH__REFRESHER__LISTEN": "127.0.0.1:0"}) as running:
        running.logged("published")
        said = running.logged("listening")[-1]
        assert said["tls"] is True
        address = ("127.0.0.1", int(said["address"].rpartition(":")[2]))
        context = authority.client(authority.issue("prometheus"))
        replies: dict[str, Reply] = {}
        with Client(address, context) as client:
            for path in (*PATHS, "/nowhere"):
                replies[path] = client.get(path)
            assert [each.status for each in replies.values()] == [200, 200, 200, 200, 404]
            (ready,) = json.loads(replies["/readyz"].body)["credentials"].values()
            (published,) = running.named("published")
            assert (ready["state"], ready["expires_at"]) == ("valid", published["expires_at"])
            assert realm.principal("etl") in replies["/"].text
            exposed = replies["/metrics"].body
            assert b'krbrefresh_refreshes_total{credential="default",method="keytab"} 1.0' in exposed
            done = subprocess.run([program("promtool"), "check", "metrics"], input=exposed, capture_output=True)
            assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
        # Plain text from the next HUP on, and no TLS any more.
        config.write_text(toml(refresher=plain, kerberos=etl))
        running.process.send_signal(signal.SIGHUP)
        said = running.logged("listening", count=2)[-1]
        assert said["tls"] is False
        with pytest.raises(ConnectionRefusedError):
            Client(address, context)
        with Client(("127.0.0.1", int(said["address"].rpartition(":")[2]))) as client:
            assert client.get("/readyz").status == 200
            config.write_text(toml(refresher={"log_format": "json"}, kerberos=etl))
            assert running.stop() < 1
        assert running.process.returncode == 0
        assert not running.named("internal")
