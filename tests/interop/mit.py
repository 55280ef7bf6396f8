"""MIT's KDC: this system's, and those of other releases."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from krbrefresh.demo.realm import throwaway_realm
from tests.interop.kdcs import CAP, CannotHoldError, Kdc
from tests.interop.roots import Root, installed_version
from tests.support import Realm

THRESHOLD = 3  # bad attempts


class Mit(Kdc):
    """A realm of k5test's, whose KDC may be another release's."""

    family = "mit"

    def __init__(self, root: Root | None, kdc: Any) -> None:
        self._root = root
        self.kdc = kdc
        self._realm = Realm(kdc)
        self.realm = kdc.realm
        self.version = root.version("krb5-kdc") if root else installed_version("krb5-kdc")

    @property
    def env(self) -> dict[str, str]:
        return self._realm.env

    @property
    def krb5_conf(self) -> Path:
        return Path(self.env["KRB5_CONFIG"])

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.kdc.portbase}"

    def _kadmin(self, *words: str) -> str:
        said = self._realm.kadmin(" ".join(f'"{word}"' for word in words))
        assert "while" not in said, said  # its exit status says nothing
        return said

    def account(self, name: str) -> str:
        full = f"{name}@{self.realm}"
        self._kadmin("addprinc", "-randkey", full)
        return full

    def keytab(self, path: Path, principal: str) -> Path:
        path.unlink(missing_ok=True)
        self._kadmin("ktadd", "-norandkey", "-k", str(path), principal)
        return path

    def host(self, name: str) -> str:
        principal = super().host(name)
        self._kadmin("modprinc", "-requires_preauth", principal)  # armour comes before any preauthentication
        return principal

    def rekey(self, principal: str) -> None:
        self._kadmin("cpw", "-randkey", principal)

    def delete(self, principal: str) -> None:
        self._kadmin("delprinc", "-force", principal)

    def disable(self, principal: str) -> None:
        self._kadmin("modprinc", "-allow_tix", principal)

    def expire(self, principal: str) -> None:
        self._kadmin("modprinc", "-expire", "2020-01-01", principal)

    def expire_password(self, principal: str) -> None:
        self._kadmin("modprinc", "-pwexpire", "2020-01-01", principal)

    def lockout(self, principal: str) -> int:
        self._kadmin("addpol", "-maxfailure", str(THRESHOLD), "strict")
        self._kadmin("modprinc", "-policy", "strict", principal)
        return THRESHOLD

    def cap(self, principal: str) -> None:
        self._kadmin("modprinc", "-maxlife", f"{CAP:.0f} seconds", principal)

    def alias(self, principal: str, name: str) -> str:
        full = f"{name}@{self.realm}"
        if tuple(int(number) for number in self.version.split(".")[:2]) < (1, 22):
            raise CannotHoldError("its database (db2) has aliases from 1.22 on")
        self._kadmin("add_alias", full, principal)
        return full

    def enterprise(self, principal: str) -> tuple[str, str]:
        return self.alias(principal, r"first.last\@corp.example"), principal

    def denied(self, name: str) -> str | None:
        # Measured: HEADER_PAC in its log, KDC_ERR_BADOPTION for every client.
        if "\\/" in name or "\\\\" in name:
            return (
                "the KDC gives a client of this name a TGT and no service ticket, whoever asks (`kvno` as well; "
                "`HEADER_PAC` in its log); with `disable_pac = true` in its kdc.conf it gives both, and there is a "
                "context"
            )
        return None

    @contextmanager
    def without_pac(self) -> Iterator[Kdc]:
        with mit(self._root, kdc_conf={"disable_pac": "true"}) as kdc:
            yield kdc

    @contextmanager
    def restricted(self, enctype: str) -> Iterator[Kdc]:
        with mit(
            self._root,
            kdc_conf={"supported_enctypes": f"{enctype}:normal", "master_key_type": enctype},
            libdefaults={"permitted_enctypes": enctype},
        ) as kdc:
            yield kdc

    @contextmanager
    def demanding_fast(self) -> Iterator[Kdc]:
        with mit(self._root, plugins={"kdcpreauth": {"disable": "encrypted_timestamp"}}) as kdc:
            yield kdc

    def stop(self) -> None:
        self.kdc.stop_kdc()

    def trust(self, other: Kdc, password: str) -> None:
        for pair in ((self.realm, other.realm), (other.realm, self.realm)):
            self._kadmin("addprinc", "-pw", password, "krbtgt/{}@{}".format(*pair))


@contextmanager
def mit(
    root: Root | None, *, realm: str = "MIT.TEST", kdc_conf: dict[str, str] | None = None, **more: Any
) -> Iterator[Mit]:
    """A realm with preauthentication, whose KDC is `root`'s or this system's."""
    preauthenticated = {"default_principal_flags": "+preauth", **(kdc_conf or {})}
    with tempfile.TemporaryDirectory(prefix="krbrefresh-interop-") as directory:
        path = os.environ["PATH"]
        if root:
            shims = root.shims(
                Path(directory, "bin"), krb5kdc="/usr/sbin/krb5kdc", kdb5_util="/usr/sbin/kdb5_util",
                kadmin_local="/usr/sbin/kadmin.local",
            )  # fmt: skip
            os.environ["PATH"] = f"{shims}{os.pathsep}{path}"
        try:
            made = throwaway_realm(realm, kdc_conf=preauthenticated, **more)
            kdc = made.__enter__()
        finally:
            os.environ["PATH"] = path
        try:
            yield Mit(root, kdc)
        finally:
            made.__exit__(None, None, None)
