"""What credentials share: accounts, directories, threads. What goes wrong with one must not spread to another."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

import krbrefresh
from krbrefresh.errors import RefreshError
from krbrefresh.refresher.account import Account, NotAsked, Unbelieved
from krbrefresh.refresher.child import Exchanged
from krbrefresh.refresher.credential import Credential
from krbrefresh.refresher.lock import Lock
from krbrefresh.refresher.service import Service
from krbrefresh.refresher.settings import CredentialSettings
from krbrefresh.refresher.status import Tally
from tests.faults import LISTENING, Http, Hung, as_answers, kdc_comes_back, kdc_dies, keytab_bytes
from tests.processes import Runner, krbrefresh_command, refresher
from tests.support import Realm, eventually, program
from tests.test_faults import configured, hung_credentials, hung_krb5_conf
from tests.test_leadership import lock_in

TICKET = Exchanged(ccache=b"x", method="keytab")


def refusal(reason: str = "key_rejected") -> Exchanged:
    return Exchanged(error=RefreshError(reason, "no"))


# --- an account ---


async def ticket() -> Exchanged:
    return TICKET


async def never() -> Exchanged:
    await asyncio.Event().wait()
    return TICKET


def ask_all(answers: list[Exchanged], tries: int, *, account: Account | None = None) -> tuple[list[str], int]:
    """So many tries at the same moment, and what came of them: the reasons, and how many were asked for."""
    asked = 0

    async def exchange() -> Exchanged:
        nonlocal asked
        answer = answers[min(asked, len(answers) - 1)]
        asked += 1
        await asyncio.sleep(0)
        return answer

    async def one(account: Account) -> str:
        try:
            exchanged = await account.ask(exchange, 15)
        except RefreshError as error:
            return f"told {error.reason}"
        return exchanged.error.reason if exchanged.error else "ticket"

    async def every() -> list[str]:
        shared = account or Account()
        return await asyncio.gather(*(one(shared) for _ in range(tries)))

    return asyncio.run(every()), asked


def test_one_asks_first_and_what_it_is_refused_the_others_are_refused_unasked() -> None:
    assert ask_all([refusal()], 7) == (["key_rejected", *["told key_rejected"] * 6], 1)
    assert ask_all([TICKET], 7) == (["ticket"] * 7, 7)
    # The KDC that does not answer may be back with another key: nobody asks for what the first one was told.
    for reason in ("kdc_timeout", "kdc_unreachable"):
        assert ask_all([refusal(reason)], 7) == ([reason, *[f"told {reason}"] * 6], 1)
    # Nothing was held against the account: all may ask, one after the other.
    assert ask_all([refusal("policy_refused"), refusal()], 7) == (
        ["policy_refused", "key_rejected", *["told key_rejected"] * 5],
        2,
    )
    assert ask_all([refusal("policy_refused")], 7) == (["policy_refused"] * 7, 7)


def test_a_new_key_is_asked_for_and_a_refusal_ends() -> None:
    async def play() -> None:
        account, answers = Account(), [refusal(), TICKET, refusal(), TICKET]

        async def exchange() -> Exchanged:
            return answers.pop(0)

        assert (await account.ask(exchange, 15)).error
        account.refused(refusal(), 300)
        with pytest.raises(RefreshError, match="not asked"):
            await account.ask(exchange, 15)
        account.forget()
        assert not (await account.ask(exchange, 15)).error
        assert (await account.ask(exchange, 15)).error
        account.refused(refusal(), 0)  # it is over
        assert not (await account.ask(exchange, 15)).error

    asyncio.run(play())


def test_a_key_that_was_good_and_may_have_changed_is_tried_by_one() -> None:
    async def play() -> None:
        account, asked = Account(), 0

        async def exchange() -> Exchanged:
            nonlocal asked
            asked += 1
            await asyncio.sleep(0)
            return TICKET if asked == 1 else refusal()

        assert await account.ask(exchange, 15) == TICKET
        account.forget()  # another keytab
        results = await asyncio.gather(*(account.ask(exchange, 15) for _ in range(7)), return_exceptions=True)
        assert [isinstance(each, NotAsked) for each in results] == [False, *[True] * 6]
        account.refused(refusal(), 300)
        with pytest.raises(NotAsked) as told:
            await account.ask(exchange, 15)
        assert 300 < told.value.wait < 303  # a little later than the one that was refused
        assert asked == 2

    asyncio.run(play())


def test_nobody_waits_longer_for_the_first_than_an_exchange_may_take() -> None:
    async def play() -> None:
        account = Account()

        first = asyncio.ensure_future(account.ask(never, 15))
        await asyncio.sleep(0)
        with pytest.raises(NotAsked, match="no answer within") as told:  # and asks nobody who may refuse by now
            await asyncio.wait_for(account.ask(ticket, 0.01), 5)
        assert (told.value.reason, told.value.wait) == ("kdc_timeout", None)
        first.cancel()

    asyncio.run(play())


def test_an_exchange_that_has_no_end_is_the_others_too() -> None:
    async def play() -> None:
        account, asked = Account(), 0

        async def exchange() -> Exchanged:
            nonlocal asked
            asked += 1
            await asyncio.sleep(0)
            raise RefreshError("kdc_timeout", "no end")

        assert await account.ask(ticket, 15) == TICKET
        account.doubt()
        results = await asyncio.gather(*(account.ask(exchange, 15) for _ in range(7)), return_exceptions=True)
        assert [getattr(each, "reason", None) for each in results] == ["kdc_timeout"] * 7
        assert asked == 1

    asyncio.run(play())


UNDECRYPTED = Exchanged(error=RefreshError("key_rejected", "Decrypt integrity check failed", code=-1765328384 + 31))
SILENCE = refusal("kdc_timeout")


def test_an_answer_that_cannot_be_decrypted_is_no_refusal_after_a_silence_and_no_more_than_once() -> None:
    """A KDC that had hung answers them all, and a late answer can come to another principal's exchange. But older KDCs
    say the same number of a key that they refuse, and count it."""
    account = Account()

    def one(answer: Exchanged) -> str:
        account.forget()  # whatever is told to those who do not ask: USR1, or another keytab
        return ask_all([answer], 1, account=account)[0][0]

    assert one(UNDECRYPTED) == "key_rejected"  # nothing came before
    for silence in ("kdc_timeout", "kdc_unreachable"):
        assert [one(TICKET), one(refusal(silence)), one(UNDECRYPTED)] == ["ticket", silence, "kdc_timeout"]
        assert one(UNDECRYPTED) == "key_rejected"
        # A KDC that comes and goes gets no second one.
        assert [one(refusal(silence)), one(UNDECRYPTED)] == [silence, "key_rejected"]
    assert [one(TICKET), one(refusal("publish_failed")), one(UNDECRYPTED)][2] == "key_rejected"
    # What the KDC alone can say is believed at once.
    said = Exchanged(error=RefreshError("key_rejected", "Preauthentication failed", code=-1765328384 + 24))
    assert [one(TICKET), one(SILENCE), one(said)][2] == "key_rejected"


def test_an_answer_that_is_not_believed_is_asked_for_again_soon_however_long_the_silence_was(
    runner: Runner, own_realm: Realm, place: Path
) -> None:
    keytab = own_realm.keytab(place / "k", "etl")
    config = configured(place, {"etl": {"principal": own_realm.principal("etl"), "keytab": keytab}})
    with refresher(runner, config, {**own_realm.env, **LISTENING}) as running:
        running.logged("published")
        http = Http(running)
        own_realm.kadmin(f"cpw -randkey {own_realm.principal('etl')}")
        kdc_dies(own_realm)
        for failures in range(1, 9):  # a backoff of up to a minute
            running.process.send_signal(signal.SIGUSR1)
            eventually(lambda: sum(http.metrics()["refresh_failures_total"].values()) >= failures, within=10)  # noqa: B023
        kdc_comes_back(own_realm)
        running.process.send_signal(signal.SIGUSR1)
        *_, not_believed, refused = running.logged("refresh_failed", count=6)
        assert (not_believed["reason"], refused["reason"]) == ("kdc_timeout", "key_rejected")


def test_what_is_not_believed_is_asked_for_no_later_than_otherwise_and_never_before_a_refusals_time() -> None:
    service = Service.__new__(Service)
    now = 1_000_000.0
    service._clock, service._credentials, service._tally = lambda: now, [], Tally()
    service._wake, service._lead = asyncio.Event(), service._clock_lead()

    def due_in(**state: int) -> float:
        settings = CredentialSettings(principal="etl@R", keytab="/k", ccache="/c")
        credential = Credential(settings, exchange_deadline=15, chance=lambda: 0.99)
        vars(credential).update(state)
        service._failed(credential, Unbelieved("kdc_timeout", "no"))
        return credential.due_at - now

    assert due_in(failures=0) <= 1
    assert due_in(failures=8) == Unbelieved.wait
    assert due_in(failures=8, rejections=1) >= 300


def test_credentials_of_one_account_have_one_such_answer_between_them() -> None:
    account = Account()
    assert ask_all([SILENCE], 3, account=account)[1] == 1
    # One asks, and the others are told of a silence, which is no refusal.
    assert ask_all([UNDECRYPTED], 3, account=account) == (["kdc_timeout", *["told kdc_timeout"] * 2], 1)
    assert ask_all([UNDECRYPTED], 3, account=account) == (["key_rejected", *["told key_rejected"] * 2], 1)


def test_a_renewal_says_nothing_of_the_key() -> None:
    async def play() -> None:
        account, asked = Account(), 0

        async def renewal() -> Exchanged:
            return Exchanged(ccache=b"x", method="renew")

        async def exchange() -> Exchanged:
            nonlocal asked
            asked += 1
            await asyncio.sleep(0)
            return refusal()

        await account.ask(renewal, 15)
        await asyncio.gather(*(account.ask(exchange, 15) for _ in range(7)), return_exceptions=True)
        assert asked == 1

    asyncio.run(play())


@pytest.mark.parametrize("event", ["clock", "lost", "outage"])
def test_many_that_try_for_the_same_cause_are_one_attempt(event: str) -> None:
    """All was well, the key is changed at the KDC, and something makes all of them ask at once."""

    async def play() -> None:
        account = Account()
        settings = CredentialSettings(principal="etl@EXAMPLE.COM", keytab="/k", ccache="/c")
        lives = [Credential(settings, exchange_deadline=15, account=account) for _ in range(10)]
        assert await account.ask(ticket, 15) == TICKET
        if event == "clock":
            lives[0].distrust(100)
        elif event == "lost":
            lives[0].lost(1000)
        else:

            async def down() -> Exchanged:
                return refusal("kdc_unreachable")

            await account.ask(down, 15)
        asked = 0

        async def exchange() -> Exchanged:
            nonlocal asked
            asked += 1
            await asyncio.sleep(0)
            return refusal()

        results = await asyncio.gather(*(account.ask(exchange, 15, life) for life in lives), return_exceptions=True)
        assert [isinstance(each, NotAsked) for each in results] == [False, *[True] * 9]
        assert asked == 1
        lives[1].lost(1000)
        with pytest.raises(NotAsked):  # a doubt does not undo a refusal
            await account.ask(exchange, 15, lives[1])

    asyncio.run(play())


def test_an_armours_account_hears_of_the_armour_alone() -> None:
    async def play() -> None:
        account, armour = Account(), Account(armour=True)
        answer = Exchanged(error=RefreshError("key_rejected", "no"), armour=True)

        async def exchange() -> Exchanged:
            return answer

        async def ask() -> Exchanged:
            return await account.ask(exchange, 15)

        await armour.ask(ask, 15)
        with pytest.raises(NotAsked):
            await armour.ask(ask, 15)
        armour.forget()
        answer = refusal()  # the account's own key: the armour was in order, and the account was not refused before
        assert await armour.ask(ask, 15) == answer
        with pytest.raises(NotAsked):
            await account.ask(exchange, 15)
        assert await armour.ask(exchange, 15) == answer

    asyncio.run(play())


def test_who_asks_first_and_is_cancelled_or_fails_lets_the_others_go_on() -> None:
    async def play() -> None:
        account = Account()

        first = asyncio.ensure_future(account.ask(never, 15))
        await asyncio.sleep(0)
        second = asyncio.ensure_future(account.ask(ticket, 15))
        await asyncio.sleep(0)
        assert not second.done()
        first.cancel()
        assert await asyncio.wait_for(second, 5) == TICKET

    asyncio.run(play())


def test_ten_credentials_with_one_stale_key_are_one_bad_attempt(runner: Runner, realm: Realm, place: Path) -> None:
    realm.kadmin(f"addprinc -randkey {realm.principal('shared-stale')}")
    keytab = place / "stale.keytab"
    keytab.write_bytes(keytab_bytes(realm.principal("shared-stale")))
    keytab.chmod(0o400)
    credentials = {f"c{index}": {"principal": realm.principal("shared-stale"), "keytab": keytab} for index in range(10)}
    before = len(realm.log())
    with refresher(runner, configured(place, credentials), realm.env) as running:
        failures = running.logged("refresh_failed", count=10, within=20)
        assert {event["reason"] for event in failures} == {"key_rejected"}
        assert sum("not asked" in event["message"] for event in failures) == 9
        # Without preauthentication the KDC answers, and it is the client that finds the key wrong: a line per attempt.
        assert len(as_answers(realm, realm.principal("shared-stale"), after=before)) == 1
        running.process.send_signal(signal.SIGUSR1)  # somebody wants to know: once more, and once
        eventually(lambda: len(as_answers(realm, realm.principal("shared-stale"), after=before)) == 2, within=10)
        running.stop()
    assert len(as_answers(realm, realm.principal("shared-stale"), after=before)) == 2


def test_ten_credentials_with_one_stale_armour_are_one_bad_attempt(runner: Runner, realm: Realm, place: Path) -> None:
    host = realm.principal("host/stale-armour")
    armour = place / "armour.keytab"
    armour.write_bytes(keytab_bytes(host))
    armour.chmod(0o400)
    names = [f"armoured{index}" for index in range(10)]
    keytab = realm.keytab(place / "k", *names)
    credentials = {
        name: {"principal": realm.principal(name), "keytab": keytab, "fast_keytab": armour} for name in names
    }
    before = len(realm.log())
    with refresher(runner, configured(place, credentials), realm.env) as running:
        failures = running.logged("refresh_failed", count=10, within=20)
        assert {event["reason"] for event in failures} == {"key_rejected"}
        assert all("FAST armour: " in event["message"] for event in failures)
        assert sum("not asked" in event["message"] for event in failures) == 9
        assert len(as_answers(realm, host, after=before)) == 1
        new = realm.keytab(place / "new", "host/stale-armour")
        new.chmod(0o400)
        new.rename(armour)
        running.logged("published", count=10, within=20)
        running.stop()


# --- directories and locks ---


def test_one_directory_by_two_names_has_one_lock(runner: Runner, realm: Realm, place: Path) -> None:
    keytab = realm.keytab(place / "k", "etl", "reports")
    (place / "run").mkdir()
    (place / "var").symlink_to("run")
    config = configured(
        place,
        {
            "etl": {"principal": realm.principal("etl"), "keytab": keytab, "ccache": place / "run" / "t" / "a"},
            "reports": {"principal": realm.principal("reports"), "keytab": keytab, "ccache": place / "var" / "t" / "b"},
        },
    )
    with refresher(runner, config, realm.env) as running:
        running.logged("published", count=2)
        assert not running.named("standing_by")
        running.stop()


def test_who_stands_by_takes_over_a_directory_that_is_not_right_and_says_so(
    runner: Runner, realm: Realm, place: Path
) -> None:
    etl = {"principal": realm.principal("etl"), "keytab": realm.keytab(place / "k", "etl")}
    (place / "etl").mkdir(mode=0o750)
    leader = Lock()
    assert lock_in(place / "etl", leader)
    with refresher(runner, configured(place, {"etl": etl}), realm.env) as running:
        running.logged("standing_by")
        (place / "etl").chmod(0o2777)
        leader.release()
        running.logged("leading")
        (failed,) = running.logged("refresh_failed")
        assert failed["reason"] == "publish_failed"
        (place / "etl").chmod(0o2750)
        running.logged("published")
        running.stop()


def test_a_lock_file_that_cannot_be_used_is_named(runner: Runner, realm: Realm, place: Path) -> None:
    etl = {"principal": realm.principal("etl"), "keytab": realm.keytab(place / "k", "etl")}
    (place / "etl" / ".krbrefresh.lock").mkdir(parents=True)
    (place / "etl").chmod(0o750)
    (place / "etl" / ".krbrefresh.lock").rmdir()
    (place / "etl" / ".krbrefresh.lock").symlink_to("nowhere")
    with refresher(runner, configured(place, {"etl": etl}), realm.env) as running:
        (failed,) = running.logged("refresh_failed")
        assert (failed["reason"], ".krbrefresh.lock: " in failed["message"]) == ("publish_failed", True)
        (place / "etl" / ".krbrefresh.lock").unlink()
        running.logged("published")
        running.stop()


def test_a_credential_that_comes_to_stand_by_while_the_settings_change_is_looked_at(
    runner: Runner, realm: Realm, place: Path
) -> None:
    """The reading waits for an exchange that hangs, of a credential that goes; the one that comes stands by."""
    etl = {"principal": realm.principal("etl"), "keytab": realm.keytab(place / "k", "etl")}
    (place / "etl").mkdir(mode=0o750)
    leader = Lock()
    assert lock_in(place / "etl", leader)
    with contextlib.ExitStack() as stack:
        env, kdc = hung_krb5_conf(stack, realm, place)
        config = configured(place, hung_credentials(place, 1), exchange_deadline="4s")
        running = stack.enter_context(refresher(runner, config, env))
        eventually(kdc.asked, within=10)
        configured(place, {"etl": etl}, exchange_deadline="4s")
        running.process.send_signal(signal.SIGHUP)
        running.logged("standing_by")
        running.logged("settings_read", within=20)
        leader.release()
        running.logged("leading")
        running.logged("published")
        running.stop()


# --- what hangs ---


@pytest.fixture
def one_hangs(realm: Realm, place: Path) -> tuple[Hung, dict[str, dict[str, Any]]]:
    """Two credentials that are due at the start, and the token directory of the first one hangs."""
    keytab = realm.keytab(place / "k", "etl", "reports")
    (place / "etl").mkdir(mode=0o750)
    credentials: dict[str, dict[str, Any]] = {
        name: {"principal": realm.principal(name), "keytab": keytab} for name in ("etl", "reports")
    }
    return Hung(place / "etl"), credentials


def test_a_file_system_that_hangs_at_the_start_holds_its_own_credential_alone(
    runner: Runner, realm: Realm, place: Path, one_hangs: tuple[Hung, dict[str, dict[str, Any]]]
) -> None:
    hung, credentials = one_hangs
    config = configured(place, credentials)
    with (
        refresher(runner, config, {**realm.env, **LISTENING}, wrapper=hung.wrapper) as running,
        hung.holds(running.process),
    ):
        (failed,) = running.logged("refresh_failed", within=20)
        assert (failed["credential"], failed["reason"]) == ("etl", "publish_failed")
        assert "has not answered for 2 s" in failed["message"]
        (published,) = running.logged("published", within=20)
        assert published["credential"] == "reports"
        status, said = Http(running).ready()
        assert (status, said["etl"]["state"], said["etl"]["reason"]) == (503, "starting", "publish_failed")
        assert said["reports"]["state"] == "valid"
        hung.answers(running.process)
        assert running.logged("published", count=2)[1]["credential"] == "etl"
        assert Http(running).ready()[0] == 200
        running.stop()


def test_a_layout_that_is_refused_late_does_not_end_it(
    runner: Runner, realm: Realm, place: Path, one_hangs: tuple[Hung, dict[str, dict[str, Any]]]
) -> None:
    hung, credentials = one_hangs
    (place / "etl").chmod(0o2770)
    with (
        refresher(runner, configured(place, credentials), realm.env, wrapper=hung.wrapper) as running,
        hung.holds(running.process),
    ):
        running.logged("refresh_failed", within=20)
        running.logged("published", within=20)
        hung.answers(running.process)
        failed = running.logged("refresh_failed", count=2)[1]
        assert (failed["credential"], failed["reason"]) == ("etl", "publish_failed")
        assert "may write to the token directory" in failed["message"]
        (place / "etl").chmod(0o2750)
        running.logged("published", count=2)
        running.stop()


def test_a_layout_that_is_refused_ends_it_though_a_file_system_hangs(
    runner: Runner, realm: Realm, place: Path, one_hangs: tuple[Hung, dict[str, dict[str, Any]]]
) -> None:
    hung, credentials = one_hangs
    (place / "bad").mkdir()
    (place / "bad").chmod(0o2770)
    credentials["bad"] = credentials["reports"]
    with (
        refresher(runner, configured(place, credentials), realm.env, wrapper=hung.wrapper) as running,
        hung.holds(running.process),
    ):
        # All of its threads have ended but the one that strace holds.
        eventually(lambda: "State:\tZ" in Path(f"/proc/{running.process.pid}/status").read_text(), within=30)
        hung.answers(running.process)
        assert running.process.wait(10) == 2
        assert "may write to the token directory" in running.text
    assert not (place / "reports").exists()  # nothing was written


def test_hup_and_usr1_before_it_has_begun_are_heard_afterwards(
    runner: Runner, realm: Realm, place: Path, one_hangs: tuple[Hung, dict[str, dict[str, Any]]]
) -> None:
    hung, credentials = one_hangs
    config = configured(place, {"reports": credentials["reports"]})
    assert krbrefresh_command("once", runner, realm, config).returncode == 0  # there is a token to adopt
    config = configured(place, credentials, listen="127.0.0.1:0")
    env = {**realm.env, "PYTHONPATH": runner.env["PYTHONPATH"]}
    here = Runner(runner.python, {})  # where the environment does not say where to listen
    with refresher(here, config, env, wrapper=hung.wrapper) as running, hung.holds(running.process):
        eventually(lambda: hung.asked(running.process), within=20)
        configured(place, credentials, listen="127.0.0.2:0")
        for number in (signal.SIGUSR1, signal.SIGHUP):
            running.process.send_signal(number)
        running.logged("refresh_requested")
        # The first of them is heard of only where it was there before the second was asked for.
        eventually(lambda: any("127.0.0.2" in event["address"] for event in running.named("listening")), within=20)
        running.logged("published", within=20)
        told = [(event["event"], event.get("credential")) for event in running.events]
        heard = told.index(("refresh_requested", None))
        assert heard < told.index(("started", None)) < told.index(("published", "reports"))
        assert told.index(("started", None)) < told.index(("settings_read", None))
        assert Http(running).get("/livez")[0] == 200
        hung.answers(running.process)
        running.logged("published", count=2)
        running.stop()


def test_a_stop_path_that_hangs_holds_up_nothing_else(runner: Runner, realm: Realm, place: Path) -> None:
    etl = {"principal": realm.principal("etl"), "keytab": realm.keytab(place / "k", "etl")}
    (place / "orders").mkdir()
    hung = Hung(place / "orders", place / "orders" / "stop")
    config = configured(place, {"etl": etl}, stop_path=str(place / "orders" / "stop"))
    with refresher(runner, config, realm.env, wrapper=hung.wrapper) as running, hung.holds(running.process):
        running.logged("published", within=20)
        shutil.rmtree(place / "etl")
        running.logged("token_vanished", within=20)
        running.logged("published", count=2)
        (place / "orders" / "stop").touch()
        hung.answers(running.process)
        assert running.process.wait(20) == 0
        assert running.named("stop_path_found")


def test_a_directory_that_hangs_holds_up_no_other_takeover(
    runner: Runner, realm: Realm, place: Path, one_hangs: tuple[Hung, dict[str, dict[str, Any]]]
) -> None:
    """What hangs is the ccache, at the look at what is published: the lock was had before."""
    _, credentials = one_hangs
    (place / "reports").mkdir(mode=0o750)
    leader, other = Lock(), Lock()
    assert lock_in(place / "etl", leader)
    assert lock_in(place / "reports", other)
    hung = Hung(place / "etl" / "krb5cc")
    with (
        refresher(runner, configured(place, credentials), realm.env, wrapper=hung.wrapper) as running,
        hung.holds(running.process),
    ):
        running.logged("standing_by", count=2, within=20)
        other.release()
        running.logged("leading", within=20)
        assert running.logged("published")[0]["credential"] == "reports"
        leader.release()
        hung.answers(running.process)
        assert running.logged("published", count=2)[1]["credential"] == "etl"
        running.stop()


@pytest.mark.slow
def test_a_publication_that_hangs_is_told_and_holds_up_neither_settings_nor_the_end(
    runner: Runner, realm: Realm, place: Path
) -> None:
    strace = program("strace")
    keytab = realm.keytab(place / "k", "etl", "reports")
    credentials: dict[str, dict[str, Any]] = {
        name: {"principal": realm.principal(name), "keytab": keytab} for name in ("etl", "reports")
    }
    with refresher(runner, configured(place, credentials, exchange_deadline="2s"), realm.env) as running:
        running.logged("published", count=2)
        tracer = subprocess.Popen(
            [strace, "-f", "-p", str(running.process.pid), "-o", "/dev/null", "-e", "inject=fsync:delay_enter=9000000"],
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            assert tracer.stderr is not None
            assert "attached" in tracer.stderr.readline()
            running.process.send_signal(signal.SIGUSR1)
            failed = running.logged("refresh_failed", count=2, within=20)
            assert {event["reason"] for event in failed} == {"publish_failed"}
            assert all("has not answered for 2 s" in event["message"] for event in failed)
            configured(place, {"etl": credentials["etl"]}, exchange_deadline="2s")
            running.process.send_signal(signal.SIGHUP)
            running.logged("settings_read", within=15)
        finally:
            tracer.terminate()
            tracer.communicate(timeout=20)
        running.logged("published", count=3, within=20)
        running.stop()


def test_a_loop_begins_again_after_a_defect(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr("krbrefresh.refresher.service._AFTER_DEFECT", 0.0)
    began = 0

    async def work() -> None:
        nonlocal began
        began += 1
        if began < 3:
            raise RuntimeError("can't start new thread")
        await asyncio.Event().wait()

    async def play() -> None:
        service = Service.__new__(Service)
        service._stopping = asyncio.Event()
        task = asyncio.ensure_future(service._for_ever(work))
        while began < 3:
            await asyncio.sleep(0.001)
        assert not task.done()
        task.cancel()

    asyncio.run(asyncio.wait_for(play(), 10))
    assert began == 3


# --- keytabs ---


def test_hup_with_another_keytab_tries_it(runner: Runner, realm: Realm, place: Path) -> None:
    etl: dict[str, Any] = {"principal": realm.principal("etl"), "keytab": realm.keytab(place / "k", "etl")}
    with refresher(runner, configured(place, {"etl": etl}), realm.env) as running:
        running.logged("published")
        configured(place, {"etl": {**etl, "keytab": place / "absent"}})
        running.process.send_signal(signal.SIGHUP)
        (failed,) = running.logged("refresh_failed")
        assert failed["reason"] == "keytab_missing"
        assert krbrefresh.validate(place / "etl" / "krb5cc")  # as before
        os.link(place / "k", place / "absent")
        running.logged("published", count=2)
        running.stop()


def test_hup_with_other_options_asks_again_after_a_refusal(runner: Runner, realm: Realm, place: Path) -> None:
    realm.kadmin(f"addprinc -randkey {realm.principal('hup-stale')}")
    keytab = place / "stale.keytab"
    keytab.write_bytes(keytab_bytes(realm.principal("hup-stale")))
    keytab.chmod(0o400)
    stale: dict[str, Any] = {"principal": realm.principal("hup-stale"), "keytab": keytab}
    before = len(realm.log())
    with refresher(runner, configured(place, {"etl": stale}), realm.env) as running:
        running.logged("refresh_failed")
        configured(place, {"etl": {**stale, "lifetime": "9h"}})
        running.process.send_signal(signal.SIGHUP)
        failed = running.logged("refresh_failed", count=2)
        assert "not asked" not in failed[1]["message"]
        assert len(as_answers(realm, realm.principal("hup-stale"), after=before)) == 2
        running.stop()


@pytest.mark.parametrize("then", ["good", "stale"])
def test_a_keytab_that_is_swapped_for_a_stale_one_is_one_bad_attempt(
    runner: Runner, realm: Realm, place: Path, then: str
) -> None:
    name = f"swapped-{then}"
    good = realm.keytab(place / "good", name)
    keytab = place / "k"
    os.link(good, keytab)
    credentials = {f"c{index}": {"principal": realm.principal(name), "keytab": keytab} for index in range(5)}
    with refresher(runner, configured(place, credentials), realm.env) as running:
        running.logged("published", count=5)
        before = len(realm.log())
        new = place / "new"
        new.write_bytes(good.read_bytes() if then == "good" else keytab_bytes(realm.principal(name)))
        new.chmod(0o400)
        new.rename(keytab)
        if then == "good":
            running.logged("published", count=10)
        else:
            failed = running.logged("refresh_failed", count=5)
            assert {event["reason"] for event in failed} == {"key_rejected"}
        running.stop()
    assert len(as_answers(realm, realm.principal(name), after=before)) == (5 if then == "good" else 1)
