"""The doctor's checks that ask a KDC: exchanges, clocks, what was given, and which KDCs take a connection.

One attempt for each credential, by keytab, and none with `offline`, with a keytab that will not do, or where the
refresher that runs here has just been refused. What an exchange brings is thrown away.
"""

from __future__ import annotations

import asyncio
import re
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from .. import krb5conf
from .._flags import TicketFlags
from .._text import seconds_text
from ..doctor import FAIL, OK, WARN, Check, Checks
from ..errors import REJECTED, RefreshError
from ..token import Token
from .child import Exchanged, Exchanger
from .settings import CredentialSettings, Settings

_CONNECT_WITHIN = 2.0  # seconds
_MAX_KDCS = 5
_CLOCK_OFF = 5.0  # seconds
_CLOCK_SKEW = 300.0  # what MIT's libraries and Active Directory forgive (krb5.conf(5), `clockskew`)
_NEARLY = 0.9  # of a lifetime: less is worth a word
_WITH_PORT = re.compile(r"(\[.*\]|[^:]*):(\d+)\Z")


@dataclass
class Known:
    """What the checks so far have found, for the later ones.

    `directories`: the token directories, as layout.real_directories gives them; `child`: why there is no child process
    that could look or ask; `realm`: the default realm; `refused`: by credential, why the refresher that runs here is
    refused; `keys`: by credential, its keys, where the keytab will do; `answers`: the child's, to what was asked of it.
    """

    settings: Settings | None = None
    directories: dict[str, str] = field(default_factory=dict)
    child: str = ""
    realm: str | None = None
    refused: dict[str, RefreshError] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)
    answers: list[dict[str, Any]] = field(default_factory=list)

    @property
    def credentials(self) -> tuple[CredentialSettings, ...]:
        """Those of the settings, if there are any."""
        return self.settings.credentials if self.settings else ()

    def realm_of(self, credential: CredentialSettings) -> str:
        """The realm whose KDCs are asked for a credential; empty where there is none."""
        return credential.realm or self.realm or ""


@dataclass(frozen=True)
class _Tried:
    """What an exchange came to, how long it took, and which services have no ticket."""

    seconds: float
    ccache: bytes = b""
    error: RefreshError | None = None
    refused: dict[str, RefreshError] = field(default_factory=dict)


def kdcs_text(conf: krb5conf.Krb5Conf, realm: str) -> str:
    """Where libkrb5 finds a realm's KDCs."""
    found = _kdcs(conf, realm)
    return f"KDC {', '.join(found)}" if found else "KDCs from DNS"


def _kdcs(conf: krb5conf.Krb5Conf, realm: str) -> list[str]:
    """The realm's KDCs as krb5.conf names them: hosts with or without a port, or URLs of proxies."""
    return [word for value in conf.values("realms", realm, "kdc") for word in value.split()]


def exchanges(known: Known, conf: krb5conf.Krb5Conf, *, offline: bool) -> Checks[None]:
    """An exchange for each credential that may have one, and what it tells."""
    assert known.settings is not None
    to_try = []
    for credential in known.settings.credentials:
        name = credential.name
        if offline:
            yield Check(OK, "exchange", "not tried: --offline", subject=name)
        elif name not in known.keys:
            why = known.child or "the keytab will not do"
            yield Check(WARN, "exchange", f"not tried: {why}", "correct that first; no KDC has been asked", name)
        elif name in known.refused:
            told = known.refused[name]
            yield Check(
                FAIL,
                "exchange",
                f"{told.reason}: {told}; not tried again, since one more attempt could lock the account",
                f"{told.hint}; a new keytab is tried at once",
                name,
            )
        else:
            to_try.append(credential)
    tried = asyncio.run(_try_all(to_try, known.settings.refresher.exchange_deadline)) if to_try else {}
    silent: dict[str, None] = {}
    clocks: set[str] = set()
    for credential in to_try:
        realm = known.realm_of(credential)
        for check in _exchange(credential, tried[credential.name], known.keys[credential.name], realm, clocks):
            yield check.about(credential.name)
        error = tried[credential.name].error
        if error and error.reason in ("kdc_unreachable", "kdc_timeout"):
            silent[realm] = None
    for realm in silent:
        yield from _kdc(conf, realm)


async def _try_all(credentials: list[CredentialSettings], deadline: float) -> dict[str, _Tried]:
    """One exchange for each, several at a time; those of one principal one after the other, and none after one that the
    KDC refused: each attempt counts towards a lockout."""
    exchanger = Exchanger()
    tried: dict[str, _Tried] = {}
    principals: dict[str, list[CredentialSettings]] = {}
    for credential in credentials:
        principals.setdefault(credential.principal, []).append(credential)

    async def try_these(same: list[CredentialSettings]) -> None:
        refused: RefreshError | None = None
        for credential in same:
            began = time.monotonic()
            error, exchanged = refused, Exchanged()
            if not refused:
                try:
                    exchanged = await exchanger.exchange(credential, deadline, fresh=True)
                    error = exchanged.error
                except RefreshError as caught:
                    error = caught
            if error and error.retry == REJECTED:
                refused = error
            tried[credential.name] = _Tried(time.monotonic() - began, exchanged.ccache, error, exchanged.refused)

    await asyncio.gather(*map(try_these, principals.values()))
    await exchanger.close()
    return tried


def _exchange(
    credential: CredentialSettings, tried: _Tried, keys: str, realm: str, clocks: set[str]
) -> Iterator[Check]:
    error = tried.error
    if error:
        message, hint = f"{error.reason}: {error}", error.hint
        if error.reason == "key_rejected":
            message += f"; the keytab has {keys}"
            hint = (
                f"{hint}. Compare with the account's kvno (kadmin: getprinc; Active Directory: msDS-KeyVersionNumber)"
            )
        if error.retry == REJECTED:
            message += "; this was one attempt, which counts towards a lockout"
        yield Check(FAIL, "exchange", message, hint)
        return
    token = Token.parse(tried.ccache)
    yield Check(OK, "exchange", f"the KDC gave a ticket of {token.principal} after {_milliseconds(tried.seconds)}")
    if realm not in clocks:
        clocks.add(realm)
        yield _clock(token.offset, realm)
    yield _ticket(credential, token)
    for refused in tried.refused.values():
        yield Check(FAIL, "services", f"{refused.reason}: {refused}", refused.hint)
    if credential.services and not tried.refused:
        plural = "" if len(credential.services) == 1 else "s"
        yield Check(OK, "services", f"the KDC gave the ticket{plural} of {len(credential.services)} service{plural}")


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


def _clock(offset: float, realm: str) -> Check:
    if abs(offset) <= _CLOCK_OFF:
        apart = f"{offset:+.0f} s" if abs(offset) >= 1 else "less than a second"
        return Check(OK, "clock", f"the KDC of {realm} is {apart} from this machine's")
    where = "ahead of" if offset > 0 else "behind"
    effect = "the token carries the correction, for libkrb5"
    if abs(offset) > _CLOCK_SKEW:
        effect += "; a program that does not read it is refused by services"
    return Check(
        WARN,
        "clock",
        f"the KDC of {realm} is {seconds_text(offset)} {where} this machine's clock: {effect}",
        "set the clock here or there: chronyc tracking, timedatectl; a container has its host's clock",
    )


def _ticket(credential: CredentialSettings, token: Token) -> Check:
    life = token.expires - token.starts
    given = f"{seconds_text(credential.lifetime)} asked for, {seconds_text(life)} given"
    wants = credential.renewable_lifetime
    # A KDC that allows no renewal may give a ticket that is called renewable, until now.
    until = token.renew_until.timestamp() if token.renew_until else 0.0
    renewable = TicketFlags.RENEWABLE in token.flags and until > token.expires
    if renewable:
        given += f"; renewable for {seconds_text(until - token.starts)}"
    problems = []
    if life < credential.lifetime * _NEARLY:
        problems.append("the KDC gives less: set lifetime to that, or raise maxlife of principal, krbtgt and realm")
    if wants and not renewable:
        effect = "; each refresh is by keytab until then" if credential.method == "renew" else ""
        problems.append(f"the KDC gives no renewable ticket: raise maxrenewlife of principal and krbtgt{effect}")
    return Check(WARN if problems else OK, "ticket", given, "; ".join(problems))


def _kdc(conf: krb5conf.Krb5Conf, realm: str) -> Checks[None]:
    """Which of the KDCs of a realm that did not answer take a connection at all: libkrb5 does not tell."""
    kdcs = _kdcs(conf, realm)
    if not kdcs:
        yield Check(
            WARN,
            "kdc",
            f"krb5.conf names no KDC of {realm}: libkrb5 asks DNS for _kerberos._udp.{realm}",
            f"dig +short SRV _kerberos._udp.{realm}; or name the KDCs in krb5.conf",
        )
    for kdc in kdcs[:_MAX_KDCS]:
        if "://" in kdc:
            continue  # a proxy (MS-KKDCP)
        found = _WITH_PORT.match(kdc)
        host, port = (found[1], found[2]) if found else (kdc, "88")
        try:
            socket.create_connection((host.strip("[]"), int(port)), _CONNECT_WITHIN).close()
        except OSError as error:
            yield Check(
                WARN,
                "kdc",
                f"{kdc}, a KDC of {realm}, takes no TCP connection: {error.strerror or error}",
                "refused: it does not run; no answer: a firewall or route; name not known: DNS or krb5.conf",
            )
        else:
            hint = "ask who runs it: it may be hung or overloaded, or UDP port 88 may be closed on the way"
            yield Check(WARN, "kdc", f"{kdc}, a KDC of {realm}, takes TCP connections, and gave no answer", hint)
