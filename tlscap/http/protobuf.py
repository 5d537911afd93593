"""What a protobuf message says when its schema is not known, in words for people (like ``protoc --decode_raw``).

The wire format (protobuf.dev, "Encoding") names fields by number and says how long they are, not what they mean: a
length-delimited field may be text, bytes, a message or packed numbers.  Text is recognized first, then a message.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

DESCRIPTION_LIMIT: Final = 1 << 16
"""Longest description, in characters, give or take a line."""

_FIELDS_MAX: Final = 20_000  # looked at in all, nested ones and tries included
_DEPTH_MAX: Final = 16
_TEXT_MAX: Final = 1000
_BYTES_MAX: Final = 64
_NESTED_MAX: Final = 1 << 20  # longest field in bytes that is tried as a message: each level holds a copy
_NUMBER_MAX: Final = (1 << 29) - 1

_VARINT: Final = 0
_FIXED64: Final = 1
_DELIMITED: Final = 2
_GROUP: Final = 3
_GROUP_END: Final = 4
_FIXED32: Final = 5

_CONTROL = re.compile("[\x00-\x1f]")
_ODD_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
_ESCAPES: Final = {"\n": "\\n", "\r": "\\r", "\t": "\\t", '"': '\\"', "\\": "\\\\"}


@dataclass(frozen=True, slots=True)
class Field:
    """One field of a message."""

    number: int
    wire_type: int
    value: int | bytes
    """The number of a varint or a fixed one, unsigned; the bytes of what is delimited, or of a group without its end."""


class _NoMessageError(ValueError):
    """Bytes that are no protobuf message."""


class _Budget:
    """How much more may be looked at and said."""

    def __init__(self, characters: int) -> None:
        self.fields = _FIELDS_MAX
        self.characters = characters


def describe_protobuf(data: bytes, *, limit: int = DESCRIPTION_LIMIT, cut: bool = False) -> str | None:
    """Return what ``data`` says, a line for each field, or ``None``: it is no protobuf message.

    ``limit`` bounds the description's length in characters.  ``cut``: the end of the message may be missing.
    An empty message is described by an empty string.
    """
    budget = _Budget(limit)
    try:
        fields = _fields(data, budget, cut=cut)
    except _NoMessageError:
        return None
    return "\n".join(_lines(fields, budget, 0))


def protobuf_fields(data: bytes) -> list[Field] | None:
    """Return the fields of a message, nested ones as bytes; ``None``: it is none, or one of too many fields."""
    try:
        fields = _fields(data, _Budget(0), cut=False)
    except _NoMessageError:
        return None
    return [field for field in fields if field] if None not in fields else None


def _fields(data: bytes, budget: _Budget, *, cut: bool) -> list[Field | None]:
    """Split a message; a final ``None`` says that more follows, beyond the budget or the cut."""
    fields: list[Field | None] = []
    pos = 0
    while pos < len(data):
        if budget.fields <= 0:
            fields.append(None)
            break
        budget.fields -= 1
        try:
            field, pos = _field(data, pos, budget)
        except IndexError:
            if not cut:
                raise _NoMessageError from None
            fields.append(None)
            break
        fields.append(field)
    return fields


def _field(data: bytes, pos: int, budget: _Budget) -> tuple[Field, int]:
    """Read the field at ``pos``; return it and where it ends.  ``IndexError``: the data ends inside of it."""
    number, wire_type, pos = _tag(data, pos)
    value: int | bytes
    if wire_type == _GROUP_END:
        raise _NoMessageError
    if wire_type == _VARINT:
        value, pos = _varint(data, pos)
    elif wire_type == _GROUP:
        begin = pos
        end, pos = _group_end(data, pos, number, budget)
        value = data[begin:end]
    else:
        if wire_type == _DELIMITED:
            length, pos = _varint(data, pos, 5)
        else:
            length = 8 if wire_type == _FIXED64 else 4
        if pos + length > len(data):
            raise IndexError
        value = data[pos : pos + length]
        pos += length
        if wire_type != _DELIMITED:
            value = int.from_bytes(value, "little")
    return Field(number, wire_type, value), pos


def _tag(data: bytes, pos: int) -> tuple[int, int, int]:
    """Return a field's number and wire type, and where its value begins."""
    tag, pos = _varint(data, pos, 5)
    number, wire_type = tag >> 3, tag & 7
    if not 1 <= number <= _NUMBER_MAX or wire_type > _FIXED32:
        raise _NoMessageError
    return number, wire_type, pos


def _varint(data: bytes, pos: int, size: int = 10) -> tuple[int, int]:
    """Return the number at ``pos``, which takes at most ``size`` bytes, and where it ends."""
    value = 0
    for shift in range(0, 7 * size, 7):
        byte = data[pos]
        pos += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if value >> 64:
                raise _NoMessageError
            return value, pos
    raise _NoMessageError


def _group_end(data: bytes, pos: int, number: int, budget: _Budget) -> tuple[int, int]:
    """Return where the group that begins at ``pos`` ends, without and with the tag that ends it."""
    open_groups = [number]
    while True:
        budget.fields -= 1
        if budget.fields <= 0:
            raise _NoMessageError
        begin = pos
        number, wire_type, pos = _tag(data, pos)
        if wire_type == _GROUP:
            open_groups.append(number)
            if len(open_groups) > _DEPTH_MAX:
                raise _NoMessageError
        elif wire_type == _GROUP_END:
            if open_groups.pop() != number:
                raise _NoMessageError
            if not open_groups:
                return begin, pos
        elif wire_type == _VARINT:
            _, pos = _varint(data, pos)
        else:
            if wire_type == _DELIMITED:
                length, pos = _varint(data, pos, 5)
            else:
                length = 8 if wire_type == _FIXED64 else 4
            pos += length
            if pos > len(data):
                raise IndexError


def _lines(fields: list[Field | None], budget: _Budget, depth: int) -> Iterator[str]:
    indent = "  " * depth
    for field in fields:
        if field is None or budget.characters <= 0:
            yield f"{indent}…"
            return
        nested = _nested(field, budget, depth)
        line = f"{indent}{field.number}{' {' if nested is not None else ': ' + _scalar(field)}"
        budget.characters -= len(line) + 1
        yield line
        if nested is not None:
            yield from _lines(nested, budget, depth + 1)
            yield f"{indent}}}"


def _nested(field: Field, budget: _Budget, depth: int) -> list[Field | None] | None:
    """Return the fields of a field that is a message, as far as can be told."""
    if depth >= _DEPTH_MAX or not isinstance(field.value, bytes) or len(field.value) > _NESTED_MAX:
        return None
    if field.wire_type != _GROUP and (not field.value or _is_plain_text(field.value)):
        return None
    try:
        fields = _fields(field.value, budget, cut=False)
    except _NoMessageError:
        return None
    return None if None in fields else fields  # a try that the budget ended proves nothing


def _is_plain_text(data: bytes) -> bool:
    """Tell whether these bytes are text without a control character, line breaks included.

    A line break is also the tag of a first field that is text, so such bytes may be a message rather than text.
    """
    text = _text(data)
    return text is not None and not _CONTROL.search(text)


def _text(data: bytes) -> str | None:
    """Return the text that these bytes are, or ``None``."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return None
    return None if _ODD_CONTROL.search(text) else text


def _scalar(field: Field) -> str:
    value = field.value
    if isinstance(value, bytes):
        text = _text(value)
        if text is not None:
            return _quoted(text)
        more = f"… ({len(value)} bytes)" if len(value) > _BYTES_MAX else ""
        return f"bytes {value[:_BYTES_MAX].hex()}{more}"
    if field.wire_type == _VARINT:
        return f"{value} ({value - (1 << 64)})" if value >> 63 else str(value)
    size, code = (8, "<d") if field.wire_type == _FIXED64 else (4, "<f")
    raw = value.to_bytes(size, "little")
    (number,) = struct.unpack(code, raw)
    # Most integers make floating-point numbers that nobody would send.
    plausible = math.isfinite(number) and 1e-9 < abs(number) < 1e15
    return f"0x{value:0{2 * size}x} ({f'{number:.{15 if size == 8 else 7}g}' if plausible else value})"


def _quoted(text: str) -> str:
    more = f"… ({len(text)} characters)" if len(text) > _TEXT_MAX else ""
    return f'"{"".join(map(_escaped, text[:_TEXT_MAX]))}"{more}'


def _escaped(character: str) -> str:
    if character in _ESCAPES:
        return _ESCAPES[character]
    if character.isprintable():
        return character
    return f"\\u{ord(character):04x}" if ord(character) < 1 << 16 else f"\\U{ord(character):08x}"
