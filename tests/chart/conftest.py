from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.manifests import Judge, judging


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/chart" in str(item.path):
            item.add_marker(pytest.mark.chart)
            if not item.get_closest_marker("timeout"):
                item.add_marker(pytest.mark.timeout(300))


@pytest.fixture(scope="session")
def judge() -> Iterator[Judge]:
    with judging() as process:
        yield process


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    from tests.chart.rendering import COUNTS

    if COUNTS:
        terminalreporter.section("the chart")
        for what, number in COUNTS.items():
            terminalreporter.write_line(f"{number:>9,} {what}")
