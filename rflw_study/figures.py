"""The figures of the study."""

import numpy as np

from rflw.data.labels import Labels


def region(image: np.ndarray, relative: np.ndarray, cut: float = 0.2) -> np.ndarray:
    """(H, W, 3) uint8 and a unit's activation relative to its largest, (H, W) -> the image, darkened where that is not above `cut`."""
    return np.where((relative > cut)[..., None], image, 0.35 * image).round().astype(np.uint8)


def training_curve(record: dict):
    """Loss and validation mIoU by epoch, from a training record."""
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")
    epochs = range(1, len(record["curve"]) + 1)
    left.plot(epochs, [row["loss"] for row in record["curve"]], color="#0072B2", marker=".")
    left.set(xlabel="epoch", ylabel="training loss (cross-entropy)", ylim=(0, None))
    measured = [(i, 100 * row["miou"]) for i, row in zip(epochs, record["curve"]) if "miou" in row]
    right.plot(*zip(*measured), color="#D55E00", marker="o")
    right.set(xlabel="epoch", ylabel="validation mIoU, %", xlim=left.get_xlim(), ylim=(0, 100))
    right.annotate(
        f"{measured[-1][1]:.1f}",
        measured[-1],
        textcoords="offset points",
        xytext=(0, 7),
        ha="center",
    )
    for axis in (left, right):
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    return figure


def class_bars(iou: dict, labels: Labels):
    """Bars of IoU by class, best first, in the classes' colours; a class without a value is left out."""
    import matplotlib.pyplot as plt

    values = sorted(((100 * v, name) for name, v in iou.items() if v is not None), reverse=True)
    colours = dict(zip(labels.classes, labels.colours))
    figure, axis = plt.subplots(figsize=(8, 0.3 * len(values) + 0.8), layout="constrained")
    bars = axis.barh(
        [name for _, name in values],
        [v for v, _ in values],
        edgecolor="0.3",
        linewidth=0.6,
        color=[np.array(colours[name]) / 255 for _, name in values],
    )
    axis.bar_label(bars, fmt="%.1f", padding=3, fontsize=9)
    axis.invert_yaxis()
    axis.set(xlabel="IoU, %", xlim=(0, 105))
    axis.spines[["top", "right"]].set_visible(False)
    return figure


# Okabe and Ito's colours, which colour-blind readers can tell apart
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


def seed_points(groups: dict[str, list[float]], intervals: dict, axis, label: str) -> None:
    """A row for each group on an axis: its values as points, their mean as a bar, its interval as a line where there is one."""
    for row, (name, values) in enumerate(groups.items()):
        colour, interval = COLOURS[row % len(COLOURS)], intervals[name]
        if interval.n > 1:
            axis.plot(
                [interval.low, interval.high],
                [row, row],
                color=colour,
                linewidth=5,
                alpha=0.3,
                solid_capstyle="butt",
            )
        axis.plot(
            [interval.mean, interval.mean], [row - 0.24, row + 0.24], color=colour, linewidth=2
        )
        axis.scatter(
            values,
            [row] * len(values),
            s=22,
            color=colour,
            edgecolor="white",
            linewidth=0.6,
            zorder=3,
        )
    _rows(axis, groups, label)


def differences(intervals: dict, axis, label: str, colours=COLOURS) -> None:
    """A row for each difference: its mean as a point, its interval as a line, against nought."""
    axis.axvline(0, color="0.5", linewidth=1)
    for row, interval in enumerate(intervals.values()):
        colour = colours[row % len(colours)]
        if interval.n > 1:
            axis.plot([interval.low, interval.high], [row, row], color=colour, linewidth=2)
        axis.scatter([interval.mean], [row], s=36, color=colour, zorder=3)
    _rows(axis, intervals, label)


def dumbbells(
    pairs: dict[str, tuple[float, float]], axis, label: str, words=("untrained", "trained")
) -> None:
    """A row for each pair of values: a ring, a disc, and the line between them."""
    for row, (first, second) in enumerate(pairs.values()):
        axis.plot([first, second], [row, row], color="0.6", linewidth=1.5, zorder=1)
    for values, word, face in zip(zip(*pairs.values()), words, ("white", COLOURS[0])):
        axis.scatter(
            values,
            range(len(values)),
            s=30,
            facecolor=face,
            edgecolor=COLOURS[0],
            linewidth=1.2,
            zorder=2,
            label=word,
        )
    _rows(axis, pairs, label)
    axis.legend(fontsize=8, frameon=False)


def _rows(axis, names, label: str) -> None:
    axis.set_yticks(range(len(names)), names)
    axis.set(xlabel=label, ylim=(len(names) - 0.5, -0.5))
    axis.grid(axis="x", alpha=0.3)
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.tick_params(axis="y", length=0)


def curves(
    runs: dict[str, list[dict]],
    axis,
    key: str = "miou",
    factor: float = 100.0,
    label: str = "validation mIoU, %",
) -> None:
    """{group: training records} -> a thin line for each run over its epochs, in its group's colour."""
    for (name, records), colour in zip(runs.items(), COLOURS):
        for number, record in enumerate(records):
            points = [
                (i, factor * row[key])
                for i, row in enumerate(record["curve"], 1)
                if row.get(key) is not None
            ]
            axis.plot(
                *zip(*points),
                color=colour,
                linewidth=1.1,
                alpha=0.8,
                label=None if number else name,
            )
    axis.set(xlabel="epoch", ylabel=label)
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.legend(fontsize=8, frameon=False)
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)


def ratios(
    intervals: dict, axis, label: str, marks: dict | None = None, word: str = "paper"
) -> None:
    """A row for each ratio: its value as a point, its interval as a line, against one; a ring where `marks` has a value for it."""
    axis.axvline(1, color="0.5", linewidth=1)
    for row, (name, interval) in enumerate(intervals.items()):
        if interval is not None:
            if interval.n > 1:
                axis.plot(
                    [interval.low, interval.high],
                    [row, row],
                    color=COLOURS[0],
                    linewidth=5,
                    alpha=0.3,
                    solid_capstyle="butt",
                )
            axis.scatter([interval.mean], [row], s=36, color=COLOURS[0], zorder=3)
        if name in (marks or {}):
            axis.scatter(
                [marks[name]],
                [row],
                s=60,
                facecolor="none",
                edgecolor=COLOURS[1],
                linewidth=1.6,
                zorder=2,
            )
    if marks:
        axis.scatter(
            [], [], s=60, facecolor="none", edgecolor=COLOURS[1], linewidth=1.6, label=word
        )
        axis.scatter([], [], s=36, color=COLOURS[0], label="here")
        axis.legend(fontsize=8, frameon=False, ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1))
    _rows(axis, intervals, label)


def stacked(rows: dict[str, dict[str, float]], axis, label: str) -> None:
    """A bar for each row, made of its parts one after another, with their sum at its end."""
    parts = list(dict.fromkeys(part for row in rows.values() for part in row))
    begin = np.zeros(len(rows))
    for part, colour in zip(parts, COLOURS):
        values = np.array([row.get(part, 0.0) for row in rows.values()])
        axis.barh(range(len(rows)), values, 0.62, left=begin, color=colour, label=part)
        begin += values
    for row, total in enumerate(begin):
        axis.annotate(
            f"{total:.0f}",
            (total, row),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
        )
    _rows(axis, rows, label)
    axis.margins(x=0.08)
    axis.legend(
        fontsize=8, frameon=False, ncols=len(parts), loc="lower center", bbox_to_anchor=(0.5, 1)
    )


def roofline(
    points: dict[str, list[tuple[float, float]]], axis, peaks: dict[str, float], copy_gb_s: float
) -> None:
    """What a device could do, and what it did: multiply-adds a second over multiply-adds a byte, both in logarithms (Williams, Waterman
    and Patterson, 2009).

    points: {group: [(multiply-adds a byte, 10^9 multiply-adds a second)]}. peaks: {precision: 10^9 multiply-adds a second}. copy_gb_s:
    10^9 bytes a second.
    """
    right = 2 * max(
        [peak / copy_gb_s for peak in peaks.values()]
        + [x for group in points.values() for x, _ in group]
    )
    left = min(
        [0.5 * min(peaks.values()) / copy_gb_s]
        + [0.5 * x for group in points.values() for x, _ in group]
    )
    x = np.geomspace(left, right, 200)
    for (name, peak), style in zip(peaks.items(), ("-", "--", ":")):
        axis.plot(
            x,
            np.minimum(peak, x * copy_gb_s),
            color="0.35",
            linestyle=style,
            linewidth=1.3,
            label=f"peak, {name}",
        )
    for (name, group), colour, marker in zip(points.items(), COLOURS * 3, "osD^vP" * 3):
        axis.scatter(
            *zip(*group),
            s=30,
            color=colour,
            marker=marker,
            edgecolor="white",
            linewidth=0.5,
            label=name,
            zorder=3,
        )
    axis.set(
        xscale="log",
        yscale="log",
        xlabel="multiply-adds a byte of the plain graph",
        ylabel="10⁹ multiply-adds a second",
    )
    axis.grid(alpha=0.3, which="both", linewidth=0.5)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1.01, 0.5))


def field(axis, values: np.ndarray, side: float, cell: int = 1) -> None:
    """A receptive field (H, W), largest value 1, around its middle, in pixels of the image, with the square of its size. Colours go
    with the square root, since fields fall off steeply."""
    from matplotlib.colors import PowerNorm

    h, w = (n * cell / 2 for n in values.shape)
    axis.imshow(
        values,
        norm=PowerNorm(0.5, 0, 1),
        cmap="magma",
        extent=(-w, w, h, -h),
        interpolation="nearest",
    )
    if side == side:  # there is one
        axis.plot(
            np.array([-1, 1, 1, -1, -1]) * side / 2,
            np.array([-1, -1, 1, 1, -1]) * side / 2,
            color="white",
            linewidth=1,
        )
    axis.set(xlim=(-w, w), ylim=(h, -h))
    axis.tick_params(labelsize=7)


def field_grid(rows: list[tuple], cut: float = 0.2, width: float = 9.0):
    """A figure with a row for each (words, field (H, W), its side, its cell, [(image, relative activation)]): the field, then the
    images that activate a unit most, with what does."""
    import matplotlib.pyplot as plt

    columns = 1 + max(len(row[4]) for row in rows)
    figure, axes = plt.subplots(
        len(rows),
        columns,
        squeeze=False,
        layout="constrained",
        figsize=(width, len(rows) * width / columns * 0.82),
    )
    for line, (words, values, side, cell, pictures) in zip(axes, rows):
        field(line[0], values, side, cell)
        line[0].set_ylabel(words, fontsize=8)
        for axis in line[1:]:
            axis.axis("off")
        for axis, (image, relative) in zip(line[1:], pictures):
            axis.imshow(region(image, relative, cut))
            axis.contour(relative, levels=[cut], colors="white", linewidths=0.8) if (
                relative > cut
            ).any() else None
    return figure


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


def graph(
    axis, steps, places: dict, texts: dict, colours: dict, box=(0.8, 0.6), fontsize=8.0
) -> None:
    """Boxes and arrows of a recorded graph (`rflw.trace`) on an axis.

    places: number of a step, below 0 what comes from outside -> (column, row), row 0 on top; texts and colours likewise.
    Arrows are those of `Step.inputs`. A box of "+" is small.
    """
    from matplotlib.patches import Rectangle

    half = {i: (0.18 if texts[i] == "+" else box[0] / 2, box[1] / 2) for i in places}
    for i, (x, y) in places.items():
        w, h = half[i]
        axis.add_patch(
            Rectangle(
                (x - w, y - h),
                2 * w,
                2 * h,
                facecolor=colours.get(i, "white"),
                edgecolor="0.25",
                linewidth=0.8,
                zorder=3,
            )
        )
        axis.text(
            x, y, texts[i], ha="center", va="center", fontsize=fontsize, linespacing=1.15, zorder=4
        )
    for i, step in enumerate(steps):
        for j in step.inputs:
            *bends, end = _route(places[j], places[i], half[j], half[i])
            axis.plot(*zip(*bends), color="0.25", linewidth=1, solid_capstyle="butt", zorder=2)
            axis.annotate(
                "",
                end,
                bends[-1],
                zorder=2,
                arrowprops={
                    "arrowstyle": "-|>",
                    "color": "0.25",
                    "linewidth": 1,
                    "shrinkA": 0,
                    "shrinkB": 0,
                    "mutation_scale": 8,
                },
            )
    axis.set(
        xlim=(min(x for x, _ in places.values()) - 0.55, max(x for x, _ in places.values()) + 0.55),
        ylim=(max(y for _, y in places.values()) + 0.5, min(y for _, y in places.values()) - 0.5),
    )
    axis.axis("off")


def _route(start, end, half_start, half_end) -> list[tuple[float, float]]:
    """Corners of an arrow between two boxes: straight, or sideways and then down, or up, sideways and up."""
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
    """One block, operation by operation, from top to bottom; what a sum adds comes from the right or the left.

    steps: a recorded block; none: the block does nothing. inputs: what to write on what comes from outside.
    """
    places = {-1 - i: (float(i), 0.0) for i in range(len(inputs))}
    texts, colours = dict(zip(places, inputs)), {}
    forks = {
        min(step.inputs) for step in steps if step.op == "add"
    }  # where a branch leaves what goes straight on
    for i, step in enumerate(steps):
        x, y = max((places[j] for j in step.inputs), key=lambda place: place[1])
        if step.op == "add":  # below the earliest of what it adds, beside the latest
            x = min((places[j] for j in step.inputs), key=lambda place: place[1])[0]
        else:
            x, y = x + (step.inputs[0] in forks and x == 0), y + 1
        name = OP_NAMES.get(step.op, step.op) + (
            f" {step.kernel}×{step.kernel}" if step.kernel else ""
        )
        places[i], colours[i] = (
            (x, y),
            OP_COLOURS.get(name, "0.93" if step.op != "add" else "white"),
        )
        texts[i] = name + ("\n{} → {}".format(*step.channels) if step.channels else "")
    graph(axis, steps, places, texts, colours, box=(0.82, 0.66))
    x, y = places[len(steps) - 1]
    axis.annotate(
        "output",
        (x, y + 0.33),
        (x, y + 1),
        ha="center",
        va="center",
        fontsize=8,
        arrowprops={
            "arrowstyle": "<|-",
            "color": "0.25",
            "linewidth": 1,
            "shrinkA": 0,
            "shrinkB": 0,
            "mutation_scale": 8,
        },
    )
    axis.set(xlim=(-0.55, 1.55), ylim=(y + 1.4, -0.5))
