"""Charts of others that have this one as a dependency: built, linted, packaged, rendered; the same policies."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from tests.chart.helm import CHART, KUBERNETES, Values, helm, lint, template
from tests.chart.matrix import OLDEST, OPTIONS, PUBLIC_KEY
from tests.chart.rendering import COUNTS
from tests.manifests import Judge
from tests.policies import Rendering, broken, collisions

PARENTS = Path(__file__).with_name("parents")
OUTSIDE = frozenset({"krb5-conf", "broker"})
KEYTABS = frozenset({"etl-keytab", "hive-keytab", "kafka-keytab", "signing", "keytab-a", "etl-b"})
MORE: dict[str, Values] = {
    "as it is": {},
    "signed": {"signing": {"existingSecret": "signing", "publicKey": PUBLIC_KEY}},
    "several credentials": dict(OPTIONS["a Secret for each credential"].values),
    "monitoring": dict(OPTIONS["monitoring"].values),
    "other paths": dict(OPTIONS["other paths"].values),
}


def built(directory: Path, name: str, alias: str | None = None) -> Path:
    """A copy of a parent beside one of the chart, with its dependencies; under another name with `alias`."""
    shutil.copytree(CHART, directory / "charts" / "krbrefresh")
    parent = directory / "tests" / "chart" / "parents" / name
    shutil.copytree(PARENTS / name, parent)
    if alias:
        about = (parent / "Chart.yaml").read_text()
        (parent / "Chart.yaml").write_text(
            about.replace("- name: krbrefresh", f"- name: krbrefresh\n    alias: {alias}")
        )
        values = (parent / "values.yaml").read_text()
        (parent / "values.yaml").write_text(values.replace("\nkrbrefresh:", f"\n{alias}:"))
    helm("dependency", "build", parent)
    assert list((parent / "charts").glob("krbrefresh-*.tgz"))
    return parent


def rendering(judge: Judge, parent: Path, values: Values, version: str, release: str = "etl") -> Rendering:
    documents = judge.load(template(values, chart=parent, kube_version=f"{version}.0", release=release))
    assert not judge.faults(documents, [version])
    COUNTS["parents rendered"] += 1
    return Rendering(documents, kubernetes=version, outside=OUTSIDE | KEYTABS, private=KEYTABS)


@pytest.mark.parametrize("alias", [None, "kerberos", "k"])
def test_a_parents_workloads_keep_to_all_policies(judge: Judge, tmp_path: Path, alias: str | None) -> None:
    parent = built(tmp_path, "one", alias)
    for version in (OLDEST, judge.versions()[-1]):
        for what, values in MORE.items():
            found = rendering(judge, parent, {alias or "krbrefresh": values}, version)
            assert not broken(found), what
            assert {pod.kind for pod in found.pods} == {"StatefulSet", "Job"}
            for pod in found.pods:
                assert len(pod.refreshers) == (2 if version == OLDEST else 1)
                assert {each["name"].partition("-")[0] for each in pod.refreshers} == {alias or "krbrefresh"}


def test_two_releases_of_a_parent_do_not_collide(judge: Judge, tmp_path: Path) -> None:
    parent = built(tmp_path, "one")
    values = {"krbrefresh": MORE["monitoring"]}
    one, other = (rendering(judge, parent, values, "1.29", release) for release in ("etl", "etl-krbrefresh"))
    assert not list(collisions(one, other))


@pytest.mark.parametrize("version", [OLDEST, "1.29"])
def test_two_refreshers_in_one_pod(judge: Judge, tmp_path: Path, version: str) -> None:
    found = rendering(judge, built(tmp_path, "two"), {}, version)
    assert not broken(found)
    (pod,) = found.pods
    volumes = {
        name.partition("-")[0]: {
            mount["name"] for each in pod.refreshers if each["name"].startswith(name) for mount in each["volumeMounts"]
        }
        for name in ("hive", "kafka")
    }
    assert not volumes["hive"] & volumes["kafka"], "neither has anything of the other's"


def test_a_parent_without_it_has_nothing_of_it(judge: Judge, tmp_path: Path) -> None:
    documents = judge.load(template({"krbrefresh": {"enabled": False}}, chart=built(tmp_path, "one")))
    assert {each["kind"] for each in documents} == {"StatefulSet", "Job"}
    assert "refresher" not in str(documents)


@pytest.mark.parametrize("name", ["one", "two"])
def test_parents_are_linted_and_packaged(tmp_path: Path, name: str) -> None:
    parent = built(tmp_path, name)
    assert "0 chart(s) failed" in lint({}, chart=parent)
    said = helm("package", parent, "--destination", tmp_path)
    (package,) = re.findall(r"saved it to: (\S+)", said)
    assert template({}, chart=Path(package)) == template({}, chart=parent)


def test_the_chart_is_packaged_with_what_it_needs_and_no_more(tmp_path: Path) -> None:
    said = helm("package", CHART, "--destination", tmp_path)
    (package,) = re.findall(r"saved it to: (\S+)", said)
    shutil.unpack_archive(package, tmp_path / "unpacked")
    files = {str(path.relative_to(CHART)) for path in CHART.rglob("*") if path.is_file()} - {".helmignore"}
    inside = tmp_path / "unpacked" / "krbrefresh"
    assert {str(path.relative_to(inside)) for path in inside.rglob("*") if path.is_file()} - {".helmignore"} == files


@pytest.mark.parametrize("name", OPTIONS)
def test_each_option_is_linted(name: str) -> None:
    from tests.chart.matrix import combination

    together = combination(KUBERNETES.rpartition(".")[0], name)
    assert "0 chart(s) failed" in lint(together.values)
    COUNTS["files of values linted"] += 1
