"""The worker's half: find the token, read it, say whether it will do, and point this process at it.

Standard library only. Reading never blocks, never follows a symlink at the path's last component, and never opens a
keytab.
"""

from __future__ import annotations

import os
import stat
import sys
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
    UntrustedError,
    WrongPrincipalError,
)
from .token import Token

TYPE_CHECKING = False  # typing's own costs a worker 4 ms to import
if TYPE_CHECKING:
    import datetime
    from collections.abc import Callable, Iterable
    from typing import TypedDict, TypeVar

    import gssapi
    from typing_extensions import Unpack

    from .signature import PublicKeys
    from .watcher import Watcher

    PathLike = str | os.PathLike[str]
    Seconds = float | datetime.timedelta
    T = TypeVar("T")

    class CheckOptions(TypedDict, total=False):
        """The checks of `validate`, as other functions pass them on to it."""

        principal: str | None
        min_remaining: Seconds
        services: Iterable[str]
        public_key: PathLike | Iterable[PathLike] | None
        clock_skew: Seconds


DEFAULT_PATH = "/run/krbrefresh/default/krb5cc"

_POLL = 0.2  # seconds between two looks of wait(): a start-up hook should not feel it, a CPU neither
_SETTLED_NS = 1_000_000_000
_MAX_KNOWN = 64

# What is known of a path, by the identity of the file that was read there.
_known: dict[str, tuple[tuple[int, ...], Token]] = {}
# Which token at a path was last verified with which keys; the newest generation that was, by path and principal; and
# the keys in some files, by their identities.
_trusted: dict[str, tuple[Token, PublicKeys]] = {}
_newest: dict[tuple[str, str], int] = {}
_checks: dict[tuple[object, ...], Checks] = {}  # by the arguments, which a worker does not vary much
_keys: dict[tuple[str, ...], tuple[tuple[tuple[int, ...], ...], PublicKeys]] = {}


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
    public_key: PathLike | Iterable[PathLike] | None = None,
    clock_skew: Seconds = 300,
) -> Token:
    """The token at `path`, if it will do now.

    `principal` is the one it has to be of, `min_remaining` how long it has to be valid still, `services` the principals
    it has to be good for (by a ticket of theirs, or by a TGT), and `clock_skew` how far in the future its start may
    lie. Lengths are seconds or timedeltas; the skew never lengthens a life. `public_key` is the path of an Ed25519
    public key (PEM), or several: the token has to be signed with one of them, and to be no older than what this process
    has seen at that path; it needs `principal`, and the extra [verify].

    Raises the TokenError of the first check that fails, in this order: MissingError, UnreadableError, CorruptError,
    UntrustedError, WrongPrincipalError, NoTicketError, NotYetValidError, ExpiredError, ExpiringError. Raises ValueError
    for a path that is no FILE ccache, a principal without a realm, a negative length of time, and a `public_key`
    without `principal`; KeyFileError, which is a ValueError, for a file that is no public key; and NotInstalledError
    where there is no [verify].
    """
    arguments = (principal, min_remaining, services, public_key, clock_skew)
    try:
        checks = _checks[arguments]
    except (KeyError, TypeError):  # TypeError: a list, which may be another one the next time
        checks = Checks(*arguments)
        if type(services) is tuple and (public_key is None or isinstance(public_key, (str, os.PathLike))):
            if len(_checks) >= _MAX_KNOWN:
                _checks.clear()
            _checks[arguments] = checks
    return look(resolve(path), checks)


class Checks:
    """What a token has to pass, read once: the arguments of `validate`, which says what they mean and what it raises
    for those that make no sense."""

    __slots__ = ("_least", "_name", "_principal", "_public_keys", "_services", "_skew")

    def __init__(
        self,
        principal: str | None = None,
        min_remaining: Seconds = 60,
        services: Iterable[str] = (),
        public_key: PathLike | Iterable[PathLike] | None = None,
        clock_skew: Seconds = 300,
    ) -> None:
        self._least, self._skew = positive_seconds(min_remaining), positive_seconds(clock_skew)
        self._principal = principal
        self._name = None if principal is None else Principal.parse(principal)
        if isinstance(services, str):
            raise ValueError(f"services is a list of principals, and not one: [{services!r}]")
        self._services = [Principal.parse(service) for service in services]
        self._public_keys: tuple[str, ...] | None = None
        if public_key is not None:
            named = [public_key] if isinstance(public_key, (str, os.PathLike)) else public_key
            self._public_keys = tuple(os.fspath(each) for each in named)
            if not self._public_keys:
                raise ValueError("public_key names no key: nothing could be verified with it")
            if principal is None:
                raise ValueError("public_key needs principal: a signed token of somebody else would pass")

    @property
    def verifies(self) -> bool:
        """Whether a token has to be signed."""
        return self._public_keys is not None

    def patient(self) -> Checks:
        """The same for who holds on to what there is: how much is left of its life does not matter."""
        other = object.__new__(Checks)
        for name in Checks.__slots__:
            setattr(other, name, getattr(self, name))
        other._least = 0
        return other

    def judge(self, token: Token) -> None:
        """Raises the TokenError of the first check that fails."""
        if self._public_keys is not None:
            _verify(token, self._public_keys)
        if self._name is not None and not token.is_for(self._name):
            raise WrongPrincipalError(f"{token.path}: it is the token of {token.principal}, not of {self._principal}")
        if token.empty:
            raise _no_ticket(token)
        for service in self._services:
            if not token.serves(service):
                held = token.services
                some = ", ".join(held[:5]) + (f" and {len(held) - 5} more" if len(held) > 5 else "")
                raise NoTicketError(f"{token.path}: it has no TGT and no ticket for {service}, only for {some}")
        now = time.time()
        if token.starts > now + self._skew:
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
        if left < self._least:
            raise ExpiringError(
                f"{token.path}: the ticket of {token.principal} ends in {seconds_text(left)}, "
                f"and {seconds_text(self._least)} were asked for"
            )


def examine(path: str, checks: Checks) -> tuple[Token, bytes]:
    """The token at `path`, if it passes, and its ccache without the manifest: the very bytes that were checked."""
    data = read_bytes(path)
    token = Token.parse(data, path)
    checks.judge(token)
    return token, data[: token.body_size]


def wait(path: PathLike | None = None, *, timeout: Seconds = 60, **same_checks: Unpack[CheckOptions]) -> Token:
    """The token at `path` as soon as `validate(path, **same_checks)` accepts it.

    Raises that check's last TokenError once `timeout` (seconds or a timedelta) has passed.
    """
    return _wait(resolve(path), Checks(**same_checks), timeout)


def _wait(path: str, checks: Checks, timeout: Seconds) -> Token:
    return patiently(lambda: look(path, checks), timeout)


def look(path: str, checks: Checks) -> Token:
    """The token at `path`, if it passes: `validate`, for who looks again and again."""
    token = _read(path)
    checks.judge(token)
    return token


def patiently(attempt: Callable[[], T], timeout: Seconds) -> T:
    """What `attempt` gives, made until it raises no TokenError; its last one after `timeout`."""
    deadline = time.monotonic() + seconds(timeout)
    while True:
        try:
            return attempt()
        except TokenError:
            left = deadline - time.monotonic()
            if left <= 0:
                raise
        time.sleep(min(_POLL, left))


def activate(
    path: PathLike | None = None,
    *,
    private: bool = False,
    timeout: Seconds = 60,
    **same_checks: Unpack[CheckOptions],
) -> Token:
    """Waits for the token as `wait` does, then points this process and its children at it; returns it.

    `KRB5CCNAME` becomes `FILE:` and the path, `KRBREFRESH_CCACHE` the path; `KRB5_CLIENT_KTNAME` is removed, so that
    nothing here reaches for a keytab. `KRB5_KTNAME` stays: acceptors need it.

    With `private`, and always with a `public_key`, `KRB5CCNAME` is a copy that this user alone can read: it follows
    each refresh that passes the checks, also in forked children, and is removed when this process ends. libkrb5 keeps
    service tickets in it. Raises OSError where no copy can be made.
    """
    checks, where = Checks(**same_checks), os.path.abspath(resolve(path))
    if private or checks.verifies:
        from .private import keep_copy

        token, ccache = keep_copy(where, checks, timeout)
    else:
        token, ccache = _wait(where, checks, timeout), where
    os.environ["KRB5CCNAME"] = f"FILE:{ccache}"
    os.environ["KRBREFRESH_CCACHE"] = where
    os.environ.pop("KRB5_CLIENT_KTNAME", None)
    return token


def watch(
    callback: Callable[[Token], object],
    path: PathLike | None = None,
    *,
    interval: Seconds = 5,
    **same_checks: Unpack[CheckOptions],
) -> Watcher:
    """Calls `callback(token)` for each new generation at `path` that passes the checks of `validate`, in a daemon
    thread, which looks every `interval` (seconds or a timedelta); returns the Watcher, whose `stop()` ends that.

    Each generation is told once, and none after a newer one; the token that is there now is not new. What does not pass
    is logged (logger `krbrefresh`, a line for each reason as it comes up) and is the watcher's `error`: so is an older
    generation that was put back, which is `untrusted` where there is a `public_key`. A callback's exception is logged,
    too. The thread does not survive a fork: watch in the process that wants to know.
    """
    from .watcher import Watcher

    return Watcher(callback, resolve(path), positive_seconds(interval), Checks(**same_checks))


def credentials(path: PathLike | None = None) -> gssapi.Credentials:
    """New GSSAPI credentials of the token, for an initiator; of its private copy where `activate` has made one.

    Take new ones for each use: an old object goes stale at a refresh. Needs the extra [gssapi]; raises
    NotInstalledError without it, and gssapi's own errors where libkrb5 cannot use the token.
    """
    try:
        import gssapi
    except ModuleNotFoundError as error:
        from .errors import NotInstalledError

        raise NotInstalledError(
            f"the module {error.name} is not installed here", hint="pip install 'krbrefresh[gssapi]'"
        ) from None
    where = os.path.abspath(resolve(path))
    return gssapi.Credentials(usage="initiate", store={"ccache": f"FILE:{_usable(where)}"})


def _usable(path: str) -> str:
    """What libkrb5 is to use of the token at `path`: the private copy, where this process or one before it in line has
    activated one."""
    private = sys.modules.get(f"{__package__}.private")
    copy: str | None = private.copy_of(path) if private is not None else None
    if copy is not None:
        return copy
    shared, used = os.environ.get("KRBREFRESH_CCACHE"), os.environ.get("KRB5CCNAME")
    if shared and used and _ccache_type(used) == "FILE" and os.path.abspath(shared) == path:
        return used.removeprefix("FILE:")
    return path


def assert_no_keytab() -> None:
    """Raises KeytabReadableError if this process could read a keytab: one that `KRB5_KTNAME`, `KRB5_CLIENT_KTNAME` or
    krb5.conf names, one at libkrb5's default paths, or one in a directory for secrets. No key is read."""
    from .errors import KeytabReadableError
    from .keytabs import readable

    found = readable()
    if found:
        words = "; ".join(f"{each.path} ({each.where}, mode {each.mode:04o})" for each in found)
        raise KeytabReadableError(f"uid {os.geteuid()} can read a keytab, which holds the password: {words}")


def _verify(token: Token, paths: tuple[str, ...]) -> None:
    """Raises UntrustedError unless the token is signed with one of these keys, and is no older than another one that
    this process has trusted at its path."""
    keys = _public_keys(paths)
    if _trusted.get(token.path) != (token, keys):  # neither has an __eq__: these very ones
        token.verify(keys)
        _trusted[token.path] = token, keys
    generation = token.generation or 0
    newest = _newest[token.path, token.principal] = max(generation, _newest.get((token.path, token.principal), 0))
    if generation < newest:
        raise UntrustedError(
            f"{token.path}: generation {generation} of {token.principal} was put back in place of {newest}",
            hint="somebody who can write to the token directory has kept an old token; or it was emptied, its "
            "refresher restarted, and its clock set back: then restart this process, too",
        )


def _public_keys(paths: tuple[str, ...]) -> PublicKeys:
    """The keys in these files, read again only when one of them is another file than before."""
    try:
        found = tuple([identity(os.stat(path)) for path in paths])  # through symlinks, which Kubernetes swaps
    except OSError as error:
        from .errors import KeyFileError

        raise KeyFileError(f"{error.filename}: {error.strerror}", hint="mount the key, or correct its path") from None
    known = _keys.get(paths)
    if known is None or known[0] != found:
        from .signature import PublicKeys

        known = _keys[paths] = found, PublicKeys.load(paths)
    return known[1]


def _read(path: str) -> Token:
    """The token at `path`, read again only when the file there is another one."""
    try:
        found = os.lstat(path)
        known = _known.get(path)
        if known is not None and known[0] == identity(found):
            return known[1]
        data, found = _read_file(path, found)
    except OSError as error:
        raise _os_error(path, error) from None
    token = Token.parse(data, path)
    # Inode numbers repeat and a clock tick is coarse.
    if is_settled(found):
        if len(_known) >= _MAX_KNOWN:
            _known.clear()
        _known[path] = identity(found), token
    return token


def read_bytes(path: str) -> bytes:
    """What is in the regular file at `path`. Raises MissingError, UnreadableError or CorruptError."""
    try:
        return _read_file(path, os.lstat(path))[0]
    except OSError as error:
        raise _os_error(path, error) from None


def _read_file(path: str, found: os.stat_result) -> tuple[bytes, os.stat_result]:
    """The bytes of the regular file at `path`, where `found` was a moment ago, and which file it was.

    Raises OSError or a TokenError.
    """
    if not stat.S_ISREG(found.st_mode):  # do not even open a FIFO or a device
        raise _not_regular(path, found.st_mode)
    # The path can be replaced between the two calls: O_NOFOLLOW and O_NONBLOCK hold whatever is there now.
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise _not_regular(path, found.st_mode)
        return _read_all(fd, path, found.st_size), found
    finally:
        os.close(fd)


def identity(found: os.stat_result) -> tuple[int, ...]:
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


def is_settled(found: os.stat_result) -> bool:
    """Whether the file has rested for so long that its identity tells it from the next one."""
    return time.time_ns() - max(found.st_mtime_ns, found.st_ctime_ns) > _SETTLED_NS


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


def seconds(length: Seconds) -> float:
    """A length of time in seconds."""
    return length if isinstance(length, (int, float)) else length.total_seconds()


def positive_seconds(length: Seconds) -> float:
    """A length of time in seconds. Raises ValueError for a negative one."""
    given = seconds(length)
    if not given >= 0:  # NaN is not, either
        raise ValueError(f"{length} is not a length of time")
    return given
