"""The verdict: the paper's claims beside what is on record. No torch.

`data/paper/claims.yaml` lists the claims, each with its level, its tolerance and the test that
answers it. A verdict is a pure function of the claims and the records; none is typed.
`rflw_study.evidence` collects answers: a count, the runs of a comparison, the times on a card. The
strongest level of evidence that has a vote decides, and the verdict's words carry it::

  reproduced, partly, not reproduced
      by counts, or in the paper's own cell: its network on its data, or on its card
  consistent by construction
      our network, or our tolerance, was made from this number
  supported, contradicted, not decided (on the paper's data; on substitute data or hardware)
      what the paper compares was compared elsewhere; one contrary run blocks "supported"
  agrees, disagrees with the paper's own numbers
      nothing of ours answers it, but other numbers of the paper do
  not decided
      what could answer it has no vote yet, and `says` tells why
  not tested
      there is no answer, and `says` tells what is missing
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cache
import math
from pathlib import Path
import re
from typing import Any, Literal

import pandas
from pydantic import Field
import yaml

from rflw import records
from rflw.errors import InputError, about, choose, reading
from rflw_study import evidence, paper
from rflw_study.evidence import CELL, COMBINATION, COMPUTED, DATA, HARDWARE, Answer
from rflw_study.statistics import Interval

FILE = paper.FOLDER / "claims.yaml"
REPRODUCED, PARTLY, NOT_REPRODUCED = "reproduced", "partly", "not reproduced"
BY_CONSTRUCTION = "consistent by construction"
AGREES, DISAGREES = (f"{word} with the paper's own numbers" for word in ("agrees", "disagrees"))
SUPPORTED, CONTRADICTED, NOT_DECIDED = "supported", "contradicted", "not decided"
NOT_TESTED = "not tested"
ON = {COMBINATION: "the paper's data", DATA: DATA, HARDWARE: HARDWARE}
VERDICTS = (
    *(REPRODUCED, PARTLY, NOT_REPRODUCED, BY_CONSTRUCTION, AGREES, DISAGREES),
    *(f"{word} on {on}" for on in ON.values() for word in (SUPPORTED, CONTRADICTED, NOT_DECIDED)),
    *(NOT_DECIDED, NOT_TESTED),
)
UNITS = {"percent": "%", "x": "times"}  # what is printed for a unit, where that differs
# Digits after the point of our numbers; other units have whole ones.
DIGITS = {"percent": 1, "points": 1, "ms": 1, "FPS": 1, "x": 2, "M": 2, "B": 2}
Relation = Literal["=", ">", ">=", "<"]
Aim = Literal["i", "ii", "iii", "iv", "why", "data"]
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
    level: str = ""  # of the evidence that the test asks for
    aim: str = ""  # of the paper that it belongs to: i to iv; why: its explanations; data
    fixed: str = ""  # commit and time of the tolerance, where runs are judged by it
    repeats: str = ""  # the claim that says the same before
    construction: bool = False  # whether ours was made to meet it
    printed: evidence.PrintedTest | None = None  # what the paper's other numbers say of it

    @property
    def decides(self) -> bool:
        """Whether it is a distinct claim, neither a repeat nor a setting."""
        return bool(self.test) and not self.repeats and self.aim != "data"

    @property
    def kind(self) -> str:
        """The kind of the test ("count", "score", ...); "quoted" for a number of others."""
        return self.test.kind if self.test else "quoted"

    @property
    def stated(self) -> str:
        """What the paper says of the number, such as "> 5 %"."""
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
    level: str  # of the evidence that it rests on, or else that it asks for
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
            "aim": c.aim,
            "repeats": c.repeats,
        }


def number(value: float, unit: str, decimals: int = 0) -> str:
    """One of our numbers with the digits that its unit bears, at least `decimals`: "78.4 %"."""
    digits = max(decimals, DIGITS.get(unit, 0))
    unit = UNITS.get(unit, unit)
    if value == 1:
        unit = unit.replace("families", "family")
    return f"{value:z.{digits}f} {unit}".strip()  # z: no "-0.0"


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
    fixed: str = ""  # commit and time since when it stands; needed where it judges runs

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
    level: Literal["computed", "cell", "combination", "data", "hardware", ""] = ""
    aim: Aim | Literal[""] = ""
    repeats: str = ""
    construction: bool | tuple[str, ...] = False  # or of which cells
    printed: evidence.PrintedTest | None = None
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
    with about(path):
        file = File.of(content)
    claims: dict[str, Claim] = {}
    first: dict[tuple, str] = {}  # what a claim says -> the first that says it
    for position, entry in enumerate(file.claims, start=1):
        with about(f"{path.name}, claim {position}{_name(entry)}"):
            for claim in _expand(Entry.of(entry), file):
                if claim.id in claims:
                    raise InputError(f"a second claim {claim.id!r}")
                said = (str(claim.test), claim.value, claim.relation)
                if claim.test and not claim.repeats and claim.kind not in ("picture", "paper"):
                    claim = replace(claim, repeats=first.get(said, ""))
                first.setdefault(said, claim.id)
                claims[claim.id] = claim
    results = [s for s in paper.statements() if s.kind == "result"]
    claims |= {s.id: _of(s) for s in results if s.source != "own"}
    missing = [f"table {c.table}, {c.row}, {c.column}" for c in paper.cells() if c.id not in claims]
    missing += [f"statement {s.id}" for s in results if s.id not in claims]
    if missing:
        raise InputError(f"{path}: no claim for {missing[0]}")
    return tuple(claims.values())


def _name(entry: Any) -> str:
    """What an entry that may be at fault calls itself."""
    keys = ("id", "statement", "cells") if isinstance(entry, dict) else ()
    return next((f" ({entry[key]})" for key in keys if key in entry), "")


def _expand(entry: Entry, file: File) -> Iterator[Claim]:
    """The claims of an entry: one for each cell of a column, else one."""
    for claim, cell in _stated(entry):
        if claim.source != "own":
            yield claim
            continue
        for part in ("test", "level", "aim"):
            if not getattr(entry, part):
                raise InputError(f"{claim.id}: no {part}")
        choose("tolerance", entry.tolerance, file.tolerances)
        rule = file.tolerances[entry.tolerance]
        if entry.printed:
            evidence.printed(entry.printed)  # a number that is unknown is named
        yield replace(
            claim,
            tolerance=rule.of(claim, cell.uncertainty if cell else None),
            reason=" ".join(rule.reason.split()),
            test=evidence.parse(_place(cell, file.networks) | entry.test),
            note=entry.note,
            level=getattr(evidence, entry.level.upper()),
            fixed=rule.fixed,
            construction=claim.id in entry.construction
            if isinstance(entry.construction, tuple)
            else entry.construction,
            **{key: getattr(entry, key) for key in ("aim", "repeats", "printed")},
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
        claim = Claim(entry.id, quote, where, entry.source, value, decimals, entry.unit, relation)
        yield claim, None


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
        InputError: A record lacks what the claim's test reads of its kind, or is older than the
            tolerance that would judge it.
    """
    if not claim.test:
        why = "a number of others, not a claim of this paper"
        return Verdict(claim, NOT_TESTED, claim.source, None, why, ())
    try:
        answers, missing = evidence.collect(claim, recorded)
    except (LookupError, TypeError, ValueError, AttributeError, ZeroDivisionError) as e:
        if isinstance(e, InputError):
            raise InputError(f"claim {claim.id}: {e}") from e
        raise InputError(
            f"claim {claim.id}: a record cannot answer it ({type(e).__name__}: {e})"
        ) from e
    voting = [answer for answer in answers if not answer.against]
    _refuse_newer(claim, voting, recorded)
    verdict, level, ours = _decide(claim, answers, voting)
    words = [
        f"{answer.what + ': ' if answer.what else ''}{shown(answer.value, claim)}"
        f"{f' (does not count: {answer.against})' if answer.against else ''}"
        for answer in answers
    ]
    if not voting and (not answers or claim.kind in ("time", "compare")):
        words = [missing, *words]
    if claim.printed and verdict in (NOT_TESTED, NOT_DECIDED):
        ours = Interval(evidence.printed(claim.printed), math.nan, math.nan, 1)
        verdict, level = AGREES if claim.holds(ours) else DISAGREES, COMPUTED
        words = [f"by the paper's other numbers: {shown(ours, claim)}", *words]
    if claim.construction and verdict in (REPRODUCED, AGREES):
        verdict = BY_CONSTRUCTION
    names = tuple(dict.fromkeys(name for answer in answers for name in answer.records))
    return Verdict(claim, verdict, level, ours, "; ".join(words), names, tuple(answers))


def _refuse_newer(claim: Claim, voting: list[Answer], recorded: list[dict]) -> None:
    """A tolerance judges no run that is older than itself; counts are no runs."""
    started = {record["name"]: record.get("started", "") for record in recorded}
    for answer in voting if claim.kind != "count" else ():
        fixed = answer.fixed or claim.fixed
        since = fixed.partition(" ")[2]
        for name in answer.records:
            if since and started[name] and started[name] < since:
                raise InputError(
                    f"claim {claim.id}: its tolerance ({fixed}) is newer than {name} "
                    f"({started[name]}), which it may not judge"
                )


def _decide(
    claim: Claim, answers: list[Answer], voting: list[Answer]
) -> tuple[str, str, Interval | None]:
    """Verdict, level, and the answer that is shown: the strongest level that votes decides."""
    if not voting:
        waits = answers and not all(a.level == HARDWARE for a in answers)
        word = NOT_DECIDED if waits or claim.kind == "compare" else NOT_TESTED
        return word, claim.level, answers[0].value if waits else None
    level = min((answer.level for answer in voting), key=evidence.LEVELS.index)
    best = [answer for answer in voting if answer.level == level]
    holds = [answer.holds for answer in best]
    if level in (COMPUTED, CELL):
        partly = NOT_REPRODUCED if all(h is False for h in holds) else PARTLY
        return REPRODUCED if all(holds) else partly, level, best[0].value
    blocked = any(answer.contrary for answer in answers)
    if all(holds) and not blocked:
        word = SUPPORTED
    else:
        word = CONTRADICTED if all(h is False for h in holds) else NOT_DECIDED
    return f"{word} on {ON[level]}", level, best[0].value


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
    """How many of the paper's claims have a verdict, and how many there are of each sort.

    Returns:
        dict: {verdict: distinct claims}; "distinct": their sum; "decided": those of them whose
        verdict is neither "not decided" nor "not tested"; "repeats" and "settings": the paper's
        other numbers; "own": all claims of the paper; "quoted": its numbers of other work.
    """
    judged = list(judged)
    distinct = [v.verdict for v in judged if v.claim.decides]
    own = [v.claim for v in judged if v.claim.test]
    counts = {v: distinct.count(v) for v in VERDICTS} | {"distinct": len(distinct)}
    counts["decided"] = sum(not v.startswith((NOT_DECIDED, NOT_TESTED)) for v in distinct)
    counts["settings"] = sum(c.aim == "data" for c in own)
    counts["repeats"] = len(own) - len(distinct) - counts["settings"]
    return counts | {"own": len(own), "quoted": len(judged) - len(own)}


@cache
def others() -> dict[str, list[dict[str, str]]]:
    """What others measured of a claim, from data/paper/others.csv; no verdict uses it.

    Returns:
        dict: {id of the claim: rows {"claim", "who", "what", "value", "source"}}.
    """
    path = paper.FOLDER / "others.csv"
    with reading(path):
        rows = pandas.read_csv(path, dtype=str, keep_default_na=False)
    return {claim: part.to_dict("records") for claim, part in rows.groupby("claim")}


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
