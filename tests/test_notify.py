"""The service manager's protocol, against a real socket of its kind."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import stat
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from krbrefresh.refresher import service
from krbrefresh.refresher.notify import Notifier
from tests.processes import Runner, crowded, refresher
from tests.support import Realm


class Manager:
    """The listening end, as systemd has it."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(address.replace("@", "\0", 1))
        self.socket.settimeout(5)

    def heard(self) -> list[str]:
        return self.socket.recv(65536).decode().split("\n")

    def silent(self) -> bool:
        self.socket.setblocking(False)
        try:
            self.socket.recv(65536)
        except BlockingIOError:
            return True
        return False


Notify = Callable[..., Notifier]


@pytest.fixture
def make() -> Iterator[Notify]:
    """Notifiers that are closed at the end."""
    with contextlib.ExitStack() as stack:

        def notifier(*args: Any, **kwargs: Any) -> Notifier:
            made = Notifier(*args, **kwargs)
            stack.callback(made.close)
            return made

        yield notifier


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, place: Path) -> Iterator[Manager]:
    found = Manager(str(place / "notify") if request.param == "path" else f"@krbrefresh-test-{uuid.uuid4()}")
    yield found
    found.socket.close()


def test_what_the_manager_hears(manager: Manager, make: Notify) -> None:
    notifier = make({"NOTIFY_SOCKET": manager.address})
    notifier.ready()
    assert manager.heard() == ["READY=1"]
    notifier.status("2 of 3 credentials valid ≠ réalm")
    assert manager.heard() == ["STATUS=2 of 3 credentials valid ≠ réalm"]
    notifier.watchdog()
    assert manager.heard() == ["WATCHDOG=1"]
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    notifier.reloading()
    reloading, moment = manager.heard()
    assert reloading == "RELOADING=1"
    name, _, value = moment.partition("=")
    assert name == "MONOTONIC_USEC"
    assert before <= int(value) <= time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    notifier.stopping()
    assert manager.heard() == ["STOPPING=1"]
    notifier.close()
    notifier.stopping()
    assert manager.silent()


def test_a_text_cannot_say_more_than_a_status(manager: Manager, make: Notify) -> None:
    make({"NOTIFY_SOCKET": manager.address}).status("fine\nMAINPID=1\r\n\udcff")
    assert manager.heard() == ["STATUS=fine MAINPID=1 ?"]


def test_the_systemd_tool_and_this_one_say_the_same(manager: Manager, make: Notify) -> None:
    # Another writer of the protocol, to compare with.
    try:
        subprocess.run(
            ["systemd-notify", "--no-block", "--ready"], env={"NOTIFY_SOCKET": manager.address}, timeout=10, check=False
        )
    except FileNotFoundError:
        pytest.skip("systemd-notify is not installed here")
    theirs = manager.heard()
    make({"NOTIFY_SOCKET": manager.address}).ready()
    assert manager.heard() == [line for line in theirs if not line.startswith("MAINPID=")]


def test_nobody_listens(make: Notify) -> None:
    for environ in ({}, {"NOTIFY_SOCKET": ""}, {"NOTIFY_SOCKET": "vsock:2:1"}, {"NOTIFY_SOCKET": "relative"}):
        notifier = make(environ)
        notifier.ready()
        notifier.status("x")
        assert notifier.watchdog_interval is None


def test_a_listener_that_has_gone_or_never_was_hurts_nobody(place: Path, make: Notify) -> None:
    make({"NOTIFY_SOCKET": f"{place}/none"}).ready()
    make({"NOTIFY_SOCKET": "/" + "x" * 500}).ready()
    make({"NOTIFY_SOCKET": "/" + "\udcff" * 5}).ready()
    gone = Manager(str(place / "gone"))
    notifier = make({"NOTIFY_SOCKET": gone.address})
    notifier.ready()
    assert gone.heard() == ["READY=1"]
    gone.socket.close()
    notifier.watchdog()
    os.unlink(place / "gone")
    notifier.watchdog()
    back = Manager(gone.address)  # systemd was executed anew
    notifier.watchdog()
    assert back.heard() == ["WATCHDOG=1"]
    back.socket.close()


def test_a_listener_that_does_not_read_holds_nobody_up(manager: Manager, make: Notify) -> None:
    notifier = make({"NOTIFY_SOCKET": manager.address})
    started = time.monotonic()
    for _ in range(5000):  # far more than the queue of a datagram socket takes
        notifier.watchdog()
    assert time.monotonic() - started < 5
    assert manager.heard() == ["WATCHDOG=1"]


def test_no_file_descriptor_is_left(manager: Manager) -> None:
    script = (
        "import resource\n"
        "from krbrefresh.refresher.notify import Notifier\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))\n"
        f"Notifier({{'NOTIFY_SOCKET': {manager.address!r}}}).ready()\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stderr) == (0, "")
    assert manager.silent()


def test_child_processes_inherit_neither_the_variables_nor_the_socket(manager: Manager, make: Notify) -> None:
    environ = {"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "2000000", "WATCHDOG_PID": str(os.getpid()), "A": "b"}
    kept = dict(environ)
    before = sockets()
    notifier = make(environ)
    assert environ == {"A": "b"}
    notifier.ready()
    (ours,) = sockets() - before
    assert not os.get_inheritable(ours)
    make(kept, remove=False).ready()
    assert set(kept) == {"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "A"}


def sockets() -> set[int]:
    found = set()
    for number in os.listdir("/proc/self/fd"):
        try:
            if stat.S_ISSOCK(os.fstat(int(number)).st_mode):
                found.add(int(number))
        except OSError:  # the listing's own
            pass
    return found


@pytest.mark.parametrize(
    ("usec", "pid", "interval"),
    [
        ("60000000", None, 30.0),
        ("60000000", "own", 30.0),
        ("60000000", "1", None),  # another process's watchdog
        ("60000000", "x", None),
        ("0", None, None),
        ("-5", None, None),
        ("soon", None, None),
        ("", None, None),
        (None, None, None),
    ],
)
def test_the_watchdog_is_fed_twice_in_its_time(
    usec: str | None, pid: str | None, interval: float | None, make: Notify
) -> None:
    environ = {}
    if usec is not None:
        environ["WATCHDOG_USEC"] = usec
    if pid is not None:
        environ["WATCHDOG_PID"] = str(os.getpid()) if pid == "own" else pid
    assert make(environ).watchdog_interval == interval
    assert environ == {}


def test_what_a_manager_hears_of_run(runner: Runner, realm: Realm, place: Path) -> None:
    """From its start to its end; and of many credentials that are done one after the other, a line now and then."""
    count = 40
    config = crowded(place, realm.keytab(place / "k", "etl"), realm.principal("etl"), count)
    manager = Manager(str(place / "notify"))
    told: list[str] = []

    def until(last: str) -> list[str]:
        told.clear()
        deadline = time.monotonic() + 30
        while last not in told:
            assert time.monotonic() < deadline, (last, told)
            told.extend(manager.heard())
        return told

    environ = {"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "1000000"}
    began = time.monotonic()
    with contextlib.closing(manager.socket), refresher(runner, config, {**realm.env, **environ}) as running:
        assert "READY=1" in until(f"STATUS={count} valid")
        most = 2 + (time.monotonic() - began) / service._SETTLE
        assert len([line for line in told if line.startswith("STATUS=")]) < most
        until("WATCHDOG=1")
        running.process.send_signal(signal.SIGHUP)
        assert "RELOADING=1" in until("READY=1")
        running.process.terminate()
        until("STOPPING=1")
