"""The hook in a real Celery worker, with a real Redis."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.frameworks.workshop import WITHIN, Program, Workshop
from tests.processes import children_of
from tests.support import eventually, program

pytestmark = [pytest.mark.frameworks, pytest.mark.timeout(300)]


@pytest.fixture
def redis(place: Path) -> Iterator[str]:
    """The URL of a Redis without a port."""
    socket = place / "redis.sock"
    running = subprocess.Popen(
        [program("redis-server"), "--port", "0", "--unixsocket", str(socket), "--save", "", "--dir", str(place)],
        stdout=subprocess.DEVNULL,
    )
    try:
        eventually(socket.exists, within=WITHIN)
        yield f"redis+socket://{socket}"
    finally:
        running.terminate()
        running.wait(WITHIN)


def tasks(workshop: Workshop, redis: str, **options: Any) -> None:
    workshop.write("tasks.py", replace=("redis://localhost:6379/0", redis), **options)


def worker(workshop: Workshop, *more: str) -> contextlib.AbstractContextManager[Program]:
    return workshop.example("celery ", *more)


def client(workshop: Workshop) -> contextlib.AbstractContextManager[Program]:
    return workshop.driver("from tasks import report", f"report.delay().get(timeout={WITHIN})")


def test_prefork_over_several_tokens_and_through_children_that_replace_others(workshop: Workshop, redis: str) -> None:
    tasks(workshop, redis)
    with workshop.refresher(), worker(workshop, "--max-tasks-per-child", "5") as running, client(workshop) as asker:
        greetings = workshop.over_several_tokens(asker.ask)
        pids = {greeting.pid for greeting in greetings}
        assert len(pids) > 2
        assert running.process.pid not in pids


def test_each_child_has_a_copy_of_its_own_and_the_worker_none(workshop: Workshop, redis: str) -> None:
    tasks(workshop, redis, private=True)
    with workshop.refresher(), worker(workshop, "--max-tasks-per-child", "5") as running, client(workshop) as asker:
        greetings = workshop.over_several_tokens(asker.ask)
        assert len({greeting.pid for greeting in greetings}) > 2
        eventually(lambda: len(workshop.copies()) == 2, within=WITHIN)  # those of the children that have ended are gone
        running.process.terminate()
        running.ended()
    assert not workshop.copies()


def test_a_pool_of_threads_has_the_token_of_the_worker(workshop: Workshop, redis: str) -> None:
    tasks(workshop, redis, timeout=WITHIN)
    with worker(workshop, "--pool", "threads") as running, client(workshop) as asker, workshop.refresher():
        greeting = workshop.accept(asker.ask())
        assert greeting.pid == running.process.pid


def test_a_worker_without_a_token_does_not_start(workshop: Workshop) -> None:
    tasks(workshop, "redis://127.0.0.1:1/0", timeout=1)
    with worker(workshop) as running:
        assert running.ended() == 1
        assert workshop.refusal() in running.errors.splitlines()
        assert "Traceback" not in running.errors
        assert "Cannot connect" not in running.errors


def test_a_child_without_a_token_takes_no_task_and_the_next_one_goes_on(workshop: Workshop, redis: str) -> None:
    tasks(workshop, redis)
    with worker(workshop, "--concurrency", "1") as running, client(workshop) as asker:
        with workshop.refresher():
            before = workshop.accept(asker.ask())
        workshop.ccache.unlink()
        (child,) = children_of(running.process.pid)
        os.kill(child, signal.SIGKILL)
        running.said(workshop.refusal())
        with workshop.refresher():
            assert workshop.accept(asker.ask()).pid != before.pid
        assert running.process.poll() is None
