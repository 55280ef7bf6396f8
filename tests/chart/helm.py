"""The real Helm, which tools/setup-chart has compiled: what a chart renders, or in which words it refuses."""

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
HELM = ROOT / ".venv" / "helm" / "bin" / "helm"
KUBERNETES = "1.31.0"

Values = dict[str, Any]


class RefusedError(Exception):
    """Helm does nothing; the message is what it says."""


def helm(*arguments: str | Path, stdin: str | None = None) -> str:
    """What it prints. It sees no cluster, no repository and no plugin of the machine's. Raises RefusedError."""
    if not HELM.exists():
        (pytest.fail if os.environ.get("CI") else pytest.skip)("make test-chart installs Helm")
    with tempfile.TemporaryDirectory(prefix="krbrefresh-helm-") as home:
        environment = {"PATH": os.environ["PATH"], "HOME": home, "KUBECONFIG": "/nonexistent/kubeconfig"}
        environment["GOGC"] = "off"  # it ends before there is anything to collect: a quarter less time
        ran = subprocess.run(
            [HELM, *arguments], input=stdin, env=environment, capture_output=True, text=True, timeout=120
        )
    if ran.returncode:
        raise RefusedError(ran.stderr + ran.stdout)
    return ran.stdout


def template(
    values: Values,
    *,
    release: str = "etl",
    kube_version: str = KUBERNETES,
    chart: Path = CHART,
    options: tuple[str, ...] = (),
) -> str:
    """The YAML of all documents, as `helm install` would send them to a cluster of that version."""
    stdin = json.dumps(values)  # JSON is YAML
    return helm("template", release, chart, "--values", "-", "--kube-version", kube_version, *options, stdin=stdin)


def lint(values: Values, *, kube_version: str = KUBERNETES, chart: Path = CHART) -> str:
    """Warnings are errors. Raises RefusedError."""
    return helm("lint", "--strict", chart, "--values", "-", "--kube-version", kube_version, stdin=json.dumps(values))
