"""The numbers that the paper publishes, typed: its five tables and the results and settings of its text.

They live as CSV in `data/paper`, one line a number, so that each can be compared with the printed
page in a diff. A cell that the paper prints as `-` has no line. A source is `own`, or `quoted [n]`
where the paper takes the number from its reference n; it prints no such marks, so a cell noted
`source inferred` rests on our reading.

    >>> value(1, "RefineNet-101-LW", "FLOPs")
    52.0
    >>> print(cell(2, "RefineNet-LW-50", "Runtime"))
    19.56±0.29
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
import csv
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
import difflib
from pathlib import Path
import re
from typing import TYPE_CHECKING

from rflw.errors import InputError

if TYPE_CHECKING:
    import pandas

FOLDER = Path(__file__).resolve().parents[1] / "data" / "paper"
TABLES = (1, 2, 3, 4, 5)

_SYMBOLS = {"percent": "%"}  # unit -> what the paper prints for it, where that differs


@dataclass(frozen=True)
class Cell:
    """One number of a table, as printed."""

    table: int
    row: str  # the model as printed, "RefineNet-101 [46]"
    column: str  # the heading as printed, without its unit
    setting: str  # data set and split, or input width x height; empty for parameters
    value: float
    decimals: (
        int  # digits printed after the point: ours agrees where round(ours, decimals) == value
    )
    uncertainty: float | None  # standard deviation, runtimes only
    unit: str  # percent, M (millions), B (billions), ms
    note: (
        str  # "; " between notes: msc (multi-scale evaluation), footnote n, a link, source inferred
    )
    source: str  # own, or quoted [n]

    @property
    def model(self) -> str:
        """The row without its mark: "RefineNet-101" of "RefineNet-101 [46]" or "... (ours)"."""
        return re.sub(r" (\[\d+\]|\(ours\))$", "", self.row)

    @property
    def heading(self) -> str:
        """Column and unit as the paper heads them: "test mIoU,%"."""
        return f"{self.column},{_SYMBOLS.get(self.unit, self.unit)}"

    @property
    def own(self) -> bool:
        """Whether the paper measured the number itself."""
        return self.source == "own"

    @property
    def msc(self) -> bool:
        """Whether the paper marks the number as a multi-scale evaluation."""
        return "msc" in self.note.split("; ")

    def __str__(self) -> str:
        """The number as printed: `118`, `82.0`, `46.5 (msc)`, `54.18±0.46`."""
        spread = "" if self.uncertainty is None else f"±{self.uncertainty:.{self.decimals}f}"
        return f"{self.value:.{self.decimals}f}{spread}{' (msc)' if self.msc else ''}"


@dataclass(frozen=True)
class Statement:
    """One number of the running text."""

    id: str  # kebab-case name, "fps-fastest-lw"
    section: str  # "Abstract", or the section's number; 7 is in the supplement
    kind: str  # result or setting
    relation: str  # "=", or ">" where the text says "more than"
    value: float
    decimals: int
    unit: str
    source: str  # own, or quoted [n]
    quote: str  # the words, letter by letter, but for line breaks and the spaces around ×


def table(n: int) -> tuple[Cell, ...]:
    """The cells of table `n` (1 to 5) in reading order."""
    if n not in TABLES:
        raise _unknown("table", n, TABLES, "in the paper")
    columns = (
        "table",
        "row",
        "column",
        "setting",
        "value",
        "uncertainty",
        "unit",
        "note",
        "source",
    )
    found: dict[tuple[str, str], Cell] = {}
    for place, line in _read(
        f"table{int(n)}.csv", columns, optional=("setting", "uncertainty", "note")
    ):
        if line["table"] != str(int(n)):
            raise InputError(f"{place}: table {line['table']!r} in the file of table {n}")
        number, decimals = _number(place, line["value"])
        spread = _number(place, line["uncertainty"])[0] if line["uncertainty"] else None
        key = line["row"], line["column"]
        if key in found:
            raise InputError(f"{place}: a second value for {key[0]!r}, {key[1]!r}")
        found[key] = Cell(
            **line | {"table": int(n), "value": number, "decimals": decimals, "uncertainty": spread}
        )
    return tuple(found.values())


def cells() -> tuple[Cell, ...]:
    """Every cell of the five tables."""
    return tuple(c for n in TABLES for c in table(n))


def cell(table: int, row: str, column: str) -> Cell:
    """The one cell at `row` (as printed, or without its `[46]` or `(ours)`) and `column` of a table.

    Raises InputError, with the names near it, for a name that is not there, and for a cell printed as `-`.
    """
    in_table = [c for c in cells() if c.table == table]
    in_row = [c for c in in_table if row in (c.row, c.model)]
    found = [c for c in in_row if c.column == column]
    if found:
        return found[0]
    if not in_table:
        raise _unknown("table", table, TABLES, "in the paper")
    if not in_row:
        raise _unknown("row", row, (c.row for c in in_table), f"in table {table}")
    raise _unknown("column", column, (c.column for c in in_row), f"in table {table}, row {row!r}")


def value(table: int, row: str, column: str) -> float:
    """The number at `row` and `column` of a table, in the unit of its cell; raises as `cell` does."""
    return cell(table, row, column).value


def frame(n: int, printed: bool = False) -> pandas.DataFrame:
    """Table `n` as the page shows it: models down, headings with their units across.

    Numbers are floats with NaN for `-`; with `printed` they are the paper's own strings, such as `46.5 (msc)`.
    """
    import pandas

    rows: dict[str, dict[str, float | str]] = {}
    for c in table(n):
        rows.setdefault(c.row, {})[c.heading] = str(c) if printed else c.value
    wide = pandas.DataFrame(list(rows.values()), index=pandas.Index(rows, name="Model"))
    return wide.fillna("-") if printed else wide


def statements() -> tuple[Statement, ...]:
    """Every result and setting that the running text states, in reading order."""
    columns = ("id", "section", "kind", "relation", "value", "unit", "source", "quote")
    found: dict[str, Statement] = {}
    for place, line in _read("text.csv", columns):
        for field, allowed in (("kind", ("result", "setting")), ("relation", ("=", ">"))):
            if line[field] not in allowed:
                raise InputError(
                    f"{place}: {field} {line[field]!r} is none of {', '.join(allowed)}"
                )
        if line["id"] in found:
            raise InputError(f"{place}: a second statement {line['id']!r}")
        number, decimals = _number(place, line["value"])
        found[line["id"]] = Statement(**line | {"value": number, "decimals": decimals})
    return tuple(found.values())


def statement(id: str) -> Statement:
    """The statement of that id; raises InputError with the ids near it."""
    found = {s.id: s for s in statements()}
    if id not in found:
        raise _unknown("statement", id, found, "in the text")
    return found[id]


def _read(
    name: str, columns: tuple[str, ...], optional: tuple[str, ...] = ()
) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield each line of a file in FOLDER with its place, "file, line n"; only `optional` fields may be empty."""
    path = FOLDER / name
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file, strict=True)
            header = tuple(reader.fieldnames or ())
            body = [(reader.line_num, line) for line in reader]
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num + 1}: {error}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: {error}") from error
    if header != columns:
        raise InputError(
            f"{path}, line 1: the columns are {','.join(header)!r:.200}; expected {','.join(columns)}"
        )
    for number, line in body:
        place = f"{path}, line {number}"
        if (
            None in line or None in line.values()
        ):  # how DictReader marks a field too many, or too few
            raise InputError(f"{place}: expected {len(columns)} fields")
        if empty := [c for c in columns if not line[c] and c not in optional]:
            raise InputError(f"{place}: {', '.join(empty)} is empty")
        if not re.fullmatch(r"own|quoted \[\d+\]", line["source"]):
            raise InputError(
                f"{place}: source {line['source']!r} is neither 'own' nor 'quoted [n]'"
            )
        yield place, line


def _number(place: str, text: str) -> tuple[float, int]:
    """A finite number and its digits after the point; "5e-4" has 4."""
    try:
        number = Decimal(text)
    except InvalidOperation:
        number = Decimal("nan")
    if not number.is_finite():
        raise InputError(f"{place}: {text!r} is no number")
    return float(number), max(0, -number.as_tuple().exponent)


def _unknown(kind: str, name: object, known: Iterable[object], where: str) -> InputError:
    """The error for a name that is not there, with the names near it, or all where none is near."""
    names = list(dict.fromkeys(map(str, known)))
    near = difflib.get_close_matches(str(name), names) or names
    return InputError(f"no {kind} {name!r} {where}; there is: {', '.join(near)}")
