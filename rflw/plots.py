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
