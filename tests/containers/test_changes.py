"""Restarts, a full volume, a rotated keytab: the worker loses no query while its token is valid, and it heals without
hands.
"""

from __future__ import annotations

import time

import pytest

from tests.containers.stack import LONG, TOKEN, Since, Stack, docker, events

pytestmark = pytest.mark.usefixtures("well")


@pytest.mark.parametrize("service", ["refresher", "kdc", "worker", "db"])
def test_each_is_restarted(stack: Stack, service: str) -> None:
    since = Since(stack)
    container = stack.container(service)
    started, before = container.state["StartedAt"], stack.queries()[-1]
    began = time.monotonic()
    container.do("restart", "-t", "30")
    assert container.state["StartedAt"] > started
    if service in ("refresher", "worker"):
        # As pid 1 they hear TERM: nobody has waited for a KILL.
        assert time.monotonic() - began < 25
    stack.next_query()
    stack.next_query(lambda query: query.generation > before.generation)
    if service != "db":  # a query to a server that is down fails
        assert since.trouble == []
    assert not any("WAITING" in line for line in since.trouble)


def test_a_volume_that_is_full(stack: Stack) -> None:
    since = Since(stack)
    refresher = stack.container("refresher")
    fill = """
import errno, json, os
file = os.open("/run/krbrefresh/fill", os.O_WRONLY | os.O_CREAT, 0o600)
size = 4096
while size:
    try:
        os.write(file, b"x" * size)
    except OSError as error:
        assert error.errno == errno.ENOSPC
        size //= 2
print(json.dumps(os.fstat(file).st_size))
"""
    generation = stack.queries()[-1].generation
    before = stack.next_query(lambda query: query.generation > generation)  # with its life before it
    assert refresher.python(fill) > 500_000
    refresher.python("import os; os.kill(1, 10); print('null')")  # USR1: refresh now
    try:
        failed = stack.until(
            lambda: [each for each in events(refresher, "refresh_failed") if "publish_failed" in each],
            what="a publication that fails",
        )
        assert "No space left on device" in failed[0]
        assert stack.next_query().generation == before.generation
        # What is there is the old token, whole, and nothing that was left behind.
        script = "import json, os; print(json.dumps(sorted(os.listdir('/run/krbrefresh/default'))))"
        assert refresher.python(script) == [".krbrefresh.lock", "krb5cc"]
        # No query has failed. On a slow machine the token can have ended by now, and the worker waits.
        assert all("WAITING exp" in line for line in since.trouble), since.trouble
    finally:
        refresher.python("import os; os.unlink('/run/krbrefresh/fill'); print('null')")
    stack.next_query(lambda query: query.generation > before.generation)
    assert not any("FAILED" in line for line in since.trouble)


def test_a_rotated_keytab_is_used_without_a_restart(stack: Stack) -> None:
    since = Since(stack)
    kdc, refresher = stack.container("kdc"), stack.container("refresher")
    started, published = refresher.state["StartedAt"], len(events(refresher, "published"))
    changed = len(events(refresher, "file_changed"))
    before = stack.queries()[-1].generation
    rotate = (
        "umask 077 && rm -f /keytab/new && kadmin.local -q 'ktadd -k /keytab/new etl' >/dev/null && "
        "chown 10001:10001 /keytab/new && chmod 0400 /keytab/new && mv /keytab/new /keytab/etl.keytab"
    )
    docker("exec", kdc.identity, "sh", "-c", rotate)  # another key: the old one is worth nothing from here on
    stack.until(lambda: len(events(refresher, "file_changed")) > changed, what="that it was noticed", within=30)
    stack.until(lambda: len(events(refresher, "published")) > published, what="a refresh with it")
    stack.next_query(lambda query: query.generation > before)
    assert refresher.state["StartedAt"] == started
    assert since.trouble == []
    assert "vno 2" in docker("exec", kdc.identity, "kadmin.local", "-q", "getprinc etl")


def test_a_volume_that_is_emptied_is_filled_again(stack: Stack) -> None:
    refresher = stack.container("refresher")
    script = f"""
import os
from krbrefresh import load
generation = load({TOKEN!r}).generation
os.unlink({TOKEN!r})
print(generation)
"""

    def emptied() -> int | None:
        """The generation that was taken away; None when a refresh that was due filled the gap before anybody saw it."""
        seen = len(events(refresher, "token_vanished"))
        removed: int = refresher.python(script)
        answered = stack.next_query(lambda query: query.generation > removed)
        assert answered.generation > removed
        return removed if len(events(refresher, "token_vanished")) > seen else None

    assert stack.until(emptied, what="that the refresher saw the token gone", within=3 * LONG)
