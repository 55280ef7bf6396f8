"""The real Helm: what the chart renders, or in which words it refuses."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "charts" / "krbrefresh"
HELM = ROOT / ".venv" / "helm" / "bin" / "helm"  # tools/setup-chart makes it
KUBERNETES = "1.31.0"

Values = dict[str, Any]


class RefusedError(Exception):
    """Helm renders nothing; the message is what it says."""


def template(
    values: Values,
    *,
    release: str = "etl",
    kube_version: str = KUBERNETES,
    chart: Path = CHART,
    options: tuple[str, ...] = (),
) -> str:
    """What `helm template` prints. Raises RefusedError."""
    if not HELM.exists():
        (pytest.fail if os.environ.get("CI") else pytest.skip)("make test-chart installs Helm")
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:  # JSON is YAML
        json.dump(values, file)
        file.flush()
        command = [HELM, "template", release, chart, "--values", file.name, "--kube-version", kube_version, *options]
        ran = subprocess.run(command, capture_output=True, text=True, timeout=60)
    if ran.returncode:
        raise RefusedError(ran.stderr)
    return ran.stdout
