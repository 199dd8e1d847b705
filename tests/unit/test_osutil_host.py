"""The size of the host."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from wherry.osutil import cpu_count, host, raise_file_limit, total_memory


def test_the_host_has_memory_and_processors() -> None:
    assert total_memory() > 64 << 20
    assert cpu_count() >= 1


def test_a_containers_memory_limit_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if sys.platform != "linux":
        pytest.skip("cgroups are Linux's")
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(host, "_CGROUP_LIMIT", limit)
    limit.write_text("1048576\n")
    assert total_memory() == 1048576
    limit.write_text("max\n")
    assert total_memory() > 64 << 20


@pytest.mark.skipif(sys.platform == "win32", reason="rlimits are POSIX")
def test_the_file_limit_is_raised_but_never_lowered() -> None:
    if sys.platform != "win32":
        import resource

        saved = resource.getrlimit(resource.RLIMIT_NOFILE)
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (256, saved[1]))
            assert raise_file_limit(1024) == 1024
            assert raise_file_limit(512) == 1024
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, saved)
