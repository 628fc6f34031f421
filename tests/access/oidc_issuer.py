"""An OpenID Connect issuer on loopback for the tests: RSA and EC keys, discovery, rotation."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

AUDIENCE = "delta-s3-proxy"


class Issuer:
    """The issuer's keys and what it publishes. `requests` are the paths that were asked for."""

    def __init__(self) -> None:
        self.url = "https://issuer.example"
        self.private: dict[str, tuple[str, Any]] = {}
        self.requests: list[str] = []
        self.discovery_issuer: str | None = None
        self.add_rsa("rsa-1")
        self.add_ec("ec-1")

    def add_rsa(self, kid: str, bits: int = 2048) -> None:
        """Publish an RSA key."""
        self.private[kid] = ("RS256", rsa.generate_private_key(65537, bits))

    def add_ec(self, kid: str) -> None:
        """Publish a P-256 key."""
        self.private[kid] = ("ES256", ec.generate_private_key(ec.SECP256R1()))

    def retire(self, kid: str) -> None:
        """Stop publishing a key."""
        del self.private[kid]

    def jwks(self) -> dict[str, Any]:
        """What stands at the jwks_uri."""
        return {"keys": [self._public(kid) for kid in self.private]}

    def document(self, path: str) -> dict[str, Any] | None:
        """What stands at a path."""
        self.requests.append(path)
        if path == "/.well-known/openid-configuration":
            return {"issuer": self.discovery_issuer or self.url, "jwks_uri": f"{self.url}/keys"}
        return self.jwks() if path == "/keys" else None

    async def fetch(self, url: str) -> bytes:
        """The body of a GET, without a network."""
        document = self.document(url.removeprefix(self.url))
        if document is None:
            raise ValueError("404")
        return json.dumps(document).encode()

    def token(self, claims: dict[str, Any], kid: str = "rsa-1", headers: dict[str, Any] | None = None) -> str:
        """A signed token with exactly these claims."""
        algorithm, key = self.private[kid]
        return jwt.encode(claims, key, algorithm, {"kid": kid, **(headers or {})})

    def claims(self, now: float, **changes: Any) -> dict[str, Any]:
        """The claims of a good token; a change to None takes the claim away."""
        good = {
            "iss": self.url,
            "aud": AUDIENCE,
            "sub": "4711",
            "groups": ["desk"],
            "iat": int(now),
            "nbf": int(now),
            "exp": int(now) + 600,
        }
        return {name: value for name, value in {**good, **changes}.items() if value is not None}

    def _public(self, kid: str) -> dict[str, Any]:
        algorithm, key = self.private[kid]
        public = jwt.get_algorithm_by_name(algorithm).to_jwk(_public_of(key), as_dict=True)
        return {**public, "kid": kid, "use": "sig", "alg": algorithm}


def _public_of(key: PrivateKeyTypes) -> Any:
    return key.public_key()


@contextlib.contextmanager
def serving(issuer: Issuer) -> Iterator[Issuer]:
    """The issuer over HTTP on a free port of loopback."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            document = issuer.document(self.path)
            self.send_response(404 if document is None else 200)
            self.end_headers()
            self.wfile.write(json.dumps(document).encode())

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    issuer.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield issuer
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
