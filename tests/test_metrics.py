"""The metrics: what they are called, what is not known is absent, and Prometheus' own tools read them."""

from __future__ import annotations

import itertools
import math
import random
import re
import subprocess
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from krbrefresh.errors import REFRESH_REASONS
from krbrefresh.refresher import metrics
from krbrefresh.refresher.status import (
    DEGRADED,
    DURATION_BUCKETS,
    EXPIRED,
    STANDBY,
    STARTING,
    VALID,
    CredentialStatus,
    Status,
    Tally,
)
from tests.statuses import HOUR, NOW, credential, many, status
from tests.support import program

# The interface: name, type, labels.
INTERFACE = {
    "krbrefresh_build_info": ("gauge", {"version"}),
    "krbrefresh_leader": ("gauge", set()),
    "krbrefresh_refresh_failures_total": ("counter", {"reason"}),
    "krbrefresh_refresh_duration_seconds": ("histogram", {"le"}),
    "krbrefresh_clock_offset_seconds": ("gauge", set()),
    "krbrefresh_ticket_expiration_timestamp_seconds": ("gauge", {"credential"}),
    "krbrefresh_ticket_renew_until_timestamp_seconds": ("gauge", {"credential"}),
    "krbrefresh_next_refresh_timestamp_seconds": ("gauge", {"credential"}),
    "krbrefresh_last_success_timestamp_seconds": ("gauge", {"credential"}),
    "krbrefresh_generation": ("gauge", {"credential"}),
    "krbrefresh_consecutive_failures": ("gauge", {"credential"}),
    "krbrefresh_refreshes_total": ("counter", {"credential", "method"}),
    "krbrefresh_failing": ("gauge", {"credential", "reason"}),
}
ALWAYS = {name for name, (_, labels) in INTERFACE.items() if "credential" not in labels} - {
    "krbrefresh_clock_offset_seconds"
}


def text_of(said: Status) -> str:
    return metrics.render(said).decode()


def families(said: Status) -> dict[str, Metric]:
    """What Prometheus reads, by the names that the text has for them."""
    found = {}
    for family in text_string_to_metric_families(text_of(said)):
        found[family.name + ("_total" if family.type == "counter" else "")] = family
    return found


def samples(said: Status) -> dict[str, dict[frozenset[str], float]]:
    """The values, by name and by the labels' values."""
    found: dict[str, dict[frozenset[str], float]] = {}
    for family in families(said).values():
        for sample in family.samples:
            values = found.setdefault(sample.name.removeprefix("krbrefresh_"), {})
            assert frozenset(sample.labels.values()) not in values, sample
            values[frozenset(sample.labels.values())] = sample.value
    return found


def of(name: str, said: Status, *labels: str) -> float | None:
    return samples(said).get(name, {}).get(frozenset(labels))


def full() -> Status:
    tally = Tally()
    for seconds in (0.004, 0.2, 0.2, 15.0, 31.0):
        tally.took(seconds)
    tally.failures["kdc_timeout"] = 4
    return status(
        credential("etl"), credential("reports", DEGRADED), credential("old", EXPIRED), tally=tally, clock_offset=-0.25
    )


# --- the interface ---


def test_names_types_and_labels_are_those_of_the_design() -> None:
    said = full()
    declared = re.findall(r"(?m)^# TYPE (\S+) (\S+)$", text_of(said))
    assert dict(declared) == {name: kind for name, (kind, _) in INTERFACE.items()}
    assert len(declared) == len(INTERFACE)
    for name, family in families(said).items():
        kind, labels = INTERFACE[name]
        if kind == "histogram":
            suffixes = {sample.name.removeprefix(name): set(sample.labels) for sample in family.samples}
            assert suffixes == {"_bucket": {"le"}, "_sum": set(), "_count": set()}
        else:
            assert {sample.name for sample in family.samples} == {name}
            assert all(set(sample.labels) == labels for sample in family.samples), name
        assert family.documentation.endswith("."), name


def test_values() -> None:
    said = full()
    assert of("build_info", said, "1.2.3") == 1
    assert of("leader", said) == 1
    assert of("clock_offset_seconds", said) == -0.25
    assert of("ticket_expiration_timestamp_seconds", said, "etl") == NOW + 8 * HOUR
    assert of("ticket_expiration_timestamp_seconds", said, "old") == NOW - HOUR
    assert of("ticket_renew_until_timestamp_seconds", said, "etl") == NOW + 24 * HOUR
    assert of("next_refresh_timestamp_seconds", said, "etl") == NOW + 4 * HOUR
    assert of("last_success_timestamp_seconds", said, "etl") == NOW - 2 * HOUR
    assert of("generation", said, "etl") == 7
    assert of("refreshes_total", said, "etl", "keytab") == 3
    assert of("refreshes_total", said, "etl", "renewal") == 2
    assert of("consecutive_failures", said, "etl") == 0
    assert of("consecutive_failures", said, "reports") == 4
    assert of("failing", said, "reports", "kdc_timeout") == 1
    assert samples(said)["failing"].keys() == {
        frozenset({"reports", "kdc_timeout"}),
        frozenset({"old", "kdc_timeout"}),
    }
    assert of("refresh_failures_total", said, "kdc_timeout") == 4
    assert of("leader", status(leader=False)) == 0


def test_a_moment_is_not_rounded() -> None:
    assert of("next_refresh_timestamp_seconds", status(credential(next_attempt_at=1800000000.125)), "etl") == (
        1800000000.125
    )
    assert of("generation", status(credential(generation=2**53 - 1)), "etl") == 2**53 - 1


def test_every_reason_is_there_at_0_from_the_start() -> None:
    counted = samples(status(tally=Tally()))["refresh_failures_total"]
    assert counted == {frozenset({reason}): 0 for reason in REFRESH_REASONS}
    assert of("refresh_duration_seconds_count", status()) == 0
    assert of("refresh_duration_seconds_sum", status()) == 0


def test_what_is_not_known_is_absent() -> None:
    fresh = CredentialStatus(name="etl", principal="etl@X", path="/t/krb5cc", state=STARTING)
    said = status(fresh, clock_offset=None)
    assert families(said).keys() == ALWAYS | {"krbrefresh_consecutive_failures"}
    assert "Na" not in text_of(said)
    assert families(status(clock_offset=None)).keys() == ALWAYS
    # Of one that is known beside one that is not, there is one sample.
    both = status(fresh, credential("reports", STANDBY))
    assert samples(both)["generation"] == {frozenset({"reports"}): 7}
    assert "next_refresh_timestamp_seconds" not in samples(both)


def test_0_is_not_unknown() -> None:
    said = status(credential(generation=0, refreshes={"keytab": 0}, last_success_at=0.0), clock_offset=0.0)
    assert of("generation", said, "etl") == 0
    assert of("refreshes_total", said, "etl", "keytab") == 0
    assert of("last_success_timestamp_seconds", said, "etl") == 0
    assert of("clock_offset_seconds", said) == 0


def test_nothing_of_the_process_and_no_created() -> None:
    text = text_of(full())
    assert "_created" not in text
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    assert lines
    assert all(line.startswith("krbrefresh_") for line in lines)


def test_two_scrapes_know_nothing_of_each_other() -> None:
    assert of("generation", status(credential("etl")), "etl") == 7
    assert of("generation", status(credential("reports")), "etl") is None
    said = full()
    assert metrics.render(said) == metrics.render(said)


# --- the histogram ---


def histogram(tally: Tally) -> tuple[dict[str, float], float, float]:
    (family,) = (each for each in families(status(tally=tally)).values() if each.type == "histogram")
    buckets = {each.labels["le"]: each.value for each in family.samples if each.name.endswith("_bucket")}
    values = {each.name.rpartition("_")[2]: each.value for each in family.samples}
    return buckets, values["count"], values["sum"]


def test_the_histogram_is_cumulative() -> None:
    tally = Tally()
    for seconds in (0.004, 0.01, 0.02, 15.0, 15.1, 31.0, 400.0):
        tally.took(seconds)
    buckets, count, total = histogram(tally)
    assert list(map(float, buckets)) == [*DURATION_BUCKETS, math.inf]
    assert [buckets[bound] for bound in ("0.01", "0.025", "10.0", "15.0", "30.0", "+Inf")] == [2, 3, 3, 4, 5, 7]
    assert count == 7
    assert total == pytest.approx(461.134)


@given(st.lists(st.floats(0, 1000)))
def test_the_last_bucket_is_the_count_whatever_was_measured(lengths: list[float]) -> None:
    tally = Tally()
    for seconds in lengths:
        tally.took(seconds)
    buckets, count, total = histogram(tally)
    assert all(before <= after for before, after in itertools.pairwise(buckets.values()))
    assert buckets["+Inf"] == count == len(lengths)
    assert total == pytest.approx(sum(lengths))
    for bound, value in buckets.items():
        assert value == sum(1 for each in lengths if each <= float(bound))


# --- names that are no names ---

HOSTILE = {
    'a"b': 'a"b',
    "a\nb": "a\nb",
    "a\\b": "a\\b",
    "a\\nb": "a\\nb",
    'quote"} 1\nkrbrefresh_leader 0\n': 'quote"} 1\nkrbrefresh_leader 0\n',
    "été 東京": "été 東京",
    "": "",
    "{}=,": "{}=,",
    "a\udce9b": "a\\udce9b",  # a name from a file that is no UTF-8 (PEP 383)
    "\x00\x1b[31m": "\x00\x1b[31m",
}


@pytest.mark.parametrize("name", HOSTILE, ids=ascii)
def test_labels_come_back_as_they_were(name: str) -> None:
    said = status(credential(name, DEGRADED))
    assert samples(said)["generation"] == {frozenset({HOSTILE[name]}): 7}
    assert samples(said)["failing"] == {frozenset({HOSTILE[name], "kdc_timeout"}): 1}
    assert of("leader", said) == 1


@given(st.text(st.characters(exclude_categories=())))
def test_no_name_breaks_the_text(name: str) -> None:
    text = metrics.render(status(credential(name, DEGRADED), version=name)).decode()
    # Split at line feeds alone, as the format has it: Prometheus does not know the rest of str.splitlines.
    for line in text.removesuffix("\n").split("\n"):
        assert re.fullmatch(r'# (HELP|TYPE) .*|krbrefresh_\w+(\{(\w+="([^"\\\n]|\\[\\n"])*",?)+\})? \S+', line), line


# --- Prometheus' own tools ---


def promtool(exposed: bytes) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [program("promtool"), "check", "metrics"], input=exposed, capture_output=True, timeout=60, check=False
    )


@pytest.mark.parametrize(
    "said",
    [
        full(),
        status(clock_offset=None, leader=False),
        status(*(credential(name, DEGRADED) for name in HOSTILE if name)),
        many(1000),
    ],
    ids=["full", "empty", "hostile", "many"],
)
def test_promtool_has_nothing_to_say(said: Status) -> None:
    done = promtool(metrics.render(said))
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_promtool_would_have_something_to_say() -> None:
    assert promtool(b"# HELP x_total X.\n# TYPE x_total gauge\nx_total 1\n").returncode != 0


def test_a_thousand_credentials() -> None:
    said = many(1000)
    found = samples(said)
    per_state = {state: sum(each.state == state for each in said.credentials) for state in (STANDBY, STARTING, VALID)}
    assert set(per_state.values()) == {200}
    assert len(found["consecutive_failures"]) == 1000
    assert len(found["next_refresh_timestamp_seconds"]) == 800
    assert len(found["generation"]) == 800
    assert len(found["refreshes_total"]) == 2 * 800
    assert len(found["failing"]) == 400
    assert len(metrics.render(said)) < 1_000_000


# --- beside a rendering of its own ---


def plainly(said: Status) -> dict[str, dict[frozenset[str], float]]:
    """What should be there, from the design's text."""
    found: dict[str, dict[frozenset[str], float]] = {"leader": {frozenset(): float(said.leader)}}
    found["build_info"] = {frozenset({said.version}): 1}

    def note(name: str, value: float | None, *labels: str) -> None:
        if value is not None:
            found.setdefault(name, {})[frozenset(labels)] = value

    def note_all(name: str, counts: Mapping[str, int], *labels: str) -> None:
        for key, count in counts.items():
            note(name, count, *labels, key)

    note_all("refresh_failures_total", said.tally.failures)
    note("clock_offset_seconds", said.clock_offset)
    for each in said.credentials:
        note("ticket_expiration_timestamp_seconds", each.expires_at, each.name)
        note("ticket_renew_until_timestamp_seconds", each.renew_until, each.name)
        note("next_refresh_timestamp_seconds", each.next_attempt_at, each.name)
        note("last_success_timestamp_seconds", each.last_success_at, each.name)
        note("generation", each.generation, each.name)
        note("consecutive_failures", each.failures, each.name)
        note_all("refreshes_total", each.refreshes, each.name)
        note("failing", 1 if each.reason else None, each.name, each.reason or "")
    return found


@pytest.mark.parametrize("seed", range(20))
def test_random_statuses(seed: int) -> None:
    dice = random.Random(seed)

    def perhaps(value: float) -> float | None:
        return dice.choice((None, value))

    said = status(
        *(
            CredentialStatus(
                name=f"c{index}",
                principal="p@X",
                path="/t",
                state=dice.choice((VALID, DEGRADED, EXPIRED, STARTING, STANDBY)),
                reason=dice.choice((None, *REFRESH_REASONS)),
                failures=dice.randrange(100),
                expires_at=perhaps(NOW + dice.random()),
                renew_until=perhaps(NOW + dice.random()),
                generation=dice.choice((None, 1, 2)),
                next_attempt_at=perhaps(NOW + dice.random()),
                last_success_at=perhaps(NOW - dice.random()),
                refreshes={method: dice.randrange(5) for method in ("keytab", "renewal")[: dice.randrange(3)]},
            )
            for index in range(dice.randrange(8))
        ),
        leader=dice.random() < 0.5,
        clock_offset=perhaps(dice.random()),
    )
    found = samples(said)
    assert {name: values for name, values in found.items() if "duration" not in name} == plainly(said)
