"""The proxy's own side of TLS."""

from __future__ import annotations

import pathlib
import re
from typing import Final

from OpenSSL import SSL, crypto
from twisted.internet.interfaces import IOpenSSLContextFactory
from twisted.internet.ssl import CertificateOptions, TLSVersion

_CERTIFICATE = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)
_PARTIAL_WRITE: Final = 1
"""OpenSSL's mode, which pyOpenSSL sets, that takes one record at a time of what is written."""
_SUITES: Final = b"TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256"
"""Those of TLS 1.3, the cheapest first (RFC 8446 section 9.1: the one that everybody has)."""


class UnusableCertificate(ValueError):
    """A certificate or key that TLS cannot use; the text says which key, which file and why."""


def server_context(certificate: pathlib.Path, private_key: pathlib.Path) -> IOpenSSLContextFactory:
    """TLS 1.2 and newer with a PEM chain (the own certificate first) and its PEM key.

    Raises UnusableCertificate, also when the key is not the certificate's.
    """
    chain = [_load(certificate, block) for block in _CERTIFICATE.findall(certificate.read_bytes())]
    if not chain:
        raise UnusableCertificate(f"tls.certificate: {certificate} holds no PEM certificate")
    text = private_key.read_bytes()
    if b"ENCRYPTED" in text:
        # OpenSSL would ask for its passphrase on the terminal, once for each worker.
        raise UnusableCertificate(
            f"tls.privateKey: {private_key}: is encrypted; store it without a passphrase"
        )
    try:
        key = crypto.load_privatekey(crypto.FILETYPE_PEM, text)
        options = CertificateOptions(
            privateKey=key,
            certificate=chain[0],
            extraCertChain=chain[1:],
            raiseMinimumTo=TLSVersion.TLSv1_2,
            acceptableProtocols=[b"http/1.1"],
        )
        context = options.getContext()
        context.check_privatekey()
        context.clear_mode(_PARTIAL_WRITE)
        context.set_tls13_ciphersuites(_SUITES)
    except (crypto.Error, SSL.Error, ValueError, TypeError) as error:
        raise UnusableCertificate(f"tls.privateKey: {private_key}: {_reason(error)}") from None
    return options


def _load(file: pathlib.Path, block: bytes) -> crypto.X509:
    try:
        return crypto.load_certificate(crypto.FILETYPE_PEM, block)
    except crypto.Error as error:
        raise UnusableCertificate(f"tls.certificate: {file}: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    """OpenSSL's last word: its errors are lists of (library, function, reason)."""
    details = error.args[0] if error.args else ""
    if isinstance(details, list) and details:
        return str(details[-1][-1])
    return str(details) or "cannot be used"
