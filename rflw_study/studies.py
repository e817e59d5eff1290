"""What the blocks do: the paper's sections 3.3, 5.1, 5.2 and 8 on a trained network. Each function measures one thing on a data set
and returns the `metrics` of a record; what it takes to draw the result comes beside it."""

from dataclasses import asdict
import math
import sys

import numpy as np
from PIL import Image
import torch
from torch import Tensor
import torch.nn.functional as F
from torch.utils.data import Subset
from tqdm import tqdm

from rflw import evaluation, prediction
from rflw.data.readers import spread
from rflw.errors import InputError
from rflw.nn.blocks import CRP, RCU, BottleneckRCU
from rflw.nn.refinenet import MIN_SIZE, RefineNet, build
from rflw_study import probes, receptive_field, saturation
from rflw_study.layers import evaluating, find, stacked
from rflw_study.probes import HEADS
from rflw_study.receptive_field import PLACES
from rflw_study.saturation import Term
from rflw_study.statistics import Interval, mean_interval

BACKGROUND = ("background", "ground")  # "multi-label accuracy (without background)", Table 4
CUTS = (0.05, 0.1, 0.2, 0.5)  # sizes of fields at several thresholds, since none is given


def title(model: RefineNet) -> str:
    """The run that a trained network comes from, or its name where its card names none."""
    return (
        f"{model.card['recipe']}-s{model.card['seed']}"
        if {"recipe", "seed"} <= model.card.keys()
        else model.name
    )


def tensors(
    model: RefineNet,
    dataset,
    indices: list[int],
    size: tuple[int, int] | None = None,
    tile: int = 1,
) -> Tensor:
    """Images of a data set as the network takes them, (N, 3, H, W), resized to `size`. tile: so many images side by side, each way,
    make one: where fields are larger than an image.

    Raises InputError for images of several sizes, where no size is given.
    """
    if size and min(size) < MIN_SIZE:
        raise InputError(
            f"size {size[0]}x{size[1]}: the networks take {MIN_SIZE}x{MIN_SIZE} and up"
        )
    device, images = next(model.parameters()).device, []
    for i in indices:
        image = prediction.normalise(dataset[i][0], model, device)
        images.append(
            image if size is None else F.interpolate(image, size, mode="bilinear", antialias=True)
        )
    images = stacked(images)
    if len(images) < tile**2:
        raise InputError(f"{tile}x{tile} images side by side: there are {len(images)}")
    rows = [
        torch.cat(list(row), 2) for row in images[: len(images) // tile**2 * tile**2].split(tile)
    ]
    return torch.stack([torch.cat(rows[k : k + tile], 1) for k in range(0, len(rows), tile)])


def told(interval: Interval) -> dict:
    """An interval for a record: {"mean", "low", "high", "n"}, None for what is not known."""
    return {
        k: None if isinstance(v, float) and not math.isfinite(v) else v
        for k, v in asdict(interval).items()
    }


def known(values) -> list[float]:
    """Those that are numbers."""
    return [value for value in torch.as_tensor(values).tolist() if not math.isnan(value)]


# ---------------------------------------------------------------- receptive fields


def erf(
    model: RefineNet,
    dataset,
    method: str = "gradient",
    layers: dict[str, str] = PLACES,
    images: int = 50,
    size: tuple[int, int] | None = None,
    tile: int = 1,
    units: int = 16,
    top: int = 10,
    patch: int = 11,
    stride: int = 3,
    cut: float | None = None,
    seed: int = 0,
    progress: bool = False,
) -> tuple[dict, dict]:
    """Receptive fields of layers by one method: "gradient", "occlusion" or "activation" -> (metrics, {place: Fields}).

    units: how many of a layer, evenly spread over those that activate at all, get a gradient of their own; the other methods measure
    all in the same passes.
    metrics: {"method", "size": of the images, "images", "layers": {place: {"layer", "theoretical": [rows, columns] without borders,
    None where unlimited, "within": the same in such an image, "dead": how many units never activate, "side": interval over the
    others, "side_by_image": over images, "cuts": {cut: mean over units}, "units": which were measured, "sides": of each}}}; in
    pixels. Where all units are dead, only the first four are there, and no Fields.
    """
    if method not in ("gradient", "occlusion", "activation"):
        raise InputError(f"unknown method {method!r}: gradient, occlusion or activation")
    if cut is not None:
        receptive_field.size_of(
            torch.ones(1, 1), cut
        )  # which refuses what is no share, before anything is measured
    if units < 1 or tile < 1:
        raise InputError(f"{units} units on images of {tile}x{tile} tiles: one at least")
    x = tensors(model, dataset, spread(images * tile**2, len(dataset)), size, tile)
    found, measured, options = (
        {},
        {},
        {"progress": progress} | ({} if cut is None else {"cut": cut}),
    )
    with evaluating(model):
        peaks = receptive_field.strongest(model, list(layers.values()), x, progress=progress)
    alive = {place: (peak.values.amax(0) > 0).tolist() for place, peak in zip(layers, peaks)}
    living = {place: layer for place, layer in layers.items() if any(alive[place])}
    if method == "occlusion" and living:  # of all layers from the same passes
        fields = receptive_field.occlusions(
            model, list(living.values()), x, None, top, patch, stride, seed=seed, **options
        )
        measured = dict(zip(living, fields))
    for place, layer in living.items():
        if method == "gradient":
            able = [unit for unit, active in enumerate(alive[place]) if active]
            measured[place] = receptive_field.gradient(
                model, layer, x, [able[i] for i in spread(units, len(able))], **options
            )
        elif method == "activation":
            measured[place] = receptive_field.activation(model, layer, x, None, top, **options)
    for place, layer in layers.items():
        endless = receptive_field.theoretical(model, layer)
        found[place] = {
            "layer": layer,
            "theoretical": [None if math.isinf(n) else n for n in endless],
            "within": list(receptive_field.theoretical(model, layer, tuple(x.shape[-2:]))),
            "dead": alive[place].count(False),
        }
        if place in measured:
            fields = measured[place]
            sides = [
                (unit, round(side, 1))
                for unit, side in zip(fields.units, fields.sizes.tolist())
                if not math.isnan(side)
            ]
            maps = fields.maps.nan_to_num()
            found[place] |= {
                "side": told(mean_interval(known(fields.sizes))),
                "side_by_image": told(mean_interval(known(fields.by_image))),
                "cuts": {
                    f"{c:g}": mean_interval(
                        known(receptive_field.size_of(maps, c, fields.cell))
                    ).mean
                    for c in CUTS
                },
                "units": [unit for unit, _ in sides],
                "sides": [side for _, side in sides],
            }
    return {
        "method": method,
        "size": list(x.shape[-2:]),
        "images": len(x),
        "layers": found,
    }, measured


def tops(
    model: RefineNet,
    dataset,
    layer: str,
    unit: int,
    images: int = 50,
    size: tuple[int, int] | None = None,
    top: int = 4,
) -> list[tuple[np.ndarray, np.ndarray]]:
    """The images that activate a unit most, with how much, relative to the strongest: [((H, W, 3) uint8, (H, W))]; none for a unit
    that never activates."""
    chosen = spread(images, len(dataset))
    try:
        best, maps = receptive_field.top_images(
            model, layer, tensors(model, dataset, chosen, size), unit, top
        )
    except InputError:
        return []
    pictures = [dataset[chosen[i]][0] for i in best]
    if size is None:
        return list(zip(pictures, maps.numpy()))
    return [
        (np.array(Image.fromarray(picture).resize(size[::-1])), map)
        for picture, map in zip(pictures, maps.numpy())
    ]


def shown(
    model: RefineNet,
    dataset,
    result: dict,
    measured: dict,
    images: int = 50,
    size: tuple[int, int] | None = None,
    top: int = 4,
) -> list[tuple]:
    """Rows for `figures.field_grid` from what `erf` gives. Of a layer within the network: its mean field, and the images of the unit
    whose size is the median. Of the last one: fields and images of the three classes that have the fewest pixels, but some."""
    rows = []
    for place, fields in measured.items():
        layer, sides = result["layers"][place]["layer"], fields.sizes
        if layer == "decoder.classifier":
            pixels = sum(
                np.bincount(dataset[i][1].ravel(), minlength=256)
                for i in spread(images, len(dataset))
            )[: model.num_classes]
            rarest = [
                fields.units.index(k) for k in np.argsort(pixels) if pixels[k] and k in fields.units
            ][:3]
            picks = [
                (
                    fields.units[i],
                    dataset.labels.classes[fields.units[i]],
                    fields.maps[i],
                    sides[i].item(),
                )
                for i in rarest
            ]
        else:
            living = [k for k in sides.argsort().tolist() if sides[k] > 0]
            unit = fields.units[living[len(living) // 2]]
            picks = [
                (
                    unit,
                    f"{place}\nunit {unit}",
                    fields.maps.nanmean(0),
                    result["layers"][place]["side"]["mean"],
                )
            ]
        rows += [
            (
                words,
                field.numpy(),
                side,
                fields.cell,
                tops(model, dataset, layer, unit, images, size, top),
            )
            for unit, words, field, side in picks
        ]
    return rows


# ---------------------------------------------------------------- heads


def probe_places(model: RefineNet) -> dict[str, str]:
    """Where Table 4 puts its heads, in the block of the lowest resolution; a network without RCUs has nothing between the first two."""
    rcu, crp = "decoder.stages.0.rcu_in", "decoder.stages.0.crp"
    places = (
        {"before RCU": f"{rcu}:input", "after RCU": rcu}
        if len(find(model, rcu)[0])
        else {"before CRP": f"{crp}:input"}
    )
    return places | ({"after CRP": crp} if isinstance(find(model, crp)[0], CRP) else {})


def batches(model: RefineNet, dataset, indices, batch: int = 8):
    """(images as the network takes them, masks), a few at a time."""
    indices = list(indices)
    for start in range(0, len(indices), batch):
        items = [dataset[i] for i in indices[start : start + batch]]
        if len({mask.shape for _, mask in items}) > 1:
            raise InputError(
                f"{dataset.name}: images of several sizes, which heads are not trained on"
            )
        x = torch.cat(
            [
                prediction.normalise(image, model, next(model.parameters()).device)
                for image, _ in items
            ]
        )
        yield x, np.stack([mask for _, mask in items])


def probe(
    model: RefineNet,
    train,
    val,
    images: int | None = None,
    heads=("conv", "linear"),
    seeds: int = 3,
    progress: bool = False,
) -> dict:
    """Train heads at the places of Table 4 on a frozen network, and measure them on other images.

    images: how many to train on, evenly spread; all for None. A class that is one of BACKGROUND is left out of the multi-label scores.
    -> {"train_images", "images", "background", "seeds", "places": {place: {"layer", "heads": {head: {"miou": of each seed,
    "miou_interval": 95 % over images, for the first seed, "iou": {class: mean over seeds}, "accuracy": of each seed,
    "accuracy_interval", "majority": accuracy of the most frequent answers, "average_precision": {class: mean over seeds}}}}}}
    """
    classes, places = val.labels.classes, probe_places(model)
    background = next((name for name in classes if name in BACKGROUND), None)
    unknown = next((head for head in heads if head not in HEADS), None)
    if unknown or seeds < 1:
        raise InputError(
            f"unknown head {unknown!r}: {' or '.join(HEADS)}"
            if unknown
            else f"{seeds} seeds: one at least"
        )
    chosen = range(len(train)) if images is None else spread(images, len(train))
    learnt = probes.collect(
        model,
        list(places.values()),
        batches(model, train, chosen),
        mirrored=True,
        progress=progress,
    )
    tested = probes.collect(
        model, list(places.values()), batches(model, val, range(len(val))), progress=progress
    )
    found, bar = (
        {},
        tqdm(
            total=len(places) * len(heads) * seeds,
            desc="heads",
            file=sys.stderr,
            disable=not progress or None,
        ),
    )
    for (place, layer), seen, unseen in zip(places.items(), learnt, tested):
        found[place] = {"layer": layer, "heads": {}}
        for name in heads:
            matrices, labels = [], []
            for seed in range(seeds):
                net = probes.segmentation_head(seen, len(classes), HEADS[name], seed)
                matrices.append(probes.segment(net, unseen, len(classes)))
                net = probes.classification_head(seen, len(classes), HEADS[name], seed)
                labels.append(probes.multilabel(net, unseen, classes, background, seen))
                bar.update()
            scores = [evaluation.summary(matrix, classes) for matrix in matrices]
            low_high = mean_interval(labels[0]["accuracy_by_image"])
            found[place]["heads"][name] = {
                "miou": [score["miou"] for score in scores],
                "miou_interval": scores[0]["miou_interval"],
                "iou": {k: _mean([score["iou"][k] for score in scores]) for k in classes},
                "accuracy": [label["accuracy"] for label in labels],
                "accuracy_interval": [low_high.low, low_high.high],
                "majority": labels[0]["majority"],
                "average_precision": {
                    k: _mean([label["average_precision"][k] for label in labels])
                    for k in labels[0]["average_precision"]
                },
            }
    bar.close()
    return {
        "train_images": len(chosen),
        "images": len(val),
        "background": background,
        "seeds": seeds,
        "places": found,
    }


def _mean(values: list[float | None]) -> float | None:
    return None if None in values else sum(values) / len(values)


# ---------------------------------------------------------------- saturation


def terms(model: RefineNet) -> list[Term]:
    """The branch of every RCU and the stages of every CRP."""
    found = []
    for name, module in model.named_modules():
        if isinstance(module, RCU | BottleneckRCU):
            found.append(
                Term(name, f"{name}.{'conv2' if isinstance(module, RCU) else 'expand'}", name)
            )
        elif isinstance(module, CRP):
            found += [
                Term(f"{name}.convs.{i}", f"{name}.convs.{i}", name)
                for i in range(len(module.convs))
            ]
    return found


def untrained(model: RefineNet, seed: int = 0) -> RefineNet:
    """The same network with its encoder, and the decoder as it was drawn."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh = build(model.name, model.num_classes)
    fresh.encoder.load_state_dict(model.encoder.state_dict())
    return fresh.eval().to(next(model.parameters()).device)


def saturate(model: RefineNet, dataset, images: int | None = None, progress: bool = False) -> dict:
    """Norms of RCU branches and CRP stages against what they are added to, trained and untrained, and mIoU without each, without all
    of a block, and without all of a kind.

    -> {"images", "miou", "terms": {name: {"ratio": interval over images of |t| / |x|, "untrained_ratio", "silent", "untrained_silent",
    "weight", "untrained_weight" (as `rflw_study.saturation.norms`), "miou_without"}}, "groups": {"all RCU", "all CRP", each block:
    {"terms": how many, "miou_without"}}}
    """
    found = terms(model)
    if not found:
        raise InputError(f"{model.name}: has neither RCUs nor CRP")
    part = Subset(dataset, range(len(dataset)) if images is None else spread(images, len(dataset)))
    classes = dataset.labels.classes

    def norms(net):
        own = saturation.norms(
            net,
            found,
            (
                prediction.normalise(part[i][0], net, next(net.parameters()).device)
                for i in range(len(part))
            ),
        )
        return {
            name: row | {"ratio": told(mean_interval(row["ratio"].tolist()))}
            for name, row in own.items()
        }

    trained, drawn = norms(model), norms(untrained(model))
    rows = {
        name: row | {f"untrained_{key}": value for key, value in drawn[name].items()}
        for name, row in trained.items()
    }
    groups = {
        f"all {kind}": [t for t in found if (".crp." in t.name) == (kind == "CRP")]
        for kind in ("RCU", "CRP")
    }
    for block in dict.fromkeys(_block(t) for t in found):
        groups[block] = [t for t in found if _block(t) == block]
    groups = {name: group for name, group in groups.items() if group}
    bar = tqdm(
        total=1 + len(found) + len(groups),
        desc="without",
        file=sys.stderr,
        disable=not progress or None,
    )

    def score(left_out=()):
        with saturation.without(model, left_out):
            value = evaluation.summary(evaluation.evaluate(model, part), classes)["miou"]
        bar.update()
        return value

    base = score()
    for term in found:
        rows[term.name]["miou_without"] = score([term])
    groups = {
        name: {"terms": len(group), "miou_without": score(group)} for name, group in groups.items()
    }
    bar.close()
    return {"images": len(part), "miou": base, "terms": rows, "groups": groups}


def _block(term: Term) -> str:
    """The block of a stage of the decoder that a term belongs to: "decoder.stages.0.rcu_in", "decoder.stages.0.crp", ..."""
    return ".".join(term.name.split(".")[:4])


# ---------------------------------------------------------------- pictures


def pictures(
    models: dict[str, RefineNet],
    dataset,
    rule: str = "worst",
    number: int = 5,
    progress: bool = False,
) -> tuple[dict, list[tuple]]:
    """Frames of a data set with what several networks make of them -> (metrics, [(image, truth, prediction of each)]).

    rule: frames are ordered by the share of pixels that the first network gets right; "worst" takes the first of them, "spread" the
    worst, the best, and what lies in equal steps between.
    metrics: {"rule", "images", "frames": {id: {network: share of right pixels}}, "agreement": {network: shares of all labelled pixels
    that "both" the first network and this one get right, only the "first", only the "second", "neither"}}
    """
    if rule not in ("worst", "spread"):
        raise InputError(f"unknown rule {rule!r}: worst or spread")
    if number < 1:
        raise InputError(f"{number} frames: one at least")
    classes, shares, counts = (
        len(dataset.labels.classes),
        {},
        {name: np.zeros(4, int) for name in list(models)[1:]},
    )
    for i in tqdm(
        range(len(dataset)), desc="frames", file=sys.stderr, disable=not progress or None
    ):
        image, mask = dataset[i]
        valid = mask < classes
        if not valid.any():
            continue
        right = [(prediction.predict(model, image) == mask)[valid] for model in models.values()]
        shares[i] = [own.mean() for own in right]
        for name, own in zip(counts, right[1:]):
            counts[name] += np.bincount(2 * ~right[0] + ~own, minlength=4)
    order = sorted(shares, key=lambda i: shares[i][0])
    if not order:
        raise InputError(
            f"{dataset.name}/{dataset.split}: all pixels are void, there is nothing to draw"
        )
    chosen = order[:number] if rule == "worst" else [order[k] for k in spread(number, len(order))]
    rows = [
        (*dataset[i], *(prediction.predict(model, dataset[i][0]) for model in models.values()))
        for i in chosen
    ]
    return {
        "rule": rule,
        "images": len(dataset),
        "frames": {dataset.ids[i]: dict(zip(models, map(float, shares[i]))) for i in chosen},
        "agreement": {
            name: dict(zip(("both", "first", "second", "neither"), (own / own.sum()).tolist()))
            for name, own in counts.items()
        },
    }, rows
