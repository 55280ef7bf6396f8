"""Inputs for the ccache reader: whole ccaches as the refresher, kinit and libkrb5 leave them, and what becomes of them
when a number lies, a field is too long, an entry stands twice or a byte is another one. All by a seeded generator."""

from __future__ import annotations

import base64
import hashlib
import random
from collections.abc import Callable

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from krbrefresh import ccache
from krbrefresh.ccache import Ccache, CcacheFormatError, Credential, Principal
from krbrefresh.signature import PrivateKey
from krbrefresh.token import MANIFEST_KEY, Manifest, seal
from tests.support import ETL, ccache_bytes, ticket
from tests.test_ccache import by_hand

NOW = 1_800_000_000  # inputs are the same whenever they are made
WEB = Principal.parse("HTTP/web.example.com@EXAMPLE.COM")
ODD = Principal.parse(r"a\/b/c\@d/\n\\@EXAMPLE.COM")
CONFIG = Principal(b"X-CACHECONF:", (b"krb5_ccache_conf_data", b"fast_avail", b"krbtgt/EXAMPLE.COM@EXAMPLE.COM"))
ODD_CONFIG = Principal(b"X-CACHECONF:", (b"other", b"fast_avail"))

NUMBERS = (0, 1, 2, 5, 63, 64, 65, 255, 256, 257, 0x7FFF, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
NUMERIC = ("enctype", "authtime", "starttime", "endtime", "renew_till", "is_skey", "flags")
BYTES = ("key", "ticket", "second_ticket")


def times(now: int = NOW) -> dict[str, int]:
    return {"authtime": now, "starttime": now, "endtime": now + 36000, "renew_till": now + 86400}


# The same at each run, too; it signs nothing but inputs.
_KEY = Ed25519PrivateKey.from_private_bytes(bytes(32))
SIGNER = PrivateKey(_KEY)
PUBLIC_KEY = _KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def sealed(body: bytes, signer: PrivateKey | None = None) -> bytes:
    """`body` with a manifest that fits it, signed where there is a signer."""
    when = {"issued_at": NOW, "window_opens_at": NOW + 24000}
    return seal(body, generation=7, refresher="fuzz", settings="0f" * 8, signer=signer, **when)  # type: ignore[arg-type]


def seeds(now: int = NOW) -> list[bytes]:
    """Whole ccaches, each of another kind, whose tickets begin at `now`."""
    when = times(now)
    tgt = ticket(**when)
    web = ticket(server=WEB, **when)
    config = Credential(ETL, CONFIG, ticket=b"yes")
    user_to_user = ticket(server=ETL, is_skey=1, second_ticket=b"\x61" * 200, **when)
    rich = ticket(server=ODD, addresses=((2, b"\x7f\0\0\1"), (24, bytes(16))), authdata=((1, b"pac"),), **when)
    struck_out = [
        ticket(**{**when, "endtime": 0, "authtime": 0xFFFFFFFF}),
        Credential(ETL, Principal(b"X-RMED-CONF:", CONFIG.components), authtime=0xFFFFFFFF, ticket=b"no"),
    ]
    body = ccache_bytes(config, tgt)
    head = ccache.encode_principal(ETL)
    return [
        body,
        ccache_bytes(tgt, kdc_offset=None),
        ccache_bytes(),
        ccache_bytes(web, rich, kdc_offset=(-7200, 250_000)),
        ccache_bytes(config, tgt, web, user_to_user, rich, *struck_out, principal=ETL),
        ccache_bytes(ticket(client=WEB, **when), tgt),
        ccache_bytes(ticket(ODD, **when), principal=ODD),
        b"\x05\x04\0\x14\0\x02\0\x04abcd\0\x01\0\x08\0\0\0\x05\0\0\0\0" + head + ccache.encode_credential(tgt),
        by_hand(Ccache(3, ETL, (config, tgt, web))),
        by_hand(Ccache(3, ETL, (rich,))),
        sealed(body),
        sealed(body, SIGNER),
        sealed(ccache_bytes(web, kdc_offset=None)),
        sealed(body) + ccache.encode_credential(web),
        sealed(ccache_bytes(web)) + ccache.encode_credential(ticket(**{**when, "endtime": now + 40000})),
        sealed(ccache_bytes(tgt, *[web] * 4)),
    ]


def mutate(rng: random.Random, data: bytes, others: list[bytes], most: int = 1 << 20) -> bytes:
    """Another input made of `data`: by what its fields mean where it is a ccache, by its bytes otherwise."""
    try:
        if rng.random() < 0.5:
            data = _fields(rng, ccache.parse(data), data)
    except CcacheFormatError:
        pass
    if rng.random() < 0.75:
        changed = bytearray(data or b"\0")
        for _ in range(rng.choice((1, 1, 1, 2, 4))):
            rng.choice(_ON_BYTES)(rng, changed, others)
            if not changed:
                changed.append(5)
        data = bytes(changed)
    return data[:most]


def large(rng: random.Random, some: list[bytes]) -> bytes:
    """A file as large as the reader takes, or a little larger: what it may cost is what its size costs."""
    entry = Credential(
        _name(rng, rng.choice((0, 1, 8, 64))),
        _name(rng, rng.choice((0, 1, 8, 64))),
        addresses=((2, b"ab"),) * rng.choice((0, 0, 1, 16, 256)),
        authdata=((1, b"cd"),) * rng.choice((0, 0, 1, 16, 256)),
        ticket=bytes(rng.choice((0, 1, 1000, 100_000))),
    )
    one = ccache.encode_credential(entry)
    count = min(ccache.MAX_CREDENTIALS + rng.choice((-1, 0, 0, 0, 1)), ccache.MAX_SIZE // len(one))
    # Just below the cap on parts, too, where all of the work is done and nothing is refused.
    parts = len(entry.server.components) + len(entry.client.components) + len(entry.addresses) + len(entry.authdata)
    if parts and rng.random() < 0.7:
        count = min(count, ccache.MAX_PARTS // parts)
    data = rng.choice(some)[: rng.choice((0, 2, 600))] if rng.random() < 0.1 else ccache_bytes(ticket(**times()))
    data += one * count
    if len(data) < ccache.MAX_SIZE and rng.random() < 0.5:
        data += ccache.encode_credential(ticket(ticket=bytes(max(0, ccache.MAX_SIZE - len(data) - 1000)), **times()))
    if rng.random() < 0.4:
        data = resealed(rng, data)
    return data


def resealed(rng: random.Random, body: bytes) -> bytes:
    """`body` with a manifest as its last entry whose hash is right, and of which something else may be wrong."""
    fields = {"principal": str(ETL), "generation": 7, "issued_at": NOW, "expires_at": NOW, "window_opens_at": NOW}
    fields |= {"refresher": "fuzz", "settings": "0f" * 8, "sha256": hashlib.sha256(body).hexdigest()}
    fields["key_id"] = rng.choice((None, SIGNER.key_id, SIGNER.key_id, "another"))
    principal = ETL
    try:
        principal = ccache.parse(body).principal
        fields["principal"] = str(principal)
    except (CcacheFormatError, RecursionError):
        pass
    value = Manifest(**fields).encode()  # type: ignore[arg-type]
    match rng.randrange(8):
        case 0:
            value = bytes(_twisted(rng, bytearray(value)))
        case 1:
            value = value.replace(b"7", rng.choice((b"-7", b"7.0", b"true", b'"7"', b"9" * 4000, b"1e999", b"[7]")), 1)
        case 2:
            value = (
                value[:-1] + b',"more":' + rng.choice((b"[" * 3000, b"{}", b'"\\ud800"', b"NaN", b"1" * 3500)) + b"}"
            )
        case 3:
            signature = SIGNER.sign(value)[: rng.choice((64, 64, 63, 1, 0))] + rng.randbytes(rng.choice((0, 0, 1)))
            value += b"." + base64.urlsafe_b64encode(signature).rstrip(rng.choice((b"=", b"=", b"")))
        case _:
            pass
    return body + ccache.config_entry(principal, MANIFEST_KEY, value)


def _name(rng: random.Random, count: int) -> Principal:
    return Principal(rng.choice((b"", b"R", b"EXAMPLE.COM")), (rng.choice((b"", b"a", b"ab", b"\\/@\n" * 5)),) * count)


def _fields(rng: random.Random, parsed: Ccache, data: bytes) -> bytes:
    """The file with some of its values changed, and whole again: with lengths that fit, and often a manifest's hash."""
    entries = list(parsed.credentials)
    principal, offset = parsed.principal, parsed.kdc_offset
    version = parsed.version if rng.random() < 0.9 else 7 - parsed.version
    for _ in range(rng.choice((1, 1, 2, 3))):
        at = rng.randrange(len(entries)) if entries else -1
        match rng.randrange(9) if entries else rng.randrange(6, 9):
            case 0 | 1:
                field = rng.choice(NUMERIC)
                bits = {"enctype": 16, "is_skey": 8}.get(field, 32)
                near = entries[at].endtime
                value = rng.choice((*NUMBERS, near, near + 60, near - 60, rng.getrandbits(32))) & ((1 << bits) - 1)
                entries[at] = _with(entries[at], **{field: value})
            case 2:
                entries[at] = _with(entries[at], **{rng.choice(BYTES): rng.randbytes(rng.choice((0, 1, 20, 600)))})
            case 3:
                names = (
                    principal,
                    ETL,
                    WEB,
                    ODD,
                    CONFIG,
                    ODD_CONFIG,
                    ccache.tgt_name(principal.realm),
                    _name(rng, rng.randrange(5)),
                )
                entries[at] = _with(entries[at], **{rng.choice(("client", "server")): rng.choice(names)})
            case 4:
                listed = tuple((rng.getrandbits(16), rng.randbytes(rng.randrange(9))) for _ in range(rng.randrange(6)))
                entries[at] = _with(entries[at], **{rng.choice(("addresses", "authdata")): listed})
            case 5:
                entries.insert(rng.randrange(len(entries) + 1), entries[at])
                if rng.random() < 0.5:
                    del entries[rng.randrange(len(entries))]
            case 6:
                principal = rng.choice((ETL, WEB, ODD, _name(rng, rng.randrange(4))))
            case 7:
                anything = (rng.randrange(-(2**31), 2**31), rng.randrange(-(2**31), 2**31))
                offset = rng.choice((None, (0, 0), (7200, 1), (-3, 999_999), (-3, 1_000_000), anything))
            case _:
                rng.shuffle(entries)
    manifests = [entry for entry in entries if entry.config_key == MANIFEST_KEY]
    if manifests and rng.random() < 0.8:
        entries = [entry for entry in entries if entry.config_key != MANIFEST_KEY]
    data = by_hand(Ccache(version, principal, tuple(entries), offset if version == 4 else None))
    return resealed(rng, data) if manifests and rng.random() < 0.9 else data


def _with(entry: Credential, **fields: object) -> Credential:
    values = {name: getattr(entry, name) for name in Credential.__slots__ if name != "span"}
    return Credential(**{**values, **fields})


def _flip(rng: random.Random, data: bytearray, _: list[bytes]) -> None:
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _set(rng: random.Random, data: bytearray, _: list[bytes]) -> None:
    data[rng.randrange(len(data))] = rng.choice((0, 1, 2, 3, 4, 5, 0x2E, 0x7F, 0x80, 0xFF, rng.randrange(256)))


def _lie(rng: random.Random, data: bytearray, _: list[bytes]) -> None:
    """A number of two or four bytes, or one that is a little off."""
    at, width = rng.randrange(len(data)), rng.choice((2, 4, 4))
    number = int.from_bytes(data[at : at + width], "big") + rng.randrange(-4, 5)
    if rng.random() < 0.5:
        number = rng.choice(NUMBERS)
    data[at : at + width] = (number & ((1 << 8 * width) - 1)).to_bytes(width, "big")


def _cut(rng: random.Random, data: bytearray, _: list[bytes]) -> None:
    at = rng.randrange(len(data))
    del data[at : at + rng.choice((1, 1, 2, 4, 20, len(data)))]


def _insert(rng: random.Random, data: bytearray, _: list[bytes]) -> None:
    at = rng.randrange(len(data) + 1)
    data[at:at] = rng.randbytes(rng.choice((1, 2, 4, 8, 30)))


def _repeat(rng: random.Random, data: bytearray, _: list[bytes]) -> None:
    at = rng.randrange(len(data))
    piece = data[at : at + rng.choice((1, 4, 50, 600))]
    to = rng.randrange(len(data) + 1)
    data[to:to] = piece * rng.choice((1, 1, 1, 2, 4))


def _splice(rng: random.Random, data: bytearray, others: list[bytes]) -> None:
    other = rng.choice(others)
    data[rng.randrange(len(data)) :] = other[rng.randrange(len(other)) :]


_ON_BYTES: tuple[Callable[[random.Random, bytearray, list[bytes]], None], ...] = (
    _flip, _flip, _set, _set, _lie, _lie, _lie, _cut, _insert, _repeat, _splice,
)  # fmt: skip


def _twisted(rng: random.Random, data: bytearray) -> bytearray:
    rng.choice((_flip, _set, _cut, _insert, _repeat))(rng, data, [])
    return data
