"""What answers a claim: one function for each kind of test in `data/paper/claims.yaml`. No torch.

A function takes a `rflw_study.claims.Claim`, whose test is of its kind, and all records. It returns
the answers that the records hold, and what is missing where they hold none. The class above it says
what such a test must name.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import product
import math
from pathlib import Path
import re
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    Field,
    model_validator,
)

from rflw.config import Recipe
from rflw.errors import InputError
from rflw.recipes import OWN, RECIPES
from rflw_study import paper
from rflw_study.statistics import Interval, mean_interval, paired_difference
from rflw_study.timings import timings

PAPER_DATA = {
    "voc": "PASCAL VOC 2012",
    "nyu": "NYUDv2",
    "person": "PASCAL Person-Part",
    "context": "PASCAL Context",
    "cityscapes": "Cityscapes",
}
# Multiply-adds for each unit of `rflw.complexity`: the paper does not say what it counts. The first
# rule is the simplest of those that meet most of its numbers; a number that only another rule meets
# is met partly (see the chapter on counting).
KINDS = ("conv", "pool", "norm", "activation", "resize")
COUNTING = (1, 1, 0, 0, 0)
OTHER_COUNTING = tuple(
    rule for rule in product((1,), (0, 1), (0, 1, 2), (0, 1), (0, 1)) if rule != COUNTING
)
CARD = "1080 Ti"  # the paper's
RETRAINED = "re-trained on substitute data"


@dataclass(frozen=True)
class Answer:
    """What one count, recipe, pair of recipes or card says."""

    what: str  # was counted, trained or timed; empty where the claim says it
    value: Interval  # in the claim's unit
    records: tuple[str, ...]  # names
    substitute: bool = False  # from data that the paper did not use
    counts: bool = True  # towards the verdict; else it is only shown


Answers = tuple[list[Answer], str]  # and what is missing where there is none


def _known_recipe(name: str) -> str:
    if name not in RECIPES:
        raise InputError(f"unknown recipe {name!r}")
    return name


Data = Literal["voc", "nyu", "person", "context", "cityscapes"]
Model = str
Size = Annotated[str, Field(pattern=r"^\d+x\d+$")]  # the paper's, columns first: "625x468"
Shipped = Annotated[str, AfterValidator(_known_recipe)]


class Strict(BaseModel, frozen=True, extra="forbid"):
    """Part of claims.yaml. Exactly one of the fields in `one_of` must be there."""

    one_of: ClassVar[tuple[str, ...]] = ()

    @model_validator(mode="after")
    def _has_one(self):
        given = [name for name in self.one_of if getattr(self, name) not in (None, "", (), {})]
        if self.one_of and len(given) != 1:
            raise InputError(f"needs one of {', '.join(self.one_of)}")
        return self


class Test(Strict):
    """The test of one claim. Its first field is named after its kind."""

    __test__ = False  # for pytest
    level: ClassVar[str]  # the kind of evidence that a verdict takes

    @property
    def kind(self) -> str:
        """Its kind, as in claims.yaml."""
        return next(iter(type(self).model_fields))


# ---------------------------------------------------------------- size


class CountTest(Test):
    """Parameters, multiply-adds or layers of networks, as `rflw complexity` counts them."""

    level = "computed"
    count: Literal["params", "macs", "kernels", "encoders", "changes"]
    model: Model = ""
    models: tuple[Model, ...] = ()
    saved: tuple[tuple[Model, Model], ...] = ()  # large and small network; the least saving counts
    share: Literal["decoder", ""] = ""
    kernel: str = ""
    size: Size | None = None

    @property
    def networks(self) -> list[Model]:
        """All networks that the test names."""
        paired = [model for pair in self.saved for model in pair]
        return [*self.models, *paired, *([self.model] if self.model else [])]

    @model_validator(mode="after")
    def _names_networks(self):
        if self.count != "encoders" and not self.networks:
            raise InputError("no network to count")
        return self


def count(claim, recorded: list[dict]) -> Answers:
    """Counts on record, by the first way of counting or, where it does not fit, by another."""
    test = claim.test
    rows = {
        row["model"]: (row, record["name"])
        for record in _of_kind("complexity", recorded)
        for row in record["metrics"]["rows"]
        if test.size is None or row["size"] == _pixels(test.size)
    }
    models = test.networks or [m for m in rows if re.match("refinenet-lw-(?!rcu-)", m)]
    if not models or not rows.keys() >= {*models}:
        missing = next((model for model in models if model not in rows), "any network")
        return [], (
            f"no count of {missing} on record: rflw complexity --all --results data/results"
        )
    counted = {model: rows[model][0] for model in models}
    names = _unique(rows[model][1] for model in models)
    value = _alone(_counted(test, claim.unit, counted, COUNTING))
    if test.count != "macs":
        return [Answer("", value, names)], ""
    answers = [Answer("convolutions and pools", value, names)]
    if not claim.holds(value):
        for rule in OTHER_COUNTING:
            other = _alone(_counted(test, claim.unit, counted, rule))
            if claim.holds(other):
                way = ", ".join(f"{n} {kind}" for kind, n in zip(KINDS, rule) if n)
                return [*answers, Answer(f"as {way}", other, names)], ""
    return answers, ""


def _counted(test: CountTest, unit: str, rows: dict[Model, dict], rule: tuple[int, ...]) -> float:
    """What a test asks for, of networks that were counted, by one way of counting."""
    kernels = [row["parts"]["decoder"]["kernels"] for row in rows.values()]
    if test.count == "encoders":
        return len({model.rpartition("-")[2] for model in rows})
    if test.count == "kernels":
        return max(each.get(test.kernel, 0) for each in kernels)
    if test.count == "changes":
        layers = [sum(each.values()) - row["taps"] for each, row in zip(kernels, rows.values())]
        return max(layers) - min(layers)

    def size(part: dict) -> float:
        if test.count == "params":
            return part["params"]
        return sum(times * part["macs"][kind] for kind, times in zip(KINDS, rule))

    sizes = {model: size(row) for model, row in rows.items()}
    if test.saved and unit == "x":
        return min(sizes[large] / sizes[small] for large, small in test.saved)
    if test.saved:
        return min(100 * (1 - sizes[small] / sizes[large]) for large, small in test.saved)
    if test.share:
        return min(100 * size(row["parts"][test.share]) / sizes[m] for m, row in rows.items())
    return next(iter(sizes.values())) / {"M": 1e6, "B": 1e9}[unit]


# ---------------------------------------------------------------- accuracy


class ScoreTest(Test):
    """mIoU of a network on a data set of the paper, or its difference to printed scores."""

    one_of = ("model", "against")
    score: Data
    split: Literal["train", "val", "test"]
    model: Model = ""
    # network -> the original's score: a cell (table, row, column) or the id of a statement
    against: dict[Model, tuple[int, str, str] | str] = {}

    @property
    def level(self) -> str:
        """What it takes."""
        return f"needs {PAPER_DATA[self.score]}"


def score(claim, recorded: list[dict]) -> Answers:
    """Runs of recipes on that data set, and evaluations there, of whole images at one scale.

    Of several networks against printed scores, the smallest difference counts.
    """
    test = claim.test
    answers_of = {
        model: _trained(model, test, recorded) + _evaluated(model, test, recorded)
        for model in test.against or [test.model]
    }
    if missing := [model for model, answers in answers_of.items() if not answers]:
        return [], _no_score(missing[0], test, recorded)
    if not test.against:
        return answers_of[test.model], ""
    gaps = [
        replace(answer, value=_shifted(answer.value, -_printed(test.against[model])))
        for model, answers in answers_of.items()
        for answer in answers
    ]
    least = min(gaps, key=lambda gap: gap.value.mean)
    return [replace(least, records=tuple(name for gap in gaps for name in gap.records))], ""


def _printed(place: tuple[int, str, str] | str) -> float:
    return paper.statement(place).value if isinstance(place, str) else paper.value(*place)


def _trained(model: Model, test: ScoreTest, recorded: list[dict]) -> list[Answer]:
    answers = []
    for recipe in RECIPES.values():
        if (recipe.model, recipe.data, recipe.validation) == (model, test.score, test.split):
            if runs := scores(recorded, recipe.name):
                values, names = zip(*runs.values())
                what = f"{recipe.name}{_seeds(len(values))}"
                answers.append(Answer(what, mean_interval(values), names))
    return answers


def _evaluated(model: Model, test: ScoreTest, recorded: list[dict]) -> list[Answer]:
    answers = []
    for record in _of_kind("eval", recorded):
        config, miou = record["config"], record["metrics"]["miou"]
        way = [config[key] for key in ("model", "data", "split", "scales", "flip")]
        if way == [model, test.score, test.split, [1.0], False] and miou is not None:
            what = f"{Path(config['checkpoint']).name}, evaluated"
            answers.append(Answer(what, _alone(100 * miou), (record["name"],)))
    return answers


def _no_score(model: Model, test: ScoreTest, recorded: list[dict]) -> str:
    data = PAPER_DATA[test.score]
    if test.split == "test":
        return f"needs the test labels of {data}, which only the benchmark's server has"
    words = f"needs {data}: no run of {model} on record"
    recipes = [r.name for r in RECIPES.values() if (r.model, r.data) == (model, test.score)]
    if recipes:
        words += f"; rflw train {recipes[0]}"
    for record in _of_kind("train", recorded):
        config = record["config"]
        on = config["stages"][-1]["data"]
        if (config["model"], on, record["status"]) == (model, test.score, "done"):
            return (
                f"{words}. {record['name']} has other settings than the recipe, and does not count"
            )
    return words


def scores(recorded: Iterable[dict], recipe: str) -> dict[int, tuple[float, str]]:
    """Scores of finished runs that have exactly a recipe's settings.

    Args:
        recorded: Records of any kind.
        recipe: Name of a shipped recipe.

    Returns:
        {seed: (mIoU in percent, name of the record)}.
    """
    return {
        record["seed"]: (100 * record["metrics"]["miou"], record["name"])
        for record in _of_kind("train", recorded)
        if record["status"] == "done"
        and record["config"]["name"] == recipe
        and record["metrics"]["miou"] is not None
        and Recipe.of(record["config"]).hash() == RECIPES[recipe].hash()
    }


class PairsTest(Test):
    """The second recipe's mIoU minus the first's, for several pairs."""

    level = RETRAINED
    pairs: tuple[tuple[Shipped, Shipped], ...]


def pairs(claim, recorded: list[dict]) -> Answers:
    """Differences within seeds that both recipes were trained with."""
    answers = []
    for names in claim.test.pairs:
        first, second = (scores(recorded, recipe) for recipe in names)
        gap = paired_difference(*({s: run[0] for s, run in r.items()} for r in (first, second)))
        if gap:
            shared = sorted(first.keys() & second.keys())
            what = f"{names[1]} against {names[0]}{_seeds(gap.n)}"
            used = tuple(runs[seed][1] for runs in (first, second) for seed in shared)
            substitute = RECIPES[names[0]].data not in PAPER_DATA
            answers.append(Answer(what, gap, used, substitute))
    missing = "no two of the recipes to be compared are on record with the same seed"
    return answers, f"{missing}: rflw campaign status"


# ---------------------------------------------------------------- speed


class TimeTest(Test):
    """Milliseconds, frames a second, or how many times longer the first network of a pair takes."""

    one_of = ("model", "models")
    level = "measured here on other hardware"
    time: Literal["latency", "fps", "ratio"]
    size: Size
    model: Model = ""
    models: tuple[tuple[Model, Model], ...] = ()  # slow and fast; the smallest ratio counts


def time(claim, recorded: list[dict]) -> Answers:
    """Interleaved timings of the plain graph, one image at a time, on each device."""
    test = claim.test
    latencies: dict[tuple, dict[Model, float]] = {}
    for row in timings(recorded):
        if (row["mode"], row["batch"], row["size"]) == ("eager-fp32", 1, _pixels(test.size)):
            place = row["record"], row["where"], row["device"]
            latencies.setdefault(place, {})[row["model"]] = row["latency_ms"]["mean"]
    if test.time == "ratio":
        return _ratios(test, latencies), (
            "needs a GPU, as the paper had: no timings of all its networks there are on record"
        )
    answers = []
    for (name, where, device), each in latencies.items():
        if test.model in each:
            ms = each[test.model]
            value = _alone(ms if test.time == "latency" else 1000 / ms)
            counts = device == "cuda" and CARD in where
            answers.append(Answer(where, value, (name,), counts=counts))
    return answers, f"needs the paper's card, a GTX {CARD}"


def _ratios(test: TimeTest, latencies: dict[tuple, dict[Model, float]]) -> list[Answer]:
    """The smallest ratio on each device. The two networks of a ratio are of one record."""
    ratios: dict[tuple, dict[tuple, tuple[float, str]]] = {}
    for (name, where, device), each in latencies.items():
        for slow, fast in test.models:
            if slow in each and fast in each:
                ratio = each[slow] / each[fast], name
                ratios.setdefault((where, device), {})[slow, fast] = ratio
    answers = []
    for (where, device), each in ratios.items():
        if len(each) == len(test.models):
            least = _alone(min(ratio for ratio, _ in each.values()))
            names = _unique(name for _, name in each.values())
            answers.append(Answer(where, least, names, counts=device == "cuda"))
    return answers


# ---------------------------------------------------------------- what the blocks do


class ProbeTest(Test):
    """A head's score on a frozen network (`rflw probe`), or what a block adds to it."""

    probe: Literal["score", "rcu", "crp"]  # crp: what CRP adds, minus what the RCUs before it add
    measure: Literal["miou", "accuracy"]
    data: Data | None = None
    row: str = ""  # of Table 4, for a score
    column: str = ""

    @property
    def level(self) -> str:
        """What it takes."""
        return f"needs {PAPER_DATA[self.data]}" if self.data else RETRAINED


def probe(claim, recorded: list[dict]) -> Answers:
    """Heads on networks with the original decoder.

    Heads that are all right before the blocks do not count: no block can add to them.
    """
    test, answers = claim.test, []
    for record in _of_kind("probe", recorded):
        data, places = record["config"]["data"], record["metrics"]["places"]
        if _form(record) != "refinenet" or test.data not in (None, data):
            continue
        for head in list(places.values())[0]["heads"]:
            percent = {
                place: [100 * value for value in part["heads"][head][test.measure]]
                for place, part in places.items()
            }
            values = _added(test, percent)
            full = test.probe != "score" and min(percent["before RCU"]) == 100
            what = f"{_network(record)}, {head} heads{_seeds(len(values))}"
            answers.append(
                Answer(
                    f"{what}, all right before the blocks" if full else what,
                    mean_interval(values),
                    (record["name"],),
                    substitute=data not in PAPER_DATA,
                    counts=not full,
                )
            )
    if test.data:
        return answers, f"needs {PAPER_DATA[test.data]}: no heads on record; rflw probe"
    return answers, "no heads on a network with the original decoder on record"


def _added(test: ProbeTest, percent: dict[str, list[float]]) -> list[float]:
    """{place: a score of each seed} -> what the test asks for, of each seed."""
    if test.probe == "score":
        return percent[test.row[0].lower() + test.row[1:]]
    seeds = zip(percent["before RCU"], percent["after RCU"], percent["after CRP"])
    if test.probe == "rcu":
        return [after - before for before, after, _ in seeds]
    return [(last - after) - (after - before) for before, after, last in seeds]


class SaturationTest(Test):
    """mIoU with all RCUs switched off, minus what the trained network has (`rflw saturation`)."""

    level = RETRAINED
    saturation: Literal["all RCU"]


def saturation(claim, recorded: list[dict]) -> Answers:
    """Trained networks with light-weight RCUs, seeds of one recipe together."""
    runs: dict[tuple[str, str], list[tuple[float, str]]] = {}
    for record in _of_kind("saturation", recorded):
        if _form(record) == "refinenet-lw-rcu":
            metrics = record["metrics"]
            without = metrics["groups"][claim.test.saturation]["miou_without"]
            recipe = _network(record).rpartition("-s")[0]
            gap = 100 * (without - metrics["miou"])
            runs.setdefault((recipe, record["config"]["data"]), []).append((gap, record["name"]))
    answers = []
    for (recipe, data), seeds in runs.items():
        gaps, names = zip(*seeds)
        what = f"{recipe}{_seeds(len(gaps))}"
        answers.append(Answer(what, mean_interval(gaps), names, substitute=data not in PAPER_DATA))
    return answers, "no network with light-weight RCUs was measured: rflw saturation"


class FieldTest(Test):
    """The side of one receptive field over that of another, each of a form at a place."""

    level = RETRAINED
    field: tuple[tuple[str, str], tuple[str, str]]


def field(claim, recorded: list[dict]) -> Answers:
    """Fields of networks that were trained and measured in the same way (`rflw erf`).

    The interval holds every ratio that the intervals over units allow. The method that the paper
    cites (occlusion) and the one that its author pointed to (activation) count; gradients measure
    something else.
    """
    groups: dict[tuple, dict[tuple[str, str], tuple[str, dict, str]]] = {}
    for record in _of_kind("erf", recorded):
        form, measured, network = _form(record), record["metrics"], _network(record)
        name_of_form = form.removeprefix("refinenet").removeprefix("-") or "original"
        training = network.replace(f"-{name_of_form}-", "-*-")
        way = measured["method"], *measured["size"], measured["images"]
        group = groups.setdefault((record["config"]["data"], training, *way), {})
        for place, layer in measured["layers"].items():
            if layer.get("side", {}).get("mean"):
                group[form, place] = network, layer["side"], record["name"]
    answers = []
    for (data, _, method, *_), sides in groups.items():
        if all(place in sides for place in claim.test.field):
            (network, over, first), (other, under, second) = (sides[p] for p in claim.test.field)
            networks = network if network == other else f"{network} against {other}"
            answers.append(
                Answer(
                    f"{networks}, by {method}",
                    _quotient(over, under),
                    _unique((first, second)),
                    substitute=data not in PAPER_DATA,
                    counts=method != "gradient",
                )
            )
    return answers, "no such fields by a method of the paper on record: rflw erf --method occlusion"


def _quotient(over: dict, under: dict) -> Interval:
    mean, n = over["mean"] / under["mean"], min(over["n"], under["n"])
    if None in (over["low"], under["low"]):
        return Interval(mean, math.nan, math.nan, n)
    return Interval(mean, over["low"] / under["high"], over["high"] / under["low"], n)


class PictureTest(Test):
    """A statement about a figure, without a number."""

    level = "seen in pictures"
    picture: str


def picture(claim, recorded: list[dict]) -> Answers:
    """No record answers it."""
    return [], f"no number is given: {claim.test.picture} shows it"


# ---------------------------------------------------------------- data sets


class CheckTest(Test):
    """Images of splits, or classes that labels hold (`rflw data check`)."""

    one_of = ("splits", "classes")
    check: Data
    splits: tuple[Literal["train", "val", "test"], ...] = ()
    classes: Literal["labelled", ""] = ""
    without: str = ""  # a class that the paper does not count

    @property
    def level(self) -> str:
        """What it takes."""
        return f"needs {PAPER_DATA[self.check]}"


def check(claim, recorded: list[dict]) -> Answers:
    """The first record of that data set."""
    test = claim.test
    for record in _of_kind("check", recorded):
        splits, names = record["metrics"]["splits"], (record["name"],)
        if record["metrics"]["data"] != test.check:
            continue
        if test.classes:
            pixels = [item for part in splits.values() for item in part["pixels"].items()]
            labels = {label for label, count in pixels if count} - {test.without}
            return [Answer("", _alone(len(labels)), names)], ""
        if missing := set(test.splits) - set(splits):
            return [], f"{record['name']} has no split {', '.join(sorted(missing))}"
        images = sum(splits[split]["images"] for split in test.splits)
        return [Answer("", _alone(images), names)], ""
    data = PAPER_DATA[test.check]
    return [], f"needs {data}: rflw data check {test.check} --results data/results"


# ---------------------------------------------------------------- all kinds


KINDS_OF_TEST = {
    "count": (CountTest, count),
    "score": (ScoreTest, score),
    "pairs": (PairsTest, pairs),
    "time": (TimeTest, time),
    "probe": (ProbeTest, probe),
    "saturation": (SaturationTest, saturation),
    "field": (FieldTest, field),
    "picture": (PictureTest, picture),
    "check": (CheckTest, check),
}


def parse(settings: dict[str, Any]) -> Test:
    """The test that an entry of claims.yaml names.

    Raises:
        InputError: It is not of one kind.
        ValidationError: It names too little, too much, or something unknown.
    """
    kinds = settings.keys() & KINDS_OF_TEST.keys()
    if len(kinds) != 1:
        raise InputError(f"not a test of one kind; choose from: {', '.join(KINDS_OF_TEST)}")
    return KINDS_OF_TEST[kinds.pop()][0].model_validate(settings)


def collect(claim, recorded: list[dict]) -> Answers:
    """The answers to a claim that has a test, and what is missing where there is none."""
    return KINDS_OF_TEST[claim.test.kind][1](claim, recorded)


def _of_kind(kind: str, recorded: Iterable[dict]) -> list[dict]:
    return [record for record in recorded if record["kind"] == kind]


def _unique(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))


def _form(record: dict) -> str:
    """The form of the network that a record is about: "refinenet-lw"."""
    return record["config"]["model"].rpartition("-")[0]


def _network(record: dict) -> str:
    """The run that the network comes from: "camvid-lw-efficientnet_lite0-s0"."""
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


# ---------------------------------------------------------------- records


EXPERIMENTS = frozenset(
    "train eval check bench complexity probe saturation erf pictures reliability".split()
)


def verify(record: dict) -> None:
    """Refuse a record that no experiment of the study makes.

    Raises:
        InputError: Its kind or recipe is unknown, or its mIoU is not from 0 to 1.
    """
    place, kind, miou = f"record {record['name']}", record["kind"], record["metrics"].get("miou")
    if kind not in EXPERIMENTS:
        known = ", ".join(sorted(EXPERIMENTS))
        raise InputError(f"{place}: unknown experiment (kind {kind!r}); choose from: {known}")
    if kind == "train" and record["config"].get("name") not in (*RECIPES, OWN.name):
        recipe = record["config"].get("name")
        raise InputError(f"{place}: unknown recipe {recipe!r}; `rflw recipes` lists them")
    if miou is not None and not (isinstance(miou, int | float) and 0 <= miou <= 1):
        raise InputError(f"{place}: mIoU {miou!r} is not from 0 to 1")
