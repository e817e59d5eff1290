"""Theoretical receptive fields: which pixels of the image a position of a map can depend on.

A `Span` stands in for the image while a module runs: PyTorch hands it every elementary operation
(`__torch_dispatch__`), and it answers with the pixels that each position of the result depends on.
So it works on any module whose operations are known here.
"""

from math import ceil, floor, inf

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map

from rflw.errors import InputError
from rflw.prediction import evaluating
from rflw_study.layers import feature_map

POINTWISE = set(
    """relu hardtanh add sub mul div sigmoid silu mish hardswish hardsigmoid gelu elu tanh
    leaky_relu clamp clamp_min clamp_max neg abs exp sqrt pow clone _to_copy alias detach native_batch_norm
    cudnn_batch_norm _native_batch_norm_legit_no_training""".split()
)
FILTERS = {"convolution", "max_pool2d_with_indices", "avg_pool2d"}
NOWHERE = 2**40  # of a position that depends on no pixel, such as padding
UNLIMITED = 2**14  # pixels; fields that reach further are called infinite


@torch.no_grad()
def theoretical(
    model: nn.Module, layer: str, size: tuple[int, int] | None = None
) -> tuple[float, float]:
    """Rows and columns of the image that the unit in the middle of a layer can depend on.

    Each operation widens the span of pixels behind a position, and sums take the outermost.

    Args:
        layer: Its name (`rflw_study.layers`).
        size: Rows and columns of the image; None for an image without borders.

    Returns:
        Rows and columns, infinite where a layer sees any image whole.

    Raises:
        InputError: For an operation that is not known here.
    """
    dtype = next((p.dtype for p in model.parameters()), torch.float32)
    sides = (UNLIMITED // 16, UNLIMITED // 4, UNLIMITED)
    with evaluating(model):
        for rows, columns in [size] if size else [(side, side) for side in sides]:
            span = feature_map(model, layer, Span.of_image((rows, columns), dtype=dtype))
            middle = [
                (first[len(first) // 2].item(), last[len(last) // 2].item())
                for first, last in zip(span.first, span.last)
            ]
            if size or all(0 < first and last < rows - 1 for first, last in middle):
                return tuple(max(last - first + 1, 0) for first, last in middle)
    return inf, inf


class Span(Tensor):
    """Stands for a map (1, C, H, W).

    `first` and `last` hold, for rows and for columns, the first and last pixel of the image that
    each position depends on, int64 (n,); first > last for a position that depends on none. All
    between first and last is taken to count.
    """

    @staticmethod
    def __new__(cls, shape, dtype, first: list[Tensor], last: list[Tensor]):
        return torch.Tensor._make_wrapper_subclass(cls, shape, dtype=dtype, device="meta")

    def __init__(self, shape, dtype, first, last):
        self.first, self.last = first, last

    @classmethod
    def of_image(cls, size: tuple[int, int], dtype=torch.float32) -> "Span":
        pixels = [torch.arange(n) for n in size]
        return cls((1, 3, *size), dtype, pixels, pixels)

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        packet = func.overloadpacket.__name__
        name = packet.removesuffix("_")
        spans = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, Span)]
        bare_args, bare_kwargs = tree_map(_bare, (args, kwargs or {}))
        out = func(*bare_args, **bare_kwargs)
        shaped = out[0] if isinstance(out, tuple) else out
        if shaped.ndim != 4:
            raise InputError(f"how far {name} looks is not known: its result is no map")
        ends = [_ends(name, args, spans, axis, shaped.shape[2 + axis]) for axis in (0, 1)]
        first, last = map(list, zip(*ends))
        if packet.endswith("_"):  # in place
            args[0].first, args[0].last = first, last
            return args[0]
        span = cls(shaped.shape, shaped.dtype, first, last)
        return (span, *out[1:]) if isinstance(out, tuple) else span


def _bare(x):
    """A tensor's shape and type alone."""
    return torch.empty(x.shape, dtype=x.dtype, device="meta") if isinstance(x, Tensor) else x


def _ends(name: str, args: tuple, spans: list[Span], axis: int, size: int):
    """First and last pixels of the `size` results of an operation along one axis."""
    n = spans[0].shape[2 + axis]
    index = _taps(name, args, axis, n, size)
    if index is not None:
        inside, at = (index >= 0) & (index < n), index.clamp(0, n - 1)
        first = torch.where(inside, spans[0].first[axis][at], NOWHERE).amin(1)
        return first, torch.where(inside, spans[0].last[axis][at], -NOWHERE).amax(1)
    if name not in POINTWISE and not (name == "cat" and args[1:2] == (1,)):
        raise InputError(f"how far {name} looks is not known")
    # a map of one row is seen from all rows of another
    first = torch.stack([span.first[axis].expand(size) for span in spans]).amin(0)
    return first, torch.stack([span.last[axis].expand(size) for span in spans]).amax(0)


def _taps(name: str, args: tuple, axis: int, n: int, size: int) -> Tensor | None:
    """Which of n positions along an axis each of `size` results takes, (size, taps).

    Outside 0 to n - 1 for none; None for an operation that takes each result from one place, or
    that is not known.
    """
    i = torch.arange(size)[:, None]
    if name in FILTERS and not (name == "convolution" and args[6]):  # not a transposed one
        kernel, stride, padding, dilation = _filter(name, args)[axis]
        return i * stride - padding + dilation * torch.arange(kernel)
    if "adaptive" in name or name == "mean":
        index = (i * n // size) + torch.arange(ceil(n / size) + 1)
        return torch.where(index < -(-(i + 1) * n // size), index, -1)
    if name == "constant_pad_nd":  # the last axis comes first
        pads = [*args[1], 0, 0]
        return i - pads[2 * (1 - axis)]
    if name == "slice":
        dim, start, _, step = [*args[1:], *(0, None, None, 1)[len(args) - 1 :]]
        return i if dim % 4 != 2 + axis else (start or 0) % n + step * i
    if name == "upsample_bilinear2d" and args[2]:
        # corners aligned; in whole numbers, since a place may be exact
        gaps = max(size - 1, 1)
        low, rest = i * (n - 1) // gaps, i * (n - 1) % gaps
        return torch.cat([low, low + (rest > 0)], 1)
    if name == "upsample_bilinear2d":
        places = [min(max((k + 0.5) * n / size - 0.5, 0), n - 1) for k in range(size)]
        return torch.tensor([[floor(place), ceil(place)] for place in places])
    return i * n // size if name == "upsample_nearest2d" else None


def _filter(name: str, args: tuple) -> list[tuple[int, int, int, int]]:
    """Kernel, stride, padding and dilation along rows and columns of one of FILTERS."""

    def pair(i, default):
        value = args[i] if len(args) > i and args[i] else default
        return list(value) * (2 if len(value) == 1 else 1)

    if name == "convolution":
        return list(zip(args[1].shape[-2:], pair(3, [1]), pair(4, [0]), pair(5, [1])))
    kernel, dilation = pair(1, [1]), pair(4, [1]) if name.startswith("max") else [1, 1]
    return list(zip(kernel, pair(2, kernel), pair(3, [0]), dilation))
