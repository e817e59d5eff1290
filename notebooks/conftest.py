"""Settings of `pytest --nbval notebooks/`."""

import pytest


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
