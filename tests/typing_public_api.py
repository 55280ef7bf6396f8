"""The public API as a type checker sees it: `make types` checks this file, and nobody runs it.

What is wrong here is marked with the error that it has to be; a mark that is not needed is an error itself.
"""

from __future__ import annotations

import datetime
import os
import pathlib

import gssapi
from typing_extensions import assert_type

import krbrefresh
from krbrefresh import Manifest, Token, TokenError, Watcher
from krbrefresh._flags import TicketFlags

PATH = pathlib.Path("/run/krbrefresh/default/krb5cc")
MINUTE = datetime.timedelta(minutes=1)


def reading() -> None:
    assert_type(krbrefresh.load(), Token)
    assert_type(krbrefresh.load("FILE:/t/krb5cc"), Token)
    assert_type(krbrefresh.load(path=PATH), Token)
    assert_type(krbrefresh.validate(), Token)
    assert_type(
        krbrefresh.validate(
            PATH, principal="etl@R", min_remaining=MINUTE, services=("a/b@R",), public_key=PATH, clock_skew=1.5
        ),
        Token,
    )
    assert_type(krbrefresh.validate(None, principal=None, services=["a@R"], public_key=None), Token)
    assert_type(krbrefresh.validate(principal="etl@R", public_key=["a.pub", PATH]), Token)
    assert_type(krbrefresh.validate(services=(name for name in ["a@R"]), min_remaining=0), Token)

    krbrefresh.load(b"/t/krb5cc")  # type: ignore[arg-type]
    krbrefresh.load(3)  # type: ignore[arg-type]
    krbrefresh.validate("/t", "etl@R")  # type: ignore[call-arg]  # checks are named
    krbrefresh.validate(principal=b"etl@R")  # type: ignore[arg-type]
    krbrefresh.validate(min_remaining="60s")  # type: ignore[arg-type]
    krbrefresh.validate(services=[3])  # type: ignore[list-item]
    krbrefresh.validate(public_key=3)  # type: ignore[arg-type]
    krbrefresh.validate(timeout=3)  # type: ignore[call-arg]


def waiting() -> None:
    assert_type(krbrefresh.wait(), Token)
    assert_type(krbrefresh.wait("/t", timeout=MINUTE, principal="etl@R", min_remaining=0, clock_skew=MINUTE), Token)
    assert_type(krbrefresh.wait(timeout=0.5, services=["a@R"], public_key=os.fspath(PATH)), Token)
    assert_type(krbrefresh.activate(), Token)
    assert_type(krbrefresh.activate(PATH, private=True, timeout=5, principal="etl@R", public_key=[PATH]), Token)

    krbrefresh.wait("/t", 60)  # type: ignore[call-arg]
    krbrefresh.wait(timeout="60s")  # type: ignore[arg-type]
    krbrefresh.wait(principle="etl@R")  # type: ignore[call-arg]
    krbrefresh.wait(min_remaining="60s")  # type: ignore[arg-type]
    krbrefresh.wait(private=True)  # type: ignore[call-arg]
    krbrefresh.activate(True)  # type: ignore[arg-type]
    krbrefresh.activate(private="yes")  # type: ignore[arg-type]


def watching() -> None:
    def reconnect(token: Token) -> None: ...

    def count(token: Token) -> int:
        return token.generation or 0

    def nothing() -> None: ...

    watcher = krbrefresh.watch(reconnect)
    assert_type(watcher, Watcher)
    assert_type(watcher.token, Token | None)
    assert_type(watcher.error, krbrefresh.KrbrefreshError | None)
    assert_type(watcher.stop(), None)
    with krbrefresh.watch(count, PATH, interval=MINUTE, principal="etl@R", public_key="k.pub") as entered:
        assert_type(entered, Watcher)
    krbrefresh.watch(lambda token: print(token.principal), interval=5)

    krbrefresh.watch()  # type: ignore[call-arg]
    krbrefresh.watch(nothing)  # type: ignore[arg-type]
    krbrefresh.watch(reconnect, PATH, 5)  # type: ignore[call-arg]
    krbrefresh.watch(reconnect, timeout=5)  # type: ignore[call-arg]


def using() -> None:
    assert_type(krbrefresh.credentials(), gssapi.Credentials)
    assert_type(krbrefresh.credentials(PATH), gssapi.Credentials)
    assert_type(krbrefresh.assert_no_keytab(), None)

    krbrefresh.credentials(usage="accept")  # type: ignore[call-arg]
    krbrefresh.assert_no_keytab("/etc/krb5.keytab")  # type: ignore[call-arg]


def a_token(token: Token) -> None:
    assert_type(token.path, str)
    assert_type(token.principal, str)
    assert_type(token.realm, str)
    assert_type(token.starts_at, datetime.datetime)
    assert_type(token.expires_at, datetime.datetime)
    assert_type(token.renew_until, datetime.datetime | None)
    assert_type(token.remaining, datetime.timedelta)
    assert_type(token.flags, TicketFlags)
    assert_type(TicketFlags.FORWARDABLE in token.flags, bool)
    assert_type(token.services, tuple[str, ...])
    assert_type(token.has_tgt, bool)
    assert_type(token.manifest, Manifest | None)
    assert_type(token.generation, int | None)
    assert_type(token.modified, bool)

    token.principal = "other@R"  # type: ignore[misc]  # it is read-only
    token.expires_at = datetime.datetime.now()  # type: ignore[misc]
    token.key  # type: ignore[attr-defined]  # noqa: B018
    token.renew_until.isoformat()  # type: ignore[union-attr]  # not every ticket can be renewed
    token.manifest.generation  # type: ignore[union-attr]  # noqa: B018  # kinit writes none


def a_manifest(manifest: Manifest) -> None:
    assert_type(manifest.generation, int)
    assert_type(manifest.issued_at, int)
    assert_type(manifest.expires_at, int)
    assert_type(manifest.window_opens_at, int)
    assert_type(manifest.principal, str)
    assert_type(manifest.refresher, str)
    assert_type(manifest.settings, str)
    assert_type(manifest.sha256, str)
    assert_type(manifest.key_id, str | None)


def errors() -> None:
    try:
        krbrefresh.validate()
    except (krbrefresh.ExpiredError, krbrefresh.ExpiringError, krbrefresh.NotYetValidError) as error:
        assert_type(error.reason, str)
    except (krbrefresh.MissingError, krbrefresh.UnreadableError, krbrefresh.CorruptError) as error:
        assert_type(error.hint, str)
    except (krbrefresh.UntrustedError, krbrefresh.WrongPrincipalError, krbrefresh.NoTicketError) as error:
        told: TokenError = error
    except TokenError as error:
        told = error
        root: krbrefresh.KrbrefreshError = told
        exception: Exception = root
        print(exception)
    except (krbrefresh.KeyFileError, krbrefresh.KeytabReadableError, krbrefresh.NotInstalledError) as error:
        root = error
        not_a_token: TokenError = error  # type: ignore[assignment]
        print(not_a_token)
