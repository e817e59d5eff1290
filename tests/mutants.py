"""Tests that bite: small faults put into the code one by one, and whether the tests notice: python -m tests.mutants --results data/results

cosmic-ray makes the faults ("mutants"). Of each group of modules some places are drawn at random, and at each one of the faults that
are possible there. What tells nothing is left out: the annotations of functions. A mutant meets the tests that reach its line, as
coverage.py saw them do in one run of the group's test files; a line that is run when a module is imported concerns all of them, the
fastest first. It is killed if one of them fails, or takes ten times as long; the code as it is must live through the fastest. Mutants that
do what the code did are known by `mutants_equivalent.yaml`, which says why of each, and do not count. Needs `pip install 'rflw[mutants]'`.
"""
import argparse
import ast
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
import difflib
import gc
from importlib import import_module
from itertools import accumulate
import json
from multiprocessing import get_context
import os
from pathlib import Path
import random
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import parso  # noqa: F401 before cosmic_ray, which imports it in a circle
import pytest
import yaml

from rflw import records

GROUPS = {
    "nn": (("nn/blocks", "nn/checkpoints", "nn/encoders", "nn/nasnet", "nn/pooling", "nn/refinenet"),
           ("nn", "nasnet", "checkpoints", "pooling", "tiles", "offline", "golden")),
    "metrics": (("metrics",), ("metrics", "engine")),
    "config": (("config",), ("config",)),
    "claims": (("claims",), ("claims",)),
    "deploy": (("deploy",), ("deploy",)),
}
KNOWN = Path(__file__).with_name("mutants_equivalent.yaml")
PATIENCE = 180  # seconds of tests for a line that is run on import
LEAST, TIMES = 20, 10  # seconds of processor time that tests get, and how many times what they took


@dataclass(frozen=True)
class Mutant:
    """One fault: the file, a line of it before and after, and the whole text after."""

    file: str
    line: int
    before: str
    after: str
    text: str

    @property
    def says(self) -> dict:
        return {"file": self.file, "line": self.line, "before": self.before, "after": self.after}


def places(path: Path) -> dict[tuple, list[tuple]]:
    """{(where it starts, where it ends): [(operator, its occurrence)]} of all faults that are possible in a file."""
    from cosmic_ray import plugins
    from cosmic_ray.ast import ast_nodes, get_ast
    source, found = path.read_text(), {}
    functions = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)]
    arguments = [a for f in functions for a in (*f.args.args, *f.args.kwonlyargs, f.args.vararg, f.args.kwarg) if a]
    annotations = [node for node in (*(f.returns for f in functions), *(a.annotation for a in arguments)) if node]
    nodes = [*ast_nodes(get_ast(source))]
    for name in sorted(plugins.operator_names()):
        try:
            operator = plugins.get_operator(name)()
        except TypeError:  # one that needs settings
            continue
        spots = (spot for node in nodes for spot in operator.mutation_positions(node))
        for occurrence, (start, end) in enumerate(spots):
            if not any((a.lineno, a.col_offset) <= start < (a.end_lineno, a.end_col_offset) for a in annotations):
                found.setdefault((start, end), []).append((name, occurrence))
    return found


def mutants(modules: tuple[str, ...], number: int, seed: int, root: Path) -> list[Mutant]:
    """Some of all that are possible, of places drawn without replacement."""
    from cosmic_ray import plugins
    from cosmic_ray.mutating import mutate_code
    draw = random.Random(seed)
    spots = [(f"rflw/{module}.py", where, faults) for module in modules
             for where, faults in sorted(places(root / f"rflw/{module}.py").items())]
    made = []
    for file, (start, _), faults in draw.sample(spots, min(number, len(spots))):
        name, occurrence = draw.choice(faults)
        source = (root / file).read_text()
        text = mutate_code(source, plugins.get_operator(name)(), occurrence)
        changed = [line[1:].strip() for line in difflib.unified_diff(source.splitlines(), text.splitlines(), n=0, lineterm="")][3:]
        half = len(changed) // 2
        made.append(Mutant(file, start[0], " ".join(changed[:half]), " ".join(changed[half:]), text))
    return made


# ---------------------------------------------------------------- which tests reach which line


class Times:
    """A plugin of pytest that notes how long each test took."""

    def __init__(self):
        self.seconds = {}

    def pytest_runtest_logreport(self, report):
        self.seconds[report.nodeid] = self.seconds.get(report.nodeid, 0.0) + report.duration


def in_child(work, seconds: float | None = None) -> int:
    """Do something in a process of its own, with so much processor time -> its exit code; below 0: the signal that ended it."""
    child = os.fork()
    if child == 0:
        if seconds:
            resource.setrlimit(resource.RLIMIT_CPU, (int(seconds) + 1, int(seconds) + 2))
        null = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(null, stream)
        code = 70
        try:
            code = int(work())
        finally:
            os._exit(code)
    end = time.monotonic() + 60 * (seconds or 60)  # one that sleeps
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > end:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.02)


def _forget() -> None:
    """Have the package and its tests imported anew, from where the path then leads."""
    for name in [name for name in sys.modules if name.split(".")[0] in ("rflw", "tests", "golden")]:
        del sys.modules[name]


def reach(copy: Path, modules: tuple[str, ...], tests: tuple[str, ...]) -> tuple[dict, dict]:
    """-> {file: {line: tests}}, {test: seconds}, of all tests of some files on the code as it is. Raises SystemExit if one fails."""
    import coverage

    def run():
        _forget()
        os.chdir(copy)
        sys.path[:0] = [str(copy), str(copy / "tests")]
        times = Times()
        code = pytest.main(["-q", "-p", "no:cacheprovider", "--cov=rflw", "--cov-context=test", "--cov-report=",
                            *(f"tests/test_{name}.py" for name in tests)], plugins=[times])
        (copy / "times.json").write_text(json.dumps(times.seconds))
        return code

    if code := in_child(run):
        raise SystemExit(f"the tests fail (exit code {code}) on the code as it is: there is nothing to be measured")
    data = coverage.CoverageData(str(copy / ".coverage"))
    data.read()
    lines = {}
    for module in modules:
        file = f"rflw/{module}.py"
        lines[file] = {line: {context.split("|")[0] for context in contexts} for line, contexts in
                       data.contexts_by_lineno(str(copy / file)).items()}
    return lines, json.loads((copy / "times.json").read_text())


def concerned(mutant: Mutant, source: str, lines: dict[int, set[str]], seconds: dict[str, float]) -> list[str]:
    """The tests that reach a mutant, the fastest first."""
    own, inside = set(), set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.stmt, ast.ExceptHandler)):
            start = min([node.lineno, *(decorator.lineno for decorator in getattr(node, "decorator_list", ()))])
            body = getattr(node, "body", None)
            if mutant.line in range(start, body[0].lineno if body else node.end_lineno + 1):
                own = {*range(start, body[0].lineno if body else node.end_lineno + 1)}
                inside = {*range(body[0].lineno, node.end_lineno + 1)} if isinstance(node, ast.FunctionDef) else set()
    tests = set().union(*(lines.get(line, set()) for line in inside or own))  # a function's first line is run on import, whoever calls it
    on_import = "" in tests
    tests = sorted((tests & seconds.keys()) if not on_import else seconds, key=seconds.get)
    return within_patience(tests, seconds) if on_import else tests


def within_patience(tests: list[str], seconds: dict[str, float]) -> list[str]:
    """The first of some tests, as many as there is time for."""
    return [test for test, total in zip(tests, accumulate(map(seconds.get, tests))) if total <= PATIENCE]


# ---------------------------------------------------------------- a mutant and its tests


def copied(within: str) -> Path:
    """A copy of all that git knows here."""
    folder = Path(tempfile.mkdtemp(dir=within))
    files = subprocess.run(["git", "ls-files", "-z"], cwd=records.REPOSITORY, capture_output=True, text=True, check=True).stdout
    for name in filter(None, files.split("\0")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(records.REPOSITORY / name, folder / name)
    return folder


def _begin(within: str) -> None:
    """In a worker: a copy of its own, and the libraries that are slow to import; ours are imported anew for each mutant."""
    global COPY
    for slow in ("fvcore.nn", "hypothesis", "onnxruntime", "seaborn", "sklearn.metrics", "timm", "torchmetrics",
                 "torchvision.models", "typer"):
        import_module(slow)
    _forget()
    gc.freeze()  # what pytest collects garbage from is the mutant's alone
    COPY = copied(within)


def meet(mutant: Mutant, tests: list[str], seconds: float) -> str:
    """-> "killed", "timeout" or "survived"; "not reached" where no test is concerned."""
    if not tests:
        return "not reached"
    path, kept = COPY / mutant.file, (COPY / mutant.file).read_text()
    limit = LEAST + TIMES * seconds

    def run(names):
        def work():
            os.chdir(COPY)
            sys.dont_write_bytecode = True
            os.environ |= {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(COPY)}
            sys.path[:0] = [str(COPY), str(COPY / "tests")]
            return pytest.main(["-x", "-q", "-p", "no:cacheprovider", "-p", "no:nbval", "--assert=plain", *names])
        return in_child(work, limit)

    path.write_text(mutant.text)
    try:
        code = run(tests)
        if code == 4:  # the mutant has other cases of a test than the code had: all of them, then
            code = run(dict.fromkeys(test.split("[")[0] for test in tests))
    finally:
        path.write_text(kept)
    return "survived" if code == 0 else "timeout" if code in (-signal.SIGXCPU, -signal.SIGKILL) else "killed"


def interval(killed: int, of: int) -> list[float]:
    """Of 95 %, after Wilson (1927)."""
    z, share = 1.96, killed / of
    middle, half = share + z * z / (2 * of), z * (share * (1 - share) / of + z * z / (4 * of * of)) ** 0.5
    return [round((middle + sign * half) / (1 + z * z / of), 4) for sign in (-1, 1)]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("groups", nargs="*", help=f"of {', '.join(GROUPS)}; default: all")
    parser.add_argument("--mutants", type=int, default=60, help="for each group")
    parser.add_argument("--minutes", type=float, default=12, help="for each group; those that are not met by then do not count")
    parser.add_argument("--seed", type=int, default=0, help="other ones with another one")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--results", type=Path, help="folder for a record of the figures")
    asked = parser.parse_args()
    names = asked.groups or list(GROUPS)
    known = {(row["file"], row["before"], row["after"]): row["why"] for row in yaml.safe_load(KNOWN.read_text()) or ()}
    command = shlex.join(["python", "-m", "tests.mutants", *asked.groups, "--mutants", str(asked.mutants),
                          "--minutes", f"{asked.minutes:g}", "--seed", str(asked.seed), "--jobs", str(asked.jobs)])
    modules, lived, equal = {}, [], []
    config = {"mutants": asked.mutants, "minutes": asked.minutes, "groups": names}
    with (tempfile.TemporaryDirectory(prefix="mutants-") as within,
          records.timed("-".join(["reliability-mutation", *asked.groups]), command, "reliability", config, seed=asked.seed) as record):
        for name in names:
            files, tests = GROUPS[name]
            drawn = mutants(files, asked.mutants, asked.seed, records.REPOSITORY)
            possible = [places(records.REPOSITORY / f"rflw/{module}.py") for module in files]
            same = [m for m in drawn if (m.file, m.before, m.after) in known]
            lines, seconds = reach(copied(within), files, tests)
            work, until = [], time.monotonic() + 60 * asked.minutes
            for mutant in (m for m in drawn if m not in same):
                chosen = concerned(mutant, (records.REPOSITORY / mutant.file).read_text(), lines[mutant.file], seconds)
                work.append((mutant, chosen, sum(map(seconds.get, chosen))))
            control = Mutant(f"rflw/{files[0]}.py", 0, "", "", (records.REPOSITORY / f"rflw/{files[0]}.py").read_text())
            counts = dict.fromkeys(("killed", "timeout", "survived", "not reached"), 0)
            with ProcessPoolExecutor(asked.jobs, mp_context=get_context("fork"), initializer=_begin, initargs=(within,)) as pool:
                fast = within_patience(sorted(seconds, key=seconds.get), seconds)
                if pool.submit(meet, control, fast, sum(map(seconds.get, fast))).result() != "survived":
                    raise SystemExit(f"{name}: the tests fail on the code as it is where mutants meet them: nothing can be measured")
                for (mutant, *_), became in zip(work, pool.map(meet, *zip(*work))):
                    counts[became] += 1
                    if became in ("survived", "not reached"):
                        lived.append(mutant.says | {"became": became})
                        print(f"{became}: {mutant.file}:{mutant.line}: {mutant.before}  ->  {mutant.after}", flush=True)
                    if time.monotonic() > until:  # those drawn first are as good a sample
                        drawn = drawn[:drawn.index(mutant) + 1]
                        pool.shutdown(wait=False, cancel_futures=True)
                        break
            same = [m for m in drawn if m in same]
            killed = counts["killed"] + counts["timeout"]
            equal += [m.says | {"why": known[m.file, m.before, m.after]} for m in same]
            modules[name] = {"places": sum(map(len, possible)), "possible": sum(len(f) for p in possible for f in p.values()),
                             "mutants": len(drawn), "equivalent": len(same), "killed": killed,
                             "score": round(killed / max(1, len(drawn) - len(same)), 4)}
            print(f"{name}: {modules[name]}", flush=True)
        total = {key: sum(row[key] for row in modules.values()) for key in ("places", "possible", "mutants", "equivalent", "killed")}
        judged = total["mutants"] - total["equivalent"]
        record["metrics"] = {"what": "mutation", **total, "score": round(total["killed"] / judged, 4),
                             "interval": interval(total["killed"], judged), "modules": modules, "survivors": lived, "equivalents": equal}
    print(f"{total['killed']} of {judged} killed: {100 * total['killed'] / judged:.1f} %")
    if asked.results:
        records.write(record, asked.results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
