"""Pushes to docker-registry, seen by skopeo and podman; logins by token; TLS by a private CA."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import Wherry
from image_fakes import tar_of
from needs import require
from registry import RunningRegistry, running_registry, skopeo, write_layout
from token_server import Authority, TokenServer

from wherry.errors import RegistryError, Unauthorized
from wherry.images.auth import Credentials
from wherry.images.retry import RetryPolicy
from wherry.images.store import Image, ImageStore
from wherry.logins import Logins
from wherry.paths import Home
from wherry.settings import Settings

pytestmark = pytest.mark.contract

PODMAN_SECONDS = 120.0
QUICK = RetryPolicy(attempts=6, base=0.01, ceiling=0.05)
ANONYMOUS = Credentials()


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


@pytest.fixture
def store(home: Home) -> Iterator[ImageStore]:
    with_store = ImageStore(home, Settings(), retry=QUICK)
    yield with_store
    with_store.close()


def made(store: ImageStore, directory: Path, name: str, layers: int = 2) -> Image:
    """An image of uncompressed layers, tagged."""
    tars = []
    directory.mkdir(exist_ok=True)
    for number in range(layers):
        path = directory / f"layer{number}.tar"
        path.write_bytes(tar_of({f"file{number}": os.urandom(30_000), "text": b"text\n" * 5000}))
        tars.append(path)
    write_layout(directory / "layout", tars, {"Cmd": ["/bin/true"]})
    return store.import_layout(directory / "layout", name)


def inspected(name: str, *options: str) -> Any:
    return json.loads(skopeo("inspect", "--tls-verify=false", *options, f"docker://{name}"))


def podman(root: Path, *arguments: str) -> str:
    """Run podman on a storage of its own; its output."""
    program = require("podman", "podman")
    places = ["--root", str(root / "root"), "--runroot", str(root / "run")]
    result = subprocess.run(
        [program, *places, "--storage-driver", "vfs", *arguments],
        capture_output=True,
        text=True,
        timeout=PODMAN_SECONDS,
        check=False,
    )
    assert result.returncode == 0, f"podman {' '.join(arguments)}: {result.stderr}"
    return result.stdout.strip()


def test_what_was_pushed_is_read_by_skopeo_and_podman(
    registry: RunningRegistry, store: ImageStore, tmp_path: Path, podman_root: Path
) -> None:
    name = f"{registry.host}/push/plain:1"
    image = made(store, tmp_path / "image", name)
    pushed = store.distribution.push(name, ANONYMOUS)
    assert inspected(name)["Digest"] == pushed.digest
    layers = inspected(name, "--raw")["layers"]
    assert all(layer["mediaType"].endswith("tar+gzip") for layer in layers)
    config = inspected(name, "--config")
    assert tuple(config["rootfs"]["diff_ids"]) == image.diff_ids
    skopeo("copy", "--src-tls-verify=false", f"docker://{name}", f"dir:{tmp_path / 'copy'}")
    assert podman(podman_root, "pull", "--quiet", "--tls-verify=false", name) == (
        image.id.removeprefix("sha256:")
    )
    assert store.pull(name, auth=ANONYMOUS).id == image.id


def test_what_podman_pushed_is_pulled_and_pushed_on(
    registry: RunningRegistry, store: ImageStore, tmp_path: Path, podman_root: Path
) -> None:
    (tmp_path / "rootfs.tar").write_bytes(tar_of({"etc/": b"", "etc/motd": b"hello\n"}))
    name = f"{registry.host}/podman/made:1"
    root = podman_root
    podman(root, "import", "--quiet", str(tmp_path / "rootfs.tar"), name)
    podman(root, "push", "--quiet", "--tls-verify=false", name)
    image = store.pull(name, auth=ANONYMOUS)
    copy = f"{registry.host}/podman/copied:1"
    store.tag(name, copy)
    statuses: list[str] = []
    store.distribution.push(copy, ANONYMOUS, lambda event: statuses.append(event.status))
    assert "Mounted from podman/made" in statuses
    assert inspected(copy)["Digest"] == inspected(name)["Digest"]
    assert podman(root, "pull", "--quiet", "--tls-verify=false", copy) == image.id[7:]


@pytest.mark.parametrize("options", [("oci",), ("v2s2",)], ids=["oci", "schema2"])
def test_all_platforms_keep_their_digests(
    registry: RunningRegistry, store: ImageStore, tmp_path: Path, options: tuple[str]
) -> None:
    layout = tmp_path / "multi"
    entries = []
    for number, architecture in enumerate(("amd64", "arm64", "s390x")):
        tar = tmp_path / f"{number}.tar"
        tar.write_bytes(tar_of({"file": os.urandom(20_000)}))
        write_layout(layout, [tar], architecture=architecture)
        entries += json.loads((layout / "index.json").read_text())["manifests"]
    index = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": entries,
    }
    data = json.dumps(index).encode()
    digest = hashlib.sha256(data).hexdigest()
    (layout / "blobs" / "sha256" / digest).write_bytes(data)
    entry = {"mediaType": index["mediaType"], "digest": f"sha256:{digest}", "size": len(data)}
    (layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
    source = registry.push_layout(
        str(layout), f"whole/{options[0]}:1", "--all", "--format", *options
    )
    store.pull(source, "linux/amd64", auth=ANONYMOUS, all_platforms=True)
    copy = f"{registry.host}/whole/{options[0]}-copy:1"
    store.tag(source, copy)
    store.distribution.push(copy, ANONYMOUS, all_platforms=True)
    before, after = (
        skopeo("inspect", "--raw", "--tls-verify=false", f"docker://{it}") for it in (source, copy)
    )
    assert before == after
    skopeo(
        "copy", "--all", "--src-tls-verify=false", f"docker://{copy}", f"dir:{tmp_path / 'copy'}"
    )


def test_a_manifest_list_is_understood_by_skopeo(
    registry: RunningRegistry, store: ImageStore, tmp_path: Path
) -> None:
    sources = []
    for tag in ("one", "two"):
        name = f"{registry.host}/list/{tag}:1"
        made(store, tmp_path / tag, name, layers=1)
        store.distribution.push(name, ANONYMOUS)
        sources.append(name)
    lists, name = store.distribution.lists, f"{registry.host}/list/all:1"
    lists.create(name, sources, lambda _: ANONYMOUS, amend=False)
    lists.annotate(name, sources[1], {"architecture": "arm64", "variant": "v8"})
    digest = lists.push(name, lambda _: ANONYMOUS, purge=True)
    assert inspected(name, "--override-arch", "arm64")["Digest"] == digest
    skopeo("copy", "--all", "--src-tls-verify=false", f"docker://{name}", f"dir:{tmp_path / 'd'}")


def test_a_push_over_a_connection_that_breaks_is_whole(
    registry: RunningRegistry, store: ImageStore, tmp_path: Path
) -> None:
    tar = tmp_path / "big.tar"
    tar.write_bytes(tar_of({"noise": os.urandom(8 << 20)}))
    write_layout(tmp_path / "layout", [tar])
    with breaking_proxy(registry.host, 3 << 20, times=2) as (host, broken):
        name = f"{host}/broken/big:1"
        image = store.import_layout(tmp_path / "layout", name)
        store.distribution.push(name, ANONYMOUS)
    assert len(broken) == 2
    config = inspected(f"{registry.host}/broken/big:1", "--config")
    assert tuple(config["rootfs"]["diff_ids"]) == image.diff_ids
    copied = f"dir:{tmp_path / 'copy'}"
    skopeo("copy", "--src-tls-verify=false", f"docker://{registry.host}/broken/big:1", copied)


@contextlib.contextmanager
def breaking_proxy(target: str, count: int, times: int) -> Iterator[tuple[str, list[int]]]:
    """A relay to `target` that cuts the first connections after so many bytes from the client."""
    listener = socket.create_server(("127.0.0.1", 0))
    broken: list[int] = []
    threads: list[threading.Thread] = []

    def serve() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            begin(relay, client)

    def begin(work: Callable[..., None], *sockets: socket.socket) -> None:
        threads.append(threading.Thread(target=work, args=sockets))
        threads[-1].start()

    def relay(client: socket.socket) -> None:
        host, _, port = target.partition(":")
        with client, socket.create_connection((host, int(port))) as server:
            begin(pump, server, client)
            seen = 0
            with contextlib.suppress(OSError):
                while data := client.recv(65536):
                    seen += len(data)
                    if seen > count and len(broken) < times:
                        broken.append(seen)
                        break
                    server.sendall(data)
            for end in (client, server):
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

    def pump(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_RDWR)

    begin(serve)
    try:
        yield f"127.0.0.1:{listener.getsockname()[1]}", broken
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        for thread in threads:
            thread.join(10)


# Logins.


Guarded = tuple[RunningRegistry, TokenServer]


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    """docker-registry that wants tokens; `me` has the password `secret`."""
    directory = tmp_path_factory.mktemp("guarded")
    authority = Authority(directory / "ca").write()
    with (
        TokenServer(authority, {"me": "secret", "you": "other"}).running() as tokens,
        running_registry(directory, tokens=tokens) as registry,
    ):
        yield registry, tokens


ME = Credentials("me", "secret")


def test_tokens_let_their_owner_push_and_others_pull(
    guarded: Guarded, store: ImageStore, tmp_path: Path
) -> None:
    registry, tokens = guarded
    mine, public = f"{registry.host}/me/app:1", f"{registry.host}/public/app:1"
    image = made(store, tmp_path / "image", mine)
    with pytest.raises(Unauthorized, match="needs a login"):
        store.distribution.push(mine, ANONYMOUS)
    with pytest.raises(Unauthorized, match="access denied"):
        store.distribution.push(mine, Credentials("you", "other"))
    store.distribution.push(mine, ME)
    assert "repository:me/app:pull,push" in tokens.asked
    with pytest.raises(Unauthorized):
        store.pull(mine, auth=ANONYMOUS)
    assert store.pull(mine, auth=Credentials("you", "other")).id == image.id
    store.tag(mine, public)
    with pytest.raises(Unauthorized):
        store.distribution.push(public, ME)
    copy = f"{registry.host}/me/copy:1"
    store.tag(mine, copy)
    statuses: list[str] = []
    store.distribution.push(copy, ME, lambda event: statuses.append(event.status))
    assert "Mounted from me/app" in statuses
    options = ["--tls-verify=false", "--creds", "you:other"]
    assert json.loads(skopeo("inspect", *options, f"docker://{copy}"))["Digest"]


@pytest.fixture
def commands(tmp_path: Path, test_cache: Path) -> Iterator[Wherry]:
    """The command line with a home and a config.json of its own; no machine is started."""
    root = tmp_path / "commands"
    root.mkdir(mode=0o700)
    (root / "cache").symlink_to(test_cache)
    docker = {"DOCKER_CONFIG": str(tmp_path / "docker")}
    wherry = Wherry(Home(root), docker)
    yield wherry
    wherry.run("machine", "rm", "--force", timeout=60)


def test_the_command_line_logs_in_pushes_pulls_and_logs_out(
    guarded: Guarded, commands: Wherry, tmp_path: Path
) -> None:
    registry, _ = guarded
    bad = commands.run("login", "-u", "me", "--password-stdin", registry.host, input=b"wrong\n")
    assert bad.returncode == 1 and b"incorrect username or password" in bad.stderr
    assert b"wrong" not in bad.stdout + bad.stderr
    good = commands.run(
        "login", "-u", "me", "--password-stdin", registry.host, input=b"secret\n", check=True
    )
    assert good.stdout == b"Login Succeeded\n" and b"unencrypted" in good.stderr
    config = json.loads((tmp_path / "docker" / "config.json").read_text())
    assert base64.b64decode(config["auths"][registry.host]["auth"]) == b"me:secret"
    again = commands.run("login", registry.host, check=True)
    assert b"existing credentials" in again.stderr
    skopeo_login(registry, tmp_path)
    name = f"{registry.host}/me/base:1"
    commands.out("pull", "-q", name)
    commands.out("tag", name, f"{registry.host}/me/cli:1")
    shown = commands.out("push", f"{registry.host}/me/cli:1")
    digest = inspected(f"{registry.host}/me/cli:1", "--creds", "me:secret")["Digest"]
    assert shown.startswith(f"1: digest: {digest} size: ")
    assert commands.out("push", "-q", f"{registry.host}/me/cli:1") == f"{registry.host}/me/cli:1"
    manifest = json.loads(commands.out("manifest", "inspect", name))
    assert manifest["schemaVersion"] == 2
    multi = f"{registry.host}/me/multi:1"
    assert commands.out("manifest", "create", multi, name) == f"Created manifest list {multi}"
    commands.out("manifest", "annotate", "--arch", "arm64", multi, name)
    assert "arm64" in commands.out("manifest", "inspect", multi)
    assert commands.out("manifest", "push", "--purge", multi).startswith("sha256:")
    said = commands.out("logout", registry.host), commands.out("logout", registry.host)
    assert said == (
        f"Removing login credentials for {registry.host}",
        f"Not logged in to {registry.host}",
    )
    refused = commands.run("push", f"{registry.host}/me/cli:1")
    assert refused.returncode == 1 and b"needs a login" in refused.stderr


def skopeo_login(registry: RunningRegistry, tmp_path: Path) -> None:
    """Put an image to pull into the guarded registry."""
    tar = tmp_path / "base.tar"
    tar.write_bytes(tar_of({"etc/": b"", "etc/motd": b"hello\n"}))
    write_layout(tmp_path / "base", [tar], {"Cmd": ["true"]})
    options = ["--dest-tls-verify=false", "--dest-creds", "me:secret"]
    skopeo("copy", *options, f"oci:{tmp_path / 'base'}", f"docker://{registry.host}/me/base:1")


@pytest.mark.skipif(shutil.which("docker") is None, reason="needs docker's command line")
def test_dockers_own_client_logs_in_and_pushes(
    guarded: Guarded, commands: Wherry, tmp_path: Path
) -> None:
    registry, _ = guarded
    skopeo_login(registry, tmp_path)
    commands.out("images")  # so that an engine answers
    login = ["login", "-u", "me", "--password-stdin", registry.host]
    assert commands.docker(*login, input=b"wrong").returncode != 0
    done = commands.docker(*login, input=b"secret", check=True)
    assert b"Login Succeeded" in done.stdout
    name, copy = f"{registry.host}/me/base:1", f"{registry.host}/me/docker:1"
    commands.docker("pull", name, check=True)
    commands.docker("tag", name, copy, check=True)
    shown = commands.docker("push", copy, check=True).stdout.decode()
    assert f"The push refers to repository [{registry.host}/me/docker]" in shown
    digest = inspected(copy, "--creds", "me:secret")["Digest"]
    assert f"1: digest: {digest} size: " in shown
    assert digest in commands.docker("images", "--digests", check=True).stdout.decode()
    assert Logins({"DOCKER_CONFIG": str(tmp_path / "docker")}).find(registry.host) == ME


# TLS.


def test_a_private_ca_is_enough_for_pull_and_push_and_needed(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "ca").write()
    with running_registry(tmp_path, tls=authority) as registry:
        settings = Settings(registry_ca=((registry.host, str(authority.ca_file)),))
        store = ImageStore(Home(tmp_path / "home"), settings, retry=QUICK)
        name = f"{registry.host}/tls/app:1"
        image = made(store, tmp_path / "image", name)
        store.distribution.push(name, ANONYMOUS)
        assert store.pull(name, auth=ANONYMOUS).id == image.id
        (tmp_path / "certs").mkdir()
        shutil.copy(authority.ca_file, tmp_path / "certs")
        options = ["--tls-verify=true", "--cert-dir", str(tmp_path / "certs")]
        seen = json.loads(skopeo("inspect", "--config", *options, f"docker://{name}"))
        assert tuple(seen["rootfs"]["diff_ids"]) == image.diff_ids
        store.close()
        stranger = Authority(tmp_path / "stranger").write()
        settings = Settings(registry_ca=((registry.host, str(stranger.ca_file)),))
        store = ImageStore(Home(tmp_path / "home"), settings, retry=QUICK)
        for action in (store.pull, store.distribution.push):
            with pytest.raises(RegistryError, match="certificate is not trusted"):
                action(name, auth=ME)
        store.close()
