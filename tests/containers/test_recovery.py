"""A refresher that is killed, a KDC that is silent: the worker loses no query while its token is valid, and it heals
without hands.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from tests.containers.stack import Container, Since, Stack, docker, events

pytestmark = pytest.mark.usefixtures("well")


def kill(container: Container) -> None:
    """SIGKILL, and not by the engine, as the kernel's memory killer would do it. The engine tells a pid of its own
    machine, which has to be this one."""
    pid = container.state["Pid"]
    if container.identity not in Path(f"/proc/{pid}/cgroup").read_text():
        pytest.skip("the engine is not on this machine, or its processes are not to be seen from here")
    os.kill(pid, signal.SIGKILL)


def children(container: Container) -> int:
    """How many children its first process has; a health check's process is none of them."""
    lines = docker("top", container.identity, "-o", "pid,ppid").splitlines()[1:]
    return sum(int(line.split()[1]) == container.state["Pid"] for line in lines)


def exchange_hangs(stack: Stack, refresher: Container) -> None:
    """With the KDC paused: asks for a refresh, and waits until its exchange has begun."""
    stack.until(lambda: children(refresher) == 0, what="a refresher without an exchange")
    # Not by `docker kill -s USR1`: older engines take that for a wish to end it, and do not start it again.
    refresher.python("import os; os.kill(1, 10); print('null')")
    stack.until(lambda: children(refresher) > 0, what="a child that makes an exchange")


def test_a_refresher_that_dies_in_the_middle_of_a_refresh_is_started_again(stack: Stack) -> None:
    """As the kernel's memory killer would end it: the restart policy is for that."""
    since = Since(stack)
    refresher, kdc = stack.container("refresher"), stack.container("kdc")
    published, started = len(events(refresher, "published")), len(events(refresher, "started"))
    kdc.do("pause")
    try:
        exchange_hangs(stack, refresher)
        kill(refresher)
        stack.until(lambda: len(events(refresher, "started")) > started, what="a refresher that was started again")
    finally:
        kdc.do("unpause")
    stack.until(lambda: len(events(refresher, "published")) > published, what="a refresh after that")
    stack.next_query()
    assert refresher.inspect()["RestartCount"] >= 1
    assert since.trouble == []


def test_docker_kill_during_a_refresh_and_a_second_refresher_leads(stack: Stack) -> None:
    """`docker kill` is a wish to end it, which no restart policy overrules; one that stands by takes over."""
    since = Since(stack)
    kdc, leader = stack.container("kdc"), stack.container("refresher")
    stack.compose("up", "-d", "--no-build", "--no-recreate", "--scale", "refresher=2", "refresher")
    try:
        both = stack.containers("refresher")
        assert len(both) == 2
        (standby,) = (each for each in both if each.identity != leader.identity)
        stack.until(lambda: events(standby, "standing_by"), what="a refresher that stands by")
        stack.until(lambda: standby.health == "healthy", what="a standby that is ready")
        assert events(standby, "published") == []
        kdc.do("pause")
        try:
            exchange_hangs(stack, leader)
            docker("kill", "-s", "KILL", leader.identity)
            killed = time.monotonic()
            stack.until(lambda: events(standby, "leading"), what="a standby that leads")
            took = time.monotonic() - killed
        finally:
            kdc.do("unpause")
        assert took < 20, took  # two seconds on a machine at rest
        stack.until(lambda: events(standby, "published"), what="a refresh by the second one")
        assert leader.state["ExitCode"] == 137
        stood_by = len(events(leader, "standing_by"))
        docker("start", leader.identity)
        stack.until(lambda: len(events(leader, "standing_by")) > stood_by, what="the first one, which stands by now")
        stack.next_query()
    finally:
        # The project's own way back to one leaves the first of them.
        stack.compose("up", "-d", "--no-build", "--no-recreate", "--scale", "refresher=1", "refresher")
    stack.until(lambda: events(stack.container("refresher"), "leading"), what="the one that is left leads")
    stack.next_query()
    assert since.trouble == []


def test_a_kdc_that_is_paused_over_an_expiry_window(stack: Stack) -> None:
    since = Since(stack)
    kdc, refresher = stack.container("kdc"), stack.container("refresher")
    generation = stack.queries()[-1].generation
    now = stack.next_query(lambda query: query.generation > generation)  # a new token
    kdc.do("pause")
    try:
        failures = len(events(refresher, "refresh_failed"))
        stack.until(lambda: since.trouble, what="a token that has ended")
        answers = [each for each in stack.queries() if each.generation == now.generation]
        # An answer in each second until the token's last moments, and then it waits: no query has failed.
        assert min(each.left for each in answers) <= 2
        assert all("WAITING exp" in line for line in since.trouble), since.trouble
        assert len(events(refresher, "refresh_failed")) > failures
        assert refresher.state["Running"]
        stack.until(lambda: stack.container("refresher").health == "unhealthy", what="an unhealthy refresher")
        assert stack.container("kdc").state["Paused"]
    finally:
        kdc.do("unpause")
    stack.next_query(lambda query: query.generation > now.generation)
    stack.until(lambda: refresher.health == "healthy", what="a healthy refresher")
    assert all("WAITING exp" in line for line in since.trouble), since.trouble
