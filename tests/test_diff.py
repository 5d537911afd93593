"""``tlscap diff``: what appeared, vanished and changed, and what is no difference."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from captures import Talk, answer, get, write_capture
from click.testing import CliRunner, Result

from tlscap.cli.diff import DIFFERENT, diff

DATE, LATER = "Date: Fri, 20 Nov 2026 18:00:00 GMT", "Date: Fri, 20 Nov 2026 19:00:00 GMT"


def run(folder: Path, before: list[Talk], after: list[Talk], *arguments: str) -> Result:
    one = write_capture(folder / "one.tlscap.zst", *before)
    other = write_capture(folder / "other.pcapng", *after)
    return CliRunner().invoke(diff, [str(one), str(other), *arguments])


def test_equal(tmp_path: Path) -> None:
    """Times, connections, the order of connections and fields like Date are no difference."""
    one, two = (get("/1"), answer(b"a", DATE)), (get("/2"), answer(b"b"))
    done = run(tmp_path, [[one, two]], [[two], [(one[0], answer(b"a", LATER))]])
    assert (done.exit_code, done.stdout) == (0, "")
    assert done.stderr == "2 exchanges the same\n"


def test_codings_are_no_difference(tmp_path: Path) -> None:
    """The same content, compressed or not, differs in its fields alone."""
    packed = gzip.compress(b"content")
    done = run(
        tmp_path,
        [[(get("/"), answer(b"content"))]],
        [[(get("/"), answer(packed, "Content-Encoding: gzip"))]],
        *("--ignore-header", "content-encoding", "--ignore-header", "Content-Length"),
    )
    assert done.exit_code == 0, done.stdout


def test_all_kinds(tmp_path: Path) -> None:
    """Vanished, appeared, changed: each with what differs."""
    before = [
        (get("/gone"), answer(b"x")),
        (get("/status"), answer(b"")),
        (get("/json"), answer(b'{"a": 1, "b": 2}', "Content-Type: application/json")),
        (get("/query?a=1"), answer(b"")),
        (get("/field", "X-A: old"), answer(b"")),
    ]
    after = [
        (get("/status"), answer(b"", status=500)),
        (get("/json"), answer(b'{"a": 1, "b": 3}', "Content-Type: application/json")),
        (get("/query?a=2"), answer(b"")),
        (get("/field", "X-A: new"), answer(b"")),
        (get("/new"), answer(b"x")),
    ]
    done = run(tmp_path, [before], [after])
    assert done.exit_code == DIFFERENT
    lines = done.stdout.splitlines()
    assert lines[0] == "- GET https://example.org/gone  200  (exchange 1)"
    assert lines[1] == "+ GET https://example.org/new  200  (exchange 5)"
    assert lines[2:5] == [
        "~ GET https://example.org/status  (exchange 2, now 1)",
        "    - status: 200",
        "    + status: 500",
    ]
    assert '        - "b": 2' in lines
    assert '        + "b": 3' in lines
    assert "    - url: https://example.org/query?a=1" in lines
    assert "    + request x-a: new" in lines
    assert done.stderr == "0 exchanges the same, 1 vanished, 1 appeared, 4 changed\n"


def test_repeated_requests_pair_in_order(tmp_path: Path) -> None:
    """The third of three polls vanished, not the first."""
    poll = [(get("/poll"), answer(b"%d" % number)) for number in range(3)]
    done = run(tmp_path, [poll], [poll[:2]])
    assert done.stdout == "- GET https://example.org/poll  200  (exchange 3)\n"


@pytest.mark.parametrize("option", ["--no-bodies", "--filter=path:/other"])
def test_less_is_compared(tmp_path: Path, option: str) -> None:
    """On request bodies don't count, or only some exchanges."""
    before = [(get("/"), answer(b"one")), (get("/other"), answer(b"x"))]
    after = [(get("/"), answer(b"two")), (get("/other"), answer(b"x"))]
    assert run(tmp_path, [before], [after], option).exit_code == 0


def test_all_headers(tmp_path: Path) -> None:
    """On request everything counts."""
    done = run(tmp_path, [[(get("/"), answer(b"", DATE))]], [[(get("/"), answer(b"", LATER))]], "--all-headers")
    assert done.exit_code == DIFFERENT
    assert f"+ response date: {LATER[6:]}" in done.stdout


def test_json(tmp_path: Path) -> None:
    """One object for each difference; beyond the limit, without details."""
    before = [(get(f"/{number}"), answer(b"a")) for number in range(3)]
    after = [(get(f"/{number}"), answer(b"b")) for number in (0, 1, 3)]
    done = run(tmp_path, [before], [after], "--json", "--limit", "1")
    objects = [json.loads(line) for line in done.stdout.splitlines()]
    assert [one["change"] for one in objects] == ["vanished", "appeared", "changed", "changed"]
    assert objects[2]["details"][0].startswith("- response body: 1 bytes")
    assert objects[3]["details"] is None
    assert objects[0]["after"] is None
    assert "1 of them explained" in done.stderr


def test_what_comes_from_the_network_is_made_visible(tmp_path: Path) -> None:
    """No escape sequence of a capture reaches the terminal."""
    done = run(
        tmp_path,
        [[(get("/\x1b[2J"), answer(b"", "X: \x1b[1m"))]],
        [[(get("/\x1b[2J"), answer(b""))]],
        "--color",
        "always",
    )
    assert done.exit_code == DIFFERENT
    assert "\x1b[2J" not in done.stdout
    assert "\x1b[1m" not in done.stdout
    assert "\x1b[33m~" in done.stdout
