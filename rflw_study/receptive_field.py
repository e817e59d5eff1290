"""Receptive fields of the units of a layer, on any module: in theory, by gradient, by occlusion, and by top activations.

A unit is a channel of a map (B, C, H, W) of a layer (`rflw_study.layers`); at each position it looks at another part of the
image. Images are tensors as the network takes them, all of one size. A size is the square root of an area, in pixels of the image.
"""

from collections.abc import Sequence
from dataclasses import dataclass
import math
import sys

import torch
from torch import Tensor, nn
import torch.nn.functional as F
from tqdm import tqdm

from rflw.errors import InputError
from rflw_study.layers import evaluating, feature_map, feature_maps, stacked
from rflw_study.reach import Partial, Span

# Where the paper looks: Figure 3 (its "levels 4 and 3" are our stages 0 and 1), and Figure 8. Sums are taken before their ReLU, whose
# gradient vanishes where they are negative.
PLACES = {
    "before CRP": "decoder.stages.0.act:input",
    "after CRP": "decoder.stages.0.crp",
    "after the first sum": "decoder.stages.1.act:input",
    "last layer": "decoder.classifier",
}
GAUSS = 0.0455  # Luo et al.: what a Gaussian has left, relative to its centre, where they let the field end
UNLIMITED = 2**14  # pixels; fields that reach further are called infinite


@dataclass(frozen=True)
class Fields:
    """What was measured of the units of a layer."""

    units: list[int]
    maps: Tensor  # (U, H', W') each unit's field, its largest value 1; all nan where there is none
    cell: int  # pixels of the image that a step in the maps is
    sizes: Tensor  # (U,) of each unit, in pixels; nan for one without a field
    by_image: Tensor  # (N,) of each image, over units; nan for an image that was no unit's

    @property
    def dead(self) -> list[int]:
        """Units without a field: they never activated."""
        return [unit for unit, size in zip(self.units, self.sizes.tolist()) if math.isnan(size)]


def size_of(maps: Tensor, cut: float, cell: int = 1) -> Tensor:
    """(..., H, W) -> (...): square root of the area that is above `cut` times the largest value; nan where all is nought."""
    if not 0 <= cut < 1:
        raise InputError(
            f"a field ends at a share of its largest value, 0 or more and below 1, not {cut}"
        )
    peak = maps.amax((-2, -1), keepdim=True)
    area = (maps > cut * peak).sum((-2, -1)).double()
    return torch.where(peak[..., 0, 0] > 0, area.sqrt() * cell, torch.nan)


# ---------------------------------------------------------------- units


def _chosen(units: Sequence[int] | None, channels: int, layer: str) -> list[int]:
    units = list(range(channels)) if units is None else list(units)
    wrong = next((unit for unit in units if not 0 <= unit < channels), None)
    if wrong is not None or not units:
        raise InputError(f"layer {layer!r}: units are 0 to {channels - 1}, not {wrong}")
    return units


def _refuse_dead(fields: Fields, asked: Sequence[int] | None, layer: str, images: int) -> Fields:
    """Raises InputError if a unit that was asked for, or every unit, never activates."""
    dead = fields.dead
    if asked is not None and dead or len(dead) == len(fields.units):
        which = "no unit ever activates" if asked is None else f"unit {dead[0]} never activates"
        raise InputError(f"layer {layer!r}: {which} on {images} image{'s' * (images != 1)}")
    return fields


@dataclass(frozen=True)
class Strongest:
    """Where the units of a layer are strongest."""

    values: Tensor  # (N, C) in each image
    rows: Tensor  # (N, C)
    columns: Tensor  # (N, C)

    def best(self, top: int) -> Tensor:
        """(C, K): the images that activate each unit most, strongest first; -1 for a unit that is nowhere above nought."""
        images = self.values.topk(min(top, len(self.values)), dim=0).indices.T
        return torch.where(self.values.amax(0)[:, None] > 0, images, -1)


@torch.no_grad()
def strongest(
    model: nn.Module, layers: Sequence[str], images: Tensor, batch: int = 8, progress: bool = False
) -> list[Strongest]:
    """Of each layer, from the same passes."""
    found, widths = [([], []) for _ in layers], []
    for part in tqdm(
        images.split(batch), desc="strongest", file=sys.stderr, disable=not progress or None
    ):
        maps = feature_maps(model, layers, part)
        widths = [m.shape[3] for m in maps]
        for own, (values, places) in zip(maps, found):
            value, place = own.flatten(2).max(2)
            values.append(value)
            places.append(place)
    pairs = [(torch.cat(values), torch.cat(places)) for values, places in found]
    return [
        Strongest(values, places // width, places % width)
        for (values, places), width in zip(pairs, widths)
    ]


# ---------------------------------------------------------------- four ways


@torch.no_grad()
def theoretical(
    model: nn.Module, layer: str, size: tuple[int, int] | None = None
) -> tuple[float, float]:
    """Rows and columns of the image that the unit in the middle of a layer can depend on: of an image of `size`, or, for None, of
    one without borders. Infinite where a layer sees any image whole.

    From the operations that the network runs: each widens the span of pixels behind a position, pixel by pixel, and sums take what
    is outermost. Raises InputError where an operation is none that is known to look at maps.
    """
    dtype = next((p.dtype for p in model.parameters()), torch.float32)
    limit = (
        [size] if size else [(side, side) for side in (UNLIMITED // 16, UNLIMITED // 4, UNLIMITED)]
    )
    with evaluating(model):
        for rows, columns in limit:
            spans = feature_map(model, layer, Span.of_image((rows, columns), dtype=dtype))
            middle = [
                (spans.first[axis][n // 2].item(), spans.last[axis][n // 2].item())
                for axis, n in enumerate(spans.shape[-2:])
            ]
            if size or all(0 < first and last < rows - 1 for first, last in middle):
                return tuple(max(last - first + 1, 0) for first, last in middle)
    return math.inf, math.inf


def gradient(
    model: nn.Module,
    layer: str,
    images,
    units: Sequence[int] | None = None,
    cut: float = GAUSS,
    batch: int = 10,
    progress: bool = False,
) -> Fields:
    """Gradient of a unit in the middle of the map with respect to the image, its absolute values summed over colours and averaged
    over images, as Luo et al., "Understanding the effective receptive field in deep convolutional neural networks" (2016).

    units: each gets a field of its own; None: one field of all of them together, from a single pass backwards an image.
    The size ends where the field falls below `cut` of its largest value, theirs being the centre's: strides leave holes there.
    by_image: size of an image's own field, summed over units, which is more ragged than an average over images.
    """
    images = stacked(images)
    total, by_image = None, []
    with evaluating(model), torch.enable_grad():
        for part in tqdm(
            images.split(batch), desc="gradients", file=sys.stderr, disable=not progress or None
        ):
            part = part.clone().requires_grad_()
            maps = feature_map(model, layer, part)
            middle = maps[:, :, maps.shape[2] // 2, maps.shape[3] // 2]  # (B, C)
            asked = [None] if units is None else _chosen(units, maps.shape[1], layer)
            fields = []
            for unit in asked:
                value = (middle if unit is None else middle[:, unit]).sum()
                fields.append(
                    torch.autograd.grad(value, part, retain_graph=unit != asked[-1])[0].abs().sum(1)
                )
            fields = torch.stack(fields).detach()  # (U, B, H, W)
            total = fields.sum(1) + (0 if total is None else total)
            by_image.append(size_of(fields.sum(0), cut))
    maps = total / total.amax((1, 2), keepdim=True)
    fields = Fields(
        [-1] if units is None else asked,
        maps,
        1,
        size_of(maps.nan_to_num(), cut),
        torch.cat(by_image),
    )
    return _refuse_dead(fields, units, layer, len(images))


def occlusion(
    model: nn.Module, layer: str, images, units: Sequence[int] | None = None, **options
) -> Fields:
    """Fields of one layer, see `occlusions`. Raises InputError if one of `units`, where given, never activates."""
    return occlusions(model, [layer], images, units, **options)[0]


@torch.no_grad()
def occlusions(
    model: nn.Module,
    layers: Sequence[str],
    images,
    units: Sequence[int] | None = None,
    top: int = 10,
    patch: int = 11,
    stride: int = 3,
    cut: float = 0.2,
    batch: int = 16,
    seed: int = 0,
    partial: bool = True,
    progress: bool = False,
) -> list[Fields]:
    """As cited, Zhou et al., "Object detectors emerge in deep scene CNNs" (2015): a patch of random pixels slides over each of the
    `top` images that activate a unit most; how much it changes the activation where that is strongest gives a map of
    discrepancies; the maps, shifted so that this place is in the middle, are averaged.

    All units of all layers share the passes of an image. Random pixels are drawn evenly between the least and the largest value of
    each colour in `images`; what a shifted map does not cover counts as not measured. The size is that of the area above `cut` times
    the largest discrepancy. Zhou et al. give neither `top` nor `cut`: ours are choices.
    partial: compute only what a patch can reach (`rflw_study.reach`); values differ from whole passes by rounding alone.
    by_image: mean size, over the units that chose the image, of its own map.
    """
    images = stacked(images)
    n, _, *size = images.shape
    if not 1 <= patch <= min(size) or stride < 1 or top < 1:
        raise InputError(
            f"a patch of {patch} pixels at stride {stride} on {size[1]}x{size[0]}, {top} images: it must fit, all 1 at least"
        )
    grid = [torch.arange(0, side - patch + 1, stride) for side in size]
    corners, shape = torch.cartesian_prod(*grid).to(images.device), [len(axis) for axis in grid]
    low, high = (bound(images, (0, 2, 3)).view(3, 1, 1) for bound in (torch.amin, torch.amax))
    with evaluating(model):
        peaks = strongest(model, layers, images, batch, progress)
        chosen = [_chosen(units, peak.values.shape[1], layer) for peak, layer in zip(peaks, layers)]
        wanted = [peak.best(top)[own] for peak, own in zip(peaks, chosen)]  # (U, K)
        sums = [
            torch.zeros(len(own), *(2 * side - 1 for side in shape), device=images.device)
            for own in chosen
        ]
        times, by_image = (
            [torch.zeros_like(total) for total in sums],
            [torch.full((n,), torch.nan, dtype=torch.double) for _ in layers],
        )
        used = [i for i in range(n) if any((best == i).any() for best in wanted)]
        bar = tqdm(
            total=len(used) * len(corners),
            desc="patches",
            file=sys.stderr,
            disable=not progress or None,
        )
        for i in used:
            image, generator = images[i : i + 1], torch.Generator().manual_seed(seed * n + i)
            noise = (
                torch.rand(len(corners), 3, patch, patch, generator=generator).to(images)
                * (high - low)
                + low
            )
            asked = [
                torch.nonzero((best == i).any(1)).flatten() for best in wanted
            ]  # numbers among `chosen`
            places = []
            for peak, own, numbers in zip(peaks, chosen, asked):
                channels = torch.tensor(own, device=images.device)[numbers]
                places.append((channels, peak.rows[i, channels], peak.columns[i, channels]))
            undisturbed, changes = feature_maps(model, layers, image), [[] for _ in layers]
            for part, corner in zip(noise.split(batch), corners.split(batch)):
                occluded = Partial(image, part, corner)
                for found, out, place in zip(
                    changes,
                    feature_maps(model, layers, occluded if partial else occluded.whole()),
                    places,
                ):
                    found.append(out.at(*place) if isinstance(out, Partial) else out[:, *place])
                bar.update(len(part))
            for k, (found, clean, place, numbers) in enumerate(
                zip(changes, undisturbed, places, asked)
            ):
                maps = (torch.cat(found) - clean[0, *place]).abs().T.view(-1, *shape)
                for number, own, *at in zip(
                    numbers.tolist(), maps, place[1].tolist(), place[2].tolist()
                ):
                    # cell of the grid whose patch lies over the middle of the unit's position
                    y, x = (
                        min(max(round(((a + 0.5) * side / m - patch / 2) / stride), 0), g - 1)
                        for a, side, m, g in zip(at, size, clean.shape[-2:], shape)
                    )
                    sums[k][number, shape[0] - 1 - y :, shape[1] - 1 - x :][
                        : shape[0], : shape[1]
                    ] += own
                    times[k][number, shape[0] - 1 - y :, shape[1] - 1 - x :][
                        : shape[0], : shape[1]
                    ] += 1
                by_image[k][i] = size_of(maps, cut, stride).nanmean()
        bar.close()
    measured = []
    for layer, own, total, count, sides in zip(layers, chosen, sums, times, by_image):
        maps = torch.where(count > 0, total / count, 0)
        fields = Fields(
            own, maps / maps.amax((1, 2), keepdim=True), stride, size_of(maps, cut, stride), sides
        )
        measured.append(_refuse_dead(fields, units, layer, n))
    return measured


@torch.no_grad()
def activation(
    model: nn.Module,
    layer: str,
    images,
    units: Sequence[int] | None = None,
    top: int = 10,
    cut: float = 0.2,
    batch: int = 8,
    progress: bool = False,
) -> Fields:
    """As the paper's author pointed to when asked: the maps of the `top` images that activate a unit most, divided by the largest
    value among them, upsampled to the image and cut at a fraction. That is how much of an image excites a unit, which need not be how
    much of it the unit sees.

    sizes: mean over the images of a unit; maps: that of its strongest image. by_image: mean over the units that chose the image.
    """
    images = stacked(images)
    with evaluating(model):
        (peaks,) = strongest(model, [layer], images, batch, progress)
        chosen = _chosen(units, peaks.values.shape[1], layer)
        peak, best = peaks.values.amax(0), peaks.best(top)
        sizes = torch.full((len(chosen), len(images)), torch.nan, dtype=torch.double)
        maps = torch.full((len(chosen), *images.shape[-2:]), torch.nan)
        for i, image in enumerate(
            tqdm(images.split(1), desc="activations", file=sys.stderr, disable=not progress or None)
        ):
            own = torch.nonzero((best[chosen] == i).any(1)).flatten().tolist()
            if not own:
                continue
            found = feature_map(model, layer, image)[0]
            for k in own:
                relative = regions(found[None, chosen[k]], peak[chosen[k]], images.shape[-2:])[0]
                sizes[k, i] = (relative > cut).sum().double().sqrt()
                if best[chosen[k], 0] == i:
                    maps[k] = relative
    return _refuse_dead(
        Fields(chosen, maps, 1, sizes.nanmean(1), sizes.nanmean(0)), units, layer, len(images)
    )


def regions(maps: Tensor, peak: Tensor | float, size: tuple[int, int]) -> Tensor:
    """Activation maps (N, h, w) of a unit, divided by its largest value and upsampled, bilinearly: (N, *size)."""
    return F.interpolate((maps / peak)[:, None], size, mode="bilinear", align_corners=False)[:, 0]


@torch.no_grad()
def top_images(
    model: nn.Module, layer: str, images, unit: int, top: int = 9, batch: int = 8
) -> tuple[list[int], Tensor]:
    """The images that activate a unit most, strongest first -> (their numbers, their maps relative to the strongest, (K, H, W)).

    Raises InputError for a unit that never activates.
    """
    images = stacked(images)
    with evaluating(model):
        maps = torch.cat([feature_map(model, layer, part)[:, unit] for part in images.split(batch)])
        peaks = maps.flatten(1).amax(1)
        if not peaks.max() > 0:
            raise InputError(
                f"layer {layer!r}: unit {unit} never activates on {len(images)} images"
            )
        best = peaks.argsort(descending=True)[:top]
        return best.tolist(), regions(maps[best], peaks.max(), images.shape[-2:])
