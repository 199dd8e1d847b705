"""A token service for docker-registry, and the certificates that it and TLS need.

distribution's docs/spec/auth/jwt.md: the registry trusts tokens that are signed by a key whose
certificate (in the token's header, `x5c`) leads to its root bundle.
"""

from __future__ import annotations

import base64
import contextlib
import datetime
import ipaddress
import json
import secrets
import ssl
import threading
import time
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.x509.oid import NameOID

ISSUER = "wherry-tests"
SERVICE = "test-registry"
TOKEN_SECONDS = 60


@dataclass(frozen=True)
class Authority:
    """A private CA in a directory: `ca.crt`, and a certificate for loopback with its key."""

    directory: Path
    ca_key: ec.EllipticCurvePrivateKey = field(
        default_factory=lambda: ec.generate_private_key(ec.SECP256R1())
    )

    @property
    def ca_file(self) -> Path:
        return self.directory / "ca.crt"

    @property
    def certificate(self) -> Path:
        return self.directory / "server.crt"

    @property
    def key_file(self) -> Path:
        return self.directory / "server.key"

    def write(self) -> Authority:
        """Make the files."""
        self.directory.mkdir(parents=True, exist_ok=True)
        ca = self._sign("Private CA", self.ca_key.public_key(), is_ca=True)
        key = ec.generate_private_key(ec.SECP256R1())
        server = self._sign("127.0.0.1", key.public_key(), is_ca=False)
        self.ca_file.write_bytes(ca.public_bytes(serialization.Encoding.PEM))
        self.certificate.write_bytes(server.public_bytes(serialization.Encoding.PEM))
        self.key_file.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        return self

    def server_context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.certificate, self.key_file)
        return context

    def chain(self) -> list[str]:
        """The CA's certificate as `x5c` has it."""
        ca = x509.load_pem_x509_certificate(self.ca_file.read_bytes())
        return [base64.b64encode(ca.public_bytes(serialization.Encoding.DER)).decode()]

    def _sign(
        self, subject: str, public: ec.EllipticCurvePublicKey, *, is_ca: bool
    ) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        day = datetime.timedelta(days=1)
        loopback = [x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        return (
            x509.CertificateBuilder(_name("Private CA"), _name(subject), public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - day)
            .not_valid_after(now + day)
            .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName(loopback), critical=False)
            .sign(self.ca_key, hashes.SHA256())
        )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


class TokenServer:
    """Hands out tokens at `realm`. `users`: name to password; each may pull everything and push
    below its own name; whoever does not log in may pull below `public/`.

    `asked` has the scopes of all requests.
    """

    def __init__(self, authority: Authority, users: dict[str, str]) -> None:
        self.authority = authority
        self.users = users
        self.asked: list[str] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._server.daemon_threads = True
        self._server.tokens = self  # type: ignore[attr-defined]  # how the handler finds it

    @property
    def realm(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/token"

    @contextlib.contextmanager
    def running(self) -> Iterator[TokenServer]:
        thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            self._server.server_close()
            thread.join()

    def allowed(self, user: str, scope: str) -> dict[str, Any]:
        """What of a scope (`repository:a/b:pull,push`) a user gets, as a token says it."""
        kind, _, rest = scope.partition(":")
        name, _, actions = rest.rpartition(":")
        granted = []
        for action in actions.split(","):
            may_pull = bool(user) or name.startswith("public/")
            may = may_pull if action == "pull" else bool(user) and name.startswith(f"{user}/")
            granted += [action] if may else []
        return {"type": kind, "name": name, "actions": granted}

    def token(self, user: str, scopes: list[str]) -> str:
        now = int(time.time())
        claims = {
            "iss": ISSUER,
            "sub": user,
            "aud": SERVICE,
            "exp": now + TOKEN_SECONDS,
            "nbf": now - 10,
            "iat": now,
            "jti": secrets.token_hex(8),
            "access": [self.allowed(user, scope) for scope in scopes],
        }
        header = {"typ": "JWT", "alg": "ES256", "x5c": self.authority.chain()}
        signed = f"{_encoded(json.dumps(header).encode())}.{_encoded(json.dumps(claims).encode())}"
        signature = self.authority.ca_key.sign(signed.encode(), ec.ECDSA(hashes.SHA256()))
        r, s = decode_dss_signature(signature)
        return f"{signed}.{_encoded(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}"


def _encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        tokens: TokenServer = self.server.tokens  # type: ignore[attr-defined]  # set above
        query = urllib.parse.parse_qs(urllib.parse.urlsplit(self.path).query)
        given = (self.headers.get("Authorization") or "").removeprefix("Basic ")
        user, _, password = base64.b64decode(given).decode().partition(":")
        if user and tokens.users.get(user) != password:
            self._reply(401, {"details": "incorrect username or password"})
            return
        scopes = [scope for text in query.get("scope", []) for scope in text.split()]
        tokens.asked += scopes
        answer = {"token": tokens.token(user, scopes), "expires_in": TOKEN_SECONDS}
        self._reply(200, answer)

    def _reply(self, status: int, fields: dict[str, Any]) -> None:
        body = json.dumps(fields).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
