"""Certificates for tests: authorities of their own, and certificates that they issue, as PEM files."""

import datetime
import ipaddress
import itertools
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

_numbers = itertools.count()
DAY = datetime.timedelta(days=1)


@dataclass(frozen=True)
class KeyPair:
    """Files of a certificate and its key."""

    certificate_file: Path
    key_file: Path


class Authority:
    """Issues certificates for this machine; its own is in `file`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _name(f"authority-{next(_numbers)}")
        self.certificate = self._sign(self._name, self._key.public_key(), _now() + 30 * DAY, is_authority=True)
        self.file = folder / f"ca-{next(_numbers)}.pem"
        self.file.write_bytes(self.certificate.public_bytes(serialization.Encoding.PEM))

    def issue(self, ends: datetime.datetime | None = None) -> KeyPair:
        """A certificate for localhost; by default it ends tomorrow."""
        number = next(_numbers)
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = self._sign(_name(f"leaf-{number}"), key.public_key(), ends or _now() + DAY, is_authority=False)
        pair = KeyPair(self._folder / f"certificate-{number}.pem", self._folder / f"key-{number}.pem")
        pair.certificate_file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        pair.key_file.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return pair

    def issue_expired(self) -> KeyPair:
        """A certificate that has ended an hour ago."""
        return self.issue(_now() - DAY / 24)

    def _sign(
        self, name: x509.Name, key: ec.EllipticCurvePublicKey, ends: datetime.datetime, *, is_authority: bool
    ) -> x509.Certificate:
        builder = x509.CertificateBuilder(
            self._name, name, key, x509.random_serial_number(), min(_now(), ends) - 2 * DAY, ends
        ).add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
        if not is_authority:
            names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return builder.sign(self._key, hashes.SHA256())


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC).replace(microsecond=0)
