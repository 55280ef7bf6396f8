"""What of the chart is made from other files, or has to agree with them. Without Helm; tests/chart/ has the rest."""

from __future__ import annotations

import dataclasses
import importlib.machinery
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import krbrefresh
from krbrefresh.refresher import settings

ROOT = Path(__file__).resolve().parents[1]
CHART = ROOT / "charts" / "krbrefresh"
SCHEMA = json.loads((CHART / "values.schema.json").read_text())
# The chart's own: it knows where what it mounts is, and who may read it.
OWN = {"listen", "stop_path", "principal", "keytab", "ccache", "group", "signing_key"}
# Sections whose keys have no defaults in values.yaml.
NO_DEFAULTS = {
    ".settings.refresher",
    ".settings.kerberos",
    *(f".probes.{each}" for each in ("startup", "readiness", "liveness")),
}


@pytest.fixture(scope="module")
def chart_doc() -> ModuleType:
    path = str(ROOT / "tools" / "chart_doc")
    loader = importlib.machinery.SourceFileLoader("chart_doc", path)
    spec = importlib.util.spec_from_loader("chart_doc", loader)
    assert spec
    module = importlib.util.module_from_spec(spec)
    sys.modules["chart_doc"] = module  # dataclasses look there
    loader.exec_module(module)
    return module


def keys(kind: type) -> set[str]:
    return {each.name for each in dataclasses.fields(kind) if each.metadata} - OWN


def resolved(schema: dict[str, Any]) -> dict[str, Any]:
    reference = schema.get("$ref")
    return SCHEMA["definitions"][reference.rpartition("/")[2]] if reference else schema  # type: ignore[no-any-return]


def test_the_readme_is_not_stale() -> None:
    made = subprocess.run([sys.executable, ROOT / "tools" / "chart_doc"], capture_output=True, text=True, check=True)
    assert (CHART / "README.md").read_text() == made.stdout, "make docs"


@pytest.mark.parametrize("name", ["alerts.yaml", "dashboard.json"])
def test_what_monitoring_has_is_in_the_chart_as_it_is(name: str) -> None:
    assert (CHART / "files" / name).read_bytes() == (ROOT / "monitoring" / name).read_bytes(), "make docs"


def test_the_chart_has_the_version_of_the_package() -> None:
    text = (CHART / "Chart.yaml").read_text()
    for key in ("version", "appVersion"):
        found = re.search(rf'^{key}: "?([^"\s]+)"?', text, re.MULTILINE)
        assert found
        assert found[1] == krbrefresh.__version__, key
    assert f"version: {krbrefresh.__version__}" in (CHART / "README.md").read_text()


def test_each_setting_can_be_passed_through_and_no_other() -> None:
    sections = SCHEMA["properties"]["settings"]["properties"]
    assert set(sections["refresher"]["properties"]) == keys(settings.RefresherSettings)
    assert set(sections["kerberos"]["properties"]) == keys(settings.CredentialSettings)
    credential = set(SCHEMA["definitions"]["credential"]["properties"])
    assert credential == keys(settings.CredentialSettings) | {"principal", "keytab", "keytabSecret", "ccache"}


def test_each_value_is_documented_and_in_the_schema(chart_doc: ModuleType) -> None:
    documented = {path for path, _ in chart_doc.documented(chart_doc.read((CHART / "values.yaml").read_text()))}

    def compare(values: list[Any], schema: dict[str, Any], path: str) -> None:
        known = resolved(schema).get("properties")
        if path in documented and (known is None or not any(f"{path}.{each}" in documented for each in known)):
            return
        assert known is not None, f"{path or 'the top'}: values.yaml says nothing of it"
        assert {each.name for each in values} == set(known) - {"global"}, path or "the top"
        for each in values:
            compare(each.children, known[each.name], f"{path}.{each.name}" if path else each.name)

    compare(chart_doc.read((CHART / "values.yaml").read_text()), SCHEMA, "")


def test_a_section_that_is_taken_away_is_refused_in_words() -> None:
    """A null in a user's values takes a default away, and a template would say "nil pointer"."""

    def look(schema: dict[str, Any], path: str) -> None:
        schema = resolved(schema)
        if "properties" in schema and path not in NO_DEFAULTS:
            nullable = {name for name, each in schema["properties"].items() if "null" in resolved(each).get("type", ())}
            wanted = set(schema["properties"]) - nullable - {"global", "reinitFrequency", "resources"}
            assert set(schema["required"]) == wanted, path
            for name, each in schema["properties"].items():
                look(each, f"{path}.{name}")

    look(SCHEMA, "")


def test_values_that_airflow_s_are_compared_with_are_there(chart_doc: ModuleType) -> None:
    """The second column of docs/airflow.md's table."""
    section = (ROOT / "docs" / "airflow.md").read_text().partition("\n## The chart\n")[2].partition("\n## ")[0]
    rows = [line.split("|")[2] for line in section.splitlines() if line.startswith("| ")][1:]
    assert len(rows) > 15
    values = chart_doc.read((CHART / "values.yaml").read_text())
    templates = "".join(path.read_text() for path in CHART.rglob("*.tpl"))
    compared = 0
    for name in (name for row in rows for name in re.findall(r"`([^`]+)`", row)):
        if name.startswith("krbrefresh."):
            assert f'define "{name}"' in templates, name
            continue
        among = values
        for key in name.partition(":")[0].split("."):
            (found,) = (each for each in among if each.name == key)
            among = found.children
            compared += 1
    assert compared > 15


def test_no_object_takes_a_key_that_the_schema_does_not_know() -> None:
    def look(schema: dict[str, Any], path: str) -> None:
        schema = resolved(schema)
        if "properties" in schema:
            assert schema["additionalProperties"] is False, path
            for name, each in schema["properties"].items():
                look(each, f"{path}.{name}")

    look(SCHEMA, "")
