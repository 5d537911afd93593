"""HTTP as it really was: passive observers that report traffic, odd or not, and never reject it."""

from __future__ import annotations
