"""Times `make book` and `make test`, environment in place, and files the record `bench-rerun` that the book's front page shows:
`python .ci/timing.py` from the root of a clean checkout."""
import subprocess
import time

from rflw import records

DOES = {"make book": "executes every notebook, renders the book", "make test": "unit tests; every notebook against its stored outputs"}


def main() -> None:
    rows = []
    with records.timed("bench-rerun", "python .ci/timing.py", config={"commands": list(DOES)}) as record:
        for command, does in DOES.items():
            start = time.perf_counter()
            subprocess.run(command.split(), check=True)
            rows.append({"what": command, "does": does, "minutes": round((time.perf_counter() - start) / 60, 2)})
        record["metrics"] = {"rows": rows}
    print(records.write(record))


if __name__ == "__main__":
    main()
