"""What a support bundle shows to strangers: no secret survives, what is harmless stays readable."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from wherry.doctor.redact import GONE, Person, redact, redact_argv, redact_environment

PERSON = Person(user="mallory", homes=("/srv/homes/mallory",), host="mallorys-laptop")

SECRETS = st.text("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789", min_size=6).map(
    lambda text: f"Zq{text}"
)
"""A beginning that is in no text around them."""

PLACES = (
    "https://user:{}@registry.example/v2/",
    "https://{}@proxy.example:3128",
    "http_proxy=http://me:{}@proxy:8080/",
    "GET /v2/x?token={}&n=1 HTTP/1.1",
    "https://bucket.example/blob?X-Amz-Signature={}&X-Amz-Date=1",
    "Authorization: Bearer {}",
    "authorization: Basic {}",
    "Proxy-Authorization: Basic {}",
    '{{"auths": {{"registry.example": {{"auth": "{}"}}}}}}',
    '{{"identitytoken": "{}"}}',
    '{{"Username": "me", "Secret": "{}"}}',
    "password: {}",
    "password: '{}'",
    "PGPASSWORD={}",
    "AWS_SECRET_ACCESS_KEY={}",
    "api-key = {}",
    "docker login --password {} registry.example",
    "client_secret={}&grant_type=password",
    "-----BEGIN RSA PRIVATE KEY-----\n{}\n-----END RSA PRIVATE KEY-----",
    "-----BEGIN OPENSSH PRIVATE KEY-----\n{}",
    "ghp_{}00000000",
    "dckr_pat_{}00000000",
    "eyJhbGciOiJI.{}.sig",
)


@pytest.mark.parametrize("place", PLACES)
@given(secret=SECRETS)
def test_no_secret_survives(place: str, secret: str) -> None:
    shown = redact(f"before {place.format(secret)} after")
    assert secret not in shown
    assert GONE in shown


@given(st.text())
@example("password: password: x")
@example("Authorization: Bearer Bearer x")
@example("token=token=a")
@example("a://b@c@d")
@example("/home/mallory/home/x")
@example('"auth": "' + "\\")
@example("auth='a''b")
def test_what_is_redacted_stays_as_it_is(text: str) -> None:
    once = redact(text, PERSON)
    assert redact(once, PERSON) == once


@given(st.lists(st.sampled_from([*(it.format("Zq123456") for it in PLACES), " ", "\n", '"', "x"])))
def test_secrets_side_by_side_do_not_hide_each_other(parts: list[str]) -> None:
    assert "Zq123456" not in redact(" ".join(parts))


@given(
    st.dictionaries(
        st.sampled_from(["password", "auth", "identitytoken", "user", "digest"]),
        st.text() | st.text("ab\"'\\\n"),
    )
)
def test_json_stays_json(values: dict[str, str]) -> None:
    shown = json.loads(redact(json.dumps(values)))
    assert shown.keys() == values.keys()
    for secret in ("password", "auth", "identitytoken"):
        assert shown.get(secret, GONE) == GONE


def test_what_is_harmless_stays() -> None:
    for text in (
        "2026-01-02 10:00:00,000 INFO wherry.engine.daemon: engine of machine m, process 12",
        "sha256:0f343b0931126a20f133d67c2b018a3b5d1e3c6a4d5c1e3f2a1b0c9d8e7f6a5b",
        "https://registry.example:5000/v2/library/debian/manifests/13",
        "qemu-system-x86_64 -machine q35,accel=tcg -m 1024 -device virtio-scsi-pci,id=scsi0",
        "monkey: banana",
        "[    1.0] Run /init as init process",
    ):
        assert redact(text, PERSON) == text


def test_people_are_not_named() -> None:
    text = (
        "/srv/homes/mallory/.wherry/config.yml /home/alice/x /Users/bob/.docker "
        "C:\\Users\\carol\\x mallory@mallorys-laptop: mallorys stays"
    )
    shown = redact(text, PERSON)
    for name in ("alice", "bob", "carol", "mallory@", "laptop"):
        assert name not in shown
    assert shown.startswith("~/.wherry/config.yml ~/x ~/.docker ~\\x USER@HOST")


def test_a_directory_that_only_begins_like_home_is_another() -> None:
    person = Person(homes=("/root",))
    assert redact("/root/x /rootfs/x", person) == "~/x /rootfs/x"


def test_user_names_that_are_words_stay() -> None:
    assert redact("root is uid 0", Person(user="root")) == "root is uid 0"


def test_only_variables_that_matter_are_kept_and_without_secrets() -> None:
    environ = {
        "WHERRY_HOME": "/srv/homes/mallory/w",
        "HTTPS_PROXY": "http://me:hunter22@proxy.example:3128",
        "WHERRY_TOKEN": "hunter22",
        "AWS_SECRET_ACCESS_KEY": "hunter22",
        "SSH_AUTH_SOCK": "/tmp/agent",
        "LESS": "-R",
    }
    assert redact_environment(environ, PERSON) == {
        "HTTPS_PROXY": f"http://{GONE}@proxy.example:3128",
        "WHERRY_HOME": "~/w",
        "WHERRY_TOKEN": GONE,
    }


@pytest.mark.parametrize("piece", ["a", "-", "password", "://", '"auth": "', "eyJ", "x=", "?&;"])
def test_a_long_line_takes_no_time(piece: str) -> None:
    """A guest writes the console: it must not be able to make this hang."""
    text = piece * (64 * 1024 // len(piece))
    began = time.process_time()
    redact(text, PERSON)
    assert time.process_time() - began < 2


def test_a_command_line_keeps_its_words() -> None:
    argv = ["qemu", "-drive", "file=/srv/homes/mallory/d", "-object", "secret,id=s,data=x"]
    shown = redact_argv(argv, PERSON)
    assert len(shown) == len(argv)
    assert shown[2] == "file=~/d"
