"""What the tests of the hooks share: a realm, a refresher whose tokens live for seconds, the examples of docs/hooks.md,
and the service that their workers greet."""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import os
import re
import select
import shlex
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gssapi
import pytest

import krbrefresh
from tests.processes import REPOSITORY, Refresher, Runner, refresher
from tests.support import Realm, eventually
from tests.test_faults import configured

DOCS = (Path(REPOSITORY) / "docs" / "hooks.md").read_text()
CCACHE = "/run/krbrefresh/etl/krb5cc"  # as the examples have it
LIFETIME = 9  # seconds; a refresh comes 5 to 6 seconds after the last
WITHIN = 90  # seconds for what takes a few on a machine that has nothing else to do


def block(first_line: str) -> str:
    """The example in docs/hooks.md that begins with this line."""
    found = re.search(rf"^```\w+\n({re.escape(first_line)}.*?)^```", DOCS, re.DOTALL | re.MULTILINE)
    assert found, f"docs/hooks.md has no example that begins with {first_line}"
    return found[1]


def frameworks(name: str) -> Path:
    """The directory of the programs in an environment of tools/setup-frameworks."""
    found = Path(REPOSITORY) / ".venv-frameworks" / name / "bin"
    if not found.is_dir():
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"{found} is missing: run tools/setup-frameworks")
    return found


class Program:
    """A running program, and what it has said. Its whole process group ends with it."""

    def __init__(self, argv: list[str], *, cwd: Path, env: dict[str, str]) -> None:
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  (closed by close())
        if os.geteuid() == 0:  # a worker may not write to the token; as root it is the capabilities that let it
            argv = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", *argv]
        self.process = subprocess.Popen(
            argv,
            cwd=cwd,
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            start_new_session=True,
        )
        self._said = b""

    @property
    def errors(self) -> str:
        """Its standard error so far."""
        return os.pread(self._log.fileno(), os.fstat(self._log.fileno()).st_size, 0).decode()

    def ask(self, question: str = "", *, within: float = WITHIN) -> dict[str, Any]:
        """Writes a line to its standard input; the JSON that comes back."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(question.encode() + b"\n")
        self.process.stdin.flush()
        deadline = time.monotonic() + within
        while True:
            *lines, self._said = self._said.split(b"\n")
            for line in lines:
                if line.startswith(b"{"):
                    return dict(json.loads(line))
            left = deadline - time.monotonic()
            assert left > 0, f"no answer within {within} s: {self.errors}"
            if select.select([self.process.stdout], [], [], left)[0]:
                more = os.read(self.process.stdout.fileno(), 65536)
                assert more, f"it has ended: {self.errors}"
                self._said += more

    def said(self, pattern: str, *, within: float = WITHIN) -> re.Match[str]:
        """This pattern in its standard error, once it is there."""
        try:
            return eventually(lambda: re.search(pattern, self.errors), within=within, what=pattern)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.errors}") from None

    def ended(self, *, within: float = WITHIN) -> int:
        """The status it ends with by itself."""
        try:
            return self.process.wait(within)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it goes on: {self.errors}") from None

    def close(self) -> None:
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
        for number, patience in ((signal.SIGTERM, 20), (signal.SIGKILL, 20)):
            with contextlib.suppress(subprocess.TimeoutExpired, ProcessLookupError):
                if number == signal.SIGKILL:
                    os.killpg(self.process.pid, number)  # its children, too, whatever became of it
                elif self.process.poll() is None:
                    self.process.send_signal(number)
                self.process.wait(patience)
        self._log.close()


@dataclass(frozen=True)
class Greeting:
    """What a worker said to the service, which has accepted it."""

    pid: int
    generation: int
    ticket_ends: float  # Unix seconds, and the same constant more: acceptors add the clock skew they allow


class Workshop:
    """One test's directory, with the examples that it runs."""

    def __init__(self, realm: Realm, place: Path, runner: Runner) -> None:
        self.realm, self.place, self._runner = realm, place, runner
        self.ccache = place / "etl" / "krb5cc"
        self.principal = realm.principal("etl")
        self._keytab = realm.keytab(place / "etl.keytab", "etl")
        self._service_keytab = realm.keytab(place / "service.keytab", "HTTP/www.example.com")
        self.temporary = place / "tmp"
        self.temporary.mkdir()
        self.env = {
            "PATH": realm.env["PATH"],
            "KRB5_CONFIG": realm.env["KRB5_CONFIG"],
            "HOME": str(place),
            "TMPDIR": str(self.temporary),
            "PYTHONPATH": f"{REPOSITORY}{os.pathsep}{place}",
        }
        self.write("work.py")

    @contextlib.contextmanager
    def refresher(self, *, lifetime: float = LIFETIME, **keys: Any) -> Iterator[Refresher]:
        """A refresher of the token, which has published one. `keys` are settings of the credential."""
        config = configured(
            self.place,
            {
                "etl": {
                    "principal": self.principal,
                    "keytab": self._keytab,
                    "lifetime": f"{lifetime}s",
                    "expiry_window": "4s" if lifetime < 60 else "33%",
                    **keys,
                }
            },
        )
        with refresher(self._runner, config, self.realm.env) as running:
            running.logged("published", within=WITHIN)
            yield running

    def adapted(self, text: str, **options: Any) -> str:
        """An example with this test's path and realm. Its hook is given these options besides, so that a refusal does
        not take a minute and a token need not live for one."""
        options = {"min_remaining": 0, **options}
        written = "".join(f"{name}={value!r}, " for name, value in options.items())
        text = text.replace('principal="etl@', f'{written}principal="etl@')
        return text.replace(CCACHE, str(self.ccache)).replace("EXAMPLE.COM", self.realm.name)

    def write(self, name: str, *, replace: tuple[str, str] = ("", ""), **options: Any) -> Path:
        """The example of that name, as a file."""
        text = block(f"# {Path(name).name}\n")
        assert replace[0] in text
        path = self.place / name
        path.write_text(self.adapted(text.replace(*replace), **options))
        return path

    @contextlib.contextmanager
    def program(self, *argv: str, venv: str = "requirements", **env: str) -> Iterator[Program]:
        """A program of the frameworks' environment."""
        path = frameworks(venv)
        running = Program(
            [str(path / argv[0]), *argv[1:]],
            cwd=self.place,
            env={**self.env, "PATH": f"{path}{os.pathsep}{self.env['PATH']}", **env},
        )
        try:
            yield running
        finally:
            running.close()

    def example(
        self, start: str, *more: str, replace: tuple[str, str] = ("", ""), **kwargs: Any
    ) -> contextlib.AbstractContextManager[Program]:
        """The command in docs/hooks.md that begins like this, with more arguments."""
        text = block(start)
        assert replace[0] in text
        return self.program(*shlex.split(self.adapted(text.replace(*replace))), *more, **kwargs)

    def driver(self, setup: str, call: str, **kwargs: Any) -> contextlib.AbstractContextManager[Program]:
        """A client: runs the setup, then the call for each line that it is asked, whose value it prints as JSON. What
        others print goes to standard error."""
        script = (
            f"import json, sys\nout, sys.stdout = sys.stdout, sys.stderr\n{setup}\n"
            f"for line in sys.stdin:\n    print(json.dumps({call}), file=out, flush=True)\n"
        )
        (self.place / "driver.py").write_text(script)
        return self.program("python", "driver.py", **kwargs)

    def accept(self, answer: dict[str, Any]) -> Greeting:
        """The greeting, as the service takes it: with its own key, from the principal of the token."""
        creds = gssapi.Credentials(usage="accept", store={"keytab": f"FILE:{self._service_keytab}"})
        context = gssapi.SecurityContext(usage="accept", creds=creds)
        context.step(base64.b64decode(answer["message"]))
        assert context.complete
        assert str(context.initiator_name) == self.principal
        return Greeting(answer["pid"], answer["generation"], time.time() + context.lifetime)

    def over_several_tokens(self, ask: Callable[[], dict[str, Any]]) -> list[Greeting]:
        """Has the workers greet the service until they have done so with three tokens, and the first has ended.

        The ticket tells which token it was. The newest generation does not: a private copy follows it a little later.
        """
        first = krbrefresh.load(self.ccache)
        greetings: list[Greeting] = []
        deadline = time.monotonic() + WITHIN
        while True:
            greetings.append(self.accept(ask()))
            ends = sorted(greeting.ticket_ends for greeting in greetings)
            tokens = 1 + sum(later - sooner > 2 for sooner, later in itertools.pairwise(ends))
            if tokens >= 3 and first.expires_at.timestamp() < time.time() - 1:
                break
            assert time.monotonic() < deadline, f"only {tokens} tokens: {ends}"
            time.sleep(0.3)  # no more contexts than it takes
        assert len({greeting.generation for greeting in greetings}) >= 3
        assert not krbrefresh.load(self.ccache).modified
        return greetings

    def copies(self) -> list[Path]:
        """The private copies that there are, each this user's alone."""
        found = []
        for path in self.temporary.glob("krbrefresh-private-*/krb5cc"):
            with contextlib.suppress(FileNotFoundError):  # its process has just ended
                assert path.stat().st_mode & 0o777 == 0o600
                found.append(path)
        return found

    def refusal(self) -> str:
        """The line that every hook says when there is no token."""
        line = next(line for line in DOCS.splitlines() if line.startswith("krbrefresh: missing: "))
        return line.replace(CCACHE, str(self.ccache))
