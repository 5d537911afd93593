"""Offsets of fields from BTF: made by hand, and the running kernel's."""

from __future__ import annotations

import contextlib
import os
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tlscap.errors import UnsupportedError
from tlscap.live.btf import VMLINUX, struct_offsets

INTEGER, POINTER, ARRAY, STRUCT, UNION, ENUM, TYPEDEF, CONST, PROTOTYPE = 1, 2, 3, 4, 5, 6, 8, 10, 13

Member = tuple[str, int, int]
"""Name, type number, offset in bits."""


class Btf:
    """Builds BTF, type by type; each gives its number."""

    def __init__(self) -> None:
        self.strings = b"\0"
        self.types = b""
        self.count = 0

    def name(self, text: str) -> int:
        found = self.strings.find(b"\0" + text.encode() + b"\0")
        if not text:
            return 0
        if found >= 0:
            return found + 1
        self.strings += text.encode() + b"\0"
        return len(self.strings) - len(text) - 1

    def add(
        self, kind: int, name: str = "", *, third: int = 0, length: int = 0, tail: bytes = b"", flag: int = 0
    ) -> int:
        self.types += struct.pack("=III", self.name(name), flag << 31 | kind << 24 | length, third) + tail
        self.count += 1
        return self.count

    def struct(self, name: str, *members: Member, kind: int = STRUCT, flag: int = 0) -> int:
        tail = b"".join(struct.pack("=III", self.name(member), number, offset) for member, number, offset in members)
        return self.add(kind, name, length=len(members), tail=tail, flag=flag)

    def pack(self) -> bytes:
        head = struct.pack("=HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(self.types), len(self.types), len(self.strings))
        return head + self.types + self.strings


def sample() -> Btf:
    """A little of everything that can stand between two structures."""
    btf = Btf()
    number = btf.add(INTEGER, "int", third=4, tail=struct.pack("=I", 32))
    btf.add(ARRAY, tail=struct.pack("=III", number, number, 7))
    btf.add(ENUM, "colour", length=2, tail=struct.pack("=IIII", btf.name("red"), 0, btf.name("green"), 1))
    btf.add(PROTOTYPE, third=number, length=1, tail=struct.pack("=II", 0, number))
    btf.struct("file", ("pos", number, 0))  # another structure of that name
    btf.struct("file", ("pos", number, 0), ("inode", number, 64))
    inner = btf.struct("", ("low", number, 0), ("high", number, 32), kind=UNION)
    wrapped = btf.add(CONST, third=btf.struct("", ("lead", number, 0), ("", inner, 32)))
    btf.struct("outer", ("first", number, 0), ("", wrapped, 128), ("last", number, 256))
    btf.struct("bits", ("plain", number, 32), ("narrow", number, 3 << 24 | 40), ("odd", number, 41), flag=1)
    return btf


def test_offsets() -> None:
    """Plain members, and members of nameless structures and unions, in the order that was asked for."""
    fields = [
        ("outer", "last"),
        ("outer", "first"),
        ("outer", "lead"),
        ("outer", "low"),
        ("outer", "high"),
        ("bits", "plain"),
    ]
    assert struct_offsets(fields, sample().pack()) == [32, 0, 16, 20, 24, 4]


def test_same_name_twice() -> None:
    """The structure that has the field is meant."""
    assert struct_offsets([("file", "inode"), ("file", "pos")], sample().pack()) == [8, 0]


@pytest.mark.parametrize(
    ("structure", "field"),
    [
        ("outer", "middle"),
        ("outer", "inode"),  # exists, elsewhere
        ("nothing", "first"),
        ("int", "first"),
        ("bits", "narrow"),
        ("bits", "odd"),
    ],
)
def test_missing(structure: str, field: str) -> None:
    """A field that is not there, or that no address points to."""
    with pytest.raises(UnsupportedError, match=f"struct {structure} has no field {field}"):
        struct_offsets([(structure, field)], sample().pack())


def test_recursion_ends() -> None:
    """Types that contain themselves without a name, which no compiler makes."""
    btf = Btf()
    btf.struct("a", ("", 1, 0), ("x", 0, 32))
    btf.add(CONST, third=2)
    btf.struct("b", ("", 2, 0), ("", 1, 0))
    with pytest.raises(UnsupportedError):
        struct_offsets([("a", "y")], btf.pack())
    with pytest.raises(UnsupportedError):
        struct_offsets([("b", "y")], btf.pack())


@pytest.mark.parametrize("keep", [0, 3, 24, 60, 200])
def test_cut_short(keep: int) -> None:
    """Not all of it."""
    with pytest.raises(UnsupportedError):
        struct_offsets([("outer", "last")], sample().pack()[:keep])


@given(st.binary(max_size=300), st.integers(0, 400))
def test_anything(noise: bytes, position: int) -> None:
    """Whatever the bytes, there is an answer or `UnsupportedError`, soon."""
    data = bytearray(sample().pack())
    data[position : position + len(noise)] = noise
    with contextlib.suppress(UnsupportedError):
        struct_offsets([("outer", "high"), ("file", "inode")], bytes(data))


@pytest.mark.skipif(not os.access(VMLINUX, os.R_OK), reason=f"the kernel offers no BTF ({VMLINUX})")
def test_running_kernel() -> None:
    """What has been so in every kernel that tlscap supports."""
    fields = [("task_struct", "pid"), ("task_struct", "tgid"), ("sock_common", "skc_daddr"), ("sock_common", "skc_rcv_saddr"), ("sock_common", "skc_dport"), ("sock_common", "skc_num")]  # fmt: skip
    pid, tgid, *addresses = struct_offsets(fields)
    assert tgid == pid + 4 > 4
    assert addresses == [0, 4, 12, 14]
    with pytest.raises(UnsupportedError):
        struct_offsets([("task_struct", "no_such_field")])
