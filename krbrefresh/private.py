"""A copy of the token for this user alone, which follows the shared one.

For libraries that refuse a file of another owner (Heimdal's), for service tickets, which libkrb5 keeps in a ccache that
it may write to, and for tokens that are signed: the copy is the very bytes that were verified.

    <base>/krbrefresh-private-<random>/    0700, locked (flock) for as long as a process lives that uses it
        krb5cc                             0600, the copy, without the manifest
        lock                               who replaces the copy; forked children do so, too

<base> is $XDG_RUNTIME_DIR, if that is this user's alone, or the temporary directory.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import logging
import os
import stat
import sys
import tempfile
import threading
import time

from .client import examine, identity, is_settled, patiently
from .errors import CopyError, KrbrefreshError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .client import Checks, Seconds
    from .token import Token

_PREFIX = "krbrefresh-private-"
_NAME, _LOCK = "krb5cc", "lock"
_DIRECTORY_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_INTERVAL = 5.0  # seconds between two looks at the shared token ...
_OF_THE_REST = 0.1  # ... and no more than this share of what is left of its life
_LEAST_INTERVAL = 0.2
_AFTER_THE_END = 1.0  # seconds between two looks when it has ended
_STALE_AFTER = 60.0  # seconds; a younger directory may not have its lock yet
_LOCK_TRIES, _LOCK_PAUSE = 50, 0.02  # a replacement takes a millisecond

_log = logging.getLogger("krbrefresh")
_copies: dict[str, Copy] = {}  # by the shared token's path
_registry = threading.Lock()


def keep_copy(shared: str, checks: Checks, timeout: Seconds) -> tuple[Token, str]:
    """Waits for the token at `shared` to pass, copies it, and keeps the copy fresh; the token, and the copy's path.

    Raises the last TokenError after `timeout`, and CopyError where no copy can be made.
    """
    token, body = patiently(lambda: examine(shared, checks), timeout)
    try:
        with _registry:
            copy = _copies.get(shared)
            if copy is None or copy.owner != os.geteuid():  # another user's: this process has changed its own
                sweep()
                if copy is not None:
                    copy.stop()
                copy = _copies[shared] = Copy(shared)
            copy.follow(checks.patient(), token, body)
    except OSError as error:
        raise CopyError(f"no private copy of {shared} can be made: {error}") from None
    return token, copy.path


def copy_of(shared: str) -> str | None:
    """The path of the copy that is kept of the token at `shared`, or None."""
    copy = _copies.get(shared)
    return copy.path if copy else None


def listen(shared: str, told: Callable[[Token], object]) -> None:
    """Calls `told(token)` whenever the copy that is kept of the token at `shared` has become another token."""
    _copies[shared].told = told


def remove_copies() -> None:
    """Removes the copies that this process has made, as at its exit: for one that ends without `atexit`."""
    for copy in list(_copies.values()):
        copy.remove()


class Copy:
    """One copy, of the token at `shared`: `path`, `owner`, and the process that made it and will remove it."""

    def __init__(self, shared: str) -> None:
        self.shared = shared
        self.owner = os.geteuid()
        self.maker = os.getpid()
        self.directory = tempfile.mkdtemp(prefix=_PREFIX, dir=_base())  # 0700, and nobody can guess its name
        self.path = os.path.join(self.directory, _NAME)
        self.told: Callable[[Token], object] | None = None
        self._checks: Checks | None = None
        self._token: Token | None = None
        self._known: tuple[int, ...] | None = None
        self._reason: str | None = None
        self._hold()
        self._start_afresh()
        self._remove_at_exit()

    def follow(self, checks: Checks, token: Token, body: bytes) -> None:
        """Puts these bytes at the path, and from now on whatever is published and passes these checks."""
        with self._working:  # a look that has begun goes by the former checks
            self._checks, self._token, self._known = checks, token, None
            self._put(body)
        if not self._thread.is_alive():
            self._thread.start()

    def after_fork(self) -> None:
        """The thread of the parent is not here: another one goes on with its work."""
        self._start_afresh()
        if self._checks is not None:
            self._thread.start()

    def stop(self) -> None:
        """Ends the thread."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(1.0)

    def remove(self) -> None:
        """Ends the thread and removes the copy, in the process that made it; in another, nothing."""
        if os.getpid() == self.maker:
            self.stop()
            _remove(self.directory)

    def _start_afresh(self) -> None:
        self._stop = threading.Event()
        self._working = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="krbrefresh-private", daemon=True)

    def _hold(self) -> None:
        """Locks the directory until the last process that uses it has gone: a child that was forked has this
        descriptor, too."""
        self._held = os.open(self.directory, _DIRECTORY_FLAGS)
        fcntl.flock(self._held, fcntl.LOCK_SH)

    def _remove_at_exit(self) -> None:
        # multiprocessing (and Celery's billiard) ends its children without atexit, but not without these; and it waits
        # for a process's own children before those of a negative priority.
        loaded = [sys.modules.get(name) for name in ("multiprocessing.util", "billiard.util")]
        for module in filter(None, loaded):
            module.Finalize(None, self.remove, exitpriority=-1)
        if loaded[0] is None:  # what comes later goes first, at the end
            atexit.register(self.remove)

    def _run(self) -> None:
        stop, working = self._stop, self._working
        while not stop.wait(self._pause()):
            try:
                with working:
                    new = self._look()
                if new is not None and self.told:
                    self.told(new)
                self._reason = None
            except KrbrefreshError as error:
                self._complain(error.reason, f"{error}; the private copy stays as it is")
            except Exception as error:  # noqa: BLE001  (the next look may do better)
                self._complain(type(error).__name__, f"{self.path}: the private copy stays as it is: {error}")

    def _pause(self) -> float:
        left = self._token.expires - time.time() if self._token else 0.0
        return _AFTER_THE_END if left <= 0 else max(_LEAST_INTERVAL, min(_INTERVAL, left * _OF_THE_REST))

    def _complain(self, reason: str, words: str) -> None:
        if reason != self._reason:
            _log.warning("%s: %s", reason, words)
        self._reason = reason

    def _look(self) -> Token | None:
        """Puts what is published now in place of the copy, if that is another file, or if the copy has gone; the token,
        if it is another one."""
        try:
            found = os.lstat(self.shared)
        except OSError:  # examine() has the words for it
            found = None
        known = None if found is None else identity(found)
        if known is not None and known == self._known and os.path.lexists(self.path):
            return None
        assert self._checks is not None
        token, body = examine(self.shared, self._checks)
        self._put(body)
        before, self._token = self._token, token
        self._known = known if found is not None and is_settled(found) else None
        same = before is not None and (before.generation, before.expires) == (token.generation, token.expires)
        return None if same else token

    def _put(self, body: bytes) -> None:
        """Replaces the copy, unless it begins with these bytes: then another process has done it, and libkrb5 may have
        appended service tickets since."""
        with self._opened() as directory, _locked(directory):
            if _begins_with(directory, body):
                return
            temporary = f"{_NAME}.{os.urandom(8).hex()}"
            file = os.open(temporary, _NEW_FLAGS, 0o600, dir_fd=directory)
            try:
                with os.fdopen(file, "wb") as stream:
                    os.fchmod(file, 0o600)
                    stream.write(body)
                os.rename(temporary, _NAME, src_dir_fd=directory, dst_dir_fd=directory)
            except BaseException:
                os.unlink(temporary, dir_fd=directory)
                raise

    @contextlib.contextmanager
    def _opened(self) -> Iterator[int]:
        """The directory; made again by its maker if something has swept it away."""
        try:
            directory = os.open(self.directory, _DIRECTORY_FLAGS)
        except FileNotFoundError:
            if os.getpid() != self.maker or self._stop.is_set():
                raise
            os.mkdir(self.directory, 0o700)
            os.close(self._held)
            self._hold()
            directory = os.open(self.directory, _DIRECTORY_FLAGS)
        try:
            found = os.fstat(directory)
            if found.st_uid != self.owner or found.st_mode & 0o077:  # its name is known by now
                raise PermissionError(f"{self.directory}: it is not this user's alone any more")
            yield directory
        finally:
            os.close(directory)


def sweep() -> None:
    """Removes what processes that could not clean up have left: directories of this user that nobody has locked."""
    base = _base()
    with contextlib.suppress(OSError), os.scandir(base) as entries:
        for path in [entry.path for entry in entries if entry.name.startswith(_PREFIX)]:
            with contextlib.suppress(OSError):
                directory = os.open(path, _DIRECTORY_FLAGS)
                try:
                    found = os.fstat(directory)
                    if found.st_uid == os.geteuid() and time.time() - found.st_ctime > _STALE_AFTER:
                        fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
                        _empty(directory)
                        os.rmdir(path)
                finally:
                    os.close(directory)


def _base() -> str:
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    with contextlib.suppress(OSError):
        found = os.lstat(runtime)
        if stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o077:
            return runtime
    return tempfile.gettempdir()


@contextlib.contextmanager
def _locked(directory: int) -> Iterator[None]:
    """So that one process at a time replaces the copy. One that was stopped in the middle, or killed with a child that
    has its descriptor, must not hold the others: a rename is whole without a lock, too."""
    file = os.open(_LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=directory)
    try:
        for _ in range(_LOCK_TRIES):
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(_LOCK_PAUSE)
        yield
    finally:
        fcntl.flock(file, fcntl.LOCK_UN)  # a child that was forked meanwhile has the descriptor, and would hold it
        os.close(file)


def _begins_with(directory: int, body: bytes) -> bool:
    try:
        file = os.open(_NAME, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
    except OSError:
        return False
    try:
        return os.read(file, len(body)) == body
    finally:
        os.close(file)


def _remove(path: str) -> None:
    with contextlib.suppress(OSError):
        directory = os.open(path, _DIRECTORY_FLAGS)
        try:
            _empty(directory)
        finally:
            os.close(directory)
        os.rmdir(path)  # stays if it holds anything else


def _empty(directory: int) -> None:
    """Removes our files in it."""
    for name in os.listdir(directory):
        if name in (_NAME, _LOCK) or name.startswith(f"{_NAME}."):
            os.unlink(name, dir_fd=directory)


def _after_fork() -> None:
    global _registry
    _registry = threading.Lock()
    for copy in _copies.values():
        copy.after_fork()


os.register_at_fork(after_in_child=_after_fork)
