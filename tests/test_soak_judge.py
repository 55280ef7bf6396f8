"""What a soak excuses and what it does not, and what it calls a leak. The soak itself is in tests/soak."""

from __future__ import annotations

import random

import pytest

from krbrefresh.refresher import policy
from tests.soak.judge import (
    ALLOWANCE,
    EXCUSED,
    IN_FLIGHT,
    LOOK,
    NO_KDC,
    NO_LEADER,
    NO_SPACE,
    NO_TOKENS,
    STARVED,
    UNEXCUSED,
    Last,
    Outage,
    Poll,
    Series,
    Sleeper,
    growth,
    judge,
    planned,
    reach,
    seconds,
    slope,
)
from tests.soak.report import lives

ARRIVED = 1000.0
LAST = Last(expires=1004.5, arrived=ARRIVED)  # its window opens at 1002.25, its first try is over by 1002.925
CALM = Sleeper()


def verdict(at: float, *outages: Outage, reason: str = "expired", polls: tuple[Poll, ...] = (), late: Sleeper = CALM,
            last: Last | None = LAST) -> str:  # fmt: skip
    reaches = [reach(outage, "c", polls) for outage in outages]
    return judge(at, reason, last, reaches, late).word


def well(at: float) -> Poll:
    return Poll(at, {}, frozenset({"c"}))


def test_the_first_try_is_policy_s_latest() -> None:
    assert LAST.first_try == pytest.approx(1004.5 - 2.25 * (1 - policy.FIRST_TRY_WITHIN))


def test_nothing_excuses_a_token_that_ended_without_an_outage() -> None:
    assert verdict(1004.6) == UNEXCUSED


def test_an_outage_that_was_bridged_excuses_nothing_later() -> None:
    assert verdict(1004.6, Outage(NO_KDC, 1000.0, 1001.0), polls=(well(1001.2),)) == UNEXCUSED


def test_an_outage_over_every_try_excuses_its_length_and_the_wait_that_was_planned() -> None:
    outage = Outage(NO_KDC, 1002.0, 1010.0)
    polls = (Poll(1010.1, {"c": (3, 1012.0)}),)
    assert verdict(1009.0, outage, polls=polls) == EXCUSED
    assert verdict(1012.0 + ALLOWANCE - 0.1, outage, polls=polls) == EXCUSED
    assert verdict(1012.0 + ALLOWANCE + 0.1, outage, polls=polls) == UNEXCUSED


def test_an_outage_that_began_after_the_first_try_was_over_is_not_the_cause() -> None:
    late = Outage(NO_KDC, LAST.first_try + ALLOWANCE + 0.1, 1010.0)
    assert verdict(1009.0, late, polls=(well(1010.1),)) == UNEXCUSED
    early = Outage(NO_KDC, LAST.first_try + ALLOWANCE - 0.1, 1010.0)
    assert verdict(1009.0, early, polls=(well(1010.1),)) == EXCUSED


def test_a_wait_that_is_longer_than_policy_allows_is_no_excuse() -> None:
    polls = (Poll(1010.0, {"c": (2, 1300.0)}),)
    assert planned(polls, "c", 1010.0) == 1010.0 + 2.0  # two failures in a row: two seconds at the most
    assert verdict(1015.0, Outage(NO_KDC, 1002.0, 1010.0), polls=polls) == UNEXCUSED


def test_a_try_under_way_may_fail_once_and_soon() -> None:
    under_way = Poll(1010.1, {"c": (3, 1009.9)})
    assert planned((under_way, Poll(1010.6, {"c": (4, 1014.0)})), "c", 1010.0) == 1014.0
    assert planned((under_way, Poll(1013.0, {"c": (3, 1009.9)})), "c", 1010.0) == 1010.0 + IN_FLIGHT
    assert planned((under_way, well(1010.6)), "c", 1010.0) == 1010.6
    assert planned((), "c", 1010.0) == 1010.0 + IN_FLIGHT


def test_outages_that_follow_each_other_are_one() -> None:
    chain = (Outage(NO_KDC, 1002.0, 1005.0), Outage(NO_SPACE, 1005.5, 1009.0))
    polls = (well(1005.2), well(1009.1))
    assert verdict(1008.0, *chain, polls=polls) == EXCUSED
    assert verdict(1008.0, chain[1], polls=polls) == UNEXCUSED


def test_a_leader_that_died_is_missed_until_the_next_look_at_the_lock() -> None:
    killed = Outage(NO_LEADER, 1002.5, 1002.6)
    soon, over = 1002.6 + policy.STANDBY_LOOK_EVERY, ALLOWANCE
    last = Last(expires=1003.0, arrived=999.0)
    assert verdict(soon + over - 0.1, killed, last=last) == EXCUSED
    assert verdict(soon + over + 0.1, killed, last=last) == UNEXCUSED


@pytest.mark.parametrize("reason", ["unreadable", "corrupt", "wrong_principal", "not_yet_valid", "context"])
def test_what_no_outage_explains(reason: str) -> None:
    everything = [Outage(kind, 990.0, 1100.0) for kind in (NO_KDC, NO_SPACE, NO_LEADER, NO_TOKENS)]
    assert verdict(1005.0, *everything, reason=reason, polls=(well(1100.1),)) == UNEXCUSED


def test_a_missing_token_needs_somebody_who_removed_it() -> None:
    assert verdict(1005.0, Outage(NO_KDC, 1000.0, 1010.0), reason="missing", polls=(well(1010.1),)) == UNEXCUSED
    emptied = Outage(NO_TOKENS, 1004.9, 1005.0)
    assert verdict(1005.0 + LOOK + ALLOWANCE - 0.1, emptied, reason="missing") == EXCUSED
    assert verdict(1005.0 + LOOK + ALLOWANCE + 0.1, emptied, reason="missing") == UNEXCUSED


def test_starvation_is_a_word_of_its_own_and_has_a_measure() -> None:
    outage, polls = Outage(NO_KDC, 1002.0, 1005.0), (well(1005.0),)
    assert verdict(1006.5, outage, polls=polls) == UNEXCUSED
    assert verdict(1006.5, outage, polls=polls, late=Sleeper([(1004.0, 0.3)])) == UNEXCUSED
    assert verdict(1006.5, outage, polls=polls, late=Sleeper([(1004.0, 0.6)])) == STARVED
    assert verdict(1004.6, late=Sleeper(starts=[(1001.0, 0.1)])) == UNEXCUSED
    assert verdict(1004.6, late=Sleeper(starts=[(1001.0, 0.9)])) == STARVED
    assert verdict(1004.6, late=Sleeper(starts=[(980.0, 19.0)])) == STARVED  # it was under way
    assert verdict(1004.6, late=Sleeper(starts=[(980.0, 9.0)])) == UNEXCUSED
    assert verdict(1004.6, reason="corrupt", late=Sleeper(starts=[(1001.0, 9.0)])) == UNEXCUSED


def test_seconds_of_samples() -> None:
    assert seconds([10.0, 10.2, 10.4, 20.0], 0.5) == pytest.approx(0.5 + 0.4 + 0.5)


def series(leak: float, seed: int = 0) -> Series:
    """An hour of a noisy figure that grows by so much."""
    rng = random.Random(seed)
    points = ((when, 20_000 + leak * when / 3600 + rng.choice([0, 0, 0, 800])) for when in range(300, 3600, 10))
    return Series(tuple(points))


def test_a_slope_is_not_led_astray_by_noise() -> None:
    assert abs(slope([series(0)], 120) or 0) < 100
    assert slope([series(5000)], 120) == pytest.approx(5000, rel=0.1)
    assert growth([series(5000)], 120) == pytest.approx(5000 * 3290 / 3600, rel=0.1)


def test_lives_are_not_compared_with_each_other() -> None:
    young = Series(tuple((when, 10.0) for when in range(0, 600, 10)))
    old = Series(tuple((when, 90.0) for when in range(600, 1200, 10)))
    assert slope([young, old], 120) == 0
    assert slope([Series(((0.0, 1.0),))], 120) is None
    assert growth([Series(((0.0, 1.0),))], 120) is None


def test_a_descriptor_for_each_lock_is_no_leak_and_one_more_is() -> None:
    """Of two refreshers one may get some locks of a volume that was emptied, and the others later."""

    def found(leak: float) -> float | None:
        samples = [
            {"at": at, "refreshers": {"a": {"life": 1, "leads": led, "descriptors": 14 + led + int(leak * at)}}}
            for at in range(0, 3600, 20)
            for led in (7 if at < 1800 else 30,)
        ]
        return growth(lives({"samples": samples, "seconds": 3600}, ["a"], "descriptors"), 120)

    assert found(0.0) == pytest.approx(0.0, abs=0.01)
    assert (found(0.01) or 0.0) > 10
