"""What is measured on trained networks for sections 3.3, 5 and 8, on small ones."""

import json

import numpy as np
import pytest
import torch

from rflw import InputError, build, prediction
from rflw.data.labels import LABELS
from rflw.data.synthetic import Embedded
from rflw.evaluation import evaluate, summary
from rflw.nn.blocks import CRP, RCU, BottleneckRCU
from rflw_study import studies

torch.set_num_threads(1)


class Few(Embedded):
    """The first scenes of the embedded set, or a corner of each."""

    def __init__(self, number=3, rows=96, columns=128):
        super().__init__("val")
        self.ids, self.size = self.ids[:number], (rows, columns)

    def __getitem__(self, index):
        image, mask = super().__getitem__(index)
        return image[: self.size[0], : self.size[1]], mask[: self.size[0], : self.size[1]]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(3)
    model = build("refinenet-lw-rcu-efficientnet_lite0", 6).eval()
    model.card = {
        "classes": list(LABELS["embedded"].classes),
        "data": "embedded",
        "recipe": "embedded-lw-rcu-efficientnet_lite0",
        "seed": 7,
    }
    return model


def test_images_side_by_side_and_resized(model):
    data = Few(9)
    one = studies.tensors(model, data, [0, 1, 2, 3])
    assert one.shape == (4, 3, 96, 128)
    four = studies.tensors(model, data, list(range(9)), tile=2)
    assert (
        four.shape == (2, 3, 192, 256)
        and torch.equal(four[0, :, :96, 128:], one[1])
        and torch.equal(four[0, :, 96:, :128], one[2])
    )
    assert studies.tensors(model, data, [0], size=(48, 64)).shape == (1, 3, 48, 64)
    with pytest.raises(InputError, match="4x4"):
        studies.tensors(model, data, list(range(9)), tile=4)
    assert studies.spread(3, 9) == [0, 4, 8] and studies.spread(20, 3) == [0, 1, 2]
    with pytest.raises(InputError):
        studies.spread(0, 9)


@pytest.mark.parametrize(
    ("method", "options"),
    [("gradient", {"units": 3}), ("activation", {}), ("occlusion", {"patch": 30, "stride": 30})],
)
def test_fields_of_a_network(model, method, options):
    layers = {
        "before CRP": studies.PLACES["before CRP"],
        "last layer": studies.PLACES["last layer"],
    }
    result, fields = studies.erf(model, Few(), method, layers, images=2, top=1, **options)
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert (result["method"], result["size"], result["images"], list(result["layers"])) == (
        method,
        [96, 128],
        2,
        list(layers),
    )
    before, last = result["layers"].values()
    assert last["layer"] == "decoder.classifier"
    assert len(last["sides"]) == (3 if method == "gradient" else 6 - last["dead"])
    assert (
        before["within"] == [96, 128]
        and before["theoretical"][0] > 500
        and list(before["cuts"]) == ["0.05", "0.1", "0.2", "0.5"]
    )
    assert before["side"]["n"] == len(before["sides"]) == len(before["units"]) and before["side"][
        "mean"
    ] == pytest.approx(np.mean(before["sides"]), abs=0.1)
    rows = studies.shown(model, Few(), result, fields, 2, top=1)
    assert rows[0][0].startswith("before CRP\nunit ") and {row[0] for row in rows[1:]} < {
        *LABELS["embedded"].classes
    }
    assert all(
        picture.shape == (96, 128, 3) and relative.shape == (96, 128)
        for row in rows
        for picture, relative in row[4]
    )
    with pytest.raises(InputError, match="unknown method"):
        studies.erf(model, Few(), "guess")
    for options in ({"units": 0}, {"tile": 0}):
        with pytest.raises(InputError, match="0 units|0x0 tiles"):
            studies.erf(model, Few(), **options)


def test_a_dead_layer_is_on_record_and_hinders_nothing():
    torch.manual_seed(4)
    net = build("refinenet-lw-rcu-efficientnet_lite0", 6).eval()
    (
        net.decoder.stages[0].reduce[0].weight.data.zero_(),
        net.decoder.stages[0].reduce[1].weight.data.zero_(),
    )
    for module in net.decoder.stages[0].rcu_in.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.weight.data.zero_()
    for method in ("gradient", "activation"):
        result, fields = studies.erf(net, Few(1), method, images=1, units=2, top=1)
        dead, first_sum = (
            result["layers"][place] for place in ("after CRP", "after the first sum")
        )
        assert dead["dead"] == 256 and "side" not in dead and "after CRP" not in fields
        assert first_sum["dead"] < 256 and first_sum["side"]["mean"] > 0
    row = studies.saturate(net, Few(1, 40, 48))["terms"]["decoder.stages.0.crp.convs.0"]
    assert row["ratio"]["mean"] is None and row["silent"] == 1


def test_places_of_heads():
    with torch.device("meta"):
        places = {
            form: list(studies.probe_places(build(f"{form}-efficientnet_lite0", 2)))
            for form in ("refinenet", "refinenet-lw-rcu", "refinenet-lw", "refinenet-lw-nocrp")
        }
    assert (
        places["refinenet"]
        == places["refinenet-lw-rcu"]
        == ["before RCU", "after RCU", "after CRP"]
    )
    assert places["refinenet-lw"] == ["before CRP", "after CRP"] and places[
        "refinenet-lw-nocrp"
    ] == ["before CRP"]


def test_probe(model, monkeypatch):
    monkeypatch.setattr(studies, "HEADS", {"conv": studies.HEADS["conv"].__class__(epochs=1)})
    before = {k: v.clone() for k, v in model.state_dict().items()}
    result = studies.probe(model, Few(4), Few(3), heads=("conv",), seeds=2)
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert (result["train_images"], result["images"], result["background"]) == (4, 3, "ground")
    for place, layer in studies.probe_places(model).items():
        row = result["places"][place]
        own = row["heads"]["conv"]
        assert (
            row["layer"] == layer
            and len(own["miou"]) == len(own["accuracy"]) == 2
            and own["miou"][0] != own["miou"][1]
        )
        assert 0 < own["miou_interval"][0] <= own["miou"][0] <= own["miou_interval"][1] < 1
        assert (
            list(own["average_precision"]) == list(LABELS["embedded"].classes[1:])
            and own["average_precision"]["disc"] is None
        )
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    with pytest.raises(InputError, match="unknown head 'deep': conv"):
        studies.probe(model, Few(), Few(), heads=("deep",))


@pytest.mark.parametrize(
    "form", ["refinenet", "refinenet-lw-rcu", "refinenet-lw", "refinenet-lw-nocrp"]
)
def test_terms_are_all_rcus_and_stages_of_crp(form):
    with torch.device("meta"):
        net = build(f"{form}-efficientnet_lite0", 2)
    kinds = [type(module) for module in net.modules()]
    found = studies.terms(net)
    assert len(found) == kinds.count(RCU) + kinds.count(BottleneckRCU) + 4 * kinds.count(CRP)
    modules = dict(net.named_modules())
    assert all(term.source in modules and term.block in modules for term in found)


def test_saturation(model):
    data = Few(2, 40, 48)
    result = studies.saturate(model, data)
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert len(result["terms"]) == 20 + 16
    assert (
        list(result["groups"])[:2] == ["all RCU", "all CRP"]
        and result["groups"]["all RCU"]["terms"] == 20
    )
    assert (
        result["groups"]["decoder.stages.0.rcu_in"]["terms"] == 2
        and result["groups"]["decoder.stages.3.rcu_out"]["terms"] == 3
    )
    assert (
        result["miou"] == summary(evaluate(model, data), LABELS["embedded"].classes)["miou"]
    )  # nothing stays switched off
    row = result["terms"]["decoder.stages.1.rcu_out.2"]
    assert (
        row["ratio"]["n"] == 2
        and row["ratio"]["mean"] > 0
        and row["ratio"]["mean"] != row["untrained_ratio"]["mean"]
    )
    # without its branches, an RCU hands on what it gets, as the form without RCUs does
    bare = build("refinenet-lw-efficientnet_lite0", 6).eval()
    bare.load_state_dict({k: v for k, v in model.state_dict().items() if ".rcu_" not in k})
    expected = summary(evaluate(bare, data), LABELS["embedded"].classes)["miou"]
    assert result["groups"]["all RCU"]["miou_without"] == pytest.approx(
        expected, abs=0.02
    )  # bf16 where the device has it


def test_pictures_are_chosen_by_the_rule(model):
    other = studies.untrained(model, 5)
    other.card = model.card | {"seed": 8}
    assert torch.equal(other.encoder.stem.conv.weight, model.encoder.stem.conv.weight)
    assert not torch.equal(other.decoder.classifier.weight, model.decoder.classifier.weight)
    data = Few(4)
    result, rows = studies.pictures({"a": model, "b": other}, data, "worst", 2)
    right = {
        i: [
            (prediction.predict(net, data[i][0]) == data[i][1])[data[i][1] != 255].mean()
            for net in (model, other)
        ]
        for i in range(4)
    }
    worst = sorted(right, key=lambda i: right[i][0])[:2]
    assert list(result["frames"]) == [data.ids[i] for i in worst]
    assert result["frames"][data.ids[worst[0]]] == {
        "a": pytest.approx(right[worst[0]][0]),
        "b": pytest.approx(right[worst[0]][1]),
    }
    assert len(rows) == 2 and len(rows[0]) == 4 and np.array_equal(rows[0][1], data[worst[0]][1])
    assert sum(result["agreement"]["b"].values()) == pytest.approx(1)
    pixels = [(data[i][1] != 255).sum() for i in range(4)]
    first = np.average([right[i][0] for i in range(4)], weights=pixels)
    assert result["agreement"]["b"]["both"] + result["agreement"]["b"]["first"] == pytest.approx(
        first
    )
    with pytest.raises(InputError, match="unknown rule"):
        studies.pictures({"a": model}, data, "best")


def test_titles_are_those_of_runs(model):
    assert studies.title(model) == "embedded-lw-rcu-efficientnet_lite0-s7"
