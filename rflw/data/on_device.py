"""Small data sets held on the training device and augmented there: no GPU waits for images.

Scales, crops and flips have the chances of `rflw.data.transforms`. Only what the crop shows is
resized, so positions may be off by half a pixel; there are no changes of colour.
"""

import numpy as np
import torch
from torch import Tensor
import torch.nn.functional as F

from rflw.data.labels import VOID
from rflw.errors import InputError

MARGIN = 2  # pixels around what a crop shows that resizing it takes into account


class OnDevice:
    """A data set as uint8 tensors on a device: images (N, 3, H, W), channels last, masks (N, H, W).

    Raises:
        InputError: if the images are of several sizes.
    """

    def __init__(self, dataset, device: torch.device):
        images, masks = zip(*(dataset[i] for i in range(len(dataset))))
        odd = next((i for i, image in enumerate(images) if image.shape != images[0].shape), None)
        if odd is not None:
            (height, width), first = images[odd].shape[:2], images[0].shape
            raise InputError(
                f"{dataset.name}: {dataset.ids[odd]} is {width}x{height}, {dataset.ids[0]} "
                f"{first[1]}x{first[0]}: images on the device must have one size"
            )
        self.dataset = dataset
        self.images = torch.from_numpy(np.stack(images)).to(device).permute(0, 3, 1, 2)
        self.masks = torch.from_numpy(np.stack(masks)).to(device)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        return self.dataset[index]

    def batch(
        self,
        keys: list[tuple[int, int]],
        crop: tuple[int, int],
        scale: tuple[float, float],
        min_side: int,
        flip: bool,
        mean,
        std,
    ) -> tuple[Tensor, Tensor]:
        """Augmented images `(B, 3, *crop)`, float32, normalised, and masks `(B, *crop)`, uint8.

        Outside of the image, images have the mean pixel and masks are void.

        Args:
            keys: a (seed, index) for each; the same key gives the same pair.
            crop, scale, min_side, flip, mean, std: as in `rflw.data.transforms`.
        """
        device, size = self.images.device, self.images.shape[-2:]
        mean, std = (
            255 * torch.tensor(v, device=device).repeat(crop[1]) for v in (mean, std)
        )  # of a row, channels last
        images = mean.round().byte().repeat(len(keys), crop[0], 1)
        images = images.unflatten(2, (crop[1], 3)).permute(0, 3, 1, 2)
        masks = torch.full((len(keys), *crop), VOID, dtype=torch.uint8, device=device)
        for image, mask, (seed, i) in zip(images, masks, keys):
            scaled, first, mirrored = draw(seed, size, crop, scale, min_side, flip)
            (rows, columns), (down, across), (high, wide) = zip(
                *(window(*axis) for axis in zip(size, scaled, first, crop))
            )
            pixels = resize(self.images[i : i + 1, :, rows, columns], (down[0], across[0]))
            pixels = pixels[0, :, down[1], across[1]]
            labels = self.masks[i, rows, columns]
            for axis, part in enumerate((down, across)):
                labels = labels.index_select(axis, nearest(labels.shape[axis], *part, device))
            if mirrored:  # what lies beyond the image changes sides, too
                pixels, labels = pixels.flip(2), labels.flip(1)
                wide = slice(crop[1] - wide.stop, crop[1] - wide.start)
            image[:, high, wide] = pixels
            mask[high, wide] = labels
        rows = images.permute(0, 2, 3, 1).flatten(2).float().sub_(mean).div_(std)
        return rows.unflatten(2, (crop[1], 3)).permute(0, 3, 1, 2), masks


def draw(
    seed: int,
    size: tuple[int, int],
    crop: tuple[int, int],
    scale: tuple[float, float],
    min_side: int,
    flip: bool,
) -> tuple[list[int], list[int], bool]:
    """What happens to an image of a size, from its seed: its scaled size, the crop's first row and
    column in the scaled image (below 0 where that is smaller), and whether it is mirrored."""
    u, *places, mirrored = torch.rand(4, generator=torch.Generator().manual_seed(seed)).tolist()
    factor = max(scale[0] + u * (scale[1] - scale[0]), min_side / min(size))
    scaled = [round(n * factor) for n in size]
    first = [
        int(p * (abs(n - c) + 1)) * (1 if n > c else -1) for p, n, c in zip(places, scaled, crop)
    ]
    return scaled, first, flip and mirrored < 0.5


def window(size: int, scaled: int, first: int, crop: int) -> tuple[slice, tuple[int, slice], slice]:
    """Along one axis: the part of the image that the crop shows, with a margin; how long it is when
    scaled, and which part of that is in the crop; where in the crop that lies."""
    begin, end = max(first, 0), min(first + crop, scaled)
    low = max(int(begin * size / scaled) - MARGIN, 0)
    high = min(-int(-end * size // scaled) + MARGIN, size)
    offset = round(low * scaled / size)
    length = max(round(high * scaled / size), end) - offset
    part = slice(begin - offset, end - offset)
    return slice(low, high), (length, part), slice(begin - first, end - first)


def resize(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """(1, C, h, w) uint8 -> `(1, C, *size)` uint8, bilinear, antialiased."""
    if tuple(pixels.shape[-2:]) == size:
        return pixels
    if pixels.device.type == "cpu":  # in whole numbers, which CPUs are faster with
        return F.interpolate(pixels, size, mode="bilinear", antialias=True)
    return F.interpolate(pixels.float(), size, mode="bilinear", antialias=True).round().byte()


def nearest(size: int, length: int, part: slice, device) -> Tensor:
    """The pixels of an axis that are nearest to a part of it, if `size` is resized to `length`."""
    return ((torch.arange(length, device=device)[part] + 0.5) * size / length).long()
