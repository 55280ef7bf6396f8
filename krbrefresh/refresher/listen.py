"""Where the HTTP server listens. Apart from it, so that reading the settings loads no HTTP."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

_HOST_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?\Z")


@dataclass(frozen=True)
class Listen:
    """An address, and the files for TLS where it is wanted: `client_ca` asks clients for a certificate, too.

    An empty host stands for all addresses; port 0 for any that is free.
    """

    host: str
    port: int
    certificate: str | None = None
    key: str | None = None
    client_ca: str | None = None

    @classmethod
    def parse(cls, text: str) -> Listen:
        """`HOST:PORT`, `[IPV6]:PORT`, or `:PORT` for all addresses. Raises ValueError."""
        host, colon, port = text.rpartition(":")
        bracketed = host.startswith("[") and host.endswith("]")
        host = host[1:-1] if bracketed else host
        if not colon or not port.isascii() or not port.isdigit() or int(port) > 65535 or not _is_host(host, bracketed):
            raise ValueError(f"{text!r} is not an address: write HOST:PORT, like 127.0.0.1:9464 or [::1]:9464")
        return cls(host, int(port))

    @property
    def files(self) -> tuple[str, ...]:
        """The files that TLS needs."""
        return tuple(filter(None, (self.certificate, self.key, self.client_ca)))

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def _is_host(host: str, bracketed: bool) -> bool:
    try:
        return (ipaddress.ip_address(host).version == 6) == bracketed
    except ValueError:
        return not bracketed and (not host or bool(_HOST_NAME.match(host)))
