"""The hooks in a real gunicorn."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import urllib.request
from typing import Any

import pytest

from tests.frameworks.workshop import WITHIN, Program, Workshop

pytestmark = [pytest.mark.frameworks, pytest.mark.timeout(300)]


def gunicorn(workshop: Workshop, *more: str, **env: str) -> contextlib.AbstractContextManager[Program]:
    workshop.write("web.py")
    return workshop.example("gunicorn ", *more, replace=("127.0.0.1:8000", "127.0.0.1:0"), **env)


def get(running: Program) -> dict[str, Any]:
    url = running.said(r"Listening at: (http://127\.0\.0\.1:\d+)")[1]
    with urllib.request.urlopen(url, timeout=WITHIN) as reply:
        return dict(json.load(reply))


def test_both_workers_over_several_tokens(workshop: Workshop) -> None:
    workshop.write("gunicorn.conf.py")
    with workshop.refresher(), gunicorn(workshop) as running:
        greetings = workshop.over_several_tokens(lambda: get(running))
        assert running.process.pid not in {greeting.pid for greeting in greetings}


@pytest.mark.parametrize("signed", [False, True], ids=["private", "signed"])
def test_each_worker_has_a_copy_of_its_own_and_the_arbiter_none(workshop: Workshop, signed: bool) -> None:
    key = workshop.place / "key"
    subprocess.run([sys.executable, "-m", "krbrefresh", "keygen", str(key)], check=True)
    options = {"public_key": f"{key}.pub"} if signed else {"private": True}
    workshop.write("gunicorn.conf.py", **options)
    with workshop.refresher(signing_key=key), gunicorn(workshop) as running:
        greetings = workshop.over_several_tokens(lambda: get(running))
        assert running.process.pid not in {greeting.pid for greeting in greetings}
        assert len(workshop.copies()) == 2
        running.process.terminate()
        running.ended()
    assert not workshop.copies()


def test_without_a_token_it_does_not_listen(workshop: Workshop) -> None:
    workshop.write("gunicorn.conf.py", timeout=1)
    with gunicorn(workshop) as running:
        assert running.ended() == 1
        assert [line for line in running.errors.splitlines() if line.endswith(workshop.refusal())]
        assert "Listening" not in running.errors
        assert "Traceback" not in running.errors


def test_a_worker_without_a_token_halts_it(workshop: Workshop) -> None:
    workshop.write("gunicorn.conf.py", replace=("on_starting, post_fork", "_, post_fork"), timeout=60)
    with gunicorn(workshop, "--timeout", "4", "--workers", "1") as running:
        assert running.ended() == 3, running.errors
        assert [line for line in running.errors.splitlines() if line.endswith(workshop.refusal())]
        assert "Worker failed to boot" in running.errors
        assert "Traceback" not in running.errors


def test_the_defaults_use_the_path_in_the_environment(workshop: Workshop) -> None:
    (workshop.place / "gunicorn.conf.py").write_text("from krbrefresh.hooks.gunicorn import on_starting, post_fork\n")
    workshop.write("web.py")
    environ = {"KRBREFRESH_CCACHE": str(workshop.ccache), "KRB5_CLIENT_KTNAME": "/etc/krb5.keytab"}
    with workshop.refresher(lifetime=3600), gunicorn(workshop, **environ) as running:
        workshop.accept(get(running))
