"""Finds functions of a statically linked TLS library in a file without symbols, by what their code does.

BoringSSL and OpenSSL note where an error happened: each place hands the name of its source file, a line and a
reason to one function that keeps them, so these constants are in the code.  The functions that name such a file
are followed from the entry on: what is constant in registers, which of their own arguments they hand on,
what they call.  Rules say which of this tells a function; they are data (``signatures.toml``, and a user's own file
in the same form).  A rule that fits two functions finds nothing, and a function found begins
where the unwind table says that one does.

What this proves is evidence, not a name.  So users of it compare what is seen in the first calls before they trust a byte.
"""

from __future__ import annotations

import bisect
import functools
import mmap
import os
import re
import struct
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from importlib import resources
from typing import TYPE_CHECKING, Any

from tlscap.errors import AttachError, UsageError

if TYPE_CHECKING:
    from tlscap.live.sites import Image

# What a file may cost.
MAX_STRINGS = 64  # places of one file name
MAX_CANDIDATES = 4096  # functions that are followed
MAX_BETWEEN = 256  # functions between two
MAX_FUNCTION = 1 << 16  # bytes
MAX_STEPS = 40_000  # instructions of one function, on all paths
MAX_ALL_STEPS = 1_500_000  # a few seconds
MAX_STATES = 12  # times that one place is looked at with other registers
MAX_TEXT = 512 << 20  # bytes of code
CHUNK = 1 << 20

NUMBER = {
    name: n
    for n, name in enumerate(
        ["rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15"]
    )
}
ARGUMENTS = tuple(NUMBER[name] for name in ("rdi", "rsi", "rdx", "rcx", "r8", "r9"))  # System V AMD64 ABI, 3.2.3
LOST_IN_CALLS = tuple(NUMBER[name] for name in ("rax", "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11"))
IMPLIED = LOST_IN_CALLS[:5]  # what instructions without operands may change
PUSHED = 16  # place in the state of what was pushed by the instruction before
_AT_RIP = re.compile(r"\[rip ([+-]) (0x[0-9a-f]+|\d+)\]")
_CONSTANT = re.compile(r"-?(0x[0-9a-f]+|\d+)")
_REGISTER = re.compile(r"\b[re]?[a-ds][ixpl]?l?\b|\br\d+[dwb]?\b")
_ONLY_READ = frozenset({"cmp", "test", "push", "nop", "bt"})
_END = frozenset({"ret", "ud2", "hlt", "int3"})


def _register_names() -> dict[str, tuple[int, int]]:
    """Every name of a general register: its number and its width in bytes."""
    names = {}
    for name, number in NUMBER.items():
        names[name] = number, 8
        if number >= 8:
            names |= {name + suffix: (number, width) for suffix, width in (("d", 4), ("w", 2), ("b", 1))}
        else:
            short = name[1:]
            names |= {"e" + short: (number, 4), short: (number, 2)}
            halves = (short[0] + "l", short[0] + "h") if short.endswith("x") else (short + "l",)
            names |= dict.fromkeys(halves, (number, 1))
    return names


_NAMES = _register_names()


@dataclass(frozen=True, slots=True)
class Argument:
    """What the function got as its argument of this position, from 1."""

    position: int


@dataclass(frozen=True, slots=True)
class Stack:
    """An address on the function's stack."""


Value = int | Argument | Stack | None
_OWN = tuple(Argument(position + 1) for position in range(len(ARGUMENTS)))
_ON_STACK = Stack()


@dataclass(frozen=True, slots=True)
class Call:
    """One call as one path through the function makes it."""

    at: int
    target: int | None
    """None: through a pointer."""
    arguments: tuple[Value, ...]

    def passes(self, positions: Sequence[int]) -> bool:
        return all(got == _OWN[own - 1] for got, own in zip(self.arguments, positions, strict=False))


@dataclass(slots=True)
class Body:
    """What following a function gave."""

    start: int
    calls: list[Call] = field(default_factory=list)
    read: set[int] = field(default_factory=set)
    """Positions of the arguments that it reads itself."""
    writes: bool = False
    code: set[str] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class Raised:
    """An error that a function raises: what it hands to the function that keeps errors."""

    file: str
    line: int
    library: int
    reason: int
    function: str | int


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """What tells one function, as signatures.toml explains it."""

    name: str
    file: tuple[str, ...] = ()
    library: int | None = None
    reasons: tuple[int, ...] = ()
    without: tuple[int, ...] = ()
    place: str = ""
    function: str | int = ""
    calls: tuple[str, ...] = ()
    called_by: tuple[str, ...] = ()
    between: tuple[str, ...] = ()
    shares: str = ""
    count: int | None = None
    arguments: int | None = None
    passes: tuple[int, ...] = ()
    every: tuple[int, ...] = ()
    writes: bool | None = None
    code: str = ""

    @property
    def others(self) -> tuple[str, ...]:
        """The functions it names."""
        return (*self.calls, *self.called_by, *self.between, *([self.shares] if self.shares else []))


@dataclass(frozen=True, slots=True)
class Library:
    """One library's rules."""

    name: str
    mark: str
    needs: tuple[str, ...]
    error: Mapping[str, int]
    rules: tuple[Rule, ...]


@dataclass(frozen=True, slots=True)
class Found:
    """A function, and why it is thought to be this one, for people."""

    name: str
    vaddr: int
    evidence: str


@dataclass(frozen=True, slots=True)
class Match:
    """A library that a file holds."""

    library: str
    functions: Mapping[str, Found]
    notes: tuple[str, ...]
    """What was not found, and why."""


# --- The rules ---


@functools.cache
def built_in() -> tuple[Library, ...]:
    text = resources.files("tlscap.live").joinpath("signatures.toml").read_text(encoding="utf-8")
    return parse(text, "signatures.toml")


def load(path: str) -> tuple[Library, ...]:
    """A user's rules.  Raises `UsageError` when the file can't be read or understood."""
    try:
        with open(path, encoding="utf-8") as file:
            return parse(file.read(), path)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 text") from error


def parse(text: str, name: str) -> tuple[Library, ...]:
    """Libraries from text in the form of signatures.toml.  Raises `UsageError`."""
    try:
        tables = tomllib.loads(text).get("library", [])
        return tuple(_library(table) for table in tables)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{name}: {error}") from error
    except (AttributeError, KeyError, TypeError, ValueError, re.error) as error:
        raise UsageError(f"{name} is not a file of signatures: {error}") from error


def _library(table: Mapping[str, Any]) -> Library:
    if unknown := sorted(set(table) - {"name", "mark", "needs", "error", "function"}):
        raise ValueError(f"a library has no {unknown[0]!r}")
    rules = tuple(_rule(row) for row in table["function"])
    error = dict(table["error"])
    if not {"file", "line"} <= set(error) <= {"file", "line", "reason", "library", "function"}:
        raise ValueError("error says which argument is the file, and which the line")
    if not all(isinstance(place, int) and 1 <= place <= len(ARGUMENTS) for place in error.values()):
        raise ValueError(f"arguments are counted from 1 to {len(ARGUMENTS)}")
    mark, needs, above = _text(table["mark"]), _texts(table["needs"]), set[str]()
    for rule in rules:
        if missing := sorted(set(rule.others) - above):
            raise ValueError(f"{rule.name} names {missing[0]}, which must stand above it")
        above.add(rule.name)
    if not mark or not needs or not set(needs) <= above:
        raise ValueError(f"{table['name']} must have a mark, and need functions that it describes")
    return Library(_text(table["name"]), mark, needs, error, rules)


def _rule(row: Mapping[str, Any]) -> Rule:
    kinds = {f.name: str(f.type) for f in fields(Rule)}
    values: dict[str, Any] = {}
    for key, value in row.items():
        kind = kinds.get(key)
        if kind is None:
            raise ValueError(f"a function has no {key!r}")
        if kind == "tuple[str, ...]":
            values[key] = _texts([value] if isinstance(value, str) else value)
        elif kind == "tuple[int, ...]":
            values[key] = tuple(_number(item) for item in value)
        elif kind == "int | None":
            values[key] = _number(value)
        elif kind == "bool | None":
            if not isinstance(value, bool):
                raise TypeError(f"{key} is true or false")
            values[key] = value
        else:
            values[key] = value if key == "function" and isinstance(value, int) else _text(value)
    rule = Rule(**values)
    if not (rule.file or rule.between or rule.calls or rule.called_by):
        raise ValueError(f"{rule.name} needs a file, between, calls or called_by")
    if rule.between and len(rule.between) != 2:
        raise ValueError(f"{rule.name}: it lies between two")
    if rule.place not in ("", "first", "last") or (rule.place and not rule.reasons):
        raise ValueError(f"{rule.name}: a place is the first or the last of a reason")
    if not all(1 <= position <= len(ARGUMENTS) for position in (*rule.passes, *rule.every)):
        raise ValueError(f"{rule.name}: arguments are counted from 1 to {len(ARGUMENTS)}")
    re.compile(rule.code)
    return rule


def _text(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise TypeError(f"{value!r} is not a name")
    return value


def _texts(values: Iterable[object]) -> tuple[str, ...]:
    return tuple(_text(value) for value in values)


def _number(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{value!r} is not a number")
    return value


# --- A quick look ---


def marks(libraries: Sequence[Library] | None = None) -> tuple[bytes, ...]:
    """What a file with one of the libraries has in its .rodata: without those that begin with another."""
    found: list[bytes] = []
    for mark in sorted({library.mark.encode() for library in (built_in() if libraries is None else libraries)}):
        if not (found and mark.startswith(found[-1])):
            found.append(mark)
    return tuple(found)


def has_mark(data: mmap.mmap | bytes, start: int, end: int, wanted: Sequence[bytes]) -> bool:
    return any(data.find(mark, start, end) >= 0 for mark in wanted)


def may_hold(path: str, libraries: Sequence[Library] | None = None) -> bool:
    """Whether a file might hold one of the libraries.  A false yes costs time; false for what can't be read."""
    from tlscap.live.quicklook import _FILE_HEADER, _sections  # noqa: PLC0415 - it may build on this module

    try:
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size < _FILE_HEADER.size or file.read(4) != b"\x7fELF":
                return False
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                wanted = marks(libraries)
                return any(
                    section.name == b".rodata" and has_mark(data, section.start, section.end, wanted)
                    for section in _sections(data)
                )
    except (OSError, ValueError, IndexError, OverflowError, struct.error):
        return False


# --- Looking ---


def find_functions(image: Image, libraries: Sequence[Library] | None = None) -> list[Match]:
    """The libraries that a file holds, each with the functions that fit exactly one rule.

    Empty when there is none.  Raises `AttachError` when a file would take too long, `UnsupportedError` when it is
    broken.  Only for x86-64.
    """
    wanted = built_in() if libraries is None else libraries
    code = _Code(image)
    found: dict[str, Match] = {}
    if not code.has_functions:
        return []
    for library in wanted:
        if library.name in found or not code.strings(library.mark, limit=1):
            continue
        match = _Search(code, library).run()
        if all(name in match.functions for name in library.needs):
            found[library.name] = match
    return list(found.values())


class _Code:
    """A file's code and constants, and what was learned of its functions."""

    def __init__(self, image: Image) -> None:
        from tlscap.live.sites import _disassembler, _parsing  # noqa: PLC0415 - it may build on this module

        self.path = image.path
        self._image = image
        self._functions = image.functions()
        self._starts = [start for start, _ in self._functions]
        with _parsing(image.path):
            section: Any = image.elf.get_section_by_name(".rodata") if image._sections else None
            self._constants_at = section["sh_addr"] if section else 0
            # Programs that are linked to fixed addresses may have them in the instructions.
            self._fixed = image.elf["e_type"] == "ET_EXEC"
        self._constants = image._section(".rodata")
        self._disassembler = _disassembler()
        self._decoded: dict[int, dict[int, tuple[int, str, str]]] = {}
        self._bodies: dict[int, Body] = {}
        self._naming: dict[frozenset[int], set[int]] = {}
        self._steps = 0

    @property
    def has_functions(self) -> bool:
        """Whether the file says where functions begin."""
        return bool(self._starts)

    @functools.cached_property
    def _text(self) -> list[tuple[int, bytes]]:
        segments = []
        for start, code in self._image.text():
            segments.append((start, code))
            if sum(len(code) for _, code in segments) > MAX_TEXT:
                raise AttachError(f"{self.path}: too much code to look for functions of TLS libraries in it")
        return segments

    def strings(self, end: str, limit: int = MAX_STRINGS) -> list[int]:
        """Where strings begin that are a path with this end."""
        pattern = end.encode() + b"\0"
        found: list[int] = []
        at = self._constants.find(pattern)
        while at >= 0 and len(found) < limit:
            if at == 0 or self._constants[at - 1] in b"/\\\0":
                found.append(self._constants_at + self._constants.rfind(b"\0", 0, at) + 1)
            at = self._constants.find(pattern, at + 1)
        return found

    def string(self, vaddr: Value) -> str:
        """The string at an address, empty when there is none."""
        if not isinstance(vaddr, int):
            return ""
        at = vaddr - self._constants_at
        if not 0 <= at < len(self._constants):
            return ""
        end = self._constants.find(b"\0", at, at + 256)
        return self._constants[at:end].decode("ascii", "replace") if end >= 0 else ""

    def function_at(self, vaddr: int) -> tuple[int, int] | None:
        """Start and size of the function that an address is in."""
        index = bisect.bisect_right(self._starts, vaddr) - 1
        if index < 0:
            return None
        start, size = self._functions[index]
        return (start, size) if vaddr < start + size else None

    def between(self, one: int, other: int) -> list[int]:
        """The functions that lie between two; none when there are too many."""
        low, high = sorted((bisect.bisect_right(self._starts, one), bisect.bisect_left(self._starts, other)))
        return self._starts[low:high] if high - low <= MAX_BETWEEN else []

    # What refers to an address.

    def naming(self, targets: Iterable[int]) -> set[int]:
        """The functions that compute one of these addresses: ``lea register, [rip + x]`` or ``mov register, x``."""
        wanted = frozenset(targets)
        if wanted not in self._naming:
            found = self._functions_of(self._relative(rb"\x8d[\x05\x0d\x15\x1d\x25\x2d\x35\x3d]", 2, wanted))
            if self._fixed:
                found |= self._functions_of(self._absolute([target for target in wanted if 0 < target < 1 << 31]))
            self._naming[wanted] = found
        return self._naming[wanted]

    def calling(self, target: int) -> set[int]:
        """The functions that call another one, or jump to it."""
        return self._functions_of(self._relative(rb"[\xe8\xe9]", 1, frozenset((target,))))

    def _functions_of(self, places: Iterable[int]) -> set[int]:
        found = set()
        for at in places:
            if function := self.function_at(at):
                found.add(function[0])
                if len(found) > MAX_CANDIDATES:
                    raise AttachError(f"{self.path}: too many functions look like those of a TLS library")
        return found

    def _relative(self, opcode: bytes, size: int, wanted: frozenset[int]) -> Iterator[int]:
        """Where bytes like these are followed by the distance of one of these addresses.

        The upper half of the distance is nearly the same all over a piece of the code: the pattern leaves only few others.
        """
        length = size + 4
        for base, code in self._text if wanted else ():
            for start in range(0, len(code), CHUNK):
                end = min(start + CHUNK + length - 1, len(code))
                halves: dict[int, set[int]] = {}
                for target in wanted:
                    low, high = target - base - end - length, target - base - start + length
                    for half in range(low >> 16, (high >> 16) + 1):
                        halves.setdefault(half >> 8 & 0xFF, set()).add(half & 0xFF)
                tails = b"|".join(
                    b"[%s]%s" % (b"".join(b"\\x%02x" % low for low in sorted(lows)), b"\\x%02x" % high)
                    for high, lows in halves.items()
                )
                for match in re.compile(b"%s(?=..(?:%s))" % (opcode, tails), re.DOTALL).finditer(code, start, end):
                    at = match.start()
                    (distance,) = struct.unpack_from("<i", code, at + size)
                    if base + at + length + distance in wanted:
                        yield base + at

    def _absolute(self, targets: Sequence[int]) -> Iterator[int]:
        for base, code in self._text if targets else ():
            words = b"|".join(re.escape(struct.pack("<I", target)) for target in targets)
            for match in re.compile(b"[\xb8-\xbf](?=%s)" % words, re.DOTALL).finditer(code):
                yield base + match.start()

    # Following.

    def body(self, start: int) -> Body:
        """What the function that begins here does."""
        if start not in self._bodies:
            self._bodies[start] = self._follow(start)
        return self._bodies[start]

    def _instructions(self, start: int, size: int) -> dict[int, tuple[int, str, str]]:
        if start not in self._decoded:
            code = self._image.code(start, min(size, MAX_FUNCTION)) if self._image.is_code(start) else b""
            self._decoded[start] = {
                at: (at + length, mnemonic, operands)
                for at, length, mnemonic, operands in self._disassembler.disasm_lite(code, start)
            }
        return self._decoded[start]

    def _follow(self, start: int) -> Body:
        body = Body(start)
        known: list[Value] = [None] * (PUSHED + 1)
        for register, own in zip(ARGUMENTS, _OWN, strict=True):
            known[register] = own
        known[NUMBER["rsp"]] = _ON_STACK
        paths = [(start, tuple(known))]
        seen: dict[int, set[tuple[Value, ...]]] = {}
        calls: dict[Call, None] = {}
        steps = 0
        while paths and steps < MAX_STEPS:
            at, state = paths.pop()
            states = seen.setdefault(at, set())
            if state in states or len(states) >= MAX_STATES:
                continue
            states.add(state)
            steps += self._path(body, calls, paths, at, list(state))
        self._steps += steps
        if self._steps > MAX_ALL_STEPS:
            raise AttachError(f"{self.path}: looking for functions of TLS libraries would take too long")
        body.calls = sorted(calls, key=lambda call: call.at)
        return body

    def _path(
        self,
        body: Body,
        calls: dict[Call, None],
        paths: list[tuple[int, tuple[Value, ...]]],
        at: int,
        registers: list[Value],
    ) -> int:
        """Follow instructions up to where the path ends; returns how many.  Other ways to go are added to ``paths``."""
        # A part of the function may lie elsewhere: compilers move what is rare.
        part = self.function_at(at)
        if part is None:
            return 1
        instructions = self._instructions(*part)
        steps = 0
        while (instruction := instructions.get(at)) and steps < MAX_STEPS:
            steps += 1
            at, mnemonic, operands = instruction
            body.code.add(f"{mnemonic} {operands}")
            direct = int(operands, 16) if operands.startswith("0x") and mnemonic[0] in "cj" else None
            if mnemonic == "call":
                calls[self._call(at, direct, registers)] = None
                for register in LOST_IN_CALLS:
                    registers[register] = None
                registers[PUSHED] = None
            elif mnemonic in _END:
                break
            elif mnemonic[0] == "j":
                if mnemonic == "jmp" and (direct is None or (direct != body.start and self._is_start(direct))):
                    calls[self._call(at, direct, registers)] = None
                elif direct is not None:
                    paths.append((direct, tuple(registers)))
                if mnemonic == "jmp":
                    break
            else:
                _step(body, registers, mnemonic, operands, at)
        return steps

    def _is_start(self, vaddr: int) -> bool:
        function = self.function_at(vaddr)
        return function is not None and function[0] == vaddr

    def _call(self, at: int, target: int | None, registers: Sequence[Value]) -> Call:
        return Call(at, target, tuple(registers[register] for register in ARGUMENTS))


def _step(body: Body, registers: list[Value], mnemonic: str, operands: str, following: int) -> None:
    """What an instruction that is neither call nor jump does to the registers.  What isn't understood makes them unknown."""
    pushed, registers[PUSHED] = registers[PUSHED], None
    target, _, source = operands.partition(", ")
    if not operands:
        if mnemonic not in ("endbr64", "nop", "leave", "cdqe", "cwde"):
            for register in IMPLIED:
                registers[register] = None
        return
    _note_use(body, registers, mnemonic, target, source)
    if mnemonic == "push":
        registers[PUSHED] = registers[_NAMES[target][0]] if target in _NAMES else _constant(target, 8)
        return
    if mnemonic == "xchg" and source in _NAMES:
        registers[_NAMES[source][0]] = None
    if mnemonic in ("mul", "div", "idiv") or (mnemonic == "imul" and not source) or mnemonic.startswith("rep"):
        for register in IMPLIED:
            registers[register] = None
    if target not in _NAMES or mnemonic in _ONLY_READ:
        return
    number, width = _NAMES[target]
    if mnemonic == "pop":
        registers[number] = pushed
    else:
        registers[number] = _result(registers, mnemonic, (number, width), target, source, following)


def _result(
    registers: Sequence[Value], mnemonic: str, target: tuple[int, int], name: str, source: str, following: int
) -> Value:
    """What is in a register behind an instruction that changes it."""
    number, width = target
    if width < 4:
        return None
    if mnemonic in ("mov", "movabs", "movsxd"):
        other = _NAMES.get(source)
        if other is None:
            return _constant(source, width)
        return registers[other[0]] if other[1] >= 4 else None
    if mnemonic == "lea":
        if place := _AT_RIP.fullmatch(source):
            distance = int(place[2], 0)
            return following + (distance if place[1] == "+" else -distance)
        return _ON_STACK if registers[_base(source)] is _ON_STACK else None
    if mnemonic == "xor" and name == source:
        return 0
    if mnemonic in ("add", "sub", "and") and registers[number] is _ON_STACK:
        return _ON_STACK
    return None


def _constant(text: str, width: int) -> int | None:
    return int(text, 0) & (1 << 8 * width) - 1 if _CONSTANT.fullmatch(text) else None


def _base(operand: str) -> int:
    """The number of the first register in an address; that of nothing when there is none."""
    match = _REGISTER.search(operand[operand.index("[") :])
    return _NAMES.get(match[0], (PUSHED, 0))[0] if match else PUSHED


def _note_use(body: Body, registers: Sequence[Value], mnemonic: str, target: str, source: str) -> None:
    """Which arguments an instruction reads, and whether it writes to memory that isn't the stack."""
    cleared = mnemonic in ("xor", "sub") and target == source
    read = [source] if source and not cleared else []
    if "[" in target or mnemonic in ("cmp", "test", "add", "sub", "and", "or"):
        read.append(target)
    for operand in read:
        for name in _REGISTER.findall(operand) if not cleared else ():
            if name in _NAMES and isinstance(value := registers[_NAMES[name][0]], Argument):
                body.read.add(value.position)
    if "[" in target and mnemonic not in _ONLY_READ:
        body.writes |= registers[_base(target)] is not _ON_STACK


def _known(value: Value) -> int:
    return value if isinstance(value, int) else -1


class _Search:
    """One library's rules, applied to one file."""

    def __init__(self, code: _Code, library: Library) -> None:
        self._code = code
        self._library = library
        self._files = {
            end: frozenset(code.strings(end)) for end in sorted({end for rule in library.rules for end in rule.file})
        }
        self._raised: dict[int, tuple[Raised, ...]] = {}
        self._found: dict[str, Found] = {}
        self._notes: dict[str, str] = {}

    def run(self) -> Match:
        names = frozenset().union(*self._files.values())
        self._sources = sorted(self._code.naming(names))
        for start in self._sources:
            self._raised[start] = tuple(self._errors(self._code.body(start)))
        for rule in self._library.rules:
            self._apply(rule)
        self._refuse_doubles()
        order = dict.fromkeys(rule.name for rule in self._library.rules)
        notes = tuple(f"{name}: {self._notes[name]}" for name in order if name in self._notes)
        return Match(self._library.name, {name: self._found[name] for name in order if name in self._found}, notes)

    def _apply(self, rule: Rule) -> None:
        if rule.name in self._found or "look like it" in self._notes.get(rule.name, ""):
            return
        if missing := [name for name in rule.others if name not in self._found]:
            self._notes.setdefault(rule.name, f"{missing[0]} was not found")
            return
        fitting = [start for start in self._candidates(rule) if self._fits(rule, start)]
        if len(fitting) == 1:
            self._found[rule.name] = Found(rule.name, fitting[0], self._evidence(rule, fitting[0]))
            self._notes.pop(rule.name, None)
        elif fitting:
            self._notes[rule.name] = f"{len(fitting)} functions look like it"
        else:
            self._notes[rule.name] = "no function looks like it"

    def _refuse_doubles(self) -> None:
        """What two rules found is neither."""
        places: dict[int, list[str]] = {}
        for found in self._found.values():
            places.setdefault(found.vaddr, []).append(found.name)
        for names in places.values():
            for name in names if len(names) > 1 else ():
                del self._found[name]
                self._notes[name] = f"the same function as {next(other for other in names if other != name)}"

    def _errors(self, body: Body) -> Iterator[Raised]:
        """What a function hands to the one that keeps errors: a call with the name of a source file at its place."""
        places = self._library.error
        for call in body.calls:
            values = {name: call.arguments[place - 1] for name, place in places.items()}
            file = next((end for end, strings in self._files.items() if values["file"] in strings), "")
            if file and isinstance(values["line"], int):
                function = values.get("function")
                text = self._code.string(function)
                yield Raised(
                    file,
                    values["line"],
                    _known(values.get("library")),
                    _known(values.get("reason")),
                    text or (function if isinstance(function, int) else ""),
                )

    def _of(self, rule: Rule, start: int) -> list[Raised]:
        """The errors of a function that count for a rule."""
        return [
            raised
            for raised in self._raised.get(start, ())
            if raised.file in rule.file and rule.library in (None, raised.library)
        ]

    def _candidates(self, rule: Rule) -> Iterable[int]:
        if rule.file:
            return [start for start in self._sources if self._of(rule, start)]
        if rule.between:
            return self._code.between(*(self._found[name].vaddr for name in rule.between))
        if rule.calls:
            return sorted(self._code.calling(self._found[rule.calls[0]].vaddr))
        caller = self._code.body(self._found[rule.called_by[0]].vaddr)
        return sorted({call.target for call in caller.calls if call.target and self._code.function_at(call.target)})

    def _fits(self, rule: Rule, start: int) -> bool:
        function = self._code.function_at(start)
        if function is None or function[0] != start:
            return False
        if rule.file and not self._raises(rule, self._of(rule, start)):
            return False
        body = self._code.body(start)
        return (
            self._is_called(rule, start)
            and self._calls(rule, body)
            and rule.arguments in (None, max(body.read, default=0))
            and rule.writes in (None, body.writes)
            and (not rule.code or any(re.fullmatch(rule.code, text) for text in body.code))
        )

    def _raises(self, rule: Rule, errors: Sequence[Raised]) -> bool:
        reasons = {raised.reason for raised in errors}
        if not reasons.issuperset(rule.reasons) or not reasons.isdisjoint(rule.without):
            return False
        if rule.function and rule.function not in {raised.function for raised in errors}:
            return False
        if not rule.place:
            return True
        # Only places where all of the rule's reasons are raised together count.
        lines = sorted(
            raised.line
            for start in self._sources
            if {raised.reason for raised in self._of(rule, start)}.issuperset(rule.reasons)
            for raised in self._of(rule, start)
            if raised.reason == rule.reasons[0]
        )
        return any(
            raised.reason == rule.reasons[0] and raised.line == lines[0 if rule.place == "first" else -1]
            for raised in errors
        )

    def _is_called(self, rule: Rule, start: int) -> bool:
        bodies = [self._code.body(self._found[name].vaddr) for name in rule.called_by]
        return all(any(call.target == start and call.passes((1,)) for call in body.calls) for body in bodies)

    def _calls(self, rule: Rule, body: Body) -> bool:
        called = [self._found[name].vaddr for name in rule.calls]
        if not all(any(call.target == target and call.passes((1,)) for call in body.calls) for target in called):
            return False
        own = [call for call in body.calls if (call.target in called if called else call.target is None)]
        if rule.every and not (own and all(call.passes(rule.every) for call in own)):
            return False
        if rule.passes and not any(call.passes(rule.passes) for call in body.calls):
            return False
        if rule.count not in (None, len({call.at for call in body.calls})):
            return False
        if rule.shares:
            other = {call.target for call in self._code.body(self._found[rule.shares].vaddr).calls}
            return bool(body.calls) and body.calls[-1].target is not None and body.calls[-1].target in other
        return True

    def _evidence(self, rule: Rule, start: int) -> str:
        """Why it is this one, for people."""
        parts = []
        if errors := self._of(rule, start):
            lines = sorted({(raised.line, raised.reason, raised.function) for raised in errors})
            what = ", ".join(
                " ".join(str(item) for item in (reason if reason >= 0 else "", function) if item != "")
                + f" at line {line}"
                for line, reason, function in lines[:6]
            )
            parts.append(f"raises {what} of {errors[0].file}")
        parts += [f"calls {name}" for name in rule.calls]
        parts += [f"is called by {name}" for name in rule.called_by]
        if rule.between:
            parts.append(f"lies between {' and '.join(rule.between)}")
        return f"{rule.name} at {start:#x}: " + "; ".join(parts)
