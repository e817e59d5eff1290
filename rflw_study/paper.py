"""The numbers that the paper publishes, typed: its tables, and what its text states.

They live as CSV in `data/paper`, one line a number, so that each can be compared with the printed
page in a diff. A cell that the paper prints as `-` has no line. A source is `own`, or `quoted [n]`
where the paper takes the number from its reference n; it prints no such marks, so a cell noted
`source inferred` rests on our reading.

    >>> value(1, "RefineNet-101-LW", "FLOPs")
    52.0
    >>> print(cell(2, "RefineNet-LW-50", "Runtime"))
    19.56±0.29
"""

from collections.abc import Iterable
from dataclasses import dataclass
import difflib
from functools import cache
from pathlib import Path
import re
from typing import Annotated, Literal

import pandas
from pydantic import BeforeValidator, Field, FiniteFloat, TypeAdapter, ValidationError

from rflw.errors import InputError, reading, why

FOLDER = Path(__file__).resolve().parents[1] / "data" / "paper"
TABLES = (1, 2, 3, 4, 5)

_SYMBOLS = {"percent": "%"}  # unit -> what the paper prints for it, where that differs


def _decimals(text: str) -> int:
    """Digits after the point of a number as printed; "5e-4" has 4."""
    mantissa, _, exponent = str(text).partition("e-")
    return len(mantissa.partition(".")[2]) + int(exponent or 0)


Filled = Annotated[str, Field(min_length=1)]
Source = Annotated[str, Field(pattern=r"^(own|quoted \[\d+\])$")]
Decimals = Annotated[int, BeforeValidator(_decimals)]
Spread = Annotated[FiniteFloat | None, BeforeValidator(lambda text: text or None)]


@dataclass(frozen=True)
class Cell:
    """One number of a table, as printed."""

    table: int
    row: Filled  # the model as printed, "RefineNet-101 [46]"
    column: Filled  # the heading as printed, without its unit
    setting: str  # data set and split, or input width x height; empty for parameters
    value: FiniteFloat
    decimals: Decimals  # printed: ours agrees where round(ours, decimals) == value
    uncertainty: Spread  # standard deviation, runtimes only
    unit: Filled  # percent, M (millions), B (billions), ms
    note: str  # "; " between: msc (multi-scale evaluation), footnote n, a link, source inferred
    source: Source
    relation: str = "="  # as of a statement

    @property
    def model(self) -> str:
        """The row without its mark, such as "RefineNet-101" for "RefineNet-101 [46]"."""
        return re.sub(r" (\[\d+\]|\(ours\))$", "", self.row)

    @property
    def heading(self) -> str:
        """Column and unit as the paper heads them, such as "test mIoU,%"."""
        return f"{self.column},{_SYMBOLS.get(self.unit, self.unit)}"

    @property
    def own(self) -> bool:
        """Whether the paper measured the number itself."""
        return self.source == "own"

    @property
    def msc(self) -> bool:
        """Whether the paper marks the number as a multi-scale evaluation."""
        return "msc" in self.note.split("; ")

    @property
    def id(self) -> str:
        """Its name in the ledger, such as "table1-refinenet-101-flops"."""
        return f"table{self.table}-{self.model}-{self.column}".lower().replace(" ", "-")

    @property
    def where(self) -> str:
        """ "Table 1"."""
        return f"Table {self.table}"

    @property
    def quote(self) -> str:
        """Row, heading and number."""
        return f"{self.row}: {self.heading} {self}"

    def __str__(self) -> str:
        """The number as printed: `118`, `82.0`, `46.5 (msc)`, `54.18±0.46`."""
        spread = "" if self.uncertainty is None else f"±{self.uncertainty:.{self.decimals}f}"
        return f"{self.value:.{self.decimals}f}{spread}{' (msc)' if self.msc else ''}"


@dataclass(frozen=True)
class Statement:
    """One number of the running text."""

    id: Filled  # kebab-case name, "fps-fastest-lw"
    section: Filled  # "Abstract", or the section's number; 7 is in the supplement
    kind: Literal["result", "setting"]
    relation: Literal["=", ">"]  # ">" where the text says "more than"
    value: FiniteFloat
    decimals: Decimals
    unit: Filled
    source: Source
    quote: Filled  # letter by letter, but for line breaks and the spaces around ×

    @property
    def where(self) -> str:
        """ "abstract" or "section 3.3"."""
        return section(self.section)


def section(name: str) -> str:
    """The place of a section: "abstract", "section 3.3"."""
    return "abstract" if name == "Abstract" else f"section {name}"


def table(n: int) -> tuple[Cell, ...]:
    """The cells of table `n` (1 to 5) in reading order."""
    if n not in TABLES:
        raise _unknown("table", n, TABLES, "in the paper")
    return _read(FOLDER / f"table{int(n)}.csv", Cell, ("row", "column"))


def cells() -> tuple[Cell, ...]:
    """Every cell of the five tables."""
    return tuple(c for n in TABLES for c in table(n))


def cell(n: int, row: str, column: str) -> Cell:
    """One cell of a table.

    Args:
        n: Of the table, 1 to 5.
        row: As printed, or without its `[46]` or `(ours)`.
        column: As printed, without its unit.

    Raises:
        InputError: A name is unknown, or the cell is printed as `-`; it lists the names near it.
    """
    in_table = table(n)
    in_row = [c for c in in_table if row in (c.row, c.model)]
    if not in_row:
        raise _unknown("row", row, (c.row for c in in_table), f"in table {n}")
    for c in in_row:
        if c.column == column:
            return c
    raise _unknown("column", column, (c.column for c in in_row), f"in table {n}, row {row!r}")


def value(n: int, row: str, column: str) -> float:
    """The number of a cell, in its unit; raises as `cell` does."""
    return cell(n, row, column).value


def statements() -> tuple[Statement, ...]:
    """Every result and setting that the running text states, in reading order."""
    return _read(FOLDER / "text.csv", Statement, ("id",))


def statement(id: str) -> Statement:
    """The statement of that id; raises InputError with the ids near it."""
    by_id = {s.id: s for s in statements()}
    if id not in by_id:
        raise _unknown("statement", id, by_id, "in the text")
    return by_id[id]


@cache
def _read(path: Path, kind: type, key: tuple[str, ...]) -> tuple:
    """Each line of a file as a `kind`; no two of them may share their `key`. Read only once."""
    with reading(path):
        lines = pandas.read_csv(path, dtype=str, keep_default_na=False)
        lines["decimals"] = lines["value"]
    twice, numbers = lines.duplicated(list(key)), []
    for i, values in enumerate(lines.to_dict("records")):
        try:
            numbers.append(TypeAdapter(kind).validate_python(values))
        except ValidationError as e:
            raise InputError(f"{path}, line {i + 2}: {why(e)}") from e
        if twice[i]:
            raise InputError(f"{path}, line {i + 2}: a second {[values[name] for name in key]}")
    return tuple(numbers)


def count_lists(folder: Path) -> dict:
    """Official lists of VOC 2012 as the metrics of a check: how many images, and which are in two.

    Args:
        folder: With `train.txt`, `val.txt`, `test.txt` and `train_aug.txt`, the training images of
            VOC and SBD together as they are usually taken; an id a line.

    Raises:
        InputError: A list is missing or holds an id twice.
    """
    lists = {}
    for name in ("train", "val", "test", "train_aug"):
        path = folder / f"{name}.txt"
        with reading(path):
            ids = path.read_text(encoding="utf-8").split()
        if len({*ids}) < len(ids):
            raise InputError(f"{path}: {len(ids) - len({*ids})} ids stand there twice")
        lists[name] = {*ids}
    augmented = lists.pop("train_aug")
    shared = {name: len(ids & augmented) for name, ids in lists.items()}
    splits = {name: {"images": len(ids)} for name, ids in lists.items()}
    return {
        "data": "voc",
        "splits": splits,
        "images": len(set().union(*lists.values())),
        "augmented": {"images": len(augmented), "shared": shared},
    }


def _unknown(kind: str, name: object, known: Iterable[object], where: str) -> InputError:
    """The error for an unknown name, with the names near it, or all where none is near."""
    names = list(dict.fromkeys(map(str, known)))
    near = difflib.get_close_matches(str(name), names) or names
    return InputError(f"no {kind} {name!r} {where}; choose from: {', '.join(near)}")
