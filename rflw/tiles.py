"""Large images in overlapping tiles: where they lie, and how their logits are joined.

As in the sliding windows of mmsegmentation and MONAI, logits are averaged. The weights rise from a
tile's border over what it shares with a neighbour. A tile starts at a multiple of 32 pixels, so
every stride of the network falls where it does in the whole image. Near a border the network sees
zeros instead of the image, and aligned corners place the coarser maps a little differently.
"""

from collections.abc import Callable
from itertools import product

import torch
from torch import Tensor

from rflw.errors import InputError

TILE = 2048  # pixels of a tile's side; images of more than TILE * TILE pixels are cut by default
OVERLAP = 512  # pixels that neighbours share
LEAST = 2 * OVERLAP  # pixels of the side of the smallest tile


def side(tile: int | None, size: tuple[int, int]) -> int:
    """The side of the tiles for an image, in pixels; 0 if it is not cut.

    Args:
        tile: as the user asks for, 0 for never; None: TILE if the image has more than TILE * TILE
            pixels.
        size: (H, W) of the image, in pixels.

    Raises:
        InputError: for tiles that are mostly overlap.
    """
    if tile is None:
        tile = TILE if size[0] * size[1] > TILE * TILE else 0
    elif tile and tile < LEAST:
        raise InputError(
            f"tiles of {tile} pixels: {LEAST} at least, of which neighbours share {OVERLAP}; 0 takes images whole"
        )
    return tile if max(size) > tile else 0


def spans(n: int, tile: int) -> list[tuple[int, int]]:
    """(start, end) of the tiles along one side of n pixels, evenly spread, of one length up to
    `tile`.

    Starts are multiples of 32, and the length leaves the same rest by 32 as n: maps inside the
    network have sizes that are rounded up as those of the whole image are, and are resized by
    similar ratios.
    """
    if n <= tile:
        return [(0, n)]
    length = tile - (tile - n) % 32
    units = (n - length) // 32
    steps = -(-units // ((length - OVERLAP) // 32))
    starts = [units * i // steps * 32 for i in range(steps + 1)]
    return [(start, start + length) for start in starts]


def ramp(start: int, end: int, n: int) -> Tensor:
    """Weight of each row of a tile at stride 4, in (0, 1]: it rises from borders inside the image."""
    rows = torch.arange(-(-(end - start) // 4)) + 0.5
    weight = torch.ones_like(rows)
    if start > 0:
        weight = (rows * 4 / OVERLAP).clamp(max=1)
    if end < n:
        weight = weight * (rows.flip(0) * 4 / OVERLAP).clamp(max=1)
    return weight


def joined(network: Callable[[Tensor], Tensor], x: Tensor, tile: int) -> Tensor:
    """Logits of an image from those of its tiles.

    Args:
        network: (B, 3, h, w) -> logits (B, K, ceil(h/4), ceil(w/4)).
        x: images as the network takes them, (B, 3, H, W).
        tile: the side of a tile, in pixels.

    Returns:
        Logits (B, K, ceil(H/4), ceil(W/4)), float32.
    """
    h, w = x.shape[2:]
    total = weights = None
    for (top, bottom), (left, right) in product(spans(h, tile), spans(w, tile)):
        logits = network(x[:, :, top:bottom, left:right]).float()
        weight = (ramp(top, bottom, h)[:, None] * ramp(left, right, w)).to(logits.device)
        if total is None:
            total = logits.new_zeros(*logits.shape[:2], -(-h // 4), -(-w // 4))
            weights = torch.zeros_like(total[0, 0])
        rows, columns = (slice(a // 4, a // 4 + n) for a, n in zip((top, left), logits.shape[2:]))
        total[:, :, rows, columns] += logits * weight
        weights[rows, columns] += weight
    return total / weights
