"""Debian's Apache with mod_auth_gssapi, on loopback. Says who asks."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults import free_port
from tests.support import eventually, program

USER = 64994  # nobody's
_MODULES = Path("/usr/lib/apache2/modules")

_CONF = """
ServerRoot {place}
ServerName localhost
Listen 127.0.0.1:{port}
PidFile {place}/pid
DefaultRuntimeDir {place}
ErrorLog {place}/error.log
LogFormat "%>s %u %{{local}}p/%{{remote}}p %k" line
CustomLog {place}/access.log line
DocumentRoot {place}/pages
TypesConfig /dev/null
AddOutputFilter INCLUDES .shtml
<Directory {place}/pages>
    Options +Includes
</Directory>
KeepAliveTimeout 60
MaxKeepAliveRequests 0
"""


class Apache:
    """A running server, whose page /whoami.shtml says the name that Apache knows the client by."""

    def __init__(self, place: Path, keytab: Path, auth: str, env: dict[str, str]) -> None:
        self._place = place
        self.port = free_port()
        self.url = f"http://localhost:{self.port}/whoami.shtml"
        (place / "pages").mkdir()
        (place / "pages" / "whoami.shtml").write_text('<!--#echo var="REMOTE_USER" -->\n')
        os.chown(keytab, USER, USER)
        os.chown(place, USER, USER)
        modules = ["mpm_event", "authn_core", "authz_core", "authz_user", "auth_gssapi", "mime", "filter", "include"]
        lines = [f"LoadModule {name}_module {_MODULES}/mod_{name}.so" for name in modules]
        conf = place / "apache.conf"
        conf.write_text("\n".join(lines) + _CONF.format(place=place, port=self.port) + auth)
        self._process = subprocess.Popen(
            [program("apache2"), "-DFOREGROUND", "-f", str(conf)],
            env={**env, "KRB5RCACHEDIR": str(place)},
            user=USER, group=USER, extra_groups=[], cwd="/", start_new_session=True,
        )  # fmt: skip

    def prepare(self) -> None:
        def listens() -> bool:
            assert self._process.poll() is None, "apache2 has ended: " + self.log()
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 5):
                return True
            return False

        eventually(listens, within=30, what="apache2 listens")

    def log(self) -> str:
        path = self._place / "error.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def requests(self) -> list[list[str]]:
        """Of each request so far: the status, the user, the ports of its connection, its number on that."""
        return [line.split() for line in (self._place / "access.log").read_text().splitlines()]

    def stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


@contextlib.contextmanager
def apache(place: Path, keytab: Path, auth: str, env: dict[str, str]) -> Iterator[Apache]:
    """A server in the directory `place`, which becomes its user's, that accepts with `keytab` as `auth` says."""
    if not (_MODULES / "mod_auth_gssapi.so").exists():
        (pytest.fail if os.environ.get("CI") else pytest.skip)("mod_auth_gssapi is not installed here")
    server = Apache(place, keytab, auth, env)
    try:
        server.prepare()
        yield server
    finally:
        server.stop()
