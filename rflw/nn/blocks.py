"""The three blocks of Figure 1: residual conv unit (RCU), chained residual pooling (CRP), fusion.

Shapes: B batch, C channels, H and W rows and columns. The decoder has no normalisation.
"""

from torch import Tensor, nn
import torch.nn.functional as F


def conv(cin: int, cout: int, kernel: int, bias: bool = False) -> nn.Conv2d:
    """A convolution that keeps the spatial size."""
    return nn.Conv2d(cin, cout, kernel, padding=kernel // 2, bias=bias)


def resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear, corners aligned, as everywhere in the authors' decoder.

    (B, C, H, W) -> `(B, C, *size)`.
    """
    return F.interpolate(x, size=size, mode="bilinear", align_corners=True)


def max_pool(x: Tensor) -> Tensor:
    """The largest of each 5x5 window. (B, C, H, W) -> same."""
    return F.max_pool2d(x, kernel_size=5, stride=1, padding=2)


class RCU(nn.Module):
    """Residual conv unit, Figure 1(b): (ReLU, 3x3 conv) twice, plus the input.

    (B, C, H, W) -> same.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.conv1 = conv(channels, channels, 3, bias=True)
        self.conv2 = conv(channels, channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.relu(self.conv1(F.relu(x))))


class BottleneckRCU(nn.Module):
    """Light-weight RCU, Figure 1(e): 1x1 down, 3x3, 1x1 up, plus the input. (B, C, H, W) -> same.

    The paper does not give the width of the bottleneck. C/2 is inferred: it alone meets the
    parameters and multiply-adds of Table 1.
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
    """Chained residual pooling, Figure 1(c) and (f): x plus a chain of (5x5 max-pool, conv).

    (B, C, H, W) -> same.

    Four stages ("instead of 4 used in the original architecture", caption of Figure 1). Pool before
    conv, as the authors do; the MATLAB code of the original RefineNet has it the other way round.
    Two ablations leave out the pools or the convolutions.
    """

    def __init__(
        self, channels: int, kernel: int, stages: int = 4, pools: bool = True, convs: bool = True
    ):
        super().__init__()
        make = conv if convs else nn.Identity
        self.convs = nn.ModuleList(make(channels, channels, kernel) for _ in range(stages))
        self.pool = max_pool if pools else None  # it may be given in another form

    def forward(self, x: Tensor) -> Tensor:
        top = x
        for stage in self.convs:
            top = stage(self.pool(top) if self.pool else top)
            x = x + top
        return x
