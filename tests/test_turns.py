"""The order of things inside one refresher, where it is a matter of moments: the real service, and a KDC that answers
when a test says so (an Exchanger that makes no child). What a real KDC makes of it is in tests/test_shared.py."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import itertools
import json
import os
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from krbrefresh.ccache import Principal
from krbrefresh.errors import RefreshError
from krbrefresh.refresher import policy
from krbrefresh.refresher import service as services
from krbrefresh.refresher.account import NotAsked
from krbrefresh.refresher.child import Exchanged
from krbrefresh.refresher.lock import LOCK_NAME
from krbrefresh.refresher.service import Service
from krbrefresh.refresher.settings import load
from krbrefresh.signature import generate
from tests.support import ccache_bytes, ticket

ME = Principal.parse("etl@EXAMPLE.COM")
Answer = Callable[[str, tuple[str, ...]], Awaitable[Exchanged]]


def refused(reason: str = "key_rejected") -> Exchanged:
    return Exchanged(error=RefreshError(reason, "no"))


def brought(*, tgt: bool = True) -> Exchanged:
    return Exchanged(ccache_bytes(*([ticket(ME)] if tgt else []), principal=ME), "keytab")


class Stage:
    """A service of so many credentials of one account, and what it has asked for: names, and services left out."""

    def __init__(self, place: Path, count: int, answer: Answer, **keys: Any) -> None:
        keytab = place / "keytab"
        keytab.write_bytes(b"\x05\x02")
        keytab.chmod(0o400)
        lines = ["[refresher]", 'listen = ""', 'exchange_deadline = "1s"']
        for number in range(count):
            given = {"principal": str(ME), "keytab": keytab, "ccache": place / f"c{number}" / "krb5cc", **keys}
            lines += [f"[credentials.c{number}]", *(f"{key} = {self._value(value)}" for key, value in given.items())]
        config = place / "krbrefresh.toml"
        config.write_text("\n".join(lines))
        self.place = place
        self.service = Service(load(str(config), {}))
        self.credentials = self.service._credentials
        self.asked: list[tuple[str, tuple[str, ...]]] = []

        async def exchange(
            settings: Any, deadline: float, *, fresh: bool = False, without: tuple[str, ...] = ()
        ) -> Exchanged:
            self.asked.append((settings.name, tuple(without)))
            return await answer(settings.name, tuple(without))

        self.service._exchanger.exchange = exchange  # type: ignore[assignment,method-assign]

    @staticmethod
    def _value(value: Any) -> str:
        return json.dumps(str(value) if isinstance(value, Path) else value)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.service.run())
        try:
            yield
        finally:
            self.service.stop()
            await task

    async def until(self, condition: Callable[[], object], within: float = 20) -> None:
        deadline = time.monotonic() + within
        while not condition():
            assert time.monotonic() < deadline, (self.asked, [each.error for each in self.credentials])
            await asyncio.sleep(0.01)


def after(seconds: float, exchanged: Exchanged) -> Answer:
    async def answer(*_: Any) -> Exchanged:
        await asyncio.sleep(seconds)
        return exchanged

    return answer


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """All waits of the policy are a hundredth."""
    real = policy.retry
    monkeypatch.setattr(policy, "retry", lambda now, **known: now + (real(now, **known) - now) / 100)


def test_usr1_while_the_first_one_asks_is_one_more_attempt_and_not_one_for_each(place: Path) -> None:
    async def play() -> None:
        stage = Stage(place, 10, after(0.3, refused()))
        async with stage.running():
            await stage.until(lambda: all(each.error for each in stage.credentials))
            assert len(stage.asked) == 1
            stage.service._refresh_all()
            await stage.until(lambda: len(stage.asked) == 2)
            stage.service._refresh_all()  # in the middle of it
            await stage.until(lambda: len(stage.asked) == 3)
            await stage.until(lambda: not stage.service._running)
            await asyncio.sleep(0.5)  # for more, which must not come
            assert len(stage.asked) == 3

    asyncio.run(play())


def test_usr1_is_nothing_to_who_stands_by(place: Path) -> None:
    async def play() -> None:
        stage = Stage(place, 2, after(0, refused()))
        (place / "c1").mkdir(mode=0o750)
        lock = os.open(place / "c1" / LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX)
        async with stage.running():
            await stage.until(lambda: stage.credentials[0].error and stage.credentials[1].standby)
            stage.service._refresh_all()
            await stage.until(lambda: len(stage.asked) == 2 and not stage.service._running)
            account = stage.credentials[0].account
            assert stage.credentials[1].account is account
            await asyncio.sleep(2 * policy.STANDBY_LOOK_EVERY + 0.5)  # two looks at the lock
            assert account._refusal is not None
            assert not stage.credentials[1].again
            assert len(stage.asked) == 2
        os.close(lock)

    asyncio.run(play())


@pytest.mark.usefixtures("quick")
def test_another_realm_that_hangs_costs_one_publication(place: Path) -> None:
    async def answer(name: str, without: tuple[str, ...]) -> Exchanged:
        if not without:
            raise RefreshError("kdc_timeout", "hangs")
        return brought()

    async def play() -> None:
        stage = Stage(place, 1, answer, services=["HTTP/a@FAR.TEST"])
        (credential,) = stage.credentials
        async with stage.running():
            await stage.until(lambda: credential.token is not None)
            generation = credential.generation
            tries = len(stage.asked)
            await stage.until(lambda: len(stage.asked) >= tries + 6)
            assert credential.generation == generation
            assert credential.error
            assert credential.error.reason == "kdc_timeout"
            kinds = [bool(without) for _, without in stage.asked]
            assert all(one != other for one, other in itertools.pairwise(kinds))  # turn and turn about

    asyncio.run(play())


@pytest.mark.usefixtures("quick")
def test_without_the_tgt_and_a_service_at_home_there_is_nothing_to_ask_for_alone(place: Path) -> None:
    async def answer(name: str, without: tuple[str, ...]) -> Exchanged:
        raise RefreshError("kdc_timeout", "hangs")

    async def play() -> None:
        stage = Stage(place, 1, answer, services=["HTTP/a@FAR.TEST"], include_tgt=False)
        async with stage.running():
            await stage.until(lambda: len(stage.asked) >= 4)
        assert {without for _, without in stage.asked} == {()}

    asyncio.run(play())


def test_who_was_not_asked_has_had_no_exchange_without_an_end(place: Path) -> None:
    async def answer(name: str, without: tuple[str, ...]) -> Exchanged:
        await asyncio.sleep(0.2)
        raise RefreshError("kdc_timeout", "hangs")

    async def play() -> None:
        stage = Stage(place, 2, answer, services=["HTTP/a@FAR.TEST"])
        one, other = stage.credentials
        async with stage.running():
            await stage.until(lambda: one.error and other.error)
            told = {each: isinstance(each.error, NotAsked) for each in (one, other)}
            assert sorted(told.values()) == [False, True]
            assert {each.at_home for each in (one, other) if told[each]} == {False}

    asyncio.run(play())


@pytest.mark.usefixtures("quick")
def test_a_signing_key_that_hangs_holds_one_thread(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = place / "signing"
    generate(str(key))
    hangs, entered = threading.Event(), []
    real = services._signer

    def signer(credential: Any) -> Any:
        if credential.begun and credential.settings.name == "c0":
            entered.append(1)
            assert hangs.wait(60)
        return real(credential)

    monkeypatch.setattr(services, "_signer", signer)

    async def play() -> None:
        stage = Stage(place, 2, after(0, refused("kdc_unreachable")), signing_key=key)
        one = stage.credentials[0]
        async with stage.running():
            await stage.until(lambda: one.error)
            assert one.error
            assert one.error.reason == "publish_failed"
            await stage.until(lambda: sum(name == "c1" for name, _ in stage.asked) >= 3)
            assert len(entered) == 1
            assert not any(name == "c0" for name, _ in stage.asked)
            hangs.set()
            await stage.until(lambda: any(name == "c0" for name, _ in stage.asked))

    try:
        asyncio.run(play())
    finally:
        hangs.set()


def test_what_fails_while_a_credential_catches_up_is_not_its_end(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: Iterator[Any] = iter([6.0, OSError(5, "Input/output error"), RuntimeError("can't start new thread")])
    real = services._judge

    def judge(credential: Any) -> Any:
        look = next(looks, None)
        if isinstance(look, Exception):
            raise look
        time.sleep(look or 0)
        return real(credential)

    monkeypatch.setattr(services, "_judge", judge)
    monkeypatch.setattr(services, "_AFTER_DEFECT", 0.1)

    async def play() -> None:
        stage = Stage(place, 1, after(0, brought()))
        (credential,) = stage.credentials
        async with stage.running():
            await stage.until(lambda: credential.token is not None)
            assert credential.begun
            assert next(looks, None) is None

    asyncio.run(play())


def test_bad_keytabs_are_counted_for_the_account_and_not_for_each_of_its_credentials(place: Path) -> None:
    async def play() -> None:
        stage = Stage(place, 4, after(0, refused()))
        async with stage.running():
            await stage.until(lambda: all(each.error for each in stage.credentials) and not stage.service._running)
            assert len(stage.asked) == 1
            path = stage.credentials[0].settings.keytab
            for number in range(4):
                # Each of them sees the same new file, one after the other, as looks without events do.
                for credential in stage.credentials:
                    credential.note_files({path: (number, number)})
                    credential.keytab_changed(time.time(), [path])
                    stage.service._plan(credential)
                    await asyncio.sleep(0.05)
                    await stage.until(lambda: not stage.service._running)
            assert len(stage.asked) == 1 + policy.MOST_SWAPS

    asyncio.run(play())
