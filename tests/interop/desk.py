"""Who sits at a KDC: a refresher with a keytab, a worker with its token, a service. Each is a user of its own."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from krbrefresh import ccache
from krbrefresh.errors import REFRESH_REASONS
from krbrefresh.token import Token
from tests.interop.kdcs import Kdc
from tests.processes import GROUP, REFRESHER, WORKER, Refresher, Runner, refresher, toml

# Both ends of a context, with mutual authentication; they talk in lines. The worker's has no keytab, the service's no
# ccache.
_WORKER = """
import sys, gssapi, krbrefresh
path, principal, service = sys.argv[1:]
krbrefresh.validate(path, principal=principal)
krbrefresh.activate(path, principal=principal, timeout=10)
context = gssapi.SecurityContext(
    name=gssapi.Name(service, gssapi.NameType.kerberos_principal), creds=krbrefresh.credentials(), usage="initiate",
    mech=gssapi.MechType.kerberos, flags=gssapi.RequirementFlag.mutual_authentication)
print(context.step().hex(), flush=True)
context.step(bytes.fromhex(input()))
print(context.unwrap(bytes.fromhex(input())).message.decode())
"""
_SERVICE = """
import sys, gssapi
creds = gssapi.Credentials(usage="accept", store={"keytab": "FILE:" + sys.argv[1]})
context = gssapi.SecurityContext(creds=creds, usage="accept")
print(context.step(bytes.fromhex(input())).hex())
print(context.wrap(str(context.initiator_name).encode(), True).message.hex())
"""


_ENCTYPES = {  # RFC 3962, RFC 8009
    17: "aes128-cts-hmac-sha1-96",
    18: "aes256-cts-hmac-sha1-96",
    19: "aes128-cts-hmac-sha256-128",
    20: "aes256-cts-hmac-sha384-192",
}


@dataclass
class Ran:
    """What `krbrefresh once` came to."""

    status: int
    log: str
    path: Path

    @property
    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.splitlines() if line.startswith("{")]

    def named(self, name: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["event"] == name]


class Desk:
    """One case's refresher, worker and service, with their files in `place`."""

    def __init__(self, runner: Runner, place: Path, kdc: Kdc) -> None:
        self.runner, self.place, self.kdc = runner, place, kdc
        self.env = {**kdc.env, "KRB5RCACHEDIR": str(place)}

    def at(self, name: str, kdc: Kdc) -> Desk:
        """A desk at another KDC."""
        place = self.place / name
        place.mkdir()
        place.chmod(0o755)
        return Desk(self.runner, place, kdc)

    @property
    def ccache(self) -> Path:
        return self.place / "volume" / "token" / "krb5cc"

    def keytab(self, principal: str, name: str = "keytab") -> Path:
        return self.kdc.keytab(self.place / name, principal)

    def _configured(self, principal: str, keytab: Path, keys: dict[str, Any]) -> Path:
        for path in (keytab, keys.get("fast_keytab")):
            if path and path.exists():
                os.chown(path, REFRESHER, REFRESHER)
                path.chmod(0o400)
        volume = self.ccache.parent.parent
        volume.mkdir(exist_ok=True)
        os.chown(volume, REFRESHER, REFRESHER)
        config = self.place / "krbrefresh.toml"
        named = {"principal": principal, "keytab": keytab, "ccache": self.ccache, "group": GROUP, **keys}
        config.write_text(toml(refresher={"log_format": "json"}, kerberos=named))
        return config

    def once(self, principal: str, keytab: Path, **keys: Any) -> Ran:
        """`krbrefresh once`, run by the refresher's user."""
        config = self._configured(principal, keytab, keys)
        done = self._run(REFRESHER, "-m", "krbrefresh", "once", "--config", str(config))
        return Ran(done.returncode, done.stderr, self.ccache)

    @contextmanager
    def runs(self, principal: str, **keys: Any) -> Iterator[Refresher]:
        """`krbrefresh run`, run by the refresher's user."""
        config = self._configured(principal, self.keytab(principal), keys)
        wrapper = (*self.kdc.wrapper, *self._who(REFRESHER))
        with refresher(self.runner, config, self._env(None), wrapper=wrapper) as running:
            yield running
            running.stop()

    def gets(self, principal: str, keytab: Path | None = None, *, whose: str | None = None, **keys: Any) -> Token:
        """The token of the principal, published, and accepted by a worker as `whose` (the principal's)."""
        ran = self.once(principal, keytab or self.keytab(principal), **keys)
        assert ran.status == 0, ran.log
        assert not ran.named("refresh_failed"), ran.log
        checked = self._run(
            WORKER, "-m", "krbrefresh", "check", "--json", "--principal", whose or principal, str(ran.path)
        )
        assert checked.returncode == 0, checked.stdout + checked.stderr
        said = json.loads(checked.stdout)
        assert (said["valid"], said["principal"]) == (True, whose or principal)
        return Token.parse(ran.path.read_bytes())

    def fails(self, reason: str, principal: str, keytab: Path, *, hint: str | None = None, **keys: Any) -> str:
        """The reason that is reported: this one, with a hint that begins like `hint` (the reason's own without one);
        nothing is published."""
        ran = self.once(principal, keytab, **keys)
        found = ran.named("refresh_failed")
        assert (ran.status, [event["reason"] for event in found]) == (1, [reason]), ran.log
        assert found[0]["hint"].startswith(hint or REFRESH_REASONS[reason][1]), ran.log
        assert not ran.path.exists()
        return reason

    def enctypes(self) -> set[str]:
        """Of the session keys in the token."""
        parsed = ccache.parse(self.ccache.read_bytes()).credentials  # the manifest, which has no key, among them
        return {_ENCTYPES[entry.enctype] for entry in parsed if entry.enctype}

    def opens(self, service: str, *, whose: str, kdc: Kdc | None = None, env: dict[str, str] | None = None) -> None:
        """A worker's context with the service, by the token: both sides are sure of each other, and the service knows
        whose it is. `kdc` is the service's, if it is another one."""
        keytab = (kdc or self.kdc).keytab(self.place / "service.keytab", service)
        with self._popen(WORKER, "-c", _WORKER, str(self.ccache), whose, service, env=env) as worker:
            assert worker.stdin is not None
            assert worker.stdout is not None
            begun = worker.stdout.readline()
            if not begun:
                raise AssertionError(worker.communicate(timeout=30)[1])
            accepted = subprocess.run(
                [self.runner.python, "-c", _SERVICE, str(keytab)], input=begun, env=self._env(env),
                capture_output=True, text=True, timeout=30,
            )  # fmt: skip
            told, errors = worker.communicate(accepted.stdout, timeout=30)
        assert accepted.returncode == 0, accepted.stderr
        assert worker.returncode == 0, errors
        assert told.strip() == whose

    def kvno(self, service: str) -> str:
        """What MIT's own client says to the token, where it gets no ticket of the service."""
        done = subprocess.run(
            ["kvno", "-c", str(self.ccache), service], env=self._env(None), capture_output=True, text=True, timeout=30
        )
        assert done.returncode != 0, done.stdout
        return done.stderr.partition(" while ")[0].partition(": ")[2]

    def works(self, principal: str, keytab: Path | None = None, *, whose: str | None = None, **keys: Any) -> str:
        """The principal gets a token, and opens a service of its realm by it."""
        self.gets(principal, keytab, whose=whose, **keys)
        self.opens(self.kdc.web, whose=whose or principal)
        return "context"

    @property
    def without_kdc(self) -> dict[str, str]:
        """An environment in which no KDC of the realm answers."""
        conf = self.place / "offline.conf"
        text = self.kdc.krb5_conf.read_text()
        assert f"kdc = {self.kdc.address}\n" in text
        conf.write_text(text.replace(f"kdc = {self.kdc.address}\n", "kdc = 127.0.0.1:1\n"))
        conf.chmod(0o644)
        return {"KRB5_CONFIG": str(conf)}

    def _env(self, env: dict[str, str] | None) -> dict[str, str]:
        return {**self.runner.env, **self.env, "LC_ALL": "C.UTF-8", **(env or {})}

    def _who(self, uid: int) -> tuple[str, ...]:
        return ("setpriv", f"--reuid={uid}", f"--regid={uid}", f"--groups={GROUP}")

    def _popen(self, uid: int, *command: str, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*self.kdc.wrapper, *self._who(uid), self.runner.python, *command],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd="/",
            env=self._env(env),
        )  # fmt: skip

    def _run(self, uid: int, *command: str) -> subprocess.CompletedProcess[str]:
        with self._popen(uid, *command) as process:
            out, err = process.communicate(timeout=60)
        return subprocess.CompletedProcess(command, process.returncode, out, err)
