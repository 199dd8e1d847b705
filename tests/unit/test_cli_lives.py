"""Flags of restarts, health and logs; rows of ps; lines of events."""

from __future__ import annotations

from typing import Any

import pytest

from wherry.cli import events, ps
from wherry.cli.options import ContainerOptions
from wherry.cli.policies import PolicyFlags, restart_policy
from wherry.errors import InvalidInput
from wherry.units import binary_size


def body(rm: bool = False, **flags: Any) -> dict[str, Any]:
    options = ContainerOptions("box", (), rm=rm, policies=PolicyFlags(**flags))
    return options.body(attach=False)


def test_health_flags_become_a_healthcheck() -> None:
    made = body(
        health_cmd="curl x", health_interval="1m30s", health_timeout="5s", health_retries=2,
        health_start_period="500ms",
    )["Healthcheck"]  # fmt: skip
    assert made == {
        "Test": ["CMD-SHELL", "curl x"],
        "Interval": 90 * 10**9,
        "Timeout": 5 * 10**9,
        "StartPeriod": 500 * 10**6,
        "Retries": 2,
    }
    assert body()["Healthcheck"] is None
    assert body(no_healthcheck=True)["Healthcheck"] == {"Test": ["NONE"]}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"no_healthcheck": True, "health_cmd": "x"}, "conflicts with --health"),
        ({"health_interval": "soon"}, "is not a duration"),
        ({"restart": "on-failure:x"}, "restart policy"),
        ({"log_opt": ("max-size",)}, "log option"),
        ({"rm": True, "restart": "always"}, "cannot specify both --restart and --rm"),
    ],
)
def test_wrong_flags_are_refused(flags: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        body(**flags)


def test_log_and_restart_flags_become_host_config() -> None:
    made = body(log_driver="local", log_opt=("max-size=1m", "max-file=2"), restart="on-failure:3")
    host_config = made["HostConfig"]
    assert host_config["LogConfig"] == {
        "Type": "local",
        "Config": {"max-size": "1m", "max-file": "2"},
    }
    assert host_config["RestartPolicy"] == {"Name": "on-failure", "MaximumRetryCount": 3}
    assert restart_policy("always") == {"Name": "always", "MaximumRetryCount": 0}


def test_ps_has_dockers_columns() -> None:
    item = {
        "Id": "a" * 64,
        "Image": "busybox",
        "ImageID": "sha256:" + "b" * 64,
        "Command": "sleep a very long time indeed",
        "Created": 1_000,
        "State": "running",
        "Status": "Up 5 seconds (healthy)",
        "Ports": [
            {"PrivatePort": 80, "Type": "tcp"},
            {"PrivatePort": 81, "PublicPort": 8081, "Type": "tcp", "IP": "::"},
        ],
        "Names": ["/box"],
        "Labels": {"b": "2", "a": "1"},
        "NetworkSettings": {"Networks": {"none": {}}},
        "Mounts": [{"Type": "volume", "Name": "c" * 64}, {"Type": "bind", "Source": "/tmp"}],
    }
    cells = ps.row(item, False, now=1_300)
    assert cells["RunningFor"] == "5 minutes ago"
    assert cells["CreatedAt"] == "1970-01-01 00:16:40 +0000 UTC"
    assert cells["Mounts"] == "cccccccccccccc…,/tmp"
    assert cells["LocalVolumes"] == "1"
    assert cells["Ports"] == "80/tcp, [::]:8081->81/tcp"
    assert cells["Labels"] == "a=1,b=2"
    assert cells["Command"] == '"sleep a very long t…"'


def test_event_is_a_line_as_dockers() -> None:
    event = {
        "Type": "container",
        "Action": "die",
        "Actor": {"ID": "abc", "Attributes": {"name": "box", "exitCode": "3"}},
        "timeNano": 1_700_000_000_000_000_005,
    }
    text = events.line(event)
    assert text.endswith(" container die abc (exitCode=3, name=box)")
    assert ".000000005" in text


def test_binary_sizes_are_dockers() -> None:
    sizes = [binary_size(it) for it in (0, 1023, 290816, 1014714368, 5 << 40)]
    assert sizes == ["0B", "1023B", "284KiB", "967.7MiB", "5TiB"]
