"""Bytes to a file, atomically: a reader sees the old token or the new one, whole, whatever happens on the way.

Everything in the token directory is done by descriptor of that directory, so that nobody who can rename a path around
it can redirect a write. docs/security.md says who may do what there.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import secrets
import stat
import time

from ..errors import LayoutError, RefreshError
from .layout import DIRECTORY_FLAGS, Destination, judge_ccache, judge_directory, not_a_directory
from .lock import LOCK_NAME, HeldElsewhere, Lock
from .log import event

DIRECTORY_MODE = 0o2750
_TEMPORARY = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_LOCK_HINT = "the refresher's user must own the lock file (remove one that root made), on a file system that has flock"
_LEFT_AFTER = 60.0  # seconds; a directory is made within milliseconds
_TEMPORARY_NAME = re.compile(r"\.krbrefresh-[0-9a-f]{16}\.tmp\Z")


def prepare(destination: Destination, lock: Lock) -> bool:
    """Makes the token directory if it is not there, tries the group, and takes the lock; then removes temporary files
    that a former life, or a leader that was killed, left. Returns False where another refresher holds the lock.

    Raises LayoutError where the layout is refused, OSError where the file system does not let us.
    """
    directory = _open_directory(destination, lock)
    try:
        if destination.gid is not None:
            temporary = _temporary_name()
            try:
                file = os.open(temporary, _TEMPORARY, 0o600, dir_fd=directory)
                try:
                    _give_to_group(destination, file)
                finally:
                    os.close(file)
            finally:
                _unlink(temporary, directory)
        return _lead(directory, lock)
    finally:
        os.close(directory)


def sweep_beside(parent: str) -> None:
    """Removes from the directory around token directories what a process of ours left there that was killed while it
    made one. What another one may be making at this moment is left alone."""
    with contextlib.suppress(OSError), os.scandir(parent) as entries:
        for name in [entry.name for entry in entries if _TEMPORARY_NAME.match(entry.name)]:
            with contextlib.suppress(OSError):
                _remove_leftover(os.path.join(parent, name))


def _remove_leftover(path: str) -> None:
    directory = os.open(path, DIRECTORY_FLAGS)
    try:
        found = os.fstat(directory)
        if found.st_uid != os.geteuid() or time.time() - found.st_mtime < _LEFT_AFTER:
            return
        if os.listdir(directory) == [LOCK_NAME]:
            os.unlink(LOCK_NAME, dir_fd=directory)
    finally:
        os.close(directory)
    os.rmdir(path)  # fails where there is anything else


def publish(destination: Destination, data: bytes, lock: Lock) -> None:
    """Makes `data` the file at the destination, with the mode and group of the settings, whatever the umask.

    It is on the disk when this returns, where the file system can promise that. On a failure what was published before
    is untouched, and nothing is left behind. Raises RefreshError with the reason `publish_failed`, and HeldElsewhere
    where another refresher has come to lead.
    """
    try:
        directory = _open_directory(destination, lock)
        try:
            if not _lead(directory, lock):
                raise HeldElsewhere
            judge_ccache(destination, directory)
            _replace(destination, directory, data)
        finally:
            os.close(directory)
    except LayoutError as error:
        raise RefreshError("publish_failed", str(error), hint=error.hint) from None
    except OSError as error:
        if error.filename == LOCK_NAME:
            path = os.path.join(destination.directory, LOCK_NAME)
            raise RefreshError("publish_failed", f"{path}: {error.strerror}", hint=_LOCK_HINT) from None
        raise RefreshError("publish_failed", f"{destination.path}: {error.strerror}") from None


def is_held_elsewhere(destination: Destination, lock: Lock) -> bool:
    """Whether another refresher has come to lead there; no where that cannot be told."""
    try:
        directory = _open_existing(destination)
    except (OSError, LayoutError):
        return False
    try:
        return not lock.acquire(directory)
    except OSError:
        return False
    finally:
        os.close(directory)


def looks_right(destination: Destination) -> bool:
    """Whether what is at the destination has the mode and the group that a publication would give it."""
    try:
        found = os.lstat(destination.path)
    except OSError:
        return False
    return stat.S_IMODE(found.st_mode) == destination.mode and destination.gid in (None, found.st_gid)


def _lead(directory: int, lock: Lock) -> bool:
    """Whether the lock is ours; where it has only just come to be, what another leader was writing when it was killed
    is swept away: it can hold a ticket that lives."""
    if not lock.acquire(directory):
        return False
    if lock.is_new():  # nobody writes here now
        for name in os.listdir(directory):
            if _TEMPORARY_NAME.match(name):
                _unlink(name, directory)
    return True


def _replace(destination: Destination, directory: int, data: bytes) -> None:
    temporary = _temporary_name()
    try:
        file = os.open(temporary, _TEMPORARY, 0o600, dir_fd=directory)
        try:
            written = 0
            while written < len(data):
                written += os.write(file, data[written:])
            if destination.gid is not None:
                _give_to_group(destination, file)
            os.fchmod(file, destination.mode)
            os.fsync(file)
        finally:
            os.close(file)
        os.rename(temporary, destination.name, src_dir_fd=directory, dst_dir_fd=directory)
    except BaseException:
        _unlink(temporary, directory)
        raise
    _sync_directory(directory, destination.directory)  # the token is published, whatever comes of it


def _sync_directory(directory: int, path: str) -> None:
    """The names in it are on the disk when this returns, where the file system can do that: some cannot."""
    try:
        os.fsync(directory)
    except OSError as error:
        event(logging.WARNING, "directory_not_synced", path=path, message=error.strerror)


def _open_directory(destination: Destination, lock: Lock) -> int:
    """A descriptor of the token directory, judged; made first where it is not there."""
    try:
        return _open_existing(destination)
    except FileNotFoundError:
        return _make_directory(destination, lock)


def _open_existing(destination: Destination) -> int:
    try:
        directory = os.open(destination.directory, DIRECTORY_FLAGS)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise not_a_directory(destination, error) from None
    try:
        judge_directory(destination, directory)
    except LayoutError:
        os.close(directory)
        raise
    return directory


def _make_directory(destination: Destination, lock: Lock) -> int:
    made: list[str] = []
    try:
        return _make_directories(destination, lock, made)
    except BaseException as error:
        for path in reversed(made):
            with contextlib.suppress(OSError):
                os.rmdir(path)
        if isinstance(error, OSError) and error.errno in (errno.EEXIST, errno.ENOTEMPTY):  # another refresher made it
            return _open_existing(destination)
        raise


def _make_directories(destination: Destination, lock: Lock, made: list[str]) -> int:
    """Makes the token directory and what is missing above it, and notes in `made` what it made. Modes are set by
    descriptor: in a directory that others may write, a path may be another thing by then. It gets its name last, so
    that nobody, a second refresher that starts now for one, sees it without its group and mode."""
    missing = [destination.directory]
    while not os.path.isdir(os.path.dirname(missing[-1])):
        missing.append(os.path.dirname(missing[-1]))
    for path in reversed(missing[1:]):
        with contextlib.suppress(FileExistsError):  # by another refresher, a moment ago
            os.close(_make_one(path, 0o755, made))
    temporary = os.path.join(os.path.dirname(destination.directory), _temporary_name())
    directory = _make_one(temporary, 0o700, made)
    try:
        if destination.gid is not None:
            _give_to_group(destination, directory)
        os.fchmod(directory, DIRECTORY_MODE)  # after the group, whose change clears the setgid bit
        # With the lock in it, it is not empty: two renames to one name cannot both succeed.
        lock.acquire(directory)
        os.rename(temporary, destination.directory)
        made[-1] = destination.directory
    except BaseException:
        _unlink(LOCK_NAME, directory)
        os.close(directory)
        raise
    for path in made:  # a token on the disk is of no use in a directory whose name is not
        _sync_parent(path)
    return directory


def _sync_parent(path: str) -> None:
    parent = os.path.dirname(path)
    try:
        descriptor = os.open(parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:  # one that may be passed through, and not read
        event(logging.WARNING, "directory_not_synced", path=parent, message=error.strerror)
        return
    try:
        _sync_directory(descriptor, parent)
    finally:
        os.close(descriptor)


def _make_one(path: str, mode: int, made: list[str]) -> int:
    """A descriptor of a directory that is made at `path` with that mode, whatever the umask."""
    os.mkdir(path, 0o700)
    made.append(path)
    directory = os.open(path, DIRECTORY_FLAGS)
    try:
        if os.fstat(directory).st_uid != os.geteuid():
            raise LayoutError(
                f"{path}: the directory that was just made there is another user's now",
                hint="somebody who can write to the directory around it interferes: find out who",
            )
        os.fchmod(directory, mode)
    except BaseException:
        os.close(directory)
        raise
    return directory


def _give_to_group(destination: Destination, descriptor: int) -> None:
    gid = destination.gid
    assert gid is not None
    try:
        os.fchown(descriptor, -1, gid)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EINVAL):
            raise
        raise LayoutError(
            f"{destination.directory}: uid {os.geteuid()} may not give files to group {gid}",
            hint="make the refresher's user a member of that group (Docker: group_add, Kubernetes: fsGroup or "
            "supplementalGroups)",
        ) from None


def _temporary_name() -> str:
    return f".krbrefresh-{secrets.token_hex(8)}.tmp"


def _unlink(name: str, directory: int) -> None:
    try:
        os.unlink(name, dir_fd=directory)
    except OSError:
        pass
