"""Where to put the probes of a program with rustls: its functions by their mangled names.

Rust links its libraries statically and exports nothing of them, so this needs a symbol table (``.symtab``): most releases are
stripped.  Of rustls 0.23, all plaintext passes two methods of ``CommonState``, whose arguments bpf/rustls.h reads.
A connection is a value, which moves in memory: it is told apart by the box of the cipher that it writes with.  Where in a
``CommonState`` the pointer to that stands is up to the compiler, so it is read off the code that calls the cipher.
"""

from __future__ import annotations

import dataclasses
import re
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tlscap.errors import AttachError
from tlscap.live.catalogue import Function
from tlscap.live.loader import AttachPoint, CallKind, ResolvedLibrary
from tlscap.live.quicklook import RUSTLS
from tlscap.live.returns import return_sites

if TYPE_CHECKING:
    from tlscap.live.sites import Image, Resolver

MAX_SYMBOLS = 256  # of interest in a file: a handful for each copy of rustls
MAX_CODE = 1 << 14  # bytes of one function: the largest has 3000
ENCRYPT = 0x18
"""Where ``MessageEncrypter::encrypt`` is in the table of the trait's methods: behind drop, size and alignment."""
POINTER = 8

_CRATE = r"C(?:s[0-9A-Za-z]*_)?"
_SYMBOL = struct.Struct("<IBBHQQ")  # Elf64_Sym
STT_FUNC = 2


def _method(module: str, receiver: str, name: str) -> str:
    """A pattern for the names of a method, by both of Rust's schemes (RFC 2603, and the one before)."""
    path = "".join(f"{len(part)}{part}" for part in (module, receiver, name))
    head, tail = f"{len(module)}{module}", f"{len(receiver)}{receiver}{len(name)}{name}"
    return rf"_ZN6rustls{path}17h[0-9a-f]{{16}}E|_RNvM(?:s[0-9A-Za-z]*_)?Nt{_CRATE}6rustls{head}NtB[0-9A-Za-z]*_{tail}"


def _dropped(module: str, name: str, *, generic: bool) -> str:
    """A pattern for the names of what the compiler makes to drop a value of a type."""
    legacy = rf"rustls\.\.{module}\.\.{name}\$" + (r"LT\$rustls\.\.[\w.]+Data\$GT\$\$GT\$" if generic else r"GT\$")
    kind = rf"{'I' if generic else ''}NtNt{_CRATE}6rustls{len(module)}{module}{len(name)}{name}"
    return rf"_ZN4core3ptr\d+drop_in_place\$LT\${legacy}17h[0-9a-f]{{16}}E|_RINvNt{_CRATE}4core3ptr(?:9drop_glue|13drop_in_place){kind}\w*"


@dataclass(frozen=True, slots=True)
class Row:
    """A function: what it is called here, its kind, and a pattern for its mangled names."""

    name: str
    kind: CallKind | None
    """None: it is not probed, but read."""
    pattern: str


ROWS = (
    Row("buffer_plaintext", CallKind.RUSTLS_WRITE, _method("common_state", "CommonState", "buffer_plaintext")),
    Row("take_received_plaintext", CallKind.RUSTLS_READ, _method("common_state", "CommonState", "take_received_plaintext")),
    Row("write_to", CallKind.RUSTLS_SEND, _method("vecbuf", "ChunkVecBuffer", "write_to")),
    # The first one calls the second one, which the compiler may have made a part of it.
    Row("start_outgoing_traffic", CallKind.RUSTLS_START, _method("common_state", "CommonState", "start_outgoing_traffic")),
    Row("start_traffic", CallKind.RUSTLS_START, _method("common_state", "CommonState", "start_traffic")),
    # In a ConnectionCommon, the CommonState comes first; else the call is of no connection that is known.
    Row("drop CommonState", CallKind.RUSTLS_END, _dropped("common_state", "CommonState", generic=False)),
    Row("drop ConnectionCommon", CallKind.RUSTLS_END, _dropped("conn", "ConnectionCommon", generic=True)),
    Row("encrypt_outgoing", None, _method("record_layer", "RecordLayer", "encrypt_outgoing")),
    Row("send_single_fragment", None, _method("common_state", "CommonState", "send_single_fragment")),
    Row("send_msg_encrypt", None, _method("common_state", "CommonState", "send_msg_encrypt")),
    Row("send_appdata_encrypt", None, _method("common_state", "CommonState", "send_appdata_encrypt")),
)  # fmt: skip
NOT_BESIDE = {"start_traffic": "start_outgoing_traffic"}
NEEDED = {CallKind.RUSTLS_WRITE, CallKind.RUSTLS_READ}
BOUNDS = {CallKind.RUSTLS_START, CallKind.RUSTLS_END}
"""One of these at least: else a connection in the place of another one would be taken for the same."""
SENDING = ("buffer_plaintext", "send_single_fragment", "send_msg_encrypt", "send_appdata_encrypt")
"""Methods of `CommonState` that may hold the call of the cipher, or of ``encrypt_outgoing``."""
ROLES = ((b"20ClientConnectionData", b"client_conn..ClientConnectionData"), (b"20ServerConnectionData", b"server_conn..ServerConnectionData"))  # fmt: skip
"""What only names of a client's functions hold, and only those of a server's (from 1: `Role`)."""

_PATTERNS = tuple((row, re.compile(rf"(?:{row.pattern})(?:\.llvm\.\d+)?")) for row in ROWS)
_CANDIDATE = re.compile(rb"_[ZR](?:N6rustls|N4core3ptr|NvM|INv)[!-~]{16,1024}(?=\0)")


@dataclass(frozen=True, slots=True)
class Found:
    """One function in a file."""

    row: Row
    vaddr: int
    size: int


def classify(name: str) -> Row | None:
    """The row that a mangled name belongs to."""
    return next((row for row, pattern in _PATTERNS if pattern.fullmatch(name)), None)


def find(image: Image) -> list[Found]:
    """Every function of the table, with all its copies, in the order of their addresses."""
    text = image._section(".strtab")
    if RUSTLS not in text:
        return []
    rows: dict[int, Row] = {}
    for match in _CANDIDATE.finditer(text):
        if b"6rustls" in match[0] or b"rustls.." in match[0]:
            row = classify(match[0].decode())
            if row and len(rows) < MAX_SYMBOLS:
                rows[match.start()] = row
    table = image._section(".symtab")
    found: set[Found] = set()
    for name, info, _, section, value, size in _SYMBOL.iter_unpack(memoryview(table)[: len(table) // 24 * 24]):
        if name in rows and section and value and size and info & 0xF == STT_FUNC and len(found) < MAX_SYMBOLS:
            found.add(Found(rows[name], value, size))
    return sorted(found, key=lambda each: (each.vaddr, each.row.name))


def role(image: Image) -> int:
    """The number of the `Role` that all connections of a file have, by what it does not hold; 0 when it holds both sides."""
    text = image._section(".strtab")
    client, server = (any(name in text for name in names) for names in ROLES)
    return 0 if client == server else 1 if client else 2


# --- Where the pointer to the cipher is ---

_MEMORY = re.compile(r"qword ptr \[(\w+)(?: \+ (0x[0-9a-f]+|\d+))?\]")
_ADDRESS = re.compile(r"\[(\w+)(?: \+ (0x[0-9a-f]+|\d+))?\]")
_CLOBBERED = ("rax", "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11")
Value = tuple[str, int]
"""What a register is known to hold: ``("at", n)``: the address n bytes behind the object; ``("of", n)``: the word that is there."""


def _calls(code: Iterable[tuple[int, int, str, str]], first: str) -> Iterator[tuple[str, dict[str, Value]]]:
    """Yield what each call of a function is of, with what registers then hold of the object that ``first`` points to.

    Straight through: a register is believed from where it is set to the next call or assignment, registers that calls
    preserve beyond.
    """
    known: dict[str, Value] = {first: ("at", 0)}
    for _, _, mnemonic, operands in code:
        target, _, source = operands.partition(", ")
        if mnemonic == "call":
            yield operands, known
            known = {register: value for register, value in known.items() if register not in _CLOBBERED}
            continue
        value: Value | None = None
        if mnemonic == "mov" and source in known:
            value = known[source]
        elif mnemonic in ("mov", "lea") and (match := (_MEMORY if mnemonic == "mov" else _ADDRESS).fullmatch(source)):
            base = known.get(match[1], ("", 0))
            if base[0] == "at":
                value = ("of" if mnemonic == "mov" else "at", base[1] + int(match[2] or "0", 0))
        if mnemonic not in ("cmp", "test") and target in known:
            del known[target]
        if value:
            known[target] = value


def _ciphers(code: Iterable[tuple[int, int, str, str]], first: str) -> Iterator[int]:
    """Yield where the data pointer of a ``Box<dyn MessageEncrypter>`` is, for each call that is made by one."""
    for operands, known in _calls(code, first):
        match = _MEMORY.fullmatch(operands)
        if not match or int(match[2] or "0", 0) != ENCRYPT:
            continue
        # The result is too large for a register: its place is the first argument, the cipher the second.
        table, data = known.get(match[1], ("", 0)), known.get("rsi", ("", 0))
        if (table[0], data[0]) == ("of", "of") and table[1] == data[1] + POINTER:
            yield data[1]


def cipher_place(image: Image, found: Iterable[Found], disassembler: Any) -> int:
    """Where in a ``CommonState`` the pointer to the cipher of outgoing records is, in bytes; 0 when the code doesn't say."""
    places: set[int] = set()
    layers = [each for each in found if each.row.name == "encrypt_outgoing"]
    inner = {place for each in layers for place in _ciphers(_code(image, each, disassembler), "rsi")}
    targets = {f"{each.vaddr:#x}" for each in layers}
    for each in found:
        if each.row.name not in SENDING:
            continue
        code = _code(image, each, disassembler)
        places.update(_ciphers(code, "rdi"))
        for operands, known in _calls(code, "rdi"):
            kind, offset = known.get("rsi", ("", 0))
            if operands in targets and kind == "at":
                places.update(offset + place for place in inner)
    return places.pop() if len(places) == 1 else 0


def _code(image: Image, each: Found, disassembler: Any) -> list[tuple[int, int, str, str]]:
    try:
        return list(disassembler.disasm_lite(image.code(each.vaddr, min(each.size, MAX_CODE)), each.vaddr))
    except AttachError:
        return []


# --- All of it ---


def resolve(resolver: Resolver, image: Image) -> ResolvedLibrary | None:
    """The functions of rustls in a file, with their probe sites; None when it has none by name."""
    found = find(image)
    kinds = {each.row.kind for each in found}
    if not found or not NEEDED & kinds:
        return None
    try:
        points, notes = _points(resolver, image, found)
    except AttachError as error:
        return ResolvedLibrary(image.path, image.build_id, "rustls", (), (str(error),))
    return ResolvedLibrary(image.path, image.build_id, "rustls", tuple(points), tuple(notes))


def _points(resolver: Resolver, image: Image, found: list[Found]) -> tuple[list[AttachPoint], list[str]]:
    """Sites and notes.  Raises `AttachError` when what can be found isn't enough to tell connections and bytes right."""
    names: Mapping[str, list[Found]] = {row.name: [each for each in found if each.row is row] for row in ROWS}
    identity = cipher_place(image, found, resolver._cs)
    side = role(image)
    points: list[AttachPoint] = []
    notes: list[str] = []
    for each in found:
        kind = each.row.kind
        if kind is None or (each.row.name in NOT_BESIDE and names[NOT_BESIDE[each.row.name]]):
            continue
        try:
            points.append(_point(resolver, image, each, kind, identity, side))
        except AttachError as error:
            notes.append(f"rustls {each.row.name}: {error}")
    have = {point.kind for point in points}
    if not have >= NEEDED:
        raise AttachError("; ".join([f"{image.path}: rustls is there, but not all of its functions are", *notes]))
    if not have & BOUNDS:
        raise AttachError(f"{image.path}: rustls is there, but nothing that tells where its connections begin or end")
    if CallKind.RUSTLS_SEND not in have:
        notes.append(
            f"{image.path}: addresses of rustls connections are not known: ChunkVecBuffer::write_to is missing"
        )
    if not identity:
        notes.append(f"{image.path}: a rustls connection that moves in memory becomes another one")
    return points, notes


def _point(resolver: Resolver, image: Image, each: Found, kind: CallKind, identity: int, side: int) -> AttachPoint:
    point = resolver._entry(image, Function(each.row.name, kind), each.vaddr)
    # A panic, and a backtrace, must get past it: there are no return probes.
    leaves = kind in (CallKind.RUSTLS_WRITE, CallKind.RUSTLS_SEND)
    returns = return_sites(image, each.vaddr, resolver._cs) if leaves else ()
    return dataclasses.replace(
        point,
        returns=tuple(map(image.file_offset, returns)),
        identity=identity,
        count_arg=side if kind is CallKind.RUSTLS_START else 0,
    )
