"""The Kubernetes manifests in docs/kubernetes/: valid by the published schemas, restricted, the keytab in one place.

The schemas are strict: a key that Kubernetes does not know is an error.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.containers.stack import REPOSITORY

DIRECTORY = REPOSITORY / "docs" / "kubernetes"
VALIDATOR = REPOSITORY / ".venv" / "manifests" / "bin" / "python"  # tools/setup-containers makes it
VERSIONS = ("1.29", "1.31", "1.34")
WORKLOADS = ("deployment.yaml", "job-stop-file.yaml", "job-init-container.yaml")
VALIDATE = """
import json, sys, yaml, kubernetes_validate
document = yaml.safe_load(sys.stdin)
try:
    kubernetes_validate.validate(document, sys.argv[1], strict=True)
except Exception as error:
    sys.exit(f"{type(error).__name__}: {error}")
"""
LOAD = "import json, sys, yaml; print(json.dumps(list(yaml.safe_load_all(sys.stdin))))"

Mapping = dict[str, Any]


def python(script: str, *arguments: str, stdin: str) -> subprocess.CompletedProcess[str]:
    if not VALIDATOR.exists():
        (pytest.fail if os.environ.get("CI") else pytest.skip)("make test-containers installs the validator")
    return subprocess.run(
        [VALIDATOR, "-c", script, *arguments], input=stdin, capture_output=True, text=True, timeout=60
    )


def load(name: str) -> Mapping:
    ran = python(LOAD, stdin=(DIRECTORY / name).read_text())
    assert ran.returncode == 0, ran.stderr
    (document,) = json.loads(ran.stdout)
    return document  # type: ignore[no-any-return]


def pod(name: str) -> Mapping:
    return load(name)["spec"]["template"]["spec"]  # type: ignore[no-any-return]


def containers(spec: Mapping) -> dict[str, Mapping]:
    return {each["name"]: each for each in [*spec.get("initContainers", []), *spec["containers"]]}


def mounts(container: Mapping) -> dict[str, Mapping]:
    return {each["name"]: each for each in container["volumeMounts"]}


def test_there_is_no_manifest_that_is_not_looked_at() -> None:
    """tests/chart/test_examples.py looks at the directories."""
    files = {path.name for path in DIRECTORY.iterdir() if not path.is_dir()}
    assert files == {*WORKLOADS, "krb5-conf.yaml", "podmonitor.yaml"}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", [*WORKLOADS, "krb5-conf.yaml"])
def test_each_is_valid_by_the_published_schemas(name: str, version: str) -> None:
    ran = python(VALIDATE, version, stdin=(DIRECTORY / name).read_text())
    assert ran.returncode == 0, ran.stderr


def test_a_key_that_kubernetes_does_not_know_is_found() -> None:
    text = (DIRECTORY / "deployment.yaml").read_text().replace("readOnlyRootFilesystem", "readonlyRootFilesystem")
    ran = python(VALIDATE, VERSIONS[0], stdin=text)
    assert ran.returncode != 0
    assert "readonlyRootFilesystem" in ran.stderr


def test_the_pod_monitor_selects_the_pods_that_have_a_refresher_to_ask() -> None:
    """Its schema is the Prometheus operator's, and not among the published ones: its few keys are looked at by hand."""
    monitor = load("podmonitor.yaml")
    assert monitor["apiVersion"] == "monitoring.coreos.com/v1"
    assert monitor["kind"] == "PodMonitor"
    assert set(monitor) == {"apiVersion", "kind", "metadata", "spec"}
    assert set(monitor["spec"]) == {"selector", "podMetricsEndpoints"}
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    assert endpoint == {"port": "krbrefresh", "path": "/metrics", "interval": "30s"}
    selected = monitor["spec"]["selector"]["matchLabels"].items()
    for name in WORKLOADS:
        labels = load(name)["spec"]["template"]["metadata"]["labels"].items()
        ports = containers(pod(name))["refresher"].get("ports", [])
        stays = name != "job-init-container.yaml"
        assert (selected <= labels) is stays, name
        assert [port["name"] for port in ports] == (["krbrefresh"] if stays else []), name


@pytest.mark.parametrize("name", WORKLOADS)
def test_each_pod_keeps_to_the_restricted_pod_security_standard(name: str) -> None:
    """https://kubernetes.io/docs/concepts/security/pod-security-standards/, its table, baseline and restricted."""
    spec = pod(name)
    assert not {"hostNetwork", "hostPID", "hostIPC", "shareProcessNamespace", "hostUsers"} & set(spec)
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert set(spec["securityContext"]) == {"runAsNonRoot", "fsGroup", "seccompProfile"}
    assert spec["automountServiceAccountToken"] is False
    for volume in spec["volumes"]:
        assert set(volume) - {"name"} <= {"configMap", "emptyDir", "secret", "projected", "csi", "downwardAPI"}
    for each in containers(spec).values():
        assert each["securityContext"]["allowPrivilegeEscalation"] is False
        assert each["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert each["securityContext"]["readOnlyRootFilesystem"] is True  # more than the standard asks for
        assert each["securityContext"]["runAsUser"] > 0
        assert not {"privileged", "procMount", "seLinuxOptions", "seccompProfile"} & set(each["securityContext"])
        assert not any("hostPort" in port for port in each.get("ports", []))


@pytest.mark.parametrize("name", WORKLOADS)
def test_the_keytab_is_mounted_as_a_directory_and_into_the_refresher_alone(name: str) -> None:
    spec = pod(name)
    (secret,) = (volume for volume in spec["volumes"] if "secret" in volume)
    assert secret["secret"]["defaultMode"] == 0o400
    having = [each["name"] for each in containers(spec).values() if secret["name"] in mounts(each)]
    assert having == ["refresher"]
    for each in containers(spec).values():
        assert not any("subPath" in mount or "subPathExpr" in mount for mount in each["volumeMounts"])
        assert "envFrom" not in each
        assert not any("valueFrom" in variable for variable in each["env"])
    assert mounts(containers(spec)["refresher"])[secret["name"]]["readOnly"] is True
    assert "KEYTAB" not in json.dumps(containers(spec)["worker"])


@pytest.mark.parametrize("name", WORKLOADS)
def test_refresher_and_worker_are_two_users_and_the_token_is_read_only_to_one(name: str) -> None:
    spec = pod(name)
    refresher, worker = containers(spec)["refresher"], containers(spec)["worker"]
    assert refresher["securityContext"]["runAsUser"] != worker["securityContext"]["runAsUser"]
    group = {variable["name"]: variable["value"] for variable in refresher["env"]}["KRBREFRESH__KERBEROS__GROUP"]
    assert spec["securityContext"]["fsGroup"] == int(group)
    (token,) = (volume for volume in spec["volumes"] if volume["name"] == "token")
    assert token["emptyDir"]["medium"] == "Memory"
    assert mounts(worker)["token"]["readOnly"] is True
    assert "readOnly" not in mounts(refresher)["token"]
    assert mounts(worker)["krb5-conf"]["mountPath"] == mounts(refresher)["krb5-conf"]["mountPath"]


def test_the_native_sidecar_is_one() -> None:
    (refresher,) = pod("deployment.yaml")["initContainers"]
    assert refresher["restartPolicy"] == "Always"
    assert refresher["startupProbe"]["httpGet"]["path"] == "/readyz"
    assert refresher["livenessProbe"]["httpGet"]["path"] == "/livez"
    assert refresher["readinessProbe"]["httpGet"]["path"] == "/readyz"
    assert "restartPolicy" not in pod("job-init-container.yaml")["initContainers"][0]


def test_the_stop_file_is_the_workers_to_write_and_the_refreshers_to_read() -> None:
    spec = pod("job-stop-file.yaml")
    refresher, worker = containers(spec)["refresher"], containers(spec)["worker"]
    path = {each["name"]: each["value"] for each in refresher["env"]}["KRBREFRESH__REFRESHER__STOP_PATH"]
    assert os.path.dirname(path) == mounts(worker)["stop"]["mountPath"] == mounts(refresher)["stop"]["mountPath"]
    assert mounts(refresher)["stop"]["readOnly"] is True
    assert "readOnly" not in mounts(worker)["stop"]
    assert f"touch {path}" in worker["args"][0]


def test_the_manifests_images_are_of_this_version_and_their_settings_exist() -> None:
    from krbrefresh import __version__
    from krbrefresh.refresher import settings

    for name in WORKLOADS:
        for each in containers(pod(name)).values():
            assert each["image"].endswith(f":{__version__}")
        variables = {each["name"]: each["value"] for each in containers(pod(name))["refresher"]["env"]}
        (credential,) = settings.load(None, variables).credentials
        assert credential.principal == "etl@EXAMPLE.COM"
        assert credential.group == 10000


def test_the_documentation_names_each_manifest() -> None:
    named = set(
        re.findall(r"\(kubernetes/([a-z0-9-]+\.yaml)\)", (Path(DIRECTORY).parent / "kubernetes.md").read_text())
    )
    assert named == {path.name for path in DIRECTORY.iterdir() if not path.is_dir()}
