"""Heimdal's KDC, of other releases: it cannot be installed beside MIT's."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from krbrefresh.demo.realm import free_portbase
from tests.interop.kdcs import CAP, CannotHoldError, Kdc
from tests.interop.roots import Root
from tests.support import eventually

_KRB5_CONF = """[libdefaults]
default_realm = {realm}
dns_lookup_kdc = false
dns_lookup_realm = false
dns_canonicalize_hostname = false
rdns = false
{libdefaults}
[realms]
{realm} = {{
    kdc = 127.0.0.1:{port}
}}
[kadmin]
default_keys = {keys}
require-preauth = true
[kdc]
database = {{
    dbname = {place}/db
    mkey_file = {place}/master-key
    acl_file = {place}/acl
    log_file = {place}/db.log
}}
[logging]
default = FILE:{place}/log
"""

_USUAL = ("aes256-cts-hmac-sha1-96", "aes128-cts-hmac-sha1-96")


class Heimdal(Kdc):
    """A realm with its database in `place`."""

    family = "heimdal"
    realm = "HEIMDAL.TEST"

    def __init__(self, root: Root, place: Path, enctypes: tuple[str, ...] = _USUAL) -> None:
        self._root = root
        self._place = place
        self.version = root.version("heimdal-kdc")
        self._port = free_portbase()
        keys = " ".join(f"{name}:pw-salt" for name in enctypes)
        alone = f"permitted_enctypes = {enctypes[0]}\ndefault_etypes = {enctypes[0]}\n" if len(enctypes) == 1 else ""
        self.krb5_conf.write_text(
            _KRB5_CONF.format(realm=self.realm, port=self._port, place=place, keys=keys, libdefaults=alone)
        )
        self.krb5_conf.chmod(0o644)
        (place / "acl").touch()
        self._kadmin("init", "--realm-max-ticket-life=1 day", "--realm-max-renewable-life=7 days", self.realm)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def krb5_conf(self) -> Path:
        return self._place / "krb5.conf"

    @property
    def env(self) -> dict[str, str]:
        return {"PATH": "/usr/local/bin:/usr/bin:/bin", "KRB5_CONFIG": str(self.krb5_conf)}

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._port}"

    def start(self) -> None:
        self._process = subprocess.Popen(
            [*self._root.enter, "/usr/lib/heimdal-servers/kdc", f"--config-file={self.krb5_conf}",
             f"--ports={self._port}", "--addresses=127.0.0.1"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        eventually(self._listens, within=30, what="Heimdal's KDC listens")

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def _listens(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self._place / "log").read_text()
        table = Path("/proc/net/udp").read_text() + Path("/proc/net/tcp").read_text()
        return table.count(f"0100007F:{self._port:04X} ") >= 2

    def _kadmin(self, *words: str) -> str:
        done = subprocess.run(
            [*self._root.enter, "/usr/bin/kadmin.heimdal", "--local", f"--config-file={self.krb5_conf}", *words],
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert not done.stderr, done.stderr  # its exit status says little
        return done.stdout

    def account(self, name: str) -> str:
        full = f"{name}@{self.realm}"
        self._kadmin("add", "--random-key", "--use-defaults", "--attributes=requires-pre-auth", full)
        return full

    def keytab(self, path: Path, principal: str) -> Path:
        path.unlink(missing_ok=True)
        self._kadmin("ext_keytab", f"--keytab={path}", principal)
        return path

    def rekey(self, principal: str) -> None:
        self._kadmin("cpw", "--random-key", principal)

    def delete(self, principal: str) -> None:
        self._kadmin("delete", principal)

    def disable(self, principal: str) -> None:
        self._kadmin("modify", "--attributes=+disallow-all-tix", principal)

    def expire(self, principal: str) -> None:
        self._kadmin("modify", "--expiration-time=2020-01-01", principal)

    def expire_password(self, principal: str) -> None:
        self._kadmin("modify", "--pw-expiration-time=2020-01-01", principal)

    def lockout(self, principal: str) -> int:
        raise CannotHoldError("it locks no account after bad attempts")

    def cap(self, principal: str) -> None:
        self._kadmin("modify", f"--max-ticket-life={CAP:.0f} s", principal)

    def alias(self, principal: str, name: str) -> str:
        full = f"{name}@{self.realm}"
        self._kadmin("modify", f"--alias={full}", principal)
        return full

    def enterprise(self, principal: str) -> tuple[str, str]:
        self._kadmin("modify", "--alias=first.last@corp.example", principal)
        return rf"first.last\@corp.example@{self.realm}", principal

    @contextmanager
    def restricted(self, enctype: str) -> Iterator[Kdc]:
        with heimdal(self._root, (enctype,)) as kdc:
            yield kdc

    def trust(self, other: Kdc, password: str) -> None:
        for pair in ((self.realm, other.realm), (other.realm, self.realm)):
            self._kadmin("add", f"--password={password}", "--use-defaults", "krbtgt/{}@{}".format(*pair))


@contextmanager
def heimdal(root: Root, enctypes: tuple[str, ...] = _USUAL) -> Iterator[Heimdal]:
    """A realm with preauthentication whose accounts have keys of these enctypes."""
    place = Path(tempfile.mkdtemp(prefix="krbrefresh-heimdal-"))
    place.chmod(0o711)
    kdc = None
    try:
        kdc = Heimdal(root, place, enctypes)
        kdc.start()
        yield kdc
    finally:
        if kdc:
            kdc.stop()
        shutil.rmtree(place, ignore_errors=True)
