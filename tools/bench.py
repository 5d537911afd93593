#!/usr/bin/env python3
"""What recording costs, beside doing without: all as ratios measured alternately in one run.

    bench.py [--rounds N] [--only start,calls,nginx,bulk,read] [--folder DIR]

Needs root, OpenSSL's headers, nginx, wrk, curl; bpfcc-tools for the comparison with sslsniff.  Machines are noisy: every
round measures every variant once, and the table shows the median of the rounds' ratios with their range.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import resource
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tlscap.live.libbpf import LibbpfLoader  # noqa: E402
from tlscap.live.loader import Filter, Settings  # noqa: E402
from tlscap.live.sites import Resolver  # noqa: E402
from tlscap.live.targets import system_libraries  # noqa: E402

TLSCAP = str(ROOT / ".venv" / "bin" / "tlscap")
RING = ("--ring-size", "64Mi")


class Table:
    """Rows of a Markdown table; the first column is text."""

    def __init__(self, title: str, *columns: str) -> None:
        self.lines = [f"\n### {title}\n", "| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]

    def row(self, *cells: str) -> None:
        self.lines.append("| " + " | ".join(cells) + " |")

    def show(self) -> None:
        print("\n".join(self.lines), flush=True)


def spread(values: list[float], digits: int = 2) -> str:
    """Median, and the range."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})"


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def certificate(folder: Path) -> tuple[str, str]:
    cert, key = str(folder / "cert.pem"), str(folder / "key.pem")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", cert, "-days", "2",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"],
        check=True, capture_output=True,
    )  # fmt: skip
    return cert, key


# --- Ways to be traced: each is a context manager around a measurement. ---


class Recording:
    """`tlscap record` around a measurement; `result` has what it said at its end."""

    def __init__(self, folder: Path, *args: str) -> None:
        self._folder, self._args = folder, args
        self.summary = ""
        self.cpu_s = 0.0

    def __enter__(self) -> Self:
        for old in self._folder.glob("bench.*"):
            old.unlink()
        self._before = resource.getrusage(resource.RUSAGE_CHILDREN)
        self._process = subprocess.Popen(
            [TLSCAP, "record", "-o", str(self._folder / "bench"), *RING, *self._args], stderr=subprocess.PIPE, text=True
        )
        assert self._process.stderr
        self._first = self._process.stderr.readline()
        return self

    def __exit__(self, *_: object) -> None:
        time.sleep(0.1)
        self._process.send_signal(signal.SIGINT)
        assert self._process.stderr
        self.summary = self._first + self._process.stderr.read()
        self._process.wait()
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        self.cpu_s = after.ru_utime + after.ru_stime - self._before.ru_utime - self._before.ru_stime

    @property
    def complete(self) -> bool:
        return "complete: all" in self.summary

    @property
    def missing(self) -> int:
        match = re.search(r"INCOMPLETE: ([\d,]+) of", self.summary)
        return int(match[1].replace(",", "")) if match else 0

    @property
    def sidecar(self) -> str:
        return str(self._folder / "bench.tlscap.zst")


@contextlib.contextmanager
def empty_probes(pid: int = -1) -> Iterator[None]:
    """The same probes at the same sites, with a filter that no process meets: entry and return, and nothing done."""
    loader = LibbpfLoader(Settings(ring_size=1 << 16, filter=Filter.UID))
    try:
        resolver = Resolver()
        for path in system_libraries():
            failures = loader.attach(resolver.resolve(path).points, pid)
            if failures:
                raise SystemExit(f"could not attach: {failures}")
        yield
    finally:
        loader.close()


@contextlib.contextmanager
def sslsniff(folder: Path, pid: int) -> Iterator[Path]:
    """bcc's sslsniff with the one change without which it does not compile against current headers."""
    source = Path(shutil.which("sslsniff-bpfcc") or "").read_text(encoding="utf-8")
    patched = folder / "sslsniff-patched"
    patched.write_text(
        source.replace(
            "u32 buf_copy_size = min((size_t)MAX_BUF_SIZE, (size_t)len);",
            "u32 buf_copy_size = (size_t)len < (size_t)MAX_BUF_SIZE ? (size_t)len : (size_t)MAX_BUF_SIZE;",
        ),
        encoding="utf-8",
    )
    out = folder / "sslsniff.out"
    with out.open("wb") as file:
        process = subprocess.Popen(["/usr/bin/python3", str(patched), "-p", str(pid)], stdout=file, stderr=file)
        try:
            deadline = time.monotonic() + 60
            while time.monotonic() < deadline and b"FUNC" not in out.read_bytes():
                if process.poll() is not None:
                    raise SystemExit(out.read_text(errors="replace")[-500:])
                time.sleep(0.2)
                file.flush()
                if time.monotonic() > deadline - 52:  # its header line is buffered: the probes are in by now
                    break
            yield out
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()


# --- Measurements ---


def measure_start(folder: Path, rounds: int) -> None:
    times = []
    for _ in range(max(rounds, 5)):
        with Recording(folder, "--comm", "no-such-process") as recording:
            pass
        match = re.search(r"([\d.]+) s to attach", recording.summary)
        if match:
            times.append(float(match[1]))
    table = Table("From start to attached", "seconds from process start until every probe is in place")
    table.row(spread(times))
    table.show()


def measure_calls(folder: Path, rounds: int) -> None:
    """Cost of a call, and the rate without loss, with a program that does nothing but call."""
    cert, key = certificate(folder)
    program = str(folder / "bench_tls")
    subprocess.run(["cc", "-O2", str(ROOT / "tools" / "bench_tls.c"), "-o", program, "-lssl", "-lcrypto"], check=True)

    def run(size: int, calls: int, around: Callable[[int], contextlib.AbstractContextManager[object]]) -> list[float]:
        process = subprocess.Popen(
            [program, cert, key, str(size), str(calls)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert process.stdin
        assert process.stdout
        process.stdout.readline()
        with around(process.pid):
            process.stdin.write("go\n")
            process.stdin.flush()
            line = process.stdout.readline()
        process.wait()
        return [float(word) for word in line.split()]

    table = Table(
        "Cost of a TLS call (OpenSSL, in memory, write and read in one thread)",
        "bytes per call", "bare ns", "empty probes ns", "recorded ns", "empty / bare", "recorded / bare",
        "events/s", "MB/s", "lost", "recorder CPU / target's time",
    )  # fmt: skip
    for size, calls in ((100, 300_000), (1024, 250_000), (16384, 60_000)):
        bare, empty, recorded, rates, bandwidth, lost, cpu = [], [], [], [], [], [], []
        for _ in range(rounds):
            bare.append(run(size, calls, lambda _pid: contextlib.nullcontext())[0])
            empty.append(run(size, calls, empty_probes)[0])
            holder: list[Recording] = []

            def record(pid: int, holder: list[Recording] = holder) -> Recording:
                holder.append(Recording(folder, "--no-pcapng", "-p", str(pid)))
                return holder[0]

            nanoseconds, moved, seconds = run(size, calls, record)
            recorded.append(nanoseconds)
            rates.append(2 * calls / seconds)
            bandwidth.append(moved / seconds / 1e6)
            lost.append(100 * holder[0].missing / moved)
            cpu.append(holder[0].cpu_s / seconds)
        pairs = list(zip(bare, empty, recorded, strict=True))
        table.row(
            str(size), f"{statistics.median(bare):.0f}", f"{statistics.median(empty):.0f}",
            f"{statistics.median(recorded):.0f}", spread([e / b for b, e, _ in pairs]),
            spread([r / b for b, _, r in pairs]), f"{statistics.median(rates):,.0f}",
            f"{statistics.median(bandwidth):,.0f}", f"{statistics.median(lost):.2f} %", spread(cpu),
        )  # fmt: skip
    table.show()


@contextlib.contextmanager
def nginx(folder: Path) -> Iterator[tuple[int, int]]:
    """Debian's nginx with one worker; yields its port and the worker's pid."""
    cert, key = certificate(folder)
    www = folder / "www"
    www.mkdir()
    (www / "1k").write_bytes(b"x" * 1024)
    big = www / "1g"
    chunk = os.urandom(1 << 20)
    with big.open("wb") as file:
        for number in range(1000):
            file.write(number.to_bytes(8, "little") + chunk[: 1_000_000 - 8])
    port = free_port()
    temps = "".join(
        f"{name}_temp_path {folder}/tmp-{name}; " for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    config = folder / "nginx.conf"
    config.write_text(
        f"worker_processes 1; daemon off; error_log {folder}/error.log; pid {folder}/nginx.pid; user root;\n"
        "events { worker_connections 1024; }\n"
        f"http {{ access_log off; {temps}\n"
        f" server {{ listen 127.0.0.1:{port} ssl; ssl_certificate {cert}; ssl_certificate_key {key}; root {www};\n"
        "  keepalive_requests 100000000; } }\n"
    )
    process = subprocess.Popen(["nginx", "-c", str(config), "-p", str(folder)], stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.05)
        time.sleep(0.3)  # the worker is forked after the socket listens
        worker = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True).stdout
        yield port, int(worker.split()[0])
    finally:
        process.terminate()
        process.wait()


def wrk(folder: Path, port: int, seconds: int) -> tuple[float, int]:
    """Requests per second and requests, of keep-alive GETs with unique ids over 8 connections."""
    script = folder / "ids.lua"
    script.write_text('n=0\nrequest=function() n=n+1; return wrk.format("GET", "/1k?id="..n.."&e") end\n')
    out = subprocess.run(
        ["wrk", "-t1", "-c8", f"-d{seconds}s", "-s", str(script), f"https://127.0.0.1:{port}/1k"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    rate, requests = re.search(r"Requests/sec:\s+([\d.]+)", out), re.search(r"(\d+) requests in", out)
    if not rate or not requests:
        raise SystemExit(out)
    return float(rate[1]), int(requests[1])


def recorded_ids(sidecar: str, comm: str) -> tuple[int, int]:
    """Distinct request ids with a complete answer, and exchanges, that a process took part in."""
    out = subprocess.Popen([TLSCAP, "inspect", "--json", sidecar], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    ids, count = set(), 0
    assert out.stdout
    for line in out.stdout:
        exchange = json.loads(line)
        if exchange["process"]["comm"] == comm:
            count += 1
            match = re.search(r"id=(\d+)&e", exchange["url"] or "")
            if match and exchange["complete"]:
                ids.add(match[1])
    out.wait()
    return len(ids), count


def measure_nginx(folder: Path, rounds: int, seconds: int) -> None:
    results: dict[str, list[float]] = {}
    stored: dict[str, list[str]] = {}
    with nginx(folder) as (port, worker):
        wrk(folder, port, 1)
        for _ in range(rounds):
            bare, _ = wrk(folder, port, seconds)
            results.setdefault("bare", []).append(1.0)
            results.setdefault("bare requests/s", []).append(bare)
            with empty_probes(worker):
                rate, _ = wrk(folder, port, seconds)
            results.setdefault("empty probe pairs, same sites", []).append(rate / bare)
            for name, comms, args in (
                ("tlscap, nginx recorded", ("nginx",), ("-p", str(worker))),
                ("tlscap, nginx and client recorded", ("nginx", "wrk"), ("--comm", "nginx", "--comm", "wrk")),
            ):
                with Recording(folder, *args) as recording:
                    rate, requests = wrk(folder, port, seconds)
                results.setdefault(name, []).append(rate / bare)
                shares = []
                for comm in comms:
                    ids, _ = recorded_ids(recording.sidecar, comm)
                    shares.append(f"{comm} {min(100.0, 100 * ids / requests):.2f} %")
                verdict = "all bytes" if recording.complete else f"{recording.missing:,} bytes lost"
                stored.setdefault(name, []).append(f"{', '.join(shares)} of requests, {verdict}")
            if shutil.which("sslsniff-bpfcc"):
                with sslsniff(folder, worker) as out:
                    rate, requests = wrk(folder, port, seconds)
                    time.sleep(1)
                seen = len(set(re.findall(rb"GET /1k\?id=(\d+)&e", out.read_bytes())))
                results.setdefault("sslsniff (patched), nginx", []).append(rate / bare)
                stored.setdefault("sslsniff (patched), nginx", []).append(f"{100 * seen / requests:.2f} % of requests")
    table = Table(f"nginx, one worker, 1 KB keep-alive GETs (wrk, 8 connections, {seconds} s each)",
                  "variant", "requests/s against bare", "stored")  # fmt: skip
    rates = results.pop("bare requests/s")
    for name, ratios in results.items():
        cell = f"{statistics.median(rates):,.0f} requests/s" if name == "bare" else spread(ratios)
        table.row(name, cell, "; ".join(dict.fromkeys(stored.get(name, []))))
    table.show()


def measure_bulk(folder: Path, rounds: int) -> None:
    results: dict[str, list[float]] = {}
    verdicts: list[str] = []
    with nginx(folder) as (port, _):
        command = ["curl", "-sk", "-o", "/dev/null", "-w", "%{speed_download}", f"https://127.0.0.1:{port}/1g"]
        subprocess.run(command, check=True, capture_output=True)
        for _ in range(rounds):
            bare = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            with empty_probes():
                empty = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            for old in folder.glob("bench.*"):
                old.unlink()
            done = subprocess.run([TLSCAP, "record", "-o", str(folder / "bench"), *RING, "--", *command],
                                  check=True, capture_output=True, text=True)  # fmt: skip
            match = re.search(r"INCOMPLETE: ([\d,]+)", done.stderr)
            verdicts.append(f"{match[1]} bytes lost" if match else "all bytes")
            results.setdefault("bare", []).append(bare / 1e6)
            results.setdefault("empty", []).append(empty / bare)
            results.setdefault("tlscap", []).append(float(done.stdout) / bare)
    table = Table("1 GB from nginx to curl", "variant", "speed against bare", "stored")
    table.row("bare", f"{statistics.median(results['bare']):,.0f} MB/s", "")
    table.row("empty probe pairs, same sites", spread(results["empty"]), "")
    table.row("tlscap, curl recorded", spread(results["tlscap"]), "; ".join(dict.fromkeys(verdicts)))
    table.show()


def measure_read(folder: Path, exchanges: int) -> None:
    """Reading a large capture, beside tshark on the same file.  Once: tshark takes minutes."""
    maker = [
        sys.executable,
        str(ROOT / "tools" / "make_large.py"),
        str(folder / "large"),
        "--exchanges",
        str(exchanges),
    ]
    subprocess.run(maker, check=True, capture_output=True)
    pcapng, sidecar = folder / "large.pcapng", folder / "large.tlscap.zst"
    commands = {
        "tlscap inspect --json, pcapng": [TLSCAP, "inspect", "--json", str(pcapng)],
        "tlscap inspect --json, sidecar": [TLSCAP, "inspect", "--json", str(sidecar)],
        "tlscap inspect --stats, pcapng": [TLSCAP, "inspect", "--stats", str(pcapng)],
        "tlscap inspect 'status:5xx', pcapng": [TLSCAP, "inspect", str(pcapng), "status:5xx"],
        "tshark -T json -Y http, pcapng": ["tshark", "-r", str(pcapng), "-T", "json", "-Y", "http"],
    }
    taken: dict[str, tuple[float, int]] = {}
    for name, command in commands.items():
        with open(os.devnull, "wb") as nothing:
            begun = time.monotonic()
            process = subprocess.Popen(command, stdout=nothing, stderr=nothing)
            _, status, used = os.wait4(process.pid, 0)
            taken[name] = time.monotonic() - begun, used.ru_maxrss
        if status:
            raise SystemExit(f"{name}: status {status}")
    slowest = max(seconds for seconds, _ in taken.values())
    table = Table(f"Reading {exchanges:,} exchanges, {pcapng.stat().st_size / 1e9:.2f} GB of pcapng",
                  "command", "seconds", "times as fast as the slowest", "peak memory")  # fmt: skip
    for name, (seconds, memory) in taken.items():
        table.row(name, f"{seconds:.1f}", f"{slowest / seconds:.1f}", f"{memory / 1000:,.0f} MB")
    table.show()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=4, help="of each run of wrk")
    parser.add_argument("--only", default="start,calls,nginx,bulk,read")
    parser.add_argument(
        "--exchanges", type=int, default=110_000, help="in the capture that is read; 110,000 make 1.2 GB"
    )
    parser.add_argument("--folder", help="where captures are written (default: a temporary folder)")
    options = parser.parse_args()
    print(f"    {' '.join(['tools/bench.py', *sys.argv[1:]])}")
    system = os.uname()
    print(
        f"\n{system.sysname} {system.release}, {system.machine}, {os.cpu_count()} CPUs, Python {sys.version.split()[0]}"
    )
    for name in options.only.split(","):
        with tempfile.TemporaryDirectory(
            prefix="tlscap-bench-", dir=options.folder and os.path.abspath(options.folder)
        ) as path:
            folder = Path(path)
            match name:
                case "start":
                    measure_start(folder, options.rounds)
                case "calls":
                    measure_calls(folder, options.rounds)
                case "nginx":
                    measure_nginx(folder, options.rounds, options.seconds)
                case "bulk":
                    measure_bulk(folder, options.rounds)
                case "read":
                    measure_read(folder, options.exchanges)
                case _:
                    parser.error(f"no measurement named {name!r}")


if __name__ == "__main__":
    main()
