"""The house: a file imports only from rows below its own, and inside a row only where an arrow says so. And no test is idle."""
import ast
from functools import cache
from pathlib import Path

import pytest
import yaml

PACKAGE = Path(__file__).resolve().parents[1] / "rflw"
ROWS = (
    {"errors", "config", "paper", "records", "datasets.labels"},
    {"nn.blocks", "nn.pooling", "nn.encoders", "nn.nasnet", "nn.refinenet", "nn.checkpoints", "nn.pretrained", "datasets.images", "datasets.matlab",
     "datasets.readers", "datasets.streams", "datasets.transforms", "datasets.synthetic", "datasets.resident", "datasets.prepare",
     "datasets.check", "metrics", "analysis.complexity", "analysis.runtime", "analysis.shapes", "analysis.statistics",
     "analysis.layers", "analysis.reach", "analysis.receptive_field", "analysis.probes", "analysis.saturation", "analysis.timings"},
    {"engine", "tiles", "deploy", "training", "bench", "studies"},
    {"plots", "campaign", "claims"},
    {"cli", "__init__", "__main__"},
)
ARROWS = {("nn.encoders", "nn.nasnet"), ("nn.encoders", "nn.pretrained"), ("nn.pretrained", "nn.checkpoints"),
          ("nn.refinenet", "nn.blocks"), ("nn.refinenet", "nn.encoders"),
          ("nn.pooling", "nn.blocks"), ("datasets.readers", "datasets.images"), ("datasets.readers", "datasets.synthetic"),
          ("datasets.readers", "datasets.prepare"), ("datasets.prepare", "datasets.images"),
          ("datasets.prepare", "datasets.matlab"), ("datasets.streams", "datasets.images"),
          ("datasets.check", "datasets.readers"), ("datasets.check", "datasets.prepare"), ("analysis.runtime", "analysis.shapes"),
          ("analysis.timings", "analysis.statistics"),
          ("analysis.receptive_field", "analysis.layers"), ("analysis.receptive_field", "analysis.reach"),
          ("analysis.probes", "analysis.layers"), ("analysis.probes", "metrics"), ("analysis.saturation", "analysis.layers"),
          ("engine", "tiles"),
          ("training", "engine"), ("deploy", "engine"), ("bench", "engine"), ("bench", "training"), ("bench", "deploy"),
          ("studies", "engine"), ("config", "errors"), ("paper", "errors"), ("records", "errors"), ("__main__", "cli")}
NO_TORCH = {"analysis.statistics", "analysis.timings", "datasets.images", "datasets.matlab", "datasets.readers", "datasets.prepare",
            "datasets.labels", "datasets.streams", "errors", "config", "paper", "records", "plots", "claims"}
MODULES = {".".join(p.relative_to(PACKAGE).with_suffix("").parts): p for p in PACKAGE.rglob("*.py")
           if p.name != "__init__.py" or p.parent == PACKAGE}


def imports(path: Path) -> set[str]:
    """Full names of everything that a file imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return names


def row(module: str) -> int:
    return next(i for i, rooms in enumerate(ROWS) if module in rooms)


@pytest.mark.parametrize("module", MODULES)
def test_every_file_has_a_room_and_imports_downwards(module):
    own = row(module)
    for name in imports(MODULES[module]):
        target = name.removeprefix("rflw.")
        if name.startswith("rflw.") and target in MODULES and target != module:
            assert row(target) < own or (module, target) in ARROWS, f"{module} imports {target}"


@pytest.mark.parametrize("module", sorted(NO_TORCH))
def test_no_torch_where_numbers_are_enough(module):
    assert not {n.split(".")[0] for n in imports(MODULES[module])} & {"torch", "torchvision", "timm", "lightning"}


# ---------------------------------------------------------------- tests


TESTS = Path(__file__).parent


@cache
def functions(path: Path) -> dict[str, ast.FunctionDef]:
    """Every function of a file, those in classes, too, by its name: of several of one name the last."""
    return {node.name: node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)}


def asserts(function: ast.FunctionDef, path: Path, seen: tuple[str, ...] = ()) -> bool:
    """Whether a function can fail by what it finds: by `assert`, `pytest.raises`, an `assert_...` of a library, or a helper that can."""
    for node in ast.walk(function):
        if isinstance(node, ast.Assert):
            return True
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name in ("raises", "warns") or name.startswith("assert_"):
                return True
            helper = functions(path).get(name)
            if helper and name not in seen and asserts(helper, path, (*seen, name)):
                return True
    return False


@pytest.mark.parametrize("path", sorted(TESTS.rglob("test_*.py")), ids=lambda path: path.stem)
def test_no_test_is_without_an_assertion(path):
    tests = [f for f in ast.walk(ast.parse(path.read_text())) if isinstance(f, ast.FunctionDef) and f.name.startswith("test_")]
    assert tests
    assert [f.name for f in tests if not asserts(f, path)] == []


@pytest.mark.parametrize(("body", "expected"), [
    ("print(1)", False), ("assert x", True), ("with pytest.raises(InputError): f()", True), ("torch.testing.assert_close(a, b)", True),
    ("helper()", True), ("idle()", False), ("itself()", False)])
def test_idle_tests_are_told_from_others(tmp_path, body, expected):
    path = tmp_path / "test_x.py"
    path.write_text(f"def helper():\n    assert x\ndef idle():\n    f()\ndef itself():\n    itself()\ndef test_x():\n    {body}\n")
    assert asserts(functions(path)["test_x"], path) is expected


def test_faults_that_are_said_to_change_nothing_are_of_the_code_as_it_is():
    """Of tests.mutants: a line that was changed since is not excused by what was said of it."""
    listed = yaml.safe_load(Path(__file__).with_name("mutants_equivalent.yaml").read_text())
    code = {}
    for file in {row["file"] for row in listed}:
        lines = [line.strip() for line in (PACKAGE.parent / file).read_text().splitlines()]
        code[file] = {" ".join(lines[i:i + n]).strip() for i in range(len(lines)) for n in (1, 2, 3)}
    assert len(listed) > 50 and [row for row in listed if row["before"].strip() not in code[row["file"]]] == []
