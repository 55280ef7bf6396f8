"""The worker's half: find the token, read it, say whether it will do, and point this process at it.

Standard library only. Reading never blocks, never follows a symlink at the path's last component, and never opens a
keytab.
"""

from __future__ import annotations

import os
import stat
import time

from ._text import moment_text, seconds_text
from .ccache import MAX_SIZE, Principal
from .errors import (
    CorruptError,
    ExpiredError,
    ExpiringError,
    MissingError,
    NoTicketError,
    NotYetValidError,
    TokenError,
    UnreadableError,
    WrongPrincipalError,
)
from .token import Token

TYPE_CHECKING = False  # typing's own costs a worker 4 ms to import
if TYPE_CHECKING:
    import datetime
    from collections.abc import Iterable
    from typing import Any

    PathLike = str | os.PathLike[str]
    Seconds = float | datetime.timedelta

DEFAULT_PATH = "/run/krbrefresh/default/krb5cc"

_POLL = 0.2  # seconds between two looks of wait(): a start-up hook should not feel it, a CPU neither
_SETTLED_NS = 1_000_000_000
_MAX_KNOWN = 64

# What is known of a path, by the identity of the file that was read there.
_known: dict[str, tuple[tuple[int, ...], Token]] = {}


def resolve(path: PathLike | None = None) -> str:
    """The file that `path` names: itself, less a `FILE:` prefix.

    None means `$KRBREFRESH_CCACHE`, else `$KRB5CCNAME` if that is a FILE cache, else the default path.
    Raises ValueError for a ccache type that is not FILE.
    """
    if path is None:
        path = os.environ.get("KRBREFRESH_CCACHE")
        if not path:
            path = os.environ.get("KRB5CCNAME")
            if not path or _ccache_type(path) != "FILE":
                return DEFAULT_PATH
    path = os.fspath(path)
    kind = _ccache_type(path)
    if kind != "FILE":
        raise ValueError(f"{path}: a token is a FILE ccache; {kind} is not read")
    path = path.removeprefix("FILE:")
    if not path:
        raise ValueError("the path of the ccache is empty")
    return path


def _ccache_type(name: str) -> str:
    """The type that libkrb5 reads in a ccache's name: the letters before the first colon, FILE without one."""
    kind, colon, _ = name.partition(":")
    return kind if colon and "/" not in kind else "FILE"


def load(path: PathLike | None = None) -> Token:
    """The token at `path`, whatever its times.

    Raises MissingError, UnreadableError, CorruptError or NoTicketError; ValueError for a path that is no FILE ccache.
    """
    token = _read(resolve(path))
    if token.empty:
        raise _no_ticket(token)
    return token


def validate(
    path: PathLike | None = None,
    *,
    principal: str | None = None,
    min_remaining: Seconds = 60,
    services: Iterable[str] = (),
    clock_skew: Seconds = 300,
) -> Token:
    """The token at `path`, if it will do now.

    `principal` is the one it has to be of, `min_remaining` how long it has to be valid still, `services` the principals
    it has to be good for (by a ticket of theirs, or by a TGT), and `clock_skew` how far in the future its start may
    lie. Lengths are seconds or timedeltas; the skew never lengthens a life.

    Raises the TokenError of the first check that fails, in this order: MissingError, UnreadableError, CorruptError,
    WrongPrincipalError, NoTicketError, NotYetValidError, ExpiredError, ExpiringError. Raises ValueError for a path that
    is no FILE ccache, a principal without a realm, and a negative length of time.
    """
    least, skew = _positive_seconds(min_remaining), _positive_seconds(clock_skew)
    name = None if principal is None else Principal.parse(principal)
    needed = [Principal.parse(service) for service in services]
    token = _read(resolve(path))
    if name is not None and not token.is_for(name):
        raise WrongPrincipalError(f"{token.path}: it is the token of {token.principal}, not of {principal}")
    if token.empty:
        raise _no_ticket(token)
    for service in needed:
        if not token.serves(service):
            held = ", ".join(token.services)
            raise NoTicketError(f"{token.path}: it has no TGT and no ticket for {service}, only for {held}")
    now = time.time()
    if token.starts > now + skew:
        raise NotYetValidError(
            f"{token.path}: the ticket of {token.principal} starts in {seconds_text(token.starts - now)} "
            f"({moment_text(token.starts)})"
        )
    left = token.expires - now
    if left <= 0:
        raise ExpiredError(
            f"{token.path}: the ticket of {token.principal} ended {seconds_text(left)} ago "
            f"({moment_text(token.expires)})"
        )
    if left < least:
        raise ExpiringError(
            f"{token.path}: the ticket of {token.principal} ends in {seconds_text(left)}, "
            f"and {seconds_text(least)} were asked for"
        )
    return token


def wait(path: PathLike | None = None, *, timeout: Seconds = 60, **same_checks: Any) -> Token:
    """The token at `path` as soon as `validate(path, **same_checks)` accepts it.

    Raises that check's last TokenError once `timeout` (seconds or a timedelta) has passed.
    """
    deadline = time.monotonic() + _seconds(timeout)
    if "services" in same_checks:
        same_checks["services"] = tuple(same_checks["services"])  # an iterator would be empty at the second look
    while True:
        try:
            return validate(path, **same_checks)
        except TokenError:
            left = deadline - time.monotonic()
            if left <= 0:
                raise
        time.sleep(min(_POLL, left))


def activate(path: PathLike | None = None, *, timeout: Seconds = 60, **same_checks: Any) -> Token:
    """Waits for the token as `wait` does, then points this process and its children at it; returns it.

    `KRB5CCNAME` becomes `FILE:` and the path, `KRBREFRESH_CCACHE` the path; `KRB5_CLIENT_KTNAME` is removed, so that
    nothing here reaches for a keytab. `KRB5_KTNAME` stays: acceptors need it.
    """
    token = wait(path, timeout=timeout, **same_checks)
    where = os.path.abspath(token.path)
    os.environ["KRB5CCNAME"] = f"FILE:{where}"
    os.environ["KRBREFRESH_CCACHE"] = where
    os.environ.pop("KRB5_CLIENT_KTNAME", None)
    return token


def _read(path: str) -> Token:
    """The token at `path`, read again only when the file there is another one."""
    try:
        found = os.lstat(path)
        known = _known.get(path)
        if known is not None and known[0] == _identity(found):
            return known[1]
        if not stat.S_ISREG(found.st_mode):  # do not even open a FIFO or a device
            raise _not_regular(path, found.st_mode)
        # The path can be replaced between the two calls: O_NOFOLLOW and O_NONBLOCK hold whatever is there now.
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        try:
            found = os.fstat(fd)
            if not stat.S_ISREG(found.st_mode):
                raise _not_regular(path, found.st_mode)
            data = _read_all(fd, path, found.st_size)
        finally:
            os.close(fd)
    except OSError as error:
        raise _os_error(path, error) from None
    token = Token.parse(data, path)
    # Inode numbers repeat and a clock tick is coarse: only a file that has rested is known by its identity.
    if time.time_ns() - max(found.st_mtime_ns, found.st_ctime_ns) > _SETTLED_NS:
        if len(_known) >= _MAX_KNOWN:
            _known.clear()
        _known[path] = _identity(found), token
    return token


def _identity(found: os.stat_result) -> tuple[int, ...]:
    """What tells one file at a path from the next; and who looks, since a process can drop its privileges."""
    return (
        found.st_dev,
        found.st_ino,
        found.st_mtime_ns,
        found.st_ctime_ns,
        found.st_size,
        os.geteuid(),
        os.getegid(),
    )


def _read_all(fd: int, path: str, size: int) -> bytes:
    if size > MAX_SIZE:
        raise CorruptError(f"{path}: it has {size} bytes; no more than {MAX_SIZE} are read")
    data = os.read(fd, size + 1)
    if len(data) == size:
        return data
    chunks = [data]  # it grew, or the file system returned less than was asked for
    total = len(data)
    while data and total <= MAX_SIZE:
        data = os.read(fd, MAX_SIZE + 1 - total)
        chunks.append(data)
        total += len(data)
    return b"".join(chunks)


def _os_error(path: str, error: OSError) -> TokenError:
    import errno

    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return MissingError(f"{path}: there is no such file")
    if error.errno == errno.ELOOP:
        return _not_regular(path, stat.S_IFLNK)
    if error.errno in (errno.EACCES, errno.EPERM):
        groups = ", ".join(map(str, sorted({os.getegid(), *os.getgroups()})))
        return UnreadableError(f"{path}: uid {os.geteuid()} with the groups {groups} may not read it")
    return UnreadableError(f"{path}: {error.strerror}")


def _not_regular(path: str, mode: int) -> UnreadableError:
    kinds = {
        stat.S_IFLNK: "a symlink",
        stat.S_IFIFO: "a FIFO",
        stat.S_IFDIR: "a directory",
        stat.S_IFSOCK: "a socket",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
    }
    return UnreadableError(f"{path}: it is {kinds.get(stat.S_IFMT(mode), 'something else')}, not a regular file")


def _no_ticket(token: Token) -> NoTicketError:
    return NoTicketError(f"{token.path}: a ccache of {token.principal} without any ticket")


def _seconds(length: Seconds) -> float:
    return length if isinstance(length, (int, float)) else length.total_seconds()


def _positive_seconds(length: Seconds) -> float:
    seconds = _seconds(length)
    if not seconds >= 0:  # NaN is not, either
        raise ValueError(f"{length} is not a length of time")
    return seconds
