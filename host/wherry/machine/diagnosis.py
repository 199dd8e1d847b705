"""What a failed start died of, in words: a table of signs. Pure.

A sign is a pattern in what QEMU or the guest's console printed, or the signal that ended QEMU. The
first row that fits wins, so what is particular stands before what is general. The texts are QEMU's
(7.2 to 10.2), the dynamic loaders' and Linux's; each cause is tried in the tests on real texts.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Sequence
from dataclasses import dataclass

QEMU, CONSOLE = "qemu", "console"


@dataclass(frozen=True, slots=True)
class Cause:
    """A likely cause.

    Attributes:
        name: a word that is the same in every version, for `--json` and the documentation.
        sentence: what is the matter, to stand behind "the machine did not start:".
        remedy: what to do.
    """

    name: str
    sentence: str
    remedy: str


@dataclass(frozen=True, slots=True)
class Evidence:
    """What a failed start left.

    Attributes:
        phase: in which it died; "" when that is not known.
        stderr: QEMU's lines; console: the guest's last ones.
        status: QEMU's exit status, negative: the signal that ended it; None: it did not end.
    """

    phase: str = ""
    stderr: Sequence[str] = ()
    console: Sequence[str] = ()
    status: int | None = None


def diagnose(evidence: Evidence) -> Cause | None:
    """The cause, None when the evidence is like nothing that is known."""
    texts = {QEMU: "\n".join(evidence.stderr), CONSOLE: "\n".join(evidence.console)}
    for where, pattern, cause in _SIGNS:
        if pattern.search(texts[where]):
            return cause
    if evidence.status is not None and evidence.status < 0:
        return _OF_SIGNAL.get(-evidence.status)
    if evidence.phase == "kernel" and evidence.status is None and not texts[CONSOLE].strip():
        return _SILENT
    return None


def causes() -> list[Cause]:
    """Every cause of the table, once, in its order."""
    found = [*(cause for _, _, cause in _SIGNS), *_OF_SIGNAL.values(), _SILENT]
    return list(dict.fromkeys(found))


_LOCKED = Cause(
    "disk-locked",
    "another QEMU has the machine's disk open",
    "wherry doctor looks for it; it may also run on another computer that shares the directory",
)
_KVM_DENIED = Cause(
    "kvm-denied",
    "/dev/kvm is not yours to open",
    "add yourself to the group kvm and log in again, or use software emulation: WHERRY_ACCEL=tcg",
)
_KVM_BROKEN = Cause(
    "kvm-unusable",
    "KVM does not work on this host, as in many nested set-ups",
    "use software emulation: WHERRY_ACCEL=tcg, or leave the accelerator at auto",
)
_HVF_UNSUPPORTED = Cause(
    "no-hvf",
    "this Mac has no hardware virtualization for us: hosted arm64 runners have none, virtual Macs"
    " neither",
    "leave the accelerator at auto, or set it to tcg (WHERRY_ACCEL=tcg)",
)
_HVF_DENIED = Cause(
    "hvf-denied",
    "macOS does not let this QEMU use the hypervisor: it is not signed for it",
    "install Homebrew's QEMU (brew reinstall qemu), or use WHERRY_ACCEL=tcg",
)
_WHPX_OFF = Cause(
    "whpx-off",
    "the Windows Hypervisor Platform is off",
    "turn the Windows feature HypervisorPlatform on and restart, or use WHERRY_ACCEL=tcg",
)
_ACCEL_MISSING = Cause(
    "accelerator-missing",
    "this QEMU was built without that accelerator",
    "leave the accelerator at auto, or install another QEMU (WHERRY_QEMU)",
)
_MEMORY = Cause(
    "out-of-memory",
    "the host has not enough memory for the machine",
    "give it less: wherry machine set --memory 1g, or end other programs",
)
_DISK_FULL = Cause(
    "disk-full",
    "the host's disk is full",
    "make room, also with: wherry system prune; then start it again",
)
_DISK_CORRUPT = Cause(
    "disk-corrupt",
    "the machine's disk image is damaged",
    "wherry doctor shows what is wrong with it and what can be saved",
)
_DISK_NEWER = Cause(
    "disk-newer",
    "the machine's disk image has features that this QEMU does not know",
    "use the QEMU that it was used with last, or a newer one (WHERRY_QEMU)",
)
_FILE_DENIED = Cause(
    "file-denied",
    "QEMU may not open one of the machine's files",
    "wherry doctor checks owner and permissions of the state directory",
)
_FIRMWARE = Cause(
    "firmware-missing",
    "QEMU's firmware files are missing",
    "install them: Debian's seabios and qemu-system-data, or install QEMU again",
)
_LIBRARY = Cause(
    "library-missing",
    "QEMU lacks a library that it needs",
    "install QEMU again: an upgrade of something else has removed the library",
)
_WRONG_BINARY = Cause(
    "wrong-binary",
    "QEMU is a program for another kind of computer",
    "install the QEMU for this host, or point WHERRY_QEMU at it",
)
_TOO_OLD = Cause(
    "qemu-too-old",
    "this QEMU does not know what Wherry asks of it: it is too old, or built without it",
    "QEMU 7.2 or newer is needed: wherry doctor shows which one is used",
)
_IMAGE = Cause(
    "image-damaged",
    "a file of the VM image is missing or damaged",
    "wherry doctor --fix has it built again at the next start",
)
_SOCKET = Cause(
    "socket",
    "a socket of the machine cannot be made or used",
    "wherry doctor checks the sockets' paths; a shorter WHERRY_HOME helps when one is too long",
)
_SANDBOX = Cause(
    "no-executable-memory",
    "the system forbids QEMU the memory that emulation translates code into",
    "run Wherry outside of the sandbox that forbids it",
)
_INITRD = Cause(
    "initrd-broken",
    "the initial file system could not be unpacked: it is damaged, or the memory is too little",
    "wherry doctor --fix, or give the machine more memory: wherry machine set --memory 1g",
)
_GUEST_MEMORY = Cause(
    "guest-out-of-memory",
    "the machine has not enough memory for its kernel",
    "give it more: wherry machine set --memory 1g",
)
_PROCESSOR = Cause(
    "processor",
    "the guest's programs need processor features that the machine does not have",
    "leave the processor model at auto: wherry machine set --cpu auto",
)
_INIT_DIED = Cause(
    "init-died",
    "the guest's first process died",
    "this is a bug or a damaged image: wherry doctor --fix, then wherry support-bundle",
)
_PANIC = Cause(
    "kernel-panic",
    "the guest's kernel gave up",
    "a start or two later it may work; if not, another kernel: wherry machine set --kernel",
)
_FILE_SYSTEM = Cause(
    "file-system",
    "the file system on the machine's disk is damaged",
    "wherry machine console shows what its check found; do not remove the disk yet",
)
_KILLED = Cause(
    "killed",
    "QEMU was killed: by somebody, or by the system because memory ran out",
    "look for an out-of-memory killer in the system's log; wherry machine set --memory gives less",
)
_CRASHED = Cause(
    "crashed",
    "QEMU crashed",
    "try another version of QEMU (WHERRY_QEMU); wherry support-bundle collects what a report needs",
)
_ILLEGAL = Cause(
    "illegal-instruction",
    "QEMU was built for a newer processor than this host's",
    "install another build of QEMU, or point WHERRY_QEMU at one",
)

_SILENT = Cause(
    "silent-guest",
    "the guest printed nothing: it hangs in its firmware, or the accelerator does not run it",
    "WHERRY_ACCEL=tcg wherry machine start tells whether the accelerator is at fault",
)

_OF_SIGNAL = {
    int(number): cause
    for name, cause in (
        ("SIGKILL", _KILLED),
        ("SIGSEGV", _CRASHED),
        ("SIGABRT", _CRASHED),
        ("SIGBUS", _CRASHED),
        ("SIGILL", _ILLEGAL),
    )
    if (number := getattr(signal, name, None)) is not None
}

_TABLE: tuple[tuple[str, str, Cause], ...] = (
    # block/file-posix.c, block/file-win32.c, block/qcow2.c
    (QEMU, r'Failed to get ("write"|shared "[a-z]+") lock', _LOCKED),
    (QEMU, r"another process using the image", _LOCKED),
    (QEMU, r"No space left on device|There is not enough space on the disk", _DISK_FULL),
    (QEMU, r"Image is corrupt|not in qcow2 format", _DISK_CORRUPT),
    (QEMU, r"Could not read (the )?(L1|refcount) table", _DISK_CORRUPT),
    (QEMU, r"L1 table is too small|Reference count table offset", _DISK_CORRUPT),
    (QEMU, r"[Rr]efcount table .*invalid", _DISK_CORRUPT),
    (QEMU, r"Unsupported qcow2 (feature|version)", _DISK_NEWER),
    # accel/kvm/kvm-all.c, target/i386/kvm/kvm.c
    (QEMU, r"Could not access KVM kernel module: Permission denied", _KVM_DENIED),
    (QEMU, r"Could not access KVM kernel module", _KVM_BROKEN),
    (QEMU, r"failed to initialize kvm|KVM: entry failed", _KVM_BROKEN),
    (QEMU, r"failed to set MSR|kvm_(buf_set|put)_msrs", _KVM_BROKEN),
    (QEMU, r"KVM internal error|kvm run failed", _KVM_BROKEN),
    # accel/hvf/hvf-all.c; the codes are Hypervisor.framework's hv_error.h
    (QEMU, r"HV_DENIED|0xfae94007", _HVF_DENIED),
    (QEMU, r"HV_UNSUPPORTED|0xfae9400f|failed to initialize HVF", _HVF_UNSUPPORTED),
    # target/i386/whpx/whpx-all.c
    (QEMU, r"WHPX: No accelerator found|failed to initialize whpx|WinHv\w+\.dll", _WHPX_OFF),
    (QEMU, r"invalid accelerator", _ACCEL_MISSING),
    # the loaders: ld.so(8), dyld, Windows
    (QEMU, r"error while loading shared libraries", _LIBRARY),
    (QEMU, r"symbol lookup error|version `\S+' not found", _LIBRARY),
    (QEMU, r"dyld.*(Library not loaded|Symbol not found)|Library not loaded: ", _LIBRARY),
    (QEMU, r"DLL .*was not found|code execution cannot proceed", _LIBRARY),
    (QEMU, r"Exec format error|Bad CPU type in executable", _WRONG_BINARY),
    (QEMU, r"not a valid Win32 application", _WRONG_BINARY),
    # accel/tcg/region.c, softmmu/physmem.c, util/oslib-posix.c
    (QEMU, r"jit buffer: (Permission denied|Operation not permitted)|mprotect.*failed", _SANDBOX),
    (QEMU, r"cannot set up guest memory|[Cc]annot allocate memory", _MEMORY),
    (QEMU, r"jit buffer|Failed to allocate", _MEMORY),
    # hw/i386/x86.c, hw/core/loader.c
    (QEMU, r"could not load PC BIOS|failed to find romfile|[Cc]ould not find ROM image", _FIRMWARE),
    (QEMU, r"could not (open|load) kernel|invalid kernel header", _IMAGE),
    (QEMU, r"error reading initrd", _IMAGE),
    (QEMU, r"could not load initrd|Error loading uncompressed kernel", _IMAGE),
    # util/qemu-sockets.c, chardev/char-socket.c
    (QEMU, r"UNIX socket path .* is too long", _SOCKET),
    (QEMU, r"Failed to (bind|connect|listen)|Address already in use", _SOCKET),
    (QEMU, r"is not a socket|Failed to find an available port", _SOCKET),
    (QEMU, r"Could not open '[^']*(kernel|initrd|vmlinux)[^']*': No such file", _IMAGE),
    (QEMU, r"Could not open '.*': (Permission denied|Operation not permitted)", _FILE_DENIED),
    (QEMU, r"invalid option|unsupported machine type|not a valid device model name", _TOO_OLD),
    (QEMU, r"unable to find CPU model|Property '\S+' not found", _TOO_OLD),
    (QEMU, r"Invalid parameter|invalid property", _TOO_OLD),
    # Linux: init/initramfs.c, mm/oom_kill.c, kernel/panic.c, kernel/exit.c
    (CONSOLE, r"Initramfs unpacking failed|Unable to mount root fs|No working init found", _INITRD),
    (CONSOLE, r"System is deadlocked on memory", _GUEST_MEMORY),
    (CONSOLE, r"Out of memory and no killable|Failed to allocate", _GUEST_MEMORY),
    (CONSOLE, r"Attempted to kill init! exitcode=0x00000004", _PROCESSOR),
    (CONSOLE, r"traps: .* trap invalid opcode", _PROCESSOR),
    (CONSOLE, r"Attempted to kill init", _INIT_DIED),
    (CONSOLE, r"EXT4-fs error|EXT4-fs .*(bad geometry|can't find ext4|checksum)", _FILE_SYSTEM),
    (CONSOLE, r"UNEXPECTED INCONSISTENCY", _FILE_SYSTEM),
    (CONSOLE, r"Kernel panic - not syncing", _PANIC),
)

_SIGNS = tuple((where, re.compile(pattern), cause) for where, pattern, cause in _TABLE)
