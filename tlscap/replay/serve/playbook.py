"""Which recorded exchange answers a request, which are used up, and what to say when there is none.

Requests are found in constant time: exchanges are kept by the key of their head, those with the same head by host, then by body.
Keys of bodies are made when the first request with that head comes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

from tlscap.replay import nearest
from tlscap.replay.matching import HeadKey, Matcher, Request, grpc_messages, normal_path
from tlscap.replay.recording import RecordedExchange, RecordedRequest
from tlscap.replay.serve.answers import Answer
from tlscap.replay.serve.requests import Incoming, ReceivedRequest

_KNOWN_LIMIT: Final = 4096
_KNOWN_LENGTH: Final = 1024  # of a target: four thousand long ones would be much memory
_OPENING_LIMIT: Final = 1 << 20  # bytes of a question that may be read again with each piece of it
_PATHS_COMPARED: Final = 1000
_ENTRIES_COMPARED: Final = 200
_DEFAULT_PORTS: Final = {"https": b":443", "http": b":80", "wss": b":443", "ws": b":80"}


@dataclass(slots=True, eq=False)
class Entry:
    """One recorded exchange."""

    answer: Answer
    exchange: RecordedExchange
    position: int
    """Its place in the recording, from 0."""
    key: HeadKey
    authority: str
    any_port: str
    """Its host with whatever port: ``example.org:*``."""
    used: int = 0


@dataclass(frozen=True, slots=True)
class Miss:
    """A request that nothing matched."""

    request: str
    """In a few words."""
    reason: str
    nearest: int | None
    """The id of the exchange that is most like it."""
    nearest_request: str
    differences: tuple[str, ...]
    compared: str
    """The words of the matching language."""

    def lines(self) -> list[str]:
        """Return what a person is told."""
        found = [f"{self.reason}: {self.request}"]
        if self.nearest is not None:
            found.append(f"  nearest: exchange {self.nearest}, {self.nearest_request}")
            found += [f"    {line}" for line in self.differences]
        found.append(f"  compared: {self.compared}")
        return found

    def to_dict(self) -> dict[str, object]:
        """Return the same for programs."""
        near = None if self.nearest is None else {"exchange": self.nearest, "request": self.nearest_request}
        return {
            "error": self.reason,
            "request": self.request,
            "nearest": near,
            "differences": list(self.differences),
            "compared": self.compared,
        }


class _Choice:
    """The entries that a head and a host leave, by their bodies."""

    __slots__ = ("_by_body", "_kinds", "_queue_of", "entries", "has_early", "next", "trivial")

    def __init__(self, entries: list[Entry], matcher: Matcher) -> None:
        self.entries = entries
        self.next = 0
        """With the order "sequence": the place of the entry that is due."""
        self.has_early = any(entry.answer.early for entry in entries) and not entries[0].key.websocket
        """Whether some answers began before their questions ended."""
        self.trivial = not matcher.counts_body or entries[0].key.websocket
        """Whether bodies make no difference."""
        self._by_body: dict[bytes, _Queue] | None = None
        self._queue_of: dict[int, _Queue] = {}
        self._kinds: list[str] = []

    def queue(self, request: Request, matcher: Matcher) -> _Queue | None:
        """Return the entries whose bodies are this request's."""
        if self._by_body is None:
            self._by_body = {}
            for entry in self.entries:
                kind = matcher.kind_of(entry.exchange.request)
                if kind not in self._kinds:
                    self._kinds.append(kind)
                key = b"" if self.trivial else body_key(entry.exchange.request, kind, matcher)
                queue = self._queue_of[entry.position] = self._by_body.setdefault(key, _Queue())
                queue.entries.append(entry)
        if self.trivial or not request.body:
            return self._by_body.get(b"")
        for kind in self._kinds:
            if found := self._by_body.get(body_key(request, kind, matcher)):
                return found
        return None

    def is_in(self, entry: Entry, queue: _Queue) -> bool:
        """Tell whether an entry is one of these with these bodies."""
        return self._queue_of.get(entry.position) is queue


def body_key(request: Request, kind: str, matcher: Matcher) -> bytes:
    """Return the key of a body; empty for an empty one."""
    return matcher.content(request, kind).digest() if request.body else b""


@dataclass(slots=True)
class _Queue:
    """Entries with the same key, in recorded order."""

    entries: list[Entry] = field(default_factory=list)
    next: int = 0
    """Entries before it are used."""
    again: int = 0
    """Where a cycle is."""


class Playbook:
    """The entries, and how far the replay is."""

    def __init__(
        self, answers: Iterable[tuple[RecordedExchange, Answer]], matcher: Matcher, order: str, repeat: str
    ) -> None:
        self._matcher = matcher
        self._order = order
        self._repeat = repeat
        self.entries: list[Entry] = []
        self._heads: dict[HeadKey, list[Entry]] = {}
        self._choices: dict[tuple[HeadKey, str], _Choice] = {}
        self._known: dict[tuple[bytes, bytes, bytes, bool, bool], _Choice | None] = {}
        self._by_path: dict[bytes, list[Entry]] = {}
        self._next = 0
        for exchange, answer in answers:
            self._add(exchange, answer)
        self._authorities = {entry.authority for entry in self.entries}
        self._any_ports = {entry.any_port for entry in self.entries}

    def _add(self, exchange: RecordedExchange, answer: Answer) -> None:
        request = exchange.request
        authority = normal_authority(request)
        key = self._matcher.head_key(request, "")
        entry = Entry(answer, exchange, len(self.entries), key, authority, any_port(authority))
        self.entries.append(entry)
        self._heads.setdefault(key, []).append(entry)
        self._by_path.setdefault(_path(request), []).append(entry)

    @property
    def words(self) -> str:
        """What is compared, in the matching language."""
        return self._matcher.words

    @property
    def unused(self) -> list[RecordedExchange]:
        """The exchanges that nobody asked for, in recorded order."""
        return [entry.exchange for entry in self.entries if not entry.used and not entry.exchange.request.pushed]

    # --- Finding ---

    def early(self, request: ReceivedRequest, incoming: Incoming) -> Entry | None:
        """Take the answer to a request that is still coming, if all answers that it may get began before their question ended.

        ``None``: ask again when more of it came.
        """
        choice = self._choice(request)
        if choice is None or not choice.has_early:
            return None
        if self._order != "any":
            due = self._due() if self._order == "strict" else self._due_in(choice)
            return self._use(due, choice) if due and due.answer.early and due in choice.entries else None
        left = [entry for entry in choice.entries if not entry.used]
        if not left and self._repeat == "last":
            left = choice.entries[::-1]
        elif not left and self._repeat == "cycle":
            left = sorted(choice.entries, key=_times_used)
        if not all(entry.answer.early for entry in left):
            return None
        entry = _opened_so(request, incoming, left)
        return self._use(entry, choice) if entry else None

    def take(self, request: ReceivedRequest) -> Entry | None:
        """Take the answer to a request that is whole; ``None``: nothing matches."""
        choice = self._choice(request)
        if choice is None:
            return None
        queue = choice.queue(request, self._matcher)
        if queue is None:
            return None
        if self._order == "any":
            return self._take_any(queue, choice)
        due = self._due() if self._order == "strict" else self._due_in(choice)
        if due is None or not choice.is_in(due, queue):
            return None
        return self._use(due, choice)

    def agrees(self, request: ReceivedRequest, entry: Entry) -> bool:
        """Tell whether a body that came later is that of the entry that was taken early."""
        return not self._matcher.counts_body or not nearest.body_differences(
            request, entry.exchange.request, self._matcher
        )

    def _take_any(self, queue: _Queue, choice: _Choice) -> Entry | None:
        entries = queue.entries
        while queue.next < len(entries):
            entry = entries[queue.next]
            queue.next += 1
            if not entry.used:
                return self._use(entry, choice)
        if self._repeat == "last":
            return self._use(entries[-1], choice)
        if self._repeat == "cycle":
            entry = entries[queue.again]
            queue.again = (queue.again + 1) % len(entries)
            return self._use(entry, choice)
        return None

    def _due(self) -> Entry | None:
        """Return the next entry of the whole recording."""
        if self._next == len(self.entries) and self._repeat == "cycle":
            self._next = 0
        return self.entries[self._next] if self._next < len(self.entries) else None

    def _due_in(self, choice: _Choice) -> Entry | None:
        """Return the next entry of those with the same head."""
        entries = choice.entries
        if self._repeat == "cycle":
            return entries[choice.next % len(entries)]
        while choice.next < len(entries) and entries[choice.next].used:
            choice.next += 1
        if choice.next < len(entries):
            return entries[choice.next]
        return entries[-1] if self._repeat == "last" else None

    def _use(self, entry: Entry, choice: _Choice) -> Entry:
        entry.used += 1
        if self._order == "strict":
            self._next = entry.position + 1
        elif self._order == "sequence":
            choice.next += 1
        return entry

    def _choice(self, request: ReceivedRequest) -> _Choice | None:
        if self._matcher.fields or len(request.target) > _KNOWN_LENGTH:
            return self._find(request)
        short = (request.method, request.target, request.authority, request.proxied, request.websocket)
        try:
            return self._known[short]
        except KeyError:
            pass
        if len(self._known) >= _KNOWN_LIMIT:
            self._known.clear()
        choice = self._known[short] = self._find(request)
        return choice

    def _find(self, request: ReceivedRequest) -> _Choice | None:
        key = self._matcher.head_key(request, "")
        found = self._heads.get(key)
        if not found:
            return None
        host = self._host(request)
        choice = self._choices.get((key, host))
        if choice is None:
            entries = [entry for entry in found if host in ("", entry.authority, entry.any_port)]
            if not entries:
                return None
            choice = self._choices[key, host] = _Choice(entries, self._matcher)
        return choice

    def _host(self, request: ReceivedRequest) -> str:
        """Return what the host of a request counts as: a recorded authority, a recorded host with another port, or nothing."""
        counts = self._matcher.counts_host
        if counts is False:
            return ""
        authority = normal_authority(request)
        if counts or authority in self._authorities:
            return authority
        loose = any_port(authority)
        if loose in self._any_ports:
            return loose
        return authority if request.proxied else ""

    # --- What to say ---

    def miss(self, request: ReceivedRequest) -> Miss:
        """Say why nothing matches."""
        matcher = self._matcher
        choice = self._choice(request)
        queue = choice.queue(request, matcher) if choice else None
        due: Entry | None = None
        if self._order == "strict":
            due = self._due()
            reason = "Not the request that is due (--order strict)" if due else "All of the recording is used up"
        elif self._order == "sequence" and choice:
            due = self._due_in(choice)
            reason = "Not the request that is due (--order sequence)" if due else "Already used up"
        else:
            reason = "Already used up" if queue else "No recorded request matches"
        near = due or self._nearest(request, queue)
        differences: list[str] = []
        if near:
            host = self._host(request)
            if host not in ("", near.authority, near.any_port):
                differences.append(nearest.host_difference(request, near.exchange.request))
            differences += nearest.differences(request, near.exchange.request, matcher)
            if not differences and near.used:
                differences.append(
                    f"it was answered {near.used} time{'' if near.used == 1 else 's'}; --repeat allows more"
                )
        return Miss(
            nearest.summary(request),
            reason if self.entries else "The recording has nothing to serve",
            near.exchange.id if near else None,
            nearest.summary(near.exchange.request) if near else "",
            tuple(differences),
            matcher.words,
        )

    def disagreement(self, request: ReceivedRequest, entry: Entry) -> Miss:
        """Say how a body differs from that of the entry that was taken early."""
        return Miss(
            nearest.summary(request),
            "The request went on in another way than the recorded one",
            entry.exchange.id,
            nearest.summary(entry.exchange.request),
            tuple(nearest.body_differences(request, entry.exchange.request, self._matcher)),
            self._matcher.words,
        )

    def _nearest(self, request: ReceivedRequest, queue: _Queue | None) -> Entry | None:
        if queue:
            return queue.entries[-1]
        entries = self._by_path.get(_path(request)) or list(self._of_each_path())
        by_request = {id(entry.exchange.request): entry for entry in entries[: _ENTRIES_COMPARED * 5]}
        found = nearest.nearest(request, [entry.exchange.request for entry in by_request.values()], self._matcher)
        return by_request[id(found)] if found else None

    def _of_each_path(self) -> Iterator[Entry]:
        for number, entries in enumerate(self._by_path.values()):
            if number == _PATHS_COMPARED:
                return
            yield entries[0]


def _times_used(entry: Entry) -> int:
    return entry.used


def _opened_so(request: ReceivedRequest, incoming: Incoming, entries: list[Entry]) -> Entry | None:
    """Return the first entry whose question began with the same gRPC messages as this one; any will do if all began alike."""
    openings = {entry.answer.opening for entry in entries}
    if len(openings) <= 1 or None in openings:
        return entries[0] if entries else None
    if incoming.size > _OPENING_LIMIT:
        return None
    seen = grpc_messages(request, b"".join(incoming.pieces), whole=False)
    for entry in entries:
        opening = entry.answer.opening or ()
        if seen is not None and len(seen) >= len(opening) and seen[: len(opening)] == opening:
            return entry
    return None


def normal_authority(request: Request) -> str:
    """Return the authority in lower case, without the port that its scheme has anyway."""
    authority = request.authority.strip().lower()
    return authority.removesuffix(_DEFAULT_PORTS.get(request.scheme, b"")).decode("latin-1")


def any_port(authority: str) -> str:
    """Return an authority with an asterisk for its port."""
    host, bracket, port = authority.rpartition("]")
    return f"{host}{bracket}{port.partition(':')[0]}:*"


def _path(request: ReceivedRequest | RecordedRequest) -> bytes:
    return normal_path(request.target.partition(b"?")[0])
