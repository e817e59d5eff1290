"""mIoU against a count by hand and against torchmetrics."""
import math

import pytest
import torch

from rflw import InputError
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


def test_frequency_weighted_iou_by_hand():
    # of 10 labelled pixels 4, 4 and 2 are of the classes with IoU 1/2, 1/2 and 0
    assert frequency_weighted_iou(torch.tensor(MATRIX)) == pytest.approx(0.4 / 2 + 0.4 / 2)


class TestBootstrap:
    def test_equal_images_leave_no_doubt(self):
        assert bootstrap_interval(torch.tensor(MATRIX).expand(5, 4, 4)) == pytest.approx(2 * (mean_iou(torch.tensor(MATRIX)),))

    def test_is_the_spread_of_resampled_sets(self):
        generator = torch.Generator().manual_seed(1)
        matrices = torch.randint(0, 50, (30, 3, 3), generator=generator)
        random = torch.Generator().manual_seed(2)
        slow = sorted(mean_iou(matrices[torch.randint(30, (30,), generator=random)].sum(0)) for _ in range(2000))
        low, high = bootstrap_interval(matrices)
        assert low == pytest.approx(slow[50], abs=0.003) and high == pytest.approx(slow[1950], abs=0.003)
        assert low < mean_iou(matrices.sum(0)) < high


class TestBoundary:
    """Two classes that meet between columns: with 20 x 20 pixels and a tolerance of 0.1, the radius is 2.83."""

    @staticmethod
    def halves(column):
        return (torch.arange(20) >= column).long().expand(20, 20)

    @pytest.mark.parametrize(("shift", "score"), [(0, 1.0), (2, 1.0), (3, 0.0)])
    def test_a_shifted_boundary_counts_up_to_the_tolerance(self, shift, score):
        assert boundary_f(self.halves(8 + shift), self.halves(8), 2, tolerance=0.1).tolist() == [score, score]

    def test_half_of_the_boundary(self):
        prediction = self.halves(8).clone()
        prediction[:10] = 0  # class 1 in the lower half only: its boundary has a row more, and is right in the lower half
        score = boundary_f(prediction, self.halves(8), 2, tolerance=0.0)[1].item()
        # predicted boundary of class 1: 10 pixels of column 8 and 12 of row 10, one is both; true: column 8, 20 pixels
        precision, recall = 10 / 21, 10 / 20
        assert score == pytest.approx(2 * precision * recall / (precision + recall))

    def test_void_has_no_boundary_and_absent_classes_no_score(self):
        target = self.halves(8).clone()
        target[:, 7:9] = 255
        scores = boundary_f(self.halves(8), target, 3, tolerance=0.1)
        assert scores.isnan().all()

    def test_a_class_that_is_not_found_scores_zero(self):
        assert boundary_f(torch.zeros(20, 20).long(), self.halves(8), 2).tolist() == [0, 0]
