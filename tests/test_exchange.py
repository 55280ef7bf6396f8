"""Exchanges with a real KDC, in real child processes: what comes back, and every reason that can be had."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from krbrefresh import ccache
from krbrefresh._flags import TicketFlags
from krbrefresh.errors import RefreshError
from krbrefresh.refresher import child
from krbrefresh.refresher.child import Exchanged, Exchanger
from krbrefresh.refresher.lock import LOCK_NAME
from krbrefresh.refresher.settings import CredentialSettings
from krbrefresh.token import Token
from tests.faults import BabblingKdc, keytab_bytes
from tests.faults import krb5_conf as conf_with
from tests.processes import REFRESHER, Runner, children_of, faked_clock
from tests.support import Realm, SilentKdc, eventually

pytestmark = pytest.mark.usefixtures("krb5_env")


def settings(principal: str, keytab: Path, **changes: Any) -> CredentialSettings:
    return CredentialSettings(principal=principal, keytab=str(keytab), ccache="/unused", **changes)


def exchanged(credential: CredentialSettings, deadline: float = 15) -> Exchanged:
    async def one() -> Exchanged:
        return await Exchanger().exchange(credential, deadline)

    return outcome(asyncio.run(one()))


def outcome(exchanged: Exchanged) -> Exchanged:
    if exchanged.error:
        raise exchanged.error
    return exchanged


def exchange(credential: CredentialSettings, deadline: float = 15) -> bytes:
    return exchanged(credential, deadline).ccache


def failure(credential: CredentialSettings, deadline: float = 15) -> RefreshError:
    with pytest.raises(RefreshError) as caught:
        exchange(credential, deadline)
    assert caught.value.hint
    return caught.value


@pytest.fixture
def keytab(realm: Realm, place: Path) -> Path:
    return realm.keytab(place / "etl.keytab", "etl")


@pytest.fixture
def etl(realm: Realm) -> str:
    return realm.principal("etl")


# --- what comes back ---


def test_a_whole_ccache_comes_back_in_memory(keytab: Path, etl: str) -> None:
    parsed = ccache.parse(exchange(settings(etl, keytab)))
    (tgt,) = parsed.credentials
    assert str(parsed.principal) == str(tgt.client) == etl
    assert tgt.server == ccache.tgt_name(parsed.principal.realm)
    assert parsed.kdc_offset is not None
    assert abs(parsed.kdc_offset[0]) <= 1
    assert tgt.endtime - (tgt.starttime or tgt.authtime) == pytest.approx(36000, abs=1)
    assert TicketFlags.INITIAL in TicketFlags(tgt.flags)
    assert TicketFlags.FORWARDABLE not in TicketFlags(tgt.flags)


@pytest.mark.parametrize("lifetime", [5.0, 600.0, 86400.0])
def test_the_lifetime_is_the_one_asked_for(keytab: Path, etl: str, lifetime: float) -> None:
    token = Token.parse(exchange(settings(etl, keytab, lifetime=lifetime)))
    assert token.expires - token.starts == pytest.approx(lifetime, abs=1)  # the second may turn on the way


def test_a_lifetime_that_the_kdc_caps(realm: Realm, place: Path) -> None:
    keytab = realm.keytab(place / "k", "capped", maxlife="20 seconds")
    token = Token.parse(exchange(settings(realm.principal("capped"), keytab)))
    assert token.expires - token.starts == 20


def test_renewable_and_forwardable_as_asked(realm: Realm, place: Path) -> None:
    keytab = realm.keytab(place / "k", "renewer", maxrenewlife="7 days")
    realm.kadmin(f"modprinc -maxrenewlife '7 days' krbtgt/{realm.name}")
    name = realm.principal("renewer")
    token = Token.parse(exchange(settings(name, keytab, renewable_lifetime=3 * 86400.0, forwardable=True)))
    assert TicketFlags.RENEWABLE | TicketFlags.FORWARDABLE in token.flags
    assert token.renew_until is not None
    assert token.renew_until.timestamp() == pytest.approx(token.starts + 3 * 86400, abs=2)
    plain = Token.parse(exchange(settings(name, keytab)))
    assert TicketFlags.RENEWABLE not in plain.flags
    assert TicketFlags.FORWARDABLE not in plain.flags
    assert plain.renew_until is None


def test_a_kdc_that_caps_the_lifetime_makes_the_ticket_renewable_until_what_was_asked_for(
    realm: Realm, place: Path
) -> None:
    """RENEWABLE-OK (RFC 4120, section 5.4.1), which libkrb5 sets of itself."""
    realm.kadmin(f"modprinc -maxrenewlife '7 days' krbtgt/{realm.name}")
    keytab = realm.keytab(place / "k", "capped", maxlife="1 hour", maxrenewlife="7 days")
    token = Token.parse(exchange(settings(realm.principal("capped"), keytab, lifetime=36000.0)))
    assert token.expires - token.starts == pytest.approx(3600, abs=2)
    assert TicketFlags.RENEWABLE in token.flags
    assert token.renew_until is not None
    assert token.renew_until.timestamp() == pytest.approx(token.starts + 36000, abs=2)


def test_a_principal_without_a_realm_gets_the_default_realm(keytab: Path, etl: str) -> None:
    assert Token.parse(exchange(settings("etl", keytab))).principal == etl


def test_a_keytab_with_several_principals_and_an_instance(realm: Realm, place: Path) -> None:
    keytab = realm.keytab(place / "k", "many1", "many2", "HTTP/web.example.com")
    for name in ("many2", "HTTP/web.example.com"):
        assert Token.parse(exchange(settings(realm.principal(name), keytab))).principal == realm.principal(name)


@pytest.mark.parametrize("lifetime", [60.0, 36000.0])
@pytest.mark.parametrize("hours", [2, -2, 24, -24])
def test_a_clock_that_is_off_by_hours(
    keytab: Path, etl: str, hours: int, lifetime: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in faked_clock(f"{hours:+}h").items():
        monkeypatch.setenv(name, value)  # for the child; this process keeps its clock
    body = exchange(settings(etl, keytab, lifetime=lifetime))
    parsed = ccache.parse(body)
    assert parsed.kdc_offset is not None
    assert abs(parsed.kdc_offset[0] + hours * 3600) <= 2
    token = Token.parse(body)
    assert token.expires - token.starts == pytest.approx(lifetime, abs=2)


def test_credentials_that_are_due_together_share_their_children(
    keytab: Path, etl: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(child, "KEPT_FOR", 1.0)

    async def many() -> int:
        exchanger = Exchanger()
        pids: set[int] = set()
        start = exchanger._start

        async def counted() -> asyncio.subprocess.Process:
            child = await start()
            pids.add(child.pid)
            return child

        exchanger._start = counted  # type: ignore[method-assign]
        replies = await asyncio.gather(*(exchanger.exchange(settings(etl, keytab), 30) for _ in range(60)))
        assert {Token.parse(outcome(reply).ccache).principal for reply in replies} == {etl}
        assert len(ours() - before) <= child.MOST_CHILDREN  # there may be more work in a moment
        await gone(before)  # there was none
        await exchanger.close()  # which hears of each end; the kernel's list is ahead of the loop
        return len(pids)

    before = ours()
    # More on a machine that takes a second for an exchange: such a one leaves its place to others, and then ends.
    assert asyncio.run(many()) < 30


def ours() -> set[int]:
    return set(children_of(os.getpid()))


async def gone(before: set[int]) -> None:
    """Until there are no other children than these."""
    while ours() != before:
        await asyncio.sleep(0.01)


def test_a_child_waits_for_work_where_one_exchange_follows_another_and_no_longer(
    keytab: Path, etl: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = ours()

    async def play() -> None:
        exchanger = Exchanger()

        async def one() -> set[int]:
            outcome(await exchanger.exchange(settings(etl, keytab), 30))
            return ours() - before

        assert await one() == set()  # they may be rare
        [kept] = [await one() for _ in range(3)][-1]
        assert await one() == {kept}
        # One that somebody has killed is not asked.
        [process] = exchanger._idle
        os.kill(kept, signal.SIGKILL)
        await process.wait()
        [other] = await one()
        assert other != kept
        monkeypatch.setattr(child, "MOST_REQUESTS", 3)
        assert [await one(), await one()] == [{other}, set()]
        assert len(await one()) == 1
        monkeypatch.setattr(child, "KEPT_FOR", 0.5)
        assert len(await one()) == 1
        await gone(before)  # there was no other
        monkeypatch.setattr(child, "KEPT_FOR", 30.0)
        assert len(await one()) == 1
        await exchanger.close()
        assert ours() == before

    asyncio.run(asyncio.wait_for(play(), 60))


# --- reasons ---


def as_requests(realm: Realm) -> int:
    return realm.log().count("AS_REQ")


@pytest.mark.parametrize(
    ("contents", "reason"),
    [
        (None, "keytab_missing"),
        (b"", "keytab_invalid"),
        (b"not a keytab\n", "keytab_invalid"),
        (b"\x05\x02", "keytab_invalid"),
    ],
    ids=["missing", "empty", "garbage", "no keys"],
)
def test_a_keytab_that_is_none(realm: Realm, place: Path, etl: str, contents: bytes | None, reason: str) -> None:
    if contents is not None:
        (place / "k").write_bytes(contents)
    asked = as_requests(realm)
    error = failure(settings(etl, place / "k"))
    assert error.reason == reason
    assert str(place / "k") in str(error)
    assert as_requests(realm) == asked  # no KDC was asked


def test_a_torn_keytab(keytab: Path, etl: str) -> None:
    contents = keytab.read_bytes()
    reasons = set()
    for size in range(2, len(contents) // 2, 7):
        keytab.write_bytes(contents[:size])
        reasons.add(failure(settings(etl, keytab)).reason)
    assert reasons <= {"keytab_invalid", "principal_not_in_keytab", "enctype_unsupported"}


def test_a_directory_for_a_keytab(place: Path, etl: str) -> None:
    assert failure(settings(etl, place)).reason == "keytab_invalid"


@pytest.mark.root
def test_a_keytab_that_may_not_be_read(runner: Runner, realm: Realm, keytab: Path, etl: str, place: Path) -> None:
    keytab.chmod(0o600)
    config = place / "c.toml"
    config.write_text(f'[kerberos]\nprincipal = "{etl}"\nkeytab = "{keytab}"\nccache = "{place}/t/krb5cc"\n')
    (place / "t").mkdir()
    os.chown(place / "t", REFRESHER, REFRESHER)
    ran = subprocess.run(
        [runner.python, "-m", "krbrefresh", "once", "--config", str(config)],
        env={**runner.env, **realm.env},
        capture_output=True,
        text=True,
        **runner.user(REFRESHER),
    )
    assert ran.returncode == 1
    assert "reason=keytab_unreadable" in ran.stderr
    assert f"uid {REFRESHER}: Permission denied" in ran.stderr
    assert "Traceback" not in ran.stderr


def test_a_principal_that_is_not_in_the_keytab(realm: Realm, keytab: Path) -> None:
    asked = as_requests(realm)
    error = failure(settings(realm.principal("absent"), keytab))
    assert error.reason == "principal_not_in_keytab"
    assert "it has those of etl@" in str(error)
    assert as_requests(realm) == asked


@contextlib.contextmanager
def krb5_conf(realm: Realm, place: Path, monkeypatch: pytest.MonkeyPatch, *changes: tuple[str, str]) -> Iterator[Path]:
    """The child reads a krb5.conf with these pieces replaced."""
    text = Path(realm.env["KRB5_CONFIG"]).read_text()
    for old, new in changes:
        assert re.search(old, text), text
        text = re.sub(old, new, text, count=1)
    path = place / "krb5.conf"
    path.write_text(text)
    monkeypatch.setenv("KRB5_CONFIG", str(path))
    yield path


def test_a_keytab_of_enctypes_that_are_not_permitted(
    realm: Realm, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = realm.principal("sha1only")
    realm.kadmin(f"ktadd -k {place}/k -e aes128-cts-hmac-sha1-96:normal {name}")
    permit = ("dns_lookup_kdc", "permitted_enctypes = aes256-cts-hmac-sha384-192\n\tdns_lookup_kdc")
    asked = as_requests(realm)
    with krb5_conf(realm, place, monkeypatch, permit):
        error = failure(settings(name, place / "k"))
    assert error.reason == "enctype_unsupported"
    assert "aes128-cts-hmac-sha1-96" in str(error)
    assert as_requests(realm) == asked


@pytest.mark.parametrize("preauth", [False, True])
def test_a_stale_key(realm: Realm, place: Path, preauth: bool) -> None:
    name = f"stale{preauth}".lower()
    keytab = realm.keytab(place / "k", name)
    if preauth:
        realm.kadmin(f"modprinc +requires_preauth {realm.principal(name)}")
    realm.kadmin(f"cpw -randkey {realm.principal(name)}")
    asked = realm.log().count("PREAUTH_FAILED")
    error = failure(settings(realm.principal(name), keytab))
    assert error.reason == "key_rejected"
    assert error.code in (-1765328360, -1765328353)
    assert realm.log().count("PREAUTH_FAILED") - asked <= preauth * 2  # one try; the KDC logs it twice at the most


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        ("gone", "delprinc -force {}", "client_unknown"),
        ("disabled", "modprinc -allow_tix {}", "client_revoked"),
        ("over", "modprinc -expire yesterday {}", "client_expired"),
        ("oldpw", "modprinc -pwexpire yesterday {}", "client_expired"),
    ],
)
def test_what_the_kdc_says_of_the_account(realm: Realm, place: Path, name: str, change: str, reason: str) -> None:
    keytab = realm.keytab(place / "k", name)
    realm.kadmin(change.format(realm.principal(name)))
    error = failure(settings(realm.principal(name), keytab))
    assert (error.reason, str(error).startswith(realm.principal(name))) == (reason, True)


def test_a_locked_account(realm: Realm, place: Path) -> None:
    realm.kadmin("addpol -maxfailure 3 -failurecountinterval 10m -lockoutduration 10m lockout")
    keytab = realm.keytab(place / "k", "locked", policy="lockout")
    name = realm.principal("locked")
    realm.kadmin(f"modprinc +requires_preauth {name}")
    good = keytab.read_bytes()
    realm.kadmin(f"cpw -randkey {name}")
    assert [failure(settings(name, keytab)).reason for _ in range(4)] == ["key_rejected"] * 3 + ["client_revoked"]
    keytab.write_bytes(good)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ((r"\[libdefaults\]", "[libdefaults"), "krb5_config"),
        ((r"default_realm = .*", "default_realm = NOWHERE.EXAMPLE"), "krb5_config"),
        ((r"\n\tdefault_realm = .*", ""), "krb5_config"),
        ((r"kdc = 127.0.0.1:\d+", "kdc = 127.0.0.1:9"), "kdc_unreachable"),
        ((r"kdc = 127.0.0.1:\d+", "kdc = no-such-host.invalid"), "kdc_unreachable"),
    ],
    ids=["syntax", "unknown realm", "no default realm", "refused", "unresolvable"],
)
def test_a_configuration_that_leads_nowhere(
    realm: Realm, place: Path, keytab: Path, change: tuple[str, str], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "etl"
    if "NOWHERE" in change[1]:
        realm.kadmin(f"ktadd -norandkey -k {keytab} etl")
        name = f"etl@{realm.name}"
        change = (rf"{re.escape(realm.name)} = {{", "OTHER = {")
    with krb5_conf(realm, place, monkeypatch, change):
        assert failure(settings(name, keytab)).reason == reason


def test_a_clock_that_may_not_be_corrected(
    realm: Realm, place: Path, keytab: Path, etl: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    realm.kadmin(f"modprinc +requires_preauth {etl}")
    try:
        with krb5_conf(realm, place, monkeypatch, ("dns_lookup_kdc", "kdc_timesync = 0\n\tdns_lookup_kdc")):
            for name, value in faked_clock("+20m").items():
                monkeypatch.setenv(name, value)
            assert failure(settings(etl, keytab)).reason == "clock_skew"
    finally:
        realm.kadmin(f"modprinc -requires_preauth {etl}")


def test_a_kdc_that_never_answers_costs_one_deadline(
    realm: Realm, place: Path, keytab: Path, etl: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        SilentKdc() as kdc,
        krb5_conf(realm, place, monkeypatch, (r"kdc = 127.0.0.1:\d+", f"kdc = 127.0.0.1:{kdc.port}")),
    ):
        started = time.monotonic()
        error = failure(settings(etl, keytab), deadline=1)
        assert error.reason == "kdc_timeout"
        assert 1 <= time.monotonic() - started < 5  # libkrb5 alone would take longer than ten
        assert "1 s" in str(error)


@pytest.mark.root
def test_a_dns_that_fails_for_the_moment_is_a_kdc_that_cannot_be_reached(
    realm: Realm, place: Path, keytab: Path, etl: str
) -> None:
    """libkrb5 passes on the system's own number then; the place without a network is a namespace of its own."""
    text = re.sub(r"kdc = 127.0.0.1:\d+", "kdc = kdc.example.com", Path(realm.env["KRB5_CONFIG"]).read_text())
    (place / "krb5.conf").write_text(text)
    ran = subprocess.run(
        ["unshare", "--net", sys.executable, "-m", "krbrefresh", "once"],
        env={
            **Runner().env,
            **realm.env,
            "KRB5_CONFIG": str(place / "krb5.conf"),
            "KRBREFRESH__KERBEROS__PRINCIPAL": etl,
            "KRBREFRESH__KERBEROS__KEYTAB": str(keytab),
            "KRBREFRESH__KERBEROS__CCACHE": str(place / "t" / "krb5cc"),
        },
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 1
    assert "reason=kdc_unreachable" in ran.stderr, ran.stderr


def test_a_fifo_for_a_keytab_is_told_at_once(place: Path, etl: str) -> None:
    os.mkfifo(place / "fifo", 0o400)
    assert failure(settings(etl, place / "fifo"), deadline=5).reason == "keytab_invalid"


# --- isolation ---

HUNG_PARENT = """
import asyncio, sys
from krbrefresh.refresher.child import Exchanger
from krbrefresh.refresher.lock import LOCK_NAME
from krbrefresh.refresher.settings import CredentialSettings
credential = CredentialSettings(principal=sys.argv[1], keytab=sys.argv[2], ccache="/unused")
asyncio.run(Exchanger().exchange(credential, 60))
"""


def test_the_child_dies_with_its_parent_and_leaves_no_core(
    realm: Realm, place: Path, keytab: Path, etl: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        SilentKdc() as kdc,
        krb5_conf(realm, place, monkeypatch, (r"kdc = 127.0.0.1:\d+", f"kdc = 127.0.0.1:{kdc.port}")),
    ):
        parent = subprocess.Popen([sys.executable, "-c", HUNG_PARENT, etl, str(keytab)])
        try:
            (child,) = eventually(lambda: children_of(parent.pid), within=10)
            eventually(kdc.asked, within=10)
            assert re.search(r"Max core file size +0 +0", Path(f"/proc/{child}/limits").read_text())
            parent.send_signal(signal.SIGKILL)
            parent.wait()
            eventually(lambda: not Path(f"/proc/{child}").exists(), within=2)
        finally:
            parent.kill()
            parent.wait()


def opened(log: Path) -> dict[int, collections.Counter[tuple[str, bool]]]:
    """From strace's log: what each process opened, and whether to write it."""
    by_pid: dict[int, collections.Counter[tuple[str, bool]]] = collections.defaultdict(collections.Counter)
    for line in log.read_text().splitlines():
        match = re.match(r'(\d+) +openat\([^"]*"([^"]*)", ([A-Z_|]+).* = \d+', line)
        if match:
            by_pid[int(match[1])][match[2], bool(re.search("WRONLY|RDWR|CREAT", match[3]))] += 1
    return by_pid


@pytest.mark.root  # who else traces a process that does not want to be traced?
def test_the_parent_never_opens_the_keytab_and_no_ticket_touches_a_scratch_file(
    realm: Realm, place: Path, keytab: Path, etl: str
) -> None:
    log = place / "strace.log"
    ran = subprocess.run(
        [
            "strace",
            "-f",
            "-qq",
            "-e",
            "trace=openat,open,creat",
            "-o",
            str(log),
            sys.executable,
            "-m",
            "krbrefresh",
            "once",
        ],
        env={
            **Runner().env,
            **realm.env,
            "KRBREFRESH__KERBEROS__PRINCIPAL": etl,
            "KRBREFRESH__KERBEROS__KEYTAB": str(keytab),
            "KRBREFRESH__KERBEROS__CCACHE": str(place / "t" / "krb5cc"),
            "PYTHONDONTWRITEBYTECODE": "1",
        },
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    by_pid = opened(log)
    readers = {pid for pid, files in by_pid.items() if (str(keytab), False) in files}
    libraries = {pid for pid, files in by_pid.items() if any("libkrb5.so" in name for name, _ in files)}
    parent = int(log.read_text().split()[0])
    assert len(readers) == 1
    assert readers == libraries
    assert parent not in readers
    (child,) = readers
    written = {name for files in by_pid.values() for name, writes in files if writes}
    (temporary,) = written - {"/dev/null", LOCK_NAME}
    assert re.fullmatch(r"\.krbrefresh-[0-9a-f]{16}\.tmp", temporary)
    assert not [name for name, writes in by_pid[child] if writes]


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("raise SystemExit(3)", "ended with status 3 without a reply"),
        ("import os; os.kill(os.getpid(), 9)", "ended with status -9 without a reply"),
        ("print('ready', flush=True); raise SystemExit(4)", "ended with status 4 without a reply"),
        ("print('ready', flush=True); input(); print('nonsense')", "replied 'no line of JSON'"),
        ("print('ready', flush=True); input(); print('[1]', flush=True); input()", "replied [1]"),
        ("print('ready', flush=True); input(); print('{\"size\": -1}', flush=True); input()", "replied {'size': -1}"),
        ("print('ready', flush=True); input(); print('{\"size\": 9999999}\\n' + 'x' * (1 << 28))", "{'size': 9999999}"),
        ("print('ready', flush=True); input(); print('[' * 100000, flush=True); input()", "replied 'no line of JSON'"),
        ("print('ready', flush=True); input()\nwhile 1: print('x' * 65536, end='')", "replied 'no line of JSON'"),
        ("print('ready', flush=True); input(); print('{\"size\": 0}', flush=True); input()", "replied {'size': 0}"),
        ("print('ready', flush=True); input(); print('{\"files\": 1}', flush=True); input()", "replied {'files': 1}"),
        ("print('ready', flush=True); input(); print('{\"size\": 99}')", "ended with status 0 without a reply"),
        ("print('ready', flush=True); input(); print('{\"reason\": \"x\"}')", "replied {'reason': 'x'}"),
        ("import os; print('ready', flush=True); input(); os.close(1); input()", "hung up without a reply"),
        ("import os; os.close(1); input()", "hung up without a reply"),
        ("print('steady', flush=True); input()", "replied b'steady"),
        ("input()", "was not ready after 0 s"),
    ],
)
def test_a_child_that_misbehaves_is_an_internal_failure(
    keytab: Path, etl: str, code: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def one() -> None:
        exchanger = Exchanger()
        exchanger._command = [sys.executable, "-I", "-S", "-c", code]
        try:
            await exchanger.exchange(settings(etl, keytab), 15)
        finally:
            assert not exchanger._idle  # it gets nobody else's request

    before = children_of(os.getpid())
    if code == "input()":
        monkeypatch.setattr(child, "START_WITHIN", 0.3)
    began = time.monotonic()
    with pytest.raises(RefreshError, match=re.escape(words)) as caught:
        asyncio.run(one())
    assert time.monotonic() - began < 10  # at once: the deadline is 15 s
    assert caught.value.reason == "internal"
    assert children_of(os.getpid()) == before


def test_a_cancellation_that_comes_with_the_result_is_not_lost() -> None:
    """As TERM does that comes with a child's answer: asyncio.wait_for would go on (Python before 3.12)."""

    async def play() -> None:
        answered = asyncio.Event()
        waiting = asyncio.create_task(child._within(5, answered.wait()))
        await asyncio.sleep(0.01)
        answered.set()
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert await child._within(5, answered.wait())
        with pytest.raises(asyncio.TimeoutError):
            await child._within(0.01, asyncio.Event().wait())
        await asyncio.sleep(0.01)
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(play())


def test_a_childs_words_are_cut_and_its_word_for_other_files_is_not_taken() -> None:
    files = {path: [1, 2, 3, 4] for path in ("/etc/krb5.keytab", "/etc/shadow")}
    words = "x" * 100_000
    reply = {"reason": "kdc_timeout", "message": words, "hint": words, "files": files}
    outcome = child._outcome(reply, b"", ["/etc/krb5.keytab"])
    assert outcome.error
    assert len(str(outcome.error)) <= 2000
    assert len(outcome.error.hint or "") == 2000
    assert list(outcome.files) == ["/etc/krb5.keytab"]
    refused = [{"service": "HTTP/web", "reason": "service_unknown", "message": words}]
    outcome = child._outcome({"size": 0, "method": "keytab", "refused": refused}, b"", [])
    assert len(str(outcome.refused["HTTP/web"])) <= 2000


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x6b\x82\x02\x00\x30", b"\x7e"])
def test_what_answers_there_is_no_kdc(place: Path, realm: Realm, answer: bytes, krb5_env: Callable[..., Any]) -> None:
    """Something else that listens, or answers that are cut on the way: the hint says so, and asks for no report."""
    keytab = place / "k"
    keytab.write_bytes(keytab_bytes("etl@BABBLING.TEST"))
    with BabblingKdc(answer) as kdc:
        krb5_env("KRB5_CONFIG", conf_with(place / "krb5.conf", realm, BABBLING__TEST=kdc.port)["KRB5_CONFIG"])
        error = failure(settings("etl@BABBLING.TEST", keytab))
    assert error.reason == "internal"
    assert "damaged" in error.hint
    assert "report" not in error.hint


@pytest.mark.parametrize(
    ("name", "enterprise"),
    [
        (rb"user\@corp.example@R", rb"user\@corp.example@R"),
        (rb"a\\\@b@R", rb"a\\\@b@R"),
        (rb"a\@b\\@R", rb"a\@b\\@R"),
        (rb"a\/\@b@R", rb"a\/\@b@R"),
        (rb"user\@corp@R\@S", rb"user\@corp@R\@S"),
        (rb"user@R", None),
        (rb"user\@corp/admin@R", None),
        (rb"a\@b\@c@R", None),
    ],
)
def test_an_enterprise_name_is_the_same_name_of_another_type(name: bytes, enterprise: bytes | None) -> None:
    import krb5

    from krbrefresh.refresher.exchange import _as_enterprise

    context = krb5.init_context()
    principal = krb5.parse_name_flags(context, name)
    made = _as_enterprise(context, principal)
    assert (made.type == 10) == (enterprise is not None)  # KRB_NT_ENTERPRISE, RFC 6806
    assert krb5.unparse_name_flags(context, made) == name
