"""What became of the cases: from the run's own files to docs/interop.json, or against it.

python -m tests.interop.record check    what was run now is what the file says
python -m tests.interop.record write    the file anew; every case has been run against every KDC
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from tests.interop.brands import BRANDS, RESULTS
from tests.interop.cases import CASES
from tests.interop.roots import installed_version
from tests.processes import REPOSITORY

FILE = Path(REPOSITORY, "docs", "interop.json")


def recorded(results: Path = RESULTS) -> dict[str, Any]:
    """The contents of the file by the run's results; a case that was not run is not in it."""
    kdcs = []
    for brand in BRANDS:
        about = results / f"{brand.name}.json"
        if about.exists():
            kdcs.append(json.loads(about.read_text()))
    cases = []
    for case in CASES:
        outcomes = {}
        for kdc in kdcs:
            path = results / f"{kdc['name']}--{case.name}.json"
            if path.exists():
                outcomes[kdc["name"]] = json.loads(path.read_text())
        cases.append({"name": case.name, "group": case.group, "title": case.title, "outcomes": outcomes})
    clients = {"MIT krb5 of the refresher, the worker and the services": installed_version("libkrb5-3")}
    return {"clients": clients, "kdcs": kdcs, "cases": cases}


def differences(now: dict[str, Any], file: dict[str, Any]) -> list[str]:
    """Where what was run now came out otherwise than the file says."""
    said = {(case["name"], kdc): outcome for case in file["cases"] for kdc, outcome in case["outcomes"].items()}
    return [
        f"{kdc}, {case['name']}: {outcome}, and the file has {said.get((case['name'], kdc))}"
        for case in now["cases"]
        for kdc, outcome in case["outcomes"].items()
        if said.get((case["name"], kdc)) != outcome
    ]


def main(what: str) -> int:
    now = recorded()
    if what == "check":
        found = differences(now, json.loads(FILE.read_text()))
        for each in found:
            print(f"interop: {each}", file=sys.stderr)
        if found:
            print("interop: docs/interop.json is stale: make test-interop RECORD=write", file=sys.stderr)
        return int(bool(found))
    missing = [
        f"{brand.name}, {case['name']}"
        for brand in BRANDS
        for case in now["cases"]
        if brand.name not in case["outcomes"]
    ]
    if missing:
        print("interop: no table is written; these were not run: " + "; ".join(missing), file=sys.stderr)
        return 1
    FILE.write_text(json.dumps(now, indent=1, ensure_ascii=False) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
