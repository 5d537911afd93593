#!/usr/bin/env python3
"""Compares the layouts that user space unpacks and packs with those that the kernel's side was compiled with.

The one side is `tlscap.decode`, `tlscap.live.session` and `tlscap.live.loader`; the other the BTF of the built object,
into which the union at the end of bpf/tlscap.bpf.c brings every type of bpf/events.h.  Compared are the place and the
size of every field, the sizes of the structures, and the values of the constants.  Exit status 1 when they differ.
"""

from __future__ import annotations

import argparse
import enum
import re
import struct
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile

from tlscap import decode, flows
from tlscap.live import session
from tlscap.live.btf import _Types
from tlscap.live.loader import CallKind, Counter, Filter, LifeKind, Settings
from tlscap.model import Direction, Role

OBJECT = Path(__file__).resolve().parent.parent / "tlscap" / "_bpf" / "tlscap.bpf.o"

KIND_INT, KIND_POINTER, KIND_ARRAY, KIND_STRUCT, KIND_ENUM = 1, 2, 3, 4, 6
SIZED = {KIND_INT, 4, 5, KIND_ENUM, 19}  # integer, structure, union, enumerations: the third word is the size


@dataclass(frozen=True, slots=True)
class Layout:
    """A C structure as user space sees it: the format, and the C name of each of its fields.

    ``tail`` is an array that begins right behind the format and ends the structure.
    """

    structure: str
    format: struct.Struct
    names: str
    tail: str = ""
    header: bool = True
    """It begins with ``struct sample_header h``, which the format leaves out."""


LAYOUTS = (
    Layout("sample_header", decode.HEADER, "type flags size time_ns pid tid conn", header=False),
    Layout("sample_data", decode.DATA, "offset call_len entry_ns length captured direction reason call pad"),
    Layout("sample_open", decode.OPEN, "ssl start_ns midstream role"),
    Layout(
        "sample_address",
        decode.ADDRESS,
        "at.local at.remote at.family at.local_port at.remote_port at.protocol at.srtt_us fd",
    ),
    Layout("sample_handshake", decode.HANDSHAKE, "start_ns calls pad"),
    Layout("sample_name", decode.NAME, "kind length pad", tail="text"),
    Layout("sample_close", decode.CLOSE, "bytes[0] bytes[1] recycled pad"),
    Layout("sample_process", decode.PROCESS, "start_ns ppid uid comm cmdline_len pad exe", tail="cmdline"),
    Layout("sample_mapped", decode.MAPPED, "inode device executable"),
    Layout("sample_callback", decode.CALLBACK, "address kind pad"),
    Layout("sample_mark", decode.MARK, "offset length kind direction pad"),
    Layout(
        "connection",
        session.CONNECTION,
        "id bytes[0] bytes[1] handshake_start_ns handshake_calls flags pid pad",
        header=False,
    ),
    Layout("connection_key", session.CONNECTION_KEY, "ssl pid incarnation", header=False),
    Layout("process", session.PROCESS_VALUE, "start_ns incarnation flags", header=False),
)


def _numbers(prefix: str) -> dict[str, int]:
    return {name.removeprefix(prefix): value for name, value in vars(decode).items() if name.startswith(prefix)}


def _members(kind: type[enum.Enum]) -> dict[str, int]:
    return {member.name: int(member.value) for member in kind}


CONSTANTS: Mapping[str, tuple[str, Mapping[str, int]]] = {
    # enumeration: the prefix of its constants in C, and what user space has
    "sample_type": ("SAMPLE_", _numbers("SAMPLE_")),
    "sample_flags": ("FLAG_", _numbers("FLAG_")),
    "name_kind": ("NAME_", _numbers("NAME_")),
    "direction": ("", _members(Direction)),
    "role": ("ROLE_", _members(Role)),
    "gap_reason": ("GAP_", {"NONE": 0} | {reason.name: number for number, reason in flows.REASONS.items()}),
    "call_kind": ("CALL_", _members(CallKind)),
    "life_kind": ("LIFE_", _members(LifeKind)),
    "filter_flags": ("FILTER_", _members(Filter)),
    "counter": ("COUNT_", _members(Counter)),
}
UNUSED = {"COUNTERS"}  # sizes, not values


class KernelTypes(_Types):
    """The object's types: structures with offsets and sizes, enumerations."""

    def text(self, offset: int) -> str:
        return self._strings[offset : self._strings.index(b"\0", offset)].decode()

    def named(self, name: str, *kinds: int) -> int | None:
        """Where the type of a name lies."""
        for position in self._positions[1:]:
            if self._words[position + 1] >> 24 & 31 in kinds and self.text(self._words[position]) == name:
                return position
        return None

    def size(self, number: int) -> int:
        """Bytes that a type takes."""
        while number:
            position = self._positions[number]
            kind = self._words[position + 1] >> 24 & 31
            if kind in SIZED:
                return self._words[position + 2]
            if kind == KIND_POINTER:
                return 8
            if kind == KIND_ARRAY:
                return self._words[position + 5] * self.size(self._words[position + 3])
            number = self._words[position + 2]
        return 0

    def size_at(self, position: int) -> int:
        """Bytes of the structure that lies there."""
        return self._words[position + 2]

    def fields(self, position: int) -> dict[str, tuple[int, int]]:
        """Offset and size of every member; small arrays by their elements, too, and structures but the header by their members."""
        found: dict[str, tuple[int, int]] = {}
        for at in range(position + 3, position + 3 + 3 * (self._words[position + 1] & 0xFFFF), 3):
            name, number, offset = self.text(self._words[at]), self._words[at + 1], self._words[at + 2] // 8
            found[name] = offset, self.size(number)
            inner = self._positions[number]
            if self._words[inner + 1] >> 24 & 31 == KIND_STRUCT and name != "h":
                within = self.fields(inner)
                found |= {f"{name}.{member}": (offset + place, size) for member, (place, size) in within.items()}
                del found[name]
            elif self._words[inner + 1] >> 24 & 31 == KIND_ARRAY:
                size = self.size(self._words[inner + 3])
                found |= {f"{name}[{index}]": (offset + index * size, size) for index in range(self._words[inner + 5])}
        return found

    def constants(self, position: int) -> dict[str, int]:
        words = self._words
        return {
            self.text(words[at]): words[at + 1]
            for at in range(position + 3, position + 3 + 2 * (words[position + 1] & 0xFFFF), 2)
        }


def places(layout: Layout) -> Iterator[tuple[str, int, int]]:
    """Yield name, offset and size of each field of a format."""
    names = iter(layout.names.split())
    at = 32 if layout.header else 0
    for count, code in re.findall(r"(\d*)([a-zA-Z?])", layout.format.format):
        if code in "sx":
            parts = [int(count or 1)]
        else:
            parts = [struct.calcsize(layout.format.format[0] + code)] * int(count or 1)
        for size in parts:
            yield next(names, "(a field without name)"), at, size
            at += size
    for name in names:
        yield name, at, 0


def compare_structure(types: KernelTypes, layout: Layout) -> Iterator[str]:
    """Yield how a structure differs."""
    name = f"struct {layout.structure}"
    position = types.named(layout.structure, 4)
    if position is None:
        yield f"{name} is not in the object's BTF"
        return
    theirs = types.fields(position)
    seen = set()
    end = 32 if layout.header else 0
    for field, offset, size in places(layout):
        seen.add(field.partition("[")[0])
        end = offset + size
        if field not in theirs:
            yield f"{name}.{field}: user space reads {size} bytes at {offset}, C has no such field"
        elif theirs[field] != (offset, size):
            there, length = theirs[field]
            yield f"{name}.{field}: user space reads {size} bytes at {offset}, C has {length} at {there}"
    if layout.tail:
        seen.add(layout.tail)
        there, length = theirs.get(layout.tail, (-1, 0))
        if there != end:
            yield f"{name}.{layout.tail}: user space reads it at {end}, C has it at {there}"
        end += length
    if layout.header:
        seen.add("h")
        if theirs.get("h") != (0, decode.HEADER.size):
            yield f"{name} does not begin with a header of {decode.HEADER.size} bytes"
    for field in theirs:
        if "[" not in field and field not in seen:
            yield f"{name}.{field}: user space does not know it"
    total = types.size_at(position)
    if end != total:
        yield f"{name}: user space reads {end} bytes, C has {total}"


def compare_settings(types: KernelTypes) -> Iterator[str]:
    """Yield how `Settings.pack` differs from ``struct config``: values that can be told apart must come out again."""
    position = types.named("config", 4)
    if position is None:
        yield "struct config is not in the object's BTF"
        return
    settings = Settings(
        ring_size=1 << 26, filter=Filter.PID | Filter.FOLLOW_FORKS, wake_always=True, snaplen=0x1122334455667788
    )
    packed = settings.pack()
    expected = {
        "filter": int(settings.filter),
        "wake_always": 1,
        "snaplen": settings.snaplen,
        "data_limit": (1 << 26) - (1 << 22),
        "wake_mark": 1 << 23,
    }
    theirs = types.fields(position)
    for field, (offset, size) in theirs.items():
        value = int.from_bytes(packed[offset : offset + size], sys.byteorder)
        if field not in expected:
            yield f"struct config.{field}: this check does not know it"
        elif value != expected[field]:
            yield f"struct config.{field}: Settings.pack puts {value:#x} there, not {expected[field]:#x}"
    yield from (f"struct config has no field {field}" for field in expected.keys() - theirs.keys())
    if len(packed) != types.size_at(position):
        yield f"struct config: Settings.pack makes {len(packed)} bytes, C has {types.size_at(position)}"


def compare_constants(types: KernelTypes, name: str, prefix: str, ours: Mapping[str, int]) -> Iterator[str]:
    """Yield how the values of an enumeration differ."""
    position = types.named(name, KIND_ENUM)
    if position is None:
        yield f"enum {name} is not in the object's BTF"
        return
    theirs = {
        constant.removeprefix(prefix): value
        for constant, value in types.constants(position).items()
        if constant not in UNUSED
    }
    for constant in sorted(ours.keys() | theirs.keys()):
        here, there = ours.get(constant), theirs.get(constant)
        if here != there:
            yield f"enum {name}: {constant} is {here} in user space, {there} in C"


def btf_of(path: Path) -> bytes:
    """Return the type information of an object file."""
    with path.open("rb") as file:
        section = ELFFile(file).get_section_by_name(".BTF")
        return bytes(section.data()) if section else b""


def differences(source: bytes, layouts: Sequence[Layout] = LAYOUTS) -> list[str]:
    """Return a line for everything that differs."""
    types = KernelTypes(source, ())
    found = [line for layout in layouts for line in compare_structure(types, layout)]
    found += compare_settings(types)
    for name, (prefix, ours) in CONSTANTS.items():
        found += compare_constants(types, name, prefix, ours)
    return found


def main(arguments: Sequence[str] | None = None, layouts: Sequence[Layout] = LAYOUTS) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("object", nargs="?", type=Path, default=OBJECT, help="default: %(default)s")
    path = parser.parse_args(arguments).object
    try:
        found = differences(btf_of(path), layouts)
    except (OSError, ValueError, struct.error, ELFError) as error:
        found = [f"{path}: {error}"]
    for line in found:
        print(line)
    if not found:
        print(f"{len(layouts) + 1} structures and {len(CONSTANTS)} enumerations are the same on both sides")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
