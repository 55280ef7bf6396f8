"""What there is to see of a credential from outside: its files, its published token, its lock. Looks and tells; whoever
called decides. For a thread: a file system may hang.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from ..client import load
from ..errors import LayoutError, TokenError
from ..token import Token
from . import layout, publish
from .credential import Credential
from .files import MISSING, Files, Identity, identities, identity
from .layout import Destination
from .lock import Lock

T = TypeVar("T")


async def look_at_each(
    look: Callable[[Credential], T], credentials: list[Credential], patience: float
) -> tuple[dict[Credential, T], dict[Credential, asyncio.Future[Any]]]:
    """What a look at each of them has found; and whose file system hangs, with what is done when that is over.

    One thread looks at all of them. Once it is held up for `patience` seconds, each that is left gets one of its own,
    and as long.
    """
    left = list(reversed(credentials))
    found: dict[Credential, T] = {}
    at: Credential | None = None

    def next_one() -> Credential | None:
        try:
            return left.pop()
        except IndexError:
            return None

    def all_of_them() -> None:
        nonlocal at
        while credential := next_one():
            at = credential
            found[credential] = look(credential)

    def one(credential: Credential) -> None:
        found[credential] = look(credential)

    task = asyncio.ensure_future(asyncio.to_thread(all_of_them))
    before: Credential | None = None
    while not task.done() and (at is None or at is not before):
        before = at
        await asyncio.wait({task}, timeout=patience)
    tasks: dict[Credential, asyncio.Future[Any]] = {}
    while credential := next_one():
        tasks[credential] = asyncio.ensure_future(asyncio.to_thread(one, credential))
    if tasks:
        await asyncio.wait(tasks.values(), timeout=patience)
    for done in (task, *tasks.values()):
        if done.done():
            done.result()
    late = {credential: tasks.get(credential, task) for credential in credentials if credential not in found}
    return {credential: found[credential] for credential in credentials if credential not in late}, late


class Round:
    """A look at several credentials, one after the other, from the end of `left`: what was `seen`, or whose lock was
    `free`, which one it is `at`, whether it is `over` since nobody waits for it, and which it has `passed` by."""

    def __init__(self, left: list[Credential]) -> None:
        self.left = left
        self.seen: list[Seen] = []
        self.free: list[Credential] = []
        self.at: Credential | None = None
        self.over = False
        self.passed: list[Credential] = []


@dataclass(frozen=True)
class Seen:
    """A credential that had made so many `tries` by then. `files` are those an exchange would work with; `identity`
    says which file is at the token's path, `missing` that there is none, `unknown` that it cannot be told, and `token`
    what it is where it is another one than before; `elsewhere`: another refresher has the lock; `exposed`: what is
    wrong with the keytab's mode.
    """

    credential: Credential
    tries: int
    files: Files
    identity: Identity
    token: Token | None
    missing: bool
    unknown: bool
    elsewhere: bool
    exposed: str | None


def published(credential: Credential) -> Token | None:
    """The token at its path; where ours are signed, only one that is signed by our key. None where there is none."""
    try:
        token = load(credential.settings.ccache)
        if credential.settings.signing_key:
            if credential.verifier is None:
                return None
            token.verify(credential.verifier)
    except TokenError:
        return None
    return token


def see(credential: Credential, tries: int, lock: Lock) -> Seen:
    """A look at a credential that is led."""
    path = credential.settings.ccache
    which = identity(path)
    token = None
    if which != credential.identity:
        token = published(credential)
    try:
        exposed = layout.judge_keytab(credential.settings.keytab, {})
    except LayoutError as error:
        exposed = str(error)
    return Seen(
        credential=credential,
        tries=tries,
        files=identities(credential.paths),
        identity=which,
        token=token,
        missing=which in MISSING,
        unknown=len(which) == 1 and which not in MISSING,
        elsewhere=publish.is_held_elsewhere(Destination.of(credential.settings), lock),
        exposed=exposed,
    )


def find(credential: Credential) -> tuple[Files, tuple[Token, Identity] | None, bool]:
    """Which files an exchange works with, what is published, and whether it has the configured mode and group."""
    files = identities(credential.paths)
    path = credential.settings.ccache
    which = identity(path)
    if credential.standby and which == credential.identity:  # as it was a second ago
        return files, None, False
    token = published(credential)
    if token is None:
        return files, None, False
    return files, (token, which), publish.looks_right(Destination.of(credential.settings))
