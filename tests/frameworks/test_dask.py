"""The hooks in a real Dask cluster: a scheduler, and workers with and without a nanny."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest

from tests.frameworks.workshop import WITHIN, Program, Workshop

pytestmark = [pytest.mark.frameworks, pytest.mark.timeout(300)]

ADDRESS = "tcp://127.0.0.1:8786"
LOOPBACK = ("--host", "127.0.0.1", "--no-dashboard")


@pytest.fixture
def scheduler(workshop: Workshop) -> Iterator[str]:
    """The address of a scheduler."""
    with workshop.program("dask", "scheduler", *LOOPBACK, "--port", "0") as running:
        yield running.said(r"Scheduler at:\s+(tcp://127\.0\.0\.1:\d+)")[1]


def worker(workshop: Workshop, scheduler: str, *more: str) -> contextlib.AbstractContextManager[Program]:
    """`dask worker` as the example has it."""
    return workshop.example("dask worker ", *LOOPBACK, "--nthreads", "1", *more, replace=(ADDRESS, scheduler))


def bare_worker(
    workshop: Workshop, scheduler: str, *more: str, **env: str
) -> contextlib.AbstractContextManager[Program]:
    """`dask worker` without a preload, if `more` has none."""
    return workshop.program("dask", "worker", scheduler, *LOOPBACK, "--nthreads", "1", *more, **env)


def client(workshop: Workshop, scheduler: str) -> contextlib.AbstractContextManager[Program]:
    return workshop.driver(
        f"from distributed import Client\nfrom work import greet\nclient = Client({scheduler!r})",
        f"client.submit(greet, pure=False).result({WITHIN})",
    )


def registering(workshop: Workshop, scheduler: str, **options: Any) -> contextlib.AbstractContextManager[Program]:
    """A client that registers the plugin as the example does."""
    workshop.write("register.py", replace=(ADDRESS, scheduler), **options)
    return workshop.driver(
        "from register import client\nfrom work import greet", f"client.submit(greet, pure=False).result({WITHIN})"
    )


def test_the_preload_over_several_tokens(workshop: Workshop, scheduler: str) -> None:
    workshop.write("token_preload.py")
    with (
        workshop.refresher(),
        worker(workshop, scheduler, "--nworkers", "2") as running,
        client(workshop, scheduler) as asker,
    ):
        greetings = workshop.over_several_tokens(asker.ask)
        assert running.process.pid not in {greeting.pid for greeting in greetings}


def test_the_preload_by_its_name_uses_the_path_in_the_environment(workshop: Workshop, scheduler: str) -> None:
    with (
        workshop.refresher(lifetime=3600),
        bare_worker(
            workshop,
            scheduler,
            *("--no-nanny", "--preload", "krbrefresh.hooks.dask"),
            KRBREFRESH_CCACHE=str(workshop.ccache),
        ) as running,
        client(workshop, scheduler) as asker,
    ):
        assert workshop.accept(asker.ask()).pid == running.process.pid


@pytest.mark.parametrize("nanny", ["--nanny", "--no-nanny"])
def test_without_a_token_the_worker_does_not_join(workshop: Workshop, scheduler: str, nanny: str) -> None:
    workshop.write("token_preload.py", timeout=1)
    with worker(workshop, scheduler, nanny) as running:
        assert running.ended() == 1
        assert [line for line in running.errors.splitlines() if line.endswith(workshop.refusal())]
        assert "SystemExit" not in running.errors
        assert "Registered to" not in running.errors


def test_the_plugin_over_several_tokens_with_a_private_copy(workshop: Workshop, scheduler: str) -> None:
    with workshop.refresher(), bare_worker(workshop, scheduler) as running:
        running.said("Registered to")
        with registering(workshop, scheduler, private=True) as asker:
            workshop.over_several_tokens(asker.ask)
        assert len(workshop.copies()) == 1
        running.process.terminate()
        running.ended()
        assert not workshop.copies()


def test_without_a_token_who_registers_the_plugin_is_told(workshop: Workshop, scheduler: str) -> None:
    with bare_worker(workshop, scheduler) as running:
        running.said("Registered to")
        with registering(workshop, scheduler, timeout=1) as asker:
            assert asker.ended() == 1
            assert asker.errors.rstrip().endswith(f"RuntimeError: {workshop.refusal()}")
        assert running.process.poll() is None
