"""What those who run beside a refresher, under it and after it get of it: a worker that was taken over, the exchange's
child, the commands that it starts. Each line of docs/security-review.md that is about this has its test here."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faults import LISTENING, Http, keytab_bytes, krb5_conf
from tests.processes import (
    GROUP,
    REFRESHER,
    STRANGER,
    WORKER,
    Refresher,
    Runner,
    children_of,
    krbrefresh_command,
    refresher,
    toml,
)
from tests.support import Realm, SilentKdc, eventually

# Tries these one after the other, and says what became of each: "done", or the error's name.
_ATTEMPTS = """
import ctypes, errno, fcntl, json, os, sys
pid, child, token, aside = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
directory = os.path.dirname(token)
volume = os.path.dirname(directory)
libc = ctypes.CDLL(None, use_errno=True)

def write(path):
    with open(path, "w"):
        pass

def append(path):
    with open(path, "ab"):
        pass

def ptrace(target):
    if libc.ptrace(0x4206, target, 0, 0) < 0:  # PTRACE_SEIZE
        raise OSError(ctypes.get_errno(), "")

def read(path):
    with open(path, "rb") as file:
        file.read(1)

def lock(path):
    fcntl.flock(os.open(path, os.O_RDONLY), fcntl.LOCK_EX | fcntl.LOCK_NB)

tries = {
    "read the token": lambda: read(token),
    "write into the token": lambda: append(token),
    "remove the token": lambda: os.unlink(token),
    "replace the token": lambda: os.rename(aside, token),
    "put a symlink in its place": lambda: (os.symlink(aside, aside + ".link"), os.rename(aside + ".link", token)),
    "make a file beside it": lambda: write(os.path.join(directory, "x")),
    "change its mode": lambda: os.chmod(token, 0o666),
    "change its times": lambda: os.utime(token),
    "open the lock": lambda: lock(os.path.join(directory, ".krbrefresh.lock")),
    "remove the lock": lambda: os.unlink(os.path.join(directory, ".krbrefresh.lock")),
    "remove the directory": lambda: os.rename(directory, directory + ".old"),
    "change the directory's mode": lambda: os.chmod(directory, 0o777),
    "put a directory beside it": lambda: os.mkdir(os.path.join(volume, "x")),
    "lock the directory": lambda: lock(directory),
    "lock the token": lambda: lock(token),
}
for name, target in (("refresher", pid), ("child", child)):
    tries |= {
        f"{name}: signal": lambda target=target: os.kill(target, 0),
        f"{name}: ptrace": lambda target=target: ptrace(target),
        f"{name}: mem": lambda target=target: read(f"/proc/{target}/mem"),
        f"{name}: environ": lambda target=target: read(f"/proc/{target}/environ"),
        f"{name}: maps": lambda target=target: read(f"/proc/{target}/maps"),
        f"{name}: fd": lambda target=target: os.listdir(f"/proc/{target}/fd"),
    }
told = {}
for what, attempt in tries.items():
    try:
        attempt()
        told[what] = "done"
    except OSError as error:
        told[what] = errno.errorcode[error.errno]
print(json.dumps(told))
"""
REFUSED = {"EACCES", "EPERM"}


_KEY = os.urandom(32)  # of the one that waits


class Waiting:
    """A refresher that has published one token, and waits for another one's KDC: with its child, which asks."""

    def __init__(self, running: Refresher, token: Path, python: str) -> None:
        self.running, self.token, self.python = running, token, python
        self.pid = running.process.pid
        # The other one's child may not have gone yet.
        (self.child,) = eventually(lambda: len(found := children_of(self.pid)) == 1 and found, within=20) or []


@pytest.fixture
def waiting(runner: Runner, realm: Realm, place: Path) -> Iterator[Waiting]:
    with SilentKdc() as silent:
        etl, keytab = realm.principal("etl"), realm.keytab(place / "k", "etl")
        os.chown(keytab, REFRESHER, REFRESHER)
        keytab.chmod(0o400)
        (place / "volume").mkdir()
        os.chown(place / "volume", REFRESHER, REFRESHER)
        stale = place / "stale"
        stale.write_bytes(keytab_bytes("etl@SILENT", key=_KEY))
        stale.chmod(0o400)
        os.chown(stale, REFRESHER, REFRESHER)
        env = krb5_conf(place / "krb5.conf", realm, SILENT=silent.port)
        config = place / "krbrefresh.toml"
        config.write_text(
            toml(
                refresher={"log_format": "json", "exchange_deadline": "60s"},
                kerberos={"group": str(GROUP)},
                credentials__etl={"principal": etl, "keytab": keytab, "ccache": place / "volume" / "etl" / "krb5cc"},
                credentials__hung={
                    "principal": "etl@SILENT",
                    "keytab": stale,
                    "ccache": place / "volume" / "hung" / "krb5cc",
                },
            )
        )
        with refresher(runner, config, {**env, **LISTENING}, uid=REFRESHER, groups=(GROUP,)) as running:
            running.logged("published", within=20)
            eventually(silent.asked, within=20)
            yield Waiting(running, place / "volume" / "etl" / "krb5cc", runner.python)


def attempts(waiting: Waiting, place: Path, uid: int, *groups: int) -> dict[str, str]:
    """What a user comes to."""
    mine = place / f"of-{uid}"
    mine.mkdir()
    aside = mine / "krb5cc"
    aside.write_bytes(waiting.token.read_bytes())
    for each in (mine, aside):
        os.chown(each, uid, uid)
    arguments = map(str, (waiting.pid, waiting.child, waiting.token, aside))
    done = subprocess.run(
        [waiting.python, "-I", "-S", "-c", _ATTEMPTS, *arguments],
        user=uid,
        group=uid,
        extra_groups=groups,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    told: dict[str, str] = json.loads(done.stdout)
    return told


@pytest.mark.root
def test_a_worker_that_was_taken_over_can_read_the_token_and_nothing_else(waiting: Waiting, place: Path) -> None:
    before = waiting.token.read_bytes()
    told = attempts(waiting, place, WORKER, GROUP)
    # A lock of its own on what it may read holds up nobody: the refresher's is on a file that it may not open.
    allowed = {"read the token", "lock the directory", "lock the token"}
    assert {what for what, word in told.items() if word == "done"} == allowed, told
    assert {word for what, word in told.items() if what not in allowed} <= REFUSED, told
    assert waiting.token.read_bytes() == before
    waiting.running.process.send_signal(signal.SIGUSR1)
    waiting.running.logged("published", count=2, within=20)


@pytest.mark.root
def test_another_user_can_do_nothing_at_all(waiting: Waiting, place: Path) -> None:
    told = attempts(waiting, place, STRANGER)
    assert set(told.values()) <= REFUSED, told


@pytest.mark.root
def test_not_even_its_own_user_can_look_into_the_child_with_the_keys(waiting: Waiting, place: Path) -> None:
    told = attempts(waiting, place, REFRESHER, GROUP)
    looks = {f"child: {what}" for what in ("ptrace", "mem", "environ", "maps", "fd")}
    assert {told[what] for what in looks} <= REFUSED, told
    assert told["refresher: environ"] == told["child: signal"] == "done"  # there is no wall between the two


def holds(pid: int, secret: bytes) -> bool:
    """Whether these bytes are anywhere in the memory of a process."""
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            place, rights = line.split()[:2]
            if "r" not in rights or "[v" in line:  # vvar and vsyscall are the kernel's
                continue
            start, end = (int(each, 16) for each in place.split("-"))
            memory.seek(start)
            try:
                found = secret in memory.read(end - start)
            except OSError:  # it has been given back in the meantime
                continue
            if found:
                return True
    return False


@pytest.mark.root
def test_the_key_is_in_the_memory_of_the_child_alone(waiting: Waiting, realm: Realm, place: Path) -> None:
    assert holds(waiting.child, _KEY)
    assert not holds(waiting.pid, _KEY)
    assert holds(waiting.pid, realm.name.encode())  # it would have been found


def limits(pid: int) -> tuple[str, str]:
    """Soft and hard limit of core dumps."""
    (line,) = [each for each in Path(f"/proc/{pid}/limits").read_text().splitlines() if "core file size" in each]
    soft, hard = line.split()[4:6]
    return soft, hard


@pytest.mark.root
def test_neither_leaves_a_core_dump(waiting: Waiting) -> None:
    assert limits(waiting.pid) == limits(waiting.child) == ("0", "0")
    if limits(os.getpid())[1] == "0":
        pytest.skip("nobody here may leave a core dump: they were born with it")


def opened(pid: int) -> dict[int, str]:
    """What its descriptors are."""
    found = {}
    for number in os.listdir(f"/proc/{pid}/fd"):
        try:
            found[int(number)] = os.readlink(f"/proc/{pid}/fd/{number}")
        except FileNotFoundError:
            continue
    return found


@pytest.mark.root
def test_the_child_has_no_descriptor_of_its_parent_but_the_three(waiting: Waiting) -> None:
    Http(waiting.running).get("/livez")
    parents, its = opened(waiting.pid), opened(waiting.child)
    assert any(".krbrefresh.lock" in what for what in parents.values())
    assert any(what == "anon_inode:[eventpoll]" for what in parents.values())
    pipes = {its[0], *(what for number, what in its.items() if number > 2 and what.startswith("pipe:"))}
    assert len(pipes) == 2  # for requests and replies
    beside = {what for number, what in its.items() if number > 2} - pipes
    assert all(what.startswith("socket:") for what in beside), its  # its own, with the KDC
    assert not beside & set(parents.values())


def test_what_the_environment_adds_to_python_does_not_run_in_the_child(
    runner: Runner, realm: Realm, place: Path
) -> None:
    seen, added = place / "seen", place / "added"
    added.mkdir()
    (added / "sitecustomize.py").write_text(f"import sys\nopen({str(seen)!r}, 'a').write(f'{{sys.orig_argv}}\\n')\n")
    done = krbrefresh_command(
        "once",
        runner,
        realm,
        PYTHONPATH=os.pathsep.join([str(added), runner.env.get("PYTHONPATH", "")]),
        KRBREFRESH__KERBEROS__PRINCIPAL=realm.principal("etl"),
        KRBREFRESH__KERBEROS__KEYTAB=str(realm.keytab(place / "k", "etl")),
        KRBREFRESH__KERBEROS__CCACHE=str(place / "token" / "krb5cc"),
    )
    assert done.returncode == 0, done.stderr
    (line,) = seen.read_text().splitlines()  # the parent's
    assert "'once'" in line


_LIST = "import os, sys; print(sorted(n for n in os.listdir('/proc/self/fd') if os.path.exists(f'/proc/self/fd/{n}')))"


def test_the_principals_command_has_no_descriptor_of_the_refresher(runner: Runner, realm: Realm, place: Path) -> None:
    """Also when it is run again, with the lock, the sockets and the watches open."""
    script, seen = place / "principal.py", place / "seen"
    script.write_text(
        "import os\n"
        "found = [n for n in os.listdir('/proc/self/fd') if os.path.exists(f'/proc/self/fd/{n}')]\n"
        f"open({str(seen)!r}, 'a').write(' '.join(sorted(found)) + '\\n')\n"
        f"print({realm.principal('etl')!r})\n"
    )
    env = {
        **realm.env,
        **LISTENING,
        "KRBREFRESH__REFRESHER__LOG_FORMAT": "json",
        "KRBREFRESH__KERBEROS__PRINCIPAL_CMD": f"{sys.executable} -I -S {script}",
        "KRBREFRESH__KERBEROS__KEYTAB": str(realm.keytab(place / "k", "etl")),
        "KRBREFRESH__KERBEROS__CCACHE": str(place / "token" / "krb5cc"),
    }
    config = place / "empty.toml"
    config.write_text("")
    with refresher(runner, config, env) as running:
        running.logged("published", within=20)
        running.process.send_signal(signal.SIGHUP)
        running.logged("settings_read", within=20)
    assert seen.read_text().splitlines() == ["0 1 2", "0 1 2"]


@pytest.mark.parametrize("stays", [[], ["--private"]])
def test_the_command_of_exec_has_no_descriptor_of_ours(
    runner: Runner, stays: list[str], place: Path, valid_token: Callable[[], Path]
) -> None:
    done = subprocess.run(
        [
            *(runner.python, "-m", "krbrefresh", "exec", *stays, "--ccache", str(valid_token()), "--"),
            *(sys.executable, "-I", "-S", "-c", _LIST),
        ],
        env={**runner.env, "PATH": os.environ["PATH"], "TMPDIR": str(place)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (0, "['0', '1', '2']\n"), done.stderr


@pytest.fixture
def valid_token(place: Path) -> Callable[[], Path]:
    from tests.test_cli import sealed

    def make() -> Path:
        path = place / "krb5cc"
        path.write_bytes(sealed())
        return path

    return make
