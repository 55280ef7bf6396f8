"""The settings: a TOML file, then the environment over it, to typed values. Every error names the source and the key.

The file is `--config`, else `$KRBREFRESH_CONFIG`, else /etc/krbrefresh/krbrefresh.toml if it exists. A variable is
`KRBREFRESH__{SECTION}__{KEY}` or `KRBREFRESH__CREDENTIALS__{NAME}__{KEY}`.
"""

from __future__ import annotations

import dataclasses
import grp
import hashlib
import json
import math
import os
import re
import socket
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from .._text import parse_duration
from ..ccache import Principal
from ..client import resolve
from ..errors import SettingsError
from .policy import Share

if sys.version_info >= (3, 11):
    import tomllib
else:  # pragma: no cover (the same parser under its former name)
    import tomli as tomllib

DEFAULT_CONFIG = "/etc/krbrefresh/krbrefresh.toml"
ENV_PREFIX = "KRBREFRESH__"
_CREDENTIAL_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}\Z")
_NOT_INHERITED = ("principal", "ccache")  # one value of these for several credentials would be a mistake


def _text(value: object) -> str:
    if not isinstance(value, str) or not value.strip() or "\0" in value:
        raise ValueError("has to be a text that is not empty")
    return value.strip()


def _boolean(value: object) -> bool:
    words = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.strip().lower() in words:
        return words[value.strip().lower()]
    raise ValueError(f"{value!r} is not true or false")


def _duration(value: object) -> float:
    if isinstance(value, str):
        return parse_duration(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value < 0:
        raise ValueError(f"{value!r} is not a duration: write 90s, 10m, 8h, 7d or a number of seconds")
    return float(value)


def _positive_duration(value: object) -> float:
    length = _duration(value)
    if not length:
        raise ValueError("has to be more than nothing")
    return length


def _lifetime(value: object) -> float:
    length = _duration(value)
    if not 1 <= length < 1 << 31:  # libkrb5's krb5_deltat
        raise ValueError(f"{value!r} is not a lifetime: from a second to 68 years")
    return length


def _renewable_lifetime(value: object) -> float:
    return _lifetime(value) if _duration(value) else 0.0


def _name(value: object) -> str:
    name = _text(value)
    if len(name) > 255 or not name.isprintable():  # it is in every token, whose manifest has to stay small
        raise ValueError("has to be printable and of no more than 255 characters")
    return name


def _share(value: object) -> Share:
    if isinstance(value, str) and value.strip().endswith("%"):
        try:
            percent = float(value.strip()[:-1])
        except ValueError:
            percent = math.nan
        if not 0 < percent <= 100:
            raise ValueError(f"{value!r} is not a percentage between 0 and 100")
        return Share(fraction=percent / 100)
    return Share(seconds=_positive_duration(value))


def _mode(value: object) -> int:
    try:
        mode = int(value, 8) if isinstance(value, str) else value
    except ValueError:
        mode = None
    if not isinstance(mode, int) or isinstance(mode, bool) or not 0 <= mode <= 0o777:
        raise ValueError(f"{value!r} is not a file mode: write it in octal, as a text, like '0440'")
    if mode & 0o133 or not mode & 0o400:
        raise ValueError(
            f"{mode:04o} is refused: the owner has to be able to read the ccache, nobody else to write it, and nobody "
            "to execute it"
        )
    return mode


def _group(value: object) -> int:
    if isinstance(value, str) and not value.strip().isdigit():
        try:
            return grp.getgrnam(value.strip()).gr_gid
        except KeyError:
            raise ValueError(f"there is no group {value.strip()!r} on this machine; a number is fine too") from None
    gid = int(value) if isinstance(value, (str, int)) and not isinstance(value, bool) else -1
    if not 0 <= gid < (1 << 32) - 1:
        raise ValueError(f"{value!r} is not a group")
    return gid


def _principal(value: object) -> str:
    name = _text(value)
    try:
        Principal.parse(name)
    except ValueError:
        # Without a realm it gets krb5.conf's default realm, which only libkrb5 knows.
        if "@" in name.replace("\\@", ""):
            raise
        Principal.parse(name + "@REALM")
    return name


def _path(value: object) -> str:
    path = _text(value).removeprefix("FILE:")
    if not os.path.isabs(path):
        raise ValueError(f"{path!r} is not an absolute path")
    # What `..` means behind a symlink, normpath does not know.
    if path.endswith("/") or ".." in path.split("/"):
        raise ValueError(f"{path!r} is not the plain path of a file")
    return os.path.normpath(path)


def _keytab(value: object) -> str:
    text = _text(value)
    kind, colon, _ = text.partition(":")
    if colon and "/" not in kind and kind != "FILE":
        raise ValueError(f"{text!r}: a keytab is a file; {kind} is not read")
    return _path(text)


def _ccache(value: object) -> str:
    return _path(resolve(_text(value)))


def _log_format(value: object) -> str:
    if value not in ("text", "json"):
        raise ValueError(f"{value!r} is neither 'text' nor 'json'")
    return str(value)


def _key(parse: Callable[[Any], Any], default: str | None, doc: str) -> Any:
    """A key of the settings: how its value is read, its default as it would be written, and what it is for."""
    value = None if default is None else parse(default)
    return dataclasses.field(default=value, metadata={"parse": parse, "default": default, "doc": doc})


@dataclass(frozen=True)
class RefresherSettings:
    """The section `[refresher]`."""

    name: str = _key(_name, None, "Who publishes, as it stands in the manifest; the host's name and pid by default.")
    log_format: str = _key(_log_format, "text", "`text` for people, or `json`: one object a line.")
    exchange_deadline: float = _key(
        _positive_duration, "15s", "After this long an exchange is killed; sooner when the window is short."
    )


@dataclass(frozen=True)
class CredentialSettings:
    """The section `[kerberos]`, and each `[credentials.NAME]`, which inherits from it what it does not set."""

    principal: str = _key(_principal, None, "Whose token this is. Without a realm, krb5.conf's default realm is meant.")
    keytab: str = _key(_keytab, None, "The keytab's path. It is opened anew for each exchange.")
    ccache: str = _key(_ccache, None, "Where the token is published: `/run/krbrefresh/NAME/krb5cc` by default.")
    mode: int = _key(_mode, "0440", "The ccache's mode, in octal, after every refresh.")
    group: int | None = _key(_group, None, "The workers' group, by name or number: of the ccache and its directory.")
    lifetime: float = _key(_lifetime, "10h", "The lifetime that is asked for. The KDC may give less.")
    renewable_lifetime: float = _key(
        _renewable_lifetime,
        "0s",
        "For how long the ticket can be renewed by who holds it; 0 asks for one that cannot be.",
    )
    forwardable: bool = _key(_boolean, "false", "Whether workers may forward the ticket to a service.")
    expiry_window: Share = _key(
        _share, "33%", "The last part of a token's life, in which it is refreshed: a share of it, or a duration."
    )
    name: str = "default"

    @property
    def fingerprint(self) -> str:
        """A short hash of the options that shape the token: another one means that a published token is outdated."""
        shape = [self.principal, self.lifetime, self.renewable_lifetime, self.forwardable]
        return hashlib.sha256(json.dumps(shape).encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Settings:
    """All settings of one refresher."""

    refresher: RefresherSettings
    credentials: tuple[CredentialSettings, ...]


T = TypeVar("T", "RefresherSettings", "CredentialSettings")

# A section's raw values: key -> (value, where it stands).
_Raw = dict[str, tuple[object, str]]


def load(config: str | None = None, environ: Mapping[str, str] = os.environ) -> Settings:
    """The settings from the file and the environment.

    Raises SettingsError, whose message names the source, the key, and what is wrong with its value.
    """
    sections = _read_file(config, environ)
    _read_environment(environ, sections)

    refresher = _build(RefresherSettings, sections.pop("refresher", {}))
    if not refresher.name:
        refresher = dataclasses.replace(refresher, name=f"{socket.gethostname()}:{os.getpid()}")

    shared = sections.pop("kerberos", {})
    credentials: list[CredentialSettings] = []
    if "principal" in shared:
        credentials.append(_credential("default", shared))
    else:
        _build(CredentialSettings, shared)  # its mistakes are worth a word even if nobody inherits them
        if "ccache" in shared:
            raise SettingsError(
                f"{shared['ccache'][1]}: it has no principal to go with, and is not inherited",
                hint="set principal in the same section, or ccache in each [credentials.NAME]",
            )
    inherited = {key: value for key, value in shared.items() if key not in _NOT_INHERITED}
    for name, raw in sections.items():
        if name == "default" and "principal" in shared:
            raise SettingsError("[credentials.default]: [kerberos] has a principal and is the credential 'default'")
        credentials.append(_credential(name, {**inherited, **raw}))
    if not credentials:
        raise SettingsError(
            "there is no credential to refresh",
            hint=f"set principal and keytab under [kerberos] in {DEFAULT_CONFIG}, or {ENV_PREFIX}KERBEROS__PRINCIPAL "
            f"and {ENV_PREFIX}KERBEROS__KEYTAB",
        )
    _refuse_shared_paths(credentials)
    return Settings(refresher, tuple(credentials))


def _read_file(config: str | None, environ: Mapping[str, str]) -> dict[str, _Raw]:
    path = config or environ.get("KRBREFRESH_CONFIG")
    if not path:
        if not os.path.exists(DEFAULT_CONFIG):
            return {}
        path = DEFAULT_CONFIG
    try:
        with open(path, "rb") as file:
            document = tomllib.load(file)
    except OSError as error:
        raise SettingsError(f"{path}: {error.strerror}", hint="correct --config or $KRBREFRESH_CONFIG") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: it is not TOML: {error}") from None
    sections: dict[str, _Raw] = {}
    for section, values in document.items():
        if section not in ("refresher", "kerberos", "credentials"):
            raise SettingsError(f"{path}: [{section}]: {_no_such('section', section, _SECTIONS)}")
        if not isinstance(values, dict):
            raise SettingsError(f"{path}: {section}: it has to be a section: [{section}]")
        if section != "credentials":
            sections[section] = {key: (value, f"{path}: [{section}] {key}") for key, value in values.items()}
            continue
        for name, keys in values.items():
            where = f"{path}: [credentials.{name}]"
            if not isinstance(keys, dict):
                raise SettingsError(f"{where}: it has to be a section of its own")
            _check_name(name, where)
            sections[name] = {key: (value, f"{where} {key}") for key, value in keys.items()}
    return sections


def _read_environment(environ: Mapping[str, str], sections: dict[str, _Raw]) -> None:
    for variable, value in sorted(environ.items()):
        if not variable.startswith(ENV_PREFIX):
            continue
        words = variable.removeprefix(ENV_PREFIX).lower().split("__")
        section, key = words[0], words[-1]
        if section == "credentials" and len(words) == 3:
            section = words[1]
            _check_name(section, variable)
        elif section not in ("refresher", "kerberos") or len(words) != 2:
            known = [f"{ENV_PREFIX}{name.upper()}__" for name in _SECTIONS]
            raise SettingsError(f"{variable}: {_no_such('setting', variable, known)}")
        sections.setdefault(section, {})[key] = value, variable


_SECTIONS = ("refresher", "kerberos", "credentials")


def _check_name(name: str, where: str) -> None:
    if not _CREDENTIAL_NAME.match(name) or name in _SECTIONS:
        raise SettingsError(f"{where}: a credential's name has lower-case letters, digits, - and _, and is no section")


def _credential(name: str, raw: _Raw) -> CredentialSettings:
    credential = dataclasses.replace(_build(CredentialSettings, raw), name=name)
    section = "kerberos" if name == "default" else f"credentials.{name}"
    for key in ("principal", "keytab"):
        if not getattr(credential, key):
            raise SettingsError(f"[{section}] {key}: it is not set, and nothing can stand in for it")
    if not credential.ccache:
        credential = dataclasses.replace(credential, ccache=f"/run/krbrefresh/{name}/krb5cc")
    return credential


def _build(kind: type[T], raw: _Raw) -> T:
    fields = {field.name: field for field in dataclasses.fields(kind) if field.metadata}
    values: dict[str, Any] = {}
    for key, (value, where) in raw.items():
        if key not in fields:
            raise SettingsError(f"{where}: {_no_such('key', key, fields)}")
        try:
            values[key] = fields[key].metadata["parse"](value)
        except (ValueError, OverflowError) as error:
            raise SettingsError(f"{where}: {error}") from None
    return kind(**values)


def _refuse_shared_paths(credentials: list[CredentialSettings]) -> None:
    owners: dict[str, str] = {}
    for credential in credentials:
        directory, file = os.path.split(credential.ccache)
        other = owners.setdefault(os.path.join(os.path.realpath(directory), file), credential.name)
        if other != credential.name:
            raise SettingsError(
                f"the credentials {other!r} and {credential.name!r} have one ccache, {credential.ccache}",
                hint="give each credential a ccache in a directory of its own",
            )


def _no_such(what: str, word: str, known: Iterable[str]) -> str:
    import difflib

    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"there is no such {what}" + (f"; did you mean {close[0]}?" if close else "")
