"""What is a secret: names of fields, JSON paths, shapes of well-known tokens; the defaults, and a file of one's own (TOML)."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, Self

from tlscap.errors import UsageError
from tlscap.scrub.jsonpaths import Path, compile_path

HEADERS: Final = (
    "authorization",
    "proxy-authorization",
    "cookie",
    "set-cookie",
    "x-api-key",
    "api-key",
    "apikey",
    "x-goog-api-key",
    "x-auth",
    "x-session",
    "x-session-id",
    "x-amz-security-token",
    "x-hub-signature",
    "x-hub-signature-256",
    "grpc-metadata-authorization",
    "authentication",
    "cookie2",
    "set-cookie2",
    "x-csrftoken",
    "x-xsrftoken",
    "x-amz-credential",
    "token",
    "secret",
    "password",
    "passphrase",
    "session",
    "session-id",
    "sessionid",
    "jwt",
)
"""Fields whose values are secrets; ``_`` counts as ``-``, and gRPC's ``-bin`` at their ends as nothing."""

WORDS: Final = frozenset(("token", "secret", "password", "passphrase", "session", "jwt", "authentication"))
"""Those that are ordinary words: in other texts, a line that begins with one and a colon is no field."""

HEADER_ENDINGS: Final = ("-token", "-secret", "-password", "-passwd", "-api-key", "-apikey", "-access-key", "-secret-key", "-auth-key",
                   "-authorization", "-signature", "-assertion", "-cookie")  # fmt: skip
"""So do those end whose values are secrets, too: ``X-Csrf-Token``, ``X-Vault-Token``."""

NAMES: Final = (
    "password", "passwd", "pwd", "passphrase", "passcode", "pin", "otp",
    "token", "accesstoken", "refreshtoken", "idtoken", "authtoken", "sessiontoken", "csrf", "xsrf", "jwt", "bearer",
    "secret", "clientsecret", "secretkey", "privatekey", "accesskey", "secretaccesskey", "signingkey", "encryptionkey",
    "apikey", "authkey", "authorization", "auth", "assertion", "clientassertion", "samlresponse", "samlrequest",
    "session", "sessionid", "sid", "phpsessid", "jsessionid", "connectsid",
    "xamzsignature", "xamzcredential", "xamzsecuritytoken", "sig", "signature", "hapikey",
    "codeverifier", "devicecode", "credential", "credentials", "cookie", "setcookie",
)  # fmt: skip
"""Names in queries, forms, JSON, XML and multipart forms, without ``-``, ``_``, ``.``, ``[]`` and in lower case."""

NAME_ENDINGS: Final = ("token", "secret", "password", "passwd", "apikey", "privatekey", "secretkey", "accesskey")
"""So do other such names end: ``csrf_token``, ``dbPassword``."""

QUERY_NAMES: Final = ("key", "code", "pass")
"""Names in queries and forms alone: Google's ``key``, OAuth's ``code``; a ``pass`` in JSON may be a test that went well."""

_SHAPES: Final = {
    "jwt": r"eyJ[A-Za-z0-9_-]{5,}\.[A-Za-z0-9_-]{5,}(?:\.[A-Za-z0-9_-]*){1,3}",
    "github-token": r"gh[pousr]_[A-Za-z0-9]{30,255}|github_pat_[A-Za-z0-9_]{22,255}",
    "gitlab-token": r"gl(?:pat|dt|rt|cbt|ptt|ft|soat)-[A-Za-z0-9_-]{20,}",
    "aws-key-id": r"(?<![A-Za-z0-9])(?:AKIA|ASIA|ABIA|ACCA)[A-Z0-9]{16}(?![A-Za-z0-9])",
    "slack-token": r"xox[abeoprs]-[A-Za-z0-9-]{10,}|xapp-[0-9]-[A-Za-z0-9-]{10,}",
    "slack-webhook": r"hooks\.slack\.com/(?:services|workflows)/([A-Za-z0-9/_-]{20,})",
    "stripe-key": r"(?:sk|rk|pk)_(?:live|test)_[A-Za-z0-9]{10,}|whsec_[A-Za-z0-9+/=]{16,}",
    "google-key": r"AIza[0-9A-Za-z_-]{35}|GOCSPX-[A-Za-z0-9_-]{20,}|ya29\.[0-9A-Za-z_-]{16,}|1//0(?<![A-Za-z0-9+]1//0)[0-9A-Za-z_-]{30,}",
    "openai-key": r"sk-(?<![A-Za-z0-9]sk-)(?:proj-|ant-|svcacct-|or-)?[A-Za-z0-9_-]{20,}",
    "npm-token": r"npm_[A-Za-z0-9]{36}",
    "pypi-token": r"pypi-[A-Za-z0-9_-]{50,}",
    "huggingface-token": r"hf_[A-Za-z0-9]{30,}",
    "sendgrid-key": r"SG\.[A-Za-z0-9_-]{16,}\.[A-Za-z0-9_-]{16,}",
    "digitalocean-token": r"do[opr]_v1_[a-f0-9]{64}",
    "shopify-token": r"shp(?:at|ca|pa|ss)_[a-fA-F0-9]{32}",
    "telegram-token": r"(?<![0-9])[0-9]{8,10}:AA[A-Za-z0-9_-]{32,34}",
    "age-key": r"AGE-SECRET-KEY-1[0-9A-Z]{58}",
    "private-key": r"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----[\s\S]{20,20000}?"
    r"(?:-----END (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----|\Z)",
    "url-credentials": r"://(?<=[A-Za-z0-9+.-]://)(?:[^/\s:@\"'<>\\]{0,256}):([^/\s@\"'<>\\]{1,512}(?:@[^/?#&,;\s@\"'<>\\]{1,512}(?=@)){0,8})@",
    "bearer-token": r"[bB][eE][aA][rR][eE][rR]\s{1,4}([A-Za-z0-9._~+/-]{16,}={0,2})",
}  # fmt: skip
"""Tokens that are known by their shape, wherever they stand.  A group tells which part is the secret.

They begin with fixed characters where that is possible, and look behind only then: `re` goes through a text many times as fast so.
"""

_NEEDED: Final = {
    "github-token": ("ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_"),
    "aws-key-id": ("AKIA", "ASIA", "ABIA", "ACCA"),
    "slack-token": ("xox", "xapp-"),
    "stripe-key": ("k_live_", "k_test_", "whsec_"),
    "google-key": ("AIza", "GOCSPX-", "ya29.", "1//0"),
    "telegram-token": (":AA",),
}
"""Texts of which one is in every token of a shape that has no such beginning: looking for them first is quicker."""

ENTROPY: Final = "high-entropy"
"""The rule for what looks random and stands where tokens stand."""


OWN: Final = "regex "
"""How the names of a user's own shapes begin."""


@dataclass(frozen=True, slots=True)
class Rules:
    """What is scrubbed.  Names are compared as `plain_name` has them; fields of heads in lower case."""

    headers: frozenset[str] = frozenset(HEADERS)
    header_endings: tuple[str, ...] = HEADER_ENDINGS
    names: frozenset[str] = frozenset(NAMES)
    """In queries, forms, JSON, XML and multipart forms."""
    name_endings: tuple[str, ...] = NAME_ENDINGS
    query: frozenset[str] = frozenset(QUERY_NAMES)
    """In queries and forms, beside ``names``."""
    form: frozenset[str] = frozenset()
    """In forms, multipart ones too, beside ``names``."""
    json_paths: tuple[Path, ...] = ()
    shapes: Mapping[str, re.Pattern[bytes]] = field(
        default_factory=lambda: {name: re.compile(text.encode()) for name, text in _SHAPES.items()}
    )
    entropy: bool = True
    keep: frozenset[str] = frozenset()
    """Names of fields, and of these rules, that are no secrets after all."""
    needed: Mapping[str, tuple[bytes, ...]] = field(
        default_factory=lambda: {name: tuple(text.encode() for text in texts) for name, texts in _NEEDED.items()}
    )
    """By name of a shape: a text without any of these has none of it."""
    kept_shapes: tuple[re.Pattern[bytes], ...] = ()
    """Of rules that are no longer among ``shapes``: what they match may look as random as it likes."""
    keep_undecodable: bool = False
    """Bodies that can't be looked into are kept as they are."""

    @classmethod
    def none(cls) -> Self:
        """Return rules that find nothing: what remains without the defaults."""
        empty: frozenset[str] = frozenset()
        return cls(
            headers=empty, header_endings=(), names=empty, name_endings=(), query=empty, shapes={}, entropy=False
        )

    def extended(
        self,
        *,
        headers: Iterable[str] = (),
        names: Iterable[str] = (),
        query: Iterable[str] = (),
        form: Iterable[str] = (),
        json_paths: Iterable[str] = (),
        regexes: Iterable[str] = (),
        keep: Iterable[str] = (),
        keep_undecodable: bool = False,
    ) -> Rules:
        """Return these rules and more.  Raises `UsageError`."""
        shapes = dict(self.shapes)
        own = sum(name.startswith(OWN) for name in shapes)
        for number, text in enumerate(regexes, own + 1):
            name = f"{OWN}{number}"  # reports name it, and it may spell a secret
            try:
                shapes[name] = re.compile(text.encode())
            except re.error as error:
                raise UsageError(f"no regular expression: {text!r}: {error}") from error
            if shapes[name].match(b""):
                raise UsageError(
                    f"the regular expression {text!r} matches nothing at all", hint="it must need a character"
                )
        kept = self.keep | {one.lower() for one in keep}
        return replace(
            self,
            headers=self.headers | {one.lower() for one in headers},
            names=self.names | {plain_name(one.encode()) for one in names},
            query=self.query | {plain_name(one.encode()) for one in query},
            form=self.form | {plain_name(one.encode()) for one in form},
            json_paths=(*self.json_paths, *map(compile_path, json_paths)),
            shapes={name: shape for name, shape in shapes.items() if name not in kept},
            kept_shapes=(*self.kept_shapes, *(shape for name, shape in shapes.items() if name in kept)),
            entropy=self.entropy and ENTROPY not in kept,
            keep=kept | {plain_name(one.encode()) for one in kept},
            keep_undecodable=self.keep_undecodable or keep_undecodable,
        )

    def is_secret_header(self, name: str) -> bool:
        """Tell whether a field's value is a secret; ``name`` in lower case."""
        plain = name.replace("_", "-").removesuffix("-bin")
        if name in self.keep or plain in self.keep:
            return False
        known = name in self.headers or plain in self.headers
        return known or plain.endswith(self.header_endings or ("\n",))

    def is_secret_name(self, name: bytes, *, query: bool = False, form: bool = False) -> bool:
        """Tell whether the value of this name is a secret: in a text, or in a query or a form."""
        plain = plain_name(name)
        if not plain or plain in self.keep:
            return False
        return (
            plain in self.names
            or (query and plain in self.query)
            or (form and plain in self.form)
            or bool(self.name_endings and plain.endswith(self.name_endings))
        )


_DROPPED = re.compile(r"[-_.\[\]\s]")


def plain_name(name: bytes) -> str:
    """Return a name as rules compare it: ``API-Key``, ``api_key`` and ``apiKey`` are the same."""
    return _DROPPED.sub("", name.decode("latin-1")).lower()


_LISTS: Final = ("headers", "names", "query", "form", "json-paths", "regexes", "keep")
_FLAGS: Final = ("defaults", "keep-undecodable")


def read_rules(text: str, where: str = "the rules") -> Rules:
    """Read a file of rules (docs/scrubbing.md).  Raises `UsageError`."""
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{where}: no valid TOML: {error}") from error
    unknown = table.keys() - {*_LISTS, *_FLAGS}
    if unknown:
        raise UsageError(f"{where}: unknown key {min(unknown)!r}", hint=f"known: {', '.join((*_FLAGS, *_LISTS))}")
    values: dict[str, Any] = {}
    for key, value in table.items():
        if key in _FLAGS:
            if not isinstance(value, bool):
                raise UsageError(f"{where}: {key} is true or false")
        elif not isinstance(value, list) or not all(isinstance(one, str) for one in value):
            raise UsageError(f"{where}: {key} is a list of texts")
        values[key.replace("-", "_")] = value
    base = Rules() if values.pop("defaults", True) else Rules.none()
    return base.extended(**values)
