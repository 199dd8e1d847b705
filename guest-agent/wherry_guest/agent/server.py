"""The agent: wires the rooms together, serves the calls, hears PID 1.

Order of life: take over what PID 1 keeps of a former agent, then open the port, then serve. Until
PID 1 has answered, its messages about processes wait.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import wherry_guest
from wherry_guest import identity
from wherry_guest.agent import containers as containers_module
from wherry_guest.agent import execs as execs_module
from wherry_guest.agent import probes as probes_module
from wherry_guest.agent.calls import Answer, Coro, Params, at_once, later
from wherry_guest.agent.containers import Containers
from wherry_guest.agent.execs import Execs
from wherry_guest.agent.kernel import is_safe_name
from wherry_guest.agent.layers import LayerError, Layers, layer_from
from wherry_guest.agent.paths import Paths
from wherry_guest.agent.probes import Probes
from wherry_guest.agent.system import System
from wherry_guest.agent.tasks import run
from wherry_guest.channel import DEFERRED, Call, CallError, Channel, Handler
from wherry_guest.core.syscalls import Kernel
from wherry_guest.loop import Loop
from wherry_guest.zygote import (
    Exited,
    Kept,
    Message,
    SpawnFailed,
    Started,
    Zygote,
    ZygoteError,
)

if TYPE_CHECKING:
    from wherry_guest.agent.archive import Archives
    from wherry_guest.agent.listening import Listening
    from wherry_guest.agent.snapshots import Snapshots
    from wherry_guest.agent.sshserver import SshServer

DIGEST_VARIABLE: Final = "WHERRY_AGENT_DIGEST"
"""PID 1 sets it for an agent that replaced another one."""

SHUTDOWN_TIMEOUT: Final = 10.0
"""Seconds, where the call does not say."""

TRIM_TIMEOUT: Final = 60.0
TRASH_PATIENCE: Final = 60.0
"""Seconds for what was removed to be deleted, before its room is given back."""


class Agent:
    """One agent process.

    Args:
        open_port: as `Channel`'s.
        announce: called once, when the port is open.
    """

    def __init__(
        self,
        loop: Loop,
        zygote: Zygote,
        open_port: Callable[[], int],
        paths: Paths,
        kernel: Kernel,
        announce: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._zygote = zygote
        self._paths = paths
        self._kernel = kernel
        self._open_port = open_port
        self._announce = announce
        self._digest = os.environ.get(DIGEST_VARIABLE) or identity.digest()
        self._shutting_down = False
        self._early: list[Message] | None = []
        self._channel: Channel | None = None
        self._system = System(loop, kernel, paths, zygote, self._digest)
        self._layers = Layers(loop, kernel, paths.run)
        channel = self._get_channel
        self._containers = Containers(loop, kernel, paths, zygote, self._layers, channel)
        self._execs = Execs(loop, zygote, self._containers, channel)
        self._snapshots: Snapshots | None = None
        self._archives: Archives | None = None
        self._ssh: SshServer | None = None
        self._listening: Listening | None = None

    def start(self) -> None:
        """Ask PID 1 for what it keeps; the rest follows its answer."""
        if hasattr(signal, "SIGPIPE"):  # a process that does not read its input is not our end
            signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        self._paths.run.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._loop.add_reader(self._zygote.fileno(), self._zygote_readable)
        self._zygote.fetch()

    def _get_channel(self) -> Channel:
        assert self._channel is not None, "the channel opens before anything happens"
        return self._channel

    # PID 1.

    def _zygote_readable(self) -> None:
        try:
            messages = self._zygote.receive()
        except ZygoteError:
            self._loop.remove_reader(self._zygote.fileno())
            self._loop.stop()  # PID 1 is gone, or has given us up
            return
        for message in messages:
            if isinstance(message, Kept):
                self._take_over(message)
            elif self._early is not None:
                self._early.append(message)
            else:
                self._hear(message)

    def _take_over(self, kept: Kept) -> None:
        early, self._early = self._early or [], None
        self._channel = Channel(
            self._loop, self._open_and_announce, self._handlers(), self._hello()
        )
        if self._system.ready:
            self._containers.load()
        unused = self._containers.restore(kept.descriptors)
        ours = self._execs.restore({name: kept.descriptors[name] for name in unused})
        for name in set(unused) - set(ours):
            for fd in kept.descriptors[name]:
                os.close(fd)
            self._zygote.drop(name)
        self._containers.tell_exits()
        for message in early:
            self._hear(message)
        self._channel.start()

    def _hear(self, message: Message) -> None:
        if isinstance(message, Kept):
            return
        prefix, _, name = message.key.partition(":")
        owner: Containers | Execs | Probes
        if prefix + ":" == containers_module.KEY:
            owner = self._containers
        elif prefix + ":" == execs_module.KEY:
            owner = self._execs
        elif prefix + ":" == probes_module.KEY:
            owner = self._containers.probes
        else:
            raise LookupError(f"PID 1 tells of {message.key!r}")
        match message:
            case Started():
                owner.started(name, message)
            case SpawnFailed():
                owner.spawn_failed(name, message)
            case Exited():
                owner.ended(name, message)

    # The port.

    def _hello(self) -> dict[str, Any]:
        return {"agent": {"version": wherry_guest.__version__, "digest": self._digest}}

    def _open_and_announce(self) -> int:
        fd = self._open_port()
        announce, self._announce = self._announce, lambda: None
        announce()
        return fd

    def _handlers(self) -> dict[str, Handler]:
        containers, execs, system = self._containers, self._execs, self._system
        return {
            "system.info": at_once(system.info),
            "system.prepare": later(system.prepare),
            "system.setup": later(self._setup),
            "system.set_time": at_once(system.set_time),
            "system.resume": at_once(system.resume),
            "system.sync": later(self._sync),
            "system.shutdown": self._shutdown,
            "system.bytecode": later(self._bytecode),
            "agent.replace": later(self._replace),
            "link.listen": later(self._when_ready(self._listen)),
            "ssh.install": later(self._when_ready(self._install_ssh)),
            "ssh.prepare": later(self._when_ready(lambda params: self._get_ssh().prepare(params))),
            "ssh.connect": at_once(self._connect_ssh),
            "disk.grow": later(self._when_ready(self._grow_disk)),
            "disk.trim": later(self._when_ready(self._trim_disk)),
            "layers.attach": later(self._attach_layers),
            "layers.detach": later(self._detach_layers),
            "layers.list": at_once(self._list_layers),
            "emulators.register": later(self._when_ready(self._register_emulators)),
            "container.start": later(self._when_ready(self._start_container)),
            "container.attach": later(containers.attach),
            "container.kill": later(containers.kill),
            "container.pause": later(containers.pause),
            "container.unpause": later(containers.unpause),
            "container.update": at_once(containers.update),
            "container.health": at_once(containers.health),
            "container.stats": at_once(self._stats),
            "container.usage": at_once(self._usage),
            "container.top": at_once(self._top),
            "container.resize": at_once(containers.resize),
            "container.list": at_once(containers.list_all),
            "container.remove": at_once(self._remove_container),
            "container.changes": at_once(lambda params: self._get_snapshots().changes(params)),
            "container.layer": at_once(lambda params: self._get_snapshots().layer(params)),
            "container.archive": at_once(lambda params: self._get_archives().archive(params)),
            "container.export": at_once(lambda params: self._get_snapshots().export(params)),
            "volume.remove": at_once(containers.volumes.remove),
            "volume.usage": at_once(containers.volumes.usage),
            "exec.start": later(self._when_ready(execs.start)),
            "exec.resize": at_once(execs.resize),
            "exec.kill": at_once(execs.kill),
            "exec.list": at_once(execs.list_all),
        }

    def _when_ready(self, function: Callable[[Params], Coro]) -> Callable[[Params], Coro]:
        """Refuse before the setup, and once the machine is going off."""

        async def checked(params: Params) -> Answer:
            if not self._system.ready:
                raise CallError("conflict", "system.setup has not been called since the boot")
            if self._shutting_down:
                raise CallError("conflict", "the machine is shutting down")
            return await function(params)

        return checked

    # Calls that concern several rooms.

    def _get_archives(self) -> Archives:
        if self._archives is None:
            from wherry_guest.agent.archive import Archives  # here: as above

            self._archives = Archives(
                self._loop,
                self._kernel,
                self._paths,
                self._layers,
                self._containers,
                self._get_channel,
            )
        return self._archives

    def _get_snapshots(self) -> Snapshots:
        if self._snapshots is None:
            from wherry_guest.agent.snapshots import Snapshots  # here: many machines need none

            self._snapshots = Snapshots(
                self._loop,
                self._kernel,
                self._paths,
                self._layers,
                self._containers,
                self._get_channel,
            )
        return self._snapshots

    def _get_ssh(self) -> SshServer:
        if self._ssh is None:
            from wherry_guest.agent.sshserver import SshServer  # here: as above

            self._ssh = SshServer(self._loop, self._paths)
        return self._ssh

    async def _install_ssh(self, params: Params) -> Answer:
        return await self._get_ssh().install(params, self._get_channel())

    def _connect_ssh(self, params: Params) -> Answer:
        from wherry_guest.agent.sshsession import serve_stream  # here: as above

        stream = self._get_channel().stream(params.number("stream"))
        serve_stream(self._get_ssh().open(), stream)
        return None

    async def _listen(self, params: Params) -> Answer:
        if self._listening is None:
            from wherry_guest.agent.listening import Listening  # here: as above

            self._listening = Listening(self._loop, self._get_channel, self._get_ssh())
        return await self._listening.listen(params)

    def _stats(self, params: Params) -> Answer:
        from wherry_guest.agent.figures import sample  # here: many machines are never asked

        ids, pressure = params.items("ids", str), params.flag("pressure")
        known = [container for id in ids if (container := self._containers.find(id)) is not None]
        return sample([container for container in known if container.running], pressure)

    def _usage(self, params: Params) -> Answer:
        from wherry_guest.agent.sizes import content_size, send_sizes  # here: as above
        from wherry_guest.agent.worker import Worker

        stream = self._get_channel().stream(params.number("stream"))
        ids = [id for id in params.items("ids", str) if is_safe_name(id)]
        uppers = {id: self._paths.container(id).upper for id in ids}

        def job(out: int) -> None:
            send_sizes(out, uppers, content_size)

        Worker(self._loop, self._kernel, stream, job, lambda: None)
        return None

    def _top(self, params: Params) -> Answer:
        from wherry_guest.agent.figures import processes  # here: as above

        container = self._containers.find(params.identifier("id"))
        if container is None or not container.running:
            raise CallError("conflict", f"container {params.text('id')} is not running")
        return processes(container.paths.cgroup)

    async def _start_container(self, params: Params) -> Answer:
        if self._archives is not None:
            await self._archives.until_still(params.identifier("id"))
        return await self._containers.start(params)

    def _remove_container(self, params: Params) -> Answer:
        answer = self._containers.remove(params)
        if self._snapshots is not None:
            self._snapshots.container_removed(params.identifier("id"))
        if self._archives is not None:
            self._archives.container_removed(params.identifier("id"))
        return answer

    async def _setup(self, params: Params) -> Answer:
        answer = await self._system.setup(params)
        self._containers.load()
        return answer

    async def _grow_disk(self, params: Params) -> Answer:
        from wherry_guest.agent.growing import grow  # here: rarely asked for

        return await grow(self._loop, params)

    async def _sync(self, _params: Params) -> Answer:
        from wherry_guest.agent.trimming import sync  # here: many machines are never asked

        await sync(self._loop)
        return None

    async def _trim_disk(self, params: Params) -> Answer:
        from wherry_guest.agent.trimming import sync, trim  # here: as above

        await self._containers.until_deleted(TRASH_PATIENCE)
        await sync(self._loop)
        try:
            return await trim(
                self._loop, os.fspath(self._paths.data), params.seconds("timeout", TRIM_TIMEOUT)
            )
        except OSError as error:
            raise CallError("failed", f"trim the data disk: {error.strerror}") from error

    def _shutdown(self, values: dict[str, Any], call: Call) -> object:
        from wherry_guest.agent.power import shut_down  # here: once in a machine's life

        timeout = Params(values).seconds("timeout", SHUTDOWN_TIMEOUT)
        if self._shutting_down:
            return None
        self._shutting_down = True
        call.reply()
        done = run(
            shut_down(
                self._loop,
                self._kernel,
                self._paths,
                self._zygote,
                self._get_channel(),
                self._containers,
                self._layers,
                timeout,
            )
        )
        done.when_settled(done.result)  # a failure is a bug, for the loop's hook
        return DEFERRED

    async def _bytecode(self, params: Params) -> Answer:
        from wherry_guest.agent import bytecode  # here: once in a VM image's life
        from wherry_guest.agent.replace import send

        stream = self._get_channel().stream(params.number("stream"))
        package = identity.package_parent() / "wherry_guest"
        data = bytecode.archive(bytecode.loaded_sources(also=package))
        send(stream, data)
        return None

    async def _replace(self, params: Params) -> Answer:
        from wherry_guest.agent.replace import replace  # here: rare

        directory = self._paths.run / "agent"
        return await replace(params, self._get_channel(), self._zygote, directory, self._digest)

    async def _attach_layers(self, params: Params) -> Answer:
        layers = [_layer(values) for values in params.items("layers", dict)]
        try:
            await self._layers.attach(layers)
        except LayerError as error:
            raise CallError("failed", str(error)) from error
        return {"mounted": [layer.diff_id for layer in layers]}

    async def _detach_layers(self, params: Params) -> Answer:
        luns = params.items("luns", int)
        try:
            gone, busy = await self._layers.detach(luns)
        except LayerError as error:
            raise CallError("failed", str(error)) from error
        return {"detached": gone, "busy": busy}

    async def _register_emulators(self, params: Params) -> Answer:
        from wherry_guest.agent.binfmt import Formats  # here: many machines never need it

        formats = Formats(self._loop, self._kernel, self._layers, self._paths.run)
        return await formats.register(params)

    def _list_layers(self, params: Params) -> Answer:
        return {"layers": self._layers.all(), "highest_lun": self._layers.highest_lun}


def _layer(values: dict[str, Any]) -> Any:
    params = Params(values)
    lun = params.number("lun")
    if not 0 <= lun <= 16383:  # virtio-scsi's highest, drivers/scsi/virtio_scsi.c
        raise CallError("invalid", f"lun {lun} is not from 0 to 16383")
    checked = {name: params.text(name) for name in ("diff_id", "serial", "uuid")}
    return layer_from({**checked, "lun": lun})


def report(error: Exception) -> None:
    """A bug must not end the agent: write it where the host keeps the console."""
    import traceback  # here: it costs memory, and bugs are rare

    text = "".join(traceback.format_exception(error))
    sys.stderr.write(f"wherry: agent: {text}")
    sys.stderr.flush()
