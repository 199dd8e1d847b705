"""cgroup limits, overlay options and device filters: values in, values out."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from recording_kernel import RecordingKernel

from wherry_guest.core import cgroups
from wherry_guest.core.devices import DevicePrograms, FilterDevices, device_program
from wherry_guest.core.fields import SpecError
from wherry_guest.core.limits import cpu_weight, limits
from wherry_guest.core.overlay import MountSingleLayer, mount_rootfs, overlay_options
from wherry_guest.core.resources import DeviceRule, Resources
from wherry_guest.zygote import Rootfs

# Limits.


@pytest.mark.parametrize(
    ("resources", "files"),
    [
        (Resources(), []),
        (Resources(memory_limit=1 << 20), [("memory.max", "1048576")]),
        (Resources(memory_limit=-1), [("memory.max", "max")]),
        (
            Resources(memory_limit=100, memory_swap=250),
            [("memory.max", "100"), ("memory.swap.max", "150")],
        ),
        (
            Resources(memory_limit=100, memory_swap=100),
            [("memory.max", "100"), ("memory.swap.max", "0")],
        ),
        (
            Resources(memory_limit=100, memory_swap=-1),
            [("memory.max", "100"), ("memory.swap.max", "max")],
        ),
        (Resources(memory_reservation=50), [("memory.low", "50")]),
        (Resources(cpu_quota=150_000, cpu_period=100_000), [("cpu.max", "150000 100000")]),
        (Resources(cpu_quota=50_000), [("cpu.max", "50000 100000")]),
        (Resources(cpu_period=50_000), [("cpu.max", "max 50000")]),
        (Resources(cpu_shares=1024), [("cpu.weight", "39")]),
        (Resources(cpus="0-1", mems="0"), [("cpuset.cpus", "0-1"), ("cpuset.mems", "0")]),
        (Resources(pids_limit=100), [("pids.max", "100")]),
        (Resources(pids_limit=-1), [("pids.max", "max")]),
        (Resources(unified=(("memory.high", "5"),)), [("memory.high", "5")]),
    ],
)
def test_limits_become_cgroup_v2_files(resources: Resources, files: list[tuple[str, str]]) -> None:
    assert [(limit.file, limit.value) for limit in limits(resources)] == files


@pytest.mark.parametrize(
    "resources",
    [
        Resources(memory_swap=100),
        Resources(memory_limit=100, memory_swap=99),
        Resources(unified=(("../memory.max", "1"),)),
        Resources(unified=(("cgroup.procs", "1"),)),
        Resources(unified=(("tasks", "1"),)),
    ],
)
def test_limits_that_contradict_or_escape_are_refused(resources: Resources) -> None:
    with pytest.raises(SpecError, match="linux"):
        limits(resources)


@given(st.integers(0, 1 << 30))
def test_cpu_weight_stays_in_the_kernels_range(shares: int) -> None:
    assert 1 <= cpu_weight(shares) <= 10_000


def test_the_ends_of_cpu_shares() -> None:
    assert (cpu_weight(2), cpu_weight(262_144)) == (1, 10_000)


def test_nested_cgroup_hands_controllers_down() -> None:
    kernel = RecordingKernel({"/c/a/cgroup.controllers": "cpu memory\n"})
    assert cgroups.make(kernel, "/c", "a/b") == "/c/a/b"
    assert kernel.arguments("mkdir") == [("/c/a",), ("/c/a/b",)]
    assert kernel.arguments("write") == [("/c/a/cgroup.subtree_control", "+cpu +memory")]


@pytest.mark.parametrize("path", ["", "/a", "a/../b", "..", "a//b", "."])
def test_cgroup_paths_stay_below_the_containers_own(path: str) -> None:
    with pytest.raises(ValueError, match="cgroup path"):
        cgroups.make(RecordingKernel(), "/c", path)


# The overlay.


def test_a_single_layer_without_upper_directory_is_mounted_alone() -> None:
    assert mount_rootfs(Rootfs(("7",)), "/l", "/r") == MountSingleLayer("/l", "7", "/r")


def test_five_hundred_layers_fit_one_page() -> None:
    names = tuple(str(number) for number in range(500))
    assert len(overlay_options(Rootfs(names, "/var/lib/u", "/var/lib/w"))) < 4096


@pytest.mark.parametrize(
    ("rootfs", "message"),
    [
        (Rootfs(()), "0 layers"),
        (Rootfs(tuple(str(number) for number in range(501))), "501 layers"),
        (Rootfs(("1", "2", "1")), "stands twice"),
        (Rootfs(("a:b", "c")), "'a:b' is not"),
        (Rootfs(("..", "c")), "'..' is not"),
        (Rootfs(("a/b", "c")), "'a/b' is not"),
        (Rootfs(("1", "2"), "/a,lowerdir=/", "/w"), "cannot be an overlay directory"),
        (Rootfs(tuple(f"{number:020}" for number in range(300))), "must fit one page"),
    ],
)
def test_roots_that_cannot_be_are_refused(rootfs: Rootfs, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        overlay_options(rootfs)


# The device filter: its program, run by a small interpreter.


def interpret(program: bytes, kind: int, access: int, major: int, minor: int) -> int:
    """Run the few instructions that `device_program` uses; every jump must land inside."""
    context = struct.pack("<III", access << 16 | kind, major, minor)
    registers = [0] * 10
    code = list(struct.iter_unpack("<BBhi", program))
    at = 0
    while True:
        opcode, both, offset, value = code[at]
        target, source = both & 15, both >> 4
        at += 1
        match opcode:
            case 0x61:
                registers[target] = struct.unpack_from("<I", context, offset)[0]
            case 0xBC:
                registers[target] = registers[source]
            case 0xB4:
                registers[target] = value
            case 0x54:
                registers[target] &= value
            case 0x74:
                registers[target] >>= value
            case 0x56:
                at += offset if registers[target] != value else 0
            case 0x16:
                at += offset if registers[target] == value else 0
            case 0x5D:
                at += offset if registers[target] != registers[source] else 0
            case 0x95:
                return registers[0]
            case _:
                raise AssertionError(f"unexpected instruction {opcode:#x}")


def allowed(rules: list[DeviceRule], kind: str, access: str, major: int, minor: int) -> bool:
    """The meaning of the rules, in plain words: the last rule that speaks of it decides."""
    asked = set(access)
    for rule in reversed(rules):
        if rule.type not in ("a", kind):
            continue
        if rule.major not in (None, major) or rule.minor not in (None, minor):
            continue
        named = set(rule.access)
        if (asked <= named) if rule.allow else (asked & named):
            return rule.allow
    return False


numbers = st.none() | st.integers(0, 3)
accesses = st.sampled_from(["r", "w", "m", "rw", "rm", "wm", "rwm"])
rules = st.builds(
    DeviceRule, st.booleans(), st.sampled_from(["a", "b", "c"]), numbers, numbers, accesses
)


@given(
    st.lists(rules, max_size=6),
    st.sampled_from("bc"),
    accesses,
    st.integers(0, 3),
    st.integers(0, 3),
)
def test_device_program_decides_as_the_rules_say(
    given_rules: list[DeviceRule], kind: str, access: str, major: int, minor: int
) -> None:
    bits = sum({"m": 1, "r": 2, "w": 4}[letter] for letter in access)
    program = device_program(given_rules)
    result = interpret(program, {"b": 1, "c": 2}[kind], bits, major, minor)
    assert bool(result) == allowed(given_rules, kind, access, major, minor)


def test_a_device_program_is_loaded_once_for_containers_with_the_same_rules() -> None:
    kernel, programs = RecordingKernel(), DevicePrograms()
    rules = (DeviceRule(False, "a", None, None, "rwm"),)
    for cgroup in ("/cg/one", "/cg/two"):
        programs.attach(kernel, FilterDevices(cgroup, rules))
    load, attach = 5, 8  # uapi/linux/bpf.h
    assert [command for command, _ in kernel.arguments("bpf")] == [load, attach, attach]
    assert [path for path, _ in kernel.arguments("open")] == ["/cg/one", "/cg/two"]
