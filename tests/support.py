"""What several tests need: a realm with short orders, conditions with a deadline, ccaches made by hand."""

from __future__ import annotations

import os
import select
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest

from krbrefresh import ccache
from krbrefresh.ccache import Credential, Principal

T = TypeVar("T")


class SilentKdc:
    """A port on loopback that takes everything and answers nothing."""

    def __enter__(self) -> SilentKdc:
        self._tcp = socket.socket()
        self._udp = socket.socket(type=socket.SOCK_DGRAM)
        self._tcp.bind(("127.0.0.1", 0))
        self._udp.bind(self._tcp.getsockname())
        self._tcp.listen()
        self.port: int = self._tcp.getsockname()[1]
        return self

    def __exit__(self, *_: object) -> None:
        self._tcp.close()
        self._udp.close()

    def asked(self) -> bool:
        """Whether anybody has asked it."""
        return bool(select.select([self._tcp, self._udp], [], [], 0)[0])


def eventually(condition: Callable[[], T], *, within: float, every: float = 0.02, what: str = "") -> T:
    """The first true value of `condition`, or a failure once `within` seconds have passed."""
    deadline = time.monotonic() + within
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {within} s: {what or condition}")
        time.sleep(every)


def program(name: str) -> str:
    """The path of a program that a test cannot do without. Where it is missing the test is skipped and says so; on CI
    (the variable `CI` is set) it fails, because nobody reads there what was skipped."""
    found = shutil.which(name)
    if found is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"{name} is not installed here")
    return found


class Realm:
    """A k5test realm, with what the tests ask of it."""

    def __init__(self, kdc: Any) -> None:
        self.kdc = kdc
        self.name: str = kdc.realm
        self.directory = Path(kdc.tmpdir)
        self._known: set[str] = set()

    @property
    def env(self) -> dict[str, str]:
        """The environment of a process that uses this realm: no ccache, no keytab."""
        return {
            "PATH": os.environ["PATH"],
            "KRB5_CONFIG": self.kdc.env["KRB5_CONFIG"],
            "KRB5_KDC_PROFILE": self.kdc.env["KRB5_KDC_PROFILE"],
            "KRB5RCACHEDIR": self.kdc.tmpdir,
        }

    def kadmin(self, query: str) -> str:
        return str(self.kdc.run_kadminl(query).decode())

    def principal(self, name: str, **options: str) -> str:
        """The full name of a principal that exists from now on, with kadmin's options (`maxlife="20 seconds"`)."""
        full = f"{name}@{self.name}"
        if full not in self._known:
            self.kadmin(f"addprinc -randkey {full}")
            self._known.add(full)
        if options:
            self.kadmin("modprinc " + " ".join(f'-{key} "{value}"' for key, value in options.items()) + f" {full}")
        return full

    def keytab(self, path: Path, *names: str, **options: str) -> Path:
        """A keytab with the current keys of these principals, which are made where they are missing."""
        for name in names:
            self.kadmin(f"ktadd -norandkey -k {path} {self.principal(name, **options)}")
        return path

    def kinit(self, keytab: Path, name: str, ccache_path: Path, *options: str) -> Path:
        full = f"{name}@{self.name}"
        subprocess.run(
            ["kinit", "-k", "-t", str(keytab), "-c", f"FILE:{ccache_path}", *options, full], env=self.env, check=True
        )
        return ccache_path

    def log(self) -> str:
        """What the KDC has logged so far."""
        return (self.directory / "kdc.log").read_text()


ETL = Principal.parse("etl@EXAMPLE.COM")


def ticket(client: Principal = ETL, server: Principal | None = None, **fields: Any) -> Credential:
    """A ticket in the form of a ccache entry, valid for an hour from now where `fields` do not say otherwise."""
    now = int(time.time())
    fields = {
        "enctype": 18,
        "key": b"\x5e" * 32,
        "authtime": now,
        "endtime": now + 3600,
        "ticket": b"\x61" * 300,
        **fields,
    }
    return Credential(client, server or ccache.tgt_name(client.realm), **fields)


def ccache_bytes(
    *entries: Credential, principal: Principal = ETL, kdc_offset: tuple[int, int] | None = (0, 0)
) -> bytes:
    """A whole version 4 ccache."""
    return (
        ccache.encode_header(kdc_offset)
        + ccache.encode_principal(principal)
        + b"".join(ccache.encode_credential(entry) for entry in entries)
    )
