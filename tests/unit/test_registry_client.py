from __future__ import annotations

import datetime
import json
import random
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from image_fakes import FakeImage, FakeRegistry, Handler, digest, running, simple_image, token_auth

from wherry.errors import ContentMismatch, ImageNotFound, RegistryError, Unauthorized
from wherry.images import media
from wherry.images.auth import Credentials
from wherry.images.media import Descriptor
from wherry.images.registry import RegistryClient, Stopped
from wherry.images.retry import Backoff, RetryPolicy, parse_retry_after
from wherry.images.transport import Transport, proxy_for

QUICK = RetryPolicy(attempts=4, base=0.001, ceiling=0.01, longest_wait=2.0)
BIG = random.Random(1).randbytes(3 << 20)


@pytest.fixture
def registry() -> Iterator[FakeRegistry]:
    with running(FakeRegistry()) as fake:
        yield fake


@pytest.fixture
def other() -> Iterator[FakeRegistry]:
    with running(FakeRegistry()) as fake:
        yield fake


def client(registry: FakeRegistry, credentials: Credentials | None = None, **more: Any) -> Any:
    transport = Transport(connect_seconds=5, read_seconds=more.pop("read_seconds", 5))
    return RegistryClient(
        registry.host, credentials or Credentials(), transport=transport, policy=QUICK, **more
    )


def descriptor(data: bytes, size: int | None = None) -> Descriptor:
    return Descriptor("", digest(data), len(data) if size is None else size)


def fetch(registry: FakeRegistry, data: bytes, **more: Any) -> bytes:
    return b"".join(client(registry, **more).blob("a/b", descriptor(data)))


def test_manifests_and_blobs_arrive_whole(registry: FakeRegistry) -> None:
    image = simple_image()
    registry.add("a/b", "1", image)
    reply = client(registry).manifest("a/b", "1")
    assert (reply.body, reply.digest) == (image.manifest, image.manifest_digest)
    assert reply.media_type == media.OCI_MANIFEST
    assert fetch(registry, image.config) == image.config
    assert media.DOCKER_INDEX in registry.headers[1]["Accept"]


def test_an_empty_blob_needs_no_request(registry: FakeRegistry) -> None:
    assert fetch(registry, b"") == b""
    assert registry.requests == []


def test_a_missing_tag_is_not_found_and_named(registry: FakeRegistry) -> None:
    with pytest.raises(ImageNotFound, match=f"{registry.host}/a/b:9 was not found"):
        client(registry).manifest("a/b", "9")


def test_a_missing_blob_is_the_registrys_fault(registry: FakeRegistry) -> None:
    with pytest.raises(RegistryError, match=f"{registry.host}, repository a/b, blob sha256:.*404"):
        fetch(registry, b"nowhere")


def test_a_manifest_with_another_digest_is_refused(registry: FakeRegistry) -> None:
    image = simple_image()
    wrong = "sha256:" + "0" * 64
    registry.manifests["a/b", wrong] = (image.media_type, image.manifest)
    with pytest.raises(ContentMismatch, match="its digest is"):
        client(registry).manifest("a/b", wrong)


def test_a_manifest_that_its_own_header_contradicts_is_refused(registry: FakeRegistry) -> None:
    image = simple_image()

    def lie(handler: Handler) -> bool:
        handler.reply(200, image.manifest, {"Docker-Content-Digest": "sha256:" + "0" * 64})
        return True

    registry.fault("/manifests/", lie)
    with pytest.raises(ContentMismatch):
        client(registry).manifest("a/b", "1")


def test_a_huge_manifest_is_not_read(registry: FakeRegistry) -> None:
    registry.manifests["a/b", "1"] = (media.OCI_MANIFEST, b" " * (5 << 20))
    with pytest.raises(RegistryError, match="larger than 4 MiB"):
        client(registry).manifest("a/b", "1")


def test_a_web_page_is_no_manifest(registry: FakeRegistry) -> None:
    registry.manifests["a/b", "1"] = ("text/html", b"<html>Sign in to the hotel's WLAN</html>")
    with pytest.raises(RegistryError, match="a web page") as caught:
        client(registry).manifest("a/b", "1")
    assert "is a registry?" not in caught.value.message
    assert caught.value.hint is not None and registry.host in caught.value.hint


def cut_after(count: int) -> Any:
    """Send the answer's head and so many bytes of the body, then hang up."""

    def answer(handler: Handler) -> bool:
        data = handler.fake.blobs[handler.path.rpartition("/")[2]]
        start = int((handler.headers.get("Range") or "bytes=0-")[6:-1])
        rest = data[start:]
        span = {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"} if start else {}
        handler.reply(206 if start else 200, rest[:count], span, length=len(rest))
        return True

    return answer


def test_a_broken_download_goes_on_where_it_stopped(registry: FakeRegistry) -> None:
    registry.blobs[digest(BIG)] = BIG
    registry.fault("/blobs/", cut_after(1_500_000), times=1)
    assert fetch(registry, BIG) == BIG
    ranges = [headers.get("Range") for headers in registry.headers[1:]]
    assert ranges[0] is None
    assert ranges[1] is not None and 0 < int(ranges[1][6:-1]) <= 1_500_000


def test_progress_earns_new_tries(registry: FakeRegistry) -> None:
    registry.blobs[digest(BIG)] = BIG
    registry.fault("/blobs/", cut_after(400_000), times=7)
    assert fetch(registry, BIG) == BIG


def test_a_server_that_ignores_ranges_is_read_from_the_start_again(registry: FakeRegistry) -> None:
    registry.blobs[digest(BIG)] = BIG
    registry.fault("/blobs/", cut_after(1_500_000), times=1)

    def all_of_it(handler: Handler) -> bool:
        handler.reply(200, BIG)
        return True

    registry.fault("/blobs/", all_of_it)
    assert fetch(registry, BIG) == BIG


def test_a_wrong_range_is_not_taken(registry: FakeRegistry) -> None:
    registry.blobs[digest(BIG)] = BIG
    registry.fault("/blobs/", cut_after(1_500_000), times=1)

    def wrong(handler: Handler) -> bool:
        handler.reply(206, BIG[7:], {"Content-Range": f"bytes 7-{len(BIG) - 1}/{len(BIG)}"})
        return True

    registry.fault("/blobs/", wrong)
    with pytest.raises(RegistryError, match="range from 7"):
        fetch(registry, BIG)


def test_giving_up_has_an_end_and_names_the_blob(registry: FakeRegistry) -> None:
    registry.blobs[digest(BIG)] = BIG
    registry.fault("/blobs/", cut_after(10))
    with pytest.raises(RegistryError, match=f"blob {digest(BIG)}: the connection broke off"):
        fetch(registry, BIG)
    assert registry.fetched()[digest(BIG)] == QUICK.attempts


@pytest.mark.parametrize("difference", [-1, 1, 100])
def test_a_blob_of_another_length_is_refused(registry: FakeRegistry, difference: int) -> None:
    data = BIG[:1000]
    registry.blobs[digest(data)] = data
    with pytest.raises(ContentMismatch, match="the manifest says"):
        list(client(registry).blob("a/b", descriptor(data, 1000 + difference)))


def test_a_chunked_body_without_end_is_cut_at_the_promised_size(registry: FakeRegistry) -> None:
    data = BIG[:1000]

    def endless(handler: Handler) -> bool:
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        try:
            while not handler.fake.released.is_set():
                handler.wfile.write(b"10000\r\n" + bytes(65536) + b"\r\n")
        except OSError:
            handler.close_connection = True
        return True

    registry.fault("/blobs/", endless)
    with pytest.raises(ContentMismatch, match="registry has more"):
        fetch(registry, data)


def test_a_stalled_server_is_left_and_asked_again(registry: FakeRegistry) -> None:
    data = BIG[:2000]
    registry.blobs[digest(data)] = data

    def stall(handler: Handler) -> bool:
        handler.send_response(200)
        handler.send_header("Content-Length", "2000")
        handler.end_headers()
        handler.wfile.write(data[:100])
        handler.wfile.flush()
        assert handler.fake.released.wait(30), "the test's end"
        return True

    registry.fault("/blobs/", stall, times=1)
    assert fetch(registry, data, read_seconds=0.2) == data


def too_many(retry_after: str) -> Any:
    def answer(handler: Handler) -> bool:
        body = b'{"errors": [{"code": "TOOMANYREQUESTS", "message": "slow down"}]}'
        handler.reply(429, body, {"Retry-After": retry_after})
        return True

    return answer


def test_429_is_waited_out(registry: FakeRegistry) -> None:
    registry.add("a/b", "1", simple_image())
    registry.fault("/manifests/", too_many("0"), times=2)
    assert client(registry).manifest("a/b", "1")


def test_a_retry_after_that_is_too_long_is_not_waited_for(registry: FakeRegistry) -> None:
    registry.fault("/manifests/", too_many("3600"))
    with pytest.raises(RegistryError, match=r"slow down .HTTP 429"):
        client(registry).manifest("a/b", "1")
    assert len(registry.requests) == 2


def test_server_errors_are_tried_again_and_refusals_are_not(registry: FakeRegistry) -> None:
    def failing(status: int) -> Any:
        def answer(handler: Handler) -> bool:
            handler.reply(status, b"<html>oops</html>")
            return True

        return answer

    registry.fault("/manifests/1", failing(503))
    registry.fault("/manifests/2", failing(400))
    with pytest.raises(RegistryError, match="503"):
        client(registry).manifest("a/b", "1")
    asked = len(registry.requests)
    with pytest.raises(RegistryError, match="400"):
        client(registry).manifest("a/b", "2")
    assert (asked, len(registry.requests)) == (1 + QUICK.attempts, asked + 2)


def test_a_token_is_fetched_once_and_used_for_everything(registry: FakeRegistry) -> None:
    image = simple_image()
    registry.add("a/b", "1", image)
    issued = token_auth(registry)
    one = client(registry)
    one.manifest("a/b", "1")
    assert b"".join(one.blob("a/b", descriptor(image.config))) == image.config
    assert issued == ["token-0"]
    asked = next(path for _, path in registry.requests if path.startswith("/token"))
    assert asked == "/token?service=fake&scope=repository%3Aa%2Fb%3Apull"


def test_a_stale_token_is_replaced(registry: FakeRegistry) -> None:
    image = simple_image()
    registry.add("a/b", "1", image)
    issued = token_auth(registry)
    one = client(registry)
    one.manifest("a/b", "1")
    issued.append("somebody else's")
    assert b"".join(one.blob("a/b", descriptor(image.config))) == image.config
    assert len(issued) == 3


def test_a_password_goes_to_the_token_service(registry: FakeRegistry) -> None:
    registry.add("a/b", "1", simple_image())
    token_auth(registry, user="me", password="secret")
    assert client(registry, Credentials("me", "secret")).manifest("a/b", "1")
    with pytest.raises(Unauthorized, match="incorrect username") as caught:
        client(registry, Credentials("me", "wrong")).manifest("a/b", "1")
    assert "wrong" not in caught.value.message
    with pytest.raises(Unauthorized):
        client(registry).manifest("a/b", "1")


def basic_only(handler: Handler) -> bool:
    if handler.headers.get("Authorization") == Credentials("me", "secret").basic_header():
        return False
    body = b'{"errors": [{"code": "UNAUTHORIZED", "message": "authentication required"}]}'
    handler.reply(401, body, {"WWW-Authenticate": 'Basic realm="x"'})
    return True


def test_basic_authentication_works_and_is_not_sent_unasked(registry: FakeRegistry) -> None:
    registry.add("a/b", "1", simple_image())
    registry.authorize = basic_only
    assert client(registry, Credentials("me", "secret")).manifest("a/b", "1")
    assert "Authorization" not in registry.headers[0]
    with pytest.raises(Unauthorized, match="needs a login: authentication required") as caught:
        client(registry).manifest("a/b", "1")
    assert caught.value.hint is not None and "wherry login" in caught.value.hint
    with pytest.raises(Unauthorized, match="access denied"):
        client(registry, Credentials("me", "wrong")).manifest("a/b", "1")


def redirect(target: str) -> Any:
    def answer(handler: Handler) -> bool:
        handler.reply(307, b"", {"Location": target})
        return True

    return answer


def test_credentials_do_not_follow_a_redirect(registry: FakeRegistry, other: FakeRegistry) -> None:
    registry.authorize = basic_only
    registry.fault("/blobs/", lambda handler: basic_only(handler) or redirect(cdn)(handler))
    cdn = f"http://{other.host}/v2/a/b/blobs/{digest(BIG)}"
    other.blobs[digest(BIG)] = BIG
    other.fault("/blobs/", cut_after(1_000_000), times=1)
    assert fetch(registry, BIG, credentials=Credentials("me", "secret")) == BIG
    assert len(other.headers) == 2
    assert all("Authorization" not in headers for headers in other.headers)
    assert "Range" in other.headers[1]


@pytest.mark.parametrize(
    "target", ["http://registry.example/x", "ftp://127.0.0.1/x", "file:///etc/passwd", "gopher:x"]
)
def test_a_redirect_to_somewhere_unsafe_is_refused(registry: FakeRegistry, target: str) -> None:
    registry.fault("/blobs/", redirect(target))
    with pytest.raises(RegistryError, match="redirects to"):
        fetch(registry, b"x")


def test_redirects_in_circles_end(registry: FakeRegistry) -> None:
    registry.fault("/blobs/", redirect("/v2/a/b/blobs/again"))
    with pytest.raises(RegistryError, match="in circles"):
        fetch(registry, b"x")


def test_a_host_that_does_not_listen_is_said_at_once() -> None:
    fake = FakeRegistry()
    with running(fake):
        host = fake.host
    with pytest.raises(RegistryError, match=f"registry {host}.*refused"):
        RegistryClient(host, transport=Transport()).manifest("a/b", "1")


def test_a_transfer_can_be_stopped(registry: FakeRegistry) -> None:
    registry.blobs[digest(BIG)] = BIG
    stop = threading.Event()
    chunks = client(registry, stop=stop).blob("a/b", descriptor(BIG))
    next(chunks)
    stop.set()
    with pytest.raises(Stopped):
        next(chunks)


def test_ping_tells_a_registry_from_something_else(registry: FakeRegistry) -> None:
    client(registry).ping()
    registry.fault("^/v2/$", lambda handler: handler.error(404, "X", "no") or True)
    with pytest.raises(RegistryError, match=f"registry {registry.host}: no .HTTP 404"):
        client(registry).ping()


def test_only_loopback_and_insecure_registries_are_asked_in_the_clear() -> None:
    asked: list[str] = []

    class Recorder(Transport):
        def request(self, method: str, url: str, *args: Any, **more: Any) -> Any:
            asked.append(url)
            raise OSError("not here")

    for domain, insecure in (("docker.io", ()), ("a.example:5000", ("b.example",))):
        with pytest.raises(RegistryError):
            RegistryClient(
                domain, insecure=insecure, transport=Recorder(), policy=RetryPolicy(attempts=1)
            ).manifest("x", "1")
    assert asked == [
        "https://registry-1.docker.io/v2/x/manifests/1",
        "https://a.example:5000/v2/x/manifests/1",
    ]
    asked.clear()
    with pytest.raises(RegistryError):
        RegistryClient(
            "b.example:80",
            insecure=("b.example",),
            transport=Recorder(),
            policy=RetryPolicy(attempts=1),
        ).manifest("x", "1")
    assert asked == ["https://b.example:80/v2/", "http://b.example:80/v2/x/manifests/1"]


def test_the_proxy_of_the_environment_is_used_but_not_for_loopback(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "NO_PROXY", "no_proxy", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("https_proxy", "http://proxy.example:3128")
    monkeypatch.setenv("no_proxy", ".internal")
    assert proxy_for("https://ghcr.io/v2/") == "http://proxy.example:3128"
    assert proxy_for("https://localhost:5000/v2/") is None
    assert proxy_for("https://127.0.0.2/v2/") is None
    assert proxy_for("https://r.internal/v2/") is None


def test_pauses_grow_vary_and_end() -> None:
    backoff = Backoff(RetryPolicy(attempts=4, base=1.0, ceiling=3.0), random.Random(7))
    pauses = [backoff.failed() for _ in range(4)]
    assert pauses[3] is None
    for pause, top in zip(pauses, (1.0, 2.0, 3.0), strict=False):
        assert pause is not None and top / 2 <= pause <= top


def test_retry_after_is_seconds_or_a_date() -> None:
    assert parse_retry_after("120", 0.0) == 120.0
    assert parse_retry_after("Thu, 01 Jan 1970 00:01:40 GMT", 40.0) == 60.0
    assert parse_retry_after("Thu, 01 Jan 1970 00:01:40 GMT", 400.0) == 0.0
    for nonsense in (None, "", "soon", "-1", "9" * 400 + "x"):
        assert parse_retry_after(nonsense, 0.0) is None


def test_the_servers_words_are_one_printable_line(registry: FakeRegistry) -> None:
    message = "bad\x1b[31m\nnews" + "x" * 1000
    registry.fault("/manifests/", lambda handler: handler.error(400, "X", message) or True)
    with pytest.raises(RegistryError) as caught:
        client(registry).manifest("a/b", "1")
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 400


def test_fake_images_are_what_they_claim() -> None:
    image = FakeImage([b"x"], compress=bytes)
    assert json.loads(image.manifest)["layers"][0]["digest"] == digest(b"x")


def certificate(directory: Path) -> ssl.SSLContext:
    """A server's TLS with a certificate that nobody trusts."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    signed = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    file = directory / "server.pem"
    file.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        + signed.public_bytes(serialization.Encoding.PEM)
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    return context


@pytest.mark.filterwarnings("ignore:Unverified HTTPS request")  # urllib3's, about what we chose
def test_loopback_may_speak_tls_with_a_certificate_that_nobody_trusts(tmp_path: Path) -> None:
    fake = FakeRegistry()
    fake.use_tls(certificate(tmp_path))
    with running(fake):
        image = simple_image()
        fake.add("a/b", "1", image)
        assert client(fake).manifest("a/b", "1").body == image.manifest


def test_elsewhere_a_certificate_that_nobody_trusts_ends_it_at_once(tmp_path: Path) -> None:
    fake = FakeRegistry()
    fake.use_tls(certificate(tmp_path))

    class Elsewhere(Transport):
        """A name that is not loopback's leads to the fake registry."""

        def request(self, method: str, url: str, *args: Any, **more: Any) -> Any:
            asked.append(url)
            return super().request(method, url.replace("r.example", fake.host), *args, **more)

    asked: list[str] = []
    with running(fake), pytest.raises(RegistryError, match=r"r\.example.*not trusted"):
        RegistryClient("r.example", transport=Elsewhere(), policy=QUICK).manifest("a/b", "1")
    assert asked == ["https://r.example/v2/a/b/manifests/1"]
    assert fake.requests == []
