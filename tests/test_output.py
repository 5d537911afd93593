"""The sidecar's way to the disk: every byte in its place, whichever way it went."""

from __future__ import annotations

import errno
import os
import random
import subprocess
from pathlib import Path

import pytest

from tlscap.live.output import DirectFile
from tlscap.sidecar import SidecarReader, SidecarWriter

LARGE = 3 << 20


def opened(path: Path) -> DirectFile:
    return DirectFile(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))


def noise(seed: int, size: int) -> bytes:
    return random.Random(seed).randbytes(size)


@pytest.mark.parametrize("hurry", [False, True])
def test_frames_arrive(tmp_path: Path, hurry: bool) -> None:
    """Small and large, compressed and stored frames in turn: the reader gets all of them, and so does zstd."""
    path = tmp_path / "x"
    file = opened(path)
    writer = SidecarWriter(file)
    frames = [noise(1, 100), noise(2, LARGE), b"text " * (LARGE // 5), noise(3, 4097), noise(4, LARGE + 13), b"end"]
    for frame in frames:
        file.hurry = hurry
        writer.write(frame, hurry=hurry)
        assert path.stat().st_size == writer.size
    writer.close()
    file.close()
    with path.open("rb") as stream:
        assert list(SidecarReader(stream).frames()) == frames
    done = subprocess.run(["zstd", "-dcq", path], capture_output=True, check=True)
    assert done.stdout == b"".join(frames)


def test_large_frames_are_aligned(tmp_path: Path) -> None:
    """What makes a direct write possible, and that it costs little."""
    file = opened(tmp_path / "x")
    writer = SidecarWriter(file)
    for seed in range(3):
        writer.write(noise(seed, LARGE))
        assert writer.size % 4096 == 0
    assert writer.size < 3 * LARGE + 4 * 8192
    file.close()


def test_padding_fits_a_skippable_frame(tmp_path: Path) -> None:
    """A frame needs 8 bytes at least, wherever the file ends."""
    path = tmp_path / "x"
    for position in [*range(4080, 4100), 8192]:
        file = opened(path)
        file.write_frame([bytes(position)])
        before, after = file.padding(LARGE)
        assert (position + before) % 4096 == 0
        assert (position + before + LARGE + after) % 4096 == 0
        assert all(size == 0 or 8 <= size < 4104 for size in (before, after))
        file.close()
        path.unlink()


def test_small_and_hurried_frames_are_not_padded(tmp_path: Path) -> None:
    file = opened(tmp_path / "x")
    file.write_frame([b"abc"])
    assert file.padding(1000) == (0, 0)
    file.hurry = True
    assert file.padding(LARGE) == (0, 0)
    file.close()


def test_without_direct_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that refuses them in the middle of a frame: the rest goes the other way."""
    path = tmp_path / "x"
    file = opened(path)
    calls = []

    def refuse(*arguments: object) -> int:
        calls.append(arguments)
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(os, "pwrite", refuse)
    frame = noise(5, LARGE)
    file.write_frame([frame[:10], frame[10:]])
    file.write_frame([frame])
    file.close()
    assert path.read_bytes() == frame + frame
    assert len(calls) == 1


def test_short_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A direct write that stops anywhere is gone on with."""
    path = tmp_path / "x"
    file = opened(path)
    pwrite = os.pwrite
    lengths = iter([4096, 12288])

    def short(fd: int, data: memoryview, position: int) -> int:
        return pwrite(fd, data[: next(lengths, len(data))], position)

    monkeypatch.setattr(os, "pwrite", short)
    frame = noise(6, LARGE)
    file.write_frame([frame])
    file.close()
    assert path.read_bytes() == frame


def test_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error comes through, and what is cut off leaves whole frames."""
    path = tmp_path / "x"
    file = opened(path)
    writer = SidecarWriter(file)
    writer.write(noise(7, LARGE))

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OSError, match="No space"):
        writer.write(noise(8, LARGE))
    file.cut(writer.size)
    file.close()
    with path.open("rb") as stream:
        assert list(SidecarReader(stream).frames(writer.size)) == [noise(7, LARGE)]
