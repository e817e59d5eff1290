"""The house: two packages, one direction, no circles. And no test is idle."""

import ast
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("rflw", "rflw_study")
# No torch where numbers are enough: `rflw claims`, `rflw records` and the book's pages start at once.
NO_TORCH = {
    "rflw.errors",
    "rflw.config",
    "rflw.records",
    "rflw.plots",
    "rflw.video",
    "rflw.data.labels",
    "rflw.data.images",
    "rflw.data.readers",
    "rflw_study.statistics",
    "rflw_study.timings",
    "rflw_study.prepare",
    "rflw_study.paper",
    "rflw_study.claims",
    "rflw_study.evidence",
    "rflw_study.figures",
}
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for package in PACKAGES
    for path in (ROOT / package).rglob("*.py")
}


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


def defined(path: Path) -> list[ast.FunctionDef]:
    """Every function of a file, those in classes, too."""
    nodes = ast.walk(ast.parse(path.read_text()))
    return [node for node in nodes if isinstance(node, ast.FunctionDef)]


# Lines that no place may exceed, formatted at 100 columns. The aim: 4500, 3600, 450, 6500, 700.
LINES = {"rflw": 7817, "rflw_study": 6822, "book/_ext": 938, "tests": 9531, "reliability": 627}


@pytest.mark.parametrize("place", LINES)
def test_places_keep_to_their_budgets(place):
    lines = sum(len(path.read_text().splitlines()) for path in (ROOT / place).rglob("*.py"))
    assert 0 < lines <= LINES[place]


@pytest.mark.parametrize("module", MODULES)
def test_no_function_is_longer_than_60_lines(module):
    found = defined(MODULES[module])
    assert [f.name for f in found if f.end_lineno - f.lineno >= 60] == []


def test_the_package_never_imports_the_study():
    assert len(MODULES) > 40
    for module, path in MODULES.items():
        imported = {name.split(".")[0] for name in imports(path)}
        assert module.split(".")[0] != "rflw" or "rflw_study" not in imported, module


@pytest.mark.parametrize("module", [module for module in MODULES if module.startswith("rflw.nn.")])
def test_networks_need_nothing_but_errors(module):
    ours = {name for name in imports(MODULES[module]) if name.split(".")[0] == "rflw"}
    assert all(name.startswith(("rflw.nn", "rflw.errors")) or name == "rflw" for name in ours)


def test_no_file_imports_itself_by_way_of_others():
    arrows = {
        module: {name for name in imports(path) if name in MODULES} - {module, "rflw"}
        for module, path in MODULES.items()
    }
    arrows["rflw"] = set()  # imports its parts only when their names are used
    while True:  # take away files that import nothing that is left
        leaves = {module for module, targets in arrows.items() if not targets & arrows.keys()}
        if not leaves:
            break
        arrows = {module: targets for module, targets in arrows.items() if module not in leaves}
    assert not arrows


@pytest.mark.parametrize("module", sorted(NO_TORCH))
def test_no_torch_where_numbers_are_enough(module):
    imported = {name.split(".")[0] for name in imports(MODULES[module])}
    assert not imported & {"torch", "torchvision", "timm", "lightning"}


# ---------------------------------------------------------------- tests


TESTS = Path(__file__).parent


@cache
def functions(path: Path) -> dict[str, ast.FunctionDef]:
    """By their names; of several of one name the last."""
    return {function.name: function for function in defined(path)}


def asserts(function: ast.FunctionDef, path: Path, seen: tuple[str, ...] = ()) -> bool:
    """Whether a function can fail by what it finds: by `assert`, `pytest.raises`, an `assert_...` of a library, or a helper that can."""
    for node in ast.walk(function):
        if isinstance(node, ast.Assert):
            return True
        if isinstance(node, ast.Call):
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            if name in ("raises", "warns") or name.startswith("assert_"):
                return True
            helper = functions(path).get(name)
            if helper and name not in seen and asserts(helper, path, (*seen, name)):
                return True
    return False


@pytest.mark.parametrize("path", sorted(TESTS.rglob("test_*.py")), ids=lambda path: path.stem)
def test_no_test_is_without_an_assertion(path):
    tests = [function for function in defined(path) if function.name.startswith("test_")]
    assert tests
    assert [f.name for f in tests if not asserts(f, path)] == []


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("print(1)", False),
        ("assert x", True),
        ("with pytest.raises(InputError): f()", True),
        ("torch.testing.assert_close(a, b)", True),
        ("helper()", True),
        ("idle()", False),
        ("itself()", False),
    ],
)
def test_idle_tests_are_told_from_others(tmp_path, body, expected):
    path = tmp_path / "test_x.py"
    path.write_text(
        f"def helper():\n    assert x\ndef idle():\n    f()\ndef itself():\n    itself()\ndef test_x():\n    {body}\n"
    )
    assert asserts(functions(path)["test_x"], path) is expected
