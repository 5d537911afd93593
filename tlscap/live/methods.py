"""Finds the functions that a library puts into a structure of function pointers, by the code that does it.

Compilers don't keep such structures in the file when their values are known: they write addresses that they
compute with ``lea``, or load from constants (gcc 14), two at a time through vector registers.  So the code around the store of the structure's
first word is followed: what each register holds, as far as it is an address, and what is stored where.
Whatever else an instruction does to a register makes its content unknown, never wrong.
"""

from __future__ import annotations

import bisect
import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from tlscap.errors import AttachError
from tlscap.live.catalogue import MethodTable

if TYPE_CHECKING:
    from tlscap.live.sites import Image

MAX_FUNCTION = 8192
_AT_RIP = re.compile(r"(?:(\w+) ptr )?\[rip ([+-]) (0x[0-9a-f]+|\d+)\]")
_WIDTHS = {"byte": 1, "word": 2, "dword": 4, "qword": 8, "xmmword": 16, "ymmword": 32, "zmmword": 64}
_WHOLE = {
    **{f"{prefix}{name}": f"r{name}" for name in ("ax", "bx", "cx", "dx", "si", "di", "bp", "sp") for prefix in ("r", "e", "")},
    **{f"{name}{part}": f"r{name}x" for name in "abcd" for part in "lh"},
    **{f"{name}l": f"r{name}" for name in ("si", "di", "bp", "sp")},
    **{f"r{number}{suffix}": f"r{number}" for number in range(8, 16) for suffix in ("", "d", "w", "b")},
    **{f"{size}mm{number}": f"xmm{number}" for number in range(32) for size in "xyz"},
}  # fmt: skip
"""Registers, and the parts of them that have names of their own."""
_COPIES = frozenset({"mov", "movaps", "movups", "movdqa", "movdqu"})

Content = tuple[int | None, ...]
"""What a register holds, in words of 8 bytes: addresses, as far as they are known."""


def find_methods(image: Image, table: MethodTable, disassembler: Any) -> dict[int, int]:
    """The functions that the structure names, by their place in words of 8 bytes.

    Raises `AttachError` unless exactly one structure is filled so.
    """
    found: set[tuple[int, ...]] = set()
    functions = image.functions()
    starts = [start for start, _ in functions]
    known = set(starts)
    followed = {bisect.bisect_right(starts, at) - 1 for at in _stores_of(image, table.first)}
    for start, size in (functions[index] for index in followed if index >= 0):
        stores = _Stores(start, image.code(start, min(size, MAX_FUNCTION)), disassembler, image.constant_pointer)
        for base in stores.constants.get(table.first, ()):
            words = [stores.words.get(base + 8 * place, -1) for place in range(1, table.length + 1)]
            if all(word in known and image.is_code(word) for word in words):
                found.add((base, *words))
    if len(found) != 1:
        raise AttachError(f"{table.name} in {image.path}: {len(found)} structures look like it")
    return dict(enumerate(found.pop()[1:], 1))


def _stores_of(image: Image, value: int) -> Iterator[int]:
    """Where code might store a 32-bit constant at a fixed address: ``mov dword ptr [rip + x], value``."""
    pattern = re.compile(rb"\xc7\x05....%s" % re.escape(value.to_bytes(4, "little")), re.DOTALL)
    for start, code in image.text():
        for match in pattern.finditer(code):
            yield start + match.start()


class _Stores:
    """Follows one function from its start to its end, as if no branch were taken; where one leads, nothing is known.

    ``pointer`` says which address stands at a place of the file for good, or None.
    """

    def __init__(self, start: int, code: bytes, disassembler: Any, pointer: Callable[[int], int | None]) -> None:
        self.words: dict[int, int] = {}
        """What is stored: addresses by where they go."""
        self.constants: dict[int, list[int]] = {}
        """Where 32-bit constants are stored."""
        self._registers: dict[str, Content] = {}
        self._pointer = pointer
        disassembler.detail = True  # which registers an instruction writes, named or not
        try:
            instructions = [
                (one.address, one.size, one.mnemonic, one.op_str, [one.reg_name(each) for each in one.regs_access()[1]])
                for one in disassembler.disasm(code, start)
            ]
        finally:
            disassembler.detail = False
        landings = {operands for _, _, mnemonic, operands, _ in instructions if mnemonic.startswith("j")}
        for address, size, mnemonic, operands, written in instructions:
            if hex(address) in landings:
                self._registers.clear()
            self._step(address + size, mnemonic, operands, written)

    def _step(self, following: int, mnemonic: str, operands: str, written: list[str]) -> None:
        target, _, source = operands.partition(", ")
        place = _AT_RIP.fullmatch(target)
        if place:
            self._store(_address(place, following), place[1] or "", mnemonic, source)
        result = self._result(following, mnemonic, target, source)
        for register in written:
            self._registers.pop(_WHOLE.get(register, ""), None)
        if result:
            self._registers[target] = result
        # What follows is reached from elsewhere, or after others' work; and capstone doesn't know cmpxchg's second result.
        if mnemonic in ("call", "syscall", "jmp", "ret") or "cmpxchg" in mnemonic:
            self._registers.clear()

    def _result(self, following: int, mnemonic: str, target: str, source: str) -> Content | None:
        """What an instruction puts into the register that is its target; None when that is not known, or it has none."""
        if _WHOLE.get(target) != target:
            return None
        if mnemonic == "lea" and (computed := _AT_RIP.fullmatch(source)):
            return (_address(computed, following),)
        given = self._content(following, source)
        if mnemonic in _COPIES:
            return given
        if mnemonic == "movq" and target.startswith("xmm"):
            return _word(given, 0), None
        held = self._registers.get(target, ())
        if mnemonic in ("punpcklqdq", "movhps"):
            return _word(held, 0), _word(given, 0)
        if mnemonic == "pinsrq":
            inserted, _, place = source.partition(", ")
            word = _word(self._content(following, inserted), 0)
            return (_word(held, 0), word) if place == "1" else (word, _word(held, 1))
        return None

    def _content(self, following: int, operand: str) -> Content:
        """What a register holds, or the memory at a fixed place."""
        place = _AT_RIP.fullmatch(operand)
        if not place:
            return self._registers.get(operand, ())
        at = _address(place, following)
        return tuple(self._pointer(at + 8 * word) for word in range(_WIDTHS.get(place[1] or "", 0) // 8))

    def _store(self, at: int, size: str, mnemonic: str, source: str) -> None:
        end = at + _WIDTHS.get(size, 64)
        for word in [word for word in self.words if at - 8 < word < end]:
            del self.words[word]
        if mnemonic == "mov" and size == "dword" and source.isdigit():
            self.constants.setdefault(int(source), []).append(at)
        elif mnemonic in _COPIES:
            for place, value in enumerate(self._registers.get(source, ())):
                if value is not None:
                    self.words[at + 8 * place] = value


def _word(content: Content, place: int) -> int | None:
    return content[place] if place < len(content) else None


def _address(match: re.Match[str], following: int) -> int:
    offset = int(match[3], 0)
    return following + (offset if match[2] == "+" else -offset)
