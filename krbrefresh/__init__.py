"""krbrefresh: a Kerberos token that is always fresh, for workers that never see a keytab.

This is the worker's half, on the standard library alone. docs/worker.md shows how to use it.
"""

from .client import activate, assert_no_keytab, credentials, load, validate, wait, watch
from .errors import (
    CorruptError,
    ExpiredError,
    ExpiringError,
    KeyFileError,
    KeytabReadableError,
    KrbrefreshError,
    MissingError,
    NoTicketError,
    NotInstalledError,
    NotYetValidError,
    TokenError,
    UnreadableError,
    UntrustedError,
    WrongPrincipalError,
)
from .token import Manifest, Token

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .watcher import Watcher

__version__ = "0.1.0"

__all__ = [
    "CorruptError",
    "ExpiredError",
    "ExpiringError",
    "KeyFileError",
    "KeytabReadableError",
    "KrbrefreshError",
    "Manifest",
    "MissingError",
    "NoTicketError",
    "NotInstalledError",
    "NotYetValidError",
    "Token",
    "TokenError",
    "UnreadableError",
    "UntrustedError",
    "Watcher",
    "WrongPrincipalError",
    "activate",
    "assert_no_keytab",
    "credentials",
    "load",
    "validate",
    "wait",
    "watch",
]


def __getattr__(name: str) -> object:
    if name == "Watcher":  # who watches nothing need not import threads and a log
        from .watcher import Watcher

        return Watcher
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
