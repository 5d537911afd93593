"""The pytest plugin in a project of its own, installed from the wheel: every record mode, parallel, asynchronous, with and without the server."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import ssl
import subprocess
import sys
import sysconfig
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import trustme

import tlscap

ROOT = Path(__file__).parent.parent
PROJECT = Path(__file__).parent / "sample_project"
PASSWORD = "teapot-4711"


class Shop(ThreadingHTTPServer):
    """The real server."""

    def __init__(self, authority: trustme.CA) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.asked: list[str] = []
        self.prices = {"tea": 3, "milk": 1}
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("localhost").configure_cert(context)
        self.socket = context.wrap_socket(self.socket, server_side=True)
        self.url = f"https://localhost:{self.server_port}"

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients come and go."""


class Answers(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Shop

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.say(
            {"/prices": self.server.prices, "/stock/tea": {"item": "tea", "count": 12}, "/news": ["tea is back"]}[path]
        )

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/login":
            ok = body == {"user": "ada", "password": PASSWORD}
            self.say({"token": "tok-0123456789abcdef"} if ok else {"error": "no"}, 200 if ok else 403)
        elif self.headers["Authorization"] == "Bearer tok-0123456789abcdef":
            self.say({"item": body["item"], "total": 3 * body["count"]}, 201)
        else:
            self.say({"error": "who are you?"}, 401)

    def say(self, content: object, status: int = 200) -> None:
        self.server.asked.append(f"{self.command} {self.path}")
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Quiet."""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python with tlscap from its wheel, and everything else from this environment."""
    folder = tmp_path_factory.mktemp("installed")
    source = folder / "source"
    shutil.copytree(ROOT / "tlscap", source / "tlscap", ignore=shutil.ignore_patterns("__pycache__", "_bpf", "*.so"))
    shutil.copytree(ROOT / "bpf", source / "bpf")
    for name in ("pyproject.toml", "setup.py", "README.md"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, source]
    subprocess.run(list(map(str, build)), check=True, capture_output=True)
    (wheel,) = folder.glob("tlscap-*.whl")
    place = folder / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", place], check=True)
    python = place / "bin" / "python"
    subprocess.run(
        list(map(str, [*pip, "--python", python, "install", "--no-deps", "--no-index", wheel])),
        check=True,
        capture_output=True,
    )
    (packages,) = place.glob("lib/python*/site-packages")
    # A path in a .pth file: what is installed there is found, but its own .pth files (this tree's) are not read.
    (packages / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


class Project:
    """A copy of the sample project, and the server that it is about."""

    def __init__(self, folder: Path, python: Path) -> None:
        self.folder = folder / "project"
        shutil.copytree(PROJECT, self.folder, ignore=shutil.ignore_patterns("__pycache__", ".pytest_cache"))
        self._python = python
        authority = trustme.CA()
        self.ca = folder / "ca.pem"
        authority.cert_pem.write_to_path(self.ca)
        self.shop = Shop(authority)
        threading.Thread(target=self.shop.serve_forever, daemon=True).start()
        self._ini = (self.folder / "pytest.ini").read_text()

    def configure(self, *lines: str) -> None:
        (self.folder / "pytest.ini").write_text(self._ini + "".join(line + "\n" for line in lines))

    def pytest(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run the project's tests."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
        environment |= {"SHOP_URL": self.shop.url, "SSL_CERT_FILE": str(self.ca), "REQUESTS_CA_BUNDLE": str(self.ca)}
        return subprocess.run(
            [str(self._python), "-m", "pytest", "-p", "no:cacheprovider", *arguments],
            cwd=self.folder,
            env=environment | variables,
            capture_output=True,
            text=True,
        )

    def passes(self, *arguments: str, count: int = 3, **variables: str) -> str:
        done = self.pytest(*arguments, **variables)
        assert done.returncode == 0, done.stdout + done.stderr
        assert f"{count} passed" in done.stdout, done.stdout
        return done.stdout

    def asked(self) -> list[str]:
        """What the real server was asked since the last time."""
        asked, self.shop.asked = self.shop.asked, []
        return sorted(asked)

    def close(self) -> None:
        """Stop the server: nobody answers at its port."""
        self.shop.shutdown()
        self.shop.server_close()

    def capture(self, name: str) -> tlscap.api.Capture:
        return tlscap.open(str(self.folder / "fixtures" / f"{name}.tlscap.zst"))


@pytest.fixture
def project(tmp_path: Path, installed: Path) -> Iterator[Project]:
    made = Project(tmp_path, installed)
    yield made
    with contextlib.suppress(OSError):
        made.close()


ALL_ASKED = sorted(
    ["GET /prices?currency=EUR", "GET /stock/tea", "POST /login", "POST /orders", "GET /news", "GET /news"]
)


def test_once_then_offline(project: Project) -> None:
    project.configure("tlscap_recorder = forward")
    done = project.pytest()
    assert done.returncode != 0
    assert "prices.tlscap.zst does not exist; --tlscap-record=once records it" in done.stdout
    project.passes("--tlscap-record=once")
    assert project.asked() == ALL_ASKED
    files = sorted(path.name for path in (project.folder / "fixtures").iterdir())
    assert [name for name in files if name.endswith(".zst")] == [
        "news.tlscap.zst", "order.tlscap.zst", "prices.tlscap.zst",
    ]  # fmt: skip
    for path in (project.folder / "fixtures").iterdir():
        assert PASSWORD.encode() not in path.read_bytes()
    project.passes("--tlscap-record=once")
    assert project.asked() == []
    project.close()
    project.passes()
    project.passes("-n", "2")
    project.passes("-p", "no:randomly", "-q", "--tlscap-unused=fail")


def test_a_changed_client_fails_with_a_difference(project: Project) -> None:
    project.configure("tlscap_recorder = forward")
    project.passes("--tlscap-record=once")
    project.close()
    done = project.pytest("-k", "order", SHOP_COUNT="3")
    assert done.returncode == 1
    assert "POST" in done.stdout
    assert "/orders" in done.stdout
    assert "count" in done.stdout
    assert "2" in done.stdout
    assert "3" in done.stdout
    # The password is a pseudonym in the capture, which any password matches.
    project.passes("-k", "order", count=1, SHOP_PASSWORD="another")


def test_new_episodes(project: Project) -> None:
    project.configure("tlscap_recorder = forward")
    project.passes("--tlscap-record=once")
    project.asked()
    before = [exchange.url for exchange in project.capture("prices")]
    test = project.folder / "test_shop.py"
    test.write_text(
        test.read_text().replace('stock("tea") == 12', 'stock("tea") == 12\n    assert shop.order("x", "tea", 1)')
    )
    # It needs a token, which it has not: the server's 401 is recorded, and is the test's to judge.
    assert project.pytest("-k", "prices", "--tlscap-record=new_episodes").returncode == 1
    assert project.asked() == ["POST /orders"]
    assert [exchange.url for exchange in project.capture("prices")] == [*before, f"{project.shop.url}/orders"]
    assert project.pytest("-k", "prices", "--tlscap-record=new_episodes").returncode == 1
    assert project.asked() == []


@pytest.mark.parametrize(
    "recorder",
    [
        "forward",
        pytest.param("kernel", marks=pytest.mark.skipif(os.geteuid() != 0, reason="recording with eBPF needs root")),
    ],
)
def test_all(project: Project, recorder: str) -> None:
    project.configure(f"tlscap_recorder = {recorder}")
    project.passes("--tlscap-record=all")
    assert project.asked() == ALL_ASKED
    project.shop.prices["tea"] = 4
    assert project.pytest("--tlscap-record=all").returncode == 1  # and what was recorded is kept
    assert project.asked() == [each for each in ALL_ASKED if each != "GET /stock/tea"]
    (prices,) = [each for each in project.capture("prices") if "/prices" in each.url]
    assert prices.response
    assert prices.response.json()["tea"] == 4
    project.shop.prices["tea"] = 3
    project.passes("--tlscap-record=all")
    project.close()
    project.passes()


def test_unused_exchanges_are_reported(project: Project) -> None:
    project.configure("tlscap_recorder = forward")
    project.passes("--tlscap-record=once")
    test = project.folder / "test_shop.py"
    test.write_text(test.read_text().replace('    assert shop.stock("tea") == 12\n', ""))
    output = project.passes()
    assert "recorded exchanges that were not asked for" in output
    assert "/stock/tea" in output
    done = project.pytest("--tlscap-unused=fail")
    assert done.returncode == 1
    assert "prices.tlscap.zst that were not asked for" in done.stdout
    assert "not asked for" not in project.passes("--tlscap-unused=ignore")


TELLS = """
import json, os, subprocess, urllib.request
import pytest

@pytest.mark.tlscap("fixtures/prices.tlscap.zst", unused="ignore")
def test_where(tlscap_replay):
    path = "/prices?currency=EUR"
    proxies = urllib.request.ProxyHandler({})
    https = urllib.request.HTTPSHandler(context=tlscap_replay.ssl_context())
    opener = urllib.request.build_opener(proxies, https)
    for url in (tlscap_replay.url, tlscap_replay.http_url):
        assert json.load(opener.open(url + path))["tea"] == 3
    assert tlscap_replay.url == f"https://127.0.0.1:{tlscap_replay.port}"
    command = ["curl", "--silent", "--fail", os.environ["SHOP_URL"] + path]
    answer = subprocess.run(command, env=dict(tlscap_replay.environment), check=True, capture_output=True)
    assert json.loads(answer.stdout)["tea"] == 3
    assert tlscap_replay.unmatched == []
    assert len(tlscap_replay.unused) == 1
"""


def test_the_fixture_tells_where_answers_come_from(project: Project) -> None:
    """Its URLs, its context, and the environment of a program that the test starts."""
    project.configure("tlscap_recorder = forward")
    project.passes("--tlscap-record=once")
    project.close()
    (project.folder / "test_shop.py").write_text(TELLS)
    project.passes(count=1)


def test_a_wrong_marker_is_said_in_a_line(project: Project) -> None:
    (project.folder / "test_shop.py").write_text(
        "import pytest\n@pytest.mark.tlscap('x.tlscap.zst', ordr='any')\ndef test_x(): pass\n"
    )
    done = project.pytest()
    assert "has no option 'ordr'" in done.stdout
    assert "Traceback" not in done.stdout
