"""krbrefresh: a Kerberos token that is always fresh, for workers that never see a keytab.

This is the worker's half, on the standard library alone. docs/worker.md shows how to use it.
"""

from .client import activate, load, validate, wait
from .errors import (
    CorruptError,
    ExpiredError,
    ExpiringError,
    KrbrefreshError,
    MissingError,
    NoTicketError,
    NotYetValidError,
    TokenError,
    UnreadableError,
    UntrustedError,
    WrongPrincipalError,
)
from .token import Manifest, Token

__version__ = "0.1.0"

__all__ = [
    "CorruptError",
    "ExpiredError",
    "ExpiringError",
    "KrbrefreshError",
    "Manifest",
    "MissingError",
    "NoTicketError",
    "NotYetValidError",
    "Token",
    "TokenError",
    "UnreadableError",
    "UntrustedError",
    "WrongPrincipalError",
    "activate",
    "load",
    "validate",
    "wait",
]
