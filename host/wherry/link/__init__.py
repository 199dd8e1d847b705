"""The host's end of the wire protocol: transports and the multiplexer."""

from wherry.link.mux import AgentEvent, Link, open_link
from wherry.link.serial import local_socket
from wherry.link.stream import Stream, StreamReset
from wherry.link.transport import Connect, Receiver, Transport, over_socket

__all__ = [
    "AgentEvent",
    "Connect",
    "Link",
    "Receiver",
    "Stream",
    "StreamReset",
    "Transport",
    "local_socket",
    "open_link",
    "over_socket",
]
