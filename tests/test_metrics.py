"""mIoU against a count by hand and against torchmetrics."""
import math

import pytest
import torch

from rflw import InputError
from rflw.metrics import confusion_matrix, iou, mean_iou, pixel_accuracy

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
