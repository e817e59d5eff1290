"""Figures of the study hold the numbers that they were given."""

import html
import re

import matplotlib

matplotlib.use("Agg")

from matplotlib import colors
from matplotlib import pyplot as plt
import numpy as np
import pandas as pd
import pytest

from rflw.data.labels import LABELS
from rflw.trace import Step
from rflw_study import diagrams, figures
from rflw_study.statistics import mean_interval


@pytest.fixture
def axis():
    figure, axis = plt.subplots()
    yield axis
    plt.close(figure)


def points(axis) -> list:
    """Of each group of points that has some, their places."""
    groups = [c.get_offsets().tolist() for c in axis.collections if hasattr(c, "get_sizes")]
    return [group for group in groups if group and len(group[0]) == 2]


def segments(axis) -> list:
    """Horizontal lines: (from, to, row)."""
    lines = [c.get_segments() for c in axis.collections if hasattr(c, "get_segments")]
    return [(a[0], b[0], a[1]) for group in lines for a, b in group]


def words(axis) -> list[str]:
    return [text.get_text() for text in axis.get_legend().get_texts()]


def test_seed_points(axis):
    groups = {"a": [1.0, 3.0], "b": [5.0]}
    means = {name: mean_interval(values) for name, values in groups.items()}
    figures.seed_points(groups, means, axis, "mIoU")
    assert sorted(sum(points(axis), [])) == [[1, 0], [3, 0], [5, 1]]
    marks = [line.get_xydata().tolist() for line in axis.lines if line.get_xydata().size]
    assert marks == [[[2, 0]]]  # the mean of one value is that value
    ((low, high, row),) = segments(axis)  # one value has no interval
    assert (low, high, row) == (means["a"].low, means["a"].high, 0)
    assert [label.get_text() for label in axis.get_yticklabels()] == ["a", "b"]


def test_differences(axis):
    figures.differences({"a": mean_interval([1.0, 2.0, 3.0])}, axis, "points", {"a": "#123456"})
    zero, mean = axis.lines
    assert list(zero.get_xdata()) == [0, 0]
    assert mean.get_color() == "#123456" and list(mean.get_xdata()) == [2]
    half = 4.3027 / 3**0.5  # Student's t of two degrees of freedom
    assert segments(axis) == [pytest.approx((2 - half, 2 + half, 0), abs=1e-4)]


def test_ratios_have_a_ring_where_the_paper_has_one(axis):
    intervals = {"a": mean_interval([1.0, 2.0, 3.0]), "b": None}
    figures.ratios(intervals, axis, "times", {"b": 2.77})
    one, mean = axis.lines
    assert list(one.get_xdata()) == [1, 1] and mean.get_xydata().tolist() == [[2, 0]]
    rings = [c for c in axis.collections if c.get_label() == "paper"]
    assert rings[0].get_offsets().tolist() == [[2.77, 1]] and words(axis) == ["paper", "here"]


def test_dumbbells(axis):
    figures.dumbbells({"a": (1.0, 3.0), "b": (5.0, 4.0)}, axis, "ratio", ("before", "after"))
    assert points(axis) == [[[1, 0], [5, 1]], [[3, 0], [4, 1]]]  # rings, discs
    assert segments(axis) == [(1, 3, 0), (5, 4, 1)] and words(axis) == ["before", "after"]


def test_stacked_bars_end_at_their_sums(axis):
    figures.stacked({"a": {"decode": 2.0, "network": 5.0}, "b": {"network": 4.0}}, axis, "ms")
    ends = [bar.get_x() + bar.get_width() for bar in axis.patches]
    assert ends == [2, 0, 7, 4] and [text.get_text() for text in axis.texts] == ["7", "4"]
    assert words(axis) == ["decode", "network"]


def test_curves_leave_out_epochs_without_a_score(axis):
    record = {"curve": [{"loss": 3}, {"loss": 2, "miou": 0.5}, {"loss": 1, "miou": 0.75}]}
    figures.curves({"a": [record, record]}, axis)
    drawn = [line.get_xydata().tolist() for line in axis.lines if line.get_xydata().size]
    assert drawn == [[[2, 50], [3, 75]]] * 2 and words(axis) == ["a"]
    upper, lower = figures.training_curve(record).axes
    assert upper.lines[0].get_xydata().tolist() == [[1, 3], [2, 2], [3, 1]]
    assert lower.lines[0].get_xydata().tolist()[-2:] == [[2, 50], [3, 75]]
    plt.close(upper.figure)


def test_class_bars_are_sorted_and_in_their_colours(axis):
    labels = LABELS["embedded"]
    values = {name: 10.0 * k for k, name in enumerate(labels.classes)} | {labels.classes[1]: None}
    figures.class_bars(values, labels, axis, "IoU, %")
    names = [label.get_text() for label in axis.get_yticklabels()]
    assert names == [labels.classes[k] for k in (5, 4, 3, 2, 0)]
    bars = sorted(axis.patches, key=lambda bar: bar.get_y())
    assert [bar.get_width() for bar in bars] == pytest.approx([50, 40, 30, 20, 0])
    colour = np.array(labels.colours[5]) / 255
    assert colors.to_rgb(bars[0].get_facecolor()) == pytest.approx(colour)


def test_long_names_stand_above_their_rows():
    short, long = ["LW", "original"], ["LW, ResNet-50, 512x512, batch 1", "LW"]
    upper, lower = figures.row_panels(short, long)
    figures.rows(upper, short, "ms")
    figures.rows(lower, long, "ms")
    assert [label.get_text() for label in upper.get_yticklabels()] == short and not upper.texts
    assert [text.get_text() for text in lower.texts] == long
    assert [text.get_position()[1] for text in lower.texts] == pytest.approx([-0.36, 0.64])
    assert not any(label.get_text() for label in lower.get_yticklabels())
    plt.close(upper.figure)


def test_a_roofline_bends_where_arithmetic_takes_over(axis):
    figures.roofline_plot({"net": [(2.0, 30.0)]}, axis, {"fp32": 100.0, "bf16": 400.0}, 10.0)
    for line, peak in zip(axis.lines, (100, 400)):
        x, y = line.get_xdata(), line.get_ydata()
        assert y == pytest.approx(np.minimum(peak, 10 * x)) and x[-1] > 40 and x[0] < 2
    assert points(axis) == [[[2, 30]]]
    assert words(axis) == ["peak, fp32", "peak, bf16", "net"]


# ------------------------------------------------------------ fields and graphs


def test_field_grid_has_a_row_a_layer():
    pair = np.full((4, 4, 3), 100, np.uint8), np.eye(4)
    rows = [("a", np.eye(8), 3.0, 1, [pair] * 2), ("b", np.eye(8), float("nan"), 1, [pair])]
    figure = figures.field_grid(rows)
    assert len(figure.axes) == 6 and figure.axes[0].get_ylabel() == "a"
    assert figure.axes[0].lines and not figure.axes[3].lines  # no size, no square
    assert figure.axes[1].images[0].get_array()[:2, :2, 0].tolist() == [[100, 35], [35, 100]]
    assert figure.axes[0].images[0].get_extent() == [-4, 4, 4, -4]  # in pixels of the image
    assert sorted({*figure.axes[0].lines[0].get_xdata()}) == [-1.5, 1.5]
    plt.close(figure)


def test_a_block_goes_down_and_its_sum_comes_back(axis):
    steps = [
        Step("relu", "", (-1,), (1, 4, 8, 8)),
        Step("conv2d", "", (0,), (1, 4, 8, 8), kernel=3, channels=(4, 4)),
        Step("add", "", (-1, 1), (1, 4, 8, 8)),
    ]
    diagrams.block_graph(axis, steps)
    places = {text.get_text(): text.get_position() for text in axis.texts if text.get_text()}
    assert places["input"] == (0, 0) and places["ReLU"] == (1, 1)
    assert places["conv 3×3\n4 → 4"] == (1, 2) and places["+"] == (0, 2)
    assert "output" in places and len(axis.patches) >= 4
    (box,) = [p for p in axis.patches if colors.to_hex(p.get_facecolor()).upper() == "#E69F00"]
    assert box.get_y() + box.get_height() / 2 == pytest.approx(2)


def test_a_table_has_one_row_of_headings_and_whole_texts():
    long = "a text of more than fifty letters, which pandas itself would cut" * 2
    frame = pd.DataFrame({"x": [1.5, None], "<y>": [long, "b"]}, index=["first", "second"])
    frame.columns.name = "batch 1"
    assert figures.table(frame).startswith("<p>batch 1</p>")
    assert cells(frame) == [["", "x", "<y>"], ["first", "1.5", long], ["second", "", "b"]]
    assert cells(pd.DataFrame({"x": [7]})) == [["x"], ["7"]]


def cells(frame) -> list:
    lines = figures.table(frame).split("<tr")[1:]
    return [re.findall("<t[hd]>(.*?)</t[hd]>", html.unescape(line)) for line in lines]


def test_a_decoder_keeps_its_colour():
    names = ["original", "something else", "LW"]
    assert figures.palette(names)["LW"] == figures.palette(["LW"])["LW"] == figures.COLOURS[0]
    assert figures.palette(names)["something else"] == figures.COLOURS[1]
