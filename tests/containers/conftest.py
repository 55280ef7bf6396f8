from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.containers.pods import Podman
from tests.containers.stack import IMAGES, Stack, docker
from tests.support import program


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/containers" in str(item.path):
            item.add_marker(pytest.mark.containers)
            if not item.get_closest_marker("timeout"):
                item.add_marker(pytest.mark.timeout(600))


@pytest.fixture(scope="session")
def engine() -> None:
    """A Docker engine that answers and has the images; tools/setup-containers sees to both."""
    try:
        ran = subprocess.run(["docker", "image", "inspect", *IMAGES], capture_output=True, text=True, timeout=60)
        missing = ran.stderr.strip() if ran.returncode else ""
    except FileNotFoundError:
        missing = "docker is not installed here"
    if missing:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"make test-containers sees to it: {missing}")
    assert json.loads(ran.stdout)


@pytest.fixture(scope="module")
def stack(engine: None) -> Iterator[Stack]:
    """The demo, up, and its worker at work; shared by the tests of a module, each of which leaves it well."""
    running = Stack()
    try:
        running.up()
        running.next_query()
        yield running
    finally:
        running.down()


@pytest.fixture
def well(stack: Stack) -> None:
    """The shared stack, well again, whatever the last test left."""
    for service in ("kdc", "refresher", "db", "worker"):
        for each in stack.containers(service):
            docker("unpause", each.identity, check=False)
            docker("start", each.identity, check=False)
    stack.next_query(lambda query: query.left > 5)


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


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What tests have measured, with record_property."""
    for report in terminalreporter.getreports("passed"):
        for what, value in report.user_properties:
            terminalreporter.write_line(f"{report.nodeid.rpartition('::')[2]}: {what}: {value}")
