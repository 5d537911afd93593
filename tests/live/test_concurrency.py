"""Many connections at once, and more than the recorder can take: nothing is mixed up, and nothing is lost in silence."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

from live.servers import (
    CLEAN_ENVIRONMENT,
    Certificates,
    Nginx,
    Recorder,
    Recording,
    all_bodies,
    inspect_json,
    tshark,
    wait_until,
)
from tlscap.capture import open_capture
from tlscap.model import Data, Direction, Flow, Gap, GapReason

PROCESSES, THREADS, REQUESTS = 4, 16, 8

CLIENTS = f"""
import http.client, json, os, ssl, sys, threading
cafile, port, result = sys.argv[1], int(sys.argv[2]), sys.argv[3]
context = ssl.create_default_context(cafile=cafile)
sys.stdin.readline()  # recording has begun

def talk(process, thread, barrier, done):
    connection = http.client.HTTPSConnection("localhost", port, context=context)
    connection.connect()
    local = connection.sock.getsockname()[1]
    barrier.wait()  # now all of this process are connected
    for number in range({REQUESTS}):
        name = f"{{process}}-{{thread}}-{{number}}"
        if number % 4 == 3:
            target, sent = f"/upload/c{{name}}", f"content {{name}} ".encode() * (100 * thread)
            connection.request("PUT", target, body=sent)
        else:
            target, sent = f"/say/{{name}}?number={{number}}", b""
            connection.request("GET", target)
        response = connection.getresponse()
        received = response.read()
        done.append(dict(local=local, target=target, status=response.status, pid=os.getpid(),
                         sent=sent.decode(), received=received.decode()))
    connection.close()

pids = []
for process in range({PROCESSES}):
    pid = os.fork()
    if pid == 0:
        barrier, done = threading.Barrier({THREADS}), []
        threads = [threading.Thread(target=talk, args=(process, n, barrier, done)) for n in range({THREADS})]
        for thread in threads: thread.start()
        for thread in threads: thread.join()
        with open(result, "a") as file:
            file.write("".join(json.dumps(each) + chr(10) for each in done))
        os._exit(len(done) != {THREADS * REQUESTS})
    pids.append(pid)
sys.exit(any([os.waitpid(pid, 0)[1] for pid in pids]))
"""


def test_many_connections(nginx: Nginx, record: Recorder, tmp_path: Path) -> None:
    """64 connections at once from four processes; client and server sides agree with what both say themselves."""
    result = tmp_path / "clients"
    with subprocess.Popen(
        [sys.executable, "-c", CLIENTS, nginx.certificates.ca, str(nginx.port), result],
        stdin=subprocess.PIPE,
        env=CLEAN_ENVIRONMENT,
    ) as clients:
        with record.running("-p", clients.pid, "-p", nginx.workers[0], "--follow") as started:
            clients.communicate(b"go\n", timeout=60)
            assert clients.returncode == 0
            count = PROCESSES * THREADS * REQUESTS
            said = [json.loads(line) for line in result.read_text().splitlines()]
            assert len(said) == count
            targets = {each["target"] for each in said}
            assert len(targets) == count
            wait_until(lambda: len(log_of(nginx, targets)) == count, "nginx has logged all requests")
        recording = started.recording()
    assert recording.complete, recording.stderr
    log = log_of(nginx, targets)
    for path in (recording.sidecar, recording.pcapng):
        compare_with_both(path, nginx, said, log)


def log_of(nginx: Nginx, targets: set[str]) -> dict[str, dict[str, Any]]:
    lines = ((line["request"].split()[1], line) for line in nginx.log())
    return {target: line for target, line in lines if target in targets}


def compare_with_both(path: Path, nginx: Nginx, said: list[dict[str, Any]], log: dict[str, dict[str, Any]]) -> None:
    exchanges = inspect_json(path)
    bodies = all_bodies(path)
    ends: dict[str, dict[str, Any]] = {"client": {}, "server": {}}
    for exchange in exchanges:
        assert exchange["complete"], exchange["problems"]
        target = exchange["request"]["target"]
        assert target not in ends[exchange["flow"]["role"]], "recorded twice"
        ends[exchange["flow"]["role"]][target] = exchange
    assert len(exchanges) == 2 * len(said)
    for each in said:
        target, line = each["target"], log[each["target"]]
        assert line["remote"] == f"127.0.0.1:{each['local']}"
        for role in ("client", "server"):
            exchange = ends[role][target]
            assert exchange["flow"]["client"] == {"address": "127.0.0.1", "port": each["local"]}
            assert exchange["flow"]["server"] == {"address": "127.0.0.1", "port": nginx.port}
            assert exchange["flow"]["tuple_source"] == "syscall"
            assert exchange["status"] == each["status"] == line["status"]
            assert exchange["response"]["body_size"] == line["body"]
            assert bodies.get((exchange["id"], "request"), b"") == each["sent"].encode()
            assert bodies.get((exchange["id"], "response"), b"") == each["received"].encode()
        assert ends["client"][target]["process"]["pid"] == each["pid"]
        assert ends["server"][target]["process"]["pid"] == nginx.workers[0]
    # On every connection the requests are in the order in which the client made them.
    order: dict[int, list[str]] = defaultdict(list)
    for each in said:
        order[each["local"]].append(each["target"])
    assert len(order) == PROCESSES * THREADS
    for role in ends:
        seen: dict[int, list[str]] = defaultdict(list)
        for exchange in exchanges:
            if exchange["flow"]["role"] == role:
                seen[exchange["flow"]["client"]["port"]].append(exchange["request"]["target"])
        assert seen == order


# --- More than fits ---

STREAM = """
import os, random, socket, ssl, sys, threading
leaf, key, ca, total, streams = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5])
BLOCK = 1 << 20

def content(stream, start, size):  # every 8 bytes name the stream and their own offset
    first = start // 8
    words = b"".join((stream << 56 | number).to_bytes(8, "big") for number in range(first, (start + size) // 8 + 1))
    return words[start - 8 * first :][:size]

server = socket.create_server(("127.0.0.1", 0))
server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
server_context.load_cert_chain(leaf, key)
client_context = ssl.create_default_context(cafile=ca)

def receive():
    with server_context.wrap_socket(server.accept()[0], server_side=True) as sock:
        got, buffer = 0, bytearray(1 << 16)
        while size := sock.recv_into(buffer):
            got += size
        print("received", sock.getpeername()[1], got, flush=True)
        sock.unwrap()

def send(stream):
    sizes = random.Random(stream)
    block = content(stream, 0, BLOCK)
    with client_context.wrap_socket(socket.create_connection(server.getsockname()), server_hostname="localhost") as sock:
        sent = 0
        while sent < total:
            size = min(sizes.choice((1, 100, 5000, 16384, 40000)), total - sent)
            at = sent % BLOCK
            sock.sendall(block[at : at + size] if at + size <= BLOCK else (block[at:] + block)[:size])
            sent += size
        print("sent", sock.getsockname()[1], sent, stream, flush=True)
        sock.unwrap()

child = os.fork()
if child == 0:
    work = [threading.Thread(target=receive) for _ in range(streams)]
else:
    work = [threading.Thread(target=send, args=(number,)) for number in range(1, streams + 1)]
for thread in work: thread.start()
for thread in work: thread.join()
if child:
    os.waitpid(child, 0)
"""
BLOCK = 1 << 20
TOTAL, STREAMS = 60_000_001, 3


def expected(stream: int, offset: int, size: int) -> bytes:
    """What `STREAM` sends: a block that repeats, in which every 8 bytes name the stream and their offset."""
    at = offset % BLOCK
    block = BLOCKS[stream]
    return (block + block[:size])[at : at + size]


BLOCKS = {
    stream: b"".join((stream << 56 | number).to_bytes(8, "big") for number in range(BLOCK // 8))
    for stream in range(1, STREAMS + 1)
}


def test_losses_add_up(certificates: Certificates, record: Recorder, tmp_path: Path) -> None:
    """With a ring that is far too small, stored and lost bytes are what was sent, on every stream, to the byte.

    And every byte that is stored is the one that belongs at its offset.
    """
    recording = record(
        "--ring-size", "64Ki",
        command=[sys.executable, "-c", STREAM, certificates.leaf, certificates.key, certificates.ca, TOTAL, STREAMS],
    )  # fmt: skip
    lines = [line.split() for line in recording.stdout.decode().splitlines()]
    sent = {
        int(port): (int(count), int(stream)) for what, port, count, *rest in lines if what == "sent" for stream in rest
    }
    received = {int(port): int(count) for what, port, count, *_ in lines if what == "received"}
    assert len(sent) == len(received) == STREAMS
    assert all(count == TOTAL for count, _ in sent.values())
    counted, lost = add_up(recording, {port: stream for port, (_, stream) in sent.items()})
    for port in sent:
        assert counted[port, Direction.OUTBOUND] == sent[port][0]
        assert counted[port, Direction.INBOUND] == received[port]
    assert lost > 0, "nothing was lost: the test proves nothing"
    missing = re.search(r"INCOMPLETE: ([\d,]+) of ([\d,]+) bytes are not stored, in ([\d,]+) gaps", recording.stderr)
    assert missing, recording.stderr
    assert int(missing[1].replace(",", "")) == lost
    assert int(missing[2].replace(",", "")) == 2 * TOTAL * STREAMS
    comments = tshark(
        tmp_path, "-r", recording.pcapng, "-Y", 'frame.comment contains "LOST"', "-T", "fields", "-e", "frame.comment"
    )
    told = [int(number) for number in re.findall(r"LOST (\d+) bytes", comments)]
    assert sum(told) == lost
    assert len(told) == int(missing[3].replace(",", ""))


def add_up(recording: Recording, streams: dict[int, int]) -> tuple[dict[tuple[int, Direction], int], int]:
    """Bytes stored and lost, by the sender's port and the direction; compares what is stored."""
    counted: dict[tuple[int, Direction], int] = defaultdict(int)
    lost = 0

    def sender_port(flow: Flow) -> int:
        assert flow.local
        assert flow.remote
        return next(end.port for end in (flow.local, flow.remote) if end.port in streams)

    with open_capture(str(recording.sidecar)) as capture:
        for item in capture.items():
            if not isinstance(item, Data | Gap):
                continue
            key = sender_port(item.flow), item.direction
            assert item.offset == counted[key], "the stream has no seams"
            if isinstance(item, Gap):
                assert item.reason is GapReason.RING_FULL
                lost += item.length
                counted[key] += item.length
            else:
                assert item.data == expected(streams[key[0]], item.offset, len(item.data))
                counted[key] += len(item.data)
    return counted, lost


AFTERWARDS = """
import http.client, ssl, sys, time
connection = http.client.HTTPSConnection("localhost", int(sys.argv[2]), context=ssl.create_default_context(cafile=sys.argv[1]))
body = bytes(range(256)) * 4096
for size in (40, 20):
    connection.request("PUT", "/upload/flood", body=(body for _ in range(size)), headers={"Content-Length": str(size << 20)})
    connection.getresponse().read()
    for number in range(50):
        connection.request("GET", f"/say/after-{size}-{number}")
        connection.getresponse().read()
        time.sleep(0.005)  # so that the recorder catches up, sooner or later
"""


def test_messages_after_a_hole(nginx: Nginx, record: Recorder) -> None:
    """A body with holes does not spoil what follows on its connection."""
    recording = record(
        "--ring-size", "64Ki", command=[sys.executable, "-c", AFTERWARDS, nginx.certificates.ca, nginx.port]
    )
    assert "INCOMPLETE" in recording.stderr
    for path in (recording.sidecar, recording.pcapng):
        exchanges = inspect_json(path)
        assert len({exchange["flow"]["id"] for exchange in exchanges}) == 1
        puts = [exchange for exchange in exchanges if exchange["method"] == "PUT"]
        assert [put["request"]["body_size"] + put["request"]["gap_bytes"] for put in puts] == [40 << 20, 20 << 20]
        assert all(put["request"]["gap_bytes"] > 0 and not put["complete"] for put in puts)
        bodies = all_bodies_of_complete(path)
        for size in (40, 20):
            found = {e["url"].rpartition("/")[2]: e for e in exchanges if e["method"] == "GET" and e["complete"]}
            for number in range(30, 50):
                exchange = found[f"after-{size}-{number}"]
                assert exchange["status"] == 200
                assert bodies[exchange["id"]] == f"you asked for /say/after-{size}-{number}, number \n".encode()


def all_bodies_of_complete(path: Path) -> dict[int, bytes]:
    return {number: content for (number, side), content in all_bodies(path, holes=True).items() if side == "response"}
