"""The promises of the schedule, and a week of it on a clock that is not real."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import random
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from krbrefresh.ccache import Principal
from krbrefresh.errors import LOOK_AGAIN, REFRESH_REASONS, REJECTED, TRANSIENT, RefreshError
from krbrefresh.refresher import policy
from krbrefresh.refresher.account import Account, NotAsked
from krbrefresh.refresher.child import Exchanged
from krbrefresh.refresher.credential import Credential
from krbrefresh.refresher.files import identities
from krbrefresh.refresher.policy import Share, Window
from krbrefresh.refresher.settings import CredentialSettings
from krbrefresh.token import Token, seal
from tests.support import ETL, ccache_bytes, ticket

NOW = 1_800_000_000.0
lives = st.floats(1, 90 * 86400)
shares = st.one_of(
    st.builds(Share, fraction=st.floats(0.001, 1)), st.builds(Share, seconds=st.floats(0.1, 100 * 86400))
)
chances = st.floats(0, 1, exclude_max=True)


def retry(now: float, window: Window | None = None, **changes: Any) -> float:
    return policy.retry(
        now, window=window, **{"kind": TRANSIENT, "failures": 1, "rejections": 0, "chance": 0.5, **changes}
    )


@given(lives, shares)
def test_the_window_is_never_more_than_half_the_life(life: float, share: Share) -> None:
    window = policy.window(NOW, NOW + life, share)
    assert 0 < window.length <= life / 2 + 1e-6
    assert window.expires_at == NOW + life
    wanted = life * share.fraction if share.seconds is None else share.seconds
    assert window.clamped == (wanted > life / 2)
    if not window.clamped:
        assert window.length == pytest.approx(wanted, abs=1e-5)


def test_a_third_of_the_life_is_the_default() -> None:
    assert policy.window(NOW, NOW + 36000, Share()).length == pytest.approx(12000)


@given(lives, shares, chances)
def test_the_first_try_falls_into_the_first_30_percent_of_the_window(life: float, share: Share, chance: float) -> None:
    window = policy.window(NOW, NOW + life, share)
    tried_at = policy.first_try(window, NOW - 1, chance)
    assert window.opens_at <= tried_at <= window.opens_at + 0.3 * window.length + 1e-6


@given(lives, shares, chances, st.floats(-1, 2))
def test_a_token_that_is_new_is_not_refreshed_within_a_second(
    life: float, share: Share, chance: float, where: float
) -> None:
    window = policy.window(NOW, NOW + life, share)
    now = NOW + where * life
    assert policy.first_try(window, now, chance) >= now + 1


def test_first_tries_are_spread_over_all_of_it() -> None:
    window = policy.window(NOW, NOW + 30000, Share())
    assert policy.first_try(window, NOW, 0) == window.opens_at
    assert policy.first_try(window, NOW, 0.999) > window.opens_at + 0.29 * window.length


@given(
    st.sampled_from([TRANSIENT, REJECTED, LOOK_AGAIN]),
    st.integers(1, 10_000),
    st.integers(0, 10_000),
    lives,
    st.floats(-2, 1),
    chances,
)
def test_never_more_than_one_try_a_second(
    kind: str, failures: int, rejections: int, life: float, where: float, chance: float
) -> None:
    window = policy.window(NOW, NOW + life, Share())
    now = window.expires_at + where * life
    again = retry(now, window, kind=kind, failures=failures, rejections=rejections, chance=chance)
    assert again - now >= 1 - 1e-6


@given(lives, shares, chances, chances, st.lists(chances, min_size=3, max_size=3), st.floats(0, 1))
def test_at_least_three_tries_before_expiry_whenever_the_window_allows(
    life: float, share: Share, first: float, second: float, costs: list[float], slow: float
) -> None:
    # Also when each try lasts until its deadline, which is a quarter of the window at the most.
    window = policy.window(NOW, NOW + life, share)
    lasts = [policy.deadline(window, window.opens_at, 15.0) * cost * slow for cost in costs]
    now = policy.first_try(window, NOW - 1, first)
    tries = 0
    while now < window.expires_at and tries < 3:
        tries += 1
        now = retry(now + lasts[tries - 1], window, failures=tries, chance=second)
    # What a window must have for three tries a second apart, the first of which may be 30 % into it.
    if 0.7 * window.length - lasts[0] - lasts[1] > 2.0 / (1 - policy.LEFT_PER_TRY) + 0.1:
        assert tries == 3


@given(chances, st.integers(1, 200), st.one_of(st.none(), lives))
def test_the_back_off_grows_with_the_failures_up_to_its_cap(chance: float, failures: int, life: float | None) -> None:
    window = None if life is None else policy.window(NOW, NOW + life, Share())
    now = NOW if window is None else window.opens_at
    shorter = retry(now, window, failures=failures, chance=chance) - now
    longer = retry(now, window, failures=failures + 1, chance=chance) - now
    assert 1 - 1e-6 <= shorter <= longer + 1e-6 <= policy.BACKOFF_CAP + 1e-5


def test_the_back_off_without_a_token() -> None:
    full = [round(retry(NOW, failures=n, chance=0.9999999) - NOW) for n in range(1, 10)]
    assert full == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert retry(NOW, failures=9, chance=0.0) - NOW == 1  # full jitter: from a second up to the cap


def test_a_ticket_that_starts_in_the_past_is_reckoned_from_its_arrival() -> None:
    # A KDC that gives five minutes, and a clock four minutes ahead of it that may not be corrected.
    life = credential()
    life.succeeded(token_for(life, NOW - 240, 300), NOW)
    assert life.window is not None
    assert life.window.length == pytest.approx(60 * 0.33, abs=1)
    assert NOW + 39 < life.due_at < NOW + 48


def test_what_a_kdc_that_was_held_up_gives_is_refreshed_before_it_ends() -> None:
    # Asked for five seconds; it came four and a half later, and KDCs reckon a ticket's end by what was asked for.
    life = credential()
    life.succeeded(token_for(life, NOW, 5), NOW + 4.5, asked=NOW)
    assert NOW + 4.5 < life.due_at < NOW + 5
    life.succeeded(token_for(life, NOW, 5), NOW + 4.5, asked=NOW + 4.4)  # a KDC that gives no more: once a second
    assert life.due_at == pytest.approx(NOW + 5.4)


def test_a_jump_of_the_clock_moves_what_waits_for_a_refusal_and_hurries_the_rest() -> None:
    def jump(by: float) -> None:
        life.clock_moved(by)
        life.distrust(life.clock_lead + by)

    life = credential()
    life.succeeded(token_for(life, NOW, 36000), NOW)
    jump(-86400)
    assert life.due(NOW - 86400)
    assert life.fresh  # not by renewal, which would keep the offset
    life.failed(RefreshError("key_rejected", "x"), NOW)
    jump(-86400)
    assert life.due_at == NOW - 86400 + 300
    jump(7200)
    assert life.due_at == NOW - 86400 + 7200 + 300
    assert life.clock_lead == -2 * 86400 + 7200


def test_what_looks_again_leaves_time_before_expiry_too() -> None:
    window = policy.window(NOW, NOW + 60, Share())
    assert retry(NOW + 45, window, kind=LOOK_AGAIN) == NOW + 45 + 15 / 4
    assert retry(NOW + 45, None, kind=LOOK_AGAIN) == NOW + 45 + 60


def test_a_changed_file_is_noticed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keytab, config = tmp_path / "k", tmp_path / "krb5.conf"
    monkeypatch.setenv("KRB5_CONFIG", f"{config}:/absent")
    life = Credential(
        CredentialSettings(principal="a@B", keytab=str(keytab), ccache="/c"),
        exchange_deadline=15.0,
        chance=random.random,
    )
    changed = lambda: life.note_files(identities(life.paths))  # noqa: E731
    changed()
    assert changed() == []
    for path in (keytab, config):
        for act in (path.touch, lambda path=path: path.chmod(0o400), path.unlink):
            act()
            assert changed() == [str(path)]
            assert changed() == []
    # A rotation as Kubernetes makes it: the symlink stays, its target is another.
    (tmp_path / "one").touch()
    (tmp_path / "two").touch()
    keytab.symlink_to(tmp_path / "one")
    changed()
    (tmp_path / "new").symlink_to(tmp_path / "two")
    (tmp_path / "new").rename(keytab)
    assert changed() == [str(keytab)]


@pytest.mark.parametrize(("rejections", "minutes"), [(1, 5), (2, 10), (3, 20), (4, 40), (5, 60), (6, 60), (99, 60)])
def test_a_refusal_waits_for_minutes(rejections: int, minutes: int) -> None:
    assert retry(NOW, kind=REJECTED, failures=rejections, rejections=rejections) == NOW + 60 * minutes


def test_after_a_refusal_a_network_that_flaps_does_not_speed_it_up() -> None:
    assert retry(NOW, kind=TRANSIENT, failures=5, rejections=2) == NOW + 600


@given(lives, st.floats(0.01, 1000))
def test_an_exchange_may_take_a_quarter_of_the_window_and_no_more_than_configured(life: float, most: float) -> None:
    window = policy.window(NOW, NOW + life, Share())
    deadline = policy.deadline(window, NOW, most)
    assert deadline <= most
    assert deadline <= max(window.length / 4, policy.MIN_DEADLINE)
    assert policy.deadline(window, NOW + life, most) == policy.deadline(None, NOW, most) == most


# --- the state of one credential ---


def credential(**changes: Any) -> Credential:
    configured = CredentialSettings(principal="etl@EXAMPLE.COM", keytab="/k", ccache="/c", **changes)
    return Credential(configured, exchange_deadline=15.0, chance=random.Random(1).random)


def token_for(owner: Credential, now: float, life: int, **fields: Any) -> Token:
    body = ccache_bytes(ticket(authtime=int(now), endtime=int(now) + life, **fields))
    return Token.parse(
        seal(
            body,
            generation=owner.next_generation(now, 0),
            issued_at=int(now),
            window_opens_at=int(now),
            refresher="test",
            settings=owner.settings.fingerprint,
        )
    )


def test_a_generation_only_grows_whatever_the_clock_does() -> None:
    life = credential()
    seen = []
    for now in (NOW, NOW, NOW + 1, NOW - 86400, NOW + 3600):
        life.succeeded(token_for(life, now, 3600), now)
        seen.append(life.generation)
    assert seen == [NOW, NOW + 1, NOW + 2, NOW + 3, NOW + 3600]
    life.lost(NOW)
    assert life.next_generation(NOW, 0) == NOW + 3601
    assert life.next_generation(NOW, int(NOW) + 9000) == NOW + 9001  # somebody else has published since


def test_a_token_that_vanishes_ever_again_is_made_anew_within_a_minute() -> None:
    life = credential()
    waits = []
    for _ in range(8):
        life.succeeded(token_for(life, NOW, 3600), NOW)
        life.lost(NOW)
        waits.append(max(0.0, life.due_at - NOW))
    assert waits == [0, 2, 4, 8, 16, 32, 60, 60]


def test_a_token_that_vanishes_while_the_tries_fail_does_not_put_off_the_next_one() -> None:
    life = credential()
    for _ in range(4):
        life.succeeded(token_for(life, NOW, 3600), NOW)
        life.lost(NOW)
    assert life.due_at == NOW + 8
    life.failed(RefreshError("publish_failed", "x"), NOW)
    assert life.due_at == NOW + 1
    life.succeeded(token_for(life, NOW, 3600), NOW)
    life.failed(RefreshError("publish_failed", "x"), NOW)
    life.lost(NOW)
    assert life.due_at == NOW + 1


def test_rejections_are_forgotten_after_a_success_or_on_request_and_not_before() -> None:
    life = credential()
    for reason in ("key_rejected", "kdc_unreachable", "client_revoked"):
        life.failed(RefreshError(reason, "x"), NOW)
    assert (life.failures, life.rejections, life.due_at) == (3, 2, NOW + 600)
    life.hurry()  # a clock that jumped, a volume that was emptied
    assert not life.due(NOW)
    life.start_over()  # USR1
    assert life.due(NOW)
    life.failed(RefreshError("key_rejected", "x"), NOW)
    assert life.due_at == NOW + 300
    life.succeeded(token_for(life, NOW, 3600), NOW)
    assert (life.failures, life.rejections, life.error) == (0, 0, None)


def test_a_keytab_that_is_rewritten_again_and_again_does_not_lock_the_account() -> None:
    life = credential()
    now, attempts = NOW, [NOW]
    life.failed(RefreshError("key_rejected", "x"), now)
    while now < NOW + 1800:  # another file every ten seconds, with a key that is wrong
        now += 10
        life.keytab_changed(now, ["/k"])
        if life.due(now):
            attempts.append(now)
            life.failed(RefreshError("key_rejected", "x"), now)
    assert attempts == [NOW, NOW + 10, NOW + 20, NOW + 20 + 1200]
    life.keytab_changed(now + 1800, ["/k"])  # much later it is tried at once
    assert life.due(now + 1800)
    life.failed(RefreshError("kdc_unreachable", "x"), now + 1800)  # and that is no refusal
    assert life.due_at <= now + 1860
    life.failed(RefreshError("key_rejected", "x"), now + 1900)
    assert life.due_at == now + 1900 + 3600
    life.succeeded(token_for(life, now, 36000), now + 2000)
    life.failed(RefreshError("key_rejected", "x"), now + 2000)
    assert life.due_at == now + 2000 + 300


def test_a_keytab_that_is_mended_in_several_steps_is_tried_at_each_of_them() -> None:
    life = credential()
    life.failed(RefreshError("key_rejected", "x"), NOW)
    for now, reason in enumerate(("keytab_missing", "keytab_unreadable", "key_rejected", "keytab_missing"), int(NOW)):
        life.keytab_changed(now, ["/k"])
        assert life.due(now), reason
        life.failed(RefreshError(reason, "x"), now)
    life.keytab_changed(NOW + 9, ["/k"])  # the right one: one that was refused came between
    assert life.due(NOW + 9)


def test_another_keytab_says_nothing_of_the_armours() -> None:
    async def play() -> None:
        account, armour = Account(), Account(armour=True)
        settings = CredentialSettings(principal=str(ETL), keytab="/k", ccache="/c", fast_keytab="/f")
        life = Credential(settings, exchange_deadline=15.0, account=account, armour=armour)
        told = RefreshError("key_rejected", "x")
        for mine in (account, armour):
            mine.refused(Exchanged(error=told, armour=mine is armour), 300)

        async def ask() -> Exchanged:
            return Exchanged(ccache=b"x", method="keytab")

        life.keytab_changed(NOW, ["/k"])
        assert await account.ask(ask, 15)
        with pytest.raises(NotAsked):
            await armour.ask(ask, 15)
        life.keytab_changed(NOW, ["/f"])
        assert await armour.ask(ask, 15)

    asyncio.run(play())


def test_only_a_token_of_ours_outside_its_window_is_adopted() -> None:
    life = credential()
    good = token_for(life, NOW, 3600)
    assert credential().found(good, (1,), NOW + 1)
    kinits = Token.parse(ccache_bytes(ticket(authtime=int(NOW), endtime=int(NOW) + 3600)))
    other = Credential(CredentialSettings(principal="x@EXAMPLE.COM", keytab="/k", ccache="/c"), exchange_deadline=15.0)
    for life, token, later, state in (
        (credential(), good, 2500, "valid"),  # in its window
        (credential(), good, 4000, "expired"),
        (credential(lifetime=7200.0), good, 1, "valid"),  # made with other settings
        (credential(), kinits, 1, "valid"),
        (other, good, 1, "starting"),
    ):
        assert not life.found(token, (1,), NOW + later)
        assert (life.due(NOW + later), life.state(NOW + later)) == (True, state)  # workers live on it meanwhile
    assert not credential().found(good, (1,), NOW + 1, looks_right=False)


def test_where_the_kdc_may_canonicalize_a_token_is_ours_by_its_name_or_by_its_settings() -> None:
    life = credential(canonicalize=True)
    other = ticket(Principal.parse("other@EXAMPLE.COM"), authtime=int(NOW), endtime=int(NOW) + 3600)
    body = ccache_bytes(other, principal=other.client)

    def made_with(fingerprint: str) -> Token:
        sealed = seal(body, generation=1, issued_at=1, window_opens_at=1, refresher="test", settings=fingerprint)
        return Token.parse(sealed)

    assert not life.is_ours(Token.parse(body))  # kinit's, for somebody else
    assert not life.is_ours(made_with(credential().settings.fingerprint))
    assert life.is_ours(made_with(life.settings.fingerprint))
    assert life.is_ours(Token.parse(ccache_bytes(ticket())))
    assert not life.found(Token.parse(body), (1,), NOW + 1)
    assert life.state(NOW + 1) == "starting"


def test_a_principal_without_a_realm_owns_a_token_of_any_realm() -> None:
    life = Credential(CredentialSettings(principal="etl", keytab="/k", ccache="/c"), exchange_deadline=15.0)
    assert life.is_ours(Token.parse(ccache_bytes(ticket())))
    assert not credential().is_ours(Token.parse(ccache_bytes(ticket(), principal=ticket().server)))
    spelled = CredentialSettings(principal="\\etl@EXAMPLE.COM", keytab="/k", ccache="/c")
    assert Credential(spelled, exchange_deadline=15.0).is_ours(Token.parse(ccache_bytes(ticket())))


def test_every_reason_has_a_way_to_retry_and_a_hint() -> None:
    for reason, (kind, hint) in REFRESH_REASONS.items():
        error = RefreshError(reason, "x")
        assert error.retry == kind in (TRANSIENT, REJECTED, LOOK_AGAIN)
        assert error.hint == hint != ""


# --- a week ---


class FlakyKdc:
    """Up and down for random times; when it is down it refuses at once or lets the exchange run into its deadline."""

    def __init__(self, seed: int, until: float) -> None:
        self.random = random.Random(seed)
        self.turns: list[float] = []
        now = NOW
        while now < until:
            # Up for a minute to eight hours, down for a second to 90 minutes.
            now += 60 * 480 ** self.random.random()
            self.turns.append(now)
            now += 5400 ** self.random.random()
            self.turns.append(now)

    def outage_at(self, now: float) -> float | None:
        """When the outage ends that there is now, or None."""
        import bisect

        index = bisect.bisect_right(self.turns, now)
        return self.turns[index] if index % 2 and index < len(self.turns) else None


@settings(deadline=None, max_examples=5)
@given(st.integers(0, 10**6))
def test_a_week_against_a_flaky_kdc(seed: int) -> None:
    """Ten-hour tickets, twenty credentials, outages of up to 90 minutes: nothing expires, nobody storms, and it does
    not take a second."""
    week, life = NOW + 7 * 86400, 36000
    kdc = FlakyKdc(seed, week)
    fleet = [credential() for _ in range(20)]
    attempts: dict[int, list[float]] = {index: [] for index in range(len(fleet))}
    expired = 0
    queue = [(NOW, index) for index in range(len(fleet))]
    started = time.process_time()
    while queue:
        now, index = heapq.heappop(queue)
        if now > week:
            continue
        life_of = fleet[index]
        attempts[index].append(now)
        had = life_of.token
        if kdc.outage_at(now) is None:
            if had is not None and had.expires <= now:
                expired += 1
            life_of.succeeded(token_for(life_of, now, life), now)
        elif kdc.random.random() < 0.5:
            life_of.failed(RefreshError("kdc_unreachable", "down"), now)
        else:
            now += life_of.deadline(now)
            life_of.failed(RefreshError("kdc_timeout", "hung"), now)
        heapq.heappush(queue, (life_of.due_at, index))
    took = time.process_time() - started
    assert expired == 0
    for times in attempts.values():
        # 168 hours in lives of 6.7 to 7.7 hours; outages cost a try a minute at the most, after the first few.
        assert 22 <= len(times) < 22 + 26 + 30 * 100
        assert all(later - earlier >= 1 for earlier, later in itertools.pairwise(times))
    assert took < 1, f"{sum(map(len, attempts.values()))} tries took {took:.2f} s"
