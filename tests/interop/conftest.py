"""The KDCs, each started once, and what became of the cases."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.interop.heimdal import heimdal
from tests.interop.kdcs import Kdc
from tests.interop.mit import mit
from tests.interop.roots import root
from tests.interop.samba import samba
from tests.processes import REPOSITORY

RESULTS = Path(REPOSITORY, ".interop", "results")


@dataclass(frozen=True)
class Brand:
    """A KDC as it stands in the table: `name` in the file, `title` in the table."""

    name: str
    title: str
    start: Callable[[], AbstractContextManager[Kdc]]


BRANDS = (
    Brand("mit", "MIT krb5, Debian 12", lambda: mit(None)),
    Brand("mit-trixie", "MIT krb5, Debian 13", lambda: mit(root("trixie"))),
    Brand("mit-forky", "MIT krb5, Debian testing", lambda: mit(root("forky"))),
    Brand("heimdal-bookworm", "Heimdal, Debian 12", lambda: heimdal(root("heimdal-bookworm"))),
    Brand("heimdal-forky", "Heimdal, Debian testing", lambda: heimdal(root("heimdal-forky"))),
    Brand("samba", "Samba AD, Debian 12", lambda: samba(None)),
    Brand("samba-trixie", "Samba AD, Debian 13", lambda: samba(root("trixie"))),
    Brand("samba-forky", "Samba AD, Debian testing", lambda: samba(root("forky"))),
)


@pytest.fixture(scope="session")
def kdc(request: pytest.FixtureRequest) -> Iterator[Kdc]:
    with request.param.start() as running:
        RESULTS.mkdir(parents=True, exist_ok=True)
        about = {"name": request.param.name, "title": request.param.title, "version": running.version}
        (RESULTS / f"{request.param.name}.json").write_text(json.dumps(about))
        yield running
