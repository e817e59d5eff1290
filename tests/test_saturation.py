"""Terms of residual blocks, on toy networks whose answers are known, and on small networks."""

from dataclasses import replace
import math

import numpy as np
import pytest
from test_fields import Few, dead
from test_heads import Net
import torch
from torch import nn

from rflw import InputError, build, checkpoint, prediction, training
from rflw.config import Recipe, Stage
from rflw.data import synthetic
from rflw.data.labels import LABELS
from rflw.evaluation import evaluate, summary
from rflw.nn.blocks import CRP, RCU, BottleneckRCU
from rflw.recipes import RECIPES
from rflw_study import saturation
from rflw_study.pictures import pictures
from rflw_study.saturation import Term

torch.set_num_threads(1)
TERMS = [
    Term("rcu", "rcu.conv2", "rcu"),
    Term("crp.convs.0", "crp.convs.0", "crp"),
    Term("crp.convs.1", "crp.convs.1", "crp"),
]


def few(number):
    return Few(number, 33, 40)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(3)
    model = build("refinenet-lw-rcu-efficientnet_lite0", 6).eval()
    model.card = {"data": "embedded", "recipe": "embedded-lw-rcu", "seed": 7}
    return model


def test_norms_by_hand():
    net = Net().eval()
    nn.init.dirac_(net.stem.weight), nn.init.zeros_(net.stem.bias)
    nn.init.dirac_(net.rcu.conv1.weight), nn.init.zeros_(net.rcu.conv1.bias)
    nn.init.dirac_(net.rcu.conv2.weight)
    net.rcu.conv2.weight.data *= 0.25
    net.rcu.conv1.bias.data[1] = -9  # its unit is shut; the fourth sees zero alone
    x = torch.full((2, 3, 5, 5), 2.0)
    x[1] *= 3
    rows = saturation.norms(net, TERMS, [x[:1], x[1:]])
    # of three equal channels two pass, a quarter of each
    assert rows["rcu"]["ratio"].tolist() == pytest.approx([0.25 * math.sqrt(2 / 3)] * 2)
    assert rows["rcu"]["silent"] == 0.5
    nn.init.dirac_(net.crp.convs[0].weight), nn.init.zeros_(net.crp.convs[1].weight)
    rows = saturation.norms(net, TERMS, [x])
    assert rows["crp.convs.0"]["ratio"].tolist() == pytest.approx([1, 1])
    assert rows["crp.convs.1"]["ratio"].tolist() == [0, 0]
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


def test_weights_are_compared_with_what_the_training_drew(monkeypatch, tmp_path):
    """Rates of nearly zero leave a network as it was drawn; one that is 3 % larger moved by that."""
    stage = Stage("embedded", 1, 1e-30, 1e-30)
    settings = {"crop": (33, 40), "weights": None, "batch": 4, "decoder_init": "normal"}
    recipe = Recipe("tiny", "refinenet-lw-rcu-efficientnet_lite0", (stage,), **settings)
    monkeypatch.setitem(RECIPES, "tiny", recipe)
    small = replace(synthetic.KINDS["embedded"], sizes={"train": 4, "val": 1})
    monkeypatch.setitem(synthetic.KINDS, "embedded", small)
    net, _ = training.fit(recipe, tmp_path, seed=3)
    first, terms = saturation.untrained(net), saturation.terms(net)
    assert max(saturation.moved(net, first, term) for term in terms) < 1e-3  # files hold 16 bits
    for weight in net.decoder.parameters():
        weight.data *= 1.03
    assert saturation.moved(net, first, terms[0]) == pytest.approx(0.03, abs=1e-4)


def test_without_subtracts_terms_and_leaves_the_chain():
    torch.manual_seed(0)
    net, x = Net().double().eval(), torch.randn(1, 3, 7, 9).double()
    with torch.no_grad():
        y = net.stem(x)
        z = net.rcu(y)
        t1 = net.crp.convs[0](net.crp.pool(z))
        t2 = net.crp.convs[1](net.crp.pool(t1))
        for chosen, expected in (
            ([], z + t1 + t2),
            (TERMS[1:2], z + t2),
            (TERMS[2:], z + t1),
            (TERMS[1:], z),
            (TERMS[:1], net.crp(y)),
            (TERMS, y),
        ):
            with saturation.without(net, chosen):
                assert torch.allclose(net(x), expected, atol=1e-12)
        assert torch.allclose(net(x), z + t1 + t2)


def test_terms_are_all_rcus_and_stages_of_crp():
    for form in ("refinenet", "refinenet-lw-rcu", "refinenet-lw-nocrp"):
        with torch.device("meta"):
            net = build(f"{form}-efficientnet_lite0", 2)
        kinds = [type(module) for module in net.modules()]
        terms, modules = saturation.terms(net), dict(net.named_modules())
        assert len(terms) == kinds.count(RCU) + kinds.count(BottleneckRCU) + 4 * kinds.count(CRP)
        assert all(term.source in modules and term.block in modules for term in terms)


def test_saturation(model):
    """Numbers of another network: `test_contract.py`."""
    data, classes = few(2), LABELS["embedded"].classes
    result = saturation.saturate(model, data)
    groups = {name: group["terms"] for name, group in result["groups"].items()}
    assert list(groups)[:2] == ["all RCU", "all CRP"] and groups["all RCU"] == 20
    assert groups["decoder.stages.0.rcu_in"] == 2 and groups["decoder.stages.3.rcu_out"] == 3
    # nothing stays switched off
    assert result["miou"] == summary(evaluate(model, data), classes)["miou"]
    row = result["terms"]["decoder.stages.1.rcu_out.2"]
    assert 0 < row["ratio"]["mean"] != row["untrained_ratio"]["mean"]
    # independent draws: the difference of their norms squared is the sum of both
    assert row["moved"] == pytest.approx(math.sqrt(2), abs=0.05)
    # without its branches, an RCU returns its input, as the form without RCUs does
    bare = build("refinenet-lw-efficientnet_lite0", 6).eval()
    bare.load_state_dict({k: v for k, v in model.state_dict().items() if ".rcu_" not in k})
    expected = summary(evaluate(bare, data), classes)["miou"]
    assert result["groups"]["all RCU"]["miou_without"] == pytest.approx(expected, abs=0.02)


def test_a_dead_input_has_no_ratio_and_a_network_without_terms_is_refused():
    row = saturation.saturate(dead(), few(1))["terms"]["decoder.stages.0.crp.convs.0"]
    assert row["ratio"]["mean"] is None and row["silent"] == 1
    with pytest.raises(InputError, match="neither RCUs nor CRP"):
        saturation.saturate(dead("refinenet-lw-nocrp"), few(1))


def test_pictures_are_chosen_by_the_rule(model, monkeypatch):
    other, data = saturation.untrained(model), few(4)
    assert torch.equal(other.encoder.stem.conv.weight, model.encoder.stem.conv.weight)
    assert not torch.equal(other.decoder.classifier.weight, model.decoder.classifier.weight)
    right, pixels = [], []
    for image, mask in (data[i] for i in range(4)):
        labelled = mask != 255
        found = [prediction.predict(net, image) == mask for net in (model, other)]
        pixels.append(labelled.sum())
        right.append([hits[labelled].mean() for hits in found])
    result, rows = pictures({"a": model, "b": other}, data, "worst", 2)
    worst = sorted(range(4), key=lambda i: right[i][0])
    assert list(result["frames"]) == [data.ids[i] for i in worst[:2]]
    for i in worst[:2]:
        assert [*result["frames"][data.ids[i]].values()] == pytest.approx(right[i])
    assert len(rows) == 2 and len(rows[0]) == 4
    assert np.array_equal(rows[0][1], data[worst[0]][1])
    agreement = result["agreement"]["b"]
    assert sum(agreement.values()) == pytest.approx(1)
    for first, keys in ((0, ("both", "first")), (1, ("both", "second"))):
        mean = np.average([shares[first] for shares in right], weights=pixels)
        assert sum(agreement[key] for key in keys) == pytest.approx(mean)
    result, _ = pictures({"a": model}, data, "spread", 2)
    assert list(result["frames"]) == [data.ids[i] for i in (worst[0], worst[-1])]
    with pytest.raises(InputError, match="0 frames"):
        pictures({"a": model}, data, number=0)
    monkeypatch.setattr(Few, "__getitem__", lambda *_: (image, np.full_like(mask, 255)))
    with pytest.raises(InputError, match="all pixels are void"):
        pictures({"a": model}, data)
    other.card = {}
    assert checkpoint.title(model) == "embedded-lw-rcu-s7" and checkpoint.title(other) == other.name
