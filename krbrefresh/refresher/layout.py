"""Whether a token is safe where the settings put it, and a keytab where it lies. Looks only; writes nothing.

docs/security.md says who may do what in a token directory.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from .. import mounts
from ..errors import LayoutError
from .settings import CredentialSettings

# What somebody has who can read it.
_WORTH = {"keytab": "it is the password", "signing key": "who has it can make tokens that workers trust"}
DIRECTORY_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


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
        directory = os.open(destination.directory, DIRECTORY_FLAGS)
    except FileNotFoundError:
        return
    except OSError as error:
        raise not_a_directory(destination, error) from None
    try:
        judge_directory(destination, directory)
        _judge_entrance(destination, directory)
        judge_ccache(destination, directory)
    finally:
        os.close(directory)


def real_directories(destinations: Iterable[Destination]) -> dict[str, str]:
    """The token directories by their real paths."""
    return {os.path.realpath(destination.directory): destination.directory for destination in destinations}


def refuse_shared(destinations: Mapping[str, tuple[str, Destination]]) -> None:
    """Refuses two credentials that publish to one path; `destinations` gives the real directory of each by the
    credential's name. Raises LayoutError."""
    owners: dict[str, str] = {}
    for name, (directory, destination) in destinations.items():
        other = owners.setdefault(os.path.join(directory, destination.name), name)
        if other != name:
            raise LayoutError(
                f"the credentials {other!r} and {name!r} have one ccache, {destination.path}",
                hint="give each credential a ccache in a directory of its own",
            )


def judge_keytab(path: str, directories: Mapping[str, str], environ: Mapping[str, str] = os.environ) -> str | None:
    """`judge_key` of a keytab."""
    return judge_key(path, directories, "keytab", environ)


def judge_key(
    path: str, directories: Mapping[str, str], what: str, environ: Mapping[str, str] = os.environ
) -> str | None:
    """Looks at where a file with a secret key lies (`what`: a keytab, say) and who may read it; returns a warning in
    words, or None.

    `directories` are the token directories (`real_directories`). What systemd put into `$CREDENTIALS_DIRECTORY` is
    exempt from the look at the mode, in which its ACL shows. One that is not there, or not to be looked at, is the
    exchange's to report. Raises LayoutError.
    """
    try:
        found = os.stat(path)
    except OSError:
        return None
    place = os.path.realpath(os.path.dirname(path))
    for above in (place, os.path.realpath(path)):  # where it is named, and where a symlink there leads to
        while above not in directories and above != os.path.dirname(above):
            above = os.path.dirname(above)
        if above in directories:
            raise LayoutError(
                f"{path}: the {what} lies in the token directory {directories[above]}, which workers enter",
                hint=f"keep the {what} on a volume of its own, which is mounted into the refresher alone",
            )
    credentials = environ.get("CREDENTIALS_DIRECTORY")
    if credentials and place == os.path.realpath(credentials):
        return None
    mode = stat.S_IMODE(found.st_mode)
    if mode & stat.S_IROTH:
        raise LayoutError(
            f"{path}: everybody may read the {what} (its mode is {mode:04o}); {_WORTH[what]}",
            hint=f"chmod 0400 {path}; a Kubernetes Secret: defaultMode: 0400, or 0440 with fsGroup",
        )
    if mode & stat.S_IRGRP:
        return f"group {found.st_gid} may read the {what} (its mode is {mode:04o}): no worker may be in it"
    return None


def judge_directory(destination: Destination, directory: int) -> None:
    """Refuses a token directory in which somebody else could replace the token. Raises LayoutError."""
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


def judge_ccache(destination: Destination, directory: int) -> None:
    """Refuses to replace what is not a ccache of ours: a slip in a path must not cost a user a file."""
    path = destination.path
    try:
        found = os.stat(destination.name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return
    except OSError as error:
        raise LayoutError(f"{path}: it cannot be looked at: {error.strerror}", hint="check the file system") from None
    if mounts.is_point(path):
        raise LayoutError(
            f"{path}: the ccache is itself a mount point; it cannot be replaced as a whole",
            hint="mount the directory around it, not the file",
        )
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


def not_a_directory(destination: Destination, error: OSError) -> LayoutError:
    """That the token directory cannot be opened, and why."""
    path = destination.directory
    if error.errno in (errno.ELOOP, errno.ENOTDIR):
        return LayoutError(
            f"{path}: the token directory is a symlink or not a directory",
            hint="name the real directory in the settings",
        )
    return LayoutError(f"{path}: the token directory cannot be opened: {error.strerror}")
