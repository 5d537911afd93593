"""`.ci/run` says what `make test` did: by its exit status, and in its last line."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / ".ci" / "run"


@pytest.mark.parametrize(
    ("printed", "status", "last"),
    [
        ("=== 3 passed in 1.0s ===\n=== 4 passed in 70.1s (0:01:10) ===", 0, "7 passed, 0 failed"),
        ("== 3 passed, 2 skipped in 1.0s ==\n== 4 passed in 2s ==", 0, "7 passed, 0 failed, 2 skipped"),
        ("== 1 failed, 3 passed, 1 error in 1.0s ==\n== 4 passed in 2s ==", 2, "7 passed, 2 failed"),
        ("no compiler", 2, "0 passed, 1 failed"),
        ("= 5 passed in 1s =\nKilled", 137, "5 passed, 1 failed"),
    ],
)
def test_verdict(tmp_path: Path, printed: str, status: int, last: str) -> None:
    make = tmp_path / "make"
    make.write_text(f"#!/bin/sh\ncat <<'END'\n{printed}\nEND\nexit {status}\n")
    make.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", SCRIPT], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (status, last), done.stdout + done.stderr
