"""Spoiled files for every parser: python -m tests.fuzz --minutes 5. Exit code 1 if any was not refused as it should be,
or if a parser met none."""

import argparse
from pathlib import Path
import shlex
import sys

from rflw import records

from .run import attack
from .targets import TARGETS


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", help=f"of {', '.join(TARGETS)}; default: all")
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--examples", type=int, help="stop after so many files for each target")
    parser.add_argument("--seed", type=int, default=0, help="other files with another one")
    parser.add_argument(
        "--keep", type=Path, help="folder for files that were not refused as they should be"
    )
    parser.add_argument("--results", type=Path, help="folder for a record of the figures")
    asked = parser.parse_args()
    names = asked.targets or list(TARGETS)
    command = shlex.join(
        [
            "python",
            "-m",
            "tests.fuzz",
            *asked.targets,
            "--minutes",
            f"{asked.minutes:g}",
            "--seed",
            str(asked.seed),
        ]
    )
    with records.timed(
        "reliability-hostile-files",
        command,
        "reliability",
        {"minutes": asked.minutes, "targets": names},
        seed=asked.seed,
    ) as record:
        found = attack(
            names, 60 * asked.minutes, asked.seed * 1_000_000, asked.keep, asked.examples
        )
        total = {
            key: sum(row[key] for row in found["targets"].values())
            for key in ("inputs", "taken", "refused", "crashes", "hangs", "escapes")
        }
        record["metrics"] = {
            "what": "hostile files",
            **total,
            "parsers": len(names),
            "peak_mb": max(row["peak_mb"] for row in found["targets"].values()),
            "slowest_s": max(row["slowest_s"] for row in found["targets"].values()),
            "targets": found["targets"],
        }
    for fault in found["faults"]:
        print({key: value for key, value in fault.items() if value})
    print(", ".join(f"{value} {key}" for key, value in total.items()))
    if asked.results:
        records.write(record, asked.results)
    return (
        1 if found["faults"] or not all(row["inputs"] for row in found["targets"].values()) else 0
    )


if __name__ == "__main__":
    sys.exit(main())
