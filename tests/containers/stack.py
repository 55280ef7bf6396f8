"""A stack of containers as compose.yaml and its demo describe it, and what its containers say and are."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from tests.support import eventually

T = TypeVar("T")

REPOSITORY = Path(__file__).resolve().parents[2]
IMAGES = (
    "krbrefresh-refresher",
    "krbrefresh-worker",
    "krbrefresh-demo-worker",
    "krbrefresh-demo-kdc",
    "krbrefresh-demo-db",
)
PRINCIPAL = "etl@EXAMPLE.COM"
TOKENS = 10000  # the group
REFRESHER = 10001
WORKER = 10002
KEYTAB = "/run/secrets/keytab/etl.keytab"
TOKEN = "/run/krbrefresh/default/krb5cc"
CLOSED = ("--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges:true")
LONG = 90.0  # seconds; for what takes one or two on a machine at rest

_QUERY = re.compile(r"query (\d+): \S+ answered (\S+), encrypted, in \d+ ms; generation (\d+), (-?\d+) s left")


def docker(*arguments: str, check: bool = True, timeout: float = 120, stdin: str | None = None) -> str:
    """What `docker ARGUMENTS` prints. With `check` a failure is an AssertionError with all of it."""
    return run(["docker", *arguments], check=check, timeout=timeout, stdin=stdin).stdout


def run(
    command: list[str], *, check: bool = True, timeout: float = 120, stdin: str | None = None, **options: Any
) -> subprocess.CompletedProcess[str]:
    ran = subprocess.run(command, capture_output=True, text=True, timeout=timeout, input=stdin, **options)
    assert not check or ran.returncode == 0, f"{command}: status {ran.returncode}\n{ran.stdout}\n{ran.stderr}"
    return ran


def compose_command() -> list[str]:
    """Compose v2 where the client has it, else docker-compose."""
    if run(["docker", "compose", "version"], check=False).returncode == 0:
        return ["docker", "compose"]
    assert shutil.which("docker-compose"), "neither `docker compose` nor docker-compose is here"
    return ["docker-compose"]


@dataclass(frozen=True)
class Query:
    """An answer that the demo's worker has had."""

    number: int
    principal: str
    generation: int
    left: int


class Container:
    """A container, running or not."""

    def __init__(self, identity: str) -> None:
        self.identity = identity

    def inspect(self) -> dict[str, Any]:
        found: list[dict[str, Any]] = json.loads(docker("inspect", self.identity))
        return found[0]

    @property
    def state(self) -> dict[str, Any]:
        state: dict[str, Any] = self.inspect()["State"]
        return state

    @property
    def health(self) -> str:
        return str(self.state["Health"]["Status"])

    def log(self) -> str:
        ran = run(["docker", "logs", self.identity])
        return ran.stdout + ran.stderr

    def python(self, script: str, *arguments: str, user: int | None = None) -> Any:
        """The JSON that a script prints which this container's own Python runs, as its own user or another."""
        who = () if user is None else ("--user", str(user))
        return json.loads(
            docker("exec", "-i", *who, self.identity, "python3", "-I", "-", *arguments, stdin=script, timeout=300)
        )

    def do(self, verb: str, *options: str) -> None:
        docker(verb, *options, self.identity)


class Stack:
    """The demo, under a project's name of its own and with a keytab directory of its own."""

    def __init__(self, *, lifetime: str = "20s", more: str | None = None) -> None:
        self.project = f"krbrefresh-test-{uuid.uuid4().hex[:8]}"
        self.directory = Path(tempfile.mkdtemp(prefix="krbrefresh-containers-"))
        self.directory.chmod(0o755)
        self.keytabs = self.directory / "keytab"
        self.keytabs.mkdir()
        self._files = [REPOSITORY / "compose.yaml", REPOSITORY / "compose.override.yaml"]
        if more:
            (self.directory / "more.yaml").write_text(more)
            self._files.append(self.directory / "more.yaml")
        self._environ = {"DEMO_KEYTAB_DIR": str(self.keytabs), "DEMO_LIFETIME": lifetime}
        self.went_up = time.monotonic()

    def compose(self, *arguments: str, check: bool = True, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        files = [part for file in self._files for part in ("-f", str(file))]
        return run(
            [*compose_command(), "-p", self.project, *files, *arguments],
            check=check,
            timeout=timeout,
            cwd=REPOSITORY,
            env={**os.environ, **self._environ},
        )

    def up(self, *options: str) -> Stack:
        self.went_up = time.monotonic()
        self.compose("up", "-d", "--no-build", *options)
        return self

    def down(self) -> None:
        """Takes everything away that was made, whatever state it is in."""
        try:
            for each in docker("ps", "-q", "--filter", f"label=com.docker.compose.project={self.project}").split():
                docker("unpause", each, check=False)
            self.compose("down", "-v", "-t", "5", "--remove-orphans", check=False)
        finally:
            shutil.rmtree(self.directory)

    def containers(self, service: str) -> list[Container]:
        return [Container(each) for each in self.compose("ps", "-q", service).stdout.split()]

    def container(self, service: str) -> Container:
        (found,) = self.containers(service)
        return found

    @property
    def network(self) -> str:
        return f"{self.project}_default"

    # What the worker has to say.

    def queries(self) -> list[Query]:
        return [
            Query(int(number), principal, int(generation), int(left))
            for number, principal, generation, left in _QUERY.findall(self.container("worker").log())
        ]

    def trouble(self) -> list[str]:
        """The worker's lines that are no answers: queries that failed, tokens that it waited for."""
        log = self.container("worker").log()
        return [line for line in log.splitlines() if "FAILED" in line or "WAITING" in line]

    def next_query(self, what: Callable[[Query], bool] = lambda _: True, *, within: float = LONG) -> Query:
        """The first answer from now on that is so."""
        seen = len(self.queries())

        def found() -> Query | None:
            return next((each for each in self.queries()[seen:] if what(each)), None)

        try:
            return eventually(found, within=within, every=0.2, what="an answer to the worker's query")  # type: ignore[return-value]
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.all_logs()}") from None

    def all_logs(self) -> str:
        return self.compose("logs", "--no-color", "--tail", "60").stdout

    def until(self, condition: Callable[[], T], *, what: str, within: float = LONG) -> T:
        """As `eventually`; a failure tells what the containers have said."""
        try:
            return eventually(condition, within=within, every=0.2, what=what)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.all_logs()}") from None


class Since:
    """The worker's trouble from the moment on that this is made."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self._seen = len(stack.trouble())

    @property
    def trouble(self) -> list[str]:
        return self._stack.trouble()[self._seen :]


def events(container: Container, name: str) -> list[str]:
    return re.findall(rf"^\S+ [A-Z]+ +({name}\b.*)$", container.log(), re.MULTILINE)
