"""The cases: what is asked of every KDC, and what has to come of it.

A case returns the word that stands for its outcome in the table, or raises CannotHoldError; whatever else it raises is
a failure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tests.faults import keytab_bytes
from tests.interop.desk import Desk
from tests.interop.kdcs import CAP, CannotHoldError, Kdc, renamed
from tests.interop.mit import mit
from tests.interop.samba import ActiveDirectory

RC4 = 23
_BADOPTION = "KDC can't fulfill requested option"  # libkrb5's text of KDC_ERR_BADOPTION


# A case, acted out: the word for the table, or that and a note.
Act = Callable[[Kdc, Desk], "str | tuple[str, str]"]


@dataclass(frozen=True)
class Case:
    """What is asked: `name` in the file, `title` in the table, and how it is done."""

    name: str
    group: str
    title: str
    act: Act


CASES: list[Case] = []


def case(group: str, title: str) -> Callable[[Act], Act]:
    def listed(act: Act) -> Act:
        CASES.append(Case(act.__name__.replace("_", "-"), group, title, act))
        return act

    return listed


# --- tokens ---

TOKENS = "A token, and what it is good for"


@case(TOKENS, "a plain account")
def plain(kdc: Kdc, desk: Desk) -> str:
    return desk.works(kdc.account("plain"))


@case(TOKENS, "the ticket of one service alone (`include_tgt = false`), used while no KDC answers")
def service_alone(kdc: Kdc, desk: Desk) -> str:
    principal, service = kdc.account("alone"), kdc.web
    token = desk.gets(principal, services=[service], include_tgt=False)
    assert (token.has_tgt, token.services) == (False, (service,))
    desk.opens(service, whose=principal, env=desk.without_kdc)
    return "context"


@case(TOKENS, "a service that there is not, beside one that there is")
def service_unknown(kdc: Kdc, desk: Desk) -> str:
    principal, service = kdc.account("lacking"), kdc.web
    missing = f"HTTP/nowhere.test@{kdc.realm}"
    ran = desk.once(principal, desk.keytab(principal), services=[missing, service])
    assert ran.status == 0, ran.log
    refused = [event for event in ran.events if event.get("reason")]
    assert [event["reason"] for event in refused] == ["service_unknown"], ran.log
    desk.opens(service, whose=principal)
    return "service_unknown, context"


@case(TOKENS, "a lifetime of 10 hours is asked for, and the KDC gives 8 at the most")
def capped(kdc: Kdc, desk: Desk) -> str:
    principal = kdc.account("capped")
    kdc.cap(principal)
    token = desk.gets(principal, lifetime="10h")
    assert abs(token.expires - token.starts - CAP) <= 1
    assert token.manifest is not None
    window = token.expires - token.manifest.window_opens_at
    assert abs(window / CAP - 0.33) < 0.01, window  # a share of the life that the KDC gave
    return "8 h"


@case(TOKENS, 'a ticket that is renewed (`method = "renew"`)')
def renewed(kdc: Kdc, desk: Desk) -> str:
    principal = kdc.account("renewed")
    with desk.runs(principal, method="renew", renewable_lifetime="1d") as running:
        running.logged("published", within=30)
        running.process.send_signal(10)  # USR1
        events = running.logged("published", count=2, within=30)
        assert [event["method"] for event in events] == ["keytab", "renew"], running.text
    desk.opens(kdc.web, whose=principal)
    return "context"


# --- what the KDC refuses ---

REFUSALS = "What the KDC refuses"


@case(REFUSALS, "a keytab that is out of date")
def stale_key(kdc: Kdc, desk: Desk) -> str:
    principal = kdc.account("stale")
    keytab = desk.keytab(principal)
    kdc.rekey(principal)
    reason = desk.fails("key_rejected", principal, keytab)
    desk.gets(principal)  # the keytab of now
    return reason


@case(REFUSALS, "an account that there is not")
def unknown(kdc: Kdc, desk: Desk) -> str:
    principal = kdc.account("gone")
    keytab = desk.keytab(principal)
    kdc.delete(principal)
    return desk.fails("client_unknown", principal, keytab)


@case(REFUSALS, "a disabled account")
def disabled(kdc: Kdc, desk: Desk) -> str:
    principal = kdc.account("disabled")
    keytab = desk.keytab(principal)
    kdc.disable(principal)
    # Heimdal answers KDC_ERR_POLICY, as if it were the request.
    return desk.fails("policy_refused" if kdc.family == "heimdal" else "client_revoked", principal, keytab)


@case(REFUSALS, "an account that bad attempts have locked")
def locked(kdc: Kdc, desk: Desk) -> str:
    principal = kdc.account("locked")
    # A key that the account never had: with that of its last password, Samba 4.22 and 4.25 were seen to lock no account
    # where 4.17 did.
    wrong = desk.place / "wrong"
    wrong.write_bytes(keytab_bytes(principal))
    for _ in range(kdc.lockout(principal)):
        desk.fails("key_rejected", principal, wrong)
    return desk.fails("client_revoked", principal, desk.keytab(principal))  # the right one


@case(REFUSALS, "an account that has expired")
def expired(kdc: Kdc, desk: Desk) -> str:
    principal = kdc.account("expired")
    keytab = desk.keytab(principal)
    kdc.expire(principal)
    # Active Directory does not say which: disabled, locked or expired.
    return desk.fails("client_revoked" if kdc.family == "ad" else "client_expired", principal, keytab)


@case(REFUSALS, "a password that has expired")
def password_expired(kdc: Kdc, desk: Desk) -> str:
    principal = kdc.account("oldpassword")
    keytab = desk.keytab(principal)
    kdc.expire_password(principal)
    return desk.fails("client_expired", principal, keytab)


# --- enctypes ---

ENCTYPES = "Enctypes"
NO_KEY = "the account has no key of an enctype that the keytab has"  # how the hint begins


def _enctype_alone(enctype: str) -> Act:
    def act(kdc: Kdc, desk: Desk) -> str:
        with kdc.restricted(enctype) as restricted:
            there = desk.at("restricted", restricted)
            result = there.works(restricted.account(f"only-{enctype}"))
            assert there.enctypes() == {enctype}
            return result

    act.__name__ = enctype
    return act


for _enctype in (
    "aes128-cts-hmac-sha1-96", "aes256-cts-hmac-sha1-96", "aes128-cts-hmac-sha256-128", "aes256-cts-hmac-sha384-192",
):  # fmt: skip
    case(ENCTYPES, f"{_enctype} alone: account, service, client")(_enctype_alone(_enctype))


@case(ENCTYPES, "a keytab of RC4 keys alone, which the KDC refuses")
def rc4_at_the_kdc(kdc: Kdc, desk: Desk) -> str:
    principal = kdc.account("rc4")
    desk.keytab(principal)  # AES: that one would do
    keytab = desk.place / "rc4"
    keytab.write_bytes(keytab_bytes(principal, enctype=RC4, key=b"\x5e" * 16))
    return desk.fails("enctype_unsupported", principal, keytab, hint=NO_KEY)


@case(ENCTYPES, "a keytab of RC4 keys alone, which krb5.conf refuses (`permitted_enctypes`)")
def rc4_at_the_client(kdc: Kdc, desk: Desk) -> str:
    keytab = desk.place / "rc4"
    principal = kdc.account("rc4-client")
    keytab.write_bytes(keytab_bytes(principal, enctype=RC4, key=b"\x5e" * 16))
    conf = desk.place / "permitted.conf"
    conf.write_text("[libdefaults]\npermitted_enctypes = aes256-cts-hmac-sha1-96\n")
    conf.chmod(0o644)
    desk.env["KRB5_CONFIG"] = f"{conf}:{kdc.krb5_conf}"
    return desk.fails("enctype_unsupported", principal, keytab)


@case(ENCTYPES, "a keytab with keys of AES and of RC4")
def rc4_beside_aes(kdc: Kdc, desk: Desk) -> str:
    principal = kdc.account("both")
    keytab = desk.keytab(principal)
    rc4 = keytab_bytes(principal, enctype=RC4, key=b"\x5e" * 16)
    keytab.write_bytes(rc4 + keytab.read_bytes()[2:])  # the RC4 key first
    return desk.works(principal, keytab)


# --- names ---

NAMES = "Names"


def _named(name: str) -> Act:
    def act(kdc: Kdc, desk: Desk) -> str | tuple[str, str]:
        if not name.startswith("HTTP/"):
            kdc.unmet(name)
        why = kdc.denied(name)
        if why is None:
            return desk.works(kdc.account(name))
        principal = kdc.account(name)
        desk.gets(principal)
        assert desk.kvno(kdc.web) == _BADOPTION
        with kdc.without_pac() as other:
            desk.at("without-pac", other).works(other.account(name))
        return "token", why

    return act


for _word, _name, _title in (
    ("instance", "HTTP/client.test", "an instance: `HTTP/client.test`"),
    ("slash", r"with\/slash", r"a slash in a component: `with\/slash`"),
    ("at", r"with\@at", r"an at sign: `with\@at`"),
    ("backslash", r"with\\backslash", r"a backslash: `with\\backslash`"),
    ("spaces", "two words", "a space: `two words`"),
    ("accented", "größe", "letters beyond ASCII: `größe`"),
    ("cyrillic", "учёт", "another script: `учёт`"),
):
    _act = _named(_name)
    _act.__name__ = f"name-{_word}"
    case(NAMES, _title)(_act)


@case(NAMES, "another case of the letters: `PLAIN` for `plain`")
def letters(kdc: Kdc, desk: Desk) -> str:
    principal = kdc.account("letters")
    shouted = principal.replace("letters", "LETTERS")
    keytab = desk.place / "shouted"
    if kdc.family == "ad":
        return desk.works(shouted, kdc.keytab(keytab, shouted))
    keytab.write_bytes(keytab_bytes(shouted))
    return desk.fails("client_unknown", shouted, keytab)


@case(NAMES, "another case of the letters (`canonicalize = true`)")
def letters_canonical(kdc: Kdc, desk: Desk) -> str:
    if kdc.family != "ad":
        raise CannotHoldError("names that differ in case are different names to it")
    principal = kdc.account("lowercase")
    shouted = principal.replace("lowercase", "LOWERCASE")
    return desk.works(shouted, kdc.keytab(desk.place / "shouted", shouted), whose=principal, canonicalize=True)


@case(NAMES, "an alias (`canonicalize = true`)")
def alias(kdc: Kdc, desk: Desk) -> str:
    principal = kdc.account("canonical")
    other = kdc.alias(principal, "alias")
    keytab = renamed(desk.keytab(principal), other)
    return desk.works(other, keytab, whose=principal, canonicalize=True)


@case(NAMES, r"an enterprise name, a UPN with a suffix of its own: `first.last\@corp.example` (`canonicalize = true`)")
def enterprise(kdc: Kdc, desk: Desk) -> str:
    name, principal = kdc.enterprise(kdc.account("enterprise"))
    return desk.works(name, renamed(desk.keytab(principal), name), whose=principal, canonicalize=True)


# --- FAST ---

FAST = "FAST (RFC 6113)"


@case(FAST, "armour by the host's keytab, where the KDC does not ask for it")
def fast(kdc: Kdc, desk: Desk) -> str:
    principal, host = kdc.account("fast"), kdc.host("armour")
    return desk.works(principal, fast_keytab=desk.keytab(host, "armour"))


@case(FAST, "a KDC that demands it: refused without armour, a token with it")
def fast_demanded(kdc: Kdc, desk: Desk) -> str:
    with kdc.demanding_fast() as demanding:
        there = desk.at("demanding", demanding)
        principal = demanding.account("armoured")
        host = demanding.host("armouring")
        keytab = there.keytab(principal)
        demanding.demand_fast(principal)
        reason, hint = demanding.without_fast
        there.fails(reason, principal, keytab, hint=hint)
        return f"{reason}, " + there.works(principal, keytab, fast_keytab=there.keytab(host, "armour"))


# --- two realms ---

REALMS = "Two realms"


@contextmanager
def trusted(kdc: Kdc, desk: Desk, realm: str) -> Iterator[tuple[Kdc, str]]:
    """Another realm, MIT's, that is trusted; and a service of it. The desk knows both."""
    with mit(None, realm=realm) as far:
        for each, other in ((kdc, far), (far, kdc)):
            each.trust(other, "between the two")
        conf = desk.place / "far.conf"
        conf.write_text(f"[realms]\n{realm} = {{\n    kdc = {far.address}\n}}\n")
        conf.chmod(0o644)
        desk.env["KRB5_CONFIG"] = f"{conf}:{kdc.krb5_conf}"
        yield far, far.service("HTTP/web.far.test")


@case(REALMS, "a service of another realm, which is MIT's")
def cross_realm(kdc: Kdc, desk: Desk) -> str:
    principal = kdc.account("traveller")
    with trusted(kdc, desk, "FAR.TEST") as (far, service):
        desk.gets(principal)
        desk.opens(service, whose=principal, kdc=far)
    return "context"


@case(REALMS, "the ticket of that service alone (`include_tgt = false`), used while neither KDC answers")
def cross_realm_service_alone(kdc: Kdc, desk: Desk) -> str:
    principal = kdc.account("sender")
    with trusted(kdc, desk, "ALONE.TEST") as (far, service):
        token = desk.gets(principal, services=[service], include_tgt=False)
        assert (token.has_tgt, token.services) == (False, (service,))
        far.stop()
        desk.opens(service, whose=principal, kdc=far, env=desk.without_kdc)
    return "context"


# --- Active Directory's own ---

DIRECTORY = "Active Directory's accounts"
NONE_SUCH = "it has no such kind of account"


@case(DIRECTORY, "a computer's account: `WEB01$`")
def computer(kdc: Kdc, desk: Desk) -> str:
    if not isinstance(kdc, ActiveDirectory):
        raise CannotHoldError(NONE_SUCH)
    return desk.works(kdc.computer("web01"))


@case(DIRECTORY, "a service account with an SPN: a token by its account's name, its service opened by its SPN")
def service_account(kdc: Kdc, desk: Desk) -> str:
    if not isinstance(kdc, ActiveDirectory):
        raise CannotHoldError(NONE_SUCH)
    service = kdc.service("HTTP/account.ad.test")
    principal = kdc.owner(service)
    desk.gets(principal)
    desk.opens(service, whose=principal)
    return "context"


@case(DIRECTORY, "a service account asked for by its SPN, which is no user principal name")
def spn_as_client(kdc: Kdc, desk: Desk) -> str:
    if not isinstance(kdc, ActiveDirectory):
        raise CannotHoldError(NONE_SUCH)
    service = kdc.service("HTTP/spn.ad.test")
    return desk.fails("client_unknown", service, desk.keytab(service))
