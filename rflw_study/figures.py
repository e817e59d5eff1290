"""The figures of the study: seaborn where it has the plot, matplotlib for the rest."""

import numpy as np

from rflw.data.labels import Labels

# Okabe and Ito's colours, which colour-blind readers can tell apart
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


def style(axis) -> None:
    """The look of every diagram: a faint grid, and no frame above and right."""
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)


def training_curve(record: dict):
    """A figure of loss and validation mIoU by epoch, from a training record."""
    from matplotlib import pyplot as plt
    import pandas as pd
    import seaborn as sns

    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")
    frame = pd.DataFrame(record["curve"])
    epochs, scores = frame.index + 1, 100 * frame["miou"]
    sns.lineplot(x=epochs, y=frame["loss"], color=COLOURS[0], marker=".", ax=left)
    sns.lineplot(x=epochs, y=scores, color=COLOURS[1], marker="o", ax=right)
    left.set(xlabel="epoch", ylabel="training loss (cross-entropy)", ylim=(0, None))
    right.set(xlabel="epoch", ylabel="validation mIoU, %", xlim=left.get_xlim(), ylim=(0, 100))
    last = scores.last_valid_index()
    place = {"textcoords": "offset points", "xytext": (0, 7), "ha": "center"}
    right.annotate(f"{scores[last]:.1f}", (epochs[last], scores[last]), **place)
    style(left)
    style(right)
    return figure


def class_bars(iou: dict, labels: Labels):
    """A figure of IoU by class, best first, in the classes' colours; None is left out."""
    from matplotlib import pyplot as plt
    import seaborn as sns

    values = sorted(((100 * v, name) for name, v in iou.items() if v is not None), reverse=True)
    shares, names = zip(*values)
    palette = {name: np.array(rgb) / 255 for name, rgb in zip(labels.classes, labels.colours)}
    figure, axis = plt.subplots(figsize=(8, 0.3 * len(values) + 0.8), layout="constrained")
    look = {"palette": palette, "saturation": 1, "edgecolor": "0.3", "linewidth": 0.6}
    sns.barplot(x=shares, y=names, hue=names, legend=False, ax=axis, **look)
    for bars in axis.containers:
        axis.bar_label(bars, fmt="%.1f", padding=3, fontsize=9)
    axis.set(xlabel="IoU, %", ylabel="", xlim=(0, 105))
    axis.spines[["top", "right"]].set_visible(False)
    return figure


# ------------------------------------------------------------ rows of values


def seed_points(groups: dict[str, list[float]], intervals: dict, axis, label: str) -> None:
    """A row for each group: its values as points, their mean as a bar, its interval as a line."""
    import seaborn as sns

    rows = [(value, name) for name, values in groups.items() for value in values]
    values, names = zip(*rows)
    look = {"palette": _palette(groups), "legend": False, "order": list(groups), "ax": axis}
    _intervals(intervals, axis, COLOURS, linewidth=5, alpha=0.3, marker="|", markersize=11)
    points = {"jitter": False, "size": 5, "edgecolor": "white", "linewidth": 0.6, "zorder": 3}
    sns.stripplot(x=values, y=names, hue=names, **points, **look)
    _rows(axis, groups, label)


def differences(intervals: dict, axis, label: str, colours=COLOURS) -> None:
    """A row for each difference: its mean as a point, its interval as a line, against zero."""
    axis.axvline(0, color="0.5", linewidth=1)
    _intervals(intervals, axis, colours, linewidth=2, marker="o", markersize=6)
    _rows(axis, intervals, label)


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
    _intervals(intervals, axis, COLOURS[:1], **look)
    if marks:
        points = [(marks[name], row) for row, name in enumerate(intervals) if name in marks]
        ring = {"s": 60, "facecolor": "none", "edgecolor": COLOURS[1], "linewidth": 1.6}
        axis.scatter(*np.reshape(points, (-1, 2)).T, label=word, zorder=2, **ring)
        axis.scatter([], [], s=36, color=COLOURS[0], label="here")
        _legend(axis, 2)
    _rows(axis, intervals, label)


def _intervals(intervals: dict, axis, colours, linewidth, marker, markersize, alpha=1.0) -> None:
    """Means and intervals by row: seaborn computes its own, and these are computed already."""
    for row, interval in enumerate(intervals.values()):
        colour = colours[row % len(colours)]
        if interval is None:
            continue
        if interval.n > 1:
            axis.hlines(row, interval.low, interval.high, colour, linewidth=linewidth, alpha=alpha)
        look = {"marker": marker, "markersize": markersize, "markeredgewidth": 2, "zorder": 3}
        axis.plot(interval.mean, row, color=colour, **look)


def dumbbells(
    pairs: dict[str, tuple[float, float]], axis, label: str, words=("untrained", "trained")
) -> None:
    """A row for each pair of values: a ring, a disc, and the line between them."""
    firsts, seconds = zip(*pairs.values())
    axis.hlines(range(len(pairs)), firsts, seconds, color="0.6", linewidth=1.5, zorder=1)
    for values, word, face in zip((firsts, seconds), words, ("white", COLOURS[0])):
        look = {"s": 30, "facecolor": face, "edgecolor": COLOURS[0], "linewidth": 1.2}
        axis.scatter(values, range(len(values)), zorder=2, label=word, **look)
    _rows(axis, pairs, label)
    axis.legend(fontsize=8, frameon=False)


def stacked(rows: dict[str, dict[str, float]], axis, label: str) -> None:
    """A bar for each row, made of its parts one after another, with their sum at its end."""
    import pandas as pd

    frame = pd.DataFrame.from_dict(rows, orient="index").fillna(0.0)
    frame.plot.barh(stacked=True, width=0.62, color=COLOURS[: frame.shape[1]], ax=axis)
    sums = [f"{total:.0f}" for total in frame.sum(axis=1)]
    axis.bar_label(axis.containers[-1], sums, padding=4, fontsize=8)
    _rows(axis, rows, label)
    axis.margins(x=0.08)
    _legend(axis, frame.shape[1])


def _palette(names) -> dict:
    return {name: COLOURS[row % len(COLOURS)] for row, name in enumerate(names)}


def _legend(axis, columns: int) -> None:
    """Above the axis."""
    place = {"loc": "lower center", "bbox_to_anchor": (0.5, 1)}
    axis.legend(fontsize=8, frameon=False, ncols=columns, **place)


def _rows(axis, names, label: str) -> None:
    axis.set_yticks(range(len(names)), names)
    axis.set(xlabel=label, ylabel="", ylim=(len(names) - 0.5, -0.5))
    axis.grid(axis="x", alpha=0.3)
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.tick_params(axis="y", length=0)


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
    palette = _palette(runs)
    sns.lineplot(data, x="epoch", y=key, hue="group", palette=palette, ax=axis, **look)
    axis.set(xlabel="epoch", ylabel=label)
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.legend(fontsize=8, frameon=False)
    style(axis)


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
    look = {"palette": _palette(points), "s": 30, "zorder": 3}
    sns.scatterplot(data, x="x", y="y", hue="group", style="group", ax=axis, **look)
    names = {"xlabel": "multiply-adds a byte of the plain graph"}
    axis.set(xscale="log", yscale="log", ylabel="10⁹ multiply-adds a second", **names)
    style(axis)
    axis.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1.01, 0.5))


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
    axis.tick_params(labelsize=7)


def field_grid(rows: list[tuple], cut: float = 0.2, width: float = 9.0):
    """A figure of fields, each with the images that activate a unit most.

    Args:
        rows: (words, field (H, W), its side, its cell, [(image, relative activation)]) each.
    """
    from matplotlib import pyplot as plt

    columns = 1 + max(len(row[4]) for row in rows)
    size = width, len(rows) * width / columns * 0.82
    figure, axes = plt.subplots(
        len(rows), columns, squeeze=False, layout="constrained", figsize=size
    )
    for (first, *others), (words, values, side, cell, pictures) in zip(axes, rows):
        field(first, values, side, cell)
        first.set_ylabel(words, fontsize=8)
        for axis in others:
            axis.axis("off")
        for axis, (image, relative) in zip(others, pictures):
            axis.imshow(region(image, relative, cut))
            if (relative > cut).any():
                axis.contour(relative, levels=[cut], colors="white", linewidths=0.8)
    return figure


# ------------------------------------------------------------ graphs

OP_COLOURS = {
    "conv 3×3": "#E69F00",
    "conv 1×1": "#56B4E9",
    "max-pool 5×5": "#5DC3A2",
    "upsample": "#DBA0C1",
}
OP_NAMES = {
    "add": "+",
    "relu": "ReLU",
    "hardtanh": "ReLU6",
    "interpolate": "upsample",
    "conv2d": "conv",
    "max_pool2d": "max-pool",
}
ARROW = {"color": "0.25", "linewidth": 1, "shrinkA": 0, "shrinkB": 0, "mutation_scale": 8}


def graph(
    axis, steps, places: dict, texts: dict, colours: dict, box=(0.8, 0.6), fontsize=8.0
) -> None:
    """Boxes and arrows of a recorded graph (`rflw.trace`); a box of "+" is small.

    Args:
        places: Number of a step, below 0 for an input from outside -> (column, row), row 0 on top;
            texts and colours likewise.
    """
    from matplotlib.patches import Rectangle

    half = {i: (0.18 if texts[i] == "+" else box[0] / 2, box[1] / 2) for i in places}
    for i, (x, y) in places.items():
        w, h = half[i]
        look = {"facecolor": colours.get(i, "white"), "edgecolor": "0.25", "linewidth": 0.8}
        axis.add_patch(Rectangle((x - w, y - h), 2 * w, 2 * h, zorder=3, **look))
        look = {"ha": "center", "va": "center", "fontsize": fontsize, "linespacing": 1.15}
        axis.text(x, y, texts[i], zorder=4, **look)
    for i, step in enumerate(steps):
        for j in step.inputs:
            *bends, end = _route(places[j], places[i], half[j], half[i])
            axis.plot(*zip(*bends), color="0.25", linewidth=1, solid_capstyle="butt", zorder=2)
            axis.annotate("", end, bends[-1], zorder=2, arrowprops={"arrowstyle": "-|>", **ARROW})
    columns, rows = zip(*places.values())
    axis.set(
        xlim=(min(columns) - 0.55, max(columns) + 0.55), ylim=(max(rows) + 0.5, min(rows) - 0.5)
    )
    axis.axis("off")


def _route(start, end, half_start, half_end) -> list[tuple[float, float]]:
    """Corners of an arrow between two boxes.

    Straight, or sideways and then down, or up, sideways and up.
    """
    (xa, ya), (xb, yb) = start, end
    right, down = np.sign(xb - xa), np.sign(yb - ya)
    if not right:
        return [(xa, ya + down * half_start[1]), (xb, yb - down * half_end[1])]
    if not down:
        return [(xa + right * half_start[0], ya), (xb - right * half_end[0], yb)]
    if down > 0:
        return [(xa + right * half_start[0], ya), (xb, ya), (xb, yb - half_end[1])]
    return [(xa, ya - half_start[1]), (xa, ya - 0.5), (xb, ya - 0.5), (xb, yb + half_end[1])]


def block_graph(axis, steps, inputs=("input",)) -> None:
    """One block, operation by operation, top to bottom; summands come from right or left.

    Args:
        steps: A recorded block; none: the block does nothing.
        inputs: What to write on what comes from outside.
    """
    places = {-1 - i: (float(i), 0.0) for i in range(len(inputs))}
    texts, colours = dict(zip(places, inputs)), {}
    # where a branch leaves what goes straight on
    forks = {min(step.inputs) for step in steps if step.op == "add"}
    for i, step in enumerate(steps):
        sources = sorted((places[j] for j in step.inputs), key=lambda place: place[1])
        if step.op == "add":  # below the earliest of what it adds, beside the latest
            places[i] = sources[0][0], sources[-1][1]
        else:
            x, y = sources[-1]
            places[i] = x + (step.inputs[0] in forks and x == 0), y + 1
        name = OP_NAMES.get(step.op, step.op)
        name += f" {step.kernel}×{step.kernel}" if step.kernel else ""
        texts[i] = name + ("\n{} → {}".format(*step.channels) if step.channels else "")
        colours[i] = OP_COLOURS.get(name, "0.93" if step.op != "add" else "white")
    graph(axis, steps, places, texts, colours, box=(0.82, 0.66))
    x, y = places[len(steps) - 1]
    place = {"ha": "center", "va": "center", "fontsize": 8}
    arrow = {"arrowstyle": "<|-", **ARROW}
    axis.annotate("output", (x, y + 0.33), (x, y + 1), arrowprops=arrow, **place)
    axis.set(xlim=(-0.55, 1.55), ylim=(y + 1.4, -0.5))
