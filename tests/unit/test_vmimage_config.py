"""linuxkit.yml is read strictly: every mistake names file, line and key."""

from __future__ import annotations

import pytest
from vmimage_samples import CONFIG

from wherry_image.build import shipped
from wherry_image.config import parse_config
from wherry_image.errors import ConfigError

KERNEL = "kernel: {image: deb:linux}\n"


def test_a_configuration_is_read_for_an_architecture() -> None:
    config = parse_config(CONFIG, "linuxkit.yml", "arm64")
    assert config.kernel == ("linux-image-cloud-arm64",)
    assert config.cmdline == "console=ttyAMA0 quiet"
    assert config.init == ("tool",)
    assert config.modules == ("virtio_scsi", "ext4")
    assert config.available_modules == ("erofs",)
    assert config.files[-1].path == "/etc/motd"
    assert config.files[-1].mode == 0o600


@pytest.mark.parametrize("arch", ["amd64", "arm64"])
def test_the_default_configuration_is_valid(arch: str) -> None:
    text = shipped("linuxkit.yml").read_text(encoding="utf-8")
    config = parse_config(text, "linuxkit.yml", arch)
    assert config.kernel == (f"linux-image-cloud-{arch}",)
    assert "panic=-1" in config.cmdline
    assert {"virtio_scsi", "erofs", "overlay", "nf_tables"} <= set(config.modules)


def test_the_hosts_loopback_is_closed_after_every_address_translation() -> None:
    config = parse_config(shipped("linuxkit.yml").read_text("utf-8"), "linuxkit.yml", "amd64")
    rules = next(f.contents for f in config.files if f.path == "/etc/wherry/nftables.conf")
    assert rules is not None
    assert "hook postrouting priority 300" in rules
    for address in ("10.0.2.2", "10.0.2.3", "fec0::2", "fec0::3"):
        assert address in rules


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "x.yml: is empty"),
        ("kernel: [", "x.yml:1: not YAML"),
        ("- a\n", "x.yml:1: the file must be a mapping"),
        ("init: []\n", "x.yml:1: the key kernel is missing"),
        ("kernel: {cmdline: a}\n", "x.yml:1: the key kernel.image is missing"),
        (KERNEL + "\nkernal: 1\n", "x.yml:3: unknown key kernal"),
        ("kernel:\n  image: deb:a\n  ucode: b\n", "x.yml:3: unknown key kernel.ucode"),
        (KERNEL + KERNEL, "x.yml:2: kernel stands twice"),
        (KERNEL + "init: a\n", "x.yml:2: init must be a list"),
        (
            KERNEL + "init:\n  - deb:aa\n  - deb:B\n",
            "x.yml:4: an entry of init: 'B' is not the name",
        ),
        (
            KERNEL + "init: [linuxkit/init:v1]\n",
            "x.yml:2: an entry of init: linuxkit/init:v1 is an OCI",
        ),
        (
            "kernel: {image: linuxkit/kernel:6.6}\n",
            "x.yml:1: kernel.image: linuxkit/kernel:6.6 is an",
        ),
        (KERNEL + "services:\n  - name: sshd\n", "x.yml:3: services needs OCI images"),
        (KERNEL + "onboot:\n  - name: a\n", "x.yml:3: onboot needs OCI images"),
        (KERNEL + "files:\n  - contents: a\n", "x.yml:3: a file without path"),
        (KERNEL + "files:\n  - {path: /a}\n", "x.yml:3: /a needs exactly one of"),
        (KERNEL + "files:\n  - {path: ../a, contents: b}\n", "x.yml:3: files.path: /../a is not"),
        (KERNEL + "files:\n  - {path: a, contents: b, uid: 1}\n", "x.yml:3: unknown key files.uid"),
        (KERNEL + "files:\n  - {path: a, contents: b, mode: 9}\n", "x.yml:3: files.mode: 9 is not"),
        (
            KERNEL + "files:\n  - {path: a, contents: [b]}\n",
            "x.yml:3: files.contents must be a string",
        ),
        (KERNEL + "files:\n  - {path: a, directory: false}\n", "x.yml:3: files.directory can only"),
    ],
)
def test_a_mistake_names_its_line_and_key(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(text, "x.yml", "amd64")
    assert caught.value.message.startswith(message)


def test_an_unknown_key_comes_with_the_known_ones() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(KERNEL + "trust: {}\n", "x.yml", "amd64")
    assert caught.value.hint == "known: kernel, init, onboot, services, files"


def test_empty_sections_are_fine() -> None:
    config = parse_config(KERNEL + "onboot: []\nservices:\nfiles:\n", "x.yml", "amd64")
    assert config.files == ()
