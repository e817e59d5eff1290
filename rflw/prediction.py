"""Prediction, from top to bottom: image, array, normalised, logits, image's size, classes.

Letters in shape comments: B batch, C channels, H and W rows and columns, K classes.
"""

from collections.abc import Callable, Sequence
from contextlib import contextmanager
from functools import partial
from math import ceil
from os import PathLike
from threading import Lock

import numpy as np
from PIL import Image
import torch
from torch import Tensor, nn
import torch.nn.functional as F

from rflw import tiles
from rflw.data.images import read_image
from rflw.device import autocast, pick_precision
from rflw.errors import InputError, about, why
from rflw.nn.refinenet import MIN_SIZE, RefineNet

# Pixels that are resized to the image at once: full logits of large images take gigabytes.
BAND = 2**22
# Pixels of the shorter side of a data set's images, where all have the same.
SIDES = {"camvid": 360, "embedded": 96, "nyu": 468}
LOCK, INSIDE = Lock(), {}  # network: how many are within `evaluating`, modes before the first


@contextmanager
def evaluating(model: nn.Module):
    """A context in which a network is in evaluation mode. When the last thread has left it, each
    module gets its earlier mode back.
    """
    with LOCK:
        modes = {module: module.training for module in model.modules()}
        number, modes = INSIDE.get(model, (0, modes))
        INSIDE[model] = number + 1, modes
        model.eval()
    try:
        yield model
    finally:
        with LOCK:
            number, modes = INSIDE.pop(model)
            if number > 1:
                INSIDE[model] = number - 1, modes
            else:
                for module, mode in modes.items():  # batch norm may be frozen, the rest not
                    module.training = mode


def predict(
    model: RefineNet,
    image,
    short_side: int | None = None,
    precision: str = "fp32",
    tile: int | None = None,
) -> np.ndarray:
    """The class of every pixel of an image.

    The logits are resized to the image, bilinearly, before the best class is taken. The network
    stays in the mode in which it was.

    Args:
        model: the network, on any device.
        image: a path, a PIL image, or an array of uint8, (H, W, 3) RGB or (H, W) grey.
        short_side: pixels of the shorter side that the network sees; 0: the image's own;
            None: the size of the training, which the checkpoint names (as `rflw predict`).
        precision: "fp32", "bf16", "fp16" or "auto", the device's fastest.
        tile: side of the overlapping tiles in which the network sees a large image, in pixels; 0:
            never; None: 2048, for images of more pixels than such a tile (`rflw.tiles`).

    Returns:
        Class indices (H, W), uint8.

    Raises:
        InputError: for anything but an image, or one that is too small.
    """
    array = as_array(image)
    with about(image if isinstance(image, str | PathLike) else "image"):
        return class_maps(model, array[None], short_side, precision, tile)[0]


def as_array(image) -> np.ndarray:
    """What `predict` takes -> (H, W, 3) uint8.

    Raises InputError that names the type of anything else.
    """
    if isinstance(image, str | PathLike | Image.Image):
        return read_image(image)
    try:
        array = np.asarray(image)
    except Exception as e:  # whatever the conversion of a foreign type raises
        kind = type(image).__name__
        raise InputError(f"image: a {kind} cannot be made an array ({why(e)[:200]})") from e
    if array.dtype != np.uint8 or array.ndim != 2 and array.shape[2:] != (3,):
        raise InputError(
            f"image: a {type(image).__name__} of {str(array.dtype)[:40]} and shape {array.shape}; a path, a PIL image "
            "or an array of uint8, (height, width, 3) or (height, width), is needed"
        )
    return array if array.ndim == 3 else np.stack([array] * 3, axis=-1)


@torch.inference_mode()
def class_maps(
    model: RefineNet,
    images: np.ndarray,
    short_side: int | None = None,
    precision: str = "fp32",
    tile: int | None = None,
) -> np.ndarray:
    """`predict` for a batch: (B, H, W, 3) uint8 -> (B, H, W) uint8."""
    h, w = images.shape[1:3]
    if short_side and short_side < MIN_SIZE:
        raise InputError(
            f"a shorter side of {short_side} pixels: {MIN_SIZE} is the least, 0 keeps the image's own"
        )
    if min(h, w) < MIN_SIZE:
        raise InputError(f"{w}x{h} pixels; the networks take {MIN_SIZE}x{MIN_SIZE} and up")
    if model.num_classes > 256:
        raise InputError(f"{model.num_classes} classes do not fit into 8 bits")
    if short_side is None:
        short_side = short_side_of(model)
    size = seen_size(h, w, min(h, w), short_side or min(h, w))
    with evaluating(model):
        logits = logits_of(model, images, size, precision, tile=tile)
    return best([logits], (h, w)).to(torch.uint8).cpu().numpy()


def short_side_of(model: nn.Module) -> int | None:
    """Pixels of the shorter side that a network's checkpoint asks for; None or 0: the image's own."""
    return getattr(model, "card", {}).get("short_side")


def own_scale(model: nn.Module) -> float:
    """The scale at which a trained network sees the images of its data set."""
    side = SIDES.get(getattr(model, "card", {}).get("data"))
    return round((short_side_of(model) or side) / side, 2) if side else 1.0


def seen_size(h: int, w: int, least: int, short_side: int) -> tuple[int, int]:
    """(h, w) that the network sees of an image; least: the smaller of h and w.

    Computed with integers, so that an exported file gives the same size. A half is rounded down, as
    in `scaled`.
    """
    return tuple((2 * n * short_side + least - 1) // (2 * least) for n in (h, w))


def logits_of(
    model: RefineNet,
    images: np.ndarray,
    size: tuple[int, int],
    precision: str,
    flip: bool = False,
    tile: int | None = None,
) -> Tensor:
    """Logits of images that the network sees at another size, whole or in tiles.

    Args:
        model: the network, in evaluation mode.
        images: (B, H, W, 3) uint8.
        size: (h, w) in pixels that the network sees.
        precision: as `predict`.
        flip: mirror the images, and the logits back.
        tile: as `predict`.

    Returns:
        Logits (B, K, ceil(h/4), ceil(w/4)), on the model's device.
    """
    device = next(model.parameters()).device
    x = as_seen(images, model, device, size)
    if flip:
        x = x.flip(3)
    side = tiles.side(tile, size)
    with autocast(pick_precision(precision, device), device):
        logits = tiles.joined(model, x, side) if side else model(x)
    return logits.flip(3) if flip else logits


def normalise(images: np.ndarray, model: RefineNet, device: torch.device) -> Tensor:
    """(H, W, 3) or (B, H, W, 3) uint8 -> (B, 3, H, W) float32 as the network takes it, channels
    last.
    """
    x = torch.tensor(np.ascontiguousarray(images), device=device)
    x = (x if x.ndim == 4 else x[None]).permute(0, 3, 1, 2).float().div_(255)
    mean, std = (torch.tensor(v, device=device).view(1, 3, 1, 1) for v in (model.mean, model.std))
    return x.sub_(mean).div_(std).contiguous(memory_format=torch.channels_last)


def scaled(size: Sequence[int], scale: float) -> tuple[int, int]:
    """Rows and columns at a scale, not below what networks take."""
    return tuple(n if scale == 1 else max(MIN_SIZE, ceil(n * scale - 0.5)) for n in size)


def as_seen(images: np.ndarray, model: RefineNet, device: torch.device, size=None) -> Tensor:
    """`normalise`, at another size; None: as large as the network saw its data set in training."""
    x = normalise(images, model, device)
    size = size or scaled(x.shape[2:], own_scale(model))
    if tuple(size) != tuple(x.shape[2:]):
        x = F.interpolate(x, size=tuple(size), mode="bilinear", antialias=True)
    return x


@torch.inference_mode()
def views(
    model: RefineNet,
    image: np.ndarray,
    precision: str = "auto",
    scales=(1.0,),
    flip: bool = False,
    tile: int | None = None,
) -> list[Tensor]:
    """Logits of an image (H, W, 3) uint8 at each scale and, with `flip`, of its mirror image, too."""
    return [
        logits_of(model, image[None], scaled(image.shape[:2], scale), precision, mirrored, tile)
        for scale in scales
        for mirrored in (False, True)[: 1 + flip]
    ]


def best(logits: list[Tensor], size: tuple[int, int]) -> Tensor:
    """The best class of every pixel, from the logits of several views of an image.

    Large images are resized a few rows at a time.

    Args:
        logits: (B, K, h, w) each, of any h and w.
        size: (H, W) of the image, in pixels.

    Returns:
        Class indices (B, H, W), int64; uint8 where they were found a few rows at a time.
    """
    if size[0] * size[1] <= BAND:
        return combined(logits, lambda x: upsample(x, size)).argmax(1)
    dtype = torch.uint8 if logits[0].shape[1] <= 256 else torch.int64
    classes = torch.empty(len(logits[0]), *size, dtype=dtype, device=logits[0].device)
    step = max(1, BAND // size[1])
    for top in range(0, size[0], step):
        rows = partial(upsampled_rows, size=size, top=top, bottom=min(top + step, size[0]))
        classes[:, top : top + step] = combined(logits, rows).argmax(1)
    return classes


def combined(logits: list[Tensor], resize: Callable[[Tensor], Tensor]) -> Tensor:
    """Logits of one view, resized; of several, the mean of their softmaxes (`msc` in the paper's
    tables).
    """
    if len(logits) == 1:
        return resize(logits[0])
    return sum(resize(x).softmax(1) for x in logits) / len(logits)


def upsample(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Logits (B, K, h, w) -> `(B, K, *size)`, float32, bilinear."""
    return F.interpolate(logits.float(), size=tuple(size), mode="bilinear", align_corners=False)


def upsampled_rows(logits: Tensor, size: tuple[int, int], top: int, bottom: int) -> Tensor:
    """Rows `top` to `bottom` of what `upsample` gives, (B, K, bottom - top, W)."""
    h = logits.shape[2]
    places = (torch.arange(top, bottom, dtype=torch.float64) + 0.5) * h  # not all devices have it
    places = (places / size[0] - 0.5).clamp(0, h - 1)
    above = places.long().to(logits.device)
    share = (places - places.long()).float()[:, None].to(logits.device)
    rows = torch.lerp(
        logits.float()[:, :, above], logits.float()[:, :, (above + 1).clamp(max=h - 1)], share
    )
    return upsample(rows, (bottom - top, size[1]))
