"""HTTP clients of Python: NAME URL CA ASKS.

ASKS is a JSON list of [method, path, body].  Prints a line of JSON for each answer: status, reason, fields as they came, size and SHA-256 of
the body.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import ssl
import sys
from collections.abc import Iterable


def say(status: int, reason: str, headers: Iterable[tuple[bytes, bytes]], content: bytes) -> None:
    fields = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in headers]
    print(json.dumps([status, reason, fields, len(content), hashlib.sha256(content).hexdigest()]), flush=True)


def by_requests(url: str, ca: str, asks: list[list[str]]) -> None:
    import requests

    with requests.Session() as session:
        for method, path, body in asks:
            answer = session.request(method, url + path, data=body.encode(), verify=ca, allow_redirects=False)
            fields = ((name.encode(), value.encode()) for name, value in answer.raw.headers.items())
            say(answer.status_code, answer.reason, fields, answer.content)


def by_httpx(url: str, ca: str, asks: list[list[str]], *, http2: bool = False) -> None:
    import httpx

    with httpx.Client(verify=ssl.create_default_context(cafile=ca), http2=http2, trust_env=False) as client:
        for method, path, body in asks:
            answer = client.request(method, url + path, content=body.encode() or None)
            assert answer.http_version == ("HTTP/2" if http2 else "HTTP/1.1")
            say(answer.status_code, answer.reason_phrase, answer.headers.raw, answer.content)


def by_aiohttp(url: str, ca: str, asks: list[list[str]]) -> None:
    import aiohttp

    async def run() -> None:
        connector = aiohttp.TCPConnector(ssl=ssl.create_default_context(cafile=ca))
        async with aiohttp.ClientSession(connector=connector) as session:
            for method, path, body in asks:
                asked = session.request(method, url + path, data=body.encode() or None, allow_redirects=False)
                async with asked as answer:
                    say(answer.status, answer.reason or "", answer.raw_headers, await answer.read())

    asyncio.run(run())


def main() -> None:
    name, url, ca, asks = sys.argv[1:]
    clients = {
        "requests": by_requests,
        "httpx": by_httpx,
        "httpx2": lambda *arguments: by_httpx(*arguments, http2=True),
        "aiohttp": by_aiohttp,
    }
    clients[name](url, ca, json.loads(asks))


main()
