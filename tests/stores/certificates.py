"""Certificates for tests: of an authority, a local server and a client."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

_DAY = timedelta(days=1)


class Certificates:
    """PEM files in a folder. Each instance is an authority of its own, which others do not trust.

    `ca` has signed `certificate` with `key` (for 127.0.0.1 and localhost), and `client_certificate` with `client_key`.
    """

    def __init__(self, folder: Path, *, until: datetime | None = None) -> None:
        """`until`: the end of their validity, if it is not tomorrow."""
        self._until = until or datetime.now(UTC) + _DAY
        self.ca = folder / "ca.pem"
        self.certificate = folder / "server.pem"
        self.key = folder / "server.key"
        self.client_certificate = folder / "client.pem"
        self.client_key = folder / "client.key"
        # Each authority has its own name: with equal names, OpenSSL reports a bad signature, not an unknown authority.
        self._issuer = x509.Name(
            [x509.NameAttribute(NameOID.COMMON_NAME, f"Tidewire tests {x509.random_serial_number()}")]
        )
        self._issuer_key = ec.generate_private_key(ec.SECP256R1())
        public = self._issuer_key.public_key()
        authority = (
            self._builder(self._issuer, public)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_authority_usage(), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        )
        self.ca.write_bytes(authority.sign(self._issuer_key, hashes.SHA256()).public_bytes(Encoding.PEM))
        self._issue("server", ExtendedKeyUsageOID.SERVER_AUTH, self.certificate, self.key)
        self._issue("client", ExtendedKeyUsageOID.CLIENT_AUTH, self.client_certificate, self.client_key)

    def client_context(self) -> ssl.SSLContext:
        """Returns a context that trusts this authority and presents the client's certificate."""
        context = ssl.create_default_context(cafile=str(self.ca))
        context.load_cert_chain(self.client_certificate, self.client_key)
        return context

    def _issue(self, name: str, usage: x509.ObjectIdentifier, certificate: Path, key: Path) -> None:
        private = ec.generate_private_key(ec.SECP256R1())
        built = (
            self._builder(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]), private.public_key())
            .add_extension(
                x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("127.0.0.1")), x509.DNSName("localhost")]),
                critical=False,
            )
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            # Python 3.13 refuses a chain without it (VERIFY_X509_STRICT).
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._issuer_key.public_key()), critical=False
            )
        )
        certificate.write_bytes(built.sign(self._issuer_key, hashes.SHA256()).public_bytes(Encoding.PEM))
        key.touch(mode=0o600)
        key.write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))

    def _builder(self, subject: x509.Name, public: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        now = datetime.now(UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._issuer)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _DAY)
            .not_valid_after(self._until)
        )


def _authority_usage() -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=True,
        encipher_only=False,
        decipher_only=False,
    )
