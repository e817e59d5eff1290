"""Segmentation metrics, all from one confusion matrix.

The matrix is (K, K) int64: entry [t, p] counts pixels of true class t that were predicted as p, summed over all
images; void pixels (255) count nowhere. mIoU is the mean over classes of TP / (TP + FP + FN).
"""
import torch
from torch import Tensor

from rflw.datasets.labels import VOID
from rflw.errors import InputError


def confusion_matrix(prediction: Tensor, target: Tensor, num_classes: int) -> Tensor:
    """(..., H, W) integer class maps, target with 255 as void -> (K, K) int64.

    Raises InputError if shapes differ or a label is neither below K nor void.
    """
    if prediction.shape != target.shape:
        raise InputError(f"prediction of {tuple(prediction.shape)} against labels of {tuple(target.shape)}")
    valid = target != VOID
    target, prediction = target[valid].long(), prediction[valid].long()
    for what, labels in (("label", target), ("predicted class", prediction)):
        if labels.numel() and not 0 <= labels.min() <= labels.max() < num_classes:
            bad = labels[(labels < 0) | (labels >= num_classes)][0].item()
            raise InputError(f"{what} {bad} is not among {num_classes} classes")
    return torch.bincount(target * num_classes + prediction, minlength=num_classes**2).reshape(num_classes, -1)


def iou(matrix: Tensor) -> Tensor:
    """(K, K) -> (K,) float64; nan for a class that is neither in the labels nor predicted."""
    matrix = matrix.double()
    hit = matrix.diagonal()
    return hit / (matrix.sum(0) + matrix.sum(1) - hit)  # 0/0 = nan


def mean_iou(matrix: Tensor, absent: str = "skip") -> float:
    """Mean over classes. A class absent from labels and predictions is left out ("skip", the authors' second script)
    or counts as 1 ("one", their first)."""
    if absent not in ("skip", "one"):
        raise InputError(f"absent classes: 'skip' or 'one', not {absent!r}")
    per_class = iou(matrix)
    return (per_class.nanmean() if absent == "skip" else per_class.nan_to_num(nan=1.0).mean()).item()


def pixel_accuracy(matrix: Tensor) -> float:
    """Share of the pixels that are not void that is predicted right; nan where all is void."""
    return (matrix.diagonal().sum().double() / matrix.sum()).item()
