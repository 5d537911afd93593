"""From a sidecar to its pcapng, by `PcapngBuilder` and by ``tlscap rebuild``."""

from __future__ import annotations

import io
import itertools
import os
import stat
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import samples
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st
from samples import IN, MONOTONIC_NS, MS, OUT, data

from tlscap.cli.rebuild import rebuild
from tlscap.errors import CorruptError, OutputError, TruncatedError, UnsupportedVersionError
from tlscap.model import Data, FlowOpened, Item
from tlscap.pcapng import EnhancedPacket, InterfaceDescription, SectionHeader, read_blocks
from tlscap.pcapng_reader import read_items
from tlscap.rebuild import PcapngBuilder
from tlscap.sidecar import SidecarWriter

REQUEST = b"GET / HTTP/1.1\r\nHost: example.org\r\n\r\n"
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def at(milliseconds: int) -> int:
    return MONOTONIC_NS + milliseconds * MS


def connection(conn: int, pid: int, remote: str, name: bytes) -> list[bytes]:
    """Return the records of a connection from a handshake to its end."""
    head: dict[str, Any] = {"conn": conn, "pid": pid}
    return [
        samples.process(b"p%d" % pid, b"p%d" % pid, pid=pid),
        samples.opened(**head),
        samples.address(remote=remote, local_port=40000 + conn, **head),
        samples.handshake(at(conn), time_ns=at(conn + 1), **head),
        samples.sni(name, **head),
        data(REQUEST, 0, OUT, time_ns=at(conn + 2), **head),
        data(ANSWER[:20], 0, IN, time_ns=at(conn + 3), **head),
        data(ANSWER[20:], 22, IN, time_ns=at(conn + 4), **head),
        samples.shutdown(**head),
        samples.closed(len(ANSWER) + 2, len(REQUEST), **head),
    ]


def recording(**start: object) -> list[bytes]:
    """Return the records of three connections of two processes."""
    return [
        samples.start(**start),
        *connection(1, 70, "1.1.1.1", b"one.example"),
        *connection(2, 80, "2.2.2.2", b"two.example"),
        *connection(3, 80, "1.1.1.1", b"three.example"),
        samples.end(calls=9),
    ]


def build(
    frames: Iterable[bytes], framing: str = "auto", keep: Callable[[Item], bool] | None = None
) -> tuple[bytes, list[Item]]:
    """Return the pcapng of some frames, and what the builder told of them."""
    builder = PcapngBuilder(framing, keep=keep)
    items: list[Item] = []
    blocks = [block for frame in frames for block in builder.feed(frame, items.append)]
    return b"".join([*blocks, *builder.finish()]), items


def streams(pcapng: bytes) -> dict[tuple[int, int], bytes]:
    """Return what each flow's directions say, by flow number."""
    found: dict[tuple[int, int], bytes] = {}
    for item in read_items(io.BytesIO(pcapng)):
        if isinstance(item, Data):
            key = item.flow.id, int(item.direction)
            found[key] = found.get(key, b"") + item.data
    return found


def packets(pcapng: bytes) -> int:
    return sum(isinstance(block, EnhancedPacket) for block in read_blocks(io.BytesIO(pcapng)))


# --- The builder ---


WHOLE, ITEMS = build([b"".join(recording())])


@given(st.sets(st.integers(1, len(recording()) - 1)))
def test_frames_dont_matter(cuts: set[int]) -> None:
    """However the records are split into frames, the pcapng is the same."""
    records = recording()
    borders = [0, *sorted(cuts), len(records)]
    frames = [b"".join(records[start:end]) for start, end in itertools.pairwise(borders)]
    assert build(frames)[0] == WHOLE


def test_one_record_a_frame() -> None:
    """Even with a frame for each record, and empty ones between them."""
    assert build(part for record in recording() for part in (b"", record))[0] == WHOLE


def test_unknown_records_dont_matter() -> None:
    """Records of types that are not known change nothing."""
    extra = samples.record(200, b"something")
    assert build([extra + extra.join(recording())])[0] == WHOLE


def test_items_are_told() -> None:
    """Whoever asks hears every item, also those that are not kept."""
    pcapng, items = build([b"".join(recording())], keep=lambda _: False)
    assert len(items) == len(ITEMS) > 20
    assert packets(pcapng) == 0


def test_what_the_file_says() -> None:
    """Flows keep their numbers, names and bytes."""
    assert streams(WHOLE) == {(flow, way): what for flow in (1, 2, 3) for way, what in ((OUT, REQUEST), (IN, ANSWER))}
    flows = [item.flow for item in read_items(io.BytesIO(WHOLE)) if isinstance(item, FlowOpened)]
    assert [(flow.id, flow.sni, flow.process.pid) for flow in flows] == [
        (1, "one.example", 70),
        (2, "two.example", 80),
        (3, "three.example", 80),
    ]


def test_header_comes_from_the_sidecar() -> None:
    """The section header names the machine that recorded, not the one that rebuilds."""
    pcapng, _ = build([b"".join(recording(tool="tlscap 9.9", os="Other 1", hardware="toaster"))])
    header = next(iter(read_blocks(io.BytesIO(pcapng))))
    assert isinstance(header, SectionHeader)
    assert (header.application, header.os, header.hardware) == ("tlscap 9.9", "Other 1", "toaster")


@pytest.mark.parametrize("tool", ["something else", "", None, 5])
def test_tool_of_another_name(tool: object) -> None:
    """Whatever a sidecar calls its maker, the pcapng can be recognized as ours."""
    pcapng, _ = build([b"".join(recording(tool=tool))])
    assert streams(pcapng) == streams(WHOLE)


def test_nothing_recorded() -> None:
    """A recording without a single connection is a section header."""
    for frames in ([], [samples.start()], [samples.start() + samples.opened() + samples.closed(0, 0)]):
        blocks = list(read_blocks(io.BytesIO(build(frames)[0])))
        assert [type(block) for block in blocks] == [SectionHeader]


@pytest.mark.parametrize("kept", [{1}, {2}, {2, 3}, {1, 2, 3}, set()])
def test_filter(kept: set[int]) -> None:
    """A filter keeps the chosen flows whole, with their numbers, and no interface of processes without one."""
    pcapng, _ = build([b"".join(recording())], keep=lambda item: item.flow.id in kept)
    assert streams(pcapng) == {key: what for key, what in streams(WHOLE).items() if key[0] in kept}
    interfaces = [block for block in read_blocks(io.BytesIO(pcapng)) if isinstance(block, InterfaceDescription)]
    assert len(interfaces) == len({70 if flow == 1 else 80 for flow in kept})


@pytest.mark.parametrize("framing", ["auto", "plain", "tls-null"])
def test_framings(framing: str) -> None:
    """The framing decides the bytes, not what they say."""
    pcapng, _ = build([b"".join(recording())], framing)
    assert streams(pcapng) == streams(WHOLE)
    assert (pcapng == WHOLE) == (framing != "plain")
    with pytest.raises(ValueError, match="framing"):
        build([b"".join(recording())], "nonsense")


# --- The command ---


class Files:
    """A folder with a sidecar, and the command."""

    def __init__(self, folder: Path) -> None:
        self.source = folder / "in.tlscap.zst"
        self.target = folder / "out.pcapng"
        self.borders: list[int] = []

    def write(self, *frames: bytes, finished: bool = True) -> Files:
        stream = io.BytesIO()
        writer = SidecarWriter(stream)
        for frame in frames:
            writer.write(frame)
            self.borders.append(writer.size)
        if finished:
            writer.close()
        self.source.write_bytes(stream.getvalue())
        return self

    def run(self, *options: str, output: str | None = None) -> Result:
        return CliRunner().invoke(rebuild, [str(self.source), "-o", output or str(self.target), *options])

    def left(self) -> list[str]:
        """Return the files in the folder, the input left out."""
        return sorted(set(os.listdir(self.source.parent)) - {self.source.name})


@pytest.fixture
def files(tmp_path: Path) -> Files:
    records = recording()
    return Files(tmp_path).write(b"".join(records[:5]), b"".join(records[5:20]), b"".join(records[20:]))


def test_command(files: Files) -> None:
    """The pcapng appears under its name, readable by its owner only, and nothing is said."""
    done = files.run()
    assert (done.exit_code, done.output) == (0, "")
    assert files.target.read_bytes() == WHOLE
    assert stat.S_IMODE(files.target.stat().st_mode) == 0o600
    assert files.left() == [files.target.name]


def test_standard_output(files: Files) -> None:
    """``-o -`` writes the pcapng to standard output, and no file."""
    done = files.run(output="-")
    assert done.exit_code == 0
    assert done.stdout_bytes == WHOLE
    assert files.left() == []


def test_existing_output(files: Files) -> None:
    """An existing file is not overwritten, unless it is asked for."""
    files.target.write_bytes(b"precious")
    done = files.run()
    assert isinstance(done.exception, OutputError)
    assert "exists already" in str(done.exception)
    assert files.target.read_bytes() == b"precious"
    assert files.run("--force").exit_code == 0
    assert files.target.read_bytes() == WHOLE
    assert files.left() == [files.target.name]


def test_output_appears_meanwhile(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that comes under the name while the pcapng is written is not overwritten, either."""
    files.target.symlink_to("nowhere")  # not there, says os.path.exists, and yet the name is taken
    assert isinstance(files.run().exception, OutputError)
    assert files.target.is_symlink()
    assert files.left() == [files.target.name]


def test_output_to_a_device(files: Files) -> None:
    """A device is written to, and stays one."""
    assert files.run(output="/dev/null").exit_code == 0
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


def test_unwritable_output(files: Files, tmp_path: Path) -> None:
    """A folder that isn't there, or a folder in place of a file, is an `OutputError` that names it."""
    for output in (str(tmp_path / "no" / "out.pcapng"), str(tmp_path)):
        done = files.run(output=output)
        assert isinstance(done.exception, OutputError)
        assert output in str(done.exception)


def test_framing_option(files: Files) -> None:
    """``--framing`` replaces the one that was recorded; without it, that one is taken."""
    assert files.run("--framing", "plain").exit_code == 0
    assert files.target.read_bytes() == build([b"".join(recording())], "plain")[0]
    files.write(b"".join(recording(framing="plain")))
    assert files.run("--force").exit_code == 0
    assert files.target.read_bytes() == build([b"".join(recording())], "plain")[0]
    assert files.run("--force", "--framing", "auto").exit_code == 0
    assert files.target.read_bytes() == WHOLE
    assert files.run("--framing", "nonsense").exit_code == 2


@pytest.mark.parametrize(
    ("options", "flows"),
    [
        (["--flow", "2"], {2}),
        (["--flow", "1", "--flow", "3"], {1, 3}),
        (["--pid", "80"], {2, 3}),
        (["--host", "two.example"], {2}),
        (["--host", "1.1.1.1"], {1, 3}),
        (["--host", "1.1.1.1", "--pid", "80"], {3}),
        (["--flow", "99"], set()),
    ],
)
def test_filter_options(files: Files, options: list[str], flows: set[int]) -> None:
    """Flows are chosen by number, process or host; several kinds of conditions must all hold."""
    assert files.run(*options).exit_code == 0
    assert {flow for flow, _ in streams(files.target.read_bytes())} == flows


@pytest.mark.parametrize("cut", [-1, -30])
def test_truncated(files: Files, cut: int) -> None:
    """A truncated sidecar gives what is there, with a warning, and success."""
    size = files.borders[1] + 9 if cut == -30 else files.source.stat().st_size + cut
    os.truncate(files.source, size)
    done = files.run()
    assert done.exit_code == 0
    assert "everything before" in done.stderr
    assert str(files.source) in done.stderr
    whole = recording()[:20] if cut == -30 else recording()
    assert files.target.read_bytes() == build([b"".join(whole)])[0]


def test_truncated_before_the_first_frame(files: Files) -> None:
    """A recorder that was killed before its first frame leaves an empty pcapng and a warning."""
    os.truncate(files.source, 24)
    done = files.run()
    assert done.exit_code == 0
    assert "everything before" in done.stderr
    assert files.target.read_bytes() == build([])[0]


@pytest.mark.parametrize(
    ("content", "error", "text"),
    [
        (b"", TruncatedError, "empty"),
        (b"\x50\x2a", TruncatedError, "first bytes"),
        (b"x" * 100, CorruptError, "not a tlscap sidecar"),
        (WHOLE, CorruptError, "not a tlscap sidecar"),
        (b"\x50\x2a\x4d\x18\x10\0\0\0tlscap\0\x07" + bytes(8), UnsupportedVersionError, "version 7"),
    ],
    ids=["empty", "short", "foreign", "pcapng", "newer"],
)
def test_foreign_input(files: Files, content: bytes, error: type[Exception], text: str) -> None:
    """What is no sidecar is refused with its name, and no output is left."""
    files.source.write_bytes(content)
    done = files.run()
    assert type(done.exception) is error
    assert str(done.exception).startswith(str(files.source))
    assert text in str(done.exception)
    assert files.left() == []
    if error is CorruptError:
        assert "sidecar" in done.exception.hint  # type: ignore[attr-defined]


def test_damaged_frame(files: Files) -> None:
    """A damaged frame is an error that names the file, and no output is left."""
    raw = bytearray(files.source.read_bytes())
    raw[files.borders[0] + 40] ^= 0x55
    files.source.write_bytes(bytes(raw))
    done = files.run()
    assert isinstance(done.exception, CorruptError)
    assert str(files.source) in str(done.exception)
    assert done.exception.offset == files.borders[0]
    assert files.left() == []


@pytest.mark.parametrize(
    "lie",
    [
        samples.data(b"abc", direction=9),
        samples.record(11, size=7),
        samples.opened() + data(b"ab", 5) + data(b"c", 0),
        samples.start(wall_ns="now"),
    ],
)
@pytest.mark.parametrize("position", [0, 1])
def test_contradicting_records(tmp_path: Path, lie: bytes, position: int) -> None:
    """Records that contradict themselves inside a sound frame are an error that names the file, in any frame."""
    parts = [b"".join(recording()[:4]), b"".join(recording()[4:])]
    parts.insert(position, lie)
    files = Files(tmp_path).write(*parts)
    done = files.run()
    assert isinstance(done.exception, CorruptError)
    assert str(files.source) in str(done.exception)
    assert files.left() == []


def test_missing_input(files: Files) -> None:
    """An input that isn't there, or is a folder, is an `OutputError` that names it: exit status 5."""
    folder = str(files.source.parent)
    for source in (folder + "/nothing", folder):
        done = CliRunner().invoke(rebuild, [source, "-o", str(files.target)])
        assert isinstance(done.exception, OutputError)
        assert str(done.exception).startswith(f"{source}: ")
    assert files.left() == []
