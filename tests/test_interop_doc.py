"""docs/interop.md is what docs/interop.json says, and that has every case for every KDC."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.interop.brands import BRANDS
from tests.interop.cases import CASES
from tests.interop.record import FILE, differences

ROOT = Path(__file__).parent.parent


def test_the_page_is_made_from_the_file_of_today() -> None:
    made = subprocess.run([sys.executable, ROOT / "tools" / "interop_doc"], capture_output=True, text=True, check=True)
    assert (ROOT / "docs" / "interop.md").read_text() == made.stdout, "run: make docs"


def test_the_file_has_every_case_for_every_kdc() -> None:
    file = json.loads(FILE.read_text())
    assert [(kdc["name"], kdc["title"]) for kdc in file["kdcs"]] == [(brand.name, brand.title) for brand in BRANDS]
    assert [(case["name"], case["group"], case["title"]) for case in file["cases"]] == [
        (case.name, case.group, case.title) for case in CASES
    ], "run: make test-interop RECORD=write"
    assert all(list(case["outcomes"]) == [brand.name for brand in BRANDS] for case in file["cases"])


def test_what_came_out_otherwise_is_told() -> None:
    file = json.loads(FILE.read_text())
    assert differences(file, file) == []
    now: dict[str, Any] = json.loads(FILE.read_text())
    now["cases"][0]["outcomes"]["mit"]["result"] = "token"
    del now["cases"][1]["outcomes"]["mit"]  # what was not run is no difference
    (told,) = differences(now, file)
    assert told.startswith("mit, plain: ")
