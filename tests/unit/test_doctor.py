"""The doctor: every check on a home that is sound and on one that is not; no check hangs it."""

from __future__ import annotations

import json
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from machine_fakes import fake_qemu

from wherry.doctor import host, network, processes, qemu, storage
from wherry.doctor.__main__ import main
from wherry.doctor.bundle import Member, collect, write_bundle
from wherry.doctor.finding import Check, Context, Finding, Status, examine, fail, ok
from wherry.doctor.redact import Person
from wherry.errors import StorageError, WherryError
from wherry.machine.accel import ProbeResult
from wherry.machine.config import MachineConfig, write_config
from wherry.machine.disk import create_disk
from wherry.osutil import listen_unix, lock_file
from wherry.osutil.pulse import Pulse
from wherry.paths import Home
from wherry.settings import Settings

unix_only = pytest.mark.skipif(sys.platform == "win32", reason="Unix sockets and modes")


@pytest.fixture
def context() -> Iterator[Context]:
    """A sound home in a short path, with a machine `m` that is off."""
    root = Path(tempfile.mkdtemp(prefix="wd-"))
    home = Home(root)
    paths = home.machine("m")
    paths.root.mkdir(parents=True, mode=0o700)
    write_config(paths.config, MachineConfig(cpus=1, memory_mib=512, disk_gib=1, arch="amd64"))
    create_disk(paths.data_disk, 1 << 30)
    yield Context(home, Settings(), ("m",), environ={})
    shutil.rmtree(root)


def statuses(findings: Iterator[Finding]) -> dict[str, Status]:
    return {finding.name: finding.status for finding in findings}


def only(findings: Iterator[Finding]) -> Finding:
    (finding,) = findings
    return finding


# Running checks.


def test_a_check_that_hangs_is_said_and_does_not_hold_up_the_others(context: Context) -> None:
    never = threading.Event()

    def hang(_: Context) -> Iterator[Finding]:
        never.wait(60)
        yield ok("hang", "")

    checks = [
        Check("hang", hang, seconds=0.2),
        Check("slow network", hang, seconds=0.1, late=Status.WARN),
        Check("quick", lambda _: iter([ok("quick", "fine")])),
    ]
    began = time.monotonic()
    found = statuses(examine(checks, context, repair=False))
    never.set()
    assert time.monotonic() - began < 10
    assert found == {"quick": Status.OK, "slow network": Status.WARN, "hang": Status.FAIL}


def test_a_check_that_is_wrong_itself_hides_nothing(context: Context) -> None:
    def broken(_: Context) -> Iterator[Finding]:
        raise RuntimeError("a bug")
        yield

    def refused(_: Context) -> Iterator[Finding]:
        raise WherryError("cannot look", hint="do this")
        yield

    found = {
        it.name: it
        for it in examine([Check("a", broken), Check("b", refused)], context, repair=False)
    }
    assert "a bug" in found["a"].detail
    assert (found["b"].detail, found["b"].fix) == ("cannot look", "do this")


def test_repairs_are_made_only_when_they_are_asked_for(context: Context) -> None:
    done: list[str] = []

    def broken(_: Context) -> Iterator[Finding]:
        def repair() -> str:
            done.append("x")
            return "mended"

        yield fail("a", "broken", "--fix", repair)

    assert only(examine([Check("a", broken)], context, repair=False)).status is Status.FAIL
    assert not done
    finding = only(examine([Check("a", broken)], context, repair=True))
    assert (finding.status, finding.repaired, done) == (Status.OK, "mended", ["x"])


def test_a_repair_that_fails_leaves_the_failure(context: Context) -> None:
    def broken(_: Context) -> Iterator[Finding]:
        def repair() -> str:
            raise StorageError("no")

        yield fail("a", "broken", "", repair)

    finding = only(examine([Check("a", broken)], context, repair=True))
    assert finding.status is Status.FAIL
    assert "the repair failed: no" in finding.detail


# The host.


@unix_only
def test_a_home_that_others_can_enter_is_closed(context: Context) -> None:
    context.home.root.chmod(0o755)
    finding = next(iter(host.state_directory(context)))
    assert (finding.status, finding.repair is not None) == (Status.FAIL, True)
    assert finding.repair is not None
    finding.repair()
    assert next(iter(host.state_directory(context))).status is Status.OK


def test_a_home_that_does_not_exist_yet_is_fine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # others leave things in the system's
    fresh = Context(Home(tmp_path / "none"), Settings(), environ={})
    for check in (host.state_directory, host.disk_space, host.leftovers, storage.images):
        assert all(finding.status is Status.OK for finding in check(fresh))


def test_a_full_disk_is_a_failure(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    for free, status in ((1 << 20, Status.FAIL), (1 << 30, Status.WARN), (1 << 40, Status.OK)):
        usage = shutil._ntuple_diskusage(1 << 40, 0, free)
        monkeypatch.setattr(host.shutil, "disk_usage", lambda _path, it=usage: it)
        assert statuses(host.disk_space(context))["disk-space"] is status


def test_temporary_files_that_were_left_are_removed_and_nothing_else(context: Context) -> None:
    machine = context.home.machine("m").root
    left = [machine / ".data.qcow2.new", machine / ".machine.json.a1b2c3d4", machine / ".1f3.s"]
    others = [machine / ".keep", machine / "note.new", context.home.root / ".gitignore"]
    young = machine / ".timeline.json.new"
    for path in (*left, *others, young):
        path.write_text("x")
        if path != young:
            os.utime(path, (1, 1))
    finding = only(host.leftovers(context))
    assert finding.status is Status.WARN
    assert finding.repair is not None
    finding.repair()
    assert not any(path.exists() for path in left)
    assert all(path.exists() for path in (*others, young))


MOUNTINFO = """\
22 1 0:20 / / rw - ext4 /dev/sda1 rw
30 22 0:30 / /home rw shared:1 - nfs4 server:/home rw
31 30 0:31 / /home/me/with\\040space rw - fuse.sshfs host: rw
32 30 0:32 / /home/me/disk rw - xfs /dev/sdb rw
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/var/x", "ext4"),
        ("/home/me/.wherry", "nfs4"),
        ("/home/me/with space/x", "fuse.sshfs"),
        ("/home/me/disk", "xfs"),
        ("/homeless", "ext4"),
    ],
)
def test_the_file_system_is_the_nearest_mount(path: str, kind: str) -> None:
    assert host.type_in_mountinfo(MOUNTINFO, Path(path)) == kind


def test_the_file_system_is_found_in_macos_words() -> None:
    text = "/dev/disk3s1 on / (apfs, sealed)\n//me@nas/home on /Volumes/home (smbfs, nodev)\n"
    assert host.type_in_mount_output(text, Path("/Volumes/home/w")) == "smbfs"
    assert host.type_in_mount_output(text, Path("/Users/me")) == "apfs"


def test_a_network_file_system_is_warned_of(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host, "file_system_type", lambda _path: "nfs4")
    assert statuses(host.state_directory(context))["file-system"] is Status.WARN


def test_settings_that_are_wrong_are_a_failure(context: Context) -> None:
    context.home.settings_file.write_text("nonsense: 1\n")
    finding = only(examine([Check("settings", host.settings_file)], context, repair=False))
    assert finding.status is Status.FAIL
    assert "nonsense" in finding.detail


# QEMU.


@unix_only
def test_a_qemu_that_is_missing_names_the_command_that_installs_it(
    context: Context, tmp_path: Path
) -> None:
    missing = Context(context.home, Settings(qemu=str(tmp_path)), ("m",), environ={})
    assert statuses(qemu.qemu(missing))["qemu"] is Status.FAIL
    assert statuses(qemu.accelerator(missing)).popitem()[1] in (Status.SKIPPED, Status.WARN)


@unix_only
def test_why_a_machine_is_emulated_is_said_in_words(
    context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    it = fake_qemu(tmp_path)
    monkeypatch.setattr(qemu, "find_qemu", lambda _arch, _configured: it)
    monkeypatch.setattr(qemu, "candidate", lambda _arch: "hvf")
    no = ProbeResult(False, "HV_UNSUPPORTED")
    monkeypatch.setattr(qemu, "run_probe", lambda _qemu, _name: no)
    finding = only(qemu.accelerator(context))
    assert finding.status is Status.WARN
    assert "hosted arm64 runners have none" in finding.detail
    asked = Context(context.home, Settings(accel="hvf"), ("m",), environ={})
    assert only(qemu.accelerator(asked)).status is Status.FAIL


# Engines and machines.


def test_a_machine_that_is_off_is_fine(context: Context) -> None:
    for check in (processes.engines, processes.machines, processes.stale_sockets):
        assert set(statuses(check(context)).values()) <= {Status.OK}


@unix_only
def test_what_killed_processes_left_is_cleared_away(context: Context) -> None:
    paths = context.home.machine("m")
    gone = {"pid": 1, "start_time": "never"}
    record = {
        "identity": gone, "boot": "b", "image_key": "k", "agent_digest": "d",
        "accel": "tcg", "started_ns": 1, "argv": ["qemu"], "ready": True,
    }  # fmt: skip
    paths.qemu_record.write_text(json.dumps(record))
    paths.engine_record.write_text(json.dumps({"identity": gone, "started_ns": 1, "version": "0"}))
    listen_unix(paths.api_socket).close()
    listen_unix(paths.qmp_socket).close()
    checks = [
        Check("engines", processes.engines),
        Check("machines", processes.machines),
        Check("sockets", processes.stale_sockets),
    ]
    assert set(statuses(examine(checks, context, repair=False)).values()) == {Status.WARN}
    list(examine(checks, context, repair=True))
    assert set(statuses(examine(checks, context, repair=False)).values()) == {Status.OK}
    left = (paths.qemu_record, paths.engine_record, paths.api_socket, paths.qmp_socket)
    assert not any(path.exists() for path in left)
    assert paths.data_disk.exists()


@unix_only
def test_an_engine_that_is_silent_but_whose_heart_beats_is_busy(context: Context) -> None:
    paths = context.home.machine("m")
    with lock_file(paths.engine_lock):
        own = Pulse(paths.engine_record, "1")
        stop = threading.Event()

        def beat() -> None:
            while not stop.wait(0.05):
                own.beat()

        thread = threading.Thread(target=beat)
        thread.start()
        finding = only(processes.engines(context))
        stop.set()
        thread.join()
    assert (finding.status, "busy" in finding.detail) == (Status.WARN, True)


@unix_only
def test_an_engine_whose_heart_has_stopped_hangs(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "BEAT_SECONDS", 0.1)
    paths = context.home.machine("m")
    with lock_file(paths.engine_lock):
        Pulse(paths.engine_record, "1").beat()
        finding = only(processes.engines(context))
    assert finding.status is Status.FAIL
    assert "hangs" in finding.detail
    assert finding.repair is not None


# What is stored.


def test_a_damaged_disk_is_a_failure_that_nobody_repairs_by_itself(context: Context) -> None:
    disk = context.home.machine("m").data_disk
    assert only(storage.data_disks(context)).status is Status.OK
    with disk.open("r+b") as file:
        file.write(b"damaged")
    finding = only(storage.data_disks(context))
    assert (finding.status, finding.repair) == (Status.FAIL, None)
    assert "copy the file first" in finding.fix


def test_a_damaged_database_of_images_is_set_aside(context: Context) -> None:
    file = context.home.store_db
    file.write_bytes(b"not a database at all" * 100)
    finding = only(storage.databases(context))
    assert finding.status is Status.FAIL
    assert finding.repair is not None
    finding.repair()
    assert not file.exists()
    assert file.with_name("store.db.damaged").exists()


def test_a_damaged_database_of_containers_is_never_moved(context: Context) -> None:
    state = context.home.machine("m").state_db
    state.write_bytes(b"damaged" * 1000)
    finding = only(storage.databases(context))
    assert (finding.status, finding.repair) == (Status.FAIL, None)


def test_a_sound_database_is_sound(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "x.db")
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("CREATE TABLE t (x)")
    connection.commit()
    assert storage.database_problem(tmp_path / "x.db") is None
    connection.close()


def test_a_damaged_vm_image_is_removed_alone(context: Context) -> None:
    for name, size in (("amd64-good", 3), ("amd64-bad", 4)):
        directory = context.home.vm_images / name
        directory.mkdir(parents=True)
        (directory / "kernel").write_bytes(b"abc")
        record = {
            "sizes": {"kernel": size}, "key": "k", "arch": "amd64", "cmdline": "",
            "kernel_version": "6",
        }  # fmt: skip
        (directory / "image.json").write_text(json.dumps(record))
    finding = only(storage.vm_images(context))
    assert finding.status is Status.FAIL
    assert "amd64-bad" in finding.detail
    assert finding.repair is not None
    finding.repair()
    assert [it.name for it in context.home.vm_images.iterdir()] == ["amd64-good"]


# The network.


@pytest.fixture
def server() -> Iterator[str]:
    """A web server whose clock is an hour behind; its URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response_only(401)
            self.send_header("Date", self.date_time_string(time.time() - 3600))
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    httpd = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield f"http://127.0.0.1:{httpd.server_port}"
    httpd.shutdown()
    thread.join()
    httpd.server_close()


@pytest.fixture
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)


@pytest.mark.usefixtures("no_proxy")
def test_a_registry_that_answers_is_fine_whatever_it_answers(context: Context, server: str) -> None:
    settings = Settings(registry_mirrors=(("docker.io", (server,)),))
    asking = Context(context.home, settings, environ={})
    assert statuses(network.registry(asking)) == {"registry": Status.OK}


@pytest.mark.usefixtures("no_proxy")
def test_a_clock_that_is_wrong_is_told_by_the_mirror(context: Context, server: str) -> None:
    asking = Context(context.home, Settings(debian_mirror=f"{server}/debian"), environ={})
    found = {finding.name: finding for finding in network.mirror(asking)}
    assert found["mirror"].status is Status.OK
    assert "60 minutes ahead" in found["clock"].detail


@pytest.mark.usefixtures("no_proxy")
def test_a_mirror_that_is_not_there_is_a_warning_without_its_password(context: Context) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        url = f"http://me:hunter22@127.0.0.1:{port}/debian"
        asking = Context(context.home, Settings(debian_mirror=url), environ={})
        finding = only(network.mirror(asking))
    assert finding.status is Status.WARN
    assert "hunter22" not in finding.detail


@pytest.mark.parametrize(
    ("value", "status"),
    [
        ("http://127.0.0.1:1", Status.WARN),
        ("http://host:port", Status.WARN),
        ("nonsense:", Status.WARN),
    ],
)
def test_a_proxy_that_is_not_one_is_a_warning(context: Context, value: str, status: Status) -> None:
    asking = Context(context.home, Settings(), environ={"HTTPS_PROXY": value})
    assert only(network.proxies(asking)).status is status


def test_skew_is_measured_by_the_date_header() -> None:
    assert network.clock_skew({"date": "Thu, 01 Jan 1970 00:01:40 GMT"}, 40.0) == 60.0
    assert network.clock_skew({}, 0.0) is None
    assert network.clock_skew({"Date": "yesterday"}, 0.0) is None


# The archive, and the command.


def test_an_archive_holds_what_is_asked_for_and_no_secret(context: Context, tmp_path: Path) -> None:
    paths = context.home.machine("m")
    paths.engine_log.write_text("Authorization: Bearer hunter22\nGET /home/alice/x\n")
    paths.console_log.write_bytes(b"\xff\x00 https://u:hunter22@h/\n" + b"x" * 300_000)
    context.home.settings_file.write_text("debian_mirror: http://u:hunter22@mirror/debian\n")
    environ = {"HTTP_PROXY": "http://u:hunter22@p:1", "SECRET": "hunter22"}
    it = Context(context.home, context.settings, ("m",), environ=environ)
    members = list(collect(it, [ok("a", "password: hunter22")], Person()))
    target = tmp_path / "bundle.tar.gz"
    write_bundle(target, members)
    with tarfile.open(target) as tar:
        names = tar.getnames()
        texts = [file.read() for name in names if (file := tar.extractfile(name)) is not None]
    assert "wherry-support/CONTENTS" in names
    assert "wherry-support/machines/m/engine.log" in names
    assert not any(b"hunter22" in text or b"alice" in text for text in texts)
    assert max(len(text) for text in texts) <= 300_000
    if sys.platform != "win32":
        assert target.stat().st_mode & 0o777 == 0o600


def test_an_archive_is_not_written_over_a_file(tmp_path: Path) -> None:
    target = tmp_path / "x"
    target.write_text("mine")
    with pytest.raises(StorageError, match="exists"):
        write_bundle(target, [Member("a", "", "")])
    assert target.read_text() == "mine"


def test_the_process_prints_a_json_line_per_finding(
    context: Context, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WHERRY_HOME", str(context.home.root))
    monkeypatch.setenv("WHERRY_ACCEL", "tcg")
    assert main(["examine", "--offline"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {"state-directory", "disk m", "machine m", "engine m"} <= {
        line["name"] for line in lines
    }
    assert all(set(line) >= {"name", "status", "detail", "fix"} for line in lines)


def test_doctor_ends_with_1_when_something_failed(context: Context) -> None:
    root = Path(__file__).parents[2]
    sources = os.pathsep.join(str(root / name) for name in ("host", "guest-agent", "vm-images"))
    environment = {
        **os.environ, "WHERRY_HOME": str(context.home.root), "PYTHONPATH": sources,
        "WHERRY_ACCEL": "tcg",
    }  # fmt: skip
    context.home.machine("m").data_disk.write_bytes(b"damaged")
    done = subprocess.run(
        [sys.executable, "-m", "wherry", "doctor", "--offline"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "FAIL  disk m" in done.stdout
    assert not context.home.machine("m").engine_lock.exists()
