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
    """Images whose red is twice the column and green twice the row; masks count 8x8 blocks."""

    name, ids = "ramps", ["a", "b"]

    def __len__(self):
        return 2

    def __getitem__(self, index):
        rows, columns = np.mgrid[:HEIGHT, :WIDTH]
        image = np.stack([2 * columns, 2 * rows, np.full_like(rows, 100 * index)], axis=2).astype(
            np.uint8
        )
        return image, (rows // 8 * 12 + columns // 8).astype(np.uint8)


@pytest.fixture(scope="module")
def held():
    return OnDevice(Ramps(), torch.device("cpu"))


@pytest.mark.parametrize("crop", [(32, 40), (100, 150), (50, 160)])  # inside, all around, too wide
def test_shows_what_resizing_the_whole_image_and_cropping_shows(held, crop):
    for seed in range(40):
        images, masks = held.batch([(seed, 1)], crop, (0.5, 2.0), 0, True, MEAN, STD)
        scaled, (top, left), mirrored = draw(seed, (HEIGHT, WIDTH), crop, (0.5, 2.0), 0, True)
        image, mask = (torch.from_numpy(x) for x in Ramps()[1])
        whole = V.normalize(
            V.resize(image.permute(2, 0, 1), scaled, antialias=True).float() / 255, MEAN, STD
        )
        labels = V.resize(mask[None], scaled, interpolation=v2.InterpolationMode.NEAREST_EXACT)[0]
        around = (max(-left, 0), max(-top, 0))
        whole = torch.nn.functional.pad(whole, (around[0], crop[1], around[1], crop[0]))
        labels = torch.nn.functional.pad(
            labels, (around[0], crop[1], around[1], crop[0]), value=255
        )
        top, left = max(top, 0), max(left, 0)
        expected, truth = (
            whole[:, top : top + crop[0], left : left + crop[1]],
            labels[top : top + crop[0], left : left + crop[1]],
        )
        if mirrored:
            expected, truth = expected.flip(2), truth.flip(1)
        # half a pixel is 1/255 to 2/255 of red and green, by their deviation
        assert (images[0] - expected).abs().mean() < 0.03 and (
            (images[0] - expected).abs() < 0.09
        ).float().mean() > 0.99, seed
        # a block's edge moves by one pixel at most, and blocks are 8 pixels long before scaling
        assert (masks[0] != truth).float().mean() < 2 * HEIGHT / (8 * scaled[0]) and torch.equal(
            masks[0] == 255, truth == 255
        ), seed


class Coordinates(Ramps):
    """Ramps whose masks are the row (axis 0) or the column (1)."""

    def __init__(self, axis: int):
        self.axis = axis

    def __getitem__(self, index):
        image, _ = super().__getitem__(index)
        return image, np.indices((HEIGHT, WIDTH))[self.axis].astype(np.uint8)


@pytest.mark.parametrize("axis", (0, 1))
def test_labels_stay_on_the_picture_however_images_are_scaled(axis):
    """Offset of label and image in pixels of the unscaled image; seeds scale by 0.5 to 2."""
    crop, scale, dataset = (48, 48), (0.5, 2.0), Coordinates(axis)
    items = Augmented(dataset, training_transform(crop, scale, 0, True, 0.0, MEAN, STD))
    on_device = OnDevice(dataset, torch.device("cpu"))
    seeds = range(40)
    pairs = {
        "loader": [items[seed, 0] for seed in seeds],
        "device": zip(
            *on_device.batch([(seed, 0) for seed in seeds], crop, scale, 0, True, MEAN, STD)
        ),
    }
    channel, length, offsets = 1 - axis, (HEIGHT, WIDTH)[axis], {}
    for path, shown in pairs.items():
        parts = []
        for image, mask in shown:
            place = (image[channel] * STD[channel] + MEAN[channel]) * 255 / 2
            inside = (mask > 4) & (mask < length - 5)  # void is not; borders are flat
            parts.append((mask[inside].float() - place[inside]).mean().item())
        offsets[path] = np.mean(parts)
    assert abs(offsets["loader"]) < 0.1 and abs(offsets["device"]) < 0.1
    assert offsets["loader"] == pytest.approx(offsets["device"], abs=0.1)


def test_scale_one_is_exact(held):
    images, masks = held.batch([(3, 0), (4, 1)], (HEIGHT, WIDTH), (1.0, 1.0), 0, False, MEAN, STD)
    for i in range(2):
        image, mask = Ramps()[i]
        expected = V.normalize(torch.from_numpy(image).permute(2, 0, 1).float() / 255, MEAN, STD)
        torch.testing.assert_close(images[i], expected, atol=1e-5, rtol=1e-5)
        assert torch.equal(masks[i], torch.from_numpy(mask))


def crops(batches, mean=MEAN, std=STD):
    """(B, 3, H, W) -> scale, first row, first column, mirrored of each crop, read off the ramps."""
    found = []
    for image in batches:
        red, green = (
            (image[c] * std[c] + mean[c]) * 255 / 2 for c in (0, 1)
        )  # column and row in the image
        slope = ((red[:, -2] - red[:, 1]) / (red.shape[1] - 3)).mean().item()
        first = red[:, 1].mean().item() if slope > 0 else red[:, -2].mean().item()
        found.append([1 / abs(slope), green[1].mean().item(), first, slope < 0])
    return np.array(found)


def test_scales_and_crops_have_the_chances_of_the_other_way(held):
    crop, scale, number = (24, 32), (0.75, 2.0), 600
    items = Augmented(Ramps(), training_transform(crop, scale, 0, True, 0.0, MEAN, STD))
    one = crops(items[seed, 0][0] for seed in range(number))
    keys = [(10_000 + seed, 0) for seed in range(number)]
    other = crops(held.batch(keys, crop, scale, 0, True, MEAN, STD)[0])
    for column in range(3):
        assert stats.ks_2samp(one[:, column], other[:, column]).pvalue > 0.01, column
    assert one[:, 0].min() < 0.8 and one[:, 0].max() > 1.9  # the ramps do tell the scale
    assert abs(other[:, 3].mean() - 0.5) < 0.07
    assert abs(np.corrcoef(other[:, 0], other[:, 3])[0, 1]) < 0.12  # mirrored whatever the scale


def test_where_the_image_lies_in_a_larger_crop_has_the_same_chances(held):
    crop, number = (80, 120), 400
    items = Augmented(Ramps(), training_transform(crop, (1.0, 1.0), 0, False, 0.0, MEAN, STD))
    one = [np.argwhere(items[seed, 0][1].numpy() != 255)[0] for seed in range(number)]
    masks = held.batch(
        [(seed, 0) for seed in range(number)], crop, (1.0, 1.0), 0, False, MEAN, STD
    )[1]
    other = [np.argwhere(mask.numpy() != 255)[0] for mask in masks]
    for axis, most in enumerate((20, 30)):
        a, b = ([place[axis] for place in places] for places in (one, other))
        assert stats.ks_2samp(a, b).pvalue > 0.01 and (min(b), max(b)) == (0, most)


def test_the_least_side_is_kept():
    scaled = [draw(seed, (HEIGHT, WIDTH), (32, 32), (0.1, 0.2), 45, False)[0] for seed in range(20)]
    assert set(map(tuple, scaled)) == {(45, 68)}


def test_the_same_key_gives_the_same_pair(held):
    a, b = (
        held.batch([(5, 0), (6, 1)], (32, 40), (0.5, 2.0), 0, True, MEAN, STD) for _ in range(2)
    )
    assert all(torch.equal(x, y) for x, y in zip(a, b))
    alone = held.batch([(6, 1)], (32, 40), (0.5, 2.0), 0, True, MEAN, STD)
    assert torch.equal(alone[0][0], a[0][1]) and torch.equal(alone[1][0], a[1][1])


def test_images_of_several_sizes_are_refused():
    class Odd(Ramps):
        def __getitem__(self, index):
            return tuple(x[: 50 + 10 * index] for x in super().__getitem__(index))

    with pytest.raises(InputError, match="b is 90x60, a 90x50"):
        OnDevice(Odd(), torch.device("cpu"))
