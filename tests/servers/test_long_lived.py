"""Clients that outlive many tokens: each a process that asks again and again while `krbrefresh run` replaces a token
that lives 8 seconds."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

import krbrefresh
from tests.processes import Refresher, Runner
from tests.servers.apache import Apache
from tests.servers.conftest import CLOCK_SKEW, Worker, publishing
from tests.servers.postgresql import PostgreSQL
from tests.support import Realm, eventually

pytestmark = [pytest.mark.servers, pytest.mark.root]

LIFETIME = 8  # seconds
OUTLIVED = 5  # tokens that nobody takes any more, by which a client has authenticated


@dataclass
class Brief:
    """A token that is replaced every four to five seconds, and a worker with it."""

    path: Path
    refresher: Refresher
    worker: Worker


@pytest.fixture
def brief(runner: Runner, realm: Realm, realm_env: dict[str, str], worker: Worker, place: Path) -> Iterator[Brief]:
    keytab = realm.keytab(place / "keytab", "etl")
    keys = {"lifetime": LIFETIME, "expiry_window": "50%"}
    with publishing(runner, place, realm.principal("etl"), keytab, realm_env, **keys) as (path, running):
        env = {**worker.env, "KRBREFRESH_CCACHE": str(path)}
        yield Brief(path, running, Worker(worker.directory, env))


EXEC = ("krbrefresh", "exec", "--min-remaining", "0s", "--")
PIPES = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}


def outcome(process: subprocess.Popen[str]) -> dict[str, Any]:
    out, err = process.communicate(timeout=110)
    assert process.returncode == 0, f"status {process.returncode}\n{out}\n{err}"
    said: dict[str, Any] = json.loads(out)
    assert said["failures"] == []
    assert len(said["answers"]) > OUTLIVED
    return said


def test_pools_and_sessions_outlive_their_tokens(brief: Brief, database: PostgreSQL, web: Apache, realm: Realm) -> None:
    etl = realm.principal("etl")
    env = {
        "DATABASE_URL": database.url("reports", "require"),
        "DATABASE_MAX_LIFETIME": "1.5",  # so that there are new connections in every generation
        "PSYCOPG_IMPL": "python",
        "URL": web.url,
    }
    before = len(web.requests())
    with ExitStack() as running:
        clients = {
            name: running.enter_context(
                brief.worker.start(*EXEC, "python", "asker.py", name, str(OUTLIVED), str(CLOCK_SKEW), env=env, **PIPES)
            )
            for name in ("pool", "http_session")
        }
        try:
            said = {name: outcome(process) for name, process in clients.items()}
        finally:
            for process in clients.values():
                process.kill()
    pool, session = said["pool"], said["http_session"]
    assert set(chain(*session["answers"])) == {etl}
    assert {answer.split()[0] for answer in chain(*pool["answers"])} == {etl}
    # New connections were authenticated in every generation that was there from its beginning to its end ...
    known: set[str] = set()
    for answers in pool["answers"][:-1]:
        assert set(answers) - known, pool["answers"]
        known |= set(answers)
    # ... and one that was there from the first to the last went on working.
    assert len(pool["held"]) > OUTLIVED
    assert set(pool["held"]) == {etl}
    # The session's requests were authenticated one by one, over one connection.
    assert {status for status, *_ in web.requests()[before:]} == {"200"}
    assert len({connection for _, _, connection, _ in web.requests()[before:]}) == 1


def test_java_outlives_its_tokens(brief: Brief, web: Apache, realm: Realm) -> None:
    options = [
        f"-Djava.security.krb5.conf={brief.worker.env['KRB5_CONFIG']}",
        "-Djava.security.auth.login.config=jaas.conf",
        "-Djavax.security.auth.useSubjectCredsOnly=false",
    ]
    seen: dict[int | None, float] = {}
    pipes = {**PIPES, "stderr": subprocess.STDOUT}  # where it fails, the reason is the next line
    with brief.worker.start(*EXEC, "java", *options, "Negotiate.java", env={}, **pipes) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            while sum(expires + CLOCK_SKEW < time.time() for expires in seen.values()) < OUTLIVED:
                token = eventually(lambda: _other(brief.path, seen), within=30, what="another generation")
                seen[token.generation] = token.expires
                print(web.url, file=process.stdin, flush=True)
                assert process.stdout.readline().strip() == realm.principal("etl")
        finally:
            process.kill()


def _other(path: Path, seen: dict[int | None, float]) -> krbrefresh.Token | None:
    token = krbrefresh.load(path)
    return None if token.generation in seen else token


def test_without_a_refresher_they_are_refused(brief: Brief, database: PostgreSQL, web: Apache) -> None:
    """The tests above can fail: a token that has ended opens nothing."""
    brief.refresher.stop()
    gone = -CLOCK_SKEW - 1
    eventually(lambda: krbrefresh.load(brief.path).remaining.total_seconds() < gone, within=LIFETIME + 10)
    env = {"DATABASE_URL": database.url("reports", "require"), "URL": web.url, "KRB5CCNAME": f"FILE:{brief.path}"}
    asks = {
        "import pool; pool.pool.getconn(timeout=3)": "Ticket expired",
        "import http_session; http_session.ask()": "401 Client Error",
    }
    for code, complaint in asks.items():
        done = brief.worker.run("python", "-c", code, **env)
        assert done.returncode == 1, done.stdout
        assert complaint in done.stderr
