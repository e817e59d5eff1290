"""Every path that places tensors, on a device that is not the CPU: see `tests.standin`."""

from copy import deepcopy

import numpy as np
import pytest
import torch

from rflw import InputError, deploy, evaluation, prediction, tiles, training
from rflw.nn.refinenet import build
from rflw.training import fit
from rflw_study import fields, heads, saturation, speed
from tests import standin
from tests.test_fields import Few
from tests.test_training import tiny

PLACE, NETWORK = standin.NAME, "refinenet-lw-rcu-efficientnet_lite0"


def few(split="val") -> Few:
    """Small corners; a training set of ten, so that an epoch has two steps."""
    return Few(10 if split == "train" else 2, 40, 48, split)


@pytest.fixture(autouse=True)
def there(monkeypatch):
    standin.attach(monkeypatch)
    monkeypatch.setattr(training, "open_dataset", lambda name, split, root: few(split))


@pytest.fixture
def networks():
    """The same network here and there."""
    torch.manual_seed(0)
    here = build(NETWORK, 6).eval()
    here.card = {"data": "embedded"}
    return here, deepcopy(here).to(PLACE)


def same(a, b) -> None:
    torch.testing.assert_close(a, b.cpu(), rtol=1e-4, atol=1e-5)


def close(a, b) -> None:
    """Of nested dicts and lists: equal, numbers nearly so."""
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        [close(a[key], b[key]) for key in a]
    elif isinstance(a, list | tuple):
        [close(*pair) for pair in zip(a, b, strict=True)]
    else:
        assert a == (pytest.approx(b, rel=1e-3, nan_ok=True) if isinstance(b, float) else b)


def test_a_mask_left_on_the_cpu_is_seen_in_training(monkeypatch, tmp_path):
    real = training.remaining
    left = lambda job: ((images, masks.cpu()) for images, masks in real(job))
    monkeypatch.setattr(training, "remaining", left)
    with pytest.raises(RuntimeError, match="same device"):
        fit(tiny(1), tmp_path / "run", device=PLACE)


@pytest.mark.parametrize("resident", [False, True])
def test_trains_and_resumes_as_on_the_cpu(tmp_path, resident):
    recipe = tiny(1, jitter=0.0, balance=0.5, clip=1.0)
    here, record = fit(recipe, tmp_path / "here", device="cpu", resident=resident, compiled=False)
    out = tmp_path / "there"
    with pytest.raises(TimeoutError):  # stops after the first step
        fit(recipe, out, device="auto", until=0.0, accumulate=2, resident=resident)
    assert torch.load(out / "last.pt", weights_only=True)["step"] == 1
    with pytest.raises(InputError, match="another run"):
        fit(recipe, out, resume=True, resident=not resident)
    there, resumed = fit(recipe, out, resume=True)  # as it began
    assert next(there.parameters()).device.type == PLACE
    assert resumed["hardware"]["gpu"] == PLACE and resumed["resident"] is resident
    for ours, theirs in zip(record["curve"], resumed["curve"], strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-3)
    for a, b in zip(here.parameters(), there.parameters(), strict=True):
        torch.testing.assert_close(a, b.cpu(), rtol=0, atol=2e-3)  # weights are kept in fp16


def test_predicts_and_evaluates_as_on_the_cpu(networks, monkeypatch):
    photo = np.random.RandomState(0).randint(0, 256, (60, 70, 3)).astype(np.uint8)
    answers = [prediction.predict(net, photo, 45) for net in networks]
    assert np.array_equal(*answers)
    matrices = [evaluation.evaluate(n, few(), "fp32", (1, 1.5), True) for n in networks]
    assert torch.equal(*matrices)
    monkeypatch.setattr(prediction, "BAND", 1000)  # a few rows at a time
    assert np.array_equal(prediction.predict(networks[1], photo, 45), answers[0])
    monkeypatch.setattr(tiles, "OVERLAP", 32)
    x = torch.rand(1, 3, 40, 96)
    with torch.inference_mode():
        same(tiles.joined(networks[0], x, 64), tiles.joined(networks[1], x.to(PLACE), 64))


def test_heads_saturation_and_what_is_deployed_are_the_same(networks, monkeypatch):
    monkeypatch.setitem(heads.HEADS, "conv", heads.Head(epochs=1))
    close(*(heads.probe(n, few("train"), few(), 4, ["conv"], 1) for n in networks))
    close(*(saturation.saturate(n, few(), 1) for n in networks))
    x, nets = torch.rand(1, 3, 40, 48), [deploy.optimise(n, compiled=False) for n in networks]
    same(nets[0](x), nets[1](x.to(PLACE)))
    assert nets[1].device.type == PLACE


@pytest.mark.parametrize("method", fields.METHODS)
def test_fields_are_the_same(networks, method):
    layers = {"crp": "decoder.stages.0.crp"}
    options = {"gradient": {"units": 1}, "occlusion": {"stride": 24}}.get(method, {})
    found = [fields.erf(n, few(), method, layers, 2, top=1, **options) for n in networks]
    close(*(metrics for metrics, _ in found))
    rows = [
        fields.rows_of_figure(net, few(), metrics, own, 2, top=1)
        for net, (metrics, own) in zip(networks, found)
    ]
    for ours, theirs in zip(*rows, strict=True):
        np.testing.assert_allclose(ours[1], theirs[1], rtol=1e-3, atol=1e-5)


def test_times_what_is_there(monkeypatch):
    monkeypatch.setattr(speed, "peaks", lambda *_: {"fp32_gmacs": 100.0, "copy_gb_s": 10.0})
    options = {"size": (40, 48), "passes": 1, "classes": 3, "whole_way": True}
    found = speed.network_speed([NETWORK], ["channels-last+fold-fp32"], device=PLACE, **options)
    assert found["gpu"] == found["rows"][0]["device"] == PLACE
