"""Stored notebooks were executed from top to bottom, are described, and a wrong number is noticed."""

from copy import deepcopy
import importlib.util
import json
from pathlib import Path
import re
import subprocess
import sys

import pytest

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SPEC = importlib.util.spec_from_file_location("stamps", ROOT / "notebooks" / "stamps.py")
stamps = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(stamps)
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


@each_notebook
def test_stored_as_executed(path):
    """From top to bottom, without an error, a warning or a skipped cell; pictures are described."""
    notebook = read(path)
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    assert path.stat().st_size <= 2**20
    for cell in cells:
        source, outputs = "".join(cell["source"]), cell["outputs"]
        assert not {"raises-exception", "nbval-skip"} & {*cell["metadata"].get("tags", ())}, source
        assert all(out["output_type"] != "error" for out in outputs), source
        assert all(out.get("name") != "stderr" for out in outputs), source
        if any(kind.startswith("image/") for out in outputs for kind in out.get("data", ())):
            assert cell["metadata"]["mystnb"]["image"]["alt"], source


@each_notebook
def test_answers_come_first_and_open_code_is_short(path):
    """A chapter opens with its answer, closes with what would change it, and folds plumbing."""
    cells = read(path)["cells"]
    texts = ["".join(c["source"]) for c in cells if c["cell_type"] == "markdown"]
    for words in ("{admonition} In short", "**Question.**", "**Answer.**", "{numref}"):
        assert words in texts[0].partition("\n:::\n")[0]
    assert "## What would change our mind" in texts[-1]
    for cell in cells:
        folded = {"hide-input", "remove-cell"} & {*cell["metadata"].get("tags", ())}
        if cell["cell_type"] == "code" and not folded:
            lines = "".join(cell["source"]).splitlines()
            assert len(lines) < 25 and max(map(len, lines)) <= 80, lines[0]


def code(**changes) -> dict:
    cell = {"cell_type": "code", "execution_count": 1, "metadata": {}, "outputs": [], "source": ""}
    return cell | changes


@each_notebook
def test_no_cell_changed_after_it_ran(path):
    """Of the modules that changed since, the book's page on the environment tells."""
    stored, now = stamps.read().get(path.name, {}), stamps.stamp(path)
    for part in ("cells", "sources"):
        assert stored.get(part) == now[part], f"{path.name}: {part} changed: make notebooks"


def test_a_stamp_covers_the_cells_and_what_they_import(tmp_path):
    files = {
        "rflw/__init__.py": 'HOME = {"build": ("nets", "build")}',
        "rflw/nets.py": "",
        "rflw/shapes.py": "",
        "rflw/other.py": "",
        "rflw_study/__init__.py": "",
        "rflw_study/counts.py": "def f():\n    from rflw.shapes import x",
        "notebooks/n.ipynb": "",
    }

    def write(name: str, text: str) -> None:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)

    def stamp_with(source: str) -> dict:
        cells = [code(source=source), {"cell_type": "markdown", "source": "words"}]
        write("notebooks/n.ipynb", json.dumps({"cells": cells}))
        return stamps.stamp(tmp_path / "notebooks/n.ipynb", tmp_path)

    for name, text in files.items():
        write(name, text)
    source = "%config x\nimport numpy\nimport rflw\nfrom rflw_study import counts\nrflw.build()"
    first = stamp_with(source)
    assert first["cells"] == 1
    second = stamp_with(f"{source}\nprint()")
    assert [part for part in first if first[part] != second[part]] == ["sources"]
    for name, text in files.items():
        if name.endswith(".py"):
            write(name, f"{text}\nx = 1")
            changed = [part for part in first if first[part] != stamp_with(source)[part]]
            assert changed == ([] if name == "rflw/other.py" else ["modules"]), name
            write(name, text)


def test_a_wrong_number_turns_nbval_red(tmp_path):
    """Two cells with what they print and show, then the same two with wrong numbers."""
    (tmp_path / "number.json").write_text('{"miou": 0.6484}')
    (tmp_path / "conftest.py").write_text((ROOT / "notebooks" / "conftest.py").read_text())
    source = "import json\nprint(f\"mIoU {100 * json.load(open('number.json'))['miou']:.2f} %\")"
    cells = []
    for printed, shown in (("64.84", "64.84"), ("64.85", "65.84")):
        text = {"output_type": "stream", "name": "stdout", "text": f"mIoU {printed} %\n"}
        value = {"output_type": "execute_result", "data": {"text/plain": f"{{'mIoU': {shown}}}"}}
        value |= {"metadata": {}, "execution_count": len(cells) + 2}
        for code_of, output in ((source, text), ("{'mIoU': 64.84}", value)):
            count = {"id": f"c{len(cells)}", "execution_count": len(cells) + 1}
            cells.append(code(source=code_of, outputs=[output], **count))
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook = {"cells": cells, "nbformat": 4, "nbformat_minor": 5}
    notebook["metadata"] = {"kernelspec": kernel}

    def run() -> tuple[int, str]:
        (tmp_path / "small.ipynb").write_text(json.dumps(notebook))
        pytest_nbval = [sys.executable, "-m", "pytest", "-q", "--nbval", "-p", "no:cacheprovider"]
        options = {"cwd": tmp_path, "capture_output": True, "text": True, "timeout": 300}
        process = subprocess.run([*pytest_nbval, "small.ipynb"], **options)
        return process.returncode, process.stdout + process.stderr

    status, text = run()
    assert status == 1 and "2 failed, 2 passed" in text, text
    assert all(f"FAILED small.ipynb::Cell {number}" in text for number in (2, 3))
    cells[1]["execution_count"] = None  # nbval itself would not compare this cell
    status, text = run()
    assert status > 1 and "make notebooks" in text


def texts(outputs: list[dict]):
    """Where a cell's outputs hold text: (dictionary, key)."""
    for holder in outputs:
        if "text" in holder:
            yield holder, "text"
        for kind, data in holder.get("data", {}).items():
            if isinstance(data, str) and not kind.startswith("image/"):
                yield holder["data"], kind


@each_notebook
def test_every_stored_number_is_compared(path, request):
    """nbval accepts the stored outputs, and rejects them with one number changed."""
    from nbval.plugin import IPyNbFile

    changed = 0
    for item in IPyNbFile.from_parent(request.session, path=path).collect():
        assert item.options["check"] and not item.options["skip"], f"cell {item.cell_num + 1}"
        item.format_output_compare = lambda *args: None  # the difference in words, which takes long
        stored = item.cell.outputs
        assert item.compare_outputs(deepcopy(stored), deepcopy(stored))
        for i, (holder, key) in enumerate(texts(stored)):
            numbers = list(re.finditer(r"\d+", holder[key]))
            for number in numbers[::37]:  # the first of each text among them
                fresh, (start, end) = deepcopy(stored), number.span()
                other, _ = list(texts(fresh))[i]
                other[key] = f"{other[key][:start]}{int(number[0]) + 1}{other[key][end:]}"
                message = f"cell {item.cell_num + 1}, {key}: {number[0]} is not compared"
                assert not item.compare_outputs(fresh, deepcopy(stored)), message
                changed += 1
    assert changed > 5
