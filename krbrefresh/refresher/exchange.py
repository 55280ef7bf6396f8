"""The exchange with the KDC: the only module that imports krb5 and opens a keytab. Runs as a child process.

The parent (child.py) writes requests to standard input, a line of JSON each, and reads replies from standard output:
a line of JSON and, where it says so, that many bytes of a whole ccache. The ticket exists in this process's memory and
in that pipe, nowhere else. The process dies with its parent, leaves no core dump, and cannot be traced by its own user.
A request that says `look_at` is the doctor's: no KDC is asked.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import signal
import stat
import sys
import time
from typing import Any

import krb5

from .. import ccache
from ..client import load
from ..errors import RefreshError, TokenError
from .files import Files, identities, worked_with
from .isolation import no_core_dump

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_PR_SET_DUMPABLE = 4

_BASE = -1765328384  # ERROR_TABLE_BASE_krb5; the numbers below it are RFC 4120's (7.5.9) up to 127, libkrb5's beyond
_REASONS = {
    1: "client_expired",  # KDC_ERR_NAME_EXP: the account
    6: "client_unknown",  # KDC_ERR_C_PRINCIPAL_UNKNOWN
    7: "service_unknown",  # KDC_ERR_S_PRINCIPAL_UNKNOWN
    9: "key_rejected",  # KDC_ERR_NULL_KEY: the account has no key at all
    10: "policy_refused",  # KDC_ERR_CANNOT_POSTDATE
    11: "policy_refused",  # KDC_ERR_NEVER_VALID: the lifetime comes out as nothing
    12: "policy_refused",  # KDC_ERR_POLICY; Heimdal's answer for a disabled account
    13: "policy_refused",  # KDC_ERR_BADOPTION
    14: "enctype_unsupported",  # KDC_ERR_ETYPE_NOSUPP
    18: "client_revoked",  # KDC_ERR_CLIENT_REVOKED: disabled, locked; Active Directory: expired too
    21: "policy_refused",  # KDC_ERR_CLIENT_NOTYET
    23: "client_expired",  # KDC_ERR_KEY_EXPIRED: the password
    24: "key_rejected",  # KDC_ERR_PREAUTH_FAILED
    29: "kdc_unreachable",  # KDC_ERR_SVC_UNAVAILABLE
    31: "key_rejected",  # KRB_AP_ERR_BAD_INTEGRITY: the reply does not decrypt, where no preauthentication is required
    37: "clock_skew",  # KRB_AP_ERR_SKEW
    68: "client_unknown",  # KDC_ERR_WRONG_REALM
    135: "krb5_config",  # KRB5_CONFIG_CANTOPEN
    136: "krb5_config",  # KRB5_CONFIG_BADFORMAT
    148: "clock_skew",  # KRB5_KDCREP_SKEW
    150: "enctype_unsupported",  # KRB5_PROG_ETYPE_NOSUPP
    154: "krb5_config",  # KRB5_REALM_UNKNOWN: no KDC in krb5.conf, nor in DNS
    156: "kdc_unreachable",  # KRB5_KDC_UNREACH: refused, hung or not resolvable
    # KRB5_KT_NOTFOUND, in a keytab that was found to have the principal: no key of the account's enctype.
    181: "enctype_unsupported",
    210: "enctype_unsupported",  # KRB5_PREAUTH_FAILED; likewise, or the KDC wants what no keytab can give
    224: "krb5_config",  # KRB5_CONFIG_NODEFREALM
    230: "enctype_unsupported",  # KRB5_KT_KVNONOTFOUND
    236: "enctype_unsupported",  # KRB5_NOPERM_ETYPE
    237: "krb5_config",  # KRB5_CONFIG_ETYPE_NOSUPP
}


_SKEW = 60  # seconds of clock offset, and of difference in life, that are worth a second exchange
_ARMOUR_LIFETIME = 300  # seconds; it is used once, at once
_ARMOUR_HINT = "who keeps the armour's ccache fresh, and where?"
_NO_ARMOUR = (
    _BASE + 141,
    _BASE + 195,
)  # KRB5_CC_NOTFOUND, KRB5_FCC_NOFILE: no ticket of use in it, or it has just gone

# krb5.conf(5), `noaddresses`, in a file that is named before krb5.conf: the package krb5 has no call for addresses.
_ADDRESSLESS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "addressless.conf")
_ADDRESSES = os.path.join(os.path.dirname(_ADDRESSLESS), "addresses.conf")
_GIVEN_KRB5_CONFIG = os.environ.get("KRB5_CONFIG")
_KRB5_CONFIG = _GIVEN_KRB5_CONFIG or "/etc/krb5.conf"  # libkrb5's own default


# What the system's calls say where libkrb5 passes it on: EAGAIN is a DNS that fails for the moment.
_UNREACHABLE = frozenset(
    getattr(errno, name)
    for name in (
        "EAGAIN",
        "ECONNABORTED",
        "ECONNREFUSED",
        "ECONNRESET",
        "EHOSTUNREACH",
        "ENETDOWN",
        "ENETUNREACH",
        "EPIPE",
        "ETIMEDOUT",
    )
)

# What libkrb5 says of an answer that is none: its ASN.1 decoder's numbers (asn1_err.et), KRB_AP_ERR_MSG_TYPE, and
# KRB5_KDCREP_MODIFIED, an answer to something else.
_NO_ANSWER = frozenset((*range(1859794432, 1859794446), _BASE + 40, _BASE + 147))
_NO_ANSWER_HINT = (
    "what came from the KDC's address does not answer what was asked: a packet that was damaged or cut on the way, or "
    "something else that listens there. Compare a capture of the KDC's port on both sides"
)


class ArmourError(RefreshError):
    """It is the FAST armour that is not to be had, or of no use."""

    def __init__(self, error: RefreshError) -> None:
        super().__init__(error.reason, f"FAST armour: {error}", hint=error.hint, code=error.code)


def classify(code: int) -> str:
    """The reason that libkrb5's number means; `internal` for one that nobody has met yet."""
    if code in _UNREACHABLE:
        return "kdc_unreachable"
    return _REASONS.get(code - _BASE, "internal")


def exchange(request: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
    """What the KDC gives for a request: `method`, how it was had (`keytab` or `renew`), and a ccache: header with the
    KDC's time offset, principal, the TGT if it is to be included, the tickets of the `services`.

    `request` has the credential's settings by their names, and `fingerprint`. One call is one attempt at the KDC with
    the keytab, and none where the keytab will not do; a second follows only on a success, where this machine's clock is
    far off. With `method` "renew" the published TGT is renewed if that is of use, and the reply has a `warning` if the
    keytab would not do. The reply's `refused` are the services whose tickets are not to be had, each with
    `service`, `reason` and `message`; they withhold nothing else. Raises RefreshError.
    """
    if not hasattr(krb5, "marshal_credentials"):
        raise RefreshError(
            "internal",
            "the package krb5 was compiled against a libkrb5 that cannot marshal credentials",
            hint="install it again (pip install --force-reinstall --no-binary krb5 krb5) beside MIT krb5 1.20 or newer",
        )
    context = _context(addressless=request["addressless"])
    principal = _parse(context, request["principal"])
    if request["canonicalize"]:
        principal = _as_enterprise(context, principal)
    if request["method"] == "renew":
        renewed = _renew(context, principal, request)
        if renewed is not None:
            reply = {"method": "renew", "warning": _trouble(context, request["keytab"], principal)}
            return _with_services(context, renewed, request, reply)

    keytab = _open_keytab(context, request["keytab"], principal)
    options = _options(context, request)
    armour = _armour(context, request)  # it has to outlive the exchange
    if armour is not None:
        krb5.get_init_creds_opt_set_fast_ccache(context, options, armour)
        krb5.get_init_creds_opt_set_fast_flags(context, options, krb5.FastFlags.required)
    try:
        credentials = _ask(context, principal, options, keytab)
    except RefreshError as error:
        if armour is not None and error.code in _NO_ARMOUR:
            raise ArmourError(RefreshError("krb5_config", str(error), hint=_ARMOUR_HINT, code=error.code)) from None
        raise
    # Where no preauthentication is required, the request's end was reckoned by a clock that may be far off: behind, and
    # the ticket is too short or over already; ahead, and it is too long. The reply has put the context's clock right.
    offset = krb5.get_time_offsets(context)
    if abs(offset[0]) > _SKEW and abs(_life(credentials) - request["lifetime"]) > _SKEW:
        credentials = _ask(context, principal, options, keytab)
    return _with_services(context, credentials, request, {"method": "keytab"})


def _with_services(
    context: krb5.Context, tgt: krb5.Creds, request: dict[str, Any], reply: dict[str, Any]
) -> tuple[dict[str, Any], bytes]:
    """The reply and the ccache: the TGT, if it is to be included, and the services' tickets, fetched with it.

    Raises RefreshError where there would be no ticket at all.
    """
    included = [tgt] if request["include_tgt"] else []
    if not request["services"]:
        return {**reply, "refused": []}, _ccache(context, tgt.client, included)
    tickets, refused = _fetch(context, tgt, request["services"])
    if not tickets and not included:
        raise RefreshError(refused[0]["reason"], refused[0]["message"])
    return {**reply, "refused": refused}, _ccache(context, tgt.client, [*included, *tickets])


def _fetch(
    context: krb5.Context, tgt: krb5.Creds, services: list[str]
) -> tuple[list[krb5.Creds], list[dict[str, str]]]:
    """The services' tickets, and which of them the KDC does not give. The package krb5 has no TGS call; GSSAPI leaves
    the ticket of each context that it begins in the ccache it was given."""
    import gssapi  # who fetches none need not have it

    cache = krb5.cc_new_unique(context, b"MEMORY")
    krb5.cc_initialize(context, cache, tgt.client)
    krb5.cc_store_cred(context, cache, tgt)
    store: dict[bytes | str, bytes | str] = {"ccache": b"MEMORY:" + (cache.name or b"")}
    refused: list[dict[str, str]] = []
    wanted = set()
    names = {service: _parse(context, service) for service in services}
    # Those of other realms last: they need another KDC, which may not answer.
    ours = [service for service, name in names.items() if name.realm == tgt.client.realm]
    try:
        initiator = gssapi.Credentials(usage="initiate", store=store)
        for service in [*ours, *(service for service in services if service not in ours)]:
            name = krb5.unparse_name_flags(context, names[service])
            target = gssapi.Name(name, gssapi.NameType.kerberos_principal)
            try:
                gssapi.SecurityContext(
                    name=target, creds=initiator, usage="initiate", mech=gssapi.MechType.kerberos
                ).step()
                wanted.add(name)
            except gssapi.raw.GSSError as error:
                refused.append(_refusal(service, error))
        # A ticket of another realm brings that realm's TGT along: nobody has asked for that one.
        tickets = [each for each in cache if krb5.unparse_name_flags(context, each.server) in wanted]
    finally:
        krb5.cc_destroy(context, cache)
    return tickets, refused


def _refusal(service: str, error: Any) -> dict[str, str]:
    """Why there is no ticket of a service."""
    code = ctypes.c_int32(error.min_code).value  # the bindings have it unsigned
    reason = classify(code)
    message = f"{service}: {'; '.join(error.get_all_statuses(error.min_code, False))} [{code}]"
    return {"service": service, "reason": reason, "message": message}


def _context(*, addressless: bool) -> krb5.Context:
    try:
        krb5.init_context()  # with krb5.conf alone: one that is not there, or broken, is told as what it is
        os.environ["KRB5_CONFIG"] = f"{_ADDRESSLESS if addressless else _ADDRESSES}:{_KRB5_CONFIG}"
        try:
            return krb5.init_context()
        finally:
            _restore_krb5_config()
    except krb5.Krb5Error as error:
        raise RefreshError("krb5_config", _words(error), code=error.err_code) from None


def _restore_krb5_config() -> None:
    if _GIVEN_KRB5_CONFIG is None:
        os.environ.pop("KRB5_CONFIG", None)
    else:
        os.environ["KRB5_CONFIG"] = _GIVEN_KRB5_CONFIG


def _options(context: krb5.Context, request: dict[str, Any]) -> krb5.GetInitCredsOpt:
    """The request's options, each of them set whatever krb5.conf says."""
    options = krb5.get_init_creds_opt_alloc(context)
    krb5.get_init_creds_opt_set_tkt_life(options, int(request["lifetime"]))
    krb5.get_init_creds_opt_set_renew_life(options, int(request["renewable_lifetime"]))
    krb5.get_init_creds_opt_set_forwardable(options, request["forwardable"])
    krb5.get_init_creds_opt_set_proxiable(options, request["proxiable"])
    krb5.get_init_creds_opt_set_canonicalize(options, request["canonicalize"])
    return options


def _ccache(context: krb5.Context, client: krb5.Principal, tickets: list[krb5.Creds]) -> bytes:
    owner = ccache.Principal(client.realm, tuple(client.components), int(client.type))
    return b"".join(
        (
            ccache.encode_header(krb5.get_time_offsets(context)),
            ccache.encode_principal(owner),
            *(krb5.marshal_credentials(context, ticket) for ticket in tickets),
        )
    )


def _life(credentials: krb5.Creds) -> int:
    times = credentials.times
    return int(times.endtime - (times.starttime or times.authtime))


def _renew(context: krb5.Context, principal: krb5.Principal, request: dict[str, Any]) -> krb5.Creds | None:
    """The published TGT, renewed; None where a fresh one is to be had instead: there is none of these settings, it
    cannot be renewed, or the renewed one would live for less than half as long. Raises RefreshError where no KDC
    answers."""
    try:
        token = load(request["ccache"])
    except TokenError:
        return None
    now = time.time()
    life = token.expires - token.starts
    left = token.renew_until.timestamp() - now if token.renew_until else 0.0
    ours = token.manifest is not None and token.manifest.settings == request["fingerprint"] and token.has_tgt
    if not ours or token.expires <= now or left < life / 2:
        return None
    try:
        published = krb5.cc_resolve(context, b"FILE:" + os.fsencode(token.path))
        client = krb5.cc_get_principal(context, published)  # sets the context's clock by the header's offset, too
        renewed = krb5.get_renewed_creds(context, client, published)
    except krb5.Krb5Error as error:
        if classify(error.err_code) == "kdc_unreachable":
            raise RefreshError("kdc_unreachable", f"{token.principal}: {_words(error)}", code=error.err_code) from None
        return None  # the KDC will not renew it; what it says to the keytab is what counts
    return renewed if _life(renewed) >= life / 2 else None


def _trouble(context: krb5.Context, path: str, principal: krb5.Principal) -> str | None:
    """What is wrong with the keytab, which was not needed this time and will be one day."""
    try:
        _open_keytab(context, path, principal)
    except RefreshError as error:
        return f"{error.reason}: {error}"
    return None


def _armour(context: krb5.Context, request: dict[str, Any]) -> krb5.CCache | None:
    """The ccache whose ticket protects the exchange (FAST, RFC 6113), where one is configured."""
    if request["fast_keytab"]:
        return _armour_by_keytab(context, request["fast_keytab"], request["fast_principal"])
    if not request["fast_ccache"]:
        return None
    path = request["fast_ccache"]
    try:
        token = load(path)
        problem = None if token.expires > time.time() else "its ticket has ended"
        # A TGT of any realm's: an anonymous client, or one of another realm, has one of the KDC's.
        if not token.has_tgt and not any(service.startswith("krbtgt/") for service in token.services):
            problem = "there is no TGT in it"
    except TokenError as error:
        problem = error.reason
    if problem:
        raise ArmourError(RefreshError("krb5_config", f"{path}: {problem}", hint=_ARMOUR_HINT))
    return krb5.cc_resolve(context, b"FILE:" + os.fsencode(path))


def _armour_by_keytab(context: krb5.Context, path: str, name: str | None) -> krb5.CCache:
    try:
        principal = _parse(context, name) if name else _first_principal(context, path)
        keytab = _open_keytab(context, path, principal)
        options = krb5.get_init_creds_opt_alloc(context)
        krb5.get_init_creds_opt_set_tkt_life(options, _ARMOUR_LIFETIME)
        ticket = _ask(context, principal, options, keytab)
    except RefreshError as error:
        raise ArmourError(error) from None
    armour = krb5.cc_new_unique(context, b"MEMORY")
    krb5.cc_initialize(context, armour, ticket.client)
    krb5.cc_store_cred(context, armour, ticket)
    return armour


def _ask(
    context: krb5.Context, principal: krb5.Principal, options: krb5.GetInitCredsOpt, keytab: krb5.KeyTab
) -> krb5.Creds:
    """One AS exchange. Raises RefreshError."""
    try:
        return krb5.get_init_creds_keytab(context, principal, options, keytab)
    except krb5.Krb5Error as error:
        name = krb5.unparse_name_flags(context, principal).decode("utf-8", "replace")
        hint = _NO_ANSWER_HINT if error.err_code in _NO_ANSWER else None
        if error.err_code - _BASE == 210:
            hint = (
                "the account has no key of an enctype that the keytab has, or the KDC requires FAST armour (set "
                "fast_keytab), or a preauthentication that no keytab can give (hardware, PKINIT, OTP): compare them at "
                "the KDC"
            )
        raise RefreshError(
            classify(error.err_code), f"{name}: {_words(error)}", hint=hint, code=error.err_code
        ) from None


def _parse(context: krb5.Context, name: str) -> krb5.Principal:
    try:
        return krb5.parse_name_flags(context, name.encode("utf-8", "surrogateescape"))
    except krb5.Krb5Error as error:
        raise RefreshError("krb5_config", f"{name}: {_words(error)}", code=error.err_code) from None


def _as_enterprise(context: krb5.Context, principal: krb5.Principal) -> krb5.Principal:
    """The principal, as an enterprise name (RFC 6806, section 5) where it looks like one: `user\\@suffix@REALM`. KDCs
    do not look for another name of an account when the request's is of the usual type."""
    if [component.count(b"@") for component in principal.components] != [1]:
        return principal
    (component,) = (_escaped(each) for each in principal.components)
    name = component + b"@" + _escaped(principal.realm).replace(b"@", b"\\@")  # parsed so, the first @ is the name's
    return krb5.parse_name_flags(context, name, krb5.PrincipalParseFlags.enterprise)


def _escaped(part: bytes) -> bytes:
    """As krb5_parse_name(3) wants it, but for an @."""
    return part.replace(b"\\", b"\\\\").replace(b"/", b"\\/")


def _first_principal(context: krb5.Context, path: str) -> krb5.Principal:
    # Through its name: what the entry gives does not outlive the entry (krb5 0.10), and libkrb5 would crash.
    entry = _keys(context, path)[1][0]
    return krb5.parse_name_flags(context, krb5.unparse_name_flags(context, entry.principal))


def _keys(context: krb5.Context, path: str) -> tuple[krb5.KeyTab, list[krb5.KeyTabEntry]]:
    """The keytab and its entries, at least one, once it is known to be there, readable and whole: libkrb5 has one
    number for all of these. Raises RefreshError."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a FIFO without a writer would hold us
        try:
            if not stat.S_ISREG(os.fstat(file).st_mode):
                raise RefreshError("keytab_invalid", f"{path}: it is a directory, or no regular file")
            start = os.read(file, 2)
        finally:
            os.close(file)
    except FileNotFoundError:
        raise RefreshError("keytab_missing", f"{path}: there is no such keytab") from None
    except OSError as error:
        raise RefreshError("keytab_unreadable", f"{path}: uid {os.geteuid()}: {error.strerror}") from None
    if start not in (b"\x05\x02", b"\x05\x01"):  # the format's two versions (MIT, "Keytab file format")
        raise RefreshError("keytab_invalid", f"{path}: it is " + ("not a keytab" if start else "empty"))
    try:
        keytab = krb5.kt_resolve(context, b"FILE:" + os.fsencode(path))
        entries = list(keytab)
    except krb5.Krb5Error as error:
        raise RefreshError("keytab_invalid", f"{path}: {_words(error)}", code=error.err_code) from None
    if not entries:
        raise RefreshError("keytab_invalid", f"{path}: it has no keys")
    return keytab, entries


def _open_keytab(context: krb5.Context, path: str, principal: krb5.Principal) -> krb5.KeyTab:
    """The keytab, once it is known to have a usable key of the principal. Raises RefreshError."""
    keytab, entries = _keys(context, path)
    keys = [(krb5.unparse_name_flags(context, entry.principal), entry.key.enctype) for entry in entries]
    wanted = krb5.unparse_name_flags(context, principal)
    enctypes = {enctype for name, enctype in keys if name == wanted}
    if not enctypes:
        shown = ", ".join(sorted({name.decode("utf-8", "replace") for name, _ in keys})[:5])
        raise RefreshError(
            "principal_not_in_keytab",
            f"{path}: it has no key of {wanted.decode('utf-8', 'replace')}; it has those of {shown}",
        )
    permitted = _permitted_enctypes()
    if permitted and not enctypes & permitted:
        raise RefreshError(
            "enctype_unsupported",
            f"{path}: its keys of {wanted.decode('utf-8', 'replace')} are of enctypes that libkrb5 does not permit: "
            + ", ".join(_enctype_name(enctype) for enctype in sorted(enctypes)),
        )
    return keytab


def _permitted_enctypes() -> set[int]:
    """The enctypes that libkrb5 and krb5.conf permit, or nothing where it cannot be told; the package krb5 lacks the
    call. Without it the KDC would be asked, to no end."""
    try:
        library = ctypes.CDLL("libkrb5.so.3")
        context, found = ctypes.c_void_p(), ctypes.POINTER(ctypes.c_int32)()
        if library.krb5_init_context(ctypes.byref(context)):
            return set()
        permitted: set[int] = set()
        if not library.krb5_get_permitted_enctypes(context, ctypes.byref(found)):
            index = 0
            while enctype := found[index]:  # a zero ends the list
                permitted.add(enctype)
                index += 1
            library.krb5_free_enctypes(context, found)
        library.krb5_free_context(context)
    except (OSError, AttributeError):
        return set()
    return permitted


def _enctype_name(enctype: int, *, shortest: bool = False) -> str:
    try:
        return str(krb5.enctype_to_name(enctype, shortest=shortest))
    except krb5.Krb5Error:
        return str(enctype)


def look_at_library(_: dict[str, Any]) -> dict[str, Any]:
    """What libkrb5 makes of its configuration: `marshals`, whether it is new enough for an exchange; `problem`, what is
    wrong with krb5.conf, or None; `realm`, the default realm, or None."""
    problem = realm = None
    try:
        realm = krb5.get_default_realm(_context(addressless=True)).decode("utf-8", "replace")
    except RefreshError as error:
        problem = str(error)
    except krb5.Krb5Error:
        pass  # there is none
    return {"marshals": hasattr(krb5, "marshal_credentials"), "problem": problem, "realm": realm}


def look_at_keytab(request: dict[str, Any]) -> dict[str, Any]:
    """What is in the keytab of a request, for people: `keys`, each with its `principal`, `kvno`, `enctype` and
    `written_at` (Unix seconds); and the whole name of the `principal` that is asked for, the first one's without one.
    No key leaves this process, and no KDC is asked. Raises RefreshError where an exchange would."""
    context = _context(addressless=True)
    path, name = request["keytab"], request["principal"]
    principal = _parse(context, name) if name else _first_principal(context, path)
    _open_keytab(context, path, principal)
    return {
        "principal": _name(context, principal),
        "keys": [
            {
                "principal": _name(context, entry.principal),
                "kvno": entry.kvno,
                "enctype": _enctype_name(entry.key.enctype, shortest=True),
                "written_at": entry.timestamp,
            }
            for entry in _keys(context, path)[1]
        ],
    }


_LOOKS = {"library": look_at_library, "keytab": look_at_keytab}


def _name(context: krb5.Context, principal: krb5.Principal) -> str:
    return str(krb5.unparse_name_flags(context, principal).decode("utf-8", "replace"))


def _words(error: krb5.Krb5Error) -> str:
    """libkrb5's text, for people; nothing is decided by it."""
    text = str(error)
    return f"{text} [{error.err_code}]" if str(error.err_code) not in text else text


def _isolate(parent: int) -> None:
    """No core dump, no tracer, no life after the parent's."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    libc.prctl(_PR_SET_DUMPABLE, 0)
    no_core_dump()
    if os.getppid() != parent:  # it died before the first call took effect
        os._exit(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is the parent's to handle


def main(parent: int) -> None:
    """Answers requests until standard input ends. `parent` is the pid of the process that started this one."""
    _isolate(parent)
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a plugin prints must not be taken for a reply
    replies.write(b"ready\n")
    replies.flush()
    for line in sys.stdin.buffer:
        reply: dict[str, Any]
        body = b""
        files: Files = {}
        try:
            request = json.loads(line)
            if "look_at" in request:
                reply = _LOOKS[request["look_at"]](request)
            else:
                files = identities(worked_with(request["keytab"], request["fast_keytab"]))  # before any is opened
                reply, body = exchange(request)
                reply["size"] = len(body)
        except RefreshError as error:
            reply = {"reason": error.reason, "message": str(error), "hint": error.hint, "code": error.code}
            reply["armour"] = isinstance(error, ArmourError)
        except Exception as error:  # noqa: BLE001  (whatever it is, the parent has to hear of it)
            reply = {"reason": "internal", "message": f"{type(error).__name__}: {error}"}
        reply["files"] = files
        replies.write(json.dumps(reply).encode() + b"\n" + body)
        replies.flush()
