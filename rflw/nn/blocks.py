"""The three blocks of Figure 1: residual conv unit (RCU), chained residual pooling (CRP), fusion.

Shapes: B batch, C channels, H and W rows and columns. No normalisation anywhere: the decoder has none.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
import torch.nn.functional as F


def conv(cin: int, cout: int, kernel: int, bias: bool = False) -> nn.Conv2d:
    """A convolution that keeps the spatial size."""
    return nn.Conv2d(cin, cout, kernel, padding=kernel // 2, bias=bias)


@dataclass(frozen=True)
class Window:
    """A part of a larger image that a network is given alone: its first row and column (multiples of 32), its size, and that of the
    whole image, (H, W) in pixels. Resizing needs it: where corners are aligned, every value depends on the size of the whole."""

    start: tuple[int, int]
    size: tuple[int, int]
    whole: tuple[int, int]

    def places(self, axis: int, n: int, to: int) -> Tensor:
        """Where on a map of `n` rows (axis 1: columns) of this window the `to` rows of a finer one lie, as in the whole image."""
        before, after = (
            next(s for s in (1, 2, 4, 8, 16, 32) if -(-self.size[axis] // s) == rows)
            for rows in (n, to)
        )
        ends = (-(-self.whole[axis] // s) - 1 for s in (before, after))
        ratio = next(ends) / max(next(ends), 1)
        return (
            torch.arange(to, dtype=torch.float64) + self.start[axis] // after
        ) * ratio - self.start[axis] // before


def resize(x: Tensor, size: tuple[int, int], window: Window | None = None) -> Tensor:
    """Bilinear, corners aligned, as everywhere in the authors' decoder. window: what part of an image `x` is of; None: the whole."""
    if window is None:
        return F.interpolate(x, size=size, mode="bilinear", align_corners=True)
    for axis, to in enumerate(size):
        x = at_places(x, axis + 2, window.places(axis, x.shape[axis + 2], to))
    return x


def at_places(x: Tensor, dim: int, places: Tensor) -> Tensor:
    """Values of `x` between its entries along a dimension, linear; beyond its ends, those there."""
    n = x.shape[dim]
    places = places.to(x.device).clamp(0, n - 1)
    low = places.floor().long()
    share = (places - low).to(x.dtype).view(-1, *[1] * (x.ndim - dim - 1))
    return torch.lerp(
        x.index_select(dim, low), x.index_select(dim, (low + 1).clamp(max=n - 1)), share
    )


def max_pool(x: Tensor) -> Tensor:
    """The largest of each 5x5 window. (B, C, H, W) -> same."""
    return F.max_pool2d(x, kernel_size=5, stride=1, padding=2)


class RCU(nn.Module):
    """Residual conv unit, Figure 1(b): (ReLU, 3x3 conv) twice, plus the input. (B, C, H, W) -> same."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv1 = conv(channels, channels, 3, bias=True)
        self.conv2 = conv(channels, channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.relu(self.conv1(F.relu(x))))


class BottleneckRCU(nn.Module):
    """Light-weight RCU, Figure 1(e): 1x1 down, 3x3, 1x1 up, plus the input. (B, C, H, W) -> same.

    The paper does not give the width of the bottleneck. C/2 is inferred: it alone meets the parameters and
    multiply-adds of Table 1.
    """

    def __init__(self, channels: int, divisor: int = 2):
        super().__init__()
        width = channels // divisor
        self.reduce = conv(channels, width, 1, bias=True)
        self.conv = conv(width, width, 3)
        self.expand = conv(width, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.expand(F.relu(self.conv(F.relu(self.reduce(F.relu(x))))))


class CRP(nn.Module):
    """Chained residual pooling, Figure 1(c) and (f): x plus a chain of (5x5 max-pool, conv). (B, C, H, W) -> same.

    Four stages ("instead of 4 used in the original architecture", caption of Figure 1). Pool before conv, as the
    authors do; the MATLAB code of the original RefineNet has it the other way round.
    """

    def __init__(self, channels: int, kernel: int, stages: int = 4):
        super().__init__()
        self.convs = nn.ModuleList(conv(channels, channels, kernel) for _ in range(stages))
        self.pool = max_pool

    def forward(self, x: Tensor) -> Tensor:
        top = x
        for stage in self.convs:
            top = stage(self.pool(top))
            x = x + top
        return x
