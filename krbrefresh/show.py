"""A token for people: whose it is, how much of its life is left, and its tickets. 80 columns, plain when piped."""

from __future__ import annotations

import time

from . import ccache
from ._flags import TicketFlags
from ._text import moment_text, printable, seconds_text
from .client import read_bytes
from .errors import TokenError
from .token import Token

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_WIDTH = 80
_BAR = 60
_STYLES = {"good": "32", "bad": "31", "faint": "2", "strong": "1"}  # ECMA-48, SGR
_LABEL = 13


class _Pen:
    def __init__(self, colour: bool, unicode: bool) -> None:
        self._colour = colour
        self.full, self.empty, self.mark = ("█", "░", "▲") if unicode else ("#", ".", "^")

    def __call__(self, style: str, text: str) -> str:
        return f"\x1b[{_STYLES[style]}m{text}\x1b[0m" if self._colour and text else text


def page(path: str, *, valid: bool, colour: bool = False, unicode: bool = False) -> Iterator[str]:
    """The lines that tell of the token at `path`, which passes its checks or does not. What cannot be read is not
    told."""
    pen = _Pen(colour, unicode)
    now = time.time()
    try:
        data = read_bytes(path)
        token = Token.parse(data, path)
    except TokenError:
        token = None
    if token is None or token.empty:
        yield printable(path)
        return
    yield pen("strong", printable(token.principal))
    yield pen("faint", printable(path))
    yield ""
    if valid:
        yield "  " + pen("good", "valid") + f", {seconds_text(token.expires - now)} left"
        yield ""
    yield from _life(pen, token, now)
    yield ""
    yield from _facts(pen, token)
    yield ""
    yield from _tickets(pen, data, token, now)


def _life(pen: _Pen, token: Token, now: float) -> Iterator[str]:
    """A bar of the token's life: what is left of it, and where its expiry window opens."""
    starts = token.manifest.issued_at if token.manifest else token.starts
    opens = token.manifest.window_opens_at if token.manifest else None
    life = token.expires - starts
    if life <= 0:
        return

    def place(moment: float) -> int:
        return max(0, min(_BAR, round((moment - starts) / life * _BAR)))

    gone = place(now)
    style = "good" if opens is None or now < opens else "bad"
    yield "  " + pen("faint", pen.empty * gone) + pen(style, pen.full * (_BAR - gone))
    if opens is not None:
        words = "expiry window" if now < opens else "in the expiry window"
        at = place(opens)
        if at + 2 + len(words) <= _WIDTH - 4:
            yield "  " + " " * at + pen("faint", f"{pen.mark} {words}")
        else:
            yield "  " + pen("faint", f"{words} {pen.mark}".rjust(at + 1))


def _facts(pen: _Pen, token: Token) -> Iterator[str]:
    def fact(label: str, text: str) -> str:
        return "  " + pen("faint", f"{label:<{_LABEL}}") + printable(text)

    yield fact("from", moment_text(token.starts))
    yield fact("until", moment_text(token.expires))
    if token.renew_until:
        yield fact("renewable", f"until {moment_text(token.renew_until.timestamp())}")
    if abs(token.offset) >= 1:
        yield fact("KDC's clock", f"{token.offset:+.0f}s from this machine's")
    flags = [(flag.name or "").lower().replace("_", "-") for flag in TicketFlags if flag & token.flags]
    if flags:
        yield fact("flags", ", ".join(flags))
    manifest = token.manifest
    if manifest is None:
        yield fact("manifest", "none: kinit or k5start wrote it, not krbrefresh")
        return
    yield fact("generation", str(manifest.generation))
    yield fact("published", f"{moment_text(manifest.issued_at)} by {manifest.refresher}")
    yield fact("refresh", f"from {moment_text(manifest.window_opens_at)}")
    yield fact("signed", f"with the key {manifest.key_id}" if manifest.key_id else "no")
    if token.modified:
        yield fact("modified", "something was appended to it after it was published")


def _tickets(pen: _Pen, data: bytes, token: Token, now: float) -> Iterator[str]:
    tickets = [each for each in ccache.parse(data).credentials if each.is_ticket]
    ends = [each.endtime - token.offset for each in tickets]
    texts = [printable(str(each.server)) for each in tickets]
    yield f"  {len(tickets)} ticket{'' if len(tickets) == 1 else 's'}"
    width = min(max(map(len, texts)), _WIDTH - 18)
    for name, end in zip(texts, ends, strict=True):
        left = end - now
        words = f"{seconds_text(left)} left" if left > 0 else f"ended {seconds_text(left)} ago"
        if len(name) > width:
            yield f"    {name}"
            name = ""
        yield f"    {name:<{width}}  " + pen("faint" if left > 0 else "bad", words)
