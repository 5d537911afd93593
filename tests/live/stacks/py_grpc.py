"""grpcio: every step is a unary call without protobuf; EXTRA is the file with the authority's certificate.

The library doesn't say its own address: the server does, in the trailing metadata.
"""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote

import grpc  # type: ignore[import-untyped,unused-ignore]
from live.stacks.plan import SERVER_NAME, task

OPTIONS = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.ssl_target_name_override", SERVER_NAME),
    ("grpc.enable_http_proxy", 0),
)


def main() -> None:
    job = task(loaded_late=True)
    credentials = grpc.ssl_channel_credentials(Path(job.extra[0]).read_bytes())
    seen = set()
    with grpc.secure_channel(f"{job.host}:{job.port}", credentials, OPTIONS) as channel:
        exchange = channel.unary_unary("/tests.Stacks/Exchange")
        for content, size in job.steps():
            answer, call = exchange.with_call(content, metadata=[("size", str(size))])
            assert len(answer) == size, f"{len(answer)} bytes for {size}"
            job.incoming.write(answer)
            seen.add(dict(call.trailing_metadata())["seen-as"])
    (only,) = seen
    host, _, port = unquote(only).removeprefix("ipv4:").rpartition(":")
    job.finish((host, int(port)), (job.host, job.port), grpc.__version__)


main()
