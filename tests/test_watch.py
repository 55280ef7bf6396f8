"""`watch`: each new generation once, in order; what does not pass is reported; nothing is left after `stop`."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import krbrefresh
from krbrefresh import client
from krbrefresh.token import Token
from tests.support import ETL, ccache_bytes, eventually, ticket
from tests.tokens import Signed

FAST = 0.02  # seconds between two looks


@pytest.fixture(autouse=True)
def fresh_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("_known", "_trusted", "_newest", "_keys"):
        monkeypatch.setattr(client, name, {})
    before = threading.active_count()
    yield
    assert threading.active_count() == before


@pytest.fixture
def signed(tmp_path: Path) -> Signed:
    return Signed(tmp_path)


def watching(signed: Signed, seen: list[int | None], **options: Any) -> krbrefresh.Watcher:
    return krbrefresh.watch(lambda token: seen.append(token.generation), signed.path, **{"interval": FAST, **options})


def trusting(signed: Signed) -> dict[str, Any]:
    return {"principal": str(ETL), "public_key": signed.public}


def test_each_new_generation_once_and_in_order(signed: Signed) -> None:
    signed.publish(generation=1)
    seen: list[int | None] = []
    with watching(signed, seen) as watcher:
        assert watcher.token is not None
        for generation in (2, 3, 7, 8):
            signed.publish(generation=generation)
            eventually(lambda: seen[-1:] == [generation], within=10)  # noqa: B023  (it is called at once)
        before = watcher.token
        signed.publish(generation=8)  # the same once more, in another file
        eventually(lambda: watcher.token is not before, within=10)
    assert seen == [2, 3, 7, 8]  # and not the one that was there before


def test_a_token_that_comes_later_is_new(signed: Signed) -> None:
    seen: list[int | None] = []
    with watching(signed, seen) as watcher:
        assert watcher.token is None
        assert watcher.error is not None
        assert watcher.error.reason == "missing"
        signed.publish(generation=5)
        eventually(lambda: seen == [5], within=10)
        assert watcher.error is None
        signed.path.unlink()
        eventually(lambda: watcher.error is not None, within=10)
        signed.publish(generation=5)
        eventually(lambda: watcher.error is None, within=10)
        signed.publish(generation=6)
        eventually(lambda: seen == [5, 6], within=10)


@pytest.mark.parametrize("trusted", [True, False])
def test_an_older_generation_is_reported_and_not_told(
    signed: Signed, caplog: pytest.LogCaptureFixture, trusted: bool
) -> None:
    signed.publish(generation=3)
    seen: list[int | None] = []
    with watching(signed, seen, **(trusting(signed) if trusted else {})) as watcher:
        signed.publish(generation=4)
        eventually(lambda: seen == [4], within=10)
        signed.publish(generation=3)
        eventually(lambda: "put back in place of 4" in caplog.text, within=10)
        if trusted:
            error = watcher.error
            assert isinstance(error, krbrefresh.UntrustedError)
            assert "generation 3 of etl@EXAMPLE.COM was put back in place of 4" in str(error)
        signed.publish(generation=5)
        eventually(lambda: seen == [4, 5], within=10)
        assert watcher.error is None
    assert caplog.text.count("put back in place of 4") == 1  # a line for what has come up, not for each look


def test_what_does_not_pass_is_not_told(signed: Signed, caplog: pytest.LogCaptureFixture) -> None:
    signed.publish(generation=1)
    seen: list[int | None] = []
    with watching(signed, seen, **trusting(signed)) as watcher:
        signed.publish(ccache_bytes(ticket()))
        eventually(lambda: watcher.error is not None and watcher.error.reason == "untrusted", within=10)
        signed.publish(signed.seal(ccache_bytes(ticket(endtime=1_000_000_000)), generation=2))
        eventually(lambda: watcher.error is not None and watcher.error.reason == "expired", within=10)
        signed.publish(generation=3)
        eventually(lambda: seen == [3], within=10)
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == ["untrusted", "expired"]


def test_a_callback_that_fails_is_logged_and_called_again(signed: Signed, caplog: pytest.LogCaptureFixture) -> None:
    signed.publish(generation=1)
    seen: list[int | None] = []

    def callback(token: Token) -> None:
        seen.append(token.generation)
        if token.generation == 2:
            raise RuntimeError("the pool is closed")

    with krbrefresh.watch(callback, signed.path, interval=FAST):
        signed.publish(generation=2)
        eventually(lambda: seen == [2], within=10)
        signed.publish(generation=3)
        eventually(lambda: seen == [2, 3], within=10)
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert "the pool is closed" in caplog.text


def test_a_callback_may_stop_its_watcher(signed: Signed) -> None:
    signed.publish(generation=1)
    seen: list[int | None] = []

    def callback(token: Token) -> None:
        seen.append(token.generation)
        watcher.stop()

    watcher = krbrefresh.watch(callback, signed.path, interval=FAST)
    signed.publish(generation=2)
    eventually(lambda: not watcher._thread.is_alive(), within=10)
    assert seen == [2]


def test_tickets_of_kinit_are_told_by_their_start(signed: Signed) -> None:
    from time import time

    now = int(time())
    signed.publish(ccache_bytes(ticket(authtime=now - 30)))
    starts: list[float] = []
    with krbrefresh.watch(lambda token: starts.append(token.starts), signed.path, interval=FAST):
        signed.publish(ccache_bytes(ticket(authtime=now - 10)))
        eventually(lambda: starts == [now - 10], within=10)


def test_mistakes_are_the_callers_to_hear_of(signed: Signed) -> None:
    with pytest.raises(ValueError, match="is not a length of time"):
        watching(signed, [], interval=-1)
    with pytest.raises(ValueError, match="public_key needs principal"):
        watching(signed, [], public_key=signed.public)
    signed.publish()
    with pytest.raises(krbrefresh.KeyFileError):
        watching(signed, [], principal=str(ETL), public_key=signed.directory / "nowhere")
