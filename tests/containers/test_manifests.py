"""The Kubernetes manifests in docs/kubernetes/: valid by the published schemas, restricted, the keytab in one place.

The schemas are strict: a key that Kubernetes does not know is an error. tests/policies.py has what holds for all pods.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest

from tests.containers.stack import REPOSITORY
from tests.manifests import CRDS, Judge
from tests.policies import POLICIES, Rendering, broken

DIRECTORY = REPOSITORY / "docs" / "kubernetes"
WORKLOADS = ("deployment.yaml", "job-stop-file.yaml", "job-init-container.yaml")
NATIVE_SINCE = "1.29"  # deployment.yaml's sidecar

Mapping = dict[str, Any]


def load(judge: Judge, name: str) -> Mapping:
    (document,) = judge.load((DIRECTORY / name).read_text())
    return document


def pod(judge: Judge, name: str) -> Mapping:
    return load(judge, name)["spec"]["template"]["spec"]  # type: ignore[no-any-return]


def containers(spec: Mapping) -> dict[str, Mapping]:
    return {each["name"]: each for each in [*spec.get("initContainers", []), *spec["containers"]]}


def mounts(container: Mapping) -> dict[str, Mapping]:
    return {each["name"]: each for each in container["volumeMounts"]}


@pytest.fixture(scope="module")
def manifests(judge: Judge) -> list[Mapping]:
    return [load(judge, path.name) for path in sorted(DIRECTORY.glob("*.yaml"))]


def test_there_is_no_manifest_that_is_not_looked_at() -> None:
    """tests/chart/test_examples.py looks at the directories."""
    files = {path.name for path in DIRECTORY.iterdir() if not path.is_dir()}
    assert files == {*WORKLOADS, "krb5-conf.yaml", "podmonitor.yaml"}


def test_each_is_valid_by_the_published_schemas(judge: Judge, manifests: list[Mapping]) -> None:
    known = judge.versions()
    if not CRDS.exists():  # for want of a Go, and not on CI
        manifests = [each for each in manifests if each["kind"] != "PodMonitor"]
    assert not judge.faults(manifests, known[known.index(NATIVE_SINCE) :])


@pytest.mark.parametrize("name", sorted(POLICIES))
def test_they_break_no_policy(manifests: list[Mapping], name: str) -> None:
    secrets = frozenset({"etl-keytab"})
    assert not broken(Rendering(manifests, kubernetes=NATIVE_SINCE, outside=secrets, private=secrets), name)


def test_the_pod_monitor_selects_the_pods_that_have_a_refresher_to_ask(judge: Judge) -> None:
    monitor = load(judge, "podmonitor.yaml")
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    assert endpoint == {"port": "krbrefresh", "path": "/metrics", "interval": "30s"}
    selected = monitor["spec"]["selector"]["matchLabels"].items()
    for name in WORKLOADS:
        labels = load(judge, name)["spec"]["template"]["metadata"]["labels"].items()
        ports = containers(pod(judge, name))["refresher"].get("ports", [])
        stays = name != "job-init-container.yaml"
        assert (selected <= labels) is stays, name
        assert [port["name"] for port in ports] == (["krbrefresh"] if stays else []), name


@pytest.mark.parametrize("name", WORKLOADS)
def test_the_group_of_tokens_is_the_pods(judge: Judge, name: str) -> None:
    spec = pod(judge, name)
    refresher, worker = containers(spec)["refresher"], containers(spec)["worker"]
    group = {variable["name"]: variable["value"] for variable in refresher["env"]}["KRBREFRESH__KERBEROS__GROUP"]
    assert spec["securityContext"]["fsGroup"] == int(group)
    assert mounts(worker)["krb5-conf"]["mountPath"] == mounts(refresher)["krb5-conf"]["mountPath"]


def test_the_native_sidecar_is_one(judge: Judge) -> None:
    (refresher,) = pod(judge, "deployment.yaml")["initContainers"]
    assert refresher["restartPolicy"] == "Always"
    assert refresher["startupProbe"]["httpGet"]["path"] == "/readyz"
    assert refresher["livenessProbe"]["httpGet"]["path"] == "/livez"
    assert refresher["readinessProbe"]["httpGet"]["path"] == "/readyz"
    assert "restartPolicy" not in pod(judge, "job-init-container.yaml")["initContainers"][0]


def test_the_stop_file_is_what_the_worker_leaves(judge: Judge) -> None:
    spec = pod(judge, "job-stop-file.yaml")
    refresher, worker = containers(spec)["refresher"], containers(spec)["worker"]
    path = {each["name"]: each["value"] for each in refresher["env"]}["KRBREFRESH__REFRESHER__STOP_PATH"]
    assert os.path.dirname(path) == mounts(worker)["stop"]["mountPath"]
    assert f"touch {path}" in worker["args"][0]


def test_the_manifests_images_are_of_this_version_and_their_settings_exist(judge: Judge) -> None:
    from krbrefresh import __version__
    from krbrefresh.refresher import settings

    for name in WORKLOADS:
        for each in containers(pod(judge, name)).values():
            assert each["image"].endswith(f":{__version__}")
        variables = {each["name"]: each["value"] for each in containers(pod(judge, name))["refresher"]["env"]}
        (credential,) = settings.load(None, variables).credentials
        assert credential.principal == "etl@EXAMPLE.COM"
        assert credential.group == 10000


def test_the_documentation_names_each_manifest() -> None:
    named = set(
        re.findall(r"\(kubernetes/([a-z0-9-]+\.yaml)\)", (Path(DIRECTORY).parent / "kubernetes.md").read_text())
    )
    assert named == {path.name for path in DIRECTORY.iterdir() if not path.is_dir()}
