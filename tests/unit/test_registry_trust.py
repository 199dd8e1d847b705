"""Private CAs, proxies and logins of a registry, seen from its client."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from image_fakes import FakeRegistry, Handler, digest, running, simple_image, token_auth
from token_server import Authority

from wherry.errors import InvalidInput, RegistryError, Unauthorized
from wherry.images.auth import Credentials
from wherry.images.media import Descriptor
from wherry.images.registry import RegistryClient
from wherry.images.retry import RetryPolicy
from wherry.images.transport import Transport, proxy_for
from wherry.images.trust import Trust, default_trust
from wherry.images.upload import Outcome, RegistryWriter

QUICK = RetryPolicy(attempts=2, base=0.001, ceiling=0.01)
IMAGE = simple_image()


@pytest.fixture
def registry() -> Iterator[FakeRegistry]:
    with running(FakeRegistry()) as fake:
        yield fake


def client(host: str, transport: Transport, login: Credentials | None = None) -> RegistryClient:
    return RegistryClient(host, login or Credentials(), transport=transport, policy=QUICK)


@pytest.fixture
def secure(tmp_path: Path) -> Iterator[tuple[FakeRegistry, Path]]:
    authority = Authority(tmp_path / "ca").write()
    fake = FakeRegistry()
    fake.use_tls(authority.server_context())
    with running(fake):
        yield fake, authority.ca_file


def test_a_private_ca_of_the_settings_is_trusted(secure: tuple[FakeRegistry, Path]) -> None:
    fake, ca = secure
    fake.add("a/b", "1", IMAGE)
    transport = Transport(trust=Trust(((fake.host, str(ca)),)))
    it = client(fake.host, transport)
    assert it.manifest("a/b", "1").body == IMAGE.manifest
    blob = Descriptor("", digest(b"new"), 3)
    pushed = RegistryWriter(it).put_blob("a/b", blob, lambda start, end: iter([b"new"[start:end]]))
    assert pushed.outcome is Outcome.UPLOADED


def test_dockers_directory_of_certificates_is_looked_into(
    secure: tuple[FakeRegistry, Path], tmp_path: Path
) -> None:
    fake, ca = secure
    directory = tmp_path / "docker" / "certs.d" / fake.host
    directory.mkdir(parents=True)
    (directory / "ca.crt").write_bytes(ca.read_bytes())
    fake.add("a/b", "1", IMAGE)
    trust = default_trust((), {"DOCKER_CONFIG": str(tmp_path / "docker")})
    assert client(fake.host, Transport(trust=trust)).manifest("a/b", "1")


def test_with_a_ca_of_its_own_a_registry_on_loopback_must_prove_itself(
    secure: tuple[FakeRegistry, Path], tmp_path: Path
) -> None:
    fake, _ = secure
    wrong = Authority(tmp_path / "another").write().ca_file
    transport = Transport(trust=Trust(((fake.host, str(wrong)),)))
    with pytest.raises(RegistryError, match="not trusted"):
        client(fake.host, transport).manifest("a/b", "1")
    assert fake.requests == []


def test_a_ca_counts_for_its_own_host_only(tmp_path: Path) -> None:
    ca = Authority(tmp_path).write().ca_file
    trust = Trust((("r.example:5000", str(ca)),))
    assert trust.authorities("r.example:5000") == (ca,)
    assert trust.authorities("r.example") == trust.authorities("x.r.example:5000") == ()
    assert Trust((), (tmp_path,)).authorities("..") == ()


def test_a_ca_that_is_not_there_or_no_certificate_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"r\.example is not there"):
        Trust((("r.example", str(tmp_path / "none")),)).authorities("r.example")
    (tmp_path / "text").write_text("no certificate")
    transport = Transport(trust=Trust((("r.example", str(tmp_path / "text")),)))
    with pytest.raises(InvalidInput, match="no certificate in PEM or DER form"):
        transport.request("GET", "https://r.example/v2/", {})


# Proxies.


@pytest.fixture
def proxied(monkeypatch: pytest.MonkeyPatch, registry: FakeRegistry) -> FakeRegistry:
    """The registry is the proxy for plain HTTP, and answers itself."""
    for name in ("http_proxy", "https_proxy", "no_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("http_proxy", f"http://user:pass%40word@{registry.host}")
    monkeypatch.setenv("no_proxy", "direct.example")

    def as_proxy(handler: Handler) -> bool:
        handler.path = handler.path.removeprefix("http://r.example")
        return False

    registry.fault("^http://r.example/", as_proxy)
    return registry


def insecure(host: str, login: Credentials | None = None) -> RegistryClient:
    transport = Transport(connect_seconds=2)
    return RegistryClient(
        host,
        login or Credentials(),
        transport=transport,
        insecure=("r.example",),
        policy=QUICK,
    )


def test_pull_and_push_go_through_the_proxy_of_the_environment(proxied: FakeRegistry) -> None:
    proxied.add("a/b", "1", IMAGE)
    it = insecure("r.example")
    assert it.manifest("a/b", "1").body == IMAGE.manifest
    blob = Descriptor("", digest(b"new"), 3)
    RegistryWriter(it).put_blob("a/b", blob, lambda start, end: iter([b"new"[start:end]]))
    assert proxied.blobs[digest(b"new")] == b"new"
    assert all(path.startswith("http://r.example/") for _, path in proxied.requests)
    wanted = Credentials("user", "pass@word").basic_header()
    assert {headers.get("proxy-authorization") for headers in proxied.headers} == {wanted}


def test_https_asks_the_proxy_for_a_tunnel_and_tells_it_no_password(
    monkeypatch: pytest.MonkeyPatch, proxied: FakeRegistry
) -> None:
    monkeypatch.setenv("https_proxy", f"http://{proxied.host}")
    with pytest.raises(RegistryError, match=r"registry s\.example"):
        client("s.example", Transport(), Credentials("me", "secret")).manifest("a/b", "1")
    assert {method for method, _ in proxied.tunnels} == {"CONNECT"}
    assert {path for _, path in proxied.tunnels} == {"s.example:443"}
    assert proxied.requests == []


@pytest.mark.usefixtures("proxied")
def test_no_proxy_is_heeded() -> None:
    assert proxy_for("http://direct.example/v2/") is None
    assert proxy_for("http://sub.direct.example/v2/") is None
    assert proxy_for("http://r.example/v2/") is not None


# Logging in.


def test_a_login_is_checked_by_the_token_service(registry: FakeRegistry) -> None:
    token_auth(registry, user="me", password="secret")
    it = client(registry.host, Transport(), Credentials("me", "secret"))
    assert it.log_in() is None
    with pytest.raises(Unauthorized, match="incorrect username") as caught:
        client(registry.host, Transport(), Credentials("me", "wrong")).log_in()
    assert "wrong" not in caught.value.message


def test_an_identity_token_is_asked_for_and_used(registry: FakeRegistry) -> None:
    registry.add("a/b", "1", IMAGE)

    def token(handler: Handler) -> bool:
        if handler.command == "POST":
            form = handler.body.decode()
            assert "refresh_token=long-lived" in form and "grant_type=refresh_token" in form
        else:
            assert "offline_token=true" in handler.path
        answer = {"token": "short", "refresh_token": "long-lived"}
        handler.reply(200, json.dumps(answer).encode())
        return True

    def check(handler: Handler) -> bool:
        if handler.headers.get("Authorization") == "Bearer short":
            return False
        realm = f'Bearer realm="http://{registry.host}/token",service="fake"'
        handler.reply(401, b"", {"WWW-Authenticate": realm})
        return True

    registry.fault("^/token", token)
    registry.authorize = check
    login = Credentials("me", "secret")
    assert client(registry.host, Transport(), login).log_in() == "long-lived"
    later = Credentials("me", identity_token="long-lived")
    assert client(registry.host, Transport(), later).manifest("a/b", "1")


def test_a_login_by_password_is_checked(registry: FakeRegistry) -> None:
    def basic(handler: Handler) -> bool:
        if handler.headers.get("Authorization") == Credentials("me", "secret").basic_header():
            return False
        handler.reply(401, b"", {"WWW-Authenticate": 'Basic realm="x"'})
        return True

    registry.authorize = basic
    assert client(registry.host, Transport(), Credentials("me", "secret")).log_in() is None
    with pytest.raises(Unauthorized, match="refused the login"):
        client(registry.host, Transport(), Credentials("me", "wrong")).log_in()


def test_what_is_no_registry_is_no_login(registry: FakeRegistry) -> None:
    registry.fault("^/v2/$", lambda handler: handler.error(404, "X", "nothing here") or True)
    with pytest.raises(RegistryError, match="does not answer as a registry"):
        client(registry.host, Transport(), Credentials("me", "secret")).log_in()
