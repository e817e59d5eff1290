"""The synthetic sets: small scenes drawn from a seed, the same to the bit on every platform.

Discs and bars are known by themselves. Twins are not: they are the same grey diamonds, and whether
one is a "red twin" or a "blue twin" depends on the colour of the scene's only beacon, whose centre
is at least `FAR` pixels away from that of every twin. A network that does not see that far can only
guess. Objects vary in size by a factor of three and occlude one another; a rim around each is void,
as in PASCAL VOC.

The set `embedded` is easy: every decoder of the study is right on nearly all pixels, so it shows
how things work. The set `clutter` is hard enough to compare networks: few training scenes, small
objects, more noise, and specks that belong to the ground. `clutter-large` is the same with more
training scenes, too many to be learnt by heart.

Only integers are used, and only `RandomState`, whose streams NumPy has frozen: no rounding, no
library version and no processor changes a pixel.
"""

from dataclasses import dataclass, replace

import numpy as np

from rflw.data.labels import LABELS, VOID
from rflw.errors import InputError

HEIGHT, WIDTH = 96, 128
FAR = 40  # pixels between the centres of the beacon and of any twin, at least
GROUND, DISC, BAR, BEACON, RED_TWIN, BLUE_TWIN = 0, 1, 2, 3, 4, 5
COLOUR = {
    GROUND: (96, 104, 88),
    DISC: (152, 152, 84),
    BAR: (56, 60, 52),
    RED_TWIN: (136, 132, 140),
    BLUE_TWIN: (136, 132, 140),
}
RED, BLUE = (216, 48, 40), (40, 64, 216)


@dataclass(frozen=True)
class Kind:
    """What the scenes of a set have in common. Bounds are inclusive."""

    sizes: dict[str, int]  # scenes of each split
    first: int  # that the seeds of its splits count from
    twins: tuple[int, int]
    others: tuple[int, int]  # discs, and bars
    size: tuple[int, int]  # half of an object, in pixels
    beacon: int  # half of its side
    shade: int  # how far an object is from its class's colour, in any direction
    noise: int
    specks: tuple[int, ...] = ()  # diamonds of any grey that belong to the ground


KINDS = {
    "embedded": Kind({"train": 2048, "val": 128}, 0, (2, 4), (1, 3), (7, 20), 11, 20, 18),
    "clutter": Kind(
        {"train": 192, "val": 256, "holdout": 128}, 2, (2, 5), (2, 5), (3, 8), 5, 40, 48, (20, 40)
    ),
}
KINDS["clutter-large"] = replace(KINDS["clutter"], sizes=KINDS["clutter"].sizes | {"train": 1024})


def scene(split: str, index: int, name: str = "embedded") -> tuple[np.ndarray, np.ndarray]:
    """Scene `index` of a split -> image (96, 128, 3) and mask (96, 128), uint8, void 255."""
    rules = KINDS[name]
    draw = np.random.RandomState([rules.first + list(rules.sizes).index(split), index])

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
    kinds = [twin] * between(*rules.twins)
    kinds += [DISC] * between(*rules.others) + [BAR] * between(*rules.others)
    if rules.specks:
        kinds += [GROUND] * between(*rules.specks)
    # later objects hide earlier ones
    for number, kind in enumerate(draw.permutation(kinds), start=1):
        size = between(*rules.size) if kind != GROUND else between(1, rules.size[0])
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
        colour = COLOUR[kind] if kind != GROUND else (between(40, 180),) * 3
        image[inside] = np.array(colour, np.int32) + between(-rules.shade, rules.shade) + stripes
        mask[inside], owner[inside] = kind, number if kind != GROUND else 0
    # last: nothing hides the beacon
    inside = (abs(y - beacon_y) <= rules.beacon) & (abs(x - beacon_x) <= rules.beacon)
    image[inside] = RED if twin == RED_TWIN else BLUE
    mask[inside], owner[inside] = BEACON, len(kinds) + 1

    image += between(-rules.noise, rules.noise, (HEIGHT, WIDTH, 3))
    down, right = owner[1:] != owner[:-1], owner[:, 1:] != owner[:, :-1]
    mask[1:][down] = mask[:-1][down] = VOID
    mask[:, 1:][right] = mask[:, :-1][right] = VOID
    return np.clip(image, 0, 255).astype(np.uint8), mask.astype(np.uint8)


class Scenes:
    """A split of a synthetic set; `KINDS` has their sizes."""

    def __init__(self, split: str = "train", name: str = "embedded"):
        sizes = KINDS[name].sizes
        if split not in sizes:
            raise InputError(f"{name}: no split {split!r}; choose from: {', '.join(sizes)}")
        self.name, self.labels, self.split = name, LABELS[name], split
        self.ids = [f"{split}-{i:04d}" for i in range(sizes[split])]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        index = range(len(self))[index]  # range: IndexError past the end
        return scene(self.split, index, self.name)
