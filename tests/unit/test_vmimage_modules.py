"""Kernel modules: what they need, in which order they load, what is built in."""

from __future__ import annotations

import gzip
import lzma

import pytest
from hypothesis import given
from hypothesis import strategies as st
from vmimage_samples import module

from wherry_image.errors import DependencyError, FormatError
from wherry_image.modules import ModuleSource, modinfo, modprobe_indexes, without_signature


def source(builtin: str = "", aliases: bytes = b"", **modules: bytes) -> ModuleSource:
    files = {f"kernel/{name}.ko.xz": lzma.compress(data) for name, data in modules.items()}
    files["modules.builtin"] = builtin.encode()
    files["modules.builtin.modinfo"] = aliases
    return ModuleSource(files)


def order(made: ModuleSource, *wanted: str) -> list[str]:
    return [module.name for module in made.load_order(wanted)]


def test_a_module_comes_after_what_it_needs() -> None:
    made = source(a=module(depends="b,c"), b=module(depends="c"), c=module(depends=""))
    assert order(made, "a") == ["c", "b", "a"]


@given(st.data())
def test_every_need_is_loaded_before(data: st.DataObject) -> None:
    names = [f"m{number}" for number in range(8)]
    needs = {
        name: data.draw(st.lists(st.sampled_from(names[:number]), unique=True)) if number else []
        for number, name in enumerate(names)
    }
    made = source("", b"", **{name: module(depends=",".join(needs[name])) for name in names})
    loaded = order(made, *data.draw(st.permutations(names)))
    assert sorted(loaded) == names
    for name in names:
        assert all(loaded.index(need) < loaded.index(name) for need in needs[name])


def test_dashes_and_underscores_are_the_same() -> None:
    made = source("", b"", **{"virtio-rng": module(depends="rng-core"), "rng_core": module()})
    assert order(made, "virtio_rng") == ["rng_core", "virtio_rng"]


def test_what_is_built_in_is_not_needed() -> None:
    made = source("kernel/fs/ext4/ext4.ko\n", a=module(depends="ext4"))
    assert order(made, "ext4", "a") == ["a"]


def test_a_soft_dependency_is_loaded_first_when_it_exists() -> None:
    crc = module(alias="crypto-crc32c")
    made = source(fs=module(softdep="pre: crypto-crc32c nothing post: later"), crc=crc, later=crc)
    assert order(made, "fs") == ["crc", "fs"]


def test_a_soft_dependency_that_the_kernel_answers_to_is_not_needed() -> None:
    made = source(
        "kernel/crc32c_generic.ko\n",
        b"crc32c_generic.alias=crc32c\0",
        fs=module(softdep="pre: crc32c"),
    )
    assert order(made, "fs") == ["fs"]


def test_an_alias_names_a_module() -> None:
    made = source(ext=module(alias=["fs-ext", "pci:v*d1"]))
    assert order(made, "fs-ext") == ["ext"]
    assert order(made, "pci:v1d1") == ["ext"]


def test_a_missing_module_names_who_asked() -> None:
    made = source(a=module(depends="gone"))
    with pytest.raises(DependencyError, match=r"no module gone \(asked for by a\)"):
        order(made, "a")
    with pytest.raises(DependencyError, match=r"no module zz \(asked for by linuxkit"):
        order(made, "zz")


def test_indexes_are_as_modprobe_reads_them() -> None:
    made = source(a=module(depends="b"), b=module(depends="c", alias="pci:*"), c=module())
    indexes = modprobe_indexes(made.load_order(["a"]))
    assert indexes["modules.dep"].decode().splitlines() == [
        "kernel/a.ko: kernel/b.ko kernel/c.ko",
        "kernel/b.ko: kernel/c.ko",
        "kernel/c.ko:",
    ]
    assert indexes["modules.alias"] == b"alias pci:* b\n"


@pytest.mark.parametrize(
    ("suffix", "compress"), [(".ko", bytes), (".ko.gz", gzip.compress), (".ko.xz", lzma.compress)]
)
def test_modules_are_decompressed(suffix: str, compress: object) -> None:
    assert callable(compress)
    data = module(license="GPL")
    made = ModuleSource({f"kernel/a{suffix}": compress(data)})
    (loaded,) = made.load_order(["a"])
    assert (loaded.path, loaded.data) == ("kernel/a.ko", data)


def test_a_damaged_module_is_a_clear_error() -> None:
    for content in (b"no xz", lzma.compress(b"no elf")):
        with pytest.raises(FormatError):
            ModuleSource({"kernel/a.ko.xz": content}).load_order(["a"])


@given(st.binary(min_size=1, max_size=200))
def test_a_signature_is_cut_off(signature: bytes) -> None:
    data = module(license="GPL")
    info = bytes(8) + len(signature).to_bytes(4, "big")
    signed = data + signature + info + b"~Module signature appended~\n"
    assert without_signature(signed) == data
    assert modinfo(without_signature(data)) == {"license": ["GPL"]}
