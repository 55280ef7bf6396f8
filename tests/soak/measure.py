"""What processes take: memory, descriptors, threads, children; and how late a process is that only sleeps."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import krb5

from tests.soak.judge import Sleeper

FIGURES = ("pss", "rss", "private", "descriptors", "threads")  # memory in KiB

# It sleeps; it asks the KDC something that it answers without looking anything up; and now and then it starts what an
# exchange's child is before it asks a KDC: an interpreter with krb5. All are told with how long they took, and none has
# anything to do with a refresher.
_SLEEPER = """
import socket, subprocess, sys, threading, time
def ask():
    while True:
        began = time.time(); before = time.monotonic()
        try:
            with socket.create_connection(("127.0.0.1", int(sys.argv[2])), timeout=20) as kdc:
                kdc.sendall(bytes([0x7f, 255, 255, 255]))  # a request of this length is refused with an error
                kdc.recv(1)
        except OSError:
            pass
        took = time.monotonic() - before
        if took > 0.25: print(f"kdc {began:.3f} {took:.3f}", flush=True)
        time.sleep(0.1)
threading.Thread(target=ask, daemon=True).start()
def start():
    code = "import sys; sys.path += " + repr([sys.argv[1]]) + "; import krb5"
    while True:
        began = time.time(); before = time.monotonic()
        subprocess.run([sys.executable, "-I", "-S", "-c", code], stderr=subprocess.DEVNULL)
        print(f"start {began:.3f} {time.monotonic() - before:.3f}", flush=True)
        time.sleep(2)
threading.Thread(target=start, daemon=True).start()
while True:
    began = time.time(); before = time.monotonic(); time.sleep(0.02); late = time.monotonic() - before - 0.02
    if late > 0.01: print(f"late {began:.3f} {late:.3f}", flush=True)
"""


def of(pid: int, looks: int = 1) -> dict[str, int] | None:
    """The figures of one process, or None if it has ended; the least of several looks, for one that has descriptors and
    threads for each moment's work."""
    found = [each for each in (_look(pid, index) for index in range(looks)) if each]
    return {name: min(each[name] for each in found) for name in FIGURES} if found else None


def _look(pid: int, index: int) -> dict[str, int] | None:
    if index:
        time.sleep(0.15)
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
        sizes = {name: int(size) for name, size in re.findall(r"^(\w+):\s+(\d+) kB", text, re.MULTILINE)}
        return {
            "pss": sizes["Pss"],
            "rss": sizes["Rss"],
            "private": sizes["Private_Clean"] + sizes["Private_Dirty"],
            "descriptors": len(os.listdir(f"/proc/{pid}/fd")),
            "threads": len(os.listdir(f"/proc/{pid}/task")),
        }
    except (OSError, KeyError):
        return None


def parents() -> dict[int, tuple[int, str]]:
    """Of every process: its parent, and the letter of its state (Z: a zombie)."""
    found = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                fields = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            found[int(entry)] = int(fields[1]), fields[0]
    return found


def spent(pid: int) -> float:
    """Seconds of processor time of a process and of its children that have ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return sum(int(field) for field in fields[11:15]) / os.sysconf("SC_CLK_TCK")
    except (OSError, IndexError):
        return 0.0


def waited(pid: int) -> float:
    """Seconds that the main thread of a process has waited for a processor so far."""
    try:
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9
    except (OSError, IndexError):
        return 0.0


class Late(Sleeper):
    """The process that has nothing to do with a refresher; what it tells grows while it runs. `silences` are when the
    KDC on that port took its time, and how long."""

    def __init__(self, kdc_port: int) -> None:
        super().__init__()
        self._port = kdc_port
        self.silences: list[tuple[float, float]] = []

    def __enter__(self) -> Late:
        library = os.path.dirname(os.path.dirname(krb5.__file__))
        command = [sys.executable, "-I", "-S", "-c", _SLEEPER, library, str(self._port)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        self._thread.join(5)

    @property
    def pid(self) -> int:
        return self._process.pid

    def _read(self) -> None:
        assert self._process.stdout
        for line in self._process.stdout:
            word, when, seconds = line.split()
            told = {"late": self.late, "start": self.starts, "kdc": self.silences}
            told[word].append((float(when), float(seconds)))
