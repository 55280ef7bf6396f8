"""The doctor's checks of a token directory: layout, file system, leftover files, what is published, and who leads.

Looks only. Nothing is written, and no lock is taken.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import stat
import time
from collections.abc import Iterator

from .. import mounts
from .._text import seconds_text
from ..client import validate
from ..doctor import FAIL, OK, WARN, Check, Checks, token_doubts, token_text
from ..errors import LayoutError, TokenError
from . import layout
from .credential import Credential
from .layout import Destination
from .lock import LOCK_NAME
from .settings import CredentialSettings

_LITTLE_SPACE = 1 << 20
_AT_WORK = 60.0  # seconds; a younger temporary file may be a publication that goes on now
_CAP_CHOWN = 1 << 0  # linux/capability.h
_TEMPORARY_NAME = re.compile(r"\.krbrefresh-[0-9a-f]{16}\.tmp\Z")  # publish.py makes them


def user_name(uid: int) -> str:
    """A user for people."""
    try:
        return f"uid {uid} ({pwd.getpwuid(uid).pw_name})"
    except KeyError:
        return f"uid {uid}"


def run_as(uid: int) -> str:
    """How to run the doctor as that user."""
    try:
        return f"runuser -u {pwd.getpwuid(uid).pw_name} -- krbrefresh doctor"
    except KeyError:
        return f"setpriv --reuid={uid} --regid=GROUP --groups=GROUPS krbrefresh doctor"


def directory_owner(credential: CredentialSettings) -> int | None:
    """The owner of a credential's token directory; None where it is not there."""
    try:
        return os.stat(os.path.dirname(credential.ccache)).st_uid
    except OSError:
        return None


def check_layout(credential: CredentialSettings) -> Checks[None]:
    """Whether a refresher could publish there, and nobody else."""
    destination = Destination.of(credential)
    directory = destination.directory
    owner = directory_owner(credential)
    if os.geteuid() == 0 and owner:
        yield Check(
            WARN,
            "layout",
            f"{directory} belongs to {user_name(owner)}: not judged, since root would be another refresher than that",
            f"run it as the refresher's user: {run_as(owner)}",
        )
        return
    try:
        layout.judge(destination)
    except LayoutError as error:
        yield Check(FAIL, "layout", str(error), error.hint)
        return
    made = owner is not None
    place = directory if made else _nearest(directory)
    if not os.access(place, os.W_OK | os.X_OK, effective_ids=True):
        mount = mounts.find(place)
        why = "it is mounted read-only" if mount and mount.read_only else f"uid {os.geteuid()} may not write there"
        yield Check(
            FAIL,
            "layout",
            f"{directory} cannot be {'written to' if made else f'made in {place}'}: {why}",
            "the refresher needs a volume that it may write to, mounted at or above the token directory",
        )
        return
    gid = destination.gid
    if gid is not None and not _may_give_to(gid):
        yield Check(
            FAIL,
            "layout",
            f"{directory}: uid {os.geteuid()} may not give files to group {gid}",
            "make the refresher's user a member of that group (Docker: group_add, Kubernetes: fsGroup or "
            "supplementalGroups)",
        )
        return
    found = os.stat(directory) if made else None
    state = f"mode {stat.S_IMODE(found.st_mode):04o}" if found else "it is not there yet, and can be made"
    group = gid
    if group is None:
        group = found.st_gid if found and found.st_mode & stat.S_ISGID else os.getegid()
    yield Check(OK, "layout", f"{directory}: {state}; the token's mode {destination.mode:04o}, group {group}")
    if group == 0 and not destination.mode & 0o004:
        yield Check(
            WARN,
            "layout",
            "no group is set, and the token's would be 0, root's: a worker under another user cannot read it",
            "set group in the settings to the workers' group, by name or number",
        )
    if destination.mode & 0o004:
        yield Check(
            WARN,
            "layout",
            f"the token's mode is {destination.mode:04o}: everybody who can reach it is the principal",
            'mode = "0440" and group = the workers\' group',
        )


def _nearest(path: str) -> str:
    """The nearest directory above a path that is there."""
    while not os.path.isdir(path):
        path = os.path.dirname(path)
    return path


def _may_give_to(gid: int) -> bool:
    """Whether this process may give a file of its own to that group (chown(2))."""
    if gid in (os.getegid(), *os.getgroups()):
        return True
    with contextlib.suppress(OSError), open("/proc/self/status", encoding="ascii", errors="replace") as file:
        for line in file:
            if line.startswith("CapEff:"):
                return bool(int(line.split()[1], 16) & _CAP_CHOWN)
    return os.geteuid() == 0


def check_volume(credential: CredentialSettings) -> Checks[None]:
    """Which file system it is, and whether there is room."""
    directory = os.path.dirname(credential.ccache)
    place = _nearest(directory)
    mount = mounts.find(place)
    kind = mount.type if mount else "a file system of unknown type"
    found = os.statvfs(place)
    free = found.f_bavail * found.f_frsize
    space = f", {_bytes_text(free)} free" if found.f_blocks else ""
    no_inode = bool(found.f_files) and not found.f_favail
    if no_inode or (found.f_blocks and free < _LITTLE_SPACE):
        yield Check(
            FAIL if no_inode or not free else WARN,
            "volume",
            f"{place}: {kind}{space}" + (", no inode free" if no_inode else ""),
            "make room: a publication that finds none keeps the old token, until that one expires",
        )
    elif kind in mounts.NETWORK:
        yield Check(
            WARN,
            "volume",
            f"{place}: {kind}{space}: on a network file system the lock does not keep a second machine's refresher out",
            "run one refresher for it, on one machine; or publish to a local volume",
        )
    elif kind == "overlay":
        yield Check(
            WARN,
            "volume",
            f"{place}: {kind}{space}: this container's own layer, which no other container sees",
            "mount the volume that the workers share at or above the token directory",
        )
    elif kind in mounts.MEMORY:
        yield Check(OK, "volume", f"{place}: {kind}{space}; in memory, gone with a reboot")
    else:
        yield Check(OK, "volume", f"{place}: {kind}{space}; a tmpfs would keep tickets off disks and out of backups")


def _bytes_text(count: int) -> str:
    size = float(count)
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"


def check_leftovers(credential: CredentialSettings) -> Checks[None]:
    """What a refresher that was killed has left."""
    directory = os.path.dirname(credential.ccache)
    now = time.time()
    found = []
    for place in (directory, os.path.dirname(directory)):  # a directory that was being made has such a name, too
        try:
            entries = os.listdir(place)
        except OSError:
            continue
        for entry in sorted(filter(_TEMPORARY_NAME.match, entries)):
            path = os.path.join(place, entry)
            with contextlib.suppress(OSError):
                age = now - os.lstat(path).st_mtime
                if age > _AT_WORK:
                    found.append(f"{path} ({seconds_text(age)} old)")
    if found:
        more = f" and {len(found) - 5} more" if len(found) > 5 else ""
        yield Check(
            WARN,
            "leftover",
            f"left by a refresher that was killed: {', '.join(found[:5])}{more}",
            "a refresher that starts removes those in its token directory; they can be deleted, and may hold a ticket",
        )


# --- what is published, and by whom ---


def check_token(credential: CredentialSettings) -> Checks[None]:
    """What is published, whether it fits the settings, and who refreshes it."""
    leads = _leader(credential)
    path = credential.ccache
    try:
        token = validate(path, min_remaining=0)
    except TokenError as error:
        if error.reason != "missing":
            yield Check(FAIL, "token", f"{error.reason}: {error}", error.hint)
        elif leads:
            hint = "its log says why: the refresher runs and has not published"
            yield Check(FAIL, "token", f"missing: {path}: nothing is published, and {leads} leads", hint)
        else:
            hint = "start the refresher: krbrefresh run, or krbrefresh once"
            yield Check(WARN, "token", f"missing: {path}: nothing is published yet, and no refresher leads here", hint)
        return
    if not Credential(credential, exchange_deadline=0).is_ours(token):
        yield Check(
            FAIL,
            "token",
            f"wrong_principal: {path}: it is the token of {token.principal}, not of {credential.principal}",
            "the settings have changed, or another program writes there; the next publication replaces it",
        )
        return
    yield Check(OK, "token", token_text(token))
    yield from token_doubts(token)
    if token.manifest and token.manifest.settings != credential.fingerprint:
        yield Check(
            WARN,
            "token",
            "it was made with other settings than these",
            "krbrefresh run takes them over on HUP or at a new start, and refreshes it at once",
        )
    yield from _looks(credential)
    if leads:
        yield Check(OK, "leader", f"{leads} refreshes it")
    else:
        yield Check(
            WARN,
            "leader",
            "nobody is seen to refresh it: no process in sight holds the lock",
            "start krbrefresh run; no fault where krbrefresh once runs now and then, or the refresher is in another "
            "container",
        )


def _looks(credential: CredentialSettings) -> Iterator[Check]:
    """Whether the token has the mode and the group of the settings."""
    found = os.lstat(credential.ccache)
    mode = stat.S_IMODE(found.st_mode)
    wrong = [f"its mode is {mode:04o}, not {credential.mode:04o}"] if mode != credential.mode else []
    if credential.group not in (None, found.st_gid):
        wrong.append(f"its group is {found.st_gid}, not {credential.group}")
    if wrong:
        yield Check(
            WARN,
            "token",
            " and ".join(wrong),
            "somebody changed it, or the settings: a refresh sets both (kill -USR1 the refresher); workers may be "
            "locked out until then",
        )


def _leader(credential: CredentialSettings) -> str:
    """Which process holds the lock of a credential's directory, in words; nothing where none is seen.

    From /proc/locks (proc(5)), which shows those of this pid namespace: to try the lock, even for a moment, could make
    a refresher that starts stand by.
    """
    directory = os.path.dirname(credential.ccache)
    try:
        inode = os.lstat(os.path.join(directory, LOCK_NAME)).st_ino
        with open("/proc/locks", encoding="ascii", errors="replace") as file:
            locks = [line.split() for line in file]
    except OSError:
        return ""
    mount = mounts.find(directory)
    for fields in locks:
        if len(fields) < 6 or fields[1] != "FLOCK":
            continue
        major, minor, number = fields[5].split(":")
        if number != str(inode) or (mount and mount.device != f"{int(major, 16)}:{int(minor, 16)}"):
            continue
        try:
            return f"pid {fields[4]}, {user_name(os.stat(f'/proc/{fields[4]}').st_uid)},"
        except OSError:
            return f"pid {fields[4]}"
    return ""
