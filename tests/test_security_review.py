"""docs/security-review.md names tests that are there, and what it says of the supply chain is so."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.processes import REPOSITORY

ROOT = Path(REPOSITORY)
REVIEW = ROOT / "docs" / "security-review.md"
LOCKS = sorted(path for path in (*ROOT.glob("*requirements*.txt"), *ROOT.glob("*/*requirements*.txt"),
               *ROOT.glob("tests/*/requirements*.txt"), ROOT / "tools" / "audit.txt"))  # fmt: skip


def test_every_test_that_is_named_is_there() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", REVIEW.read_text())
    assert len(named) > 50
    for path, test in named:
        assert re.search(rf"^(async )?def {test}\(", (ROOT / path).read_text(), re.MULTILINE), f"{path}::{test}"


def test_every_line_of_the_review_has_a_test_or_says_that_it_has_none() -> None:
    rows = [line for line in REVIEW.read_text().splitlines() if line.startswith("| ") and " | " in line]
    for row in rows:
        last = row.rstrip("|").rpartition("|")[2].strip()
        heading = last in ("held by", "measured by")
        assert heading or "`" in last or last.startswith("not tested"), row


@pytest.mark.parametrize("path", LOCKS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_package_is_pinned_with_its_hashes(path: Path) -> None:
    text = re.sub(r"(?m)^\s*#.*\n", "", path.read_text()).replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.strip()]
    assert lines
    for line in lines:
        assert re.match(r"[\w.\[\]-]+==\S+", line), line
        assert "--hash=sha256:" in line, line


def test_whoever_installs_a_lock_file_asks_for_its_hashes() -> None:
    files = subprocess.run(["git", "ls-files", "tools", "docker", ".ci"], cwd=ROOT, capture_output=True, text=True)
    if files.returncode:
        pytest.skip("this is no clone")
    for name in files.stdout.split():
        path = ROOT / name
        if path.suffix in (".txt", ".in") or not path.is_file():
            continue
        text = path.read_text(errors="replace").replace("\\\n", " ")
        for line in text.splitlines():
            if re.search(r"pip3? install[^&|;]* -r ", line):
                assert "--require-hashes" in line, f"{name}: {line}"
