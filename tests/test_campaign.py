"""The campaign: what is missing, what it costs, and running it within a budget."""

from dataclasses import asdict, replace

import pytest
from test_training import Few, assert_equal, tiny

import rflw
from rflw import InputError, records, training
from rflw_study import campaign
from rflw_study.campaign import Experiment


@pytest.fixture
def plan(monkeypatch):
    """Two experiments of three runs: small networks on a few scenes."""
    recipes = {
        name: replace(tiny(1, model=f"refinenet-{name}-mobilenet_v2"), name=name)
        for name in ("lw", "lw-nocrp")
    }
    groups = (
        [Experiment("lw", 2, "cpu", "a"), Experiment("lw-nocrp", 1, "cpu", "b")],
        [Experiment("lw", 3, "gpu", "c")],
    )
    monkeypatch.setattr(campaign, "GROUPS", groups)
    monkeypatch.setattr(campaign, "RECIPES", recipes)
    monkeypatch.setattr(campaign, "recipe", recipes.__getitem__)
    monkeypatch.setattr(training, "open_dataset", lambda name, split, root: Few(split))
    return recipes


def run(tmp_path, minutes=60.0, **settings):
    return [
        (done.name, end.split(":")[0])
        for done, end in campaign.run_missing(
            "cpu", minutes, tmp_path / "results", tmp_path / "runs", **settings
        )
    ]


def states(tmp_path):
    return {
        done.name: done.status
        for done in campaign.runs("cpu", tmp_path / "results", tmp_path / "runs")
    }


def test_runs_what_is_missing_in_order_of_worth(plan, tmp_path):
    assert states(tmp_path) == {"lw-s0": "missing", "lw-nocrp-s0": "missing", "lw-s1": "missing"}
    assert run(tmp_path) == [("lw-s0", "done"), ("lw-nocrp-s0", "done"), ("lw-s1", "done")]
    assert set(states(tmp_path).values()) == {"done"} and run(tmp_path) == []
    assert {r["name"] for r in records.read_all(tmp_path / "results")} == {
        "lw-s0",
        "lw-nocrp-s0",
        "lw-s1",
    }


def test_may_be_asked_for_some(plan, tmp_path):
    assert run(tmp_path, only="nocrp") == [("lw-nocrp-s0", "done")]


def test_a_record_of_other_settings_does_not_count(plan, tmp_path):
    run(tmp_path)
    plan["lw"] = replace(plan["lw"], batch=5)
    assert states(tmp_path) == {"lw-s0": "begun", "lw-nocrp-s0": "done", "lw-s1": "begun"}


def test_stops_when_the_time_is_spent_and_goes_on_with_what_was_begun(plan, tmp_path, monkeypatch):
    whole, _ = training.fit(plan["lw-nocrp"], tmp_path / "whole")
    assert run(tmp_path, 0) == []
    real, calls = training.train_step, []

    def slow(*args):
        calls.append(1)
        monkeypatch.setattr(
            training.time, "monotonic", lambda: 1e9 if len(calls) == 3 else 0.0
        )  # in the second run
        return real(*args)

    monkeypatch.setattr(training, "train_step", slow)
    monkeypatch.setattr(campaign.time, "monotonic", lambda: 0.0)
    assert run(tmp_path, 1) == [("lw-s0", "done"), ("lw-nocrp-s0", "stopped")]
    assert states(tmp_path) == {"lw-s0": "done", "lw-nocrp-s0": "begun", "lw-s1": "missing"}
    monkeypatch.setattr(training, "train_step", real)
    monkeypatch.setattr(training.time, "monotonic", lambda: 0.0)
    assert run(tmp_path) == [("lw-nocrp-s0", "done"), ("lw-s1", "done")]
    assert_equal(whole, rflw.load(tmp_path / "runs" / "lw-nocrp-s0" / "model.safetensors"), 1e-3)


def test_failures_are_on_record_and_the_others_go_on(plan, tmp_path, monkeypatch):
    real, calls = training.loss_of, []

    def diverges_at_first(*args):
        calls.append(1)
        return real(*args) * (float("nan") if len(calls) == 1 else 1)

    monkeypatch.setattr(training, "loss_of", diverges_at_first)
    assert run(tmp_path) == [("lw-s0", "failed"), ("lw-nocrp-s0", "done"), ("lw-s1", "done")]
    assert records.read("lw-s0", tmp_path / "results")["status"] == "failed"
    assert states(tmp_path)["lw-s0"] == "failed" and run(tmp_path) == []
    assert run(tmp_path, retry=True) == [("lw-s0", "done")]
    kept = records.read("lw-s0-failed-1", tmp_path / "results")  # the failure stays on record
    assert (kept["status"], records.read("lw-s0", tmp_path / "results")["status"]) == (
        "failed",
        "done",
    )
    assert states(tmp_path)["lw-s0"] == "done"


def test_a_run_that_is_refused_holds_up_no_other(plan, tmp_path):
    (tmp_path / "runs" / "lw-s0").mkdir(parents=True)
    (tmp_path / "runs" / "lw-s0" / "last.pt").write_bytes(b"cut off")
    with pytest.raises(InputError, match="last.pt: not a whole checkpoint"):
        run(tmp_path)
    assert states(tmp_path) == {"lw-s0": "begun", "lw-nocrp-s0": "done", "lw-s1": "done"}


def test_a_run_in_use_is_left_to_the_other_process(plan, tmp_path):
    (tmp_path / "runs" / "lw-s0").mkdir(parents=True)
    with training._Running(tmp_path / "runs" / "lw-s0"):
        assert run(tmp_path)[0] == ("lw-s0", "in use by another process")
    assert states(tmp_path)["lw-s0"] == "missing"


def test_costs_come_from_records_of_the_same_kind_of_device(plan, tmp_path):
    def cost():
        return {
            r.name: r.minutes for r in campaign.runs("cpu", tmp_path / "results", tmp_path / "runs")
        }

    assert set(cost().values()) == {None}
    base = {field: kind() for field, kind in records.REQUIRED.items()} | {
        "kind": "train",
        "status": "done",
        "wall_s": 120.0,
        "hardware": {"cpu": "Fast", "cores": 2},
    }
    records.write(base | {"name": "lw-s0", "config": asdict(plan["lw"])}, tmp_path / "results")
    assert cost()["lw-s1"] == 2.0
    ratio = campaign.work(plan["lw-nocrp"]) / campaign.work(plan["lw"])
    assert cost()["lw-nocrp-s0"] == pytest.approx(2.0 * ratio) and 0 < ratio < 1
    gpu = campaign.runs("gpu", tmp_path / "results", tmp_path / "runs")
    assert {r.minutes for r in gpu if r.status == "missing"} == {None}


def test_work_is_counted_as_elsewhere():
    from rflw.complexity import count

    recipe = replace(tiny(3), crop=(64, 96))
    with_two_classes = count(rflw.build(recipe.model, 2), (64, 96))["macs"]["conv"]
    assert campaign.work(recipe) == 3 * with_two_classes


def test_the_shipped_campaign_names_shipped_recipes():
    for experiment in sum(campaign.GROUPS, []):
        assert experiment.recipe in rflw.recipes.RECIPES, experiment
    with pytest.raises(InputError, match="tpu"):
        campaign.runs("tpu")
