"""The runtime spec: what is read, what is refused, and that the field is named."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wherry_guest.core.capabilities import NAMES, mask_of
from wherry_guest.core.fields import SpecError
from wherry_guest.core.spec import parse_process, parse_spec

MINIMAL: dict[str, Any] = {
    "ociVersion": "1.2.0",
    "process": {"args": ["true"], "cwd": "/"},
    "linux": {"namespaces": [{"type": "pid"}, {"type": "mount"}, {"type": "uts"}]},
}


def changed(path: str, value: Any) -> dict[str, Any]:
    """MINIMAL with the field at the dotted `path` set."""
    spec = copy.deepcopy(MINIMAL)
    *parents, last = path.split(".")
    target = spec
    for name in parents:
        target = target.setdefault(name, {})
    target[last] = value
    return spec


def test_minimal_spec_has_the_specifications_defaults() -> None:
    spec = parse_spec(MINIMAL)
    assert spec.process.args == ("true",)
    assert spec.process.capabilities.bounding == 0
    assert not spec.readonly_root and spec.mounts == () and spec.devices == ()


def test_annotations_are_ignored_as_the_specification_demands() -> None:
    parse_spec(changed("annotations", {"org.example": "x"}))


@pytest.mark.parametrize(
    "path",
    [
        "hooks.nonsense", "windows", "vm", "nonsense", "process.apparmorProfile",
        "process.selinuxLabel", "process.scheduler.nonsense", "process.ioPriority.nonsense",
        "process.nonsense", "linux.seccompNonsense", "linux.intelRdt", "linux.mountLabel",
        "linux.personality.nonsense", "linux.resources.blockIO.leafWeight",
        "linux.resources.network", "linux.resources.memory.kernel",
        "linux.resources.memory.disableOOMKiller", "linux.resources.cpu.realtimePeriod",
        "linux.resources.nonsense", "root.nonsense",
    ],
)  # fmt: skip
def test_unsupported_field_is_an_error_that_names_it(path: str) -> None:
    with pytest.raises(SpecError, match=f"^{path} is not supported"):
        parse_spec(changed(path, {"x": 1}))
    for default in (None, False, 0, "", [], {}):
        parse_spec(changed(path, default))


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("ociVersion", "2.0.0", "ociVersion '2.0.0' is not 1.x"),
        ("process.args", [], "process.args is empty"),
        ("process.args", "true", "process.args must be of type array"),
        ("process.args", [1], "process.args must hold strings only"),
        ("process.args", ["a\0b"], "process.args has a NUL byte"),
        ("process.cwd", "relative", "process.cwd 'relative' is not absolute"),
        ("process.env", ["NOVALUE"], "process.env has 'NOVALUE'"),
        ("process.user", {"uid": -1}, "process.user.uid -1"),
        ("process.user", {"uid": True}, "process.user.uid must be of type integer"),
        ("process.oomScoreAdj", 1001, "process.oomScoreAdj 1001"),
        ("process.rlimits", [{"type": "RLIMIT_X"}], r"process.rlimits\[0\].type 'RLIMIT_X'"),
        ("process.capabilities", {"bounding": ["CAP_X"]}, "process.capabilities.bounding has"),
        ("linux.namespaces", [], "linux.namespaces without a new mount namespace"),
        ("linux.namespaces", [{"type": "x"}], r"linux.namespaces\[0\].type 'x' is no type"),
        ("linux.namespaces", [{"type": "pid"}, {"type": "pid"}], "stands twice"),
        ("linux.namespaces", [{"type": "pid", "path": "x"}], r"\[0\].path 'x' is not absolute"),
        ("linux.namespaces", [{"type": "mount", "path": "/x"}], r"\[0\].path is not supported"),
        ("linux.rootfsPropagation", "odd", "linux.rootfsPropagation 'odd' is no"),
        ("linux.maskedPaths", ["proc"], "linux.maskedPaths has 'proc'"),
        ("linux.devices", [{"path": "/x", "type": "z"}], r"linux.devices\[0\].type 'z'"),
        ("mounts", [{"destination": "x"}], r"mounts\[0\].destination 'x' is not absolute"),
        ("mounts", [{"destination": "/x", "uidMappings": [1]}], r"mounts\[0\].uidMappings"),
        ("root", "x", "root must be of type object"),
    ],
)
def test_wrong_value_is_an_error_that_names_the_field(path: str, value: Any, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        parse_spec(changed(path, value))


def test_hostname_without_an_own_uts_namespace_would_rename_the_machine() -> None:
    spec = changed("linux.namespaces", [{"type": "pid"}, {"type": "mount"}])
    with pytest.raises(SpecError, match="hostname needs a uts namespace"):
        parse_spec({**spec, "hostname": "box"})


def test_process_of_an_exec_is_named_from_process() -> None:
    with pytest.raises(SpecError, match=r"^process\.nonsense is not supported$"):
        parse_process({"args": ["x"], "nonsense": 1})


def test_bind_option_makes_a_bind_mount_of_any_type() -> None:
    mount = {"destination": "/x", "type": "none", "source": "/y", "options": ["rbind"]}
    assert parse_spec(changed("mounts", [mount])).mounts[0].type == "bind"


def test_device_rule_of_minus_one_means_every_number() -> None:
    rule = {"allow": True, "type": "c", "major": 136, "minor": -1, "access": "rw"}
    parsed = parse_spec(changed("linux.resources", {"devices": [rule]})).resources.devices[0]
    assert (parsed.major, parsed.minor) == (136, None)


@given(st.sets(st.sampled_from(NAMES)))
def test_capability_masks_have_one_bit_per_name(names: set[str]) -> None:
    mask = mask_of(names)
    assert mask.bit_count() == len(names)
    assert {NAMES[number] for number in range(len(NAMES)) if mask >> number & 1} == names


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


@given(st.sampled_from(["process", "linux", "mounts", "root", "hostname"]), json_values)
def test_no_json_makes_the_parser_fail_otherwise(field: str, value: Any) -> None:
    try:
        parse_spec({**MINIMAL, field: value})
    except SpecError:
        pass
