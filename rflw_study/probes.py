"""Heads on a frozen network: what its features at a place are good for, as section 5.2 and Table 4 of the paper ask.

Features are computed once, for each image and its mirror image; then only heads are trained on them. The paper does not say what
its heads are. Ours are what is least: one convolution to the classes, upsampled, and one linear map of the pooled features.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
import sys

import numpy as np
import torch
from torch import Tensor, nn
import torch.nn.functional as F
from tqdm import tqdm

from rflw import metrics
from rflw.data.labels import VOID
from rflw.errors import InputError
from rflw_study.layers import evaluating, feature_maps


@dataclass(frozen=True)
class Head:
    """What is put on the frozen features, and how it is trained."""

    kernel: int = 3  # of the convolution to the classes: as the networks' own classifier
    pool: str = "mean"  # of the features over the image, before the linear map to the classes: "mean" or "max"
    epochs: int = 30
    batch: int = 32
    rate: float = 1e-2  # of AdamW, falling to nought by a cosine
    decay: float = 1e-4


HEADS = {
    "conv": Head(),
    "linear": Head(kernel=1, pool="max"),
}  # the second sees no neighbours, and one place of an image is enough


@dataclass(frozen=True)
class Features:
    """Maps of one place for a set of images, and what is to be learnt from them."""

    maps: Tensor  # (N, C, h, w)
    masks: Tensor  # (N, H, W) uint8

    def present(self, classes: int) -> Tensor:
        """(N, K): whether any pixel of an image is of a class."""
        return torch.stack([(self.masks == k).flatten(1).any(1) for k in range(classes)], 1)


@torch.no_grad()
def collect(
    model: nn.Module,
    places: Sequence[str],
    batches: Iterable[tuple[Tensor, np.ndarray]],
    mirrored: bool = False,
    progress: bool = False,
) -> list[Features]:
    """The features of several layers from the same passes. batches: (images (B, 3, H, W) as the network takes them, masks (B, H, W)).
    mirrored: those of the mirror images, too. Raises InputError for no images, or images of several sizes."""
    maps, masks = [[] for _ in places], []
    with evaluating(model):
        for images, labels in tqdm(
            batches, desc="features", file=sys.stderr, disable=not progress or None
        ):
            labels = torch.as_tensor(np.asarray(labels))
            for flip in (False, True)[: 1 + mirrored]:
                if masks and masks[0].shape[1:] != labels.shape[1:]:
                    raise InputError(
                        "images of several sizes: {1}x{0} and {3}x{2}".format(
                            *masks[0].shape[1:], *labels.shape[1:]
                        )
                    )
                masks.append(labels.flip(2) if flip else labels)
                for found, own in zip(
                    maps, feature_maps(model, places, images.flip(3) if flip else images)
                ):
                    found.append(own.float().cpu())
    if not masks:
        raise InputError("no images")
    return [Features(torch.cat(found), torch.cat(masks)) for found in maps]


class _Standard(nn.Module):
    """Each channel less its mean, over its deviation, both of the features trained on. A head could do that by itself; it makes
    training as easy at one place as at another."""

    def __init__(self, maps: Tensor):
        super().__init__()
        deviation, mean = torch.std_mean(maps, (0, 2, 3), keepdim=True)
        self.register_buffer("mean", mean)
        self.register_buffer("scale", 1 / deviation.clamp(min=1e-6))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) * self.scale


class _Pool(nn.Module):
    def __init__(self, how: str):
        super().__init__()
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3)) if self.how == "mean" else x.amax((2, 3))


def segmentation_head(
    features: Features, classes: int, head: Head = HEADS["conv"], seed: int = 0
) -> nn.Module:
    """Train a convolution to the classes -> module, (B, C, h, w) -> logits (B, K, h, w). The loss is the cross-entropy at every fourth
    pixel of every fourth row, where the networks give their own logits; void counts nowhere."""
    labels = features.masks[:, 2::4, 2::4].long()

    def loss(net, pick):
        logits = F.interpolate(
            net(features.maps[pick]), labels.shape[1:], mode="bilinear", align_corners=False
        )
        wanted = labels[pick]
        return F.cross_entropy(logits, wanted, ignore_index=VOID, reduction="sum") / (
            wanted != VOID
        ).sum().clamp(min=1)

    def make():
        return nn.Sequential(
            _Standard(features.maps),
            nn.Conv2d(features.maps.shape[1], classes, head.kernel, padding=head.kernel // 2),
        )

    return _trained(make, loss, len(labels), head, seed)


def classification_head(
    features: Features, classes: int, head: Head = HEADS["conv"], seed: int = 0
) -> nn.Module:
    """Train a linear map of the pooled features -> module, (B, C, h, w) -> logits (B, K) of each class being there. The loss is the
    binary cross-entropy, over all classes."""
    wanted = features.present(classes).float()

    def loss(net, pick):
        return F.binary_cross_entropy_with_logits(net(features.maps[pick]), wanted[pick])

    def make():
        return nn.Sequential(
            _Standard(features.maps), _Pool(head.pool), nn.Linear(features.maps.shape[1], classes)
        )

    return _trained(make, loss, len(wanted), head, seed)


def _trained(make, loss, images: int, head: Head, seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(seed)
        net = make()
        optimiser = torch.optim.AdamW(net.parameters(), lr=head.rate, weight_decay=head.decay)
        steps = head.epochs * -(-images // head.batch)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
        for _ in range(head.epochs):
            for pick in torch.randperm(images).split(head.batch):
                optimiser.zero_grad()
                loss(net, pick).backward()
                optimiser.step()
                schedule.step()
    return net.eval()


@torch.no_grad()
def segment(net: nn.Module, features: Features, classes: int) -> Tensor:
    """Confusion matrices (N, K, K) of a segmentation head, its logits resized to the labels."""

    def predicted(one, size):
        return F.interpolate(net(one[None]), size, mode="bilinear", align_corners=False).argmax(1)[
            0
        ]

    return torch.stack(
        [
            metrics.confusion_matrix(predicted(one, mask.shape), mask, classes)
            for one, mask in zip(features.maps, features.masks)
        ]
    )


@torch.no_grad()
def multilabel(
    net: nn.Module,
    features: Features,
    classes: Sequence[str],
    background: str | None = None,
    seen: Features | None = None,
) -> dict:
    """A classification head's scores -> {"accuracy": share of right answers whether a class is there, over images and classes,
    "accuracy_by_image": (N,) the same of each image, "majority": the accuracy of answering what holds for most images of `seen`,
    "average_precision": {class: value, None where it is in no image or in all}}. Of the `background` class nothing counts."""
    scores, truth = net(features.maps), features.present(len(classes))
    counts = [k for k, name in enumerate(classes) if name != background]
    right = ((scores > 0) == truth)[:, counts].double()
    usual = (seen or features).present(len(classes)).double().mean(0) > 0.5
    precision = {classes[k]: average_precision(scores[:, k], truth[:, k]) for k in counts}
    return {
        "accuracy": right.mean().item(),
        "accuracy_by_image": right.mean(1).tolist(),
        "majority": (usual == truth)[:, counts].double().mean().item(),
        "average_precision": {
            name: value if 0 < truth[:, classes.index(name)].sum() < len(truth) else None
            for name, value in precision.items()
        },
    }


def average_precision(scores: Tensor, truth: Tensor) -> float:
    """Area under precision over recall, in steps: sum over thresholds of (rise in recall) x precision; nan where nothing is true.
    Equal scores share one threshold."""
    order = scores.argsort(descending=True)
    scores, hits = scores[order], truth[order].double().cumsum(0)
    last = torch.cat(
        [scores[1:] != scores[:-1], torch.ones(1, dtype=torch.bool)]
    )  # of its threshold
    found, named = hits[last], torch.arange(1, len(hits) + 1)[last]
    rise = torch.diff(found, prepend=found.new_zeros(1))
    return ((rise * found / named).sum() / hits[-1]).item()
