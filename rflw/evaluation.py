"""Evaluation: confusion matrices of whole images."""

import math
import sys

import torch
from torch import Tensor
from tqdm import tqdm

from rflw import metrics
from rflw.errors import InputError, about
from rflw.nn.refinenet import RefineNet
from rflw.prediction import best, evaluating, views


@torch.inference_mode()
def evaluate(
    model: RefineNet,
    dataset,
    precision: str = "auto",
    scales=(1.0,),
    flip: bool = False,
    each=None,
    progress: bool = False,
    rank: int = 0,
    world: int = 1,
    tile: int | None = None,
) -> Tensor:
    """The confusion matrix of every image, predictions resized to the labels.

    Args:
        model: the network; it stays in the mode in which it was.
        dataset: of (image (H, W, 3) uint8, labels (H, W) uint8).
        precision: "fp32", "bf16", "fp16" or "auto", the device's fastest.
        scales: of the image that the network sees; softmaxes of several are averaged.
        flip: average with the mirror image, too.
        each: called with (index, predicted classes (H, W), labels (H, W)) of every image.
        progress: show a bar on a terminal.
        rank: of this process among `world`; each takes its share, the others' matrices stay zero.
        world: number of processes.
        tile: as `rflw.predict`.

    Returns:
        The matrices, (N, K, K) int64 on the CPU; rows are labels, columns predictions.

    Raises:
        InputError: that names an image the network does not take, or for a data set of other
            classes than those of the network's card.
    """
    same_classes(model, dataset)
    device = next(model.parameters()).device
    model.to(memory_format=torch.channels_last)
    matrices = torch.zeros(len(dataset), model.num_classes, model.num_classes, dtype=torch.int64)
    ids = getattr(dataset, "ids", range(len(dataset)))  # a part of one has none
    indices = range(rank, len(dataset), world)
    with evaluating(model):
        for i in tqdm(indices, desc="evaluate", file=sys.stderr, disable=not progress or None):
            image, labels = dataset[i]
            labels = torch.from_numpy(labels).to(device)
            with about(ids[i]):
                logits = views(model, image, precision, scales, flip, tile)
            prediction = best(logits, labels.shape)[0]
            matrices[i] = metrics.confusion_matrix(prediction, labels, model.num_classes)
            if each:
                each(i, prediction, labels)
    return matrices


def same_classes(model, dataset) -> None:
    """Raises InputError unless network and data set have the same classes in the same order."""
    ours = tuple(getattr(model, "card", {}).get("classes", ()))
    theirs = dataset.labels.classes if hasattr(dataset, "labels") else ours
    if not ours or ours == theirs:
        return
    if len(ours) != len(theirs):
        raise InputError(f"the network has {len(ours)} classes, {dataset.name} has {len(theirs)}")
    label = next(i for i, (one, other) in enumerate(zip(ours, theirs)) if one != other)
    order = "the same classes in another order" if {*ours} == {*theirs} else "other classes"
    raise InputError(
        f"{dataset.name}: {order}: label {label} is {theirs[label]}, of the network {ours[label]}"
    )


def summary(matrices: Tensor, classes, blocks: list[int] | None = None) -> dict:
    """The numbers of an evaluation, all in 0..1; None for what cannot be measured.

    Args:
        matrices: one confusion matrix an image, (N, K, K).
        classes: names of the K classes.
        blocks: the number of each image's block, if images depend on each other (frames of a
            video); the interval is over blocks then.

    Returns:
        dict: {"miou", "pixel_accuracy", "iou": {class: value}, "miou_interval": [low, high] of
        95 % over images, "miou_absent_as_one", "frequency_weighted_iou"}.
    """

    def or_none(value):
        return None if math.isnan(value) else value

    matrix = matrices.sum(0)
    if blocks:
        matrices = matrices.new_zeros(max(blocks) + 1, *matrix.shape).index_add_(
            0, torch.tensor(blocks), matrices
        )
    return {
        "miou": or_none(metrics.mean_iou(matrix)),
        "pixel_accuracy": or_none(metrics.pixel_accuracy(matrix)),
        "iou": dict(zip(classes, map(or_none, metrics.iou(matrix).tolist()))),
        "miou_interval": [or_none(value) for value in metrics.bootstrap_interval(matrices)],
        "miou_absent_as_one": metrics.mean_iou(matrix, absent="one"),
        "frequency_weighted_iou": or_none(metrics.frequency_weighted_iou(matrix)),
    }
