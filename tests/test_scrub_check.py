"""``tlscap scrub --check``: finds all of a planted list, and nothing in captures without secrets."""

from __future__ import annotations

import base64
import json
import os
import re
import stat
from pathlib import Path

import planted
import pytest
import yaml
from captures import answer, get, write_capture
from click.testing import CliRunner, Result
from planted import PLANTED

from tlscap.cli.main import tlscap
from tlscap.errors import CorruptError, OutputError, UsageError
from tlscap.rebuild import PcapngBuilder
from tlscap.sidecar import SidecarReader

ROOT = Path(__file__).parent.parent
FIXTURES = sorted([*(ROOT / "tests" / "fixtures").rglob("*.zst"), *(ROOT / "tests" / "fixtures").rglob("*.pcapng")])

# One for each rule: what is planted, and how the rule is called.
KINDS = {
    "jwt": PLANTED["jwt"].decode(),
    "github-token": "github_pat_11ABCDEFG0abcdefghijkl",
    "gitlab-token": "glpat-abcdefghij0123456789",
    "aws-key-id": "ASIAIOSFODNN7EXAMPLE",
    "slack-token": "xoxp-1234567890-abcdef",
    "slack-webhook": "https://hooks.slack.com/services/T00000000/B00000000/PlantedHereAndOnly1234",
    "stripe-key": "rk_test_51abcdefghijklmnop",
    "google-key": "ya29.a0AfH6SMBx1234567890abc",
    "openai-key": "sk-proj-abcdefghijklmnopqrst",
    "npm-token": "npm_" + "a1B2" * 9,
    "pypi-token": "pypi-" + "AgEIcHlwaS5vcmc" * 4,
    "huggingface-token": "hf_" + "aBcD1" * 7,
    "sendgrid-key": "SG.abcdefghijklmnop1.qrstuvwxyzABCDEFG",
    "digitalocean-token": "dop_v1_" + "0a" * 32,
    "shopify-token": "shpat_" + "0a" * 16,
    "telegram-token": "110201543:AAHdqTcvCH1vGWJxfSeofSAs0K5PALDsaw",
    "age-key": "AGE-SECRET-KEY-1" + "Q" * 58,
    "private-key": "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXktdjEAAAAA\n-----END OPENSSH PRIVATE KEY-----",
    "url-credentials": "postgres://u:pa55word@db/x",
    "bearer-token": "Bearer abcdefghijklmnop",
    "name session_id": "?session_id=1234abcd",
}


def check(*arguments: object) -> Result:
    done = CliRunner().invoke(tlscap, ["scrub", "--check", *(str(one) for one in arguments)])
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


@pytest.mark.parametrize("rule", KINDS)
def test_every_kind(rule: str, tmp_path: Path) -> None:
    """In plain text and in JSON: found, named, and not shown."""
    secret = KINDS[rule]
    for text in (secret, json.dumps({"note": f"look: {secret} !"})):
        done = check(write_capture(tmp_path / "x.tlscap.zst", [(get("/"), answer(text.encode()))]))
        assert done.exit_code == 7
        assert rule in done.output
        assert secret not in done.output
        assert secret[-8:] not in done.output


def test_the_planted_list(tmp_path: Path) -> None:
    """Every secret is found, in a sidecar as in its pcapng; once it is scrubbed, none."""
    path = planted.plant(tmp_path / "x.tlscap.zst")
    builder = PcapngBuilder()
    packets = tmp_path / "x.pcapng"
    with path.open("rb") as source, packets.open("wb") as target:
        for frame in SidecarReader(source).frames():
            target.writelines(builder.feed(frame))
        target.writelines(builder.finish())
    for one in (path, packets):
        done = check(one, "--json")
        assert done.exit_code == 7
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        found = {(line["value"].rstrip("…"), line["length"]) for line in lines}
        for name, secret in PLANTED.items():
            wanted = secret.decode()[:3], len(secret)
            assert wanted in found or name in ("cookie2", "password"), name
        assert ("ali", len(b"alice:" + PLANTED["password"])) in found
        assert {line["place"] for line in lines} >= {
            "request header authorization", "request header cookie", "request target", "request body", "response body",
            "response header set-cookie", "WebSocket text", "WebSocket binary", "command line",
            "bytes that are no HTTP (request)",
        }  # fmt: skip
        assert planted.found_in(done.output.encode()) == []
    clean = tmp_path / "clean.tlscap.zst"
    assert CliRunner().invoke(tlscap, ["scrub", str(path), "-o", str(clean)]).exit_code == 0
    assert stat.S_IMODE(os.stat(clean).st_mode) == 0o600
    done = check(clean)
    assert (done.exit_code, done.output) == (0, "")


def test_own_fixtures_are_clean() -> None:
    assert len(FIXTURES) > 20
    done = check(*FIXTURES)
    assert (done.exit_code, done.output) == (0, "")


def test_ordinary_traffic_is_clean(tmp_path: Path) -> None:
    """Few false alarms: hashes, identifiers, dates, images, pages of documentation."""
    body = json.dumps(
        {
            "id": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
            "uuid": "3f2504e0-4f89-11d3-9a0c-0305e82c3301",
            "image": "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk",
            "token_type": "bearer", "tokens": 5, "max_tokens": 100, "passwordless": True, "secrets": [], "password": None,
            "text": "Send your token as `Authorization: Bearer <token>`, or api_key=${API_KEY}, or password=********",
            "path": "/usr/share/Some/Long/Path/With/Upper/Case/And/Digits/0123456789",
            "name": "ThisIsAVeryLongCamelCaseNameThatSomebodyInvented",
        }
    ).encode()  # fmt: skip
    fields = [
        'ETag: "33a64df551425fcc55e4d42a148795d9f25f89d4"', "X-Request-Id: aB3dE5fG7hI9jK1lM3nO5pQ7rS9tU1vW",
        "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "Content-Type: application/json",
        "Content-Security-Policy: default-src 'self' 'nonce-aB3dE5fG7hI9jK1lM3nO5pQ7rS9tU1vW'",
        "Strict-Transport-Security: max-age=31536000", "X-Frame-Options: DENY",
    ]  # fmt: skip
    asked = get(
        "/search?q=how+to+choose+a+password&monkey=1&page_size=50",
        "User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/126.0",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        "Accept: text/html,application/xhtml+xml;q=0.9",
    )
    done = check(write_capture(tmp_path / "x.tlscap.zst", [(asked, answer(body, *fields))]))
    assert (done.exit_code, done.output) == (0, "")


def test_what_looks_random(tmp_path: Path) -> None:
    """A token that no rule knows stands out by its disorder; scrubbing takes it out, too."""
    token = "xK9mQ2vL7pR4tY8wZ3nB6cF1gH5jD0sA"
    path = write_capture(tmp_path / "x.tlscap.zst", [(get(f"/?cursor={token}", f"X-Custom: {token}"), answer())])
    done = check(path)
    assert done.exit_code == 7
    assert done.stdout.count("high-entropy") == 2
    assert check(path, "--keep", "high-entropy").exit_code == 0
    clean = tmp_path / "clean.tlscap.zst"
    CliRunner().invoke(tlscap, ["scrub", str(path), "-o", str(clean)])
    assert check(clean).exit_code == 0


def test_other_files_fail_clearly(tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("password=hunter2")
    with pytest.raises(CorruptError, match="neither a tlscap sidecar nor a pcapng"):
        check(text)
    with pytest.raises(OutputError):
        check(tmp_path / "none")
    # What is wrong with one file doesn't hide what is in another.
    path = write_capture(tmp_path / "x.tlscap.zst", [(get("/?token=abcdefgh"), answer())])
    done = check(text, path)
    assert done.exit_code == 7
    assert "neither" in done.output
    for bad in (["-o", "x", "--check", str(path)], [str(path)], [str(path), str(path), "-o", "x"]):
        with pytest.raises(UsageError):
            CliRunner().invoke(tlscap, ["scrub", *bad], standalone_mode=False, catch_exceptions=False)


def test_answers_without_a_request_are_looked_at(tmp_path: Path) -> None:
    path = write_capture(tmp_path / "x.tlscap.zst", [(b"", answer(b"token=abcdefgh-1", "Set-Cookie: a=bcdefghij"))])
    done = check(path)
    assert done.exit_code == 7
    assert "body of an answer without its request" in done.output
    assert "head of an answer without its request" in done.output


def test_the_name_of_an_exchange_shows_nothing(tmp_path: Path) -> None:
    secret = PLANTED["github"].decode()
    done = check(write_capture(tmp_path / "x.tlscap.zst", [(get(f"/{secret}/x?token=abcdefgh-1"), answer())]))
    assert secret not in done.output
    assert "abcdefgh-1" not in done.output
    assert "exchange 1 GET example.org: request target: github-token: ghp… (40 bytes)" in done.output


def test_hooks_file() -> None:
    """What pre-commit runs exists, and is given captures alone."""
    (hook,) = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())
    assert hook["entry"] == "tlscap scrub --check"
    assert CliRunner().invoke(tlscap, [*hook["entry"].split()[1:], *map(str, FIXTURES[:2])]).exit_code == 0
    for name, fits in (("a/x.tlscap.zst", True), ("x.pcapng", True), ("x.tlscap.txt", False), ("x.zst", False)):
        assert bool(re.search(hook["files"], name)) is fits


def test_short_values_are_not_shown(tmp_path: Path) -> None:
    """Three characters of a PIN of four are most of it."""
    path = write_capture(tmp_path / "x.tlscap.zst", [(get("/"), answer(b'{"pin": 7391}'))])
    (line,) = check(path, "--json").stdout.splitlines()
    assert json.loads(line)["value"] == "7…"


def test_base64_with_a_pseudonym_in_it_is_not_random(tmp_path: Path) -> None:
    inner = base64.b64encode(b"..scrubbed-zk4qtepif6hrkdgojv3a.").decode()
    path = write_capture(tmp_path / "x.tlscap.zst", [(get(f"/?echo={inner.rstrip('=')}"), answer())])
    assert check(path).exit_code == 0


def test_a_path_with_a_secret_is_not_shown(tmp_path: Path) -> None:
    path = write_capture(tmp_path / "x.tlscap.zst", [(get("/a/Zx9-kQ7w_pL3", "X-Api-Key: Zx9-kQ7w_pL3"), answer())])
    done = check(path)
    assert done.exit_code == 7
    assert "Zx9-" not in done.output
