"""tlscap: what did this program really say over TLS?

Records the plaintext of TLS connections with eBPF uprobes, writes it as pcapng and as a
compressed event log (the sidecar), and reads both back as HTTP exchanges.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from tlscap.api import Capture, Exchange, Headers, Message, Request, Response, open  # noqa: A004

__all__ = ["Capture", "Exchange", "Headers", "Message", "Request", "Response", "__version__", "open"]


def __getattr__(name: str) -> Any:
    # The recorder must start fast: it imports this package, but nothing that reads captures.
    if name in __all__:
        from tlscap import api  # noqa: PLC0415

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
