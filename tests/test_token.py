"""The token and its manifest: what is sealed is read back, and what was altered since is not."""

from __future__ import annotations

import copy
import datetime
import hashlib
import json
import pickle
import struct
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from krbrefresh import ccache
from krbrefresh._flags import TicketFlags
from krbrefresh.ccache import Credential, Principal
from krbrefresh.errors import CorruptError
from krbrefresh.token import MANIFEST_KEY, Manifest, Token, seal
from tests.support import ETL, ccache_bytes, ticket

WEB = Principal.parse("HTTP/web@EXAMPLE.COM")
DB = Principal.parse("postgres/db@EXAMPLE.COM")
FAST = Credential(
    ETL, Principal(b"X-CACHECONF:", (b"krb5_ccache_conf_data", b"fast_avail", b"krbtgt/R@R")), ticket=b"y"
)
BODY = ccache_bytes(
    FAST, ticket(authtime=1000, endtime=5000), ticket(server=WEB, authtime=1000, endtime=4000), kdc_offset=(100, 0)
)

FIELDS: dict[str, Any] = {
    "v": 1,
    "generation": 7,
    "issued_at": 1000,
    "expires_at": 4900,
    "window_opens_at": 3600,
    "principal": "etl@EXAMPLE.COM",
    "refresher": "host.example:1",
    "settings": "0f0f0f0f",
    "sha256": hashlib.sha256(BODY).hexdigest(),
}


def sealed(body: bytes = BODY, **fields: Any) -> bytes:
    given_fields = {
        name: FIELDS[name] for name in ("generation", "issued_at", "window_opens_at", "refresher", "settings")
    }
    return seal(body, **{**given_fields, **fields})


def with_manifest(value: bytes | dict[str, Any], body: bytes = BODY) -> bytes:
    """A token whose manifest is this value, right or wrong."""
    if isinstance(value, dict):
        value = json.dumps(value).encode()
    return body + ccache.config_entry(ETL, MANIFEST_KEY, value)


def everything(token: Token) -> dict[str, Any]:
    """All that a token holds, its manifest's fields included."""
    held = {name: getattr(token, name) for name in Token.__slots__}
    held["manifest"] = token.manifest and {name: getattr(token.manifest, name) for name in Manifest.__slots__}
    return held


# What is sealed is read back


def test_a_sealed_token_is_read_back() -> None:
    data = sealed()
    assert data.startswith(BODY)
    token = Token.parse(data, "/run/t")
    assert token.manifest is not None
    held = {name: getattr(token.manifest, name) for name in Manifest.__slots__}
    assert held == {**{name: value for name, value in FIELDS.items() if name != "v"}, "key_id": None}
    assert (token.path, token.principal, token.realm) == ("/run/t", "etl@EXAMPLE.COM", "EXAMPLE.COM")
    assert (token.generation, token.modified, token.has_tgt, token.empty) == (7, False, True, False)
    assert token.services == ("HTTP/web@EXAMPLE.COM",)


def test_the_manifest_is_one_line_of_json_in_the_designs_words() -> None:
    value = ccache.parse(sealed()).credentials[-1].ticket
    assert b"\n" not in value
    assert value.isascii()
    assert json.loads(value) == FIELDS


def test_a_ccache_without_a_manifest_is_a_token() -> None:
    token = Token.parse(BODY)
    assert (token.manifest, token.generation, token.modified, token.has_tgt) == (None, None, False, True)


def test_sealing_what_is_no_ccache() -> None:
    with pytest.raises(CorruptError):
        sealed(BODY[:-1])


@given(
    st.integers(0, 2**63 - 1),
    st.integers(0, 2**63 - 1),
    st.integers(0, 2**63 - 1),
    st.text(max_size=40),
    st.text(max_size=40),
    st.binary(min_size=1, max_size=9),
    st.lists(st.binary(max_size=9), min_size=1, max_size=3),
)
@settings(max_examples=100, deadline=None)
def test_whatever_is_sealed_is_read_back(
    generation: int, issued: int, opens: int, refresher: str, shape: str, realm: bytes, components: list[bytes]
) -> None:
    name = Principal(realm, tuple(components))
    body = ccache_bytes(ticket(name), principal=name)
    data = seal(
        body, generation=generation, issued_at=issued, window_opens_at=opens, refresher=refresher, settings=shape
    )
    token = Token.parse(data)
    manifest = token.manifest
    assert manifest is not None
    assert (manifest.generation, manifest.issued_at, manifest.window_opens_at) == (generation, issued, opens)
    assert (manifest.refresher, manifest.settings) == (refresher, shape)
    assert (manifest.principal, token.principal, token.has_tgt) == (str(name), str(name), True)
    assert Token.parse(data + ccache.encode_credential(ticket(name, WEB))).modified


# What was altered is not


def test_an_appended_ticket_is_marked_and_no_part_of_the_token() -> None:
    data = sealed()
    for more in (ticket(server=DB), ticket(endtime=2**32 - 1), FAST):
        token = Token.parse(data + ccache.encode_credential(more))
        assert everything(token) == {**everything(Token.parse(data)), "modified": True}


def test_appended_bytes_that_are_no_entry() -> None:
    with pytest.raises(CorruptError, match=r"middle|claims"):
        Token.parse(sealed() + bytes(100))


def test_the_first_manifest_is_the_refreshers() -> None:
    # Whoever may append cannot take the token over with a manifest of their own.
    data = sealed()
    token = Token.parse(sealed(data, generation=8))
    assert (token.generation, token.modified) == (7, True)


def test_every_flipped_bit() -> None:
    # Before the manifest: nothing passes. In the manifest: what passes is another token, never the one that was sealed.
    data = sealed()
    original = everything(Token.parse(data))
    others = []
    for at in range(len(data)):
        for mask in (1, 2, 4, 8, 16, 32, 64, 128, 255):
            altered = bytearray(data)
            altered[at] ^= mask
            try:
                token = Token.parse(bytes(altered))
            except CorruptError:
                continue
            assert at >= len(BODY), f"byte {at} ^ {mask:#x} went unseen"
            assert everything(token) != original
            others.append(token)
    # Such as a generation with another digit, or an entry that is no manifest any more.
    assert {token.generation for token in others} == {7, 6, 5, 3, None}


def test_every_byte_left_out_or_put_in_twice() -> None:
    data = sealed()
    for at in range(len(BODY)):
        for altered in (data[:at] + data[at + 1 :], data[:at] + data[at : at + 1] + data[at:]):
            with pytest.raises(CorruptError):
                Token.parse(altered)


def test_another_body_under_the_same_manifest() -> None:
    entry = sealed()[len(BODY) :]
    for body in (ccache_bytes(), ccache_bytes(ticket()), BODY + ccache.encode_credential(ticket(server=DB))):
        with pytest.raises(CorruptError, match="they were altered"):
            Token.parse(body + entry)


@pytest.mark.parametrize(
    "fields",
    [
        {"server": Principal(b"X-CACHECONF:", (b"krb5_ccache_conf_data", MANIFEST_KEY), 2)},
        {"server": Principal(b"X-CACHECONF:", (b"krb5_ccache_conf_data", MANIFEST_KEY, b"etl@EXAMPLE.COM"))},
        {"client": Principal.parse("eve@EXAMPLE.COM")},
        {"client": Principal(ETL.realm, ETL.components, 0)},
        {"endtime": 1},
        {"authtime": 2**32 - 1},  # struck out
        {"flags": 1},
        {"is_skey": 1},
        {"enctype": 18},
        {"key": b"k"},
        {"addresses": ((2, b"abcd"),)},
        {"authdata": ((1, b""),)},
        {"second_ticket": b"s"},
    ],
)
def test_the_manifests_entry_is_as_the_refresher_writes_it(fields: dict[str, Any]) -> None:
    server = Principal(b"X-CACHECONF:", (b"krb5_ccache_conf_data", MANIFEST_KEY))
    value = json.dumps(FIELDS).encode()
    good = Credential(client=ETL, server=server, ticket=value)
    assert Token.parse(BODY + ccache.encode_credential(good)).generation == 7
    other = Credential(**{"client": ETL, "server": server, "ticket": value, **fields})
    with pytest.raises(CorruptError, match="not an entry as the refresher writes it"):
        Token.parse(BODY + ccache.encode_credential(other))


def test_a_manifest_in_a_version_3_file_is_refused() -> None:
    # The refresher writes version 4; read as version 3, the same entry begins with other lengths.
    body = b"\x05\x03" + ccache.encode_principal(ETL)
    entry = ccache.config_entry(ETL, MANIFEST_KEY, json.dumps(FIELDS).encode())
    key_at = len(ccache.encode_principal(ETL)) + len(
        ccache.encode_principal(Principal(b"X-CACHECONF:", (b"krb5_ccache_conf_data", MANIFEST_KEY)))
    )
    with pytest.raises(CorruptError, match="as the refresher writes it"):
        Token.parse(body + entry[:key_at] + b"\0\0" + entry[key_at:])


NOT_TIMES: list[object] = [None, "7", 7.0, True, -1, 2**63, [7], {}]
NOT_TEXTS: list[object] = [None, 7, True, ["a"], {}]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(
            (name, value)
            for name in ("generation", "issued_at", "expires_at", "window_opens_at")
            for value in NOT_TIMES
        ),
        *((name, value) for name in ("principal", "refresher", "settings", "sha256") for value in NOT_TEXTS),
        *(("key_id", value) for value in NOT_TEXTS if value is not None),
        *(("v", value) for value in (None, 0, 2, "1", [1], {}, True, 1.0)),
        ("principal", "eve@EXAMPLE.COM"),
        ("sha256", FIELDS["sha256"].upper()),
        ("sha256", "0" * 64),
    ],
)
def test_manifests_with_a_wrong_value(name: str, value: object) -> None:
    assert Token.parse(with_manifest(FIELDS)).generation == 7
    with pytest.raises(CorruptError, match="its manifest"):
        Token.parse(with_manifest({**FIELDS, name: value}))


@pytest.mark.parametrize("name", FIELDS)
def test_manifests_without_a_field(name: str) -> None:
    with pytest.raises(CorruptError, match="its manifest"):
        Token.parse(with_manifest({key: value for key, value in FIELDS.items() if key != name}))


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"{}",
        b"[]",
        b"null",
        b"{",
        b"}",
        b".",
        b"{}.",
        b"\0",
        b"\xff\xfe\xfd",
        b'"' + b"x" * 100 + b'"',
        b"[" * 4096,
        b'{"v":' * 800,
        b'{"v":' + b"[" * 900 + b"]" * 900 + b"}",
        b'{"v":' + b"1" * 4090 + b"}",
        b'{"v":1e999,"generation":1e999}',
        b'{"v":NaN}',
        json.dumps({**FIELDS, "more": "x" * 4096}).encode(),
        json.dumps(FIELDS).encode()[:-1],
        json.dumps(FIELDS).encode() + b"}",
        json.dumps([FIELDS]).encode(),
        json.dumps([FIELDS]).encode() + b".signature",
        b"7.signature",
        b'"text".signature',
    ],
)
def test_manifests_that_are_none(value: bytes) -> None:
    with pytest.raises(CorruptError, match="its manifest"):
        Token.parse(with_manifest(value))


def test_deep_json_is_refused_at_any_depth() -> None:
    # On the edge of the interpreter's recursion limit as well.
    for depth in range(1, 2020, 7):
        with pytest.raises(CorruptError, match="its manifest"):
            Token.parse(with_manifest(b'{"v":' + b"[" * depth + b"]" * depth + b"}"))


def test_unknown_keys_and_a_key_id_are_tolerated() -> None:
    token = Token.parse(with_manifest({**FIELDS, "later": {"x": [1]}, "key_id": "k1"}))
    assert token.manifest is not None
    assert (token.generation, token.manifest.key_id) == (7, "k1")


def test_a_signature_is_passed_over_by_who_does_not_ask_for_it() -> None:
    assert Token.parse(with_manifest(json.dumps(FIELDS).encode() + b".c2lnbmF0dXJl")).generation == 7


def test_a_key_id_is_written_and_read_back() -> None:
    fields = {name: value for name, value in FIELDS.items() if name != "v"}
    assert Manifest.decode(Manifest(**fields, key_id="k1").encode()).key_id == "k1"
    assert "key_id" not in json.loads(Manifest(**fields).encode())


@given(
    st.binary(max_size=80)
    | st.builds(
        lambda value: json.dumps(value).encode(),
        st.dictionaries(st.sampled_from(sorted(FIELDS)), st.none() | st.integers() | st.text(max_size=5) | st.floats()),
    )
)
@settings(max_examples=200, deadline=None)
def test_any_manifest_is_refused_with_corrupt(value: bytes) -> None:
    with pytest.raises(CorruptError):
        Token.parse(with_manifest(value))


# Which ticket counts


def test_the_longest_tgt_is_the_tokens() -> None:
    token = Token.parse(
        ccache_bytes(
            ticket(authtime=1, endtime=50, flags=1),
            ticket(authtime=2, starttime=3, endtime=90, renew_till=95, flags=0x40000000),
            ticket(authtime=1, endtime=60),
            ticket(server=WEB, authtime=20, endtime=30),
        )
    )
    assert (token.starts, token.expires, token.flags) == (3, 90, TicketFlags.FORWARDABLE)
    assert token.renew_until == datetime.datetime.fromtimestamp(95, datetime.timezone.utc)
    assert token.services == ("HTTP/web@EXAMPLE.COM",)


def test_what_struck_out_entries_and_configuration_say_does_not_count() -> None:
    gone = ticket(server=WEB, endtime=0, authtime=2**32 - 1)
    token = Token.parse(ccache_bytes(FAST, ticket(endtime=0), gone))
    assert (token.has_tgt, token.services, token.empty, token.expires) == (False, (), True, 0)
    token = Token.parse(ccache_bytes(FAST, ticket(endtime=0), gone, ticket(endtime=90)))
    assert (token.has_tgt, token.services, token.empty, token.expires) == (True, (), False, 90)


def test_service_tickets_alone() -> None:
    # All of them are good from the latest beginning to the earliest end.
    token = Token.parse(
        ccache_bytes(
            ticket(server=WEB, authtime=1, starttime=30, endtime=90, renew_till=200, flags=0x00800000),
            ticket(server=DB, authtime=10, endtime=80, renew_till=100),
        )
    )
    assert (token.has_tgt, token.empty, token.starts, token.expires) == (False, False, 30, 80)
    assert token.services == ("HTTP/web@EXAMPLE.COM", "postgres/db@EXAMPLE.COM")
    assert (token.serves(WEB), token.serves(DB), token.serves(ETL)) == (True, True, False)
    assert token.renew_until == datetime.datetime.fromtimestamp(100, datetime.timezone.utc)


@pytest.mark.parametrize(
    "other",
    [
        ticket(server=Principal.parse("krbtgt/OTHER.COM@EXAMPLE.COM")),  # to cross into another realm
        ticket(server=Principal.parse("krbtgt/EXAMPLE.COM@OTHER.COM")),
        ticket(Principal.parse("eve@EXAMPLE.COM"), server=WEB),  # somebody else's, as S4U2Proxy leaves them
    ],
)
def test_tickets_that_are_not_the_tokens_tgt(other: Credential) -> None:
    token = Token.parse(ccache_bytes(other))
    assert (token.has_tgt, token.services) == (False, (str(other.server),))


def test_somebody_elses_tgt_is_no_ticket_at_all() -> None:
    assert Token.parse(ccache_bytes(ticket(Principal.parse("eve@EXAMPLE.COM")))).empty


def test_copies_and_pickles_are_equal_in_all_they_say() -> None:
    token = Token.parse(sealed(), "/run/x")
    for other in (copy.copy(token), copy.deepcopy(token), pickle.loads(pickle.dumps(token))):
        assert repr(other) == repr(token)
        assert (other.expires, other.services, other.flags) == (token.expires, token.services, token.flags)
        assert repr(other.manifest) == repr(token.manifest)


def test_a_tgt_serves_everybody() -> None:
    assert Token.parse(ccache_bytes(ticket())).serves(DB)


def test_whose_it_is() -> None:
    token = Token.parse(ccache_bytes(ticket()))
    assert token.is_for(Principal.parse("etl@EXAMPLE.COM"))
    assert not token.is_for(Principal.parse("etl@EXAMPLE.ORG"))
    assert not token.is_for(Principal.parse("etl/x@EXAMPLE.COM"))


# Times


@pytest.mark.parametrize("starttime", [0, 1700])
def test_a_start_of_0_is_the_time_of_authentication(starttime: int) -> None:
    token = Token.parse(ccache_bytes(ticket(authtime=1500, starttime=starttime, endtime=2000)))
    assert token.starts == (starttime or 1500)


@pytest.mark.parametrize(
    ("kdc_offset", "seconds"),
    [
        (None, 0),
        ((0, 0), 0),
        ((7200, 0), 7200),
        ((-7200, 0), -7200),
        ((7200, -500_000), 7199.5),
        ((-1, 250_000), -0.75),
    ],
)
def test_times_are_by_the_local_clock(kdc_offset: tuple[int, int] | None, seconds: float) -> None:
    entry = ticket(authtime=100_000, endtime=200_000, renew_till=300_000)
    token = Token.parse(ccache_bytes(entry, kdc_offset=kdc_offset))
    assert (token.offset, token.starts, token.expires) == (seconds, 100_000 - seconds, 200_000 - seconds)
    utc = datetime.timezone.utc
    assert token.starts_at == datetime.datetime.fromtimestamp(100_000 - seconds, utc)
    assert token.expires_at == datetime.datetime.fromtimestamp(200_000 - seconds, utc)
    assert token.renew_until == datetime.datetime.fromtimestamp(300_000 - seconds, utc)
    assert token.expires_at.tzinfo is utc


def test_the_manifests_end_is_by_the_local_clock() -> None:
    manifest = Token.parse(sealed()).manifest
    assert manifest is not None
    assert manifest.expires_at == 5000 - 100


def test_remaining_is_live() -> None:
    token = Token.parse(ccache_bytes(ticket(endtime=int(time.time()) + 100)))
    first = token.remaining
    assert datetime.timedelta(seconds=98) < first <= datetime.timedelta(seconds=100)
    assert token.remaining < first
    assert Token.parse(ccache_bytes(ticket(endtime=1))).remaining < datetime.timedelta(0)


def test_no_renewal() -> None:
    assert Token.parse(ccache_bytes(ticket())).renew_until is None


@pytest.mark.parametrize("kdc_offset", [None, (-(2**31), -(2**31)), (2**31 - 1, 2**31 - 1)])
def test_times_beyond_2038(kdc_offset: tuple[int, int] | None) -> None:
    token = Token.parse(ccache_bytes(ticket(authtime=2**31 + 5, endtime=2**32 - 1), kdc_offset=kdc_offset))
    assert token.expires == 2**32 - 1 - token.offset
    assert (token.expires_at - token.starts_at).total_seconds() == 2**31 - 6
    if kdc_offset is None:
        assert "2106-02-07T06:28:15Z" in repr(token)


# What can be done with one


def test_frozen() -> None:
    token = Token.parse(sealed())
    for value in (token, token.manifest):
        for name in (*type(value).__slots__, "new"):
            with pytest.raises(AttributeError):
                setattr(value, name, 1)
            with pytest.raises(AttributeError):
                delattr(value, name)
        assert not hasattr(value, "__dict__")


def test_no_key_material_is_kept_or_shown() -> None:
    secrets = [b"SECRETKEY" * 3, b"SECRETTICKET", b"SECRETSECOND"]
    key, sealed_part, second = secrets
    entries = [
        ticket(server=server, key=key, ticket=sealed_part, second_ticket=second)
        for server in (ccache.tgt_name(ETL.realm), WEB)
    ]
    token = Token.parse(sealed(ccache_bytes(*entries)), "/t")
    reached: list[Any] = []

    def walk(value: Any) -> None:
        reached.append(value)
        if isinstance(value, (tuple, list)):
            for item in value:
                walk(item)
        for name in getattr(type(value), "__slots__", ()):
            walk(getattr(value, name))

    walk(token)
    assert any(isinstance(value, Manifest) for value in reached)
    assert any(isinstance(value, Principal) for value in reached)
    assert not any(isinstance(value, (Credential, ccache.Ccache)) for value in reached)
    assert not any(b"SECRET" in value for value in reached if isinstance(value, bytes))
    shown = "".join(repr(value) + str(value) for value in (token, token.manifest))
    assert "etl@EXAMPLE.COM" in shown
    assert "SECRET" not in shown
    assert b"SECRET".hex() not in shown


def test_errors_name_the_path_and_no_bytes() -> None:
    data = ccache_bytes(ticket(key=b"SECRETKEY", ticket=b"SECRETTICKET"))
    for cut in range(len(data)):
        try:
            Token.parse(data[:cut], "/run/t")
        except CorruptError as error:
            text = str(error)
            assert text.startswith("/run/t: ")
            assert "SECRET" not in text


def test_a_header_only_ccache_is_empty() -> None:
    token = Token.parse(ccache_bytes())
    assert (token.empty, token.expires, token.flags) == (True, 0, TicketFlags(0))
    assert "1970-01-01T00:00:00Z" in repr(token)


def test_unpacked_header_of_support() -> None:
    # The helper that these tests stand on writes what the format says.
    assert ccache_bytes(kdc_offset=(-1, 2))[:16] == b"\x05\x04" + struct.pack(">HHHii", 12, 1, 8, -1, 2)
