"""``tlscap import``: other programs' captures, HAR files, cassettes and mitmproxy's flows, to a file that tlscap reads."""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import platform
import shutil
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator
from typing import BinaryIO, Final, cast

import click

from tlscap import __version__, pcapng
from tlscap.capture import Capture
from tlscap.cli.rebuild import output_file
from tlscap.cli.tshark import Decryption
from tlscap.cli.units import count_text, size_text
from tlscap.errors import CorruptError, FormatError, OutputError, TlscapError, TruncatedError, UsageError
from tlscap.importing import tls
from tlscap.importing.capture import PacketImport, Tally
from tlscap.importing.har import HarFile, is_har
from tlscap.importing.keylog import MAX_LINE, KeyLog
from tlscap.importing.mitmproxy import FlowFile, is_flow_file
from tlscap.importing.packetfile import PacketFile, is_packet_file
from tlscap.importing.vcr import CassetteFile, is_cassette
from tlscap.model import Item
from tlscap.synth import Synthesizer

DRAW_INTERVAL_S: Final = 0.25
MOST_FILLED: Final = 4 << 30
"""Most bytes of zeros in place of holes: a small file can claim any size of them."""

_SIDECAR = ".tlscap.zst"
_HEAD = 4096  # bytes that tell what a file is: a HAR file may begin with spaces
_COMPRESSED = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bzip2", b"\xfd7zXZ": "xz"}


_HttpFile = HarFile | CassetteFile | FlowFile

_HTTP_FILES: Final[tuple[tuple[Callable[[bytes], bool], type[_HttpFile], str], ...]] = (
    (is_flow_file, FlowFile, "mitmproxy flow file"),
    (is_cassette, CassetteFile, "cassette"),
    (is_har, HarFile, "HAR file"),
)
"""How files are told apart, what reads them, and what they are called.  A cassette may begin as a HAR file does."""


@click.command(name="import")
@click.argument("file", type=click.Path(allow_dash=True))
@click.option(
    "-o",
    "--output",
    required=True,
    metavar="OUT",
    help="The pcapng to write; - for standard output. Of HTTP files also a sidecar: NAME.tlscap.zst.",
)
@click.option("--keys", metavar="KEYLOG", type=click.Path(), help="Decrypt TLS with the keys in this SSLKEYLOGFILE.")
@click.option("--framing", type=click.Choice(["auto", "tls-null", "plain"]), default="auto", show_default=True,
              help="How the pcapng carries the plaintext (docs/format.md).")  # fmt: skip
@click.option("--force", is_flag=True, help="Overwrite an existing file.")
def import_(file: str, output: str, keys: str | None, framing: str, force: bool) -> None:
    """Take over what another program recorded (FILE; - for standard input).

    FILE is a pcap or pcapng with plaintext in TCP, or with TLS whose keys are in KEYLOG or in the file itself (for
    which tshark is needed); what a browser saves as HAR; a cassette of vcrpy (YAML or JSON); or mitmproxy's flows. TLS without keys is left out.

    \b
      tlscap import trace.pcapng --keys keys.log -o plain.pcapng
      tlscap import cassette.yaml -o cassette.tlscap.zst
      tlscap inspect plain.pcapng
    """
    if output == "-" and sys.stdout.isatty():
        raise UsageError("-o - writes binary data to the terminal", hint="pipe it, or give a file name")
    if file == "-" and sys.stdin.isatty():
        raise UsageError("- reads a capture from a pipe, not from the terminal")
    tally = Tally()
    with contextlib.ExitStack() as stack:
        source = _Input(file, _folder(output))
        stack.callback(source.close)
        progress = _Progress()
        stack.callback(progress.clear)
        key_log = _read_keys(keys) if keys else KeyLog()
        decryption = Decryption(key_log, _folder(output))
        stack.callback(decryption.close)
        try:
            job = _job(source, key_log, decryption, progress, has_keys=keys is not None)
            items = tally.pass_on(job.items())
            with output_file(output, force=force) as target:
                if output.endswith(_SIDECAR):
                    _write_sidecar(job, items, target, tally, _folder(output))
                else:
                    _write_pcapng(job, items, target, tally, framing, is_live=source.is_live)
        except FormatError as error:
            raise type(error)(f"{file}: {error}", offset=error.offset, hint=error.hint) from error
    _report(file, job, tally, has_keys=keys is not None)


def _write_pcapng(
    job: _Job, items: Iterator[Item], target: BinaryIO, tally: Tally, framing: str, *, is_live: bool
) -> None:
    synthesizer = Synthesizer(framing, tool=f"tlscap {__version__}")
    # The first item comes before the header: from what can't be read at all, a pipe gets nothing.
    first = list(itertools.islice(items, 1))
    target.write(_header(job.what))
    for item in itertools.chain(first, items):
        if tally.missing > MOST_FILLED and framing != "plain":
            raise TlscapError(
                f"holes of {size_text(tally.missing)} would be filled with zeros",
                hint="--framing plain does not fill them",
            )
        target.writelines(synthesizer.feed(item))
        if is_live:
            target.flush()
    target.write(synthesizer.finish(tally.last_ns))


def _write_sidecar(job: _Job, items: Iterator[Item], target: BinaryIO, tally: Tally, folder: str | None) -> None:
    """Write exchanges as a sidecar: they go through a pcapng, of which the exchanges are read as those of any other."""
    if isinstance(job, _PacketJob):
        raise UsageError(
            "packets become a pcapng, with what is not HTTP",
            hint="give a name that ends in .pcapng, not in .tlscap.zst",
        )
    from tlscap.replay.recording import load_from  # noqa: PLC0415 - seldom needed
    from tlscap.rewrite import write_capture  # noqa: PLC0415

    with tempfile.TemporaryFile(dir=folder) as kept:
        _write_pcapng(job, items, kept, tally, "plain", is_live=False)
        kept.seek(0)
        recording = load_from(Capture("it", kept))
    write_capture(recording.exchanges, target, origin=f"imported from a {job.what}")


def _header(what: str) -> bytes:
    """Return the section header.  It is not the synthesizer's, which says that tlscap captured the data."""
    return pcapng.section_header(
        application=f"tlscap {__version__}",
        os=f"{platform.system()} {platform.release()}",
        comments=[f"Ethernet, IP, TCP and TLS framing is synthetic; the application data was imported from a {what}"],
    )


def _folder(output: str) -> str | None:
    """Return where large temporary files go: beside the output, where there must be room for as much anyway."""
    is_special = output == "-" or (os.path.exists(output) and not os.path.isfile(output))
    return None if is_special else os.path.dirname(output) or "."


def _read_keys(path: str) -> KeyLog:
    keys = KeyLog()
    try:
        with open(path, "rb") as file:
            while line := file.readline(MAX_LINE + 1):
                keys.add_line(line)
    except OSError as error:
        raise OutputError(f"{path}: {error.strerror}") from error
    if not keys:
        raise CorruptError(f"{path} holds no TLS keys", hint="programs write them when SSLKEYLOGFILE is set")
    return keys


def _report(file: str, job: _Job, tally: Tally, *, has_keys: bool) -> None:
    """Say what was imported, and what was not."""

    def say(line: str) -> None:
        click.echo(f"tlscap: {line}", err=True)

    if job.truncated:
        say(f"{file}: {job.truncated}; everything before was imported")
    for note in job.notes:
        say(note)
    for why, count in job.tls_left_out.items():
        say(f"{count_text(count, 'TLS connection')} {why} {'was' if count == 1 else 'were'} left out")
        if why == tls.WITHOUT_KEYS and not has_keys:
            click.echo("  --keys takes the file that programs write when SSLKEYLOGFILE is set", err=True)
    if job.packets_left_out:
        kinds = ", ".join(f"{count:,} {why}" for why, count in sorted(job.packets_left_out.items()))
        say(f"packets left out: {kinds}")
    holes = f", {count_text(tally.missing, 'byte')} missing in {count_text(tally.holes, 'hole')}" if tally.holes else ""
    say(f"imported {count_text(tally.flows, 'flow')}, {size_text(tally.stored)}{holes}")


class _Input:
    """The file to import: its first bytes, and as many passes as are needed."""

    def __init__(self, path: str, folder: str | None) -> None:
        """Raise `OutputError` when it can't be read.  A copy of a pipe would be kept in `folder`."""
        self._folder = folder
        self.head = b""
        try:
            self._stream = cast("io.BufferedReader", sys.stdin.buffer if path == "-" else open(path, "rb"))  # noqa: SIM115
            while len(self.head.lstrip()) < 4 and len(self.head) < _HEAD and (data := self._stream.read1(_HEAD)):
                self.head += data
            self.is_live = not self._stream.seekable()
            """Whether it is a pipe: what comes is passed on at once, and comes only once."""
            self.size = 0 if self.is_live else os.fstat(self._stream.fileno()).st_size
            """In bytes; 0 when not known."""
        except OSError as error:
            raise OutputError(f"{path}: {error.strerror}") from error

    def again(self) -> tuple[io.BufferedReader, bytes]:
        """Return the stream at its beginning, and what was taken from it already."""
        if self.is_live:
            return self._stream, self.head
        self._stream.seek(0)
        return self._stream, b""

    def keep(self) -> None:
        """Copy a pipe into a file without a name, for more than one pass."""
        if self.is_live:
            kept = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115 - until close()
            kept.write(self.head)
            shutil.copyfileobj(self._stream, kept, 1 << 20)
            self.size = kept.tell()
            self._stream = cast("io.BufferedReader", kept)
            self.is_live = False

    def close(self) -> None:
        if self._stream is not sys.stdin.buffer:
            self._stream.close()


class _Progress:
    """A line on the terminal that says how far the work is."""

    def __init__(self) -> None:
        self._drawn = time.monotonic()
        self._shown = False

    def follow(self, what: str, source: _Input) -> tuple[BinaryIO, bytes]:
        """Return the source at its beginning, as a stream that draws while it is read, and what was taken from it."""
        stream, head = source.again()
        if source.size and sys.stderr.isatty():
            return cast("BinaryIO", _Watched(stream, lambda taken: self._draw(what, taken, source.size))), head
        return stream, head

    def _draw(self, what: str, taken: int, size: int) -> None:
        if time.monotonic() - self._drawn >= DRAW_INTERVAL_S:
            self._drawn = time.monotonic()
            sys.stderr.write(f"\r\x1b[K{what}: {100 * taken // size} %")
            sys.stderr.flush()
            self._shown = True

    def clear(self) -> None:
        if self._shown:
            sys.stderr.write("\r\x1b[K")
            self._shown = False


class _Watched:
    """A stream that tells how much was read from it."""

    def __init__(self, stream: io.BufferedReader, tell: Callable[[int], None]) -> None:
        self._stream = stream
        self._tell = tell
        self._taken = 0

    def read(self, size: int) -> bytes:
        return self._note(self._stream.read(size))

    def read1(self, size: int) -> bytes:
        return self._note(self._stream.read1(size))

    def _note(self, data: bytes) -> bytes:
        self._taken += len(data)
        self._tell(self._taken)
        return data


class _Job(ABC):
    """An import: its items, and what there is to say after the last one."""

    what = ""

    def __init__(self) -> None:
        self.truncated = ""
        self.notes: list[str] = []
        self.tls_left_out: Counter[str] = Counter()
        self.packets_left_out: Counter[str] = Counter()

    @abstractmethod
    def items(self) -> Iterator[Item]:
        """Yield everything that happened."""
        ...


class _HttpJob(_Job):
    """A file that tells requests and responses, in one pass."""

    def __init__(self, source: _Input, progress: _Progress, kind: type[_HttpFile], what: str) -> None:
        super().__init__()
        self.what = what
        self._source = source
        self._progress = progress
        self._kind = kind

    def items(self) -> Iterator[Item]:
        file = self._kind(*self._progress.follow("importing", self._source))
        yield from file.items()
        self.truncated = file.truncated
        self.notes += file.notes
        if isinstance(file, FlowFile) and file.left_out:
            kinds = ", ".join(f"{count:,} {kind}" for kind, count in sorted(file.left_out.items()))
            self.notes.append(f"flows left out: {kinds}")


class _PacketJob(_Job):
    """A packet capture: in one pass, with keys in several."""

    what = "packet capture"

    def __init__(self, source: _Input, keys: KeyLog, decryption: Decryption, progress: _Progress) -> None:
        super().__init__()
        self._source = source
        self._keys = keys
        self._decryption = decryption
        self._progress = progress

    def items(self) -> Iterator[Item]:
        source, progress = self._source, self._progress
        if self._keys:
            source.keep()
        if not source.is_live:
            self._collect_secrets()
        answers = None
        if self._keys:
            for decryptor in self._decryption.questions():
                asking = PacketImport(PacketFile(*progress.follow("decrypting", source)), self._keys, decryptor)
                for _ in asking.items():
                    pass
            answers = self._decryption.answers()
        file = PacketFile(*progress.follow("importing", source))
        capture = PacketImport(file, self._keys, answers)
        yield from capture.items()
        self.truncated = capture.truncated
        self.notes += capture.notes
        if file.secrets and not self._keys:
            self.notes.append("the capture holds TLS keys, which can be used when it is a file, not a pipe")
        self.tls_left_out = capture.tls_left_out
        self.packets_left_out = capture.packets_left_out

    def _collect_secrets(self) -> None:
        """Take the keys in the capture itself: they may stand behind the packets that they are for."""
        file = PacketFile(*self._source.again())
        with contextlib.suppress(TruncatedError):
            file.collect_secrets()
        for text in file.secrets:
            self._keys.add(text)


def _job(source: _Input, keys: KeyLog, decryption: Decryption, progress: _Progress, *, has_keys: bool) -> _Job:
    """Choose the import by what a file begins with.  Raises `FormatError` for a file that is none of those that can be imported."""
    if is_packet_file(source.head):
        return _PacketJob(source, keys, decryption, progress)
    for is_one, kind, what in _HTTP_FILES:
        if is_one(source.head):
            if has_keys:
                raise UsageError(f"a {what} is not encrypted: --keys makes no sense")
            return _HttpJob(source, progress, kind, what)
    raise _foreign(source.head)


def _foreign(head: bytes) -> FormatError:
    """Return what is wrong with a file that is none of those that can be imported."""
    if not head:
        return CorruptError("it is empty", offset=0)
    for magic, name in _COMPRESSED.items():
        if head.startswith(magic):
            return CorruptError(f"it is compressed with {name}", offset=0, hint="unpack it first")
    return CorruptError(
        "neither a packet capture (pcap, pcapng) nor a HAR file, a cassette of vcrpy or flows of mitmproxy",
        offset=0,
    )
