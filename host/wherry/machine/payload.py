"""The programs that an accelerator must run before it is trusted: a boot image per architecture.

Pure: bytes only. Each does in a few instructions what a kernel does first, since broken set-ups
(nested virtualization, mostly) run real mode well and die in what follows: enter protected and long
mode with paging on, ask cpuid a thousand times (an exit each), fault in 16 MiB of memory. Then it
says so and ends QEMU. A few milliseconds when all is well.
"""

from __future__ import annotations

import struct

AMD64_EXIT_PORT = 0xF4
"""QEMU's isa-debug-exit device, whose exit status is `value << 1 | 1`."""
AMD64_EXIT_STATUS = 0x2B << 1 | 1

ARM64_OUTPUT = b"W"
"""What the arm64 program writes to the first PL011 of `-M virt` before it powers off by PSCI."""

_ROM_SIZE = 65536
_RESET_VECTOR = 0xFFF0
"""Intel SDM vol. 3, 10.1.4: execution begins 16 bytes below the end of the address space."""
_ROM_ENTRY = 0xF000
"""In the ROM; the same byte is at 0xFF000 in the alias below 1 MiB, where the far jumps lead."""

_AMD64_CODE = (
    # 16 bit
    ("fa", "cli"),
    ("2e 66 0f 01 16 b7 f0", "lgdtl %cs:gdtr"),
    ("0f 20 c0", "mov %cr0, %eax"),
    ("0c 01", "or $1, %al"),
    ("0f 22 c0", "mov %eax, %cr0"),
    ("66 ea 18 f0 0f 00 08 00", "ljmpl $8, $protected"),
    # protected: 32 bit
    ("b8 10 00 00 00", "mov $0x10, %eax"),
    ("8e d8", "mov %eax, %ds"),
    ("8e c0", "mov %eax, %es"),
    ("8e d0", "mov %eax, %ss"),
    # page tables at 0x1000, 0x2000, 0x3000: 16 pages of 2 MiB, one to one
    ("31 c0", "xor %eax, %eax"),
    ("bf 00 10 00 00", "mov $0x1000, %edi"),
    ("b9 00 0c 00 00", "mov $0xc00, %ecx"),
    ("f3 ab", "rep stosl"),
    ("c7 05 00 10 00 00 03 20 00 00", "movl $0x2003, 0x1000"),
    ("c7 05 00 20 00 00 03 30 00 00", "movl $0x3003, 0x2000"),
    ("bf 00 30 00 00", "mov $0x3000, %edi"),
    ("b8 83 00 00 00", "mov $0x83, %eax"),
    ("b9 10 00 00 00", "mov $16, %ecx"),
    ("89 07", "1: mov %eax, (%edi)"),
    ("05 00 00 20 00", "add $0x200000, %eax"),
    ("83 c7 08", "add $8, %edi"),
    ("e2 f4", "loop 1b"),
    # PAE, EFER.LME, paging
    ("b8 20 00 00 00", "mov $0x20, %eax"),
    ("0f 22 e0", "mov %eax, %cr4"),
    ("b8 00 10 00 00", "mov $0x1000, %eax"),
    ("0f 22 d8", "mov %eax, %cr3"),
    ("b9 80 00 00 c0", "mov $0xc0000080, %ecx"),
    ("0f 32", "rdmsr"),
    ("0d 00 01 00 00", "or $0x100, %eax"),
    ("0f 30", "wrmsr"),
    ("0f 20 c0", "mov %cr0, %eax"),
    ("0d 00 00 00 80", "or $0x80000000, %eax"),
    ("0f 22 c0", "mov %eax, %cr0"),
    ("ea 90 f0 0f 00 18 00", "ljmp $0x18, $long"),
    # long: 64 bit
    ("be e8 03 00 00", "mov $1000, %esi"),
    ("31 c0", "1: xor %eax, %eax"),
    ("0f a2", "cpuid"),
    ("ff ce", "dec %esi"),
    ("75 f8", "jne 1b"),
    ("bf 00 00 10 00", "mov $0x100000, %edi"),
    ("b9 00 10 00 00", "mov $4096, %ecx"),
    ("ff 07", "1: incl (%rdi)"),
    ("48 81 c7 00 10 00 00", "add $4096, %rdi"),
    ("e2 f5", "loop 1b"),
    ("b0 2b", "mov $0x2b, %al"),
    ("e6 f4", "out %al, $0xf4"),
    ("f4", "hlt"),
    # data
    ("1f 00 bd f0 0f 00", "gdtr: .word 31; .long gdt"),
    ("00 00 00 00 00 00 00 00", "gdt: .quad 0"),
    ("ff ff 00 00 00 9a cf 00", "0x08: 32-bit code, flat"),
    ("ff ff 00 00 00 92 cf 00", "0x10: data, flat"),
    ("ff ff 00 00 00 9a af 00", "0x18: 64-bit code"),
)

_ARM64_CODE = (
    (0xD2A82002, "movz x2, #0x4100, lsl #16   // RAM of -M virt begins at 0x40000000"),
    (0x52820003, "movz w3, #4096"),
    (0xB9400044, "1: ldr w4, [x2]"),
    (0x11000484, "add w4, w4, #1"),
    (0xB9000044, "str w4, [x2]"),
    (0x91400442, "add x2, x2, #1, lsl #12"),
    (0x71000463, "subs w3, w3, #1"),
    (0x54FFFF61, "b.ne 1b"),
    (0xD2A12000, "movz x0, #0x0900, lsl #16   // the PL011 of -M virt"),
    (0x52800AE1, "movz w1, #'W'"),
    (0x39000001, "strb w1, [x0]"),
    (0x52800100, "movz w0, #0x0008            // PSCI SYSTEM_OFF, Arm DEN0022: 0x84000008"),
    (0x72B08000, "movk w0, #0x8400, lsl #16"),
    (0xD4000002, "hvc #0"),
    (0x14000000, "b ."),
)


def amd64_rom() -> bytes:
    """A 64 KiB `-bios` image: ends QEMU with AMD64_EXIT_STATUS (by isa-debug-exit)."""
    code = b"".join(bytes.fromhex(text) for text, _ in _AMD64_CODE)
    rom = bytearray(b"\xf4" * _ROM_SIZE)  # hlt
    rom[_ROM_ENTRY : _ROM_ENTRY + len(code)] = code
    jump = b"\xe9" + struct.pack("<h", _ROM_ENTRY - (_RESET_VECTOR + 3))
    rom[_RESET_VECTOR : _RESET_VECTOR + len(jump)] = jump
    return bytes(rom)


def arm64_image() -> bytes:
    """A raw `-kernel` image; QEMU prints ARM64_OUTPUT on the serial port and ends with status 0."""
    return b"".join(struct.pack("<I", word) for word, _ in _ARM64_CODE)
