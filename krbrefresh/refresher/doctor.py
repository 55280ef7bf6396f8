"""The refresher's checks of `krbrefresh doctor`: settings, this machine's libraries, keytabs; and the order of all.

Looks only. Nothing is written, and no lock is taken. docs/doctor.md lists all checks.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import stat
from collections.abc import Generator, Iterable, Iterator
from typing import Any

from .. import __version__, krb5conf
from .._text import moment_text
from ..doctor import FAIL, OK, WARN, Check, Checks, guarded, names, user_text
from ..errors import (
    REFRESH_REASONS,
    REJECTED,
    KrbrefreshError,
    LayoutError,
    NotInstalledError,
    RefreshError,
    SettingsError,
)
from . import layout
from .child import look
from .doctor_kdc import Known, exchanges, kdcs_text
from .doctor_volume import (
    check_layout,
    check_leftovers,
    check_token,
    check_volume,
    directory_owner,
    run_as,
    user_name,
)
from .layout import Destination
from .settings import CredentialSettings, load

_LOOK_WITHIN = 15.0  # seconds, for the child that looks at all keytabs
_ANSWER_WITHIN = 2.0
_PARTS = {"h11": "health pages and metrics", "inotify_simple": "hearing of changes", "prometheus_client": "metrics"}
_WEAK = ("des", "rc4", "arcfour")  # RFC 6649 and RFC 8429 have buried these


def refresher(config: str | None, *, airflow: bool, offline: bool, found: str) -> Iterator[Check]:
    """All checks of a refresher whose settings are `found` there, one by one as they are made."""
    yield Check(OK, "side", f"refresher (settings from {found}; --worker looks as a worker would)")
    known = Known()
    yield from guarded("settings", lambda: _settings(known, config, airflow))
    credentials = known.credentials
    known.directories = layout.real_directories(Destination.of(each) for each in credentials)
    yield from guarded("user", lambda: _user(credentials))
    yield from guarded("package", lambda: _package(known))
    conf = krb5conf.read()
    yield from guarded("krb5.conf", lambda: _krb5_conf(known, conf))
    if not known.answers or not known.answers[0].get("problem"):  # what a file that is refused says does not count
        yield from guarded("names", lambda: names(conf))
    if not known.settings:
        return
    yield from guarded("listen", lambda: _listen(known))
    for number, credential in enumerate(credentials):
        yield from _each("keytab", credential, _keytab(known, credential, number))
        yield from _each("signing", credential, _signing_key(known, credential))
    yield from guarded("exchange", lambda: exchanges(known, conf, offline=offline))
    for credential in credentials:
        yield from _each("layout", credential, check_layout(credential))
        yield from _each("volume", credential, check_volume(credential))
        yield from _each("leftover", credential, check_leftovers(credential))
        yield from _each("token", credential, check_token(credential))


def _each(name: str, credential: CredentialSettings, checks: Generator[Check, None, None]) -> Iterator[Check]:
    for check in guarded(name, lambda: checks):
        yield check.about(credential.name)


# --- this process ---


def _settings(known: Known, config: str | None, airflow: bool) -> Checks[None]:
    try:
        known.settings = load(config, airflow=airflow)
    except SettingsError as error:
        hint = error.hint
        if "keytab: it is not set" in str(error) and "CREDENTIALS_DIRECTORY" not in os.environ:
            hint = (
                "set keytab; or, where systemd loads it as a credential, run doctor with "
                "CREDENTIALS_DIRECTORY=/run/credentials/krbrefresh.service"
            )
        yield Check(FAIL, "settings", str(error), f"{hint}; nothing can be looked at for a credential until then")
        return
    credentials = known.settings.credentials
    shown = ", ".join(each.name for each in credentials[:5]) + (", ..." if len(credentials) > 5 else "")
    plural = "" if len(credentials) == 1 else "s"
    yield Check(OK, "settings", f"{len(credentials)} credential{plural}: {shown} (krbrefresh config shows them all)")


def _user(credentials: Iterable[CredentialSettings]) -> Checks[None]:
    others = {uid for uid in (directory_owner(each) for each in credentials) if uid}
    if os.geteuid() or not others:
        yield Check(OK, "user", user_text())
        return
    uid = min(others)
    yield Check(
        WARN,
        "user",
        f"this is root, and token directories belong to {user_name(uid)}: what root may do says little about it",
        f"run it as the refresher's user: {run_as(uid)}",
    )


def _package(known: Known) -> Checks[None]:
    requests: list[dict[str, Any]] = [{"look_at": "library"}]
    looked_at: list[tuple[str, str | None]] = [(each.keytab, each.principal) for each in known.credentials]
    looked_at += [(path, each.fast_principal) for each, path in _armours(known)]
    requests += [{"look_at": "keytab", "keytab": path, "principal": name} for path, name in looked_at]
    try:
        known.answers = look(requests, _LOOK_WITHIN)
    except KrbrefreshError as error:
        known.child = str(error)
        hint = error.hint
        if isinstance(error, NotInstalledError):
            hint += "; or, on a worker's machine, run doctor --worker"
        yield Check(FAIL, "package", f"no exchange can be made: {error.reason}: {error}", hint)
        return
    library = known.answers[0]
    known.realm = library.get("realm")
    version = _version("krb5")
    if library.get("marshals"):
        python = platform.python_version()
        yield Check(OK, "package", f"krbrefresh {__version__}, krb5 {version}, Python {python}: libkrb5 is new enough")
    else:
        known.child = "libkrb5 is too old"
        yield Check(
            FAIL,
            "package",
            f"krb5 {version} was compiled against a libkrb5 that cannot marshal credentials: no exchange is possible",
            "install it again (pip install --force-reinstall --no-binary krb5 krb5) beside MIT krb5 1.20 or newer",
        )
    for part, use in _PARTS.items():
        if importlib.util.find_spec(part) is None:
            yield Check(
                FAIL,
                "package",
                f"the package {part} is not installed here ({use}): krbrefresh run needs it",
                "pip install 'krbrefresh[refresher]'",
            )


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "of unknown version"


def _krb5_conf(known: Known, conf: krb5conf.Krb5Conf) -> Checks[None]:
    problem = known.answers[0].get("problem") if known.answers else None
    if problem:
        where = "; ".join([*conf.problems[:1], *conf.absent]) or "no line of it looks wrong to the doctor"
        yield Check(FAIL, "krb5.conf", f"krb5_config: {problem}: {where}", REFRESH_REASONS["krb5_config"][1])
        return
    if not conf.read:
        yield Check(
            WARN,
            "krb5.conf",
            "; ".join(conf.absent) or "no file is named",
            "without it realm and KDCs come from DNS alone: mount it here, or correct $KRB5_CONFIG",
        )
        return
    yield from _open_to_others(conf.read, {0, os.geteuid(), *map(directory_owner, known.credentials)})
    realms = sorted({realm for each in known.credentials if (realm := known.realm_of(each))})
    said = [f"default realm {known.realm or 'not set'}", *(f"{realm}: {kdcs_text(conf, realm)}" for realm in realms)]
    yield Check(OK, "krb5.conf", f"{', '.join(conf.read)}: {'; '.join(said)}")
    if any("@" not in each.principal for each in known.credentials) and not known.realm:
        yield Check(
            FAIL,
            "krb5.conf",
            "a principal in the settings has no realm, and there is no default realm",
            "write the principal as NAME@REALM, or set default_realm in krb5.conf",
        )


def _open_to_others(paths: Iterable[str], owners: set[int | None]) -> Checks[None]:
    """A krb5.conf can name a module that libkrb5 loads (krb5.conf(5), `[plugins]`): who may write to it runs code where
    the keytab is opened."""
    for path in paths:
        found = os.stat(path)
        by_group = found.st_mode & 0o020 and found.st_gid  # root's own group is root
        if found.st_mode & 0o002 or by_group or found.st_uid not in owners:
            yield Check(
                FAIL,
                "krb5.conf",
                f"{path}: others than root and the refresher may write to it (uid {found.st_uid}, group "
                f"{found.st_gid}, mode {stat.S_IMODE(found.st_mode):04o}), and it can name code that runs where the "
                "keytab is opened",
                f"chown root {path} && chmod go-w {path}; no worker may write to the refresher's krb5.conf",
            )


def _armours(known: Known) -> list[tuple[CredentialSettings, str]]:
    return [(each, each.fast_keytab) for each in known.credentials if each.fast_keytab]


# --- the refresher that runs here, if one does ---


def _listen(known: Known) -> Checks[None]:
    assert known.settings is not None
    listen = known.settings.refresher.listen
    if not listen or not listen.port or listen.client_ca:
        why = "listen is empty" if not listen else "any port" if not listen.port else "who asks needs a certificate"
        yield Check(OK, "listen", f"not asked: {why}")
        return
    try:
        status, body = _readyz(listen)
    except OSError as error:
        yield Check(
            WARN,
            "listen",
            f"{listen} does not answer: {error.strerror or error}",
            "no refresher runs here, perhaps; if one should: systemctl status krbrefresh, or its container's log",
        )
        return
    troubled = [(name, state) for name, state in _states(body) if state.get("reason")]
    for name, state in troubled:
        reason, failures = state["reason"], state.get("consecutive_failures")
        if REFRESH_REASONS.get(reason, ("",))[0] == REJECTED:
            known.refused[name] = RefreshError(
                reason, f"so the refresher that runs here was told (failures in a row: {failures})"
            )
    said = f"{listen}: a refresher answers, /readyz says {status}"
    if status == 200 and not troubled:
        yield Check(OK, "listen", said)
        return
    told = ", ".join(f"{name} {state.get('state')}: {state['reason']}" for name, state in troubled)
    yield Check(
        WARN,
        "listen",
        said + (f" ({told})" if told else ""),
        "its log has the whole story; the lines of exchange and token say what can be seen from here",
    )


def _readyz(listen: Any) -> tuple[int, bytes]:
    """What /readyz says. Raises OSError where nobody answers."""
    import http.client

    anywhere = "0.0.0.0"  # nothing is bound here: it asks who listens there  # noqa: S104  # nosec B104
    host = {anywhere: "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(listen.host, listen.host)
    if listen.certificate:
        import ssl

        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # who answers here is not the question
        connection: http.client.HTTPConnection = http.client.HTTPSConnection(
            host, listen.port, timeout=_ANSWER_WITHIN, context=context
        )
    else:
        connection = http.client.HTTPConnection(host, listen.port, timeout=_ANSWER_WITHIN)
    try:
        connection.request("GET", "/readyz")
        answer = connection.getresponse()
        return answer.status, answer.read(1 << 20)
    except http.client.HTTPException as error:
        raise OSError(0, f"what answers there does not speak HTTP: {type(error).__name__}") from None
    finally:
        connection.close()


def _states(body: bytes) -> list[tuple[str, dict[str, Any]]]:
    """Each credential's name and state in what /readyz said; nothing where it is not understood."""
    import json

    try:
        document = json.loads(body)
        credentials = document["credentials"]
        if isinstance(credentials, dict):
            return [(name, state) for name, state in credentials.items() if isinstance(state, dict)]
        return [(state["name"], state) for state in credentials]
    except (ValueError, LookupError, TypeError):
        return []


# --- keytabs ---


def _keytab(known: Known, credential: CredentialSettings, number: int) -> Checks[None]:
    answers = known.answers[1:]
    usable = yield from _one_keytab(known, credential.keytab, answers[number] if answers else None)
    for position, (each, path) in enumerate(_armours(known)):
        if each is credential and answers:
            armour = yield from _one_keytab(known, path, answers[len(known.credentials) + position], "FAST armour: ")
            usable = armour and usable
    if usable:
        known.keys[credential.name] = usable


def _one_keytab(known: Known, path: str, answer: dict[str, Any] | None, what: str = "") -> Checks[str]:
    """The checks of a keytab; gives its keys in words, or nothing where no exchange can be made with it."""
    try:
        warning = layout.judge_keytab(path, known.directories)
    except LayoutError as error:
        warning = None
        yield Check(FAIL, "keytab", f"{what}{error}", error.hint)
    if warning:
        yield Check(WARN, "keytab", f"{what}{path}: {warning}", f"chmod 0400 {path}, if the refresher owns it")
    if answer is None:
        if not os.path.exists(path):
            missing = RefreshError("keytab_missing", f"{path}: there is no such keytab")
            yield Check(FAIL, "keytab", f"{what}{missing.reason}: {missing}", missing.hint)
        else:
            yield Check(WARN, "keytab", f"{what}{path}: not looked into: {known.child}", "see the line of package")
        return ""
    if "reason" in answer:
        reason = answer["reason"]
        hint = answer.get("hint") or REFRESH_REASONS[reason][1]
        yield Check(FAIL, "keytab", f"{what}{reason}: {answer['message']}", hint)
        return ""
    keys, weak = _keys_text(answer)
    yield Check(OK, "keytab", f"{what}{path}: {keys}")
    if weak:
        yield Check(
            WARN,
            "keytab",
            f"{what}all keys of {answer['principal']} are of weak enctypes",
            "export the keytab with aes256-cts or aes128-cts keys, before the KDC or libkrb5 drops the weak ones",
        )
    return keys


def _signing_key(known: Known, credential: CredentialSettings) -> Checks[None]:
    path = credential.signing_key
    if not path:
        return
    try:
        warning = layout.judge_key(path, known.directories, "signing key")
        from ..signature import PrivateKey

        key = PrivateKey.load(path)
    except KrbrefreshError as error:
        yield Check(FAIL, "signing", str(error), error.hint)
        return
    if warning:
        yield Check(WARN, "signing", f"{path}: {warning}", f"chmod 0400 {path}, if the refresher owns it")
    yield Check(OK, "signing", f"{path}: tokens are signed with the key {key.key_id}")


def _keys_text(answer: dict[str, Any]) -> tuple[str, bool]:
    """A principal's keys in words, and whether they are all weak."""
    name = answer["principal"]
    ours = [key for key in answer["keys"] if key["principal"] == name]
    newest = max(key["kvno"] for key in ours)
    enctypes = dict.fromkeys(key["enctype"] for key in ours if key["kvno"] == newest)
    written = max(key["written_at"] for key in ours if key["kvno"] == newest)
    text = f"{name} kvno {newest} {', '.join(enctypes)}"
    if written:
        text += f" (of {moment_text(written)[:10]})"
    older = sorted({key["kvno"] for key in ours} - {newest})
    if older:
        text += f"; older kvno {', '.join(map(str, older))}"
    others = sorted({key["principal"] for key in answer["keys"]} - {name})
    if others:
        text += f"; also keys of {', '.join(others[:3])}" + (f" and {len(others) - 3} more" if len(others) > 3 else "")
    return text, all(enctype.startswith(_WEAK) for enctype in enctypes)
