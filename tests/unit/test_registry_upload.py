from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from image_fakes import FakeRegistry, Handler, digest, running, simple_image, token_auth

from wherry.errors import ContentMismatch, RegistryError, Unauthorized
from wherry.images import media
from wherry.images.auth import Credentials
from wherry.images.media import Descriptor
from wherry.images.registry import RegistryClient
from wherry.images.retry import RetryPolicy
from wherry.images.transport import Transport
from wherry.images.upload import PIECE_BYTES, Outcome, RegistryWriter

QUICK = RetryPolicy(attempts=4, base=0.001, ceiling=0.01, longest_wait=2.0)
SMALL = b"a config"
BIG = random.Random(1).randbytes(3 << 20)


@pytest.fixture
def registry() -> Iterator[FakeRegistry]:
    with running(FakeRegistry()) as fake:
        yield fake


@pytest.fixture
def other() -> Iterator[FakeRegistry]:
    with running(FakeRegistry()) as fake:
        yield fake


def writer(registry: FakeRegistry, credentials: Credentials | None = None) -> RegistryWriter:
    transport = Transport(connect_seconds=5, read_seconds=5, commit_seconds=0.5)
    return RegistryWriter(
        RegistryClient(
            registry.host, credentials or Credentials(), transport=transport, policy=QUICK
        )
    )


def descriptor(data: bytes) -> Descriptor:
    return Descriptor("", digest(data), len(data))


def content(data: bytes) -> Callable[[int, int], Iterator[bytes]]:
    def pieces(start: int, end: int) -> Iterator[bytes]:
        for place in range(start, end, PIECE_BYTES):
            yield data[place : min(end, place + PIECE_BYTES)]

    return pieces


def put(registry: FakeRegistry, data: bytes, *sources: str, **more: Any) -> Outcome:
    return (
        writer(registry, **more).put_blob("a/b", descriptor(data), content(data), sources).outcome
    )


@pytest.mark.parametrize("data", [b"", SMALL, BIG], ids=["empty", "small", "big"])
def test_a_blob_arrives_whole(registry: FakeRegistry, data: bytes) -> None:
    assert put(registry, data) is Outcome.UPLOADED
    assert registry.blobs == {digest(data): data}
    assert len(registry.sent("PATCH")) == (len(data) > 1 << 20)


def test_what_is_there_is_not_sent(registry: FakeRegistry) -> None:
    registry.blobs[digest(BIG)] = BIG
    assert put(registry, BIG) is Outcome.EXISTS
    assert registry.sent("POST") == []


def test_a_blob_of_another_size_is_not_taken_for_ours(registry: FakeRegistry) -> None:
    registry.blobs[digest(SMALL)] = SMALL + b"?"
    assert put(registry, SMALL) is Outcome.UPLOADED


def test_another_repositorys_blob_is_mounted(registry: FakeRegistry) -> None:
    registry.blobs[digest(BIG)] = BIG
    registry.owned = {"a/b": set(), "c": set(), "d": {digest(BIG)}}
    assert put(registry, BIG, "d") is Outcome.MOUNTED
    assert registry.owned["a/b"] == {digest(BIG)}
    assert registry.sent("PATCH") == registry.sent("PUT") == []


def test_a_mount_that_became_an_upload_is_used_as_one(registry: FakeRegistry) -> None:
    registry.owned = {"a/b": set(), "c": set()}
    assert put(registry, BIG, "c", "d") is Outcome.UPLOADED
    assert len(registry.sent("POST")) == 1


def test_a_refused_mount_does_not_stop_the_upload(registry: FakeRegistry) -> None:
    registry.fault("mount=", lambda handler: handler.error(403, "DENIED", "not yours") or True)
    assert put(registry, BIG, "c") is Outcome.UPLOADED


def cut_after(count: int) -> Any:
    """Take so many bytes of an upload, then hang up."""

    def answer(handler: Handler) -> bool:
        if handler.command != "PATCH":
            return False
        upload = handler.path.rpartition("/")[2].partition("?")[0]
        handler.fake.uploads[upload] += handler.rfile.read(count)
        handler.close_connection = True
        return True

    return answer


def test_a_broken_upload_goes_on_where_it_stopped(registry: FakeRegistry) -> None:
    registry.fault("/uploads/upload", cut_after(1_500_000), times=3)  # two, and a question
    assert put(registry, BIG) is Outcome.UPLOADED
    ranges = [
        headers["Content-Range"]
        for headers, (method, _) in zip(registry.headers, registry.requests, strict=True)
        if method == "PATCH"
    ]
    assert ranges == [f"0-{len(BIG) - 1}", f"1500000-{len(BIG) - 1}", f"3000000-{len(BIG) - 1}"]


def test_a_registry_that_forgot_the_upload_gets_it_all_again(registry: FakeRegistry) -> None:
    def forget(handler: Handler) -> bool:
        handler.fake.uploads.clear()
        return False

    registry.fault("/uploads/upload", forget, times=1)
    assert put(registry, BIG) is Outcome.UPLOADED
    assert len(registry.sent("POST")) == 2


def test_an_upload_whose_answer_was_lost_is_not_repeated(registry: FakeRegistry) -> None:
    def lose_the_answer(handler: Handler) -> bool:
        if handler.command != "PUT":
            return False
        upload = handler.path.rpartition("/")[2].partition("?")[0]
        handler.fake.blobs[digest(BIG)] = bytes(handler.fake.uploads.pop(upload))
        handler.close_connection = True
        return True

    registry.fault("/uploads/", lose_the_answer, times=1)
    assert put(registry, BIG) is Outcome.UPLOADED
    assert len(registry.sent("PUT")) == 1


def test_a_request_that_is_too_large_is_cut_into_smaller_ones(registry: FakeRegistry) -> None:
    def limit(handler: Handler) -> bool:
        if int(handler.headers.get("Content-Length") or 0) <= 1 << 20:
            return False
        handler.error(413, "SIZE_INVALID", "too large")
        return True

    registry.fault("/uploads/", limit)
    assert put(registry, BIG) is Outcome.UPLOADED
    assert len(registry.blobs[digest(BIG)]) == len(BIG)
    assert len(registry.sent("PATCH")) >= 4


def test_an_upload_that_never_works_ends(registry: FakeRegistry) -> None:
    registry.fault("/uploads/upload", cut_after(0))
    with pytest.raises(RegistryError, match=f"repository a/b, blob {digest(BIG)}"):
        put(registry, BIG)


def test_a_registry_that_takes_nothing_is_left(registry: FakeRegistry) -> None:
    def nothing(handler: Handler) -> bool:
        if handler.command != "PATCH":
            return False
        assert handler.body
        handler.reply(202, b"", {"Location": handler.path, "Range": "0-0"})
        return True

    registry.fault("/uploads/", nothing)
    with pytest.raises(RegistryError, match="has taken nothing"):
        put(registry, BIG)


def test_a_registry_that_stalls_is_asked_again(registry: FakeRegistry) -> None:
    def stall(handler: Handler) -> bool:
        if handler.command != "PATCH":
            return False
        assert handler.released(), "the test's end"
        return True

    registry.fault("/uploads/upload", stall, times=1)
    assert put(registry, BIG) is Outcome.UPLOADED
    assert len(registry.sent("PATCH")) == 2


def test_too_many_requests_are_waited_out(registry: FakeRegistry) -> None:
    def slow_down(handler: Handler) -> bool:
        body = b'{"errors": [{"code": "TOOMANYREQUESTS", "message": "slow down"}]}'
        handler.reply(429, body, {"Retry-After": "0"})
        return True

    registry.fault("/uploads/|/manifests/", slow_down, times=2)
    assert put(registry, BIG) is Outcome.UPLOADED
    registry.fault("/manifests/", slow_down, times=2)
    image = simple_image()
    registry.blobs |= {image.id: image.config, digest(image.layers[0]): image.layers[0]}
    writer(registry).put_manifest("a/b", "1", image.media_type, image.manifest)


def test_a_damaged_blob_is_said(registry: FakeRegistry) -> None:
    with pytest.raises(RegistryError, match="did not match") as caught:
        writer(registry).put_blob("a/b", descriptor(BIG), content(bytes(len(BIG))))
    assert caught.value.hint is not None and "damaged" in caught.value.hint


def test_a_web_page_in_the_place_of_an_upload_is_an_error(registry: FakeRegistry) -> None:
    def page(handler: Handler) -> bool:
        if handler.command != "POST":
            return False
        handler.reply(200, b"<html>Sign in</html>", {"Content-Type": "text/html"})
        return True

    registry.fault("/uploads/", page)
    with pytest.raises(RegistryError, match="HTTP 200"):
        put(registry, BIG)


def test_one_token_for_pull_and_push_covers_the_whole_upload(registry: FakeRegistry) -> None:
    token_auth(registry, user="me", password="secret")
    assert put(registry, BIG, credentials=Credentials("me", "secret")) is Outcome.UPLOADED
    asked = [path for _, path in registry.requests if path.startswith("/token")]
    assert asked == ["/token?service=fake&account=me&scope=repository%3Aa%2Fb%3Apull%2Cpush"] or (
        asked == ["/token?service=fake&scope=repository%3Aa%2Fb%3Apull%2Cpush&account=me"]
    )


def test_a_token_that_ends_in_mid_upload_is_replaced_and_the_bytes_sent_again(
    registry: FakeRegistry,
) -> None:
    issued = token_auth(registry)

    def expire(handler: Handler) -> bool:
        if handler.command == "PATCH":
            issued.append("another")
        return False

    registry.fault("/uploads/", expire, times=2)
    assert put(registry, BIG) is Outcome.UPLOADED
    assert len(registry.sent("PATCH")) == 2


def test_a_refusal_has_the_registrys_words_and_no_secret(registry: FakeRegistry) -> None:
    def deny(handler: Handler) -> bool:
        said = f"{handler.headers.get('Authorization')} may not write, secret"
        handler.error(403, "DENIED", said)
        return True

    registry.fault("/blobs/uploads/", deny)
    login = Credentials("me", "secret", registry_token="tok-en")
    with pytest.raises(Unauthorized, match="may not write") as caught:
        put(registry, BIG, credentials=login)
    assert "secret" not in caught.value.message and "tok-en" not in caught.value.message


def basic(handler: Handler) -> bool:
    if handler.headers.get("Authorization") == Credentials("me", "secret").basic_header():
        return False
    handler.reply(401, b"", {"WWW-Authenticate": 'Basic realm="x"'})
    return True


def test_an_upload_that_is_sent_elsewhere_gets_no_credentials(
    registry: FakeRegistry, other: FakeRegistry
) -> None:
    registry.authorize = basic
    other.uploads["there"] = bytearray()

    def elsewhere(handler: Handler) -> bool:
        if handler.command != "POST" or basic(handler):
            return handler.command == "POST"
        place = f"http://{other.host}/v2/a/b/blobs/uploads/there?signed=1"
        handler.reply(202, b"", {"Location": place})
        return True

    registry.fault("/uploads/", elsewhere)
    assert put(registry, BIG, credentials=Credentials("me", "secret")) is Outcome.UPLOADED
    assert other.blobs == {digest(BIG): BIG}
    assert other.headers and all("Authorization" not in headers for headers in other.headers)


@pytest.mark.parametrize("status", [307, 308])
def test_a_redirected_upload_keeps_its_method_and_leaves_the_credentials_behind(
    registry: FakeRegistry, other: FakeRegistry, status: int
) -> None:
    registry.authorize = basic

    def redirect(handler: Handler) -> bool:
        if handler.command != "PATCH" or basic(handler):
            return handler.command == "PATCH"
        upload = handler.path.rpartition("/")[2].partition("?")[0]
        other.uploads[upload] = handler.fake.uploads[upload]
        handler.reply(status, b"", {"Location": f"http://{other.host}{handler.path}"})
        return True

    registry.fault("/uploads/", redirect)
    assert put(registry, BIG, credentials=Credentials("me", "secret")) is Outcome.UPLOADED
    assert [method for method, _ in other.requests] == ["PATCH"]
    assert "Authorization" not in other.headers[0]


def test_an_upload_redirected_like_a_web_page_is_refused(registry: FakeRegistry) -> None:
    def moved(handler: Handler) -> bool:
        if handler.command != "POST":
            return False
        handler.reply(302, b"", {"Location": "/login"})
        return True

    registry.fault("/uploads/", moved)
    with pytest.raises(RegistryError, match="302"):
        put(registry, BIG)


@pytest.mark.parametrize("place", ["http://registry.example/x", "ftp://127.0.0.1/x", "file:///x"])
def test_an_upload_is_not_sent_somewhere_unsafe(registry: FakeRegistry, place: str) -> None:
    registry.fault(
        "/uploads/",
        lambda handler: (
            handler.command == "POST" and (handler.reply(202, b"", {"Location": place}) or True)
        ),
    )
    with pytest.raises(RegistryError, match="redirects to"):
        put(registry, BIG)


def test_a_manifest_is_put_as_it_is(registry: FakeRegistry) -> None:
    body = b'{ "schemaVersion": 2,\n "config": {"mediaType":"x/y","digest":"%s","size":8} }' % (
        digest(SMALL).encode()
    )
    registry.blobs[digest(SMALL)] = SMALL
    assert not writer(registry).put_manifest("a/b", "1", "application/x.y+json", body)
    assert registry.manifests["a/b", "1"] == ("application/x.y+json", body)


def test_a_registry_that_refuses_oci_is_named_as_such(registry: FakeRegistry) -> None:
    registry.refuses = {media.OCI_MANIFEST}
    with pytest.raises(RegistryError, match="does not take this OCI manifest") as caught:
        writer(registry).put_manifest("a/b", "1", media.OCI_MANIFEST, b"{}")
    assert caught.value.hint is not None and "Docker's media types" in caught.value.hint


def test_a_registry_that_stores_something_else_is_caught(registry: FakeRegistry) -> None:
    registry.fault(
        "/manifests/",
        lambda handler: handler.reply(201, b"", {"Docker-Content-Digest": digest(b"?")}) or True,
    )
    with pytest.raises(ContentMismatch, match="it was stored as"):
        writer(registry).put_manifest("a/b", "1", media.OCI_MANIFEST, b"{}")
