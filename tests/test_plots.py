"""Pictures hold the numbers that they were given."""

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot as plt
import numpy as np
import pytest

from rflw import plots
from rflw.data.labels import LABELS
from rflw_study import figures
from rflw_study.statistics import mean_interval

MASK = np.array([[0, 1], [18, 13]], dtype=np.uint8)


@pytest.fixture
def axis():
    figure, axis = plt.subplots()
    yield axis
    plt.close(figure)


def test_submissions_of_cityscapes_are_label_ids():
    # the benchmark's own table: road 7, sidewalk 8, bicycle 33, car 26
    image = plots.submission(MASK, LABELS["cityscapes"])
    assert image.mode == "L" and np.array(image).tolist() == [[7, 8], [33, 26]]


def test_submissions_of_voc_are_palette_images():
    image = plots.submission(MASK, LABELS["voc"])
    assert image.mode == "P" and np.array(image).tolist() == MASK.tolist()
    assert image.convert("RGB").getpixel((1, 0)) == (
        128,
        0,
        0,
    )  # aeroplane is dark red in VOC's palette


def test_seed_points(axis):
    groups = {"a": [1.0, 3.0], "b": [5.0]}
    figures.seed_points(
        groups, {name: mean_interval(values) for name, values in groups.items()}, axis, "mIoU"
    )
    drawn = [scatter.get_offsets().tolist() for scatter in axis.collections]
    assert drawn == [[[1, 0], [3, 0]], [[5, 1]]]
    means = [
        line.get_xdata()[0] for line in axis.lines if line.get_xdata()[0] == line.get_xdata()[1]
    ]
    assert means == [2, 5] and len(axis.lines) == 3  # one value has no interval
    assert [label.get_text() for label in axis.get_yticklabels()] == ["a", "b"]


def test_differences(axis):
    figures.differences({"a": mean_interval([1.0, 2.0, 3.0])}, axis, "points", ["#123456"])
    zero, interval = axis.lines
    assert interval.get_color() == "#123456"
    assert list(zero.get_xdata()) == [0, 0]
    assert list(interval.get_xdata()) == pytest.approx(
        [2 - 4.3027 / 3**0.5, 2 + 4.3027 / 3**0.5], abs=1e-4
    )


def test_curves_leave_out_epochs_without_a_score(axis):
    record = {"curve": [{"loss": 3}, {"loss": 2, "miou": 0.5}, {"loss": 1, "miou": 0.75}]}
    figures.curves({"a": [record, record]}, axis)
    assert [line.get_xydata().tolist() for line in axis.lines] == [[[2, 50], [3, 75]]] * 2
    assert len(axis.get_legend().get_texts()) == 1


def test_dumbbells(axis):
    figures.dumbbells({"a": (1.0, 3.0), "b": (5.0, 4.0)}, axis, "ratio", ("before", "after"))
    assert [scatter.get_offsets().tolist() for scatter in axis.collections] == [
        [[1, 0], [5, 1]],
        [[3, 0], [4, 1]],
    ]
    assert [list(line.get_xdata()) for line in axis.lines] == [[1, 3], [5, 4]]
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["before", "after"]


# ---------------------------------------------------------------- colours and regions


def seen_by(colours, matrix) -> np.ndarray:
    """sRGB colours as somebody without one kind of cone sees them, in CIELAB."""
    linear = np.array(colours) / 255
    linear = np.where(linear <= 0.04045, linear / 12.92, ((linear + 0.055) / 1.055) ** 2.4)
    xyz = (
        np.clip(linear @ np.array(matrix).T, 0, 1)
        @ np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]).T
    )
    f = xyz / [0.9505, 1, 1.089]
    f = np.where(f > 0.008856, np.cbrt(f), 7.787 * f + 16 / 116)
    return np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], 1)


def closest(colours, matrix) -> float:
    lab = seen_by(colours, matrix)
    return min(np.linalg.norm(a - b) for i, a in enumerate(lab) for b in lab[:i])


# Machado, Oliveira and Fernandes (2009), all of a cone missing
BLINDNESS = {
    "red": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "green": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "blue": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}


@pytest.mark.parametrize("kind", BLINDNESS)
def test_safe_colours_are_far_apart_to_the_colour_blind(kind):
    camvid = LABELS["camvid"]
    safe = plots.safe(camvid)
    assert safe.classes == camvid.classes and len(set(safe.colours)) == 11
    assert (
        closest([*safe.colours, (255, 255, 255)], BLINDNESS[kind])
        > 28
        > closest(camvid.colours, BLINDNESS[kind])
    )
    assert closest([*plots.SAFE, (255, 255, 255)], BLINDNESS[kind]) > 21
    assert closest([*plots.DIFFERENCE.values()], BLINDNESS[kind]) > 26
    with pytest.raises(plots.InputError, match="21 classes: there are 15"):
        plots.safe(LABELS["voc"])


def test_difference_says_who_is_right():
    truth = np.array([[0, 0, 0, 0, 255]], dtype=np.uint8)
    first, second = (
        np.array([[0, 0, 1, 1, 0]], dtype=np.uint8),
        np.array([[0, 1, 0, 2, 0]], dtype=np.uint8),
    )
    expected = [*plots.DIFFERENCE.values(), (255, 255, 255)]
    assert plots.difference(first, second, truth)[0].tolist() == [
        list(colour) for colour in expected
    ]


def test_region_darkens_what_does_not_activate():
    image = np.full((1, 3, 3), 200, np.uint8)
    assert figures.region(image, np.array([[1.0, 0.2, 0.21]]), 0.2)[0, :, 0].tolist() == [
        200,
        70,
        200,
    ]


def test_field_is_drawn_in_pixels_of_the_image(axis):
    figures.field(axis, np.eye(4), side=6.0, cell=3)
    assert axis.images[0].get_extent() == [-6, 6, 6, -6] and axis.get_xlim() == (-6, 6)
    assert sorted(set(axis.lines[0].get_xdata())) == [-3, 3]


def test_field_grid_has_a_row_a_layer():
    image, relative = np.full((4, 4, 3), 100, np.uint8), np.eye(4)
    figure = figures.field_grid(
        [
            ("a", np.eye(8), 3.0, 1, [(image, relative)] * 2),
            ("b", np.eye(8), float("nan"), 1, [(image, relative)]),
        ]
    )
    assert (
        len(figure.axes) == 6 and figure.axes[0].get_ylabel() == "a" and not figure.axes[3].lines
    )  # no size, no square
    assert figure.axes[1].images[0].get_array()[0, 1, 0] == 35
    plt.close(figure)


def test_prediction_grid_takes_more_for_its_legend():
    mask = np.zeros((4, 6), np.uint8)
    figure = plots.prediction_grid(
        [(np.zeros((4, 6, 3), np.uint8), mask, mask)], LABELS["embedded"], more=plots.DIFFERENCE
    )
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        *LABELS["embedded"].classes,
        *plots.DIFFERENCE,
    ]
    plt.close(figure)


def test_ratios_have_a_ring_where_the_paper_has_one(axis):
    figures.ratios({"a": mean_interval([1.0, 2.0, 3.0]), "b": None}, axis, "times", {"b": 2.77})
    one, interval = axis.lines
    assert list(one.get_xdata()) == [1, 1] and list(interval.get_ydata()) == [0, 0]
    drawn = [scatter.get_offsets().tolist() for scatter in axis.collections]
    assert [points for points in drawn if points] == [[[2, 0]], [[2.77, 1]]]


def test_stacked_bars_end_at_their_sums(axis):
    figures.stacked({"a": {"decode": 2.0, "network": 5.0}, "b": {"network": 4.0}}, axis, "ms")
    ends = [bar.get_x() + bar.get_width() for bar in axis.patches]
    assert ends == [2, 0, 7, 4] and [text.get_text() for text in axis.texts] == ["7", "4"]


def test_a_roofline_bends_where_arithmetic_takes_over(axis):
    figures.roofline({"net": [(2.0, 30.0)]}, axis, {"fp32": 100.0, "bf16": 400.0}, 10.0)
    for line, peak in zip(axis.lines, (100, 400), strict=True):
        x, y = line.get_xdata(), line.get_ydata()
        assert y == pytest.approx(np.minimum(peak, 10 * x)) and x[-1] > 40 and x[0] < 2
    assert [scatter.get_offsets().tolist() for scatter in axis.collections] == [[[2, 30]]]
