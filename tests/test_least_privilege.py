"""What a worker can do with the tokens of a running refresher, and what it cannot: services without the TGT,
signatures, and who asks the KDC for what."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import gssapi
import pytest

import krbrefresh
from krbrefresh import ccache
from krbrefresh.ccache import Principal
from krbrefresh.signature import PrivateKey, generate
from krbrefresh.token import seal
from tests.faults import LISTENING, Http, kdc_comes_back, kdc_dies, kdc_hangs, kdc_restored, krb5_conf
from tests.processes import GROUP, REFRESHER, WORKER, Refresher, Runner, krbrefresh_command, refresher, toml
from tests.support import Realm, SilentKdc, ccache_bytes, eventually, ticket

# A worker: activates, and begins a context with each service; prints what came of it as a line of JSON.
WORK = """
import json, os, sys
import gssapi, krbrefresh
options = json.loads(sys.argv[1])
services = options.pop("begin")
krbrefresh.activate(min_remaining=1, timeout=10, **options)
begun = {}
for service in services:
    name = gssapi.Name(service, gssapi.NameType.kerberos_principal)
    try:
        context = gssapi.SecurityContext(
            name=name, creds=krbrefresh.credentials(), usage="initiate", mech=gssapi.MechType.kerberos)
        begun[service] = context.step().hex()
    except gssapi.exceptions.GSSError as error:
        begun[service] = (error.min_code & 0xffffffff) - (1 << 32) + 1765328384
print(json.dumps(begun), flush=True)
"""
NOT_FOUND_IN_CCACHE = 141  # KRB5_CC_NOTFOUND, less the table's base: no TGT to ask with


@pytest.fixture
def volume(place: Path) -> Path:
    directory = place / "volume"
    directory.mkdir()
    directory.chmod(0o777)  # as an emptyDir is
    return directory


def configured(realm: Realm, place: Path, volume: Path, **kerberos: Any) -> Path:
    keytab = realm.keytab(place / "etl.keytab", "etl")
    os.chown(keytab, REFRESHER, REFRESHER)
    keytab.chmod(0o400)
    config = place / "krbrefresh.toml"
    config.write_text(
        toml(
            refresher={"log_format": "json"},
            kerberos={
                "principal": realm.principal("etl"), "keytab": keytab, "ccache": volume / "token" / "krb5cc",
                "group": GROUP, **kerberos,
            },
        )
    )  # fmt: skip
    return config


def refreshing(runner: Runner, realm: Realm, config: Path, **env: str) -> contextlib.AbstractContextManager[Refresher]:
    return refresher(runner, config, {**realm.env, **env}, uid=REFRESHER, groups=(GROUP,))


def starts_work(runner: Runner, realm: Realm, path: Path, begin: list[str], **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [runner.python, "-c", WORK, json.dumps({"path": str(path), "begin": begin, **options})],
        env={**runner.env, **realm.env}, stdout=subprocess.PIPE, text=True, **runner.user(WORKER, GROUP),
    )  # fmt: skip


def works(runner: Runner, realm: Realm, path: Path, begin: list[str], **options: Any) -> dict[str, Any]:
    """What each service's acceptor makes of a context that a worker begins: the initiator's name, or libkrb5's number
    where it could not be begun."""
    process = starts_work(runner, realm, path, begin, **options)
    line, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    said = {}
    for service, begun in json.loads(line).items():
        said[service] = begun
        if isinstance(begun, str):
            keytab = realm.keytab(path.parent.parent.parent / "acceptor.keytab", service.partition("@")[0])
            accepting = gssapi.Credentials(usage="accept", store={"keytab": f"FILE:{keytab}"})
            acceptor = gssapi.SecurityContext(creds=accepting, usage="accept")
            acceptor.step(bytes.fromhex(begun))
            said[service] = str(acceptor.initiator_name)
    return said


pytestmark = pytest.mark.usefixtures("krb5_env")


# --- services ---


@pytest.mark.root
def test_a_worker_without_the_tgt(runner: Runner, own_realm: Realm, place: Path, volume: Path, krb5_env: Any) -> None:
    realm = own_realm
    krb5_env("KRB5_CONFIG", realm.env["KRB5_CONFIG"])
    krb5_env("KRB5RCACHEDIR", realm.env["KRB5RCACHEDIR"])
    listed = [realm.principal("HTTP/web.test"), realm.principal("postgres/db.test")]
    other = realm.principal("HTTP/admin.test")
    config = configured(realm, place, volume, services=listed, include_tgt=False)
    path = volume / "token" / "krb5cc"
    with kdc_restored(realm), refreshing(runner, realm, config) as running:
        running.logged("published")
        token = krbrefresh.validate(path, services=listed)
        assert (token.has_tgt, token.services) == (False, tuple(listed))
        with pytest.raises(krbrefresh.NoTicketError, match=re.escape(f"no ticket for {other}")):
            krbrefresh.validate(path, services=[other])
        # With the KDC running there is none with any other service, and none with a service of its own account even.
        asked = len(realm.log())
        assert works(runner, realm, path, [other, *listed]) == {
            other: NOT_FOUND_IN_CCACHE, **dict.fromkeys(listed, realm.principal("etl")),
        }  # fmt: skip
        assert "TGS_REQ" not in realm.log()[asked:]
        # With the KDC hung there is one with each listed service, by a copy too; and with the KDC dead.
        kdc_hangs(realm)
        began = time.monotonic()
        assert works(runner, realm, path, listed, private=True) == dict.fromkeys(listed, realm.principal("etl"))
        assert works(runner, realm, path, [other]) == {other: NOT_FOUND_IN_CCACHE}  # at once: nobody is asked
        assert time.monotonic() - began < 20
        kdc_dies(realm)
        assert works(runner, realm, path, listed) == dict.fromkeys(listed, realm.principal("etl"))
        kdc_comes_back(realm)


def test_it_is_refreshed_before_the_first_of_its_tickets_ends(
    runner: Runner, realm: Realm, place: Path, volume: Path
) -> None:
    short = realm.principal("HTTP/short.test", maxlife="9 seconds")
    long = realm.principal("postgres/db.test")
    config = configured(realm, place, volume, services=[long, short])
    path = volume / "token" / "krb5cc"
    with refresher(runner, config, realm.env) as running:
        running.logged("published")
        token = krbrefresh.load(path)
        assert token.expires - token.starts > 30000  # the TGT's life is the token's, as ever
        tickets = {str(each.server): each for each in ccache.parse(path.read_bytes()).credentials if each.is_ticket}
        brief = tickets[short]
        assert brief.endtime - brief.starttime == 9
        assert token.first_end == brief.endtime - token.offset
        second = running.logged("published", count=2, within=20)[1]
        assert second["generation"] < token.first_end  # which is Unix seconds, too
        # And adopted by the next refresher, though one of its tickets is short.
        running.logged("published", count=3, within=20)
        running.stop()
    published = krbrefresh.load(path)
    assert published.manifest
    with refresher(runner, config, realm.env) as running:
        first = eventually(lambda: running.named("adopted", "published"), within=10)[0]
        if first["event"] == "published":  # the machine was slow, and it was time
            assert time.time() > published.manifest.window_opens_at
        else:
            assert krbrefresh.load(path).generation == published.generation


def test_a_service_that_there_is_not(runner: Runner, realm: Realm, place: Path, volume: Path) -> None:
    known, late = realm.principal("HTTP/web.test"), f"HTTP/late.test@{realm.name}"
    config = configured(realm, place, volume, services=[known, late], include_tgt=False)
    path = volume / "token" / "krb5cc"
    with refresher(runner, config, {**realm.env, **LISTENING}) as running:
        (failed,) = running.logged("refresh_failed")
        assert failed["reason"] == "service_unknown"
        assert late in failed["message"]
        assert len(running.named("published")) == 1
        assert krbrefresh.validate(path).services == (known,)
        http = Http(running)
        status, credentials = http.ready()
        assert (status, credentials["default"]["state"]) == (200, "degraded")
        assert credentials["default"]["reason"] == "service_unknown"
        metrics = http.metrics()
        assert metrics["failing"] == {("default", "service_unknown"): 1.0}
        assert metrics["refresh_failures_total"][("service_unknown",)] == 1.0
        assert metrics["refreshes_total"] == {("default", "keytab"): 1.0}
        planned = metrics["next_refresh_timestamp_seconds"][("default",)]
        assert 280 < planned - time.time() < 301  # at the pace of a refusal: each try is a whole exchange
        # Once the KDC has it, whoever wants it at once sends USR1.
        realm.principal("HTTP/late.test")
        running.process.send_signal(signal.SIGUSR1)
        running.logged("published", count=2)
        assert krbrefresh.validate(path).services == (known, late)
        eventually(lambda: http.ready()[1]["default"]["state"] == "valid", within=10)
        assert "failing" not in http.metrics()


def test_once_reports_a_service_that_there_is_not(runner: Runner, realm: Realm, place: Path, volume: Path) -> None:
    known, unknown = realm.principal("HTTP/web.test"), f"HTTP/nowhere.test@{realm.name}"
    config = configured(realm, place, volume, services=[known, unknown])
    said = krbrefresh_command("once", runner, realm, config)
    assert said.returncode == 0  # a pod's init container had better not be held up by one service
    assert "service_unknown" in said.stderr
    assert krbrefresh.validate(volume / "token" / "krb5cc", services=[known]).has_tgt
    # None at all of what was asked for is a failure, and publishes nothing.
    os.unlink(volume / "token" / "krb5cc")
    config = configured(realm, place, volume, services=[unknown], include_tgt=False)
    said = krbrefresh_command("once", runner, realm, config)
    assert said.returncode == 1
    assert "service_unknown" in said.stderr
    assert not (volume / "token" / "krb5cc").exists()


def test_a_realm_that_hangs_withholds_nothing_for_long(runner: Runner, realm: Realm, place: Path, volume: Path) -> None:
    realm.principal("krbtgt/FAR.TEST")
    known, far = realm.principal("HTTP/web.test"), "HTTP/web.far.test@FAR.TEST"
    config = configured(realm, place, volume, services=[far, known])
    with SilentKdc() as kdc:
        env = krb5_conf(place / "krb5.conf", realm, FAR__TEST=kdc.port)
        env["KRBREFRESH__REFRESHER__EXCHANGE_DEADLINE"] = "2s"
        with refresher(runner, config, env) as running:
            running.logged("published", within=30)
            failed = running.logged("refresh_failed", count=2)
            assert [event["reason"] for event in failed] == ["kdc_timeout", "kdc_timeout"]
            assert far in failed[1]["message"]
            token = krbrefresh.validate(volume / "token" / "krb5cc")
            assert (token.has_tgt, token.services) == (True, (known,))


# --- who asks the KDC ---


@pytest.mark.root
@pytest.mark.long
@pytest.mark.timeout(300)
def test_fifty_processes_with_three_services_each(
    runner: Runner, realm: Realm, place: Path, volume: Path, record_property: pytest.RecordProperty
) -> None:
    """On the shared file, with private copies, and with tickets that the refresher has fetched."""
    services = [realm.principal(f"HTTP/web{number}.test") for number in (1, 2, 3)]
    path = volume / "token" / "krb5cc"
    counts = {}
    for way, settings, options in (
        ("shared", {}, {}),
        ("private", {}, {"private": True}),
        ("prefetched", {"services": services}, {}),
    ):
        config = configured(realm, place, volume, **settings)
        with refreshing(runner, realm, config) as running:
            running.logged("published" if way != "private" else "adopted")
            before = path.read_bytes(), os.stat(path).st_mtime_ns, os.stat(path).st_ino
            asked = len(realm.log())
            processes = [starts_work(runner, realm, path, 4 * services, **options) for _ in range(50)]
            for process in processes:
                line, _ = process.communicate(timeout=90)
                assert process.returncode == 0
                begun = json.loads(line)
                assert set(begun) == set(services)
                assert all(isinstance(each, str) for each in begun.values()), begun
            counts[way] = len(re.findall(r"TGS_REQ .*? ISSUE: ", realm.log()[asked:]))
            assert (path.read_bytes(), os.stat(path).st_mtime_ns, os.stat(path).st_ino) == before
    print(f"\nTGS exchanges of 50 processes with 3 services and 4 contexts with each: {counts}")
    record_property("tgs", json.dumps(counts))
    # A file that libkrb5 may not write to keeps nothing: each context is an exchange. A private copy needs one for each
    # service and process.
    assert counts == {"shared": 50 * 3 * 4, "private": 50 * 3, "prefetched": 0}


# --- signatures ---


def keys(place: Path, name: str, owner: int | None = None) -> Path:
    path = place / name
    generate(str(path))
    if owner is not None:
        os.chown(path, owner, owner)
    return path


@pytest.mark.root
def test_tokens_that_are_signed(runner: Runner, realm: Realm, place: Path, volume: Path) -> None:
    key = keys(place, "signing", REFRESHER)
    config = configured(realm, place, volume, signing_key=key, lifetime="6s")
    path, etl = volume / "token" / "krb5cc", realm.principal("etl")
    trusting = {"principal": etl, "public_key": f"{key}.pub"}
    with refreshing(runner, realm, config) as running:
        for count in (1, 2):
            running.logged("published", count=count)
            assert krbrefresh.validate(path, min_remaining=0, **trusting).generation
        service = realm.principal("HTTP/web.test")
        assert works(runner, realm, path, [service], **trusting) == {service: etl}

        # A new key: what it signs comes at once, and workers trust both for a while.
        new = keys(place, "new", REFRESHER)
        before = krbrefresh.load(path).generation
        (place / "new").rename(key)
        both = [f"{key}.pub", f"{new}.pub"]

        def signed_anew() -> bool:
            token = krbrefresh.validate(path, principal=etl, public_key=both, min_remaining=0)
            return bool(token.manifest and token.manifest.key_id == PrivateKey.load(str(key)).key_id)

        eventually(signed_anew, within=10)
        assert (krbrefresh.load(path).generation or 0) > (before or 0)
        with pytest.raises(krbrefresh.UntrustedError, match="signed with the key"):
            krbrefresh.validate(path, **trusting)

        # No key, no publication: one that is not signed is of no use to anybody.
        key.unlink()
        running.process.send_signal(signal.SIGUSR1)
        failed = running.logged("refresh_failed", within=20)[0]
        assert failed["reason"] == "publish_failed"
        assert f"the signing key: {key}: No such file" in failed["message"]
        assert "PRIVATE" not in running.text
        assert running.stop() < 5


@pytest.mark.root
def test_a_token_of_another_key_is_not_adopted(runner: Runner, realm: Realm, place: Path, volume: Path) -> None:
    key = keys(place, "signing", REFRESHER)
    config = configured(realm, place, volume, signing_key=key)
    with refreshing(runner, realm, config) as running:
        running.logged("published")
    with refreshing(runner, realm, config) as running:
        running.logged("adopted")
    keys(place, "new", REFRESHER).rename(key)
    with refreshing(runner, realm, config) as running:
        running.logged("published")
        assert not running.named("adopted")


def test_what_somebody_else_has_signed_is_neither_adopted_nor_believed(
    runner: Runner, realm: Realm, place: Path, volume: Path
) -> None:
    key = keys(place, "signing")
    config = configured(realm, place, volume, signing_key=key)
    path = volume / "token" / "krb5cc"
    assert krbrefresh_command("once", runner, realm, config).returncode == 0
    ours = krbrefresh.load(path)
    assert ours.manifest
    forger = PrivateKey.load(str(keys(place, "forger")))
    forger.key_id = PrivateKey.load(str(key)).key_id
    now = int(time.time())
    body = ccache_bytes(
        ticket(Principal.parse(ours.principal), authtime=now, endtime=now + 315_360_000),
        principal=Principal.parse(ours.principal),
    )
    forged = seal(
        body, generation=(1 << 63) - 2, issued_at=now, window_opens_at=now + 300_000_000, refresher="x",
        settings=ours.manifest.settings, signer=forger,
    )  # fmt: skip
    path.chmod(0o640)
    path.write_bytes(forged)
    path.chmod(0o440)
    with refresher(runner, config, realm.env) as running:
        running.logged("published")
        assert not running.named("adopted")
        trusting = {"principal": ours.principal, "public_key": f"{key}.pub"}
        token = krbrefresh.validate(path, **trusting)
        assert (token.generation or 0) < now + 1000
        # And put in the place of ours while it runs, it is replaced at once.
        place.joinpath("forged").write_bytes(forged)
        place.joinpath("forged").rename(path)
        running.logged("token_replaced", within=20)
        running.logged("published", count=2, within=20)
        assert (krbrefresh.validate(path, **trusting).generation or 0) > (token.generation or 0)


@pytest.mark.parametrize(
    ("break_it", "words"),
    [
        (lambda key: key.chmod(0o644), "everybody may read the signing key"),
        (lambda key: key.unlink(), "the signing key: .*No such file"),
        (lambda key: key.write_text("no key"), "not a private key in PEM"),
        (lambda key: key.rename(key.parent / "volume" / "token" / "key"), "lies in the token directory"),
    ],
)
def test_a_signing_key_that_is_refused_at_start(
    runner: Runner, realm: Realm, place: Path, volume: Path, break_it: Any, words: str
) -> None:
    (volume / "token").mkdir(mode=0o2750)
    os.chown(volume / "token", -1, GROUP)
    key = keys(place, "signing")
    config = configured(realm, place, volume, signing_key=key)
    break_it(key)
    if not key.exists() and (volume / "token" / "key").exists():
        config.write_text(config.read_text().replace(str(key), str(volume / "token" / "key")))
    said = krbrefresh_command("run", runner, realm, config)
    assert said.returncode == 2
    assert re.search(words, said.stderr)
    assert "Traceback" not in said.stderr
    assert not (volume / "token" / "krb5cc").exists()
