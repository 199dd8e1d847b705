"""The one error tree of the host side. Libraries raise these; only `wherry.cli` exits.

    WherryError                      a fault with a message for a person
    ├── InvalidInput                 400  the request or file is wrong
    │   └── InvalidReference         400  not an image reference
    ├── Unauthorized                 401  a registry refused our credentials
    ├── NotFound                     404  no such container, image, exec, machine
    │   └── ImageNotFound            404
    ├── Conflict                     409  the thing is in a state that forbids this
    ├── NotModified                  304  already so (start of a running container)
    ├── NotImplementedYet            501  known to Docker, not to us; names the field
    ├── RegistryError                502  a registry misbehaved
    │   └── ContentMismatch          502  digest, size or diffID is not what was promised
    ├── ImageBuildError              500  the VM image could not be made
    ├── MachineError                 500  QEMU or the VM failed; names the phase
    │   ├── QemuNotFound             500
    │   └── BootFailed               500
    ├── LinkError                    500  the connection to the guest
    │   ├── LinkClosed               500
    │   └── AgentError               500  the guest answered with an error
    ├── StartFailed                  400  the container's process could not be started (125/126/127)
    ├── StorageError                 500  disk full, layout damaged
    └── EngineUnreachable            500  the CLI found no engine and could not start one

`message` is in the user's words, `hint` is a next step, `exit_code` is the CLI's, `http_status` the
API's.
"""

from __future__ import annotations

from typing import Any


class WherryError(Exception):
    """Base of all errors that a user may see.

    Args:
        message: one line, no trailing full stop, in the user's words.
        hint: what to do next, one line; printed after the message.
        exit_code, http_status: override the class's defaults.
    """

    exit_code: int = 1
    http_status: int = 500

    def __init__(
        self,
        message: str,
        *,
        hint: str | None = None,
        exit_code: int | None = None,
        http_status: int | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        if exit_code is not None:
            self.exit_code = exit_code
        if http_status is not None:
            self.http_status = http_status

    def __str__(self) -> str:
        return self.message


class InvalidInput(WherryError):
    http_status = 400


class InvalidReference(InvalidInput):
    pass


class Unauthorized(WherryError):
    http_status = 401


class NotFound(WherryError):
    http_status = 404


class ImageNotFound(NotFound):
    pass


class Conflict(WherryError):
    http_status = 409


class NotModified(WherryError):
    exit_code = 0
    http_status = 304


class NotImplementedYet(WherryError):
    http_status = 501


class RegistryError(WherryError):
    http_status = 502


class ContentMismatch(RegistryError):
    pass


class ImageBuildError(WherryError):
    pass


class MachineError(WherryError):
    pass


class QemuNotFound(MachineError):
    pass


class BootFailed(MachineError):
    """The VM did not come up. `phase` is one of spawned, kernel, init, agent."""

    def __init__(self, message: str, *, phase: str, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.phase = phase


class LinkError(WherryError):
    pass


class LinkClosed(LinkError):
    pass


class AgentError(LinkError):
    """The guest answered a call with an error. `code` and `data` are as on the wire."""

    def __init__(self, message: str, *, code: str, data: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.data = data or {}


class StartFailed(WherryError):
    """The container's process could not be started; `exit_code` is Docker's 125, 126 or 127."""

    exit_code = 125
    http_status = 400


class StorageError(WherryError):
    pass


class EngineUnreachable(WherryError):
    pass
