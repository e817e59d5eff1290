"""The campaign: what is missing, what it costs, running it within a budget, and its protocol."""

from contextlib import nullcontext
from dataclasses import asdict, replace
from fnmatch import fnmatch

import pytest
from test_training import Few, tiny

import rflw
from rflw import InputError, recipes, records, training
from rflw.complexity import count
from rflw.recipes import RECIPES
from rflw_study import campaign, evidence
from rflw_study.campaign import Experiment

NAMES = ["lw-s0", "lw-nocrp-s0", "lw-s1"]  # in order of worth


@pytest.fixture
def plan(monkeypatch):
    """Two experiments of three runs: small networks on a few scenes."""
    plans = {
        name: replace(tiny(1, model=f"refinenet-{name}-mobilenet_v2", crop=(64, 64)), name=name)
        for name in ("lw", "lw-nocrp")
    }
    groups = (
        [Experiment("lw", 2, "cpu", "a"), Experiment("lw-nocrp", 1, "cpu", "b")],
        [Experiment("lw", 3, "gpu", "c")],
    )
    monkeypatch.setattr(campaign, "GROUPS", groups)
    monkeypatch.setattr(campaign, "RECIPES", plans)
    monkeypatch.setattr(campaign, "recipe", plans.__getitem__)
    monkeypatch.setattr(training, "open_dataset", lambda name, split, root: Few(split))
    return plans


@pytest.fixture
def errors(monkeypatch):
    """Runs take no time; what is put here under a run's name is how that one ends."""
    raised = {}

    def fit(plan, out, seed, *_, **options):
        out.mkdir(parents=True, exist_ok=True)
        (out / "last.pt").touch()
        if error := raised.get(out.name):
            records.write(trained(plan, seed) | {"status": "failed"}, out, "record")
            raise error
        return None, trained(plan, seed)

    monkeypatch.setattr(training, "fit", fit)
    return raised


def run(tmp_path, minutes=60.0, ends=None, **settings):
    """Each run that was due, and how it ended."""
    ends = [] if ends is None else ends
    folders = tmp_path / "results", tmp_path / "runs"
    for done, end in campaign.run_missing("cpu", minutes, *folders, **settings):
        ends.append((done.name, end.split(":")[0]))
    return ends


def listed(tmp_path, what, tier="cpu"):
    runs = campaign.runs(tier, tmp_path / "results", tmp_path / "runs")
    return {run.name: getattr(run, what) for run in runs}


def trained(plan, seed, seconds=60.0) -> dict:
    """The record of a run that was not made."""
    record = {field: kind() for field, kind in records.REQUIRED.items()}
    record |= {"kind": "train", "status": "done", "hardware": {"cpu": "Fast", "cores": 2}}
    record |= {"config": asdict(plan), "config_hash": plan.hash(), "metrics": {"miou": 0.5}}
    return record | {"name": f"{plan.name}-s{seed}", "seed": seed, "wall_s": seconds}


def test_runs_what_is_missing_in_order_of_worth_and_changes_nothing_else(plan, errors, tmp_path):
    assert listed(tmp_path, "status") == dict.fromkeys(NAMES, "missing")
    with pytest.raises(InputError, match="--only zzz: no run of tier cpu has that in its name"):
        run(tmp_path, only="zzz")
    assert run(tmp_path, only="nocrp") == [("lw-nocrp-s0", "done")]
    other = tmp_path / "results/lw-nocrp-s0.json"
    before = other.read_bytes(), other.stat().st_mtime_ns
    assert run(tmp_path, minutes=0) == []
    errors["lw-s1"] = TimeoutError()
    assert run(tmp_path, only="s1") == [("lw-s1", "stopped")]
    errors.clear()
    assert run(tmp_path) == [("lw-s1", "done"), ("lw-s0", "done")]  # what was begun comes first
    assert listed(tmp_path, "status") == dict.fromkeys(NAMES, "done") and run(tmp_path) == []
    assert before == (other.read_bytes(), other.stat().st_mtime_ns)
    assert {path.stem for path in other.parent.iterdir()} == {*NAMES}
    # a record counts by the hash of its recipe
    plan["lw"] = replace(plan["lw"], note="other words")
    assert listed(tmp_path, "status") == dict.fromkeys(NAMES, "done")
    plan["lw"] = replace(plan["lw"], batch=5)
    assert list(listed(tmp_path, "status").values()) == ["begun", "done", "begun"]


def test_stops_when_the_time_is_spent_and_resumes_what_was_begun(plan, tmp_path, monkeypatch):
    """Truly trained: a run has two steps, and the time is spent after the first."""
    real, calls = training.train_step, []
    monkeypatch.setattr(training, "train_step", lambda *args: calls.append(1) or real(*args))
    monkeypatch.setattr(training.time, "monotonic", lambda: 1e9 * (len(calls) == 1))
    assert run(tmp_path, 1, only="nocrp") == [("lw-nocrp-s0", "stopped")]
    assert listed(tmp_path, "status") == dict(zip(NAMES, ("missing", "begun", "missing")))
    calls.append(1)
    assert run(tmp_path, only="nocrp") == [("lw-nocrp-s0", "done")]
    assert len(calls) == 1 + 2


@pytest.mark.parametrize(
    ("error", "ends"),
    [
        (training.InUse("x"), ["in use by another process", "done", "done"]),
        (InputError("x"), ["refused", "done", "done"]),
        (training.Failed("x"), ["failed", "done", "done"]),
        (TimeoutError("x"), ["stopped"]),
    ],
)
def test_a_run_that_does_not_end_well_holds_up_no_other(plan, errors, tmp_path, error, ends):
    errors["lw-s0"], found = error, []
    refused = pytest.raises(InputError, match="^x$") if ends[0] == "refused" else nullcontext()
    with refused:  # raised when all others are through
        run(tmp_path, ends=found)
    assert found == [*zip(NAMES, ends)]
    if ends[0] == "failed":  # it is run again when asked for, and the failure stays on record
        assert listed(tmp_path, "status")["lw-s0"] == "failed" and run(tmp_path) == []
        errors.clear()
        assert run(tmp_path, retry=True) == [("lw-s0", "done")]
        kept = (records.read(f"lw-s0{end}", tmp_path / "results") for end in ("-failed-1", ""))
        assert [record["status"] for record in kept] == ["failed", "done"]


def test_costs_come_from_records_of_the_same_kind_of_device(plan, tmp_path):
    assert {*listed(tmp_path, "minutes").values()} == {None}
    records.write(trained(plan["lw"], 0, 60.0), tmp_path / "results")
    assert listed(tmp_path, "minutes")["lw-s1"] == 1.0  # as the same recipe's
    records.write(trained(plan["lw"], 1, 180.0), tmp_path / "results")
    counted = {name: count(rflw.build(plan[name].model, 2), plan[name].crop) for name in plan}
    conv = {name: each["macs"]["conv"] for name, each in counted.items()}
    assert campaign.work(plan["lw"]) == conv["lw"]
    assert campaign.work(replace(tiny(3, crop=(64, 128)))) == 2 * 3 * conv["lw"]
    third = pytest.approx(2 * conv["lw-nocrp"] / conv["lw"])
    assert listed(tmp_path, "minutes") == dict(zip(NAMES, (1.0, third, 3.0)))
    assert listed(tmp_path, "minutes", "gpu")["lw-s2"] is None


# ---------------------------------------------------------------- the protocol of the comparison


PROTOCOL = evidence.protocol()


def test_the_protocol_and_the_shipped_campaign_are_complete():
    names = [experiment.recipe for experiment in sum(campaign.GROUPS, [])]
    assert {*names} <= RECIPES.keys() and len({*names}) == len(names)
    assert PROTOCOL.least_seeds >= 3 and PROTOCOL.data.keys() == recipes.COMPARED_ON.keys()
    assert all(on.seeds >= PROTOCOL.least_seeds for on in PROTOCOL.data.values())
    for pair in PROTOCOL.comparisons.values():
        assert len({pair.better, pair.other} & {*recipes.COMPARED}) == 2


# Of each data set what the protocol states: frames, split that is scored, epochs.
@pytest.mark.parametrize(
    ("data", "frames", "split", "epochs"),
    [
        ("camvid", "233 test frames", "test", 20),
        ("clutter", "256 scenes of val", "val", 8),
        ("clutter-large", "256 scenes of val", "val", 1),
        ("nyu", "654 frames of val", "val", 15),
    ],
)
def test_recipes_are_those_of_the_protocol(data, frames, split, epochs):
    stated, cell = PROTOCOL.data[data], recipes.GRID[0]
    plans = [
        recipes._compared(data, form, *cell, f"{data}-tuned", epochs)
        for form in recipes.compared(data)
    ]
    assert all(fnmatch(plan.name, stated.recipes) for plan in plans)
    chosen = {name for name in RECIPES if fnmatch(name, stated.recipes)}
    forms = [form for on, form in recipes.CHOSEN if on == data]
    assert chosen == {plans[[*recipes.compared(data)].index(form)].name for form in forms}
    for experiment in sum(campaign.GROUPS, []):
        if experiment.recipe in chosen:
            light = "-tuned-lw" in experiment.recipe
            assert experiment.seeds >= (stated.seeds if light else PROTOCOL.least_seeds)
    assert frames in stated.scored
    for plan in [*plans, *(RECIPES[name] for name in chosen)]:
        (stage,) = plan.stages
        assert (stage.data, stage.split, stage.epochs) == (data, "train", epochs)
        assert (plan.test or plan.validation) == split
        assert plan.val_scale == (1.0 if "clutter" in data else 0.5)
        assert plan.val_every == epochs  # scored once
        assert plan.crop == plans[0].crop
    # settings are chosen on held-out training data; the original forms have one initialisation
    grid = [plan for name, plan in RECIPES.items() if name.startswith(f"{data}-grid-")]
    assert len(grid) == {"clutter": 6 * 3, "clutter-large": 0}.get(data, 3 * 6 + 2 * 3)
    trained = "train" if data == "clutter" else "fit"
    for plan in grid:
        assert (plan.validation, plan.test, plan.stages[0].split) == ("holdout", "", trained)
