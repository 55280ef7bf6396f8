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
from dataclasses import dataclass

from ..errors import LayoutError, RefreshError
from .log import event
from .settings import CredentialSettings

DIRECTORY_MODE = 0o2750
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_TEMPORARY = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_TEMPORARY_NAME = re.compile(r"\.krbrefresh-[0-9a-f]{16}\.tmp\Z")


@dataclass(frozen=True)
class Destination:
    """Where a credential's token goes, and how it looks there."""

    directory: str
    name: str
    mode: int
    gid: int | None

    @classmethod
    def of(cls, credential: CredentialSettings) -> Destination:
        """The destination that a credential's settings name."""
        directory, name = os.path.split(credential.ccache)
        return cls(directory, name, credential.mode, credential.group)

    @property
    def path(self) -> str:
        """The ccache's path."""
        return os.path.join(self.directory, self.name)


def judge(destination: Destination) -> None:
    """Looks, and writes nothing: is what stands at the destination safe to publish to?

    A directory or ccache that is not there yet is in order. Raises LayoutError.
    """
    try:
        directory = os.open(destination.directory, _DIRECTORY)
    except FileNotFoundError:
        return
    except OSError as error:
        raise _not_a_directory(destination, error) from None
    try:
        _judge_directory(destination, directory)
        _judge_entrance(destination, directory)
        _judge_ccache(destination, directory)
    finally:
        os.close(directory)


def prepare(destination: Destination) -> None:
    """Makes the token directory if it is not there, tries the group, removes temporary files that a former life left.

    Raises LayoutError where the layout is refused, OSError where the file system does not let us.
    """
    directory = _open_directory(destination)
    try:
        for name in os.listdir(directory):
            if _TEMPORARY_NAME.match(name):
                os.unlink(name, dir_fd=directory)
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
    finally:
        os.close(directory)


def publish(destination: Destination, data: bytes) -> None:
    """Makes `data` the file at the destination, with the mode and group of the settings, whatever the umask.

    It is on the disk when this returns, where the file system can promise that. On a failure what was published before
    is untouched, and nothing is left behind. Raises RefreshError with the reason `publish_failed`.
    """
    try:
        directory = _open_directory(destination)
        try:
            _judge_ccache(destination, directory)
            _replace(destination, directory, data)
        finally:
            os.close(directory)
    except LayoutError as error:
        raise RefreshError("publish_failed", str(error), hint=error.hint) from None
    except OSError as error:
        raise RefreshError("publish_failed", f"{destination.path}: {error.strerror}") from None


def is_there(destination: Destination) -> bool:
    """Whether anything is at the destination."""
    return os.path.lexists(destination.path)


def looks_right(destination: Destination) -> bool:
    """Whether what is at the destination has the mode and the group that a publication would give it."""
    try:
        found = os.lstat(destination.path)
    except OSError:
        return False
    return stat.S_IMODE(found.st_mode) == destination.mode and destination.gid in (None, found.st_gid)


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
    try:
        os.fsync(directory)
    except OSError as error:  # the token is published; some file systems cannot sync a directory
        event(logging.WARNING, "directory_not_synced", path=destination.directory, message=error.strerror)


def _open_directory(destination: Destination) -> int:
    """A descriptor of the token directory, judged; made first where it is not there."""
    try:
        directory = os.open(destination.directory, _DIRECTORY)
    except FileNotFoundError:
        return _make_directory(destination)
    except OSError as error:
        raise _not_a_directory(destination, error) from None
    try:
        _judge_directory(destination, directory)
    except LayoutError:
        os.close(directory)
        raise
    return directory


def _make_directory(destination: Destination) -> int:
    made: list[str] = []
    try:
        return _make_directories(destination, made)
    except BaseException:
        for path in reversed(made):
            with contextlib.suppress(OSError):
                os.rmdir(path)
        raise


def _make_directories(destination: Destination, made: list[str]) -> int:
    """Makes the token directory and what is missing above it, and notes in `made` what it made. Modes are set by
    descriptor: in a directory that others may write, a path may be another thing by then."""
    missing = [destination.directory]
    while not os.path.isdir(os.path.dirname(missing[-1])):
        missing.append(os.path.dirname(missing[-1]))
    for path in reversed(missing[1:]):
        os.close(_make_one(path, 0o755, made))
    directory = _make_one(destination.directory, 0o700, made)
    try:
        if destination.gid is not None:
            _give_to_group(destination, directory)
        os.fchmod(directory, DIRECTORY_MODE)  # after the group, whose change clears the setgid bit
    except BaseException:
        os.close(directory)
        raise
    return directory


def _make_one(path: str, mode: int, made: list[str]) -> int:
    """A descriptor of a directory that is made at `path` with that mode, whatever the umask."""
    os.mkdir(path, 0o700)
    made.append(path)
    directory = os.open(path, _DIRECTORY)
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


def _judge_entrance(destination: Destination, directory: int) -> None:
    """Refuses a directory that the workers' group cannot enter: each of them would be told `unreadable`."""
    found = os.fstat(directory)
    gid = destination.gid
    if gid is None or found.st_mode & 0o001 or (found.st_gid == gid and found.st_mode & 0o010):
        return
    with contextlib.suppress(OSError):
        os.getxattr(directory, "system.posix_acl_access")
        return  # who may enter is then in the ACL
    raise LayoutError(
        f"{destination.directory}: group {gid} cannot enter the token directory (its group is {found.st_gid}, its mode "
        f"{found.st_mode & 0o7777:04o})",
        hint=f"remove the directory, and the refresher makes it anew; or chgrp {gid} and chmod 2750",
    )


def _judge_directory(destination: Destination, directory: int) -> None:
    found = os.fstat(directory)
    path = destination.directory
    if found.st_uid not in (os.geteuid(), 0):
        raise LayoutError(
            f"{path}: the token directory belongs to uid {found.st_uid}, who could replace the token; "
            f"this process is uid {os.geteuid()}",
            hint="let the refresher make the directory: remove it, or name one inside the volume that is not there yet",
        )
    if found.st_mode & 0o022:
        raise LayoutError(
            f"{path}: group or others may write to the token directory (its mode is {found.st_mode & 0o7777:04o})",
            hint=f"name a directory inside the volume that is not there yet, and the refresher makes it; or chmod "
            f"g-w,o-w {path}",
        )


def _judge_ccache(destination: Destination, directory: int) -> None:
    """Refuses to replace what is not a ccache of ours: a slip in a path must not cost a user a file."""
    path = destination.path
    try:
        found = os.stat(destination.name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return
    except OSError as error:
        raise LayoutError(f"{path}: it cannot be looked at: {error.strerror}", hint="check the file system") from None
    if stat.S_ISLNK(found.st_mode):
        raise LayoutError(
            f"{path}: the ccache is a symlink, which a publication would replace",
            hint="name the file itself, in a directory of its own",
        )
    if not stat.S_ISREG(found.st_mode):
        raise LayoutError(
            f"{path}: there is something that is not a regular file", hint="name another path, or move it"
        )
    if found.st_uid != os.geteuid():
        raise LayoutError(
            f"{path}: the file there belongs to uid {found.st_uid}; this process is uid {os.geteuid()}",
            hint="remove it, or run the refresher as its owner",
        )
    if not found.st_size:
        return
    try:
        file = os.open(destination.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
        try:
            start = os.read(file, 2)
        finally:
            os.close(file)
    except OSError as error:
        raise LayoutError(
            f"{path}: the file there cannot be read: {error.strerror}", hint="remove it, or make it readable for us"
        ) from None
    if start[:1] != b"\x05" or start[1:] not in (b"\x01", b"\x02", b"\x03", b"\x04"):
        raise LayoutError(
            f"{path}: the file there is not a ccache, and is not overwritten",
            hint="name another path, or move the file",
        )


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


def _not_a_directory(destination: Destination, error: OSError) -> LayoutError:
    path = destination.directory
    if error.errno in (errno.ELOOP, errno.ENOTDIR):
        return LayoutError(
            f"{path}: the token directory is a symlink or not a directory",
            hint="name the real directory in the settings",
        )
    return LayoutError(f"{path}: the token directory cannot be opened: {error.strerror}")


def _temporary_name() -> str:
    return f".krbrefresh-{secrets.token_hex(8)}.tmp"


def _unlink(name: str, directory: int) -> None:
    try:
        os.unlink(name, dir_fd=directory)
    except OSError:
        pass
