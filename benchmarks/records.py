"""What a scenario has found, and on what machine: one JSON file for each."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import platform
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.peers import AIRFLOW

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Scale:
    """How much is measured. `quick` is for tests: it shows that there are figures, not what they are."""

    runs: int = 5
    quick: bool = False

    def of(self, full: Any, quick: Any) -> Any:
        return quick if self.quick else full


@dataclass
class Results:
    """The figures of one scenario. `commands` are the peers', `extra` is what a plot is drawn from."""

    scenario: str
    scale: Scale
    records: list[dict[str, Any]] = field(default_factory=list)
    commands: dict[str, str] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)

    def add(self, peer: str, run: int, figure: str, value: float, unit: str) -> None:
        self.records.append(
            {
                "scenario": self.scenario,
                "peer": peer,
                "run": run,
                "figure": figure,
                "unit": unit,
                "value": round(value, 4) if isinstance(value, float) else value,
            }
        )

    def write(self, directory: Path) -> None:
        head = {
            "scenario": self.scenario,
            "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
            "machine": machine(),
            "load": round(os.getloadavg()[1], 1),  # of the last five minutes: what else was going on
            "quick": self.scale.quick,
            "runs": self.scale.runs,
            "commands": self.commands,
        }
        # A record a line: a change can be read.
        text = json.dumps({**head, **self.extra}, indent=1)[:-2]
        text += ',\n "records": [\n  ' + ",\n  ".join(json.dumps(record) for record in self.records) + "\n ]\n}\n"
        directory.mkdir(parents=True, exist_ok=True)
        (directory / f"{self.scenario}.json").write_text(text)


def machine() -> str:
    """The machine and the peers' versions, in a line."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    words = [
        platform.machine(),
        f"{os.cpu_count()} cores",
        f"{memory:.0f} GiB",
        f"Linux {platform.release().partition('-')[0]}",
        f"Python {platform.python_version()}",
        f"MIT krb5 {_said('krb5-config', '--version').rpartition(' ')[2]}",
        f"kstart {_said('dpkg-query', '-W', '-f', '${Version}', 'kstart')}",
        f"Airflow {_said(str(AIRFLOW.with_name('python')), '-c', _AIRFLOW_VERSION)}",
    ]
    return ", ".join(words)


_AIRFLOW_VERSION = "from importlib.metadata import version; print(version('apache-airflow-core'))"


def _said(*command: str) -> str:
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    return "unknown"
