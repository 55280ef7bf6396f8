"""As much of Kerberos' messages (RFC 4120) as a liar in front of a KDC has to know."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

AS_REQ, AS_REP, KRB_ERROR = 10, 11, 30
_ENCRYPTED_TIMESTAMP, _ENCRYPTED_CHALLENGE = 2, 138  # padata: an attempt with the account's key
RESPONSE_TOO_BIG = 52


@dataclass(frozen=True)
class Request:
    """An AS request: whose, and whether it proves the account's key, which is what a lockout threshold counts."""

    client: str
    proves: bool


def _element(data: bytes, at: int) -> tuple[int, int, int]:
    """Its tag, and where its content begins and ends. Raises ValueError."""
    if at + 2 > len(data):
        raise ValueError("cut short")
    tag, length, at = data[at], data[at + 1], at + 2
    if length & 0x80:
        size = length & 0x7F
        length, at = int.from_bytes(data[at : at + size], "big"), at + size
    if at + length > len(data):
        raise ValueError("cut short")
    return tag, at, at + length


def _children(data: bytes, begin: int, end: int) -> Iterator[tuple[int, int, int]]:
    while begin < end:
        tag, inside, begin = _element(data, begin)
        yield tag, inside, begin


def _fields(data: bytes, begin: int, end: int) -> dict[int, tuple[int, int]]:
    """Those of a SEQUENCE that stands there, by their context numbers."""
    _, inside, end = _element(data[:end], begin)
    return {tag & 0x1F: (content, stop) for tag, content, stop in _children(data, inside, end)}


def _integer(data: bytes, place: tuple[int, int]) -> int:
    _, begin, end = _element(data, place[0])
    return int.from_bytes(data[begin:end], "big", signed=True)


def kind(data: bytes) -> int:
    """The number of its application tag: AS_REQ, AS_REP, KRB_ERROR; 0 where it is no message."""
    return data[0] & 0x1F if data and data[0] & 0xE0 == 0x60 else 0


def request(data: bytes) -> Request | None:
    """What there is to know of an AS request; None of anything else."""
    try:
        if kind(data) != AS_REQ:
            return None
        _, begin, end = _element(data, 0)
        fields = _fields(data, begin, end)
        proves = False
        if 3 in fields:
            _, begin, end = _element(data, fields[3][0])
            for _, inside, stop in _children(data, begin, end):
                parts = {tag & 0x1F: (content, last) for tag, content, last in _children(data, inside, stop)}
                proves = proves or _integer(data, parts[1]) in (_ENCRYPTED_TIMESTAMP, _ENCRYPTED_CHALLENGE)
        body = _fields(data, *fields[4])
        name = _fields(data, *body[1])
        _, begin, end = _element(data, name[1][0])
        words = [data[inside:stop].decode() for _, inside, stop in _children(data, begin, end)]
        _, begin, end = _element(data, body[2][0])
        return Request(f"{'/'.join(words)}@{data[begin:end].decode()}", proves)
    except (ValueError, KeyError, IndexError, UnicodeDecodeError):
        return None


def error_code(data: bytes) -> int | None:
    """That of a KRB-ERROR; None of anything else."""
    try:
        if kind(data) != KRB_ERROR:
            return None
        _, begin, end = _element(data, 0)
        return _integer(data, _fields(data, begin, end)[6])
    except (ValueError, KeyError):
        return None


def with_time(data: bytes, shift: float) -> bytes:
    """A KRB-ERROR whose KDC has another clock, by so many seconds; anything else as it is."""
    try:
        if kind(data) != KRB_ERROR:
            return data
        _, begin, end = _element(data, 0)
        _, begin, end = _element(data, _fields(data, begin, end)[4][0])
        return data[:begin] + _time(time.time() + shift) + data[end:]
    except (ValueError, KeyError):
        return data


def error(code: int, realm: str, shift: float = 0) -> bytes:
    """A KRB-ERROR, as anybody on the network can make one: nothing in it is signed."""
    server = _tagged(0x30, _tagged(0xA0, _number(2)) + _tagged(0xA1, _tagged(0x30, _text("krbtgt") + _text(realm))))
    fields = {0: _number(5), 1: _number(KRB_ERROR), 4: _tagged(0x18, _time(time.time() + shift)), 5: _number(0),
              6: _number(code), 9: _text(realm), 10: server}  # fmt: skip
    body = b"".join(_tagged(0xA0 | number, value) for number, value in fields.items())
    return _tagged(0x60 | KRB_ERROR, _tagged(0x30, body))


def _time(moment: float) -> bytes:
    return time.strftime("%Y%m%d%H%M%SZ", time.gmtime(moment)).encode()


def _tagged(tag: int, content: bytes) -> bytes:
    size = len(content)
    length = bytes([size]) if size < 0x80 else b"\x82" + size.to_bytes(2, "big")
    return bytes([tag]) + length + content


def _number(value: int) -> bytes:
    return _tagged(0x02, value.to_bytes(value.bit_length() // 8 + 1, "big", signed=True))


def _text(value: str) -> bytes:
    return _tagged(0x1B, value.encode())
