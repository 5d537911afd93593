"""A program as people write them: it knows nothing of tlscap.  Each client library is used as its manual shows it."""

from __future__ import annotations

import json
from typing import Any

import aiohttp
import httpx
import requests
import urllib3


class Shop:
    """Orders tea over HTTPS."""

    def __init__(self, url: str) -> None:
        self.url = url

    def prices(self) -> dict[str, int]:
        return dict(requests.get(f"{self.url}/prices", params={"currency": "EUR"}, timeout=10).json())

    def login(self, user: str, password: str) -> str:
        answer = requests.post(f"{self.url}/login", json={"user": user, "password": password}, timeout=10)
        answer.raise_for_status()
        return str(answer.json()["token"])

    def order(self, token: str, item: str, count: int) -> dict[str, Any]:
        answer = httpx.post(
            f"{self.url}/orders", json={"item": item, "count": count}, headers={"Authorization": f"Bearer {token}"}
        )
        answer.raise_for_status()
        return dict(answer.json())

    def stock(self, item: str) -> int:
        answer = urllib3.PoolManager().request("GET", f"{self.url}/stock/{item}")
        return int(json.loads(answer.data)["count"])

    async def news(self) -> list[str]:
        async with aiohttp.ClientSession() as session, session.get(f"{self.url}/news") as answer:
            return list(await answer.json())

    async def news_too(self) -> list[str]:
        async with httpx.AsyncClient() as client:
            return list((await client.get(f"{self.url}/news")).json())
