"""The recipes of docs/recipes.md, to the letter, against the real servers: workers who may only read a token that
`krbrefresh run` keeps fresh."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import krbrefresh
from tests.ad import Domain
from tests.processes import Runner
from tests.servers.apache import Apache
from tests.servers.conftest import LIFETIME, Worker, account, directory_at, domain_env, publishing
from tests.servers.postgresql import PostgreSQL
from tests.support import Realm, eventually

pytestmark = [pytest.mark.servers, pytest.mark.root]

LIBPQ = pytest.mark.parametrize("libpq", ["python", "binary"])  # the machine's, through ctypes; the wheel's own


# --- PostgreSQL ---


@LIBPQ
def test_postgresql_authenticates_and_encrypts(worker: Worker, database: PostgreSQL, realm: Realm, libpq: str) -> None:
    def ask(name: str, mode: str) -> str:
        return worker.says("postgresql.py", DATABASE_URL=database.url(name, mode), PSYCOPG_IMPL=libpq)

    etl = realm.principal("etl")
    assert ask("reports", "require") == f"True True {etl}"
    assert ask("archive", "require") == f"True True {etl}"
    assert ask("archive", "disable") == f"True False {etl}"


@LIBPQ
def test_hostgssenc_lets_nobody_in_without_encryption(worker: Worker, database: PostgreSQL, libpq: str) -> None:
    done = worker.run("postgresql.py", DATABASE_URL=database.url("reports", "disable"), PSYCOPG_IMPL=libpq)
    assert done.returncode == 1
    assert "no encryption" in done.stderr


@LIBPQ
def test_prefer_goes_on_without_encryption_where_there_is_no_token(
    worker: Worker, database: PostgreSQL, libpq: str
) -> None:
    connect = "import os, psycopg; psycopg.connect(os.environ['DATABASE_URL'])"
    for mode, complaint in (("prefer", "no encryption"), ("require", "GSSAPI encryption required but")):
        env = {"DATABASE_URL": database.url("reports", mode), "KRB5CCNAME": "FILE:/nowhere", "PSYCOPG_IMPL": libpq}
        done = worker.run("python", "-c", connect, **env)
        assert done.returncode == 1
        assert complaint in done.stderr


def test_gssapi_and_the_binary_psycopg_share_a_process(worker: Worker, database: PostgreSQL, realm: Realm) -> None:
    """Two copies of libkrb5, the machine's and the wheel's, of different versions."""
    code = (
        "import gssapi, krbrefresh; krbrefresh.activate(); print(gssapi.Credentials(usage='initiate').name)\n"
        "exec(open('postgresql.py').read())\n"
        "print(gssapi.Credentials(usage='initiate').name)\n"
        "files = {line.split()[-1] for line in open('/proc/self/maps')}\n"
        "print(sum('/libkrb5-' in file or '/libkrb5.' in file for file in files))"
    )
    env = {"DATABASE_URL": database.url("reports", "require"), "PSYCOPG_IMPL": "binary"}
    etl = realm.principal("etl")
    assert worker.says("python", "-c", code, **env).splitlines() == [etl, f"True True {etl}", etl, "2"]


# --- HTTP ---


HTTP = ["http_requests.py", "http_httpx.py", "http_gssapi.py", "curl.sh", "java.sh", "java_native.sh"]


@pytest.mark.parametrize("name", HTTP)
def test_http_in_one_request(worker: Worker, web: Apache, realm: Realm, name: str) -> None:
    before = len(web.requests())
    assert worker.says(name, URL=web.url) == realm.principal("etl")

    def logged() -> list[str]:  # which is after the answer
        statuses = [status for status, *_ in web.requests()[before:]]
        return statuses if "200" in statuses else []

    assert eventually(logged, within=10) == ["200"]


def test_curl_fails_where_it_is_refused(worker: Worker, web: Apache) -> None:
    curl = ("curl", "--silent", "--output", "/dev/null", "--negotiate", "--user", ":", web.url)
    assert worker.run(*curl, KRB5CCNAME="FILE:/nowhere").returncode == 0  # without --fail
    assert worker.run(*curl, "--fail", KRB5CCNAME="FILE:/nowhere").returncode == 22


def test_the_workers_leave_the_token_as_it_is(worker: Worker, web: Apache, database: PostgreSQL, token: Path) -> None:
    for name in ("postgresql.py", "http_requests.py"):
        worker.says(name, URL=web.url, DATABASE_URL=database.url("reports", "require"), PSYCOPG_IMPL="python")
    assert not krbrefresh.load(token).modified
    assert krbrefresh.load(token).services == ()


# --- a token without a TGT ---


@pytest.fixture(scope="module")
def without_tgt(
    runner: Runner, worker: Worker, realm: Realm, realm_env: dict[str, str], session_place: Path
) -> Iterator[Worker]:
    """A worker whose token holds tickets for the two servers and nothing else."""
    place = directory_at(session_place / "without-tgt")
    keytab = realm.keytab(place / "keytab", "etl")
    services = [realm.principal("HTTP/localhost"), realm.principal("postgres/localhost")]
    keys = {"lifetime": LIFETIME, "services": services, "include_tgt": False}
    with publishing(runner, place, realm.principal("etl"), keytab, realm_env, **keys) as (path, _):
        token = krbrefresh.load(path)
        assert (token.has_tgt, token.services) == (False, tuple(services))
        yield Worker(worker.directory, {**worker.env, "KRBREFRESH_CCACHE": str(path)})


@pytest.mark.parametrize("name", [name for name in HTTP if name != "java.sh"])
def test_http_without_a_tgt(without_tgt: Worker, web: Apache, realm: Realm, name: str) -> None:
    assert without_tgt.says(name, URL=web.url) == realm.principal("etl")


@LIBPQ
def test_postgresql_without_a_tgt(without_tgt: Worker, database: PostgreSQL, realm: Realm, libpq: str) -> None:
    env = {"DATABASE_URL": database.url("reports", "require"), "PSYCOPG_IMPL": libpq}
    assert without_tgt.says("postgresql.py", **env) == f"True True {realm.principal('etl')}"


def test_pure_java_needs_the_tgt(without_tgt: Worker, web: Apache) -> None:
    done = without_tgt.run("java.sh", URL=web.url)
    assert done.returncode == 1
    assert "Unable to obtain Principal Name for authentication" in done.stderr


# --- Active Directory ---


def test_ldapsearch(domain_worker: Worker, domain: Domain) -> None:
    env = {"LDAP_URL": "ldap://localhost", "LDAP_BASE": "DC=ad,DC=test"}
    said = domain_worker.says("ldapsearch.sh", "etl", **env).splitlines()
    assert said[:2] == ["dn: CN=etl,CN=Users,DC=ad,DC=test", "userPrincipalName: etl@ad.test"]


def test_samba_takes_no_token_that_ends_within_two_minutes(
    runner: Runner, domain_worker: Worker, domain: Domain, place: Path
) -> None:
    env = domain_env(domain_worker)
    principal, keytab = account(domain, place, "brief")
    with publishing(runner, place, principal, keytab, env, domain.wrapper, lifetime=110) as (path, _):
        done = domain_worker.run("kvno", "-q", "-c", str(path), "ldap/localhost")
    assert done.returncode == 1
    assert "Ticket expired while getting credentials for ldap/localhost" in done.stderr
