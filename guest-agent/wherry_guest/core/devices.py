"""Device nodes and links in /dev, and the cgroup's device filter.

Rules: the default nodes are those of the OCI runtime spec (config-linux.md, "Default Devices").
cgroup v2 has no device files: the rules become a small eBPF program that the kernel asks at every
open and mknod; `device_program` makes it, purely. The last rule that matches decides, as in v1.
"""

from __future__ import annotations

import ctypes
import os
import stat
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from wherry_guest.core.mounts import AttachBind
from wherry_guest.core.resources import DeviceRule
from wherry_guest.core.spec import Device
from wherry_guest.core.steps import SetupError, make_directories

if TYPE_CHECKING:
    from collections.abc import Sequence

    from wherry_guest.core.steps import State
    from wherry_guest.core.syscalls import Kernel

DEFAULT_DEVICES: Final = (
    # Documentation/admin-guide/devices.txt
    Device("/dev/null", "c", 1, 3, 0o666, 0, 0),
    Device("/dev/zero", "c", 1, 5, 0o666, 0, 0),
    Device("/dev/full", "c", 1, 7, 0o666, 0, 0),
    Device("/dev/random", "c", 1, 8, 0o666, 0, 0),
    Device("/dev/urandom", "c", 1, 9, 0o666, 0, 0),
    Device("/dev/tty", "c", 5, 0, 0o666, 0, 0),
)
DEFAULT_LINKS: Final = (
    ("/proc/self/fd", "/dev/fd"),
    ("/proc/self/fd/0", "/dev/stdin"),
    ("/proc/self/fd/1", "/dev/stdout"),
    ("/proc/self/fd/2", "/dev/stderr"),
    ("pts/ptmx", "/dev/ptmx"),
)

ALWAYS_ALLOWED: Final = (
    # what every container may open beside its spec's rules: making nodes, the default ones, the
    # terminal multiplexer and pseudo terminals; config-linux.md, "Allowed Device list"
    DeviceRule(True, "c", None, None, "m"),
    DeviceRule(True, "b", None, None, "m"),
    *(DeviceRule(True, "c", device.major, device.minor, "rwm") for device in DEFAULT_DEVICES),
    DeviceRule(True, "c", 5, 2, "rwm"),
    DeviceRule(True, "c", 136, None, "rwm"),
)

TYPES: Final = {"c": stat.S_IFCHR, "u": stat.S_IFCHR, "b": stat.S_IFBLK, "p": stat.S_IFIFO}


@dataclass(frozen=True, slots=True)
class MakeDevice:
    """Make a device node with exactly this owner and mode."""

    device: Device

    def describe(self) -> str:
        return f"make the device {self.device.path} (linux.devices)"

    def execute(self, kernel: Kernel, state: State) -> None:
        device = self.device
        kind = TYPES[device.type]
        make_directories(kernel, device.path.rpartition("/")[0] or "/")
        try:
            kernel.mknod(device.path, kind | device.mode, device.major, device.minor)
        except FileExistsError:
            self._check_existing(kernel, kind)
        kernel.chmod(device.path, device.mode)  # mknod obeys the umask
        if device.uid or device.gid:
            kernel.chown(device.path, device.uid, device.gid)

    def _check_existing(self, kernel: Kernel, kind: int) -> None:
        found = kernel.lstat(self.device.path)
        wanted = (kind, self.device.major, self.device.minor)
        if (stat.S_IFMT(found.mode), found.major, found.minor) != wanted:
            raise SetupError(f"{self.describe()}: something else has this path")


@dataclass(frozen=True, slots=True)
class MakeLink:
    """Make a symbolic link, unless something has its path."""

    target: str
    path: str

    def describe(self) -> str:
        return f"link {self.path} to {self.target}"

    def execute(self, kernel: Kernel, state: State) -> None:
        try:
            kernel.symlink(self.target, self.path)
        except FileExistsError:
            return


@dataclass(frozen=True, slots=True)
class TakeDevice:
    """Copy the runtime's own node for `device`: in a user namespace no node can be made."""

    device: Device

    def describe(self) -> str:
        return f"take the device {self.device.path} (linux.devices)"

    def execute(self, kernel: Kernel, state: State) -> None:
        device = self.device
        tree = kernel.open_tree(device.path, False)
        found = kernel.stat(tree)
        wanted = (TYPES[device.type], device.major, device.minor)
        if (stat.S_IFMT(found.mode), found.major, found.minor) != wanted:
            raise SetupError(f"{self.describe()}: the host has something else there")
        state.trees[device.path] = tree


def plan_devices(devices: Sequence[Device]) -> list[MakeDevice | MakeLink]:
    """The default nodes and links, and the spec's own (which win over a default of that path)."""
    return [*(MakeDevice(device) for device in _with_defaults(devices)), *_links()]


def plan_taken_devices(
    devices: Sequence[Device],
) -> tuple[list[TakeDevice], list[AttachBind | MakeLink]]:
    """The same for a user namespace: what is done outside, and what inside."""
    every = _with_defaults(devices)
    attach = [AttachBind(device.path, device.path, device.path) for device in every]
    return [TakeDevice(device) for device in every], [*attach, *_links()]


def _with_defaults(devices: Sequence[Device]) -> list[Device]:
    own = {device.path for device in devices}
    return [*(device for device in DEFAULT_DEVICES if device.path not in own), *devices]


def _links() -> list[MakeLink]:
    return [MakeLink(target, path) for target, path in DEFAULT_LINKS]


# The filter.

_BPF_PROG_LOAD: Final = 5  # uapi/linux/bpf.h
_LOAD_TRIES: Final = 10
"""The verifier gives up (EAGAIN) when a signal, such as a child's end, comes meanwhile
(Linux, kernel/bpf/verifier.c, do_check)."""

_BPF_PROG_ATTACH: Final = 8
_BPF_PROG_TYPE_CGROUP_DEVICE: Final = 15
_BPF_CGROUP_DEVICE: Final = 6
_BPF_F_ALLOW_MULTI: Final = 2
_DEVICE_TYPES: Final = {"b": 1, "c": 2}  # BPF_DEVCG_DEV_BLOCK, _CHAR
_ACCESS: Final = {"m": 1, "r": 2, "w": 4}  # BPF_DEVCG_ACC_MKNOD, _READ, _WRITE
_LICENSE: Final = b"Apache-2.0\0"
_KEPT_PROGRAMS: Final = 4

# Instruction classes and operations, Documentation/bpf/standardization/instruction-set.rst
_LOAD_WORD: Final = 0x61  # dst = *(u32 *)(src + offset)
_MOVE: Final = 0xBC  # 32 bit, dst = src
_MOVE_VALUE: Final = 0xB4
_AND_VALUE: Final = 0x54
_SHIFT_RIGHT: Final = 0x74
_JUMP_NOT_EQUAL: Final = 0x56  # 32 bit, against a value
_JUMP_NOT_EQUAL_64: Final = 0x5D  # 64 bit, against a register
_EXIT: Final = 0x95


@dataclass(frozen=True, slots=True)
class FilterDevices:
    """Attach the device rules to the container's cgroup."""

    directory: str
    rules: tuple[DeviceRule, ...]

    def describe(self) -> str:
        return "attach the device filter to the cgroup (linux.resources.devices)"

    def execute(self, kernel: Kernel, state: State) -> None:
        fd = _load(kernel, self.rules)
        _attach(kernel, fd, self.directory)
        kernel.close(fd)


class DevicePrograms:
    """Filters for one container after the other; the kernel keeps the latest.

    Checking a program costs the kernel more than all else that a filter needs.
    """

    def __init__(self) -> None:
        self._kept: dict[tuple[DeviceRule, ...], int] = {}

    def attach(self, kernel: Kernel, step: FilterDevices) -> None:
        """What the step would do."""
        fd = self._kept.get(step.rules)
        if fd is None:
            fd = self._kept[step.rules] = _load(kernel, step.rules)
            if len(self._kept) > _KEPT_PROGRAMS:
                kernel.close(self._kept.pop(next(iter(self._kept))))
        _attach(kernel, fd, step.directory)


def _load(kernel: Kernel, rules: tuple[DeviceRule, ...]) -> int:
    program = device_program(rules)
    code = ctypes.create_string_buffer(program, len(program))
    text = ctypes.create_string_buffer(_LICENSE)
    # union bpf_attr, BPF_PROG_LOAD: prog_type, insn_cnt, insns, license, then zeros
    fields = (_BPF_PROG_TYPE_CGROUP_DEVICE, len(program) // 8)
    pointers = (ctypes.addressof(code), ctypes.addressof(text))
    load = struct.pack("=IIQQ", *fields, *pointers) + bytes(24)
    for _ in range(_LOAD_TRIES - 1):
        try:
            return kernel.bpf(_BPF_PROG_LOAD, ctypes.create_string_buffer(load, len(load)))
        except BlockingIOError:
            continue
    return kernel.bpf(_BPF_PROG_LOAD, ctypes.create_string_buffer(load, len(load)))


def _attach(kernel: Kernel, program: int, directory: str) -> None:
    cgroup = kernel.open(directory, os.O_RDONLY)
    try:
        # BPF_PROG_ATTACH: target_fd, attach_bpf_fd, attach_type, attach_flags
        attach = struct.pack("=IIII", cgroup, program, _BPF_CGROUP_DEVICE, _BPF_F_ALLOW_MULTI)
        kernel.bpf(_BPF_PROG_ATTACH, ctypes.create_string_buffer(attach, len(attach)))
    finally:
        kernel.close(cgroup)


def device_program(rules: Sequence[DeviceRule]) -> bytes:
    """An eBPF program (8 bytes per instruction): 1 allows the access, 0 refuses it.

    The context is struct bpf_cgroup_dev_ctx {u32 access_type (access << 16 | type), major, minor}.
    A refusal wins over a part of what was asked for (open for reading and writing where only
    reading is allowed). Rules are tried from the last to the first; without a match: refused.
    """
    code = [
        _instruction(_LOAD_WORD, 2, 1, 0),  # r2 = type
        _instruction(_MOVE, 3, 2),  # r3 = access
        _instruction(_AND_VALUE, 2, value=0xFFFF),
        _instruction(_SHIFT_RIGHT, 3, value=16),
        _instruction(_LOAD_WORD, 4, 1, 4),  # r4 = major
        _instruction(_LOAD_WORD, 5, 1, 8),  # r5 = minor
    ]
    for rule in reversed(rules):
        code += _rule_code(rule)
        if _decides_everything(rule):
            return b"".join(code)  # the verifier refuses instructions that cannot be reached
    return b"".join([*code, *_verdict(False)])


def _decides_everything(rule: DeviceRule) -> bool:
    anything = rule.type == "a" and rule.major is None and rule.minor is None
    return anything and set(rule.access) == set("rwm")


def _rule_code(rule: DeviceRule) -> list[bytes]:
    tests: list[tuple[int, int, int]] = []  # (opcode, register, value): jump past when true
    if rule.type != "a":
        tests.append((_JUMP_NOT_EQUAL, 2, _DEVICE_TYPES[rule.type]))
    for register, number in ((4, rule.major), (5, rule.minor)):
        if number is not None:
            tests.append((_JUMP_NOT_EQUAL, register, number))
    body = [*_access_code(rule), *_verdict(rule.allow)]
    lines = []
    for position, (opcode, register, value) in enumerate(tests):
        skip = len(tests) - position - 1 + len(body)
        lines.append(_instruction(opcode, register, offset=skip, value=value))
    return lines + body


def _access_code(rule: DeviceRule) -> list[bytes]:
    mask = sum(_ACCESS[letter] for letter in set(rule.access))
    if mask == 7:
        return []
    skip = len(_verdict(True))
    if rule.allow:  # all of what is asked for must be in the mask
        return [
            _instruction(_MOVE, 1, 3),
            _instruction(_AND_VALUE, 1, value=mask),
            _instruction(_JUMP_NOT_EQUAL_64, 1, 3, offset=skip),
        ]
    # any of what is asked for is in the mask: jump past when there is none
    return [
        _instruction(_MOVE, 1, 3),
        _instruction(_AND_VALUE, 1, value=mask),
        _instruction(0x16, 1, offset=skip, value=0),  # 32 bit, jump when equal to a value
    ]


def _verdict(allow: bool) -> list[bytes]:
    return [_instruction(_MOVE_VALUE, 0, value=int(allow)), _instruction(_EXIT)]


def _instruction(
    opcode: int, target: int = 0, source: int = 0, offset: int = 0, value: int = 0
) -> bytes:
    signed = value - 2**32 if value >= 2**31 else value
    return struct.pack("<BBhi", opcode, source << 4 | target, offset, signed)
