"""Images larger than memory: a network sees overlapping tiles, and what it makes of them is joined as if it had seen all at once.

A tile starts at a multiple of 32 and leaves the same rest as the image, so that every stride and every padding falls where it does in
the whole image; resizing in the decoder is told what part of the image it is in. What is left is the border of a tile, where the
network sees zeros instead of what is beyond: tiles overlap by more than it sees in effect, and fade into one another.
"""

from collections.abc import Callable, Iterator
from itertools import pairwise, product

import torch
from torch import Tensor

from rflw.errors import InputError
from rflw.nn.blocks import Window, at_places

TILE = 2048  # pixels of the side of a tile, and, squared, of the smallest image that is cut where nobody says how
OVERLAP = 768  # pixels that neighbours share
LEAST = 2 * OVERLAP  # pixels of a side of a tile
BAND = 2**22  # pixels whose classes are found at once


def side(tile: int | None, size: tuple[int, int]) -> int:
    """Pixels of the side of the tiles for an image of (H, W); 0: it is not cut. tile: as asked for; None: TILE where the image has more
    than TILE * TILE pixels. Raises InputError for tiles that are mostly overlap."""
    if tile is not None and tile and tile < LEAST:
        raise InputError(
            f"tiles of {tile} pixels: {LEAST} at least, of which neighbours share {OVERLAP}; 0 takes images whole"
        )
    if tile is None:
        tile = TILE if size[0] * size[1] > TILE * TILE else 0
    return tile if max(size) > tile else 0


def spans(n: int, tile: int, overlap: int = OVERLAP) -> list[tuple[int, int]]:
    """(start, length) along one side of n pixels, evenly spread: of at most `tile` pixels, at multiples of 32, with n's rest by 32."""
    if n <= tile:
        return [(0, n)]
    length = tile - (tile - n) % 32
    steps = -(-(n - length) // ((length - overlap) // 32 * 32))
    return [((n - length) * i // steps // 32 * 32, length) for i in range(steps + 1)]


def shares(parts: list[tuple[int, int]], overlap: int = OVERLAP) -> list[Tensor]:
    """How much each row of each part (start, length) counts at stride 4; 1 in all. Around the middle of what two neighbours share, one
    fades out and the other in, over half of the overlap; elsewhere only one counts."""
    found = [torch.ones(-(-length // 4)) for _, length in parts]
    for (i, (first, _)), (j, (second, _)) in pairwise(enumerate(parts)):
        begin = (second - first) // 4
        common = len(found[i]) - begin
        fade = ((torch.arange(common) + 0.5 - common / 2) / (overlap / 8) + 0.5).clamp(0, 1)
        found[i][begin:] *= 1 - fade
        found[j][:common] *= fade
    return found


def windows(
    size: tuple[int, int], tile: int, overlap: int = OVERLAP
) -> Iterator[tuple[Window, Tensor, Tensor]]:
    """Each tile of an image of (H, W), with what its rows and its columns count at stride 4."""
    sides = [spans(n, tile, overlap) for n in size]
    counts = [shares(parts, overlap) for parts in sides]
    for i, j in product(*(range(len(parts)) for parts in sides)):
        (top, height), (left, width) = sides[0][i], sides[1][j]
        yield Window((top, left), (height, width), size), counts[0][i], counts[1][j]


def joined(
    part: Callable[[Window], Tensor], size: tuple[int, int], tile: int, overlap: int = OVERLAP
) -> Tensor:
    """Logits of an image of (H, W) from those of its tiles -> (B, K, ceil(H/4), ceil(W/4)) float32. part: a window -> its logits."""
    whole = None
    for window, rows, columns in windows(size, tile, overlap):
        logits = part(window).float()
        if whole is None:
            whole = logits.new_zeros(*logits.shape[:2], *(-(-n // 4) for n in size))
        (top, left), (h, w) = (start // 4 for start in window.start), logits.shape[2:]
        whole[:, :, top : top + h, left : left + w] += logits * (rows[:, None] * columns).to(
            logits.device
        )
    return whole


def bands(logits: list[Tensor], size: tuple[int, int]) -> Iterator[tuple[int, list[Tensor]]]:
    """Logits (B, K, h, w), of any h and w, resized to `size` a few rows at a time, bilinear, as `prediction.upsample` does -> (first row, one
    (B, K, rows, W) of each)."""
    (height, width), step = size, max(1, BAND // size[1])
    for top in range(0, height, step):
        rows = torch.arange(top, min(top + step, height), dtype=torch.float64)
        columns = torch.arange(width, dtype=torch.float64)
        yield (
            top,
            [
                at_places(
                    at_places(x, 2, (rows + 0.5) * x.shape[2] / height - 0.5),
                    3,
                    (columns + 0.5) * x.shape[3] / width - 0.5,
                )
                for x in logits
            ],
        )
