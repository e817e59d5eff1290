"""Write the frozen values anew: all of them, or the parts that are named."""

import argparse
import json
from pathlib import Path
import tempfile

from tests import contract


def answers_and_mask() -> dict:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        contract.make_inputs(folder)
        return contract.answers(folder) | {
            "predict": contract.runs_of(contract.prediction(folder)),
        }


PARTS = {
    "commands": contract.commands,
    "names": contract.public_names,
    "shipped": contract.shipped_recipes,
    "recorded": contract.recorded_recipes,
    "networks": contract.networks,
    "answers": answers_and_mask,
}


def lines(value) -> str:
    """JSON with a line for each entry, so that changes can be read."""
    rows = [json.dumps(row) for row in value]
    if isinstance(value, dict):
        rows = [f"{row}: {json.dumps(value[key])}" for row, key in zip(rows, value)]
    start, end = "{}" if isinstance(value, dict) else "[]"
    return f"{start}\n" + ",\n".join(rows) + f"\n{end}\n"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.contract", description=__doc__)
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}; default: all")
    chosen = parser.parse_args().parts or PARTS
    for part in chosen:
        (contract.FOLDER / f"{part}.json").write_text(lines(PARTS[part]()))


if __name__ == "__main__":
    main()
