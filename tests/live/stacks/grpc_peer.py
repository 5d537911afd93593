"""The other end of `py_grpc.py`, a process of its own: CERTIFICATE KEY ANSWERS RECEIVED.

Answers each call with as many of the next bytes of the file ANSWERS as the call asks for, and appends what it got to the file
RECEIVED.  Prints its port.
"""

from __future__ import annotations

import sys
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc  # type: ignore[import-untyped,unused-ignore]

OPTIONS = (("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1))


class Service(grpc.GenericRpcHandler):  # type: ignore[misc,unused-ignore]
    def __init__(self, answers: str, received: str) -> None:
        self._answers = Path(answers).open("rb")
        self._received = Path(received).open("wb", buffering=0)

    def service(self, details: Any) -> Any:
        return grpc.unary_unary_rpc_method_handler(self._exchange)

    def _exchange(self, request: bytes, context: Any) -> bytes:
        self._received.write(request)
        context.set_trailing_metadata([("seen-as", context.peer())])
        return self._answers.read(int(dict(context.invocation_metadata())["size"]))


def main() -> None:
    certificate, key, answers, received = sys.argv[1:]
    server = grpc.server(futures.ThreadPoolExecutor(1), options=OPTIONS)
    server.add_generic_rpc_handlers((Service(answers, received),))
    pair = (Path(key).read_bytes(), Path(certificate).read_bytes())
    print(server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([pair])), flush=True)
    server.start()
    server.wait_for_termination()


main()
