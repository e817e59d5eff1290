"""How far operations look: which pixels a position depends on, and forward passes that compute only what a change can reach.

Both are tensors that stand in for the real ones while a module runs, so that they work on any module: PyTorch hands them every
elementary operation (`__torch_dispatch__`), and each answers in its own way. A `Span` knows the pixels that each position depends
on; a `Partial` holds a batch of inputs that differ from one and the same only inside a small window.
"""

from math import ceil, floor

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map

from rflw.errors import InputError

aten = torch.ops.aten
POINTWISE = {
    "relu",
    "hardtanh",
    "add",
    "sub",
    "mul",
    "div",
    "sigmoid",
    "silu",
    "mish",
    "hardswish",
    "hardsigmoid",
    "gelu",
    "elu",
    "tanh",
    "leaky_relu",
    "clamp",
    "clamp_min",
    "clamp_max",
    "neg",
    "abs",
    "exp",
    "sqrt",
    "pow",
    "clone",
    "_to_copy",
    "alias",
    "detach",
    "native_batch_norm",
    "cudnn_batch_norm",
    "_native_batch_norm_legit_no_training",
}
NORMS = {name for name in POINTWISE if "batch_norm" in name}
FILTERS = {"convolution", "max_pool2d_with_indices", "avg_pool2d"}
NOWHERE = 2**40  # of a position that depends on no pixel, such as padding


def filter_of(name: str, args: tuple) -> list[tuple[int, int, int, int]]:
    """Kernel, stride, padding and dilation along rows and columns, from the arguments of one of FILTERS."""

    def pair(i, default):
        value = args[i] if len(args) > i and args[i] is not None and args[i] != [] else default
        return list(value) * (2 if len(value) == 1 else 1)

    if name == "convolution":
        return list(zip(args[1].shape[-2:], pair(3, [1]), pair(4, [0]), pair(5, [1])))
    kernel = pair(1, [1])
    return list(
        zip(
            kernel,
            pair(2, kernel),
            pair(3, [0]),
            pair(4, [1]) if name.startswith("max") else [1, 1],
        )
    )


# ---------------------------------------------------------------- which pixels a position depends on


class Span(Tensor):
    """Stands for a map (1, C, H, W): along rows and columns, the first and last pixel of the image that each position depends on,
    int64 (n,). Those that depend on none have first > last. Whatever lies between first and last is taken to count."""

    @staticmethod
    def __new__(cls, shape, dtype, first: list[Tensor], last: list[Tensor]):
        return torch.Tensor._make_wrapper_subclass(cls, shape, dtype=dtype, device="meta")

    def __init__(self, shape, dtype, first, last):
        self.first, self.last = first, last

    @classmethod
    def of_image(cls, size: tuple[int, int], channels: int = 3, dtype=torch.float32) -> "Span":
        pixels = [torch.arange(n) for n in size]
        return cls((1, channels, *size), dtype, pixels, pixels)

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__.removesuffix("_")
        spans = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, Span)]
        bare = tree_map(
            lambda x: (
                torch.empty(x.shape, dtype=x.dtype, device="meta") if isinstance(x, Tensor) else x
            ),
            (args, kwargs or {}),
        )
        out = func(*bare[0], **bare[1])
        first_out = out[0] if isinstance(out, tuple) else out
        shape, ends = first_out.shape, []
        if len(shape) != 4:
            raise InputError(
                f"how far {name} looks is not known: its result is no map of rows and columns"
            )
        for axis in (0, 1):
            n, size = spans[0].shape[2 + axis], shape[2 + axis]
            index = cls.taps(name, args, axis, n, size)
            if (
                index is None
                and name in POINTWISE | {"cat"}
                and not (name == "cat" and (args[1] if len(args) > 1 else 0) != 1)
            ):
                parts = [
                    (x.first[axis].expand(size), x.last[axis].expand(size)) for x in spans
                ]  # of one row: seen from all
            elif index is None:
                raise InputError(f"how far {name} looks is not known")
            else:
                there, at = (index >= 0) & (index < n), index.clamp(0, n - 1)
                parts = [
                    (
                        torch.where(there, spans[0].first[axis][at], NOWHERE).amin(1),
                        torch.where(there, spans[0].last[axis][at], -NOWHERE).amax(1),
                    )
                ]
            ends.append(
                (
                    torch.stack([a for a, _ in parts]).amin(0),
                    torch.stack([b for _, b in parts]).amax(0),
                )
            )
        (top, bottom), (left, right) = ends
        if func.overloadpacket.__name__.endswith("_"):  # in place
            args[0].first, args[0].last = [top, left], [bottom, right]
            return args[0]
        span = cls(shape, first_out.dtype, [top, left], [bottom, right])
        return (span, *out[1:]) if isinstance(out, tuple) else span

    @staticmethod
    def taps(name: str, args: tuple, axis: int, n: int, size: int) -> Tensor | None:
        """Along one axis of n positions: which of them each of `size` results takes, (size, taps), below 0 or from n on for none;
        None for an operation that takes each result from one place, or that is not known."""
        i = torch.arange(size)[:, None]
        if name in FILTERS:
            kernel, stride, padding, dilation = filter_of(name, args)[axis]
            t = dilation * torch.arange(kernel)
            if name == "convolution" and args[6]:  # transposed
                place = i + padding - t
                return torch.where(place % stride == 0, place // stride, -1)
            return i * stride - padding + t
        if "adaptive" in name or name == "mean":
            width = ceil(n / size) + 1
            index = (i * n // size) + torch.arange(width)
            return torch.where(index < -(-(i + 1) * n // size), index, -1)
        if name == "constant_pad_nd":  # the last axis comes first
            before = args[1][2 * (1 - axis)] if len(args[1]) > 2 * (1 - axis) else 0
            return i - before
        if name == "slice":
            dim, start = args[1] if len(args) > 1 else 0, (args[2] if len(args) > 2 else None) or 0
            step = args[4] if len(args) > 4 else 1
            return i if dim % 4 != 2 + axis else (start + n if start < 0 else start) + step * i
        if "upsample" in name and "bicubic" not in name:
            scales = [x for x in args[2:] if isinstance(x, list)]
            scale = scales[0][axis] if scales else args[-2 + axis]
            ratio = 1 / scale if isinstance(scale, float) and len(args) > 3 else n / size
            if "nearest" in name:
                return torch.tensor(
                    [[floor((k + 0.5 * ("exact" in name)) * ratio)] for k in range(size)]
                ).clamp(0, n - 1)
            if args[2]:  # corners aligned; in whole numbers, since a place may be exact
                low, rest = (i * (n - 1)) // max(size - 1, 1), (i * (n - 1)) % max(size - 1, 1)
                return torch.cat([low, low + (rest > 0)], 1)
            places = [min(max((k + 0.5) * ratio - 0.5, 0), n - 1) for k in range(size)]
            return torch.tensor([[floor(p), ceil(p)] for p in places])
        return None


# ---------------------------------------------------------------- computing only what a change can reach


class Partial(Tensor):
    """Stands for a batch (B, C, H, W) of maps that are all equal to `clean` (1, C, H, W) but inside windows: that of sample b is
    `inside[b]`, (C, h, w), and its upper left corner `corner[b]`. Operations compute the windows that they can reach, and
    hand back whole tensors where windows would be as large as the map, or where they are not known here."""

    WORTHWHILE = 0.6  # share of the map up to which windows are cheaper than the whole

    @staticmethod
    def __new__(cls, clean: Tensor, inside: Tensor, corner: Tensor):
        return torch.Tensor._make_wrapper_subclass(
            cls, (len(inside), *clean.shape[1:]), dtype=clean.dtype, device=clean.device
        )

    def __init__(self, clean, inside, corner):
        self.clean, self.inside, self.corner = clean, inside, corner

    def rows(self, axis: int, first: Tensor, number: int) -> Tensor:
        return first[:, axis, None] + torch.arange(number, device=first.device)

    def cut(self, first: Tensor, size: tuple[int, int], value: float = 0.0) -> Tensor:
        """Windows of another place and size that hold all of these: (B, C, *size) from `first` (B, 2); `value` beyond the map."""
        up, left = (max(-n, 0) for n in first.amin(0).tolist())
        down, right = (
            max(n + s - m, 0) for n, s, m in zip(first.amax(0).tolist(), size, self.shape[-2:])
        )
        clean = self.clean
        if up or left or down or right:
            clean = nn.functional.pad(clean, (left, right, up, down), value=value)
        y, x = (self.rows(axis, first, n) + (up, left)[axis] for axis, n in enumerate(size))
        slab = clean[0].permute(1, 2, 0)[y[:, :, None], x[:, None]]  # (B, h, w, C)
        own = self.corner - first
        y, x = (self.rows(axis, own, n) for axis, n in enumerate(self.inside.shape[-2:]))
        slab[torch.arange(len(slab), device=y.device)[:, None, None], y[:, :, None], x[:, None]] = (
            self.inside.permute(0, 2, 3, 1)
        )
        return slab.permute(0, 3, 1, 2)

    def whole(self) -> Tensor:
        """(B, C, H, W) in full."""
        return self.cut(torch.zeros_like(self.corner), tuple(self.shape[-2:]))

    def at(self, channel: Tensor, y: Tensor, x: Tensor) -> Tensor:
        """Of every sample, the values of channels, each at a place of its own: all (U,) -> (B, U)."""
        h, w = self.inside.shape[-2:]
        row, column = y - self.corner[:, :1], x - self.corner[:, 1:]  # (B, U)
        here = (row >= 0) & (row < h) & (column >= 0) & (column < w)
        sample = torch.arange(len(row), device=y.device)[:, None]
        own = self.inside[sample, channel, row.clamp(0, h - 1), column.clamp(0, w - 1)]
        return torch.where(here, own, self.clean[0, channel, y, x])

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        packet = func.overloadpacket.__name__
        name, in_place = packet.removesuffix("_"), packet.endswith("_")
        if in_place:
            func = getattr(getattr(aten, name), func._overloadname)
        result = None
        if (
            name in FILTERS
            and isinstance(args[0], Partial)
            and not (name == "convolution" and args[6])
        ):
            result = args[0].filtered(func, name, args, kwargs)
        elif name == "constant_pad_nd":
            left, _, top, _ = *args[1], *[0] * (4 - len(args[1]))
            if min(args[1]) >= 0:
                result = cls(
                    func(args[0].clean, *args[1:], **kwargs),
                    args[0].inside,
                    args[0].corner + torch.tensor([top, left], device=args[0].corner.device),
                )
        elif name in POINTWISE or (name == "cat" and len(args) > 1 and args[1] == 1):
            result = cls.pointwise(func, name, args, kwargs)
        if result is None:
            result = func(*tree_map(whole, args), **tree_map(whole, kwargs))
        if in_place and not isinstance(args[0], Partial):
            return args[0].copy_(result)
        if in_place:
            given = (
                result
                if isinstance(result, Partial)
                else cls(result[:1], result, torch.zeros_like(args[0].corner))
            )
            args[0].clean, args[0].inside, args[0].corner = given.clean, given.inside, given.corner
            return args[0]
        return result

    def filtered(self, func, name: str, args: tuple, kwargs: dict):
        """A convolution or pooling, of the windows with what surrounds them; None where the whole is cheaper."""
        if "pool" in name and (kwargs or any(args[5 if name.startswith("max") else 4 :])):
            return None  # what is rounded up or counted otherwise at the border
        clean = func(self.clean, *args[1:], **kwargs)
        map_size = (clean[0] if isinstance(clean, tuple) else clean).shape[-2:]
        first, number, begin, length = [], [], [], []
        for axis, (kernel, stride, padding, dilation) in enumerate(filter_of(name, args)):
            corner, span = self.corner[:, axis], dilation * (kernel - 1) + 1
            up = (
                stride - 1 if span >= stride else 0
            )  # else the first window would begin behind the corner
            low = ((corner + padding - span + 1 + up) // stride).clamp(min=0)
            high = ((corner + self.inside.shape[2 + axis] - 1 + padding) // stride).clamp(
                max=map_size[axis] - 1
            )
            n = int((high - low).max()) + 1
            low = low.clamp(max=map_size[axis] - n)
            start = low * stride - padding
            needed = int((corner + self.inside.shape[2 + axis] - start).max())
            (
                first.append(low),
                number.append(n),
                begin.append(start),
                length.append(max((n - 1) * stride + span, needed)),
            )
        if number[0] * number[1] > self.WORTHWHILE * map_size[0] * map_size[1] or min(number) < 1:
            return None
        slab = self.cut(
            torch.stack(begin, 1), tuple(length), -torch.inf if name.startswith("max") else 0.0
        )
        args = list(args)
        args[0] = slab
        args[slice(4, 5) if name == "convolution" else slice(3, 4)] = (
            [[0, 0]] if len(args) > 3 else []
        )
        inside = func(*args, **kwargs)
        corner = torch.stack(first, 1)
        if isinstance(clean, tuple):  # pooling: its indices are of no use
            return Partial(clean[0], inside[0], corner), clean[1]
        return Partial(clean, inside, corner)

    @classmethod
    def pointwise(cls, func, name: str, args: tuple, kwargs: dict):
        """An operation on each value by itself, on windows that hold those of all its tensors; None where one of them is a whole map."""
        given = tree_flatten((args, kwargs))[0]
        parts = [x for x in given if isinstance(x, Partial)]
        others = [x for x in given if isinstance(x, Tensor) and not isinstance(x, Partial)]
        if (
            name not in NORMS
            and any(x.numel() > 1 for x in others)
            or any(x.shape[-2:] != parts[0].shape[-2:] for x in parts)
        ):
            return None
        corner = torch.stack([x.corner for x in parts]).amin(0)
        end = torch.stack(
            [x.corner + torch.tensor(x.inside.shape[-2:], device=corner.device) for x in parts]
        ).amax(0)
        size = (end - corner).amax(0)
        map_size = torch.tensor(parts[0].shape[-2:], device=corner.device)
        if size.prod() > cls.WORTHWHILE * map_size.prod():
            return None
        corner = torch.minimum(corner, map_size - size)
        same = len(parts) == 1
        cuts = {id(x): x.inside if same else x.cut(corner, tuple(size.tolist())) for x in parts}
        inside = func(*tree_map(lambda x: cuts.get(id(x), x), args), **kwargs)
        clean = func(*tree_map(lambda x: x.clean if isinstance(x, Partial) else x, args), **kwargs)
        if isinstance(clean, tuple):
            return (Partial(clean[0], inside[0], corner), *clean[1:])
        return Partial(clean, inside, corner)


def whole(x):
    """A Partial in full; anything else as it is."""
    return x.whole() if isinstance(x, Partial) else x
