"""The verdict: the paper's claims beside what is on record. No torch.

`data/paper/claims.yaml` lists the claims, each with its tolerance and the test that answers it. A
verdict is a pure function of the claims and the records; none is typed. `rflw_study.evidence`
collects answers: a count, the runs of a recipe, the times on a card::

  reproduced, not reproduced  all answers, or none, are as claimed, give or take the tolerance
  partly                      some are and some are not, or an interval over seeds reaches beyond
                              the tolerance
  supported, contradicted, undecided on substitute data
                              the same where only data sets answer that the paper did not use; a
                              single seed decides nothing
  not tested                  there is no answer, and `says` tells why; so are the numbers that the
                              paper quotes from others

A score on a data set of the paper is answered by that data set alone. Only differences between
networks have substitutes.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
import math
from pathlib import Path
import re
from typing import Any, Literal

from pydantic import Field, ValidationError
import yaml

from rflw import records
from rflw.errors import InputError, reading
from rflw_study import evidence, paper
from rflw_study.evidence import Answer
from rflw_study.statistics import Interval

FILE = paper.FOLDER / "claims.yaml"
REPRODUCED, PARTLY, NOT_REPRODUCED = "reproduced", "partly", "not reproduced"
SUPPORTED, CONTRADICTED, UNDECIDED = (
    f"{word} on substitute data" for word in ("supported", "contradicted", "undecided")
)
NOT_TESTED = "not tested"
VERDICTS = (REPRODUCED, PARTLY, NOT_REPRODUCED, SUPPORTED, CONTRADICTED, UNDECIDED, NOT_TESTED)
UNITS = {"percent": "%", "x": "times"}  # what is printed for a unit, where that differs
# Digits after the point of our numbers; other units have whole ones.
DIGITS = {"percent": 1, "points": 1, "ms": 1, "FPS": 1, "x": 2, "M": 2, "B": 2}
Relation = Literal["=", ">", ">=", "<"]
Number = tuple[int, str, str] | str  # table, row and column of a cell, or the id of a statement


@dataclass(frozen=True)
class Claim:
    """A number, or a direction, that the paper states, and what answers it."""

    id: str
    quote: str  # the paper's words, letter by letter, or the row and heading of a cell
    where: str  # "Table 3", "section 3.3", "abstract"
    source: str  # own, or quoted [n]
    value: float | None  # in the unit; None for a statement about a picture
    decimals: int  # that the paper prints after the point
    unit: str  # percent, points, ms, FPS, x, M, B, or what is counted
    relation: Relation  # of ours to the value
    tolerance: float = 0.0  # how much ours may miss it, in the unit
    reason: str = ""  # why so much
    test: evidence.Test | None = None  # None for a number that the paper quotes
    note: str = ""  # what a reader must know of the test

    @property
    def kind(self) -> str:
        """The test's kind: "count", "score", ...; "quoted" for a number of others."""
        return self.test.kind if self.test else "quoted"

    @property
    def level(self) -> str:
        """What kind of evidence a verdict takes."""
        return self.test.level if self.test else self.source

    @property
    def stated(self) -> str:
        """What the paper says of the number: "> 5 %"."""
        if self.value is None:
            return "no number"
        plain = self.relation == "=" or self.relation == ">=" and self.value
        relation = "" if plain else f"{self.relation} ".replace(">=", "≥")
        return f"{relation}{self.value:.{self.decimals}f} {UNITS.get(self.unit, self.unit)}".strip()

    def holds(self, ours: Interval) -> bool | None:
        """Whether the whole interval is as claimed; None where only a part of it is.

        A value without an interval stands alone.
        """
        low, high = (ours.mean if math.isnan(end) else end for end in (ours.low, ours.high))
        rounding = 1e-9 if self.relation in ("=", ">=") else 0.0
        least = self.value - self.tolerance - rounding
        most = self.value + self.tolerance + rounding
        if self.relation == "=":
            inside, outside = least <= low and high <= most, high < least or low > most
        elif self.relation == "<":
            inside, outside = high < most, low >= most
        else:
            inside, outside = low > least, high <= least
        return True if inside else False if outside else None


@dataclass(frozen=True)
class Verdict:
    """A claim and what became of it."""

    claim: Claim
    verdict: str  # one of VERDICTS
    level: str  # what kind of evidence it took
    ours: Interval | None  # the first answer that decides
    says: str  # all answers, or what is missing
    records: tuple[str, ...]  # names of those that answered
    answers: tuple[Answer, ...] = ()  # all, with those that do not count

    def row(self) -> dict[str, Any]:
        """What `rflw claims --json` prints of the claim."""
        c, ours = self.claim, self.ours
        return {
            "id": c.id,
            "quote": c.quote,
            "where": c.where,
            "paper": c.value,
            "ours": ours and ours.mean,
            "unit": c.unit,
            "tolerance": c.tolerance,
            "level": self.level,
            "verdict": self.verdict,
            "evidence": {"records": list(self.records), "says": self.says},
            "relation": c.relation,
            "source": c.source,
            "interval": [ours.low, ours.high] if ours and not math.isnan(ours.low) else None,
        }


def number(value: float, unit: str, decimals: int = 0) -> str:
    """One of our numbers with the digits that its unit bears, at least `decimals`: "78.4 %"."""
    digits = max(decimals, DIGITS.get(unit, 0))
    return f"{value:z.{digits}f} {UNITS.get(unit, unit)}".strip()  # z: no "-0.0"


def shown(value: Interval, claim: Claim) -> str:
    """Ours as a reader sees it: "78.4 [77.9, 78.9] %"."""
    mean, low, high = (
        number(end, claim.unit, claim.decimals).partition(" ")
        for end in (value.mean, value.low, value.high)
    )
    spread = "" if math.isnan(value.low) else f" [{low[0]}, {high[0]}]"
    return f"{mean[0]}{spread} {mean[2]}".strip()


# ---------------------------------------------------------------- the file


class Tolerance(evidence.Strict):
    """How much ours may miss a printed value, by one of four rules, and why."""

    one_of = ("value", "digits", "deviations", "share")
    reason: str = Field(min_length=1)
    value: float | None = None  # in the unit
    digits: float | None = None  # of the last place that is printed
    deviations: float | None = None  # of those that are printed
    share: float | None = None  # of the printed value

    def of(self, claim: Claim, deviation: float | None) -> float:
        """How much ours may miss a claim's value, which is printed with such a deviation."""
        if self.digits is not None:
            return self.digits * 10**-claim.decimals
        if self.deviations is not None:
            return self.deviations * deviation
        return self.value if self.share is None else self.share * abs(claim.value)


class Entry(evidence.Strict):
    """One entry of claims.yaml: a column's cells, a statement, a ratio of two, or a quote."""

    one_of = ("cells", "statement", "ratio", "quote")
    cells: tuple[int, str] | None = None  # table and column: a claim for each cell
    statement: str | None = None  # id in text.csv
    ratio: tuple[Number, Number] | None = None
    quote: str | None = None
    id: str = ""
    section: str = ""
    value: int | float | None = None
    unit: str = ""
    source: paper.Source = "own"
    relation: Relation | None = None
    tolerance: str = ""
    test: dict[str, Any] | None = None
    note: str = ""


class File(evidence.Strict):
    """claims.yaml. `networks` has ours for the rows of the tables."""

    tolerances: dict[str, Tolerance]
    networks: dict[str, str]
    claims: list[Any]


def load(path: Path | None = None) -> tuple[Claim, ...]:
    """All claims, in the order of the file, then the results that the paper's text quotes.

    Raises:
        InputError: The file, or the first entry at fault by its number and name; or an own number
            of the paper's tables, or a result of its text, has no claim.
    """
    path = path or FILE
    with reading(path):
        content = yaml.load(path.read_text(encoding="utf-8"), yaml.CSafeLoader)
    try:
        file = File.model_validate(content)
    except ValidationError as e:
        raise InputError(f"{path}: {_first_fault(e)}") from e
    claims: dict[str, Claim] = {}
    for position, entry in enumerate(file.claims, start=1):
        try:
            for claim in _expand(Entry.model_validate(entry), file):
                if claim.id in claims:
                    raise InputError(f"a second claim {claim.id!r}")
                claims[claim.id] = claim
        except (ValidationError, InputError) as e:
            fault = _first_fault(e) if isinstance(e, ValidationError) else e
            raise InputError(f"{path.name}, claim {position}{_name(entry)}: {fault}") from e
    results = [s for s in paper.statements() if s.kind == "result"]
    claims |= {s.id: _of(s) for s in results if s.source != "own"}
    missing = [f"table {c.table}, {c.row}, {c.column}" for c in paper.cells() if c.id not in claims]
    missing += [f"statement {s.id}" for s in results if s.id not in claims]
    if missing:
        raise InputError(f"{path}: no claim for {missing[0]}")
    return tuple(claims.values())


def _first_fault(error: ValidationError) -> str:
    fault = error.errors()[0]
    place = ".".join(map(str, fault["loc"]))
    return f"{place}: {fault['msg']}" if place else fault["msg"].removeprefix("Value error, ")


def _name(entry: Any) -> str:
    """What an entry that may be at fault calls itself."""
    keys = ("id", "statement", "cells") if isinstance(entry, dict) else ()
    names = [entry[key] for key in keys if key in entry]
    return f" ({names[0]})" if names else ""


def _expand(entry: Entry, file: File) -> Iterator[Claim]:
    """The claims of an entry: one for each cell of a column, else one."""
    for claim, cell in _stated(entry):
        if claim.source != "own":
            yield claim
            continue
        if not entry.test:
            raise InputError(f"{claim.id}: no test")
        if entry.tolerance not in file.tolerances:
            known = ", ".join(file.tolerances)
            raise InputError(f"tolerance {entry.tolerance!r}; choose from: {known}")
        rule = file.tolerances[entry.tolerance]
        yield replace(
            claim,
            tolerance=rule.of(claim, cell.uncertainty if cell else None),
            reason=" ".join(rule.reason.split()),
            test=evidence.parse(_place(cell, file.networks) | entry.test),
            note=entry.note,
        )


def _stated(entry: Entry) -> Iterator[tuple[Claim, paper.Cell | None]]:
    """What the paper states, without a test, and the cell where it stands in a table."""
    changes = {key: value for key in ("id", "relation") if (value := getattr(entry, key))}
    if entry.cells:
        for cell in paper.table(entry.cells[0]):
            if cell.column == entry.cells[1]:
                claim = _of(cell)
                yield replace(claim, **changes) if cell.own else claim, cell
    elif entry.statement:
        yield replace(_of(paper.statement(entry.statement)), **changes), None
    elif entry.ratio:
        over, under = (
            paper.statement(place) if isinstance(place, str) else paper.cell(*place)
            for place in entry.ratio
        )
        quote = over.quote
        if isinstance(over, paper.Cell):
            quote = f"{over.heading}: {over.model} {over}, {under.model} {under}"
        claim = replace(_of(over), quote=quote, value=over.value / under.value, decimals=2)
        yield replace(claim, unit="x", **changes), None
    else:
        quote, where = " ".join(entry.quote.split()), paper.section(entry.section)
        value = None if entry.value is None else float(entry.value)
        decimals = len(str(entry.value).partition(".")[2])
        relation = entry.relation or "="
        yield (
            Claim(entry.id, quote, where, entry.source, value, decimals, entry.unit, relation),
            None,
        )


def _of(number: paper.Cell | paper.Statement) -> Claim:
    """A number of the paper as a claim without a test."""
    fields = ("id", "quote", "where", "source", "value", "decimals", "unit", "relation")
    return Claim(*(getattr(number, field) for field in fields))


def _place(cell: paper.Cell | None, networks: dict[str, str]) -> dict[str, str]:
    """What a cell's place in its table adds to a test: its network or row, and the input's size."""
    if cell is None:
        return {}
    place = {"row": cell.row, "column": cell.column}
    if cell.model in networks:
        place = {"model": networks[cell.model]}
    if re.fullmatch(r"\d+x\d+", cell.setting):
        place["size"] = cell.setting
    return place


# ---------------------------------------------------------------- the verdicts


def judge(claim: Claim, recorded: list[dict]) -> Verdict:
    """What records say of one claim.

    Raises:
        InputError: A record lacks what the claim's test reads of its kind.
    """
    if not claim.test:
        why = "a number of others, not a claim of this paper"
        return Verdict(claim, NOT_TESTED, claim.level, None, why, ())
    try:
        answers, missing = evidence.collect(claim, recorded)
    except (LookupError, TypeError, ValueError, AttributeError, ZeroDivisionError) as e:
        raise InputError(
            f"claim {claim.id}: a record cannot answer it ({type(e).__name__}: {e})"
        ) from e
    verdict, ours = _decide(claim, [answer for answer in answers if answer.counts])
    level = claim.level
    if verdict in (REPRODUCED, PARTLY, NOT_REPRODUCED):
        level = level.replace("substitute data", "the paper's data")
    words = [
        f"{answer.what + ': ' if answer.what else ''}{shown(answer.value, claim)}"
        f"{'' if answer.counts else ' (does not count)'}"
        for answer in answers
    ]
    says = "; ".join(words if ours else [missing, *words])
    names = tuple(dict.fromkeys(name for answer in answers for name in answer.records))
    return Verdict(claim, verdict, level, ours, says, names, tuple(answers))


def _decide(claim: Claim, answers: list[Answer]) -> tuple[str, Interval | None]:
    """The verdict by the answers that count, and the first that decides.

    Seeds are few: on substitute data, a value without an interval decides nothing.
    """
    if not answers:
        return NOT_TESTED, None
    if real := [answer.value for answer in answers if not answer.substitute]:
        holds = [claim.holds(value) for value in real]
        partly = NOT_REPRODUCED if all(h is False for h in holds) else PARTLY
        return REPRODUCED if all(holds) else partly, real[0]
    voting = [answer.value for answer in answers if answer.value.n > 1]
    verdicts = {(True,): SUPPORTED, (False,): CONTRADICTED}
    holds = tuple({claim.holds(value) for value in voting})
    return verdicts.get(holds, UNDECIDED), (voting or [answers[0].value])[0]


def verdicts(folder: Path | None = None, path: Path | None = None) -> list[Verdict]:
    """Every claim's verdict by the records of a folder.

    Args:
        folder: Of records; default data/results.
        path: Of the claims; default data/paper/claims.yaml.

    Raises:
        InputError: A claim is at fault, or a record is edited, malformed, or unknown.
    """
    claims, recorded = load(path), records.read_all(folder or records.FOLDER)
    for record in recorded:
        evidence.verify(record)
    return [judge(claim, recorded) for claim in claims]


def tally(judged: Iterable[Verdict]) -> dict[str, int]:
    """{verdict: how many of the paper's own claims}, and "quoted": those of others."""
    judged = list(judged)
    own = [v.verdict for v in judged if v.claim.test]
    return {v: own.count(v) for v in VERDICTS} | {"quoted": len(judged) - len(own)}


def beside(kinds: Iterable[str], folder: Path | None = None) -> list[dict[str, str]]:
    """What chapters end with: the claims that some kinds of test answer, and what became of them.

    Returns:
        Rows {"where", "the paper says", "number", "seen", "verdict"}, all words.
    """
    kinds = {*kinds}
    return [
        {
            "where": v.claim.where,
            "the paper says": v.claim.quote,
            "number": v.claim.stated,
            "seen": f"{v.claim.note} {v.says}".strip(),
            "verdict": v.verdict,
        }
        for v in verdicts(folder)
        if v.claim.kind in kinds
    ]
