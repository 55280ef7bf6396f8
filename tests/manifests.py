"""Kubernetes manifests as values: YAML that is read, and judged by the published schemas.

Neither YAML nor the schemas are in the development environment: `tools/setup-manifests` puts them into one of their own,
where `tests/manifests_judge.py` runs, one process for all that is asked.
"""

from __future__ import annotations

import json
import os
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
ENVIRONMENT = REPOSITORY / ".venv" / "manifests"  # tools/setup-manifests makes it
CRDS = REPOSITORY / ".venv" / "helm" / "crds"  # tools/setup-chart makes it
JUDGE = Path(__file__).with_name("manifests_judge.py")

Mapping = dict[str, Any]


class NotYaml(ValueError):
    """What a YAML reader has to say."""


@dataclass(frozen=True)
class Fault:
    """What the schema of a version does not allow."""

    version: str
    document: str
    message: str

    def __str__(self) -> str:
        return f"{self.document}, Kubernetes {self.version}: {self.message}"


class Judge:
    """A process that reads YAML and knows the schemas. May be asked from several threads, by turns."""

    def __init__(self) -> None:
        python = ENVIRONMENT / "bin" / "python"
        if not python.exists():
            reason = "make test-chart and make test-containers install the validator of manifests"
            (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)
        self._turn = threading.Lock()
        self._process = subprocess.Popen(
            [python, "-I", JUDGE, CRDS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def _ask(self, request: Mapping) -> Any:
        assert self._process.stdin and self._process.stdout
        with self._turn:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        assert answer, "the judge has died"
        return json.loads(answer)

    def versions(self) -> list[str]:
        """The versions of Kubernetes whose schemas are here: 1.28 for example; the oldest first."""
        return self._ask({"ask": "versions"})  # type: ignore[no-any-return]

    def load(self, text: str) -> list[Mapping]:
        """All documents but empty ones. A key that is there twice is an error, as it is for Kubernetes."""
        answer = self._ask({"ask": "load", "text": text})
        if "error" in answer:
            raise NotYaml(answer["error"])
        return answer["documents"]  # type: ignore[no-any-return]

    def faults(self, documents: Sequence[Mapping], versions: Sequence[str]) -> list[Fault]:
        """Strictly: an unknown key is a fault, and so is a kind that no schema is known for."""
        answer = self._ask({"ask": "faults", "documents": list(documents), "versions": list(versions)})
        return [Fault(*each) for each in answer]

    def close(self) -> None:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.close()
        self._process.wait(timeout=10)
        self._process.stdout.close()


@contextmanager
def judging() -> Iterator[Judge]:
    """A judge for as long as this lasts."""
    judge = Judge()
    try:
        yield judge
    finally:
        judge.close()
