"""Fixtures of the live tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from live.servers import TOOLS_MISSING, Certificates, Nginx, Recorder, make_certificates

LARGE = 10_000_000  # bytes; pytest keeps the folders of its last three runs


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """A test authority and its certificate for localhost."""
    if TOOLS_MISSING:
        pytest.skip(f"not installed: {', '.join(TOOLS_MISSING)}")
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="session")
def nginx(tmp_path_factory: pytest.TempPathFactory, certificates: Certificates) -> Iterator[Nginx]:
    """nginx with one worker, for all tests."""
    server = Nginx(tmp_path_factory.mktemp("nginx"), certificates)
    yield server
    server.close()


@pytest.fixture
def record(tmp_path: Path) -> Iterator[Recorder]:
    """``record(..., command=[...])`` runs ``tlscap record``.  Large recordings don't outlive their test."""
    yield Recorder(tmp_path)
    for path in tmp_path.iterdir():
        if path.is_file() and path.stat().st_size > LARGE:
            path.unlink()
