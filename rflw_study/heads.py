"""Heads on a frozen network: what its features at a place are good for (section 5.2, Table 4).

Features are computed once, for each image and its mirror image; then only heads are trained on
them. The paper does not describe its heads. Ours are the simplest: one convolution to the classes,
upsampled, and one linear map of the pooled features.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn
import torch.nn.functional as F
from tqdm import tqdm

from rflw import evaluation, metrics, prediction
from rflw.data.labels import VOID
from rflw.data.readers import spread
from rflw.errors import InputError
from rflw.nn.blocks import CRP
from rflw.nn.refinenet import RefineNet
from rflw.prediction import evaluating
from rflw_study.layers import feature_maps, find
from rflw_study.statistics import mean_interval

# Classes that the multi-label scores leave out, as Table 4: "accuracy (without background)"
BACKGROUND = ("background", "ground")


@dataclass(frozen=True)
class Head:
    """A head's form and training."""

    kernel: int = 3  # of the convolution to the classes, as in the networks' own classifier
    pool: type[nn.Module] = nn.AdaptiveAvgPool2d  # over the image, before the linear map
    epochs: int = 30
    batch: int = 32
    rate: float = 1e-2  # of AdamW, falling to zero by a cosine
    decay: float = 1e-4


# The second sees no neighbours, and a class in one place of an image is enough for it.
HEADS = {"conv": Head(), "linear": Head(kernel=1, pool=nn.AdaptiveMaxPool2d)}


@dataclass(frozen=True)
class Features:
    """Maps of one place for a set of images, and their labels."""

    maps: Tensor  # (N, C, h, w)
    masks: Tensor  # (N, H, W) uint8

    def present(self, classes: int) -> Tensor:
        """(N, K): whether any pixel of an image is of a class."""
        return torch.stack([(self.masks == k).flatten(1).any(1) for k in range(classes)], 1)


# ------------------------------------------------------------ features


def probe_places(model: RefineNet) -> dict[str, str]:
    """Where Table 4 puts its heads, in the block of the lowest resolution: {place: layer}."""
    rcu, crp = "decoder.stages.0.rcu_in", "decoder.stages.0.crp"
    if len(find(model, rcu)[0]):
        places = {"before RCU": f"{rcu}:input", "after RCU": rcu}
    else:
        places = {"before CRP": f"{crp}:input"}
    return places | ({"after CRP": crp} if isinstance(find(model, crp)[0], CRP) else {})


def batches(model: RefineNet, dataset, indices, batch: int = 8):
    """Images as the network takes them, (B, 3, H, W), with their masks (B, H, W)."""
    device = next(model.parameters()).device
    for chosen in torch.as_tensor(indices).split(batch):
        images, masks = zip(*(dataset[i] for i in chosen.tolist()))
        if len({mask.shape for mask in masks}) > 1:
            raise InputError(f"{dataset.name}: images of several sizes; heads need one")
        yield prediction.as_seen(np.stack(images), model, device), np.stack(masks)


@torch.no_grad()
def collect(
    model: nn.Module,
    places: Sequence[str],
    batches: Iterable[tuple[Tensor, np.ndarray]],
    mirrored: bool = False,
    progress: bool = False,
) -> list[Features]:
    """The features of several layers from the same passes.

    Args:
        places: Names of layers (`rflw_study.layers`).
        batches: Images (B, 3, H, W) as the network takes them, with masks (B, H, W).
        mirrored: Also the features of the mirror images, after those of each batch.

    Returns:
        Features of each layer.

    Raises:
        InputError: For no images, or images of several sizes.
    """
    maps, masks = [[] for _ in places], []
    with evaluating(model):
        for images, labels in tqdm(batches, "features", disable=not progress or None):
            labels = torch.as_tensor(labels)
            pairs = [(images, labels), (images.flip(3), labels.flip(2))]
            for x, mask in pairs[: 1 + mirrored]:
                masks.append(mask)
                for parts, part in zip(maps, feature_maps(model, places, x)):
                    parts.append(part.float().cpu())
    if len({mask.shape[1:] for mask in masks}) != 1:
        raise InputError("images of several sizes" if masks else "no images")
    return [Features(torch.cat(parts), torch.cat(masks)) for parts in maps]


def standardised(seen: Features, unseen: Features) -> tuple[Features, Features]:
    """Each channel minus its mean, divided by its deviation; both are of the training features.

    A head could learn this, too; with it, training is equally easy at all places.
    """
    deviation, mean = torch.std_mean(seen.maps, (0, 2, 3), keepdim=True)
    scale = 1 / deviation.clamp(min=1e-6)
    return tuple(replace(part, maps=(part.maps - mean) * scale) for part in (seen, unseen))


# ------------------------------------------------------------ training


def segmentation_head(
    features: Features, classes: int, head: Head = HEADS["conv"], seed: int = 0
) -> nn.Module:
    """Train a convolution to the classes.

    The loss is the cross-entropy at every fourth pixel of every fourth row, where the networks
    give their own logits; void counts nowhere.

    Returns:
        A module, features (B, C, h, w) -> logits (B, K, h, w).
    """
    labels = features.masks[:, 2::4, 2::4].long()

    def loss(net, pick):
        logits = _resized(net(features.maps[pick]), labels.shape[1:])
        total = F.cross_entropy(logits, labels[pick], ignore_index=VOID, reduction="sum")
        return total / (labels[pick] != VOID).sum().clamp(min=1)

    channels, padding = features.maps.shape[1], head.kernel // 2
    make = lambda: nn.Conv2d(channels, classes, head.kernel, padding=padding)
    return _trained(make, loss, len(labels), head, seed)


def classification_head(
    features: Features, classes: int, head: Head = HEADS["conv"], seed: int = 0
) -> nn.Module:
    """Train a linear map of the pooled features, by the binary cross-entropy over all classes.

    Returns:
        A module, features (B, C, h, w) -> logits (B, K) of each class being in the image.
    """
    present, channels = features.present(classes).float(), features.maps.shape[1]

    def loss(net, pick):
        return F.binary_cross_entropy_with_logits(net(features.maps[pick]), present[pick])

    make = lambda: nn.Sequential(head.pool(1), nn.Flatten(), nn.Linear(channels, classes))
    return _trained(make, loss, len(present), head, seed)


def _trained(make: Callable, loss: Callable, images: int, head: Head, seed: int) -> nn.Module:
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


def _resized(logits: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(logits, tuple(size), mode="bilinear", align_corners=False)


# ------------------------------------------------------------ scores


@torch.no_grad()
def segment(net: nn.Module, features: Features, classes: int) -> Tensor:
    """Confusion matrices (N, K, K) of a segmentation head, its logits resized to the labels."""
    matrices = []
    for maps, mask in zip(features.maps, features.masks):
        predicted = _resized(net(maps[None]), mask.shape).argmax(1)[0]
        matrices.append(metrics.confusion_matrix(predicted, mask, classes))
    return torch.stack(matrices)


@torch.no_grad()
def multilabel(
    net: nn.Module,
    features: Features,
    classes: Sequence[str],
    background: str | None = None,
    seen: Features | None = None,
) -> dict:
    """Scores of a classification head.

    Args:
        background: A class that does not count.
        seen: What the head was trained on, for "majority"; None: `features`.

    Returns:
        dict: {"accuracy": share of right answers whether a class is there, over images and classes,
        "accuracy_by_image": the same of each image, "majority": accuracy of the answer that is
        right for most images of `seen`, "average_precision": {class: value, None where the class
        is in no image or in all}}.
    """
    scores, truth = net(features.maps), features.present(len(classes))
    counted = {name: k for k, name in enumerate(classes) if name != background}
    columns = [*counted.values()]
    right = ((scores > 0) == truth)[:, columns].double()
    usual = (seen or features).present(len(classes)).double().mean(0) > 0.5
    return {
        "accuracy": right.mean().item(),
        "accuracy_by_image": right.mean(1).tolist(),
        "majority": (usual == truth)[:, columns].double().mean().item(),
        "average_precision": {
            name: average_precision(scores[:, k], truth[:, k])
            if truth[:, k].any() and not truth[:, k].all()
            else None
            for name, k in counted.items()
        },
    }


def average_precision(scores: Tensor, truth: Tensor) -> float:
    """Area under precision over recall: sum over thresholds of (rise in recall) x precision.

    Equal scores share one threshold; nan where nothing is true.
    """
    order = scores.argsort(descending=True)
    scores, hits = scores[order], truth[order].double().cumsum(0)
    last = torch.cat([scores[1:] != scores[:-1], torch.tensor([True])])  # of its threshold
    hits, positives = hits[last], torch.arange(1, len(hits) + 1)[last]
    rise = torch.diff(hits, prepend=hits.new_zeros(1))
    return ((rise * hits / positives).sum() / hits[-1]).item()


# ------------------------------------------------------------ the study


def probe(
    model: RefineNet,
    train,
    val,
    images: int | None = None,
    heads: Sequence[str] = ("conv", "linear"),
    seeds: int = 3,
    progress: bool = False,
) -> dict:
    """Train heads at the places of Table 4 on a frozen network, and measure them on other images.

    Args:
        images: How many to train on, evenly spread; None for all.
        heads: Names of HEADS.
        seeds: How many times each head is trained.

    Returns:
        dict: {"train_images", "images", "background", "seeds", "places": {place: {"layer",
        "heads": {head: see `_scores`}}}}.

    Raises:
        InputError: For unknown heads, no seeds, or images of several sizes.
    """
    unknown = [head for head in heads if head not in HEADS]
    if unknown:
        raise InputError(f"unknown head {unknown[0]!r}; choose from: {', '.join(HEADS)}")
    if seeds < 1:
        raise InputError(f"{seeds} seeds: at least one is needed")
    classes, places = val.labels.classes, probe_places(model)
    background = next((name for name in classes if name in BACKGROUND), None)
    chosen = range(len(train)) if images is None else spread(images, len(train))
    layers = list(places.values())
    learnt = collect(model, layers, batches(model, train, chosen), True, progress)
    tested = collect(model, layers, batches(model, val, range(len(val))), progress=progress)
    result = {place: {"layer": layer, "heads": {}} for place, layer in places.items()}
    bar = tqdm(total=len(places) * len(heads), desc="heads", disable=not progress or None)
    for row, seen, unseen in zip(result.values(), learnt, tested):
        seen, unseen = standardised(seen, unseen)
        for name in heads:
            row["heads"][name] = _scores(seen, unseen, classes, background, HEADS[name], seeds)
            bar.update()
    bar.close()
    counts = {"train_images": len(chosen), "images": len(val)}
    return counts | {"background": background, "seeds": seeds, "places": result}


def _scores(
    seen: Features, unseen: Features, classes, background: str | None, head: Head, seeds: int
) -> dict:
    """{"miou" and "accuracy": of each seed, "miou_interval" and "accuracy_interval": 95 % over
    images, for the first seed, "iou" and "average_precision": {class: mean over seeds},
    "majority": accuracy of the most frequent answers}."""
    matrices, labels = [], []
    for seed in range(seeds):
        net = segmentation_head(seen, len(classes), head, seed)
        matrices.append(segment(net, unseen, len(classes)))
        net = classification_head(seen, len(classes), head, seed)
        labels.append(multilabel(net, unseen, classes, background, seen))
    scores = [evaluation.summary(matrix, classes) for matrix in matrices]
    accuracy = mean_interval(labels[0]["accuracy_by_image"])
    return {
        "miou": [score["miou"] for score in scores],
        "miou_interval": scores[0]["miou_interval"],
        "iou": _means([score["iou"] for score in scores]),
        "accuracy": [label["accuracy"] for label in labels],
        "accuracy_interval": [accuracy.low, accuracy.high],
        "majority": labels[0]["majority"],
        "average_precision": _means([label["average_precision"] for label in labels]),
    }


def _means(rows: Sequence[dict]) -> dict:
    """{class: mean over seeds}, None where a class has no value."""
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    return {
        name: None if None in values else sum(values) / len(values)
        for name, values in columns.items()
    }
