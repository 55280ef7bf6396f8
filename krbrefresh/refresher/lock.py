"""Who leads: the refresher that holds the lock in a token directory. A second one stands by.

The lock is flock(2) on `.krbrefresh.lock`, mode 0600: a worker that may read the directory must not be able to hold it.
It is opened by descriptor of the directory that is published to, so that lock and token cannot be in two directories.
flock does not exclude across the clients of a network file system.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import threading

LOCK_NAME = ".krbrefresh.lock"
# Read-only is enough for flock, and a look by one who stands by is then no event for the leader's ear (watch.py).
_FLAGS = os.O_RDONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_MODE = 0o600


class HeldElsewhere(Exception):  # noqa: N818  (it is no error: another refresher leads)
    """Another process holds the lock."""


class Lock:
    """The lock of one token directory. For several threads; `acquire` may block as long as the file system does, but
    never waits for another holder."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._file: int | None = None
        self._dropped = False
        self._new = False

    @property
    def held(self) -> bool:
        """Whether we took it, and have not let go of it."""
        return self._file is not None

    def acquire(self, directory: int) -> bool:
        """Takes the lock in the directory with that descriptor, or makes sure that the one we hold is still the one
        that is there: a lock file that was deleted, or a directory that was replaced, must not make two leaders.

        Returns False where another process holds it, or once it was dropped. Raises OSError.
        """
        with self._mutex:
            while not self._dropped and (self._file is None or not _is_there(self._file, directory)):
                self._let_go()
                try:
                    file = os.open(LOCK_NAME, _FLAGS, _MODE, dir_fd=directory)
                except OSError as error:
                    raise OSError(error.errno, error.strerror, LOCK_NAME) from None
                try:
                    if stat.S_IMODE(os.fstat(file).st_mode) != _MODE:  # whatever the umask, and whoever made it
                        os.fchmod(file, _MODE)
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    os.close(file)
                    return False
                except OSError as error:  # a file system without locks
                    os.close(file)
                    raise OSError(error.errno, error.strerror, LOCK_NAME) from None
                self._file, self._new = file, True
            return not self._dropped

    def is_new(self) -> bool:
        """Whether it was taken, perhaps anew, since this was asked last: who held it before may have left something."""
        with self._mutex:
            new, self._new = self._new, False
            return new

    def release(self) -> None:
        """Lets go of it; blocks as long as the file system does. The file stays: deleting it could part two others that
        wait for it."""
        with self._mutex:
            self._let_go()

    def drop(self) -> None:
        """Lets go of it for good: whoever is still at work here gets it no more."""
        self._dropped = True
        self.release()

    def _let_go(self) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):
                os.close(self._file)
            self._file = None


def _is_there(file: int, directory: int) -> bool:
    ours = os.fstat(file)
    try:
        there = os.stat(LOCK_NAME, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return (ours.st_dev, ours.st_ino) == (there.st_dev, there.st_ino)
