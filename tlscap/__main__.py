"""``python -m tlscap``: the same as the command ``tlscap``."""

from __future__ import annotations

from tlscap.cli.main import main

if __name__ == "__main__":
    main()
