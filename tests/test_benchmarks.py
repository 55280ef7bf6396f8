"""What docs/benchmarks.md says is what was measured. `make bench QUICK=1` shows that it can be measured at all."""

from __future__ import annotations

import pytest

from benchmarks import figures, report, sampling
from benchmarks.records import RESULTS, Results, Scale
from benchmarks.scenarios import NAMES
from benchmarks.tables import Column, Table


def test_the_document_and_its_plots_are_made_of_the_committed_results() -> None:
    for path, text in report.drawn(report.load(RESULTS)).items():
        assert path.read_text() == text, f"{path}: run python -m benchmarks.report"


def test_the_committed_results_are_whole() -> None:
    results = report.load(RESULTS)
    assert list(results) == NAMES
    assert not report.incomplete(results)
    for name, result in results.items():
        assert not result["quick"], f"{name}: that was a trial"
        assert result["runs"] >= 5


def made(**of_each: list[float]) -> Results:
    results = Results("first", Scale())
    for peer, values in of_each.items():
        for run, value in enumerate(values):
            results.add(peer, run, "first token", value, "ms")
    return results


@pytest.mark.parametrize(
    ("theirs", "verdict"),
    [
        ([10.0, 30.0, 20.0], "**Ahead of krbrefresh** in ms: k5start."),
        ([200.0], "Nobody is ahead of krbrefresh here."),
        ([101.0], "Nobody is ahead of krbrefresh here. Level with it: k5start."),
    ],
)
def test_a_peer_that_wins_is_said_to(theirs: list[float], verdict: str) -> None:
    results = made(krbrefresh=[100.0], k5start=theirs)
    table = Table("first", "Title", "Note.", (Column("first token", "ms", 0, ratio=True),))
    text = report._section(table, {"records": results.records})
    assert text.rstrip().endswith(verdict)


def test_a_row_has_the_median_the_range_and_the_ratio() -> None:
    results = made(krbrefresh=[100.0], k5start=[10.0, 30.0, 20.0])
    table = Table("first", "Title", "Note.", (Column("first token", "ms", 0, ratio=True),))
    lines = report._section(table, {"records": results.records}).splitlines()
    assert "| krbrefresh | 100 | 1.0 |" in lines
    assert "| k5start | **20 (10 to 30)** | 0.2 |" in lines


def test_a_figure_that_is_not_there_is_missed() -> None:
    results = made(krbrefresh=[100.0])
    lacking = report.incomplete({"first": {"records": results.records}})
    assert "first: nothing of airflow kerberos" in lacking
    assert "first: nothing of krbrefresh" not in lacking


def test_what_happens_in_some_runs_only_has_a_mean() -> None:
    assert figures.spread([0, 0, 27], 1, mean=True) == "0.0 (0.0 to 27.0), mean 9.0"
    assert figures.centre([0, 0, 27]) == 0
    assert figures.centre([0, 0, 27], mean=True) == 9
    assert figures.ratio(5, 0) == "-"


def test_time_without_a_valid_token() -> None:
    changes = [(0.0, "missing"), (2.0, "valid"), (10.0, "expired"), (13.0, "valid")]
    assert sampling.invalid(changes, 1, 12) == 1 + 2
    assert sampling.spans(changes, 3, 20) == [(10.0, 13.0, "expired")]
    assert sampling.invalid([(0.0, "valid"), (5.0, "expired")], 0, 8) == 3
