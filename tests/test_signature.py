"""Tokens that are signed: every way to cheat, and what a worker is told of it."""

from __future__ import annotations

import base64
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import krbrefresh
from krbrefresh import ccache, client
from krbrefresh.ccache import Principal
from krbrefresh.signature import PrivateKey, PublicKeys, generate
from krbrefresh.token import MANIFEST_KEY, Token
from tests.processes import REPOSITORY
from tests.support import ETL, ccache_bytes, program, ticket
from tests.tokens import Signed

OTHER = Principal.parse("other@EXAMPLE.COM")


@pytest.fixture(autouse=True)
def fresh_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process without a memory."""
    for name in ("_known", "_trusted", "_newest", "_keys"):
        monkeypatch.setattr(client, name, {})


def refuses(signed: Signed, data: bytes, error: type[krbrefresh.TokenError], words: str = "") -> None:
    signed.publish(data)
    with pytest.raises(error, match=words or None) as caught:
        signed.validate()
    assert type(caught.value) is error
    assert str(signed.path) in str(caught.value)


@pytest.fixture
def signed(tmp_path: Path) -> Signed:
    return Signed(tmp_path)


def parts(data: bytes) -> tuple[bytes, bytes, bytes]:
    """A sealed token as body, manifest and signature."""
    entry = next(each for each in ccache.parse(data).credentials if each.config_key == MANIFEST_KEY)
    json, _, signature = entry.ticket.rpartition(b".")
    return data[: entry.span[0]], json, signature


def rebuilt(body: bytes, json: bytes, signature: bytes) -> bytes:
    return body + ccache.config_entry(ETL, MANIFEST_KEY, json + b"." + signature)


# --- what is right ---


def test_a_signed_token_passes_and_says_who_signed_it(signed: Signed) -> None:
    signed.publish(signed.seal())
    token = signed.validate()
    assert token.manifest is not None
    assert token.manifest.key_id == signed.key_id
    assert signed.validate() is not None  # again, from memory
    # Who does not ask for a signature reads it like any other.
    assert krbrefresh.validate(signed.path).generation == token.generation == 1000


def test_the_key_id_and_the_signature_are_what_openssl_makes_of_them(signed: Signed) -> None:
    openssl = program("openssl")
    spki = subprocess.run([openssl, "pkey", "-pubin", "-in", signed.public, "-outform", "DER"], capture_output=True)
    digest = subprocess.run([openssl, "dgst", "-sha256", "-r"], input=spki.stdout, capture_output=True, text=False)
    assert digest.stdout.decode().startswith(signed.key_id)

    _, json, signature = parts(signed.seal())
    message, mark = signed.directory / "message", signed.directory / "mark"
    message.write_bytes(json)
    mark.write_bytes(base64.urlsafe_b64decode(signature + b"=="))
    checked = subprocess.run(
        [openssl, "pkeyutl", "-verify", "-pubin", "-inkey", signed.public, "-rawin", "-in", message, "-sigfile", mark],
        capture_output=True,
        text=True,
    )
    assert checked.returncode == 0, checked.stderr


def test_keys_are_rotated_by_trusting_both_for_a_while(signed: Signed, tmp_path: Path) -> None:
    next_one = tmp_path / "next"
    generate(str(next_one))
    both = [signed.public, f"{next_one}.pub"]
    signed.publish(signed.seal(generation=1))
    assert signed.validate(public_key=both).generation == 1
    signed.publish(signed.seal(generation=2, signer=PrivateKey.load(str(next_one))))
    assert signed.validate(public_key=both).generation == 2
    assert signed.validate(public_key=f"{next_one}.pub").generation == 2
    with pytest.raises(krbrefresh.UntrustedError, match=rf"signed with the key '\w+'; trusted here: {signed.key_id}"):
        signed.validate()
    # A key's file that is exchanged, as Kubernetes does it, is read again.
    signed.public.unlink()
    signed.public.symlink_to(f"{next_one}.pub")
    assert signed.validate().generation == 2


# --- every way to cheat ---


def test_every_single_byte_flipped_in_turn(signed: Signed) -> None:
    data, keys = signed.seal(), PublicKeys.load([str(signed.public)])
    reasons = set()
    for index in range(len(data)):
        for flip in (0x01, 0x80):
            altered = bytearray(data)
            altered[index] ^= flip
            with pytest.raises((krbrefresh.CorruptError, krbrefresh.UntrustedError)) as caught:
                Token.parse(bytes(altered), "here").verify(keys)
            reasons.add(caught.value.reason)
    assert reasons == {"corrupt", "untrusted"}


def test_every_way_to_cut_it_short(signed: Signed) -> None:
    data, keys = signed.seal(), PublicKeys.load([str(signed.public)])
    for size in range(len(data)):
        with pytest.raises((krbrefresh.CorruptError, krbrefresh.UntrustedError)):
            Token.parse(data[:size], "here").verify(keys)


def test_another_principals_token(signed: Signed) -> None:
    body = ccache_bytes(ticket(OTHER), principal=OTHER)
    refuses(signed, signed.seal(body), krbrefresh.WrongPrincipalError, "other@EXAMPLE.COM")


def test_an_older_generation_put_back(signed: Signed) -> None:
    old, new = signed.seal(generation=7), signed.seal(generation=8)
    signed.publish(old)
    assert signed.validate().generation == 7
    signed.publish(new)
    assert signed.validate().generation == 8
    refuses(signed, old, krbrefresh.UntrustedError, "generation 7 of etl@EXAMPLE.COM was put back in place of 8")
    signed.publish(new)
    assert signed.validate().generation == 8
    # Without a key nothing is promised, and it passes.
    signed.publish(old)
    assert krbrefresh.validate(signed.path).generation == 7


def test_a_ticket_swapped(signed: Signed) -> None:
    _, json, signature = parts(signed.seal())
    swapped = ccache_bytes(ticket(ticket=b"\x61" * 299 + b"\x62"))
    refuses(signed, rebuilt(swapped, json, signature), krbrefresh.CorruptError, "they were altered")


def test_a_ticket_swapped_and_the_manifest_made_to_fit(signed: Signed) -> None:
    _, _, signature = parts(signed.seal())
    swapped = ccache_bytes(ticket(ticket=b"\x61" * 299 + b"\x62"))
    body, json, _ = parts(signed.seal(swapped))
    refuses(signed, rebuilt(body, json, signature), krbrefresh.UntrustedError, "was not made with the key")


def test_bytes_appended(signed: Signed) -> None:
    data = signed.seal()
    service = Principal.parse("HTTP/web@EXAMPLE.COM")
    refuses(
        signed,
        data + ccache.encode_credential(ticket(ETL, service)),
        krbrefresh.UntrustedError,
        "something was appended",
    )
    refuses(signed, data + b"\0" * 100, krbrefresh.CorruptError)
    refuses(signed, data + data[len(parts(data)[0]) :], krbrefresh.UntrustedError, "something was appended")


def test_the_manifest_removed(signed: Signed) -> None:
    refuses(signed, parts(signed.seal())[0], krbrefresh.UntrustedError, "no manifest")


def test_the_signature_removed(signed: Signed) -> None:
    body, json, _ = parts(signed.seal())
    word = ccache.config_entry(ETL, MANIFEST_KEY, json)
    refuses(signed, body + word, krbrefresh.UntrustedError, "not signed")
    refuses(signed, rebuilt(body, json, b""), krbrefresh.UntrustedError, "garbled")


def test_signed_by_another_key_that_calls_itself_by_the_trusted_ones_id(signed: Signed, tmp_path: Path) -> None:
    generate(str(tmp_path / "foreign"))
    foreign = PrivateKey.load(str(tmp_path / "foreign"))
    refuses(signed, signed.seal(signer=foreign), krbrefresh.UntrustedError, "trusted here")
    foreign.key_id = signed.key_id
    refuses(signed, signed.seal(signer=foreign), krbrefresh.UntrustedError, "was not made with the key")


def test_a_signature_over_other_bytes(signed: Signed) -> None:
    body, json, _ = parts(signed.seal())
    for message in (json + b" ", body, b"", json.replace(b'"generation":1000', b'"generation":1001')):
        mark = base64.urlsafe_b64encode(signed.signer.sign(message)).rstrip(b"=")
        refuses(signed, rebuilt(body, json, mark), krbrefresh.UntrustedError, "was not made with the key")


def test_another_spelling_of_the_signature(signed: Signed) -> None:
    body, json, signature = parts(signed.seal())
    last = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    spare = last[last.index(signature[-1:]) ^ 1 :][:1]  # four bits of the last letter stand for nothing
    for spelling in (signature + b"==", signature[:-1] + spare, signature[:40] + b"\n" + signature[40:], b"+" * 86):
        refuses(signed, rebuilt(body, json, spelling), krbrefresh.UntrustedError)


# --- mistakes, in words ---


def test_a_public_key_needs_a_principal(signed: Signed) -> None:
    signed.publish(signed.seal())
    with pytest.raises(ValueError, match="public_key needs principal"):
        signed.validate(principal=None)
    with pytest.raises(ValueError, match="names no key"):
        signed.validate(public_key=[])


def text(words: str) -> Callable[[Signed, Path], None]:
    return lambda _, path: path.write_text(words) and None


def other_kind(signed: Signed, path: Path) -> None:
    subprocess.run([program("openssl"), "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", "ec.pem"],
                   cwd=path.parent, check=True)  # fmt: skip
    subprocess.run([program("openssl"), "pkey", "-in", "ec.pem", "-pubout", "-out", path], cwd=path.parent, check=True)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda *_: None, "No such file"),
        (text("hello"), "not a public key in PEM"),
        (text(""), "not a public key in PEM"),
        (lambda _, path: path.mkdir(), "not a regular file"),
        (lambda _, path: os.mkfifo(path), "not a regular file"),
        (lambda signed, path: path.write_bytes(signed.key.read_bytes()), "that is a private key"),
        (lambda signed, path: path.write_bytes(signed.public.read_bytes() * 2), "several keys"),
        (other_kind, "not an Ed25519 one"),
    ],
)
def test_a_file_that_is_no_public_key(signed: Signed, make: Callable[[Signed, Path], None], words: str) -> None:
    signed.publish(signed.seal())
    path = signed.directory / "wrong.pub"
    make(signed, path)
    with pytest.raises(krbrefresh.KeyFileError, match=words) as caught:
        signed.validate(public_key=path)
    assert str(path) in str(caught.value)
    assert "PRIVATE KEY" not in str(caught.value)


def test_without_cryptography_it_says_what_to_install(signed: Signed) -> None:
    signed.publish(signed.seal())
    code = (
        "import sys; sys.modules['cryptography'] = None\n"
        "import krbrefresh\n"
        "krbrefresh.validate(sys.argv[1])\n"
        "try:\n"
        "    krbrefresh.validate(sys.argv[1], principal='etl@EXAMPLE.COM', public_key=sys.argv[2])\n"
        "except krbrefresh.NotInstalledError as error:\n"
        "    print(error.hint)\n"
    )
    said = subprocess.run(
        [sys.executable, "-c", code, signed.path, signed.public],
        env={"PYTHONPATH": REPOSITORY}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert said.stdout == "pip install 'krbrefresh[verify]'\n"


# --- keygen ---


def test_keygen_makes_a_pair_and_overwrites_nothing(tmp_path: Path) -> None:
    def keygen(*arguments: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "krbrefresh", "keygen", *map(str, arguments)],
            env={**os.environ, "PYTHONPATH": REPOSITORY},
            capture_output=True,
            text=True,
            umask=0,
        )

    key = tmp_path / "signing"
    made = keygen(key)
    assert made.returncode == 0, made.stderr
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "signing.pub").stat().st_mode) == 0o644
    assert PrivateKey.load(str(key)).key_id in made.stdout
    assert key.read_text().startswith("-----BEGIN PRIVATE KEY-----\n")  # PKCS#8
    assert (tmp_path / "signing.pub").read_text().startswith("-----BEGIN PUBLIC KEY-----\n")
    assert key.read_text().split("\n")[1] not in made.stdout + made.stderr

    before = key.read_bytes()
    again = keygen(key)
    assert (again.returncode, key.read_bytes()) == (2, before)
    assert "never overwritten" in again.stderr
    (tmp_path / "half.pub").write_text("somebody's")
    assert keygen(tmp_path / "half").returncode == 2
    assert sorted(each.name for each in tmp_path.iterdir()) == ["half.pub", "signing", "signing.pub"]
    assert keygen(tmp_path / "no" / "such").returncode == 2


def test_a_private_key_shows_nothing_of_itself(signed: Signed) -> None:
    assert signed.key.read_text().split("\n")[1] not in repr(signed.signer)
