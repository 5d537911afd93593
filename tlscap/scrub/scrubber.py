"""Takes secrets out of exchanges: first all of them are found, then every occurrence is replaced.

Both passes go through the same texts in the same way (`Walker`).  The first asks the rules.  The second replaces what the rules
say, and whatever else is equal to a secret, in whatever escaping or coding: a token that an error page echoes.
"""

from __future__ import annotations

import base64
import secrets as random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from tlscap.http.events import Header, Side
from tlscap.replay.recording import RecordedExchange
from tlscap.scrub.edits import Edit, apply, without_overlaps
from tlscap.scrub.finder import Finder, Finding, Place
from tlscap.scrub.pseudonyms import Pseudonyms
from tlscap.scrub.rules import Rules
from tlscap.scrub.secrets import Secrets
from tlscap.scrub.walk import Walker

_TAG_FIELDS: Final = frozenset((b"etag", b"if-match", b"if-none-match", b"if-range"))


@dataclass(slots=True)
class Report:
    """What was done.  Names rules and places, never a secret."""

    replaced: Counter[tuple[str, str]] = field(default_factory=Counter)
    """By rule and place."""
    secrets: int = 0
    """Different ones."""
    withheld: Counter[str] = field(default_factory=Counter)
    """Bodies and messages that could not be opened, by the reason."""
    decoded: int = 0
    """Bodies that are stored without their content coding, because it can't be applied."""

    def to_dict(self) -> dict[str, Any]:
        """Return what ``tlscap scrub --json`` prints."""
        replaced = [
            {"rule": rule, "place": place, "count": count} for (rule, place), count in sorted(self.replaced.items())
        ]
        return {
            "secrets": self.secrets,
            "replaced": replaced,
            "withheld": [{"what": what, "count": count} for what, count in sorted(self.withheld.items())],
            "decoded": self.decoded,
        }


@dataclass(slots=True)
class ScrubResult:
    """Exchanges without secrets, and what was done to them."""

    exchanges: list[RecordedExchange]
    report: Report


def random_key() -> bytes:
    """Return a key for pseudonyms that nobody can guess."""
    return random.token_bytes(32)


class Scrubber:
    """Scrubs captures.  Those that one scrubber sees share their pseudonyms.

    ``key``: pseudonyms are hashes under it (`random_key`, `tlscap.scrub.pseudonyms.key_of_seed`); ``None``: they are numbers.
    """

    def __init__(self, rules: Rules | None = None, *, key: bytes | None = None) -> None:
        self._rules = rules or Rules()
        self._finder = Finder(self._rules)
        self._secrets = Secrets(Pseudonyms(key))
        self._found: set[bytes] = set()
        self._replaced: Counter[tuple[str, str]] = Counter()

    def scrub(self, exchanges: Sequence[RecordedExchange]) -> ScrubResult:
        """Return the exchanges without secrets.  What it is given is not changed."""
        self._replaced = Counter()
        finding = Walker(self._collect, keep_undecodable=True)
        for exchange in exchanges:
            finding.exchange(exchange)
        replacing = Walker(self._replace, self._replace_values, keep_undecodable=self._rules.keep_undecodable)
        scrubbed = [replacing.exchange(exchange) for exchange in exchanges]
        self._replace_tags(scrubbed, replacing.changed_bodies)
        report = Report(self._unnamed(), len(self._found), replacing.withheld, replacing.decoded)
        return ScrubResult(scrubbed, report)

    # --- The two passes ---

    def _collect(self, text: bytes, place: Place) -> Sequence[Edit]:
        for one in self._finder.find(text, place):
            self._found.add(one.value)
            if one.codec == "basic":
                for part in _basic_secrets(one.value):
                    self._secrets.add(part)
            else:
                self._secrets.add(one.value)
        return ()

    def _replace(self, text: bytes, place: Place) -> Sequence[Edit]:
        found = self._finder.find(text, place)
        by_rules = [self._edit(one) for one in found if one.codec != "within"]
        by_rules += [  # what is too short to be known in base64 takes all of it along
            Edit(one.start, one.end, self._secrets.add(text[one.start : one.end]), one.rule)
            for one in found
            if one.codec == "within" and not self._secrets.are_everywhere(one.value)
        ]
        edits = [*by_rules, *self._secrets.edits(text)]
        for cut in place.cuts:
            edits += self._secrets.cut_edits(text, cut)
        if not edits:
            return ()
        edits = without_overlaps(edits)
        for edit in edits:
            self._replaced[edit.rule, str(place)] += 1
        return edits

    def _replace_values(self, text: bytes) -> Sequence[Edit]:
        return without_overlaps(self._secrets.edits(text))

    def _edit(self, one: Finding) -> Edit:
        if one.codec == "basic":
            user, _, password = one.value.partition(b":")
            names = b":".join(self._secrets.add(part) if part else b"" for part in (user, password))
            return Edit(one.start, one.end, base64.b64encode(names), one.rule)
        name = self._secrets.add(one.value)
        return Edit(one.start, one.end, b'"%s"' % name if one.codec == "number" else name, one.rule)

    def _unnamed(self) -> Counter[tuple[str, str]]:
        """Return what was replaced; rules and places are told by names of fields, and a secret may stand in such a name."""
        counts: Counter[tuple[str, str]] = Counter()
        for words, count in self._replaced.items():
            rule, place = (
                apply(text, self._replace_values(text)).decode("utf-8", "replace")
                for text in (word.encode("utf-8", "surrogatepass") for word in words)
            )
            counts[rule, place] += count
        return counts

    # --- Tags of what changed ---

    def _replace_tags(self, exchanges: list[RecordedExchange], changed: dict[int, set[Side]]) -> None:
        """Rename the entity tags of bodies that changed: they may be hashes of what was there."""
        names: dict[bytes, bytes] = {}
        for exchange in exchanges:
            response = exchange.response
            if response and Side.RESPONSE in changed.get(exchange.id, ()):
                for tag in response.values(b"etag"):
                    if core := tag.strip().removeprefix(b"W/").strip(b'"'):
                        names[core] = self._secrets.add(core)
        if not names:
            return
        for exchange in exchanges:
            for message in (exchange.request, exchange.response):
                if message:
                    message.headers = tuple(self._renamed(one, names) for one in message.headers)

    def _renamed(self, header: Header, names: dict[bytes, bytes]) -> Header:
        name, value = header
        if name.lower() in _TAG_FIELDS:
            for tag, pseudonym in names.items():
                if b'"%s"' % tag in value or value.strip() == tag:
                    value = value.replace(tag, pseudonym)
                    self._replaced["tag of a changed body", f"header {name.decode('latin-1').lower()}"] += 1
        return name, value


def scrub(
    exchanges: Sequence[RecordedExchange], rules: Rules | None = None, *, key: bytes | None = None
) -> ScrubResult:
    """Scrub one capture; see `Scrubber`."""
    return Scrubber(rules, key=key).scrub(exchanges)


def _basic_secrets(credentials: bytes) -> list[bytes]:
    """Return what is secret of a user and a password everywhere: names of users are not, except where there is no password."""
    user, _, password = credentials.partition(b":")
    return [password] if password and password not in (b"x", b"x-oauth-basic") else [user]
