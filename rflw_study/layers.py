"""Maps inside a network, by the name of a layer.

A layer is named as in `named_modules()`, and means the map that the module hands back when it is first called; with `:input` behind
the name it means the map that the module is given.
"""

from collections.abc import Sequence
from contextlib import contextmanager
import difflib

import torch
from torch import Tensor, nn

from rflw.errors import InputError


@contextmanager
def evaluating(model: nn.Module):
    """Within it, a network is in evaluation mode; afterwards each of its modules is in its own again."""
    modes = {module: module.training for module in model.modules()}
    try:
        yield model.eval()
    finally:
        for module, mode in modes.items():
            module.training = mode


def find(model: nn.Module, layer: str) -> tuple[nn.Module, bool]:
    """The module of a layer, and whether its input is meant. Raises InputError, with the names near it, for one that is not there."""
    name, _, end = layer.partition(":")
    modules = {key: module for key, module in model.named_modules() if key}
    if name not in modules or end not in ("", "input"):
        near = difflib.get_close_matches(name, modules, 6, 0.5) or [
            key for key, _ in model.named_children()
        ]
        raise InputError(
            f"no layer {layer!r}; near it: {', '.join(near)}"
            + f" (with :input: what it takes, not {end!r})" * bool(end)
        )
    return modules[name], bool(end)


class _Reached(Exception):
    """All layers have been computed; what comes after them is not needed."""


def feature_maps(model: nn.Module, layers: Sequence[str], x: Tensor) -> list[Tensor]:
    """The maps of several layers, each (B, C, H, W), from one pass, which ends with the last of them.

    Raises InputError for a name that is not there, and for a layer that is not used or gives no map.
    """
    found, hooks = {}, []

    def keep(layer, value):
        found.setdefault(layer, value)
        if len(found) == len({*layers}):
            raise _Reached

    try:
        for layer in {*layers}:
            module, before = find(model, layer)
            hooks.append(
                module.register_forward_pre_hook(
                    lambda _, args, layer=layer: keep(layer, args[0] if args else None)
                )
                if before
                else module.register_forward_hook(
                    lambda _, args, out, layer=layer: keep(layer, out)
                )
            )
        model(x)
    except _Reached:
        pass
    finally:
        for hook in hooks:
            hook.remove()
    for layer in layers:
        if layer not in found:
            raise InputError(f"layer {layer!r} is not called when the network runs")
        if not isinstance(found[layer], Tensor) or found[layer].ndim != 4:
            what = (
                tuple(found[layer].shape)
                if isinstance(found[layer], Tensor)
                else type(found[layer]).__name__
            )
            raise InputError(f"layer {layer!r} gives no map (B, C, H, W), but {what}")
    return [found[layer] for layer in layers]


def feature_map(model: nn.Module, layer: str, x: Tensor) -> Tensor:
    """The map of one layer, (B, C, H, W)."""
    return feature_maps(model, [layer], x)[0]


def stacked(images) -> Tensor:
    """A tensor (N, 3, H, W), or tensors (3, H, W) or (1, 3, H, W) -> (N, 3, H, W), channels last. Raises InputError for none, or
    several sizes."""
    if not len(images):
        raise InputError("no images")
    images = [image.reshape(image.shape[-3:]) for image in images]
    odd = next((i for i, image in enumerate(images) if image.shape != images[0].shape), None)
    if odd is not None:
        raise InputError(
            "images of several sizes: number 0 is {1}x{0}, number {4} {3}x{2}".format(
                *images[0].shape[-2:], *images[odd].shape[-2:], odd
            )
        )
    return torch.stack(images).contiguous(memory_format=torch.channels_last)
