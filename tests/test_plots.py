"""Pictures hold the numbers that they were given."""

from dataclasses import replace

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot as plt
import numpy as np
import pytest

from rflw import plots
from rflw.data.labels import LABELS

MASK = np.array([[0, 1], [18, 13]], dtype=np.uint8)


def test_submissions_are_what_the_servers_take():
    # the benchmark's own table: road 7, sidewalk 8, bicycle 33, car 26
    image = plots.submission(MASK, LABELS["cityscapes"])
    assert image.mode == "L" and np.array(image).tolist() == [[7, 8], [33, 26]]
    image = plots.submission(MASK, LABELS["voc"])
    assert image.mode == "P" and np.array(image).tolist() == MASK.tolist()
    aeroplane = image.convert("RGB").getpixel((1, 0))  # dark red in VOC's palette
    assert aeroplane == (128, 0, 0)


# ---------------------------------------------------------------- colours and regions


def seen_by(colours, matrix) -> np.ndarray:
    """sRGB colours as somebody without one kind of cone sees them, in CIELAB."""
    linear = np.array(colours) / 255
    linear = np.where(linear <= 0.04045, linear / 12.92, ((linear + 0.055) / 1.055) ** 2.4)
    seen = np.clip(linear @ np.reshape(matrix, (3, 3)).T, 0, 1)
    to_xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    xyz = seen @ np.array(to_xyz).T
    f = xyz / [0.9505, 1, 1.089]
    f = np.where(f > 0.008856, np.cbrt(f), 7.787 * f + 16 / 116)
    return np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], 1)


def closest(colours, matrix) -> float:
    lab = seen_by(colours, matrix)
    return min(np.linalg.norm(a - b) for i, a in enumerate(lab) for b in lab[:i])


# Machado, Oliveira and Fernandes (2009), all of a cone missing
RED = "0.152286 1.052583 -0.204868 0.114503 0.786281 0.099216 -0.003882 -0.048116 1.051998"
GREEN = "0.367322 0.860646 -0.227968 0.280085 0.672501 0.047413 -0.011820 0.042940 0.968881"
BLUE = "1.255528 -0.076749 -0.178779 -0.078411 0.930809 0.147602 0.004733 0.691367 0.303900"


@pytest.mark.parametrize("cone", [RED, GREEN, BLUE])
def test_safe_colours_are_far_apart_to_the_colour_blind(cone):
    matrix, white, camvid = [float(n) for n in cone.split()], (255, 255, 255), LABELS["camvid"]
    safe = plots.safe(camvid)
    assert safe.classes == camvid.classes and len(set(safe.colours)) == 11
    assert closest([*safe.colours, white], matrix) > 28 > closest(camvid.colours, matrix)
    assert closest([*plots.SAFE, white], matrix) > 21
    assert closest([*plots.DIFFERENCE.values()], matrix) > 26
    with pytest.raises(plots.InputError, match="21 classes: there are 15"):
        plots.safe(LABELS["voc"])


def legend(name: str) -> np.ndarray:
    labels = replace(LABELS["camvid"], classes=(name, *LABELS["camvid"].classes[1:]))
    mask = np.zeros((120, 240), np.uint8)
    return np.array(plots.overlay(np.zeros((120, 240, 3), np.uint8), mask, labels))


@pytest.mark.parametrize("name", ["Straße", "дорога", "δρόμος", "طريق"])
def test_legends_in_other_scripts(name):
    """Pillow's own font, of ASCII alone, would draw the same box for every other character."""
    assert not np.array_equal(legend(name), legend(name.replace(name[-2], name[1])))
    assert plots.font_of(name).endswith(".ttf") and plots.font_of("road") == ""


def test_a_class_that_no_font_can_write_is_named_by_its_number():
    name = "\U000e0041"  # a tag character, which has no shape
    assert plots.font_of(name) is None and np.array_equal(legend(name), legend("0"))


def test_an_overlay_is_the_image_tinted():
    image = np.full((40, 40, 3), 200, np.uint8)
    mask = np.full((40, 40), 255, np.uint8)
    mask[:20] = 1
    picture = np.array(plots.overlay(image, mask, LABELS["camvid"]))
    colour = np.array(LABELS["camvid"].colours[1])
    assert abs(picture[0, 39] - (0.45 * 200 + 0.55 * colour)).max() <= 1
    assert picture[30, 39].tolist() == [200] * 3


def test_difference_says_who_is_right():
    rows = [[0, 0, 1, 1, 0]], [[0, 1, 0, 2, 0]], [[0, 0, 0, 0, 255]]
    first, second, truth = np.array(rows, np.uint8)
    expected = [*plots.DIFFERENCE.values(), (255, 255, 255)]
    assert [*map(tuple, plots.difference(first, second, truth)[0].tolist())] == expected


def test_prediction_grid_takes_more_for_its_legend():
    mask, labels = np.zeros((4, 6), np.uint8), LABELS["embedded"]
    rows = [(np.zeros((4, 6, 3), np.uint8), mask, mask)]
    figure = plots.prediction_grid(rows, labels, more=plots.DIFFERENCE)
    written = [text.get_text() for text in figure.legends[0].get_texts()]
    assert written == [*labels.classes, *plots.DIFFERENCE]
    plt.close(figure)
