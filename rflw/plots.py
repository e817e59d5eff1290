"""Pictures from arrays and numbers. No torch; matplotlib only for grids and for fonts."""

from dataclasses import replace
from functools import cache
from textwrap import fill

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from rflw.data.labels import VOID, Labels
from rflw.errors import InputError


def colourise(mask: np.ndarray, labels: Labels) -> np.ndarray:
    """(H, W) class indices -> (H, W, 3) uint8 in the labels' colours, void white."""
    return np.array(labels.palette(), np.uint8).reshape(256, 3)[mask]


def index_image(mask: np.ndarray, labels: Labels) -> Image.Image:
    """(H, W) class indices -> a palette image: pixels are indices, a viewer shows the colours."""
    image = Image.fromarray(mask.astype(np.uint8)).convert("L")
    image = Image.frombytes("P", image.size, image.tobytes())
    image.putpalette(labels.palette())
    return image


def submission(mask: np.ndarray, labels: Labels) -> Image.Image:
    """(H, W) class indices -> the image that the data set's server takes.

    Grey with the data set's own class numbers if it has any (Cityscapes' labelIds), else a palette
    image as VOC's.
    """
    if labels.ids:
        return Image.fromarray(np.array(labels.ids, dtype=np.uint8)[mask])
    return index_image(mask, labels)


def overlay(
    image: np.ndarray, mask: np.ndarray, labels: Labels, opacity: float = 0.55, legend: bool = True
) -> Image.Image:
    """Tint an image by class, with a legend in the lower left corner, most frequent classes first.

    A class whose name no font here can write is named by its number.

    Args:
        image: (H, W, 3) uint8.
        mask: (H, W) class indices.
        labels: Names and colours of the classes.
        opacity: Of the tint, 0..1.
        legend: False for none.

    Returns:
        An image of the same size.
    """
    colours = np.where(mask[..., None] == VOID, image, colourise(mask, labels))
    picture = Image.blend(Image.fromarray(image), Image.fromarray(colours), opacity)
    if not legend:
        return picture
    present, counts = np.unique(mask[mask != VOID], return_counts=True)
    order = present[np.argsort(-counts, kind="stable")]
    names = {i: labels.classes[i] for i in order}
    names = {i: f"{i}" if font_of(name) is None else name for i, name in names.items()}
    return _legend(picture, [(names[i], labels.colours[i]) for i in order])


@cache
def font_of(text: str) -> str | None:
    """The file of a font that has every character of a text; "" is Pillow's own, None: there is none."""
    if text.isascii():
        return ""
    from matplotlib.font_manager import findfont, fontManager
    from matplotlib.ft2font import FT2Font

    needed = {ord(c) for c in text if not c.isspace()}
    files = [f.fname for f in fontManager.ttflist if not f.name.startswith("Last Resort")]  # boxes
    fonts = (findfont("DejaVu Sans"), *files)
    return next((file for file in fonts if needed <= FT2Font(file).get_charmap().keys()), None)


def _font(text: str, size: int) -> ImageFont.FreeTypeFont:
    file = font_of(text)
    return ImageFont.truetype(file, size) if file else ImageFont.load_default(size)


def _legend(picture: Image.Image, entries) -> Image.Image:
    """Swatches and names on a dark panel; the type shrinks until it fits. Else there is none."""
    width, height = picture.size
    for size in range(max(9, round(min(width, height) / 24)), 5, -1):
        line = round(size * 1.35)
        lengths = (_font(name, size).getlength(name) for name, _ in entries)
        panel_w = round(max(lengths, default=0)) + 2 * line
        panel_h = line * len(entries) + line // 2
        if panel_w <= width * 0.6 and panel_h <= height:
            break
    if not entries or panel_w > width or panel_h > height:
        return picture  # too small for words
    panel = Image.new("RGBA", (panel_w, panel_h), (16, 16, 16, 200))
    draw = ImageDraw.Draw(panel)
    for row, (name, colour) in enumerate(entries):
        left, top = line // 3, line // 4 + row * line
        swatch = (left, top + 2, left + size, top + size + 2)
        draw.rectangle(swatch, fill=(*colour, 255), outline="white")
        place = (2 * left + size, top + line // 2)
        draw.text(place, name, fill="white", font=_font(name, size), anchor="lm")
    base = picture.convert("RGBA")
    base.alpha_composite(panel, (0, height - panel_h))
    return base.convert("RGB")


# Chosen one by one: the colour farthest from white and from those before, to readers with all cones
# and without those for red, green or blue (Machado et al., 2009). The least distance in CIELAB is
# 28 among the first eleven and white, 21 among all.
SAFE = tuple(
    tuple(bytes.fromhex(colour))
    for colour in (
        "220044 ff2200 ee33ff 660011 228888 00ff88 0000ff ffaaff "
        "881199 aaff00 889966 114455 aa1111 6600bb aa66bb"
    ).split()
)


def safe(labels: Labels) -> Labels:
    """The same classes in colours that colour-blind readers can tell apart.

    Raises:
        InputError: There are more classes than such colours.
    """
    if len(labels.classes) > len(SAFE):
        raise InputError(
            f"{len(labels.classes)} classes: there are {len(SAFE)} colours "
            "that colour-blind readers can tell apart"
        )
    return replace(labels, colours=SAFE[: len(labels.classes)])


DIFFERENCE = {
    "both right": (232, 232, 232),
    "only the first right": (0, 114, 178),
    "only the second right": (230, 159, 0),
    "both wrong": (40, 40, 40),
}


def difference(first: np.ndarray, second: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Which of two predictions is right, in the colours of DIFFERENCE; void is white.

    Takes (H, W) class indices; returns (H, W, 3) uint8.
    """
    colours = np.array([*DIFFERENCE.values(), (255, 255, 255)], np.uint8)
    return colours[np.where(truth == VOID, 4, 2 * (first != truth) + (second != truth))]


def prediction_grid(
    rows: list[tuple],
    labels: Labels,
    columns=("image", "truth", "prediction"),
    notes=(),
    width=8.0,
    more=None,
):
    """A figure with a row for each image and one legend below; void is white in the ground truth.

    Args:
        rows: (image, truth, prediction, ...), (H, W, 3) uint8 or (H, W) class indices.
        labels: Names and colours of the classes.
        columns: A title for each picture of a row.
        notes: A line on the left of each row.
        width: Of the figure, in inches.
        more: {words: colour} for the legend.
    """
    from matplotlib.patches import Patch
    import matplotlib.pyplot as plt

    h, w = rows[0][0].shape[:2]
    legend = -(-len(labels.classes) // 4)
    height = len(rows) * width / len(columns) * h / w + 0.35 + 0.22 * legend
    figure = plt.figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(len(rows), len(columns), squeeze=False)
    for i, row in enumerate(rows):
        for axis, picture, title in zip(axes[i], row, columns):
            picture = picture if picture.ndim == 3 else colourise(picture, labels)
            axis.imshow(picture, interpolation="nearest")
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
            if i == 0:
                axis.set_title(fill(title, 22), fontsize=10 if len(title) < 23 else 8)
        if notes:
            axes[i, 0].set_ylabel(notes[i], fontsize=9)
    entries = dict(zip(labels.classes, labels.colours))
    if any((row[1] == VOID).any() for row in rows):
        entries["void"] = (255, 255, 255)
    patches = [
        Patch(facecolor=np.array(colour) / 255, edgecolor="0.4", label=name)
        for name, colour in (entries | (more or {})).items()
    ]
    columns_of_legend = min(len(patches), int(0.88 * width))
    look = {"loc": "outside lower center", "fontsize": 8, "frameon": False}
    figure.legend(handles=patches, ncols=columns_of_legend, **look)
    return figure
