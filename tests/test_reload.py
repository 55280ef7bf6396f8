"""HUP, USR1, stop_path: what an operator and an orchestrator say to a running refresher."""

from __future__ import annotations

import os
import re
import signal
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import krbrefresh
from krbrefresh.refresher.lock import LOCK_NAME, Lock
from tests.processes import Runner, refresher, toml
from tests.support import Realm, SilentKdc, eventually
from tests.test_leadership import lock_in

Section = dict[str, Any]


@pytest.fixture
def write(realm: Realm, place: Path) -> Callable[..., Path]:
    """Writes the settings of some credentials, `etl` and `reports` if nothing else is said."""
    keytab = realm.keytab(place / "k", "etl", "reports", "audit")
    config = place / "c.toml"

    def write(
        names: tuple[str, ...] = ("etl", "reports"), refresher: Section | None = None, **changes: Section
    ) -> Path:
        sections = {
            f"credentials__{name}": {
                "principal": realm.principal(name),
                "ccache": place / name / "krb5cc",
                **changes.get(name, {}),
            }
            for name in names
        }
        new = config.with_suffix(".new")
        new.write_text(
            toml(refresher={"log_format": "json", **(refresher or {})}, kerberos={"keytab": keytab}, **sections)
        )
        new.rename(config)
        return config

    return write


def generation(place: Path, name: str) -> int:
    return krbrefresh.load(place / name / "krb5cc").generation or 0


def hang_up(running: Any, *, count: int = 1) -> dict[str, Any]:
    running.process.send_signal(signal.SIGHUP)
    return dict(running.logged("settings_read", count=count)[-1])


def test_hup_refreshes_what_has_changed_and_nothing_else(
    runner: Runner, realm: Realm, place: Path, write: Callable[..., Path]
) -> None:
    with refresher(runner, write(), realm.env) as running:
        running.logged("published", count=2)
        before = {name: generation(place, name) for name in ("etl", "reports")}
        write(etl={"lifetime": "9h"})
        told = hang_up(running)
        assert (told["credentials"], told["changed"], told["gone"]) == (2, 1, 1)
        running.logged("published", count=3)
        assert generation(place, "etl") > before["etl"]
        token = krbrefresh.load(place / "etl" / "krb5cc")
        assert token.expires - token.starts == 9 * 3600
        assert generation(place, "reports") == before["reports"]
        # The mode alone: the token is published anew, with a new ticket.
        write(etl={"lifetime": "9h"}, reports={"mode": "0400"})
        hang_up(running, count=2)
        running.logged("published", count=4)
        assert stat.S_IMODE((place / "reports" / "krb5cc").stat().st_mode) == 0o400
        # The window alone: the token is good, it is refreshed at another time.
        write(etl={"lifetime": "9h", "expiry_window": "10%"}, reports={"mode": "0400"})
        hang_up(running, count=3)
        (adopted,) = running.logged("adopted")
        assert adopted["credential"] == "etl"
        assert len(running.named("published")) == 4
        running.stop()


def test_hup_adds_and_takes_away_credentials(
    runner: Runner, realm: Realm, place: Path, write: Callable[..., Path]
) -> None:
    with refresher(runner, write(), realm.env) as running:
        running.logged("published", count=2)
        write(("etl", "audit"))
        hang_up(running)
        running.logged("published", count=3)
        assert krbrefresh.validate(place / "audit" / "krb5cc")
        left = (place / "reports" / "krb5cc").read_bytes()  # workers may still live on it
        lock = Lock()
        assert lock_in(place / "reports", lock)  # and who wants to may lead there
        lock.release()
        running.process.send_signal(signal.SIGUSR1)
        published = running.logged("published", count=5)
        assert {event["credential"] for event in published[3:]} == {"etl", "audit"}
        assert (place / "reports" / "krb5cc").read_bytes() == left


def test_a_bad_file_keeps_the_running_settings_and_says_so(
    runner: Runner, realm: Realm, place: Path, write: Callable[..., Path]
) -> None:
    config = write()
    with refresher(runner, config, realm.env) as running:
        running.logged("published", count=2)
        good = config.read_text()
        for number, (text, words) in enumerate(
            (
                (good.replace("[refresher]", "[refresher]\nlog_fromat = 1"), "did you mean log_format"),
                ("[kerberos", "it is not TOML"),
                ("", "there is no credential to refresh"),
                (re.sub(r'ccache = "(.*)/etl/', r'ccache = "\1/open/', good), "may write to the token directory"),
            ),
            start=1,
        ):
            (place / "open").mkdir(exist_ok=True)
            (place / "open").chmod(0o777)
            config.write_text(text)
            running.process.send_signal(signal.SIGHUP)
            refused = running.logged("settings_refused", count=number)[-1]
            assert words in refused["message"]
            assert "the old settings stand" in refused["message"]
            assert refused["hint"]
        config.unlink()
        running.process.send_signal(signal.SIGHUP)
        assert "No such file" in running.logged("settings_refused", count=5)[-1]["message"]
        running.process.send_signal(signal.SIGUSR1)
        running.logged("published", count=4)
        assert os.listdir(place / "open") == []
        assert running.stop() < 1


def test_hup_cuts_a_wait_short(runner: Runner, realm: Realm, place: Path, write: Callable[..., Path]) -> None:
    realm.kadmin(f"modprinc -allow_tix {realm.principal('etl')}")
    try:
        with refresher(runner, write(("etl",)), realm.env) as running:
            running.logged("refresh_failed")
            assert running.reasons() == ["client_revoked"]  # the next try is minutes away
            realm.kadmin(f"modprinc +allow_tix {realm.principal('etl')}")
            hang_up(running)
            (published,) = running.logged("published", within=20)
            assert published["after_failures"] == 1
    finally:
        realm.kadmin(f"modprinc +allow_tix {realm.principal('etl')}")


def test_many_hups_at_once_are_one_or_two_readings(
    runner: Runner, realm: Realm, place: Path, write: Callable[..., Path]
) -> None:
    with refresher(runner, write(), realm.env) as running:
        running.logged("published", count=2)
        for _ in range(50):
            running.process.send_signal(signal.SIGHUP)
        write(etl={"lifetime": "9h"})
        running.process.send_signal(signal.SIGHUP)
        running.logged("published", count=3)  # the last one counts
        assert 1 <= len(running.named("settings_read")) <= 51
        assert len(running.named("published")) == 3


def test_the_log_format_changes_with_hup(runner: Runner, realm: Realm, place: Path, write: Callable[..., Path]) -> None:
    with refresher(runner, write(), realm.env) as running:
        running.logged("published", count=2)
        write(refresher={"log_format": "text"})
        hang_up(running)  # told in the old format; a refresh that was quicker than the change would be, too

        def told() -> bool:
            running.process.send_signal(signal.SIGUSR1)
            return " published credential=etl " in running.text

        eventually(told, within=10, every=0.5)


def test_usr1_refreshes_everything_now(runner: Runner, realm: Realm, place: Path, write: Callable[..., Path]) -> None:
    with refresher(runner, write(), realm.env) as running:
        running.logged("published", count=2)
        running.process.send_signal(signal.SIGUSR1)
        published = running.logged("published", count=4, within=5)
        assert {event["credential"] for event in published[2:]} == {"etl", "reports"}


def test_usr1_during_an_exchange_asks_for_one_more_after_it(runner: Runner, own_realm: Realm, place: Path) -> None:
    realm = own_realm
    config = place / "c.toml"
    section = {
        "principal": realm.principal("etl"),
        "keytab": realm.keytab(place / "k", "etl"),
        "ccache": place / "etl" / "krb5cc",
    }
    config.write_text(toml(refresher={"log_format": "json", "exchange_deadline": "3s"}, kerberos=section))
    text = Path(realm.env["KRB5_CONFIG"]).read_text()
    krb5_conf = place / "krb5.conf"
    with SilentKdc() as kdc:
        krb5_conf.write_text(re.sub(r"kdc = 127.0.0.1:\d+", f"kdc = 127.0.0.1:{kdc.port}", text))
        with refresher(runner, config, {**realm.env, "KRB5_CONFIG": str(krb5_conf)}) as running:
            eventually(kdc.asked, within=10)
            new = place / "new"
            new.write_text(text)
            new.rename(krb5_conf)
            for _ in range(5):
                running.process.send_signal(signal.SIGUSR1)
            running.logged("refresh_requested", count=1)
            asked = time.monotonic()
            running.logged("refresh_failed")
            running.logged("published", within=5)
            assert time.monotonic() - asked < 6
            assert len(running.named("published")) == 1  # five asked for one more, not for five


@pytest.mark.parametrize("when", ["before", "while it runs"])
def test_it_ends_when_the_stop_path_appears(
    runner: Runner, realm: Realm, place: Path, write: Callable[..., Path], when: str
) -> None:
    stop = place / "stop"
    if when == "before":
        stop.touch()
    with refresher(runner, write(refresher={"stop_path": str(stop)}), realm.env) as running:
        if when != "before":
            running.logged("published", count=2)
            stop.touch()
        running.process.wait(6)
        assert running.process.returncode == 0
        assert running.named("stop_path_found")
        assert running.named("stopped")
    if when != "before":
        assert krbrefresh.validate(place / "etl" / "krb5cc")  # the token stays


def test_nothing_of_it_is_left_but_the_tokens(
    runner: Runner, realm: Realm, place: Path, write: Callable[..., Path]
) -> None:
    with refresher(runner, write(), realm.env) as running:
        running.logged("published", count=2)
        running.stop()
    for name in ("etl", "reports"):
        assert sorted(os.listdir(place / name)) == [LOCK_NAME, "krb5cc"]
