"""No test reaches another host, nor does any process that a test starts; one that tries fails, whatever became of the attempt."""

import os
from pathlib import Path
import runpy
import tempfile

import pytest

OFFLINE = Path(__file__).with_name("offline")
os.environ["PYTHONPATH"] = os.pathsep.join(
    filter(None, (str(OFFLINE), os.environ.get("PYTHONPATH")))
)
os.environ.pop("RFLW_WEIGHTS", None)
runpy.run_path(str(OFFLINE / "sitecustomize.py"))


@pytest.fixture(scope="session")
def _tried():
    with tempfile.TemporaryDirectory(prefix="rflw-tests-") as folder:
        path = Path(folder) / "tried"
        path.touch()
        yield path


@pytest.fixture(autouse=True)
def no_network(_tried, monkeypatch):
    """The file that tells of attempts; empty at the end of each test."""
    monkeypatch.setenv("RFLW_TRIED", str(_tried))
    yield _tried
    attempts = _tried.read_text()
    _tried.write_text("")
    assert not attempts, f"this asked another host: {attempts}"
