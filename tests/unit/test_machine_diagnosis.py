"""What failed starts print, and what is made of it. The texts were printed by real programs."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wherry.machine.diagnosis import Evidence, causes, diagnose
from wherry.machine.epitaph import boot_failed

QEMU = {
    "disk-locked": """\
qemu-system-x86_64: -blockdev driver=qcow2,file=f,node-name=d: Failed to get "write" lock
Is another process using the image [d.qcow2]?""",
    "disk-full": "qemu-system-x86_64: write failed: No space left on device",
    "disk-corrupt": "qemu-system-x86_64: -blockdev driver=qcow2: Image is not in qcow2 format",
    "disk-newer": "qemu-system-x86_64: -blockdev driver=qcow2: Unsupported qcow2 feature(s): "
    "Unknown incompatible feature: 80",
    "kvm-denied": "Could not access KVM kernel module: Permission denied\n"
    "qemu-system-x86_64: failed to initialize kvm: Permission denied",
    "kvm-unusable": "qemu-system-x86_64: error: failed to set MSR 0x10a to 0x69\n"
    "qemu-system-x86_64: ../../target/i386/kvm/kvm.c:3183: kvm_buf_set_msrs: Assertion failed.",
    "no-hvf": "qemu-system-aarch64: -accel hvf: Error: HV_UNSUPPORTED",
    "hvf-denied": "qemu-system-aarch64: Error: ret = HV_DENIED (0xfae94007, at hvf-all.c:70)",
    "whpx-off": "qemu-system-x86_64.exe: WHPX: No accelerator found, hr=00000000",
    "accelerator-missing": "qemu-system-x86_64: -accel hvf: invalid accelerator hvf",
    "out-of-memory": "qemu-system-x86_64: cannot set up guest memory 'pc.ram': "
    "Cannot allocate memory",
    "firmware-missing": "qemu: could not load PC BIOS 'bios-256k.bin'",
    "library-missing": "qemu-system-x86_64: error while loading shared libraries: "
    "libslirp.so.0: cannot open shared object file: No such file or directory",
    "wrong-binary": "/opt/qemu/qemu-system-aarch64: Exec format error",
    "qemu-too-old": "qemu-system-x86_64: -device virtio-x: 'virtio-x' is not a valid device "
    "model name",
    "image-damaged": "qemu: invalid kernel header",
    "file-denied": "qemu-system-x86_64: -blockdev driver=file: Could not open '/h/data.qcow2': "
    "Permission denied",
    "socket": "qemu-system-x86_64: -chardev socket,id=a: UNIX socket path '/tmp/x' is too long",
    "no-executable-memory": "qemu-system-aarch64: -accel tcg: allocate 268435456 bytes for jit "
    "buffer: Operation not permitted",
}

CONSOLE = {
    "initrd-broken": """\
[    1.076568] Initramfs unpacking failed: invalid magic at start of compressed archive
[    1.549448] Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(0,0)""",
    "guest-out-of-memory": "[ 3.1] Kernel panic - not syncing: System is deadlocked on memory",
    "processor": "[ 1.2] Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000004",
    "init-died": "[ 1.2] Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000100",
    "file-system": "[ 2.0] EXT4-fs error (device sda): ext4_find_extent:936: pblk 0 bad header",
    "kernel-panic": "[ 1.0] Kernel panic - not syncing: stack-protector: Kernel stack is corrupted",
}

SIGNALS = {"killed": "SIGKILL", "crashed": "SIGSEGV", "illegal-instruction": "SIGILL"}


@pytest.mark.parametrize("name", QEMU)
def test_the_cause_is_read_from_qemu(name: str) -> None:
    cause = diagnose(Evidence(stderr=QEMU[name].splitlines(), status=1))
    assert cause is not None
    assert cause.name == name


@pytest.mark.parametrize("name", CONSOLE)
def test_the_cause_is_read_from_the_console(name: str) -> None:
    cause = diagnose(Evidence(console=CONSOLE[name].splitlines()))
    assert cause is not None
    assert cause.name == name


@pytest.mark.parametrize("name", SIGNALS)
def test_the_cause_is_read_from_the_signal(name: str) -> None:
    number = getattr(signal, SIGNALS[name], None)
    if number is None:
        pytest.skip("no such signal on this system")
    cause = diagnose(Evidence(status=-number))
    assert cause is not None
    assert cause.name == name


def test_every_cause_is_tried() -> None:
    on_this_system = {name for name in SIGNALS if hasattr(signal, SIGNALS[name])}
    assert {cause.name for cause in causes()} == {*QEMU, *CONSOLE, *on_this_system, "silent-guest"}


def test_a_remedy_never_says_to_delete_everything() -> None:
    for cause in causes():
        assert not any(word in cause.remedy for word in ("rm -", "delete", "reset", "machine rm"))
        assert "\n" not in cause.sentence + cause.remedy


@pytest.mark.parametrize("cause", causes(), ids=lambda cause: cause.name)
def test_the_documentation_explains_every_cause(cause: object) -> None:
    page = Path(__file__).parents[2] / "docs" / "troubleshooting.md"
    assert f"`{cause.name}`" in page.read_text(encoding="utf-8")  # type: ignore[attr-defined]  # a Cause


def test_a_guest_that_says_nothing_is_a_cause_of_its_own(tmp_path: Path) -> None:
    error = boot_failed("kernel", "nothing within 90 s", qemu_log=tmp_path / "none")
    assert "the guest printed nothing" in error.message
    assert diagnose(Evidence("kernel", [], ["[ 0.0] Linux version 6.12"])) is None
    assert diagnose(Evidence("agent")) is None


def test_what_is_not_known_is_not_guessed() -> None:
    assert diagnose(Evidence("kernel", ["qemu-system-x86_64: what"], ["Booting"], 1)) is None


@given(st.lists(st.text()), st.lists(st.text()), st.none() | st.integers(-64, 255))
def test_any_evidence_can_be_looked_at(
    stderr: list[str], console: list[str], status: int | None
) -> None:
    cause = diagnose(Evidence("kernel", stderr, console, status))
    assert cause is None or cause in causes()


def test_the_first_line_has_cause_reason_and_phase(tmp_path: Path) -> None:
    log = tmp_path / "qemu.log"
    log.write_text(QEMU["disk-locked"])
    error = boot_failed("spawned", "QEMU ended, status 1", qemu_log=log, status=1, hint="look")
    first, *rest = error.message.splitlines()
    assert first == (
        "the machine did not start: another QEMU has the machine's disk open: "
        "QEMU ended, status 1 (phase spawned)"
    )
    assert rest[0].startswith("  qemu: qemu-system-x86_64: -blockdev")
    assert error.hint is not None
    assert error.hint.startswith("wherry doctor looks for it")


def test_an_unknown_cause_leaves_the_reason_and_the_hint(tmp_path: Path) -> None:
    error = boot_failed("kernel", "silence", qemu_log=tmp_path / "none", hint="look", console=["a"])
    assert error.message == "the machine did not start: silence (phase kernel)\n  console: a"
    assert error.hint == "look"


def test_a_panic_that_scrolled_away_is_the_reason(tmp_path: Path) -> None:
    error = boot_failed(
        "kernel",
        "the guest ended",
        qemu_log=tmp_path / "none",
        console=["  ? do_exit+0x1"],
        last_words="Kernel panic - not syncing: System is deadlocked on memory",
    )
    assert "has not enough memory" in error.message.splitlines()[0]
    assert "deadlocked" in error.message.splitlines()[0]
