"""Evaluation: confusion matrices of whole images, and what they are summed up to."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from rflw import InputError, checkpoint, cli, evaluation, prediction
from rflw.data.labels import labels_for
from rflw.data.synthetic import scene
from rflw.metrics import confusion_matrix

DATA = [scene("val", i) for i in range(3)]


@pytest.fixture(scope="module")
def model():
    return checkpoint.load("embedded")


def test_matrices_are_those_of_predictions(model):
    seen = []
    matrices = evaluation.evaluate(
        model, DATA, "fp32", each=lambda i, *maps: seen.append((i, *maps))
    )
    for (i, classes, labels), (image, mask), matrix in zip(seen, DATA, matrices, strict=True):
        assert np.array_equal(classes.numpy(), prediction.predict(model, image)) and i < 3
        assert np.array_equal(labels.numpy(), mask)
        assert torch.equal(matrix, confusion_matrix(classes, labels, 6))


def test_processes_share_the_images_and_modules_keep_their_modes(model):
    model.train()
    model.encoder.stem.bn.eval()
    shares = [evaluation.evaluate(model, DATA, "fp32", rank=rank, world=2) for rank in (0, 1)]
    assert model.training and not model.encoder.stem.bn.training
    model.eval()
    assert torch.equal(sum(shares), evaluation.evaluate(model, DATA, "fp32"))
    assert shares[0][1].sum() == 0 and shares[1][0].sum() == shares[1][2].sum() == 0


def test_scales_flips_and_tiles_reach_the_network(model):
    image = np.concatenate([scene("val", i)[0][:40] for i in range(9)], 1)
    mask, sizes = np.zeros(image.shape[:2], np.uint8), []
    hook = model.encoder.register_forward_pre_hook(lambda _, x: sizes.append(x[0].shape[3]))
    evaluation.evaluate(model, [(image, mask)], "fp32", (1.0, 0.875), flip=True, tile=1024)
    hook.remove()
    assert sizes == [1024] * 4 + [1008] * 2  # 1152 pixels in two tiles, then 1008 whole


def test_an_image_that_is_too_small_is_named(model):
    class Small(list):
        ids = ["fine", "tiny"]

    data = Small((np.zeros((n, n, 3), np.uint8), np.zeros((n, n), np.uint8)) for n in (40, 8))
    with pytest.raises(InputError, match="tiny: input of 8x8 pixels: the smallest is 33x33"):
        evaluation.evaluate(model, data)


def test_summary_by_hand():
    matrices = torch.tensor([[[3, 1, 0], [1, 5, 0], [0, 0, 0]]])
    assert evaluation.summary(matrices, ("a", "b", "c")) == {
        "miou": pytest.approx((3 / 5 + 5 / 7) / 2),
        "pixel_accuracy": 0.8,
        "iou": {"a": pytest.approx(3 / 5), "b": pytest.approx(5 / 7), "c": None},
        "miou_interval": pytest.approx(2 * [(3 / 5 + 5 / 7) / 2]),
        "miou_absent_as_one": pytest.approx((3 / 5 + 5 / 7 + 1) / 3),
        "frequency_weighted_iou": pytest.approx(0.4 * 3 / 5 + 0.6 * 5 / 7),
    }


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ("a b c", None),
        ("a c b", "the same classes in another order: label 1 is c, of the network b"),
        ("a b d", "other classes: label 2 is d, of the network c"),
        ("a b", "the network has 3 classes, d has 2"),
    ],
)
def test_names_of_classes_are_compared_and_their_order(names, said):
    model = SimpleNamespace(card={"classes": ["a", "b", "c"]})
    dataset = SimpleNamespace(name="d", labels=labels_for(names.split()))
    if said is None:
        return evaluation.same_classes(model, dataset)
    with pytest.raises(InputError, match=said):
        evaluation.same_classes(model, dataset)
    with pytest.raises(InputError, match=said):
        evaluation.evaluate(model, dataset)


def test_the_interval_of_eval_draws_frames_that_are_alike_together(monkeypatch):
    class Frames(list):
        name, ids = "camvid", [f"0001TP_{i:06}" for i in range(24)]
        labels = labels_for("ab")

    torch.manual_seed(0)
    matrices = torch.randint(1, 50, (24, 2, 2)) * torch.arange(1, 25)[:, None, None]
    monkeypatch.setattr(evaluation, "evaluate", lambda *_, **__: matrices)
    model, ways = SimpleNamespace(num_classes=2), ("fp32", (1.0,), False, None)
    got = cli.measure(model, Frames(range(24)), ways)["miou_interval"]
    blocks = [0] * 10 + [1] * 10 + [2] * 4
    assert got == evaluation.summary(matrices, "ab", blocks)["miou_interval"]
    assert got != evaluation.summary(matrices, "ab")["miou_interval"]


def test_a_network_sees_images_at_the_scale_of_its_training(model, monkeypatch):
    image = DATA[0][0]  # 96 x 128
    for card, scale in (
        ({"data": "nyu", "short_side": 234}, 0.5),
        ({"data": "nyu", "short_side": None}, 1.0),
        ({"data": "camvid", "short_side": 360}, 1.0),
        ({"data": "photos"}, 1.0),
    ):
        monkeypatch.setattr(model, "card", card)
        assert prediction.own_scale(model) == scale
        seen = prediction.as_seen(image, model, torch.device("cpu"))
        assert seen.shape == (1, 3, 96 * scale, 128 * scale)
