"""python -m benchmarks [--runs 5] [--quick] [--results DIR] [SCENARIO ...]: measures, and writes a file for each."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.peers import REPOSITORY, Airflow
from benchmarks.realm import bench
from benchmarks.records import RESULTS, Results, Scale
from benchmarks.scenarios import NAMES, scenario


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="krbrefresh beside its peers")
    parser.add_argument("--runs", type=int, default=5, help="of each measurement; the tables want five")
    parser.add_argument("--quick", action="store_true", help="shows in a minute that all of it works; no real figures")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where to write")
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO", help=", ".join(NAMES))
    options = parser.parse_args()
    unknown = set(options.scenarios) - set(NAMES)
    if unknown:
        parser.error(f"no such scenario: {', '.join(sorted(unknown))}")
    chosen = options.scenarios or NAMES
    for name in [name for name in chosen if scenario(name).ROOT and os.geteuid() != 0]:
        say(f"{name}: needs root, and is left out; its table stays that of an earlier run")
        chosen = [other for other in chosen if other != name]
    if len(chosen) == 1:
        measure(chosen[0], Scale(options.runs, options.quick), options.results)
        return 0
    Airflow.prepare()
    return 1 if in_lanes(chosen, options) else 0


def in_lanes(chosen: list[str], options: argparse.Namespace) -> list[str]:
    """All of them, each in a process of its own; the names of those that failed."""
    command = [sys.executable, "-m", "benchmarks", "--runs", str(options.runs), "--results", str(options.results)]
    command += ["--quick"] if options.quick else []
    failed: list[str] = []

    def start(name: str) -> tuple[str, subprocess.Popen[bytes]]:
        return name, subprocess.Popen([*command, name], cwd=REPOSITORY)

    def finish(name: str, process: subprocess.Popen[bytes]) -> None:
        if process.wait():
            failed.append(name)
            say(f"{name}: FAILED")

    # A trial asks for no figures, so nothing can disturb it.
    lanes = {name: "waiting" if options.quick else scenario(name).LANE for name in chosen}
    waiting = [start(name) for name in chosen if lanes[name] == "waiting"]
    for name in chosen:
        if lanes[name] == "busy":
            finish(*start(name))
    for each in waiting:
        finish(*each)
    for name in chosen:
        if lanes[name] == "quiet":
            finish(*start(name))
    return failed


def measure(name: str, scale: Scale, directory: Path) -> None:
    began = time.monotonic()
    say(f"{name} ...")
    results = Results(name, scale)
    with bench(results) as made:
        scenario(name).run(made, scale)
    results.write(directory)
    say(f"{name}: {time.monotonic() - began:.0f} s")


def say(text: str) -> None:
    print(f"bench: {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
