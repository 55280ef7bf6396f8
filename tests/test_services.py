"""Least privilege: service tickets that the refresher fetches, with the TGT or without it."""

from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path
from typing import Any

import pytest

from krbrefresh import ccache
from krbrefresh.ccache import Principal
from krbrefresh.errors import RefreshError
from krbrefresh.refresher import service, values
from krbrefresh.refresher.child import Exchanged, Exchanger
from krbrefresh.refresher.credential import Credential
from krbrefresh.refresher.settings import CredentialSettings
from krbrefresh.token import Token, seal
from tests.faults import free_port, krb5_conf
from tests.processes import faked_clock
from tests.support import Realm, ccache_bytes, ticket

pytestmark = pytest.mark.usefixtures("krb5_env")


def settings(principal: str, keytab: Path, **changes: Any) -> CredentialSettings:
    return CredentialSettings(principal=principal, keytab=str(keytab), ccache="/unused", **changes)


def exchanged(credential: CredentialSettings) -> Exchanged:
    async def one() -> Exchanged:
        return await Exchanger().exchange(credential, 15)

    found = asyncio.run(one())
    if found.error:
        raise found.error
    return found


@pytest.fixture
def keytab(realm: Realm, place: Path) -> Path:
    return realm.keytab(place / "etl.keytab", "etl")


def test_the_tickets_of_services_beside_the_tgt(realm: Realm, keytab: Path) -> None:
    services = (realm.principal("HTTP/web.test"), realm.principal("postgres/db.test"))
    got = exchanged(settings(realm.principal("etl"), keytab, services=services))
    token = Token.parse(got.ccache)
    assert token.has_tgt
    assert token.services == services
    assert got.refused == {}


def test_the_tickets_alone(realm: Realm, keytab: Path) -> None:
    service = realm.principal("HTTP/web.test")
    got = exchanged(settings(realm.principal("etl"), keytab, services=(service, service), include_tgt=False))
    token = Token.parse(got.ccache)
    assert not token.has_tgt
    assert token.services == (service,)
    assert all(each.server.components[0] != b"krbtgt" for each in ccache.parse(got.ccache).credentials)


@pytest.mark.parametrize("include_tgt", [True, False])
def test_a_service_that_there_is_not_withholds_nothing_else(realm: Realm, keytab: Path, include_tgt: bool) -> None:
    known, unknown = realm.principal("HTTP/web.test"), f"HTTP/nowhere.test@{realm.name}"
    got = exchanged(settings(realm.principal("etl"), keytab, services=(unknown, known), include_tgt=include_tgt))
    assert Token.parse(got.ccache).services == (known,)
    assert {service: error.reason for service, error in got.refused.items()} == {unknown: "service_unknown"}
    assert unknown in str(got.refused[unknown])
    assert "not found in Kerberos database" in str(got.refused[unknown])


def test_none_but_unknown_services(realm: Realm, keytab: Path) -> None:
    unknown = f"HTTP/nowhere.test@{realm.name}"
    with pytest.raises(RefreshError) as caught:
        exchanged(settings(realm.principal("etl"), keytab, services=(unknown,), include_tgt=False))
    assert caught.value.reason == "service_unknown"
    assert Token.parse(exchanged(settings(realm.principal("etl"), keytab, services=(unknown,))).ccache).services == ()


@pytest.mark.parametrize("shift", ["+2h", "-2h"])
def test_a_clock_that_is_two_hours_off(realm: Realm, keytab: Path, monkeypatch: pytest.MonkeyPatch, shift: str) -> None:
    service = realm.principal("HTTP/web.test")
    for name, value in faked_clock(shift).items():
        monkeypatch.setenv(name, value)
    got = exchanged(settings(realm.principal("etl"), keytab, services=(service,), include_tgt=False))
    token = Token.parse(got.ccache)
    assert token.services == (service,)
    assert abs(token.offset) == pytest.approx(7200, abs=3)


def test_a_realm_that_does_not_answer_withholds_nothing(
    realm: Realm, keytab: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    realm.principal("krbtgt/FAR.TEST")
    known, far = realm.principal("HTTP/web.test"), "HTTP/web.far.test@FAR.TEST"
    for name, value in krb5_conf(place / "krb5.conf", realm, FAR__TEST=free_port()).items():
        monkeypatch.setenv(name, value)
    for include_tgt in (True, False):
        got = exchanged(settings(realm.principal("etl"), keytab, services=(far, known), include_tgt=include_tgt))
        token = Token.parse(got.ccache)
        assert (token.has_tgt, token.services) == (include_tgt, (known,))
        assert {service: error.reason for service, error in got.refused.items()} == {far: "kdc_unreachable"}
        # The TGT of the other realm, which was needed to ask there, is not among them.
        assert len(ccache.parse(got.ccache).credentials) == 1 + include_tgt


def test_services_are_whole_names_as_libkrb5_writes_them() -> None:
    assert values.services("HTTP/a@R  HTTP/b@R,HTTP/a@R") == ("HTTP/a@R", "HTTP/b@R")
    assert values.services([r"HTTP/\a@R"]) == ("HTTP/a@R",)
    for wrong, words in (
        ("HTTP/a", "NAME@REALM"), ("krbtgt/R@R", "is a TGT"), ("krbtgt/FAR@R", "is a TGT"), (7, "list"), ([7], "text"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=words):
            values.services(wrong)


# --- what the refresher makes of it ---

NOW = 1_800_000_000.0
FAR, NEAR = "HTTP/a@FAR.TEST", "HTTP/b@EXAMPLE.COM"


def holding(life: Credential, *services: str, start: float = NOW) -> Token:
    tickets = [
        ticket(server=Principal.parse(name), authtime=int(start), endtime=int(start) + 3600) for name in services
    ]
    body = ccache_bytes(ticket(authtime=int(start), endtime=int(start) + 3600), *tickets)
    return Token.parse(
        seal(
            body, generation=life.next_generation(start, 0), issued_at=int(start), window_opens_at=int(start),
            refresher="x", settings=life.settings.fingerprint,
        )
    )  # fmt: skip


def test_what_is_published_is_not_replaced_by_less_until_it_is_about_to_end() -> None:
    life = Credential(
        CredentialSettings(principal="etl@EXAMPLE.COM", keytab="/k", ccache="/c", services=(FAR, NEAR)),
        exchange_deadline=15.0,
    )
    down, unknown = RefreshError("kdc_unreachable", "x"), RefreshError("service_unknown", "x")
    assert life.would_lose({FAR: down}, NOW) is None  # nothing is published
    life.succeeded(holding(life, FAR, NEAR), NOW)
    assert life.window is not None
    assert life.would_lose({FAR: down}, NOW + 3000) is down
    assert life.would_lose({FAR: unknown}, NOW + 3000) is None  # that will not heal
    assert life.would_lose({}, NOW + 3000) is None
    assert life.would_lose({FAR: down}, NOW + 3600 - life.window.length * 0.2) is None
    life.succeeded(holding(life, NEAR), NOW, refused=[FAR])
    assert life.would_lose({FAR: down}, NOW + 3000) is None  # it has none to lose


def test_after_an_exchange_without_an_end_every_other_try_stays_in_its_own_realm() -> None:
    settings = CredentialSettings(principal="etl@EXAMPLE.COM", keytab="/k", ccache="/c", services=(FAR, NEAR))
    life = Credential(settings, exchange_deadline=15.0)
    assert life.foreign_services == (FAR,)
    seen = []
    for _ in range(4):
        seen.append(life.at_home)
        life.had_no_end()
    assert seen == [False, True, False, True]
    alone = Credential(dataclasses.replace(settings, services=(NEAR,)), exchange_deadline=15.0)
    alone.had_no_end()
    assert not alone.at_home


def test_a_try_for_what_is_lacking_is_made_at_the_pace_of_its_cause() -> None:
    settings = CredentialSettings(principal="etl@EXAMPLE.COM", keytab="/k", ccache="/c", services=(FAR, NEAR))
    for reason, waits in (("service_unknown", [300, 600, 1200]), ("kdc_unreachable", [60, 60, 60])):
        life = Credential(settings, exchange_deadline=15.0)
        life.succeeded(holding(life, NEAR), NOW, refused=[FAR])
        for number, wait in enumerate(waits, 1):
            life.failed_partly(RefreshError(reason, "x"), NOW)
            assert (life.due_at, life.failures, life.rejections) == (NOW + wait, number, 0)
            assert life.has_as_much([FAR], NOW + wait)
            assert not life.has_as_much([], NOW + wait)
            assert not life.has_as_much([FAR], NOW + 3000)  # its window is open
        life.start_over()  # USR1: whoever asks for it gets a new token
        assert not life.has_as_much([FAR], NOW)


def test_a_generation_that_no_clock_can_have_made_is_not_believed() -> None:
    settings = CredentialSettings(principal="etl@EXAMPLE.COM", keytab="/k", ccache="/c")
    life = Credential(settings, exchange_deadline=15.0)
    assert life.next_generation(NOW, (1 << 63) - 2) == NOW
    assert life.next_generation(NOW, int(NOW) + 86400) == NOW + 86401


@pytest.mark.parametrize(
    ("how", "reason", "words"),
    [
        ({"client": Principal.parse("root@EXAMPLE.COM")}, "internal", "the token of root@EXAMPLE.COM"),
        ({"server": Principal.parse(NEAR)}, "internal", "no TGT"),
        ({"endtime": int(NOW) - 1}, "clock_skew", "had ended when it arrived"),
    ],
)
def test_a_ccache_that_is_whole_and_wrong_is_not_published(how: dict[str, Any], reason: str, words: str) -> None:
    life = Credential(CredentialSettings(principal="etl@EXAMPLE.COM", keytab="/k", ccache="/c"), exchange_deadline=15.0)
    good = {"authtime": int(NOW) - 60, "endtime": int(NOW) + 3600}
    assert service._check(Exchanged(ccache_bytes(ticket(**good))), life, NOW)
    made = ticket(**{**good, **how})
    with pytest.raises(RefreshError, match=words) as told:
        service._check(Exchanged(ccache_bytes(made, principal=made.client)), life, NOW)
    assert told.value.reason == reason
