"""What exchanges look like outside: lines for people, JSON for programs."""

from __future__ import annotations
