"""Pods for real, by `podman kube play`.

Podman is not a kubelet. `as_podman_can` puts something in the place of what it does not know (podman 4.3):

- no native sidecars: it would wait for one as for any init container. In its place stand an init container that takes
  the first token (`once`) and an ordinary container that stays (`run`), as the chart renders them for old clusters;
- no fsGroup: each container has the group of tokens as its own;
- no Secret as a volume: the host's directory with the keytab, read-only as before;
- an emptyDir belongs to one container's user: a directory of the host's, which is everybody's as a kubelet's is;
- no registry: the images of this machine;
- no cluster's network and DNS: the host's network, in which podman writes no names into a pod's /etc/hosts, so that
  servers are given by their addresses;
- probes want curl: there are none, and a port is not looked at.

What stays as it is: commands, variables, users, read-only roots, capabilities, mounts, ConfigMaps.
"""

from __future__ import annotations

import copy
import json
import os
import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from tests.containers.stack import TOKENS, Stack, docker

IMAGES = ("krbrefresh-refresher", "krbrefresh-worker", "krbrefresh-demo-worker")
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
        docker("save", "-o", str(directory / "images.tar"), *IMAGES)
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

    def ended_at(self, name: str) -> datetime:
        """When a container ended that has."""
        text = json.loads(self("inspect", name))[0]["State"]["FinishedAt"]
        return datetime.fromisoformat(re.sub(r"(\.\d{6})\d*", r"\1", text).replace("Z", "+00:00"))

    def python(self, name: str, script: str) -> Any:
        """The JSON that a script prints which a container's own Python runs, as its own user."""
        return json.loads(self("exec", name, "python3", "-I", "-c", script))


def address(stack: Stack, service: str) -> str:
    """Where a container of a stack is."""
    networks = stack.container(service).inspect()["NetworkSettings"]["Networks"]
    (found,) = (each["IPAddress"] for each in networks.values())
    return str(found)


def as_podman_can(spec: Mapping[str, Any], keytabs: Path, place: Path) -> dict[str, Any]:
    """A pod's spec with what podman knows in the place of what it does not. `place` is a directory for volumes."""
    spec = copy.deepcopy(dict(spec))
    spec["hostNetwork"] = True
    init = []
    for each in spec.get("initContainers", []):
        if each.pop("restartPolicy", None) == "Always":
            init.append({**copy.deepcopy(each), "name": each["name"] + "-first", "args": ["once"]})
            spec["containers"].append(each)
        else:
            init.append(each)
    spec["initContainers"] = init
    for each in [*init, *spec["containers"]]:
        repository = each["image"].rpartition("/")[2].partition("@")[0].partition(":")[0]
        each["image"] = f"localhost/{repository}:latest"
        each["imagePullPolicy"] = "Never"
        each["securityContext"]["runAsGroup"] = TOKENS
        for key in ("ports", "livenessProbe", "readinessProbe", "startupProbe"):
            each.pop(key, None)
    for volume in spec["volumes"]:
        if volume.pop("secret", None):
            volume["hostPath"] = {"path": str(keytabs), "type": "Directory"}
        elif volume.pop("emptyDir", None):
            directory = place / volume["name"]
            directory.mkdir()
            directory.chmod(0o777)
            volume["hostPath"] = {"path": str(directory), "type": "Directory"}
    return spec


@contextmanager
def playing(podman: Podman, file: Path, name: str, documents: Sequence[dict[str, Any]]) -> Iterator[None]:
    """A pod that is played, with the ConfigMaps that it wants; gone afterwards."""
    documents = copy.deepcopy(list(documents))
    for each in documents:
        if each["kind"] == "Pod":
            # On a busy machine podman fails to remove an init container that has ended: keep it, and its log.
            each["metadata"].setdefault("annotations", {})["io.podman.annotations.init.container.type"] = "always"
    file.write_text("\n---\n".join(map(json.dumps, documents)))
    try:
        podman("kube", "play", str(file))
        yield
    finally:
        podman("pod", "rm", "-f", name, check=False)
