"""Prints what pyproject.toml requires to build, run and test: pip before 25.1 doesn't know dependency groups."""

from __future__ import annotations

import tomllib
from pathlib import Path


def main() -> None:
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8"))
    groups = [
        project["build-system"]["requires"],
        project["project"]["dependencies"],
        *project["dependency-groups"].values(),
    ]
    print(*dict.fromkeys(requirement for group in groups for requirement in group), "wheel", sep="\n")


if __name__ == "__main__":
    main()
