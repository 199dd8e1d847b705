"""Specs as shapes and values, and programs that are made once for many containers."""

from __future__ import annotations

import copy
import json
from dataclasses import asdict
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_core_plan import LAYOUT, SPEC

from wherry_guest.core.fields import SpecError
from wherry_guest.core.spec import User
from wherry_guest.core.starts import Start, Starts, Traits
from wherry_guest.shapes import join_process, join_spec, split_process, split_spec
from wherry_guest.zygote import Rootfs

HEADER = {"shape": 0, "tty": False}
ROOTFS = Rootfs(("3", "1"), "/data/a/upper", "/data/a/work")

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=10,
)
MOUNTS = st.lists(
    st.fixed_dictionaries(
        {"type": JSON, "destination": JSON},
        optional={"source": JSON, "options": st.lists(st.sampled_from(["bind", "rbind", "ro"]))},
    ),
    max_size=4,
)


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "hostname": JSON,
            "mounts": MOUNTS | JSON,
            "process": JSON
            | st.fixed_dictionaries(
                {}, optional={"args": JSON | st.lists(st.text()), "env": JSON, "cwd": JSON}
            ),
        },
    )
)
def test_a_spec_that_was_split_can_be_joined_again(spec: dict[str, Any]) -> None:
    before = copy.deepcopy(spec)
    shape, values = split_spec(spec)
    assert spec == before
    assert asdict_free(join_spec(json.loads(json.dumps(shape)), values)) == asdict_free(spec)


def asdict_free(spec: dict[str, Any]) -> dict[str, Any]:
    """Without what means the same as its absence: "" and [] for hostname, args and env."""
    spec = copy.deepcopy(spec)
    process = spec.get("process")
    for owner, names in ((spec, ("hostname",)), (process, ("args", "env"))):
        for name in names:
            if isinstance(owner, dict) and owner.get(name) in ("", [], None):
                owner.pop(name, None)
    return spec


def test_containers_that_differ_in_their_values_have_one_shape() -> None:
    other = copy.deepcopy(SPEC)
    other["hostname"] = "otherbox"
    other["process"] |= {"args": ["sh", "-c", "exit"], "env": ["A=1"]}
    other["mounts"][2]["source"] = "/run/other"
    assert split_spec(other)[0] == split_spec(SPEC)[0]
    other["process"]["cwd"] = "/"
    assert split_spec(other)[0] != split_spec(SPEC)[0]


def test_an_exec_has_a_shape_too() -> None:
    shape, values = split_process(SPEC["process"])
    assert (values.args, values.env) == (("/bin/app", "-x"), ("PATH=/bin",))
    assert join_process(shape, values) == SPEC["process"]


def learned(spec: dict[str, Any] = SPEC) -> tuple[Starts, dict[str, Any]]:
    """The shape, known, and the request's body."""
    shape, values = split_spec(spec)
    starts = Starts(LAYOUT, "x86_64")
    starts.learn(0, json.dumps(shape).encode())
    return starts, {"values": asdict(values), "rootfs": asdict(ROOTFS)}


def container(starts: Starts, body: dict[str, Any], flat: bool = True) -> Start:
    return starts.container(HEADER, json.dumps(body).encode(), "/sys/fs/cgroup/c", flat)


def test_the_second_container_of_a_shape_needs_no_plan() -> None:
    starts, body = learned()
    first = container(starts, body)
    assert first.plan is not None and first.program is not None
    body["values"]["hostname"] = "two"
    body["values"]["sources"] = ["/run/wherry/c/two/hosts"]
    body["rootfs"]["upperdir"] = "/data/b/upper"
    second = container(starts, body)
    assert second.plan is None and second.program is not None
    assert second.traits == first.traits
    assert len(second.program) == len(first.program)
    assert b"/run/wherry/c/two/hosts\0" in second.program
    assert b"/run/hosts\0" not in second.program and b"/data/a/upper" not in second.program


@pytest.mark.parametrize(
    "change",
    [
        {"args": ["/bin/app"]},
        {"args": ["app", "-x"], "env": ["PATH=/sbin:/bin"]},
        {"env": ["PATH=/bin", "A=1"]},
        {"env": ["HOME=/home"]},
        {"hostname": "longer"},
        {"args": ["/bin/app", "x" * 1000]},
    ],
)
def test_values_that_do_not_fit_are_planned_anew(change: dict[str, Any]) -> None:
    starts, body = learned()
    container(starts, body)
    body["values"] |= change
    assert container(starts, body).plan is not None


def test_what_is_wrong_with_values_is_found_also_for_a_known_shape() -> None:
    starts, body = learned()
    container(starts, body)
    body["values"]["env"] = ["PATH"]
    with pytest.raises(SpecError, match="NAME=value"):
        container(starts, body)
    body["values"]["env"] = ["PATH=/bin"]
    body["rootfs"]["upperdir"] = "/data,lowerdir=/"
    with pytest.raises(SpecError, match="overlay directory"):
        container(starts, body)


def test_a_fork_gets_the_plan() -> None:
    starts, body = learned()
    container(starts, body)
    start = container(starts, body, flat=False)
    assert start.plan is not None and start.program is None


def test_without_a_cradle_there_are_only_plans() -> None:
    shape, values = split_spec(SPEC)
    starts = Starts(LAYOUT, "")
    starts.learn(0, json.dumps(shape).encode())
    start = container(starts, {"values": asdict(values), "rootfs": asdict(ROOTFS)})
    assert start.plan is not None and start.program is None


def test_an_agent_that_knows_of_no_shapes_is_understood() -> None:
    body = json.dumps({"spec": SPEC, "rootfs": asdict(ROOTFS)}).encode()
    start = Starts(LAYOUT, "x86_64").container({"tty": False}, body, "/c", flat=True)
    assert start.program is not None


def test_an_execs_program_is_that_of_its_containers_filter() -> None:
    starts = Starts(LAYOUT, "x86_64")
    shape, values = split_process(SPEC["process"])
    starts.learn(0, json.dumps(shape).encode())
    body = json.dumps({"values": asdict(values)}).encode()

    def started(of: Traits) -> Start:
        return starts.exec(HEADER, body, of, 9, flat=True)

    plain, personal = Traits(User()), Traits(User(), personality="LINUX32")
    assert started(plain).plan is not None
    assert started(plain).plan is None
    assert started(personal).plan is not None


def test_a_spare_network_is_for_who_wants_a_new_one() -> None:
    starts, body = learned()
    data = json.dumps(body).encode()
    assert not starts.container(HEADER, data, "/c", True, spare=True).network  # not known yet
    spared = starts.container(HEADER, data, "/c", True, spare=True)
    assert spared.network and spared.plan is not None
    assert starts.container(HEADER, data, "/c", True, spare=True).plan is None
    assert not starts.container(HEADER, data, "/c", True, spare=False).network
    host = copy.deepcopy(SPEC)
    host["linux"]["namespaces"].remove({"type": "network"})
    del host["linux"]["sysctl"]
    starts, body = learned(host)
    for _ in range(2):
        data = json.dumps(body).encode()
        assert not starts.container(HEADER, data, "/c", True, spare=True).network
