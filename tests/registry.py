"""Debian's docker-registry on a free loopback port, and ways to put images into it."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import platform
import shutil
import socket
import ssl
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from needs import require
from token_server import ISSUER, SERVICE, Authority, TokenServer

START_SECONDS = 20.0
COPY_SECONDS = 120.0
_CONFIG = """
version: 0.1
log: {{level: info, formatter: json, accesslog: {{disabled: true}}}}
storage:
  filesystem: {{rootdirectory: {root}}}
  delete: {{enabled: true}}
http:
  addr: "127.0.0.1:{port}"
{more}"""
_TLS = """  tls: {{certificate: {certificate}, key: {key}}}
"""
_TOKENS = """auth:
  token: {{realm: "{realm}", service: {service}, issuer: {issuer}, rootcertbundle: {bundle}}}
"""
_NOTHING: Mapping[str, Any] = {}
_MACHINES = {"x86_64": "amd64", "AMD64": "amd64", "aarch64": "arm64"}


@dataclass(frozen=True, slots=True)
class RunningRegistry:
    """A registry on loopback. `host` is `127.0.0.1:port`; pushes are for plain HTTP."""

    host: str
    log: Path

    def push_layout(self, layout: str, name: str, *options: str) -> str:
        """Copy an image (`DIRECTORY` or `DIRECTORY:TAG`, an OCI layout) into the registry with
        skopeo; the name to pull. `options` are `skopeo copy`'s."""
        target = f"{self.host}/{name}"
        skopeo("copy", "--dest-tls-verify=false", *options, f"oci:{layout}", f"docker://{target}")
        return target

    def push_layers(
        self, tars: Sequence[Path], name: str, *options: str, config: Mapping[str, Any] = _NOTHING
    ) -> str:
        """Make an image of layer tars, lowest first, and push it; the name to pull.

        Args:
            config: what containers inherit (`Cmd`, `Env`, …).
        """
        with tempfile.TemporaryDirectory() as directory:
            write_layout(Path(directory), tars, config)
            return self.push_layout(directory, name, *options)

    def push_rootfs(self, rootfs: Path, name: str, config: Mapping[str, Any] = _NOTHING) -> str:
        """Make an image of a root file system, a directory or a tar of one, and push it."""
        if not rootfs.is_dir():
            return self.push_layers([rootfs], name, config=config)
        with tempfile.TemporaryDirectory() as directory:
            tar = Path(directory, "rootfs.tar")
            command = [
                "tar",
                "--numeric-owner",
                "--xattrs",
                "-C",
                str(rootfs),
                "-cf",
                str(tar),
                ".",
            ]
            subprocess.run(command, check=True, timeout=COPY_SECONDS)
            return self.push_layers([tar], name, config=config)

    def fetched(self) -> Counter[str]:
        """How often each blob was served, since the registry runs."""
        lines = [json.loads(it) for it in self.log.read_text().splitlines() if it[:1] == "{"]
        paths = [
            str(line.get("http.request.uri"))
            for line in lines
            if line.get("msg") == "response completed" and line["http.request.method"] == "GET"
        ]
        return Counter(path.rpartition("/")[2] for path in paths if "/blobs/sha256:" in path)


@contextlib.contextmanager
def running_registry(
    directory: Path, *, tls: Authority | None = None, tokens: TokenServer | None = None
) -> Iterator[RunningRegistry]:
    """A registry that keeps everything in `directory` and ends with the block.

    Args:
        tls: speak HTTPS with the certificate of this CA.
        tokens: want tokens of this service.
    """
    program = require("docker-registry", "docker-registry")
    require("skopeo", "skopeo")
    port = _free_port()
    config = directory / "config.yml"
    more = ""
    if tls is not None:
        more += _TLS.format(certificate=tls.certificate, key=tls.key_file)
    if tokens is not None:
        bundle = tokens.authority.ca_file
        more += _TOKENS.format(realm=tokens.realm, service=SERVICE, issuer=ISSUER, bundle=bundle)
    config.write_text(_CONFIG.format(root=directory / "data", port=port, more=more))
    log = directory / "registry.log"
    with log.open("wb") as output:
        process = subprocess.Popen([program, "serve", str(config)], stdout=output, stderr=output)
        try:
            _wait_until_it_answers(port, process, log, tls)
            yield RunningRegistry(f"127.0.0.1:{port}", log)
        finally:
            process.terminate()
            process.wait(10)


def skopeo(*arguments: str) -> str:
    """Run skopeo; its output."""
    program = require("skopeo", "skopeo")
    result = subprocess.run(
        [program, "--insecure-policy", *arguments],
        capture_output=True,
        text=True,
        timeout=COPY_SECONDS,
        check=False,
    )
    assert result.returncode == 0, f"skopeo {' '.join(arguments)}: {result.stderr}"
    return result.stdout


def write_layout(
    directory: Path,
    tars: Sequence[Path],
    config: Mapping[str, Any] = _NOTHING,
    architecture: str | None = None,
) -> str:
    """An OCI layout with one image of uncompressed layers; its manifest's digest."""
    blobs = directory / "blobs" / "sha256"
    blobs.mkdir(parents=True, exist_ok=True)

    def add(data: bytes) -> dict[str, Any]:
        name = hashlib.sha256(data).hexdigest()
        (blobs / name).write_bytes(data)
        return {"digest": f"sha256:{name}", "size": len(data)}

    layers = [_add_file(blobs, tar) for tar in tars]
    image_config = {
        "architecture": architecture or _MACHINES.get(platform.machine(), platform.machine()),
        "os": "linux",
        "config": dict(config),
        "rootfs": {"type": "layers", "diff_ids": [layer["digest"] for layer in layers]},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            **add(json.dumps(image_config).encode()),
        },
        "layers": [
            {"mediaType": "application/vnd.oci.image.layer.v1.tar", **layer} for layer in layers
        ],
    }
    entry = {"mediaType": manifest["mediaType"], **add(json.dumps(manifest).encode())}
    entry["platform"] = {"os": "linux", "architecture": image_config["architecture"]}
    index = {"schemaVersion": 2, "manifests": [entry]}
    (directory / "index.json").write_text(json.dumps(index))
    (directory / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    return str(entry["digest"])


def _add_file(blobs: Path, source: Path) -> dict[str, Any]:
    with source.open("rb") as file:
        name = hashlib.file_digest(file, "sha256").hexdigest()
    if not (blobs / name).exists():
        shutil.copyfile(source, blobs / name)
    return {"digest": f"sha256:{name}", "size": source.stat().st_size}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_until_it_answers(
    port: int, process: subprocess.Popen[bytes], log: Path, tls: Authority | None
) -> None:
    trusting = ssl.create_default_context(cafile=tls.ca_file) if tls else None
    deadline = time.monotonic() + START_SECONDS
    while True:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=1)
        if trusting is not None:
            connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=1, context=trusting)
        try:
            connection.request("GET", "/v2/")
            if connection.getresponse().status in (200, 401):
                return
        except OSError:
            time.sleep(0.02)  # it has not bound its port yet, and tells nobody when it has
        finally:
            connection.close()
        assert process.poll() is None, f"docker-registry ended: {log.read_text()}"
        assert time.monotonic() < deadline, "docker-registry does not answer on its port"
