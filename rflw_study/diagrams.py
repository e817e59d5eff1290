"""Diagrams of networks and blocks, drawn from what `rflw.trace` records."""

from collections import Counter

from matplotlib import pyplot as plt
from matplotlib.patches import Patch, Rectangle
import numpy as np

from rflw_study.figures import WIDTH

TEXT = 9  # points
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
COLUMNS = ("encoder", "reduce", "rcu_in", "fusion", "crp", "rcu_out", "classifier")
TITLES = {"crp": "CRP", "rcu_in": "RCU", "rcu_out": "RCU"}


def convs(graph) -> Counter:
    """How many convolutions of each kernel size."""
    return Counter(step.kernel for step in graph if step.op == "conv2d")


def block(step) -> str:
    """The box of the paper's Figure 1(a) that an operation belongs to, and its stride."""
    part, *names = step.module.split(".")
    if part == "encoder":
        return names[0] if names and names[0].startswith("layer") else "stem"
    if names[0] == "classifier":
        return "classifier"
    stage = int(names[1])  # stage 0 is the one at stride 32
    name = names[2] if len(names) > 2 else "fusion"
    if name == "fuse":  # ends the coarser path, and is part of the next fusion
        stage, name = stage + 1, "fusion"
    name = {"adapt": "fusion", "act": "crp"}.get(name, name)
    return f"{name} {32 >> stage}"


def network(steps, blocks, ghosts=()) -> None:
    """Figure 1(a) of the paper for a network on a ResNet and an image of 512x512 pixels.

    Args:
        steps: Its recorded graph.
        blocks: The same, collapsed by `block`.
        ghosts: Blocks of another network that this one lacks, drawn as dashed outlines.
    """
    parts = {b.op: [step for step in steps if block(step) == b.op] for b in blocks}
    places = {-1: (0, 0)} | {i: _place(b) for i, b in enumerate(blocks)}
    texts = {-1: "image\n3 ch.\n512×512"}
    for i, b in enumerate(blocks):
        before = {blocks[j].shape[1] for j in b.inputs if j >= 0}
        texts[i] = _text(b, parts[b.op]) + (f"\n{b.shape[1]} ch." if before != {b.shape[1]} else "")
    colours = {i: _colour(b, parts[b.op]) for i, b in enumerate(blocks)}
    _, axis = plt.subplots(figsize=(WIDTH, 5.2), layout="constrained")
    for b in ghosts:
        x, y = _place(b)
        look = {"fill": False, "edgecolor": "0.55", "linestyle": (0, (3, 3))}
        axis.add_patch(Rectangle((x - 0.44, y - 0.36), 0.88, 0.72, **look))
        axis.text(x, y - 0.17, "no\nRCU", ha="center", va="center", fontsize=TEXT, color="0.35")
    graph(axis, blocks, places, texts, colours, box=(0.88, 0.72))
    _leave(axis, places[len(blocks) - 1], -1)
    for row, stride in enumerate((4, 4, 8, 16, 32), start=1):
        side = 512 // stride
        place = {"va": "center", "fontsize": TEXT, "color": "0.35"}
        axis.text(0.56, row - 0.5, f"stride {stride}, {side}×{side}", **place)
    axis.set(xlim=(-0.5, 6.5), ylim=(5.4, -0.4))
    words = {
        "encoder": "0.9",
        "decoder, with 3×3 convolutions": OP_COLOURS["conv 3×3"],
        "decoder, 1×1 convolutions only": OP_COLOURS["conv 1×1"],
    }
    keys = [
        Patch(facecolor=c, edgecolor="0.25", label=word)
        for word, c in words.items()
        if c in colours.values()
    ]
    axis.legend(handles=keys, loc="upper right", fontsize=TEXT)


def _place(b) -> tuple[int, int]:
    """Column by the kind of block, row by the stride of its result."""
    if b.op == "stem":
        return 0, 1
    kind = "encoder" if b.op.startswith("layer") else b.op.split()[0]
    return COLUMNS.index(kind), 2 + [128, 64, 32, 16].index(b.shape[-1])


def _text(b, steps) -> str:
    """Name and convolutions."""
    name = TITLES.get(b.op.split()[0], b.op.split()[0])
    if name == "RCU":
        name = f"{sum(step.op == 'add' for step in steps)} RCU"  # each ends in a sum
    return f"{name}\n{convs(steps).total()} conv"


def _colour(b, steps) -> str:
    if b.op == "stem" or b.op.startswith("layer"):
        return "0.9"
    return OP_COLOURS["conv 3×3" if any(step.kernel == 3 for step in steps) else "conv 1×1"]


def _leave(axis, place, down: int, word: str = "logits", half: float = 0.36) -> None:
    """An arrow from the last box to a word."""
    x, y = place
    where = {"ha": "center", "va": "center", "fontsize": TEXT}
    arrow = {"arrowstyle": "<|-", **ARROW}
    axis.annotate(word, (x, y + down * half), (x, y + down), arrowprops=arrow, **where)


def blocks(graphs: dict, inputs=("input",)) -> None:
    """A figure of recorded blocks side by side, each with its name and its parameters."""
    figure, axes = plt.subplots(1, len(graphs), layout="constrained", squeeze=False)
    for axis, (name, steps) in zip(axes[0], graphs.items()):
        block_graph(axis, steps, inputs)
        words = f"{name}\n{sum(step.params for step in steps):,} parameters"
        axis.set_title(words, fontsize=TEXT, loc="left")
    widths = [np.ptp(axis.get_xlim()) for axis in axes[0]]
    bottom = max(axis.get_ylim()[0] for axis in axes[0])
    for axis in axes[0]:
        axis.set_ylim(bottom, -0.5)
    axes[0, 0].get_gridspec().set_width_ratios(widths)
    figure.set_size_inches(0.92 * sum(widths), 0.5 * (bottom + 1.3))


def graph(axis, steps, places: dict, texts: dict, colours: dict, box=(0.86, 0.76)) -> None:
    """Boxes and arrows of a recorded graph (`rflw.trace`); a box of "+" is small.

    Args:
        places: Number of a step, below 0 for an input from outside -> (column, row), row 0 on top;
            texts and colours likewise.
    """
    half = {i: (0.18 if texts[i] == "+" else box[0] / 2, box[1] / 2) for i in places}
    for i, (x, y) in places.items():
        w, h = half[i]
        look = {"facecolor": colours.get(i, "white"), "edgecolor": "0.25", "linewidth": 0.8}
        axis.add_patch(Rectangle((x - w, y - h), 2 * w, 2 * h, zorder=3, **look))
        look = {"ha": "center", "va": "center", "fontsize": TEXT, "linespacing": 1.15}
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
        texts[i] = name.replace("max-pool ", "max-pool\n")
        texts[i] += "\n{} → {}".format(*step.channels) if step.channels else ""
        colours[i] = OP_COLOURS.get(name, "0.93" if step.op != "add" else "white")
    graph(axis, steps, places, texts, colours)
    x, y = places[len(steps) - 1]
    _leave(axis, (x, y), 1, "output", 0.38)
    axis.set_ylim(y + 1.2, -0.5)
