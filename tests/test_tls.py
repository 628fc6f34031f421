"""The proxy's own side of TLS: what it takes for a certificate and a key."""

from __future__ import annotations

import pathlib
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
)

from delta_proxy.tls import UnusableCertificate, server_context

KEY = ec.generate_private_key(ec.SECP256R1())
FORMS = [PrivateFormat.PKCS8, PrivateFormat.TraditionalOpenSSL]


def files(folder: pathlib.Path, form: PrivateFormat) -> tuple[pathlib.Path, pathlib.Path]:
    """A certificate of a key, and the key with a passphrase."""
    name, now = x509.Name([]), datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, KEY.public_key(), x509.random_serial_number())
        .not_valid_before(now)
        .not_valid_after(now + timedelta(days=1))
        .sign(KEY, hashes.SHA256())
    )
    chain, key = folder / "chain.pem", folder / "key.pem"
    chain.write_bytes(certificate.public_bytes(Encoding.PEM))
    key.write_bytes(KEY.private_bytes(Encoding.PEM, form, BestAvailableEncryption(b"passphrase")))
    return chain, key


@pytest.mark.parametrize("form", FORMS)
def test_nobody_is_asked_for_the_passphrase_of_a_key(tmp_path: pathlib.Path, form: PrivateFormat) -> None:
    with pytest.raises(UnusableCertificate, match=r"key\.pem: is encrypted"):
        server_context(*files(tmp_path, form))
