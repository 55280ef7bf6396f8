"""Two refreshers on one volume: one leads, the other stands by and takes over."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import krbrefresh
from krbrefresh.refresher.layout import Destination
from krbrefresh.refresher.lock import LOCK_NAME, Lock
from krbrefresh.refresher.publish import is_held_elsewhere, prepare, publish
from krbrefresh.refresher.service import _LOCKS_AT_ONCE
from tests.processes import GROUP, REFRESHER, WORKER, Runner, crowded, krbrefresh_command, refresher, toml
from tests.support import Realm, eventually
from tests.test_publish import destination, sealed


@pytest.fixture
def configured(realm: Realm, place: Path) -> Callable[..., Path]:
    """Settings of one credential, whose token directory is place/token; a file for each name of a refresher."""
    keytab = realm.keytab(place / "k", "etl")  # once: another one would be tried at once

    def write(name: str, **kerberos: Any) -> Path:
        section = {
            "principal": realm.principal("etl"),
            "keytab": keytab,
            "ccache": place / "token" / "krb5cc",
            **kerberos,
        }
        config = place / f"{name}.toml"
        config.write_text(toml(refresher={"name": name, "log_format": "json"}, kerberos=section))
        return config

    return write


# --- the lock ---


def lock_in(directory: Path, lock: Lock) -> bool:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        return lock.acquire(descriptor)
    finally:
        os.close(descriptor)


def test_one_holds_it_until_it_lets_go(place: Path) -> None:
    one, other = Lock(), Lock()
    assert lock_in(place, one)
    assert lock_in(place, one)  # it stays ours
    assert not lock_in(place, other)
    assert (one.held, other.held) == (True, False)
    one.release()
    assert lock_in(place, other)
    assert not lock_in(place, one)
    other.release()


def test_a_worker_cannot_open_it_whatever_the_umask_and_whoever_made_it(place: Path) -> None:
    lock = Lock()
    old = os.umask(0)
    try:
        assert lock_in(place, lock)
        assert stat.S_IMODE((place / LOCK_NAME).stat().st_mode) == 0o600
        lock.release()
        (place / LOCK_NAME).chmod(0o666)
        assert lock_in(place, lock)
        assert stat.S_IMODE((place / LOCK_NAME).stat().st_mode) == 0o600
    finally:
        os.umask(old)
        lock.release()


def test_a_lock_file_that_was_deleted_or_a_directory_that_was_replaced_makes_no_two_leaders(place: Path) -> None:
    one, other = Lock(), Lock()
    (place / "a").mkdir()
    assert lock_in(place / "a", one)
    (place / "a" / LOCK_NAME).unlink()
    assert lock_in(place / "a", other)  # nobody could keep it from that
    assert not lock_in(place / "a", one)  # but this one notices before it publishes
    assert not one.held
    other.release()
    assert lock_in(place / "a", one)
    shutil.rmtree(place / "a")
    (place / "a").mkdir()
    assert lock_in(place / "a", one)  # it follows, where nobody was faster
    assert not lock_in(place / "a", other)
    one.release()


def test_a_symlink_in_its_place_is_not_followed(place: Path) -> None:
    (place / "precious").write_text("x")
    (place / LOCK_NAME).symlink_to(place / "precious")
    with pytest.raises(OSError, match="symbolic"):
        lock_in(place, Lock())


def test_it_is_the_lock_that_others_use_too(place: Path) -> None:
    """flock(1) and the package filelock take the same one."""
    lock = Lock()
    assert lock_in(place, lock)
    command = ["flock", "--nonblock", "--conflict-exit-code", "9", str(place / LOCK_NAME), "true"]
    assert subprocess.run(command).returncode == 9
    lock.release()
    assert subprocess.run(command).returncode == 0


def test_one_who_stands_by_sweeps_nothing_away(place: Path) -> None:
    where, leader, other = destination(place), Lock(), Lock()
    publish(where, sealed(1), leader)
    written = place / "token" / ".krbrefresh-0123456789abcdef.tmp"  # the leader's, which is writing now
    written.write_bytes(b"\x05\x04")
    assert not prepare(where, other)
    assert written.exists()
    leader.release()
    assert not is_held_elsewhere(where, other)  # a look at a lock that is free takes it
    assert prepare(where, other)
    assert not written.exists()
    written.write_bytes(b"\x05\x04")
    assert prepare(where, other)  # of another credential in this directory, while the first one is published
    assert written.exists()
    (place / "token" / LOCK_NAME).unlink()
    publish(where, sealed(2), other)
    assert not written.exists()
    other.release()


MAKE = """
import os, sys, time
from krbrefresh.refresher.layout import Destination, judge
from krbrefresh.refresher.lock import Lock
from krbrefresh.refresher.publish import prepare
where = Destination(sys.argv[1], "krb5cc", 0o440, int(sys.argv[2]))
time.sleep(max(0, float(sys.argv[3]) - time.time()))
judge(where)
print(prepare(where, Lock()))
sys.stdin.read()
"""


def test_refreshers_that_make_the_directory_at_the_same_moment(place: Path) -> None:
    for attempt in range(5):
        at = time.time() + 0.7
        group = GROUP if os.geteuid() == 0 else os.getegid()
        arguments = [str(place / f"volume{attempt}" / "token"), str(group), str(at)]
        makers = [
            subprocess.Popen(
                [sys.executable, "-c", MAKE, *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for _ in range(4)
        ]
        said = []
        for maker in makers:
            assert maker.stdout
            said.append(maker.stdout.readline().strip())
        for maker in makers:
            maker.communicate()
        assert sorted(said) == ["False", "False", "False", "True"]
        assert os.listdir(place / f"volume{attempt}") == ["token"]
        assert stat.S_IMODE((place / f"volume{attempt}" / "token").stat().st_mode) == 0o2750


# --- two refreshers ---


def test_the_second_stands_by_and_takes_over_when_the_first_is_killed(
    runner: Runner, realm: Realm, place: Path, configured: Callable[..., Path]
) -> None:
    with refresher(runner, configured("one"), realm.env) as one:
        one.logged("published")
        before = (place / "token" / "krb5cc").read_bytes()
        # Its settings ask for another ticket: it has a reason to publish as soon as it leads.
        with refresher(runner, configured("two", lifetime="9h"), realm.env) as two:
            two.logged("standing_by")
            assert not two.named("published", "adopted")
            assert (place / "token" / "krb5cc").read_bytes() == before
            leftover = place / "token" / ".krbrefresh-0123456789abcdef.tmp"
            leftover.write_bytes(before)  # as if it were killed while it publishes
            one.process.kill()
            one.process.wait()
            killed = time.monotonic()
            two.logged("published", within=5)
            took = time.monotonic() - killed
            print(f"\ntook over {took:.2f} s after SIGKILL")
            assert took < 2
            assert not leftover.exists()
            manifest = krbrefresh.validate(place / "token" / "krb5cc").manifest
            assert manifest is not None
            assert manifest.refresher == "two"
            assert manifest.generation > (krbrefresh.Token.parse(before).generation or 0)
            assert two.stop() < 1


def test_of_many_locks_the_first_that_is_found_free_makes_it_look_at_all(
    runner: Runner, realm: Realm, place: Path
) -> None:
    count = 3 * _LOCKS_AT_ONCE + 50
    config = crowded(place, realm.keytab(place / "k", "etl"), realm.principal("etl"), count)
    with contextlib.ExitStack() as stack:
        leader = stack.enter_context(refresher(runner, config, realm.env))
        leader.logged("published", count=count, within=60)
        other = stack.enter_context(refresher(runner, config, realm.env))
        other.logged("standing_by", count=count, within=30)
        leader.process.kill()
        killed = time.monotonic()
        other.logged("leading", count=count, within=30)
        took = time.monotonic() - killed
        print(f"{count} locks were taken over in {took:.1f} s")
        assert took < 2.5  # looking at a hundred every second would have taken more than three
        assert not other.named("refresh_failed", "published")  # what is there will do


def test_a_rolling_upgrade_shows_no_gap_and_no_lower_generation(
    runner: Runner, realm: Realm, place: Path, configured: Callable[..., Path]
) -> None:
    """One after the other starts beside its forerunner, which then ends, under a reader that never rests."""
    stop = place / "stop"
    reader = subprocess.Popen(
        [sys.executable, "-c", READER, str(place / "token" / "krb5cc"), str(stop)], stdout=subprocess.PIPE, text=True
    )
    try:
        with refresher(runner, configured("v0", lifetime="60s"), realm.env) as old:
            old.logged("published")
            for version in range(1, 5):
                lifetime = f"{60 + version}s"  # so that each one publishes
                with refresher(runner, configured(f"v{version}", lifetime=lifetime), realm.env) as new:
                    new.logged("standing_by")
                    assert old.stop() < 1
                    new.logged("published", within=10)
                    old.process, new.process = new.process, old.process  # it lives on
                    old._log, new._log = new._log, old._log
            old.stop()
    finally:
        stop.touch()
        output, _ = reader.communicate(timeout=20)
    result = json.loads(output)
    print(f"\n{result}")
    assert result["bad"] == []
    assert result["reads"] > 1000
    assert len(result["generations"]) == 5
    assert result["generations"] == sorted(result["generations"])


READER = """
import json, os, sys, time
import krbrefresh
path, until = sys.argv[1:]
krbrefresh.wait(path, timeout=20, min_remaining=0)
reads, bad, generations = 0, [], []
while not os.path.exists(until):
    reads += 1
    try:
        token = krbrefresh.validate(path, min_remaining=0)
        if token.generation not in generations[-1:]:
            generations.append(token.generation)
    except krbrefresh.TokenError as error:
        bad.append(str(error))
print(json.dumps({"reads": reads, "bad": bad[:3], "generations": generations}))
"""


def test_a_leader_that_has_lost_its_lock_stands_by(
    runner: Runner, realm: Realm, place: Path, configured: Callable[..., Path]
) -> None:
    with refresher(runner, configured("one"), realm.env) as one:
        one.logged("published")
        (place / "token" / LOCK_NAME).unlink()
        with refresher(runner, configured("two", lifetime="9h"), realm.env) as two:
            # Whoever of them is faster: the one that sees it missing takes it again, or finds the other there.
            eventually(lambda: one.named("standing_by") or two.named("standing_by"), within=10)
            leader, other = (two, one) if one.named("standing_by") else (one, two)
            path = place / "token" / "krb5cc"
            os.kill(other.process.pid, signal.SIGUSR1)
            os.kill(leader.process.pid, signal.SIGUSR1)
            count = len(leader.named("published")) + 1
            leader.logged("published", count=count)
            manifest = krbrefresh.validate(path).manifest
            assert manifest is not None
            assert manifest.refresher == ("two" if leader is two else "one")
            assert other.logged("refresh_requested")


def test_once_beside_a_leader_says_what_the_leader_has_published(
    runner: Runner, realm: Realm, place: Path, configured: Callable[..., Path]
) -> None:
    config = configured("one")
    with refresher(runner, config, realm.env) as one:
        one.logged("published")
        before = (place / "token" / "krb5cc").read_bytes()
        ran = krbrefresh_command("once", runner, realm, config)
        assert ran.returncode == 0, ran.stderr
        assert [json.loads(line)["event"] for line in ran.stderr.splitlines()] == ["standing_by", "valid"]
        assert (place / "token" / "krb5cc").read_bytes() == before
    lock = Lock()
    (place / "token" / "krb5cc").unlink()
    config.write_text(config.read_text().replace("[refresher]", '[refresher]\nexchange_deadline = "1s"'))
    assert lock_in(place / "token", lock)
    try:
        ran = krbrefresh_command("once", runner, realm, config)
    finally:
        lock.release()
    assert ran.returncode == 1
    last = json.loads(ran.stderr.splitlines()[-1])
    assert last["event"] == "not_valid"
    assert "another refresher leads" in last["message"]
    assert "there is no such file" in last["message"]


def test_two_credentials_in_one_directory_share_its_lock(runner: Runner, realm: Realm, place: Path) -> None:
    keytab = realm.keytab(place / "k", "etl", "reports")
    config = place / "c.toml"
    names = {
        f"credentials__{name}": {"principal": realm.principal(name), "ccache": place / "token" / name}
        for name in ("etl", "reports")
    }
    config.write_text(toml(refresher={"log_format": "json"}, kerberos={"keytab": keytab}, **names))
    with refresher(runner, config, realm.env) as one:
        one.logged("published", count=2)
        with refresher(runner, config, realm.env) as two:
            two.logged("standing_by", count=2)
            one.stop()
            two.logged("leading", count=2, within=10)
            two.logged("adopted", count=2)


@pytest.mark.root
def test_a_worker_on_the_volume_cannot_take_the_lock(
    runner: Runner, realm: Realm, place: Path, configured: Callable[..., Path]
) -> None:
    os.chown(place, REFRESHER, REFRESHER)
    config = configured("one", group=GROUP)
    os.chown(place / "k", REFRESHER, -1)
    with refresher(runner, config, realm.env, uid=REFRESHER, groups=(GROUP,)) as one:
        one.logged("published")
        ran = subprocess.run(
            ["flock", "--nonblock", str(place / "token" / LOCK_NAME), "true"],
            **runner.user(WORKER, GROUP),
            capture_output=True,
            text=True,
        )
        assert ran.returncode == 66  # EX_NOINPUT: it cannot even be opened
        assert "Permission denied" in ran.stderr
        ran = subprocess.run(
            ["flock", "--nonblock", str(place / "token"), "true"], **runner.user(WORKER, GROUP), capture_output=True
        )
        one.process.send_signal(signal.SIGUSR1)  # a lock on the directory is nobody's concern
        one.logged("published", count=2)


def test_the_name_of_a_destination_is_not_its_lock(place: Path) -> None:
    """One lock for a directory, whatever the ccaches in it are called."""
    lock, other = Lock(), Lock()
    assert prepare(Destination(str(place / "token"), "a", 0o440, None), lock)
    assert not prepare(Destination(str(place / "token"), "b", 0o440, None), other)
    lock.release()
