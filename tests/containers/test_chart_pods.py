"""The chart's pods for real, as Helm renders them, with a realm and a PostgreSQL that asks for Kerberos.

tests/containers/pods.py says what stands in the place of what podman does not know.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.chart.helm import template
from tests.chart.values import with_values
from tests.containers.pods import Podman, address, as_podman_can, playing
from tests.containers.stack import LONG, Stack
from tests.manifests import Judge
from tests.policies import pod_template
from tests.support import eventually

ENDS_WITHIN = 10.0  # seconds, from the end of the worker to the end of the pod
QUERY = re.compile(r"query \d+: db.example.com answered etl@EXAMPLE.COM, encrypted, .* generation (\d+)")
CONF = """
[libdefaults]
    default_realm = EXAMPLE.COM
    dns_lookup_kdc = false
    rdns = false
    dns_canonicalize_hostname = false
    default_client_keytab_name = NONE:
[realms]
    EXAMPLE.COM = {
        kdc = %s
    }
"""
# All files that this user can read and that begin as a keytab does, whatever they are called; all environments that it
# can read; all mounts. As JSON: what is suspicious in them.
SEARCH = """
import glob, json, os, stat
found = {"files": [], "environments": [], "mounts": [], "looked": 0}
for directory, directories, files in os.walk("/"):
    if directory in ("/proc", "/sys"):
        directories.clear()
        continue
    for name in files:
        path = os.path.join(directory, name)
        try:
            if not stat.S_ISREG(os.stat(path).st_mode):
                continue
            with open(path, "rb") as file:
                magic = file.read(2)
        except OSError:
            continue
        found["looked"] += 1
        if magic == b"\\x05\\x02" or name.endswith(".keytab"):
            found["files"].append(path)
for path in glob.glob("/proc/[0-9]*/environ"):
    try:
        text = open(path, "rb").read().decode(errors="replace").upper()
    except OSError:
        continue
    if "KEYTAB" in text.replace("DEFAULT_CLIENT_KEYTAB_NAME", "") or "KTNAME" in text:
        found["environments"].append(path)
for path in glob.glob("/proc/[0-9]*/mountinfo"):
    try:
        lines = open(path).read().splitlines()
    except OSError:
        continue
    found["mounts"] += [line for line in lines if "keytab" in line.lower()]
print(json.dumps(found))
"""
# Whether this user can write where it should not.
TRY = """
import json, os
def write(path):
    try:
        open(path, "w").close()
    except OSError as error:
        return error.strerror
tried = {"token": write("/run/krbrefresh/x"), "root": write("/x"), "user": os.getuid()}
print(json.dumps(tried))
"""


@pytest.fixture(scope="module")
def servers(engine: None) -> Iterator[Stack]:
    """The demo's KDC and its PostgreSQL, which lets in nobody without GSSAPI."""
    made = Stack()
    try:
        made.compose("up", "-d", "--no-build", "db")
        eventually(lambda: made.container("db").health == "healthy", within=LONG, what="a KDC and a PostgreSQL")
        yield made
    finally:
        made.down()


Play = Callable[..., None]


@pytest.fixture
def play(podman: Podman, servers: Stack, place: Path, judge: Judge) -> Iterator[Play]:
    """Plays the pod of one of the chart's examples."""
    with ExitStack() as stack:

        def start(kind: str, example: dict[str, Any], *, kube_version: str = "1.37.0") -> None:
            values = with_values(
                {
                    "keytabPath": "/run/secrets/keytab/etl.keytab",
                    "krb5Conf": {"existingConfigMap": ""},
                    "config": CONF % address(servers, "kdc"),
                    "listen": "",  # it is the host's network
                    "settings": {"kerberos": {"lifetime": "1h", "services": ["postgres/db.example.com@EXAMPLE.COM"]}},
                    "examples": {"image": {"repository": "registry.example.com/krbrefresh-demo-worker"}, **example},
                }
            )
            documents = judge.load(template(values, kube_version=kube_version))
            (workload,) = (each for each in documents if each["kind"] == kind)
            found = pod_template(workload)
            assert found
            spec = as_podman_can(found["spec"], servers.keytabs, place)
            (worker,) = (each for each in spec["containers"] if each["name"] == "worker")
            worker["env"].append({"name": "PGHOSTADDR", "value": address(servers, "db")})
            pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "etl", "labels": {}}, "spec": spec}
            maps = [each for each in documents if each["kind"] == "ConfigMap"]
            stack.enter_context(playing(podman, place / "pod.yaml", "etl", [*maps, pod]))

        yield start


def worker_that_asks(queries: int | None = None) -> list[str]:
    return ["python3", "/demo/worker.py", *([] if queries is None else [str(queries)])]


def generations(podman: Podman) -> list[str]:
    return QUERY.findall(podman("logs", "etl-worker"))


def everything(podman: Podman, *containers: str) -> str:
    """What they have said, for a failure."""
    return "\n".join(podman("logs", f"etl-{each}", check=False) for each in containers)


def ended(podman: Podman, *containers: str) -> None:
    try:
        for each in containers:
            eventually(lambda each=each: podman.exited(f"etl-{each}") is not None, within=LONG, what=f"end of {each}")
    except AssertionError as error:
        raise AssertionError(f"{error}\n{everything(podman, *containers)}") from None


def test_the_deployments_worker_has_security_contexts_and_no_keytab(podman: Podman, play: Play) -> None:
    play("Deployment", {"deployment": {"enabled": True, "command": worker_that_asks()}})
    try:
        eventually(lambda: generations(podman), within=LONG, every=0.5, what="an answer")
        podman("kill", "--signal", "USR1", "etl-krbrefresh")  # refresh now
        eventually(
            lambda: len(set(generations(podman))) == 2, within=LONG, every=0.5, what="an answer by the next token"
        )
    except AssertionError as error:
        said = everything(podman, "krbrefresh-first", "krbrefresh", "worker")
        raise AssertionError(f"{error}\n{said}") from None

    seen = podman.python("etl-worker", SEARCH)
    assert seen["looked"] > 1000
    assert (seen["files"], seen["environments"], seen["mounts"]) == ([], [], [])
    # The same search finds it where it is.
    seen = podman.python("etl-krbrefresh", SEARCH)
    assert "/run/secrets/keytab/etl.keytab" in seen["files"]
    assert seen["mounts"]

    tried = podman.python("etl-worker", TRY)
    assert tried == {"token": "Read-only file system", "root": "Read-only file system", "user": 10002}


@pytest.mark.parametrize("status", [0, 3])
def test_a_jobs_pod_ends_soon_after_its_worker_which_keeps_its_status(
    podman: Podman, play: Play, status: int, record_property: Callable[[str, object], None]
) -> None:
    script = "python3 /demo/worker.py 2; exec sh -c 'exit " + str(status) + "'"
    play("Job", {"job": {"enabled": True, "command": ["sh", "-c", script]}}, kube_version="1.28.0")
    ended(podman, "worker", "krbrefresh")
    took = (podman.ended_at("etl-krbrefresh") - podman.ended_at("etl-worker")).total_seconds()
    record_property("seconds from the worker's end to the pod's", round(took, 1))
    said = everything(podman, "krbrefresh", "worker")
    assert took < ENDS_WITHIN, said
    assert podman.exited("etl-worker") == status, said
    assert podman.exited("etl-krbrefresh") == 0, said
    assert len(generations(podman)) == 2
    assert "stop_path_found" in said


def test_a_short_jobs_pod_has_one_token_and_ends_with_its_worker(podman: Podman, play: Play) -> None:
    play("CronJob", {"cronJob": {"enabled": True, "command": worker_that_asks(2)}})
    ended(podman, "worker")
    assert podman.exited("etl-worker") == 0, everything(podman, "krbrefresh-once", "worker")
    assert len(set(generations(podman))) == 1
    eventually(
        lambda: not json.loads(podman("ps", "--format", "json")), within=ENDS_WITHIN, what="a pod that has ended"
    )


def test_the_pod_of_helm_test_ends_well(podman: Podman, play: Play) -> None:
    play("Pod", {"test": {"enabled": True}})
    ended(podman, "worker")
    said = everything(podman, "krbrefresh-once", "worker")
    assert podman.exited("etl-worker") == 0, said
    assert "etl@EXAMPLE.COM\n" in said
