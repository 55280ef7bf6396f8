"""The FILE ccache reader and writer against each other, against an encoder of the test's own, and against hostility."""

from __future__ import annotations

import struct
import tracemalloc
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from krbrefresh import ccache
from krbrefresh.ccache import Ccache, CcacheFormatError, Credential, Principal
from tests.support import ETL, ccache_bytes, ticket

few = settings(max_examples=100, deadline=None)
many = settings(max_examples=300, deadline=None)

u8, u16, u32 = (st.integers(0, 2**bits - 1) for bits in (8, 16, 32))
i32 = st.integers(-(2**31), 2**31 - 1)
octets = st.binary(max_size=12)
principals = st.builds(Principal, octets, st.lists(octets, max_size=3).map(tuple), u32)
typed_lists = st.lists(st.tuples(u16, octets), max_size=3).map(tuple)


@st.composite
def ccaches(draw: st.DrawFn, version: int = 4) -> Ccache:
    principal = draw(principals)
    credentials = st.builds(
        Credential,
        st.just(principal) | principals,  # the reader takes a short cut where an entry's client is the default one
        principals | st.just(ccache.tgt_name(principal.realm)),
        enctype=u16,
        key=octets,
        authtime=u32,
        starttime=u32,
        endtime=u32,
        renew_till=u32,
        is_skey=u8,
        flags=u32,
        addresses=typed_lists,
        authdata=typed_lists,
        ticket=octets,
        second_ticket=octets,
    )
    entries = tuple(draw(st.lists(credentials, max_size=4)))
    return Ccache(version, principal, entries, draw(st.none() | st.tuples(i32, i32)) if version == 4 else None)


def by_hand(cache: Ccache) -> bytes:
    """A version 3 or 4 file, written from the format's description and without the code under test."""

    def data(value: bytes) -> bytes:
        return len(value).to_bytes(4, "big") + value

    def name(principal: Principal) -> bytes:
        counted = struct.pack(">II", principal.name_type, len(principal.components))
        return counted + data(principal.realm) + b"".join(map(data, principal.components))

    def typed(items: tuple[tuple[int, bytes], ...]) -> bytes:
        return struct.pack(">I", len(items)) + b"".join(struct.pack(">H", kind) + data(value) for kind, value in items)

    out = bytes((5, cache.version))
    if cache.version == 4:
        out += b"\0\0" if cache.kdc_offset is None else b"\0\x0c\0\1\0\x08" + struct.pack(">ii", *cache.kdc_offset)
    out += name(cache.principal)
    for entry in cache.credentials:
        out += name(entry.client) + name(entry.server)
        out += struct.pack(">H", entry.enctype) * (2 if cache.version == 3 else 1) + data(entry.key)
        out += struct.pack(">4I", entry.authtime, entry.starttime, entry.endtime, entry.renew_till)
        out += struct.pack(">BI", entry.is_skey, entry.flags)
        out += typed(entry.addresses) + typed(entry.authdata) + data(entry.ticket) + data(entry.second_ticket)
    return out


def encoded(cache: Ccache) -> bytes:
    return ccache_bytes(*cache.credentials, principal=cache.principal, kdc_offset=cache.kdc_offset)


def fields(value: Any) -> Any:
    """All that a value holds, but where it stood; a Principal's own equality passes over its name type."""
    if isinstance(value, tuple):
        return tuple(map(fields, value))
    if isinstance(value, (Ccache, Credential, Principal)):
        return {name: fields(getattr(value, name)) for name in value.__slots__ if name != "span"}
    return value


def assert_spans_tile(cache: Ccache, data: bytes) -> None:
    """The entries stand one after the other, from the default principal's end to the file's."""
    edges = [entry.span for entry in cache.credentials]
    assert [start for start, _ in edges[1:]] == [end for _, end in edges[:-1]]
    assert data[: edges[0][0] if edges else len(data)].endswith(ccache.encode_principal(cache.principal))
    assert not edges or edges[-1][1] == len(data)


def read_or_refused(data: bytes) -> Ccache | None:
    """What `parse` makes of hostile bytes: a ccache that is exactly these bytes, or CcacheFormatError."""
    try:
        cache = ccache.parse(data)
    except CcacheFormatError:
        return None
    assert_spans_tile(cache, data)
    if cache.version == 4:
        for entry in cache.credentials:
            assert data[slice(*entry.span)] == ccache.encode_credential(entry)
    return cache


# What is written is read back


@given(ccaches())
@few
def test_version_4_is_read_back(cache: Ccache) -> None:
    data = encoded(cache)
    assert data == by_hand(cache)
    again = ccache.parse(data)
    assert fields(again) == fields(cache)
    assert_spans_tile(again, data)
    assert [data[slice(*entry.span)] for entry in again.credentials] == [
        ccache.encode_credential(entry) for entry in cache.credentials
    ]


@given(ccaches(version=3))
@few
def test_version_3_is_read_back(cache: Ccache) -> None:
    data = by_hand(cache)
    again = ccache.parse(data)
    assert fields(again) == fields(cache)
    assert_spans_tile(again, data)


def test_version_3_takes_the_first_enctype() -> None:
    # Writers put the same number twice; test_ccache_differential.py has libkrb5's word on which one is read.
    data = by_hand(Ccache(3, ETL, (ticket(enctype=18),)))
    assert data.count(b"\0\x12\0\x12") == 1
    assert ccache.parse(data.replace(b"\0\x12\0\x12", b"\0\x12\0\x11")).credentials[0].enctype == 18


def test_times_are_unsigned() -> None:
    (entry,) = ccache.parse(ccache_bytes(ticket(endtime=2**32 - 1, renew_till=2**31))).credentials
    assert (entry.endtime, entry.renew_till) == (2**32 - 1, 2**31)


def test_an_entry_of_another_client_is_told_from_one_of_the_default_principal() -> None:
    other = Principal.parse("etl2@EXAMPLE.COM")  # begins as the default principal does
    cache = ccache.parse(ccache_bytes(ticket(), ticket(other)))
    assert [entry.client for entry in cache.credentials] == [ETL, other]


# The header


def headed(*tagged: tuple[int, bytes]) -> bytes:
    header = b"".join(struct.pack(">HH", tag, len(value)) + value for tag, value in tagged)
    return b"\x05\x04" + struct.pack(">H", len(header)) + header + ccache.encode_principal(ETL)


unknown_tags = st.lists(st.tuples(u16.filter(lambda tag: tag != 1), octets), max_size=3)


@given(unknown_tags, st.none() | st.tuples(i32, i32), unknown_tags)
@few
def test_unknown_header_tags_are_passed_over(
    before: list[tuple[int, bytes]], offset: tuple[int, int] | None, after: list[tuple[int, bytes]]
) -> None:
    ours = [(1, struct.pack(">ii", *offset))] if offset else []
    cache = ccache.parse(headed(*before, *ours, *after))
    assert (cache.kdc_offset, cache.principal, cache.credentials) == (offset, ETL, ())


@pytest.mark.parametrize(
    ("header", "says"),
    [
        (b"\0\x03\0\1\0", "torn field"),
        (b"\0\x05\0\x07\0\0\0", "torn field"),
        (b"\0\x0b\0\1\0\x08" + bytes(7), "longer than the header"),
        (b"\0\x04\0\x07\xff\xff", "longer than the header"),
        (b"\0\x0b\0\1\0\x07" + bytes(7), "7 bytes and not 8"),
        (b"\0\x0d\0\1\0\x09" + bytes(9), "9 bytes and not 8"),
        (b"\0\x04\0\1\0\0", "0 bytes and not 8"),
    ],
)
def test_broken_header_fields_are_refused(header: bytes, says: str) -> None:
    with pytest.raises(CcacheFormatError, match=says):
        ccache.parse(b"\x05\x04" + header + ccache.encode_principal(ETL))


@pytest.mark.parametrize("data", [b"\x05\x04", b"\x05\x04\0", b"\x05\x04\0\0", b"\x05\x04\xff\xff\0\1", b"\x05\x03"])
def test_a_torn_beginning_is_refused(data: bytes) -> None:
    with pytest.raises(CcacheFormatError, match=r"middle|claims"):
        ccache.parse(data)


@pytest.mark.parametrize("version", [1, 2])
def test_native_endian_versions_are_refused_by_name(version: int) -> None:
    with pytest.raises(CcacheFormatError, match=f"of version {version}, whose byte order is unknown"):
        ccache.parse(bytes((5, version)) + ccache_bytes(ticket())[4:])


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "empty"),
        (b"\x05", "one byte"),
        (b"\x05\x00", "not a FILE ccache"),
        (b"\x05\x05\0\0", "not a FILE ccache"),
        (b"\x05\x02\0\0\0\x3a", "version 2"),  # a keytab begins like a ccache of version 2
        (b"\x06\x04\0\0", r"begins with 06 04"),
        (b"-----BEGIN", "not a FILE ccache"),
        (bytes(500), "not a FILE ccache"),
    ],
)
def test_what_is_no_ccache_is_refused_in_words(data: bytes, says: str) -> None:
    with pytest.raises(CcacheFormatError, match=says):
        ccache.parse(data)


# Caps, and numbers that lie


def test_components_are_capped() -> None:
    def named(count: int) -> bytes:
        return ccache_bytes(principal=Principal(b"R", (b"a",) * count))

    assert len(ccache.parse(named(ccache.MAX_COMPONENTS)).principal.components) == ccache.MAX_COMPONENTS
    with pytest.raises(CcacheFormatError, match=f"claims {ccache.MAX_COMPONENTS + 1} components"):
        ccache.parse(named(ccache.MAX_COMPONENTS + 1))


@pytest.mark.parametrize(
    ("field", "most", "what"),
    [("addresses", ccache.MAX_ADDRESSES, "addresses"), ("authdata", ccache.MAX_AUTHDATA, "authorization data")],
)
def test_lists_are_capped(field: str, most: int, what: str) -> None:
    def listed(count: int) -> bytes:
        return ccache_bytes(ticket(**{field: ((2, b"abcd"),) * count}))

    assert len(getattr(ccache.parse(listed(most)).credentials[0], field)) == most
    with pytest.raises(CcacheFormatError, match=f"claims {most + 1} {what}"):
        ccache.parse(listed(most + 1))


def test_entries_are_capped() -> None:
    entry = ccache.encode_credential(ticket(key=b"", ticket=b""))
    assert len(ccache.parse(ccache_bytes() + entry * ccache.MAX_CREDENTIALS).credentials) == ccache.MAX_CREDENTIALS
    with pytest.raises(CcacheFormatError, match=f"more than {ccache.MAX_CREDENTIALS} entries"):
        ccache.parse(ccache_bytes() + entry * (ccache.MAX_CREDENTIALS + 1))


def test_names_are_capped() -> None:
    def named(length: int) -> bytes:
        return ccache_bytes(principal=Principal(b"R", (b"a" * length,)))

    room = ccache.MAX_NAME - len(ccache.encode_principal(Principal(b"R", (b"",))))
    assert len(ccache.parse(named(room)).principal.components[0]) == room
    with pytest.raises(CcacheFormatError, match=f"a principal has {ccache.MAX_NAME + 1} bytes"):
        ccache.parse(named(room + 1))


@pytest.mark.parametrize("where", ["server", "client", "addresses", "authdata"])
def test_the_parts_of_all_entries_are_capped(where: str) -> None:
    # Without this a file of 4 MiB took 290 ms.
    other = Principal(b"S", (b"",) * 64)
    entry = {
        "server": ticket(server=other),
        "client": Credential(other, Principal(b"S", ())),
        "addresses": ticket(server=Principal(b"S", ()), addresses=((2, b""),) * 64),
        "authdata": ticket(server=Principal(b"S", ()), authdata=((2, b""),) * 64),
    }[where]
    most = ccache.MAX_PARTS // 64
    assert len(ccache.parse(ccache_bytes(*[entry] * most)).credentials) == most
    with pytest.raises(CcacheFormatError, match=f"more than {ccache.MAX_PARTS} parts"):
        ccache.parse(ccache_bytes(*[entry] * (most + 1)))


def test_the_size_is_capped() -> None:
    room = ccache.MAX_SIZE - len(ccache_bytes(ticket(ticket=b"")))
    assert len(ccache.parse(ccache_bytes(ticket(ticket=bytes(room)))).credentials) == 1
    with pytest.raises(CcacheFormatError, match=f"no more than {ccache.MAX_SIZE}"):
        ccache.parse(ccache_bytes(ticket(ticket=bytes(room + 1))))


@pytest.mark.parametrize("version", [3, 4])
@pytest.mark.parametrize("lie", [0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0x00010000, 0x00000040, 0x00000100])
def test_counts_and_lengths_that_lie_cost_nothing(lie: int, version: int) -> None:
    # Written over every byte in turn, so over every count and every length, the lie is refused or only changes a value,
    # and nothing of its size is ever reserved.
    entry = ticket(addresses=((2, b"abcd"),), authdata=((1, b"x"),), ticket=b"t" * 20, second_ticket=b"s")
    good = by_hand(Ccache(version, ETL, (entry, entry), (0, 0)))
    tracemalloc.start()
    try:
        for at in range(2, len(good) - 3):
            read_or_refused(good[:at] + lie.to_bytes(4, "big") + good[at + 4 :])
        assert tracemalloc.get_traced_memory()[1] < 200_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("version", [3, 4])
def test_every_truncation_is_refused_but_on_an_entrys_boundary(version: int) -> None:
    entry = ticket(addresses=((2, b"abcd"),), authdata=((1, b"x"),), second_ticket=b"second")
    good = by_hand(Ccache(version, ETL, (entry, entry), (0, 0)))
    (first, start), (_, end) = (entry.span for entry in ccache.parse(good).credentials)
    assert end == len(good)
    assert [cut for cut in range(len(good)) if read_or_refused(good[:cut])] == [first, start]


# Hostile bytes


@given(st.binary(max_size=200) | st.binary(max_size=200).map(lambda tail: b"\x05\x04\0\0" + tail))
@example(b"\x05\x04\0\0" + bytes(9))
@many
def test_arbitrary_bytes_are_read_or_refused(data: bytes) -> None:
    read_or_refused(data)


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A good file with some bytes flipped, cut out or put in."""
    data = bytearray(by_hand(draw(ccaches() | ccaches(version=3))))
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(data) - 1))
        match draw(st.sampled_from(("flip", "set", "cut", "insert"))):
            case "flip":
                data[at] ^= 1 << draw(st.integers(0, 7))
            case "set":
                data[at] = draw(st.sampled_from((0, 1, 5, 0x7F, 0x80, 0xFF)))
            case "cut":
                del data[at : at + draw(st.integers(1, 20))]
                data = data or bytearray(1)
            case "insert":
                data[at:at] = draw(st.binary(min_size=1, max_size=8))
    return bytes(data)


@given(mutated())
@many
def test_mutated_files_are_read_or_refused(data: bytes) -> None:
    read_or_refused(data)


# What an entry is


CONFIG = Principal(b"X-CACHECONF:", (b"krb5_ccache_conf_data", b"fast_avail", b"krbtgt/R@R"))


@pytest.mark.parametrize(
    ("entry", "config_key", "removed", "is_ticket"),
    [
        (ticket(), None, False, True),
        (ticket(endtime=0), None, True, False),
        (ticket(endtime=0, authtime=2**32 - 1), None, True, False),  # as libkrb5 removes
        (ticket(endtime=0, authtime=0), None, False, True),  # never was valid, but nobody removed it
        (Credential(ETL, CONFIG, ticket=b"yes"), b"fast_avail", False, False),
        (Credential(ETL, CONFIG, authtime=2**32 - 1), b"fast_avail", True, False),
        (Credential(ETL, Principal(b"X-RMED-CONF:", CONFIG.components)), None, True, False),
        (Credential(ETL, Principal(b"X-CACHECONF:", (b"krb5_ccache_conf_data",))), None, False, False),
        (Credential(ETL, Principal(b"X-CACHECONF:", (b"other", b"fast_avail"))), None, False, False),
    ],
)
def test_kinds_of_entries(entry: Credential, config_key: bytes | None, removed: bool, is_ticket: bool) -> None:
    (read,) = ccache.parse(ccache_bytes(entry)).credentials
    for one in (entry, read):
        assert (one.config_key, one.removed, one.is_ticket) == (config_key, removed, is_ticket)


def test_config_entry() -> None:
    (entry,) = ccache.parse(ccache_bytes() + ccache.config_entry(ETL, b"krbrefresh", b"{}")).credentials
    assert (entry.client, entry.config_key, entry.ticket, entry.is_ticket) == (ETL, b"krbrefresh", b"{}", False)


def test_no_repr_shows_a_key_or_a_ticket() -> None:
    entry = ticket(key=b"SECRETKEY", ticket=b"SECRETTICKET", second_ticket=b"SECRETSECOND")
    cache = ccache.parse(ccache_bytes(entry))
    shown = repr(entry) + repr(cache) + repr(cache.credentials) + repr(cache.principal)
    assert "krbtgt/EXAMPLE.COM@EXAMPLE.COM" in shown
    assert "SECRET" not in shown
    assert b"SECRET".hex() not in shown


# Names


# Few letters, so that separators, escapes and what looks like an escape meet each other.
awkward = st.text(st.sampled_from("ab0nt/@\\\n\t\b\0 #é\udcff"), max_size=6) | st.text(
    st.characters(exclude_categories=["Cs"]), max_size=6
)
name_bytes = awkward.map(lambda text: text.encode("utf-8", "surrogateescape")) | octets


@given(st.lists(name_bytes, min_size=1, max_size=4), name_bytes.filter(bool))
@many
def test_a_name_is_read_back_from_its_text(components: list[bytes], realm: bytes) -> None:
    principal = Principal(realm, tuple(components))
    assert fields(Principal.parse(str(principal))) == fields(principal)


@pytest.mark.parametrize(
    ("text", "realm", "components"),
    [
        ("etl@EXAMPLE.COM", b"EXAMPLE.COM", (b"etl",)),
        ("HTTP/web.example.com@EXAMPLE.COM", b"EXAMPLE.COM", (b"HTTP", b"web.example.com")),
        (r"a\/b/c@R", b"R", (b"a/b", b"c")),
        (r"etl\@corp.example@R", b"R", (b"etl@corp.example",)),  # an enterprise name
        (r"a\n\t\b\0\\@R", b"R", (b"a\n\t\b\0\\",)),
        (r"\x@R", b"R", (b"x",)),
        (r"a@R\/S\@T", b"R/S@T", (b"a",)),
        ("@R", b"R", (b"",)),
        ("a//b/@R", b"R", (b"a", b"", b"b", b"")),
        ("zoë@R", b"R", ("zoë".encode(),)),
        ("\udcff@R", b"R", (b"\xff",)),
    ],
)
def test_names_are_read(text: str, realm: bytes, components: tuple[bytes, ...]) -> None:
    assert fields(Principal.parse(text)) == fields(Principal(realm, components))


@pytest.mark.parametrize(
    "text", ["", "etl", "etl@", "@", "a/b", "a@b@R", "a@R@", "a@R/b", "a@/", "etl\\", "a@R\\", "a\0@R", "\ud800@R"]
)
def test_malformed_names_are_refused(text: str) -> None:
    with pytest.raises(ValueError):
        Principal.parse(text)


def test_the_name_type_does_not_count() -> None:
    one, other = Principal(b"R", (b"krbtgt", b"R"), 1), ccache.tgt_name(b"R")
    assert one.name_type != other.name_type
    assert one == other
    assert len({one, other, Principal(b"R", (b"krbtgt",)), Principal(b"S", (b"krbtgt", b"R"))}) == 3
    assert one != "krbtgt/R@R"
