"""Go programs made by hand, in every layout of the table of functions, and real ones: symbol tables and objdump judge."""

from __future__ import annotations

import platform
import re
import shutil
import struct
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from elftools.elf.elffile import ELFFile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from live.go_programs import GoProgram, go_programs

from tlscap.errors import AttachError, UnsupportedError
from tlscap.live import golang
from tlscap.live.golang import Abi, GoBinary, GoFunction, Package, analyse, go_build_id, is_go
from tlscap.live.sites import Image

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="the programs are x86-64 code")

READ, WRITE = "crypto/tls.(*Conn).Read", "crypto/tls.(*Conn).Write"
CLOSE, HANDSHAKE = "crypto/tls.(*Conn).Close", "crypto/tls.(*Conn).handshakeContext"
MORESTACK = "runtime.morestack_noctxt"

# --- A compiler of functions that look like Go's ---

REGISTER_CHECKS = {
    "small": bytes.fromhex("493b6610"),  # cmp rsp, [r14+0x10]
    "large": bytes.fromhex("4c8d6424c04d3b6610"),  # lea r12, [rsp-0x40]; cmp r12, [r14+0x10]
    # mov r12, rsp; sub r12, 0x2000; jb (filled in); cmp r12, [r14+0x10]
    "huge": bytes.fromhex("4989e4 4981ec00200000 0f82cccccccc 4d3b6610"),
}
FS = bytes.fromhex("64488b0c25f8ffffff")  # mov rcx, fs:[-8]
STACK_CHECKS = {
    "small": FS + bytes.fromhex("483b6110"),  # cmp rsp, [rcx+0x10]
    "large": FS + bytes.fromhex("488d4424c0483b4110"),  # lea rax, [rsp-0x40]; cmp rax, [rcx+0x10]
    "relaxed": bytes.fromhex("48c7c1f8ffffff 64488b09 483b6110"),  # mov rcx, -8; mov rcx, fs:[rcx]; cmp
    "shared": bytes.fromhex("488b0d00010000 64488b09 483b6110"),  # mov rcx, [rip+0x100]; mov rcx, fs:[rcx]; cmp
}
# test rax, rax; je +6; mov eax, 0xc3c3c3c3 (no returns); ret; ret
BODY = bytes.fromhex("4885c0 7406 b8c3c3c3c3 c3 c3")
BODY_RETURNS = (10, 11)
RET = b"\xc3"
INT3 = b"\xcc"


def jump(opcode: bytes, at: int, target: int) -> bytes:
    return opcode + struct.pack("<i", target - at - len(opcode) - 4)


Code = Callable[[int, Mapping[str, int]], bytes]
"""Makes a function for its address, with the addresses of the others before it."""


def function(check: bytes = REGISTER_CHECKS["small"], body: bytes = BODY, *, calls: str = "") -> Code:
    """A function with a stack check, a body, and the code that grows the stack."""

    def make(start: int, others: Mapping[str, int]) -> bytes:
        middle = body
        if calls:
            place = start + len(check) + 6
            middle = jump(b"\xe8", place, others[calls]) + body
        grow = start + len(check) + 6 + len(middle)
        head = check
        if b"\xcc\xcc\xcc\xcc" in check:
            at = check.index(b"\x0f\x82")
            head = check[:at] + jump(b"\x0f\x82", start + at, grow) + check[at + 6 :]
        head += jump(b"\x0f\x86", start + len(check), grow)
        return head + middle + jump(b"\xe8", grow, others[MORESTACK]) + jump(b"\xe9", grow + 5, start)

    return make


def raw(code: bytes) -> Code:
    return lambda start, others: code


USUAL: dict[str, Code] = {
    MORESTACK: raw(RET),
    "main.main": function(),
    WRITE: function(REGISTER_CHECKS["large"]),
    "crypto/tls.(*Conn).Write.func1": function(),
    READ: function(),
    CLOSE: function(),
    "crypto/tls.(*Conn).Handshake": function(),
    HANDSHAKE: function(REGISTER_CHECKS["huge"]),
    "net/http.(*conn).serve": function(),
}
STACKED: dict[str, Code] = {MORESTACK: raw(RET), **{name: function(STACK_CHECKS["small"]) for name in (READ, WRITE)}}


# --- A linker ---

TEXT, RODATA, DATA = 0x401000, 0x600000, 0x800000
MAGICS = {"1.2": 0xFFFFFFFB, "1.16": 0xFFFFFFFA, "1.18": 0xFFFFFFF0, "1.20": 0xFFFFFFF1}
LAYOUTS = tuple(MAGICS)
BUILD_ID = b"action/content"
R_X86_64_RELATIVE = 8


@dataclass(frozen=True)
class Options:
    layout: str = "1.20"
    functions: Mapping[str, Code] = field(default_factory=lambda: USUAL)
    section: str = ".gopclntab"
    """Where the table is; empty: in no section of its own."""
    text_start: bool = True
    """Whether the header says where the code starts."""
    module: bool = True
    relocated: bool = False
    """Whether pointers are in relocations only."""
    sections: bool = True
    version: str = "go1.20.3"
    inline: bool = True
    build_id: bytes = BUILD_ID
    decoy: bytes = b""
    """What stands in front of the table."""
    repeat: str = ""
    """A name that the table has a second time."""


@dataclass(frozen=True)
class Made:
    content: bytes
    starts: dict[str, int]
    ends: dict[str, int]
    table: bytes


def compile_all(functions: Mapping[str, Code]) -> tuple[bytes, dict[str, int], dict[str, int]]:
    text = b""
    starts: dict[str, int] = {}
    ends: dict[str, int] = {}
    for name, make in functions.items():
        start = TEXT + len(text)
        code = make(start, starts)
        text += code + INT3 * (-len(code) % 16)
        starts[name], ends[name] = start, TEXT + len(text)
    return text, starts, ends


def table(layout: str, functions: Sequence[tuple[str, int]], end: int, text_start: int, *, relocated: bool) -> bytes:
    """The table of functions as Go's linker writes it."""
    head = struct.pack("<IBBBB", MAGICS[layout], 0, 0, 1, 8)
    count = len(functions)
    if layout == "1.2":
        at = 16 + 16 * count + 16
        rest, tab = b"", b""
        for name, start in functions:
            entry = 0 if relocated else start
            tab += struct.pack("<QQ", entry, at + len(rest))
            # A description, its name behind it, and a part of another table.
            offset = at + len(rest) + 40
            rest += struct.pack("<QI28x", entry, offset) + name.encode() + b"\0"
            rest += b"\x01\x02" * 3 + b"/vendor/"[: len(name) % 2] + b"\x05"
            rest += bytes(-len(rest) % 8)
        return head + struct.pack("<Q", count) + tab + struct.pack("<QI4x", end, at + len(rest)) + rest + bytes(64)
    names, offsets = b"\0", []
    for name, _ in functions:
        offsets.append(len(names))
        names += name.encode() + b"\0"
    names += bytes(-len(names) % 8)
    wide = layout == "1.16"
    size = 8 + 8 * (7 if wide else 8)
    cu = size + len(names)
    words = [count, 3, *([] if wide else [text_start]), size, cu, cu + 8, cu + 16, cu + 24]
    tab, rest, at = b"", b"", (16 if wide else 8) * (count + 1)
    for (_, start), name_offset in zip(functions, offsets, strict=True):
        entry = (0 if relocated else start) if wide else start - TEXT
        tab += struct.pack("<QQ" if wide else "<II", entry, at + len(rest))
        rest += struct.pack("<QI32x" if wide else "<II32x", entry, name_offset)
        rest += bytes(-len(rest) % 8)
    tab += struct.pack("<Q8x", end) if wide else struct.pack("<I4x", end - TEXT)
    return head + struct.pack(f"<{len(words)}Q", *words) + names + bytes(24) + tab + rest + bytes(64)


def link(options: Options) -> Made:
    """An executable of three segments: code, constants, data."""
    text, starts, ends = compile_all(options.functions)
    functions = sorted(starts.items(), key=lambda item: item[1])
    listed = list(functions)
    if options.repeat:
        listed = [(options.repeat if name == "main.main" else name, start) for name, start in listed]
    last = TEXT + len(text)
    made = table(options.layout, listed, last, TEXT if options.text_start else 0, relocated=options.relocated)
    note = struct.pack("<III4s", 4, len(options.build_id), 4, b"Go\0\0") + options.build_id
    note += bytes(-len(note) % 8)
    front = note + options.decoy + bytes(-len(options.decoy) % 8)
    rodata = front + made
    table_at = RODATA + len(front)

    # Data: build information, runtime.moduledata, dynamic section, relocations.
    info = golang.BUILD_INFO + bytes([8, 2 if options.inline else 0])
    if not options.version:
        info = b""
    elif options.inline:
        info = info.ljust(32, b"\0") + bytes([len(options.version)]) + options.version.encode() + b"\0"
    else:
        info += struct.pack("<QQ", DATA + 64, DATA + 64) + bytes(32)
        info += struct.pack("<QQ", DATA + 80, len(options.version)) + options.version.encode()
    module = {0: table_at, 20: TEXT, 21: last, 22: TEXT, 23: last} if options.module else {}
    data = bytearray(0x400)
    data[: len(info)] = info
    relocations = b""
    # The runtime's description isn't the only pointer to the table, nor the first.
    pointers = {DATA + 0x1F0: table_at} if options.module else {}
    pointers |= {DATA + 0x200 + 8 * index: value for index, value in module.items()}
    wide_tab = {"1.2": table_at + 16, "1.16": table_at + 64 + made_names(made) + 24}.get(options.layout)
    if options.relocated and wide_tab is not None:
        for index, (_, start) in enumerate(listed):
            pointers[wide_tab + 16 * index] = start
            at = struct.unpack_from("<Q", made, wide_tab + 16 * index + 8 - table_at)[0]
            base = table_at if options.layout == "1.2" else wide_tab
            pointers[base + at] = start
    for at, value in pointers.items():
        if options.relocated:
            relocations += struct.pack("<QQQ", at, R_X86_64_RELATIVE, value)
        else:
            data[at - DATA : at - DATA + 8] = struct.pack("<Q", value)
    dynamic = struct.pack("<QQQQQQ", 7, DATA + 0x440, 8, len(relocations), 0, 0)
    content_data = bytes(data) + dynamic.ljust(0x40, b"\0") + relocations

    segments = [(1, 5, TEXT, text), (1, 4, RODATA, rodata), (1, 6, DATA, content_data)]
    body, headers, offsets = b"", b"", {}
    for kind, flags, vaddr, content in segments:
        offset = 0x1000 + len(body)
        offsets[vaddr] = offset
        headers += struct.pack("<IIQQQQQQ", kind, flags, offset, vaddr, vaddr, len(content), len(content), 0x1000)
        body += content + bytes(-len(content) % 0x1000)
    for kind, vaddr, at, size in (
        *([(4, RODATA, 0, len(note))] if options.build_id else []),
        *([(2, DATA, 0x400, 0x40)] if options.relocated else []),
    ):
        headers += struct.pack("<IIQQQQQQ", kind, 4, offsets[vaddr] + at, vaddr + at, vaddr + at, size, size, 8)
    places = [("", 0, 0, 0), (".text", TEXT, offsets[TEXT], len(text))]
    if options.section:
        places.append((options.section, table_at, offsets[RODATA] + len(front), len(made)))
    if options.version:
        places.append((".go.buildinfo", DATA, offsets[DATA], 0x100))
    strings = b"\0".join(name.encode() for name, *_ in places) + b"\0.shstrtab\0"
    section_headers, string_at = b"", 0x1000 + len(body)
    for name, vaddr, offset, size in [*places, (".shstrtab", 0, string_at, len(strings))]:
        kind = 0 if not name else 3 if name == ".shstrtab" else 1
        where = strings.index(name.encode() + b"\0")
        section_headers += struct.pack("<IIQQQQIIQQ", where, kind, 2, vaddr, offset, size, 0, 0, 1, 0)
    count = len(section_headers) // 64 if options.sections else 0
    ident = b"\x7fELF\2\1\1".ljust(16, b"\0")
    start = string_at + len(strings)
    start += -start % 8
    elf = ident + struct.pack(
        "<HHIQQQIHHHHHH",
        2, 62, 1, TEXT, 64, start if count else 0, 0, 64, 56, len(headers) // 56, 64, count, max(count - 1, 0),
    )  # fmt: skip
    content = ((elf + headers).ljust(0x1000, b"\0") + body + strings).ljust(start, b"\0")
    return Made(content + (section_headers if count else b""), starts, ends, made)


def made_names(made: bytes) -> int:
    """Size of the names of a table of Go 1.16."""
    names, cu = struct.unpack_from("<QQ", made, 24)
    return int(cu - names)


@dataclass
class Builder:
    folder: Path
    count: int = 0

    def write(self, content: bytes) -> Image:
        self.count += 1
        path = self.folder / f"program{self.count}"
        path.write_bytes(content)
        return Image(str(path))

    def __call__(self, **changes: Any) -> tuple[Image, Made]:
        made = link(replace(Options(), **changes))
        return self.write(made.content), made


@pytest.fixture
def build(tmp_path: Path) -> Builder:
    return Builder(tmp_path)


def by_name(binary: GoBinary) -> dict[str, GoFunction]:
    assert len({f.name for f in binary.functions}) == len(binary.functions)
    return {f.name: f for f in binary.functions}


def check_usual(binary: GoBinary, made: Made) -> None:
    found = by_name(binary)
    assert binary.notes == ()
    assert set(found) == {READ, WRITE, CLOSE, HANDSHAKE}  # neither closures nor what only calls the handshake
    for name, f in found.items():
        assert (f.vaddr, f.end) == (made.starts[name], made.ends[name])
        assert f.abi is Abi.REGISTER
        assert f.g_offset is None
    assert found[READ].site_vaddr == made.starts[READ] + 4
    assert found[READ].site == f"{READ}+4 jbe, emulated"
    assert found[WRITE].site_vaddr == made.starts[WRITE] + 9
    assert found[HANDSHAKE].site_vaddr == made.starts[HANDSHAKE] + 20
    # The bytes of a return within another instruction are none.
    assert found[READ].returns == tuple(made.starts[READ] + 4 + 6 + place for place in BODY_RETURNS)


# --- The table ---


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "place",
    [
        {},
        {"section": ".data.rel.ro.gopclntab"},
        {"section": ""},
        {"section": "", "sections": False},
        {"section": "", "relocated": True},
        {"relocated": True},
        {"text_start": False},
        {"text_start": False, "relocated": True},
        {"text_start": False, "module": False},
        {"section": "", "text_start": False},
    ],
    ids=str,
)
def test_finds_the_functions_of_every_layout(build: Builder, layout: str, place: dict[str, Any]) -> None:
    image, made = build(layout=layout, **place)
    assert is_go(image)
    check_usual(analyse(image), made)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_table_of_another_program_is_only_data(build: Builder, layout: str) -> None:
    other = link(Options(layout=layout, functions={MORESTACK: raw(RET), READ: function(), "main.main": function()}))
    image, made = build(layout=layout, section="", decoy=other.table)
    check_usual(analyse(image), made)


def test_a_table_that_nothing_points_to_is_not_used(build: Builder) -> None:
    image, _ = build(section="", module=False)
    with pytest.raises(UnsupportedError, match="no table of Go functions"):
        analyse(image)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("path", ["vendor/", "example.org/program/vendor/"])
def test_vendored_packages_are_found(build: Builder, layout: str, path: str) -> None:
    package = "github.com/refraction-networking/utls"
    name = f"{path}{package}.(*UConn).Write"
    functions = {MORESTACK: raw(RET), "main.main": function(), name: function()}
    # These only end alike.
    functions |= {f"example.org/{package}.(*UConn).Write": function(), "a" + READ: function()}
    image, made = build(layout=layout, functions=functions)
    (found,) = analyse(image).functions
    assert (found.name, found.package, found.receiver, found.method) == (name, package, "UConn", "Write")
    assert found.vaddr == made.starts[name]


def test_other_packages_are_data(build: Builder) -> None:
    name = "gitlab.com/yawning/utls%2egit.(*Conn).Read"
    image, _ = build(functions={MORESTACK: raw(RET), name: function(), READ: function()})
    (found,) = analyse(image, [Package("gitlab.com/yawning/utls.git")]).functions
    assert (found.name, found.package) == (name, "gitlab.com/yawning/utls.git")


def test_a_method_that_only_leads_to_another_is_left_out(build: Builder) -> None:
    inner, outer = (
        "github.com/refraction-networking/utls.(*Conn).Read",
        "github.com/refraction-networking/utls.(*UConn).Read",
    )
    image, _ = build(functions={MORESTACK: raw(RET), inner: function(), outer: function(calls=inner)})
    binary = analyse(image)
    assert [f.name for f in binary.functions] == [inner]
    assert binary.notes == ()


def test_handshake_is_taken_where_there_is_no_other(build: Builder) -> None:
    name = "crypto/tls.(*Conn).Handshake"
    image, _ = build(functions={MORESTACK: raw(RET), name: function()})
    assert [f.name for f in analyse(image).functions] == [name]


def test_two_functions_of_one_name_are_refused(build: Builder) -> None:
    image, _ = build(repeat=READ)
    binary = analyse(image)
    assert set(by_name(binary)) == {WRITE, CLOSE, HANDSHAKE}
    assert [note for note in binary.notes if READ not in note or "several" not in note] == []
    assert binary.notes


def test_a_program_without_tls_has_no_functions(build: Builder) -> None:
    image, _ = build(functions={MORESTACK: raw(RET), "main.main": function()})
    binary = analyse(image)
    assert (binary.functions, binary.notes, binary.version) == ((), (), "go1.20.3")


# --- What kind of file it is ---


@pytest.mark.parametrize(
    "changes", [{"version": "", "section": ""}, {"build_id": b"", "section": ""}, {"build_id": b"", "version": ""}]
)
def test_one_mark_is_enough(build: Builder, changes: dict[str, Any]) -> None:
    assert is_go(build(**changes)[0])


def test_other_programs_are_not_go() -> None:
    image = Image(shutil.which("bash") or "")
    assert not is_go(image)
    with pytest.raises(UnsupportedError, match="is not a Go program"):
        analyse(image)


@pytest.mark.parametrize("inline", [True, False])
@pytest.mark.parametrize("version", ["go1.22.10", "devel go1.23-5e6a4f Mon", "go1.9"])
def test_version(build: Builder, version: str, inline: bool) -> None:
    binary = analyse(build(version=version, inline=inline)[0])
    assert binary.version == version
    assert binary.release == tuple(map(int, re.findall(r"(\d+)\.(\d+)", version)[0]))
    assert binary.build_id == BUILD_ID.decode()


@pytest.mark.parametrize(
    ("layout", "release"), [("1.2", (1, 2)), ("1.16", (1, 16)), ("1.18", (1, 18)), ("1.20", (1, 20))]
)
def test_without_a_version_the_layout_says_the_oldest(build: Builder, layout: str, release: tuple[int, int]) -> None:
    binary = analyse(build(layout=layout, version="")[0])
    assert (binary.version, binary.release) == ("", release)


# --- From functions to instructions ---


def only(build: Builder, code: Code, **changes: Any) -> tuple[GoBinary, Made]:
    image, made = build(functions={MORESTACK: raw(RET), READ: code, "main.main": function()}, **changes)
    return analyse(image), made


@pytest.mark.parametrize(
    ("form", "place", "g_offset"), [("small", 13, -8), ("large", 18, -8), ("relaxed", 15, -8), ("shared", 15, None)]
)
def test_stack_abi(build: Builder, form: str, place: int, g_offset: int | None) -> None:
    """What the code shows counts, whatever the version."""
    binary, made = only(build, function(STACK_CHECKS[form]))
    (found,) = binary.functions
    assert (found.abi, found.site_vaddr, found.g_offset) == (Abi.STACK, made.starts[READ] + place, g_offset)
    assert found.site.endswith("jbe, emulated")


@pytest.mark.parametrize(
    "check",
    [
        "483b6610",  # cmp rsp, [rsi+0x10]: not the goroutine
        "493b6618",  # cmp rsp, [r14+0x18]: the limit of C code's stack
        "4c8d6c24c04d3b6e10",  # another register
        "50493b6610",  # push rax
        "",
    ],
)
def test_at_any_other_beginning_the_first_instruction_is_taken(build: Builder, check: str) -> None:
    binary, made = only(build, function(bytes.fromhex(check)))
    (found,) = binary.functions
    assert found.site_vaddr == found.vaddr == made.starts[READ]
    assert found.site.endswith("single-stepped")
    assert found.abi is Abi.REGISTER


@pytest.mark.parametrize(
    "grow",
    [
        lambda start, at, others: (
            jump(b"\xe8", at, others[MORESTACK]) + jump(b"\xe9", at + 5, start + 4)
        ),  # behind the check
        lambda start, at, others: jump(b"\xe9", at, start),  # calls nothing
        lambda start, at, others: jump(b"\xe8", at, others[MORESTACK]) + RET,
    ],
)
def test_the_check_counts_only_when_the_function_starts_again(
    build: Builder, grow: Callable[[int, int, Mapping[str, int]], bytes]
) -> None:
    def make(start: int, others: Mapping[str, int]) -> bytes:
        at = start + 10 + len(BODY)
        return REGISTER_CHECKS["small"] + jump(b"\x0f\x86", start + 4, at) + BODY + grow(start, at, others)

    binary, made = only(build, make)
    (found,) = binary.functions
    assert found.site_vaddr == made.starts[READ]


@pytest.mark.parametrize(
    ("version", "layout", "abi"),
    [
        ("go1.15.15", "1.2", Abi.STACK),
        ("go1.16.3", "1.16", Abi.STACK),
        ("go1.17", "1.16", Abi.REGISTER),
        ("go1.17 X:noregabi", "1.16", Abi.STACK),
        ("", "1.2", Abi.STACK),
        ("", "1.18", Abi.REGISTER),
        ("", "1.16", None),
    ],
)
def test_the_version_decides_where_the_code_does_not_show(
    build: Builder, version: str, layout: str, abi: Abi | None
) -> None:
    binary, _ = only(build, function(b""), version=version, layout=layout)
    assert [f.abi for f in binary.functions] == ([abi] if abi else [])
    assert ("calling convention is unknown" in " ".join(binary.notes)) == (abi is None)


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"\x06" + RET, "can't be decoded"),  # push es: not in 64-bit code
        (
            bytes.fromhex("48b8"),
            "it never returns|can't be decoded|leads into",
        ),  # an instruction that swallows what follows
        (bytes.fromhex("cb c3"), "returns by retf"),
        (bytes.fromhex("ebfe"), "never returns"),
        (bytes.fromhex("e900100000 c3"), "leaves it"),
        (bytes.fromhex("0f8400f0ffff c3"), "leaves it"),
        (bytes.fromhex("eb01 b8c3c3c3c3 c3"), "leads into an instruction"),
    ],
)
def test_code_that_is_not_understood_is_refused(build: Builder, body: bytes, why: str) -> None:
    binary, _ = only(build, function(body=body))
    assert binary.functions == ()
    (note,) = binary.notes
    assert note.startswith(READ)
    assert re.search(why, note)


def test_a_start_that_is_only_likely_needs_the_check(build: Builder) -> None:
    """Without both the header's word and the runtime's description it could be a function's middle."""
    binary, _ = only(build, function(b""), text_start=False, module=False)
    assert binary.functions == ()
    assert "nothing proves" in binary.notes[0]


def test_functions_must_lie_in_code(build: Builder) -> None:
    made = link(Options())
    at = made.content.index(made.table) + 24  # where the code starts
    image = build.write(made.content[:at] + struct.pack("<Q", RODATA) + made.content[at + 8 :])
    binary = analyse(image)
    assert binary.functions == ()
    assert len(binary.notes) == 4


# --- Symbols from another copy ---


def without_names(made: Made) -> bytes:
    at = made.content.index(made.table)
    return made.content[:at] + bytes(8) + made.content[at + 8 :]


def test_symbols_of_a_copy(build: Builder) -> None:
    copy, made = build()
    image = build.write(without_names(made))
    with pytest.raises(UnsupportedError, match="no table"):
        analyse(image)
    check_usual(analyse(image, symbols=copy), made)


def test_symbols_of_another_build_are_refused(build: Builder) -> None:
    image, _ = build()
    other, _ = build(build_id=b"another")
    with pytest.raises(UnsupportedError, match="build IDs differ"):
        analyse(image, symbols=other)
    nameless, _ = build(build_id=b"")
    with pytest.raises(UnsupportedError, match="build IDs differ"):
        analyse(nameless, symbols=nameless)


def test_symbols_must_be_of_the_same_code(build: Builder) -> None:
    image, _ = build()
    other, _ = build(functions=USUAL | {READ: function(body=BODY.replace(b"\xb8", b"\xb9"))})
    with pytest.raises(UnsupportedError, match="has other code"):
        analyse(image, symbols=other)


# --- Broken files ---

EXTREMES = (0, 1, 0x7F, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 1 << 40, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)
ANY_LAYOUT = st.sampled_from(LAYOUTS)
ANY_PLACE = st.sampled_from(
    [{}, {"section": ""}, {"relocated": True, "section": ""}, {"text_start": False}, {"sections": False, "section": ""}]
)


def survives(image_of: Callable[[], Image]) -> None:
    """Whatever a file holds: an answer whose every place is in code, or an error of ours."""
    try:
        image = image_of()
        is_go(image)
        go_build_id(image)
        binary = analyse(image)
    except (UnsupportedError, AttachError):
        return
    for f in binary.functions:
        for place in (f.site_vaddr, *f.returns):
            assert f.vaddr <= place < f.end
            image.file_offset(place)
        assert {image.code(place, 1) for place in f.returns} <= {RET, b"\xc2", b"\xf2", b"\xf3"}


SETTINGS = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@SETTINGS
@given(ANY_LAYOUT, ANY_PLACE, st.data())
def test_broken_words(build: Builder, layout: str, place: dict[str, Any], data: st.DataObject) -> None:
    made = link(Options(layout=layout, **place))
    content = bytearray(made.content)
    table_at = made.content.index(made.table)
    regions = [(0, 0x240), (table_at, 0x60), (table_at, len(made.table)), (len(content) - 0x1000, 0x1000)]
    for _ in range(data.draw(st.integers(1, 4))):
        start, size = data.draw(st.sampled_from(regions))
        at = start + data.draw(st.integers(0, size // 4 - 2)) * 4
        content[at : at + 8] = struct.pack("<Q", data.draw(st.sampled_from(EXTREMES) | st.integers(0, (1 << 64) - 1)))
    survives(lambda: build.write(bytes(content)))


@SETTINGS
@given(ANY_LAYOUT, ANY_PLACE, st.data())
def test_broken_bytes(build: Builder, layout: str, place: dict[str, Any], data: st.DataObject) -> None:
    content = bytearray(link(Options(layout=layout, **place)).content)
    for at, value in data.draw(st.lists(st.tuples(st.integers(0, len(content) - 1), st.integers(0, 255)), max_size=20)):
        content[at] = value
    survives(lambda: build.write(bytes(content)))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_cut_files(build: Builder, layout: str) -> None:
    content = link(Options(layout=layout)).content
    for size in range(0, len(content), 97):
        survives(lambda size=size: build.write(content[:size]))  # type: ignore[misc]


def test_a_file_full_of_likely_places_is_given_up(build: Builder) -> None:
    """Each place looks like a table, and each of them would need a search of its own."""
    _, made = build()
    image, _ = build(section="", module=False, decoy=(made.table[:72] * 40_000))
    start = time.monotonic()
    with pytest.raises(UnsupportedError):
        analyse(image)
    assert time.monotonic() - start < 60


def test_a_file_that_becomes_shorter(build: Builder) -> None:
    made = link(Options(decoy=bytes(40 << 20)))  # so long that it isn't taken into memory
    image = build.write(made.content)
    with open(image.path, "r+b") as file:
        file.truncate(0x3000)
    with pytest.raises(UnsupportedError):
        analyse(image)
    image._file.close()


def test_many_functions_of_one_name_are_given_up(build: Builder) -> None:
    functions = {MORESTACK: raw(RET)} | {f"p{number}/vendor/{READ}": raw(RET) for number in range(300)}
    image, _ = build(functions=functions)
    with pytest.raises(UnsupportedError, match="too many TLS functions"):
        analyse(image)


# --- Real programs ---


def built(test: Callable[..., None]) -> Callable[..., None]:
    """Mark a test of programs that are compiled when they are first needed, which may take minutes."""
    marked: Callable[..., None] = pytest.mark.live(pytest.mark.timeout(1200)(test))
    return marked


@pytest.fixture(scope="module")
def programs() -> dict[str, GoProgram]:
    return {program.name: program for program in go_programs()}


def program(programs: Mapping[str, GoProgram], name: str) -> Path:
    found = programs[name]
    if found.path is None:
        pytest.skip(found.missing)
    return found.path


REAL = [
    ("go1.15-stripped", Abi.STACK),
    ("go1.19-stripped", Abi.REGISTER),
    ("go1.22-stripped-pie", Abi.REGISTER),
    ("go1.22-stripped-pie-external", Abi.REGISTER),
    ("newest", Abi.REGISTER),
    ("newest-stripped", Abi.REGISTER),
    ("newest-stripped-pie", Abi.REGISTER),
    ("newest-stripped-pie-external", Abi.REGISTER),
]


@built
@pytest.mark.parametrize(("name", "abi"), REAL)
def test_real_programs(programs: Mapping[str, GoProgram], name: str, abi: Abi) -> None:
    image = Image(str(program(programs, name)))
    start = time.monotonic()
    binary = analyse(image)
    assert time.monotonic() - start < 5
    assert binary.version == programs[name].version
    assert binary.notes == ()
    handshake = "Handshake" if name.startswith("go1.15") else "handshakeContext"
    assert {f.method for f in binary.functions} == {"Read", "Write", "Close", "clientHandshake", handshake}
    for f in binary.functions:
        assert (f.package, f.abi, f.site.split()[1]) == ("crypto/tls", abi, "jbe,")
        assert f.g_offset == (-8 if abi is Abi.STACK else None)
        text = disassembled(image.path, f.vaddr, f.end)
        assert f.returns == tuple(at for at, instruction in text if instruction == "ret")
        assert (f.site_vaddr, "jbe") in [(at, instruction.split()[0]) for at, instruction in text]


def disassembled(path: str, start: int, end: int) -> list[tuple[int, str]]:
    if shutil.which("objdump") is None:
        pytest.skip("objdump is not installed")
    command = ["objdump", "-d", "--no-show-raw-insn", f"--start-address={start}", f"--stop-address={end}", path]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return [(int(at, 16), text.strip()) for at, text in re.findall(r"^\s+([0-9a-f]+):\s+(.*)$", lines, re.MULTILINE)]


@built
def test_the_symbol_table_agrees(programs: Mapping[str, GoProgram]) -> None:
    path = program(programs, "newest")
    with path.open("rb") as file:
        table: Any = ELFFile(file).get_section_by_name(".symtab")
        symbols = {s.name: (s["st_value"], s["st_size"]) for s in table.iter_symbols()}
    for f in analyse(Image(str(path))).functions:
        start, size = symbols[f.name]
        assert f.vaddr == start
        assert size <= f.end - start < size + 64  # the table's ranges go on to the next function


@built
def test_symbols_of_a_real_copy(programs: Mapping[str, GoProgram], tmp_path: Path) -> None:
    path = program(programs, "newest")
    if shutil.which("strip") is None:
        pytest.skip("strip is not installed")
    stripped = tmp_path / "stripped"
    subprocess.run(["strip", "-o", stripped, path], check=True)
    whole = analyse(Image(str(path)))
    through = analyse(Image(str(stripped)), symbols=Image(str(path)))
    # The symbols' sizes leave out what fills the gap to the next function.
    assert [(f.name, f.site_vaddr, f.returns) for f in sorted(through.functions, key=lambda f: f.vaddr)] == [
        (f.name, f.site_vaddr, f.returns) for f in whole.functions
    ]
    other = program(programs, "newest-stripped")
    with pytest.raises(UnsupportedError, match="build IDs differ"):
        analyse(Image(str(other)), symbols=Image(str(path)))
