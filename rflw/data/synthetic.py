"""The embedded set: small scenes drawn from a seed, the same to the bit on every platform.

Discs and bars are known by themselves. Twins are not: they are the same grey diamonds, and whether
one is a "red twin" or a "blue twin" depends on the colour of the scene's only beacon, whose centre
is at least `FAR` pixels away from that of every twin. A network that does not see that far can only
guess. Objects vary in size by a factor of three and occlude one another; a rim around each is void,
as in PASCAL VOC.

Only integers are used, and only `RandomState`, whose streams NumPy has frozen: no rounding, no
library version and no processor changes a pixel.
"""

import numpy as np

from rflw.data.labels import LABELS, VOID
from rflw.errors import InputError

HEIGHT, WIDTH = 96, 128
FAR = 40  # pixels between the centres of the beacon and of any twin, at least
SIZES = {"train": 2048, "val": 128}
GROUND, DISC, BAR, BEACON, RED_TWIN, BLUE_TWIN = 0, 1, 2, 3, 4, 5
COLOUR = {
    GROUND: (96, 104, 88),
    DISC: (152, 152, 84),
    BAR: (56, 60, 52),
    RED_TWIN: (136, 132, 140),
    BLUE_TWIN: (136, 132, 140),
}
RED, BLUE = (216, 48, 40), (40, 64, 216)


def scene(split: str, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Scene `index` of a split -> image (96, 128, 3) and mask (96, 128), uint8, void 255."""
    draw = np.random.RandomState([list(SIZES).index(split), index])

    def between(low, high, shape=None):  # inclusive; of a type that no platform changes
        return draw.randint(low, high + 1, shape, dtype=np.int32)

    y, x = np.mgrid[:HEIGHT, :WIDTH].astype(np.int32)
    image = np.empty((HEIGHT, WIDTH, 3), np.int32)
    image[:] = COLOUR[GROUND]
    light = between(-24, 24) * x // WIDTH + between(-24, 24) * y // HEIGHT  # uneven
    image += light[..., None]
    mask = np.full((HEIGHT, WIDTH), GROUND, np.int32)
    owner = np.zeros((HEIGHT, WIDTH), np.int32)  # which object a pixel shows, for the rims

    beacon_y, beacon_x = between(8, HEIGHT - 9), between(8, WIDTH - 9)
    twin = (RED_TWIN, BLUE_TWIN)[between(0, 1)]
    kinds = [twin] * between(2, 4) + [DISC] * between(1, 3) + [BAR] * between(1, 3)
    # later objects hide earlier ones
    for number, kind in enumerate(draw.permutation(kinds), start=1):
        size = between(7, 20)
        cy, cx = between(4, HEIGHT - 5), between(4, WIDTH - 5)
        while kind == twin and (cy - beacon_y) ** 2 + (cx - beacon_x) ** 2 < FAR**2:
            cy, cx = between(4, HEIGHT - 5), between(4, WIDTH - 5)
        dy, dx = abs(y - cy), abs(x - cx)
        if kind == DISC:
            inside = dy * dy + dx * dx <= size * size
        elif kind == BAR:
            along, across = (dy, dx) if between(0, 1) else (dx, dy)
            inside = (along <= 2 * size) & (across <= 1 + size // 4)
        else:
            inside = dy + dx <= size
        stripes = 16 * ((x + y) // 3 % 2)[inside, None] if kind == twin else 0
        image[inside] = np.array(COLOUR[kind], np.int32) + between(-20, 20) + stripes
        mask[inside], owner[inside] = kind, number
    inside = (abs(y - beacon_y) <= 11) & (abs(x - beacon_x) <= 11)  # last: nothing hides the beacon
    image[inside] = RED if twin == RED_TWIN else BLUE
    mask[inside], owner[inside] = BEACON, len(kinds) + 1

    image += between(-18, 18, (HEIGHT, WIDTH, 3))
    down, right = owner[1:] != owner[:-1], owner[:, 1:] != owner[:, :-1]
    mask[1:][down] = mask[:-1][down] = VOID
    mask[:, 1:][right] = mask[:, :-1][right] = VOID
    return np.clip(image, 0, 255).astype(np.uint8), mask.astype(np.uint8)


class Embedded:
    """A split of the embedded set: "train" (2048 scenes) or "val" (128)."""

    name, labels = "embedded", LABELS["embedded"]

    def __init__(self, split: str = "train"):
        if split not in SIZES:
            raise InputError(f"embedded: no split {split!r}; choose from: {', '.join(SIZES)}")
        self.split = split
        self.ids = [f"{split}-{i:04d}" for i in range(SIZES[split])]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        return scene(self.split, range(len(self))[index])  # range: IndexError past the end
