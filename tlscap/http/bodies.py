"""Bodies as people want them: decoded, kept up to a limit or written to files, and honest about what is missing.

`BodyCollector` and `BodyFiles` are sinks for `tlscap.http.exchanges.ExchangeBuilder`: they see every piece of every body as
it passes.  Both undo content codings as far as that is possible (`LenientDecoder`), and neither ever fails because of
what passed.  `MessageCollector` keeps the messages within bodies and tunnels.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO, Final, NamedTuple, Protocol

from tlscap.http.content import ContentDecoder, ContentError
from tlscap.http.events import BodyGap, Side
from tlscap.http.exchanges import Exchange
from tlscap.http.messages import AppMessage, parameters
from tlscap.model import GapReason

BODY_LIMIT: Final = 1 << 20
"""Bytes that are kept of one body, unless told otherwise."""

TOTAL_LIMIT: Final = 256 << 20
"""Bytes that are kept of all bodies of open exchanges, unless told otherwise."""

OPEN_FILES: Final = 64
"""Files that are open at a time, unless told otherwise."""

_HOLES_MAX: Final = 1000  # remembered of one body; further ones are added to the last
_HELD_LIMIT: Final = 1 << 20  # of a body that may turn out not to be decodable, while it is written to a file
_HELD_TOTAL: Final = 64 << 20
_MESSAGE_WEIGHT: Final = 500  # bytes of memory for a message, without what it says

Chosen = Callable[[Exchange, Side], bool]
"""Tells whether a body is wanted.  Asked once for each body, when its first piece passes."""


class Hole(NamedTuple):
    """Bytes of a body that passed but are not stored."""

    offset: int
    """How many bytes of the body as it is given (decoded, say) come before."""
    length: int
    """In bytes as transferred."""
    reason: GapReason


@dataclass(frozen=True, slots=True)
class Body:
    """One body, or as much of it as passed and was kept."""

    data: bytes
    """Its beginning, decoded; with holes, what is around them."""
    size: int
    """Bytes that it decoded to, kept or not, without missing ones."""
    transferred: int
    """Bytes as transferred: encoded, without chunk framing, without missing ones."""
    gaps: tuple[Hole, ...] = ()
    missing: int = 0
    """Bytes in all holes."""
    complete: bool = True
    """Whether all of it was seen and decoded.  What is beyond the limit was seen too."""
    encoded: bool = False
    """Whether it could not be decoded: then ``data`` and ``size`` are as transferred."""
    note: str = ""
    """Why it could not be decoded, or not to its end."""

    @property
    def truncated(self) -> bool:
        """Whether there is more of it than was kept."""
        return len(self.data) < self.size


class Budget:
    """Bytes that may still be held, shared by many."""

    def __init__(self, left: int) -> None:
        self.left = left

    def take(self, wanted: int) -> int:
        """Return how many of the wanted bytes may be held."""
        granted = min(wanted, self.left)
        self.left -= granted
        return granted

    def give(self, length: int) -> None:
        """Take back what is not held any more."""
        self.left += length


class LenientDecoder:
    """Undoes the codings of one body where that is possible.

    A body that fails before it decoded to anything is given as it was transferred, and ``encoded`` is true; one that
    fails later, or has a hole, ends there.  ``note`` says why.
    """

    def __init__(self, encodings: str, *, limit: int = _HELD_LIMIT, budget: Budget | None = None) -> None:
        self.encoded = False
        self.note = ""
        self.transferred = 0
        self._budget = budget or Budget(limit)
        self._limit = limit
        self._held = bytearray()  # what passed while nothing was decoded
        self._held_all = True
        self._has_output = False
        self._stopped = False
        self._decoder: ContentDecoder | None = None
        try:
            self._decoder = ContentDecoder(encodings) if encodings else None
        except ContentError as error:
            self.encoded = True
            self.note = str(error)

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield what the next bytes stand for.  The next call is allowed when this iterator is exhausted."""
        self.transferred += len(data)
        if self._stopped:
            return
        if self._decoder is None:
            yield data
            return
        if not self._has_output:
            self._hold(data)
        try:
            for piece in self._decoder.feed(data):
                if not self._has_output:
                    self._has_output = True
                    self.release()
                yield piece
        except ContentError as error:
            yield from self._give_up(str(error))

    def hole(self) -> Iterator[bytes]:
        """Take the news that bytes are missing; yield what was held back until now."""
        if self._decoder:
            yield from self._give_up(f"{', '.join(self._decoder.encodings)}: can't be decoded beyond a hole")

    def finish(self) -> bool:
        """Return whether everything was decoded; nothing may follow."""
        self.release()
        if self._decoder and not self._decoder.finish():
            self.note = f"{', '.join(self._decoder.encodings)}: ends too early"
        return not self.note

    def release(self) -> None:
        """Forget what is held in case that nothing can be decoded."""
        self._budget.give(len(self._held))
        self._held = bytearray()

    def _hold(self, data: bytes) -> None:
        granted = self._budget.take(min(len(data), self._limit - len(self._held)) if self._held_all else 0)
        self._held += data[:granted]
        self._held_all = self._held_all and granted == len(data)

    def _give_up(self, why: str) -> Iterator[bytes]:
        self._decoder = None
        self.note = why
        self.encoded = not self._has_output
        self._stopped = self._has_output or not self._held_all
        held = bytes(self._held)
        self.release()
        if held:
            yield held


class BodyDraft:
    """One body as it passes.  ``encodings`` are those of `tlscap.http.exchanges.Message`; at most ``limit`` bytes are kept."""

    def __init__(self, encodings: str, *, limit: int = BODY_LIMIT, budget: Budget | None = None) -> None:
        self._limit = limit
        self._budget = budget or Budget(2 * limit)
        self._decoder = LenientDecoder(encodings, limit=limit, budget=self._budget)
        self._kept = bytearray()
        self._size = 0
        self._holes: list[Hole] = []
        self._missing = 0

    def add(self, data: bytes) -> None:
        """Take the next bytes, as transferred."""
        for piece in self._decoder.feed(data):
            self._keep(piece)

    def gap(self, length: int, reason: GapReason) -> None:
        """Take the news that the next bytes are missing."""
        for piece in self._decoder.hole():
            self._keep(piece)
        self._missing += length
        last = self._holes[-1] if self._holes else None
        full = len(self._holes) == _HOLES_MAX
        if last and (full or (last.offset == self._size and last.reason is reason)):
            self._holes[-1] = last._replace(length=last.length + length)
        else:
            self._holes.append(Hole(self._size, length, reason))

    def content(self) -> bytes | None:
        """Return what is kept so far; ``None``: it could not be decoded."""
        return None if self._decoder.encoded else bytes(self._kept)

    def done(self, *, complete: bool) -> Body:
        """Return the body; ``complete``: the message says that it is.  Nothing may follow."""
        decoded = self._decoder.finish()
        transferred = self._decoder.transferred
        body = Body(
            data=bytes(self._kept),
            size=transferred if self._decoder.encoded else self._size,
            transferred=transferred,
            gaps=tuple(self._holes),
            missing=self._missing,
            complete=complete and decoded and not self._missing,
            encoded=self._decoder.encoded,
            note=self._decoder.note,
        )
        self.discard()
        return body

    def discard(self) -> None:
        """Forget it."""
        self._decoder.release()
        self._budget.give(len(self._kept))
        self._kept = bytearray()

    def _keep(self, piece: bytes) -> None:
        if len(self._kept) == self._size:  # nothing was left out before
            self._kept += piece[: self._budget.take(min(len(piece), self._limit - len(self._kept)))]
        self._size += len(piece)


class BodyCollector:
    """Keeps the bodies of open exchanges, decoded.  A `BodySink`.

    Of one body the first ``limit`` bytes are kept, and in all no more than ``total_limit``; the rest is counted.
    Whoever uses it calls `take` for both sides of every exchange that ended, or `forget`.
    """

    def __init__(
        self, *, limit: int = BODY_LIMIT, total_limit: int = TOTAL_LIMIT, chosen: Chosen | None = None
    ) -> None:
        self._limit = limit
        self._budget = Budget(total_limit)
        self._chosen = chosen
        self._drafts: dict[tuple[int, Side], BodyDraft | None] = {}

    @property
    def held(self) -> int:
        """How many bodies are remembered."""
        return len(self._drafts)

    def on_body(self, exchange: Exchange, side: Side, piece: bytes | BodyGap) -> None:
        """Take one piece."""
        key = exchange.id, side
        if key not in self._drafts:
            wanted = not self._chosen or self._chosen(exchange, side)
            self._drafts[key] = self._draft(exchange, side) if wanted else None
        draft = self._drafts[key]
        if draft is None:
            return
        if isinstance(piece, BodyGap):
            draft.gap(piece.length, piece.reason)
        else:
            draft.add(piece)

    def take(self, exchange: Exchange, side: Side) -> Body | None:
        """Return a body and forget it; ``None``: the message was not seen, or its body was not chosen."""
        message = exchange.message(side)
        draft = self._drafts.pop((exchange.id, side), None) if message else None
        if draft and message:
            return draft.done(complete=message.complete)
        nothing = message and not message.body_size and not message.gap_bytes
        return Body(b"", 0, 0, complete=message.complete) if message and nothing else None

    def content(self, exchange: Exchange, side: Side) -> bytes | None:
        """Return what is kept of a body so far, and keep it; ``None``: nothing is, or it could not be decoded."""
        draft = self._drafts.get((exchange.id, side))
        return draft.content() if draft else None

    def forget(self, exchange: Exchange) -> None:
        """Forget what is kept of an exchange."""
        for side in Side:
            draft = self._drafts.pop((exchange.id, side), None)
            if draft:
                draft.discard()

    def _draft(self, exchange: Exchange, side: Side) -> BodyDraft:
        return BodyDraft(_encodings(exchange, side), limit=self._limit, budget=self._budget)


class MessageCollector:
    """Keeps the messages of open exchanges.  A `MessageSink`.

    Together they are at most ``total_limit`` bytes; those that find no room are counted.  Whoever uses it calls `take`
    for every exchange that ended.
    """

    def __init__(self, *, total_limit: int = TOTAL_LIMIT, chosen: Callable[[Exchange], bool] | None = None) -> None:
        self._budget = Budget(total_limit)
        self._chosen = chosen
        self._kept: dict[int, list[AppMessage]] = {}
        self._left_out: dict[int, int] = {}

    def on_message(self, exchange: Exchange, message: AppMessage) -> None:
        """Take one message."""
        if self._chosen and not self._chosen(exchange):
            return
        weight = _weight(message)
        if self._budget.left < weight:
            self._left_out[exchange.id] = self._left_out.get(exchange.id, 0) + 1
            return
        self._budget.take(weight)
        self._kept.setdefault(exchange.id, []).append(message)

    def take(self, exchange: Exchange) -> tuple[list[AppMessage], int]:
        """Return an exchange's messages and how many others found no room; forget them."""
        messages = self._kept.pop(exchange.id, [])
        self._budget.give(sum(map(_weight, messages)))
        return messages, self._left_out.pop(exchange.id, 0)


def _weight(message: AppMessage) -> int:
    return _MESSAGE_WEIGHT + len(message.data) + sum(len(name) + len(value) for name, value in message.headers)


# --- Files ---


class OpenFile(Protocol):
    """Opens a file of a folder for writing.

    ``name`` consists of letters, digits, dots and dashes, and begins with a digit.  At first the file must not exist;
    ``again``: it is one that was opened before, and is to be continued at its end.
    """

    def __call__(self, name: str, *, again: bool) -> BinaryIO:
        """Return the file, open for binary writing."""
        ...


@dataclass(frozen=True, slots=True)
class BodyFile:
    """What was written of one body."""

    name: str
    exchange: int
    """Its exchange's id."""
    side: Side
    size: int
    """Bytes written."""
    transferred: int
    missing: int
    """Bytes that passed but are not stored; nothing stands in their place."""
    complete: bool
    encoded: bool
    note: str
    """These three: as in `Body`."""


class BodyFiles:
    """Writes every body to a file of its own as it passes, decoded.  A `BodySink`.

    Files are named by the exchange, the side and the kind of content: ``0012-response.json``, or ``0012-response.json.gz``
    when it could not be decoded.  Nothing in a name comes from the network.  Bodies without a byte make no file.
    ``open_file`` opens them; at most ``open_limit`` are open at a time.

    Whoever uses it calls `finish` for every exchange that ended, and `close` at the end.
    """

    def __init__(self, open_file: OpenFile, *, chosen: Chosen | None = None, open_limit: int = OPEN_FILES) -> None:
        self._open_file = open_file
        self._chosen = chosen
        self._open_limit = open_limit
        self._budget = Budget(_HELD_TOTAL)
        self._writers: dict[tuple[int, Side], _Writer | None] = {}
        self._files: dict[str, BinaryIO] = {}  # the one that was written to last comes last

    def on_body(self, exchange: Exchange, side: Side, piece: bytes | BodyGap) -> None:
        """Write one piece.  `OSError` is the caller's."""
        key = exchange.id, side
        if key not in self._writers:
            wanted = not self._chosen or self._chosen(exchange, side)
            self._writers[key] = _Writer(exchange, side, self._budget) if wanted else None
        writer = self._writers[key]
        if writer is None:
            return
        if isinstance(piece, BodyGap):
            writer.missing += piece.length
            pieces = writer.decoder.hole()
        else:
            pieces = writer.decoder.feed(piece)
        for decoded in pieces:
            self._write(writer, decoded)

    def finish(self, exchange: Exchange) -> list[BodyFile]:
        """Close the files of an exchange that ended; return what was written, the request first."""
        return [
            file
            for side in Side
            if (writer := self._writers.pop((exchange.id, side), None)) and (file := self._finished(writer))
        ]

    def close(self) -> list[BodyFile]:
        """Close everything; return what was written of exchanges that did not end."""
        writers = [writer for writer in self._writers.values() if writer]
        self._writers.clear()
        return [file for writer in writers if (file := self._finished(writer))]

    def _write(self, writer: _Writer, data: bytes) -> None:
        if not data:
            return
        file = self._files.pop(writer.name, None) if writer.name else None
        if file is None:
            again = bool(writer.name)
            writer.name = writer.name or _file_name(writer)
            self._make_room()
            file = self._open_file(writer.name, again=again)
        self._files[writer.name] = file
        file.write(data)
        writer.size += len(data)

    def _make_room(self) -> None:
        while len(self._files) >= self._open_limit:
            self._files.pop(next(iter(self._files))).close()

    def _finished(self, writer: _Writer) -> BodyFile | None:
        decoded = writer.decoder.finish()
        file = self._files.pop(writer.name, None)
        if file:
            file.close()
        if not writer.name:
            return None
        message = writer.exchange.message(writer.side)
        return BodyFile(
            name=writer.name,
            exchange=writer.exchange.id,
            side=writer.side,
            size=writer.size,
            transferred=writer.decoder.transferred,
            missing=writer.missing,
            complete=bool(message and message.complete and decoded and not writer.missing),
            encoded=writer.decoder.encoded,
            note=writer.decoder.note,
        )


class _Writer:
    """One body on its way into a file."""

    def __init__(self, exchange: Exchange, side: Side, budget: Budget) -> None:
        self.exchange = exchange
        self.side = side
        self.decoder = LenientDecoder(_encodings(exchange, side), budget=budget)
        self.name = ""
        self.size = 0
        self.missing = 0


def _encodings(exchange: Exchange, side: Side) -> str:
    message = exchange.message(side)
    return message.encodings if message else ""


_SUFFIXES: Final = {
    b"application/gzip": "gz",
    b"application/javascript": "js",
    b"application/json": "json",
    b"application/ld+json": "json",
    b"application/msgpack": "msgpack",
    b"application/ndjson": "jsonl",
    b"application/pdf": "pdf",
    b"application/wasm": "wasm",
    b"application/x-ndjson": "jsonl",
    b"application/x-protobuf": "pb",
    b"application/x-tar": "tar",
    b"application/x-www-form-urlencoded": "form",
    b"application/xhtml+xml": "html",
    b"application/xml": "xml",
    b"application/yaml": "yaml",
    b"application/zip": "zip",
    b"audio/mpeg": "mp3",
    b"font/woff": "woff",
    b"font/woff2": "woff2",
    b"image/avif": "avif",
    b"image/gif": "gif",
    b"image/jpeg": "jpg",
    b"image/png": "png",
    b"image/svg+xml": "svg",
    b"image/vnd.microsoft.icon": "ico",
    b"image/webp": "webp",
    b"image/x-icon": "ico",
    b"text/css": "css",
    b"text/csv": "csv",
    b"text/event-stream": "sse",
    b"text/html": "html",
    b"text/javascript": "js",
    b"text/markdown": "md",
    b"text/xml": "xml",
    b"video/mp4": "mp4",
    b"video/webm": "webm",
}
_FAMILIES: Final = (
    (re.compile(rb"application/grpc"), "grpc"),
    (re.compile(rb"multipart/"), "multipart"),
    (re.compile(rb".*\+json\Z"), "json"),
    (re.compile(rb".*\+xml\Z"), "xml"),
    (re.compile(rb"text/"), "txt"),
)
_CODING_SUFFIXES: Final = {"gzip": "gz", "x-gzip": "gz", "deflate": "zlib", "br": "br", "zstd": "zst"}


def _file_name(writer: _Writer) -> str:
    message = writer.exchange.message(writer.side)
    values = message.values(b"content-type") if message else []
    media_type, _ = parameters(values[0] if values else b"")
    suffix = _SUFFIXES.get(media_type) or next((name for kind, name in _FAMILIES if kind.match(media_type)), "bin")
    if writer.decoder.encoded:
        codings = _encodings(writer.exchange, writer.side).split(", ")
        known = all(coding in _CODING_SUFFIXES for coding in codings) and len(codings) <= len(_CODING_SUFFIXES)
        suffix += "." + (".".join(_CODING_SUFFIXES[coding] for coding in codings) if known else "encoded")
    return f"{writer.exchange.id:04d}-{writer.side.value}.{suffix}"


# --- Text ---

_CHARSETS: Final = frozenset(
    {
        *("ascii", "big5", "cp932", "cp949", "euc_jp", "euc_kr", "gb18030", "gb2312", "gbk", "iso2022_jp", "koi8-r"),
        *("koi8-u", "mac-roman", "shift_jis", "tis-620", "utf-16", "utf-16-be", "utf-16-le", "utf-8"),
        *(f"cp125{number}" for number in range(9)),
        *(f"iso8859-{number}" for number in range(1, 17) if number != 12),
    }
)
"""The charsets that are read, as `codecs` names them.  Python knows others that no page is written in, some of them slow."""

_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1a\x1c-\x1f\x7f-\x9f]")
_TEXT_TYPE = re.compile(
    rb"text/|multipart/|message/|.*[+/](?:json|xml|yaml)\Z"
    rb"|application/(?:(?:x-)?javascript|ecmascript|graphql|(?:x-)?(?:ndjson|jsonl|jsonlines)|x-www-form-urlencoded|sql|toml)\Z"
)


def is_text_type(content_type: bytes) -> bool:
    """Tell whether a Content-Type promises text."""
    return _TEXT_TYPE.match(parameters(content_type)[0]) is not None


def text_of(data: bytes, content_type: bytes, *, cut: bool = False) -> str | None:
    """Return the text that a body is, or ``None``: it is something else.

    The charset is the one that its type names, else UTF-8.  What is returned encodes to the same bytes again.  Where the type
    promises no text, control characters show that it is none.  ``cut``: the end may be missing, inside of a character.
    """
    charset = _charset(parameters(content_type)[1].get(b"charset", b"")) or "utf-8"
    try:
        text = codecs.getincrementaldecoder(charset)().decode(data, final=not cut)
        if not cut and charset != "utf-8" and text.encode(charset) != data:
            return None
    except (UnicodeError, LookupError):
        return None
    return None if _CONTROL.search(text) and not is_text_type(content_type) else text


def _charset(name: bytes) -> str:
    """Return what `codecs` calls a charset; empty when it is not one that is read."""
    try:
        found = codecs.lookup(name.strip(b" '\"").decode("ascii")).name
    except (LookupError, UnicodeError, ValueError):
        return ""
    return found if found in _CHARSETS else ""
