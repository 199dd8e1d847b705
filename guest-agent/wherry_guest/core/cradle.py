"""The cradle: a tiny process that runs flat programs, each of which makes one process.

A fork of PID 1 copies what Python has in memory, page by page, as the child touches it; under
emulation that, and Python itself, is most of a container's start. The cradle is machine code
(`core.machine_code`) with 256 KiB of memory: it takes a program (`core.flat`) with its descriptors
from a SOCK_SEQPACKET socket, runs it, and forgets both. It was never anything but PID 1's, and
holds nothing of one container when it makes the next. Its memory is sealed off: the file that it
was executed from cannot be written, whoever opens /proc/PID/exe.

The processes are PID 1's children (CLONE_PARENT). For each program the cradle says the pid, 64
bits, or, in two words, the errno and the operation that failed. A process whose program fails says
these two words on its status socket, and ends.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final, NoReturn

from wherry_guest.core.child import close_others, reset_signals
from wherry_guest.core.flat import BASE, SIZE
from wherry_guest.core.flatten import CONTROL, FAILURE_BYTES, PID_BYTES
from wherry_guest.core.machine_code import Memory, executable

if TYPE_CHECKING:
    from wherry_guest.core.syscalls import Kernel

X86_64: Final = """
    41bf00000010          mov r15d, 0x10000000            # BASE
    bd00000400            mov ebp, 0x40000                # SIZE
    4881ec40040000        sub rsp, 1088
receive:
    31c0                  xor eax, eax
    4c893c24              mov [rsp], r15                  # struct iovec
    48896c2408            mov [rsp+8], rbp
    4889442410            mov [rsp+16], rax
    4889442418            mov [rsp+24], rax
    4889642420            mov [rsp+32], rsp               # struct msghdr at rsp+16
    48c744242801000000    mov qword ptr [rsp+40], 1
    488d4c2448            lea rcx, [rsp+72]
    48894c2430            mov [rsp+48], rcx
    48c7442438f8030000    mov qword ptr [rsp+56], 1016
    4889442440            mov [rsp+64], rax
    bf03000000            mov edi, 3                      # CONTROL
    488d742410            lea rsi, [rsp+16]
    ba00000040            mov edx, 0x40000000             # MSG_CMSG_CLOEXEC
    b82f000000            mov eax, 47                     # recvmsg
    0f05                  syscall
    83f8fc                cmp eax, -4                     # EINTR
    74aa                  je receive
    85c0                  test eax, eax
    0f8eec000000          jle leave
    498d5f40              lea rbx, [r15+64]               # the first operation
    4531e4                xor r12d, r12d
step:
    8b03                  mov eax, [rbx]                  # a number, or what is done
    3d00100000            cmp eax, 0x1000
    7354                  jae special
    488b7b08              mov rdi, [rbx+8]
    488b7310              mov rsi, [rbx+16]
    488b5318              mov rdx, [rbx+24]
    4c8b5320              mov r10, [rbx+32]
    4c8b4328              mov r8, [rbx+40]
    4c8b4b30              mov r9, [rbx+48]
    0f05                  syscall
    483d01f0ffff          cmp rax, -4095
    7312                  jae refused
    488b4b38              mov rcx, [rbx+56]               # where the result goes
    4885c9                test rcx, rcx
    7403                  jz next
    488901                mov [rcx], rax
next:
    4883c350              add rbx, 80
    ebc3                  jmp step
refused:
    f7d8                  neg eax
    663b4340              cmp ax, [rbx+64]                # errors that are taken
    7412                  je passed
    663b4342              cmp ax, [rbx+66]
    740c                  je passed
    663b4344              cmp ax, [rbx+68]
    7406                  je passed
    663b4346              cmp ax, [rbx+70]
    7578                  jne fail
passed:
    488b5b48              mov rbx, [rbx+72]               # where it goes on then
    eba3                  jmp step
special:
    7433                  je check
    3d02100000            cmp eax, 0x1002
    724d                  jb copy
    745e                  je handler
    bf04000000            mov edi, 4                      # every descriptor that came
    beffffffff            mov esi, -1
    31d2                  xor edx, edx
    b8b4010000            mov eax, 436                    # close_range
    0f05                  syscall
    4c89ff                mov rdi, r15
    4889ee                mov rsi, rbp
    ba04000000            mov edx, 4                      # MADV_DONTNEED
    b81c000000            mov eax, 28                     # madvise
    0f05                  syscall
    e909ffffff            jmp receive
check:
    488b4b08              mov rcx, [rbx+8]
    8b01                  mov eax, [rcx]
    234310                and eax, [rbx+16]
    3b4318                cmp eax, [rbx+24]
    7497                  je next
    488b4b48              mov rcx, [rbx+72]
    31c0                  xor eax, eax
    4885c9                test rcx, rcx
    7424                  jz fail
    4889cb                mov rbx, rcx
    e94dffffff            jmp step
copy:
    488b4b08              mov rcx, [rbx+8]
    488b4310              mov rax, [rbx+16]
    488b00                mov rax, [rax]
    488901                mov [rcx], rax
    e971ffffff            jmp next
handler:
    4c8b6308              mov r12, [rbx+8]
    e968ffffff            jmp next
fail:
    498907                mov [r15], rax                  # errno, and the operation
    49895f08              mov [r15+8], rbx
    4c89e3                mov rbx, r12
    4531e4                xor r12d, r12d
    4885db                test rbx, rbx
    0f851bffffff          jnz step
leave:
    bf7d000000            mov edi, 125
    b8e7000000            mov eax, 231                    # exit_group
    0f05                  syscall
"""
"""System calls: asm/unistd_64.h, number in rax, arguments in rdi, rsi, rdx, r10, r8, r9."""

AARCH64: Final = """
    1300a2d2              mov x19, 0x10000000             # BASE
    9400a0d2              mov x20, 0x40000                # SIZE
    ff0311d1              sub sp, sp, 1088
receive:
    f30300f9              str x19, [sp]                   # struct iovec
    f40700f9              str x20, [sp, 8]
    ff7f01a9              stp xzr, xzr, [sp, 16]          # struct msghdr
    e9030091              mov x9, sp
    2a0080d2              mov x10, 1
    e92b02a9              stp x9, x10, [sp, 32]
    e9230191              add x9, sp, 72
    0a7f80d2              mov x10, 1016
    e92b03a9              stp x9, x10, [sp, 48]
    ff2300f9              str xzr, [sp, 64]
    600080d2              mov x0, 3                       # CONTROL
    e1430091              add x1, sp, 16
    0200a8d2              mov x2, 0x40000000              # MSG_CMSG_CLOEXEC
    881a80d2              mov x8, 212                     # recvmsg
    010000d4              svc 0
    1f100031              cmn w0, 4                       # EINTR
    00feff54              b.eq receive
    1f000071              cmp w0, 0
    cd080054              b.le leave
    75020191              add x21, x19, 64                # the first operation
    160080d2              mov x22, 0
step:
    a80240b9              ldr w8, [x21]                   # a number, or what is done
    1f054071              cmp w8, 1, lsl 12
    62030054              b.hs special
    a08640a9              ldp x0, x1, [x21, 8]
    a28e41a9              ldp x2, x3, [x21, 24]
    a49642a9              ldp x4, x5, [x21, 40]
    010000d4              svc 0
    1f0440b1              cmn x0, 1, lsl 12
    c8000054              b.hi refused
    a91e40f9              ldr x9, [x21, 56]               # where the result goes
    490000b4              cbz x9, next
    200100f9              str x0, [x9]
next:
    b5420191              add x21, x21, 80
    f3ffff17              b step
refused:
    e003004b              neg w0, w0
    a9824079              ldrh w9, [x21, 64]              # errors that are taken
    aa864079              ldrh w10, [x21, 66]
    1f00096b              cmp w0, w9
    20010054              b.eq passed
    1f000a6b              cmp w0, w10
    e0000054              b.eq passed
    a98a4079              ldrh w9, [x21, 68]
    aa8e4079              ldrh w10, [x21, 70]
    1f00096b              cmp w0, w9
    60000054              b.eq passed
    1f000a6b              cmp w0, w10
    a1040054              b.ne fail
passed:
    b52640f9              ldr x21, [x21, 72]              # where it goes on then
    e4ffff17              b step
special:
    08054051              sub w8, w8, 1, lsl 12
    e8010034              cbz w8, check
    1f090071              cmp w8, 2
    23030054              b.lo copy
    80030054              b.eq handler
    800080d2              mov x0, 4                       # every descriptor that came
    01008012              mov w1, -1
    020080d2              mov x2, 0
    883680d2              mov x8, 436                     # close_range
    010000d4              svc 0
    e00313aa              mov x0, x19
    e10314aa              mov x1, x20
    820080d2              mov x2, 4                       # MADV_DONTNEED
    281d80d2              mov x8, 233                     # madvise
    010000d4              svc 0
    bfffff17              b receive
check:
    a90640f9              ldr x9, [x21, 8]
    290140b9              ldr w9, [x9]
    aa1240b9              ldr w10, [x21, 16]
    ab1a40b9              ldr w11, [x21, 24]
    29010a0a              and w9, w9, w10
    3f010b6b              cmp w9, w11
    20fbff54              b.eq next
    000080d2              mov x0, 0
    a92640f9              ldr x9, [x21, 72]
    290100b4              cbz x9, fail
    f50309aa              mov x21, x9
    c8ffff17              b step
copy:
    a9aa40a9              ldp x9, x10, [x21, 8]
    4a0140f9              ldr x10, [x10]
    2a0100f9              str x10, [x9]
    d0ffff17              b next
handler:
    b60640f9              ldr x22, [x21, 8]
    ceffff17              b next
fail:
    605600a9              stp x0, x21, [x19]              # errno, and the operation
    f50316aa              mov x21, x22
    160080d2              mov x22, 0
    d5f7ffb5              cbnz x21, step
leave:
    a00f80d2              mov x0, 125
    c80b80d2              mov x8, 94                      # exit_group
    010000d4              svc 0
"""
"""System calls: asm-generic/unistd.h, number in x8, arguments in x0 to x5."""

LISTINGS: Final[dict[str, str]] = {"x86_64": X86_64, "aarch64": AARCH64}

_NAME: Final = "wherry-cradle"
_MOST: Final = 160 * 1024
"""Bytes of a program that one message takes: net.core.wmem_default is 212,992."""

_os: Final[Any] = os  # names that exist on POSIX only; mypy checks all platforms
_socket: Final[Any] = socket


class Cradle:
    """PID 1's end of it. Nothing here waits.

    Attributes:
        pid: 0 while there is none.
        useful: this one has made a process.
        architecture: for `flatten`; "" where there is no machine code for this machine.
    """

    def __init__(self, kernel: Kernel) -> None:
        machine: str = _os.uname().machine
        self.pid = 0
        self.useful = False
        self.architecture = machine if machine in LISTINGS else ""
        self._kernel = kernel
        self._socket: socket.socket | None = None

    def start(self) -> int:
        """Make the process; the descriptor to watch, -1 where there is none. OSError."""
        if not self.architecture:
            return -1
        file = self._kernel.sealed_file(_NAME, program(self.architecture))
        ours, theirs = socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
        try:
            self.pid = self._kernel.clone(0, None)
            if self.pid == 0:
                _become(self._kernel, file, theirs.detach())
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
            self._kernel.close(file)
        ours.setblocking(False)
        self._socket = ours
        return ours.fileno()

    def fileno(self) -> int:
        return -1 if self._socket is None else self._socket.fileno()

    def send(self, program: bytes, fds: Sequence[int]) -> bool:
        """Have a program run; False: it cannot take it now, or at all."""
        if self._socket is None or len(program) > _MOST:
            return False
        try:
            _socket.send_fds(self._socket, [program], list(fds))
        except OSError:
            return False
        return True

    def births(self) -> Iterator[int]:
        """What it says, one after the other: a pid, or 0 where no process was made."""
        while self._socket is not None:
            try:
                data = self._socket.recv(FAILURE_BYTES)
            except OSError:
                return
            if not data:
                return
            pid = struct.unpack("<Q", data)[0] if len(data) == PID_BYTES else 0
            self.useful = self.useful or pid > 0
            yield pid

    def ended(self) -> None:
        """It was reaped."""
        self.pid, self.useful = 0, False
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def program(machine: str) -> bytes:
    """It, as an executable file; KeyError for a machine that has no listing."""
    return executable(machine, LISTINGS[machine], Memory(BASE, SIZE))


def _become(kernel: Kernel, file: int, control: int) -> NoReturn:
    try:
        reset_signals()
        null = kernel.open("/dev/null", os.O_RDWR)
        file, control = (kernel.duplicate(fd, CONTROL + 1) for fd in (file, control))
        kernel.dup2(control, CONTROL)
        for fd in (0, 1, 2):
            kernel.dup2(null, fd)
        close_others(kernel, [CONTROL, file])
        kernel.execve(f"/proc/self/fd/{file}", [_NAME], [])
    finally:
        os._exit(1)
