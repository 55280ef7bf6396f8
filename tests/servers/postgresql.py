"""Debian's PostgreSQL: a cluster of its own in a temporary directory, on loopback."""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.faults import free_port
from tests.support import eventually, program

USER = "postgres"  # the package's; initdb wants a user that the machine knows, and not root


class PostgreSQL:
    """A running server with the role `etl`, who owns no database, and the databases `reports` and `archive`."""

    def __init__(self, place: Path, keytab: Path, pg_hba: str, env: dict[str, str]) -> None:
        user = pwd.getpwnam(USER)
        self._as_user = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
        self._place = place
        self._env = {**env, "KRB5RCACHEDIR": str(place), "LC_ALL": "C"}
        self._log = place / "log"
        self.port = free_port()
        os.chown(place, user.pw_uid, user.pw_gid)
        os.chown(keytab, user.pw_uid, user.pw_gid)
        self._run("initdb", "--no-sync", "--auth=peer", "--encoding=UTF8", "-D", str(place / "data"))
        # Peer on its socket, for what makes the databases; for the rest, what the recipe says and nothing else.
        (place / "data" / "pg_hba.conf").write_text("local all postgres peer\n" + pg_hba)
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": str(place),
            "krb_server_keyfile": str(keytab),
            "fsync": "off",
        }
        options = [f"--{name}={value}" for name, value in settings.items()]
        with open(self._log, "wb") as log:
            self._process = subprocess.Popen(
                [_program("postgres"), "-D", str(place / "data"), *options],
                env=self._env, stdout=log, stderr=log, cwd="/", start_new_session=True, **self._as_user,
            )  # fmt: skip

    def prepare(self) -> None:
        def ready() -> bool:
            assert self._process.poll() is None, "postgres has ended: " + self.log()
            with contextlib.suppress(AssertionError):
                self.sql("SELECT 1")
                return True
            return False

        eventually(ready, within=60, every=0.1, what="postgres answers on its socket")
        self.sql("CREATE ROLE etl LOGIN", "CREATE DATABASE reports", "CREATE DATABASE archive")

    def sql(self, *statements: str) -> str:
        """What the statements come to for the superuser."""
        commands = [f"--command={statement}" for statement in statements]
        return self._run("psql", "-XAtq", "-h", str(self._place), "-p", str(self.port), "-d", "postgres", *commands)

    def url(self, database: str, gssencmode: str) -> str:
        return f"postgresql://etl@localhost:{self.port}/{database}?gssencmode={gssencmode}"

    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def stop(self) -> None:
        self._process.send_signal(signal.SIGINT)  # "fast": ends the sessions
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def _run(self, name: str, *arguments: str) -> str:
        done = subprocess.run(
            [_program(name), *arguments],
            env=self._env, capture_output=True, text=True, timeout=60, cwd="/", **self._as_user,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout.strip()


def _program(name: str) -> str:
    """Debian keeps the server's programs off the PATH, a directory for each version; the newest one's."""
    found = Path("/usr/lib/postgresql").glob(f"*/bin/{name}")
    newest = max(found, key=lambda path: int(re.sub(r"\D", "", path.parts[4])), default=None)
    return str(newest) if newest else program(name)


@contextlib.contextmanager
def postgresql(place: Path, keytab: Path, pg_hba: str, env: dict[str, str]) -> Iterator[PostgreSQL]:
    """A server in the directory `place`, which becomes its user's, that accepts with `keytab`."""
    program("psql")
    server = PostgreSQL(place, keytab, pg_hba, env)
    try:
        server.prepare()
        yield server
    finally:
        server.stop()
