"""Private copies: whose they are, how they follow the shared token, what becomes of them."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import stat
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from krbrefresh import ccache
from krbrefresh.token import Token
from tests.processes import REPOSITORY, WORKER
from tests.support import ETL, ccache_bytes, eventually, ticket
from tests.tokens import Signed

PREFIX = "krbrefresh-private-"


@pytest.fixture
def signed(place: Path) -> Signed:
    directory = place / "volume"
    directory.mkdir(mode=0o755)
    signed = Signed(directory)
    signed.publish(generation=1)
    return signed


@pytest.fixture
def runtime(place: Path) -> Path:
    directory = place / "runtime"
    directory.mkdir(mode=0o700)
    return directory


class Worker:
    """A Python process that has run this code and answers expressions, a line of JSON for each."""

    def __init__(self, code: str, *arguments: object, env: dict[str, str] | None = None, **options: Any) -> None:
        loop = (
            "import json, os, sys, krbrefresh\n"
            + textwrap.dedent(code)
            + "\n"
            + textwrap.dedent("""
            print(json.dumps("ready"), flush=True)
            for line in sys.stdin:
                print(json.dumps(eval(line)), flush=True)
        """)
        )
        self.process = subprocess.Popen(
            [sys.executable, "-c", loop, *map(str, arguments)],
            env={"PATH": os.environ["PATH"], "PYTHONPATH": REPOSITORY, **(env or {})},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **options,
        )  # fmt: skip
        assert self._answer() == "ready"

    def __call__(self, expression: str) -> Any:
        assert self.process.stdin
        self.process.stdin.write(expression + "\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        assert self.process.stdout
        line = self.process.stdout.readline()
        assert line, "the worker has ended"
        return json.loads(line)

    def end(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        assert self.process.wait(10) == 0

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe
            pipe.close()


@pytest.fixture
def start() -> Iterator[Any]:
    workers: list[Worker] = []

    def start(*args: Any, **kwargs: Any) -> Worker:
        workers.append(Worker(*args, **kwargs))
        return workers[-1]

    yield start
    for worker in workers:
        worker.close()


ACTIVATE = "token = krbrefresh.activate(sys.argv[1], private=True, min_remaining=0)"


# A copy that counts how often it has looked into the shared file.
COUNTING = """
from krbrefresh import private
private.Copy.looks = 0
examine = private.examine
def counted(*arguments):
    try:
        return examine(*arguments)
    finally:
        private.Copy.looks += 1
private.examine = counted
"""


def lasting(seconds: int) -> bytes:
    """A ccache that ends soon: its copy is looked after several times a second."""
    return ccache_bytes(ticket(endtime=int(time.time()) + seconds))


def copy_in(runtime: Path) -> Path:
    (directory,) = runtime.glob(PREFIX + "*")
    return directory / "krb5cc"


def body_of(signed: Signed) -> bytes:
    data = signed.path.read_bytes()
    return data[: Token.parse(data).body_size]


def test_a_copy_that_this_user_alone_can_read(signed: Signed, runtime: Path, start: Any) -> None:
    worker = start(ACTIVATE, signed.path, env={"XDG_RUNTIME_DIR": str(runtime)}, umask=0)
    path = copy_in(runtime)
    assert worker("[os.environ['KRB5CCNAME'], os.environ['KRBREFRESH_CCACHE'], token.path]") == [
        f"FILE:{path}",
        str(signed.path),
        str(signed.path),
    ]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert len(path.parent.name) >= len(PREFIX) + 8
    assert path.read_bytes() == body_of(signed)
    assert Token.parse(path.read_bytes()).manifest is None
    assert sorted(each.name for each in path.parent.iterdir()) == ["krb5cc", "lock"]
    worker.end()
    assert list(runtime.iterdir()) == []


def test_without_a_runtime_directory_it_is_in_the_temporary_one(signed: Signed, place: Path, start: Any) -> None:
    open_to_all = place / "open"
    open_to_all.mkdir(mode=0o755)
    temporary = place / "temporary"
    temporary.mkdir()
    worker = start(ACTIVATE, signed.path, env={"XDG_RUNTIME_DIR": str(open_to_all), "TMPDIR": str(temporary)})
    assert copy_in(temporary).exists()
    assert list(open_to_all.iterdir()) == []
    worker.end()
    assert list(temporary.iterdir()) == []


def test_it_follows_each_refresh_and_keeps_what_libkrb5_appends(signed: Signed, runtime: Path, start: Any) -> None:
    signed.publish(signed.seal(lasting(20), generation=1))
    worker = start(COUNTING + ACTIVATE, signed.path, env={"XDG_RUNTIME_DIR": str(runtime)})
    path = copy_in(runtime)
    appended = ccache.encode_credential(ticket(ETL, ccache.Principal.parse("HTTP/web@EXAMPLE.COM")))
    with path.open("ab") as file:
        file.write(appended)
    # The next token; many looks later it is still there, with what libkrb5 has appended in the meantime.
    for generation in (2, 3):
        signed.publish(signed.seal(lasting(20 + generation), generation=generation))
        eventually(lambda: path.read_bytes() == body_of(signed), within=15)
        with path.open("ab") as file:
            file.write(appended)
        # The same token in another file, again and again: it is looked into, and is nothing new.
        for _ in range(2):
            looks = worker("private.Copy.looks")
            signed.publish(signed.path.read_bytes())
            eventually(lambda: worker("private.Copy.looks") > looks, within=15)  # noqa: B023
        assert path.read_bytes() == body_of(signed) + appended
    # Somebody's kdestroy is mended.
    path.unlink()
    eventually(lambda: path.exists() and path.read_bytes() == body_of(signed), within=15)


def test_a_token_that_does_not_pass_is_not_copied(signed: Signed, runtime: Path, start: Any) -> None:
    short = lasting(20)
    signed.publish(signed.seal(short, generation=5))
    code = f"""{COUNTING}
token = krbrefresh.activate(sys.argv[1], principal="{ETL}", public_key=sys.argv[2], min_remaining=0)
    """  # a public key implies a private copy
    worker = start(code, signed.path, signed.public, env={"XDG_RUNTIME_DIR": str(runtime)})
    path = copy_in(runtime)
    assert path.read_bytes() == short
    for refused in (lasting(21), signed.seal(lasting(22), generation=4)):  # not signed; an older one
        signed.publish(refused)
        looks = worker("private.Copy.looks")
        eventually(lambda: worker("private.Copy.looks") > looks + 1, within=15)  # noqa: B023
        assert path.read_bytes() == short
    new = lasting(23)
    signed.publish(signed.seal(new, generation=6))
    eventually(lambda: path.read_bytes() == new, within=15)


def test_the_verified_bytes_are_what_is_copied(signed: Signed, runtime: Path, start: Any) -> None:
    """A volume that gives another file to each who opens it: the copy is what was verified, or nothing."""
    code = f"""
        import threading, itertools
        good, evil = open(sys.argv[3], "rb").read(), open(sys.argv[4], "rb").read()
        def swap():
            for number in itertools.count():
                new = f"{{sys.argv[1]}}.{{number % 2}}"
                open(new, "wb").write(good if number % 2 else evil)
                os.rename(new, sys.argv[1])
        threading.Thread(target=swap, daemon=True).start()
        for _ in range(50):
            krbrefresh.activate(sys.argv[1], principal="{ETL}", public_key=sys.argv[2], min_remaining=0, timeout=10)
            copied = open(os.environ["KRB5CCNAME"][5:], "rb").read()
            assert good.startswith(copied), "what was not verified was copied"
    """
    good, evil = signed.directory / "good", signed.directory / "evil"
    good.write_bytes(signed.seal(generation=9))
    evil.write_bytes(ccache_bytes(ticket(ticket=b"\x62" * 300)))
    worker = start(code, signed.path, signed.public, good, evil, env={"XDG_RUNTIME_DIR": str(runtime)})
    worker.end()


def test_forked_children_keep_it_fresh_when_their_parent_has_no_time_to(
    signed: Signed, runtime: Path, start: Any
) -> None:
    signed.publish(signed.seal(lasting(20), generation=2))
    code = f"""
        {ACTIVATE}
        import signal, threading
        children = []
        for _ in range(3):
            child = os.fork()
            if not child:
                while True:
                    signal.pause()
            children.append(child)
    """
    worker = start(code, signed.path, env={"XDG_RUNTIME_DIR": str(runtime)})
    children = worker("children")
    path = copy_in(runtime)
    for tasks in (Path(f"/proc/{child}/task") for child in children):
        eventually(lambda: len(list(tasks.iterdir())) == 2, within=10, what="its own thread")  # noqa: B023
    os.kill(worker.process.pid, signal.SIGSTOP)
    try:
        for generation in (3, 4):
            end = int(time.time()) + 18 + generation
            signed.publish(signed.seal(ccache_bytes(ticket(endtime=end)), generation=generation))
            eventually(lambda: path.read_bytes() == body_of(signed), within=15)
        # A child that ends takes nothing with it.
        os.kill(children[0], signal.SIGTERM)
    finally:
        os.kill(worker.process.pid, signal.SIGCONT)
    eventually(lambda: worker("os.waitpid(children[0], os.WNOHANG)[0]") == children[0], within=10)
    assert path.exists()
    for child in children[1:]:
        os.kill(child, signal.SIGKILL)
    worker.end()
    assert list(runtime.iterdir()) == []


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_child_of_multiprocessing_removes_its_own(signed: Signed, runtime: Path, place: Path, method: str) -> None:
    script = place / "script.py"
    script.write_text(
        textwrap.dedent(f"""
        import multiprocessing, os, sys
        import krbrefresh

        def work(path, runtime):
            krbrefresh.activate(path, private=True, min_remaining=0)
            assert len(os.listdir(runtime)) == 1

        if __name__ == "__main__":
            child = multiprocessing.get_context("{method}").Process(target=work, args=sys.argv[1:3])
            child.start()
            child.join()
            sys.exit(child.exitcode)
    """)
    )
    subprocess.run(
        [sys.executable, script, signed.path, runtime],
        env={"PYTHONPATH": REPOSITORY, "XDG_RUNTIME_DIR": str(runtime)},
        check=True,
        timeout=60,
    )
    assert list(runtime.iterdir()) == []


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_it_is_there_until_multiprocessings_children_have_ended(
    signed: Signed, runtime: Path, place: Path, method: str
) -> None:
    script = place / "script.py"
    script.write_text(
        textwrap.dedent(f"""
        import multiprocessing, os, sys, time
        import krbrefresh

        def work(said):
            parent = os.getppid()
            time.sleep(0.7)  # the parent has come to its end by then, and waits
            open(said, "w").write(str(os.path.exists(os.environ["KRB5CCNAME"][5:])))

        if __name__ == "__main__":
            lock = multiprocessing.get_context("{method}").Lock()
            krbrefresh.activate(sys.argv[1], private=True, min_remaining=0)
            multiprocessing.get_context("{method}").Process(target=work, args=[sys.argv[2]]).start()
    """)
    )
    subprocess.run(
        [sys.executable, script, signed.path, place / "said"],
        env={"PYTHONPATH": REPOSITORY, "XDG_RUNTIME_DIR": str(runtime)}, check=True, timeout=60,
    )  # fmt: skip
    assert (place / "said").read_text() == "True"
    assert list(runtime.iterdir()) == []


def test_what_a_killed_process_has_left_is_swept_and_what_is_in_use_is_not(
    signed: Signed, runtime: Path, start: Any
) -> None:
    env = {"XDG_RUNTIME_DIR": str(runtime)}
    dead, alive = start(ACTIVATE, signed.path, env=env), start(ACTIVATE, signed.path, env=env)
    left, used = (Path(worker("os.environ['KRB5CCNAME']").removeprefix("FILE:")).parent for worker in (dead, alive))
    dead.process.kill()
    dead.process.wait()
    foreign = runtime / f"{PREFIX}foreign"
    foreign.mkdir()
    (foreign / "notes").write_text("mine")
    assert left.exists()
    sweep = "from krbrefresh import private; private._STALE_AFTER = -1; private.sweep()"
    start(sweep, env=env).end()
    assert not left.exists()
    assert (foreign / "notes").exists()
    assert (used / "krb5cc").exists()
    young = runtime / f"{PREFIX}young"
    young.mkdir()
    start("from krbrefresh import private; private.sweep()", env=env).end()
    assert young.exists()  # its maker may not have locked it yet


def test_a_directory_that_was_swept_away_is_made_again(signed: Signed, runtime: Path, start: Any) -> None:
    signed.publish(signed.seal(lasting(20), generation=2))
    start(ACTIVATE, signed.path, env={"XDG_RUNTIME_DIR": str(runtime)})
    path = copy_in(runtime)
    for each in path.parent.iterdir():
        each.unlink()
    path.parent.rmdir()
    eventually(path.exists, within=15)
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    # It is in use, and so not swept.
    sweep = "from krbrefresh import private; private._STALE_AFTER = -1; private.sweep()"
    start(sweep, env={"XDG_RUNTIME_DIR": str(runtime)}).end()
    assert path.exists()


def test_a_process_that_is_stopped_with_the_lock_holds_up_nobody(signed: Signed, runtime: Path, start: Any) -> None:
    signed.publish(signed.seal(lasting(20), generation=2))
    start(ACTIVATE, signed.path, env={"XDG_RUNTIME_DIR": str(runtime)})
    path = copy_in(runtime)
    with (path.parent / "lock").open("r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        signed.publish(signed.seal(lasting(21), generation=3))
        eventually(lambda: path.read_bytes() == body_of(signed), within=15)


@pytest.mark.root
def test_another_user_makes_its_own(signed: Signed, place: Path, start: Any) -> None:
    temporary = place / "temporary"
    temporary.mkdir()
    temporary.chmod(0o1777)
    code = f"""
        {ACTIVATE}
        os.setgid({WORKER}); os.setuid({WORKER})
        krbrefresh.activate(sys.argv[1], private=True, min_remaining=0)
        path = os.environ["KRB5CCNAME"][5:]
        assert os.stat(path).st_uid == {WORKER}
    """
    worker = start(code, signed.path, env={"TMPDIR": str(temporary)})
    assert len(list(temporary.iterdir())) == 2
    worker.end()
