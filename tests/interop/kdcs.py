"""What a case asks of a KDC, whoever's it is."""

from __future__ import annotations

import struct
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

from tests.faults import keytab_bytes

HOURS = 3600.0
CAP = 8 * HOURS  # the most that any of these KDCs gives, where more is asked for


class CannotHoldError(Exception):
    """The case cannot hold for this KDC; the message says why, for the table."""


class Kdc(ABC):
    """A running KDC, with what the cases ask of it. What it cannot do raises CannotHoldError."""

    family: str  # "mit", "heimdal" or "ad"
    realm: str
    version: str

    @property
    @abstractmethod
    def env(self) -> dict[str, str]:
        """The environment of a process that uses this realm."""

    @property
    def wrapper(self) -> tuple[str, ...]:
        """What to start a process with that has to reach the KDC."""
        return ()

    @property
    @abstractmethod
    def krb5_conf(self) -> Path:
        """The krb5.conf of clients and services."""

    @property
    def address(self) -> str:
        """Where the KDC listens, as krb5.conf has it."""
        return "127.0.0.1"

    @abstractmethod
    def account(self, name: str) -> str:
        """The principal of a new account."""

    @abstractmethod
    def keytab(self, path: Path, principal: str) -> Path:
        """A keytab with the principal's keys of now."""

    def service(self, name: str) -> str:
        """The principal of a new service."""
        return self.account(name)

    @property
    def web(self) -> str:
        """A service for whoever needs one."""
        if self._web is None:
            self._web = self.service(self._web_name)
        return self._web

    _web: str | None = None
    _web_name = "HTTP/web.test"

    @abstractmethod
    def rekey(self, principal: str) -> None:
        """Gives the account another key than the one in its keytab."""

    @abstractmethod
    def delete(self, principal: str) -> None:
        """There is no such account any more."""

    @abstractmethod
    def disable(self, principal: str) -> None:
        """The account is there and may not be used."""

    @abstractmethod
    def expire(self, principal: str) -> None:
        """The account's own end is in the past."""

    @abstractmethod
    def expire_password(self, principal: str) -> None:
        """The password has to be changed; the keytab has its key."""

    def lockout(self, principal: str) -> int:
        """How many bad attempts lock the account; from now on."""
        raise CannotHoldError("it has no lockout")

    def cap(self, principal: str) -> None:  # noqa: B027
        """No ticket of the account lives for more than CAP; where that is so for all of them, nothing."""

    def alias(self, principal: str, name: str) -> str:
        """Another name of the account, whose ticket is the account's."""
        raise CannotHoldError("it has no aliases")

    def enterprise(self, principal: str) -> tuple[str, str]:
        """An enterprise name (RFC 6806) of the account, and the principal that the KDC makes of it."""
        raise CannotHoldError("it has no enterprise names")

    def restricted(self, enctype: str) -> AbstractContextManager[Kdc]:
        """A KDC of this kind for which, as for its clients and services, no other enctype exists."""
        raise CannotHoldError(f"it has no {enctype}")

    def demanding_fast(self) -> AbstractContextManager[Kdc]:
        """A KDC of this kind that preauthenticates by keytab in FAST armour alone."""
        raise CannotHoldError("it has no setting that demands FAST")

    def stop(self) -> None:
        """It answers nobody any more."""
        raise NotImplementedError

    def trust(self, other: Kdc, password: str) -> None:
        """Clients of this realm can use services of the other one, whose KDC has been told the same."""
        raise NotImplementedError

    def host(self, name: str) -> str:
        """The principal of a machine."""
        return self.account(f"host/{name}.test")

    # How an exchange without armour fails where FAST is demanded; how the hint begins, if it is not the reason's own.
    without_fast: tuple[str, str | None] = (
        "enctype_unsupported",
        "the account has no key of an enctype that the keytab has, or the KDC requires FAST armour",
    )

    def demand_fast(self, principal: str) -> None:  # noqa: B027
        """Nothing but what `demanding_fast` does, where that is for the whole KDC."""

    def denied(self, name: str) -> str | None:
        """Why a client of that name gets no service ticket from such a KDC, whoever asks; None where it gets one."""
        return None

    def without_pac(self) -> AbstractContextManager[Kdc]:
        """A KDC of this kind that puts no PAC in its tickets."""
        raise NotImplementedError

    def unmet(self, name: str) -> None:  # noqa: B027
        """Raises CannotHoldError where no account can have that name."""


def filtered(source: Path, path: Path, enctype: int) -> Path:
    """A keytab with the keys of that enctype alone."""
    path.write_bytes(_START + b"".join(raw for raw, found, _ in _entries(source) if found == enctype))
    return path


def renamed(path: Path, principal: str) -> Path:
    """The keytab, once its keys are that principal's."""
    path.write_bytes(
        _START + b"".join(keytab_bytes(principal, enctype=enctype, key=key)[2:] for _, enctype, key in _entries(path))
    )
    return path


_START = b"\x05\x02"


def _entries(path: Path) -> Iterator[tuple[bytes, int, bytes]]:
    """A keytab's entries as they stand there, each with its key (MIT, "Keytab file format", version 2)."""
    data = path.read_bytes()
    at = len(_START)
    while at < len(data):
        (length,) = struct.unpack_from(">i", data, at)
        end = at + 4 + abs(length)  # a negative one is a hole
        if length > 0:
            (components,) = struct.unpack_from(">H", data, at + 4)
            field = at + 6
            for _ in range(components + 1):  # the realm first
                field += 2 + struct.unpack_from(">H", data, field)[0]
            field += 9  # the name's type, the time, the version
            enctype, size = struct.unpack_from(">HH", data, field)
            yield data[at:end], enctype, data[field + 4 : field + 4 + size]
        at = end
