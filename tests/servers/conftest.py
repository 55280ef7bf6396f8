"""Real servers, each started once, and workers that use them as the recipes of docs/recipes.md say."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from krbrefresh.demo.realm import throwaway_realm
from tests.ad import Domain, active_directory
from tests.processes import GROUP, REFRESHER, REPOSITORY, WORKER, Refresher, Runner, refresher, toml
from tests.servers.apache import Apache, apache
from tests.servers.postgresql import PostgreSQL, postgresql
from tests.support import Realm

RECIPES = Path(__file__).parent / "recipes"
PROGRAMS = Path(__file__).parent / "programs"
LIFETIME = 120  # seconds of a token: a recipe asks for one that has a minute left, which is the default
DOMAIN_LIFETIME = 600  # Samba refuses a TGT that ends within two minutes
CLOCK_SKEW = 3  # seconds; at the usual 300 a KDC and a server take a token that has ended five minutes ago


def recipe(name: str, instead: dict[str, str]) -> str:
    """The text of a recipe's file, with the names of here instead of those in the text."""
    text = (RECIPES / name).read_text()
    for word, ours in instead.items():
        assert word in text, word
        text = text.replace(word, ours)
    return text


@contextmanager
def publishing(
    runner: Runner,
    place: Path,
    principal: str,
    keytab: Path,
    env: dict[str, str],
    wrapper: tuple[str, ...] = (),
    **kerberos: Any,
) -> Iterator[tuple[Path, Refresher]]:
    """A refresher that has published the first token of `principal`; the token's path, and the refresher."""
    path = place / "token" / "krb5cc"
    for each in (place, keytab):
        os.chown(each, REFRESHER, REFRESHER)
    keytab.chmod(0o400)
    keys = {"principal": principal, "keytab": keytab, "ccache": path, "group": str(GROUP), **kerberos}
    config = place / "krbrefresh.toml"
    config.write_text(toml(refresher={"log_format": "json"}, kerberos=keys))
    who = ("setpriv", f"--reuid={REFRESHER}", f"--regid={REFRESHER}", f"--groups={GROUP}")
    with refresher(runner, config, env, wrapper=(*wrapper, *who)) as running:
        running.logged("published", within=30)
        yield path, running
        running.stop()


@dataclass
class Worker:
    """A user who may read the token and nothing more, in a directory with the recipes, with their clients installed."""

    directory: Path
    env: dict[str, str]
    network: tuple[str, ...] = ()  # what to start a process with, so that it is in the servers' network

    def start(self, *command: str, env: dict[str, str], **options: Any) -> subprocess.Popen[str]:
        who = ("setpriv", f"--reuid={WORKER}", f"--regid={WORKER}", f"--groups={GROUP}")
        return subprocess.Popen(
            [*self.network, *who, *command],
            env={**self.env, **env}, cwd=self.directory, text=True, start_new_session=True, **options,
        )  # fmt: skip

    def run(self, *command: str, **env: str) -> subprocess.CompletedProcess[str]:
        """What the command comes to: a recipe's file with its arguments, or any other."""
        how = {".py": ("python",), ".sh": ("sh", "-eu")}.get(Path(command[0]).suffix, ())
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        with self.start(*how, *command, env=env, **pipes) as process:
            try:
                out, err = process.communicate(timeout=100)
            except BaseException:
                os.killpg(process.pid, signal.SIGKILL)  # with what a shell has started
                raise
        return subprocess.CompletedProcess(command, process.returncode, out, err)

    def says(self, *command: str, **env: str) -> str:
        """What the command prints; it has to succeed."""
        done = self.run(*command, **env)
        assert done.returncode == 0, f"{command}: status {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout.strip()


@pytest.fixture(scope="session")
def session_place() -> Iterator[Path]:
    """A directory that every user can pass through, for what is there as long as the servers are."""
    with tempfile.TemporaryDirectory(prefix="krbrefresh-servers-") as directory:
        os.chmod(directory, 0o755)
        yield Path(directory)


def directory_at(path: Path) -> Path:
    path.mkdir()
    path.chmod(0o755)
    return path


@pytest.fixture(scope="session")
def worker_home(runner: Runner, session_place: Path) -> Worker:
    """A worker without a realm: the recipes in its directory, `python` and `krbrefresh` on its PATH."""
    directory = session_place / "recipes"
    shutil.copytree(RECIPES, directory)
    shutil.copytree(PROGRAMS, directory, dirs_exist_ok=True)
    found = sorted(Path(REPOSITORY, ".venv-servers").glob("lib/python*/site-packages"))
    if not found:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("no .venv-servers; tools/setup-servers makes it")
    clients = session_place / "clients"
    shutil.copytree(found[0], clients)  # the clone may lie where other users cannot go
    binaries = session_place / "bin"
    binaries.mkdir()
    for name, arguments in (("python", ""), ("krbrefresh", "-m krbrefresh ")):
        (binaries / name).write_text(f'#!/bin/sh\nexec {runner.python} {arguments}"$@"\n')
        (binaries / name).chmod(0o755)
    subprocess.run(["chmod", "-R", "u=rwX,go=rX", directory, clients, binaries], check=True)  # whatever the umask
    env = {
        **runner.env,
        "PATH": f"{binaries}:{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join([runner.env["PYTHONPATH"], str(clients)]),
        "PYTHONDONTWRITEBYTECODE": "1",
        "HOME": "/nonexistent",
        "LC_ALL": "C.UTF-8",
    }
    return Worker(directory, env)


# --- an MIT realm with a PostgreSQL and an Apache in it ---


@pytest.fixture(scope="session")
def realm() -> Iterator[Realm]:
    """A realm of these tests' own, which forgives no more than CLOCK_SKEW."""
    with throwaway_realm(libdefaults={"clockskew": str(CLOCK_SKEW)}) as kdc:
        yield Realm(kdc)


@pytest.fixture(scope="session")
def krb5_conf(realm: Realm, session_place: Path) -> Path:
    """The recipes' krb5.conf, which servers and workers share."""
    instead = {
        "kdc.example.com": f"127.0.0.1:{realm.kdc.portbase}",
        ".example.com": "localhost",
        "EXAMPLE.COM": realm.name,
        "[libdefaults]\n": f"[libdefaults]\n    clockskew = {CLOCK_SKEW}\n",
    }
    path = session_place / "krb5.conf"
    path.write_text(recipe("krb5.conf", instead))
    path.chmod(0o644)
    return path


@pytest.fixture(scope="session")
def realm_env(krb5_conf: Path) -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "KRB5_CONFIG": str(krb5_conf)}


@pytest.fixture(scope="session")
def token(runner: Runner, realm: Realm, realm_env: dict[str, str], session_place: Path) -> Iterator[Path]:
    """The token of etl, which a refresher keeps fresh."""
    place = directory_at(session_place / "refresher")
    keytab = realm.keytab(place / "keytab", "etl")
    with publishing(runner, place, realm.principal("etl"), keytab, realm_env, lifetime=LIFETIME) as (path, _):
        yield path


@pytest.fixture(scope="session")
def worker(worker_home: Worker, realm_env: dict[str, str], token: Path) -> Worker:
    """A worker in the realm, with etl's token."""
    ours = {"KRB5_CONFIG": realm_env["KRB5_CONFIG"], "KRBREFRESH_CCACHE": str(token)}
    return Worker(worker_home.directory, {**worker_home.env, **ours})


@pytest.fixture(scope="session")
def database(realm: Realm, realm_env: dict[str, str], session_place: Path) -> Iterator[PostgreSQL]:
    place = directory_at(session_place / "postgresql")
    keytab = realm.keytab(place / "keytab", "postgres/localhost")
    with postgresql(place, keytab, recipe("pg_hba.conf", {"EXAMPLE.COM": realm.name}), realm_env) as server:
        yield server


@pytest.fixture(scope="session")
def web(realm: Realm, realm_env: dict[str, str], session_place: Path) -> Iterator[Apache]:
    place = directory_at(session_place / "apache")
    keytab = realm.keytab(place / "keytab", "HTTP/localhost")
    auth = recipe("apache.conf", {"/etc/apache2/http.keytab": str(keytab), "EXAMPLE.COM": realm.name})
    with apache(place, keytab, auth, realm_env) as server:
        yield server


# --- a domain of Active Directory ---


@pytest.fixture(scope="session")
def domain() -> Iterator[Domain]:
    with active_directory(ldap=389) as controller:
        controller.tool("spn", "add", "ldap/localhost", "DC$")
        yield controller


def account(domain: Domain, place: Path, name: str) -> tuple[str, Path]:
    """A new account's principal and keytab."""
    return domain.user(name), domain.keytab(place / "keytab", name)


@pytest.fixture(scope="session")
def domain_worker(runner: Runner, worker_home: Worker, domain: Domain, session_place: Path) -> Iterator[Worker]:
    """A worker in the controller's network, with the token of the account etl."""
    place = directory_at(session_place / "domain-refresher")
    conf = session_place / "domain-krb5.conf"
    instead = {"kdc.example.com": "127.0.0.1", ".example.com": "localhost", "EXAMPLE.COM": domain.realm}
    conf.write_text(recipe("krb5.conf", instead))
    conf.chmod(0o644)
    worker = Worker(worker_home.directory, {**worker_home.env, "KRB5_CONFIG": str(conf)}, domain.wrapper)
    principal, keytab = account(domain, place, "etl")
    env = domain_env(worker)
    with publishing(runner, place, principal, keytab, env, domain.wrapper, lifetime=DOMAIN_LIFETIME) as (path, _):
        worker.env["KRBREFRESH_CCACHE"] = str(path)
        yield worker


def domain_env(worker: Worker) -> dict[str, str]:
    """The environment of a refresher in the worker's domain."""
    return {"PATH": os.environ["PATH"], "KRB5_CONFIG": worker.env["KRB5_CONFIG"]}
