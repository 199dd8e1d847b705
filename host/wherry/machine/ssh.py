"""SSH into a machine: the server is given to it when it is first wanted, the keys are exchanged.

Nothing listens anywhere: a connection is a stream of the link (`SshAccess.connect`), or begins on a
virtio-serial port of its own. The host's key is told by the agent, so it is known, never trusted on
first use; the guest makes it once in a boot.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from wherry.errors import AgentError, ImageBuildError, LinkError
from wherry.link.ssh.keys import KIND, user_key, write_known_hosts
from wherry.machine.guest import LinkPort, StreamPort, with_stream
from wherry.paths import Home
from wherry.settings import Settings
from wherry_image import VmImageError

if TYPE_CHECKING:
    from wherry_image.sshserver import SshServerArchive

USER = "root"

_TIMEOUT = 60.0
_CHUNK = 65536
_HOST_KEY = re.compile(rf"{KIND} [A-Za-z0-9+/]{{68}}")


class SshAccess:
    """One machine's.

    Args:
        arch: of the machine, asked for when it is needed.
    """

    def __init__(self, name: str, home: Home, settings: Settings, arch: Callable[[], str]) -> None:
        self.alias = f"wherry-{name}"
        self._home = home
        self._paths = home.machine(name)
        self._settings = settings
        self._arch = arch

    def facts(self) -> dict[str, Any]:
        """What a client must know; the key is made when there is none. Blocking.

        Raises:
            StorageError: the key is damaged.
        """
        user_key(self._paths.ssh_key)
        return {
            "user": USER,
            "alias": self.alias,
            "identity": str(self._paths.ssh_key),
            "known_hosts": str(self._paths.ssh_known_hosts),
        }

    async def prepare(self, link: LinkPort) -> str:
        """Let the guest have a server, and our key; know its key.

        Returns:
            The guest's key, `ssh-ed25519 BASE64`.

        Raises:
            ImageBuildError: the server cannot be had. LinkError, StorageError.
        """
        key = await asyncio.to_thread(user_key, self._paths.ssh_key)
        archive = await asyncio.to_thread(self._archive)
        params = {"digest": archive.digest, "authorized_key": key}
        try:
            answer = await link.call("ssh.prepare", params, timeout=_TIMEOUT)
        except AgentError as error:
            if error.code != "not_found":
                raise
            await _install(link, archive)
            answer = await link.call("ssh.prepare", params, timeout=_TIMEOUT)
        host_key = answer.get("host_key")
        if not isinstance(host_key, str) or not _HOST_KEY.fullmatch(host_key):
            raise LinkError("the guest tells no key of its SSH server")
        await asyncio.to_thread(
            write_known_hosts, self._paths.ssh_known_hosts, self.alias, host_key
        )
        return host_key

    async def connect(self, link: LinkPort) -> StreamPort:
        """A new connection to the server, which must be prepared.

        Raises:
            LinkError: it does not come about.
        """
        stream = link.open_stream()
        try:
            await link.call("ssh.connect", {"stream": stream.id}, timeout=_TIMEOUT)
        except BaseException:
            stream.reset("the SSH server was not reached")
            raise
        return stream

    def _archive(self) -> SshServerArchive:
        from wherry_image.sshserver import ssh_server_archive  # with the HTTP client: 100 ms

        try:
            return ssh_server_archive(
                arch=self._arch(),
                packages=self._home.packages,
                out=self._home.ssh_servers,
                locks=[self._home.vm_locks],
                mirror=self._settings.debian_mirror,
            )
        except VmImageError as error:
            raise ImageBuildError(f"the SSH server: {error.message}", hint=error.hint) from error


async def _install(link: LinkPort, archive: SshServerArchive) -> None:
    data = await asyncio.to_thread(archive.file.read_bytes)

    async def send(stream: StreamPort) -> None:
        for start in range(0, len(data), _CHUNK):
            await stream.write(data[start : start + _CHUNK])
        await stream.end()

    await with_stream(link, "ssh.install", {"digest": archive.digest}, send)
