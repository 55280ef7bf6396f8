"""The hook in real Ray workers."""

from __future__ import annotations

import contextlib
import re
from typing import Any

import pytest

from tests.frameworks.workshop import WITHIN, Program, Workshop

pytestmark = [pytest.mark.frameworks, pytest.mark.timeout(300)]

SMALL = "num_cpus=2, include_dashboard=False, object_store_memory=80_000_000"
# Without a cluster of several machines Ray keeps to loopback.
ENVIRON = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_DEDUP_LOGS": "0"}

CATCH = f"""
def attempt():
    try:
        return ray.get(report.options(max_retries=0).remote(), timeout={WITHIN})
    except ray.exceptions.RayError as error:
        return {{"error": type(error).__name__}}
"""


def driver(
    workshop: Workshop, call: str = f"ray.get(report.remote(), timeout={WITHIN})", **env: str
) -> contextlib.AbstractContextManager[Program]:
    return workshop.driver("from report import *", call, **ENVIRON, **env)


def example(workshop: Workshop, **options: Any) -> str:
    path = workshop.write("report.py", replace=("ray.init(", f"ray.init({SMALL}, "), **options)
    return path.read_text()


def test_tasks_over_several_tokens(workshop: Workshop) -> None:
    example(workshop)
    with workshop.refresher(), driver(workshop) as running:
        greetings = workshop.over_several_tokens(running.ask)
        assert running.process.pid not in {greeting.pid for greeting in greetings}


def test_an_actor_and_the_hook_by_its_name(workshop: Workshop) -> None:
    text = example(workshop)
    assert "setup}" in text
    (workshop.place / "report.py").write_text(text.replace("setup}", "'krbrefresh.hooks.ray.setup'}"))
    actor = "ray.get(ray.remote(type('Actor', (), {'greet': lambda self: report._function()})).remote().greet.remote())"
    with (
        workshop.refresher(lifetime=3600),
        driver(workshop, actor, KRBREFRESH_CCACHE=str(workshop.ccache)) as running,
    ):
        workshop.accept(running.ask())


def test_without_a_token_the_task_fails_and_the_driver_is_told(workshop: Workshop) -> None:
    text = example(workshop, timeout=1)
    (workshop.place / "report.py").write_text(text + CATCH)
    with driver(workshop, "attempt()") as running:
        assert running.ask() == {"error": "WorkerCrashedError"}
        running.said(re.escape(f"RuntimeError: {workshop.refusal()}"))
