"""Settings of `pytest --nbval notebooks/`."""

import os
from pathlib import Path
import sys

import pytest

# Notebooks print the same whoever runs them: no warnings, no progress bars, nobody's own settings;
# `!rflw` runs the command of this environment.
os.environ |= {
    "PYTHONWARNINGS": "ignore",
    "PYTHONHASHSEED": "0",
    "TQDM_DISABLE": "1",
    "PYDEVD_DISABLE_FILE_VALIDATION": "1",
    "JUPYTER_NO_CONFIG": "1",
    "JUPYTER_PLATFORM_DIRS": "1",
    "IPYTHONDIR": str(Path(__file__).resolve().parents[1] / "_build" / "ipython"),
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
}
os.environ.pop("MPLBACKEND", None)
if "PYTEST_XDIST_WORKER" in os.environ:  # side by side, each notebook computes on one core
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give slow cells time to print, and refuse a notebook that was not stored as executed from top to bottom: nbval
    compares a cell without an execution count with nothing, and passes it."""
    for item in items:
        cell = getattr(item, "cell", None)
        if cell is None:
            continue
        item.output_timeout = 60  # seconds; nbval's own 5 are short on a busy machine
        count, place = cell.get("execution_count"), item.cell_num + 1
        if count != place:
            raise pytest.UsageError(
                f"{item.nodeid}: execution count {count} where {place} should be: `make notebooks`"
            )
