"""Images made in memory, and a registry on loopback that misbehaves on demand."""

from __future__ import annotations

import base64
import contextlib
import gzip
import hashlib
import io
import itertools
import json
import re
import ssl
import tarfile
import threading
import urllib.parse
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from wherry.images import media


def digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def tar_of(files: dict[str, bytes]) -> bytes:
    """A layer tar; a name that ends in / is a directory."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            if name.endswith("/"):
                info.type = tarfile.DIRTYPE
                info.mode = 0o755
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def gz(data: bytes) -> bytes:
    return gzip.compress(data, 1, mtime=0)


@dataclass
class FakeImage:
    """An image of one platform: `tars` are its layers, lowest first."""

    tars: list[bytes]
    architecture: str = "amd64"
    os: str = "linux"
    variant: str | None = None
    docker: bool = False
    compress: Callable[[bytes], bytes] = gz
    config_extra: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.layers = [self.compress(tar) for tar in self.tars]
        config: dict[str, Any] = {
            "created": "2024-05-01T10:00:00.5Z",
            "architecture": self.architecture,
            "os": self.os,
            "config": {"Cmd": ["/bin/sh"], "Env": ["PATH=/bin"]},
            "rootfs": {"type": "layers", "diff_ids": [digest(tar) for tar in self.tars]},
        }
        if self.variant:
            config["variant"] = self.variant
        self.config = json.dumps(config | self.config_extra).encode()
        self.manifest = self.make_manifest()

    def make_manifest(self) -> bytes:
        layer_type = (
            "application/vnd.docker.image.rootfs.diff.tar.gzip"
            if self.docker
            else "application/vnd.oci.image.layer.v1.tar+gzip"
        )
        return json.dumps(
            {
                "schemaVersion": 2,
                "mediaType": self.media_type,
                "config": {
                    "mediaType": media.DOCKER_CONFIG if self.docker else media.OCI_CONFIG,
                    "digest": digest(self.config),
                    "size": len(self.config),
                },
                "layers": [
                    {"mediaType": layer_type, "digest": digest(data), "size": len(data)}
                    for data in self.layers
                ],
            }
        ).encode()

    @property
    def media_type(self) -> str:
        return media.DOCKER_MANIFEST if self.docker else media.OCI_MANIFEST

    @property
    def id(self) -> str:
        return digest(self.config)

    @property
    def manifest_digest(self) -> str:
        return digest(self.manifest)

    def descriptor(self) -> dict[str, Any]:
        platform = {"os": self.os, "architecture": self.architecture}
        if self.variant:
            platform["variant"] = self.variant
        return {
            "mediaType": self.media_type,
            "digest": self.manifest_digest,
            "size": len(self.manifest),
            "platform": platform,
        }


def simple_image(text: bytes = b"hello\n", **more: Any) -> FakeImage:
    return FakeImage([tar_of({"etc/": b"", "etc/greeting": text})], **more)


def index_of(*images: FakeImage, extra: tuple[dict[str, Any], ...] = ()) -> bytes:
    return json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": media.OCI_INDEX,
            "manifests": [*(image.descriptor() for image in images), *extra],
        }
    ).encode()


Answer = Callable[["Handler"], bool]
"""A misbehaviour: handles the request itself (True), or leaves it to the registry (False)."""


class FakeRegistry:
    """`blobs`, `manifests[(repository, tag or digest)]`; `faults[path pattern]` come first.

    `requests` has (method, path) of every request, `headers` their headers. What is uploaded goes
    to `blobs` and `manifests`; `owned[repository]`, when it is there, are the blobs of a repository
    (else each has them all); `uploads` are unfinished ones. `refuses` are media types of manifests
    that are not taken. `tunnels` has what was asked of it as a proxy.
    """

    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}
        self.manifests: dict[tuple[str, str], tuple[str, bytes]] = {}
        self.faults: list[tuple[re.Pattern[str], Answer]] = []
        self.requests: list[tuple[str, str]] = []
        self.headers: list[dict[str, str]] = []
        self.tunnels: list[tuple[str, str]] = []
        self.owned: dict[str, set[str]] = {}
        self.uploads: dict[str, bytearray] = {}
        self.upload_numbers = itertools.count()
        self.refuses: set[str] = set()
        self.has_referrers = False
        self.authorize: Answer | None = None
        self.released = threading.Event()
        self._server = _Server(("127.0.0.1", 0), Handler)
        self._server.fake = self  # type: ignore[attr-defined]  # how the handler finds it
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self._server.server_address[1]}"

    def use_tls(self, context: ssl.SSLContext) -> None:
        """Speak HTTPS. Before `start`."""
        listener = self._server.socket
        self._server.socket = context.wrap_socket(listener, server_side=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self.released.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def add(self, repository: str, tag: str, *images: FakeImage, index: bytes | None = None) -> str:
        """Serve images under a tag; several, or `index`, as an index. The name to pull."""
        for image in images:
            self.blobs[image.id] = image.config
            self.blobs |= {digest(data): data for data in image.layers}
            entry = (image.media_type, image.manifest)
            self.manifests[repository, image.manifest_digest] = entry
        if index is None and len(images) > 1:
            index = index_of(*images)
        target = (media.OCI_INDEX, index) if index else (images[0].media_type, images[0].manifest)
        self.manifests[repository, tag] = target
        self.manifests[repository, digest(target[1])] = target
        return f"{self.host}/{repository}:{tag}"

    def fault(self, pattern: str, answer: Answer, times: int = 1 << 30) -> None:
        """Answer requests whose path matches with `answer`, so many times."""
        left = [times]

        def limited(handler: Handler) -> bool:
            if left[0] <= 0:
                return False
            left[0] -= 1
            return answer(handler)

        self.faults.append((re.compile(pattern), limited))

    def fetched(self) -> Counter[str]:
        """How often each blob digest was asked for."""
        paths = [path for method, path in self.requests if method == "GET"]
        found = (re.search(r"/blobs/(sha256:\w+)$", path) for path in paths)
        return Counter(match[1] for match in found if match)

    def sent(self, method: str) -> list[str]:
        """The paths of requests with that method, without queries and upload ids."""
        paths = [path for given, path in self.requests if given == method]
        return [re.sub(r"(/uploads/)[^?]+", r"\1*", path.partition("?")[0]) for path in paths]

    def has_blob(self, repository: str, wanted: str) -> bool:
        return wanted in self.blobs and wanted in self.owned.get(repository, {wanted})


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up is no news."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    _body: bytes | None = None
    wbufsize = -1  # head and body in one packet: no waiting for a delayed acknowledgement

    @property
    def fake(self) -> FakeRegistry:
        return self.server.fake  # type: ignore[attr-defined, no-any-return]  # set by FakeRegistry

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self._body = None
        self.fake.requests.append((self.command, self.path))
        self.fake.headers.append(dict(self.headers))
        for pattern, answer in self.fake.faults:
            if pattern.search(self.path) and answer(self):
                return
        if self.fake.authorize is not None and self.fake.authorize(self):
            return
        self._registry()

    def released(self) -> bool:
        """Say nothing until the test is over, or for half a minute (False)."""
        return self.fake.released.wait(30)

    def do_CONNECT(self) -> None:
        """As a proxy that lets nobody through."""
        self.fake.tunnels.append((self.command, self.path))
        self.send_error(403)

    do_HEAD = do_POST = do_PUT = do_PATCH = do_GET

    @property
    def body(self) -> bytes:
        """The request's body, read at the first use; what a fault leaves unread closes the
        connection."""
        if self._body is None:
            self._body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        return self._body

    def _registry(self) -> None:
        if self.path == "/v2/":
            self.reply(200, b"{}")
            return
        upload = re.fullmatch(r"/v2/(.+)/blobs/uploads/([^?]*)(?:\?(.*))?", self.path)
        if upload:
            query = dict(urllib.parse.parse_qsl(upload[3] or ""))
            self._upload(upload[1], upload[2], query)
            return
        if self.command == "PUT":
            self._put_manifest()
            return
        manifest = re.fullmatch(r"/v2/(.+)/manifests/(.+)", self.path)
        blob = re.fullmatch(r"/v2/.+/blobs/(.+)", self.path)
        if manifest and (found := self.fake.manifests.get((manifest[1], manifest[2]))):
            kind, body = found
            headers = {"Content-Type": kind, "Docker-Content-Digest": digest(body)}
            self.reply(200, body, headers)
        elif blob and self.fake.has_blob(blob[0].split("/blobs/")[0][4:], blob[1]):
            self.blob(self.fake.blobs[blob[1]])
        else:
            self.error(404, "MANIFEST_UNKNOWN" if manifest else "BLOB_UNKNOWN", "unknown")

    def _put_manifest(self) -> None:
        match = re.fullmatch(r"/v2/(.+)/manifests/(.+)", self.path)
        assert match is not None
        kind, body = self.headers.get("Content-Type") or "", self.body
        if kind in self.fake.refuses:
            self.error(400, "MANIFEST_INVALID", "manifest invalid")
            return
        fields = json.loads(body)
        for entry in [
            *fields.get("layers", []),
            *([fields["config"]] if "config" in fields else []),
        ]:
            if not self.fake.has_blob(match[1], entry["digest"]):
                self.error(400, "MANIFEST_BLOB_UNKNOWN", f"blob unknown: {entry['digest']}")
                return
        for entry in fields.get("manifests", []):
            known = (match[1], entry["digest"]) in self.fake.manifests
            if not known and not match[2].startswith("sha256-"):
                self.error(404, "MANIFEST_UNKNOWN", f"manifest unknown: {entry['digest']}")
                return
        self.fake.manifests[match[1], match[2]] = (kind, body)
        self.fake.manifests[match[1], digest(body)] = (kind, body)
        headers = {"Docker-Content-Digest": digest(body)}
        if self.fake.has_referrers and "subject" in fields:
            headers["OCI-Subject"] = fields["subject"]["digest"]
        self.reply(201, b"", headers)

    def _upload(self, repository: str, upload: str, query: dict[str, str]) -> None:
        fake = self.fake
        if self.command == "POST":
            if "mount" in query and fake.has_blob(query.get("from", ""), query["mount"]):
                self._keep(repository, query["mount"])
                return
            name = f"upload{next(fake.upload_numbers)}"
            fake.uploads[name] = bytearray()
            self._at(repository, name, 202)
        elif upload not in fake.uploads:
            self.error(404, "BLOB_UPLOAD_UNKNOWN", "upload unknown")
        elif self.command == "PATCH":
            self._patch(repository, upload)
        elif self.command == "GET":
            self._at(repository, upload, 204)
        else:
            data = bytes(fake.uploads[upload] + self.body)
            del fake.uploads[upload]
            if digest(data) != query["digest"]:
                self.error(400, "DIGEST_INVALID", "provided digest did not match uploaded content")
                return
            fake.blobs[query["digest"]] = data
            self._keep(repository, query["digest"])

    def _patch(self, repository: str, upload: str) -> None:
        have = self.fake.uploads[upload]
        start = int((self.headers.get("Content-Range") or f"{len(have)}-").partition("-")[0])
        if start != len(have):
            self.error(416, "RANGE_INVALID", f"expected {len(have)}")
            return
        have += self.body
        self._at(repository, upload, 202)

    def _at(self, repository: str, upload: str, status: int) -> None:
        have = len(self.fake.uploads[upload])
        headers = {
            "Location": f"/v2/{repository}/blobs/uploads/{upload}?state={have}",
            "Range": f"0-{max(0, have - 1)}",
        }
        self.reply(status, b"", headers)

    def _keep(self, repository: str, blob: str) -> None:
        if repository in self.fake.owned:
            self.fake.owned[repository].add(blob)
        self.reply(201, b"", {"Docker-Content-Digest": blob})

    def blob(self, body: bytes) -> None:
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        if wanted is None:
            self.reply(200, body)
            return
        start = int(wanted[1])
        span = f"bytes {start}-{len(body) - 1}/{len(body)}"
        self.reply(206, body[start:], {"Content-Range": span})

    def error(self, status: int, code: str, message: str) -> None:
        body = json.dumps({"errors": [{"code": code, "message": message}]}).encode()
        self.reply(status, body, {"Content-Type": "application/json"})

    def reply(
        self,
        status: int,
        body: bytes,
        headers: dict[str, str] | None = None,
        *,
        length: int | None = None,
    ) -> None:
        """`length`: a Content-Length that is a lie; the connection then closes after the body."""
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        if self._body is None and int(self.headers.get("Content-Length") or 0):
            self.close_connection = True  # what was not read would be taken for a request
        self.end_headers()
        with contextlib.suppress(OSError):  # a client that heard enough hangs up
            if self.command != "HEAD":
                self.wfile.write(body)
            self.wfile.flush()
        if length is not None:
            self.close_connection = True


@contextlib.contextmanager
def running(registry: FakeRegistry) -> Iterator[FakeRegistry]:
    registry.start()
    try:
        yield registry
    finally:
        registry.stop()


def token_auth(registry: FakeRegistry, *, user: str = "", password: str = "") -> list[str]:
    """Make a registry want bearer tokens from its own /token; the tokens handed out."""
    issued: list[str] = []

    def token(handler: Handler) -> bool:
        given = handler.headers.get("Authorization")
        pair = base64.b64encode(f"{user}:{password}".encode()).decode()
        if user and given != f"Basic {pair}":
            handler.error(401, "UNAUTHORIZED", "incorrect username or password")
            return True
        issued.append(f"token-{len(issued)}")
        handler.reply(200, json.dumps({"token": issued[-1], "expires_in": 300}).encode())
        return True

    def check(handler: Handler) -> bool:
        given = handler.headers.get("Authorization", "")
        if issued and given == f"Bearer {issued[-1]}":
            return False
        challenge = f'Bearer realm="http://{registry.host}/token",service="fake"'
        body = json.dumps({"errors": [{"code": "UNAUTHORIZED", "message": "log in"}]}).encode()
        handler.reply(401, body, {"WWW-Authenticate": challenge})
        return True

    registry.fault(r"^/token", token)
    registry.authorize = check
    return issued


def write_layout(directory: Path, fake: FakeImage) -> None:
    """An OCI layout on disk."""
    blobs = directory / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    for data in (fake.config, fake.manifest, *fake.layers):
        (blobs / digest(data)[7:]).write_bytes(data)
    (directory / "index.json").write_bytes(index_of(fake))
    (directory / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
