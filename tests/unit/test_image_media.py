from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from image_fakes import FakeImage, digest, index_of, simple_image, tar_of

from wherry.images import media
from wherry.images.media import (
    Index,
    Manifest,
    MediaError,
    check_image,
    parse_config,
    parse_manifest,
    parse_time,
)


def changed(data: bytes, **fields: Any) -> bytes:
    return json.dumps(json.loads(data) | fields).encode()


@pytest.mark.parametrize("docker", [True, False])
def test_both_families_of_manifests_are_read(docker: bool) -> None:
    image = simple_image(docker=docker)
    manifest = parse_manifest(image.manifest)
    assert isinstance(manifest, Manifest)
    assert manifest.config.digest == image.id
    assert isinstance(parse_manifest(index_of(image)), Index)


def test_the_header_decides_when_the_json_does_not_say() -> None:
    image = simple_image()
    fields = json.loads(image.manifest)
    del fields["mediaType"]
    assert isinstance(parse_manifest(json.dumps(fields).encode(), media.OCI_MANIFEST), Manifest)
    assert isinstance(parse_manifest(json.dumps(fields).encode()), Manifest)


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"", "malformed"),
        (b"<html>", "malformed"),
        (b"\xff\xfe", "malformed"),
        (b"[" * 100_000, "malformed"),
        (b"{}", "not an image manifest"),
        (b'{"schemaVersion": 1, "fsLayers": []}', "schema 1"),
        (b'{"schemaVersion": 2, "mediaType": "text/plain"}', "text/plain"),
        (changed(simple_image().manifest, config=None), "malformed"),
        (changed(simple_image().manifest, layers="x"), "malformed"),
    ],
)
def test_what_is_no_manifest_is_refused(body: bytes, why: str) -> None:
    with pytest.raises(MediaError, match=why):
        parse_manifest(body)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"digest": "sha256:../../etc/passwd"}, "not a SHA-256 digest"),
        ({"digest": "sha512:" + "0" * 128}, "not a SHA-256 digest"),
        ({"size": -1}, "impossible size"),
        ({"size": 1 << 60}, "impossible size"),
        ({"mediaType": "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"}, "foreign"),
        ({"mediaType": "application/vnd.oci.image.layer.v1.tar+encrypted"}, "unknown type"),
    ],
)
def test_a_layer_descriptor_that_lies_is_refused(change: dict[str, Any], why: str) -> None:
    manifest = simple_image().manifest
    layer = json.loads(manifest)["layers"][0] | change
    with pytest.raises(MediaError, match=why):
        parse_manifest(changed(manifest, layers=[layer]))


def test_an_artifact_that_is_no_image_is_named() -> None:
    manifest = simple_image().manifest
    config = json.loads(manifest)["config"] | {"mediaType": "application/vnd.cncf.helm.config"}
    with pytest.raises(MediaError, match=r"no container image.*helm"):
        parse_manifest(changed(manifest, config=config))


def test_platforms_on_offer_leave_out_attestations() -> None:
    attestation = simple_image(os="unknown", architecture="unknown")
    index = parse_manifest(
        index_of(simple_image(), simple_image(architecture="arm64"), attestation)
    )
    assert isinstance(index, Index)
    assert index.platforms() == ["linux/amd64", "linux/arm64"]


def test_a_config_may_leave_nearly_everything_out() -> None:
    config = parse_config(b'{"history": null, "config": null, "created": null}')
    assert config.diff_ids == ()
    assert config.created_ns == 0
    assert config.platform.os == "linux"


def test_numbers_of_layers_must_agree() -> None:
    image = simple_image()
    config = parse_config(changed(image.config, rootfs={"type": "layers", "diff_ids": []}))
    manifest = parse_manifest(image.manifest)
    assert isinstance(manifest, Manifest)
    with pytest.raises(MediaError, match="1 layers, the config 0"):
        check_image(manifest, config, 500)


def test_one_blob_cannot_have_two_contents() -> None:
    tar = tar_of({"a": b"x"})
    image = FakeImage([tar, tar])
    image.config = changed(
        image.config, rootfs={"type": "layers", "diff_ids": [digest(tar), digest(b"other")]}
    )
    manifest = parse_manifest(image.make_manifest())
    assert isinstance(manifest, Manifest)
    with pytest.raises(MediaError, match="two different contents"):
        check_image(manifest, parse_config(image.config), 500)


def test_distinct_layers_are_limited_and_repeated_ones_are_not() -> None:
    tar = tar_of({"a": b"x"})
    same = FakeImage([tar] * 6)
    many = FakeImage([tar_of({"a": bytes([n])}) for n in range(6)])
    for image, fine in ((same, True), (many, False)):
        manifest = parse_manifest(image.manifest)
        assert isinstance(manifest, Manifest)
        if fine:
            check_image(manifest, parse_config(image.config), 5)
        else:
            with pytest.raises(MediaError, match="at most 5"):
                check_image(manifest, parse_config(image.config), 5)


@pytest.mark.parametrize(
    ("text", "ns"),
    [
        ("1970-01-01T00:00:01Z", 1_000_000_000),
        ("1970-01-01T00:00:00.123456789Z", 123_456_789),
        ("1970-01-01T02:00:00.5+02:00", 500_000_000),
        ("1969-12-31T23:59:59Z", -1_000_000_000),
        ("0001-01-01T00:00:00Z", -62_135_596_800_000_000_000),
        ("yesterday", 0),
        ("2024-13-01T00:00:00Z", 0),
        (None, 0),
        ("", 0),
    ],
)
def test_times_have_nanoseconds(text: str | None, ns: int) -> None:
    assert parse_time(text) == ns


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    [
                        "schemaVersion",
                        "mediaType",
                        "layers",
                        "config",
                        "digest",
                        "manifests",
                        "size",
                        "rootfs",
                        "diff_ids",
                        "history",
                        "created",
                    ]
                ),
                inner,
                max_size=5,
            )
        ),
        max_leaves=12,
    )
)
def test_any_json_is_parsed_or_refused_without_a_crash(value: Any) -> None:
    data = json.dumps(value).encode()
    for parse in (parse_manifest, parse_config):
        try:
            parse(data)
        except MediaError as error:
            assert "\n" not in str(error)
