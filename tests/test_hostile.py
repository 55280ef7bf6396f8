"""A volume that somebody else writes to: whatever stands at the path, a reader says so at once. test_client.py has what
is replaced in the middle of a reading."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import krbrefresh
from krbrefresh import ccache, cli
from krbrefresh.ccache import Credential, Principal
from krbrefresh.errors import TokenError
from tests.processes import REPOSITORY
from tests.support import ETL, ccache_bytes, eventually, ticket
from tests.test_cli import sealed

pytestmark = pytest.mark.timeout(60)

AT_ONCE = 0.1 if sys.gettrace() is None else 1.0  # seconds; coverage makes Python several times slower
NO_HANG = 5.0
OTHER = Principal.parse("HTTP/web.example.com@EXAMPLE.COM")


def quickest(call: Callable[[], object]) -> float:
    """How much of the processor a call takes, in seconds: the best of ten, since others want it, too. None of them may
    wait for anything."""
    best = float("inf")
    for _ in range(10):
        began, before = time.monotonic(), time.thread_time()
        call()
        best = min(best, time.thread_time() - before)
        assert time.monotonic() - began < NO_HANG
        if best < AT_ONCE:
            break
    return best


@contextlib.contextmanager
def symlink(path: Path) -> Iterator[None]:
    path.with_name("target").write_bytes(sealed())
    path.symlink_to("target")
    yield


@contextlib.contextmanager
def symlink_to_fifo(path: Path) -> Iterator[None]:
    os.mkfifo(path.with_name("fifo"))
    path.symlink_to("fifo")
    yield


@contextlib.contextmanager
def symlink_to_keytab(path: Path) -> Iterator[None]:
    path.symlink_to("/etc/krb5.keytab")
    yield


@contextlib.contextmanager
def fifo(path: Path) -> Iterator[None]:
    os.mkfifo(path)
    yield


@contextlib.contextmanager
def fifo_with_a_writer(path: Path) -> Iterator[None]:
    """Whoever opens it without O_NONBLOCK waits for bytes that never come."""
    os.mkfifo(path)
    fd = os.open(path, os.O_RDWR)
    yield
    os.close(fd)


@contextlib.contextmanager
def directory(path: Path) -> Iterator[None]:
    path.mkdir()
    yield


@contextlib.contextmanager
def character_device(path: Path) -> Iterator[None]:
    os.mknod(path, 0o20666, os.makedev(1, 5))  # /dev/zero
    yield


@contextlib.contextmanager
def block_device(path: Path) -> Iterator[None]:
    os.mknod(path, 0o60666, os.makedev(7, 0))
    yield


@contextlib.contextmanager
def sparse(path: Path) -> Iterator[None]:
    path.write_bytes(sealed())
    os.truncate(path, 10 * 1000**3)
    yield


@contextlib.contextmanager
def just_too_large(path: Path) -> Iterator[None]:
    path.write_bytes(sealed().ljust(ccache.MAX_SIZE + 1, b"\0"))
    yield


@contextlib.contextmanager
def zeros(path: Path) -> Iterator[None]:
    """A token, and behind it as many bytes as are read at all."""
    path.write_bytes(sealed())
    os.truncate(path, ccache.MAX_SIZE)
    yield


@contextlib.contextmanager
def many_small_parts(path: Path) -> Iterator[None]:
    """As large as is read, of what takes the longest to read. It took 290 ms before the parts were capped."""
    entry = ccache.encode_credential(Credential(ETL, OTHER, addresses=((2, b""),) * 256, authdata=((1, b""),) * 256))
    path.write_bytes(ccache_bytes() + entry * (ccache.MAX_SIZE // len(entry) - 1))
    yield


@contextlib.contextmanager
def many_entries(path: Path) -> Iterator[None]:
    """As many entries as are read, and then a torn one."""
    path.write_bytes(ccache_bytes(*[ticket(server=OTHER)] * ccache.MAX_CREDENTIALS)[:-1])
    yield


@contextlib.contextmanager
def leased(path: Path) -> Iterator[None]:
    """The owner of a file holds a lease on it: an open(2) that may block waits for it, 45 s by default."""
    path.write_bytes(sealed())
    code = (
        "import fcntl, os, signal, sys\n"
        "signal.signal(signal.SIGIO, signal.SIG_IGN)\n"
        "fd = os.open(sys.argv[1], os.O_RDWR)\n"
        "fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)\n"
        "print(flush=True)\n"
        "sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as holder:
        assert holder.stdin
        assert holder.stdout
        try:
            assert holder.stdout.readline() == b"\n", holder.communicate()[1]
            yield
        finally:
            holder.kill()


@contextlib.contextmanager
def growing(path: Path) -> Iterator[None]:
    """A file to which somebody appends as fast as they can, from the moment that it is a token's size to 60 MB."""
    path.write_bytes(sealed())
    stop = threading.Event()
    thread = threading.Thread(target=_append, args=(path, stop))
    thread.start()
    try:
        eventually(lambda: path.stat().st_size > 100_000, within=10)
        yield
    finally:
        stop.set()
        thread.join()


def _append(path: Path, stop: threading.Event) -> None:
    block = b"\xff" * 50_000  # no entry begins like that
    with path.open("ab", buffering=0) as file:
        while not stop.is_set():
            if file.tell() > 60_000_000:
                os.truncate(path, 2000)
            file.write(block)


AsRoot = pytest.mark.root
HOSTILE = [
    pytest.param(symlink, "unreadable", id="symlink"),
    pytest.param(symlink_to_fifo, "unreadable", id="symlink to a FIFO"),
    pytest.param(symlink_to_keytab, "unreadable", id="symlink to a keytab"),
    pytest.param(fifo, "unreadable", id="FIFO"),
    pytest.param(fifo_with_a_writer, "unreadable", id="FIFO with a writer"),
    pytest.param(directory, "unreadable", id="directory"),
    pytest.param(character_device, "unreadable", id="character device", marks=AsRoot),
    pytest.param(block_device, "unreadable", id="block device", marks=AsRoot),
    pytest.param(leased, "unreadable", id="lease"),
    pytest.param(sparse, "corrupt", id="sparse, 10 GB"),
    pytest.param(just_too_large, "corrupt", id="just too large"),
    pytest.param(zeros, "corrupt", id="zeros"),
    pytest.param(many_small_parts, "corrupt", id="many small parts"),
    pytest.param(many_entries, "corrupt", id="many entries"),
    pytest.param(growing, "corrupt", id="growing"),
]
Make = Callable[[Path], contextlib.AbstractContextManager[None]]


@pytest.mark.parametrize(("make", "reason"), HOSTILE)
def test_a_hostile_path_is_told_at_once(make: Make, reason: str, place: Path) -> None:
    path = place / "krb5cc"
    descriptors = set(os.listdir("/proc/self/fd"))
    with make(path):
        held = set(os.listdir("/proc/self/fd"))
        for look in (
            lambda: krbrefresh.load(path),
            lambda: krbrefresh.validate(path, principal=str(ETL), services=[str(OTHER)]),
            lambda: krbrefresh.wait(path, timeout=0),
            lambda: krbrefresh.activate(path, timeout=0),
        ):

            def refused(look: Callable[[], object] = look) -> None:
                with pytest.raises(TokenError) as caught:
                    look()
                assert caught.value.reason == reason
                assert len(str(caught.value)) < 1000

            assert quickest(refused) < AT_ONCE
        assert set(os.listdir("/proc/self/fd")) == held
    assert set(os.listdir("/proc/self/fd")) <= descriptors


@pytest.mark.parametrize(("make", "reason"), HOSTILE)
def test_the_commands_tell_it_at_once(make: Make, reason: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = place / "krb5cc"
    with make(path):
        for command in (["check"], ["check", "--json"], ["wait", "--timeout", "0"]):

            def refused(command: list[str] = command) -> None:
                assert cli.main([*command, str(path)]) == 1
                assert capsys.readouterr().err.startswith(f"{reason}: {path}: ")

            assert quickest(refused) < AT_ONCE
        began = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-m", "krbrefresh", "wait", "--timeout", "0.5s", path],
            env={"PATH": os.environ["PATH"], "PYTHONPATH": REPOSITORY},
            capture_output=True,
            text=True,
            timeout=30,  # of a wait of half a second
        )
        assert time.monotonic() - began >= 0.5
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith(f"{reason}: ")


@pytest.mark.parametrize("path", ["/proc/kcore", "/proc/self/mem", "/proc/kmsg", "/proc/self/environ", "/proc/1/auxv"])
def test_what_looks_like_a_file_and_is_none(path: str) -> None:
    # In a process of its own: /proc/kmsg is a regular file to stat(2), and blocks whoever reads it without O_NONBLOCK.
    done = subprocess.run(
        [sys.executable, "-m", "krbrefresh", "check", path],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": REPOSITORY},
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 1
    assert done.stderr.startswith(("unreadable: ", "corrupt: ", "missing: "))
    assert "Traceback" not in done.stderr


def test_a_path_that_never_rests(place: Path) -> None:
    # Token, FIFO, symlink, directory, nothing, in turn and as fast as it goes; a reader never waits and never errs.
    path = place / "krb5cc"
    good = place / "good"
    stop = threading.Event()

    def change() -> None:
        while not stop.is_set():
            good.write_bytes(sealed())
            good.rename(path)
            path.unlink()
            os.mkfifo(path)
            path.unlink()
            path.symlink_to("/dev/zero")
            path.unlink()
            path.mkdir()
            path.rmdir()

    thread = threading.Thread(target=change)
    thread.start()
    seen: set[str] = set()
    try:
        end = time.monotonic() + 20
        while time.monotonic() < end and not {"valid", "missing", "unreadable"} <= seen:
            try:
                krbrefresh.validate(path)
                seen.add("valid")
            except TokenError as error:
                seen.add(error.reason)
    finally:
        stop.set()
        thread.join()
    assert {"valid", "missing", "unreadable"} <= seen <= {"valid", "missing", "unreadable", "corrupt"}


def test_an_error_lists_a_few_services_and_not_thousands(place: Path) -> None:
    names = [Principal(b"EXAMPLE.COM", (b"HTTP", b"%d." % number + b"x" * 1000)) for number in range(2000)]
    (place / "krb5cc").write_bytes(ccache_bytes(*[ticket(server=name) for name in names]))
    with pytest.raises(krbrefresh.NoTicketError, match=r"HTTP/4\.x+@EXAMPLE\.COM and 1995 more$") as caught:
        krbrefresh.validate(place / "krb5cc", services=[str(OTHER)])
    assert len(str(caught.value)) < 6000
