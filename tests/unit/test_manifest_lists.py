from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from image_fakes import FakeRegistry, digest, index_of, running, simple_image

from wherry.errors import Conflict, ImageNotFound, InvalidInput, NotFound, StorageError
from wherry.images import media
from wherry.images.auth import Credentials
from wherry.images.clients import Auth, Registries
from wherry.images.distribution import Distribution
from wherry.images.manifest_lists import ManifestLists
from wherry.images.retry import RetryPolicy
from wherry.images.store import ImageStore
from wherry.images.transport import Transport
from wherry.paths import Home
from wherry.settings import Settings

AMD = simple_image(b"amd\n", architecture="amd64")
ARM = simple_image(b"arm\n", architecture="arm", variant="v7")
DOCKER = simple_image(b"docker\n", docker=True)


@pytest.fixture
def registry() -> Iterator[FakeRegistry]:
    with running(FakeRegistry()) as fake:
        yield fake


@pytest.fixture
def other() -> Iterator[FakeRegistry]:
    with running(FakeRegistry()) as fake:
        yield fake


@pytest.fixture
def lists(tmp_path: Path) -> ManifestLists:
    retry = RetryPolicy(attempts=2, base=0.001)
    return ManifestLists(tmp_path / "lists", Registries(Settings(), Transport(), retry))


def nobody(_domain: str) -> Auth:
    return Credentials()


def test_a_list_of_two_platforms_is_made_and_pushed(
    registry: FakeRegistry, lists: ManifestLists
) -> None:
    sources = [registry.add("app", tag, it) for tag, it in (("amd", AMD), ("arm", ARM))]
    name = f"{registry.host}/app:1"
    assert lists.create(name, sources, nobody, amend=False) == name
    assert lists.sources(name) == sources
    pushed = lists.push(name, nobody, purge=True)
    kind, body = registry.manifests["app", "1"]
    assert (kind, digest(body)) == (media.OCI_INDEX, pushed)
    entries = json.loads(body)["manifests"]
    assert entries == [
        {
            "mediaType": image.media_type,
            "digest": image.manifest_digest,
            "size": len(image.manifest),
            "platform": platform,
        }
        for image, platform in (
            (AMD, {"architecture": "amd64", "os": "linux"}),
            (ARM, {"architecture": "arm", "os": "linux", "variant": "v7"}),
        )
    ]
    assert lists.index(name) is None


def test_schema_2_images_make_a_docker_list(registry: FakeRegistry, lists: ManifestLists) -> None:
    lists.create("r.example/x", [registry.add("d", "1", DOCKER)], nobody, amend=False)
    index = lists.index("r.example/x:latest")
    assert index is not None and index["mediaType"] == media.DOCKER_INDEX


def test_manifests_of_other_repositories_are_mounted_and_put(
    registry: FakeRegistry, lists: ManifestLists
) -> None:
    source = registry.add("one", "1", AMD)
    registry.owned = {"all": set()}
    lists.create(f"{registry.host}/all:1", [source], nobody, amend=False)
    lists.push(f"{registry.host}/all:1", nobody, purge=False)
    assert registry.owned["all"] == {AMD.id, digest(AMD.layers[0])}
    assert registry.sent("PATCH") == []
    assert ("all", AMD.manifest_digest) in registry.manifests


def test_manifests_of_other_registries_are_copied(
    registry: FakeRegistry, other: FakeRegistry, lists: ManifestLists
) -> None:
    sources = [registry.add("one", "1", AMD), other.add("two", "1", ARM)]
    name = f"{other.host}/all:1"
    lists.create(name, sources, nobody, amend=False)
    lists.push(name, nobody, purge=False)
    assert other.blobs[digest(AMD.layers[0])] == AMD.layers[0]
    assert ("all", "1") in other.manifests


def test_an_index_among_the_sources_adds_its_entries(
    registry: FakeRegistry, lists: ManifestLists
) -> None:
    index = index_of(AMD, ARM)
    source = registry.add("multi", "1", AMD, ARM)
    lists.create("r.example/x", [source], nobody, amend=False)
    made = lists.index("r.example/x")
    assert made is not None and made["manifests"] == json.loads(index)["manifests"]
    with pytest.raises(InvalidInput, match="several manifests"):
        lists.annotate("r.example/x", source, {"os": "linux"})
    lists.annotate("r.example/x", f"x@{ARM.manifest_digest}", {"os.version": "1"})
    made = lists.index("r.example/x")
    assert made is not None and made["manifests"][1]["platform"]["os.version"] == "1"


def test_a_list_grows_only_when_that_is_meant(registry: FakeRegistry, lists: ManifestLists) -> None:
    first, second = registry.add("a", "1", AMD), registry.add("a", "2", ARM)
    lists.create("x", [first], nobody, amend=False)
    with pytest.raises(Conflict, match="already"):
        lists.create("x", [second], nobody, amend=False)
    lists.create("x", [second], nobody, amend=True)
    registry.add("a", "1", DOCKER)
    lists.create("x", [first], nobody, amend=True)
    made = lists.index("x")
    assert made is not None
    assert {it["digest"] for it in made["manifests"]} == {
        ARM.manifest_digest,
        DOCKER.manifest_digest,
    }


def test_annotations_replace_what_the_image_says(
    registry: FakeRegistry, lists: ManifestLists
) -> None:
    source = registry.add("a", "1", AMD)
    lists.create("x", [source], nobody, amend=False)
    lists.annotate("x", source, {"architecture": "arm64", "variant": "v8", "os.features": ["f"]})
    assert lists.entry("x", source).descriptor["platform"] == {
        "architecture": "arm64",
        "os": "linux",
        "variant": "v8",
        "os.features": ["f"],
    }
    with pytest.raises(InvalidInput, match="no field"):
        lists.annotate("x", source, {"colour": "red"})


def test_what_is_not_there_is_named(
    registry: FakeRegistry, lists: ManifestLists, tmp_path: Path
) -> None:
    with pytest.raises(NotFound, match="no manifest list x"):
        lists.push("x", nobody, purge=False)
    with pytest.raises(ImageNotFound):
        lists.create("x", [f"{registry.host}/none:1"], nobody, amend=False)
    assert lists.index("x") is None
    lists.create("x", [registry.add("a", "1", AMD)], nobody, amend=False)
    with pytest.raises(NotFound, match="y:1 is not in manifest list x"):
        lists.annotate("x", "y:1", {})
    lists.remove("x")
    with pytest.raises(NotFound):
        lists.remove("x")
    (tmp_path / "lists" / "docker.io%2Flibrary%2Fx%3Alatest.json").write_text("{")
    with pytest.raises(StorageError, match="damaged"):
        lists.index("x")


# Looking at registries.


@pytest.fixture
def remote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Distribution]:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "no-docker"))
    store = ImageStore(Home(tmp_path / "home"), Settings())
    yield store.distribution
    store.close()


def test_an_image_is_described_with_the_platform_of_its_config(
    registry: FakeRegistry, remote: Distribution
) -> None:
    found = remote.describe(registry.add("a", "1", ARM))
    assert found == {
        "Descriptor": {
            "mediaType": ARM.media_type,
            "digest": ARM.manifest_digest,
            "size": len(ARM.manifest),
        },
        "Platforms": [{"architecture": "arm", "os": "linux", "variant": "v7"}],
    }


def test_an_index_is_described_with_all_its_platforms(
    registry: FakeRegistry, remote: Distribution
) -> None:
    name = registry.add("a", "1", AMD, ARM)
    found = remote.describe(name)
    assert found["Descriptor"]["mediaType"] == media.OCI_INDEX
    assert [it["architecture"] for it in found["Platforms"]] == ["amd64", "arm"]
    first, *manifests = remote.inspect(name)
    assert first["Manifest"] == json.loads(index_of(AMD, ARM))
    assert [it["Manifest"] for it in manifests] == [json.loads(it.manifest) for it in (AMD, ARM)]
    assert manifests[1]["Ref"] == f"{registry.host}/a@{ARM.manifest_digest}"
    assert manifests[1]["Descriptor"]["platform"]["variant"] == "v7"
