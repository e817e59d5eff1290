"""Heads on frozen features, and the terms of residual blocks, on toy networks whose answers are known."""

from dataclasses import replace
import math

import numpy as np
import pytest
from sklearn.metrics import average_precision_score
import torch
from torch import nn

from rflw import InputError
from rflw.nn.blocks import CRP, RCU
from rflw_study import probes, saturation
from rflw_study.probes import HEADS, Features, Head, average_precision
from rflw_study.saturation import Term

torch.set_num_threads(1)
CLASSES = ("ground", "a", "b")


def features(maps, masks) -> Features:
    return Features(
        torch.as_tensor(maps, dtype=torch.float32), torch.as_tensor(masks, dtype=torch.uint8)
    )


@pytest.fixture
def told():
    """Features of 40 images that say at each of 4x5 positions which class its 8x8 pixels have, and noise."""
    draw = np.random.RandomState(0)
    coarse = draw.randint(0, 2, (40, 4, 5)) + (draw.rand(40, 1, 1) < 0.4)  # b only in some images
    maps = np.concatenate(
        [np.stack([coarse == k for k in range(3)], 1), draw.randn(40, 2, 4, 5)], 1
    )
    return features(7 * maps + 100, np.kron(coarse, np.ones((8, 8))))


def test_segmentation_head_learns_what_features_say(told):
    for head in HEADS.values():
        net = probes.segmentation_head(told, 3, replace(head, batch=10))
        matrix = probes.segment(net, told, 3).sum(0)
        assert matrix.sum() == 40 * 32 * 40
        assert (
            matrix.diagonal().sum() / matrix.sum() > 0.85
        )  # borders between positions are smoothed by the upsampling
        assert [m.kernel_size for m in net.modules() if isinstance(m, nn.Conv2d)] == [
            (head.kernel, head.kernel)
        ]


def test_classification_head_learns_what_features_say(told):
    net = probes.classification_head(told, 3, replace(HEADS["linear"], batch=10))
    result = probes.multilabel(net, told, CLASSES, "ground")
    assert result["accuracy"] > 0.97 and len(result["accuracy_by_image"]) == 40
    assert (
        list(result["average_precision"]) == ["a", "b"] and result["average_precision"]["b"] > 0.99
    )


def test_heads_learn_nothing_from_noise(told):
    noise = Features(
        torch.randn(40, 5, 4, 5, generator=torch.Generator().manual_seed(0)), told.masks
    )
    other = Features(
        torch.randn(40, 5, 4, 5, generator=torch.Generator().manual_seed(1)), told.masks
    )
    matrix = probes.segment(probes.segmentation_head(noise, 3), other, 3).sum(0)
    assert matrix.diagonal().sum() / matrix.sum() < 0.6


def test_the_seed_decides(told):
    quick = Head(epochs=1)
    a, b, c = (probes.segmentation_head(told, 3, quick, seed)[1].weight for seed in (0, 0, 1))
    assert torch.equal(a, b) and not torch.equal(a, c)


def test_void_counts_nowhere(told):
    masks = told.masks.clone()
    masks[:, :, 20:] = 255
    net = probes.segmentation_head(features(told.maps, masks), 3, Head(epochs=1))
    assert probes.segment(net, features(told.maps, masks), 3).sum() == 40 * 32 * 20
    empty = features(told.maps, torch.full_like(masks, 255))
    assert all(
        p.isfinite().all() for p in probes.segmentation_head(empty, 3, Head(epochs=1)).parameters()
    )


def test_multilabel_by_hand():
    class Given(nn.Module):
        def forward(self, maps):
            return maps[:, :, 0, 0]

    masks = np.zeros((4, 2, 2))
    masks[0, 0, 0], masks[1, 0, 0], masks[1, 1, 1] = (
        1,
        1,
        2,
    )  # images hold ground; a; a and b; nothing else twice
    scores = [[5, 1, -1], [5, -1, 1], [5, 2, -2], [5, -2, -3]]
    result = probes.multilabel(
        Given(), features(np.array(scores)[..., None, None], masks), CLASSES, "ground"
    )
    # a: right, wrong, wrong, right; b: all right
    assert result["accuracy"] == 6 / 8 and result["accuracy_by_image"] == [1, 0.5, 0.5, 1]
    assert result["majority"] == (2 + 3) / 8  # no class is in more than half of the images
    assert result["average_precision"] == {"a": pytest.approx((1 / 2 + 2 / 3) / 2), "b": 1}
    with_ground = probes.multilabel(
        Given(), features(np.array(scores)[..., None, None], masks), CLASSES
    )
    assert (
        with_ground["accuracy"] == 10 / 12 and with_ground["average_precision"]["ground"] is None
    )  # in all images


@pytest.mark.parametrize("seed", range(4))
def test_average_precision_is_scikit_learns(seed):
    draw = np.random.RandomState(seed)
    scores, truth = draw.randint(0, 8, 50), draw.rand(50) < 0.3  # with ties
    ours = average_precision(torch.tensor(scores, dtype=torch.float32), torch.tensor(truth))
    assert ours == pytest.approx(average_precision_score(truth, scores))
    assert math.isnan(average_precision(torch.rand(3), torch.zeros(3, dtype=torch.bool)))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.rcu, self.crp = nn.Conv2d(3, 4, 1), RCU(4), CRP(4, 1, stages=2)
        self.drop = nn.Dropout(0.5)

    def forward(self, x):
        return self.crp(self.rcu(self.drop(self.stem(x))))


def test_collect_takes_each_place_and_mirrors():
    net = Net().train()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    images, masks = torch.randn(3, 3, 6, 8), np.arange(3 * 48).reshape(3, 6, 8).astype(np.uint8)
    seen = [(images[:2], masks[:2]), (images[2:], masks[2:])]
    first, second = probes.collect(net, ["rcu:input", "rcu"], seen, mirrored=True)
    assert net.training and all(torch.equal(before[k], v) for k, v in net.state_dict().items())
    assert first.maps.shape == (6, 4, 6, 8) and torch.equal(first.masks, second.masks)
    assert (
        first.masks[2].tolist() == masks[0, :, ::-1].tolist()
    )  # of a batch first the images, then their mirror images
    with torch.no_grad():
        assert torch.allclose(first.maps[5], net.stem(images[2:].flip(3))[0])
        assert torch.allclose(second.maps, net.rcu(first.maps), atol=1e-6)
    assert not first.maps.requires_grad


def test_collect_refuses_what_heads_cannot_take():
    net, masks = Net(), np.zeros((1, 6, 8), np.uint8)
    with pytest.raises(InputError, match="no images"):
        probes.collect(net, ["rcu"], [])
    with pytest.raises(InputError, match="several sizes: 8x6 and 9x6"):
        probes.collect(
            net,
            ["rcu"],
            [
                (torch.zeros(1, 3, 6, 8), masks),
                (torch.zeros(1, 3, 6, 9), np.zeros((1, 6, 9), np.uint8)),
            ],
        )
    with pytest.raises(InputError, match="near it: rcu"):
        probes.collect(net, ["rcuu"], [(torch.zeros(1, 3, 6, 8), masks)])


# ---------------------------------------------------------------- saturation

TERMS = [
    Term("rcu", "rcu.conv2", "rcu"),
    Term("crp.convs.0", "crp.convs.0", "crp"),
    Term("crp.convs.1", "crp.convs.1", "crp"),
]


def test_norms_by_hand():
    net = Net().eval()
    nn.init.dirac_(net.stem.weight), nn.init.zeros_(net.stem.bias)
    nn.init.dirac_(net.rcu.conv1.weight), nn.init.zeros_(net.rcu.conv1.bias)
    nn.init.dirac_(net.rcu.conv2.weight)
    net.rcu.conv2.weight.data *= 0.25
    net.rcu.conv1.bias.data[1] = -9  # its unit is shut; the fourth sees nought alone
    x = torch.full((2, 3, 5, 5), 2.0)
    x[1] *= 3
    found = saturation.norms(net, TERMS, [x[:1], x[1:]])
    # of three equal channels two pass, a quarter of each
    assert found["rcu"]["ratio"].tolist() == pytest.approx([0.25 * math.sqrt(2 / 3)] * 2)
    assert found["rcu"]["silent"] == 0.5 and found["rcu"]["weight"] == pytest.approx(
        math.sqrt(4 * 0.25**2 / (4 * 4 * 9))
    )
    nn.init.dirac_(net.crp.convs[0].weight), nn.init.zeros_(net.crp.convs[1].weight)
    found = saturation.norms(net, TERMS, [x])
    assert found["crp.convs.0"]["ratio"].tolist() == pytest.approx([1, 1]) and found["crp.convs.1"][
        "ratio"
    ].tolist() == [0, 0]
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


def test_without_takes_terms_off_and_leaves_the_chain():
    torch.manual_seed(0)
    net = Net().double().eval()
    x = torch.randn(1, 3, 7, 9).double()
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
        ):
            with saturation.without(net, chosen):
                assert torch.allclose(net(x), expected, atol=1e-12)
        assert torch.allclose(net(x), z + t1 + t2)
