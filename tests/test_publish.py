"""Publication: atomic, with the configured mode and group, refused where it would not be safe."""

from __future__ import annotations

import os
import re
import signal
import stat
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

import krbrefresh
from krbrefresh.errors import LayoutError, RefreshError
from krbrefresh.refresher import layout, publish
from krbrefresh.refresher.layout import Destination
from krbrefresh.refresher.lock import LOCK_NAME, Lock
from krbrefresh.token import Token
from tests.processes import GROUP, REFRESHER, Runner
from tests.support import ETL, eventually
from tests.tokens import sealed

LOCK = Lock()  # this process is the only refresher


def destination(place: Path, gid: int | None = None, mode: int = 0o440) -> Destination:
    return Destination(str(place / "token"), "krb5cc", mode, gid)


def listed(where: Destination) -> list[str]:
    """What is in the token directory, the lock apart."""
    return sorted(name for name in os.listdir(where.directory) if name != LOCK_NAME)


@pytest.fixture(params=[0o000, 0o022, 0o077, 0o177], ids="umask {0:03o}".format)
def umask(request: pytest.FixtureRequest) -> object:
    old = os.umask(request.param)
    yield request.param
    os.umask(old)


@pytest.mark.usefixtures("umask")
def test_the_directory_is_made_and_the_mode_is_set_whatever_the_umask(place: Path) -> None:
    where = Destination(str(place / "a" / "b" / "token"), "krb5cc", 0o440, None)
    for generation in (1, 2):
        publish.publish(where, sealed(generation), LOCK)
        found = os.stat(where.path)
        assert stat.S_IMODE(found.st_mode) == 0o440
        assert stat.S_IMODE(os.stat(where.directory).st_mode) == 0o2750
        assert krbrefresh.load(where.path).generation == generation
        assert listed(where) == ["krb5cc"]
        for parent in (place / "a", place / "a" / "b"):  # workers pass through them, and nobody writes to them
            assert stat.S_IMODE(os.stat(parent).st_mode) == 0o755


@pytest.mark.root
def test_the_group_is_that_of_the_settings_after_every_publication(place: Path) -> None:
    where = destination(place, GROUP)
    for generation in (1, 2, 3):
        publish.publish(where, sealed(generation), LOCK)
        assert os.stat(where.path).st_gid == os.stat(where.directory).st_gid == GROUP
        assert stat.S_IMODE(os.stat(where.directory).st_mode) == 0o2750
        os.chown(where.path, -1, 0)  # somebody meddles; the next publication puts it right
        os.chmod(where.path, 0o600)


@pytest.mark.root
def test_a_directory_that_the_group_cannot_enter_is_refused_at_start(place: Path) -> None:
    publish.publish(destination(place, GROUP), sealed(1), LOCK)
    layout.judge(destination(place, GROUP))
    with pytest.raises(LayoutError, match=f"group {GROUP + 1} cannot enter the token directory") as caught:
        layout.judge(destination(place, GROUP + 1))  # the settings name another group now
    assert "remove the directory" in caught.value.hint
    os.chmod(place / "token", 0o700)
    with pytest.raises(LayoutError, match=f"group {GROUP} cannot enter"):
        layout.judge(destination(place, GROUP))
    os.chmod(place / "token", 0o755)
    layout.judge(destination(place, GROUP + 1))


def test_a_published_token_that_does_not_look_as_configured(place: Path) -> None:
    where = destination(place)
    assert not publish.looks_right(where)
    publish.publish(where, sealed(1), LOCK)
    assert publish.looks_right(where)
    assert publish.looks_right(destination(place, os.stat(where.path).st_gid))
    assert not publish.looks_right(destination(place, mode=0o400))
    assert not publish.looks_right(destination(place, os.stat(where.path).st_gid + 1))


def test_a_file_system_that_cannot_sync_a_directory(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fsync = os.fsync

    def files_alone(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(22, "Invalid argument")
        fsync(descriptor)

    monkeypatch.setattr(publish.os, "fsync", files_alone)
    where = destination(place)
    publish.publish(where, sealed(1), LOCK)  # it is published: to call that a failure would be a lie
    assert krbrefresh.load(where.path).generation == 1


@pytest.mark.root
def test_a_directory_that_is_exchanged_while_it_is_made(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    where = destination(place)
    mkdir = os.mkdir

    def exchanged(path: str, mode: int = 0o777) -> None:
        mkdir(path, mode)
        if os.path.dirname(path) == os.path.dirname(where.directory):  # under its first name
            os.rmdir(path)
            mkdir(path, 0o755)
            os.chown(path, REFRESHER, REFRESHER)

    monkeypatch.setattr(publish.os, "mkdir", exchanged)
    with pytest.raises(RefreshError, match="is another user's now"):
        publish.publish(where, sealed(1), LOCK)


@pytest.mark.parametrize("level", ["a", "a/.krbrefresh-"])
def test_no_mode_is_set_through_a_symlink(place: Path, monkeypatch: pytest.MonkeyPatch, level: str) -> None:
    """Whoever can write to the volume puts a symlink where a directory was just made."""
    secret = place / "secret"
    secret.mkdir(mode=0o700)
    where = Destination(str(place / "a" / "token"), "krb5cc", 0o440, None)
    mkdir = os.mkdir

    def exchanged(path: str, mode: int = 0o777) -> None:
        mkdir(path, mode)
        if path.startswith(str(place / level)) and not os.path.islink(path):
            os.rmdir(path)
            os.symlink(secret, path)

    monkeypatch.setattr(publish.os, "mkdir", exchanged)
    with pytest.raises(RefreshError) as caught:
        publish.publish(where, sealed(1), LOCK)
    assert caught.value.reason == "publish_failed"
    assert stat.S_IMODE(secret.stat().st_mode) == 0o700
    assert os.listdir(secret) == []


@pytest.mark.root
def test_a_ccache_that_cannot_be_read_is_refused_in_words(runner: Runner, place: Path) -> None:
    where = destination(place)
    publish.publish(where, sealed(1), LOCK)
    os.chown(place / "token", REFRESHER, REFRESHER)
    os.chown(where.path, REFRESHER, REFRESHER)
    os.chmod(where.path, 0)
    script = (
        "import sys; from krbrefresh.refresher.layout import *; from krbrefresh.errors import LayoutError\n"
        "try: judge(Destination(sys.argv[1], 'krb5cc', 0o440, None))\n"
        "except LayoutError as error: print(error)"
    )
    ran = subprocess.run(
        [runner.python, "-c", script, where.directory],
        **runner.user(REFRESHER),
        env=runner.env,
        capture_output=True,
        text=True,
    )
    assert ran.stdout == f"{where.path}: the file there cannot be read: Permission denied\n"


def test_an_existing_directory_is_not_touched(place: Path) -> None:
    where = destination(place)
    os.mkdir(where.directory)
    os.chmod(where.directory, 0o755)
    publish.prepare(where, LOCK)
    publish.publish(where, sealed(1), LOCK)
    assert stat.S_IMODE(os.stat(where.directory).st_mode) == 0o755


def refused(where: Destination, words: str) -> None:
    before = sorted(os.listdir(os.path.dirname(where.directory)))
    with pytest.raises(LayoutError, match=words) as caught:
        layout.judge(where)
    assert caught.value.hint
    with pytest.raises(RefreshError, match=words) as failed:  # and while running it is a reason, not an end
        publish.publish(where, sealed(1), LOCK)
    assert failed.value.reason == "publish_failed"
    assert sorted(os.listdir(os.path.dirname(where.directory))) == before


def test_a_symlink_at_the_ccache_is_refused(place: Path) -> None:
    where = destination(place)
    os.mkdir(where.directory, 0o755)
    target = place / "target"
    target.write_text("precious")
    os.symlink(target, where.path)
    refused(where, "the ccache is a symlink")
    assert target.read_text() == "precious"
    assert os.path.islink(where.path)


def test_a_file_that_is_no_ccache_is_refused(place: Path) -> None:
    where = destination(place)
    os.mkdir(where.directory, 0o755)
    Path(where.path).write_text("root:x:0:0:root:/root:/bin/bash\n")
    refused(where, "is not a ccache, and is not overwritten")
    os.unlink(where.path)
    os.mkdir(where.path)
    refused(where, "not a regular file")


def test_an_empty_file_and_a_strange_ccache_are_replaced(place: Path) -> None:
    where = destination(place)
    os.mkdir(where.directory, 0o755)
    for start in (b"", b"\x05\x04", b"\x05\x03torn"):
        Path(where.path).write_bytes(start)
        layout.judge(where)
        publish.publish(where, sealed(1), LOCK)
        os.unlink(where.path)


@pytest.mark.root
def test_a_file_of_another_user_is_refused(place: Path) -> None:
    where = destination(place)
    os.mkdir(where.directory, 0o755)
    Path(where.path).write_bytes(sealed(1))
    os.chown(where.path, REFRESHER, -1)
    refused(where, f"belongs to uid {REFRESHER}")


@pytest.mark.parametrize("mode", [0o777, 0o775, 0o757, 0o1777, 0o2770])
def test_a_directory_that_workers_may_write_is_refused(place: Path, mode: int) -> None:
    where = destination(place)
    os.mkdir(where.directory)
    os.chmod(where.directory, mode)
    refused(where, f"group or others may write to the token directory .its mode is {mode:04o}")


@pytest.mark.root
def test_a_directory_of_another_user_is_refused(place: Path) -> None:
    where = destination(place)
    os.mkdir(where.directory, 0o755)
    os.chown(where.directory, REFRESHER, -1)
    refused(where, f"belongs to uid {REFRESHER}")


def test_a_symlink_for_a_directory_is_refused(place: Path) -> None:
    where = destination(place)
    os.mkdir(place / "real", 0o755)
    os.symlink(place / "real", where.directory)
    refused(where, "is a symlink or not a directory")


@pytest.mark.root
def test_a_group_that_we_may_not_give_files_to_is_refused_and_nothing_is_left(runner: Runner, place: Path) -> None:
    os.chown(place, REFRESHER, REFRESHER)
    script = """
        import sys
        from krbrefresh.refresher.publish import Destination, prepare
        from krbrefresh.refresher.lock import Lock
        from krbrefresh.errors import LayoutError
        import os
        for directory in sys.argv[1:]:
            try:
                prepare(Destination(directory, "krb5cc", 0o440, 64990), Lock())
            except LayoutError as error:
                print(error.reason, error)
        print(sorted(os.listdir(os.path.dirname(sys.argv[1]))), os.listdir(sys.argv[1]))
    """
    os.mkdir(place / "there")
    os.chown(place / "there", REFRESHER, REFRESHER)
    ran = subprocess.run(
        [runner.python, "-c", textwrap.dedent(script), str(place / "there"), str(place / "new" / "deep")],
        **runner.user(REFRESHER),
        env=runner.env,
        capture_output=True,
        text=True,
        check=True,
    )
    lines = ran.stdout.splitlines()
    assert [line.partition(": ")[2] for line in lines[:2]] == [
        f"uid {REFRESHER} may not give files to group {GROUP}"
    ] * 2
    assert lines[2] == "['there'] []"


def test_a_failure_leaves_the_old_token_and_nothing_else(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    where = destination(place)
    publish.publish(where, sealed(1), LOCK)
    before = Path(where.path).read_bytes()
    for name in ("write", "fchmod", "fsync", "rename"):
        with monkeypatch.context() as patch:

            def fail(*_: object, **__: object) -> None:
                raise OSError(28, "No space left on device")

            patch.setattr(publish.os, name, fail)
            with pytest.raises(RefreshError, match="No space left on device") as caught:
                publish.publish(where, sealed(2), LOCK)
        assert caught.value.reason == "publish_failed"
        assert Path(where.path).read_bytes() == before
        assert listed(where) == ["krb5cc"]


@pytest.mark.root
def test_a_full_disk_leaves_the_old_token(place: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k,mode=0755", "none", str(place)], check=True)
    try:
        where = destination(place)
        publish.publish(where, sealed(1), LOCK)
        before = Path(where.path).read_bytes()
        with open(place / "filler", "wb", buffering=0) as filler:
            try:
                while True:
                    filler.write(b"\0" * 4096)
            except OSError:
                pass
        with pytest.raises(RefreshError, match="No space left on device"):
            publish.publish(where, sealed(2), LOCK)
        assert Path(where.path).read_bytes() == before
        assert listed(where) == ["krb5cc"]
        os.unlink(place / "filler")
        publish.publish(where, sealed(2), LOCK)
        assert krbrefresh.load(where.path).generation == 2
    finally:
        LOCK.release()
        subprocess.run(["umount", str(place)], check=True)


def test_a_directory_that_was_left_half_made_is_swept_and_nothing_else(place: Path) -> None:
    def made(name: str, *files: str, age: float = 3600) -> Path:
        (place / name).mkdir()
        for file in files:
            (place / name / file).touch()
        os.utime(place / name, (time.time() - age,) * 2)
        return place / name

    gone = [made(".krbrefresh-0123456789abcde0.tmp"), made(".krbrefresh-0123456789abcde1.tmp", LOCK_NAME)]
    stay = [
        made(".krbrefresh-0123456789abcde2.tmp", age=1),  # somebody may be making it now
        made(".krbrefresh-0123456789abcde3.tmp", LOCK_NAME, "krb5cc"),
        made(".krbrefresh-0123456789abcde4.tmp", "notes"),
        made("krbrefresh-0123456789abcde5.tmp"),
    ]
    (place / ".krbrefresh-0123456789abcde6.tmp").symlink_to(stay[3])
    if os.geteuid() == 0:
        stay.append(made(".krbrefresh-0123456789abcde7.tmp"))
        os.chown(stay[-1], REFRESHER, REFRESHER)
    before = {each: sorted(os.listdir(each)) for each in stay}
    publish.sweep_beside(str(place))
    assert not any(each.exists() for each in gone)
    assert {each: sorted(os.listdir(each)) for each in stay} == before
    assert (place / ".krbrefresh-0123456789abcde6.tmp").is_symlink()
    publish.sweep_beside(str(place / "absent"))


def test_leftovers_of_ours_are_swept_and_nothing_else(place: Path) -> None:
    where = destination(place)
    publish.publish(where, sealed(1), LOCK)
    for name in (".krbrefresh-0123456789abcdef.tmp", ".krbrefresh-short.tmp", "other"):
        (place / "token" / name).write_bytes(b"\x05\x04")
    publish.prepare(where, LOCK)  # who leads already may be writing one
    assert len(listed(where)) == 4
    LOCK.release()
    publish.prepare(where, LOCK)
    assert listed(where) == [".krbrefresh-short.tmp", "krb5cc", "other"]


# --- SIGKILL at every system call of a publication ---

PUBLISH = """
import ctypes, os, signal, sys
from krbrefresh.refresher.publish import Destination, publish
from krbrefresh.refresher.lock import Lock
ctypes.CDLL(None).prctl(0x59616d61, ctypes.c_ulong(-1), 0, 0, 0)  # PR_SET_PTRACER: strace may attach, if not as root
directory, data = sys.argv[1:]
where = Destination(directory, "krb5cc", 0o440, None)
contents = open(data, "rb").read()
os.kill(os.getpid(), signal.SIGSTOP)
publish(where, contents, Lock())
os._exit(0)
"""


def traced_publication(place: Path, data: Path, *inject: str) -> tuple[int, list[str]]:
    """A publication in a process of its own with strace attached: its status, and the names of its system calls. What
    came before the publication is not counted: it depends on what is cached."""
    process = subprocess.Popen(
        [sys.executable, "-c", PUBLISH, str(place / "token"), str(data)],
    )
    stat_file = Path(f"/proc/{process.pid}/stat")
    eventually(lambda: stat_file.read_text().rpartition(") ")[2][0] == "T", within=20, what="it has stopped itself")
    log = place / "strace.log"
    strace = subprocess.Popen(
        ["strace", "-p", str(process.pid), "-o", str(log), *inject], stderr=subprocess.PIPE, text=True
    )
    assert strace.stderr is not None
    assert "attached" in strace.stderr.readline()
    process.send_signal(signal.SIGCONT)
    process.wait(timeout=30)
    strace.communicate(timeout=30)
    return process.returncode, re.findall(r"^(\w+)\(", log.read_text(), re.MULTILINE)


def test_sigkill_at_every_system_call_of_a_publication(place: Path) -> None:
    where = destination(place)
    old, new = place / "old", place / "new"
    old.write_bytes(sealed(1))
    new.write_bytes(sealed(2))
    publish.publish(where, old.read_bytes(), LOCK)
    LOCK.release()

    status, calls = traced_publication(place, new)
    assert status == 0
    assert calls[0] == "openat"  # the token directory
    assert calls[-1] == "exit_group"
    renamed = calls.index("renameat")
    assert {"openat", "write", "fchmod", "fsync"} <= set(calls[:renamed])
    memory = ("mmap", "munmap", "brk", "madvise", "exit_group")
    kills = [
        (name, calls[: index + 1].count(name), index > renamed)
        for index, name in enumerate(calls)
        if name not in memory
    ]
    assert len(kills) >= 10

    seen = {"old": 0, "new": 0}
    leftovers = 0
    for name, nth, after in kills:
        publish.publish(where, old.read_bytes(), LOCK)
        LOCK.release()
        status, _ = traced_publication(place, new, "-e", f"inject={name}:signal=KILL:when={nth}")
        assert status == -signal.SIGKILL, (name, nth)
        found = Path(where.path).read_bytes()
        assert found in (old.read_bytes(), new.read_bytes()), (name, nth)
        token = krbrefresh.validate(where.path, principal=str(ETL))
        assert token.generation in (1, 2)
        assert not (after and token.generation == 1)
        seen["new" if token.generation == 2 else "old"] += 1
        leftovers += len(listed(where)) - 1
        publish.prepare(where, LOCK)
        assert listed(where) == ["krb5cc"]
    print(f"\nkilled at {len(kills)} system calls: {seen['old']} left the old token, {seen['new']} the new one")
    assert seen["old"]
    assert seen["new"]
    assert leftovers  # else the sweep was not tried


# --- readers that never rest ---

READER = """
import os, sys, time
import krbrefresh
path, until = sys.argv[1], sys.argv[2]
good, bad, generations, last = 0, [], 0, 0
krbrefresh.validate(path)
print("ready", flush=True)
while not os.path.exists(until):
    for _ in range(20):
        try:
            token = krbrefresh.validate(path, principal="etl@EXAMPLE.COM")
        except krbrefresh.TokenError as error:
            bad.append(f"{error.reason}: {error}")
            continue
        good += 1
        if token.generation < last:
            bad.append(f"generation {token.generation} after {last}")
        generations += token.generation != last
        last = token.generation
print(good, generations, len(bad), bad[:3], sep="\\t")
"""


@pytest.mark.slow
def test_ten_tight_readers_during_2000_publications(place: Path, record_property: pytest.RecordProperty) -> None:
    where = destination(place)
    publish.publish(where, sealed(1), LOCK)
    stop = place / "stop"
    readers = [
        subprocess.Popen(
            [sys.executable, "-c", READER, where.path, str(stop)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for _ in range(10)
    ]
    data = [sealed(generation) for generation in range(2, 2002)]
    for reader in readers:
        assert reader.stdout is not None
        assert reader.stdout.readline() == "ready\n"
    for one in data:
        publish.publish(where, one, LOCK)
    stop.touch()
    results = [reader.communicate(timeout=30)[0].strip().split("\t") for reader in readers]
    reads = sum(int(result[0]) for result in results)
    seen = [int(result[1]) for result in results]
    print(f"\n{reads} reads by 10 readers during 2000 publications, each saw {min(seen)} to {max(seen)} generations")
    record_property("reads", reads)
    assert [result[2] for result in results] == ["0"] * 10, results
    assert reads > 2000
    assert min(seen) > 1
    assert sum(seen) > 200
    assert Token.parse(Path(where.path).read_bytes()).generation == 2001
