"""Freshness of the stored notebooks: `python notebooks/stamps.py` notes in stamps.json, after they were executed, what each ran
with; `make notebooks` does both. A changed cell above its old output is told by its hash."""

import hashlib
import json
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
FILE = FOLDER / "stamps.json"


def digest(parts) -> str:
    found = hashlib.sha256()
    for part in parts:
        found.update(part if isinstance(part, bytes) else part.encode())
        found.update(b"\0")
    return found.hexdigest()


def code(notebook: dict) -> list[str]:
    """The sources of a notebook's code cells."""
    return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]


def stamp(path: Path, root: Path = FOLDER.parent) -> dict:
    """{cells: how many are executed, and the hashes of sources, package and records} of a notebook as it is now."""
    sources = code(json.loads(path.read_text(encoding="utf-8")))
    package, records = (
        sorted(root.glob(pattern)) for pattern in ("rflw/**/*.py", "data/results/*.json")
    )
    return {
        "cells": len(sources),
        "sources": digest(sources),
        "package": digest(file.read_bytes() for file in package),
        "records": digest(file.read_bytes() for file in records),
    }


if __name__ == "__main__":
    FILE.write_text(
        json.dumps({path.name: stamp(path) for path in sorted(FOLDER.glob("*.ipynb"))}, indent=1)
        + "\n"
    )
