"""Run as a program by the SSH server: hands its standard input and output to the agent, and waits.

Usage: `python3 -IBS handover.py SOCKET`. The agent then speaks the wire over these two descriptors,
without anybody in between. Rule: no imports but built-in modules, for this runs whenever the engine
connects, on an emulated processor.
"""

import _socket
import os
import sys
from typing import Any

MARK = b"frames"


def main(path: str) -> None:
    """Raises OSError when the agent does not listen (any more): the SSH channel then ends."""
    system: Any = _socket
    connection = system.socket(system.AF_UNIX, system.SOCK_STREAM)
    connection.connect(path)
    ends = b"".join(end.to_bytes(4, sys.byteorder) for end in (0, 1))
    connection.sendmsg([MARK], [(system.SOL_SOCKET, system.SCM_RIGHTS, ends)])
    for end in (0, 1):  # the agent has them now: their ends must not be held up by us
        os.close(end)
    connection.recv(1)  # it closes when it is done


if __name__ == "__main__":
    main(sys.argv[1])
