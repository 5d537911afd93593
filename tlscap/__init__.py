"""tlscap: what did this program really say over TLS?

Records the plaintext of TLS connections with eBPF uprobes, writes it as pcapng and as a
compressed event log (the sidecar), and reads both back as HTTP exchanges.
"""

from __future__ import annotations

__version__ = "0.1.0"
