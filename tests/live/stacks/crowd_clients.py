"""A crowd of asyncio's clients in one process: PORT COUNT [hold].  Prints their accounts, a JSON array."""

from __future__ import annotations

import asyncio
import json
import sys

from live.stacks.crowd import allow_many_files, crowd

allow_many_files()
port, count, *how = sys.argv[1:]
print(json.dumps(asyncio.run(crowd(int(port), int(count), holds="hold" in how))))
