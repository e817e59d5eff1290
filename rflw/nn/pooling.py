"""The decoder's max-pool in forms that are faster than PyTorch's own.

They are for compiled training on CPUs, where PyTorch's own takes a third of a training step.

A 5x5 window is two windows of five, along rows and along columns. Each keeps which of its five
pixels was the largest, in the order in which PyTorch's pool breaks ties, and the way back gives
every gradient to that pixel. Values are those of PyTorch's pool to the bit; gradients differ by the
rounding of their sums.
"""

from functools import cache, reduce
import os

import torch
from torch import Tensor, nn
import torch.nn.functional as F

from rflw.errors import InputError
from rflw.nn.blocks import CRP

# PyTorch's own place for code is in /tmp, under a name that any other user could take first
os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", os.path.expanduser("~/.cache/rflw/compiled"))


def largest(padded: Tensor) -> tuple[Tensor, Tensor]:
    """(A, n + 4, B) -> the largest of each five along the middle, (A, n, B), and which: 0 to 4."""
    n = padded.shape[1] - 4
    best = padded[:, :n]
    which = torch.zeros_like(best)
    for k in range(1, 5):
        value = padded[:, k : k + n]
        larger = (value > best) | (value != value)  # once not a number, always
        best, which = torch.where(larger, value, best), torch.where(larger, float(k), which)
    return best, which


def give_back(gradient: Tensor, which: Tensor) -> Tensor:
    """Both (A, n, B) -> the same: to each pixel the gradients of the windows that took it."""
    n = gradient.shape[1]
    gradient, which = _pad(gradient, 0.0), _pad(which, -1.0)
    return sum(
        torch.where(which[:, 4 - k : 4 - k + n] == k, gradient[:, 4 - k : 4 - k + n], 0.0)
        for k in range(5)
    )


def _pad(x: Tensor, value: float) -> Tensor:
    return F.pad(x, (0, 0, 2, 2), value=value)


@cache
def _compiled(function):
    return torch.compile(function, dynamic=True)


def _run(function, *tensors: Tensor):
    return _compiled(function)(*tensors)


class _MaxPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        x = x.permute(0, 2, 3, 1)  # channels, or rows of them, lie beside each other
        x, column = _run(largest, _pad(x.reshape(b * h, w, c), -torch.inf))
        x, row = _run(largest, _pad(x.reshape(b, h, w * c), -torch.inf))
        ctx.save_for_backward(column, row)
        return x.view(b, h, w, c).permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        column, row = ctx.saved_tensors
        b, c, h, w = gradient.shape
        gradient = gradient.permute(0, 2, 3, 1).reshape(b, h, w * c)
        gradient = _run(give_back, gradient, row)
        gradient = _run(give_back, gradient.reshape(b * h, w, c), column)
        return gradient.view(b, h, w, c).permute(0, 3, 1, 2)


def max_pool(x: Tensor) -> Tensor:
    """(B, C, H, W) -> the same, as `rflw.nn.blocks.max_pool`."""
    return _MaxPool.apply(x)


def can_compile() -> bool:
    """Whether torch.compile can make code here: it needs a C++ compiler."""
    try:
        _run(largest, torch.zeros(2, 9, 16))
    except Exception:  # of many types
        return False
    return True


def compile_pools(model: nn.Module) -> None:
    """Have a decoder use `max_pool` of this module. Raises InputError without a C++ compiler."""
    if not can_compile():
        raise InputError("the decoder's pools cannot be compiled here: is there a C++ compiler?")
    for module in model.modules():
        if isinstance(module, CRP) and module.pool:
            module.pool = max_pool


# ---------------------------------------------------------------- without gradients


def by_maxima(x: Tensor) -> Tensor:
    """(B, C, H, W) -> the same, as `rflw.nn.blocks.max_pool`, as maxima of neighbours.

    A compiler joins all of these, and the sums around them, into one loop.
    """
    for axis, border in ((3, (2, 2, 0, 0)), (2, (0, 0, 2, 2))):
        n, padded = x.shape[axis], F.pad(x, border, value=-torch.inf)
        x = reduce(torch.maximum, (padded.narrow(axis, k, n) for k in range(5)))
    return x


def in_two(x: Tensor) -> Tensor:
    """The same by PyTorch's pool over rows, then over columns: ten values a pixel instead of 25."""
    rows = F.max_pool2d(x, (1, 5), stride=1, padding=(0, 2))
    return F.max_pool2d(rows, (5, 1), stride=1, padding=(2, 0))


FORMS = {"rows and columns": in_two, "maxima": by_maxima}
