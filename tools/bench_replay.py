#!/usr/bin/env python3
"""How fast recorded answers are served, beside mitmdump and vcrpy: alternately in one run.

    bench_replay.py [--rounds N] [--seconds N] [--mitmdump PATH]

Needs root, nginx, wrk, h2load, curl; mitmproxy for the comparison (``pip install mitmproxy`` somewhere else, and name its mitmdump).
All serve the same hundred answers of 1 KB over TLS; every round measures every server once, and the table shows medians and ranges.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from bench import TLSCAP, Table, certificate, free_port, spread

PATHS = [f"/item/{number}" for number in range(100)]

VCR = """
import sys, time, requests, vcr
url, ca, cassette, seconds = sys.argv[1], sys.argv[2], sys.argv[3], float(sys.argv[4])
context = vcr.use_cassette(cassette, record_mode="none", allow_playback_repeats=True) if cassette else None
if context:
    context.__enter__()
session = requests.Session()
session.trust_env = False
session.verify = False  # which costs each of them the same
done, end = 0, time.monotonic() + seconds
while time.monotonic() < end:
    assert session.get(url + "/item/%d" % (done % 100)).ok
    done += 1
print(done / seconds)
"""
RECORD_VCR = """
import sys, requests, vcr
session = requests.Session()
session.trust_env, session.verify = False, False
with vcr.use_cassette(sys.argv[3], record_mode="all"):
    for number in range(100):
        session.get(sys.argv[1] + "/item/%d" % number)
"""


@contextlib.contextmanager
def running(*command: str | Path, port: int) -> Iterator[None]:
    """A server, from when it listens."""
    process = subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(400):
            if process.poll() is not None:
                raise SystemExit(f"{command[0]} ended with {process.returncode}")
            if (
                subprocess.run(
                    ["curl", "-skm", "2", "-o", "/dev/null", f"https://127.0.0.1:{port}{PATHS[0]}"]
                ).returncode
                == 0
            ):
                break
            time.sleep(0.05)
        yield
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextlib.contextmanager
def nginx(folder: Path, cert: str, key: str) -> Iterator[int]:
    """The real server."""
    www = folder / "www" / "item"
    www.mkdir(parents=True)
    for number in range(100):
        (www / str(number)).write_text(f'{{"item": {number}, "text": "{"tea " * 250}"}}'[:1022] + "\n")
    port = free_port()
    temps = "".join(f"{n}_temp_path {folder}/t-{n}; " for n in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    config = folder / "nginx.conf"
    config.write_text(
        f"worker_processes 1; daemon off; error_log {folder}/error.log; pid {folder}/nginx.pid; user root;\n"
        "events { worker_connections 1024; }\n"
        f"http {{ access_log off; default_type application/json; {temps} keepalive_requests 100000000;\n"
        f" server {{ listen 127.0.0.1:{port} ssl http2; ssl_certificate {cert}; ssl_certificate_key {key}; root {folder}/www; }} }}\n"
    )
    with running("nginx", "-c", config, "-p", folder, port=port):
        yield port


def wrk(folder: Path, port: int, seconds: int) -> float:
    script = folder / "paths.lua"
    script.write_text('n=0\nrequest=function() n=(n+1)%100; return wrk.format("GET", "/item/"..n) end\n')
    out = subprocess.run(
        ["wrk", "-t1", "-c16", f"-d{seconds}s", "-s", script, f"https://127.0.0.1:{port}/"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    rate = re.search(r"Requests/sec:\s+([\d.]+)", out)
    if not rate or "Non-2xx" in out:
        raise SystemExit(out)
    return float(rate[1])


def h2load(folder: Path, port: int, seconds: int) -> float:
    urls = folder / "urls"
    urls.write_text("".join(f"https://127.0.0.1:{port}{path}\n" for path in PATHS))
    out = subprocess.run(
        ["h2load", f"--duration={seconds}", "--clients=8", "--max-concurrent-streams=10", f"--input-file={urls}"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    rate, failed = re.search(r"([\d.]+) req/s", out), re.search(r"(\d+) 4xx, (\d+) 5xx", out)
    if not rate or not failed or failed.groups() != ("0", "0"):
        raise SystemExit(out)
    return float(rate[1])


def loop(url: str, ca: str, cassette: str, seconds: int) -> float:
    """Requests per second of one client in Python, which waits for each answer."""
    command = [sys.executable, "-W", "ignore", "-c", VCR, url, ca, cassette, str(seconds)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return float(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=4)
    parser.add_argument("--mitmdump", default=shutil.which("mitmdump") or "")
    options = parser.parse_args()
    print(f"    tools/bench_replay.py --rounds {options.rounds} --seconds {options.seconds}")
    results: dict[str, dict[str, list[float]]] = {}

    def note(name: str, what: str, value: float) -> None:
        results.setdefault(name, {}).setdefault(what, []).append(value)

    with tempfile.TemporaryDirectory(prefix="tlscap-bench-") as path:
        folder = Path(path)
        cert, key = certificate(folder)
        capture, cassette, flows = folder / "items", folder / "items.yaml", folder / "items.mitm"
        with nginx(folder, cert, key) as port:
            urls = [f"https://127.0.0.1:{port}{each}" for each in PATHS]
            curl = ["curl", "-sk", "--http1.1", "--remote-name-all", "--output-dir", str(folder), *urls]
            subprocess.run([TLSCAP, "record", "-q", "-o", str(capture), "--", *curl], check=True)
            subprocess.run(
                [sys.executable, "-W", "ignore", "-c", RECORD_VCR, f"https://127.0.0.1:{port}", cert, cassette],
                check=True,
            )
            upstream = port
            if options.mitmdump:
                listen = free_port()
                reverse = [
                    options.mitmdump,
                    "--mode",
                    f"reverse:https://127.0.0.1:{port}",
                    "-p",
                    str(listen),
                    "-k",
                    "-w",
                    str(flows),
                ]
                with running(*reverse, port=listen):
                    proxied = [each.replace(f":{port}/", f":{listen}/") for each in urls]
                    subprocess.run(
                        ["curl", "-sk", "--http1.1", "--remote-name-all", "--output-dir", str(folder), *proxied],
                        check=True,
                    )
        pem = folder / "own.pem"
        pem.write_text(Path(cert).read_text() + Path(key).read_text())
        servers: dict[str, tuple[int, list[str]]] = {}
        listen = free_port()
        servers["tlscap replay serve"] = listen, [
            TLSCAP, "replay", "serve", f"{capture}.tlscap.zst", "--listen", f"127.0.0.1:{listen}", "--cert", cert, "--key", key,
        ]  # fmt: skip
        if options.mitmdump:
            listen = free_port()
            servers["mitmdump --server-replay"] = listen, [
                options.mitmdump, "-q", "--mode", f"reverse:https://127.0.0.1:{upstream}", "-p", str(listen), "--certs", str(pem),
                "--server-replay", str(flows), "--set", "server_replay_reuse=true", "--set", "server_replay_extra=404",
                "--set", "connection_strategy=lazy", "--set", "server_replay_ignore_port=true",
            ]  # fmt: skip
        for _ in range(options.rounds):
            for name, (listen, command) in servers.items():
                with running(*command, port=listen):
                    note(name, "wrk", wrk(folder, listen, options.seconds))
                    note(name, "h2load", h2load(folder, listen, options.seconds))
                    note(name, "loop", loop(f"https://127.0.0.1:{listen}", cert, "", options.seconds))
            note(
                "vcrpy, in the client's process",
                "loop",
                loop(f"https://127.0.0.1:{upstream}", cert, str(cassette), options.seconds),
            )
    print(
        f"\n{os.uname().sysname} {os.uname().release}, {os.uname().machine}, {os.cpu_count()} CPUs, Python {sys.version.split()[0]}"
    )
    table = Table(
        f"A hundred recorded answers of 1 KB over TLS, requests/s ({options.seconds} s each)",
        "server", "HTTP/1.1 (wrk, 16 connections)", "HTTP/2 (h2load, 8 connections, 10 streams)", "a loop of requests.get",
    )  # fmt: skip
    for name, found in results.items():
        table.row(name, *(spread(found[what], 0) if what in found else "" for what in ("wrk", "h2load", "loop")))
    ours, theirs = results["tlscap replay serve"], results.get("mitmdump --server-replay")
    if theirs:
        ratios = [
            f"{statistics.median(ours[what]) / statistics.median(theirs[what]):.1f}"
            for what in ("wrk", "h2load", "loop")
        ]
        table.row("tlscap / mitmdump", *ratios)
    table.show()


if __name__ == "__main__":
    main()
