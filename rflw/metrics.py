"""Segmentation metrics, all from one confusion matrix.

The matrix is (K, K) int64: entry [t, p] counts pixels of true class t that were predicted as p,
summed over all images; void pixels (255) count nowhere. mIoU is the mean over classes of
TP / (TP + FP + FN).
"""

import torch
from torch import Tensor
import torch.nn.functional as F

from rflw.data.labels import VOID
from rflw.errors import InputError, choose


def confusion_matrix(prediction: Tensor, target: Tensor, num_classes: int) -> Tensor:
    """Count pixels by true and predicted class.

    Args:
        prediction: (..., H, W) integer class map.
        target: The same shape, with 255 as void.
        num_classes: K.

    Returns:
        (K, K) int64, row = truth, column = prediction.

    Raises:
        InputError: Shapes differ, or a label is neither below K nor void.
    """
    if prediction.shape != target.shape:
        raise InputError(f"prediction {[*prediction.shape]} against labels {[*target.shape]}")
    valid = target != VOID
    target, prediction = target[valid].long(), prediction[valid].long()
    for what, labels in (("label", target), ("predicted class", prediction)):
        if labels.numel() and not 0 <= labels.min() <= labels.max() < num_classes:
            bad = labels[(labels < 0) | (labels >= num_classes)][0].item()
            raise InputError(f"{what} {bad} is not among {num_classes} classes")
    pairs = target * num_classes + prediction
    return torch.bincount(pairs, minlength=num_classes**2).reshape(num_classes, -1)


def iou(matrix: Tensor) -> Tensor:
    """(K, K) -> (K,) float64; nan for a class that is neither in the labels nor predicted."""
    matrix = matrix.double()
    hit = matrix.diagonal(dim1=-2, dim2=-1)
    return hit / (matrix.sum(-2) + matrix.sum(-1) - hit)  # 0/0 = nan


def mean_iou(matrix: Tensor, absent: str = "skip") -> float:
    """Mean IoU over classes.

    Args:
        matrix: (K, K).
        absent: What a class counts that is in neither labels nor predictions: "skip" leaves it out
            (the authors' second script), "one" counts 1 (their first).
    """
    choose("absent", absent, ("skip", "one"))
    of_classes = iou(matrix)
    return (of_classes.nan_to_num(1) if absent == "one" else of_classes).nanmean().item()


def pixel_accuracy(matrix: Tensor) -> float:
    """Share of pixels, void left out, that are predicted right; nan where all is void."""
    return (matrix.diagonal().sum().double() / matrix.sum()).item()


def frequency_weighted_iou(matrix: Tensor) -> float:
    """IoU of each class weighted by its share of the labelled pixels (Long et al., 2015)."""
    share = matrix.double().sum(1) / matrix.sum()
    return (share * iou(matrix).nan_to_num()).sum().item()


def bootstrap_interval(
    matrices: Tensor, level: float = 0.95, draws: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """The percentile interval of mIoU over images drawn anew with replacement (Efron, 1979).

    It says how much another sample of images from the same scenes would change mIoU; it says
    nothing about other training runs.

    Args:
        matrices: (N, K, K), one of each image, or of each block of images that are drawn together.
        level: Share of the draws within the interval.
        draws: How often N of them are drawn.
        seed: Of the draws.
    """
    images = len(matrices)
    picks = torch.randint(images, (draws, images), generator=torch.Generator().manual_seed(seed))
    times = torch.zeros(draws, images, dtype=torch.float64).scatter_add_(
        1, picks, torch.ones(draws, images, dtype=torch.float64)
    )
    drawn = (times @ matrices.double().flatten(1)).unflatten(1, matrices.shape[1:])  # (draws, K, K)
    ends = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    low, high = torch.quantile(iou(drawn).nanmean(1), ends).tolist()
    return low, high


def boundary_f(
    prediction: Tensor, target: Tensor, num_classes: int, tolerance: float = 0.0075
) -> Tensor:
    """Boundary F-score of each class.

    As Csurka et al., "What is a good evaluation measure for semantic segmentation?" (2013):
    precision is the share of the predicted boundary that lies near the true boundary of its class,
    recall the same the other way round. Pixels next to void are not boundary, so labels with a void
    rim around every object (PASCAL VOC's, the embedded set's) have none.

    Args:
        prediction: (H, W) class map.
        target: (H, W), with 255 as void.
        num_classes: K.
        tolerance: How far is near, as a share of the image's diagonal.

    Returns:
        (K,) float64, nan where the labels have no boundary of the class.
    """
    from scipy.spatial import KDTree

    valid = target != VOID
    radius = tolerance * (target.shape[0] ** 2 + target.shape[1] ** 2) ** 0.5

    def share(edge: Tensor, other: Tensor) -> float:
        points, others = edge.nonzero().cpu(), other.nonzero().cpu()
        if not len(points) or not len(others):
            return 0.0
        tree = KDTree(others, balanced_tree=False)
        distances, _ = tree.query(points, distance_upper_bound=radius + 1e-6)  # the bound is out
        return float((distances < float("inf")).mean())

    scores = torch.full((num_classes,), torch.nan, dtype=torch.float64)
    predicted_edges, true_edges = _edges(prediction, valid), _edges(target, valid)
    for label in true_edges[true_edges >= 0].unique().tolist():
        predicted, true = predicted_edges == label, true_edges == label
        precision, recall = share(predicted, true), share(true, predicted)
        scores[label] = 2 * precision * recall / max(precision + recall, 1e-12)
    return scores


def _edges(labels: Tensor, valid: Tensor) -> Tensor:
    """(H, W): the class of a pixel that has a valid neighbour of another class, else -1."""
    labels = torch.where(valid, labels.long(), -1)
    across = (labels[1:] != labels[:-1]) & valid[1:] & valid[:-1]
    along = (labels[:, 1:] != labels[:, :-1]) & valid[:, 1:] & valid[:, :-1]
    edge = F.pad(across, (0, 0, 1, 0)) | F.pad(across, (0, 0, 0, 1))
    edge |= F.pad(along, (1, 0)) | F.pad(along, (0, 1))
    return torch.where(edge, labels, -1)
