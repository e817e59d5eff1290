"""What answers a claim: one class for each kind of test in `data/paper/claims.yaml`. No torch.

Its fields say what such a test must name. Its `answers` takes a `rflw_study.claims.Claim`, whose
test it is, and all records. It returns the answers that the records hold, and what is missing where
they hold none. An answer that may not vote says why, and is shown all the same.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache
import math
from pathlib import Path
import re
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import BaseModel, Field, ValidationError, model_validator
import yaml

from rflw.config import Recipe
from rflw.errors import InputError, choose, reading, why
from rflw.recipes import OWN, RECIPES, short
from rflw_study import paper
from rflw_study.statistics import Interval, equivalence, holm, mean_interval, p_value
from rflw_study.timings import timings

PAPER_DATA = {
    "voc": "PASCAL VOC 2012",
    "nyu": "NYUDv2",
    "person": "PASCAL Person-Part",
    "context": "PASCAL Context",
    "cityscapes": "Cityscapes",
}
# Levels of evidence, from the strongest: a verdict rests on the strongest level that votes.
CELL = "the paper's cell"
COMBINATION = "the paper's data or encoder in another combination"
DATA, HARDWARE = "substitute data", "substitute hardware"
COMPUTED = "computed"
LEVELS = (COMPUTED, CELL, COMBINATION, DATA, HARDWARE)
# Multiply-adds for each unit of `rflw.complexity`: the paper does not say what it counts. Ours is
# the simplest rule that meets most of its numbers; the other is what its author named when asked
# (issue 7 of DrSleep/light-weight-refinenet: the counter of CondenseNet, which leaves out max pools
# and batch norm).
KINDS = ("conv", "pool", "norm", "activation", "resize")
COUNTING = {"convolutions and pools": (1, 1, 0, 0, 0), "the author's counter": (1, 0, 0, 1, 0)}
CARD, PASSES = "1080 Ti", 100  # the paper's
# Processes of one machine, minutes apart, gave 2.69 and 2.92 for one ratio: a process alone knows
# its ratio to this share, whatever its passes say.
BETWEEN_PROCESSES = 0.10
CONSTANT = 0.90  # accuracy of answers that never change: heads beside it say nothing
LITTLE = 0.05  # mean IoU of all classes but the best, below which a head sees that one alone
LEARNT = 2  # times 1 / classes, more than any constant answer scores
MOVED = 0.05  # |change| over norm of RCU weights, below which training left them as they were
PROTOCOL = paper.FOLDER.parent / "protocol.yaml"


@dataclass(frozen=True)
class Answer:
    """What one count, recipe, pair of recipes or card says."""

    what: str  # was counted, trained or timed; empty where the claim says it
    value: Interval  # in the claim's unit
    records: tuple[str, ...]  # names
    level: str = COMPUTED
    against: str = ""  # why it does not vote; empty where it does
    holds: bool | None = None  # as claimed; None: open. Of a comparison, after Holm's correction
    contrary: bool = False  # one of its runs says the opposite: nothing is "supported" beside it
    fixed: str = ""  # commit and time of its data set's margin; empty: the claim's counts


Answers = tuple[list[Answer], str]  # and what is missing where there is none
Data = Literal["voc", "nyu", "person", "context", "cityscapes"]
Model = str
Place = tuple[int, str, str] | str  # table, row and column of a cell, or the id of a statement
Size = Annotated[str, Field(pattern=r"^\d+x\d+$")]  # the paper's, columns first: "625x468"


class Strict(BaseModel, frozen=True, extra="forbid"):
    """Part of claims.yaml. Exactly one of the fields in `one_of` must be there."""

    one_of: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def of(cls, settings: Any):
        """Such a part of the file. Raises InputError that names the first setting at fault."""
        try:
            return cls.model_validate(settings)
        except ValidationError as e:
            raise InputError(why(e)) from e

    @model_validator(mode="after")
    def _has_one(self):
        given = [name for name in self.one_of if getattr(self, name) not in (None, "", (), {})]
        if self.one_of and len(given) != 1:
            raise InputError(f"needs one of {', '.join(self.one_of)}")
        return self


class Test(Strict):
    """The test of one claim. Its first field is named after its kind."""

    __test__ = False  # for pytest

    @classmethod
    def kinds(cls) -> tuple[str, ...]:
        """The names that it has in claims.yaml."""
        first = next(iter(cls.model_fields))
        return cls.one_of if first in cls.one_of else (first,)

    @property
    def kind(self) -> str:
        """The first of its names."""
        return self.kinds()[0]

    def answers(self, claim, recorded: list[dict]) -> Answers:
        """What the records answer to a claim that has this test."""
        raise NotImplementedError


# ---------------------------------------------------------------- what may vote


class OnData(Strict):
    """What the protocol says of a data set."""

    fixed: str  # commit and time of the last change of what decides here: it judges no older run
    margin: float = Field(gt=0)  # points of mIoU
    original: tuple[float, float] = (0.0, 100.0)  # mIoU that it must have in comparisons with it
    reason: str
    recipes: str  # "nyu-tuned-*-mobilenet_v2"
    seeds: int
    stop: str
    scored: str
    interval_over_frames: str


class Compared(Strict):
    """A comparison of the protocol: the form that the paper prefers, and the other one."""

    claim: str
    better: str
    other: str
    at_least: float | None = None


class Votes(Strict):
    """Bounds beyond which a network, or a data set, has no vote."""

    live_share: float
    ceiling: float


class Protocol(Strict):
    """data/protocol.yaml."""

    outcomes: dict[str, str]
    least_seeds: int
    votes: Votes
    family: str
    data: dict[str, OnData]
    comparisons: dict[str, Compared]


@cache
def protocol(path: Path | None = None) -> Protocol:
    """What was fixed before the runs that vote. Raises InputError."""
    path = path or PROTOCOL
    with reading(path):
        return Protocol.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))


def level_of(data: str) -> str:
    """The level of trainings on a data set."""
    return COMBINATION if data in PAPER_DATA else DATA


def unfit(run: dict | None) -> str:
    """Why a training has no vote: its live units are not known, or a stage is dead."""
    live = (run or {"curve": []}).get("curve", [])[-1:]
    shares = {n: s for n, s in (live[0].get("live", {}) if live else {}).items() if "act" in n}
    if not shares:
        return "the share of live units in its training was not recorded"
    stage, share = min(shares.items(), key=lambda item: item[1])
    if share < protocol().votes.live_share:
        return f"{stage.removesuffix('.act')} is dead: {100 * share:.0f} % of its units are alive"
    return ""


def on_trainings(
    claim, measured: dict[int, tuple[float, tuple[str, ...], str]], what: str, data: str, level=""
) -> Answer:
    """One answer of {seed of a training: (value, records, why it has no vote)}.

    Trainings that vote are averaged. If none votes, the mean of all is shown and does not count.
    """
    voting = {seed: m for seed, m in measured.items() if not m[2]}
    values, names, reasons = zip(*(voting or measured).values())
    least = protocol().least_seeds
    few = f"fewer than {least} trainings" if len(values) < least else ""
    return Answer(
        f"{what}, {len(values)} training{'s' * (len(values) != 1)}",
        mean_interval(values, 0.90),
        _unique(name for part in names for name in part),
        level or level_of(data),
        few if voting else reasons[0],
        contrary=bool(voting) and any(claim.holds(_alone(value)) is False for value in values),
    )


# ---------------------------------------------------------------- size


class CountTest(Test):
    """Parameters, multiply-adds or layers of networks, as `rflw complexity` counts them."""

    count: Literal["params", "macs", "kernels", "unchanged", "listed"]
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
        if not self.networks:
            raise InputError("no network to count")
        return self

    def answers(self, claim, recorded: list[dict]) -> Answers:
        """Counts on record; multiply-adds by two ways of counting."""
        rows = {
            row["model"]: (row, record["name"])
            for record in _of_kind("complexity", recorded)
            for row in record["metrics"]["rows"]
            if self.size is None or row["size"] == _pixels(self.size)
        }
        if missing := next((model for model in self.networks if model not in rows), ""):
            command = "rflw complexity --all --results data/results"
            return [], f"no count of {missing} on record: {command}"
        wanted = rows if self.count == "unchanged" else self.networks
        counted = {model: rows[model][0] for model in wanted}
        names = _unique(rows[model][1] for model in wanted)
        if self.count == "kernels":
            kernels = {m: row["parts"]["decoder"]["kernels"] for m, row in counted.items()}
            return [
                Answer(m, _alone(each.get(self.kernel, 0)), names) for m, each in kernels.items()
            ], ""
        rules = COUNTING if self.count == "macs" else {"": (1, 1, 0, 0, 0)}
        return [
            Answer(way, _alone(self._counted(claim.unit, counted, rule)), names)
            for way, rule in rules.items()
        ], ""

    def _counted(self, unit: str, rows: dict[Model, dict], rule: tuple[int, ...]) -> float:
        """What is asked for, of networks that were counted, by one way of counting."""
        if self.count == "listed":
            return len(rows)
        if self.count == "unchanged":
            layers = {
                model: sum(row["parts"]["decoder"]["kernels"].values()) - row["taps"]
                for model, row in rows.items()
                if re.match("refinenet-lw-(?!rcu-)", model)
            }
            return sum(layers[model] == layers[self.model] for model in layers) - 1

        def size(part: dict) -> float:
            if self.count == "params":
                return part["params"]
            return sum(times * part["macs"][kind] for kind, times in zip(KINDS, rule))

        sizes = {model: size(row) for model, row in rows.items()}
        if self.saved:
            ratio = min(sizes[large] / sizes[small] for large, small in self.saved)
            return ratio if unit == "x" else 100 * (1 - 1 / ratio)
        if self.share:
            return min(100 * size(row["parts"][self.share]) / sizes[m] for m, row in rows.items())
        return next(iter(sizes.values())) / {"M": 1e6, "B": 1e9}[unit]


# ---------------------------------------------------------------- accuracy


class ScoreTest(Test):
    """mIoU of a network on a data set of the paper: its cell."""

    score: Data
    split: Literal["train", "val", "test"]
    model: Model

    def answers(self, claim, recorded: list[dict]) -> Answers:
        """Runs of recipes on that data set, and evaluations there, of whole images at one scale."""
        answers = []
        for recipe in RECIPES.values():
            wanted = recipe.name.startswith(("paper-", "authors-")) and recipe.model == self.model
            if wanted and (recipe.data, recipe.validation) == (self.score, self.split):
                if runs := trained(recorded, recipe.name):
                    measured = {
                        s: (100 * r["metrics"]["miou"], (r["name"],), unfit(r))
                        for s, r in runs.items()
                    }
                    answers.append(on_trainings(claim, measured, recipe.name, self.score, CELL))
        for record in _of_kind("eval", recorded):
            config, miou = record["config"], record["metrics"]["miou"]
            way = [config[key] for key in ("model", "data", "split", "scales", "flip")]
            if way == [self.model, self.score, self.split, [1.0], False] and miou is not None:
                what = f"{Path(config['checkpoint']).name}, evaluated"
                answers.append(Answer(what, _alone(100 * miou), (record["name"],), CELL))
        data = PAPER_DATA[self.score]
        if self.split == "test" and self.score in ("voc", "cityscapes"):
            return (
                answers,
                f"needs the test labels of {data}, which only the benchmark's server has",
            )
        names = [r.name for r in RECIPES.values() if (r.model, r.data) == (self.model, self.score)]
        words = f"needs a training on {data}: no run of {self.model} on record"
        return answers, words + (f"; rflw train {names[0]}" if names else "")


def trained(recorded: Iterable[dict], recipe: str) -> dict[int, dict]:
    """{seed: record} of finished runs that have exactly a recipe's settings."""
    return {
        record["seed"]: record
        for record in _of_kind("train", recorded)
        if record["status"] == "done"
        and record["config"]["name"] == recipe
        and record["metrics"]["miou"] is not None
        and recipe in RECIPES
        and Recipe.of(record["config"]).hash() == RECIPES[recipe].hash()
    }


class CompareTest(Test):
    """One of the comparisons of data/protocol.yaml, on each of its data sets."""

    compare: str

    @model_validator(mode="after")
    def _is_in_the_protocol(self):
        choose("comparison", self.compare, protocol().comparisons)
        return self

    def answers(self, claim, recorded: list[dict]) -> Answers:
        """Differences of the protocol's runs: outcomes by two one-sided tests, corrected by Holm."""
        name, rules = self.compare, protocol()
        answers, waiting = [], []
        for data, on in rules.data.items():
            mine = differences(data, recorded)[name]
            if not mine.points:
                waiting.append(f"{data} ({mine.against})" if mine.against else data)
                continue
            points = list(mine.points.values())
            least = rules.least_seeds if len(points) < rules.least_seeds else 0
            few = f"fewer than {least} seeds" if least else ""
            what = (
                f"{data}, {len(points)} of {on.seeds} seeds, {mine.outcome}, margin {on.margin:g}"
            )
            if at_least := rules.comparisons[name].at_least:
                expected = {"more": True, "less": False}
                limit = at_least
            else:
                matters = claim.relation == ">"
                kept = ("equivalent", "worse by less than the margin")
                expected = {"better": True, "worse": False} | dict.fromkeys(kept, not matters)
                limit = 0 if matters else -on.margin
            contrary = min(points) <= limit and not mine.against
            answers.append(
                Answer(
                    what,
                    mean_interval(points, 0.90),
                    mine.records,
                    level_of(data),
                    mine.against or few,
                    expected.get(mine.outcome),
                    contrary,
                    on.fixed,
                )
            )
        return (
            answers,
            f"no trainings of both decoders by the protocol yet on {', '.join(waiting)}"
            if waiting
            else "",
        )


@dataclass(frozen=True)
class Difference:
    """What the runs of two forms say: differences by seed, and the outcome after Holm."""

    points: dict[int, float]
    records: tuple[str, ...]
    outcome: str
    against: str  # why it does not vote


def differences(data: str, recorded: list[dict]) -> dict[str, Difference]:
    """All comparisons on one data set: they are one family."""
    rules, results = protocol(), {}
    on = rules.data[data]
    for name, pair in rules.comparisons.items():
        forms = [scored(data, form, recorded) for form in (pair.better, pair.other)]
        dead = [why for runs in forms for _, _, why in runs.values() if why]
        alive = [{seed for seed, (_, _, why) in runs.items() if not why} for runs in forms]
        live = sorted(alive[0] & alive[1])
        scores = np.array([[runs[seed][0] for seed in live] for runs in forms])
        used = tuple(runs[seed][1] for seed in live for runs in forms)
        points = dict(zip(live, (scores[0] - scores[1]).tolist()))
        against = dead[0] if dead and not live else ""
        if live and (best := scores.mean(1).max()) > 100 * rules.votes.ceiling:
            against = f"{data} is too easy: the better form scores {best:.1f} %"
        for form, mean in zip((pair.better, pair.other), scores.mean(1) if live else ()):
            if form == "refinenet" and not on.original[0] <= mean <= on.original[1]:
                against = "the original scores {:.1f} %, not {:g} to {:g} %".format(
                    mean, *on.original
                )
        outcome = _outcome(list(points.values()), on.margin, pair.at_least, rules.least_seeds)
        results[name] = Difference(points, used, "undecided" if against else outcome, against)
    return _corrected(results, on.margin, rules.comparisons)


def scored(data: str, form: str, recorded: list[dict]) -> dict[int, tuple[float, str, str]]:
    """{seed: (score in percent, record, why it has no vote)} of a form's runs of the protocol."""
    recipe, runs = protocol().data[data].recipes.replace("*", short(form)), {}
    for seed, run in trained(recorded, recipe).items():
        metrics = run["metrics"].get("test") or run["metrics"]
        runs[seed] = (
            100 * metrics["miou"],
            run["name"],
            unfit(run) and f"{run['name']}: {unfit(run)}",
        )
    return runs


def _outcome(points: list[float], margin: float, at_least: float | None, least: int) -> str:
    if at_least is None or len(points) < least:
        return equivalence(points, margin, least_seeds=least)
    interval = mean_interval(points, 0.90)
    inside = interval.low <= at_least <= interval.high
    return "undecided" if inside else "more" if interval.low > at_least else "less"


def _corrected(
    family: dict[str, Difference], margin: float, comparisons: dict[str, Compared]
) -> dict[str, Difference]:
    """Outcomes whose p-value, adjusted for the family, is over 5 % are undecided."""
    p_values = [
        1.0
        if each.outcome == "undecided"
        else p_value(list(each.points.values()), each.outcome, comparisons[name].at_least or margin)
        for name, each in family.items()
    ]
    return {
        name: each if p <= 0.05 else replace(each, outcome="undecided")
        for (name, each), p in zip(family.items(), holm(p_values))
    }


class FamiliesTest(Test):
    """Families of encoders on which a light-weight network was trained, is alive and has learnt.

    Its mIoU is to be `LEARNT` times what the best constant answer can have.
    """

    families: Literal["trained"]

    def answers(self, claim, recorded: list[dict]) -> Answers:
        """ResNets, MobileNets, ... of trainings that have a vote."""
        runs: dict[str, tuple[str, str]] = {}
        for record in _of_kind("train", recorded):
            form, _, encoder = record["config"]["model"].rpartition("-")
            ended = record["status"] == "done" and "-grid-" not in record["name"]
            scores = record["metrics"]
            learnt = ended and (scores["miou"] or 0) * len(scores["iou"]) > LEARNT
            if form == "refinenet-lw" and learnt and not unfit(record):
                family = re.match(r"(timm:)?[a-z]+", encoder)[0]
                data = record["config"]["stages"][-1]["data"]
                runs.setdefault(family, (data, record["name"]))
        if not runs:
            return [], "no light-weight network whose live units are on record"
        level = DATA if any(data not in PAPER_DATA for data, _ in runs.values()) else COMBINATION
        names = tuple(name for _, name in runs.values())
        few = "" if len(runs) >= claim.value else f"the claim needs {claim.value:.0f}"
        return [Answer(", ".join(runs), _alone(len(runs)), names, level, few)], ""


# ---------------------------------------------------------------- speed


class TimeTest(Test):
    """Milliseconds, frames a second, or how many times longer the first network of a pair takes."""

    one_of = ("model", "models")
    time: Literal["latency", "fps", "ratio"]
    size: Size
    model: Model = ""
    models: tuple[tuple[Model, Model], ...] = ()  # slow and fast; the smallest ratio counts

    def answers(self, claim, recorded: list[dict]) -> Answers:
        """Medians of interleaved timings of the plain graph, one image at a time, on each device."""
        wanted = self.models or ((self.model,),)
        runs: dict[str, dict[str, dict[Model, dict]]] = {}  # where -> record -> network -> row
        for row in timings(recorded):
            if (row["mode"], row["batch"], row["size"]) == ("eager-fp32", 1, _pixels(self.size)):
                by_record = runs.setdefault(row["where"], {})
                by_record.setdefault(row["record"], {})[row["model"]] = row
        answers = []
        for where, by_record in sorted(runs.items()):
            values = [
                {
                    name: self._value(*(rows[model]["latency_ms"] for model in models))
                    for name, rows in by_record.items()
                    if {*models} <= rows.keys()
                }
                for models in wanted
            ]
            if all(values):
                least = min(values, key=lambda of_record: np.mean([*of_record.values()]))
                passes = min(row["passes"] for rows in by_record.values() for row in rows.values())
                own = CARD in where and passes >= PASSES
                other = "" if own or self.time == "ratio" else "measured on another machine"
                level, names = CELL if own else HARDWARE, _unique(sum(map(list, values), []))
                answers.append(Answer(where, _processes(least), names, level, other))
        missing = "no timings of all its networks are on record"
        return answers, missing if self.time == "ratio" else f"needs the paper's card, a GTX {CARD}"

    def _value(self, *latencies: dict[str, float]) -> float:
        """What is asked for, from the milliseconds of one network, or of a pair."""
        ms = [each.get("median", each["mean"]) for each in latencies]
        if self.time == "ratio":
            return ms[0] / ms[1]
        return 1000 / ms[0] if self.time == "fps" else ms[0]


def _processes(by_record: dict[str, float]) -> Interval:
    """The mean over processes; one alone, or two that agree, are known to ten percent."""
    interval = mean_interval([*by_record.values()])
    if interval.n > 2:
        return interval
    spread = BETWEEN_PROCESSES * interval.mean
    return replace(interval, low=interval.mean - spread, high=interval.mean + spread)


# ---------------------------------------------------------------- what the blocks do


class ProbeTest(Test):
    """A head's score on a frozen network (`rflw probe`), or what a block adds to it."""

    probe: Literal["score", "rcu", "crp"]  # crp: what CRP adds, minus what the RCUs before it add;
    # rcu: what they add, minus half of what CRP adds
    measure: Literal["miou", "accuracy"]
    data: Data | None = None
    row: str = ""  # of Table 4, for a score
    column: str = ""

    def answers(self, claim, recorded: list[dict]) -> Answers:
        """Heads on networks with the original decoder; their own seeds are averaged: n is trainings.

        Heads over the ceiling before the blocks, or that hardly ever change their answer, do not
        count: no block can add to them.
        """
        groups: dict[tuple[str, str, str], dict] = {}
        for record in _of_kind("probe", recorded):
            data, places = record["config"]["data"], record["metrics"]["places"]
            if _form(record) != "refinenet" or self.data not in (None, data):
                continue
            recipe, seed, run = _origin(record, recorded)
            for head in next(iter(places.values()))["heads"]:
                parts = {place: part["heads"][head] for place, part in places.items()}
                percent = {p: 100 * float(np.mean(part[self.measure])) for p, part in parts.items()}
                value = self._added(percent)
                why = unfit(run) or self._says_nothing([*parts.values()], percent)
                groups.setdefault((recipe, data, head), {})[seed] = value, (record["name"],), why
        answers = [
            on_trainings(claim, group, f"{recipe}, {head} heads", data)
            for (recipe, data, head), group in groups.items()
        ]
        if self.data:
            return answers, f"needs {PAPER_DATA[self.data]}: no heads on record; rflw probe"
        return answers, "no heads on a network with the original decoder on record"

    def _says_nothing(self, parts: list[dict], percent: dict[str, float]) -> str:
        """Why a head's scores at all places cannot tell what blocks add."""
        if self.measure == "miou":
            others = [sorted(part["iou"].values())[:-1] for part in parts if "iou" in part]
            best, limit = max(map(np.mean, others), default=1), f"{100 * LITTLE:.0f} %"
            return f"all classes but one have an IoU under {limit}" if best < LITTLE else ""
        constant = max(part.get("majority", 0) for part in parts)
        if constant >= CONSTANT:
            return f"a constant answer is right in {100 * constant:.0f} %"
        ceiling = 100 * protocol().votes.ceiling
        if self.probe != "score" and percent["before RCU"] > ceiling:
            return f"over {ceiling:.0f} % of the answers are right before the blocks"
        return ""

    def _added(self, percent: dict[str, float]) -> float:
        """{place: score} -> what is asked for."""
        if self.probe == "score":
            return percent[self.row[0].lower() + self.row[1:]]
        rcu = percent["after RCU"] - percent["before RCU"]
        crp = percent["after CRP"] - percent["after RCU"]
        return rcu - crp / 2 if self.probe == "rcu" else crp - rcu


class SaturationTest(Test):
    """mIoU with all RCUs switched off, minus what the trained network has (`rflw saturation`)."""

    saturation: Literal["all RCU"]

    def answers(self, claim, recorded: list[dict]) -> Answers:
        """Trained networks with light-weight RCUs, seeds of one recipe together."""
        groups: dict[tuple[str, str], dict] = {}
        for record in _of_kind("saturation", recorded):
            if _form(record) == "refinenet-lw-rcu":
                metrics, (recipe, seed, run) = record["metrics"], _origin(record, recorded)
                without = metrics["groups"][self.saturation]["miou_without"]
                terms = metrics.get("terms", {}).items()
                moved = [term["moved"] for name, term in terms if "rcu" in name and "moved" in term]
                why = unfit(run)
                if metrics["miou"] > protocol().votes.ceiling:
                    why = f"too close to a perfect score: {100 * metrics['miou']:.1f} %"
                elif not moved:
                    why = "how far training moved its RCU weights was not recorded"
                elif np.median(moved) < MOVED:
                    why = f"training moved its RCU weights by {100 * np.median(moved):.0f} %"
                gap = 100 * (without - metrics["miou"])
                group = groups.setdefault((recipe, record["config"]["data"]), {})
                group[seed] = gap, (record["name"],), why
        answers = [on_trainings(claim, group, *key) for key, group in groups.items()]
        return answers, "no network with light-weight RCUs was measured: rflw saturation"


class FieldTest(Test):
    """The side of one receptive field over that of another, each of a form at a place.

    Or, of a single one, what share of the image it covers, in percent. `theory` compares what units
    can depend on, by the operations of the network.
    """

    one_of = ("field", "cover", "theory")
    field: tuple[tuple[str, str], tuple[str, str]] | None = None
    cover: tuple[str, str] | None = None
    theory: tuple[tuple[str, str], tuple[str, str]] | None = None

    def answers(self, claim, recorded: list[dict]) -> Answers:
        """Fields of networks that were trained and measured in the same way (`rflw erf`).

        Networks share units and classes: ratios are made unit by unit, and n is trainings. The method
        that the paper cites (occlusion) and the one that its author pointed to (activation) count;
        gradients measure something else. Activation of the last layer, whose units are classes, is
        no field: it tells how large a class appears.
        """
        if self.theory:
            return _in_theory(self.theory, recorded)
        places = self.field or (self.cover,)
        groups: dict[tuple, dict[int, dict[tuple[str, str], dict]]] = {}
        for record in _of_kind("erf", recorded):
            form, measured = _form(record), record["metrics"]
            recipe, seed, _ = _origin(record, recorded)
            training = recipe.replace(f"-{short(form)}-", "-*-")
            patch = record["config"].get("patch")
            way = measured["method"], *measured["size"], measured["images"], patch
            group = groups.setdefault((record["config"]["data"], training, *way), {})
            for place, layer in measured["layers"].items():
                if layer.get("side", {}).get("mean"):
                    group.setdefault(seed, {})[form, place] = layer | {"of": record, "place": place}
        answers = []
        for (data, training, method, *_), seeds in groups.items():
            measured = {
                seed: _sides([layers[place] for place in places], method, recorded)
                for seed, layers in seeds.items()
                if all(place in layers for place in places)
            }
            if measured:
                answers.append(on_trainings(claim, measured, f"{training}, by {method}", data))
        return (
            answers,
            "no such fields, by a method of the paper, are on record: rflw erf --method occlusion",
        )


def _sides(layers: list[dict], method: str, recorded: list[dict]) -> tuple[float, tuple, str]:
    """The ratio of two sides, or the share of the image that one covers -> (value, records, why)."""
    records_ = [layer["of"] for layer in layers]
    reasons = [unfit(_origin(record, recorded)[2]) for record in records_]
    if method == "gradient":
        reasons = ["gradients measure something other than the paper's fields"]
    if method == "activation" and "last layer" in [layer["place"] for layer in layers]:
        reasons = ["in the last layer, activation tells how large a class appears"]
    config = records_[0]["config"]
    if method == "occlusion":
        patch = config.get("patch", 11)
        least = 2 * patch + config.get("stride", 3)
        if min(layer["side"]["mean"] for layer in layers) < least:
            what = f"a patch of {patch} pixels"
            reasons = [f"{what} cannot measure fields smaller than {least} pixels"]
    if len(layers) == 1:
        height, width = records_[0]["metrics"]["size"]
        value = 100 * layers[0]["side"]["mean"] ** 2 / (height * width)
    else:
        value = _ratio(*layers)
    return value, _unique(r["name"] for r in records_), next(filter(None, reasons), "")


def _ratio(over: dict, under: dict) -> float:
    """The ratio of two sides; unit by unit where two layers share units: around CRP, and classes."""
    units = [dict(zip(x.get("units", ()), x.get("sides", ()))) for x in (over, under)]
    shared = [unit for unit in units[0] if units[1].get(unit)]
    if shared and over["place"] != "after the first sum" != under["place"]:
        return math.exp(np.mean([math.log(units[0][u] / units[1][u]) for u in shared]))
    return over["side"]["mean"] / under["side"]["mean"]


def _in_theory(places: tuple, recorded: list[dict]) -> Answers:
    sides: dict[tuple[str, str, str], dict] = {}
    for record in _of_kind("erf", recorded):
        for place, layer in record["metrics"]["layers"].items():
            encoder = record["config"]["model"].rpartition("-")[2]
            if layer.get("theoretical", [None])[0]:
                sides[encoder, _form(record), place] = layer["theoretical"][0], record["name"]
    for encoder in dict.fromkeys(encoder for encoder, *_ in sides):
        pair = [sides.get((encoder, *place)) for place in places]
        if all(pair):
            (over, first), (under, second) = pair
            what = f"{over} px against {under} px on {encoder}"
            return [Answer(what, _alone(over / under), _unique((first, second)))], ""
    return [], "no such fields on record: rflw erf"


class PictureTest(Test):
    """A statement about a figure, without a number: no record answers it."""

    picture: str

    def answers(self, claim, recorded: list[dict]) -> Answers:
        """No answer, and what shows it."""
        return [], f"no number is given: {self.picture} shows it"


class PaperTest(Test):
    """What only the paper's other numbers, or its authors, can answer."""

    paper: str

    def answers(self, claim, recorded: list[dict]) -> Answers:
        """No answer, and what is missing."""
        return [], f"we cannot measure this: {self.paper}"


class DeployTest(Test):
    """mIoU of a trained network after a step of `rflw.deploy`, minus that before."""

    deploy: Literal["int8"]

    def answers(self, claim, recorded: list[dict]) -> Answers:
        """Evaluations of one network in both ways. That it can be done takes one network."""
        scored: dict[tuple, dict[str, tuple[float, dict]]] = {}
        for record in _of_kind("eval", recorded):
            config, way = record["config"], record["metrics"].get("deployed", "")
            if len(config["scales"]) == 1 and not config["flip"]:
                key = config["checkpoint"], config["data"], config["split"], *config["scales"]
                scored.setdefault(key, {})[way] = record["metrics"]["miou"], record
        answers = []
        for (checkpoint, data, *_), ways in scored.items():
            if {"", self.deploy} <= ways.keys():
                (after, first), (before, second) = ways[self.deploy], ways[""]
                runs = [r for r in _of_kind("train", recorded) if r["name"] == checkpoint]
                dead = unfit(runs[0] if runs else None)
                value = _alone(100 * (after - before))
                names = first["name"], second["name"]
                answers.append(Answer(checkpoint, value, names, level_of(data), dead))
        return answers, "no network was scored before and after: rflw eval --deployed int8"


# ---------------------------------------------------------------- data sets


class CheckTest(Test):
    """Images of splits, or classes that labels hold (`rflw data check`, `rflw lists`)."""

    one_of = ("splits", "classes")
    check: Data
    splits: tuple[Literal["train", "val", "test"], ...] = ()
    classes: Literal["labelled", ""] = ""
    without: str = ""  # a class that the paper does not count

    def answers(self, claim, recorded: list[dict]) -> Answers:
        """The first record of that data set that can tell."""
        missing = (
            f"needs {PAPER_DATA[self.check]}: rflw data check {self.check} --results data/results"
        )
        for record in _of_kind("check", recorded):
            splits, names = record["metrics"]["splits"], (record["name"],)
            if record["metrics"]["data"] != self.check:
                continue
            pixels = [item for part in splits.values() for item in part.get("pixels", {}).items()]
            if self.classes and pixels:
                labels = {label for label, count in pixels if count} - {self.without}
                return [Answer("", _alone(len(labels)), names, CELL)], ""
            if self.splits and {*self.splits} <= {*splits}:
                images = sum(splits[split]["images"] for split in self.splits)
                return [Answer("", _alone(images), names, CELL)], ""
        return [], missing


# ---------------------------------------------------------------- the paper against itself


class PrintedTest(Strict):
    """What the paper's own numbers say of a claim.

    Differences of printed numbers, of which the smallest counts; or frames a second by a printed
    time, which is taken to grow with the area of the image.
    """

    one_of = ("minus", "fps")
    minus: tuple[tuple[Place, Place], ...] = ()
    fps: Place | None = None


AREA = (512 * 512) / (625 * 468)


def printed(test: PrintedTest) -> float:
    """The number that the paper's other numbers imply. Raises InputError for an unknown one."""
    if test.fps:
        return 1000 / (_printed(test.fps) * AREA)
    return min(_printed(over) - _printed(under) for over, under in test.minus)


def _printed(place: Place) -> float:
    return paper.statement(place).value if isinstance(place, str) else paper.value(*place)


# ---------------------------------------------------------------- all kinds


KINDS_OF_TEST = {kind: test for test in Test.__subclasses__() for kind in test.kinds()}


def parse(settings: dict[str, Any]) -> Test:
    """The test that an entry of claims.yaml names.

    Raises:
        InputError: It is not of one kind, or names too little, too much, or something unknown.
    """
    kinds = settings.keys() & KINDS_OF_TEST.keys()
    if len(kinds) != 1:
        raise InputError(f"not a test of one kind; choose from: {', '.join(KINDS_OF_TEST)}")
    return KINDS_OF_TEST[kinds.pop()].of(settings)


def collect(claim, recorded: list[dict]) -> Answers:
    """The answers to a claim that has a test, and what is missing where there is none."""
    answers, missing = claim.test.answers(claim, recorded)
    if claim.kind != "compare":
        answers = [replace(answer, holds=claim.holds(answer.value)) for answer in answers]
    return answers, missing


def _of_kind(kind: str, recorded: Iterable[dict]) -> list[dict]:
    return [record for record in recorded if record["kind"] == kind]


def _unique(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))


def _form(record: dict) -> str:
    """The form of the network that a record is about: "refinenet-lw"."""
    return record["config"]["model"].rpartition("-")[0]


def _origin(record: dict, recorded: list[dict]) -> tuple[str, int, dict | None]:
    """The recipe, the seed and the training's record of the network that a record is about."""
    run = record["config"]["checkpoint"]
    recipe, _, seed = run.rpartition("-s")
    trainings = (r for r in _of_kind("train", recorded) if r["name"] == run)
    return recipe or run, int(seed) if seed.isdigit() else 0, next(trainings, None)


def _alone(value: float) -> Interval:
    return Interval(float(value), math.nan, math.nan, 1)


def _pixels(size: str) -> list[int]:
    """The paper's "625x468", columns first -> [468, 625], rows first."""
    return [int(side) for side in reversed(size.split("x"))]


# ---------------------------------------------------------------- records


EXPERIMENTS = frozenset(
    "train first-steps eval check bench complexity probe saturation erf pictures reliability".split()
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
