"""The capture that belongs to a test: made, or added to, from what was recorded while the test ran."""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from tlscap.capture import Capture
from tlscap.errors import OutputError
from tlscap.fixture import EPOCH_NS, normalised, summary, summary_path
from tlscap.replay.recording import RecordedExchange, load, load_from
from tlscap.rewrite import write_capture
from tlscap.scrub import Scrubber, random_key

PAUSE_NS: Final = 1_000_000_000
"""Between what was there and what is added."""

_LEVEL: Final = 19  # a fixture is written once, and kept in version control


def update(path: Path, recorded: Sequence[RecordedExchange], *, anew: bool, scrub: bool) -> list[str]:
    """Write a fixture and its summary, ``anew`` or with what was recorded behind what is there.

    Exchanges of which bytes are missing are left out.  Returns what people should know of it, a line each.  Nothing is written when nothing
    was recorded.  Raises `OutputError`; other processes that write beside it wait.
    """
    whole = [exchange for exchange in recorded if exchange.complete]
    notes = [
        f"{exchange.name} was not recorded whole and is left out" for exchange in recorded if not exchange.complete
    ]
    if not whole:
        return notes
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _alone(path.parent):
            known = [] if anew or not path.exists() else load(str(path)).exchanges
            if scrub:
                # Numbers would begin again from the first: what is added gets names that nobody had.
                result = Scrubber(key=random_key() if known else None).scrub(whole)
                whole = result.exchanges
                notes += [
                    f"{count} of its {what} could not be looked into and were withheld"
                    for what, count in result.report.withheld.items()
                ]
            latest = max((_end(exchange) for exchange in known), default=EPOCH_NS - PAUSE_NS)
            added = normalised(whole, begin_ns=latest + PAUSE_NS)
            exchanges = [*known, *(replace(exchange, id=len(known) + exchange.id) for exchange in added)]
            buffer = io.BytesIO()
            written = write_capture(exchanges, buffer, origin="fixture", level=_LEVEL)
            notes += [f"{count} exchanges are left out: {why}" for why, count in written.left_out.items()]
            again = load_from(Capture(str(path), io.BytesIO(buffer.getvalue())))
            _put(path, buffer.getvalue())
            _put(Path(summary_path(str(path))), summary(again.exchanges).encode())
    except OSError as error:
        raise OutputError(f"{path} can't be written: {error.strerror}") from error
    return notes


def _end(exchange: RecordedExchange) -> int:
    times = [exchange.request.ended_ns, *(message.time_ns for message in exchange.messages)]
    return max(times + ([exchange.response.ended_ns] if exchange.response else []))


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Tests run side by side: one process at a time changes what is in the folder."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _put(path: Path, content: bytes) -> None:
    """Write a file that appears, or changes, as a whole."""
    fd, temporary = tempfile.mkstemp(prefix=".tlscap-", dir=path.parent)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(content)
        os.replace(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
