"""Stamps of the stored notebooks: `python notebooks/stamps.py` writes what each was executed with.

`make notebooks` executes the notebooks and writes stamps.json. A stamp holds hashes of a notebook's
cells and of the modules that it imports, so that a test notices a cell that changed afterwards.
"""

import ast
import hashlib
import json
from pathlib import Path
import re

FOLDER = Path(__file__).resolve().parent
FILE = FOLDER / "stamps.json"
PACKAGES = ("rflw", "rflw_study")


def code(notebook: dict) -> list[str]:
    """The sources of a notebook's code cells."""
    return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]


def names_of(source: str) -> set[str]:
    """What Python code imports, and what it uses of `rflw` itself: "rflw.records", "rflw.build"."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Attribute) and getattr(node.value, "id", "") in PACKAGES:
            names.add(f"{node.value.id}.{node.attr}")
    return names


def files_of(name: str, root: Path) -> set[Path]:
    """The files of the module that a name means or lies in, and of the packages around it."""
    parts = name.split(".")
    if parts[0] not in PACKAGES:
        return set()
    places = [root.joinpath(*parts[:n]) for n in range(1, len(parts) + 1)]
    files = {file for place in places for file in (place / "__init__.py", place.with_suffix(".py"))}
    files = {file for file in files if file.exists()}
    init = (
        root / parts[0] / "__init__.py"
    )  # it says where a name is: "build": ("nn.refinenet", ...)
    home = re.search(rf'"{parts[-1]}": \("([\w.]+)"', init.read_text(encoding="utf-8"))
    return files | files_of(f"rflw.{home[1]}", root) if home and len(parts) == 2 else files


def modules_of(cells: list[str], root: Path) -> list[Path]:
    """The files of both packages that code imports, directly or through others."""
    files, sources = set(), [re.sub(r"(?m)^(\s*)[!%].*$", r"\1pass", cell) for cell in cells]
    while sources:
        names = set().union(*map(names_of, sources))
        new = set().union(*(files_of(name, root) for name in names)) - files
        files |= new
        sources = [file.read_text(encoding="utf-8") for file in new]
    return sorted(files)


def read() -> dict[str, dict]:
    """The stored stamps by notebook."""
    return json.loads(FILE.read_text(encoding="utf-8"))


def digest(texts: list[str]) -> str:
    return hashlib.sha256("".join(f"{text}\0" for text in texts).encode()).hexdigest()


def stamp(path: Path, root: Path = FOLDER.parent) -> dict:
    """How many code cells a notebook has, and the hashes of their sources and of its modules."""
    cells = code(json.loads(path.read_text(encoding="utf-8")))
    modules = [file.read_text(encoding="utf-8") for file in modules_of(cells, root)]
    return {"cells": len(cells), "sources": digest(cells), "modules": digest(modules)}


if __name__ == "__main__":
    stamps = {path.name: stamp(path) for path in sorted(FOLDER.glob("*.ipynb"))}
    FILE.write_text(json.dumps(stamps, indent=1) + "\n")
