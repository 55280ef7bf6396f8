"""Where a path is mounted, as /proc/self/mountinfo says it (proc(5))."""

from __future__ import annotations

import os
import re

# The lock does not exclude across the machines that mount these (flock(2); a cluster's file systems vary).
NETWORK = frozenset(
    (
        "nfs",
        "nfs4",
        "cifs",
        "smb3",
        "smbfs",
        "9p",
        "afs",
        "ceph",
        "coda",
        "glusterfs",
        "gfs2",
        "gpfs",
        "lustre",
        "ocfs2",
        "virtiofs",
        "fuse.ceph",
        "fuse.glusterfs",
        "fuse.s3fs",
        "fuse.sshfs",
    )
)
MEMORY = frozenset(("tmpfs", "ramfs"))


class Mount:
    """A mount point: where it is, of which type and device (`major:minor`), and whether it is read-only here."""

    __slots__ = ("device", "point", "read_only", "type")

    def __init__(self, point: str, type: str, device: str, read_only: bool) -> None:  # noqa: A002  (as mount(8) has it)
        self.point, self.type, self.device, self.read_only = point, type, device, read_only


def find(path: str) -> Mount | None:
    """The mount that a path lies in, which need not exist itself; None where /proc does not say."""
    real = os.path.realpath(path)
    found = None
    for mount in _all():
        inside = real == mount.point or real.startswith(mount.point.rstrip("/") + "/")
        # The last one of the same point hides those before it.
        if inside and (found is None or len(mount.point) >= len(found.point)):
            found = mount
    return found


def is_point(path: str) -> bool:
    """Whether something is mounted on that very file. A bind mount of the same file system shows here alone."""
    real = os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))
    return any(mount.point == real for mount in _all())


def _all() -> list[Mount]:
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
            lines = file.readlines()
    except OSError:
        return []
    mounts = []
    for line in lines:
        fields, _, rest = line.partition(" - ")
        _, _, device, _, point, options = fields.split(" ")[:6]
        type_, _, superblock = rest.rstrip("\n").split(" ", 2)
        read_only = "ro" in options.split(",") or "ro" in superblock.split(",")
        mounts.append(Mount(re.sub(r"\\([0-7]{3})", _character, point), type_, device, read_only))
    return mounts


def _character(escape: re.Match[str]) -> str:
    return chr(int(escape[1], 8))
