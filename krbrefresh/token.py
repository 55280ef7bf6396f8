"""A published ccache with its meaning: whose it is, until when, and what the refresher says about it.

Pure: bytes in, values out; the clock is passed in or, for `Token.remaining`, read. The manifest is the refresher's word
inside the file: one line of JSON as the value of a configuration entry with the key `krbrefresh`, the last entry that
the refresher writes; where it is signed, a dot and the signature follow. docs/architecture.md has the contract.
"""

from __future__ import annotations

import time

from . import ccache
from .ccache import Principal
from .errors import CorruptError, UntrustedError

TYPE_CHECKING = False  # typing's own costs a worker 4 ms to import
if TYPE_CHECKING:
    import datetime
    from typing import Any, NoReturn, Protocol

    from ._flags import TicketFlags

    class Signer(Protocol):
        """Who signs manifests: `key_id` names the key, `sign` makes its Ed25519 signature over some bytes."""

        @property
        def key_id(self) -> str: ...  # noqa: D102

        def sign(self, message: bytes, /) -> bytes: ...  # noqa: D102

    class Verifier(Protocol):
        """Who knows public keys; `verify` says whether the key of that id made the signature, and raises
        UntrustedError, in words, where it did not or is not known."""

        def verify(self, key_id: str, signature: bytes, message: bytes, /) -> None: ...  # noqa: D102


MANIFEST_KEY = b"krbrefresh"
MANIFEST_VERSION = 1
_MAX_MANIFEST = 4096  # ours has about 400 bytes; a longer one would only cost time


class _Frozen:
    __slots__ = ()

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"{type(self).__name__} is read-only")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"{type(self).__name__} is read-only")

    def __setstate__(self, state: tuple[None, dict[str, object]]) -> None:  # copies and pickles are made through it
        for name, value in state[1].items():
            object.__setattr__(self, name, value)


class Manifest(_Frozen):
    """What the refresher says about a token, inside the token itself. Times are Unix seconds by the refresher's clock.

    `generation` orders the publications of one credential; `refresher` names who published; `settings` is a short hash
    of the options that shaped the token; `sha256` is of all bytes before the manifest's entry; `key_id` names the key
    that signed it, or is None. That the signature is good, `validate` with a public key says.
    """

    __slots__ = (
        "expires_at",
        "generation",
        "issued_at",
        "key_id",
        "principal",
        "refresher",
        "settings",
        "sha256",
        "window_opens_at",
    )

    generation: int
    issued_at: int
    expires_at: int
    window_opens_at: int
    principal: str
    refresher: str
    settings: str
    sha256: str
    key_id: str | None

    def __init__(
        self,
        *,
        generation: int,
        issued_at: int,
        expires_at: int,
        window_opens_at: int,
        principal: str,
        refresher: str,
        settings: str,
        sha256: str,
        key_id: str | None = None,
    ) -> None:
        put = object.__setattr__
        put(self, "generation", generation)
        put(self, "issued_at", issued_at)
        put(self, "expires_at", expires_at)
        put(self, "window_opens_at", window_opens_at)
        put(self, "principal", principal)
        put(self, "refresher", refresher)
        put(self, "settings", settings)
        put(self, "sha256", sha256)
        put(self, "key_id", key_id)

    def encode(self) -> bytes:
        """The one line of JSON that stands in the ccache."""
        import json

        fields: dict[str, object] = {"v": MANIFEST_VERSION}
        fields.update((name, getattr(self, name)) for name in _MANIFEST_FIELDS)
        if self.key_id is not None:
            fields["key_id"] = self.key_id
        return json.dumps(fields, separators=(",", ":")).encode("ascii")

    @classmethod
    def decode(cls, value: bytes) -> Manifest:
        """The manifest that an entry's value is. Raises ValueError, in words; keys it does not know are passed over."""
        import json

        if len(value) > _MAX_MANIFEST:
            raise ValueError(f"has {len(value)} bytes")
        try:
            fields: Any = json.loads(_signed_part(value))
        except (ValueError, RecursionError):
            raise ValueError("is not JSON") from None
        if not isinstance(fields, dict):
            raise ValueError("is not a JSON object")
        if type(fields.get("v")) is not int or fields["v"] != MANIFEST_VERSION:
            raise ValueError(f"is of version {fields.get('v')!r}; this krbrefresh reads {MANIFEST_VERSION}")
        known: dict[str, Any] = {}
        for name, kind in _MANIFEST_FIELDS.items():
            known[name] = value_of = fields.get(name)
            if type(value_of) is not kind or (isinstance(value_of, int) and not 0 <= value_of < 1 << 63):
                raise ValueError(f"has no usable {name}")
        key_id = fields.get("key_id")
        if key_id is not None and type(key_id) is not str:
            raise ValueError("has no usable key_id")
        return cls(**known, key_id=key_id)

    def __repr__(self) -> str:
        return (
            f"Manifest(generation={self.generation}, principal={self.principal!r}, "
            f"expires_at={self.expires_at}, refresher={self.refresher!r})"
        )


_MANIFEST_FIELDS: dict[str, type[int] | type[str]] = {
    "generation": int,
    "issued_at": int,
    "expires_at": int,
    "window_opens_at": int,
    "principal": str,
    "refresher": str,
    "settings": str,
    "sha256": str,
}


class Token(_Frozen):
    """One ccache as a worker sees it. Frozen, cheap, safe to log: it keeps no key material.

    Times are by this machine's clock: the ccache's own, less the KDC time offset of its header. With a TGT they are
    the TGT's; without, they span the time in which every service ticket is valid. What a third party appended after
    the manifest is no part of the token, and `modified` says that it is there.
    """

    __slots__ = (
        "_body_size",
        "_end",
        "_first_end",
        "_flags",
        "_name",
        "_renew",
        "_services",
        "_start",
        "_word",
        "has_tgt",
        "manifest",
        "modified",
        "offset",
        "path",
    )

    path: str
    has_tgt: bool
    manifest: Manifest | None
    modified: bool
    offset: float
    _name: Principal
    _services: tuple[Principal, ...]
    _start: int
    _end: int
    _first_end: int
    _renew: int
    _flags: int
    _body_size: int  # bytes before the manifest's entry; all of them where there is none
    _word: bytes  # the manifest as it stands in the file, signature and all

    @classmethod
    def parse(cls, data: bytes, path: str = "") -> Token:
        """The token that `data` is. A ccache with no ticket in it gives one that ends at 0 and is `empty`.

        Raises CorruptError, nothing else.
        """
        try:
            parsed = ccache.parse(data)
        except ccache.CcacheFormatError as error:
            raise _corrupt(path, str(error)) from None
        manifest = entry = None
        tickets: list[ccache.Credential] = []
        for credential in parsed.credentials:
            if credential.config_key == MANIFEST_KEY:
                entry = credential
                manifest = _read_manifest(data, entry, parsed.principal, path)
                break
            if credential.is_ticket:
                tickets.append(credential)
        return cls(path, parsed, manifest, tickets, entry, len(data))

    def __init__(
        self,
        path: str,
        parsed: ccache.Ccache,
        manifest: Manifest | None,
        tickets: list[ccache.Credential],
        entry: ccache.Credential | None,
        size: int,
    ) -> None:
        name = parsed.principal
        tgt_name = ccache.tgt_name(name.realm)
        tgt = None
        services: list[ccache.Credential] = []
        for ticket in tickets:
            if ticket.server != tgt_name:
                services.append(ticket)
            elif ticket.client == name and (tgt is None or ticket.endtime > tgt.endtime):
                tgt = ticket  # somebody else's TGT is of no use here
        held = [tgt] if tgt else services
        offset = parsed.kdc_offset
        put = object.__setattr__
        put(self, "path", path)
        put(self, "manifest", manifest)
        put(self, "modified", entry is not None and entry.span[1] != size)
        put(self, "_body_size", size if entry is None else entry.span[0])
        put(self, "_word", b"" if entry is None else entry.ticket)
        put(self, "has_tgt", tgt is not None)
        put(self, "offset", offset[0] + offset[1] / 1e6 if offset else 0.0)
        put(self, "_name", name)
        put(self, "_services", tuple(ticket.server for ticket in services))
        put(self, "_start", max((ticket.starttime or ticket.authtime for ticket in held), default=0))
        put(self, "_end", min((ticket.endtime for ticket in held), default=0))
        put(self, "_first_end", min((ticket.endtime for ticket in (*held, *services)), default=0))
        put(self, "_renew", min((ticket.renew_till for ticket in held), default=0))
        put(self, "_flags", held[0].flags if held else 0)

    @property
    def principal(self) -> str:
        """Whose token this is, as MIT's tools print it."""
        return str(self._name)

    @property
    def realm(self) -> str:
        """The principal's realm."""
        return self._name.realm.decode("utf-8", "surrogateescape")

    @property
    def empty(self) -> bool:
        """Whether it holds neither a TGT nor a service ticket."""
        return not self.has_tgt and not self._services

    @property
    def services(self) -> tuple[str, ...]:
        """The principals of the service tickets held, the TGT apart."""
        return tuple(str(service) for service in self._services)

    @property
    def generation(self) -> int | None:
        """The manifest's generation, or None where there is no manifest."""
        return self.manifest.generation if self.manifest else None

    @property
    def starts_at(self) -> datetime.datetime:
        """When the ticket becomes valid, by this machine's clock (aware, UTC)."""
        return _moment(self.starts)

    @property
    def expires_at(self) -> datetime.datetime:
        """When the ticket ends, by this machine's clock (aware, UTC)."""
        return _moment(self.expires)

    @property
    def renew_until(self) -> datetime.datetime | None:
        """Until when the ticket can be renewed, by this machine's clock (aware, UTC); None where it cannot."""
        return _moment(self._renew - self.offset) if self._renew else None

    @property
    def remaining(self) -> datetime.timedelta:
        """How much of the token's life is left now; negative once it has ended."""
        import datetime

        return datetime.timedelta(seconds=self.expires - time.time())

    @property
    def flags(self) -> TicketFlags:
        """The ticket's flags."""
        from ._flags import TicketFlags

        return TicketFlags(self._flags)

    @property
    def starts(self) -> float:
        """`starts_at` as Unix seconds."""
        return self._start - self.offset

    @property
    def expires(self) -> float:
        """`expires_at` as Unix seconds."""
        return self._end - self.offset

    @property
    def first_end(self) -> float:
        """When the first of its tickets ends, the TGT or another, as Unix seconds."""
        return self._first_end - self.offset

    @property
    def body_size(self) -> int:
        """How many bytes of the file are the ccache itself: those before the manifest's entry."""
        return self._body_size

    def verify(self, verifier: Verifier) -> None:
        """Raises UntrustedError where the file is not as somebody with one of the verifier's keys signed it."""
        if self.manifest is None:
            raise UntrustedError(f"{self.path}: it has no manifest, and so no signature")
        message = _signed_part(self._word)
        if self.manifest.key_id is None or message == self._word:
            raise UntrustedError(f"{self.path}: it is not signed")
        try:
            verifier.verify(self.manifest.key_id, _decode_signature(self._word[len(message) + 1 :]), message)
        except UntrustedError as error:
            raise UntrustedError(f"{self.path}: {error}") from None
        if self.modified:
            raise UntrustedError(
                f"{self.path}: something was appended to it after it was signed",
                hint="a program that runs as root appends service tickets to the token it uses, or somebody may write "
                "to it: mount it read-only, and let no worker be root",
            )

    def is_for(self, principal: Principal) -> bool:
        """Whether this is the token of that principal."""
        return self._name == principal

    def serves(self, service: Principal) -> bool:
        """Whether it holds that service's ticket, or a TGT to get one with."""
        return self.has_tgt or service in self._services

    def __repr__(self) -> str:
        from ._text import moment_text

        return (
            f"Token(path={self.path!r}, principal={self.principal!r}, expires_at={moment_text(self.expires)}, "
            f"generation={self.generation})"
        )


def seal(
    body: bytes,
    *,
    generation: int,
    issued_at: int,
    window_opens_at: int,
    refresher: str,
    settings: str,
    signer: Signer | None = None,
) -> bytes:
    """`body`, a whole version 4 ccache, with its manifest as the last entry, signed where there is a `signer`.

    Times are Unix seconds by this machine's clock. Raises CorruptError where `body` is no ccache.
    """
    import hashlib

    token = Token.parse(body)
    word = Manifest(
        generation=generation,
        issued_at=issued_at,
        expires_at=max(0, int(token.expires)),
        window_opens_at=window_opens_at,
        principal=token.principal,
        refresher=refresher,
        settings=settings,
        sha256=hashlib.sha256(body).hexdigest(),
        key_id=signer.key_id if signer else None,
    ).encode()
    if signer:
        word += b"." + _encode_signature(signer.sign(word))
    return body + ccache.config_entry(token._name, MANIFEST_KEY, word)


def _signed_part(word: bytes) -> bytes:
    """The JSON of a manifest's value: what the signature, if there is one behind a dot, is made over."""
    return word if word.endswith(b"}") else word.rpartition(b".")[0]


def _encode_signature(signature: bytes) -> bytes:
    """As base64url without padding (RFC 4648, 5)."""
    import base64

    return base64.urlsafe_b64encode(signature).rstrip(b"=")


def _decode_signature(text: bytes) -> bytes:
    """The signature that `text` is, if it is what we write: no other spelling of the same bytes is taken. Raises
    UntrustedError."""
    import base64

    try:
        signature = base64.urlsafe_b64decode(text + b"=" * (-len(text) % 4))
    except ValueError:
        signature = b""
    if not signature or _encode_signature(signature) != text:
        raise UntrustedError("its signature is garbled")
    return signature


def _read_manifest(data: bytes, entry: ccache.Credential, principal: Principal, path: str) -> Manifest:
    import hashlib

    start, end = entry.span
    try:
        if ccache.config_entry(principal, MANIFEST_KEY, entry.ticket) != data[start:end]:
            raise ValueError("is not an entry as the refresher writes it")
        manifest = Manifest.decode(entry.ticket)
        if manifest.principal != str(principal):
            raise ValueError("speaks of another principal")
        if manifest.sha256 != hashlib.sha256(data[:start]).hexdigest():
            raise ValueError("does not fit the bytes before it: they were altered")
    except ValueError as error:
        raise _corrupt(path, f"its manifest {error}") from None
    return manifest


def _corrupt(path: str, what: str) -> CorruptError:
    return CorruptError(f"{path}: {what}" if path else what)


def _moment(timestamp: float) -> datetime.datetime:
    import datetime

    return datetime.datetime.fromtimestamp(timestamp, datetime.timezone.utc)
