"""Everything that is rendered is valid by the published schemas, strictly, and breaks no policy."""

from __future__ import annotations

import collections
from collections.abc import Iterable

import pytest

from tests.chart.matrix import OLDEST, OPTIONS, Combination, combination, combinations
from tests.chart.rendering import COUNTS, Rendered, render, render_all
from tests.manifests import Judge
from tests.policies import POLICIES, Rendering, broken, collisions

NATIVE_SINCE = "1.29"


@pytest.fixture(scope="module")
def versions(judge: Judge) -> list[str]:
    """From the oldest that we speak of to the newest whose schemas are here."""
    known = judge.versions()
    return known[known.index(OLDEST) :]


@pytest.fixture(scope="module")
def matrix(versions: list[str]) -> list[Rendered]:
    COUNTS["versions of Kubernetes"] = len(versions)
    return render_all(combinations(versions))


def some(problems: Iterable[str], most: int = 25) -> str:
    """For a failure's message, that can be read."""
    every = list(problems)
    return "\n".join([*every[:most], f"... {len(every)} in all" if len(every) > most else ""]).strip()


def rendered(matrix: Iterable[Rendered]) -> list[tuple[Combination, Rendering]]:
    return [(each.combination, each.rendering) for each in matrix if each.rendering]


def test_the_newest_versions_are_among_them(versions: list[str]) -> None:
    assert versions[0] == OLDEST
    assert NATIVE_SINCE in versions
    assert len(versions) >= 10


def test_only_what_cannot_be_is_refused_and_it_is_said_why(matrix: list[Rendered]) -> None:
    wrong = [
        f"{each.combination}: {each.refused or 'was rendered'}"
        for each in matrix
        if (each.combination.refusal is None) != (not each.refused)
        or (each.combination.refusal or "") not in each.refused
    ]
    assert not wrong, some(wrong)
    said = {each.combination.refusal for each in matrix if each.refused}
    assert len(said) > 5


def test_each_manifest_is_valid_by_the_schemas_of_its_version(matrix: list[Rendered]) -> None:
    faults = [f"{each.combination}: {fault}" for each in matrix for fault in each.faults]
    assert not faults, some(faults)


@pytest.mark.parametrize("name", sorted(POLICIES))
def test_no_combination_breaks_a_policy(matrix: list[Rendered], name: str) -> None:
    problems = []
    for combination, rendering in rendered(matrix):
        COUNTS["policy checks"] += 1
        found = broken(rendering, name)
        if not any(name in option.waives for option in combination.options):
            problems += [f"{combination}: {each}" for each in found]
    assert not problems, some(problems)


def test_what_an_option_is_said_to_break_it_breaks(matrix: list[Rendered]) -> None:
    alone = {c.names[0]: rendering for c, rendering in rendered(matrix) if len(c.names) == 1}
    for name, option in OPTIONS.items():
        for policy in option.waives:
            assert broken(alone[name], policy), f"{name} does not break {policy}"


def test_each_option_has_the_objects_that_it_is_for(matrix: list[Rendered]) -> None:
    for combination, rendering in rendered(matrix):
        kinds = collections.Counter(each["kind"] for each in rendering.documents)
        for option in combination.options:
            assert set(option.objects) <= set(kinds), str(combination)
        wanted = {"ConfigMap"} if "no examples" in combination.names else {"Deployment", "Job", "CronJob", "Pod"}
        assert wanted <= set(kinds), str(combination)


def test_every_option_makes_a_difference(matrix: list[Rendered]) -> None:
    """Or nothing was tested by it."""
    newest = {c.names[0]: r for c, r in rendered(matrix) if len(c.names) == 1}  # the last one is the newest
    same = {"nothing", "native"}
    plain = newest["nothing"].documents
    assert {name for name, each in newest.items() if list(each.documents) == list(plain)} == same


def test_native_sidecars_are_used_where_there_are_any(matrix: list[Rendered]) -> None:
    for combination, rendering in rendered(matrix):
        old = combination.kubernetes == OLDEST
        native = not old and "stop file" not in combination.names
        for pod in rendering.pods:
            if pod.kind in {"Deployment", "Job"}:
                restarting = [each.get("restartPolicy") for each in pod.refreshers]
                assert restarting == (["Always"] if native else [None, None]), f"{combination}: {pod.owner}"


# --- two releases in one namespace ---

PAIRS = [
    ("etl", "reports"),
    ("etl", "etl-krbrefresh"),
    ("krbrefresh", "etl"),
    ("krbrefresh", "krbrefresh-worker"),
    ("krbrefresh", "krbrefresh-krbrefresh"),
    ("etl", "etl-worker"),
    ("etl", "etl-config"),
    ("a" * 52 + "1", "a" * 52 + "2"),
    ("a" * 42 + "-krbrefresh", "a" * 42),
    ("etl-1", "etl-11"),
]
COLLIDING = ("nothing", "monitoring", "network policy", "keytab in the values", "krb5.conf in the values", "stop file")


@pytest.mark.parametrize("names", PAIRS, ids=[f"{one[:20]}-{other[:20]}" for one, other in PAIRS])
def test_two_releases_in_one_namespace_do_not_collide(judge: Judge, names: tuple[str, str]) -> None:
    together = combination(NATIVE_SINCE, *COLLIDING)
    two = []
    for name in names:
        each = render(Combination(together.names, together.kubernetes, together.values, name), judge)
        assert each.rendering, each.refused
        assert not broken(each.rendering)
        two.append(each.rendering)
    COUNTS["pairs of releases in one namespace"] += 1
    assert not list(collisions(*two))
