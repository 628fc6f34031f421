"""The helper's own certificate authority, for clients whose https requests it reads (`--mitm`).

Its key never leaves the directory it was made in. It signs for the host names it is asked for, and for other
authorities never (path length 0).
"""

from __future__ import annotations

import ipaddress
import os
import pathlib
from datetime import UTC, datetime, timedelta

from attrs import frozen
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from twisted.internet.interfaces import IOpenSSLContextFactory
from twisted.internet.ssl import CertificateOptions, TLSVersion

_CERTIFICATE, _KEY = "ca.pem", "ca.key"
_YEARS = timedelta(days=5 * 365)
_LEAF = timedelta(days=30)
_RENEW = timedelta(days=1)
# Clocks of client and helper are the same machine's; this is for containers beside it.
_SKEW = timedelta(hours=1)


class UnusableAuthority(ValueError):
    """The directory holds no authority that can be used; the text says which file and why."""


@frozen
class _Leaf:
    context: IOpenSSLContextFactory
    until: datetime


class LocalAuthority:
    """Certificates for host names, signed by the authority of a directory. `now` is an aware datetime."""

    def __init__(self, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
        self._certificate = certificate
        self._key = key
        # One key for all leaves: it lives no longer than the process.
        self._leaf_key = ec.generate_private_key(ec.SECP256R1())
        self._leaves: dict[str, _Leaf] = {}

    def context(self, host: str, now: datetime) -> IOpenSSLContextFactory:
        """The TLS server side for a host name or IP address, made when first asked for."""
        leaf = self._leaves.get(host)
        if leaf is None or leaf.until - now < _RENEW:
            leaf = self._leaves[host] = _Leaf(self._make_context(host, now), now + _LEAF)
        return leaf.context

    def _make_context(self, host: str, now: datetime) -> IOpenSSLContextFactory:
        usage = [ExtendedKeyUsageOID.SERVER_AUTH]
        certificate = (
            _certificate("delta-s3-proxy-local", self._leaf_key.public_key(), now, now + _LEAF)
            .issuer_name(self._certificate.subject)
            .add_extension(x509.SubjectAlternativeName([_general_name(host)]), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.ExtendedKeyUsage(usage), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False
            )
            .sign(self._key, hashes.SHA256())
        )
        # pyOpenSSL takes cryptography's objects, and deprecates its own; Twisted's types name the latter.
        options: IOpenSSLContextFactory = CertificateOptions(
            privateKey=self._leaf_key,  # type: ignore[arg-type]
            certificate=certificate,  # type: ignore[arg-type]
            raiseMinimumTo=TLSVersion.TLSv1_2,
            acceptableProtocols=[b"http/1.1"],
        )
        options.getContext()
        return options


def open_authority(directory: pathlib.Path, now: datetime) -> LocalAuthority:
    """The authority of a directory, made there at the first time: `ca.pem`, and `ca.key` for the owner alone.

    Raises UnusableAuthority for files that are broken, open to others, past their end, or half there.
    """
    certificate, key = directory / _CERTIFICATE, directory / _KEY
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not key.exists() and not certificate.exists():
            _create(certificate, key, now)
        return _load(certificate, key, now)
    except OSError as error:
        raise UnusableAuthority(f"{error.filename}: {error.strerror}") from None


def certificate_file(directory: pathlib.Path) -> pathlib.Path:
    """The file that clients have to trust."""
    return directory / _CERTIFICATE


def _load(certificate: pathlib.Path, key: pathlib.Path, now: datetime) -> LocalAuthority:
    mode = key.stat().st_mode & 0o777
    if mode & 0o077:
        raise UnusableAuthority(f"{key}: others may read it (mode {mode:04o}); remove it and {certificate}")
    try:
        loaded = x509.load_pem_x509_certificate(certificate.read_bytes())
        private = load_pem_private_key(key.read_bytes(), password=None)
    except (ValueError, TypeError) as error:
        raise UnusableAuthority(f"{key.parent}: the authority cannot be read: {error}") from None
    if not isinstance(private, ec.EllipticCurvePrivateKey) or private.public_key() != loaded.public_key():
        raise UnusableAuthority(f"{key}: is not the key of {certificate}")
    if loaded.not_valid_after_utc - now < _LEAF:
        raise UnusableAuthority(
            f"{certificate}: ends on {loaded.not_valid_after_utc:%Y-%m-%d}; remove both files"
        )
    return LocalAuthority(loaded, private)


def _create(certificate: pathlib.Path, key: pathlib.Path, now: datetime) -> None:
    private = ec.generate_private_key(ec.SECP256R1())
    public = private.public_key()
    made = (
        _certificate("Delta S3 Proxy local helper", public, now, now + _YEARS)
        .issuer_name(_name("Delta S3 Proxy local helper"))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_may_sign_certificates(), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .sign(private, hashes.SHA256())
    )
    pem = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    _write(key, pem, 0o600)
    _write(certificate, made.public_bytes(Encoding.PEM), 0o644)


def _write(path: pathlib.Path, data: bytes, mode: int) -> None:
    """A new file that never had wider permissions than these."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(data)


def _certificate(
    name: str, key: ec.EllipticCurvePublicKey, now: datetime, until: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(_name(name))
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now.astimezone(UTC) - _SKEW)
        .not_valid_after(until.astimezone(UTC))
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _may_sign_certificates() -> x509.KeyUsage:
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


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)
