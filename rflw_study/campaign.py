"""The campaign: which experiments the study needs, which runs of them are missing, and running those."""

from collections.abc import Iterator
from dataclasses import dataclass
import math
from pathlib import Path
from statistics import median
import time

from rflw import records
from rflw.config import Recipe
from rflw.errors import InputError
from rflw.recipes import CHOSEN, COMPARED, COMPARED_ON, GRID, RECIPES, recipe

TIERS = ("cpu", "gpu")


@dataclass(frozen=True)
class Experiment:
    """A recipe and the seeds it is run with."""

    recipe: str
    seeds: int
    tier: str  # "cpu": runs there and on a GPU; "gpu": only there
    why: str  # the claim that it tests


def _forms(
    data: str, forms: str, seeds: int, tier: str, why: str, encoder: str = "efficientnet_lite0"
) -> list[Experiment]:
    return [Experiment(f"{data}-{form}-{encoder}", seeds, tier, why) for form in forms.split()]


# In order of worth, group by group; inside a group the first seed of every form comes before any second one, so that
# forms can be compared at any time.
def _short(form: str) -> str:
    return form.removeprefix("refinenet").removeprefix("-") or "original"


def _tuned(data: str) -> list[Experiment]:
    """The forms that the grid has chosen settings for, from the lightest."""
    forms = [_short(form) for form in COMPARED if (data, form) in CHOSEN]
    return _forms(
        f"{data}-tuned",
        " ".join(reversed(forms)),
        {"camvid": 5, "nyu": 3}[data],
        "cpu",
        "the light-weight decoder keeps the original's accuracy; RCUs are redundant in it; CRP is not",
        COMPARED_ON[data],
    )


def _grid(data: str) -> list[Experiment]:
    return [
        Experiment(
            f"{data}-grid-{how}-{init}-{_short(form)}-{COMPARED_ON[data]}",
            1,
            "cpu",
            "each form's own settings, chosen on held-out training data",
        )
        for form in reversed(COMPARED)
        for how, init in GRID
    ]


GROUPS = (
    _tuned("camvid"),
    _tuned("nyu"),
    _grid("camvid"),
    _grid("nyu"),
    [
        Experiment(
            "camvid-long-lw-efficientnet_lite2", 1, "cpu", "the best network for CamVid, to use"
        ),
        Experiment("nyu-long-lw-mobilenet_v2", 1, "cpu", "the best network for NYUDv2, to use"),
    ],
    _forms(
        "camvid",
        "lw lw-rcu lw-nocrp",
        3,
        "cpu",
        "RCUs are redundant in the light-weight decoder, CRP is not",
    ),
    _forms(
        "embedded",
        "lw lw-rcu lw-nocrp lw-top2 norcu original",
        5,
        "cpu",
        "what each block of either decoder is worth",
    ),
    [
        Experiment(
            f"camvid-tune-{what}",
            1,
            "cpu",
            "settings for CamVid, chosen on held-out training frames",
        )
        for what in (
            "plain",
            "balance",
            "strong-balance",
            "rates",
            "adamw",
            "batch",
            "batch-adamw",
            "scale",
            "crop",
            "lite2",
        )
    ],
    _forms(
        "camvid-short",
        "lw lw-rcu norcu original",
        1,
        "cpu",
        "light-weight against original, at the size that a CPU allows",
    ),
    _forms(
        "camvid",
        "original norcu lw-top2",
        3,
        "gpu",
        "the light-weight decoder keeps the original's accuracy",
    ),
    [Experiment(f"camvid-lw-efficientnet_lite{n}", 3, "gpu", "any encoder works") for n in (1, 2)],
    *(
        _forms(
            "camvid",
            "lw lw-rcu original",
            3,
            "gpu",
            "the paper's encoder, from random weights",
            encoder,
        )
        for encoder in ("resnet50", "resnet101")
    ),
)


@dataclass
class Run:
    """One experiment with one seed, and how far it is: "done", "failed", "begun" or "missing"."""

    experiment: Experiment
    seed: int
    status: str
    minutes: float | None = None  # that it took, or will take

    @property
    def name(self) -> str:
        return f"{self.experiment.recipe}-s{self.seed}"


def runs(tier: str, results: Path = records.FOLDER, folder: Path = Path("runs")) -> list[Run]:
    """All runs of a tier in order of worth. A run is done, or has failed, if a record of the same settings says so."""
    if tier not in TIERS:
        raise InputError(f"unknown tier {tier!r}: {' or '.join(TIERS)}")
    found = {
        record["name"]: record for record in records.read_all(results) if record["kind"] == "train"
    }
    listed = []
    for group in GROUPS:
        experiments = [
            experiment for experiment in group if experiment.tier == "cpu" or tier == "gpu"
        ]
        for seed in range(max((e.seeds for e in experiments), default=0)):
            for experiment in experiments:
                run = Run(experiment, seed, "missing")
                record = found.get(run.name)
                if seed >= experiment.seeds:
                    continue
                if (
                    record
                    and Recipe.of(record["config"]).hash() == RECIPES[experiment.recipe].hash()
                ):
                    run.status, run.minutes = record["status"], record["wall_s"] / 60
                elif (Path(folder) / run.name / "last.pt").exists():
                    run.status = "begun"
                listed.append(run)
    _estimate(listed, tier, found)
    return listed


def _estimate(listed: list[Run], tier: str, found: dict) -> None:
    """Minutes of the runs to come: those of their own recipe's runs, else in proportion to the work of other runs on the same
    data; None where this kind of device has none on record."""
    seen = {}
    for record in found.values():
        if record["status"] == "done" and ("gpu" in record["hardware"]) == (tier == "gpu"):
            seen.setdefault(Recipe.of(record["config"]), []).append(record["wall_s"] / 60)
    for run in listed:
        if run.status in ("done", "failed"):
            continue
        plan = RECIPES[run.experiment.recipe]
        if plan in seen:
            run.minutes = median(seen[plan])
        else:
            rates = [
                minutes / work(other)
                for other, costs in seen.items()
                for minutes in costs
                if other.data == plan.data
            ]
            run.minutes = work(plan) * median(rates) if rates else None


_work = {}


def work(plan: Recipe) -> float:
    """Multiply-adds of a recipe's forward passes, but for the number of images in its data set, which it takes as one."""
    key = (plan.model, plan.crop)
    if key not in _work:
        import torch
        from torch.utils.flop_counter import FlopCounterMode

        from rflw.nn.refinenet import build

        with torch.device("meta"), FlopCounterMode(display=False) as counter:
            build(plan.model, 2).eval()(torch.empty(1, 3, *plan.crop))
        _work[key] = counter.get_total_flops() / 2
    return _work[key] * sum(stage.epochs for stage in plan.stages)


def run_missing(
    tier: str,
    budget_minutes: float,
    results: Path = records.FOLDER,
    folder: Path = Path("runs"),
    root=None,
    workers: int = 0,
    retry: bool = False,
    only: str = "",
    progress: bool = False,
) -> Iterator[tuple[Run, str]]:
    """Train what is missing, begun runs first, in order of worth, until the time is spent -> (run, how it ended) of each:
    "done", "failed: why", "refused: why", "in use by another process" or "stopped: the time is spent".

    only: what a run's name must hold. retry: run failed ones again; their records stay. Whatever ends the process, every run goes on
    from its last checkpoint next time, wherever its folder is then. A run that is refused (its folder holds another recipe's, or a
    damaged checkpoint) holds up no other: the first such InputError is raised when all others are through.
    """
    from rflw import training

    refused = None
    until = time.monotonic() + 60 * budget_minutes
    wanted = ("begun", "missing", "failed") if retry else ("begun", "missing")
    todo = [run for run in runs(tier, results, folder) if run.status in wanted and only in run.name]
    for run in sorted(todo, key=lambda run: run.status != "begun"):
        if time.monotonic() > until:
            return
        out = Path(folder) / run.name
        try:
            _, record = training.fit(
                recipe(run.experiment.recipe),
                out,
                run.seed,
                root,
                "cuda" if tier == "gpu" else "cpu",
                resume=True,
                workers=workers,
                progress=progress,
                until=until,
            )
        except training.InUse:
            yield run, "in use by another process"
            continue
        except training.Failed as e:
            _file(records.read(out / "record.json"), results)
            yield run, f"failed: {e}"
            continue
        except InputError as e:
            refused = refused or e
            yield run, f"refused: {e}"
            continue
        except TimeoutError:
            yield run, "stopped: the time is spent"
            return
        _file(record, results)
        yield (
            run,
            f"done: mIoU {100 * (record['metrics']['miou'] or math.nan):.1f} %, {record['wall_s'] / 60:.0f} min",
        )
    if refused:
        raise refused


def _file(record: dict, results: Path) -> None:
    """Write a run's record; one of an earlier failure stays beside it, under a name of its own."""
    name = record["name"]
    if (Path(results) / f"{name}.json").exists():
        earlier = records.read(name, results)
        if earlier["status"] == "failed" and earlier["sha256"] != records.digest(record):
            number = len(list(Path(results).glob(f"{name}-failed-*.json"))) + 1
            records.write(earlier | {"name": f"{name}-failed-{number}"}, results)
    records.write(record, results)
