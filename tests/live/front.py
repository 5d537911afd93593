"""Servers that answer in every way: nginx with TLS in front of those of `peers.py`."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from live.servers import (
    CLEAN_ENVIRONMENT,
    Certificates,
    accepts,
    free_port,
    stop,
    wait_until,
)

PEERS = Path(__file__).parent / "peers.py"
BROTLI = Path("/usr/lib/nginx/modules/ngx_http_brotli_filter_module.so")


class Peer:
    """A server from `peers.py`."""

    def __init__(self, folder: Path, name: str, *options: str | Path | int) -> None:
        self.keys = folder / f"{name}.keys"
        self._log = folder / f"{name}.log"
        self._errors = folder / f"{name}.stderr"
        with self._log.open("wb") as log, self._errors.open("wb") as errors:
            self._process = subprocess.Popen(
                [sys.executable, str(PEERS), name, *map(str, options)],
                env={**CLEAN_ENVIRONMENT, "SSLKEYLOGFILE": str(self.keys)}, stdout=log, stderr=errors,
            )  # fmt: skip
        self.pid = self._process.pid
        self._seen = 1
        try:
            wait_until(lambda: b"\n" in self._log.read_bytes() or self._process.poll() is not None, f"{name} listens")
            assert self._process.poll() is None, self._errors.read_text()
        except AssertionError:
            self.close()
            raise
        self.port: int = json.loads(self._lines[0])["port"]

    def forget(self) -> None:
        """What it said so far."""
        self._seen = len(self._lines)

    @property
    def _lines(self) -> list[str]:
        return self._log.read_text().splitlines()

    def said(self, count: int) -> list[dict[str, Any]]:
        """What it said since then: so many lines."""

        def lines() -> list[str]:
            return self._lines[self._seen :]

        wait_until(lambda: len(lines()) >= count or self._process.poll() is not None, f"{count} lines: {self._log}")
        said = [json.loads(line) for line in lines()]
        assert len(said) == count, self._errors.read_text()
        return said

    def close(self) -> None:
        stop(self._process)


@contextlib.contextmanager
def peer(folder: Path, name: str, *options: str | Path | int) -> Iterator[Peer]:
    started = Peer(folder, name, *options)
    try:
        yield started
    finally:
        started.close()


FRONT_CONFIG = """
{brotli}
daemon off;
user root;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
worker_rlimit_nofile 8192;
events {{ worker_connections 4096; }}
http {{
    log_format each '{{"request":"$request","status":$status,"body":$body_bytes_sent}}';
    access_log {folder}/access.log each;
    client_max_body_size 0;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    keepalive_requests 1000000;
    ssl_certificate {certificates.leaf};
    ssl_certificate_key {certificates.key};
    gzip on;
    gzip_types text/plain;
    {brotli_on}
    proxy_http_version 1.1;
    proxy_set_header Host $http_host;
    server {{
        listen 127.0.0.1:{port} ssl;
        listen 127.0.0.1:{port_h2} ssl http2;
        location / {{ proxy_pass http://127.0.0.1:{backend.port}; proxy_set_header Connection ""; }}
        location /take/ {{ proxy_pass http://127.0.0.1:{port_plain}; }}
        location /say/ {{ default_type text/plain; return 200 "you asked for $request_uri\\n"; }}
        location /tests.Echo/ {{ grpc_pass grpc://127.0.0.1:{grpc.port}; }}
        location /chat {{
            proxy_pass http://127.0.0.1:{chat.port};
            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Connection Upgrade;
        }}
    }}
    server {{
        listen 127.0.0.1:{port_plain};
        access_log off;
        default_type text/plain;
        return 200 "taken by $request_uri\\n";  # what is behind a proxy answers when it has all of the request
    }}
}}
"""


class Front:
    """nginx, which speaks TLS for plain servers.  It writes its keys to a file where it is given the library for that."""

    def __init__(
        self,
        folder: Path,
        certificates: Certificates,
        backend: Peer,
        grpc: Peer,
        chat: Peer,
        environment: Mapping[str, str] = CLEAN_ENVIRONMENT,
    ) -> None:
        self.folder = folder
        self.port, self.port_h2, port_plain = free_port(), free_port(), free_port()
        config = folder / "nginx.conf"
        config.write_text(
            FRONT_CONFIG.format(
                folder=folder,
                certificates=certificates,
                port=self.port,
                port_h2=self.port_h2,
                port_plain=port_plain,
                backend=backend,
                grpc=grpc,
                chat=chat,
                brotli=f"load_module {BROTLI};" if BROTLI.exists() else "",
                brotli_on="brotli on; brotli_types text/plain;" if BROTLI.exists() else "",
            )
        )
        log = folder / "error.log"
        self._process = subprocess.Popen(
            ["nginx", "-e", str(log), "-c", str(config)], env=dict(environment), stderr=subprocess.DEVNULL
        )
        try:
            wait_until(lambda: self._process.poll() is not None or accepts("127.0.0.1", self.port), "nginx listens")
            assert self._process.poll() is None, log.read_text()
        except AssertionError:
            self.close()
            raise

    @property
    def pid(self) -> int:
        """Of the worker."""
        master = self._process.pid
        (worker,) = Path(f"/proc/{master}/task/{master}/children").read_text().split()
        return int(worker)

    def log(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / "access.log").read_text().splitlines()]

    def close(self) -> None:
        stop(self._process)
