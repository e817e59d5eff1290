"""The same parsers, attacked by atheris, which keeps files that reach new lines and spoils them further: python -m tests.fuzz.guided.
Exit code 1 if any was not refused as it should be. atheris is no dependency: pip install atheris."""
import argparse
import mmap
from pathlib import Path
import shlex
import struct
import subprocess
import sys
import tempfile
import traceback
import warnings

from rflw import records

ROOT = Path(__file__).resolve().parents[2]
SEEDS = 60  # files that hypothesis makes to begin with
SLOW = 10  # seconds that one file may take


def seeds(target, folder: Path) -> None:
    """Some files of a target's strategy, spoiled and whole ones."""
    from hypothesis import HealthCheck, Phase, given, seed, settings
    made = []

    @settings(max_examples=SEEDS, database=None, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    @seed(0)
    @given(target.strategy())
    def make(content):
        made.append(content)
    make()
    for i, content in enumerate(made):
        (folder / f"{i}").write_bytes(content)


def one(name: str, seconds: int, work: Path) -> None:
    """Attack one parser in this process, which libFuzzer ends; counts go to `work`/counts."""
    import atheris
    with atheris.instrument_imports(include=["rflw"], enable_loader_override=False):
        from rflw.errors import InputError
        from tests.fuzz.targets import TARGETS
    import torch
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    target, inside, corpus = TARGETS[name], work / "in", work / "corpus"
    corpus.mkdir()
    seeds(target, corpus)
    path, file = target.prepare(inside), open(work / "counts", "w+b")
    file.write(bytes(24))
    file.flush()
    counts, numbers = mmap.mmap(file.fileno(), 24), [0, 0, 0]  # inputs, taken, refused

    def attack(data: bytes) -> None:
        path.write_bytes(data)
        numbers[0] += 1
        try:
            target.parse(inside)
            numbers[1] += 1
        except BaseException as e:
            if not isinstance(e, InputError) or "\n" in str(e):
                traceback.print_exc()  # libFuzzer alone does not tell of it
                raise
            numbers[2] += 1
        finally:
            struct.pack_into("<3q", counts, 0, *numbers)

    atheris.Setup([sys.argv[0], str(corpus), f"-max_total_time={seconds}", f"-timeout={SLOW}", "-rss_limit_mb=6000", "-max_len=65536",
                   "-verbosity=0", f"-artifact_prefix={work}/"], attack)
    atheris.Fuzz()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.guided", description=__doc__)
    parser.add_argument("targets", nargs="*", help="parsers' names; default: all")
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--results", type=Path, help="folder for a record of the figures")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        return one(asked.one[0], int(asked.one[1]), Path(asked.one[2]))
    from tests.fuzz.targets import TARGETS
    names = asked.targets or list(TARGETS)
    if unknown := set(names) - set(TARGETS):
        parser.error(f"unknown {', '.join(sorted(unknown))}: of {', '.join(TARGETS)}")
    command = shlex.join(["python", "-m", "tests.fuzz.guided", *asked.targets, "--minutes", f"{asked.minutes:g}"])
    seconds, found = max(1, round(60 * asked.minutes / len(names))), {}
    with records.timed("reliability-hostile-files-guided", command, "reliability", {"minutes": asked.minutes, "targets": names}) as record:
        for name in names:
            with tempfile.TemporaryDirectory(prefix="rflw-guided-") as work:
                run = subprocess.run([sys.executable, "-m", "tests.fuzz.guided", "--one", name, str(seconds), work], cwd=ROOT,
                                     capture_output=True, text=True)
                counts = Path(work) / "counts"
                inputs, taken, refused = struct.unpack("<3q", counts.read_bytes()) if counts.exists() else (0, 0, 0)
                if not inputs:  # it did not come to the parser
                    raise SystemExit(f"{name}: {run.stderr[-2000:]}")
                hung = "ERROR: libFuzzer: timeout" in run.stderr
                found[name] = {"inputs": inputs, "taken": taken, "refused": refused, "crashes": int(run.returncode != 0 and not hung),
                               "hangs": int(hung)}
            print(f"{name:12} {found[name]}", file=sys.stderr, flush=True)
            if run.returncode:
                print(run.stderr[-2000:])
        total = {key: sum(row[key] for row in found.values()) for key in ("inputs", "taken", "refused", "crashes", "hangs")}
        record["metrics"] = {"what": "hostile files, guided by what they reach", **total, "parsers": len(names), "targets": found}
    print(", ".join(f"{value} {key}" for key, value in total.items()))
    if asked.results:
        records.write(record, asked.results)
    return 1 if total["crashes"] + total["hangs"] else 0


if __name__ == "__main__":
    sys.exit(main())
