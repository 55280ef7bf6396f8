"""How a setting's value is read: what stands in a TOML file or a variable, to a typed value.

Every reader takes a text or a value of TOML's, and raises ValueError in words that go after the key's name.
"""

from __future__ import annotations

import grp
import math
import os
import re
import socket
from collections.abc import Callable
from typing import TypeVar

from .._text import parse_duration
from ..ccache import Principal
from ..client import resolve
from .listen import Listen
from .policy import Share

T = TypeVar("T")

_HOST = re.compile(r"(?<=/)_HOST(?=[/@]|\Z)")


def text(value: object) -> str:
    """A text that is not empty."""
    if not isinstance(value, str) or not value.strip() or "\0" in value:
        raise ValueError("has to be a text that is not empty")
    return value.strip()


def boolean(value: object) -> bool:
    """`true` or `false`, or what usually stands for it."""
    words = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.strip().lower() in words:
        return words[value.strip().lower()]
    raise ValueError(f"{value!r} is not true or false")


def duration(value: object) -> float:
    """A length of time, in seconds."""
    if isinstance(value, str):
        return parse_duration(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value < 0:
        raise ValueError(f"{value!r} is not a duration: write 90s, 10m, 8h, 7d or a number of seconds")
    return float(value)


def positive_duration(value: object) -> float:
    """A length of time of more than nothing, in seconds."""
    length = duration(value)
    if not length:
        raise ValueError("has to be more than nothing")
    return length


def lifetime(value: object) -> float:
    """A ticket's lifetime, in seconds."""
    length = duration(value)
    if not 1 <= length < 1 << 31:  # libkrb5's krb5_deltat
        raise ValueError(f"{value!r} is not a lifetime: from a second to 68 years")
    return length


def renewable_lifetime(value: object) -> float:
    """A ticket's renewable lifetime, in seconds; 0 for none."""
    return lifetime(value) if duration(value) else 0.0


def name(value: object) -> str:
    """A name that stands in every token."""
    given = text(value)
    if len(given) > 255 or not given.isprintable():  # it is in every token, whose manifest has to stay small
        raise ValueError("has to be printable and of no more than 255 characters")
    return given


def share(value: object) -> Share:
    """A share of a token's life, or a length of time."""
    if isinstance(value, str) and value.strip().endswith("%"):
        try:
            percent = float(value.strip()[:-1])
        except ValueError:
            percent = math.nan
        if not 0 < percent <= 100:
            raise ValueError(f"{value!r} is not a percentage between 0 and 100")
        return Share(fraction=percent / 100)
    return Share(seconds=positive_duration(value))


def mode(value: object) -> int:
    """A file mode, that a ccache may have."""
    try:
        bits = int(value, 8) if isinstance(value, str) else value
    except ValueError:
        bits = None
    if not isinstance(bits, int) or isinstance(bits, bool) or not 0 <= bits <= 0o777:
        raise ValueError(f"{value!r} is not a file mode: write it in octal, as a text, like '0440'")
    if bits & 0o133 or not bits & 0o400:
        raise ValueError(
            f"{bits:04o} is refused: the owner has to be able to read the ccache, nobody else to write it, and nobody "
            "to execute it"
        )
    return bits


def group(value: object) -> int:
    """A group, by name or number."""
    if isinstance(value, str) and not value.strip().isdigit():
        try:
            return grp.getgrnam(value.strip()).gr_gid
        except KeyError:
            raise ValueError(f"there is no group {value.strip()!r} on this machine; a number is fine too") from None
    gid = int(value) if isinstance(value, (str, int)) and not isinstance(value, bool) else -1
    if not 0 <= gid < (1 << 32) - 1:
        raise ValueError(f"{value!r} is not a group")
    return gid


def principal(value: object) -> str:
    """A principal's name, with or without a realm. The component `_HOST` becomes this host's name, in lower case, as
    Hadoop and Airflow have it."""
    given = _HOST.sub(lambda _: socket.getfqdn().lower(), text(value))
    try:
        Principal.parse(given)
    except ValueError:
        # Without a realm it gets krb5.conf's default realm, which only libkrb5 knows.
        if "@" in given.replace("\\@", ""):
            raise
        Principal.parse(given + "@REALM")
    return given


def services(value: object) -> tuple[str, ...]:
    """Service principals, as libkrb5 writes them: a list of them, or a text in which spaces or commas stand between
    them."""
    given = value.replace(",", " ").split() if isinstance(value, str) else value
    if not isinstance(given, list):
        raise ValueError("has to be a list of service principals")
    names = [Principal.parse(_HOST.sub(lambda _: socket.getfqdn().lower(), text(each))) for each in given]
    for name in names:
        if name.components[0] == b"krbtgt":
            raise ValueError(f"{name} is a TGT, and opens every service of its realm: see include_tgt")
    return tuple(dict.fromkeys(map(str, names)))


def path(value: object) -> str:
    """The absolute path of a file."""
    given = text(value).removeprefix("FILE:")
    if not os.path.isabs(given):
        raise ValueError(f"{given!r} is not an absolute path")
    # What `..` means behind a symlink, normpath does not know.
    if given.endswith("/") or ".." in given.split("/"):
        raise ValueError(f"{given!r} is not the plain path of a file")
    return os.path.normpath(given)


def keytab(value: object) -> str:
    """The path of a keytab."""
    given = text(value)
    kind, colon, _ = given.partition(":")
    if colon and "/" not in kind and kind != "FILE":
        raise ValueError(f"{given!r}: a keytab is a file; {kind} is not read")
    return path(given)


def ccache(value: object) -> str:
    """The path of a FILE ccache."""
    return path(resolve(text(value)))


def one_of(*words: str) -> Callable[[object], str]:
    """The reader of one of these words."""

    def read(value: object) -> str:
        if value not in words:
            raise ValueError(f"{value!r} is neither " + " nor ".join(repr(word) for word in words))
        return str(value)

    return read


def or_nothing(read: Callable[[object], T]) -> Callable[[object], T | None]:
    """A reader that takes an empty text for None, which turns something off."""
    return lambda value: None if value == "" else read(value)


def listen(value: object) -> Listen:
    """`HOST:PORT`."""
    return Listen.parse(text(value))
