"""`logs --details`: what of a container stands before its lines."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import parse_qsl

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wherry.api.streams import log_bytes
from wherry.engine.logdetails import details_text, log_details
from wherry.engine.model import Container, LogFrame


def container(**options: str) -> Container:
    config: dict[str, Any] = {
        "Labels": {"team": "core", "tier": "back", "x y": "a,b=c"},
        "Env": ["STAGE=test", "PATH=/bin", "BARE"],
        "Cmd": ["sleep", "1"],
    }
    log = {name.replace("_", "-"): value for name, value in options.items()}
    return Container(
        id="a" * 64, name="box", created_ns=1, image="debian:13", image_id="sha256:" + "b" * 64,
        manifest_digest="", config=config, host_config={"LogConfig": {"Config": log}}, layers=(),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("options", "details"),
    [
        ({}, {}),
        ({"labels": "team,none"}, {"team": "core"}),
        ({"labels_regex": "^t"}, {"team": "core", "tier": "back"}),
        ({"env": "STAGE,BARE"}, {"STAGE": "test"}),
        ({"env_regex": "^P"}, {"PATH": "/bin"}),
        ({"tag": "{{.Name}}/{{ .ID }}"}, {"tag": "box/aaaaaaaaaaaa"}),
        ({"tag": "{{.ImageName}}|{{.ImageID}}"}, {"tag": "debian:13|bbbbbbbbbbbb"}),
        ({"tag": "{{.Command}}"}, {"tag": "sleep 1"}),
        ({"tag": "plain"}, {"tag": "plain"}),
    ],
)  # fmt: skip
def test_what_the_options_name(options: dict[str, str], details: dict[str, str]) -> None:
    assert log_details(container(**options)) == details


def test_attributes_are_sorted_and_escaped_as_dockers_are() -> None:
    found = log_details(container(labels="x y,team", env="STAGE"))
    assert details_text(found) == b"STAGE=test,team=core,x+y=a%2Cb%3Dc "
    assert details_text({}) == b" "


@given(st.dictionaries(st.text(min_size=1), st.text(min_size=1), max_size=4))
def test_no_attribute_can_pose_as_another(details: dict[str, str]) -> None:
    text = details_text(details).decode().removesuffix(" ")
    assert dict(parse_qsl(text, separator=",", keep_blank_values=True)) == details


def shown(*payloads: bytes, timestamps: bool = False) -> bytes:
    async def frames() -> AsyncIterator[LogFrame]:
        for payload in payloads:
            yield LogFrame(1, 10**9, payload)

    async def collect() -> bytes:
        source = log_bytes(frames(), tty=True, timestamps=timestamps, details=b"k=v ")
        return b"".join([piece async for piece in source])

    return asyncio.run(collect())


def test_details_stand_before_each_line_and_after_its_time() -> None:
    assert shown(b"a\nb", b"c\nd\n") == b"k=v a\nk=v bc\nk=v d\n"
    assert shown(b"a\n", timestamps=True) == b"1970-01-01T00:00:01.000000000Z k=v a\n"
