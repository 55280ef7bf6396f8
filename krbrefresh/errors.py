"""One tree of errors. Each error knows its `reason`, a word that is the same in JSON, logs, metrics and exit
messages, and a `hint` that says what to do next.

A worker meets `TokenError`; an operator of the refresher meets `RefreshError`, `SettingsError` and `LayoutError`.
No error carries key material.
"""

from __future__ import annotations


class KrbrefreshError(Exception):
    """The root of the tree.

    `str(error)` says what failed and with what, `error.reason` is its word, `error.hint` is what to do next.
    """

    reason: str = "internal"
    hint: str = "this is a defect of krbrefresh: please report it with the log around it"

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        if hint is not None:
            self.hint = hint


class TokenError(KrbrefreshError):
    """The token at a path does not pass. Every subclass is one reason."""


class MissingError(TokenError):
    """`missing`: there is no file at the path."""

    reason = "missing"
    hint = "is the refresher running, and is its token directory mounted here?"


class UnreadableError(TokenError):
    """`unreadable`: this process may not read the path, or it is not a regular file."""

    reason = "unreadable"
    hint = "the worker must be in the token's group, and the path must be a plain file in the mounted directory"


class CorruptError(TokenError):
    """`corrupt`: the bytes are not one whole ccache: empty, torn, altered, or of a version that is not read."""

    reason = "corrupt"
    hint = "something other than the refresher wrote this file; a refresh replaces it"


class UntrustedError(TokenError):
    """`untrusted`: the token is not signed as it has to be."""

    reason = "untrusted"
    hint = "nobody with the signing key published these bytes: find out who can write to the token directory"


class WrongPrincipalError(TokenError):
    """`wrong_principal`: the token is somebody else's."""

    reason = "wrong_principal"
    hint = "this worker is looking at another credential's ccache, or the refresher's principal is not the one expected"


class NoTicketError(TokenError):
    """`no_ticket`: the ccache holds neither a TGT nor the service tickets that were asked for."""

    reason = "no_ticket"
    hint = "the ccache was initialised but never filled, or the refresher does not fetch this service's ticket"


class NotYetValidError(TokenError):
    """`not_yet_valid`: the ticket starts later than the clock skew forgives."""

    reason = "not_yet_valid"
    hint = "the ticket is postdated, or this machine's clock is behind: compare it with the KDC's"


class ExpiredError(TokenError):
    """`expired`: the ticket has ended."""

    reason = "expired"
    hint = "the refresher has not renewed it in time: its log and /readyz say why"


class ExpiringError(TokenError):
    """`expiring`: the ticket is valid, but for less time than was asked for."""

    reason = "expiring"
    hint = "ask for less than the ticket's lifetime minus its expiry window, or see why the refresh is late"


class SettingsError(KrbrefreshError):
    """The settings cannot be used: the message names the source, the key and what is wrong with it. Exit status 2."""

    reason = "settings"
    hint = "see docs/settings.md"


class KeyFileError(KrbrefreshError, ValueError):
    """A file is not the signing or public key that it has to be: the message names it. Exit status 2."""

    reason = "key_file"
    hint = "make a pair with: krbrefresh keygen PATH; PATH stays with the refresher, PATH.pub goes to the workers"


class CommandError(KrbrefreshError):
    """The command of `krbrefresh exec` cannot be started; `cause` is the system's word for it. Exit status 126 or 127,
    as a shell says it."""

    reason = "command"
    hint = "name a program that is there and may be run"

    def __init__(self, cause: OSError) -> None:
        super().__init__(str(cause))
        self.cause = cause


class CopyError(KrbrefreshError):
    """No private copy of the token can be made here: the message has the system's word for it."""

    reason = "copy"
    hint = "it needs $XDG_RUNTIME_DIR, or $TMPDIR or /tmp, that this user may write to, and some kilobytes there"


class KeytabReadableError(KrbrefreshError):
    """`keytab_readable`: this process could read a keytab, which a worker must not."""

    reason = "keytab_readable"
    hint = (
        "take it out of the worker: no mount, no Secret, no copy in the image; where it has to be on this machine, "
        "mode 0400 and another owner"
    )


class LayoutError(KrbrefreshError):
    """A file or directory is not as it must be for a token to be safe there. Exit status 2 at start."""

    reason = "layout"
    hint = "see docs/security.md"


class NotInstalledError(KrbrefreshError):
    """An optional part of krbrefresh is not installed here. Exit status 2."""

    reason = "not_installed"
    hint = "the refresher needs the extra [refresher]: pip install 'krbrefresh[refresher]'"


# How a reason decides the retry; refresher/policy.py has the times.
TRANSIENT = "transient"  # heals by itself: back off from a second to a minute
REJECTED = "rejected"  # the KDC said no, and asking again can lock the account: minutes to an hour
LOOK_AGAIN = "look_again"  # a file or a name here is wrong: look at the file again, leave the KDC alone

# Every reason of a refresh that fails: its way of retrying, and what to do about it.
REFRESH_REASONS: dict[str, tuple[str, str]] = {
    "kdc_unreachable": (TRANSIENT, "check that the KDCs named in krb5.conf run and that port 88 is open to them"),
    "kdc_timeout": (TRANSIENT, "a KDC accepted the request and never answered: check its load and the network"),
    "clock_skew": (TRANSIENT, "compare this machine's clock with the KDC's, or allow kdc_timesync in krb5.conf"),
    "publish_failed": (TRANSIENT, "check the token directory: free space, read-only mount, owner, mode, group"),
    "internal": (TRANSIENT, "this is a defect, or an answer nobody has seen yet: please report it"),
    "key_rejected": (REJECTED, "the keytab's key is not the account's: export a new keytab (its kvno is behind)"),
    "client_revoked": (REJECTED, "the account is disabled, locked out or expired: unlock it at the KDC"),
    "client_unknown": (REJECTED, "the KDC has no such principal: check its spelling, case and realm"),
    "client_expired": (REJECTED, "the account or its password has expired: renew it at the KDC, export a new keytab"),
    "policy_refused": (
        REJECTED,
        "the KDC's policy refuses this request: check the account's flags, lifetimes and need of FAST armour",
    ),
    "keytab_missing": (LOOK_AGAIN, "mount the keytab, or correct the path of it"),
    "keytab_unreadable": (LOOK_AGAIN, "let the refresher's user read the keytab: check owner, mode and directories"),
    "keytab_invalid": (LOOK_AGAIN, "the file is not a keytab, or an empty one: export it again"),
    "principal_not_in_keytab": (LOOK_AGAIN, "compare the principal with what klist -k shows for this keytab"),
    "enctype_unsupported": (LOOK_AGAIN, "export the keytab with aes256-cts or aes128-cts keys"),
    "krb5_config": (LOOK_AGAIN, "correct krb5.conf: its syntax, default_realm, and the realm's kdc (or DNS for it)"),
    "service_unknown": (LOOK_AGAIN, "the KDC has no such service principal: check its spelling and realm"),
}


class RefreshError(KrbrefreshError):
    """A refresh failed. `reason` is a key of `REFRESH_REASONS`; `code` is libkrb5's number where there is one."""

    def __init__(self, reason: str, message: str, *, hint: str | None = None, code: int | None = None) -> None:
        super().__init__(message, hint=REFRESH_REASONS[reason][1] if hint is None else hint)
        self.reason = reason
        self.code = code

    @property
    def retry(self) -> str:
        """`TRANSIENT`, `REJECTED` or `LOOK_AGAIN`."""
        return REFRESH_REASONS[self.reason][0]
