"""The machine from the user's side: it starts by itself, stops, and comes back."""

from __future__ import annotations

import json
import uuid

import pytest
from harness import Wherry

pytestmark = pytest.mark.vm


def test_ls_and_inspect_show_the_machine(wherry: Wherry) -> None:
    wherry.run("machine", "start", check=True, timeout=120)
    assert wherry.out("machine", "ls", "--format", "{{.Name}} {{.State}}") == "default running"
    facts = json.loads(wherry.out("machine", "inspect"))[0]
    assert facts["state"] == "running"
    assert facts["accel"] in ("tcg", "kvm", "hvf", "whpx")


def test_the_console_shows_how_it_booted(wherry: Wherry) -> None:
    console = wherry.out("machine", "console")
    assert "wherry: init" in console
    assert "wherry: agent" in console


def test_a_machine_that_is_not_there_is_said(wherry: Wherry) -> None:
    for command in ("stop", "inspect", "console", "rm"):
        done = wherry.run("machine", command, "nobody")
        assert done.returncode == 1
        assert b"no machine 'nobody'" in done.stderr


def test_stopping_ends_containers_and_a_command_starts_it_again(wherry: Wherry) -> None:
    name = f"stopped-{uuid.uuid4().hex[:8]}"
    script = "echo kept > /file; sleep 1000"
    wherry.run("run", "-d", "--name", name, "localhost/busybox", "sh", "-c", script, check=True)
    wherry.run("exec", name, "sh", "-c", "until [ -s /file ]; do :; done", check=True)
    wherry.run("machine", "stop", check=True)
    assert wherry.out("machine", "ls", "--format", "{{.State}}") == "stopped"
    state = json.loads(wherry.out("inspect", name))[0]["State"]
    assert state["Status"] == "exited"
    assert wherry.out("images", "-q")
    wherry.run("start", name, check=True, timeout=120)
    assert wherry.out("exec", name, "cat", "/file") == "kept"
    wherry.run("rm", "-f", name, check=True)
