"""Restart policies, health checks, log options and updates: Docker's words and rules."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest

from wherry.engine import logdrivers, policies
from wherry.engine.config import merged_config
from wherry.engine.model import Container, Status
from wherry.engine.updates import changes_limits, updated_host_config
from wherry.errors import Conflict, InvalidInput, NotImplementedYet

MIB = 1 << 20


def container(**changes: Any) -> Container:
    it = Container("1" * 64, "box", 1, "busybox", "sha256:1", "sha256:2", {}, {}, ())
    return replace(it, **changes)


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ({"Name": "often"}, "unknown policy 'often'; use one of 'no', 'always', 'on-failure', or"),
        ({"Name": "always", "MaximumRetryCount": 2}, "can only be used with 'on-failure'"),
        ({"Name": "no", "MaximumRetryCount": -1}, "and cannot be negative"),
        ({"Name": "on-failure", "MaximumRetryCount": -1}, "cannot be negative"),
        ({"Name": "on-failure", "MaximumRetryCount": "3"}, "must be a number"),
    ],
)
def test_wrong_restart_policy_is_refused(policy: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        policies.check_restart_policy({"RestartPolicy": policy})


def test_what_clients_send_for_no_policy_is_none() -> None:
    for policy in (None, {}, {"Name": ""}, {"Name": "no", "MaximumRetryCount": 0}):
        policies.check_restart_policy({"RestartPolicy": policy, "AutoRemove": True})
        assert policies.restart_params({"RestartPolicy": policy}) is None


@pytest.mark.parametrize(
    ("policy", "changes", "starts"),
    [
        ("always", {}, True),
        ("always", {"stopped_by_user": True}, True),
        ("always", {"started_ns": None}, False),
        ("always", {"status": Status.RUNNING}, False),
        ("unless-stopped", {}, True),
        ("unless-stopped", {"stopped_by_user": True}, False),
        ("on-failure", {"exit_code": 0}, False),
        ("on-failure", {"exit_code": 1}, True),
        ("no", {}, False),
    ],
)
def test_what_starts_with_the_machine(policy: str, changes: dict[str, Any], starts: bool) -> None:
    defaults = {"started_ns": 5, "status": Status.EXITED, "exit_code": 137}
    it = container(host_config={"RestartPolicy": {"Name": policy}}, **{**defaults, **changes})
    assert policies.starts_with_machine(it) is starts


def test_signals_that_end_a_policy() -> None:
    plain, own = container(), container(config={"StopSignal": "SIGUSR1"})
    assert policies.ends_policy(plain, signal=1, stop_signal=15)
    assert policies.ends_policy(own, signal=10, stop_signal=10)
    assert policies.ends_policy(own, signal=9, stop_signal=10)
    assert not policies.ends_policy(own, signal=1, stop_signal=10)


def test_health_check_is_the_images_where_the_client_is_silent() -> None:
    image = {"Cmd": ["x"], "Healthcheck": {"Test": ["CMD", "a"], "Retries": 5, "Interval": 10**9}}
    assert merged_config({}, image)["Healthcheck"] == image["Healthcheck"]
    own = merged_config({"Healthcheck": {"Retries": 2}}, image)["Healthcheck"]
    assert own == {"Test": ["CMD", "a"], "Retries": 2, "Interval": 10**9}
    none = merged_config({"Healthcheck": {"Test": ["NONE"]}}, image)
    assert policies.probe_command(none) is None


@pytest.mark.parametrize(
    ("config", "command"),
    [
        ({}, None),
        ({"Healthcheck": {"Test": []}}, None),
        ({"Healthcheck": {"Test": ["CMD", "a", "b"]}}, ["a", "b"]),
        ({"Healthcheck": {"Test": ["CMD-SHELL", "a b"]}}, ["/bin/sh", "-c", "a b"]),
        ({"Healthcheck": {"Test": ["CMD-SHELL", "a"]}, "Shell": ["/x", "-y"]}, ["/x", "-y", "a"]),
    ],
)
def test_probe_command(config: dict[str, Any], command: list[str] | None) -> None:
    assert policies.probe_command(config) == command


@pytest.mark.parametrize(
    ("check", "message"),
    [
        ({"Interval": 999_999}, "Interval in Healthcheck cannot be less than 1ms"),
        ({"StartInterval": 5}, "StartInterval in Healthcheck cannot be less than 1ms"),
        ({"Retries": -1}, "Retries in Healthcheck cannot be negative"),
        ({"Test": ["SHELL", "x"]}, "Unknown healthcheck type 'SHELL'"),
        ({"Test": "true"}, "must be a list"),
    ],
)
def test_wrong_health_check_is_refused(check: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        policies.check_healthcheck(check)


def log_config(driver: str, **options: str) -> dict[str, Any]:
    config = {name.replace("_", "-"): value for name, value in options.items()}
    return {"LogConfig": {"Type": driver, "Config": config}}


@pytest.mark.parametrize(
    ("host_config", "params"),
    [
        ({}, ("file", 0, 1)),
        (log_config(""), ("file", 0, 1)),
        (log_config("json-file", max_size="10k", max_file="3"), ("file", 10_000, 3)),
        (log_config("json-file", max_size="1.5m"), ("file", 1_500_000, 1)),
        (log_config("local"), ("file", 20_000_000, 5)),
        (log_config("local", max_size="1g", mode="blocking"), ("file", 10**9, 5)),
    ],
)
def test_log_options_are_read_as_docker_does(
    host_config: dict[str, Any], params: tuple[str, int, int]
) -> None:
    logdrivers.check_log_config(host_config)
    driver, size, files = params
    wanted = {"driver": driver, "max_size": size, "max_files": files}
    assert logdrivers.log_params(host_config) == wanted


@pytest.mark.parametrize(
    ("host_config", "error", "message"),
    [
        (log_config("nope"), InvalidInput, "no log driver named 'nope' is registered"),
        (log_config("syslog"), NotImplementedYet, "LogConfig.Type 'syslog'"),
        (log_config("json-file", x="1"), InvalidInput, "unknown log opt 'x' for json-file"),
        (log_config("none", max_size="1"), InvalidInput, "unknown log opt 'max-size' for none"),
        (log_config("local", labels="x"), InvalidInput, "unknown log opt 'labels' for local"),
        (
            log_config("local", mode="non-blocking", max_buffer_size="0"),
            InvalidInput,
            "max-buffer-size must be",
        ),
        (log_config("json-file", mode="fast"), InvalidInput, "logging mode not supported: fast"),
        (log_config("local", max_buffer_size="1m"), InvalidInput, "only supported with"),
        (log_config("json-file", max_size="-1"), InvalidInput, "positive number"),
        (log_config("json-file", max_size="lots"), InvalidInput, "invalid size: 'lots'"),
        (log_config("json-file", max_file="0"), InvalidInput, "cannot be less than 1"),
        (log_config("json-file", max_file="x"), InvalidInput, "max-file 'x'"),
        (log_config("json-file", compress="true"), InvalidInput, "compress cannot be true when"),
        (log_config("local", compress="true"), NotImplementedYet, "compress"),
        (log_config("json-file", tag="{{.Nope}}"), InvalidInput, "tag: {{.Nope}} is not"),
        (log_config("json-file", env_regex="("), InvalidInput, "env-regex"),
    ],
)
def test_wrong_log_options_are_refused(
    host_config: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=re.escape(message)):
        logdrivers.check_log_config(host_config)


def test_a_log_that_never_waits_has_a_buffer() -> None:
    for options, size in (({}, 1_000_000), ({"max_buffer_size": "4m"}, 4 << 20)):
        host_config = log_config("json-file", mode="non-blocking", **options)
        logdrivers.check_log_config(host_config)
        assert logdrivers.log_params(host_config)["buffer"] == size


def test_update_keeps_what_it_does_not_name() -> None:
    before = {"Memory": 64 * MIB, "MemorySwap": 128 * MIB, "CpuShares": 5, "AutoRemove": False}
    after = updated_host_config(before, {"CpuShares": 9, "Memory": 0, "PidsLimit": -1})
    assert after == {**before, "CpuShares": 9, "PidsLimit": -1}
    assert changes_limits(before, after)
    assert not changes_limits(before, updated_host_config(before, {"CpuShares": 0}))


@pytest.mark.parametrize(
    ("before", "changes", "message"),
    [
        ({"CpuQuota": 5000}, {"NanoCpus": 1}, "CPU Quota has already been set"),
        ({"NanoCpus": 1}, {"CpuPeriod": 5000}, "NanoCPUs has already been set"),
        ({}, {"Memory": 64 * MIB}, "update the memoryswap at the same time"),
        ({"AutoRemove": True}, {"RestartPolicy": {"Name": "always"}}, "AutoRemove is enabled"),
    ],
)
def test_update_that_contradicts_is_a_conflict(
    before: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(Conflict, match=message):
        updated_host_config(before, changes)


def test_update_is_checked_as_a_creation_is() -> None:
    with pytest.raises(InvalidInput, match="6MB"):
        updated_host_config({}, {"Memory": 5, "MemorySwap": 10})
    with pytest.raises(InvalidInput, match="unknown policy"):
        updated_host_config({}, {"RestartPolicy": {"Name": "x"}})
    unlimited = {"Memory": 64 * MIB, "MemorySwap": -1}
    assert updated_host_config(unlimited, {"Memory": 99 * MIB})["Memory"] == 99 * MIB
