"""The settings: what can be set, with its default, how it is read, and what it is for.

Every error names the source and the key. docs/settings.md is made from the types below.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from ..errors import SettingsError
from . import sources, values
from .listen import Listen
from .policy import Share
from .sources import DEFAULT_CONFIG, ENV_PREFIX, Raw

_NOT_INHERITED = ("principal", "ccache")  # one value of these for several credentials would be a mistake
_RENEWABLE_BY_DEFAULT = "7d"  # with `method = "renew"`; otherwise a renewable ticket is of use to a thief alone


def _key(parse: Callable[[Any], Any], default: str | None, doc: str) -> Any:
    """A key of the settings: how its value is read, its default as it would be written, and what it is for."""
    value = None if default is None else parse(default)
    return dataclasses.field(default=value, metadata={"parse": parse, "default": default, "doc": doc})


@dataclass(frozen=True)
class RefresherSettings:
    """The section `[refresher]`."""

    name: str = _key(
        values.name, None, "Who publishes, as it stands in the manifest; the host's name and pid by default."
    )
    listen: Listen | None = _key(
        values.or_nothing(values.listen),
        "127.0.0.1:9464",
        "Where `/`, `/livez`, `/readyz` and `/metrics` are served, as `HOST:PORT`; an empty text turns it off.",
    )
    tls_certificate: str | None = _key(
        values.path, None, "A certificate chain (PEM), to serve HTTPS instead of HTTP. A rotated file is noticed."
    )
    tls_key: str | None = _key(values.path, None, "The certificate's private key (PEM, no passphrase).")
    tls_client_ca: str | None = _key(
        values.path, None, "CA certificates (PEM): who has no certificate of one of them is not answered."
    )
    log_format: str = _key(values.one_of("text", "json"), "text", "`text` for people, or `json`: one object a line.")
    exchange_deadline: float = _key(
        values.positive_duration, "15s", "After this long an exchange is killed; sooner when the window is short."
    )
    stop_path: str | None = _key(
        values.or_nothing(values.path),
        None,
        "`run` ends, as on TERM, when this file appears; it is looked for every 5 seconds.",
    )


@dataclass(frozen=True)
class CredentialSettings:
    """The section `[kerberos]`, and each `[credentials.NAME]`, which inherits from it what it does not set."""

    principal: str = _key(
        values.principal,
        None,
        "Whose token this is. Without a realm, krb5.conf's default realm is meant; a component `_HOST` becomes this "
        "host's name in lower case.",
    )
    keytab: str = _key(
        values.keytab,
        None,
        "The keytab's path. It is opened anew for each exchange. `$CREDENTIALS_DIRECTORY/keytab` by default, where "
        "systemd sets that variable.",
    )
    ccache: str = _key(values.ccache, None, "Where the token is published: `/run/krbrefresh/NAME/krb5cc` by default.")
    mode: int = _key(values.mode, "0440", "The ccache's mode, in octal, after every refresh.")
    group: int | None = _key(
        values.group, None, "The workers' group, by name or number: of the ccache and its directory."
    )
    lifetime: float = _key(values.lifetime, "10h", "The lifetime that is asked for. The KDC may give less.")
    renewable_lifetime: float = _key(
        values.renewable_lifetime,
        "0s",
        "For how long the ticket can be renewed by who holds it; `0s` asks for one that cannot be. With "
        f'`method = "renew"` it is `{_RENEWABLE_BY_DEFAULT}` by default.',
    )
    forwardable: bool = _key(values.boolean, "false", "Whether workers may forward the ticket to a service.")
    proxiable: bool = _key(values.boolean, "false", "Whether workers may get proxy tickets with it.")
    canonicalize: bool = _key(
        values.boolean,
        "false",
        "Whether the KDC may answer for another name of the principal: an alias, or an enterprise name "
        "(`user\\@suffix@REALM`, a UPN of Active Directory). The token's principal is then the KDC's.",
    )
    addressless: bool = _key(
        values.boolean,
        "true",
        "A ticket that is bound to no address of this host, whatever krb5.conf says; workers are elsewhere, often.",
    )
    fast_keytab: str | None = _key(
        values.keytab,
        None,
        "FAST armour (RFC 6113): the exchange is protected by a ticket of this keytab's principal, usually the "
        "host's. Without armour there is then no exchange.",
    )
    fast_principal: str | None = _key(
        values.principal, None, "The principal of `fast_keytab`; the first one in it by default."
    )
    fast_ccache: str | None = _key(
        values.ccache, None, "FAST armour from a ccache that somebody else keeps fresh, instead of `fast_keytab`."
    )
    services: tuple[str, ...] = _key(
        values.services,
        "",
        "Service principals, with their realms, whose tickets the refresher fetches and publishes, spelled as the "
        "workers' krb5.conf canonicalizes them; in a variable, separated by spaces or commas.",
    )
    include_tgt: bool = _key(
        values.boolean,
        "true",
        "Whether the token has the TGT. Without it workers can reach the `services` and nothing else.",
    )
    signing_key: str | None = _key(
        values.or_nothing(values.path),
        None,
        "An Ed25519 private key (PEM), as `krbrefresh keygen` makes it: tokens are signed with it. It is opened anew "
        "for each publication.",
    )
    expiry_window: Share = _key(
        values.share, "33%", "The last part of a token's life, in which it is refreshed: a share of it, or a duration."
    )
    method: str = _key(
        values.one_of("keytab", "renew"),
        "keytab",
        "`keytab`: a fresh AS exchange each time. `renew`: the TGT is renewed at the KDC, and made anew by keytab when "
        "less than half of its life would be left, or when it cannot be renewed.",
    )
    name: str = "default"

    @property
    def realm(self) -> str:
        """The principal's, as it is written; empty where it has none."""
        name, _, realm = re.sub(r"\\.", "x", self.principal).rpartition("@")
        return realm if name else ""

    @property
    def fingerprint(self) -> str:
        """A short hash of the options that shape the token: another one means that a published token is outdated.

        What has its default is left out, so that a later version with more options does not outdate every token.
        """
        shape = {"principal": self.principal, "lifetime": self.lifetime}
        for key, usual in _SHAPING.items():
            value = getattr(self, key)
            if value != usual:
                shape[key] = value
        return hashlib.sha256(json.dumps(shape, sort_keys=True).encode()).hexdigest()[:12]


_SHAPING = {
    "renewable_lifetime": 0.0,
    "forwardable": False,
    "proxiable": False,
    "canonicalize": False,
    "addressless": True,
    "services": (),
    "include_tgt": True,
    "signing_key": None,
}


@dataclass(frozen=True)
class Settings:
    """All settings of one refresher. `origins` says of each section's keys what was set, and where."""

    refresher: RefresherSettings
    credentials: tuple[CredentialSettings, ...]
    origins: Mapping[str, Raw] = dataclasses.field(default_factory=dict, compare=False, repr=False)


T = TypeVar("T", "RefresherSettings", "CredentialSettings")


def load(config: str | None = None, environ: Mapping[str, str] = os.environ, *, airflow: bool = False) -> Settings:
    """The settings from the file, the environment and, the weakest, Airflow's variables.

    Raises SettingsError, whose message names the source, the key, and what is wrong with its value.
    """
    sections = sources.read(config, environ, airflow=airflow)
    raw = sections.pop("refresher", {})
    origins = {"refresher": raw}
    refresher = _refresher(raw)

    shared = sections.pop("kerberos", {})
    credentials: list[CredentialSettings] = []

    def add(name: str, raw: Raw) -> None:
        if raw.get("method", ("", ""))[0] == "renew" and "renewable_lifetime" not in raw:
            raw = {**raw, "renewable_lifetime": (_RENEWABLE_BY_DEFAULT, 'default with method = "renew"')}
        origins[name] = raw
        credentials.append(_credential(name, raw, environ))

    if "principal" in shared:
        add("default", shared)
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
        add(name, {**inherited, **raw})
    if not credentials:
        raise SettingsError(
            "there is no credential to refresh",
            hint=f"set principal and keytab under [kerberos] in {DEFAULT_CONFIG}, or {ENV_PREFIX}KERBEROS__PRINCIPAL "
            f"and {ENV_PREFIX}KERBEROS__KEYTAB",
        )
    _refuse_shared_paths(credentials)
    return Settings(refresher, tuple(credentials), origins)


def title(name: str) -> str:
    """The title of a credential's section in the file."""
    return "kerberos" if name == "default" else f"credentials.{name}"


def _refresher(raw: Raw) -> RefresherSettings:
    refresher = _build(RefresherSettings, raw)
    if not refresher.name:
        refresher = dataclasses.replace(refresher, name=f"{socket.gethostname()}:{os.getpid()}")
    if bool(refresher.tls_certificate) != bool(refresher.tls_key):
        key = "tls_certificate" if refresher.tls_certificate else "tls_key"
        raise SettingsError(f"{raw[key][1]}: tls_certificate and tls_key need each other")
    if refresher.tls_client_ca and not refresher.tls_certificate:
        raise SettingsError(f"{raw['tls_client_ca'][1]}: without tls_certificate and tls_key there is no TLS")
    if refresher.listen:
        listen = dataclasses.replace(
            refresher.listen,
            certificate=refresher.tls_certificate,
            key=refresher.tls_key,
            client_ca=refresher.tls_client_ca,
        )
        refresher = dataclasses.replace(refresher, listen=listen)
    return refresher


def _credential(name: str, raw: Raw, environ: Mapping[str, str]) -> CredentialSettings:
    credential = dataclasses.replace(_build(CredentialSettings, raw), name=name)
    changes: dict[str, Any] = {}
    if not credential.keytab and environ.get("CREDENTIALS_DIRECTORY"):
        changes["keytab"] = os.path.join(environ["CREDENTIALS_DIRECTORY"], "keytab")
    if not credential.ccache:
        changes["ccache"] = f"/run/krbrefresh/{name}/krb5cc"
    credential = dataclasses.replace(credential, **changes)
    for key in ("principal", "keytab"):
        if not getattr(credential, key):
            raise SettingsError(f"[{title(name)}] {key}: it is not set, and nothing can stand in for it")
    if credential.method == "renew" and not credential.renewable_lifetime:
        raise SettingsError(f'{raw["renewable_lifetime"][1]}: method = "renew" needs a ticket that can be renewed')
    if not credential.include_tgt:
        where = raw["include_tgt"][1]
        if not credential.services:
            raise SettingsError(
                f"{where}: without the TGT there is nothing to publish", hint="name the services that workers need"
            )
        if credential.method == "renew":
            raise SettingsError(f'{where}: method = "renew" renews the published TGT, and there would be none')
    if credential.fast_keytab and credential.fast_ccache:
        raise SettingsError(f"{raw['fast_ccache'][1]}: there is a fast_keytab, too; set one of them")
    if credential.fast_principal and not credential.fast_keytab:
        raise SettingsError(f"{raw['fast_principal'][1]}: there is no fast_keytab to take it from")
    return credential


def _build(kind: type[T], raw: Raw) -> T:
    fields = {field.name: field for field in dataclasses.fields(kind) if field.metadata}
    read: dict[str, Any] = {}
    for key, (value, where) in raw.items():
        if key not in fields:
            raise SettingsError(f"{where}: {sources.no_such('key', key, fields)}")
        try:
            read[key] = fields[key].metadata["parse"](value)
        except (ValueError, OverflowError) as error:
            raise SettingsError(f"{where}: {error}") from None
    return kind(**read)


def _refuse_shared_paths(credentials: list[CredentialSettings]) -> None:
    owners: dict[str, str] = {}
    for credential in credentials:  # by name: a file system can hang; layout.py looks at the rest
        other = owners.setdefault(credential.ccache, credential.name)
        if other != credential.name:
            raise SettingsError(
                f"the credentials {other!r} and {credential.name!r} have one ccache, {credential.ccache}",
                hint="give each credential a ccache in a directory of its own",
            )
