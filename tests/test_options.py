"""What can be asked of the KDC besides a lifetime: renewal, FAST armour, flags, addresses."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from krbrefresh import ccache
from krbrefresh._flags import TicketFlags
from krbrefresh.demo.realm import throwaway_realm
from krbrefresh.errors import RefreshError
from krbrefresh.refresher import exchange as exchange_module
from krbrefresh.refresher.child import Exchanged, Exchanger
from krbrefresh.refresher.settings import CredentialSettings
from krbrefresh.token import Token, seal
from tests.processes import Runner, faked_clock, refresher, toml
from tests.support import Realm, SilentKdc, ccache_bytes, eventually, ticket

pytestmark = pytest.mark.usefixtures("krb5_env")
WEEK = 7 * 86400.0


def exchange(credential: CredentialSettings, *, fresh: bool = False) -> Exchanged:
    exchanged = asyncio.run(Exchanger().exchange(credential, 15, fresh=fresh))
    if exchanged.error:
        raise exchanged.error
    return exchanged


def refusal(credential: CredentialSettings) -> RefreshError:
    with pytest.raises(RefreshError) as caught:
        exchange(credential)
    return caught.value


# --- flags and addresses ---


@pytest.fixture
def etl(realm: Realm, place: Path) -> Callable[..., CredentialSettings]:
    keytab = realm.keytab(place / "k", "etl")
    principal = realm.principal("etl")
    return lambda **changes: CredentialSettings(
        principal=principal, keytab=str(keytab), ccache=str(place / "cc"), **changes
    )


@pytest.mark.parametrize("key", ["proxiable", "forwardable"])
def test_a_flag_is_there_if_it_was_asked_for(
    etl: Callable[..., CredentialSettings], key: str, realm: Realm, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flag = TicketFlags[key.upper()]
    assert flag in Token.parse(exchange(etl(**{key: True})).ccache).flags
    (place / "krb5.conf").write_text(f"[libdefaults]\n{key} = true\n")  # whatever krb5.conf says
    monkeypatch.setenv("KRB5_CONFIG", f"{place}/krb5.conf:{realm.env['KRB5_CONFIG']}")
    assert flag not in Token.parse(exchange(etl()).ccache).flags


@pytest.mark.parametrize("noaddresses", ["true", "false"])
def test_a_ticket_has_no_addresses_unless_it_was_asked_for_them(
    etl: Callable[..., CredentialSettings], realm: Realm, place: Path, monkeypatch: pytest.MonkeyPatch, noaddresses: str
) -> None:
    (place / "krb5.conf").write_text(f"[libdefaults]\nnoaddresses = {noaddresses}\n")
    monkeypatch.setenv("KRB5_CONFIG", f"{place}/krb5.conf:{realm.env['KRB5_CONFIG']}")

    def addresses(**changes: Any) -> int:
        (tgt,) = ccache.parse(exchange(etl(**changes)).ccache).credentials
        return len(tgt.addresses)

    assert addresses() == 0
    assert addresses(addressless=False) > 0


def test_canonicalize_is_asked_for_and_the_kdcs_name_is_taken(etl: Callable[..., CredentialSettings]) -> None:
    credential = etl(canonicalize=True)
    assert Token.parse(exchange(credential).ccache).principal == credential.principal


@pytest.mark.parametrize("lifetime", [5.0, 30 * 86400.0])
def test_very_short_and_very_long_tickets(realm: Realm, place: Path, lifetime: float) -> None:
    for name in ("longlived", f"krbtgt/{realm.name}"):
        realm.principal("longlived")
        realm.kadmin(f"modprinc -maxlife '60 days' {name}")
    keytab = realm.keytab(place / "k", "longlived")
    credential = CredentialSettings(
        principal=realm.principal("longlived"), keytab=str(keytab), ccache="/unused", lifetime=lifetime
    )
    token = Token.parse(exchange(credential).ccache)
    # The realm's own max_life (kdc.conf) is a day in a throwaway realm.
    assert token.expires - token.starts == pytest.approx(min(lifetime, 86400), abs=1)


@pytest.fixture(scope="module")
def generous_realm() -> Iterator[Realm]:
    with throwaway_realm(kdc_conf={"max_life": "60d", "max_renewable_life": "90d"}) as kdc:
        realm = Realm(kdc)
        realm.kadmin(f"modprinc -maxlife '60 days' -maxrenewlife '90 days' krbtgt/{realm.name}")
        yield realm


def test_a_ticket_of_30_days(
    runner: Runner, generous_realm: Realm, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    realm = generous_realm
    keytab = realm.keytab(place / "k", "etl", maxlife="60 days")
    config = place / "c.toml"
    section = {"principal": realm.principal("etl"), "keytab": keytab, "ccache": place / "t" / "krb5cc"}
    config.write_text(toml(refresher={"log_format": "json"}, kerberos={**section, "lifetime": "30d"}))
    with refresher(runner, config, realm.env) as running:
        running.logged("published")
        token = Token.parse((place / "t" / "krb5cc").read_bytes())
        assert token.expires - token.starts == 30 * 86400
        assert token.manifest is not None
        assert token.manifest.window_opens_at == pytest.approx(token.starts + 0.67 * 30 * 86400, abs=5)
        running.stop()


# --- renewal ---


@pytest.fixture
def renewer(realm: Realm, place: Path) -> Callable[..., CredentialSettings]:
    """Settings of a principal whose tickets can be renewed for a week."""
    principal = realm.principal("renewed", maxrenewlife="7 days")
    realm.kadmin(f"modprinc -maxrenewlife '7 days' krbtgt/{realm.name}")
    keytab = realm.keytab(place / "k", "renewed")
    (place / "t").mkdir()
    base = CredentialSettings(principal=principal, keytab=str(keytab), ccache=str(place / "t" / "krb5cc"))
    return lambda **changes: CredentialSettings(
        **{
            **{name: getattr(base, name) for name in ("principal", "keytab", "ccache")},
            "method": "renew",
            "renewable_lifetime": WEEK,
            **changes,
        }
    )


def published(credential: CredentialSettings, exchanged: Exchanged) -> Token:
    """Puts what an exchange brought where the next one finds it."""
    now = int(time.time())
    data = seal(
        exchanged.ccache,
        generation=now,
        issued_at=now,
        window_opens_at=now,
        refresher="test",
        settings=credential.fingerprint,
    )
    Path(credential.ccache).unlink(missing_ok=True)
    Path(credential.ccache).write_bytes(data)
    return Token.parse(data)


def test_a_tgt_is_renewed_and_the_keytab_is_not_used(
    realm: Realm, place: Path, renewer: Callable[..., CredentialSettings]
) -> None:
    credential = renewer()
    first = exchange(credential)
    assert first.method == "keytab"  # there is nothing yet to renew
    old = published(credential, first)
    before = realm.log()
    time.sleep(1.1)  # the ticket's times are in whole seconds: the second one has to be another
    second = exchange(credential)
    asked = realm.log()[len(before) :]
    assert second.method == "renew"
    assert second.warning is None
    assert ("AS_REQ" in asked, "TGS_REQ" in asked) == (False, True)
    new = Token.parse(second.ccache)
    assert new.starts > old.starts
    assert new.expires - new.starts == pytest.approx(36000, abs=1)
    assert new.renew_until == old.renew_until  # the week is counted from the first one
    assert Path(credential.ccache).read_bytes() != second.ccache  # nothing is written by an exchange
    assert exchange(credential, fresh=True).method == "keytab"


def test_a_keytab_is_used_when_little_is_left_to_renew(renewer: Callable[..., CredentialSettings]) -> None:
    credential = renewer(lifetime=6.0, renewable_lifetime=6.0)
    token = published(credential, exchange(credential))
    assert exchange(credential).method == "renew"
    eventually(lambda: time.time() > token.starts + 3.1, within=5)  # more than half of it is over
    exchanged = exchange(credential)
    assert exchanged.method == "keytab"
    assert Token.parse(exchanged.ccache).expires > time.time() + 4


def test_a_principal_that_may_not_renew_is_no_failure(realm: Realm, renewer: Callable[..., CredentialSettings]) -> None:
    realm.kadmin(f"modprinc -maxrenewlife 0s {realm.principal('renewed')}")
    try:
        credential = renewer()
        for _ in range(2):
            exchanged = exchange(credential)
            assert exchanged.method == "keytab"
            token = published(credential, exchanged)
            assert token.renew_until is None or token.renew_until <= token.starts_at
    finally:
        realm.kadmin(f"modprinc -maxrenewlife '7 days' {realm.principal('renewed')}")


def test_what_cannot_be_renewed_is_made_anew(realm: Realm, renewer: Callable[..., CredentialSettings]) -> None:
    credential = renewer()
    first = exchange(credential)
    published(credential, first)
    assert exchange(renewer(lifetime=7200.0)).method == "keytab"  # other settings ask for another ticket
    Path(credential.ccache).unlink()
    assert exchange(credential).method == "keytab"
    Path(credential.ccache).write_bytes(b"torn")
    assert exchange(credential).method == "keytab"
    Path(credential.ccache).unlink()
    Path(credential.ccache).write_bytes(first.ccache)  # without a manifest: not ours
    assert exchange(credential).method == "keytab"
    short = renewer(lifetime=2.0)
    over = published(short, exchange(short))
    eventually(lambda: time.time() > over.expires, within=5)
    assert exchange(short).method == "keytab"
    # The KDC has come to think otherwise.
    published(credential, exchange(credential, fresh=True))
    realm.kadmin(f"modprinc -allow_renewable krbtgt/{realm.name}")
    try:
        assert exchange(credential).method == "keytab"
    finally:
        realm.kadmin(f"modprinc +allow_renewable krbtgt/{realm.name}")


def test_a_renewal_tells_of_a_keytab_that_will_not_do_one_day(renewer: Callable[..., CredentialSettings]) -> None:
    credential = renewer()
    published(credential, exchange(credential))
    Path(credential.keytab).unlink()
    exchanged = exchange(credential)
    assert exchanged.method == "renew"
    assert exchanged.warning == f"keytab_missing: {credential.keytab}: there is no such keytab"


def test_a_renewal_that_no_kdc_answers_is_that(
    realm: Realm, place: Path, renewer: Callable[..., CredentialSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    credential = renewer()
    published(credential, exchange(credential))
    conf = Path(realm.env["KRB5_CONFIG"]).read_text()
    with SilentKdc() as kdc:
        port = kdc.port
    (place / "krb5.conf").write_text(conf.replace(f"kdc = 127.0.0.1:{realm.kdc.portbase}", f"kdc = 127.0.0.1:{port}"))
    monkeypatch.setenv("KRB5_CONFIG", str(place / "krb5.conf"))
    assert refusal(credential).reason == "kdc_unreachable"


@pytest.mark.parametrize("shift", ["+2h", "-2h"])
def test_a_renewal_with_a_clock_that_is_hours_off(
    renewer: Callable[..., CredentialSettings], monkeypatch: pytest.MonkeyPatch, shift: str
) -> None:
    for name, value in faked_clock(shift).items():
        monkeypatch.setenv(name, value)
    credential = renewer(lifetime=86400.0)
    first = published(credential, exchange(credential))
    exchanged = exchange(credential)
    assert exchanged.method == "renew"
    assert Token.parse(exchanged.ccache).offset == pytest.approx(first.offset, abs=2)


@pytest.mark.slow
def test_run_renews_and_uses_the_keytab_when_it_must(runner: Runner, realm: Realm, place: Path) -> None:
    principal = realm.principal("runner", maxrenewlife="7 days")
    keytab = realm.keytab(place / "k", "runner")
    realm.kadmin(f"modprinc -maxrenewlife '7 days' krbtgt/{realm.name}")
    config = place / "c.toml"
    section = {"principal": principal, "keytab": keytab, "ccache": place / "t" / "krb5cc", "method": "renew"}
    times = {"lifetime": "4s", "renewable_lifetime": "9s"}
    config.write_text(toml(refresher={"log_format": "json"}, kerberos={**section, **times}))
    with refresher(runner, config, realm.env) as running:
        events = running.logged("published", count=6, within=40)
        methods = [event["method"] for event in events]
        assert methods[:2] == ["keytab", "renew"]
        assert "keytab" in methods[2:]  # nine seconds are over, and it goes on
        assert not running.reasons()
        running.stop()


# --- FAST ---


@pytest.fixture(scope="module")
def armoured_realm() -> Iterator[Realm]:
    """A realm in which preauthentication works in FAST armour alone."""
    with throwaway_realm(plugins={"kdcpreauth": {"disable": "encrypted_timestamp"}}) as kdc:
        yield Realm(kdc)


@pytest.fixture
def armoured(armoured_realm: Realm, place: Path, krb5_env: Callable[[str, str], None]) -> Callable[..., Any]:
    krb5_env("KRB5_CONFIG", armoured_realm.env["KRB5_CONFIG"])
    principal = armoured_realm.principal("fast")
    armoured_realm.kadmin(f"modprinc +requires_preauth {principal}")
    keytab = armoured_realm.keytab(place / "k", "fast")
    return lambda **changes: CredentialSettings(principal=principal, keytab=str(keytab), ccache="/unused", **changes)


def test_fast_armour_by_the_hosts_keytab(
    armoured_realm: Realm, armoured: Callable[..., CredentialSettings], place: Path
) -> None:
    refused = refusal(armoured())
    assert refused.reason == "enctype_unsupported"  # as the KDC wants what the keytab alone cannot give
    assert "fast_keytab" in refused.hint
    host = armoured_realm.keytab(place / "host.keytab", "host/here", "host/there")
    credential = armoured(fast_keytab=str(host))
    assert Token.parse(exchange(credential).ccache).principal == credential.principal
    named = armoured(fast_keytab=str(host), fast_principal=armoured_realm.principal("host/there"))
    before = armoured_realm.log().count("host/there@")
    exchange(named)
    assert armoured_realm.log().count("host/there@") > before


def test_fast_armour_from_a_ccache(
    armoured_realm: Realm, armoured: Callable[..., CredentialSettings], place: Path
) -> None:
    host = armoured_realm.keytab(place / "host.keytab", "host/here")
    armour = armoured_realm.kinit(host, "host/here", place / "armour", "-l", "2s")
    credential = armoured(fast_ccache=str(armour))
    assert Token.parse(exchange(credential).ccache).principal == credential.principal
    over = Token.parse(armour.read_bytes()).expires
    eventually(lambda: time.time() > over, within=5)
    error = refusal(credential)
    assert (error.reason, str(error)) == ("krb5_config", f"FAST armour: {armour}: its ticket has ended")
    armour.unlink()
    assert str(refusal(credential)) == f"FAST armour: {armour}: missing"


def test_a_ccache_that_is_no_armour_is_told_as_that(
    armoured_realm: Realm, armoured: Callable[..., CredentialSettings], place: Path
) -> None:
    host = armoured_realm.keytab(place / "host.keytab", "host/here")
    service = armoured_realm.kinit(host, "host/here", place / "service", "-S", armoured_realm.principal("host/there"))
    error = refusal(armoured(fast_ccache=str(service)))
    assert (error.reason, str(error)) == ("krb5_config", f"FAST armour: {service}: there is no TGT in it")


@pytest.mark.parametrize("then", ["replaced", "gone"])
def test_an_armour_that_changes_after_the_look_at_it_is_told_as_that(
    armoured_realm: Realm, armoured: Callable[..., Any], place: Path, monkeypatch: pytest.MonkeyPatch, then: str
) -> None:
    host = armoured_realm.keytab(place / "host.keytab", "host/here")
    path = place / "armour"
    if then == "replaced":
        armoured_realm.kinit(host, "host/here", path, "-S", armoured_realm.principal("host/there"))
    monkeypatch.setattr(exchange_module, "load", lambda _: Token.parse(ccache_bytes(ticket()), str(path)))
    credential = armoured(fast_ccache=str(path))
    with pytest.raises(exchange_module.ArmourError) as caught:
        exchange_module.exchange({**dataclasses.asdict(credential), "fingerprint": credential.fingerprint})
    assert (caught.value.reason, str(caught.value)[:13]) == ("krb5_config", "FAST armour: ")
    assert "who keeps the armour" in caught.value.hint


def test_an_armour_that_is_not_to_be_had_says_so(armoured: Callable[..., CredentialSettings], place: Path) -> None:
    error = refusal(armoured(fast_keytab=str(place / "absent")))
    assert error.reason == "keytab_missing"
    assert str(error) == f"FAST armour: {place}/absent: there is no such keytab"
