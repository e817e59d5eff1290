"""Receptive fields of the units of layers: in theory, by gradient, by occlusion, by activation.

A unit is a channel of a map (B, C, H, W) of a layer (`rflw_study.layers`); at each position it
looks at another part of the image. Images are tensors as the network takes them, all of one size.
A field's size, or side, is the square root of its area, in pixels of the image.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
import math

import numpy as np
from PIL import Image
import torch
from torch import Tensor, nn
import torch.nn.functional as F
from tqdm import tqdm

from rflw import prediction
from rflw.data.readers import spread
from rflw.errors import InputError
from rflw.nn.refinenet import MIN_SIZE, RefineNet
from rflw.prediction import evaluating
from rflw_study.layers import feature_map, feature_maps
from rflw_study.reach import theoretical
from rflw_study.statistics import mean_interval

# Where the paper looks: Figure 3 (its "levels 4 and 3" are our stages 0 and 1), and Figure 8. Sums
# are taken before their ReLU, whose gradient vanishes where they are negative.
PLACES = {
    "before CRP": "decoder.stages.0.act:input",
    "after CRP": "decoder.stages.0.crp",
    "after the first sum": "decoder.stages.1.act:input",
    "last layer": "decoder.classifier",
}
METHODS = ("gradient", "occlusion", "activation")
# Share of its largest value at which a field ends. Gradient: Luo et al., two deviations of a
# Gaussian; the others: ours, since none is given.
GAUSS, CUT = 0.0455, 0.2
CUTS = (0.05, 0.1, 0.2, 0.5)  # sizes are recorded at several, since the paper names none


@dataclass(frozen=True)
class Fields:
    """The measured fields of units of a layer."""

    units: list[int]
    maps: Tensor  # (U, h, w) of each unit, its largest value 1; all nan where there is none
    cell: int  # pixels of the image that a step in the maps is
    sizes: Tensor  # (U,) of each unit, in pixels; nan for one without a field
    by_image: Tensor  # (N,) of each image, over units; nan for one that no unit was measured on


def size_of(maps: Tensor, cut: float, cell: int = 1) -> Tensor:
    """Square root of the area above `cut` times the largest value, (..., h, w) -> (...).

    nan where all values are zero.
    """
    peak = maps.amax((-2, -1), keepdim=True)
    area = (maps > cut * peak).sum((-2, -1)).cpu().double()  # not all devices have float64
    return torch.where(peak[..., 0, 0].cpu() > 0, area.sqrt() * cell, torch.nan)


# ------------------------------------------------------------ units


@dataclass(frozen=True)
class Strongest:
    """Where the units of a layer are strongest in each image."""

    values: Tensor  # (N, C)
    rows: Tensor  # (N, C)
    columns: Tensor  # (N, C)

    @property
    def alive(self) -> list[bool]:
        """Of each unit, whether it is above zero anywhere."""
        return (self.values.amax(0) > 0).tolist()

    def best(self, top: int) -> Tensor:
        """(C, K): the images that activate each unit most, strongest first; -1 for a dead unit."""
        images = self.values.topk(min(top, len(self.values)), dim=0).indices.T
        return torch.where(self.values.amax(0)[:, None] > 0, images, -1)


@torch.no_grad()
def strongest(
    model: nn.Module, layers: Sequence[str], images: Tensor, batch: int = 8, progress: bool = False
) -> list[Strongest]:
    """Of each layer, from the same passes."""
    parts = [[] for _ in layers]
    with evaluating(model):
        for x in tqdm(images.split(batch), "strongest", disable=not progress or None):
            for part, maps in zip(parts, feature_maps(model, layers, x)):
                values, places = maps.flatten(2).max(2)
                width = maps.shape[3]
                part.append((values, places // width, places % width))
    return [Strongest(*map(torch.cat, zip(*part))) for part in parts]


# ------------------------------------------------------------ methods


def gradient(
    model: nn.Module,
    layer: str,
    images: Tensor,
    units: Sequence[int],
    cut: float = GAUSS,
    batch: int = 10,
    progress: bool = False,
) -> Fields:
    """Fields by the gradient of a unit in the middle of the map with respect to the image.

    Absolute values are summed over colours and averaged over images, as Luo et al.,
    "Understanding the effective receptive field in deep convolutional neural networks" (2016).
    `by_image` is the size of an image's own field, summed over units.

    Args:
        units: Numbers of channels.
        cut: Share of its largest value at which a field ends.
    """
    total, by_image = 0, []
    with evaluating(model), torch.enable_grad():
        for part in tqdm(images.split(batch), "gradients", disable=not progress or None):
            part = part.clone().requires_grad_()
            maps = feature_map(model, layer, part)
            middle = maps[:, :, maps.shape[2] // 2, maps.shape[3] // 2].sum(0)  # (C,)
            gradients = [
                torch.autograd.grad(middle[unit], part, retain_graph=True)[0] for unit in units
            ]
            fields = torch.stack([x.abs().sum(1) for x in gradients])  # (U, B, H, W)
            total = fields.sum(1) + total
            by_image.append(size_of(fields.sum(0), cut))
    maps = total / total.amax((1, 2), keepdim=True)
    return Fields(list(units), maps, 1, size_of(total, cut), torch.cat(by_image))


class _Patches:
    """A patch of random pixels on a grid of places over images of one size."""

    def __init__(self, images: Tensor, side: int, stride: int):
        size = images.shape[-2:]
        if not 1 <= side <= min(size) or stride < 1:
            raise InputError(
                f"patch {side}, stride {stride}: at least 1 each is needed, and a patch within "
                f"{size[1]}x{size[0]}"
            )
        self.side, self.stride = side, stride
        self.low, self.high = images.amin((0, 2, 3)), images.amax((0, 2, 3))  # of each colour
        grid = [torch.arange(0, n - side + 1, stride) for n in size]
        self.size, self.shape = size, [len(axis) for axis in grid]
        self.corners = torch.cartesian_prod(*grid).tolist()

    def over(self, image: Tensor, seed: int, batch: int) -> Iterator[Tensor]:
        """An image (3, H, W) with the patch at every place, (B, 3, H, W) at a time."""
        low, high = (bound.view(3, 1, 1) for bound in (self.low, self.high))
        draws = torch.Generator().manual_seed(seed)
        noise = torch.rand(len(self.corners), 3, self.side, self.side, generator=draws)
        noise = noise.to(image) * (high - low) + low
        for begin in range(0, len(noise), batch):
            pixels = noise[begin : begin + batch]
            images = image.repeat(len(pixels), 1, 1, 1)
            for x, patch, (row, column) in zip(images, pixels, self.corners[begin:]):
                x[:, row : row + self.side, column : column + self.side] = patch
            yield images.contiguous(memory_format=torch.channels_last)

    def cell(self, place: Sequence[int], map_size: Sequence[int]) -> list[int]:
        """The grid's cell whose patch lies over the middle of a position of a map."""
        corners = [
            (at + 0.5) * n / m - self.side / 2 for at, n, m in zip(place, self.size, map_size)
        ]
        return [
            min(max(round(corner / self.stride), 0), n - 1)
            for corner, n in zip(corners, self.shape)
        ]


class _Centred:
    """Means of maps (h, w), each shifted so that a cell of its own is in the middle."""

    def __init__(self, units: int, shape: Sequence[int], device):
        self.shape = shape
        self.sum = torch.zeros(units, *(2 * n - 1 for n in shape), device=device)
        self.count = torch.zeros_like(self.sum)

    def add(self, unit: int, values: Tensor, middle: Sequence[int]) -> None:
        top, left = (n - 1 - at for n, at in zip(self.shape, middle))
        window = unit, slice(top, top + self.shape[0]), slice(left, left + self.shape[1])
        self.sum[window] += values
        self.count[window] += 1

    def mean(self) -> Tensor:
        """(U, 2h-1, 2w-1), zero where nothing was measured."""
        return torch.where(self.count > 0, self.sum / self.count, 0)


@torch.no_grad()
def occlusion(
    model: nn.Module,
    layers: Sequence[str],
    images: Tensor,
    top: int = 10,
    patch: int = 11,
    stride: int = 3,
    cut: float = CUT,
    batch: int = 16,
    progress: bool = False,
) -> list[Fields]:
    """Fields by occlusion, as Zhou et al., "Object detectors emerge in deep scene CNNs" (2015).

    A patch of random pixels slides over each of the `top` images that activate a unit most; how
    much it changes the activation where that is strongest gives a map of discrepancies; the maps,
    shifted so that this place is in the middle, are averaged. All units of all layers share the
    passes of an image. Random pixels are drawn evenly between the least and the largest value of
    each colour. `by_image` is the mean size, over the units that chose the image, of its own map.
    Zhou et al. give neither `top` nor `cut`, the share of the largest discrepancy at which a
    field ends.
    """
    patches = _Patches(images, patch, stride)
    peaks = strongest(model, layers, images, batch, progress)
    best = [peak.best(top) for peak in peaks]  # (C, K) of each layer
    means = [_Centred(len(chosen), patches.shape, images.device) for chosen in best]
    by_image = [torch.full((len(images),), torch.nan, dtype=torch.double) for _ in layers]
    for i in tqdm(range(len(images)), "occluded images", disable=not progress or None):
        units = [torch.nonzero((chosen == i).any(1)).flatten() for chosen in best]
        if not any(len(own) for own in units):
            continue
        places = [(own, peak.rows[i, own], peak.columns[i, own]) for own, peak in zip(units, peaks)]
        occluded = patches.over(images[i], i, batch)
        changes = _changes(model, layers, images[i : i + 1], occluded, places)
        for mean, sides, place, (maps, map_size) in zip(means, by_image, places, changes):
            maps = maps.T.reshape(-1, *patches.shape)
            for own, unit, *at in zip(maps, *(x.tolist() for x in place)):
                mean.add(unit, own, patches.cell(at, map_size))
            sides[i] = size_of(maps, cut, stride).nanmean()
    results = []
    for mean, sides in zip(means, by_image):
        maps = mean.mean()
        sizes = size_of(maps, cut, stride)
        maps = maps / maps.amax((1, 2), keepdim=True)
        results.append(Fields(list(range(len(maps))), maps, stride, sizes, sides))
    return results


def _changes(model, layers, image: Tensor, occluded: Iterable[Tensor], places) -> list[tuple]:
    """How much images (B, 3, H, W) change units against an undisturbed one.

    Args:
        places: Of each layer, channels, rows and columns of its units, (U,) each.

    Returns:
        Of each layer, changes (P, U) and the rows and columns of its map.
    """
    with evaluating(model):
        clean = feature_maps(model, layers, image)
        values = [[] for _ in layers]
        for x in occluded:
            for value, maps, place in zip(values, feature_maps(model, layers, x), places):
                value.append(maps[:, *place])
    return [
        ((torch.cat(value) - maps[0, *place]).abs(), maps.shape[-2:])
        for value, maps, place in zip(values, clean, places)
    ]


@torch.no_grad()
def activation(
    model: nn.Module,
    layer: str,
    images: Tensor,
    top: int = 10,
    cut: float = CUT,
    batch: int = 8,
    progress: bool = False,
) -> Fields:
    """Fields by top activations, as the paper's author pointed to when asked.

    The maps of the images that activate a unit most, divided by the largest value among them,
    upsampled to the image and cut at a fraction. That is how much of an image excites a unit,
    which need not be how much of it the unit sees. `sizes` are means over the images of a unit,
    `maps` those of its strongest image, `by_image` means over the units that chose the image.

    Args:
        top: How many images a unit is measured on.
        cut: Share of the largest activation at which a field ends.
    """
    (peaks,) = strongest(model, [layer], images, batch, progress)
    peak, best = peaks.values.amax(0), peaks.best(top)
    sizes = torch.full((len(best), len(images)), torch.nan, dtype=torch.double)
    maps = torch.full((len(best), *images.shape[-2:]), torch.nan)
    with evaluating(model):
        for i in tqdm(range(len(images)), "activations", disable=not progress or None):
            units = torch.nonzero((best == i).any(1)).flatten().tolist()
            activations = feature_map(model, layer, images[i : i + 1])[0]
            for unit in units:
                relative = _upsampled(activations[None, unit] / peak[unit], maps.shape[-2:])[0]
                sizes[unit, i] = (relative > cut).sum().cpu().double().sqrt()
                if best[unit, 0] == i:
                    maps[unit] = relative
    units = list(range(len(best)))
    return Fields(units, maps, 1, sizes.nanmean(1), sizes.nanmean(0))


def _upsampled(maps: Tensor, size: Sequence[int]) -> Tensor:
    """(N, h, w) -> (N, *size), bilinearly."""
    return F.interpolate(maps[:, None], tuple(size), mode="bilinear", align_corners=False)[:, 0]


# ------------------------------------------------------------ the study


def tensors(
    model: RefineNet,
    dataset,
    indices: Sequence[int],
    size: tuple[int, int] | None = None,
    tile: int = 1,
) -> Tensor:
    """Images of a data set as the network takes them, (N, 3, H, W).

    Args:
        size: Rows and columns that images are resized to.
        tile: So many images side by side, each way, make one: for fields larger than an image.

    Raises:
        InputError: For a size that networks do not take, images of several sizes where none is
            given, or fewer images than a tile takes.
    """
    if size and min(size) < MIN_SIZE:
        raise InputError(f"size {size[0]}x{size[1]}: at least {MIN_SIZE}x{MIN_SIZE} is needed")
    device, images = next(model.parameters()).device, []
    for i in indices:
        image = prediction.normalise(dataset[i][0], model, device)
        if size:
            image = F.interpolate(image, size, mode="bilinear", antialias=True)
        images.append(image)
    sizes = dict.fromkeys(f"{image.shape[3]}x{image.shape[2]}" for image in images)
    if len(sizes) != 1:
        raise InputError(f"images of several sizes: {', '.join(sizes)}" if sizes else "no images")
    images = torch.cat(images).contiguous(memory_format=torch.channels_last)
    if len(images) < tile**2:
        raise InputError(f"{tile}x{tile} images side by side: there are {len(images)}")
    tiles = images[: len(images) // tile**2 * tile**2].unflatten(0, (-1, tile, tile))
    return tiles.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3).contiguous()


def erf(
    model: RefineNet,
    dataset,
    method: str = "gradient",
    layers: Mapping[str, str] = PLACES,
    images: int = 50,
    size: tuple[int, int] | None = None,
    tile: int = 1,
    progress: bool = False,
    **options,
) -> tuple[dict, dict[str, Fields]]:
    """Receptive fields of layers by one method.

    Args:
        method: One of METHODS.
        layers: Names of layers (`rflw_study.layers`) by the place that they are.
        images: How many images of the data set, evenly spread; times `tile` squared.
        size: Rows and columns that images are resized to.
        tile: Images side by side, each way.
        options: Settings of `measure`.

    Returns:
        tuple: Metrics, and the fields of each place. Metrics are {"method", "size", "images",
        "layers": {place: {"layer", "theoretical": [rows, columns] without borders, None where
        unlimited, "within": the same in such an image, "dead": how many units never activate, and,
        where there is a living unit, `_sides`}}}, in pixels.

    Raises:
        InputError: For unknown methods or layers, and settings out of range.
    """
    if tile < 1:
        raise InputError(f"{tile}x{tile} tiles: at least one is needed")
    x = tensors(model, dataset, spread(images * tile**2, len(dataset)), size, tile)
    peaks = strongest(model, list(layers.values()), x, progress=progress)
    alive = {place: peak.alive for place, peak in zip(layers, peaks)}
    fields = measure(model, method, layers, x, alive, progress=progress, **options)
    rows = {}
    for place, layer in layers.items():
        rows[place] = {
            "layer": layer,
            "theoretical": [None if math.isinf(n) else n for n in theoretical(model, layer)],
            "within": list(theoretical(model, layer, tuple(x.shape[-2:]))),
            "dead": alive[place].count(False),
        }
        rows[place] |= _sides(fields[place]) if place in fields else {}
    size = list(x.shape[-2:])
    return {"method": method, "size": size, "images": len(x), "layers": rows}, fields


def measure(
    model: RefineNet,
    method: str,
    layers: Mapping[str, str],
    images: Tensor,
    alive: Mapping[str, list[bool]],
    units: int = 16,
    top: int = 10,
    patch: int = 11,
    stride: int = 3,
    cut: float | None = None,
    progress: bool = False,
) -> dict[str, Fields]:
    """The fields of each place that has some, by one method.

    Args:
        alive: Of each unit of a place, whether it ever activates.
        units: How many units of a layer get a gradient of their own, evenly spread over those
            that are alive; the other methods measure all.
        top: See the methods, also for patch, stride and cut; cut None: the method's own.
    """
    if method not in METHODS:
        raise InputError(f"unknown method {method!r}; choose from: {', '.join(METHODS)}")
    if cut is not None and not 0 <= cut < 1:
        raise InputError(f"cut {cut}: at least 0 and below 1 is needed")
    if units < 1 or top < 1:
        raise InputError(f"{units} units, {top} top images: at least one is needed")
    options = {"progress": progress} | ({} if cut is None else {"cut": cut})
    living = {place: layer for place, layer in layers.items() if any(alive[place])}
    if method == "occlusion":  # of all layers from the same passes
        own = occlusion(model, list(living.values()), images, top, patch, stride, **options)
        fields = dict(zip(living, own))
    elif method == "activation":
        fields = {
            place: activation(model, layer, images, top, **options)
            for place, layer in living.items()
        }
    else:
        fields = {}
        for place, layer in living.items():
            able = [unit for unit, active in enumerate(alive[place]) if active]
            chosen = [able[i] for i in spread(units, len(able))]
            fields[place] = gradient(model, layer, images, chosen, **options)
    return {place: own for place, own in fields.items() if not own.sizes.isnan().all()}


def _sides(fields: Fields) -> dict:
    """The sizes of a layer's fields, for a record."""

    def known(values: Tensor) -> list[float]:
        return values[~values.isnan()].tolist()

    maps = fields.maps.nan_to_num()
    sides = zip(fields.units, fields.sizes.tolist())
    sides = {unit: round(side, 1) for unit, side in sides if not math.isnan(side)}
    return {
        "side": mean_interval(known(fields.sizes)).row(),
        "side_by_image": mean_interval(known(fields.by_image)).row(),
        "cuts": {
            f"{cut:g}": mean_interval(known(size_of(maps, cut, fields.cell))).mean for cut in CUTS
        },
        "units": list(sides),
        "sides": list(sides.values()),
    }


# ------------------------------------------------------------ pictures of fields


@torch.no_grad()
def top_images(
    model: RefineNet,
    dataset,
    layer: str,
    unit: int,
    images: int = 50,
    size: tuple[int, int] | None = None,
    top: int = 4,
) -> list[tuple[np.ndarray, np.ndarray]]:
    """The images that activate a unit most, with how much, relative to the strongest.

    Returns:
        Pairs of (H, W, 3) uint8 and (H, W), strongest first; none for a unit that never activates.
    """
    chosen = spread(images, len(dataset))
    x = tensors(model, dataset, chosen, size)
    with evaluating(model):
        maps = torch.cat([feature_map(model, layer, part)[:, unit] for part in x.split(8)])
    peaks = maps.flatten(1).amax(1)
    if not peaks.max() > 0:
        return []
    best = peaks.argsort(descending=True)[:top]
    relative = _upsampled(maps[best] / peaks.max(), x.shape[-2:]).cpu().numpy()
    pictures = [Image.fromarray(dataset[chosen[i]][0]) for i in best.tolist()]
    pictures = [picture.resize(size[::-1]) if size else picture for picture in pictures]
    return list(zip(map(np.array, pictures), relative))


def rows_of_figure(
    model: RefineNet,
    dataset,
    result: dict,
    fields: Mapping[str, Fields],
    images: int = 50,
    size: tuple[int, int] | None = None,
    top: int = 4,
) -> list[tuple]:
    """Rows for `figures.field_grid` from what `erf` returns.

    Of a layer within the network: its mean field, and the images of the unit of median size. Of
    the last one: fields and images of the three classes that have the fewest pixels.
    """
    rows = []
    for place, own in fields.items():
        layer, side = (result["layers"][place][key] for key in ("layer", "side"))
        if layer == "decoder.classifier":
            names = dataset.labels.classes
            picks = [
                (own.units[i], names[own.units[i]], own.maps[i], own.sizes[i].item())
                for i in _rarest(model, dataset, own, images)
            ]
        else:
            order = [k for k in own.sizes.argsort().tolist() if own.sizes[k] > 0]
            unit = own.units[order[len(order) // 2]]
            picks = [(unit, f"{place}\nunit {unit}", own.maps.nanmean(0), side["mean"])]
        for unit, words, field, length in picks:
            pictures = top_images(model, dataset, layer, unit, images, size, top)
            rows.append((words, field.cpu().numpy(), length, own.cell, pictures))
    return rows


def _rarest(model: RefineNet, dataset, fields: Fields, images: int) -> list[int]:
    """Positions among the units of the three classes with fewest pixels, but some."""
    masks = [dataset[i][1].ravel() for i in spread(images, len(dataset))]
    pixels = np.bincount(np.concatenate(masks), minlength=256)[: model.num_classes]
    rarest = [k for k in np.argsort(pixels) if pixels[k] and k in fields.units]
    return [fields.units.index(k) for k in rarest[:3]]
