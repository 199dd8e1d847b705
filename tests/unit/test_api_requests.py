"""Requests as values: versions, queries, filters, and the fields that a create may carry."""

from __future__ import annotations

import json

import pytest

from wherry.api import fields
from wherry.api.http import Request, Routes, error_response, split_target
from wherry.api.images import registry_auth
from wherry.engine.updates import LIMITS
from wherry.errors import InvalidInput, NotFound, NotImplementedYet, WherryError


def request(target: str, body: bytes = b"") -> Request:
    path, version, query = split_target(target)
    return Request("GET", path, query, {}, body, version)


def test_a_version_prefix_is_cut_off_and_remembered() -> None:
    assert split_target("/v1.41/containers/json?all=1") == (
        "/containers/json",
        (1, 41),
        {"all": ["1"]},
    )


def test_a_path_without_version_is_the_newest() -> None:
    assert split_target("/_ping")[1] == (1, 50)


@pytest.mark.parametrize("prefix", ["/v1.51", "/v2.0", "/v1.23"])
def test_versions_out_of_range_are_refused(prefix: str) -> None:
    with pytest.raises(InvalidInput, match="client version"):
        split_target(f"{prefix}/info")


@pytest.mark.parametrize(
    ("text", "expected"), [("1", True), ("true", True), ("0", False), ("false", False), ("", False)]
)
def test_flags_are_read_as_docker_writes_them(text: str, expected: bool) -> None:
    assert request(f"/x?f={text}").flag("f") is expected


def test_a_number_that_is_none_names_its_parameter() -> None:
    with pytest.raises(InvalidInput, match="t must be a whole number"):
        request("/x?t=soon").number("t")


@pytest.mark.parametrize("filters", ['{"label":["a=b"]}', '{"label":{"a=b":true}}'])
def test_filters_of_old_and_new_clients_mean_the_same(filters: str) -> None:
    assert request(f"/x?filters={filters}").filters() == {"label": ["a=b"]}


@pytest.mark.parametrize("filters", ["[1]", "nonsense", '{"label":3}'])
def test_filters_of_another_shape_are_refused(filters: str) -> None:
    with pytest.raises(InvalidInput, match="filters"):
        request(f"/x?filters={filters}").filters()


def test_a_body_that_is_no_object_is_refused() -> None:
    with pytest.raises(InvalidInput, match="JSON object"):
        request("/x", b"[]").json()


def test_routes_match_whole_paths_in_order() -> None:
    async def one(*_args: object) -> None: ...

    async def many(*_args: object) -> None: ...

    routes = Routes()
    routes.add("GET", "/images/{name:path}/json", many)  # type: ignore[arg-type]  # never called
    routes.add("GET", "/containers/{id}/json", one)  # type: ignore[arg-type]  # never called
    assert routes.find("GET", "/images/a/b%2Fc:1/json") == (many, {"name": "a/b/c:1"})
    assert routes.find("HEAD", "/containers/x/json") == (one, {"id": "x"})
    with pytest.raises(NotFound):
        routes.find("GET", "/containers/a/b/json")
    with pytest.raises(WherryError) as wrong:
        routes.find("PUT", "/containers/a/json")
    assert wrong.value.http_status == 405


DOCKER_RUN_HOST_CONFIG = {
    "Binds": None, "ContainerIDFile": "", "LogConfig": {"Type": "", "Config": {}},
    "NetworkMode": "default", "PortBindings": {},
    "RestartPolicy": {"Name": "no", "MaximumRetryCount": 0}, "AutoRemove": True,
    "VolumeDriver": "", "VolumesFrom": None, "ConsoleSize": [24, 80], "CapAdd": None,
    "CapDrop": None, "CgroupnsMode": "", "Dns": [], "DnsOptions": [], "DnsSearch": [],
    "ExtraHosts": None, "GroupAdd": None, "IpcMode": "", "Cgroup": "", "Links": None,
    "OomScoreAdj": 0, "PidMode": "", "Privileged": False, "PublishAllPorts": False,
    "ReadonlyRootfs": False, "SecurityOpt": None, "UTSMode": "", "UsernsMode": "", "ShmSize": 0,
    "Isolation": "", "CpuShares": 0, "Memory": 0, "NanoCpus": 0, "CgroupParent": "",
    "BlkioWeight": 0, "BlkioWeightDevice": [], "BlkioDeviceReadBps": [],
    "BlkioDeviceWriteBps": [], "BlkioDeviceReadIOps": [], "BlkioDeviceWriteIOps": [],
    "CpuPeriod": 0, "CpuQuota": 0, "CpuRealtimePeriod": 0, "CpuRealtimeRuntime": 0,
    "CpusetCpus": "", "CpusetMems": "", "Devices": [], "DeviceCgroupRules": None,
    "DeviceRequests": None, "MemoryReservation": 0, "MemorySwap": 0, "MemorySwappiness": -1,
    "OomKillDisable": False, "PidsLimit": 0, "Ulimits": [], "CpuCount": 0, "CpuPercent": 0,
    "IOMaximumIOps": 0, "IOMaximumBandwidth": 0, "MaskedPaths": None, "ReadonlyPaths": None,
}  # fmt: skip
"""What Docker's command line sends for a plain `docker run --rm IMAGE`."""


def test_the_whole_host_config_of_a_plain_docker_run_is_accepted() -> None:
    fields.check(fields.HOST_CONFIG, DOCKER_RUN_HOST_CONFIG, "HostConfig.")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PortBindings", {"80/tcp": [{"HostPort": "8080"}]}),
        ("NetworkMode", "mynet"),
        ("MemorySwappiness", 60),
        ("SomethingNew", 1),
    ],
)
def test_what_is_not_implemented_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(NotImplementedYet, match=rf"HostConfig\.{name}") as error:
        fields.check(fields.HOST_CONFIG, {name: value}, "HostConfig.")
    assert error.value.http_status == 501


@pytest.mark.parametrize(
    ("name", "value"), [("Memory", "64m"), ("CapAdd", "ALL"), ("Memory", True), ("CapAdd", [1])]
)
def test_values_of_the_wrong_type_are_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(InvalidInput, match=name):
        fields.check(fields.HOST_CONFIG, {name: value})


@pytest.mark.parametrize("name", ["RestartPolicy", "LogConfig"])
def test_a_rule_that_meets_the_wrong_shape_names_the_field(name: str) -> None:
    with pytest.raises(InvalidInput, match=name):
        fields.check(fields.HOST_CONFIG, {name: "always"})


def test_an_update_takes_what_docker_sends_and_refuses_what_there_is_not() -> None:
    limits = {name: value for name, value in DOCKER_RUN_HOST_CONFIG.items() if name in LIMITS}
    fields.check(fields.UPDATE, {**limits, "BlkioWeight": 0, "RestartPolicy": {"Name": ""}})
    fields.check(fields.UPDATE, {"Memory": 1 << 30, "MemorySwap": -1, "NanoCpus": 5})
    limit = {"BlkioDeviceReadBps": [{"Path": "/dev/vda", "Rate": 1}]}
    with pytest.raises(NotImplementedYet, match="BlkioDeviceReadBps"):
        fields.check(fields.UPDATE, limit)
    with pytest.raises(NotImplementedYet, match="Binds"):
        fields.check(fields.UPDATE, {"Binds": ["/a:/b"]})


def test_endpoint_options_are_refused_by_name() -> None:
    fields.check_networking({"EndpointsConfig": {"default": {"Aliases": None}}})
    with pytest.raises(NotImplementedYet, match=r"default\.Aliases"):
        fields.check_networking({"EndpointsConfig": {"default": {"Aliases": ["db"]}}})
    with pytest.raises(NotImplementedYet, match=r"EndpointsConfig\.mine"):
        fields.check_networking({"EndpointsConfig": {"mine": {}}})


def test_a_hint_reaches_clients_that_do_not_know_it() -> None:
    error = WherryError("no such thing", hint="try another")
    plain = json.loads(bytes(error_response(error, separate_hint=False).body))  # type: ignore[arg-type]  # bytes here
    assert plain == {"message": "no such thing (try another)"}
    ours = json.loads(bytes(error_response(error, separate_hint=True).body))  # type: ignore[arg-type]  # bytes here
    assert ours == {"message": "no such thing", "hint": "try another", "exit_code": 1}


def test_registry_auth_is_base64url_with_or_without_padding() -> None:
    import base64

    text = base64.urlsafe_b64encode(json.dumps({"username": "u", "password": "p?>"}).encode())
    for header in (text.decode(), text.decode().rstrip("=")):
        assert registry_auth(header) == {"username": "u", "password": "p?>"}
    assert registry_auth("") is None
    assert registry_auth(base64.urlsafe_b64encode(b'{"username":""}').decode()) is None
    with pytest.raises(InvalidInput):
        registry_auth("!!!")
