"""Write the frozen values anew: all of them, or the parts that are named."""

import json
from pathlib import Path
import sys
import tempfile

import rflw
from tests import contract


def answers() -> dict:
    with tempfile.TemporaryDirectory() as name:
        contract.make_inputs(Path(name))
        return {what: contract.answer(what, Path(name)) for what in contract.ANSWERS}


PARTS = {
    "commands": contract.commands,
    "names": lambda: sorted(rflw.__all__),
    "shipped": contract.shipped_recipes,
    "recorded": contract.recorded_recipes,
    "networks": contract.networks,
    "answers": answers,
}


def lines(value) -> str:
    """JSON with a line for each entry, so that changes can be read."""
    rows = [json.dumps(row) for row in value]
    if isinstance(value, dict):
        rows = [f"{row}: {json.dumps(value[key])}" for row, key in zip(rows, value)]
    start, end = "{}" if isinstance(value, dict) else "[]"
    return f"{start}\n" + ",\n".join(rows) + f"\n{end}\n"


for part in sys.argv[1:] or PARTS:
    (contract.FOLDER / f"{part}.json").write_text(lines(PARTS[part]()))
