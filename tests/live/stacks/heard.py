"""What a recording says, for tests that compare it with what programs say of themselves."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

from tlscap.capture import open_capture
from tlscap.model import Data, Direction, Endpoint, Flow, FlowOpened, Gap

Digest = tuple[int, str]


@dataclasses.dataclass
class Conversation:
    """A flow and its two streams; one that has a hole is no evidence of anything."""

    flow: Flow
    inbound: bytearray = dataclasses.field(default_factory=bytearray)
    outbound: bytearray = dataclasses.field(default_factory=bytearray)

    def add(self, item: Data) -> None:
        stream = self.outbound if item.direction is Direction.OUTBOUND else self.inbound
        assert item.offset == len(stream), f"{self.flow}: at {item.offset}, but {len(stream)} bytes are known"
        stream += item.data

    @property
    def streams(self) -> tuple[bytes, bytes]:
        """What was sent and received."""
        return bytes(self.outbound), bytes(self.inbound)

    @property
    def digests(self) -> tuple[Digest, Digest]:
        """Sizes and SHA-256 of what was sent and received."""
        return digest(self.outbound), digest(self.inbound)

    @property
    def place(self) -> tuple[str, Endpoint | None, Endpoint | None]:
        return self.flow.tuple_source.value, self.flow.local, self.flow.remote


def digest(content: bytes | bytearray) -> Digest:
    return len(content), hashlib.sha256(content).hexdigest()


def conversations(path: Path) -> list[Conversation]:
    """All that have data, in the order in which they were opened."""
    found: dict[int, Conversation] = {}
    with open_capture(str(path)) as capture:
        for item in capture.items():
            assert not isinstance(item, Gap), f"{item.flow.process.label}: {item.length} bytes are missing"
            if isinstance(item, FlowOpened):
                found[item.flow.id] = Conversation(item.flow)
            elif isinstance(item, Data):
                found[item.flow.id].add(item)
    return [one for one in found.values() if one.outbound or one.inbound]


def loopback(port: int) -> Endpoint:
    return Endpoint("127.0.0.1", port)


def compare(found: list[Conversation], accounts: list[dict[str, Any]], tuple_source: str = "ciphertext") -> list[str]:
    """What is wrong with conversations, by the accounts of those who had them: one line for each kind and how many.

    They are recognized by their bytes alone, so that what is said of their addresses can be judged.
    """
    wrong: dict[str, list[str]] = {}
    expected = {(tuple(each["sent"]), tuple(each["received"])): each for each in accounts}
    assert len(expected) == len(accounts)
    for one in found:
        account = expected.pop(one.digests, None)
        if account is None:
            kind = "that nobody had"
        elif one.flow.local is None:
            kind = "with a placeholder for an address"
        elif (one.flow.local, one.flow.remote) != (loopback(account["local"]), loopback(account["remote"])):
            kind = "WITH ANOTHER'S ADDRESS"
        elif one.flow.tuple_source.value != tuple_source:
            kind = f"with addresses by {one.flow.tuple_source.value}"
        else:
            continue
        detail = f"flow {one.flow.id}: {one.flow.local} to {one.flow.remote}, {one.flow.role.name}, {account or ''}"
        wrong.setdefault(kind, []).append(detail)
    if expected:
        wrong["missing"] = [str(each) for each in expected.values()]
    return [f"{len(each)} of {len(accounts)} {kind}, such as {each[0]}" for kind, each in wrong.items()]
