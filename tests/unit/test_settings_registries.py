from __future__ import annotations

from pathlib import Path

import pytest

from wherry.errors import InvalidInput
from wherry.settings import Settings, load_settings


def load(directory: Path, text: str) -> Settings:
    file = directory / "config.yml"
    file.write_text(text)
    return load_settings(file, {})


def test_mirrors_are_lists_of_base_urls(tmp_path: Path) -> None:
    text = """
registry_mirrors:
  docker.io: [https://mirror.example, "http://127.0.0.1:5000/"]
  ghcr.io: https://other.example
"""
    assert load(tmp_path, text).registry_mirrors == (
        ("docker.io", ("https://mirror.example", "http://127.0.0.1:5000")),
        ("ghcr.io", ("https://other.example",)),
    )


@pytest.mark.parametrize(
    "value",
    ["[https://a]", "{docker.io: 3}", "{docker.io: [ftp://a]}", "{docker.io: [https://a/path]}",
     "{docker.io: [https://user:pw@a]}", "{docker.io: [a.example]}", "{1: [https://a]}"],
)  # fmt: skip
def test_what_is_no_mirror_is_named(tmp_path: Path, value: str) -> None:
    with pytest.raises(InvalidInput, match="registry_mirrors"):
        load(tmp_path, f"registry_mirrors: {value}")


def test_cas_are_files_by_host(tmp_path: Path) -> None:
    found = load(tmp_path, "registry_ca: {'r.example:5000': ~/ca.pem}")
    assert found.registry_ca == (("r.example:5000", "~/ca.pem"),)
    for value in ("[x]", "{a: 1}"):
        with pytest.raises(InvalidInput, match="registry_ca must map hosts to files"):
            load(tmp_path, f"registry_ca: {value}")
