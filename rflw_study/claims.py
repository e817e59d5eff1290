"""The verdict: the paper's claims beside what is on record. No torch.

`data/paper/claims.yaml` lists the claims, each with its tolerance and the test that answers it. A verdict is a pure function of
the claims and the records; none is typed. A test collects answers: a count, the runs of a recipe, the times on a card.

  reproduced, not reproduced  all answers, or none, are as claimed, give or take the tolerance
  partly                      some are and some are not, or an interval over seeds reaches beyond the tolerance
  supported, contradicted, undecided on substitute data
                              the same where only data sets answer that the paper did not use; a single seed decides nothing
  not tested                  there is no answer, and `says` tells why; so are the numbers that the paper quotes from others

A score on a data set of the paper is answered by that data set alone. Only differences between networks have substitutes.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import product
import math
from pathlib import Path

import yaml

from rflw import records
from rflw.config import Recipe
from rflw.errors import InputError
from rflw.recipes import OWN, RECIPES
from rflw_study import paper
from rflw_study.statistics import Interval, mean_interval, paired_difference
from rflw_study.timings import timings

FILE = paper.FOLDER / "claims.yaml"
REPRODUCED, PARTLY, NOT_REPRODUCED, NOT_TESTED = (
    "reproduced",
    "partly",
    "not reproduced",
    "not tested",
)
SUPPORTED, CONTRADICTED, UNDECIDED = (
    f"{word} on substitute data" for word in ("supported", "contradicted", "undecided")
)
VERDICTS = (REPRODUCED, PARTLY, NOT_REPRODUCED, SUPPORTED, CONTRADICTED, UNDECIDED, NOT_TESTED)
PAPER_DATA = {
    "voc": "PASCAL VOC 2012",
    "nyu": "NYUDv2",
    "person": "PASCAL Person-Part",
    "context": "PASCAL Context",
    "cityscapes": "Cityscapes",
}
# Multiply-adds for each unit of `rflw.complexity`: the paper does not say what it counts. The first rule is the simplest
# of those that meet most of its numbers; a number that only another one meets is met partly (see the chapter on counting).
KINDS = ("conv", "pool", "norm", "activation", "resize")
COUNTING = (1, 1, 0, 0, 0)
OTHER_COUNTING = tuple(
    rule for rule in product((1,), (0, 1), (0, 1, 2), (0, 1), (0, 1)) if rule != COUNTING
)
CARD = "1080 Ti"  # the paper's
UNITS = {"percent": "%", "x": "times"}  # what is printed for a unit, where that differs
DIGITS = {
    "percent": 1,
    "points": 1,
    "ms": 1,
    "FPS": 1,
    "x": 2,
    "M": 2,
    "B": 2,
}  # after the point, of ours; others are whole


@dataclass(frozen=True)
class Claim:
    """A number, or a direction, that the paper states, and what answers it."""

    id: str
    quote: str  # letter by letter, or the row and heading of a cell
    where: str  # "Table 3", "section 3.3", "abstract"
    source: str  # own, or quoted [n]
    value: float | None  # None: a statement about a picture
    decimals: int  # printed after the point
    unit: str
    relation: str  # of ours to the value: "=", ">", ">=", "<"
    tolerance: float = 0.0  # in the unit
    reason: str = ""  # why so much
    test: dict | None = None  # None: quoted
    note: str = ""

    @property
    def kind(self) -> str:
        """The test's: "count", "score", ...; "quoted" for a number of others."""
        return next(kind for kind in TESTS if kind in self.test) if self.test else "quoted"

    @property
    def level(self) -> str:
        """What kind of evidence a verdict takes."""
        return TESTS[self.kind].level(self) if self.test else self.source

    @property
    def stated(self) -> str:
        """What the paper says of the number: "> 5 %"."""
        if self.value is None:
            return "no number"
        relation = (
            ""
            if self.relation == "=" or self.relation == ">=" and self.value
            else f"{self.relation} ".replace(">=", "≥")
        )
        return f"{relation}{self.value:.{self.decimals}f} {UNITS.get(self.unit, self.unit)}".strip()

    def holds(self, ours: Interval) -> bool | None:
        """Whether the whole interval is as claimed; None where only a part of it is. A value without an interval stands alone."""
        low, high = (ours.mean if math.isnan(end) else end for end in (ours.low, ours.high))
        least = (
            self.value - self.tolerance - 1e-9
            if self.relation in ("=", ">=")
            else self.value - self.tolerance
        )
        most = (
            self.value + self.tolerance + 1e-9
            if self.relation == "="
            else self.value + self.tolerance
        )
        if self.relation == "=":
            return (
                True
                if least <= low and high <= most
                else False
                if high < least or low > most
                else None
            )
        if self.relation == "<":
            return True if high < most else False if low >= most else None
        return True if low > least else False if high <= least else None


@dataclass(frozen=True)
class Answer:
    """What one count, recipe, pair of recipes or card says, in the claim's unit."""

    what: str
    value: Interval
    records: tuple[str, ...]
    substitute: bool = False  # from data that the paper did not use
    counts: bool = True  # towards the verdict; what does not is only told


@dataclass(frozen=True)
class Verdict:
    """A claim and what became of it."""

    claim: Claim
    verdict: str  # one of VERDICTS
    level: str
    ours: Interval | None  # the first answer that decides
    says: str  # all answers, or why there is none
    records: tuple[str, ...]  # names
    answers: tuple[Answer, ...] = ()  # all, with those that do not count

    def row(self) -> dict:
        """For JSON: what `rflw claims --json` prints of a claim."""
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
    """One of our numbers with as many digits as its unit bears, at least `decimals`: "78.4 %"."""
    return (
        f"{value:z.{max(decimals, DIGITS.get(unit, 0))}f} {UNITS.get(unit, unit)}".strip()
    )  # z: no "-0.0"


# ---------------------------------------------------------------- the claims


def load(path: Path | None = None) -> tuple[Claim, ...]:
    """All claims. Raises InputError for the first that is malformed, has no test, or of which there are two, and for an own number
    of the paper's tables or a result of its text that is no claim."""
    path = path or FILE
    try:
        content = _yaml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as e:
        raise InputError(f"{path}: {e}") from e
    except yaml.YAMLError as e:
        raise InputError(f"{path}: not YAML ({' '.join(str(e).split())})") from e
    if not isinstance(content, dict) or set(content) != {"tolerances", "networks", "claims"}:
        raise InputError(f"{path}: expected tolerances, networks and claims")
    found: dict[str, Claim] = {}
    for number, entry in enumerate(content["claims"] or [], start=1):
        name = (
            entry.get("id") or entry.get("statement") or entry.get("cells")
            if isinstance(entry, dict)
            else type(entry).__name__
        )
        place = f"{path.name}, claim {number} ({name})"
        try:
            claims = list(_expand(entry, content["networks"], content["tolerances"]))
        except InputError as e:
            raise InputError(f"{place}: {e}") from e
        except (TypeError, KeyError, ValueError, AttributeError) as e:
            raise InputError(f"{place}: malformed ({type(e).__name__}: {e})") from e
        for claim in claims:
            if claim.id in found:
                raise InputError(f"{place}: a second claim {claim.id!r}")
            found[claim.id] = claim
    for s in paper.statements():
        if s.kind == "result" and s.source != "own":
            found[s.id] = Claim(
                s.id,
                s.quote,
                _section(s.section),
                s.source,
                s.value,
                s.decimals,
                s.unit,
                s.relation,
            )
    missing = [
        f"table {c.table}, {c.row}, {c.column}" for c in paper.cells() if _cell_id(c) not in found
    ]
    missing += [
        f"statement {s.id}" for s in paper.statements() if s.kind == "result" and s.id not in found
    ]
    if missing:
        raise InputError(f"{path}: no claim for {missing[0]}")
    return tuple(found.values())


def _yaml(text: str):
    """What a text says, of plain types alone. Raises YAMLError for what is none, and for lists in lists without end, which would
    crash the reader."""
    loader, depth = getattr(yaml, "CSafeLoader", yaml.SafeLoader), 0
    for event in yaml.parse(text, loader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(
            event, yaml.CollectionEndEvent
        )
        if depth > 40:
            raise yaml.YAMLError("nested too deeply")
    return yaml.load(text, loader)


FIELDS = {
    "id",
    "quote",
    "section",
    "value",
    "unit",
    "source",
    "cells",
    "statement",
    "ratio",
    "relation",
    "tolerance",
    "test",
    "note",
}


def _expand(entry: dict, networks: dict[str, str], tolerances: dict) -> Iterable[Claim]:
    """The claims of one entry of the file: one for each cell of a column, else one."""
    if unknown := set(entry) - FIELDS:
        raise InputError(
            f"unknown field {', '.join(sorted(map(str, unknown)))}; there is: {', '.join(sorted(FIELDS))}"
        )
    test, note, relation = entry.get("test"), entry.get("note", ""), entry.get("relation")

    def claim(id, quote, where, source, value, decimals, unit, test, relation="=", deviation=None):
        if not isinstance(id, str) or not isinstance(quote, str):
            raise InputError(f"id {id!r} and quote {quote!r}: words")
        if relation not in ("=", ">", ">=", "<"):
            raise InputError(f"relation {relation!r}: one of = > >= <")
        if source != "own":
            return Claim(id, quote, where, source, value, decimals, unit, relation)
        if not test:
            raise InputError(f"{id}: no test")
        if len(set(test) & set(TESTS)) != 1:
            raise InputError(f"{id}: no test of one kind; there is: {', '.join(TESTS)}")
        TESTS[next(iter(set(test) & set(TESTS)))].check(test)
        tolerance = tolerances.get(entry.get("tolerance"))
        if not tolerance or not tolerance.get("reason"):
            raise InputError(
                f"{id}: tolerance {entry.get('tolerance')!r} is none with a reason; there is: {', '.join(tolerances)}"
            )
        return Claim(
            id,
            quote,
            where,
            source,
            value,
            decimals,
            unit,
            relation,
            _tolerance(tolerance, value, decimals, deviation),
            " ".join(tolerance["reason"].split()),
            test,
            note,
        )

    if "cells" in entry:
        table, column = entry["cells"]
        for c in [c for c in paper.table(table) if c.column == column]:
            own = (
                {"model": networks[c.model]}
                if c.model in networks
                else {"row": c.row, "column": c.column}
            )
            size = {"size": c.setting} if "x" in c.setting else {}
            yield claim(
                _cell_id(c),
                f"{c.row}: {c.heading} {c}",
                f"Table {table}",
                c.source,
                c.value,
                c.decimals,
                c.unit,
                test and own | size | test,
                relation if c.own and relation else "=",
                c.uncertainty,
            )
    elif "statement" in entry:
        s = paper.statement(entry["statement"])
        yield claim(
            entry.get("id", s.id),
            s.quote,
            _section(s.section),
            s.source,
            s.value,
            s.decimals,
            s.unit,
            test,
            relation or s.relation,
        )
    elif "ratio" in entry:
        over, under = (
            paper.statement(key) if isinstance(key, str) else paper.cell(*key)
            for key in entry["ratio"]
        )
        where = f"Table {over.table}" if isinstance(over, paper.Cell) else _section(over.section)
        quote = (
            over.quote
            if isinstance(over, paper.Statement)
            else f"{over.heading}: {over.model} {over}, {under.model} {under}"
        )
        yield claim(
            entry["id"],
            quote,
            where,
            "own",
            over.value / under.value,
            2,
            "x",
            test,
            relation or "=",
        )
    else:
        decimals = len(str(entry.get("value")).partition(".")[2])
        value = float(entry["value"]) if "value" in entry else None
        yield claim(
            entry["id"],
            " ".join(entry["quote"].split()),
            _section(entry["section"]),
            entry.get("source", "own"),
            value,
            decimals,
            entry.get("unit", ""),
            test,
            relation or "=",
        )


def _tolerance(rule: dict, value: float, decimals: int, deviation: float | None) -> float:
    """How much ours may differ: a number, digits of the last place printed, printed deviations, or a share of the value."""
    if "digits" in rule:
        return rule["digits"] * 10**-decimals
    if "deviations" in rule:
        return rule["deviations"] * deviation
    return rule["share"] * abs(value) if "share" in rule else float(rule["value"])


def _cell_id(c: paper.Cell) -> str:
    return f"table{c.table}-{c.model}-{c.column}".lower().replace(" ", "-")


def _section(section: str) -> str:
    return "abstract" if section == "Abstract" else f"section {section}"


def networks() -> list[str]:
    """Every network that a claim wants counted."""
    tests = [claim.test for claim in load() if claim.kind == "count"]
    return sorted({model for test in tests for model in _models(test)})


def _models(test: dict) -> list[str]:
    """All that a test names."""
    pairs = [model for pair in test.get("saved", ()) for model in pair]
    return [*test.get("models", ()), *pairs, *([test["model"]] if "model" in test else [])]


# ---------------------------------------------------------------- the records


def check(record: dict) -> None:
    """Raises InputError for a record that is of no known experiment, or lacks what its kind must have."""
    name, kind = record["name"], record["kind"]
    if not isinstance(kind, str) or kind not in RECORDS:
        raise InputError(
            f"record {name}: of an unknown experiment (kind {kind!r}); there is: {', '.join(RECORDS)}"
        )
    try:
        RECORDS[kind](record)
    except InputError as e:
        raise InputError(f"record {name}: {e}") from e
    except (KeyError, TypeError, ValueError, AttributeError) as e:
        raise InputError(f"record {name}: malformed ({type(e).__name__}: {e})") from e


def _check_train(record: dict) -> None:
    recipe = Recipe.of(record["config"])
    if recipe.name not in RECIPES and recipe.name != OWN.name:
        raise InputError(
            f"of an unknown experiment (recipe {recipe.name!r}); `rflw recipes` lists them"
        )
    if record["status"] == "done":
        _share(record["metrics"]["miou"])


def _check_eval(record: dict) -> None:
    _share(record["metrics"]["miou"])
    _ = [
        record["config"][key] for key in ("checkpoint", "model", "data", "split", "scales", "flip")
    ]


def _check_check(record: dict) -> None:
    _ = (
        record["metrics"]["data"],
        [(part["images"], part["pixels"]) for part in record["metrics"]["splits"].values()],
    )


def _check_bench(record: dict) -> None:
    for row in record["metrics"]["rows"]:
        if record["name"].startswith("bench-runtime"):
            _ = (
                row["model"],
                row["mode"],
                row["device"],
                row["batch"],
                tuple(row["size"]),
                row["latency_ms"]["mean"] / 1,
            )
        if record["name"] == "bench-rerun":
            _ = row["what"], row["minutes"] / 1


def _check_complexity(record: dict) -> None:
    for row in record["metrics"]["rows"]:
        _ = (
            row["params"] / 1,
            [row["macs"][kind] / 1 for kind in KINDS],
            row["parts"]["decoder"]["kernels"],
            row["taps"],
            row["classes"],
        )


def _check_study(record: dict) -> None:
    """Of what the blocks do."""
    _, metrics = (
        [record["config"][key] for key in ("checkpoint", "model", "data")],
        record["metrics"],
    )
    if record["kind"] == "probe":
        _ = [
            (sum(head["miou"]), sum(head["accuracy"]))
            for place in metrics["places"].values()
            for head in place["heads"].values()
        ]
    elif record["kind"] == "saturation":
        _ = metrics["miou"] / 1, [group["miou_without"] / 1 for group in metrics["groups"].values()]
    else:
        _ = metrics["method"], metrics["size"], metrics["images"]
        _ = [
            [layer["side"][key] for key in ("mean", "low", "high", "n")]
            for layer in metrics["layers"].values()
            if "side" in layer or not layer["dead"]
        ]  # a layer whose units are all dead has none


def _check_reliability(record: dict) -> None:
    _ = (
        record["metrics"]["what"],
        [row / 1 for row in record["metrics"].values() if not isinstance(row, (str, dict, list))],
    )


def _share(value: float | None) -> None:
    if value is not None and not 0 <= value <= 1:
        raise InputError(f"mIoU {value}: from 0 to 1")


RECORDS = {
    "train": _check_train,
    "eval": _check_eval,
    "check": _check_check,
    "bench": _check_bench,
    "complexity": _check_complexity,
    "probe": _check_study,
    "saturation": _check_study,
    "erf": _check_study,
    "pictures": lambda record: None,
    "reliability": _check_reliability,
}


def scores(found: Iterable[dict], recipe: str) -> dict[int, tuple[float, str]]:
    """{seed: (mIoU in percent, record's name)} of finished runs with just this recipe's settings."""
    runs = [
        r
        for r in found
        if r["kind"] == "train" and r["status"] == "done" and r["config"]["name"] == recipe
    ]
    return {
        r["seed"]: (100 * r["metrics"]["miou"], r["name"])
        for r in runs
        if r["metrics"]["miou"] is not None
        and Recipe.of(r["config"]).hash() == RECIPES[recipe].hash()
    }


# ---------------------------------------------------------------- the tests


@dataclass(frozen=True)
class Test:
    """How a kind of test answers."""

    level: Callable[[Claim], str]
    answer: Callable[
        [Claim, list[dict]], tuple[list[Answer], str]
    ]  # -> answers, and why there might be none
    check: Callable[[dict], None] = lambda test: (
        None
    )  # raises for a test that names what is not there


def _count(claim: Claim, found: list[dict]) -> tuple[list[Answer], str]:
    """From the records of `rflw complexity`."""
    test, what = claim.test, claim.test["count"]
    rows = {
        row["model"]: (row, record["name"])
        for record in found
        if record["kind"] == "complexity"
        for row in record["metrics"]["rows"]
        if "size" not in test or _pixels(test["size"]) == row["size"]
    }
    models = _models(test) or [
        m for m in rows if m.startswith("refinenet-lw-") and not m.startswith("refinenet-lw-rcu-")
    ]
    if missing := [model for model in models if model not in rows]:
        return (
            [],
            f"no count of {missing[0]} on record: rflw complexity --all --results data/results",
        )
    names = tuple(dict.fromkeys(rows[model][1] for model in models))
    if not names:
        return [], "nothing was counted: rflw complexity --all --results data/results"

    def size(model, rule=COUNTING, part=None):
        row = rows[model][0]["parts"][part] if part else rows[model][0]
        return (
            row["params"]
            if what == "params"
            else sum(times * row["macs"][kind] for kind, times in zip(KINDS, rule))
        )

    def ours(rule):
        if what == "encoders":
            return len({model.rpartition("-")[2] for model in models})
        if what == "kernels":
            return max(
                rows[model][0]["parts"]["decoder"]["kernels"].get(test["kernel"], 0)
                for model in models
            )
        if what == "changes":
            rest = [
                sum(rows[model][0]["parts"]["decoder"]["kernels"].values()) - rows[model][0]["taps"]
                for model in models
            ]
            return max(rest) - min(rest)
        if "saved" in test:
            return min(
                size(a, rule) / size(b, rule)
                if claim.unit == "x"
                else 100 * (1 - size(b, rule) / size(a, rule))
                for a, b in test["saved"]
            )
        if "share" in test:
            return min(
                100 * size(model, rule, test["share"]) / size(model, rule) for model in models
            )
        return size(models[0], rule) / {"M": 1e6, "B": 1e9}[claim.unit]

    answers = [
        Answer("convolutions and pools" if what == "macs" else "", _alone(ours(COUNTING)), names)
    ]
    if what == "macs" and not claim.holds(answers[0].value):
        others = [
            (rule, value) for rule in OTHER_COUNTING if claim.holds(value := _alone(ours(rule)))
        ]
        answers += [
            Answer(
                "as " + ", ".join(f"{n} {kind}" for kind, n in zip(KINDS, rule) if n), value, names
            )
            for rule, value in others[:1]
        ]
    return answers, ""


def _score(claim: Claim, found: list[dict]) -> tuple[list[Answer], str]:
    """From runs of recipes on the paper's own data set, and from evaluations there, whole images at one scale."""
    test = claim.test
    models = test["against"] if "against" in test else [test["model"]]
    each = {model: _scores_of(model, test["score"], test["split"], found) for model in models}
    missing = [model for model, answers in each.items() if not answers]
    if missing:
        if test["split"] == "test":
            return (
                [],
                f"needs the test labels of {PAPER_DATA[test['score']]}, which only the benchmark's server has",
            )
        recipe = next(
            (r.name for r in RECIPES.values() if (r.model, r.data) == (missing[0], test["score"])),
            None,
        )
        other = [
            r["name"]
            for r in found
            if r["kind"] == "train"
            and Recipe.of(r["config"]).data == test["score"]
            and r["config"]["model"] == missing[0]
            and r["status"] == "done"
        ]
        return [], (
            f"needs {PAPER_DATA[test['score']]}: no run of {missing[0]} on record"
            + (f"; rflw train {recipe}" if recipe else "")
            + (
                f". {other[0]} has other settings than the recipe, and does not count"
                if other
                else ""
            )
        )
    if "against" not in test:
        return each[models[0]], ""
    gaps = []
    for model, answers in each.items():
        printed = test["against"][model]  # a cell of a table, or a statement of the text
        theirs = (
            paper.statement(printed).value if isinstance(printed, str) else paper.value(*printed)
        )
        gaps += [
            Answer(answer.what, _shifted(answer.value, -theirs), answer.records)
            for answer in answers
        ]
    least = min(gaps, key=lambda answer: answer.value.mean)
    return [
        Answer(least.what, least.value, tuple(name for answer in gaps for name in answer.records))
    ], ""


def _scores_of(model: str, data: str, split: str, found: list[dict]) -> list[Answer]:
    answers = []
    for recipe in RECIPES.values():
        if (recipe.model, recipe.data, recipe.validation) == (model, data, split) and (
            runs := scores(found, recipe.name)
        ):
            values, names = zip(*runs.values())
            answers.append(
                Answer(f"{recipe.name}{_seeds(len(values))}", mean_interval(values), names)
            )
    for record in found:
        config = record["config"]
        if (
            record["kind"] == "eval"
            and (config["model"], config["data"], config["split"]) == (model, data, split)
            and config["scales"] == [1.0]
            and not config["flip"]
            and record["metrics"]["miou"] is not None
        ):
            value = _alone(100 * record["metrics"]["miou"])
            answers.append(
                Answer(f"{Path(config['checkpoint']).name}, evaluated", value, (record["name"],))
            )
    return answers


def _pairs(claim: Claim, found: list[dict]) -> tuple[list[Answer], str]:
    """Second recipe minus first, within seeds."""
    answers = []
    for pair in claim.test["pairs"]:
        first, second = (scores(found, recipe) for recipe in pair)
        gap = paired_difference(
            *({seed: score for seed, (score, _) in runs.items()} for runs in (first, second))
        )
        if gap:
            shared = sorted(first.keys() & second.keys())
            answers.append(
                Answer(
                    f"{' against '.join(reversed(pair))}{_seeds(gap.n)}",
                    gap,
                    tuple(runs[seed][1] for runs in (first, second) for seed in shared),
                    substitute=RECIPES[pair[0]].data not in PAPER_DATA,
                )
            )
    return (
        answers,
        "no two of the recipes to be compared are on record with the same seed: rflw campaign status",
    )


def _time(claim: Claim, found: list[dict]) -> tuple[list[Answer], str]:
    """From interleaved timings of the plain graph, one image at a time, on each device. A ratio is of two networks in one record; of
    several the smallest counts."""
    test, answers, ratios = claim.test, [], {}
    together = {}
    for row in timings(found):
        if (row["mode"], row["batch"], row["size"]) == ("eager-fp32", 1, _pixels(test["size"])):
            together.setdefault((row["record"], row["where"], row["device"]), {})[row["model"]] = (
                row["latency_ms"]["mean"]
            )
    for (name, where, device), latencies in together.items():
        if test["time"] == "ratio":
            ratios.setdefault((where, device), {}).update(
                {
                    (slow, fast): (latencies[slow] / latencies[fast], name)
                    for slow, fast in test["models"]
                    if slow in latencies and fast in latencies
                }
            )
        elif test["model"] in latencies:
            latency = latencies[test["model"]]
            answers.append(
                Answer(
                    where,
                    _alone(latency if test["time"] == "latency" else 1000 / latency),
                    (name,),
                    counts=device == "cuda" and CARD in where,
                )
            )
    for (where, device), each in ratios.items():
        if len(each) == len(test["models"]):
            names = tuple(dict.fromkeys(name for _, name in each.values()))
            answers.append(
                Answer(
                    where,
                    _alone(min(ratio for ratio, _ in each.values())),
                    names,
                    counts=device == "cuda",
                )
            )
    if test["time"] == "ratio":
        return (
            answers,
            "needs a GPU, as the paper had: no timings of all its networks there are on record",
        )
    return answers, f"needs the paper's card, a GTX {CARD}"


def _data(claim: Claim, found: list[dict]) -> tuple[list[Answer], str]:
    """From the records of `rflw data check`: images of splits, or classes that labels hold."""
    test, data = claim.test, claim.test["check"]
    for record in found:
        if record["kind"] == "check" and record["metrics"]["data"] == data:
            splits = record["metrics"]["splits"]
            if "classes" in test:
                seen = {
                    label
                    for part in splits.values()
                    for label, pixels in part["pixels"].items()
                    if pixels
                }
                return [
                    Answer("", _alone(len(seen - {test.get("without")})), (record["name"],))
                ], ""
            if all(split in splits for split in test["splits"]):
                return [
                    Answer(
                        "",
                        _alone(sum(splits[split]["images"] for split in test["splits"])),
                        (record["name"],),
                    )
                ], ""
            return (
                [],
                f"{record['name']} has no split {', '.join(set(test['splits']) - set(splits))}",
            )
    return [], f"needs {PAPER_DATA[data]}: rflw data check {data} --results data/results"


def _probe(claim: Claim, found: list[dict]) -> tuple[list[Answer], str]:
    """From heads trained on a frozen network with the original decoder (`rflw probe`): a score, or what a block adds to it."""
    test, answers = claim.test, []
    for record in found:
        if (
            record["kind"] != "probe"
            or _form(record) != "refinenet"
            or test.get("data") not in (None, record["config"]["data"])
        ):
            continue
        for head in next(iter(record["metrics"]["places"].values()))["heads"]:

            def score(place, head=head, record=record):
                return [
                    100 * value
                    for value in record["metrics"]["places"][place]["heads"][head][test["measure"]]
                ]

            if test["probe"] == "score":
                values = score(test["row"][0].lower() + test["row"][1:])
            else:
                before, after, last = (
                    score(place) for place in ("before RCU", "after RCU", "after CRP")
                )
                rcu, crp = (
                    [b - a for a, b in zip(*pair)] for pair in ((before, after), (after, last))
                )
                values = rcu if test["probe"] == "rcu" else [b - a for a, b in zip(rcu, crp)]
            full = (
                test["probe"] != "score" and min(score("before RCU")) == 100
            )  # no block can add anything, nor show that it could
            answers.append(
                Answer(
                    f"{_network(record)}, {head} heads{_seeds(len(values))}{', all right before the blocks' * full}",
                    mean_interval(values),
                    (record["name"],),
                    substitute=record["config"]["data"] not in PAPER_DATA,
                    counts=not full,
                )
            )
    if "data" in test:
        return answers, f"needs {PAPER_DATA[test['data']]}: no heads on record; rflw probe"
    return answers, "no heads on a network with the original decoder on record"


def _saturation(claim: Claim, found: list[dict]) -> tuple[list[Answer], str]:
    """mIoU of trained networks with light-weight RCUs when all RCUs are switched off, minus what they have (`rflw saturation`)."""
    networks = {}
    for record in found:
        if record["kind"] == "saturation" and _form(record) == "refinenet-lw-rcu":
            gap = 100 * (
                record["metrics"]["groups"]["all RCU"]["miou_without"] - record["metrics"]["miou"]
            )
            networks.setdefault(
                (_network(record).rpartition("-s")[0], record["config"]["data"]), []
            ).append((gap, record["name"]))
    answers = [
        Answer(
            f"{recipe}{_seeds(len(runs))}",
            mean_interval([gap for gap, _ in runs]),
            tuple(name for _, name in runs),
            substitute=data not in PAPER_DATA,
        )
        for (recipe, data), runs in networks.items()
    ]
    return answers, "no network with light-weight RCUs was measured: rflw saturation"


def _field(claim: Claim, found: list[dict]) -> tuple[list[Answer], str]:
    """One receptive field's side over another's, of two places in a network, or of one place in two networks that were trained and
    measured in the same way (`rflw erf`). The interval holds every ratio that the intervals over units allow. What counts is the method
    that the paper cites (occlusion) and the one that its author pointed to (activation); gradients measure something else."""
    groups = {}
    for record in found:
        if record["kind"] == "erf":
            form, measured = _form(record), record["metrics"]
            way = f"-{form.removeprefix('refinenet').removeprefix('-') or 'original'}-"  # what a recipe's name has for the form
            training = _network(record).replace(way, "-*-")
            key = (
                record["config"]["data"],
                training,
                measured["method"],
                *measured["size"],
                measured["images"],
            )
            for place, layer in measured["layers"].items():
                if layer.get("side", {}).get("mean"):
                    groups.setdefault(key, {})[form, place] = (
                        _network(record),
                        layer["side"],
                        record["name"],
                    )
    answers = []
    for (data, _, method, *_), places in groups.items():
        wanted = [tuple(pair) for pair in claim.test["field"]]
        if all(pair in places for pair in wanted):
            (network, over, first), (other, under, second) = (places[pair] for pair in wanted)
            spread = None not in (over["low"], under["low"])
            ends = (
                (over["low"] / under["high"], over["high"] / under["low"])
                if spread
                else (math.nan, math.nan)
            )
            networks = network if network == other else f"{network} against {other}"
            answers.append(
                Answer(
                    f"{networks}, by {method}",
                    Interval(over["mean"] / under["mean"], *ends, min(over["n"], under["n"])),
                    tuple(dict.fromkeys((first, second))),
                    data not in PAPER_DATA,
                    counts=method != "gradient",
                )
            )
    return answers, "no such fields by a method of the paper on record: rflw erf --method occlusion"


def _form(record: dict) -> str:
    """The form of the network that a record is about: "refinenet-lw"."""
    return record["config"]["model"].rpartition("-")[0]


def _network(record: dict) -> str:
    """The run that it comes from: "camvid-lw-efficientnet_lite0-s0"."""
    return record["config"]["checkpoint"]


def _shifted(value: Interval, by: float) -> Interval:
    return Interval(value.mean + by, value.low + by, value.high + by, value.n)


def _alone(value: float) -> Interval:
    return Interval(float(value), math.nan, math.nan, 1)


def _seeds(n: int) -> str:
    return f", {n} seed{'s' * (n != 1)}"


def _pixels(size: str) -> list[int]:
    """The paper's "625x468", columns first -> [468, 625], rows first."""
    return [int(side) for side in reversed(size.split("x"))]


def _known_count(test: dict) -> None:
    if test["count"] not in ("params", "macs", "kernels", "encoders", "changes"):
        raise InputError(f"unknown count {test['count']!r}")
    if test["count"] != "encoders" and not _models(test):
        raise InputError("no network to count")


def _known_recipes(test: dict) -> None:
    for name in (name for pair in test["pairs"] for name in pair):
        if name not in RECIPES:
            raise InputError(f"unknown recipe {name!r}")


def _known_data(kind: str) -> Callable[[dict], None]:
    def check(test):
        if test[kind] not in PAPER_DATA:
            raise InputError(
                f"{test[kind]!r} is no data set of the paper; there is: {', '.join(PAPER_DATA)}"
            )

    return check


def _retrained(claim: Claim) -> str:
    return "re-trained on substitute data"


TESTS = {
    "count": Test(lambda claim: "computed", _count, _known_count),
    "score": Test(
        lambda claim: f"needs {PAPER_DATA[claim.test['score']]}", _score, _known_data("score")
    ),
    "pairs": Test(_retrained, _pairs, _known_recipes),
    "time": Test(lambda claim: "measured here on other hardware", _time),
    "probe": Test(
        lambda claim: (
            f"needs {PAPER_DATA[claim.test['data']]}" if "data" in claim.test else _retrained(claim)
        ),
        _probe,
    ),
    "saturation": Test(_retrained, _saturation),
    "field": Test(_retrained, _field),
    "picture": Test(
        lambda claim: "seen in pictures",
        lambda claim, found: ([], f"no number is given: {claim.test['picture']} shows it"),
    ),
    "check": Test(
        lambda claim: f"needs {PAPER_DATA[claim.test['check']]}", _data, _known_data("check")
    ),
}


# ---------------------------------------------------------------- the verdicts


def judge(claim: Claim, found: list[dict]) -> Verdict:
    """What the records, of which each is as `check` wants it, say of one claim. Raises InputError for a test that names too little."""
    if not claim.test:
        return Verdict(
            claim,
            NOT_TESTED,
            claim.level,
            None,
            "a number of others, not a claim of this paper",
            (),
        )
    try:
        answers, why = TESTS[claim.kind].answer(claim, found)
    except (LookupError, TypeError, ValueError, AttributeError, ZeroDivisionError) as e:
        raise InputError(
            f"claim {claim.id}: its test {claim.test} cannot be answered ({type(e).__name__}: {e})"
        ) from e
    counting = [answer for answer in answers if answer.counts]
    real = [answer for answer in counting if not answer.substitute]
    voting = real or [
        answer for answer in counting if answer.value.n > 1
    ]  # seeds are few: data without an interval decide nothing
    level, ours = claim.level, (voting or counting or [None])[0]
    if real:
        holds = [claim.holds(answer.value) for answer in real]
        verdict = (
            REPRODUCED
            if all(holds)
            else PARTLY
            if any(h is not False for h in holds)
            else NOT_REPRODUCED
        )
        level = level.replace("substitute data", "the paper's data")
    elif counting:
        holds = {claim.holds(answer.value) for answer in voting}
        verdict = SUPPORTED if holds == {True} else CONTRADICTED if holds == {False} else UNDECIDED
    else:
        verdict = NOT_TESTED
    told = [
        f"{answer.what + ': ' * bool(answer.what)}{shown(answer.value, claim)}{'' if answer.counts else ' (does not count)'}"
        for answer in answers
    ]
    says = "; ".join(told if counting else [why, *told])
    names = tuple(dict.fromkeys(n for a in answers for n in a.records))
    return Verdict(claim, verdict, level, ours and ours.value, says, names, tuple(answers))


def shown(value: Interval, claim: Claim) -> str:
    """Ours as a reader sees it: "78.4 [77.9, 78.9] %"."""
    mean, low, high = (
        number(end, claim.unit, claim.decimals).partition(" ")
        for end in (value.mean, value.low, value.high)
    )
    return (
        f"{mean[0]}{'' if math.isnan(value.low) else f' [{low[0]}, {high[0]}]'} {mean[2]}".strip()
    )


def verdicts(folder: Path | None = None, path: Path | None = None) -> list[Verdict]:
    """Every claim's verdict by the records of a folder. Raises InputError for a claim or record that is malformed, a claim without
    a test, and a record that was edited or is of an unknown experiment."""
    claims, found = load(path), records.read_all(folder or records.FOLDER)
    for record in found:
        check(record)
    return [judge(claim, found) for claim in claims]


def tally(judged: Iterable[Verdict]) -> dict[str, int]:
    """{verdict: how many of the paper's own claims}, all verdicts in order; those that it quotes from others as "quoted"."""
    judged = list(judged)
    own = [v.verdict for v in judged if v.claim.test]
    return {verdict: own.count(verdict) for verdict in VERDICTS} | {
        "quoted": len(judged) - len(own)
    }


def beside(kinds: Iterable[str], folder: Path | None = None) -> list[dict]:
    """What chapters end with: of every claim that a kind of test answers, what the paper says, what was seen, and whether they agree.
    -> rows {"where", "the paper says", "number", "seen", "verdict"}, all words."""
    kinds = [*kinds]
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
