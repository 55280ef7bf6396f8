"""A token directory without a refresher: what a test publishes, sealed and, if it likes, signed."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import krbrefresh
from krbrefresh.signature import PrivateKey, generate
from krbrefresh.token import Token, seal
from tests.support import ETL, ccache_bytes, ticket


def sealed(generation: int) -> bytes:
    """An unsigned token of that generation, with an hour to live."""
    body = ccache_bytes(ticket(endtime=int(time.time()) + 3600))
    return seal(
        body, generation=generation, issued_at=generation, window_opens_at=generation, refresher="test", settings="test"
    )


class Signed:
    """A token directory, and a refresher's key with its public half."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.path = directory, directory / "krb5cc"
        self.key, self.public = directory / "key", directory / "key.pub"
        self.key_id = generate(str(self.key))
        self.signer = PrivateKey.load(str(self.key))

    def seal(self, body: bytes | None = None, *, generation: int = 1000, signer: Any = None) -> bytes:
        now = int(time.time())
        return seal(
            ccache_bytes(ticket()) if body is None else body,
            generation=generation,
            issued_at=now,
            window_opens_at=now + 2400,
            refresher="here",
            settings="0f0f",
            signer=signer or self.signer,
        )

    def publish(self, data: bytes | None = None, *, generation: int = 1000) -> None:
        """Replaces what is there, as a refresher does; without `data` a token of that generation."""
        data = self.seal(generation=generation) if data is None else data
        temporary = self.path.with_suffix(".new")
        temporary.write_bytes(data)
        temporary.rename(self.path)

    def validate(self, **checks: Any) -> Token:
        return krbrefresh.validate(self.path, **{"principal": str(ETL), "public_key": self.public, **checks})
