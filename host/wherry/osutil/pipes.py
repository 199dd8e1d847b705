"""Windows named pipes that only their owner can open, and a blocking client's end of one.

Both ends know whom they talk to: an instance is created with a descriptor that names this user and
nobody else, and a client that has opened a pipe asks who owns it before it says a word, since any
user of the host may have created a pipe of that name first. Pipes are of type message, as Docker's:
an empty message is how one end says that it writes no more.

Importable anywhere; everything here is for Windows.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import sys
import time
from functools import cache
from pathlib import Path
from typing import Any

from wherry.errors import Conflict

_ERROR_FILE_NOT_FOUND = 2
_ERROR_ACCESS_DENIED = 5
_ERROR_BROKEN_PIPE = 109
_ERROR_PIPE_BUSY = 231
_ERROR_NO_DATA = 232
_ERROR_PIPE_NOT_CONNECTED = 233
_ERROR_MORE_DATA = 234
_ERROR_OPERATION_ABORTED = 995
"""winerror.h"""

_PIPE_REJECT_REMOTE_CLIENTS = 0x8
_BUFFER_BYTES = 64 * 1024
_READ_BYTES = 256 * 1024
_SECURITY_IDENTIFICATION = 0x00010000
_SECURITY_SQOS_PRESENT = 0x00100000
"""winbase.h: the far end may learn who we are, and act in nobody's name."""

_TOKEN_QUERY = 0x0008
_TOKEN_USER = 1
_SE_KERNEL_OBJECT = 6
_OWNER_SECURITY_INFORMATION = 1
_SDDL_REVISION = 1
"""winnt.h, accctrl.h, sddl.h"""

_BUSY_SECONDS = 5.0
_WAIT_MILLISECONDS = 50

_GONE = (_ERROR_BROKEN_PIPE, _ERROR_NO_DATA, _ERROR_PIPE_NOT_CONNECTED, _ERROR_OPERATION_ABORTED)


class _SecurityAttributes(ctypes.Structure):
    """minwinbase.h SECURITY_ATTRIBUTES"""

    _fields_ = (
        ("length", ctypes.c_uint32),
        ("descriptor", ctypes.c_void_p),
        ("inherit", ctypes.c_int),
    )


def pipe_exists(path: Path) -> bool:
    """Whether anybody serves a pipe of this name."""
    if sys.platform != "win32":
        raise OSError("only on Windows")
    import _winapi

    try:
        _winapi.WaitNamedPipe(os.fspath(path), 1)
    except OSError as error:
        return error.winerror != _ERROR_FILE_NOT_FOUND
    return True


def create_instance(path: Path, *, first: bool) -> int:
    """A new instance of a pipe, for overlapped I/O, that only this user can open; its handle.

    Args:
        first: it must be the only one.

    Raises:
        Conflict: there is one already.
        OSError: as from CreateNamedPipe.
    """
    if sys.platform != "win32":
        raise OSError("only on Windows")
    import _winapi

    mode = _winapi.PIPE_ACCESS_DUPLEX | _winapi.FILE_FLAG_OVERLAPPED
    if first:
        mode |= _winapi.FILE_FLAG_FIRST_PIPE_INSTANCE
    try:
        if first and pipe_exists(path):
            raise _in_use(path)
        return _winapi.CreateNamedPipe(
            os.fspath(path),
            mode,
            _winapi.PIPE_TYPE_MESSAGE | _winapi.PIPE_WAIT | _PIPE_REJECT_REMOTE_CLIENTS,
            _winapi.PIPE_UNLIMITED_INSTANCES,
            _BUFFER_BYTES,
            _BUFFER_BYTES,
            0,
            ctypes.addressof(_owner_only()),
        )
    except PermissionError as error:
        if first:
            raise _in_use(path) from error
        raise


def open_pipe(path: Path) -> int:
    """Open a pipe of this user's for overlapped I/O; its handle.

    Raises:
        FileNotFoundError: nobody serves it.
        PermissionError: it is another user's.
        OSError: it stayed busy, or as from CreateFile.
    """
    if sys.platform != "win32":
        raise OSError("only on Windows")
    import _winapi

    deadline = time.monotonic() + _BUSY_SECONDS
    while True:
        try:
            handle = _winapi.CreateFile(
                os.fspath(path),
                _winapi.GENERIC_READ | _winapi.GENERIC_WRITE,
                0,
                0,
                _winapi.OPEN_EXISTING,
                _winapi.FILE_FLAG_OVERLAPPED | _SECURITY_SQOS_PRESENT | _SECURITY_IDENTIFICATION,
                0,
            )
            break
        except OSError as error:
            if error.winerror != _ERROR_PIPE_BUSY or time.monotonic() > deadline:
                raise
        with contextlib.suppress(OSError):  # none became free, or it is gone: CreateFile tells
            _winapi.WaitNamedPipe(os.fspath(path), _WAIT_MILLISECONDS)
    try:
        owner = _owner(handle)
        if owner != _user_sid():
            raise PermissionError(
                _ERROR_ACCESS_DENIED, f"the pipe {path} belongs to another user ({owner})"
            )
    except BaseException:
        _winapi.CloseHandle(handle)
        raise
    return handle


class PipeConnection:
    """A client's end of a pipe with the methods of a socket that `wherry.client` needs.

    One thread may read while another writes. A signal's handler runs while a call waits.

    Raises (all methods): OSError; ConnectionError when the far end is gone.
    """

    def __init__(self, path: Path) -> None:
        """Raises as `open_pipe`."""
        self._handle: int | None = open_pipe(path)
        self._pending: list[Any] = []
        self._reading: Any = None
        self._held = b""
        self._closed_for_reading = False

    def sendall(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            part = bytes(view[:_BUFFER_BYTES])
            self._write(part)
            view = view[len(part) :]

    def recv(self, limit: int) -> bytes:
        """b"" at the end."""
        if sys.platform != "win32":
            raise OSError("only on Windows")
        if not self._held and self._begin_reading():
            overlapped = self._reading
            try:
                count = self._finish(overlapped)
            except OSError as error:
                if error.winerror in _GONE:
                    return b""
                raise
            finally:
                self._reading = None
            self._held = bytes(overlapped.getbuffer() or b"")[:count]
        data, self._held = self._held[:limit], self._held[limit:]
        return data

    def readable(self, seconds: float) -> bool:
        """Whether `recv` has something to return, also the end, within so many seconds."""
        if sys.platform != "win32":
            raise OSError("only on Windows")
        import _winapi

        if self._held or not self._begin_reading():
            return True
        try:
            waited = _winapi.WaitForMultipleObjects(
                [self._reading.event], False, round(seconds * 1000)
            )
        except InterruptedError:  # Ctrl-C: its handler has run
            return False
        return waited == _winapi.WAIT_OBJECT_0

    def _begin_reading(self) -> bool:
        """Have a read under way. False: there is nothing more to read."""
        if sys.platform != "win32":
            raise OSError("only on Windows")
        import _winapi

        if self._handle is None or self._closed_for_reading:
            return False
        if self._reading is None:
            try:
                self._reading, _ = _winapi.ReadFile(self._handle, _READ_BYTES, overlapped=True)
            except OSError as error:
                if error.winerror in _GONE:
                    return False
                raise
        return True

    def shutdown(self, how: int) -> None:
        """SHUT_WR: tell the far end that nothing more comes. SHUT_RDWR: end calls that wait too."""
        if how == socket.SHUT_WR:
            self._write(b"")
            return
        self._closed_for_reading = True
        for overlapped in (*self._pending, self._reading):
            if overlapped is not None:
                overlapped.cancel()

    def close(self) -> None:
        """End it, and every call that waits."""
        if sys.platform != "win32" or self._handle is None:
            return
        import _winapi

        self.shutdown(socket.SHUT_RDWR)
        handle, self._handle = self._handle, None
        _winapi.CloseHandle(handle)

    def _write(self, data: bytes) -> None:
        if sys.platform != "win32":
            raise OSError("only on Windows")
        import _winapi

        if self._handle is None:
            raise BrokenPipeError(_ERROR_BROKEN_PIPE, "the pipe is closed")
        try:
            overlapped, _ = _winapi.WriteFile(self._handle, data, overlapped=True)
            self._finish(overlapped)
        except OSError as error:
            if error.winerror in _GONE:
                raise BrokenPipeError(_ERROR_BROKEN_PIPE, "the far end is gone") from error
            raise

    def _finish(self, overlapped: Any) -> int:
        """Wait for the end of an operation; the bytes that it moved."""
        if sys.platform != "win32":
            raise OSError("only on Windows")
        import _winapi

        self._pending.append(overlapped)
        try:
            if self._closed_for_reading:
                overlapped.cancel()
            while True:
                try:
                    _winapi.WaitForMultipleObjects([overlapped.event], False, _winapi.INFINITE)
                    break
                except InterruptedError:  # Ctrl-C: its handler has run; it may raise
                    continue
            count, error = overlapped.GetOverlappedResult(True)
        except BaseException:
            overlapped.cancel()
            raise
        finally:
            self._pending.remove(overlapped)
        if error not in (0, _ERROR_MORE_DATA):  # more data: of the same message, by the next call
            raise OSError(0, "the pipe failed", None, error)
        return int(count)


def _in_use(path: Path) -> Conflict:
    return Conflict(
        f"the pipe {path} is in use",
        hint="another process serves it: end that one, or choose another WHERRY_HOME",
    )


@cache
def _owner_only() -> _SecurityAttributes:
    """Owner: this user; access: this user, nobody else, nothing inherited."""
    sid = _user_sid()
    descriptor = ctypes.c_void_p()
    _check(
        _advapi32().ConvertStringSecurityDescriptorToSecurityDescriptorW(
            ctypes.c_wchar_p(f"O:{sid}D:P(A;;GA;;;{sid})"),
            _SDDL_REVISION,
            ctypes.byref(descriptor),
            None,
        )
    )
    # Never freed: one per process.
    return _SecurityAttributes(ctypes.sizeof(_SecurityAttributes), descriptor, 0)


@cache
def _user_sid() -> str:
    """Of the user that this process runs as."""
    if sys.platform != "win32":
        raise OSError("only on Windows")
    import _winapi

    token = ctypes.c_void_p()
    process = ctypes.c_void_p(_winapi.GetCurrentProcess())
    _check(_advapi32().OpenProcessToken(process, _TOKEN_QUERY, ctypes.byref(token)))
    try:
        buffer = ctypes.create_string_buffer(256)  # TOKEN_USER: a pointer to the SID behind it
        size = ctypes.c_uint32()
        _check(
            _advapi32().GetTokenInformation(
                token, _TOKEN_USER, buffer, len(buffer), ctypes.byref(size)
            )
        )
        return _sid_text(ctypes.c_void_p.from_buffer(buffer))
    finally:
        _winapi.CloseHandle(token.value or 0)


def _owner(handle: int) -> str:
    """The SID of a kernel object's owner."""
    owner, descriptor = ctypes.c_void_p(), ctypes.c_void_p()
    error = _advapi32().GetSecurityInfo(
        ctypes.c_void_p(handle),
        _SE_KERNEL_OBJECT,
        _OWNER_SECURITY_INFORMATION,
        ctypes.byref(owner),
        None,
        None,
        None,
        ctypes.byref(descriptor),
    )
    if error != 0:
        raise OSError(0, "cannot tell the pipe's owner", None, error)
    try:
        return _sid_text(owner)
    finally:
        _local_free(descriptor)


def _sid_text(sid: ctypes.c_void_p) -> str:
    text = ctypes.c_wchar_p()
    _check(_advapi32().ConvertSidToStringSidW(sid, ctypes.byref(text)))
    try:
        return text.value or ""
    finally:
        _local_free(text)


def _local_free(memory: Any) -> None:
    if sys.platform == "win32":
        ctypes.WinDLL("kernel32").LocalFree(memory)


@cache
def _advapi32() -> Any:
    if sys.platform != "win32":
        raise OSError("only on Windows")
    return ctypes.WinDLL("advapi32", use_last_error=True)


def _check(succeeded: int) -> None:
    if sys.platform == "win32" and not succeeded:
        raise ctypes.WinError(ctypes.get_last_error())
