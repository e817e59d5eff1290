"""NASNet-A Mobile (4 @ 1056): Zoph et al., "Learning Transferable Architectures for Scalable Image
Recognition", 2018.

Written after the paper's Figure 4 and TF-Slim's `nets/nasnet`, which settles what the figure leaves
open: which state of a cell is concatenated though blocks use it, how sizes are matched, batch
norm's constants. The classifiers are left out; drop path has no part in the mobile network.

Letters in shape comments: B batch, C channels, H and W rows and columns.
"""

from collections import namedtuple

import torch
from torch import Tensor, nn
import torch.nn.functional as F

# A cell is five blocks, each the sum of two (operation, state) pairs. State 0 is the output of the
# last cell and state 1 that of the cell before it, both brought to the cell's width; state 2 + i is
# block i. `stride` is that of the operations on states 0 and 1. The states `out` are concatenated.
Plan = namedtuple("Plan", "stride blocks out")

NORMAL = Plan(
    stride=1,
    blocks=(
        (("sep5", 0), ("sep3", 1)),
        (("sep5", 1), ("sep3", 1)),
        (("avg", 0), ("same", 1)),
        (("avg", 1), ("avg", 1)),
        (("sep3", 0), ("same", 0)),
    ),
    out=(1, 2, 3, 4, 5, 6),  # six times the width; state 1 is among them although blocks use it
)
REDUCTION = Plan(
    stride=2,
    blocks=(
        (("sep5", 0), ("sep7", 1)),
        (("max", 0), ("sep7", 1)),
        (("avg", 0), ("sep5", 1)),
        (("avg", 2), ("same", 3)),
        (("sep3", 2), ("max", 0)),
    ),
    out=(3, 4, 5, 6),  # four times the width
)

STEM = 32  # channels of the first convolution
# Plan, width and number of cells; 44 filters, a quarter and a half of them in the stem cells
STAGES = (
    (REDUCTION, 11, 1),  # (B, 44, H/4, W/4)
    (REDUCTION, 22, 1),  # (B, 88, H/8, W/8)
    (NORMAL, 44, 4),  # (B, 264, H/8, W/8)
    (REDUCTION, 88, 1),  # (B, 352, H/16, W/16)
    (NORMAL, 88, 4),  # (B, 528, H/16, W/16)
    (REDUCTION, 176, 1),  # (B, 704, H/32, W/32)
    (NORMAL, 176, 4),  # (B, 1056, H/32, W/32)
)


def norm(channels: int) -> nn.BatchNorm2d:
    """TF-Slim's constants: epsilon 1e-3, and a decay of 0.9997, which is 1 - momentum in PyTorch.

    Running statistics take some ten thousand steps to settle with it.
    """
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=1 - 0.9997)


def separable(cin: int, cout: int, kernel: int, stride: int) -> nn.Sequential:
    """(ReLU, depthwise kxk, 1x1, BN) twice; the first of them strides.

    (B, cin, H, W) -> (B, cout, H', W').
    """

    def once(cin: int, stride: int) -> tuple[nn.Module, ...]:
        depthwise = nn.Conv2d(cin, cin, kernel, stride, padding=kernel // 2, groups=cin, bias=False)
        return nn.ReLU(), depthwise, nn.Conv2d(cin, cout, 1, bias=False), norm(cout)

    return nn.Sequential(*once(cin, stride), *once(cout, 1))


def squeeze(cin: int, cout: int) -> nn.Sequential:
    """ReLU, 1x1, BN. (B, cin, H, W) -> (B, cout, H, W)."""
    return nn.Sequential(nn.ReLU(), nn.Conv2d(cin, cout, 1, bias=False), norm(cout))


class FactorizedReduction(nn.Module):
    """ReLU, two 1x1 convolutions of stride 2 side by side, BN. (B, cin, H, W) -> (B, cout,
    ceil(H/2), ceil(W/2)).

    Half of the channels see the pixels (0, 0), (0, 2), ..., the others (1, 1), (1, 3), ... with
    zeros past the border.
    """

    def __init__(self, cin: int, cout: int):
        super().__init__()
        self.even = nn.Conv2d(cin, cout // 2, 1, stride=2, bias=False)
        self.odd = nn.Conv2d(cin, cout - cout // 2, 1, stride=2, bias=False)
        self.bn = norm(cout)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(x)
        # (B, cin, H, W): one row and one column out, zeros in at the far end
        shifted = F.pad(x, (-1, 1, -1, 1))
        return self.bn(torch.cat((self.even(x), self.odd(shifted)), dim=1))


OPERATIONS = {  # name -> maker, from channels in, channels out and stride; whatever strides gives ceil(size / 2)
    "sep3": lambda cin, cout, stride: separable(cin, cout, 3, stride),
    "sep5": lambda cin, cout, stride: separable(cin, cout, 5, stride),
    "sep7": lambda cin, cout, stride: separable(cin, cout, 7, stride),
    "avg": lambda cin, cout, stride: nn.AvgPool2d(3, stride, padding=1, count_include_pad=False),
    "max": lambda cin, cout, stride: nn.MaxPool2d(3, stride, padding=1),
    "same": lambda cin, cout, stride: nn.Identity(),
}


class Cell(nn.Module):
    """One cell. cur (B, C, H, W) and prev, the output before it -> (B, len(plan.out) * width, H',
    W').

    H' and W' are H and W over the plan's stride, rounded up. prev has the size of cur or, if
    `halve`, twice that. `match` is false for the first cell only, which takes its prev as it is.
    """

    def __init__(self, plan: Plan, width: int, cur: int, prev: int, halve: bool, match: bool):
        super().__init__()
        self.plan = plan
        self.cur = squeeze(cur, width)
        fit = FactorizedReduction if halve else squeeze
        self.prev = fit(prev, width) if match else nn.Identity()
        channels = [width, width if match else prev] + len(plan.blocks) * [width]
        self.blocks = nn.ModuleList(
            nn.ModuleList(
                OPERATIONS[name](channels[state], width, plan.stride if state < 2 else 1)
                for name, state in block
            )
            for block in plan.blocks
        )

    def forward(self, cur: Tensor, prev: Tensor) -> Tensor:
        states = [self.cur(cur), self.prev(prev)]  # 2 x (B, width, H, W)
        for (left, right), ((_, i), (_, j)) in zip(self.blocks, self.plan.blocks):
            states.append(left(states[i]) + right(states[j]))  # (B, width, H', W')
        return torch.cat([states[i] for i in self.plan.out], dim=1)


class NASNetMobile(nn.Module):
    """NASNet-A Mobile without its classifier: (B, 3, H, W) normalised with mean = std = 0.5 -> the
    outputs of `STAGES`, fine to coarse, before the ReLU that the next cell begins with.

    The stem is padded by one pixel, so that sizes are ceil(H/stride) like everyone's; the published
    network has it unpadded. Strides round sizes up, as TensorFlow's "SAME" does; the windows here
    are centred on the pixels 0, 2, 4, ... of any input, those of "SAME" on 1, 3, 5, ... if the size
    is even. This would matter for TF-Slim's weights; it does not change any count.
    """

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, STEM, 3, stride=2, padding=1, bias=False), norm(STEM)
        )
        self.stages = nn.ModuleList()
        prev, cur = STEM, STEM  # channels of the last two outputs
        halve = False  # whether these differ in size
        for plan, width, cells in STAGES:
            stage = nn.ModuleList()
            for _ in range(cells):
                stage.append(Cell(plan, width, cur, prev, halve, match=len(self.stages) > 0))
                prev, cur, halve = cur, len(plan.out) * width, plan.stride == 2
            self.stages.append(stage)

    def forward(self, x: Tensor) -> list[Tensor]:
        prev = cur = self.stem(x)  # (B, 32, H/2, W/2)
        taps = []
        for stage in self.stages:
            for cell in stage:
                prev, cur = cur, cell(cur, prev)
            taps.append(cur)
        return taps
