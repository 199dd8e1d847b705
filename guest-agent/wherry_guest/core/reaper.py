"""A first process for containers (`--init`): it forwards signals and reaps, and weighs 12 KiB.

A Python process that stayed behind for that would weigh some MiB: so it is written in machine code
(`core.machine_code`), and runs from memory.

    wherry-init PROGRAM ARGUMENT 0, ARGUMENT 1, ...

blocks every signal, starts PROGRAM in a process group of its own, which gets the terminal when
standard input is one, and then takes signals as they come: SIGCHLD makes it reap whatever has
ended, everything else goes on to PROGRAM. When that ends, so does it, with PROGRAM's exit code (128
and the signal's number, where one ended it; 126 or 127 where it could not be executed); as PID 1 it
takes what is left with it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from wherry_guest.core.fields import SpecError
from wherry_guest.core.machine_code import executable

if TYPE_CHECKING:
    from wherry_guest.core.steps import State
    from wherry_guest.core.syscalls import Kernel

X86_64: Final = """
    4c8b2424          mov r12, [rsp]              # argc
    4c8d6c2408        lea r13, [rsp+8]            # argv
    4e8d74e410        lea r14, [rsp+r12*8+16]     # envp
    4883ec10          sub rsp, 16
    bf0f000000        mov edi, 15                 # PR_SET_NAME
    498b7500          mov rsi, [r13]
    b89d000000        mov eax, 157                # prctl
    0f05              syscall
    48c70424ffffffff  mov qword ptr [rsp], -1     # every signal
    bf02000000        mov edi, 2
    4889e6            mov rsi, rsp
    488d542408        lea rdx, [rsp+8]
    41ba08000000      mov r10d, 8
    b80e000000        mov eax, 14                 # rt_sigprocmask
    0f05              syscall
    bf11000000        mov edi, 17
    31f6              xor esi, esi
    31d2              xor edx, edx
    4531d2            xor r10d, r10d
    4531c0            xor r8d, r8d
    b838000000        mov eax, 56                 # clone
    0f05              syscall
    85c0              test eax, eax
    0f88cd000000      js failed
    7469              jz child
    89c3              mov ebx, eax                # the command's pid
wait:
    4889e7            mov rdi, rsp
    31f6              xor esi, esi
    31d2              xor edx, edx
    41ba08000000      mov r10d, 8
    b880000000        mov eax, 128                # rt_sigtimedwait
    0f05              syscall
    85c0              test eax, eax
    7ee8              jle wait
    83f811            cmp eax, 17                 # SIGCHLD
    740d              je reap
    89df              mov edi, ebx
    89c6              mov esi, eax
    b83e000000        mov eax, 62                 # kill
    0f05              syscall
    ebd6              jmp wait
reap:
    4883cfff          or rdi, -1
    488d742408        lea rsi, [rsp+8]
    ba01000000        mov edx, 1                  # WNOHANG
    4531d2            xor r10d, r10d
    b83d000000        mov eax, 61                 # wait4
    0f05              syscall
    85c0              test eax, eax
    7eba              jle wait
    39d8              cmp eax, ebx
    75e0              jne reap
    8b7c2408          mov edi, [rsp+8]            # the wait status
    89f8              mov eax, edi
    83e07f            and eax, 127
    7408              jz exited
    8db880000000      lea edi, [rax+128]
    eb03              jmp leave
exited:
    c1ef08            shr edi, 8
leave:
    b8e7000000        mov eax, 231                # exit_group
    0f05              syscall
child:
    31ff              xor edi, edi
    31f6              xor esi, esi
    b86d000000        mov eax, 109                # setpgid
    0f05              syscall
    b827000000        mov eax, 39                 # getpid
    0f05              syscall
    890424            mov [rsp], eax
    31ff              xor edi, edi
    be10540000        mov esi, 0x5410             # TIOCSPGRP
    4889e2            mov rdx, rsp
    b810000000        mov eax, 16                 # ioctl
    0f05              syscall
    bf02000000        mov edi, 2
    488d742408        lea rsi, [rsp+8]
    31d2              xor edx, edx
    41ba08000000      mov r10d, 8
    b80e000000        mov eax, 14                 # rt_sigprocmask
    0f05              syscall
    498b7d08          mov rdi, [r13+8]
    498d7510          lea rsi, [r13+16]
    4c89f2            mov rdx, r14
    b83b000000        mov eax, 59                 # execve
    0f05              syscall
    bf7e000000        mov edi, 126
    83f8fe            cmp eax, -2                 # ENOENT
    759e              jne leave
    bf7f000000        mov edi, 127
    eb97              jmp leave
failed:
    bf7d000000        mov edi, 125
    eb90              jmp leave
"""
"""System calls: asm/unistd_64.h, number in rax, arguments in rdi, rsi, rdx, r10, r8, r9."""

AARCH64: Final = """
    f30340f9          ldr x19, [sp]               # argc
    f4230091          add x20, sp, 8              # argv
    950e138b          add x21, x20, x19, lsl 3
    b5220091          add x21, x21, 8             # envp
    ff4300d1          sub sp, sp, 16
    e00180d2          mov x0, 15                  # PR_SET_NAME
    810240f9          ldr x1, [x20]
    e81480d2          mov x8, 167                 # prctl
    010000d4          svc 0
    00008092          mov x0, -1
    e00300f9          str x0, [sp]                # every signal
    400080d2          mov x0, 2
    e1030091          mov x1, sp
    e2230091          add x2, sp, 8
    030180d2          mov x3, 8
    e81080d2          mov x8, 135                 # rt_sigprocmask
    010000d4          svc 0
    200280d2          mov x0, 17
    010080d2          mov x1, 0
    020080d2          mov x2, 0
    030080d2          mov x3, 0
    040080d2          mov x4, 0
    881b80d2          mov x8, 220                 # clone
    010000d4          svc 0
    2008f8b7          tbnz x0, 63, failed
    600400b4          cbz x0, child
    f60300aa          mov x22, x0                 # the command's pid
wait:
    e0030091          mov x0, sp
    010080d2          mov x1, 0
    020080d2          mov x2, 0
    030180d2          mov x3, 8
    281180d2          mov x8, 137                 # rt_sigtimedwait
    010000d4          svc 0
    1f000071          cmp w0, 0
    2dffff54          b.le wait
    1f440071          cmp w0, 17                  # SIGCHLD
    c0000054          b.eq reap
    e10300aa          mov x1, x0
    e00316aa          mov x0, x22
    281080d2          mov x8, 129                 # kill
    010000d4          svc 0
    f2ffff17          b wait
reap:
    00008092          mov x0, -1
    e1230091          add x1, sp, 8
    220080d2          mov x2, 1                   # WNOHANG
    030080d2          mov x3, 0
    882080d2          mov x8, 260                 # wait4
    010000d4          svc 0
    1f000071          cmp w0, 0
    4dfdff54          b.le wait
    1f00166b          cmp w0, w22
    e1feff54          b.ne reap
    e00b40b9          ldr w0, [sp, 8]             # the wait status
    01180072          ands w1, w0, 127
    60000054          b.eq exited
    20000211          add w0, w1, 128
    02000014          b leave
exited:
    007c0853          lsr w0, w0, 8
leave:
    c80b80d2          mov x8, 94                  # exit_group
    010000d4          svc 0
child:
    000080d2          mov x0, 0
    010080d2          mov x1, 0
    481380d2          mov x8, 154                 # setpgid
    010000d4          svc 0
    881580d2          mov x8, 172                 # getpid
    010000d4          svc 0
    e00300b9          str w0, [sp]
    000080d2          mov x0, 0
    01828ad2          mov x1, 0x5410              # TIOCSPGRP
    e2030091          mov x2, sp
    a80380d2          mov x8, 29                  # ioctl
    010000d4          svc 0
    400080d2          mov x0, 2
    e1230091          add x1, sp, 8
    020080d2          mov x2, 0
    030180d2          mov x3, 8
    e81080d2          mov x8, 135                 # rt_sigprocmask
    010000d4          svc 0
    800640f9          ldr x0, [x20, 8]
    81420091          add x1, x20, 16
    e20315aa          mov x2, x21
    a81b80d2          mov x8, 221                 # execve
    010000d4          svc 0
    e103002a          mov w1, w0
    c00f8052          mov w0, 126
    3f080031          cmn w1, 2                   # ENOENT
    81fcff54          b.ne leave
    e00f8052          mov w0, 127
    e2ffff17          b leave
failed:
    a00f8052          mov w0, 125
    e0ffff17          b leave
"""
"""System calls: asm-generic/unistd.h, number in x8, arguments in x0 to x5."""

_LISTINGS: Final = {"x86_64": X86_64, "aarch64": AARCH64}

_os: Final[Any] = os  # uname exists on POSIX only; mypy checks all platforms


@dataclass(frozen=True, slots=True)
class TakeReaper:
    """Have the command run under it."""

    program: bytes

    def describe(self) -> str:
        return "make the first process"

    def execute(self, kernel: Kernel, state: State) -> None:
        state.reaper = kernel.sealed_file("wherry-init", self.program)


def program() -> bytes:
    """It, as an executable file for this machine.

    Raises:
        SpecError: there is none for this machine.
    """
    machine: str = _os.uname().machine
    if machine not in _LISTINGS:
        raise SpecError(f"there is no first process (--init) for {machine}")
    return executable(machine, _LISTINGS[machine])
