from __future__ import annotations

import base64
import json
import os
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wherry.errors import InvalidInput, RegistryError
from wherry.images.auth import (
    ANONYMOUS,
    Challenge,
    Credentials,
    credentials_from_fields,
    parse_challenges,
    parse_token,
    token_request,
)
from wherry.logins import HelperCall, Logins, find_credentials, parse_helper_answer


def test_a_bearer_challenge_is_read() -> None:
    header = (
        'Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="a:b,c"'
    )
    assert parse_challenges([header]) == [
        Challenge(
            "bearer",
            {
                "realm": "https://auth.docker.io/token",
                "service": "registry.docker.io",
                "scope": "a:b,c",
            },
        )
    ]


def test_several_challenges_may_share_one_header_or_have_one_each() -> None:
    one = parse_challenges(['Basic realm="a \\"b\\"", Bearer realm=c , service="d"'])
    two = parse_challenges(['Basic realm="a \\"b\\""', 'Bearer realm=c,service="d"'])
    assert one == two
    assert one == [
        Challenge("basic", {"realm": 'a "b"'}),
        Challenge("bearer", {"realm": "c", "service": "d"}),
    ]


def test_a_scheme_without_parameters_or_with_token68_is_skipped_over() -> None:
    header = 'Negotiate, NTLM TlRMTVNTUAAB==, Basic realm="x"'
    assert [c.scheme for c in parse_challenges([header])] == ["negotiate", "ntlm", "basic"]


@given(st.lists(st.text(max_size=60), max_size=3))
def test_any_header_gives_challenges_without_a_crash(values: list[str]) -> None:
    for challenge in parse_challenges(values):
        assert challenge.scheme == challenge.scheme.lower()


token_chars = st.text("abcXYZ019-._~", min_size=1, max_size=10)
value_chars = st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=0, max_size=20)


@given(
    st.lists(
        st.builds(
            Challenge,
            token_chars.map(str.lower),
            st.dictionaries(token_chars.map(str.lower), value_chars, min_size=1, max_size=4),
        ),
        max_size=3,
    )
)
def test_quoted_challenges_survive_printing_and_parsing(challenges: list[Challenge]) -> None:
    def quoted(text: str) -> str:
        return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'

    printed = ", ".join(
        f"{c.scheme} " + ", ".join(f"{k}={quoted(v)}" for k, v in c.parameters.items())
        for c in challenges
    )
    assert parse_challenges([printed]) == challenges


BEARER = Challenge("bearer", {"realm": "https://auth.example/token?x=1", "service": "s 1"})


def test_an_anonymous_token_request_names_service_and_scope() -> None:
    request = token_request(BEARER, ANONYMOUS, "repository:a:pull", registry_is_https=True)
    assert request.method == "GET"
    assert request.url == ("https://auth.example/token?x=1&service=s+1&scope=repository%3Aa%3Apull")
    assert request.headers == {}


def test_a_password_is_sent_as_basic_authentication() -> None:
    request = token_request(BEARER, Credentials("me", "pä:ss"), "x", registry_is_https=True)
    scheme, _, pair = request.headers["Authorization"].partition(" ")
    assert (scheme, base64.b64decode(pair).decode()) == ("Basic", "me:pä:ss")
    assert "account=me" in request.url


def test_an_identity_token_is_posted() -> None:
    secret = Credentials(identity_token="refresh-me")
    request = token_request(BEARER, secret, "scope", registry_is_https=True)
    assert request.method == "POST"
    assert request.form == {
        "grant_type": "refresh_token",
        "refresh_token": "refresh-me",
        "client_id": "wherry",
        "service": "s 1",
        "scope": "scope",
    }


def test_a_secret_is_not_sent_in_the_clear_when_the_registry_was_https() -> None:
    plain = Challenge("bearer", {"realm": "http://auth.example/token"})
    with pytest.raises(RegistryError, match="without encryption"):
        token_request(plain, Credentials("me", "pass"), "x", registry_is_https=True)
    assert token_request(plain, Credentials("me", "pass"), "x", registry_is_https=False)
    assert token_request(plain, ANONYMOUS, "x", registry_is_https=True)


@pytest.mark.parametrize("realm", ["", "ftp://x/", "file:///etc/passwd", "https://", "nonsense"])
def test_an_unusable_realm_is_refused(realm: str) -> None:
    with pytest.raises(RegistryError, match="token service"):
        token_request(Challenge("bearer", {"realm": realm}), ANONYMOUS, "", registry_is_https=False)


def test_a_token_lasts_as_long_as_the_service_says_less_a_margin() -> None:
    assert parse_token(b'{"token": "t", "expires_in": 300}', 1000.0).expires_at == 1295.0
    assert parse_token(b'{"access_token": "t"}', 1000.0).expires_at == 1055.0
    assert parse_token(b'{"token": "t", "expires_in": -1}', 1000.0).value == "t"


@pytest.mark.parametrize(
    "body", [b"", b"<html>", b"[]", b'{"token": 1}', b'{"token": "a\\nb"}', b"\xff"]
)
def test_a_useless_token_answer_is_an_error(body: bytes) -> None:
    with pytest.raises(RegistryError, match="token service"):
        parse_token(body, 0.0)


def auth(user: str, password: str) -> str:
    return base64.b64encode(f"{user}:{password}".encode()).decode()


def test_credentials_are_found_in_auths_under_every_spelling_of_the_host() -> None:
    for key in ("reg.example:5000", "https://reg.example:5000", "https://reg.example:5000/v2/"):
        config = json.dumps({"auths": {key: {"auth": auth("u", "p:q")}}}).encode()
        assert find_credentials(config, "reg.example:5000") == Credentials("u", "p:q")
        assert find_credentials(config, "reg.example") is None


def test_docker_hub_has_its_old_name_in_config_json() -> None:
    config = json.dumps({"auths": {"https://index.docker.io/v1/": {"auth": auth("u", "p")}}})
    assert find_credentials(config.encode(), "docker.io") == Credentials("u", "p")


def test_helpers_win_over_the_store_and_the_store_over_auths() -> None:
    config = json.dumps(
        {
            "auths": {"a.example": {"auth": auth("u", "p")}},
            "credsStore": "desktop",
            "credHelpers": {"b.example": "ecr-login"},
        }
    ).encode()
    assert find_credentials(config, "b.example") == HelperCall("ecr-login", "b.example")
    assert find_credentials(config, "a.example") == HelperCall("desktop", "a.example")
    assert find_credentials(config, "docker.io") == HelperCall(
        "desktop", "https://index.docker.io/v1/"
    )


def test_a_helpers_token_user_means_an_identity_token() -> None:
    answer = b'{"ServerURL": "x", "Username": "<token>", "Secret": "s"}'
    assert parse_helper_answer(answer) == Credentials(identity_token="s")


def test_x_registry_auth_fields_are_credentials() -> None:
    fields = {"username": "u", "password": "p", "serveraddress": "x"}
    assert credentials_from_fields(fields, "header") == Credentials("u", "p")
    with pytest.raises(InvalidInput, match="header: password"):
        credentials_from_fields({"password": 1}, "header")


def test_secrets_are_not_in_the_repr() -> None:
    assert "geheim" not in repr(Credentials("u", "geheim", "geheim", "geheim"))


@given(st.binary(max_size=40))
def test_a_damaged_config_json_is_an_error_and_no_crash(config: bytes) -> None:
    try:
        find_credentials(config, "docker.io")
    except InvalidInput as error:
        assert "config.json" in error.message


def test_without_config_json_everybody_is_anonymous(tmp_path: Path) -> None:
    assert Logins({"DOCKER_CONFIG": str(tmp_path)}).find("docker.io") == ANONYMOUS


def test_a_missing_helper_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"credsStore": "none-such"}')
    with pytest.raises(InvalidInput, match="docker-credential-none-such"):
        Logins({"DOCKER_CONFIG": str(tmp_path), "PATH": str(tmp_path)}).find("docker.io")


@pytest.mark.skipif(sys.platform == "win32", reason="the helper is a script")
@pytest.mark.parametrize(
    ("script", "found"),
    [
        (
            'read name; echo "{\\"Username\\": \\"u\\", \\"Secret\\": \\"$name\\"}"',
            Credentials("u", "r.example"),
        ),
        ("echo credentials not found in native keychain; exit 1", ANONYMOUS),
    ],
)
def test_a_helper_is_asked(tmp_path: Path, script: str, found: Credentials) -> None:
    helper = tmp_path / "docker-credential-test"
    helper.write_text(f"#!/bin/sh\n{script}\n")
    helper.chmod(0o755)
    (tmp_path / "config.json").write_text('{"credHelpers": {"r.example": "test"}}')
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    assert Logins({"DOCKER_CONFIG": str(tmp_path), "PATH": path}).find("r.example") == found
