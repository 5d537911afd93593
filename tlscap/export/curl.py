"""A request as a command for a POSIX shell: curl with the options that make it send the same again.

What arrives is the same method, target, version, fields and body.  Exceptions, each said in a comment in front of the command
where it matters: the order of fields; Accept-Encoding, which is curl's own, so that it can decode the answer; a body that was
sent compressed and is not any more; fields that no curl can send.

Nothing in a recording can break out of its quotes or command a terminal: text that could is written as escapes of
``printf``, or as base64.
"""

from __future__ import annotations

import base64
import re
import shlex
from typing import Final

from tlscap.export.jsonl import client_and_server
from tlscap.export.table import visible
from tlscap.http.bodies import Body
from tlscap.http.events import Header, RequestHead
from tlscap.http.exchanges import Exchange, Message

_ARGUMENT_MAX: Final = 100_000  # Linux takes no argument of more than 128 KiB
_TEXT_MAX: Final = 1 << 16  # longest body that stands in the command
_LINE: Final = 76
_EXPECT_MIN: Final = 1 << 10  # of a body for which some version of curl asks for leave

_AUTHORITY = re.compile(r"(?:[A-Za-z0-9._~-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")
_PATH = re.compile(rb"/[^\x00-\x20\x7f-\xff#\"'<>\\^`|]*")
_GLOB = re.compile(r"[\[\]{}]")
_DOTS = re.compile(r"/(?:\.|%2e){1,2}(?:[/?]|\Z)", re.IGNORECASE)
_NAME = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+[ \t]*")  # RFC 9110, 5.6.2; blanks behind it are odd, but get sent
_NO_VALUE = re.compile(rb"[\s\x0b\x0c]*")
_DECODABLE: Final = (b"gzip", b"deflate", b"br", b"zstd")
_TEXT_CONTROL = re.compile("[\t\r\n]")
_VERSIONS: Final = {b"HTTP/1.1": "--http1.1", b"HTTP/1.0": "--http1.0", b"HTTP/2": "--http2"}


def curl_command(exchange: Exchange, body: Body | None, *, address: bool = False) -> str:
    """Return the command that repeats the request, without a newline at its end.

    ``body`` is the request's.  ``address``: it connects to the server's recorded address, whatever the name stands for today.
    When the request was not seen, a comment says so.
    """
    request = exchange.request
    if request is None:
        return f"# the request of exchange {exchange.id} was not seen"
    return _Command(exchange, request, body, address=address).text()


class _Command:
    """A command that is put together.  ``words`` are quoted; each of ``lines`` is an option with its value."""

    def __init__(self, exchange: Exchange, request: Message[RequestHead], body: Body | None, *, address: bool) -> None:
        self._exchange = exchange
        self._request = request
        self._body = body
        self._data = body.data if body else b""
        self._comments: list[str] = []
        self._options: list[str] = []
        self._lines: list[str] = []
        self._address = address

    def text(self) -> str:
        """Return the whole."""
        self._note_oddities()
        self._add_method()
        self._add_version()
        url = self._add_target()
        self._add_fields()
        before, after = self._add_body()
        command = " ".join(["curl", *self._options, shlex.quote(url)])
        lines = [before + command, *(f"  {line}" for line in self._lines)]
        return "\n".join([*(f"# {visible(comment)}" for comment in self._comments), " \\\n".join(lines) + after])

    # --- Parts ---

    def _note_oddities(self) -> None:
        request, body = self._request, self._body
        if request.head.pushed:
            self._comments.append("the server promised this request; the client never sent it")
        if body is None and (request.body_size or request.gap_bytes):
            self._comments.append(f"its body of {request.body_size + request.gap_bytes} bytes is not here")
        if body and body.truncated:
            self._comments.append(f"its body is cut: the first {len(body.data)} of {body.size} bytes")
        if request.gap_bytes:
            self._comments.append(f"its body is incomplete: {request.gap_bytes} bytes are missing")
        elif not request.complete:
            self._comments.append("the request was cut short")
        if body and body.note:
            self._comments.append(f"its body: {body.note}")

    def _add_method(self) -> None:
        method = self._request.head.method
        if method == b"HEAD" and not self._data:
            self._options.append("-I")  # with -X curl would wait for a body
        elif method != (b"POST" if self._data or self._is_chunked else b"GET"):
            self._options += ["-X", _word(method)]

    def _add_version(self) -> None:
        version = self._request.head.version
        if version == b"HTTP/0.9":
            self._comments.append("it was sent in HTTP/0.9, which curl can receive, but not send")
            self._options += ["--http1.0", "--http0.9"]
        elif option := _VERSIONS.get(version.upper()):
            self._options.append(option)
        else:
            self._comments.append(f"it was sent as {version.decode('latin-1')}")

    def _add_target(self) -> str:
        """Add what decides where it goes; return the URL."""
        head = self._request.head
        target = head.target
        host = head.authority or next(iter(self._request.values(b"host")), b"")
        of_proxy = head.method == b"CONNECT" or b"://" in target.partition(b"?")[0]
        authority = host.decode("latin-1")
        if of_proxy or not _AUTHORITY.fullmatch(authority):
            authority = self._flow_authority()
        if head.method == b"CONNECT" and not target:
            target = head.authority
        url = f"https://{authority}/"
        if _PATH.fullmatch(target) and len(target) < _ARGUMENT_MAX:
            url = f"https://{authority}{target.decode()}"
            if _DOTS.search(url):
                self._options.append("--path-as-is")
        elif target:
            self._add("--request-target", target)
        if _GLOB.search(url):
            self._options.append("--globoff")
        self._add_host(host, authority)
        self._add_connection(authority)
        return url

    def _flow_authority(self) -> str:
        flow = self._exchange.flow
        _, server = client_and_server(flow)
        port = f":{server.port}" if server and server.port != 443 else ""
        if _AUTHORITY.fullmatch(flow.sni) and ":" not in flow.sni:
            return flow.sni + port
        if server is None:
            self._comments.append("the server's name and address are not known")
            return "unknown.invalid"
        return str(server).removesuffix(":443")

    def _add_host(self, host: bytes, authority: str) -> None:
        """Add the Host field where curl's own would differ: it has the URL's authority, without the default port."""
        if host != authority.removesuffix(":443").encode() or host != host.lower():
            if _NO_VALUE.fullmatch(host):
                self._lines.append("-H Host:")
            else:
                self._add_field(b"Host", host)
        if len(self._request.values(b"host")) > 1:
            self._comments.append("it had more than one Host field: curl sends the first")

    def _add_connection(self, authority: str) -> None:
        name = re.sub(r":[0-9]+\Z", "", authority).strip("[]").lower()
        sni = self._exchange.flow.sni
        if sni and sni.lower() != name:
            self._comments.append(f"the TLS handshake named {sni}")
        if self._address:
            _, server = client_and_server(self._exchange.flow)
            if server is None:
                self._comments.append("the server's address is not known")
            else:
                self._lines.append(f"--connect-to {shlex.quote(f'::{server}')}")

    def _add_fields(self) -> None:
        """Add the fields that curl does not make itself; take away those that it makes and that were not sent."""
        sent = {name.lower().rstrip() for name, _ in self._request.headers}
        for field in self._request.headers:
            self._add_field_unless_made(field)
        unwanted = [name for name in ("User-Agent", "Accept") if name.lower().encode() not in sent]
        if self._has_data:
            unwanted += [name for name in ("Content-Type",) if b"content-type" not in sent]
            if len(self._data) >= _EXPECT_MIN and b"expect" not in sent:
                unwanted.append("Expect")
            if not sent & {b"content-length", b"transfer-encoding"}:
                unwanted.append("Content-Length")
        self._lines += [f"-H {name}:" for name in unwanted]

    def _add_field_unless_made(self, field: Header) -> None:
        name, value = field
        match name.lower().rstrip():
            case b"host":
                return
            case b"accept" if value == b"*/*" and len(self._request.values(b"accept")) == 1:
                return
            case b"content-length" if self._has_data:
                return
            case b"accept-encoding" if any(coding in value.lower() for coding in _DECODABLE):
                if "--compressed" not in self._options:
                    self._options.append("--compressed")
                return
            case b"content-encoding" if self._is_decoded:
                self._comments.append(f"its body was sent compressed ({value.decode('latin-1')}); here it is not")
                return
            case b"transfer-encoding" if self._is_decoded:
                name, value = b"Transfer-Encoding", b"chunked"
        self._add_field(name, value)

    def _add_field(self, name: bytes, value: bytes) -> None:
        line = name + b": " + value
        if not _NAME.fullmatch(name) or b"\n" in value or b"\0" in value or (value and _NO_VALUE.fullmatch(value)):
            self._comments.append(f"left out, as curl can't send it: {line[:200].decode('latin-1')}")
        else:
            self._add("-H", line if value else name.rstrip() + b";")

    def _add(self, option: str, value: bytes) -> None:
        if len(value) >= _ARGUMENT_MAX or b"\0" in value:
            self._comments.append(f"left out, as curl can't take it: {option} of {len(value)} bytes")
        else:
            self._lines.append(f"{option} {_word(value)}")

    # --- The body ---

    @property
    def _is_chunked(self) -> bool:
        return b"chunked" in b",".join(self._request.values(b"transfer-encoding")).lower()

    @property
    def _has_data(self) -> bool:
        return bool(self._data) or self._is_chunked

    @property
    def _is_decoded(self) -> bool:
        """Whether codings that the fields name are undone in the body that is at hand."""
        return bool(self._data) and bool(self._body and not self._body.encoded and self._request.encodings)

    def _add_body(self) -> tuple[str, str]:
        """Add the body; return what stands in front of the command and behind it."""
        data = self._data
        if not self._has_data:
            return "", ""
        text = _plain(data) if len(data) <= _TEXT_MAX else None
        if text is not None and not re.search(r"[\t\r]", text):
            self._lines.append(f"--data-raw {shlex.quote(text)}")
            return "", ""
        self._lines.append("--data-binary @-")
        if text is not None:
            return f"{_printf(data)} | ", ""
        encoded = base64.b64encode(data).decode()
        lines = [encoded[start : start + _LINE] for start in range(0, len(encoded), _LINE)]
        return "base64 -d <<'EOF' | ", "\n" + "\n".join([*lines, "EOF"])


# --- Quoting ---


def _plain(data: bytes) -> str | None:
    """Return the text that these bytes are, if nothing but line ends and tabs in it could do anything; else ``None``."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return None
    bare = _TEXT_CONTROL.sub("", text)
    return text if visible(bare) == bare else None


def _word(data: bytes) -> str:
    """Return a word for a shell that stands for these bytes; they must not end with a newline."""
    text = _plain(data)
    if text is None or _TEXT_CONTROL.search(text):
        return f'"$({_printf(data)})"'
    return shlex.quote(text)


def _printf(data: bytes) -> str:
    """Return a command that writes these bytes."""
    text = "".join(map(_escaped, data.decode("utf-8", "surrogateescape")))
    if text.startswith("-"):  # as an option does
        text = r"\055" + text[1:]
    return f"printf '{text}'"


def _escaped(character: str) -> str:
    """Return what stands for a character in the first argument of printf, between apostrophes."""
    if character in "%\\":
        return character * 2
    if character in _ESCAPES:
        return _ESCAPES[character]
    if character == visible(character):
        return character
    return "".join(f"\\{byte:03o}" for byte in character.encode("utf-8", "surrogateescape"))


_ESCAPES: Final = {"'": "'\\''", "\t": "\\t", "\r": "\\r", "\n": "\\n"}
