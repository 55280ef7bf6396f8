"""How containers end: with their command's status, promptly, and the stack with its worker where that is wanted."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator

import pytest

from tests.containers.stack import CLOSED, TOKENS, Container, Stack, docker, run
from tests.support import eventually

COUNTED = """
services:
  worker:
    command: ["exec", "--min-remaining", "1s", "--", "python3", "-c",
              "import subprocess, sys; subprocess.run(['python3', '/demo/worker.py', '2'], check=True); sys.exit(7)"]
"""


@pytest.fixture
def counted(engine: None) -> Iterator[Stack]:
    """A stack whose worker makes two queries and ends with 7."""
    made = Stack(more=COUNTED)
    try:
        yield made
    finally:
        made.down()


def test_the_stack_ends_with_its_worker_and_has_its_status(counted: Stack) -> None:
    began = time.monotonic()
    ran = counted.compose("up", "--no-build", "--abort-on-container-exit", "--exit-code-from", "worker", check=False)
    assert ran.returncode == 7, ran.stdout + ran.stderr
    assert time.monotonic() - began < 120
    assert [each.number for each in counted.queries()] == [1, 2]
    assert counted.container("worker").state["ExitCode"] == 7
    for service in ("refresher", "kdc", "db"):
        assert not counted.container(service).state["Running"], service
    # The refresher has heard TERM, and has not been killed after the grace period.
    assert counted.container("refresher").state["ExitCode"] == 0
    assert " stopped" in counted.container("refresher").log()


def test_a_stop_is_heard_at_once_and_leaves_the_token(engine: None) -> None:
    stack = Stack(lifetime="10m")
    try:
        stack.up()
        stack.next_query()
        for service in ("refresher", "worker"):
            container = stack.container(service)
            began = time.monotonic()
            container.do("stop", "-t", "60")
            assert time.monotonic() - began < 30  # a second or less on a machine at rest
            assert container.state["ExitCode"] == 0
            if service == "refresher":
                volume = f"{stack.project}_token:/run/krbrefresh:ro"
                said = docker(
                    *("run", "--rm", *CLOSED, "--group-add", str(TOKENS), "--volume", volume, "krbrefresh-worker"),
                    *("check", "--min-remaining", "1s"),
                )
                assert said.startswith("valid: ")
    finally:
        stack.down()


def test_a_worker_without_a_token_does_not_start_its_command(engine: None) -> None:
    ran = run(
        ["docker", "run", "--rm", *CLOSED, "krbrefresh-worker", "exec", "--timeout", "1s", "--", "/usr/bin/true"],
        check=False,
    )
    assert ran.returncode == 1
    assert ran.stderr.startswith("missing: ")


def test_a_worker_that_waits_for_a_token_hears_term(engine: None) -> None:
    identity = docker(
        "run", "-d", *CLOSED, "krbrefresh-worker", "exec", "--timeout", "10m", "--", "/usr/bin/true"
    ).strip()
    try:
        # As pid 1 it hears no signal before it has asked for it, a moment after its start.
        script = (
            "import json; print(json.dumps([line for line in open('/proc/1/status') if line.startswith('SigCgt')]))"
        )

        def listens() -> bool:
            (caught,) = Container(identity).python(script)
            return bool(int(caught.split()[1], 16) & 1 << signal.SIGTERM - 1)

        eventually(listens, within=30)
        began = time.monotonic()
        docker("stop", "-t", "60", identity)
        assert time.monotonic() - began < 30
        assert docker("inspect", "-f", "{{.State.ExitCode}}", identity).strip() == "143"
    finally:
        docker("rm", "-f", identity)
