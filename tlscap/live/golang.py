"""Where to put the probes of a Go program: its functions to instructions, with or without symbols.

The Go runtime needs the name and the range of every function to walk stacks, so the table of them, the
*pclntab*, is in every Go executable, also a stripped one.  Four layouts exist (``Go12PCLnTabMagic`` and the
others of internal/abi/symtab.go; written by cmd/link/internal/ld/pcln.go).  Names are looked up by searching,
so a large program costs no more than reading its table once.

A return probe of the kernel would break a goroutine, whose stack moves.  Every RET is probed instead.  They are
found by decoding the whole function: one that doesn't decode to its last byte, or jumps out of itself,
is refused.  At the entry the first instructions compare the stack pointer with the stack's limit.  The jump
behind them is a cheap place (see `sites`): nothing has been changed before it.  It is passed a second
time when the stack had to grow, since the function is then called again from its start.
"""

from __future__ import annotations

import enum
import platform
import re
import struct
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice, takewhile
from typing import Any

from tlscap.errors import AttachError, UnsupportedError
from tlscap.live.sites import SHF_COMPRESSED, Image, _disassembler, _parsing

PF_X, PF_W = 1, 2
DT_RELA, DT_RELASZ = 7, 8
R_RELATIVE = {"x86_64": 8, "aarch64": 1027}
QUANTUM = {"x86_64": 1, "aarch64": 4}  # of instruction addresses; a field of the table's header
REGISTER_ABI_SINCE = {"x86_64": (1, 17), "aarch64": (1, 18)}
BUILD_INFO = b"\xff Go buildinf:"  # debug/buildinfo/buildinfo.go
BUILD_INFO_ALIGN, BUILD_INFO_SIZE = 16, 32
NT_GO_BUILD_ID = 4  # of the owner "Go"
SECTIONS = (".gopclntab", ".data.rel.ro.gopclntab")
"""Where the linker puts the table, the second in position-independent programs of Go 1.21 to 1.24.

The C linker merges it into other sections.
"""
MARKS = (*SECTIONS, ".go.buildinfo", ".note.go.buildid")
MAGIC_TAIL = b"\xff\xff\xff\0\0"

# What a file may say of itself, and may cost.
MAX_FUNCTIONS = 1 << 24
MAX_CODE = 1 << 16  # bytes of one function: the largest of crypto/tls has 6000
MAX_FOUND = 256  # functions
MAX_TABLES = 16  # that may belong to programs carried as data
MAX_NOTES = 1 << 16
MAX_DYNAMIC = 1 << 16
MAX_RELOCATIONS = 64 << 20  # bytes
MAX_SEARCH = 4 << 30  # bytes looked at, in all: a few seconds
MAX_HITS = 1 << 14
MAX_TEXT = 256  # a version, or the path in front of a vendored package
MAX_MODULE = 40  # words of runtime.moduledata up to where the code starts
FEW = 32  # values that are looked for one by one
CHUNK = 4 << 20


class Abi(enum.Enum):
    """Where a function's arguments and results are (abi-internal.md of Go's compiler).

    ``REGISTER``: x86-64 passes integers in RAX, RBX, RCX, RDI, RSI, R8 to R11, results too, and has g in R14.
    arm64 has R0 to R15, and g in R28.  ``STACK``: above the return address, the results behind the arguments; g is
    in thread-local storage.
    """

    REGISTER = "register"
    STACK = "stack"


@dataclass(frozen=True, slots=True)
class Package:
    """A copy of crypto/tls: its import path and the types that have its methods."""

    path: str
    receivers: tuple[str, ...] = ("Conn",)


PACKAGES = (
    Package("crypto/tls"),
    Package("github.com/refraction-networking/utls", ("Conn", "UConn")),
    Package("github.com/bogdanfinn/utls", ("Conn", "UConn")),
    Package("github.com/sagernet/utls", ("Conn", "UConn")),
    Package("github.com/metacubex/utls", ("Conn", "UConn")),
    Package("github.com/xtls/reality"),
    Package("github.com/zmap/zcrypto/tls"),
)
METHODS = ("Read", "Write", "Close", "clientHandshake", "serverHandshake", "handshakeContext", "Handshake")
NOT_BESIDE = {"Handshake": "handshakeContext"}
"""Not probed beside the other: since Go 1.17 it only calls that one."""


@dataclass(frozen=True, slots=True)
class Range:
    """A function as the table has it: the addresses it is linked to."""

    name: str
    start: int
    end: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GoFunction:
    """One function, with every place to probe proven.  All addresses are those the file is linked to."""

    name: str
    """As in the file, with the path in front of a vendored package."""
    package: str
    """As in `PACKAGES`."""
    receiver: str
    """Type of the first argument.  A ``*UConn`` points to a struct whose first word is the ``*Conn``."""
    method: str
    vaddr: int
    end: int
    site_vaddr: int
    site: str
    """Which instruction was taken for the entry and what it costs, for people."""
    returns: tuple[int, ...]
    abi: Abi
    g_offset: int | None = None
    """Where thread-local storage has g, from the base of FS on, as the stack check reads it.

    None: in a register, or where only the dynamic linker knows.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class GoBinary:
    """What an executable or shared object of Go offers.  Without crypto/tls it has no functions."""

    version: str
    """Such as "go1.22.10"; empty when the file doesn't say."""
    release: tuple[int, int]
    """Such as (1, 22).  Without a version the oldest one that wrote this layout of the table."""
    build_id: str
    functions: tuple[GoFunction, ...]
    notes: tuple[str, ...]
    """Functions that are there but were refused, and why."""


@dataclass(frozen=True, slots=True)
class _Layout:
    since: tuple[int, int]
    wide: bool
    """Entries are addresses, of 8 bytes; else 4 bytes that count from the start of the code."""
    regions: bool
    """Names and functions are regions of their own, which the header locates."""


_LAYOUTS = {
    0xFB: _Layout((1, 2), wide=True, regions=False),
    0xFA: _Layout((1, 16), wide=True, regions=True),
    0xF0: _Layout((1, 18), wide=False, regions=True),
    0xF1: _Layout((1, 20), wide=False, regions=True),
}
"""By the lowest byte of the magic; the others are set."""


@dataclass(frozen=True, slots=True)
class _Segment:
    vaddr: int
    offset: int
    size: int
    flags: int


class _Memory:
    """What a file puts into memory, by address, as far as the file is that long.

    A position-independent program is read as the dynamic linker leaves it at base 0: pointers may be in the
    relocations only.
    """

    def __init__(self, image: Image) -> None:
        self.image = image
        self.path = image.path
        with _parsing(image.path):
            elf: Any = image.elf
            # Only headers: pyelftools' objects for segments look through all sections.
            headers = [elf._get_segment_header(index) for index in range(elf.num_segments())]
            whole = [h for h in headers if h["p_offset"] + h["p_filesz"] <= image._size]
            self.segments = [
                _Segment(h["p_vaddr"], h["p_offset"], h["p_filesz"], h["p_flags"])
                for h in whole
                if h["p_type"] == "PT_LOAD" and h["p_vaddr"] + h["p_filesz"] < 1 << 63
            ]
            self._notes = [
                (h["p_offset"], h["p_filesz"]) for h in whole if h["p_type"] == "PT_NOTE" and h["p_filesz"] <= MAX_NOTES
            ]
            self._dynamic = [
                (h["p_vaddr"], h["p_filesz"])
                for h in whole
                if h["p_type"] == "PT_DYNAMIC" and h["p_filesz"] <= MAX_DYNAMIC and h["p_filesz"] % 16 == 0
            ]
        self._relative = R_RELATIVE[platform.machine()]
        self._relocations: bytes | None = None
        self._left = MAX_SEARCH

    def section(self, name: str) -> tuple[int, int]:
        """Address and size of a section; (0, 0) when there is none that is loaded."""
        if self.image._sections:
            with _parsing(self.path):
                found: Any = self.image.elf.get_section_by_name(name)
                if (
                    found is not None
                    and found["sh_type"] != "SHT_NOBITS"
                    and not found["sh_flags"] & SHF_COMPRESSED
                    and self.available(found["sh_addr"]) >= found["sh_size"] > 0
                ):
                    return found["sh_addr"], found["sh_size"]
        return 0, 0

    def available(self, vaddr: int) -> int:
        """How many bytes the file has from an address on."""
        return max((s.vaddr + s.size - vaddr for s in self.segments if s.vaddr <= vaddr < s.vaddr + s.size), default=0)

    def read(self, vaddr: int, size: int) -> bytes:
        for s in self.segments:
            if s.vaddr <= vaddr and vaddr + size <= s.vaddr + s.size:
                return self._at(s.offset + vaddr - s.vaddr, size)
        raise UnsupportedError(f"{self.path}: nothing is loaded at {vaddr:#x}")

    def _at(self, offset: int, size: int) -> bytes:
        with _parsing(self.path):
            self.image._file.seek(offset)
            text = bytes(self.image._file.read(size))
            if len(text) != size:
                raise UnsupportedError(f"{self.path} has become shorter")
            return text

    def spend(self, size: int) -> None:
        """Count what is searched: a file can be made so that every place looks right."""
        self._left -= size
        if self._left < 0:
            raise UnsupportedError(f"{self.path}: looking for its functions would take too long")

    def word(self, vaddr: int) -> int:
        """A pointer."""
        (value,) = struct.unpack("<Q", self.read(vaddr, 8))
        return self._relocated(vaddr, value)

    def _relocated(self, vaddr: int, value: int) -> int:
        at = self._find_relocation(struct.pack("<QQ", vaddr, self._relative), 0)
        return struct.unpack_from("<Q", self.relocations, at + 16)[0] if at >= 0 else value

    def pointers_to(self, vaddr: int) -> Iterator[int]:
        """Addresses of the pointers with this value: those in relocations, then what may be one in data."""
        pattern = struct.pack("<QQ", self._relative, vaddr)
        at = self._find_relocation(pattern, 8)
        while at >= 0:
            yield struct.unpack_from("<Q", self.relocations, at)[0]
            at = self._find_relocation(pattern, 8, at + 9)
        data = sorted((s for s in self.segments if not s.flags & PF_X), key=lambda s: not s.flags & PF_W)
        for s in data:
            for at, _ in self.search(s.vaddr, s.size, [struct.pack("<Q", vaddr)]):
                if at % 8 == 0:
                    yield at

    def _find_relocation(self, pattern: bytes, place: int, start: int = 0) -> int:
        """Where in `relocations` the first Elf64_Rela with these bytes at ``place`` is, or -1."""
        at = self.relocations.find(pattern, start)
        while at >= 0 and at % 24 != place:
            at = self.relocations.find(pattern, at + 1)
        self.spend((at if at >= 0 else len(self.relocations)) - start)
        return at - place if at >= 0 else -1

    @property
    def relocations(self) -> bytes:
        """The dynamic relocations: Elf64_Rela of 24 bytes, offset, type, addend."""
        if self._relocations is None:
            self._relocations = self._read_relocations()
        return self._relocations

    def _read_relocations(self) -> bytes:
        for start, size in self._dynamic:
            if self.available(start) < size:
                continue
            # Behind the tag 0 there may be room for more.
            used = takewhile(lambda tag: tag[0], struct.iter_unpack("<QQ", self.read(start, size)))
            tags = dict(used)
            table, length = tags.get(DT_RELA, 0), tags.get(DT_RELASZ, 0)
            if 0 < length <= min(self.available(table), MAX_RELOCATIONS):
                return self.read(table, length - length % 24)
        return b""

    def search(self, vaddr: int, size: int, patterns: Sequence[bytes]) -> Iterator[tuple[int, bytes]]:
        """Every place of one of the patterns, and which; bounded in what is read and in what is found."""
        longest = max(map(len, patterns))
        hits = 0
        for at in range(0, size, CHUNK):
            piece = self.read(vaddr + at, min(CHUNK + longest - 1, size - at))
            self.spend(len(piece) * len(patterns))
            for pattern in patterns:
                end = CHUNK + len(pattern) - 1
                found = piece.find(pattern, 0, end)
                while found >= 0:
                    yield vaddr + at + found, pattern
                    hits += 1
                    if hits > MAX_HITS:
                        raise UnsupportedError(f"{self.path}: too many places look like what is searched for")
                    found = piece.find(pattern, found + 1, end)

    def search_words(self, vaddr: int, size: int, values: Collection[bytes]) -> Iterator[tuple[int, bytes]]:
        """Every place of one of these words of 4 bytes that is a multiple of 4 from the start on."""
        if len(values) <= FEW:
            yield from ((at, value) for at, value in self.search(vaddr, size, list(values)) if (at - vaddr) % 4 == 0)
            return
        wanted = {int.from_bytes(value, "little"): value for value in values}
        for at in range(0, size, CHUNK):
            piece = self.read(vaddr + at, min(CHUNK, size - at) & ~3)
            self.spend(len(piece) * FEW)
            for index, (number,) in enumerate(struct.iter_unpack("<I", piece)):
                if number in wanted:
                    yield vaddr + at + 4 * index, wanted[number]

    def notes(self) -> Iterator[tuple[bytes, int, bytes]]:
        """Owner, type and content of each note."""
        for offset, size in self._notes:
            text, at = self._at(offset, size), 0
            while at + 12 <= len(text):
                name_size, content_size, kind = struct.unpack_from("<III", text, at)
                name = at + 12
                content = name + (name_size + 3 & ~3)
                yield text[name : name + name_size], kind, text[content : content + content_size]
                at = content + (content_size + 3 & ~3)


# --- What kind of file it is ---


def is_go(image: Image) -> bool:
    """Whether a file was linked by Go's linker.  Reads headers, notes and at most 64 KiB."""
    memory = _Memory(image)
    return (
        any(memory.section(name)[1] for name in MARKS) or bool(_go_build_id(memory)) or _build_info(memory) is not None
    )


def go_build_id(image: Image) -> str:
    """What ``go tool buildid`` prints; empty when there is none."""
    return _go_build_id(_Memory(image))


def _go_build_id(memory: _Memory) -> str:
    ids = (content for owner, kind, content in memory.notes() if (owner, kind) == (b"Go\0\0", NT_GO_BUILD_ID))
    return next(ids, b"").rstrip(b"\0").decode("ascii", "replace")


def _build_info(memory: _Memory) -> int | None:
    """Address of the build information: a section of its own, or early in the first writable segment."""
    start, size = memory.section(".go.buildinfo")
    if not size:
        start, size = next(((s.vaddr, s.size) for s in memory.segments if s.flags & PF_W), (0, 0))
    if not size:
        return None
    for at, _ in memory.search(start, min(size, 1 << 16), [BUILD_INFO]):
        if at % BUILD_INFO_ALIGN == 0 and memory.available(at) >= BUILD_INFO_SIZE:
            return at
    return None


def _version(memory: _Memory) -> str:
    """The Go version that the build information names: inline since Go 1.18, before that through pointers."""
    at = _build_info(memory)
    if at is None:
        return ""
    pointer_size, flags = memory.read(at + len(BUILD_INFO), 2)
    try:
        if flags & 2:
            head = memory.read(at + BUILD_INFO_SIZE, min(MAX_TEXT + 2, memory.available(at + BUILD_INFO_SIZE)))
            # The length as a varint of one or two bytes: no version is longer.
            length, start = (head[0], 1) if head[0] < 0x80 else (head[0] & 0x7F | head[1] << 7, 2)
            text = head[start : start + length]
        elif pointer_size == 8 and not flags & 1:
            string = memory.word(at + 16)
            length = memory.word(string + 8)
            text = memory.read(memory.word(string), length) if length <= MAX_TEXT else b""
        else:
            text = b""
    except (UnsupportedError, IndexError):
        return ""
    return text.decode() if text.isascii() and text.decode().isprintable() else ""


def _release(version: str) -> tuple[int, int] | None:
    found = re.search(r"\bgo(\d{1,3})\.(\d{1,3})", version)
    return (int(found[1]), int(found[2])) if found else None


# --- The table of functions ---


@dataclass(frozen=True, slots=True)
class _Table:
    """A pclntab, its header checked.  Addresses are absolute."""

    memory: _Memory
    layout: _Layout
    vaddr: int
    count: int
    names: int
    names_size: int
    base: int
    """What the offsets of functions count from."""
    functab: int
    text: int
    """What entries count from, as the header says: since Go 1.27 it is 0."""

    def entry(self, index: int) -> tuple[int, int]:
        """Where a function starts, and the offset of its description.  The one past the last has only a start."""
        if self.layout.wide:
            at = self.functab + 16 * index
            start, offset = struct.unpack("<QQ", self.memory.read(at, 16))
            # Not every linker puts the address into the table too.
            return start or self.memory.word(at), offset
        start, offset = struct.unpack("<II", self.memory.read(self.functab + 8 * index, 8))
        return start, offset

    def last(self) -> int:
        """Where the last function ends."""
        at = self.functab + (16 if self.layout.wide else 8) * self.count
        if self.layout.wide:
            return self.memory.word(at)
        return int(struct.unpack("<I", self.memory.read(at, 4))[0])

    def find(self, start: int, offset: int) -> tuple[int, int] | None:
        """The range of the function that starts there, if its description is at that offset."""
        low, high = 0, self.count
        while low < high:
            middle = (low + high) // 2
            if self.entry(middle)[0] < start:
                low = middle + 1
            else:
                high = middle
        if low == self.count or self.entry(low) != (start, offset):
            return None
        end = self.entry(low + 1)[0] if low + 1 < self.count else self.last()
        return (start, end) if start < end else None


def _table_at(memory: _Memory, vaddr: int) -> _Table | None:
    """The table at an address, or None when no usable header is there."""
    limit = memory.available(vaddr)
    if limit < 72:
        return None
    head = memory.read(vaddr, 72)
    layout = _LAYOUTS.get(head[0])
    if layout is None or head[1:6] != MAGIC_TAIL or head[6:8] != bytes([QUANTUM[platform.machine()], 8]):
        return None
    words = struct.unpack_from("<8Q", head, 8)
    count = words[0]
    if not layout.regions:
        names = base = 0
        functab = 16
        names_size = limit
    else:
        names, cu, _, _, base = words[2:7] if layout.wide else words[3:8]
        functab, names_size = base, cu - names
        if not 0 < names < cu <= limit:
            return None
    # One entry more than functions, the last of them short.
    if not 0 < count <= MAX_FUNCTIONS or functab + (count + 1) * (16 if layout.wide else 8) > limit:
        return None
    return _Table(
        memory=memory,
        layout=layout,
        vaddr=vaddr,
        count=count,
        names=vaddr + names,
        names_size=names_size,
        base=vaddr + base,
        functab=vaddr + functab,
        text=memory.word(vaddr + 24) if not layout.wide else 0,
    )


def _module_text(table: _Table) -> int | None:
    """Where Go's code starts, from the runtime's own description of the module (``runtime.moduledata``).

    It begins with a pointer to the table.  Further on are, one behind the other, ``minpc``, ``maxpc`` and ``text``: the
    place has moved between versions, so the three words are recognised by what the table says of the first two.
    """
    memory = table.memory
    first, last = table.entry(0)[0], table.last()
    for at in memory.pointers_to(table.vaddr):
        if memory.available(at) < 8 * MAX_MODULE:
            continue
        words = [memory.word(at + 8 * index) for index in range(MAX_MODULE)]
        for low, high, text in zip(words, words[1:], words[2:], strict=False):
            if (low, high) == ((first, last) if table.layout.wide else (text + first, text + last)) and text:
                return text
    return None


def _find_table(memory: _Memory) -> tuple[_Table, int, bool]:
    """The table of functions, what its entries count from, and whether that is proven.

    Without a section of its own it is searched for.  A program may carry another as data, so then the
    runtime must point to it.
    """
    for name in SECTIONS:
        start, size = memory.section(name)
        table = _table_at(memory, start) if size else None
        if table is not None:
            if table.layout.wide:
                return table, 0, True
            text = table.text or _module_text(table)
            if text:
                return table, text, True
            text, size = memory.section(".text")
            if size:
                return table, text, False
    for table in islice(_search_tables(memory), MAX_TABLES):
        found = _module_text(table)
        if found is not None:
            return table, 0 if table.layout.wide else found, True
    raise UnsupportedError(f"{memory.path} has no table of Go functions that can be read")


def _search_tables(memory: _Memory) -> Iterator[_Table]:
    for s in sorted(memory.segments, key=lambda s: s.flags & PF_X):
        for at, _ in memory.search(s.vaddr, s.size, [MAGIC_TAIL + bytes([QUANTUM[platform.machine()], 8])]):
            table = _table_at(memory, at - 1) if at % 8 == 1 else None
            if table is not None:
                yield table


def _look_up(table: _Table, text: int, names: Collection[str]) -> list[Range]:
    """The functions of these names, or of these names with a path that ends in ``vendor/`` in front."""
    memory, layout = table.memory, table.layout
    size = 16 if layout.wide else 8  # of an entry
    start = table.functab + size * table.count + size // 2
    if layout.regions:
        end = table.base + table.entry(table.count - 1)[1] + size
    else:
        # Names and functions are mixed; those of files follow.  Where is said behind the functions.
        end = table.vaddr + struct.unpack("<I", memory.read(start, 4))[0]
    start -= (start - table.base) % 4
    end = min(end, start + memory.available(start))
    called = _find_names(table, (start, end), names)
    if not called or end <= start:
        return []
    found: list[Range] = []
    head = size // 2  # a function's description is its start, and then the offset of its name
    for at, word in memory.search_words(start, end - start, called):
        if at - head < start:
            continue
        entry = memory.word(at - 8) if layout.wide else struct.unpack("<I", memory.read(at - 4, 4))[0]
        bounds = table.find(entry, at - head - table.base)
        if bounds is not None:
            found.append(Range(called[word], text + bounds[0], text + bounds[1]))
        if len(found) > MAX_FOUND:
            raise UnsupportedError(f"{memory.path} has too many TLS functions")
    return found


def _find_names(table: _Table, mixed: tuple[int, int], names: Collection[str]) -> dict[bytes, str]:
    """The names that are in the table, by their offsets as a function's description has them."""
    memory, regions = table.memory, table.layout.regions
    start, end = (table.names, table.names + table.names_size) if regions else mixed
    # What all names of a package begin with is searched for, not each name.
    heads = sorted({name.encode().partition(b".(*")[0] + b".(*" for name in names})
    called: dict[bytes, str] = {}
    for at, head in memory.search(start, end - start, heads):
        rest = memory.read(at + len(head), min(MAX_TEXT, end - at - len(head)))
        tail, found, _ = rest.partition(b"\0")
        name = head + tail
        if not found or not name.isascii() or name.decode() not in names:
            continue
        before = memory.read(max(at - MAX_TEXT, start), min(MAX_TEXT, at - start))
        for prefix in _prefixes(before, regions=regions):
            offset = at - len(prefix) - (table.names if regions else table.vaddr)
            called[struct.pack("<I", offset & 0xFFFFFFFF)] = (prefix + name).decode()
    return called


def _prefixes(before: bytes, *, regions: bool) -> Iterable[bytes]:
    """What may belong to a name in front of the part that was found: nothing, or the path of a vendoring package."""
    if regions and before[-1:] in (b"", b"\0"):
        return (b"",)
    path = re.search(rb"[!-~]*$", before)
    run = path[0] if path else b""
    vendored = run.endswith(b"/vendor/") or run == b"vendor/"
    if regions:
        return (run,) if vendored and before[: -len(run)][-1:] == b"\0" else ()
    # Nothing ends what stands in front of a name here: the functions will say which it is.
    return (b"", *(run[start:] for start in range(len(run)))) if vendored else (b"",)


# --- From functions to instructions ---

Instruction = tuple[int, int, str, str]
"""Address, size, mnemonic, operands, as capstone's disasm_lite gives them."""

_NUMBER = r"(?:0x)?[0-9a-f]+"
_PLACES_OF_G = (
    # How a function of the stack-based ABI gets g: from a known place, or from one that a linker puts in.
    (rf"mov rcx, qword ptr fs:\[({_NUMBER})\]",),
    (rf"mov rcx, ({_NUMBER})", r"mov rcx, qword ptr fs:\[rcx\]"),
    (rf"mov rcx, qword ptr \[rip [+-] {_NUMBER}\]", r"mov rcx, qword ptr fs:\[rcx\]"),
)


def _checks() -> Iterator[tuple[Abi, list[re.Pattern[str]]]]:
    """The forms of the stack check that Go's assembler writes (cmd/internal/obj/x86/obj6.go, stacksplit).

    They change no register that holds an argument, and nothing in memory.  Each ends with the jump to where the
    stack is grown.
    """
    for abi, g, scratch, loads in ((Abi.REGISTER, "r14", "r12", ((),)), (Abi.STACK, "rcx", "rax", _PLACES_OF_G)):
        limit = rf"qword ptr \[{g} \+ 0x10\]"
        for check in (
            (rf"cmp rsp, {limit}",),
            (rf"lea {scratch}, \[rsp - {_NUMBER}\]", rf"cmp {scratch}, {limit}"),
            (rf"mov {scratch}, rsp", rf"sub {scratch}, {_NUMBER}", rf"jb {_NUMBER}", rf"cmp {scratch}, {limit}"),
        ):
            for load in loads:
                yield abi, [re.compile(line) for line in (*load, *check, rf"jbe {_NUMBER}")]


_CHECKS = tuple(_checks())
_BRANCHES = {"x86_64": re.compile(r"j\w+|loop\w*"), "aarch64": re.compile(r"b(\.\w+)?|cbn?z|tbn?z")}
_TARGET = re.compile(r"#?(0x[0-9a-f]+)$")


@dataclass(frozen=True, slots=True)
class StackCheck:
    """A function's first instructions: the jump that ends them, and what they show of the calling convention."""

    vaddr: int
    abi: Abi
    g_offset: int | None


def _signed(number: str) -> int:
    value = int(number, 16)
    return value - (1 << 64) if value >> 63 else value


@dataclass(slots=True)
class _Body:
    """A function's instructions, all of them decoded."""

    range: Range
    code: list[Instruction]
    places: dict[int, int] = field(init=False)
    """Index of the instruction at an address."""

    def __post_init__(self) -> None:
        self.places = {instruction[0]: index for index, instruction in enumerate(self.code)}

    def fail(self, why: str) -> AttachError:
        return AttachError(f"{self.range.name}: {why}")

    def returns(self) -> tuple[int, ...]:
        places = []
        for vaddr, _, mnemonic, _ in self.code:
            if mnemonic == "ret":
                places.append(vaddr)
            elif "ret" in mnemonic:
                raise self.fail(f"it returns by {mnemonic} at {vaddr:#x}")
        if not places:
            raise self.fail("it never returns")
        return tuple(places)

    def branches(self) -> Iterator[tuple[int, int]]:
        """Address and target of each direct jump."""
        is_branch = _BRANCHES[platform.machine()].fullmatch
        for vaddr, _, mnemonic, operands in self.code:
            target = _TARGET.search(operands) if is_branch(mnemonic) else None
            if target:
                yield vaddr, int(target[1], 16)

    def leads_to(self, start: int) -> bool:
        """Whether it calls that address, or jumps there."""
        targets = (_TARGET.search(operands) for _, _, mnemonic, operands in self.code if mnemonic in ("call", "bl"))
        return start in {int(t[1], 16) for t in targets if t} or start in {target for _, target in self.branches()}

    def check_branches(self) -> None:
        for vaddr, target in self.branches():
            if target not in self.places:
                raise self.fail(f"the jump at {vaddr:#x} leaves it, or leads into an instruction")

    def stack_check(self) -> StackCheck | None:
        text = [f"{mnemonic} {operands}" for _, _, mnemonic, operands in self.code[:8]]
        for abi, lines in _CHECKS:
            if len(text) >= len(lines) and all(map(re.Pattern.fullmatch, lines, text)):
                vaddr, _, _, target = self.code[len(lines) - 1]
                if self._grows(int(target, 16)):
                    place = lines[0].fullmatch(text[0]) if abi is Abi.STACK else None
                    return StackCheck(vaddr, abi, _signed(place[1]) if place and place.groups() else None)
        return None

    def _grows(self, vaddr: int) -> bool:
        """Whether what is there calls something, once, and goes back to the function's start."""
        calls = 0
        for address, _, mnemonic, operands in self.code[self.places.get(vaddr, len(self.code)) :]:
            if mnemonic == "call":
                calls += 1
            elif mnemonic == "jmp":
                return calls == 1 and operands == f"{self.range.start:#x}"
            elif mnemonic not in ("mov", "nop", "movups", "movsd", "movss", "movzx", "lea"):
                return False
            if address == self.range.start:
                return False
        return False


def _decode(disassembler: Any, image: Image, found: Range) -> _Body:
    size = found.end - found.start
    if size > MAX_CODE:
        raise AttachError(f"{found.name}: a function of {size} bytes")
    if image.file_offset(found.end - 1) - image.file_offset(found.start) != size - 1:
        raise AttachError(f"{found.name}: it lies in two segments")
    text = image.code(found.start, size)
    code = list(disassembler.disasm_lite(text, found.start))
    if len(text) != size or not code or code[-1][0] + code[-1][1] != found.end:
        raise AttachError(f"{found.name}: its code can't be decoded to the end")
    return _Body(found, code)


# --- All of it ---


def _wanted(packages: Sequence[Package]) -> dict[str, tuple[Package, str, str]]:
    return {
        f"{_escaped(package.path)}.(*{receiver}).{method}": (package, receiver, method)
        for package in packages
        for receiver in package.receivers
        for method in METHODS
    }


def _escaped(path: str) -> str:
    """An import path as symbols have it: dots behind the last slash are written %2e (cmd/internal/objabi/path.go)."""
    head, slash, tail = path.rpartition("/")
    return head + slash + tail.replace(".", "%2e")


def analyse(image: Image, packages: Sequence[Package] = PACKAGES, symbols: Image | None = None) -> GoBinary:
    """Every TLS function of a Go executable, with its probe sites.

    ``symbols`` is another copy of the same program, in which names are looked up instead; the code is always read from
    ``image``.  Raises `UnsupportedError` when the file isn't Go's, can't be understood, or isn't the same program as
    ``symbols``.  A function whose sites can't be proven becomes a note.
    """
    memory = _Memory(image)
    wanted = _wanted(packages)
    if symbols is not None:
        ranges, since, proven = _from_copy(memory, symbols, wanted), (1, 2), True
    elif is_go(image):
        table, text, proven = _find_table(memory)
        ranges, since = _look_up(table, text, wanted), table.layout.since
    else:
        raise UnsupportedError(f"{image.path} is not a Go program")
    version = _version(memory)
    release = _release(version) or since
    functions, notes = _prove(image, _unique(ranges, wanted), _default_abi(version, since), proven=proven)
    return GoBinary(
        version=version, release=release, build_id=_go_build_id(memory), functions=functions, notes=tuple(notes)
    )


def _from_copy(memory: _Memory, symbols: Image, wanted: Collection[str]) -> list[Range]:
    """The functions as a copy of the program with symbols has them.  Its code must be the same."""
    image, copy = memory.image, _Memory(symbols)
    ids = (_go_build_id(memory), _go_build_id(copy))
    if not ids[0]:  # linked with -buildid=
        ids = (image.build_id, symbols.build_id)
    if not ids[0] or ids[0] != ids[1]:
        raise UnsupportedError(f"{symbols.path} was not built together with {image.path}: their build IDs differ")
    ranges = [Range(s.name, s.vaddr, s.vaddr + s.size) for s in symbols.symbols(frozenset(wanted)).values() if s.size]
    if not ranges:
        table, text, _ = _find_table(copy)
        ranges = _look_up(table, text, wanted)
    for found in ranges:
        size = min(found.end - found.start, MAX_CODE)
        if image.code(found.start, size) != symbols.code(found.start, size):
            raise UnsupportedError(f"{symbols.path} has other code for {found.name} than {image.path}")
    return ranges


_Found = Mapping[Range, tuple[Package, str, str]]


def _unique(ranges: Iterable[Range], wanted: Mapping[str, tuple[Package, str, str]]) -> _Found:
    """What each range is, without those that only lead to others."""
    found = {r: wanted[_plain(r.name, wanted)] for r in sorted(set(ranges), key=lambda r: r.start)}
    names = {r.name for r in found}
    return {
        r: what
        for r, what in found.items()
        if what[2] not in NOT_BESIDE or r.name.removesuffix(what[2]) + NOT_BESIDE[what[2]] not in names
    }


def _plain(name: str, wanted: Collection[str]) -> str:
    """A name without the path of the vendoring package."""
    while name not in wanted:
        name = name.partition("vendor/")[2]
    return name


def _default_abi(version: str, since: tuple[int, int]) -> Abi | None:
    """The calling convention by version; None when the file doesn't say enough."""
    release = _release(version)
    if release is None and since == (1, 16) and platform.machine() == "x86_64":
        return None  # 1.16 and 1.17 differ, and share the layout
    registers = (release or since) >= REGISTER_ABI_SINCE[platform.machine()] and "noregabi" not in version
    return Abi.REGISTER if registers else Abi.STACK


def _prove(
    image: Image, found: _Found, by_version: Abi | None, *, proven: bool
) -> tuple[tuple[GoFunction, ...], list[str]]:
    functions: list[GoFunction] = []
    notes: list[str] = []
    disassembler = _disassembler()
    names = Counter(r.name for r in found)
    for r, (package, receiver, method) in found.items():
        try:
            if names[r.name] > 1:
                raise AttachError(f"{r.name}: there are several functions of this name")
            body = _decode(disassembler, image, r)
            same = (o.start for o, what in found.items() if what[0] is package and what[2] == method and o != r)
            if any(map(body.leads_to, same)):
                continue  # a wrapper of a method of an embedded type: the other is probed
            body.check_branches()
            check = body.stack_check()
            if check is None and not proven:
                raise body.fail(f"nothing proves that it starts at {r.start:#x}")
            abi, site = (check.abi, check.vaddr) if check else (by_version, r.start)
            if abi is None:
                raise body.fail("its calling convention is unknown")
            mnemonic = body.code[body.places[site]][2]
            functions.append(
                GoFunction(
                    name=r.name,
                    package=package.path,
                    receiver=receiver,
                    method=method,
                    vaddr=r.start,
                    end=r.end,
                    site_vaddr=site,
                    site=f"{r.name}+{site - r.start} {mnemonic}, {'emulated' if check else 'single-stepped'}",
                    returns=body.returns(),
                    abi=abi,
                    g_offset=check.g_offset if check else None,
                )
            )
        except AttachError as error:
            notes.append(str(error))
    return tuple(functions), notes
