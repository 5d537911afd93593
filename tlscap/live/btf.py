"""Where the fields of the running kernel's structures lie, from its own type information (BTF).

Only what that takes is read: structures by name, their members, and the nameless structures and unions among these.
libbpf does the same inside `tlscap.live.libbpf`; this is for BCC, whose headers may be another kernel's.
Format: Documentation/bpf/btf.rst in the kernel's sources.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence

from tlscap.errors import UnsupportedError

VMLINUX = "/sys/kernel/btf/vmlinux"
MAGIC = 0xEB9F
_HEADER = struct.Struct("=HBBIIIII")  # magic, version, flags, header length, types at, length, strings at, length

KIND_STRUCT, KIND_UNION = 4, 5
_MODIFIERS = (8, 9, 10, 11, 18)  # typedef, volatile, const, restrict, type tag
# What follows the three words of a type, by kind: words, and words for each of its `vlen` members.
_TAIL = [(0, 0)] * 32
_TAIL[1] = (1, 0)  # integer
_TAIL[3] = (3, 0)  # array
_TAIL[KIND_STRUCT] = _TAIL[KIND_UNION] = (0, 3)
_TAIL[6] = _TAIL[13] = (0, 2)  # enumeration, prototype
_TAIL[14] = _TAIL[17] = (1, 0)  # variable, declaration tag
_TAIL[15] = _TAIL[19] = (0, 3)  # section, enumeration of 64 bits
_KINDS_KNOWN = 20
_NESTING_MAX = 16


def struct_offsets(fields: Sequence[tuple[str, str]], source: bytes | None = None) -> list[int]:
    """The offset in bytes of each (structure, field), in order.

    ``source`` is BTF; by default that of the running kernel.  Raises `UnsupportedError` when there is none, when it
    can't be understood, when a field does not exist and when it is a bit field.
    """
    if source is None:
        try:
            with open(VMLINUX, "rb") as file:
                source = file.read()
        except OSError as error:
            raise UnsupportedError(
                f"this kernel does not describe its structures ({VMLINUX}: {error.strerror})",
                hint="it needs CONFIG_DEBUG_INFO_BTF",
            ) from error
    try:
        types = _Types(source, {structure for structure, _ in fields})
        return [types.offset(structure, field) for structure, field in fields]
    except (IndexError, ValueError, struct.error) as error:
        raise UnsupportedError(f"the kernel's BTF can't be read: {error}") from error


class _Types:
    """The types as 32-bit words: three for each, then its tail."""

    def __init__(self, source: bytes, wanted: Iterable[str]) -> None:
        magic, version, _, head, types_at, types_length, strings_at, strings_length = _HEADER.unpack_from(source)
        if magic != MAGIC or version != 1:
            raise ValueError(f"magic {magic:#x}, version {version}")
        if head + max(types_at + types_length, strings_at + strings_length) > len(source):
            raise ValueError("it is cut short")
        if types_length % 4:
            raise ValueError(f"{types_length} bytes are no whole number of words")
        self._strings = source[head + strings_at : head + strings_at + strings_length]
        self._words = memoryview(source)[head + types_at : head + types_at + types_length].cast("I")
        self._positions = [0]  # by type number, from 1; 0 is void
        self._structures: dict[int, list[int]] = {self._name(name): [] for name in wanted}
        self._scan()

    def _name(self, name: str) -> int:
        """Where a string lies, or -1.  A string is stored once."""
        found = self._strings.find(b"\0" + name.encode() + b"\0")
        return found + 1 if found >= 0 else -1

    def _scan(self) -> None:
        words, positions, structures = self._words, self._positions, self._structures
        position, end = 0, len(words)
        while position < end:
            positions.append(position)
            info = words[position + 1]
            kind = info >> 24 & 31
            if kind == KIND_STRUCT and words[position] in structures:
                structures[words[position]].append(position)
            elif kind >= _KINDS_KNOWN:
                raise ValueError(f"unknown kind of type {kind}")
            fixed, each = _TAIL[kind]
            position += 3 + fixed + each * (info & 0xFFFF)

    def offset(self, structure: str, field: str) -> int:
        """Bytes.  A few names belong to several structures of a kernel: the first that has the field counts."""
        name = self._name(field)
        for position in self._structures[self._name(structure)] if name >= 0 else ():
            bits = self._member(position, name, 0)
            if bits is not None:
                if bits % 8:
                    break
                return bits // 8
        raise UnsupportedError(f"this kernel's struct {structure} has no field {field} that tlscap can read")

    def _member(self, position: int, name: int, depth: int) -> int | None:
        """Offset in bits of a member, or of a member of a nameless member."""
        words = self._words
        info = words[position + 1]
        for at in range(position + 3, position + 3 + 3 * (info & 0xFFFF), 3):
            offset = words[at + 2]
            if info >> 31:  # the upper byte is the size of a bit field
                offset = 1 if offset >> 24 and words[at] == name else offset & 0xFFFFFF
            if words[at] == name:
                return offset
            if words[at] == 0 and depth < _NESTING_MAX:
                inner = self._position(words[at + 1])
                within = None if inner is None else self._member(inner, name, depth + 1)
                if within is not None:
                    return offset + within
        return None

    def _position(self, number: int) -> int | None:
        """Where the structure or union of that number lies; None for other types."""
        for _ in range(_NESTING_MAX):
            if number == 0:
                return None
            position = self._positions[number]
            kind = self._words[position + 1] >> 24 & 31
            if kind in (KIND_STRUCT, KIND_UNION):
                return position
            if kind not in _MODIFIERS:
                return None
            number = self._words[position + 2]
        return None
