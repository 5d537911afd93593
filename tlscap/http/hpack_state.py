"""HPACK (RFC 7541) for one who only listens, and who may have missed something.

Each side of an HTTP/2 connection compresses its header fields against a dynamic table that every header block changes.
An endpoint sees all blocks or gives up the connection.  An observer may have joined late, or lost a block to a hole;
from then on its table misses entries that the peers still have.

What makes reading on possible: indices count from the *newest* entry.  Entries inserted since the break are known and have
known indices, whatever lies behind them; a reference beyond them is a field that can't be decoded, and is counted
instead of guessed.  It heals by itself as new entries push the old ones out.

Why no wrong value can come of it.  After a break the table's maximum size is unknown too, so nothing is evicted here
that the peer may still have, and what the peer evicted it never refers to.  The peer's table, then, is always equal to
the newest part of this one followed by unknown entries, or to less.  The same holds for an entry larger than
the whole table (which empties the peer's, RFC 7541, 4.4) and for one whose name, hence size, is unknown.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final

from hpack.exceptions import HPACKDecodingError
from hpack.huffman_table import decode_huffman
from hpack.table import HeaderTable

from tlscap.http.events import Header

TABLE_SIZE: Final = 4096
"""A dynamic table's maximum size, in octets, until the encoder says otherwise (RFC 9113, 6.5.2)."""

TABLE_LIMIT: Final = 1 << 20
"""What is kept of a dynamic table at most, in octets.  Chrome and Firefox ask for 64 KiB; what is older than this is unknown."""

ENTRY_OVERHEAD: Final = 32
"""What each entry counts beside its name and value (RFC 7541, 4.1): the smallest entry there can be."""

_Entry = tuple[Header | None, int]
"""A field and its size, overhead included.  ``None``: inserted, but its name is unknown and its size is the least it can be."""

_STATIC: Final[tuple[_Entry, ...]] = (
    (None, 0),  # indices count from 1
    *(
        ((name, value), len(name) + len(value) + ENTRY_OVERHEAD)
        for name, value in HeaderTable.STATIC_TABLE  # RFC 7541, appendix A
    ),
)
_DYNAMIC: Final = len(_STATIC)  # the newest dynamic entry's index

_INTEGER_SHIFT_LIMIT: Final = (
    28  # 5 octets after the prefix, as other decoders have it: more than any 32-bit number needs
)
_CACHED_STRING: Final = 128  # longest Huffman string that is remembered


class _CorruptError(Exception):
    """A block that no encoder makes; the text says why."""


@dataclass(slots=True)
class FieldSection:
    """What a header block says, as far as that can be known."""

    fields: list[Header] = field(default_factory=list)
    """In order, pseudo-header fields included; without those that could not be decoded."""
    notes: list[str] = field(default_factory=list)
    """What is missing, in words for people; empty when nothing is."""
    first_unknown: bool = False
    """The block's first field is one that is missing.  Pseudo-header fields come first (RFC 9113, 8.3)."""
    corrupt: bool = False
    """The block broke the format: what came before is in ``fields``, what came after is not."""

    @property
    def partial(self) -> bool:
        """Whether a field is missing."""
        return bool(self.notes)


class HeaderDecoder:
    """One side's header blocks, in order, to fields.  ``limit``: octets of fields, 32 each added, that a block may make."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._table: deque[_Entry] = deque()  # the newest first
        self._size = 0
        self._max_size = TABLE_SIZE
        self._exact = True  # ``_max_size`` is the encoder's; otherwise it is only what is kept
        self._whole = True  # nothing unknown lies behind the entries at hand
        self._why = ""  # what made it unknown

    def forget(self, why: str) -> None:
        """Take the news that blocks went by unread, or may have."""
        self._table.clear()
        self._size = 0
        self._max_size = TABLE_LIMIT
        self._exact = self._whole = False
        self._why = why

    def decode(self, block: bytes) -> FieldSection:
        """Return the fields of the next block."""
        section = FieldSection()
        fields = section.fields
        table = self._table
        room = self._limit
        unknown = left_out = pos = 0
        end = len(block)
        try:
            while pos < end:
                byte = block[pos]
                pos += 1
                if byte >= 0x80:  # indexed field, RFC 7541, 6.1
                    index = byte & 0x7F
                    if index == 0x7F:
                        index, pos = _long_integer(block, pos, 0x7F)
                    if 0 < index < _DYNAMIC:
                        entry, size = _STATIC[index]
                    elif _DYNAMIC <= index < _DYNAMIC + len(table):
                        entry, size = table[index - _DYNAMIC]
                    else:
                        entry, size = self._beyond(index)
                elif byte & 0xE0 == 0x20:  # dynamic table size update, 6.3
                    size = byte & 0x1F
                    if size == 0x1F:
                        size, pos = _long_integer(block, pos, 0x1F)
                    self._resize(size)
                    continue
                else:
                    entry, size, pos = self._literal(block, pos, byte)
                if entry is None:
                    section.first_unknown |= not fields
                    unknown += 1
                    continue
                room -= size
                if room >= 0:
                    fields.append(entry)
                else:
                    left_out += 1
        except (_CorruptError, IndexError) as error:
            what = str(error) if isinstance(error, _CorruptError) else "the block ends within a field"
            section.corrupt = True
            section.first_unknown |= not fields
            section.notes.append(f"headers not decodable: {what}, after {len(fields) + unknown + left_out} fields")
        if unknown:
            total = len(fields) + unknown + left_out
            section.notes.append(f"{unknown} of {total} header fields not decodable: {self._why}")
        if left_out:
            section.notes.append(f"more than {self._limit} bytes of headers: {left_out} fields left out")
        if section.corrupt:
            self.forget("an earlier header block was not decodable")
        return section

    def _literal(self, block: bytes, pos: int, byte: int) -> tuple[Header | None, int, int]:
        """Read a literal field that began with ``byte`` (RFC 7541, 6.2): its entry, its size, the position after it."""
        indexed = byte >= 0x40
        mask = 0x3F if indexed else 0x0F
        index = byte & mask
        if index == mask:
            index, pos = _long_integer(block, pos, mask)
        name: bytes | None
        if index:
            named = self._entry(index)[0]
            name = named[0] if named else None
        else:
            name, pos = _string(block, pos)
        value, pos = _string(block, pos)
        entry = (name, value) if name is not None else None
        size = len(name or b"") + len(value) + ENTRY_OVERHEAD
        if indexed:
            self._insert((entry, size))
        return entry, size, pos

    def _entry(self, index: int) -> _Entry:
        if 0 < index < _DYNAMIC:
            return _STATIC[index]
        if _DYNAMIC <= index < _DYNAMIC + len(self._table):
            return self._table[index - _DYNAMIC]
        return self._beyond(index)

    def _beyond(self, index: int) -> _Entry:
        """Return what an index stands for that no entry at hand has."""
        if self._whole or not index:
            raise _CorruptError(f"no table entry {index}")
        return None, 0

    # --- The dynamic table ---

    def _insert(self, entry: _Entry) -> None:
        size = entry[1]
        if size > self._max_size:  # it empties the encoder's table, or it is one that is not kept
            self._table.clear()
            self._size = 0
            self._tail(known=self._exact)
            return
        self._table.appendleft(entry)
        self._size += size
        self._evict()

    def _resize(self, size: int) -> None:
        """Follow the encoder's word.  Whether its peer allowed that much is not for a listener to judge."""
        self._exact = size <= TABLE_LIMIT
        self._max_size = min(size, TABLE_LIMIT)
        self._evict()

    def _evict(self) -> None:
        """Drop the oldest entries until the maximum size is not exceeded."""
        dropped = False
        while self._size > self._max_size:
            self._size -= self._table.pop()[1]
            dropped = True
        if self._exact and (dropped or self._max_size - self._size < ENTRY_OVERHEAD):
            self._tail(known=True)  # unknown entries, being older, went first; or there is no room for one
        elif dropped:
            self._tail(known=False)

    def _tail(self, *, known: bool) -> None:
        """Note whether unknown entries may lie behind those at hand."""
        if self._whole and not known:
            self._why = f"only {TABLE_LIMIT} bytes of the table are kept"
        self._whole = known


def _long_integer(block: bytes, pos: int, value: int) -> tuple[int, int]:
    """Read the rest of an integer whose prefix was all ones, ``value`` (RFC 7541, 5.1); return it and the position after."""
    shift = 0
    while True:
        byte = block[pos]
        pos += 1
        value += (byte & 0x7F) << shift
        if byte < 0x80:
            return value, pos
        shift += 7
        if shift > _INTEGER_SHIFT_LIMIT:
            raise _CorruptError("integer too long")


def _string(block: bytes, pos: int) -> tuple[bytes, int]:
    """Read a string literal (RFC 7541, 5.2); return it and the position after."""
    byte = block[pos]
    pos += 1
    length = byte & 0x7F
    if length == 0x7F:
        length, pos = _long_integer(block, pos, 0x7F)
    reached = pos + length
    if reached > len(block):
        raise _CorruptError("string longer than the block")
    text = block[pos:reached]
    if byte >= 0x80:
        try:
            text = _remembered_huffman(text) if length <= _CACHED_STRING else decode_huffman(text)
        except HPACKDecodingError:
            raise _CorruptError("invalid Huffman code") from None
    return text, reached


_remembered_huffman = lru_cache(maxsize=2048)(
    decode_huffman
)  # names, and values of fields that are never indexed, repeat
