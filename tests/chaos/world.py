"""A realm whose KDC stands behind a proxy, with others of it that have another clock, for many principals."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from krbrefresh.demo.realm import free_portbase, throwaway_realm
from tests.faults import kadmin_all
from tests.processes import faked_clock
from tests.support import Realm

CLOCKS = ("+2h", "-2h", "+20m", "-1d")
SERVICE = "host/service.test"


@dataclass
class World:
    """`kdcs`: ports, that of the KDC first, then those of the ones with other clocks. Every second principal has to
    preauthenticate."""

    realm: Realm
    keytab: Path
    principals: list[str]
    kdcs: list[int] = field(default_factory=list)

    @property
    def service(self) -> str:
        return f"{SERVICE}@{self.realm.name}"

    def krb5_conf(self, path: Path, port: int, *, tcp: bool) -> Path:
        """A krb5.conf with the KDC at that port, asked over TCP alone or over UDP first."""
        path.write_text(
            f"[libdefaults]\n default_realm = {self.realm.name}\n dns_lookup_kdc = false\n dns_lookup_realm = false\n"
            f" rdns = false\n dns_canonicalize_hostname = false\n udp_preference_limit = {1 if tcp else 1465}\n"
            f"[realms]\n {self.realm.name} = {{\n  kdc = 127.0.0.1:{port}\n }}\n"
        )
        path.chmod(0o644)
        return path


@contextlib.contextmanager
def world(directory: Path, principals: int) -> Iterator[World]:
    with throwaway_realm() as kdc, contextlib.ExitStack() as stack:
        realm = Realm(kdc)
        names = [f"p{index:03}@{realm.name}" for index in range(principals)]
        keytab = directory / "keytab"
        kadmin_all(realm, [
            f"addprinc -randkey {SERVICE}",
            *(f"addprinc -randkey {name}" for name in names[::2]),
            *(f"addprinc -randkey +requires_preauth {name}" for name in names[1::2]),
            *(f"ktadd -norandkey -k {keytab} {name}" for name in names),
        ])  # fmt: skip
        here = World(realm, keytab, names, [kdc.portbase])
        profile = Path(kdc.env["KRB5_KDC_PROFILE"])
        for clock in CLOCKS:
            port = free_portbase()
            own = directory / f"kdc{port}.conf"
            own.write_text(profile.read_text().replace(f"127.0.0.1:{kdc.portbase}", f"127.0.0.1:{port}"))
            process = subprocess.Popen(
                ["krb5kdc", "-n"],
                env={**os.environ, **kdc.env, "KRB5_KDC_PROFILE": str(own), **faked_clock(clock)},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            stack.callback(process.wait)
            stack.callback(process.terminate)  # libfaketime cleans up after itself
            here.kdcs.append(port)
        yield here
