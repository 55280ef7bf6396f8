"""Our reader and writer against libkrb5's own: the same files, the same bytes, the same names."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gssapi
import krb5
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from krbrefresh import ccache
from krbrefresh._flags import TicketFlags
from krbrefresh.ccache import Ccache, CcacheFormatError, Credential, Principal
from krbrefresh.token import Token, seal
from tests.fuzz import differential
from tests.support import ETL, Realm, ccache_bytes, ticket
from tests.test_ccache import awkward, by_hand, ccaches, mutated, octets, principals

few = settings(max_examples=60, deadline=None)
many = settings(max_examples=250, deadline=None)

WEB = "HTTP/web.example.com"


@pytest.fixture(scope="module", autouse=True)
def environment(realm: Realm) -> Iterator[None]:
    """This process is in the realm, for the whole module: hypothesis runs a test's body many times over."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("KRB5CCNAME", "KRB5_KTNAME", "KRB5_CLIENT_KTNAME", "KRB5_TRACE"):
            patch.delenv(name, raising=False)
        patch.setenv("KRB5_CONFIG", realm.env["KRB5_CONFIG"])
        yield


@pytest.fixture(scope="module")
def keytab(realm: Realm) -> Path:
    realm.principal(WEB)
    return realm.keytab(realm.directory / "differential.keytab", "etl")


@pytest.fixture(scope="module")
def version_3(realm: Realm) -> dict[str, str]:
    """The environment in which libkrb5 writes version 3."""
    conf = realm.directory / "version3.conf"
    conf.write_text(f"[libdefaults]\n ccache_type = 3\ninclude {realm.env['KRB5_CONFIG']}\n")
    return {**realm.env, "KRB5_CONFIG": str(conf)}


def run(realm: Realm, *command: str | Path, env: dict[str, str] | None = None) -> str:
    done = subprocess.run(command, env=env or realm.env, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


def opened(path: Path) -> tuple[krb5.Context, krb5.CCache]:
    context = krb5.init_context()  # a new one for each file: the first offset that it reads stays in it
    return context, krb5.cc_resolve(context, b"FILE:" + os.fsencode(path))


def name_of(principal: krb5.Principal) -> tuple[bytes, tuple[bytes, ...], int]:
    return principal.realm, tuple(principal.components), int(principal.type) & 0xFFFFFFFF


def named(principal: Principal) -> tuple[bytes, tuple[bytes, ...], int]:
    return principal.realm, principal.components, principal.name_type


def assert_agree(path: Path, entries: int | None = None) -> Ccache:
    """Our reading of a file, which is libkrb5's, field by field."""
    data = path.read_bytes()
    ours = ccache.parse(data)
    context, cache = opened(path)
    assert named(ours.principal) == name_of(krb5.cc_get_principal(context, cache))
    assert (ours.kdc_offset or (0, 0)) == krb5.get_time_offsets(context)
    visible = [entry for entry in ours.credentials if not entry.removed]
    for entry, theirs in zip(visible, cache, strict=True):
        assert named(entry.client) == name_of(theirs.client)
        assert named(entry.server) == name_of(theirs.server)
        assert str(entry.server).encode() == theirs.server.name
        assert (entry.enctype, entry.key) == (theirs.keyblock.enctype & 0xFFFF, theirs.keyblock.data)
        times = tuple(moment & 0xFFFFFFFF for moment in theirs.times)  # libkrb5's are signed, and mean unsigned
        assert (entry.authtime, entry.starttime, entry.endtime, entry.renew_till) == times
        assert entry.flags == theirs.ticket_flags_raw & 0xFFFFFFFF
        assert (entry.ticket, entry.second_ticket) == (theirs.ticket, theirs.second_ticket)
        # Addresses, authorization data and is_skey, which the bindings do not show; marshalled, all is version 4.
        assert ccache.encode_credential(entry) == krb5.marshal_credentials(context, theirs)
        if ours.version == 4:
            assert ccache.encode_credential(entry) == data[slice(*entry.span)]
    seen = set()
    for entry in visible:
        if entry.config_key is not None and entry.server.components not in seen:  # libkrb5 finds the first of each
            seen.add(entry.server.components)
            about = [krb5.parse_name_flags(context, name) for name in entry.server.components[2:]] or [None]
            assert krb5.cc_get_config(context, cache, about[0], entry.config_key) == entry.ticket
    assert entries is None or len(ours.credentials) == entries
    return ours


# Files that others write


@pytest.mark.parametrize(
    "options",
    ["", "-f", "-p", "-l 20m", "-r 7d", "-f -r 2d -l 1h", "-C", "-a", "-s 1h -l 2h", "--no-request-pac"],
)
def test_kinit(realm: Realm, keytab: Path, place: Path, options: str) -> None:
    ours = assert_agree(realm.kinit(keytab, "etl", place / "cc", *options.split()))
    assert ours.version == 4
    assert [entry.server for entry in ours.credentials if entry.is_ticket] == [ccache.tgt_name(realm.name.encode())]
    token = Token.parse((place / "cc").read_bytes())
    assert token.has_tgt
    assert ("-f" in options.split()) == (TicketFlags.FORWARDABLE in token.flags)
    assert (token.renew_until is not None) == (TicketFlags.RENEWABLE in token.flags)
    assert "-r" not in options.split() or token.renew_until
    assert ("-s" in options.split()) == (token.starts > time.time() + 3000)


def test_service_tickets(realm: Realm, keytab: Path, place: Path) -> None:
    path = realm.kinit(keytab, "etl", place / "cc", "-f")
    run(realm, "kvno", "-c", path, WEB)
    # The server's own TGT makes a ticket with a second ticket in it, and is_skey set.
    run(realm, "kvno", "-c", path, "--u2u", f"FILE:{realm.kinit(keytab, 'etl', place / 'other')}", "etl")
    ours = assert_agree(path, entries=4)
    assert Token.parse(path.read_bytes()).services == (f"{WEB}@{realm.name}", f"etl@{realm.name}")
    assert ours.credentials[-1].is_skey
    assert ours.credentials[-1].second_ticket


def test_k5start(realm: Realm, keytab: Path, place: Path) -> None:
    run(realm, "k5start", "-q", "-f", keytab, "-k", place / "cc", "-l", "30m", f"etl@{realm.name}")
    assert_agree(place / "cc", entries=1)


def test_gssapi(realm: Realm, keytab: Path, place: Path) -> None:
    name = gssapi.Name(f"etl@{realm.name}", gssapi.NameType.kerberos_principal)
    held = {"client_keytab": f"FILE:{keytab}", "ccache": f"FILE:{place}/acquired"}
    credentials = gssapi.Credentials(usage="initiate", name=name, store=held)
    assert credentials.lifetime
    ours = assert_agree(place / "acquired")
    assert b"refresh_time" in [entry.config_key for entry in ours.credentials]
    web = gssapi.Name(f"{WEB}@{realm.name}", gssapi.NameType.kerberos_principal)
    gssapi.SecurityContext(name=web, creds=credentials, usage="initiate").step()
    assert_agree(place / "acquired", entries=len(ours.credentials) + 1)
    credentials.store(store={"ccache": f"FILE:{place}/stored"}, usage="initiate", overwrite=True)
    assert_agree(place / "stored", entries=len(ours.credentials) + 1)


def test_libkrb5(realm: Realm, keytab: Path, place: Path) -> None:
    path = place / "cc"
    context, cache = opened(path)
    etl = krb5.parse_name_flags(context, f"etl@{realm.name}".encode())
    options = krb5.get_init_creds_opt_alloc(context)
    tgt = krb5.get_init_creds_keytab(context, etl, options, krb5.kt_resolve(context, b"FILE:" + os.fsencode(keytab)))
    krb5.cc_initialize(context, cache, etl)
    assert_agree(path, entries=0)
    krb5.cc_set_config(context, cache, None, b"whole", b"value")
    krb5.cc_store_cred(context, cache, tgt)
    krb5.cc_store_cred(context, cache, tgt)
    krb5.cc_set_config(context, cache, etl, b"of one", b"\0\xff")
    assert_agree(path, entries=4)
    assert Token.parse(path.read_bytes()).has_tgt
    krb5.cc_set_config(context, cache, None, b"whole", None)
    krb5.cc_remove_cred(context, cache, krb5.CredentialsRetrieveFlags.none, tgt)
    ours = assert_agree(path, entries=4)  # struck out in place, not taken out
    assert [entry.removed for entry in ours.credentials] == [True, True, True, False]
    assert Token.parse(path.read_bytes()).empty
    krb5.cc_store_cred(context, cache, tgt)
    assert_agree(path, entries=5)
    assert Token.parse(path.read_bytes()).has_tgt


def test_version_3(realm: Realm, keytab: Path, place: Path, version_3: dict[str, str]) -> None:
    path = place / "cc"
    run(realm, "kinit", "-f", "-k", "-t", keytab, "-c", path, "etl", env=version_3)
    run(realm, "kvno", "-c", path, WEB, env=version_3)
    ours = assert_agree(path, entries=3)
    assert ours.version == 3
    assert path.read_bytes() == by_hand(ours)
    context, cache = opened(path)
    (_, tgt, _) = cache
    krb5.cc_remove_cred(context, cache, krb5.CredentialsRetrieveFlags.none, tgt)
    assert [entry.removed for entry in assert_agree(path, entries=3).credentials] == [False, True, False]


def test_version_3_takes_the_enctype_that_libkrb5_takes(place: Path) -> None:
    twice = b"\0\x12\0\x12"
    data = by_hand(Ccache(3, ETL, (ticket(enctype=18),)))
    assert data.count(twice) == 1
    (place / "cc").write_bytes(data.replace(twice, b"\0\x11\0\x12"))
    assert_agree(place / "cc", entries=1)


@pytest.mark.parametrize(("shift", "lifetime"), [("-2h", "1d"), ("+2h", "1d"), ("-30d", "31d")])
def test_a_clock_that_is_off(realm: Realm, keytab: Path, place: Path, shift: str, lifetime: str) -> None:
    # libkrb5 measures the offset, writes it into the header, and judges times by it; and so do we.
    askew = ("faketime", "-f", shift)
    run(realm, *askew, "kinit", "-l", lifetime, "-k", "-t", keytab, "-c", place / "cc", f"etl@{realm.name}")
    ours = assert_agree(place / "cc")
    assert ours.kdc_offset is not None
    assert abs(ours.kdc_offset[0] + int(shift[:-1]) * {"h": 3600, "d": 86400}[shift[-1]]) < 10
    run(realm, *askew, "klist", "-s", place / "cc")
    code = """if True:
        import gssapi, krbrefresh, sys
        lifetime = gssapi.Credentials(usage="initiate", store={"ccache": "FILE:" + sys.argv[1]}).lifetime
        remaining = krbrefresh.validate(sys.argv[1], min_remaining=3600).remaining.total_seconds()
        print(lifetime, remaining, abs(lifetime - remaining) < 3)
    """
    assert run(realm, *askew, sys.executable, "-c", code, place / "cc").endswith("True\n")


# Files that nobody writes


def struck_out_in_another_way(cache: Ccache) -> bool:
    """Whether an entry is struck out for us that MIT 1.20 would show, since nobody strikes out like that.

    MIT looks for the two times 0 and -1 alone; older Heimdals left the beginning as it was, or changed the realm alone.
    """
    return any(entry.removed and (entry.endtime, entry.authtime) != (0, 2**32 - 1) for entry in cache.credentials)


def libkrb5_reads(data: bytes) -> tuple[tuple[int, int], tuple[bytes, tuple[bytes, ...], int], list[bytes]]:
    """The offset, the default principal and the entries, marshalled, that libkrb5 finds in these bytes."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        context, cache = opened(Path(file.name))
        principal = krb5.cc_get_principal(context, cache)
        entries = [krb5.marshal_credentials(context, entry) for entry in cache]
        return krb5.get_time_offsets(context), name_of(principal), entries


def we_read(cache: Ccache) -> tuple[tuple[int, int], tuple[bytes, tuple[bytes, ...], int], list[bytes]]:
    entries = [ccache.encode_credential(entry) for entry in cache.credentials if not entry.removed]
    return cache.kdc_offset or (0, 0), named(cache.principal), entries


@given(ccaches() | ccaches(version=3))
@few
def test_any_ccache(cache: Ccache) -> None:
    assume(not struck_out_in_another_way(cache))
    assert libkrb5_reads(by_hand(cache)) == we_read(cache)


@given(mutated())
@many
def test_what_we_accept_libkrb5_reads_likewise(data: bytes) -> None:
    # Not the other way round: a torn entry or bytes behind the last one end the file for libkrb5, silently.
    try:
        cache = ccache.parse(data)
    except CcacheFormatError:
        return
    assume(not struck_out_in_another_way(cache))
    assert libkrb5_reads(data) == we_read(cache)


def test_what_the_fuzzer_makes_is_read_likewise(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    found = differential.run(seed=1, seconds=6)
    assert found.valid > 20
    assert found.tokens > found.valid
    assert set(found.classes) <= set(differential.CLASSES)


HTTP = Principal.parse("HTTP/web.example.com@EXAMPLE.COM")
ODD = Principal(b"X-CACHECONF:", (b"other", b"key"))


def ending(hours: float, **options: Any) -> Credential:
    return ticket(endtime=int(time.time() + hours * 3600), **options)


@pytest.mark.parametrize(
    ("name", "entries", "kdc_offset"),
    [
        (differential.STRUCK_OUT, lambda: [ending(3), ticket(authtime=5, endtime=0)], None),
        (
            differential.CONFIG,
            lambda: [ending(1, server=ODD), ending(3, server=HTTP)],
            None,
        ),
        (differential.FOREIGN, lambda: [ending(3), ending(1, client=HTTP)], None),
        (differential.SEVERAL, lambda: [ending(3), ending(1)], None),
        (differential.NO_TGT, lambda: [ending(3, server=HTTP), ending(1, server=HTTP)], None),
        (differential.FAR, lambda: [ticket(endtime=2**32 - 1)], None),
        (differential.FAR, lambda: [ending(1)], (-(2**31), 0)),
        (differential.MICROSECONDS, lambda: [ending(1)], (0, 900_000_000)),
    ],
)
def test_the_classes_of_disagreement(
    name: str, entries: Callable[[], list[Credential]], kdc_offset: tuple[int, int] | None
) -> None:
    comparison = differential.Comparison()
    comparison.compare(ccache_bytes(*entries(), kdc_offset=kdc_offset))
    assert comparison.classes == {name: 1}


def test_what_follows_the_manifest_is_a_class_of_its_own() -> None:
    body = ccache_bytes(ending(3, server=HTTP))
    whole = seal(body, generation=7, issued_at=1, window_opens_at=2, refresher="here", settings="0f" * 8)
    comparison = differential.Comparison()
    comparison.compare(whole)
    assert (comparison.valid, comparison.classes) == (1, {})
    comparison.compare(whole + ccache.encode_credential(ending(1)))
    assert (comparison.valid, comparison.classes) == (2, {differential.AFTER: 1})


def test_a_disagreement_without_a_name_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    comparison = differential.Comparison()
    data = ccache_bytes(ending(1))
    comparison.compare(data)
    for field in ("endtime", "flags", "renew_till"):

        def misread(data: bytes, read: Callable[[bytes], Ccache] = ccache.parse, field: str = field) -> Ccache:
            parsed = read(data)
            for entry in parsed.credentials:
                setattr(entry, field, getattr(entry, field) + 1)
            return parsed

        with monkeypatch.context() as patch:
            patch.setattr(ccache, "parse", misread)
            with pytest.raises(AssertionError):
                comparison.compare(data)


# Bytes that we write


@given(principals, st.binary(min_size=1, max_size=12).filter(lambda key: b"\0" not in key), octets)
@few
def test_config_entry_is_what_libkrb5_writes(principal: Principal, key: bytes, value: bytes) -> None:
    with tempfile.NamedTemporaryFile() as file:
        file.write(ccache_bytes(principal=principal))
        file.flush()
        context, cache = opened(Path(file.name))
        krb5.cc_set_config(context, cache, None, key, value)
        whole = Path(file.name).read_bytes()
    assert whole == ccache_bytes(principal=principal) + ccache.config_entry(principal, key, value)


def test_a_whole_file_is_what_libkrb5_writes(realm: Realm, keytab: Path, place: Path) -> None:
    path = realm.kinit(keytab, "etl", place / "cc", "-f", "-r", "1d")
    run(realm, "kvno", "-c", path, WEB)
    context, cache = opened(path)
    body = ccache.encode_principal(Principal(realm.name.encode(), (b"etl",)))
    body += b"".join(krb5.marshal_credentials(context, entry) for entry in cache)
    # Even on one machine an exchange measures an offset, of a second at the most, and writes it down.
    offset = ccache.parse(path.read_bytes()).kdc_offset
    assert offset in ((0, 0), (1, 0), (-1, 0))
    assert path.read_bytes() == ccache.encode_header(offset) + body
    (place / "bare").write_bytes(ccache.encode_header(None) + body)
    assert_agree(place / "bare", entries=3)


@pytest.mark.parametrize("away", [None, 0, 7200, -7200])
def test_a_header_is_what_libkrb5_writes(place: Path, away: int | None) -> None:
    context, cache = opened(place / "cc")
    offset = None
    if away is not None:
        krb5.set_real_time(context, int(time.time()) + away, 250_000)
        offset = krb5.get_time_offsets(context)
    etl = krb5.parse_name_flags(context, str(ETL).encode())
    krb5.cc_initialize(context, cache, etl)
    assert (place / "cc").read_bytes() == ccache.encode_header(offset) + ccache.encode_principal(ETL)
    assert ccache.parse((place / "cc").read_bytes()).kdc_offset == offset


def test_a_sealed_token_is_a_ccache_to_libkrb5(realm: Realm, keytab: Path, place: Path) -> None:
    path = realm.kinit(keytab, "etl", place / "cc", "-l", "1h")
    body = path.read_bytes()
    store = {"ccache": f"FILE:{path}"}
    before = gssapi.Credentials(usage="initiate", store=store)
    name, lifetime = str(before.name), before.lifetime
    path.write_bytes(
        seal(body, generation=7, issued_at=1, window_opens_at=2, refresher="here", settings="0f" * 8),
    )
    assert_agree(path, entries=3)
    assert 'config: krbrefresh = {"v":1,"generation":7,' in run(realm, "klist", "-C", path)
    run(realm, "klist", "-s", path)
    after = gssapi.Credentials(usage="initiate", store=store)
    assert (str(after.name), name) == (f"etl@{realm.name}",) * 2
    assert lifetime - 5 <= after.lifetime <= lifetime
    token = Token.parse(path.read_bytes())
    assert (token.generation, token.modified, token.services) == (7, False, ())
    # A consumer that may write to it appends; that leaves the token what it was, but for the mark.
    web = gssapi.Name(f"{WEB}@{realm.name}", gssapi.NameType.kerberos_principal)
    gssapi.SecurityContext(name=web, creds=after, usage="initiate").step()
    assert_agree(path, entries=4)
    token = Token.parse(path.read_bytes())
    assert (token.generation, token.modified, token.services) == (7, True, ())


# Names


def bytes_of(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


@given(awkward.filter(lambda text: text and "\0" not in text))
@many
def test_names_are_read_as_libkrb5_reads_them(text: str) -> None:
    try:
        ours = Principal.parse(text)
    except ValueError:
        ours = None
    try:
        theirs = krb5.parse_name_flags(krb5.init_context(), bytes_of(text), krb5.PrincipalParseFlags.require_realm)
    except (krb5.Krb5Error, UnicodeDecodeError):  # the bindings cannot tell of a refused name that is not UTF-8
        theirs = None
    if theirs is not None and not theirs.realm:  # `etl@`: a name without a realm is of no use here
        theirs = None
    assert (ours is None) == (theirs is None)
    if ours and theirs:  # the name type is a hint, which libkrb5 guesses at and we do not
        assert named(ours)[:2] == name_of(theirs)[:2]


@given(principals | st.builds(Principal, awkward.map(bytes_of), st.lists(awkward.map(bytes_of)).map(tuple)))
@many
def test_names_are_written_as_libkrb5_writes_them(principal: Principal) -> None:
    context = krb5.init_context()
    # build_principal takes no empty realm; an entry of a ccache does.
    theirs = krb5.unmarshal_credentials(context, ccache.encode_credential(Credential(ETL, principal))).server
    assert bytes_of(str(principal)) == krb5.unparse_name_flags(context, theirs)
