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

import bisect
import contextlib
import functools
import io
import itertools
import os
import platform
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from tlscap.errors import AttachError, CaptureError, TargetError, UnsupportedError
from tlscap.live.catalogue import BY_NAME, FLAVORS, Flavor, Function, Funnel, MethodTable
from tlscap.live.loader import AttachPoint, CallKind, LifeKind, ResolvedLibrary
from tlscap.live.methods import find_methods
from tlscap.live.returns import return_probes_are_safe, return_sites

if TYPE_CHECKING:
    from elftools.elf.elffile import ELFFile

ELF_MACHINES = {"x86_64": "EM_X86_64", "aarch64": "EM_AARCH64"}
_SYMBOL = struct.Struct("<IBBHQQ")  # Elf64_Sym: name, info, other, shndx, value, size
_RELOCATION = struct.Struct("<QQq")  # Elf64_Rela: offset, info, addend
_NOTE = struct.Struct("<III")  # Elf64_Nhdr: length of name, length of content, type; name and content follow
_UNWIND_FORM = b"\x01\x1b\x03\x3b"  # version 1; pointer: pcrel sdata4; count: udata4; table: datarel sdata4
_SECTION_HEADER, _PROGRAM_HEADER = 64, 56
PN_XNUM = 0xFFFF  # the number of program headers stands elsewhere: never so in what is linked
STT_FUNC, STT_GNU_IFUNC = 2, 10
SHF_COMPRESSED = 0x800
R_X86_64_RELATIVE = 8
NT_GNU_BUILD_ID = 3
EMULATED = frozenset({"push", "nop", "jmp", "call"})
STACK_COUNT_ARGS = {"rcx": 4, "r8": 5}
"""Where SSL_read and SSL_write pass the address of their count, by position (System V AMD64 ABI)."""
MAX_FUNCTION = 4096
MAX_STEPS = 5
"""So many instructions of a function are stepped over for a cheaper one."""
SPARE_REGISTERS = frozenset(
    {"rax", "eax", "al", "r10", "r10d", "r11", "r11d", "rbx", "ebx", "r12", "r13", "r14", "r15"}
)
"""Those that hold no argument (System V AMD64 ABI)."""
ENTRY_ONLY = frozenset({CallKind.BIO_WRITE, CallKind.BIO_WRITEV})
"""Calls of which the return does not matter."""
GO_METHODS: Mapping[str, CallKind | LifeKind] = {
    "Read": CallKind.GO_READ,
    "Write": CallKind.GO_WRITE,
    "clientHandshake": CallKind.GO_CLIENT,
    "serverHandshake": CallKind.GO_SERVER,
    "Close": LifeKind.GO_FREE,
}
GO_THREAD_STORAGE = -8
"""Where the goroutine is, from the thread's storage: bpf/golang.h looks there."""


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
            self._read_only_after_relocation = [
                (s["p_vaddr"], s["p_vaddr"] + s["p_memsz"]) for s in self.elf.iter_segments("PT_GNU_RELRO")
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

    def is_code(self, vaddr: int) -> bool:
        return any(start <= vaddr < start + size for start, _, size in self._segments)

    def functions(self) -> list[tuple[int, int]]:
        """Start and size of every function, in order, as the unwind table has them: without any symbols.

        From ``.eh_frame_hdr`` (Linux Standard Base 5.0, 10.6.2), in the one form that linkers write.  The size reaches to the next one,
        that of the last to the end of its segment.
        """
        with _parsing(self.path):
            section: Any = self.elf.get_section_by_name(".eh_frame_hdr") if self._sections else None
            table = self._section(".eh_frame_hdr")
        if len(table) < 12 or table[:4] != _UNWIND_FORM:
            return []
        count = min(int.from_bytes(table[8:12], "little"), (len(table) - 12) // 8)
        base = section["sh_addr"]
        starts = [base + offset for offset, _ in struct.iter_unpack("<ii", table[12 : 12 + 8 * count])]
        ends = [start + size for start, _, size in self._segments if starts and start <= starts[-1] < start + size]
        return [(start, end - start) for start, end in itertools.pairwise([*starts, *ends]) if end > start]

    def constant_pointer(self, vaddr: int) -> int | None:
        """The address that stands at a place for good: put there by the dynamic linker, which then makes it read-only.

        From ``.rela.dyn``, where linkers put the relative relocations first, by their place.  None when there is none.
        """
        if not any(start <= vaddr <= end - 8 for start, end in self._read_only_after_relocation):
            return None
        table, size = self._relocations, _RELOCATION.size

        def place(number: int) -> tuple[bool, int]:
            offset, info, _ = _RELOCATION.unpack_from(table, number * size)
            return info != R_X86_64_RELATIVE, offset

        number = bisect.bisect_left(range(len(table) // size), (False, vaddr), key=place)
        if number == len(table) // size or place(number) != (False, vaddr):
            return None
        addend: int = _RELOCATION.unpack_from(table, number * size)[2]
        return addend

    @functools.cached_property
    def _relocations(self) -> bytes:
        return self._section(".rela.dyn")

    def address(self, offset: int) -> int:
        """The virtual address of a place in the file.  Raises `AttachError` outside executable segments."""
        for start, begin, size in self._segments:
            if begin <= offset < begin + size:
                return int(offset - begin + start)
        raise AttachError(f"{self.path}: offset {offset:#x} is not inside an executable segment")

    def text(self) -> Iterator[tuple[int, bytes]]:
        """Address and content of each executable segment."""
        for start, offset, size in self._segments:
            self._file.seek(offset)
            yield start, bytes(self._file.read(size))

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


def _joined(image: Image, parts: Sequence[ResolvedLibrary]) -> ResolvedLibrary:
    """Several libraries in one file."""
    return ResolvedLibrary(
        image.path,
        image.build_id,
        "+".join(part.flavor for part in parts),
        tuple(point for part in parts for point in part.points),
        tuple(note for part in parts for note in part.notes),
    )


def _leaves_intact(mnemonic: str, operands: str) -> bool:
    """Whether an instruction at a function's entry changes neither its arguments nor the stack."""
    if mnemonic in ("endbr64", "test", "cmp"):
        return True
    return mnemonic in ("mov", "movsxd", "movzx", "lea", "xor") and operands.partition(", ")[0] in SPARE_REGISTERS


def _disassembler() -> Any:
    import capstone  # noqa: PLC0415

    if platform.machine() == "aarch64":
        return capstone.Cs(capstone.CS_ARCH_ARM64, capstone.CS_MODE_LITTLE_ENDIAN)
    return capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)


class Resolver:
    """Finds the attach points of files.  Keeps the disassembler."""

    def __init__(self, go_symbols: str = "", signatures: str = "") -> None:
        """``go_symbols`` is a copy of a Go program with its symbols: for the one that has the same build id.

        ``signatures`` is a file of rules to find functions by, which go before the built-in ones.
        """
        self.go_symbols = go_symbols
        self.signatures = signatures
        self.at_returns = not return_probes_are_safe()
        """Probe return instructions: return probes could kill targets here."""
        self._x86 = platform.machine() == "x86_64"

    @functools.cached_property
    def _cs(self) -> Any:
        """Imported when it is needed: it takes longer than everything else."""
        return _disassembler()

    def resolve(self, path: str, flavors: Sequence[Flavor] = FLAVORS) -> ResolvedLibrary:
        """All attach points of a library or executable.

        Raises `TargetError` when the file holds no TLS functions by name, `UnsupportedError` when it is for
        another machine.
        """
        image = Image(path)
        found: dict[str, ResolvedLibrary] = {}
        for flavor in flavors:
            family = flavor.family or flavor.name
            names = {function.name for function in flavor.functions} | {
                name for group in flavor.needs for name in group
            }
            symbols = {} if family in found else image.symbols(frozenset(names))
            if symbols and all(any(name in symbols for name in group) for group in flavor.needs):
                found[family] = self._resolve_flavor(image, flavor, symbols)
        if flavors is FLAVORS and (go := self._resolve_go(image)):
            found["go"] = go
        if flavors is FLAVORS and (rustls := self._resolve_rustls(image)):
            found["rustls"] = rustls
        if not found and self._x86:
            found = self._resolve_by_signature(image, flavors)
        if found:
            return _joined(image, list(found.values()))
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

    def _resolve_by_signature(self, image: Image, flavors: Sequence[Flavor]) -> dict[str, ResolvedLibrary]:
        """The same in a file without symbols, by what the functions do.  Their calls are believed when they handled a TLS record."""
        from tlscap.live import signatures  # noqa: PLC0415 - it builds on this module

        found = {}
        own = signatures.load(self.signatures) if self.signatures else ()
        for match in signatures.find_functions(image, (*own, *signatures.built_in())):
            wanted = flavors if flavors is not FLAVORS else [one for one in flavors if one.name == match.library]
            notes = list(match.notes)
            points = []
            for row in (row for flavor in wanted for row in flavor.functions if row.name in match.functions):
                place = match.functions[row.name]
                try:
                    point = self._entry(image, row, place.vaddr)
                except AttachError as error:
                    notes.append(str(error))
                    continue
                points.append(replace(point, unproven=True, site=f"{point.site}; {place.evidence}"))
            if points:
                found[match.library] = ResolvedLibrary(
                    image.path, image.build_id, f"{match.library}, by signature", tuple(points), tuple(notes)
                )
        return found

    def _resolve_go(self, image: Image) -> ResolvedLibrary | None:
        """The functions of Go's crypto/tls and its copies; None when the file has none."""
        from tlscap.live import golang  # noqa: PLC0415 - it builds on this module

        if not golang.is_go(image):
            return None
        symbols = Image(self.go_symbols) if self.go_symbols else None
        if symbols and golang.go_build_id(symbols) != golang.go_build_id(image):
            symbols = None  # of another program
        try:
            binary = golang.analyse(image, symbols=symbols)
        except UnsupportedError as error:
            return ResolvedLibrary(image.path, "", "go", (), (str(error),))
        points = tuple(
            AttachPoint(
                path=image.path,
                function=function.name,
                kind=GO_METHODS[function.method],
                vaddr=function.site_vaddr,
                file_offset=image.file_offset(function.site_vaddr),
                returns=tuple(image.file_offset(vaddr) for vaddr in function.returns),
                stack=function.abi is golang.Abi.STACK,
                indirect=function.receiver == "UConn",
                site=function.site,
            )
            for function in binary.functions
            if function.method in GO_METHODS
            and (function.abi is golang.Abi.REGISTER or function.g_offset == GO_THREAD_STORAGE)
        )
        notes = list(binary.notes)
        if binary.functions and not points:
            notes.append(f"{image.path}: where this version of Go keeps the goroutine is not known")
        return ResolvedLibrary(image.path, binary.build_id, "go", points, tuple(notes)) if binary.functions else None

    def _resolve_rustls(self, image: Image) -> ResolvedLibrary | None:
        """The functions of rustls; None when the file has none by name."""
        from tlscap.live import rust  # noqa: PLC0415 - it builds on this module

        return rust.resolve(self, image) if self._x86 else None

    def callback(self, path: str, offset: int, kind: CallKind) -> AttachPoint:
        """A function that a program gave to a library, by where in the file it begins."""
        image = Image(path)
        return self._entry(image, Function(f"the function at {offset:#x}", kind), image.address(offset))

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
        if flavor.table:
            try:
                points += self._methods(image, flavor.table)
            except AttachError as error:
                notes.append(str(error))
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
        for address, _, name, operands in code[:MAX_STEPS] if self._x86 else ():
            if self._emulated(name):
                site, mnemonic = address, name
                break
            if not _leaves_intact(name, operands):
                break
        returns: tuple[int, ...] = ()
        if self.at_returns and isinstance(row.kind, CallKind) and row.kind not in ENTRY_ONLY:
            returns = tuple(map(image.file_offset, return_sites(image, vaddr, self._cs)))
        cost = "emulated" if self._emulated(mnemonic) else "single-stepped"
        return AttachPoint(
            path=image.path,
            function=row.name,
            kind=row.kind,
            count_arg=row.count_arg,
            length_arg=row.length_arg,
            vaddr=site,
            file_offset=image.file_offset(site),
            returns=returns,
            site=f"{row.name}+{site - vaddr} {mnemonic}, {cost}",
        )

    def _methods(self, image: Image, table: MethodTable) -> list[AttachPoint]:
        """The functions that a structure of pointers names.  Raises `AttachError` unless there is exactly one such structure."""
        if not self._x86:
            raise AttachError(f"{table.name} is only looked for on x86-64")
        found = find_methods(image, table, self._cs)
        return [self._entry(image, row, found[place]) for place, row in table.functions]

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
