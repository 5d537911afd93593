"""Secrets: found in captures, and taken out of them under consistent pseudonyms.  docs/scrubbing.md says what is done and what not."""

from __future__ import annotations

from tlscap.scrub.pseudonyms import is_pseudonym, key_of_seed
from tlscap.scrub.rules import Rules, read_rules
from tlscap.scrub.scrubber import Report, Scrubber, ScrubResult, random_key, scrub

__all__ = [
    "Report",
    "Rules",
    "ScrubResult",
    "Scrubber",
    "is_pseudonym",
    "key_of_seed",
    "random_key",
    "read_rules",
    "scrub",
]
