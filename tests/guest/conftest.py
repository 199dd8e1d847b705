"""Fixtures of the guest tests: one zygote with a busybox layer for a whole module."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from containers_harness import Machine, open_machine
from oci_harness import Host, Runtime, find_runtime, open_host, remove_bundles


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    opened = open_machine(tmp_path_factory.mktemp("zygote"))
    yield opened
    opened.close()


@pytest.fixture(scope="session")
def oci_host() -> Iterator[Host]:
    # not below pytest's directory, which only root may enter: a user namespace's root may not
    directory = Path(tempfile.mkdtemp(prefix="wherry-oci-"))
    host = open_host(directory)
    yield host
    host.close()
    shutil.rmtree(directory)


@pytest.fixture(params=["wherry", "crun", "runc"])
def runtime(request: pytest.FixtureRequest, oci_host: Host) -> Iterator[Runtime]:
    """Each runtime in turn; after ours everything must be as before."""
    yield from _clean_runtime(request.param, oci_host)


@pytest.fixture
def wherry_oci(oci_host: Host) -> Iterator[Runtime]:
    """Ours alone, where a reference of this age cannot do it."""
    yield from _clean_runtime("wherry", oci_host)


def _clean_runtime(name: str, host: Host) -> Iterator[Runtime]:
    before = host.residue()
    it = find_runtime(name, host)
    yield it
    it.clean()
    remove_bundles(host)
    if it.ours:  # the references leave cgroups when something fails, and processes that still end
        after = host.residue()
        left = {what: [item for item in after[what] if item not in before[what]] for what in after}
        assert not any(left.values()), left
    else:
        host.tidy()
