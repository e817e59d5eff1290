"""The unit tests counted, for the record: python -m tests.suite coverage --results data/results

coverage: with the lines and branches of the package that they reach. lowest versions: in an environment that has the lowest versions
that pyproject.toml allows (`make lowest` makes it and runs this there), with those versions. this Python: under the version that runs
this, e.g. after `make env PYTHON=python3.13`. Exit code 1 if a test fails.
"""

import argparse
from importlib import metadata
import json
from pathlib import Path
import re
import shlex
import sys
import tempfile
import tomllib

import pytest

from rflw import records

BOOK = (
    "tests/test_book.py",
    "tests/test_notebooks.py",
    "tests/test_prose.py",
)  # of the book, whose tools have one version each


class Outcomes:
    """A plugin of pytest that counts."""

    def __init__(self):
        self.counts = {"passed": 0, "failed": 0, "skipped": 0}

    def pytest_runtest_logreport(self, report):
        if report.when == "call" or report.outcome != "passed":
            self.counts[report.outcome] += 1

    def pytest_collectreport(self, report):
        self.counts["failed"] += report.failed


def direct() -> dict[str, str]:
    """The versions here of the packages that the package and its tests ask for."""
    project = tomllib.loads((records.REPOSITORY / "pyproject.toml").read_text())["project"]
    names = sorted(
        re.match(r"[\w-]+", asked)[0]
        for asked in project["dependencies"] + project["optional-dependencies"]["test"]
    )
    return {name: metadata.version(name) for name in names}


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.suite",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("what", choices=("coverage", "lowest versions", "this Python"))
    parser.add_argument("tests", nargs="*", default=["tests"], help="files; default: all")
    parser.add_argument("--results", type=Path, help="folder for a record of the figures")
    asked = parser.parse_args()
    what = (
        f"Python {sys.version_info[0]}.{sys.version_info[1]}"
        if asked.what == "this Python"
        else asked.what
    )
    found, words = Outcomes(), ["-q", "-p", "no:cacheprovider", *asked.tests]
    command = shlex.join(
        [
            "python",
            "-m",
            "tests.suite",
            asked.what,
            *(asked.tests if asked.tests != ["tests"] else ()),
        ]
    )
    with (
        tempfile.TemporaryDirectory() as folder,
        records.timed(
            f"reliability-{what.lower().replace(' ', '-')}",
            command,
            "reliability",
            {"tests": asked.tests},
        ) as record,
    ):
        report = Path(folder) / "coverage.json"
        if asked.what == "coverage":
            words += [
                "--cov=rflw",
                "--cov-branch",
                f"--cov-report=json:{report}",
                "--cov-report=term",
            ]
        elif asked.what == "lowest versions":
            words += [f"--ignore={path}" for path in BOOK]
        code = pytest.main(words, plugins=[found])
        record["metrics"] = {"what": what, **found.counts}
        if asked.what == "coverage":
            files = {
                file: figures["summary"]
                for file, figures in json.loads(report.read_text())["files"].items()
            }
            total = {
                key: sum(row[key] for row in files.values())
                for key in ("num_statements", "covered_lines", "num_branches", "covered_branches")
            }
            record["metrics"] |= {
                "lines": round(total["covered_lines"] / total["num_statements"], 4),
                "branches": round(total["covered_branches"] / total["num_branches"], 4),
                **total,
                "files": {
                    file: round(row["percent_covered"] / 100, 4) for file, row in files.items()
                },
            }
        elif asked.what == "lowest versions":
            record["metrics"] |= {"packages": direct()}
    print(", ".join(f"{value} {key}" for key, value in found.counts.items()))
    if asked.results:
        records.write(record, asked.results)
    return int(bool(code))


if __name__ == "__main__":
    sys.exit(main())
