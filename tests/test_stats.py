"""Statistics: what they count, how exact percentiles are, and that memory stays bounded."""

from __future__ import annotations

import json
import math
import tracemalloc
from datetime import UTC
from typing import Any

import pytest
from helpers import GET, START_NS, Wire, make_flow
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tlscap.export.stats import KEY_LIMIT, Histogram, Statistics
from tlscap.http.exchanges import Exchange, ExchangeBuilder
from tlscap.model import Direction, Item, Process

MS = 1_000_000


def build(items: list[Item]) -> list[Exchange]:
    builder = ExchangeBuilder()
    exchanges = [exchange for item in items for exchange in builder.feed(item)]
    return exchanges + builder.finish(START_NS)


def exchange(
    status: int = 200, *, url: str = "https://a/", wait_ns: int = MS, duration_ns: int = 2 * MS, flow: int = 1
) -> Exchange:
    """Return an exchange that took so long."""
    wire = Wire(make_flow(flow))
    head = b"HTTP/1.1 %d x\r\nContent-Type: Text/HTML; charset=x\r\nContent-Length: 5\r\n\r\nhello" % status
    (one,) = build([wire.out(GET), wire.into(head)])
    assert one.request
    assert one.response
    one.url = url
    one.request.first_ns = one.request.last_ns = one.started_ns = START_NS
    one.response.first_ns = START_NS + wait_ns
    one.response.last_ns = START_NS + duration_ns
    return one


def statistics(*exchanges: Exchange, **options: int) -> Statistics:
    result = Statistics(**options)
    for one in exchanges:
        result.add(one)
    return result


def by(result: Statistics, name: str) -> dict[str, dict[str, Any]]:
    """Return the groups of one grouping by their keys."""
    return {group["key"]: group for group in result.to_dict()["by"][name]["groups"]}


# --- Histograms ---


def exact(numbers: list[int], percent: int) -> int:
    """Return the nearest-rank percentile: the judge."""
    return sorted(numbers)[math.ceil(len(numbers) * percent / 100) - 1]


@settings(deadline=None)
@given(
    numbers=st.lists(
        st.one_of(st.integers(-5, 30), st.integers(0, 10**13), st.integers(1, 62).map(lambda bits: 1 << bits)),
        min_size=1,
    ),
    percent=st.integers(1, 100),
)
@example(numbers=[1], percent=50)
@example(numbers=[0, 0, 5], percent=67)
def test_percentiles(numbers: list[int], percent: int) -> None:
    """Every percentile is within 2 % of the exact one, the largest number is exact; negative ones are 0."""
    histogram = Histogram()
    for number in numbers:
        histogram.add(number)
    clipped = [max(number, 0) for number in numbers]
    assert histogram.percentile(percent) == pytest.approx(exact(clipped, percent), rel=0.02, abs=0)
    assert histogram.max == max(clipped)
    assert histogram.count == len(numbers)


def test_every_bucket() -> None:
    """The error stays below 2 % at the edges of all buckets."""
    number = 1
    while number < 1 << 63:
        for near in (number - 1, number, number + 1):
            histogram = Histogram()
            histogram.add(near)
            histogram.add(near + near // 20)  # so that the largest does not give the answer away
            assert histogram.percentile(50) == pytest.approx(near, rel=0.02, abs=0)
        number = math.ceil(number * 1.04)


def test_histogram_is_bounded() -> None:
    """Absurd numbers cost a few kilobytes."""
    histogram = Histogram()
    tracemalloc.start()
    try:
        for number in (1, 10**60, -(10**60), 1 << 63, 7):
            histogram.add(number)
        assert tracemalloc.get_traced_memory()[0] < 12_000
    finally:
        tracemalloc.stop()
    assert histogram.max == 1 << 63
    assert histogram.percentile(40) == pytest.approx(1, rel=0.02)
    assert Histogram().percentile(50) == 0


# --- What is counted ---


def test_nothing() -> None:
    """Without exchanges there is nothing to say, and every key is there."""
    result = Statistics()
    assert list(result.lines()) == ["exchanges    0"]
    told = result.to_dict()
    assert (told["exchanges"], told["first"], told["last"], told["rate"], told["duration"]) == (
        0,
        None,
        None,
        None,
        None,
    )
    assert told["by"]["host"] == {"groups": [], "others": None}
    assert told.keys() == statistics(exchange()).to_dict().keys()


def test_totals() -> None:
    """Counts, errors by kind, bytes each way, what is missing, time and rate."""
    wire = Wire(make_flow(2), START_NS + 2_000 * MS)
    post = b"POST / HTTP/1.1\r\nHost: B:1\r\nContent-Length: 7\r\n\r\nmessage"
    cut = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhello"
    unanswered = Wire(make_flow(3), START_NS + 3_998 * MS)
    result = statistics(
        exchange(404),
        exchange(500),
        exchange(503),
        *build([wire.out(post), wire.into(cut), wire.gap(Direction.INBOUND, 30), wire.closed()]),
        *build([unanswered.out(GET)]),
        *build([Wire(make_flow(4), START_NS + 3_999 * MS).into(b"HTTP/1.1 204 x\r\n\r\n")]),
    )
    told = json.loads(json.dumps(result.to_dict()))
    del told["by"]
    latency = dict.fromkeys(("p50", "p90", "p99"), pytest.approx(0.002, rel=0.02)) | {"max": 0.002}
    assert told == {
        "exchanges": 6,
        "complete": 3,
        "errors": {"4xx": 1, "5xx": 2, "no_answer": 1},
        "connections": 4,
        "first": "2026-11-20T18:00:00.123456789Z",
        "last": "2026-11-20T18:00:04.123456789Z",
        "seconds": 4.0,
        "rate": 1.5,
        "sent": 7,
        "received": 20,
        "missing": 30,
        "duration": latency,
        "wait": dict.fromkeys(("p50", "p90", "p99"), pytest.approx(0.001, rel=0.02)) | {"max": 0.001},
    }


def test_groups() -> None:
    """Exchanges are counted by six properties, the most frequent first."""
    nobody = Wire(make_flow(2, process=Process(1), sni=""))
    simple = Wire(make_flow(3))
    result = statistics(
        exchange(404, url="https://User@A:8443/x?y", duration_ns=5 * MS),
        exchange(url="https://a:8443/", duration_ns=7 * MS),
        *build([nobody.into(b"HTTP/1.0 503 x\r\n\r\n"), nobody.closed()]),
        *build([simple.out(b"GET /\r\n"), simple.into(b"hi"), simple.closed()]),
        *build([Wire(make_flow(4)).out(b"PUT / HTTP/1.1\r\nHost: c\r\n\r\n")]),
    )
    counts = {
        name: [(group["key"], group["count"], group["errors"]) for group in grouping["groups"]]
        for name, grouping in result.to_dict()["by"].items()
    }
    assert counts == {
        "host": [("a:8443", 2, 1), ("(unknown)", 1, 1), ("c", 1, 1), ("example.org", 1, 0)],
        "status": [("(none)", 1, 1), ("0", 1, 0), ("200", 1, 0), ("404", 1, 1), ("503", 1, 1)],
        "method": [("GET", 3, 1), ("(unknown)", 1, 1), ("PUT", 1, 1)],
        "type": [("(none)", 3, 2), ("text/html", 2, 1)],
        "process": [("curl", 4, 2), ("(unknown)", 1, 1)],
        "protocol": [("http/1.1", 3, 2), ("http/0.9", 1, 0), ("http/1.0", 1, 1)],
    }
    group = by(result, "host")["a:8443"]
    assert (group["sent"], group["received"], group["missing"]) == (0, 10, 0)
    assert group["duration"]["p50"] == pytest.approx(0.005, rel=0.02)
    assert group["duration"]["max"] == 0.007
    assert by(result, "host")["c"]["duration"] is None


def test_negative_wait() -> None:
    """An answer that came before the request's end did not wait."""
    result = statistics(exchange(wait_ns=-MS), exchange(wait_ns=-MS), exchange(wait_ns=MS))
    assert result.to_dict()["wait"]["p50"] == 0
    assert result.to_dict()["wait"]["max"] == 0.001


def test_no_time_at_all() -> None:
    """When no time passed there is no rate."""
    result = statistics(exchange(wait_ns=0, duration_ns=0))
    assert result.rate is None
    assert not any(line.startswith("rate") for line in result.lines())


def test_connections() -> None:
    """Each connection counts once, as long as it is remembered: the latest used are."""
    result = statistics(*(exchange(flow=flow) for flow in (1, 2, 1, 3, 1, 4, 1)), connection_limit=2)
    assert result.connections == 4
    result.add(exchange(flow=2))
    assert result.connections == 5


# --- Bounds ---


def test_too_many_keys() -> None:
    """Keys beyond the limit are counted together, and that is said."""
    result = statistics(*(exchange(404, url=f"https://h{number % 5}/") for number in range(12)), key_limit=3)
    hosts = result.to_dict()["by"]["host"]
    assert [(group["key"], group["count"]) for group in hosts["groups"]] == [("h0", 3), ("h1", 3), ("h2", 2)]
    assert (hosts["others"]["count"], hosts["others"]["errors"], "key" in hosts["others"]) == (4, 4, False)
    lines = list(result.lines())
    assert [line.split()[:3] for line in lines if line.startswith("(others) ")] == [["(others)", "4", "4"]]
    assert "(others): all that came after the first 3" in lines
    assert sum(line.startswith("(others)") for line in lines) == 2


def test_memory() -> None:
    """Many exchanges with keys of their own, long ones too, take no more memory than the limits allow."""
    one = exchange()
    tracemalloc.start()
    try:
        result = Statistics(key_limit=100, connection_limit=100)
        peaks = []
        for part in range(2):
            for number in range(2000):
                one.url = f"https://{part}-{number}{'x' * 10_000}/"
                one.flow.id += 1
                result.add(one)
            peaks.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    assert peaks[1] - peaks[0] < 20_000
    assert peaks[1] < 300_000
    assert result.total.count == result.connections == 4000
    assert KEY_LIMIT == 10_000


def test_sums() -> None:
    """Each grouping holds every exchange exactly once."""
    exchanges = [exchange(200 + number % 7 * 50, url=f"https://h{number % 9}/") for number in range(100)]
    told = statistics(*exchanges, key_limit=4).to_dict()
    for grouping in told["by"].values():
        groups = grouping["groups"] + [grouping["others"]] * bool(grouping["others"])
        assert sum(group["count"] for group in groups) == told["exchanges"] == 100
        assert sum(group["errors"] for group in groups) == sum(told["errors"].values())
        assert sum(group["received"] for group in groups) == told["received"] == 500


# --- For people ---


def test_lines() -> None:
    """A summary, and a table for each grouping."""
    lines = list(statistics(exchange(404), exchange(flow=2)).lines(zone=UTC))
    assert lines[:11] == [
        "exchanges    2",
        "errors       1: 1 4xx, 0 5xx, 0 without an answer",
        "connections  2",
        "time         18:00:00.123 to 18:00:00.125, 2.0ms",
        "rate         1,000/s",
        "bodies       0 sent, 10 received",
        "duration     p50 2.0ms  p90 2.0ms  p99 2.0ms  max 2.0ms",
        "wait         p50 1.0ms  p90 1.0ms  p99 1.0ms  max 1.0ms",
        "",
        "HOST  COUNT  ERRORS  SENT  RECEIVED    P50    P90    P99    MAX  WAIT P50  WAIT P99",
        "a         2       1     0        10  2.0ms  2.0ms  2.0ms  2.0ms     1.0ms     1.0ms",
    ]
    titles = ["HOST", "STATUS", "METHOD", "TYPE", "PROCESS", "PROTOCOL"]
    assert [line.split()[0] for line in lines if "COUNT" in line] == titles


def test_lines_say_what_is_missing() -> None:
    """Incomplete exchanges and missing bytes are said in the summary."""
    wire = Wire()
    cut = b"HTTP/1.1 200 OK\r\nContent-Length: 3000\r\n\r\n"
    lines = list(statistics(*build([wire.out(GET), wire.into(cut), wire.gap(Direction.INBOUND, 3000)])).lines())
    assert "exchanges    1 (1 not complete)" in lines
    assert "bodies       0 sent, 0 received, 2.9K missing" in lines
    unanswered = list(statistics(*build([Wire().out(GET)])).lines())
    assert not any(line.startswith(("duration", "wait")) for line in unanswered)
    assert unanswered[-1].split() == ["http/1.1", "1", "1", "0", "0", *"------"]


def test_rates() -> None:
    """Rates have three digits or more."""
    for duration_ns, shown in ((3 * MS, "333/s"), (7_000 * MS, "0.143/s"), (300, "3,333,333/s"), (40 * MS, "25/s")):
        lines = list(statistics(exchange(duration_ns=duration_ns, wait_ns=0)).lines())
        assert f"rate         {shown}" in lines


def test_top() -> None:
    """Only the largest groups are shown; how many more there are is said."""
    exchanges = [exchange(url=f"https://h{number}/") for number in range(30)] + [exchange(url="https://h7/")]
    lines = list(statistics(*exchanges).lines(top=3))
    start = lines.index(next(line for line in lines if line.startswith("HOST")))
    assert [line.split()[0] for line in lines[start + 1 : start + 4]] == ["h7", "h0", "h1"]
    assert lines[start + 4] == "... and 27 more"


@pytest.mark.parametrize("width", [50, 60, 80, 90, 120, 200])
def test_width(width: int) -> None:
    """No line is longer than the terminal is wide; keys give way, then columns; count and errors stay."""
    long = exchange(url=f"https://{'long.' * 12}example.org/")
    lines = list(statistics(long, exchange(duration_ns=10**13)).lines(width=width, zone=UTC))
    tables = lines[lines.index("") :]
    assert max(map(len, tables)) <= width
    header = next(line for line in tables if line.startswith("HOST"))
    assert {"COUNT", "ERRORS", "P50", "MAX"} <= set(header.split())
    assert ("WAIT P99" in header) is (width >= 120)
    assert ("…" in " ".join(tables)) is (width < 200)


def test_hostile_keys() -> None:
    """Nothing from the network reaches the terminal raw; what is long is cut."""
    lines = list(statistics(exchange(url="https://\x1b[31m\x9b/"), exchange(url=f"https://{'y' * 9999}/")).lines())
    assert all(line.isprintable() for line in lines)
    assert r"\x1b[31m\x9b" in " ".join(lines)
    assert max(map(len, lines)) < 300
