"""`krbrefresh run` and `once` as an operator starts them, workers under other users beside them."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import errno
import functools
import json
import logging
import os
import re
import shutil
import signal
import stat
import subprocess
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import krbrefresh
from krbrefresh import ccache
from krbrefresh._text import moment_text
from krbrefresh.errors import RefreshError, UnreadableError
from krbrefresh.refresher import files, log, looks, policy, settings
from krbrefresh.refresher.child import Exchanged
from krbrefresh.refresher.lock import LOCK_NAME
from krbrefresh.refresher.service import Service
from krbrefresh.token import seal
from tests.processes import (
    GROUP,
    QUIET,
    REFRESHER,
    STRANGER,
    WORKER,
    Runner,
    children_of,
    crowded,
    end,
    faked_clock,
    krbrefresh_command,
    refresher,
    toml,
)
from tests.support import Realm, SilentKdc, eventually


def configured(place: Path, principal: str, keytab: Path, **kerberos: Any) -> Path:
    """A configuration for one credential, whose token directory is place/token."""
    config = place / "krbrefresh.toml"
    config.write_text(
        toml(
            refresher={"log_format": "json"},
            kerberos={
                "principal": principal,
                "keytab": str(keytab),
                "ccache": str(place / "token" / "krb5cc"),
                **kerberos,
            },
        )
    )
    return config


@pytest.fixture
def shared(place: Path) -> Path:
    """A place with a volume that the refresher's user owns: place/token can be made there."""
    os.chown(place, REFRESHER, REFRESHER)
    return place


def owned(path: Path, uid: int, mode: int = 0o400) -> Path:
    os.chown(path, uid, -1)
    path.chmod(mode)
    return path


@contextlib.contextmanager
def stuck_pipe() -> Iterator[int]:
    """The writing end of a pipe that is full, and that nobody reads."""
    read, write = os.pipe()
    os.set_blocking(write, False)
    try:
        while True:
            os.write(write, b"\0" * 4096)
    except BlockingIOError:
        os.set_blocking(write, True)
    try:
        yield write
    finally:
        os.close(read)
        os.close(write)


once = functools.partial(krbrefresh_command, "once")


# --- once ---


def test_once_with_the_environment_alone(runner: Runner, realm: Realm, place: Path) -> None:
    keytab = realm.keytab(place / "k", "etl")
    ran = once(
        runner,
        realm,
        KRBREFRESH__KERBEROS__PRINCIPAL=realm.principal("etl"),
        KRBREFRESH__KERBEROS__KEYTAB=str(keytab),
        KRBREFRESH__KERBEROS__CCACHE=f"FILE:{place}/token/krb5cc",
    )
    assert ran.returncode == 0, ran.stderr
    token = krbrefresh.validate(place / "token" / "krb5cc", principal=realm.principal("etl"))
    assert token.manifest is not None
    assert token.manifest.window_opens_at == pytest.approx(token.expires - 0.33 * 36000, abs=2)
    assert ran.stdout == ""
    assert " published credential=default " in ran.stderr


def test_once_for_several_credentials_one_of_which_fails(runner: Runner, realm: Realm, place: Path) -> None:
    config = place / "c.toml"
    keytab = realm.keytab(place / "k", "etl", "reports")
    config.write_text(
        toml(
            refresher={"log_format": "json"},
            kerberos={"keytab": str(keytab)},
            credentials__etl={"principal": realm.principal("etl"), "ccache": f"{place}/etl/krb5cc"},
            credentials__reports={"principal": realm.principal("reports"), "ccache": f"{place}/reports/krb5cc"},
            credentials__lost={"principal": realm.principal("lost"), "ccache": f"{place}/lost/krb5cc"},
        )
    )
    ran = once(runner, realm, config)
    assert ran.returncode == 1
    events = [json.loads(line) for line in ran.stderr.splitlines()]
    outcome = {event["credential"]: event.get("reason", "published") for event in events}
    assert outcome == {"etl": "published", "reports": "published", "lost": "principal_not_in_keytab"}
    for name in ("etl", "reports"):
        assert krbrefresh.validate(place / name / "krb5cc").principal == realm.principal(name)
    assert os.listdir(place / "lost") == [LOCK_NAME]


KEEP_TRYING = ("once", "--keep-trying")


def test_once_that_keeps_trying_waits_as_run_does_and_ends_with_the_token(
    runner: Runner, realm: Realm, place: Path
) -> None:
    """An init container that is started again and again would make a bad attempt each time, and lock the account."""
    keytab = realm.keytab(place / "k", "stale")
    realm.kadmin(f"cpw -randkey {realm.principal('stale')}")
    config = configured(place, realm.principal("stale"), keytab)
    with refresher(runner, config, realm.env, command=KEEP_TRYING) as trying:
        (failed,) = trying.logged("refresh_failed")
        assert failed["reason"] == "key_rejected"
        assert failed["next_attempt_at"] > moment_text(time.time() + 200)
        realm.keytab(place / "new", "stale").rename(keytab)
        assert trying.process.wait(timeout=20) == 0, trying.text
        assert len(trying.named("refresh_failed")) == 1
        assert trying.named("published")
    assert krbrefresh.validate(place / "token" / "krb5cc").principal == realm.principal("stale")


def test_once_that_keeps_trying_adopts_a_token_and_waits_where_it_would_not(
    runner: Runner, realm: Realm, place: Path
) -> None:
    keytab = realm.keytab(place / "k", "tried")
    config = configured(place, realm.principal("tried"), keytab)
    assert once(runner, realm, config).returncode == 0
    generation = krbrefresh.load(place / "token" / "krb5cc").generation
    asked = realm.log().count("tried@")
    with refresher(runner, config, realm.env, command=KEEP_TRYING) as trying:
        assert trying.process.wait(timeout=20) == 0, trying.text
    assert krbrefresh.load(place / "token" / "krb5cc").generation == generation
    assert realm.log().count("tried@") == asked
    # Made with other settings: valid, and yet a new one is asked for. The end is not before that has been tried.
    config = configured(place, realm.principal("tried"), keytab, lifetime="5h")
    with refresher(runner, config, realm.env, command=KEEP_TRYING) as trying:
        assert trying.process.wait(timeout=20) == 0, trying.text
        assert trying.named("published")
    assert krbrefresh.load(place / "token" / "krb5cc").generation != generation
    # What there is has to do where there is no better one to be had.
    keytab.rename(place / "elsewhere")
    config = configured(place, realm.principal("tried"), keytab)
    with refresher(runner, config, realm.env, command=KEEP_TRYING) as trying:
        assert trying.process.wait(timeout=20) == 0, trying.text
        assert [each["reason"] for each in trying.named("refresh_failed")] == ["keytab_missing"]


def test_once_that_keeps_trying_and_is_ended_before_it_has_begun(runner: Runner, realm: Realm, place: Path) -> None:
    variables = {
        **realm.env,
        "KRBREFRESH__KERBEROS__PRINCIPAL_CMD": f"sh -c 'touch {place}/begun; exec sleep 60'",
    }
    config = place / "krbrefresh.toml"
    config.write_text(toml(kerberos={"keytab": str(place / "k"), "ccache": f"{place}/token/krb5cc"}))
    with refresher(runner, config, variables, command=KEEP_TRYING) as trying:
        eventually((place / "begun").exists, within=20)
        trying.process.terminate()
        assert trying.process.wait(timeout=20) == 1


def test_once_that_keeps_trying_says_at_its_end_that_there_is_none(runner: Runner, realm: Realm, place: Path) -> None:
    config = configured(place, realm.principal("etl"), place / "missing")
    with refresher(runner, config, realm.env, command=KEEP_TRYING) as trying:
        trying.logged("refresh_failed")
        trying.stop()
        assert trying.process.returncode == 1


@pytest.mark.parametrize(
    ("kerberos", "words"),
    [
        ({"lifetme": "1h"}, "lifetme: there is no such key; did you mean lifetime?"),
        ({"lifetime": "an hour"}, "lifetime: 'an hour' is not a duration"),
        ({"ccache": "KEYRING:x"}, "a token is a FILE ccache; KEYRING is not read"),
        ({"group": "no-such-group-here"}, "there is no group 'no-such-group-here'"),
    ],
)
@pytest.mark.parametrize("command", ["run", "once"])
def test_bad_settings_are_one_sentence_and_exit_2(
    runner: Runner, realm: Realm, place: Path, kerberos: dict[str, str], words: str, command: str
) -> None:
    config = configured(place, "etl@X", place / "k", **kerberos)
    before = sorted(os.listdir(place))
    ran = krbrefresh_command(command, runner, realm, config)
    assert ran.returncode == 2
    first, hint = ran.stderr.splitlines()
    assert first.startswith(f"settings: {config}: [kerberos] ")
    assert words in first
    assert hint.startswith("  ")
    assert sorted(os.listdir(place)) == before


@pytest.mark.parametrize("command", ["run", "once"])
@pytest.mark.parametrize(
    ("layout", "words"),
    [("symlink", "the ccache is a symlink"), ("open", "group or others may write"), ("foreign", "is not a ccache")],
)
def test_refused_layouts_are_one_sentence_and_exit_2(
    runner: Runner, realm: Realm, place: Path, layout: str, words: str, command: str
) -> None:
    (place / "token").mkdir(mode=0o755)
    if layout == "symlink":
        (place / "token" / "krb5cc").symlink_to(place / "elsewhere")
    elif layout == "open":
        (place / "token").chmod(0o777)
    else:
        (place / "token" / "krb5cc").write_text("precious")
    config = configured(place, realm.principal("etl"), realm.keytab(place / "k", "etl"))
    # A second credential, which comes first and is in order: nothing is written for it either.
    text = config.read_text()
    config.write_text(
        text.replace(
            "[kerberos]",
            f'[credentials.a]\nprincipal = "{realm.principal("etl")}"\nccache = "{place}/a/krb5cc"\n[kerberos]',
        )
    )
    before = sorted(place.rglob("*"))
    ran = krbrefresh_command(command, runner, realm, config)
    assert ran.returncode == 2
    first, hint = ran.stderr.splitlines()
    assert first.startswith(f"layout: {place}/token")
    assert words in first
    assert hint.startswith("  ")
    assert sorted(place.rglob("*")) == before


# --- run ---


def test_generations_only_grow_over_restarts_and_over_an_emptied_volume(
    runner: Runner, realm: Realm, place: Path
) -> None:
    config = configured(place, realm.principal("etl"), realm.keytab(place / "k", "etl"))
    path = place / "token" / "krb5cc"
    generations: list[Any] = []
    for _ in range(3):
        assert once(runner, realm, config).returncode == 0
        generations.append(krbrefresh.load(path).generation)
    with refresher(runner, config, realm.env) as running:
        running.logged("adopted")  # outside its window: no exchange
        assert running.stop() < 1
    shutil.rmtree(path.parent)
    # Without a trace of the last generation there is the clock alone; it has moved on by then, but in a test.
    eventually(lambda: time.time() > generations[-1] + 1, within=5)
    with refresher(runner, config, realm.env) as running:
        generations += [event["generation"] for event in running.logged("published")]
        running.stop()
    assert generations == sorted(set(generations))
    # A clock that was set back by a day does not make it shrink either.
    assert once(runner, realm, config, **faked_clock("-1d")).returncode == 0
    assert (krbrefresh.load(path).generation or 0) == generations[-1] + 1


def test_a_valid_token_is_adopted_and_no_kdc_is_asked(runner: Runner, realm: Realm, place: Path) -> None:
    config = configured(place, realm.principal("adopted"), realm.keytab(place / "k", "adopted"))
    assert once(runner, realm, config).returncode == 0
    before = (place / "token" / "krb5cc").read_bytes()
    asked = realm.log().count("adopted@")
    left = place / ".krbrefresh-0123456789abcdef.tmp"  # by one that was killed while it made the directory
    left.mkdir()
    os.utime(left, (0, 0))
    with refresher(runner, config, realm.env) as running:
        running.logged("adopted")
        running.stop()
    assert not left.exists()
    assert (place / "token" / "krb5cc").read_bytes() == before
    assert realm.log().count("adopted@") == asked


def played(
    config: Path, monkeypatch: pytest.MonkeyPatch, scenario: Callable[[Service, Logged], Awaitable[None]]
) -> None:
    """A scenario beside a running service in this process, whose looks come often and whose log is caught."""
    monkeypatch.setattr(policy, "IDLE_LOOK_EVERY", 0.1)
    monkeypatch.setattr(policy, "LOOK_EVERY", 0.1)
    monkeypatch.setattr(policy, "CLOCK_LOOK_EVERY", 0.1)
    logged = Logged()
    monkeypatch.setattr(log.logger, "handlers", [logged])
    level = log.logger.level
    log.logger.setLevel(logging.INFO)  # not by the attribute: a logger remembers what its level had let through
    shift = [0.0]
    logged.shift = shift

    async def both() -> None:
        service = Service(settings.load(str(config), QUIET), clock=lambda: time.time() + shift[0])
        running = asyncio.create_task(service.run())
        try:
            await scenario(service, logged)
        finally:
            service.stop()
            await asyncio.wait_for(running, 5)

    try:
        asyncio.run(both())
    finally:
        log.logger.setLevel(level)


class Logged(logging.Handler):
    """The events of a service in this process."""

    shift: list[float]

    def __init__(self) -> None:
        super().__init__()
        self.events: list[tuple[str, dict[str, Any]]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.events.append((record.getMessage(), getattr(record, "fields", {})))

    def named(self, name: str) -> list[dict[str, Any]]:
        return [fields for event, fields in self.events if event == name]

    async def wait(self, name: str, count: int = 1, within: float = 10) -> list[dict[str, Any]]:
        deadline = time.monotonic() + within
        while len(self.named(name)) < count:
            assert time.monotonic() < deadline, (name, self.events)
            await asyncio.sleep(0.01)
        return self.named(name)


@pytest.mark.usefixtures("krb5_env")
def test_a_token_directory_that_vanishes_is_made_again(
    realm: Realm, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(service: Service, logged: Logged) -> None:
        (first,) = await logged.wait("published")
        shutil.rmtree(place / "token")
        await logged.wait("token_vanished")
        _, second = await logged.wait("published", 2)
        assert second["generation"] > first["generation"]
        assert krbrefresh.validate(place / "token" / "krb5cc").generation == second["generation"]

    played(configured(place, realm.principal("etl"), realm.keytab(place / "k", "etl")), monkeypatch, scenario)


@pytest.mark.usefixtures("krb5_env")
@pytest.mark.parametrize("jump", [-86400.0, -7200.0, 60.0, 7200.0])
def test_a_clock_that_jumps_is_noticed_and_every_token_refreshed_once(
    realm: Realm, place: Path, monkeypatch: pytest.MonkeyPatch, jump: float
) -> None:
    async def scenario(service: Service, logged: Logged) -> None:
        (first,) = await logged.wait("published")
        logged.shift[0] = jump
        (told,) = await logged.wait("clock_jumped")
        assert told["message"] == f"by {jump:+.0f} s"
        if jump < 0:  # a clock that is behind the KDC's by so much in this process alone: the ticket is good
            _, second = await logged.wait("published", 2)
            assert second["generation"] > first["generation"]
            await asyncio.sleep(0.5)  # five looks: nothing more comes
            assert len(logged.named("published")) == 2
        assert len(logged.named("clock_jumped")) == 1

    played(configured(place, realm.principal("etl"), realm.keytab(place / "k", "etl")), monkeypatch, scenario)


@pytest.mark.usefixtures("krb5_env")
@pytest.mark.parametrize("jump", [-3600.0, 3600.0, 864000.0])
def test_a_clock_that_jumps_cuts_no_wait_short_that_a_refusal_asked_for(
    realm: Realm, place: Path, monkeypatch: pytest.MonkeyPatch, jump: float
) -> None:
    keytab = realm.keytab(place / "k", "jumper")
    realm.kadmin(f"cpw -randkey {realm.principal('jumper')}")

    async def scenario(service: Service, logged: Logged) -> None:
        (failed,) = await logged.wait("refresh_failed")
        assert failed["reason"] == "key_rejected"
        (credential,) = service._credentials
        due_in = credential.due_at - service._clock()
        assert 290 < due_in <= 300
        logged.shift[0] = jump
        await logged.wait("clock_jumped")
        await asyncio.sleep(0.5)  # five looks at the files, and at the clock
        assert credential.tries == 1
        assert credential.due_at - service._clock() == pytest.approx(due_in, abs=2)
        assert len(logged.named("clock_jumped")) == 1

    played(configured(place, realm.principal("jumper"), keytab), monkeypatch, scenario)


@pytest.mark.usefixtures("krb5_env")
def test_a_new_keytab_is_tried_at_once_also_while_all_is_well(
    realm: Realm, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keytab = realm.keytab(place / "k", "etl")

    async def scenario(service: Service, logged: Logged) -> None:
        await logged.wait("published")
        keytab.write_bytes(b"not a keytab")
        (changed,) = await logged.wait("file_changed")
        assert changed["path"] == str(keytab)
        (failed,) = await logged.wait("refresh_failed")
        assert failed["reason"] == "keytab_invalid"
        assert krbrefresh.validate(place / "token" / "krb5cc")  # nobody notices

    played(configured(place, realm.principal("etl"), keytab), monkeypatch, scenario)


@pytest.mark.usefixtures("krb5_env")
def test_an_error_that_stays_keeps_none_of_what_it_came_through(
    realm: Realm, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its frames would hold tickets, a signing key, and one another: an hour of outages had left 2 MiB of that."""

    async def broken(*_: object) -> None:
        try:
            raise ValueError("what had a key in its hands")
        except ValueError:
            raise RefreshError("internal", "broken") from None

    async def scenario(service: Service, logged: Logged) -> None:
        await logged.wait("refresh_failed")
        error = service._credentials[0].error
        assert error
        assert (error.__traceback__, error.__context__, error.__cause__) == (None, None, None)

    monkeypatch.setattr(Service, "_exchange", broken)
    played(configured(place, realm.principal("etl"), realm.keytab(place / "k", "etl")), monkeypatch, scenario)


@pytest.mark.usefixtures("krb5_env")
def test_an_event_at_the_moment_of_the_end_holds_it_up_by_nothing(
    realm: Realm, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[float] = []

    async def scenario(service: Service, logged: Logged) -> None:
        await logged.wait("published")
        service._wake.set()  # as an event does
        service.stop()
        ended.append(time.monotonic())

    played(configured(place, realm.principal("etl"), realm.keytab(place / "k", "etl")), monkeypatch, scenario)
    assert time.monotonic() - ended[0] < 2


@pytest.mark.usefixtures("krb5_env")
def test_what_is_to_begin_at_the_moment_of_the_end_ends_without_a_word(
    realm: Realm, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A coroutine that nobody awaits would have Python say so, in the log."""

    async def scenario(service: Service, logged: Logged) -> None:
        await logged.wait("published")
        service.stop()
        await asyncio.sleep(0)  # now it cancels its tasks, in its own turn
        service._spawn(asyncio.sleep(0))
        for task in service._tasks:
            task.cancel()

    played(configured(place, realm.principal("etl"), realm.keytab(place / "k", "etl")), monkeypatch, scenario)


@pytest.mark.usefixtures("krb5_env")
def test_a_window_of_more_than_half_the_life_is_cut_and_told(
    realm: Realm, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(service: Service, logged: Logged) -> None:
        (told,) = await logged.wait("window_clamped")
        assert told["message"].endswith("it is cut to 5h") or told["message"].endswith("it is cut to 4h 59m")

    config = configured(place, realm.principal("etl"), realm.keytab(place / "k", "etl"), expiry_window="9h")
    played(config, monkeypatch, scenario)


@pytest.mark.usefixtures("krb5_env")
def test_a_token_that_the_workers_reader_would_not_take_is_not_published(
    realm: Realm, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(service: Service, logged: Logged) -> None:
        (failed,) = await logged.wait("refresh_failed")
        assert (failed["reason"], "its manifest has" in failed["message"]) == ("internal", True)
        assert not logged.named("published")
        assert os.listdir(place / "token") == [LOCK_NAME]

    config = configured(place, realm.principal("etl"), realm.keytab(place / "k", "etl"))
    load = settings.load

    def long_name(*arguments: Any) -> settings.Settings:
        loaded = load(*arguments)
        return dataclasses.replace(loaded, refresher=dataclasses.replace(loaded.refresher, name="x" * 5000))

    monkeypatch.setattr(settings, "load", long_name)
    played(config, monkeypatch, scenario)


@pytest.mark.usefixtures("krb5_env")
def test_a_file_system_that_hangs_holds_its_own_credential_alone(
    realm: Realm, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configured(place, realm.principal("etl"), realm.keytab(place / "k", "etl"), lifetime="3s")
    for index in range(12):  # more than the threads that asyncio would have
        (place / f"hung{index}").mkdir()
        section = {"principal": "x@Y", "keytab": f"{place}/hung{index}/k", "ccache": f"{place}/h{index}/krb5cc"}
        config.write_text(config.read_text() + toml(**{f"credentials__h{index}": section}))
    identities, hang = looks.identities, threading.Event()

    def hangs(paths: list[str]) -> files.Files:
        if "/hung" in paths[0] and started:
            hang.wait(30)
        return identities(paths)

    started: list[bool] = []

    async def scenario(service: Service, logged: Logged) -> None:
        await logged.wait("published")
        started.append(True)
        service._refresh_all()
        service._hear()
        await logged.wait("published", 3, within=30)
        hang.set()

    monkeypatch.setattr(looks, "identities", hangs)
    try:
        played(config, monkeypatch, scenario)
    finally:
        hang.set()


@pytest.mark.usefixtures("krb5_env")
@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE, errno.ENOTDIR])
def test_a_token_that_cannot_be_looked_at_has_not_vanished(
    realm: Realm, place: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    identity, looked = looks.identity, 0
    path = str(place / "token" / "krb5cc")

    def cannot(asked: str) -> files.Identity:
        nonlocal looked
        looked += asked == path
        return (code,) if asked == path else identity(asked)

    def load(_: str) -> Any:
        raise UnreadableError("no")

    async def scenario(service: Service, logged: Logged) -> None:
        await logged.wait("published")
        monkeypatch.setattr(looks, "load", load)
        monkeypatch.setattr(looks, "identity", cannot)
        service._hear()
        if code == errno.ENOTDIR:
            await logged.wait("token_vanished")
            return
        while looked < 3:
            await asyncio.sleep(0.01)
        assert not logged.named("token_vanished")
        assert not logged.named("token_replaced")

    played(configured(place, realm.principal("etl"), realm.keytab(place / "k", "etl")), monkeypatch, scenario)


@pytest.mark.usefixtures("krb5_env")
def test_a_keytab_that_changes_during_an_exchange_is_tried_after_it(
    realm: Realm, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keytab = realm.keytab(place / "k", "swapped")
    stale = keytab.read_bytes()
    realm.kadmin(f"cpw -randkey {realm.principal('swapped')}")
    good = realm.keytab(place / "good", "swapped").read_bytes()
    keytab.write_bytes(stale)

    async def scenario(service: Service, logged: Logged) -> None:
        exchange = service._exchanger.exchange

        async def slow(*arguments: Any, **named: Any) -> Exchanged:
            try:
                return await exchange(*arguments, **named)
            finally:
                if keytab.read_bytes() == stale:
                    keytab.write_bytes(good)
                    await asyncio.sleep(0.3)  # three looks come and go

        service._exchanger.exchange = slow  # type: ignore[method-assign]
        (failed,) = await logged.wait("refresh_failed")
        assert failed["reason"] == "key_rejected"
        await logged.wait("published")

    played(configured(place, realm.principal("swapped"), keytab), monkeypatch, scenario)


def test_once_ends_though_nobody_reads_its_log(runner: Runner, realm: Realm, place: Path) -> None:
    config = configured(place, realm.principal("etl"), realm.keytab(place / "k", "etl"))
    with stuck_pipe() as write:
        ran = subprocess.run(
            [runner.python, "-m", "krbrefresh", "once", "--config", str(config)],
            env={**runner.env, **realm.env},
            stderr=write,
            cwd="/",
            timeout=10,
        )
    assert ran.returncode == 0
    assert krbrefresh.validate(place / "token" / "krb5cc")


def test_a_second_term_changes_nothing(runner: Runner, realm: Realm, place: Path) -> None:
    config = configured(place, realm.principal("etl"), realm.keytab(place / "k", "etl"))
    for pause in (0.0, 0.005, 0.01, 0.015, 0.02):
        with refresher(runner, config, realm.env) as running:
            running.logged("started")
            eventually(lambda: (place / "token" / "krb5cc").exists(), within=10)
            time.sleep(0.3)  # past the moment in which its handlers change
            for _ in range(4):
                running.process.send_signal(signal.SIGTERM)
                time.sleep(pause)
            running.process.wait(2)
            assert running.process.returncode == 0
            assert running.named("stopped")


def test_a_generation_exceeds_what_somebody_else_has_published_meanwhile(
    runner: Runner, realm: Realm, place: Path
) -> None:
    config = configured(place, realm.principal("etl"), realm.keytab(place / "k", "etl"))
    path = place / "token" / "krb5cc"
    with refresher(runner, config, realm.env) as running:
        running.logged("published")
        # A refresher on another machine, where the lock is not seen, and whose clock is a day ahead.
        ahead = int(time.time()) + 86400
        body = path.read_bytes()
        body = body[: ccache.parse(body).credentials[-1].span[0]]
        sealed = seal(body, generation=ahead, issued_at=ahead, window_opens_at=ahead, refresher="x", settings="x")
        (place / "token" / "new").write_bytes(sealed)
        (place / "token" / "new").rename(path)
        running.logged("token_replaced")
        running.logged("published", count=2)
        assert krbrefresh.load(path).generation == ahead + 1


def test_a_token_that_does_not_look_as_configured_is_not_adopted(runner: Runner, realm: Realm, place: Path) -> None:
    config = configured(place, realm.principal("etl"), realm.keytab(place / "k", "etl"))
    assert once(runner, realm, config).returncode == 0
    config.write_text(config.read_text() + 'mode = "0400"\n')
    with refresher(runner, config, realm.env) as running:
        running.logged("published")
        assert not running.named("adopted")
        assert stat.S_IMODE(os.stat(place / "token" / "krb5cc").st_mode) == 0o400


@pytest.mark.parametrize("fault", ["keytab_missing", "principal_not_in_keytab", "keytab_invalid", "key_rejected"])
def test_run_says_what_is_wrong_stays_and_publishes_once_it_is_put_right(
    runner: Runner, realm: Realm, place: Path, fault: str
) -> None:
    name = "fix-" + fault.replace("_", "-")
    principal = realm.principal(name)
    good = realm.keytab(place / "good", name)
    keytab = place / "k"
    if fault == "principal_not_in_keytab":
        realm.keytab(keytab, "other")
    elif fault == "keytab_invalid":
        keytab.write_text("garbage")
        keytab.chmod(0o400)
    elif fault == "key_rejected":
        good.rename(keytab)
        realm.kadmin(f"cpw -randkey {principal}")
        good = realm.keytab(place / "good", name)
    config = configured(place, principal, keytab)
    ran = once(runner, realm, config)
    assert (ran.returncode, f'"reason": "{fault}"' in ran.stderr) == (1, True), ran.stderr
    with refresher(runner, config, realm.env) as running:
        running.logged("refresh_failed")
        assert running.reasons() == [fault]
        good.rename(keytab)  # an atomic swap, as a Secret's rotation is one
        running.logged("published", within=7)
        assert running.reasons() == [fault]
        assert krbrefresh.validate(place / "token" / "krb5cc", principal=principal)


def test_one_credential_that_fails_delays_no_other(runner: Runner, realm: Realm, place: Path) -> None:
    config = configured(place, realm.principal("etl"), realm.keytab(place / "k", "etl"), lifetime="6s")
    config.write_text(
        config.read_text() + toml(credentials__lost={"principal": "lost@X", "ccache": f"{place}/l/krb5cc"})
    )
    with refresher(runner, config, realm.env) as running:
        running.logged("published", count=3, within=20)
        assert running.reasons() == ["principal_not_in_keytab"]
        assert krbrefresh.validate(place / "token" / "krb5cc", min_remaining=0)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_term_ends_it_within_a_second(runner: Runner, realm: Realm, place: Path, number: int) -> None:
    config = configured(place, realm.principal("etl"), realm.keytab(place / "k", "etl"))
    with refresher(runner, config, realm.env) as running:
        running.logged("published")
        token = (place / "token" / "krb5cc").read_bytes()
        assert running.stop(number) < 1
        assert running.process.returncode == 0
        assert (place / "token" / "krb5cc").read_bytes() == token


@pytest.mark.usefixtures("krb5_env")
def test_the_end_is_that_of_children_that_wait_for_work_too(
    realm: Realm, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = set(children_of(os.getpid()))

    async def scenario(service: Service, logged: Logged) -> None:
        for count in (1, 2):  # where one exchange follows another, its child is kept for a third
            await logged.wait("published", count)
            service._refresh_all()
        await logged.wait("published", 3)
        assert len(set(children_of(os.getpid())) - before) == 1

    played(configured(place, realm.principal("etl"), realm.keytab(place / "k", "etl")), monkeypatch, scenario)
    assert set(children_of(os.getpid())) <= before


def test_term_ends_it_within_a_second_while_the_kdc_hangs(runner: Runner, realm: Realm, place: Path) -> None:
    config = configured(place, realm.principal("etl"), realm.keytab(place / "k", "etl"))
    with SilentKdc() as kdc:
        text = Path(realm.env["KRB5_CONFIG"]).read_text()
        (place / "krb5.conf").write_text(re.sub(r"kdc = 127.0.0.1:\d+", f"kdc = 127.0.0.1:{kdc.port}", text))
        with refresher(runner, config, {**realm.env, "KRB5_CONFIG": str(place / "krb5.conf")}) as running:
            eventually(kdc.asked, within=10)
            (child,) = children_of(running.process.pid)
            assert running.stop() < 1
            assert running.process.returncode == 0
            eventually(lambda: not Path(f"/proc/{child}").exists(), within=1)


@pytest.mark.parametrize("after", [0.1, 0.2, 0.4])
def test_term_while_it_starts_ends_it_with_0(runner: Runner, realm: Realm, place: Path, after: float) -> None:
    config = configured(place, realm.principal("etl"), realm.keytab(place / "k", "etl"))
    with refresher(runner, config, realm.env) as running:
        time.sleep(after)  # the moments to hit are before there is anything to wait for
        handled = re.search(r"SigCgt:\s+(\w+)", Path(f"/proc/{running.process.pid}/status").read_text())
        assert handled is not None
        had_a_handler = int(handled[1], 16) & 1 << signal.SIGTERM - 1
        assert running.stop() < 1
        assert running.process.returncode == 0 or not had_a_handler


def test_term_ends_it_within_a_second_though_nobody_reads_its_log(runner: Runner, realm: Realm, place: Path) -> None:
    config = configured(place, realm.principal("etl"), realm.keytab(place / "k", "etl"), lifetime="2s")
    with contextlib.ExitStack() as stack:
        process = subprocess.Popen(
            [runner.python, "-m", "krbrefresh", "run", "--config", str(config)],
            env={**runner.env, **realm.env},
            stderr=stack.enter_context(stuck_pipe()),
            cwd="/",
        )
        stack.callback(process.wait)
        stack.callback(process.kill)
        path = place / "token" / "krb5cc"
        eventually(path.exists, within=10)
        first = path.read_bytes()
        eventually(lambda: path.read_bytes() != first, within=10, what="a refresh, though the log is stuck")
        assert end(process) < 1
        assert process.returncode == 0


@pytest.mark.parametrize("where", ["look", "publish"])
def test_term_ends_it_within_a_second_though_a_file_system_hangs(
    runner: Runner, realm: Realm, place: Path, where: str
) -> None:
    """A look at the keytab, or a publication, that never returns: in a thread, it holds nothing but itself."""
    config = configured(place, realm.principal("etl"), realm.keytab(place / "k", "etl"))
    patch = {
        "look": "policy.IDLE_LOOK_EVERY = 0.1; service.see = hang",
        "publish": "service.publish.publish = hang",
    }[where]
    script = (
        "import sys, time\n"
        "from krbrefresh.refresher import policy, service\n"
        "def hang(*_):\n    print('hanging', flush=True)\n    time.sleep(60)\n"
        f"{patch}\n"
        "from krbrefresh.cli import main\n"
        "sys.exit(main(['run', '--config', sys.argv[1]]))\n"
    )
    process = subprocess.Popen(
        [runner.python, "-c", script, str(config)],
        env={**runner.env, **realm.env},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "hanging\n"
        assert end(process) < 1
        assert process.returncode == 0
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_a_kdc_that_hangs_costs_the_deadline_and_is_asked_again(runner: Runner, own_realm: Realm, place: Path) -> None:
    realm = own_realm
    config = configured(place, realm.principal("etl"), realm.keytab(place / "k", "etl"))
    config.write_text(config.read_text().replace("[refresher]", '[refresher]\nexchange_deadline = "1s"'))
    kdc = realm.kdc._kdc_proc.pid
    os.kill(kdc, signal.SIGSTOP)
    try:
        with refresher(runner, config, realm.env) as running:
            running.logged("refresh_failed")
            assert running.reasons() == ["kdc_timeout"]
            os.kill(kdc, signal.SIGCONT)
            running.logged("published", within=20)
    finally:
        os.kill(kdc, signal.SIGCONT)


@pytest.mark.parametrize("call", ["fchmod", "fsync", "renameat"])
def test_sigkill_of_the_refresher_in_a_publication(runner: Runner, realm: Realm, place: Path, call: str) -> None:
    config = configured(place, realm.principal("etl"), realm.keytab(place / "k", "etl"))
    path = place / "token" / "krb5cc"
    assert once(runner, realm, config).returncode == 0
    before = path.read_bytes()
    killed = subprocess.run(
        ["strace", "-f", "-qq", "-o", "/dev/null", "-e", f"inject={call}:signal=KILL:when=1", runner.python, "-m",
         "krbrefresh", "once", "--config", str(config)],
        env={**runner.env, **realm.env},
        capture_output=True,
    )  # fmt: skip
    assert killed.returncode in (-signal.SIGKILL, 128 + signal.SIGKILL), killed.stderr
    leftovers = [name for name in os.listdir(path.parent) if name not in ("krb5cc", LOCK_NAME)]
    if path.read_bytes() == before:
        assert len(leftovers) == 1
    assert krbrefresh.validate(path)
    assert once(runner, realm, config).returncode == 0
    assert sorted(os.listdir(path.parent)) == [LOCK_NAME, "krb5cc"]
    assert path.read_bytes() != before


# --- with a worker under another user ---

WATCHER = """
import os, select, stat, sys, time
import krbrefresh
path, seconds, gid, min_remaining = sys.argv[1], float(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
samples, bad, generations = 0, [], []
start = time.monotonic()
while (now := time.monotonic() - start) < seconds:
    samples += 1
    try:
        token = krbrefresh.validate(path, min_remaining=min_remaining, clock_skew=5)
        found = os.stat(path)
        if stat.S_IMODE(found.st_mode) != 0o440 or found.st_gid != gid:
            bad.append(f"{now:.1f}: mode {found.st_mode:o} gid {found.st_gid}")
        if token.generation not in generations:
            generations.append(token.generation)
    except krbrefresh.TokenError as error:
        bad.append(f"{now:.1f}: {error.reason}: {error}")
    select.select([], [], [], max(0, 0.1 * samples - (time.monotonic() - start)))  # libfaketime breaks time.sleep
print(os.getuid(), samples, len(bad), generations == sorted(generations), len(generations), bad[:3], sep="\\t")
"""


UNTIL_ITS_END = """
import select, sys, time
import krbrefresh
while True:
    try:
        krbrefresh.validate(sys.argv[1], min_remaining=0)
    except krbrefresh.TokenError as error:
        print(error.reason, round(time.time()))
        break
    select.select([], [], [], 0.1)
"""


def watch(runner: Runner, path: Path, seconds: float, **environ: str) -> list[str]:
    """What a worker under another user sees in that time: uid, samples, bad ones, order kept, generations, examples."""
    ran = subprocess.run(
        [runner.python, "-c", WATCHER, str(path), str(seconds), str(GROUP), "0"],
        env={**runner.env, **environ},
        capture_output=True,
        text=True,
        timeout=seconds + 30,
        **runner.user(WORKER, GROUP),
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.rstrip("\n").split("\t")


@pytest.mark.root
@pytest.mark.long
@pytest.mark.timeout(180)
def test_20_second_tickets_watched_for_75_seconds(
    runner: Runner, realm: Realm, shared: Path, record_property: pytest.RecordProperty
) -> None:
    keytab = owned(realm.keytab(shared / "k", "short", maxlife="20 seconds"), REFRESHER)
    config = configured(shared, realm.principal("short"), keytab, group=GROUP)
    with refresher(runner, config, realm.env, uid=REFRESHER, groups=(GROUP,)) as running:
        running.logged("published")
        uid, samples, bad, ordered, generations, examples = watch(runner, shared / "token" / "krb5cc", 75)
        assert running.stop() < 1
        assert running.reasons() == []
    print(f"\n{samples} samples in 75 s by uid {uid}: {bad} bad, {generations} generations")
    record_property("samples", samples)
    assert (uid, bad, ordered) == (str(WORKER), "0", "True"), examples
    assert int(samples) > 700
    # 13.4 to 15.4 s between two refreshes: four or five of them.
    assert 5 <= int(generations) <= 7


@pytest.mark.root
@pytest.mark.parametrize("shift", ["+2h", "-2h"])
def test_a_clock_that_is_two_hours_off(runner: Runner, realm: Realm, shared: Path, shift: str) -> None:
    keytab = owned(realm.keytab(shared / "k", "drift", maxlife="9 seconds"), REFRESHER)
    config = configured(shared, realm.principal("drift"), keytab, group=GROUP)
    clock = faked_clock(shift)
    path = shared / "token" / "krb5cc"
    with refresher(runner, config, {**realm.env, **clock}, uid=REFRESHER, groups=(GROUP,)) as running:
        running.logged("published")
        _, samples, bad, ordered, generations, examples = watch(runner, path, 20, **clock)
        assert (bad, ordered) == ("0", "True"), (samples, examples, running.text)
        assert int(generations) >= 3  # four or five on a machine that is not starved
        assert running.reasons() == []
        offset = -7200 if shift == "+2h" else 7200
        assert abs(krbrefresh.load(path).offset - offset) <= 2
        running.stop()
    # Once nobody refreshes it, the worker says so, by the same clock.
    ended = subprocess.run(
        [runner.python, "-c", UNTIL_ITS_END, str(path)],
        env={**runner.env, **clock}, capture_output=True, text=True, timeout=20, **runner.user(WORKER, GROUP),
    )  # fmt: skip
    reason, at = ended.stdout.split()
    assert reason == "expired"
    manifest = krbrefresh.load(path).manifest
    assert manifest is not None
    assert abs(int(at) - manifest.expires_at) <= 1


INITIATE = """
import json, os, sys
import krbrefresh
path, target, keytab = sys.argv[1:4]
said = {"uid": os.getuid()}
try:
    open(keytab, "rb").close()
    said["keytab"] = "opened"
except OSError as error:
    said["keytab"] = type(error).__name__
try:
    token = krbrefresh.activate(path, timeout=0, min_remaining=0)
    said["principal"] = token.principal
    import gssapi
    name = gssapi.Name(target, gssapi.NameType.kerberos_principal)
    context = gssapi.SecurityContext(name=name, usage="initiate", flags=gssapi.RequirementFlag.mutual_authentication)
    print(context.step().hex(), flush=True)
    context.step(bytes.fromhex(sys.stdin.readline()))
    said["complete"] = context.complete
    said["message"] = context.wrap(b"from the worker", True).message.hex()
except krbrefresh.TokenError as error:
    said["reason"] = error.reason
print(json.dumps(said), flush=True)
"""


def worker(
    runner: Runner, realm: Realm, path: Path, target: str, keytab: Path, service_keytab: Path, uid: int, *groups: int
) -> dict[str, Any]:
    """What a worker under that user says, and what the service heard from it, in a real GSSAPI exchange."""
    import gssapi

    process = subprocess.Popen(
        [runner.python, "-c", INITIATE, str(path), target, str(keytab)],
        env={**runner.env, **realm.env},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        **runner.user(uid, *groups),
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    line = process.stdout.readline()
    heard: dict[str, Any] = {}
    acceptor = None
    if line.strip() and not line.startswith("{"):
        credentials = gssapi.Credentials(usage="accept", store={"keytab": f"FILE:{service_keytab}"})
        acceptor = gssapi.SecurityContext(creds=credentials, usage="accept")
        reply = acceptor.step(bytes.fromhex(line))
        assert reply is not None
        process.stdin.write(reply.hex() + "\n")
        process.stdin.flush()
        heard["initiator"] = str(acceptor.initiator_name)
        line = process.stdout.readline()
    out, err = process.communicate(timeout=20)
    assert process.returncode == 0, (out, err)
    said: dict[str, Any] = json.loads(line)
    if acceptor is not None and "message" in said:
        heard["message"] = acceptor.unwrap(bytes.fromhex(said["message"])).message
    return {**said, **heard}


@pytest.mark.root
@pytest.mark.usefixtures("krb5_env")
def test_workers_in_the_group_and_outside_it(runner: Runner, realm: Realm, shared: Path) -> None:
    (shared / "secrets").mkdir(mode=0o700)
    os.chown(shared / "secrets", REFRESHER, REFRESHER)
    keytab = owned(realm.keytab(shared / "secrets" / "k", "etl"), REFRESHER)
    service = realm.keytab(shared / "service.keytab", "demo/localhost")
    config = configured(shared, realm.principal("etl"), keytab, group=GROUP)
    path = shared / "token" / "krb5cc"
    with refresher(runner, config, realm.env, uid=REFRESHER, groups=(GROUP,)) as running:
        running.logged("published")
        target = realm.principal("demo/localhost")
        inside = worker(runner, realm, path, target, keytab, service, WORKER, GROUP)
        assert inside.pop("message") == b"from the worker"
        assert inside == {
            "uid": WORKER,
            "keytab": "PermissionError",
            "principal": realm.principal("etl"),
            "complete": True,
            "initiator": realm.principal("etl"),
        }
        outside = worker(runner, realm, path, target, keytab, service, STRANGER)
        assert outside == {"uid": STRANGER, "keytab": "PermissionError", "reason": "unreadable"}
        # The token in the directory is the refresher's alone to write.
        found = os.stat(path)
        assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (REFRESHER, GROUP, 0o440)
        assert stat.S_IMODE(os.stat(path.parent).st_mode) == 0o2750
        assert (found.st_mtime_ns, found.st_ino) == (os.stat(path).st_mtime_ns, os.stat(path).st_ino)


# --- open files ---


@pytest.mark.parametrize(("hard", "told"), [(4096, False), (600, True)])
def test_the_limit_of_open_files_is_raised_to_what_is_needed(
    runner: Runner, realm: Realm, place: Path, hard: int, told: bool
) -> None:
    """A process with five hundred locks to hold, whose shell allows 64 open files."""
    count = 500
    config = crowded(place, realm.keytab(place / "k", "etl"), realm.principal("etl"), count)
    with refresher(runner, config, realm.env, wrapper=("prlimit", f"--nofile=64:{hard}")) as running:
        running.logged("published", within=30)
        limits = Path(f"/proc/{running.process.pid}/limits").read_text()
        assert re.findall(r"^Max open files +(\d+)", limits, re.MULTILINE) == [str(min(hard, count + 512))]
        assert bool(running.named("few_descriptors")) == told
