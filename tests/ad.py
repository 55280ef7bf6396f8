"""A real Active Directory on loopback: Samba's domain controller, of which the KDC alone runs where nothing else is
asked for, in a network of its own.

Its clock, and that of every process in its environment, is a file: `advance` makes hours pass for all of them at once,
for the wall clock and the monotonic one alike, and nobody can tell it from waiting. (libfaketime; what waits in the
kernel in the meantime is not woken by it.)
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TypeVar

import pytest

from tests.processes import libfaketime
from tests.support import eventually, program

PYTHON = "/usr/bin/python3"  # Debian's, which has samba's modules
PASSWORD = "Passw0rd."

# Into a network of its own: there its ports are free, and any number of controllers can run.
_LOOPBACK_UP = """
import fcntl, os, socket, struct, sys
with socket.socket() as probe:
    fcntl.ioctl(probe, 0x8914, struct.pack("16sh14x", b"lo", 1))  # SIOCSIFFLAGS, IFF_UP
os.execvp(sys.argv[1], sys.argv[1:])
"""

_SMB_CONF = """[global]
netbios name = DC
workgroup = ADTEST
realm = {realm}
server role = active directory domain controller
server services = {services}
interfaces = lo
bind interfaces only = yes
private dir = {place}/private
lock directory = {place}
state directory = {place}/state
cache directory = {place}/cache
binddns dir = {place}/bind-dns
pid directory = {place}
ncalrpc dir = {place}/ncalrpc
log file = {place}/log
max log size = 0
log level = 1 kerberos:3
{options}
"""

_KRB5_CONF = """[libdefaults]
default_realm = {realm}
rdns = false
dns_canonicalize_hostname = false
dns_lookup_kdc = false
[realms]
{realm} = {{
    kdc = 127.0.0.1
}}
"""


_MODIFY = """
import json, sys, ldb
from samba.auth import system_session
from samba.param import LoadParm
from samba.samdb import SamDB
parameters = LoadParm()
parameters.load(sys.argv[1])
database = SamDB(session_info=system_session(), lp=parameters)
(found,) = database.search(expression=f"(sAMAccountName={ldb.binary_encode(sys.argv[2])})", attrs=[])
message = ldb.Message(found.dn)
for key, value in json.loads(sys.argv[3]).items():
    message[key] = ldb.MessageElement(value, ldb.FLAG_MOD_REPLACE, key)
database.modify(message)
"""


class Clock:
    """A clock that can be put forward, for every process that has `env`."""

    def __init__(self, directory: Path) -> None:
        self._file = directory / "clock"
        self.ahead = 0.0
        self.advance(0)

    @property
    def env(self) -> dict[str, str]:
        return {
            "LD_PRELOAD": libfaketime(),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_NO_CACHE": "1",
            "NO_FAKE_STAT": "1",
        }

    def advance(self, seconds: float) -> None:
        self.ahead += seconds
        new = self._file.with_suffix(".new")
        new.write_text(f"+{self.ahead:.3f}\n")
        new.rename(self._file)

    def now(self) -> float:
        return time.time() + self.ahead


class Domain:
    """A domain and its controller."""

    realm = "AD.TEST"
    provisioning: tuple[str, ...] = ()  # more arguments of `samba-tool domain provision`

    def __init__(
        self, place: Path, ports: dict[str, int], *, programs: tuple[str, ...] = (), options: tuple[str, ...] = ()
    ) -> None:
        """`programs` is what starts a program of another Samba than this system's; `options` are lines of its
        smb.conf."""
        self.place = place
        self._ports = ports
        self._programs = programs
        self._options = options
        self.clock = Clock(place)
        self._conf = place / "smb.conf"
        self.krb5_conf = place / "krb5.conf"
        self.krb5_conf.write_text(_KRB5_CONF.format(realm=self.realm))
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def env(self) -> dict[str, str]:
        """The environment of a process that uses this domain, in its time."""
        return {"PATH": os.environ["PATH"], "KRB5_CONFIG": str(self.krb5_conf), **self._time}

    @property
    def _time(self) -> dict[str, str]:
        """The environment of what goes by this domain's clock."""
        return self.clock.env

    @property
    def wrapper(self) -> tuple[str, ...]:
        """What to start a process with, so that it is in the controller's network."""
        assert self._process is not None
        return ("nsenter", f"--net=/proc/{self._process.pid}/ns/net")

    def provision(self) -> None:
        made = self.place / "made"
        self._run(
            "samba-tool", "domain", "provision", f"--realm={self.realm}", "--domain=ADTEST", "--server-role=dc",
            "--dns-backend=NONE", f"--adminpass={PASSWORD}Admin1", "--host-name=dc", "--host-ip=127.0.0.1",
            "--option=interfaces=lo", "--option=bind interfaces only=yes", f"--targetdir={made}", "--quiet",
            *self.provisioning,
        )  # fmt: skip
        for part in ("private", "state", "bind-dns"):
            (made / part).rename(self.place / part)
        (self.place / "cache").mkdir()
        instead = {"services": ", ".join(self._ports), "options": "\n".join(self._options)}
        self._conf.write_text(_SMB_CONF.format(realm=self.realm, place=self.place, **instead))

    def start(self) -> None:
        self._process = subprocess.Popen(
            ["unshare", "--net", PYTHON, "-c", _LOOPBACK_UP, *self._programs, "samba", "-F", "--no-process-group",
             "-M", "single", "-s", str(self._conf)],
            env={**os.environ, **self._time},
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        eventually(self._listens, within=30, what=f"the domain controller serves {self._ports}")

    def stop(self) -> None:
        if self._process is not None:
            try:
                os.killpg(self._process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            self._process.wait()

    def user(self, name: str) -> str:
        """The principal of a new account."""
        self.tool("user", "create", name, PASSWORD + name)
        return f"{name}@{self.realm}"

    def keytab(self, path: Path, name: str) -> Path:
        """A keytab with the account's keys of now."""
        path.unlink(missing_ok=True)
        self.tool("domain", "exportkeytab", str(path), f"--principal={name}")
        return path

    def tool(self, *arguments: str) -> str:
        """What samba-tool says, in the domain's time."""
        return self._run("samba-tool", *arguments, "-s", str(self._conf))

    def attribute(self, name: str, attribute: str) -> str:
        """An attribute of an account; empty where it has none."""
        for line in self.tool("user", "show", name, f"--attributes={attribute}").splitlines():
            key, _, value = line.partition(": ")
            if key == attribute:
                return value
        return ""

    def answers(self, name: str) -> list[tuple[float, str]]:
        """When the controller answered the account's requests for a TGT, by its own clock, and what: SUCCESS,
        ERR_PREAUTH_FAILED, ERR_CLIENT_REVOKED ... Without those that were to be made again in another way: with a key,
        by TCP."""
        found = []
        moment = 0.0
        for line in (self.place / "log").read_text(errors="replace").splitlines():
            if line.startswith("["):  # [2026/11/24 02:27:52.326691,  3] where(what)
                moment = datetime.strptime(line[1:27], "%Y/%m/%d %H:%M:%S.%f").timestamp()
            words = line.split()
            if words[:2] != ["Kerberos:", "AS-REQ"] or f"{name}@{self.realm}" not in words[3:5]:
                continue
            if words[2] not in ("ERR_PREAUTH_REQUIRED", "KRB5KRB_ERR_RESPONSE_TOO_BIG"):
                found.append((moment, words[2]))
        return found

    def _listens(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (
            "samba has ended: " + (self.place / "log").read_text(errors="replace")[-2000:]
        )
        if os.readlink(f"/proc/{self._process.pid}/ns/net") == os.readlink("/proc/self/ns/net"):
            return False  # unshare has not done its work yet
        table = Path(f"/proc/{self._process.pid}/net/tcp").read_text().splitlines()[1:]
        open_ports = {line.split()[1] for line in table}
        return all(f"0100007F:{port:04X}" in open_ports for port in self._ports.values())

    def modify(self, name: str, **attributes: str | list[str]) -> None:
        """Replaces attributes of an account (`name` is its sAMAccountName)."""
        self._run(PYTHON, "-c", _MODIFY, str(self._conf), name, json.dumps(attributes))

    def _run(self, *command: str) -> str:
        done = subprocess.run(
            [*self._programs, *command], env={**os.environ, **self._time}, capture_output=True, text=True, timeout=100
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


Kind = TypeVar("Kind", bound=Domain)


@contextmanager
def active_directory(
    kind: type[Kind] = Domain,  # type: ignore[assignment]
    *,
    programs: tuple[str, ...] = (),
    options: tuple[str, ...] = (),
    **more: int,
) -> Iterator[Kind]:
    """A domain of its own with a running controller; gone, with all its files, at the end. Needs root.

    Beside the KDC, `more` of Samba's services run, each with the port that it is known by (`ldap=389`).
    """
    for name in () if programs else ("samba", "samba-tool"):
        program(name)
    if subprocess.run(["unshare", "--net", "true"], capture_output=True).returncode:
        pytest.skip("no network of its own can be made here: needs CAP_SYS_ADMIN")
    place = Path(tempfile.mkdtemp(prefix="krbrefresh-ad-"))
    place.chmod(0o711)
    domain = kind(place, {"kdc": 88, **more}, programs=programs, options=options)
    try:
        domain.provision()
        domain.start()
        yield domain
    finally:
        domain.stop()
        shutil.rmtree(place, ignore_errors=True)
