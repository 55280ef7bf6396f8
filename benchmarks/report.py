#!/usr/bin/env python3
"""python -m benchmarks.report [--results DIR]: draws the tables and plots of docs/benchmarks.md from the results.

With another directory than the committed one it only shows that all of it can be drawn. A test holds that the document
is what this makes of the committed results.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks import plots
from benchmarks.figures import Values, centre, compare, number, ratio, spread, values
from benchmarks.records import RESULTS
from benchmarks.scenarios import NAMES, scenario
from benchmarks.tables import BUDGETS, CLIENT, CLIENT_NAMES, CLIENT_NOTE, TABLES, Budget, Column, Table

DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "benchmarks.md"
BEGIN, END = "<!-- made by benchmarks/report.py from benchmarks/results -->", "<!-- the end of what is made -->"
OURS = "krbrefresh"
LINE = 120

HEAD = """`make bench` measures all of this in one go and writes this section (`RUNS=5` is the default; `QUICK=1` only
shows that it works). Each peer is the real program; at the end of the section is how it was started. Cells are medians
with their range, of runs one after another or of as many instances at the same time where what happens to them is one
event (the freezes, shortened tickets, rotation, TERM, the full disk, at rest); `x` is how many times krbrefresh's it
is. **Bold** is the best of a column, where they differ."""

AllResults = Mapping[str, Mapping[str, Any]]


def load(directory: Path) -> dict[str, dict[str, Any]]:
    return {name: json.loads(path.read_text()) for name in NAMES if (path := directory / f"{name}.json").exists()}


def render(results: AllResults) -> str:
    sections = [_head(results)]
    sections += [_section(table, results[table.scenario]) for table in TABLES if table.scenario in results]
    if "client" in results:
        sections.append(_client(results["client"]))
    sections += [_budgets(results), _commands(results)]
    return "\n".join(sections)


def incomplete(results: AllResults) -> list[str]:
    """Figures that are due and not there: of each peer of each scenario, and for each column."""
    lacking = []
    for name, result in results.items():
        found = values(result)
        have = {peer for peer, _ in found}
        lacking += [f"{name}: nothing of {peer}" for peer in scenario(name).PEERS if peer not in have]
        figures = {figure for _, figure in found}
        columns = [column.figure for table in TABLES if table.scenario == name for column in table.columns]
        lacking += [f"{name}: no {figure}" for figure in columns if figure not in figures]
    return lacking


def document(text: str, results: AllResults) -> str:
    """The document, with what is between the marks made anew."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    assert after, f"docs/benchmarks.md has lost its marks: {BEGIN} and {END}"
    return f"{before}{BEGIN}\n\n{render(results)}\n{END}{after}"


def _head(results: AllResults) -> str:
    machines = sorted({result["machine"] for result in results.values()})
    dates = sorted({result["date"] for result in results.values()})
    runs = sorted({result["runs"] for result in results.values()})
    loads = [result["load"] for result in results.values()]
    where = f"*{'; '.join(machines)}. {', '.join(dates)}; {', '.join(map(str, runs))} runs; load average "
    where += f"{min(loads):.0f} to {max(loads):.0f}.*"
    return "\n".join(["## Beside its peers", "", _fold(HEAD), "", _fold(where), ""])


def _section(table: Table, result: Mapping[str, Any]) -> str:
    found = values(result)
    context = {key: value for key, value in result.items() if isinstance(value, int | float)}
    lines = [f"### {table.title.format(**context)}", "", _fold(table.note.format(**context)), ""]
    if table.plot:
        lines += [f"![{table.title}](benchmarks-{table.plot}.svg)", ""]
    columns = [column for column in table.columns if any((peer, column.figure) in found for peer in _peers(found))]
    headings = ["", *(text for column in columns for text in [column.heading, *(["x"] if column.ratio else [])])]
    lines += [_row(headings), "|" + "---|" * len(headings)]
    for peer in _peers(found):
        cells = [peer]
        for column in columns:
            cells += _cells(found, peer, column)
        lines.append(_row(cells))
    lines += ["", *([] if table.alone else [_fold(_verdict(found, columns)), ""])]
    return "\n".join(lines)


def _peers(found: Values) -> list[str]:
    """krbrefresh first, then as they were measured."""
    order = list(dict.fromkeys(peer for peer, _ in found))
    return sorted(order, key=lambda peer: not peer.startswith(OURS))


def _cells(found: Values, peer: str, column: Column) -> list[str]:
    samples = found.get((peer, column.figure))
    if samples is None:
        return ["-", *(["-"] if column.ratio else [])]
    text = spread(samples, column.digits, mean=column.mean)
    if _is_best(found, peer, column):
        text = f"**{text}**"
    if not column.ratio:
        return [text]
    ours = found.get((OURS, column.figure))
    return [text, ratio(_centre(found, peer, column), _centre(found, OURS, column)) if ours else "-"]


def _centre(found: Values, peer: str, column: Column) -> float:
    return centre(found[peer, column.figure], mean=column.mean)


def _is_best(found: Values, peer: str, column: Column) -> bool:
    if column.less is None:
        return False
    all_of_them = [_centre(found, other, column) for other, figure in found if figure == column.figure]
    best, worst = min(all_of_them), max(all_of_them)
    if not column.less:
        best, worst = worst, best
    return compare(best, worst) != 0 and compare(_centre(found, peer, column), best) == 0


def _verdict(found: Values, columns: list[Column]) -> str:
    """In what krbrefresh is behind, and whom; and who is level in everything."""
    peers = [peer for peer in _peers(found) if not peer.startswith(OURS)]
    behind = []
    level = set(peers)
    for column in columns:
        ours = (OURS, column.figure)
        if column.less is None or ours not in found:
            continue
        sides = {
            peer: compare(_centre(found, peer, column), _centre(found, OURS, column)) * (1 if column.less else -1)
            for peer in peers
            if (peer, column.figure) in found
        }
        level -= {peer for peer, side in sides.items() if side}
        ahead = [peer for peer, side in sides.items() if side < 0]
        if ahead:
            behind.append(f"{column.heading}: {', '.join(ahead)}")
    said = f"**Ahead of krbrefresh** in {'; in '.join(behind)}." if behind else "Nobody is ahead of krbrefresh here."
    return said + (f" Level with it: {', '.join(peer for peer in peers if peer in level)}." if level else "")


def _client(result: Mapping[str, Any]) -> str:
    found = values(result)
    readers = ["krbrefresh", "gssapi", "krb5", "klist -s"]
    lines = ["### The worker's half", "", _fold(CLIENT_NOTE), ""]
    alone = {"verify": "Ed25519 alone", "bare": "python"}  # by nobody's library
    for unit, figures in CLIENT.items():
        lines += [_row([unit, *readers, "krbrefresh / gssapi"]), "|---|---|---|---|---|---|"]
        for figure in figures:
            name = CLIENT_NAMES.get(figure, f"`{figure.partition(',')[0]}()`{figure[len(figure.partition(',')[0]) :]}")
            if figure in alone:
                lines.append(_row([name, spread(found[alone[figure], figure], 1), "", "", "", ""]))
                continue
            cells = [spread(found[peer, figure], 1) if (peer, figure) in found else "-" for peer in readers]
            # What gssapi does at each look is what `validate` is held against.
            against = found.get(("gssapi", figure)) or (found.get(("gssapi", "load, new")) if unit == "us" else None)
            lines.append(_row([name, *cells, ratio(centre(found[OURS, figure]), centre(against)) if against else "-"]))
        lines.append("")
    rivals = (  # what of theirs is comparable to what of ours, where that is not the same figure
        ("the whole command", "klist -s", "check", "check"),
        ("a new token", "krb5", "load, new", "load, new"),
        ("a new token that is signed", "krb5", "load, new", "validate, new, signed"),
        ("a new token", "gssapi", "load, new", "load, new"),
        ("a new token that is signed", "gssapi", "load, new", "validate, new, signed"),
    )
    behind = [
        f"{peer} with {what} (x {ratio(centre(found[peer, theirs]), centre(found[OURS, ours]))})"
        for what, peer, theirs, ours in rivals
        if compare(centre(found[peer, theirs]), centre(found[OURS, ours])) < 0
    ]
    said = f"**Ahead of krbrefresh**: {', '.join(behind)}." if behind else "Nobody is ahead of krbrefresh here."
    lines += [_fold(said), ""]
    return "\n".join(lines)


def _budgets(results: AllResults) -> str:
    lines = ["### Budgets", "", _row(["what", "budget", "measured", ""]), "|---|---|---|---|"]
    lines += [_budget(budget, results) for budget in BUDGETS if budget.measured[0] in results]
    return "\n".join([*lines, ""])


def _budget(budget: Budget, results: AllResults) -> str:
    def of(which: tuple[str, str, str]) -> float:
        name, *key = which
        return centre(values(results[name])[key[0], key[1]])

    measured = of(budget.measured)
    if budget.of:
        times = measured / of(budget.of)
        limit, said, met = f"{budget.limit:g} x {budget.unit}", f"{times:.2f} x", times <= budget.limit
    else:
        limit, said = f"{budget.limit:g} {budget.unit}".strip(), number(measured, 1)
        met = measured <= budget.limit
    return _row([budget.what, limit, said, "met" if met else "**missed**"])


def _commands(results: AllResults) -> str:
    lines = [
        "### How each was started",
        "",
        _fold(
            "In a directory of its own, `$PLACE`; the ccache's own directory is in it. `benchmarks/peers.py` has them. "
            "Intervals differ from one scenario to another; each stands in the scenario's file in `benchmarks/results`."
        ),
        "",
    ]
    shown: dict[str, str] = {}
    for name in ("first", "idle", "outage"):
        for peer, command in results.get(name, {}).get("commands", {}).items():
            shown.setdefault(peer, command)
    return "\n".join([*lines, "```", *(f"{peer}: {command}" for peer, command in shown.items()), "```", ""])


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _fold(text: str) -> str:
    """Lines of no more than LINE characters."""
    lines = [""]
    for word in text.split():
        if len(lines[-1]) + 1 + len(word) > LINE and lines[-1]:
            lines.append(word)
        else:
            lines[-1] += f" {word}" if lines[-1] else word
    return "\n".join(lines)


def drawn(results: AllResults) -> dict[Path, str]:
    """All files that are made of the results, by their paths."""
    made = {DOCUMENT: document(DOCUMENT.read_text(), results)}
    for name, draw in plots.PLOTS.items():
        if name in results:
            made[DOCUMENT.with_name(f"benchmarks-{name}.svg")] = draw(results[name])
    return made


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    results = load(options.results)
    made = drawn(results)
    lacking = incomplete(results)
    for each in lacking:
        print(f"bench: {each}", file=sys.stderr)
    if options.results.resolve() == RESULTS.resolve():
        for path, text in made.items():
            path.write_text(text)
    return 1 if lacking else 0


if __name__ == "__main__":
    sys.exit(main())
