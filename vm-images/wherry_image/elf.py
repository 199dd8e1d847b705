"""Just enough of ELF to build an image: a section's bytes, and the shared libraries a file needs.

Sans-I/O. 64-bit little-endian files only, which both of our architectures are. Source: elf(5) and
the System V ABI, chapters 4 and 5.
"""

from __future__ import annotations

import struct

from .errors import FormatError

MAGIC = b"\x7fELF\x02\x01"
"""e_ident: magic, ELFCLASS64, ELFDATA2LSB."""

_SECTION = struct.Struct("<IIQQQQIIQQ")
_PROGRAM = struct.Struct("<IIQQQQQQ")
_DYNAMIC = struct.Struct("<qQ")
_PT_LOAD, _PT_DYNAMIC = 1, 2
_DT_NULL, _DT_NEEDED, _DT_STRTAB = 0, 1, 5


def is_elf(data: bytes) -> bool:
    return data[:6] == MAGIC


def section(data: bytes, wanted: str) -> bytes:
    """The content of the section named `wanted`, or nothing.

    Raises:
        FormatError: not a complete 64-bit little-endian ELF file.
    """
    try:
        (table,) = struct.unpack_from("<Q", data, 0x28)
        size, count, names_index = struct.unpack_from("<HHH", data, 0x3A)
        headers = [_SECTION.unpack_from(data, table + size * i) for i in range(count)]
        names = _content(data, headers[names_index][4:6])
    except (struct.error, IndexError, OverflowError) as error:
        raise FormatError(f"damaged ELF file: {error}") from error
    for header in headers:
        if _string(names, header[0]) == wanted:
            return _content(data, header[4:6])
    return b""


def needed(data: bytes) -> list[str]:
    """The DT_NEEDED entries: sonames of the libraries that the dynamic linker must find.

    Raises:
        FormatError: not a complete 64-bit little-endian ELF file.
    """
    try:
        (table,) = struct.unpack_from("<Q", data, 0x20)
        size, count = struct.unpack_from("<HH", data, 0x36)
        programs = [_PROGRAM.unpack_from(data, table + size * i) for i in range(count)]
        entries: list[tuple[int, int]] = []
        for kind, _, offset, _, _, length, _, _ in programs:
            if kind == _PT_DYNAMIC:
                entries.extend(_DYNAMIC.iter_unpack(data[offset : offset + length]))
        strings = next((value for tag, value in entries if tag == _DT_STRTAB), None)
        if strings is None:
            return []
        base = _file_offset(programs, strings)
    except (struct.error, OverflowError) as error:
        raise FormatError(f"damaged ELF file: {error}") from error
    names = []
    for tag, value in entries:
        if tag == _DT_NULL:
            break
        if tag == _DT_NEEDED:
            names.append(_string(data, base + value))
    return names


def _content(data: bytes, offset_and_size: tuple[int, ...]) -> bytes:
    offset, size = offset_and_size
    if offset + size > len(data):
        raise FormatError("damaged ELF file: a section lies outside")
    return data[offset : offset + size]


def _file_offset(programs: list[tuple[int, ...]], address: int) -> int:
    for kind, _, offset, virtual, _, length, _, _ in programs:
        if kind == _PT_LOAD and virtual <= address < virtual + length:
            return offset + address - virtual
    raise FormatError("damaged ELF file: the string table is in no segment")


def _string(table: bytes, offset: int) -> str:
    end = table.find(b"\0", offset)
    return table[offset:end].decode("ascii", "replace") if end >= 0 else ""
