"""Attach streams: from which offset a container's output is read, and the reader's connection."""

from __future__ import annotations

from wherry_guest.agent.calls import Params
from wherry_guest.agent.container import Container
from wherry_guest.agent.request import NONE
from wherry_guest.channel import CallError, GuestStream


def connect_reader(container: Container, stream: GuestStream, offset: int, follow: bool) -> None:
    """Send the log from `offset` on to the stream."""
    log = container.log  # its next run may have another
    follower = log.follow(stream, offset, follow)
    stream.on_writable(lambda: log.writable(follower))
    stream.on_reset(lambda reason: log.unfollow(follower))


def log_offset(params: Params, container: Container) -> int:
    """Where the log is read from; what has been rotated away is passed over."""
    origin = params.raw("from")
    size, first = container.log.size, container.log.first
    if origin == "now" or container.options.driver == NONE:
        return size
    if origin in (None, "start"):
        return first
    if isinstance(origin, int) and not isinstance(origin, bool) and 0 <= origin <= size:
        return max(origin, first)
    raise CallError("invalid", f"from {origin!r} is not start, now or an offset up to {size}")
