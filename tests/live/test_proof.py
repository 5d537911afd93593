"""Functions that were found by signature are believed when they handled a TLS record, with programs that look right and do what a scene wants."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path

import pytest

from live.echo import echo_server
from live.scenes import Done, Runner, Scene, at_returns, bounded, by_system_calls, compiled, modern
from live.subjects import HERE
from tlscap.model import TupleSource

pytestmark = [
    pytest.mark.live,
    pytest.mark.skipif(platform.machine() != "x86_64", reason="only x86-64 code is looked at"),
]

RULES = """
[[library]]
name = "openssl"
mark = "wire.c"
needs = ["SSL_read", "SSL_write"]
error = { line = 1, file = 2, reason = 3 }
"""
REASONS = {"SSL_write": 101, "SSL_read": 102, "BIO_write": 105}
MODES = pytest.mark.parametrize("tlscap", [modern, at_returns, by_system_calls])


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """It has the name of one whose library works in memory, so that this is looked at from the start."""
    folder = tmp_path_factory.mktemp("fake")
    compiled(folder, HERE / "fake_signed.c").rename(folder / "node")
    subprocess.run(["strip", "--strip-all", folder / "node"], check=True)
    return folder / "node"


def play(tlscap: Runner, program: Path, scene: str, folder: Path) -> tuple[Scene, Done]:
    rules = "".join(
        f'[[library.function]]\nname = "{name}"\nfile = "wire.c"\nreasons = [{reason}]\n'
        for name, reason in REASONS.items()
    )
    (folder / "rules.toml").write_text(RULES + rules)
    with echo_server() as port:
        done = tlscap(
            *("record", "-v", "-o", folder / "scene", "--signatures", folder / "rules.toml"),
            *("--", program, scene, port),
        )
    return Scene(folder / "scene.tlscap.zst"), done


def not_believed(calls: int) -> bytes:
    return (
        b"tlscap: %d calls not recorded: of functions found by signature, on connections that handled no TLS record\n"
        % calls
    )


@MODES
def test_not_tls(program: Path, tmp_path: Path, tlscap: Runner) -> None:
    """Functions that only look like those of a library: not a byte of what they handle is kept, and it is said."""
    scene, done = play(tlscap, program, "other", tmp_path)

    assert b": openssl, by signature, build id" in done.stderr
    assert scene.streams == {}
    assert {flow.tuple_source for flow in scene.flows} <= {TupleSource.PLACEHOLDER}
    assert not_believed(7) in done.stderr
    assert b"a secret" not in (tmp_path / "scene.pcapng").read_bytes()


@MODES
def test_tls(program: Path, tmp_path: Path, tlscap: Runner) -> None:
    """A connection is recorded from the first call on that handles a record, whichever way it goes; others are not."""
    scene, done = play(tlscap, program, "tls", tmp_path)

    expected = {
        0x1000: ([b"from here on"], [b"both ways"], TupleSource.SYSCALL),
        0x2000: ([b"answered"], [b"what a record brought"], TupleSource.SYSCALL),
        0x3000: ([b"in memory"], [b"heard"], TupleSource.PLACEHOLDER),
    }
    calls = 5
    if tlscap is by_system_calls:  # what a call will bring is not known when it begins
        del expected[0x2000]
        calls += 2
    assert {flow.ssl: (scene.sent(flow), scene.received(flow), flow.tuple_source) for flow in scene.flows} == expected
    assert not_believed(calls) in done.stderr


@pytest.mark.parametrize("scene", ["other", "tls"])
def test_older_kernels(program: Path, tmp_path: Path, scene: str) -> None:
    """Where nothing proves them, such functions are not probed, and it is said."""
    recorded, done = play(bounded, program, scene, tmp_path)

    assert recorded.streams == {}
    assert b"following it needs Linux 5.17" in done.stderr
