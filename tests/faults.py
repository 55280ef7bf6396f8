"""What goes wrong around a refresher: KDCs that hang, lie or die, volumes that fill up, clocks that jump."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import shlex
import signal
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from krbrefresh.ccache import Principal
from tests.processes import Refresher, faked_clock
from tests.support import Realm, SilentKdc, eventually, program


def keytab_bytes(name: str, *, enctype: int = 18, key: bytes = b"\x5e" * 32) -> bytes:
    """A keytab with one key, for realms that are not ours (MIT, "Keytab file format", version 2)."""

    def counted(data: bytes) -> bytes:
        return struct.pack(">H", len(data)) + data

    principal = Principal.parse(name)
    entry = struct.pack(">H", len(principal.components)) + counted(principal.realm)
    entry += b"".join(counted(component) for component in principal.components)
    entry += struct.pack(">IIBH", 1, 0, 1, enctype) + counted(key)
    return b"\x05\x02" + struct.pack(">i", len(entry)) + entry


def krb5_conf(path: Path, realm: Realm, **kdcs: int | str) -> dict[str, str]:
    """The environment of a process that knows `realm`, and these others by the ports of their KDCs on loopback; a dot
    in a realm's name is written as `__`."""
    lines = ["[realms]"]
    for name, port in kdcs.items():
        lines.append(f"    {name.replace('__', '.')} = {{ \n        kdc = 127.0.0.1:{port}\n    }}")
    path.write_text("\n".join(lines) + "\n")
    path.chmod(0o644)
    return {**realm.env, "KRB5_CONFIG": f"{path}:{realm.env['KRB5_CONFIG']}"}


def free_port() -> int:
    """A port that nobody listens on, for a KDC that refuses connections. Below those that the kernel gives to clients,
    so that nobody gets it by chance in the meantime."""
    from krbrefresh.demo.realm import free_portbase

    return free_portbase() + 9


class BabblingKdc(SilentKdc):
    """A port on loopback that answers whatever it is asked with bytes that are no Kerberos message."""

    def __init__(self, answer: bytes = b"HTTP/1.1 400 Bad Request\r\n\r\n") -> None:
        self._answer = answer

    def __enter__(self) -> BabblingKdc:
        super().__enter__()
        self._threads = [threading.Thread(target=serve, daemon=True) for serve in (self._serve_udp, self._serve_tcp)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        for each in (self._tcp, self._udp):
            with contextlib.suppress(OSError):  # a UDP socket is not connected, and wakes its reader all the same
                each.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(5)
        super().__exit__()

    def _serve_udp(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                data, sender = self._udp.recvfrom(65536)
                if not data:
                    return
                self._udp.sendto(self._answer, sender)

    def _serve_tcp(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._tcp.accept()
                with connection, contextlib.suppress(OSError):
                    connection.settimeout(5)
                    connection.recv(65536)
                    connection.sendall(len(self._answer).to_bytes(4, "big") + self._answer)


# --- the KDC of a realm ---


def kadmin_all(realm: Realm, commands: Iterable[str]) -> None:
    """Many commands in one kadmin.local: a process for each would take longer than all of them."""
    text = "".join(f"{command}\n" for command in commands)
    said = realm.kdc.run([realm.kdc.kadmin_local], input=text).decode()
    wrong = [line for line in said.splitlines() if "while" in line]
    assert not wrong, wrong


@contextlib.contextmanager
def kdc_restored(realm: Realm) -> Iterator[None]:
    """At the end the KDC can be stopped by k5test, which waits for one that is still stopped."""
    try:
        yield
    finally:
        if realm.kdc._kdc_proc:
            os.kill(realm.kdc._kdc_proc.pid, signal.SIGCONT)


def kdc_hangs(realm: Realm) -> None:
    os.kill(realm.kdc._kdc_proc.pid, signal.SIGSTOP)


def kdc_dies(realm: Realm) -> None:
    os.kill(realm.kdc._kdc_proc.pid, signal.SIGKILL)
    realm.kdc.stop_kdc()  # reaps it


def kdc_comes_back(realm: Realm) -> None:
    realm.kdc.start_kdc()


def as_answers(realm: Realm, name: str, *, after: int = 0) -> list[str]:
    """What the KDC has logged of the AS requests of that principal, a word each, after that many characters of its log.

    An attempt of libkrb5 is one ISSUE where no preauthentication is required, also with a wrong key: it is the client
    that cannot decrypt the answer. Where it is required, an attempt is two requests, NEEDED_PREAUTH and then ISSUE or
    PREAUTH_FAILED. (The line `preauth (...) verify failure` belongs to the latter, and names nobody.)
    """
    return re.findall(
        rf"AS_REQ \(.*?\) 127\.0\.0\.1: ([A-Z_ ]+): .*?(?<= ){re.escape(name)} for krbtgt/", realm.log()[after:]
    )


# --- the token's volume ---


@contextlib.contextmanager
def tmpfs(path: Path, owner: int, *, size: str) -> Iterator[Path]:
    """A small file system of that user at `path`."""
    path.mkdir(exist_ok=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size},mode=0755,uid={owner},gid={owner}", "none", str(path)],
        capture_output=True,
        text=True,
    )
    if mounted.returncode:
        pytest.skip(f"root that may not mount: {mounted.stderr.strip()}")
    try:
        yield path
    finally:
        # Lazily: a refresher that a failed test leaves behind has the lock open, and is ended after this.
        subprocess.run(["umount", "--lazy", str(path)], check=True)


def remount(path: Path, option: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{option}", str(path)], check=True)


def fill(path: Path) -> None:
    """A file at `path` that takes all the space there is left on its file system."""
    with open(path, "wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"\0" * 4096)


class Hung:
    """Paths on a file system that hangs, for the process that is started with `wrapper`: what it asks of them has no
    answer, until `answers`. It is strace that holds the calls up; the process keeps its own pid."""

    def __init__(self, *paths: Path) -> None:
        calls = "openat,newfstatat,?lstat,?stat,?readlink,inotify_add_watch"
        chosen = [word for path in paths for word in ("-P", str(path))]
        self.wrapper: tuple[str, ...] = (
            *(program("strace"), "-D", "-I", "1", "-f", "-qq", "-o", "/dev/null", *chosen),
            *("-e", f"trace={calls}", "-e", f"inject={calls}:delay_enter=600000000"),
        )

    @contextlib.contextmanager
    def holds(self, process: subprocess.Popen[Any]) -> Iterator[None]:
        """It answers at the end: a process that strace holds cannot even be killed."""
        try:
            yield
        finally:
            self.answers(process)

    def asked(self, process: subprocess.Popen[Any]) -> bool:
        """Whether a thread of it waits for an answer: strace stops every one now and then, but not for long."""
        with contextlib.suppress(FileNotFoundError):  # one that has just ended
            for task in Path(f"/proc/{process.pid}/task").iterdir():
                if all("State:\tt" in (task / "status").read_text() for _ in range(20) if not time.sleep(0.01)):
                    return True
        return False

    def answers(self, process: subprocess.Popen[Any]) -> None:
        """Ends it. The calls that hang go on."""
        status = Path(f"/proc/{process.pid}/status")

        def tracer() -> int:
            with contextlib.suppress(OSError):  # it has ended
                return int(re.findall(r"TracerPid:\s+(\d+)", status.read_text())[0])
            return 0

        if tracer():
            os.kill(tracer(), signal.SIGKILL)
            eventually(lambda: not tracer(), within=10, what="no tracer")


# --- clocks ---


class MovingClock:
    """A wall clock for other processes, which a test can set while they run. Their monotonic clock is the real one."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.set("+0")

    @property
    def env(self) -> dict[str, str]:
        switches = {
            name: value for name, value in faked_clock("").items() if name != "FAKETIME"
        }  # it goes before a file
        return {**switches, "FAKETIME_TIMESTAMP_FILE": str(self._file), "FAKETIME_NO_CACHE": "1"}

    def set(self, shift: str) -> None:
        """By so much (`+3h`) it is off from now on."""
        new = self._file.with_suffix(".new")
        new.write_text(shift + "\n")
        new.chmod(0o644)
        new.rename(self._file)


def command_of(pid: int) -> str:
    with contextlib.suppress(OSError):
        return shlex.join(Path(f"/proc/{pid}/cmdline").read_text().split("\0")[:-1])
    return ""


def ended(pid: int, *, within: float = 2) -> bool:
    with contextlib.suppress(AssertionError):
        return bool(eventually(lambda: not Path(f"/proc/{pid}").exists(), within=within))
    return False


def since(moment: float) -> float:
    return time.monotonic() - moment


# --- HTTP ---

LISTENING = {"KRBREFRESH__REFRESHER__LISTEN": "127.0.0.1:0"}


class Http:
    """What a refresher says over HTTP. Every request is a connection of its own, as a probe's is."""

    def __init__(self, running: Refresher) -> None:
        address = running.logged("listening")[-1]["address"]
        host, _, port = address.rpartition(":")
        self.address = host, int(port)

    def get(self, path: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(*self.address, timeout=10)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def ready(self) -> tuple[int, dict[str, dict[str, Any]]]:
        """The status of /readyz, and what it says of each credential."""
        status, body = self.get("/readyz")
        return status, json.loads(body)["credentials"]

    def metrics(self) -> dict[str, dict[tuple[str, ...], float]]:
        """All samples of one scrape: by their name, then by the values of their labels in the order of these' names."""
        from prometheus_client.parser import text_string_to_metric_families

        samples: dict[str, dict[tuple[str, ...], float]] = {}
        for family in text_string_to_metric_families(self.get("/metrics")[1].decode()):
            for sample in family.samples:
                values = tuple(sample.labels[label] for label in sorted(sample.labels))
                samples.setdefault(sample.name.removeprefix("krbrefresh_"), {})[values] = sample.value
        return samples


@dataclass
class Reading:
    """What /readyz said of one credential, between these two moments, and what was at its path before that."""

    began: float
    ended: float
    status: int
    said: dict[str, Any]
    token: bytes

    @property
    def state(self) -> str:
        return str(self.said["state"])

    @property
    def reason(self) -> str | None:
        reason: str | None = self.said["reason"]
        return reason


class Readings:
    """Reads /readyz, and the token itself, ten times a second in a thread of its own. For one credential."""

    def __init__(self, running: Refresher, name: str, path: Path) -> None:
        self._http, self._name, self._path = Http(running), name, path
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self.all: list[Reading] = []
        self.error: Exception | None = None

    def __enter__(self) -> Readings:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(15)

    def _read(self) -> None:
        try:
            while not self._stop.wait(0.1):
                token, began = self._path.read_bytes(), time.time()
                status, credentials = self._http.ready()
                self.all.append(Reading(began, time.time(), status, credentials[self._name], token))
        except Exception as error:
            self.error = error

    def wait_for(self, state: str, reason: str | None = None, *, within: float) -> Reading:
        """The first reading of that state and reason."""

        def there() -> Reading | None:
            assert self.error is None, self.error
            return next((each for each in self.all if (each.state, each.reason) == (state, reason)), None)

        return eventually(there, within=within, what=f"{state}, {reason}") or self.all[-1]
