"""Shares of live units, counted by hand; where a run writes them; and the first steps of a run."""

from types import SimpleNamespace

import pytest
from test_training import Few, tiny
import torch
from torch import nn

from rflw import live, training
from rflw.nn.blocks import RCU, BottleneckRCU
from rflw.nn.refinenet import build
from rflw_study.first_steps import first_steps, revive

IMAGE = torch.arange(1.0, 5.0).reshape(1, 1, 2, 2)


def conv(*weights: float) -> nn.Module:
    module = nn.Conv2d(1, len(weights), 1, bias=False)
    module.weight.data = torch.tensor(weights).reshape(-1, 1, 1, 1)
    return nn.Sequential(module, nn.ReLU6())


def shares_of(parts, images):
    """Of a network whose decoder's parts all see the image."""
    decoder = nn.ModuleList(parts)
    forward = lambda x: [part(x) for part in decoder]
    return live.live_units(SimpleNamespace(decoder=decoder), forward, images)


def test_shares_by_hand():
    parts = conv(-1.0, -2.0, -0.5, -3.0), conv(1.0, -1.0, 0.0)
    assert shares_of(parts, [IMAGE]) == {"0.1": 0.0, "1.1": pytest.approx(1 / 3, 1e-3)}
    one_pixel = -IMAGE * torch.tensor([[1.0, 1.0], [1.0, -1.0]])
    for images in ([IMAGE, -IMAGE], [one_pixel]):  # any pixel of any image
        assert shares_of(parts, images)["1.1"] == pytest.approx(2 / 3, 1e-3)
    assert not parts[0][1]._forward_hooks
    shares = {"stages.0.act": 0.0, "stages.1.act": 0.75, "stages.1.rcu.conv1": 0.1}
    assert live.of_stages(shares) == {"stages.0": 0.0, "stages.1": 0.75}


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
    shares = {f"0.{name}": share for name, share in expected.items()}
    assert shares_of([unit], [torch.cat([IMAGE, -IMAGE], 1)]) == shares


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(training, "open_dataset", lambda name, split, root=None: Few(split))


def test_a_run_writes_all_shares_and_warns_once(few, tmp_path, monkeypatch, capsys):
    shares = [
        {"stages.0.act": 0.75, "stages.0.rcu.conv1": 0.1, "stages.1.act": 0.5},
        {"stages.0.act": 0.4, "stages.1.act": 0.25},
        {"stages.0.act": 0.0, "stages.1.act": 1.0},
    ]
    given = iter(shares)
    monkeypatch.setattr(live, "live_units", lambda *args: next(given))
    _, record = training.fit(tiny(3, val_every=3), tmp_path)
    assert [row["live"] for row in record["curve"]] == shares
    (line,) = (line for line in capsys.readouterr().err.splitlines() if "alive" in line)
    assert line.startswith("tiny: only 25 % of the units of decoder.stages.1 are alive; ")


def test_a_run_looks_at_the_network_that_it_keeps(few, tmp_path):
    run = training.Run(tiny(1), tmp_path, device="cpu")
    fabric, precision = training.settings(run)
    job = training.make_job(run, training.open_data(run), fabric, precision, None)
    assert job.kept is not job.model
    for parameter in job.kept.decoder.stages[0].reduce.parameters():
        nn.init.constant_(parameter, 0.0)
    shares = training.look(job)
    assert shares["stages.0.act"] == 0.0 < min(shares["stages.2.act"], shares["stages.3.act"])


def test_a_warm_up_changes_the_steps_after_the_first(few):
    plan = tiny(2, optimiser="adamw")
    at_once, slowly = (first_steps(plan, warmup, steps=3, device="cpu") for warmup in (0, 100))
    assert [row["step"] for row in at_once] == [1, 2, 3]
    assert at_once[0]["loss"] == slowly[0]["loss"]  # before the first step there is no difference
    assert at_once[1]["loss"] != slowly[1]["loss"]
    assert set(at_once[0]["live"]) == {f"stages.{i}" for i in range(4)}
    assert slowly[-1]["live"]["stages.0"] >= at_once[-1]["live"]["stages.0"] > 0


@pytest.mark.parametrize("name", ["refinenet-lw-mobilenet_v2", "refinenet-lw-efficientnet_lite0"])
def test_dead_units_get_new_weights_and_the_others_keep_theirs(name):
    torch.manual_seed(0)
    model, images = build(name, 3).eval(), torch.randn(2, 1, 3, 64, 64)
    stages, dead = model.decoder.stages, [0, 7]
    with torch.no_grad():
        for stage in stages:  # nothing reaches these units, so they are 0
            layers = [stage.adapt] if isinstance(stage.adapt, nn.Conv2d) else stage.reduce
            for layer in layers:
                layer.weight[dead] = 0
        for stage in stages[:-1]:
            stage.fuse.weight[dead] = 0
    before = {key: value.clone() for key, value in model.state_dict().items()}
    assert all(live.dead_units(model, model, images)[f"stages.{i}.act"][7] for i in range(4))
    assert revive(model, model, images) == 0
    assert set(live.live_units(model, model, images).values()) == {1.0}
    lost = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert lost and all("decoder" in key and "crp" not in key for key in lost)
    for key in lost:
        changed = (model.state_dict()[key] != before[key]).flatten(1).any(1)
        assert changed[dead].all() and changed.sum() < len(changed) / 2
