"""The exchange with the KDC: the only module that imports krb5 and opens a keytab. Runs as a child process.

The parent (child.py) writes requests to standard input, a line of JSON each, and reads replies from standard output:
a line of JSON and, where it says so, that many bytes of a whole ccache. The ticket exists in this process's memory and
in that pipe, nowhere else. The process dies with its parent, leaves no core dump, and cannot be traced by its own user.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import sys
from typing import Any

import krb5

from .. import ccache
from ..errors import RefreshError

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


def classify(code: int) -> str:
    """The reason that libkrb5's number means; `internal` for one that nobody has met yet."""
    return _REASONS.get(code - _BASE, "internal")


def exchange(request: dict[str, Any]) -> bytes:
    """The ccache that the KDC gives for a request: header with the KDC's time offset, principal, TGT.

    `request` has `principal`, `keytab`, `lifetime` and `renewable_lifetime` (seconds), `forwardable`. One call is one
    attempt at the KDC, and none where the keytab will not do; a second follows only on a success, where this machine's
    clock is far off. Raises RefreshError.
    """
    if not hasattr(krb5, "marshal_credentials"):
        raise RefreshError(
            "internal",
            "the package krb5 was compiled against a libkrb5 that cannot marshal credentials",
            hint="install it again (pip install --force-reinstall --no-binary krb5 krb5) beside MIT krb5 1.20 or newer",
        )
    try:
        context = krb5.init_context()
    except krb5.Krb5Error as error:
        raise RefreshError("krb5_config", _words(error), code=error.err_code) from None
    principal = _parse(context, request["principal"])
    keytab = _open_keytab(context, request["keytab"], principal)

    options = krb5.get_init_creds_opt_alloc(context)
    krb5.get_init_creds_opt_set_tkt_life(options, int(request["lifetime"]))
    krb5.get_init_creds_opt_set_renew_life(options, int(request["renewable_lifetime"]))
    krb5.get_init_creds_opt_set_forwardable(options, request["forwardable"])
    krb5.get_init_creds_opt_set_proxiable(options, False)
    krb5.get_init_creds_opt_set_canonicalize(options, False)  # the name that was asked for, whatever krb5.conf says
    credentials = _ask(context, principal, options, keytab)
    # Where no preauthentication is required, the request's end was reckoned by a clock that may be far off: behind, and
    # the ticket is too short or over already; ahead, and it is too long. The reply has put the context's clock right.
    times = credentials.times
    offset = krb5.get_time_offsets(context)
    life = times.endtime - (times.starttime or times.authtime)
    if abs(offset[0]) > _SKEW and abs(life - request["lifetime"]) > _SKEW:
        credentials = _ask(context, principal, options, keytab)

    client = credentials.client
    owner = ccache.Principal(client.realm, tuple(client.components), int(client.type))
    return b"".join(
        (
            ccache.encode_header(krb5.get_time_offsets(context)),
            ccache.encode_principal(owner),
            krb5.marshal_credentials(context, credentials),
        )
    )


def _ask(
    context: krb5.Context, principal: krb5.Principal, options: krb5.GetInitCredsOpt, keytab: krb5.KeyTab
) -> krb5.Creds:
    """One AS exchange. Raises RefreshError."""
    try:
        return krb5.get_init_creds_keytab(context, principal, options, keytab)
    except krb5.Krb5Error as error:
        name = krb5.unparse_name_flags(context, principal).decode("utf-8", "replace")
        hint = None
        if error.err_code - _BASE == 210:
            hint = (
                "the account has no key of an enctype that the keytab has, or the KDC requires a preauthentication "
                "that no keytab can give (hardware, PKINIT, OTP): compare them at the KDC"
            )
        raise RefreshError(
            classify(error.err_code), f"{name}: {_words(error)}", hint=hint, code=error.err_code
        ) from None


def _parse(context: krb5.Context, name: str) -> krb5.Principal:
    try:
        return krb5.parse_name_flags(context, name.encode("utf-8", "surrogateescape"))
    except krb5.Krb5Error as error:
        raise RefreshError("krb5_config", f"{name}: {_words(error)}", code=error.err_code) from None


def _open_keytab(context: krb5.Context, path: str, principal: krb5.Principal) -> krb5.KeyTab:
    """The keytab, once it is known to be there, readable, whole, and to have the principal: libkrb5 has one number
    for all of these."""
    try:
        with open(path, "rb") as file:
            start = file.read(2)
    except FileNotFoundError:
        raise RefreshError("keytab_missing", f"{path}: there is no such keytab") from None
    except IsADirectoryError:
        raise RefreshError("keytab_invalid", f"{path}: it is a directory") from None
    except OSError as error:
        raise RefreshError("keytab_unreadable", f"{path}: uid {os.geteuid()}: {error.strerror}") from None
    if start not in (b"\x05\x02", b"\x05\x01"):  # the format's two versions (MIT, "Keytab file format")
        raise RefreshError("keytab_invalid", f"{path}: it is " + ("not a keytab" if start else "empty"))
    try:
        keytab = krb5.kt_resolve(context, b"FILE:" + os.fsencode(path))
        keys = [(krb5.unparse_name_flags(context, entry.principal), entry.key.enctype) for entry in keytab]
    except krb5.Krb5Error as error:
        raise RefreshError("keytab_invalid", f"{path}: {_words(error)}", code=error.err_code) from None
    if not keys:
        raise RefreshError("keytab_invalid", f"{path}: it has no keys")
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


def _enctype_name(enctype: int) -> str:
    try:
        return str(krb5.enctype_to_name(enctype, shortest=False))
    except krb5.Krb5Error:
        return str(enctype)


def _words(error: krb5.Krb5Error) -> str:
    """libkrb5's text, for people; nothing is decided by it."""
    text = str(error)
    return f"{text} [{error.err_code}]" if str(error.err_code) not in text else text


def _isolate(parent: int) -> None:
    """No core dump, no tracer, no life after the parent's."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    libc.prctl(_PR_SET_DUMPABLE, 0)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
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
        body = b""
        try:
            body = exchange(json.loads(line))
            reply: dict[str, Any] = {"size": len(body)}
        except RefreshError as error:
            reply = {"reason": error.reason, "message": str(error), "hint": error.hint, "code": error.code}
        except Exception as error:  # noqa: BLE001  (whatever it is, the parent has to hear of it)
            reply = {"reason": "internal", "message": f"{type(error).__name__}: {error}"}
        replies.write(json.dumps(reply).encode() + b"\n" + body)
        replies.flush()
