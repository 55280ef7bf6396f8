"""The log: a line for what matters, for people or machines, nothing secret, no flood."""

from __future__ import annotations

import contextlib
import datetime
import json
import logging
import os
import random
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from krbrefresh import ccache
from krbrefresh.errors import REFRESH_REASONS, RefreshError
from krbrefresh.refresher import log
from krbrefresh.refresher.credential import Credential
from krbrefresh.refresher.settings import CredentialSettings
from tests.processes import Runner, children_of, krbrefresh_command, refresher, toml
from tests.support import Realm

Written = Callable[..., str]


@pytest.fixture
def write(realm: Realm, place: Path) -> Callable[..., Path]:
    keytab = realm.keytab(place / "k", "etl")

    def write(log_format: str = "json", **changes: object) -> Path:
        config = place / "c.toml"
        section = {"principal": realm.principal("etl"), "keytab": keytab, "ccache": place / "token" / "krb5cc"}
        config.write_text(toml(refresher={"log_format": log_format}, kerberos={**section, **changes}))
        return config

    return write


def test_every_line_for_machines_is_an_object_with_a_time_a_level_and_an_event(
    runner: Runner, realm: Realm, write: Callable[..., Path]
) -> None:
    with refresher(runner, write(), realm.env) as running:
        running.logged("published")
        running.process.send_signal(signal.SIGHUP)
        running.logged("settings_read")
        running.stop()
        lines = [json.loads(line) for line in running.text.splitlines()]
    lines = [line for line in lines if line["event"] != "no_group"]  # which root is told
    assert [line["event"] for line in lines] == ["started", "published", "settings_read", "stopping", "stopped"]
    for line in lines:
        assert datetime.datetime.fromisoformat(line["time"].replace("Z", "+00:00")).tzinfo
        assert line["level"] == "info"
    published = lines[1]
    assert published["credential"] == "default"
    assert published["principal"] == realm.principal("etl")
    assert published["method"] == "keytab"
    assert isinstance(published["generation"], int)
    for key in ("expires_at", "next_refresh_at"):
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", published[key])


def test_a_line_for_people_is_one_line_whatever_is_in_it(
    runner: Runner, realm: Realm, place: Path, write: Callable[..., Path]
) -> None:
    ran = krbrefresh_command("once", runner, realm, write("text", keytab=f"{place}/a\nb \x1b[31m"))
    (line,) = ran.stderr.splitlines()
    assert re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z ERROR   refresh_failed credential=default ", line)
    assert " reason=keytab_missing " in line
    assert r'message="' in line
    assert r"a\nb \u001b[31m" in line
    assert "\x1b" not in line


def test_a_failure_has_all_that_is_needed_to_act(
    runner: Runner, realm: Realm, place: Path, write: Callable[..., Path]
) -> None:
    config = write()
    assert krbrefresh_command("once", runner, realm, config).returncode == 0
    (place / "k").unlink()
    ran = krbrefresh_command("once", runner, realm, config)
    failed = json.loads(ran.stderr.splitlines()[-1])
    assert (failed["event"], failed["level"], failed["reason"]) == ("refresh_failed", "error", "keytab_missing")
    assert failed["message"] == f"{place}/k: there is no such keytab"
    assert failed["hint"] == REFRESH_REASONS["keytab_missing"][1]
    assert failed["failures"] == 1
    assert failed["next_attempt_at"]


def test_nothing_secret_is_in_it(runner: Runner, realm: Realm, place: Path, write: Callable[..., Path]) -> None:
    """Neither the keytab's keys nor the ticket's, in any form a line, an argument or the environment could have."""
    config = write()
    with refresher(runner, config, realm.env) as running:
        running.logged("published")
        parsed = ccache.parse((place / "token" / "krb5cc").read_bytes())
        (place / "k").write_bytes((place / "k").read_bytes()[:20])  # torn
        running.process.send_signal(signal.SIGUSR1)
        running.logged("refresh_failed", within=10)
        text = ""
        for pid in (running.process.pid, *children_of(running.process.pid)):  # the child waits for another exchange
            for file in ("environ", "cmdline"):
                with contextlib.suppress(PermissionError):  # the child's environment, for all but root
                    text += Path("/proc", str(pid), file).read_bytes().decode(errors="replace")
        assert "refresher.exchange" in text
        running.stop()
        text += running.text
    listed = subprocess.run(
        ["klist", "-K", "-k", str(realm.keytab(place / "whole", "etl"))],
        env=realm.env,
        capture_output=True,
        text=True,
    ).stdout
    secrets = re.findall(r"\(0x([0-9a-f]+)\)", listed)
    assert len(secrets) >= 2
    for credential in parsed.credentials:
        if credential.is_ticket:
            secrets += [credential.key.hex(), credential.ticket.hex()]
    for secret in secrets:
        raw = bytes.fromhex(secret)
        assert secret[:16] not in text
        assert repr(raw[:8])[2:-1] not in text


def test_a_cause_that_stays_is_told_ever_more_rarely_and_a_new_one_at_once() -> None:
    credential = Credential(
        CredentialSettings(principal="a@B", keytab="/k", ccache="/c"),
        exchange_deadline=15,
        chance=random.Random(1).random,
    )
    now = 1_800_000_000.0

    def told(*reasons: str) -> list[int]:
        return [
            number
            for number, reason in enumerate(reasons, start=1)
            if credential.failed(RefreshError(reason, "x"), now + number)
        ]

    assert told(*["kdc_unreachable"] * 1000) == [2**power for power in range(10)]
    # Two causes that take turns are no news either.
    other = Credential(credential.settings, exchange_deadline=15, chance=random.Random(1).random)
    credential = other
    assert told(*["kdc_unreachable", "kdc_timeout"] * 500) == [2**power for power in range(10)]
    credential = Credential(credential.settings, exchange_deadline=15, chance=random.Random(1).random)
    assert told("kdc_timeout", "kdc_timeout", "kdc_timeout", "keytab_missing", "kdc_timeout") == [1, 2, 4]


def test_a_refresher_that_fails_for_long_writes_a_few_lines(
    runner: Runner, realm: Realm, place: Path, write: Callable[..., Path]
) -> None:
    with refresher(runner, write(keytab=place / "absent"), realm.env) as running:
        running.logged("refresh_failed")
        for number in range(1, 31):
            running.process.send_signal(signal.SIGUSR1)
            running.logged("refresh_requested", count=number)
        running.stop()
        assert len(running.named("refresh_failed")) <= 6


def test_what_does_not_fit_is_dropped_and_holds_nobody_up() -> None:
    script = (
        "import logging, os, sys, time\n"
        "from krbrefresh.refresher import log\n"
        "log.MOST_LINES = 10\n"
        "log.LAST_LINES_WITHIN = 0.2\n"
        "write_the_rest = log.set_up('json')\n"
        "began = time.monotonic()\n"
        "for number in range(10000): log.event(logging.INFO, 'x', number=number, text='y' * 100)\n"
        "assert time.monotonic() - began < 5\n"
        "print('done', flush=True)\n"
        "write_the_rest()\n"
    )
    read, write_end = os.pipe()
    try:
        ran = subprocess.run(
            [sys.executable, "-c", script], stderr=write_end, stdout=subprocess.PIPE, text=True, timeout=20
        )
    finally:
        os.close(read)
        os.close(write_end)
    assert ran.stdout == "done\n"
    assert ran.returncode == 0


def test_the_format_can_be_changed_while_it_runs() -> None:
    record = logging.LogRecord("krbrefresh", logging.INFO, "", 0, "event", None, None)
    record.fields = {"a": 1, "b": "two words"}
    before = log._formatter
    try:
        log.use("json")
        assert json.loads(log._formatter.format(record))["b"] == "two words"
        log.use("text")
        assert log._formatter.format(record).endswith('INFO    event a=1 b="two words"')
    finally:
        log._formatter = before
