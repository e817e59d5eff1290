"""Times `make book` and `make test`, environment in place, files the record `bench-rerun` that the book's front page shows, and writes
the numbers of README.md anew from the records: `python .ci/timing.py` from the root of a clean checkout, on a quiet machine.
`python .ci/timing.py --readme` does the last alone."""

from pathlib import Path
import re
import subprocess
import sys
import time

from rflw import InputError, records

README = Path(__file__).resolve().parents[1] / "README.md"
MARKED = re.compile(
    r"<!--num (\S+?):(.+?):([.\w,%]+)-->.*?<!--/num-->"
)  # <!--num RECORD:PATH:FORMAT-->what is shown<!--/num-->


def timings(commands: list[str], folder: Path = records.FOLDER) -> Path:
    """Run each command once and file how many minutes it took. Raises InputError for one that fails: nothing is filed."""
    rows = []
    with records.timed(
        "bench-rerun", "python .ci/timing.py", config={"commands": commands}
    ) as record:
        for command in commands:
            start = time.perf_counter()
            status = subprocess.run(command.split()).returncode
            if status:
                raise InputError(f"{command}: exit status {status}; nothing was filed")
            rows.append({"what": command, "minutes": round((time.perf_counter() - start) / 60, 2)})
        record["metrics"] = {"rows": rows}
    return records.write(record, folder)


def refreshed(text: str, folder: Path = records.FOLDER) -> str:
    """A text whose marked numbers are those of the records; what has no record yet is "not measured yet"."""

    def number(found: re.Match) -> str:
        name, path, spec = found.groups()
        there = (folder / f"{name}.json").exists()
        shown = (
            format(records.at(records.read(name, folder), path), spec)
            if there
            else "not measured yet"
        )
        return f"<!--num {name}:{path}:{spec}-->{shown}<!--/num-->"

    return MARKED.sub(number, text)


if __name__ == "__main__":
    try:
        if "--readme" not in sys.argv:
            print(timings(["make book", "make test"]))
        README.write_text(refreshed(README.read_text(encoding="utf-8")), encoding="utf-8")
    except InputError as e:
        sys.exit(str(e))
