"""Joint transforms of image and mask for training: scale, crop, flip, colour, normalise.

Images are resized bilinearly, masks by the pixel whose centre is nearest; a crop beyond the image
has the mean pixel and void.
"""

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as F

from rflw.data.labels import VOID


class RandomScale(v2.Transform):
    """Both sides times s ~ U(low, high), but the shorter side never below `min_side` pixels."""

    def __init__(self, low: float, high: float, min_side: int = 0):
        super().__init__()
        self.low, self.high, self.min_side = low, high, min_side

    def make_params(self, flat_inputs) -> dict:
        h, w = F.get_size(flat_inputs[0])
        scale = torch.empty(1).uniform_(self.low, self.high).item()
        scale = max(scale, self.min_side / min(h, w))
        return {"size": [round(h * scale), round(w * scale)]}

    def transform(self, inpt, params):
        if isinstance(inpt, tv_tensors.Mask):  # v2's "nearest" moves labels by half a pixel
            exact = F.resize_image(
                inpt[None], params["size"], interpolation=InterpolationMode.NEAREST_EXACT
            )
            return tv_tensors.wrap(exact[0], like=inpt)
        return self._call_kernel(F.resize, inpt, size=params["size"], antialias=True)


def training_transform(
    crop: tuple[int, int],
    scale: tuple[float, float],
    min_side: int,
    flip: bool,
    jitter: float,
    mean,
    std,
) -> v2.Transform:
    """Augmentation of a tv Image (3, H, W) uint8 and a tv Mask (H, W) uint8.

    Args:
        crop: (H, W) of the result.
        scale: bounds of the random scale of both sides.
        min_side: pixels that the shorter side keeps.
        flip: mirror half of the pairs.
        jitter: strength of random brightness, contrast and saturation; hue varies by a tenth.
        mean: of each channel, of images in 0..1.
        std: the same.

    Returns:
        A transform that gives a float32 image `(3, *crop)`, normalised, and a uint8 mask `(*crop)`.
    """
    fill = {tv_tensors.Image: [round(255 * m) for m in mean], tv_tensors.Mask: VOID}
    steps = [RandomScale(*scale, min_side)] if tuple(scale) != (1, 1) else []
    steps.append(v2.RandomCrop(crop, pad_if_needed=True, fill=fill))
    if flip:
        steps.append(v2.RandomHorizontalFlip())
    if jitter:
        steps.append(v2.ColorJitter(jitter, jitter, jitter, jitter / 10))
    steps.append(v2.ToDtype({tv_tensors.Image: torch.float32, "others": None}, scale=True))
    return v2.Compose([*steps, v2.Normalize(mean, std)])


class Augmented(Dataset):
    """Transformed items of a data set, addressed by (seed, index).

    The same pair always gives the same tensors, whatever came before, so that an interrupted run
    resumes exactly.
    """

    def __init__(self, dataset, transform: v2.Transform):
        self.dataset, self.transform = dataset, transform

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, Tensor]:
        seed, index = key
        image, mask = self.dataset[index]
        image = tv_tensors.Image(torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            image, mask = self.transform(image, tv_tensors.Mask(torch.from_numpy(mask)))
        return image.as_subclass(Tensor), mask.as_subclass(Tensor)
