"""Prediction: from an image to its class map."""

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor
import torch.nn.functional as F

from rflw import tiles
from rflw.data.images import read_image
from rflw.device import autocast, pick_precision
from rflw.errors import InputError
from rflw.nn.blocks import Window
from rflw.nn.refinenet import MIN_SIZE, RefineNet


def normalise(images, model: RefineNet, device: torch.device) -> Tensor:
    """(H, W, 3) or (B, H, W, 3) uint8 array -> (B, 3, H, W) float32 as the network wants it, channels last."""
    x = torch.from_numpy(np.ascontiguousarray(images)).to(device)
    x = (x if x.ndim == 4 else x[None]).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(v, device=device).view(1, 3, 1, 1) for v in (model.mean, model.std))
    return ((x - mean) / std).contiguous(memory_format=torch.channels_last)


def predict(
    model: RefineNet,
    image,
    short_side: int | None = None,
    precision: str = "fp32",
    tile: int | None = None,
):
    """An image (path, PIL image or (H, W, 3) uint8 array) -> its class map, (H, W) uint8 array, at its own size.

    The logits are resized to the image, bilinearly, before the best class is taken. short_side: let the network see
    the image resized so that its shorter side has so many pixels; the result keeps the image's size. precision: "fp32",
    "bf16", "fp16" or "auto", the device's fastest. tile: pixels of the side of the overlapping tiles that the network sees
    a large image in, 0 for never; None: 2048 for images of more pixels than such a tile (`rflw.tiles`).
    Raises InputError for what is no image or too small.
    """
    rgb = (
        image
        if hasattr(image, "__array_interface__") and not hasattr(image, "mode")
        else read_image(image)
    )
    if rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.dtype != "uint8":
        raise InputError(
            f"image: an array of {rgb.dtype} and shape {rgb.shape}; (height, width, 3) of uint8 is needed"
        )
    try:
        return class_maps(model, rgb[None], short_side, precision, tile)[0]
    except InputError as e:
        raise InputError(
            f"{'image' if rgb is image or hasattr(image, 'mode') else image}: {e}"
        ) from e


@torch.inference_mode()
def class_maps(
    model: RefineNet,
    images,
    short_side: int | None = None,
    precision: str = "fp32",
    tile: int | None = None,
):
    """(B, H, W, 3) uint8 array -> (B, H, W) uint8 array, as `predict`. Raises InputError for images, or a shorter side, too small."""
    if short_side and short_side < MIN_SIZE:
        raise InputError(
            f"a shorter side of {short_side} pixels: {MIN_SIZE} is the least, 0 keeps the image's own"
        )
    if min(images.shape[1:3]) < MIN_SIZE:
        raise InputError(
            f"{images.shape[2]}x{images.shape[1]} pixels; the networks take {MIN_SIZE}x{MIN_SIZE} and up"
        )
    if model.num_classes > 256:
        raise InputError(f"{model.num_classes} classes do not fit into 8 bits")
    h, w = images.shape[1:3]
    ratio = short_side / min(h, w) if short_side else 1
    training = model.training
    logits = logits_of(
        model.eval(), images, (round(h * ratio), round(w * ratio)), precision, tile=tile
    )
    model.train(training)
    return best([logits], (h, w)).to(torch.uint8).cpu().numpy()


def logits_of(
    model: RefineNet,
    images,
    size: tuple[int, int],
    precision: str,
    flip: bool = False,
    tile: int | None = None,
) -> Tensor:
    """(B, H, W, 3) uint8 array, which the network sees at another size -> logits (B, K, ceil(h/4), ceil(w/4)), on its device. flip: of
    the mirrored image, mirrored back. tile: as `predict`."""
    device, w = next(model.parameters()).device, size[1]
    resized = tuple(size) != tuple(images.shape[1:3])
    side = tiles.side(tile, size)
    if side and not getattr(model, "takes_windows", False):
        if tile:
            raise InputError(
                f"{getattr(model, 'name', type(model).__name__)}: in this form it takes images whole, not in tiles"
            )
        side = 0
    whole = (
        None if side and not resized else normalise(images, model, device)
    )  # tiles are cut out of bytes where they can be
    if resized:
        whole = F.interpolate(whole, size=tuple(size), mode="bilinear", antialias=True)

    def part(window: Window | None = None) -> Tensor:
        x = whole
        if window is not None:
            (top, left), (height, width) = window.start, window.size
            left = w - left - width if flip else left
            rows, columns = slice(top, top + height), slice(left, left + width)
            x = (
                normalise(images[:, rows, columns], model, device)
                if whole is None
                else whole[:, :, rows, columns]
            )
        with autocast(pick_precision(precision, device), device):
            return model(x.flip(3) if flip else x, *([] if window is None else [window]))

    logits = tiles.joined(part, size, side) if side else part()
    return logits.flip(3) if flip else logits


def upsample(logits: Tensor, size) -> Tensor:
    """Logits (B, K, h, w) -> float32 (B, K, *size), bilinear."""
    return F.interpolate(logits.float(), size=tuple(size), mode="bilinear", align_corners=False)


def combined(resized: Iterable[Tensor], number: int) -> Tensor:
    """Logits as they are, of several the mean of their softmaxes."""
    total = None
    for logits in resized:
        if number == 1:
            return logits
        total = logits.softmax(1) if total is None else total.add_(logits.softmax(1))
    return total / number


def best(logits: list[Tensor], size: tuple[int, int]) -> Tensor:
    """The best class of every pixel of (H, W), from the logits of several views of an image -> (B, H, W) int64; uint8 where
    full logits would take much memory and are made a few rows at a time."""
    if size[0] * size[1] <= tiles.BAND:
        return combined((upsample(x, size) for x in logits), len(logits)).argmax(1)
    found = torch.empty(
        len(logits[0]),
        *size,
        dtype=torch.uint8 if logits[0].shape[1] <= 256 else torch.int64,
        device=logits[0].device,
    )
    for top, rows in tiles.bands(logits, size):
        found[:, top : top + rows[0].shape[2]] = combined(rows, len(rows)).argmax(1)
    return found


@torch.inference_mode()
def views(
    model: RefineNet,
    image,
    precision: str = "auto",
    scales=(1.0,),
    flip: bool = False,
    tile: int | None = None,
) -> list[Tensor]:
    """(H, W, 3) uint8 array -> the logits, at stride 4, of the image at each scale and, with flip, of its mirror image, mirrored back."""
    sizes = [
        tuple(n if scale == 1 else max(MIN_SIZE, round(n * scale)) for n in image.shape[:2])
        for scale in scales
    ]
    return [
        logits_of(model, image[None], size, precision, mirrored, tile)
        for size in sizes
        for mirrored in (False, True)[: 1 + flip]
    ]


@torch.inference_mode()
def scores(
    model: RefineNet,
    image,
    size: tuple[int, int],
    precision: str = "auto",
    scales=(1.0,),
    flip: bool = False,
) -> Tensor:
    """(H, W, 3) uint8 array -> (1, K, *size) scores whose best is the class, on the model's device.

    With one scale and no flip these are the logits. Else they are softmaxes, averaged over the image at each scale and,
    with flip, its mirror image (multi-scale evaluation, `msc` in the paper's tables).
    """
    seen = views(model, image, precision, scales, flip)
    return combined((upsample(logits, size) for logits in seen), len(seen))
