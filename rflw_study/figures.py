"""The look of the study's figures and tables: seaborn where it has the plot, else matplotlib."""

from collections.abc import Iterable

import numpy as np

from rflw.data.labels import Labels

# Okabe and Ito's colours, which colour-blind readers can tell apart
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_DECODERS = ("LW", "LW with RCU", "LW without CRP", "original", "original without RCU")
_DECODERS += ("LW, two coarsest levels",)
WIDTH = 5.0  # inches: narrow, so that text is large enough on a phone
LONG = 24  # letters: longer names of rows stand above their rows


def use_style() -> None:
    """Give all figures and tables of a notebook one look."""
    from IPython import get_ipython
    import pandas as pd
    import seaborn as sns

    look = {"figure.dpi": 150, "legend.frameon": False}
    spines = {"axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": "0.4"}
    lines = {"grid.color": "0.9", "xtick.bottom": True, "xtick.color": "0.2", "ytick.color": "0.2"}
    sns.set_theme("paper", "whitegrid", sns.color_palette(COLOURS), rc=look | spines | lines)
    if shell := get_ipython():
        shell.display_formatter.formatters["text/html"].for_type(pd.DataFrame, table)


def table(frame) -> str:
    """A DataFrame as HTML: one row of headings, whole texts, the index as columns.

    What all rows share, the name of the columns, stands above.
    """
    import pandas as pd

    shared = frame.columns.name
    frame = frame.set_axis([*frame.columns], axis=1)
    if not isinstance(frame.index, pd.RangeIndex):
        frame = frame.reset_index(names=[name or "" for name in frame.index.names])
    with pd.option_context("display.max_colwidth", None):
        html = frame.to_html(index=False, border=0, na_rep="")
    html = html.replace('class="dataframe"', 'class="table data"')
    return f"<p>{shared}</p>\n{html}" if shared else html


def panels(*heights: float) -> list:
    """Axes one below the other, of these heights in inches."""
    from matplotlib import pyplot as plt

    size = {"figsize": (WIDTH, sum(heights)), "height_ratios": heights}
    return plt.subplots(len(heights), 1, squeeze=False, layout="constrained", **size)[1][:, 0]


def row_panels(*groups) -> list:
    """Axes one below the other, each as high as the rows with these names need."""
    return panels(*(0.8 + len(names) * (0.42 if _long(names) else 0.28) for names in groups))


def training_curve(record: dict):
    """A figure of loss and validation mIoU by epoch, from a training record."""
    import pandas as pd
    import seaborn as sns

    upper, lower = panels(2.0, 2.0)
    frame = pd.DataFrame(record["curve"])
    epochs, scores = frame.index + 1, 100 * frame["miou"]
    sns.lineplot(x=epochs, y=frame["loss"], color=COLOURS[0], marker=".", ax=upper)
    sns.lineplot(x=epochs, y=scores, color=COLOURS[1], marker="o", ax=lower)
    upper.set(xlabel="epoch", ylabel="training loss", ylim=(0, None))
    lower.set(xlabel="epoch", ylabel="validation mIoU, %", xlim=upper.get_xlim(), ylim=(0, 100))
    return upper.figure


def class_bars(shares: dict, labels: Labels, axis, label: str, form: str = "%.1f") -> None:
    """Bars of a percentage by class, largest first, in the classes' colours; None is left out."""
    import seaborn as sns

    values = sorted(((v, name) for name, v in shares.items() if v is not None), reverse=True)
    values, names = zip(*values)
    palette = {name: np.array(rgb) / 255 for name, rgb in zip(labels.classes, labels.colours)}
    look = {"palette": palette, "saturation": 1, "edgecolor": "0.3", "linewidth": 0.6}
    sns.barplot(x=values, y=names, hue=names, legend=False, ax=axis, **look)
    for bars in axis.containers:
        axis.bar_label(bars, fmt=form, padding=3, fontsize="small")
    axis.margins(x=0.12)
    rows(axis, names, label)


# ------------------------------------------------------------ rows of values


def seed_points(groups: dict[str, list[float]], intervals: dict, axis, label: str) -> None:
    """A row for each group: its values as points, their mean as a bar, its interval as a line."""
    import seaborn as sns

    marks = [(value, name) for name, values in groups.items() for value in values]
    values, names = zip(*marks)
    look = {"palette": palette(groups), "legend": False, "order": list(groups), "ax": axis}
    points = {"jitter": False, "size": 5, "edgecolor": "white", "linewidth": 0.6, "zorder": 3}
    sns.stripplot(x=values, y=names, hue=names, **points, **look)
    look = {"linewidth": 5, "alpha": 0.3, "marker": "|", "markersize": 11}
    _intervals(intervals, axis, palette(intervals), **look)
    rows(axis, groups, label)


def differences(intervals: dict, axis, label: str, colours: dict | None = None) -> None:
    """A row for each difference: its mean as a point, its interval as a line, against zero."""
    colours = colours or dict.fromkeys(intervals, "0.25")
    axis.axvline(0, color="0.5", linewidth=1)
    _intervals(intervals, axis, colours, linewidth=2, marker="o", markersize=6)
    rows(axis, intervals, label)


def ratios(
    intervals: dict, axis, label: str, marks: dict | None = None, word: str = "paper"
) -> None:
    """A row for each ratio: its value as a point, its interval as a line, against one.

    Args:
        intervals: {name: Interval, or None for what was not measured}.
        marks: Values that get a ring.
        word: What the rings are, for the legend.
    """
    axis.axvline(1, color="0.5", linewidth=1)
    look = {"linewidth": 5, "alpha": 0.3, "marker": "o", "markersize": 6}
    _intervals(intervals, axis, dict.fromkeys(intervals, COLOURS[0]), **look)
    if marks:
        points = [(marks[name], row) for row, name in enumerate(intervals) if name in marks]
        ring = {"s": 60, "facecolor": "none", "edgecolor": COLOURS[1], "linewidth": 1.6}
        axis.scatter(*np.reshape(points, (-1, 2)).T, label=word, zorder=2, **ring)
        axis.scatter([], [], s=36, color=COLOURS[0], label="here")
        legend(axis, 2)
    rows(axis, intervals, label)


def _intervals(intervals: dict, axis, colours, linewidth, marker, markersize, alpha=1.0) -> None:
    """Means and intervals by row: seaborn computes its own, and these are computed already."""
    for row, (name, interval) in enumerate(intervals.items()):
        if interval is None or interval.n < 2 and marker == "|":  # the mean of one is the one
            continue
        look = {"color": colours[name], "linewidth": linewidth, "alpha": alpha}
        if interval.n > 1:
            axis.hlines(row, interval.low, interval.high, **look)
        look = {"marker": marker, "markersize": markersize, "markeredgewidth": 2, "zorder": 3}
        axis.plot(interval.mean, row, color=colours[name], **look)


def dumbbells(
    pairs: dict[str, tuple[float, float]], axis, label: str, words=("untrained", "trained")
) -> None:
    """A row for each pair of values: a ring, a disc, and the line between them."""
    firsts, seconds = zip(*pairs.values())
    axis.hlines(range(len(pairs)), firsts, seconds, color="0.6", linewidth=1.5, zorder=1)
    for values, word, face in zip((firsts, seconds), words, ("white", COLOURS[0])):
        look = {"s": 30, "facecolor": face, "edgecolor": COLOURS[0], "linewidth": 1.2}
        axis.scatter(values, range(len(values)), zorder=2, label=word, **look)
    rows(axis, pairs, label)
    legend(axis, 2)


def stacked(
    bars: dict[str, dict[str, float]], axis, label: str, colours=COLOURS, columns: int = 2
) -> None:
    """A bar for each row, made of its parts one after another, with their sum at its end."""
    import pandas as pd

    frame = pd.DataFrame.from_dict(bars, orient="index").fillna(0.0)
    look = {"width": 0.4, "color": colours[: frame.shape[1]], "lw": 0, "legend": False}
    frame.plot.barh(stacked=True, ax=axis, **look)
    sums = [f"{total:.0f}" for total in frame.sum(axis=1)]
    axis.bar_label(axis.containers[-1], sums, padding=4, fontsize="small")
    rows(axis, bars, label)
    axis.margins(x=0.12)
    if frame.shape[1] > 1:
        legend(axis, columns)


def palette(names: Iterable[str]) -> dict:
    """A colour for each name; a decoder has the same one in all figures."""
    fixed = dict(zip(_DECODERS, COLOURS))
    return {name: fixed.get(name, COLOURS[row % len(COLOURS)]) for row, name in enumerate(names)}


def legend(axis, columns: int) -> None:
    """A legend above an axis."""
    axis.legend(ncols=columns, loc="lower center", bbox_to_anchor=(0.5, 1), fontsize="small")


def _long(names) -> bool:
    return max(map(len, names), default=0) > LONG


def rows(axis, names, label: str) -> None:
    """Name the rows of an axis, the first on top; long names stand above their rows."""
    names = list(names)
    axis.set(xlabel=label, ylabel="", ylim=(len(names) - 0.5, -0.5))
    axis.grid(axis="y", visible=False)
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.tick_params(axis="y", length=0)
    axis.set_yticks(range(len(names)), [] if _long(names) else names)
    if _long(names):
        axis.set_ylim(len(names) - 0.6, -0.8)
        for row, name in enumerate(names):
            place = {"transform": axis.get_yaxis_transform(), "va": "center", "fontsize": "small"}
            place["bbox"] = {"facecolor": "white", "edgecolor": "none", "pad": 1}
            axis.text(0, row - 0.36, name, zorder=5, **place)


# ------------------------------------------------------------ curves


def curves(
    runs: dict[str, list[dict]],
    axis,
    key: str = "miou",
    factor: float = 100.0,
    label: str = "validation mIoU, %",
) -> None:
    """A thin line for each training record over its epochs, in its group's colour.

    Args:
        runs: {group: training records}.
        key: A value of their curves, times `factor`; epochs without it are left out.
    """
    import pandas as pd
    import seaborn as sns

    points = [
        {"group": name, "run": run, "epoch": epoch, key: factor * row[key]}
        for name, records in runs.items()
        for run, record in enumerate(records)
        for epoch, row in enumerate(record["curve"], 1)
        if row.get(key) is not None
    ]
    look = {"units": "run", "estimator": None, "linewidth": 1.1, "alpha": 0.8}
    data = pd.DataFrame(points, columns=["group", "run", "epoch", key])
    sns.lineplot(data, x="epoch", y=key, hue="group", palette=palette(runs), ax=axis, **look)
    axis.set(xlabel="epoch", ylabel=label)
    axis.xaxis.get_major_locator().set_params(integer=True)
    legend(axis, 2)


def roofline_plot(
    points: dict[str, list[tuple[float, float]]], axis, peaks: dict[str, float], copy_gb_s: float
) -> None:
    """What a device could do at best, and the measured rates, both in logarithms.

    Multiply-adds a second over multiply-adds a byte (Williams, Waterman and Patterson, 2009).

    Args:
        points: {group: [(multiply-adds a byte, 10^9 multiply-adds a second)]}.
        peaks: {precision: 10^9 multiply-adds a second}.
        copy_gb_s: 10^9 bytes a second.
    """
    import pandas as pd
    import seaborn as sns

    rows = [(name, *point) for name, group in points.items() for point in group]
    data = pd.DataFrame(rows, columns=["group", "x", "y"])
    ridges = [peak / copy_gb_s for peak in peaks.values()]
    ends = 0.5 * min([*ridges, *data["x"]]), 2 * max([*ridges, *data["x"]])
    x = np.geomspace(*ends, 200)
    for (name, peak), dash in zip(peaks.items(), ("-", "--", ":")):
        look = {"color": "0.35", "linestyle": dash, "linewidth": 1.3}
        axis.plot(x, np.minimum(peak, x * copy_gb_s), label=f"peak, {name}", **look)
    look = {"palette": palette(points), "s": 30, "zorder": 3}
    sns.scatterplot(data, x="x", y="y", hue="group", style="group", ax=axis, **look)
    names = {"xlabel": "multiply-adds a byte of the plain graph"}
    axis.set(xscale="log", yscale="log", ylabel="10⁹ multiply-adds a second", **names)
    legend(axis, 2)


# ------------------------------------------------------------ receptive fields


def region(image: np.ndarray, relative: np.ndarray, cut: float = 0.2) -> np.ndarray:
    """An image (H, W, 3) uint8, darkened where the relative activation (H, W) is at most `cut`."""
    return np.where((relative > cut)[..., None], image, 0.35 * image).round().astype(np.uint8)


def field(axis, values: np.ndarray, side: float, cell: int = 1) -> None:
    """A receptive field around its middle, in pixels of the image, with the square of its size.

    Colours go with the square root, since fields fall off steeply.

    Args:
        values: (H, W), the largest 1.
        side: Of the square, nan for none.
        cell: Pixels of the image that a step in the field is.
    """
    from matplotlib.colors import PowerNorm

    h, w = (n * cell / 2 for n in values.shape)
    look = {"cmap": "magma", "extent": (-w, w, h, -h), "interpolation": "nearest"}
    axis.imshow(values, norm=PowerNorm(0.5, 0, 1), **look)
    if not np.isnan(side):
        corners = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1), (-1, -1)]) * side / 2
        axis.plot(*corners.T, color="white", linewidth=1)
    axis.set(xlim=(-w, w), ylim=(h, -h))
    axis.tick_params(labelsize="small")
    axis.grid(False)


def field_grid(rows: list[tuple], cut: float = 0.2, width: float = 9.0):
    """A figure of fields, each with the images that activate a unit most.

    Args:
        rows: (words, field (H, W), its side, its cell, [(image, relative activation)]) each.
    """
    from matplotlib import pyplot as plt

    columns = 1 + max(len(row[4]) for row in rows)
    size = width, len(rows) * width / columns * 0.82
    look = {"squeeze": False, "layout": "constrained", "figsize": size}
    figure, axes = plt.subplots(len(rows), columns, **look)
    for (first, *others), (words, values, side, cell, pictures) in zip(axes, rows):
        field(first, values, side, cell)
        first.set_ylabel(words, fontsize="small")
        for axis in others:
            axis.axis("off")
        for axis, (image, relative) in zip(others, pictures):
            axis.imshow(region(image, relative, cut))
            if (relative > cut).any():
                axis.contour(relative, levels=[cut], colors="white", linewidths=0.8)
    return figure
