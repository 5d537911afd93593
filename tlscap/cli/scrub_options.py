"""The options that say what is a secret: the same for ``scrub``, ``fixture make`` and ``record --redact``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from tlscap.errors import OutputError, UsageError
from tlscap.scrub import Rules, key_of_seed, read_rules

_F = TypeVar("_F", bound=Callable[..., Any])

_OPTIONS = (
    click.option("--rules", "rules_file", metavar="FILE", type=click.Path(), help="A TOML file of rules (docs/scrubbing.md)."),
    click.option("--header", "headers", metavar="NAME", multiple=True, help="Scrub this field of heads, too. Repeatable."),
    click.option("--query", "query", metavar="NAME", multiple=True, help="Scrub this name in queries, too. Repeatable."),
    click.option("--form", "form", metavar="NAME", multiple=True, help="Scrub this field of forms, too. Repeatable."),
    click.option("--name", "names", metavar="NAME", multiple=True,
                 help="Scrub this name in queries, forms, JSON and XML, too. Repeatable."),
    click.option("--json-path", "json_paths", metavar="PATH", multiple=True,
                 help="Scrub what this path names in JSON: $.user.email. Repeatable."),
    click.option("--regex", "regexes", metavar="RE", multiple=True,
                 help="Scrub what this matches, or its group 1, anywhere. Repeatable."),
    click.option("--keep", "keep", metavar="NAME", multiple=True,
                 help="A name of a field, or of a rule, that is no secret. Repeatable."),
    click.option("--keep-undecodable", is_flag=True, help="Keep bodies that can't be looked into."),
    click.option("--no-defaults", is_flag=True, help="Only what these options and --rules say is a secret."),
)  # fmt: skip


def scrub_options(function: _F) -> _F:
    """Add the options to a command; `rules_of` takes their values."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


def rules_of(
    *,
    rules_file: str | None = None,
    headers: tuple[str, ...] = (),
    query: tuple[str, ...] = (),
    form: tuple[str, ...] = (),
    names: tuple[str, ...] = (),
    json_paths: tuple[str, ...] = (),
    regexes: tuple[str, ...] = (),
    keep: tuple[str, ...] = (),
    keep_undecodable: bool = False,
    no_defaults: bool = False,
) -> Rules:
    """Return the rules that the options' values say.  Raises `UsageError`, and `OutputError` for a file that can't be read."""
    rules = rules_in(rules_file, no_defaults=no_defaults) if rules_file else Rules.none() if no_defaults else Rules()
    return rules.extended(
        headers=headers,
        query=query,
        form=(*form,),
        names=names,
        json_paths=json_paths,
        regexes=regexes,
        keep=keep,
        keep_undecodable=keep_undecodable,
    )


def rules_in(path: str, *, no_defaults: bool = False) -> Rules:
    """Read a file of rules."""
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read()
    except OSError as error:
        raise OutputError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not UTF-8") from error
    return read_rules(("defaults = false\n" if no_defaults else "") + text, path)


def seed_key(seed: str) -> bytes:
    """Return the key of a seed.  Raises `UsageError` for one that is guessed at once."""
    if len(seed) < 16:
        raise UsageError(
            "the seed is too short: whoever guesses it can guess the secrets", hint="give 16 random characters or more"
        )
    return key_of_seed(seed)
