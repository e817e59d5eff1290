"""Pictures from arrays and numbers. No torch; matplotlib only where it is needed, since prediction does without."""
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from rflw.datasets.labels import VOID, Labels


def colourise(mask: np.ndarray, labels: Labels) -> np.ndarray:
    """(H, W) class indices -> (H, W, 3) uint8 in the labels' colours, void white."""
    return np.array(labels.palette(), np.uint8).reshape(256, 3)[mask]


def index_image(mask: np.ndarray, labels: Labels) -> Image.Image:
    """(H, W) class indices -> a palette image: its pixels are the indices, a viewer shows the colours."""
    image = Image.fromarray(mask.astype(np.uint8)).convert("L")
    image = Image.frombytes("P", image.size, image.tobytes())
    image.putpalette(labels.palette())
    return image


def overlay(image: np.ndarray, mask: np.ndarray, labels: Labels, opacity: float = 0.55) -> Image.Image:
    """(H, W, 3) uint8 and (H, W) class indices -> the image tinted by class, with a legend of the classes in it, most
    frequent first, in the lower left corner. Same size as the image."""
    tinted = image * (1 - opacity) + colourise(mask, labels) * opacity
    tinted[mask == VOID] = image[mask == VOID]
    picture = Image.fromarray(tinted.round().astype(np.uint8))
    present, counts = np.unique(mask[mask != VOID], return_counts=True)
    entries = [(labels.classes[i], labels.colours[i]) for i in present[np.argsort(-counts, kind="stable")]]
    return _legend(picture, entries)


def _legend(picture: Image.Image, entries) -> Image.Image:
    """Swatches and names on a dark panel; the type shrinks until all fits into half the picture's width."""
    width, height = picture.size
    for size in range(max(9, round(min(width, height) / 24)), 5, -1):
        font, line = ImageFont.load_default(size), round(size * 1.35)
        panel_w = round(max((font.getlength(name) for name, _ in entries), default=0)) + 2 * line
        panel_h = line * len(entries) + line // 2
        if panel_w <= width * 0.6 and panel_h <= height:
            break
    if not entries or panel_w > width or panel_h > height:
        return picture  # too small for words
    panel = Image.new("RGBA", (panel_w, panel_h), (16, 16, 16, 200))
    draw = ImageDraw.Draw(panel)
    for row, (name, colour) in enumerate(entries):
        top = line // 4 + row * line
        draw.rectangle((line // 3, top + 2, line // 3 + size, top + size + 2), fill=(*colour, 255), outline="white")
        draw.text((line // 3 + size + line // 3, top + line // 2), name, fill="white", font=font, anchor="lm")
    base = picture.convert("RGBA")
    base.alpha_composite(panel, (0, height - panel_h))
    return base.convert("RGB")


# ---------------------------------------------------------------- predictions and training


def prediction_grid(rows: list[tuple], labels: Labels, columns=("image", "truth", "prediction"), notes=(), width=8.0):
    """A figure with a row for each (image, truth mask, predicted mask, ...) and one legend below.

    Void is white in a truth; a prediction is shown whole. notes: a line on the left of each row.
    """
    import matplotlib.pyplot as plt
    from matplotlib.patches import Patch
    h, w = rows[0][0].shape[:2]
    wide = width / len(columns)
    legend = -(-len(labels.classes) // 4)
    figure, axes = plt.subplots(len(rows), len(columns), squeeze=False, layout="constrained",
                                figsize=(width, len(rows) * wide * h / w + 0.35 + 0.22 * legend))
    for i, row in enumerate(rows):
        for axis, picture, title in zip(axes[i], row, columns):
            axis.imshow(picture if picture.ndim == 3 else colourise(picture, labels), interpolation="nearest")
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
            if i == 0:
                axis.set_title(title, fontsize=10)
        if notes:
            axes[i, 0].set_ylabel(notes[i], fontsize=9)
    patches = [Patch(facecolor=np.array(c) / 255, edgecolor="0.4", label=name)
               for name, c in zip(labels.classes, labels.colours)]
    if any((row[1] == VOID).any() for row in rows):
        patches.append(Patch(facecolor="white", edgecolor="0.4", label="void"))
    figure.legend(handles=patches, ncols=min(6, len(patches)), loc="outside lower center", fontsize=8, frameon=False)
    return figure


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
    right.annotate(f"{measured[-1][1]:.1f}", measured[-1], textcoords="offset points", xytext=(0, 7), ha="center")
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
    bars = axis.barh([name for _, name in values], [v for v, _ in values], edgecolor="0.3", linewidth=0.6,
                     color=[np.array(colours[name]) / 255 for _, name in values])
    axis.bar_label(bars, fmt="%.1f", padding=3, fontsize=9)
    axis.invert_yaxis()
    axis.set(xlabel="IoU, %", xlim=(0, 105))
    axis.spines[["top", "right"]].set_visible(False)
    return figure
