#!/usr/bin/env python3
"""The soak: three refreshers, 50 credentials with tickets of 5 seconds, 20 workers, and faults at random, for as long
as it is asked for. Says whether anything leaked and whether a worker was ever without a token that it could have had.

    .venv/bin/python -m tests.soak.run --minutes 60 [--seed N] [--out DIRECTORY]

Needs what `make test` needs; as root it acts as several users and fills a volume. Writes soak.json, soak.md and
soak.svg, and the refreshers' and workers' logs, into the directory. The exit status is 0 if all is well.
"""

from __future__ import annotations

import argparse
import ctypes
import gzip
import json
import os
import platform
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from statistics import median
from typing import Any

from tests.soak import measure, report
from tests.soak.disturb import Disturber
from tests.soak.judge import (
    BY_ITSELF,
    EXCUSED,
    NO_KDC,
    SLOW_START,
    STARVED,
    UNEXCUSED,
    Last,
    Outage,
    Reach,
    Verdict,
    judge,
    reach,
    seconds,
)
from tests.soak.world import LIFETIME, World, world

SAMPLE_EVERY = 10.0  # seconds
POLL_EVERY = 0.5
MOST_FINDINGS = 200  # in soak.json; details.json.gz has the runs of samples that they come from
SETTLE = 70.0  # seconds at the end without faults: the longest wait that policy gives after a failure, and some
PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h


class Sampler:
    """What everybody takes, every ten seconds."""

    def __init__(self, place: World, late: measure.Late) -> None:
        self.world, self.late, self.began = place, late, time.time()
        self.samples: list[dict[str, Any]] = []
        self.zombies: dict[int, float] = {}
        self.stuck: dict[int, str] = {}  # what has been a zombie, or nobody's child, in two samples that follow
        self._before: dict[int, str] = {}
        self._known = {os.getpid()}

    def take(self) -> None:
        place = self.world
        parents = measure.parents()
        sample: dict[str, Any] = {"at": round(time.time() - self.began, 1), "refreshers": {}, "workers": {}}
        ours = {late.pid for late in (self.late,)} | {place.acceptor.pid}
        odd: dict[int, str] = {}
        for name, each in place.refreshers.items():
            if each.process:
                ours.add(each.process.pid)
            if not each.alive or not each.process:
                continue
            pid, life = each.process.pid, each.life
            children = [child for child, (parent, _) in parents.items() if parent == pid]
            odd |= {child: f"zombie of {name}" for child in children if parents[child][1] == "Z"}
            figures = measure.of(pid, looks=4)
            if figures and each.life == life:
                times = {"spent": round(measure.spent(pid), 2), "waited": round(measure.waited(pid), 2)}
                sample["refreshers"][name] = {
                    "life": life,
                    "leads": each.led,
                    **figures,
                    "children": len(children),
                    **times,
                }
        for worker in place.workers:
            pid = worker.process.pid
            ours.add(pid)
            figures = measure.of(pid)
            if figures:
                children = [child for child, (parent, _) in parents.items() if parent == pid]
                odd |= dict.fromkeys(children, f"child of worker {worker.number}")
                sample["workers"][str(worker.number)] = [*figures.values(), len(children)]  # report.py, WORKER
        if place.realm.kdc._kdc_proc:
            ours.add(place.realm.kdc._kdc_proc.pid)
        # This process is who gets the children of parents that have died.
        orphans = [pid for pid, (parent, _) in parents.items() if parent == os.getpid() and pid not in ours]
        for pid in orphans:
            odd[pid] = "orphan"
            if parents[pid][1] == "Z" and pid in self._before:
                try:
                    os.waitpid(pid, os.WNOHANG)
                except ChildProcessError:  # somebody else's by now
                    continue
        self.stuck |= {pid: word for pid, word in odd.items() if self._before.get(pid) == word and not (
            word == "orphan" and parents[pid][1] == "Z")}  # fmt: skip
        self._before = odd
        sample["orphans"] = len(orphans)
        sample["strays"] = len(place.strays())
        sample["scratch"] = place.scratch()
        sample["late"] = round(self.late.between(time.time() - SAMPLE_EVERY, time.time()), 2)
        self.samples.append(sample)


def every(interval: float, work: Any, stop: threading.Event, errors: list[str]) -> threading.Thread:
    def run() -> None:
        due = time.monotonic()
        while not stop.wait(max(0.0, due - time.monotonic())):
            due = max(due + interval, time.monotonic())
            try:
                work()
            except Exception as error:
                errors.append(f"{work.__qualname__}: {type(error).__name__}: {error}")

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


def judged(place: World, disturber: Disturber, late: measure.Late) -> dict[str, Any]:
    """What the samples that did not pass came to."""
    planned = [outage for outage in disturber.outages if outage.kind == NO_KDC]
    by_itself = [
        Outage(BY_ITSELF, when, when + took, frozenset(place.names))
        for when, took in late.silences
        if not any(outage.began < when + took and when < outage.ended for outage in planned)
    ]
    outages = [*disturber.outages, *by_itself]
    reaches: dict[str, list[Reach]] = {
        name: [reach(outage, name, place.polls) for outage in outages if name in outage.group] for name in place.names
    }
    words: Counter[str] = Counter()
    times: dict[str, dict[str, list[float]]] = {EXCUSED: {}, STARVED: {}, UNEXCUSED: {}}
    by_kind: Counter[str] = Counter()
    found: list[dict[str, Any]] = []
    for worker in place.workers:
        for run in worker.runs:
            last = Last(*run["last"]) if run["last"] else None
            bad: list[tuple[float, Verdict]] = []
            for at in run["at"]:
                verdict = judge(at, run["reason"], last, reaches[run["credential"]], late)
                words[verdict.word] += 1
                times[verdict.word].setdefault(run["credential"], []).append(at)
                if verdict.word == EXCUSED:
                    by_kind["+".join(sorted({outage.kind for outage in verdict.outages}))] += 1
                if verdict.word != EXCUSED:
                    bad.append((at, verdict))
            for word in (STARVED, UNEXCUSED):
                chosen = [at for at, verdict in bad if verdict.word == word]
                if chosen:
                    found.append({
                        "word": word, "worker": worker.number, "credential": run["credential"], "reason": run["reason"],
                        "words": run["words"], "last": run["last"], "first": chosen[0], "samples": len(chosen),
                        "until": chosen[-1], "late": round(late.between(chosen[0] - 5, chosen[-1]), 2),
                        "faults": [fault["fault"] for fault in disturber.faults
                                   if fault["began"] <= chosen[-1] and fault["ended"] >= chosen[0] - 8],
                    })  # fmt: skip
    spans = {
        word: round(sum(seconds(sorted(each), 1.0) for each in chosen.values()), 1) for word, chosen in times.items()
    }
    silent = round(sum(outage.ended - outage.began for outage in by_itself), 1)
    return {
        "kdc_silent_by_itself": [len(by_itself), silent],
        "samples": dict(words),
        "credential_seconds": spans,
        "excused_by": dict(by_kind),
        "findings": found[:MOST_FINDINGS],
    }


def end(number: int, _: object) -> None:
    """Whatever was started is ended with this process."""
    raise SystemExit(128 + number)


def soak(minutes: float, seed: int, out: Path, credentials: int, workers: int) -> dict[str, Any]:
    """Runs it; the result, as it is written."""
    errors: list[str] = []
    # Started by nohup, this process ignores some of these, and so would all that it starts.
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM):
        signal.signal(number, end)
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    with tempfile.TemporaryDirectory(prefix="krbrefresh-soak-") as name:
        os.chmod(name, 0o755)
        with (
            world(Path(name), out, credentials, workers, seed) as place,
            measure.Late(place.realm.kdc.portbase) as late,
        ):
            place.start_workers()
            sampler = Sampler(place, late)
            stop = threading.Event()
            threads = [every(SAMPLE_EVERY, sampler.take, stop, errors), every(POLL_EVERY, place.poll, stop, errors)]
            began, ends = time.time(), time.monotonic() + minutes * 60
            with Disturber(place, seed) as disturber:
                while (left := ends - time.monotonic()) > 0:
                    time.sleep(min(10.0, left))
                    lost = [worker.number for worker in place.workers if worker.process.poll() is not None]
                    if lost:
                        errors.append(f"workers that have ended: {lost}")
                        break
            errors += disturber.errors
            # Whatever was broken is mended: everybody has to have a token, and go on having one.
            calm = time.time()
            deadline = time.monotonic() + SETTLE
            while time.monotonic() < deadline:
                poll = place.polls[-1] if place.polls else None
                if poll and poll.at > calm + 1 and set(place.names) <= poll.well:
                    break
                time.sleep(0.2)
            else:
                errors.append(f"not all have a token {SETTLE:.0f} s after the last fault")
            time.sleep(2 * LIFETIME)
            sampler.take()
            stop.set()
            for thread in threads:
                thread.join(20)
            ended = time.time()
            for worker in place.workers:
                worker.end()
            last_words = place.end_refreshers()
            time.sleep(0.5)
            rest = {"strays": place.strays(), "scratch": place.scratch()}
            result = {
                "seed": seed,
                "minutes": minutes,
                "seconds": round(ended - began, 1),
                "machine": f"{platform.machine()}, {os.cpu_count()} cores, "
                f"Linux {platform.release().partition('-')[0]}, Python {platform.python_version()}",
                "credentials": len(place.names),
                "workers": len(place.workers),
                "lifetime": LIFETIME,
                "root": place.root,
                "faults": dict(sorted(Counter(fault["fault"] for fault in disturber.faults).items())),
                "judged": judged(place, disturber, late),
                "totals": dict(sum((Counter(worker.figures) for worker in place.workers), Counter())),
                "backwards": [said["backwards"] for worker in place.workers for said in worker.said
                              if "backwards" in said],
                "emptied_at": [fault["began"] for fault in disturber.faults if fault["fault"] == "volume emptied"],
                "terms": [fault["took"] for fault in disturber.faults if "took" in fault] + list(last_words.values()),
                "ended_by_themselves": [end for each in place.refreshers.values() for end in each.ends],
                "unanswered": [{**each, "late": round(late.between(each["at"] - 1, each["at"] + 5), 2),
                                "slowest": late.slowest(each["at"] - 3, each["at"] + 5)}
                               for each in place.unanswered],
                "polls": len(place.polls),
                "lives": {name: each.life for name, each in place.refreshers.items()},
                "stuck": list(sampler.stuck.values()),
                "rest": rest,
                "late": {"seconds": round(late.between(began, ended), 1),
                         "longest": max((each for _, each in late.late), default=0.0),
                         "starts": len(late.starts), "slow_starts": sum(each > SLOW_START for _, each in late.starts),
                         "start": round(median(each for _, each in late.starts), 3) if late.starts else None,
                         "longest_start": late.slowest(began, ended)},
                "samples": sampler.samples,
                "errors": errors,
            }  # fmt: skip
            details = {
                "faults": disturber.faults,
                "outages": [{**vars(each), "group": sorted(each.group)} for each in disturber.outages],
                "late": late.late,
                "starts": late.starts,
                "silences": late.silences,
                "polls": [(poll.at, dict(poll.failing), sorted(poll.well)) for poll in place.polls if poll.failing],
                "runs": [{"worker": worker.number, **run} for worker in place.workers for run in worker.runs],
            }
            with gzip.open(out / "details.json.gz", "wt") as file:  # to judge it again
                json.dump(details, file)
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=int(time.time()), help="another one each time, unless it is named")
    parser.add_argument("--out", type=Path, help="where the results go; a new directory, unless it is named")
    parser.add_argument("--credentials", type=int, default=50)
    parser.add_argument("--workers", type=int, default=20)
    words = "a machine that is too busy for the soak to say much is no failure; whatever else is, is"
    parser.add_argument("--even-if-starved", action="store_true", help=words)
    options = parser.parse_args()
    out = options.out or Path(tempfile.mkdtemp(prefix="krbrefresh-soak-out-"))
    out.mkdir(parents=True, exist_ok=True)
    print(f"seed {options.seed}, results in {out}", flush=True)
    result = soak(options.minutes, options.seed, out, options.credentials, options.workers)
    result["verdict"] = report.verdict(result)
    (out / report.JSON).write_text(json.dumps(result, separators=(",", ":")) + "\n")
    report.write(result, out)
    print(report.page(result))
    failed = [each["claim"] for each in result["verdict"] if not each["passed"]]
    if options.even_if_starved and any(claim.startswith(report.UP_TO_IT) for claim in failed):
        print("this machine was too busy: the run says little")
        failed = [claim for claim in failed if not claim.startswith(report.UP_TO_IT)]
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
