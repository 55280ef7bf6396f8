"""Everything that is rendered is valid by the published schemas, strictly, and breaks no policy."""

from __future__ import annotations

import collections
import functools
import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

import pytest

from krbrefresh.refresher import settings
from tests.chart.helm import CHART, template
from tests.chart.matrix import BEFORE_NATIVE, OLDEST, OPTIONS, Combination, combination, combinations
from tests.chart.rendering import COUNTS, Rendered, render, render_all
from tests.manifests import Judge
from tests.policies import POLICIES, Rendering, broken, collisions, environment, mounts, volume_config_maps
from tests.test_alerts import ALERTS, DASHBOARD, promtool

NATIVE_SINCE = "1.29"
pytestmark = pytest.mark.timeout(900)  # the first test waits for the whole matrix; a minute or so on a quiet machine


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
    assert versions[: len(BEFORE_NATIVE) + 1] == [*BEFORE_NATIVE, NATIVE_SINCE]
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
    for together, rendering in rendered(matrix):
        COUNTS["policy checks"] += 1
        found = broken(rendering, name)
        if not any(name in option.waives for option in together.options):
            problems += [f"{together}: {each}" for each in found]
    assert not problems, some(problems)


def test_what_an_option_is_said_to_break_it_breaks(matrix: list[Rendered]) -> None:
    alone = {c.names[0]: rendering for c, rendering in rendered(matrix) if len(c.names) == 1}
    for name, option in OPTIONS.items():
        for policy in option.waives:
            assert broken(alone[name], policy), f"{name} does not break {policy}"


def test_each_option_has_the_objects_that_it_is_for(matrix: list[Rendered]) -> None:
    for together, rendering in rendered(matrix):
        kinds = collections.Counter(each["kind"] for each in rendering.documents)
        for option in together.options:
            assert set(option.objects) <= set(kinds), str(together)
        wanted = {"ConfigMap"} if "no examples" in together.names else {"Deployment", "Job", "CronJob", "Pod"}
        assert wanted <= set(kinds), str(together)


def test_every_option_makes_a_difference(matrix: list[Rendered]) -> None:
    """Or nothing was tested by it."""
    newest = {c.names[0]: r for c, r in rendered(matrix) if len(c.names) == 1}  # the last one is the newest
    same = {"nothing", "native"}
    plain = newest["nothing"].documents
    assert {name for name, each in newest.items() if list(each.documents) == list(plain)} == same


def test_native_sidecars_are_used_where_there_are_any(matrix: list[Rendered]) -> None:
    for together, rendering in rendered(matrix):
        old = together.kubernetes in BEFORE_NATIVE
        native = not old and "stop file" not in together.names
        for pod in rendering.pods:
            if pod.kind in {"Deployment", "Job"}:
                restarting = [each.get("restartPolicy") for each in pod.refreshers]
                assert restarting == (["Always"] if native else [None, None]), f"{together}: {pod.owner}"


def test_the_refreshers_settings_fit_its_pods(matrix: list[Rendered], tmp_path: Path) -> None:
    """By the refresher's own reader: what it opens is mounted, and a worker looks where a token is published."""
    file = tmp_path / "krbrefresh.toml"

    @functools.cache
    def read(text: str) -> settings.Settings:
        file.write_text(text)
        return settings.load(str(file), {})

    for together, rendering in rendered(matrix):
        maps = {each["metadata"]["name"]: each["data"] for each in rendering.of("ConfigMap")}
        for pod in rendering.pods:
            where = f"{together}: {pod.owner}"
            (text,) = {
                maps[name]["krbrefresh.toml"]
                for volume in pod.volumes.values()
                for name in volume_config_maps(volume)
                if "krbrefresh.toml" in maps.get(name, ())
            }
            credentials = read(text).credentials
            for container in pod.refreshers:
                paths = {mount["mountPath"]: mount["name"] for mount in mounts(container)}
                assert paths["/etc/krbrefresh"], where
                for each in credentials:
                    for path in filter(None, (each.keytab, each.signing_key, each.fast_keytab)):
                        assert paths.get(os.path.dirname(path)) in pod.private_volumes, f"{where}: {path}"
                    token = os.path.dirname(os.path.dirname(each.ccache))
                    assert paths.get(token) in pod.token_volumes, f"{where}: {each.ccache}"
                    assert each.group == pod.spec["securityContext"]["fsGroup"], where
            for container in pod.workers:
                variables = environment(container)
                looks = variables["KRBREFRESH_CCACHE"]
                assert variables["KRB5CCNAME"] == f"FILE:{looks}", where
                assert looks in {each.ccache for each in credentials}, where
                paths = {mount["mountPath"]: mount["name"] for mount in mounts(container)}
                assert paths.get(os.path.dirname(os.path.dirname(looks))) in pod.token_volumes, where
        COUNTS["settings read by the refresher's own reader"] += 1


def test_prometheus_takes_the_rules(matrix: list[Rendered], tmp_path: Path) -> None:
    texts = {
        json.dumps({"groups": rule["spec"]["groups"]})
        for _, rendering in rendered(matrix)
        for rule in rendering.of("PrometheusRule")
    }
    assert len(texts) == 2, "with KrbrefreshDown and without"
    for number, text in enumerate(sorted(texts)):
        file = tmp_path / f"{number}.yaml"
        file.write_text(text)
        done = promtool("check", "rules", "--lint=all", "--lint-fatal", file)
        assert done.returncode == 0, done.stdout + done.stderr
        left_out = '"KrbrefreshDown"' not in text
        assert f"{len(ALERTS) - left_out} rules found" in done.stdout
        assert ("docs/operations.md#" if left_out else "https://wiki/x#") in text
        assert ("https://wiki/x#" if left_out else "docs/operations.md") not in text


def test_the_dashboard_is_the_one_in_monitoring(matrix: list[Rendered]) -> None:
    found = [
        json.loads(text)
        for _, rendering in rendered(matrix)
        for each in rendering.of("ConfigMap")
        if "grafana_dashboard" in each["metadata"]["labels"]
        for text in each["data"].values()
    ]
    assert found
    assert all(each == DASHBOARD for each in found)


def test_the_notes_tell_of_each_credential(judge: Judge, tmp_path: Path) -> None:
    """Without a cluster Helm renders them and does not print them: a template of the chart's does, in a copy."""
    chart = tmp_path / "krbrefresh"
    shutil.copytree(CHART, chart)
    notes = 'data: {notes: {{ include (print $.Template.BasePath "/NOTES.txt") . | toJson }}}'
    text = f"apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: notes}}\n{notes}\n"
    (chart / "templates" / "notes.yaml").write_text(text)
    values = combination("1.37", "three credentials").values
    documents = judge.load(template({**values, "prometheusRule": {"enabled": True}}, chart=chart))
    (said,) = (each["data"]["notes"] for each in documents if each["metadata"]["name"] == "notes")
    for words in ("default: etl@EXAMPLE.COM", "reports: reports@EXAMPLE.COM", "dw: dw@EXAMPLE.COM"):
        assert words in said
    assert "create secret generic etl-keytab --from-file=kerberos.keytab" in said
    assert "Alerts, and no PodMonitor" in said


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
        each = render(together.of(name), judge)
        assert each.rendering, each.refused
        assert not broken(each.rendering)
        two.append(each.rendering)
    COUNTS["pairs of releases in one namespace"] += 1
    assert not list(collisions(*two))
