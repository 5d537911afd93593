"""Where to put the probes of a library: functions to instructions.

What a uprobe costs depends on the instruction under it.  The kernel emulates ``push``, ``nop``, ``jmp``,
``jcc`` and ``call``; anything else is single-stepped out of line with a second trap, which costs many
times more.  So the site is chosen: first the internal function that the exported ones funnel into, when
it begins with an emulated instruction; else the exported function.  ``endbr64`` is stepped over: the stack
and the arguments are untouched behind it, which a return probe needs.

A wrong byte here would kill the target.  So every site is proven: the address lies in an executable
segment, capstone decodes the instructions there, and an internal function is only taken when two
exported functions, decoded independently, call it.
"""

from __future__ import annotations

import contextlib
import io
import os
import platform
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tlscap.errors import AttachError, CaptureError, TargetError, UnsupportedError
from tlscap.live.catalogue import BY_NAME, FLAVORS, Flavor, Function, Funnel
from tlscap.live.loader import AttachPoint, ResolvedLibrary

if TYPE_CHECKING:
    from elftools.elf.elffile import ELFFile

ELF_MACHINES = {"x86_64": "EM_X86_64", "aarch64": "EM_AARCH64"}
_SYMBOL = struct.Struct("<IBBHQQ")  # Elf64_Sym: name, info, other, shndx, value, size
_NOTE = struct.Struct("<III")  # Elf64_Nhdr: length of name, length of content, type; name and content follow
_SECTION_HEADER, _PROGRAM_HEADER = 64, 56
PN_XNUM = 0xFFFF  # the number of program headers stands elsewhere: never so in what is linked
STT_FUNC, STT_GNU_IFUNC = 2, 10
SHF_COMPRESSED = 0x800
NT_GNU_BUILD_ID = 3
EMULATED = frozenset({"push", "nop", "jmp", "call"})
STACK_COUNT_ARGS = {"rcx": 4, "r8": 5}
"""Where SSL_read and SSL_write pass the address of their count, by position (System V AMD64 ABI)."""
MAX_FUNCTION = 4096


@dataclass(frozen=True, slots=True)
class Symbol:
    name: str
    vaddr: int
    size: int


@contextlib.contextmanager
def _parsing(path: str) -> Iterator[None]:
    """Any file can be mapped by a target: whatever pyelftools makes of a broken one is one error of ours."""
    try:
        yield
    except CaptureError:
        raise
    except OSError as error:
        raise TargetError(f"{path}: {error.strerror}") from error
    except Exception as error:
        raise UnsupportedError(f"{path} is not a usable ELF file: {error}") from error


class Image:
    """An ELF file: symbols by name, and code by address.

    Raises `TargetError` when the file can't be read, `UnsupportedError` when it is for another machine or broken.
    What a file says of sizes is only believed where the file is that long.
    """

    def __init__(self, path: str) -> None:
        from elftools.elf.elffile import ELFFile  # noqa: PLC0415

        self.path = path
        with _parsing(path):
            with open(path, "rb") as file:
                if file.read(4) != b"\x7fELF":
                    raise UnsupportedError(f"{path} is not an ELF file")
                file.seek(0)
                self._size = os.fstat(file.fileno()).st_size
                # Mapped or not, the file must not change under us: take it whole when small, else read on demand.
                self._file: Any = io.BytesIO(file.read()) if self._size < 32 << 20 else None
            if self._file is None:
                self._file = open(path, "rb")  # noqa: SIM115
            self.elf: ELFFile = ELFFile(self._file)
            machine = platform.machine()
            if self.elf.elfclass != 64 or self.elf["e_machine"] != ELF_MACHINES.get(machine):
                raise UnsupportedError(
                    f"{path} is a {self.elf.elfclass}-bit {self.elf.get_machine_arch()} file; only 64-bit {machine} is probed"
                )
            if self.elf["e_phnum"] and (self.elf["e_phnum"] == PN_XNUM or self.elf["e_phentsize"] != _PROGRAM_HEADER):
                raise UnsupportedError(f"{path} is not a usable ELF file: its program headers are not as they must be")
            self._segments = [
                (s["p_vaddr"], s["p_offset"], s["p_filesz"])
                for s in self.elf.iter_segments("PT_LOAD")
                if s["p_flags"] & 1 and s["p_offset"] + s["p_filesz"] <= self._size
            ]
            # Files of more than 65279 sections count them elsewhere; they are not linked files.
            self._sections = 0 < self.elf["e_shoff"] <= self._size - self.elf["e_shnum"] * self.elf["e_shentsize"]
            self._sections &= self.elf["e_shnum"] > 0 and self.elf["e_shentsize"] == _SECTION_HEADER

    @property
    def build_id(self) -> str:
        notes = self._section(".note.gnu.build-id")
        if len(notes) < _NOTE.size:
            return ""
        name_size, size, kind = _NOTE.unpack_from(notes)
        start = _NOTE.size + 4
        known = (name_size, kind) == (4, NT_GNU_BUILD_ID) and notes[_NOTE.size : start] == b"GNU\0"
        return notes[start : start + size].hex() if known else ""

    def symbols(self, names: frozenset[str]) -> dict[str, Symbol]:
        """The functions of these names that the file defines, from both symbol tables."""
        found: dict[str, Symbol] = {}
        for table, strings in ((".dynsym", ".dynstr"), (".symtab", ".strtab")):
            if len(found) == len(names):
                break
            symbols, text = self._section(table), self._section(strings)
            offsets = dict(_name_offsets(text, names))
            whole = len(symbols) - len(symbols) % _SYMBOL.size
            for name, info, _, section, value, size in _SYMBOL.iter_unpack(memoryview(symbols)[:whole]):
                if name in offsets and section and value and info & 0xF in (STT_FUNC, STT_GNU_IFUNC):
                    found.setdefault(offsets[name], Symbol(offsets[name], value, size))
        return found

    def _section(self, name: str) -> bytes:
        """What a section holds; empty when the file has no such section, or not inside itself."""
        if not self._sections:
            return b""
        with _parsing(self.path):
            section: Any = self.elf.get_section_by_name(name)
            if section is None or section["sh_type"] == "SHT_NOBITS" or section["sh_flags"] & SHF_COMPRESSED:
                return b""
            if section["sh_offset"] + section["sh_size"] > self._size:
                return b""
            self._file.seek(section["sh_offset"])
            return bytes(self._file.read(section["sh_size"]))

    def file_offset(self, vaddr: int) -> int:
        """Where in the file the code at a virtual address lies.  Raises `AttachError` outside executable segments."""
        for start, offset, size in self._segments:
            if start <= vaddr < start + size:
                return int(vaddr - start + offset)
        raise AttachError(f"{self.path}: {vaddr:#x} is not inside an executable segment")

    def code(self, vaddr: int, size: int) -> bytes:
        offset = self.file_offset(vaddr)
        self._file.seek(offset)
        return bytes(self._file.read(size))


def _name_offsets(text: bytes, names: frozenset[str]) -> Iterator[tuple[int, str]]:
    """Every offset in a string table at which one of the names stands.

    Linkers merge tails, so a name may also be the end of a longer one: each occurrence counts.
    """
    for name in names:
        pattern = name.encode() + b"\0"
        at = text.find(pattern)
        while at >= 0:
            yield at, name
            at = text.find(pattern, at + 1)


def _disassembler() -> Any:
    import capstone  # noqa: PLC0415

    if platform.machine() == "aarch64":
        return capstone.Cs(capstone.CS_ARCH_ARM64, capstone.CS_MODE_LITTLE_ENDIAN)
    return capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)


class Resolver:
    """Finds the attach points of files.  Keeps the disassembler."""

    def __init__(self) -> None:
        self._cs = _disassembler()
        self._x86 = platform.machine() == "x86_64"

    def resolve(self, path: str, flavors: Sequence[Flavor] = FLAVORS) -> ResolvedLibrary:
        """All attach points of a library or executable.

        Raises `TargetError` when the file holds no TLS functions by name, `UnsupportedError` when it is for
        another machine.
        """
        image = Image(path)
        for flavor in flavors:
            symbols = image.symbols(frozenset(f.name for f in flavor.functions))
            if all(any(name in symbols for name in group) for group in flavor.needs):
                return self._resolve_flavor(image, flavor, symbols)
        raise TargetError(
            f"{path} has no TLS functions that tlscap knows by name",
            hint="name them by address with --probe FUNCTION:PATH+OFFSET",
        )

    def resolve_one(self, function: str, path: str, vaddr: int | None) -> ResolvedLibrary:
        """One function named by hand, by symbol or by virtual address (as nm and objdump print it)."""
        row = BY_NAME.get(function)
        if row is None:
            raise TargetError(f"unknown function {function!r}", hint="known: " + ", ".join(sorted(BY_NAME)))
        image = Image(path)
        if vaddr is None:
            symbol = image.symbols(frozenset({function})).get(function)
            if symbol is None:
                raise TargetError(f"{path} defines no function {function}", hint="give its address: PATH+OFFSET")
            vaddr = symbol.vaddr
        point = self._entry(image, row, vaddr)
        return ResolvedLibrary(path, image.build_id, "by hand", (point,), ())

    def _resolve_flavor(self, image: Image, flavor: Flavor, symbols: Mapping[str, Symbol]) -> ResolvedLibrary:
        points: list[AttachPoint] = []
        notes: list[str] = []
        covered: set[str] = set()
        for funnel in flavor.funnels:
            try:
                points.append(self._funnel(image, funnel, symbols))
                covered.update(funnel.covers)
            except AttachError as error:
                notes.append(f"{funnel.name}: {error}; the exported functions are probed instead")
        for row in flavor.functions:
            if row.name not in symbols or row.name in covered or (row.unless and row.unless in symbols):
                continue
            try:
                points.append(self._entry(image, row, symbols[row.name].vaddr))
            except AttachError as error:
                notes.append(str(error))
        return ResolvedLibrary(image.path, image.build_id, flavor.name, tuple(points), tuple(notes))

    def _entry(self, image: Image, row: Function, vaddr: int) -> AttachPoint:
        """The cheapest proven site at a function's entry, with stack and arguments still intact."""
        code = list(self._cs.disasm_lite(image.code(vaddr, 32), vaddr))
        if not code:
            raise AttachError(f"{row.name} in {image.path}: no instruction at {vaddr:#x}")
        site, mnemonic = vaddr, code[0][2]
        if self._x86 and mnemonic == "endbr64" and len(code) > 1 and self._emulated(code[1][2]):
            site, mnemonic = code[1][0], code[1][2]
        cost = "emulated" if self._emulated(mnemonic) else "single-stepped"
        return AttachPoint(
            path=image.path,
            function=row.name,
            kind=row.kind,
            count_arg=row.count_arg,
            vaddr=site,
            file_offset=image.file_offset(site),
            site=f"{row.name}+{site - vaddr} {mnemonic}, {cost}",
        )

    def _emulated(self, mnemonic: str) -> bool:
        if not self._x86:
            return False
        return mnemonic in EMULATED or (mnemonic.startswith("j") and mnemonic != "jrcxz")

    def _funnel(self, image: Image, funnel: Funnel, symbols: Mapping[str, Symbol]) -> AttachPoint:
        if not self._x86:
            raise AttachError("internal functions are only looked for on x86-64")
        through = next((symbols[name] for name in funnel.through if name in symbols), None)
        proof = symbols.get(funnel.also)
        if through is None or proof is None:
            raise AttachError("an exported function that leads to it is missing")
        target, _ = self._first_call(image, through)
        again, count_arg = self._first_call(image, proof)
        if target != again:
            raise AttachError(f"{through.name} calls {target:#x} first, {proof.name} calls {again:#x}")
        if count_arg == 0:
            raise AttachError(f"{proof.name} passes no address of a count")
        row = Function(funnel.name, funnel.kind, count_arg)
        point = self._entry(image, row, target)
        if "emulated" not in point.site:
            raise AttachError(f"it begins with an instruction the kernel can't emulate ({point.site})")
        return point

    def _first_call(self, image: Image, symbol: Symbol) -> tuple[int, int]:
        """Target of a function's first direct call, and the position of the argument that points into its stack."""
        count_arg = 0
        for _, _, mnemonic, operands in self._cs.disasm_lite(
            image.code(symbol.vaddr, min(symbol.size or 256, MAX_FUNCTION)), symbol.vaddr
        ):
            if mnemonic == "call":
                if not operands.startswith("0x"):
                    raise AttachError(f"{symbol.name} calls through a pointer")
                return int(operands, 16), count_arg
            register, _, source = operands.partition(", ")
            if (register in STACK_COUNT_ARGS and (mnemonic, source) == ("mov", "rsp")) or (
                register in STACK_COUNT_ARGS and mnemonic == "lea" and source.startswith("[rsp")
            ):
                count_arg = STACK_COUNT_ARGS[register]
        raise AttachError(f"{symbol.name} calls nothing")
