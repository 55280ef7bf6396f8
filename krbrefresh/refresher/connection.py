"""One HTTP/1.1 connection of the health server: h11 knows the protocol (RFC 9112), here are the bytes and the limits.

A client can hold up nobody but itself: it gets one answer per turn of the loop, what it sends is not read while it does
not read, and every state it can be in has an end.
"""

from __future__ import annotations

import asyncio
import email.utils
from collections.abc import Callable
from dataclasses import dataclass

import h11

REQUEST_WITHIN = 10.0  # seconds, from a request's first byte to its last; a new connection begins with one
ANSWER_WITHIN = 30.0  # seconds, in which a client has to take an answer
IDLE_FOR = 75.0  # seconds between two requests of one connection; Prometheus asks every 15 to 60
LINGER_FOR = 2.0  # seconds, in which a client has to close after the last answer
MOST_HEADER_BYTES = 16 * 1024
MOST_BODY_BYTES = 64 * 1024  # that are read and thrown away; no path has a use for one

TEXT = "text/plain; charset=utf-8"


@dataclass(frozen=True)
class Answer:
    """What a client is told. `headers` are those that not every answer has."""

    status: int
    content_type: str
    body: bytes
    headers: tuple[tuple[str, str], ...] = ()


class Connection(asyncio.Protocol):
    """The server's end of a connection. `answer` never raises. `closed` is done when all of it is over."""

    def __init__(self, answer: Callable[[h11.Request], Answer]) -> None:
        self._answer = answer
        self._loop = asyncio.get_running_loop()
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=MOST_HEADER_BYTES)
        self._transport: asyncio.Transport | None = None
        self._deadline: asyncio.TimerHandle | None = None
        self._request: h11.Request | None = None
        self._body = 0  # bytes of it so far
        self._receiving = True  # a request; False between two of them
        self._sending = False  # an answer that the client is slow to take
        self._ending = False  # nothing is read any more
        self._heard_at = self._loop.time()
        self.closed: asyncio.Future[None] = self._loop.create_future()

    @property
    def claim(self) -> tuple[bool, float]:
        """The least of several is the one to end for another client: one that is idle between two requests rather than
        one that is served, and then the one that has been silent for longest."""
        return self._receiving or self._sending, self._heard_at

    def abort(self) -> None:
        """Ends it at once."""
        if self._transport:
            self._transport.abort()

    # --- what the transport says ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Asyncio's."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.set_write_buffer_limits(high=0)  # to hear when the client has taken all of an answer
        self._end_within(REQUEST_WITHIN)

    def connection_lost(self, exc: Exception | None) -> None:
        """Asyncio's."""
        self._ending = True
        if self._deadline:
            self._deadline.cancel()
        if not self.closed.done():
            self.closed.set_result(None)

    def data_received(self, data: bytes) -> None:
        """Asyncio's."""
        self._heard_at = self._loop.time()
        if self._ending:
            return
        if not self._receiving:
            self._receiving = True
            self._end_within(REQUEST_WITHIN)
        self._http.receive_data(data)
        self._go_on()

    def eof_received(self) -> bool:
        """Asyncio's. A client that has said all it wants to say may still read, but for TLS, which has no half."""
        assert self._transport
        if not self._ending:
            self._http.receive_data(b"")
            self._go_on()
        return not self._ending and self._transport.can_write_eof()

    def resume_writing(self) -> None:
        """Asyncio's, which says it of what TLS has to send, too."""
        if not self._sending:
            return
        self._sending = False
        if self._ending:
            self._linger()
        else:
            self._await_request()

    # --- the conversation ---

    def _go_on(self) -> None:
        """Takes what has been received, up to the end of one request."""
        if self._ending or self._sending:
            return
        try:
            while True:
                happened = self._http.next_event()
                if happened is h11.NEED_DATA:
                    self._listen(True)
                    return
                if isinstance(happened, h11.Request):
                    self._request, self._body = happened, 0
                    if self._http.they_are_waiting_for_100_continue:
                        break
                elif isinstance(happened, h11.Data):
                    self._body += len(happened.data)
                    if self._body > MOST_BODY_BYTES:
                        self._say(Answer(413, TEXT, b"nobody wants a body here\n"))
                        return
                elif isinstance(happened, h11.EndOfMessage):
                    break
                else:  # the client has gone, or has sent more after a request that was to be the last
                    self._end()
                    return
        except h11.RemoteProtocolError as error:
            self._say(Answer(error.error_status_hint, TEXT, b"this is no request\n"))
            return
        assert self._request
        self._say(self._answer(self._request))

    def _say(self, answer: Answer) -> None:
        """Sends an answer, and awaits the next request if there can be one."""
        assert self._transport
        last = self._http.their_state is not h11.DONE  # not the whole request was read, or it cannot be
        ours: object = self._http.our_state
        if ours not in (h11.IDLE, h11.SEND_RESPONSE):
            self._end()
            return
        headers = [
            ("Date", email.utils.formatdate(usegmt=True)),
            ("Content-Type", answer.content_type),
            ("Content-Length", str(len(answer.body))),
            ("Cache-Control", "no-store"),
            ("X-Content-Type-Options", "nosniff"),
            *answer.headers,
            *([("Connection", "close")] if last else []),
        ]
        parts = [self._http.send(h11.Response(status_code=answer.status, headers=headers))]
        if self._request is None or self._request.method != b"HEAD":
            parts.append(self._http.send(h11.Data(data=answer.body)))
        parts.append(self._http.send(h11.EndOfMessage()))
        self._request = None
        self._transport.write(b"".join(part for part in parts if part))
        self._sending = self._transport.get_write_buffer_size() > 0
        if last or self._http.our_state is not h11.DONE:
            self._end()
            return
        self._http.start_next_cycle()
        if self._sending:
            self._listen(False)
            self._end_within(ANSWER_WITHIN)
        else:
            self._await_request()

    def _await_request(self) -> None:
        """The next request may be here already; it has to wait for its turn."""
        self._receiving = bool(self._http.trailing_data[0])
        self._end_within(REQUEST_WITHIN if self._receiving else IDLE_FOR)
        self._listen(not self._receiving)
        self._loop.call_soon(self._go_on)

    def _listen(self, yes: bool) -> None:
        assert self._transport
        if self._transport.is_closing():
            return
        if yes:
            self._transport.resume_reading()
        else:
            self._transport.pause_reading()

    def _end(self) -> None:
        """Says that there is no more. What the client still sends is taken and thrown away for a while: closing with
        something unread would take the answer back (RFC 9112, 9.6)."""
        assert self._transport
        self._ending = True
        self._listen(True)
        self._linger()
        if self._transport.can_write_eof():
            self._transport.write_eof()
        else:
            self._transport.close()

    def _linger(self) -> None:
        """Gives the client time to take the last answer, of which TLS does not say when it is on its way."""
        assert self._transport
        sent = not self._sending and self._transport.can_write_eof()
        self._end_within(LINGER_FOR if sent else ANSWER_WITHIN)

    def _end_within(self, seconds: float) -> None:
        if self._deadline:
            self._deadline.cancel()
        self._deadline = self._loop.call_later(seconds, self.abort)
