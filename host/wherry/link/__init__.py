"""The host's end of the wire protocol: transports and the multiplexer."""
