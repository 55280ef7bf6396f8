"""Which keytabs this process could read: a worker should find none.

Two bytes of a file tell a keytab; no more is read, and no key.
"""

from __future__ import annotations

import os
import stat

from . import krb5conf

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_STARTS = (b"\x05\x02", b"\x05\x01")  # the format's two versions (MIT, "Keytab file format")
_MAX_FILES = 1000  # of a directory with secrets, and of those in it
_DEPTH = 3

# libkrb5's defaults, as MIT and Debian build it, and the directory that Hadoop's distributions use.
_DEFAULT = "/etc/krb5.keytab"
_CLIENT_DEFAULTS = ("/var/krb5/user/%{euid}/client.keytab", "/etc/krb5/user/%{euid}/client.keytab")
_DIRECTORIES = ("/run/secrets", "/etc/security/keytabs")


class Keytab:
    """A keytab that can be read from here: its `path`, `where` it was looked for, and its `mode`."""

    __slots__ = ("mode", "path", "where")

    def __init__(self, path: str, where: str, mode: int) -> None:
        self.path, self.where, self.mode = path, where, mode


def candidates(more: Iterable[str] = ()) -> list[tuple[str, str]]:
    """Where a keytab is looked for, as path and reason: what the environment and krb5.conf name, libkrb5's defaults,
    the files of the directories for secrets, and `more`."""
    conf = krb5conf.read()
    named = [(path, "the settings") for path in more]
    named += [(os.environ.get(name, ""), f"${name}") for name in ("KRB5_KTNAME", "KRB5_CLIENT_KTNAME")]
    for tag in ("default_keytab_name", "default_client_keytab_name"):
        named.append((conf.first("libdefaults", tag) or "", f"{tag} in krb5.conf"))
    named += [(path, "libkrb5's default") for path in (_DEFAULT, *_CLIENT_DEFAULTS)]
    for directory in filter(None, (*_DIRECTORIES, os.environ.get("CREDENTIALS_DIRECTORY"))):
        named += [(path, directory) for path in _files(directory)]
    found: dict[str, tuple[str, str]] = {}
    for name, where in named:
        path = _path(name)
        if path:
            found.setdefault(os.path.realpath(path), (path, where))
    return list(found.values())


def readable(more: Iterable[str] = ()) -> list[Keytab]:
    """The keytabs among the candidates that this process can read."""
    found = []
    for path, where in candidates(more):
        try:
            file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)  # a FIFO would hold us
        except OSError:
            continue
        try:
            mode = os.fstat(file).st_mode
            if stat.S_ISREG(mode) and os.read(file, 2) in _STARTS:
                found.append(Keytab(path, where, stat.S_IMODE(mode)))
        except OSError:
            pass
        finally:
            os.close(file)
    return found


def _path(name: str) -> str | None:
    """The file that a keytab's name means; None for one that is no file."""
    kind, colon, rest = name.partition(":")
    if colon and "/" not in kind:
        if kind not in ("FILE", "WRFILE"):
            return None
        name = rest
    name = name.replace("%{euid}", str(os.geteuid())).replace("%{uid}", str(os.getuid()))
    return name or None


def _files(directory: str) -> Iterator[str]:
    """The files in a directory and a few levels below it."""
    count = 0
    for place, names, files in os.walk(directory):
        if place[len(directory) :].count("/") >= _DEPTH:
            names.clear()
        for file in sorted(files):
            count += 1
            if count > _MAX_FILES:
                return
            yield os.path.join(place, file)
