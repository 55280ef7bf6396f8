"""Ed25519 keys for tokens that are signed: the workers' public ones, the refresher's private one (RFC 8032).

Imported by who signs or verifies, and by nobody else: it needs the package cryptography, the extra [verify].
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable

from .errors import KeyFileError, NotInstalledError, UntrustedError

try:
    from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
except ModuleNotFoundError as error:
    raise NotInstalledError(
        f"the module {error.name} is not installed here, and signatures need it",
        hint="pip install 'krbrefresh[verify]'",
    ) from None

_MAX_SIZE = 65536  # of a key's file; one has 120 bytes, and some people put comments around it


class PublicKeys:
    """The public keys that a worker trusts, by their ids."""

    def __init__(self, keys: Iterable[Ed25519PublicKey]) -> None:
        self._keys = {key_id(key): key for key in keys}

    @classmethod
    def load(cls, paths: Iterable[str]) -> PublicKeys:
        """Those in these files, one each (PEM). Raises KeyFileError."""
        return cls([_public_key(path) for path in paths])

    def verify(self, named: str, signature: bytes, message: bytes) -> None:
        """Raises UntrustedError where the key of that id is not one of these, or did not make the signature."""
        key = self._keys.get(named)
        if key is None:
            raise UntrustedError(f"it is signed with the key {named!r}; trusted here: {', '.join(self._keys)}")
        try:
            key.verify(signature, message)
        except InvalidSignature:
            raise UntrustedError(f"its signature was not made with the key {named} over these bytes") from None


class PrivateKey:
    """The refresher's key. Its repr shows nothing of it."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.key_id = key_id(key.public_key())
        self.public = PublicKeys([key.public_key()])

    @classmethod
    def load(cls, path: str) -> PrivateKey:
        """The key in that file (PKCS#8, PEM, no passphrase). Raises KeyFileError."""
        data = _read(path)
        try:
            key = serialization.load_pem_private_key(data, None)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            raise KeyFileError(f"{path}: it is not a private key in PEM without a passphrase") from None
        if not isinstance(key, Ed25519PrivateKey):
            raise KeyFileError(f"{path}: it is a private key, but not an Ed25519 one")
        return cls(key)

    def sign(self, message: bytes) -> bytes:
        """The signature over these bytes, 64 bytes long."""
        return self._key.sign(message)


def key_id(key: Ed25519PublicKey) -> str:
    """What a manifest names a key by: the first 16 hex digits of the SHA-256 of its SubjectPublicKeyInfo (RFC 8410),
    which `openssl pkey -pubin -in PATH.pub -outform DER | sha256sum` prints, too."""
    spki = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(spki).hexdigest()[:16]


def generate(path: str) -> str:
    """Makes a key pair: `path` (PKCS#8 PEM, mode 0600) and `path`.pub (PEM, mode 0644); returns its id.

    Raises KeyFileError where either is there already, or cannot be written; then neither is left behind.
    """
    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    made: list[str] = []
    try:
        for name, data, mode in ((path, private, 0o600), (f"{path}.pub", public, 0o644)):
            file = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            made.append(name)
            with os.fdopen(file, "wb") as stream:
                stream.write(data)
                os.fchmod(file, mode)  # whatever the umask
    except OSError as error:
        for each in made:
            os.unlink(each)
        raise KeyFileError(
            f"{name}: {error.strerror}",
            hint="an existing key is never overwritten: choose another name, or move it away"
            if isinstance(error, FileExistsError)
            else "name a path in a directory that you may write to",
        ) from None
    return key_id(key.public_key())


def _public_key(path: str) -> Ed25519PublicKey:
    data = _read(path)
    if b"PRIVATE KEY" in data:
        raise KeyFileError(
            f"{path}: that is a private key; a worker gets the public one, and must not be able to read the other"
        )
    if data.count(b"-----BEGIN") > 1:
        raise KeyFileError(f"{path}: it has several keys; give each a file, and name all the files")
    try:
        key = serialization.load_pem_public_key(data)
    except (ValueError, UnsupportedAlgorithm):
        raise KeyFileError(f"{path}: it is not a public key in PEM") from None
    if not isinstance(key, Ed25519PublicKey):
        raise KeyFileError(f"{path}: it is a public key, but not an Ed25519 one")
    return key


def _read(path: str) -> bytes:
    try:
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a FIFO without a writer would hold us
        try:
            if not stat.S_ISREG(os.fstat(file).st_mode):
                raise KeyFileError(f"{path}: it is not a regular file")
            return os.read(file, _MAX_SIZE)
        finally:
            os.close(file)
    except OSError as error:
        raise KeyFileError(f"{path}: {error.strerror}", hint="mount the key there, or correct the path") from None
