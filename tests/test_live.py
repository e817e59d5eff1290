"""Shares of live units, counted by hand; where a run writes them; and the first steps of a run."""

import csv

import pytest
from test_training import Few, tiny
import torch
from torch import nn

from rflw import live, training
from rflw.nn.blocks import RCU, BottleneckRCU
from rflw_study.first_steps import first_steps

IMAGE = torch.arange(1.0, 5.0).reshape(1, 1, 2, 2)


class Stage(nn.Module):
    def __init__(self, weights: list[float]):
        super().__init__()
        self.conv = nn.Conv2d(1, len(weights), 1, bias=False)
        self.conv.weight.data = torch.tensor(weights).reshape(-1, 1, 1, 1)
        self.act = nn.ReLU6()

    def forward(self, x):
        return self.act(self.conv(x))


class Toy(nn.Module):
    """A network whose decoder's stages all see the image."""

    def __init__(self, *weights: list[float]):
        super().__init__()
        self.decoder = nn.Module()
        self.decoder.stages = nn.ModuleList(map(Stage, weights))

    def forward(self, x):
        return [stage(x) for stage in self.decoder.stages]


def test_shares_of_stages_by_hand():
    toy = Toy([-1.0, -2.0, -0.5, -3.0], [1.0, -1.0, 2.0, 0.1])
    shares = live.live_units(toy, toy, [IMAGE])
    assert shares == {"stages.0.act": 0.0, "stages.1.act": 0.75}
    assert live.of_stages(shares | {"stages.1.rcu.conv1": 0.1}) == {
        "stages.0": 0.0,
        "stages.1": 0.75,
    }


def test_a_unit_is_alive_if_any_pixel_of_any_image_exceeds_zero():
    toy = Toy([1.0, -1.0, 0.0])
    one_pixel = -IMAGE * torch.tensor([[1.0, 1.0], [1.0, -1.0]])
    for images in ([IMAGE, -IMAGE], [one_pixel]):
        shares = live.live_units(toy, toy, images)
        assert shares["stages.0.act"] == pytest.approx(2 / 3, 1e-3)
    assert not toy.decoder.stages[0].act._forward_hooks


@pytest.mark.parametrize(
    ("unit", "expected"),
    [
        # the first ReLU sees the input, of whose two channels one is positive; each later one the
        # bias of the convolution before it, or its output of zeros where that has no bias
        (RCU(2), {"conv1": 0.5, "conv2": 1.0}),
        (BottleneckRCU(2), {"reduce": 0.5, "conv": 1.0, "expand": 0.0}),
    ],
)
def test_relus_within_residual_units_are_seen(unit, expected):
    for name, parameter in unit.named_parameters():
        nn.init.constant_(parameter, 1.0 if name.endswith("bias") else 0.0)
    model = nn.Module()
    model.decoder = nn.Sequential(unit)
    x = torch.cat([IMAGE, -IMAGE], 1)
    assert live.live_units(model, model.decoder, [x]) == {
        f"0.{name}": share for name, share in expected.items()
    }


def test_a_run_writes_all_shares_and_warns_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(training, "open_dataset", lambda name, split, root: Few(split))
    shares = [
        {"stages.0.act": 0.75, "stages.0.rcu.conv1": 0.1, "stages.1.act": 0.5},
        {"stages.0.act": 0.4, "stages.1.act": 0.25},
        {"stages.0.act": 0.0, "stages.1.act": 1.0},
    ]
    given = iter(shares)
    monkeypatch.setattr(live, "live_units", lambda *args: next(given))
    out = tmp_path / "run"
    _, record = training.fit(tiny(3, val_every=3), out)
    assert [row["live"] for row in record["curve"]] == shares
    rows = csv.DictReader((out / "log.csv").read_text().splitlines())
    assert [float(row["live"]) for row in rows] == [0.5, 0.25, 0.0]
    lines = [line for line in capsys.readouterr().err.splitlines() if "alive" in line]
    assert len(lines) == 1
    assert lines[0].startswith("tiny: only 25 % of the units of decoder.stages.1 are alive; ")
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = reader.EventAccumulator(str(out / "tensorboard"))
    events.Reload()
    values = [event.value for event in events.Scalars("live/stages.0.act")]
    assert values == pytest.approx([0.75, 0.4, 0.0])


def test_a_run_looks_at_the_network_that_it_keeps(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "open_dataset", lambda name, split, root: Few(split))
    run = training.Run(tiny(1), tmp_path, device="cpu")
    fabric, precision = training.settings(run)
    job = training.make_job(run, training.open_data(run), fabric, precision, None)
    first = job.kept.decoder.stages[0]
    coming_in = [p for name, p in first.named_parameters() if name.startswith("reduce")]
    assert job.kept is not job.model and coming_in
    for parameter in coming_in:
        nn.init.constant_(parameter, 0.0)
    shares = training.look(job)
    assert shares["stages.0.act"] == 0.0 < min(shares["stages.2.act"], shares["stages.3.act"])


def test_a_warm_up_changes_the_steps_after_the_first(monkeypatch):
    monkeypatch.setattr(training, "open_dataset", lambda name, split, root=None: Few(split))
    plan = tiny(2, optimiser="adamw")
    at_once, slowly = (first_steps(plan, warmup, steps=3, device="cpu") for warmup in (0, 100))
    assert [row["step"] for row in at_once] == [1, 2, 3]
    assert at_once[0]["loss"] == slowly[0]["loss"]  # before the first step there is no difference
    assert at_once[1]["loss"] != slowly[1]["loss"]
    assert set(at_once[0]["live"]) == {f"stages.{i}" for i in range(4)}
    assert slowly[-1]["live"]["stages.0"] >= at_once[-1]["live"]["stages.0"] > 0
