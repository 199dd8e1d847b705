"""What is to be started: from a request to a plan, or to the flat program that was made of one.

Rules: pure. A request names a shape and brings values (`wherry_guest.shapes`). What was made of a
shape is kept, and used again where the values fit: as many arguments and variables, HOME among them
or not, as many places to look for the program, a host name as long. Then nothing is parsed, planned
or put together: the values are filled in.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from wherry_guest.core.flat import Image, NotFlat, encoded
from wherry_guest.core.flat_making import Descriptors
from wherry_guest.core.flatten import flatten
from wherry_guest.core.overlay import overlay_options
from wherry_guest.core.plan import (
    Layout,
    Options,
    Plan,
    container_plan,
    device_filter,
    exec_plan,
)
from wherry_guest.core.process import candidates
from wherry_guest.core.resources import DeviceRule
from wherry_guest.core.seccomp import Filter, Filters
from wherry_guest.core.spec import User, parse_process, parse_spec
from wherry_guest.shapes import Values, join_process, join_spec, split_process, split_spec
from wherry_guest.zygote import Rootfs

_STDIO: Final = 3
_KEPT: Final = 8
"""Programs of one shape."""


@dataclass(frozen=True, slots=True)
class Traits:
    """What is known of a process, whatever its values.

    Args:
        devices: the device rules of a container's cgroup.
        user_namespace, personality, seccomp: execs get them too.
    """

    user: User
    devices: tuple[DeviceRule, ...] = ()
    user_namespace: bool = False
    personality: str | None = None
    seccomp: Filter | None = None


@dataclass(frozen=True, slots=True)
class Start:
    """One process to be.

    Args:
        program: for the cradle; None: the plan cannot be said as one.
        plan: None where the program was known.
        network: the program wants a network namespace that was made ahead.
    """

    traits: Traits
    program: bytes | None
    plan: Plan | None
    network: bool = False


Signature = tuple[Any, ...]
Texts = tuple[str, ...]


@dataclass(slots=True)
class _Shape:
    """A shape as it came, and what was made of it.

    Args:
        network: its containers get new network namespaces, as far as is known.
    """

    body: bytes
    network: bool = False
    made: dict[Signature, tuple[Traits, Image]] = field(default_factory=dict)

    def known(self, signature: Signature, texts: Texts) -> Start | None:
        """What was made for this signature, with these texts."""
        if signature not in self.made:
            return None
        traits, image = self.made[signature]
        try:
            program = image.filled([encoded(text) for text in texts])
        except UnicodeEncodeError:
            return None
        return None if program is None else Start(traits, program, None)

    def keep(self, signature: Signature, traits: Traits, image: Image) -> None:
        self.made[signature] = traits, image
        if len(self.made) > _KEPT:
            del self.made[next(iter(self.made))]


class Starts:
    """All shapes, and what becomes of requests.

    Args:
        architecture: the cradle's; "": there is none, and no program.
    """

    def __init__(self, layout: Layout, architecture: str) -> None:
        self._layout = layout
        self._architecture = architecture
        self._filters = Filters()
        self._shapes: dict[int, _Shape] = {}

    def learn(self, number: int, body: bytes) -> None:
        """From now on the shape has this number."""
        self._shapes[number] = _Shape(body)

    def container(
        self,
        header: Mapping[str, Any],
        body: bytes,
        directory: str,
        flat: bool,
        spare: bool = False,
    ) -> Start:
        """A container's first process.

        Args:
            directory: the cgroup's.
            flat: False: the plan is wanted, and nothing else.
            spare: there is a network namespace for who wants a new one.

        Raises:
            SpecError: the spec asks for what cannot be.
        """
        request = json.loads(body)
        rootfs, tty = _rootfs(request["rootfs"]), header["tty"]
        if "shape" in header:
            shape, values = self._shapes[header["shape"]], _values(request["values"])
        else:
            whole, values = split_spec(request["spec"])
            shape = _Shape(json.dumps(whole).encode())
        single = rootfs.upperdir is None and len(rootfs.lowerdirs) == 1
        places = _places(values)
        network = spare and shape.network
        signature = (tty, network, single, len(values.hostname), *_lengths(values, places))
        names = [values.hostname] if values.hostname else []
        root = f"{self._layout.layers}/{rootfs.lowerdirs[0]}" if single else overlay_options(rootfs)
        texts = (*names, *values.sources, root, *places, *values.args, *values.env)
        if flat and (start := shape.known(signature, texts)) is not None:
            return replace(start, network=network)
        spec = parse_spec(join_spec(json.loads(shape.body), values), filters=self._filters)
        plan = container_plan(spec, rootfs, Options(directory, tty, filtered=True), self._layout)
        filtering = device_filter(spec, directory, self._layout)
        rules = () if filtering is None else filtering.rules
        own_users = spec.namespaces.own("user")
        traits = Traits(spec.process.user, rules, own_users, spec.personality, spec.seccomp)
        if not flat:
            return Start(traits, None, plan)
        shape.network = "network" in spec.namespaces.new
        fds = Descriptors.in_order(0 if tty else _STDIO, network=network)
        start = self._made(shape, signature, Start(traits, None, plan), fds, texts)
        return replace(start, network=network and start.program is not None)

    def exec(
        self, header: Mapping[str, Any], body: bytes, of: Traits, pidfd: int, flat: bool
    ) -> Start:
        """One more process in a container.

        Args:
            of: the container's.
            pidfd: of its first process, for the plan; in a program it has its own number.

        Raises:
            SpecError: as above.
        """
        request, tty = json.loads(body), header["tty"]
        if "shape" in header:
            shape, values = self._shapes[header["shape"]], _values(request["values"])
        else:
            whole, values = split_process(request["process"])
            shape = _Shape(json.dumps(whole).encode())
        places = _places(values)
        own = (of.user_namespace, of.personality, of.seccomp)
        signature = (tty, *own, *_lengths(values, places))
        texts = (*places, *values.args, *values.env)
        if flat and (start := shape.known(signature, texts)) is not None:
            return start
        process = parse_process(join_process(json.loads(shape.body), values))
        plan = exec_plan(process, Options(None, tty), pidfd, self._layout, *own)
        traits = Traits(process.user)
        if not flat:
            return Start(traits, None, plan)
        fds = Descriptors.in_order(0 if tty else _STDIO, pidfd=True)
        return self._made(shape, signature, Start(traits, None, plan), fds, texts)

    def _made(
        self, shape: _Shape, signature: Signature, start: Start, fds: Descriptors, texts: Texts
    ) -> Start:
        """With the program, if there is one; kept when `texts` are what is to be filled in."""
        assert start.plan is not None
        try:
            if not self._architecture:
                raise NotFlat("there is no cradle")
            made = flatten(start.plan, fds, self._architecture)
            program = made.image.filled([encoded(text) for text in made.variables])
        except (NotFlat, UnicodeEncodeError):
            return start
        if made.variables == texts:
            shape.keep(signature, start.traits, made.image)
        return replace(start, program=program)


def _values(fields: Mapping[str, Any]) -> Values:
    return Values(
        tuple(fields["args"]), tuple(fields["env"]), fields["hostname"], tuple(fields["sources"])
    )


def _rootfs(fields: Mapping[str, Any]) -> Rootfs:
    return Rootfs(tuple(fields["lowerdirs"]), fields["upperdir"], fields["workdir"])


def _places(values: Values) -> list[str]:
    return candidates(values.args[0], values.env) if values.args else []


def _lengths(values: Values, places: list[str]) -> Signature:
    """What a program was made for."""
    env = values.env
    named = all(entry.find("=") > 0 for entry in env)  # else the parser has something to say
    has_home = any(entry.startswith("HOME=") for entry in env)
    return len(values.args), len(env), named, has_home, len(places), len(values.sources)
