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


@st.composite
def cases(draw):
    """Maps in which not all classes need be there, predictions right for a share; some void."""
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


@settings(max_examples=30, deadline=None)
@given(cases())
def test_random_cases_against_scikit_learn(case):
    prediction, target, classes = case
    matrix, valid = confusion_matrix(prediction, target, classes), (target != 255).numpy()
    truth, guess, labels = (target.numpy()[valid], prediction.numpy()[valid], list(range(classes)))
    assert matrix.tolist() == sklearn.confusion_matrix(truth, guess, labels=labels).tolist()
    seen = sorted({*truth.tolist(), *guess.tolist()})

    def jaccard(labels, average):
        return sklearn.jaccard_score(truth, guess, labels=labels, average=average, zero_division=0)

    ious = dict(zip(seen, jaccard(seen, None)))
    expected = [ious.get(label, math.nan) for label in labels]
    assert iou(matrix).tolist() == pytest.approx(expected, nan_ok=True)
    assert mean_iou(matrix) == pytest.approx(np.mean(list(ious.values())))
    as_one = np.mean([ious.get(label, 1.0) for label in labels])
    assert mean_iou(matrix, "one") == pytest.approx(as_one)
    assert pixel_accuracy(matrix) == pytest.approx(sklearn.accuracy_score(truth, guess))
    weighted = jaccard(sorted(set(truth.tolist())), "weighted")
    assert frequency_weighted_iou(matrix) == pytest.approx(weighted)


@pytest.mark.parametrize(("seed", "tolerance"), [(0, 0.0075), (1, 0.03), (0, 0.1), (1, 0.4)])
def test_boundary_f_against_distances(seed, tolerance):
    random = np.random.RandomState(seed)
    coarse = random.randint(0, 4, (7, 9)).repeat(5, 0).repeat(6, 1)
    moved = np.roll(coarse, (random.randint(3), random.randint(3)), (0, 1))
    target, prediction = coarse[:33, :47].copy(), moved[:33, :47].copy()
    target[random.rand(*target.shape) < 0.05] = 255
    target[target == 3] = random.randint(3)  # predicted, but nowhere in the labels
    tensors = torch.from_numpy(prediction), torch.from_numpy(target)
    found = boundary_f(*tensors, 5, tolerance).tolist()
    expected = boundary_f_by_distances(prediction, target, 5, tolerance)
    assert found == pytest.approx(expected, nan_ok=True)
    assert math.isnan(found[3]) and math.isnan(found[4]) and 0 < min(found[:3])


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


def test_what_is_no_class_is_refused():
    for guess, truth, words in ((0, 4, "label 4"), (7, 0, "class 7"), (-1, 0, "class -1")):
        with pytest.raises(InputError, match=words):
            confusion_matrix(torch.tensor([0, guess]), torch.tensor([0, truth]), 4)
