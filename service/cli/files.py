"""Checks the files that settings name: each exists, can be read, and holds what it should.

Without these checks the first connection to the broker, or the first user, would fail.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator
from pathlib import Path

from service.adapters.http_backend.signing import read_secrets
from service.adapters.jwt.keys import parse_keys
from service.contract.document import Fault
from service.settings import Settings
from service.settings.load import read_failure
from service.settings.model import Broker, HookEndpoint, Issuer, WebhookEndpoint

_ABSENT = "holds no certificate in PEM format"
_REASONS = {
    "NO_CERTIFICATE_OR_CRL_FOUND": _ABSENT,
    "NO_START_LINE": _ABSENT,
    "KEY_VALUES_MISMATCH": "is not the key of broker.certificate",
    "KEY_TYPE_MISMATCH": "is not the key of broker.certificate",
}
"""What OpenSSL's reasons mean here."""


def file_faults(settings: Settings) -> Iterator[Fault]:
    """Yields a fault for every unusable file, with its setting."""
    for index, issuer in enumerate(settings.auth.issuers):
        yield from _keys(f"auth.issuers[{index}].jwks_file", issuer)
    for index, endpoint in enumerate(settings.hooks.endpoints):
        yield from _endpoint_files(f"hooks.endpoints[{index}]", endpoint)
    for index, receiver in enumerate(settings.webhooks.endpoints):
        yield from _endpoint_files(f"webhooks.endpoints[{index}]", receiver)
    yield from _certificates(settings.broker)


def _endpoint_files(setting: str, endpoint: HookEndpoint | WebhookEndpoint) -> Iterator[Fault]:
    """Yields a fault for a file of secrets or certificates that cannot be used."""
    if endpoint.secrets_file is not None:
        try:
            read_secrets(endpoint.secrets_file)
        except (OSError, ValueError) as error:
            reason = f"cannot be read: {read_failure(error)}" if isinstance(error, OSError) else str(error)
            yield Fault(str(endpoint.secrets_file), None, f"{reason} ({setting}.secrets_file)")
    ca = endpoint.ca
    if ca is None:
        return
    name = f"{setting}.ca"
    if (fault := _read_fault(name, ca)) is not None:
        yield fault
    else:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        yield from _load_fault(name, ca, lambda: context.load_verify_locations(ca))


def _keys(setting: str, issuer: Issuer) -> Iterator[Fault]:
    """Yields a fault for a key set that cannot verify any token."""
    if issuer.jwks_file is None or issuer.algorithm == "HS256":
        return
    try:
        usable = len(parse_keys(issuer.jwks_file.read_bytes(), issuer.algorithm))
    except (OSError, ValueError) as error:
        reason = read_failure(error) if isinstance(error, OSError) else str(error)
        yield Fault(str(issuer.jwks_file), None, f"the keys of {issuer.issuer} cannot be read: {reason} ({setting})")
    else:
        if not usable:
            yield Fault(str(issuer.jwks_file), None, f"holds no {issuer.algorithm} key for {issuer.issuer} ({setting})")


def _certificates(broker: Broker) -> Iterator[Fault]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    named = {name: getattr(broker, name) for name in ("ca", "certificate", "private_key")}
    faults = {
        name: fault
        for name, path in named.items()
        if path is not None and (fault := _read_fault(f"broker.{name}", path))
    }
    yield from faults.values()
    if broker.ca is not None and "ca" not in faults:
        ca = broker.ca
        yield from _load_fault("broker.ca", ca, lambda: context.load_verify_locations(ca))
    certificate, key = broker.certificate, broker.private_key
    if certificate is None or faults.keys() & {"certificate", "private_key"}:
        return
    if fault := next(
        _load_fault("broker.certificate", certificate, lambda: context.load_verify_locations(certificate)), None
    ):
        yield fault
    elif key is None and b"PRIVATE KEY-----" not in certificate.read_bytes():
        yield Fault(
            str(certificate), None, "holds no private key beside it: set broker.private_key (broker.certificate)"
        )
    else:
        name, path = ("broker.certificate", certificate) if key is None else ("broker.private_key", key)
        yield from _load_fault(name, path, lambda: context.load_cert_chain(certificate, key, password=_no_password))


def _read_fault(name: str, path: Path) -> Fault | None:
    try:
        path.read_bytes()
    except OSError as error:
        return Fault(str(path), None, f"cannot be read: {read_failure(error)} ({name})")
    return None


def _load_fault(name: str, path: Path, load: Callable[[], object]) -> Iterator[Fault]:
    try:
        load()
    except _EncryptedError:
        yield Fault(str(path), None, f"is encrypted, and the service has no password for it ({name})")
    except (OSError, ValueError) as error:  # an ssl.SSLError is an OSError
        code = getattr(error, "reason", None) or ""
        reason = _REASONS.get(code, "holds no private key in PEM format" if name == "broker.private_key" else _ABSENT)
        yield Fault(str(path), None, f"{reason} ({name})")


class _EncryptedError(Exception):
    """OpenSSL has asked for a password."""


def _no_password() -> str:
    raise _EncryptedError
