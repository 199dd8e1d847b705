"""machine ssh and ssh-config, with OpenSSH's own programs."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from harness import Wherry
from needs import require
from waiting import eventually

pytestmark = [pytest.mark.vm, pytest.mark.timeout(180)]

HOST = "wherry-default"


@pytest.fixture(scope="module")
def config(wherry: Wherry, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a user has in ~/.ssh/config."""
    require("openssh-client", "ssh")
    wherry.run("machine", "start", check=True, timeout=120)
    file = tmp_path_factory.mktemp("ssh") / "config"
    file.write_text(wherry.out("machine", "ssh-config"))
    return file


def openssh(wherry: Wherry, program: str, config: Path, *args: str, input: bytes = b"") -> bytes:
    done = subprocess.run(
        [program, "-F", str(config), *args],
        env=wherry.environment,
        input=input,
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


def test_a_command_runs_in_the_machine_and_its_exit_code_is_passed_on(
    wherry: Wherry, config: Path
) -> None:
    done = wherry.run("machine", "ssh", "uname -s; cat; exit 7", input=b"typed")
    assert (done.returncode, done.stdout) == (7, b"Linux\ntyped")
    assert wherry.out("machine", "ssh", "default", "id", "-u") == "0"


def test_without_an_ssh_program_ours_does_it(wherry: Wherry, config: Path, tmp_path: Path) -> None:
    """Also with a terminal."""
    bare = Wherry(wherry.home, {"PATH": str(tmp_path)})
    done = bare.run("machine", "ssh", "uname -s; cat; exit 7", input=b"typed")
    assert (done.returncode, done.stdout) == (7, b"Linux\ntyped")
    with bare.popen("machine", "ssh", "-t", "test -t 0 && echo terminal; exit 9") as process:
        assert process.stdout is not None
        assert process.stdout.read().strip() == b"terminal"
        assert process.wait(20) == 9


def test_openssh_logs_in_copies_and_forwards_with_the_printed_configuration(
    wherry: Wherry, config: Path, tmp_path: Path
) -> None:
    assert openssh(wherry, "ssh", config, HOST, "uname", "-s") == b"Linux\n"
    content = os.urandom(3_000_000)
    (tmp_path / "sent").write_bytes(content)
    openssh(wherry, "scp", config, "-q", str(tmp_path / "sent"), f"{HOST}:/tmp/blob")
    batch = f"get /tmp/blob {tmp_path / 'got'}\nrm /tmp/blob\n".encode()
    openssh(wherry, "sftp", config, "-q", "-b", "-", HOST, input=batch)
    assert (tmp_path / "got").read_bytes() == content


def test_a_machine_with_another_key_is_refused(
    wherry: Wherry, config: Path, tmp_path: Path
) -> None:
    """What is known is what the machine told over the link; nobody is trusted on first use."""
    known = wherry.home.machine("default").ssh_known_hosts
    kind, key = known.read_text().split()[1:]
    other = key[:40] + ("A" if key[40] != "A" else "B") + key[41:]
    forged = tmp_path / "known_hosts"
    forged.write_text(f"{HOST} {kind} {other}\n")
    text = config.read_text().replace(str(known), str(forged))
    changed = tmp_path / "config"
    changed.write_text(text)
    done = subprocess.run(
        ["ssh", "-F", str(changed), HOST, "true"],
        env=wherry.environment,
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 255
    assert b"Host key verification failed" in done.stderr


def test_another_key_does_not_log_in(wherry: Wherry, config: Path, tmp_path: Path) -> None:
    stranger = tmp_path / "stranger"
    subprocess.run(
        [require("openssh-client", "ssh-keygen"), "-q", "-t", "ed25519", "-N", "", "-f", stranger],
        check=True,
    )
    text = config.read_text()
    text = text.replace(str(wherry.home.machine("default").ssh_key), str(stranger))
    changed = tmp_path / "config"
    changed.write_text(text)
    done = subprocess.run(
        ["ssh", "-F", str(changed), "-o", "BatchMode=yes", HOST, "true"],
        env=wherry.environment,
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 255
    assert b"Permission denied (publickey)" in done.stderr


def test_the_server_is_gone_when_nobody_is_connected(wherry: Wherry, config: Path) -> None:
    """Seen from within, by a privileged container."""
    look = ["run", "--rm", "--privileged", "--pid", "host", "localhost/busybox", "ps"]
    wherry.run("machine", "ssh", "true", check=True)
    eventually("the end of the SSH server", lambda: "dropbear" not in wherry.out(*look))


def test_the_key_is_the_users_alone(wherry: Wherry, config: Path) -> None:
    key = wherry.home.machine("default").ssh_key
    assert (key.stat().st_mode & 0o777, key.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    proxy = next(line for line in config.read_text().splitlines() if "ProxyCommand" in line)
    assert shutil.which(shlex.split(proxy)[1]) is not None
