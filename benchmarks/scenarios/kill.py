"""SIGKILL in the middle of a write, to the peer and all that it has started, again and again: at a random moment after
the first event in the token's directory, no later than a whole write takes. What is at the path then, what lies beside
it, and what of that is still there when the peer was started again and has published.

strace makes each step of a write last as long as any other, so that a peer that is quick is hit in its middle as often
as one that waits for the disk.
"""

from __future__ import annotations

import contextlib
import random
import time

from inotify_simple import INotify, flags

import krbrefresh
from benchmarks.peers import AIRFLOW_KERBEROS, LIBGSSAPI, Running
from benchmarks.peers import PEERS as ALL
from benchmarks.realm import Bench, state
from benchmarks.records import Scale

LANE, ROOT = "busy", False
PEERS = [peer.name for peer in ALL]
WRITING = flags.CREATE | flags.MODIFY | flags.ATTRIB | flags.MOVED_TO | flags.DELETE
SILENCE = 0.1  # seconds without an event: the write is over
STEPS = "write,pwrite64,writev,ftruncate,fsync,fdatasync,rename,renameat,renameat2,link,linkat,unlink,unlinkat"
STEPS += ",chmod,fchmod,fchmodat,chown,fchown,fchownat"
SLOWLY = ["strace", "-D", "-f", "--seccomp-bpf", "-qq", "-o", "/dev/null"]
SLOWLY += ["-e", f"trace={STEPS}", "-e", f"inject={STEPS}:delay_exit=5000"]  # microseconds


def run(bench: Bench, scale: Scale) -> None:
    dice = random.Random(1)
    for peer in ALL:
        for index in range(scale.runs):
            kills = scale.of(3 if peer is AIRFLOW_KERBEROS else 10, 1)
            [account] = bench.accounts(1, life="2 seconds" if peer is LIBGSSAPI else "10 hours")
            # A rest between two writes that is longer than SILENCE; airflow's is in whole seconds.
            case = bench.case(*account, 1 if peer is AIRFLOW_KERBEROS else 0.3)
            bad = left = 0
            for _ in range(kills):
                case.ccache.unlink(missing_ok=True)
                running = bench.start(peer, case, prefix=SLOWLY)
                bench.first_token(running)
                before = _tickets_beside(running)
                _kill_in_a_write(running, dice)
                bad += state(case.ccache) != "valid"
                left += len(_tickets_beside(running) - before)
            again = bench.start(peer, case)
            case.ccache.unlink(missing_ok=True)
            bench.first_token(again)
            time.sleep(0.2)
            still = len(_tickets_beside(again))
            again.kill()
            name = peer.name
            bench.results.add(name, index, "kills", kills, "")
            bench.results.add(name, index, "token destroyed", 100 * bad / kills, "% of kills")
            bench.results.add(name, index, "tickets left beside it", 100 * left / kills, "per 100 kills")
            bench.results.add(name, index, "tickets there after the next start", 100 * still / kills, "per 100 kills")


def _kill_in_a_write(running: Running, dice: random.Random) -> None:
    with INotify() as inotify:
        inotify.add_watch(str(running.case.token_directory), WRITING)
        time.sleep(2 * SILENCE)
        inotify.read(timeout=0)
        longest = _one_write(running, inotify, to_its_end=True)
        _one_write(running, inotify, to_its_end=False)
        end = time.perf_counter() + dice.uniform(0, longest)
        while time.perf_counter() < end:
            pass
        running.kill()


def _one_write(running: Running, inotify: INotify, *, to_its_end: bool) -> float:
    """Waits for a write to begin; if asked, how many seconds it went on."""
    running.refresh()
    deadline = time.monotonic() + 30
    while not inotify.read(timeout=1000):
        if time.monotonic() > deadline:
            raise AssertionError(f"{running.peer.name} has not written anything: {running.log.read_text()[-2000:]}")
        running.refresh()
    began = last = time.perf_counter()
    while to_its_end and inotify.read(timeout=int(SILENCE * 1000)):
        last = time.perf_counter()
    return max(last - began, 0.0005)


def _tickets_beside(running: Running) -> set[str]:
    """Files in the token's directory, but for the ccache, that hold a ticket that lives."""
    found = set()
    for path in running.case.token_directory.iterdir():
        if path != running.case.ccache:
            with contextlib.suppress(krbrefresh.TokenError):
                if krbrefresh.validate(path, min_remaining=0).has_tgt:
                    found.add(path.name)
    return found
