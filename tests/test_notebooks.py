"""Stored notebooks are honest: executed from top to bottom, silent on stderr, without errors, light, described; what they say is
compared with what comes out, and a wrong number turns nbval red."""

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


def faults(notebook: dict, size: int = 0) -> list[str]:
    """What is wrong with a stored notebook."""
    found, cells = [], [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    counts = [cell["execution_count"] for cell in cells]
    if counts != list(range(1, len(cells) + 1)):
        found.append(f"execution counts {counts}")
    if notebook["metadata"].get("kernelspec", {}).get("name") != "python3":
        found.append(f"kernel {notebook['metadata'].get('kernelspec')}")
    if size > 2**20:
        found.append(f"{size} bytes")
    for number, cell in enumerate(cells, start=1):
        for output in cell["outputs"]:
            if output["output_type"] == "error":
                found.append(f"cell {number}: error {output['ename']}")
            if output.get("name") == "stderr":
                found.append(f"cell {number}: stderr")
            pictured = any(kind.startswith("image/") for kind in output.get("data", {}))
            if pictured and not cell["metadata"].get("mystnb", {}).get("image", {}).get("alt"):
                found.append(f"cell {number}: picture without alternative text")
        if any(
            tag in cell["metadata"].get("tags", ()) for tag in ("raises-exception", "nbval-skip")
        ):
            found.append(f"cell {number}: not compared")
    return found


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_stored_as_executed(path):
    assert not faults(json.loads(path.read_text(encoding="utf-8")), path.stat().st_size)


def cell(**changes) -> dict:
    return {
        "cell_type": "code",
        "execution_count": 1,
        "metadata": {},
        "outputs": [],
        "source": "",
    } | changes


@pytest.mark.parametrize(
    ("spoilt", "says"),
    [
        (cell(execution_count=None), "execution counts"),
        (cell(execution_count=2), "execution counts"),
        (cell(outputs=[{"output_type": "error", "ename": "KeyError"}]), "error KeyError"),
        (cell(outputs=[{"output_type": "stream", "name": "stderr"}]), "stderr"),
        (
            cell(outputs=[{"output_type": "display_data", "data": {"image/png": ""}}]),
            "without alternative text",
        ),
        (
            cell(outputs=[{"output_type": "display_data", "data": {"image/jpeg": ""}}]),
            "without alternative text",
        ),
        (cell(metadata={"tags": ["nbval-skip"]}), "not compared"),
    ],
)
def test_faults_are_found(spoilt, says):
    found = faults({"cells": [spoilt], "metadata": {"kernelspec": {"name": "python3"}}})
    assert len(found) == 1 and says in found[0]
    assert faults({"cells": [], "metadata": {}}, 2**21) == ["kernel None", f"{2**21} bytes"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_no_cell_was_changed_after_it_ran(path):
    kept = json.loads(stamps.FILE.read_text()).get(path.name)
    assert kept, f"{path.name}: no stamp: make notebooks"
    now = stamps.stamp(path)
    assert (kept["cells"], kept["sources"]) == (now["cells"], now["sources"]), (
        f"{path.name}: a cell changed after it ran: make notebooks"
    )


def test_stamps_tell_changes_apart(tmp_path):
    def write(source, record):
        for folder in ("rflw", "data/results", "notebooks"):
            (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / "rflw" / "a.py").write_text("x = 1\n")
        (tmp_path / "data" / "results" / "r.json").write_text(record)
        path = tmp_path / "notebooks" / "n.ipynb"
        path.write_text(
            json.dumps(
                {"cells": [cell(source=source), {"cell_type": "markdown", "source": "words"}]}
            )
        )
        return stamps.stamp(path, tmp_path)

    first, second, third = write("print(1)", "{}"), write("print(2)", "{}"), write("print(2)", "[]")
    assert first["cells"] == 1
    assert [key for key in first if first[key] != second[key]] == ["sources"]
    assert [key for key in first if second[key] != third[key]] == ["records"]


@pytest.fixture
def small(tmp_path):
    """A notebook that prints a stored number, and how nbval takes it -> run(notebook) -> (exit status, what it says)."""
    (tmp_path / "number.json").write_text('{"miou": 0.6484}')
    (tmp_path / "conftest.py").write_text((ROOT / "notebooks" / "conftest.py").read_text())
    source = "import json\nprint(f\"mIoU {100 * json.load(open('number.json'))['miou']:.2f} %\")"
    stored = cell(
        source=source,
        outputs=[{"output_type": "stream", "name": "stdout", "text": "mIoU 64.84 %\n"}],
        id="a",
    )
    table = cell(
        source="{'mIoU': 64.84}",
        execution_count=2,
        id="b",
        outputs=[
            {
                "output_type": "execute_result",
                "execution_count": 2,
                "metadata": {},
                "data": {"text/plain": "{'mIoU': 64.84}"},
            }
        ],
    )
    notebook = {
        "cells": [stored, table],
        "nbformat": 4,
        "nbformat_minor": 5,
        "metadata": {
            "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}
        },
    }

    def run(changed):
        (tmp_path / "small.ipynb").write_text(json.dumps(changed))
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "pytest",
                "-q",
                "--nbval",
                "-p",
                "no:cacheprovider",
                "small.ipynb",
            ],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=300,
        )
        return done.returncode, done.stdout + done.stderr

    return notebook, run, tmp_path


def test_a_corrupt_number_turns_nbval_red(small):
    notebook, run, folder = small
    status, says = run(notebook)
    assert status == 0 and "2 passed" in says, says
    text = json.dumps(notebook)
    for old, new, failed in (
        ("mIoU 64.84 %", "mIoU 64.85 %", 1),
        ("{'mIoU': 64.84}\"}}", "{'mIoU': 65.84}\"}}", 1),
    ):
        corrupt = text.replace(old, new)
        assert corrupt != text
        status, says = run(json.loads(corrupt))
        assert status == 1 and f"{failed} failed, 1 passed" in says, says
    (folder / "number.json").write_text('{"miou": 0.6485}')  # or the record behind it
    status, says = run(notebook)
    assert status == 1 and "1 failed, 1 passed" in says, says


def test_a_notebook_that_was_not_run_is_refused(small):
    notebook, run, _ = small
    notebook["cells"][1]["execution_count"] = None
    status, says = run(notebook)
    assert status != 0 and "make notebooks" in says


def texts(outputs: list[dict]):
    """Where a cell's outputs hold text: (dictionary, key)."""
    for output in outputs:
        if "text" in output:
            yield output, "text"
        for kind, data in output.get("data", {}).items():
            if isinstance(data, str) and not kind.startswith("image/"):
                yield output["data"], kind


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_stored_number_is_compared(path, request):
    """As nbval judges the outputs of the book's own notebooks: as they are they pass, and with any number changed they do not."""
    from nbval.plugin import IPyNbFile

    spoilt = 0
    for item in IPyNbFile.from_parent(request.session, path=path).collect():
        assert item.options["check"] and not item.options["skip"], (
            f"cell {item.cell_num + 1}: nbval does not compare it"
        )
        item.format_output_compare = lambda *args: None  # the difference in words, which takes long
        stored = item.cell.outputs
        assert item.compare_outputs(deepcopy(stored), deepcopy(stored))
        for i, (holder, key) in enumerate(texts(stored)):
            for found in [*re.finditer(r"\d+", holder[key])][
                ::37
            ]:  # one in 37 of each text, the first among them
                fresh = deepcopy(stored)
                other, _ = [*texts(fresh)][i]
                other[key] = (
                    f"{holder[key][: found.start()]}{int(found[0]) + 1}{holder[key][found.end() :]}"
                )
                assert not item.compare_outputs(fresh, deepcopy(stored)), (
                    f"cell {item.cell_num + 1}, {key}: {found[0]} is not compared"
                )
                spoilt += 1
    assert spoilt > 5
