"""Certificates of an authority that only the tests trust."""

from __future__ import annotations

import datetime
import ipaddress
import os
import ssl
import warnings
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from krbrefresh.refresher.listen import Listen

_DAY = datetime.timedelta(days=1)


class Authority:
    """It signs what it is asked to, and keeps its files in a directory."""

    def __init__(self, directory: Path, name: str = "authority") -> None:
        self.directory = directory
        self.path = directory / f"{name}.pem"
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self._key = ec.generate_private_key(ec.SECP256R1())
        self.path.write_bytes(_pem(self._sign(self._name, self._key.public_key(), ca=True)))

    def issue(self, name: str, *, passphrase: str | None = None) -> tuple[Path, Path]:
        """A certificate for loopback, and its key; in place of those of that name, each by a rename."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        secrecy = serialization.BestAvailableEncryption(passphrase.encode()) if passphrase else None
        return replace(self.directory / f"{name}.crt", _pem(self._sign(subject, key.public_key()))), replace(
            self.directory / f"{name}.key",
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                secrecy or serialization.NoEncryption(),
            ),
        )

    def listen(self, name: str = "server", *, client_ca: Path | None = None, host: str = "127.0.0.1") -> Listen:
        """Where to listen with the certificate of that name."""
        certificate, key = (str(self.directory / f"{name}.{kind}") for kind in ("crt", "key"))
        return Listen(host, 0, certificate, key, str(client_ca) if client_ca else None)

    def client(self, own: tuple[Path, Path] | None = None, *, newest: ssl.TLSVersion | None = None) -> ssl.SSLContext:
        """The end of one who trusts this authority, with a certificate of its own where it has one."""
        context = ssl.create_default_context(cafile=str(self.path))
        if own:
            context.load_cert_chain(*own)
        if newest:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # which is what they are asked for
                context.minimum_version = ssl.TLSVersion.TLSv1
                context.maximum_version = newest
            context.set_ciphers("DEFAULT:@SECLEVEL=0")
        return context

    def _sign(self, subject: x509.Name, key: ec.EllipticCurvePublicKey, *, ca: bool = False) -> x509.Certificate:
        now = datetime.datetime.now(datetime.timezone.utc)
        names = [
            x509.DNSName("localhost"),
            *(x509.IPAddress(ipaddress.ip_address(each)) for each in ("127.0.0.1", "::1")),
        ]
        usage = x509.KeyUsage(  # Python 3.13 insists on it
            digital_signature=True, content_commitment=False, key_encipherment=False, data_encipherment=False,
            key_agreement=False, key_cert_sign=ca, crl_sign=ca, encipher_only=False, decipher_only=False,
        )  # fmt: skip
        ours = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _DAY)
            .not_valid_after(now + _DAY)
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .add_extension(usage, critical=True)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(ours, critical=False)
            .sign(self._key, hashes.SHA256())
        )


def replace(path: Path, content: bytes) -> Path:
    """Puts a file in another's place, as who rotates certificates does."""
    new = path.with_name(f".{path.name}.new")
    new.write_bytes(content)
    os.rename(new, path)
    return path


def serial_of(path: Path) -> int:
    return x509.load_pem_x509_certificate(path.read_bytes()).serial_number


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)
