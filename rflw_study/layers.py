"""A trained network from inside: the run it comes from, and its maps by the name of a layer.

A layer is named as in `named_modules()` and means the map that the module returns when it is first
called; with `:input` behind the name it means the map that the module is given.
"""

from collections.abc import Sequence
from contextlib import contextmanager
import difflib

import torch
from torch import Tensor, nn

from rflw.errors import InputError


@contextmanager
def hooked(hooks):
    """Removes hooks at the end."""
    hooks = list(hooks)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def find(model: nn.Module, layer: str) -> tuple[nn.Module, bool]:
    """The module of a layer, and whether its input is meant.

    Raises:
        InputError: For an unknown layer; the message lists names near it.
    """
    name, _, end = layer.partition(":")
    modules = {key: module for key, module in model.named_modules() if key}
    if name not in modules or end not in ("", "input"):
        near = difflib.get_close_matches(name, modules, 6, 0.5)
        near = near or [key for key, _ in model.named_children()]
        hint = f" (or NAME:input, not :{end})" if end else ""
        raise InputError(f"no layer {layer!r}; near it: {', '.join(near)}{hint}")
    return modules[name], bool(end)


class OnZeros(nn.Module):
    """A decoder alone, on zeros in place of taps with these channels: counting needs shapes only."""

    def __init__(self, decoder: nn.Module, channels: Sequence[Sequence[int]]):
        super().__init__()
        self.decoder, self.channels = decoder, channels

    def forward(self, image: Tensor) -> Tensor:
        height, width = image.shape[2:]
        taps = zip((4, 8, 16, 32), self.channels)
        return self.decoder(
            [tuple(torch.zeros(1, c, height // s, width // s) for c in level) for s, level in taps]
        )


class _Reached(Exception):
    """All layers have been computed; what comes after them is not needed."""


def feature_maps(model: nn.Module, layers: Sequence[str], x: Tensor) -> list[Tensor]:
    """The maps of several layers from one pass, which ends with the last of them.

    Args:
        layers: Their names.
        x: Images as the network takes them, (B, 3, H, W).

    Returns:
        A map (B, C, h, w) for each layer.

    Raises:
        InputError: For an unknown layer, one that is not used, or one that gives no map.
    """
    maps = {}

    def keep(layer, value):
        maps.setdefault(layer, value)
        if len(maps) == len({*layers}):
            raise _Reached

    def hook(layer):
        module, before = find(model, layer)
        if before:
            return module.register_forward_pre_hook(lambda _, args: keep(layer, args[0]))
        return module.register_forward_hook(lambda _, args, out: keep(layer, out))

    with hooked([hook(layer) for layer in {*layers}]):
        try:
            model(x)
        except _Reached:
            pass
    for layer in layers:
        if layer not in maps:
            raise InputError(f"layer {layer!r} is not called when the network runs")
        if not isinstance(maps[layer], Tensor) or maps[layer].ndim != 4:
            raise InputError(f"layer {layer!r} gives no map (B, C, H, W)")
    return [maps[layer] for layer in layers]


def feature_map(model: nn.Module, layer: str, x: Tensor) -> Tensor:
    """The map of one layer, (B, C, h, w)."""
    return feature_maps(model, [layer], x)[0]
