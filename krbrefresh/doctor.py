"""`krbrefresh doctor`: looks at everything that has to be right, and says of each what to do where it is not.

Here: what a check is, how checks are shown, and those of a worker. Looks only: nothing is written, no lock is taken.
The refresher's checks are in refresher/doctor.py. docs/doctor.md lists them all.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from . import __version__, keytabs, krb5conf, mounts
from ._text import moment_text, printable, seconds_text
from .client import resolve, validate
from .errors import KrbrefreshError, MissingError, TokenError
from .token import Token

T = TypeVar("T")

OK, WARN, FAIL = "ok", "warn", "fail"
_COLOURS = {OK: "32", WARN: "33", FAIL: "31"}  # green, yellow, red (ECMA-48, SGR)
_CHECK_WIDTH = 11
_CLOCK_DOUBT = 5.0  # seconds
_LATE = 0.4  # of the expiry window: the first try falls into its first 30 %
_SOURCES = ("KRBREFRESH__KERBEROS__", "KRBREFRESH__CREDENTIALS__")  # variables that make a credential


@dataclass(frozen=True)
class Check:
    """One line of the answer: `status` (`ok`, `warn` or `fail`), which `check` it is, what was found, what to do about
    it (empty where all is well), and of which credential it speaks (empty where of none)."""

    status: str
    check: str
    message: str
    hint: str = ""
    subject: str = ""

    def about(self, subject: str) -> Check:
        """The same of that subject."""
        return Check(self.status, self.check, self.message, self.hint, subject)


Checks = Generator[Check, None, T]  # checks one by one, and what the later ones need to know


def guarded(name: str, look: Callable[[], Generator[Check, None, T]]) -> Generator[Check, None, T | None]:
    """The checks that `look` makes; one more, which says so, where it fails itself."""
    try:
        return (yield from look())
    except Exception as error:  # noqa: BLE001  (one check that fails must not cost the others)
        yield Check(FAIL, name, f"this check itself failed: {type(error).__name__}: {error}", KrbrefreshError.hint)
        return None


# --- how they are shown ---


def as_text(check: Check, *, colour: bool = False) -> str:
    """A check as a line, with what to do below it."""
    status = f"{check.status:<5}"
    if colour:
        status = f"\x1b[{_COLOURS[check.status]}m{status}\x1b[0m"
    subject = f"{check.subject}: " if check.subject else ""
    lines = [f"{status} {check.check:<{_CHECK_WIDTH}} {printable(subject + check.message)}"]
    if check.hint:
        lines.append(f"{'':<{_CHECK_WIDTH + 7}}-> {printable(check.hint)}")
    return "\n".join(lines)


def count(checks: Iterable[Check]) -> dict[str, int]:
    """How many there are of each status."""
    found = {OK: 0, WARN: 0, FAIL: 0}
    for check in checks:
        found[check.status] += 1
    return found


def as_json(side: str, checks: list[Check]) -> str:
    """All of them for machines, always with all keys; what is not there is null."""
    import json

    keys = ("status", "check", "subject", "message", "hint")
    told = [{key: getattr(check, key) or None for key in keys} for check in checks]
    return json.dumps({"side": side, "checks": told, **count(checks)}, indent=2)


# --- which side this is ---


def settings_here(config: str | None, *, airflow: bool) -> str | None:
    """Where a refresher's settings would come from in this process, in words; None where there are none. Nothing is
    read: settings that are broken are settings, too."""
    if config:
        return config
    if os.environ.get("KRBREFRESH_CONFIG"):
        return f"$KRBREFRESH_CONFIG ({os.environ['KRBREFRESH_CONFIG']})"
    default = "/etc/krbrefresh/krbrefresh.toml"  # refresher/sources.py has it, too; no worker imports that
    if os.path.exists(default) and os.access(default, os.R_OK):  # one that we may not read is somebody else's
        return default
    variables = sorted(name for name in os.environ if name.startswith(_SOURCES))
    if variables:
        return variables[0] if len(variables) == 1 else f"{variables[0]} and {len(variables) - 1} more variables"
    return "AIRFLOW__KERBEROS__*" if airflow else None


def not_installed(found: str, error: KrbrefreshError) -> Iterator[Check]:
    """All that there is to say where settings are `found`, and the refresher's half does not even load."""
    yield Check(OK, "side", f"refresher (settings from {found}); krbrefresh {__version__}")
    hint = f"{error.hint}; or, on a worker's machine, run doctor --worker"
    yield Check(FAIL, "package", f"{error.reason}: {error}", hint)


# --- a worker's checks ---


def worker(*, keytab_paths: Iterable[str] = (), forced: bool = False) -> Iterator[Check]:
    """What can be told from a worker's place; `keytab_paths` are more places to look for a keytab at."""
    why = "asked for with --worker" if forced else "no settings of a refresher are to be seen here"
    yield Check(OK, "side", f"worker ({why}); krbrefresh {__version__}")
    yield from guarded("user", _user)
    conf = krb5conf.read()
    yield from guarded("krb5.conf", lambda: _krb5_conf(conf))
    yield from guarded("names", lambda: names(conf))
    yield from guarded("token", _worker_token)
    yield from guarded("directory", _directory)
    yield from guarded("environment", _environment)
    yield from guarded("keytab", lambda: _keytabs(keytab_paths))


def user_text() -> str:
    """Who this process is."""
    groups = ", ".join(map(str, sorted({os.getegid(), *os.getgroups()})))
    return f"uid {os.geteuid()}, groups {groups}"


def _user() -> Checks[None]:
    if os.geteuid():
        yield Check(OK, "user", user_text())
        return
    yield Check(
        WARN,
        "user",
        "this is root, who may read every file and write every token: what follows says little about a worker",
        "run it as the worker's user: runuser -u USER -- krbrefresh doctor --worker; and let no worker be root",
    )


def _krb5_conf(conf: krb5conf.Krb5Conf) -> Checks[None]:
    if not conf.read:
        yield Check(
            WARN,
            "krb5.conf",
            "; ".join(conf.absent) or "no file is named",
            "without it no Kerberos library finds the realm or its KDCs: mount the refresher's krb5.conf here, or "
            "correct $KRB5_CONFIG",
        )
    elif conf.problems:
        yield Check(
            WARN,
            "krb5.conf",
            conf.problems[0],
            "correct that line: libkrb5 refuses the whole file, and every program here fails with it",
        )
    else:
        realm = conf.first("libdefaults", "default_realm")
        yield Check(OK, "krb5.conf", f"{', '.join(conf.read)}: default realm {realm or 'not set'}")


def names(conf: krb5conf.Krb5Conf) -> Checks[None]:
    """Whether a service's name is used as it is typed (krb5.conf(5): both are true by default)."""
    found = {tag: conf.truth("libdefaults", tag, default=True) for tag in ("dns_canonicalize_hostname", "rdns")}
    said = ", ".join(f"{tag} = {str(value).lower()}" for tag, value in found.items())
    if all(value is False for value in found.values()):
        yield Check(OK, "names", said)
        return
    yield Check(
        WARN,
        "names",
        f"{said}: DNS decides which service's ticket is asked for, and a wrong or slow answer makes every connection "
        "fail or wait",
        "set both to false under [libdefaults] in krb5.conf, the refresher's and the workers'; then a service's name "
        "is used as it is typed",
    )


def _worker_token() -> Checks[None]:
    try:
        path = resolve()
    except ValueError as error:
        yield Check(FAIL, "token", str(error), "set KRBREFRESH_CCACHE to the token's path")
        return
    try:
        token = validate(path)
    except TokenError as error:
        message, hint = f"{error.reason}: {error}", error.hint
        directory = os.path.dirname(path) or "."
        if isinstance(error, MissingError) and not os.path.isdir(directory):
            message = f"{error.reason}: {path}: there is not even the directory {directory}"
            hint = "mount the volume with the token directory here, or set KRBREFRESH_CCACHE to where it is"
        yield Check(FAIL, "token", message + _owner(path), hint)
        return
    yield Check(OK, "token", token_text(token))
    yield from token_doubts(token)


def token_text(token: Token) -> str:
    """A token in a line."""
    generation = "" if token.generation is None else f", generation {token.generation}"
    left = seconds_text(token.expires - time.time())
    return f"{token.path}: {token.principal} until {moment_text(token.expires)} ({left} left){generation}"


def token_doubts(token: Token) -> Iterator[Check]:
    """What is odd about a token that is valid now."""
    now, manifest = time.time(), token.manifest
    if manifest is None:
        yield Check(
            WARN,
            "token",
            "it has no manifest: kinit or k5start wrote it, not krbrefresh",
            "if a refresher should keep it fresh, this is the wrong path, or another program writes to it",
        )
        return
    if token.modified:
        yield Check(
            WARN,
            "token",
            "something was appended to it after the refresher published it",
            "a program that runs as root uses it, or somebody may write to it: look at its mode, and who is root",
        )
    if manifest.issued_at > now + _CLOCK_DOUBT:
        ahead = seconds_text(manifest.issued_at - now)
        yield Check(
            WARN,
            "clock",
            f"it was published {ahead} in the future: this machine's clock is behind the refresher's",
            "set the clock (chronyc tracking, timedatectl): services refuse who is more than 5 minutes off",
        )
    window = manifest.expires_at - manifest.window_opens_at
    late = now - manifest.window_opens_at - window * _LATE
    if late > 0:
        yield Check(
            WARN,
            "token",
            f"its refresh is late: the expiry window opened {seconds_text(now - manifest.window_opens_at)} ago",
            "the refresher does not run, does not reach the KDC, or is refused: its log and /readyz say which",
        )


def _owner(path: str) -> str:
    """Whose file it is, to go behind a message; nothing where that is not known."""
    try:
        found = os.lstat(path)
    except OSError:
        return ""
    return f" (it belongs to uid {found.st_uid}, group {found.st_gid}, mode {stat.S_IMODE(found.st_mode):04o})"


def _directory() -> Checks[None]:
    """Whether this process could replace the token or write to it."""
    try:
        path = os.path.abspath(resolve())
    except ValueError:
        return
    directory = os.path.dirname(path)
    if not os.path.isdir(directory):
        return
    if mounts.is_point(path):
        yield Check(
            FAIL,
            "directory",
            f"{path}: the file itself is mounted here, and stays what it was at the start: no refresh will be seen",
            "mount the directory around it, not the file (Kubernetes: no subPath)",
        )
    me = f"uid {os.geteuid()}"
    mount = mounts.find(directory)
    where = directory
    if mount:
        where += f" ({mount.type}, mounted {'read-only' if mount.read_only else 'writable'})"
    writable = "the directory" if os.access(directory, os.W_OK, effective_ids=True) else ""
    if not writable and os.access(path, os.W_OK, effective_ids=True):
        writable = "the token"
    if not writable:
        yield Check(OK, "directory", f"{where}: {me} may not write there")
    elif os.geteuid() == 0:
        yield Check(
            WARN,
            "directory",
            f"{where}: root may write to {writable}",
            "mount it read-only: a library of Kerberos that runs as root appends tickets to the token otherwise",
        )
    elif _is_own(path):
        yield Check(OK, "directory", f"{where}: a ccache of {me} itself, which krbrefresh did not publish")
    else:
        yield Check(
            FAIL,
            "directory",
            f"{where}: {me} may write to {writable}, and so replace the token of every worker",
            "mount the volume read-only here; the directory is 2750 and the token 0440, both the refresher's, where "
            "the refresher makes them; a worker needs their group, not their owner",
        )


def _is_own(path: str) -> bool:
    try:
        return os.lstat(path).st_uid == os.geteuid() and validate(path, min_remaining=0).manifest is None
    except (OSError, TokenError):
        return False


def _environment() -> Checks[None]:
    """Whether the libraries of this environment would take the token, and nothing else."""
    try:
        path = os.path.abspath(resolve())
    except ValueError:
        return
    name = os.environ.get("KRB5CCNAME")
    set_it = f"set KRB5CCNAME=FILE:{path}"
    if not name:
        yield Check(
            WARN,
            "environment",
            "KRB5CCNAME is not set: a program that is started from here looks for a ccache of its user, not for the "
            "token",
            f"{set_it}; or start it by krbrefresh exec, or call krbrefresh.activate() in it: they set it",
        )
    elif name.removeprefix("FILE:") == path:
        yield Check(OK, "environment", f"KRB5CCNAME is {name}")
    else:
        yield Check(
            WARN,
            "environment",
            f"KRB5CCNAME is {name}, the token is {path}: libraries and krbrefresh look at different tickets",
            f"{set_it}, unless that is the private copy of the token",
        )
    client = os.environ.get("KRB5_CLIENT_KTNAME")
    if client:
        yield Check(
            WARN,
            "environment",
            f"KRB5_CLIENT_KTNAME is {client}: GSSAPI gets tickets with that keytab when the token will not do",
            "unset it: a worker has the token, not the keytab",
        )


def _keytabs(more: Iterable[str]) -> Checks[None]:
    """Whether a keytab can be read from here: that is what krbrefresh is there to avoid."""
    found = keytabs.readable(more)
    for keytab in found:
        root = os.geteuid() == 0 and not keytab.mode & stat.S_IROTH
        what = f"{keytab.path} ({keytab.where}, mode {keytab.mode:04o})"
        yield Check(
            WARN if root else FAIL,
            "keytab",
            f"this process can read the keytab {what}: it holds the password, not just the token"
            + ("; as root it can read any, so look again as the worker's user" if root else ""),
            "take it out of the worker: no mount, no Secret, no copy in the image; where it has to be on this machine, "
            "mode 0400 and another owner. An acceptor's own keytab (KRB5_KTNAME of a server) is the exception",
        )
    if not found:
        places = len(keytabs.candidates(more))
        yield Check(OK, "keytab", f"no keytab can be read from here ({places} usual places looked at)")
