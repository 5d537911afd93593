"""Golden captures: today's tlscap makes of the committed sidecars the committed pcapng files and JSON, byte for byte."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from tlscap.capture import open_capture
from tlscap.cli.inspect import inspect
from tlscap.model import FlowOpened, Gap
from tlscap.rebuild import PcapngBuilder
from tlscap.sidecar import SidecarReader

FOLDER = Path(__file__).parent / "fixtures" / "captures"
MAKER = Path(__file__).parent.parent / "tools" / "make_fixtures.py"
NAMES = sorted(path.name.removesuffix(".pcapng") for path in FOLDER.glob("*.pcapng"))
EXPECTED = {
    "both-ends",
    "carried-over",
    "chunked",
    "close-delimited",
    "grpc",
    "holes",
    "holes-plain",
    "http1-keep-alive",
    "http2",
    "http2-frames",
    "lost-step",
    "server-sent-events",
    "unknown-addresses",
    "websocket",
}


def frames(path: Path) -> list[bytes]:
    with path.open("rb") as file:
        return list(SidecarReader(file).frames())


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of captures that were made just now."""
    folder = tmp_path_factory.mktemp("captures")
    subprocess.run([sys.executable, MAKER, folder], check=True, capture_output=True)
    return folder


def test_all_are_there(made: Path) -> None:
    """Every capture that make_fixtures makes is committed, nothing else is, and they are small."""
    assert set(NAMES) == EXPECTED
    assert {path.name for path in made.iterdir()} == {path.name for path in FOLDER.iterdir()}
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 150_000


@pytest.mark.parametrize("name", NAMES)
def test_rebuild(name: str) -> None:
    """A committed sidecar gives the committed pcapng: a change of a single byte is noticed here."""
    builder = PcapngBuilder()
    blocks = [block for frame in frames(FOLDER / f"{name}.tlscap.zst") for block in builder.feed(frame)]
    assert b"".join([*blocks, *builder.finish()]) == (FOLDER / f"{name}.pcapng").read_bytes()


@pytest.mark.parametrize("name", NAMES)
def test_made_again(made: Path, name: str) -> None:
    """What make_fixtures makes today is what is committed; zstd may pack it differently, so frames are compared."""
    assert frames(made / f"{name}.tlscap.zst") == frames(FOLDER / f"{name}.tlscap.zst")
    for suffix in (".pcapng", ".jsonl"):
        assert (made / (name + suffix)).read_bytes() == (FOLDER / (name + suffix)).read_bytes()


def inspected(path: Path) -> list[str]:
    """Return the lines of ``tlscap inspect --json``."""
    done = CliRunner().invoke(inspect, [str(path), "--json"])
    assert done.exit_code == 0, done.output
    return done.stdout.splitlines()


@pytest.mark.parametrize("name", NAMES)
def test_inspect(name: str) -> None:
    """What `inspect --json` says of a committed sidecar is what is committed."""
    assert inspected(FOLDER / f"{name}.tlscap.zst") == (FOLDER / f"{name}.jsonl").read_text("ascii").splitlines()


@pytest.mark.parametrize("name", NAMES)
def test_inspect_pcapng(name: str) -> None:
    """It says the same of the pcapng."""
    expected: list[dict[str, Any]] = [json.loads(line) for line in inspected(FOLDER / f"{name}.tlscap.zst")]
    assert [json.loads(line) for line in inspected(FOLDER / f"{name}.pcapng")] == expected


@pytest.mark.parametrize("name", NAMES)
def test_both_files_say_the_same(name: str) -> None:
    """The flows, holes and lost bytes of a sidecar and of its pcapng are the same, whichever is opened."""
    told = []
    for suffix in (".tlscap.zst", ".pcapng"):
        with open_capture(str(FOLDER / (name + suffix))) as capture:
            items = list(capture.items())
            assert capture.truncated is None
        flows = sorted(
            (item.flow.id, item.flow.process.label, item.flow.sni) for item in items if isinstance(item, FlowOpened)
        )
        holes = sorted(
            (item.flow.id, item.direction, item.offset, item.length, item.reason.value)
            for item in items
            if isinstance(item, Gap)
        )
        told.append((flows, holes))
    assert told[0] == told[1]
