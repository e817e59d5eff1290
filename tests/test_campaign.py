"""The campaign: what is missing, what it costs, running it within a budget, and its protocol."""

from dataclasses import asdict, replace
from fnmatch import fnmatch

import pytest
from test_training import Few, assert_equal, tiny
import yaml

import rflw
from rflw import InputError, recipes, records, steps, training
from rflw.complexity import count
from rflw.recipes import RECIPES
from rflw_study import campaign
from rflw_study.campaign import Experiment


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


def run(tmp_path, minutes=60.0, **settings):
    folders = tmp_path / "results", tmp_path / "runs"
    ends = campaign.run_missing("cpu", minutes, *folders, **settings)
    return [(done.name, end.split(":")[0]) for done, end in ends]


def states(tmp_path, tier="cpu"):
    listed = campaign.runs(tier, tmp_path / "results", tmp_path / "runs")
    return {run.name: run.status for run in listed}


def trained(plan, seed, seconds=60.0) -> dict:
    """The record of a run that was not made."""
    record = {field: kind() for field, kind in records.REQUIRED.items()}
    record |= {"kind": "train", "status": "done", "hardware": {"cpu": "Fast", "cores": 2}}
    record |= {"config": asdict(plan), "config_hash": plan.hash(), "metrics": {"miou": 0.5}}
    return record | {"name": f"{plan.name}-s{seed}", "seed": seed, "wall_s": seconds}


def files(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_runs_what_is_missing_in_order_of_worth_and_changes_nothing_else(plan, tmp_path):
    assert states(tmp_path) == {"lw-s0": "missing", "lw-nocrp-s0": "missing", "lw-s1": "missing"}
    with pytest.raises(InputError, match="--only zzz: no run of tier cpu has that in its name"):
        run(tmp_path, only="zzz")
    assert run(tmp_path, only="nocrp") == [("lw-nocrp-s0", "done")]
    before = files(tmp_path)
    assert run(tmp_path) == [("lw-s0", "done"), ("lw-s1", "done")]
    after = files(tmp_path)
    assert before.items() <= after.items()
    assert set(states(tmp_path).values()) == {"done"} and run(tmp_path) == []
    assert files(tmp_path) == after
    names = {record["name"] for record in records.read_all(tmp_path / "results")}
    assert names == {"lw-s0", "lw-nocrp-s0", "lw-s1"}
    # a record counts by the hash of its recipe
    plan["lw"] = replace(plan["lw"], note="other words")
    assert set(states(tmp_path).values()) == {"done"}
    plan["lw"] = replace(plan["lw"], batch=5)
    assert states(tmp_path) == {"lw-s0": "begun", "lw-nocrp-s0": "done", "lw-s1": "begun"}


def test_stops_when_the_time_is_spent_and_resumes_what_was_begun(plan, tmp_path, monkeypatch):
    whole, _ = training.fit(plan["lw-nocrp"], tmp_path / "whole")
    assert run(tmp_path, 0) == []
    real, calls = training.train_step, []

    def slow(*args):
        calls.append(1)
        late = 1e9 if len(calls) == 3 else 0.0  # in the second run
        monkeypatch.setattr(training.time, "monotonic", lambda: late)
        return real(*args)

    monkeypatch.setattr(training, "train_step", slow)
    monkeypatch.setattr(campaign.time, "monotonic", lambda: 0.0)
    assert run(tmp_path, 1) == [("lw-s0", "done"), ("lw-nocrp-s0", "stopped")]
    assert states(tmp_path) == {"lw-s0": "done", "lw-nocrp-s0": "begun", "lw-s1": "missing"}
    monkeypatch.setattr(training, "train_step", real)
    monkeypatch.setattr(training.time, "monotonic", lambda: 0.0)
    assert run(tmp_path) == [("lw-nocrp-s0", "done"), ("lw-s1", "done")]
    assert_equal(whole, rflw.load(tmp_path / "runs" / "lw-nocrp-s0" / "model.safetensors"), 1e-3)


def test_failures_are_on_record_and_the_others_are_run(plan, tmp_path, monkeypatch):
    real, calls = steps.loss_of, []

    def diverges_at_first(*args):
        calls.append(1)
        return real(*args) * (float("nan") if len(calls) == 1 else 1)

    monkeypatch.setattr(steps, "loss_of", diverges_at_first)
    assert run(tmp_path) == [("lw-s0", "failed"), ("lw-nocrp-s0", "done"), ("lw-s1", "done")]
    assert states(tmp_path)["lw-s0"] == "failed" and run(tmp_path) == []
    assert run(tmp_path, retry=True) == [("lw-s0", "done")]
    kept, new = (records.read(f"lw-s0{end}", tmp_path / "results") for end in ("-failed-1", ""))
    assert (kept["status"], new["status"]) == ("failed", "done")  # the failure stays on record
    assert states(tmp_path)["lw-s0"] == "done"


@pytest.mark.parametrize(
    ("error", "status"),
    [(training.InUse("x"), "in use by another process"), (InputError("y"), "refused")],
)
def test_a_run_that_cannot_begin_holds_up_no_other(plan, tmp_path, monkeypatch, error, status):
    ends = []

    def fit(recipe, out, seed, *args, **settings):
        if seed == 0 and recipe.name == "lw":
            raise error
        return None, trained(recipe, seed)

    monkeypatch.setattr(training, "fit", fit)
    try:
        for done, end in campaign.run_missing("cpu", 60.0, tmp_path / "results", tmp_path / "runs"):
            ends.append((done.name, end.split(":")[0]))
    except InputError as e:  # when all others are through
        assert e is error
    else:
        assert status != "refused"
    assert ends == [("lw-s0", status), ("lw-nocrp-s0", "done"), ("lw-s1", "done")]


def test_costs_come_from_records_of_the_same_kind_of_device(plan, tmp_path):
    def minutes(tier):
        listed = campaign.runs(tier, tmp_path / "results", tmp_path / "runs")
        return {run.name: run.minutes for run in listed}

    assert {*minutes("cpu").values()} == {None}
    for seed, seconds in enumerate((60.0, 180.0)):
        records.write(trained(plan["lw"], seed, seconds), tmp_path / "results")
    work = {name: count(rflw.build(plan[name].model, 2), plan[name].crop) for name in plan}
    conv = {name: counted["macs"]["conv"] for name, counted in work.items()}
    ratio = conv["lw-nocrp"] / conv["lw"]
    assert campaign.work(plan["lw"]) == conv["lw"] * plan["lw"].stages[0].epochs
    assert minutes("cpu") == {"lw-s0": 1.0, "lw-s1": 3.0, "lw-nocrp-s0": pytest.approx(2 * ratio)}
    assert minutes("gpu")["lw-s2"] is None


def test_the_shipped_campaign_names_shipped_recipes():
    names = [experiment.recipe for experiment in sum(campaign.GROUPS, [])]
    assert {*names} <= RECIPES.keys() and len({*names}) == len(names)


# ---------------------------------------------------------------- the protocol of the comparison


PROTOCOL = yaml.safe_load((records.REPOSITORY / "data/protocol.yaml").read_text())
# Of each data set what the protocol states: frames, split that is scored, and scale it is seen at.
SCORED = {"camvid": ("233 test frames", "test", 0.5), "nyu": ("654 frames of val", "val", 0.5)}


def compared(data):
    """A recipe of each form that is compared, as the first cell of the grid would choose."""
    epochs = {"camvid": 20, "nyu": 15}[data]
    cell = recipes.GRID[0]
    forms = recipes.COMPARED
    return {f: recipes._compared(data, f, *cell, f"{data}-tuned", epochs) for f in forms}


def test_the_protocol_is_complete():
    assert PROTOCOL["least_seeds"] >= 3 and PROTOCOL["data"].keys() == recipes.COMPARED_ON.keys()
    for data in PROTOCOL["data"].values():
        assert data["margin"] > 0 and data["seeds"] >= PROTOCOL["least_seeds"]
        assert all(data[words].strip() for words in ("reason", "stop", "scored", "recipes"))
    for comparison in PROTOCOL["comparisons"].values():
        forms = {comparison["better"], comparison["other"]}
        assert len(forms) == 2 and forms <= {*recipes.COMPARED} and comparison["claim"]


@pytest.mark.parametrize("data", SCORED)
def test_recipes_are_those_of_the_protocol(data):
    stated, (frames, split, scale) = PROTOCOL["data"][data], SCORED[data]
    plans = compared(data)
    assert all(fnmatch(plan.name, stated["recipes"]) for plan in plans.values())
    chosen = {name for name in RECIPES if fnmatch(name, stated["recipes"])}
    assert chosen == {plans[form].name for on, form in recipes.CHOSEN if on == data}
    planned = [e for e in sum(campaign.GROUPS, []) if e.recipe in chosen]
    light = [e.seeds for e in planned if "-tuned-lw" in e.recipe]
    assert light == [stated["seeds"]] * len(light)
    assert all(e.seeds >= PROTOCOL["least_seeds"] for e in planned)
    for plan in [*plans.values(), *(RECIPES[name] for name in chosen)]:
        assert frames in stated["scored"] and (plan.test or plan.validation) == split
        assert plan.val_scale == scale and plan.val_every == plan.stages[0].epochs  # scored once
        (stage,) = plan.stages
        assert (stage.data, stage.split) == (data, "train")
        shared = next(iter(plans.values()))
        assert (plan.crop, stage.epochs) == (shared.crop, shared.stages[0].epochs)


@pytest.mark.parametrize("data", SCORED)
def test_settings_are_chosen_on_held_out_training_data(data):
    grid = [plan for name, plan in RECIPES.items() if name.startswith(f"{data}-grid-")]
    assert (
        len(grid) == 3 * 6 + 2 * 3
    )  # the original forms have one initialisation, see the protocol
    for plan in grid:
        assert (plan.validation, plan.test, plan.stages[0].split) == ("holdout", "", "fit")
