"""The worker's API: every way in which a token can be bad, every kind of file at its path, and what is said of it."""

from __future__ import annotations

import collections
import contextlib
import datetime
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import krbrefresh
from krbrefresh import (
    CorruptError,
    ExpiredError,
    ExpiringError,
    MissingError,
    NoTicketError,
    NotYetValidError,
    TokenError,
    UnreadableError,
    UntrustedError,
    WrongPrincipalError,
    ccache,
    client,
)
from krbrefresh.ccache import Principal
from krbrefresh.token import seal
from tests.processes import Runner
from tests.support import ETL, Realm, ccache_bytes, eventually, ticket

ROOT = str(Path(krbrefresh.__file__).parents[1])
WEB, DB = "HTTP/web@EXAMPLE.COM", "postgres/db@EXAMPLE.COM"
NOBODY = 65534


def service(name: str = WEB, **fields: Any) -> ccache.Credential:
    return ticket(server=Principal.parse(name), **fields)


def ending(seconds: float, **fields: Any) -> ccache.Credential:
    """A TGT that ends in so many seconds and began a day ago."""
    now = int(time.time())
    return ticket(**{"authtime": now - 86400, "endtime": now + seconds, **fields})


def starting(seconds: float, **fields: Any) -> ccache.Credential:
    now = int(time.time())
    return ticket(**{"authtime": now - 60, "starttime": now + seconds, "endtime": now + seconds + 3600, **fields})


def sealed(generation: int = 1, body: bytes = b"") -> bytes:
    return seal(
        body or ccache_bytes(ticket()),
        generation=generation,
        issued_at=0,
        window_opens_at=0,
        refresher="test",
        settings="0",
    )


def publish(path: Path, data: bytes) -> None:
    """As the refresher does it: all at once."""
    new = path.with_name(".new")
    new.write_bytes(data)
    new.rename(path)


@contextlib.contextmanager
def patched(target: object, name: str, value: object) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(target, name, value)
        yield


def as_nobody(runner: Runner, code: str, *arguments: str | Path) -> str:
    """What a Python process of another user prints."""
    done = subprocess.run(
        [runner.python, "-c", code, *arguments],
        **runner.user(NOBODY),
        cwd="/",
        env=runner.env,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


VALIDATE = """if True:
    import krbrefresh, sys
    try:
        print("valid", krbrefresh.validate(sys.argv[1]).principal)
    except krbrefresh.TokenError as error:
        print(error.reason, error)
"""


# What a token can be, and what is said of it


def shown(value: Any) -> str:
    if isinstance(value, dict):
        return ",".join(value) or "no checks"
    return getattr(value, "reason", "valid") if not callable(value) or isinstance(value, type) else "file"


@pytest.mark.parametrize(
    ("data", "checks", "expected"),
    [
        # corrupt
        (lambda: b"", {}, CorruptError),
        (lambda: b"\x05", {}, CorruptError),
        (lambda: b"\x05\x04", {}, CorruptError),
        (lambda: b"\x05\x01" + ccache_bytes(ticket())[4:], {}, CorruptError),
        (lambda: b"\x05\x02" + ccache_bytes(ticket())[4:], {}, CorruptError),
        (lambda: b"\x05\x05" + ccache_bytes(ticket())[2:], {}, CorruptError),
        (lambda: bytes(range(256)), {}, CorruptError),
        (lambda: ccache_bytes(ticket()) + bytes(100), {}, CorruptError),
        (lambda: ccache_bytes(ticket())[:-1], {}, CorruptError),
        (lambda: sealed() + bytes(100), {}, CorruptError),
        (lambda: sealed().replace(b"\x61" * 9, b"\x61" * 8 + b"!", 1), {}, CorruptError),
        # wrong_principal
        (lambda: ccache_bytes(ticket()), {"principal": "eve@EXAMPLE.COM"}, WrongPrincipalError),
        (lambda: ccache_bytes(ticket()), {"principal": "etl@EXAMPLE.ORG"}, WrongPrincipalError),
        (lambda: ccache_bytes(ticket()), {"principal": "etl/host@EXAMPLE.COM"}, WrongPrincipalError),
        (lambda: ccache_bytes(ticket()), {"principal": "ETL@EXAMPLE.COM"}, WrongPrincipalError),
        (lambda: ccache_bytes(ticket()), {"principal": "etl@EXAMPLE.COM"}, None),
        (lambda: ccache_bytes(ticket()), {"principal": r"\etl@EXAMPLE.COM"}, None),
        # no_ticket
        (lambda: ccache_bytes(), {}, NoTicketError),
        (lambda: ccache_bytes() + ccache.config_entry(ETL, b"fast_avail", b"yes"), {}, NoTicketError),
        (lambda: ccache_bytes(ticket(endtime=0)), {}, NoTicketError),
        (lambda: sealed(body=ccache_bytes()), {}, NoTicketError),
        (lambda: sealed(body=ccache_bytes()) + ccache.encode_credential(ticket()), {}, NoTicketError),
        (lambda: ccache_bytes(service()), {}, None),
        (lambda: ccache_bytes(service()), {"services": [WEB]}, None),
        (lambda: ccache_bytes(service()), {"services": [DB]}, NoTicketError),
        (lambda: ccache_bytes(service()), {"services": [WEB, DB]}, NoTicketError),
        (lambda: ccache_bytes(service(), service(DB)), {"services": (WEB, DB)}, None),
        (lambda: ccache_bytes(ticket()), {"services": [WEB, DB]}, None),
        # not_yet_valid
        (lambda: ccache_bytes(starting(310)), {}, NotYetValidError),
        (lambda: ccache_bytes(starting(290)), {}, None),
        (lambda: ccache_bytes(starting(310)), {"clock_skew": 600}, None),
        (lambda: ccache_bytes(starting(310)), {"clock_skew": datetime.timedelta(minutes=10)}, None),
        (lambda: ccache_bytes(starting(10)), {"clock_skew": 0}, NotYetValidError),
        (lambda: ccache_bytes(starting(10), kdc_offset=(20, 0)), {"clock_skew": 0}, None),
        (lambda: ccache_bytes(ticket(), kdc_offset=(-400, 0)), {}, NotYetValidError),
        # expired
        (lambda: ccache_bytes(ending(-1)), {}, ExpiredError),
        (lambda: ccache_bytes(ending(-1)), {"min_remaining": 0}, ExpiredError),
        (lambda: ccache_bytes(ending(-1)), {"clock_skew": 3600}, ExpiredError),
        (lambda: ccache_bytes(ending(600), kdc_offset=(700, 0)), {}, ExpiredError),
        (lambda: ccache_bytes(ending(-600), kdc_offset=(-700, 0)), {}, None),
        (lambda: ccache_bytes(service(), service(DB, authtime=1, endtime=2)), {}, ExpiredError),
        (lambda: ccache_bytes(ticket(), service(authtime=1, endtime=2)), {}, None),
        # expiring
        (lambda: ccache_bytes(ending(30)), {}, ExpiringError),
        (lambda: ccache_bytes(ending(90)), {}, None),
        (lambda: ccache_bytes(ending(30)), {"min_remaining": 10}, None),
        (lambda: ccache_bytes(ending(5)), {"min_remaining": 0}, None),
        (lambda: ccache_bytes(ending(90)), {"min_remaining": 600}, ExpiringError),
        (lambda: ccache_bytes(ending(90)), {"min_remaining": 600.5, "clock_skew": 3600}, ExpiringError),
        (lambda: ccache_bytes(ending(90)), {"min_remaining": datetime.timedelta(minutes=10)}, ExpiringError),
        (lambda: ccache_bytes(ending(90)), {"min_remaining": datetime.timedelta(minutes=1)}, None),
        (lambda: ccache_bytes(ending(2**31 - int(time.time()) + 5)), {}, None),  # beyond 2038
        # the first of several
        (lambda: b"", {"principal": "eve@EXAMPLE.COM"}, CorruptError),
        (lambda: ccache_bytes(), {"principal": "eve@EXAMPLE.COM"}, WrongPrincipalError),
        (lambda: ccache_bytes(ending(-1)), {"principal": "eve@EXAMPLE.COM"}, WrongPrincipalError),
        (lambda: ccache_bytes(service(authtime=1, endtime=2)), {"services": [DB]}, NoTicketError),
        (lambda: ccache_bytes(service(starttime=2**32 - 1)), {"services": [DB]}, NoTicketError),
        (lambda: ccache_bytes(starting(400, endtime=1)), {}, NotYetValidError),
        (lambda: ccache_bytes(ending(-1)), {"min_remaining": 600}, ExpiredError),
    ],
    ids=shown,
)
def test_validate(
    place: Path, data: Callable[[], bytes], checks: dict[str, Any], expected: type[TokenError] | None
) -> None:
    path = place / "cc"
    path.write_bytes(data())
    if expected is None:
        token = krbrefresh.validate(path, **checks)
        assert (token.path, token.principal) == (str(path), "etl@EXAMPLE.COM")
        return
    with pytest.raises(TokenError) as caught:
        krbrefresh.validate(path, **checks)
    assert type(caught.value) is expected
    assert caught.value.hint
    assert str(caught.value).startswith(f"{path}: ")


REASONS = {
    "missing": MissingError,
    "unreadable": UnreadableError,
    "corrupt": CorruptError,
    "untrusted": UntrustedError,
    "wrong_principal": WrongPrincipalError,
    "no_ticket": NoTicketError,
    "not_yet_valid": NotYetValidError,
    "expired": ExpiredError,
    "expiring": ExpiringError,
}


def test_every_reason_has_one_class() -> None:
    assert {one.reason: one for one in TokenError.__subclasses__()} == REASONS
    assert len(TokenError.__subclasses__()) == len(REASONS)
    for one in REASONS.values():
        assert one.__subclasses__() == []
        assert one("text").hint
        assert one("text", hint="other").hint == "other"
        assert one.__name__ in krbrefresh.__all__


def test_load_looks_at_no_times(place: Path) -> None:
    path = place / "cc"
    for entry in (ending(-100), starting(10_000), ending(1)):
        publish(path, ccache_bytes(entry))
        assert krbrefresh.load(path).has_tgt
    publish(path, ccache_bytes())
    with pytest.raises(NoTicketError):
        krbrefresh.load(path)


def test_malformed_names_are_the_callers_mistake_at_once(place: Path) -> None:
    # Not the token's: said before it is there, and not after a wait for it.
    for checks in ({"principal": "etl"}, {"services": ["HTTP/web"]}, {"services": WEB}):
        one = checks.get("services") == WEB  # a text, and not a list of them
        words = "is a list of principals" if one else "is not of the form"
        with pytest.raises(ValueError, match=words):
            krbrefresh.validate(place / "absent", **checks)
        with pytest.raises(ValueError, match=words):
            krbrefresh.wait(place / "absent", timeout=30, **checks)


# A real token, cut short anywhere


@pytest.fixture(scope="module")
def real(realm: Realm) -> bytes:
    """What kinit and kvno make: configuration, the TGT, a service ticket."""
    keytab = realm.keytab(realm.directory / "client.keytab", "etl")
    realm.principal("HTTP/web.example.com")
    path = realm.kinit(keytab, "etl", realm.directory / "client.cc")
    subprocess.run(["kvno", "-q", "-c", path, "HTTP/web.example.com"], env=realm.env, check=True)
    return path.read_bytes()


@pytest.mark.parametrize("with_manifest", [False, True])
def test_a_token_cut_short_at_any_byte(real: bytes, place: Path, with_manifest: bool) -> None:
    data = sealed(body=real) if with_manifest else real
    whole = krbrefresh.token.Token.parse(data)
    (header, config), (_, tgt), (_, end), *manifest = (entry.span for entry in ccache.parse(data).credentials)
    assert [span[1] for span in manifest] == ([len(data)] if with_manifest else [])
    path = place / "cc"
    path.write_bytes(data)
    assert krbrefresh.validate(path, services=whole.services).generation == (1 if with_manifest else None)
    found: dict[str, list[int]] = collections.defaultdict(list)
    for cut in reversed(range(len(data))):
        os.truncate(path, cut)
        try:
            token = krbrefresh.validate(path)
        except (CorruptError, NoTicketError) as error:
            found[error.reason].append(cut)
        else:
            found["valid"].append(cut)
            # A shorter cache, with nothing in it that was not in the longer one. Cut off at its manifest, a token is
            # a plain ccache, by design: who needs to know asks for the generation, or for the signature.
            assert (token.manifest, token.modified) == (None, False)
            assert (token.has_tgt, token.expires, token.principal) == (True, whole.expires, whole.principal)
            assert token.services == whole.services[: 0 if cut == tgt else 1]
    assert found["no_ticket"] == [config, header]
    assert found["valid"] == ([end, tgt] if with_manifest else [tgt])
    assert len(found["corrupt"]) == len(data) - len(found["no_ticket"]) - len(found["valid"])
    assert sum(map(len, found.values())) == len(data)


# What can be at the path instead of a token


@contextlib.contextmanager
def at_once() -> Iterator[None]:
    before = time.monotonic()
    yield
    assert time.monotonic() - before < 0.5  # a few milliseconds; the rest is for a busy machine


def make_nothing(path: Path) -> None:
    pass


def make_symlink(path: Path) -> None:
    publish(path.with_name("target"), sealed())
    path.symlink_to("target")


def make_dangling_symlink(path: Path) -> None:
    path.symlink_to("nowhere")


def make_symlink_loop(path: Path) -> None:
    path.symlink_to(path.name)


def make_fifo(path: Path) -> None:
    os.mkfifo(path)


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))


def make_sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.write(sealed())
        file.truncate(10_000_000_000)


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    ("make", "expected", "says"),
    [
        (make_nothing, MissingError, "no such file"),
        (make_symlink, UnreadableError, "a symlink, not a regular file"),
        (make_dangling_symlink, UnreadableError, "a symlink"),
        (make_symlink_loop, UnreadableError, "a symlink"),
        (make_fifo, UnreadableError, "a FIFO"),
        (make_socket, UnreadableError, "a socket"),
        (Path.mkdir, UnreadableError, "a directory"),
        (make_sparse, CorruptError, "10000000000 bytes"),
    ],
)
def test_hostile_paths(place: Path, make: Callable[[Path], object], expected: type[TokenError], says: str) -> None:
    path = place / "cc"
    make(path)
    for read in (krbrefresh.load, krbrefresh.validate):
        with at_once(), pytest.raises(TokenError, match=says) as caught:
            read(path)
        assert type(caught.value) is expected


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    ("path", "expected", "says"),
    [
        ("/dev/zero", UnreadableError, "a device"),
        ("/dev/null", UnreadableError, "a device"),
        ("/dev/tty", UnreadableError, "a device"),
        ("/dev/null/cc", MissingError, "no such file"),
        ("/", UnreadableError, "a directory"),
        ("/proc/self/fd/0", UnreadableError, "a symlink"),
        ("/" + "x" * 300, UnreadableError, "too long"),
    ],
)
def test_hostile_system_paths(path: str, expected: type[TokenError], says: str) -> None:
    with at_once(), pytest.raises(TokenError, match=says) as caught:
        krbrefresh.validate(path)
    assert type(caught.value) is expected


@pytest.mark.timeout(20)
@pytest.mark.parametrize("make", [make_symlink, make_fifo, make_socket, Path.mkdir, make_nothing])
def test_a_path_that_is_replaced_between_two_looks(place: Path, make: Callable[[Path], object]) -> None:
    # Seen as a regular file, and something else by the time that it is opened.
    path = place / "cc"
    path.write_bytes(sealed())
    lstat = os.lstat

    def look_and_replace(name: str) -> os.stat_result:
        found = lstat(name)
        path.unlink()
        make(path)
        return found

    with patched(os, "lstat", look_and_replace), at_once(), pytest.raises(TokenError) as caught:
        krbrefresh.validate(path)
    assert type(caught.value) is (MissingError if make is make_nothing else UnreadableError)


def test_symlinked_directories_are_followed(place: Path) -> None:
    # Only the last component matters: Kubernetes mounts volumes behind symlinks.
    (place / "real").mkdir()
    publish(place / "real" / "cc", sealed())
    (place / "link").symlink_to("real")
    assert krbrefresh.validate(place / "link" / "cc").generation == 1


def test_a_file_that_grows_while_it_is_read(place: Path) -> None:
    path = place / "cc"
    path.write_bytes(sealed())
    read = os.read
    asked = 0

    def grow_and_read(fd: int, count: int) -> bytes:
        nonlocal asked
        asked += count
        with path.open("ab") as file:
            file.write(bytes(1_000_000))
        return read(fd, count)

    with patched(os, "read", grow_and_read), at_once(), pytest.raises(CorruptError):
        krbrefresh.validate(path)
    assert asked <= 2 * ccache.MAX_SIZE + 2_000


def test_a_file_that_somebody_keeps_appending_to(place: Path) -> None:
    path = place / "cc"
    data = sealed()
    path.write_bytes(data)
    entry = ccache.encode_credential(service(ticket=bytes(2000)))
    stop = threading.Event()

    def append() -> None:
        with path.open("ab", buffering=0) as file:
            while not stop.is_set() and file.tell() < 1_000_000:
                file.write(entry)

    thread = threading.Thread(target=append)
    thread.start()
    try:
        eventually(lambda: path.stat().st_size > len(data), within=10)
        for _ in range(100):
            with contextlib.suppress(CorruptError), at_once():
                token = krbrefresh.validate(path)
                assert (token.generation, token.services) == (1, ())
    finally:
        stop.set()
        thread.join()
    assert krbrefresh.validate(path).modified


@pytest.mark.parametrize("left", [0, 1, 100])
def test_a_file_that_shrinks_while_it_is_read(place: Path, left: int) -> None:
    path = place / "cc"
    path.write_bytes(sealed())
    read = os.read

    def shrink_and_read(fd: int, count: int) -> bytes:
        os.truncate(path, left)
        return read(fd, count)

    with patched(os, "read", shrink_and_read), pytest.raises(CorruptError):
        krbrefresh.validate(path)


def test_a_file_system_that_returns_less_than_was_asked_for(place: Path) -> None:
    path = place / "cc"
    path.write_bytes(sealed())
    read = os.read
    with patched(os, "read", lambda fd, count: read(fd, min(count, 100))):
        assert krbrefresh.validate(path).generation == 1


def test_an_input_output_error_is_unreadable(place: Path) -> None:
    path = place / "cc"
    path.write_bytes(sealed())

    def fail(fd: int, count: int) -> bytes:
        raise OSError(5, "Input/output error")

    before = set(os.listdir("/proc/self/fd"))
    with patched(os, "read", fail), pytest.raises(UnreadableError, match="Input/output error"):
        krbrefresh.validate(path)
    assert set(os.listdir("/proc/self/fd")) == before  # and nothing stays open


def test_no_descriptor_is_left_open(place: Path) -> None:
    path = place / "cc"
    before = set(os.listdir("/proc/self/fd"))
    for data in (sealed(), b"", ccache_bytes(), bytes(500)):
        publish(path, data)
        with contextlib.suppress(TokenError):
            krbrefresh.validate(path)
    assert set(os.listdir("/proc/self/fd")) == before


# Other users


@pytest.mark.parametrize("length", [-1, float("nan"), datetime.timedelta(seconds=-1)])
@pytest.mark.parametrize("name", ["min_remaining", "clock_skew"])
def test_a_negative_length_of_time_is_the_callers_mistake(place: Path, name: str, length: Any) -> None:
    with pytest.raises(ValueError, match="is not a length of time"):
        krbrefresh.validate(place / "absent", **{name: length})


def test_no_token_remains_for_ever(place: Path) -> None:
    publish(place / "cc", sealed())
    with pytest.raises(ExpiringError, match="and for ever were asked for"):
        krbrefresh.validate(place / "cc", min_remaining=float("inf"))


@pytest.mark.root
def test_permissions(runner: Runner, place: Path) -> None:
    path = place / "cc"
    publish(path, sealed())
    path.chmod(0o444)
    assert as_nobody(runner, VALIDATE, path) == "valid etl@EXAMPLE.COM\n"
    for mode in (0o000, 0o440, 0o600):
        path.chmod(mode)
        assert as_nobody(runner, VALIDATE, path) == (
            f"unreadable {path}: uid {NOBODY} with the groups {NOBODY} may not read it\n"
        )
    os.chown(path, 0, NOBODY)
    path.chmod(0o440)
    assert as_nobody(runner, VALIDATE, path) == "valid etl@EXAMPLE.COM\n"
    place.chmod(0o700)
    assert as_nobody(runner, VALIDATE, path).startswith(f"unreadable {path}: uid {NOBODY} ")


@pytest.mark.root
def test_a_chmod_alone_is_seen(runner: Runner, place: Path) -> None:
    # The bytes and the modification time are as before, and the token is known already.
    path = place / "cc"
    publish(path, sealed())
    path.chmod(0o444)
    code = """if True:
        import krbrefresh, sys
        from krbrefresh import client
        client._SETTLED_NS = 0
        token = krbrefresh.validate(sys.argv[1])
        print(krbrefresh.validate(sys.argv[1]) is token, flush=True)
        sys.stdin.readline()
        try:
            krbrefresh.validate(sys.argv[1])
        except krbrefresh.TokenError as error:
            print(error.reason)
    """
    with subprocess.Popen(
        [runner.python, "-c", code, path],
        **runner.user(NOBODY),
        env=runner.env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as worker:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "True\n"
        path.chmod(0o400)
        assert worker.communicate("go on\n")[0] == "unreadable\n"


# Which file is looked at


@pytest.fixture
def no_names(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in ("KRBREFRESH_CCACHE", "KRB5CCNAME", "KRB5_KTNAME", "KRB5_CLIENT_KTNAME"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


@pytest.mark.parametrize(
    ("ours", "krb5s", "expected"),
    [
        (None, None, "/run/krbrefresh/default/krb5cc"),
        ("", "", "/run/krbrefresh/default/krb5cc"),
        ("/ours", None, "/ours"),
        ("FILE:/ours", "FILE:/krb5s", "/ours"),
        ("/ours", "KCM:0", "/ours"),
        ("", "/krb5s", "/krb5s"),
        (None, "/krb5s", "/krb5s"),
        (None, "FILE:/krb5s", "/krb5s"),
        (None, "FILE:krb5s", "krb5s"),
        (None, "/with:colon/cc", "/with:colon/cc"),
        *(
            (None, name, "/run/krbrefresh/default/krb5cc")
            for name in (
                "KCM:",
                "KCM:0",
                "KEYRING:persistent:0",
                "DIR:/d",
                "DIR::/d/tkt",
                "MEMORY:a",
                "API:x",
                "MSLSA:",
            )
        ),
    ],
)
def test_the_default_path(no_names: pytest.MonkeyPatch, ours: str | None, krb5s: str | None, expected: str) -> None:
    for name, value in (("KRBREFRESH_CCACHE", ours), ("KRB5CCNAME", krb5s)):
        if value is not None:
            no_names.setenv(name, value)
    assert client.resolve() == expected
    assert client.resolve("/given") == client.resolve("FILE:/given") == client.resolve(Path("/given")) == "/given"


@pytest.mark.parametrize(
    "name", ["KCM:", "KCM:1000", "KEYRING:persistent:0", "DIR:/d", "DIR::/d/tkt", "MEMORY:a", "API:x"]
)
def test_other_types_of_ccache_are_refused_by_name(no_names: pytest.MonkeyPatch, name: str) -> None:
    kind = name.partition(":")[0]
    for call in (krbrefresh.load, krbrefresh.validate, krbrefresh.wait, krbrefresh.activate):
        with pytest.raises(ValueError, match=f"{kind} is not read"):
            call(name)
    no_names.setenv("KRBREFRESH_CCACHE", name)
    with pytest.raises(ValueError, match=f"{kind} is not read"):
        krbrefresh.validate()
    assert "KRB5CCNAME" not in os.environ


@pytest.mark.parametrize("name", ["", "FILE:"])
def test_no_path_at_all_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="is empty"):
        krbrefresh.validate(name)


def test_the_environments_token(no_names: pytest.MonkeyPatch, place: Path) -> None:
    publish(place / "ours", sealed(1))
    publish(place / "krb5s", sealed(2))
    no_names.setenv("KRB5CCNAME", f"FILE:{place}/krb5s")
    assert krbrefresh.validate().generation == 2
    no_names.setenv("KRBREFRESH_CCACHE", f"{place}/ours")
    assert krbrefresh.validate().generation == 1
    assert krbrefresh.validate(f"FILE:{place}/krb5s").path == f"{place}/krb5s"


# wait and activate


def test_wait_for_a_token_that_comes_later(place: Path) -> None:
    path = place / "cc"

    def come() -> None:
        for data in (None, b"", ccache_bytes(), ccache_bytes(ending(-1)), sealed(5)):
            time.sleep(0.15)
            if data is not None:
                publish(path, data)

    thread = threading.Thread(target=come)
    thread.start()
    try:
        before = time.monotonic()
        assert krbrefresh.wait(path, timeout=20, principal="etl@EXAMPLE.COM").generation == 5
        assert 0.7 < time.monotonic() - before < 5
    finally:
        thread.join()


def test_wait_gives_the_last_reason(place: Path) -> None:
    path = place / "cc"
    timer = threading.Timer(0.1, publish, (path, ccache_bytes(ending(-1))))
    timer.start()
    try:
        before = time.monotonic()
        with pytest.raises(ExpiredError):
            krbrefresh.wait(path, timeout=datetime.timedelta(seconds=0.5))
        assert 0.5 <= time.monotonic() - before < 3
    finally:
        timer.join()


@pytest.mark.parametrize("timeout", [0, -1, datetime.timedelta(0)])
def test_wait_without_time_looks_once(place: Path, timeout: Any) -> None:
    with at_once(), pytest.raises(MissingError):
        krbrefresh.wait(place / "cc", timeout=timeout)
    publish(place / "cc", sealed())
    assert krbrefresh.wait(place / "cc", timeout=timeout).generation == 1


def test_wait_asks_for_the_same_at_every_look(place: Path) -> None:
    publish(place / "cc", ccache_bytes(service(DB)))
    with pytest.raises(NoTicketError):
        krbrefresh.wait(place / "cc", timeout=0.5, services=iter([WEB]))


def test_activate(no_names: pytest.MonkeyPatch, place: Path) -> None:
    publish(place / "cc", sealed(3))
    no_names.setenv("KRB5CCNAME", "KCM:")
    no_names.setenv("KRB5_CLIENT_KTNAME", "/etc/krb5.keytab")
    no_names.setenv("KRB5_KTNAME", "/etc/acceptor.keytab")
    token = krbrefresh.activate(f"FILE:{place}/cc", principal="etl@EXAMPLE.COM")
    assert token.generation == 3
    child = subprocess.run(["env"], capture_output=True, text=True, check=True).stdout.splitlines()
    assert {f"KRB5CCNAME=FILE:{place}/cc", f"KRBREFRESH_CCACHE={place}/cc"} < set(child)
    assert "KRB5_KTNAME=/etc/acceptor.keytab" in child
    assert not any(line.startswith("KRB5_CLIENT_KTNAME=") for line in child)
    assert krbrefresh.validate() is not None


def test_activate_makes_a_relative_path_absolute(no_names: pytest.MonkeyPatch, place: Path) -> None:
    publish(place / "cc", sealed())
    no_names.chdir(place)
    krbrefresh.activate("cc")
    assert os.environ["KRB5CCNAME"] == f"FILE:{place}/cc"
    no_names.chdir("/")
    assert krbrefresh.validate().generation == 1


def test_activate_leaves_the_environment_alone_when_it_fails(no_names: pytest.MonkeyPatch, place: Path) -> None:
    no_names.setenv("KRB5_CLIENT_KTNAME", "/etc/krb5.keytab")
    before = dict(os.environ)
    with pytest.raises(MissingError):
        krbrefresh.activate(place / "cc", timeout=0)
    assert dict(os.environ) == before


# A file that has not changed


def rested(path: Path) -> None:
    """Until the file at `path` has been left alone for so long that its identity is trusted."""
    time.sleep(max(0, os.stat(path).st_ctime + client._SETTLED_NS / 1e9 + 0.05 - time.time()))


def test_an_unchanged_file_is_not_read_again(place: Path) -> None:
    path = place / "cc"
    publish(path, sealed(1))
    assert krbrefresh.validate(path) is not krbrefresh.validate(path)  # too young: the next change may be in this tick
    rested(path)
    known = krbrefresh.validate(path)
    assert krbrefresh.validate(path) is known
    assert krbrefresh.load(f"FILE:{path}") is known
    # The checks are made all the same.
    with pytest.raises(WrongPrincipalError):
        krbrefresh.validate(path, principal="eve@EXAMPLE.COM")

    # Another inode, the same size, the same modification time.
    before = os.stat(path)
    publish(path, sealed(2))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (os.stat(path).st_size, os.stat(path).st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert krbrefresh.validate(path).generation == 2

    # The same inode, size and modification time; only the time of change tells.
    rested(path)
    assert krbrefresh.validate(path) is krbrefresh.validate(path)
    before = os.stat(path)
    path.write_bytes(sealed(3))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = os.stat(path)
    assert (after.st_ino, after.st_size, after.st_mtime_ns) == (before.st_ino, before.st_size, before.st_mtime_ns)
    assert krbrefresh.validate(path).generation == 3

    # Gone is gone, whatever is known.
    rested(path)
    assert krbrefresh.validate(path) is krbrefresh.validate(path)
    path.unlink()
    with pytest.raises(MissingError):
        krbrefresh.validate(path)


def test_a_known_token_expires(place: Path) -> None:
    path = place / "cc"
    publish(path, ccache_bytes(ending(100)))
    rested(path)
    assert krbrefresh.validate(path) is krbrefresh.validate(path)
    now = time.time()
    for later, expected in ((60, ExpiringError), (101, ExpiredError)):
        with patched(time, "time", lambda later=later: now + later), pytest.raises(expected):
            krbrefresh.validate(path)


def test_many_known_tokens(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A process that looks at ever new paths does not keep them all.
    monkeypatch.setattr(client, "_SETTLED_NS", 0)
    data = sealed()
    for number in range(3 * client._MAX_KNOWN):
        (place / str(number)).write_bytes(data)
        krbrefresh.load(place / str(number))
    assert len(client._known) <= client._MAX_KNOWN


def test_rapid_republishing(place: Path) -> None:
    # Inode numbers repeat, sizes are equal, several generations fall into one tick of the clock.
    path = place / "cc"
    generations = {number: sealed(number) for number in range(1000, 1300)}
    assert len({len(data) for data in generations.values()}) == 1
    inodes = set()
    for number, data in generations.items():
        publish(path, data)
        inodes.add(os.stat(path).st_ino)
        assert krbrefresh.validate(path).generation == number
        assert krbrefresh.validate(path).generation == number
    assert len(inodes) < 300


def test_a_reader_beside_a_writer_sees_whole_generations_in_order(place: Path) -> None:
    path = place / "cc"
    publish(path, sealed(1000))
    failed: list[BaseException] = []
    done = threading.Event()

    def read() -> None:
        try:
            last = 0
            while not done.is_set():
                generation = krbrefresh.validate(path).generation
                assert generation is not None
                assert generation >= last
                last = generation
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=read)
    thread.start()
    try:
        for number in range(1001, 1301):
            publish(path, sealed(number))
    finally:
        done.set()
        thread.join()
    assert failed == []


# The import


def test_importing_costs_a_worker_little() -> None:
    code = f"""if True:
        import sys
        before = set(sys.modules)  # what the interpreter's own start loads is not ours
        sys.path.insert(0, {ROOT!r})
        import krbrefresh
        print(*sorted(set(sys.modules) - before))
    """
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    ours = {name for name in loaded if name.partition(".")[0] == "krbrefresh"}
    assert ours == {f"krbrefresh{name}" for name in ("", ".client", ".ccache", ".errors", ".token", "._text")}
    others = {name.partition(".")[0] for name in loaded - ours}
    assert others <= set(sys.stdlib_module_names)
    assert not others & {"typing", "json", "enum", "dataclasses", "hashlib", "datetime", "pathlib", "re", "ssl"}


def test_validating_loads_the_standard_library_alone(place: Path) -> None:
    publish(place / "cc", sealed())
    code = f"""if True:
        import sys
        before = set(sys.modules)
        sys.path.insert(0, {ROOT!r})
        import krbrefresh
        token = krbrefresh.validate({str(place / "cc")!r})
        [getattr(token, name) for name in dir(token)]
        print(*sorted(set(sys.modules) - before))
    """
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True)
    others = {name for name in done.stdout.split() if name.partition(".")[0] != "krbrefresh"}
    assert {name.partition(".")[0] for name in others} <= set(sys.stdlib_module_names)
    assert not any(name.startswith("krbrefresh.refresher") for name in done.stdout.split())


def test_what_is_public_is_there() -> None:
    for name in krbrefresh.__all__:
        assert hasattr(krbrefresh, name)
