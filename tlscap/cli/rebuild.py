"""``tlscap rebuild``: a sidecar to its pcapng."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator
from typing import BinaryIO

import click

from tlscap.errors import CorruptError, FormatError, OutputError, TruncatedError, UsageError
from tlscap.model import Item
from tlscap.rebuild import PcapngBuilder
from tlscap.sidecar import SidecarReader

CHUNK = 1 << 20


@contextlib.contextmanager
def output_file(path: str, *, force: bool) -> Iterator[BinaryIO]:
    """A new file of mode 0600 that appears under its name when it is complete, or standard output for ``-``.

    Raises `OutputError`.
    """
    if path == "-":
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    if os.path.exists(path) and not os.path.isfile(path):
        # A device or a pipe is written to: root must never replace /dev/null by a file.
        try:
            with open(path, "wb") as file:
                yield file
        except OSError as error:
            raise OutputError(f"{path} can't be written: {error.strerror}") from error
        return
    if os.path.exists(path) and not force:
        raise OutputError(f"{path} exists already", hint="give another name with -o, or --force")
    temporary = ""
    try:
        fd, temporary = tempfile.mkstemp(prefix=".tlscap-", dir=os.path.dirname(path) or ".")
        with os.fdopen(fd, "wb") as file:
            yield file
        if force:
            os.replace(temporary, path)
        else:
            _publish(temporary, path)
        temporary = ""
    except OSError as error:
        raise OutputError(f"{path} can't be written: {error.strerror}") from error
    finally:
        if temporary:
            with contextlib.suppress(OSError):
                os.unlink(temporary)


def _publish(temporary: str, path: str) -> None:
    """Give a finished file its name; unlike a rename, never over a file that came meanwhile."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without links, such as FAT
        if os.path.exists(path):
            raise
        os.rename(temporary, path)
    else:
        os.unlink(temporary)


@click.command()
@click.argument("file", type=click.Path(readable=False))
@click.option("-o", "--output", required=True, metavar="OUT", help="The pcapng to write; - for standard output.")
@click.option("--framing", type=click.Choice(["auto", "tls-null", "plain"]), help="Default: as it was recorded.")
@click.option("--pid", "pids", type=int, multiple=True, help="Only flows of this process. Repeatable.")
@click.option("--flow", "flows", type=int, multiple=True, help="Only this flow, by its number. Repeatable.")
@click.option("--host", "hosts", multiple=True, help="Only flows to this name (SNI) or address. Repeatable.")
@click.option("--force", is_flag=True, help="Overwrite an existing file.")
def rebuild(
    file: str,
    output: str,
    framing: str | None,
    pids: tuple[int, ...],
    flows: tuple[int, ...],
    hosts: tuple[str, ...],
    force: bool,
) -> None:
    """Write the pcapng of a sidecar (FILE) again, byte for byte, or with another framing, or a part of it."""

    def keep(item: Item) -> bool:
        flow = item.flow
        names = {flow.sni, flow.remote.address if flow.remote else "", flow.local.address if flow.local else ""}
        return (
            (not pids or flow.process.pid in pids)
            and (not flows or flow.id in flows)
            and (not hosts or not names.isdisjoint(hosts))
        )

    if output == "-" and sys.stdout.isatty():
        raise UsageError("-o - writes binary data to the terminal", hint="pipe it, or give a file name")
    try:
        source = open(file, "rb")  # noqa: SIM115 - closed below, after the errors of opening are told apart
    except OSError as error:
        raise OutputError(f"{file}: {error.strerror}") from error
    with source:
        try:
            frames = SidecarReader(source).frames()
        except FormatError as error:
            hint = "give the sidecar: NAME.tlscap.zst" if isinstance(error, CorruptError) else error.hint
            raise type(error)(f"{file}: {error}", offset=error.offset, hint=hint) from error
        builder: PcapngBuilder | None = None
        chosen = keep if pids or flows or hosts else None
        warning = ""
        with output_file(output, force=force) as target:
            try:
                for frame in frames:
                    builder = builder or PcapngBuilder(framing or _recorded_framing(frame), keep=chosen)
                    for block in builder.feed(frame):
                        target.write(block)
            except TruncatedError as error:
                warning = f"{file}: {error}; everything before is in {output}"
            except FormatError as error:
                raise type(error)(f"{file}: {error}", offset=error.offset, hint=error.hint) from error
            for block in (builder or PcapngBuilder(framing or "auto")).finish():
                target.write(block)
    if warning:
        click.echo(f"tlscap: {warning}", err=True)


def _recorded_framing(first: bytes) -> str:
    """The framing that the first record of a file names."""
    from tlscap.decode import NoteEvent, decode  # noqa: PLC0415

    for event in decode(first):
        if isinstance(event, NoteEvent) and event.body.get("framing") in ("auto", "tls-null", "plain"):
            return str(event.body["framing"])
        break
    return "auto"
