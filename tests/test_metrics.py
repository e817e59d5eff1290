"""mIoU against a count by hand and against torchmetrics."""
import math

import numpy as np
import pytest
from scipy import ndimage, stats
import torch

from rflw import InputError
from rflw.metrics import bootstrap_interval, boundary_f, confusion_matrix, frequency_weighted_iou, iou, mean_iou, pixel_accuracy

# 4 classes; class 3 is neither in the labels nor predicted, class 2 only in the labels; 255 is void
TARGET = torch.tensor([[0, 0, 0, 1], [1, 1, 2, 255], [0, 255, 2, 1]])
PREDICTION = torch.tensor([[0, 0, 1, 1], [1, 0, 1, 2], [0, 3, 0, 1]])
# by hand, row = truth, column = prediction; the two void pixels (predicted 2 and 3) count nowhere
MATRIX = [[3, 1, 0, 0], [1, 3, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0]]
# class 0: hit 3, union 4 true + 5 predicted - 3 = 6; class 1: hit 3, union 4 + 5 - 3 = 6; class 2: hit 0, union 2
IOU = [3 / 6, 3 / 6, 0.0, math.nan]


def test_confusion_matrix_by_hand():
    assert confusion_matrix(PREDICTION, TARGET, 4).tolist() == MATRIX


def test_iou_by_hand():
    assert iou(torch.tensor(MATRIX)).tolist() == pytest.approx(IOU, nan_ok=True)


def test_absent_classes_are_skipped_or_count_as_one():
    matrix = torch.tensor(MATRIX)
    assert mean_iou(matrix) == pytest.approx((3 / 6 + 3 / 6 + 0) / 3)
    assert mean_iou(matrix, absent="one") == pytest.approx((3 / 6 + 3 / 6 + 0 + 1) / 4)
    with pytest.raises(InputError):
        mean_iou(matrix, absent="zero")


def test_pixel_accuracy_by_hand():
    assert pixel_accuracy(torch.tensor(MATRIX)) == 6 / 10


def test_frequency_weighted_iou_by_hand():
    # of the 10 labelled pixels 4, 4 and 2 are of the classes 0, 1 and 2
    assert frequency_weighted_iou(torch.tensor(MATRIX)) == pytest.approx(0.4 * 3 / 6 + 0.4 * 3 / 6 + 0.2 * 0)


def test_the_interval_is_that_of_images_drawn_anew():
    generator = torch.Generator().manual_seed(0)
    matrices = torch.randint(0, 30, (40, 3, 3), generator=generator) + 60 * torch.eye(3, dtype=torch.int64)
    matrices[::4, 0, 0] = 0  # a class that some images have all wrong

    def score(picks):
        return mean_iou(matrices[torch.from_numpy(np.asarray(picks))].sum(0))
    theirs = stats.bootstrap((np.arange(40),), score, vectorized=False, n_resamples=2000, method="percentile", rng=1)
    low, high = bootstrap_interval(matrices)
    width = high - low
    assert low < score(range(40)) < high
    assert (low, high) == pytest.approx(theirs.confidence_interval, abs=0.1 * width)
    narrow = bootstrap_interval(matrices, level=0.5)
    assert low < narrow[0] < narrow[1] < high and bootstrap_interval(matrices) == (low, high)


class TestBoundary:
    """Two halves, left and right, on 30x40 pixels: the diagonal is 50 pixels long."""

    def halves(self, column):
        return (torch.arange(40) >= column).long().repeat(30, 1)

    def test_by_hand(self):
        # a pixel of tolerance is 0.02 of the diagonal: the edge one pixel aside is right, two pixels aside wrong
        for column, tolerance, expected in ((20, 0.0, 1), (21, 0.02, 1), (21, 0.019, 0), (22, 0.02, 0), (22, 0.04, 1)):
            scores = boundary_f(self.halves(column), self.halves(20), 3, tolerance)
            assert scores[:2].tolist() == [expected, expected] and scores[2].isnan(), (column, tolerance)
        half = torch.cat([self.halves(20)[:15], self.halves(30)[15:]])
        # boundary of class 0: 15 rows above that are right; 15 below that are wrong, and the step between, nine more pixels
        scores = boundary_f(half, self.halves(20), 2, 0.0)
        precision, recall = 15 / (15 + 15 + 9), 15 / 30
        assert scores[0].item() == pytest.approx(2 * precision * recall / (precision + recall))

    @pytest.mark.parametrize("tolerance", [0.0075, 0.03, 0.06])
    def test_against_distances(self, tolerance):
        """Boundaries and their distances by scipy, with void on one side."""
        random = np.random.RandomState(0)
        target, prediction = (ndimage.zoom(random.randint(0, 3, (6, 8)), 8, order=0) for _ in range(2))
        prediction[:, :32] = np.roll(target, 2, 1)[:, :32]
        target[:, 50:] = 255

        def edges(labels, label):
            found = np.zeros(labels.shape, bool)
            for row, column in np.argwhere((labels == label) & (target != 255)):
                around = ((row + 1, column), (row - 1, column), (row, column + 1), (row, column - 1))
                found[row, column] = any(0 <= r < 48 and 0 <= c < 64 and target[r, c] != 255 and labels[r, c] != label for r, c in around)
            return found

        def near(edge):
            return ndimage.distance_transform_edt(~edge) <= tolerance * 80
        ours = boundary_f(torch.from_numpy(prediction), torch.from_numpy(target), 3, tolerance)
        for label in range(3):
            own, true = edges(prediction, label), edges(target, label)
            precision, recall = (own & near(true)).sum() / own.sum(), (true & near(own)).sum() / true.sum()
            assert ours[label].item() == pytest.approx(2 * precision * recall / (precision + recall)), label
        assert 0.1 < ours.mean() < 1

    def test_void_has_none(self):
        target = self.halves(20)
        target[:, 18:22] = 255  # a rim of void between the halves
        assert boundary_f(self.halves(20), target, 2).isnan().all()


def test_matrices_of_images_add_up():
    whole = confusion_matrix(PREDICTION, TARGET, 4)
    parts = confusion_matrix(PREDICTION[:1], TARGET[:1], 4) + confusion_matrix(PREDICTION[1:], TARGET[1:], 4)
    assert torch.equal(whole, parts)


def test_all_void_counts_nothing():
    assert confusion_matrix(PREDICTION, torch.full_like(TARGET, 255), 4).sum() == 0


@pytest.mark.parametrize("seed", range(5))
def test_against_torchmetrics(seed):
    from torchmetrics.functional.classification import multiclass_jaccard_index
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(0, 6, (2, 40, 50), generator=generator)
    prediction = torch.where(torch.rand(target.shape, generator=generator) < 0.6, target,
                             torch.randint(0, 6, target.shape, generator=generator))
    target[:, :5] = 255
    expected = multiclass_jaccard_index(prediction, target, num_classes=6, average=None, ignore_index=255)
    torch.testing.assert_close(iou(confusion_matrix(prediction, target, 6)).float(), expected)


@pytest.mark.parametrize(("prediction", "target", "words"), [
    (torch.zeros(2, 3), torch.zeros(3, 2), "against labels"),
    (torch.tensor([0]), torch.tensor([4]), "label 4"),
    (torch.tensor([7]), torch.tensor([0]), "class 7"),
    (torch.tensor([-1]), torch.tensor([0]), "class -1"),
])
def test_bad_input_is_refused(prediction, target, words):
    with pytest.raises(InputError, match=words):
        confusion_matrix(prediction, target, 4)
