"""Frames with the predictions of several networks, as the paper's Figures 2 and 4 to 7."""

from collections.abc import Mapping

import numpy as np
from tqdm import tqdm

from rflw import prediction
from rflw.data.readers import spread
from rflw.errors import InputError
from rflw.nn.refinenet import RefineNet

RULES = ("worst", "spread")


def pictures(
    models: Mapping[str, RefineNet],
    dataset,
    rule: str = "worst",
    number: int = 5,
    progress: bool = False,
) -> tuple[dict, list[tuple]]:
    """Choose frames by how well the first network does on them.

    Args:
        rule: Frames are ordered by the share of pixels that the first network gets right. "worst"
            takes the first of them; "spread" the worst, the best, and equal steps between.
        number: How many frames.

    Returns:
        Metrics: {"rule", "images", "frames": {id: {network: share of right pixels}},
        "agreement": {network: shares of all labelled pixels that "both" the first network and
        this one get right, only the "first", only the "second", "neither"}}.
        And for each frame a row (image, truth, prediction of each network).

    Raises:
        InputError: For an unknown rule, a number below one, or a data set without labels.
    """
    if rule not in RULES:
        raise InputError(f"unknown rule {rule!r}; choose from: {', '.join(RULES)}")
    if number < 1:
        raise InputError(f"{number} frames: at least one is needed")
    first, *others = models
    classes, shares = len(dataset.labels.classes), {}
    counts = {name: np.zeros(4, int) for name in others}
    for i in tqdm(range(len(dataset)), "frames", disable=not progress or None):
        image, mask = dataset[i]
        labelled = mask < classes
        if not labelled.any():
            continue
        right = {
            name: (prediction.predict(model, image) == mask)[labelled]
            for name, model in models.items()
        }
        shares[i] = {name: float(pixels.mean()) for name, pixels in right.items()}
        for name in others:
            counts[name] += np.bincount(2 * ~right[first] + ~right[name], minlength=4)
    order = sorted(shares, key=lambda i: shares[i][first])
    if not order:
        raise InputError(f"{dataset.name}/{dataset.split}: all pixels are void")
    chosen = order[:number] if rule == "worst" else [order[k] for k in spread(number, len(order))]
    rows = [
        (*dataset[i], *(prediction.predict(model, dataset[i][0], 0) for model in models.values()))
        for i in chosen
    ]
    agreement = {
        name: dict(zip(("both", "first", "second", "neither"), (pixels / pixels.sum()).tolist()))
        for name, pixels in counts.items()
    }
    return {
        "rule": rule,
        "images": len(dataset),
        "frames": {dataset.ids[i]: shares[i] for i in chosen},
        "agreement": agreement,
    }, rows
