"""Fixtures: the same recording gives the same files, without secrets, and with a text that people can review."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import planted
import pytest
from captures import answer, get, write_capture
from click.testing import CliRunner, Result
from planted import found_in, texts_of

from tlscap.cli.fixture_make import IncompleteError
from tlscap.cli.main import tlscap
from tlscap.errors import OutputError, TlscapError, UsageError
from tlscap.fixture import EPOCH_NS, normalised, summary, summary_path
from tlscap.model import Endpoint
from tlscap.replay.recording import load
from tlscap.sidecar import FORMAT_VERSION, SidecarReader

FIXTURES = Path(__file__).parent / "fixtures"
CAPTURES = FIXTURES / "captures"


def run(*arguments: object) -> Result:
    done = CliRunner().invoke(tlscap, ["fixture", *(str(one) for one in arguments)])
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done


def make(source: Path, out: Path, *options: str) -> str:
    """Make a fixture; return its summary."""
    run("make", source, "-o", out, *options)
    return Path(summary_path(str(out))).read_text()


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return planted.plant(tmp_path_factory.mktemp("planted") / "x.tlscap.zst")


# --- Every version of the format ---


def test_a_capture_of_every_version_is_kept() -> None:
    """Old fixtures stay readable: one of each version of the format is here, and says what it said when it was made."""
    versions = sorted((FIXTURES / "versions").glob("*.tlscap.zst"))
    assert [path.name for path in versions] == [
        f"version-{number}.tlscap.zst" for number in range(1, FORMAT_VERSION + 1)
    ]
    for number, path in enumerate(versions, 1):
        with path.open("rb") as stream:
            assert SidecarReader(stream).version == number
        expected = Path(summary_path(str(path))).read_text()
        assert run("show", path).stdout == expected
        assert "scrubbed-" in expected
        for exchange in load(str(path)).exchanges:
            assert exchange.complete


# --- Making them ---


def test_secrets_are_gone(original: Path, tmp_path: Path) -> None:
    """Also without a key: nothing of the secrets is in their names."""
    out = tmp_path / "x.tlscap.zst"
    text = make(original, out)
    assert found_in(text.encode()) == []
    with out.open("rb") as stream:
        assert found_in(b"".join(SidecarReader(stream).frames())) == []
    for exchange in load(str(out)).exchanges:
        for one in texts_of(exchange):
            assert found_in(one) == []
    assert "scrubbed-000001" in text
    assert CliRunner().invoke(tlscap, ["scrub", "--check", str(out)]).exit_code == 0
    for path in (out, Path(summary_path(str(out)))):
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o600


def test_same_input_same_bytes(original: Path, tmp_path: Path) -> None:
    """In another process, too, whose sets have another order."""
    made = []
    for number in (1, 2):
        out = tmp_path / f"{number}" / "x.tlscap.zst"
        out.parent.mkdir()
        subprocess.run(
            [sys.executable, "-m", "tlscap", "fixture", "make", original, "-o", out],
            env={"PYTHONHASHSEED": str(number), "PATH": "/usr/bin:/bin"},
            check=True,
            capture_output=True,
            cwd=Path(__file__).parent.parent,
        )
        made.append((out.read_bytes(), Path(summary_path(str(out))).read_bytes()))
    assert made[0] == made[1]
    seeded = [
        make(original, tmp_path / name, "--seed", "0123456789abcdef") for name in ("a.tlscap.zst", "b.tlscap.zst")
    ]
    assert seeded[0] == seeded[1]
    assert "scrubbed-000001" not in seeded[0]


def test_a_fixture_of_a_fixture_is_the_same(tmp_path: Path) -> None:
    first, second = tmp_path / "a.tlscap.zst", tmp_path / "b.tlscap.zst"
    one = make(CAPTURES / "http1-keep-alive.tlscap.zst", first)
    two = make(first, second)
    assert one == two
    assert first.read_bytes() == second.read_bytes()


def test_what_differs_from_day_to_day_is_gone(tmp_path: Path) -> None:
    """Two recordings of the same thing: other times, ports, numbers; the same fixture."""
    texts = []
    for number in (1, 2):
        filler = [[(get("/other"), answer())]] * (number - 1)  # so that ports and times differ
        path = write_capture(
            tmp_path / f"{number}.tlscap.zst", *filler, [(get("/x?token=abcdefgh-1"), answer(b"hello"))]
        )
        out = tmp_path / f"out{number}.tlscap.zst"
        run("make", path, "path:/x", "-o", out)
        texts.append(out.read_bytes())
    assert texts[0] == texts[1]
    (exchange,) = load(str(tmp_path / "out1.tlscap.zst")).exchanges
    flow, process = exchange.flow, exchange.flow.process
    assert (process.pid, process.comm, process.cmdline, process.exe, process.uid, process.libraries) == (
        1,
        "curl",
        (),
        "",
        -1,
        (),
    )
    assert (flow.local, flow.remote, flow.ssl) == (Endpoint("192.0.2.1", 49152), Endpoint("198.51.100.1", 443), 0)
    assert flow.opened_ns == EPOCH_NS
    assert exchange.request.started_ns == EPOCH_NS + 1_000_000


def test_times_can_be_kept(original: Path) -> None:
    before = load(str(original)).exchanges
    kept, changed = normalised(before, keep_times=True), normalised(before)
    assert [one.request.started_ns for one in kept] == [one.request.started_ns for one in before]
    assert all(one.request.started_ns % 1_000_000 == 0 for one in changed)
    for one, two in zip(before, changed, strict=True):
        old, new = (
            each.request.started_ns - first.request.started_ns for each, first in ((one, before[0]), (two, changed[0]))
        )
        assert abs(old - new) <= 1_000_000


def test_filter(tmp_path: Path) -> None:
    path = write_capture(
        tmp_path / "x.tlscap.zst", [(get("/a"), answer()), (get("/b"), answer()), (get("/c"), answer(status=404))]
    )
    assert make(path, tmp_path / "o.tlscap.zst", "status:404").count("## ") == 1
    with pytest.raises(TlscapError, match="no exchange"):
        run("make", path, "path:/none", "-o", tmp_path / "n.tlscap.zst")


def test_incomplete_ones_are_refused(tmp_path: Path) -> None:
    out = tmp_path / "x.tlscap.zst"
    with pytest.raises(IncompleteError, match=r"1 \(GET https://example\.org/1\)") as caught:
        run("make", CAPTURES / "holes.tlscap.zst", "-o", out)
    assert caught.value.exit_status == 6
    assert not out.exists()
    text = make(CAPTURES / "holes.tlscap.zst", out, "--allow-incomplete")
    assert "(600 bytes are missing)" in text
    assert not load(str(out)).exchanges[0].complete


def test_the_refusal_names_no_secret(tmp_path: Path) -> None:
    """Services put tokens into paths, and the message goes to a log."""
    asked = get("/bot/Zx9-kQ7w_pL3/x?token=Zx9-kQ7w_pL3")
    path = write_capture(tmp_path / "x.tlscap.zst", [(asked, answer(b"x" * 9)[:-5])], whole=False)
    with pytest.raises(IncompleteError, match=r"/bot/scrubbed-000001/x\)"):
        run("make", path, "-o", tmp_path / "y.tlscap.zst")


def test_what_cannot_be_looked_into_is_refused(tmp_path: Path) -> None:
    path = write_capture(
        tmp_path / "x.tlscap.zst", [(get("/"), answer(b"\x00\x01", "Content-Encoding: secret-coding"))]
    )
    out = tmp_path / "o.tlscap.zst"
    with pytest.raises(IncompleteError, match="can't be looked into"):
        run("make", path, "-o", out)
    assert "(unknown content coding 'secret-coding')" in make(path, out, "--keep-undecodable")


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    path = write_capture(tmp_path / "x.tlscap.zst", [(get("/"), answer())])
    out = tmp_path / "o.tlscap.zst"
    Path(summary_path(str(out))).write_text("mine")
    with pytest.raises(OutputError, match="exists already"):
        run("make", path, "-o", out)
    assert not out.exists()
    assert Path(summary_path(str(out))).read_text() == "mine"
    assert make(path, out, "--force") != "mine"
    with pytest.raises(UsageError):
        run("make", path, "-o", "-")
    assert {one.name for one in tmp_path.iterdir()} == {"x.tlscap.zst", "o.tlscap.zst", "o.tlscap.txt"}


def test_secrets_that_are_kept_are_announced(tmp_path: Path) -> None:
    path = write_capture(tmp_path / "x.tlscap.zst", [(get("/?token=abcdefgh-1"), answer())])
    done = run("make", path, "-o", tmp_path / "o.tlscap.zst", "--no-scrub")
    assert "look secret" in done.stderr
    assert "look secret" not in run("make", path, "-o", tmp_path / "p.tlscap.zst").stderr


# --- What people read ---


def test_show_is_what_was_written(original: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.tlscap.zst"
    assert make(original, out) == run("show", out).stdout


def test_a_change_of_one_exchange_changes_one_block(tmp_path: Path) -> None:
    """The text is for `git diff`."""
    texts = []
    for body in (b'{"a": 1, "b": [1, 2]}', b'{"a": 1, "b": [1, 3]}'):
        talk = [
            (get("/1"), answer(b"same")),
            (get("/2"), answer(body, "Content-Type: application/json")),
            (get("/3"), answer()),
        ]
        path = write_capture(tmp_path / "x.tlscap.zst", talk)
        texts.append(summary(load(str(path)).exchanges).splitlines())
    assert [(old, new) for old, new in zip(*texts, strict=True) if old != new] == [("<     2", "<     3")]


def test_long_and_binary_bodies(tmp_path: Path) -> None:
    long = json.dumps(list(range(100)))
    talk = [
        (get("/long"), answer(long.encode(), "Content-Type: application/json")),
        (get("/wide"), answer(b"x" * 1000, "Content-Type: text/plain")),
        (get("/image"), answer(bytes(range(256)), "Content-Type: image/png")),
        (get("/form"), answer(b"a=1&b=2", "Content-Type: application/x-www-form-urlencoded")),
        (get("/odd"), answer(b"\x1b[31mred\n\xe2\x80\xae")),
    ]
    text = summary(load(str(write_capture(tmp_path / "x.tlscap.zst", talk))).exchanges)
    assert "< … 62 more lines, 390 bytes, sha256 " in text
    assert "< (image/png, 256 bytes, sha256 40aff2e9d2d8922e)" in text
    assert "< a=1\n< & b=2\n" in text
    assert max(map(len, text.splitlines())) < 250
    assert "\x1b" not in text
    assert "\u202e" not in text


def test_nothing_differs_but_the_time(tmp_path: Path) -> None:
    """Two summaries of the same exchanges on other days are the same text."""
    path = CAPTURES / "grpc.tlscap.zst"
    assert summary(load(str(path)).exchanges) == make(path, tmp_path / "x.tlscap.zst")
    assert '< 1: "Hello world"' in summary(load(str(path)).exchanges)
