"""Pods of docs/kubernetes/ for real, by `podman kube play`: the init container alone, and the sidecar with a stop file.

Podman is not a kubelet. What it does not know is put in its place: no fsGroup, so both containers have the group as
their own; no Secret, so the keytab's directory is the host's; an emptyDir belongs to one container's user, where a
kubelet's is everybody's; a probe needs curl. For a native sidecar it waits as for any init container: not tried here.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.containers.stack import LONG, TOKENS, Stack, docker
from tests.containers.test_manifests import load
from tests.support import eventually, program

CONF = """
[containers]
default_ulimits = ["nofile=20000:20000", "nproc=4096:4096"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
"""


class Podman:
    """Podman with a store of its own, and our images in it."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        (directory / "containers.conf").write_text(CONF)
        self._env = {**os.environ, "CONTAINERS_CONF": str(directory / "containers.conf")}
        self._base = ["podman", "--root", str(directory / "root"), "--runroot", str(directory / "run")]
        (directory / "images.tar").touch()
        docker("save", "-o", str(directory / "images.tar"), "krbrefresh-refresher", "krbrefresh-worker")
        self("load", "-i", str(directory / "images.tar"))

    def __call__(self, *arguments: str, check: bool = True) -> str:
        ran = subprocess.run([*self._base, *arguments], env=self._env, capture_output=True, text=True, timeout=180)
        assert not check or ran.returncode == 0, f"{arguments}: {ran.returncode}\n{ran.stdout}\n{ran.stderr}"
        return ran.stdout + ran.stderr

    def close(self) -> None:
        self("pod", "rm", "-f", "-a", check=False)
        self("rm", "-f", "-a", check=False)
        self("rmi", "-f", "-a", check=False)
        subprocess.run(["umount", str(self._directory / "root" / "overlay")], capture_output=True)

    def exited(self, name: str) -> int | None:
        """The exit status of a container that has ended."""
        state = json.loads(self("inspect", name))[0]["State"]
        return int(state["ExitCode"]) if state["Status"] == "exited" else None


@pytest.fixture(scope="module")
def podman(engine: None) -> Iterator[Podman]:
    program("podman")
    if os.geteuid() != 0:
        pytest.skip("podman's store and the host's network are root's here")
    directory = Path(tempfile.mkdtemp(prefix="krbrefresh-podman-"))
    made = None
    try:
        made = Podman(directory)
        yield made
    finally:
        if made:
            made.close()
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="module")
def realm(engine: None) -> Iterator[Stack]:
    """The demo's KDC, which pods reach by its address."""
    made = Stack()
    try:
        made.compose("up", "-d", "--no-build", "kdc")
        eventually(lambda: made.container("kdc").health == "healthy", within=LONG, what="a KDC")
        yield made
    finally:
        made.down()


Change = Callable[[dict[str, Any]], None]


@pytest.fixture
def play(podman: Podman, realm: Stack, place: Path) -> Iterator[Callable[..., None]]:
    """Plays the pod of a manifest, after a change of its containers by name."""
    file = place / "pod.yaml"

    def start(name: str, change: Change = lambda _: None) -> None:
        spec = load(name)["spec"]["template"]["spec"]
        networks = realm.container("kdc").inspect()["NetworkSettings"]["Networks"]
        (address,) = (each["IPAddress"] for each in networks.values())
        conf = load("krb5-conf.yaml")
        conf["data"]["krb5.conf"] = conf["data"]["krb5.conf"].replace("kdc.example.com", address)
        spec["hostNetwork"] = True
        named = {each["name"]: each for each in [*spec.get("initContainers", []), *spec["containers"]]}
        for each in named.values():
            each["image"] = "localhost/" + each["image"].rpartition("/")[2].partition(":")[0] + ":latest"
            each["imagePullPolicy"] = "Never"
            each["securityContext"]["runAsGroup"] = TOKENS
            for key in ("ports", "livenessProbe", "readinessProbe", "startupProbe"):
                each.pop(key, None)
            for variable in each["env"]:
                if variable["name"] == "KRBREFRESH__REFRESHER__LISTEN":
                    variable["value"] = ""  # it is the host's network
        for volume in spec["volumes"]:
            if volume.pop("secret", None):
                volume["hostPath"] = {"path": str(realm.keytabs), "type": "Directory"}
            elif volume.pop("emptyDir", None):
                directory = place / volume["name"]
                directory.mkdir()
                directory.chmod(0o777)
                volume["hostPath"] = {"path": str(directory), "type": "Directory"}
        change(named)
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "etl"}, "spec": spec}
        file.write_text(json.dumps(conf) + "\n---\n" + json.dumps(pod))
        podman("kube", "play", str(file))

    try:
        yield start
    finally:
        podman("pod", "rm", "-f", "-a", check=False)


def test_the_init_container_leaves_a_token_and_the_worker_uses_it(podman: Podman, play: Callable[..., None]) -> None:
    play("job-init-container.yaml")
    assert eventually(lambda: podman.exited("etl-worker") is not None, within=LONG)
    said = podman("logs", "etl-worker")
    assert podman.exited("etl-worker") == 0, said
    assert said.startswith("etl@EXAMPLE.COM\n")
    assert re.search(r"krbtgt/EXAMPLE.COM@EXAMPLE.COM +3h 5\dm left", said)


@pytest.mark.parametrize("status", [0, 3])
def test_the_sidecar_ends_with_the_worker_which_keeps_its_status(
    podman: Podman, play: Callable[..., None], status: int
) -> None:
    def change(named: dict[str, Any]) -> None:
        (script,) = named["worker"]["args"]
        worker = "sh -c 'krbrefresh show; ls /run/secrets/keytab; touch /run/krbrefresh/x; exit {}'"
        named["worker"]["args"] = [script.replace("krbrefresh show", worker.replace("{}", str(status)))]

    play("job-stop-file.yaml", change)
    eventually(lambda: podman.exited("etl-worker") is not None, within=LONG, what="a worker that has ended")
    eventually(lambda: podman.exited("etl-refresher") is not None, within=LONG, what="a refresher that has ended")
    said = podman("logs", "etl-worker")
    assert podman.exited("etl-worker") == status, said
    assert podman.exited("etl-refresher") == 0
    assert "etl@EXAMPLE.COM\n" in said
    assert "No such file or directory" in said  # the keytab
    assert "Read-only file system" in said
    assert "stop_path_found" in podman("logs", "etl-refresher")
