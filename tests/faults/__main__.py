"""Kill, starve and interrupt trainings, preparing of data and campaigns: python -m tests.faults. Exit code 1 if any does not go on to
the same end."""

import argparse
from pathlib import Path
import sys
import tempfile

from rflw import records

from .harness import KILLED, OTHERS, run


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="other moments with another one")
    parser.add_argument("--share", type=float, default=1.0, help="share of the kills")
    parser.add_argument("--only", nargs="*", choices=[*KILLED, *OTHERS], help="some scenarios")
    parser.add_argument("--results", type=Path, help="folder for a record of the figures")
    asked = parser.parse_args()
    command = f"python -m tests.faults --seed {asked.seed}" + (
        f" --share {asked.share:g}" if asked.share != 1 else ""
    )
    with (
        records.timed(
            "reliability-faults", command, "reliability", {"share": asked.share}, seed=asked.seed
        ) as record,
        tempfile.TemporaryDirectory(prefix="rflw-faults-") as work,
    ):
        found = run(Path(work), asked.seed, asked.share, asked.only)["scenarios"]
        record["metrics"] = {
            "what": "faults",
            "kills": sum(row.get("kills", 0) for row in found.values()),
            "held": sum(row["held"] for row in found.values()),
            "scenarios": found,
        }
    if asked.results:
        records.write(record, asked.results)
    print(
        f"{record['metrics']['held']} of {len(found)} scenarios went on to the same end or were refused, after "
        f"{record['metrics']['kills']} kills"
    )
    return 0 if record["metrics"]["held"] == len(found) else 1


if __name__ == "__main__":
    sys.exit(main())
