"""Frames with the predictions of several networks, as the paper's Figures 2 and 4 to 7."""

from collections.abc import Mapping

import numpy as np
from tqdm import tqdm

from rflw import prediction
from rflw.data.readers import spread
from rflw.errors import InputError, choose
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
        tuple: Metrics {"rule", "images", "frames": {id: {network: share of right pixels}},
        "agreement": {network: shares of all labelled pixels that "both" the first network and
        this one get right, only the "first", only the "second", "neither"}}.
        And for each frame a row (image, truth, prediction of each network).

    Raises:
        InputError: For an unknown rule, a number below one, or a data set without labels.
    """
    choose("rule", rule, RULES)
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
        predicted = {name: prediction.predict(model, image) for name, model in models.items()}
        right = {name: (found == mask)[labelled] for name, found in predicted.items()}
        shares[i] = {name: float(pixels.mean()) for name, pixels in right.items()}
        for name in others:
            counts[name] += np.bincount(2 * ~right[first] + ~right[name], minlength=4)
    order = sorted(shares, key=lambda i: shares[i][first])
    if not order:
        raise InputError(f"{dataset.name}/{dataset.split}: all pixels are void")
    chosen = order[:number] if rule == "worst" else [order[k] for k in spread(number, len(order))]
    see = lambda image: [prediction.predict(model, image, 0) for model in models.values()]
    rows = [(*dataset[i], *see(dataset[i][0])) for i in chosen]
    kinds = ("both", "first", "second", "neither")
    agreement = {n: dict(zip(kinds, (p / p.sum()).tolist())) for n, p in counts.items()}
    frames = {dataset.ids[i]: shares[i] for i in chosen}
    metrics = {"rule": rule, "images": len(dataset), "frames": frames, "agreement": agreement}
    return metrics, rows
