"""The programs of `make test-faults` can fail: each of their judges is shown something that is wrong."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from krbrefresh.ccache import Principal
from tests.chaos import messages
from tests.chaos.kdc_faults import InBadWeather
from tests.chaos.observer import Observers
from tests.chaos.proxy import Asked
from tests.chaos.world import World
from tests.processes import REPOSITORY
from tests.support import ETL, Realm, ccache_bytes, ticket
from tests.tokens import sealed

SOMEBODY = Principal.parse("somebody@EXAMPLE.COM")

WRONG: dict[str, tuple[Callable[[], bytes | None], str]] = {
    "torn": (lambda: sealed(2)[:200], "corrupt"),
    "empty": (lambda: b"", "corrupt"),
    "removed": (lambda: None, "missing"),
    "older": (lambda: sealed(1), "generation 1 after 2"),
    "another's": (lambda: ccache_bytes(ticket(SOMEBODY), principal=SOMEBODY), "wrong_principal"),
    "as it was": (lambda: sealed(2), ""),
}


@pytest.mark.parametrize("what", WRONG)
def test_the_observers_see_it(place: Path, what: str) -> None:
    make, words = WRONG[what]
    path = place / "krb5cc"
    path.write_bytes(sealed(2))
    observers = Observers({str(path): str(ETL)}, 1, place, rest=0.01)
    try:
        data = make()
        if data is None:
            path.unlink()
        else:
            (place / "new").write_bytes(data)
            (place / "new").rename(path)
        if words:
            with pytest.raises(AssertionError, match=words):
                observers.results()
        else:
            counted = observers.results()
            assert counted["reads"] >= 2
            assert counted["libkrb5"] == counted["generations"] == 1
    finally:
        observers.close()


def judged(place: Path, asked: list[tuple[float, bool]], *, hurried: float = -1000.0) -> InBadWeather:
    """What is judged of one credential's requests, each with its moment and whether it had a proof."""
    name = "p000@EXAMPLE.COM"
    weather = InBadWeather(World(Realm.__new__(Realm), place, [name]), place, 0, [name])
    weather.hurried.append(hurried)
    weather.judge_attempts([Asked(at, name, proves, bytes([index])) for index, (at, proves) in enumerate(asked)])
    return weather


def test_attempts_that_are_too_close_are_seen(place: Path) -> None:
    one_exchange = [(10.0, False), (10.01, True)]
    assert judged(place, [*one_exchange, (11.1, False), (11.2, True)]).closest == pytest.approx(1.19)
    with pytest.raises(AssertionError, match=r"2 within 0\.400 s, with a proof"):
        judged(place, [*one_exchange, (10.4, False), (10.41, True)])
    judged(place, [*one_exchange, (10.4, False), (10.41, True)], hurried=10.2)  # USR1 came in between
    # A slow one, in the middle of which, or while it waits in line, USR1 asks for another.
    slow_exchange = [*one_exchange, (13.0, False), (14.0, True), (14.02, False), (14.03, True)]
    for hurried in (11.0, 13.5):
        judged(place, slow_exchange, hurried=hurried)
    with pytest.raises(AssertionError, match=r"2 within 0\.030 s, with a proof"):
        judged(place, slow_exchange, hurried=9.5)
    with pytest.raises(AssertionError, match=r"2 within 0\.200 s, with a proof"):
        judged(place, [(10.0, False), (60.0, True), (60.2, True)], hurried=11.0)
    with pytest.raises(AssertionError, match=r"3 within 0\.500 s, without a proof"):
        judged(place, [(10.0, False), (10.2, False), (10.5, False)])


def test_what_a_liar_says_is_what_libkrb5_takes_it_for() -> None:
    lie = messages.error(24, "EXAMPLE.COM", 3600)
    assert messages.error_code(lie) == 24
    later = messages.with_time(lie, 7200)
    assert messages.error_code(later) == 24
    assert later != lie
    assert len(later) == len(lie)
    assert messages.request(lie) is None
    for length in range(len(lie)):
        assert messages.error_code(lie[:length]) is None
        messages.request(b"\x6a" + lie[1:length])


@pytest.mark.root
@pytest.mark.slow
@pytest.mark.parametrize(
    ("without", "words"), [("file", "bytes that nobody published"), ("directory", " was published")]
)
def test_a_power_cut_would_tell_that_a_sync_is_missing(without: str, words: str) -> None:
    ran = subprocess.run(
        [sys.executable, "tests/chaos/power_cuts.py", "--cuts", "60", "--seed", "4", "--without", without],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=380,
    )
    if "left out" in ran.stdout:
        pytest.skip(ran.stdout)
    assert ran.returncode == 1, ran.stdout
    assert words in ran.stderr
    assert not [name for name in os.listdir("/dev/shm") if name.startswith("krbrefresh-power-")]
