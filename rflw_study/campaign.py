"""The campaign: which experiments the study needs, which runs are missing, and running those."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
import math
from pathlib import Path
from statistics import median
import time

from rflw import records
from rflw.config import Recipe
from rflw.errors import InputError
from rflw.recipes import CHOSEN, COMPARED_ON, RECIPES, cells, compared, recipe, short

TIERS = ("cpu", "gpu")


@dataclass(frozen=True)
class Experiment:
    """A recipe and the seeds it is run with."""

    recipe: str
    seeds: int
    tier: str  # "cpu": runs there and on a GPU; "gpu": only there
    why: str  # the claim that it tests


def _group(
    kind: str, forms: str, seeds: int, why: str, encoder: str = "efficientnet_lite0", tier="cpu"
) -> list[Experiment]:
    """Recipes of one kind that differ in the form of the network."""
    return [Experiment(f"{kind}-{form}-{encoder}", seeds, tier, why) for form in forms.split()]


def _tuned(data: str, seeds: int, seeds_of_original: int) -> list[Experiment]:
    """The comparison, by settings that the grid has chosen."""
    why = (
        "the light-weight decoder keeps the original's accuracy; its RCUs are redundant, CRP is not"
    )
    experiments, encoder = [], COMPARED_ON[data].encoder
    for form in reversed(compared(data)):  # from the lightest
        if (data, form) in CHOSEN:
            repeats = seeds if form.startswith("refinenet-lw") else seeds_of_original
            experiments += _group(f"{data}-tuned", short(form), repeats, why, encoder)
    return experiments


def _grid(data: str) -> list[Experiment]:
    why = "each form's own settings, chosen on held-out training data"
    return [
        experiment
        for form in reversed(compared(data))
        for how, init in cells(data, form)
        for experiment in _group(
            f"{data}-grid-{how}-{init}", short(form), 1, why, COMPARED_ON[data].encoder
        )
    ]


# In order of worth, group by group; inside a group the first seed of every form comes before any
# second one, so that forms can be compared at any time.
GROUPS = (
    _tuned("camvid", 5, 3),
    _tuned("clutter-large", 3, 3),
    _tuned("clutter", 5, 3),
    _tuned("nyu", 3, 3),
    _grid("clutter"),
    _grid("camvid"),
    _grid("nyu"),
    _group("camvid-long", "lw", 1, "the best network for CamVid, to use", "efficientnet_lite2")
    + _group("nyu-half", "lw", 1, "the network for NYUDv2 to use, at half size", "mobilenet_v2")
    + _group("nyu-long", "lw", 1, "the best network for NYUDv2, to use", "mobilenet_v2"),
    _group(
        "camvid",
        "lw lw-rcu lw-nocrp",
        3,
        "RCUs are redundant in the light-weight decoder, CRP is not",
    ),
    _group(
        "embedded",
        "lw lw-rcu lw-nocrp lw-top2 norcu original",
        5,
        "what each block of either decoder is worth",
    ),
    [
        Experiment(name, 1, "cpu", "settings for CamVid, chosen on held-out training frames")
        for name in RECIPES
        if name.startswith("camvid-tune-")
    ],
    _group(
        "camvid-short",
        "lw lw-rcu norcu original",
        1,
        "light-weight against original, at the size that a CPU allows",
    ),
    _group(
        "camvid",
        "original norcu lw-top2",
        3,
        "the light-weight decoder keeps the original's accuracy",
        tier="gpu",
    ),
    _group("camvid", "lw", 1, "any encoder works: ResNet-50, from random weights", "resnet50"),
    _group("camvid", "lw", 3, "any encoder works", "efficientnet_lite1", tier="gpu")
    + _group("camvid", "lw", 3, "any encoder works", "efficientnet_lite2", tier="gpu"),
)


@dataclass
class Run:
    """One experiment with one seed, and how far it is."""

    experiment: Experiment
    seed: int
    status: str = "missing"  # or "begun", "failed", "done"
    minutes: float | None = None  # that it took, or will take

    @property
    def name(self) -> str:
        """Of its folder and its record."""
        return f"{self.experiment.recipe}-s{self.seed}"


def runs(tier: str, results: Path = records.FOLDER, folder: Path = Path("runs")) -> list[Run]:
    """All runs of a tier in order of worth.

    A run is done, or has failed, if the record of its name has the hash of its recipe.

    Args:
        tier: "cpu", or "gpu" for all.
        results: Folder of the records.
        folder: Folder of the runs' folders.

    Raises:
        InputError: The tier is unknown, or a record is damaged.
    """
    if tier not in TIERS:
        raise InputError(f"unknown tier {tier!r}; choose from: {', '.join(TIERS)}")
    trained = {r["name"]: r for r in records.read_all(results) if r["kind"] == "train"}
    listed = []
    for group in GROUPS:
        experiments = [e for e in group if tier in (e.tier, "gpu")]
        for seed in range(max((e.seeds for e in experiments), default=0)):
            listed += [Run(e, seed) for e in experiments if seed < e.seeds]
    costs = [  # of the runs that were finished on the tier's kind of device
        (Recipe.of(record["config"]), record["wall_s"] / 60)
        for record in trained.values()
        if record["status"] == "done" and ("gpu" in record["hardware"]) == (tier == "gpu")
    ]
    for run in listed:
        plan, record = RECIPES[run.experiment.recipe], trained.get(run.name)
        if record and record["config_hash"] == plan.hash():
            run.status, run.minutes = record["status"], record["wall_s"] / 60
            continue
        if (Path(folder) / run.name / "last.pt").exists():
            run.status = "begun"
        run.minutes = _estimate(plan, costs)
    return listed


def _estimate(plan: Recipe, costs: list[tuple[Recipe, float]]) -> float | None:
    """Minutes of a run to come: as its recipe's, else by the work of others on the same data."""
    if same := [minutes for other, minutes in costs if other == plan]:
        return median(same)
    rates = [minutes / work(other) for other, minutes in costs if other.data == plan.data]
    return work(plan) * median(rates) if rates else None


def work(plan: Recipe) -> float:
    """Multiply-adds of a recipe's forward passes over a data set of one image."""
    height, width = plan.crop
    share = height * width / 64**2
    return share * _macs(plan.model) * sum(stage.epochs for stage in plan.stages)


@cache
def _macs(model: str) -> int:
    """Of the convolutions, on 64 x 64 pixels."""
    import torch

    from rflw.nn.refinenet import build

    macs = []

    def count(conv, _, output):
        macs.append(conv.weight.numel() * output.shape[2:].numel())

    network = build(model, 2).eval()
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(count)
    with torch.inference_mode():
        network(torch.zeros(1, 3, 64, 64))
    return sum(macs)


def run_missing(
    tier: str,
    budget_minutes: float,
    results: Path = records.FOLDER,
    folder: Path = Path("runs"),
    root: Path | None = None,
    workers: int = 0,
    retry: bool = False,
    only: str = "",
    progress: bool = False,
) -> Iterator[tuple[Run, str]]:
    """Train what is missing, begun runs first, in order of worth, until the time is spent.

    Whatever ends the process, every run resumes from its last checkpoint next time, wherever its
    folder is then. A finished run writes its record; other records and folders stay as they are.

    Args:
        tier: "cpu", or "gpu" for all.
        budget_minutes: When to stop.
        results: Folder of the records.
        folder: Folder of the runs' folders.
        root: Folder of the data sets.
        workers: Processes that augment images.
        retry: Run failed ones again; the records of their failures stay.
        only: What a run's name must hold.
        progress: Whether to show bars.

    Yields:
        Each run that was due, and how it ended: "done: ...", "failed: why", "refused: why", "in use
        by another process" or "stopped: the time is spent".

    Raises:
        InputError: A run was refused, because its folder holds the run of another recipe or a
            damaged checkpoint. It is raised when all other runs have ended.
    """
    refusals = []
    until = time.monotonic() + 60 * budget_minutes
    settings = {"resume": True, "workers": workers, "progress": progress, "until": until}
    device = "cuda" if tier == "gpu" else "cpu"
    due = ("begun", "missing", "failed") if retry else ("begun", "missing")
    chosen = [run for run in runs(tier, results, folder) if only in run.name]
    if not chosen:
        raise InputError(f"--only {only}: no run of tier {tier} has that in its name")
    todo = [run for run in chosen if run.status in due]
    for run in sorted(todo, key=lambda run: run.status != "begun"):
        if time.monotonic() > until:
            return
        try:
            end = _train(run, Path(folder) / run.name, results, root, device, **settings)
        except InputError as e:
            refusals.append(e)
            end = f"refused: {e}"
        except TimeoutError:
            yield run, "stopped: the time is spent"
            return
        yield run, end
    if refusals:
        raise refusals[0]


def _train(run: Run, out: Path, results: Path, root: Path | None, device: str, **settings) -> str:
    """Train a run and write its record -> how it ended; raises as `rflw.training.fit` does."""
    from rflw import training

    plan = recipe(run.experiment.recipe)
    try:
        _, record = training.fit(plan, out, run.seed, root, device, **settings)
    except training.InUse:
        return "in use by another process"
    except training.Failed as e:
        _file(records.read(out / "record.json"), results)
        return f"failed: {e}"
    _file(record, results)
    miou = 100 * (record["metrics"]["miou"] or math.nan)
    return f"done: mIoU {miou:.1f} %, {record['wall_s'] / 60:.0f} min"


def _file(record: dict, results: Path) -> None:
    """Write a run's record; one of an earlier failure stays beside it, under a name of its own."""
    name = record["name"]
    if (Path(results) / f"{name}.json").exists():
        earlier = records.read(name, results)
        if earlier["status"] == "failed" and earlier["sha256"] != records.digest(record):
            number = len(list(Path(results).glob(f"{name}-failed-*.json"))) + 1
            records.write(earlier | {"name": f"{name}-failed-{number}"}, results)
    records.write(record, results)
