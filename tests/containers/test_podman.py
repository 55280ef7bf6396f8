"""Pods of docs/kubernetes/ for real: the init container alone, and the sidecar with a stop file.

tests/containers/pods.py says what stands in the place of what podman does not know.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.containers.pods import Podman, address, as_podman_can, playing
from tests.containers.stack import LONG, Stack
from tests.containers.test_manifests import load
from tests.manifests import Judge
from tests.support import eventually


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
def play(podman: Podman, realm: Stack, place: Path, judge: Judge) -> Iterator[Callable[..., None]]:
    """Plays the pod of a manifest, after a change of its containers by name."""
    with ExitStack() as stack:

        def start(name: str, change: Change = lambda _: None) -> None:
            spec = load(judge, name)["spec"]["template"]["spec"]
            spec = as_podman_can(spec, realm.keytabs, place)
            named = {each["name"]: each for each in [*spec["initContainers"], *spec["containers"]]}
            for each in named.values():
                for variable in each["env"]:
                    if variable["name"] == "KRBREFRESH__REFRESHER__LISTEN":
                        variable["value"] = ""  # it is the host's network
            change(named)
            conf = load(judge, "krb5-conf.yaml")
            conf["data"]["krb5.conf"] = conf["data"]["krb5.conf"].replace("kdc.example.com", address(realm, "kdc"))
            pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "etl"}, "spec": spec}
            stack.enter_context(playing(podman, place / "pod.yaml", "etl", [conf, pod]))

        yield start


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
