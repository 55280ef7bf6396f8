#!/usr/bin/env python3
"""The refresher beside k5start and kinit, in one run: start to first token, memory, wake-ups, many credentials.

    .venv/bin/python benchmarks/refresher.py [--runs 10] [--idle 120] [--many 1000] [--peers 50]

Needs what `make test` needs. Prints a table in Markdown; docs/benchmarks.md has the last one.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

from krbrefresh.demo.realm import free_portbase, throwaway_realm

LIFETIME = "8h"


class Bench:
    """A realm, a directory, and how each program is started."""

    def __init__(self, kdc: object, place: Path) -> None:
        self.kdc, self.place = kdc, place
        self.env = {"PATH": os.environ["PATH"], "KRB5_CONFIG": kdc.env["KRB5_CONFIG"]}  # type: ignore[attr-defined]
        self.kdc_env = {**self.env, "KRB5_KDC_PROFILE": kdc.env["KRB5_KDC_PROFILE"]}  # type: ignore[attr-defined]
        self.port = free_portbase()

    def principals(self, count: int) -> None:
        lines = []
        for index in range(count):
            lines.append(f"addprinc -randkey p{index}")
            lines.append(f"ktadd -norandkey -k {self.keytab(index)} p{index}")
        subprocess.run(
            ["kadmin.local"], input="\n".join(lines).encode(), env=self.kdc_env, capture_output=True, check=True
        )

    def keytab(self, index: int = 0) -> Path:
        return self.place / f"p{index}.keytab"

    @contextlib.contextmanager
    def krbrefresh(self, directory: Path, count: int = 1, listen: bool = True) -> Iterator[subprocess.Popen[bytes]]:
        config = directory / "krbrefresh.toml"
        address = f"127.0.0.1:{self.port}" if listen else ""
        text = f'[refresher]\nlisten = "{address}"\n[kerberos]\nlifetime = "{LIFETIME}"\n'
        for index in range(count):
            text += f'[credentials.p{index}]\nprincipal = "p{index}"\nkeytab = "{self.keytab(index)}"\n'
            text += f'ccache = "{directory}/p{index}/krb5cc"\n'
        config.write_text(text)
        command = [sys.executable, "-m", "krbrefresh", "run", "--config", str(config)]
        with running(command, self.env) as process:
            yield process

    @contextlib.contextmanager
    def k5start(self, directory: Path, index: int = 0) -> Iterator[subprocess.Popen[bytes]]:
        ccache = directory / f"p{index}" / "krb5cc"
        ccache.parent.mkdir()
        arguments = ["-K", "10", "-m", "440", "-f", str(self.keytab(index)), "-k", str(ccache), "-l", LIFETIME]
        with running(["k5start", *arguments, f"p{index}"], self.env) as process:
            yield process

    def kinit(self, directory: Path) -> None:
        (directory / "p0").mkdir()
        ccache = f"FILE:{directory}/p0/krb5cc"
        subprocess.run(["kinit", "-k", "-t", str(self.keytab()), "-c", ccache, "p0"], env=self.env, check=True)


@contextlib.contextmanager
def running(command: list[str], env: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            yield process
        finally:
            process.terminate()
            process.wait()


@contextlib.contextmanager
def directory(bench: Bench) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=bench.place) as name:
        yield Path(name)


def until(condition: Callable[[], bool], within: float = 60, every: float = 0.001) -> None:
    deadline = time.monotonic() + within
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit(f"not within {within} s")
        time.sleep(every)


def memory(pid: int) -> tuple[float, float]:
    """Resident and private memory, in MiB."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    sizes = {name: int(size) for name, size in re.findall(r"^(\w+):\s+(\d+) kB", text, re.MULTILINE)}
    return sizes["Rss"] / 1024, (sizes["Private_Clean"] + sizes["Private_Dirty"]) / 1024


def switches(pid: int) -> int:
    """How often the threads of a process have been woken up."""
    count = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        count += int(re.findall(r"^voluntary_ctxt_switches:\s+(\d+)", (task / "status").read_text(), re.MULTILINE)[0])
    return count


def ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def scrape(port: int) -> float:
    """How long one /metrics takes, in milliseconds."""
    began = time.perf_counter()
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as reply:
        reply.read()
    return (time.perf_counter() - began) * 1000


def first_tokens(bench: Bench, runs: int) -> dict[str, list[float]]:
    """Milliseconds from the start of the program to its first token."""
    took: dict[str, list[float]] = {"krbrefresh run": [], "k5start": [], "kinit": []}
    for _ in range(runs):
        for name, start in (("krbrefresh run", bench.krbrefresh), ("k5start", bench.k5start)):
            with directory(bench) as place:
                began = time.perf_counter()
                with start(place):
                    # k5start writes beside it and renames, as we do: what is there is whole.
                    until(lambda place=place: (place / "p0" / "krb5cc").exists())
                    took[name].append((time.perf_counter() - began) * 1000)
        with directory(bench) as place:
            began = time.perf_counter()
            bench.kinit(place)
            took["kinit"].append((time.perf_counter() - began) * 1000)
    return took


def idle(bench: Bench, seconds: float) -> dict[str, tuple[float, float, float, float]]:
    """Resident and private MiB, wake-ups and processor milliseconds a minute, of each program at rest."""
    with (
        directory(bench) as ours,
        directory(bench) as plain,
        directory(bench) as theirs,
        contextlib.ExitStack() as stack,
    ):
        bare = stack.enter_context(bench.krbrefresh(plain, listen=False))
        until(lambda: (plain / "p0" / "krb5cc").exists())
        http = stack.enter_context(bench.krbrefresh(ours))
        until(lambda: (ours / "p0" / "krb5cc").exists())
        peer = stack.enter_context(bench.k5start(theirs))
        until(lambda: (theirs / "p0" / "krb5cc").exists())
        time.sleep(5)  # what follows the first token is over
        scrape(bench.port)
        time.sleep(1)
        processes = {"krbrefresh run": http, 'krbrefresh run, `listen = ""`': bare, "k5start": peer}
        before = {name: (switches(process.pid), ticks(process.pid)) for name, process in processes.items()}
        time.sleep(seconds)
        hertz = os.sysconf("SC_CLK_TCK")
        return {
            name: (
                *memory(process.pid),
                (switches(process.pid) - before[name][0]) * 60 / seconds,
                (ticks(process.pid) - before[name][1]) * 60 / seconds * 1000 / hertz,
            )
            for name, process in processes.items()
        }


def many(bench: Bench, count: int, peers: int) -> dict[str, str]:
    """One refresher with many credentials, and as many k5start as this machine is asked for."""
    result = {}
    with directory(bench) as place:
        began = time.perf_counter()
        with bench.krbrefresh(place, count) as process:
            until(lambda: len(list(place.glob("*/krb5cc"))) == count, within=120, every=0.1)
            result[f"{count} credentials: all first tokens, s"] = f"{time.perf_counter() - began:.1f}"
            time.sleep(5)
            answers = [scrape(bench.port) for _ in range(5)]
            resident, private = memory(process.pid)
            result[f"{count} credentials: resident / private after 5 scrapes, MiB"] = f"{resident:.0f} / {private:.0f}"
            result[f"{count} credentials: one /metrics, ms"] = f"{statistics.median(answers):.0f}"
    with directory(bench) as place, contextlib.ExitStack() as stack:
        processes = [stack.enter_context(bench.k5start(place, index)) for index in range(peers)]
        until(lambda: len(list(place.glob("*/krb5cc"))) == peers)
        total = sum(memory(process.pid)[1] for process in processes)
        result[f"{peers} k5start: private, MiB (x {count // peers} = {count} of them)"] = (
            f"{total:.0f} ({total * count / peers:.0f})"
        )
    return result


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.0f} ({min(values):.0f} to {max(values):.0f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--idle", type=float, default=120)
    parser.add_argument("--many", type=int, default=1000)
    parser.add_argument("--peers", type=int, default=50)
    options = parser.parse_args()
    with throwaway_realm() as kdc, tempfile.TemporaryDirectory() as name:
        bench = Bench(kdc, Path(name))
        bench.principals(max(options.many, options.peers, 1))
        print(f"{platform.machine()}, {os.cpu_count()} cores, Linux {platform.release()}, Python", end=" ")
        print(platform.python_version(), end="\n\n")
        print("| program | start to first token, ms: median (range) |\n|---|---|")
        took = first_tokens(bench, options.runs)
        for program, values in took.items():
            print(f"| {program} | {spread(values)} |")
        print("\n| idle, one credential | resident MiB | private MiB | wake-ups a minute | processor ms a minute |")
        print("|---|---|---|---|---|")
        for program, (resident, private, wakes, busy) in idle(bench, options.idle).items():
            print(f"| {program} | {resident:.1f} | {private:.1f} | {wakes:.1f} | {busy:.0f} |")
        print("\n| many credentials | |\n|---|---|")
        for what, value in many(bench, options.many, options.peers).items():
            print(f"| {what} | {value} |")


if __name__ == "__main__":
    main()
