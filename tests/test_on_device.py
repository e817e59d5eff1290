"""Data sets on the training device: the pictures and the chances of one image at a time."""

import numpy as np
import pytest
from scipy import stats
import torch
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as V

from rflw import InputError
from rflw.data.on_device import OnDevice, draw
from rflw.data.transforms import Augmented, training_transform

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
HEIGHT, WIDTH = 60, 90


class Ramps:
    """Red is twice the column, green twice the row; masks are the row, in the second image the column."""

    name, ids = "ramps", ["a", "b"]

    def __len__(self):
        return 2

    def __getitem__(self, index):
        rows, columns = np.mgrid[:HEIGHT, :WIDTH].astype(np.uint8)
        return np.stack([2 * columns, 2 * rows, 0 * rows + 99], axis=2), (rows, columns)[index]


@pytest.fixture(scope="module")
def held():
    return OnDevice(Ramps(), torch.device("cpu"))


def pairs(held, crop, scale, flip, number, index=0):
    """(image, mask) of many seeds, one image at a time and on the device."""
    items = Augmented(Ramps(), training_transform(crop, scale, 0, flip, 0.0, MEAN, STD))
    keys = [(10_000 + seed, index) for seed in range(number)]
    on_device = held.batch(keys, crop, scale, 0, flip, MEAN, STD)
    return [items[seed, index] for seed in range(number)], list(zip(*on_device))


@pytest.mark.parametrize("crop", [(32, 40), (100, 150), (50, 160)])  # inside, all around, too wide
def test_shows_what_resizing_the_whole_image_and_cropping_shows(held, crop):
    for seed in range(40):
        images, masks = held.batch([(seed, seed % 2)], crop, (0.5, 2.0), 0, True, MEAN, STD)
        scaled, (top, left), mirrored = draw(seed, (HEIGHT, WIDTH), crop, (0.5, 2.0), 0, True)
        image, mask = (torch.from_numpy(x) for x in Ramps()[seed % 2])
        image = V.resize(image.permute(2, 0, 1), scaled, antialias=True).float() / 255
        image = V.crop(V.normalize(image, MEAN, STD), top, left, *crop)  # 0 outside: the mean
        mask = V.resize(255 - mask[None], scaled, interpolation=v2.InterpolationMode.NEAREST_EXACT)
        mask = 255 - V.crop(mask, top, left, *crop)[0]  # 255 outside
        if mirrored:
            image, mask = image.flip(2), mask.flip(1)
        # half a pixel is 1/255 to 2/255 of red and green, by their deviation
        error = (images[0] - image).abs()
        assert error.mean() < 0.03 and (error < 0.09).float().mean() > 0.99, seed
        assert torch.equal(masks[0] == 255, mask == 255), seed
        assert (masks[0].int() - mask.int()).abs().max() <= 1, seed


@pytest.mark.parametrize("axis", (0, 1))
def test_labels_stay_on_the_picture_however_images_are_scaled(held, axis):
    """Offset of label and image in pixels of the unscaled image; seeds scale by 0.5 to 2."""
    channel, length = 1 - axis, (HEIGHT, WIDTH)[axis]
    for shown in pairs(held, (48, 48), (0.5, 2.0), True, 40, axis):
        offsets = []
        for image, mask in shown:
            place = (image[channel] * STD[channel] + MEAN[channel]) * 255 / 2
            inside = (mask > 4) & (mask < length - 5)  # void is not; borders are flat
            offsets.append((mask[inside].float() - place[inside]).mean().item())
        assert abs(np.mean(offsets)) < 0.1


def read_off(shown):
    """Scale, first row, first column, mirrored of each crop, read off the ramps."""
    found = []
    for image, _ in shown:
        # column and row in the image
        red, green = ((image[c] * STD[c] + MEAN[c]) * 255 / 2 for c in (0, 1))
        slope = ((red[:, -2] - red[:, 1]) / (red.shape[1] - 3)).mean().item()
        first = red[:, 1].mean().item() if slope > 0 else red[:, -2].mean().item()
        found.append([1 / abs(slope), green[1].mean().item(), first, slope < 0])
    return np.array(found)


def test_scales_crops_and_places_have_the_chances_of_the_other_way(held):
    one, other = map(read_off, pairs(held, (24, 32), (0.75, 2.0), True, 600))
    for column in range(3):
        assert stats.ks_2samp(one[:, column], other[:, column]).pvalue > 0.01, column
    assert one[:, 0].min() < 0.8 and one[:, 0].max() > 1.9  # the ramps do tell the scale
    assert abs(other[:, 3].mean() - 0.5) < 0.07
    assert abs(np.corrcoef(other[:, 0], other[:, 3])[0, 1]) < 0.12  # mirrored whatever the scale
    one, other = (  # in a crop that is larger than the image
        np.array([np.argwhere(mask.numpy() != 255)[0] for _, mask in shown])
        for shown in pairs(held, (80, 120), (1.0, 1.0), False, 400)
    )
    for axis, most in enumerate((20, 30)):
        assert stats.ks_2samp(one[:, axis], other[:, axis]).pvalue > 0.01
        assert (other[:, axis].min(), other[:, axis].max()) == (0, most)


def test_the_least_side_is_kept_and_images_of_several_sizes_are_refused():
    scaled = [draw(seed, (HEIGHT, WIDTH), (32, 32), (0.1, 0.2), 45, False)[0] for seed in range(20)]
    assert set(map(tuple, scaled)) == {(45, 68)}

    class Odd(Ramps):
        def __getitem__(self, index):
            return tuple(x[: 50 + 10 * index] for x in super().__getitem__(index))

    with pytest.raises(InputError, match="b is 90x60, a 90x50"):
        OnDevice(Odd(), torch.device("cpu"))
