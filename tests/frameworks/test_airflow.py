"""The recipe for Airflow: a real scheduler with its LocalExecutor, an API server and a DAG processor. The database is
Airflow's own; the refresher knows nothing of it."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from tests.faults import free_port
from tests.frameworks.workshop import WITHIN, Program, Workshop, frameworks
from tests.support import eventually

pytestmark = [pytest.mark.frameworks, pytest.mark.timeout(300)]

# One task that works for as long as several tokens live.
LONG = """
import json, time
from airflow.sdk import dag, task
from work import greet

@dag(schedule="@once")
def long():
    @task
    def greetings():
        with open({path!r}, "a", buffering=1) as out:
            for _ in range(240):
                out.write(json.dumps(greet()) + "\\n")
                time.sleep(0.5)
    greetings()

long()
"""


@pytest.fixture
def airflow(workshop: Workshop) -> Workshop:
    """A place for Airflow, with its database."""
    port = free_port()
    workshop.env |= {
        "PATH": f"{frameworks('requirements-airflow')}:{workshop.env['PATH']}",
        "AIRFLOW_HOME": str(workshop.place),
        "AIRFLOW__CORE__DAGS_FOLDER": str(workshop.place / "dags"),
        "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__PARALLELISM": "2",
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"http://127.0.0.1:{port}/execution/",
        "AIRFLOW__API__HOST": "127.0.0.1",
        "AIRFLOW__API__PORT": str(port),
        "AIRFLOW__API__WORKERS": "1",
    }
    (workshop.place / "dags").mkdir()
    with run(workshop, "db", "migrate") as migration:
        assert migration.ended() == 0, migration.errors
    return workshop


def run(workshop: Workshop, *argv: str) -> contextlib.AbstractContextManager[Program]:
    return workshop.program("airflow", *argv, venv="requirements-airflow")


def under_exec(workshop: Workshop, *more: str, timeout: int = WITHIN) -> contextlib.AbstractContextManager[Program]:
    """The scheduler, started as the recipe has it."""
    replace = ("krbrefresh exec ", f"python -m krbrefresh exec --min-remaining 0 --timeout {timeout} ")
    return workshop.example("krbrefresh exec ", *more, replace=replace, venv="requirements-airflow")


def greetings(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


def returned(workshop: Workshop, dag: str) -> Any:
    """What the task of a DAG has returned, or None so far."""
    with contextlib.closing(sqlite3.connect(workshop.place / "airflow.db", timeout=WITHIN)) as database:
        row = database.execute("select value from xcom where dag_id = ? and key = 'return_value'", (dag,)).fetchone()
    return row and json.loads(row[0])


def test_tasks_of_a_real_scheduler_over_several_tokens(airflow: Workshop) -> None:
    out = airflow.place / "greetings"
    (airflow.place / "dags" / "long.py").write_text(LONG.format(path=str(out)))
    airflow.write("dags/reports.py", replace=("schedule=None", "schedule='@once'"))
    with (
        airflow.refresher(),
        run(airflow, "api-server"),
        run(airflow, "dag-processor"),
        under_exec(airflow, "--skip-serve-logs") as scheduler,
    ):
        eventually(out.exists, within=2 * WITHIN, what=scheduler.errors)

        def ask() -> dict[str, Any]:
            count = len(greetings(out))
            return eventually(lambda: greetings(out)[count:], within=WITHIN)[-1]

        tasks = airflow.over_several_tokens(ask)
        assert {greeting.pid for greeting in tasks} != {scheduler.process.pid}
        airflow.accept(eventually(lambda: returned(airflow, "reports"), within=WITHIN))


def test_without_a_token_airflow_does_not_start(workshop: Workshop) -> None:
    with under_exec(workshop, timeout=1) as scheduler:
        assert scheduler.ended() == 1
        assert scheduler.errors.startswith(f"missing: {workshop.ccache}: ")
