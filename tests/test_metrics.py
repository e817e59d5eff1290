"""Metrics against counts by hand, scikit-learn and SciPy."""

import math

from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pytest
from scipy import ndimage
from sklearn import metrics as sklearn
import torch

from rflw import InputError, evaluation
from rflw.metrics import (
    bootstrap_interval,
    boundary_f,
    confusion_matrix,
    frequency_weighted_iou,
    iou,
    mean_iou,
    pixel_accuracy,
)

# 4 classes; class 3 is neither in the labels nor predicted, class 2 only in the labels; 255 is void
TARGET = torch.tensor([[0, 0, 0, 1], [1, 1, 2, 255], [0, 255, 2, 1]])
PREDICTION = torch.tensor([[0, 0, 1, 1], [1, 0, 1, 2], [0, 3, 0, 1]])
# by hand, row = truth, column = prediction; the two void pixels (predicted 2 and 3) count nowhere
MATRIX = [[3, 1, 0, 0], [1, 3, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0]]
# class 0: hit 3, union 4 true + 5 predicted - 3 = 6; class 1: hit 3, union 4 + 5 - 3 = 6; class 2: hit 0, union 2
IOU = [3 / 6, 3 / 6, 0.0, math.nan]


def test_by_hand():
    matrix = torch.tensor(MATRIX)
    assert confusion_matrix(PREDICTION, TARGET, 4).tolist() == MATRIX
    assert iou(matrix).tolist() == pytest.approx(IOU, nan_ok=True)
    assert mean_iou(matrix) == pytest.approx((3 / 6 + 3 / 6 + 0) / 3)
    assert mean_iou(matrix, absent="one") == pytest.approx((3 / 6 + 3 / 6 + 0 + 1) / 4)
    assert pixel_accuracy(matrix) == 6 / 10
    assert frequency_weighted_iou(matrix) == pytest.approx(0.4 * 3 / 6 + 0.4 * 3 / 6)
    nothing = confusion_matrix(PREDICTION, torch.full_like(TARGET, 255), 4)
    assert nothing.sum() == 0 and math.isnan(pixel_accuracy(nothing))


# ---------------------------------------------------------------- random cases, by scikit-learn


@st.composite
def cases(draw):
    """Maps of some classes, of which not all need be there, and predictions that are right for a share of the pixels; some are void."""
    classes, seed = draw(st.integers(2, 8)), draw(st.integers(0, 2**32 - 1))
    shape = draw(st.tuples(st.integers(1, 3), st.integers(2, 24), st.integers(2, 24)))
    random = np.random.RandomState(seed)
    present = draw(st.lists(st.integers(0, classes - 1), min_size=1, unique=True))
    guessed = draw(st.sampled_from([present, [*range(classes)]]))
    target, guess = random.choice(present, shape), random.choice(guessed, shape)
    prediction = np.where(random.rand(*shape) < draw(st.floats(0, 1)), target, guess)
    target[random.rand(*shape) < draw(st.sampled_from([0, 0.3]))] = 255
    target[0, 0, 0] = present[0]  # where all is void, there is nothing to compare
    return torch.from_numpy(prediction), torch.from_numpy(target), classes


@settings(max_examples=60, deadline=None)
@given(cases())
def test_random_cases_against_scikit_learn(case):
    prediction, target, classes = case
    matrix, valid = confusion_matrix(prediction, target, classes), (target != 255).numpy()
    truth, guess, labels = target.numpy()[valid], prediction.numpy()[valid], list(range(classes))
    assert matrix.tolist() == sklearn.confusion_matrix(truth, guess, labels=labels).tolist()
    seen = sorted({*truth.tolist(), *guess.tolist()})
    per_class = dict(
        zip(seen, sklearn.jaccard_score(truth, guess, labels=seen, average=None, zero_division=0))
    )
    assert iou(matrix).tolist() == pytest.approx(
        [per_class.get(label, math.nan) for label in labels], nan_ok=True
    )
    assert mean_iou(matrix) == pytest.approx(np.mean(list(per_class.values())))
    assert mean_iou(matrix, "one") == pytest.approx(
        np.mean([per_class.get(label, 1.0) for label in labels])
    )
    assert pixel_accuracy(matrix) == pytest.approx(sklearn.accuracy_score(truth, guess))
    weighted = sklearn.jaccard_score(
        truth, guess, labels=sorted(set(truth.tolist())), average="weighted", zero_division=0
    )
    assert frequency_weighted_iou(matrix) == pytest.approx(weighted)


def boundary_f_by_distances(prediction, target, classes, tolerance):
    """The same from SciPy's distance transform, class by class."""
    radius, valid = tolerance * math.hypot(*target.shape), target != 255

    def boundary(labels, label):
        padded = np.pad(np.where(valid, labels, -1), 1, constant_values=-1)
        centre, edge = padded[1:-1, 1:-1], np.zeros(labels.shape, bool)
        for other in (padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:]):
            edge |= (centre == label) & (other != label) & (other >= 0)
        return edge

    scores = []
    for label in range(classes):
        own, true = boundary(prediction, label), boundary(target, label)
        if not true.any():
            scores.append(math.nan)
            continue
        precision, recall = (
            ((ndimage.distance_transform_edt(~others) <= radius) & edges).sum() / edges.sum()
            if edges.any() and others.any()
            else 0.0
            for edges, others in ((own, true), (true, own))
        )
        scores.append(2 * precision * recall / (precision + recall) if precision + recall else 0.0)
    return scores


@pytest.mark.parametrize(("seed", "tolerance"), [(0, 0.0075), (1, 0.03), (0, 0.1), (1, 0.4)])
def test_boundary_f_against_distances(seed, tolerance):
    random = np.random.RandomState(seed)
    coarse = random.randint(0, 4, (7, 9)).repeat(5, 0).repeat(6, 1)
    target, prediction = (
        coarse[:33, :47].copy(),
        np.roll(coarse, (random.randint(3), random.randint(3)), (0, 1))[:33, :47].copy(),
    )
    target[random.rand(*target.shape) < 0.05] = 255
    target[target == 3] = random.randint(3)  # predicted, but nowhere in the labels
    found = boundary_f(
        torch.from_numpy(prediction), torch.from_numpy(target), 5, tolerance
    ).tolist()
    assert found == pytest.approx(
        boundary_f_by_distances(prediction, target, 5, tolerance), nan_ok=True
    )
    assert math.isnan(found[3]) and math.isnan(found[4]) and 0 < min(found[:3])


def test_boundary_f_by_hand():
    target = torch.zeros(6, 8, dtype=torch.long)
    target[:, 4:] = 1
    moved = target.roll(2, 1)
    moved[:, :2] = 0
    # no tolerance at this size: the diagonal is ten pixels
    assert boundary_f(target, target, 2).tolist() == [1.0, 1.0]
    assert boundary_f(moved, target, 2).tolist() == [0.0, 0.0]
    assert boundary_f(moved, target, 2, tolerance=0.2).tolist() == [1.0, 1.0]  # just the two pixels
    assert boundary_f(moved, target, 2, tolerance=0.199).tolist() == [0.0, 0.0]


def test_the_bootstrap_interval_is_that_of_images_drawn_anew():
    random = np.random.RandomState(0)
    matrices = torch.from_numpy(random.randint(0, 50, (12, 3, 3)) + np.diag([60, 40, 20])[None])
    low, high = bootstrap_interval(matrices)
    # one by one, by another generator
    draws = [mean_iou(matrices[random.randint(0, 12, 12)].sum(0)) for _ in range(4000)]
    ends = np.quantile(draws, (0.025, 0.975)).tolist()
    assert [low, high] == pytest.approx(ends, abs=0.2 * np.std(draws))
    assert bootstrap_interval(matrices) == (low, high)
    assert bootstrap_interval(matrices, seed=1) != (low, high)
    alone = bootstrap_interval(matrices[:1])
    # one image is all that can be drawn
    assert alone == pytest.approx((mean_iou(matrices[0]),) * 2)


def test_images_of_a_block_are_drawn_together():
    """Two blocks are drawn as both, as twice the first or as twice the second: 1/2, 1/4, 1/4."""
    # (hit, missed) pixels of each image; block 0 holds the images 0, 1 and 3, block 1 the image 2
    counts = [(1, 3), (0, 4), (6, 2), (2, 2)]
    images = torch.tensor([[[hit, 0], [0, 0]] for hit, _ in counts])
    images[:, 0, 1] = torch.tensor([missed for _, missed in counts])
    first, second = 3 / 12 / 2, 6 / 8 / 2  # IoU of class 0 is hit / all, that of class 1 is 0
    result = evaluation.summary(images, ("a", "b"), blocks=[0, 0, 1, 0])
    assert result["miou"] == pytest.approx(9 / 20 / 2)
    assert result["miou_interval"] == pytest.approx([first, second])
    blocks = torch.stack([images[[0, 1, 3]].sum(0), images[2]])
    assert bootstrap_interval(blocks, level=0.02) == pytest.approx([9 / 20 / 2] * 2)
    # drawn one by one, other scores are possible
    alone = evaluation.summary(images, ("a", "b"))["miou_interval"]
    assert alone != pytest.approx([first, second])


@pytest.mark.parametrize(
    ("prediction", "target", "words"),
    [
        (torch.zeros(2, 3), torch.zeros(3, 2), "against labels"),
        (torch.tensor([0, 0]), torch.tensor([0, 4]), "label 4"),
        (torch.tensor([0, 3, 7, 8]), torch.tensor([0, 0, 0, 0]), "class 7"),
        (torch.tensor([-1]), torch.tensor([0]), "class -1"),
    ],
)
def test_bad_input_is_refused(prediction, target, words):
    with pytest.raises(InputError, match=words):
        confusion_matrix(prediction, target, 4)
