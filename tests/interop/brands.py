"""The KDCs of the table, and where a run leaves what became of the cases."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

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
    Brand("mit-forky", "MIT krb5, Debian testing (14)", lambda: mit(root("forky"))),
    Brand("heimdal-bookworm", "Heimdal, Debian 12", lambda: heimdal(root("heimdal-bookworm"))),
    Brand("heimdal-forky", "Heimdal, Debian testing (14)", lambda: heimdal(root("heimdal-forky"))),
    Brand("samba", "Samba AD, Debian 12", lambda: samba(None)),
    Brand("samba-trixie", "Samba AD, Debian 13", lambda: samba(root("trixie"))),
    Brand("samba-forky", "Samba AD, Debian testing (14)", lambda: samba(root("forky"))),
)
