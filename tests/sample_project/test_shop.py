"""The shop's tests: what they say of the shop is true of the real server, whether it is there or not."""

from __future__ import annotations

import os

import pytest
from shop import Shop

URL = os.environ["SHOP_URL"]
HOST = URL.removeprefix("https://")


@pytest.fixture
def shop() -> Shop:
    return Shop(URL)


@pytest.mark.tlscap("fixtures/prices.tlscap.zst", hosts=HOST)
def test_prices(shop: Shop) -> None:
    assert shop.prices()["tea"] == 3
    assert shop.stock("tea") == 12


@pytest.mark.tlscap("fixtures/order.tlscap.zst", hosts=HOST)
def test_order(shop: Shop) -> None:
    token = shop.login("ada", os.environ.get("SHOP_PASSWORD", "teapot-4711"))
    assert shop.order(token, "tea", int(os.environ.get("SHOP_COUNT", "2")))["total"] == 6


@pytest.mark.asyncio
@pytest.mark.tlscap("fixtures/news.tlscap.zst", hosts=HOST)
async def test_news(shop: Shop) -> None:
    assert await shop.news() == ["tea is back"]
    assert await shop.news_too() == ["tea is back"]
