"""A quick look at a file: might tlscap find TLS functions in it?

A recording of everything looks at each file that any process maps.  Parsing them all would take seconds, so
this reads the section headers and searches the symbol tables, and nothing else.  A false yes costs time; a no is
final.
"""

from __future__ import annotations

import mmap
import os
import struct
from typing import NamedTuple

from tlscap.live.catalogue import MARKERS

_FILE_HEADER = struct.Struct("<4sBB10xHHIQQQIHHHHHH")  # Elf64_Ehdr: of e_ident the magic, class and byte order
_SECTION_HEADER = struct.Struct("<IIQQQQIIQQ")  # Elf64_Shdr
_SYMBOL_SIZE, _SECTION_OF_SYMBOL = 24, 6  # Elf64_Sym: the name's place comes first, the section's number at 6
SHT_SYMTAB, SHT_NOBITS, SHT_DYNSYM = 2, 8, 11
MAX_SECTION_NAME = 64
ELFCLASS64, ELFDATA2LSB = 2, 1
GO_SECTIONS = frozenset({b".gopclntab", b".data.rel.ro.gopclntab", b".go.buildinfo", b".note.go.buildid"})
RUSTLS = b"11CommonState16buffer_plaintext"
"""Part of the name of one of its functions, however it is mangled: a file without it has no rustls to probe."""
MARKS = (b"ssl_lib.c",)
"""`tlscap.live.signatures.marks` of the built-in rules: reading them takes longer than looking at a file."""
_MARKERS = tuple(b"\0" + name.encode() + b"\0" for name in sorted(MARKERS))


class _Section(NamedTuple):
    name: bytes
    kind: int
    start: int
    end: int
    link: int


def may_hold_tls(path: str) -> bool:
    """Whether a file defines a TLS function of the catalogue, is a Go program, or has the strings that signatures go by.

    False for what can't be read.
    """
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size < _FILE_HEADER.size or file.read(4) != b"\x7fELF":
                return False
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                sections = _sections(data)
                if any(section.name in GO_SECTIONS for section in sections):
                    return True
                # A file has at most one of each (System V ABI): one that has thousands costs no more than that.
                tables = {section.kind: section for section in sections if section.kind in (SHT_SYMTAB, SHT_DYNSYM)}
                if any(_defines_tls(data, table, sections[table.link]) for table in tables.values()):
                    return True
                constants = next((section for section in sections if section.name == b".rodata"), None)
                return constants is not None and any(
                    data.find(mark, constants.start, constants.end) >= 0 for mark in MARKS
                )
    except (OSError, ValueError, IndexError, OverflowError, struct.error):
        return False


def _sections(data: mmap.mmap) -> list[_Section]:
    """Those that lie inside the file; the others are there, too, but empty."""
    _, elf_class, order, *_, at, _, _, _, _, entry_size, count, names = _FILE_HEADER.unpack_from(data)
    if (elf_class, order, entry_size) != (ELFCLASS64, ELFDATA2LSB, _SECTION_HEADER.size) or names >= count:
        return []
    headers = [_SECTION_HEADER.unpack_from(data, at + index * entry_size) for index in range(count)]
    text = headers[names][4]
    found = []
    for name, kind, _, _, start, size, link, *_ in headers:
        inside = kind != SHT_NOBITS and start + size <= len(data)
        label = data[text + name : text + name + MAX_SECTION_NAME].partition(b"\0")[0]
        found.append(_Section(label, kind, start, start + size, link) if inside else _Section(b"", 0, 0, 0, 0))
    return found


def _defines_tls(data: mmap.mmap, symbols: _Section, strings: _Section) -> bool:
    """Whether a symbol table has one of the functions, not only as something that another file has."""
    if data.find(RUSTLS, strings.start, strings.end) >= 0:
        return True
    for marker in _MARKERS:
        place = data.find(marker, strings.start, strings.end)
        if place < 0:
            continue
        name = struct.pack("<I", place + 1 - strings.start)
        at = data.find(name, symbols.start, symbols.end)
        while at >= 0:
            if (at - symbols.start) % _SYMBOL_SIZE == 0 and data[at + _SECTION_OF_SYMBOL : at + 8] != b"\0\0":
                return True
            at = data.find(name, at + 1, symbols.end)
    return False
