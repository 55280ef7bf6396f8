#!/usr/bin/env python3
"""The soak's page and picture, drawn from its JSON, which is copied there.

.venv/bin/python -m tests.soak.report soak.json DIRECTORY
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from tests.soak.judge import EXCUSED, SLOW_START, STARVED, UNEXCUSED, Series, growth, longest, slope
from tests.soak.measure import FIGURES
from tests.soak.world import PAIR, VETERAN

WARM_UP = 300.0  # seconds that are left out of the slopes, or a third of a run that is shorter than four times that
MOST_STARVED = 0.005  # of all credentials' time; more, and the run says little
TERM_WITHIN = 1.0  # seconds, on a machine that has a processor for it
# How much a process may have grown over its life, by the slope. A refresher makes seven exchanges a second: a leak of
# 90 bytes in each is 2 MiB in an hour. Less than one descriptor, thread, child or file is none.
# Of threads: those that wait for disks are started when more of them are needed than there are, up to two for each
# credential and eight, and stay (service.py); at its start a refresher has a few.
MOST_GROWTH = {"private": 2048.0, "rss": 3072.0, "descriptors": 1.0, "threads": 1.0, "children": 1.0}
SHORT = 1200.0  # seconds; in a run that is shorter, and of threads in a life, what it takes at its start is a good part
UNITS = {"private": "KiB", "rss": "KiB", "pss": "KiB"}
WORDS = {"private": "private memory", "rss": "resident memory"}
WORKER = (*FIGURES, "children")  # what the numbers of a worker are
UP_TO_IT = "the machine was up to it"
JSON, MARK = "soak.json", "<!-- figures: tests/soak/report.py -->"
SHOWN = ("private", "rss", "pss", "descriptors", "threads", "children")


def warm_up(result: dict[str, Any]) -> float:
    """Seconds."""
    return float(min(WARM_UP, result["seconds"] / 3))


def lives(result: dict[str, Any], names: Iterable[str], figure: str) -> list[Series]:
    """That figure of these refreshers, without their warm-up: life by life, and standing by and leading apart, since
    who leads has a lock and a child or two for each credential. Descriptors by how many it leads: of a volume that was
    emptied each of two may get some."""
    found: dict[tuple[str, int, int], list[tuple[float, float]]] = {}
    for sample in result["samples"]:
        for name in names:
            if name in sample["refreshers"]:
                each = sample["refreshers"][name]
                leads = each["leads"] if figure == "descriptors" else each["leads"] > 0
                found.setdefault((name, each["life"], leads), []).append((sample["at"], each[figure]))
    skip = warm_up(result)
    return [
        Series(tuple(point for point in points if point[0] >= points[0][0] + min(skip, 60.0) and point[0] >= skip))
        for points in found.values()
    ]


def workers(result: dict[str, Any], figure: str) -> list[Series]:
    """That figure of each worker, without the warm-up."""
    found: dict[str, list[tuple[float, float]]] = {}
    for sample in result["samples"]:
        if sample["at"] >= warm_up(result):
            for number, each in sample["workers"].items():
                found.setdefault(number, []).append((sample["at"], each[WORKER.index(figure)]))
    return [Series(tuple(points)) for points in found.values()]


def groups(result: dict[str, Any], figure: str) -> dict[str, list[Series]]:
    """By who it is."""
    return {
        "the refresher that is never ended": lives(result, [VETERAN], figure),
        "the pair, in all their lives": lives(result, PAIR, figure),
        "the workers": workers(result, figure),
    }


def files(result: dict[str, Any]) -> dict[str, list[Series]]:
    """Files that are there for a moment, by where they are."""
    samples = [sample for sample in result["samples"] if sample["at"] >= warm_up(result)]

    def series(count: Callable[[dict[str, Any]], int]) -> list[Series]:
        return [Series(tuple((sample["at"], count(sample)) for sample in samples))]

    return {
        "beside the tokens": series(lambda sample: sample["strays"]),
        "in the refreshers' temporary directory": series(lambda sample: sample["scratch"]["refreshers"]),
        "in the workers' temporary directory": series(lambda sample: sample["scratch"]["workers"]),
    }


def apart(result: dict[str, Any]) -> float:
    """Seconds between the two points of a slope, at the least."""
    return float(min(120.0, result["seconds"] / 6))


def slopes(result: dict[str, Any]) -> dict[str, dict[str, float | None]]:
    """An hour's growth of each figure, by who it is."""
    found: dict[str, dict[str, float | None]] = {}
    for figure in SHOWN:
        for who, series in groups(result, figure).items():
            found.setdefault(who, {})[figure] = slope(series, apart(result))
    return found


def verdict(result: dict[str, Any]) -> list[dict[str, Any]]:
    """What has to hold, and whether it does."""
    found: list[dict[str, Any]] = []

    def claim(words: str, passed: object, figure: object) -> None:
        found.append({"claim": words, "passed": bool(passed), "figure": str(figure)})

    judged, late, rest = result["judged"], result["late"], result["rest"]
    bad = judged["samples"].get(UNEXCUSED, 0)
    claim("no invalid sample that nothing excuses", not bad, bad)
    share = judged["credential_seconds"][STARVED] / (result["credentials"] * result["seconds"])
    words = f"{UP_TO_IT}: tokens starved for less than {MOST_STARVED:.1%} of the time"
    claim(words, share < MOST_STARVED, f"{share:.2%}")
    back = [each for each in result["backwards"] if not any(0 <= each["at"] - at <= 15 for at in result["emptied_at"])]
    claim("no older generation after a newer one, but after the volume was emptied", not back, len(back))
    for figure, bound in MOST_GROWTH.items():
        for who, series in groups(result, figure).items():
            most = bound
            if result["seconds"] < SHORT and figure in UNITS:
                most = 2 * bound
            if figure == "threads" and longest(series) < SHORT:
                most = bound + 2 * result["credentials"]
            grown, unit = growth(series, apart(result)), UNITS.get(figure, "")
            words = f"{who}: less than {most:g}{unit and ' ' + unit} more {WORDS.get(figure, figure)}"
            claim(words, grown is None or grown < most, _shown(grown))
    for where, series in files(result).items():
        grown = growth(series, apart(result))
        claim(f"no more files {where}", grown is None or grown < 1, _shown(grown))
    claim("no zombie and no orphan that stays", not result["stuck"], result["stuck"] or 0)
    claim("no file is left beside the tokens", not rest["strays"], len(rest["strays"]))
    claim("no file is left in a temporary directory", not any(rest["scratch"].values()), rest["scratch"])
    ended = result["ended_by_themselves"]
    claim("no refresher ended that was not told to", not ended, ended or 0)
    most, slack = max(result["terms"], default=0.0), max(late["longest"], late["longest_start"] - SLOW_START)
    words = f"TERM ends a refresher within {TERM_WITHIN:g} s, and what the machine was late"
    claim(words, most <= TERM_WITHIN + slack, f"{most:.2f} s at the most of {len(result['terms'])}")
    silent = [each for each in result["unanswered"] if each["late"] < 1.0 and each["slowest"] < SLOW_START]
    words = f"{len(result['unanswered'])} of {result['polls']} were not"
    claim("every scrape was answered within 5 s, but where the machine was late", not silent, words)
    totals = result["totals"]
    claim("the workers saw new tokens", totals.get("generations"), totals.get("generations"))
    claim("the workers used them with GSSAPI", totals.get("authenticated"), totals.get("authenticated"))
    claim("the soak itself worked", not result["errors"], result["errors"] or "yes")
    return found


def _shown(grown: float | None) -> str:
    return "no life was long enough to tell" if grown is None else f"{grown:+.1f}"


def write(result: dict[str, Any], out: Path) -> None:
    """soak.svg and soak.md; of a soak.md that is there, what stands before the figures is kept."""
    (out / "soak.svg").write_text(picture(result))
    text, path = f"{MARK}\n\n{page(result)}", out / "soak.md"
    if path.exists() and MARK in path.read_text():
        text = path.read_text().partition(MARK)[0] + text
    path.write_text(text)


def page(result: dict[str, Any]) -> str:
    """A page of Markdown."""
    judged = result["judged"]
    span, words, totals = judged["credential_seconds"], judged["samples"], result["totals"]
    whole = result["credentials"] * result["seconds"]
    late = result["late"]
    names = [f"{WORDS.get(name, name)}{', ' + UNITS[name] if name in UNITS else ''}" for name in SHOWN]
    summary = (
        f"{result['minutes']:g} minutes, seed {result['seed']}: {result['credentials']} credentials with tickets of "
        f"{result['lifetime']} s, {result['workers']} workers, {sum(result['faults'].values())} faults "
        f"({result['machine']})."
    )
    rows = {
        "samples of tokens": f"{totals.get('samples', 0):,}",
        "valid": f"{totals.get('valid', 0):,}",
        "invalid, excused: an outage was longer than policy can bridge": f"{words.get(EXCUSED, 0):,}; "
        f"{span[EXCUSED]:,} of {whole:,.0f} credential-seconds ({span[EXCUSED] / whole:.2%})",
        "invalid, starved: this machine gave nobody a processor": f"{words.get(STARVED, 0):,}; "
        f"{span[STARVED]:,} credential-seconds ({span[STARVED] / whole:.2%})",
        "**invalid, not excused**": f"**{words.get(UNEXCUSED, 0):,}**",
        "excused samples, by what was away": ", ".join(f"{kind} {n:,}" for kind, n in judged["excused_by"].items()),
        "the KDC was silent, and nobody had stopped it": "{} times, {} s".format(*judged["kdc_silent_by_itself"]),
        "tokens seen; contexts authenticated, of those that were tried": f"{totals.get('generations', 0):,}; "
        f"{totals.get('authenticated', 0):,} of {totals.get('contexts', 0):,}",
        "an interpreter with krb5 starts in": f"{late['start']} s (median of {late['starts']}), "
        f"{late['longest_start']:.2f} s at the most, {late['slow_starts']} times more than {SLOW_START} s",
        "a process that only sleeps was late": f"{late['seconds']:,} s in all, {late['longest']:.2f} s at the most",
    }
    lines = [
        summary,
        "",
        "![Memory and descriptors over the run](soak.svg)",
        "",
        "| | |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in rows.items()),
    ]
    lines += ["", "| fault | times |", "|---|---|"]
    lines += [f"| {fault} | {count} |" for fault, count in result["faults"].items()]
    lines += ["", f"| growth in an hour (Theil-Sen) | {' | '.join(names)} |", "|---|" + "---|" * len(SHOWN)]
    for who, figures in slopes(result).items():
        cells = ["" if value is None else f"{value:+.1f}" for value in figures.values()]
        lines.append(f"| {who} | " + " | ".join(cells) + " |")
    lines += ["", "| what has to hold | | measured |", "|---|---|---|"]
    for each in result["verdict"]:
        lines.append(f"| {each['claim']} | {'yes' if each['passed'] else '**no**'} | {each['figure']} |")
    bad = [finding for finding in judged["findings"] if finding["word"] == UNEXCUSED]
    for finding in bad[:3]:
        lines += ["", f"`{json.dumps(finding)}`"]
    return "\n".join([*lines, ""])


# --- the picture ---

WIDTH, HEIGHT, LEFT, GAP = 760, 150, 60, 40
COLOURS = ("#0b6e4f", "#b5541b", "#28536b", "#8a2be2")


def picture(result: dict[str, Any]) -> str:
    """Memory and descriptors over the run."""
    samples = result["samples"]

    def of(name: str, figure: str) -> list[tuple[float, float]]:
        scale = 1024 if figure in UNITS else 1
        return [
            (each["at"], each["refreshers"][name][figure] / scale) for each in samples if name in each["refreshers"]
        ]

    def mean(figure: str) -> list[tuple[float, float]]:
        scale = 1024 if figure in UNITS else 1
        return [
            (
                each["at"],
                sum(one[WORKER.index(figure)] for one in each["workers"].values()) / len(each["workers"]) / scale,
            )
            for each in samples
            if each["workers"]
        ]

    names = (VETERAN, *PAIR)
    memory = {name: of(name, "private") for name in names} | {"a worker (mean)": mean("private")}
    descriptors = {name: of(name, "descriptors") for name in names} | {"a worker (mean)": mean("descriptors")}
    end = max((each["at"] for each in samples), default=1.0)
    height = 2 * (HEIGHT + GAP) + 10
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}"'
    parts = [
        f'{head} font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
        *_plot("private memory, MiB", memory, end, GAP - 10),
        *_plot("open descriptors", descriptors, end, HEIGHT + 2 * GAP - 10),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _plot(title: str, series: dict[str, list[tuple[float, float]]], end: float, top: float) -> list[str]:
    most = max((value for points in series.values() for _, value in points), default=1.0) * 1.1
    width = WIDTH - LEFT - 10
    parts = [f'<text x="{LEFT}" y="{top - 8}" font-weight="bold">{title}</text>']
    for share in (0.0, 0.5, 1.0):
        y = top + HEIGHT * (1 - share)
        parts.append(f'<line x1="{LEFT}" x2="{LEFT + width}" y1="{y:.0f}" y2="{y:.0f}" stroke="#ddd"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.0f}" text-anchor="end">{most * share:.0f}</text>')
    for share in (0.0, 0.5, 1.0):
        text = f"{end * share / 60:.0f} min"
        anchor = {0.0: "start", 0.5: "middle", 1.0: "end"}[share]
        parts.append(
            f'<text x="{LEFT + width * share:.0f}" y="{top + HEIGHT + 14}" text-anchor="{anchor}">{text}</text>'
        )
    for index, (name, points) in enumerate(series.items()):
        colour = COLOURS[index % len(COLOURS)]
        path = " ".join(
            f"{LEFT + width * at / end:.1f},{top + HEIGHT * (1 - value / most):.1f}" for at, value in points
        )
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.2"/>')
        parts.append(f'<text x="{LEFT + 200 + index * 110}" y="{top - 8}" fill="{colour}">{name}</text>')
    return parts


if __name__ == "__main__":
    read = json.loads(Path(sys.argv[1]).read_text())
    read["verdict"] = verdict(read)
    write(read, Path(sys.argv[2]))
    (Path(sys.argv[2]) / JSON).write_text(json.dumps(read, separators=(",", ":")) + "\n")
