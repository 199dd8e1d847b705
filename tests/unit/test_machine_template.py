"""Templates on disk: which start gets which, what damaged ones cost, what is collected."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wherry.machine import template as template_module
from wherry.machine.argv import VmSpec
from wherry.machine.find import Qemu
from wherry.machine.memoryfile import PAGE, copy_memory, make_memory, memory_digest
from wherry.machine.template import (
    Origin,
    Template,
    TemplateDamaged,
    Templates,
    template_key,
)
from wherry.osutil import identify

KEY = "a" * 24


@pytest.fixture
def spec(tmp_path: Path) -> VmSpec:
    binary = tmp_path / "qemu-system-x86_64"
    binary.write_bytes(b"one QEMU")
    return VmSpec(
        name="default",
        qemu=Qemu(binary=binary, version=(9, 0, 0), arch="amd64"),
        accel="tcg",
        cpus=2,
        memory_mib=1024,
        kernel=Path("/vm/image/kernel"),
        initrd=Path("/vm/image/boot-1.initrd"),
        cmdline="quiet",
        data_disk=Path("/m/data.qcow2"),
        disk_bytes=1 << 36,
    )


@pytest.fixture
def origin(spec: VmSpec, tmp_path: Path) -> Origin:
    image = tmp_path / "image"
    image.mkdir()
    return Origin.of(spec.qemu, image)


@pytest.fixture
def templates(tmp_path: Path) -> Templates:
    return Templates(tmp_path / "templates")


def saved(templates: Templates, tmp_path: Path, origin: Origin, key: str = KEY) -> Template:
    """A template whose memory is 1 MiB with one page that is not zero."""
    files = tmp_path / f"draft-{key}"
    files.mkdir()
    memory = tmp_path / f"memory-{key}"
    make_memory(memory, 1 << 20)
    with memory.open("r+b") as file:
        file.seek(5 * PAGE)
        file.write(b"guest")
    (files / "state").write_bytes(b"state")
    digest = copy_memory(memory, files / "ram")
    return templates.add(key, files, digest, origin)


# The key.


@pytest.mark.parametrize(
    "change",
    [
        {"cpus": 4},
        {"memory_mib": 2048},
        {"accel": "kvm"},
        {"cpu": "Haswell"},
        {"cmdline": "quiet nokaslr"},
        {"disk_bytes": 1 << 37},
        {"initrd": Path("/vm/image/boot-2.initrd")},
        {"kernel": Path("/vm/image/vmlinux")},
    ],
)
def test_another_shape_is_another_key(spec: VmSpec, change: dict[str, object]) -> None:
    assert template_key(replace(spec, **change), "image") != template_key(spec, "image")  # type: ignore[arg-type]  # of parametrize


def test_another_image_or_qemu_is_another_key(spec: VmSpec) -> None:
    before = template_key(spec, "image")
    assert template_key(spec, "image2") != before
    newer = replace(spec, qemu=replace(spec.qemu, version=(9, 0, 1)))
    assert template_key(newer, "image") != before
    spec.qemu.binary.write_bytes(b"a rebuilt QEMU")
    assert template_key(spec, "image") != before


def test_machines_share_a_template_whatever_their_names_disks_and_homes(spec: VmSpec) -> None:
    other = replace(
        spec,
        name="other",
        data_disk=Path("/elsewhere/data.qcow2"),
        initrd=Path("/other/home/image/boot-1.initrd"),
    )
    assert template_key(other, "image") == template_key(spec, "image")


# Good, damaged, bad.


def test_what_was_added_can_be_claimed_and_only_its_owner_can_read_it(
    templates: Templates, tmp_path: Path, origin: Origin
) -> None:
    assert templates.claim(KEY) is None
    assert not templates.known(KEY)
    assert templates.all() == []
    added = saved(templates, tmp_path, origin)
    assert templates.claim(KEY) == added
    if sys.platform != "win32":
        for file in (added.ram, added.directory / "template.json"):
            assert file.stat().st_mode & 0o777 == 0o600
        assert added.directory.parent.stat().st_mode & 0o777 == 0o700


def cut(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def flip(file: Path) -> None:
    with file.open("r+b") as opened:
        opened.seek(3)
        opened.write(b"!")


@pytest.mark.parametrize("name", ["ram", "state"])
@pytest.mark.parametrize("harm", [cut, flip, Path.unlink])
def test_a_damaged_template_is_found_out_and_gone(
    templates: Templates, tmp_path: Path, origin: Origin, name: str, harm: Callable[[Path], None]
) -> None:
    template = saved(templates, tmp_path, origin)
    harm(template.directory / name)
    with pytest.raises(TemplateDamaged):
        templates.claim(KEY)
    assert templates.claim(KEY) is None
    assert not templates.known(KEY)
    assert not template.directory.exists()


@pytest.mark.parametrize("text", ["", "[]", '{"format": 0}', '{"format": 1}'])
def test_a_manifest_that_says_nothing_is_no_template(
    templates: Templates, tmp_path: Path, origin: Origin, text: str
) -> None:
    template = saved(templates, tmp_path, origin)
    (template.directory / "template.json").write_text(text)
    assert templates.claim(KEY) is None
    assert templates.collect() == [KEY]


def test_a_copied_template_is_as_good_and_is_read_once_only(
    templates: Templates,
    tmp_path: Path,
    origin: Origin,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    template = saved(templates, tmp_path, origin)
    shutil.copy2(template.ram, tmp_path / "copy")
    (tmp_path / "copy").replace(template.ram)
    reads = []

    def counted(file: Path) -> str:
        reads.append(file)
        return memory_digest(file)

    monkeypatch.setattr(template_module, "memory_digest", counted)
    assert templates.claim(KEY) is not None
    assert templates.claim(KEY) is not None
    assert reads == [template.ram]


def test_a_bad_mark_is_kept_for_a_week(
    templates: Templates, tmp_path: Path, origin: Origin
) -> None:
    saved(templates, tmp_path, origin)
    templates.mark_bad(KEY, "QEMU refused", origin)
    assert templates.known(KEY)
    assert templates.claim(KEY) is None
    assert [(it["status"], it["reason"]) for it in templates.all()] == [("bad", "QEMU refused")]
    assert templates.collect() == []
    manifest = tmp_path / "templates" / KEY / "template.json"
    data = json.loads(manifest.read_text())
    data["made_ns"] -= 8 * 24 * 3600 * 10**9
    manifest.write_text(json.dumps(data))
    assert templates.collect() == [KEY]


# Collection.


def test_the_least_recently_used_ones_go(
    templates: Templates, tmp_path: Path, origin: Origin
) -> None:
    keys = [digit * 24 for digit in "0123"]
    for age, key in enumerate(keys):
        template = saved(templates, tmp_path, origin, key)
        stamp = time.time() - 100 * age
        os.utime(template.directory / "used", (stamp, stamp))
    assert templates.collect(kept=2) == keys[2:]
    assert templates.collect(kept=2, limit=0) == keys[:2]


def test_one_in_use_stays(templates: Templates, tmp_path: Path, origin: Origin) -> None:
    template = saved(templates, tmp_path, origin)
    assert templates.claim(KEY) is not None
    assert templates.collect(kept=0) == []
    ourselves = identify(os.getpid())
    assert ourselves is not None
    templates.pass_on(template, replace(ourselves, start_time="another process of that number"))
    assert templates.collect(kept=0) == [KEY]


def test_one_whose_key_cannot_occur_again_goes(
    templates: Templates, tmp_path: Path, origin: Origin, spec: VmSpec
) -> None:
    saved(templates, tmp_path, origin)
    assert templates.collect() == []
    spec.qemu.binary.write_bytes(b"QEMU was upgraded")
    assert templates.collect() == [KEY]
    saved(templates, tmp_path, Origin.of(spec.qemu, tmp_path / "image"), "b" * 24)
    (tmp_path / "image").rmdir()
    assert templates.collect() == ["b" * 24]


# Memory.

pages = st.dictionaries(st.integers(0, 700), st.binary(min_size=1, max_size=PAGE), max_size=12)


@settings(deadline=None, max_examples=30)  # it writes to the disk
@given(written=pages)
def test_a_copy_has_the_same_bytes_and_digest_and_no_zeros(
    written: dict[int, bytes], tmp_path_factory: pytest.TempPathFactory
) -> None:
    directory = tmp_path_factory.mktemp("memory")
    source, copy = directory / "source", directory / "copy"
    make_memory(source, 701 * PAGE)
    with source.open("r+b") as file:
        for page, data in written.items():
            file.seek(page * PAGE)
            file.write(data)
    digest = copy_memory(source, copy)
    assert copy.read_bytes() == source.read_bytes()
    assert digest == memory_digest(source) == memory_digest(copy)
    whole = directory / "whole"
    whole.write_bytes(source.read_bytes())
    assert memory_digest(whole) == digest


def test_one_bit_changes_the_digest_of_memory(tmp_path: Path) -> None:
    memory = tmp_path / "memory"
    make_memory(memory, 1 << 20)
    before = memory_digest(memory)
    with memory.open("r+b") as file:
        file.seek(200 * PAGE + 17)
        file.write(b"\x01")
    assert memory_digest(memory) != before
