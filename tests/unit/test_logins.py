"""Docker's config.json, read and written, and credential helpers."""

from __future__ import annotations

import json
import os
import stat
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wherry.errors import InvalidInput, InvalidReference
from wherry.images.reference import parse_reference
from wherry.logins import (
    ANONYMOUS,
    DOCKER_HUB_KEY,
    Credentials,
    Logins,
    credentials_from_fields,
    registry_of,
    server_of,
)

LOGIN = Credentials("me", "se:cret")


def logins(directory: Path, config: Any = None, path: str | None = None) -> Logins:
    if config is not None:
        (directory / "config.json").write_text(json.dumps(config))
    return Logins({"DOCKER_CONFIG": str(directory), "PATH": path or os.environ["PATH"]})


def config_of(directory: Path) -> Any:
    return json.loads((directory / "config.json").read_text())


@pytest.mark.parametrize("registry", ["r.example:5000", "docker.io"])
@pytest.mark.parametrize("login", [LOGIN, Credentials("me", identity_token="tok")])
def test_what_is_stored_is_found_again_until_it_is_erased(
    tmp_path: Path, registry: str, login: Credentials
) -> None:
    mine = logins(tmp_path / "new")
    assert mine.store(registry, login) is None
    assert mine.find(registry) == login
    assert mine.find("other.example") == ANONYMOUS
    assert mine.erase(registry)
    assert mine.find(registry) == ANONYMOUS
    assert not mine.erase(registry)


def test_docker_hub_is_stored_under_its_old_name(tmp_path: Path) -> None:
    logins(tmp_path).store("docker.io", LOGIN)
    assert list(config_of(tmp_path)["auths"]) == [DOCKER_HUB_KEY]


def test_the_rest_of_the_file_stays_as_it_was(tmp_path: Path) -> None:
    before = {"auths": {"a.example": {"auth": "eDp5"}}, "detachKeys": "ctrl-e", "x": [1]}
    mine = logins(tmp_path, before)
    mine.store("b.example", LOGIN)
    mine.erase("b.example")
    assert config_of(tmp_path) == before


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no modes")
def test_the_file_is_for_its_user_only_and_a_link_stays_one(tmp_path: Path) -> None:
    real = tmp_path / "dotfiles" / "config.json"
    real.parent.mkdir()
    real.write_text("{}")
    real.chmod(0o644)
    (tmp_path / "config.json").symlink_to(real)
    logins(tmp_path).store("r.example", LOGIN)
    assert (tmp_path / "config.json").is_symlink()
    assert stat.S_IMODE(real.stat().st_mode) == 0o600
    assert [path.name for path in real.parent.iterdir()] == ["config.json"]


def test_every_spelling_of_a_registry_is_erased(tmp_path: Path) -> None:
    auths = {f"{prefix}r.example{rest}": {"auth": "eDp5"} for prefix, rest in
             [("", ""), ("https://", ""), ("https://", "/v2/")]}  # fmt: skip
    mine = logins(tmp_path, {"auths": auths})
    assert mine.erase("r.example")
    assert config_of(tmp_path)["auths"] == {}


_HELPER = """#!/bin/sh
case $1 in
    store) cat > "$DOCKER_CONFIG/kept" ;;
    get) read -r name; [ -e "$DOCKER_CONFIG/kept" ] ||
            { echo "credentials not found in native keychain"; exit 1; }
        cat "$DOCKER_CONFIG/kept" ;;
    erase) rm "$DOCKER_CONFIG/kept" ;;
esac
"""


@pytest.fixture
def helper(tmp_path: Path) -> str:
    """A PATH with docker-credential-test, which keeps one login in the file `kept`."""
    if sys.platform == "win32":
        pytest.skip("the helper is a script")
    script = tmp_path / "docker-credential-test"
    script.write_text(_HELPER)
    script.chmod(0o755)
    return f"{tmp_path}{os.pathsep}{os.environ['PATH']}"


@pytest.mark.parametrize(
    "config", [{"credsStore": "test"}, {"credHelpers": {"r.example": "test"}, "credsStore": "no"}]
)
@pytest.mark.parametrize("login", [LOGIN, Credentials(identity_token="tok")])
def test_a_helper_keeps_the_secret_and_the_file_has_none(
    tmp_path: Path, helper: str, config: Any, login: Credentials
) -> None:
    mine = logins(tmp_path, config, helper)
    call = mine.store("r.example", login)
    assert call is not None and call.name == "test"
    kept = json.loads((tmp_path / "kept").read_text())
    assert kept["ServerURL"] == "r.example"
    assert config_of(tmp_path) == config | {"auths": {"r.example": {}}}
    assert mine.find("r.example") == login
    assert mine.erase("r.example")
    assert not (tmp_path / "kept").exists()
    assert config_of(tmp_path)["auths"] == {}
    assert not mine.erase("r.example")


def test_a_helper_that_fails_is_named(tmp_path: Path) -> None:
    if sys.platform == "win32":
        pytest.skip("the helper is a script")
    script = tmp_path / "docker-credential-bad"
    script.write_text("#!/bin/sh\ncat >/dev/null\necho the keychain is locked >&2\nexit 1\n")
    script.chmod(0o755)
    mine = logins(tmp_path, {"credsStore": "bad"}, f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    with pytest.raises(InvalidInput, match=r"docker-credential-bad.*keychain is locked"):
        mine.store("r.example", LOGIN)


@pytest.mark.parametrize("config", ["[]", "{", '"x"', "\xff"])
def test_a_malformed_file_is_not_written_over(tmp_path: Path, config: str) -> None:
    (tmp_path / "config.json").write_text(config, encoding="latin-1")
    with pytest.raises(InvalidInput, match=r"config\.json is malformed"):
        logins(tmp_path).store("r.example", LOGIN)
    assert (tmp_path / "config.json").read_text(encoding="latin-1") == config


@pytest.mark.parametrize(
    ("text", "registry"),
    [
        ("", "docker.io"),
        ("https://index.docker.io/v1/", "docker.io"),
        ("registry-1.docker.io", "docker.io"),
        ("https://r.example:5000/v2/", "r.example:5000"),
        (" r.example ", "r.example"),
    ],
)
def test_a_server_may_be_typed_in_many_ways(text: str, registry: str) -> None:
    assert server_of(text) == registry


@given(
    st.one_of(
        st.text(alphabet="ab./:-L", max_size=20),
        st.from_regex(r"([a-z.]{1,8}(:5000)?/)?[a-z/]{1,9}(:[a-z]+)?", fullmatch=True),
        st.sampled_from(["localhost/x", "index.docker.io/x", "docker.io/x", "debian", "Xx/y"]),
    )
)
def test_the_registry_of_a_name_is_the_one_that_its_parser_finds(name: str) -> None:
    try:
        domain = parse_reference(name).domain
    except InvalidReference:
        return
    assert registry_of(name) == domain


@given(st.text(), st.text(), st.text())
def test_fields_say_what_credentials_hold(user: str, password: str, token: str) -> None:
    login = Credentials(user, password, token)
    assert credentials_from_fields(login.as_fields(), "x") == login


def test_secrets_are_cut_out_of_what_a_server_says() -> None:
    text = f"you are me with se:cret, header {LOGIN.basic_header()}"
    assert LOGIN.redacted(text) == "you are me with ***, header Basic ***"
