"""Which file is at a path: what tells a keytab or a krb5.conf from the one that was there before."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable

# Device, inode, times and size; where there is no file, the errno alone.
Identity = tuple[int, ...]
Files = dict[str, Identity]
MISSING: tuple[Identity, ...] = ((errno.ENOENT,), (errno.ENOTDIR,))  # other errors do not say that there is no file


def identity(path: str) -> Identity:
    """What tells one file at a path from the next, or why there is none. Opens nothing, and blocks as long as the file
    system does."""
    try:
        found = os.stat(path)  # through symlinks: Kubernetes swaps one to rotate a Secret
    except OSError as error:
        return (error.errno or 0,)
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_ctime_ns, found.st_size


def worked_with(keytab: str, fast_keytab: str | None) -> list[str]:
    """The paths of what an exchange works with: the keytabs, and what libkrb5 reads its configuration from
    (krb5.conf(5), `KRB5_CONFIG`)."""
    return [keytab, *filter(None, [fast_keytab]), *os.environ.get("KRB5_CONFIG", "/etc/krb5.conf").split(":")]


def identities(paths: Iterable[str]) -> Files:
    """Which files are there now."""
    return {path: identity(path) for path in paths}
