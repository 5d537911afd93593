"""From the bytes of a body, as transferred, to the messages in it."""

from __future__ import annotations

from typing import Self

from tlscap.http.content import ContentDecoder, ContentError
from tlscap.http.events import Header, Side
from tlscap.http.messages import BYTES_MISSING, AppMessage, MessageDecoder, body_decoder, field_values


class MessageReader:
    """Undoes the content coding of one body and decodes its messages (`tlscap.http.messages`).

    A coding can't be undone behind a hole, nor behind an error: what follows is no message any more.
    """

    def __init__(self, decoder: MessageDecoder, encodings: str) -> None:
        self._decoder = decoder
        self._content: ContentDecoder | None = None
        self._over = False
        if encodings:
            try:
                self._content = ContentDecoder(encodings)
            except ContentError:
                self._over = True

    @classmethod
    def of(cls, side: Side, headers: tuple[Header, ...]) -> Self | None:
        """Return a reader for a body with these header fields, or ``None``: it has no messages in it."""
        decoder = body_decoder(side, headers)
        return cls(decoder, content_codings(headers)) if decoder else None

    def feed(self, data: bytes, time_ns: int) -> list[AppMessage]:
        """Take the next bytes; return the messages that ended."""
        if self._over:
            return []
        if self._content is None:
            return self._decoder.feed(data, time_ns)
        messages = []
        try:
            for piece in self._content.feed(data):
                messages += self._decoder.feed(piece, time_ns)
        except ContentError as error:
            messages += self._give_up(time_ns, str(error))
        return messages

    def gap(self, length: int, time_ns: int) -> list[AppMessage]:
        """Take the news that the next ``length`` bytes are missing."""
        if self._over:
            return []
        return self._give_up(time_ns, BYTES_MISSING) if self._content else self._decoder.gap(length, time_ns)

    def finish(self, time_ns: int, *, why: str = "") -> list[AppMessage]:
        """Take the end; ``why`` is empty for an orderly one."""
        return [] if self._over else self._give_up(time_ns, why)

    def _give_up(self, time_ns: int, why: str) -> list[AppMessage]:
        self._over = True
        return self._decoder.finish(time_ns, why=why)


def content_codings(headers: tuple[Header, ...]) -> str:
    """Return what was done to a content, in order: content codings, then transfer codings other than chunked."""
    values = field_values(headers, b"content-encoding") + field_values(headers, b"transfer-encoding")
    names = (name.strip().lower() for name in b",".join(values).decode("latin-1").split(","))
    return ", ".join(name for name in names if name not in ("", "chunked", "identity"))
