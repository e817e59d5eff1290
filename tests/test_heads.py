"""Heads on frozen features, on toy networks whose answers are known."""

from dataclasses import replace
import json
import math

import numpy as np
import pytest
from sklearn.metrics import average_precision_score
from test_fields import Few
import torch
from torch import nn

from rflw import InputError, build
from rflw.data.labels import LABELS
from rflw.nn.blocks import CRP, RCU
from rflw_study import heads
from rflw_study.heads import HEADS, Features, Head, average_precision

torch.set_num_threads(1)
CLASSES = ("ground", "a", "b")


def features(maps, masks) -> Features:
    maps, masks = torch.as_tensor(maps), torch.as_tensor(masks)
    return Features(maps.float(), masks.to(torch.uint8))


@pytest.fixture(scope="module")
def telling():
    """40 images whose features give at each of 4x5 positions the class of its 8x8 pixels."""
    draw = np.random.RandomState(0)
    coarse = draw.randint(0, 2, (40, 4, 5)) + (draw.rand(40, 1, 1) < 0.4)  # b only in some images
    one_hot, noise = np.stack([coarse == k for k in range(3)], 1), draw.randn(40, 2, 4, 5)
    maps = 7 * np.concatenate([one_hot, noise], 1) + 100
    both = features(maps, np.kron(coarse, np.ones((8, 8))))
    return heads.standardised(both, both)[0]


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.rcu, self.crp = nn.Conv2d(3, 4, 1), RCU(4), CRP(4, 1, stages=2)
        self.drop = nn.Dropout(0.5)

    def forward(self, x):
        return self.crp(self.rcu(self.drop(self.stem(x))))


class TestHeads:
    @pytest.mark.parametrize("name", HEADS)
    def test_segmentation_head_learns_what_features_tell(self, telling, name):
        def right(seen, unseen):
            net = heads.segmentation_head(seen, 3, replace(HEADS[name], batch=10))
            assert net.kernel_size == (HEADS[name].kernel,) * 2
            matrix = heads.segment(net, unseen, 3).sum(0)
            assert matrix.sum() == 40 * 32 * 40
            return matrix.diagonal().sum() / matrix.sum()

        assert right(telling, telling) > 0.85  # upsampling smooths borders
        noise = torch.randn(2, *telling.maps.shape, generator=torch.Generator().manual_seed(0))
        assert right(*(Features(maps, telling.masks) for maps in noise)) < 0.6

    def test_classification_head_learns_what_features_tell(self, telling):
        net = heads.classification_head(telling, 3, replace(HEADS["linear"], batch=10))
        result = heads.multilabel(net, telling, CLASSES, "ground")
        assert result["accuracy"] > 0.97 and len(result["accuracy_by_image"]) == 40
        assert list(result["average_precision"]) == ["a", "b"]
        assert result["average_precision"]["b"] > 0.99

    def test_void_counts_nowhere(self, telling):
        masks = telling.masks.clone()
        masks[:, :, 20:] = 255
        half = features(telling.maps, masks)
        net = heads.segmentation_head(half, 3, Head(epochs=1))
        assert heads.segment(net, half, 3).sum() == 40 * 32 * 20
        empty = features(telling.maps, torch.full_like(masks, 255))
        net = heads.segmentation_head(empty, 3, Head(epochs=1))
        assert all(p.isfinite().all() for p in net.parameters())

    def test_features_are_standardised_by_those_to_train_on(self):
        seen = features([[[[1.0, 3.0]], [[5.0, 5.0]]]], np.zeros((1, 1, 2)))
        unseen = features([[[[2.0, 4.0]], [[5.0, 5.0]]]], np.zeros((1, 1, 2)))
        first, second = heads.standardised(seen, unseen)
        deviation = math.sqrt(2)  # of 1 and 3
        assert first.maps[0, 0, 0].tolist() == pytest.approx([-1 / deviation, 1 / deviation])
        assert second.maps[0, 0, 0].tolist() == pytest.approx([0, 2 / deviation])
        assert first.maps[0, 1].abs().max() == 0  # a constant channel

    def test_multilabel_by_hand(self):
        net = nn.Flatten()
        masks = np.zeros((4, 2, 2))
        masks[0, 0, 0], masks[1, 0, 0], masks[1, 1, 1] = 1, 1, 2  # ground and: a; a, b; none; none
        scores = np.array([[5, 1, -1], [5, -1, 1], [5, 2, -2], [5, -2, -3]])
        given = features(scores[..., None, None], masks)
        result = heads.multilabel(net, given, CLASSES, "ground")
        # a: right, wrong, wrong, right; b: all right
        assert result["accuracy"] == 6 / 8 and result["accuracy_by_image"] == [1, 0.5, 0.5, 1]
        assert result["majority"] == (2 + 3) / 8  # no class is in more than half of the images
        assert result["average_precision"] == {"a": pytest.approx((1 / 2 + 2 / 3) / 2), "b": 1}
        result = heads.multilabel(net, given, CLASSES)
        assert result["accuracy"] == 10 / 12
        assert result["average_precision"]["ground"] is None  # in all images

    def test_average_precision_is_scikit_learns(self):
        draw = np.random.RandomState(0)
        for _ in range(3):
            scores, truth = draw.randint(0, 8, 50), draw.rand(50) < 0.3  # with ties
            found = average_precision(torch.tensor(scores).float(), torch.tensor(truth))
            assert found == pytest.approx(average_precision_score(truth, scores))


class TestStudy:
    def test_collect_takes_each_place_and_mirrors(self):
        net = Net().train()
        before = {k: v.clone() for k, v in net.state_dict().items()}
        images = torch.randn(3, 3, 6, 8)
        masks = np.arange(3 * 48).reshape(3, 6, 8).astype(np.uint8)
        batches = [(images[:2], masks[:2]), (images[2:], masks[2:])]
        first, second = heads.collect(net, ["rcu:input", "rcu"], batches, mirrored=True)
        assert net.training and all(torch.equal(before[k], v) for k, v in net.state_dict().items())
        assert first.maps.shape == (6, 4, 6, 8) and not first.maps.requires_grad
        assert torch.equal(first.masks, second.masks)
        # of a batch first the images, then their mirror images
        assert first.masks[2].tolist() == masks[0, :, ::-1].tolist()
        with pytest.raises(InputError, match="several sizes"):
            heads.collect(net, ["rcu"], [*batches, (images[..., :7], masks[..., :7])])
        with torch.no_grad():
            assert torch.allclose(first.maps[5], net.stem(images[2:].flip(3))[0])
            assert torch.allclose(second.maps, net.rcu(first.maps), atol=1e-6)

    def test_places_of_heads(self):
        rcu = ["before RCU", "after RCU", "after CRP"]
        for form, places in (
            ("refinenet", rcu),
            ("refinenet-lw-rcu", rcu),
            ("refinenet-lw", ["before CRP", "after CRP"]),
            ("refinenet-lw-nocrp", ["before CRP"]),
        ):
            with torch.device("meta"):
                net = build(f"{form}-efficientnet_lite0", 2)
            assert list(heads.probe_places(net)) == places

    def test_probe(self, monkeypatch):
        torch.manual_seed(3)
        model = build("refinenet-lw-efficientnet_lite0", 6).eval()
        monkeypatch.setattr(heads, "HEADS", {"conv": Head(epochs=1)})
        before = {k: v.clone() for k, v in model.state_dict().items()}
        result = heads.probe(model, Few(4), Few(3), images=3, heads=("conv",), seeds=2)
        again = heads.probe(model, Few(4), Few(3), images=3, heads=("conv",), seeds=1)
        miou = [r["places"]["after CRP"]["heads"]["conv"]["miou"] for r in (again, result)]
        assert miou[0] == miou[1][:1]  # the seed decides
        assert json.loads(json.dumps(result, allow_nan=False)) == result
        assert (result["train_images"], result["images"], result["background"]) == (3, 3, "ground")
        assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
        for place, layer in heads.probe_places(model).items():
            row = result["places"][place]["heads"]["conv"]
            assert result["places"][place]["layer"] == layer
            assert len({*row["miou"]}) == len(row["accuracy"]) == 2
            assert 0 < row["miou_interval"][0] <= row["miou"][0] <= row["miou_interval"][1] < 1
            assert list(row["average_precision"]) == list(LABELS["embedded"].classes[1:])
            assert row["average_precision"]["disc"] is None  # in all of these scenes
