"""Pictures hold the numbers that they were given."""
import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot as plt
import numpy as np
import pytest

from rflw import plots
from rflw.analysis.statistics import mean_interval
from rflw.datasets.labels import LABELS

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
    assert image.convert("RGB").getpixel((1, 0)) == (128, 0, 0)  # aeroplane is dark red in VOC's palette


def test_seed_points(axis):
    groups = {"a": [1.0, 3.0], "b": [5.0]}
    plots.seed_points(groups, {name: mean_interval(values) for name, values in groups.items()}, axis, "mIoU")
    drawn = [scatter.get_offsets().tolist() for scatter in axis.collections]
    assert drawn == [[[1, 0], [3, 0]], [[5, 1]]]
    means = [line.get_xdata()[0] for line in axis.lines if line.get_xdata()[0] == line.get_xdata()[1]]
    assert means == [2, 5] and len(axis.lines) == 3  # one value has no interval
    assert [label.get_text() for label in axis.get_yticklabels()] == ["a", "b"]


def test_differences(axis):
    plots.differences({"a": mean_interval([1.0, 2.0, 3.0])}, axis, "points")
    zero, interval = axis.lines
    assert list(zero.get_xdata()) == [0, 0]
    assert list(interval.get_xdata()) == pytest.approx([2 - 4.3027 / 3**0.5, 2 + 4.3027 / 3**0.5], abs=1e-4)


def test_curves_leave_out_epochs_without_a_score(axis):
    record = {"curve": [{"loss": 3}, {"loss": 2, "miou": 0.5}, {"loss": 1, "miou": 0.75}]}
    plots.curves({"a": [record, record]}, axis)
    assert [line.get_xydata().tolist() for line in axis.lines] == [[[2, 50], [3, 75]]] * 2
    assert len(axis.get_legend().get_texts()) == 1
