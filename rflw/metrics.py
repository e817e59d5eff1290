"""Segmentation metrics, all from one confusion matrix.

The matrix is (K, K) int64: entry [t, p] counts pixels of true class t that were predicted as p, summed over all
images; void pixels (255) count nowhere. mIoU is the mean over classes of TP / (TP + FP + FN).
"""

import torch
from torch import Tensor
import torch.nn.functional as F

from rflw.data.labels import VOID
from rflw.errors import InputError

LARGE_REACH = 16  # pixels around a boundary, from which on distances are computed another way
MAPS = 2**24  # pixels of all classes that are looked at together


def confusion_matrix(prediction: Tensor, target: Tensor, num_classes: int) -> Tensor:
    """(..., H, W) integer class maps, target with 255 as void -> (K, K) int64.

    Raises InputError if shapes differ or a label is neither below K nor void.
    """
    if prediction.shape != target.shape:
        raise InputError(
            f"prediction of {tuple(prediction.shape)} against labels of {tuple(target.shape)}"
        )
    valid = target != VOID
    target, prediction = target[valid].long(), prediction[valid].long()
    for what, labels in (("label", target), ("predicted class", prediction)):
        if labels.numel() and not 0 <= labels.min() <= labels.max() < num_classes:
            bad = labels[(labels < 0) | (labels >= num_classes)][0].item()
            raise InputError(f"{what} {bad} is not among {num_classes} classes")
    return torch.bincount(target * num_classes + prediction, minlength=num_classes**2).reshape(
        num_classes, -1
    )


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
    return (
        per_class.nanmean() if absent == "skip" else per_class.nan_to_num(nan=1.0).mean()
    ).item()


def pixel_accuracy(matrix: Tensor) -> float:
    """Share of the pixels that are not void that is predicted right; nan where all is void."""
    return (matrix.diagonal().sum().double() / matrix.sum()).item()


def frequency_weighted_iou(matrix: Tensor) -> float:
    """IoU of each class weighted by its share of the labelled pixels (Long et al., 2015)."""
    share = matrix.double().sum(1) / matrix.sum()
    return (share * iou(matrix).nan_to_num()).sum().item()


def bootstrap_interval(
    matrices: Tensor, level: float = 0.95, draws: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Matrices of single images, (N, K, K) -> the interval of mIoU over images drawn anew with replacement.

    The percentile interval of Efron (1979). It tells how much another sample of images from the same scenes would
    change the figure; it knows nothing of other training runs.
    """
    images = len(matrices)
    picks = torch.randint(images, (draws, images), generator=torch.Generator().manual_seed(seed))
    times = torch.zeros(draws, images, dtype=torch.float64).scatter_add_(
        1, picks, torch.ones(draws, images, dtype=torch.float64)
    )
    drawn = (times @ matrices.double().flatten(1)).unflatten(1, matrices.shape[1:])  # (draws, K, K)
    hit = drawn.diagonal(dim1=1, dim2=2)
    values = (hit / (drawn.sum(1) + drawn.sum(2) - hit)).nanmean(1)
    low, high = torch.quantile(
        values, torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    ).tolist()
    return low, high


def boundary_f(
    prediction: Tensor, target: Tensor, num_classes: int, tolerance: float = 0.0075
) -> Tensor:
    """Class maps (H, W), target with 255 as void -> (K,) boundary F-score of each class, nan where the labels have
    no boundary of the class.

    As Csurka et al., "What is a good evaluation measure for semantic segmentation?" (2013): precision is the share of the
    predicted boundary that lies within `tolerance` (a share of the image's diagonal) of the true boundary of its class,
    recall the same the other way round. Pixels next to void are no boundary, so labels with a void rim around every object
    (PASCAL VOC's, the embedded set's) have none.
    """
    h, w = target.shape
    valid = target != VOID
    radius = tolerance * (h**2 + w**2) ** 0.5
    reach = int(radius)
    offsets = torch.arange(-reach, reach + 1, device=target.device, dtype=torch.float32)
    disc = (offsets[:, None] ** 2 + offsets**2 <= radius**2).float()

    def edges(
        labels: Tensor,
    ) -> (
        Tensor
    ):  # (H, W): the class of a pixel that has a valid neighbour of another class, else -1
        labels = torch.where(valid, labels.long(), -1)
        edge = torch.zeros_like(valid)
        for a, b in (
            (edge[1:], (labels[1:], labels[:-1])),
            (edge[:-1], (labels[:-1], labels[1:])),
            (edge[:, 1:], (labels[:, 1:], labels[:, :-1])),
            (edge[:, :-1], (labels[:, :-1], labels[:, 1:])),
        ):
            a |= (b[0] != b[1]) & (b[0] >= 0) & (b[1] >= 0)
        return torch.where(edge, labels, -1)

    def near(edges: Tensor) -> Tensor:
        if reach > LARGE_REACH:  # a disc has too many pixels to be laid on each
            from scipy.ndimage import distance_transform_edt

            found = [
                torch.from_numpy(distance_transform_edt(~edge.cpu().numpy()) <= radius)
                if edge.any()
                else edge
                for edge in edges
            ]
            return torch.stack(found).to(edges.device)
        return F.conv2d(edges.float()[:, None], disc[None, None], padding=reach)[:, 0] > 0

    def share(edges: Tensor, others: Tensor) -> Tensor:
        return (edges & near(others)).sum((1, 2)).double() / edges.sum((1, 2))

    scores, (own_edges, true_edges) = [], map(edges, (prediction, target))
    for classes in (
        torch.arange(num_classes, device=target.device)
        .view(-1, 1, 1)
        .split(max(1, MAPS // (h * w)))
    ):
        own, true = own_edges == classes, true_edges == classes
        precision, recall = share(own, true).nan_to_num(), share(true, own).nan_to_num()
        score = 2 * precision * recall / (precision + recall).clamp(min=1e-12)
        scores.append(torch.where(true.any(2).any(1), score, torch.nan))
    return torch.cat(scores)
