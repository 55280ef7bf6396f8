from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from krbrefresh.demo.realm import throwaway_realm
from krbrefresh.demo.staging import stage
from tests.manifests import Judge, judging
from tests.processes import QUIET, WORKER, Runner
from tests.support import Realm

# Started by nohup, or by a shell in the background, this process ignores these, and so would all that it starts.
for _number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, signal.default_int_handler if _number == signal.SIGINT else signal.SIG_DFL)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.geteuid() != 0:
        for item in items:
            if "root" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="acts as several users: needs root"))


@pytest.fixture(scope="session")
def realm() -> Iterator[Realm]:
    """A real MIT realm on loopback, shared by all tests that do not break it."""
    with throwaway_realm() as kdc:
        yield Realm(kdc)


@pytest.fixture
def own_realm() -> Iterator[Realm]:
    """A real MIT realm for one test, which may stop, starve and kill it."""
    with throwaway_realm() as kdc:
        yield Realm(kdc)


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that every user can pass through (pytest's own tmp_path lets in one alone)."""
    directory = Path(tempfile.mkdtemp(prefix="krbrefresh-test-"))
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory)


@pytest.fixture
def krb5_env(realm: Realm, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """This process speaks to the shared realm, with no ccache or keytab of its own."""
    for name in ("KRB5CCNAME", "KRB5_KTNAME", "KRB5_CLIENT_KTNAME", "KRBREFRESH_CCACHE", "KRB5_TRACE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("KRB5_CONFIG", realm.env["KRB5_CONFIG"])
    return monkeypatch.setenv


@pytest.fixture(scope="session")
def runner() -> Iterator[Runner]:
    """The interpreter and the package, as every user can run them: as root the clone may be where others cannot go."""
    if os.geteuid() != 0:
        yield Runner()
        return
    with tempfile.TemporaryDirectory(prefix="krbrefresh-staging-") as directory:
        os.chmod(directory, 0o755)
        staging = stage(directory, WORKER, WORKER)
        yield Runner(staging.python, {**QUIET, **staging.environment})


@pytest.fixture(scope="session")
def judge() -> Iterator[Judge]:
    """Reads YAML and knows Kubernetes' schemas."""
    with judging() as process:
        yield process
