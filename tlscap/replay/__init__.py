"""Replay: recorded exchanges served, sent and compared (docs/replay.md)."""
